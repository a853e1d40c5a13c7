"""The server under clients that behave and clients that do not, in a short form; and that leftovers are noticed."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.serve import left_over
from tests.conftest import PROJECT

SECONDS = 12  # the server hangs up on slow headers after 10


def test_good_uploads_are_answered_among_bad_ones_and_nothing_is_left() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.serve", "--load", str(SECONDS), "--clients", "8"],
        cwd=PROJECT, capture_output=True, text=True, timeout=560, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    seen = {name: int(number) for name, number in re.findall(r"^(.+?: \w[\w ]*?) +([\d,]+)$", run.stdout, re.MULTILINE)}
    assert {"good: 200", "huge: 413", "slow headers: hung up"} <= set(seen), run.stdout
    late = [int(name.rpartition(" ")[2]) for name in seen if re.match(r"at the end: \d", name)]
    assert late and set(late) <= {200, 429, 503}
    assert "exit status 0, files left: 0" in run.stdout


def test_what_is_left_is_noticed(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("annotations.uploads/ab/1.jpg", "annotations.uploads/new/x", "tmp/y")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with (tmp_path / "annotations.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image_path", "text"], [paths[0], "A red flower."]])
    assert sorted(left_over(tmp_path)) == sorted(paths[1:])
    (tmp_path / "annotations.csv").write_text("image_path,text\n")
    assert sorted(left_over(tmp_path)) == sorted(paths)
