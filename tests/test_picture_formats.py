"""Pictures as people have them: every kind of tests/odd_pictures.py, by its colours at places."""

import http.server
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from tests import odd_pictures
from tests.conftest import PRINT_PEAK_MB, PROJECT
from tests.odd_pictures import (
    CORNERS,
    GREYS,
    array_tiff,
    deep,
    deep_colours,
    dng,
    dng_with_preview,
    encoded,
    jpeg,
    jpeg_xl,
    png,
    psd,
    quarters,
    svg,
)
from tests.test_open_image import Colour, assert_colours, corners
from vec_pipeline.pictures import (
    Limits,
    MissingDecoder,
    TooManyPixels,
    decode,
)
from vec_pipeline.pictures import (
    heif as heif_module,
)
from vec_pipeline.pictures import (
    jpeg_xl as jpeg_xl_module,
)
from vec_pipeline.pictures import (
    svg as svg_module,
)
from vec_pipeline.pictures.kinds import HEAD_BYTES, kind_of
from vec_pipeline.pictures.pixels import transform
from vec_pipeline.stages.open_image import OpenImage

TIFFFILE, IMAGECODECS, RAWPY, PSD_TOOLS, CAIRO = "tifffile", "imagecodecs", "rawpy", "psd_tools", "cairosvg"
FULL, HALF, BLACK, WHITE = 255, 128, (0, 0, 0), (255, 255, 255)


def shown(content: bytes, side_px: int = 384, **limits: Any) -> Image.Image:
    return decode(content, Limits(side_px, **limits)).image


def as_greys(values: tuple[int, ...] = GREYS) -> list[Colour]:
    return [(value, value, value) for value in values]


def nearest(found: list[Colour]) -> list[Colour]:
    """Which of the corners' colours each is most like."""
    return [min(CORNERS, key=lambda corner: np.abs(np.subtract(corner, colour)).sum()) for colour in found]


# --- greys and colours of more than 8 bits, and other colour spaces


@pytest.mark.parametrize(
    ("make", "expected", "tolerance"),
    [
        (lambda: png(deep(16, "u2")), GREYS, 1),
        (lambda: png(deep(257, "u2")), GREYS, 0),
        (lambda: encoded(Image.fromarray(deep(16, "u2")), "JPEG2000"), GREYS, 1),
        (lambda: array_tiff(deep(0.25, "<u2")), (0, 21, 42, 63), 0),
        (lambda: array_tiff(deep(4, "<u2")), GREYS, 1),
        (lambda: array_tiff(deep(16, "<u2")), GREYS, 1),
        (lambda: encoded(Image.fromarray(deep(16, "<u2")), "TIFF", compression="tiff_lzw"), GREYS, 1),
        (lambda: array_tiff(deep(16_800_000, "<u4")), GREYS, 1),
        (lambda: array_tiff(deep(8_400_000, "<i4")), GREYS, 1),
        (lambda: array_tiff(deep(8, "<i2", -1000)), GREYS, 1),
        (lambda: array_tiff(deep(8, "<i4", -1000)), GREYS, 1),
        (lambda: array_tiff(deep(-257, "<i4", 65535).astype("<u2"), 0), GREYS, 0),
        (lambda: array_tiff(deep(-16, "<i4", 4095).astype("<u2"), 0), GREYS, 1),
        (lambda: array_tiff(deep(1 / 255, "<f4")), GREYS, 1),
        (lambda: odd_pictures.imagej_tiff(950, 1150), (0, 64, 191, 255), 1),
        (lambda: odd_pictures.imagej_tiff(9000, 9999), (0, 62, 69, 249), 1),
    ],
    ids=[
        *(
            "12 bits in a PNG",
            "16 bits in a PNG",
            "12 bits in a JPEG 2000",
            "6 bits",
            "10 bits in a TIFF",
            "12 bits in a TIFF",
        ),
        *("12 bits with LZW", "uint32", "int32", "int16 below 0", "int32 below 0", "0 is white", "0 is white, 12 bits"),
        *("floats", "the window of a CT", "a window beside the values"),
    ],
)
def test_deep_greys_have_their_real_range(make: Callable[[], bytes], expected: tuple[int, ...], tolerance: int) -> None:
    picture = decode(make(), Limits(384))
    assert_colours(corners(picture.image), as_greys(expected), tolerance)
    assert not picture.is_cut
    assert not picture.has_pages


def test_a_few_extreme_values_do_not_hide_a_ct() -> None:
    """Of metal, and of what pads a round picture to a square."""
    values = deep(8, "<i2", -1000)
    values[0, 0], values[0, 1] = 32767, -32768
    assert_colours(corners(shown(array_tiff(values))), as_greys(), tolerance=1)


def test_a_few_pixels_on_one_grey_are_kept() -> None:
    for value, ground in ((90, -5), (-90, -5)):
        values = np.full((64, 96), ground, np.int16)
        values[30, 40:42] = value
        image = shown(array_tiff(values))
        expected = (WHITE, BLACK) if value > ground else (BLACK, WHITE)
        assert (image.getpixel((40, 30)), image.getpixel((20, 20))) == expected


def test_values_are_scaled_alike_over_a_large_picture() -> None:
    """It is converted a band of rows at a time."""
    ramp = np.linspace(0, 4095, 1500).astype("<u2")[:, None].repeat(1200, axis=1)
    levels = np.asarray(shown(array_tiff(ramp), 1500))[:, 600, 0].astype(int)
    assert np.abs(levels - np.linspace(0, 255, 1500)).max() <= 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: png(deep_colours(16)),
        lambda: png(deep_colours(257)),
        lambda: png(deep_colours(16, (0, 1, 2, 3))),
        lambda: array_tiff(deep_colours(16)),
        lambda: array_tiff(deep_colours(257)),
        lambda: encoded(quarters().convert("LAB"), "TIFF"),
    ],
    ids=["12-bit PNG", "16-bit PNG", "12-bit PNG with alpha", "12-bit TIFF", "16-bit TIFF", "LAB"],
)
def test_deep_and_other_colours_are_right(make: Callable[[], bytes]) -> None:
    content = make()
    if content.startswith(b"\x89PNG") and content[25] == 6:  # an alpha of 12 bits in 16 is nearly transparent
        assert min(min(colour) for colour in corners(shown(content))) > 200
    else:
        assert_colours(corners(shown(content)), CORNERS, tolerance=24)


@pytest.mark.parametrize("factor", [16, 257])
def test_a_deep_grey_with_alpha_has_its_real_range(factor: int) -> None:
    alpha = np.full((64, 96), 65535, np.uint16)
    assert_colours(corners(shown(png(np.stack([deep(factor, "u2"), alpha], axis=2)))), as_greys(), tolerance=1)
    alpha[:, :48] = 0
    expected = [WHITE, as_greys()[1], WHITE, as_greys()[3]]
    assert_colours(corners(shown(png(np.stack([deep(factor, "u2"), alpha], axis=2)))), expected, tolerance=1)


def test_16_bits_with_an_alpha_keep_it() -> None:
    values = deep_colours(16, (0, 1, 2, 3))
    values[:, :, 3] = 65535
    values[:, :48, 3] = 0
    assert_colours(corners(shown(png(values))), [WHITE, CORNERS[1], WHITE, CORNERS[3]], tolerance=1)


@pytest.mark.parametrize("maximum", [1, 0.9, 255, 65535], ids=str)
def test_colours_in_floats(maximum: float) -> None:
    pytest.importorskip(TIFFFILE)
    values = np.asarray(quarters(), "<f4") / 255 * maximum
    brightest = 230 if maximum == 0.9 else 255  # the range ends at 1, or at a power of two
    expected = [tuple(min(level, brightest) for level in colour) for colour in CORNERS]
    assert_colours(corners(shown(array_tiff(values))), expected, tolerance=2)  # type: ignore[arg-type]


def test_planes_of_floats_and_doubles() -> None:
    pytest.importorskip(TIFFFILE)
    planes = np.ascontiguousarray((np.asarray(quarters(), "<f4") / 255).transpose(2, 0, 1))
    tags = {**odd_pictures.array_tags(np.asarray(quarters(), "<f4"), 2), 284: (3, [2])}
    tags |= {278: (4, [64])}
    page = odd_pictures.tiff(odd_pictures.Page(tags, planes.tobytes()))
    import tifffile  # type: ignore[import-not-found, unused-ignore]

    buffer = BytesIO()
    tifffile.imwrite(buffer, planes, photometric="rgb", planarconfig="separate")
    for content in (buffer.getvalue(), array_tiff(np.asarray(quarters(), "<f8") / 255)):
        assert_colours(corners(shown(content)), CORNERS, tolerance=2)
    assert page  # of one strip for all planes, which no reader takes


@pytest.mark.parametrize("intent", [0, 1])
def test_cmyk_is_converted_by_its_profile(intent: int) -> None:
    expected = [CORNERS[0], CORNERS[1], CORNERS[2], WHITE]
    for kind, options in (("JPEG", {"quality": 95}), ("TIFF", {})):
        content = encoded(odd_pictures.inks(), kind, icc_profile=odd_pictures.cmyk_profile(intent), **options)
        assert_colours(corners(shown(content)), expected, tolerance=16)
        assert_colours(corners(shown(content, 48)), expected, tolerance=16)


@pytest.mark.parametrize("profile", [b"no profile", b""], ids=["damaged", "none"])
def test_cmyk_without_a_profile_is_converted_by_the_rule_of_thumb(profile: bytes) -> None:
    content = encoded(odd_pictures.inks(), "TIFF", icc_profile=profile)
    assert_colours(corners(shown(content)), [(0, 255, 255), (255, 0, 255), (255, 255, 0), WHITE])


def test_a_profile_of_other_colours_in_a_cmyk_file_is_ignored() -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    content = encoded(odd_pictures.inks(), "TIFF", icc_profile=profile)
    assert_colours(corners(shown(content)), [(0, 255, 255), (255, 0, 255), (255, 255, 0), WHITE])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_colours_are_converted_by_their_profile(kind: str) -> None:
    """By this one, red is green and green is red."""
    options: dict[str, Any] = {"quality": 95} if kind == "JPEG" else {}
    content = encoded(quarters(), kind, icc_profile=odd_pictures.exchanging_profile(), **options)
    expected = [CORNERS[1], CORNERS[0], CORNERS[2], CORNERS[3]]
    for side_px in (384, 48):
        assert_colours(corners(shown(content, side_px)), expected, tolerance=30)


def test_a_palette_and_an_alpha_are_converted_too() -> None:
    profile, expected = odd_pictures.exchanging_profile(), [CORNERS[1], CORNERS[0], CORNERS[2], CORNERS[3]]
    palette = encoded(quarters().quantize(4), "PNG", icc_profile=profile)
    assert_colours(corners(shown(palette)), expected, tolerance=2)
    image = quarters().convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 32, 96, 64))
    assert_colours(
        corners(shown(encoded(image, "PNG", icc_profile=profile))), [*expected[:2], WHITE, WHITE], tolerance=2
    )


def test_greys_are_converted_by_their_profile() -> None:
    content = encoded(Image.fromarray(odd_pictures.greys()), "PNG", icc_profile=odd_pictures.grey_profile(1.0))
    assert_colours(corners(shown(content)), as_greys((0, 156, 213, 255)), tolerance=1)


@pytest.mark.parametrize(
    "profile",
    [
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        odd_pictures.cmyk_profile(),
        odd_pictures.grey_profile(1.0),
        odd_pictures.exchanging_profile()[:300],
        b"no profile",
    ],
    ids=["sRGB", "of CMYK", "of greys", "cut", "damaged"],
)
def test_a_profile_that_says_nothing_changes_nothing(profile: bytes) -> None:
    assert_colours(corners(shown(encoded(quarters(), "PNG", icc_profile=profile))), CORNERS)
    assert transform(profile, "RGB") is None


def test_greys_of_16_bits_keep_their_range_whatever_their_profile_is() -> None:
    content = png(deep(16, "u2"))
    content = content[:33] + odd_pictures.chunk(
        b"iCCP", b"a\0\0" + zlib.compress(odd_pictures.grey_profile(1.0))
    ) + content[33:]  # fmt: skip
    assert_colours(corners(shown(content)), as_greys(), tolerance=1)


LIGHTER = (0, 155, 212, 255)  # greys of gamma 1


@pytest.mark.parametrize(
    ("gamma", "expected"),
    [(1.0, LIGHTER), (0.45455, GREYS), (0.44, GREYS), (0.25, (0, 35, 122, 255)), (0.0, GREYS), (99.0, GREYS)],
)
def test_the_gamma_of_a_png(gamma: float, expected: tuple[int, ...]) -> None:
    image = Image.fromarray(odd_pictures.greys())
    for mode in ("L", "RGB", "P"):
        content = odd_pictures.png_with_gamma(image.convert(mode), gamma)
        assert_colours(corners(shown(content)), as_greys(expected), tolerance=1)


def test_the_gamma_is_that_of_the_colours_and_not_of_what_is_behind_them() -> None:
    image = Image.fromarray(odd_pictures.greys()).convert("LA")
    image.putalpha(128)
    expected = tuple((level + 255) // 2 for level in LIGHTER)
    assert_colours(corners(shown(odd_pictures.png_with_gamma(image, 1.0))), as_greys(expected), tolerance=1)
    deep_grey = Image.fromarray(deep(257, "u2"))
    assert_colours(corners(shown(odd_pictures.png_with_gamma(deep_grey, 1.0))), as_greys(LIGHTER), tolerance=1)


def test_a_profile_comes_before_the_gamma() -> None:
    image = Image.fromarray(odd_pictures.greys())
    for kind, data in ((b"sRGB", b"\0"), (b"iCCP", b"a\0\0" + zlib.compress(odd_pictures.grey_profile(2.2)))):
        content = odd_pictures.png_with_gamma(image, 1.0, odd_pictures.chunk(kind, data))
        assert_colours(corners(shown(content)), as_greys(), tolerance=8)


def test_an_orientation_in_xmp_is_left_aside_as_viewers_do() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", odd_pictures.XMP.decode())
    contents = [
        encoded(quarters(), "PNG", pnginfo=text),
        encoded(quarters(), "JPEG", quality=95, xmp=odd_pictures.XMP),
        encoded(quarters(), "WEBP", lossless=True, xmp=odd_pictures.XMP),
        encoded(quarters(), "AVIF", xmp=odd_pictures.XMP),
    ]
    for content in contents:
        with Image.open(BytesIO(content)) as image:
            assert image.getexif().get(0x0112) == 3, "Pillow takes it for one"
        assert_colours(corners(shown(content)), CORNERS, tolerance=16)
    exif = Image.Exif()
    exif[0x0112] = 6
    both = encoded(quarters(), "JPEG", quality=95, xmp=odd_pictures.XMP, exif=exif)
    assert_colours(corners(shown(both)), (CORNERS[2], CORNERS[0], CORNERS[3], CORNERS[1]), tolerance=8)


# --- JPEGs that are cut, huge, or hold more than a picture


def test_a_jpeg_without_its_end_marker_is_whole_and_flagged() -> None:
    whole, cut = (decode(content, Limits(384)) for content in (jpeg((800, 600)), jpeg((800, 600))[:-2]))
    assert (whole.is_cut, cut.is_cut) == (False, True)
    assert np.array_equal(np.asarray(whole.image), np.asarray(cut.image))


def test_a_progressive_jpeg_that_lacks_its_last_scan_shows_all() -> None:
    cut = decode(jpeg((800, 600), progressive=True)[:-40], Limits(384))
    assert cut.is_cut
    assert_colours(corners(cut.image), CORNERS, tolerance=8)


@pytest.mark.parametrize("side_px", [96, 800])
def test_half_a_jpeg_is_shown_as_far_as_it_goes(side_px: int) -> None:
    content = jpeg((800, 600))
    cut = decode(content[: len(content) // 2], Limits(side_px))
    assert cut.is_cut
    found = corners(cut.image)
    assert nearest(found[:2]) == [*CORNERS[:2]]
    assert_colours(found[2:], [(128, 128, 128)] * 2, tolerance=2)


@pytest.mark.parametrize("content", [jpeg()[:-2], jpeg((800, 600))[:5000], jpeg((800, 600), progressive=True)[:-40]])
def test_what_is_cut_is_refused_by_option(content: bytes) -> None:
    with pytest.raises(OSError, match="truncated"):
        decode(content, Limits(384, keeps_cut=False))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_any_pixels_is_an_error(progressive: bool) -> None:
    with pytest.raises(OSError, match="truncated"):
        shown(odd_pictures.lossy_header(800, 600, progressive=progressive))


def test_a_damaged_jpeg_is_shown_and_flagged() -> None:
    content = bytearray(jpeg((800, 600)))
    middle = len(content) // 2
    content[middle : middle + 4] = b"\xff\xc0\0\x0b"  # a marker where none may be
    cut = decode(bytes(content), Limits(384))
    assert cut.is_cut
    assert nearest(corners(cut.image)[:2]) == [*CORNERS[:2]]


DECODE_AND_MEASURE = (
    "import sys; from pathlib import Path; from vec_pipeline.pictures import Limits, decode\n"
    "image = decode(Path(sys.argv[1]).read_bytes(), Limits(384)).image\n"
    "print(image.size, [image.getpixel((x, y)) for y in (72, 216) for x in (96, 288)])"
)


def test_a_jpeg_of_200_megapixels_is_decoded_at_reduced_scale(tmp_path: Path) -> None:
    image = Image.new("L", (16320, 12240), 255)
    image.paste(0, (0, 0, 8160, 6120))
    image.save(tmp_path / "phone.jpg", quality=30)
    del image
    command = [sys.executable, "-c", DECODE_AND_MEASURE + PRINT_PEAK_MB, str(tmp_path / "phone.jpg")]
    run = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    result, megabytes = run.stdout.splitlines()
    assert result == f"(384, 288) {[BLACK, WHITE, WHITE, WHITE]}"
    assert int(megabytes) < 150


@pytest.mark.parametrize("options", [{"progressive": True}, {"scans": 3}], ids=str)
def test_a_huge_jpeg_that_is_not_decoded_by_rows_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(TooManyPixels, match=r"^200 megapixels are more than max_megapixels \(179\): raise it if there"):
        shown(odd_pictures.lossy_header(16320, 12240, **options))


@pytest.mark.parametrize(
    "make",
    [
        lambda: encoded(Image.new("L", (1500, 1000)), "PNG"),
        lambda: encoded(Image.new("L", (1500, 1000)), "TIFF"),
        lambda: encoded(Image.new("RGB", (1500, 1000)), "WEBP"),
        lambda: encoded(Image.new("RGB", (1500, 1000)), "JPEG2000"),
        lambda: odd_pictures.psd_header(1500, 1000),
    ],
    ids=["PNG", "TIFF", "WEBP", "JPEG 2000", "PSD"],
)
def test_max_megapixels_is_an_option(make: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    content = make()
    stage = OpenImage(max_megapixels=1)
    stage.load()
    with pytest.raises(TooManyPixels, match=r"^2 megapixels are more than max_megapixels \(1\)"):
        stage.opened(content, Limits(384, stage.max_megapixels))
    assert "max_megapixels" in OpenImage.speed_options, "it decides which rows there are, not what is in them"


def test_max_megapixels_may_be_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    content = encoded(Image.new("1", (20_000, 10_000), 1), "TIFF", compression="group4")
    with pytest.raises(TooManyPixels):
        shown(content)
    OpenImage(max_megapixels=200).load()
    assert shown(content, megapixels=200).getpixel((9, 9)) == WHITE


@pytest.mark.parametrize("make", [odd_pictures.gain_map_jpeg, odd_pictures.motion_photo])
def test_a_photograph_with_a_gain_map_or_a_video_is_one_picture(make: Callable[[], bytes]) -> None:
    picture = decode(make(), Limits(384))
    assert_colours(corners(picture.image), CORNERS, tolerance=6)
    assert (picture.has_pages, picture.is_cut) == (False, False)


# --- much text


@pytest.mark.parametrize(
    "make",
    [
        lambda: odd_pictures.png_with_text(compressed=True),
        lambda: odd_pictures.png_with_text(compressed=True, after=True),
        lambda: odd_pictures.png_with_text(compressed=False),
    ],
    ids=["compressed", "behind the pixels", "plain"],
)
def test_a_png_with_much_text_is_shown(make: Callable[[], bytes]) -> None:
    picture = decode(make(), Limits(384))
    assert_colours(corners(picture.image), CORNERS)
    assert not picture.is_cut


def test_a_png_with_a_large_profile_keeps_its_orientation() -> None:
    assert_colours(corners(shown(odd_pictures.png_with_profile())), CORNERS[::-1])


# --- pages


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "AVIF", "HEIF", "TIFF"])
def test_the_first_of_several_pages_is_shown_and_it_is_said(kind: str) -> None:
    single, several = (
        decode(content, Limits(384)) for content in (encoded(quarters(), kind), odd_pictures.animation(kind))
    )
    assert (single.has_pages, several.has_pages) == (False, True)
    assert_colours(corners(several.image), CORNERS, tolerance=60)


@pytest.mark.parametrize(("subfile_type", "has_pages"), [(0, True), (1, False), (2, True), (4, False)])
def test_thumbnails_and_masks_in_a_tiff_are_no_pages(subfile_type: int, has_pages: bool) -> None:
    for number in (1, 3):
        assert decode(odd_pictures.tiff_with(subfile_type, number), Limits(384)).has_pages is has_pages


def test_a_tiff_whose_pages_lead_in_a_circle_ends() -> None:
    content = bytearray(odd_pictures.tiff_with(1))
    first = int.from_bytes(content[4:8], "little")
    content[-4:] = first.to_bytes(4, "little")
    assert not decode(bytes(content), Limits(384)).has_pages


def test_an_mpo_is_one_picture() -> None:
    """Its others are the same scene: the other eye, a preview, a gain map."""
    assert not decode(odd_pictures.animation("MPO"), Limits(384)).has_pages


# --- formats


@pytest.mark.parametrize("kind", ["JPEG2000", "TGA", "PPM", "PCX", "SGI", "DDS", "QOI"])
def test_formats_that_pillow_reads(kind: str) -> None:
    content = encoded(quarters(), kind)
    assert_colours(corners(shown(content)), CORNERS)
    if kind != "TGA":
        assert kind_of(content[:HEAD_BYTES]) == kind


@pytest.mark.parametrize("kind", ["ICO", "ICNS"])
def test_the_largest_icon_is_shown(kind: str) -> None:
    content = encoded(quarters((256, 256)), kind)
    image = shown(content)
    assert max(image.size) >= 256
    assert_colours(corners(image), CORNERS)
    assert kind_of(content[:HEAD_BYTES]) == kind


@pytest.mark.parametrize("bits", [4, 24, 32])
@pytest.mark.parametrize("kind", [1, 2], ids=["ICO", "CUR"])
def test_the_mask_of_an_icon_is_transparent(bits: int, kind: int) -> None:
    content = odd_pictures.icon(odd_pictures.icon_bitmap(bits, alpha=0), kind=kind)
    assert kind_of(content[:HEAD_BYTES]) == "ICO"
    assert_colours(corners(shown(content)), [WHITE, CORNERS[1], WHITE, CORNERS[3]])


def test_the_alpha_of_an_icon_comes_before_its_mask() -> None:
    assert_colours(corners(shown(odd_pictures.icon(odd_pictures.icon_bitmap(32)))), CORNERS)


@pytest.mark.parametrize("lying_bytes", [0, 99, 1 << 31])
def test_what_an_icon_says_of_the_length_of_its_pictures_is_ignored(lying_bytes: int) -> None:
    content = odd_pictures.icon(odd_pictures.icon_bitmap(4), lying_bytes=lying_bytes)
    assert_colours(corners(shown(content)), [WHITE, CORNERS[1], WHITE, CORNERS[3]])


def test_the_largest_picture_of_an_icon_is_shown_and_the_next_where_it_is_damaged() -> None:
    small = encoded(Image.new("RGB", (16, 16), CORNERS[2]), "PNG")
    pictures, sizes = (small, odd_pictures.icon_bitmap(24)), ((16, 16), (96, 64))
    assert shown(odd_pictures.icon(*pictures, sizes=sizes)).size == (96, 64)
    assert shown(odd_pictures.icon(small, b"\x28" + bytes(60), sizes=sizes)).size == (16, 16)
    for content, message in ((odd_pictures.icon(b""), "not a bitmap"), (odd_pictures.icon(small)[:12], "without")):
        with pytest.raises(OSError, match=message):
            shown(content)


def test_an_icon_that_is_cut_is_shown_without_its_mask_or_flagged() -> None:
    content = odd_pictures.icon(odd_pictures.icon_bitmap(24))
    mask = len(content) - 64 * 12
    without = decode(content[:mask], Limits(384))
    assert_colours(corners(without.image), CORNERS)
    assert not without.is_cut
    assert decode(content[: mask // 2], Limits(384)).is_cut
    with pytest.raises(OSError, match="truncated"):
        decode(content[: mask // 2], Limits(384, keeps_cut=False))


TGA_PALETTES = {
    15: odd_pictures.colours_of_16_bits(quarters((2, 2))),
    16: odd_pictures.colours_of_16_bits(quarters((2, 2))),
    24: bytes(level for colour in CORNERS for level in colour[::-1]),
    32: bytes(level for colour in CORNERS for level in (*colour[::-1], 9)),
}


@pytest.mark.parametrize("palette_bits", TGA_PALETTES)
@pytest.mark.parametrize("first", [0, 7])
def test_a_tga_of_a_palette(palette_bits: int, first: int) -> None:
    pixels = (odd_pictures.indexes() + first)[::-1].tobytes()
    palette = TGA_PALETTES[palette_bits]
    content = odd_pictures.tga(pixels, 1, 8, palette=palette, palette_bits=palette_bits, first=first)
    assert_colours(corners(shown(content)), CORNERS, tolerance=1)
    assert not kind_of(content[:HEAD_BYTES]), "it has no signature"


def test_a_tga_of_16_bits() -> None:
    content = odd_pictures.tga(odd_pictures.colours_of_16_bits(quarters()), 2, 16, descriptor=0x21)
    assert_colours(corners(shown(content)), CORNERS, tolerance=1)


@pytest.mark.parametrize(
    ("descriptor", "expected"),
    [
        (0x20, CORNERS),
        (0x00, (CORNERS[2], CORNERS[3], CORNERS[0], CORNERS[1])),
        (0x30, (CORNERS[1], CORNERS[0], CORNERS[3], CORNERS[2])),
        (0x10, CORNERS[::-1]),
    ],
)
@pytest.mark.parametrize("kind", [2, 10])
def test_the_directions_of_a_tga(descriptor: int, expected: tuple[Colour, ...], kind: int) -> None:
    pixels = np.asarray(quarters())[:, :, ::-1].tobytes()
    if kind == 10:  # runs of 128 pixels go on in the next row of 96
        pixels = b"".join(b"\x7f" + pixels[at : at + 384] for at in range(0, len(pixels), 384))
    assert_colours(corners(shown(odd_pictures.tga(pixels, kind, 24, descriptor=descriptor))), expected)


@pytest.mark.parametrize(
    ("kind_of_alpha", "alpha", "left"), [(3, 128, True), (2, 0, False), (0, 128, False), (3, 255, False)]
)
def test_the_alpha_of_a_tga(kind_of_alpha: int, alpha: int, left: bool) -> None:
    expected = [tuple((255 + level) // 2 for level in colour) for colour in CORNERS] if left else CORNERS
    content = odd_pictures.tga_with_extension(kind_of_alpha, alpha)
    assert_colours(corners(shown(content)), expected, tolerance=1)  # type: ignore[arg-type]


def test_a_tga_that_is_cut_is_shown_as_far_as_it_goes() -> None:
    content = odd_pictures.tga(np.asarray(quarters())[:, :, ::-1].tobytes(), 2, 24, descriptor=0x20)
    cut = decode(content[: len(content) * 3 // 5], Limits(384))
    assert cut.is_cut
    assert_colours(corners(cut.image), [*CORNERS[:2], BLACK, BLACK])
    for end, limits in ((-9, Limits(384, keeps_cut=False)), (24, Limits(384))):
        with pytest.raises(OSError, match="truncated"):
            decode(content[:end], limits)


def test_a_tga_of_grey_and_alpha() -> None:
    pixels = np.stack([odd_pictures.greys(), np.full((64, 96), 255, np.uint8)], axis=2)
    pixels[:, :48, 1] = 0
    content = odd_pictures.tga(pixels.tobytes(), 3, 16, descriptor=0x28)
    assert_colours(corners(shown(content)), [WHITE, as_greys()[1], WHITE, as_greys()[3]])


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (odd_pictures.sun_raster, "SUN"),
        (lambda: odd_pictures.dcx(1), "DCX"),
        (lambda: odd_pictures.pam(np.asarray(quarters()), 255), "PAM"),
        (lambda: odd_pictures.pam((deep_colours(257) // 2).astype(">u2"), 32767), "PAM"),
        (lambda: odd_pictures.pam((np.asarray(quarters(), "u2") * 100 // 255).astype("u1"), 100), "PAM"),
        (lambda: odd_pictures.pfm(np.asarray(quarters()) / 255), "PAM"),
    ],
    ids=["Sun raster", "DCX", "PAM", "PAM of 15 bits", "PAM of 0 to 100", "PFM of colours"],
)
def test_other_formats_that_viewers_open(make: Callable[[], bytes], kind: str) -> None:
    content = make()
    assert kind_of(content[:HEAD_BYTES]) == kind
    picture = decode(content, Limits(384))
    assert_colours(corners(picture.image), CORNERS, tolerance=1)
    assert (picture.has_pages, picture.is_cut) == (False, False)


def test_pages_of_a_dcx() -> None:
    assert decode(odd_pictures.dcx(2), Limits(384)).has_pages


def test_a_pam_with_alpha_and_one_that_is_cut() -> None:
    values = np.asarray(quarters().convert("RGBA")).copy()
    values[:, :48, 3] = 0
    content = odd_pictures.pam(values, 255)
    assert_colours(corners(shown(content)), [WHITE, CORNERS[1], WHITE, CORNERS[3]])
    cut = decode(content[: len(content) * 3 // 5], Limits(384))
    assert cut.is_cut
    assert_colours(corners(cut.image)[:2], [WHITE, CORNERS[1]])
    with pytest.raises(OSError, match="truncated"):
        decode(content[:-9], Limits(384, keeps_cut=False))


def test_a_photo_cd_is_shown() -> None:
    found = [colour[1] for colour in corners(shown(odd_pictures.photo_cd()))]
    assert found == sorted(set(found))


def test_the_memory_for_floats_is_limited() -> None:
    pytest.importorskip(IMAGECODECS)
    zeros = np.zeros((60, 100, 3))
    for content, megapixels in ((odd_pictures.pfm(zeros), 0.009), (odd_pictures.radiance(zeros), 0.012)):
        assert shown(content, megapixels=megapixels).size == (100, 60)
        with pytest.raises(TooManyPixels):
            shown(content, megapixels=megapixels - 0.001)


def test_fits() -> None:
    assert_colours(corners(shown(odd_pictures.fits())), as_greys())
    with pytest.raises(OSError, match="a compressed FITS file"):
        shown(odd_pictures.fits(is_compressed=True))


def test_light_is_exposed() -> None:
    pytest.importorskip(IMAGECODECS)
    levels = np.exp2(np.kron([[-6.0, -3.0], [0.0, 3.0]], np.ones((32, 48))))
    for factor in (1 / 64, 1, 256):
        light = (levels * factor)[:, :, None].repeat(3, axis=2)
        content = odd_pictures.radiance(light)
        assert kind_of(content[:HEAD_BYTES]) == "HDR"
        found = [colour[0] for colour in corners(shown(content))]
        assert found == sorted(found)
        assert found[0] < 60 < found[1] < 120 < found[2] < 175 < 250 < found[3]
    bluish = light * np.array([0, 0.5, 1])
    dark, *_ = corners(shown(odd_pictures.radiance(bluish)))
    assert dark[0] < dark[1] < dark[2]


def test_a_radiance_file_without_light_or_pixels() -> None:
    pytest.importorskip(IMAGECODECS)
    assert_colours(corners(shown(odd_pictures.radiance(np.zeros((64, 96, 3))))), [BLACK] * 4)
    with pytest.raises(OSError, match="imagecodecs can read"):
        shown(odd_pictures.radiance(np.ones((64, 96, 3)))[:200])
    with pytest.raises(OSError, match="without a size"):
        shown(b"#?RADIANCE\n" + bytes(99))


def test_a_gif_is_transparent_where_its_first_frame_does_not_reach() -> None:
    assert_colours(corners(shown(odd_pictures.gif_of_a_part())), [CORNERS[0], WHITE, CORNERS[0], WHITE])


@pytest.mark.parametrize(
    "content",
    [
        b"P1\n2 2\n1 0\n0 1\n",
        b"P2\n# a comment\n2 2\n255\n0 255\n255 0\n",
        b"P4\n2 2\n\x80\x40",
        b"P5\n2 2\n255\n\0\xff\xff\0",
        b"#define a_width 2\n#define a_height 2\nstatic char a_bits[] = {\n 0x01, 0x02 };\n",
        b'/* XPM */\nstatic char *a[] = {\n"2 2 2 1",\n"x c #000000",\n". c #ffffff",\n"x.",\n".x"};\n',
    ],
    ids=["PBM", "PGM", "raw PBM", "raw PGM", "XBM", "XPM"],
)
def test_small_old_formats(content: bytes) -> None:
    image = shown(content)
    assert [image.getpixel((x, y)) for y in range(2) for x in range(2)] == [BLACK, WHITE, WHITE, BLACK]


@pytest.mark.parametrize("maximum", [1023, 65535])
def test_a_deep_ppm(maximum: int) -> None:
    colours = (np.asarray(quarters(), np.float64) / 255 * maximum).astype(">u2")
    assert_colours(corners(shown(b"P6\n96 64\n%d\n" % maximum + colours.tobytes())), CORNERS)


@pytest.mark.parametrize(
    "fields",
    [
        ((0, 8), (16, 8), (24, 8), 32),
        ((21, 11), (10, 11), (0, 10), 32),
        ((22, 10), (0, 2), (12, 10), 32),
        ((0, 2), (2, 3), (5, 1), 16),
        ((8, 4), (4, 4), (0, 4), 16),
    ],
    ids=str,
)
def test_a_bmp_of_any_masks(fields: tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]) -> None:
    content = odd_pictures.bmp_of_masks(*fields)
    with pytest.raises(OSError, match="Unsupported BMP bitfields"), Image.open(BytesIO(content)) as image:
        image.load()
    assert_colours(corners(shown(content)), CORNERS, tolerance=1)
    cut = decode(content[: len(content) * 3 // 5], Limits(384))
    assert cut.is_cut
    assert_colours(corners(cut.image), [BLACK, BLACK, CORNERS[2], CORNERS[3]], tolerance=1)


def test_a_bmp_of_masks_with_alpha_from_the_top() -> None:
    left, right = 0xF00F, 0x0F00  # opaque red, transparent green
    pixels = np.array([[left] * 48 + [right] * 48] * 32 + [[right] * 96] * 32, "<u2").tobytes()
    content = odd_pictures.bmp((0xF000, 0x0F00, 0x00F0, 0x000F), 16, pixels, compression=6, height=-64)
    assert_colours(corners(shown(content)), [CORNERS[0], WHITE, WHITE, WHITE])


@pytest.mark.parametrize(
    "make",
    [
        lambda: odd_pictures.bmp_of_palette(2),
        lambda: odd_pictures.bmp_of_palette(4, header_bytes=12),
        lambda: odd_pictures.bmp_of_palette(8, header_bytes=16),
        lambda: odd_pictures.bmp_of_palette(2, header_bytes=64),
        lambda: odd_pictures.bmp_of_palette(8, used=300, colours=[*CORNERS] * 75),
        lambda: odd_pictures.bmp_of_palette(8, used=0x12345678),
        lambda: odd_pictures.bmp_file(odd_pictures.bitmap(odd_pictures.packed(odd_pictures.indexes(), 4), 4, used=4)),
        lambda: odd_pictures.bmp_file(
            odd_pictures.bitmap(odd_pictures.packed(odd_pictures.indexes(), 8), 8, used=4), 96 * 64 + 16
        ),
        lambda: odd_pictures.bmp_file(odd_pictures.bitmap(odd_pictures.packed(odd_pictures.indexes(), 8), 8), 6144, 7),
    ],
    ids=[
        *("2 bits", "OS/2, 12 bytes", "OS/2, 16 bytes", "OS/2, 64 bytes", "a long palette", "a huge palette"),
        *("no start of the pixels", "a start that leaves the palette out", "reserved"),
    ],
)
def test_a_bmp_of_a_palette(make: Callable[[], bytes]) -> None:
    content = make()
    assert kind_of(content[:HEAD_BYTES]) == "BMP"
    image = shown(content)
    assert_colours(corners(image), CORNERS)
    assert [image.getpixel((x, 63)) for x in (0, 95)] == [*CORNERS[2:]]
    cut = decode(content[:-1000], Limits(384))
    assert cut.is_cut
    assert [cut.image.getpixel((x, 63)) for x in (0, 95)] == [*CORNERS[2:]]


def test_a_bmp_of_one_bit_has_its_colours() -> None:
    expected = [CORNERS[0], CORNERS[0], CORNERS[1], CORNERS[1]]
    assert_colours(corners(shown(odd_pictures.bmp_of_palette(1))), expected)


RUNS = [(8, 1, 40), (4, 2, 40), (24, 4, 64)]  # bits, compression, bytes of the header


@pytest.mark.parametrize(("bits", "compression", "header_bytes"), RUNS)
@pytest.mark.parametrize("options", [{}, {"absolute": True}, {"left_out": True}], ids=str)
def test_a_bmp_in_runs(bits: int, compression: int, header_bytes: int, options: dict[str, bool]) -> None:
    content = odd_pictures.runs(bits, **options)
    options_of_header: dict[str, int] = {"compression": compression, "header_bytes": header_bytes}
    whole = odd_pictures.bmp_file(odd_pictures.bitmap(content, bits, **options_of_header), len(content))
    expected = [CORNERS[0], WHITE if options.get("left_out") else CORNERS[1], CORNERS[2], CORNERS[3]]
    picture = decode(whole, Limits(384))
    assert_colours(corners(picture.image), expected)
    assert not picture.is_cut
    cut = decode(whole[: -len(content) * 3 // 5], Limits(384))
    assert cut.is_cut
    assert_colours(corners(cut.image), [WHITE, WHITE, CORNERS[2], CORNERS[3]])
    with pytest.raises(OSError, match="truncated"):
        decode(whole[:-9], Limits(384, keeps_cut=False))
    with pytest.raises(OSError, match="truncated"):
        shown(whole[: -len(content)])


def test_the_largest_run_stays_in_its_row() -> None:
    """A run that is longer than its row is cut off there."""
    content = b"\xff\x01\0\0" * 63 + b"\xff\0\0\x01"
    image = shown(odd_pictures.bmp_file(odd_pictures.bitmap(content, 8, compression=1, used=4)))
    assert image.getpixel((95, 9)) == CORNERS[1]
    assert image.getpixel((0, 0)) == CORNERS[0]


@pytest.mark.parametrize(("alpha", "is_used"), [(0, False), (128, True), (255, True)])
def test_an_alpha_of_32_bits_counts_unless_it_is_0_everywhere(alpha: int, is_used: bool) -> None:
    colours = quarters().convert("RGBA")
    colours.putalpha(alpha)
    tail = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    pixels = np.asarray(colours)[::-1, :, [2, 1, 0, 3]].tobytes()
    for compression in (0, 3):
        content = odd_pictures.bitmap(pixels, 32, header_bytes=124, compression=compression, tail=tail)
        expected = [tuple(255 - (255 - level) * alpha // 255 for level in colour) for colour in CORNERS]
        found = corners(shown(odd_pictures.bmp_file(content)))
        assert_colours(found, expected if is_used else CORNERS, tolerance=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("header_bytes", [40, 64])
def test_32_bits_of_an_old_header_have_no_alpha(header_bytes: int) -> None:
    colours = quarters().convert("RGBA")
    colours.putalpha(100)
    pixels = np.asarray(colours)[::-1, :, [2, 1, 0, 3]].tobytes()
    content = odd_pictures.bitmap(pixels, 32, header_bytes=header_bytes, tail=b"\xff" * 24)
    assert_colours(corners(shown(odd_pictures.bmp_file(content))), CORNERS)


def test_the_profile_in_a_bmp_counts() -> None:
    profile = odd_pictures.exchanging_profile()
    pixels = np.asarray(quarters())[::-1, :, ::-1].tobytes()
    tail = bytes(16) + struct.pack("<I", 0x4D424544) + bytes(52) + struct.pack("<II", 124 + len(pixels), len(profile))
    content = odd_pictures.bmp_file(odd_pictures.bitmap(pixels + profile, 24, header_bytes=124, tail=tail))
    assert nearest(corners(shown(content))) == [CORNERS[1], CORNERS[0], CORNERS[2], CORNERS[3]]


@pytest.mark.parametrize(("bits", "kept"), [(1, 3), (24, 288), (32, 300)])
def test_a_bmp_whose_last_row_is_not_filled_up_is_whole(bits: int, kept: int) -> None:
    size = (75, 2) if bits == 32 else (25, 2) if bits == 1 else (95, 2)
    row_bytes = (size[0] * bits + 31) // 32 * 4
    pixels = bytes(row_bytes) + b"\xff" * row_bytes
    padding = row_bytes - (size[0] * bits + 7) // 8
    content = odd_pictures.bmp_file(odd_pictures.bitmap(pixels, bits, size=size), len(pixels))
    picture = decode(content[: len(content) - padding], Limits(384))
    assert not picture.is_cut
    assert decode(content[: len(content) - padding - 1], Limits(384)).is_cut


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (odd_pictures.bmp_file(odd_pictures.bitmap(bytes(9999), 7)), "not a bitmap: 96 x 64 pixels of 7 bits"),
        (odd_pictures.bmp_file(odd_pictures.bitmap(bytes(9999), 8, size=(-3, 5))), "not a bitmap: -3 x 5"),
        (odd_pictures.bmp_file(odd_pictures.bitmap(bytes(9999), 1, compression=3, header_bytes=64)), "compression 3"),
        (odd_pictures.bmp_file(odd_pictures.bitmap(bytes(9999), 16, compression=11)), "compression 11"),
    ],
)
def test_what_a_bmp_may_not_be(content: bytes, message: str) -> None:
    with pytest.raises(OSError, match=message):
        shown(content)


@pytest.mark.parametrize(("kind", "compression"), [("JPEG", 4), ("PNG", 5)])
def test_a_bmp_that_holds_another_file(kind: str, compression: int) -> None:
    content = odd_pictures.bmp((), 0, encoded(quarters(), kind), compression=compression)
    assert_colours(corners(shown(content)), CORNERS, tolerance=60)


def test_a_png_whose_animation_is_damaged_shows_its_picture() -> None:
    frame = struct.pack(">IIIIIHHBB", 7, 96, 64, 0, 0, 1, 10, 0, 0)  # the first has the number 0
    content = png(deep_colours(257), (b"acTL", struct.pack(">II", 2, 0)), (b"fcTL", frame))
    with pytest.raises(OSError, match="identify"), Image.open(BytesIO(content)) as image:
        image.load()
    picture = decode(content, Limits(384))
    assert_colours(corners(picture.image), CORNERS)
    assert (picture.has_pages, picture.is_cut) == (False, False)


@pytest.mark.parametrize("brand", [b"mif3", b"mif2", b"miaf"])
def test_a_heif_of_another_first_brand_is_shown(brand: bytes) -> None:
    for kind in ("HEIF", "AVIF"):
        content = odd_pictures.with_brand(encoded(quarters(), kind), brand)
        if kind == "AVIF":
            content = content.replace(b"avifmif1", b"avifavif", 1)
        assert kind_of(content[:HEAD_BYTES]) == "HEIF"
        assert_colours(corners(shown(content)), CORNERS, tolerance=16)


def test_a_heif_of_a_brand_that_only_libheif_knows_is_shown() -> None:
    content = encoded(quarters(), "HEIF").replace(b"heic\0\0\0\0mif1heic", b"mif3\0\0\0\0mif2mif2", 1)
    assert_colours(corners(shown(content)), CORNERS, tolerance=8)


def test_a_heif_of_a_coding_that_the_libraries_lack_is_named() -> None:
    content = encoded(quarters(), "HEIF").replace(b"hvc1", b"jpeg")
    with pytest.raises(OSError, match="HEIF"):
        shown(content)


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("side_px", [48, 384, 1200])
def test_a_huge_heic_is_decoded_in_bands(orientation: int, side_px: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heif_module, "BAND_PIXELS", 100_000)
    content = odd_pictures.heic(orientation)
    image, whole = shown(content, side_px, megapixels=0.7), shown(content, side_px)
    assert image.size == whole.size
    assert np.abs(np.asarray(image, np.int16) - np.asarray(whole, np.int16)).mean() < 2
    with pytest.raises(TooManyPixels, match="1 megapixels are more"):
        shown(content, side_px, megapixels=0.5)


def test_the_alpha_and_the_profile_of_a_huge_heic_count() -> None:
    content = odd_pictures.heic(alpha=True)
    assert_colours(corners(shown(content, megapixels=0.8)), [*CORNERS[:2], WHITE, WHITE], tolerance=8)
    with pytest.raises(TooManyPixels):
        shown(content, megapixels=0.7)
    content = encoded(quarters((1200, 800)), "HEIF", icc_profile=odd_pictures.exchanging_profile())
    assert nearest(corners(shown(content, megapixels=0.7))[:2]) == [CORNERS[1], CORNERS[0]]


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_a_huge_heif_that_cannot_be_decoded_is_called_huge(kind: str) -> None:
    content = encoded(quarters((1200, 800)), kind)
    with pytest.raises(TooManyPixels):
        shown(content[: len(content) * 2 // 3] if kind == "HEIF" else content, megapixels=0.7)


# --- formats that need a library


def test_a_tiff_of_a_compression_that_pillow_lacks() -> None:
    tifffile = pytest.importorskip(TIFFFILE)
    pytest.importorskip(IMAGECODECS)
    buffer = BytesIO()
    tifffile.imwrite(buffer, np.asarray(quarters()), compression="jpegxl", photometric="rgb")
    with pytest.raises(OSError, match=r"decoder|identify"), Image.open(buffer) as image:
        image.load()
    assert_colours(corners(shown(buffer.getvalue())), CORNERS)
    with pytest.raises(OSError):
        shown(buffer.getvalue()[:-100])


@pytest.mark.parametrize("compression", ["lzw", "zlib"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_a_compressed_tiff_with_a_damaged_strip_shows_the_others(compression: str, planes: str) -> None:
    tifffile = pytest.importorskip(TIFFFILE)
    pytest.importorskip(IMAGECODECS)
    buffer, options = BytesIO(), {"compression": compression, "photometric": "rgb", "rowsperstrip": 16}
    pixels = np.asarray(quarters()) if planes == "contig" else np.asarray(quarters()).transpose(2, 0, 1)
    tifffile.imwrite(buffer, pixels, planarconfig=planes, **options)
    with tifffile.TiffFile(BytesIO(buffer.getvalue())) as file:
        start, length = file.pages[0].dataoffsets[-1], file.pages[0].databytecounts[-1]
    content = bytearray(buffer.getvalue())
    content[start : start + length] = b"\xff" * length
    picture = decode(bytes(content), Limits(384))
    assert picture.is_cut
    assert_colours(corners(picture.image)[:2], CORNERS[:2])
    assert picture.image.getpixel((9, 40)) == CORNERS[2]
    with pytest.raises(OSError):
        decode(bytes(content), Limits(384, keeps_cut=False))


@pytest.mark.parametrize(("compression", "kind"), [(50002, "JXL"), (34712, "JPEG2000")])
def test_a_strip_that_is_larger_than_its_page_is_not_decoded(compression: int, kind: str) -> None:
    pytest.importorskip(TIFFFILE)
    pytest.importorskip(IMAGECODECS)
    for size, is_shown in ((odd_pictures.SIZE, True), ((384, 256), False)):
        strip = jpeg_xl(np.asarray(quarters(size))) if kind == "JXL" else encoded(quarters(size), kind)
        tags = {**odd_pictures.array_tags(np.asarray(quarters()), 2), 259: (3, [compression])}
        content = odd_pictures.tiff(odd_pictures.Page(tags, strip))
        if is_shown:
            assert_colours(corners(shown(content)), CORNERS)
        else:
            with pytest.raises(OSError):
                shown(content)


def test_ycbcr_in_a_tiff_without_compression() -> None:
    values = np.asarray(quarters().convert("YCbCr"))
    content = array_tiff(values, 6, t530=(3, [1, 1]))
    picture = decode(content, Limits(384))
    assert_colours(corners(picture.image), CORNERS, tolerance=3)
    assert not picture.is_cut
    units = np.concatenate([  # of 2 x 2 pixels that share their colour
        values[:, :, 0].reshape(32, 2, 48, 2).transpose(0, 2, 1, 3).reshape(32, 48, 4), values[::2, ::2, 1:]
    ], axis=2)  # fmt: skip
    tags = {**odd_pictures.array_tags(values, 6), 530: (3, [2, 2])}
    subsampled = odd_pictures.tiff(odd_pictures.Page(tags, units.tobytes()))
    assert_colours(corners(shown(subsampled)), CORNERS, tolerance=3)


def test_ycbcr_of_coefficients_that_libtiff_refuses() -> None:
    pytest.importorskip(TIFFFILE)
    values = np.asarray(quarters().convert("YCbCr"))
    coefficients = (5, struct.pack("<6I", 1, 0, 1, 0, 1, 0))
    assert_colours(corners(shown(array_tiff(values, 6, t529=coefficients, t530=(3, [1, 1])))), CORNERS, tolerance=3)


@pytest.mark.parametrize("dtype", ["u1", "<u2"])
def test_inks_with_an_alpha_and_lab_of_16_bits_in_a_tiff(dtype: str) -> None:
    pytest.importorskip(TIFFFILE)
    factor = 257 if dtype == "<u2" else 1
    inks = np.asarray(odd_pictures.inks()).astype(np.uint16)
    with_alpha = (np.concatenate([inks, np.full((64, 96, 1), 255)], axis=2) * factor).astype(dtype)
    expected = [(0, 255, 255), (255, 0, 255), (255, 255, 0), WHITE]
    assert_colours(corners(shown(array_tiff(with_alpha, 5, t338=(3, [2])))), expected)
    values = (np.asarray(quarters().convert("LAB")).astype(np.uint16) * (256 if dtype == "<u2" else 1)).astype(dtype)
    assert_colours(corners(shown(array_tiff(values, 8))), CORNERS, tolerance=24)


def test_dark_colours_in_floats_stay_dark_and_a_few_below_0_do_not_matter() -> None:
    pytest.importorskip(TIFFFILE)
    values = np.asarray(quarters(), "<f4") / 255 * 0.3
    expected = [tuple(round(level * 0.3) for level in colour) for colour in CORNERS]
    assert_colours(corners(shown(array_tiff(values))), expected, tolerance=1)  # type: ignore[arg-type]
    values = (np.asarray(quarters(), "<f4") / 255).copy()
    values[1::8] = -0.4
    assert_colours(corners(shown(array_tiff(values))), CORNERS)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_a_tiff_that_is_cut_is_refused_by_option_whoever_reads_it(compression: str | None) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    content = encoded(noise, "TIFF", compression=compression)
    start, end = 200, len(content) // 2
    directory = int.from_bytes(content[4:8], "little")
    content = content[:start] + content[end:] if directory > end else content[:end]
    try:
        picture = decode(content, Limits(384))
    except OSError:
        pass
    else:
        assert picture.is_cut
    with pytest.raises(OSError):
        decode(content, Limits(384, keeps_cut=False))


@pytest.mark.parametrize(
    "make",
    [
        jpeg_xl,
        lambda: jpeg_xl(usecontainer=True),
        lambda: jpeg_xl(deep_colours(257)),
        lambda: jpeg_xl(deep_colours(16), bitspersample=12),
        lambda: jpeg_xl(np.asarray(quarters(), np.float32) / 255),
    ],
    ids=["bare", "in a container", "16 bits", "12 bits", "floats"],
)
def test_jpeg_xl(make: Callable[[], bytes]) -> None:
    pytest.importorskip(IMAGECODECS)
    content = make()
    picture = decode(content, Limits(384))
    assert picture.image.size == (96, 64)
    assert_colours(corners(picture.image), CORNERS, tolerance=1)
    assert not picture.has_pages
    assert kind_of(content[:HEAD_BYTES]) == "JXL"


def test_jpeg_xl_with_alpha_and_grey() -> None:
    pytest.importorskip(IMAGECODECS)
    with_alpha = np.asarray(quarters().convert("RGBA")).copy()
    with_alpha[:, :48, 3] = 0
    assert_colours(corners(shown(jpeg_xl(with_alpha))), [WHITE, CORNERS[1], WHITE, CORNERS[3]])
    assert_colours(corners(shown(jpeg_xl(odd_pictures.greys()))), as_greys())


def test_an_animation_of_jpeg_xl_shows_its_first_frame() -> None:
    pytest.importorskip(IMAGECODECS)
    frames = np.stack([np.asarray(quarters()), np.zeros((64, 96, 3), np.uint8)])
    picture = decode(jpeg_xl(frames), Limits(384))
    assert_colours(corners(picture.image), CORNERS)
    assert picture.has_pages


@pytest.mark.parametrize(
    "size", [(8, 8), (256, 256), (96, 64), (1, 1), (513, 8192), (3000, 2000), (70_000, 3), (1920, 1080)]
)
def test_the_size_in_the_header_of_jpeg_xl(size: tuple[int, int]) -> None:
    pytest.importorskip(IMAGECODECS)
    content = jpeg_xl(np.zeros((size[1], size[0]), np.uint8), usecontainer=size == (96, 64))
    assert jpeg_xl_module.header(content) == (*size, False)


def test_a_huge_jpeg_xl_is_refused_by_its_header() -> None:
    with pytest.raises((TooManyPixels, MissingDecoder), match=r"4,290 megapixels|needs imagecodecs"):
        shown(odd_pictures.jpeg_xl_header(65_500, 65_500))


@pytest.mark.parametrize("content", [b"\xff\x0a", b"\xff\x0a" + bytes(99), b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99)])
def test_a_damaged_jpeg_xl_is_no_image(content: bytes) -> None:
    pytest.importorskip(IMAGECODECS)
    with pytest.raises((OSError, TooManyPixels)):
        shown(content)


UPRIGHT = {1: CORNERS, 3: CORNERS[::-1], 6: (CORNERS[2], CORNERS[0], CORNERS[3], CORNERS[1])}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("side_px", [120, 384])
def test_a_raw_file_without_a_preview_is_developed(orientation: int, side_px: int) -> None:
    pytest.importorskip(RAWPY)
    image = shown(dng(orientation), side_px)
    assert max(image.size) == side_px
    assert (image.width > image.height) is (orientation != 6)
    assert nearest(corners(image)) == [*UPRIGHT[orientation]]


def test_the_preview_of_a_raw_file_is_shown_where_it_is_large_enough() -> None:
    pytest.importorskip(RAWPY)
    content = dng_with_preview()
    assert nearest(corners(shown(content, 200))) == [*CORNERS[::-1]], "the preview is turned about to tell it"
    large = shown(content, 384)
    assert large.size == (384, 256)
    assert nearest(corners(large)) == [*CORNERS], "its thumbnail and its preview are too small"


@pytest.mark.parametrize("kind", ["without metadata", "with metadata", "bitmap"])
def test_a_preview_is_turned_as_the_camera_was(kind: str) -> None:
    pytest.importorskip(RAWPY)
    exif = Image.Exif()
    exif[0x0131] = "a camera that turns nothing"
    options: dict[str, Any] = {"with metadata": {"exif": exif}, "bitmap": {"is_jpeg": False}}.get(kind, {})
    image = shown(dng_with_preview(orientation=6, **options), 200)
    assert image.size == (133, 200)
    assert nearest(corners(image)) == [CORNERS[1], CORNERS[3], CORNERS[0], CORNERS[2]]


def test_a_raw_file_that_is_cut_shows_its_preview() -> None:
    pytest.importorskip(RAWPY)
    content = dng_with_preview()
    assert kind_of(content) == "TIFF"
    with pytest.raises(Exception, match=r"RAW|image|LibRaw"):
        shown(dng()[:5000])


@pytest.mark.parametrize("left_out", [254, 271, odd_pictures.SUB_DIRECTORIES])
def test_an_ordinary_tiff_of_a_camera_is_not_taken_for_a_raw_file(
    left_out: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, RAWPY, None)
    page, thumbnail = np.asarray(quarters()), np.zeros((16, 24, 3), np.uint8)
    tags = {**odd_pictures.array_tags(page, 2), 254: (4, [1]), 271: (2, b"NIKON\0")}
    sub_pages = [odd_pictures.Page(odd_pictures.array_tags(thumbnail, 2), thumbnail.tobytes())]
    with pytest.raises(MissingDecoder):
        shown(odd_pictures.tiff(odd_pictures.Page(tags, page.tobytes(), *sub_pages)))
    tags.pop(left_out, None)
    sub_pages = [] if left_out == odd_pictures.SUB_DIRECTORIES else sub_pages
    assert_colours(corners(shown(odd_pictures.tiff(odd_pictures.Page(tags, page.tobytes(), *sub_pages)))), CORNERS)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("version", [1, 2])
def test_the_composite_of_a_psd(depth: int, version: int) -> None:
    if (depth, version) != (8, 1):
        pytest.importorskip(PSD_TOOLS)
    picture = decode(psd(depth, version), Limits(384))
    assert_colours(corners(picture.image), CORNERS)
    assert not picture.has_pages


def test_a_psd_without_a_composite_is_put_together_from_its_layers() -> None:
    psd_tools = pytest.importorskip(PSD_TOOLS)
    document = psd_tools.PSDImage.new("RGB", (96, 64))
    document.create_pixel_layer(quarters(), name="quarters")
    buffer = BytesIO()
    document.save(buffer)
    content = bytearray(buffer.getvalue())
    content[content.index(b"8BIM" + (1057).to_bytes(2, "big")) + 6 + 2 + 4 + 4] = False  # of its version info
    with Image.open(BytesIO(content)) as image:
        pixels = image.tile[0].offset
    content[pixels - 2 :] = b"\0\0" + b"\xff" * (96 * 64 * 3)  # as Photoshop leaves it white
    assert not psd_tools.PSDImage.open(BytesIO(content)).has_preview()
    assert_colours(corners(shown(bytes(content))), CORNERS)


# --- SVG


@pytest.fixture(scope="module")
def cairo() -> None:
    pytest.importorskip(CAIRO)


@pytest.mark.parametrize(
    ("content", "size"),
    [
        (svg(), (384, 256)),
        (odd_pictures.svgz(), (384, 256)),
        (odd_pictures.svg_with_pixels(), (384, 256)),
        (svg(root='viewBox="0 0 96 64"'), (384, 256)),
        (svg(root='viewBox="0 0 96 64" width="100%" height="100%"'), (384, 256)),
        (svg(root='viewBox="0 0 96 64" width="2e9" height="1e9" preserveAspectRatio="none"'), (384, 192)),
        (svg(root='viewBox="0 0 96 64" width="30mm" height="20mm"'), (384, 256)),
        (b"\xef\xbb\xbf<!-- drawn -->\n" + svg()[21:], (384, 256)),
    ],
    ids=["plain", "gzip", "pixels within", "box", "percent", "huge", "millimetres", "mark and comment"],
)
def test_an_svg_is_drawn_as_large_as_it_may_be(cairo: None, content: bytes, size: tuple[int, int]) -> None:
    image = shown(content)
    assert image.size == size
    assert_colours(corners(image), CORNERS, tolerance=1)


def test_an_svg_lies_on_white(cairo: None) -> None:
    assert_colours(corners(shown(svg('<path fill="#f00" d="M0 0h48v64H0z"/>'))), [CORNERS[0], WHITE] * 2, tolerance=1)


def test_an_svg_without_any_size_is_drawn(cairo: None) -> None:
    assert shown(svg(root="")).size == (384, 192)


ENTITIES = (
    '<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://x/svg11.dtd" [ <!ENTITY left "#f00"> <!ENTITY ns "a b"> ]>'
)


def test_texts_that_illustrator_defines_are_put_in_their_places(cairo: None) -> None:
    content = svg('<g i="&ns;"/><path fill="&left;" d="M0 0h96v64H0z"/>', doctype=ENTITIES)
    assert_colours(corners(shown(content)), [CORNERS[0]] * 4, tolerance=1)


@pytest.mark.parametrize(
    ("definitions", "text", "expected"),
    [
        ('<!ENTITY a "red">', "&a; &lt;&b;", "red &lt;&b;"),
        ("<!ENTITY a 'red'><!ENTITY b \"\">", "&a;&b;", "red"),
        ('<!ENTITY a "red"><!ENTITY b "&a;&a;">', "&b;", None),
        ('<!ENTITY a SYSTEM "file:///etc/passwd">', "&a;", None),
        ('<!ENTITY % a "red">', "&a;", None),
        ('<!ENTITY a "' + "x" * 1000 + '">', "&a;" * 2000, None),
    ],
    ids=["one", "two", "nested", "a file", "of a parameter", "too long"],
)
def test_only_plain_texts_are_put_in(definitions: str, text: str, expected: str | None) -> None:
    content = f"<!DOCTYPE svg [ {definitions} ]><svg>{text}</svg>".encode()
    changed = f"<svg>{expected}</svg>".encode() if expected is not None else content
    assert svg_module.with_entities(content) == changed


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """An address on this machine, and what is asked of it."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}", asked
        running.shutdown()


def test_an_svg_gets_nothing_from_outside(cairo: None, tmp_path: Path, server: tuple[str, list[str]]) -> None:
    address, asked = server
    secret = tmp_path / "secret.png"
    Image.new("RGB", (96, 64), CORNERS[0]).save(secret)
    body = "".join(
        f'<image width="96" height="64" xlink:href="{each}"/><image width="96" height="64" href="{each}"/>'
        f'<use xlink:href="{each}#a"/>'
        for each in (f"{address}/a.png", f"{address}/a.svg", str(secret), secret.as_uri(), "secret.png")
    )
    style = f'<style>@import url("{address}/a.css"); path {{ fill: url("{secret}") }}</style>'
    script = "<script>document.rootElement.setAttribute('fill', 'red')</script>"
    content = svg(f"{script}{style}{body}", doctype=f'<?xml-stylesheet href="{address}/b.css" type="text/css"?>')
    assert_colours(corners(shown(content)), [WHITE] * 4)
    outside = f'<!DOCTYPE svg SYSTEM "{address}/d.dtd" [ <!ENTITY x SYSTEM "file:///etc/passwd"> ]>'
    with pytest.raises(ValueError, match="Forbidden"):
        shown(svg("<text>&x;</text>", doctype=outside))
    assert asked == []


@pytest.mark.parametrize(
    "program",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import subprocess; subprocess.run(['true'])",
        "open('/etc/passwd')",
        "import os; os.system('true')",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1/')",
    ],
)
def test_the_child_may_do_none_of_it_either(program: str) -> None:
    guard = "import sys; from vec_pipeline.pictures import svg; sys.addaudithook(svg.forbid_what_is_outside)\n"
    run = subprocess.run([sys.executable, "-c", guard + program], cwd=PROJECT, capture_output=True, text=True)
    assert "PermissionError: an SVG may not do this" in run.stderr


@pytest.mark.parametrize(
    "make",
    [
        odd_pictures.svg_bomb,
        lambda: svg(doctype="<!DOCTYPE svg [" + "".join(
            f'<!ENTITY e{number} "{f"&e{number - 1};" * 10 if number else "x" * 10}">' for number in range(10)
        ) + "]>", body="<text>&e9;</text>"),
        lambda: svg(
            doctype=f'<!DOCTYPE svg [<!ENTITY e "{"x" * 10_000}">]>', body=f"<text>{'&e;' * 10_000}</text>"
        ),
        lambda: svg("<g>" * 100_000 + "</g>" * 100_000),
        lambda: svg('<path d="M0 0' + "l1 1" * 200_000 + '"/>', root='width="1e300" height="1"'),
    ],
    ids=["uses of uses", "a billion laughs", "one entity often", "deep nesting", "a long path"],
)  # fmt: skip
def test_an_svg_bomb_is_an_error_or_a_picture_in_bounded_time(
    cairo: None, make: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(svg_module, "TIMEOUT_S", 5)
    try:
        assert shown(make()).mode == "RGB"
    except (ValueError, subprocess.TimeoutExpired) as error:
        assert str(error)


def test_the_child_takes_no_more_memory_than_it_may() -> None:
    program = "from vec_pipeline.pictures import svg; svg.limit_resources(); bytes(2 << 30)"
    run = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True)
    assert "MemoryError" in run.stderr


def test_what_cairo_cannot_draw_is_named(cairo: None) -> None:
    with pytest.raises(ValueError, match=r"not an SVG that CairoSVG can draw: .*mismatched tag"):
        shown(svg("<g></a>"))


# --- what is not installed


@pytest.mark.parametrize(
    ("library", "make", "message"),
    [
        (RAWPY, dng, "a camera's RAW file needs rawpy: pip install 'vec-pipeline[formats]'"),
        (RAWPY, dng_with_preview, "a camera's RAW file needs rawpy: pip install 'vec-pipeline[formats]'"),
        (RAWPY, lambda: b"\0\0\0\x18ftypcrx \0\0\0\1", "a camera's RAW file needs rawpy: pip install"),
        (IMAGECODECS, lambda: b"\xff\x0a", "JPEG XL needs imagecodecs: pip install 'vec-pipeline[formats]'"),
        (
            PSD_TOOLS,
            lambda: psd(16),
            "a PSD of more than 8 bits, or without a composite of its layers, needs psd_tools",
        ),
        (CAIRO, svg, "SVG needs CairoSVG: pip install 'vec-pipeline[formats]'"),
        (TIFFFILE, lambda: array_tiff(np.asarray(quarters(), "<f4")), "this kind of TIFF needs tifffile: pip install"),
    ],
    ids=["DNG", "DNG with a preview", "CR3", "JPEG XL", "PSD", "SVG", "float TIFF"],
)
def test_a_library_that_is_missing_is_named(
    library: str, make: Callable[[], bytes], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingDecoder) as caught:
        shown(make())
    assert str(caught.value).startswith(message)


def test_a_missing_cairo_is_named(cairo: None, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], svg_module.NO_CAIRO, b"", b"")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(MissingDecoder, match="apt install libcairo2"):
        shown(svg())


# --- the stage


def test_the_stage_says_what_is_cut_and_what_has_pages(tmp_path: Path) -> None:
    from vec_pipeline.sources.folder import LocalFile

    files = {"whole.jpg": jpeg(), "cut.jpg": jpeg()[:-2], "pages.tif": odd_pictures.multi_page_tiff()}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    rows = [{"content": LocalFile(str(tmp_path / name))} for name in files]
    stage = OpenImage()
    results = stage.run(None, rows, 8)
    assert [(row["is_cut"], row["has_pages"]) for row in results] == [(None, None), (True, None), (None, True)]
    with pytest.raises(OSError, match="truncated"):
        OpenImage(truncated="error").run(None, rows, 8)


def test_a_tiff_that_is_cut_is_called_so_without_tifffile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, TIFFFILE, None)
    content = encoded(quarters(), "TIFF")
    with pytest.raises(OSError, match="truncated"):
        decode(content[:-5000], Limits(384, keeps_cut=False))


NEEDED = {
    **{"rgbfloat.tif": TIFFFILE, "float64.tif": TIFFFILE, "a.dng": RAWPY, "preview.dng": RAWPY},
    **{"deep.psd": PSD_TOOLS, "a.svg": CAIRO},
}


@pytest.mark.parametrize("name", odd_pictures.FILES)
def test_every_file_of_the_script_is_a_picture_and_counted(name: str) -> None:
    if name in NEEDED:
        pytest.importorskip(NEEDED[name])
    content = odd_pictures.FILES[name]()
    image = shown(content)
    assert image.mode == "RGB"
    assert len(set(corners(image))) >= 3
    with pytest.raises(TooManyPixels):
        shown(content, megapixels=0)
