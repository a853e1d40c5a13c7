"""Finished stage results by image content and settings, in an SQLite file beside the CSV. Deleting it costs time."""

import contextlib
import json
import logging
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vec_pipeline.record import UserError, Values

logger = logging.getLogger(__name__)

VERSION = 3  # of the tables; a ledger of another version is begun anew
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS results (  -- vectors: the float32 values of all of them, one after the other
    image TEXT, settings TEXT, result TEXT, vectors BLOB, PRIMARY KEY (image, settings)
);
CREATE TABLE IF NOT EXISTS in_flight (  -- live: images in flight with it; over 0 at the start: the process was killed
    image_path TEXT PRIMARY KEY, stage TEXT, live INTEGER, deaths INTEGER, together INTEGER  -- live at the last death
) WITHOUT ROWID;
PRAGMA user_version = {VERSION};
"""
QUERY_IMAGES = 256  # asked for at once
FATAL_DEATHS = 2  # of an image that was alone at the last one
FEW_SUSPECTS = 32  # of more, so many are tried at once: batches hold up to a thousand, and most kills are chance


class Ledger:
    """Results of stages, keyed by the image's content hash and the stage's settings; safe to use from threads.

    It also knows, by path, which images were in flight when an earlier process was killed. All of them are suspects
    then: many are tried a few at a time, few one by one, and one that is in flight alone at another death is given up.

    Raises sqlite3.Error where the file is broken or in use.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._open()
        self.deaths: dict[str, int] = {}  # of suspects, by path
        self.stages: dict[str, str] = {}  # which they were in
        self._together: dict[str, int] = {}  # how many died together, the last time
        marks = self._database.execute("SELECT image_path, stage, deaths, together FROM in_flight")
        for image_path, stage, deaths, together in marks:
            self.deaths[image_path], self.stages[image_path], self._together[image_path] = deaths, stage, together

    def _open(self) -> None:
        self._database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            self._database.execute("PRAGMA journal_mode = WAL")
            # May lose the last batches with the power, never the file.
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._begin()
        except BaseException:
            self._database.close()
            raise

    def _begin(self) -> None:
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            self._database.executescript("DROP TABLE IF EXISTS results; DROP TABLE IF EXISTS in_flight")
        self._database.executescript(SCHEMA)
        self._database.execute("UPDATE in_flight SET deaths = deaths + 1, together = live, live = 0 WHERE live")

    def recall(self, settings: str, images: Iterable[str]) -> dict[str, Values]:
        """Return the results there are, by the image's content hash."""
        images = list(images)
        found: dict[str, Values] = {}
        for start in range(0, len(images), QUERY_IMAGES):
            some = images[start : start + QUERY_IMAGES]
            places = ",".join("?" * len(some))
            query = f"SELECT image, result, vectors FROM results WHERE settings = ? AND image IN ({places})"
            rows: list[tuple[str, str, bytes]] = []
            with self._mended():
                rows = self._database.execute(query, (settings, *some)).fetchall()
            found |= {image: decode(result, vectors) for image, result, vectors in rows}
        return found

    def store(self, settings: str, results: Mapping[str, Values]) -> None:
        """Keep a batch of results, by the image's content hash, in one transaction."""
        rows = [(image, settings, *encode(values)) for image, values in results.items()]
        with self._transaction():
            self._database.executemany("INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?)", rows)

    @contextlib.contextmanager
    def in_flight(self, image_paths: Iterable[str], stage: str) -> Iterator[None]:
        """Mark images as being worked on: the mark outlives the block only if the process is killed inside."""
        paths = list(image_paths)
        rows = [(path, stage, len(paths), self.deaths.get(path, 0), self._together.get(path, 0)) for path in paths]
        with self._transaction():
            self._database.executemany("INSERT OR REPLACE INTO in_flight VALUES (?, ?, ?, ?, ?)", rows)
        try:
            yield
        finally:
            with contextlib.suppress(sqlite3.ProgrammingError), self._transaction():  # closed: the marks are gone
                self._unmark(paths)

    def _unmark(self, image_paths: Iterable[str]) -> None:
        for path in image_paths:
            if path in self.deaths:  # still a suspect
                self._database.execute("UPDATE in_flight SET live = 0 WHERE image_path = ?", (path,))
            else:
                self._database.execute("DELETE FROM in_flight WHERE image_path = ?", (path,))

    def suspects(self) -> dict[str, int]:
        """By path: how many of them may be in flight at once."""
        return {path: FEW_SUSPECTS if together > FEW_SUSPECTS else 1 for path, together in self._together.items()}

    def is_fatal(self, image_path: str) -> bool:
        """Whether the image was in flight at two deaths or more, the last time alone."""
        return self.deaths.get(image_path, 0) >= FATAL_DEATHS and self._together[image_path] == 1

    def forgive(self, image_paths: Iterable[str]) -> None:
        """Clear the suspicion: of images that went well, or that the user wants tried again."""
        with self._transaction():
            for path in image_paths:
                if self.deaths.pop(path, None) is not None:
                    del self._together[path]
                    self._database.execute("DELETE FROM in_flight WHERE image_path = ?", (path,))

    def close(self) -> None:
        """Close the file. What is still in flight then, in a thread left behind, was not killed and leaves no mark."""
        with self._lock:  # SQLite ends the process where a thread closes what another one is reading
            with contextlib.suppress(sqlite3.Error):  # a full disk, a second closing
                self._database.execute("DELETE FROM in_flight WHERE deaths = 0")
                self._database.execute("UPDATE in_flight SET live = 0")
            self._database.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            with self._mended(), self._database:  # commits, or rolls back
                self._database.execute("BEGIN IMMEDIATE")
                yield
        except sqlite3.OperationalError as error:  # the disk is full: no image's fault
            raise UserError(f"{self._path}: {error}: make room and run the same command again") from None

    @contextlib.contextmanager
    def _mended(self) -> Iterator[None]:
        """One thread at a time; a file that turns out to be damaged is set aside, and the block done with."""
        with self._lock:
            try:
                yield
            except sqlite3.DatabaseError as error:
                if type(error) is not sqlite3.DatabaseError:  # its subclasses tell of other things
                    raise
                self._database.close()
                set_aside(self._path, error)
                self._open()


class NoLedger(Ledger):
    """`ledger: false`: nothing is kept, and a kill leaves no suspects."""

    def __init__(self) -> None:
        self.deaths = {}
        self.stages = {}
        self._together = {}

    def recall(self, settings: str, images: Iterable[str]) -> dict[str, Values]:
        return {}

    def store(self, settings: str, results: Mapping[str, Values]) -> None:
        pass

    @contextlib.contextmanager
    def in_flight(self, image_paths: Iterable[str], stage: str) -> Iterator[None]:
        yield

    def forgive(self, image_paths: Iterable[str]) -> None:
        pass

    def close(self) -> None:
        pass


def open_ledger(path: Path) -> Ledger:
    """Open a ledger; a broken one is put aside, since it holds nothing that cannot be made again."""
    try:
        return Ledger(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and not path.is_dir():  # a full disk: the file is not to blame
            raise UserError(f"{path}: {error}: make room, or name another file with --output") from None
        set_aside(path, error)
        return Ledger(path)


def set_aside(path: Path, error: sqlite3.Error) -> None:
    """Rename a damaged ledger, and say so."""
    aside = path.with_suffix(".broken")
    logger.warning("%s is broken (%s): it is now %s, and a new one is begun", path, error, aside)
    print(f"{path} is damaged and was set aside as {aside.name}: what it held will be computed again")
    path.replace(aside)
    for suffix in ("-wal", "-shm"):  # of the broken one: they must not be taken for the new one's
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def encode(values: Values) -> tuple[str, bytes]:
    """Put a result into JSON, and its vectors as float32 into one blob that the JSON points into."""
    vectors: list[np.ndarray[Any, Any]] = []
    plain = {}
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            vectors.append(value.astype(np.float32).ravel())
            plain[name] = {"float32": vectors[-1].size}
        else:
            plain[name] = value
    return json.dumps(plain), b"".join(vector.tobytes() for vector in vectors)


def decode(text: str, vectors: bytes) -> Values:
    """Put a result together again."""
    values: Values = json.loads(text)
    offset = 0
    for name, value in values.items():
        if isinstance(value, dict) and value.keys() == {"float32"}:
            size = value["float32"]
            values[name] = np.frombuffer(vectors, np.float32, size, offset).copy()
            offset += 4 * size
    return values
