"""Groups of near-duplicates among the rows that are reviewed, which a thread finds while they are looked at."""

import logging
import threading
import time
from pathlib import Path

import numpy as np

from vec_pipeline.annotations import CsvReader
from vec_pipeline.commands.report import DEFAULT_COSINE
from vec_pipeline.commands.report.rows import vectors_for
from vec_pipeline.commands.search.vector_cache import NoVectors, Vectors
from vec_pipeline.commands.serve.review.table import Array
from vec_pipeline.record import UserError
from vec_pipeline.similarity import group

REST = 20  # times as long as the last search for groups took, until the next one where rows have come

logger = logging.getLogger("vec_pipeline")


class Groups:
    """The group of each row, 0 for none; as `report` finds them, by the vectors that it compares.

    csv_path: of rows with vectors.
    """

    def __init__(self, csv_path: Path) -> None:
        self._csv_path = csv_path
        self._found: Array | None = None  # int64 of shape (rows at that time,)
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._rests_until_s = 0.0

    @property
    def is_known(self) -> bool:
        """Whether they have been looked for, at least among the rows of some time ago."""
        return self._found is not None

    def of(self, starts: Array) -> Array:
        """The groups of rows that begin at these bytes of the CSV, as far as they are known: int64 of shape (rows,).

        A thread looks for them where there are more rows than there were.
        """
        found = self._found if self._found is not None else np.zeros(0, np.int64)
        with self._starting:
            is_free = not (self._thread and self._thread.is_alive()) and time.monotonic() >= self._rests_until_s
            if is_free and len(starts) > len(found):
                self._thread = threading.Thread(target=self._find, args=(starts,), name="near-duplicates", daemon=True)
                self._thread.start()
        return np.pad(found[: len(starts)], (0, max(0, len(starts) - len(found))))

    def _find(self, starts: Array) -> None:
        began_s = time.monotonic()
        found = np.zeros(len(starts), np.int64)
        try:
            with CsvReader(self._csv_path, machine=True) as reader:
                column = vectors_for(reader, "")
            with Vectors(self._csv_path, column) as vectors:
                places = np.searchsorted(starts, vectors.places[:, 0])
                is_known = vectors.places[:, 0] <= starts[-1]  # a row may have come meanwhile
                found[places[is_known]] = group(vectors.matrix, DEFAULT_COSINE)[is_known]
        except NoVectors:
            pass
        except (UserError, OSError, MemoryError) as error:
            logger.warning("no near-duplicates are found among the rows to review: %s", error)
        self._rests_until_s = time.monotonic() + REST * (time.monotonic() - began_s)
        self._found = found
