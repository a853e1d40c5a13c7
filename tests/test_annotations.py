"""Reading rows: as they were written, bit for bit, while a run appends, in flat memory, or refused in one sentence."""

import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.conftest import PRINT_PEAK_MB, PROJECT
from tests.rows import SIZES, TRUST_COLUMNS, failed, finished, unit_vectors, write
from vec_pipeline import annotations, load_annotations
from vec_pipeline.annotations import column_names, read_blocks
from vec_pipeline.record import COLUMNS, VECTOR_COLUMNS, UserError

HEADER = (",".join(COLUMNS) + "\n").encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "annotations.csv"


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotations, "BLOCK_BYTES", 700)  # rows are about 400 bytes


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
    assert tuple(load_annotations(write(path, [finished(0)], ())).columns) == COLUMNS


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


# --- read_blocks


def test_blocks_hold_every_row_once_and_where_it_stands(path: Path, small_blocks: None) -> None:
    records = [failed(number) if number % 7 == 3 else finished(number) for number in range(60)]
    content = write(path, records).read_bytes()
    blocks = list(read_blocks(path, ("image_path", "image_vector")))
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
    assert not list(read_blocks(path, start=path.stat().st_size))


def test_a_column_that_is_not_there_is_null(path: Path) -> None:
    (block,) = read_blocks(write(path, [finished(0)], ()), ("flags", "clip_score", "text_vector", "description"))
    row = block.table.to_pylist()[0]
    assert (row["flags"], row["clip_score"], row["description"]) == (None, None, "A red car, number 0.")
    assert len(row["text_vector"]) == SIZES["text_vector"]


def test_vectors_as_text_are_as_in_the_file(path: Path) -> None:
    write(path, [finished(0, image_vector=np.array([0.1, -2, 1e-10], np.float32)), failed(1)])
    (block,) = read_blocks(path, ("image_vector",), vectors_as_text=True)
    assert block.table["image_vector"].to_pylist() == ["[0.1,-2.0,1e-10]", ""]


def test_a_row_larger_than_a_block_is_read(path: Path, small_blocks: None) -> None:
    write(path, [finished(0), finished(1, text="word " * 1000), finished(2)])
    assert load_annotations(path)["text"].str.len().tolist() == [43, 5000, 43]


def test_a_file_cut_at_any_byte_gives_its_whole_rows(path: Path, small_blocks: None) -> None:
    """A run may be appending."""
    records = [finished(0), failed(1), finished(2, text='one\r\ntwo, "three"\n'), finished(3)]
    whole = write(path, records, ()).read_bytes()
    (*blocks,) = read_blocks(path, ("image_path",))
    ends = [end for block in blocks for end in block.ends]
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


PROGRAM = """
import sys
from vec_pipeline.annotations import read_blocks
assert sum(len(block.table) for block in read_blocks(sys.argv[1])) > 100
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
    with pytest.raises(UserError, match=f"{path} is not there: name the CSV of a run, or make one with run.py"):
        load_annotations(path)
    with pytest.raises(UserError, match="cannot be read"):
        column_names(path.parent)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"/a.jpg,too,few\n", "Expected 12 columns, got 3"),
        (b"/a.jpg,,,,,,[0.5;1],,,2026-01-02T03:04:05,,\n", "0.5;1"),
        (b"/a.jpg,,,,,,,,,02.01.2026,,\n", "timestamp"),
        (b"/\xff.jpg,,,,,,,,,2026-01-02T03:04:05,,\n", "UTF8"),
    ],
)
def test_a_damaged_row_is_named(path: Path, row: bytes, reason: str) -> None:
    path.write_bytes(HEADER + row)
    with pytest.raises(UserError, match=f"is damaged between byte {len(HEADER)} and {len(HEADER + row)}") as caught:
        load_annotations(path)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
