"""The bundled models at work: a finished run over the example pictures, shared by the tests that read its rows."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from vec_pipeline import load_annotations
from vec_pipeline.terminal import SIGNALS

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as run.py does
for name in ("ARGS", "MAKEFLAGS", "MAKEOVERRIDES"):  # of `make test ARGS=...`: tests run make, too
    os.environ.pop(name, None)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # inherited from a shell's background job, and by all workers
    signal.signal(signal.SIGINT, signal.default_int_handler)

PROJECT = Path(__file__).resolve().parent.parent
EXAMPLES = PROJECT / "examples" / "images"
SHARED: dict[Path, list[str]] = {}  # folders of runs that many tests read, and the names of their files

Run = subprocess.CompletedProcess[str]
RunWorker = Callable[..., Run]


# Prints the most memory that a program has had so far, in MB. Its ru_maxrss would be at least that of pytest, which
# started it: Linux keeps the figure through fork and exec.
PRINT_PEAK_MB = """
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024)
"""


def command(*arguments: object) -> list[str]:
    """The command line of a run with the bundled models."""
    return [
        sys.executable,
        str(PROJECT / "run.py"),
        *map(str, arguments),
        "--config",
        str(PROJECT / "configs/demo.yaml"),
    ]


def run_worker(*arguments: object) -> Run:
    """Run `run.py` with the bundled models to its end."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=240, env=environment)


@pytest.fixture(autouse=True)
def what_tests_share_stays() -> Iterator[None]:
    """A handler of signals that a test leaves behind could end the process in another; a file, get in its way."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before
    for folder, names in SHARED.items():
        assert sorted(os.listdir(folder)) == names, "copy the run"


@pytest.fixture(scope="session")
def example_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """One undisturbed run over the example pictures, and its CSV, beside which tests write nothing: see `copied`."""
    output = tmp_path_factory.mktemp("examples") / "annotations.csv"
    run = run_worker(EXAMPLES, "--output", output)
    SHARED[output.parent] = sorted(os.listdir(output.parent))
    return run, output


def copied(csv_path: Path, folder: Path, *, results: bool = False) -> Path:
    """A copy of the CSV of a run and of its settings in a folder; of its result cache and crash journal, too."""
    endings = [".csv", ".settings.yaml", *([".cache.sqlite", ".journal.sqlite"] if results else [])]
    for path in map(csv_path.with_suffix, endings):
        shutil.copy(path, folder)
    return folder / csv_path.name


@pytest.fixture(scope="session")
def example_rows(example_run: tuple[Run, Path]) -> pd.DataFrame:
    """The rows of that run, indexed by file name, each beside the truth of its picture."""
    table = load_annotations(example_run[1])
    table.index = pd.Index([Path(path).name for path in table["image_path"]])
    table["truth"] = [json.loads(Path(path).with_suffix(".json").read_text()) for path in table["image_path"]]
    return table
