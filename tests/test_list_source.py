"""Lists: every entry has a record, in order, whatever the format, and however damaged the list is."""

import gzip
import json
import operator
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import EXAMPLES, PRINT_PEAK_MB, PROJECT, Run
from tests.http_server import HttpServer
from vec_pipeline import load_annotations
from vec_pipeline.downloads.web import WEB_COLUMNS
from vec_pipeline.lists import lines, parquet
from vec_pipeline.lists.csv_rows import Rows
from vec_pipeline.record import NotFound, Record, SourceOptions, UserError
from vec_pipeline.sources import content_of, open_source
from vec_pipeline.sources.list_file import ListFile

PICTURES = sorted(EXAMPLES.glob("*.png"))[:6]
CONFIG = f"""
stages:
  - {{use: open_image, max_size_px: 112}}
  - {{use: embed_image, model: {PROJECT}/models/demo/clip, device: cpu}}
"""
FORMATS = ("a.csv.gz", "b.tsv", "c.jsonl", "d.parquet", "e.csv.zst")  # of the lists of one run
Row = dict[str, Any]


def source_of(path: Path, content: bytes | str, **options: Any) -> ListFile:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return ListFile(str(path), options=SourceOptions(**options))


def records_of(path: Path, content: bytes | str, **options: Any) -> list[Record]:
    return list(source_of(path, content, **options))


def keys_of(path: Path, content: bytes | str, **options: Any) -> list[str]:
    """The keys, relative to the list's folder where they lie below it; an error stands in front of its key."""
    records = records_of(path, content, **options)
    return [short(record, path.parent) for record in records]


def short(record: Record, folder: Path) -> str:
    error = f"{record.error.split(': ')[1]} " if record.error else ""
    return error + record.key.removeprefix(f"{os.path.realpath(folder)}/")


def write_table(path: Path, rows: Sequence[Row], compression: str = "") -> None:
    """Write a list in the format that its name says."""
    frame = pd.DataFrame(rows)
    kind = path.name.split(".")[1]
    if kind == "parquet":
        data = frame.to_parquet(index=False)
    elif kind in ("jsonl", "ndjson"):
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    elif kind == "txt":
        data = "".join(f"{row['url']}\n" for row in rows).encode()
    else:
        data = frame.to_csv(index=False, sep="\t" if kind == "tsv" else ",").encode()
    if compression == "zst":
        with pa.output_stream(path, compression="zstd") as stream:
            stream.write(data)
    else:
        path.write_bytes(gzip.compress(data) if compression == "gz" else data)


# Formats


COMPRESSED = [(kind, how) for kind in ("txt", "csv", "tsv", "jsonl", "ndjson") for how in ("", "gz", "zst")]


@pytest.mark.parametrize(("kind", "compression"), [*COMPRESSED, ("parquet", ""), ("parquet", "gz")])
def test_each_format_gives_the_same_records(tmp_path: Path, kind: str, compression: str) -> None:
    path = tmp_path / ".".join(filter(None, ["list", kind, compression]))
    rows = [{"url": f"http://host/{number}", "title": f'a "title",\n{number}'} for number in range(3)]
    write_table(path, rows, compression)
    options = SourceOptions() if kind == "txt" else SourceOptions(keep=("title",))
    source = open_source([str(path)], options=options)
    assert isinstance(source, ListFile)
    assert not source.is_stream
    assert not source.is_counted
    assert not source.has_priority
    assert source.columns == {**({} if kind == "txt" else {"title": "text"}), **WEB_COLUMNS}
    records = list(source)
    assert [record.key for record in records] == [row["url"] for row in rows]
    assert [record.values["source_url"] for record in records] == [row["url"] for row in rows]
    if kind != "txt":
        assert [record.values["title"] for record in records] == [row["title"] for row in rows]
    assert list(source) == records, "it can be read again"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be-with-mark"])
def test_encodings_and_line_ends(tmp_path: Path, encoding: str, end: str) -> None:
    text = end.join(["http://host/ü", "", "  http://host/2\t", "http://host/3"])
    data = ("\ufeff" + text).encode("utf-16-be") if encoding == "utf-16-be-with-mark" else text.encode(encoding)
    source = source_of(tmp_path / "list.txt", data)
    assert [record.key for record in source] == ["http://host/ü", "http://host/2", "http://host/3"]
    assert source.notes == ([f"{tmp_path}/list.txt is read as UTF-16"] if "16" in encoding else [])


def test_entries_are_addresses_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, home = tmp_path / "lists", tmp_path / "home"
    for path in (folder / "a.jpg", folder / "no-suffix", tmp_path / "b.jpg", tmp_path / "a.jpg", home / "c d.jpg"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "link.jpg").symlink_to(folder / "a.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(home))
    entries = {
        "http://user:secret@host/x.jpg": "http://host/x.jpg",
        "HTTPS://host/x": "HTTPS://host/x",
        "s3://bucket/x.jpg": "s3://bucket/x.jpg",
        "sftp://user:secret@host/x.jpg": "sftp://host/x.jpg",
        "a.jpg": f"{folder}/a.jpg",
        "./no-suffix": f"{folder}/no-suffix",
        "b.jpg": f"{tmp_path}/b.jpg",
        "link.jpg": f"{folder}/a.jpg",
        "~/c d.jpg": f"{home}/c d.jpg",
        f"{tmp_path}/b.jpg": f"{tmp_path}/b.jpg",
        f"file://{home}/c%20d.jpg": f"{home}/c d.jpg",
        f"file://localhost{tmp_path}/b.jpg": f"{tmp_path}/b.jpg",
        f"FILE:{tmp_path}/b.jpg": f"{tmp_path}/b.jpg",
    }
    records = records_of(folder / "list.txt", "\n".join(entries))
    assert [record.key for record in records] == list(entries.values())
    assert not [record.error for record in records if record.error]
    assert "secret" not in repr(records)
    assert records[3].values["content"].login == "user:secret@"
    for record in records:
        if record.key.startswith("/"):
            assert record.values["content"].link.startswith("file:///")
            assert content_of(record.key) == record.values["content"]


def test_what_is_no_picture_is_a_row_with_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    long = "x" * 300
    entries = {
        "gone.jpg": ("gone.jpg", "FileNotFoundError: it does not exist"),
        "folder": ("folder", "IsADirectoryError: it is a folder"),
        "pipe": ("pipe", "OSError: it is not a file"),
        f"{long}.jpg": (f"{long}.jpg", "OSError: File name too long"),
        "list.txt/x": ("list.txt/x", "FileNotFoundError: it does not exist"),
        "odd://host/x": ("odd://host/x", "ValueError: odd:// is not known"),
        "hf://owner/name": ("hf://owner/name", "ValueError: it is not one picture"),
        "s3://bucket/more.csv": ("s3://bucket/more.csv", "ValueError: it is not one picture"),
        "zero\0byte": ("list.txt#9", "ValueError: the entry holds a zero byte"),
        "file:///zero%00byte": ("file:///zero%00byte", "ValueError: it holds a zero byte"),
        "y" * 9000: ("list.txt#11", "ValueError: the entry has more than 8,192 characters"),
    }
    records = records_of(tmp_path / "list.txt", "\n".join(entries) + "\nhttp://host/last")
    found = [(record.key.removeprefix(f"{tmp_path}/"), record.error.removeprefix("source: ")) for record in records]
    assert found == [*entries.values(), ("http://host/last", "")]
    assert not [record for record in records if record.error and "content" in record.values]


def test_keys_of_other_sources_are_pictures(tmp_path: Path) -> None:
    """A CSV of annotations is a list too: its column image_path."""
    import zipfile

    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.write(PICTURES[0], "deep/a.png")
    pq.write_table(pa.table({"image": [PICTURES[1].read_bytes()]}), tmp_path / "more.parquet")
    keys = [f"{tmp_path}/photos.zip/deep/a.png", f"{tmp_path}/more.parquet#0", f"{tmp_path}/photos.zip/gone.png"]
    rows = [{"image_path": key, "error": ""} for key in keys]
    write_table(tmp_path / "annotations.csv", rows)
    good, also_good, gone = ListFile(str(tmp_path / "annotations.csv"))
    assert [good.key, also_good.key, gone.key] == keys
    assert good.values["content"].read() == PICTURES[0].read_bytes()
    assert also_good.values["content"].read() == PICTURES[1].read_bytes()
    assert gone.error.startswith("source: NotFound: ")


def test_paths_that_are_not_utf_8(tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff.jpg"
    Path(os.fsdecode(odd)).write_bytes(b"odd")
    data = b"\n".join([odd, b"gone-\xff.jpg", b"http://host/\xff", b"http://host/2", b"\\xff.jpg"])
    records = records_of(tmp_path / "list.txt", data)
    assert [short(record, tmp_path) for record in records] == [
        r"\xff.jpg",
        r"FileNotFoundError gone-\xff.jpg",
        r"ValueError http://host/\xff",
        "http://host/2",
        r"\xff.jpg",
    ]
    assert records[0].values["content"].read() == b"odd"


def test_long_lines_cost_one_row_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LONGEST_LINE", 50)
    long = "x" * 1000
    text = f"http://host/1\n{long}\nhttp://host/3\n{'y' * 49}\n{'z' * 50}\nhttp://host/6\n{long}"
    expected = ["http://host/1", "ValueError list.txt#2", "http://host/3", "FileNotFoundError " + "y" * 49]
    expected += ["ValueError list.txt#5", "http://host/6", "ValueError list.txt#7"]
    assert keys_of(tmp_path / "list.txt", text) == expected
    text = f'url,t\nhttp://host/1,x\n{long},y\n"http://host/3",z\n'
    expected = ["http://host/1", "ValueError list.csv#3", "http://host/3"]
    assert keys_of(tmp_path / "list.csv", text) == expected
    text = f'{{"url": "http://host/1"}}\n{{"url": "{long}"}}\n{{"url": "http://host/3"}}\n'
    expected = ["http://host/1", "ValueError list.jsonl#2", "http://host/3"]
    assert keys_of(tmp_path / "list.jsonl", text) == expected


def test_a_long_first_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LONGEST_LINE", 50)
    assert keys_of(tmp_path / "list.txt", "x" * 70 + "\nhttp://host/2") == ["ValueError list.txt#1", "http://host/2"]
    with pytest.raises(UserError, match=r"list\.csv has no column with a usual name"):
        source_of(tmp_path / "list.csv", "x" * 70 + "\nhttp://host/2")


# Tables


H = "http://h/"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"title;URL\nx, y;{H}1\n", {"1": "x, y"}),
        (f"title\tImage_URL\nx\t{H}1\n", {"1": "x"}),
        (f" title , url \nx,{H}1\n", {"1": "x"}),
        (f"\ufeff\n\ntitle,url\n\nx,{H}1\n,{H}2", {"1": "x", "2": None}),
        (f'url,title\n"{H}1,2","a\n\nb ""c"""\n{H}2,d', {"1,2": 'a\n\nb "c"', "2": "d"}),
        (f'url,title\n{H}1,5" wide\n{H}2,"x" y', {"1": '5" wide', "2": "x y"}),
        (f'url,title\n{H}1,"x\n{H}2,y\n{H}3,z', {"1": '"x', "2": "y", "3": "z"}),
        (f'url,title\n{H}1,"x\n{H}2,"y"\n{H}3,z', {"1": '"x', "2": "y", "3": "z"}),
        (f'url,title\n{H}1,"x\n{H}2,y"\n{H}3,z', {"1": f"x\n{H}2,y", "3": "z"}),
        (f'url,title\n{H}1,"x\n{H}2,y",\n{H}3,z', {"1": '"x', "2": 'y"', "3": "z"}),
        (f'a,title,url\n"1\n2","3\n4",{H}1\n5,"6,\n7",{H}2\n', {"1": "3\n4", "2": "6,\n7"}),
        (f"url,title\n{H}1\n{H}2,x,y,z", {"1": None, "2": "x"}),
    ],
)
def test_cells_of_csv(tmp_path: Path, text: str, expected: dict[str, str | None]) -> None:
    records = records_of(tmp_path / "list.csv", text, keep=("title",))
    assert [(record.key.removeprefix(H), record.values.get("title")) for record in records] == list(expected.items())


def test_a_long_cell(tmp_path: Path) -> None:
    """Python's csv refuses more than 131,072 characters unless it is told otherwise."""
    title = 'x, "' * 50_000
    rows = [{"url": f"{H}1", "title": title}, {"url": f"{H}2", "title": "y"}]
    write_table(tmp_path / "list.csv", rows)
    source = ListFile(str(tmp_path / "list.csv"), options=SourceOptions(keep=("title",)))
    assert [record.values["title"] for record in source] == [title, "y"]


def test_cells_of_tsv(tmp_path: Path) -> None:
    text = f'title\turl\n"open\t{H}1\na,"b"\t{H}2\n"a\nb"\t{H}3'
    records = records_of(tmp_path / "list.tsv", text, keep=("title",))
    found = [(record.key.removeprefix(H), record.values["title"]) for record in records]
    assert found == [("1", '"open'), ("2", 'a,"b"'), ("3", "a\nb")]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (['"a"', '{"x": [1.5, null]}'], ["a", '{"x": [1.5, null]}']),
        (["null", "NaN", "true"], [None, "NaN", "true"]),
        (['"é"', r'"\ud800\u0000"', '""'], ["é", "\\ud800\ufffd", ""]),
    ],
)
def test_cells_of_json(tmp_path: Path, values: list[str], expected: list[str | None]) -> None:
    text = "".join(f'\n {{"url": " {H}{number}", "title": {value}}}\n' for number, value in enumerate(values))
    records = records_of(tmp_path / "list.jsonl", text, keep=("title",))
    assert [record.key for record in records] == [f"{H}{number}" for number in range(len(values))]
    assert [record.values.get("title") for record in records] == expected


def test_bytes_in_a_kept_cell_that_are_not_utf_8(tmp_path: Path) -> None:
    (record,) = records_of(tmp_path / "list.csv", b"url,title\nhttp://host/1,caf\xe9\0\n", keep=("title",))
    assert record.values["title"] == "caf\\xe9\ufffd"


def test_entries_without_an_address(tmp_path: Path) -> None:
    csv = 'title,url\nempty,\nblank,"  "\nshort\nfine,http://host/1\n'
    records = records_of(tmp_path / "list.csv", csv, keep=("title",))
    assert [short(record, tmp_path) for record in records] == [
        *("ValueError list.csv#2", "ValueError list.csv#3", "ValueError list.csv#4", "http://host/1"),
    ]
    assert [record.values["title"] for record in records] == ["empty", "blank", "short", "fine"]
    assert records[2].error == "source: ValueError: the row has too few cells, 1 of 2"
    lines = [
        "{",
        "[1]",
        '"http://host/0"',
        '{"url": 5}',
        '{"url": null}',
        "{}",
        '{"url": "http://host/1"}',
        "[" * 99_999,
    ]
    records = records_of(tmp_path / "list.jsonl", "\n".join(lines))
    kinds = ["JSONDecodeError", *["ValueError"] * 5, "", "RecursionError"]
    assert [short(record, tmp_path) for record in records] == [
        f"{kind} list.jsonl#{number}" if kind else "http://host/1" for number, kind in enumerate(kinds, 1)
    ]
    assert records[3].error == "source: ValueError: url is 5, which is no address"


CHOOSE = "choose the pictures' one with --column NAME"


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        ("x,y", {}, f"has no column with a usual name such as url, path or image (there are: x, y): {CHOOSE}"),
        ("url,Path", {}, f"a.csv has the columns url and Path: {CHOOSE}"),
        ("url,title", {"column": "tilte"}, "has no column 'tilte' (did you mean 'title'?): correct --column"),
        ("url,title", {"keep": ("tilte",)}, "has no column 'tilte' (did you mean 'title'?): correct --keep"),
        ("url,title", {"keep": ("title", "title=x")}, "--keep title=x: that column is kept already"),
        ("url,title", {"keep": ("title=x", "url=x")}, "--keep url=x: that column is kept already"),
        ("url,error", {"keep": ("error",)}, "'error' cannot be the name of a column: use --keep 'error=NAME'"),
        ("url,a b", {"keep": ("a b",)}, "'a b' cannot be the name of a column: use --keep 'a b=NAME'"),
        ("url,a", {"keep": ("a=text_vector",)}, "text_vector as text, and that column of the CSV holds vector"),
    ],
)
def test_mistakes_in_columns_are_named(tmp_path: Path, header: str, options: Row, message: str) -> None:
    with pytest.raises(UserError) as caught:
        source_of(tmp_path / "a.csv", f"{header}\n1,2\n", **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("a.tsv", "http://host/1\ttitle\n", {}, "a.tsv has no column with a usual name"),
        (
            "a.txt",
            H,
            {"keep": ("title",)},
            "a.txt has no header, so there is no 'title' to keep: add a header, or",
        ),
        ("a.jsonl", "[1]\n[2]\n", {}, "a.jsonl holds no JSON object in its first lines: give an object a line"),
        ("a.jsonl", '{"url": ""}', {"keep": ("title",)}, "a.jsonl has no column 'title' (there are: url)"),
        ("a.txt", "\n \n", {}, "a.txt is empty: name a list of pictures"),
        ("a.csv", "", {}, "a.csv is empty: name a list of pictures"),
        ("a.parquet", "PAR1", {}, "a.parquet is not a whole Parquet file"),
        ("a.txt.gz", "no archive", {}, "a.txt.gz cannot be read (Not a gzipped file (b'no')): name another list"),
        ("a.txt.zst", "no archive", {}, "a.txt.zst cannot be read ("),
    ],
)
def test_mistakes_are_named(tmp_path: Path, name: str, text: str, options: Row, message: str) -> None:
    with pytest.raises(UserError) as caught:
        source_of(tmp_path / name, text, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_column_and_those_that_come_along_are_chosen(tmp_path: Path) -> None:
    text = "a,b=c,url,text\nhttp://host/1,2,3,4\n"
    source = source_of(tmp_path / "a.csv", text, column="a", keep=("b=c=x", "text", "url=link"))
    assert dict(source.columns) == {
        "x": "text",
        "text": "text",
        "link": "text",
        "source_url": "text",
        "http_status": "number",
    }
    (record,) = source
    assert record.key == "http://host/1"
    assert {name: record.values[name] for name in ("x", "text", "link")} == {"x": "2", "text": "4", "link": "3"}


def test_columns_of_json_may_come_late(tmp_path: Path) -> None:
    text = '{"title": 1}\n' * 20 + '{"url": "http://host/1", "author": "x"}\n'
    *_, record = records_of(tmp_path / "a.jsonl", text, keep=("author",))
    assert record.values["author"] == "x"


@pytest.mark.parametrize(
    ("name", "text", "options", "expected"),
    [
        ("a.csv", "http://host/1\nhttp://host/2,x", {}, ["http://host/1", "http://host/2,x"]),
        ("a.csv", "gone.jpg\nhttp://host/2", {}, ["FileNotFoundError gone.jpg", "http://host/2"]),
        ("a.csv", "url\nhttp://host/1", {}, ["http://host/1"]),
        ("a.csv", "my.jpg\nhttp://host/1", {"column": "my.jpg"}, ["http://host/1"]),
        ("a.csv", "path, of a;photo\nx, y;http://host/1", {"column": "photo"}, ["http://host/1"]),
        ("a.txt", "title,my\nx,http://host/1", {"column": "my"}, ["http://host/1"]),
        ("a.txt", "http://host/1\nhttp://host/2", {"column": "my"}, ["http://host/1", "http://host/2"]),
        ("a.txt", '{"url": "http://host/1"}\n', {}, ["http://host/1"]),
        ("a.txt", "# note\nhttp://host/1", {}, ["FileNotFoundError # note", "http://host/1"]),
    ],
)
def test_with_and_without_a_header(tmp_path: Path, name: str, text: str, options: Row, expected: list[str]) -> None:
    assert keys_of(tmp_path / name, text, **options) == expected


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_column_of_priorities(tmp_path: Path, name: str) -> None:
    rows = [
        {"url": "http://host/1", "priority": 2.5},
        {"url": "http://host/2", "priority": None},
        {"url": "", "priority": -1},
    ]
    write_table(tmp_path / name, rows)
    source = ListFile(str(tmp_path / name))
    assert source.has_priority
    assert "priority" not in source.columns
    assert [record.values["priority"] for record in source] == [2.5, None, -1.0]
    source = ListFile(str(tmp_path / name), options=SourceOptions(keep=("priority=rank",)))
    assert source.columns["rank"] == "number"
    assert [record.values.get("rank") for record in source] == [2.5, None, -1.0]
    assert [record.values["priority"] for record in source] == [2.5, None, -1.0]
    source = ListFile(str(tmp_path / name), options=SourceOptions(keep=("priority",)))
    assert source.columns["priority"] == "number"
    assert [record.values["priority"] for record in source] == [2.5, None, -1.0]


@pytest.mark.parametrize("value", ["high", "nan", "inf", ""])
def test_a_priority_that_is_no_number_is_none(tmp_path: Path, value: str) -> None:
    (record,) = records_of(tmp_path / "a.csv", f"url,priority\nhttp://host/1,{value}\n")
    assert record.values["priority"] is None


def test_types_of_parquet(tmp_path: Path) -> None:
    import datetime
    import decimal

    day = datetime.datetime(2026, 1, 2, 3, 4)
    table = pa.table(
        {
            "URL": pa.array(["http://host/1", "http://host/2"]).dictionary_encode(),
            "text": ["é", None],
            "whole": pa.array([7, None], pa.int8()),
            "real": [0.5, float("nan")],
            "decimal": [decimal.Decimal("1.25"), None],
            "flag": [True, False],
            "day": [day, None],
            "vector": pa.array([[1.5, 2], [1, None]], pa.list_(pa.float32())),
            "fixed": pa.array([[1, 2], [3, 4]], pa.list_(pa.int16(), 2)),
            "words": [["a"], []],
            "struct": [{"x": 1, "day": day, "data": b"\xff", "is": True}, None],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    kept = tuple(table.column_names[1:])
    source = ListFile(str(tmp_path / "a.parquet"), options=SourceOptions(keep=kept))
    types = "text number number number text text vector vector json json".split()
    assert dict(source.columns) == {
        **dict(zip(kept, types, strict=True)),
        "source_url": "text",
        "http_status": "number",
    }
    first, second = source
    assert [first.values[name] for name in kept] == [
        *("é", 7, 0.5, 1.25, "true", "2026-01-02T03:04:00", [1.5, 2.0], [1, 2], ["a"]),
        {"x": 1, "day": "2026-01-02T03:04:00", "data": "\\xff", "is": True},
    ]
    assert {name: second.values[name] for name in kept if name in second.values} == {
        "flag": "false",
        "fixed": [3, 4],
        "words": [],
    }
    for options, message in (
        (SourceOptions(column="whole"), "has whole as int8, which is no address: choose another with --column NAME"),
        (SourceOptions(keep=("tex",)), "has no column 'tex' (did you mean 'text'?)"),
    ):
        with pytest.raises(UserError) as caught:
            ListFile(str(tmp_path / "a.parquet"), options=options)
        assert message in str(caught.value)


# Pictures within a list


def write_pictures(path: Path, row_group_size: int = 2) -> list[bytes | None]:
    """A list as `datasets` writes it: with the bytes, with the path alone, and without either."""
    data = [picture.read_bytes() for picture in PICTURES]
    cells = [{"bytes": each, "path": None} for each in data]
    cells[1] = {"bytes": None, "path": "beside.png"}
    cells[2] = None
    (path.parent / "beside.png").write_bytes(data[1])
    table = pa.table(
        {"image": cells, "title": [picture.stem for picture in PICTURES], "url": ["x"] * 6, "hash": [b"y"] * 6}
    )
    pq.write_table(table, path, row_group_size=row_group_size)
    return [*data[:2], None, *data[3:]]


def read(record: Record) -> bytes | None:
    try:
        content: bytes = record.values["content"].read()
        return content
    except FileNotFoundError:
        return None


@pytest.mark.parametrize("row_group_size", [2, 6])
@pytest.mark.parametrize("keep", [(), ("title",)])
def test_pictures_in_parquet(tmp_path: Path, keep: tuple[str, ...], row_group_size: int) -> None:
    path = tmp_path / "a.parquet"
    data = write_pictures(path, row_group_size=row_group_size)
    source = ListFile(str(path), options=SourceOptions(keep=keep))
    assert dict(source.columns) == dict.fromkeys(keep, "text")
    records = list(source)
    assert [record.key for record in records] == [f"{path}#{row}" for row in range(6)]
    assert [read(record) for record in records] == data
    assert [read(record) for record in reversed(records)] == data[::-1], "in any order"
    assert len({record.values["content"].identity() for record in records}) == 6
    for row in (6, 99):
        with pytest.raises(NotFound, match=f"has no entry {row}"):
            content_of(f"{path}#{row}")
    if keep:
        assert [record.values["title"] for record in records] == [picture.stem for picture in PICTURES]
    for record in records:
        (again,) = open_source([record.key])
        assert again.key == record.key
        assert read(again) == read(record)


def test_a_path_that_is_gone_is_an_error_of_its_row(tmp_path: Path) -> None:
    """A UserError would end the run."""
    cells = [{"bytes": None, "path": "gone.png"}, {"bytes": b"two", "path": ""}]
    pq.write_table(pa.table({"image": cells}), tmp_path / "a.parquet")
    first, second = ListFile(str(tmp_path / "a.parquet"))
    with pytest.raises(OSError, match="gone"):
        first.values["content"].read()
    assert second.values["content"].read() == b"two"
    (tmp_path / "a.parquet").unlink()
    parquet.pictures_of.cache_clear()
    with pytest.raises(OSError, match="does not exist"):
        second.values["content"].read()


def test_pictures_of_a_column_that_is_named(tmp_path: Path) -> None:
    """The key names it as well, so that it stands for the same picture without the option."""
    path = tmp_path / "a.parquet"
    table = {"photo": [b"one", b"two"], "mask": [b"three", b"four"], "image": ["http://host/1", "http://host/2"]}
    pq.write_table(pa.table(table), path)
    records = list(ListFile(str(path), options=SourceOptions(column="mask")))
    assert [record.key for record in records] == [f"{path}#mask/0", f"{path}#mask/1"]
    assert [content_of(record.key).read() for record in records] == [b"three", b"four"]
    assert [record.key for record in ListFile(str(path))] == ["http://host/1", "http://host/2"]


def test_the_column_of_pictures_is_preferred_and_found_without_a_usual_name(tmp_path: Path) -> None:
    for columns, expected in (
        ({"image": [b"one"], "url": ["http://host/1"]}, "a.parquet#0"),
        ({"photo": [b"one"], "title": ["x"]}, "a.parquet#0"),
        ({"photo": [b"one"], "url": ["http://host/1"]}, "http://host/1"),
    ):
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        (record,) = ListFile(str(tmp_path / "a.parquet"))
        assert short(record, tmp_path) == expected
    pq.write_table(pa.table({"image": [b"one"], "url": ["http://host/1"]}), tmp_path / "a.parquet")
    (record,) = ListFile(str(tmp_path / "a.parquet"), options=SourceOptions(column="url"))
    assert record.key == "http://host/1"
    pq.write_table(pa.table({"a": [b"one"], "b": [b"two"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no column with a usual name"):
        ListFile(str(tmp_path / "a.parquet"))


def test_pictures_in_json(tmp_path: Path) -> None:
    import base64

    data = PICTURES[0].read_bytes()
    (tmp_path / "beside.png").write_bytes(b"beside")
    rows = [
        {"image": {"bytes": base64.b64encode(data).decode(), "path": "a.png"}},
        {"image": {"bytes": None, "path": "beside.png"}},
        {"image": {"bytes": "no base64!"}},
        {"image": {"bytes": None}},
        {"image": "http://host/1"},
    ]
    path = tmp_path / "a.jsonl"
    records = records_of(path, "".join(json.dumps(row) + "\n" for row in rows))
    assert [short(record, tmp_path) for record in records] == [
        *("a.jsonl#1", "beside.png", "ValueError a.jsonl#3", "ValueError a.jsonl#4", "http://host/1")
    ]
    assert records[0].values["content"].read() == data
    assert content_of(records[0].key).read() == data
    assert content_of(records[0].key).identity() == records[0].values["content"].identity()


def test_pictures_are_found_by_threads_with_each_batch_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reading threads take eight pictures each, so they ask for them out of order."""
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr(parquet, "PICTURES_TOGETHER_BYTES", 7_000)
    data = [number.to_bytes(2) * 500 for number in range(400)]
    pq.write_table(pa.table({"image": data}), tmp_path / "a.parquet", row_group_size=50)
    records = list(ListFile(str(tmp_path / "a.parquet")))
    begun: list[int] = []
    batches_from = parquet.Pictures._batches_from
    monkeypatch.setattr(
        parquet.Pictures, "_batches_from", lambda self, group: begun.append(group) or batches_from(self, group)
    )
    order = [start + place * 8 + step for start in range(0, 400, 32) for step in range(8) for place in range(4)]
    order = [row for row in order if row < 400]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: records[row].values["content"].read(), order))
    assert found == [data[row] for row in order]
    assert len(begun) < 5


def test_pictures_that_nobody_asks_for_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "WAITING_BYTES", 20_000)
    monkeypatch.setattr(parquet, "PICTURES_TOGETHER_BYTES", 4_000)
    waiting_bytes: list[int] = []
    batches_from = parquet.Pictures._batches_from

    def noted(self: parquet.Pictures, group: int) -> Iterator[Any]:
        for batch in batches_from(self, group):
            waiting_bytes.append(sum(map(len, self._waiting.values())))
            assert waiting_bytes[-1] == self._waiting_bytes
            yield batch

    monkeypatch.setattr(parquet.Pictures, "_batches_from", noted)
    pq.write_table(pa.table({"image": [bytes([row]) * 1000 for row in range(200)]}), tmp_path / "a.parquet")
    contents = [record.values["content"] for record in ListFile(str(tmp_path / "a.parquet"))]
    for row in (3, 3, 199, 185, 185, 3, 198, 190, 190):  # some were dropped, or are taken already, and are read again
        assert contents[row].read() == bytes([row]) * 1000
    assert 15_000 < max(waiting_bytes) <= 20_000


def damage(path: Path, column: int, group: int) -> None:
    """Overwrite the header of a column's first page in one row group."""
    where = pq.ParquetFile(path).metadata.row_group(group).column(column)
    with path.open("r+b") as file:
        file.seek(min(filter(None, (where.dictionary_page_offset, where.data_page_offset))))
        file.write(b"\xff" * 30)


def test_a_damaged_row_group_costs_its_own_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"url": [f"http://host/{row}" for row in range(9)]}), path, row_group_size=3)
    damage(path, 0, 1)
    records = list(ListFile(str(path)))
    assert [short(record, tmp_path) for record in records] == [
        *(f"http://host/{row}" for row in range(3)),
        "OSError a.parquet#3",
        *(f"http://host/{row}" for row in range(6, 9)),
    ]
    assert records[3].error.startswith("source: OSError: rows 3 to 5 cannot be read (")
    with pytest.raises(UserError, match="rows 3 to 5"):
        content_of(records[3].key)


def test_text_in_parquet_that_is_not_utf_8_costs_its_row(tmp_path: Path) -> None:
    data = [b"http://h/1", b"http://h/\xff", b"http://h/3"]
    text = pa.array(data, pa.binary()).view(pa.string())
    pq.write_table(pa.table({"url": text}), tmp_path / "a.parquet")
    records = list(ListFile(str(tmp_path / "a.parquet")))
    assert [short(record, tmp_path) for record in records] == [
        *("http://h/1", "UnicodeDecodeError a.parquet#1", "http://h/3")
    ]
    (again,) = open_source([records[1].key])
    assert again.error == records[1].error


def test_damaged_pictures_cost_their_own_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [bytes([row]) * 9 for row in range(90)]}), path, row_group_size=30)
    damage(path, 0, 1)
    records = list(ListFile(str(path)))
    attempts: list[int] = []
    batches_from = parquet.Pictures._batches_from
    monkeypatch.setattr(
        parquet.Pictures, "_batches_from", lambda self, group: attempts.append(group) or batches_from(self, group)
    )
    for row, record in enumerate(records):
        if 30 <= row < 60:
            with pytest.raises(OSError):
                record.values["content"].read()
        else:
            assert record.values["content"].read() == bytes([row]) * 9
    assert len(attempts) <= 3, "the group is not read again for each row"


def test_a_list_that_changes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [b"one"]}), path)
    (old,) = ListFile(str(path))
    assert old.values["content"].read() == b"one"
    pq.write_table(pa.table({"image": [b"other"]}), path)
    (new,) = ListFile(str(path))
    assert new.values["content"].read() == b"other"
    assert new.values["content"].identity() != old.values["content"].identity()


# Keys, and what is accepted


def test_what_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "picture.txt").write_bytes(PICTURES[0].read_bytes())
    (tmp_path / "odd.csv#3").touch()
    (tmp_path / "a.txt").write_text("http://host/1")
    for (
        argument
    ) in "- a.txt a.CSV a.tsv.gz a.ndjson.zst gone.parquet s3://bucket/a.csv a.csv#12 a.parquet#x/3 -#4".split():
        assert ListFile.accepts(argument), argument
    others = (
        "a a.jpg a.csv.jpg folder.csv picture.txt odd.csv#3 a.csv#x a.jpg#3 http://host/a.csv https://host/a.txt?b.csv"
    )
    for argument in others.split():
        assert not ListFile.accepts(argument), argument


def test_keys_of_entries_without_an_address(tmp_path: Path) -> None:
    """They stand for that entry, as long as it is still there and has no address."""
    path = tmp_path / "a.csv"
    records = records_of(path, "url,title\nhttp://host/1,x\n,y\nhttp://host/2,z\n\n,w\n")
    broken = [record for record in records if record.error]
    assert [record.key for record in broken] == [f"{path}#3", f"{path}#6"]
    for record in [*broken, *reversed(broken)]:
        (again,) = open_source([record.key])
        assert (again.key, again.error) == (record.key, record.error)
    for number in (2, 5, 99):
        with pytest.raises(NotFound, match=f"has no entry {number} without an address"):
            content_of(f"{path}#{number}")
    list(open_source([f"{path}#3"]))
    path.write_text("url,title\nhttp://host/1,x\nhttp://host/9,y\n")
    with pytest.raises(NotFound):
        content_of(f"{path}#3")
    with pytest.raises(NotFound):
        content_of(f"{tmp_path}/gone.csv#3")
    with pytest.raises(UserError, match="cannot be read again"):
        content_of("-#3")


def test_keys_of_a_list_whose_name_is_not_utf_8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.parquet"))
    pd.DataFrame({"image": [b"one"]}).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").rename(path)
    (record,) = ListFile(str(path))
    assert record.key == f"{tmp_path}/\\xff.parquet#0"
    assert content_of(record.key).read() == b"one"


def test_entries_are_found_in_order_without_reading_the_list_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [record.key for record in records_of(tmp_path / "a.txt", "\0\n" * 50)]
    reads: list[int] = []
    read = lines.Lines._read
    monkeypatch.setattr(lines.Lines, "_read", lambda self: reads.append(1) or read(self))
    for key in keys:
        (record,) = open_source([key])
        assert record.key == key
    assert len(reads) == 2, "for the first line, and for all"
    assert [record.key for record in open_source([keys[7]])] == [keys[7]]
    assert len(reads) == 3


# Streams, lengths, memory


def test_the_rough_length(tmp_path: Path) -> None:
    rows = [{"url": f"http://host/{number:05}", "title": "x"} for number in range(20_000)]
    for name in ("a.txt", "a.csv", "a.jsonl", "a.parquet"):
        write_table(tmp_path / name, rows)
        assert operator.length_hint(ListFile(str(tmp_path / name)), -1) == pytest.approx(20_000, rel=0.01)
    assert operator.length_hint(source_of(tmp_path / "b.txt", "http://host/1\nhttp://host/2"), -1) == 2
    assert operator.length_hint(source_of(tmp_path / "b.txt", "http://host/1\rhttp://host/2\r"), -1) == 2
    assert operator.length_hint(source_of(tmp_path / "b.txt", "x" * 100_000), -1) == 1
    write_table(tmp_path / "a.txt.gz", rows, "gz")
    assert operator.length_hint(ListFile(str(tmp_path / "a.txt.gz")), -1) == -1
    assert operator.length_hint(ListFile(f"{tmp_path}/a.txt#1"), -1) == 1


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_a_torn_archive_ends_with_an_error(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"a.txt.{compression}"
    write_table(path, [{"url": f"http://host/{number * 7919 % 100_003}"} for number in range(100_000)], compression)
    os.truncate(path, path.stat().st_size // 2)
    records = list(ListFile(str(path)))
    assert len(records) > 10_000
    assert {record.error for record in records[:-1]} == {""}
    assert "the list cannot be read beyond line" in records[-1].error
    assert records[-1].key == f"{path}#{len(records)}"


STREAM = """
import os, sys
from vec_pipeline.record import SourceOptions
from vec_pipeline.sources import open_source
source = open_source(["-"], options=SourceOptions(column=sys.argv[1]))
assert source.is_stream
for record in source:
    print(record.key.removeprefix(os.getcwd() + "/"), record.error.split(": ")[1] if record.error else "", flush=True)
"""


def streamed(text: bytes, folder: Path, column: str = "") -> list[str]:
    run = subprocess.run(
        [sys.executable, "-c", STREAM, column], input=text, capture_output=True, cwd=folder, timeout=60,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr.decode()
    return [line.strip() for line in run.stdout.decode().splitlines()]


def test_standard_input(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    lines = b"\n\na.jpg\r\n\0\nhttp://host/1"
    assert streamed(lines, tmp_path) == ["a.jpg", "-#4 ValueError", "http://host/1"]
    assert streamed(lines, tmp_path, "url") == ["a.jpg", "-#4 ValueError", "http://host/1"]
    table = b"\xef\xbb\xbftitle;url\nx;http://host/1\ny;\n"
    assert streamed(table, tmp_path, "url") == ["http://host/1", "-#3 ValueError"]
    objects = b'{"a": "http://host/1"}\n{"a": "http://host/2"}\n[]'
    assert streamed(objects, tmp_path, "a") == ["http://host/1", "http://host/2", "-#3 ValueError"]
    assert streamed("http://host/ü\r\n".encode("utf-16"), tmp_path) == ["http://host/ü"]


def test_entries_of_standard_input_come_as_they_are_written(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STREAM, ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    assert process.stdin and process.stdout
    try:
        for number in range(3):
            process.stdin.write(f"http://host/{number}\n".encode())
            process.stdin.flush()
            assert process.stdout.readline().strip() == f"http://host/{number}".encode()
        process.stdin.close()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


MEMORY = f"""
import sys
from vec_pipeline.record import SourceOptions
from vec_pipeline.sources import open_source
source = open_source([sys.argv[1]], options=SourceOptions(keep=("title",)))
print(sum(not record.error for record in source))
{PRINT_PEAK_MB}
"""


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_memory_does_not_grow_with_the_list(tmp_path: Path, kind: str) -> None:
    peaks_mb = []
    for rows in (2_000, 200_000):
        path = tmp_path / f"{rows}.{kind}"
        write_table(path, [{"url": f"http://host/{number}", "title": f"{number} " * 20} for number in range(rows)])
        program = [sys.executable, "-c", MEMORY, str(path)]
        run = subprocess.run(program, cwd=PROJECT, capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr
        found, peak_mb = map(int, run.stdout.split())
        assert found == rows
        peaks_mb.append(peak_mb)
    assert peaks_mb[1] - peaks_mb[0] < (40 if kind == "parquet" else 8), peaks_mb


@pytest.mark.parametrize("end", ["", 'z"'])
def test_quotes_without_an_end_are_looked_at_once(end: str) -> None:
    """Each line ends one quoted cell and begins another: to look for the end from each of them would take an hour."""
    texts = ['x","y'] * 60_000 + [end, "last,row"]
    begun = time.process_time()
    rows = list(Rows(iter(enumerate(texts, 2)), ",", 3))
    assert rows[0] == (2, ['x"', '"y'])
    assert rows[-1][1] == ["last", "row"]
    assert len(rows) == 60_001 + bool(end)
    assert time.process_time() - begun < 10


def test_a_quote_is_not_looked_for_without_end() -> None:
    """It would hold all of the list in memory."""
    lines = iter(enumerate(['x,"', *["y" * 1000] * 2000], 2))
    rows = iter(Rows(lines, ",", 2))
    assert next(rows) == (2, ["x", '"'])
    left = len(list(lines))
    assert 900 < left < 1100


# Hostile lists


@given(st.lists(st.binary(max_size=40).filter(lambda data: not set(data) & set(b"\r\n")), max_size=8))
@settings(max_examples=150, deadline=None)
def test_any_bytes_in_lines_lose_no_entry_after_them(parts: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check_hostile(Path(folder) / "list.txt", b"http://first/\n", parts, b"\nhttp://last/\n", len(parts))


@given(st.lists(st.binary(max_size=40).filter(lambda data: not set(data) & set(b'\r\n"')), max_size=8))
@settings(max_examples=150, deadline=None)
def test_any_bytes_in_a_table_lose_no_entry_after_them(parts: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check_hostile(
            Path(folder) / "list.csv", b"title,url\nx,http://first/\n", parts, b"\ny,http://last/\n", len(parts)
        )


@given(st.lists(st.binary(max_size=40).filter(lambda data: not set(data) & set(b"\r\n")), max_size=8))
@settings(max_examples=150, deadline=None)
def test_any_bytes_in_json_lines_lose_no_entry_after_them(parts: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        head, end = b'{"url":"http://first/","t":1}\n', b'\n{"url":"http://last/"}'
        check_hostile(Path(folder) / "list.jsonl", head, parts, end, len(parts))


def check_hostile(path: Path, head: bytes, parts: list[bytes], end: bytes, most: int) -> None:
    path.write_bytes(head + b"\n".join(parts) + end)
    records = list(ListFile(str(path)))
    assert records[0].key == "http://first/"
    assert records[-1].key == "http://last/"
    assert len(records) <= 2 + most
    for record in records:
        assert record.key.encode(), "it can be written"
        assert bool(record.error) != ("content" in record.values)


@given(st.text(alphabet='"",\n ab', max_size=60))
@settings(max_examples=400, deadline=None)
def test_quotes_lose_no_row_after_a_row_of_its_own(text: str) -> None:
    """Whatever the quotes do, a row after a line that no quote can span is found."""
    lines = enumerate([*text.split("\n"), "x" * (1 << 20), "last,row"], 2)
    rows = list(Rows(iter(lines), ",", 2))
    assert rows[-1][1] == ["last", "row"]
    assert [number for number, _ in rows] == sorted({number for number, _ in rows})


@given(st.lists(st.lists(st.text(alphabet='",;\n\tab 𝔛', max_size=8), min_size=2, max_size=2), max_size=8))
@settings(max_examples=200, deadline=None)
def test_rows_are_those_that_python_has_written(cells: list[list[str]]) -> None:
    import csv
    import io

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([[f"{left}.", right] for left, right in cells])
    lines = list(enumerate(text.getvalue().split("\n"), 2))
    assert [row for _, row in Rows(iter(lines), ",", 2)] == [[f"{left}.", right] for left, right in cells]


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_file_is_a_list_or_a_mistake_that_is_named(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a.txt", "a.csv", "a.tsv", "a.jsonl", "a.parquet", "a.txt.gz", "a.csv.zst"):
            path = Path(folder) / name
            path.write_bytes(data)
            try:
                records = list(ListFile(str(path)))
            except UserError:
                continue
            for record in records:
                record.key.encode()


# Remote lists


def test_a_remote_list_and_its_relative_entries() -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    store.pipe("/lists/a.csv", b"file_name,title\nb.png,x\nhttp://host/1,y\n/none/c.png,z\n")
    store.pipe("/lists/b.png", PICTURES[0].read_bytes())
    source = open_source(["memory://lists/a.csv"], options=SourceOptions(keep=("title",)))
    records = list(source)
    assert [record.key for record in records] == ["memory://lists/b.png", "http://host/1", "/none/c.png"]
    assert records[0].values["content"].read() == PICTURES[0].read_bytes()
    assert operator.length_hint(source) == 4
    with pa.BufferOutputStream() as stream:
        pq.write_table(pa.table({"image": [b"one", b"two"]}), stream)
        store.pipe("/lists/c.parquet", stream.getvalue().to_pybytes())
    records = list(open_source(["memory://lists/c.parquet"]))
    assert [record.key for record in records] == ["memory://lists/c.parquet#0", "memory://lists/c.parquet#1"]
    (record,) = ListFile(records[1].key)
    assert record.values["content"].read() == b"two"
    with pytest.raises(NotFound, match="does not exist"):
        open_source(["memory://lists/gone.txt"])
    with pytest.raises(UserError, match="odd:// is not known"):
        ListFile("odd://lists/a.txt")


def test_passwords_of_a_remote_list_are_in_no_key_and_no_message() -> None:
    import fsspec

    fsspec.filesystem("memory").pipe("/user:secret@lists/a.txt", b"\0\nb.png\nhttp://host/1")
    records = list(ListFile("memory://user:secret@lists/a.txt"))
    keys = ["memory://lists/a.txt#1", "memory://lists/b.png", "http://host/1"]
    assert [record.key for record in records] == keys
    assert "secret" not in repr(records)
    for name in ("gone.txt", "a.txt#3", "b.jsonl"):
        fsspec.filesystem("memory").pipe("/user:secret@lists/b.jsonl", b"x")
        with pytest.raises(UserError) as caught:
            list(ListFile(f"memory://user:secret@lists/{name}"))
        assert "secret" not in str(caught.value)


# Through the program


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(PROJECT / "run.py"), *map(str, arguments)]


def worker(*arguments: object, stdin: bytes | None = None) -> Run:
    run = subprocess.run(command(*arguments), input=stdin, capture_output=True, timeout=240)
    assert run.returncode in (0, 1), run.stderr.decode()
    return subprocess.CompletedProcess(run.args, run.returncode, run.stdout.decode(), run.stderr.decode())


def rows_of(output: Path) -> pd.DataFrame:
    table = load_annotations(output).set_index("image_path").drop(columns=["timestamp"])
    assert table.index.is_unique
    return table.sort_index()


def assert_same_rows(one: pd.DataFrame, other: pd.DataFrame) -> None:
    assert list(one.index) == list(other.index)
    assert list(one.columns) == list(other.columns)
    for name in one.columns:
        for left, right in zip(one[name], other[name], strict=True):
            if name == "image_vector" and left is not None:
                assert left == pytest.approx(right, abs=1e-5)  # the last digits depend on what else is in the batch
            else:
                assert str(left) == str(right)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, HttpServer, Path]:
    """One run over a list of each format; the folder, the server, which is gone, and the CSV."""
    folder = tmp_path_factory.mktemp("lists")
    (folder / "config.yaml").write_text(CONFIG)
    with HttpServer() as server:
        for number, name in enumerate(FORMATS):
            rows = [
                {"url": server.url(f"/ok/{number}.png"), "title": f"{name},\n1"},
                {"url": str(PICTURES[number]), "title": f"{name} 2"},
                {"url": server.url(f"/status/404/9/{number}.png"), "title": f"{name} 3"},
                {"url": "", "title": f"{name} 4"},
            ]
            write_table(folder / name, rows, name.partition(".")[2].partition(".")[2])
        write_pictures(folder / "pictures.parquet")
        lists = [folder / name for name in (*FORMATS, "pictures.parquet")]
        output = folder / "annotations.csv"
        worker(*lists, "--keep", "title", "--config", folder / "config.yaml", "--output", output)
        return folder, server, output


def test_each_format_has_its_rows(finished: tuple[Path, HttpServer, Path]) -> None:
    folder, server, output = finished
    table = rows_of(output)
    assert len(table) == 5 * 4 + 6
    for number, name in enumerate(FORMATS):
        web, local = table.loc[server.url(f"/ok/{number}.png")], table.loc[str(PICTURES[number])]
        assert (web["title"], web["source_url"], web["http_status"]) == (f"{name},\n1", web.name, 200)
        assert (local["title"], local["source_url"], local["error"]) == (f"{name} 2", "", "")
        gone = table.loc[server.url(f"/status/404/9/{number}.png")]
        assert gone["error"].startswith("download: HTTP404"), gone["error"]
        assert gone["title"] == f"{name} 3"
    empty = table[table["error"].str.startswith("source: ")]
    assert sorted(empty["title"]) == [
        f"{name} 4" for name in ("a.csv.gz", "b.tsv", "c.jsonl", "d.parquet", "e.csv.zst")
    ]
    pictures = table.loc[[f"{folder}/pictures.parquet#{row}" for row in range(6)]]
    assert list(pictures["title"]) == [picture.stem for picture in PICTURES]
    assert list(pictures["error"] == "") == [True, True, False, True, True, True]
    for row in (0, 1, 3, 4):  # the same pictures, from a file and from a list
        local = table.loc[str(PICTURES[row])]
        assert local["image_vector"] == pytest.approx(pictures["image_vector"].iloc[row], abs=1e-6)


def tool(*arguments: object) -> str:
    run = subprocess.run(
        [sys.executable, "-m", "vec_pipeline", *map(str, arguments)],
        cwd=PROJECT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_report_and_search_open_rows_of_lists(finished: tuple[Path, HttpServer, Path]) -> None:
    folder, _, output = finished
    tool("report", "--csv", output, "--out", folder / "report")
    assert len(list((folder / "report").rglob("*.webp"))) == 15, "five of files, five of the store, five of the list"
    found = tool("search", "--csv", output, "--like", f"{folder}/pictures.parquet#3", "--top", "3")
    assert f"{folder}/pictures.parquet#3" in found
    assert str(PICTURES[3]) in found, "the same picture"


def test_a_killed_run_is_resumed(tmp_path: Path) -> None:
    """After kills at any moment, the rows are those of an undisturbed run, once each."""
    (tmp_path / "config.yaml").write_text(CONFIG + "chunk_size: 4\n")
    with HttpServer() as server:
        rows = [{"url": server.url(f"/ok/{number}.png"), "title": str(number)} for number in range(40)]
        rows += [{"url": str(picture), "title": picture.stem} for picture in PICTURES]
        rows += [{"url": f"gone{number}.jpg", "title": "gone"} for number in range(9)]
        rows += [*rows[:9], {"url": "", "title": ""}]
        write_table(tmp_path / "a.csv", rows[::-1])
        options = ("--keep", "title", "--config", tmp_path / "config.yaml", "--output")
        worker(tmp_path / "a.csv", *options, tmp_path / "undisturbed.csv")
        output = tmp_path / "killed.csv"
        for most in (5_000, 40_000):
            process = subprocess.Popen(
                command(tmp_path / "a.csv", *options, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            deadline = time.monotonic() + 200
            while process.poll() is None and time.monotonic() < deadline:
                if output.exists() and output.stat().st_size > most:
                    process.send_signal(signal.SIGKILL)
                time.sleep(0.002)
            assert process.wait(10) == -signal.SIGKILL
        worker(tmp_path / "a.csv", *options, output)
        assert_same_rows(rows_of(output), rows_of(tmp_path / "undisturbed.csv"))
        assert len(rows_of(output)) == 40 + len(PICTURES) + 9 + 1


def test_a_list_through_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    table = "title,my picture\n" + "".join(f"{picture.stem},{picture}\n" for picture in PICTURES)
    options = ("--config", tmp_path / "config.yaml", "--output", tmp_path / "a.csv")
    run = worker("-", "--column", "my picture", "--keep", "title", *options, stdin=table.encode())
    assert run.returncode == 0, run.stdout
    rows = rows_of(tmp_path / "a.csv")
    assert list(rows.index) == sorted(map(str, PICTURES))
    assert list(rows["title"]) == [Path(key).stem for key in rows.index]


@pytest.mark.parametrize("address", ["ftp://127.0.0.1/a.jpg", "webhdfs://127.0.0.1/a.jpg", "sftp://127.0.0.1/a.jpg"])
def test_hosts_of_any_kind_are_refused_where_private_addresses_are(address: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"{address}\ns3://bucket/a.jpg\n")
    refused, other = ListFile(str(tmp_path / "a.txt"), options=SourceOptions(allow_private=False))
    assert refused.error.startswith("source: PermissionError: ") and "allow_private" in refused.error
    assert other.error == ""
    with pytest.raises(UserError, match="allow_private"):
        open_source([address], options=SourceOptions(allow_private=False))


@pytest.mark.parametrize("address", ["dask://127.0.0.1/a.jpg", "asynclocal:///etc/hostname", "local:///etc/hostname"])
def test_an_address_that_nothing_opens_is_an_error_of_its_row(address: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"{address}\nhttp://host/a.jpg\n")
    odd, fine = ListFile(str(tmp_path / "a.txt"))
    assert odd.error.endswith(":// is not known")
    assert fine.error == ""


def test_priorities_count_beside_other_sources(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("url,priority\nhttp://host/1,1\nhttp://host/2,2\n")
    assert open_source([str(tmp_path / "a.csv"), "http://host/3"]).has_priority  # type: ignore[attr-defined]
    assert not open_source(["http://host/3", "http://host/4"]).has_priority  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["urls.txt", "a/photos.csv?x=1", "b.parquet"])
def test_a_list_at_a_web_address_is_no_picture(name: str) -> None:
    with pytest.raises(UserError, match="is a list at a web address: download it, or pipe it into `run -`"):
        open_source([f"https://host/{name}"])
