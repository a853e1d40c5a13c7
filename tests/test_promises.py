"""What the worker promises, on the bundled models: rows that are right, and a rerun that continues where it stopped."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.conftest import EXAMPLES, PROJECT, Run, command, copied, run_worker
from vec_pipeline import load_annotations
from vec_pipeline.__main__ import main
from vec_pipeline.record import COLUMNS

VECTOR_COLUMNS = [name for name, kind in COLUMNS.items() if kind == "vector"]
TEXT_COLUMNS = [name for name in COLUMNS if name not in (*VECTOR_COLUMNS, "timestamp")]


def assert_same_rows(table: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Equal texts; vectors equal but for the last bits, which depend on what shared the batch."""
    table, expected = (t.sort_values("image_path", ignore_index=True) for t in (table, expected))
    pd.testing.assert_frame_equal(table[TEXT_COLUMNS], expected[TEXT_COLUMNS])
    for name in VECTOR_COLUMNS:
        np.testing.assert_allclose(np.stack(table[name]), np.stack(expected[name]), atol=1e-5)


def share(rows: pd.Series) -> float:
    return float(np.mean(list(rows)))


def test_every_example_has_a_row_without_error(example_run: tuple[Run, Path], example_rows: pd.DataFrame) -> None:
    run, _ = example_run
    assert run.returncode == 0, run.stderr
    assert len(example_rows) == sum(path.suffix != ".json" for path in EXAMPLES.iterdir())
    assert list(example_rows.columns[: len(COLUMNS)]) == list(COLUMNS)
    assert set(example_rows["error"]) == {""}


def test_descriptions_name_what_the_pictures_show(example_rows: pd.DataFrame) -> None:
    """The pictures are of combinations the models were never trained on."""
    for word in ("kind", "colour"):
        seen = [all(thing[word] in row.text for thing in row.truth["things"]) for row in example_rows.itertuples()]
        assert np.mean(seen) >= 0.95, word
    assert share(example_rows.apply(lambda row: row.truth["background"] in row.text.lower(), axis=1)) >= 0.95


def test_text_on_the_picture_is_read_and_quoted(example_rows: pd.DataFrame) -> None:
    with_text = example_rows[[bool(truth["word"]) for truth in example_rows["truth"]]]
    without = example_rows[[not truth["word"] for truth in example_rows["truth"]]]
    assert share(with_text.apply(lambda row: row.image_text == row.truth["word"], axis=1)) >= 0.85
    assert share(without["image_text"] == "") >= 0.95


def test_columns_agree_with_the_description(example_rows: pd.DataFrame) -> None:
    """What the language model makes of a text that is right is right: category, keywords, quoted text."""
    right = example_rows[[row.text == row.truth["caption"] for row in example_rows.itertuples()]]
    assert len(right) >= 0.8 * len(example_rows)
    agree = [
        (row.categories, row.keywords, row.image_text, row.description)
        == (row.truth["category"], ", ".join(row.truth["keywords"]), row.truth["word"], row.truth["description"])
        for row in right.itertuples()
    ]
    assert np.mean(agree) >= 0.95


def test_vectors_are_float32_and_normalised(example_rows: pd.DataFrame) -> None:
    for name in VECTOR_COLUMNS:
        vectors = np.stack(example_rows[name])
        assert vectors.dtype == np.float32
        assert np.isfinite(vectors).all()
        assert len(np.unique(vectors.round(6), axis=0)) > len(vectors) // 2, f"{name} hardly differs between pictures"
    for name in ("text_vector", "image_vector"):
        np.testing.assert_allclose(np.linalg.norm(np.stack(example_rows[name]), axis=1), 1, atol=1e-3)


def test_a_second_run_finds_nothing_left(example_run: tuple[Run, Path], tmp_path: Path) -> None:
    output = copied(example_run[1], tmp_path)
    before = output.read_bytes()
    again = run_worker(EXAMPLES, "--output", output)
    assert again.returncode == 0
    assert re.search(r"\b0 to do", again.stdout)
    assert output.read_bytes() == before


def test_a_torn_row_is_dropped_and_done_again(example_run: tuple[Run, Path], tmp_path: Path) -> None:
    expected = load_annotations(example_run[1])
    output = copied(example_run[1], tmp_path)
    os.truncate(output, output.stat().st_size - 300)
    assert run_worker(EXAMPLES, "--output", output).returncode == 0
    assert_same_rows(load_annotations(output), expected)


@pytest.mark.timeout(600)
def test_killed_at_arbitrary_moments_it_ends_with_the_same_rows(example_run: tuple[Run, Path], tmp_path: Path) -> None:
    """SIGKILL again and again; small chunks, so that kills fall between appends too, and images are hit twice."""
    expected = load_annotations(example_run[1])
    output = tmp_path / "annotations.csv"
    chance = random.Random(0)
    small = ("--set", "chunk_size=5")
    kills = 0
    for batches in (9, 1, 6, 3, 2):
        with subprocess.Popen(
            command(EXAMPLES, "--output", output, *small), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            wait_for_work(output.with_name("annotations.log"), process, batches=batches)
            time.sleep(chance.uniform(0, 0.1))
            process.kill()
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 2
    last = run_worker(EXAMPLES, "--output", output, *small, "--retry-errors")  # of images that two kills hit
    assert last.returncode == 0, last.stderr
    assert_same_rows(load_annotations(output), expected)


def wait_for_work(log: Path, process: "subprocess.Popen[bytes]", *, batches: int) -> None:
    """Wait until models have finished so many batches more, or the run has ended."""
    before = log.read_bytes().count(b": a batch of ") if log.exists() else 0
    while process.poll() is None and not (
        log.exists() and log.read_bytes().count(b": a batch of ") >= before + batches
    ):
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_what_is_finished_and_exits_130(number: signal.Signals, tmp_path: Path) -> None:
    output = tmp_path / "annotations.csv"
    with subprocess.Popen(
        command(EXAMPLES, "--output", output, "--set", "chunk_size=4"), stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        while process.poll() is None and not (output.exists() and output.read_bytes().count(b"\n") > 4):
            time.sleep(0.02)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "run the same command again" in stderr
    rows = load_annotations(output)
    assert len(rows) >= 4
    assert set(rows["error"]) == {""}


def test_a_second_interrupt_ends_the_process_at_once() -> None:
    """The first waits for the write it falls into, which here never ends."""
    program = (
        "import time\nfrom vec_pipeline.terminal import Interrupt, handled\ninterrupt = Interrupt()\n"
        "with handled(interrupt.on_signal), interrupt.shield():\n    print('writing', flush=True)\n    time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=PROJECT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130


def test_a_program_that_calls_the_worker_keeps_its_own_signals(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        own = signal.getsignal(signal.SIGINT)
        assert main(["run", str(tmp_path), "--config", str(tmp_path / "missing.yaml")]) == 2
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


def test_limit_and_dry_run(tmp_path: Path) -> None:
    output = tmp_path / "annotations.csv"
    dry = run_worker(EXAMPLES, "--output", output, "--dry-run")
    assert dry.returncode == 0
    assert "models/demo/vision_language" in dry.stdout
    assert not output.exists()
    assert run_worker(EXAMPLES, "--output", output, "--limit", 3).returncode == 0
    assert len(load_annotations(output)) == 3


def test_without_a_result_cache_the_rows_are_the_same(example_run: tuple[Run, Path], tmp_path: Path) -> None:
    """The crash journal stays: an image that kills the process must be known at the next start."""
    output = tmp_path / "annotations.csv"
    assert run_worker(EXAMPLES, "--output", output, "--set", "result_cache=false").returncode == 0
    assert_same_rows(load_annotations(output), load_annotations(example_run[1]))
    assert [path.name for path in tmp_path.glob("*.sqlite*")] == ["annotations.journal.sqlite"]


def test_several_sources_are_one_run(example_run: tuple[Run, Path], tmp_path: Path) -> None:
    """Files that the shell has expanded, and a folder that holds them too."""
    output = tmp_path / "annotations.csv"
    files = sorted(EXAMPLES.glob("purple-*.*g"))
    assert len(files) > 2
    first = run_worker(*files, "--output", output)
    assert first.returncode == 0, first.stderr
    assert list(load_annotations(output)["image_path"]) == list(map(str, files))
    assert run_worker(*files, EXAMPLES, "--output", output).returncode == 0
    assert_same_rows(load_annotations(output), load_annotations(example_run[1]))


def test_the_log_tells_models_batches_and_times(example_run: tuple[Run, Path]) -> None:
    log = (example_run[1].parent / "annotations.log").read_text()
    for stage in ("describe", "embed_text", "embed_words", "embed_image", "structure"):
        assert re.search(rf"loaded {stage} in [\d.]+ s", log), stage
        assert re.search(rf"{stage}: a batch of \d+", log), stage
    assert "images/s" in example_run[0].stdout
