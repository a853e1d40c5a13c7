"""export --to xmp: sidecars and the pictures themselves, as exiftool reads them; nothing else of a file changes."""

import errno
import json
import os
import shutil
import sqlite3
import struct
import subprocess
import zlib
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from tests.rows import failed, finished, write
from vec_pipeline.__main__ import main
from vec_pipeline.commands.export import in_place, undo, xmp
from vec_pipeline.commands.export.in_place import BrokenPicture, LeftToSidecar, check, segments, slot_of, splice_of
from vec_pipeline.commands.export.places import Row
from vec_pipeline.commands.export.xmp_packet import (
    EMPTY,
    NOT_XML,
    SUBJECT,
    Items,
    UnreadableXmp,
    full,
    items_of,
    merged,
    rdf_of,
)
from vec_pipeline.record import Record
from vec_pipeline.result_cache import ResultCache, identity_of
from vec_pipeline.settings import fingerprint, settings_path
from vec_pipeline.sources.folder import LocalFile

is_required = bool(os.environ.get("VEC_REQUIRE_EXIFTOOL"))  # as .ci/run does: then its absence is a failure
needs_exiftool = pytest.mark.skipif(not (is_required or shutil.which("exiftool")), reason="exiftool is not installed")

DESCRIPTION, ALT, EXTENDED_TEXT = (
    "dc:description",
    "Iptc4xmpCore:AltTextAccessibility",
    "Iptc4xmpCore:ExtDescrAccessibility",
)
TEXTS: dict[str, Items] = {DESCRIPTION: [("x-default", "A car.")], SUBJECT: [("", "car"), ("", "red")]}
ADOBE = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Adobe XMP Core 7.0">
  <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
    <rdf:Description rdf:about="uuid:1" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"
        xmlns:darktable="http://darktable.sf.net/" xmp:Rating="4" xmp:Label="a &gt; b&#10;c">
      <dc:subject><rdf:Bag><rdf:li>Granny</rdf:li><rdf:li>Car</rdf:li></rdf:Bag></dc:subject>
      <!-- by hand -->
      <darktable:history><rdf:Seq>
        <rdf:li darktable:operation="exposure" darktable:params="0000"/>
      </rdf:Seq></darktable:history>
    </rdf:Description>
  </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""
OF_GRANNY = ADOBE.replace(
    "<dc:subject>",
    '<dc:description><rdf:Alt><rdf:li xml:lang="x-default">Granny</rdf:li>'
    '<rdf:li xml:lang="fr">Mamie</rdf:li></rdf:Alt></dc:description><dc:subject>',
)
RDF_ALONE = b"<rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'/>"


# --- pictures


def pixels(size: tuple[int, int] = (64, 48), seed: int = 0) -> Image.Image:
    """A gradient with noise, so that its compressed data is more than a few bytes."""
    rng = np.random.default_rng(seed)
    base = np.linspace(0, 200, size[0], dtype=np.uint8)[None, :, None]
    return Image.fromarray((base + rng.integers(0, 40, (size[1], size[0], 3), np.uint8)).astype(np.uint8))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif(maker_note: bool = False) -> Image.Exif:
    found = Image.Exif()
    found[ExifTags.Base.Make] = "Camera"
    found[ExifTags.Base.Orientation] = 6
    if maker_note:
        found.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote] = b"where the preview is"
    return found


def app(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def with_segment(jpeg: bytes, marker: int, data: bytes) -> bytes:
    return jpeg[:2] + app(marker, data) + jpeg[2:]


def with_chunk(png: bytes, kind: bytes, data: bytes) -> bytes:
    part = kind + data
    return png[:33] + struct.pack(">I", len(data)) + part + struct.pack(">I", zlib.crc32(part)) + png[33:]


def png_info(*, packet: str = "", compressed: bool = False) -> PngInfo:
    info = PngInfo()
    info.add_text("Title", "A title")
    info.add_text("Comment", "x" * 200, zip=True)
    if packet:
        info.add_itxt("XML:com.adobe.xmp", packet, "en", "translated", zip=compressed)
    return info


BASELINE = saved(pixels(), "JPEG")
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
FULL_JPEG = saved(pixels(), "JPEG", exif=exif(), icc_profile=PROFILE, comment=b"a comment")


def with_index(order: str, entries_at: int = 50) -> bytes:
    """Two JPEGs in one file, with an index in this byte order; the entries are said to be at a place in it."""

    def index(first: int, second: int) -> bytes:
        head = {">": b"MM", "<": b"II"}[order] + struct.pack(f"{order}HI", 42, 8)
        table = struct.pack(f"{order}HHHI4sHHII", 3, 0xB000, 7, 4, b"0100", 0xB001, 4, 1, 2)
        table += struct.pack(f"{order}HHIII", 0xB002, 7, 32, entries_at, 0)
        entries = [(0x30000, first, 0, 0, 0), (0, len(BASELINE), second, 0, 0)]
        return b"MPF\0" + head + table + b"".join(struct.pack(f"{order}IIIHH", *each) for each in entries)

    first = len(BASELINE) + len(app(0xE2, index(0, 0)))
    segment = app(0xE2, index(first, first - 20 - 8))  # offsets count from the byte order
    return BASELINE[:20] + segment + BASELINE[20:] + BASELINE


MULTI_PICTURE = saved(pixels(), "MPO", save_all=True, append_images=[pixels(seed=1)], exif=exif())
PICTURES: Mapping[str, bytes] = {
    "baseline.jpg": BASELINE,
    "progressive.jpg": saved(pixels(), "JPEG", progressive=True, restart_marker_rows=1),
    "full.jpg": FULL_JPEG,
    "adobe.jpg": saved(pixels(), "JPEG", xmp=ADOBE.encode(), exif=exif()),
    "apple.jpg": saved(pixels(), "JPEG", xmp=ADOBE.encode() + b"\0"),
    "cmyk.jpg": saved(pixels().convert("CMYK"), "JPEG"),
    "grey.jpg": saved(pixels().convert("L"), "JPEG"),
    "trailer.jpg": BASELINE + b"MotionPhoto\xff\xd8\xff\xe0 data \xff\xd9",
    "several.jpg": MULTI_PICTURE,
    "several-mm.jpg": with_index(">"),
    "several-ii.jpg": with_index("<"),
    "bare.jpg": b"\xff\xd8" + BASELINE[20:],  # no JFIF
    "fill.jpg": BASELINE.replace(b"\xff\xda", b"\xff\xff\xda", 1),
    "texts.png": saved(pixels(), "PNG", pnginfo=png_info(), icc_profile=PROFILE, exif=exif()),
    "adobe.png": saved(pixels(), "PNG", pnginfo=png_info(packet=ADOBE)),
    "zipped.png": saved(pixels(), "PNG", pnginfo=png_info(packet=ADOBE, compressed=True)),
    "moving.png": saved(pixels(), "PNG", save_all=True, append_images=[pixels(seed=1)], duration=100),
    "deep.png": saved(Image.fromarray(np.arange(3072, dtype=np.uint16).reshape(48, 64) * 21), "PNG"),
    "palette.png": saved(pixels().quantize(16), "PNG", transparency=3),
    "longer.png": saved(pixels(), "PNG") + b"after the end",
}


def frames(content: bytes) -> list[bytes]:
    with Image.open(BytesIO(content)) as image:
        found = []
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            found.append(image.tobytes())
        return found


def with_texts(content: bytes, texts: Mapping[str, Items] = TEXTS) -> bytes:
    slot = slot_of(content)
    packet = merged(slot.packet, texts, {}, overwrite=False).packet
    splice = splice_of(content, slot, packet)
    new = splice.applied(content)
    assert splice.reverse(content).applied(new) == content
    assert slot_of(new).packet == packet
    check(content, new)
    return new


def items(packet: bytes, name: str) -> Items | None:
    return items_of(
        name, [each for parent in rdf_of(packet).children for each in parent.children if each.name == full(name)]
    )


# --- packets


def test_words_join_those_of_others_and_all_else_stays_byte_for_byte() -> None:
    result = merged(ADOBE.encode(), TEXTS, {}, overwrite=False)
    assert items(result.packet, SUBJECT) == [("", "Granny"), ("", "Car"), ("", "red")], "car is there, in another case"
    assert items(result.packet, DESCRIPTION) == TEXTS[DESCRIPTION]
    assert result.added == {DESCRIPTION: TEXTS[DESCRIPTION], SUBJECT: [("", "red")]}
    words = ADOBE[ADOBE.index("\n      <dc:subject>") : ADOBE.index("\n      <!--")]
    before, after = ADOBE.replace(words, "").encode().split(b"    </rdf:Description>")
    assert result.packet.startswith(before)
    assert result.packet.endswith(b"</rdf:Description>" + after)


def test_what_was_added_before_is_replaced() -> None:
    first = merged(ADOBE.encode(), TEXTS, {}, overwrite=False)
    texts: dict[str, Items] = {DESCRIPTION: [("x-default", "A bus."), ("ru", "Автобус.")], SUBJECT: [("", "bus")]}
    second = merged(first.packet, texts, first.added, overwrite=False)
    assert items(second.packet, SUBJECT) == [("", "Granny"), ("", "Car"), ("", "bus")]
    assert items(second.packet, DESCRIPTION) == texts[DESCRIPTION]
    assert not second.kept
    third = merged(second.packet, {}, second.added, overwrite=False)
    assert items(third.packet, DESCRIPTION) == []
    assert items(third.packet, SUBJECT) == [("", "Granny"), ("", "Car")]


def test_the_same_texts_change_nothing() -> None:
    first = merged(ADOBE.encode(), TEXTS, {}, overwrite=False)
    assert merged(first.packet, TEXTS, first.added, overwrite=False).packet == first.packet


def test_a_text_of_somebody_else_is_kept_unless_it_is_to_be_overwritten() -> None:
    kept = merged(OF_GRANNY.encode(), TEXTS, {}, overwrite=False)
    assert kept.kept == [DESCRIPTION]
    assert items(kept.packet, DESCRIPTION) == [("x-default", "Granny"), ("fr", "Mamie")]
    assert items(kept.packet, SUBJECT) == [("", "Granny"), ("", "Car"), ("", "red")]
    replaced = merged(OF_GRANNY.encode(), TEXTS, {}, overwrite=True)
    assert items(replaced.packet, DESCRIPTION) == [("x-default", "A car."), ("fr", "Mamie")], "other languages stay"


@pytest.mark.parametrize(
    "property",
    [
        '<dc:description xml:lang="en"><rdf:Alt><rdf:li xml:lang="x-default">text</rdf:li></rdf:Alt></dc:description>',
        '<dc:description><rdf:Alt><rdf:li xml:lang="x-default" xmp:Rating="1">text</rdf:li></rdf:Alt></dc:description>',
        "<dc:description><rdf:Alt><rdf:li><rdf:value>text</rdf:value></rdf:li></rdf:Alt></dc:description>",
        "<dc:description><rdf:Alt/><rdf:Alt/></dc:description>",
        "<dc:description><xmp:Other/></dc:description>",
    ],
)
def test_a_property_of_an_unusual_form_is_left_alone(property: str) -> None:
    packet = ADOBE.replace("<!-- by hand -->", property).encode()
    result = merged(packet, TEXTS, {}, overwrite=True)
    assert result.kept == [DESCRIPTION]
    assert property.encode() in result.packet


def test_a_property_that_is_an_attribute_is_left_alone() -> None:
    packet = ADOBE.replace('xmp:Rating="4"', 'dc:description="text"').encode()
    assert merged(packet, TEXTS, {}, overwrite=True).kept == [DESCRIPTION]


def test_a_text_without_a_language_is_that_of_any_language() -> None:
    packet = ADOBE.replace("<!-- by hand -->", "<dc:description>Granny</dc:description>").encode()
    assert items(packet, DESCRIPTION) == [("x-default", "Granny")]
    assert merged(packet, TEXTS, {}, overwrite=False).kept == [DESCRIPTION]


def test_a_blank_text_is_none() -> None:
    packet = OF_GRANNY.replace(">Granny</rdf:li><rdf:li xml", "> </rdf:li><rdf:li xml").replace("Mamie", "")
    result = merged(packet.encode(), TEXTS, {}, overwrite=False)
    assert items(result.packet, DESCRIPTION) == TEXTS[DESCRIPTION]
    assert not result.kept


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (RDF_ALONE.decode(), 1),
        ("<?xml version='1.0' encoding='UTF-8'?>" + RDF_ALONE.decode(), 1),
        ("<r:RDF xmlns:r='http://www.w3.org/1999/02/22-rdf-syntax-ns#'></r:RDF>", 1),
        ("<r:RDF xmlns:r='http://www.w3.org/1999/02/22-rdf-syntax-ns#'><r:Description r:about='x&lt;\"'/></r:RDF>", 2),
        ("\ufeff<!-- é --><r:RDF xmlns:r='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>\n</r:RDF>", 1),
    ],
)
def test_a_packet_without_a_description_to_add_to_gets_one(before: str, after: int) -> None:
    result = merged(before.encode(), TEXTS, {}, overwrite=False)
    rdf = rdf_of(result.packet)
    assert len(rdf.children) == after
    assert (
        len({each.attributes.get("http://www.w3.org/1999/02/22-rdf-syntax-ns# about", "") for each in rdf.children})
        == 1
    )
    assert items(result.packet, DESCRIPTION) == TEXTS[DESCRIPTION]


@pytest.mark.parametrize(
    "packet",
    [
        b"not XML",
        b"<a/>",
        ADOBE.encode("utf-16"),
        b"<?xml version='1.0' encoding='iso-8859-1'?>" + RDF_ALONE,
        b"<?xml version='1.0' encoding='us-ascii'?>" + RDF_ALONE,
        RDF_ALONE.replace(b"/>", b">\xff</rdf:RDF>"),
        ADOBE.encode()[:-60],
        b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b SYSTEM "/etc/passwd">]><x>&b;</x>',
        b"<!DOCTYPE x><x>" + RDF_ALONE + b"</x>",
        b"<x>" + RDF_ALONE * 2 + b"</x>",
    ],
)
def test_what_is_no_xmp_is_refused(packet: bytes) -> None:
    with pytest.raises(UnreadableXmp):
        merged(packet, TEXTS, {}, overwrite=False)


@settings(max_examples=150, deadline=None)
@given(
    st.text(st.characters(), min_size=1).filter(str.strip),
    st.lists(st.text(st.characters(), min_size=1).filter(str.strip), max_size=3),
)
def test_any_text_is_read_as_it_was_written(text: str, words: list[str]) -> None:
    texts: dict[str, Items] = {
        DESCRIPTION: [("x-default", text), ("ru", text)],
        SUBJECT: [("", word) for word in words],
    }
    for packet in (b"", OF_GRANNY.encode()):
        result = merged(packet, texts, {}, overwrite=True).packet
        shown = NOT_XML.sub("\ufffd", text)
        if shown.strip():
            assert (items(result, DESCRIPTION) or [])[:2] == [("x-default", shown), ("ru", shown)]
        assert rdf_of(result).children[0].children


def test_texts_never_become_elements() -> None:
    text = "</rdf:li></rdf:Alt><x>&amp;]]> <![CDATA[ \ud800\0\x0b\ufffe 🚗 \u202e\r\n <?xpacket end='w'?> <!-- "
    packet = merged(b"", {DESCRIPTION: [('x"><y>', text)]}, {}, overwrite=False).packet
    shown = text.replace("\ud800\0\x0b\ufffe", "\ufffd" * 4)
    assert items(packet, DESCRIPTION) == [('x"><y>', shown)]
    assert len(rdf_of(packet).children[0].children) == 1


# --- pictures


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_changes_in_its_packet_alone(name: str) -> None:
    content = PICTURES[name]
    new = with_texts(content)
    assert new != content
    assert frames(new) == frames(content)
    with Image.open(BytesIO(content)) as before, Image.open(BytesIO(new)) as after:
        names = (
            "icc_profile",
            "exif",
            "comment",
            "Title",
            "Comment",
            "dpi",
            "jfif",
            "transparency",
            "adobe",
            "duration",
        )
        assert all(before.info.get(each) == after.info.get(each) for each in names)
        assert before.getexif() == after.getexif()
    if content.startswith(in_place.PNG):
        assert idat(new) == idat(content)
    else:
        start, start_before = [list(segments(each))[-1].start for each in (new, content)]
        assert new[start:] == content[start_before:], "the compressed data, and what comes after it"


def idat(png: bytes) -> list[bytes]:
    return [png[each.start : each.end] for each in in_place.chunks(png) if each.kind in (b"IDAT", b"fdAT")]


@pytest.mark.parametrize("name", ["adobe.jpg", "adobe.png", "zipped.png"])
def test_a_packet_that_is_there_is_replaced_where_it_is(name: str) -> None:
    new = with_texts(PICTURES[name])
    assert new.count(b"darktable:history>") == 2
    found = items(slot_of(new).packet, SUBJECT)
    assert found == [("", "Granny"), ("", "Car"), ("", "red")]


def test_a_new_packet_comes_after_jfif_and_exif() -> None:
    kinds = [(each.kind, FULL_NEW[each.data : each.data + 4]) for each in segments(FULL_NEW)][:4]
    assert kinds[:3] == [(0xE0, b"JFIF"), (0xE1, b"Exif"), (0xE1, b"http")]


FULL_NEW = with_texts(FULL_JPEG)


@pytest.mark.parametrize("name", ["several.jpg", "several-mm.jpg", "several-ii.jpg"])
def test_the_index_of_several_pictures_stays_right(name: str) -> None:
    """Its offsets count from itself, and the first picture has grown."""
    new = with_texts(PICTURES[name])
    with Image.open(BytesIO(new)) as image:
        entries = image.mpinfo[0xB002]  # type: ignore[attr-defined]
        assert image.n_frames == 2  # type: ignore[attr-defined]
    index = next(each for each in segments(new) if new.startswith(b"MPF\0", each.data))
    second = index.data + 4 + entries[1]["DataOffset"]
    assert new.startswith(in_place.JPEG, second)
    assert entries[0]["Size"] == second
    assert with_texts(new, {DESCRIPTION: [("x-default", "A bus.")]}) == new, "somebody's description is there"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (saved(pixels(), "GIF"), "of another kind than JPEG and PNG"),
        (with_segment(BASELINE, 0xE1, in_place.EXTENSION + b"x"), "with XMP in several segments"),
        (with_segment(PICTURES["adobe.jpg"], 0xE1, in_place.JPEG_XMP + EMPTY), "with XMP in several segments"),
        (
            with_segment(BASELINE, 0xEB, b"JP\0\1jumbc2pa"),
            "with content credentials, which a change would make invalid",
        ),
        (saved(pixels(), "JPEG", exif=exif(maker_note=True)) + b"preview", "with data of the camera after the picture"),
        (with_chunk(PICTURES["adobe.png"], b"iTXt", in_place.PNG_XMP + bytes(4) + EMPTY), "with XMP in several chunks"),
        (with_chunk(PICTURES["texts.png"], b"tEXt", b"Raw profile type xmp\0x"), "with XMP in several chunks"),
        (
            with_chunk(PICTURES["texts.png"], b"caBX", b"x"),
            "with content credentials, which a change would make invalid",
        ),
        (with_index(">", 84), "with several pictures whose index cannot be read"),
        (
            MULTI_PICTURE.replace(b"\x02\xb0\x07", b"\x09\xb0\x07", 1),
            "with several pictures whose index cannot be read",
        ),
        (
            with_chunk(PICTURES["texts.png"], b"iTXt", in_place.PNG_XMP + b"\1\0\0\0" + zlib.compress(bytes(1 << 25))),
            "with XMP that is too large",
        ),
    ],
)
def test_pictures_that_a_change_could_harm_are_left_to_sidecars(content: bytes, reason: str) -> None:
    with pytest.raises(LeftToSidecar, match=f"^{reason}$"):
        slot_of(content)


def test_a_packet_after_the_index_of_several_pictures_is_left_to_the_sidecar() -> None:
    index = next(each for each in segments(MULTI_PICTURE) if MULTI_PICTURE.startswith(b"MPF\0", each.data))
    packet = app(0xE1, in_place.JPEG_XMP + EMPTY)
    with pytest.raises(LeftToSidecar, match="XMP after their index"):
        slot_of(MULTI_PICTURE[: index.end] + packet + MULTI_PICTURE[index.end :])


def test_a_makers_note_without_data_behind_the_picture_is_no_reason() -> None:
    with_texts(saved(pixels(), "JPEG", exif=exif(maker_note=True)) + bytes(100))


def test_the_largest_packet_of_a_jpeg() -> None:
    slot = slot_of(BASELINE)
    for size, fits in ((65_502, True), (65_503, False)):
        packet = EMPTY + b" " * (size - len(EMPTY))
        if fits:
            assert slot_of(splice_of(BASELINE, slot, packet).applied(BASELINE)).packet == packet
        else:
            with pytest.raises(LeftToSidecar, match="with more than 64 kB of XMP"):
                splice_of(BASELINE, slot, packet)
    png = PICTURES["texts.png"]
    splice_of(png, slot_of(png), EMPTY + b" " * 100_000)


def truncations(content: bytes) -> list[bytes]:
    return [content[: len(content) * part // 16] for part in range(1, 16)]


@pytest.mark.parametrize("name", ["full.jpg", "progressive.jpg", "texts.png", "deep.png"])
def test_truncated_pictures_are_broken(name: str) -> None:
    for content in truncations(PICTURES[name]):
        with pytest.raises((BrokenPicture, LeftToSidecar)):
            with_texts(content)
            pytest.fail(f"{len(content)} bytes")


def test_a_png_without_its_first_chunk_is_broken() -> None:
    with pytest.raises(BrokenPicture):
        slot_of(PICTURES["texts.png"][:8] + PICTURES["texts.png"][33:])


def test_more_than_another_packet_is_no_change_of_ours() -> None:
    new = with_texts(FULL_JPEG)
    place = new.index(b"a comment")
    with pytest.raises(BrokenPicture):
        check(FULL_JPEG, new[:place] + b"b" + new[place + 1 :])


def test_data_that_cannot_be_decoded_is_broken() -> None:
    png = PICTURES["texts.png"]
    start = next(each.data for each in in_place.chunks(png) if each.kind == b"IDAT")
    with pytest.raises(BrokenPicture):
        with_texts(png[:start] + bytes(50) + png[start + 50 :])


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of damaged Exif
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["full.jpg", "several.jpg", "zipped.png"]), st.data())
def test_damaged_files_are_left_alone_or_change_in_their_packet_alone(name: str, data: st.DataObject) -> None:
    content = bytearray(PICTURES[name])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, min(len(content) - 1, 1200)))] = data.draw(st.integers(0, 255))
    try:
        new = with_texts(bytes(content))  # which asserts that it can be undone
    except (BrokenPicture, LeftToSidecar, UnreadableXmp):
        return
    assert slot_of(new).without(new) == slot_of(bytes(content)).without(bytes(content))


# --- the command


def row(key: Path | str, number: int = 0, **values: str) -> Record:
    texts = {"keywords": "car, red", "description": f"Car {number}.", "text": "A long text."}
    record = finished(number, **texts | values)
    record.key = str(key)
    return record


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of three pictures, and its CSV beside it."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name in ("full.jpg", "texts.png"):
        (folder / name).write_bytes(PICTURES[name])
    (folder / "sub" / "c.gif").write_bytes(saved(pixels(), "GIF"))
    write(tmp_path / "a.csv", [row(folder / "full.jpg"), row(folder / "texts.png", 1), row(folder / "sub/c.gif", 2)])
    return folder


def export(folder: Path, *arguments: object) -> int:
    csv = folder.parent / "a.csv"
    return main(["export", "--csv", str(csv), "--to", "xmp", *map(str, arguments)])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def tags(*paths: Path) -> list[dict[str, Any]]:
    """What exiftool reads, without what it says of the files themselves."""
    command = [
        "exiftool",
        "-j",
        "-G1",
        "-a",
        "-validate",
        "-warning",
        "-error",
        "-XMP:all",
        "-charset",
        "utf8",
    ]
    done = subprocess.run([*command, *map(str, paths)], capture_output=True, timeout=60, check=True)
    return [{name.rpartition(":")[2]: value for name, value in each.items()} for each in json.loads(done.stdout)]


def said_of(found: Mapping[str, Any]) -> str:
    """What exiftool says of a file: OK, or what is wrong with it."""
    warnings = {name: value for name, value in found.items() if name in ("Warning", "Error")}
    return json.dumps(warnings) if warnings else str(found["Validate"])


def texts_in(content: bytes, name: str = DESCRIPTION) -> Items | None:
    return items(slot_of(content).packet if content.startswith((in_place.JPEG, in_place.PNG)) else content, name)


def with_translations(csv: Path, rows: list[Record]) -> None:
    translate = {"use": "translate", "texts": ["description"], "language": "en", "to": "ru", "read": {}, "write": {}}
    renamed = {**translate, "texts": ["text"], "to": "de", "read": {}, "write": {"text_de": "german"}}
    columns = dict.fromkeys(("description_ru", "german"), "text")
    stages = {"translate": translate, "other": renamed, "gone": {**translate, "to": "fr"}}
    settings_path(csv).write_text(yaml.safe_dump({"columns": columns, "sources": [], "stages": stages}))
    write(csv, rows, tuple(columns))


@needs_exiftool
def test_exiftool_reads_every_property_and_language(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    description = 'A <red> car & "two" 🚗, ]]> שלום\u200f'
    rows = []
    for number, (name, content) in enumerate(PICTURES.items()):
        (folder / name).write_bytes(content)
        texts = {"description": description, "text": "One.\nTwo.", "categories": "vehicle, Car"}
        translations = {"description_ru": "Красная машина", "german": "Eins. Zwei." if number % 2 else ""}
        rows.append(row(folder / name, number, **texts, **translations))
    with_translations(tmp_path / "a.csv", rows)
    pictures, sidecars = [folder / name for name in PICTURES], [folder / f"{name}.xmp" for name in PICTURES]
    complaints = [said_of(each) for each in tags(*pictures)]  # on Exif that Pillow wrote, which lacks some tags
    assert export(folder) == 0
    assert export(folder, "--in-place") == 0
    for number, (path, found) in enumerate(zip([*pictures, *sidecars], tags(*pictures, *sidecars), strict=True)):
        assert said_of(found) == (complaints[number] if path in pictures else "OK")
        for name in ("Description", "AltTextAccessibility"):
            assert [found[name], found[f"{name}-en"], found[f"{name}-ru"]] == [
                description,
                description,
                "Красная машина",
            ]
        assert found["ExtDescrAccessibility"] == found["ExtDescrAccessibility-en"] == "One.\nTwo."
        is_german = number % len(PICTURES) % 2
        assert found.get("ExtDescrAccessibility-de", "") == ("Eins. Zwei." if is_german else "")
        assert not any(name.endswith("-fr") for name in found)
        of_others = ["Granny", "Car", "red", "vehicle"]
        is_adobe = path in pictures and b"darktable" in slot_of(PICTURES[path.name]).packet
        assert found["Subject"] == (of_others if is_adobe else ["car", "red", "vehicle"])


@needs_exiftool
def test_a_thumbnail_stays(tmp_path: Path) -> None:
    """exiftool puts one into Exif, which Pillow cannot write."""
    path, thumbnail = tmp_path / "a.jpg", tmp_path / "t.jpg"
    path.write_bytes(FULL_JPEG)
    thumbnail.write_bytes(saved(pixels((16, 12)), "JPEG"))
    subprocess.run(
        ["exiftool", f"-ThumbnailImage<={thumbnail}", str(path)], check=True, capture_output=True, timeout=60
    )
    before = said_of(tags(path)[0])
    path.write_bytes(with_texts(path.read_bytes()))
    read = subprocess.run(["exiftool", "-b", "-ThumbnailImage", str(path)], check=True, capture_output=True, timeout=60)
    assert read.stdout == thumbnail.read_bytes()
    assert said_of(tags(path)[0]) == before


def test_sidecars_are_named_as_darktable_or_as_adobe_does(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(photos)
    assert export(photos) == 0
    assert capsys.readouterr().out == "3 sidecars beside the pictures\n"
    assert files(photos).keys() - before.keys() == {"full.jpg.xmp", "texts.png.xmp", "sub/c.gif.xmp"}
    out = photos.parent / "out"
    assert export(photos, "--sidecar", "photo.xmp", "--out", out) == 0
    assert capsys.readouterr().out == f"3 sidecars in {out}\n"
    assert set(files(out)) == {"full.xmp", "texts.xmp", "sub/c.xmp"}
    assert texts_in(files(out)["full.xmp"]) == [("x-default", "Car 0.")]
    assert export(photos, "--undo") == 0
    assert files(photos) == before
    assert not files(out)


def test_pictures_change_in_place_and_back_to_the_very_bytes(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(photos)
    times = {name: (photos / name).stat().st_mtime_ns for name in before}
    assert export(photos, "--in-place") == 0
    said = (
        "2 pictures changed, 1 sidecar beside the pictures; 2 not known to be unchanged; "
        "in sidecars: 1 of another kind than JPEG and PNG\n"
    )
    assert capsys.readouterr().out == said
    after = files(photos)
    assert after.keys() - before.keys() == {"sub/c.gif.xmp"}
    assert texts_in(after["texts.png"]) == [("x-default", "Car 1.")]
    assert times == {name: (photos / name).stat().st_mtime_ns for name in before}
    assert export(photos, "--in-place") == 0
    assert "0 pictures changed; 3 up to date already" in capsys.readouterr().out
    assert files(photos) == after
    assert export(photos, "--undo") == 0
    assert capsys.readouterr().out == "3 files restored\n"
    assert files(photos) == before
    assert times == {name: (photos / name).stat().st_mtime_ns for name in before}
    assert export(photos, "--undo") == 0
    assert capsys.readouterr().out == "0 files restored\n"


def test_corrected_texts_replace_those_of_before(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another program may have changed the file meanwhile; then what it wrote stays."""
    before = files(photos)
    sidecar = photos / "sub/c.gif.xmp"
    assert export(photos, "--in-place") == 0
    with_rating = sidecar.read_bytes().replace(b'rdf:about=""', b'rdf:about="" xmlns:a="b:c" a:rating="5"')
    with_rating = with_rating.replace(b"<rdf:li>red", b"<rdf:li>Sea</rdf:li><rdf:li>red")
    sidecar.write_bytes(with_rating)
    csv = photos.parent / "a.csv"
    csv.write_text(csv.read_text().replace("Car ", "Bus ").replace('"car, red"', '"bus, red"'))
    assert export(photos, "--in-place") == 0
    assert "kept" not in capsys.readouterr().out
    for name, number in (("full.jpg", 0), ("sub/c.gif.xmp", 2)):
        content = files(photos)[name]
        assert texts_in(content) == [("x-default", f"Bus {number}.")]
        words = ["Sea"] if number else []
        assert texts_in(content, SUBJECT) == [("", each) for each in [*words, "bus", "red", "vehicle"]]
    assert b'a:rating="5"' in sidecar.read_bytes()
    with closing(sqlite3.connect(csv.with_name("a.xmp.sqlite"))) as journal:
        assert journal.execute("SELECT count(*) FROM changes").fetchone() == (3,), "one note for each file"
    assert export(photos, "--undo") == 0
    undone = files(photos)
    rest = undone.pop("sub/c.gif.xmp")
    assert undone == before
    assert b'a:rating="5"' in rest and items(rest, SUBJECT) == [("", "Sea")], "what the other program had written stays"
    assert not any(items(rest, name) for name in (DESCRIPTION, ALT, EXTENDED_TEXT)), "and nothing of ours"


@pytest.mark.parametrize("moment", ["before", "after", ""])
@pytest.mark.parametrize("name", ["full.jpg", "texts.png"])
def test_undo_removes_our_texts_from_pictures_that_others_have_changed(
    photos: Path, monkeypatch: pytest.MonkeyPatch, name: str, moment: str
) -> None:
    """Also where a kill has stopped the second export."""

    def edit(old: bytes, new: bytes) -> None:
        content = (photos / name).read_bytes()
        slot = slot_of(content)
        assert old in slot.packet
        packet = slot.packet.replace(old, new)
        (photos / name).write_bytes(splice_of(content, slot, packet).applied(content))

    assert export(photos, "--in-place") == 0
    edit(b"<rdf:li>red", b"<rdf:li>Sea</rdf:li><rdf:li>red")
    csv = photos.parent / "a.csv"
    csv.write_text(csv.read_text().replace("Car ", "Bus "))
    if moment:
        replace = undo.replace

        def killed(file: undo.File, content: bytes) -> None:
            if file.path.name == name:
                if moment == "after":
                    replace(file, content)
                raise KeyboardInterrupt
            replace(file, content)

        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(undo, "replace", killed)
            export(photos, "--in-place")
        edit(b"<rdf:li>Sea", b"<rdf:li>Sun</rdf:li><rdf:li>Sea")
    assert export(photos, "--in-place") == 0
    number = 0 if name == "full.jpg" else 1
    assert texts_in((photos / name).read_bytes()) == [("x-default", f"Bus {number}.")]
    after = (photos / name).read_bytes()
    assert export(photos, "--in-place") == 0
    assert (photos / name).read_bytes() == after
    assert export(photos, "--undo") == 0
    left = (photos / name).read_bytes()
    assert texts_in(left) == texts_in(left, ALT) == []
    assert texts_in(left, SUBJECT) == [("", each) for each in (["Sun", "Sea"] if moment else ["Sea"])]
    check(PICTURES[name], left)


@needs_exiftool
def test_undo_removes_our_texts_after_exiftool_has_changed_a_picture(photos: Path) -> None:
    assert export(photos, "--in-place") == 0
    for artist in ("Bob", "Eve"):
        command = ["exiftool", "-q", "-overwrite_original", f"-Artist={artist}", f"-XMP-dc:Creator={artist}"]
        subprocess.run([*command, str(photos / "full.jpg")], check=True, timeout=60)
        csv = photos.parent / "a.csv"
        csv.write_text(csv.read_text().replace("Car ", f"{artist}'s car "))
        assert export(photos, "--in-place") == 0
    assert texts_in((photos / "full.jpg").read_bytes()) == [("x-default", "Bob's car 0.")]
    assert export(photos, "--undo") == 0
    (found,) = tags(photos / "full.jpg")
    assert found["Creator"] == "Eve" and not found.keys() & {"Description", "Subject", "AltTextAccessibility"}


def test_texts_of_others_in_another_language_stay_when_ours_are_replaced(photos: Path) -> None:
    sidecar = photos / "sub/c.gif.xmp"
    assert export(photos) == 0
    sidecar.write_bytes(
        sidecar.read_bytes().replace(
            b'<rdf:li xml:lang="x-default">Car 2.</rdf:li>',
            b'<rdf:li xml:lang="x-default">Car 2.</rdf:li><rdf:li xml:lang="fr">Voiture</rdf:li>',
        )
    )
    assert export(photos, "--existing", "overwrite") == 0
    assert texts_in(sidecar.read_bytes()) == [("x-default", "Car 2."), ("fr", "Voiture")]
    assert export(photos, "--undo") == 0
    assert texts_in(sidecar.read_bytes()) == [("fr", "Voiture")]


def test_what_was_changed_since_is_not_undone(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(photos)
    assert export(photos, "--in-place") == 0
    after = files(photos)
    (photos / "full.jpg").write_bytes(after["full.jpg"] + b"edited")
    (photos / "texts.png").unlink()
    (photos / "sub/c.gif.xmp").chmod(0o444)
    capsys.readouterr()
    assert export(photos, "--undo") == 0
    said = capsys.readouterr().out
    assert said.startswith("0 files restored; ")
    for each in ("1 changed since (full.jpg)", "1 gone (texts.png)", "1 read-only (c.gif.xmp)"):
        assert f"left as it is: {each}" in said
    assert (photos / "full.jpg").read_bytes() == after["full.jpg"] + b"edited"
    (photos / "full.jpg").write_bytes(after["full.jpg"])
    (photos / "sub/c.gif.xmp").chmod(0o644)
    assert export(photos, "--undo") == 0
    assert files(photos) == {name: content for name, content in before.items() if name != "texts.png"}


def test_descriptions_of_people_are_kept_and_said(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "texts.png").write_bytes(saved(pixels(), "PNG", pnginfo=png_info(packet=OF_GRANNY)))
    (photos / "sub/c.gif.xmp").write_text(OF_GRANNY)
    before = files(photos)
    assert export(photos, "--in-place") == 0
    assert "kept: 2 descriptions of others (--existing overwrite replaces them)" in capsys.readouterr().out
    assert all(texts_in(files(photos)[name]) == texts_in(before[name]) for name in ("texts.png", "sub/c.gif.xmp"))
    assert texts_in(files(photos)["texts.png"], ALT) == [("x-default", "Car 1.")]
    assert export(photos, "--in-place", "--existing", "overwrite") == 0
    for name, number in (("texts.png", 1), ("sub/c.gif.xmp", 2)):
        assert texts_in(files(photos)[name]) == [("x-default", f"Car {number}."), ("fr", "Mamie")]
    assert export(photos, "--undo") == 0
    assert files(photos) == before


def test_mode_owner_and_attributes_stay(photos: Path) -> None:
    path = photos / "full.jpg"
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 1234, 2345)
    with suppress(OSError):  # not all disks have them
        os.setxattr(path, "user.note", b"mine")
    before = path.stat()
    attributes = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    assert export(photos, "--in-place") == 0
    after = path.stat()
    assert after.st_ino != before.st_ino, "it is replaced atomically"
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == attributes


def test_a_changed_sidecar_has_a_new_time(photos: Path) -> None:
    """By it, darktable sees that it is to be read again."""
    sidecar = photos / "full.jpg.xmp"
    sidecar.write_text(ADOBE)
    os.utime(sidecar, (1, 1))
    assert export(photos) == 0
    assert sidecar.stat().st_mtime > 1e9
    assert b"darktable" in sidecar.read_bytes()


def test_the_target_of_a_link_changes(photos: Path) -> None:
    target = photos.parent / "elsewhere.jpg"
    (photos / "full.jpg").rename(target)
    (photos / "full.jpg").symlink_to(target)
    assert export(photos, "--in-place") == 0
    assert (photos / "full.jpg").is_symlink()
    assert texts_in(target.read_bytes()) == [("x-default", "Car 0.")]


def test_the_target_of_a_linked_sidecar_changes(photos: Path) -> None:
    target, link = photos.parent / "elsewhere.xmp", photos / "full.jpg.xmp"
    target.write_text(ADOBE)
    link.symlink_to(target)
    assert export(photos) == 0
    assert link.is_symlink()
    assert texts_in(target.read_bytes()) == [("x-default", "Car 0.")]


def test_a_packet_that_goes_on_elsewhere_is_left_to_the_sidecar(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packet = ADOBE.replace("xmp:Label=", 'xmlns:n="http://ns.adobe.com/xmp/note/" n:HasExtendedXMP="0" xmp:Label=')
    (photos / "full.jpg").write_bytes(saved(pixels(), "JPEG", xmp=packet.encode()))
    assert export(photos, "--in-place") == 0
    assert "1 with XMP in several segments" in capsys.readouterr().out


def test_files_that_must_not_change_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    names = ("read-only.jpg", "linked.jpg", "broken.jpg", "xml.jpg", "empty.jpg", "a.jpg", "nothing.jpg")
    for name in names:
        (folder / name).write_bytes(BASELINE)
    (folder / "read-only.jpg").chmod(0o444)
    (folder / "second.jpg").hardlink_to(folder / "linked.jpg")
    (folder / "broken.jpg").write_bytes(BASELINE[:-200])
    (folder / "xml.jpg").write_bytes(saved(pixels(), "JPEG", xmp=b"no XML"))
    (folder / "empty.jpg").write_bytes(b"")
    rows = [row(folder / name, number) for number, name in enumerate(names)]
    rows[-1] = row(folder / "nothing.jpg", 6, description="", text="", keywords="", categories="")
    (folder / "same.jpg").symlink_to(folder / "a.jpg")
    write(tmp_path / "a.csv", [*rows, row(folder / "same.jpg", 8), row(folder / "gone.jpg", 9), failed(10)])
    before = files(folder)
    assert export(folder, "--in-place") == 0
    said = capsys.readouterr().out
    assert said.startswith("1 picture changed, 2 sidecars beside the pictures; 1 not known to be unchanged; ")
    for reason in (
        "1 with several hard links",
        "1 of another kind than JPEG and PNG",
        "1 whose file is read-only",
        "1 whose picture cannot be read",
        "1 whose XMP cannot be read",
        "1 without a text",
        "1 whose file is that of another row, too",
        "1 whose picture is gone",
        "1 with an error",
    ):
        assert reason in said
    after = files(folder)
    assert after.keys() - before.keys() == {"linked.jpg.xmp", "empty.jpg.xmp"}
    assert {name for name in before if after[name] != before[name]} == {"a.jpg", "same.jpg"}
    assert texts_in(after["a.jpg"]) == [("x-default", "Car 5.")]


def test_pictures_in_archives_get_sidecars_in_a_tree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.zip").write_bytes(b"PK")
    write(tmp_path / "a.csv", [row(folder / "a.zip/../x.jpg"), row("https://h/p.jpg", 1)])
    assert export(folder, "--in-place") == 2
    assert "has no row for XMP; left out: " in capsys.readouterr().err
    out = tmp_path / "out"
    assert export(folder, "--in-place", "--out", out) == 0
    assert capsys.readouterr().out == f"0 pictures changed, 2 sidecars in {out}\n"
    assert set(files(out)) == {"x.jpg.xmp", "h/p.jpg.xmp"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--undo",), "a.xmp.sqlite does not exist: no export of"),
        (("--undo", "--where", "car"), "--undo restores all files, and does not take --where"),
        (("--existing", "error"), "--to xmp does not take --existing error: use skip (default) or overwrite"),
        (("--template", "x"), "--to xmp does not take --template"),
    ],
)
def test_options_are_checked_before_anything_is_written(
    photos: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert export(photos, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(photos.parent.glob("*.sqlite"))


# --- what changes meanwhile, and what is killed


def test_a_picture_that_was_changed_after_it_was_annotated_is_left_alone(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(photos / "full.jpg"), str(photos / "texts.png")]
    records = [Record(name, {"content": LocalFile(name)}) for name in names]
    with closing(ResultCache(photos.parent / "a.cache.sqlite", fingerprint)) as cache:
        for record in records:
            record.hashes["content"] = identity_of(record)
        cache.note_pictures(records)
        cache.confirm_pictures()
        (photos / "texts.png").write_bytes(PICTURES["palette.png"])
        for arguments in ([], ["--in-place"]):
            assert export(photos, *arguments) == 0
            assert "1 whose picture has changed since (bring the rows up to date" in capsys.readouterr().out
        assert (photos / "texts.png").read_bytes() == PICTURES["palette.png"]
        assert cache.changed_pictures(records) == ([records[1]], []), "the one that we changed is up to date"
        assert texts_in((photos / "full.jpg").read_bytes()) == [("x-default", "Car 0.")]
        assert "not known" not in capsys.readouterr().out


@pytest.mark.parametrize("cache_name", ["a.cache.sqlite", "elsewhere/link.cache.sqlite"])
def test_a_csv_may_be_reached_through_a_link(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], cache_name: str
) -> None:
    """What is known of its pictures lies beside the CSV itself, or beside the link if the run was given that."""
    (tmp_path / "elsewhere").mkdir()
    name = str(photos / "full.jpg")
    with closing(ResultCache(tmp_path / cache_name, fingerprint)) as cache:
        record = Record(name, {"content": LocalFile(name)})
        record.hashes["content"] = identity_of(record)
        cache.note_pictures([record])
        cache.confirm_pictures()
    (photos / "full.jpg").write_bytes(PICTURES["progressive.jpg"])
    link = tmp_path / "elsewhere" / "link.csv"
    link.symlink_to(tmp_path / "a.csv")
    assert main(["export", "--csv", str(link), "--to", "xmp", "--in-place"]) == 0
    said = capsys.readouterr().out
    assert "1 whose picture has changed since" in said and "1 not known to be unchanged" in said
    assert (photos / "full.jpg").read_bytes() == PICTURES["progressive.jpg"]


def test_a_picture_of_which_nothing_is_known_stays_unknown(photos: Path) -> None:
    """Whether its row is of these pixels, `run --refresh` has to see."""
    path = str(photos / "full.jpg")
    record = Record(path, {"content": LocalFile(path)})
    with closing(ResultCache(photos.parent / "a.cache.sqlite", fingerprint)) as cache:
        assert export(photos, "--in-place") == 0
        assert cache.changed_pictures([record]) == ([], [record])


def test_a_kill_before_the_first_change_leaves_nothing_to_undo(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed(file: undo.File, content: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(undo, "replace", killed)
        export(photos, "--in-place")
    capsys.readouterr()
    assert export(photos, "--undo") == 0
    assert capsys.readouterr().out == "0 files restored\n"
    with undo.Journal(photos.parent / "a.xmp.sqlite") as journal:
        assert not journal.paths()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_between_note_and_change_loses_nothing(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], moment: str
) -> None:
    before = files(photos)
    assert export(photos, "--in-place") == 0
    csv = photos.parent / "a.csv"
    csv.write_text(csv.read_text().replace("Car ", "Bus "))
    replace = undo.replace

    def killed(file: undo.File, content: bytes) -> None:
        if moment == "after":
            replace(file, content)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(undo, "replace", killed)
        export(photos, "--in-place")
    assert export(photos, "--in-place") == 0
    assert texts_in((photos / "full.jpg").read_bytes()) == [("x-default", "Bus 0.")]
    capsys.readouterr()
    assert export(photos, "--undo") == 0
    assert capsys.readouterr().out == "3 files restored\n"
    assert files(photos) == before


def test_a_file_that_changes_while_it_is_written_is_left_alone(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = photos / "full.jpg"
    replace = undo.replace

    def meddled(file: undo.File, content: bytes) -> None:
        if file.path == path:
            path.write_bytes(b"another picture")
        replace(file, content)

    monkeypatch.setattr(undo, "replace", meddled)
    assert export(photos, "--in-place") == 0
    assert "left out: 1 whose file has just been changed by another program" in capsys.readouterr().out
    assert path.read_bytes() == b"another picture"
    assert not [name for name in files(photos) if name.endswith(".new")]


def test_a_picture_that_goes_while_its_row_is_read_is_counted(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos.parent / "a.cache.sqlite").touch()
    compared = xmp.Export._compared

    def gone(self: xmp.Export, row: Row) -> tuple[bool, bool]:
        if row.picture == photos / "full.jpg":
            row.picture.unlink(missing_ok=True)
        return compared(self, row)

    monkeypatch.setattr(xmp.Export, "_compared", gone)
    assert export(photos, "--in-place") == 0
    said = capsys.readouterr().out
    assert said.startswith("1 picture changed, 1 sidecar beside the pictures; ")
    assert "left out: 1 whose file has just been changed by another program" in said


def test_a_failure_to_write_is_counted_and_a_full_disk_ends_it(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(photos)

    def fails(number: int) -> Callable[[undo.File, bytes], None]:
        def replace(file: undo.File, content: bytes) -> None:
            raise OSError(number, os.strerror(number))

        return replace

    monkeypatch.setattr(undo, "replace", fails(errno.EACCES))
    assert export(photos, "--in-place") == 2
    assert "has no row for XMP; left out: 3 whose file cannot be written" in capsys.readouterr().err
    monkeypatch.setattr(undo, "replace", fails(errno.ENOSPC))
    assert export(photos, "--in-place") == 2
    assert "cannot be written: free some disk space, then rerun" in capsys.readouterr().err
    assert files(photos) == before


def test_two_exports_at_once_are_refused(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with undo.Journal(photos.parent / "a.xmp.sqlite"):
        assert export(photos) == 2
    assert "a.xmp.sqlite is in use by another export: wait for it" in capsys.readouterr().err


def test_a_damaged_journal_is_named(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos.parent / "a.xmp.sqlite").write_bytes(b"no database" * 100)
    assert export(photos, "--in-place") == 2
    assert "a.xmp.sqlite cannot be used (file is not a database)" in capsys.readouterr().err
    assert len(files(photos)) == 3
