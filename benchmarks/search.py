"""How long a search takes among a million vectors: the first, which builds the cache, and those after it.

    .venv/bin/python benchmarks/search.py                            # 6 GB of CSV and 2 GB of cache, in /tmp
    .venv/bin/python benchmarks/search.py --rows 100000

A query here is a given vector, so these times include no model; the last line is what the bundled CLIP takes to load
and to embed one text, including the import of torch.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks.load import write  # noqa: E402
from vec_pipeline.commands.search.query import sight_query  # noqa: E402
from vec_pipeline.commands.search.vector_cache import Vectors  # noqa: E402
from vec_pipeline.config import load_config  # noqa: E402
from vec_pipeline.settings import write_settings  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--queries", type=int, default=11)
    options = parser.parse_args()
    generator = np.random.default_rng(1)
    queries = generator.standard_normal((options.queries, options.dimensions)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "annotations.csv"
        write(path, options.rows, (0, 0, options.dimensions))
        stages = load_config(PROJECT / "configs/demo.yaml").stages
        write_settings(path, stages, stages, {}, [])
        print(f"{options.rows:,} rows of {options.dimensions} floats, {path.stat().st_size / 1e9:.1f} GB", flush=True)
        print("first search, which reads the CSV:", shown([timed(search, path, queries[0])]), flush=True)
        print("searches after it:", shown([timed(search, path, query) for query in queries]), flush=True)
        print("loading the bundled CLIP and embedding a text:", shown([timed(sight_query, path, "a red car")]))


def search(path: Path, query: Any) -> None:
    """All that a search does except for embedding the query and printing."""
    with Vectors(path, "image_vector") as vectors:
        found = vectors.nearest(query / np.linalg.norm(query), 10)
    assert len(found) == 10


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, float]:
    """Seconds, and seconds of CPU."""
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    function(*arguments)
    return time.perf_counter() - start_s, time.process_time() - start_cpu_s


def shown(timings: Sequence[tuple[float, float]]) -> str:
    seconds, cpu_s = zip(*timings, strict=True)
    span = f" ({min(seconds):.3f} to {max(seconds):.3f}, of {len(seconds)})" if len(seconds) > 1 else ""
    return f"{statistics.median(seconds):.3f} s{span}, {statistics.median(cpu_s):.3f} s of CPU"


if __name__ == "__main__":
    main()
