"""Stages that need no model, for tests that run the worker in a child process."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vec_pipeline.record import Stage, Values


@dataclass(frozen=True, kw_only=True)
class Say(Stage):
    """A captioner that begins as it is told, and goes on with the size of the picture."""

    reads: ClassVar[tuple[str, ...]] = ("image",)
    writes: ClassVar[Mapping[str, str]] = {"text": "text", "clip_score": "number"}
    speed_options: ClassVar[tuple[str, ...]] = ("batch_size", "seconds_per_image")

    begin: str = "A picture"
    seconds_per_image: float = 0.0

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        time.sleep(self.seconds_per_image * len(rows))
        sizes = [row["image"].size for row in rows]
        return [{"text": f"{self.begin} of {x} by {y} pixels.", "clip_score": 1 / x} for x, y in sizes]


@dataclass(frozen=True, kw_only=True)
class Unloadable(Stage):
    """A model whose file is damaged in a way that only loading shows."""

    reads: ClassVar[tuple[str, ...]] = ("image",)
    writes: ClassVar[Mapping[str, str]] = {"text": "text"}

    def load(self) -> Any:
        raise RuntimeError("unexpected end of the weights")
