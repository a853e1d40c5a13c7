"""Runs `vec-pipeline run` in a child process, and measures its seconds and the most memory that it takes."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import psutil

from vec_pipeline.device import GB
from vec_pipeline.record import beside

INTERVAL_S = 0.5  # between two looks at the memory
SMI_TIMEOUT_S = 10
LOG_LINE = re.compile(r"^(\d{4}-\S+ [\d:]+),(\d{3}) [A-Z]+ \S+: (run: )?(?:loaded \S+ in ([\d.]+) s)?", re.MULTILINE)
FAILURE = re.compile(r"(?:vec-pipeline: |FAIL  )(.*)")  # of `run`, and of `run --dry-run`
# On Linux the worker stops, as after Ctrl-C, when this process ends, however it does: it would go on unmeasured.
PROGRAM = """
import ctypes, runpy, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
runpy.run_module("vec_pipeline", run_name="__main__")
"""


@dataclass
class Cost:
    """What the runs that made a CSV took. It is kept in a file beside the CSV, so that a resumed run adds to it.

    first_row, log_start: the rows and the bytes of the log that were there before.
    seconds: of each process, from its start to its end.
    peak_gpu_gb: None where there is no GPU of NVIDIA's.
    """

    first_row: int = 0
    log_start: int = 0
    seconds: float = 0.0
    peak_host_gb: float = 0.0
    peak_gpu_gb: float | None = None


def read_cost(csv: Path) -> Cost | None:
    """None where there is no such file, or a damaged one."""
    try:
        return Cost(**json.loads(beside(csv, "cost.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_cost(csv: Path, cost: Cost) -> None:
    path = beside(csv, "cost.json")
    new = path.with_suffix(".new")
    new.write_text(json.dumps(asdict(cost)), encoding="utf-8")
    new.replace(path)


class Meter:
    """Adds what a process takes to the cost of a CSV, twice a second, so that it is known however the process ends.

    A process counts from the moment on that it logs: one that finds nothing to do does not.

    rows: how many the CSV has now.
    """

    def __init__(self, csv: Path, rows: int) -> None:
        self._csv, self._log = csv, beside(csv, "log")
        self._log_bytes = size_bytes(self._log)
        self._cost = read_cost(csv) or Cost(first_row=rows, log_start=self._log_bytes)
        self._before_s = self._cost.seconds
        self._gpus_before = gpus_used_gb()
        self._start_s = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=lambda: None)

    def watch(self, pid: int) -> None:
        self._thread = threading.Thread(target=self._watch, args=(pid,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopped.set()
        if self._thread.ident:
            self._thread.join()
        self._note()

    def _watch(self, pid: int) -> None:
        while not self._stopped.wait(INTERVAL_S):
            self._cost.peak_host_gb = max(self._cost.peak_host_gb, tree_gb(pid))
            if self._gpus_before:
                rises = [now - before for now, before in zip(gpus_used_gb(), self._gpus_before, strict=False)]
                self._cost.peak_gpu_gb = max([self._cost.peak_gpu_gb or 0.0, *rises])
            with suppress(OSError):  # the worker tells of a full disk
                self._note()

    def _note(self) -> None:
        if size_bytes(self._log) != self._log_bytes:
            self._cost.seconds = self._before_s + time.monotonic() - self._start_s
            write_cost(self._csv, self._cost)


def run_worker(arguments: Sequence[str], name: str, meter: Meter | None = None) -> tuple[int, str]:
    """Run `python -m vec_pipeline` to its end; return its exit status, and the sentence of what has failed.

    name: what its lines are printed after; without one, they are not printed.

    Raises KeyboardInterrupt, once the worker has saved what it has finished.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="backslashreplace",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folder or os.getcwd() for folder in sys.path)},
        start_new_session=True,  # Ctrl-C in a terminal goes to the whole process group: this process passes it on
    )
    if meter:
        meter.watch(process.pid)
    try:
        failure = follow(process, name)
    except KeyboardInterrupt:
        process.terminate()
        follow(process, name)
        raise
    return process.returncode, failure


def follow(process: "subprocess.Popen[str]", name: str) -> str:
    """Print a worker's lines until it ends; return the first that says what has failed, and do not print those."""
    failure = ""
    assert process.stdout
    for line in process.stdout:
        if found := FAILURE.fullmatch(line.rstrip("\n")):
            failure = failure or found[1]
        elif name:
            print(f"{name}: {line}", end="", flush=True)
    process.wait()
    return failure


def tree_gb(pid: int) -> float:
    """Memory of a process and its descendants: what they share counts for each of them."""
    total_bytes = 0
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.Error):
                total_bytes += process.memory_info().rss
    return total_bytes / GB


def gpus_used_gb() -> list[float]:
    """Memory in use on each GPU of NVIDIA's, by whatever process; empty where there is none, or that is not known."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    with suppress(OSError, subprocess.SubprocessError, ValueError):
        answer = subprocess.run(command, capture_output=True, text=True, timeout=SMI_TIMEOUT_S, check=True)
        return [float(line) * 2**20 / GB for line in answer.stdout.splitlines()]
    return []


def work_seconds(log: Path, start: int) -> float | None:
    """Seconds of the runs that a log tells of from a byte on, without those in which a model was loaded and nothing
    else was reported; None where it tells of none.
    """
    try:
        text = log.read_bytes()[start:].decode("utf-8", "replace")
    except OSError:
        return None
    total_s, last_s = 0.0, None
    for moment, milliseconds, is_first, load_s in LOG_LINE.findall(text):
        now_s = datetime.fromisoformat(f"{moment}.{milliseconds}").timestamp()
        if last_s is not None and not is_first:
            total_s += max(0.0, now_s - float(load_s or 0) - last_s)
        if last_s is not None or is_first:
            last_s = now_s
    return total_s or None


def size_bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
