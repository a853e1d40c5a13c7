"""TIFF files: those of cameras, those that Pillow reads, and what else tifffile reads, such as colours in floats."""

from io import BytesIO
from typing import Any

from PIL import ExifTags
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from vec_pipeline.pictures import Limits, Picture, TooManyPixels, camera_raw, library, pillow
from vec_pipeline.pictures.pixels import fitted, from_array, reduced

NEW_SUBFILE_TYPE, PHOTOMETRIC, MAKE, SUB_DIRECTORIES, DNG_VERSION = 254, 262, 271, 330, 50706  # tags
OF_A_CAMERA = (NEW_SUBFILE_TYPE, PHOTOMETRIC, MAKE, SUB_DIRECTORIES, DNG_VERSION)
MIN_IS_WHITE, MIN_IS_BLACK, RGB, OF_A_SENSOR = 0, 1, 2, (32803, 34892)  # photometric interpretations
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
            if page.photometric not in (MIN_IS_WHITE, MIN_IS_BLACK, RGB):
                raise unreadable
            values, tag = page.asarray().squeeze(), page.tags.get(ExifTags.Base.Orientation)
            if values.ndim == 3 and page.planarconfig == SEPARATE:
                values = values.transpose(1, 2, 0)
        values = values[:, :, :4] if values.ndim == 3 else values
        image = from_array(values, is_inverted=page.photometric == MIN_IS_WHITE)
    except TooManyPixels:
        raise
    except Exception:  # whatever tifffile and its decoders raise
        raise unreadable from None
    pixels = fitted(image, reduced(image.size, limits.side_px))
    turn = pillow.TURNS.get(tag.value if tag else 1)
    return Picture(pixels if turn is None else pixels.transpose(turn), has_pages)
