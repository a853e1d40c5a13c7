"""The rows that requests ask for: of the CSV, or of the last uploads where nothing is saved."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from vec_pipeline.annotations import CsvReader
from vec_pipeline.commands.serve.uploads import id_of, is_id
from vec_pipeline.corrections import typed
from vec_pipeline.record import Record, UserError
from vec_pipeline.sinks.csv_file import CsvFile, row_of
from vec_pipeline.sinks.csv_rows import cells_of

MOST_KEPT = 256  # rows in memory, of some 10 kB: those just made, which are asked for most
PARSED = ("number", "vector", "json")  # types whose cells are JSON

Row = dict[str, Any]


class Rows:
    """Rows as JSON, by the id of an upload.

    types: of the columns, by name and in their order.
    sink: the CSV; None where nothing is saved.
    given: what people have set columns of a picture to, by its key, as texts of cells.
    """

    def __init__(
        self, types: Mapping[str, str], sink: CsvFile | None, given: Callable[[str], Mapping[str, str]] = lambda _: {}
    ) -> None:
        self.types, self._sink, self._given = types, sink, given
        self._recent: OrderedDict[str, Row] = OrderedDict()
        self._places: dict[str, tuple[int, int]] = {}  # in the CSV, as far as it has been read
        self._read_to = 0
        self._lock = threading.Lock()

    def names_of(self, kind: str) -> list[str]:
        """The columns of a type."""
        return [name for name, each in self.types.items() if each == kind]

    def save(self, records: Sequence[Record]) -> tuple[list[str], set[str]]:
        """Append rows to the CSV, where there is one; return what no row has any more: ids, and files of columns.

        Raises UserError where they cannot be saved.
        """
        header = list(self.types)
        with self._lock:
            if self._sink:
                self._sink.write(records)
            before = list(self._recent.values())
            for record in records:
                self._recent[id_of(record.key)] = row_as_json(self.types, row_of(record, header))
            oldest = list(self._recent)[: max(0, len(self._recent) - MOST_KEPT)]
            for name in oldest:
                del self._recent[name]
            kept = list(self._recent.values())
        return ([], set()) if self._sink else (oldest, self._files_of(before) - self._files_of(kept))

    def _files_of(self, rows: Sequence[Row]) -> set[str]:
        return {row[name] for name in self.names_of("file") for row in rows if row[name]}

    def has_result(self, key: str) -> bool:
        """Whether there is a row without an error; another is made again."""
        if self._sink is None:
            row = self._recent.get(id_of(key))
            return row is not None and not row["error"]
        return key in self._sink.keys() and key not in self._sink.failed  # noqa: SIM118 (a set of its own kind)

    def has(self, key: str) -> bool:
        """Whether there is a row."""
        if self._sink is None:
            return id_of(key) in self._recent
        return key in self._sink.keys() or key in self._sink.failed  # noqa: SIM118 (a set of its own kind)

    def in_memory(self) -> list[Row]:
        """The last rows; all that there are where nothing is saved."""
        with self._lock:
            return list(self._recent.values())

    def find(self, name: str) -> Row | None:
        """The row of an upload, with what people have corrected; None where there is none.

        Raises UserError where the CSV is gone.
        """
        if not (row := self._find(name)):
            return None
        given = self._given(row["image_path"])
        return row | {name: typed(self.types[name], given[name]) for name in row if name in given}

    def _find(self, name: str) -> Row | None:
        with self._lock:
            if name in self._recent:
                return self._recent[name]
            if self._sink is None:
                return None
            with self._reader(self._sink.path) as reader:
                if name not in self._places:
                    self._read_on(reader)
                if place := self._places.get(name):
                    cells = cells_of(reader.read(*place))
                    new = self._sink.new_row(cells[0])  # of a second try
                    return row_as_json(reader.types, cells_of(new) if new else cells)
        return None

    def latest(self, most: int, before: str = "") -> list[str]:
        """The ids of the newest rows, newest first; those older than one of them where `before` names it.

        Raises KeyError where there is no such row, and UserError where the CSV is gone.
        """
        with self._lock:
            if self._sink is None:
                names = list(self._recent)
            else:
                with self._reader(self._sink.path) as reader:
                    self._read_on(reader)
                names = list(self._places)
        if before and before not in names:
            raise KeyError(before)
        end = names.index(before) if before else len(names)
        return names[max(0, end - most) : end][::-1]

    def _reader(self, path: Path) -> CsvReader:
        try:
            return CsvReader(path, machine=True)
        except UserError:  # it says what to do about a CSV that was never there
            raise UserError(f"{path} cannot be read: put it back where it was") from None

    def _read_on(self, reader: CsvReader) -> None:
        """Note where rows are that have been appended since."""
        for block in reader.blocks(["image_path"], start=self._read_to):
            names = map(id_of, block.table["image_path"].to_pylist())
            places = zip(block.starts.tolist(), block.ends.tolist(), strict=True)
            # A run may have made other rows of the CSV, whose files have names of their own.
            self._places |= {name: place for name, place in zip(names, places, strict=True) if is_id(name)}
            self._read_to = int(block.ends[-1])


def row_as_json(types: Mapping[str, str], cells: Sequence[str]) -> Row:
    """A row of text as values: arrays, objects and numbers parsed, None where there is nothing but text."""
    return {name: value_of(kind, cell) for (name, kind), cell in zip(types.items(), cells, strict=False)}


def value_of(kind: str, cell: str) -> Any:
    if kind not in PARSED:
        return cell
    return orjson.loads(cell) if cell else None
