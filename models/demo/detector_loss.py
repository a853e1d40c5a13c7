"""A second loss for the detector: every place of its encoder learns kind and box of the object that is there.

RT-DETR's own loss gives each object to one query, which teaches a network from scratch slowly. Here the TOP best places
of each object learn it (TOOD's assignment, Feng et al. 2021). The class layer of this loss is dropped after training.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import box_convert, box_iou, generalized_box_iou_loss

TOP = 7


class Targets(NamedTuple):
    """The objects of a batch, filled up to the largest number of a picture.

    boxes: (pictures, most, 4), left, top, right, bottom as shares of the picture; labels: (pictures, most) indices;
    real: (pictures, most), False where a row is only filled up.
    """

    boxes: Tensor
    labels: Tensor
    real: Tensor


class Assignment(NamedTuple):
    """What each place learns: whether anything, of which object (an index), and with which score."""

    taken: Tensor
    owner: Tensor
    score: Tensor


class DenseLoss(nn.Module):
    def __init__(self, width: int, labels: int, strides: tuple[int, ...], side_px: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, labels)
        nn.init.constant_(self.score.bias, -4.0)  # few places show anything
        self.memory = torch.empty(0)  # the encoder's places, which a hook sets
        sizes = [side_px // stride for stride in strides]
        middles = [(torch.arange(size) + 0.5) / size for size in sizes]
        grids = [torch.cartesian_prod(middle, middle).flip(1) for middle in middles]
        self.register_buffer("places", torch.cat(grids), persistent=False)
        reach = torch.cat([torch.full((size * size, 1), 0.5 / size) for size in sizes])
        self.register_buffer("reach", reach, persistent=False)

    def forward(self, coordinates: Tensor, targets: Targets) -> Tensor:
        """coordinates: (pictures, places, 4), the encoder's boxes before their sigmoid."""
        logits = self.score(self.memory)
        found = box_convert(coordinates.sigmoid(), "cxcywh", "xyxy")
        assignment = self.assign(logits.detach().sigmoid(), found.detach(), targets)
        total = assignment.score.sum().clamp(min=1.0)
        wanted = torch.zeros_like(logits)
        labels = targets.labels.gather(1, assignment.owner)
        wanted.scatter_(2, labels[..., None], assignment.score[..., None])
        focus = torch.where(wanted > 0, wanted, 0.75 * logits.detach().sigmoid() ** 2)
        of_kinds = (functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * focus).sum()
        truth = targets.boxes.gather(1, assignment.owner[..., None].expand(-1, -1, 4))
        here, there = found[assignment.taken], truth[assignment.taken]
        of_boxes = 2 * generalized_box_iou_loss(here, there) + 2.5 * (here - there).abs().sum(-1)
        return (2 * of_kinds + (of_boxes * assignment.score[assignment.taken]).sum()) / total

    def assign(self, probability: Tensor, found: Tensor, targets: Targets) -> Assignment:
        """Give each object the TOP places inside it that know it best; a place keeps the object it knows best."""
        near = self.inside(targets.boxes) & targets.real[:, :, None]
        overlap = torch.stack([box_iou(*pair) for pair in zip(targets.boxes, found, strict=True)])
        labels = targets.labels[:, None].expand(-1, probability.shape[1], -1)
        score = probability.gather(2, labels).transpose(1, 2)
        metric = (score.clamp(min=1e-6).sqrt() * (overlap + 1e-4) ** 4) * near
        best = torch.zeros_like(metric).scatter_(2, metric.topk(TOP, dim=2).indices, 1.0).bool() & near
        metric = metric * best
        owner = metric.argmax(1)
        mine = torch.zeros_like(best).scatter_(1, owner[:, None], True) & best
        largest_overlap = (overlap * best).amax(2, keepdim=True).clamp(min=0.1)
        aligned = metric / metric.amax(2, keepdim=True).clamp(min=1e-12) * largest_overlap
        return Assignment(mine.any(1), owner, (aligned * mine).sum(1))

    def inside(self, boxes: Tensor) -> Tensor:
        """Which places (last axis) lie in which boxes, or at the middle of a box smaller than a place."""
        low, high = boxes[:, :, None, :2], boxes[:, :, None, 2:]
        within = ((self.places > low) & (self.places < high)).all(-1)
        return within | ((self.places - (low + high) / 2).abs() <= self.reach).all(-1)
