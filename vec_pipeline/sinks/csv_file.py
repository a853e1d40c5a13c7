"""Rows in one CSV file: appended and fsynced a checkpoint at a time, repaired after a kill, locked against a second
worker."""

import contextlib
import csv
import fcntl
import io
import json
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from vec_pipeline.record import COLUMNS, Record, UserError

BLOCK_BYTES = 1 << 24
NEWLINE, QUOTE = ord("\n"), ord('"')
ERROR_COLUMN = COLUMNS.index("error")
QUOTED = re.compile(r'[",\r\n]')
NO_ERROR = re.compile(rb'\]",\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d,,')  # image_vector's end, timestamp, empty error

csv.field_size_limit(1 << 30)


@dataclass
class Contents:
    """What a CSV holds: rows by key, those with an error apart, and where its last whole row ends."""

    size_bytes: int = 0
    end_bytes: int = 0
    rows: int = 0
    keys: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    error_examples: list[tuple[str, str]] = field(default_factory=list)

    def add(self, row: bytes) -> None:
        key, error = key_and_error(row)
        self.rows += 1
        self.keys.add(key)
        if error:
            self.failed.add(key)
            if len(self.error_examples) < 3:
                self.error_examples.append((key, error))


def contents_of(path: Path, extra_columns: Sequence[str] = ()) -> Contents:
    """Look at a CSV without touching it. Raises UserError where its header or its encoding is another."""
    try:
        refuse_all_but_a_file(path)
        if not path.exists():
            return Contents()
        with path.open("rb", buffering=0) as file:
            return read_contents(file, path, (*COLUMNS, *extra_columns))
    except UnicodeDecodeError:
        raise UserError(f"{path} is not in UTF-8: save it so, or name another with --output") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name another with --output") from None


def refuse_all_but_a_file(path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a directory: name a file, such as {path / 'annotations.csv'}")
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is a pipe or a device: name a file with --output")


def read_contents(file: FileIO, path: Path, header: Sequence[str]) -> Contents:
    expected = encode_row(header)
    contents = Contents(size_bytes=os.fstat(file.fileno()).st_size)
    file.seek(0)
    start = file.read(len(expected) + 2).replace(b"\r\n", b"\n")
    if contents.size_bytes < len(expected) and expected.startswith(start):
        return contents  # new, or cut within the header
    if not start.startswith(expected):
        raise UserError(f"{path} has other columns than this run writes, and is left as it is: use another --output")
    for is_header, end, row in whole_rows(file):
        contents.end_bytes = end
        if not is_header:
            contents.add(row)
    return contents


class CsvFile:
    """The CSV sink.

    path: the file; made, with its folder, where it is missing.
    extra_columns: columns after those of the contract.
    checkpoint_every: rows per append.
    retry_errors: leave images whose row has an error out of `keys`, and replace their rows by the new ones.
    known: what `contents_of` has read of the file, so that a large one is not read twice.

    Raises UserError where the file cannot be used: another header, a directory, a read-only place, another worker.
    The file is left as it was then.
    """

    def __init__(
        self,
        path: Path,
        extra_columns: Sequence[str] = (),
        checkpoint_every: int = 10,
        retry_errors: bool = False,
        known: Contents | None = None,
    ) -> None:
        self.path = path
        self.header = (*COLUMNS, *extra_columns)
        self.checkpoint_every = checkpoint_every
        self._file = self._open()
        try:
            is_known = known is not None and known.size_bytes == os.fstat(self._file.fileno()).st_size
            contents = known if known and is_known else read_contents(self._file, path, self.header)
            self._repair(contents)
        except BaseException:
            self._file.close()
            raise
        self.rows = contents.rows
        self.failed = contents.failed  # images whose row has an error
        self.error_examples = contents.error_examples
        self._keys = contents.keys - contents.failed if retry_errors else contents.keys
        self._retried: dict[str, bytes] = {}

    def keys(self) -> Collection[str]:
        """The images that need no work."""
        return self._keys

    def write(self, records: Sequence[Record]) -> None:
        """Append rows, `checkpoint_every` of them at a time. Raises UserError on a full disk, with whole rows left."""
        for start in range(0, len(records), self.checkpoint_every):
            batch = records[start : start + self.checkpoint_every]
            rows = {record.key: encode_row(row_of(record, self.header)) for record in batch}
            retried = {key: row for key, row in rows.items() if key in self.failed}
            self._append(b"".join(row for key, row in rows.items() if key not in retried))
            self._retried |= retried
            self.rows += len(rows) - len(retried)
            self._take_note(batch)

    def _take_note(self, records: Sequence[Record]) -> None:
        keys = {record.key for record in records}
        self.error_examples = [example for example in self.error_examples if example[0] not in keys]
        for record in records:
            self._keys.add(record.key)
            if not record.error:
                self.failed.discard(record.key)
                continue
            self.failed.add(record.key)
            if len(self.error_examples) < 3:
                self.error_examples.append((record.key, record.error))

    def close(self) -> None:
        """Replace the rows that were annotated again, and let go of the file."""
        try:
            if self._retried:
                self._replace_retried()
        finally:
            self._file.close()

    def _open(self) -> FileIO:
        try:
            refuse_all_but_a_file(self.path)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("ab+", buffering=0)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}): name another with --output") from None
        try:
            lock(file)
        except BlockingIOError:
            file.close()
            raise UserError(
                f"{self.path} is in use by another worker: wait for it, or name another with --output"
            ) from None
        except OSError as error:
            file.close()
            raise UserError(f"{self.path} cannot be locked ({error.strerror}): name a file on another disk") from None
        if not os.path.samestat(os.fstat(file.fileno()), self.path.stat()):  # replaced by another worker meanwhile
            file.close()
            return self._open()
        return file

    def _repair(self, contents: Contents) -> None:
        if contents.end_bytes == 0:
            self._truncate(0)
            self._append(encode_row(self.header))
        elif contents.end_bytes < contents.size_bytes:
            self._truncate(contents.end_bytes)  # a torn last row

    def _append(self, data: bytes) -> None:
        end = os.fstat(self._file.fileno()).st_size
        waiting = memoryview(data)
        try:
            while waiting:
                waiting = waiting[self._file.write(waiting) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):  # of the fsync: the next start repairs what it leaves
                self._truncate(end)  # half a row would be worse than none
            raise UserError(
                f"{self.path}: {error.strerror}: the rows before are saved; make room and run the same command again"
            ) from None

    def _truncate(self, end: int) -> None:
        os.ftruncate(self._file.fileno(), end)
        os.fsync(self._file.fileno())

    def _replace_retried(self) -> None:
        """Write a copy with the new rows in the old ones' places, then put it in the file's place in one step."""
        path = self.path.resolve()  # the file itself where the path is a link
        copy = path.with_name(f".{path.name}.new")
        try:
            with copy.open("wb") as file:
                os.fchmod(file.fileno(), os.fstat(self._file.fileno()).st_mode)
                for is_header, _, row in whole_rows(self._file):
                    file.write(row if is_header else self._retried.get(key_and_error(row)[0], row))
                file.flush()
                os.fsync(file.fileno())
                os.replace(copy, path)
        except BaseException as error:
            copy.unlink(missing_ok=True)
            if not isinstance(error, OSError):
                raise
            raise UserError(f"{self.path} is left as it was: the new rows cannot be saved ({error.strerror})") from None
        sync_folder(path.parent)


def row_of(record: Record, header: Sequence[str]) -> list[str]:
    now = datetime.now().isoformat(timespec="seconds")
    own = {"image_path": record.key, "error": record.error, "timestamp": now}
    return [cell(own.get(name, record.values.get(name, ""))) for name in header]


def cell(value: Any) -> str:
    """Text as it is; a vector as a JSON array of float32 in the fewest digits that read back bit for bit."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode().replace("\0", "")
    if isinstance(value, np.ndarray):
        if not np.isfinite(value).all():
            raise ValueError("a vector holds a value that is not finite")
        return "[" + ",".join(map(str, value.astype(np.float32))) + "]"
    return json.dumps(value, ensure_ascii=False)


def encode_row(cells: Sequence[str]) -> bytes:
    """One CSV row (RFC 4180, line feed at its end). The csv module of Python 3.11 leaves a lone \\r unquoted."""
    return (",".join('"' + c.replace('"', '""') + '"' if QUOTED.search(c) else c for c in cells) + "\n").encode()


def whole_rows(file: FileIO) -> Iterator[tuple[bool, int, bytes]]:
    """Yield each row that is whole: whether it is the header, the offset of its end, and its bytes.

    A line feed ends a row where the number of quotes before it is even, so cells may hold line feeds.
    """
    file.seek(0)
    offset, rest, is_header, in_quotes = 0, b"", True, False
    while block := file.read(BLOCK_BYTES):
        ends, in_quotes = row_ends(block, in_quotes)
        start = 0
        for end in ends:
            row, rest = rest + block[start:end], b""
            offset += len(row)
            if not row.isspace():  # an editor's blank line
                yield is_header, offset, row
            is_header, start = False, end
        rest += block[start:]


def row_ends(block: bytes, in_quotes: bool) -> tuple[list[int], bool]:
    """Return where rows end within a block, and whether the block ends inside quotes."""
    data = np.frombuffer(block, np.uint8)
    newlines, quotes = np.flatnonzero(data == NEWLINE), np.flatnonzero(data == QUOTE)
    quotes_before = np.searchsorted(quotes, newlines) + in_quotes
    ends: list[int] = (newlines[quotes_before % 2 == 0] + 1).tolist()
    return ends, bool((len(quotes) + in_quotes) % 2)


def key_and_error(row: bytes) -> tuple[str, str]:
    """Read a row's first column and its error, without parsing the vectors where the row shows it has no error."""
    tail = row.rfind(b']",')  # inside a cell the quote would be doubled
    if tail >= 0 and NO_ERROR.match(row, tail):
        if not row.startswith(b'"'):
            return row[: row.index(b",")].decode(), ""
        end = row.index(b'",', 1)
        if row.find(b'""', 1, end + 2) < 0:
            return row[1:end].decode(), ""
    cells = next(csv.reader(io.StringIO(row.decode("utf-8", "replace"), newline="")))
    return cells[0], cells[ERROR_COLUMN] if len(cells) > ERROR_COLUMN else ""


def lock(file: FileIO) -> None:
    """Keep a second worker out; the lock ends with the process, however it ends. Raises BlockingIOError."""
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
