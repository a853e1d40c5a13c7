"""A picture reduced to what a model needs, with the size of its file: boxes are measured in pixels of the file."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

from PIL import Image

from vec_pipeline.pictures import SNIFFED_BYTES, Limits, decode, pillow
from vec_pipeline.pictures.kinds import GZIP, kind_of
from vec_pipeline.pictures.pixels import reduced, resized

LARGEST_PX = 1 << 20  # of what no head of a file tells the size of
DECODED_AT_ONCE = 4
SVG_PX = 1024  # the longest side of an SVG, which has no size of its own: every stage must measure boxes alike
ON_ITS_SIDE = tuple(pillow.TURNS[orientation] for orientation in (5, 6, 7, 8))
BY_HEAD = ("JPEG", "PNG", "GIF", "WEBP", "JPEG2000", "PPM")  # kinds whose size Pillow tells before it decodes them
SideOf = Callable[[tuple[int, int]], int]  # width and height in the file -> the longest side to reduce to


class Opened(NamedTuple):
    """A picture, upright and RGB, and the width and height that it has, upright, in its file."""

    image: Image.Image
    size: tuple[int, int]


def open_all(contents: Sequence[Any], side_of: SideOf, megapixels: int) -> list[Opened | str]:
    """Read and decode pictures, several at once; of one that cannot be opened, the error as the text of a row.

    contents: each a `record.Content`.
    megapixels: that a picture may take in memory before it is reduced.

    Raises MemoryError. Other errors are returned: if one were raised, the others would be read again.
    """

    def one(content: Any) -> Opened | str:
        try:
            return opened(content.read(), side_of, megapixels)
        except MemoryError:
            raise
        except Exception as error:  # of any place that content comes from, and of any decoder
            return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]

    if len(contents) == 1:
        return [one(contents[0])]
    with ThreadPoolExecutor(DECODED_AT_ONCE) as pool:
        return list(pool.map(one, contents))


def opened(content: bytes, side_of: SideOf, megapixels: int) -> Opened:
    """Decode a picture and reduce its longest side to what `side_of` says. Raises as `pictures.decode` does."""
    kind = "SVG" if content.startswith(GZIP) else kind_of(content[:SNIFFED_BYTES])
    if kind == "SVG":  # which has no pixels of its own
        image = decode(content, Limits(side_of((1, 1)), megapixels)).image
        return Opened(image, enlarged(image.size, SVG_PX))
    size = size_in_head(content, Limits(LARGEST_PX, megapixels)) if kind in BY_HEAD else None
    image = decode(content, Limits(side_of(size) if size else LARGEST_PX, megapixels)).image
    size = size or image.size
    return Opened(resized(image, reduced(image.size, side_of(size))), size)


def enlarged(size: tuple[int, int], side_px: int) -> tuple[int, int]:
    """The size with a longest side of `side_px`."""
    width, height = (max(1, round(side * side_px / max(size))) for side in size)
    return width, height


def size_in_head(content: bytes, limits: Limits) -> tuple[int, int] | None:
    """Width and height of a picture as it is seen; None where only its decoder can tell, or why there is none."""
    with suppress(Exception):  # of a damaged head
        image, (width, height) = pillow.opened(content, limits)
        return (height, width) if pillow.turn_upright(image) in ON_ITS_SIDE else (width, height)
    return None
