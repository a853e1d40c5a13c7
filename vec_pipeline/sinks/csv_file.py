"""Rows in one CSV file: a chunk is one append and one fsync; repaired after a kill, locked against a second worker."""

import contextlib
import fcntl
import json
import os
import re
import tempfile
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from vec_pipeline.key_set import KeySet
from vec_pipeline.record import COLUMNS, Record, UserError, beside
from vec_pipeline.sinks.csv_rows import (
    Contents,
    cells_of,
    key_and_error,
    read_contents,
    refuse_all_but_a_file,
    whole_rows,
)

TIMESTAMP_COLUMN = list(COLUMNS).index("timestamp")
QUOTED = re.compile(r'[",\r\n]')


class CsvFile:
    """The CSV sink.

    path: the file; made, with its folder, where it is missing.
    extra_columns: columns after those of the contract; a file that was begun without them stays without them.
    known: what `contents_of` has read of the file, so that a large one is not read twice.
    retry_errors: leave images whose row has an error out of `keys`, and replace their rows by the new ones; a row with
        an error that was written since is replaced as well, if its image comes again.
    refresh: leave all images out of `keys`, and replace their rows when `replace_rows` is called.
    drop: keys of rows that `replace_rows` leaves out.

    Raises UserError where the file cannot be used: another header, a directory, a read-only place, another worker.
    The file is left as it was then.
    """

    def __init__(
        self,
        path: Path,
        extra_columns: Collection[str] = (),
        known: Contents | None = None,
        *,
        retry_errors: bool = False,
        refresh: bool = False,
        drop: Collection[str] = (),
    ) -> None:
        self.path = path
        self._lock, self._file = self._open()
        try:
            is_known = known is not None and known.size_bytes == os.fstat(self._file.fileno()).st_size
            full_header = (*COLUMNS, *extra_columns)
            contents = known if known and is_known else read_contents(self._file, path, full_header)
            self.header = full_header if refresh or not contents.header else contents.header
            self._repair(contents)
        except BaseException:
            self._file.close()
            self._lock.close()
            raise
        self._dropped = contents.keys & KeySet(drop)
        self.rows = contents.rows - len(self._dropped)
        self.failed = contents.failed - self._dropped
        self.error_examples = [example for example in contents.error_examples if example[0] not in self._dropped]
        replaced = contents.keys if refresh else contents.failed if retry_errors else KeySet()
        self._replaced = replaced - self._dropped
        self._keys = contents.keys - self._replaced
        self._is_refresh, self._retries = refresh, retry_errors
        self._new_rows = Spool(path.parent)

    def keys(self) -> KeySet:
        """The images that need no work."""
        return self._keys

    @property
    def replaces_rows(self) -> bool:
        """Whether rows that are written may wait for `replace_rows` until they are saved."""
        return bool(self._replaced)

    def write(self, records: Sequence[Record]) -> None:
        """Append rows. Raises UserError on a full disk, with whole rows left."""
        rows = {record.key: encode_row(row_of(record, self.header)) for record in records}
        self._append(b"".join(row for key, row in rows.items() if key not in self._replaced))
        replaced = [key for key in rows if key in self._replaced]
        for key in replaced:
            self._save(self._new_rows.add, key, rows[key])
        self.rows += len(rows) - len(replaced)
        self._take_note(records)

    def new_row(self, key: str) -> bytes | None:
        """The row that `replace_rows` will write instead of an old one; None where there is none."""
        return self._new_rows.get(key)

    def _take_note(self, records: Sequence[Record]) -> None:
        keys = {record.key for record in records}
        self.error_examples = [example for example in self.error_examples if example[0] not in keys]
        for record in records:
            self._keys.add(record.key)
            if not record.error:
                self.failed.discard(record.key)
                continue
            self.failed.add(record.key)
            if self._retries:
                self._replaced.add(record.key)
            if len(self.error_examples) < 3:
                self.error_examples.append((record.key, record.error))

    def close(self) -> bool:
        """Replace the rows that were annotated again because of their errors, and let go of the file.

        Return whether all rows that were written are saved: those of a refresh only after `replace_rows`.
        """
        try:
            if not self._is_refresh:
                self.replace_rows()
            return not self._is_refresh
        finally:
            self._new_rows.close()
            self._file.close()
            self._lock.close()

    def _open(self) -> tuple[FileIO, FileIO]:
        """The lock and the file. The lock stands beside the file, since it must outlive a replacement of it."""
        try:
            refuse_all_but_a_file(self.path)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = lock_beside(self.path.resolve())
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}): name another with --output") from None
        try:
            is_new = not self.path.exists()
            file = self.path.open("ab+", buffering=0)
            if is_new:
                sync_folder(self.path.parent)
        except OSError as error:
            lock.close()
            raise UserError(f"{self.path} cannot be written ({error.strerror}): name another with --output") from None
        return lock, file

    def _repair(self, contents: Contents) -> None:
        if contents.end_bytes == 0:
            self._truncate(0)
            self._append(encode_row(self.header))
        elif contents.end_bytes < contents.size_bytes:
            self._truncate(contents.end_bytes)  # a torn last row

    def _append(self, data: bytes) -> None:
        end = os.fstat(self._file.fileno()).st_size
        try:
            self._save(self._write_all, data)
        except UserError:
            with contextlib.suppress(OSError):  # of the fsync: the next start repairs what it leaves
                self._truncate(end)  # half a row would be worse than none
            raise

    def _write_all(self, data: bytes) -> None:
        waiting = memoryview(data)
        while waiting:
            waiting = waiting[self._file.write(waiting) :]
        os.fsync(self._file.fileno())

    def _save(self, write: Callable[..., None], *arguments: Any) -> None:
        try:
            write(*arguments)
        except OSError as error:
            raise UserError(
                f"{self.path}: {error.strerror}: the rows before are saved; free some disk space, then rerun"
            ) from None

    def _truncate(self, end: int) -> None:
        os.ftruncate(self._file.fileno(), end)
        os.fsync(self._file.fileno())

    def replace_rows(self) -> int:
        """Put the new rows in the place of the old ones, and leave out those to drop, atomically.

        A new row that says the same as the old one leaves it as it is, with its timestamp. Return how many changed.
        """
        if not len(self._new_rows) and not self._dropped:
            return 0
        path = self.path.resolve()  # the file itself where the path is a link
        copy = path.with_name(f".{path.name}.new")
        try:
            with copy.open("wb") as file:
                os.fchmod(file.fileno(), os.fstat(self._file.fileno()).st_mode)
                changed = self._write_replaced(file)
                file.flush()
                os.fsync(file.fileno())
                os.replace(copy, path)
        except BaseException as error:
            copy.unlink(missing_ok=True)
            if not isinstance(error, OSError):
                raise
            raise UserError(f"{self.path} is left as it was: the new rows cannot be saved ({error.strerror})") from None
        sync_folder(path.parent)
        return changed

    def _write_replaced(self, file: BinaryIO) -> int:
        changed = 0
        old_header: Sequence[str] = self.header
        for is_header, _, row in whole_rows(self._file):
            if is_header:
                old_header = cells_of(row)
                file.write(encode_row(self.header))
                continue
            old = row if tuple(old_header) == self.header else with_columns(row, old_header, self.header)
            key, _ = key_and_error(row)
            if key in self._dropped:
                continue
            new = self._new_rows.get(key)
            is_changed = new is not None and not says_the_same(old, new)
            file.write(new if new is not None and is_changed else old)
            changed += is_changed
        return changed


class Spool:
    """Rows by key, kept in a nameless file that ends with the process: there may be more of them than fit in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: Any = None
        self._places: dict[str, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def add(self, key: str, row: bytes) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (closed by close)
        offset = self._file.seek(0, os.SEEK_END)
        self._file.write(row)
        self._places[key] = offset, len(row)

    def get(self, key: str) -> bytes | None:
        if key not in self._places:
            return None
        offset, length = self._places[key]
        self._file.seek(offset)
        return bytes(self._file.read(length))

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what is still buffered, on a full disk
                self._file.close()


def row_of(record: Record, header: Sequence[str]) -> list[str]:
    now = datetime.now().isoformat(timespec="seconds")
    own = {"image_path": record.key, "error": record.error, "timestamp": now}
    return [cell(own.get(name, record.values.get(name, ""))) for name in header]


def cell(value: Any) -> str:
    """Text as it is; arrays and objects as JSON: floats as float32, in the fewest digits that read back bit for bit."""
    if isinstance(value, np.ndarray):
        array = np.ascontiguousarray(value, np.float32 if value.dtype.kind == "f" else None)
        text = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY).decode()
        if "null" in text:
            raise ValueError("a vector holds a value that is not finite")
        return text
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode().replace("\0", "")


def encode_row(cells: Sequence[str]) -> bytes:
    """One CSV row (RFC 4180, line feed at its end). The csv module of Python 3.11 leaves a lone \\r unquoted."""
    return (",".join('"' + c.replace('"', '""') + '"' if QUOTED.search(c) else c for c in cells) + "\n").encode()


def with_columns(row: bytes, old_header: Sequence[str], header: Sequence[str]) -> bytes:
    """The row with its cells under another header, empty where it has none."""
    cells = dict(zip(old_header, cells_of(row), strict=False))
    return encode_row([cells.get(name, "") for name in header])


def says_the_same(old: bytes, new: bytes) -> bool:
    """Whether two rows differ in nothing but when they were made."""
    before, after = cells_of(old), cells_of(new)
    del before[TIMESTAMP_COLUMN], after[TIMESTAMP_COLUMN]
    return before == after


def lock_beside(path: Path) -> FileIO:
    """Keep a second worker out; the lock ends with the process, however it ends. The file holds the process id.

    Raises UserError where another process has it, and where the place has no locks.
    """
    file = beside(path, "lock").open("ab+", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read(20).decode("ascii", "replace").strip() or "unknown"
        file.close()
        raise UserError(
            f"{path} is in use by another worker, process {holder}: wait for it, or name another with --output"
        ) from None
    except OSError as error:
        file.close()
        raise UserError(f"{path} cannot be locked ({error.strerror}): name a file on another disk") from None
    with contextlib.suppress(OSError):  # the lock holds on a full disk too
        file.truncate(0)
        file.write(f"{os.getpid()}\n".encode())
    return file


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
