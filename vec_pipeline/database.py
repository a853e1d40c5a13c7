"""One SQLite file beside the CSV that threads share. Whatever happens to it costs time, never a row."""

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vec_pipeline.record import UserError

logger = logging.getLogger(__name__)

VERSION = 5  # of the tables; those of another version are dropped
BUSY_S = 30.0  # to wait for another program that has locked the file
Statement = tuple[str, Iterable[tuple[Any, ...]]]  # run once for each tuple


class Database:
    """Reads and transactions, one thread at a time.

    A damaged file is set aside and begun from scratch. A file that another program keeps locked, or that cannot be
    used, is left alone from then on: reads find nothing, and writes have no effect. The same holds without a path, and
    after `close`.

    Raises UserError where the disk is full.
    """

    def __init__(self, path: Path | None, schema: str) -> None:
        self._path = path
        self._schema = schema
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        if path:
            with self._failures_handled():
                self._open(path)

    def read(self, query: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = []
        with self._failures_handled():
            if self._connection:
                rows = self._connection.execute(query, parameters).fetchall()
        return rows

    def write(self, *statements: Statement) -> None:
        """Run statements in one transaction."""
        with self._failures_handled():
            if self._connection:
                with self._connection:  # commits, or rolls back
                    self._connection.execute("BEGIN IMMEDIATE")
                    for sql, rows in statements:
                        self._connection.executemany(sql, rows)

    def close(self, *statements: Statement) -> None:
        """Write a last time, if that is possible. What threads left behind do afterwards has no effect."""
        if not self._lock.acquire(timeout=1):  # another thread waits for another program: the process ends soon
            return
        try:  # SQLite ends the process if a thread closes what another one is reading
            with contextlib.suppress(UserError):
                self.write(*statements)
            if self._connection:
                self._connection.close()
                self._connection = None
        finally:
            self._lock.release()

    def _open(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, BUSY_S, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")  # may lose the last batches with the power
        tables = self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        if self._connection.execute("PRAGMA user_version").fetchone() != (VERSION,):
            drop = "".join(f'DROP TABLE "{name}";' for (name,) in tables)
            self._connection.executescript(f"{drop} PRAGMA user_version = {VERSION}")
        self._connection.executescript(self._schema)

    @contextlib.contextmanager
    def _failures_handled(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.DatabaseError as error:
                is_damaged = type(error) is sqlite3.DatabaseError  # its subclasses are about other things
                if self._path is None or not (is_damaged or isinstance(error, sqlite3.OperationalError)):
                    raise
                self._recover(self._path, error, is_damaged or self._path.is_dir())

    def _recover(self, path: Path, error: sqlite3.DatabaseError, is_damaged: bool) -> None:
        if "full" in str(error):
            raise UserError(f"{path}: {error}: free some disk space, then rerun") from None
        if self._connection:
            self._connection.close()
            self._connection = None
        try:
            if is_damaged:
                set_aside(path, error)
                self._open(path)
                return
        except (OSError, sqlite3.Error) as second:
            self._connection = None  # it may be half open
            error = sqlite3.DatabaseError(f"{error}; {second}")
        logger.warning("%s cannot be used (%s): continuing without it", path, error)
        print(f"{path} cannot be used ({error}): continuing without it")


def set_aside(path: Path, error: sqlite3.Error) -> None:
    """Rename a damaged file, and say so."""
    aside = path.with_suffix(".broken")
    logger.warning("%s is damaged (%s): renamed to %s, a new one is begun", path, error, aside)
    print(f"{path} is damaged and was set aside as {aside.name}: what it held will be computed again")
    path.replace(aside)
    for suffix in ("-wal", "-shm"):  # of the damaged one: they must not be taken for the new one's
        path.with_name(path.name + suffix).unlink(missing_ok=True)
