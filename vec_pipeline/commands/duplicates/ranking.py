"""Which picture of a group is better: the rules of `--keep`."""

import os
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from vec_pipeline.annotations import in_threads
from vec_pipeline.pictures import SNIFFED_BYTES, Limits
from vec_pipeline.pictures.full_size import BY_HEAD, LARGEST_PX, opened, size_in_head
from vec_pipeline.pictures.kinds import kind_of
from vec_pipeline.record import Content, ContentOf, Values
from vec_pipeline.sources import local_path
from vec_pipeline.stages.open_image import OpenImage

if TYPE_CHECKING:
    import pyarrow as pa

Array = np.ndarray[Any, Any]

RANKED_BY = ("image_path", "error", "flags", "verified", "clip_score", "text_confidence")
OPINIONS = {"accepted": 1, "rejected": -1}  # of people, in `verified`
MEGAPIXELS = 10_000  # that a picture may have whose head alone is read
SIDE_PX = 64  # to which pictures are reduced whose head does not tell their size


class Picture(NamedTuple):
    """What its source knows of a picture.

    is_there: false for one that is gone. pixels: 0 for one that cannot be opened, and where they were not asked for.
    """

    is_there: bool = False
    size_bytes: int = 0
    time_s: float = 0.0
    pixels: int = 0


def best(row: Values, picture: Picture) -> tuple[Any, ...]:
    """In this order: it can be opened, people accepted it or did not reject it, no error, no flags, pixels, scores."""
    scores = (row.get("clip_score"), row.get("text_confidence"))
    return (
        picture.pixels > 0,
        OPINIONS.get(row.get("verified") or "", 0),
        not row["error"],
        not row.get("flags"),
        picture.pixels,
        *(-1.0 if score is None else score for score in scores),
    )


WORTH: dict[str, Callable[[Values, Picture], tuple[Any, ...]]] = {  # one that is gone is never kept for one that is not
    "best": best,
    "first": lambda row, picture: (picture.is_there,),
    "largest": lambda row, picture: (picture.is_there, picture.size_bytes),
    "newest": lambda row, picture: (picture.is_there, picture.time_s),
}


def ranked(table: "pa.Table", members: Array, keep: str, content_of: ContentOf) -> Array:
    """Sort some rows of a table of RANKED_BY from the best to the worst; equal ones stay as they are.

    members: int64 of shape (m,). Of several names of one file, links or rows, the first alone is returned: where the
    others were left out of what is kept, the file itself would be lost.
    """
    rows = table.take(members).to_pylist()
    names: dict[Hashable, int] = {}
    for place, row in enumerate(rows):
        names.setdefault(file_of(row["image_path"]), place)
    places = sorted(names.values())
    keys = tqdm([rows[place]["image_path"] for place in places], "pictures", unit="", leave=False, disable=None)
    pictures = in_threads(lambda key: looked_at(key, content_of, is_opened=keep == "best"), keys)
    worth = {place: WORTH[keep](rows[place], picture) for place, picture in zip(places, pictures, strict=True)}
    order = np.array(sorted(places, key=worth.__getitem__, reverse=True), np.int64)
    return members[order]


def file_of(key: str) -> Hashable:
    """What names of one file have in common: its device and its inode; the key where it is no file."""
    try:
        status = os.stat(local_path(key))
    except (OSError, ValueError):
        return key
    return status.st_dev, status.st_ino


def looked_at(key: str, content_of: ContentOf, *, is_opened: bool) -> Picture:
    """What is known of the picture of a key; opened: its pixels too."""
    try:
        content: Any = content_of(key)
        known = content.size_and_time() if hasattr(content, "size_and_time") else ()
        return Picture(True, *known)._replace(pixels=pixels_of(content) if is_opened else 0)
    except Exception:  # it is gone, or the place it comes from does not answer
        return Picture()


def pixels_of(content: Content) -> int:
    """How many pixels a picture has. Raises what its source and its decoder raise."""
    data = content.read()
    is_told = kind_of(data[:SNIFFED_BYTES]) in BY_HEAD
    size = size_in_head(data, Limits(LARGEST_PX, MEGAPIXELS)) if is_told else None
    width, height = size or opened(data, lambda _: SIDE_PX, OpenImage.max_megapixels).size
    return width * height
