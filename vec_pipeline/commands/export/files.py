"""Rows to one file: Parquet, JSON lines, or CSV for a spreadsheet; streamed, and put in place in one step."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vec_pipeline.annotations import column_names, read_blocks, schema
from vec_pipeline.commands import in_one_step, read_with_bar
from vec_pipeline.record import VECTOR_COLUMNS, UserError

if TYPE_CHECKING:
    import pyarrow as pa

ROW_GROUP_BYTES = 1 << 26  # of a Parquet file, in memory: 13,000 rows of 1,196 floats
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def write_parquet(csv_path: Path, out: Path) -> int:
    """Write a Parquet file; return its rows.

    A vector column is a fixed-size list of float32 (a plain list where no row has a vector), null where a row has none;
    timestamp is a timestamp, text_confidence and clip_score are doubles, all else is text.

    Raises UserError where a column holds vectors of different lengths.
    """
    import pyarrow as pa
    from pyarrow import parquet

    target = parquet_schema(csv_path)
    texts = [name for name in target.names if name not in VECTOR_COLUMNS]
    rows = 0
    with (
        in_one_step(out) as new,
        parquet.ParquetWriter(new, target, compression="zstd", use_dictionary=texts) as writer,
    ):
        for table in regrouped(block.table for block in read_with_bar(csv_path)):
            try:
                writer.write_table(table.cast(target))
            except pa.ArrowInvalid:
                raise UserError(
                    f"{csv_path} holds vectors of different lengths in one column, of two models: "
                    "use --to jsonl, or annotate into a new file"
                ) from None
            rows += len(table)
    return rows


def parquet_schema(csv_path: Path) -> "pa.Schema":
    import pyarrow as pa

    fixed = {name: pa.list_(pa.float32(), size) for name, size in dimensions(csv_path).items()}
    types = {"timestamp": pa.timestamp("ms"), **fixed}  # Parquet knows no seconds
    return pa.schema([(field.name, types.get(field.name, field.type)) for field in schema(column_names(csv_path))])


def dimensions(csv_path: Path) -> dict[str, int]:
    """The length of the first vector of each column that has any; reads no further than it must."""
    import pyarrow.compute as pc

    found: dict[str, int] = {}
    for block in read_blocks(csv_path, VECTOR_COLUMNS, vectors_as_text=True):
        for name in VECTOR_COLUMNS:
            vectors = block.table[name].filter(pc.not_equal(block.table[name], ""))
            if name not in found and len(vectors):
                found[name] = vectors[0].as_py().count(",") + 1
        if len(found) == len(VECTOR_COLUMNS):
            break
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


def write_json_lines(csv_path: Path, out: Path) -> int:
    """Write one JSON object a line; return their number. Vectors are lists, with the digits of the CSV, or null."""
    rows = 0
    with in_one_step(out) as new, new.open("w", encoding="utf-8") as file:
        for block in read_with_bar(csv_path, vectors_as_text=True):
            file.writelines(map(json_line, block.table.to_pylist()))
            rows += len(block.table)
    return rows


def json_line(row: Mapping[str, Any]) -> str:
    cells = (
        (value or "null")
        if name in VECTOR_COLUMNS
        else json.dumps(value, ensure_ascii=False, default=datetime.isoformat)
        for name, value in row.items()
    )
    return "{" + ", ".join(f'"{name}": {cell}' for name, cell in zip(row, cells, strict=True)) + "}\n"


def write_spreadsheet(csv_path: Path, out: Path) -> int:
    """Write a CSV without vectors; return its rows.

    Text that a spreadsheet would take for a formula gets an apostrophe before it, as OWASP advises (CSV injection);
    a byte order mark tells Excel that it is UTF-8.
    """
    names = [name for name in column_names(csv_path) if name not in VECTOR_COLUMNS]
    rows = 0
    with in_one_step(out) as new, new.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(names)
        for block in read_with_bar(csv_path, names):
            writer.writerows([safe_cell(cell) for cell in row.values()] for row in block.table.to_pylist())
            rows += len(block.table)
    return rows


def safe_cell(cell: Any) -> Any:
    return "'" + cell if isinstance(cell, str) and cell.startswith(FORMULA_STARTS) else cell


WRITERS: dict[str, Callable[[Path, Path], int]] = {
    "parquet": write_parquet,
    "jsonl": write_json_lines,
    "csv": write_spreadsheet,
}
