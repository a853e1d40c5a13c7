"""What the user sees of a run: a bar in a terminal, plain lines elsewhere, and the summary at the end."""

import contextlib
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from vec_pipeline.device import gpu_free_gb
from vec_pipeline.record import Record
from vec_pipeline.terminal import duration, plural

if TYPE_CHECKING:
    from vec_pipeline.children import Children
    from vec_pipeline.downloads import Statistics
    from vec_pipeline.executor import Executor

BAR_INTERVAL_S = 0.5
LINE_INTERVAL_S = 30.0


class Progress:
    """Shows done/total, speed, time left, errors, free GPU memory and the current stage until it is closed.

    total: images to do in this run; None where that is not known.
    about: an estimate of it, or 0.
    downloads: what has been fetched so far, if anything is.
    """

    def __init__(
        self,
        total: int | None,
        executor: "Executor | Children",
        stream: TextIO | None = None,
        downloads: "Statistics | None" = None,
        about: int = 0,
    ) -> None:
        self._total, self._about = total, about
        self.downloads = downloads
        self.executor = executor
        self.stream = stream or sys.stderr
        self.done = 0
        self.errors: Counter[str] = Counter()  # by kind: "stage: ExceptionName"
        self._start_s = time.monotonic()
        self._is_terminal = self.stream.isatty()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._show_at_intervals, daemon=True)
        self._thread.start()

    @property
    def total(self) -> int | None:
        """The total or its estimate, until more than that are done; None where there is neither."""
        is_useful = self._total is None and self._about and self.done <= self._about
        return self._about if is_useful else self._total

    def count(self, records: Sequence[Record]) -> None:
        """Count rows that were saved."""
        self.done += len(records)
        self.errors.update(": ".join(record.error.split(": ")[:2]) for record in records if record.error)

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._show("\n")

    def line(self) -> str:
        """One line that says where the run stands."""
        seconds = time.monotonic() - self._start_s
        speed = self.done / seconds if seconds else 0.0
        about = "about " if self._total is None else ""
        of_total = "" if self.total is None else f"/{about}{self.total:,}"
        parts = [f"{self.done:,}{of_total}", f"{speed:.2f} images/s"]
        if speed and self.total is not None:
            parts.append(f"{duration((self.total - self.done) / speed)} left")
        if self.errors:
            parts.append(plural(self.errors.total(), "error"))
        if self.downloads and self.downloads.line():
            parts.append(self.downloads.line())
        if (free_gb := gpu_free_gb()) is not None:
            parts.append(f"{free_gb:.1f} GB GPU free")
        if self.executor.at_work:
            parts.append(" + ".join(self.executor.at_work))
        return ", ".join(parts)

    def summary(self) -> str:
        """Rows, errors by kind, speed, and seconds by stage and model load."""
        seconds = time.monotonic() - self._start_s
        lines = [f"{plural(self.done, 'image')} in {duration(seconds)}: {self.done / max(seconds, 1e-9):.2f} images/s"]
        width = max([12, *map(len, self.executor.seconds)])
        for name, spent in self.executor.seconds.items():
            load_s = self.executor.models.load_seconds[name]
            lines.append(f"  {name:<{width}} {spent - load_s:8.1f} s, and {load_s:.1f} s to load its model")
        if self.downloads and self.downloads.line():
            lines.append(f"  {self.downloads.line()}")
        for name, number in self.executor.retries.items():
            lines.append(f"  {number:,} x {name}: a batch failed and was tried in halves, see the log")
        lines += [f"  {number:,} x {kind}" for kind, number in self.errors.most_common()]
        return "\n".join(lines)

    def _show_at_intervals(self) -> None:
        while not self._stopped.wait(BAR_INTERVAL_S if self._is_terminal else LINE_INTERVAL_S):
            self._show("" if self._is_terminal else "\n")

    def _show(self, end: str) -> None:
        line = self.line()
        if self._is_terminal:
            filled = 20 * self.done // max(self.total or 1, 1)
            bar = "" if self.total is None else f"[{'#' * filled}{'.' * (20 - filled)}] "
            width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be cleared
            line = "\r\033[K" + (bar + line)[:width]
        with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
            self.stream.write(line + end)
            self.stream.flush()
