"""RAW files of cameras: the preview that they hold, or a decode at half the size where that is too small."""

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from vec_pipeline.pictures import Limits, Picture, library, pillow
from vec_pipeline.pictures.pixels import fitted, reduced

TURNS = {3: Image.Transpose.ROTATE_180, 5: Image.Transpose.ROTATE_90, 6: Image.Transpose.ROTATE_270}  # by LibRaw's flip


class NotRaw(UnidentifiedImageError):  # noqa: N818 (it says what it is)
    """LibRaw does not know the file, or it is damaged."""


def decode(content: bytes, limits: Limits) -> Picture:
    """Decode a file. Raises NotRaw, MissingDecoder and TooManyPixels."""
    rawpy = library("rawpy", "a camera's RAW file")
    try:
        with rawpy.imread(BytesIO(content)) as raw:
            side = max(raw.sizes.width, raw.sizes.height)
            small = preview(rawpy, raw, limits)
            if small and max(small.image.size) >= min(limits.side_px, side):
                return small
            limits.check(raw.sizes.raw_width * raw.sizes.raw_height)
            try:
                values = raw.postprocess(half_size=side >= 2 * limits.side_px, use_camera_wb=True)
                image = Image.fromarray(values)  # upright
            except rawpy.LibRawError:
                if small:
                    return small
                raise
    except rawpy.LibRawError as error:
        reason = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
        raise NotRaw(f"not a RAW file that LibRaw can read: {reason}") from None
    return Picture(fitted(image, reduced(image.size, limits.side_px)))


def preview(rawpy: Any, raw: Any, limits: Limits) -> Picture | None:
    """The largest picture that the file holds beside the values of the sensor."""
    try:
        thumbnail = raw.extract_thumb()
        if thumbnail.format == rawpy.ThumbFormat.JPEG:
            return pillow.decode(thumbnail.data, limits)  # LibRaw has put the orientation into it
        image = Image.fromarray(np.asarray(thumbnail.data))
    except Exception:  # there is none, or it is damaged
        return None
    pixels = fitted(image, reduced(image.size, limits.side_px))
    turn = TURNS.get(raw.sizes.flip)
    return Picture(pixels if turn is None else pixels.transpose(turn))
