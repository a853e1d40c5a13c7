"""Train the demo DINOv2 model: pictures that show the same objects in the same colours get nearby vectors.

It starts from the tower that has learned what is on patches (tower.py), and learns slowly what whole pictures show,
with patches beside it: with whole pictures alone, or at the full rate, it forgets the kinds of objects.
"""

import logging
import random
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import BitImageProcessor, Dinov2Model

from models.demo.drawing import draw
from models.demo.picture_pool import QUESTIONS, answers
from models.demo.scenes import Scene, random_scene
from models.demo.tower import MEAN, SIDE_PX, STD, WIDTH, PatchHead, augmented, labelled, normalised, trained_tower
from models.demo.train_sentences import graded_contrastive_loss
from models.demo.training import Progress, Renewed, export_half, use_one_thread
from models.demo.vector_training import DEMO, Optimiser, load_state, lr_factor, save_state

OUTPUT = DEMO / "dino"
SEED = 29
STEPS_PER_MINUTE = 70
SCENES, CROWDS, POOL_SIZE = 96, 24, 3_000  # in a batch, in a batch, of each
NEW_SCENES, NEW_CROWDS = 32, 6  # per step
LEARNING_RATE = 6e-4  # a third of the tower's own
ASKED = ("first kind", "first colour", "second kind", "second colour", "count", "place", "background")
PROXY_SCALE = 16.0  # of cosines to the classes' vectors
REPORT_EVERY = 50  # steps

log = logging.getLogger(__name__)


class Shown(NamedTuple):
    """A scene squeezed to a square as the image processor squeezes it, uint8 (SIDE_PX, SIDE_PX, 3)."""

    scene: Scene
    pixels: np.ndarray


def main(minutes: float) -> None:
    """Train for as many steps as take so many minutes on an idle core, resuming an unfinished training."""
    use_one_thread(SEED)
    model, patch_head = trained_tower()
    heads = nn.ModuleDict({"patch": patch_head, "cls": PictureHead(), "mean": PictureHead()})
    optimiser = Optimiser(nn.ModuleDict({"model": model, "heads": heads}), LEARNING_RATE, blocks="encoder.layer")
    progress = Progress(round(minutes * STEPS_PER_MINUTE))
    parts = {"model": model, "heads": heads, "optimiser": optimiser, "progress": progress}
    load_state("dino", parts)
    rng = random.Random(f"{SEED}/pool/{progress.step}")
    scenes = Renewed(POOL_SIZE, lambda rng: shown(rng, held_out=False), rng)
    crowds = Renewed(POOL_SIZE // 4, labelled, rng)
    gallery = drawn_gallery(600)
    while progress.done < 1:
        rng = random.Random(f"{SEED}/{progress.step}")
        batch = scenes.sample(SCENES, NEW_SCENES, rng)
        loss = loss_of_batch(model, heads, batch, crowds.sample(CROWDS, NEW_CROWDS, rng), rng)
        optimiser.step(loss, lr_factor(progress.done))
        progress.step += 1
        if progress.step % REPORT_EVERY == 0 or progress.done == 1:
            save_state("dino", parts)
            figures = neighbours_right(model, gallery)
            log.info(
                "step %d of %d, loss %.3f, %s, %s",
                progress.step,
                progress.steps,
                loss.item(),
                patch_head.right,
                figures,
            )
    export_half(model, build_processor(), OUTPUT)


def build_processor() -> BitImageProcessor:
    return BitImageProcessor(
        do_resize=True,
        size={"height": SIDE_PX, "width": SIDE_PX},
        do_center_crop=False,
        resample=Image.Resampling.BICUBIC,
        image_mean=list(MEAN),
        image_std=list(STD),
    )


class PictureHead(nn.Module):
    """Predicts what a whole picture shows from its vector, by the cosines to one vector per answer, so that pictures of
    one answer come to lie near each other. Used in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.proxies = nn.Parameter(torch.randn(sum(QUESTIONS.values()), WIDTH))

    def loss(self, units: Tensor, truth: Tensor) -> Tensor:
        """units: (pictures, WIDTH) of length 1; truth: (pictures, questions), the answers."""
        scores = PROXY_SCALE * units @ functional.normalize(self.proxies).T
        parts = dict(
            zip(QUESTIONS, zip(scores.split(list(QUESTIONS.values()), 1), truth.unbind(1), strict=True), strict=True)
        )
        losses = {name: functional.cross_entropy(*parts[name]) for name in ASKED}
        weights = {"first kind": 2.0, "first colour": 1.0, "second kind": 1.0, "second colour": 0.5}
        return torch.stack([weights.get(name, 0.2) * loss for name, loss in losses.items()]).sum()


def loss_of_batch(
    model: Dinov2Model,
    heads: nn.ModuleDict,
    batch: list[Shown],
    crowds: list[tuple[np.ndarray, np.ndarray]],
    rng: random.Random,
) -> Tensor:
    pixels = np.stack([*(item.pixels for item in batch), *(pixels for pixels, _ in crowds)])
    tokens = model(pixel_values=augmented(pixels, rng)).last_hidden_state
    labels = torch.from_numpy(np.stack([labels for _, labels in crowds])).long()
    patch_head: PatchHead = heads["patch"]  # type: ignore[assignment]
    loss = 0.3 * patch_head.loss(tokens[len(batch) :, 1:], labels)
    truth = torch.tensor([answers(item.scene) for item in batch])
    wanted = wanted_cosines([item.scene for item in batch])
    cls, mean = unit_vectors(tokens[: len(batch)])
    for name, units in (("cls", cls), ("mean", mean)):
        loss = loss + heads[name].loss(units, truth) + graded_contrastive_loss(units @ units.T, wanted)  # type: ignore[operator]
    return loss


def unit_vectors(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The CLS token and the mean of the patches, each of length 1; tokens: (pictures, 1 + patches, WIDTH)."""
    return functional.normalize(tokens[:, 0], dim=-1), functional.normalize(tokens[:, 1:].mean(1), dim=-1)


def wanted_cosines(scenes: list[Scene]) -> Tensor:
    """How alike two scenes are meant to be: by kinds and colours above all, then background, number, place, writing."""
    names: dict[str, int] = {}
    entries = [
        (row, names.setdefault(name, len(names)), weight)
        for row, scene in enumerate(scenes)
        for name, weight in aspects(scene).items()
    ]
    rows, columns, weights = zip(*entries, strict=True)
    vectors = torch.zeros(len(scenes), len(names))
    vectors[list(rows), list(columns)] = torch.tensor(weights)
    vectors = functional.normalize(vectors)
    return vectors @ vectors.T


def aspects(scene: Scene) -> dict[str, float]:
    weights = {
        f"background {scene.background}": 0.3,
        f"count {scene.count}": 0.25,
        f"place {scene.place}": 0.25,
        f"has text {bool(scene.word)}": 0.2,
    }
    share = max(1, len(scene.things)) ** -0.5
    for thing in scene.things:
        weights |= {thing.kind: share, thing.colour: 0.8 * share, f"{thing.colour} {thing.kind}": share}
    return weights


def shown(rng: random.Random, *, held_out: bool) -> Shown:
    """A random scene, half of them square, the rest down to 3:4 either way, some reduced from double size."""
    short_px = SIDE_PX if rng.random() < 0.5 else rng.randint(84, SIDE_PX)
    width, height = rng.choice(((SIDE_PX, short_px), (short_px, SIDE_PX)))
    scale = rng.choice((1, 1, 1, 2))
    while True:
        scene = random_scene(rng, held_out=held_out)
        try:
            image = draw(scene, rng, width, height, scale).image
        except ValueError:  # it does not fit: another scene will
            continue
        return Shown(scene, np.asarray(image.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)))


def drawn_gallery(number: int) -> list[Shown]:
    """Scenes of all combinations, those that are held out from training (one in ten) among them."""
    rng = random.Random(f"{SEED}/gallery")
    return [shown(rng, held_out=rng.random() < 0.1) for _ in range(number)]


@torch.no_grad()
def neighbours_right(model: Dinov2Model, gallery: list[Shown]) -> str:
    """Of the scenes with one kind of object, the share whose nearest other scene shows that kind in that colour."""
    pixels = np.stack([item.pixels for item in gallery])
    tokens = torch.cat([model(pixel_values=part).last_hidden_state for part in parts_of(pixels)])
    cls, mean = unit_vectors(tokens)
    scenes = [item.scene for item in gallery]
    named = {"cls": cls, "mean": mean, "cls+mean": torch.cat((cls, mean), 1)}
    return ", ".join(f"{name} {share_of_neighbours(units, scenes):.3f}" for name, units in named.items())


def parts_of(pixels: np.ndarray) -> list[Tensor]:
    return [normalised(pixels[start : start + 100]) for start in range(0, len(pixels), 100)]


def share_of_neighbours(vectors: Tensor, scenes: list[Scene]) -> float:
    cosines = functional.normalize(vectors) @ functional.normalize(vectors).T
    nearest = cosines.fill_diagonal_(-2).argmax(1).tolist()
    pairs = [(scene, scenes[index]) for scene, index in zip(scenes, nearest, strict=True) if len(scene.things) == 1]
    return sum(scene.things == other.things for scene, other in pairs) / len(pairs)


def print_accuracy(folder: Path = OUTPUT, number: int = 2_000) -> None:
    """Print the shares for the model in a folder and, beside them, for the same model untrained."""
    gallery = drawn_gallery(number)
    torch.manual_seed(SEED)
    model = Dinov2Model.from_pretrained(folder).eval()
    print("trained:", neighbours_right(model, gallery))
    print("untrained:", neighbours_right(Dinov2Model(model.config).eval(), gallery))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 15.0)
