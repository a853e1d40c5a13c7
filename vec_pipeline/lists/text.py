"""Lists that are text: one entry a line, CSV or TSV with a header, JSON lines."""

import base64
import binascii
import csv
import json
import math
import re
import threading
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from itertools import islice
from typing import Any

from vec_pipeline.lists import Entry
from vec_pipeline.lists.columns import ADDRESS_NAMES, PRIORITY, address_column, check_types, kept_columns
from vec_pipeline.lists.csv_rows import Rows
from vec_pipeline.lists.files import shown
from vec_pipeline.lists.lines import LONGEST_LINE, Line, Lines
from vec_pipeline.record import SourceOptions, UserError, Values

TOO_LONG = f"ValueError: the line has more than {LONGEST_LINE:,} characters"
ADDRESS = re.compile(r"\s*(?:[A-Za-z][A-Za-z0-9+.-]*://|[/~.]|[A-Za-z]:\\)|.*\.\w{3,4}\s*\Z")  # how it begins or ends
SEPARATORS = (",", ";", "\t")
LINES_LOOKED_AT = 1000  # of JSON, for the names of columns: a value that is empty may have been left out


class TextTable:
    """What the three formats share: entries come in the order of the lines, and one is found by going there."""

    has_pictures = False
    has_priority = False

    def __init__(self, lines: Lines, columns: Mapping[str, str] | None = None) -> None:
        self.lines = lines
        self.encoding = lines.encoding
        self.columns = columns or {}
        self._lock = threading.Lock()
        self._walk: Iterator[Entry] = iter(())
        self._at = Entry(0)  # the last entry of the walk

    def entries(self) -> Iterator[Entry]:
        raise NotImplementedError

    def length(self) -> int | None:
        return self.lines.length()

    def entry(self, number: int) -> Entry | None:
        """The entry of a line: quick where entries are asked for in the order of the lines."""
        with self._lock:
            if self._at.number == 0 or self._at.number > number:
                self._walk, self._at = self.entries(), Entry(0)
            while self._at.number < number:
                self._at = next(self._walk, Entry(0))
                if not self._at.number:
                    return None
            return self._at if self._at.number == number else None


class PlainTable(TextTable):
    """An address or a path a line."""

    def entries(self) -> Iterator[Entry]:
        for number, text in self.lines:
            if text is None:
                yield Entry(number, error=TOO_LONG)
            elif text := text.strip():
                yield Entry(number, text)


class CsvTable(TextTable):
    """A table with a header."""

    def __init__(self, lines: Lines, options: SourceOptions, suffix: str) -> None:
        where = shown(lines.address)
        self.separator, self.header = header_of(lines.first, suffix, options.column)
        name = address_column(self.header, options.column, where)
        kept = kept_columns(options.keep, self.header, where)
        super().__init__(lines, check_types(types_of_texts(kept), where))
        self._address = self.header.index(name)
        self._kept = [(self.header.index(name), new_name) for name, new_name in kept.items() if name != PRIORITY]
        self.has_priority = PRIORITY in self.header
        if self.has_priority:
            self._priority_column = self.header.index(PRIORITY)
            self._priority_names = {PRIORITY, kept.get(PRIORITY, PRIORITY)}

    def entries(self) -> Iterator[Entry]:
        lines = iter(self.lines)
        for _, text in lines:  # to the header
            if text is None or text.strip():
                break
        for number, cells in Rows(lines, self.separator, len(self.header)):
            yield Entry(number, error=TOO_LONG) if cells is None else self._entry(number, cells)

    def _entry(self, number: int, cells: list[str]) -> Entry:
        values: Values = {}
        for index, name in self._kept:
            if index < len(cells) and cells[index]:  # programs leave out empty cells at the end
                values[name] = clean(cells[index])
        if self.has_priority:
            index = self._priority_column
            values |= dict.fromkeys(self._priority_names, priority_of(cells[index] if index < len(cells) else ""))
        if self._address >= len(cells):
            error = f"ValueError: the row has too few cells, {len(cells)} of {len(self.header)}"
            return Entry(number, values=values, error=error)
        return Entry(number, cells[self._address].strip(), None, values)


class JsonTable(TextTable):
    """An object a line."""

    def __init__(self, lines: Lines, options: SourceOptions) -> None:
        where = shown(lines.address)
        self._temporary = options.temporary
        names = names_of_objects(lines)
        kept = kept_columns(options.keep, names, where)
        super().__init__(lines, check_types(types_of_texts(kept), where))
        self._address = address_column(names, options.column, where)
        self._kept = {name: new_name for name, new_name in kept.items() if name != PRIORITY}
        self._priority_names = {PRIORITY, kept.get(PRIORITY, PRIORITY)}
        self.has_priority = PRIORITY in names

    def entries(self) -> Iterator[Entry]:
        for number, text in self.lines:
            if text is None:
                yield Entry(number, error=TOO_LONG)
            elif text.strip():
                found = object_of(text)
                yield Entry(number, error=found) if isinstance(found, str) else self._entry(number, found)

    def _entry(self, number: int, found: dict[str, Any]) -> Entry:
        given = {new_name: found[name] for name, new_name in self._kept.items() if found.get(name) is not None}
        values: Values = {name: as_text(value) for name, value in given.items()}
        if self.has_priority:
            values |= dict.fromkeys(self._priority_names, priority_of(found.get(PRIORITY)))
        cell = found.get(self._address)
        if isinstance(cell, dict):  # as `datasets` has pictures
            if cell.get("bytes"):
                return self._of_bytes(number, cell["bytes"], values)
            cell = cell.get("path")
        if cell is None or isinstance(cell, str):
            return Entry(number, (cell or "").strip(), None, values)
        what = f"{self._address} is {as_text(cell)[:100]}, which is no address"
        return Entry(number, values=values, error=f"ValueError: {what}")

    def _of_bytes(self, number: int, text: object, values: Values) -> Entry:
        from vec_pipeline.downloads.temporary import temporary_content

        try:
            data = base64.b64decode(str(text), validate=True)
        except (binascii.Error, ValueError):
            return Entry(number, values=values, error="ValueError: the bytes of the picture are not base64")
        digest = blake2b(data, digest_size=8).hexdigest()
        return Entry(number, "", temporary_content(data, digest, folder=self._temporary), values)


def has_header(first: str, suffix: str, column: str) -> bool:
    """Whether what is not JSON is a table: a .csv that does not begin with a lone address, or what has `column`."""
    if suffix != ".csv":
        return bool(column) and column in header_of(first, ".csv", column)[1]
    if column:
        return True
    names = header_of(first, suffix, "")[1]
    return len(names) != 1 or not ADDRESS.match(names[0])


def header_of(first: str, suffix: str, column: str) -> tuple[str, list[str]]:
    """The separator of a table, and the names of its columns, by its first line.

    A .csv is separated by what makes one of the names the wanted one, or one of the usual names.
    """
    headers = {separator: cells_of(first, separator) for separator in (("\t",) if suffix == ".tsv" else SEPARATORS)}
    for separator, names in headers.items():
        if column in names if column else any(name.lower() in ADDRESS_NAMES for name in names):
            return separator, names
    separator = max(headers, key=lambda each: len(headers[each]))
    return separator, headers[separator]


def cells_of(line: str, separator: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=separator), [])]


def names_of_objects(lines: Lines) -> list[str]:
    """The names in the first objects; those of the first alone if the lines come once, since others may come late."""
    names: dict[str, None] = {}
    head: Iterator[Line] = iter([(1, lines.first)]) if lines.comes_once else islice(lines, LINES_LOOKED_AT)
    for _, text in head:
        found = object_of(text) if text else ""
        names |= dict.fromkeys(found) if isinstance(found, dict) else {}
    if not names:
        raise UserError(f"{shown(lines.address)} holds no JSON object in its first lines: give an object a line")
    return list(names)


def object_of(text: str) -> dict[str, Any] | str:
    """The object of a line; or what is wrong with it, as an Entry has it."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"{type(error).__name__}: the line is not JSON ({str(error)[:100]})"
    return found if isinstance(found, dict) else "ValueError: the line is JSON, but no object"


def types_of_texts(kept: Mapping[str, str]) -> dict[str, str]:
    return {new_name: "number" if name == PRIORITY else "text" for name, new_name in kept.items()}


def as_text(value: Any) -> str:
    return clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def clean(text: str) -> str:
    """The text as a CSV can hold it: bytes that are not UTF-8 and halves of characters are spelt with a backslash."""
    if text.isascii() and "\0" not in text:
        return text
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character, which JSON can spell
        data = text.encode("utf-8", "backslashreplace")
    return data.decode("utf-8", "backslashreplace").replace("\0", "\N{REPLACEMENT CHARACTER}")


def priority_of(value: object) -> float | None:
    """Higher comes first; None for what is no number, which comes last."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
