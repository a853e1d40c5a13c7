"""Splits lines into the cells of CSV rows. A quote that is never closed costs its own line, not those after it."""

import csv
import re
from collections import deque
from collections.abc import Iterator

from vec_pipeline.lists.lines import LONGEST_LINE, Line

LONGEST_ROW = LONGEST_LINE  # characters of a row whose quoted cells hold line feeds
IN_QUOTES = r'[^"]*+(?:""[^"]*+)*+'

Row = tuple[int, list[str] | None]  # the number of its first line, and its cells; None where the line is too long

csv.field_size_limit(1 << 30)  # the length of lines is what is limited


class Rows:
    """The rows of a table with a header, from the line behind it.

    A quote begins a cell at its start only, as Python's `csv` has it. Cells that go on in the next line must end with a
    quote before a separator or the line's end, and the row must have as many cells as the header; otherwise its first
    line is taken as it is, with its quotes, and the next line begins another row.
    """

    def __init__(self, lines: Iterator[Line], separator: str, width: int) -> None:
        sep = re.escape(separator)
        cell = rf'(?:"{IN_QUOTES}"[^{sep}]*+|[^{sep}"][^{sep}]*+)?+'
        self._opens = re.compile(rf'(?:{cell}{sep})*+"{IN_QUOTES}\Z')
        self._closes = re.compile(rf'{IN_QUOTES}"(?:{sep}|\Z)')
        self._quote = re.compile(rf'{IN_QUOTES}"')
        self._separator = separator
        self._width = width
        self._lines = lines
        self._ahead: deque[Line] = deque()  # read, and not part of the row before
        self._not_closed_before = 0  # a quote that opens before this line has no end: it was looked for

    def __iter__(self) -> Iterator[Row]:
        while line := self._next():
            number, text = line
            if text is None:
                yield number, None
            elif '"' not in text:
                if text.strip():
                    yield number, text.split(self._separator)
            elif not self._opens.match(text):
                yield number, self.cells(text)
            else:
                yield number, self._of_several_lines(number, text) or text.split(self._separator)

    def cells(self, text: str) -> list[str]:
        return next(csv.reader([text], delimiter=self._separator))

    def _next(self) -> Line | None:
        return self._ahead.popleft() if self._ahead else next(self._lines, None)

    def _of_several_lines(self, number: int, first: str) -> list[str] | None:
        """The cells of a row whose quotes are closed in a later line; None, with those lines put back, if none is."""
        taken: list[Line] = []
        texts, size, is_open = [first], len(first), number >= self._not_closed_before
        while is_open and (line := self._next()):
            taken.append(line)
            text = line[1]
            size += len(text) if text is not None else LONGEST_ROW
            if text is None or size > LONGEST_ROW:
                break
            texts.append(text)
            if self._quote.match(text):
                closing = self._closes.match(text)
                if not closing:
                    break
                is_open = self._opens.match(text, closing.end()) is not None
        if not is_open and taken:
            cells = self.cells("\n".join(texts))
            if len(cells) == self._width:
                return cells
        if taken:
            self._not_closed_before = taken[-1][0]
        self._ahead.extendleft(reversed(taken))
        return None
