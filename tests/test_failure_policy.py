"""One failure, one answer: real runs on a machine that misbehaves, and their exit status."""

import contextlib
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import EXAMPLES, PROJECT, Run
from vec_pipeline import load_annotations

CONFIG = """
device: cpu
chunk_size: 8
stages:
- {use: open_image, max_size_px: 112}
- {use: tests.poison.Poison, name: poison}
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(CONFIG)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, path in enumerate(sorted(EXAMPLES.glob("*.png"))[:6]):
        shutil.copy(path, folder / f"{number:02}.png")
    return folder


def command(photos: Path, *options: str) -> list[str]:
    """Annotate into out/a.csv beside the pictures."""
    folder = photos.parent
    arguments = [photos, "--config", folder / "config.yaml", "--output", folder / "out" / "a.csv", *options]
    return [sys.executable, "run.py", *map(str, arguments)]


def run(photos: Path, *options: str, program: str = "", **more: object) -> Run:
    """Run to the end; `program` is Python to run in the worker's process before it starts."""
    arguments = command(photos, *options)
    if program:
        start = f"{program}\nimport runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path('run.py', run_name='__main__')"
        arguments[1:2] = ["-c", start, "run.py"]
        more["env"] = {**os.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.run(arguments, cwd=PROJECT, capture_output=True, text=True, timeout=200, **more)  # type: ignore[call-overload,no-any-return]


def wait_until(is_so: Callable[[], bool], limit_s: float = 100) -> None:
    end_s = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def rows(photos: Path) -> list[str]:
    return list(load_annotations(photos.parent / "out" / "a.csv")["error"])


# --- signals


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT"])
def test_a_signal_that_is_ignored_at_the_start_stays_ignored(name: str, photos: Path) -> None:
    """As `nohup` does, `trap ''`, and a shell for a job in the background."""
    number = getattr(signal, name)
    slow = command(photos, "--set", "poison.seconds=0.5", "--set", "chunk_size=1")
    with subprocess.Popen(
        slow, cwd=PROJECT, stdout=subprocess.DEVNULL, preexec_fn=lambda: signal.signal(number, signal.SIG_IGN)
    ) as worker:
        csv = photos.parent / "out" / "a.csv"
        wait_until(lambda: csv.exists() and csv.read_bytes().count(b"\n") > 1)
        worker.send_signal(number)
        assert worker.wait(100) == 0
    assert rows(photos) == [""] * 6


# --- standard streams


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_closed_streams_change_nothing(closed: tuple[int, ...], photos: Path) -> None:
    def close() -> None:
        for descriptor in closed:
            os.close(descriptor)

    (photos / "06.png").write_bytes(b"no picture")
    worker = subprocess.run(command(photos), cwd=PROJECT, preexec_fn=close, timeout=200)
    assert worker.returncode == 1
    assert len(rows(photos)) == 7
    assert rows(photos).count("") == 6


def test_a_pipe_that_nobody_reads_changes_nothing(photos: Path) -> None:
    (photos / "06.png").write_bytes(b"no picture")
    for _ in range(2):  # the second has nothing to do, and only prints
        read_end, write_end = os.pipe()
        os.close(read_end)
        worker = subprocess.run(command(photos), cwd=PROJECT, stdout=write_end, stderr=write_end, timeout=200)
        os.close(write_end)
        assert worker.returncode == 1
        assert len(rows(photos)) == 7


@pytest.mark.parametrize("arguments", [("check", "--config", "configs/demo.yaml"), ("stats", "--csv", "out/a.csv")])
def test_other_commands_survive_a_closed_pipe_too(arguments: tuple[str, ...], photos: Path) -> None:
    run(photos)
    places = [str(photos.parent / each) if each.startswith("out/") else each for each in arguments]
    pipeline = f"{sys.executable} -m vec_pipeline {' '.join(places)} | true; exit ${{PIPESTATUS[0]}}"
    worker = subprocess.run(["bash", "-c", pipeline], cwd=PROJECT, capture_output=True, text=True, timeout=200)
    assert worker.returncode == 0, worker.stderr
    assert worker.stderr == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1251"])
def test_a_terminal_that_is_not_in_utf_8_gets_escapes(encoding: str, photos: Path) -> None:
    broken = photos / "сломано 🚗.png"
    broken.write_bytes(b"no picture")
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C"}
    worker = subprocess.run(command(photos), cwd=PROJECT, capture_output=True, timeout=200, env=environment)
    assert worker.returncode == 1, worker.stderr
    assert b"Traceback" not in worker.stderr
    assert rb"\U0001f697.png" in worker.stdout
    assert len(rows(photos)) == 7


# --- disks and files


def test_after_a_fatal_error_the_process_ends_at_once(photos: Path) -> None:
    """The disk is full while a model is still at work in its thread, for minutes."""
    limit = 20_000  # bytes: more than the settings and the log, and one row
    (photos / "02.png").rename(photos / "02 slow.png")
    options = ["result_cache=false", "chunk_size=1", "poison.more_letters=15000", "poison.slow_s=60"]
    with subprocess.Popen(
        command(photos, *(part for option in options for part in ("--set", option))), cwd=PROJECT, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    ) as worker:  # fmt: skip
        assert worker.stderr
        message = next(line for line in worker.stderr if line.startswith("run.py: "))
        start_s = time.monotonic()
        assert worker.wait(20) == 2
        assert time.monotonic() - start_s < 2
    assert "free some disk space, then rerun" in message


def test_a_result_cache_locked_by_another_program_is_left_alone(photos: Path) -> None:
    run(photos)
    out = photos.parent / "out"
    (out / "a.csv").unlink()
    with contextlib.closing(sqlite3.connect(out / "a.cache.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        worker = run(photos, program="import vec_pipeline.database as d; d.BUSY_S = 0.5")
    assert worker.returncode == 0, worker.stderr
    assert "a.cache.sqlite cannot be used (database is locked): continuing without it" in worker.stdout
    assert rows(photos) == [""] * 6


def test_fifty_unreadable_pictures_in_a_row_are_fifty_error_rows(photos: Path) -> None:
    for number in range(60):
        (photos / f"a{number:02}.png").write_bytes(b"<html>404</html>")
    worker = run(photos)
    assert worker.returncode == 1, worker.stderr
    assert len(rows(photos)) == 66
    assert rows(photos).count("") == 6


def make_deep_folder(photos: Path) -> None:
    """Make a folder whose absolute path is longer than Linux allows."""
    name = "d" * 200
    here = os.open(photos, os.O_RDONLY)
    for _ in range(25):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def test_a_folder_that_cannot_be_listed_is_named_and_counted(photos: Path) -> None:
    make_deep_folder(photos)
    for _ in range(2):
        worker = run(photos)
        assert worker.returncode == 1, worker.stderr
        assert "1 folder or file could not be listed or read to the end" in worker.stdout
        assert "(File name too long)" in worker.stdout
        assert rows(photos) == [""] * 6
    shutil.rmtree(photos)


def test_a_folder_without_permission_is_named_and_counted(photos: Path) -> None:
    """Root may list everything, so the operating system's answer is put in its place."""
    (photos / "private").mkdir()
    program = """if True:
        import os
        original = os.scandir
        def scandir(path):
            if str(path).endswith("private"):
                raise PermissionError(13, "Permission denied", path)
            return original(path)
        os.scandir = scandir
    """
    worker = run(photos, program=program)
    assert worker.returncode == 1, worker.stderr
    assert f"{photos / 'private'} (Permission denied)" in worker.stdout
    assert rows(photos) == [""] * 6
