"""A describer for the tests of consistency: it runs out of memory above a number of pixels, or fails every time."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from vec_pipeline.record import Values
from vec_pipeline.stages.describe import Describe


@dataclass(frozen=True, kw_only=True)
class HungryDescribe(Describe):
    """Its own options count as speed options: they stand for the state of the machine, not for settings."""

    speed_options: ClassVar[tuple[str, ...]] = (*Describe.speed_options, "largest_px", "is_broken")

    name: str = field(default="describe", compare=False)
    largest_px: int = 10**9
    is_broken: bool = False

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        if self.is_broken:
            raise ValueError("the describer is broken")
        if max(row["image"].width * row["image"].height for row in rows) > self.largest_px:
            raise MemoryError
        return super().run(model, rows, at_once)
