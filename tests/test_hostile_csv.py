"""Hostile CSV files: whatever stands at the end of one, whole rows stay, torn ones go, and none comes twice."""

import csv
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vec_pipeline import load_annotations
from vec_pipeline.key_set import KeySet
from vec_pipeline.record import Record, UserError
from vec_pipeline.sinks.csv_file import CsvFile
from vec_pipeline.sinks.csv_rows import contents_of

REPEATABLE = settings(derandomize=True, deadline=None, max_examples=250)
EXTRA = ("flags",)
KEYS = ["/a.jpg", '/quo"te, comma.jpg', "/line\nfeed.jpg", "/=SUM(A1).jpg", "/Кириллица.jpg", "/failed.jpg", "/z.jpg"]


def record_of(key: str, text: str = 'A "red" car,\nsmall.') -> Record:
    vector = np.array([0.5, -0.25], np.float32)
    if "failed" in key:
        return Record(key, {}, 'describe: ValueError: it says, "no"\n')
    vectors = dict.fromkeys(("text_vector", "word2vec_vector", "image_vector"), vector)
    return Record(key, {"text": text, "llama_extracted": '{"description": "A car, red"}', "flags": "", **vectors})


def write(path: Path, keys: list[str]) -> None:
    """A run of the sink over images, two a chunk: those that have a row are left out."""
    sink = CsvFile(path, EXTRA)
    left = [record_of(key) for key in keys if key not in sink.keys()]  # noqa: SIM118
    try:
        for start in range(0, len(left), 2):
            sink.write(left[start : start + 2])
    finally:
        sink.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "annotations.csv"
    write(path, KEYS)
    return path.read_bytes()


def rows_of(content: bytes) -> list[list[str]]:
    return list(csv.reader(content.decode().splitlines(keepends=True)))


def assert_resumed(content: bytes, path: Path) -> None:
    """Resume on a damaged file. Rows that were whole are as they were, and each image has one row in the end."""
    path.write_bytes(content)
    before = content[: contents_of(path, EXTRA).end_bytes]
    write(path, KEYS)
    after = path.read_bytes()
    assert after.startswith(before)
    header, *rows = rows_of(after)
    assert len(header) == 13
    assert {len(row) for row in rows} == {13}
    assert sorted(row[0] for row in rows) == sorted(KEYS)
    assert len(load_annotations(path)) == len(KEYS)


def test_a_file_cut_anywhere_is_resumed(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "annotations.csv"
    ends = [len(next_row(whole, 0))]
    while ends[-1] < len(whole):
        ends.append(ends[-1] + len(next_row(whole, ends[-1])))
    sizes = {near for end in ends for near in range(end - 3, end + 4)} | set(range(0, len(whole), 7))
    for size in sorted(sizes):
        path.write_bytes(whole[:size])
        assert contents_of(path, EXTRA).rows == sum(end <= size for end in ends[1:])
        assert_resumed(whole[:size], path)


def next_row(content: bytes, start: int) -> bytes:
    """The row that begins at an offset: up to the line feed that ends an even number of quotes."""
    end = content.index(b"\n", start) + 1
    while content[start:end].count(b'"') % 2:
        end = content.index(b"\n", end) + 1
    return content[start:end]


GARBAGE = st.one_of(
    st.binary(min_size=1, max_size=200).filter(lambda garbage: b"\n" not in garbage),
    st.integers(1, 5000).map(bytes),
    st.text(alphabet='",\n\r\\ a\0[]{}é', min_size=1, max_size=60).map(str.encode),
    st.sampled_from(
        [b"\n", b"\r\n", b"\n\n\n", b'"', b'"\n', b'\n"', b",,,,,,,,,,,,\r", b"/a.jpg", b"/a.jpg\n", b"x" * 9000]
    ),
)


@REPEATABLE
@given(garbage=GARBAGE, cut=st.one_of(st.just(0), st.integers(0, 500)))
def test_garbage_at_the_end_is_dropped_or_refused(
    garbage: bytes, cut: int, whole: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """After whole rows, or in the place of the last bytes."""
    path = tmp_path_factory.getbasetemp() / "garbage" / "annotations.csv"
    path.parent.mkdir(exist_ok=True)
    content = whole[: len(whole) - cut] + garbage
    try:
        assert_resumed(content, path)
    except UserError as error:
        assert str(path) in str(error)
        assert path.read_bytes() == content


def test_a_damaged_row_among_others_is_refused_and_left(whole: bytes, tmp_path: Path) -> None:
    """It cannot be told what it was; cutting the file there would lose the rows behind it."""
    header = next_row(whole, 0)
    content = header + b"garbage, of a disk\n" + whole[len(header) :]
    path = tmp_path / "annotations.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged.*delete that row"):
        write(path, KEYS)
    assert path.read_bytes() == content


def test_random_bytes_in_the_place_of_a_file_are_refused_and_left(tmp_path: Path) -> None:
    chance = random.Random(0)
    for size in (1, 50, 500, 5000):
        path = tmp_path / "annotations.csv"
        path.write_bytes(chance.randbytes(size))
        content = path.read_bytes()
        with pytest.raises(UserError, match=r"other columns|UTF-8"):
            write(path, KEYS)
        assert path.read_bytes() == content


@REPEATABLE
@given(key=st.text(min_size=1, max_size=30), text=st.text(max_size=50), error=st.text(max_size=50))
def test_any_text_comes_back_as_it_was(
    key: str, text: str, error: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """But for half characters and zero bytes, which no CSV can hold."""
    path = tmp_path_factory.getbasetemp() / "texts" / "annotations.csv"
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    record = record_of(f"/{key}", text)
    record.error = error
    sink = CsvFile(path, EXTRA)
    sink.write([record, record_of("/last.jpg")])
    sink.close()
    _, row, last = csv.reader(path.open(newline="", encoding="utf-8"))
    expected = [cell.encode("utf-8", "replace").decode().replace("\0", "") for cell in (f"/{key}", text, error)]
    assert [row[0], row[1], row[10]] == expected
    assert last[0] == "/last.jpg"
    known = contents_of(path, EXTRA)
    assert known.keys == KeySet({expected[0], "/last.jpg"})
    assert known.failed == KeySet({expected[0]} if expected[2] else ())
