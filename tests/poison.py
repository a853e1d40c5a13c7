"""Stages for the tests of faults: on some pictures they end the process, as the libraries of real ones can."""

import ctypes
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from vec_pipeline.record import Stage, Values, Worker


@dataclass(frozen=True, kw_only=True)
class Poison(Stage):
    """image -> text. Ends the process on pictures with `poison` in their name."""

    reads: ClassVar[tuple[str, ...]] = ("image", "image_path")
    writes: ClassVar[Mapping[str, str]] = {"text": "text"}
    speed_options: ClassVar[tuple[str, ...]] = (*Stage.speed_options, "how", "seconds", "slow_s", "more_letters")

    how: Literal["live", "SIGKILL", "SIGSEGV"] = "live"
    seconds: float = 0.0  # that each picture takes
    slow_s: float = 0.0  # that one with `slow` in its name takes
    more_letters: int = 0
    batch_size: int = 8

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        return [self.describe(row) for row in rows]

    def describe(self, row: Values) -> Values:
        time.sleep(self.slow_s if "slow" in row["image_path"] else self.seconds)
        end_process("poison" in row["image_path"], self.how)
        size = f"{row['image'].width} by {row['image'].height}"
        return {"text": f"A picture of {size}. There is no text.{'x' * self.more_letters}"}


@dataclass(frozen=True, kw_only=True)
class PoisonReading(Stage):
    """image_path -> nothing. Ends the process while pictures are read and decoded, in the threads that do so."""

    reads: ClassVar[tuple[str, ...]] = ("image_path",)
    intermediates: ClassVar[Mapping[str, str]] = {"checked": "json"}
    speed_options: ClassVar[tuple[str, ...]] = (*Stage.speed_options, "how")
    worker: ClassVar[Worker] = "reader"

    name: str = field(default="poison_reading", compare=False)
    how: Literal["live", "SIGKILL", "SIGSEGV"] = "live"

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        end_process(any("poison" in row["image_path"] for row in rows), self.how)
        return [{"checked": True} for _ in rows]


def end_process(is_due: bool, how: str) -> None:
    if is_due and how == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    elif is_due and how == "SIGSEGV":
        ctypes.string_at(0)  # reads address 0
