"""Files of every odd kind that people have, drawn and put together here: `python -m tests.odd_pictures DIR`.

Most of them show four quarters in the colours of CORNERS.
"""

import base64
import io
import struct
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
from PIL import Image, ImageCms, PngImagePlugin

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
CORNERS = (RED, GREEN, BLUE, YELLOW)  # top left, top right, bottom left, bottom right
GREYS = (0, 85, 170, 255)  # the same for grey pictures
SIZE = (96, 64)
FORMATS_OF_TYPES = {1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 7: "B", 10: "ii", 12: "d"}  # of TIFF
SUB_DIRECTORIES = 330


def quarters(size: tuple[int, int] = SIZE) -> Image.Image:
    pixels = Image.new("RGB", (2, 2))
    pixels.putdata(CORNERS)
    return pixels.resize(size, Image.Resampling.NEAREST)


def greys(size: tuple[int, int] = SIZE) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Quarters of GREYS as an array of shape (height, width)."""
    return np.kron(np.array(GREYS, np.uint8).reshape(2, 2), np.ones((size[1] // 2, size[0] // 2), np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    if kind == "HEIF":
        pillow_heif.register_heif_opener()
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# --- TIFF, and what is built on it


class Page:
    """A directory of a TIFF: tags of (type, values), its pixels, and pages that only it leads to."""

    def __init__(self, tags: Mapping[int, tuple[int, Any]], pixels: bytes, *sub_pages: "Page") -> None:
        self.tags, self.pixels, self.sub_pages = dict(tags), pixels, sub_pages


def tiff(*pages: Page) -> bytes:
    content, previous = bytearray(b"II*\0" + bytes(4)), 4
    for page in pages:
        start = put_page(content, page)
        content[previous : previous + 4] = struct.pack("<I", start)
        previous = len(content) - 4
    return bytes(content)


def put_page(content: bytearray, page: Page) -> int:
    """Append a page, its directory last; return where that is."""
    tags = dict(page.tags)
    if page.sub_pages:
        tags[SUB_DIRECTORIES] = (4, [put_page(content, each) for each in page.sub_pages])
    tags |= {273: (4, [len(content)]), 279: (4, [len(page.pixels)])}
    content += page.pixels
    entries = b""
    for tag, (kind, values) in sorted(tags.items()):
        code = FORMATS_OF_TYPES[kind]
        raw = values if isinstance(values, bytes) else struct.pack(f"<{len(values)}{code[0]}", *values)
        number = len(raw) // struct.calcsize(f"<{code}")
        if len(raw) > 4:
            content += bytes(len(content) % 2)
            raw, at = struct.pack("<I", len(content)), raw
            content += at
        entries += struct.pack("<HHI", tag, kind, number) + raw.ljust(4, b"\0")
    content += bytes(len(content) % 2)
    start = len(content)
    content += struct.pack("<H", len(tags)) + entries + bytes(4)
    return start


def array_tags(values: np.ndarray[Any, Any], photometric: int, **more: tuple[int, Any]) -> dict[int, tuple[int, Any]]:
    """The tags of an array of shape (height, width) or (height, width, channels)."""
    channels = values.shape[2] if values.ndim == 3 else 1
    sample_format = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    return {
        256: (4, [values.shape[1]]), 257: (4, [values.shape[0]]), 258: (3, [values.dtype.itemsize * 8] * channels),
        259: (3, [1]), 262: (3, [photometric]), 277: (3, [channels]), 278: (4, [values.shape[0]]), 284: (3, [1]),
        339: (3, [sample_format] * channels), **{int(tag[1:]): value for tag, value in more.items()},
    }  # fmt: skip


def array_tiff(values: np.ndarray[Any, Any], photometric: int | None = None, **more: tuple[int, Any]) -> bytes:
    if photometric is None:
        photometric = 2 if values.ndim == 3 else 1
    return tiff(Page(array_tags(values, photometric, **more), values.tobytes()))


def imagej_tiff(low: int, high: int) -> bytes:
    """A CT of 12 bits whose bones and air are cut off by its window."""
    ct = np.kron(np.array([[0, 1000], [1100, 4000]], np.uint16), np.ones((32, 48), np.uint16))
    description = f"ImageJ=1.54f\nunit=mm\nmin={low}.0\nmax={high}.0\n".encode()
    return array_tiff(ct, t270=(2, description + b"\0"))


def hounsfield() -> np.ndarray[Any, np.dtype[np.int16]]:
    """Air, fat and water, muscle, bone."""
    return np.kron(np.array([[-1000, -100], [400, 1500]], np.int16), np.ones((32, 48), np.int16))


def bayer(size: tuple[int, int]) -> bytes:
    """What a sensor with a filter of red, green, green, blue sees of the quarters, in 16 bits."""
    colours = np.asarray(quarters(size), np.uint16) * 200
    mosaic = colours[:, :, 1].copy()
    mosaic[::2, ::2], mosaic[1::2, 1::2] = colours[::2, ::2, 0], colours[1::2, 1::2, 2]
    return mosaic.tobytes()


def raw_tags(size: tuple[int, int], subfile_type: int) -> dict[int, tuple[int, Any]]:
    return {
        254: (4, [subfile_type]), 256: (4, [size[0]]), 257: (4, [size[1]]), 258: (3, [16]), 259: (3, [1]),
        262: (3, [32803]), 277: (3, [1]), 278: (4, [size[1]]), 284: (3, [1]), 33421: (3, [2, 2]),
        33422: (1, b"\0\1\1\2"), 50717: (4, [51000]),
    }  # fmt: skip


CAMERA = {  # of a DNG
    271: (2, b"Drawn\0"), 272: (2, b"Drawn 1\0"), 274: (3, [1]), 50706: (1, b"\1\4\0\0"), 50708: (2, b"Drawn 1\0"),
    50721: (10, struct.pack("<18i", *(
        part for value in (3.2406, -1.5372, -0.4986, -0.9689, 1.8758, 0.0415, 0.0557, -0.2040, 1.0570)
        for part in (round(value * 10000), 10000)
    ))),
    50728: (5, struct.pack("<6I", 1, 1, 1, 1, 1, 1)), 50778: (3, [21]),
}  # fmt: skip


def dng(orientation: int = 1, size: tuple[int, int] = (480, 320)) -> bytes:
    """A camera's RAW file without a preview."""
    return tiff(Page({**raw_tags(size, 0), **CAMERA, 274: (3, [orientation])}, bayer(size)))


def dng_with_preview(
    orientation: int = 1, size: tuple[int, int] = (480, 320), *, is_jpeg: bool = True, **options: object
) -> bytes:
    """Its first page is a thumbnail of 24 x 16 pixels, its preview is half as large as its sensor and turned about."""
    thumbnail = np.zeros((16, 24, 3), np.uint8)
    half = quarters((size[0] // 2, size[1] // 2)).transpose(Image.Transpose.ROTATE_180)
    preview = encoded(half, "JPEG", quality=95, **options)
    preview_tags = {
        254: (4, [1]), 256: (4, [size[0] // 2]), 257: (4, [size[1] // 2]), 258: (3, [8, 8, 8]), 259: (3, [7]),
        262: (3, [6]), 277: (3, [3]), 278: (4, [size[1] // 2]),
    }  # fmt: skip
    if not is_jpeg:
        preview_tags, preview = {**array_tags(np.asarray(half), 2), 254: (4, [1])}, half.tobytes()
    tags = {**array_tags(thumbnail, 2), **CAMERA, 254: (4, [1]), 274: (3, [orientation])}
    return tiff(Page(tags, thumbnail.tobytes(), Page(raw_tags(size, 0), bayer(size)), Page(preview_tags, preview)))


def multi_page_tiff() -> bytes:
    return encoded(quarters(), "TIFF", save_all=True, append_images=[Image.new("RGB", SIZE), Image.new("RGB", SIZE)])


def tiff_with(subfile_type: int, number: int = 1) -> bytes:
    """One page and others that are thumbnails (1) or masks (4) of it."""
    page, other = np.asarray(quarters()), np.zeros((16, 24, 3), np.uint8)
    tags = {**array_tags(other, 2), 254: (4, [subfile_type])}
    return tiff(Page(array_tags(page, 2), page.tobytes()), *[Page(tags, other.tobytes())] * number)


# --- PNG


def png(pixels: np.ndarray[Any, Any], *chunks: tuple[bytes, bytes]) -> bytes:
    """Of 16 bits, of shape (height, width) or (height, width, 2 to 4), with further chunks before the pixels."""
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[pixels.shape[2] if pixels.ndim == 3 else 1]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part)) for kind, part in parts
    )


def png_with_text(*, compressed: bool, after: bool = False) -> bytes:
    """The workflow of an image generator, of 2 MB."""
    info = PngImagePlugin.PngInfo()
    text = '{"nodes": [' + "1, " * 700_000 + "0]}"
    info.add_text("workflow", text, zip=compressed)
    content = encoded(quarters(), "PNG", pnginfo=info)
    if after:
        start = content.index(b"zTXt") - 4
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        content = content[:start] + content[end:-12] + content[start:end] + content[-12:]
    return content


def png_with_profile() -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 3
    return encoded(quarters(), "PNG", icc_profile=profile + bytes(1_500_000), exif=exif)


# --- JPEG


def jpeg(size: tuple[int, int] = SIZE, **options: object) -> bytes:
    return encoded(quarters(size), "JPEG", quality=95, **options)


def gain_map_jpeg() -> bytes:
    """An Ultra HDR: an MPO whose second picture brightens the first."""
    gain_map = Image.new("RGB", (24, 16), (90, 90, 90))
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description hdrgm:Version="1.0"/></x:xmpmeta>'
    return encoded(quarters(), "MPO", quality=95, save_all=True, append_images=[gain_map], xmp=xmp)


def motion_photo() -> bytes:
    """A JPEG with a video behind it."""
    return (
        jpeg() + struct.pack(">I", 24) + b"ftypmp42\0\0\0\0mp42isom" + struct.pack(">I", 5000) + b"mdat" + bytes(4992)
    )


def lossy_header(width: int, height: int, *, progressive: bool = False, scans: int = 1) -> bytes:
    """A JPEG of three components that promises so many pixels, in so many scans, and holds none of them."""
    content = bytearray(encoded(Image.new("RGB", (16, 16)), "JPEG", progressive=progressive))
    frame = content.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    start = content.index(b"\xff\xda")
    if scans > 1:
        return bytes(content[:start]) + b"\xff\xda\0\x08\x01\x01\0\0\x3f\0"
    return bytes(content[: start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")])


def cmyk_profile(intent: int = 0) -> bytes:
    """A colour profile by which cyan ink is red, magenta green and yellow blue; black is black.

    ICC.1:2001: one table of 8 bits with 2 points for each ink, to Lab.
    intent: the one that it asks for, 0 or 1; by the other one all is white.
    """
    lab_of = {
        (0, 0, 0): (255, 128, 128),
        (1, 0, 0): (138, 209, 198),
        (0, 1, 0): (224, 49, 209),
        (0, 0, 1): (75, 196, 16),
    }
    table = b""
    for point in range(16):
        inks, black = (point >> 3 & 1, point >> 2 & 1, point >> 1 & 1), point & 1
        table += bytes((0, 128, 128) if black else lab_of.get(inks, (60, 128, 128)))
    linear = bytes(range(256))
    identity = struct.pack(">9i", *(65536 * (row == column) for row in range(3) for column in range(3)))
    luts = [
        b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + identity + linear * 4 + colours + linear * 3
        for colours in (table, bytes((255, 128, 128)) * 16)
    ]
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    tags, body, start = b"", b"", 128 + 4 + 3 * 12
    for name, part in ((b"wtpt", white), (b"A2B0", luts[intent]), (b"A2B1", luts[1 - intent])):
        tags += name + struct.pack(">II", start + len(body), len(part))
        body += part + bytes(-len(part) % 4)
    head = struct.pack(
        ">I4sI4s4s4s12x4s4sII4sQI3i48x",
        start + len(body), b"none", 0x02100000, b"prtr", b"CMYK", b"Lab ", b"acsp", b"APPL", 0, 0, b"none", 0, intent,
        63190, 65536, 54061,
    )  # fmt: skip
    return head + struct.pack(">I", 3) + tags + body


def inks() -> Image.Image:
    """Quarters of cyan, magenta, yellow ink and none."""
    pixels = Image.new("CMYK", (2, 2))
    pixels.putdata([(255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 0)])
    return pixels.resize(SIZE, Image.Resampling.NEAREST)


# --- BMP


def bmp(masks: Sequence[int], bits: int, pixels: bytes, *, compression: int = 3, height: int = SIZE[1]) -> bytes:
    """Of 96 pixels in a row whose bits the masks tell apart."""
    header = struct.pack("<IiiHHIIiiII", 40, SIZE[0], height, 1, bits, compression, len(pixels), 0, 0, 0, 0)
    start = 14 + 40 + 4 * len(masks)
    head = b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start)
    return head + header + struct.pack(f"<{len(masks)}I", *masks) + pixels


def bmp_of_masks(red: tuple[int, int], green: tuple[int, int], blue: tuple[int, int], bits: int = 32) -> bytes:
    """Each colour has a first bit and a number of bits; the rows begin at the bottom."""
    colours, packed = np.asarray(quarters(), np.uint64), np.zeros((SIZE[1], SIZE[0]), np.uint64)
    for channel, (first, number) in enumerate((red, green, blue)):
        packed |= (colours[:, :, channel] * ((1 << number) - 1) // 255) << np.uint64(first)
    masks = [((1 << number) - 1) << first for first, number in (red, green, blue)]
    return bmp(masks, bits, packed[::-1].astype(f"<u{bits // 8}").tobytes())


def indexes(size: tuple[int, int] = SIZE) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Quarters of the numbers of CORNERS as an array of shape (height, width)."""
    return np.kron(np.arange(4, dtype=np.uint8).reshape(2, 2), np.ones((size[1] // 2, size[0] // 2), np.uint8))


def packed(numbers: np.ndarray[Any, Any], bits: int, row_bytes: int = 4) -> bytes:
    """Rows of numbers of 1 to 8 bits, from the bottom, each filled up to so many bytes."""
    as_bits = np.unpackbits(numbers[::-1, :, None], axis=2)[:, :, -bits:].reshape(len(numbers), -1)
    rows = np.packbits(as_bits, axis=1)
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % row_bytes))).tobytes()


def bitmap(
    pixels: bytes, bits: int, *, size: tuple[int, int] = SIZE, header_bytes: int = 40, compression: int = 0,
    colours: Sequence[tuple[int, int, int]] = CORNERS, used: int = 0, tail: bytes = b"",
) -> bytes:  # fmt: skip
    """A header, a palette and pixels, as they are in a BMP file and in an icon.

    used: colours that the header promises; tail: the rest of a header of over 40 bytes.
    """
    if header_bytes == 12:
        header = struct.pack("<IHHHH", 12, *size, 1, bits)
    else:
        header = struct.pack("<IiiHHIIiiII", header_bytes, *size, 1, bits, compression, len(pixels), 0, 0, used, 0)
        header = (header + tail).ljust(header_bytes, b"\0")[:header_bytes]
    entries = b"".join(bytes((*colour[::-1], 0)[: 3 if header_bytes == 12 else 4]) for colour in colours)
    return header + entries * (bits <= 8) + pixels


def bmp_file(content: bytes, pixels: int = 0, reserved: int = 0) -> bytes:
    """A bitmap with the header of a file. pixels: how many bytes they are, if the file says where they begin."""
    return (
        b"BM" + struct.pack("<III", 14 + len(content), reserved, 14 + len(content) - pixels if pixels else 0) + content
    )


def bmp_of_palette(bits: int, **options: Any) -> bytes:
    pixels = packed(indexes(), bits) if bits > 1 else packed(indexes() // 2, 1)
    return bmp_file(bitmap(pixels, bits, **options), len(pixels))


def runs(bits: int, *, left_out: bool = False, absolute: bool = False) -> bytes:
    """Quarters in run-length encoding of 4, 8 or 24 bits; left_out: the top right one is skipped."""
    content = b""
    for row in indexes()[::-1]:
        for number in (row[0], row[-1]):
            colour = bytes(CORNERS[number][::-1]) if bits == 24 else bytes([number * 17 if bits == 4 else number])
            if left_out and number == 1:
                content += b"\0\x02" + bytes((48, 0))
            elif absolute:
                raw = colour * (23 if bits == 4 else 45)
                content += bytes((0, 45)) + raw + bytes(len(raw) % 2) + bytes((3,)) + colour
            else:
                content += bytes((47,)) + colour + bytes((1,)) + colour
        content += b"\0\0"
    return content + b"\0\x01"


def icon(
    *pictures: bytes, kind: int = 1, sizes: Sequence[tuple[int, int]] = (), lying_bytes: int | None = None
) -> bytes:
    """An ICO (kind 1) or CUR (2) file of bitmaps or PNG files."""
    content, at = struct.pack("<HHH", 0, kind, len(pictures)), 6 + 16 * len(pictures)
    for number, picture in enumerate(pictures):
        size = sizes[number] if sizes else SIZE
        length = len(picture) if lying_bytes is None else lying_bytes
        content += struct.pack("<BBBBHHII", *size, 0, 0, 1, 32, length, at)
        at += len(picture)
    return content + b"".join(pictures)


def icon_bitmap(bits: int, *, alpha: int = 255) -> bytes:
    """Quarters of 4, 24 or 32 bits whose mask makes the left half transparent."""
    mask = packed((indexes() % 2 == 0).astype(np.uint8), 1)
    if bits <= 8:
        pixels = packed(indexes(), bits)
    else:
        colours = quarters().convert("RGBA")
        colours.putalpha(alpha)
        pixels = np.asarray(colours)[::-1, :, [2, 1, 0, 3][: bits // 8]].tobytes()
    return bitmap(pixels + mask, bits, size=(SIZE[0], 2 * SIZE[1]), used=len(CORNERS))


# --- TGA


def tga(
    pixels: bytes, kind: int, bits: int, *, palette: bytes = b"", palette_bits: int = 0, first: int = 0,
    descriptor: int = 0, text: bytes = b"a name",
) -> bytes:  # fmt: skip
    """kind: 1 for a palette, 2 for colours, 3 for greys, 8 more for runs."""
    number = len(palette) * 8 // (palette_bits + 1 & ~7) if palette else 0
    head = struct.pack("<BBBHHB", len(text), bool(palette), kind, first, number, palette_bits)
    return head + struct.pack("<HHHHBB", 0, 0, *SIZE, bits, descriptor) + text + palette + pixels


def colours_of_16_bits(image: Image.Image) -> bytes:
    """In 5 bits each, of which red has the highest."""
    levels = np.asarray(image, np.uint16) >> 3
    return (levels[:, :, 0] << 10 | levels[:, :, 1] << 5 | levels[:, :, 2]).astype("<u2").tobytes()


def tga_with_extension(kind_of_alpha: int, alpha: int) -> bytes:
    """Of 32 bits, in the second version of the format."""
    colours = quarters().convert("RGBA")
    colours.putalpha(alpha)
    content = tga(np.asarray(colours)[::-1, :, [2, 1, 0, 3]].tobytes(), 2, 32, descriptor=8)
    extension = struct.pack("<H", 495) + bytes(492) + bytes([kind_of_alpha])
    return content + extension + struct.pack("<II", len(content), 0) + b"TRUEVISION-XFILE.\0"


# --- colour profiles, gammas, orientations


def exchanging_profile() -> bytes:
    """An RGB profile by which red is green and green is red, else as sRGB is. ICC.1:2001."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.index(b"rXYZ", 128), profile.index(b"gXYZ", 128)
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)


def grey_profile(gamma: float) -> bytes:
    """ICC.1:2001."""
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    curve = b"curv" + bytes(4) + struct.pack(">IHxx", 1, round(gamma * 256))
    start = 128 + 4 + 2 * 12
    tags = b"".join(
        name + struct.pack(">II", start + at, length) for name, at, length in ((b"wtpt", 0, 20), (b"kTRC", 20, 14))
    )
    head = struct.pack(
        ">I4sI4s4s4s12x4s4sII4sQI3i48x",
        start + 36, b"none", 0x02100000, b"mntr", b"GRAY", b"XYZ ", b"acsp", b"APPL", 0, 0, b"none", 0, 0,
        63190, 65536, 54061,
    )  # fmt: skip
    return head + struct.pack(">I", 2) + tags + white + curve


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_with_gamma(image: Image.Image, gamma: float, *more: bytes) -> bytes:
    """A PNG with further chunks before its pixels."""
    content = encoded(image, "PNG")
    return content[:33] + chunk(b"gAMA", struct.pack(">I", round(gamma * 100_000))) + b"".join(more) + content[33:]


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="3"/></rdf:RDF></x:xmpmeta>'
)


# --- others


def gif_of_a_part() -> bytes:
    """Its background is blue, and its only frame, of red, is its left half."""
    frame = encoded(Image.new("P", (48, 64), 0), "GIF")
    colours = bytes(RED + BLUE)
    screen = b"GIF89a" + struct.pack("<HHBBB", *SIZE, 0x80, 1, 0) + colours
    start = frame.index(struct.pack("<BHHHH", 0x2C, 0, 0, 48, 64))
    body = (
        frame[start + 10 :] if not frame[start + 9] & 0x80 else frame[start + 10 + 3 * (2 << (frame[start + 9] & 7)) :]
    )
    return screen + struct.pack("<BHHHHB", 0x2C, 0, 0, 48, 64, 0) + body


def radiance(light: np.ndarray[Any, Any]) -> bytes:
    """A Radiance HDR file of an array (height, width, 3) of powers of two, or 0, without runs."""
    exponents = np.frexp(light.max(axis=2))[1]
    numbers = np.concatenate([np.ldexp(light, 8 - exponents[:, :, None]), exponents[:, :, None] + 128], axis=2)
    size = b"\n-Y %d +X %d\n" % light.shape[:2]
    return b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n" + size + numbers.clip(0, 255).astype(np.uint8).tobytes()


def pam(values: np.ndarray[Any, Any], most: int) -> bytes:
    head = b"P7\n# drawn\nWIDTH %d\nHEIGHT %d\nDEPTH %d\nMAXVAL %d\nTUPLTYPE RGB\nENDHDR\n"
    return head % (values.shape[1], values.shape[0], values.shape[2], most) + values.tobytes()


def pfm(values: np.ndarray[Any, Any]) -> bytes:
    return b"PF\n%d %d\n-1.0\n" % (values.shape[1], values.shape[0]) + values[::-1].astype("<f4").tobytes()


def sun_raster() -> bytes:
    pixels = np.asarray(quarters())[:, :, ::-1].tobytes()
    return struct.pack(">8I", 0x59A66A95, *SIZE, 24, len(pixels), 1, 0, 0) + pixels


def dcx(number: int) -> bytes:
    """Pages of PCX."""
    page, start = encoded(quarters(), "PCX"), 4 + 4 * (number + 1)
    places = [start + at * len(page) for at in range(number)]
    return struct.pack(f"<I{number + 1}I", 0x3ADE68B1, *places, 0) + page * number


def fits(*, is_compressed: bool = False) -> bytes:
    """Astronomers count rows from the bottom."""
    cards = ["SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 2", f"NAXIS1  = {SIZE[0]}", f"NAXIS2  = {SIZE[1]}", "END"]
    if is_compressed:
        cards = ["SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 0", "END"]
        table = ["XTENSION= 'BINTABLE'", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 8", "NAXIS2  = 1", "PCOUNT  = 99"]
        table += ["ZIMAGE  = T", "ZBITPIX = 8", "ZNAXIS  = 2", f"ZNAXIS1 = {SIZE[0]}", f"ZNAXIS2 = {SIZE[1]}"]
        table += ["ZCMPTYPE= 'GZIP_1  '", "END"]
        return padded_cards(cards) + padded_cards(table) + bytes(8) + zlib.compress(greys()[::-1].tobytes(), wbits=31)
    return padded_cards(cards) + greys()[::-1].tobytes() + bytes(-SIZE[0] * SIZE[1] % 2880)


def photo_cd() -> bytes:
    """768 x 512 pixels in quarters of greys: pairs of rows that share their colour."""
    head = bytes(2048) + b"PCD_IPI" + bytes(96 * 2048 - 2055)
    levels = np.kron(np.array([[40, 80], [120, 160]], np.uint8), np.ones((128, 384), np.uint8))
    return head + b"".join(row.tobytes() * 2 + bytes([156]) * 384 + bytes([137]) * 384 for row in levels)


def padded_cards(cards: Sequence[str]) -> bytes:
    return "".join(card.ljust(80) for card in cards).encode().ljust(2880)


def heic(orientation: int = 1, *, alpha: bool = False) -> bytes:
    """1,200 x 800 pixels."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = quarters((1200, 800)).convert("RGBA" if alpha else "RGB")
    if alpha:
        image.paste((0, 0, 0, 0), (0, 400, 1200, 800))
    return encoded(image, "HEIF", exif=exif)


def with_brand(content: bytes, brand: bytes) -> bytes:
    """A HEIF whose first brand is another one; those behind it stay."""
    return content[:8] + brand + content[12:]


def psd(depth: int = 8, version: int = 1) -> bytes:
    """Of one layer of pixels without a name: the composite is all there is."""
    levels = np.asarray(quarters()).transpose(2, 0, 1).astype(">u2")
    planes = (levels * 257).tobytes() if depth == 16 else levels.astype(np.uint8).tobytes()
    head = b"8BPS" + struct.pack(">H6xHIIHH", version, 3, SIZE[1], SIZE[0], depth, 3)
    return head + bytes(4) + bytes(4) + bytes(4 * version) + struct.pack(">H", 0) + planes


def psd_header(width: int, height: int, depth: int = 16) -> bytes:
    return b"8BPS" + struct.pack(">H6xHIIHH", 2, 3, height, width, depth, 3) + bytes(16)


def jpeg_xl(values: np.ndarray[Any, Any] | None = None, **options: Any) -> bytes:
    import imagecodecs  # type: ignore[import-not-found, unused-ignore]

    values = np.asarray(quarters()) if values is None else values
    return bytes(imagecodecs.jpegxl_encode(values, lossless=True, **options))


def jpeg_xl_header(width: int, height: int) -> bytes:
    """A bare codestream of so many pixels: bits from the lowest, 30 for each side."""
    bits, length = 0, 0
    for value, number in ((0, 1), (3, 2), (height - 1, 30), (0, 3), (3, 2), (width - 1, 30)):
        bits, length = bits | value << length, length + number
    return b"\xff\x0a" + bits.to_bytes(length // 8 + 1, "little") + bytes(64)


SVG_QUARTERS = (
    '<path fill="#f00" d="M0 0h48v32H0z"/><path fill="#0f0" d="M48 0h48v32H48z"/>'
    '<path fill="#00f" d="M0 32h48v32H0z"/><path fill="#ff0" d="M48 32h48v32H48z"/>'
)


def svg(body: str = SVG_QUARTERS, root: str = 'width="96" height="64"', doctype: str = "") -> bytes:
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<?xml version="1.0"?>{doctype}<svg {namespaces} {root}>{body}</svg>'.encode()


def svg_with_pixels() -> bytes:
    address = f"data:image/png;base64,{base64.b64encode(encoded(quarters(), 'PNG')).decode()}"
    return svg(f'<image width="96" height="64" xlink:href="{address}"/>')


def svg_bomb() -> bytes:
    """Each of 12 groups uses the one before it ten times."""
    groups = [f'<g id="g{number}">' + f'<use xlink:href="#g{number - 1}"/>' * 10 + "</g>" for number in range(1, 12)]
    return svg(f'<defs><g id="g0"><path d="M0 0h9v9H0z"/></g>{"".join(groups)}</defs><use xlink:href="#g11"/>')


def svgz() -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    return compressor.compress(svg()) + compressor.flush()


def animation(kind: str) -> bytes:
    later = [Image.new("RGB", SIZE, colour) for colour in ((9, 9, 9), (99, 99, 99))]
    return encoded(quarters(), kind, save_all=True, append_images=later)


def deep(factor: float, dtype: str, offset: float = 0) -> np.ndarray[Any, Any]:
    return (greys().astype(np.float64) * factor + offset).astype(dtype)


def deep_colours(factor: int, channels: Sequence[int] = (0, 1, 2)) -> np.ndarray[Any, np.dtype[np.uint16]]:
    return np.asarray(quarters().convert("RGBA"), np.uint16)[:, :, list(channels)] * factor


FILES: dict[str, Callable[[], bytes]] = {
    "grey12in16.png": lambda: png(deep(16, "u2")),
    "grey10in16.tif": lambda: array_tiff(deep(4, "<u2")),
    "int16.tif": lambda: array_tiff(hounsfield()),
    "int32.tif": lambda: array_tiff(deep(1_000_000, "<i4")),
    "uint32.tif": lambda: array_tiff(deep(16_800_000, "<u4")),
    "miniswhite16.tif": lambda: array_tiff(deep(-257, "<i4", 65535).astype("<u2"), 0),
    "bits2.bmp": lambda: bmp_of_palette(2),
    "runs4.bmp": lambda: bmp_file(bitmap(runs(4), 4, compression=2, colours=[*CORNERS])),
    "cursor.cur": lambda: icon(icon_bitmap(4), kind=2),
    "bits15.tga": lambda: tga(colours_of_16_bits(quarters()), 2, 16, descriptor=0x20),
    "exchanged.png": lambda: encoded(quarters(), "PNG", icc_profile=exchanging_profile()),
    "gamma1.png": lambda: png_with_gamma(Image.fromarray(greys()), 1.0),
    "a.pam": lambda: pam(np.asarray(quarters()), 255),
    "a.ras": sun_raster,
    "a.dcx": lambda: dcx(2),
    "a.fits": fits,
    "a.heic": heic,
    "window.tif": lambda: imagej_tiff(950, 1150),
    "rgb12in16.tif": lambda: array_tiff(deep_colours(16)),
    "rgb12in16.png": lambda: png(deep_colours(16)),
    "rgbfloat.tif": lambda: array_tiff(np.asarray(quarters(), "<f4") / 255),
    "float64.tif": lambda: array_tiff(deep(1 / 255, "<f8")),
    "lab.tif": lambda: encoded(quarters().convert("LAB"), "TIFF"),
    "cmyk_profile.jpg": lambda: encoded(inks(), "JPEG", quality=95, icc_profile=cmyk_profile()),
    "no_end.jpg": lambda: jpeg()[:-2],
    "progressive_cut.jpg": lambda: jpeg((800, 600), progressive=True)[:-40],
    "half.jpg": lambda: jpeg((800, 600))[: len(jpeg((800, 600))) // 2],
    "text2mb.png": lambda: png_with_text(compressed=True),
    "profile2mb.png": png_with_profile,
    "pages.tif": multi_page_tiff,
    "animation.png": lambda: animation("PNG"),
    "gainmap.jpg": gain_map_jpeg,
    "motion.jpg": motion_photo,
    "jp2_named.jpg": lambda: encoded(quarters(), "JPEG2000"),
    "a.tga": lambda: encoded(quarters(), "TGA"),
    "a.ppm": lambda: encoded(quarters(), "PPM"),
    "a.ico": lambda: encoded(quarters((64, 64)), "ICO"),
    "a.psd": psd,
    "deep.psd": lambda: psd(16),
    "a.svg": svg,
    "a.dng": dng,
    "preview.dng": dng_with_preview,
}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in FILES.items():
        (folder / name).write_bytes(make())
