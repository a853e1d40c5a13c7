"""What the worker costs beside its models: the loop with its databases and the CSV, opening an image, the start.

    .venv/bin/python benchmarks/overhead.py --images 100000

The loop runs stages that do nothing but give a text and 1,196 floats an image. Prints a table of targets and
measurements.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil
from PIL import Image

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks.machine import machine  # noqa: E402
from vec_pipeline import pipeline  # noqa: E402
from vec_pipeline.crash_journal import CrashJournal  # noqa: E402
from vec_pipeline.executor import Executor  # noqa: E402
from vec_pipeline.memory import ModelCache  # noqa: E402
from vec_pipeline.record import COLUMNS, Record, Stage, Values, Worker  # noqa: E402
from vec_pipeline.result_cache import ResultCache  # noqa: E402
from vec_pipeline.settings import fingerprint  # noqa: E402
from vec_pipeline.sinks.csv_file import CsvFile  # noqa: E402
from vec_pipeline.sources.folder import LocalFile  # noqa: E402
from vec_pipeline.stages.open_image import OpenImage  # noqa: E402

VECTORS = {"text_vector": 384, "word2vec_vector": 300, "image_vector": 512}  # 1,196 floats
REPEATS = 5


@dataclass(frozen=True, kw_only=True)
class Read(Stage):
    """Gives an image without reading one."""

    reads: ClassVar[tuple[str, ...]] = ("content",)
    intermediates: ClassVar[Mapping[str, str]] = {"image": "text"}
    worker: ClassVar[Worker] = "reader"

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        return [{"image": row["content"].name} for row in rows]


@dataclass(frozen=True, kw_only=True)
class Write(Stage):
    """Gives its columns: random vectors of the right size, and a text for every other column."""

    reads: ClassVar[tuple[str, ...]] = ("image",)
    batch_size: int = 64

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        random = np.random.default_rng(0)
        return [{name: self.value(name, random) for name in self.writes} for _ in rows]

    def value(self, name: str, random: np.random.Generator) -> Any:
        size = VECTORS.get(name)
        return random.standard_normal(size, np.float32) if size else "A red car on a road, and a sign. " * 6


def writer(*columns: str) -> Stage:
    writes = {name: COLUMNS[name] for name in columns}
    cls = type(columns[0], (Write,), {"writes": writes, "__module__": f"benchmark.{columns[0]}"})
    return cls()  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Nothing:
    """Content that only has a name."""

    name: str
    link: str = ""

    def read(self) -> bytes:
        return b""

    def identity(self) -> str:
        return self.name


class Numbers:
    """A source of so many images."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __iter__(self) -> Iterator[Record]:
        for number in range(self.number):
            path = f"/photos/{number:08}.jpg"
            yield Record(path, {"content": Nothing(path)})


class WatchedSink(CsvFile):
    """Notes the resident memory at every tenth of the way."""

    total = 1
    resident_mb: ClassVar[list[int]] = []

    def write(self, records: Sequence[Record]) -> None:
        super().write(records)
        if self.rows * 10 // self.total > len(self.resident_mb):
            self.resident_mb.append(psutil.Process().memory_info().rss >> 20)


def run_loop(images: int, folder: Path, *, with_databases: bool) -> tuple[float, WatchedSink, list[Path]]:
    """Return seconds, the sink, and the paths of the result cache and the crash journal."""
    made_by_structure = tuple(c for c in COLUMNS if c not in {"image_path", "text", "timestamp", "error", *VECTORS})
    stages = [Read(), writer("text"), *map(writer, VECTORS), writer(*made_by_structure)]
    paths = [folder / "annotations.cache.sqlite", folder / "annotations.journal.sqlite"]
    cache_path, journal_path = paths if with_databases else (None, None)
    WatchedSink.total, WatchedSink.resident_mb[:] = images, []
    sink = WatchedSink(folder / "annotations.csv")
    with (
        closing(ResultCache(cache_path, fingerprint)) as results,
        closing(CrashJournal(journal_path)) as journal,
        closing(sink),
    ):
        executor = Executor(stages, ModelCache(stages, 9, 0.0), results, journal, threads=2)

        def save(records: Sequence[Record]) -> None:  # as run does
            sink.write(records)
            results.note_pictures(records)
            results.confirm_pictures()

        start_s = time.perf_counter()
        pipeline.run(Numbers(images), executor, sink.keys(), save, lambda: 256, in_groups=journal.suspects_last)
        seconds = time.perf_counter() - start_s
    return seconds, sink, paths


def loop_rows(images: int) -> list[tuple[str, str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        seconds, sink, paths = run_loop(images, Path(folder), with_databases=True)
        resident_mb = [sink.resident_mb[0], sink.resident_mb[-1]]
        bytes_each = sum(path.stat().st_size for path in paths) / images
    with tempfile.TemporaryDirectory() as folder:
        without_s, _, _ = run_loop(images, Path(folder), with_databases=False)
    databases_us = (seconds - without_s) / images * 1e6
    return [
        (
            f"loop, databases and CSV, {images:,} images of 1,196 floats",
            "2,000 images/s",
            f"{images / seconds:,.0f} images/s",
        ),
        ("the same without the result cache and the crash journal", "", f"{images / without_s:,.0f} images/s"),
        ("result cache and crash journal, per image", "", f"{databases_us:,.0f} us, {bytes_each:,.0f} bytes"),
        ("resident memory at a tenth and at the end", "flat", f"{resident_mb[0]} and {resident_mb[1]} MB"),
    ]


def cpu_ms(task: Callable[[], object]) -> float:
    start_s = time.process_time()
    task()
    return 1e3 * (time.process_time() - start_s)


def picture(width_px: int, height_px: int) -> bytes:
    """A JPEG with as much detail as a photograph has."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (height_px // 8, width_px // 8, 3), np.uint8))
    file = BytesIO()
    coarse.resize((width_px, height_px), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def image_rows() -> list[tuple[str, str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        return [
            image_row(Path(folder) / "image.jpg", *case)
            for case in (
                ("12-megapixel JPEG", (4000, 3000), "6 ms"),
                ("640 x 480 JPEG", (640, 480), "2 ms"),
                ("384 x 288 JPEG", (384, 288), "2 ms"),
            )
        ]


def image_row(path: Path, name: str, size_px: tuple[int, int], target: str) -> tuple[str, str, str]:
    """What the stage takes for a file, beyond reading and decoding it."""
    path.write_bytes(picture(*size_px))

    def decode() -> None:
        image = Image.open(BytesIO(path.read_bytes()))
        image.draft(None, (2 * 384, 2 * 288))  # as open_image does
        image.load()

    stage, rows = OpenImage(max_size_px=384), [{"content": LocalFile(str(path))}]
    pairs = [(cpu_ms(decode), cpu_ms(lambda: stage.run(None, rows, 1))) for _ in range(REPEATS)]
    decoding_ms = statistics.median(decoding for decoding, _ in pairs)
    beyond_ms = statistics.median(whole - decoding for decoding, whole in pairs)
    return f"{name}: beyond its decoding ({decoding_ms:.1f} ms)", target, f"{beyond_ms:.1f} ms"


def start_rows() -> list[tuple[str, str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        image, config = Path(folder) / "image.jpg", Path(folder) / "config.yaml"
        image.write_bytes(picture(640, 480))
        config.write_text("stages: [open_image]")

        def annotate(run: int) -> list[str]:
            return [str(image), "--config", str(config), "--output", str(Path(folder) / str(run) / "annotations.csv")]

        return [
            ("run.py --help", "0.3 s", f"{median_start_s(lambda run: ['--help']):.2f} s"),
            ("run.py on one image without models", "3 s", f"{median_start_s(annotate):.2f} s"),
        ]


def median_start_s(arguments: Callable[[int], list[str]]) -> float:
    times = []
    for run in range(REPEATS):
        start_s = time.perf_counter()
        subprocess.run([sys.executable, str(PROJECT / "run.py"), *arguments(run)], check=True, capture_output=True)
        times.append(time.perf_counter() - start_s)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    options = parser.parse_args()
    print("| what | target | measured |\n|---|---|---|")
    for row in (*loop_rows(options.images), *image_rows(), *start_rows()):
        print("| " + " | ".join(row) + " |", flush=True)
    print(f"\n{machine('pillow', 'numpy')}")  # last, as it imports torch


if __name__ == "__main__":
    main()
