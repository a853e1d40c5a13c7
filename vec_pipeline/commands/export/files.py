"""Rows to one file: Parquet, JSON lines, CSV for a spreadsheet, xlsx or SQLite; streamed."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import orjson

from vec_pipeline.annotations import CsvReader, array_of, json_of
from vec_pipeline.commands import blocks_with_bar
from vec_pipeline.record import COLUMNS, UserError

if TYPE_CHECKING:
    import pyarrow as pa

ROW_GROUP_BYTES = 1 << 26  # of a Parquet file, in memory: 13,000 rows of 1,196 floats
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")

Shape = tuple[str, int, int]


class Written(NamedTuple):
    """What a file holds: how many rows, and notes on what differs from the CSV."""

    rows: int
    notes: Sequence[str] = ()


def write_parquet(reader: CsvReader, file: BinaryIO) -> Written:
    """Write a Parquet file.

    A vector column has the type that `array_types` says, a plain list of float32 where no row has a vector; it is null
    where a row has none. timestamp is a timestamp, numbers are doubles, all else is text; JSON is null where it is
    empty.

    Raises UserError where an embedding has different lengths.
    """
    from pyarrow import parquet

    target = parquet_schema(reader)
    texts = reader.names_of("text", "file")
    rows = 0
    with parquet.ParquetWriter(file, target, compression="zstd", use_dictionary=texts) as writer:
        for table in tables_as(reader, target):
            writer.write_table(table)
            rows += len(table)
    return Written(rows)


def tables_as(reader: CsvReader, target: "pa.Schema") -> Iterator["pa.Table"]:
    """Yield the rows with the types of `parquet_schema`, in tables of ROW_GROUP_BYTES."""
    import pyarrow as pa

    embeddings = [field.name for field in target if pa.types.is_fixed_size_list(field.type)]
    others = [name for name in reader.names_of("vector") if name not in embeddings]
    for table in regrouped(block.table for block in blocks_with_bar(reader, as_text=others)):
        try:
            yield cast(table, target, others)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise UserError(
                f"{reader.path}: a column has embeddings of different lengths, of two models: "
                "use --to jsonl, or annotate into a new file"
            ) from None


def parquet_schema(reader: CsvReader) -> "pa.Schema":
    import pyarrow as pa

    vectors = dict.fromkeys(reader.names_of("vector"), pa.list_(pa.float32())) | array_types(reader)
    types = {"timestamp": pa.timestamp("ms"), **vectors}  # Parquet knows no seconds
    return pa.schema([(field.name, types.get(field.name, field.type)) for field in reader.schema(reader.types)])


def cast(table: "pa.Table", target: "pa.Schema", as_text: Sequence[str]) -> "pa.Table":
    """The table with the types of a schema; `as_text` are vector columns that are still JSON texts."""
    import pyarrow as pa

    for name in as_text:
        kind = target.field(name).type
        if not pa.types.is_string(kind):
            arrays = [None if cell is None else orjson.loads(cell) for cell in table[name].to_pylist()]
            table = table.set_column(table.column_names.index(name), name, pa.array(arrays, kind))
    return table.cast(target)


def array_types(reader: CsvReader) -> dict[str, "pa.DataType"]:
    """What holds the arrays of each vector column that has any.

    Floats of one length are a fixed-size list of float32, other arrays of one number of dimensions are (nested) lists,
    and a mixture is the JSON text.
    """
    return {name: array_type(shapes) for name, shapes in column_shapes(reader).items()}


def column_shapes(reader: CsvReader, every_row: bool = False) -> dict[str, set[Shape]]:
    """The shapes in each vector column that has any.

    every_row: read all rows of every column; otherwise the first row with a vector speaks for a column of the contract,
    which should be the embedding of one model.
    """
    names = reader.names_of("vector")
    embeddings = [] if every_row else [name for name in names if name in COLUMNS]
    shapes: dict[str, set[Shape]] = {name: set() for name in names}
    for block in reader.blocks(names, as_text=embeddings):
        for name in names:
            cells = block.table[name].drop_null()
            if name not in embeddings:
                shapes[name] |= shapes_of(cells, f"{reader.path}: {name}")
            elif not shapes[name]:
                shapes[name] = shapes_of(cells[:1], f"{reader.path}: {name}")
        if names == embeddings and all(shapes.values()):
            break
    return {name: found for name, found in shapes.items() if found}


def shapes_of(cells: "pa.ChunkedArray", where: str) -> set[Shape]:
    """Kind of number ("f" or "i"), number of dimensions and length of each array, which is a list or a JSON text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_list(cells.type):
        return {("f", 1, length) for length in pc.unique(pc.list_value_length(cells)).to_pylist()}
    found = (array_of(cell, where) for cell in cells.to_pylist())
    return {(array.dtype.kind, array.ndim, len(array)) for array in found}


def array_type(shapes: set[Shape]) -> "pa.DataType":
    import pyarrow as pa

    filled = {shape for shape in shapes if shape[2]} or shapes  # an empty array says nothing of its kind
    kinds, dimensions, lengths = map(set, zip(*filled, strict=True))
    if len(dimensions) > 1:
        return pa.string()
    if kinds == {"f"} and dimensions == {1} and len(shapes) == 1:
        return pa.list_(pa.float32(), lengths.pop())
    found = pa.int64() if kinds == {"i"} else pa.float32() if kinds == {"f"} else pa.float64()
    for _ in range(dimensions.pop()):
        found = pa.list_(found)
    return found


def regrouped(tables: Iterator["pa.Table"]) -> Iterator["pa.Table"]:
    """Join tables until they have ROW_GROUP_BYTES: small row groups read slowly."""
    import pyarrow as pa

    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(joined.nbytes for joined in waiting) >= ROW_GROUP_BYTES:
            yield pa.concat_tables(waiting)
            waiting.clear()
    if waiting:
        yield pa.concat_tables(waiting)


def write_json_lines(reader: CsvReader, file: BinaryIO) -> Written:
    """Write one JSON object per line. Vectors are lists, with the digits of the CSV, or null."""
    rows = 0
    for block in blocks_with_bar(reader, as_text=reader.names_of("vector")):
        file.writelines(json_line(reader, row).encode() for row in block.table.to_pylist())
        rows += len(block.table)
    return Written(rows)


def json_line(reader: CsvReader, row: Mapping[str, Any]) -> str:
    def value_of(name: str, cell: Any) -> str:
        kind = reader.types[name]
        if kind == "vector":
            return cell or "null"
        if kind == "json" and cell is not None:
            cell = json_of(cell, f"{reader.path}: {name}")  # on one line, and certainly JSON
        return json.dumps(cell, ensure_ascii=False, default=datetime.isoformat)

    return "{" + ", ".join(f"{json.dumps(name)}: {value_of(name, cell)}" for name, cell in row.items()) + "}\n"


def write_spreadsheet(reader: CsvReader, file: BinaryIO, delimiter: str = ",") -> Written:
    """Write a CSV without vectors.

    Text that a spreadsheet would take for a formula gets an apostrophe before it, as OWASP advises (CSV injection);
    a byte order mark tells Excel that it is UTF-8.
    """
    rows = 0
    text = io.TextIOWrapper(file, "utf-8-sig", newline="")
    writer = csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_NONNUMERIC)
    for row in spreadsheet_rows(reader):
        writer.writerow(row)
        rows += 1
    text.detach()  # which writes what it holds
    return Written(rows - 1)


def write_excel(reader: CsvReader, file: BinaryIO) -> Written:
    """Write an xlsx file without vectors; raises UserError where openpyxl is not installed."""
    from vec_pipeline.commands.export.excel import Workbook, temporary_files

    rows = spreadsheet_rows(reader)
    with temporary_files():
        book = Workbook(next(rows))
        for row in rows:
            book.add(row)
        book.save(file)
    return Written(book.rows, book.notes)


def write_sqlite(reader: CsvReader, file: BinaryIO) -> Written:
    """Write an SQLite database; raises UserError where two columns have one name for it."""
    from vec_pipeline.commands.export import sqlite

    return Written(sqlite.write(reader, file))


def spreadsheet_rows(reader: CsvReader) -> Iterator[list[Any]]:
    """Yield the names of the columns but for vectors, and then their cells, none of which is taken for a formula."""
    names = [name for name, kind in reader.types.items() if kind != "vector"]
    yield names
    for block in blocks_with_bar(reader, names):
        yield from ([safe_cell(cell) for cell in row.values()] for row in block.table.to_pylist())


def safe_cell(cell: Any) -> Any:
    return "'" + cell if isinstance(cell, str) and cell.startswith(FORMULA_STARTS) else cell


WRITERS: dict[str, Callable[[CsvReader, BinaryIO], Written]] = {
    "parquet": write_parquet,
    "jsonl": write_json_lines,
    "csv": write_spreadsheet,
    "xlsx": write_excel,
    "sqlite": write_sqlite,
}
