"""The review server with many rows: how long lists, screens, corrections and acts on all rows take, and its memory.

    .venv/bin/python -m benchmarks.review                        # 25,000 and 100,000 rows
    .venv/bin/python -m benchmarks.review --rows 25000 --rounds 100

The CSV is synthetic: texts of 400 characters, and a vector of 512 numbers, of which every tenth is nearly another one.
"""

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil

from benchmarks.machine import machine
from vec_pipeline.record import COLUMNS, Record
from vec_pipeline.sinks.csv_file import CsvFile

PROJECT = Path(__file__).resolve().parent.parent
DIMENSIONS = 512
CHUNK = 1000
SCREEN = 60  # rows of one screen
THINGS = ("car", "dog", "boat", "house", "flower", "cup", "tree", "cat")
COLOURS = ("red", "green", "blue", "yellow", "black", "white")
CATEGORIES = ("vehicle", "animal", "household", "plant", "building")
LISTS: dict[str, dict[str, str | bool]] = {
    "all rows, by worth": {},
    "one of each group": {"unique": True},
    "a category, not verified": {"where": "category:vehicle -verified"},
    "a word in any text": {"where": "boat"},
    "a regular expression": {"where": 'text~/red (car|dog) .*green/ -"blue boat"'},
}


def records(number: int) -> list[Record]:
    rng, vectors = random.Random(0), np.random.default_rng(0)
    found: list[Record] = []
    base = vectors.standard_normal(DIMENSIONS)
    for row in range(number):
        base = (
            base + 0.01 * vectors.standard_normal(DIMENSIONS) if row % 10 == 9 else vectors.standard_normal(DIMENSIONS)
        )
        scene = ", and ".join(f"a {rng.choice(COLOURS)} {rng.choice(THINGS)} in front of a wall" for _ in range(8))
        vector = (base / np.linalg.norm(base)).astype(np.float32)
        values = {
            **{name: vector if kind == "vector" else "" for name, kind in COLUMNS.items()},
            "text": f"The picture shows {scene}. There is no text.", "description": f"Something with {scene[:60]}.",
            "categories": rng.choice(CATEGORIES), "keywords": ", ".join(rng.sample(THINGS, 4)),
            "image_text": "SALE" if rng.random() < 0.2 else "", "text_confidence": rng.random(),
            "clip_score": rng.random(), "flags": "low_confidence" if rng.random() < 0.1 else "",
        }  # fmt: skip
        values |= {"text_vector": "", "word2vec_vector": ""}
        found.append(Record(f"/photos/{row:06}.jpg", values))
    return found


def times(what: str, ask: Callable[[], Any], rounds: int) -> str:
    """A line of the table: p50 and p95 in ms."""
    seconds = []
    for _ in range(rounds):
        start_s = time.perf_counter()
        ask()
        seconds.append(time.perf_counter() - start_s)
    p95 = statistics.quantiles(seconds, n=20)[-1] if rounds > 1 else seconds[0]
    return f"| {what} | {statistics.median(seconds) * 1000:,.0f} | {p95 * 1000:,.0f} |"


def measure(number: int, rounds: int, folder: Path) -> None:
    csv = folder / f"{number}.csv"
    every = records(number)
    with closing(CsvFile(csv, ("text_confidence", "clip_score", "flags"))) as sink:
        for start in range(0, number, CHUNK):
            sink.write(every[start : start + CHUNK])
    del every
    command = [sys.executable, "-m", "vec_pipeline", "serve", "--csv", str(csv), "--review-only", "--port", "0"]
    begin_s = time.perf_counter()
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout
        url = process.stdout.readline().split("/review")[0]
        print(f"\n{number:,} rows, a CSV of {csv.stat().st_size / 1e6:,.0f} MB: answers after "
              f"{time.perf_counter() - begin_s:.1f} s", flush=True)  # fmt: skip
        with httpx2.Client(base_url=url, timeout=300) as client:
            while not client.get("/v1/review").json()["grouped"]:
                time.sleep(0.5)
            print(f"near-duplicates are known after {time.perf_counter() - begin_s:.1f} s", flush=True)
            print("\n| request | p50 ms | p95 ms |\n|---|---|---|")
            table(client, number, rounds)
        print(f"\nmemory: {psutil.Process(process.pid).memory_info().rss / 1e6:,.0f} MB", flush=True)
    finally:
        process.terminate()
        process.wait(60)


def table(client: httpx2.Client, number: int, rounds: int) -> None:
    """Print a line for each kind of request."""
    rng = random.Random(1)

    def post(path: str, **body: Any) -> Any:
        response = client.post(f"/v1/review/{path}", json=body)
        response.raise_for_status()
        return response.json()

    def screen(rows: int) -> Any:
        return post("rows", rows=[rng.randrange(number) for _ in range(rows)])

    def correct() -> None:
        change = {
            "row": rng.randrange(number),
            "column": "description",
            "value": f"corrected {rng.random()}",
            "seen": None,
        }
        post("correct", changes=[change])

    def bulk(preview: bool) -> int:
        operation = {"kind": "prefix", "column": "text", "text": "x "}
        return int(post("bulk", operation=operation, preview=preview)["act"] or 0)

    for what, parameters in LISTS.items():
        print(times(f"list: {what}", partial(client.get, "/v1/review", params=parameters), rounds))
    print(times(f"rows: {SCREEN} of a screen", lambda: screen(SCREEN), rounds))
    print(times("rows: one", lambda: screen(1), rounds))
    print(times("a correction", correct, rounds))
    print(times("bulk: preview, all rows", lambda: bulk(True), 3))
    acts: list[int] = []
    print(times("bulk: all rows", lambda: acts.append(bulk(False)), 3))
    print(times("undo: all rows", lambda: post("undo", act=acts.pop()), 3))
    print(times("a correction, all rows being corrected", correct, rounds))
    print(times("list: all rows, all being corrected", lambda: client.get("/v1/review"), rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[25_000, 100_000])
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    print(machine())
    for number in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            measure(number, options.rounds, Path(folder))


if __name__ == "__main__":
    main()
