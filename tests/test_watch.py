"""--watch: every image that arrives in a folder is taken once, and only when it is whole."""

import contextlib
import io
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import watchfiles
from PIL import Image

from tests.conftest import PROJECT
from vec_pipeline import load_annotations
from vec_pipeline.commands.run import watch
from vec_pipeline.commands.run.watch import Watcher
from vec_pipeline.record import UserError
from vec_pipeline.sources.folder import MARK_OF_A_PAGE, Folder

SETTLE_S = 0.5  # in these tests, instead of two seconds
LONG_S = 30.0  # until a test fails: other programs may keep the machine busy
JPEG = b"\xff\xd8\xff\xe0 the rest does not matter here"


def wait_until(condition: Callable[[], bool], timeout_s: float = LONG_S) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.02)


class Watching:
    """Takes from a watcher in a thread, and notes what came and when."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.root = root.resolve()
        self.said: list[str] = []
        self.watcher = Watcher([str(root)], say=self.said.append, **options)
        self.came: list[tuple[float, str]] = []
        self.thread = threading.Thread(target=self._take, daemon=True)
        self.thread.start()

    def _take(self) -> None:
        for record in self.watcher:
            assert record.values["content"].read()
            self.came.append((time.monotonic(), record.key))

    def names(self) -> list[str]:
        return [key.removeprefix(f"{self.root}/") for _, key in list(self.came)]

    def begin(self) -> None:
        """Wait until it has taken a file, so that later ones are found by watching and not by the first walk."""
        put(self.root / "begin.jpg")
        self.wait_for("begin.jpg")
        self.came.clear()

    def wait_for(self, *names: str) -> None:
        wait_until(lambda: set(names) <= set(self.names()) or not self.thread.is_alive())
        assert set(names) <= set(self.names())

    def settle(self) -> None:
        """Wait until whatever has happened so far must have been noticed."""
        name = f"end{time.monotonic()}.jpg"
        put(self.root / name)
        self.wait_for(name)
        self.came = [each for each in self.came if not each[1].endswith(name)]

    def stop(self) -> None:
        self.watcher.stop()
        self.thread.join(LONG_S)
        assert not self.thread.is_alive()


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SETTLE_S", SETTLE_S)
    monkeypatch.setattr(watch, "RESTART_INTERVAL_S", 0.2)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


Start = Callable[..., Watching]


@pytest.fixture
def start(root: Path) -> Iterator[Start]:
    """Watches the folder until the test has ended."""
    begun: list[Watching] = []

    def begin(**options: Any) -> Watching:
        begun.append(Watching(root, **options))
        begun[-1].begin()
        return begun[-1]

    yield begin
    for each in begun:
        each.stop()


def put(path: Path, data: bytes = JPEG) -> None:
    """A whole file at once, renamed into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.new")
    hidden.write_bytes(data)
    hidden.rename(path)


# --- whole files


def write_slowly(path: Path, parts: int = 8) -> tuple[float, float]:
    """Write in parts with pauses of a fifth of SETTLE_S; return the end, and the longest time between two of them."""
    ends_s = [time.monotonic()]
    with path.open("wb", buffering=0) as file:
        for _ in range(parts):
            file.write(JPEG)
            ends_s.append(time.monotonic())
            time.sleep(SETTLE_S / 5)
    return ends_s[-1], max(end - begin for begin, end in itertools.pairwise(ends_s))


def test_a_file_is_taken_when_it_has_not_changed_for_a_while(root: Path, start: Start) -> None:
    watching = start()
    for attempt in range(10):
        name = f"slow{attempt}.jpg"
        end_s, longest_pause_s = write_slowly(root / name)
        watching.wait_for(name)
        if longest_pause_s < SETTLE_S / 2:  # else this machine was too busy to tell anything
            break
    (taken_s,) = [when for when, key in watching.came if key.endswith(name)]
    assert taken_s - end_s > 0.9 * SETTLE_S
    assert set(Counter(watching.names()).values()) == {1}
    assert watching.watcher.notes == []


def test_a_file_that_grows_without_a_report_is_noticed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchfiles, "watch", nothing_reported)
    put(root / "a.jpg")
    watcher = Watcher([str(root)])
    for more in (b"1", b"22", b""):
        wait_until(lambda: watcher.ready() == 0 and bool(watcher._waiting))
        begin_s = time.monotonic()
        (root / "a.jpg").write_bytes(JPEG + more)
        time.sleep(SETTLE_S)
        assert watcher.ready() == 0
    wait_until(lambda: watcher.ready() == 1)
    assert time.monotonic() - begin_s > SETTLE_S


@pytest.mark.parametrize("suffix", [".part", ".crdownload", ".filepart"])
def test_a_download_is_taken_under_its_last_name_alone(suffix: str, root: Path, start: Start) -> None:
    watching = start()
    (root / f"a.jpg{suffix}").write_bytes(JPEG)
    watching.settle()
    os.utime(root / f"a.jpg{suffix}", (0, 1_000_000_000))
    (root / f"a.jpg{suffix}").rename(root / "a.jpg")
    watching.wait_for("a.jpg")
    assert watching.names() == ["a.jpg"]


def test_an_empty_file_waits_for_its_bytes(root: Path, start: Start) -> None:
    """Firefox creates a.jpg, empty, then writes a.jpg.part, which it renames at the end."""
    watching = start()
    (root / "a.jpg").touch()
    watching.settle()
    assert watching.names() == []
    (root / "a.jpg").write_bytes(JPEG)
    watching.wait_for("a.jpg")


def test_a_file_that_stays_empty_is_taken_in_the_end(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its row says what is wrong with it."""
    monkeypatch.setattr(watch, "EMPTY_S", 1.0)
    (root / "a.jpg").touch()
    watcher = Watcher([str(root)])
    begin_s = time.monotonic()
    assert next(iter(watcher)).key == str(root.resolve() / "a.jpg")
    assert time.monotonic() - begin_s >= 1.0


def test_a_file_that_has_gone_again_is_not_taken(root: Path, start: Start) -> None:
    watching = start()
    put(root / "a.jpg")
    (root / "a.jpg").unlink()
    put(root / "b.jpg")
    (root / "b.jpg").rename(root / "c.jpg")
    watching.wait_for("c.jpg")
    watching.settle()
    assert watching.names() == ["c.jpg"]


# --- which files


def make_tree(tree: Path, outside: Path) -> None:
    """All that a walk treats specially."""
    for name in (
        "a.jpg",
        "b/c.PNG",
        "b/d/e.webp",
        ".hidden/f.jpg",
        ".g.jpg",
        "skip/h.jpg",
        "skip_me.jpg",
        "notes.txt",
        "node_modules/i.jpg",
    ):
        put(tree / name)
    put(tree / "no_suffix")
    put(tree / "text", b"not an image")
    for name in ("report/index.html", "report/gallery/thumbnails/1.jpg", "report/2.jpg"):
        put(tree / name, MARK_OF_A_PAGE)
    for name in ("album/1.jpg", "album/sub/2.jpg", "album/.hidden.jpg", "lone.jpg", "skip_target.jpg"):
        put(outside / name)
    for name, target in {
        "album": outside / "album",
        "again": outside / "album",
        ".secret": outside / "album",
        "lone.jpg": outside / "lone.jpg",
        "twice.jpg": outside / "lone.jpg",
        "to_skipped.jpg": outside / "skip_target.jpg",
        "inside.jpg": tree / "a.jpg",
        "to_hidden.jpg": tree / ".g.jpg",
        "loop": tree,
        "nowhere.jpg": tree / "missing.jpg",
    }.items():
        (tree / name).symlink_to(target)


def expected(root: Path) -> list[str]:
    """What a walk finds; a link to nowhere is no file that could be whole."""
    keys = [record.key for record in Folder(str(root), ["skip*"])]
    return sorted(key for key in keys if Path(key).exists())


def test_what_was_there_before_counts_as_in_a_walk(root: Path, tmp_path: Path) -> None:
    make_tree(root, tmp_path / "outside")
    watching = Watching(root, exclude=["skip*"])
    wait_until(lambda: len(watching.came) >= len(expected(root)))
    watching.stop()
    assert sorted(key for _, key in watching.came) == expected(root)


def test_what_arrives_counts_as_in_a_walk(root: Path, tmp_path: Path, start: Start) -> None:
    """Each once, whichever ways lead to it, as single files and folders."""
    watching = start(exclude=["skip*"])
    make_tree(root, tmp_path / "outside")
    watching.wait_for("a.jpg", "b/d/e.webp", "no_suffix", "report/2.jpg")
    outside = str((tmp_path / "outside").resolve())
    wait_until(lambda: f"{outside}/album/sub/2.jpg" in watching.names())
    watching.settle()
    watching.settle()
    found = Counter(key for _, key in watching.came)
    assert sorted(found) == [key for key in expected(root) if Path(key).stem[:3] not in ("beg", "end")]
    assert set(found.values()) == {1}


def test_a_change_may_be_reported_under_any_name(root: Path, tmp_path: Path) -> None:
    """The system reports a folder that several links lead to under one of these names."""
    make_tree(root, tmp_path / "outside")
    for name in ("hidden_way", "skip_way"):
        (root / name.replace("hidden_", ".")).symlink_to(root / "b")
    folder, b = watch.WatchedFolder(str(root), ["skip*"]), str(root.resolve() / "b")
    for name in ("b", ".way", "skip_way", "loop/b"):
        assert list(dict.fromkeys(folder.images_at(f"{folder.root}/{name}/c.PNG"))) == [f"{b}/c.PNG"]
        assert list(dict.fromkeys(folder.images_at(f"{folder.root}/{name}"))) == [f"{b}/c.PNG", f"{b}/d/e.webp"]
    for name in (".secret/1.jpg", ".hidden/f.jpg", "skip/h.jpg", "notes.txt", "album/.hidden.jpg", "../lone.jpg", "."):
        assert list(folder.images_at(f"{folder.root}/{name}")) == []


def test_a_folder_that_is_removed_while_it_is_looked_at(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is no failure of the run."""
    put(root / "a/b.jpg")
    folder = watch.WatchedFolder(str(root))
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", lambda path: os.rename(path, f"{path}.gone") or os.listdir(path))
        assert list(folder.images_at(f"{folder.root}/a")) == []
    assert folder.failures == []


def test_what_replaces_a_file_may_be_no_file(root: Path) -> None:
    """A pipe would block the reader."""
    put(root / "a.jpg")
    watcher = Watcher([str(root)])
    wait_until(lambda: watcher.ready() == 0 and bool(watcher._waiting))
    (root / "a.jpg").unlink()
    os.mkfifo(root / "a.jpg")
    wait_until(lambda: watcher.ready() == 0 and not watcher._waiting)


def test_a_folder_is_moved_in(root: Path, tmp_path: Path, start: Start) -> None:
    watching = start(exclude=["skip*"])
    make_tree(tmp_path / "tree", tmp_path / "outside")
    (tmp_path / "tree").rename(root / "tree")
    watching.wait_for("tree/a.jpg", "tree/b/d/e.webp")
    put(root / "tree/b/d/later.jpg")
    watching.wait_for("tree/b/d/later.jpg")
    watching.settle()
    found = Counter(key for _, key in watching.came)
    assert sorted(found) == [key for key in expected(root) if Path(key).stem[:3] not in ("beg", "end")]
    assert set(found.values()) == {1}


def test_folders_and_files_are_made_in_one_go(root: Path, start: Start) -> None:
    """Faster than the new folders can be watched."""
    watching = start()
    firsts = ("a", "b", "node_modules")
    names = [f"{first}/{second}/{third}.jpg" for first in firsts for second in "abc" for third in "abc"]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(JPEG)
    watching.wait_for(*names)
    watching.settle()
    assert sorted(watching.names()) == sorted(names)


def test_a_file_arrives_before_its_folder_is_watched(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new folder is reported first, and the file in it is not."""
    (root / "new").mkdir()
    reports = [{(watchfiles.Change.added, str(root.resolve() / "new"))}, set()]
    monkeypatch.setattr(watchfiles, "watch", lambda *paths, **options: itertools.cycle(reports[-1:]))
    watcher = Watcher([str(root)])
    wait_until(lambda: watcher.ready() == 0 and not watcher._walks)
    monkeypatch.setattr(watcher, "_changes", iter([*reports, *[set()] * 1_000]))
    assert watcher.ready() == 0
    put(root / "new/a.jpg")
    wait_until(lambda: watcher.ready() == 1)


def test_files_arrive_behind_a_new_link_to_a_folder(root: Path, tmp_path: Path, start: Start) -> None:
    watching = start()
    put(tmp_path / "outside/old.jpg")
    (root / "link").symlink_to(tmp_path / "outside")
    old, new = (str(tmp_path.resolve() / "outside" / name) for name in ("old.jpg", "new.jpg"))
    watching.wait_for(old)
    put(tmp_path / "outside/new.jpg")
    watching.wait_for(new)
    assert watching.names() == [old, new]


def test_names_that_are_not_utf_8(root: Path, start: Start) -> None:
    """The library that watches cannot report them: it ends with an error."""
    watching = start()
    for number in range(3):
        with open(os.fsencode(root) + b"/\xff%d.jpg" % number, "wb") as file:
            file.write(JPEG)
        put(root / f"{number}.jpg")
    names = [f"\\xff{number}.jpg" for number in range(3)] + [f"{number}.jpg" for number in range(3)]
    watching.wait_for(*names)
    assert sorted(watching.names()) == sorted(names)
    assert watching.said == []


def test_two_hundred_files_at_once(root: Path, start: Start) -> None:
    watching = start()
    names = [f"{number}.jpg" for number in range(200)]
    for name in names:
        (root / name).write_bytes(JPEG)
    watching.wait_for(*names)
    watching.settle()
    assert sorted(watching.names()) == sorted(names)
    assert watching.watcher.notes == []


@pytest.mark.parametrize("how", ["files", "folders"])
def test_more_than_is_remembered_at_a_time(
    how: str, root: Path, tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "MOST_WAITING", 7)
    watching = start()
    for number in range(50):
        put(tmp_path / f"new/{number}/a.jpg")
    for number in range(50):
        if how == "files":
            (tmp_path / f"new/{number}/a.jpg").rename(root / f"{number}.jpg")
        else:
            (tmp_path / f"new/{number}").rename(root / str(number))
    names = [f"{number}.jpg" if how == "files" else f"{number}/a.jpg" for number in range(50)]
    watcher, most = watching.watcher, 0
    while not set(names) <= set(watching.names()):
        most = max(most, len(watcher._waiting), len(watcher._ready), len(watcher._walks))
        time.sleep(0.01)
    assert most <= 8
    watching.settle()
    assert sorted(watching.names()) == sorted(names)


def test_a_walk_waits_while_many_files_settle(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It resumes where it stopped, rather than starting from scratch after every few files."""
    monkeypatch.setattr(watch, "MOST_WAITING", 7)
    monkeypatch.setattr(watchfiles, "watch", nothing_reported)
    walks = []
    monkeypatch.setattr(watch.WatchedFolder, "images", lambda folder: walks.append(1) or folder._images())
    for number in range(30):
        put(root / f"{number}.jpg")
    assert len({record.key for record in itertools.islice(Watcher([str(root)]), 30)}) == 30
    assert len(walks) == 1


def test_walks_do_not_pile_up(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MOST_WAITING", 7)
    monkeypatch.setattr(watch, "WALK_INTERVAL_S", 0.0)
    monkeypatch.setattr(watchfiles, "watch", nothing_reported)
    for number in range(30):
        put(root / f"{number}.jpg")
    watcher = Watcher([str(root)])
    for _ in itertools.islice(watcher, 30):
        assert len(watcher._walks) <= 1


# --- done and changed


def test_what_is_done_is_left_out(root: Path) -> None:
    put(root / "done.jpg")
    put(root / "new.jpg")
    watching = Watching(root, done={str(root.resolve() / "done.jpg")})
    watching.wait_for("new.jpg")
    (root / "done.jpg").write_bytes(JPEG + b"more")
    watching.settle()
    watching.stop()
    assert watching.names() == ["new.jpg"]
    assert watching.watcher.notes == ["1 picture changed after the rows were made: --refresh updates them"]


def test_a_file_that_is_rewritten_is_counted_and_not_taken_again(root: Path, start: Start) -> None:
    watching = start()
    put(root / "a.jpg")
    put(root / "b.jpg")
    watching.wait_for("a.jpg", "b.jpg")
    (root / "a.jpg").chmod(0o600)
    watching.settle()
    assert watching.watcher.notes == []
    for more in (b"1", b"22"):
        (root / "a.jpg").write_bytes(JPEG + more)
        put(root / "b.jpg", JPEG + more)
        watching.settle()
    assert sorted(watching.names()) == ["a.jpg", "b.jpg"]
    assert watching.watcher.notes == ["2 pictures changed after the rows were made: --refresh updates them"]


# --- folders that go and come back, and what is not reported


@pytest.mark.parametrize("how", ["removed", "renamed"])
def test_a_folder_goes_and_comes_back(how: str, root: Path, tmp_path: Path, start: Start) -> None:
    watching = start()
    put(root / "a.jpg")
    watching.wait_for("a.jpg")
    if how == "removed":
        shutil.rmtree(root)
    else:
        root.rename(tmp_path / "elsewhere")
    wait_until(lambda: watching.said == [f"{root.resolve()} is no longer there: waiting for it to come back"])
    assert watching.watcher.failures == [f"{root.resolve()} (no longer there)"]
    put(root / "b.jpg")
    watching.wait_for("b.jpg")
    put(root / "c.jpg")
    watching.wait_for("c.jpg")
    assert watching.names() == ["a.jpg", "b.jpg", "c.jpg"]
    assert watching.watcher.failures == []


@pytest.mark.parametrize("how", ["removed", "renamed"])
def test_a_folder_is_replaced_between_two_looks(how: str, root: Path, tmp_path: Path, start: Start) -> None:
    """The new one may have the number of the old one, whose changes are no longer reported."""
    watching = start()
    for number in range(3):
        (tmp_path / "next").mkdir()
        if how == "removed":
            shutil.rmtree(root)
        else:
            root.rename(tmp_path / f"old{number}")
        (tmp_path / "next").rename(root)
        watching.settle()
        put(root / f"{number}.jpg")
        watching.wait_for(f"{number}.jpg")


def test_a_drive_is_mounted_over_a_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That changes which folder it is, and is not reported."""
    monkeypatch.setattr(watchfiles, "watch", nothing_reported)
    watcher = Watcher([str(root)])
    wait_until(lambda: watcher.ready() == 0 and not watcher._is_walking)
    put(root / "a.jpg")
    monkeypatch.setattr(watch, "place_of", lambda folder: (1, 2))
    assert next(iter(watcher)).key == str(root.resolve() / "a.jpg")


def nothing_reported(*paths: str, **options: Any) -> Iterator[set[Any]]:
    """As on a network drive that another computer writes to."""
    while True:
        time.sleep(0.05)
        yield set()


def test_walks_find_what_was_not_reported(root: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchfiles, "watch", nothing_reported)
    monkeypatch.setattr(watch, "WALK_INTERVAL_S", 0.3)
    watching = start()
    put(root / "a/b.jpg")
    watching.wait_for("a/b.jpg")
    put(root / "c.jpg")
    watching.wait_for("c.jpg")
    assert watching.names() == ["a/b.jpg", "c.jpg"]


def test_watching_fails(root: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*paths: str, **options: Any) -> Iterator[set[Any]]:
        raise OSError("OS file watch limit reached")
        yield

    monkeypatch.setattr(watchfiles, "watch", refused)
    monkeypatch.setattr(watch, "UNWATCHED_INTERVAL_S", 0.3)
    watching = start()
    put(root / "a.jpg")
    watching.wait_for("a.jpg")
    put(root / "b.jpg")
    watching.wait_for("b.jpg")
    assert watching.said == ["watching failed (OS file watch limit reached): new files are looked for every 0 s"]


def test_a_folder_vanishes_while_watching_begins(root: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """One below it, that is: it is tried again, and nothing is to be said."""
    attempts = []

    def refused_once(*paths: str, **options: Any) -> Iterator[set[Any]]:
        attempts.append(paths)
        if len(attempts) == 1:
            raise FileNotFoundError("No path was found.")
        return (yield from nothing_reported())

    monkeypatch.setattr(watchfiles, "watch", refused_once)
    watching = start()
    wait_until(lambda: len(attempts) == 2)
    assert watching.said == []


def test_watching_begins_before_the_walk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that arrives where the walk has been already is reported."""
    real_walk = Folder._images

    def late(folder: Folder) -> Iterator[str]:
        yield from real_walk(folder)
        put(root / "late.jpg")

    monkeypatch.setattr(Folder, "_images", late)
    watching = Watching(root)
    watching.wait_for("late.jpg")
    watching.stop()


# --- the interface


def test_ready_tells_how_many_can_be_taken(root: Path) -> None:
    watcher = Watcher([str(root)])
    assert watcher.ready() == 0
    for number in range(20):
        put(root / f"{number}.jpg")
    wait_until(lambda: watcher.ready() == 20)
    records = iter(watcher)
    keys = {next(records).key for _ in range(15)}
    assert watcher.ready() == 5
    keys |= {next(records).key for _ in range(5)}
    assert len(keys) == 20
    watcher.stop()
    assert list(records) == []


def test_stop_ends_it_at_once(root: Path, start: Start) -> None:
    for _ in range(5):
        watching = Watching(root)
        time.sleep(0.3)
        begin_s = time.monotonic()
        watching.stop()
        if (needed_s := time.monotonic() - begin_s) < 0.5:
            break
    assert needed_s < 0.5


def test_several_folders_one_in_the_other(root: Path) -> None:
    put(root / "a/b.jpg")
    put(root / "c.jpg")
    put(root.parent / "other/d.jpg")
    watcher = Watcher([str(root), str(root / "a"), str(root.parent / "other")])
    keys = [record.key for record in itertools.islice(watcher, 3)]
    assert sorted(keys) == sorted(
        str(path.resolve()) for path in (root / "a/b.jpg", root / "c.jpg", root.parent / "other/d.jpg")
    )
    put(root / "a/e.jpg")
    assert next(iter(watcher)).key == str(root.resolve() / "a/e.jpg")
    put(root.parent / "other/f.jpg")
    assert next(iter(watcher)).key == str(root.parent.resolve() / "other/f.jpg")


@pytest.mark.parametrize("argument", ["a.jpg", "missing", "-", "https://host/a.jpg", "s3://bucket/", "{a,b}.tar"])
def test_other_sources_are_refused(argument: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    put(root / "a.jpg")
    with pytest.raises(UserError, match="--watch needs folders: ") as raised:
        Watcher([".", argument])
    assert argument in str(raised.value)


# --- runs


CONFIG = """
device: cpu
stages:
- {use: open_image, max_size_px: 112}
- {use: tests.poison.Poison, seconds: 0.02}
"""


def picture(width: int) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((width, 8), 90).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts `run.py` on the folder."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    output = tmp_path / "annotations.csv"
    with contextlib.ExitStack() as stack:

        def begin(*options: str, source: Path = root) -> "subprocess.Popen[str]":
            names = [
                sys.executable,
                "run.py",
                source,
                "--config",
                tmp_path / "config.yaml",
                "--output",
                output,
                *options,
            ]
            process = subprocess.Popen(
                list(map(str, names)), cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        yield begin


def rows(root: Path) -> list[tuple[str, str, str]]:
    output = root.parent / "annotations.csv"
    if not output.exists():
        return []
    table = load_annotations(output)
    keys = [path.removeprefix(f"{root.resolve()}/") for path in table["image_path"]]
    return sorted(zip(keys, table["text"], table["error"], strict=True))


def expected_rows(widths: dict[str, int]) -> list[tuple[str, str, str]]:
    return sorted((name, f"A picture of {width} by 8. There is no text.", "") for name, width in widths.items())


def count(root: Path) -> int:
    output = root.parent / "annotations.csv"
    return output.read_bytes().count(b"\n") - 1 if output.exists() else 0


def test_a_run_annotates_what_arrives_until_a_signal_ends_it(
    root: Path, tmp_path: Path, run: Callable[..., "subprocess.Popen[str]"]
) -> None:
    widths = {"before.png": 20}
    put(root / "before.png", picture(20))
    process = run("--watch")
    wait_until(lambda: count(root) == 1)
    data = picture(30)
    with (root / "slow.png").open("wb", buffering=0) as file:
        for begin in range(0, len(data), len(data) // 4):
            file.write(data[begin : begin + len(data) // 4])
            time.sleep(0.3)
    for number in range(40, 60):
        put(root / f"{number}.png", picture(number))
        put(tmp_path / f"folder/sub/{number}.png", picture(number + 20))
        widths |= {f"{number}.png": number, f"folder/sub/{number}.png": number + 20}
    (tmp_path / "folder").rename(root / "folder")
    widths["slow.png"] = 30
    wait_until(lambda: count(root) == len(widths))
    put(root / "last.png", picture(90))  # one alone must not wait for others that fill its chunk
    wait_until(lambda: count(root) == len(widths) + 1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=LONG_S)
    assert process.returncode == 0, said
    assert rows(root) == expected_rows(widths | {"last.png": 90})


def test_killed_runs_leave_one_row_for_each_picture(root: Path, run: Callable[..., "subprocess.Popen[str]"]) -> None:
    """Some pictures arrive before the run watches, some while it does, and some while it dies."""
    widths = {}
    for attempt in range(4):
        process = run("--watch")
        for number in range(20):
            widths[f"{attempt}-{number}.png"] = 20 + number
            put(root / f"{attempt}-{number}.png", picture(20 + number))
            time.sleep(0.05)
        at_least = 20 * attempt + 5 * (attempt + 1)
        wait_until(lambda: count(root) >= at_least)  # noqa: B023 (it is called at once)
        process.kill()
        process.wait()
    process = run("--watch")
    wait_until(lambda: count(root) >= len(widths))
    for name, width in (("found.png", 90), ("reported.png", 91)):  # the first one may still be found by the first walk
        widths[name] = width
        put(root / name, picture(width))
        wait_until(lambda: count(root) >= len(widths))
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=LONG_S)
    assert process.returncode == 0, said
    assert rows(root) == expected_rows(widths)


def test_a_run_refuses_to_watch_a_file(root: Path, run: Callable[..., "subprocess.Popen[str]"]) -> None:
    put(root / "a.png", picture(20))
    process = run("--watch", source=root / "a.png")
    said, _ = process.communicate(timeout=LONG_S)
    assert process.returncode == 2
    assert said == f"run.py: --watch needs folders: {root / 'a.png'} is none\n"
