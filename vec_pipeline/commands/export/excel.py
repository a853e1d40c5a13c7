"""An xlsx file, written row by row: what does not fit into its cells is cut, and counted."""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO
from zipfile import ZIP_DEFLATED, ZipFile

from vec_pipeline.record import UserError
from vec_pipeline.terminal import plural

try:
    import openpyxl  # type: ignore[import-untyped, import-not-found, unused-ignore]
    from openpyxl.cell import WriteOnlyCell  # type: ignore[import-untyped, import-not-found, unused-ignore]
    from openpyxl.writer.excel import ExcelWriter  # type: ignore[import-untyped, import-not-found, unused-ignore]
except ImportError:
    raise UserError("--to xlsx needs openpyxl: pip install 'vec-pipeline[xlsx]'") from None

MOST_ROWS = 1_048_576  # of a sheet, its header included
MOST_CHARACTERS = 32_767  # of a cell
NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


@contextmanager
def temporary_files() -> Iterator[None]:
    """A folder for those of the block, which goes with it: openpyxl removes its own only where all went well."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before


class Workbook:
    """Sheets that each begin with the header; their rows are in temporary files until they are saved.

    rows: how many there are, without the headers.
    """

    def __init__(self, header: Sequence[str]) -> None:
        self.rows = 0
        self._header = header
        self._book = openpyxl.Workbook(write_only=True)
        self._cut = 0
        self._replaced = 0
        self._begin_sheet()

    @property
    def notes(self) -> list[str]:
        """What was changed so that it fits."""
        cut = f"{plural(self._cut, 'cell')} cut at the {MOST_CHARACTERS:,} characters that Excel allows"
        replaced = f"control characters replaced in {plural(self._replaced, 'cell')}"
        return [note for note, number in ((cut, self._cut), (replaced, self._replaced)) if number]

    def add(self, row: Sequence[Any]) -> None:
        if self.rows and self.rows % (MOST_ROWS - 1) == 0:
            self._begin_sheet()
        self._sheet.append([self._cell(value) for value in row])
        self.rows += 1

    def save(self, file: BinaryIO) -> None:
        with ZipFile(file, "w", ZIP_DEFLATED) as archive:  # openpyxl would leave it open on a full disk
            ExcelWriter(self._book, archive).save()

    def _begin_sheet(self) -> None:
        self._sheet = self._book.create_sheet(f"rows {self.rows + 1:,} on" if self.rows else "rows")
        self._sheet.freeze_panes = "A2"
        self._sheet.append(self._header)

    def _cell(self, value: Any) -> Any:
        """A value as it is, but a text as a cell of text, whatever it looks like."""
        if not isinstance(value, str):
            return value
        text = NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", value)
        self._replaced += text != value
        units = text.encode("utf-16-le")  # in which Excel counts
        if len(units) > 2 * MOST_CHARACTERS:
            text = units[: 2 * MOST_CHARACTERS].decode("utf-16-le", "ignore")
            self._cut += 1
        cell = WriteOnlyCell(self._sheet, text)
        cell.data_type = "s"  # also where it looks like an error of Excel, such as #REF!
        return cell
