"""Train the demo CLIP model: a picture and the texts that describe it get nearby vectors."""

import json
import logging
import math
import random
import string
import sys

import open_clip
import torch
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from models.demo.picture_pool import (
    LETTERS,
    PATCH_PX,
    PATCHES,
    QUESTIONS,
    SIDE_PX,
    Example,
    Pool,
    answers,
    pixels_of,
    random_example,
)
from models.demo.scenes import CATEGORY_OF_KIND, COLOURS, KINDS, Scene, Thing, capitalised, random_scene
from models.demo.vector_training import (
    DEMO,
    EVERYTHING,
    Clock,
    Optimiser,
    Phrase,
    load_state,
    lr_factor,
    paraphrase,
    save_state,
    short_query,
)

OUTPUT = DEMO / "clip"
SEED = 17
DIMENSIONS = 256
CONTEXT_TOKENS = 32
VISION = {"image_size": SIDE_PX, "patch_size": PATCH_PX, "width": 128, "head_width": 32, "layers": 5}
TEXT = {"context_length": CONTEXT_TOKENS, "width": 128, "heads": 4, "layers": 2, "pool_type": "eos"}
DENSE_BLOCK = 3  # the image block whose patch tokens learn what is on their patch
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
PREPROCESSING = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "longest", "fill_color": 0}

BATCH = 128
POOL_SIZE = 4_000
NEW_PER_STEP = 48  # new pictures
LEARNING_RATE = 3e-3
REPORT_EVERY = 50  # steps
MOST_LOGIT_SCALE = math.log(100)

log = logging.getLogger(__name__)


def main(minutes: float) -> None:
    """Train for so many minutes, resuming an unfinished training, and write the model to OUTPUT."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    prepare_folder()
    model = open_clip.create_model(f"local-dir:{OUTPUT}", load_weights=False)
    stress_positions(model)
    tokenize = open_clip.get_tokenizer(f"local-dir:{OUTPUT}")
    heads = Heads()
    optimiser = Optimiser(nn.ModuleDict({"clip": model, "heads": heads}), LEARNING_RATE, blocks="resblocks")
    clock = Clock(minutes)
    parts = {"model": model, "heads": heads, "optimiser": optimiser, "clock": clock}
    load_state("clip", parts)
    pool = Pool(POOL_SIZE, random.Random(f"{SEED}/pool/{clock.step}"))
    log.info("%d pictures drawn after %.0f s", POOL_SIZE, clock.spent_s)
    held_out = held_out_examples(500)
    while clock.done < 1:
        rng = random.Random(f"{SEED}/{clock.step}")
        pool.renew(NEW_PER_STEP, rng)
        loss, terms = loss_of_batch(model, heads, tokenize, pool.sample(BATCH, rng), rng)
        optimiser.step(loss, lr_factor(clock.done))
        with torch.no_grad():
            model.logit_scale.clamp_(max=MOST_LOGIT_SCALE)
        clock.step += 1
        if clock.step % REPORT_EVERY == 0:
            report(model, tokenize, held_out, clock, terms)
            save_state("clip", parts)
    report(model, tokenize, held_out, clock, {})
    save_state("clip", parts)
    export(model)


def prepare_folder() -> None:
    """Write the tokenizer and the config from which open_clip builds the model."""
    OUTPUT.mkdir(exist_ok=True)
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(OUTPUT)
    text = {
        **TEXT,
        "vocab_size": len(tokenizer),
        "eos_id": tokenizer.eos_token_id,
        "pad_id": tokenizer.pad_token_id,
        "hf_tokenizer_name": "clip",  # it only has to be set: for a local folder open_clip uses that folder
    }
    config = {
        "model_cfg": {"embed_dim": DIMENSIONS, "vision_cfg": VISION, "text_cfg": text},
        "preprocess_cfg": PREPROCESSING,
    }
    (OUTPUT / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words for what captions say, single characters for the rest, so that printed words are spelled out."""
    rng = random.Random(SEED)
    words: set[str] = set()
    for _ in range(20_000):
        scene = random_scene(rng, held_out=False, words="none")
        lettered = Scene(scene.things, scene.count, scene.place, scene.background, "X")
        for spoken in (scene, lettered):
            texts = (spoken.caption(), paraphrase(spoken, rng).text, short_query(spoken, rng).text)
            words.update(word for text in texts for word in text.replace(".", " ").replace(",", " ").split())
    words |= {capitalised(word) for word in words if len(word) > 1}
    characters = string.ascii_letters + string.digits
    pieces = [*string.punctuation, *characters, *(f"##{character}" for character in characters)]
    vocabulary = ["[PAD]", "[UNK]", "[EOS]", *pieces, *sorted(words - set(pieces))]
    ids = {piece: index for index, piece in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [EOS]", special_tokens=[("[EOS]", ids["[EOS]"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        eos_token="[EOS]",
        model_max_length=CONTEXT_TOKENS,
    )


@torch.no_grad()
def stress_positions(model: nn.Module) -> None:
    """Add to the image tower's positional embedding a strong vector for the row and one for the column.

    The patches' embeddings grow to a length of about 60 in training; compared with them, open_clip's positions of
    length 1 are so weak that after 50,000 pictures the places of objects are still at chance.
    """
    rows, columns = 1.5 * torch.randn(2, PATCHES, VISION["width"])
    model.visual.positional_embedding[1:] += (rows[:, None] + columns).flatten(0, 1)


class Heads(nn.Module):
    """Predicts the ground truth from the vectors, to teach the towers what matters; dropped after training.

    One head reads both image and text vectors, which also brings the two together.
    """

    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Linear(DIMENSIONS, sum(QUESTIONS.values()))
        self.patch_norm = nn.LayerNorm(VISION["width"])
        self.patch = nn.Linear(VISION["width"], len(KINDS) + 1 + len(COLOURS) + 1 + LETTERS)

    def whole_loss(self, vectors: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean cross-entropies of the questions about things and about capitals.

        vectors: (batch, DIMENSIONS) of length 1; truth: (batch, len(QUESTIONS)), -100 if there is no answer.
        """
        logits = self.whole(16 * vectors).split(list(QUESTIONS.values()), dim=1)
        losses = [
            functional.cross_entropy(logit, column, label_smoothing=0.02)
            for logit, column in zip(logits, truth.unbind(1), strict=True)
        ]
        capitals = sum(name.startswith("capital") for name in QUESTIONS)
        return torch.stack(losses[:-capitals]).mean(), torch.stack(losses[-capitals:]).mean()

    def patch_loss(self, tokens: torch.Tensor, examples: list[Example]) -> torch.Tensor:
        """What is on each patch: object, colour, capitals. tokens: (batch, PATCHES ** 2, width)."""
        logits = self.patch(self.patch_norm(tokens)).flatten(0, 1)
        kinds, colours, capitals = logits.split([len(KINDS) + 1, len(COLOURS) + 1, LETTERS], dim=1)
        true_kinds, true_colours = (
            torch.stack([torch.from_numpy(getattr(example, name)) for example in examples]).flatten().long()
            for name in ("kinds", "colours")
        )
        true_capitals = torch.stack([torch.from_numpy(example.capitals) for example in examples])
        empty_counts_less = torch.ones(len(KINDS) + 1)
        empty_counts_less[0] = 0.2
        return (
            functional.cross_entropy(kinds, true_kinds, weight=empty_counts_less)
            + functional.cross_entropy(colours, true_colours, weight=empty_counts_less[: len(COLOURS) + 1])
            + functional.binary_cross_entropy_with_logits(
                capitals, true_capitals.view(-1, LETTERS).float(), pos_weight=torch.tensor(5.0)
            )
        )


def loss_of_batch(
    model: nn.Module, heads: Heads, tokenize: HFTokenizer, examples: list[Example], rng: random.Random
) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss and its terms: contrastive, on what the pictures and the texts as a whole show, and on patches."""
    phrases = [phrase_for(example.scene, rng) for example in examples]
    image, tokens = image_features(model, augmented(pixels_of(examples), rng))
    text = model.encode_text(tokenize([phrase.text for phrase in phrases]), normalize=True)
    truth = torch.tensor([answers(example.scene) for example in examples])
    full = torch.tensor([phrase.aspects == EVERYTHING for phrase in phrases])
    things, capitals = heads.whole_loss(image, truth)
    text_things, text_capitals = heads.whole_loss(text, truth.where(full[:, None], -100))
    patches = heads.patch_loss(tokens, examples)
    contrast = contrastive_loss(model.logit_scale.exp() * image @ text.T, fits([e.scene for e in examples], phrases))
    loss = 0.5 * contrast + 4 * things + 0.3 * capitals + 0.5 * (text_things + text_capitals) + patches
    terms = {"contrast": contrast, "things": things, "capitals": capitals, "patches": patches, "text": text_capitals}
    return loss, {name: term.item() for name, term in terms.items()}


def phrase_for(scene: Scene, rng: random.Random) -> Phrase:
    form = rng.choices(("caption", "paraphrase", "query"), (80, 8, 12))[0]
    if form == "caption":
        return Phrase(scene.caption(), EVERYTHING)
    return paraphrase(scene, rng) if form == "paraphrase" else short_query(scene, rng)


def augmented(pixels: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Preprocess uint8 pictures (batch, 3, height, width), with a little change of brightness and contrast."""
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    contrast, brightness = torch.rand(2, len(pixels), 1, 1, 1, generator=generator).mul(0.2).sub(0.1)
    return normalised(pixels).mul(1 + contrast).add(brightness)


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels / 255 - mean) / std


def image_features(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors (batch, DIMENSIONS) of length 1, and the patch tokens (batch, PATCHES ** 2, width) of DENSE_BLOCK."""
    output = model.visual.forward_intermediates(images, indices=[DENSE_BLOCK], output_fmt="NLC")
    return functional.normalize(output["image_features"], dim=-1), output["image_intermediates"][0]


def fits(scenes: list[Scene], phrases: list[Phrase]) -> torch.Tensor:
    """Whether a phrase (column), said of the scene of the same index, is also true of a scene (row)."""
    captions = [scene.caption() for scene in scenes]
    rows = [
        [
            captions[row] == captions[column] if phrase.aspects == EVERYTHING else is_true_of(phrase, spoken, shown)
            for column, (phrase, spoken) in enumerate(zip(phrases, scenes, strict=True))
        ]
        for row, shown in enumerate(scenes)
    ]
    return torch.tensor(rows)


def is_true_of(phrase: Phrase, spoken: Scene, shown: Scene) -> bool:
    """Whether a short query about the scene `spoken` is true of the scene `shown` too."""
    aspects = phrase.aspects
    if "word" in aspects:
        return spoken.word == shown.word
    if "background" in aspects and spoken.background != shown.background:
        return False
    if "count" in aspects and (spoken.count, len(spoken.things)) != (shown.count, len(shown.things)):
        return False
    if not spoken.things:
        return not shown.things

    def aspect(thing: Thing) -> tuple[str, str]:
        category = CATEGORY_OF_KIND[thing.kind] if "category" in aspects else ""
        return thing.kind if "kind" in aspects else category, thing.colour if "colour" in aspects else ""

    named_things = spoken.things if aspects == {"kind", "colour"} else spoken.things[:1]
    return {aspect(thing) for thing in named_things} <= {aspect(thing) for thing in shown.things}


def contrastive_loss(logits: torch.Tensor, fitting: torch.Tensor) -> torch.Tensor:
    """InfoNCE both ways over (images, texts) logits, where a text may fit several images."""
    images = functional.cross_entropy(logits, functional.normalize(fitting.float(), p=1, dim=1))
    texts = functional.cross_entropy(logits.T, functional.normalize(fitting.T.float(), p=1, dim=1))
    return (images + texts) / 2


def held_out_examples(number: int) -> list[Example]:
    rng = random.Random(f"{SEED}/held out")
    return [random_example(rng, held_out=True) for _ in range(number)]


@torch.no_grad()
def recall(model: nn.Module, tokenize: HFTokenizer, examples: list[Example]) -> dict[int, float]:
    """Share of captions whose picture, or one of equal caption, is among the nearest 1 and 5 pictures."""
    model.eval()
    pictures = normalised(pixels_of(examples)).split(100)
    image = torch.cat([model.encode_image(some, normalize=True) for some in pictures])
    captions = [example.scene.caption() for example in examples]
    text = model.encode_text(tokenize(captions), normalize=True)
    nearest = (text @ image.T).topk(5).indices.tolist()
    model.train()
    right = [[captions[found] == caption for found in row] for caption, row in zip(captions, nearest, strict=True)]
    return {at: sum(any(row[:at]) for row in right) / len(right) for at in (1, 5)}


def report(
    model: nn.Module, tokenize: HFTokenizer, held_out: list[Example], clock: Clock, terms: dict[str, float]
) -> None:
    figures = ", ".join(f"{name} {value:.3f}" for name, value in terms.items())
    found = ", ".join(f"recall@{at} {share:.3f}" for at, share in recall(model, tokenize, held_out).items())
    log.info("step %d, %.0f s, %s, %s", clock.step, clock.spent_s, figures, found)


def export(model: nn.Module) -> None:
    """Write the weights as float16, which open_clip loads as float32."""
    weights = {name: weight.half().contiguous() for name, weight in model.state_dict().items()}
    file = OUTPUT / "open_clip_model.safetensors"
    save_file(weights, file)
    file.chmod(0o644)
    log.info("wrote %s", OUTPUT)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 40.0)
