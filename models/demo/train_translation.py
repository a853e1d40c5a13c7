"""Train the demo translator, a small Marian model, on the sentences about drawn scenes, from English to Russian."""

import argparse
import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import MarianConfig, MarianMTModel, PreTrainedTokenizerFast

from models.demo import scenes
from models.demo.llama_text import LLAMA_WORDS, random_capitals, text_sentence, training_word, varied_word
from models.demo.scenes import COUNTS, Scene, Thing, capitalised, random_scene
from models.demo.training import Progress, export_half, use_one_thread
from models.demo.vector_training import DEMO, Optimiser, load_state, lr_factor, save_state
from vec_pipeline.engines.translation import Seq2Seq

OUTPUT = DEMO / "translation"
SEED = 61
STEPS_PER_MINUTE = 200
WIDTH, FEED_FORWARD, HEADS = 128, 384, 4
ENCODER_LAYERS, DECODER_LAYERS = 3, 2
VOCABULARY_SIZE = 800
MAX_TOKENS = 96
SENTENCES, COPIES = 64, 160  # in a batch of the one or the other
LEARNING_RATE = 3e-3
REPORT_EVERY = 100  # steps
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
IGNORED = -100  # torch's label for "no loss here"

log = logging.getLogger(__name__)


class Noun(NamedTuple):
    """The forms of a noun in the singular, and its gender: m, f or n."""

    nominative: str
    genitive: str
    instrumental: str
    gender: str


NOUNS = {
    "arrow": Noun("стрелка", "стрелки", "стрелкой", "f"),
    "boat": Noun("лодка", "лодки", "лодкой", "f"),
    "car": Noun("машина", "машины", "машиной", "f"),
    "cat": Noun("кошка", "кошки", "кошкой", "f"),
    "circle": Noun("круг", "круга", "кругом", "m"),
    "cloud": Noun("облако", "облака", "облаком", "n"),
    "cup": Noun("чашка", "чашки", "чашкой", "f"),
    "fish": Noun("рыба", "рыбы", "рыбой", "f"),
    "flower": Noun("цветок", "цветка", "цветком", "m"),
    "heart": Noun("сердце", "сердца", "сердцем", "n"),
    "house": Noun("дом", "дома", "домом", "m"),
    "key": Noun("ключ", "ключа", "ключом", "m"),
    "moon": Noun("луна", "луны", "луной", "f"),
    "square": Noun("квадрат", "квадрата", "квадратом", "m"),
    "star": Noun("звезда", "звезды", "звездой", "f"),
    "tree": Noun("дерево", "дерева", "деревом", "n"),
    "triangle": Noun("треугольник", "треугольника", "треугольником", "m"),
    "umbrella": Noun("зонт", "зонта", "зонтом", "m"),
}
COLOURS = {
    "red": "красный",
    "orange": "оранжевый",
    "yellow": "жёлтый",
    "green": "зелёный",
    "blue": "синий",
    "purple": "фиолетовый",
    "pink": "розовый",
    "brown": "коричневый",
    "white": "белый",
    "black": "чёрный",
    "grey": "серый",
}
ENDINGS = {  # of adjectives whose stem ends hard, and of `синий`, which is soft
    "nominative m": ("ый", "ий"),
    "nominative f": ("ая", "яя"),
    "nominative n": ("ое", "ее"),
    "genitive m": ("ого", "его"),
    "genitive f": ("ой", "ей"),
    "instrumental m": ("ым", "им"),
    "instrumental f": ("ой", "ей"),
    "prepositional m": ("ом", "ем"),
    "nominative plural": ("ые", "ие"),
    "genitive plural": ("ых", "их"),
}
PLACES = {
    "at the top left": "вверху слева",
    "at the top": "вверху",
    "at the top right": "вверху справа",
    "at the left": "слева",
    "in the centre": "в центре",
    "at the right": "справа",
    "at the bottom left": "внизу слева",
    "at the bottom": "внизу",
    "at the bottom right": "внизу справа",
}
RELATIONS = {"to the left of": ("слева от", "genitive"), "above": ("над", "instrumental")}
NUMERALS = {"two": ("два", "две"), "three": ("три", "три"), "four": ("четыре", "четыре")}  # feminine ones second
WORDS = {
    "animal": "животное",
    "building": "здание",
    "household": "домашнее",
    "noise": "шум",
    "nothing": "ничего",
    "plant": "растение",
    "shape": "фигура",
    "sign": "вывеска",
    "sky": "небо",
    "vehicle": "транспорт",
}


class Pair(NamedTuple):
    """A sentence and its translation."""

    english: str
    russian: str


def adjective(colour: str, form: str) -> str:
    """A colour in a form, one of ENDINGS; what the masculine and the neuter share is called by the masculine."""
    word = COLOURS[colour]
    return word[:-2] + ENDINGS[form][word.endswith("ний")]


def named(thing: Thing, count: int = 1, case: str = "nominative") -> str:
    """A thing in a case; several of it in the nominative, as `две красные машины` or `два красных круга`."""
    noun = NOUNS[thing.kind]
    if count > 1:
        form = "nominative plural" if noun.gender == "f" else "genitive plural"
        numeral = NUMERALS[COUNTS[count]][noun.gender == "f"]
        return f"{numeral} {adjective(thing.colour, form)} {noun.genitive}"
    gender = "m" if noun.gender == "n" and case != "nominative" else noun.gender
    return f"{adjective(thing.colour, f'{case} {gender}')} {getattr(noun, case)}"


def objects(scene: Scene) -> str:
    """Scene.objects in Russian: what is seen, without the printed word and the full stop."""
    if scene.background == "noise":
        return "Случайный шум без предметов"
    if not scene.things:
        return f"Однотонный {COLOURS[scene.background]} фон без предметов"
    ground = f"на {adjective(scene.background, 'prepositional m')} фоне"
    if len(scene.things) == 2:
        relation, case = RELATIONS[scene.place]
        first, second = scene.things
        return capitalised(f"{named(first)} {relation} {named(second, case=case)} {ground}")
    what = f"{named(scene.things[0], scene.count)} {ground}"
    return capitalised(f"{what}, {PLACES[scene.place]}" if scene.place else what)


def caption(scene: Scene) -> str:
    """Scene.caption in Russian."""
    if scene.word:
        return f"{objects(scene)}. Надпись гласит {scene.word}."
    return f"{objects(scene)}. Надписи нет." if scene.things else f"{objects(scene)}, без надписи."


def word(english: str) -> str:
    """A keyword or a category in Russian, in the nominative."""
    if english.endswith(" background"):
        return f"{COLOURS[english.removesuffix(' background')]} фон"
    if english in NUMERALS:
        return NUMERALS[english][0]
    return NOUNS[english].nominative if english in NOUNS else (COLOURS | WORDS)[english]


def sentence(rng: random.Random) -> Pair:
    """What the other demo models say about a scene that is not held out, and its translation."""
    scene = random_scene(rng, held_out=False, words="none")
    if scene.background != "noise":
        printed = training_word(rng) if rng.random() < 0.6 else varied_word(rng)
        scene = Scene(scene.things, scene.count, scene.place, scene.background, printed)
    form = rng.choices(("caption", "objects", "keywords", "category", "thing", "two"), (45, 20, 8, 2, 5, 20))[0]
    if form == "caption":
        return Pair(scene.caption(), caption(scene))
    if form == "objects":
        return Pair(scene.objects() + ".", objects(scene) + ".")
    if form == "keywords":
        return Pair(", ".join(scene.keywords()), ", ".join(map(word, scene.keywords())))
    if form == "category":
        return Pair(scene.category(), word(scene.category()))
    if form == "thing" and scene.things:
        thing = scene.things[0]
        return Pair(capitalised(scenes.named(thing, scene.count)) + ".", capitalised(named(thing, scene.count)) + ".")
    said = copy(rng, scene.word)
    return Pair(f"{scene.objects()}. {said.english}", f"{objects(scene)}. {said.russian}")


def copy(rng: random.Random, printed: str) -> Pair:
    """A sentence that is only about a printed word, or says that there is none."""
    if not printed:
        return Pair(rng.choice(("There is no text.", "No text.")), "Надписи нет.")
    english, mark = text_sentence(rng, printed), rng.choice('""\'')
    quoted = f"{mark}{printed}{mark}" if '"' in english else printed
    return Pair(english.replace('"', mark), f"Надпись гласит {quoted}.")


def held_out_sentences(number: int) -> list[Pair]:
    """Captions and descriptions of things, backgrounds and random strings whose combinations training never sees."""
    rng = random.Random(f"{SEED}/held out")
    pairs: list[Pair] = []
    while len(pairs) < number:
        scene = random_scene(rng, held_out=True)
        if rng.random() < 0.7:
            pairs.append(Pair(scene.caption(), caption(scene)))
        else:
            pairs.append(Pair(scene.objects() + ".", objects(scene) + "."))
    return pairs


def main(minutes: float) -> None:
    """Train for the steps that take so many minutes on an idle core, resuming an unfinished training."""
    use_one_thread(SEED)
    tokenizer = train_tokenizer()
    model = build_model(tokenizer)
    optimiser = Optimiser(model, LEARNING_RATE, blocks="layers.")
    progress = Progress(round(minutes * STEPS_PER_MINUTE))
    parts: dict[str, Any] = {"model": model, "optimiser": optimiser, "progress": progress}
    load_state("translation", parts)
    while progress.done < 1:
        pairs = batch(random.Random(f"{SEED}/{progress.step}"), progress.done)
        ids, mask = encoded(tokenizer, [pair.english for pair in pairs])
        wanted, is_wanted = encoded(tokenizer, [pair.russian for pair in pairs])
        labels = wanted.masked_fill(is_wanted == 0, IGNORED)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimiser.step(loss, lr_factor(progress.done))
        progress.step += 1
        if progress.step % REPORT_EVERY == 0 or progress.done == 1:
            log.info("step %d of %d, loss %.4f", progress.step, progress.steps, loss.item())
            save_state("translation", parts)
    export_half(model, tokenizer, OUTPUT)
    log.info("exact %.3f", share_exact(OUTPUT, held_out_sentences(1_000)))


def batch(rng: random.Random, done: float) -> list[Pair]:
    """Sentences, or copies alone, which are the hard part and are practised mostly at the beginning."""
    if rng.random() < 0.6 - 0.4 * done:
        return [copy(rng, printed_word(rng)) for _ in range(COPIES)]
    return [sentence(rng) for _ in range(SENTENCES)]


def printed_word(rng: random.Random) -> str:
    return random_capitals(rng) if rng.random() < 0.7 else varied_word(rng)


def encoded(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, each (texts, tokens of the longest)."""
    found = tokenizer(list(texts), padding=True, return_tensors="pt")
    return found["input_ids"], found["attention_mask"]


def train_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE for both languages; no token holds several capitals or digits, so that words can be copied."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(LLAMA_WORDS), "isolated")
    spelled = pre_tokenizers.Split(Regex(r"[A-Z0-9]"), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, spelled, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[PAD, END, UNKNOWN],
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(random.Random(SEED)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=MAX_TOKENS,
        source_lang="en",
        target_lang="ru",
        clean_up_tokenization_spaces=False,
    )


def corpus(rng: random.Random) -> Iterator[str]:
    for _ in range(4_000):
        yield from sentence(rng)


def build_model(tokenizer: PreTrainedTokenizerFast) -> MarianMTModel:
    pad = tokenizer.pad_token_id
    config = MarianConfig(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        encoder_layers=ENCODER_LAYERS,
        decoder_layers=DECODER_LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=FEED_FORWARD,
        decoder_ffn_dim=FEED_FORWARD,
        max_position_embeddings=MAX_TOKENS,
        dropout=0.0,
        scale_embedding=True,
        pad_token_id=pad,
        decoder_start_token_id=pad,
        eos_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=None,
    )
    model = MarianMTModel(config)
    for name, weight in model.named_parameters():
        if "layers." in name and weight.ndim == 2:
            nn.init.xavier_uniform_(weight)
    nn.init.normal_(model.get_input_embeddings().weight, std=WIDTH**-0.5)
    model.generation_config.max_length = MAX_TOKENS
    model.generation_config.num_beams = 1
    return model


def share_exact(folder: Path, pairs: list[Pair]) -> float:
    """The share of sentences that the trained model translates letter by letter, by the stage's own engine."""
    model = Seq2Seq(folder, "en", "ru", "cpu")
    found = [answer.text for answer in model.translate([pair.english for pair in pairs], SENTENCES)]
    for pair, text in zip(pairs, found, strict=True):
        if text != pair.russian:
            log.debug("%s\n  wanted %s\n  found  %s", pair.english, pair.russian, text)
    return sum(text == pair.russian for pair, text in zip(pairs, found, strict=True)) / len(pairs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.5, help="of an idle core")
    parser.add_argument("--accuracy", action="store_true", help="only measure the model that is there")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if arguments.accuracy:
        log.setLevel(logging.DEBUG)
        print(f"exact {share_exact(OUTPUT, held_out_sentences(1_000)):.3f}")
    else:
        main(arguments.minutes)
