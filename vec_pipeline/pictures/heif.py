"""HEIF files, which HEIC and AVIF are: by Pillow and its plugins, and where they refuse one, by libheif itself."""

import math

import numpy as np
from PIL import Image, UnidentifiedImageError

from vec_pipeline.pictures import Limits, Picture, TooManyPixels, pillow
from vec_pipeline.pictures.pixels import fitted, reduced

BRANDS = (b"avif", b"avis", b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")
CHANNELS = {"RGB": 3, "RGBA": 4}
BYTES_OF_PILLOW = 8  # a pixel in memory, as `Limits` counts; libheif takes its channels and 2 more
BAND_PIXELS = 1 << 22


def decode(content: bytes, limits: Limits) -> Picture:
    """Decode a file. Raises as `pillow.decode` does."""
    try:
        return pillow.decode(with_known_brand(content), limits)
    except TooManyPixels as refusal:
        return by_libheif(content, limits, refusal)
    except UnidentifiedImageError:
        failure = UnidentifiedImageError("damaged, or a HEIF of a coding that cannot be read")
        return by_libheif(content, limits, failure)
    except (RuntimeError, ValueError, IndexError) as error:
        raise UnidentifiedImageError(f"not a HEIF that can be read: {error}") from None


def with_known_brand(content: bytes) -> bytes:
    """A file whose first brand the libraries know: some programs put a newer or a more general one there."""
    brands = content[8 : int.from_bytes(content[:4])]
    found = next((brand for brand in BRANDS if brand in brands), None)
    return content if content[8:12] in BRANDS or not found else content[:8] + found + content[12:]


def by_libheif(content: bytes, limits: Limits, failure: Exception) -> Picture:
    """Decode a HEIC without a copy for Pillow: one of 200 megapixels, or of a layout that only libheif knows.

    Raises `failure` where that is not possible either.
    """
    from pillow_heif import open_heif

    try:
        file = open_heif(content, remove_stride=False)
        source = file[file.primary_index]
        (width, height), channels = source.size, CHANNELS[source.mode]
        if not limits.allow(width * height * (channels + 2) // BYTES_OF_PILLOW):
            raise failure
        rows = np.frombuffer(source.data, np.uint8).reshape(height, source.stride)[:, : width * channels]
    except (RuntimeError, ValueError, OSError, LookupError, SyntaxError, TooManyPixels):  # whatever libheif raises
        raise failure from None
    factor = max(1, max(width, height) // (2 * limits.side_px))
    image = Image.new(source.mode, (math.ceil(width / factor), math.ceil(height / factor)))
    step = factor * max(1, BAND_PIXELS // (width * factor))
    for top in range(0, height, step):
        band = Image.fromarray(rows[top : top + step].reshape(-1, width, channels))
        image.paste(band.reduce(factor), (0, top // factor))
    image.info = dict(source.info)
    return Picture(fitted(image, reduced((width, height), limits.side_px)), has_pages=len(file) > 1)
