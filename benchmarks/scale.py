"""Several processes against one on this machine's CPU, and whether one parent keeps eight busy.

    .venv/bin/python -m benchmarks.scale

The first table runs the bundled models: one process with one thread, then two of them. The second has stages that
sleep, so that eight devices of 12 images/s each can be had on two cores: reading, decoding, the result cache and the
CSV are real.
"""

import argparse
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vec_pipeline import pipeline
from vec_pipeline.child import Work
from vec_pipeline.children import Children
from vec_pipeline.crash_journal import CrashJournal
from vec_pipeline.record import Record, Stage, Values, Worker
from vec_pipeline.result_cache import ResultCache
from vec_pipeline.settings import fingerprint
from vec_pipeline.sinks.csv_file import CsvFile
from vec_pipeline.sources.folder import Folder
from vec_pipeline.stages.open_image import OpenImage

PROJECT = Path(__file__).resolve().parent.parent
IMAGES_PER_S = 12.0  # of one device
VECTOR = 768


@dataclass(frozen=True, kw_only=True)
class Sleep(Stage):
    """A stage that takes its time without a core, and returns as much as a real one."""

    reads: ClassVar[tuple[str, ...]] = ("image",)
    writes: ClassVar[Mapping[str, str]] = {"text": "text", "image_vector": "vector"}

    name: str = field(default="describe", compare=False)
    share: float = 1.0
    batch_size: int = 32

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        time.sleep(self.share * len(rows) / IMAGES_PER_S)
        vector = np.random.default_rng(0).normal(size=VECTOR).astype(np.float32)
        return [{"text": "A long description. " * 20, "image_vector": vector} for _ in rows]


@dataclass(frozen=True, kw_only=True)
class SleepInChild(Sleep):
    """The same as a stage of the process of llama.cpp: at work at the same time as the others."""

    worker: ClassVar[Worker] = "child"


def sleeping_stages() -> tuple[Stage, ...]:
    """One in the process of the device and one beside it; the slower one is what keeps the device busy."""
    of_structure = {"text": "description", "image_vector": "text_vector"}
    return OpenImage(), Sleep(share=0.5), SleepInChild(name="structure", write=of_structure)


def simulate(photos: Path, folder: Path, devices: int, chunk_size: int) -> tuple[float, float]:
    """Images/s of devices that sleep, and the share of their time in which they were busy; starting is left out."""
    with ExitStack() as stack:
        results = stack.enter_context(closing(ResultCache(folder / "cache.sqlite", fingerprint)))
        journal = stack.enter_context(closing(CrashJournal(folder / "journal.sqlite")))
        sink = stack.enter_context(closing(CsvFile(folder / "annotations.csv")))
        quiet = partial(logging.disable, logging.CRITICAL)
        work = Work(sleeping_stages(), 5, 0.0, 0.0, 2, {}, 50, 1, fingerprint, quiet)
        names = [f"cpu:{number}" for number in range(devices)]
        children = stack.enter_context(closing(Children(names, work, results, journal)))

        def save(records: list[Record]) -> None:
            sink.write(records)
            results.note_pictures(records)
            results.confirm_pictures()

        def run(limit: int | None) -> tuple[float, float, int]:
            """Seconds by the clock and of the devices, and images, of a run over what is left."""
            start_s, busy_s, rows = time.monotonic(), children.seconds.get("structure", 0.0), sink.rows
            pipeline.run(Folder(str(photos)), children, sink.keys(), save, lambda: chunk_size, limit)
            return time.monotonic() - start_s, children.seconds["structure"] - busy_s, sink.rows - rows

        run(2 * devices * chunk_size)  # until all have begun
        seconds, busy_s, images = run(None)
    return images / seconds, busy_s / (devices * seconds)


def bundled(photos: Path, folder: Path, devices: int, *engine: str) -> float:
    """Images/s of the bundled models, from the times of a run's rows, with one thread for each process."""
    output = folder / f"{'-'.join(engine)}{devices}.csv"
    command = [
        sys.executable, "run.py", str(photos), "--config", "configs/demo.yaml", "--output", str(output),
        "--set", f"devices=cpu:{devices}", "--set", "chunk_size=16", *engine,
    ]  # fmt: skip
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return times_of(output)


def times_of(output: Path) -> float:
    """Images/s between the first row and the last: starting and loading are left out."""
    from vec_pipeline import load_annotations

    stamps = load_annotations(output, vectors=False)["timestamp"].sort_values()
    return float((stamps > stamps.iloc[0]).sum() / (stamps.iloc[-1] - stamps.iloc[0]).total_seconds())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000, help="of the simulation (default: %(default)s)")
    parser.add_argument("--bundled-images", type=int, default=3000, help="of the bundled models (default: %(default)s)")
    parser.add_argument("--devices", type=int, default=8, help="of the simulation (default: %(default)s)")
    options = parser.parse_args()
    from models.demo import draw

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.bundled_images:
            draw.main(folder / "few", options.bundled_images, seed=1, scale=1)
            one, two = (bundled(folder / "few", folder, number) for number in (1, 2))
            print("| bundled models, one thread for each process | images/s |\n|---|---|")
            print(f"| one process | {one:.1f} |\n| two processes | {two:.1f}, {two / one:.2f} times |")
            actors = bundled(folder / "few", folder, 2, "--engine", "ray")
            print(f"| two actors of Ray | {actors:.1f}, {actors / one:.2f} times |\n")
        if not options.images:
            return
        draw.main(folder / "many", options.images, seed=2, scale=1)
        speed, busy = simulate(folder / "many", folder, options.devices, 32)
        print(f"| {options.devices} devices that sleep, {IMAGES_PER_S:.0f} images/s each | |\n|---|---|")
        print(f"| images/s | {speed:.1f} of {options.devices * IMAGES_PER_S:.0f} |\n| busy | {busy:.1%} |")


if __name__ == "__main__":
    main()
