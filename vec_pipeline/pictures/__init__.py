"""Decoders of pictures: the content of a file to RGB pixels of bounded size. One module, one family of formats."""

import importlib
from dataclasses import dataclass
from typing import Any

from PIL import Image, UnidentifiedImageError

from vec_pipeline.pictures.kinds import GZIP, kind_of

SNIFFED_BYTES = 32_768  # an SVG may define much before it begins
EXTRA = "pip install 'vec-pipeline[formats]'"
MODULES = {  # of kinds; that of the others is pillow
    **{"TIFF": "tiff", "RAW": "camera_raw", "BMP": "bmp", "ICO": "icon", "TGA": "tga", "JXL": "jpeg_xl"},
    **{"PSD": "photoshop", "SVG": "svg", "HEIF": "heif", "HDR": "radiance", "PAM": "netpbm"},
}


class MissingDecoder(Exception):  # noqa: N818 (it says what is missing)
    """A library that reads this kind of picture is not installed. The message says how to install it."""


class TooManyPixels(Exception):  # noqa: N818 (it says what is wrong)
    """The picture has more pixels than `max_megapixels` allows."""


@dataclass(frozen=True)
class Limits:
    """How a picture is decoded.

    side_px: its longest side is reduced to this, and never enlarged.
    megapixels: that may be in memory before it is reduced; more raise TooManyPixels.
    keeps_cut: return what there is of a file that is cut off; otherwise raise.
    """

    side_px: int
    megapixels: int = 179
    keeps_cut: bool = True

    def allow(self, pixels: int) -> bool:
        return pixels <= self.megapixels * 1_000_000

    def check(self, pixels: int) -> None:
        """Raise TooManyPixels."""
        if not self.allow(pixels):
            raise TooManyPixels(
                f"{pixels / 1e6:,.0f} megapixels are more than max_megapixels ({self.megapixels}): "
                "raise it if there is memory for them, 8 bytes a pixel"
            )


@dataclass(frozen=True)
class Picture:
    """What a file shows.

    image: upright and RGB, its longest side at most `side_px`.
    has_pages: it is the first of several pages or frames.
    is_cut: the file ends too early, or is damaged: a part of the pixels is missing.
    """

    image: Image.Image
    has_pages: bool = False
    is_cut: bool = False


def decode(content: bytes, limits: Limits) -> Picture:
    """Decode a file by its content, not by its name.

    Raises TooManyPixels, MissingDecoder, PIL.UnidentifiedImageError, OSError where it is cut off, and what the library
    of its format raises.
    """
    if not content:
        raise UnidentifiedImageError("the file is empty")
    kind = "SVG" if content.startswith(GZIP) else kind_of(content[:SNIFFED_BYTES], with_tga=True)
    module = importlib.import_module(f"{__name__}.{MODULES.get(kind, 'pillow')}")
    picture: Picture = module.decode(content, limits)
    return picture


def library(name: str, what: str) -> Any:
    """Import a library of the extra `formats`, which reads `what`. Raises MissingDecoder where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingDecoder(f"{what} needs {name}: {EXTRA}") from None
