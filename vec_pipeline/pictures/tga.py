"""TGA files. They have no signature; Pillow reads neither palettes of 15 bits nor runs that go on in the next row."""

import re
import struct

import numpy as np
from PIL import Image, UnidentifiedImageError

from vec_pipeline.pictures import Limits, Picture
from vec_pipeline.pictures.bmp import USUAL_MASKS, by_masks, with_alpha
from vec_pipeline.pictures.pixels import Array, completed, fitted, from_array, reduced, to_8_bits

# Bytes of text; kinds of palette and of picture; first colour, colours, bits; width, height, bits, descriptor.
HEADER = struct.Struct("<BBBHHB4xHHBB")
IN_RUNS, KIND, BY_PALETTE, GREY = 8, 7, 1, 3  # of pictures: a bit, a mask, and two of its values
FROM_RIGHT, FROM_TOP = 0x10, 0x20  # in the descriptor
FOOTER = re.compile(rb"(.{4}).{4}TRUEVISION-XFILE\.\0\Z", re.DOTALL)  # where the extension is
KIND_OF_ALPHA, NONE = 494, 0  # byte of the extension, and a value of it


def decode(content: bytes, limits: Limits) -> Picture:
    """Decode a file. Raises TooManyPixels, PIL.UnidentifiedImageError, OSError where nothing of it is left."""
    text, has_palette, kind, first, number, palette_bits, width, height, bits, descriptor = HEADER.unpack_from(content)
    limits.check(width * height)
    pixel_bytes, entry_bytes = (bits + 7) // 8, (palette_bits + 7) // 8
    start = HEADER.size + text
    entries = content[start:][: number * entry_bytes * has_palette]
    start, row_bytes = start + len(entries), width * pixel_bytes
    total = height * row_bytes
    data = unpacked(content[start:], pixel_bytes, total) if kind & IN_RUNS else memoryview(content)[start:][:total]
    is_cut, rows = len(data) < total, -(-len(data) // (row_bytes or 1))
    if not data or (is_cut and not limits.keeps_cut):
        raise OSError("image file is truncated")
    if is_cut:
        data = bytes(data).ljust(rows * row_bytes, b"\0")
    pixels = np.frombuffer(data, np.uint8).reshape(rows, width, pixel_bytes)
    pixels = pixels[:: 1 if descriptor & FROM_TOP else -1, :: -1 if descriptor & FROM_RIGHT else 1]
    if kind & KIND == BY_PALETTE:
        image = by_palette(pixels, entries, entry_bytes, first)
    elif kind & KIND == GREY and pixel_bytes <= 2:  # the second is alpha
        image = from_array(pixels)
    else:
        image = by_colours(pixels, is_opaque=has_no_alpha(content))
    image = completed(image, height, is_from_top=bool(descriptor & FROM_TOP))
    return Picture(fitted(image, reduced(image.size, limits.side_px)), is_cut=is_cut)


def unpacked(data: bytes, pixel_bytes: int, total: int) -> bytes:
    """Decode runs, which may go on in the next row, to `total` bytes or fewer."""
    found, at = bytearray(), 0
    while len(found) < total and at < len(data):
        number, at = (data[at] & 0x7F) + 1, at + 1
        if data[at - 1] & 0x80:
            found += data[at : at + pixel_bytes] * number
            at += pixel_bytes
        else:
            found += data[at : at + number * pixel_bytes]
            at += number * pixel_bytes
    return bytes(found[:total])


def has_no_alpha(content: bytes) -> bool:
    """Whether the file says that its fourth byte is none; many do not tell, and it is."""
    footer = FOOTER.search(content[-26:])
    start = int.from_bytes(footer[1], "little") if footer else 0
    return start > 0 and content[start + KIND_OF_ALPHA :].startswith(bytes([NONE]))


def by_colours(pixels: Array, *, is_opaque: bool = True) -> Image.Image:
    """Of an array (height, width, bytes). The highest of 16 bits is ignored: programs disagree on what it means."""
    height, width, pixel_bytes = pixels.shape
    if pixel_bytes == 2:
        return by_masks(np.ascontiguousarray(pixels).view("<u2")[:, :, 0], USUAL_MASKS[16])
    image = to_8_bits(lambda top, bottom: pixels[top:bottom, :, :3][:, :, ::-1], (width, height), (0, 255))
    if pixel_bytes < 4 or is_opaque:
        return image.convert("RGB")
    return with_alpha(image, to_8_bits(lambda top, bottom: pixels[top:bottom, :, 3], (width, height), (0, 255)))


def by_palette(pixels: Array, entries: bytes, entry_bytes: int, first: int) -> Image.Image:
    number = len(entries) // (entry_bytes or 1)
    if not number or pixels.shape[2] > 2:
        raise UnidentifiedImageError("a TGA file without a palette")
    colours = np.zeros((first + number, 3), np.uint8)
    found = np.frombuffer(entries, np.uint8, number * entry_bytes).reshape(1, number, entry_bytes)
    colours[first:] = np.asarray(by_colours(found))[0]
    indexes = np.ascontiguousarray(pixels).view(f"<u{pixels.shape[2]}")[:, :, 0]
    return to_8_bits(
        lambda top, bottom: colours[np.minimum(indexes[top:bottom], first + number - 1)],
        (pixels.shape[1], pixels.shape[0]),
        (0, 255),
    )
