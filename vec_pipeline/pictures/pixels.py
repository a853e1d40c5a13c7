"""Pixels of any mode, depth and colour space -> 8 bits of RGB."""

import functools
import math
import re
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageCms

Array = np.ndarray[Any, Any]
Rows = Callable[[int, int], Array]  # from the first to before the second: (rows, width) or (rows, width, channels)

WHITE = (255, 255, 255)
BAND_PIXELS = 1 << 20  # converted at once, which bounds the memory for copies in floats
SAMPLE_PIXELS = 1 << 20
OUTLIERS = 0.1  # percent of the pixels at either end that do not decide the range of negative and float greys
PROBE = (np.indices((6, 6, 6), np.uint8) * 51).reshape(3, 36, 6).transpose(1, 2, 0)  # colours of all kinds
SAME_COLOUR = 3  # of 255: makers of sRGB profiles round differently
IMAGEJ_RANGE = re.compile(r"^(min|max)=(-?[\d.]+(?:[eE][-+]?\d+)?)\s*$", re.MULTILINE)
PHOTOMETRIC, IMAGE_DESCRIPTION, SAMPLE_FORMAT = 262, 270, 339  # tags of TIFF
MIN_IS_WHITE, UNSIGNED = 0, 1  # values of the first and the last


def reduced(size: tuple[int, int], side_px: int) -> tuple[int, int]:
    """The size with its longest side reduced to `side_px`, no side under one pixel."""
    factor = min(1.0, side_px / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Any image to a new one that is sRGB and of this size."""
    profile = b"" if is_deep(image) else image.info.get("icc_profile")
    pixels = resized(image if image.mode == "CMYK" and profile else flattened(image), size)
    if profile and (to_srgb := transform(profile, pixels.mode)):
        return ImageCms.applyTransform(pixels, to_srgb) or pixels
    return pixels.convert("RGB") if pixels.mode != "RGB" or pixels is image else pixels  # that of a file holds it all


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    if image.size == size:
        return image
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=1.3)  # the models' own filter


def is_deep(image: Image.Image) -> bool:
    """Whether it is grey of more than 8 bits, or of floats."""
    return image.mode.startswith(("I", "F"))


def flattened(image: Image.Image) -> Image.Image:
    """Any Pillow mode to L or RGB: greys of more than 8 bits scaled by their range, alpha laid on white."""
    if is_deep(image):
        return deep_grey(image)
    if image.has_transparency_data:
        layers = image if image.mode == "RGBA" else image.convert("RGBA")
        on_white = Image.new("RGB", image.size, WHITE)
        on_white.paste(layers, mask=layers.getchannel("A"))
        return on_white
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


@functools.lru_cache(maxsize=16)
def transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """What converts an image of this mode from a colour profile to sRGB.

    None where nothing is to be done: the profile is sRGB itself, is damaged, or belongs to another mode.
    """
    try:
        source, srgb = ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB")
        found = ImageCms.buildTransform(source, srgb, mode, "RGB", ImageCms.Intent(ImageCms.getDefaultIntent(source)))
        if mode == "CMYK":
            return found
        colours = Image.fromarray(PROBE if mode == "RGB" else PROBE[:, :, 0])
        changed = ImageCms.applyTransform(colours, found)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    difference = np.abs(np.asarray(changed, np.int16) - np.asarray(colours.convert("RGB"), np.int16))
    return found if difference.max() > SAME_COLOUR else None


def deep_grey(image: Image.Image) -> Image.Image:
    """A grey image of 16 or 32 bits, or floats, as 8 bits: what a TIFF says about its values counts."""
    tags = getattr(image, "tag_v2", {})
    is_unsigned = image.mode == "I" and tags.get(SAMPLE_FORMAT) == (UNSIGNED,)  # which Pillow takes for signed

    def rows(top: int, bottom: int) -> Array:
        values = np.asarray(image.crop((0, top, image.width, bottom)))
        return values.view(np.uint32) if is_unsigned else values

    window, is_inverted = imagej_range(tags.get(IMAGE_DESCRIPTION)), tags.get(PHOTOMETRIC) == MIN_IS_WHITE
    grey = to_8_bits(rows, image.size, window, is_inverted=is_inverted)
    if window and grey.getextrema() in ((0, 0), (255, 255)):  # no value is within it
        grey = to_8_bits(rows, image.size, is_inverted=is_inverted)
    return grey


def imagej_range(description: object) -> tuple[float, float] | None:
    """The values that a TIFF of ImageJ is shown from black to white with: the window and level of a CT."""
    text = description if isinstance(description, str) and description.startswith("ImageJ=") else ""
    found = {name: float(value) for name, value in IMAGEJ_RANGE.findall(text)}
    return (found["min"], found["max"]) if found.keys() == {"min", "max"} else None


def completed(image: Image.Image, height: int, *, is_from_top: bool) -> Image.Image:
    """An image whose last rows are missing, or its first ones, as a whole one: they are black, or the first colour."""
    if image.height == height:
        return image
    whole = Image.new(image.mode, (image.width, height))
    if image.palette:
        whole.putpalette(image.palette)
    whole.paste(image, (0, 0 if is_from_top else height - image.height))
    return whole


def from_array(values: Array, *, most: int | None = None, is_inverted: bool = False) -> Image.Image:
    """An image of an array of any number type, of shape (height, width) or (height, width, 1 to 4 channels).

    Two channels are grey and alpha, four are RGB and alpha.
    most: the value of white and of opaque; None for what the values and their type suggest.
    """
    channels = values.shape[2] if values.ndim == 3 else 1
    values = values.reshape(*values.shape[:2], channels)
    size = values.shape[1], values.shape[0]
    colours = values[:, :, :3] if channels > 2 else values[:, :, 0]
    window = (0, most) if most else None
    image = to_8_bits(lambda top, bottom: colours[top:bottom], size, window, is_inverted=is_inverted)
    if channels in (2, 4):
        alpha = values[:, :, -1]
        opaque = most or (np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1)
        image.putalpha(to_8_bits(lambda top, bottom: alpha[top:bottom], size, (0, opaque)))
    return image


def to_8_bits(
    rows: Rows, size: tuple[int, int], window: tuple[float, float] | None = None, *, is_inverted: bool = False
) -> Image.Image:
    """An L or RGB image of values of any number type.

    window: the values that become black and white; None for those that the values themselves suggest.
    is_inverted: the lowest value is white.
    """
    low, high = window or value_range(rows, size)
    factor = (-255 if is_inverted else 255) / ((high - low) or 1)
    image: Image.Image | None = None
    for top, values in bands(rows, size):
        if values.dtype != np.uint8 or factor != 1:
            levels: Any = values.astype(np.float32 if values.dtype.itemsize < 4 else np.float64)
            if values.dtype.kind == "f":
                levels = np.nan_to_num(levels, nan=low, posinf=high, neginf=low)
            levels -= low
            levels *= factor
            levels += 255.5 if is_inverted else 0.5  # to round
            values = np.clip(levels, 0, 255, out=levels).astype(np.uint8)
        band = Image.fromarray(values)
        image = image or Image.new(band.mode, size)
        image.paste(band, (0, top))
    assert image is not None
    return image


def bands(rows: Rows, size: tuple[int, int]) -> Iterator[tuple[int, Array]]:
    """All rows from the top, about BAND_PIXELS pixels at once."""
    height = max(1, BAND_PIXELS // size[0])
    for top in range(0, size[1], height):
        yield top, rows(top, min(top + height, size[1]))


def value_range(rows: Rows, size: tuple[int, int]) -> tuple[float, float]:
    """The values to show as black and as white.

    Integers begin at 0 and end at the largest that the bits in use can hold, 8 bits at least: 12 bits in 16 end at
    4,095. Colours in floats end likewise: at 1, or at a power of two; a few below 0 come from sharpening. Negative
    integers and greys in floats have no natural ends, so they are shown from their lowest to their highest, but for
    outliers.
    """
    step = 1 + math.isqrt(size[0] * size[1] // SAMPLE_PIXELS)
    lowest, highest, sample, is_colour, is_integer = math.inf, -math.inf, [], False, True
    for _, values in bands(rows, size):
        is_colour, is_integer = values.ndim == 3, values.dtype.kind != "f"
        if not is_integer:
            values = values[np.isfinite(values)] if not is_colour else np.where(np.isfinite(values), values, 0)
        if values.size:
            lowest, highest = min(lowest, float(values.min())), max(highest, float(values.max()))
            sample.append(values[::step].ravel())
    if not sample:
        return 0.0, 1.0
    if is_integer and lowest >= 0:
        return 0.0, float((1 << max(8, int(highest).bit_length())) - 1)
    low, high = map(float, np.percentile(np.concatenate(sample), [OUTLIERS, 100 - OUTLIERS]))
    if low == high:
        low, high = lowest, highest
    if is_colour and low >= -high / 2:
        return 0.0, max(1.0, 2.0 ** math.ceil(math.log2(high))) if high > 0 else 1.0
    return low, high
