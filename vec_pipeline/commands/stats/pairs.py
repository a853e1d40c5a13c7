"""Originals beside their edited pictures: a sample of the pairs of a table."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from vec_pipeline.annotations import content_reader
from vec_pipeline.commands.report.thumbnails import SIDE_PX
from vec_pipeline.pairs import Pairs, pairs_of
from vec_pipeline.record import ContentOf, Values
from vec_pipeline.settings import column_types
from vec_pipeline.stages.open_image import OpenImage, open_image

if TYPE_CHECKING:
    import pandas as pd

GAP_PX = 8


def pictures_of_pairs(table: "pd.DataFrame", csv: str | Path, most: int = 6) -> Iterator[tuple[str, Image.Image]]:
    """What was asked for, and the original beside the edited picture, RGB, each at most 192 pixels wide and high.

    table: as `load_annotations` reads it; none where its rows are no pairs.
    csv: the file that it was read from.
    most: how many pairs, out of all parts of the table. Those whose pictures cannot be read are left out.

    Raises UserError where the settings beside the CSV are damaged.
    """
    pairs, content_of = pairs_of(Path(csv), column_types(csv, table.columns)), content_reader(Path(csv))
    OpenImage().load()  # HEIC, and Pillow's warnings
    for row in sample(table, pairs, most):
        try:
            both = [opened(content_of, key) for key in (row["image_path"], pairs.key(row))]
        except Exception:  # of any place, and of any decoder
            continue
        yield pairs.request(row), beside(*both)


def sample(table: "pd.DataFrame", pairs: Pairs, most: int) -> list[Values]:
    """At most so many of the rows that are pairs, out of all parts of the table."""
    rows = table[table[pairs.column] != ""] if pairs else table[:0]
    chosen: list[Values] = rows.iloc[:: -(-len(rows) // most) or 1].to_dict("records")  # type: ignore[assignment]
    return chosen


def opened(content_of: ContentOf, key: str) -> Image.Image:
    return open_image(content_of(key).read(), SIDE_PX)


def beside(one: Image.Image, other: Image.Image) -> Image.Image:
    both = Image.new("RGB", (one.width + GAP_PX + other.width, max(one.height, other.height)), "white")
    both.paste(one, (0, 0))
    both.paste(other, (one.width + GAP_PX, 0))
    return both
