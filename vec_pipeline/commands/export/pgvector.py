"""Rows to PostgreSQL with pgvector: three tables joined by image id, written in one transaction."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.sql import SQL, Composable, Identifier

from vec_pipeline.annotations import CsvReader
from vec_pipeline.commands import blocks_with_bar
from vec_pipeline.commands.export.files import array_types
from vec_pipeline.record import UserError

if TYPE_CHECKING:
    import pyarrow as pa

Connection = psycopg.Connection[tuple[Any, ...]]
IMAGE_COLUMNS = ("timestamp", "error")
NO_PGVECTOR = "install pgvector on that server"
REMEDIES = {  # the first that fits
    psycopg.errors.FeatureNotSupported: NO_PGVECTOR,
    psycopg.errors.UndefinedFile: NO_PGVECTOR,  # the same, of PostgreSQL 15 and older
    psycopg.errors.InsufficientPrivilege: "have its administrator run CREATE EXTENSION vector and allow you to create "
    "tables",
    psycopg.OperationalError: "check --dsn and whether the server is running",
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
    sizes = embedding_sizes(reader)
    with server(dsn, folder) as url:
        try:
            with psycopg.connect(url) as connection:
                rows = write(connection, reader, sizes)
        except psycopg.Error as error:
            remedy = next(text for kind, text in REMEDIES.items() if isinstance(error, kind))
            raise UserError(f"PostgreSQL: {str(error).partition(chr(10))[0]}; nothing was changed: {remedy}") from None
    where = "the server" if dsn else f"{folder}; pgserver.get_server({str(folder)!r}).get_uri() opens it in Python"
    return f"{rows:,} rows in images, image_descriptions and image_embeddings of {where}"


def embedding_sizes(reader: CsvReader) -> dict[str, int | None]:
    """The length of the vectors of each vector column that has any; None where they are not floats of one length."""
    import pyarrow as pa

    types = array_types(reader).items()
    return {name: kind.list_size if pa.types.is_fixed_size_list(kind) else None for name, kind in types}


@contextmanager
def server(dsn: str | None, folder: Path | None) -> Iterator[str]:
    """Give the URL of a PostgreSQL: the user's own, or an embedded one that runs as long as the block."""
    if folder is None:
        yield str(dsn)
        return
    if folder.exists() and not (folder / "PG_VERSION").exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not a database: name a new folder with --out")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a missing XDG_RUNTIME_DIR
            import pgserver
        folder.parent.mkdir(parents=True, exist_ok=True)
        running = pgserver.get_server(folder)
    except ImportError:
        raise UserError("pgserver is not installed: pass --dsn postgresql://... of a server") from None
    except Exception as error:  # of its programs, which have printed the reason
        raise UserError(
            f"{folder}: the embedded PostgreSQL does not start ({type(error).__name__}): use --dsn"
        ) from None
    with running:
        yield running.get_uri()


def write(connection: Connection, reader: CsvReader, sizes: Mapping[str, int | None]) -> int:
    """Create or complete the tables, put every row into them, and index the vectors; return the number of rows.

    sizes: as of `embedding_sizes`. Arrays that are no embeddings go to image_descriptions, as jsonb.
    """
    embeddings = {name: size for name, size in sizes.items() if size}
    others = [name for name, kind in reader.types.items() if kind != "vector" or (name in sizes and not sizes[name])]
    tables = {
        "images": list(IMAGE_COLUMNS),
        "image_descriptions": [name for name in others if name not in ("image_path", *IMAGE_COLUMNS)],
        "image_embeddings": list(embeddings),
    }
    make_tables(connection, tables, column_types(reader, embeddings))
    rows = 0
    columns = ["image_path", *chain(*tables.values())]
    for block in blocks_with_bar(reader, columns, as_text=reader.names_of("vector")):
        copy(connection, block.table)
        for name, written in tables.items():
            if written:
                upsert(connection, name, written)
        connection.execute("TRUNCATE incoming")
        rows += len(block.table)
    for column in embeddings:  # after the rows: an index is built faster at once
        connection.execute(
            SQL("CREATE INDEX IF NOT EXISTS {} ON image_embeddings USING hnsw ({} vector_cosine_ops)").format(
                Identifier(f"image_embeddings_{column}_hnsw"), Identifier(column)
            )
        )
    return rows


def column_types(reader: CsvReader, embeddings: Mapping[str, int]) -> dict[str, Composable]:
    """The types of columns in PostgreSQL; those that are missing are text."""
    types: dict[str, Composable] = dict.fromkeys(reader.names_of("vector", "json"), SQL("jsonb"))
    types |= dict.fromkeys(reader.names_of("number"), SQL("double precision"))
    types |= {name: SQL("vector({})").format(size) for name, size in embeddings.items()}
    return types | {"timestamp": SQL("timestamp")}


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
