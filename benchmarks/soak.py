"""Kills the worker repeatedly, checks its CSV after each kill, and compares the rows with those of an undisturbed run.

    .venv/bin/python -m benchmarks.soak --minutes 30

Most workers are forked from this process, which has imported the libraries already: otherwise start-up would be most of
the time. Every tenth is `python run.py`. Exit status 1 and one sentence where a promise is broken.
"""

import argparse
import csv
import importlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported, as run.py does
os.environ["HF_HUB_OFFLINE"] = "1"

PROJECT = Path(__file__).resolve().parent.parent
KINDS = {  # and how often each, of a hundred
    "SIGKILL": 53,
    "SIGKILL at start-up": 12,
    "SIGTERM": 10,
    "SIGKILL of the llama.cpp child": 13,
    "SIGABRT of the llama.cpp child": 12,
}
OF_DEVICES = {**KINDS, "SIGKILL of a device's child": 60}  # with --devices: it is replaced, and the worker goes on
ENDS_BY_ITSELF_S = 600  # a worker that takes longer hangs
CHILD_GONE_S = 15
ALL_MODELS = 12  # as many as any configuration has, or more
HEADER_BYTES = 500  # more than a header has
FINISHED, INTERRUPTED = (0, 1), 130
LIBRARIES = (
    *("pandas", "gensim.models.fasttext", "open_clip", "sentence_transformers"),
    *("transformers.models.qwen2_vl.modeling_qwen2_vl", "vec_pipeline.executor", "vec_pipeline.config"),
)
KILLED_ERRORS = ("ProcessDied: ", "LlamaDied: ")  # of rows that kills hit twice

Rows = dict[str, dict[str, str]]  # cells by column, by image


class BrokenPromise(Exception):  # noqa: N818 (it says what happened)
    """What was found is not what is promised."""


@dataclass
class Tally:
    """What was done, and what was seen."""

    kills: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    rows_compared: int = 0
    torn_rows: int = 0
    error_rows: Counter[str] = field(default_factory=Counter)


@dataclass
class Soak:
    """Rounds over one folder: each begins without a CSV, ends with all rows, and is killed in between."""

    photos: Path
    out: Path
    config: Path
    chance: random.Random
    expected: Rows
    tally: Tally
    most_kills: int
    deadline_s: float  # of time.monotonic
    devices: str = ""
    starts: int = 0

    @property
    def is_over(self) -> bool:
        return self.tally.kills.total() >= self.most_kills or time.monotonic() > self.deadline_s

    def round(self) -> None:
        self.tally.rounds += 1
        output = self.out / f"round {self.tally.rounds}" / "annotations.csv"
        output.parent.mkdir()
        cached = self.chance.choice(("true", "true", "false"))
        models = self.chance.choice((3, ALL_MODELS, ALL_MODELS))
        options = small_steps(self.config, self.chance.randint(2, 12), models, cached, self.devices)
        known = b""
        while not self.is_over:
            is_finished = self.one_worker(output, options)
            known = self.check(output, known)
            if is_finished:
                break
        self.count_errors(output)
        self.finish(output, options)

    def one_worker(self, output: Path, options: list[str]) -> bool:
        """Start a worker, kill it or what belongs to it at random moments; say whether it came to its end."""
        self.starts += 1
        pid = start([str(self.photos), "--output", str(output), *options], output, is_fresh=self.starts % 10 == 0)
        kinds = OF_DEVICES if self.devices else KINDS
        try:
            while True:
                kind = self.chance.choices(list(kinds), list(kinds.values()))[0]
                if kind == "SIGKILL at start-up":
                    time.sleep(self.chance.uniform(0, 4))
                else:
                    wait_for_work(output, pid, self.chance.choice(("batch", "row")))
                    time.sleep(self.chance.uniform(0, 2))
                if (status := poll(pid)) is not None:
                    return check_status(status, output)
                if "device" in kind:
                    self.tally.kills[kind] += kill_one(device_children(pid), self.chance)
                elif "child" in kind:
                    for child in llama_children(pid):
                        child.send_signal(signal.SIGABRT if kind.startswith("SIGABRT") else signal.SIGKILL)
                        self.tally.kills[kind] += 1
                else:
                    return self.kill(pid, kind, output)
        finally:
            if poll(pid) is None:
                os.kill(pid, signal.SIGKILL)

    def kill(self, pid: int, kind: str, output: Path) -> bool:
        left_alone = children(pid)
        os.kill(pid, signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL)
        status = wait(pid)
        self.tally.kills[kind] += 1
        _, left = psutil.wait_procs(left_alone, timeout=CHILD_GONE_S)
        if left:
            raise BrokenPromise(f"{kind}: process {left[0].pid} was left behind")
        if kind == "SIGTERM" and status not in (INTERRUPTED, -signal.SIGTERM):
            return check_status(status, output)
        return False

    def check(self, output: Path, known: bytes) -> bytes:
        """Compare each whole row with the undisturbed run's; return their bytes, which no later kill may change."""
        content = output.read_bytes() if output.exists() else b""
        rows, torn = split_rows(content)
        whole = b"".join(rows)
        if not whole.startswith(known):
            raise BrokenPromise(f"{output}: rows that were whole before the kill have changed")
        self.tally.torn_rows += bool(torn)
        for path, row in parse(whole).items():
            compare(path, row, self.expected[path])
            self.tally.rows_compared += 1
        return whole

    def count_errors(self, output: Path) -> None:
        rows = parse(b"".join(split_rows(output.read_bytes())[0])) if output.exists() else {}
        for path, row in rows.items():
            if row["error"] != self.expected[path]["error"]:
                self.tally.error_rows[row["error"].split(": ")[1]] += 1

    def finish(self, output: Path, options: list[str]) -> None:
        """An undisturbed `--retry-errors` gives what is missing, and corrects rows of images that two kills hit."""
        run_to_end([str(self.photos), "--output", str(output), "--retry-errors", *options], output)
        rows, torn = split_rows(output.read_bytes())
        found = parse(b"".join(rows))
        if torn or found.keys() != self.expected.keys():
            raise BrokenPromise(f"{output}: {len(found)} images have a row, {len(self.expected)} should")
        for path, row in found.items():
            if row["error"] != self.expected[path]["error"]:
                raise BrokenPromise(f"{output}: {path} still has an error: {row['error']}")
            compare(path, row, self.expected[path])
            self.tally.rows_compared += 1
        before = output.read_bytes()
        run_to_end([str(self.photos), "--output", str(output), *options], output)
        if output.read_bytes() != before:
            raise BrokenPromise(f"{output}: a run with nothing to do has changed it")


def small_steps(
    config: Path, chunk_size: int, model_cache_size: int, result_cache: str = "true", devices: str = ""
) -> list[str]:
    """Options that put many appends and writes of the databases into a second.

    model_cache_size: ALL_MODELS holds all, so that the workers work side by side; with fewer they alternate.
    """
    values = {
        "chunk_size": chunk_size,
        "model_cache_size": model_cache_size,
        "result_cache": result_cache,
        "read_threads": 2,
        "devices": devices,
    }
    sets = [text for key, value in values.items() for text in ("--set", f"{key}={value}")]
    return ["--config", str(config), *sets]


# --- the worker's process


def import_libraries() -> Callable[[Sequence[str]], int]:
    """Import what a run imports, and return its main function."""
    for name in LIBRARIES:
        importlib.import_module(name)
    return importlib.import_module("run").main  # type: ignore[no-any-return]


def start(arguments: list[str], output: Path, *, is_fresh: bool) -> int:
    """Start a worker, its output going to a file beside the CSV's folder; return its process id."""
    main = import_libraries()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        log = os.open(output.parent.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if is_fresh:
            os.execv(sys.executable, [sys.executable, str(PROJECT / "run.py"), *arguments])
        status = main(arguments)
        sys.stdout.flush()
        os._exit(status)
    finally:
        os._exit(99)


def run_to_end(arguments: list[str], output: Path) -> None:
    check_status(wait(start(arguments, output, is_fresh=False)), output)


def check_status(status: int, output: Path) -> bool:
    if status not in FINISHED:
        log = output.parent.with_suffix(".log").read_text(errors="replace")
        raise BrokenPromise(f"the worker ended with status {status}: {log[-1500:]}")
    return True


ENDED: dict[int, int] = {}  # exit status by process id, minus the signal where one ended it


def poll(pid: int) -> int | None:
    """The exit status of a worker, None while it lives."""
    if pid not in ENDED:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            ENDED[pid] = os.waitstatus_to_exitcode(status)
    return ENDED.get(pid)


def wait(pid: int) -> int:
    limit_s = time.monotonic() + ENDS_BY_ITSELF_S
    while (status := poll(pid)) is None:
        if time.monotonic() > limit_s:
            os.kill(pid, signal.SIGKILL)
            raise BrokenPromise(f"a worker did not end within {ENDS_BY_ITSELF_S} s")
        time.sleep(0.02)
    return status


def wait_for_work(output: Path, pid: int, what: str) -> None:
    """Wait until the worker has finished one more batch of a model, or saved one more row, or has ended."""
    file, sign = (output, b"\n") if what == "row" else (output.with_suffix(".log"), b": a batch of ")
    seen_bytes, limit_s = file.stat().st_size if file.exists() else HEADER_BYTES, time.monotonic() + ENDS_BY_ITSELF_S
    while poll(pid) is None:
        if file.exists() and sign in read_from(file, seen_bytes):
            return
        if time.monotonic() > limit_s:
            raise BrokenPromise(f"a worker did nothing for {ENDS_BY_ITSELF_S} s")
        time.sleep(0.02)


def read_from(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read()


def children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def llama_children(pid: int) -> list[psutil.Process]:
    return [child for child in children(pid) if "llama_process" in command_of(child)]


def device_children(pid: int) -> list[psutil.Process]:
    return [child for child in children(pid) if "spawn_main" in command_of(child)]


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return ""


def kill_one(processes: list[psutil.Process], chance: random.Random) -> int:
    """Kill one of them; return how many were killed."""
    if not processes:
        return 0
    try:
        chance.choice(processes).kill()
    except psutil.NoSuchProcess:
        return 0
    return 1


# --- what its CSV holds


def split_rows(content: bytes) -> tuple[list[bytes], bytes]:
    """The whole rows, the header first, and what comes after the last of them. Unlike the worker, line by line."""
    rows, row = [], b""
    for line in content.splitlines(keepends=True) if b"\r" not in content else io.BytesIO(content):
        row += line
        if row.endswith(b"\n") and row.count(b'"') % 2 == 0:
            rows.append(row)
            row = b""
    return rows, row


def parse(content: bytes) -> Rows:
    """Whole rows by image. Raises BrokenPromise where one comes twice or has not as many cells as the header."""
    header, *rows = csv.reader(io.StringIO(content.decode(), newline=""), strict=True) if content else [[]]
    found: Rows = {}
    for row in rows:
        if len(row) != len(header):
            raise BrokenPromise(f"{row[0]}: {len(row)} cells under {len(header)} columns")
        if row[0] in found:
            raise BrokenPromise(f"{row[0]} has two rows")
        found[row[0]] = dict(zip(header, row, strict=True))
    return found


def compare(path: str, row: dict[str, str], expected: dict[str, str]) -> None:
    """Raise BrokenPromise where a row says anything else than the undisturbed run's, but for the time.

    A row that kills hit twice says so in its error, and may lack cells.
    """
    if row.keys() != expected.keys():
        raise BrokenPromise(f"{path}: the header is another")
    was_hit = any(sign in row["error"] for sign in KILLED_ERRORS)
    for name, cell in row.items():
        may_differ = name == "timestamp" or (was_hit and (name in ("error", "flags") or not cell))
        if not may_differ and not is_same(cell, expected[name]):
            raise BrokenPromise(f"{path}: {name} is {cell[:200]!r} and should be {expected[name][:200]!r}")


def is_same(cell: str, expected: str) -> bool:
    """Equal; or numbers that differ in the last bits, which depend on what shared the batch."""
    if cell == expected:
        return True
    try:
        return bool(np.allclose(json.loads(cell), json.loads(expected), atol=1e-4))
    except (ValueError, TypeError):
        return False


# --- the pictures


def make_photos(folder: Path, number: int) -> None:
    """Drawn scenes, some of them twice under two names, and files that are no pictures."""
    from models.demo import draw

    paths = draw.main(folder, number, seed=2, scale=1)
    for path in paths[:: max(2, number // 12)]:
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    content = paths[0].read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    (folder / "empty.jpg").touch()
    (folder / "text.png").write_text("no picture")
    (folder / "noise.jpg").write_bytes(random.Random(0).randbytes(5000))
    (folder / "nowhere.png").symlink_to(folder / "is not there.png")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="begin no kill after so many (default: %(default)s)"
    )
    parser.add_argument("--kills", type=int, default=300, help="end after so many (default: %(default)s)")
    parser.add_argument("--images", type=int, default=240, help="scenes drawn (default: %(default)s)")
    parser.add_argument("--config", type=Path, default=PROJECT / "configs/demo.yaml", help="default: %(default)s")
    parser.add_argument("--devices", default="", metavar="cpu:2", help="run in several processes, and kill those, too")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and kinds of the kills")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        return report(Path(folder), options)


def report(folder: Path, options: argparse.Namespace) -> int:
    """Soak, print the table, and return the exit status."""
    start_s = time.monotonic()
    photos, undisturbed = folder / "photos", folder / "undisturbed" / "annotations.csv"
    undisturbed.parent.mkdir()
    make_photos(photos, options.images)
    run_to_end([str(photos), "--output", str(undisturbed), *small_steps(options.config, 32, ALL_MODELS)], undisturbed)
    expected = parse(undisturbed.read_bytes())
    deadline_s = start_s + 60 * options.minutes
    tally = Tally()
    soak = Soak(
        photos, folder, options.config, random.Random(options.seed), expected, tally, options.kills, deadline_s,
        options.devices,
    )  # fmt: skip
    failure = ""
    try:
        while not soak.is_over:
            soak.round()
            print(f"round {tally.rounds}: {tally.kills.total()} kills so far", file=sys.stderr, flush=True)
    except BrokenPromise as error:
        failure = str(error)
    print(table(tally, len(expected), time.monotonic() - start_s))
    if failure:
        print(f"BROKEN: {failure}", file=sys.stderr)
    return 1 if failure else 0


def table(tally: Tally, images: int, seconds: float) -> str:
    kinds = [(f"{kind}", number) for kind, number in tally.kills.most_common()]
    errors = [(f"rows `{name}` before `--retry-errors`, none after", n) for name, n in tally.error_rows.items()]
    lines = [
        ("images, broken ones and copies among them", images),
        ("kills in all", tally.kills.total()),
        *kinds,
        ("rounds, each from no CSV to every row", tally.rounds),
        ("rows compared with the undisturbed run's", tally.rows_compared),
        ("torn last rows seen after a kill, gone with the next start", tally.torn_rows),
        *errors,
        ("minutes", round(seconds / 60)),
    ]
    return "\n".join(["| soak | number |", "|---|---|", *(f"| {name} | {number:,} |" for name, number in lines)])


if __name__ == "__main__":
    sys.exit(main())
