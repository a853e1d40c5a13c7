"""The rows that requests ask for: of the CSV, or of the last uploads where nothing is saved."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from vec_pipeline.annotations import CsvReader
from vec_pipeline.commands.serve.uploads import id_of, is_id
from vec_pipeline.record import Record
from vec_pipeline.sinks.csv_file import CsvFile, row_of
from vec_pipeline.sinks.csv_rows import cells_of

MOST_KEPT = 256  # rows in memory, of some 10 kB: those just made, which are asked for most
PARSED = ("number", "vector", "json")  # types whose cells are JSON

Row = dict[str, Any]


class Rows:
    """Rows as JSON, by the id of an upload.

    types: of the columns, by name and in their order.
    sink: the CSV; None where nothing is saved.
    """

    def __init__(self, types: Mapping[str, str], sink: CsvFile | None) -> None:
        self._types, self._sink = types, sink
        self._recent: OrderedDict[str, Row] = OrderedDict()
        self._places: dict[str, tuple[int, int]] = {}  # in the CSV, as far as it has been read
        self._read_to = 0
        self._lock = threading.Lock()

    def names_of(self, kind: str) -> list[str]:
        """The columns of a type."""
        return [name for name, each in self._types.items() if each == kind]

    def save(self, records: Sequence[Record]) -> None:
        """Append rows to the CSV, where there is one. Raises UserError where they cannot be saved."""
        if self._sink:
            self._sink.write(records)
        header = list(self._types)
        with self._lock:
            for record in records:
                self._recent[id_of(record.key)] = row_as_json(self._types, row_of(record, header))
            while len(self._recent) > MOST_KEPT:
                self._recent.popitem(last=False)

    def has(self, path: Path) -> bool:
        """Whether there is a row without an error; another is made again."""
        with self._lock:
            recent = self._recent.get(id_of(path))
        if recent is not None:
            return not recent["error"]
        return self._sink is not None and str(path) in self._sink.keys()  # noqa: SIM118 (a set of its own kind)

    def find(self, name: str) -> Row | None:
        """The row of an upload; None where there is none."""
        with self._lock:
            if name in self._recent:
                return self._recent[name]
            if self._sink is None:
                return None
            with CsvReader(self._sink.path) as reader:
                if name not in self._places:
                    self._read_on(reader)
                if place := self._places.get(name):
                    return row_as_json(reader.types, cells_of(reader.read(*place)))
        return None

    def latest(self, most: int, before: str = "") -> list[str]:
        """The ids of the newest rows, newest first; those older than one of them where `before` names it."""
        with self._lock:
            if self._sink is None:
                names = list(self._recent)
            else:
                with CsvReader(self._sink.path) as reader:
                    self._read_on(reader)
                names = list(self._places)
        end = names.index(before) if before in names else len(names)
        return names[max(0, end - most) : end][::-1]

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
