"""The rows of a CSV in memory, without vectors: as the models wrote them, and as people have corrected them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vec_pipeline.annotations import Block
from vec_pipeline.calibration import DOUBT_COLUMNS, doubt
from vec_pipeline.corrections import VERIFIED, Correction, typed
from vec_pipeline.query import Query
from vec_pipeline.record import Values

PART_ROWS = 4096  # few enough for one correction to take a millisecond, and enough for columns to be quick
Array = np.ndarray[Any, Any]
Given = Mapping[str, Mapping[str, Correction]]  # what people have corrected, by key and column


class Part(NamedTuple):
    """Consecutive rows, PART_ROWS of them but in the last part; each table's columns are of one chunk.

    doubts: of the models' values, as `calibration.doubt` says; float64 of shape (rows,).
    """

    machine: pa.Table
    now: pa.Table
    doubts: Array


@dataclass(frozen=True)
class Table:
    """The rows at a moment, numbered from 0 on by their place in the CSV; a change makes another table.

    types: of the columns, by name and in their order; the last is `verified`.
    starts: where rows begin in the CSV, in bytes; int64 of shape (rows,).
    numbers: of the rows, by key.
    given: what people have corrected in all rows, as it is in the table.
    """

    types: Mapping[str, str]
    parts: Sequence[Part] = ()
    starts: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    numbers: Mapping[str, int] = field(default_factory=dict)
    given: Given = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.starts)

    def grown(self, blocks: Iterable[Block]) -> "Table":
        """The table with rows that have come. blocks: of all columns but `verified`, as the models wrote them."""
        found = list(blocks)
        if not found:
            return self
        whole = len(self) // PART_ROWS
        rest = [part.machine for part in self.parts[whole:]]
        new = pa.concat_tables([*rest, *(with_verified(block.table) for block in found)])
        slices = [new[start : start + PART_ROWS].combine_chunks() for start in range(0, len(new), PART_ROWS)]
        parts = [Part(each, corrected(each, self.given, self.types), doubts_of(each)) for each in slices]
        keys = pa.concat_tables([block.table.select(["image_path"]) for block in found])["image_path"].to_pylist()
        numbers = {**self.numbers, **{key: len(self) + number for number, key in enumerate(keys)}}
        starts = np.concatenate([self.starts, *(block.starts for block in found)])
        return replace(self, parts=[*self.parts[:whole], *parts], starts=starts, numbers=numbers)

    def changed(self, keys: Iterable[str], given: Given) -> "Table":
        """The table after the corrections of some rows have changed. given: of all rows, as they are now."""
        parts = list(self.parts)
        for place in {self.numbers[key] // PART_ROWS for key in keys if key in self.numbers}:
            parts[place] = parts[place]._replace(now=corrected(parts[place].machine, given, self.types))
        return replace(self, parts=parts, given=given)

    def matching(self, query: Query) -> Array:
        """Which rows fulfil a query: bools of shape (rows,)."""
        masks = [query.mask(part.now).to_numpy(zero_copy_only=False) for part in self.parts]
        return np.concatenate([np.zeros(0, bool), *masks])

    def column(self, name: str) -> pa.ChunkedArray:
        """A column as it is now."""
        chunks = [chunk for part in self.parts for chunk in part.now[name].chunks]
        return pa.chunked_array(chunks, None if chunks else pa.string())

    @property
    def doubts(self) -> Array:
        """How much each row is to be doubted, from 0 to 1; float64 of shape (rows,)."""
        return np.concatenate([np.zeros(0), *(part.doubts for part in self.parts)])

    def by_part(self, rows: Sequence[int] | Array) -> Iterator[tuple[Part, Array, Array]]:
        """Yield the parts that rows are in; of each, where among `rows` its own are, and their places in the part."""
        numbers = np.asarray(rows, np.int64)
        of_part = numbers // PART_ROWS
        for place in np.unique(of_part):
            among = np.flatnonzero(of_part == place)
            yield self.parts[place], among, numbers[among] % PART_ROWS

    def values(self, rows: Sequence[int], *, machine: bool = False) -> list[Values]:
        """The values of rows, as they are now or as the models wrote them: numbers and texts, of JSON and times too."""
        found: list[Values] = [{}] * len(rows)
        for part, among, places in self.by_part(rows):
            table = (part.machine if machine else part.now).take(pa.array(places))
            for place, row in zip(among, table.to_pylist(), strict=True):
                found[place] = {name: shown(self.types[name], value) for name, value in row.items()}
        return found


def with_verified(table: pa.Table) -> pa.Table:
    return table.append_column(VERIFIED, pa.array([""] * len(table), pa.string()))


def doubts_of(machine: pa.Table) -> Array:
    names = [name for name in DOUBT_COLUMNS if name in machine.column_names]
    return np.array([doubt(row) for row in machine.select(names).to_pylist()])


def shown(kind: str, value: Any) -> Any:
    """A value as clients get it: a number or None, or a text."""
    if kind == "number":
        return value
    return value if isinstance(value, str) else value.isoformat() if value is not None else ""


def corrected(machine: pa.Table, given: Given, types: Mapping[str, str]) -> pa.Table:
    """Replace the values that people have corrected."""
    keys = machine["image_path"].to_pylist()
    by_column: dict[str, dict[int, str]] = {}
    for row, key in enumerate(keys):
        for name, correction in given.get(key, {}).items():
            if correction.value is not None and name in types:
                by_column.setdefault(name, {})[row] = correction.value
    table = machine
    for name, texts in by_column.items():
        place = table.column_names.index(name)
        table = table.set_column(place, name, with_texts(table[name], texts, types[name]))
    return table


def with_texts(cells: pa.ChunkedArray, texts: Mapping[int, str], kind: str) -> pa.Array:
    """A column with other cells in some rows, which are given as the texts that a CSV would have."""
    mask = np.zeros(len(cells), bool)
    mask[list(texts)] = True
    rows = sorted(texts)
    values = [
        typed(kind, texts[row]) if kind == "number" else texts[row] or (None if kind == "json" else "") for row in rows
    ]
    return pc.replace_with_mask(cells.combine_chunks(), pa.array(mask), pa.array(values, cells.type))
