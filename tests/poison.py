"""Stages for the tests of faults: on some pictures they end the process, as the libraries of real ones can."""

import ctypes
import os
import signal
import time
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from vec_pipeline.record import Stage, Values


@dataclass(frozen=True, kw_only=True)
class Poison(Stage):
    """image -> text. Ends the process on pictures with `poison` in their name."""

    reads: ClassVar[tuple[str, ...]] = ("image", "path")
    writes: ClassVar[tuple[str, ...]] = ("text",)
    tuning: ClassVar[tuple[str, ...]] = (*Stage.tuning, "how", "seconds")

    how: Literal["live", "SIGKILL", "SIGSEGV"] = "live"
    seconds: float = 0.0  # that each picture takes
    batch_size: int = 8

    def run(self, model: Any, rows: list[Values]) -> list[Values]:
        return [self.describe(row) for row in rows]

    def describe(self, row: Values) -> Values:
        time.sleep(self.seconds)
        end_process("poison" in row["path"], self.how)
        return {"text": f"A picture of {row['image'].width} by {row['image'].height}. There is no text."}


@dataclass(frozen=True, kw_only=True)
class PoisonReading(Stage):
    """path -> nothing. Ends the process while pictures are read and decoded, in the threads that do so."""

    reads: ClassVar[tuple[str, ...]] = ("path",)
    makes: ClassVar[tuple[str, ...]] = ("checked",)
    tuning: ClassVar[tuple[str, ...]] = (*Stage.tuning, "how")
    runs_ahead: ClassVar[bool] = True

    how: Literal["live", "SIGKILL", "SIGSEGV"] = "live"

    @property
    def name(self) -> str:
        return "poison_reading"

    def run(self, model: Any, rows: list[Values]) -> list[Values]:
        end_process(any("poison" in row["path"] for row in rows), self.how)
        return [{"checked": True} for _ in rows]


def end_process(is_due: bool, how: str) -> None:
    if is_due and how == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    elif is_due and how == "SIGSEGV":
        ctypes.string_at(0)  # reads address 0
