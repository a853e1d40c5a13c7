"""Rows in one CSV file: appended and fsynced a checkpoint at a time, repaired after a kill, locked against a second
worker."""

import contextlib
import csv
import fcntl
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import orjson

from vec_pipeline.record import COLUMNS, Record, UserError

BLOCK_BYTES = 1 << 24
NEWLINE, QUOTE = ord("\n"), ord('"')
ERROR_COLUMN, TIMESTAMP_COLUMN = COLUMNS.index("error"), COLUMNS.index("timestamp")
QUOTED = re.compile(r'[",\r\n]')
NO_ERROR = re.compile(rb'\]",\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d,,')  # image_vector's end, timestamp, empty error

Item = TypeVar("Item")

csv.field_size_limit(1 << 30)


@dataclass
class Contents:
    """What a CSV holds: rows by key, those with an error apart, and where its last whole row ends."""

    header: tuple[str, ...] = ()
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
    """Read it all once. The file may lack columns of `header` that are not of the contract, and has no others.

    Rows at its end that lack cells count as torn. Raises UserError where such rows stand among others.
    """
    contents = Contents(size_bytes=os.fstat(file.fileno()).st_size)
    contract = encode_row(COLUMNS).rstrip()
    file.seek(0)
    start = file.read(len(contract))
    if contract.startswith(start) and len(start) < len(contract):
        return contents  # new, or cut within the header
    if start != contract:
        raise UserError(f"{path} has other columns than this run writes, and is left as it is: use another --output")
    torn_bytes = 0  # where the first torn row ends
    for (is_header, end, row), is_last in with_last_marked(whole_rows(file)):
        if is_header:
            contents.header = tuple(row.decode().rstrip().split(","))
            if not set(contents.header) <= set(header):
                unknown = ", ".join(sorted(set(contents.header) - set(header)))
                raise UserError(f"{path} has columns that this run does not write ({unknown}): use another --output")
        elif not is_whole(row, len(contents.header), is_last=is_last):
            torn_bytes = torn_bytes or end
            continue
        elif torn_bytes:
            raise UserError(
                f"{path}: the row that ends at byte {torn_bytes:,} is damaged, and is left as it is: delete that row"
            )
        else:
            contents.add(row)
        contents.end_bytes = end
    return contents


class CsvFile:
    """The CSV sink.

    path: the file; made, with its folder, where it is missing.
    extra_columns: columns after those of the contract; a file that was begun without them goes on without them.
    checkpoint_every: rows per append.
    retry_errors: leave images whose row has an error out of `keys`, and replace their rows by the new ones.
    refresh: leave all images out of `keys`, and replace their rows when `replace_rows` is called.
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
        refresh: bool = False,
    ) -> None:
        self.path = path
        self.checkpoint_every = checkpoint_every
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
        self.rows = contents.rows
        self.failed = contents.failed  # images whose row has an error
        self.error_examples = contents.error_examples
        self._replaced = set(contents.keys if refresh else contents.failed if retry_errors else ())
        self._keys = contents.keys - self._replaced
        self._is_refresh = refresh
        self._new_rows = Spool(path.parent)

    def keys(self) -> Collection[str]:
        """The images that need no work."""
        return self._keys

    def write(self, records: Sequence[Record]) -> None:
        """Append rows, `checkpoint_every` of them at a time. Raises UserError on a full disk, with whole rows left."""
        for start in range(0, len(records), self.checkpoint_every):
            batch = records[start : start + self.checkpoint_every]
            rows = {record.key: encode_row(row_of(record, self.header)) for record in batch}
            self._append(b"".join(row for key, row in rows.items() if key not in self._replaced))
            for key in self._replaced.intersection(rows):
                self._save(self._new_rows.add, key, rows[key])
            self.rows += len(rows.keys() - self._replaced)
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
        """Replace the rows that were annotated again because of their errors, and let go of the file."""
        try:
            if not self._is_refresh:
                self.replace_rows()
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
                f"{self.path}: {error.strerror}: the rows before are saved; make room and run the same command again"
            ) from None

    def _truncate(self, end: int) -> None:
        os.ftruncate(self._file.fileno(), end)
        os.fsync(self._file.fileno())

    def replace_rows(self) -> int:
        """Put the new rows in the old ones' places, in one step; return how many have changed.

        A new row that says the same as the old one leaves it as it is, with its timestamp.
        """
        if not len(self._new_rows):
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
            new = self._new_rows.get(key_and_error(row)[0])
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
    """Text as it is; a vector as a JSON array of float32 in the fewest digits that read back bit for bit."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode().replace("\0", "")
    if isinstance(value, np.ndarray):
        text = orjson.dumps(np.ascontiguousarray(value, np.float32), option=orjson.OPT_SERIALIZE_NUMPY).decode()
        if "null" in text:
            raise ValueError("a vector holds a value that is not finite")
        return text
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


def with_last_marked(items: Iterable[Item]) -> Iterator[tuple[Item, bool]]:
    iterator = iter(items)
    for item in iterator:
        for following in iterator:
            yield item, False
            item = following
        yield item, True


def row_ends(block: bytes, in_quotes: bool) -> tuple[list[int], bool]:
    """Return where rows end within a block, and whether the block ends inside quotes."""
    data = np.frombuffer(block, np.uint8)
    newlines, quotes = np.flatnonzero(data == NEWLINE), np.flatnonzero(data == QUOTE)
    quotes_before = np.searchsorted(quotes, newlines) + in_quotes
    ends: list[int] = (newlines[quotes_before % 2 == 0] + 1).tolist()
    return ends, bool((len(quotes) + in_quotes) % 2)


def is_whole(row: bytes, columns: int, *, is_last: bool) -> bool:
    """Whether a row has all its cells. One that shows it has no error is believed, but for a file's last."""
    return (not is_last and shows_no_error(row)) or len(cells_of(row)) == columns


def shows_no_error(row: bytes) -> bool:
    tail = row.rfind(b']",')  # inside a cell the quote would be doubled
    return tail >= 0 and NO_ERROR.match(row, tail) is not None


def key_and_error(row: bytes) -> tuple[str, str]:
    """Read a row's first column and its error, without parsing the vectors where the row shows it has no error."""
    if shows_no_error(row):
        if not row.startswith(b'"'):
            return row[: row.index(b",")].decode(), ""
        end = row.index(b'",', 1)
        if row.find(b'""', 1, end + 2) < 0:
            return row[1:end].decode(), ""
    cells = cells_of(row)
    return cells[0], cells[ERROR_COLUMN] if len(cells) > ERROR_COLUMN else ""


def cells_of(row: bytes) -> list[str]:
    return next(csv.reader(io.StringIO(row.decode("utf-8", "replace"), newline="")))


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
    file = path.with_suffix(".lock").open("ab+", buffering=0)
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
    with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
        file.truncate(0)
        file.write(f"{os.getpid()}\n".encode())
    return file


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
