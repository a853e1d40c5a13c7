"""How well the trust columns distinguish right descriptions from wrong ones, over drawn scenes, half of them difficult.

    .venv/bin/python benchmarks/trust.py --number 1500
    .venv/bin/python benchmarks/trust.py --number 1600 --calibrate 50 100 200

The second measures p_wrong of `calibrate`, fitted to so many marks, on the other scenes. `--signals FILE` saves what it
is computed from, for tests/test_calibrate.py.

Runs the bundled models and read_text as a user would and prints the tables of docs/trust.md. A description is right if
it says word for word what the picture was drawn from; for some difficult pictures none can be right.
"""

import argparse
import contextlib
import random
import re
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from demo_accuracy import PROJECT  # which also puts the project on the path
from PIL import Image, ImageFilter
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from models.demo.draw import SHARE_OF_SIZE, SIZES_PX
from models.demo.drawing import RGB_OF_BACKGROUND, RGB_OF_COLOUR, Pen, draw, noisy, tinted, varied
from models.demo.scenes import BACKGROUNDS, CATEGORIES, COLOURS, LEXICON, PLACES, Scene, random_scene
from models.demo.vector_training import paraphrase
from vec_pipeline import load_annotations
from vec_pipeline.calibration import Calibration, doubt, features
from vec_pipeline.commands.calibrate import fitting
from vec_pipeline.stages.embed_image import EmbedImage
from vec_pipeline.stages.flag import Flag, invented_share, words
from vec_pipeline.stages.structure import Structure

SCALE = 4  # pictures are four times as large as the models see them
FALSE_ALARMS = (0.01, 0.05, 0.1)
OCR_FLAGS = ("ocr_missing", "ocr_invented")
FLAGS = ("low_confidence", "low_clip_score", "blank_image", "truncated", "repetitive", "text_mismatch", *OCR_FLAGS)
CHOICES = ("at random", "half of them the most doubtful")  # of rows to mark
DRAWS = 30  # of rows to mark
WORD = re.compile(r"The text reads (.*?)\.")  # in a description of the bundled models


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
    """One entry per picture. suspicion: by signal, high where there is doubt; flags: by name, whether it is raised.

    has_wrong_word: the printed word is misread, missing or invented; NaN where no description can be right.
    """

    kinds: np.ndarray[Any, Any]
    is_wrong: np.ndarray[Any, Any]
    has_wrong_word: np.ndarray[Any, Any]
    suspicion: dict[str, np.ndarray[Any, Any]]
    flags: dict[str, np.ndarray[Any, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--calibrate", type=int, nargs="+", default=[], metavar="MARKS")
    parser.add_argument("--signals", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cases = draw_cases(Path(folder) / "scenes", options.number, random.Random(options.seed))
        rows, seconds = annotate(Path(folder))
    results = judge(cases, rows)
    print(f"{len(cases)} pictures in {seconds:.0f} s with loading, {results.is_wrong.mean():.0%} described wrongly\n")
    if options.signals:
        save_signals(options.signals, [rows[name] for name in cases], results.is_wrong)
    if options.calibrate:
        print_calibration([rows[name] for name in cases], results.is_wrong, options.calibrate)
        return
    print_mismatches(random.Random(options.seed), options.number // 5)
    print_kinds(results)
    print_words(results)
    print_changed_words(cases, rows, random.Random(options.seed))
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


def annotate(folder: Path) -> tuple[dict[str, dict[str, Any]], float]:
    """Run configs/demo.yaml with read_text; return the rows by file name, and the seconds it took."""
    config, output = folder / "config.yaml", folder / "annotations.csv"
    demo = (PROJECT / "configs" / "demo.yaml").read_text(encoding="utf-8")
    config.write_text(demo.replace("  - use: flag\n", "  - use: read_text\n  - use: flag\n"), encoding="utf-8")
    command = [sys.executable, PROJECT / "run.py", folder / "scenes", "--config", config, "--output", output]
    start_s = time.monotonic()
    subprocess.run(command, check=True, cwd=PROJECT, stdout=sys.stderr)
    seconds = time.monotonic() - start_s
    return {Path(row["image_path"]).name: row for row in load_annotations(output).to_dict("records")}, seconds


def judge(cases: dict[str, Case], rows: dict[str, dict[str, Any]]) -> Results:
    texts = [str(rows[name]["text"]) for name in cases]
    raised = [set(str(rows[name]["flags"]).split()) for name in cases]
    shares = [(Flag().missing_share(rows[name]), invented_share(rows[name])) for name in cases]
    suspicion = {
        "text_confidence": -np.array([float(rows[name]["text_confidence"]) for name in cases]),
        "clip_score": -np.array([float(rows[name]["clip_score"]) for name in cases]),
        **other_clip_scores(texts, np.stack([rows[name]["image_vector"] for name in cases])),
        "words missing or invented, by read_text": np.array([max(pair) for pair in shares]),
    }
    said = zip(texts, cases.values(), strict=True)
    wrong_words = [word_of(text) != word_of(case.truth) if case.truth else np.nan for text, case in said]
    return Results(
        np.array([name.split("-")[0].replace("_", " ") for name in cases]),
        np.array([text != case.truth for text, case in zip(texts, cases.values(), strict=True)]),
        np.array(wrong_words, float),
        suspicion,
        {flag: np.array([flag in words for words in raised]) for flag in FLAGS},
    )


def word_of(text: str) -> str:
    """The printed word that a description names; empty for none."""
    return found[1] if (found := WORD.search(text)) else ""


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


def print_words(results: Results) -> None:
    """How many of the words that the model got wrong carry a flag of read_text, and any flag."""
    by_ocr = np.any([results.flags[name] for name in OCR_FLAGS], axis=0)
    by_any = np.any([results.flags[name] for name in FLAGS if name != "blank_image"], axis=0)
    print("| pictures | word wrong | of these flagged by read_text | by any flag | word right | flagged by read_text |")
    print(f"|{'---|' * 6}")
    for kind in ("as drawn", "blurred", "grainy", "upside down", "blank", "all"):
        chosen = (results.kinds == kind) | (kind == "all")
        wrong, right = chosen & (results.has_wrong_word == 1), chosen & (results.has_wrong_word == 0)
        caught = [f"{raised[wrong].mean():.0%}" if wrong.any() else "" for raised in (by_ocr, by_any)]
        print(f"| {kind} | {wrong.sum()} | {' | '.join(caught)} | {right.sum()} | {by_ocr[right].mean():.1%} |")
    flagged = by_any[~results.is_wrong & ~np.isnan(results.has_wrong_word)].mean()
    print(f"\nany flag but blank_image: {flagged:.1%} of the right descriptions\n")


def print_changed_words(cases: dict[str, Case], rows: dict[str, dict[str, Any]], rng: random.Random) -> None:
    """What the flags of read_text say of right descriptions in which the word is changed, left out or invented."""
    outcomes: dict[str, list[tuple[bool, bool]]] = {}
    for name, case in cases.items():
        if not name.startswith("as_drawn"):
            continue
        word = word_of(case.truth)
        for change, new in changed_words(word, rng).items():
            text = case.truth if change == "right" else with_word(case.truth, new)
            row = {**rows[name], "text": text, "image_text": new}
            flags = Flag().missing_share(row) > Flag.ocr_missing, invented_share(row) > Flag.ocr_invented
            outcomes.setdefault(change, []).append(flags)
    print(f"| the description's word | number | {' | '.join(OCR_FLAGS)} | either |\n|{'---|' * 5}")
    for change, flags in outcomes.items():
        shares = [*np.mean(flags, axis=0), np.any(flags, axis=1).mean()]
        print(f"| {change} | {len(flags)} | {' | '.join(f'{share:.1%}' for share in shares)} |")
    print()


def changed_words(word: str, rng: random.Random) -> dict[str, str]:
    """Words that a description might name instead, by what is wrong with them."""
    if not word:
        return {"right": "", "invented": rng.choice(LEXICON)}
    place = rng.randrange(len(word))
    letter = rng.choice(string.ascii_uppercase.replace(word[place], ""))
    return {
        "right": word,
        "one letter wrong": word[:place] + letter + word[place + 1 :],
        "one letter lost": word[:place] + word[place + 1 :],
        "one letter too many": word[:place] + letter + word[place:],
        "another word": rng.choice([other for other in LEXICON if other != word]),
        "missing": "",
    }


def with_word(text: str, word: str) -> str:
    """A description that names another word, or none."""
    sentence = text.split(". ")[0].removesuffix(", no text.")
    return f"{sentence}. The text reads {word}." if word else f"{sentence}. There is no text."


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
    print(f"| all three, by a logistic model that never saw the kind | {aucs(results, together(results))} |  |  |")
    any_flag = np.any([results.flags[name] for name in FLAGS if name != "blank_image"], axis=0)
    print(f"| any flag but blank_image | {aucs(results, any_flag)} | {shares(results, any_flag)} |")


def together(results: Results) -> np.ndarray[Any, Any]:
    """One figure of confidence, clip_score and read_text, for each kind by a model that never saw that kind."""
    confidence = -results.suspicion["text_confidence"]
    signals = np.stack(
        [
            -np.log(1.0001 - confidence),
            results.suspicion["clip_score"],
            results.suspicion["words missing or invented, by read_text"],
        ],
        axis=1,
    )
    model = make_pipeline(StandardScaler(), LogisticRegression())
    suspicion = cross_val_predict(model, signals, results.is_wrong, cv=10, method="predict_proba")[:, 1]  # as drawn
    for kind in HARD_KINDS:
        own = results.kinds == kind
        suspicion[own] = model.fit(signals[~own], results.is_wrong[~own]).predict_proba(signals[own])[:, 1]
    return suspicion


def save_signals(path: Path, rows: list[dict[str, Any]], is_wrong: np.ndarray[Any, Any]) -> None:
    """Write what `flag` reads of each row, as far as it is known, and whether its description is wrong."""
    with path.open("w", encoding="utf-8") as file:
        for index, (row, wrong) in enumerate(zip(rows, is_wrong, strict=True)):
            signals = Flag().signals(row)
            if not index:
                file.write(",".join([*signals, "is_wrong"]) + "\n")
            cells = ["" if np.isnan(value) else f"{value:.4g}" for value in signals.values()]
            file.write(",".join([*cells, str(int(wrong))]) + "\n")


def print_calibration(rows: list[dict[str, Any]], is_wrong: np.ndarray[Any, Any], numbers: Sequence[int]) -> None:
    """How well p_wrong is calibrated on scenes that it was not fitted to, for each number and choice of marks."""
    print("| marks | chosen | wrong ones | ROC AUC | Brier score | calibration error | worst | if it were perfect |")
    print(f"|{'---|' * 8}")
    for number in numbers:
        for choice in CHOICES:
            found = np.array([calibrated(rows, is_wrong, number, choice, seed) for seed in range(DRAWS)])
            share, auc, score, error, least = found.mean(axis=0)
            figures = f"{share:.0%} | {auc:.3f} | {score:.3f} | {error:.3f} | {found[:, 3].max():.3f} | {least:.3f}"
            print(f"| {number} | {choice} | {figures} |")


def calibrated(
    rows: list[dict[str, Any]], is_wrong: np.ndarray[Any, Any], number: int, choice: str, seed: int
) -> tuple[float, ...]:
    """Fit to so many rows out of one half, and judge by the other half.

    Return the share of wrong rows among the marks; AUC, Brier score and calibration error; and what calibration error
    a perfect model would have.
    """
    half, others = np.array_split(np.random.default_rng(seed).permutation(len(rows)), 2)
    doubtful = half[np.argsort([-doubt({**rows[each], "p_wrong": None}) for each in half], kind="stable")]
    first = 0 if choice == CHOICES[0] else number // 2
    marked = np.concatenate(
        [doubtful[:first], [each for each in half if each not in doubtful[:first]][: number - first]]
    )
    signals = [Flag().signals(row) for row in rows]
    names = {name: np.array([features(each).get(name, np.nan) for each in signals]) for name in signals[0]}
    intercept, terms = fitting.fit({name: values[marked] for name, values in names.items()}, is_wrong[marked])
    model = Calibration(thresholds={}, intercept=intercept, terms=terms)
    p_wrong = np.array([model.p_wrong(signals[each]) for each in others])
    measures = (fitting.roc_auc, fitting.brier, fitting.calibration_error)
    least = fitting.least_calibration_error(p_wrong)
    return float(is_wrong[marked].mean()), *(each(p_wrong, is_wrong[others]) for each in measures), least


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
