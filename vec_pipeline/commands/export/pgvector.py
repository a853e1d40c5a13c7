"""Rows to PostgreSQL with pgvector: three tables joined by image id, written in one transaction."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.sql import SQL, Composable, Identifier

from vec_pipeline.annotations import FLOAT_COLUMNS, column_names
from vec_pipeline.commands import read_with_bar
from vec_pipeline.commands.export.files import dimensions
from vec_pipeline.record import VECTOR_COLUMNS, UserError

if TYPE_CHECKING:
    import pyarrow as pa

Connection = psycopg.Connection[tuple[Any, ...]]
IMAGE_COLUMNS = ("timestamp", "error")
NO_PGVECTOR = "install pgvector on that server"
REMEDIES = {  # the first that fits
    psycopg.errors.FeatureNotSupported: NO_PGVECTOR,
    psycopg.errors.UndefinedFile: NO_PGVECTOR,  # the same, of PostgreSQL 15 and older
    psycopg.errors.InsufficientPrivilege: "have its administrator run CREATE EXTENSION vector, and let you make tables",
    psycopg.OperationalError: "check --dsn, and that the server runs",
    psycopg.DataError: "its tables hold vectors of other models: give another database",
    psycopg.Error: "mend that, or give another database",
}


def export(csv_path: Path, dsn: str | None, folder: Path | None) -> str:
    """Write the rows into the server of `dsn`, or into an embedded one whose data are in `folder`; say what was done.

    An image that is there already gets the CSV's values, and one that has them is left alone; images that the CSV lacks
    stay. A column without any vector is not made. Nothing is changed where anything fails: then UserError is raised.
    """
    if bool(dsn) == bool(folder):
        raise UserError("--to pgvector needs either --dsn postgresql://..., or --out FOLDER for an embedded server")
    names, sizes = column_names(csv_path), dimensions(csv_path)
    with server(dsn, folder) as url:
        try:
            with psycopg.connect(url) as connection:
                rows = write(connection, csv_path, names, sizes)
        except psycopg.Error as error:
            remedy = next(text for kind, text in REMEDIES.items() if isinstance(error, kind))
            raise UserError(f"PostgreSQL: {str(error).partition(chr(10))[0]}; nothing was changed: {remedy}") from None
    where = "the server" if dsn else f"{folder}; pgserver.get_server({str(folder)!r}).get_uri() opens it in Python"
    return f"{rows:,} rows in images, image_descriptions and image_embeddings of {where}"


@contextmanager
def server(dsn: str | None, folder: Path | None) -> Iterator[str]:
    """Give the URL of a PostgreSQL: the user's own, or one that runs while the block does."""
    if folder is None:
        yield str(dsn)
        return
    if folder.exists() and not (folder / "PG_VERSION").exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is no database: name a new folder with --out")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a missing XDG_RUNTIME_DIR
            import pgserver
        folder.parent.mkdir(parents=True, exist_ok=True)
        running = pgserver.get_server(folder)
    except ImportError:
        raise UserError("pgserver is not there for this Python: give --dsn postgresql://... of a server") from None
    except Exception as error:  # of its programs, which have said on the terminal what ails them
        raise UserError(
            f"{folder}: the embedded PostgreSQL does not start ({type(error).__name__}): give --dsn"
        ) from None
    with running:
        yield running.get_uri()


def write(connection: Connection, csv_path: Path, names: Sequence[str], sizes: dict[str, int]) -> int:
    """Make or complete the tables, put every row into them, and index the vectors; return the number of rows."""
    types: dict[str, Composable] = {name: SQL("vector({})").format(size) for name, size in sizes.items()}
    types |= dict.fromkeys(FLOAT_COLUMNS, SQL("double precision")) | {"timestamp": SQL("timestamp")}
    tables = {
        "images": list(IMAGE_COLUMNS),
        "image_descriptions": [name for name in names if name not in ("image_path", *IMAGE_COLUMNS, *VECTOR_COLUMNS)],
        "image_embeddings": list(sizes),
    }
    make_tables(connection, tables, types)
    rows = 0
    for block in read_with_bar(csv_path, ["image_path", *chain(*tables.values())], vectors_as_text=True):
        copy(connection, block.table)
        for name, columns in tables.items():
            upsert(connection, name, columns)
        connection.execute("TRUNCATE incoming")
        rows += len(block.table)
    for column in sizes:  # after the rows: an index is built faster at once
        connection.execute(
            SQL("CREATE INDEX IF NOT EXISTS {} ON image_embeddings USING hnsw ({} vector_cosine_ops)").format(
                Identifier(f"image_embeddings_{column}_hnsw"), Identifier(column)
            )
        )
    return rows


def make_tables(connection: Connection, tables: Mapping[str, Sequence[str]], types: Mapping[str, Composable]) -> None:
    """Make what is not there yet, and `incoming`, which takes the rows of one block as they come."""
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
    """Put a block's rows into `incoming`; of two rows of one image the later one."""
    rows = {row["image_path"]: row for row in table.to_pylist()}
    columns = SQL(", ").join(map(Identifier, table.column_names))
    with connection.cursor().copy(SQL("COPY incoming ({}) FROM STDIN").format(columns)) as into:
        for row in rows.values():
            into.write_row([cell or None if name in VECTOR_COLUMNS else cell for name, cell in row.items()])


def upsert(connection: Connection, table: str, columns: Sequence[str]) -> None:
    """Bring a table to what `incoming` says; rows that say it already are not touched, nor are their index entries."""
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
