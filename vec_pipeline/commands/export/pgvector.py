"""Rows to PostgreSQL with pgvector: three tables joined by image id, written in one transaction."""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vec_pipeline.annotations import CsvReader
from vec_pipeline.commands import blocks_with_bar, is_stream
from vec_pipeline.commands.export.files import Shape, column_shapes
from vec_pipeline.record import COLUMNS, UserError
from vec_pipeline.terminal import plural

INSTALL = "pip install 'vec-pipeline[pgvector]'"

try:
    import psycopg
    from psycopg.sql import SQL, Composable, Identifier
except ImportError:
    raise UserError(f"--to pgvector needs psycopg: {INSTALL}") from None

if TYPE_CHECKING:
    import pyarrow as pa

Connection = psycopg.Connection[tuple[Any, ...]]
IMAGE_COLUMNS = ("timestamp", "error")
MOST_NUMBERS = 16_000  # of a vector in pgvector
MOST_INDEXED = {"vector": 2_000, "halfvec": 4_000}  # numbers of a vector in an HNSW index
VECTOR_TYPE = re.compile(r"(?:.*\.)?(?P<kind>vector|halfvec)(?:\((?P<length>\d+)\))?")  # as PostgreSQL names it
NO_PGVECTOR = "install pgvector on that server"
REMEDIES = {  # the first that fits
    psycopg.errors.FeatureNotSupported: NO_PGVECTOR,
    psycopg.errors.UndefinedFile: NO_PGVECTOR,  # the same, of PostgreSQL 15 and older
    psycopg.errors.InsufficientPrivilege: "have its administrator run CREATE EXTENSION vector and allow you to create "
    "tables",
    psycopg.OperationalError: "check --dsn and whether the server is running",
    psycopg.errors.InvalidTextRepresentation: "correct or delete that row",
    psycopg.DataError: "its tables hold vectors of other models: use another database",
    psycopg.Error: "correct that, or use another database",
}


def export(reader: CsvReader, dsn: str | None, folder: Path | None) -> str:
    """Write the rows into the server of `dsn`, or into an embedded one whose data are in `folder`; say what was done.

    An image that is there already gets the CSV's values; a row that has them already is not touched; images that the
    CSV lacks stay. A column without any vector is not created. If anything fails, nothing is changed. Raises UserError.
    """
    if bool(dsn) == bool(folder):
        raise UserError("--to pgvector needs either --dsn postgresql://..., or --out FOLDER for an embedded server")
    with server(dsn, folder) as url:
        try:
            with psycopg.connect(url) as connection:
                rows, notes = write(connection, reader)
        except psycopg.Error as error:
            remedy = next(text for kind, text in REMEDIES.items() if isinstance(error, kind))
            raise UserError(f"PostgreSQL: {str(error).partition(chr(10))[0]}; nothing was changed: {remedy}") from None
    where = "the server" if dsn else f"{folder}; pgserver.get_server({str(folder)!r}).get_uri() opens it in Python"
    said = f"{plural(rows, 'row')} in images, image_descriptions and image_embeddings of {where}"
    return "\n".join([said, *notes])


@contextmanager
def server(dsn: str | None, folder: Path | None) -> Iterator[str]:
    """Give the URL of a PostgreSQL: the user's own, or an embedded one that runs as long as the block."""
    if folder is None:
        yield str(dsn)
        return
    is_new = not is_stream(folder) and not (folder.exists() and (not folder.is_dir() or any(folder.iterdir())))
    if not is_new and not (folder / "PG_VERSION").exists():
        raise UserError(f"{folder} is not a database: name a new folder with --out")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a missing XDG_RUNTIME_DIR
            import pgserver
        folder.parent.mkdir(parents=True, exist_ok=True)
        running = pgserver.get_server(folder)
    except ImportError:
        remedy = f"{INSTALL} with Python 3.11 or 3.12, or pass --dsn postgresql://... of a server"
        raise UserError(f"pgserver is not installed: {remedy}") from None
    except Exception as error:  # of its programs, which have printed the reason
        raise UserError(
            f"{folder}: the embedded PostgreSQL does not start ({type(error).__name__}): use --dsn"
        ) from None
    with running:
        yield running.get_uri()


def write(connection: Connection, reader: CsvReader) -> tuple[int, list[str]]:
    """Write all rows; return their number, and notes on vectors that are not as usual.

    What the server refuses is tried again with types that take more: a first row does not speak for a column that holds
    the vectors of two models, and not every number fits into half precision.
    """
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    has_half = bool(connection.execute("SELECT 1 WHERE to_regtype('halfvec') IS NOT NULL").fetchall())
    tried: list[dict[str, str]] = []
    failure = psycopg.DataError()
    for every_row, half in ((False, has_half), (True, has_half), (True, False)):
        types = {name: vector_type(name, shapes, half) for name, shapes in column_shapes(reader, every_row).items()}
        if types in tried:
            continue
        tried.append(types)
        try:
            return write_rows(connection, reader, types), index_vectors(connection, types)
        except psycopg.DataError as error:
            connection.rollback()
            failure = error
    raise failure


def vector_type(name: str, shapes: set[Shape], half: bool) -> str:
    """The type of a vector column in PostgreSQL: jsonb where it holds no embeddings.

    half: whether vectors that are too long for an index otherwise are of half precision.
    """
    lengths = {length for *_, length in shapes}
    is_flat = {shape[:2] for shape in shapes} == {("f", 1)} and min(lengths) > 0 and max(lengths) <= MOST_NUMBERS
    if len(lengths) > 1:
        return "vector" if is_flat and name in COLUMNS else "jsonb"
    (length,) = lengths
    is_half = half and MOST_INDEXED["vector"] < length <= MOST_INDEXED["halfvec"]
    return f"{'halfvec' if is_half else 'vector'}({length})" if is_flat else "jsonb"


def write_rows(connection: Connection, reader: CsvReader, types: Mapping[str, str]) -> int:
    """Create or complete the tables, and put every row into them; return the number of rows.

    types: of the vector columns; those of type jsonb go to image_descriptions.
    """
    others = [name for name, kind in reader.types.items() if kind != "vector" or types.get(name) == "jsonb"]
    tables = {
        "images": list(IMAGE_COLUMNS),
        "image_descriptions": [name for name in others if name not in ("image_path", *IMAGE_COLUMNS)],
        "image_embeddings": [name for name, kind in types.items() if kind != "jsonb"],
    }
    make_tables(connection, tables, column_types(reader, types))
    rows = 0
    columns = ["image_path", *chain(*tables.values())]
    for block in blocks_with_bar(reader, columns, as_text=reader.names_of("vector")):
        copy(connection, block.table)
        for name, written in tables.items():
            if written:
                upsert(connection, name, written)
        connection.execute("TRUNCATE incoming")
        rows += len(block.table)
    return rows


def column_types(reader: CsvReader, vectors: Mapping[str, str]) -> dict[str, Composable]:
    """The types of columns in PostgreSQL; those that are missing are text."""
    types: dict[str, Composable] = dict.fromkeys(reader.names_of("json"), SQL("jsonb"))
    types |= dict.fromkeys(reader.names_of("number"), SQL("double precision"))
    types |= {name: SQL(kind) for name, kind in vectors.items()}
    return types | {"timestamp": SQL("timestamp")}


def index_vectors(connection: Connection, columns: Iterable[str]) -> list[str]:
    """Index columns of image_embeddings where pgvector can; return a note on each that is not as usual.

    To be called after the rows are there: an index is built faster at once.
    """
    notes = []
    for name, kind, length in embedding_columns(connection, columns):
        if length == 0:
            notes.append(f"{name} has vectors of different lengths and no index")
        elif length > MOST_INDEXED[kind]:
            notes.append(
                f"{name} has {length:,} numbers and no index: HNSW takes up to {MOST_INDEXED['vector']:,}, or "
                f"{MOST_INDEXED['halfvec']:,} of half precision (pgvector 0.7)"
            )
        else:
            notes += [f"{name} has {length:,} numbers, saved in half precision"] if kind == "halfvec" else []
            connection.execute(
                SQL("CREATE INDEX IF NOT EXISTS {} ON image_embeddings USING hnsw ({} {})").format(
                    Identifier(f"image_embeddings_{name}_hnsw"), Identifier(name), SQL(f"{kind}_cosine_ops")
                )
            )
    return notes


def embedding_columns(connection: Connection, names: Iterable[str]) -> list[tuple[str, str, int]]:
    """Name, type and length of columns of image_embeddings as they are, which an earlier export may have created.

    The length is 0 where vectors of any length are allowed.
    """
    found = connection.execute(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
        "WHERE attrelid = 'image_embeddings'::regclass AND attname = ANY(%s) ORDER BY attnum",
        (list(names),),
    )
    parsed = ((name, VECTOR_TYPE.fullmatch(kind)) for name, kind in found)
    return [(name, match["kind"], int(match["length"] or 0)) for name, match in parsed if match]


def make_tables(connection: Connection, tables: Mapping[str, Sequence[str]], types: Mapping[str, Composable]) -> None:
    """Create what does not exist yet, and `incoming`, which takes the rows of one block as they come."""
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS images "
        "(id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, image_path text NOT NULL UNIQUE)"
    )
    for name in ("image_descriptions", "image_embeddings"):
        connection.execute(
            SQL(
                "CREATE TABLE IF NOT EXISTS {} (image_id bigint PRIMARY KEY REFERENCES images ON DELETE CASCADE)"
            ).format(Identifier(name))
        )
    connection.execute("CREATE TEMPORARY TABLE incoming (image_path text) ON COMMIT DROP")
    add_column = SQL("ALTER TABLE {} ADD COLUMN IF NOT EXISTS {} {}")
    for name, columns in tables.items():
        for column in columns:
            for table in (name, "incoming"):
                connection.execute(
                    add_column.format(Identifier(table), Identifier(column), types.get(column, SQL("text")))
                )


def copy(connection: Connection, table: "pa.Table") -> None:
    """Put a block's rows into `incoming`; where two rows are of one image, the later one."""
    rows = {row["image_path"]: row for row in table.to_pylist()}
    columns = SQL(", ").join(map(Identifier, table.column_names))
    with connection.cursor().copy(SQL("COPY incoming ({}) FROM STDIN").format(columns)) as into:
        for row in rows.values():
            into.write_row(list(row.values()))


def upsert(connection: Connection, table: str, columns: Sequence[str]) -> None:
    """Update a table from `incoming`; rows that do not change are not touched, nor are their index entries."""
    is_images = table == "images"
    key = SQL("image_path" if is_images else "image_id")
    source = SQL("incoming" if is_images else "incoming JOIN images USING (image_path)")

    def listed(of: str) -> Composable:
        return SQL(", ").join(Identifier(of, column) for column in columns)

    connection.execute(
        SQL(
            "INSERT INTO {table} ({names}) SELECT {values} FROM {source} ON CONFLICT ({key}) "
            "DO UPDATE SET {changes} WHERE ({old}) IS DISTINCT FROM ({new})"
        ).format(
            table=Identifier(table),
            names=SQL(", ").join([key, *map(Identifier, columns)]),
            values=SQL(", ").join([SQL("image_path" if is_images else "images.id"), listed("incoming")]),
            source=source,
            key=key,
            changes=SQL(", ").join(SQL("{0} = EXCLUDED.{0}").format(Identifier(column)) for column in columns),
            old=listed(table),
            new=listed("excluded"),
        )
    )
