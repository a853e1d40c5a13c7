"""The CSV file: rows that read back as they were, whole after any kill, and never another program's file harmed."""

import csv
import errno
import fcntl
import io
import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import EXAMPLES, PROJECT, run_worker
from tests.resaved import BOM, READABLE, UNREADABLE
from vec_pipeline import load_annotations
from vec_pipeline.key_set import KeySet
from vec_pipeline.record import COLUMNS, Record, UserError
from vec_pipeline.sinks import csv_file, csv_rows
from vec_pipeline.sinks.csv_file import CsvFile, encode_row
from vec_pipeline.sinks.csv_rows import contents_of, key_and_error, whole_rows
from vec_pipeline.sources.folder import key_of

VECTOR_COLUMNS = [name for name, kind in COLUMNS.items() if kind == "vector"]
UNDECODABLE = key_of(os.fsdecode(b"/photos/un\xffdecodable.png"))
ODD_TEXTS = (
    'say "cheese"',
    '"',
    '""',
    "one, two",
    "two\nlines",
    "two\r\nlines",
    "lone\rreturn",
    " spaces around ",
    "Красная машина",
    "🚗🏽",
    "'single', =1+1",
    "NA",
    "back\\slash\\",
    UNDECODABLE,
)
HEADER = (",".join(COLUMNS) + "\n").encode()
FOREIGN = b"path,label\r\na.jpg,cat"


class FrozenClock(datetime):
    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        return datetime(2026, 1, 2, 3, 4, 5, 678)


@pytest.fixture
def frozen_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_file, "datetime", FrozenClock)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "annotations.csv"


def finished(key: str, text: str = "a red car", size: int = 3) -> Record:
    """A record with every column filled."""
    vectors = {name: np.linspace(-1, len(key), size, dtype=np.float32) for name in VECTOR_COLUMNS}
    columns = {"description": text, "categories": "cars", "keywords": "car, red", "image_text": ""}
    return Record(key, {"text": text, "llama_extracted": '{"keywords": ["car", "red"]}', **columns, **vectors})


def failed(key: str, error: str = 'open_image: OSError: "truncated", at\nbyte 7') -> Record:
    return Record(key, {}, error)


def write(path: Path, records: Sequence[Record], **options: Any) -> None:
    with closing(CsvFile(path, **options)) as sink:
        sink.write(records)


def saved(path: Path) -> dict[str, str]:
    """Error by key, in the order of the rows, read by the csv module."""
    with path.open(newline="", encoding="utf-8") as file:
        return {row["image_path"]: row["error"] for row in csv.DictReader(file)}


@contextmanager
def disk_full_after(size_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size: as on a full disk, a write is first cut short, then fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_one_sentence(error: BaseException, path: Path) -> None:
    assert str(path) in str(error)
    assert "\n" not in str(error)
    assert "Errno" not in str(error)


# --- rows


def test_a_new_file_has_the_header_of_the_contract(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "annotations.csv"
    CsvFile(path).close()
    assert path.read_bytes() == HEADER


def test_extra_columns_come_after_those_of_the_contract(path: Path) -> None:
    record = finished("/a.jpg")
    record.values["faces"] = 3
    with closing(CsvFile(path, extra_columns=("faces",))) as sink:
        sink.write([record])
    assert path.read_bytes().startswith(HEADER[:-1] + b",faces\n")
    assert load_annotations(path)["faces"].tolist() == ["3"]


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_texts_read_back_as_they_were(path: Path, text: str) -> None:
    texts = ("text", "description", "categories", "keywords", "image_text", "llama_extracted")
    write(path, [Record(text, dict.fromkeys(texts, text), text), finished("/after.jpg")])
    table = load_annotations(path)
    assert table["image_path"].tolist() == [text, "/after.jpg"]
    assert table.loc[0, [*texts, "error"]].tolist() == [text] * 7
    assert saved(path) == {text: text, "/after.jpg": ""}
    with closing(CsvFile(path)) as sink:
        assert sink.keys() == KeySet({text, "/after.jpg"})
        assert sink.failed == KeySet({text})


def test_a_nul_and_half_a_character_cost_themselves_only(path: Path) -> None:
    write(path, [finished("/a.jpg", "nul\0nul \ud83d half"), finished("/b.jpg")])
    assert load_annotations(path)["text"].tolist() == ["nulnul ? half", "a red car"]


def test_vectors_read_back_bit_for_bit(path: Path) -> None:
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 1 << 32, 20_000, dtype=np.uint32).view(np.float32)
    limits = np.finfo(np.float32)
    edges = [0.0, -0.0, 1.0, 0.1, 1e-10, limits.max, limits.min, limits.tiny, limits.smallest_subnormal]
    vector = np.concatenate([np.array(edges, np.float32), bits[np.isfinite(bits)]])
    record = finished("/a.jpg")
    record.values |= dict.fromkeys(VECTOR_COLUMNS, vector)
    write(path, [record, finished("/b.jpg", size=1)])
    table = load_annotations(path)
    for name in VECTOR_COLUMNS:
        assert table.loc[0, name].dtype == np.float32
        np.testing.assert_array_equal(table.loc[0, name].view(np.uint32), vector.view(np.uint32))
        assert table.loc[1, name].shape == (1,)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_not_written(path: Path, value: float) -> None:
    record = finished("/a.jpg")
    record.values["text_vector"] = np.array([1, value], np.float32)
    with pytest.raises(ValueError, match="not finite"):
        write(path, [record])
    assert path.read_bytes() == HEADER


def test_the_timestamp_is_iso_8601_in_seconds(path: Path, frozen_clock: None) -> None:
    write(path, [finished("/a.jpg")])
    assert b",2026-01-02T03:04:05,," in path.read_bytes()
    assert load_annotations(path)["timestamp"].tolist() == [datetime(2026, 1, 2, 3, 4, 5)]


# --- resume


def test_a_file_cut_at_any_byte_is_repaired_and_completed(
    path: Path, frozen_clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a thousand of them take long, and nothing crashes here
    vectors = dict.fromkeys(VECTOR_COLUMNS, np.array([0.5, -2], np.float32))
    records = [
        Record("/a, b.jpg", vectors | {"text": "one\ntwo"}),
        failed('/new\nline, "quoted"\n.jpg', 'describe: ValueError: "no"\nvision'),
        Record('"\n"', vectors | {"text": 'a "sign"\r'}),
        Record("/Машина.jpg", vectors | {"text": "🚗"}),
    ]
    keys = [record.key for record in records]
    write(path, records)
    whole = path.read_bytes()
    ends = [whole.index(encode_row([key])[:-1]) for key in keys[1:]] + [len(whole)]
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with closing(CsvFile(path)) as sink:
            kept = sum(end <= cut for end in ends)
            assert sink.keys() == KeySet(keys[:kept])
            assert (sink.rows, len(sink.failed)) == (kept, int(kept > 1))
            assert path.read_bytes() == (whole[: ends[kept - 1]] if kept else HEADER)
            sink.write(records[kept:])
        assert path.read_bytes() == whole, f"cut at byte {cut}"


def test_looking_at_a_cut_file_leaves_it_as_it_is(path: Path) -> None:
    write(path, [finished("/a.jpg"), failed("/b.jpg", "describe: ValueError: no")])
    torn = path.read_bytes() + b'"/c.jpg'
    path.write_bytes(torn)
    contents = contents_of(path)
    assert (contents.rows, contents.keys, contents.failed) == (2, KeySet({"/a.jpg", "/b.jpg"}), KeySet({"/b.jpg"}))
    assert contents.error_examples == [("/b.jpg", "describe: ValueError: no")]
    assert path.read_bytes() == torn


def test_what_was_read_before_is_not_trusted_of_a_file_that_grew(path: Path) -> None:
    write(path, [finished("/a.jpg")])
    known = contents_of(path)
    write(path, [finished("/b.jpg")])
    with closing(CsvFile(path, known=known)) as sink:
        assert sink.keys() == KeySet({"/a.jpg", "/b.jpg"})
    assert list(saved(path)) == ["/a.jpg", "/b.jpg"]


def test_a_file_with_the_line_ends_of_windows_is_continued(path: Path) -> None:
    write(path, [finished("/a.jpg"), failed("/b.jpg", "describe: ValueError: no")])
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    with closing(CsvFile(path)) as sink:
        assert sink.keys() == KeySet({"/a.jpg", "/b.jpg"})
        assert sink.failed == KeySet({"/b.jpg"})
        sink.write([finished("/c.jpg")])
    table = load_annotations(path)
    assert table["image_path"].tolist() == ["/a.jpg", "/b.jpg", "/c.jpg"]
    assert table["llama_extracted"].tolist() == [
        finished("").values["llama_extracted"],
        "",
        table["llama_extracted"][2],
    ]


def test_a_blank_line_at_the_end_is_harmless(path: Path) -> None:
    """Editors add one."""
    write(path, [finished("/a.jpg")])
    with path.open("ab") as file:
        file.write(b"\n")
    with closing(CsvFile(path)) as sink:
        assert sink.keys() == KeySet({"/a.jpg"})
        sink.write([finished("/b.jpg")])
    assert load_annotations(path)["image_path"].tolist() == ["/a.jpg", "/b.jpg"]


def test_a_chunk_is_one_append_and_one_fsync(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(CsvFile(path)) as sink:
        safe_rows = []
        monkeypatch.setattr(os, "fsync", lambda descriptor: safe_rows.append(path.read_bytes().count(b"\n") - 1))
        sink.write([finished(f"/{number}.jpg") for number in range(25)])
        assert safe_rows == [25]
        sink.write([finished("/last.jpg")])
        assert safe_rows == [25, 26]


@pytest.mark.parametrize("program", READABLE)
def test_a_file_that_another_program_saved_is_continued(path: Path, program: str, frozen_clock: None) -> None:
    """Rows are appended to it, replaced and dropped, and all columns stay where they belong."""
    records = [finished("/a.jpg", 'a "red"\ncar'), failed("/b.jpg"), failed("/c.jpg"), finished("/Машина, 2.jpg")]
    write(path, records, extra_columns=("flags",))
    path.write_bytes(READABLE[program](path.read_bytes()))
    with closing(CsvFile(path, ("flags",))) as sink:
        assert sink.keys() == KeySet({record.key for record in records})
        assert sink.failed == KeySet({"/b.jpg", "/c.jpg"})
        sink.write([finished("/d.jpg")])
    write(path, [finished("/b.jpg")], extra_columns=("flags",), retry_errors=True, drop=["/c.jpg"])
    sink = CsvFile(path, ("flags", "faces"), refresh=True)
    sink.write([finished("/a.jpg", "blue")])
    assert sink.replace_rows() == 1
    sink.close()
    table = load_annotations(path)
    assert tuple(table.columns) == (*COLUMNS, "flags", "faces")
    assert table["image_path"].tolist() == ["/a.jpg", "/b.jpg", "/Машина, 2.jpg", "/d.jpg"]
    assert table["text"].tolist() == ["blue", "a red car", "a red car", "a red car"]
    for vector, record in zip(table["image_vector"], [records[0], finished("/b.jpg"), records[3]], strict=False):
        np.testing.assert_array_equal(vector, record.values["image_vector"])
    assert set(table["error"]) == {""}


# --- what cannot be used


def named(content: bytes, path: Path) -> str:
    """How a file is refused, which stays as it is."""
    path.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        CsvFile(path, ("flags",))
    assert_one_sentence(refusal.value, path)
    assert path.read_bytes() == content
    return str(refusal.value)


@pytest.mark.parametrize("program", UNREADABLE)
def test_a_file_that_another_program_changed_is_named_and_left(path: Path, program: str) -> None:
    change, said = UNREADABLE[program]
    write(
        path, [failed("/a.jpg"), finished("/b.jpg", size=4096), finished("/c.jpg", size=4096)], extra_columns=("flags",)
    )
    sentence = named(change(path.read_bytes()), path)
    assert said in sentence
    assert "delete it and run again" in sentence or "index=False" in sentence


def test_a_table_that_was_saved_with_its_arrays_is_named_and_left(path: Path) -> None:
    write(path, [finished("/b.jpg")], extra_columns=("flags",))
    content = load_annotations(path).to_csv(index=False).encode()
    assert "has saved vectors in a form that is not JSON" in named(content, path)


def test_a_row_in_another_encoding_is_named_and_left(path: Path) -> None:
    """It would count as a picture without a row, and get a second one."""
    write(path, [failed("/Машина.jpg"), finished("/b.jpg")], extra_columns=("flags",))
    content = BOM + path.read_bytes().decode().encode("cp1251")
    assert "is not in UTF-8" in named(content, path)


def test_two_outputs_in_a_folder_share_no_file(tmp_path: Path) -> None:
    """Although their names differ only after the last dot."""
    names = ("a.v1", "a.v2", "a.csv", "a.log.csv")
    seen: dict[str, set[str]] = {}
    for name in names:
        before = {path.name for path in tmp_path.iterdir()}
        run = run_worker(EXAMPLES, "--output", tmp_path / name, "--limit", 1)
        assert run.returncode == 0, run.stderr
        assert "already" not in run.stdout
        seen[name] = {path.name for path in tmp_path.iterdir()} - before
    own = ("{}.settings.yaml", "{}.log", "{}.lock", "{}.cache.sqlite", "{}.journal.sqlite")
    for name in names:
        stem = name.removesuffix(".csv")
        assert seen[name] >= {name, *(each.format(stem) for each in own)}
    for name in names[:2]:  # both at once
        holders = [CsvFile(tmp_path / name, load_annotations(tmp_path / name).columns[len(COLUMNS) :])]
        [holder.close() for holder in holders]


def test_two_outputs_that_would_share_files_are_refused(tmp_path: Path) -> None:
    for first, second in (("a", "a.csv"), ("b.v1.csv", "b.v1")):
        write(tmp_path / first, [finished("/a.jpg")])
        for use in (CsvFile, contents_of):
            with pytest.raises(UserError, match=f"{second} would share its lock, settings and caches with .*{first}:"):
                use(tmp_path / second)
        assert not (tmp_path / second).exists()
    (tmp_path / "list").write_text("of something else")
    write(tmp_path / "list.csv", [finished("/a.jpg")])


@pytest.mark.parametrize(
    "content",
    [
        FOREIGN,
        b"x",
        b"\n",
        HEADER.replace(b"error", b"errors"),
        HEADER[:-1] + b",faces\n",
        b"\xff\xd8\xff\xe0" + bytes(1000),
    ],
)
@pytest.mark.parametrize("use", [CsvFile, contents_of])
def test_a_file_with_another_header_is_left_byte_for_byte(
    path: Path, content: bytes, use: Callable[[Path], object]
) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        use(path)
    assert_one_sentence(refusal.value, path)
    assert "--output" in str(refusal.value)
    assert path.read_bytes() == content
    assert {other.name for other in path.parent.iterdir()} <= {path.name, "annotations.lock"}


def test_a_file_begun_with_fewer_columns_goes_on_with_them(path: Path) -> None:
    write(path, [finished("/a.jpg")])
    record = finished("/b.jpg")
    record.values["flags"] = "truncated"
    write(path, [record], extra_columns=("flags",))
    header, *rows = csv.reader(path.open(newline=""))
    assert header == list(COLUMNS)
    assert [(row[0], len(row)) for row in rows] == [("/a.jpg", 12), ("/b.jpg", 12)]


@pytest.mark.parametrize(
    "place",
    ["folder", "file/annotations.csv", "/proc/annotations.csv", "/dev/null", "n" * 300 + ".csv"],
    ids=["folder", "below a file", "read-only file system", "device", "long name"],
)
def test_a_place_that_cannot_hold_the_file_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as refusal:
        CsvFile(tmp_path / place)
    assert_one_sentence(refusal.value, tmp_path / place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_read_only_place_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not bind root, whom the tests may run as."""

    def refuse(self: Path, mode: str, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    write(path, [finished("/a.jpg")])
    content = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(UserError, match="Read-only file system") as refusal:
            CsvFile(path)
    assert_one_sentence(refusal.value, path)
    assert path.read_bytes() == content


def test_a_second_worker_is_kept_out_until_the_first_is_gone(path: Path) -> None:
    program = """if True:
        import sys
        from pathlib import Path
        from vec_pipeline.sinks.csv_file import CsvFile
        sink = CsvFile(Path(sys.argv[1]))
        print("open", flush=True)
        sys.stdin.read()
    """
    write(path, [finished("/a.jpg")])
    content = path.read_bytes() + b"torn"  # which the second must not repair
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PROJECT
    ) as worker:
        try:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"open\n"
            path.write_bytes(content)
            with pytest.raises(UserError, match=f"in use by another worker, process {worker.pid}:") as refusal:
                CsvFile(path)
            assert_one_sentence(refusal.value, path)
            assert path.read_bytes() == content
        finally:
            worker.kill()
    with closing(CsvFile(path)) as sink:
        assert sink.keys() == KeySet({"/a.jpg"})


def test_a_place_without_locks_is_not_called_in_use(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match="No locks available"):
        CsvFile(path)


@pytest.mark.parametrize("room", [0, 1, 300, 700])
def test_a_full_disk_leaves_whole_rows_only(path: Path, room: int) -> None:
    records = [finished(f"/{number}\n.jpg") for number in range(8)]
    with closing(CsvFile(path)) as sink:
        sink.write(records[:3])
        content = path.read_bytes()
        with disk_full_after(len(content) + room), pytest.raises(UserError) as refusal:
            sink.write(records[3:])
        assert_one_sentence(refusal.value, path)
        assert str(refusal.value).endswith("the rows before are saved; free some disk space, then rerun")
    assert path.read_bytes() == content
    with closing(CsvFile(path)) as sink:
        sink.write([record for record in records if record.key not in sink.keys()])  # noqa: SIM118
    assert list(saved(path)) == [record.key for record in records]


def test_a_disk_that_is_full_only_at_the_fsync_is_a_full_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network file systems tell late, and may tell again."""

    def refuse(descriptor: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with closing(CsvFile(path)) as sink, monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(UserError, match="Disk quota exceeded"):
            sink.write([finished("/a.jpg")])
    assert path.read_bytes() == HEADER


# --- retry_errors


def some_failed(path: Path) -> None:
    write(path, [failed("/a\n.jpg"), finished("/b.jpg"), failed("/c.jpg"), finished("/d.jpg"), failed("/e.jpg")])


def test_images_with_an_error_need_work_only_when_errors_are_retried(path: Path) -> None:
    some_failed(path)
    with closing(CsvFile(path)) as sink:
        assert sink.keys() == KeySet({"/a\n.jpg", "/b.jpg", "/c.jpg", "/d.jpg", "/e.jpg"})
    with closing(CsvFile(path, retry_errors=True)) as sink:
        assert sink.keys() == KeySet({"/b.jpg", "/d.jpg"})


def test_retried_rows_are_replaced_in_place_and_new_ones_appended(path: Path, frozen_clock: None) -> None:
    some_failed(path)
    with closing(CsvFile(path, retry_errors=True)) as sink:
        sink.write([finished("/c.jpg"), finished("/f.jpg"), failed("/a\n.jpg", "describe: ValueError: again")])
        assert sink.failed == KeySet({"/a\n.jpg", "/e.jpg"})
        assert sink.rows == 6
    untouched = failed("").error
    assert list(saved(path).items()) == [
        ("/a\n.jpg", "describe: ValueError: again"),
        ("/b.jpg", ""),
        ("/c.jpg", ""),
        ("/d.jpg", ""),
        ("/e.jpg", untouched),
        ("/f.jpg", ""),
    ]
    assert load_annotations(path).loc[2, "text"] == "a red car"
    assert {other.name for other in path.parent.iterdir()} <= {path.name, "annotations.lock"}


def test_a_replaced_file_keeps_its_permissions(path: Path) -> None:
    some_failed(path)
    path.chmod(0o640)
    write(path, [finished("/c.jpg")], retry_errors=True)
    assert path.stat().st_mode & 0o777 == 0o640


def test_errors_that_were_corrected_are_no_examples_of_errors(path: Path) -> None:
    some_failed(path)
    with closing(CsvFile(path, retry_errors=True)) as sink:
        sink.write([finished("/a\n.jpg"), failed("/c.jpg", "describe: ValueError: again"), finished("/e.jpg")])
        assert sink.error_examples == [("/c.jpg", "describe: ValueError: again")]


def test_retrying_without_a_result_leaves_the_file_as_it_is(path: Path) -> None:
    some_failed(path)
    content = path.read_bytes()
    write(path, [], retry_errors=True)
    assert path.read_bytes() == content


def test_a_replacement_that_fails_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(source))

    some_failed(path)
    content = path.read_bytes()
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match="left as it was") as refusal:
        write(path, [finished("/a\n.jpg")], retry_errors=True)
    assert_one_sentence(refusal.value, path)
    assert path.read_bytes() == content
    assert {other.name for other in path.parent.iterdir()} <= {path.name, "annotations.lock"}


def test_a_replacement_on_a_full_disk_leaves_the_old_file(path: Path) -> None:
    some_failed(path)
    content = path.read_bytes()
    sink = CsvFile(path, retry_errors=True)
    sink.write([finished("/c.jpg"), failed("/a\n.jpg"), failed("/e.jpg")])
    with disk_full_after(len(content) // 2), pytest.raises(UserError, match="left as it was"):
        sink.close()
    assert path.read_bytes() == content
    assert {other.name for other in path.parent.iterdir()} <= {path.name, "annotations.lock"}


def test_a_replacement_is_on_the_disk_before_it_has_the_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the folder with the name afterwards, or a power cut could bring the old file back, or an empty one."""
    some_failed(path)
    old, content = path.read_bytes(), b""
    synced = []

    def note(descriptor: int) -> None:
        target = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append((target.name, target.read_bytes() if target.is_file() else path.read_bytes()))

    with closing(CsvFile(path, retry_errors=True)) as sink:
        sink.write([finished("/c.jpg")])
        monkeypatch.setattr(os, "fsync", note)
        sink.replace_rows()
        content = path.read_bytes()
    assert content != old
    assert synced[:2] == [(".annotations.csv.new", content), (path.parent.name, content)]


def test_a_new_file_is_in_its_folder_after_a_power_cut(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    CsvFile(path).close()
    assert str(path.parent) in synced


# --- rows that are dropped


def test_dropped_rows_are_left_out_atomically_and_the_others_kept_as_they_are(path: Path) -> None:
    some_failed(path)
    rows = {key_and_error(row)[0]: row for is_header, _, row in rows_of(path) if not is_header}
    with closing(CsvFile(path, drop=["/a\n.jpg", "/d.jpg", "/nowhere.jpg"])) as sink:
        assert (sink.rows, sink.failed) == (3, KeySet({"/c.jpg", "/e.jpg"}))
        assert [key for key, _ in sink.error_examples] == ["/c.jpg", "/e.jpg"]
        assert set(saved(path)) == rows.keys(), "nothing is dropped before all is known"
        sink.write([finished("/f.jpg")])
    assert list(saved(path)) == ["/b.jpg", "/c.jpg", "/e.jpg", "/f.jpg"]
    kept = {key_and_error(row)[0]: row for is_header, _, row in rows_of(path) if not is_header}
    assert all(kept[key] == rows[key] for key in ("/b.jpg", "/c.jpg", "/e.jpg"))


def rows_of(path: Path) -> list[tuple[bool, int, bytes]]:
    with path.open("rb", buffering=0) as file:
        return list(whole_rows(file))


# --- refresh


def test_a_refresh_replaces_rows_all_at_once_and_adds_columns(path: Path, frozen_clock: None) -> None:
    some_failed(path)
    before = path.read_bytes()
    sink = CsvFile(path, ("flags",), refresh=True)
    try:
        assert sink.keys() == KeySet()
        sink.write([finished("/b.jpg"), finished("/c.jpg")])
        assert path.read_bytes() == before
        assert sink.replace_rows() == 1, "/b.jpg says what it said before"
    finally:
        sink.close()
    header, *rows = csv.reader(path.open(newline=""))
    assert header == [*COLUMNS, "flags"]
    assert {len(row) for row in rows} == {13}
    assert list(saved(path).items()) == [
        ("/a\n.jpg", failed("").error),
        ("/b.jpg", ""),
        ("/c.jpg", ""),
        ("/d.jpg", ""),
        ("/e.jpg", failed("").error),
    ]


def test_a_refresh_that_does_not_end_changes_nothing(path: Path) -> None:
    some_failed(path)
    before = path.read_bytes()
    sink = CsvFile(path, ("flags",), refresh=True)
    sink.write([finished("/c.jpg")])
    assert not sink.close(), "not all that was written is saved"
    assert path.read_bytes() == before
    assert {other.name for other in path.parent.iterdir()} <= {path.name, "annotations.lock"}


def test_a_file_behind_a_link_is_replaced_where_it_lies(tmp_path: Path, path: Path) -> None:
    real = tmp_path / "large disk" / "rows.csv"
    real.parent.mkdir()
    some_failed(real)
    path.symlink_to(real)
    write(path, [finished("/c.jpg")], retry_errors=True)
    assert path.is_symlink()
    assert saved(real)["/c.jpg"] == ""


# --- reading fast


def random_rows(count: int) -> Iterator[list[str]]:
    """Rows of every make, their cells of pieces that a hasty reader takes for the end of something."""
    generator = random.Random(0)
    pieces = (
        '"',
        '""',
        ",",
        "\n",
        "\r",
        "\r\n",
        "]",
        '"]",',
        ']",2026-01-02T03:04:05,,',
        "a",
        "ё",
        "🚗",
        " ",
        "\\",
        "[1,2]",
    )

    def cell() -> str:
        return "".join(generator.choices(pieces, k=generator.choice((0, 0, 1, 2, 3, 6))))

    def vector() -> str:
        return generator.choice(("", "[1.5]", "[1.5,-2]", "[1,2,3]"))

    for _ in range(count):
        row = [cell() for _ in range(generator.choice((12, 12, 13)))]
        if generator.random() < 0.7:
            row[6:9] = vector(), vector(), vector()
            row[9] = generator.choice(("2026-01-02T03:04:05", "", cell()))
            row[10] = generator.choice(("", "", cell()))
        row[0] = row[0] or "/a.jpg"
        yield row


def test_keys_and_errors_are_those_of_the_csv_module() -> None:
    for cells in random_rows(10_000):
        row = encode_row(cells)
        (parsed,) = csv.reader(io.StringIO(row.decode(), newline=""))
        assert parsed == cells
        assert key_and_error(row) == (cells[0], cells[10]), row


def test_rows_without_an_error_are_read_without_parsing_their_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ("/a.jpg", "/a, b.jpg", "/new\nline.jpg", "/Машина.jpg", UNDECODABLE)
    rows = [encode_row(csv_file.row_of(finished(key), list(COLUMNS))) for key in keys]
    monkeypatch.delattr(csv, "reader")
    assert [key_and_error(row) for row in rows] == [(key, "") for key in keys]


@pytest.mark.parametrize("block_bytes", [1, 7, 64])
def test_rows_are_found_across_the_borders_of_blocks(
    path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    rows = [encode_row(cells) for cells in random_rows(40)]
    path.write_bytes(b"".join(rows) + b'"torn\n')
    monkeypatch.setattr(csv_rows, "BLOCK_BYTES", block_bytes)
    with path.open("rb", buffering=0) as file:
        found = list(whole_rows(file))
    assert [row for _, _, row in found] == rows
    assert [end for _, end, _ in found] == np.cumsum([len(row) for row in rows]).tolist()
    assert [is_header for is_header, _, _ in found] == [True] + [False] * 39
