"""Trains a projection of text vectors, so that each text comes to lie near the image vectors of its rows.

The loss is that of CLIP (Radford et al. 2021): InfoNCE both ways. Texts for DINO's vectors are from dino.txt (Jose et
al. 2024), which trains a text tower in place of a projection.
"""

import copy
from collections.abc import Sequence
from math import log
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from vec_pipeline import device
from vec_pipeline.commands.align.alignment import network
from vec_pipeline.commands.align.loss_picture import Curve
from vec_pipeline.commands.align.pairs import Matrix, Split

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCH = 512  # rows compared with each other
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.05
FIRST_SCALE, LARGEST_SCALE = 20.0, 100.0  # of cosines: the inverse of the temperature, which is learned
MOST_STEPS = 2_000
STEPS_BETWEEN = 20  # evaluations of the validation loss
PATIENCE, LEAST_GAIN = 10, 0.005  # training stops where so many evaluations have lowered that loss by less


def train(
    texts: Matrix, images: Matrix, captions: Sequence[str], split: Split, layers: int, seed: int
) -> tuple["nn.Module", Curve]:
    """Train until the validation loss has stopped falling; return the projection as it was at its lowest.

    texts: float32 of shape (rows, dimensions).
    images: the same with dimensions of their own, centred and of length 1.
    captions: rows with equal ones count as pairs.
    """
    import torch

    torch.manual_seed(seed)
    where = device.resolve("auto")
    text, image = torch.from_numpy(texts).to(where), torch.from_numpy(images).to(where)
    caption = torch.from_numpy(np.unique(np.array(captions, object), return_inverse=True)[1]).to(where)
    net = network(texts.shape[1], images.shape[1], layers).to(where)
    scale = torch.nn.Parameter(torch.tensor(log(FIRST_SCALE), device=where))
    groups: list[dict[str, Any]] = [{"params": net.parameters()}, {"params": [scale], "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def loss(rows: "Tensor") -> "Tensor":
        return contrastive_loss(net(text[rows]), image[rows], caption[rows], scale.clamp(max=log(LARGEST_SCALE)).exp())

    train_rows, validation_rows = (torch.from_numpy(part).to(where) for part in split[:2])
    generator = torch.Generator().manual_seed(seed)
    curve, best, recent = Curve(), copy.deepcopy(net.state_dict()), []
    for step in tqdm(range(1, MOST_STEPS + 1), desc="training", unit=" steps", disable=None, leave=False):
        found = loss(train_rows[torch.randperm(len(train_rows), generator=generator)[:BATCH].to(where)])
        optimiser.zero_grad()
        found.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        recent.append(found.detach())
        if step % STEPS_BETWEEN:
            continue
        with torch.inference_mode():
            curve.steps.append(step)
            curve.train.append(torch.stack(recent).mean().item())
            curve.validation.append(loss(validation_rows).item())
        recent = []
        if curve.best == len(curve.steps) - 1:
            best = copy.deepcopy(net.state_dict())
        if has_settled(curve.validation):
            break
    net.load_state_dict(best)
    return net.cpu().eval(), curve


def has_settled(losses: Sequence[float]) -> bool:
    """Whether the last PATIENCE of the losses are hardly lower than those before."""
    before, recent = losses[:-PATIENCE], losses[-PATIENCE:]
    return bool(before) and min(before) - min(recent) < LEAST_GAIN


def contrastive_loss(texts: "Tensor", images: "Tensor", captions: "Tensor", scale: "Tensor") -> "Tensor":
    """InfoNCE both ways, divided by that of guessing; all pairs of one caption are right, in equal parts.

    texts, images: (rows, dimensions), the images of length 1; captions: (rows,), a number per text.
    """
    from torch.nn import functional

    logits = scale * functional.normalize(texts) @ images.T
    wanted = functional.normalize((captions[:, None] == captions).float(), p=1, dim=1)
    both: Tensor = functional.cross_entropy(logits, wanted) + functional.cross_entropy(logits.T, wanted)
    return both / 2 / log(len(captions))
