"""The review of one CSV: its rows in memory, what people have corrected, and the acts that change it."""

import os
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vec_pipeline.annotations import CsvReader, content_reader
from vec_pipeline.commands.serve.review.bulk import LONGEST_CELL, Operation, Reset, Set
from vec_pipeline.commands.serve.review.groups import Groups
from vec_pipeline.commands.serve.review.order import Order, firsts, ordered
from vec_pipeline.commands.serve.review.pixels import Pixels
from vec_pipeline.commands.serve.review.table import Array, Given, Table, shown
from vec_pipeline.corrections import (
    CORRECTABLE,
    EDIT,
    NEVER,
    VERIFIED,
    Act,
    Change,
    Corrections,
    Entry,
    Unavailable,
    check_change,
)
from vec_pipeline.query import Query
from vec_pipeline.record import ContentOf, UserError, Values
from vec_pipeline.settings import recorded_settings


class Edit(NamedTuple):
    """A cell that is to change: its row, and its text before and after; `new` is None for what the models wrote."""

    row: int
    key: str
    column: str
    old: str
    new: str | None


class Bulk(NamedTuple):
    """What an operation did, or would do: its act, 0 for none; how many rows were chosen, and the cells that change."""

    act: int
    rows: int
    edits: list[Edit]


class Wish(NamedTuple):
    """A change as a client asks for it; see `corrections.Change`. key: which the client knows the row by."""

    row: int
    column: str
    value: str | None
    seen: int | None = None
    key: str | None = None


class Outdated(Exception):  # noqa: N818 (it says what is the matter)
    """A client speaks of rows or acts of another CSV, or as they were numbered before the server was started again."""


class Review:
    """What is shown of a CSV and done to it, by several clients at the same time; the caller holds the CSV's lock.

    Who reads gets what there is at the moment, and waits for nobody who writes. The rows are read at the first use, and
    those that have come at later ones.

    csv_id: the same for a CSV each time it is reviewed; 16 hexadecimal digits.
    server_id: for as long as its rows keep their numbers; 16 hexadecimal digits.

    Raises Unavailable where the CSV or the corrections cannot be used.
    """

    def __init__(self, csv_path: Path) -> None:
        self.csv_path = csv_path
        self.csv_id = blake2b(os.fsencode(csv_path.resolve()), digest_size=8).hexdigest()
        self.server_id = secrets.token_hex(8)
        self.groups = Groups(csv_path)
        self._corrections = Corrections(csv_path)
        self._given: Given = self._corrections.current().values
        self.last_act = max((act.id for act in self._corrections.acts(1)), default=0)
        self._changing = threading.RLock()  # of all of these
        self._table: Table | None = None
        self._size_bytes = 0  # of the CSV, when rows were read last
        self._end_bytes = 0  # how far they were read
        self._pixels = Pixels(csv_path, self._corrections, self._changing)
        if self._given:
            self._pixels.note()

    def close(self) -> None:
        with self._changing:
            self._corrections.close()

    @cached_property
    def content_of(self) -> ContentOf:
        """What finds the picture of a key."""
        return content_reader(self.csv_path)

    @cached_property
    def _allowed_categories(self) -> list[str]:
        options = [stage.get("categories") for stage in recorded_settings(self.csv_path).stages.values()]
        return [name for names in options if isinstance(names, list) for name in names]

    @property
    def table(self) -> Table:
        """The rows as they are now. Raises Unavailable where the CSV cannot be read."""
        try:
            table = self._table
            if table is None or self.csv_path.stat().st_size != self._size_bytes:
                with self._changing:
                    table = self._table = self._grown()
            return table
        except (OSError, UserError) as error:
            raise Unavailable(f"the rows cannot be read: {error}") from None

    def given(self, key: str) -> dict[str, str]:
        """What people have set columns of a picture to; those that are the models' are left out."""
        found = self._given.get(key, {})
        return {name: each.value for name, each in found.items() if each.value is not None}

    def correctable(self) -> list[str]:
        """The names of the columns that people can correct."""
        return [name for name, kind in self.table.types.items() if kind in CORRECTABLE and name not in NEVER]

    def categories(self) -> list[str]:
        """Those of the rows, the most frequent first, and then those that a stage may choose from."""
        counts = self.table.column("categories").value_counts().to_pylist()
        used = [each["values"] for each in sorted(counts, key=lambda each: -each["counts"]) if each["values"]]
        return list(dict.fromkeys([*used, *self._allowed_categories]))

    def matching(self, where: str, order: Order = "csv", *, is_unique: bool = False) -> Array:
        """The numbers of the rows that fulfil a query, in an order: int64 of shape (rows,).

        is_unique: of each group of near-duplicates, the first one alone.

        Raises UserError where it is no query.
        """
        table = self.table
        groups = self.groups.of(table.starts)
        rows = ordered(table, order, groups)
        return chosen_of(rows, table, where, groups if is_unique else None)

    def next_open(self, after: int, where: str, order: Order, *, is_unique: bool) -> int | None:
        """The next row that nobody has accepted or rejected; the first one again after the last, None for no other.

        after: a row that keeps its place in the order while it is decided on, whether it fulfils the query or not.

        Raises UserError where it is no query, and where there is no such row.
        """
        table = self.table
        check_rows([after], table)
        groups = self.groups.of(table.starts)
        order_of_all = ordered(table, order, groups, undecided=after)
        rows = chosen_of(order_of_all, table, where, groups if is_unique else None)
        is_open = pc.equal(table.column(VERIFIED), "").to_numpy()
        rows = rows[is_open[rows] & (rows != after)]
        places = np.argsort(order_of_all)  # of each row, in the order
        later = rows[places[rows] > places[after]]
        found = [*later[:1].tolist(), *rows[:1].tolist()]
        return found[0] if found else None

    def shown(self, rows: Sequence[int]) -> list[Values]:
        """What a page shows of rows, in their order. Raises UserError for one that is not there."""
        table = self.table
        check_rows(rows, table)
        groups = self.groups.of(table.starts)
        found = []
        for row, values, machine in zip(rows, table.values(rows), table.values(rows, machine=True), strict=True):
            key = values["image_path"]
            given = {name: each for name, each in table.given.get(key, {}).items() if name in table.types}
            found.append({
                "row": row, "key": key, "name": key.rstrip("/").rpartition("/")[2],
                "picture": f"/v1/review/picture/{row}?v={version_of(key)}", "values": values,
                "machine": {name: machine[name] for name, each in given.items() if each.value is not None},
                "acts": {name: each.act for name, each in given.items()},
                "verified": values[VERIFIED], "group": int(groups[row]),
            })  # fmt: skip
        return found

    def key_of(self, row: int) -> str:
        """Raises UserError where there is no such row."""
        table = self.table
        check_rows([row], table)
        key: str = table.values([row])[0]["image_path"]
        return key

    def acts(self, most: int, before: int | None) -> list[Act]:
        with self._changing:
            return self._corrections.acts(most, before)

    def history(self, row: int) -> list[Entry]:
        """What was done to a row, the newest first. Raises UserError where there is no such row."""
        key = self.key_of(row)
        with self._changing:
            return self._corrections.history(key)

    def planned(self, rows: Sequence[int], operation: Operation) -> list[Edit]:
        """The cells that an operation changes, and how. Raises UserError where it cannot be done."""
        table = self.table
        check_rows(rows, table)
        is_reset = isinstance(operation, Reset)
        columns = self.correctable() if is_reset and not operation.column else [operation.column]
        for column in columns:
            check_operation(operation, column, table.types)
        edits: list[Edit] = []
        for part, among, places in table.by_part(rows):
            numbers = np.asarray(rows)[among].tolist()
            chosen = part.now.select(["image_path", *columns]).take(pa.array(places))
            keys = chosen["image_path"].to_pylist()
            for column in columns:
                old = [text_of(shown(table.types[column], cell)) for cell in chosen[column].to_pylist()]
                for number, key, before, after in zip(numbers, keys, old, operation.changed(old), strict=True):
                    if before != after if after is not None else is_corrected(table.given, key, column):
                        check_length(after, f"{column} of {key} (row {number})")
                        edits.append(Edit(number, key, column, before, after))
        return edits

    def correct(self, wishes: Sequence[Wish], who: str) -> tuple[int, list[int]]:
        """Make changes by hand as one act; return its number, and the rows that it changed.

        Raises Conflict where a value is not what was seen, Outdated where a row is not, and UserError where a value is
        not possible.
        """
        table = self.table
        check_rows([wish.row for wish in wishes if wish.key is None], table)
        rows = [wish.row for wish in wishes if wish.row < len(table)]  # one that is gone had another number
        keys = [values["image_path"] for values in table.values(rows)]
        if len(rows) < len(wishes) or any(wish.key not in (None, key) for wish, key in zip(wishes, keys, strict=True)):
            raise Outdated("the row has another picture now: load the page again")
        for wish in wishes:
            check_change(table.types, wish.column, wish.value)
            check_length(wish.value, wish.column)
        changes = [Change(key, *wish[1:4]) for key, wish in zip(keys, wishes, strict=True)]
        return self._done(lambda: self._corrections.correct(changes, EDIT, who))

    def bulk(self, where: str, rows: Sequence[int] | None, operation: Operation, who: str, *, is_preview: bool) -> Bulk:
        """Do an operation as one act, or say what it would do. Raises UserError where it cannot be done.

        rows: to do it to; None for those that fulfil the query `where`.
        """
        with self._changing if not is_preview else nullcontext():  # nobody else changes anything meanwhile
            chosen = self.matching(where).tolist() if rows is None else list(dict.fromkeys(rows))
            edits = self.planned(chosen, operation)
            if is_preview or not edits:
                return Bulk(0, len(chosen), edits)
            given = self._given
            changes = [Change(each.key, each.column, each.new, act_of(given, each.key, each.column)) for each in edits]
            act, _ = self._done(lambda: self._corrections.correct(changes, operation.what(), who))
            return Bulk(act, len(chosen), edits)

    def undo(self, act: int, who: str) -> tuple[int, list[int]]:
        """Undo an act as an act of its own; return its number, and the rows that it changed.

        Raises Conflict where a value was changed since, and UserError where there is nothing to undo.
        """
        return self._done(lambda: self._corrections.undo(act, who))

    def _done(self, do: Callable[[], int]) -> tuple[int, list[int]]:
        with self._changing:
            act = do()
            changed = self._corrections.changed_since(self.last_act)
            self._given = {**self._given, **changed}
            table = self._table = self.table.changed(changed, self._given)
            self.last_act = act
        self._pixels.note()
        return act, sorted(table.numbers[key] for key in changed if key in table.numbers)

    def _grown(self) -> Table:
        self._size_bytes = self.csv_path.stat().st_size
        with CsvReader(self.csv_path, machine=True) as reader:
            names = reader.names_of("text", "number", "json", "file")
            table = self._table or Table(
                {**{name: reader.types[name] for name in names}, VERIFIED: "text"}, given=self._given
            )
            blocks = list(reader.blocks(names, start=self._end_bytes))
        if blocks:
            self._end_bytes = int(blocks[-1].ends[-1])
        return table.grown(blocks)


def check_rows(rows: Sequence[int], table: Table) -> None:
    """Raises UserError where one is not there."""
    if rows and not 0 <= (wrong := max(rows)) < len(table):
        raise UserError(f"there is no row {wrong}: the CSV has {len(table):,}, counted from 0")


def chosen_of(rows: Array, table: Table, where: str, groups: Array | None) -> Array:
    """Those of some rows that fulfil a query, in their order; of each of these groups the first alone.

    Raises UserError where it is no query.
    """
    rows = rows[table.matching(Query(where, table.types))[rows]] if where.strip() else rows
    return rows if groups is None else rows[firsts(groups[rows])]


def check_length(text: str | None, whose: str) -> None:
    """Raises UserError where it is too long for a cell."""
    if text is not None and len(text) > LONGEST_CELL:
        raise UserError(f"{whose} would get a text of {len(text):,} characters: use {LONGEST_CELL:,} at most")


def check_operation(operation: Operation, column: str, types: Mapping[str, str]) -> None:
    """Raises UserError where a column cannot be changed so."""
    check_change(types, column, operation.value if isinstance(operation, Set) else None)
    if operation.of_text and (types[column] != "text" or column == VERIFIED):
        raise UserError(f"{column} holds no free text: set it, or reset it")


def is_corrected(given: Given, key: str, column: str) -> bool:
    return key in given and column in given[key] and given[key][column].value is not None


def act_of(given: Given, key: str, column: str) -> int:
    """The act that made a value, 0 for the models."""
    return given[key][column].act if key in given and column in given[key] else 0


def text_of(value: Any) -> str:
    return "" if value is None else str(value)


def version_of(key: str) -> str:
    """What tells the picture of a row from the one that it has when the server runs again."""
    return blake2b(key.encode(errors="surrogatepass"), digest_size=4).hexdigest()
