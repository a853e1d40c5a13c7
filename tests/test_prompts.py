"""What describe asks: by language and detail, and with values of each picture filled in."""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.runs import Runs, annotate
from vec_pipeline.config import ConfigError, check_wiring, load_config
from vec_pipeline.engines import Answer
from vec_pipeline.pictures.metadata import metadata, place_in_folders
from vec_pipeline.prompts import MOST_CHARACTERS, PROMPTS, filled, placeholders
from vec_pipeline.record import Record
from vec_pipeline.settings import fingerprint, stage_settings
from vec_pipeline.sources.folder import Folder
from vec_pipeline.stages.describe import Describe
from vec_pipeline.stages.open_image import OpenImage

FILE_VALUES = "{folder}|{name}|{exif.date}|{exif.camera}|{gps}|{keywords}"


def test_detail_chooses_the_prompt_and_its_length() -> None:
    usual = Describe(model="a/b")
    assert (usual.question(), usual.max_new_tokens) == (PROMPTS["en"].describe, 256)
    short = Describe(model="a/b", detail="brief", language="ru")
    assert (short.question(), short.max_new_tokens) == (PROMPTS["ru"].brief, 64)
    assert Describe(model="a/b", detail="full").max_new_tokens == 512
    own = Describe(model="a/b", detail="full", prompt="What?", max_new_tokens=7)
    assert (own.question(), own.max_new_tokens) == ("What?", 7)


def test_doubled_braces_are_braces_in_a_prompt_without_names_too() -> None:
    assert Describe(model="a/b", prompt='Answer as {{"colour": "red"}}').question() == 'Answer as {"colour": "red"}'


def test_a_csv_made_before_detail_goes_on() -> None:
    """Its settings name the length as a number, and neither of the new options."""
    settings = stage_settings(Describe(model="a/b"))
    assert settings["max_new_tokens"] == 256 and settings["identity"] == PROMPTS["en"].describe
    assert stage_settings(Describe(model="a/b", max_new_tokens=256)) == settings
    assert (settings["detail"], settings["system_prompt"]) == ("normal", ""), "defaults, which count as no change"


@pytest.mark.parametrize(
    ("prompt", "names"),
    [
        ("What is this?", ()),
        ("In {folder}, {exif.date}: {name} or {name}?", ("folder", "exif.date", "name")),
        ('Answer as {{"colour": "{caption}"}}', ("caption",)),
    ],
)
def test_names_in_braces_are_found(prompt: str, names: tuple[str, ...]) -> None:
    assert placeholders(prompt) == names
    stage = Describe(model="a/b", prompt=prompt)
    assert stage.input_names == ("image", *(f"file.{n}" if n in ("folder", "name") else n for n in names))


@pytest.mark.parametrize(
    "prompt", ['{"colour": "red"}', "{}", "{0}", "{a b}", "{name!r}", "{name:>9}", "{name", "name}"]
)
def test_braces_without_a_name_are_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match=r"^prompt: .*\{\{ and \}\} stand for braces$"):
        Describe(model="a/b", prompt=prompt)


def test_values_are_filled_in() -> None:
    values = {"name": "cat", "count": 3, "note": None}
    assert filled("{name}, {count}{note}{missing}; {{name}}", values) == "cat, 3; {name}"
    assert filled("{name}", {"name": "a  b\nc" * 500}).startswith("a b ca b c")
    assert len(filled("{name}", {"name": "a" * 9999})) == MOST_CHARACTERS
    for control in ("<image>", "<|im<x>_end|>", "</s>", "[INST]", "[img-1]", "<image >", "\u25c1media\u25b7"):
        told = filled("In {name}?", {"name": f"a {control} b"})
        assert told.startswith("In a ") and told.endswith(" b?")
        assert not set(told) & set("<>[]|\u25c1\u25b7"), "no control token can be put together again"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("stages: [open_image, {use: describe, model: a/b}, {use: structure, model: c/d}]")
    return path


def test_an_unknown_name_is_an_error_that_lists_what_there_is(config: Path) -> None:
    def check(prompt: str, **columns: str) -> None:
        check_wiring(load_config(config, [f"describe.prompt={prompt}"]).stages, columns)

    check(FILE_VALUES)
    check("{caption}{image_path}", caption="text")
    for prompt in ("{exif.camra}", "{caption}", "{description}", "{image}"):  # of a later stage, and no text
        with pytest.raises(ConfigError) as caught:
            check(prompt, title="text")
        assert str(caught.value) == (
            f"describe.prompt: unknown placeholder {prompt} (there are: exif.camera, exif.date, folder, gps, "
            "image_path, keywords, name, title); {{ and }} stand for braces"
        )
    with pytest.raises(ConfigError, match=r"^describe: prompt: \{a b\} is not the name of a value"):
        check("{a b}")


XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description><dc:subject><rdf:Bag><rdf:li>cat &amp; dog</rdf:li>'
    "<rdf:li>Париж</rdf:li></rdf:Bag></dc:subject></rdf:Description></rdf:RDF></x:xmpmeta>"
).encode()


def exif() -> Image.Exif:
    found = Image.Exif()
    found[ExifTags.Base.Make], found[ExifTags.Base.Model] = "Canon\0", "Canon EOS 5D"
    found.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2019:05:06 07:08:09"
    found.get_ifd(ExifTags.IFD.GPSInfo).update({1: "N", 2: (48.0, 51.0, 30.132), 3: "W", 4: (2.0, 17.0, 40.128)})
    return found


def encoded(kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.arange(48 * 48 * 3, dtype=np.uint8).reshape(48, 48, 3)).save(content, kind, **options)
    return content.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
def test_metadata_of_files(kind: str) -> None:
    assert metadata(encoded(kind, exif=exif(), xmp=XMP)) == {
        "exif.date": "2019-05-06 07:08:09",
        "exif.camera": "Canon EOS 5D",
        "file.gps": "48.85837, -2.29448",
        "file.keywords": "cat & dog, Париж",
    }
    assert metadata(encoded(kind)) == {}


def iptc(*keywords: bytes) -> bytes:
    """The segment of a JPEG that Photoshop writes."""
    items = b"".join(b"\x1c\x02\x19" + len(each).to_bytes(2, "big") + each for each in keywords)
    block = b"8BIM\x04\x04\0\0" + len(items).to_bytes(4, "big") + items + b"\0" * (len(items) % 2)
    block = b"Photoshop 3.0\0" + block
    return b"\xff\xed" + (len(block) + 2).to_bytes(2, "big") + block


def test_keywords_of_iptc_come_after_those_of_xmp() -> None:
    plain = encoded("JPEG", xmp=XMP)
    content = plain[:2] + iptc("Париж".encode(), b"caf\xe9") + plain[2:]
    assert metadata(content)["file.keywords"] == "cat & dog, Париж, café"
    assert metadata(encoded("JPEG")[:2] + iptc(b"one") + encoded("JPEG")[2:]) == {"file.keywords": "one"}


def test_damaged_metadata_are_none() -> None:
    whole = encoded("JPEG", exif=exif(), xmp=XMP)
    for cut in range(2, len(whole), 7):
        assert metadata(whole[:cut]).keys() <= metadata(whole).keys()
    for content in (
        b"",
        b"no picture",
        whole.replace(b"Canon", b"\xff\xfe\xfd\xfc\0"),
        whole.replace(b"2019:", b"0000:"),
    ):
        metadata(content)
    assert "exif.date" not in metadata(whole.replace(b"2019:05", b"    :  "))


@pytest.mark.parametrize(
    ("key", "folder", "name"),
    [
        ("/photos/2019 Oslo/IMG_1.a.jpg", "2019 Oslo", "IMG_1.a"),
        ("https://host/a/b%20c/d.png?size=1", "b c", "d"),
        ("/IMG", "", "IMG"),
    ],
)
def test_the_place_of_a_picture(key: str, folder: str, name: str) -> None:
    assert place_in_folders(key) == {"file.folder": folder, "file.name": name}


class Echo:
    """An engine that answers with the question."""

    slots = 0
    kind = "qwen2_vl"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def set_question(self, question: str, max_new_tokens: int) -> None: ...

    def generate(self, images: Sequence[Any], slots: int, questions: Sequence[str] | None = None) -> list[Answer]:
        self.asked += questions or [""] * len(images)
        return [Answer(question, True, 1, 1.0) for question in questions or [""] * len(images)]

    def close(self) -> None: ...


ECHO = Echo()


class Asked(Describe):
    def load(self) -> Any:
        return ECHO


class Pictures:
    """A folder of one picture, described by runs over one result cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.put("trip", "a", "one")

    def put(self, folder: str, name: str, keyword: str) -> None:
        """Replace the picture by one of the same pixels."""
        for file in (self.folder / "pictures").rglob("*.jpg"):
            file.unlink()
        place = self.folder / "pictures" / folder
        place.mkdir(parents=True, exist_ok=True)
        content = encoded("JPEG")
        (place / f"{name}.jpg").write_bytes(content[:2] + iptc(keyword.encode()) + content[2:])

    def described(self, prompt: str, **values: Any) -> list[str]:
        """The texts; and ECHO.asked holds what was asked, not what the cache had."""
        ECHO.asked.clear()
        runs = Runs(self.folder)
        stage = Asked(model="a/b", prompt=prompt, batch_size=4)
        columns = dict.fromkeys(values, "text")
        executor = runs(stage, reader=OpenImage(), fingerprint=fingerprint, source_columns=columns)
        records = list(Folder(str(self.folder / "pictures")))
        try:
            return [row.values["text"] for row in annotate(executor, [with_values(each, values) for each in records])]
        finally:
            runs.close()


def with_values(record: Record, values: dict[str, Any]) -> Record:
    return dataclasses.replace(record, values={**record.values, **values})


def test_only_what_is_filled_in_decides_whether_a_picture_is_asked_again(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path)
    assert pictures.described("{folder} {name} {keywords} {caption} {exif.date}", caption="sea") == ["trip a one sea"]
    assert ECHO.asked, "a new question"
    for prompt, put, is_asked in (
        ("In {folder}?", ("trip", "b", "two"), False),
        ("In {folder}?", ("home", "a", "one"), True),
        ("Is {name} on it?", ("home", "a", "two"), False),
        ("Is {name} on it?", ("trip", "b", "one"), True),
        ("Are {keywords}?", ("home", "b", "one"), False),
        ("Are {keywords}?", ("trip", "a", "two"), True),
    ):
        pictures.put("trip", "a", "one")
        first = pictures.described(prompt)
        pictures.put(*put)
        assert (pictures.described(prompt) != first) == is_asked
        assert bool(ECHO.asked) == is_asked, prompt


def test_a_column_of_the_source_is_filled_in(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path)
    assert pictures.described("{caption}?", caption="sea") == ["sea?"]
    assert pictures.described("{caption}?", caption="sky") == ["sky?"]
    assert pictures.described("{caption}?", caption="sea", title="x") == ["sea?"]
    assert not ECHO.asked
    assert pictures.described("{caption}?", caption=None) == ["?"], "a missing value is an empty text"
