"""How well texts find pictures by DINO's vectors after `align`, for each way to pool them, beside CLIP and chance.

    .venv/bin/python -m benchmarks.align

Prints the tables of docs/align.md. The bundled models embed 2,400 drawn scenes to learn from and 500 of combinations of
object, colour and background that no model was trained on, which the figures are of.
"""

import argparse
import contextlib
import csv
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks.machine import machine  # noqa: E402
from models.demo.draw import write_scene  # noqa: E402
from models.demo.scenes import KINDS, Scene, random_scene  # noqa: E402
from vec_pipeline import load_annotations  # noqa: E402
from vec_pipeline.annotations import CsvReader  # noqa: E402
from vec_pipeline.commands.align import work  # noqa: E402
from vec_pipeline.commands.align.alignment import project, unit  # noqa: E402
from vec_pipeline.commands.align.recall import AMONG, WAYS, Recall, chance, recall  # noqa: E402
from vec_pipeline.commands.search.query import text_vectors  # noqa: E402
from vec_pipeline.terminal import plural  # noqa: E402

POOLS = {"cls_vector": "cls", "mean_vector": "mean", "both_vector": "cls+mean"}  # by the name of the column
VARIANTS = (
    *((column, "sentences", 1) for column in POOLS),
    ("both_vector", "sentences", 2),
    ("both_vector", "clip", 1),
    ("both_vector", "clip", 2),
)
SEED = 2026

CONFIG = {
    "device": "cpu",
    "stages": [
        {"use": "open_image", "max_size_px": 112},
        {"use": "embed_text", "model": "models/demo/sentences", "read": {"text": "caption"}},
        {"use": "embed_image", "model": "models/demo/clip"},
        *(
            {
                "use": "embed_dino",
                "name": name,
                "model": "models/demo/dino",
                "pool": pool,
                "write": {"dino_vector": name},
            }
            for name, pool in POOLS.items()
        ),
    ],
}

Matrix = np.ndarray[Any, np.dtype[np.float32]]
Encode = Callable[[Sequence[str]], Matrix]  # texts to vectors of length 1, in the space of some images


class Embedded(NamedTuple):
    """Scenes, and the CSV of their pictures and captions."""

    scenes: list[Scene]
    csv_path: Path

    def images(self, column: str) -> Matrix:
        table = load_annotations(self.csv_path)
        numbers = [int(Path(path).parent.name) for path in table["image_path"]]
        return np.stack(table[column].iloc[np.argsort(numbers)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_400, help="to learn from (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=500, help="to measure with (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to keep the pictures and the CSVs; else they are temporary")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        seen = embedded(folder / "seen", options.rows, held_out=False)
        held_out = embedded(folder / "held_out", options.held_out, held_out=True)
        columns = [f"{way} @{among}" for way in WAYS for among in AMONG]
        print(
            f"{options.rows:,} scenes to learn from, {options.held_out} held out; {machine('torch', 'transformers')}\n"
        )
        print(f"| vectors | {' | '.join(columns)} | right kind of 18 | CPU s |\n|---|" + "--:|" * 8)
        for variant in VARIANTS:
            print(aligned(seen, held_out, *variant), flush=True)
        print(clip_alone(held_out))
    captions = [scene.caption() for scene in held_out.scenes]
    print(line("chance", chance(captions), 1 / len(KINDS), 0))


def embedded(folder: Path, number: int, *, held_out: bool) -> Embedded:
    """Draw scenes and run the worker over them, as a user would; what is there already is used."""
    rng = random.Random(f"{SEED}/{held_out}")
    scenes = [random_scene(rng, held_out=held_out) for _ in range(number)]
    csv_path = folder / "annotations.csv"
    folder.mkdir(parents=True, exist_ok=True)
    if not csv_path.exists():
        with (folder / "list.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "caption"])
            for index, scene in enumerate(scenes):
                (folder / str(index)).mkdir()
                writer.writerow([write_scene(scene, folder / str(index), rng, scale=2), scene.caption()])
        (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
        arguments = [folder / "list.csv", "--keep", "caption", "--config", folder / "config.yaml", "--output", csv_path]
        subprocess.run([sys.executable, PROJECT / "run.py", *arguments], check=True, cwd=PROJECT, stdout=sys.stderr)
    return Embedded(scenes, csv_path)


def aligned(seen: Embedded, held_out: Embedded, column: str, using: str, layers: int) -> str:
    """Align on the one, and measure on the other."""
    start_s = time.process_time()
    columns = work.columns_of(seen.csv_path, "caption", column, using)
    with contextlib.redirect_stdout(sys.stderr), CsvReader(seen.csv_path) as reader:
        pairs = work.read(reader, columns, SEED)
    alignment, _ = work.learned(seen.csv_path, columns, pairs, layers, SEED)
    seconds = time.process_time() - start_s
    images = unit(held_out.images(column) - alignment.mean)

    def encode(texts: Sequence[str]) -> Matrix:
        return project(alignment.net, text_vectors(seen.csv_path, columns.maker, texts))

    return measured(f"{POOLS[column]}, {using}, {plural(layers, 'layer')}", encode, images, held_out, seconds)


def clip_alone(held_out: Embedded) -> str:
    def encode(texts: Sequence[str]) -> Matrix:
        return text_vectors(held_out.csv_path, "image_vector", texts)

    return measured("CLIP alone", encode, unit(held_out.images("image_vector")), held_out, 0)


def measured(name: str, encode: Encode, images: Matrix, held_out: Embedded, seconds: float) -> str:
    captions = [scene.caption() for scene in held_out.scenes]
    figures = recall(encode(captions), images, captions)
    return line(name, figures, kinds_right(encode, images, held_out.scenes), seconds)


def kinds_right(encode: Encode, images: Matrix, scenes: Sequence[Scene]) -> float:
    """The share of pictures that are nearest to their own caption among those that differ in the first kind alone."""
    cases = [(place, choices_of(scene)) for place, scene in enumerate(scenes) if scene.things]
    vectors = encode([caption for _, choices in cases for caption in choices])
    starts = np.cumsum([0, *(len(choices) for _, choices in cases)])
    right = [
        choices[int(np.argmax(vectors[start : start + len(choices)] @ images[place]))] == scenes[place].caption()
        for start, (place, choices) in zip(starts, cases, strict=False)
    ]
    return float(np.mean(right))


def choices_of(scene: Scene) -> list[str]:
    """Its caption with each kind of object as the first; a kind that is the second is left out."""
    first, *others = scene.things
    kinds = [kind for kind in KINDS if kind not in {thing.kind for thing in others}]
    return [replace(scene, things=(replace(first, kind=kind), *others)).caption() for kind in kinds]


def line(name: str, figures: Recall, right: float, seconds: float) -> str:
    shares = [f"{100 * share:.1f} %" for way in WAYS for share in figures[way]]
    return f"| {' | '.join([name, *shares, f'{100 * right:.0f} %', f'{seconds:.0f}' if seconds else ''])} |"


if __name__ == "__main__":
    main()
