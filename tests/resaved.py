"""CSVs of this worker as other programs save them."""

import csv
import io
from collections.abc import Callable

import pandas as pd

BOM = b"\xef\xbb\xbf"
CELL_OF_EXCEL = 32_767  # characters; the rest of a longer cell is lost


def rewritten(content: bytes, *, quoting: int = csv.QUOTE_MINIMAL, delimiter: str = ",", line_end: str = "\n") -> bytes:
    rows = csv.reader(io.StringIO(content.decode(), newline=""))
    text = io.StringIO(newline="")
    csv.writer(text, quoting=quoting, delimiter=delimiter, lineterminator=line_end).writerows(rows)  # type: ignore[call-overload]
    return text.getvalue().encode()


def by_pandas(content: bytes) -> bytes:
    """Read and written again, the vectors as texts."""
    return pd.read_csv(io.BytesIO(content), keep_default_na=False).to_csv(index=False).encode()


READABLE: dict[str, Callable[[bytes], bytes]] = {
    "byte order mark": lambda content: BOM + content,
    "every cell quoted": lambda content: rewritten(content, quoting=csv.QUOTE_ALL),
    "line ends of Windows": lambda content: rewritten(content, line_end="\r\n"),
    "Excel": lambda content: BOM + rewritten(content, line_end="\r\n"),
    "all three": lambda content: BOM + rewritten(content, quoting=csv.QUOTE_ALL, line_end="\r\n"),
    "pandas": by_pandas,
}


def with_cells(content: bytes, change: Callable[[str, str], str]) -> bytes:
    """The rows with each cell changed by its column's name and its text."""
    header, *rows = csv.reader(io.StringIO(content.decode(), newline=""))
    changed = ([change(name, cell) for name, cell in zip(header, row, strict=True)] for row in rows)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerows([header, *changed])
    return BOM + text.getvalue().encode()


def localised(name: str, cell: str) -> str:
    return pd.Timestamp(cell).strftime("%d.%m.%Y %H:%M") if name == "timestamp" and cell else cell


UNREADABLE: dict[str, tuple[Callable[[bytes], bytes], str]] = {  # and what is said of each
    "semicolons": (lambda content: BOM + rewritten(content, delimiter=";"), "a spreadsheet program with ';' between"),
    "tabs": (lambda content: rewritten(content, delimiter="\t"), "a spreadsheet program with tabs between"),
    "UTF-16": (lambda content: content.decode().encode("utf-16"), "a spreadsheet program in UTF-16"),
    "Unicode text": (
        lambda content: rewritten(content, delimiter="\t", line_end="\r\n").decode().encode("utf-16"),
        "a spreadsheet program in UTF-16",
    ),
    "Macintosh": (
        lambda content: rewritten(with_cells(content, one_line), line_end="\r").removeprefix(BOM),
        "a spreadsheet program with other line ends",
    ),
    "an index": (lambda content: pd.read_csv(io.BytesIO(content)).to_csv().encode(), "pandas with an index column"),
    "other timestamps": (lambda content: with_cells(content, localised), "has changed the timestamp to '"),
    "cells cut": (
        lambda content: with_cells(content, lambda _, cell: cell[:CELL_OF_EXCEL]),
        "has cut off a vector",
    ),
}


def one_line(name: str, cell: str) -> str:
    return " ".join(cell.split())
