"""Changes to files of other people that can be undone, to the very bytes of before; noted in a file beside the CSV."""

import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, Self
from uuid import uuid4

from vec_pipeline.commands.export.in_place import Splice
from vec_pipeline.commands.export.xmp_packet import Items
from vec_pipeline.record import UserError
from vec_pipeline.sinks.csv_file import sync_folder

SCHEMA = """
CREATE TABLE IF NOT EXISTS changes (path BLOB, after BLOB, before BLOB, start INTEGER, end INTEGER, old BLOB,
  added TEXT, PRIMARY KEY (path, after));  -- after, before: hashes of the file; before is NULL where there was none
"""
WRITABLE = 0o222  # by anybody; root may write into all files, and should not into these
SIDECAR = ".xmp"


class Changed(Exception):  # noqa: N818 (it says what happened)
    """Another program has changed a file meanwhile."""


class ReadOnly(Exception):  # noqa: N818 (it says what happened)
    """A file that nobody may write into."""


class File(NamedTuple):
    """A file as it was read. content, status: None where there is none."""

    path: Path
    content: bytes | None
    status: os.stat_result | None


class Base(NamedTuple):
    """What a file is changed from.

    content: that from before our changes if the file is as we left it, else that of now; None for no file.
    added: what we had added to it where another program has changed it since.
    """

    content: bytes | None
    added: dict[str, Items]


class Journal:
    """How files were before they were changed. Other threads may ask for a `base` while one thread changes files.

    Raises UserError where its file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with self._failures_named():
            self._connection = sqlite3.connect(path, 0.0, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # two exports would note each other's changes
            self._connection.execute("PRAGMA synchronous = EXTRA")
            self._connection.executescript(f"BEGIN EXCLUSIVE; {SCHEMA} COMMIT")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def base(self, file: File) -> Base:
        rows = self._run("SELECT * FROM changes WHERE path = ? ORDER BY rowid", os.fsencode(file.path))
        for _, after, before, start, end, old, _ in rows:
            if file.content is not None and digest(file.content) == after:
                return Base(None if before is None else Splice(start, end, old).applied(file.content), {})
        added: dict[str, Items] = {}
        for row in rows:  # two after a kill, which came before or after the second change
            for name, items in json.loads(row[-1]).items():
                added.setdefault(name, []).extend((language, text) for language, text in items)
        return Base(file.content, added)

    def change(self, file: File, base: Base, splice: Splice, added: dict[str, Items]) -> None:
        """Change a file once it is noted how it was. Raises Changed, ReadOnly and OSError."""
        new, path = splice.applied(base.content or b""), os.fsencode(file.path)
        before = None if base.content is None else digest(base.content)
        note = (path, digest(new), before, *splice.reverse(base.content or b""), json.dumps(added))
        self._run("INSERT OR REPLACE INTO changes VALUES (?, ?, ?, ?, ?, ?, ?)", *note)
        replace(file, new)
        self._run("DELETE FROM changes WHERE path = ? AND after != ?", path, digest(new))

    def paths(self) -> list[Path]:
        return [Path(os.fsdecode(path)) for (path,) in self._run("SELECT DISTINCT path FROM changes ORDER BY path")]

    def restore(self, file: File) -> bool:
        """Take a file back to what it was; return whether it was another. Raises Changed, ReadOnly and OSError."""
        path = os.fsencode(file.path)
        now = None if file.content is None else digest(file.content)
        rows = self._run("SELECT before, after FROM changes WHERE path = ?", path)
        is_original = now in {before for before, _ in rows}
        if not is_original:
            if now not in {after for _, after in rows}:
                raise Changed
            content = self.base(file).content
            if content is None:
                file.path.unlink()
            else:
                replace(file, content)
        self._run("DELETE FROM changes WHERE path = ?", path)
        return not is_original

    def _run(self, query: str, *values: object) -> list[Any]:
        with self._lock, self._failures_named():
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def _failures_named(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_BUSY:
                raise UserError(f"{self._path} is in use by another export: wait for it") from None
            raise UserError(f"{self._path} cannot be used ({error}): free some disk space, or move it away") from None


def digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).digest()


def opened(path: Path) -> File:
    """Raises ReadOnly, and OSError where a file that is there cannot be read."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return File(path, None, None)
    if not status.st_mode & WRITABLE:
        raise ReadOnly
    return File(path, path.read_bytes(), status)


def replace(file: File, content: bytes) -> None:
    """Give a file another content, atomically; owner, mode and extended attributes stay, and the times of a picture.

    Raises Changed where it is not what was read, and OSError.
    """
    file.path.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.path.with_name(f".{uuid4().hex}.new")
    try:
        with temporary.open("xb") as new:
            new.write(content)
            new.flush()
            if file.status:
                take_over(temporary, file.path, file.status)
            os.fsync(new.fileno())
        if not is_as_read(file):
            raise Changed
        temporary.replace(file.path)
        sync_folder(file.path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def take_over(new: Path, old: Path, status: os.stat_result) -> None:
    if (new.stat().st_uid, new.stat().st_gid) != (status.st_uid, status.st_gid):
        os.chown(new, status.st_uid, status.st_gid)
    shutil.copystat(old, new)
    if old.suffix == SIDECAR:  # by its time, programs see that it has changed
        os.utime(new)


def is_as_read(file: File) -> bool:
    try:
        now = file.path.stat()
    except FileNotFoundError:
        return file.status is None
    before = file.status
    return before is not None and (now.st_ino, now.st_size, now.st_mtime_ns) == (
        before.st_ino,
        before.st_size,
        before.st_mtime_ns,
    )
