"""TIFF files: those of cameras, those that Pillow reads, and what else tifffile reads, such as colours in floats."""

from io import BytesIO
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from vec_pipeline.pictures import Limits, Picture, TooManyPixels, camera_raw, jpeg_xl, library, pillow
from vec_pipeline.pictures.kinds import HEAD_BYTES, kind_of
from vec_pipeline.pictures.pixels import Array, fitted, from_array, reduced

NEW_SUBFILE_TYPE, PHOTOMETRIC, MAKE, SUB_DIRECTORIES, DNG_VERSION = 254, 262, 271, 330, 50706  # tags
OF_A_CAMERA = (NEW_SUBFILE_TYPE, PHOTOMETRIC, MAKE, SUB_DIRECTORIES, DNG_VERSION)
MIN_IS_WHITE, MIN_IS_BLACK, RGB, OF_A_SENSOR = 0, 1, 2, (32803, 34892)  # photometric interpretations
OTHER_MODES = {5: "CMYK", 6: "YCbCr", 8: "LAB"}  # of Pillow
WITHIN = ("JPEG", "JPEG2000", "PNG", "WEBP")  # kinds of files that strips may be
SEPARATE = 2  # planar configuration


def decode(content: bytes, limits: Limits) -> Picture:
    """Decode a file. Raises as `pillow.decode` does, and MissingDecoder."""
    if is_of_a_camera(content):
        try:
            return camera_raw.decode(content, limits)
        except camera_raw.NotRaw:
            pass
    try:
        return pillow.decode(content, limits)
    except OSError as error:  # UnidentifiedImageError is one, and so is a compression that libtiff does not know
        if "truncated" in str(error):
            raise
        return by_tifffile(content, limits, error)


def is_of_a_camera(content: bytes) -> bool:
    """Whether it is a DNG, NEF, ARW or the like, whose first page is a thumbnail or the values of the sensor."""
    tags = first_directory(content)
    is_thumbnail = tags.get(NEW_SUBFILE_TYPE) == 1 and MAKE in tags and SUB_DIRECTORIES in tags
    return DNG_VERSION in tags or tags.get(PHOTOMETRIC) in OF_A_SENSOR or is_thumbnail


def first_directory(content: bytes) -> dict[int, Any]:
    """The tags of the first page that tell a camera's file; none where they cannot be read."""
    try:
        tags = ImageFileDirectory_v2(content[: 16 if 43 in content[2:4] else 8])
        file = BytesIO(content)
        file.seek(tags.next)
        tags.load(file)
        return {tag: tags[tag] for tag in OF_A_CAMERA if tag in tags}
    except Exception:  # damaged
        return {}


def by_tifffile(content: bytes, limits: Limits, unreadable: Exception) -> Picture:
    """Decode the first page by tifffile. Raises `unreadable` where it cannot either, MissingDecoder, TooManyPixels."""
    if not first_directory(content):
        raise unreadable
    tifffile = library("tifffile", "this kind of TIFF")
    try:
        with tifffile.TiffFile(BytesIO(content)) as file:
            page, has_pages = file.pages[0], len(file.pages) > 1
            limits.check(page.size)  # numbers
            values, is_cut = values_of(page, content)
            tag = page.tags.get(ExifTags.Base.Orientation)
            image = image_of(values, page.photometric)
    except TooManyPixels:
        raise
    except Exception:  # whatever tifffile and its decoders raise
        raise unreadable from None
    if is_cut and not limits.keeps_cut:
        raise unreadable
    pixels = fitted(image, reduced(image.size, limits.side_px))
    turn = pillow.TURNS.get(tag.value if tag else 1)
    return Picture(pixels if turn is None else pixels.transpose(turn), has_pages, is_cut)


def values_of(page: Any, content: bytes) -> tuple[Array, bool]:
    """The values of a page, (height, width) or (height, width, channels), and whether some strips or tiles are missing.

    Those are 0. Raises ValueError where all are missing.
    """
    values, missing = np.zeros(page.shaped, page.dtype), 0  # samples apart, depth, height, width, samples together
    for index, (start, length) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=False)):
        try:
            strip = content[start : start + length]
            if pixels_of(strip) > page.size:
                raise ValueError("a strip that is larger than its page")
            part, (sample, depth, top, left, _), shape = page.decode(strip, index, jpegtables=page.jpegtables)
            place = values[sample, depth : depth + shape[0], top : top + shape[1], left : left + shape[2]]
            place[:] = part[: place.shape[0], : place.shape[1], : place.shape[2]]
        except Exception:  # whatever a decoder raises
            missing += 1
    if missing >= len(page.dataoffsets):
        raise ValueError("no strip can be decoded")
    values = values.reshape(page.shape).squeeze()
    if values.ndim == 3 and page.planarconfig == SEPARATE:
        values = values.transpose(1, 2, 0)
    return values, missing > 0


def pixels_of(strip: bytes) -> int:
    """How many pixels a strip promises that is a file of its own, such as a JPEG 2000; 0 for another."""
    kind = kind_of(strip[:HEAD_BYTES])
    if kind == "JXL":
        width, height, _ = jpeg_xl.header(strip)
        return width * height
    if kind not in WITHIN:
        return 0
    with Image.open(BytesIO(strip)) as image:
        return image.width * image.height


def image_of(values: Array, photometric: int) -> Image.Image:
    """Raises ValueError for what it does not know."""
    if photometric in (MIN_IS_WHITE, MIN_IS_BLACK, RGB):
        values = values[:, :, :4] if values.ndim == 3 else values
        return from_array(values, is_inverted=photometric == MIN_IS_WHITE)
    mode = OTHER_MODES.get(photometric, "")
    if not mode or values.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"photometric interpretation {photometric}")
    upper = (values >> (values.dtype.itemsize - 1) * 8).astype(np.uint8)[:, :, : Image.getmodebands(mode)]
    return Image.frombytes(mode, (values.shape[1], values.shape[0]), upper.tobytes())
