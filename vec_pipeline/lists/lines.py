"""Lines of text, one at a time, in bounded memory: any line end, UTF-8 or UTF-16, with bytes that are neither kept."""

import io
from collections.abc import Generator, Iterator
from contextlib import closing, suppress

from vec_pipeline.lists import COMPRESSED_SUFFIXES, STDIN
from vec_pipeline.lists.files import open_list, size_bytes

LONGEST_LINE = 1_000_000  # characters
HEAD_BYTES = 1 << 16  # of which the mean length of a line is taken
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # byte order marks

Line = tuple[int, str | None]  # its number, from 1, and its text without its end; None for one that is too long


class Lines:
    """The lines of a list. It can be iterated over again, except for standard input.

    first: the first line that is not blank; empty if there is none, or if it is too long.
    encoding: as a person calls it.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.encoding = "UTF-8"
        self._stdin = self._read() if address == STDIN else None
        self._ahead: list[Line] = []  # of standard input, read already
        self.is_empty = False
        self.first = self._first()

    @property
    def comes_once(self) -> bool:
        return self._stdin is not None

    def __iter__(self) -> Iterator[Line]:
        if self._stdin is None:
            yield from self._read()
            return
        yield from self._ahead
        self._ahead = []
        yield from self._stdin

    def _first(self) -> str:
        lines = self._stdin or self._read()
        for line in lines:
            if self._stdin:
                self._ahead.append(line)
            if line[1] is None or line[1].strip():
                if not self._stdin:
                    lines.close()
                return line[1] or ""
        self.is_empty = True
        return ""

    def _read(self) -> Generator[Line]:
        file = open_list(self.address)
        with closing(file):
            self.encoding = "UTF-16" if file.peek(2)[:2] in UTF_16 else "UTF-8"
            yield from numbered(file, self.encoding)

    def length(self) -> int | None:
        """How many there are, by the size of the file and the first 64 kB; None where the size says nothing."""
        if self.address == STDIN or self.address.lower().endswith(COMPRESSED_SUFFIXES):
            return None
        with closing(open_list(self.address)) as file:
            head = file.read(HEAD_BYTES)
        ends = head.count(b"\n") or head.count(b"\r")
        if len(head) < HEAD_BYTES:
            return ends + (not head.endswith((b"\n", b"\r")) and bool(head))
        with suppress(OSError):
            return size_bytes(self.address) * max(ends, 1) // len(head)
        return None


def numbered(file: io.BufferedReader, encoding: str) -> Iterator[Line]:
    """Bytes that are not UTF-8 become surrogates, as in the names of files; those that are not UTF-16 a mark."""
    codec, errors = ("utf-16", "replace") if encoding == "UTF-16" else ("utf-8-sig", "surrogateescape")
    text = io.TextIOWrapper(file, codec, errors, newline=None)
    number = 0
    while line := text.readline(LONGEST_LINE):
        number += 1
        if line[-1] == "\n":
            yield number, line[:-1]
        elif len(line) < LONGEST_LINE:
            yield number, line
        else:
            while (rest := text.readline(LONGEST_LINE)) and rest[-1] != "\n":
                pass
            yield number, None
