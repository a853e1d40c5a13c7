"""What long lists cost: memory over a million entries, and the time until the first row of ten million.

    .venv/bin/python benchmarks/lists.py

Runs `run.py` with a stage that does nothing. The entries of the first list are paths of one small picture under as many
names; those of the second are URLs of a local server (`store: none`). The time until the first row is that from the
start of the process, alternately for a list of ten URLs and a long one.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import psutil

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks.downloads import server  # noqa: E402
from vec_pipeline.record import Stage, Values, Worker  # noqa: E402

LINKS = 1000  # of one file, and files of one folder: file systems limit both
POINTS = 10
PICTURE_BYTES = 10_000
CONFIG = "result_cache: false\nchunk_size: 256\nstore: none\nstages: [{use: benchmarks.lists.Nothing}]\n"


@dataclass(frozen=True, kw_only=True)
class Nothing(Stage):
    """Takes a picture, and writes one word."""

    reads: ClassVar[tuple[str, ...]] = ("content",)
    writes: ClassVar[Mapping[str, str]] = {"text": "text"}
    worker: ClassVar[Worker] = "reader"
    batch_size: int = 256

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        return [{"text": "nothing"} for _ in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paths", type=int, default=1_000_000)
    parser.add_argument("--urls", type=int, default=200_000)
    parser.add_argument("--long", type=int, default=10_000_000, help="entries of the long list")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, server(PICTURE_BYTES) as address:
        folder = Path(name)
        lines = [
            memory_line("paths", write(folder / "paths.txt", links(folder / "pictures", options.paths)), options.paths),
            memory_line("URLs", write(folder / "urls.txt", urls(address, options.urls)), options.urls),
        ]
        lists = [write(folder / f"{number}.txt", urls(address, number)) for number in (10, options.long)]
        seconds = [[first_row_s(path) for path in lists] for _ in range(options.rounds)]
    print(f"| entries | entries/s | resident MB at each {100 // POINTS} % |\n|---|---|---|")
    print(*lines, sep="\n")
    short_s, long_s = map(statistics.median, zip(*seconds, strict=True))
    print(f"\nfirst row of a list of 10 after {short_s:.2f} s, of {options.long:,} after {long_s:.2f} s")
    print(f"medians of {options.rounds}; load {os.getloadavg()[0]:.1f}")


def links(folder: Path, number: int) -> Iterator[str]:
    """Paths of one small picture under so many names."""
    for first in range(0, number, LINKS):
        inside = folder / f"{first:08}"
        inside.mkdir(parents=True)
        original = inside / "0.png"
        original.write_bytes(b"\x89PNG\r\n\x1a\n")
        for each in range(1, min(LINKS, number - first)):
            os.link(original, inside / f"{each}.png")
        yield from (f"{inside}/{each}.png" for each in range(min(LINKS, number - first)))


def urls(address: str, number: int) -> Iterator[str]:
    return (f"{address}/{each:08}.jpg" for each in range(number))


def write(path: Path, lines: Iterator[str]) -> Path:
    with path.open("w") as file:
        file.writelines(f"{line}\n" for line in lines)
    return path


def memory_line(name: str, path: Path, entries: int) -> str:
    """A row of the table."""
    resident_mb: list[int] = []
    start_s = time.perf_counter()
    with running(path) as (process, output):
        rows, seen_bytes = -1, 0  # without the header
        while process.poll() is None:
            if output.exists():
                with output.open("rb") as file:
                    file.seek(seen_bytes)
                    new = file.read()
                rows, seen_bytes = rows + new.count(b"\n"), seen_bytes + len(new)
            if rows * POINTS // entries > len(resident_mb):
                resident_mb.append(psutil.Process(process.pid).memory_info().rss >> 20)
            time.sleep(0.02)
    seconds = time.perf_counter() - start_s
    assert process.returncode == 0, output.with_suffix(".log").read_text()
    return f"| {entries:,} {name} | {entries / seconds:,.0f} | {', '.join(map(str, resident_mb))} |"


def first_row_s(path: Path) -> float:
    """Seconds from the start of the process to its first row."""
    start_s = time.perf_counter()
    with running(path) as (process, output):
        while not (output.exists() and output.read_bytes().count(b"\n") > 1):
            assert process.poll() is None, "the run has ended without a row"
            time.sleep(0.005)
        return time.perf_counter() - start_s


@contextmanager
def running(path: Path) -> "Iterator[tuple[subprocess.Popen[bytes], Path]]":
    """A run over a list, killed at the end of the block if it still goes on; and its CSV."""
    with tempfile.TemporaryDirectory() as name:
        config, output = Path(name) / "lists.yaml", Path(name) / "annotations.csv"
        config.write_text(CONFIG)
        command: Sequence[str | Path] = [
            *(sys.executable, PROJECT / "run.py", path),
            *("--config", config, "--output", output),
        ]
        environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
            try:
                yield process, output
            finally:
                process.kill()


if __name__ == "__main__":
    main()
