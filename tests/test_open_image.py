"""Opening images, by their colours at places: every format and mode becomes an upright RGB image of bounded size."""

import re
import struct
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from vec_pipeline.pictures import Limits, TooManyPixels, decode, pixels
from vec_pipeline.record import Values
from vec_pipeline.result_cache import hash_of
from vec_pipeline.sources.folder import LocalFile
from vec_pipeline.stages.open_image import OpenImage, open_image

Colour = tuple[int, int, int]
RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
WHITE, GREY, BLACK = (255, 255, 255), (128, 128, 128), (0, 0, 0)
CORNERS = (RED, GREEN, BLUE, YELLOW)  # top left, top right, bottom left, bottom right
ADDRESS = re.compile(r"0x[0-9a-f]{6}|object at")
EXIF_ORIENTATION = 0x0112

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")  # of the broken metadata below


@pytest.fixture(scope="module", autouse=True)
def decoders() -> None:
    """As a run does: HEIC is read once the stage is loaded."""
    OpenImage().load()


def quarters(size: tuple[int, int] = (96, 64)) -> Image.Image:
    """A picture whose four quarters have the colours of CORNERS."""
    pixels = Image.new("RGB", (2, 2))
    pixels.putdata(CORNERS)
    return pixels.resize(size, Image.Resampling.NEAREST)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def corners(image: Image.Image) -> list[Colour]:
    """The colours at the middles of the four quarters, row by row."""
    across, down = (image.width // 4, image.width * 3 // 4), (image.height // 4, image.height * 3 // 4)
    return [image.getpixel((x, y)) for y in down for x in across]  # type: ignore[misc]


def assert_colours(found: list[Colour], expected: list[Colour] | tuple[Colour, ...], tolerance: int = 0) -> None:
    assert np.abs(np.subtract(found, expected)).max() <= tolerance, f"{found} is not {expected}"


def png(width: int, height: int, data: bytes = b"", colour_type: int = 0, bits: int = 8) -> bytes:
    """A PNG file put together by hand, whose header may promise more than there is."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    )  # fmt: skip


# --- formats


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("GIF", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {}, 12),
        ("JPEG", {"quality": 95}, 6),
        ("JPEG", {"quality": 95, "progressive": True}, 6),
        ("MPO", {"quality": 95}, 6),
        ("AVIF", {}, 12),
        ("HEIF", {}, 12),
    ],
)
def test_every_format_shows_its_colours(kind: str, options: dict[str, object], tolerance: int) -> None:
    image = open_image(encoded(quarters(), kind, **options), 384)
    assert (image.mode, image.size) == ("RGB", (96, 64))
    assert_colours(corners(image), CORNERS, tolerance)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {}), ("MPO", {"quality": 95})],
)
def test_the_first_frame_counts(kind: str, options: dict[str, object]) -> None:
    later = [Image.new("RGB", (96, 64), colour) for colour in (BLACK, GREY)]
    content = encoded(quarters(), kind, save_all=True, append_images=later, **options)
    assert getattr(Image.open(BytesIO(content)), "n_frames", 1) == 3
    assert_colours(corners(open_image(content, 384)), CORNERS, tolerance=6)


def test_a_palette_of_an_animation_with_transparency_lies_on_white() -> None:
    frame = Image.new("RGBA", (96, 64))
    frame.paste(RED, (0, 0, 48, 64))
    content = encoded(frame, "GIF", save_all=True, append_images=[Image.new("RGBA", (96, 64), BLUE)])
    assert_colours(corners(open_image(content, 384)), [RED, WHITE, RED, WHITE])


# --- orientation


UPRIGHT = {  # where the corners of a stored picture belong, by the EXIF specification
    1: (RED, GREEN, BLUE, YELLOW),
    2: (GREEN, RED, YELLOW, BLUE),
    3: (YELLOW, BLUE, GREEN, RED),
    4: (BLUE, YELLOW, RED, GREEN),
    5: (RED, BLUE, GREEN, YELLOW),
    6: (BLUE, RED, YELLOW, GREEN),
    7: (YELLOW, GREEN, BLUE, RED),
    8: (GREEN, YELLOW, RED, BLUE),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    content = encoded(quarters((480, 320)), kind, exif=exif)
    image = open_image(content, 96)
    assert image.size == ((96, 64) if orientation < 5 else (64, 96))
    assert_colours(corners(image), UPRIGHT[orientation], tolerance=12)


@pytest.mark.parametrize("orientation", [0, 9, 6000])
def test_an_orientation_that_means_nothing_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    assert_colours(corners(open_image(encoded(quarters(), "PNG", exif=exif), 384)), CORNERS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"garbage!", b"", b"II*\0", b"II*\0\x08\0\0\0\xff\xff", b"MM\0*\xff\xff\xff\xff"])
def test_broken_metadata_does_not_cost_the_picture(kind: str, exif: bytes) -> None:
    content = encoded(quarters(), kind, exif=b"Exif\0\0" + exif)
    assert_colours(corners(open_image(content, 384)), CORNERS, tolerance=12)


def test_an_orientation_beside_broken_metadata_is_applied() -> None:
    """Cameras write tags of the wrong type, which Pillow reads and cannot write again."""
    entries = [(EXIF_ORIENTATION, 3, 1, struct.pack(">HH", 6, 0)), (0x011A, 2, 4, b"72dp"), (0x0131, 5, 1, b"\0" * 4)]
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, len(entries))
    exif += b"".join(struct.pack(">HHI", *entry[:3]) + entry[3] for entry in entries) + bytes(4)
    image = open_image(encoded(quarters(), "JPEG", exif=exif, quality=95), 384)
    assert image.size == (64, 96)
    assert_colours(corners(image), UPRIGHT[6], tolerance=6)


# --- modes


def with_palette_transparency() -> bytes:
    image = quarters().quantize(4)
    return encoded(image, "PNG", transparency=image.getpixel((0, 0)))


def with_alpha() -> bytes:
    image = quarters().convert("RGBA")
    image.paste((255, 0, 0, 0), (0, 0, 48, 32))
    image.paste((0, 0, 255, 128), (0, 32, 48, 64))
    return encoded(image, "PNG")


def grey_with_alpha() -> bytes:
    image = Image.new("LA", (96, 64), (128, 255))
    image.paste((0, 0), (0, 0, 48, 64))
    return encoded(image, "PNG")


def black_and_white() -> bytes:
    image = Image.new("1", (96, 64), 0)
    image.paste(1, (48, 0, 96, 64))
    return encoded(image, "PNG")


def rgb_with_transparent_colour() -> bytes:
    return encoded(quarters(), "PNG", transparency=RED)


def grey_ramp(dtype: type, low: float, middle: float, high: float) -> Image.Image:
    """Quarters of a low, a middle and a high grey, and the low one again."""
    tiles = np.array([[low, middle], [high, low]], dtype)
    return Image.fromarray(np.kron(tiles, np.ones((32, 48), dtype)))


GREYS = [BLACK, GREY, WHITE, BLACK]


@pytest.mark.parametrize(
    ("content", "expected", "tolerance"),
    [
        (lambda: encoded(quarters().quantize(4), "PNG"), list(CORNERS), 0),
        (with_palette_transparency, [WHITE, GREEN, BLUE, YELLOW], 0),
        (with_alpha, [WHITE, GREEN, (127, 127, 255), YELLOW], 1),
        (grey_with_alpha, [WHITE, GREY, WHITE, GREY], 0),
        (rgb_with_transparent_colour, [WHITE, GREEN, BLUE, YELLOW], 0),
        (black_and_white, [BLACK, WHITE, BLACK, WHITE], 0),
        (lambda: encoded(grey_ramp(np.uint8, 0, 128, 255), "PNG"), GREYS, 0),
        (lambda: encoded(grey_ramp(np.uint8, 0, 128, 255), "JPEG"), GREYS, 3),
        (lambda: encoded(grey_ramp(np.uint16, 0, 32896, 65535), "PNG"), GREYS, 0),
        (lambda: encoded(grey_ramp(np.uint16, 0, 32896, 65535), "TIFF"), GREYS, 0),
        (lambda: encoded(grey_ramp(np.uint16, 0, 128, 255), "PNG"), GREYS, 0),
        (lambda: encoded(grey_ramp(np.uint16, 32896, 32896, 32896), "PNG"), [GREY] * 4, 0),
        (lambda: encoded(grey_ramp(np.int32, 0, 32896, 65535), "TIFF"), GREYS, 0),
        (lambda: encoded(grey_ramp(np.float32, 0, 0.5, 1), "TIFF"), GREYS, 1),
        (lambda: encoded(grey_ramp(np.float32, -7, 0.5, 8), "TIFF"), GREYS, 1),
        (lambda: encoded(grey_ramp(np.float32, np.nan, 0.5, 1), "TIFF"), [BLACK, BLACK, WHITE, BLACK], 0),
        (lambda: encoded(quarters().convert("CMYK"), "JPEG", quality=95), list(CORNERS), 6),
        (lambda: encoded(quarters().convert("CMYK"), "TIFF"), list(CORNERS), 0),
        (lambda: encoded(quarters().convert("YCbCr"), "JPEG", quality=95), list(CORNERS), 6),
    ],
    ids=[
        *("palette", "palette with transparency", "RGBA", "LA", "RGB with a transparent colour", "1", "L", "L JPEG"),
        *("16-bit PNG", "16-bit TIFF", "8 bits in 16", "16-bit mid-grey", "32-bit TIFF", "float", "float range"),
        *("float with NaN", "CMYK JPEG", "CMYK TIFF", "YCbCr"),
    ],
)
def test_every_mode_becomes_rgb_of_the_same_colours(
    content: Callable[[], bytes], expected: list[Colour], tolerance: int
) -> None:
    image = open_image(content(), 384)
    assert (image.mode, image.size) == ("RGB", (96, 64))
    assert_colours(corners(image), expected, tolerance)


def test_16_bit_colour_and_alpha_are_read() -> None:
    pixels = np.array([[[65535, 0, 0, 65535], [0, 65535, 0, 0]]], ">u2")
    image = open_image(png(2, 1, b"\0" + pixels.tobytes(), colour_type=6, bits=16), 384)
    assert_colours([image.getpixel((0, 0)), image.getpixel((1, 0))], [RED, WHITE])  # type: ignore[list-item]


# --- size


@pytest.mark.parametrize(
    ("size", "max_size_px", "expected"),
    [
        ((96, 64), 48, (48, 32)),
        ((64, 96), 48, (32, 48)),
        ((96, 64), 96, (96, 64)),
        ((96, 64), 95, (95, 63)),
        ((1000, 333), 100, (100, 33)),
        ((96, 64), 384, (96, 64)),
        ((1, 1), 384, (1, 1)),
        ((3, 2), 1, (1, 1)),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_longest_side_is_reduced_and_never_enlarged(
    size: tuple[int, int], max_size_px: int, expected: tuple[int, int], kind: str
) -> None:
    assert open_image(encoded(quarters(size), kind), max_size_px).size == expected


def test_a_reduced_picture_is_the_whole_picture() -> None:
    assert_colours(corners(open_image(encoded(quarters((999, 777)), "PNG"), 96)), CORNERS, tolerance=2)


def test_one_pixel_keeps_its_colour() -> None:
    image = open_image(encoded(Image.new("RGB", (1, 1), RED), "PNG"), 384)
    assert (image.size, image.getpixel((0, 0))) == ((1, 1), RED)


@pytest.mark.parametrize("size", [(1, 20000), (20000, 1)])
def test_an_extreme_shape_is_padded_on_white(size: tuple[int, int]) -> None:
    pixels = np.asarray(open_image(encoded(Image.new("RGB", size, RED), "PNG"), 384))
    if size[0] > size[1]:
        pixels = pixels.transpose(1, 0, 2)
    assert pixels.shape == (384, 8, 3)
    is_red = (pixels == RED).all(axis=2)
    assert is_red.any(axis=0).tolist() == [False] * 3 + [True] + [False] * 4  # one line in the middle
    assert is_red[:, 3].all()
    assert (pixels[~is_red] == WHITE).all()


@pytest.mark.parametrize("size", [(400, 8), (8, 400)])
def test_a_shape_that_models_take_is_not_padded(size: tuple[int, int]) -> None:
    assert open_image(encoded(Image.new("RGB", size, RED), "PNG"), 400).size == size


@pytest.mark.parametrize("size", [(900, 600), (601, 403)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_decoded_at_reduced_scale_shows_the_same(
    size: tuple[int, int], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    smooth = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(smooth).resize(size, Image.Resampling.BICUBIC)
    content = encoded(picture.convert(mode), "JPEG", quality=95)
    decoded_sizes, flattened = [], pixels.flattened

    def noting_the_size(image: Image.Image) -> Image.Image:
        decoded_sizes.append(image.size)
        return flattened(image)

    monkeypatch.setattr(pixels, "flattened", noting_the_size)
    reduced = np.asarray(open_image(content, 96), np.float32)
    monkeypatch.setattr(JpegImageFile, "draft", lambda image, mode, size: None)
    full = np.asarray(open_image(content, 96), np.float32)
    assert 192 <= max(decoded_sizes[0]) < max(size) == max(decoded_sizes[1])
    assert reduced.shape == full.shape
    assert np.abs(reduced - full).mean() < 2


# --- what is no image


def refusal(content: bytes, *, keeps_cut: bool = True) -> Exception:
    with pytest.raises((OSError, ValueError, SyntaxError, TooManyPixels)) as caught:
        decode(content, Limits(384, keeps_cut=keeps_cut))
    assert str(caught.value)
    assert not ADDRESS.search(str(caught.value)), caught.value
    return caught.value


def test_an_empty_file_is_called_empty() -> None:
    assert str(refusal(b"")) == "the file is empty"


@pytest.mark.parametrize("content", [b"this is no image", b"\0" * 1000, b"<html><svg/></html>"])
def test_what_is_no_image_is_called_so(content: bytes) -> None:
    error = refusal(content)
    assert isinstance(error, UnidentifiedImageError)
    assert "not an image" in str(error)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_flagged_or_refused(kind: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    whole = encoded(noise, kind, **({"interlace": 0} if kind == "GIF" else {}))
    content = whole[: int(len(whole) * share)]
    refusal(content, keeps_cut=False)
    if kind in ("WEBP", "AVIF", "HEIF"):  # whose decoders give all or nothing
        refusal(content)
        return
    cut, complete = decode(content, Limits(384)), decode(whole, Limits(384))
    assert (cut.is_cut, complete.is_cut) == (True, False)
    same = (np.asarray(cut.image) == np.asarray(complete.image)).all(axis=(1, 2))
    if kind == "BMP":  # from the bottom
        same = same[::-1]
    assert same[: max(0, int(64 * share) - 20)].all()
    assert not same[int(64 * share) + 20 :].any()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF"])
def test_a_file_cut_within_its_picture_is_called_truncated(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    content = encoded(noise, kind)
    assert "truncated" in str(refusal(content[: len(content) // 2], keeps_cut=False))


def test_a_decompression_bomb_is_refused_before_it_is_unpacked() -> None:
    error = refusal(png(20_000, 20_000, bits=1))
    assert isinstance(error, TooManyPixels)
    assert str(error).startswith("400 megapixels are more than max_megapixels (179): raise it if")


# --- the stage


def test_a_large_picture_that_is_no_bomb_is_no_warning() -> None:
    """Pillow warns from half the size of a bomb, in the middle of a progress bar."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OpenImage().load()
        assert "truncated" in str(refusal(png(10_000, 10_000, bits=1)))  # so it got as far as decoding


def opened(*paths: Path, **options: object) -> list[Values]:
    """What the stage makes of files."""
    return OpenImage(**options).run(None, [{"content": LocalFile(str(path))} for path in paths], 8)  # type: ignore[arg-type]


def test_a_batch_is_opened_in_order(tmp_path: Path) -> None:
    for name, colour in (("a", RED), ("b", BLUE)):
        Image.new("RGB", (5, 5), colour).save(tmp_path / f"{name}.png")
    rows = opened(*(tmp_path / f"{name}.png" for name in "abab"))
    assert [row["image"].getpixel((2, 2)) for row in rows] == [RED, BLUE, RED, BLUE]
    assert rows[0].keys() == set(OpenImage.intermediates)


def test_max_size_px_is_the_stages_option(tmp_path: Path) -> None:
    quarters((96, 64)).save(tmp_path / "a.png")
    (row,) = opened(tmp_path / "a.png", max_size_px=48)
    assert row["image"].size == (48, 32)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        opened(tmp_path / "gone.jpg")


def test_the_pixels_alone_tell_what_is_read_of_a_picture(tmp_path: Path) -> None:
    """By them the result cache knows it again, whatever its name, place and format."""
    content = encoded(quarters(), "PNG")
    other = encoded(quarters().transpose(Image.Transpose.ROTATE_180), "PNG")
    files = {"a.png": content, "Копия.jpg": content, "c.bmp": encoded(quarters(), "BMP"), "other.png": other}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    rows = opened(*(tmp_path / name for name in files))
    first, copy, another_format, turned = [hash_of(row["image"]) for row in rows]
    assert first == copy == another_format != turned
    (row,) = opened(tmp_path / "a.png", max_size_px=10)
    assert hash_of(row["image"]) != first


def test_the_size_is_part_of_the_hash() -> None:
    assert hash_of(Image.new("RGB", (40, 20))) != hash_of(Image.new("RGB", (20, 40)))
