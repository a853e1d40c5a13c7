"""BMP files: what Pillow reads, and two kinds that it does not: any masks of bits, and a JPEG or PNG within."""

import struct

import numpy as np

from vec_pipeline.pictures import Limits, Picture, pillow
from vec_pipeline.pictures.pixels import Array, fitted, reduced, to_8_bits

HEADER = struct.Struct("<10xIIiiHHI")  # where the pixels begin, header size, width, height, planes, bits, compression
MASKS = struct.Struct("<54x4I")  # of red, green, blue, alpha
BIT_FIELDS, JPEG, PNG, ALPHA_BIT_FIELDS = 3, 4, 5, 6  # compressions
WITH_ALPHA = 56  # bytes of a header that has a mask of alpha


def decode(content: bytes, limits: Limits) -> Picture:
    """Decode a file. Raises as `pillow.decode` does."""
    try:
        return pillow.decode(content, limits)
    except (OSError, ValueError):
        if len(content) < MASKS.size:
            raise
        start, header_bytes, width, height, _, bits, compression = HEADER.unpack_from(content)
        if compression in (JPEG, PNG):
            return pillow.decode(content[start:], limits)
        if compression not in (BIT_FIELDS, ALPHA_BIT_FIELDS) or bits not in (16, 32) or min(width, abs(height)) < 1:
            raise
        limits.check(width * abs(height))
        row = (width * bits + 31) // 32 * 4  # bytes
        if start + row * abs(height) > len(content):
            raise
    values = np.frombuffer(content, f"<u{bits // 8}", row * abs(height) * 8 // bits, start)
    values = values.reshape(abs(height), -1)[:: -1 if height > 0 else 1, :width]
    has_alpha = compression == ALPHA_BIT_FIELDS or header_bytes >= WITH_ALPHA
    return by_masks(values, MASKS.unpack_from(content)[: 4 if has_alpha else 3], limits)


def by_masks(values: Array, masks: tuple[int, ...], limits: Limits) -> Picture:
    """The picture of an array (height, width) of numbers that hold red, green, blue and perhaps alpha."""
    size = values.shape[1], values.shape[0]
    image = to_8_bits(
        lambda top, bottom: np.stack([field(values[top:bottom], mask) for mask in masks[:3]], axis=2), size, (0, 255)
    )
    if len(masks) > 3 and masks[3]:
        image.putalpha(to_8_bits(lambda top, bottom: field(values[top:bottom], masks[3]), size, (0, 255)))
    return Picture(fitted(image, reduced(size, limits.side_px)))


def field(values: Array, mask: int) -> Array:
    """The bits of a mask, scaled to 0..255."""
    mask &= int(np.iinfo(values.dtype).max)
    return (values & mask).astype(np.float32) * (255 / mask if mask else 0)
