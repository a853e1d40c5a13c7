"""Faults injected into real runs: full disks, dying processes, damaged files, vanishing folders; and what is left."""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest

from tests.conftest import EXAMPLES, PROJECT, Run, command
from tests.test_promises import assert_same_rows
from vec_pipeline import load_annotations

CONFIG = """
device: cpu
chunk_size: 8
stages:
- open_image
- {use: tests.poison.PoisonReading}
- {use: tests.poison.Poison}
- {use: embed_words, model: models/demo/words/words.bin}
- {use: structure, model: models/demo/llama/llama.gguf, threads: 1}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Stages of this folder's, which can be told to die, and two of the bundled models."""
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve of the example pictures under short names."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, path in enumerate(sorted(EXAMPLES.glob("*.png"))[:12]):
        shutil.copy(path, folder / f"{number:02}.png")
    return folder


def arguments(photos: Path, config: Path, output: Path, *options: str) -> list[str]:
    return [
        sys.executable,
        str(PROJECT / "run.py"),
        str(photos),
        "--config",
        str(config),
        "--output",
        str(output),
        *options,
    ]


def run(photos: Path, config: Path, output: Path, *options: str, before: Callable[[], None] | None = None) -> Run:
    return subprocess.run(
        arguments(photos, config, output, *options), cwd=PROJECT, capture_output=True, text=True, timeout=200,
        preexec_fn=before,
    )  # fmt: skip


def assert_refused(run: Run, *words: str) -> None:
    """Exit status 2, and a last line that says why."""
    assert run.returncode == 2, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    sentence = run.stderr.strip().splitlines()[-1]
    assert sentence.startswith("run.py: ")
    for word in words:
        assert word in sentence


def assert_all_right(output: Path, photos: Path) -> pd.DataFrame:
    """Every picture has one row, without error and of its own size."""
    table = load_annotations(output)
    assert sorted(table["image_path"]) == sorted(str(path.resolve()) for path in photos.iterdir())
    assert set(table["error"]) == {""}
    assert table["text"].str.startswith("A picture of ").all()
    assert table["llama_extracted"].str.startswith("{").all()
    return table


# --- disks


def limit_files_to(size_bytes: int) -> Callable[[], None]:
    """No file may grow beyond a size: as on a full disk, a write is first cut short, then fails."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))


ADVICE = "free some disk space, then rerun"


@pytest.mark.parametrize("result_cache", ["true", "false"])
def test_a_csv_that_cannot_grow_stops_the_run_with_whole_rows(
    result_cache: str, photos: Path, config: Path, tmp_path: Path
) -> None:
    """It meets the limit in the middle of an append. The databases met it before, and the run continued without."""
    output = tmp_path / "out" / "annotations.csv"
    options = ("--set", f"result_cache={result_cache}", "--set", "chunk_size=2")
    assert_refused(run(photos, config, output, *options, before=limit_files_to(4_000)), "annotations.csv: ", ADVICE)
    content = output.read_bytes()
    assert content.endswith(b"\n")
    rows = load_annotations(output)
    assert 0 < len(rows) < 12
    assert set(rows["error"]) == {""}
    again = run(photos, config, output, *options)
    assert again.returncode == 0, again.stderr
    assert output.read_bytes().startswith(content)
    assert_all_right(output, photos)


def test_a_result_cache_that_cannot_grow_is_left_alone(photos: Path, config: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "annotations.csv"
    done = run(photos, config, output, "--set", "chunk_size=2", before=limit_files_to(45_000))
    assert done.returncode == 0, done.stderr
    assert (
        f"{output.with_suffix('.cache.sqlite')} cannot be used (disk I/O error): continuing without it" in done.stdout
    )
    assert_all_right(output, photos)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system in memory with the given options, and again with others."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def mounted(options: str) -> Path:
        again = ("remount,",) if os.path.ismount(folder) else ("",)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"{again[0]}{options}", "tmpfs", str(folder)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
        return folder

    yield mounted
    if os.path.ismount(folder):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("size", ["8k", "64k", "128k"])
def test_a_full_disk_stops_the_run_and_space_lets_it_go_on(
    size: str, photos: Path, config: Path, mount: Callable[[str], Path]
) -> None:
    """Too small for the tables of the result cache, for its results, or for the rows."""
    output = mount(f"size={size}") / "annotations.csv"
    assert_refused(run(photos, config, output), ADVICE)
    if output.exists() and output.stat().st_size:
        assert output.read_bytes().endswith(b"\n")
        assert set(load_annotations(output)["error"]) <= {""}
    mount("size=64m")
    again = run(photos, config, output)
    assert again.returncode == 0, again.stderr
    assert_all_right(output, photos)


def test_an_output_folder_that_may_not_be_written_is_refused(
    photos: Path, config: Path, mount: Callable[[str], Path]
) -> None:
    output = mount("ro") / "annotations.csv"
    assert_refused(run(photos, config, output), "cannot be written", "--output")


# --- the result cache and the crash journal


def finished_but_for_one_row(photos: Path, config: Path, output: Path) -> None:
    """A run whose last row is torn, so that the next one asks the result cache."""
    done = run(photos, config, output)
    assert done.returncode == 0, done.stderr
    os.truncate(output, output.stat().st_size - 50)


def garbage_from(path: Path, share: float) -> None:
    """The first pages are as they were."""
    content = path.read_bytes()
    kept = content[: max(4096, int(share * len(content)))]
    path.write_bytes(kept + random.Random(0).randbytes(len(content) - len(kept)))


def directory_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").touch()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "garbage": lambda path: path.write_bytes(random.Random(0).randbytes(50_000)),
    "garbage behind the first page": lambda path: garbage_from(path, 0),
    "garbage in the second half": lambda path: garbage_from(path, 0.5),
    "cut in the middle": lambda path: os.truncate(path, path.stat().st_size // 2),
    "another program's": lambda path: path.write_text("no database"),
    "a directory": directory_instead,
}


@pytest.mark.parametrize("name", ["cache", "journal"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_database_is_set_aside_and_the_run_continues(
    damage: str, name: str, photos: Path, config: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out" / "annotations.csv"
    finished_but_for_one_row(photos, config, output)
    database = output.with_suffix(f".{name}.sqlite")
    DAMAGES[damage](database)
    again = run(photos, config, output)
    assert again.returncode == 0, again.stderr
    aside = f"annotations.{name}.broken"
    assert f"{database} is damaged and was set aside as {aside}" in again.stdout
    assert (output.parent / aside).exists()
    assert_all_right(output, photos)
    assert database.is_file()


def test_databases_that_are_gone_cost_time_only(photos: Path, config: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "annotations.csv"
    finished_but_for_one_row(photos, config, output)
    paths = list(output.parent.glob("*.sqlite*"))
    assert {path.name for path in paths} == {"annotations.cache.sqlite", "annotations.journal.sqlite"}
    for path in paths:
        path.unlink()
    assert run(photos, config, output).returncode == 0
    assert_all_right(output, photos)


def test_what_the_result_cache_holds_is_not_computed_again(photos: Path, config: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "annotations.csv"
    finished_but_for_one_row(photos, config, output)
    (output.parent / "annotations.log").unlink()
    assert run(photos, config, output).returncode == 0
    assert_all_right(output, photos)
    log = (output.parent / "annotations.log").read_text()
    assert re.findall(r"(\w+): a batch of", log) == ["open_image", "poison_reading"]
    assert "loaded" not in log


# --- two workers


def test_a_second_worker_ends_at_once_and_names_the_first(photos: Path, config: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "annotations.csv"
    slow = ("--set", "tests.poison.Poison.seconds=60")
    with subprocess.Popen(
        arguments(photos, config, output, *slow), cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as first:
        lock = output.with_suffix(".lock")
        wait_until(lambda: lock.exists() and lock.read_text() == f"{first.pid}\n")
        assert_refused(run(photos, config, output), f"in use by another worker, process {first.pid}:")
        first.kill()
    after = run(photos, config, output)  # no waiting for a lock of the dead
    assert after.returncode == 0, after.stderr
    assert_all_right(output, photos)


def wait_until(is_so: Callable[[], bool], limit_s: float = 100) -> None:
    end_s = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.02)


# --- processes that die


@pytest.mark.parametrize(
    ("stage", "signal_name"), [("Poison", "SIGKILL"), ("Poison", "SIGSEGV"), ("PoisonReading", "SIGSEGV")]
)
def test_an_image_that_kills_the_process_twice_gets_an_error_row(
    stage: str, signal_name: str, photos: Path, config: Path, tmp_path: Path
) -> None:
    """The first time among others, the second time alone; from then on it is left out, and no other image with it."""
    (photos / "05.png").rename(photos / "05 poison.png")
    output = tmp_path / "out" / "annotations.csv"
    slow = ("--set", "tests.poison.Poison.seconds=0.1")  # so that the next chunk has been read by then
    deadly = ("--set", f"tests.poison.{stage}.how={signal_name}", *slow)
    for _ in range(2):
        assert run(photos, config, output, *deadly).returncode == -getattr(signal, signal_name)
    saved = load_annotations(output)
    assert {Path(path).name for path in saved["image_path"]} == {"08.png", "09.png", "10.png", "11.png"}
    assert set(saved["error"]) == {""}
    third = run(photos, config, output, *deadly)
    assert third.returncode == 1, third.stderr
    table = load_annotations(output).set_index("image_path")
    assert len(table) == 12
    error = table.loc[str((photos / "05 poison.png").resolve()), "error"]
    name = "poison_reading" if stage == "PoisonReading" else "poison"
    assert error.startswith(f"{name}: ProcessDied: ")
    assert (table["error"] != "").sum() == 1
    assert run(photos, config, output, *deadly).returncode == 1  # it stays so, and lives
    retried = run(photos, config, output, "--retry-errors")
    assert retried.returncode == 0, retried.stderr
    assert_all_right(output, photos)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_a_llama_process_that_dies_costs_no_row(
    number: signal.Signals, example_run: tuple[Run, Path], tmp_path: Path
) -> None:
    """In the middle of a chunk, and again as soon as there is another."""
    output = tmp_path / "annotations.csv"
    killed: list[int] = []
    with subprocess.Popen(
        command(EXAMPLES, "--output", output, "--set", "chunk_size=25"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as worker:
        while worker.poll() is None and len(killed) < 2:
            # One that dies twice while it is loaded ends the run: the first kill comes later.
            has_begun = killed or has_logged(output, "loaded structure in")
            for child in psutil.Process(worker.pid).children():
                if has_begun and child.pid not in killed and is_at_work(child):
                    child.send_signal(number)
                    killed.append(child.pid)
            time.sleep(0.01)
        printed, _ = worker.communicate(timeout=200)
    assert len(killed) == 2
    assert worker.returncode == 0, printed
    assert_same_rows(load_annotations(output), load_annotations(example_run[1]))
    assert f"signal {number.name}" in (tmp_path / "annotations.log").read_text()


def has_logged(output: Path, words: str) -> bool:
    log = output.with_suffix(".log")
    return log.exists() and words in log.read_text(encoding="utf-8")


def is_at_work(child: psutil.Process) -> bool:
    """Whether a child of the worker is a llama.cpp process that has the model loaded."""
    try:
        is_llama = any("llama_process" in part for part in child.cmdline())
        return is_llama and any(file.path.endswith(".gguf") for file in child.memory_maps())
    except psutil.Error:
        return False


def test_a_worker_that_is_killed_leaves_no_child(photos: Path, config: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "annotations.csv"
    with subprocess.Popen(
        arguments(photos, config, output, "--set", "chunk_size=1", "--set", "tests.poison.Poison.seconds=1"),
        cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as worker:  # fmt: skip
        process = psutil.Process(worker.pid)
        wait_until(lambda: any(is_at_work(child) for child in process.children()))
        children = process.children(recursive=True)
        worker.kill()
    _, left = psutil.wait_procs(children, timeout=30)
    assert not left


# --- pictures that go


def test_a_folder_that_vanishes_stops_the_run(photos: Path, config: Path, tmp_path: Path) -> None:
    """As a network drive does. A few pictures may have an error row by then, and are right once it is back."""
    output = tmp_path / "out" / "annotations.csv"
    options = ("--set", "max_consecutive_errors=4", "--set", "chunk_size=2")
    slow = ("--set", "tests.poison.Poison.seconds=1")
    with subprocess.Popen(
        arguments(photos, config, output, *options, *slow), cwd=PROJECT, stderr=subprocess.PIPE, text=True
    ) as worker:
        wait_until(lambda: output.exists() and output.read_bytes().count(b"\n") > 1)
        photos.rename(tmp_path / "away")
        _, stderr = worker.communicate(timeout=200)
    assert worker.returncode == 2
    assert "4 images in a row failed with the same error" in stderr
    assert "FileNotFoundError" in stderr
    assert "max_consecutive_errors" in stderr
    rows = load_annotations(output)
    assert 1 <= len(rows) <= 11
    assert (rows["error"] != "").sum() < 4
    (tmp_path / "away").rename(photos)
    again = run(photos, config, output, "--retry-errors")
    assert again.returncode == 0, again.stderr
    assert_all_right(output, photos)


def test_the_tests_that_the_document_names_exist() -> None:
    text = (PROJECT / "docs" / "reliability.md").read_text()
    named = set(re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", text))
    assert len(named) > 25
    for file, function in named:
        content = (PROJECT / "tests" / file).read_text()
        assert not function or f"def {function}(" in content, f"{file}::{function}"
