"""How well the trust columns distinguish right descriptions from wrong ones, over drawn scenes, half of them difficult.

    .venv/bin/python benchmarks/trust.py --number 1500

Runs the bundled models as a user would and prints the tables of docs/trust.md. A description is right if it says word
for word what the picture was drawn from; for some difficult pictures none can be right.
"""

import argparse
import contextlib
import random
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from demo_accuracy import annotate  # which also puts the project on the path
from PIL import Image, ImageFilter
from sklearn.metrics import roc_auc_score

from models.demo.draw import SHARE_OF_SIZE, SIZES_PX
from models.demo.drawing import RGB_OF_BACKGROUND, RGB_OF_COLOUR, Pen, draw, noisy, tinted, varied
from models.demo.scenes import BACKGROUNDS, CATEGORIES, COLOURS, PLACES, Scene, random_scene
from models.demo.vector_training import paraphrase
from vec_pipeline.stages.embed_image import EmbedImage
from vec_pipeline.stages.flag import words
from vec_pipeline.stages.structure import Structure

SCALE = 4  # pictures are four times as large as the models see them
FALSE_ALARMS = (0.01, 0.05, 0.1)
FLAGS = ("low_confidence", "low_clip_score", "blank_image", "truncated", "repetitive", "text_mismatch")


class Case(NamedTuple):
    """A picture and the one description that is right of it; empty where none is."""

    image: Image.Image
    truth: str


def drawn(rng: random.Random, scene: Scene | None = None) -> Case:
    """A scene of combinations and strings that training never used."""
    scene = scene or random_scene(rng, held_out=True)
    width, height = rng.choices(SIZES_PX, SHARE_OF_SIZE)[0]
    return Case(draw(scene, rng, width, height, SCALE).image, scene.caption())


def blurred(rng: random.Random) -> Case:
    case = drawn(rng)
    return case._replace(image=case.image.filter(ImageFilter.GaussianBlur(rng.uniform(1, 4) * SCALE)))


def grainy(rng: random.Random) -> Case:
    case = drawn(rng)
    small = case.image.reduce(SCALE)  # at the size the models see, or reducing would average the grains away
    return case._replace(image=noisy(small, rng.uniform(15, 90), rng))


def upside_down(rng: random.Random) -> Case:
    scene = random_scene(rng, held_out=True)
    fields = {field: place for place, field in PLACES.items()}
    if scene.place in PLACES:
        column, row = PLACES[scene.place]
        turned = replace(scene, place=fields[2 - column, 2 - row])
    else:
        turned = replace(scene, things=scene.things[::-1])
    return Case(drawn(rng, scene).image.rotate(180), turned.caption())


def two_in_one(rng: random.Random) -> Case:
    """Two pictures side by side, of which the models know no word to say."""
    left, right = (drawn(rng).image.resize((56 * SCALE, 112 * SCALE)) for _ in range(2))
    both = Image.new("RGB", (112 * SCALE, 112 * SCALE))
    both.paste(left, (0, 0))
    both.paste(right, (56 * SCALE, 0))
    return Case(both, "")


def unknown_object(rng: random.Random) -> Case:
    """An object that training never showed, in the middle of a plain ground."""
    ground = rng.choice(BACKGROUNDS)
    colour = rng.choice([colour for colour in COLOURS if colour != ground])
    image = Image.new("RGB", (112 * SCALE, 112 * SCALE), tinted(RGB_OF_BACKGROUND[ground], rng))
    pen = Pen(rng.randint(24, 50) * SCALE)
    rng.choice(UNKNOWN_OBJECTS)(pen)
    corner = [rng.randint(0, image.width - pen.size_px) for _ in range(2)]
    image.paste(varied(RGB_OF_COLOUR[colour], rng), (corner[0], corner[1]), pen.mask)
    return Case(image, "")


def blank(rng: random.Random) -> Case:
    return drawn(rng, Scene((), 0, "", rng.choice(BACKGROUNDS), ""))


def cross(pen: Pen) -> None:
    pen.rectangle(0.38, 0.05, 0.62, 0.95)
    pen.rectangle(0.05, 0.38, 0.95, 0.62)


def hourglass(pen: Pen) -> None:
    pen.polygon((0.1, 0.05), (0.9, 0.05), (0.5, 0.5))
    pen.polygon((0.1, 0.95), (0.9, 0.95), (0.5, 0.5))


def bolt(pen: Pen) -> None:
    pen.polygon((0.6, 0.02), (0.15, 0.58), (0.45, 0.58), (0.35, 0.98), (0.85, 0.4), (0.55, 0.4))


def spectacles(pen: Pen) -> None:
    for x in (0.24, 0.76):
        pen.disc(x, 0.5, 0.22)
        pen.disc(x, 0.5, 0.14, ink=0)
    pen.rectangle(0.44, 0.46, 0.56, 0.54)


def ladder(pen: Pen) -> None:
    for x in (0.2, 0.7):
        pen.rectangle(x, 0.02, x + 0.1, 0.98)
    for y in (0.15, 0.38, 0.61, 0.84):
        pen.rectangle(0.2, y, 0.8, y + 0.08)


UNKNOWN_OBJECTS = (cross, hourglass, bolt, spectacles, ladder)
HARD_KINDS: dict[str, Callable[[random.Random], Case]] = {
    "blurred": blurred,
    "grainy": grainy,
    "upside down": upside_down,
    "two in one": two_in_one,
    "unknown object": unknown_object,
    "blank": blank,
}


class Results(NamedTuple):
    """One entry per picture. suspicion: by signal, high where there is doubt; flags: by name, whether it is raised."""

    kinds: np.ndarray[Any, Any]
    is_wrong: np.ndarray[Any, Any]
    suspicion: dict[str, np.ndarray[Any, Any]]
    flags: dict[str, np.ndarray[Any, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=2026)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cases = draw_cases(Path(folder) / "scenes", options.number, random.Random(options.seed))
        rows, seconds = annotate(Path(folder))
    results = judge(cases, rows)
    print(f"{len(cases)} pictures in {seconds:.0f} s with loading, {results.is_wrong.mean():.0%} described wrongly\n")
    print_mismatches(random.Random(options.seed), options.number // 5)
    print_kinds(results)
    print_thresholds(results)
    print_signals(results)


def draw_cases(folder: Path, number: int, rng: random.Random) -> dict[str, Case]:
    """Draw pictures into files, every second one hard; return them by file name, which begins with their kind."""
    folder.mkdir()
    cases = {}
    for index in range(number):
        kind = "as drawn" if index % 2 else list(HARD_KINDS)[index // 2 % len(HARD_KINDS)]
        name = f"{kind.replace(' ', '_')}-{index:05}.png"
        cases[name] = HARD_KINDS.get(kind, drawn)(rng)
        cases[name].image.save(folder / name)
    return cases


def judge(cases: dict[str, Case], rows: dict[str, dict[str, Any]]) -> Results:
    texts = [str(rows[name]["text"]) for name in cases]
    raised = [set(str(rows[name]["flags"]).split()) for name in cases]
    suspicion = {
        "text_confidence": -np.array([float(rows[name]["text_confidence"]) for name in cases]),
        "clip_score": -np.array([float(rows[name]["clip_score"]) for name in cases]),
        **other_clip_scores(texts, np.stack([rows[name]["image_vector"] for name in cases])),
    }
    return Results(
        np.array([name.split("-")[0].replace("_", " ") for name in cases]),
        np.array([text != case.truth for text, case in zip(texts, cases.values(), strict=True)]),
        suspicion,
        {flag: np.array([flag in words for words in raised]) for flag in FLAGS},
    )


def other_clip_scores(texts: list[str], images: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """What else clip_score could be: of the first sentence, or of the sentences one by one; images: (number, 256)."""
    sentences = [re.split(r"(?<=[.!?])\s+", text) for text in texts]
    vectors = text_vectors([sentence for several in sentences for sentence in several])
    starts = np.cumsum([0, *map(len, sentences)])[:-1]
    cosines = (vectors * np.repeat(images, [len(several) for several in sentences], axis=0)).sum(1)
    return {
        "clip_score of the first sentence": -cosines[starts],
        "clip_score, mean over sentences": -np.add.reduceat(cosines, starts) / [len(several) for several in sentences],
    }


def text_vectors(texts: list[str]) -> np.ndarray[Any, Any]:
    """The demo CLIP's vectors of texts, (number, 256), of length 1."""
    import torch

    stage = EmbedImage(model="models/demo/clip", device="cpu")
    clip = stage.load()
    with torch.inference_mode():
        batches = [texts[start : start + 64] for start in range(0, len(texts), 64)]
        return np.concatenate([clip.model.encode_text(clip.tokenize(b), normalize=True).numpy() for b in batches])


def print_mismatches(rng: random.Random, number: int) -> None:
    """What text_mismatch catches where the Llama errs, which it does with descriptions worded unlike those it knows."""
    scenes = [random_scene(rng, held_out=True, words=rng.choice(("lexicon", "random"))) for _ in range(number)]
    spoken = [(paraphrase(scene, rng).text, scene.word) for scene in scenes if scene.word]
    stage = Structure(model="models/demo/llama/llama.gguf", categories=CATEGORIES, threads=1, device="cpu")
    with contextlib.closing(stage.load()) as llama:
        results = stage.run(llama, [{"text": text} for text, _ in spoken], at_once=16)
    found = [str(result.get("image_text", "")) for result in results]
    is_wrong = np.array([own != word for own, (_, word) in zip(found, spoken, strict=True)])
    is_lost = np.array([own == "" for own in found])
    raised = np.array([not words(own) <= words(text) for own, (text, _) in zip(found, spoken, strict=True)])
    caught, flagged = raised[is_wrong].mean(), raised[~is_wrong].mean()
    print(f"image_text of {len(spoken)} reworded descriptions: {is_wrong.sum()} wrong, {is_lost.sum()} of these empty;")
    print(f"text_mismatch catches {caught:.0%} of the wrong ones and flags {flagged:.0%} of the right ones\n")


def print_kinds(results: Results) -> None:
    """Share of each kind's pictures that is described wrongly, and that carries each flag."""
    print(f"| pictures | number | described wrongly | {' | '.join(FLAGS)} |\n|{'---|' * (len(FLAGS) + 3)}")
    for kind in ("as drawn", *HARD_KINDS):
        chosen = results.kinds == kind
        shares = [results.is_wrong[chosen].mean(), *(raised[chosen].mean() for raised in results.flags.values())]
        print(f"| {kind} | {chosen.sum()} | {' | '.join(f'{share:.0%}' for share in shares)} |")
    print()


def print_thresholds(results: Results) -> None:
    """What a threshold would catch that raises a false alarm for so many of the right descriptions."""
    print("| column | right ones flagged | threshold | wrong ones caught |\n|---|---|---|---|")
    for name in ("text_confidence", "clip_score"):
        values = -results.suspicion[name]
        for share in FALSE_ALARMS:
            threshold = np.quantile(values[~results.is_wrong], share)
            caught = (values[results.is_wrong] < threshold).mean()
            print(f"| {name} | {share:.0%} | {threshold:.3f} | {caught:.0%} |")
    print()


def print_signals(results: Results) -> None:
    """How well each signal ranks, and each flag separates, the wrong descriptions from the right ones."""
    print("| signal | ROC AUC | ROC AUC, as drawn | wrong ones caught | right ones flagged |\n|---|---|---|---|---|")
    flag_of = {"text_confidence": "low_confidence", "clip_score": "low_clip_score"}
    for name, suspicion in results.suspicion.items():
        raised = results.flags.get(flag_of.get(name, ""))
        print(f"| {name} | {aucs(results, suspicion)} | {shares(results, raised)} |")
    for name in FLAGS:
        if name not in flag_of.values():
            print(f"| {name} | {aucs(results, results.flags[name])} | {shares(results, results.flags[name])} |")
    any_flag = np.any([results.flags[name] for name in FLAGS if name != "blank_image"], axis=0)
    print(f"| any flag but blank_image | {aucs(results, any_flag)} | {shares(results, any_flag)} |")


def aucs(results: Results, suspicion: np.ndarray[Any, Any]) -> str:
    easy = results.kinds == "as drawn"
    pairs = ((results.is_wrong, suspicion), (results.is_wrong[easy], suspicion[easy]))
    return " | ".join(f"{roc_auc_score(is_wrong, values):.3f}" for is_wrong, values in pairs)


def shares(results: Results, raised: np.ndarray[Any, Any] | None) -> str:
    if raised is None:
        return " | "
    return f"{raised[results.is_wrong].mean():.1%} | {raised[~results.is_wrong].mean():.1%}"


if __name__ == "__main__":
    main()
