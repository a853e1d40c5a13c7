"""Object stores and remote folders as sources: S3 with faults, a real server that outlives kills, SFTP, memory."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.conftest import EXAMPLES, PROJECT, Run
from tests.object_stores import S3, Sftp, first, hide, memory, s3, s3_server, seaweedfs, sftp  # noqa: F401 (fixtures)
from vec_pipeline import load_annotations
from vec_pipeline.downloads import Downloads
from vec_pipeline.object_stores import opened, without_login
from vec_pipeline.record import NotFound, Record, SourceOptions, UserError
from vec_pipeline.sources import content_of, open_source
from vec_pipeline.sources.bucket import Bucket, RemoteFile, time_of, version_of

# ruff: noqa: F811 (the parameters of a test are fixtures)

PICTURES = sorted(EXAMPLES.glob("*.png"))[:24]
CONFIG = """
stages: [{use: open_image, max_size_px: 112}, {use: embed_image, model: models/demo/clip, device: cpu}]
chunk_size: 2
"""


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("sftp://me:p@ss:w@host:22/a@b.jpg", "sftp://host:22/a@b.jpg"),
        ("ftp://me@host/x", "ftp://host/x"),
        ("abfs://container@account.dfs.core.windows.net/x", "abfs://container@account.dfs.core.windows.net/x"),
        ("s3://bucket/a@b.jpg", "s3://bucket/a@b.jpg"),
        ("me:secret@x", "me:secret@x"),
    ],
)
def test_a_login_is_no_part_of_an_address_that_is_shown(address: str, shown: str) -> None:
    assert without_login(address) == shown


def listings(s3: S3) -> int:
    return sum("list-type=2" in path and "delimiter" not in path for _, path in s3.requests)


def fetched(source: Any, folder: Path, **options: Any) -> dict[str, Record]:
    """Records of a source once their content has been fetched, as in a run; its bytes are under `data`."""
    found = {}
    with closing(Downloads(SourceOptions(**options), folder / "downloads")) as downloads:
        for record in downloads.ahead(source):
            found[record.key] = record
            if not record.error:
                record.values["data"] = record.values["content"].read()
    return found


@pytest.mark.parametrize(
    ("argument", "is_ours"),
    [
        ("s3://bucket", True),
        ("S3://bucket/a/b.jpg", True),
        ("gs://bucket/prefix/", True),
        ("abfs://container@account.dfs.core.windows.net/x", True),
        ("sftp://me@host/photos/", True),
        ("ftp://host/a.png", True),
        ("memory://x", True),
        ("s3://bucket/urls.csv", False),
        ("s3://bucket/urls.TXT.gz", False),
        ("s3://bucket/{000..099}.tar", False),
        ("s3://bucket/0.tar.gz", False),
        ("s3://bucket/0.tgz", False),
        ("s3://bucket/0.parquet", False),
        ("s3://bucket/urls.jsonl#12", False),
        ("s3://bucket/rows.parquet#image/3", False),
        ("s3://bucket/0.tar/a/b.jpg", False),
        ("s3://bucket/0.tgz#byte 512", False),
        ("s3://bucket/csv/", True),
        ("s3://bucket/a.tarot/b.jpg", True),
        ("s3://bucket/a.txt/b.jpg", True),
        ("https://host/a.jpg", False),
        ("hf://owner/name", False),
        ("file:///photos", False),
        ("photos/s3://", False),
        ("photos", False),
    ],
)
def test_addresses_are_taken_that_no_other_source_reads(argument: str, is_ours: bool) -> None:
    assert Bucket.accepts(argument) == is_ours


def test_objects_come_in_order_while_the_pages_of_the_listing_arrive(s3: S3) -> None:
    names = [f"{number:02}.jpg" for number in range(25)]
    for name in names:
        s3.put(f"in/{name}", name.encode())
    s3.put("in-other/x.jpg", b"of a name that begins alike")
    source, before = open_source(["s3://photos/in"]), listings(s3)
    records = iter(source)
    found = [next(records)]
    assert listings(s3) - before == 1
    found += records
    assert listings(s3) - before == 3
    assert [record.key for record in found] == [f"s3://photos/in/{name}" for name in names]
    assert [record.values["content"].read() for record in found] == [name.encode() for name in names]
    assert [record.key for record in source] == [record.key for record in found]
    assert (source.failures, source.notes) == ([], [])


@pytest.mark.parametrize("name", ["a b+c%20é#?&=.jpg", "дом/ö.JPG", "d/e/f.tiff", "~x'\".png", "back\\x89slash.jpg"])
def test_a_key_opens_its_object_whatever_its_name(s3: S3, name: str) -> None:
    s3.put(f"in/{name}", b"the bytes")
    s3.put("in/other.jpg", b"others")
    for argument in ("s3://photos", "s3://photos/in/"):
        (record,) = [each for each in open_source([argument]) if not each.key.endswith("other.jpg")]
        content = content_of(record.key)
        assert content.read() == record.values["content"].read() == b"the bytes"
        assert content.identity() == record.values["content"].identity()
        assert record.key.startswith("s3://photos/in/")


def test_what_is_no_picture_is_left_out_and_counted(s3: S3) -> None:
    for name in ("a.jpg", "b/@eaDir/b.jpg", "b/c.png", ".hidden/d.jpg", "b/.e.jpg", "f.txt", "README", "g.txt"):
        s3.put(f".in/{name}", b"x")
    s3.put(".in/b/", b"")
    source = open_source(["s3://photos/.in/"], options=SourceOptions(exclude=("@eaDir", "no/where/*")))
    for _ in range(2):
        assert [record.key for record in source] == ["s3://photos/.in/a.jpg", "s3://photos/.in/b/c.png"]
        assert source.notes == ["left out: 2 hidden, 2 .txt, 1 without a suffix, 1 @eaDir"]
    excluded = open_source(["s3://photos/.in/"], options=SourceOptions(exclude=("b/*",)))
    assert [record.key for record in excluded] == ["s3://photos/.in/a.jpg"]


def test_a_slash_tells_a_folder_from_an_object_of_that_name(s3: S3) -> None:
    s3.put("in", b"x")
    s3.put("in/a.jpg", b"x")
    assert [record.key for record in open_source(["s3://photos/in"])] == ["s3://photos/in"]
    assert [record.key for record in open_source(["s3://photos/in/"])] == ["s3://photos/in/a.jpg"]


MAY = datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)


@pytest.mark.parametrize(
    ("info", "version", "time"),
    [
        ({"size": 5, "ETag": '"ab"', "LastModified": MAY}, "5 ab", MAY),
        ({"size": 5, "etag": "ab", "last_modified": MAY}, "5 ab", MAY),
        ({"size": 5, "md5Hash": "ab=", "updated": "2026-05-06T07:08:09Z"}, "5 ab=", MAY),
        ({"size": 5, "mtime": MAY}, f"5 {MAY.timestamp()}", MAY),
        ({"size": 5, "created": MAY.timestamp()}, f"5 {MAY.timestamp()}", MAY),
        ({"size": 5, "modify": "20260506070809"}, None, MAY.replace(tzinfo=None)),
        ({"size": 5, "mtime": "yesterday"}, "5 0.0", None),
        ({"size": None}, "None 0.0", None),
    ],
)
def test_what_libraries_say_of_an_object_identifies_it(
    info: dict[str, Any], version: str | None, time: datetime | None
) -> None:
    assert version is None or version_of(info) == version
    assert time_of(info) == (time.timestamp() if time else 0.0)


def test_one_object_is_a_picture_whatever_its_suffix(s3: S3) -> None:
    s3.put("in/scan", b"x")
    (record,) = open_source(["s3://photos/in/scan"], options=SourceOptions(exclude=("scan",)))
    assert record.key == "s3://photos/in/scan"
    assert record.values["content"].size_and_time()[0] == 1
    assert time.time() - record.values["content"].size_and_time()[1] < 3600


def test_thumbnails_of_a_report_beside_the_pictures_are_left_out(s3: S3) -> None:
    s3.put("in/report/index.html", b'<html><meta name="generator" content="vec_pipeline report">')
    for name in ("in/report/gallery/thumbnails/ab/x.webp", "in/report/gallery/a.jpg", "in/gallery/thumbnails/y.webp"):
        s3.put(name, b"x")
    source = open_source(["s3://photos/in/"])
    assert [r.key for r in source] == [
        "s3://photos/in/gallery/thumbnails/y.webp",
        "s3://photos/in/report/gallery/a.jpg",
    ]
    assert source.notes == ["left out: 1 as a report's gallery, 1 .html"]


def test_a_listing_that_fails_in_the_middle_is_a_failure_after_what_was_listed(s3: S3) -> None:
    for number in range(25):
        s3.put(f"in/{number:02}.jpg", b"x")
    source = open_source(["s3://photos/in/"])
    s3.faults.append(lambda method, path: 403 if "continuation-token" in path else None)
    assert len(list(source)) == 10
    (failure,) = source.failures
    assert failure == "s3://photos/in (PermissionError: the test says so)"
    s3.faults.clear()
    assert len(list(source)) == 25
    assert source.failures == []


def test_a_listing_outlives_a_server_that_is_busy_for_a_moment(s3: S3) -> None:
    for number in range(25):
        s3.put(f"in/{number:02}.jpg", b"x")
    s3.faults += [first(2, 503, "continuation-token"), first(1, 500, "list-type=2")]
    assert len(list(open_source(["s3://photos/in/"]))) == 25


def test_what_does_not_exist_is_not_found(s3: S3) -> None:
    s3.put("in/a.jpg", b"x")
    for address in ("s3://photos/nothing/", "s3://photos/in/b.jpg", "s3://photos/i", "s3://no-such-bucket/"):
        with pytest.raises(NotFound, match=f"{address} does not exist: name an object or a folder"):
            open_source([address])


def test_access_that_is_refused_names_the_credentials(s3: S3) -> None:
    s3.faults.append(lambda method, path: 403)
    with pytest.raises(UserError, match=r"x cannot be reached \(PermissionError: .*\): check the credentials: AWS_P"):
        open_source(["s3://photos/x"])


def test_without_credentials_the_error_says_where_they_belong(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with pytest.raises(UserError, match=r"NoCredentialsError.*FSSPEC_S3_ANON=true"):
        open_source(["s3://photos/x"])


def test_no_server_is_an_error_in_bounded_time(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    start_s = time.monotonic()
    with pytest.raises(UserError, match=r"s3://photos/x cannot be reached .*: check the address and the network"):
        open_source(["s3://photos/x"])
    assert time.monotonic() - start_s < 30


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    hide("gcsfs", "gs", monkeypatch)
    with pytest.raises(UserError, match=r"^gs:// needs gcsfs: pip install 'vec-pipeline\[remote\]'$"):
        open_source(["gs://bucket/x"])


def test_an_unknown_scheme_is_an_error() -> None:
    with pytest.raises(UserError, match=r"^foo:// is not known: name s3://, gs://"):
        open_source(["foo://bucket/x"])


@pytest.mark.parametrize("address", ["s3://", "sftp:///"])
def test_an_address_without_a_place_is_an_error(address: str) -> None:
    with pytest.raises(UserError, match=f"^{address} names no bucket and no host: name one"):
        open_source([address])


def test_azure_without_an_account_says_which_variables_name_it() -> None:
    with pytest.raises(UserError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        open_source(["az://container/x"])


def test_each_failing_object_is_an_error_and_the_others_arrive(s3: S3, tmp_path: Path) -> None:
    for name in ("busy", "forbidden", "gone", "good", "flaky"):
        s3.put(f"in/{name}.jpg", name.encode())
    source = open_source(["s3://photos/in/"])
    records = list(source)
    s3.client.delete_object(Bucket="photos", Key="in/gone.jpg")
    s3.faults += [
        lambda method, path: 503 if "busy" in path else None,
        lambda method, path: 403 if "forbidden" in path else None,
        first(3, 500, "flaky"),
    ]
    found = fetched(records, tmp_path, download_attempts=3)
    errors = {Path(key).stem: record.error for key, record in found.items()}
    assert errors["good"] == errors["flaky"] == ""
    assert errors["gone"] == "download: FileNotFoundError: The specified key does not exist."
    assert errors["forbidden"] == "download: PermissionError: the test says so"
    assert errors["busy"] == "download: ConnectionError: the test says so (3 attempts)"
    good = found["s3://photos/in/good.jpg"].values
    assert good["data"] == b"good"
    assert good["content"].identity() == content_of("s3://photos/in/good.jpg").identity()
    assert sum("gone" in path and method == "GET" for method, path in s3.requests) == 1


def test_an_object_costs_one_request(s3: S3, tmp_path: Path) -> None:
    s3.put("in/a.jpg", b"bytes")
    s3.put("in/empty.jpg", b"")
    records = list(open_source(["s3://photos/in/"]))
    before = len(s3.requests)
    assert {record.values["data"] for record in fetched(records, tmp_path).values()} == {b"bytes", b""}
    assert len(s3.requests) - before == 1


def test_an_object_that_was_not_listed_is_identified_as_if_it_was(s3: S3, tmp_path: Path) -> None:
    """As the entries of a list are: `--refresh` must not take them for changed."""
    s3.put("in/a.jpg", b"bytes")
    (listed,) = open_source(["s3://photos/in/"])
    content = RemoteFile("s3://photos/in/a.jpg", limit_mb=1)
    found = fetched([Record("key", {"content": content})], tmp_path)["key"].values
    assert found["data"] == content.read() == b"bytes"
    assert found["content"].identity() == content.identity() == listed.values["content"].identity()
    assert content.size_and_time() == listed.values["content"].size_and_time()


def test_as_many_objects_are_fetched_at_once_as_the_options_say(s3: S3, tmp_path: Path) -> None:
    for number in range(40):
        s3.put(f"in/{number}.jpg", b"x")
    at_once, most, lock = 0, 0, threading.Lock()

    def slowly(method: str, path: str) -> None:
        nonlocal at_once, most
        if ".jpg" in path:
            with lock:
                at_once += 1
                most = max(most, at_once)
            time.sleep(0.5)
            with lock:
                at_once -= 1

    s3.faults.append(slowly)
    assert len(fetched(open_source(["s3://photos/in/"]), tmp_path, downloads_per_host=20)) == 40
    assert 12 <= most <= 20


def test_an_object_that_is_too_large_is_not_fetched(s3: S3, tmp_path: Path) -> None:
    s3.put("in/large.jpg", b"x" * 1_000_001)
    s3.put("in/grown.jpg", b"x")
    s3.put("in/limit.jpg", b"x" * 1_000_000)
    records = list(open_source(["s3://photos/in/"], options=SourceOptions(max_download_mb=1)))
    s3.put("in/grown.jpg", b"x" * 3_000_000)
    before = len(s3.requests)
    found = fetched(records, tmp_path, max_download_mb=1)
    assert found["s3://photos/in/large.jpg"].error == "download: TooLarge: more than max_download_mb (1)"
    assert found["s3://photos/in/grown.jpg"].error == "download: TooLarge: more than max_download_mb (1)"
    assert len(found["s3://photos/in/limit.jpg"].values["data"]) == 1_000_000
    assert not [path for _, path in s3.requests[before:] if "large" in path]


def test_an_object_that_has_changed_has_another_identity(s3: S3) -> None:
    s3.put("in/a.jpg", b"first")
    (old,) = open_source(["s3://photos/in/"])
    s3.put("in/a.jpg", b"other")
    (new,) = open_source(["s3://photos/in/"])
    assert old.values["content"].identity() != new.values["content"].identity()


def test_a_folder_of_a_server_is_walked_with_its_links(sftp: Sftp) -> None:
    for name in ("a.jpg", "b/c.png", "b/d?x#y z.jpg", "b/.h/x.jpg", "b/.h/y/z.jpg", "b/@eaDir/q.jpg", "b/t.txt"):
        (sftp.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (sftp.folder / name).write_bytes(name.encode())
    Path(os.fsdecode(os.fsencode(sftp.folder) + b"/b/\xff\xfe.jpg")).write_bytes(b"odd")
    (sftp.folder / "b/link.jpg").symlink_to("c.png")
    (sftp.folder / "b/loop").symlink_to("..")
    (sftp.folder / "b/gone.jpg").symlink_to("nowhere")
    os.mkfifo(sftp.folder / "b/pipe.jpg")
    root = sftp.url(login="").rstrip("/")
    source = open_source([sftp.url()], options=SourceOptions(exclude=("@eaDir",)))
    found = {record.key.removeprefix(root): record.values["content"] for record in source}
    assert list(found) == [
        *("/a.jpg", "/b/c.png", "/b/d?x#y z.jpg", "/b/gone.jpg", "/b/link.jpg", "/b/\\xff\\xfe.jpg"),
    ]
    with pytest.raises(FileNotFoundError):
        found.pop("/b/gone.jpg").read()
    assert [each.read() for each in found.values()] == [b"a.jpg", b"b/c.png", b"b/d?x#y z.jpg", b"b/c.png", b"odd"]
    assert source.notes == ["left out: 1 hidden, 1 @eaDir, 1 links to folders, 1 not a file, 1 .txt"]
    assert source.failures == []
    assert found["/a.jpg"].identity() != ""


def test_a_folder_that_cannot_be_read_is_a_failure(sftp: Sftp) -> None:
    (sftp.folder / "a").mkdir()
    (sftp.folder / "b.jpg").write_bytes(b"b")
    source = open_source([sftp.url()])
    records = iter(source)
    filesystem, ls = source._filesystem, source._filesystem.ls

    def failing(path: str, **options: Any) -> Any:
        if path.endswith("/a"):
            raise PermissionError("no")
        return ls(path, **options)

    filesystem.ls = failing
    assert [record.key for record in records] == [sftp.url("b.jpg", login="")]
    assert source.failures == [f"{sftp.url('a', login='')} (PermissionError: no)"]


def test_no_password_is_in_a_key_a_content_or_an_error(sftp: Sftp, tmp_path: Path) -> None:
    (sftp.folder / "a.jpg").write_bytes(b"a")
    (sftp.folder / "b.jpg").write_bytes(b"b")
    for argument in (sftp.url(), sftp.url("a.jpg")):
        (record, *_) = records = list(open_source([argument]))
        assert record.key == sftp.url("a.jpg", login="")
        assert "secret" not in repr(records)
    (sftp.folder / "b.jpg").unlink()
    found = fetched(open_source([sftp.url()]), tmp_path)
    found |= fetched(records, tmp_path)
    assert "secret" not in repr(found)
    for address in (sftp.url("nothing"), sftp.url(login="me:a-secret@")):
        with pytest.raises(UserError) as raised:
            open_source([address])
        assert "secret" not in str(raised.value)


def test_a_broken_connection_is_made_again(sftp: Sftp, tmp_path: Path) -> None:
    for number in range(6):
        (sftp.folder / f"{number}.jpg").write_bytes(b"%d" % number)
    records = list(open_source([sftp.url()]))
    sftp.break_connections()
    time.sleep(0.3)
    found = fetched(records, tmp_path)
    assert [record.error for record in found.values()] == [""] * 6
    assert {record.values["data"] for record in found.values()} == {b"%d" % number for number in range(6)}


def test_a_file_that_has_gone_breaks_no_connection(sftp: Sftp, tmp_path: Path) -> None:
    for number in range(3):
        (sftp.folder / f"{number}.jpg").write_bytes(b"x")
    records = list(open_source([sftp.url()]))
    connections = len(sftp.connections)
    (sftp.folder / "1.jpg").unlink()
    found = fetched(records, tmp_path)
    assert (
        found[sftp.url("1.jpg", login="")].error == "download: FileNotFoundError: [Errno 2] No such file or directory"
    )
    assert opened(sftp.url("b/c//"))[1] == "/b/c"
    assert len(sftp.connections) == connections


def test_a_host_whose_key_is_not_known_is_refused(sftp: Sftp) -> None:
    (sftp.home / ".ssh" / "known_hosts").write_text("")
    with pytest.raises(UserError, match=r"HostKeyNotVerifiable.*connect to it once with ssh"):
        open_source([sftp.url()])


def test_fsspecs_configuration_counts_for_sftp_too(sftp: Sftp, monkeypatch: pytest.MonkeyPatch) -> None:
    (sftp.home / ".ssh" / "known_hosts").write_text("")
    (sftp.folder / "a.jpg").write_bytes(b"a")
    monkeypatch.setitem(fsspec.config.conf, "sftp", {"known_hosts": None, "username": "me", "password": "secret-word"})
    assert len(list(open_source([sftp.url(login="")]))) == 1


def test_any_fsspec_scheme_is_a_source(memory: Any) -> None:
    for name in ("/in/b/2.jpg", "/in/a.jpg", "/in/b/1.png", "/in/c.txt"):
        memory.pipe_file(name, name.encode())
    source = open_source(["memory://in"])
    assert [record.key for record in source] == ["memory://in/a.jpg", "memory://in/b/1.png", "memory://in/b/2.jpg"]
    for record in source:
        assert record.values["content"].read() == f"/{record.key.removeprefix('memory://')}".encode()
        assert content_of(record.key).identity() == record.values["content"].identity()


def test_listings_are_not_kept(memory: Any) -> None:
    assert opened("memory://in")[0].dircache.use_listings_cache is False


def test_a_run_over_a_real_server_survives_kills(tmp_path: Path) -> None:
    """SIGKILL, then the same command: each object has one row, and the same vector as from the disk."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "data").mkdir()
    with seaweedfs(tmp_path / "data") as s3:
        for number, path in enumerate(PICTURES):
            s3.put(f"in/{number % 3}/{path.name}", path.read_bytes())
        s3.put("in/0/broken.jpg", b"no picture")
        output = tmp_path / "annotations.csv"
        arguments = ["s3://photos/in/", "--output", output, "--mirror", "s3://photos/out/annotations.csv"]
        killed = subprocess.Popen(command(tmp_path, *arguments), env={**os.environ, **s3.environment}, cwd=PROJECT)
        wait_for_rows(output, 5, killed)
        killed.send_signal(signal.SIGKILL)
        assert killed.wait(30) == -signal.SIGKILL
        assert len(load_annotations(output)) < len(PICTURES)
        run = annotate(tmp_path, s3.environment, *arguments)
        assert run.returncode == 1, run.stderr
        table = load_annotations(output).set_index("image_path")
        assert sorted(table.index) == sorted(f"s3://photos/{key}" for key in s3.names() if key.startswith("in/"))
        assert [key for key, row in table.iterrows() if row["error"]] == ["s3://photos/in/0/broken.jpg"]
        assert s3.get("out/annotations.csv") == output.read_bytes()
        assert "not-a-secret" not in (tmp_path / "annotations.log").read_text()
    local = annotate(tmp_path, {}, *PICTURES[:4], "--output", tmp_path / "local.csv")
    assert local.returncode == 0, local.stderr
    for path, row in load_annotations(tmp_path / "local.csv").set_index("image_path").iterrows():
        (same,) = [key for key in table.index if key.endswith(Path(str(path)).name)]
        assert table.loc[same, "image_vector"] @ row["image_vector"] > 0.9999


def command(folder: Path, *arguments: object) -> list[str]:
    return [sys.executable, "run.py", *map(str, arguments), "--config", str(folder / "config.yaml")]


def annotate(folder: Path, environment: dict[str, str], *arguments: object) -> Run:
    return subprocess.run(
        command(folder, *arguments), env={**os.environ, **environment}, cwd=PROJECT, timeout=240,
        capture_output=True, text=True,
    )  # fmt: skip


def wait_for_rows(output: Path, rows: int, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + 200
    while not output.exists() or output.read_bytes().count(b"\n") <= rows:
        assert process.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.02)
