"""The whole worker against benchmarks/naive_loop.py, on drawn scenes and the bundled models, taking turns.

    .venv/bin/python benchmarks/pipeline.py

Images/s are without loading: the naive loop times its loop, and of `run.py` the time for one image is taken off the
time for all, both as processes of their own. The naive loop gets the first NAIVE of the same scenes.
"""

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from models.demo import draw  # noqa: E402
from vec_pipeline import load_annotations  # noqa: E402

CONFIG = PROJECT / "configs" / "demo.yaml"
COMPARED = ["text", "description", "categories", "keywords", "image_text"]
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", **os.environ}  # the first is what run.py sets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--naive-images", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    naive, worker, whole_s = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        scenes, output = Path(folder) / "scenes", Path(folder) / "output"
        draw.main(scenes, options.images, seed=5)
        output.mkdir()
        for number in range(options.rounds):
            naive.append(naive_rate(scenes, output / "naive.csv", options.naive_images))
            one_s = worker_s(scenes, output / f"one-{number}" / "annotations.csv", 1)
            all_s = worker_s(scenes, output / f"all-{number}" / "annotations.csv", options.images)
            worker.append((options.images - 1) / (all_s - one_s))
            whole_s.append(all_s)
            print(f"round {number + 1}: {naive[-1]:.2f} and {worker[-1]:.2f} images/s", file=sys.stderr)
        equal = equal_rows(output / "naive.csv", output / "all-0" / "annotations.csv")
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "llama-cpp-python"))
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {libraries}; ", end="")
    print(f"medians of {options.rounds}, bundled models, {options.images} scenes\n")
    print("| side | images/s | ratio |\n|---|---|---|")
    print(f"| naive loop | {statistics.median(naive):.2f} | 1.0 |")
    ratio = statistics.median(mine / theirs for mine, theirs in zip(worker, naive, strict=True))
    print(f"| run.py | {statistics.median(worker):.2f} | {ratio:.1f} |")
    print(f"\nWith loading, run.py took {statistics.median(whole_s):.1f} s for all {options.images}. {equal}")


def naive_rate(scenes: Path, output: Path, images: int) -> float:
    said = run("benchmarks/naive_loop.py", scenes, "--config", CONFIG, "--output", output, "--limit", images)
    count, seconds = re.findall(r"(\d+) images in ([\d.]+) s", said)[-1]
    return int(count) / float(seconds)


def worker_s(scenes: Path, output: Path, images: int) -> float:
    output.parent.mkdir()
    start_s = time.perf_counter()
    run("run.py", scenes, "--config", CONFIG, "--output", output, "--limit", images)
    return time.perf_counter() - start_s


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(PROJECT / script), *map(str, arguments)]
    return subprocess.run(command, check=True, env=ENVIRONMENT, capture_output=True, text=True).stdout


def equal_rows(naive: Path, worker: Path) -> str:
    """Say how many rows of the two files hold the same texts."""
    ours, theirs = (load_annotations(path).set_index("image_path")[COMPARED] for path in (worker, naive))
    equal = (ours.loc[theirs.index] == theirs).all(axis=1)
    return f"{equal.sum()} of {len(equal)} rows hold the same texts on both sides."


if __name__ == "__main__":
    main()
