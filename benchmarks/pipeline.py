"""The whole worker against benchmarks/naive_loop.py, on the same drawn scenes, alternately.

    .venv/bin/python benchmarks/pipeline.py             # the bundled models, on the CPU
    .venv/bin/python benchmarks/pipeline.py --random    # models of about 150 M random parameters each, on the CPU
    .venv/bin/python benchmarks/pipeline.py --gpu       # the production models' shapes, 25 GB of disk and host memory

Images/s are without loading: the naive loop times its loop, and the time of `run.py` for one image is subtracted from
its time for all, each in its own process. The naive loop gets the first few of the same scenes.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks.machine import machine, require_gpu  # noqa: E402
from benchmarks.random_models import OF_150M, PRODUCTION, Set, write_set  # noqa: E402
from models.demo import draw  # noqa: E402
from vec_pipeline import load_annotations  # noqa: E402

COMPARED = ["text", "description", "categories", "keywords", "image_text"]
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", **os.environ}  # the first is what run.py sets


@dataclass(frozen=True)
class Setting:
    """The models, how many images each side gets in a round, and how many rounds."""

    name: str
    models: Set | None  # None: the bundled ones
    images: int
    naive_images: int
    rounds: int


BUNDLED = Setting("bundled models", None, 1000, 40, 5)
RANDOM = Setting("150 M random parameters each", OF_150M, 32, 2, 3)
GPU = Setting("production shapes, random weights", PRODUCTION, 512, 2, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--random", dest="setting", action="store_const", const=RANDOM, default=BUNDLED)
    kind.add_argument("--gpu", dest="setting", action="store_const", const=GPU)
    parser.add_argument("--images", type=int, help="for run.py (1000, --random 32, --gpu 512)")
    parser.add_argument("--naive-images", type=int, help="for the naive loop (40, --random 2, --gpu 2)")
    parser.add_argument("--rounds", type=int, help="(5, --random 3, --gpu 1)")
    options = parser.parse_args()
    chosen = {name: value for name, value in vars(options).items() if name != "setting" and value}
    setting = replace(options.setting, **chosen)
    if options.setting is GPU:
        require_gpu(for_llama=True)
    with tempfile.TemporaryDirectory() as folder:
        compare(setting, Path(folder))


def compare(setting: Setting, folder: Path) -> None:
    """Run both sides alternately and print their table."""
    naive, worker, whole_s = [], [], []
    config = write_set(folder, setting.models) if setting.models else PROJECT / "configs" / "demo.yaml"
    scenes, output = folder / "scenes", folder / "output"
    draw.main(scenes, setting.images, seed=5)
    output.mkdir()
    for number in range(setting.rounds):
        naive.append(naive_rate(scenes, config, output / "naive.csv", setting.naive_images))
        one_s = worker_s(scenes, config, output / f"one-{number}" / "annotations.csv", 1)
        all_s = worker_s(scenes, config, output / f"all-{number}" / "annotations.csv", setting.images)
        worker.append((setting.images - 1) / (all_s - one_s))
        whole_s.append(all_s)
        print(f"round {number + 1}: {naive[-1]:.2f} and {worker[-1]:.2f} images/s", file=sys.stderr)
    print(f"\n{machine('torch', 'transformers', 'llama-cpp-python')}")
    print(f"\n{setting.name}, {setting.images} scenes, medians of {setting.rounds}:\n")
    print("| side | images/s | ratio |\n|---|---|---|")
    print(f"| naive loop | {statistics.median(naive):.2f} | 1.0 |")
    ratio = statistics.median(mine / theirs for mine, theirs in zip(worker, naive, strict=True))
    print(f"| run.py | {statistics.median(worker):.2f} | {ratio:.1f} |")
    print(f"\nWith loading, run.py took {statistics.median(whole_s):.1f} s for all {setting.images}. ", end="")
    print(equal_rows(output / "naive.csv", output / "all-0" / "annotations.csv"))


def naive_rate(scenes: Path, config: Path, output: Path, images: int) -> float:
    said = run("benchmarks/naive_loop.py", scenes, "--config", config, "--output", output, "--limit", images)
    count, seconds = re.findall(r"(\d+) images in ([\d.]+) s", said)[-1]
    return int(count) / float(seconds)


def worker_s(scenes: Path, config: Path, output: Path, images: int) -> float:
    output.parent.mkdir()
    start_s = time.perf_counter()
    run("run.py", scenes, "--config", config, "--output", output, "--limit", images)
    return time.perf_counter() - start_s


def run(script: str, *arguments: object) -> str:
    """Return what a script prints; where it fails, end with that and the end of its errors."""
    command = [sys.executable, str(PROJECT / script), *map(str, arguments)]
    done = subprocess.run(command, check=False, env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{script} ended with status {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def equal_rows(naive: Path, worker: Path) -> str:
    """Say how many rows of the two files hold the same texts."""
    ours, theirs = (load_annotations(path).set_index("image_path")[COMPARED] for path in (worker, naive))
    equal = (ours.loc[theirs.index] == theirs).all(axis=1)
    return f"{equal.sum()} of {len(equal)} rows hold the same texts on both sides."


if __name__ == "__main__":
    main()
