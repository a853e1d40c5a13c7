"""The rows of a CSV, of a finished run or of one still appending: a pandas table, or blocks in constant memory."""

import json
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import orjson

from vec_pipeline.corrections import VERIFIED, current_of, typed
from vec_pipeline.device import free_cores
from vec_pipeline.query import Query
from vec_pipeline.record import COLUMNS, ContentOf, SourceOptions, UserError
from vec_pipeline.settings import column_types, recorded_settings
from vec_pipeline.sinks.csv_rows import (
    RESTORE,
    Offsets,
    Rows,
    change_in_vector,
    first_change,
    has_contract,
    read_header,
    refuse_saved_elsewhere,
    row_blocks,
)
from vec_pipeline.sources import content_of

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

FLAT_FLOATS = r"^\[-?[0-9]+[.e]"  # how the JSON of a 1-D float array begins, and no other array's
THREADS = min(4, free_cores())  # pyarrow parses without the interpreter's lock

Array = np.ndarray[Any, Any]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a CSV.

    table: pyarrow table of the columns asked for, in their order.
    starts, ends: where each row begins and ends in the file, in bytes; int64 of shape (rows,).
    """

    table: "pa.Table"
    starts: Offsets
    ends: Offsets


def content_reader(csv_path: Path, *others: Path) -> ContentOf:
    """What finds the pictures of a CSV's keys: in the sources and in the store that it was made with.

    others: CSVs whose sources may have the same keys.
    """
    store = recorded_settings(csv_path).store
    options = SourceOptions(store=csv_path.parent / store if store else None)
    modules = dict.fromkeys(name for path in (csv_path, *others) for name in recorded_settings(path).sources)
    return lambda key: content_of(key, modules, options)


def load_annotations(
    path: str | Path = "output/annotations.csv", vectors: bool = True, *, machine: bool = False, where: str = ""
) -> "pd.DataFrame":
    """Read the rows into a pandas DataFrame, with what people have corrected.

    machine: read what the models wrote, without corrections.
    where: a query, such as `category:vehicle -verified`, that rows must fulfil; empty for all.
    vectors: whether to read the vector columns, which are nearly all of the file. Each holds numpy arrays (None where a
    row has none): float32, or int64 for an array of integers. Embeddings have shape (dimensions,) and are views of one
    matrix; `np.stack(table["image_vector"].dropna())` is the matrix.

    The other columns follow the types that were declared for them: numbers are float64, NaN where they are empty or
    not finite; JSON is parsed, None where it is empty; timestamp is a datetime; all else is text, empty where there is
    nothing. A torn last row is left out: a run may be appending to the file.

    Raises UserError where the file is missing, not made by this worker, or damaged, and where `where` is no query.
    """
    import pandas as pd
    import pyarrow as pa

    with CsvReader(path, machine=machine, where=where) as reader:
        names = [name for name, kind in reader.types.items() if vectors or kind != "vector"]
        tables = [block.table for block in reader.blocks(names)]
    plain = [name for name in names if reader.types[name] not in OBJECTS]
    empty = reader.schema(plain).empty_table()
    frame: pd.DataFrame = pa.concat_tables([empty, *(table.select(plain) for table in tables)]).to_pandas()
    for position, name in enumerate(names):
        if objects_of := OBJECTS.get(reader.types[name]):
            objects = objects_of([table[name] for table in tables], f"{path}: {name}")
            frame.insert(position, name, pd.Series(objects, index=frame.index, dtype=object))
    return frame


class CsvReader:
    """A CSV of annotations, opened once: all rows come from one file, even if a run replaces it meanwhile.

    types: of its columns, by name and in their order, as they were declared: COLUMN_TYPES. Where people have corrected
        something, the last one is `verified`.

    machine: read what the models wrote, without what people have corrected.
    where: a query that the rows of `blocks` must fulfil; empty for all.

    Raises UserError where the file is missing or not made by this worker, and where `where` is no query.
    """

    def __init__(self, path: str | Path, *, machine: bool = False, where: str = "") -> None:
        self.path = Path(path)
        self._file = opened(self.path)
        try:
            names, self._rows_start = read_header(self._file)
            if not has_contract(names):
                refuse_saved_elsewhere(self._file, self.path)
                raise UserError(
                    f"{path} does not begin with the columns of an annotation ({', '.join(list(COLUMNS)[:3])}, ...): "
                    "name the CSV of a run"
                )
            self._in_file = column_types(self.path, names)
            corrections = current_of(self.path)
            self.types = self._in_file | ({VERIFIED: "text"} if corrections.exists and not machine else {})
            self.corrections = corrections.marks() if machine else corrections  # which `where` may ask for
            self._query = Query(where, {**self.types, VERIFIED: "text"})
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def names_of(self, *kinds: str) -> list[str]:
        """The columns of some types, in their order."""
        return [name for name, kind in self.types.items() if kind in kinds]

    def status(self) -> os.stat_result:
        """The size, the inode and so on, as they are now."""
        return os.fstat(self._file.fileno())

    def read(self, start: int, end: int) -> bytes:
        """The bytes from an offset to another, as far as there are any."""
        return os.pread(self._file.fileno(), end - start, start)

    def blocks(self, columns: Sequence[str] = (), *, as_text: Collection[str] = (), start: int = 0) -> Iterator[Block]:
        """Yield the rows in blocks of about 8 MB of the file, so that memory stays flat at any size.

        columns: those to read, empty for all; one that the file lacks is null.
        as_text: vector columns to leave as the JSON arrays that they are in the file.
        start: the byte to begin at, where a row does.

        A vector is a list of float32; in a block with an array of integers, of several dimensions or without elements,
        that column stays text. Vectors, JSON and numbers are null where they are empty, and so are numbers that are not
        finite. The other types are those of `schema`. A torn last row is left out: a run may be appending to the file.
        Raises UserError where a row is damaged.
        """
        wanted = columns or tuple(self.types)
        needed = tuple(dict.fromkeys([*wanted, *self._query.columns]))

        def parse(rows: Rows) -> Block:
            return self._selected(self._parsed(rows, needed, as_text), wanted)

        found = in_threads(parse, row_blocks(self._file, max(start, self._rows_start)))
        yield from (block for block in found if len(block.table)) if self._query.columns else found

    def rows(self, places: Offsets, columns: Sequence[str]) -> "pa.Table":
        """Read single rows, by where each begins and ends: int64 of shape (rows, 2).

        Raises UserError where that many rows are not there.
        """
        data = b"".join(self.read(start, end) for start, end in places.tolist())
        return self._parsed(Rows(memoryview(data), places[:, 0], places[:, 1]), columns).table

    def schema(self, names: Iterable[str]) -> "pa.Schema":
        """What columns are read as: numbers as float64, timestamp as such, all others as text."""
        import pyarrow as pa

        types = dict.fromkeys(self.names_of("number"), pa.float64()) | {"timestamp": pa.timestamp("s")}
        return pa.schema([(name, types.get(name, pa.string())) for name in names])

    def _selected(self, block: Block, columns: Sequence[str]) -> Block:
        """The rows that fulfil the query, and of them these columns."""
        if not self._query.columns:
            return block
        mask = self._query.mask(block.table)
        kept = mask.to_numpy(zero_copy_only=False)
        return Block(block.table.select(columns).filter(mask), block.starts[kept], block.ends[kept])

    def _corrected(self, table: "pa.Table") -> "pa.Table":
        """Replace the cells that people have corrected; they have the types of `schema`."""
        import pyarrow as pa
        import pyarrow.compute as pc

        by_key = self.corrections.values
        places = pc.index_in(table["image_path"], value_set=pa.array(list(by_key), pa.string()))
        rows = np.flatnonzero(pc.is_valid(places).to_numpy(zero_copy_only=False))
        keys = table["image_path"].take(pa.array(rows)).to_pylist() if len(rows) else []
        for name in table.column_names:
            given = [each.value if (each := by_key[key].get(name)) else None for key in keys]
            changed = [number for number, value in enumerate(given) if value is not None]
            if not changed:
                continue
            mask = np.zeros(len(table), bool)
            mask[rows[changed]] = True
            is_number = self.types.get(name) == "number"
            texts = [given[each] or None for each in changed]
            values = [typed("number", text or "") for text in texts] if is_number else texts
            column = table[name].combine_chunks()
            new = pc.replace_with_mask(column, pa.array(mask), pa.array(values, column.type))
            table = table.set_column(table.column_names.index(name), name, new)
        return table

    def _parsed(self, rows: Rows, names: Sequence[str], as_text: Collection[str] = ()) -> Block:
        """Turn rows into a table. Raises UserError where their bytes are not rows."""
        import pyarrow as pa
        from pyarrow import csv as arrow_csv

        strings = dict.fromkeys(self._in_file, pa.string())
        is_corrected = bool(self.corrections.values)
        schema = self.schema(dict.fromkeys([*names, "image_path"]) if is_corrected else names)
        try:
            table = arrow_csv.read_csv(
                pa.BufferReader(rows.data),
                arrow_csv.ReadOptions(
                    column_names=list(self._in_file), block_size=len(rows.data) + 1, use_threads=False
                ),
                arrow_csv.ParseOptions(newlines_in_values=True),
                arrow_csv.ConvertOptions(
                    column_types=strings | {field.name: field.type for field in schema},
                    include_columns=schema.names,
                    include_missing_columns=True,
                    null_values=[""],
                    strings_can_be_null=True,
                ),
            )
            if len(table) != len(rows.starts):
                raise pa.ArrowInvalid("an unexpected quote")
            table = self._corrected(table) if is_corrected else table
            columns = {name: self._typed(name, table[name], name in as_text) for name in names}
        except pa.ArrowInvalid as error:
            if change := first_change(rows):
                raise UserError(f"{self.path} was saved by another program, which has {change}: {RESTORE}") from None
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"{self.path} is damaged between byte {rows.starts[0]} and {rows.ends[-1]} ({reason}): "
                            "correct or delete that row, or annotate into a new file") from None  # fmt: skip
        return Block(pa.table(columns), rows.starts, rows.ends)

    def _typed(self, name: str, cells: "pa.ChunkedArray", is_text: bool) -> "pa.ChunkedArray | pa.Array":
        """The cells of a column as `blocks` says; they come as `schema` says, null where they are empty."""
        import pyarrow.compute as pc

        kind = self.types.get(name)
        if kind == "vector" and not is_text:
            is_like_floats = pc.and_(pc.match_substring_regex(cells, FLAT_FLOATS), pc.ends_with(cells, "]"))
            is_flat = pc.all(is_like_floats, min_count=0).as_py()
            return lists_of(cells) if is_flat else cells
        if kind == "number":
            return pc.if_else(pc.is_finite(cells), cells, None)
        return pc.fill_null(cells, "") if kind in ("text", "file") and name != "timestamp" else cells


def opened(path: Path) -> FileIO:
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path} is a pipe or a device: save it to a file first")
    try:
        return path.open("rb", buffering=0)
    except FileNotFoundError:
        fix = "name the CSV of a run with --csv, or make one with `vec-pipeline run`"
        raise UserError(f"{path} does not exist: {fix}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name the CSV of a run") from None


def lists_of(cells: "pa.ChunkedArray") -> "pa.Array":
    """JSON arrays of floats to lists of float32, each the nearest to its digits; null stays null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    parts = pc.split_pattern(pc.ascii_trim(pa.concat_arrays(cells.chunks), characters="[]"), ",")
    return pa.ListArray.from_arrays(parts.offsets, pc.cast(parts.flatten(), pa.float32()), mask=parts.is_null())


def arrays(columns: Sequence["pa.ChunkedArray"], where: str) -> list[Array | None]:
    """The vectors of a column of some blocks as numpy arrays, None for null.

    Lists of float32 of one length become views of one matrix.

    where: what an error names. Raises UserError where a text is not the JSON of an array of numbers.
    """
    import pyarrow as pa

    if all(pa.types.is_list(column.type) for column in columns):
        return views([chunk for column in columns for chunk in column.chunks])
    found: list[Array | None] = []
    for column in columns:
        if pa.types.is_list(column.type):
            found += views(column.chunks)
        else:
            found += (None if cell is None else array_of(cell, where) for cell in column.to_pylist())
    return found


def views(chunks: Sequence["pa.ListArray"]) -> list[Array | None]:
    """Lists of float32 as numpy arrays, views of one matrix where all are of one length; None for null."""
    import pyarrow.compute as pc

    values = np.concatenate([np.zeros(0, np.float32), *(chunk.flatten().to_numpy() for chunk in chunks)])
    lengths = np.concatenate(
        [np.zeros(0, np.int32), *(pc.list_value_length(chunk).fill_null(0).to_numpy() for chunk in chunks)]
    )
    there = lengths > 0
    ends = np.cumsum(lengths[there])
    is_matrix = len(set(lengths[there])) == 1
    parts = iter(values.reshape(len(ends), -1) if is_matrix else np.split(values, ends[:-1]))
    return [next(parts) if is_there else None for is_there in there]


def array_of(cell: str, where: str) -> Array:
    """The JSON of an array of any shape as float32, or int64 where it holds integers alone. Raises UserError."""
    try:
        values = orjson.loads(cell)
        if isinstance(values, list):
            return np.array(values, np.float32 if "." in cell or "e" in cell else np.int64)
    except (ValueError, TypeError, OverflowError):
        pass
    if change := change_in_vector(cell):
        raise UserError(f"{where} was saved by another program, which has {change}: {RESTORE}")
    raise UserError(f"{where}: {shortened(cell)} is not an array of numbers: correct or delete that row")


def json_values(columns: Sequence["pa.ChunkedArray"], where: str) -> list[Any]:
    """The values of a JSON column of some blocks, None for null. Raises UserError where a text is not JSON."""
    return [None if cell is None else json_of(cell, where) for column in columns for cell in column.to_pylist()]


def json_of(cell: str, where: str) -> Any:
    try:
        return json.loads(cell)
    except ValueError:
        raise UserError(f"{where}: {shortened(cell)} is not JSON: correct or delete that row") from None


def shortened(cell: str) -> str:
    return repr(cell if len(cell) <= 40 else cell[:37] + "...")


OBJECTS: dict[str, Callable[[Sequence["pa.ChunkedArray"], str], list[Any]]] = {"vector": arrays, "json": json_values}


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
