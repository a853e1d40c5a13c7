"""BMP files, and the bitmaps within icons.

Pillow reads neither 2 bits nor uncommon masks, ignores an alpha in 16 bits, and loses its place in runs of 4 bits.
"""

import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from vec_pipeline.pictures import Limits, Picture, pillow
from vec_pipeline.pictures.pixels import Array, completed, fitted, reduced, to_8_bits

FILE_HEADER_BYTES, START = 14, struct.Struct("<10xI")  # where the pixels begin
CORE_HEADER = struct.Struct("<4xHHHH")  # width, height, planes, bits
HEADER = struct.Struct("<4xiiHHI12xI4x4I")  # width, height, planes, bits, compression; colours in use; masks
PROFILE = struct.Struct("<56xI52xII")  # kind of colours; offset and bytes of the profile
CORE, INFO, WITH_ALPHA, OS2, V5 = 12, 40, 56, 64, 124  # bytes of headers
EMBEDDED = 0x4D424544  # kind of colours
NONE, RLE8, RLE4, BIT_FIELDS, JPEG, PNG, ALPHA_BIT_FIELDS = range(7)  # compressions
RUN_LENGTHS = ((RLE8, 8), (RLE4, 4), (4, 24))  # compressions and bits; the last of OS/2
RGB, RGBA = (0xFF0000, 0xFF00, 0xFF, 0), (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
USUAL_MASKS = {16: (0x7C00, 0x3E0, 0x1F, 0), 24: RGB, 32: RGB}
RAW_MODES: dict[tuple[int, tuple[int, ...]], str] = {  # of Pillow, by bits and masks
    **{(1, ()): "P;1", (2, ()): "P;2", (4, ()): "P;4", (8, ()): "P", (24, RGB): "BGR", (32, RGB): "BGRX"},
    **{(16, USUAL_MASKS[16]): "BGR;15", (16, (0xF800, 0x7E0, 0x1F, 0)): "BGR;16", (32, RGBA): "BGRA"},
}
END_OF_ROW, END, MOVE = 0, 1, 2  # what follows a 0 in run-length encoding
COLOURS = 256  # of a palette
LARGEST_TABLE = 1 << 12


@dataclass(frozen=True)
class Bitmap:
    """What a header says.

    start: where the pixels begin.
    masks: of red, green, blue and alpha in numbers of 16 bits and more; else empty.
    palette: RGB of COLOURS numbers of 8 bits and fewer.
    """

    size: tuple[int, int]
    is_from_top: bool
    bits: int
    compression: int
    start: int
    masks: tuple[int, ...]
    palette: bytes
    profile: bytes

    @property
    def row_bytes(self) -> int:
        return (self.size[0] * self.bits + 31) // 32 * 4

    @property
    def is_in_runs(self) -> bool:
        return (self.compression, self.bits) in RUN_LENGTHS


def decode(content: bytes, limits: Limits) -> Picture:
    """Decode a file. Raises TooManyPixels, PIL.UnidentifiedImageError, OSError where nothing of it is left."""
    bitmap = header(content, FILE_HEADER_BYTES, *START.unpack_from(content))
    if bitmap.compression in (JPEG, PNG) and content.startswith((pillow.JPEG, pillow.PNG), bitmap.start):
        return pillow.decode(content[bitmap.start :], limits)
    limits.check(bitmap.size[0] * bitmap.size[1])
    image, is_cut = pixels(content, bitmap)
    if is_cut and not limits.keeps_cut:
        raise OSError("image file is truncated")
    if bitmap.profile:
        image.info["icc_profile"] = bitmap.profile
    return Picture(fitted(image, reduced(image.size, limits.side_px)), is_cut=is_cut)


def header(content: bytes, at: int, start: int = 0) -> Bitmap:
    """Read the header that begins at `at`. Raises PIL.UnidentifiedImageError.

    start: where the pixels begin; some programs put 0, or leave the palette out.
    """
    length = int.from_bytes(content[at : at + 4], "little")
    fields = content[at : at + length].ljust(HEADER.size, b"\0")
    if length == CORE:
        (width, height, _, bits), compression, used, given = CORE_HEADER.unpack_from(fields), NONE, 0, (0, 0, 0, 0)
    else:
        width, height, _, bits, compression, used = HEADER.unpack_from(fields)[:6]
        given = HEADER.unpack_from(fields)[6:]
    if width < 1 or not height or bits not in (0, 1, 2, 4, 8, 16, 24, 32):
        raise UnidentifiedImageError(f"not a bitmap: {width} x {height} pixels of {bits} bits")
    behind = at + length
    if length == INFO and compression in (BIT_FIELDS, ALPHA_BIT_FIELDS):
        number = 3 if compression == BIT_FIELDS else 4
        given = struct.unpack("<4I", content[behind : behind + 4 * number].ljust(16, b"\0"))
        behind += 4 * number
    palette, end = read_palette(content, behind, start, 3 if length == CORE else 4, used or 1 << bits, bits)
    masks = masks_of(bits, compression, length, given)
    start = start if start > behind else end
    size = width, abs(height)
    return Bitmap(size, height < 0, bits, compression, start, masks, palette, profile(content, at, length))


def read_palette(content: bytes, at: int, start: int, entry_bytes: int, number: int, bits: int) -> tuple[bytes, int]:
    """Colours as RGB, and where they end; the header may promise more than there are, or than the bits can tell."""
    if not 0 < bits <= 8:
        return b"", at
    room = (start - at) // entry_bytes if start > at else number
    found = np.frombuffer(content[at : at + min(number, room, COLOURS) * entry_bytes], np.uint8)
    colours = np.zeros((COLOURS, 3), np.uint8)
    entries = found[: len(found) // entry_bytes * entry_bytes].reshape(-1, entry_bytes)
    colours[: len(entries)] = entries[:, 2::-1]
    return colours.tobytes(), at + number * entry_bytes


def masks_of(bits: int, compression: int, length: int, given: tuple[int, ...]) -> tuple[int, ...]:
    if bits <= 8:
        return ()
    has_alpha = compression == ALPHA_BIT_FIELDS or (length >= WITH_ALPHA and length != OS2)
    alpha = given[3] if has_alpha else 0
    if compression in (BIT_FIELDS, ALPHA_BIT_FIELDS) and any(given[:3]):
        return *given[:3], alpha
    return *USUAL_MASKS[bits][:3], alpha if bits == 32 else 0


def profile(content: bytes, at: int, length: int) -> bytes:
    """The colour profile that the file holds, or nothing."""
    if length < V5 or len(content) < at + length:
        return b""
    kind, start, number = PROFILE.unpack_from(content, at)
    return content[at + start : at + start + number] if kind == EMBEDDED else b""


def pixels(content: bytes, bitmap: Bitmap) -> tuple[Image.Image, bool]:
    """The image, and whether some of its rows are missing. Raises PIL.UnidentifiedImageError, OSError if all are."""
    if bitmap.is_in_runs:
        return of_runs(content[bitmap.start :], bitmap)
    if bitmap.compression not in ((NONE, BIT_FIELDS, ALPHA_BIT_FIELDS) if bitmap.masks else (NONE,)) or not bitmap.bits:
        raise UnidentifiedImageError(f"a BMP of compression {bitmap.compression}, which cannot be read")
    width, height = bitmap.size
    padding = bitmap.row_bytes - (width * bitmap.bits + 7) // 8  # which the last row may lack
    data = np.frombuffer(content, np.uint8)[bitmap.start : bitmap.start + bitmap.row_bytes * height]
    rows = (len(data) + padding) // bitmap.row_bytes
    if not rows:
        raise OSError("image file is truncated")
    data = data[: rows * bitmap.row_bytes]
    image = unpacked(np.pad(data, (0, -len(data) % bitmap.row_bytes)) if len(data) % bitmap.row_bytes else data, bitmap)
    return completed(image, height, is_from_top=bitmap.is_from_top), rows < height


def unpacked(data: Array, bitmap: Bitmap) -> Image.Image:
    """Whole rows without compression as an image of mode P, RGB or RGBA."""
    size = bitmap.size[0], len(data) // bitmap.row_bytes
    if raw_mode := RAW_MODES.get((bitmap.bits, bitmap.masks)):
        mode = "P" if bitmap.bits <= 8 else "RGBA" if raw_mode == "BGRA" else "RGB"
        image = Image.frombuffer(mode, size, data, "raw", raw_mode, bitmap.row_bytes, 1 if bitmap.is_from_top else -1)
        if mode == "P":
            image.putpalette(bitmap.palette)
        return with_alpha(image, image.getchannel("A")) if mode == "RGBA" else image
    if bitmap.bits == 24:
        raise UnidentifiedImageError("a BMP of masks in 24 bits, which cannot be read")
    values = data.view(f"<u{bitmap.bits // 8}").reshape(size[1], -1)
    return by_masks(values[:: 1 if bitmap.is_from_top else -1, : size[0]], bitmap.masks)


def by_masks(values: Array, masks: tuple[int, ...]) -> Image.Image:
    """The image of an array (height, width) of numbers that hold red, green, blue and perhaps alpha."""
    size = values.shape[1], values.shape[0]
    image = to_8_bits(
        lambda top, bottom: np.stack([field(values[top:bottom], mask) for mask in masks[:3]], axis=2), size, (0, 255)
    )
    if masks[3]:
        return with_alpha(image, to_8_bits(lambda top, bottom: field(values[top:bottom], masks[3]), size, (0, 255)))
    return image


def with_alpha(image: Image.Image, alpha: Image.Image) -> Image.Image:
    """The image with this alpha; some programs leave it at 0 everywhere, and mean nothing by it."""
    if alpha.getextrema() == (0, 0):
        return image.convert("RGB")
    image.putalpha(alpha)
    return image


def field(values: Array, mask: int) -> Array:
    """The bits of a mask, scaled to 0..255."""
    mask &= int(np.iinfo(values.dtype).max)
    if not mask:
        return np.zeros(values.shape, np.uint8)
    shift = (mask & -mask).bit_length() - 1
    most = min(mask >> shift, LARGEST_TABLE - 1)
    shift += (mask >> shift).bit_length() - most.bit_length()  # of many bits the upper ones suffice
    table: Array = (np.arange(most + 1) * (255 / most) + 0.5).astype(np.uint8)
    levels: Array = table[(values & mask) >> shift]
    return levels


def of_runs(data: bytes, bitmap: Bitmap) -> tuple[Image.Image, bool]:
    """As `pixels` does, of run-length encoding; pixels that it leaves out are white."""
    (width, height), channels = bitmap.size, (3,) if bitmap.bits == 24 else ()
    values, is_set = np.zeros((height, width, *channels), np.uint8), np.zeros((height, width), np.bool_)
    is_cut = fill(values, is_set, data, bitmap.bits)
    if is_cut and not is_set.any():
        raise OSError("image file is truncated")
    if not bitmap.is_from_top:
        values, is_set = values[::-1], is_set[::-1]
    colours = np.vstack([np.frombuffer(bitmap.palette, np.uint8).reshape(-1, 3), np.full((1, 3), 255, np.uint8)])

    def rows(top: int, bottom: int) -> Array:
        band, is_there = values[top:bottom], is_set[top:bottom]
        return (
            np.where(is_there[:, :, None], band, 255)
            if channels
            else colours[np.where(is_there, band.astype(np.int16), COLOURS)]
        )

    return to_8_bits(rows, bitmap.size, (0, 255)), is_cut


def fill(values: Array, is_set: Array, data: bytes, bits: int) -> bool:
    """Decode runs into an array (height, width) or (height, width, 3), note which are set; return whether some lack."""
    height, width = map(int, is_set.shape)
    x = y = at = 0
    while at + 1 < len(data) and y < height:
        number, code = data[at], data[at + 1]
        at += 2
        if number:  # as often as that: a colour, or two that take turns
            length = 3 if bits == 24 else 1
            run, number = samples(data[at - 1 : at - 1 + length], bits), min(number, width - x)
            for offset, value in enumerate(run):
                values[y, x + offset : x + number : len(run)] = value
            at += length - 1
        elif code == END:
            return False
        elif code in (END_OF_ROW, MOVE):
            across, down = data[at : at + 2].ljust(2, b"\0") if code == MOVE else (-x, 1)
            x, y, at = x + across, y + down, at + code  # MOVE is 2
            continue
        else:  # so many that differ
            length = (code * bits + 7) // 8
            run = samples(data[at : at + length], bits)[: min(code, width - x)]
            number = len(run)
            values[y, x : x + number] = run
            at += length + length % 2
        is_set[y, x : x + number] = True
        x += number
    return y < height - 1 or (y == height - 1 and x < width)


def samples(raw: bytes, bits: int) -> Array:
    """Numbers of 4 or 8 bits, or RGB, of shape (n) or (n, 3)."""
    found = np.frombuffer(raw, np.uint8)
    if bits == 24:
        return found[: len(found) // 3 * 3].reshape(-1, 3)[:, ::-1]
    return found if bits == 8 else np.stack([found >> 4, found & 15], axis=1).ravel()
