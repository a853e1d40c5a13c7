"""ICO and CUR files: the largest of their pictures, each a PNG, or a bitmap with a mask of what is transparent."""

import dataclasses
import struct

from PIL import Image, ImageChops, UnidentifiedImageError

from vec_pipeline.pictures import Limits, Picture, bmp, pillow
from vec_pipeline.pictures.pixels import fitted, reduced

NUMBER, ENTRIES = struct.Struct("<2xHH"), 6  # kind and number of the pictures, and where the first is described
ENTRY = struct.Struct("<BBxxHHII")  # width, height (0 for 256), planes, bits, bytes, where
MOST_TRIED = 9  # pictures
CUR = 2  # kind; its entries hold a hot spot instead of planes and bits
PNG = b"\x89PNG"


def decode(content: bytes, limits: Limits) -> Picture:
    """Decode a file. Raises as `bmp.decode` and `pillow.decode` do, if none of its pictures can be read."""
    failure: Exception = UnidentifiedImageError("an icon without a picture")
    for start in starts(content)[:MOST_TRIED]:
        try:
            if content.startswith(PNG, start):
                return pillow.decode(content[start:], limits)
            return bitmap(content, start, limits)
        except (OSError, ValueError) as error:
            failure = error
    raise failure


def starts(content: bytes) -> list[int]:
    """Where the pictures begin, from the largest of the most bits on."""
    kind, number = NUMBER.unpack_from(content)
    found = []
    for at in range(ENTRIES, min(ENTRIES + number * ENTRY.size, len(content) - ENTRY.size + 1), ENTRY.size):
        width, height, _, bits, _, start = ENTRY.unpack_from(content, at)
        found.append(((width or 256) * (height or 256), bits if kind != CUR else 0, start))
    return [start for _, _, start in sorted(found, key=lambda entry: entry[:2], reverse=True)]


def bitmap(content: bytes, start: int, limits: Limits) -> Picture:
    """The bitmap that begins there. Its height counts the mask, which lies behind it."""
    both = bmp.header(content, start)
    limits.check(both.size[0] * both.size[1])
    upper = dataclasses.replace(both, size=(both.size[0], (both.size[1] + 1) // 2))
    if upper.bits == 32:
        upper = dataclasses.replace(upper, masks=bmp.RGBA)
    image, is_cut = bmp.pixels(content, upper)
    if is_cut and not limits.keeps_cut:
        raise OSError("image file is truncated")
    if "A" not in image.getbands() and (mask := mask_of(content, upper)):
        image = image.convert("RGB")
        image.putalpha(ImageChops.invert(mask))
    return Picture(fitted(image, reduced(image.size, limits.side_px)), is_cut=is_cut)


def mask_of(content: bytes, upper: bmp.Bitmap) -> Image.Image | None:
    """Where the bitmap is transparent; nothing where the file ends before."""
    width, height = upper.size
    start, row_bytes = upper.start + upper.row_bytes * height, (width + 31) // 32 * 4
    data = content[start : start + row_bytes * height]
    if len(data) < row_bytes * height or upper.is_in_runs:
        return None
    return Image.frombytes("1", upper.size, data, "raw", "1", row_bytes, 1 if upper.is_from_top else -1).convert("L")
