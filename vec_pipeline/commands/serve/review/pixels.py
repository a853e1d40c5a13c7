"""Notes what corrected pictures look like, in a thread: one that moves is found again by it."""

import logging
import threading
from contextlib import AbstractContextManager
from pathlib import Path

from vec_pipeline.commands.run.corrected import pixels_of
from vec_pipeline.corrections import Corrections
from vec_pipeline.record import UserError

AT_ONCE = 16  # pictures whose hashes are saved together
ALL = 1 << 30

logger = logging.getLogger("vec_pipeline")


class Pixels:
    """Of the corrected pictures of a CSV.

    changing: to be held while `corrections` is used.
    """

    def __init__(self, csv_path: Path, corrections: Corrections, changing: AbstractContextManager[object]) -> None:
        self._csv_path, self._corrections, self._changing = csv_path, corrections, changing
        self._seen: set[str] = set()  # keys of pictures that were looked at, also of those that cannot be opened
        self._has_more = threading.Event()
        self._thread: threading.Thread | None = None

    def note(self) -> None:
        """Let the thread look for pictures that were corrected since."""
        self._has_more.set()
        if not self._thread:
            self._thread = threading.Thread(target=self._run, name="pixels", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            if not (found := pixels_of(self._csv_path)):
                return
            reader, hash_of = found
            while self._has_more.wait():
                self._has_more.clear()
                with self._changing:
                    keys = self._corrections.without_pixels(reader, ALL)
                keys = [key for key in keys if key not in self._seen]
                for start in range(0, len(keys), AT_ONCE):
                    self._save({key: hash_of(key) for key in keys[start : start + AT_ONCE]}, reader)
        except UserError as error:  # such as a full disk; corrections are still found by path
            logger.warning("corrections of pictures that move will not be found: %s", error)

    def _save(self, hashes: dict[str, bytes | None], reader: str) -> None:
        self._seen.update(hashes)
        with self._changing:
            self._corrections.note_pixels({key: each for key, each in hashes.items() if each is not None}, reader)
