"""What Pillow reads."""

import contextlib
import functools
import math
import re
import struct
import sys
from io import BytesIO
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageFile, UnidentifiedImageError

from vec_pipeline.pictures import Limits, Picture
from vec_pipeline.pictures.pixels import Array, fitted, flattened, is_deep, reduced, to_8_bits

FORMATS = (  # JPEG is MPO too; none of them runs programs
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "HEIF", "JPEG2000", "PPM", "ICO", "CUR", "ICNS"),
    *("PSD", "PCX", "QOI", "DDS", "SGI", "XBM", "XPM", "SUN", "DCX", "FITS", "PCD"),
)
PAGED = ("PNG", "WEBP", "GIF", "TIFF", "AVIF", "HEIF", "DCX")  # the second picture of an MPO belongs to the first
NEW_SUBFILE_TYPE, REDUCED, MASK = 254, 1, 4  # a tag of TIFF, and bits of its value
PHOTOMETRIC, YCBCR = 262, 6  # another, and a value
MOST_PARTS = 9  # of a TIFF that are looked at to find a second page among thumbnails and masks
JPEGS = ("JPEG", "MPO")
JPEG, END_OF_JPEG = b"\xff\xd8\xff", b"\xff\xd9"
FILL_OF_JPEG = 128
GREY_WITH_ALPHA = "LA;16B"  # how Pillow calls it while it decodes; as RGBA, its second channel is the lower byte
DEEP_COLOURS = ("RGB;16", "RGBA;16", "RGBX;16", GREY_WITH_ALPHA)
BASELINE, START_OF_SCAN = (0xC0, 0xC1), 0xDA  # markers
PNG = b"\x89PNG\r\n\x1a\n"
SRGB_GAMMA, SAME_GAMMA = 1 / 2.2, 0.05  # as PNG files name it, and a difference that nobody sees
EXIF = ("exif", "Raw profile type exif")  # how Pillow calls it
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")
TURNS = {  # what makes an image of an EXIF orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(content: bytes, limits: Limits) -> Picture:
    """Decode a file.

    Raises TooManyPixels, PIL.UnidentifiedImageError, OSError (truncated), and whatever else Pillow's readers raise.
    """
    try:
        try:
            return decode_once(content, limits)
        except (ValueError, OSError, SyntaxError):  # of a PNG: too much text, a large profile, no sound animation
            if (plain := plain_png(content)) in (b"", content):
                raise
            return decode_once(plain, limits)
    except Image.DecompressionBombError as error:
        limits.check(max(map(int, re.findall(r"\d+", str(error)))))
        raise UnidentifiedImageError(str(error)) from None


def decode_once(content: bytes, limits: Limits) -> Picture:
    image, size = opened(content, limits)
    has_low_bytes = any(rawmode_of(tile).startswith(DEEP_COLOURS) for tile in image.tile)
    frame = image.tile[0].extents if image.format == "GIF" and image.tile else None
    image, damage = loaded(content, image, limits)
    whole = with_low_bytes(content, image, limits) if has_low_bytes and not damage and is_dark(image) else image
    whole = on_canvas(image, frame) if frame else whole
    whole = with_gamma(whole, exponent) if (exponent := exponent_of(image)) != 1 else whole
    pixels = fitted(whole, reduced(size if image.format in JPEGS else image.size, limits.side_px))
    if damage and is_empty(pixels, is_jpeg=image.format in JPEGS):
        raise damage
    if image.format == "XBM":  # whose ones are black
        pixels = ImageChops.invert(pixels)
    turn = turn_upright(image)
    return Picture(pixels if turn is None else pixels.transpose(turn), has_pages(image), damage is not None)


def opened(content: bytes, limits: Limits) -> tuple[ImageFile.ImageFile, tuple[int, int]]:
    """An image that is not decoded yet, and its size; a JPEG will be at 1/2, 1/4 or 1/8 of it where that suffices."""
    formats = readable_formats()
    try:
        if content.startswith(JPEG):
            image = Image.OPEN["JPEG"][0](BytesIO(content), "")  # Image.open counts pixels that `draft` leaves out
        else:
            image = Image.open(BytesIO(content), formats=formats)
    except (UnidentifiedImageError, SyntaxError, IndexError, TypeError, struct.error):
        raise UnidentifiedImageError("not an image, or of a kind that cannot be read") from None
    if image.format == "TIFF":
        use_libtiff(image)
    if image.tile and image.tile[0].codec_name == "fits_gzip":  # it unpacks without a limit
        raise UnidentifiedImageError("a compressed FITS file, which cannot be read")
    size = image.size
    target = reduced(size, limits.side_px)
    image.draft(None, (2 * target[0], 2 * target[1]))
    if not limits.allow(math.prod(size)):
        limits.check(math.prod(image.size if is_decoded_by_rows(content) else size))
    return image, size


def use_libtiff(image: Any) -> None:
    """Have libtiff decode YCbCr without compression, which Pillow takes for RGB."""
    if image.tag_v2.get(PHOTOMETRIC) == YCBCR and image.tile and image.tile[0].codec_name == "raw":
        image.use_load_libtiff = True
        image.tile = [ImageFile._Tile("libtiff", (0, 0, *image.size), 0, ("RGBX", "raw", False, image.tag_v2.offset))]


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Those of FORMATS that there is a reader for."""
    Image.init()
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def is_decoded_by_rows(content: bytes) -> bool:
    """Whether it is a JPEG of one scan. Of others, progressive ones above all, libjpeg holds all coefficients."""
    start, components = 2, 0
    while content.startswith(JPEG) and start + 10 < len(content) and content[start] == 0xFF:
        marker, length = content[start + 1], int.from_bytes(content[start + 2 : start + 4])
        if marker in BASELINE:
            components = content[start + 9]
        if marker == START_OF_SCAN:
            return components == content[start + 4]
        start += 1 if marker == 0xFF else 2 + length
    return False


def loaded(content: bytes, image: ImageFile.ImageFile, limits: Limits) -> tuple[ImageFile.ImageFile, Exception | None]:
    """Decode the pixels; return the image, and why some are missing: the file is cut off or damaged."""
    try:
        image.load()
        return image, None
    except (OSError, SyntaxError, EOFError) as error:
        if not limits.keeps_cut:
            raise
        damage = error
    if image.format in JPEGS:
        whole, _ = opened(content + END_OF_JPEG, limits)  # then libjpeg gives what it has
        with contextlib.suppress(OSError):
            whole.load()
            return whole, damage
    image.tile = []  # done: keep what the decoder has written
    try:
        image.load()
    except OSError:  # nothing
        raise damage from None
    with contextlib.suppress(Exception):  # metadata at the end of the file
        image.load_end()
    return image, damage


def is_empty(pixels: Image.Image, *, is_jpeg: bool) -> bool:
    """Whether nothing of a file was decoded: libjpeg fills with grey, behind a first block of chance; others with 0."""
    values = np.asarray(pixels)
    if is_jpeg:
        return bool((values == FILL_OF_JPEG).all(axis=2).mean() > 0.99)
    return bool((values == values[0, 0]).all())


def plain_png(content: bytes) -> bytes:
    """A PNG without what is not needed to show it: Pillow refuses more than 1 MiB of text. Empty if it is no PNG."""
    if not content.startswith(PNG):
        return b""
    start, kept = len(PNG), [PNG]
    while start < len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4])
        if content[start + 4 : start + 8] in PNG_CHUNKS:
            kept.append(content[start:end])
        start = end
    return b"".join(kept)


def rawmode_of(tile: ImageFile._Tile) -> str:
    args = tile.args
    return str(args[0] if isinstance(args, tuple) else args)


def is_dark(image: Image.Image) -> bool:
    """Whether no colour uses the upper half of its range: of 16 bits, fewer may be in use."""
    return all(high < 128 for _, high in image.getextrema()[:3])  # type: ignore[misc]


def with_low_bytes(content: bytes, image: Image.Image, limits: Limits) -> Image.Image:
    """Colours of 16 bits, of which Pillow keeps the upper 8, by the bits that are in use."""
    low, _ = opened(content, limits)
    is_grey = rawmode_of(low.tile[0]) == GREY_WITH_ALPHA
    low.tile = [tile._replace(args="RGBA" if is_grey else with_lower_half(tile.args)) for tile in low.tile]
    low.load()

    def rows(top: int, bottom: int) -> Array:
        box = (0, top, image.width, bottom)
        upper, lower = (np.asarray(each.crop(box), np.uint16)[:, :, :3] for each in (image, low))
        return upper << 8 | (lower[:, :, 1:2] if is_grey else lower)

    colours = to_8_bits(rows, image.size)
    if "A" in image.getbands():
        colours.putalpha(image.getchannel("A"))
    return colours


def with_lower_half(args: Any) -> Any:
    """Arguments of a decoder of 16 bits that takes the other byte of each number."""
    if isinstance(args, tuple):
        return with_lower_half(args[0]), *args[1:]
    order = args[-1] if args[-1] != "N" else sys.byteorder[0].upper()
    return f"{args[:-1]}{'B' if order == 'L' else 'L'}"


def on_canvas(image: Image.Image, frame: tuple[int, int, int, int]) -> Image.Image:
    """A GIF whose first frame does not cover it: the rest is transparent, whatever its background colour is."""
    if frame == (0, 0, *image.size):
        return image
    canvas = Image.new("RGBA", image.size)
    canvas.paste(image.convert("RGBA").crop(frame), frame[:2])
    return canvas


def exponent_of(image: Image.Image) -> float:
    """What the levels of a picture, of 0 to 1, are raised to: a PNG may name its gamma instead of a colour profile."""
    gamma = image.info.get("gamma", SRGB_GAMMA)
    if image.format != "PNG" or not image.info.keys().isdisjoint(("icc_profile", "srgb")) or not 0.1 < gamma < 10:
        return 1
    exponent = SRGB_GAMMA / gamma
    return exponent if abs(exponent - 1) > SAME_GAMMA else 1


def with_gamma(image: Image.Image, exponent: float) -> Image.Image:
    levels = [round(255 * (level / 255) ** exponent) for level in range(256)]
    if is_deep(image):
        return flattened(image).point(levels)
    return image.convert("RGBA").point(levels * 3 + list(range(256)))


def has_pages(image: ImageFile.ImageFile) -> bool:
    """Whether there are further pages or frames beside the first; thumbnails and masks in a TIFF are none."""
    if image.format not in PAGED or not getattr(image, "is_animated", False):
        return False
    if image.format != "TIFF":
        return True
    try:
        for page in range(1, MOST_PARTS):
            image.seek(page)
            if not image.tag_v2.get(NEW_SUBFILE_TYPE, 0) & (REDUCED | MASK):  # type: ignore[attr-defined]
                return True
    except Exception:  # the end of the file, or damage
        return False
    return True


def turn_upright(image: Image.Image) -> Image.Transpose | None:
    """What the EXIF orientation asks for; metadata that cannot be read asks for nothing.

    Pillow has turned a TIFF already. An orientation in XMP is left aside, as viewers do. ImageOps.exif_transpose also
    rewrites the metadata, and raises where a camera's is broken.
    """
    bare = Image.Image()
    bare.info = {name: value for name, value in image.info.items() if name in EXIF}
    try:
        return TURNS.get(bare.getexif().get(ExifTags.Base.Orientation, 1))
    except (SyntaxError, ValueError, TypeError, OSError, struct.error):
        return None
