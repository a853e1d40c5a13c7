"""Finished stage results by image content and settings, in an SQLite file beside the CSV. Deleting it costs time."""

import contextlib
import json
import logging
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vec_pipeline.record import UserError, Values

logger = logging.getLogger(__name__)

SCHEMA = """
CREATE TABLE IF NOT EXISTS results (
    image TEXT, stage TEXT, result TEXT, PRIMARY KEY (image, stage)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS in_flight (  -- a row that is there at the start belongs to a process that was killed
    image TEXT PRIMARY KEY, is_alone INTEGER, deaths INTEGER
) WITHOUT ROWID;
"""
FATAL_DEATHS = 2  # an image that was in flight alone in this many killed processes is not tried again


class Ledger:
    """Results of stages, keyed by the image's content hash and the stage's settings.

    It also knows which images were in flight when an earlier process was killed. A whole batch is under suspicion then;
    its images run alone, and one that is killed alone twice is given up. Raises sqlite3.Error where the file is broken
    or in use.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute(
            "PRAGMA synchronous = NORMAL"
        )  # may lose the last batches with the power, never the file
        self._database.executescript(SCHEMA)
        self._database.execute("UPDATE in_flight SET deaths = deaths + is_alone, is_alone = 0")
        self.deaths: dict[str, int] = dict(self._database.execute("SELECT image, deaths FROM in_flight"))

    def recall(self, stage: str, images: Iterable[str]) -> dict[str, Values]:
        """Return the results there are, by image."""
        found = {}
        for image in images:
            row = self._database.execute(
                "SELECT result FROM results WHERE image = ? AND stage = ?", (image, stage)
            ).fetchone()
            if row:
                found[image] = decode(row[0])
        return found

    def store(self, stage: str, results: Mapping[str, Values]) -> None:
        """Keep a batch of results, by image, in one transaction."""
        rows = [(image, stage, encode(values)) for image, values in results.items()]
        with self._transaction():
            self._database.executemany("INSERT OR REPLACE INTO results VALUES (?, ?, ?)", rows)

    @contextlib.contextmanager
    def in_flight(self, images: list[str]) -> Iterator[None]:
        """Mark images as being worked on: the mark outlives the block only if the process is killed inside."""
        rows = [(image, int(len(images) == 1), self.deaths.get(image, 0)) for image in images]
        with self._transaction():
            self._database.executemany("INSERT OR REPLACE INTO in_flight VALUES (?, ?, ?)", rows)
        try:
            yield
        finally:
            with self._transaction():
                self._database.executemany("DELETE FROM in_flight WHERE image = ?", [(image,) for image in images])

    def is_suspect(self, image: str) -> bool:
        """Whether the image was in flight when a process was killed, so that it should run alone."""
        return image in self.deaths

    def is_fatal(self, image: str) -> bool:
        """Whether the image killed the process each time it was alone in flight."""
        return self.deaths.get(image, 0) >= FATAL_DEATHS

    def forgive(self, images: Iterable[str]) -> None:
        """Clear the suspicion: of images that went well, or that the user wants tried again."""
        for image in images:
            if self.deaths.pop(image, None) is not None:
                self._database.execute("DELETE FROM in_flight WHERE image = ?", (image,))

    def close(self) -> None:
        self._database.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            with self._database:  # commits, or rolls back
                self._database.execute("BEGIN IMMEDIATE")
                yield
        except sqlite3.OperationalError as error:  # the disk is full: no image's fault
            raise UserError(f"{self._path}: {error}: make room and run the same command again") from None


def open_ledger(path: Path) -> Ledger:
    """Open a ledger; a broken one is put aside, since it holds nothing that cannot be made again."""
    try:
        return Ledger(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):  # in use, or a full disk: the file is not to blame
            raise UserError(f"{path}: {error}: make room, or name another file with --output") from None
        logger.warning("%s is broken (%s): a new one is begun", path, error)
        path.replace(path.with_suffix(".broken"))
        return Ledger(path)


def encode(values: Values) -> str:
    """Put a result into JSON; a float32 vector becomes a list that reads back bit for bit."""
    return json.dumps({name: {"float32": v.tolist()} if isinstance(v, np.ndarray) else v for name, v in values.items()})


def decode(text: str) -> Values:
    def vector(item: dict[str, Any]) -> Any:
        return np.array(item["float32"], np.float32) if item.keys() == {"float32"} else item

    decoded: Values = json.loads(text, object_hook=vector)
    return decoded
