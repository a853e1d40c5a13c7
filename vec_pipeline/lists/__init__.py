"""Reads lists of pictures entry by entry: plain lines, CSV, TSV, JSON lines and Parquet, local or remote."""

import os
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from vec_pipeline.record import Content, SourceOptions, UserError

STDIN = "-"
TEXT_SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson")
SUFFIXES = (*TEXT_SUFFIXES, ".parquet")
COMPRESSED_SUFFIXES = (".gz", ".zst")


class Entry(NamedTuple):
    """One entry of a list.

    number: of its line, from 1 as editors count; of its row in Parquet, from 0 as pandas counts.
    text: an address or a path, as the list has it.
    content: the picture itself, where the list holds it.
    values: the columns that come along, by their names in the CSV; and `priority`, if the list has such a column.
    error: what is wrong with it, as "Kind: message".
    """

    number: int
    text: str = ""
    content: Content | None = None
    values: Mapping[str, Any] = MappingProxyType({})
    error: str = ""


class Table(Protocol):
    """A list with its columns chosen.

    columns: that come along, by their names in the CSV, and their types.
    has_pictures: whether it holds pictures, and no addresses.
    encoding: as a person calls it; empty for what is no text.
    """

    columns: Mapping[str, str]
    has_priority: bool
    has_pictures: bool
    encoding: str

    def entries(self) -> Iterator[Entry]: ...

    def entry(self, number: int) -> Entry | None:
        """The entry with a number, or None if there is no such entry."""
        ...

    def length(self) -> int | None:
        """How many there are, about, in constant time; None where that cannot be known."""
        ...


def suffix_of(name: str) -> str:
    """What tells the format of a list, in lower case; empty if the name is not a list's."""
    stem, suffix = os.path.splitext(name.lower())
    if suffix in COMPRESSED_SUFFIXES:
        suffix = os.path.splitext(stem)[1]
    return suffix if suffix in SUFFIXES else ""


def open_table(address: str, options: SourceOptions) -> Table:
    """Choose the columns of a list. Raises UserError where they are not there, and what opening raises."""
    from vec_pipeline.lists.files import shown

    if suffix_of(address) == ".parquet":
        from vec_pipeline.lists.parquet import ParquetTable

        return ParquetTable(address, options)
    from vec_pipeline.lists.lines import Lines
    from vec_pipeline.lists.text import CsvTable, JsonTable, PlainTable, has_header

    lines, suffix = Lines(address), suffix_of(address)
    if lines.is_empty:
        raise UserError(f"{shown(address)} is empty: name a list of pictures")
    if suffix in (".jsonl", ".ndjson") or (suffix in ("", ".txt") and lines.first.lstrip().startswith("{")):
        return JsonTable(lines, options)
    if suffix == ".tsv" or has_header(lines.first, suffix, options.column):
        return CsvTable(lines, options, suffix)
    if options.keep:
        what = f"has no header, so there is no {options.keep[0]!r} to keep"
        raise UserError(f"{shown(address)} {what}: add a header, or name the column of its addresses with --column")
    return PlainTable(lines)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
