"""The rows of a CSV, of a finished run or of one still appending: a pandas table, or blocks in constant memory."""

import csv
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from vec_pipeline.device import free_cores
from vec_pipeline.record import COLUMNS, VECTOR_COLUMNS, UserError
from vec_pipeline.sinks.csv_file import row_ends

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

FLOAT_COLUMNS = ("text_confidence", "clip_score")
BLOCK_BYTES = 1 << 23
THREADS = min(4, free_cores())  # pyarrow parses without the interpreter's lock

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a CSV.

    table: pyarrow table of the columns asked for, in their order.
    starts, ends: where each row begins and ends in the file, in bytes; int64 of shape (rows,).
    """

    table: "pa.Table"
    starts: "np.ndarray[Any, np.dtype[np.int64]]"
    ends: "np.ndarray[Any, np.dtype[np.int64]]"


def load_annotations(path: str | Path = "output/annotations.csv", vectors: bool = True) -> "pd.DataFrame":
    """Read the rows into a pandas DataFrame.

    vectors: whether to read the vector columns, which are nearly all of the file. Each holds float32 arrays of shape
    (dimensions,), views of one matrix, or None where a row has none; `np.stack(table["image_vector"].dropna())` is
    the matrix.

    timestamp is a datetime, text_confidence and clip_score are floats, NaN where they are empty; every other column is
    text, empty where there is nothing. A torn last row is left out: a run may be appending to the file.

    Raises UserError where the file is missing or none of ours.
    """
    import pandas as pd
    import pyarrow as pa

    names = [name for name in column_names(path) if vectors or name not in VECTOR_COLUMNS]
    table = pa.concat_tables([schema(names).empty_table(), *(block.table for block in read_blocks(path, names))])
    is_vector = [name for name in names if name in VECTOR_COLUMNS]
    frame: pd.DataFrame = table.drop_columns(is_vector).to_pandas()
    for name in is_vector:
        frame.insert(names.index(name), name, pd.Series(arrays(table[name]), index=frame.index, dtype=object))
    return frame


def arrays(column: "pa.ChunkedArray") -> list[Any]:
    """Lists of float32 as numpy arrays, views of one matrix where all are of one length; None for null."""
    import pyarrow.compute as pc

    values = np.concatenate([np.zeros(0, np.float32), *(chunk.flatten().to_numpy() for chunk in column.chunks)])
    lengths = pc.list_value_length(column).fill_null(0).to_numpy()
    there = lengths > 0
    ends = np.cumsum(lengths[there])
    is_matrix = len(set(lengths[there])) == 1
    views = iter(values.reshape(len(ends), -1) if is_matrix else np.split(values, ends[:-1]))
    return [next(views) if is_there else None for is_there in there]


def read_blocks(
    path: str | Path, columns: Sequence[str] = (), *, vectors_as_text: bool = False, start: int = 0
) -> Iterator[Block]:
    """Yield the rows in blocks of about 8 MB of the file, so that memory stays flat at any size.

    columns: those to read, empty for all; one that the file lacks is null.
    vectors_as_text: leave vectors the JSON arrays they are in the file ("" where there is none), instead of lists of
    float32 (or null).
    start: the byte to begin at, where a row does.

    Types are those of `schema`. A torn last row is left out: a run may be appending to the file. Raises UserError where
    the file is missing, none of ours, or damaged.
    """
    with opened(path) as file:
        header, header_end = read_header(file, path)
        wanted = schema(columns or header, vectors_as_text=vectors_as_text)

        def parse(rows: Rows) -> Block:
            return parsed(rows, header, wanted, path)

        yield from in_threads(parse, whole_rows(file, max(start, header_end)))


def column_names(path: str | Path) -> tuple[str, ...]:
    """The columns of a CSV: the twelve of the contract, and any others. Raises UserError as `read_blocks` does."""
    with opened(path) as file:
        return read_header(file, path)[0]


def read_row(path: str | Path, start: int, end: int) -> dict[str, str]:
    """Read the cells of the row between two bytes of the file, as text."""
    with opened(path) as file:
        names, _ = read_header(file, path)
        file.seek(start)
        text = file.read(end - start).decode("utf-8", "replace")
    return dict(zip(names, next(csv.reader(io.StringIO(text, newline=""))), strict=False))


def schema(names: Iterable[str], *, vectors_as_text: bool = False) -> "pa.Schema":
    """What columns hold, as pyarrow types."""
    import pyarrow as pa

    types: dict[str, Any] = dict.fromkeys(FLOAT_COLUMNS, pa.float64()) | {"timestamp": pa.timestamp("s")}
    if not vectors_as_text:
        types |= dict.fromkeys(VECTOR_COLUMNS, pa.list_(pa.float32()))
    return pa.schema([(name, types.get(name, pa.string())) for name in names])


def opened(path: str | Path) -> FileIO:
    try:
        return Path(path).open("rb", buffering=0)
    except FileNotFoundError:
        raise UserError(f"{path} is not there: name the CSV of a run, or make one with run.py") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name the CSV of a run") from None


def read_header(file: FileIO, path: str | Path) -> tuple[tuple[str, ...], int]:
    """Return the columns, and where the rows begin."""
    line, newline, _ = file.read(1 << 16).partition(b"\n")
    names = tuple(next(csv.reader([line.decode("utf-8", "replace").rstrip("\r")]), ()))
    if not newline or names[: len(COLUMNS)] != COLUMNS:
        raise UserError(f"{path} does not begin with the columns of an annotation ({', '.join(COLUMNS[:3])}, ...): "
                        "name the CSV of a run")  # fmt: skip
    return names, len(line) + 1


class Rows(NamedTuple):
    """Whole rows as they are in the file: their bytes, and where in the file each begins and ends."""

    data: bytes
    starts: Any
    ends: Any


def whole_rows(file: FileIO, start: int) -> Iterator[Rows]:
    """Yield whole rows, about a block at a time. A blank line, which editors leave, is none."""
    file.seek(start)
    rest, in_quotes = b"", False
    while block := file.read(BLOCK_BYTES):
        ends, in_quotes = row_ends(block, in_quotes)
        if not ends:
            rest += block
            continue
        data = rest + block[: ends[-1]]
        bounds = np.array([0, *(len(rest) + end for end in ends)], np.int64)
        rest = block[ends[-1] :]
        rows = without_blanks(Rows(data, start + bounds[:-1], start + bounds[1:]))
        if rows.data:
            yield rows
        start += len(data)


def without_blanks(rows: Rows) -> Rows:
    first = rows.starts[0]
    short = np.flatnonzero(rows.ends - rows.starts < len(COLUMNS))  # shorter than the commas of an empty row
    blank = [row for row in short if rows.data[rows.starts[row] - first : rows.ends[row] - first].isspace()]
    if not blank:
        return rows
    starts, ends = np.delete(rows.starts, blank), np.delete(rows.ends, blank)
    kept = (rows.data[start - first : end - first] for start, end in zip(starts, ends, strict=True))
    return Rows(b"".join(kept), starts, ends)


def parsed(rows: Rows, header: Sequence[str], wanted: "pa.Schema", path: str | Path) -> Block:
    """Turn rows into a table. Raises UserError where they are no rows."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    types = {field.name: pa.string() if pa.types.is_list(field.type) else field.type for field in wanted}
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(rows.data),
            arrow_csv.ReadOptions(column_names=header, block_size=len(rows.data) + 1, use_threads=False),
            arrow_csv.ParseOptions(newlines_in_values=True),
            arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()) | types,
                include_columns=wanted.names,
                include_missing_columns=True,
                null_values=[""],
            ),
        )
        if len(table) != len(rows.starts):
            raise pa.ArrowInvalid("a quote stands where none should")
        columns = [
            vectors_of(table[field.name]) if pa.types.is_list(field.type) else table[field.name] for field in wanted
        ]
    except pa.ArrowInvalid as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} is damaged between byte {rows.starts[0]} and {rows.ends[-1]} ({reason}): mend or "
                        "remove that row, or annotate into a new file") from None  # fmt: skip
    return Block(pa.table(columns, schema=wanted), rows.starts, rows.ends)


def vectors_of(cells: "pa.ChunkedArray") -> "pa.Array":
    """JSON arrays of numbers to lists of float32, each the nearest to its digits; null for an empty cell."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = pc.ascii_trim(pa.concat_arrays(cells.chunks), characters="[]")
    parts = pc.split_pattern(pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts), ",")
    return pa.ListArray.from_arrays(parts.offsets, pc.cast(parts.flatten(), pa.float32()), mask=parts.is_null())


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Map in order, a few items ahead of the one being used."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
