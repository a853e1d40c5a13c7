"""Signals and standard streams: what a terminal, a closed pipe or `nohup` does to a program."""

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TextIO

INTERRUPTED = 130  # exit status
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """A block in which the signals to end call a handler, but those that are ignored, as by nohup."""
    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


class Interrupt:
    """Ctrl-C, SIGTERM, SIGHUP: the first stops the run, but never within a write; the second ends the process at once.

    Its `on_signal` is the handler, see `handled`.
    """

    def __init__(self) -> None:
        self._is_asked = False
        self._is_shielded = False

    def on_signal(self, number: int, frame: object) -> None:
        if self._is_asked:
            os._exit(INTERRUPTED)
        self._is_asked = True
        if not self._is_shielded:
            raise KeyboardInterrupt

    def accept(self) -> None:
        """It has been acted on: what follows goes on to its end."""
        self._is_asked = False

    @contextmanager
    def shield(self) -> Iterator[None]:
        """A block that an interrupt waits for."""
        self._is_shielded = True
        try:
            yield
        finally:
            self._is_shielded = False
        if self._is_asked:
            raise KeyboardInterrupt


class Unbreakable(io.FileIO):
    """A file descriptor that takes whatever is written, also when the reader of a pipe or the terminal has gone."""

    def write(self, data: "memoryview | bytes") -> int:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError:
            return len(data)


def protect() -> None:
    """Replace the standard streams. To be called before any file is opened: a closed descriptor's number is reused."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        encoding = old.encoding if old else "utf-8"
        line_buffering = descriptor == 2 or os.isatty(descriptor)
        setattr(sys, name, stream_on(descriptor, encoding, line_buffering=line_buffering))


def stream_on(descriptor: int, encoding: str, *, line_buffering: bool) -> TextIO:
    """A stream of text on a descriptor, which it does not close, that takes whatever is written."""
    raw = io.BufferedWriter(Unbreakable(descriptor, "w", closefd=False))  # type: ignore[type-var]
    return io.TextIOWrapper(raw, encoding, errors="backslashreplace", line_buffering=line_buffering)


def end_process(status: int) -> None:
    """End the process at once: a model may still be at work in a thread, and nobody needs what it computes."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def duration(seconds: float) -> str:
    """1:02:03, or 2:03 under an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def visible(text: str) -> str:
    """Text for a terminal: the name of a file may hold what moves the cursor or ends the line."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def plural(number: int, noun: str) -> str:
    """1 image, 1,000 images."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
