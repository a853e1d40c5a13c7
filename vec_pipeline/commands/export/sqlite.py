"""Rows to an SQLite database: texts with a full-text search, keywords in a table of their own, vectors as bytes."""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, BinaryIO

from vec_pipeline.annotations import CsvReader, arrays
from vec_pipeline.commands import blocks_with_bar
from vec_pipeline.query import NOT_SEARCHED
from vec_pipeline.record import UserError

if TYPE_CHECKING:
    import pyarrow as pa

KEY = "row"
TYPES = {"number": "REAL", "vector": "BLOB"}  # all others are TEXT
INDEXED = ("image_path", "categories", "flags", "verified", "split")


def write(reader: CsvReader, file: BinaryIO) -> int:
    """Fill a database, whose file is there and empty; return the number of rows.

    `annotations` has the rows without their vectors, by a number from 0 on, `row`. `vectors` has these as float32, the
    lowest byte first; arrays of integers or of several dimensions are JSON. `keywords` has a row for each keyword.
    `annotations_fts` is the index of FTS5 over the texts.

    Raises UserError where two columns have one name for SQLite, or the disk is full.
    """
    refuse_equal_names(reader)
    try:
        with closing(sqlite3.connect(file.name, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = OFF")  # the file gets its name when it is whole
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("BEGIN")
            rows = write_rows(connection, reader)
            index(connection, reader)
            connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise UserError(f"the database cannot be written ({error}): free some disk space, then try again") from None
    return rows


def refuse_equal_names(reader: CsvReader) -> None:
    by_name = {KEY: KEY}
    for name in reader.types:
        if other := by_name.get(name.lower()):
            raise UserError(
                f"{reader.path}: {other} and {name} are one column to SQLite: rename one, or use another --to"
            )
        by_name[name.lower()] = name


def write_rows(connection: sqlite3.Connection, reader: CsvReader) -> int:
    vectors = reader.names_of("vector")
    plain = [name for name in reader.types if name not in vectors]
    make_table(connection, reader, "annotations", plain)
    make_table(connection, reader, "vectors", vectors, "REFERENCES annotations")
    connection.execute(
        f"CREATE TABLE keywords ({KEY} INTEGER REFERENCES annotations, keyword TEXT, PRIMARY KEY ({KEY}, keyword)) "
        "WITHOUT ROWID"
    )
    rows = 0
    for block in blocks_with_bar(reader):
        numbers = range(rows, rows + len(block.table))
        rows = numbers.stop
        cells = [cells_of(block.table[name]) for name in plain]
        insert(connection, "annotations", zip(numbers, *cells, strict=True))
        blobs = [blobs_of(block.table[name], f"{reader.path}: {name}") for name in vectors]
        insert(connection, "vectors", zip(numbers, *blobs, strict=True))
        insert(connection, "keywords", keywords_of(numbers, block.table["keywords"]))
    return rows


def make_table(
    connection: sqlite3.Connection, reader: CsvReader, table: str, columns: Sequence[str], of: str = ""
) -> None:
    listed = [f"{quoted(name)} {TYPES.get(reader.types[name], 'TEXT')}" for name in columns]
    connection.execute(f"CREATE TABLE {table} ({', '.join([f'{KEY} INTEGER PRIMARY KEY {of}', *listed])})")


def insert(connection: sqlite3.Connection, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
    [columns] = connection.execute("SELECT count(*) FROM pragma_table_info(?)", (table,)).fetchone()
    connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * columns)})", rows)


def cells_of(column: "pa.ChunkedArray") -> list[Any]:
    """Texts and numbers as they are, None for what is missing; timestamps as ISO 8601."""
    import pyarrow as pa
    import pyarrow.compute as pc

    is_time = pa.types.is_timestamp(column.type)
    cells: list[Any] = (pc.strftime(column, "%Y-%m-%dT%H:%M:%S") if is_time else column).to_pylist()
    return cells


def blobs_of(column: "pa.ChunkedArray", where: str) -> Iterator[bytes | str | None]:
    for array in arrays([column], where):
        is_vector = array is not None and array.ndim == 1 and array.dtype.kind == "f"
        yield None if array is None else array.astype("<f4").tobytes() if is_vector else json.dumps(array.tolist())


def keywords_of(rows: Iterable[int], column: "pa.ChunkedArray") -> Iterator[tuple[int, str]]:
    for row, cell in zip(rows, column.to_pylist(), strict=True):
        yield from ((row, word) for word in dict.fromkeys(part.strip() for part in cell.split(",")) if word)


def index(connection: sqlite3.Connection, reader: CsvReader) -> None:
    """Index what is there for the columns that are filtered by, and for the words of the texts."""
    for name in INDEXED:
        if name in reader.types:
            connection.execute(f"CREATE INDEX annotations_{name} ON annotations ({name})")
    connection.execute("CREATE INDEX keywords_keyword ON keywords (keyword)")
    texts = [quoted(name) for name in reader.names_of("text") if name not in NOT_SEARCHED]
    connection.execute(
        f'CREATE VIRTUAL TABLE annotations_fts USING fts5 ({", ".join(texts)}, content="annotations", '
        f'content_rowid="{KEY}", tokenize="unicode61 remove_diacritics 2")'
    )
    connection.execute("INSERT INTO annotations_fts (annotations_fts) VALUES ('rebuild')")


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
