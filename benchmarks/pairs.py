"""How well the flags of pairs tell an edit from the same picture saved again, and from another picture.

    .venv/bin/python -m benchmarks.pairs

Draws pairs, takes the bundled CLIP and editing model, and prints the tables of docs/trust.md.
"""

import argparse
import io
import random
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from models.demo.edit_pairs import EDITS, Pair, random_pair
from vec_pipeline.record import Values
from vec_pipeline.stages.compare_pair import ComparePair, largest_difference
from vec_pipeline.stages.edit_image import EditImage
from vec_pipeline.stages.embed_image import EmbedImage
from vec_pipeline.stages.flag import Flag
from vec_pipeline.stages.open_image import open_image

MAX_SIZE_PX = (112, 384)  # of open_image, in the demo's and in the production configuration
SIZES_PX = ((112, 112), (112, 84), (84, 112))
SAVED = {  # quality of the JPEG, and the share of the size
    "the same, JPEG 80": (80, 1.0),
    "the same, JPEG 50": (50, 1.0),
    "the same, 80 % size": (95, 0.8),
    "the same, JPEG 50 and 80 % size": (50, 0.8),
    "the same, JPEG 50 and half the size": (50, 0.5),
}
SHOWN = {"background": "another background", "remove": "the word removed", "recolour": "an object recoloured"}
ASKED = {"background": "another background", "remove": "remove the word", "recolour": "recolour an object"}
MODEL = "models/demo/clip"


def main(number: int) -> None:
    """number: of pairs, a third of each edit."""
    for max_size_px in MAX_SIZE_PX:
        rng = random.Random(0)
        pairs = [pair_of(EDITS[index % len(EDITS)], rng, scale=-(-max_size_px // 112)) for index in range(number)]
        print(f"\n| the second picture, {max_size_px} px | number | mean difference | `pair_difference` | flagged |")
        print("|---|---|---|---|---|")
        found: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
        for pair in pairs:
            for name, first, second in versions(pair, max_size_px):
                found[name].append((mean_difference(first, second), largest_difference(first, second)))
        for name, values in found.items():
            means, largest = np.array(values).T
            flagged = (largest < Flag.low_edit_difference).mean()
            print(f"| {name} | {len(values)} | {spread(means)} | {spread(largest)} | {flagged:.1%} |")
    similarities([pair_of(EDITS[index % len(EDITS)], rng, scale=4) for index in range(number)])
    edits(number, rng)


def pair_of(edit: str, rng: random.Random, scale: int) -> Pair:
    """One whose pictures differ: some removals have no word to remove."""
    while True:
        pair = random_pair(rng, rng.choice(SIZES_PX), held_out=False, edit=edit, scale=scale)
        if pair.before != pair.after:
            return pair


def versions(pair: Pair, max_size_px: int) -> Iterator[tuple[str, Image.Image, Image.Image]]:
    """The picture beside itself saved again, and beside its edit, as it is and saved again; by names."""
    before, after = pair.before.painted().image, pair.after.painted().image
    first = open_image(saved(before), max_size_px)
    for name, (quality, share) in SAVED.items():
        yield name, first, open_image(saved(before, quality, share), max_size_px)
    yield SHOWN[pair.edit], first, open_image(saved(after), max_size_px)
    yield f"{SHOWN[pair.edit]}, JPEG 50 and 80 % size", first, open_image(saved(after, 50, 0.8), max_size_px)


def saved(image: Image.Image, quality: int = 0, share: float = 1.0) -> bytes:
    """The content of a file: PNG where there is no quality, else JPEG."""
    content = io.BytesIO()
    if quality:
        image = image.resize((round(image.width * share), round(image.height * share)), Image.Resampling.LANCZOS)
        image.save(content, "JPEG", quality=quality)
    else:
        image.save(content, "PNG")
    return content.getvalue()


def mean_difference(first: Image.Image, second: Image.Image) -> float:
    """Of all pixels and colours, 0 to 1, at the smaller size."""
    size = min(first.width, second.width), min(first.height, second.height)
    pixels = [np.asarray(each.resize(size, Image.Resampling.LANCZOS), float) for each in (first, second)]
    return float(np.abs(pixels[0] - pixels[1]).mean()) / 255


def spread(values: np.ndarray) -> str:
    return f"{values.min():.3f} to {values.max():.3f}"


def similarities(pairs: list[Pair]) -> None:
    """What compare_pair says of edits and of pictures that are no pair."""
    stage, number = ComparePair(model=MODEL, device="cpu"), len(pairs)
    clip = stage.loaded_as.load()
    drawings = [drawing for pair in pairs for drawing in (pair.before, pair.after)]
    rows = [{"image": open_image(saved(each.painted().image), 112), "text": each.scene.caption()} for each in drawings]
    embedded = EmbedImage(model=MODEL, device="cpu").run(clip, rows, len(rows))
    views = [{**row, "vector": result["image_vector"]} for row, result in zip(rows, embedded, strict=True)]
    first, second = views[::2], views[1::2]
    others = [*second[1:], second[0]]
    told_otherwise = [{**each, "text": other["text"]} for each, other in zip(second, others, strict=True)]
    compared = {
        "an edit, and what both show": [together(*each) for each in zip(first, second, strict=True)],
        "an edit, and what another one shows": [together(*each) for each in zip(first, told_otherwise, strict=True)],
        "two pictures that are no pair": [together(*each) for each in zip(first, others, strict=True)],
    }
    print("\n| pairs | `pair_similarity`, 5 to 95 % | flagged | `edit_direction`, 5 to 95 % |\n|---|---|---|---|")
    for name, two in compared.items():
        found = stage.run(clip, two, number)
        similarity = np.array([row["pair_similarity"] for row in found])
        direction = np.array([row["edit_direction"] for row in found if row["edit_direction"] is not None])
        flagged = (similarity < Flag.low_pair_similarity).mean()
        print(f"| {name} | {middle(similarity)} | {flagged:.1%} | {middle(direction)} |")


def edits(number: int, rng: random.Random) -> None:
    """How much the bundled editing model changes where it is to change something, and where there is no word to remove.

    number: of pictures in all.
    """
    found: defaultdict[str, list[tuple[Image.Image, str]]] = defaultdict(list)
    while min(map(len, found.values()), default=0) < number // 4 or len(found) < 4:
        pair = random_pair(rng, (112, 112), held_out=True, edit=rng.choice(EDITS), scale=4)
        name = ASKED[pair.edit] if pair.before != pair.after else "remove the word, where there is none"
        if len(found[name]) < number // 4:
            found[name].append((open_image(saved(pair.before.painted().image), 112), pair.instruction))
    print("\n| asked for | number | `edit_difference`, 5 to 95 % | flagged |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"model": "models/demo/edit", "device": "cpu", "csv_folder": Path(folder)}
        stage = EditImage(prompt="{asked}", steps=4, guidance=1.0, image_guidance=1.0, **options)
        model = stage.load()
        for name, asked in found.items():
            results = stage.run(model, [{"image": image, "asked": words} for image, words in asked], 8)
            values = np.array([result["edit_difference"] for result in results])
            flagged = (values < Flag.low_edit_difference).mean()
            print(f"| {name} | {len(values)} | {middle(values)} | {flagged:.1%} |")


def together(first: Values, second: Values) -> Values:
    """The row of a pair, of two pictures with their texts and vectors."""
    return {
        **{"image": first["image"], "image_vector": first["vector"], "text": first["text"]},
        **{"edited_image": second["image"], "edited_vector": second["vector"], "edited_text": second["text"]},
    }


def middle(values: np.ndarray) -> str:
    return "{:.2f} to {:.2f}".format(*np.quantile(values, (0.05, 0.95)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=300, help="of pairs, a third of each edit")
    main(parser.parse_args().number)
