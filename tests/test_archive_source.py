"""Archives as sources: every picture once under a key of its own, whatever the archive's names, sizes and damage."""

import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.conftest import EXAMPLES, PROJECT, Run
from vec_pipeline import load_annotations
from vec_pipeline.record import NotFound, SourceOptions, UserError
from vec_pipeline.sources import archive, content_of, open_source
from vec_pipeline.sources.archive import Archive
from vec_pipeline.sources.folder import Folder

PICTURES = sorted(EXAMPLES.glob("*.png"))[:24]
CONFIG = """
stages: [{use: open_image, max_size_px: 112}, {use: embed_image, model: models/demo/clip, device: cpu}]
chunk_size: 2
"""
ODD_NAMES = [
    *("a.jpg", "d/b.png", "d//c.jpg", "/root.png", "../up.jpg", "w\\in.jpg", "new\nline.jpg", "d\\x89.jpg"),
    *("é дом.JPG", " .jpg", "x.zip/inner.jpg", "a.jpg#2.jpg", "#2.jpg", "?q=1&.jpg", "C:/x.jpg"),
]

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Make an archive of names, each of which holds its name unless it is given with bytes."""

    def make(*names: str, path: str = "photos.zip", **contents: bytes) -> Path:
        with zipfile.ZipFile(tmp_path / path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.writestr(name, name.encode())
            for name, data in contents.items():
                archive.writestr(name.replace("_", "."), data)
        return tmp_path / path

    return make


def found(argument: Path | str, *exclude: str) -> dict[str, bytes]:
    """What an argument holds: the keys within the archive, and the bytes."""
    source = open_source([str(argument)], options=SourceOptions(exclude=exclude))
    archive = str(argument).partition(".zip")[0] + ".zip/"
    return {record.key.removeprefix(archive): record.values["content"].read() for record in source}


def test_each_picture_has_a_key_that_opens_it(make: Make) -> None:
    archive = make(*ODD_NAMES)
    records = list(open_source([str(archive)]))
    assert [record.values["content"].read().decode() for record in records] == ODD_NAMES
    assert len({record.key for record in records}) == len(ODD_NAMES)
    assert records[0].key == f"{archive}/a.jpg"
    for record in records:
        content = content_of(record.key)
        assert content == record.values["content"] == pickle.loads(pickle.dumps(content))
        assert content.read() == record.values["content"].read()
        assert content.link == ""


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_two_pictures(make: Make) -> None:
    archive = make("a.jpg")
    with zipfile.ZipFile(archive, "a") as file:
        for data in (b"second", b"third"):
            file.writestr("a.jpg", data)
        file.writestr("a.jpg#2", b"no picture's name")
    assert found(archive) == {"a.jpg": b"a.jpg", "a.jpg#2": b"second", "a.jpg#3": b"third"}
    assert content_of(f"{archive}/a.jpg#2").read() == b"second"


def test_names_that_are_not_utf8_stay_apart(make: Make) -> None:
    archive = make("one_.jpg", "two_.jpg")
    data = archive.read_bytes().replace(b"one_.jpg", b"one\xff.jpg").replace(b"two_.jpg", b"two\x82.jpg")
    archive.write_bytes(data)
    keys = [record.key for record in open_source([str(archive)])]
    assert len(set(keys)) == 2
    assert [content_of(key).read() for key in keys] == [b"one_.jpg", b"two_.jpg"]


def test_what_is_no_picture_is_left_out_and_counted(make: Make) -> None:
    png = PICTURES[0].read_bytes()
    hidden = ("__MACOSX/a.jpg", ".h/b.jpg", "d/.c.jpg")
    others = ("@eaDir/d.jpg", "README", "d/", "d/e.jpg")
    archive = make("a.jpg", *hidden, *others, scan=png, x_unknown=png, t_txt=png)
    source = open_source([str(archive)], options=SourceOptions(exclude=("@eaDir",)))
    for _ in range(2):
        inner = [record.key.removeprefix(f"{archive}/") for record in source]
        assert inner == ["a.jpg", "d/e.jpg", "scan", "x.unknown"]
        assert source.notes == ["left out: 3 hidden, 1 @eaDir, 1 without a suffix, 1 .txt"]
    assert list(found(archive, "d/*", "@eaDir", "scan")) == ["a.jpg", "x.unknown"]


def test_a_folder_in_an_archive_is_an_argument(make: Make) -> None:
    archive = make(".d/a.jpg", ".d/e/b.jpg", ".df.jpg", "c.jpg", path="photos.ZIP")
    for argument in (f"{archive}/.d", f"{archive}/.d/"):
        assert [record.key for record in open_source([argument])] == [f"{archive}/.d/a.jpg", f"{archive}/.d/e/b.jpg"]
    assert [record.key for record in open_source([f"{archive}/"])] == [f"{archive}/c.jpg"]


def test_what_is_not_there_is_not_found(make: Make) -> None:
    archive = make("d/a.jpg")
    for inner in ("b.jpg", "d/b.jpg", "d/a.jpg/c", "a"):
        with pytest.raises(NotFound, match=f"photos.zip holds no {inner}"):
            list(open_source([f"{archive}/{inner}"]))
        with pytest.raises(NotFound):
            content_of(f"{archive}/{inner}")
    archive.unlink()
    with pytest.raises(NotFound, match="does not exist"):
        content_of(f"{archive}/d/a.jpg")


def test_only_archives_are_taken(make: Make, tmp_path: Path) -> None:
    archive = make("a.jpg", path="comic.cbz")
    folder = tmp_path / "folder.zip"
    folder.mkdir()
    make("b.jpg", path="folder.zip/inner.zip")
    accepted = [str(archive), f"{archive}/a.jpg", f"{folder}/inner.zip", f"{folder}/inner.zip/b.jpg"]
    refused = [str(folder), f"{folder}/a.jpg", str(tmp_path / "missing.zip"), "s3://bucket/photos.zip", str(tmp_path)]
    assert [each for each in (*accepted, *refused) if Archive.accepts(each)] == accepted
    assert found(f"{folder}/inner.zip/b.jpg")


def test_a_folder_is_not_searched_for_archives(make: Make) -> None:
    archive = make("a.jpg")
    folder = Folder(str(archive.parent))
    assert list(folder) == []
    assert folder.notes == ["left out: 1 .zip"]


def test_a_key_has_the_whole_path_of_the_archive(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make("a.jpg")
    monkeypatch.setenv("HOME", str(archive.parent))
    monkeypatch.chdir(archive.parent)
    (archive.parent / "link.zip").symlink_to(archive)
    for argument in ("~/photos.zip", "photos.zip", "link.zip", "./link.zip/a.jpg"):
        (record,) = open_source([argument])
        assert record.key == f"{archive}/a.jpg"


def test_a_picture_that_was_changed_has_another_identity_and_one_beside_it_does_not(make: Make) -> None:
    archive = make(a_jpg=b"first", b_jpg=b"same")
    content, same = (record.values["content"] for record in open_source([str(archive)]))
    before = content.identity(), same.identity()
    make(a_jpg=b"other", b_jpg=b"same")
    os.utime(archive, (1, 1))
    assert content.read() == b"other"
    assert content.identity() != before[0]
    assert same.identity() == before[1]
    make("c.jpg")
    with pytest.raises(FileNotFoundError):
        content.read()


def test_size_and_time_are_those_of_the_picture(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr(zipfile.ZipInfo("a.jpg", (2020, 5, 6, 7, 8, 10)), b"four")
    (record,) = open_source([str(tmp_path / "x.zip")])
    assert record.values["content"].size_and_time() == (4, time.mktime((2020, 5, 6, 7, 8, 10, 0, 0, -1)))
    data = (tmp_path / "x.zip").read_bytes()
    date = struct.pack("<H", (2020 - 1980) << 9 | 5 << 5 | 6)
    (tmp_path / "x.zip").write_bytes(data.replace(date, struct.pack("<H", 2 << 5 | 31)))  # the 31st of February
    assert record.values["content"].size_and_time() == (4, 0.0)


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_what_is_no_archive_is_an_error_that_says_so(make: Make, damage: str) -> None:
    archive = make(*ODD_NAMES)
    data = archive.read_bytes()
    archive.write_bytes({"cut": data[: len(data) // 2], "text": b"no archive", "empty": b""}[damage])
    with pytest.raises(UserError, match=r"photos.zip cannot be read \(File is not a zip file\): it may be incomplete"):
        open_source([str(archive)])


def test_a_damaged_picture_is_an_error_and_its_neighbours_are_read(make: Make) -> None:
    archive = make(a_jpg=os.urandom(1000), b_jpg=os.urandom(1000), c_jpg=os.urandom(1000))
    data = bytearray(archive.read_bytes())
    data[data.index(b"b.jpg") + 500] ^= 255
    archive.write_bytes(data)
    good, damaged, also_good = (record.values["content"] for record in open_source([str(archive)]))
    assert len(good.read()) == len(also_good.read()) == 1000
    with pytest.raises(Exception, match=r"CRC|invalid|Error"):
        damaged.read()


def test_an_encrypted_picture_is_a_record_with_an_error(make: Make) -> None:
    archive = make("a.jpg", "b.jpg")
    data = bytearray(archive.read_bytes())
    for header, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(header) + at] |= 1  # of the first picture
    archive.write_bytes(data)
    encrypted, other = open_source([str(archive)])
    assert encrypted.key == f"{archive}/a.jpg"
    assert encrypted.error == "source: Encrypted: unpack the archive with its password, and name the folder"
    assert other.values["content"].read() == b"b.jpg"


def test_what_comes_out_is_bounded(make: Make) -> None:
    archive = make(bomb_jpg=b"\0" * 3_000_000, fits_jpg=b"\0" * 1_000_000)
    assert archive.stat().st_size < 10_000
    bomb, fits = open_source([str(archive)], options=SourceOptions(max_download_mb=1))
    assert len(fits.values["content"].read()) == 1_000_000
    with pytest.raises(ValueError, match=r"more than max_download_mb \(1\)"):
        bomb.values["content"].read()


def test_a_bomb_that_lies_about_its_size_takes_no_memory(make: Make) -> None:
    archive = make(bomb_jpg=b"\0" * 100_000_000)
    data = archive.read_bytes().replace(struct.pack("<I", 100_000_000), struct.pack("<I", 1000))
    archive.write_bytes(data)
    (bomb,) = open_source([str(archive)], options=SourceOptions(max_download_mb=1))
    tracemalloc.start()
    try:
        with pytest.raises(zipfile.BadZipFile, match="CRC"):
            bomb.values["content"].read()
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_an_archive_of_more_than_4_gb_is_read(tmp_path: Path) -> None:
    """ZIP64: a sparse file, in which the second picture begins beyond 4 GiB."""
    archive = tmp_path / "large.zip"
    with archive.open("wb") as raw, zipfile.ZipFile(raw, "w") as file:
        file.writestr("a.jpg", b"first")
        file.start_dir = raw.seek((1 << 32) + 10)
        file.writestr("b.jpg", b"second")
    assert archive.stat().st_size > 1 << 32
    assert found(archive) == {"a.jpg": b"first", "b.jpg": b"second"}


def test_many_pictures_are_read_quickly_by_many_threads(tmp_path: Path) -> None:
    """An archive is opened once: to open it for each picture would take minutes."""
    number = 20_000
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as file:
        for index in range(number):
            file.writestr(f"{index // 1000}/{index}.jpg", str(index))
    start_s = time.process_time()
    contents = [record.values["content"] for record in open_source([str(tmp_path / "many.zip")])]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda content: int(content.read()), contents)) == list(range(number))
    keys = [f"{tmp_path}/many.zip/{index // 1000}/{index}.jpg" for index in range(0, number, 100)]
    assert [content_of(key).identity() for key in keys] == [content.identity() for content in contents[::100]]
    assert time.process_time() - start_s < 20


def test_an_archive_that_many_threads_ask_for_is_opened_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    path, opened = str(make("a.jpg")), []

    def slowly(file: BinaryIO) -> zipfile.ZipFile:
        opened.append(file.name)
        time.sleep(0.1)
        return zipfile.ZipFile(file)

    monkeypatch.setattr(archive, "ZipFile", slowly)
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda key: content_of(key).read(), [f"{path}/a.jpg"] * 20)) == {b"a.jpg"}
    assert opened == [path]


def test_more_archives_than_stay_open_are_read_in_turn(make: Make) -> None:
    records = list(open_source([str(make(f"{number}.jpg", path=f"{number}.zip")) for number in range(20)]))
    for _ in range(2):
        assert [record.values["content"].read().decode() for record in records] == [f"{n}.jpg" for n in range(20)]
    open_files = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    assert len([path for path in open_files if path.endswith(".zip")]) <= archive.OPEN_ARCHIVES


def worker(folder: Path, *arguments: object) -> list[str]:
    (folder / "config.yaml").write_text(CONFIG)
    return [sys.executable, "run.py", *map(str, arguments), "--config", str(folder / "config.yaml")]


def test_a_run_survives_a_kill_and_its_rows_can_be_searched(tmp_path: Path) -> None:
    archive, output = tmp_path / "photos.zip", tmp_path / "annotations.csv"
    with zipfile.ZipFile(archive, "w") as file:
        for path in PICTURES:
            file.write(path, f"deep/{path.name}")
        file.writestr("broken.jpg", b"no picture")
    command = worker(tmp_path, archive, "--output", output)
    killed = subprocess.Popen(command, cwd=PROJECT)
    deadline_s = time.monotonic() + 200
    while not output.exists() or output.read_bytes().count(b"\n") < 5:
        assert killed.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(30) == -signal.SIGKILL
    done = len(load_annotations(output))
    assert done < len(PICTURES)
    run: Run = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=240)
    assert run.returncode == 1, run.stderr
    assert f"{len(PICTURES) + 1} images: {done} done, {len(PICTURES) + 1 - done} to do" in run.stdout
    table = load_annotations(output).set_index("image_path")
    assert sorted(table.index) == sorted([f"{archive}/broken.jpg", *(f"{archive}/deep/{p.name}" for p in PICTURES)])
    assert [key for key, error in table["error"].items() if error] == [f"{archive}/broken.jpg"]
    like = f"{archive}/deep/{PICTURES[3].name}"
    search = [sys.executable, "-m", "vec_pipeline", "search", "--csv", str(output), "--like", like]
    answer = subprocess.run(search, cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert re.search(rf"1\.000 +{re.escape(like)}", answer.stdout), answer.stderr
