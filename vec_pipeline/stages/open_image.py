"""content -> upright RGB image, longest side <= max_size_px."""

import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, ClassVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from vec_pipeline.record import Stage, Values, Worker

LARGEST_ASPECT = 50  # of the longer side to the shorter; vision-language models refuse images beyond about 200
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "HEIF")  # JPEG is MPO too; none runs programs
WHITE = (255, 255, 255)
TURNS = {  # what makes an image of an EXIF orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, kw_only=True)
class OpenImage(Stage):
    """Reads and decodes images, ahead of the models and in threads."""

    reads: ClassVar[tuple[str, ...]] = ("content",)
    intermediates: ClassVar[Mapping[str, str]] = {"image": "image"}
    worker: ClassVar[Worker] = "reader"

    max_size_px: int = 384

    def load(self) -> None:
        warnings.filterwarnings("ignore", module="PIL")  # of half a decompression bomb, of odd metadata
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            return
        register_heif_opener()

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        return [{"image": open_image(row["content"].read(), self.max_size_px)} for row in rows]


def open_image(content: bytes, max_size_px: int) -> Image.Image:
    """Decode a file's content into an upright RGB image.

    Alpha is laid on white, the longest side is reduced to `max_size_px` and never enlarged, and an aspect ratio over
    LARGEST_ASPECT is padded on white.

    Raises PIL.UnidentifiedImageError, PIL.Image.DecompressionBombError or OSError (truncated), as Pillow does.
    """
    if not content:
        raise UnidentifiedImageError("the file is empty")
    try:
        image = Image.open(BytesIO(content), formats=readable_formats())
    except UnidentifiedImageError:
        raise UnidentifiedImageError("not an image, or of a kind that cannot be read") from None
    target = reduced(image.size, max_size_px)
    image.draft(None, (2 * target[0], 2 * target[1]))  # a JPEG is decoded at 1/2, 1/4 or 1/8 where that suffices
    image.load()
    pixels = to_rgb(image)
    if pixels.size != target:
        pixels = pixels.resize(target, Image.Resampling.BICUBIC, reducing_gap=1.3)  # the models' own filter
    turn = turn_upright(image)
    return padded(pixels if turn is None else pixels.transpose(turn))


def readable_formats() -> list[str]:
    """Those of FORMATS that this Pillow has a reader for."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def turn_upright(image: Image.Image) -> Image.Transpose | None:
    """What the EXIF orientation asks for; metadata that cannot be read asks for nothing.

    ImageOps.exif_transpose also rewrites the metadata, and raises where a camera's is broken.
    """
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (SyntaxError, ValueError, TypeError, OSError, struct.error):
        return None


def reduced(size: tuple[int, int], max_size_px: int) -> tuple[int, int]:
    """The size with its longest side reduced to `max_size_px`, no side under one pixel."""
    factor = min(1.0, max_size_px / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to RGB: 16-bit and float greys scaled to 8 bits, alpha laid on white."""
    if image.mode.startswith(("I", "F")):
        return grey_from(np.asarray(image), is_16_bit=image.mode.startswith("I;16")).convert("RGB")
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        on_white = Image.new("RGB", image.size, WHITE)
        on_white.paste(layers, mask=layers.getchannel("A"))
        return on_white
    return image.convert("RGB")


def grey_from(values: np.ndarray[Any, Any], *, is_16_bit: bool) -> Image.Image:
    """Scale grey values of over 8 bits to 0..255: integers from 16 bits, floats from their own range."""
    levels = values.astype(np.float32)
    if values.dtype.kind == "f":
        finite = levels[np.isfinite(levels)]
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
        levels = (np.nan_to_num(levels, nan=low, posinf=high, neginf=low) - low) * (255 / ((high - low) or 1.0))
    elif is_16_bit or levels.max() > 255:
        levels /= 65535 / 255
    return Image.fromarray(np.clip(levels, 0, 255).round().astype(np.uint8))


def padded(image: Image.Image) -> Image.Image:
    """Pad the shorter side on white until no model refuses the aspect ratio."""
    shortest_px = -(-max(image.size) // LARGEST_ASPECT)
    if min(image.size) >= shortest_px:
        return image
    size = max(image.width, shortest_px), max(image.height, shortest_px)
    framed = Image.new("RGB", size, WHITE)
    framed.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return framed
