"""The query language of `--where`: which rows each kind of term finds, and what is said of a text that is no query."""

from contextlib import closing
from pathlib import Path

import pytest

from tests.rows import failed, finished, write_declared
from vec_pipeline.annotations import CsvReader, load_annotations
from vec_pipeline.corrections import ACCEPTED, Change, Corrections
from vec_pipeline.record import UserError

TYPES = {"text_confidence": "number", "clip_score": "number", "flags": "text", "objects": "json"}
ROWS = [
    finished(0, categories="food and drink", keywords="red wine, glass", flags="low_confidence ocr_missing"),
    finished(1, categories="Vehicle", keywords="red car", text_confidence=0.5, objects=[{"label": "person"}]),
    finished(2, categories="vehicle", description="Ein Zug, ÄUSSERST schnell.", text="50% (off)", flags="pages"),
    failed(3),
]


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_declared(tmp_path_factory.mktemp("query") / "a.csv", TYPES, ROWS)
    with closing(Corrections(path)) as corrections:
        corrections.correct([Change("/photos/000001.jpg", "verified", ACCEPTED)])
        corrections.correct([Change("/photos/000002.jpg", "keywords", "train, fast")])
    return path


def found(csv: Path, query: str, **options: bool) -> list[int]:
    paths = load_annotations(csv, vectors=False, where=query, **options)["image_path"]
    return [int(Path(path).stem) for path in paths]


QUERIES = {
    "": [0, 1, 2, 3],
    "category:vehicle": [1, 2],
    "categories:VEHICLE": [1, 2],
    "category:food": [],
    'category:"food and drink"': [0],
    'category:"food and drink",vehicle': [0, 1, 2],
    "keyword:glass": [0],
    "keyword:red": [],
    'keyword:"red car"': [1],
    "keywords~red": [0, 1],
    "keyword:fast": [2],
    "keyword:": [3],
    "flag:ocr_missing": [0],
    "flag:low_confidence,pages": [0, 2],
    "flags": [0, 2],
    "-flags": [1, 3],
    "error": [3],
    "-error": [0, 1, 2],
    "verified": [1],
    "-verified": [0, 2, 3],
    "verified:accepted": [1],
    "text_vector": [0, 1, 2],
    "text_confidence<0.8": [1],
    "text_confidence<=0.875": [0, 1, 2],
    "text_confidence>0.5": [0, 2],
    "text_confidence>=0.5": [0, 1, 2],
    "text_confidence=0.5": [1],
    "text_confidence:0.5,0.875": [0, 1, 2],
    "-text_confidence<0.8": [0, 2, 3],
    "objects:person": [1],
    "objects:per": [],
    "objects:label": [],
    "objects~label": [1],
    'description~"äusserst"': [2],
    "description~/^ein .*schnell\\.$/": [2],
    "description~/number [01]/": [0, 1],
    "path~000002": [2],
    "path:/photos/000002.jpg": [2],
    "path:/photos/000002.jpg,/photos/000000.jpg": [0, 2],
    "path~/photos/0": [0, 1, 2, 3],
    "path~/nowhere/or/photos": [],
    "ocr:sale": [0, 1, 2],
    'text~"50% (off)"': [2],
    'text:"50% (off)"': [2],
    'text~"reads \\"sale\\""': [0, 1],
    "schnell": [2],
    "-schnell": [0, 1, 3],
    '"red car"': [0, 1],
    "red number": [0, 1],
    "accepted": [],
    "timestamp>=2020": [0, 1, 2, 3],
    "timestamp<2020-05": [],
    "category:vehicle -verified text_confidence>0.5": [2],
}


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_finds_rows(csv: Path, query: str) -> None:
    assert found(csv, query) == QUERIES[query]


def test_machine_values_are_asked_without_corrections(csv: Path) -> None:
    assert found(csv, "keyword:fast", machine=True) == []
    assert found(csv, "-verified", machine=True) == [0, 2, 3]
    assert found(csv, "verified:accepted", machine=True) == [1]
    assert "verified" not in load_annotations(csv, vectors=False, machine=True)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("catgory:vehicle", "unknown column 'catgory' (did you mean 'category'?)"),
        ("http://a.b/c", "to look for the text itself"),
        ("text<3", "'<' does not compare"),
        ("text_confidence<high", "'high', which is not a number"),
        ("text_vector:3", "only their presence"),
        ("timestamp>yesterday", "no time such as 2026-11-26T08:30"),
        ("timestamp>26.11.2026", "no time such as"),
        ("category!=vehicle", "-TERM is not"),
        ("flags OR error", "NAME:A,B is either"),
        ('text~"a', "cannot be read"),
        ("text~/(/", "'(' is not a regular expression"),
    ],
)
def test_a_text_that_is_no_query_is_refused(csv: Path, query: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        CsvReader(csv, where=query)
    assert said in str(caught.value)


def test_blocks_hold_the_places_of_the_rows_that_are_left(csv: Path) -> None:
    with CsvReader(csv, where="category:vehicle") as reader:
        [block] = reader.blocks(["image_path"])
        assert block.table.column_names == ["image_path"]
        for path, start, end in zip(block.table["image_path"].to_pylist(), block.starts, block.ends, strict=True):
            assert reader.read(int(start), int(end)).startswith(path.encode())
