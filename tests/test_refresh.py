"""--refresh: rows made with other settings are updated, and only what has changed is run."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.conftest import EXAMPLES, Run, command, copied, run_worker
from tests.test_promises import assert_same_rows
from vec_pipeline import load_annotations
from vec_pipeline.record import COLUMNS
from vec_pipeline.settings import recorded_settings, settings_path

OTHER_SETTINGS = ("--set", "categories=[animal, vehicle, other]")


@pytest.fixture
def finished(example_run: tuple[Run, Path], tmp_path: Path) -> Path:
    """A copy of a finished run's CSV, settings, result cache and crash journal."""
    return copied(example_run[1], tmp_path, results=True)


def refresh(output: Path, *arguments: object) -> Run:
    return run_worker(EXAMPLES, "--output", output, "--refresh", *arguments)


def test_a_changed_structure_runs_structure_alone(finished: Path) -> None:
    before = load_annotations(finished)
    inode = finished.stat().st_ino
    refused = run_worker(EXAMPLES, "--output", finished, *OTHER_SETTINGS)
    assert refused.returncode == 2
    assert "--refresh" in refused.stderr
    run = refresh(finished, *OTHER_SETTINGS)
    assert run.returncode == 0, run.stderr
    after = load_annotations(finished)
    assert set(after["categories"]) <= {"animal", "vehicle", "other"}
    assert set(before["categories"]) - set(after["categories"])
    assert list(after["image_path"]) == list(before["image_path"])
    assert list(after["text"]) == list(before["text"])
    assert finished.stat().st_ino != inode, "the file is replaced atomically"
    loaded = re.findall(r"loaded (\w+) in", (finished.parent / "annotations.log").read_text())
    assert loaded == ["structure"]
    again = refresh(finished, *OTHER_SETTINGS)
    assert "every row was made with these settings and pictures: nothing to refresh" in again.stdout
    assert run_worker(EXAMPLES, "--output", finished, *OTHER_SETTINGS).returncode == 0


def test_a_changed_describer_runs_what_reads_its_texts(finished: Path, tmp_path: Path) -> None:
    """The rows are those of a run from scratch: none is made of an old text and of a new one."""
    cut = ("--set", "describe.max_new_tokens=9")
    scratch = tmp_path / "scratch" / "annotations.csv"
    assert run_worker(EXAMPLES, "--output", scratch, *cut).returncode == 0
    run = refresh(finished, *cut)
    assert run.returncode == 0, run.stderr
    assert_same_rows(load_annotations(finished), load_annotations(scratch))
    assert list(load_annotations(finished)["flags"]) == list(load_annotations(scratch)["flags"])


def test_rows_that_would_say_the_same_are_left_as_they_are(finished: Path) -> None:
    """Animals and vehicles keep their category, and so their row with its timestamp."""
    before = finished.read_bytes().splitlines(keepends=True)
    time.sleep(1)  # new timestamps would be others
    run = refresh(finished, *OTHER_SETTINGS)
    after = finished.read_bytes().splitlines(keepends=True)
    changed = sum(old != new for old, new in zip(before, after, strict=True))
    assert f"{changed} rows changed, {len(before) - 1 - changed} unchanged" in run.stdout
    assert 0 < changed < len(before) - 1


def test_a_killed_refresh_leaves_the_rows_as_they_were(finished: Path) -> None:
    before = finished.read_bytes()
    settings = finished.with_suffix(".settings.yaml").read_bytes()
    log = finished.parent / "annotations.log"
    arguments = ("--output", finished, "--refresh", *OTHER_SETTINGS, "--set", "chunk_size=5")
    with subprocess.Popen(command(EXAMPLES, *arguments), stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not (log.exists() and "structure: a batch" in log.read_text()):
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert finished.read_bytes() == before
    assert finished.with_suffix(".settings.yaml").read_bytes() == settings
    assert refresh(finished, *OTHER_SETTINGS).returncode == 0
    assert set(load_annotations(finished)["categories"]) <= {"animal", "vehicle", "other"}


def test_a_renamed_folder_costs_no_model_call(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES, tmp_path / "renamed")
    run = run_worker(tmp_path / "renamed", "--output", finished)
    assert run.returncode == 0, run.stderr
    table = load_annotations(finished)
    half = len(table) // 2
    assert [*table["text"][:half]] == [*table["text"][half:]]
    assert all(map(np.array_equal, table["image_vector"][:half], table["image_vector"][half:]))
    assert "loaded" not in (finished.parent / "annotations.log").read_text()


def test_a_csv_of_the_twelve_columns_alone_is_resumed_and_refreshed(finished: Path) -> None:
    table = load_annotations(finished)
    old = finished.read_text().split("\n", 1)[0]
    assert old.split(",")[:12] == list(COLUMNS)
    assert len(old.split(",")) > 12
    keep_columns(finished, 12)
    os.truncate(finished, finished.stat().st_size - 300)  # a row to do
    resuming = run_worker(EXAMPLES, "--output", finished)
    assert resuming.returncode == 0, resuming.stderr
    missing = "has no column text_confidence, clip_score, flags: run with --refresh to add it"
    assert missing in resuming.stdout
    resumed = load_annotations(finished)
    assert list(resumed.columns) == list(COLUMNS)
    assert list(resumed["text"]) == list(table["text"])
    assert refresh(finished).returncode == 0
    refreshed = load_annotations(finished)
    assert list(refreshed.columns) == list(table.columns)
    assert list(refreshed["flags"]) == list(table["flags"])


def keep_columns(path: Path, number: int) -> None:
    """Rewrite a CSV, and its settings, as a version of the worker would have made them that knew no others."""
    import csv

    with path.open(newline="") as file:
        rows = [row[:number] for row in csv.reader(file)]
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    stages = recorded_settings(path).stages
    del stages["flag"]
    settings_path(path).write_text(yaml.safe_dump(stages))
