"""Scans the rows of a CSV: where each begins and ends, its key and its error, and what a whole file holds."""

import codecs
import csv
import io
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import FileIO
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from vec_pipeline.key_set import KeySet
from vec_pipeline.record import COLUMNS, UserError

BLOCK_BYTES = 1 << 23
HEADER_BYTES = 1 << 16  # more than any header has
BOM = b"\xef\xbb\xbf"  # the byte order mark, with which spreadsheet programs begin a file
NEWLINE, QUOTE = ord("\n"), ord('"')
BLANKS = np.frombuffer(b" \t\r\n\v\f", np.uint8)
ERROR_COLUMN, TIMESTAMP_COLUMN = (list(COLUMNS).index(name) for name in ("error", "timestamp"))
VECTOR_COLUMNS = [index for index, kind in enumerate(COLUMNS.values()) if kind == "vector"]
NUMPY_ARRAY = re.compile(r"\[\s*[^\s,]+\s+[^\s,\]]")  # "[ 0.5 -0.25]", as str() shows an array
ISO_DATE = re.compile(r"\d{4}-\d\d-\d\d")
RESTORE = (
    "restore it from a copy, or delete it and run again (finished results come from the result cache); "
    "for a spreadsheet use `export --to xlsx`"
)
NO_ERROR = re.compile(rb'\]",\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d,,')  # image_vector's end, timestamp, empty error

Item = TypeVar("Item")
Offsets = np.ndarray[Any, np.dtype[np.int64]]

csv.field_size_limit(1 << 30)


class Rows(NamedTuple):
    """Consecutive rows.

    data: their bytes, one row after the other.
    starts, ends: where each begins and ends in the file, in bytes; int64 of shape (rows,).
    """

    data: memoryview
    starts: Offsets
    ends: Offsets


@dataclass
class Contents:
    """What a CSV holds: rows by key, those with an error apart, and where its last whole row ends."""

    header: tuple[str, ...] = ()
    size_bytes: int = 0
    end_bytes: int = 0
    rows: int = 0
    keys: KeySet = field(default_factory=KeySet)
    failed: KeySet = field(default_factory=KeySet)
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
    """Read a CSV and change nothing. Raises UserError where its header or its encoding is another."""
    try:
        refuse_all_but_a_file(path)
        if not path.exists():
            return Contents()
        with path.open("rb", buffering=0) as file:
            return read_contents(file, path, (*COLUMNS, *extra_columns))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): use another --output") from None


def keys_in(path: Path) -> Iterator[str]:
    """Yield the key of each row of a CSV."""
    with path.open("rb", buffering=0) as file:
        yield from (key_and_error(row)[0] for is_header, _, row in whole_rows(file) if not is_header)


def keys_without_files(path: Path, columns: Collection[str]) -> Iterator[str]:
    """Yield the keys of rows that name a file that is gone, in a column of these, by its path from the CSV's folder."""
    with path.open("rb", buffering=0) as file:
        for is_header, _, row in whole_rows(file):
            cells = cells_of(row)
            if is_header:
                places = [place for place, name in enumerate(cells) if name in columns]
            elif any(cells[place] and not (path.parent / cells[place]).exists() for place in places):
                yield cells[0]


def refuse_all_but_a_file(path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a directory: name a file, such as {path / 'annotations.csv'}")
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is a pipe or a device: name a file with --output")
    twin = path.with_name(path.name.removesuffix(".csv") if path.suffix == ".csv" else f"{path.name}.csv")
    if is_ours(twin):
        raise UserError(f"{path} would share its lock, settings and caches with {twin}: use another --output")


def is_ours(path: Path) -> bool:
    """Whether there is a file that begins with the columns of the contract."""
    if not path.is_file():
        return False
    with path.open("rb", buffering=0) as file:
        return has_contract(read_header(file)[0])


def read_contents(file: FileIO, path: Path, header: Sequence[str]) -> Contents:
    """Read the whole file once. It may lack columns of `header` that are not of the contract, and has no others.

    Rows at its end that lack cells count as torn. Raises UserError where such rows stand among others.
    """
    contents = Contents(size_bytes=os.fstat(file.fileno()).st_size)
    contents.header, contents.end_bytes = read_header(file)
    if not contents.header and is_cut_header(file):
        return contents
    if not has_contract(contents.header):
        refuse_saved_elsewhere(file, path)
        raise UserError(f"{path} has other columns than this run writes, and is left as it is: use another --output")
    if unknown := sorted(set(contents.header) - set(header)):
        raise UserError(f"{path} has columns that this run does not write ({', '.join(unknown)}): use another --output")
    torn_bytes = 0  # where the first torn row ends
    is_checked = False  # one row without error speaks for all: their vectors are equally long
    for (is_header, end, row), is_last in with_last_marked(whole_rows(file)):
        if is_header:
            continue
        if not is_whole(row, len(contents.header), is_last=is_last):
            torn_bytes = torn_bytes or end
            continue
        if torn_bytes:
            raise UserError(
                f"{path}: the row that ends at byte {torn_bytes:,} is damaged, and is left as it is: delete that row"
            )
        try:
            contents.add(row)
        except UnicodeDecodeError:
            raise UserError(f"{path} is not in UTF-8: convert it, or use another --output") from None
        if not (shows_no_error(row) and is_checked):
            if change := change_in(cells_of(row)):
                raise UserError(f"{path} was saved by another program, which has {change}: {RESTORE}")
            is_checked = is_checked or shows_no_error(row)
        contents.end_bytes = end
    return contents


def read_header(file: FileIO) -> tuple[tuple[str, ...], int]:
    """Return the columns, and the offset where the rows begin; () and 0 where there is no whole header."""
    block = os.pread(file.fileno(), HEADER_BYTES, 0)
    ends = row_ends(block)
    return (tuple(cells_of(block[: ends[0]].removeprefix(BOM))), ends[0]) if ends else ((), 0)


def has_contract(header: Sequence[str]) -> bool:
    """Whether a header begins with the columns of the contract."""
    return tuple(header[: len(COLUMNS)]) == tuple(COLUMNS)


def refuse_saved_elsewhere(file: FileIO, path: Path) -> None:
    """Raise UserError where another program has saved a CSV of ours so that it is none any more."""
    start = os.pread(file.fileno(), HEADER_BYTES, 0)
    is_utf16 = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = start[: len(start) // 2 * 2].decode("utf-16" if is_utf16 else "utf-8-sig", "replace")
    header, *_ = text.replace('"', "").splitlines() or [""]
    names = re.split(r"[,;\t]", header)
    if has_contract(names[1:]):
        raise UserError(f"{path} was saved by pandas with an index column: save it with index=False")
    separator = {";": "with ';' between cells", "\t": "with tabs between cells"}.get(header[len(names[0]) :][:1])
    what = "in UTF-16" if is_utf16 else separator or ("with other line ends" if b"\r" in start else "")
    if has_contract(names) and what:
        raise UserError(f"{path} was saved by a spreadsheet program {what}: {RESTORE}")


def is_cut_header(file: FileIO) -> bool:
    """Whether a file without a whole header is new, or ends within a header of ours."""
    start, contract = os.pread(file.fileno(), HEADER_BYTES, 0), ",".join(COLUMNS).encode()
    return len(start) < HEADER_BYTES and start[: len(contract)] == contract[: len(start)]


def whole_rows(file: FileIO) -> Iterator[tuple[bool, int, bytes]]:
    """Yield each row that is whole: whether it is the header, the offset of its end, and its bytes."""
    is_header = True
    for rows in row_blocks(file):
        start = 0
        for size_bytes, end in zip((rows.ends - rows.starts).tolist(), rows.ends.tolist(), strict=True):
            row = bytes(rows.data[start : start + size_bytes])
            yield is_header, end, row.removeprefix(BOM) if is_header else row
            is_header = False
            start += size_bytes


def row_blocks(file: FileIO, start: int = 0) -> Iterator[Rows]:
    """Yield the rows that are whole, about BLOCK_BYTES at a time; the torn one at the end of a file is left out.

    start: the byte to begin at, where a row does.
    """
    size_bytes = BLOCK_BYTES
    while block := os.pread(file.fileno(), size_bytes, start):
        if ends := row_ends(block):
            bounds = start + np.array([0, *ends], np.int64)
            rows = without_blanks(Rows(memoryview(block)[: ends[-1]], bounds[:-1], bounds[1:]))
            if rows.data:
                yield rows
            start, size_bytes = start + ends[-1], BLOCK_BYTES
        elif os.pread(file.fileno(), 1, start + len(block)):
            size_bytes *= 2  # for a row that is larger than a block
        else:
            return


def without_blanks(rows: Rows) -> Rows:
    """Leave out the blank lines that editors add."""
    starts, ends = rows.starts - rows.starts[0], rows.ends - rows.starts[0]
    candidates = np.flatnonzero(np.isin(np.frombuffer(rows.data, np.uint8)[starts], BLANKS))
    blank = [row for row in candidates if bytes(rows.data[starts[row] : ends[row]]).isspace()]
    if not blank:
        return rows
    kept = (rows.data[start:end] for start, end in zip(np.delete(starts, blank), np.delete(ends, blank), strict=True))
    return Rows(memoryview(b"".join(kept)), np.delete(rows.starts, blank), np.delete(rows.ends, blank))


def row_ends(block: bytes) -> list[int]:
    """Return where rows end within a block that begins with a row.

    A line feed ends a row where the number of quotes before it is even, so cells may hold line feeds.
    """
    data = np.frombuffer(block, np.uint8)
    newlines, quotes = np.flatnonzero(data == NEWLINE), np.flatnonzero(data == QUOTE)
    ends: list[int] = (newlines[np.searchsorted(quotes, newlines) % 2 == 0] + 1).tolist()
    return ends


def with_last_marked(items: Iterable[Item]) -> Iterator[tuple[Item, bool]]:
    iterator = iter(items)
    for item in iterator:
        for following in iterator:
            yield item, False
            item = following
        yield item, True


def is_whole(row: bytes, columns: int, *, is_last: bool) -> bool:
    """Whether a row has all its cells. One that shows it has no error is believed, but for a file's last."""
    return (not is_last and shows_no_error(row)) or len(cells_of(row)) == columns


def shows_no_error(row: bytes) -> bool:
    end = len(row)
    while (end := row.rfind(b']",', 0, end)) >= 0:  # inside a cell the quote would be doubled
        if NO_ERROR.match(row, end):
            return True
    return False


def key_and_error(row: bytes) -> tuple[str, str]:
    """Read a row's first column and its error, without parsing the vectors where the row shows it has no error."""
    if shows_no_error(row):
        if not row.startswith(b'"'):
            return row[: row.index(b",")].decode(), ""
        end = row.index(b'",', 1)
        if row.find(b'""', 1, end + 2) < 0:
            return row[1:end].decode(), ""
    cells = cells_of(row, errors="strict")
    return cells[0], cells[ERROR_COLUMN] if len(cells) > ERROR_COLUMN else ""


def change_in(cells: Sequence[str]) -> str:
    """What a program that saved a row has changed so that it cannot be read; empty where it is as written."""
    if len(cells) < len(COLUMNS):
        return ""
    if (timestamp := cells[TIMESTAMP_COLUMN]) and not ISO_DATE.match(timestamp):
        return f"changed the timestamp to {timestamp[:40]!r}"
    return next(filter(None, (change_in_vector(cells[index]) for index in VECTOR_COLUMNS)), "")


def change_in_vector(cell: str) -> str:
    if cell.startswith("[") and not cell.endswith("]"):
        return "cut off a vector"
    return "saved vectors in a form that is not JSON" if NUMPY_ARRAY.match(cell) else ""


def first_change(rows: Rows) -> str:
    """As `change_in`, of the first row that has been changed."""
    sizes = (rows.ends - rows.starts).tolist()
    ends = list(accumulate(sizes))
    cells = (cells_of(bytes(rows.data[end - size : end])) for size, end in zip(sizes, ends, strict=True))
    return next(filter(None, map(change_in, cells)), "")


def cells_of(row: bytes, errors: str = "replace") -> list[str]:
    return next(csv.reader(io.StringIO(row.decode("utf-8", errors), newline="")))
