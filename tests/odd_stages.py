"""Stages as a stranger may write them: of every type of column, misspelt, silent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from vec_pipeline.record import Stage, Values


@dataclass(frozen=True, kw_only=True)
class Measure(Stage):
    """image -> a column of every type."""

    reads: ClassVar[tuple[str, ...]] = ("image",)
    writes: ClassVar[Mapping[str, str]] = {
        "width_px": "number",
        "boxes": "json",
        "facts": "json",
        "corners": "vector",
        "histogram": "vector",
        "original": "file",
    }
    intermediates: ClassVar[Mapping[str, str]] = {"half": "image"}

    batch_size: int = 4

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        return [self.measure(row["image"]) for row in rows]

    def measure(self, image: Any) -> Values:
        width, height = image.size
        return {
            "width_px": np.float32(width),
            "boxes": [{"label": 'a "thing", or two', "box": [0, 0.5, width, height]}],
            "facts": {"mode": image.mode, "none": None},
            "corners": np.array([[0.0, 0.0], [width, height]], np.float32),
            "histogram": np.array(image.convert("L").histogram(), np.int64) * 2**33,
            "original": __file__,
            "half": image.resize((width // 2, height // 2)),
        }


@dataclass(frozen=True, kw_only=True)
class MeasureHalf(Stage):
    """half -> its width: an intermediate image, also from the result cache."""

    reads: ClassVar[tuple[str, ...]] = ("half",)
    writes: ClassVar[Mapping[str, str]] = {"half_px": "number"}

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        return [{"half_px": row["half"].width} for row in rows]


@dataclass(frozen=True, kw_only=True)
class Misspelt(Stage):
    """Returns another key than it declares."""

    reads: ClassVar[tuple[str, ...]] = ("image",)
    writes: ClassVar[Mapping[str, str]] = {"brightness": "number"}

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        return [{"brigthness": 0.5} for _ in rows]


@dataclass(frozen=True, kw_only=True)
class Silent(Stage):
    """A captioner that answers nothing, but to large images."""

    reads: ClassVar[tuple[str, ...]] = ("image",)
    writes: ClassVar[Mapping[str, str]] = {"text": "text"}

    answer: str = " \n"

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        return [{"text": self.answer} for _ in rows]


@dataclass(frozen=True, kw_only=True)
class Old(Stage):
    """Written for an earlier version of the worker."""

    reads: ClassVar[tuple[str, ...]] = ("image",)
    writes: ClassVar[Any] = ("brightness",)

    def run(self, model: Any, rows: list[Values]) -> list[Values]:  # type: ignore[override]
        return [{"brightness": 0.5} for _ in rows]
