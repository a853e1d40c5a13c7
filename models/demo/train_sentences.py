"""Train the demo sentence model: captions and queries of similar meaning get nearby vectors."""

import json
import logging
import random
import string
import sys

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from torch.nn import functional
from transformers import BertConfig, BertModel, BertTokenizerFast

from models.demo.scenes import CATEGORY_OF_KIND, LEXICON, Scene, random_scene
from models.demo.vector_training import (
    DEMO,
    STATES,
    Clock,
    Optimiser,
    Phrase,
    any_phrase,
    load_state,
    lr_factor,
    save_state,
)

OUTPUT = DEMO / "sentences"
SEED = 11
WIDTH = 128  # also the dimension of the vectors
MAX_TOKENS = 64
BATCH = 256  # texts
SCENES_PER_BATCH = 96  # so that most scenes have several wordings
LEARNING_RATE = 2e-3
TEMPERATURE = 0.07
SAVE_EVERY = 100  # steps

log = logging.getLogger(__name__)


def main(minutes: float) -> None:
    """Train for so many minutes, resuming an unfinished training, and write the model to OUTPUT."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model = build_model()
    optimiser = Optimiser(model, LEARNING_RATE, blocks="encoder.layer")
    clock = Clock(minutes)
    parts = {"model": model, "optimiser": optimiser, "clock": clock}
    load_state("sentences", parts)
    model.train()
    while clock.done < 1:
        phrases, scenes = sample_batch(random.Random(f"{SEED}/{clock.step}"))
        wanted = wanted_cosines(phrases, scenes)
        cosines = vectors_of(model, [phrase.text for phrase in phrases])
        loss = graded_contrastive_loss(cosines @ cosines.T, wanted)
        optimiser.step(loss, lr_factor(clock.done))
        clock.step += 1
        if clock.step % SAVE_EVERY == 0:
            log.info("step %d, %.0f s, loss %.4f", clock.step, clock.spent_s, loss.item())
            save_state("sentences", parts)
    save_state("sentences", parts)
    export(model)


def build_model() -> SentenceTransformer:
    """A BERT of four layers with random weights, mean pooling and vectors of length 1."""
    start = STATES / "sentences_start"
    start.mkdir(parents=True, exist_ok=True)
    vocabulary = word_pieces()
    tokenizer = BertTokenizerFast(
        vocab={piece: index for index, piece in enumerate(vocabulary)},
        do_lower_case=True,
        model_max_length=MAX_TOKENS,
    )
    tokenizer.save_pretrained(start)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=MAX_TOKENS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(start)
    transformer = Transformer(str(start), max_seq_length=MAX_TOKENS)
    return SentenceTransformer(modules=[transformer, Pooling(WIDTH, "mean"), Normalize()], device="cpu")


def word_pieces() -> list[str]:
    """The tokenizer's vocabulary: the words of the phrases and the lexicon, and all ASCII characters for the rest."""
    rng = random.Random(SEED)
    words = {word.lower() for word in LEXICON}
    for _ in range(20_000):
        scene = random_scene(rng, held_out=False, words="none")
        words.update(any_phrase(scene, rng).text.lower().replace(",", " ").replace(".", " ").split())
        lettered = Scene(scene.things, scene.count, scene.place, scene.background, "SALE")
        words.update(any_phrase(lettered, rng).text.lower().replace(",", " ").replace(".", " ").split())
    characters = string.ascii_lowercase + string.digits
    pieces = [*string.punctuation, *characters, *(f"##{character}" for character in characters)]
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces, *sorted(words - set(pieces))]


def sample_batch(rng: random.Random) -> tuple[list[Phrase], list[Scene]]:
    """BATCH phrases about SCENES_PER_BATCH scenes, and of each phrase its scene."""
    drawn = [random_scene(rng, held_out=False) for _ in range(SCENES_PER_BATCH)]
    scenes = [drawn[index % SCENES_PER_BATCH] for index in range(BATCH)]
    return [any_phrase(scene, rng) for scene in scenes], scenes


def meaning(phrase: Phrase, scene: Scene) -> dict[str, float]:
    """What the phrase says, as weighted features; texts that share features are similar."""
    says: dict[str, float] = {}
    aspects = phrase.aspects
    for thing in scene.things:
        if "kind" in aspects or "category" in aspects:
            says[f"category {CATEGORY_OF_KIND[thing.kind]}"] = 0.5
        if "kind" in aspects:
            says[f"kind {thing.kind}"] = 1.0
        if "colour" in aspects:
            says[f"colour {thing.colour}"] = 0.6
        if {"kind", "colour"} <= aspects:
            says[f"thing {thing.colour} {thing.kind}"] = 1.0
    if "count" in aspects:
        says[f"count {scene.count}"] = 0.4 if scene.things else 1.0
    if "place" in aspects and scene.place:
        says[f"place {scene.place} {scene.things[0].kind if len(scene.things) == 2 else ''}"] = 0.5
    if "background" in aspects:
        says[f"background {scene.background}"] = 0.5
    if "word" in aspects:
        says[f"word {scene.word}"] = 1.0 if scene.word else 0.3
        says["some word"] = 0.3 if scene.word else 0.0
    return says


def wanted_cosines(phrases: list[Phrase], scenes: list[Scene]) -> torch.Tensor:
    """Cosines of the phrases' meanings, a (batch, batch) matrix of values 0 to 1."""
    meanings = [meaning(phrase, scene) for phrase, scene in zip(phrases, scenes, strict=True)]
    column = {feature: index for index, feature in enumerate(dict.fromkeys(f for says in meanings for f in says))}
    weights = torch.zeros(len(meanings), len(column))
    for row, says in enumerate(meanings):
        for feature, weight in says.items():
            weights[row, column[feature]] = weight
    weights = functional.normalize(weights)
    return weights @ weights.T


def vectors_of(model: SentenceTransformer, texts: list[str]) -> torch.Tensor:
    """(len(texts), WIDTH) vectors of length 1, with gradients."""
    return model(model.preprocess(texts))["sentence_embedding"]


def graded_contrastive_loss(cosines: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """InfoNCE with the target cosines as soft labels, plus the cosines' own squared error; both (batch, batch).

    The first ranks neighbours, which retrieval is about; the second gives the cosines an absolute meaning.
    """
    itself = torch.eye(len(cosines), dtype=torch.bool)
    labels = (wanted / TEMPERATURE).masked_fill(itself, -1e4).softmax(dim=1)
    log_shares = (cosines / TEMPERATURE).masked_fill(itself, -1e4).log_softmax(dim=1)
    ranking = -(labels * log_shares).sum(dim=1).mean()
    return ranking + 20 * (cosines - wanted).square().mean()


def export(model: SentenceTransformer) -> None:
    """Write the model with float16 weights, which its config has loaded as float32."""
    model.eval().half()
    model.save(str(OUTPUT), create_model_card=False)
    config_file = OUTPUT / "config.json"
    config = json.loads(config_file.read_text())
    config_file.write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")
    (OUTPUT / "model.safetensors").chmod(0o644)
    log.info("wrote %s", OUTPUT)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 6.0)
