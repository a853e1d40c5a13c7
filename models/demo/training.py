"""What the trainings of the detector, the tower and what begins with the tower share: progress in steps, and export."""

import json
import random
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

Item = TypeVar("Item")


class Progress:
    """How many of a training's steps are done, over all its runs."""

    def __init__(self, steps: int) -> None:
        self.steps, self.step = max(1, steps), 0

    @property
    def done(self) -> float:
        """The share of the steps that is done, 0 to 1."""
        return min(1.0, self.step / self.steps)

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]


class Renewed(Generic[Item]):
    """A pool of drawn examples that are gradually replaced, so that a training step does not wait for drawing."""

    def __init__(self, size: int, draw: Callable[[random.Random], Item], rng: random.Random) -> None:
        self._draw = draw
        self._items = [draw(rng) for _ in range(size)]
        self._oldest = 0

    def sample(self, number: int, new: int, rng: random.Random) -> list[Item]:
        """`number` examples, after the oldest `new` have been replaced."""
        for _ in range(new):
            self._items[self._oldest] = self._draw(rng)
            self._oldest = (self._oldest + 1) % len(self._items)
        return rng.sample(self._items, number)


def export_half(model: Any, processor: Any, folder: Path) -> None:
    """Write a transformers model with float16 weights, which load as float32, and its image processor."""
    folder.mkdir(parents=True, exist_ok=True)
    deepcopy(model).half().save_pretrained(folder)
    processor.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")
    for file in folder.iterdir():
        file.chmod(0o644)  # save_pretrained makes the weights readable by their owner only


def use_one_thread(seed: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
