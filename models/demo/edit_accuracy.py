"""How well the demo editing model edits drawn pictures: `python -m models.demo.edit_accuracy` prints the figures.

The real pipeline edits pictures of held-out scenes and describes them before and after: the demo's describer is judge.
"""

import json
import random
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

from models.demo.draw import SHARE_OF_SIZE, SIZES_PX
from models.demo.edit_pairs import EDITS, Pair, random_pair
from models.demo.scenes import Scene
from vec_pipeline import load_annotations
from vec_pipeline.stages.describe import Describe

DEMO = Path(__file__).resolve().parent
FOLDER = DEMO / "edit"
SCALE = 4  # of the pictures' files; the worker reduces them to what the models see
STEPS = 4


def accuracy(folder: Path, pairs: list[Pair]) -> dict[str, tuple[float, int]]:
    """Shares of the pairs that come out right by the model in a folder, and of how many, by what is measured."""
    with tempfile.TemporaryDirectory() as workplace:
        texts = texts_of(folder, pairs, Path(workplace))
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for pair, (before, after) in zip(pairs, texts, strict=True):
        name = (
            f"{pair.edit}, two kinds" if pair.edit == "recolour" and len(pair.before.scene.things) == 2 else pair.edit
        )
        for what, is_right in judged(pair, before, after).items():
            outcomes[f"{name}: {what}"].append(is_right)
    return {name: (sum(results) / len(results), len(results)) for name, results in sorted(outcomes.items())}


def held_out_pairs(number: int, seed: str = "accuracy") -> list[Pair]:
    """`number` pairs of each edit, of combinations that training never sees; something is to change in each."""
    rng = random.Random(seed)
    pairs: list[Pair] = []
    while len(pairs) < number * len(EDITS):
        edit = EDITS[len(pairs) // number]
        pair = random_pair(rng, rng.choices(SIZES_PX, SHARE_OF_SIZE)[0], held_out=True, edit=edit, scale=SCALE)
        pairs += [pair] if pair.before.scene != pair.after.scene else []
    return pairs


def texts_of(folder: Path, pairs: list[Pair], workplace: Path) -> list[tuple[str, str]]:
    """What the demo's describer says of each picture before and after its edit, by a run in an empty folder."""
    lines = []
    for number, pair in enumerate(pairs):
        pair.before.painted().image.save(workplace / f"{number}.png")
        lines.append(json.dumps({"path": f"{number}.png", "instruction": pair.instruction}))
    (workplace / "pictures.jsonl").write_text("\n".join(lines))
    (workplace / "edit.yaml").write_text(yaml.safe_dump(configuration(folder)))
    csv = workplace / "annotations.csv"
    command: list[Any] = [sys.executable, "-m", "vec_pipeline", "run", workplace / "pictures.jsonl"]
    command += ["--keep", "instruction", "--config", workplace / "edit.yaml", "--output", csv]
    subprocess.run(command, check=True, cwd=DEMO.parent.parent, stdout=sys.stderr)
    rows = {Path(row["image_path"]).stem: row for row in load_annotations(csv).to_dict("records")}
    return [(str(rows[str(number)]["text"]), str(rows[str(number)]["edited_text"])) for number in range(len(pairs))]


def configuration(folder: Path) -> dict[str, Any]:
    describe = {"use": "describe", "model": str(DEMO / "vision_language"), "max_new_tokens": 64, "batch_size": 32}
    edited = {name: f"edited_{name}" for name in (*Describe.writes, *Describe.intermediates)}
    edit = {"use": "edit_image", "model": str(folder), "prompt": "{instruction}", "steps": STEPS, "batch_size": 8}
    return {
        "device": "cpu",
        "stages": [
            {"use": "open_image", "max_size_px": 112},
            describe,
            {**edit, "guidance": 1.0, "image_guidance": 1.0},
            {**describe, "name": "describe_edited", "read": {"image": "edited_image"}, "write": edited},
        ],
    }


def judged(pair: Pair, before: str, after: str) -> dict[str, bool]:
    """What is right in a text about the edited picture; `before` is about the original."""
    wanted = pair.after.scene
    outcomes = {
        "change read": is_change_read(pair.edit, wanted, after),
        "objects exact": objects(after) == wanted.objects(),
    }
    return {**outcomes, "word read as before": word(after) == word(before)} if wanted.word else outcomes


def is_change_read(edit: str, wanted: Scene, text: str) -> bool:
    if edit == "background":
        return f"{wanted.background} background" in text
    if edit == "remove":
        return "no text" in text
    return all(f"{thing.colour} {thing.kind}" in text for thing in wanted.things)


def objects(text: str) -> str:
    """The sentence about the objects in a description, without its full stop."""
    return re.split(r"\. |, no text", text)[0].rstrip(".")


def word(text: str) -> str:
    return (re.findall(r"The text reads (.*?)\.", text) or [""])[0]


def main(folder: Path = FOLDER, number: int = 200) -> None:
    for name, (share, of) in accuracy(folder, held_out_pairs(number)).items():
        print(f"{name}: {100 * share:.1f} % of {of}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
