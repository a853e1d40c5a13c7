"""What `vec-pipeline duplicates` takes among a million vectors of 512, and how many of the planted pairs it finds.

    .venv/bin/python -m benchmarks.duplicates --vectors 1000000    # 6 GB of CSV and 2 GB of vectors, in TMPDIR
    .venv/bin/python -m benchmarks.duplicates --vectors 300000 --clusters 0    # random directions, the hardest to index
    .venv/bin/python -m benchmarks.duplicates --vectors 300000 --equal 100000

A tenth of the vectors are near to the one before them, at cosines of 0.97 to 1; the others are spread around the
centres of clusters. Prints the seconds, CPU seconds and peak memory of the whole command, and of its parts.
"""

import argparse
import csv
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vec_pipeline.record import COLUMNS, Record
from vec_pipeline.sinks.csv_file import encode_row, row_of

COSINE = 0.97
HEADER = list(COLUMNS)
AT_ONCE = 10_000
PART = 10  # every tenth vector is planted
SPREADS = (0.5, 0.8, 1.2)  # of vectors around the centres of clusters, whose own numbers have a deviation of 1
TIMED = ("read_vectors", "group", "ranked", "kept")  # of commands/duplicates/listing.py
PROGRAM = """
import sys, time
from vec_pipeline.__main__ import main
from vec_pipeline.commands.duplicates import listing
def timed(name):
    function = getattr(listing, name)
    def call(*arguments):
        start_s = time.process_time()
        result = function(*arguments)
        print(f"{name}: {time.process_time() - start_s:.1f} s of CPU", file=sys.stderr)
        return result
    setattr(listing, name, call)
list(map(timed, sys.argv[1].split()))
sys.exit(main(sys.argv[2:]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=100_000, help="a multiple of 10,000")
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--clusters", type=int, default=300, help="0: random directions")
    parser.add_argument("--equal", type=int, default=0, help="of the vectors that are equal")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "annotations.csv", Path(folder) / "duplicates.csv"
        planted = write(path, options.vectors, options.dimensions, options.clusters, options.equal)
        print(
            f"{options.vectors:,} vectors of {options.dimensions}, CSV of {path.stat().st_size / 1e9:.1f} GB",
            flush=True,
        )
        find(path, out)
        with out.open(newline="") as file:
            groups = {int(Path(row["image_path"]).stem): row["group"] for row in csv.DictReader(file)}
    found = sum(groups.get(first) == groups.get(first + 1) is not None for first in planted)
    print(f"{found:,} of {len(planted):,} planted pairs found, {found / len(planted):.5f}")


def write(path: Path, number: int, dimensions: int, clusters: int, equal: int) -> list[int]:
    """Write a CSV; return the numbers of the first vectors of pairs whose cosine is at least COSINE."""
    planted: list[int] = []
    with path.open("wb") as file:
        file.write(encode_row(HEADER))
        for start, vectors in zip(range(0, number, AT_ONCE), drawn(dimensions, clusters), strict=False):
            vectors[: max(0, equal - start)] = 1
            first = np.arange(0, AT_ONCE, PART)
            cosines = np.einsum("ij,ij->i", vectors[first], vectors[first + 1])
            planted += (start + first[(cosines >= COSINE) & (start + first >= equal)]).tolist()
            for index, vector in enumerate(vectors, start):
                file.write(encode_row(row_of(Record(f"/photos/{index:08}.jpg", {"image_vector": vector}), HEADER)))
    return planted


def drawn(dimensions: int, clusters: int) -> Iterator[Any]:
    """Yield vectors of length 1, float32 of shape (AT_ONCE, dimensions), for ever, pairs included."""
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((max(1, clusters), dimensions)) * bool(clusters)
    while True:
        spread = rng.choice(SPREADS, (AT_ONCE, 1))
        vectors = unit(
            centres[rng.integers(len(centres), size=AT_ONCE)] + spread * rng.standard_normal((AT_ONCE, dimensions))
        )
        first = np.arange(0, AT_ONCE, PART)
        cosines = rng.uniform(COSINE, 1, (len(first), 1))
        other = rng.standard_normal((len(first), dimensions))
        across = unit(other - np.einsum("ij,ij->i", other, vectors[first])[:, None] * vectors[first])
        vectors[first + 1] = cosines * vectors[first] + np.sqrt(1 - cosines**2) * across
        yield vectors.astype(np.float32)


def unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def find(path: Path, out: Path) -> None:
    """Run the command in a process of its own, and print what it took."""
    start_s = time.perf_counter()
    command = ["duplicates", "--csv", str(path), "--out", str(out), "--cosine", str(COSINE), "--keep", "first"]
    subprocess.run([sys.executable, "-c", PROGRAM, " ".join(TIMED), *command], check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{time.perf_counter() - start_s:.1f} s, {used.ru_utime + used.ru_stime:.1f} s of CPU, "
        f"peak {used.ru_maxrss / 1024:,.0f} MB",
        flush=True,
    )


if __name__ == "__main__":
    main()
