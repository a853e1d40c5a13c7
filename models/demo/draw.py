"""Draws scenes into image files, each with a JSON file of its ground truth: `python -m models.demo.draw OUT_DIR`."""

import argparse
import random
from pathlib import Path

from models.demo.drawing import draw
from models.demo.scenes import Scene, named, random_scene

SIZES_PX = ((112, 112), (112, 84), (84, 112))  # width, height, at scale 1
SHARE_OF_SIZE = (70, 15, 15)
SHARE_OF_JPEG = 0.5


def main(
    out_folder: Path, number: int, seed: int, *, held_out: bool = False, words: str = "mixed", scale: int = 4
) -> list[Path]:
    """Draw `number` scenes, and return their image files.

    held_out: draw combinations and strings that no training has seen.
    words: as in `random_scene`.
    scale: by how much they are larger than a longest side of 112 pixels, at which the vision-language model sees them.
    """
    out_folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    return [
        write_scene(random_scene(rng, held_out=held_out, words=words), out_folder, rng, scale) for _ in range(number)
    ]


def write_scene(scene: Scene, out_folder: Path, rng: random.Random, scale: int) -> Path:
    """Draw one scene as PNG or JPEG and write its ground truth beside it, both under a descriptive name."""
    width, height = rng.choices(SIZES_PX, SHARE_OF_SIZE)[0]
    image = draw(scene, rng, width, height, scale).image
    path = free_name(out_folder, name_of(scene), ".jpg" if rng.random() < SHARE_OF_JPEG else ".png")
    if path.suffix == ".jpg":
        image.save(path, quality=rng.randint(80, 95))
    else:
        image.save(path, optimize=True)
    path.with_suffix(".json").write_text(scene.to_json() + "\n", encoding="utf-8")
    return path


def name_of(scene: Scene) -> str:
    """Such as red-car-SALE, three-blue-keys or pink-cup-above-green-star."""
    things = [named(thing, 1).split(" ", 1)[1] for thing in scene.things]
    if scene.background == "noise":
        parts = ["noise"]
    elif not things:
        parts = ["plain", scene.background]
    elif len(things) == 2:
        parts = [things[0], scene.place, things[1]]
    else:
        parts = [named(scene.things[0], scene.count)] if scene.count > 1 else things
    return "-".join(" ".join([*parts, scene.word]).split())


def free_name(folder: Path, stem: str, suffix: str) -> Path:
    """A name that no other picture has, whatever its suffix, so that no JSON file has it either."""
    tries = (stem if number == 1 else f"{stem}-{number}" for number in range(1, 1_000_000))
    return next(folder / f"{name}{suffix}" for name in tries if not (folder / f"{name}.json").exists())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--number", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", action="store_true", help="only what no training has seen")
    parser.add_argument("--words", choices=("lexicon", "random", "none", "mixed"), default="mixed")
    parser.add_argument("--scale", type=int, default=4, help="1 means a longest side of 112 pixels")
    options = parser.parse_args()
    main(
        options.out_dir,
        options.number,
        options.seed,
        held_out=options.held_out,
        words=options.words,
        scale=options.scale,
    )
