"""Radiance HDR files, by imagecodecs: light as it is, reduced to what a screen can show."""

import re

import numpy as np
from PIL import UnidentifiedImageError

from vec_pipeline.pictures import Limits, Picture, library
from vec_pipeline.pictures.pixels import SAMPLE_PIXELS, Array, Rows, fitted, reduced, to_8_bits

SIZE = re.compile(rb"\n\n[-+][XY] +(\d{1,9}) +[-+][XY] +(\d{1,9})\n")  # behind the header
LONGEST_HEADER = 1 << 16  # bytes
GREY, GAMMA = 0.18, 2.2  # what the average becomes, and the eye's
BRIGHTEST, DARKEST = 1, 1e-6  # percent of the pixels that become white, and the least light


def decode(content: bytes, limits: Limits) -> Picture:
    """Decode a file. Raises MissingDecoder, TooManyPixels, PIL.UnidentifiedImageError."""
    imagecodecs = library("imagecodecs", "Radiance HDR")
    if not (found := SIZE.search(content, 0, LONGEST_HEADER)):
        raise UnidentifiedImageError("a Radiance HDR file without a size")
    limits.check(2 * int(found[1]) * int(found[2]))  # numbers of 4 bytes
    try:
        light = imagecodecs.rgbe_decode(content)
    except (imagecodecs.RgbeError, ValueError) as error:
        raise UnidentifiedImageError(f"not a Radiance HDR file that imagecodecs can read: {error}") from None
    size = light.shape[1], light.shape[0]
    image = to_8_bits(exposed(light), size, (0, 1))
    return Picture(fitted(image, reduced(size, limits.side_px)))


def exposed(light: Array) -> Rows:
    """Rows of light as levels of 0 to 1, by the global operator of Reinhard et al. 2002."""
    step = 1 + light.shape[0] * light.shape[1] // SAMPLE_PIXELS
    sample = light.reshape(-1, 3)[::step].mean(axis=1, dtype=np.float64)
    gain = GREY / float(np.exp(np.log(np.maximum(sample, DARKEST)).mean()))
    white = max(gain * float(np.percentile(sample, 100 - BRIGHTEST)), DARKEST)

    def rows(top: int, bottom: int) -> Array:
        shown = np.minimum(light[top:bottom], white / gain) * gain
        return (shown * (1 + shown / white / white) / (1 + shown)) ** (1 / GAMMA)

    return rows
