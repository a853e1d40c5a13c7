"""Lists in Parquet: the needed columns batch by batch; pictures are read when they are wanted, row by row."""

import datetime
import json
import math
import os
import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

from vec_pipeline.lists import Entry, is_number
from vec_pipeline.lists.columns import ADDRESS_NAMES, PRIORITY, address_column, check_types, kept_columns
from vec_pipeline.lists.files import identity, open_file, open_list, reason, shown
from vec_pipeline.lists.text import clean, priority_of
from vec_pipeline.object_stores import is_address
from vec_pipeline.record import SourceOptions, UserError

ROWS_TOGETHER = 1024
BUFFER_BYTES = 1 << 20  # a column of a row group is read in pieces of this size, never whole
PICTURES_TOGETHER_BYTES = 1 << 22
WAITING_BYTES = 1 << 27  # of pictures that were passed and not asked for: threads ask for them out of order


@dataclass(frozen=True, slots=True)
class Cell:
    """The content of a picture within a Parquet file.

    list_identity: changes when the file changes.
    """

    address: str
    column: str
    row: int
    list_identity: str
    link: str = ""

    def read(self) -> bytes:
        """Raises OSError, or what pyarrow makes of a damaged file."""
        try:
            return pictures_of(self.address, self.column, self.list_identity).read(self.row)
        except UserError as error:  # it would end the run, and this is one picture
            raise OSError(str(error)) from None

    def identity(self) -> str:
        return f"{self.list_identity} {self.row}"


class ParquetTable:
    """A Parquet file. Of a column of pictures nothing is read here, so rows that are done cost nothing."""

    encoding = ""

    def __init__(self, address: str, options: SourceOptions) -> None:
        self._address, self._where = address, shown(address)
        file = opened(address)
        self._rows = int(file.metadata.num_rows)
        fields = {field.name: field.type for field in file.schema_arrow}
        file.close()
        self._column = chosen(fields, options.column, self._where)
        self._kept = kept_columns(options.keep, list(fields), self._where)
        kinds = {new_name: kind_of(fields[name], name, self._where) for name, new_name in self._kept.items()}
        self.has_pictures = holds_pictures(fields[self._column])
        if not self.has_pictures and not is_text(fields[self._column]):
            what = f"{self._column} as {fields[self._column]}"
            raise UserError(f"{self._where} has {what}, which is no address: choose another with --column NAME")
        self.has_priority = PRIORITY in fields
        names = [*self._kept, *([PRIORITY] if self.has_priority else [])]
        self._names = list(dict.fromkeys([*names, *([] if self.has_pictures else [self._column])]))  # what is read here
        self.columns: Mapping[str, str] = check_types(kinds, self._where)
        self._identity = identity(address)

    def length(self) -> int | None:
        return self._rows

    def entry(self, number: int) -> Entry | None:
        if not 0 <= number < self._rows:
            return None
        if self.has_pictures:
            return self._entry(number, {})  # what comes along is not asked for
        return next((entry for entry in self.entries(number) if entry.number >= number), None)

    def entries(self, first: int = 0) -> Iterator[Entry]:
        """All of them, or those from the row group on that holds the `first` one."""
        if not self._names:
            yield from (self._entry(row, {}) for row in range(self._rows))
            return
        file = opened(self._address)
        starts = [0, *accumulate(file.metadata.row_group(each).num_rows for each in range(file.num_row_groups))]
        for group, (row, end) in enumerate(pairwise(starts)):
            if end <= first:
                continue
            try:
                for batch in file.iter_batches(ROWS_TOGETHER, [group], self._names, use_threads=False):
                    for found in rows_of(batch):
                        yield self._entry(row, found) if isinstance(found, dict) else Entry(row, error=found)
                        row += 1
            except Exception as error:  # whatever a damaged file makes of it
                what = f"rows {row} to {end - 1} cannot be read ({reason(error)})"
                yield Entry(row, error=f"{type(error).__name__}: {what}")

    def _entry(self, row: int, found: dict[str, Any]) -> Entry:
        values = {new_name: self._value(found.get(name), new_name) for name, new_name in self._kept.items()}
        values = {name: value for name, value in values.items() if value is not None}
        if self.has_priority:
            values[PRIORITY] = priority_of(found.get(PRIORITY))
        if self.has_pictures:
            return Entry(row, "", Cell(self._address, self._column, row, self._identity), values)
        return Entry(row, (found[self._column] or "").strip(), None, values)

    def _value(self, value: Any, name: str) -> Any:
        """A value of the file as one of its column's type; None where there is none."""
        kind = self.columns[name]
        if value is None:
            return None
        if kind == "number":
            number = value if is_number(value) else float(value)  # a decimal
            return number if math.isfinite(number) else None
        if kind == "vector":
            has_all = all(is_number(each) and math.isfinite(each) for each in value)
            return value if has_all and value else None
        if kind == "json":
            return json.loads(json.dumps(value, default=plain))
        return clean(value if isinstance(value, str) else str(plain(value)))


class Pictures:
    """The pictures of a column, by row: quick where they are asked for in about the order of the rows."""

    def __init__(self, address: str, column: str) -> None:
        self._address = address
        self._file = opened(address)
        self._column = column
        sizes = [self._file.metadata.row_group(group) for group in range(self._file.num_row_groups)]
        self._starts = [0, *accumulate(group.num_rows for group in sizes)]
        mean_bytes = sum(group.total_byte_size for group in sizes) // max(self._starts[-1], 1)
        self._rows_together = max(1, min(PICTURES_TOGETHER_BYTES // max(mean_bytes, 1), 64))
        self._lock = threading.Lock()
        self._batches: Iterator[Any] = iter(())
        self._at = self._starts[-1]  # the row that comes next of `_batches`
        self._waiting: dict[int, Any] = {}  # cells that were passed, by row
        self._waiting_bytes = 0
        self._broken: dict[int, tuple[int, Exception]] = {}  # from which row of a row group on, and why

    def read(self, row: int) -> bytes:
        """Raises what a damaged file makes pyarrow raise, and FileNotFoundError where the row has no picture."""
        with self._lock:
            if row not in self._waiting:
                self._read_to(row)
            cell = self._waiting.pop(row)
            self._waiting_bytes -= len_of(cell)
        if isinstance(cell, dict):
            if not cell.get("bytes") and cell.get("path"):
                return self._at_path(cell["path"])
            cell = cell.get("bytes")
        if not cell:
            raise FileNotFoundError(f"row {row} of {shown(self._address)} has no picture")
        return bytes(cell)

    def _at_path(self, path: str) -> bytes:
        """A picture beside the list, as `datasets` notes it where it has no bytes."""
        with open_file(os.path.join(os.path.dirname(self._address), path)) as file:
            return file.read()

    def _read_to(self, row: int) -> None:
        group = self._group_of(row)
        broken_from, error = self._broken.get(group, (row + 1, None))
        if error and row >= broken_from:  # at once, since each attempt would read the group from its start
            raise error
        if not self._at <= row < self._starts[min(self._group_of(self._at) + 2, len(self._starts) - 1)]:
            self._at, self._batches = self._starts[group], self._batches_from(group)
        while self._at <= row:
            try:
                cells = next(self._batches).column(0).to_pylist()
            except Exception as error:
                if not is_address(self._address):  # a network may work again
                    self._broken[self._group_of(self._at)] = self._at, error
                self._at = self._starts[-1]
                raise
            for cell in cells:
                self._waiting_bytes += len_of(cell) - len_of(self._waiting.get(self._at))
                self._waiting[self._at] = cell
                self._at += 1
            while self._waiting_bytes > WAITING_BYTES and (oldest := next(iter(self._waiting))) != row:
                self._waiting_bytes -= len_of(self._waiting.pop(oldest))

    def _group_of(self, row: int) -> int:
        return bisect_right(self._starts, row) - 1

    def _batches_from(self, group: int) -> Iterator[Any]:
        for each in range(group, self._file.num_row_groups):
            yield from self._file.iter_batches(self._rows_together, [each], [self._column], use_threads=False)
        raise OSError("the file has fewer rows than it says")


@lru_cache(maxsize=4)
def pictures_of(address: str, column: str, list_identity: str) -> Pictures:
    return Pictures(address, column)


def opened(address: str) -> Any:
    """A pyarrow ParquetFile. Raises NotFound, and UserError where it cannot be opened."""
    import pyarrow.parquet as pq

    file = open_list(address) if address.lower().endswith(".gz") else open_file(address)
    try:
        return pq.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False)
    except Exception as error:  # no Parquet, or torn
        with suppress(OSError):
            file.close()
        raise UserError(f"{shown(address)} is not a whole Parquet file ({reason(error)}): make it again") from None


def rows_of(batch: Any) -> list[dict[str, Any] | str]:
    """The rows of a pyarrow RecordBatch; for one that is damaged, such as by text that is not UTF-8, what is wrong."""
    try:
        rows: list[dict[str, Any] | str] = batch.to_pylist()
        return rows
    except Exception as error:  # of any type of value
        if batch.num_rows == 1:
            return [f"{type(error).__name__}: the row cannot be read ({reason(error)})"]
        return [row for index in range(batch.num_rows) for row in rows_of(batch.slice(index, 1))]


def chosen(fields: Mapping[str, Any], wanted: str, where: str) -> str:
    """The column of addresses or pictures: as of other lists, but pictures are preferred to addresses.

    Without a usual name, a column is taken only if it is the only one of pictures.
    """
    has_usual_name = [name for name in fields if name.strip().lower() in ADDRESS_NAMES]
    pictures = [name for name in has_usual_name or fields if holds_pictures(fields[name])]
    return pictures[0] if len(pictures) == 1 and not wanted else address_column(list(fields), wanted, where)


def value_type(kind: Any) -> Any:
    import pyarrow as pa

    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_text(kind: Any) -> bool:
    import pyarrow as pa

    kind = value_type(kind)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def holds_pictures(kind: Any) -> bool:
    """Whether a column is of bytes, or of {bytes, path} as `datasets` writes pictures."""
    import pyarrow as pa

    if not pa.types.is_struct(kind):
        return is_binary(kind)
    index = kind.get_field_index("bytes")
    return index >= 0 and is_binary(kind.field(index).type)


def kind_of(kind: Any, name: str, where: str) -> str:
    """The type of column in the CSV for one of Parquet. Raises UserError for bytes."""
    import pyarrow as pa

    types, kind = pa.types, value_type(kind)
    if holds_pictures(kind) or types.is_fixed_size_binary(kind):
        raise UserError(f"{where}: column {name} holds bytes, which a CSV cannot: leave it out of --keep")
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return "number"
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return "vector" if types.is_integer(kind.value_type) or types.is_floating(kind.value_type) else "json"
    return "json" if types.is_nested(kind) else "text"


def plain(value: Any) -> Any:
    """A value that JSON has no type for, as text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(value)


def len_of(cell: Any) -> int:
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    return len(data) if data else 0
