"""PSD files: the composite of their layers that Photoshop has saved, by Pillow, or by psd-tools where that cannot."""

from io import BytesIO

from PIL import Image, UnidentifiedImageError

from vec_pipeline.pictures import Limits, Picture, library, pillow
from vec_pipeline.pictures.pixels import fitted, reduced

VERSION_INFO = 1057  # image resource; its fifth byte tells whether a composite was saved


def decode(content: bytes, limits: Limits) -> Picture:
    """Decode a file. Raises as `pillow.decode` does, and MissingDecoder."""
    pixels = int.from_bytes(content[14:18]) * int.from_bytes(content[18:22])
    limits.check(pixels)
    if is_for_pillow(content):
        return pillow.decode(content, limits)
    psd_tools = library("psd_tools", "a PSD of more than 8 bits, or without a composite of its layers,")
    try:
        image = psd_tools.PSDImage.open(BytesIO(content), max_alloc_bytes=limits.megapixels * 16_000_000).composite()
    except Exception as error:  # whatever psd-tools raises
        raise UnidentifiedImageError(f"not a PSD that psd-tools can read: {error}") from None
    return Picture(fitted(image, reduced(image.size, limits.side_px)))


def is_for_pillow(content: bytes) -> bool:
    """Whether it has 8 bits at most, and a composite."""
    try:
        with Image.open(BytesIO(content), formats=["PSD"]) as image:
            resources = {number: data for number, _, data in image.resources}  # type: ignore[attr-defined]
    except Exception:  # KeyError for modes that it does not know
        return False
    return bool(resources.get(VERSION_INFO, b"\0\0\0\0\1")[4])
