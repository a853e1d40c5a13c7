"""How long a rerun takes to know what is done: a CSV of a million rows, read for its keys.

    .venv/bin/python benchmarks/resume.py --rows 1000000
    .venv/bin/python benchmarks/resume.py --rows 100000 --dimensions 1196    # vectors of the production size

Prints seconds, GB/s and peak memory of opening the file, as a run does.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from vec_pipeline.record import COLUMNS, Record  # noqa: E402
from vec_pipeline.sinks.csv_file import CsvFile, encode_row, row_of  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=6, help="of the three vectors together")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        open_file(options.open)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "annotations.csv"
        write(path, options.rows, options.dimensions)
        print(f"{options.rows:,} rows, {path.stat().st_size / 1e9:.2f} GB")
        subprocess.run([sys.executable, __file__, "--open", path], check=True)  # a process of its own: its peak memory


def write(path: Path, rows: int, dimensions: int) -> None:
    vector = np.random.default_rng(0).standard_normal(dimensions // 3).astype(np.float32)
    values = {
        "text": "A red car on a blue background, at the left. The text reads SALE.",
        "keywords": "car, red, blue background",
        "llama_extracted": '{"description": "A red car on a blue background.", "keywords": ["car", "red"]}',
        **dict.fromkeys(("text_vector", "word2vec_vector", "image_vector"), vector),
    }
    row = encode_row(row_of(Record("/photos/PLACE.jpg", values), list(COLUMNS)))
    with path.open("wb") as file:
        file.write(encode_row(list(COLUMNS)))
        for index in range(rows):
            file.write(row.replace(b"PLACE", b"2026/summer holidays/image %08d" % index))


def open_file(path: Path) -> None:
    before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start_s = time.perf_counter()
    sink = CsvFile(path)
    keys = len(sink.keys())
    seconds = time.perf_counter() - start_s
    sink.close()
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{keys:,} keys in {seconds:.1f} s ({os.path.getsize(path) / seconds / 1e9:.2f} GB/s), "
        f"{peak_mb - before_mb:.0f} MB on top of the {before_mb:.0f} MB of the libraries"
    )


if __name__ == "__main__":
    main()
