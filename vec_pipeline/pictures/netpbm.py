"""Netpbm files that Pillow does not read: PAM, and PFM of colours."""

import re

import numpy as np
from PIL import UnidentifiedImageError

from vec_pipeline.pictures import Limits, Picture
from vec_pipeline.pictures.pixels import Array, completed, fitted, from_array, reduced

PAM = re.compile(rb"P7\n(.{,4000}?\n|)ENDHDR\n", re.DOTALL)
FIELD = re.compile(rb"^(WIDTH|HEIGHT|DEPTH|MAXVAL)\s+(\d{1,9})\s*$", re.MULTILINE)
BYTES_A_PIXEL = 8  # that `Limits` counts with
PFM = re.compile(rb"PF\s+(\d{1,9})\s+(\d{1,9})\s+(-?)[\d.eE+-]+\s")


def decode(content: bytes, limits: Limits) -> Picture:
    """Decode a file. Raises TooManyPixels, PIL.UnidentifiedImageError, OSError where it is cut off."""
    if found := PFM.match(content):
        shape, dtype, most = (int(found[2]), int(found[1]), 3), "<f4" if found[3] else ">f4", None
    elif found := PAM.match(content):
        fields = {name: int(value) for name, value in FIELD.findall(found[1])}
        most = fields.get(b"MAXVAL", 0)
        shape = fields.get(b"HEIGHT", 0), fields.get(b"WIDTH", 0), fields.get(b"DEPTH", 0)
        dtype = "u1" if most < 256 else ">u2"
    else:
        raise UnidentifiedImageError("a PAM or PFM file without a size")
    values = array(content, found.end(), shape, dtype, limits)
    is_cut, is_from_top = len(values) < shape[0], most is not None
    if is_cut and not limits.keeps_cut:
        raise OSError("image file is truncated")
    image = completed(from_array(values[:: 1 if is_from_top else -1], most=most), shape[0], is_from_top=is_from_top)
    return Picture(fitted(image, reduced(image.size, limits.side_px)), is_cut=is_cut)


def array(content: bytes, start: int, shape: tuple[int, int, int], dtype: str, limits: Limits) -> Array:
    """The rows that there are of an array (height, width, channels)."""
    height, width, channels = shape
    row_bytes = width * channels * np.dtype(dtype).itemsize
    limits.check(max(width * height, height * row_bytes // BYTES_A_PIXEL))
    if not row_bytes or channels > 4:
        raise UnidentifiedImageError("a PAM or PFM file without a picture")
    rows = min(height, (len(content) - start) // row_bytes)
    if not rows:
        raise OSError("image file is truncated")
    return np.frombuffer(content, dtype, rows * width * channels, start).reshape(rows, width, channels)
