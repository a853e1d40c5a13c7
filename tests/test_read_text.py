"""Reading text on pictures: drawn words come back exactly, with their places, whatever the shape of the picture."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import rapidocr
import yaml
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from tests.conftest import EXAMPLES, PROJECT
from vec_pipeline import load_annotations, weights
from vec_pipeline.engines import rapid_text, tesseract
from vec_pipeline.engines.rapid_text import RapidReader, memory_errors, pieces_of
from vec_pipeline.engines.text_lines import Line, TextReader, cuts, rows_of, scripts_of, tiles
from vec_pipeline.pictures import full_size
from vec_pipeline.record import UserError, Values
from vec_pipeline.stages.read_text import INSTALL, ReadText

FONT = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")  # with Cyrillic letters
WORDS = "MARKET STREET TICKET DOCTOR SCHOOL LIBRARY STATION AIRPORT KITCHEN HOLIDAY WELCOME DANGER".split()
MODELS = Path(rapidocr.__file__).parent / "models"
EXIF_ORIENTATION = 0x0112
is_required = bool(os.environ.get("VEC_REQUIRE_TESSERACT"))  # as .ci/run does: then its absence is a failure
needs_tesseract = pytest.mark.skipif(not (is_required or tesseract.program()), reason="tesseract is not installed")


class Bytes:
    """Content in memory."""

    link = ""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def read(self) -> bytes:
        return self.content

    def identity(self) -> str:
        return str(hash(self.content))


@pytest.fixture(scope="module")
def stage() -> ReadText:
    return ReadText(engine="rapidocr")


@pytest.fixture(scope="module")
def reader(stage: ReadText) -> TextReader:
    return stage.load()


def page(size: tuple[int, int], *texts: tuple[int, int, str], px: int = 40) -> Image.Image:
    """A white picture with texts at places: x, y of their top left, and what they say."""
    image = Image.new("RGB", size, "white")
    for x, y, text in texts:
        ImageDraw.Draw(image).text((x, y), text, fill="black", font=ImageFont.truetype(FONT, px))
    return image


def strip(width: int, height: int) -> tuple[Image.Image, list[str]]:
    """A picture of one line of words, and the words."""
    font = ImageFont.truetype(FONT, round(0.6 * height))
    words = WORDS * 100
    while font.getlength(" ".join(words)) > width - height:
        words.pop()
    return page((width, height), (height // 2, height // 10, " ".join(words)), px=round(0.6 * height)), words


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read(stage: ReadText, reader: TextReader, *pictures: Image.Image | bytes) -> list[Values]:
    contents = [each if isinstance(each, bytes) else encoded(each) for each in pictures]
    return stage.run(reader, [{"content": Bytes(content)} for content in contents], len(contents))


def likeness(text: str, expected: str) -> float:
    return SequenceMatcher(None, text, expected, autojunk=False).ratio()


THREE_LINES = page((600, 400), (50, 50, "FIRST LINE"), (50, 150, "SECOND LINE"), (50, 250, "THIRD LINE"))


# --- what is read


def test_lines_come_in_the_order_of_reading_with_their_confidence(stage: ReadText, reader: TextReader) -> None:
    image = page((900, 400), (500, 52, "right of it"), (50, 50, "Top"), (50, 200, "Below 50 %"))
    [found] = read(stage, reader, image)
    assert found["ocr_text"] == "Top right of it\nBelow 50 %"
    assert [box["text"] for box in found["ocr_boxes"]] == ["Top", "right of it", "Below 50 %"]
    assert all(0.9 < box["confidence"] <= 1 for box in found["ocr_boxes"])
    assert 0.9 < found["ocr_confidence"] <= 1
    assert "LATIN" in found["ocr_scripts"] and "CYRILLIC" not in found["ocr_scripts"]
    assert found.keys() == {*ReadText.writes, *ReadText.intermediates}
    json.dumps(found)


def test_no_text_is_an_empty_text_without_confidence(stage: ReadText, reader: TextReader) -> None:
    [found] = read(stage, reader, Image.new("RGB", (300, 200), "grey"))
    assert (found["ocr_text"], found["ocr_boxes"], found["ocr_confidence"]) == ("", [], None)


def test_shapes_are_not_text(stage: ReadText, reader: TextReader) -> None:
    names = ("red-flower", "yellow-moon", "brown-fish", "two-pink-arrows", "purple-cat", "noise")
    pictures = [next(EXAMPLES.glob(f"{name}.*[!n]")).read_bytes() for name in names]
    assert [found["ocr_text"] for found in read(stage, reader, *pictures)] == [""] * len(names)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_boxes_are_in_pixels_of_the_file(stage: ReadText, reader: TextReader, kind: str) -> None:
    """Although a large picture is reduced before it is read."""
    image = page((4000, 3000), (1500, 2000, "HOLIDAY"), px=300)
    expected = ImageDraw.Draw(image).textbbox((1500, 2000), "HOLIDAY", font=ImageFont.truetype(FONT, 300))
    [found] = read(stage, reader, encoded(image, kind))
    [box] = found["ocr_boxes"]
    assert box["text"] == "HOLIDAY"
    assert_near(box["box"], expected, 80)
    assert all(isinstance(number, int) for corner in box["box"] for number in corner)


def assert_near(corners: Sequence[Sequence[int]], upright: Sequence[float], tolerance_px: int) -> None:
    left, top, right, bottom = upright
    expected = [(left, top), (right, top), (right, bottom), (left, bottom)]
    assert np.abs(np.subtract(corners, expected)).max() <= tolerance_px, f"{corners} is not {expected}"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_boxes_are_of_the_picture_as_it_is_seen(stage: ReadText, reader: TextReader, kind: str) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    content = encoded(THREE_LINES.rotate(90, expand=True), kind, exif=exif)
    upright, turned = read(stage, reader, THREE_LINES, content)
    assert turned["ocr_text"] == upright["ocr_text"] == "FIRST LINE\nSECOND LINE\nTHIRD LINE"
    boxes = [[box["box"] for box in found["ocr_boxes"]] for found in (upright, turned)]
    assert np.abs(np.subtract(*boxes)).max() <= 6


@pytest.mark.parametrize(
    ("degrees", "begins"), [(180, (550, 350)), (90, (50, 550)), (270, (350, 50))], ids=["over", "left", "right"]
)
def test_turned_text_is_read_from_where_it_begins(
    stage: ReadText, reader: TextReader, degrees: int, begins: tuple[int, int]
) -> None:
    [found] = read(stage, reader, THREE_LINES.rotate(degrees, expand=True))
    assert found["ocr_text"] == "FIRST LINE\nSECOND LINE\nTHIRD LINE"
    assert np.abs(np.subtract(found["ocr_boxes"][0]["box"][0], begins)).max() <= 15


def test_small_print_is_enlarged(stage: ReadText, reader: TextReader) -> None:
    [found] = read(stage, reader, page((120, 60), (5, 20, "small print"), px=11))
    assert found["ocr_text"] == "small print"
    assert_near(found["ocr_boxes"][0]["box"], (5, 22, 68, 34), 6)


def test_lines_are_read_larger_than_they_are_looked_for(stage: ReadText, reader: TextReader) -> None:
    """Print of 7 pixels in what is looked at, and of 14 in what is read."""
    rng = random.Random(1)
    words = ["".join(rng.choices("ABCDEFGHKLMNPQRSTUVWXYZabdefghkmnpqrstuvwxyz23456789", k=7)) for _ in range(24)]
    places = [(100 + 900 * (number % 3), 80 + 230 * (number // 3), word) for number, word in enumerate(words)]
    [found] = read(stage, reader, page((2880, 2000), *places, px=20))
    assert len(set(words) & set(found["ocr_text"].split())) >= 23, "21 if both were 960 pixels"


def test_min_confidence_leaves_lines_out(reader: TextReader) -> None:
    [found] = read(ReadText(engine="rapidocr", min_confidence=1.1), reader, THREE_LINES)
    assert (found["ocr_text"], found["ocr_boxes"], found["ocr_confidence"]) == ("", [], None)


def test_company_does_not_change_what_is_read(stage: ReadText, reader: TextReader) -> None:
    """Lines of many pictures are recognised together, in one call for those of like width."""
    pictures = [page((700, 100), (10, 20, " ".join(WORDS[:number])), px=20 + 4 * number) for number in (1, 2, 3)]
    calls: list[int] = []
    recognise = reader._engine.text_rec  # type: ignore[attr-defined]
    reader._engine.text_rec = lambda lines: calls.append(len(lines.img)) or recognise(lines)  # type: ignore[attr-defined]
    try:
        together = read(stage, reader, *pictures, *pictures)
        alone = [read(stage, reader, picture)[0] for picture in pictures]
    finally:
        reader._engine.text_rec = recognise  # type: ignore[attr-defined]
    assert [found["ocr_text"] for found in together] == [found["ocr_text"] for found in alone] * 2
    confidences = [[found["ocr_confidence"] for found in results] for results in (together[:3], alone)]
    assert np.abs(np.subtract(*confidences)).max() < 1e-3
    assert max(calls) >= 2


# --- bad inputs


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (33, 2), (16, 16)])
def test_pictures_of_a_few_pixels_hold_no_text(stage: ReadText, reader: TextReader, size: tuple[int, int]) -> None:
    [found] = read(stage, reader, Image.new("L", size, 200))
    assert (found["ocr_text"], found.get("error")) == ("", None)


def test_what_cannot_be_opened_is_an_error_of_its_row(stage: ReadText, reader: TextReader) -> None:
    results = read(stage, reader, b"nothing", THREE_LINES, b"")
    assert [result.get("error", "").partition(":")[0] for result in results] == [
        "UnidentifiedImageError",
        "",
        "UnidentifiedImageError",
    ]
    assert results[1]["ocr_text"].startswith("FIRST LINE")


def test_a_head_that_pillow_refuses_is_no_hindrance(stage: ReadText, reader: TextReader) -> None:
    notes = PngInfo()
    notes.add_text("note", "x" * (2 << 20), zip=True)  # more than Pillow reads
    [found] = read(stage, reader, encoded(THREE_LINES, pnginfo=notes))
    assert found["ocr_text"].startswith("FIRST LINE")
    assert_near(found["ocr_boxes"][0]["box"], (50, 55, 270, 95), 12)


def test_too_little_memory_for_a_picture_is_told_apart(
    stage: ReadText, reader: TextReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(full_size, "decode", decode)
    with pytest.raises(MemoryError):
        read(stage, reader, THREE_LINES)


def test_a_long_strip_is_read_in_tiles(stage: ReadText, reader: TextReader) -> None:
    """rapidocr alone raises ResizeImgError for it, and its recogniser is not made for a line of 250 heights."""
    image, words = strip(10_000, 40)
    [found] = read(stage, reader, image)
    assert likeness(found["ocr_text"], " ".join(words)) > 0.98
    assert "\n" not in found["ocr_text"]
    corners = np.array([box["box"] for box in found["ocr_boxes"]])
    assert corners[:, :, 0].min() < 100 and corners[:, :, 0].max() > 9_800
    assert len(corners) >= 10
    assert np.abs(corners[:, :, 1].mean(0) - (4, 4, 32, 32)).max() < 6, "a narrow picture gets an edge to be read"


def test_a_tall_page_is_read_in_tiles(stage: ReadText, reader: TextReader) -> None:
    lines = [f"{word} {number}" for number, word in enumerate(WORDS * 3)]
    image = page((400, 6000), *((20, 30 + 160 * number, text) for number, text in enumerate(lines)), px=30)
    [found] = read(stage, reader, image)
    assert found["ocr_text"].split("\n") == lines


def test_a_word_of_sixty_letters_is_cut_and_joined(stage: ReadText, reader: TextReader) -> None:
    word = "".join(WORDS)[:60]
    [found] = read(stage, reader, page((1500, 200), (20, 80, word), px=30))
    assert likeness(found["ocr_text"], word) >= 0.97
    assert not found["ocr_text"].count(" ")


def test_a_line_of_many_words_is_cut_at_spaces(stage: ReadText, reader: TextReader) -> None:
    line = " ".join(WORDS[:9])
    [found] = read(stage, reader, page((1500, 200), (20, 80, line), px=28))
    assert found["ocr_text"] == line


# --- lines and tiles


def dashes(*widths: int) -> np.ndarray[Any, Any]:
    """A line of black boxes, of which the widths are given in turn with those of the gaps between them."""
    image = np.full((20, sum(widths), 3), 255, np.uint8)
    start = 0
    for number, width in enumerate(widths):
        image[5:15, start : start + width * (number % 2 == 0)] = 0
        start += width
    return image


def test_lines_are_cut_at_their_widest_gap() -> None:
    line = dashes(30, 2, 30, 8, 20, 2, 30, 2, 40)
    [(first, is_space), *rest] = cuts(line, 100)
    assert 62 < first < 70 and is_space
    assert rest == [(line.shape[1], False)]


def test_a_cut_within_a_word_is_no_space() -> None:
    [(first, is_space), *_] = cuts(dashes(80, 1, 80), 100)
    assert 70 < first < 90 and not is_space


def test_pieces_for_the_recogniser_are_of_bounded_and_few_widths() -> None:
    """Else the memory of one line grows with its length, and a line is read otherwise in other company."""
    pieces = [pixels for pixels, _ in pieces_of(dashes(*[7, 3] * 600))]
    assert len(pieces) >= 12
    assert {pixels.shape[0] for pixels in pieces} == {rapid_text.HEIGHT_PX}
    widths = {pixels.shape[1] / rapid_text.HEIGHT_PX for pixels in pieces}
    assert max(widths) <= 27 and all(width % 3 == 0 for width in widths)


@pytest.mark.parametrize("size", [(40, 5000), (5000, 400), (400, 400), (7, 900)])
def test_tiles_are_the_whole_picture(size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    whole = np.zeros_like(picture)
    for (x, y), tile in tiles(picture, 960):
        whole[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
        assert max(tile.shape) <= 1600
    assert (whole == picture).all()


def line_at(x: float, y: float, text: str, width: float = 100, height: float = 20) -> Line:
    return Line(text, 1.0, np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)]))


def test_rows_are_lines_at_one_height() -> None:
    lines = [line_at(200, 5, "b"), line_at(0, 0, "a"), line_at(0, 18, "c"), line_at(0, 40, "d")]
    assert [[line.text for line in row] for row in rows_of(lines)] == [["a", "b"], ["c"], ["d"]]
    assert rows_of([]) == []


def test_scripts_are_those_of_the_letters() -> None:
    assert scripts_of("A1, ё 中") == ("CJK", "CYRILLIC", "LATIN")
    assert scripts_of(["blank", "ё", "A", "B", ""], 2) == ("LATIN",)


# --- recognisers


def without_metadata(model: bytes) -> bytes:
    """An ONNX file without its field metadata_props (14), in which RapidOCR's own models keep their letters."""
    kept, start = [], 0
    while start < len(model):
        tag, end = varint(model, start)
        value, end = varint(model, end)
        end += value if tag & 7 == 2 else 0
        kept += [model[start:end]] * (tag >> 3 != 14)
        start = end
    return b"".join(kept)


def varint(content: bytes, start: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[start]
        value, shift, start = value | (byte & 127) << shift, shift + 7, start + 1
        if byte < 128:
            return value, start


@pytest.fixture
def recogniser(tmp_path: Path, reader: TextReader) -> Path:
    """A folder as the hub has it, of a recogniser that says Cyrillic letters where there are Latin capitals."""
    letters = list(reader._engine.text_rec.postprocess_op.character[1:-1])  # type: ignore[attr-defined]
    for latin, cyrillic in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "АБЦДЕФГХИЙКЛМНОПЯРСТУВШЖЫЗ", strict=True):
        letters[letters.index(latin)] = cyrillic
    model = next(MODELS.glob("*rec*.onnx")).read_bytes()
    (tmp_path / "inference.onnx").write_bytes(without_metadata(model))
    settings = {"PostProcess": {"name": "CTCLabelDecode", "character_dict": letters}}
    (tmp_path / "inference.yml").write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    return tmp_path


def test_a_recogniser_of_a_folder_reads_in_its_own_letters(recogniser: Path) -> None:
    stage = ReadText(engine="rapidocr", language="ru", model=str(recogniser))
    stage.fetch()
    [found] = read(stage, stage.load(), page((400, 120), (20, 30, "BCDFZ")))
    assert found["ocr_text"] == "БЦДФЗ"
    assert "CYRILLIC" in found["ocr_scripts"]


def test_russian_is_read_by_a_recogniser_of_the_hub(recogniser: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def fetch(model: str, patterns: tuple[str, ...], **options: object) -> Path:
        asked.append((model, patterns, options))
        return recogniser

    monkeypatch.setattr(weights, "fetch", fetch)
    stage = ReadText(engine="rapidocr", language="ru", revision="v1")
    stage.fetch()
    assert "CYRILLIC" in stage.load().scripts
    model, files = "PaddlePaddle/eslav_PP-OCRv5_mobile_rec_onnx", ("inference.onnx", "inference.yml")
    assert asked == [(model, files, {"revision": "v1", "is_offline": is_offline}) for is_offline in (False, True)]


def test_without_the_hub_tesseract_is_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*arguments: object, **options: object) -> Path:
        raise UserError("it cannot be downloaded: no network")

    monkeypatch.setattr(weights, "fetch", fetch)
    with pytest.raises(UserError, match=r"no network, or set read_text.engine: tesseract, after apt-get install"):
        ReadText(engine="rapidocr", language="ru").fetch()
    with pytest.raises(UserError, match=r"no network$"):
        ReadText(engine="rapidocr", model="some/model").fetch()


@pytest.mark.parametrize("missing", ["inference.onnx", "inference.yml"])
def test_a_folder_without_a_recogniser_is_refused(recogniser: Path, missing: str) -> None:
    (recogniser / missing).unlink()
    with pytest.raises(UserError, match=rf"has no {missing}: give a recogniser of PaddleOCR for ONNX, such as Paddle"):
        ReadText(engine="rapidocr", model=str(recogniser)).fetch()


@pytest.mark.parametrize("content", ["", "PostProcess: {}", "[", "PostProcess: {character_dict: [1, 2]}", "\x00"])
def test_a_recogniser_without_letters_is_refused(recogniser: Path, content: str) -> None:
    (recogniser / "inference.yml").write_text(content)
    with pytest.raises(UserError, match=r"inference\.yml lists no letters"):
        ReadText(engine="rapidocr", model=str(recogniser)).load()


def test_errors_of_onnxruntime_are_short_and_memory_is_told_apart() -> None:
    from rapidocr.inference_engine.onnxruntime.main import ONNXRuntimeError

    with pytest.raises(MemoryError), memory_errors():
        raise ONNXRuntimeError("Traceback ...\nFailed to allocate memory for requested buffer of size 7")
    with pytest.raises(RuntimeError, match=r"^Fail: the end$"), memory_errors():
        raise ONNXRuntimeError("Traceback ...\nFail: the end\n")


def test_lines_in_memory_are_bounded(stage: ReadText, reader: TextReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rapid_text, "CROPS", 2)
    lengths: list[int] = []
    recognise = RapidReader._lines

    def noted(self: RapidReader, crops: Sequence[Any]) -> Iterator[Line]:
        lengths.append(len(crops))
        return recognise(self, crops)

    monkeypatch.setattr(RapidReader, "_lines", noted)
    assert read(stage, reader, THREE_LINES)[0]["ocr_text"] == "FIRST LINE\nSECOND LINE\nTHIRD LINE"
    assert lengths == [2, 1]


# --- which engine


def test_a_missing_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(tesseract, "program", lambda: "")
    for engine in ("auto", "rapidocr"):
        with pytest.raises(UserError) as caught:
            ReadText(engine=engine).fetch()
        assert str(caught.value) == f"read_text needs rapidocr: {INSTALL}, or apt-get install tesseract-ocr"
    tesseract.version.cache_clear()
    assert ReadText(engine="tesseract").identity() == "tesseract"
    tesseract.version.cache_clear()
    with pytest.raises(UserError, match="tesseract is not installed: apt-get install tesseract-ocr"):
        ReadText(engine="tesseract").fetch()


def test_auto_is_rapidocr_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tesseract, "version", lambda: "5.3.0")
    monkeypatch.setattr(tesseract, "program", lambda: "/usr/bin/tesseract")
    assert ReadText().identity().startswith("rapidocr 3.")
    assert ReadText(engine="tesseract").identity() == "tesseract 5.3.0"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert ReadText().identity() == "tesseract 5.3.0"


def test_memory_is_stated_for_either_engine() -> None:
    assert 0.3 < ReadText().need().host_gb < 1
    assert ReadText(engine="tesseract").need().host_gb < ReadText(engine="rapidocr").need().host_gb


# --- tesseract


@needs_tesseract
@pytest.mark.skipif(
    not (is_required or "rus" in tesseract.known_languages()), reason="tesseract-ocr-rus is not installed"
)
def test_tesseract_reads_russian() -> None:
    stage = ReadText(engine="tesseract", language="ru")
    stage.fetch()
    reader = stage.load()
    russian = page((600, 300), (50, 50, "ВТОРАЯ СТРОКА"), (50, 150, "Щука, ёж и жук"))
    small, broken, strip_of_words = (
        page((280, 120), (5, 20, "OPEN LATE"), (5, 70, "small print"), px=8),
        b"nothing",
        strip(6000, 60),
    )
    first, second, third, fourth = read(stage, reader, russian, small, broken, strip_of_words[0])
    assert first["ocr_text"] == "ВТОРАЯ СТРОКА\nЩука, ёж и жук"
    assert_near(first["ocr_boxes"][0]["box"], (54, 57, 390, 90), 12)
    assert 0.7 < first["ocr_confidence"] <= 1
    assert first["ocr_scripts"] == ["CYRILLIC", "LATIN"]
    assert second["ocr_text"] == "OPEN LATE\nsmall print"
    assert third["error"].startswith("UnidentifiedImageError")
    assert likeness(fourth["ocr_text"], " ".join(strip_of_words[1])) > 0.97


@needs_tesseract
def test_languages_and_version_are_those_that_tesseract_names() -> None:
    assert "eng" in tesseract.known_languages() and "languages" not in tesseract.known_languages()
    assert tesseract.version()[0] in "456"


@needs_tesseract
def test_a_language_that_tesseract_lacks_is_named() -> None:
    with pytest.raises(UserError, match=r"no language tlh_x: apt-get install tesseract-ocr-tlh-x, or copy tlh_x\."):
        ReadText(engine="tesseract", model="eng+tlh_x").fetch()


def test_failures_of_tesseract_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"^tesseract failed: the reason$"):
        tesseract.called([sys.executable, "-c", "import sys; sys.exit('a warning\\nthe reason')"])
    with pytest.raises(RuntimeError, match=r"^tesseract failed: exit status 3$"):
        tesseract.called([sys.executable, "-c", "import sys; sys.exit(3)"])
    assert tesseract.called([sys.executable, "-c", "import os; print(os.environ['OMP_THREAD_LIMIT'])"]) == "1\n"
    monkeypatch.setattr(tesseract, "TIMEOUT_S", 0.1)
    with pytest.raises(RuntimeError, match="did not answer within"):
        tesseract.called([sys.executable, "-c", "import time; time.sleep(9)"])


def test_lines_of_tesseract_are_its_words_joined() -> None:
    names = "level page_num block_num par_num line_num word_num left top width height conf text".split()
    rows = [
        (5, 1, 1, 1, 1, 1, 10, 20, 30, 10, 90, 'say "a'),
        (5, 1, 1, 1, 1, 2, 50, 18, 20, 14, 60, "ok"),
        (4, 1, 1, 1, 2, 0, 0, 0, 9, 9, -1, ""),
        (5, 1, 1, 1, 2, 1, 0, 50, 9, 9, 95, " "),
    ]
    table = "\n".join("\t".join(map(str, row)) for row in (names, *rows)) + "\n"
    [line] = tesseract.lines_of(table)
    assert (line.text, line.confidence) == ('say "a ok', 0.825)
    assert line.corners.tolist() == [[10, 18], [70, 18], [70, 32], [10, 32]]


# --- in a run


CONFIG = """
device: cpu
stages:
  - {use: open_image, max_size_px: 112}
  - {use: read_text, batch_size: 3}
  - {use: flag}
"""


def test_a_run_reads_the_words_and_keeps_what_it_read(tmp_path: Path) -> None:
    for name in ("red-flower", "plain-green-FROG", "orange-boat-EDRDBAM", "pink-square-SALE"):
        shutil.copy(EXAMPLES / f"{name}.png", tmp_path)
    for number in range(55):  # as many in a row with an error of read_text would end the run
        (tmp_path / f"broken-{number}.png").write_bytes(b"nothing %d" % number)
    config, output = tmp_path / "config.yaml", tmp_path / "annotations.csv"
    config.write_text(CONFIG)
    command = [sys.executable, str(PROJECT / "run.py"), str(tmp_path), "--config", str(config), "--output", str(output)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert run.returncode == 1, run.stderr
    table = load_annotations(output)
    found = {
        Path(path).stem.rpartition("-")[2]: text for path, text in zip(table.image_path, table.ocr_text, strict=True)
    }
    assert found == {"flower": "", "FROG": "FROG", "EDRDBAM": "EDRDBAM", "SALE": "SALE"} | {
        str(number): "" for number in range(55)
    }
    boxes = dict(zip(found, table.ocr_boxes, strict=True))
    assert boxes["SALE"][0]["text"] == "SALE" and len(boxes["SALE"][0]["box"]) == 4
    errors = [error for error in table.error if error]
    assert len(errors) == 55 and {error[:34] for error in errors} == {"open_image: UnidentifiedImageError"}
    again = subprocess.run([*command, "--refresh"], capture_output=True, text=True, timeout=240)
    assert "to load its model" not in again.stdout + again.stderr
