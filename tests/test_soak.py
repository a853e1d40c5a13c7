"""The soak in a short form, and that its looks at the CSV notice what is wrong."""

import os
import re
import subprocess
import sys

import pytest

from benchmarks.soak import BrokenPromise, compare, parse, split_rows
from tests.conftest import PROJECT

HEADER = ["image_path", "text", "text_vector", "timestamp", "error"]
ROW = dict(zip(HEADER, ["/a.jpg", "A red car.", "[0.5,-0.25]", "2026-11-21T05:00:00", ""], strict=True))
CONTENT = b'image_path,text\n/a.jpg,"one\ntwo"\n/b.jpg,"say ""no"""\n'


@pytest.mark.timeout(600)
def test_a_few_kills_change_nothing_with_every_stage_on() -> None:
    config = ["--config", str(PROJECT / "configs/demo-eyes.yaml")]
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", "--images", "8", "--kills", "4", "--minutes", "6", *config],
        cwd=PROJECT, capture_output=True, text=True, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    numbers = {name: int(number) for name, number in re.findall(r"^\| (.+?) \| ([\d,]+) \|$", run.stdout, re.MULTILINE)}
    assert numbers["kills in all"] >= 2
    assert numbers["rows compared with the undisturbed run's"] >= numbers["images, broken ones and copies among them"]


@pytest.mark.timeout(600)
def test_a_few_kills_of_the_processes_of_devices_change_nothing() -> None:
    """The first of this seed hits such a process, and the worker goes on."""
    few = ["--images", "12", "--kills", "2", "--minutes", "6", "--seed", "31"]
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", "--devices", "cpu:2", *few],
        cwd=PROJECT, capture_output=True, text=True, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert "| SIGKILL of a device's child |" in run.stdout


def test_rows_are_told_from_a_torn_one() -> None:
    rows, torn = split_rows(CONTENT + b'/c.jpg,"three\n')
    assert b"".join(rows) == CONTENT
    assert len(rows) == 3
    assert torn == b'/c.jpg,"three\n'
    assert parse(CONTENT)["/b.jpg"]["text"] == 'say "no"'


@pytest.mark.parametrize("content", [CONTENT + b"/a.jpg,again\n", CONTENT + b"/c.jpg\n", CONTENT + b"/c.jpg,a,b\n"])
def test_a_row_that_comes_twice_or_lacks_cells_is_noticed(content: bytes) -> None:
    with pytest.raises(BrokenPromise):
        parse(content)


@pytest.mark.parametrize(
    "change",
    [
        {"text": "A blue car."},
        {"text": ""},
        {"text_vector": "[0.5,-0.26]"},
        {"text_vector": "[0.5]"},
        {"text_vector": ""},
        {"error": "describe: ValueError: no"},
    ],
)
def test_a_wrong_cell_is_noticed(change: dict[str, str]) -> None:
    with pytest.raises(BrokenPromise):
        compare("/a.jpg", {**ROW, **change}, ROW)


def test_another_time_and_other_last_bits_are_not_wrong() -> None:
    compare("/a.jpg", {**ROW, "timestamp": "2026-11-21T06:00:00", "text_vector": "[0.50000001,-0.25]"}, ROW)


def test_an_image_that_two_kills_hit_may_lack_cells_and_have_no_wrong_ones() -> None:
    hit = {
        **ROW,
        "text": "",
        "error": "describe: ProcessDied: it was in flight when the process died, and again, alone",
    }
    compare("/a.jpg", hit, ROW)
    with pytest.raises(BrokenPromise):
        compare("/a.jpg", {**hit, "text": "A blue car."}, ROW)
