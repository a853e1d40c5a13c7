"""How fast detect and embed_dino are, beside a plain loop over the library, one picture at a time.

    .venv/bin/python -m benchmarks.eyes                                     # the bundled models
    .venv/bin/python -m benchmarks.eyes --clock wall                        # on an idle machine
    .venv/bin/python -m benchmarks.eyes --hub --device cuda --pictures 512  # the hub's shapes with random weights

Prints the table of docs/stages/embed_dino.md. Both sides open the files: the loop as the library's examples do, the
stages as a run does, which is with open_image and in threads beside the model. By default, seconds are those of the CPU
and of one thread of torch, which other work on the machine changes little, and which threads make no fewer.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForObjectDetection,
    BitImageProcessor,
    Dinov2Config,
    Dinov2Model,
    RTDetrImageProcessor,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
)
from transformers.utils.logging import set_verbosity_error

from benchmarks.machine import machine, require_gpu
from vec_pipeline.device import free_cores
from vec_pipeline.record import Stage, Values
from vec_pipeline.sources.folder import LocalFile
from vec_pipeline.stages.detect import Detect
from vec_pipeline.stages.embed_dino import EmbedDino
from vec_pipeline.stages.open_image import OpenImage

PROJECT = Path(__file__).resolve().parent.parent
DEMO = PROJECT / "models" / "demo"
PHOTOGRAPH = (4000, 3000)
READ_TOGETHER = 8  # pictures, as in a run
MIN_SCORE = 0.5

Annotate = Callable[[Sequence[Path]], object]


@dataclass(frozen=True)
class Sides:
    """A stage and the plain loop that does the same."""

    name: str
    stage: Annotate
    loop: Annotate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda implies --clock wall")
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    parser.add_argument("--hub", action="store_true", help="random weights in the shapes of the hub's models")
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    is_wall = options.clock == "wall" or options.device == "cuda"
    if options.device == "cuda":
        require_gpu()
    if not is_wall:
        torch.set_num_threads(1)
    set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        size_px = 384 if options.hub else 112
        sides = [*detector_sides(Path(folder), options, size_px), *dino_sides(Path(folder), options, size_px)]
        sets = {"448 x 448": drawn(options.pictures), "12 megapixels": photographs(Path(folder), options.pictures)}
        clock = time.perf_counter if is_wall else time.process_time
        print("| stage, model | pictures | loop, pictures/s | stage, pictures/s | ratio |\n|---|---|---|---|---|")
        for each, (pictures, paths) in itertools.product(sides, sets.items()):
            loop_s, stage_s = medians([each.loop, each.stage], paths, clock, options.rounds)
            speeds = f"{len(paths) / loop_s:.1f} | {len(paths) / stage_s:.1f}"
            print(f"| {each.name} | {pictures} | {speeds} | {loop_s / stage_s:.1f} |", flush=True)
    print(machine("torch", "torchvision", "transformers", "pillow"))


def medians(
    ways: Sequence[Annotate], paths: Sequence[Path], clock: Callable[[], float], rounds: int
) -> tuple[float, ...]:
    """Seconds of each way over all pictures; the ways alternate, and each is warmed up with a few."""
    seconds: list[list[float]] = [[] for _ in ways]
    for way in ways:
        way(paths[:READ_TOGETHER])
    for _ in range(rounds):
        for way, taken in zip(ways, seconds, strict=True):
            start_s = clock()
            way(paths)
            taken.append(clock() - start_s)
    return tuple(map(statistics.median, seconds))


def drawn(number: int) -> list[Path]:
    found = sorted((PROJECT / "examples" / "images").glob("*.[jp][pn]g"))
    return list(itertools.islice(itertools.cycle(found), number))


def photographs(folder: Path, number: int) -> list[Path]:
    """A few drawn pictures, again and again, enlarged to 12 megapixels and with a grain as of a camera."""
    rng = np.random.default_rng(0)
    paths = []
    for path in drawn(READ_TOGETHER):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB").resize(PHOTOGRAPH, Image.Resampling.BICUBIC)).astype(np.float32)
        grain = rng.normal(0, 10, pixels.shape[:2]).astype(np.float32)[..., None]
        paths.append(folder / f"{path.stem}.photograph.jpg")
        Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return list(itertools.islice(itertools.cycle(paths), number))


def staged(stage: Stage, size_px: int) -> Annotate:
    """The stage as a run calls it, after open_image."""
    stage.fetch()
    model, opener = stage.load(), OpenImage(max_size_px=size_px)
    opener.load()
    batch_size = stage.auto_batch_size(model, 0.0)

    def opened(paths: Sequence[Path]) -> list[Values]:
        rows: list[Values] = [{"content": LocalFile(str(path))} for path in paths]
        return [{**row, **found} for row, found in zip(rows, opener.run(None, rows, len(rows)), strict=True)]

    def annotate(paths: Sequence[Path]) -> list[Values]:
        results = []
        groups = [paths[start : start + READ_TOGETHER] for start in range(0, len(paths), READ_TOGETHER)]
        with ThreadPoolExecutor(free_cores()) as pool:
            rows = itertools.chain.from_iterable(pool.map(opened, groups))
            while batch := list(itertools.islice(rows, batch_size)):
                results += stage.run(model, batch, batch_size)
        return results

    return annotate


def dino_sides(folder: Path, options: argparse.Namespace, size_px: int) -> list[Sides]:
    path = DEMO / "dino"
    if options.hub:
        path = folder / "dinov2-base"
        size = {"crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 256}}
        save(path, Dinov2Model(Dinov2Config(image_size=518, patch_size=14)), BitImageProcessor(**size))
    processor = AutoImageProcessor.from_pretrained(path)
    model = AutoModel.from_pretrained(path).to(options.device).eval()

    @torch.inference_mode()
    def loop(paths: Sequence[Path]) -> list[Any]:
        vectors = []
        for each in paths:
            inputs = processor(images=Image.open(each).convert("RGB"), return_tensors="pt").to(options.device)
            tokens = model(**inputs).last_hidden_state[0]
            parts = torch.nn.functional.normalize(torch.stack([tokens[0], tokens[1:].mean(0)]))
            vectors.append((parts.flatten() / 2**0.5).cpu().numpy())
        return vectors

    stage = staged(EmbedDino(model=str(path), device=options.device), size_px)
    return [Sides(f"embed_dino, {path.name}", stage, loop)]


def detector_sides(folder: Path, options: argparse.Namespace, size_px: int) -> list[Sides]:
    path = DEMO / "detector"
    if options.hub or not path.is_dir():
        path = folder / ("rtdetr_v2_r18vd" if options.hub else "tiny")
        save(path, *(hub_detector() if options.hub else tiny_detector()))
    processor = AutoImageProcessor.from_pretrained(path)
    model = AutoModelForObjectDetection.from_pretrained(path).to(options.device).eval()

    @torch.inference_mode()
    def loop(paths: Sequence[Path]) -> list[Any]:
        results = []
        for each in paths:
            image = Image.open(each).convert("RGB")
            inputs = processor(images=image, return_tensors="pt").to(options.device)
            sizes = [(image.height, image.width)]
            found = processor.post_process_object_detection(model(**inputs), threshold=MIN_SCORE, target_sizes=sizes)
            results += [{name: value.tolist() for name, value in one.items()} for one in found]
        return results

    stage = staged(Detect(model=str(path), device=options.device, min_score=MIN_SCORE, suppression="none"), size_px)
    return [Sides(f"detect, {path.name}", stage, loop)]


def hub_detector() -> tuple[Any, Any]:
    """As PekingU/rtdetr_v2_r18vd."""
    widths = [64, 128, 256, 512]
    backbone = RTDetrResNetConfig(
        hidden_sizes=widths, depths=[2, 2, 2, 2], layer_type="basic", out_features=["stage2", "stage3", "stage4"]
    )
    config = RTDetrV2Config(
        backbone_config=backbone,
        encoder_in_channels=widths[1:],
        hidden_expansion=0.5,
        decoder_layers=3,
        num_labels=80,
    )
    return RTDetrV2ForObjectDetection(config), RTDetrImageProcessor()


def tiny_detector() -> tuple[Any, Any]:
    """In the shape of the bundled one, where that is not trained yet."""
    from models.demo.train_detector import build_model, build_processor

    return build_model(), build_processor()


def save(folder: Path, model: Any, processor: Any) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    main()
