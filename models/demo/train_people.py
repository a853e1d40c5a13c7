"""Train the demo classifiers of age group and gender, on crops of drawn people."""

import logging
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import ConvNextConfig, ConvNextForImageClassification, ViTImageProcessor

from models.demo.detection_pictures import full_picture
from models.demo.drawing import Box
from models.demo.people import AGES, GENDERS
from models.demo.training import Progress, Renewed, export_half, use_one_thread
from models.demo.vector_training import DEMO, load_state, lr_factor, save_state

OUTPUT = DEMO / "people"  # with a folder for each question
QUESTIONS = {"age": AGES, "gender": GENDERS}
SEED = 41
STEPS_PER_MINUTE = 300
SIDE_PX = 64
MEAN = STD = (0.5, 0.5, 0.5)
BATCH, POOL_SIZE, NEW_PER_STEP = 64, 3_000, 16
LEARNING_RATE = 2e-3
REPORT_EVERY = 100  # steps

log = logging.getLogger(__name__)


class Crop(NamedTuple):
    """One person cut out of a picture, uint8 (SIDE_PX, SIDE_PX, 3)."""

    pixels: np.ndarray
    age: str
    gender: str


def main(minutes: float) -> None:
    """Train both for half of the steps that take so many minutes on an idle core, resuming unfinished trainings."""
    for question in QUESTIONS:
        train(question, round(minutes * STEPS_PER_MINUTE / len(QUESTIONS)))


def train(question: str, steps: int) -> None:
    use_one_thread(SEED)
    answers = QUESTIONS[question]
    model = build_model(answers)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    progress = Progress(steps)
    parts = {"model": model, "optimiser": optimiser, "progress": progress}
    load_state(f"people_{question}", parts)
    rng = random.Random(f"{SEED}/{question}/{progress.step}")
    crops = endless_crops(rng, held_out=False)
    pool = Renewed(POOL_SIZE, lambda _rng: next(crops), rng)
    while progress.done < 1:
        batch = pool.sample(BATCH, NEW_PER_STEP, random.Random(f"{SEED}/{progress.step}"))
        truth = torch.tensor([answers.index(getattr(crop, question)) for crop in batch])
        loss = nn.functional.cross_entropy(model(mirrored(pixels_of(batch))).logits, truth, label_smoothing=0.02)
        loss.backward()
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * lr_factor(progress.done)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        progress.step += 1
        if progress.step % REPORT_EVERY == 0 or progress.done == 1:
            log.info("%s, step %d of %d, loss %.3f", question, progress.step, steps, loss.item())
            save_state(f"people_{question}", parts)
    folder = OUTPUT / question
    export_half(model, ViTImageProcessor(size={"height": SIDE_PX, "width": SIDE_PX}), folder)
    log.info("%s right %.3f", question, share_right(folder, question, 1_000))


def build_model(answers: tuple[str, ...]) -> ConvNextForImageClassification:
    config = ConvNextConfig(
        hidden_sizes=[24, 48, 96, 128],
        depths=[1, 1, 2, 1],
        image_size=SIDE_PX,
        layer_scale_init_value=1.0,  # the default of 1e-6 is for very deep networks, and learns slowly here
        id2label=dict(enumerate(answers)),
        label2id={name: index for index, name in enumerate(answers)},
    )
    model = ConvNextForImageClassification(config)
    for weight in model.parameters():
        if weight.ndim >= 2:  # the library's fixed deviation of 0.02 is meant for much wider networks
            nn.init.kaiming_normal_(weight, nonlinearity="linear")
    return model


def endless_crops(rng: random.Random, *, held_out: bool) -> Iterator[Crop]:
    while True:
        picture = full_picture(rng, held_out=held_out, sort="people")
        for item in picture.objects:
            if item.age:
                crop = picture.image.crop(jittered(item.box, rng))
                pixels = crop.resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)
                yield Crop(np.asarray(pixels), item.age, item.gender)


def jittered(box: Box, rng: random.Random) -> tuple[int, int, int, int]:
    """A box as inexact as a detector's: each edge moved by up to 5 % of the box."""
    across, down = 0.05 * (box.right - box.left), 0.05 * (box.bottom - box.top)
    moves = (across, down, across, down)
    left, top, right, bottom = (round(edge + rng.uniform(-move, move)) for edge, move in zip(box, moves, strict=True))
    return left, top, right, bottom


def pixels_of(crops: list[Crop]) -> Tensor:
    """(crops, 3, SIDE_PX, SIDE_PX), -1 to 1, as the image processor makes them."""
    pixels = torch.from_numpy(np.stack([crop.pixels for crop in crops]))
    return pixels.permute(0, 3, 1, 2) / 127.5 - 1


def mirrored(pixels: Tensor) -> Tensor:
    """The first half of a batch flipped from left to right."""
    half = len(pixels) // 2
    return torch.cat((pixels[:half].flip(3), pixels[half:]))


@torch.no_grad()
def share_right(folder: Path, question: str, number: int) -> float:
    """Accuracy on crops of people whose combinations training never sees, through the library's own classes."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    crops = endless_crops(random.Random(f"{SEED}/held out"), held_out=True)
    right = 0
    for _ in range(number):
        crop = next(crops)
        logits = model(**processor(Image.fromarray(crop.pixels), return_tensors="pt")).logits
        right += model.config.id2label[int(logits.argmax())] == getattr(crop, question)
    return right / number


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 8.0)
