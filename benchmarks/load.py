"""How long a CSV takes to become a pandas table with its vectors: load_annotations, and json.loads cell by cell.

    .venv/bin/python benchmarks/load.py

Prints seconds, CPU seconds and peak memory of each; every run has its own process, alternately.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from vec_pipeline import load_annotations  # noqa: E402
from vec_pipeline.record import COLUMNS, Record  # noqa: E402
from vec_pipeline.sinks.csv_file import encode_row, row_of  # noqa: E402

DISTINCT_ROWS = 500  # written repeatedly under other paths
VECTOR_COLUMNS = [name for name, kind in COLUMNS.items() if kind == "vector"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=24_415)
    parser.add_argument("--dimensions", type=int, nargs=3, default=(384, 300, 512), help="of the three vectors")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--load", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        measure(*options.load)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "annotations.csv"
        write(path, options.rows, options.dimensions)
        print(f"{options.rows:,} rows of {sum(options.dimensions):,} floats, {path.stat().st_size / 1e6:,.0f} MB")
        for _ in range(options.runs):
            for loader in LOADERS:
                subprocess.run([sys.executable, __file__, "--load", loader, path], check=True)


def write(path: Path, rows: int, dimensions: Sequence[int]) -> None:
    """Write rows with vectors of the given sizes, those of size 0 left out, as a run would."""
    generator = np.random.default_rng(0)
    distinct = []
    for _ in range(min(rows, DISTINCT_ROWS)):
        vectors = {
            name: vector / np.linalg.norm(vector)
            for name, size in zip(VECTOR_COLUMNS, dimensions, strict=True)
            if size and (vector := generator.standard_normal(size).astype(np.float32)) is not None
        }
        texts = {
            "text": "A red car on a blue background, at the left. The text reads SALE.",
            "description": "A red car on a blue background, at the left.",
            "categories": "vehicle",
            "keywords": "car, red, blue background",
            "llama_extracted": '{"description": "A red car on a blue background.", "keywords": ["car", "red"]}',
        }
        distinct.append(encode_row(row_of(Record("/photos/PLACE.jpg", texts | vectors), COLUMNS)))
    with path.open("wb") as file:
        file.write(encode_row(COLUMNS))
        for index in range(rows):
            row = distinct[index % len(distinct)]
            file.write(row.replace(b"PLACE", b"2026/summer holidays/image %08d" % index, 1))


def load_naively(path: Path) -> pd.DataFrame:
    """What a notebook does without help."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    for name in VECTOR_COLUMNS:
        vectors = [np.array(json.loads(text), np.float32) if text else None for text in table[name]]
        table[name] = pd.Series(vectors, dtype=object)
    return table


def measure(loader: str, path: str) -> None:
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    table = LOADERS[loader](path)
    seconds, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{loader:<17} {seconds:6.2f} s, {cpu_s:.2f} s of CPU, peak {peak_mb:,.0f} MB, {len(table):,} rows", flush=True
    )


LOADERS: dict[str, Any] = {"load_annotations": load_annotations, "json.loads": load_naively}

if __name__ == "__main__":
    main()
