"""What `align` does between reading a CSV and writing the folder."""

import sys
from pathlib import Path
from typing import NamedTuple

from vec_pipeline.annotations import CsvReader
from vec_pipeline.commands.align.alignment import Alignment, model_of, project, unit
from vec_pipeline.commands.align.loss_picture import Curve
from vec_pipeline.commands.align.pairs import Pairs, Places, read_pairs
from vec_pipeline.commands.align.recall import Recall, chance, recall
from vec_pipeline.commands.align.training import train
from vec_pipeline.commands.search.query import makers, recorded_maker, text_vectors
from vec_pipeline.record import Stage, UserError
from vec_pipeline.stages.embed_image import EmbedImage
from vec_pipeline.stages.embed_text import EmbedText
from vec_pipeline.terminal import plural

LEAST_TEXTS = 100


class Columns(NamedTuple):
    """Columns of a CSV.

    text: the texts.
    maker: whose stage embeds texts: the sentence vectors of `text`, or CLIP's vectors of the pictures.
    image: the vectors that texts are projected to.
    clip: CLIP's vectors of the pictures; empty where there are none.
    """

    text: str
    maker: str
    image: str
    clip: str


def columns_of(csv_path: Path, text: str, image: str, using: str) -> Columns:
    """Find the columns by the stages that the CSV was made with. Raises UserError where it lacks one."""
    recorded_maker(csv_path, image)
    clip = written_by(csv_path, EmbedImage, "image_vector")
    maker = clip if using == "clip" else written_by(csv_path, EmbedText, "text_vector", text)
    if not maker:
        stage, other = ("embed_image", "sentences") if using == "clip" else ("embed_text", "clip")
        raise UserError(
            f"{csv_path} was made without a stage {stage} that can embed {text}: add one and run with --refresh, or "
            f"use --using {other}"
        )
    return Columns(text, maker, image, clip)


def written_by(csv_path: Path, cls: type[Stage], own_name: str, text: str = "") -> str:
    """The column that a stage of some class wrote: of several the first; with `text`, the first that read it."""
    for maker in makers(csv_path):
        if issubclass(maker.cls, cls) and text in ("", maker.options.get("read", {}).get("text", "text")):
            return str(maker.options.get("write", {}).get(own_name, own_name))
    return ""


def read(reader: CsvReader, columns: Columns, seed: int) -> Pairs:
    """Read the rows that can be used, and say how many they are. Raises UserError where they are too few."""
    wanted = dict.fromkeys((columns.image, columns.maker) if columns.maker != columns.clip else (columns.image,))
    pairs = read_pairs(reader, columns.text, [*wanted], columns.clip, seed)
    reasons = [f"{count:,} {reason}" for reason, count in pairs.left_out.items() if count]
    left_out = f"; left out: {', '.join(reasons)}" if reasons else ""
    print(f"{plural(len(pairs.texts), 'row')} with all that is needed{left_out}", flush=True)
    if (different := len(set(pairs.texts))) < LEAST_TEXTS:
        raise UserError(
            f"{reader.path} has {plural(different, 'different text')} in these rows, and align needs {LEAST_TEXTS}: "
            "annotate more pictures"
        )
    return pairs


def learned(csv_path: Path, columns: Columns, pairs: Pairs, layers: int, seed: int) -> tuple[Alignment, Curve]:
    """Train on most of the rows, and measure on the others."""
    images = pairs.vectors[columns.image]
    texts = pairs.vectors[columns.maker] if columns.maker != columns.clip else None
    if texts is None:
        texts = text_vectors(csv_path, columns.maker, pairs.texts)
    assert images is not None  # read_pairs has left out the rows without
    split = pairs.split(seed)
    mean = images[split.train].mean(axis=0)
    images = unit(images - mean)
    net, curve = train(texts, images, pairs.texts, split, layers, seed)
    captions = [pairs.texts[row] for row in split.test]
    own = recall(project(net, texts[split.test]), images[split.test], captions)
    settings = {
        "text": {"column": columns.maker, "of": columns.text, "stage": model_of(csv_path, columns.maker)},
        "image": {"column": columns.image, "stage": model_of(csv_path, columns.image)},
        "layers": layers,
        "dimensions": [texts.shape[1], images.shape[1]],
        "seed": seed,
        "rows": {name: len(rows) for name, rows in split._asdict().items()},
        "not_used": len(pairs.texts) - sum(map(len, split)),
        "left_out": dict(+pairs.left_out),
        "recall": {
            "chance": chance(captions),
            "this projection": own,
            **clip_recall(csv_path, columns.clip, pairs, split.test),
        },
    }
    return Alignment(net, mean, settings), curve


def clip_recall(csv_path: Path, column: str, pairs: Pairs, rows: Places) -> dict[str, Recall]:
    """What CLIP reaches with its own vectors of some rows; nothing where they or its model are not to be had."""
    if not column:
        return {}
    images = pairs.vectors.get(column)
    if images is None:
        print(f"figures of CLIP are left out: some of these rows have no {column}", file=sys.stderr)
        return {}
    captions = [pairs.texts[row] for row in rows]
    try:
        texts = text_vectors(csv_path, column, captions)
    except UserError as error:
        print(f"figures of CLIP are left out: {error}", file=sys.stderr)
        return {}
    return {"CLIP": recall(texts, unit(images[rows]), captions)}
