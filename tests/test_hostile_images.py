"""Hostile image files: any bytes give a bounded upright RGB image or one error, in bounded time and memory."""

import importlib.util
import os
import resource
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests import odd_pictures
from tests.conftest import PRINT_PEAK_MB, PROJECT
from tests.test_open_image import CORNERS, assert_colours, corners, encoded, png, quarters
from vec_pipeline.stages.open_image import OpenImage, open_image

MAX_SIZE_PX = 64
SLOW_S = 5.0  # a picture of this size takes milliseconds; the margin is for a busy machine
REPEATABLE = settings(derandomize=True, deadline=None, max_examples=150)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


@pytest.fixture(scope="module", autouse=True)
def decoders() -> None:
    """As a run does: HEIC is read once the stage is loaded."""
    OpenImage().load()


def patterned() -> Image.Image:
    """A picture of coloured tiles."""
    tiles = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return Image.fromarray(np.kron(tiles, np.ones((6, 6, 1), np.uint8)))


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


FILES: dict[str, Callable[[], bytes]] = {
    "JPEG": lambda: encoded(patterned(), "JPEG", exif=turned()),
    "progressive JPEG": lambda: encoded(patterned(), "JPEG", progressive=True),
    "MPO": lambda: encoded(patterned(), "MPO", save_all=True, append_images=[patterned()]),
    "PNG": lambda: encoded(patterned(), "PNG", exif=turned()),
    "PNG with palette": lambda: encoded(patterned().quantize(16), "PNG", transparency=3),
    "WEBP": lambda: encoded(patterned(), "WEBP", exif=turned()),
    "GIF": lambda: encoded(patterned(), "GIF", save_all=True, append_images=[patterned().rotate(180)]),
    "BMP": lambda: encoded(patterned(), "BMP"),
    "TIFF": lambda: encoded(patterned(), "TIFF", exif=turned()),
    "TIFF with LZW": lambda: encoded(patterned(), "TIFF", compression="tiff_lzw"),
    "TIFF with JPEG": lambda: encoded(patterned(), "TIFF", compression="jpeg"),
    "AVIF": lambda: encoded(patterned(), "AVIF", exif=turned()),
    "HEIF": lambda: encoded(patterned(), "HEIF", exif=turned()),
    "JPEG 2000": lambda: encoded(patterned(), "JPEG2000"),
    "TGA": lambda: encoded(patterned(), "TGA", compression="tga_rle"),
    "PPM": lambda: encoded(patterned(), "PPM"),
    "ICO": lambda: encoded(patterned(), "ICO", sizes=[(72, 48)]),
    "PCX": lambda: encoded(patterned(), "PCX"),
    "SGI": lambda: encoded(patterned(), "SGI"),
    "QOI": lambda: encoded(patterned(), "QOI"),
    "DDS": lambda: encoded(patterned(), "DDS"),
    "PSD": odd_pictures.psd,
    "16-bit PNG": lambda: odd_pictures.png(odd_pictures.deep_colours(16)),
    "12 bits in a TIFF": lambda: odd_pictures.array_tiff(odd_pictures.deep(16, "<u2")),
    "TIFF of a CT": lambda: odd_pictures.imagej_tiff(950, 1150),
    "TIFF of pages": odd_pictures.multi_page_tiff,
    "gain map": odd_pictures.gain_map_jpeg,
    "BMP of 2 bits": lambda: odd_pictures.bmp_of_palette(2),
    "BMP in runs": lambda: odd_pictures.bmp_file(odd_pictures.bitmap(odd_pictures.runs(4), 4, compression=2, used=4)),
    "CUR": lambda: odd_pictures.icon(odd_pictures.icon_bitmap(4), odd_pictures.icon_bitmap(32), kind=2),
    "TGA of 16 bits": lambda: odd_pictures.tga(odd_pictures.colours_of_16_bits(quarters()), 2, 16),
    "colour profile": lambda: encoded(quarters(), "PNG", icc_profile=odd_pictures.exchanging_profile()),
    "PAM": lambda: odd_pictures.pam(np.asarray(quarters()), 255),
    "PFM": lambda: odd_pictures.pfm(np.asarray(quarters()) / 255),
    "SUN": odd_pictures.sun_raster,
    "FITS": odd_pictures.fits,
}
OF_LIBRARIES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "DNG": ("rawpy", odd_pictures.dng),
    "DNG with a preview": ("rawpy", odd_pictures.dng_with_preview),
    "JPEG XL": ("imagecodecs", odd_pictures.jpeg_xl),
    "JPEG XL in a container": ("imagecodecs", lambda: odd_pictures.jpeg_xl(usecontainer=True)),
    "HDR": ("imagecodecs", lambda: odd_pictures.radiance(np.exp2(odd_pictures.greys() // 85)[:, :, None].repeat(3, 2))),
    "16-bit PSD": ("psd_tools", lambda: odd_pictures.psd(16)),
    "TIFF of floats": ("tifffile", lambda: odd_pictures.array_tiff(odd_pictures.deep(1 / 255, "<f8"))),
}
FILES |= {name: make for name, (library, make) in OF_LIBRARIES.items() if importlib.util.find_spec(library)}


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A few changes of a file, three of four of them near its beginning, where the sizes and offsets are."""
    place = st.one_of(st.integers(0, 120), st.integers(0, 400), st.integers(0, 40), st.integers(0, 1 << 20))
    patch = st.sampled_from([b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\0\0\0\0"]) | st.binary(
        min_size=1, max_size=12
    )
    steps = draw(st.lists(st.tuples(st.sampled_from(["put", "insert", "remove", "cut"]), place, patch), max_size=6))

    def damage(content: bytes) -> bytes:
        for what, at, new in steps:
            at %= len(content) or 1
            if what == "cut":
                content = content[:at] if len(steps) == 1 else content
            else:
                new_bytes = b"" if what == "remove" else new
                content = content[:at] + new_bytes + content[at + (0 if what == "insert" else len(new)) :]
        return content

    return damage


def assert_bounded(content: bytes) -> None:
    """It is an image, or an error with a message; and it does not take long."""
    start_s = time.monotonic()
    try:
        image = open_image(content, MAX_SIZE_PX)
    except Exception as error:
        assert isinstance(error, MemoryError) or str(error)
    else:
        assert image.mode == "RGB"
        assert 1 <= min(image.size) <= max(image.size) <= MAX_SIZE_PX
    assert time.monotonic() - start_s < SLOW_S


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_an_image_or_an_error(name: str) -> None:
    content = FILES[name]()
    assert open_image(content, MAX_SIZE_PX).mode == "RGB"

    @REPEATABLE
    @given(damages())
    def check(damage: Callable[[bytes], bytes]) -> None:
        assert_bounded(damage(content))

    check()


@pytest.mark.parametrize("name", FILES)
def test_files_cut_anywhere_are_an_image_or_an_error(name: str) -> None:
    content = FILES[name]()
    for end in range(0, len(content), max(1, len(content) // 150)):
        assert_bounded(content[:end])


@REPEATABLE
@given(st.binary(max_size=300), st.sampled_from(sorted(FILES)), st.integers(0, 64))
def test_any_bytes_behind_the_beginning_of_a_format_are_an_image_or_an_error(tail: bytes, name: str, kept: int) -> None:
    assert_bounded(FILES[name]()[:kept] + tail)


# --- EXIF


def entries(*parts: tuple[int, int, int, int]) -> bytes:
    """An EXIF block out of (tag, type, count, value or offset)."""
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(parts)) + b"".join(struct.pack("<HHII", *part) for part in parts)


EXIF_ENTRIES = st.tuples(
    st.sampled_from([0x0112, 0x0100, 0x010E, 0x011A, 0x0131, 0x8769, 0x8825, 0x0201, 0xA005, 0x927C]),
    st.integers(0, 14),
    st.sampled_from([0, 1, 2, 4, 1000, 1 << 30, (1 << 32) - 1]),
    st.sampled_from([0, 1, 6, 8, 9, 26, 1 << 31, (1 << 32) - 1]),
)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "HEIF"])  # Pillow writes no AVIF with broken EXIF
def test_no_exif_costs_the_picture(kind: str) -> None:
    """Whatever stands in it, the picture is shown, turned at most."""

    @REPEATABLE
    @given(st.binary(max_size=100) | st.builds(lambda parts: entries(*parts), st.lists(EXIF_ENTRIES, max_size=5)))
    def check(exif: bytes) -> None:
        content = encoded(quarters((48, 32)), kind, exif=b"Exif\0\0" + exif)
        image = open_image(content, MAX_SIZE_PX)
        assert sorted(image.size) == [32, 48]
        found = [min(CORNERS, key=lambda corner: np.abs(np.subtract(corner, c)).sum()) for c in corners(image)]
        assert sorted(found) == sorted(CORNERS)

    check()


# --- bombs: small files that ask for much


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_with(*chunks: bytes) -> bytes:
    """A good picture with further chunks before its pixels."""
    content = encoded(quarters(), "PNG")
    return content[:33] + b"".join(chunks) + content[33:]  # 33: the signature and IHDR


def text_bomb(kind: bytes, number: int, megabytes: int) -> bytes:
    packed = zlib.compress(bytes(megabytes << 20), 9)
    head = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"iCCP": b"a\0\0"}[kind]
    return png_with(*[chunk(kind, head + packed)] * number)


def bmp(width: int, height: int) -> bytes:
    """A BMP whose header promises pixels that are not there."""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info


def gif(width: int, height: int) -> bytes:
    frame = struct.pack("<BHHHHB", 0x2C, 0, 0, width, height, 0)
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + frame + b"\x02\x02\x4c\x01\x00;"


def tiff(width: int, height: int) -> bytes:
    parts = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    return entries(*parts, (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, (1 << 32) - 1)) + bytes(4)


def tga(kind: int, pixels: bytes) -> bytes:
    return bytes((0, 0, kind)) + bytes(9) + struct.pack("<HHBB", 13_000, 13_000, 24, 0) + pixels


BOMBS = {
    "a PNG of 4 billion pixels": lambda: png(65_500, 65_500),
    "a PNG just under the limit": lambda: png(13_000, 13_000),
    "a PNG whose one pixel unpacks to 200 megabytes": lambda: png(1, 1, bytes(200 << 20)),
    "a BMP of negative height": lambda: bmp(50_000, -50_000),
    "a BMP just under the limit": lambda: bmp(13_000, 13_000),
    "a GIF of 4 billion pixels": lambda: gif(65_500, 65_500),
    "a TIFF of 4 billion pixels": lambda: tiff(65_500, 65_500),
    "a TIFF just under the limit": lambda: tiff(13_000, 13_000),
    "text of 200 megabytes in a PNG": lambda: text_bomb(b"zTXt", 1, 200),
    "many texts in a PNG": lambda: text_bomb(b"iTXt", 500, 4),
    "a colour profile of 200 megabytes in a PNG": lambda: text_bomb(b"iCCP", 1, 200),
    "a JPEG of 4 billion pixels": lambda: odd_pictures.lossy_header(65_500, 65_500),
    "a progressive JPEG of 4 billion pixels": lambda: odd_pictures.lossy_header(65_500, 65_500, progressive=True),
    "a JPEG of 4 billion pixels in several scans": lambda: odd_pictures.lossy_header(65_500, 65_500, scans=3),
    "a JPEG XL of 4 billion pixels": lambda: odd_pictures.jpeg_xl_header(65_500, 65_500),
    "a PSD of 4 billion pixels": lambda: odd_pictures.psd_header(65_500, 65_500),
    "a PSD of floats just under the limit": lambda: odd_pictures.psd_header(13_000, 13_000, 32),
    "a deep PNG just under the limit": lambda: png(13_000, 13_000, bits=16),
    "a deep PNG of colours just under the limit": lambda: png(13_000, 13_000, colour_type=2, bits=16),
    "a TIFF of floats just under the limit": lambda: odd_pictures.tiff(
        odd_pictures.Page(
            {
                **odd_pictures.array_tags(np.zeros((1, 1, 3), "<f8"), 2),
                **{256: (4, [13_000]), 257: (4, [13_000]), 278: (4, [13_000])},
            },
            b"",
        )
    ),
    "a TIFF whose strip is a JPEG XL of 4 billion pixels": lambda: odd_pictures.tiff(
        odd_pictures.Page(
            {**odd_pictures.array_tags(np.zeros((64, 96, 3), "u1"), 2), 259: (3, [50002])},
            odd_pictures.jpeg_xl_header(65_500, 65_500),
        )
    ),
    "a BMP in runs just under the limit": lambda: odd_pictures.bmp_file(
        odd_pictures.bitmap(b"\xff\1" * 9, 8, size=(13_000, 13_000), compression=1, used=4)
    ),
    "a TGA in runs just under the limit": lambda: tga(10, b"\xff\1\2\3" * 9),
    "a TGA just under the limit": lambda: tga(2, bytes(99)),
    "an icon of 4 billion pixels": lambda: odd_pictures.icon(odd_pictures.bitmap(bytes(99), 32, size=(65_500, 65_500))),
    "a Radiance HDR of 4 billion pixels": lambda: b"#?RADIANCE\n\n-Y 65500 +X 65500\n" + bytes(99),
    "a Radiance HDR just under the limit": lambda: b"#?RADIANCE\n\n-Y 9400 +X 9400\n" + bytes(99),
    "a PAM just under the limit": lambda: (
        b"P7\nWIDTH 13000\nHEIGHT 13000\nDEPTH 3\nMAXVAL 65535\nENDHDR\n" + bytes(104_000)
    ),
    "a PPM of 4 billion pixels": lambda: b"P6 65500 65500 255\n",
    "a QOI of 4 billion pixels": lambda: b"qoif" + struct.pack(">IIBB", 65_500, 65_500, 3, 0) + bytes(99),
    "a huge SVG": lambda: odd_pictures.svg(root='width="1e9" height="1e9"'),
    "a compressed SVG of 200 megabytes": lambda: zlib.compress(b"<svg>" + bytes(200 << 20), 9, 31),
}
MEASURE = """
import sys, time
from pathlib import Path
from vec_pipeline.stages.open_image import OpenImage, open_image
OpenImage().load()
start_s = time.monotonic()
try:
    open_image(Path(sys.argv[1]).read_bytes(), 384)
except Exception as error:
    print(type(error).__name__)
else:
    print("opened")
print(time.monotonic() - start_s)
"""


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_takes_little_memory_and_time(name: str, tmp_path: Path) -> None:
    """At most what an honest picture of the largest size takes: 178 million pixels of 3 bytes and their reduction."""
    path = tmp_path / "bomb"
    path.write_bytes(BOMBS[name]())
    assert path.stat().st_size < 3 << 20
    command = [sys.executable, "-c", MEASURE + PRINT_PEAK_MB, str(path)]
    run = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    outcome, seconds, megabytes = run.stdout.splitlines()
    assert outcome != "MemoryError"
    assert float(megabytes) < 1100, outcome
    assert float(seconds) < 30, outcome


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_a_picture_that_holds_a_bomb_of_text_is_shown_without_it(kind: bytes) -> None:
    assert_colours(corners(open_image(text_bomb(kind, 1, 100), 384)), CORNERS)


def test_memory_that_lacks_is_an_error_of_this_picture_alone(tmp_path: Path) -> None:
    """The largest picture that is no bomb, where there is no room for it."""
    path = tmp_path / "large.png"
    path.write_bytes(png(13_000, 13_000, bytes(13_000 * (13_000 // 8 + 1)), bits=1))
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], cwd=PROJECT, capture_output=True, text=True, timeout=100,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # each of numpy's threads takes 40 MB of addresses
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20)),
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("MemoryError")


def test_what_these_tests_damage_is_a_picture_before() -> None:
    for name, make in FILES.items():
        image = open_image(make(), 72)
        assert max(image.size) == 72, name
    assert_colours(corners(open_image(encoded(quarters(), "PNG"), MAX_SIZE_PX)), CORNERS, tolerance=2)
    assert BytesIO(png_with()).getvalue() == encoded(quarters(), "PNG")
