"""JPEG XL, by imagecodecs. Its decoder gives no size beforehand, so the header is read here."""

from PIL import UnidentifiedImageError

from vec_pipeline.pictures import Limits, Picture, library
from vec_pipeline.pictures.pixels import fitted, from_array, reduced

CODESTREAM = b"\xff\x0a"
HEADER_BYTES = 64
RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # of width to height
DISTRIBUTION = ((9, 1), (13, 1), (18, 1), (30, 1))  # bits of a number, and what is added to it


def decode(content: bytes, limits: Limits) -> Picture:
    """Decode the first frame. Raises MissingDecoder, TooManyPixels, PIL.UnidentifiedImageError."""
    imagecodecs = library("imagecodecs", "JPEG XL")
    width, height, is_animated = header(content)
    limits.check(width * height)
    try:
        values = imagecodecs.jpegxl_decode(content, index=0)  # upright
    except imagecodecs.JpegxlError as error:
        raise UnidentifiedImageError(f"not a JPEG XL file that libjxl can read: {error}") from None
    image = from_array(values)
    return Picture(fitted(image, reduced(image.size, limits.side_px)), is_animated)


def header(content: bytes) -> tuple[int, int, bool]:
    """Width, height, and whether it is an animation. ISO/IEC 18181-1, annex D."""
    bits = Bits(codestream_of(content)[len(CODESTREAM) : HEADER_BYTES])
    width, height = size(bits)
    is_animated = False
    if not bits.take(1) and bits.take(1):  # not all default, and extra fields
        bits.take(3)  # orientation
        if bits.take(1):
            size(bits)  # intrinsic
        is_animated = not bits.take(1) and bool(bits.take(1))  # a preview would have to be read over
    return width, height, is_animated


def codestream_of(content: bytes) -> bytes:
    """The codestream, or its first part, of a file that may be a container of boxes."""
    start = 0
    while not content.startswith(CODESTREAM, start):
        length, kind, head = int.from_bytes(content[start : start + 4]), content[start + 4 : start + 8], 8
        if length == 1:
            length, head = int.from_bytes(content[start + 8 : start + 16]), 16
        if kind in (b"jxlc", b"jxlp"):
            start += head + (4 if kind == b"jxlp" else 0)
            break
        if length < head or start + length >= len(content):
            raise UnidentifiedImageError("a JPEG XL file without a picture")
        start += length
    return content[start : start + HEADER_BYTES]


class Bits:
    """A stream of bits, the lowest of each byte first; zeros after its end."""

    def __init__(self, content: bytes) -> None:
        self._rest = int.from_bytes(content, "little")

    def take(self, number: int) -> int:
        value = self._rest & ((1 << number) - 1)
        self._rest >>= number
        return value


def size(bits: Bits) -> tuple[int, int]:
    """Width and height."""
    is_small = bits.take(1)

    def side() -> int:
        if is_small:
            return (bits.take(5) + 1) * 8
        number, added = DISTRIBUTION[bits.take(2)]
        return bits.take(number) + added

    height = side()
    ratio = bits.take(3)
    if not ratio:
        return side(), height
    return height * RATIOS[ratio - 1][0] // RATIOS[ratio - 1][1], height
