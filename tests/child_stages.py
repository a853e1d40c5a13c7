"""Stages for the tests of child processes: importable there, and telling which process they ran in."""

import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from tests.fakes import Read
from vec_pipeline.child import Work
from vec_pipeline.children import Children
from vec_pipeline.pipeline import chunks
from vec_pipeline.record import Record, Stage, UserError, Values

__all__ = ["Read", "Tell"]
CALLS = itertools.count()  # of this process


@dataclass(frozen=True, kw_only=True)
class Tell(Stage):
    """content_text -> text that says it, and the process. Some contents do something to that process."""

    reads: ClassVar[tuple[str, ...]] = ("image", "content_text")
    writes: ClassVar[Mapping[str, str]] = {"text": "text", "pid": "number", "call": "number"}

    name: str = field(default="tell", compare=False)
    device: str = "auto"
    sleep_s: float = 0.0
    breaks: str = ""  # what the second device raises at every image

    def load(self) -> str:
        return self.device

    def run(self, model: str, rows: list[Values], at_once: int) -> list[Values]:
        time.sleep(self.sleep_s * len(rows))
        return [self._told(row["content_text"]) for row in rows]

    def _told(self, text: str) -> Values:
        if self.breaks and multiprocessing.current_process().name == "cpu:1":
            raise RuntimeError(self.breaks)
        if "kill" in text:
            os.kill(os.getpid(), signal.SIGKILL)
        if "full" in text:
            raise UserError("the disk is full: free some space")
        if "gpu" in text and not os.environ.get("VEC_TEST_GPU_WORKS"):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if "refused" in text:
            raise ValueError("no such picture")
        return {"text": f"told {text}", "pid": os.getpid(), "call": next(CALLS)}


def when_all_have_begun(children: Children, found: Iterable[Record], size: int = 3) -> Iterator[list[Record]]:
    """Chunks, the first of which waits until every child asks for one: on a busy machine one may begin much later."""
    deadline_s = time.monotonic() + 60
    while len(children._hungry) < len(children._children) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    yield from chunks(found, lambda: size)


def rows_of(children: Children, found: Sequence[Record], size: int = 3, *, by_all: bool = False) -> dict[str, Record]:
    """What comes out, by key; each record must come out once.

    by_all: each of the processes gets some.
    """
    given = when_all_have_begun(children, found, size) if by_all else chunks(found, lambda: size)
    annotated = [record for chunk in children(given) for record in chunk]
    assert len({record.key for record in annotated}) == len(annotated)
    return {record.key: record for record in annotated}


def names_of(number: int) -> list[str]:
    return [f"image{each}" for each in range(number)]


def begin() -> None:
    """What a child does first where nothing is to be tested of it."""


def begin_without_a_second_device() -> None:
    """Fail as a device that is broken does, in the child for cpu:1."""
    if multiprocessing.current_process().name == "cpu:1":
        raise RuntimeError("no such device")


def begin_without_any_device() -> None:
    raise RuntimeError("no such device")


def fingerprint(stage: Stage) -> str:
    return str(stage)


def no_fingerprint_of_device(stage: Any) -> str:
    return str(stage.name)


def work_of(tell: Tell, **options: Any) -> Work:
    """What children of a test do; `options` are those of Work that differ."""
    usual = Work(
        stages=(Read(), tell),
        model_cache_size=5,
        clear_threshold_gb=0.0,
        images_gb=0.0,
        read_threads=1,
        source_columns={},
        max_consecutive_errors=50,
        cpu_threads=1,
        fingerprint=no_fingerprint_of_device,
        begin=begin,
    )
    return replace(usual, **options)
