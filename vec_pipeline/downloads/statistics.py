"""Counts downloads: how many, how many failed and why, and how fast they come."""

import threading
import time
from collections import Counter

MOST_KINDS = 4  # of failures that the line names


class Statistics:
    """Threads may share it.

    ok: downloads. found: pictures that were in the store already. failed: by the kind of failure. bytes: received.
    """

    def __init__(self) -> None:
        self.ok = 0
        self.found = 0
        self.failed: Counter[str] = Counter()
        self.bytes = 0
        self._begun_s: float | None = None
        self._lock = threading.Lock()

    def note_request(self) -> None:
        """From the first request on, the time counts."""
        if self._begun_s is None:
            self._begun_s = time.monotonic()

    def note_bytes(self, number: int) -> None:
        with self._lock:
            self.bytes += number

    def note_ok(self) -> None:
        with self._lock:
            self.ok += 1

    def note_found(self) -> None:
        with self._lock:
            self.found += 1

    def note_failure(self, kind: str) -> None:
        with self._lock:
            self.failed[kind] += 1

    @property
    def mb_per_s(self) -> float:
        passed_s = time.monotonic() - self._begun_s if self._begun_s is not None else 0.0
        return self.bytes / 1e6 / passed_s if passed_s else 0.0

    def line(self) -> str:
        """Such as: 1,234 fetched, 20 in the store, 56 failed (HTTP404 40, Timeout 16), 12.3 MB/s. Empty at first."""
        with self._lock:
            failed = self.failed.copy()
        if not (self.ok or self.found or failed):
            return ""
        named = failed.most_common(MOST_KINDS)
        others = failed.total() - sum(number for _, number in named)
        kinds = [f"{kind} {number:,}" for kind, number in named] + ([f"others {others:,}"] if others else [])
        parts = [f"{self.ok:,} fetched"]
        parts += [f"{self.found:,} in the store"] if self.found else []
        parts += [f"{failed.total():,} failed ({', '.join(kinds)})"] if failed else []
        return ", ".join([*parts, f"{self.mb_per_s:.1f} MB/s"])
