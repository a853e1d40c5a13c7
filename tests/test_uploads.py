"""Outputs in object stores and remote folders: whole or not there at all, and a copy of the CSV that keeps up."""

# ruff: noqa: F811 (the parameters of a test are fixtures)

import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import PROJECT
from tests.object_stores import S3, Sftp, hide, memory, s3, s3_server, sftp  # noqa: F401 (fixtures)
from tests.rows import failed, finished, write
from vec_pipeline import uploads
from vec_pipeline.__main__ import main
from vec_pipeline.commands.export import files
from vec_pipeline.object_stores import opened
from vec_pipeline.record import NotFound, Record, UserError
from vec_pipeline.uploads import Mirror, path_or_address, uploading, uploading_folder

FORMATS = ("parquet", "jsonl", "csv", "xlsx")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A CSV of six rows."""
    return write(tmp_path / "annotations.csv", [finished(number) for number in range(5)] + [failed(9)])


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def export(path: Path, to: str, out: object) -> int:
    return main(["export", "--csv", str(path), "--to", to, "--out", str(out)])


def report(path: Path, out: object) -> int:
    return main(["report", "--csv", str(path), "--out", str(out)])


def test_an_option_keeps_an_address_as_it_is() -> None:
    assert path_or_address("s3://bucket/a//b") == "s3://bucket/a//b"
    assert path_or_address("out/x.csv") == Path("out/x.csv")
    assert path_or_address("~/x") == Path.home() / "x"


@pytest.mark.parametrize("to", FORMATS)
def test_an_export_arrives_as_it_would_be_here(
    s3: S3, path: Path, temporary: Path, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(path, to, f"s3://photos/out/rows.{to}") == 0
    assert f"6 rows in s3://photos/out/rows.{to}, 0.0 MB" in capsys.readouterr().out
    local = path.with_name(f"rows.{to}")
    assert export(path, to, local) == 0
    sizes = len(s3.get(f"out/rows.{to}")), local.stat().st_size
    assert s3.get(f"out/rows.{to}") == local.read_bytes() or (to == "xlsx" and abs(sizes[0] - sizes[1]) < 50)
    assert s3.names() == [f"out/rows.{to}"]
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("to", FORMATS)
def test_an_exception_in_the_middle_leaves_no_object_and_the_older_one_stays(
    s3: S3, path: Path, temporary: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(reader: Any, file: Any) -> Any:
        file.write(b"half of it")
        file.flush()
        raise RuntimeError("in the middle")

    s3.put("out/old", b"the older one")
    monkeypatch.setitem(files.WRITERS, to, failing)
    for name in ("old", "new"):
        with pytest.raises(RuntimeError):
            export(path, to, f"s3://photos/out/{name}")
    assert s3.names() == ["out/old"]
    assert s3.get("out/old") == b"the older one"
    assert not list(temporary.iterdir())


def test_an_upload_that_fails_is_an_error_and_the_older_object_stays(
    s3: S3, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    s3.put("out/x.jsonl", b"the older one")
    s3.faults.append(lambda method, path: 503 if method == "PUT" else None)
    assert export(path, "jsonl", "s3://photos/out/x.jsonl") == 2
    said = capsys.readouterr()
    assert "s3://photos/out/x.jsonl cannot be reached (OSError: " in said.err
    assert "rows in" not in said.out
    assert s3.get("out/x.jsonl") == b"the older one"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://no-such-bucket/x.csv", "s3://no-such-bucket/x.csv does not exist"),
        ("foo://bucket/x.csv", "foo:// is not known: name s3://"),
        ("s3://photos/out/", "s3://photos/out/ names a folder: name a file in it"),
    ],
)
def test_an_address_that_cannot_be_used_is_known_before_the_work(
    s3: S3, path: Path, address: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(files.WRITERS, "csv", lambda *_: pytest.fail("it has begun"))
    assert export(path, "csv", address) == 2
    assert message in capsys.readouterr().err


def test_who_may_only_write_can_export(s3: S3, path: Path) -> None:
    s3.faults.append(lambda method, path: None if method == "PUT" else 403)
    assert export(path, "csv", "s3://photos/out/x.csv") == 0
    s3.faults.clear()
    assert s3.names() == ["out/x.csv"]


def test_a_database_is_no_object(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(path, "pgvector", "s3://photos/database") == 2
    assert "--to pgvector needs a folder of this machine" in capsys.readouterr().err


def test_a_missing_library_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hide("adlfs", "az", monkeypatch)
    assert export(path, "csv", "az://container/x.csv") == 2
    assert "az:// needs adlfs: pip install 'vec-pipeline[remote]'" in capsys.readouterr().err


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., Path]:
    """Makes a CSV of pictures that exist."""

    def make(*numbers: int) -> Path:
        records = []
        for number in numbers:
            Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / f"{number}.png")
            records.append(Record(str(tmp_path / f"{number}.png"), finished(number).values))
        return write(tmp_path / "pictures.csv", records)

    return make


def test_a_report_is_put_with_its_page_last_and_again_with_what_is_new(
    s3: S3, pictures: Callable[..., Path], temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(pictures(1, 2, 3), "s3://photos/report/") == 0
    said = capsys.readouterr().out
    assert "3 images, 3 new thumbnails" in said
    assert said.endswith("open s3://photos/report/index.html\n")
    first = s3.names()
    assert sum(name.endswith(".webp") for name in first) == 3
    puts = [path for method, path in s3.requests if method == "PUT" and "report" in path]
    assert puts[-1].startswith("/photos/report/index.html")
    assert s3.client.head_object(Bucket="photos", Key="report/index.html")["ContentType"] == "text/html"

    pictures(4)
    s3.requests.clear()
    assert report(pictures().parent / "pictures.csv", "s3://photos/report") == 0
    assert "4 images, 1 new thumbnail," in capsys.readouterr().out
    changes = [(method, path) for method, path in s3.requests if method not in ("GET", "HEAD")]
    assert sum(".webp" in path for method, path in changes if method == "PUT") == 1
    methods = [method for method, _ in changes]
    assert methods.index("POST") == len(methods) - 1  # what is old is deleted at the very end
    assert changes[-2][1].startswith("/photos/report/index.html")
    now = s3.names()
    assert sum(name.endswith(".webp") for name in now) == 4
    (data,) = {re.sub("/data-([0-9]+)/.*", r"/data-\1", name) for name in now if "/data-" in name}
    assert data == "report/gallery/data-2"
    assert b"gallery/data-2" in s3.get("report/index.html")
    assert all(s3.get(name) for name in now)
    assert not list(temporary.iterdir())


def test_a_report_that_fails_leaves_the_former_one(
    s3: S3, pictures: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    csv = pictures(1, 2)
    assert report(csv, "s3://photos/report") == 0
    before = {name: s3.get(name) for name in s3.names()}
    pictures(3)
    s3.faults.append(lambda method, path: 503 if method == "PUT" and "data-rows" in path else None)
    assert report(csv, "s3://photos/report") == 2
    assert "s3://photos/report cannot be reached" in capsys.readouterr().err
    s3.faults.clear()
    assert {name: s3.get(name) for name in before} == before
    assert report(csv, "s3://photos/report") == 0
    assert b"gallery/data-3" in s3.get("report/index.html")  # data-2 is what the failed one has left
    assert not [name for name in s3.names() if "data-1" in name or "data-2" in name]


@pytest.mark.parametrize("names", [["a.jpg"], ["index.html", "a.jpg"], ["data/index.html"]])
def test_a_folder_of_other_things_is_not_touched(
    s3: S3, path: Path, names: list[str], temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in names:
        s3.put(f"mine/{name}", b"mine")
    s3.requests.clear()
    assert report(path, "s3://photos/mine") == 2
    said = capsys.readouterr().err
    assert said.startswith("vec-pipeline: s3://photos/mine is not empty")
    assert str(temporary) not in said
    assert {method for method, _ in s3.requests} <= {"GET", "HEAD"}
    lists_all = any("list-type=2" in path and "max-keys=1&" not in path for _, path in s3.requests)
    assert lists_all == ("index.html" in names)  # it may be large
    assert s3.names() == sorted(f"mine/{name}" for name in names)


def test_names_that_lead_out_of_the_folder_are_not_followed(memory: Any, temporary: Path) -> None:
    memory.pipe_file("/out/index.html", b"page")
    memory.pipe_file("/out/a/../../../escaped.txt", b"x")
    with uploading_folder("memory://out", "index.html", "a") as folder:
        assert [each.name for each in folder.rglob("*") if each.is_file()] == ["index.html"]
        assert (folder / "index.html").read_bytes() == b"page"
    assert not list(temporary.parent.rglob("escaped.txt"))


def test_a_file_on_a_server_is_replaced_by_renaming(sftp: Sftp, monkeypatch: pytest.MonkeyPatch) -> None:
    old = sftp.folder / "deep" / "x.csv"
    for text in ("first", "second"):
        with uploading(sftp.url("deep/x.csv")) as local:
            local.write_text(text)
            assert local.name == "x.csv"
        assert old.read_text() == text
    with pytest.raises(ZeroDivisionError), uploading(sftp.url("deep/x.csv")) as local:
        local.write_text("half")
        raise ZeroDivisionError
    monkeypatch.setattr(opened(sftp.url())[0], "mv", failing)
    with pytest.raises(UserError) as raised, uploading(sftp.url("deep/x.csv")) as local:
        local.write_text("third")
    assert "secret" not in str(raised.value)
    assert old.read_text() == "second"
    assert [each.name for each in old.parent.iterdir()] == ["x.csv"]


def failing(*_: Any, **__: Any) -> None:
    raise OSError("the rename fails")


def test_a_file_of_this_machine_is_replaced_by_renaming(tmp_path: Path) -> None:
    for address in (f"file://{tmp_path}/a/x.csv", str(tmp_path / "a" / "x.csv")):
        with uploading(address) as local:
            local.write_text(address)
        assert (tmp_path / "a" / "x.csv").read_text() == address
        assert [each.name for each in (tmp_path / "a").iterdir()] == ["x.csv"]


# The mirror


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror that copies ten times a second at most."""
    monkeypatch.setattr(uploads, "MIRROR_EVERY_S", 0.1)


def eventually(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def text_of(memory: Any) -> str:
    return memory.cat_file("/out/a.csv").decode() if memory.exists("/out/a.csv") else ""


def test_the_mirror_has_the_rows_of_the_last_checkpoint(memory: Any, tmp_path: Path, quick: None) -> None:
    csv = tmp_path / "a.csv"
    mirror = Mirror(csv, "memory://out/a.csv")
    mirror.note_checkpoint()  # there is no file yet
    csv.write_text("header\nrow 1\n")
    mirror.note_checkpoint()
    eventually(lambda: text_of(memory) == "header\nrow 1\n")
    csv.write_text("header\nrow 1\nrow 2\n")
    mirror.note_checkpoint()
    eventually(lambda: text_of(memory).endswith("row 2\n"))
    csv.write_text("header\nrow 1\nrow 2\nrow 3\n")
    mirror.close()
    assert text_of(memory) == "header\nrow 1\nrow 2\nrow 3\n"
    assert mirror.failures == []
    assert memory.ls("/out", detail=False) == ["/out/a.csv"]


def test_what_follows_a_checkpoint_is_not_copied(memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    csv, may_copy = tmp_path / "a.csv", threading.Event()
    copyfileobj = uploads.copyfileobj
    monkeypatch.setattr(uploads, "copyfileobj", lambda *files: (may_copy.wait(20), copyfileobj(*files)))
    csv.write_text("header\nrow 1\n")
    mirror = Mirror(csv, "memory://out/a.csv")
    mirror.note_checkpoint()
    eventually(lambda: mirror._waiting is None)  # it is being copied
    with csv.open("a") as file:
        file.write('row 2,"half of i')
    may_copy.set()
    eventually(lambda: text_of(memory) != "")
    assert text_of(memory) == "header\nrow 1\n"
    mirror.close()


def test_a_run_that_ends_during_a_copy_has_its_last_rows_copied(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    csv, may_copy = tmp_path / "a.csv", threading.Event()
    copyfileobj = uploads.copyfileobj
    monkeypatch.setattr(uploads, "copyfileobj", lambda *files: (may_copy.wait(20), copyfileobj(*files)))
    csv.write_text("header\nrow 1\n")
    mirror = Mirror(csv, "memory://out/a.csv")
    mirror.note_checkpoint()
    eventually(lambda: mirror._waiting is None)  # it is being copied
    csv.write_text("header\nrow 1\nrow 2\n")
    closing = threading.Thread(target=mirror.close)
    closing.start()
    eventually(lambda: mirror._is_closing)
    may_copy.set()
    closing.join(20)
    assert text_of(memory) == "header\nrow 1\nrow 2\n"


def test_a_csv_that_is_replaced_is_copied_as_it_was_at_the_checkpoint(memory: Any, tmp_path: Path, quick: None) -> None:
    csv = tmp_path / "a.csv"
    csv.write_text("header\nrow 1\nrow 2\n")
    mirror = Mirror(csv, "memory://out/a.csv")
    mirror.note_checkpoint()
    eventually(lambda: text_of(memory) != "")
    with mirror._changed:
        mirror._note()
        (tmp_path / "new.csv").write_text("other header\nand a longer row than before\n")
        (tmp_path / "new.csv").replace(csv)
    eventually(lambda: mirror._waiting is None)
    assert text_of(memory) == "header\nrow 1\nrow 2\n"
    mirror.close()
    assert text_of(memory) == "other header\nand a longer row than before\n"


def test_the_mirror_is_updated_once_a_minute_and_at_the_end(s3: S3, tmp_path: Path) -> None:
    csv = tmp_path / "a.csv"
    csv.write_text("0\n")
    mirror = Mirror(csv, "s3://photos/out/a.csv")
    s3.requests.clear()
    start_s = time.process_time()
    for number in range(200):
        csv.write_text(f"{number}\n" * 5)
        mirror.note_checkpoint()
        time.sleep(0.005)
    assert time.process_time() - start_s < 2  # no loop that is busy
    assert len(puts(s3)) == 1
    mirror.close()
    assert len(puts(s3)) == 2
    assert s3.get("out/a.csv") == csv.read_bytes()


def test_a_slow_upload_is_followed_by_a_longer_pause(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MIRROR_EVERY_S", 0.0)
    times: list[float] = []

    def slow(self: Any, file: Any, state: Any) -> None:
        times.append(time.monotonic())
        time.sleep(0.1)

    monkeypatch.setattr(Mirror, "_copy", slow)
    csv = tmp_path / "a.csv"
    csv.write_text("row\n")
    mirror = Mirror(csv, "memory://out/a.csv")
    while len(times) < 2:
        mirror.note_checkpoint()
        time.sleep(0.01)
    mirror.close()
    assert times[1] - times[0] >= 0.5


def puts(s3: S3) -> list[str]:
    return [path for method, path in s3.requests if method == "PUT"]


def test_nothing_new_is_not_copied_again(s3: S3, tmp_path: Path) -> None:
    csv = tmp_path / "a.csv"
    csv.write_text("0\n")
    mirror = Mirror(csv, "s3://photos/out/a.csv")
    s3.requests.clear()
    mirror.note_checkpoint()
    eventually(lambda: s3.names() == ["out/a.csv"])
    mirror.close()
    assert len(puts(s3)) == 1


def test_a_mirror_that_fails_is_said_at_the_end_unless_it_recovers(
    s3: S3, tmp_path: Path, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    csv = tmp_path / "a.csv"
    csv.write_text("0\n")
    s3.put("out/a.csv", b"the older one")
    mirror = Mirror(csv, "s3://photos/out/a.csv")
    s3.faults.append(lambda method, path: 403 if method == "PUT" else None)
    mirror.note_checkpoint()
    eventually(lambda: bool(mirror.failures))
    assert s3.get("out/a.csv") == b"the older one"
    assert "s3://photos/out/a.csv cannot be reached (PermissionError" in caplog.text
    s3.faults.clear()
    csv.write_text("0\n1\n")
    mirror.note_checkpoint()
    eventually(lambda: not mirror.failures)
    s3.faults.append(lambda method, path: 403 if method == "PUT" else None)
    csv.write_text("0\n1\n2\n")
    mirror.close()
    (failure,) = mirror.failures
    assert failure.startswith("the mirror is not up to date: s3://photos/out/a.csv cannot be reached")
    assert s3.get("out/a.csv") == b"0\n1\n"


@pytest.mark.parametrize(
    ("target", "error"),
    [("s3://no-such-bucket/a.csv", NotFound), ("foo://x/a.csv", UserError), ("s3://photos/out/", UserError)],
)
def test_a_mirror_that_cannot_work_is_refused_at_the_start(
    s3: S3, tmp_path: Path, target: str, error: type[UserError]
) -> None:
    threads = threading.active_count()
    with pytest.raises(error):
        Mirror(tmp_path / "a.csv", target)
    assert threading.active_count() <= threads + 1  # fsspec's own


def test_help_names_addresses_and_loads_no_library() -> None:
    program = (
        "import sys\nfrom vec_pipeline.__main__ import main\n"
        "try: main(['report', '--help'])\nexcept SystemExit: pass\nassert 'fsspec' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "s3://bucket/report" in run.stdout
