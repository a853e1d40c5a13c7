"""Reading rows: as they were written, bit for bit, while a run appends, in flat memory, or refused in one sentence."""

import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.conftest import PRINT_PEAK_MB, PROJECT
from tests.resaved import READABLE, UNREADABLE
from tests.rows import SIZES, TRUST_COLUMNS, VECTOR_COLUMNS, failed, finished, unit_vectors, write, write_declared
from vec_pipeline import load_annotations
from vec_pipeline.annotations import Block, CsvReader
from vec_pipeline.record import COLUMNS, Record, UserError
from vec_pipeline.sinks import csv_rows
from vec_pipeline.sinks.csv_file import encode_row, row_of

HEADER = (",".join(COLUMNS) + "\n").encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "annotations.csv"


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "BLOCK_BYTES", 700)  # rows are about 400 bytes


def read_blocks(path: Path, columns: Sequence[str] = (), **options: Any) -> list[Block]:
    with CsvReader(path) as reader:
        return list(reader.blocks(columns, **options))


def paths(path: Path) -> list[str]:
    return load_annotations(path, vectors=False)["image_path"].tolist()


# --- load_annotations


def test_a_row_with_an_error_loads_without_vectors(path: Path) -> None:
    table = load_annotations(write(path, [failed(0), finished(1)]))
    assert table["error"].tolist() == ['open_image: OSError: "truncated", at\nbyte 7', ""]
    for name in VECTOR_COLUMNS:
        assert table.loc[0, name] is None
        np.testing.assert_array_equal(table.loc[1, name], finished(1).values[name])
    assert table.loc[0, "text"] == ""
    assert table.loc[1, "text"] == 'A red car, number 1.\nThe text reads "SALE".'


def test_columns_stay_in_order_and_have_their_types(path: Path) -> None:
    records = [finished(0), failed(1), finished(2, flags="blank_image repetitive")]
    table = load_annotations(write(path, records, (*TRUST_COLUMNS, "faces")))
    assert tuple(table.columns) == (*COLUMNS, *TRUST_COLUMNS, "faces")
    np.testing.assert_array_equal(table["text_confidence"], [0.875, np.nan, 0.875])
    np.testing.assert_array_equal(table["clip_score"], [0.25, np.nan, 0.25])
    assert table["flags"].tolist() == ["", "", "blank_image repetitive"]
    assert table["faces"].tolist() == [""] * 3
    assert pd.api.types.is_datetime64_any_dtype(table["timestamp"])
    assert abs(datetime.now() - table["timestamp"][0]).total_seconds() < 60


def test_the_twelve_columns_alone_load(path: Path) -> None:
    assert tuple(load_annotations(write(path, [finished(0)], ())).columns) == tuple(COLUMNS)


def test_vectors_are_one_float32_matrix(path: Path) -> None:
    vectors = unit_vectors(50, 64)
    records = [finished(number, image_vector=vector) for number, vector in enumerate(vectors)]
    table = load_annotations(write(path, [*records[:20], failed(99), *records[20:]]))
    column = table["image_vector"].dropna()
    np.testing.assert_array_equal(np.stack(column).view(np.uint32), vectors.view(np.uint32))
    assert all(vector.base is column[0].base for vector in column)
    assert np.stack(column).dtype == np.float32
    column[0][:] = 0  # they may be changed in place


def test_vectors_of_different_lengths_load(path: Path) -> None:
    """Of two models in one file."""
    vectors = [np.arange(size, dtype=np.float32) for size in (3, 1, 7)]
    records = [finished(number, text_vector=vector) for number, vector in enumerate(vectors)]
    table = load_annotations(write(path, records))
    for loaded, vector in zip(table["text_vector"], vectors, strict=True):
        np.testing.assert_array_equal(loaded, vector)


def test_without_vectors_their_columns_are_left_out(path: Path) -> None:
    write(path, [finished(0), finished(1)])
    whole, table = load_annotations(path), load_annotations(path, vectors=False)
    pd.testing.assert_frame_equal(table, whole.drop(columns=list(VECTOR_COLUMNS)))


def test_a_file_without_rows_loads_as_an_empty_table(path: Path) -> None:
    table = load_annotations(write(path, []))
    assert (tuple(table.columns), len(table)) == ((*COLUMNS, *TRUST_COLUMNS), 0)
    assert pd.api.types.is_datetime64_any_dtype(table["timestamp"])


# --- declared types


TYPES = {"faces": "number", "boxes": "vector", "objects": "json", "speech": "file", "label": "text"}


def test_columns_follow_the_types_that_were_declared(path: Path) -> None:
    values = {"faces": 2, "boxes": np.array([[1, 2, 30, 40], [5, 6, 7, 8]]), "objects": {"cup": [1, None], "n": 0.1}}
    records = [finished(0, **values, speech="/audio/0.wav", label="1.50"), failed(1), finished(2, faces=0.5)]
    table = load_annotations(write_declared(path, TYPES, records))
    assert tuple(table.columns) == (*COLUMNS, *TYPES)
    np.testing.assert_array_equal(table["faces"], [2, np.nan, 0.5])
    np.testing.assert_array_equal(table["boxes"][0], values["boxes"])
    assert table["boxes"][0].dtype == np.int64
    assert table["objects"].tolist() == [values["objects"], None, None]
    assert table["speech"].tolist() == ["/audio/0.wav", "", ""]
    assert table["label"].tolist() == ["1.50", "", ""]
    assert table["boxes"][1] is None
    assert "boxes" not in load_annotations(path, vectors=False)


ARRAYS = [
    np.array([0.1, -2.5e-8, 3.0e20], np.float32),
    np.array([[0.5, 1.5], [2.5, 3.5]], np.float32),
    np.array([[0.5, 1.5]], np.float32),
    np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    np.array([1, -2, 2**40], np.int64),
    np.array([[7]], np.int64),
    np.array([], np.int64),
    np.array([9], np.int64),
]


def assert_same_arrays(loaded: Sequence[Any], expected: Sequence[Any]) -> None:
    for array, other in zip(loaded, expected, strict=True):
        assert (array.dtype, array.shape) == (other.dtype, other.shape)
        np.testing.assert_array_equal(array, other)


def test_arrays_of_any_shape_come_back(path: Path) -> None:
    """Each as it was, although they share a column, a block even."""
    records = [finished(number, boxes=array) for number, array in enumerate(ARRAYS)]
    assert_same_arrays(load_annotations(write_declared(path, TYPES, records))["boxes"], ARRAYS)


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_a_column_of_arrays_of_one_shape_comes_back(path: Path, array: Any, small_blocks: None) -> None:
    """Among embeddings, in blocks of which some are read the fast way and some not."""
    embedding = np.array([0.25, 0.5], np.float32)
    arrays = [*[array] * 5, *[embedding] * 5, *[array] * 5]
    records = [finished(number, boxes=value) for number, value in enumerate(arrays)]
    assert_same_arrays(load_annotations(write_declared(path, TYPES, records))["boxes"], arrays)


def test_a_cell_that_is_not_what_was_declared_is_named(path: Path) -> None:
    for column, cell, reason in (
        ("boxes", "[1;2]", "'[1;2]' is not an array of numbers"),
        ("boxes", '["a"]', "is not an array of numbers"),
        ("boxes", "[[1,2],[3]]", "is not an array of numbers"),
        ("boxes", "7", "'7' is not an array of numbers"),
        ("objects", "{'a': " + "1" * 99, '..." is not JSON'),
        ("faces", "many", "'many'"),
    ):
        path.unlink(missing_ok=True)
        write_declared(path, TYPES, [finished(0, **{column: cell})])
        with pytest.raises(UserError) as caught:
            load_annotations(path)
        assert reason in str(caught.value)
        assert str(path) in str(caught.value)
        assert len(str(caught.value)) < 400


# --- blocks


def test_blocks_hold_every_row_once_and_where_it_stands(path: Path, small_blocks: None) -> None:
    records = [failed(number) if number % 7 == 3 else finished(number) for number in range(60)]
    content = write(path, records).read_bytes()
    blocks = read_blocks(path, ("image_path", "image_vector"))
    assert len(blocks) > 10
    keys = [key for block in blocks for key in block.table["image_path"].to_pylist()]
    assert keys == [record.key for record in records]
    spans = [span for block in blocks for span in zip(block.starts, block.ends, strict=True)]
    rows = [content[start:end].decode() for start, end in spans]
    assert "".join(rows) == content.decode().partition("\n")[2]
    assert all(row.startswith(key) for row, key in zip(rows, keys, strict=True))


def test_reading_begins_where_it_is_told(path: Path, small_blocks: None) -> None:
    write(path, [finished(0), finished(1)])
    start = path.stat().st_size
    write(path, [finished(2), finished(3)])
    tables = [block.table for block in read_blocks(path, ("image_path",), start=start)]
    assert [key for table in tables for key in table["image_path"].to_pylist()] == [finished(2).key, finished(3).key]
    assert not read_blocks(path, start=path.stat().st_size)


def test_a_column_that_is_not_there_is_null(path: Path) -> None:
    (block,) = read_blocks(write(path, [finished(0)], ()), ("flags", "clip_score", "text_vector", "description"))
    row = block.table.to_pylist()[0]
    assert (row["flags"], row["clip_score"], row["description"]) == (None, None, "A red car, number 0.")
    assert len(row["text_vector"]) == SIZES["text_vector"]


def test_vectors_as_text_are_as_in_the_file(path: Path) -> None:
    write(path, [finished(0, image_vector=np.array([0.1, -2, 1e-10], np.float32)), failed(1)])
    (block,) = read_blocks(path, ("image_vector",), as_text=("image_vector",))
    assert block.table["image_vector"].to_pylist() == ["[0.1,-2.0,1e-10]", None]


def test_a_row_larger_than_a_block_is_read(path: Path, small_blocks: None) -> None:
    write(path, [finished(0), finished(1, text="word " * 1000), finished(2)])
    assert load_annotations(path)["text"].str.len().tolist() == [43, 5000, 43]


def test_a_file_cut_at_any_byte_gives_its_whole_rows(path: Path, small_blocks: None) -> None:
    """A run may be appending."""
    records = [finished(0), failed(1), finished(2, text='one\r\ntwo, "three"\n'), finished(3)]
    whole = write(path, records, ()).read_bytes()
    ends = [end for block in read_blocks(path, ("image_path",)) for end in block.ends]
    for cut in range(len(HEADER), len(whole), 3):
        path.write_bytes(whole[:cut])
        assert paths(path) == [record.key for record, end in zip(records, ends, strict=True) if end <= cut]


def test_a_blank_line_and_the_line_ends_of_windows_are_harmless(path: Path) -> None:
    write(path, [finished(0), finished(1)], ())
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n  \r\n")
    write(path, [finished(2)], ())
    table = load_annotations(path)
    assert table["image_path"].tolist() == [finished(number).key for number in range(3)]
    assert table["llama_extracted"].nunique() == 1


# --- saved by other programs


@pytest.fixture
def mixed(path: Path) -> Path:
    """Rows with and without an error, texts of several lines, and a vector too long for a cell of Excel."""
    odd = finished(2, text='one\ntwo, "three"', keywords="машина, red", text_vector=unit_vectors(1, 4096)[0])
    return write(path, [failed(0), odd, finished(3, text_vector=unit_vectors(1, 4096)[0], flags="")])


@pytest.mark.parametrize("program", READABLE)
def test_a_file_that_another_program_saved_is_read(mixed: Path, program: str) -> None:
    before = load_annotations(mixed)
    content = mixed.read_bytes()
    mixed.write_bytes(READABLE[program](content))
    assert mixed.read_bytes() != content or program == "pandas"
    after = load_annotations(mixed)
    for name in VECTOR_COLUMNS:
        assert_same_arrays(after[name][1:], before[name][1:])
    without = [name for name in before if name not in VECTOR_COLUMNS]
    pd.testing.assert_frame_equal(after[without], before[without])


@pytest.mark.parametrize("program", UNREADABLE)
def test_a_file_that_another_program_changed_is_named(mixed: Path, program: str) -> None:
    change, said = UNREADABLE[program]
    mixed.write_bytes(change(mixed.read_bytes()))
    with pytest.raises(UserError) as caught:
        load_annotations(mixed)
    assert str(caught.value).startswith(str(mixed))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_that_was_saved_with_its_arrays_is_named(path: Path) -> None:
    """`to_csv` writes an array as numpy shows it, without commas, and a long one not even whole."""
    for size in (3, 4096):
        path.unlink(missing_ok=True)
        table = load_annotations(write(path, [finished(0, text_vector=unit_vectors(1, size)[0])]))
        table.to_csv(path, index=False)
        with pytest.raises(UserError, match="was saved by another program, which has saved vectors in a form that is"):
            load_annotations(path)


PROGRAM = """
import sys
from vec_pipeline.annotations import CsvReader
assert sum(len(block.table) for block in CsvReader(sys.argv[1]).blocks()) > 100
"""


def peak_mb(path: Path) -> int:
    command = [sys.executable, "-c", PROGRAM + PRINT_PEAK_MB, str(path)]
    process = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    return int(process.stdout)


def test_memory_is_flat_at_any_size(path: Path, tmp_path: Path) -> None:
    """300 MB more of file, 120 of them in memory if it were kept as float32: less than that on top."""
    write(path, [finished(0, image_vector=unit_vectors(1, 20_000)[0])])
    header, _, row = path.read_bytes().partition(b"\n")
    large = tmp_path / "large.csv"
    large.write_bytes(header + b"\n" + row * (350_000_000 // len(row)))
    path.write_bytes(header + b"\n" + row * (50_000_000 // len(row)))
    assert peak_mb(large) < peak_mb(path) + 100


# --- one file, whatever takes its place


def test_a_file_that_is_replaced_is_read_to_its_end(path: Path, small_blocks: None) -> None:
    """Columns and rows of two files would be wrong rows."""
    write(path, [finished(number) for number in range(20)])
    other = write(path.with_name("other.csv"), [finished(number) for number in reversed(range(40))], ())
    with CsvReader(path) as reader:
        blocks = reader.blocks(("image_path", "description", "flags"))
        rows = next(blocks).table.to_pylist()
        os.replace(other, path)
        rows += [row for block in blocks for row in block.table.to_pylist()]
    assert [row["image_path"] for row in rows] == [finished(number).key for number in range(20)]
    assert all(row["description"] == finished(number).values["description"] for number, row in enumerate(rows))
    assert {row["flags"] for row in rows} == {""}
    assert paths(path)[0] == finished(39).key


def test_single_rows_are_read_by_their_places(path: Path) -> None:
    write(path, [finished(0), failed(1), finished(2)])
    with CsvReader(path) as reader:
        (block,) = reader.blocks()
        places = np.stack([block.starts, block.ends], axis=1)
        table = reader.rows(places[[2, 0]], ("image_path", "image_vector"))
        assert table["image_path"].to_pylist() == [finished(2).key, finished(0).key]
        np.testing.assert_array_equal(table["image_vector"][1].as_py(), finished(0).values["image_vector"])
        with pytest.raises(UserError, match="is damaged between byte"):
            reader.rows(places[[2, 0]] + 9, ("image_path",))


# --- what is refused


@pytest.mark.parametrize(
    "content",
    [b"path,label\r\na.jpg,cat", b"", b"\xff\xfe\x00", HEADER.replace(b"path,text", b"text,path"), HEADER[:-1]],
)
def test_a_foreign_file_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError, match="does not begin with the columns of an annotation"):
        load_annotations(path)


def test_what_is_not_there_or_no_file_is_refused(path: Path) -> None:
    with pytest.raises(
        UserError, match=f"{path} does not exist: name the CSV of a run with --csv, or make one with `vec-pipeline run`"
    ):
        load_annotations(path)
    with pytest.raises(UserError, match="cannot be read"):
        CsvReader(path.parent)
    os.mkfifo(path)
    with pytest.raises(UserError, match="is a pipe or a device"):
        CsvReader(path)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"/a.jpg,too,few\n", "Expected 12 columns, got 3"),
        (b"/a.jpg,,,,,,[0.5;1],,,2026-01-02T03:04:05,,\n", "0.5;1"),
        (b"/a.jpg,,,,,,,,,2026-01-02 noon,,\n", "timestamp"),
        (b"/\xff.jpg,,,,,,,,,2026-01-02T03:04:05,,\n", "UTF8"),
    ],
)
def test_a_damaged_row_is_named(path: Path, row: bytes, reason: str) -> None:
    path.write_bytes(HEADER + row)
    with pytest.raises(UserError, match=f"is damaged between byte {len(HEADER)} and {len(HEADER + row)}") as caught:
        load_annotations(path)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


# --- keys and errors, of which a run reads every row at its start


@pytest.mark.parametrize("error", ["", "structure: ValueError: no"])
def test_a_row_with_further_vectors_is_read_without_parsing_them(error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"boxes": np.array([[0.5, 2.0]], np.float32), "label": "a", "title_vector": np.array([1.5], np.float32)}
    row = encode_row(row_of(Record("/a, b.jpg", finished(0).values | values, error), (*COLUMNS, *values)))
    assert csv_rows.key_and_error(row) == ("/a, b.jpg", error)
    monkeypatch.delattr("csv.reader")
    assert csv_rows.shows_no_error(row) == (not error)
