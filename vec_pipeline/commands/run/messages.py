"""What libraries say goes to the log beside the CSV, not into the progress bar."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from vec_pipeline.terminal import stream_on

STDERR = 2  # file descriptor

logger = logging.getLogger("vec_pipeline")


def start_log(path: Path, level: str) -> None:
    """Write this package's messages of at least `level` to a file, and other packages' warnings."""
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False
    logging.getLogger().addHandler(handler)
    logging.raiseExceptions = False  # a log that cannot be written stops nothing


@contextmanager
def stderr_in(path: Path) -> Iterator[TextIO]:
    """Append what is written to standard error, by libraries in C too, to a file; yield a stream to the terminal."""
    terminal = os.dup(STDERR)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(log, STDERR)
    os.close(log)
    try:
        is_ours = is_on(sys.stderr, STDERR)
        yield stream_on(terminal, sys.stderr.encoding, line_buffering=True) if is_ours else sys.stderr
    finally:
        if is_on(sys.stderr, STDERR):
            sys.stderr.flush()
        os.dup2(terminal, STDERR)
        os.close(terminal)


def is_on(stream: TextIO | None, descriptor: int) -> bool:
    try:
        return stream is not None and stream.fileno() == descriptor
    except (OSError, ValueError):  # it is not on any
        return False
