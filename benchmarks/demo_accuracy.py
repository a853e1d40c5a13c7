"""How well the bundled models see: the real pipeline over held-out scenes, compared with the truth of each.

    .venv/bin/python benchmarks/demo_accuracy.py --number 2000

Prints the table of models/demo/README.md. Held out are combinations of object, colour and background, and strings of
letters, that training never used.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from models.demo import draw  # noqa: E402
from models.demo.scenes import COUNTS, LEXICON, Scene, Thing, named  # noqa: E402
from vec_pipeline import load_annotations  # noqa: E402

RETRIEVAL_SCENES = 500
TARGETS = {
    "object": 97,
    "colour": 97,
    "background": 99,
    "count": 95,
    "lexicon word, exact": 95,
    "unseen string, exact": 85,
    "category and keywords, where the text is right": 99,
    "image_text equals the quoted text": 99,
    "text-to-image recall@1 of 500": 70,
    "text-to-image recall@5 of 500": 95,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=2026)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scenes = draw_scenes(Path(folder) / "scenes", options.number, options.seed)
        rows, seconds = annotate(Path(folder))
    outcomes = compare(scenes, rows)
    outcomes |= retrieval(scenes, rows)
    print(f"{len(scenes)} scenes in {seconds:.0f} s with loading: {len(scenes) / seconds:.1f} images/s\n")
    print_table(outcomes)


def draw_scenes(folder: Path, number: int, seed: int) -> dict[str, Scene]:
    """Draw held-out scenes as files, a third each without text, with a word of the lexicon and with a random string."""
    scenes = {}
    for path in draw.main(folder, number, seed, held_out=True):
        truth = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        things = tuple(Thing(**thing) for thing in truth["things"])
        scenes[path.name] = Scene(things, *(truth[name] for name in ("count", "place", "background", "word")))
    return scenes


def annotate(folder: Path) -> tuple[dict[str, dict[str, object]], float]:
    """Run the pipeline as a user would; return its rows by file name, and the seconds it took."""
    output = folder / "annotations.csv"
    arguments = [folder / "scenes", "--config", PROJECT / "configs" / "demo.yaml", "--output", output]
    start_s = time.monotonic()
    subprocess.run([sys.executable, PROJECT / "run.py", *arguments], check=True, cwd=PROJECT, stdout=sys.stderr)
    seconds = time.monotonic() - start_s
    table = load_annotations(output)
    return {Path(row["image_path"]).name: row for row in table.to_dict("records")}, seconds


def compare(scenes: dict[str, Scene], rows: dict[str, dict[str, object]]) -> dict[str, list[bool]]:
    """Every single outcome, by the name of what is measured."""
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for name, scene in scenes.items():
        row = rows[name]
        text = str(row["text"])
        sentence = text.split(". ")[0].rstrip(".")
        quoted = (re.findall(r"The text reads (.*?)\.", text) or [""])[0]
        if scene.things:
            said = re.findall(r"\w+", re.split(r" on an? ", sentence)[0])
            outcomes["object"].append(all({t.kind, named(t, 2).split()[-1]} & set(said) for t in scene.things))
            outcomes["colour"].append(all(thing.colour in said for thing in scene.things))
            outcomes["count"].append(counted(sentence, scene) == scene.count)
        if scene.place:
            outcomes["place"].append(scene.place in sentence)
        outcomes["background"].append(background(sentence) == scene.background)
        outcomes[kind_of_text(scene)].append(quoted == scene.word)
        outcomes["whole description, exact"].append(text == scene.caption())
        outcomes["image_text equals the quoted text"].append(row["image_text"] == quoted)
        if text == scene.caption():
            is_right = (row["categories"], row["keywords"]) == (scene.category(), ", ".join(scene.keywords()))
            outcomes["category and keywords, where the text is right"].append(is_right)
            outcomes["whole JSON, where the text is right"].append(
                row["description"] == scene.objects() + "." and is_right
            )
    return outcomes


def counted(sentence: str, scene: Scene) -> int:
    """The number of objects a sentence speaks of."""
    first = sentence.split()[0].lower() if sentence else ""
    number = COUNTS.index(first) if first in COUNTS else int(first == "an")
    return number + 1 if number == 1 and re.search(r" (to the left of|above) an? ", sentence) else number


def background(sentence: str) -> str:
    if sentence.startswith("Random noise"):
        return "noise"
    found = re.findall(r"(\w+) background", sentence)
    return found[-1] if found else ""


def kind_of_text(scene: Scene) -> str:
    if not scene.word:
        return "no text, said so"
    return "lexicon word, exact" if scene.word in LEXICON else "unseen string, exact"


def retrieval(scenes: dict[str, Scene], rows: dict[str, dict[str, object]]) -> dict[str, list[bool]]:
    """Whether a picture of each caption is among the nearest, by the image vectors of the CSV."""
    import open_clip
    import torch

    model_name = f"local-dir:{PROJECT / 'models' / 'demo' / 'clip'}"
    model, _ = open_clip.create_model_from_pretrained(model_name)
    names = list(scenes)[:RETRIEVAL_SCENES]
    captions = [scenes[name].caption() for name in names]
    with torch.inference_mode():
        texts = model.eval().encode_text(open_clip.get_tokenizer(model_name)(captions), normalize=True).numpy()
    images = np.stack([np.asarray(rows[name]["image_vector"]) for name in names])
    similarity = texts @ images.T
    is_right = np.array([[own == other for other in captions] for own in captions])  # scenes may share a caption
    best_right = np.where(is_right, similarity, -1).max(1)
    ranks = (similarity > best_right[:, None]).sum(1)
    return {f"text-to-image recall@{k} of {RETRIEVAL_SCENES}": list(ranks < k) for k in (1, 5)}


def print_table(outcomes: dict[str, list[bool]]) -> None:
    print("| measured | correct | of | target |\n|---|---|---|---|")
    for name, results in outcomes.items():
        target = f"{TARGETS[name]} %" if name in TARGETS else ""
        print(f"| {name} | {100 * np.mean(results):.1f} % | {len(results)} | {target} |")


if __name__ == "__main__":
    main()
