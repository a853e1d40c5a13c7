"""Write the rows as Parquet, as JSON lines, into PostgreSQL with pgvector, or as a CSV for a spreadsheet."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vec_pipeline.commands import add_csv_argument
from vec_pipeline.record import UserError

if TYPE_CHECKING:
    from vec_pipeline.annotations import CsvReader


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_csv_argument(parser)
    parser.add_argument(
        "--to",
        required=True,
        choices=("parquet", "jsonl", "pgvector", "csv"),
        help="parquet: embeddings as fixed-size float32 lists; jsonl: an object per row; pgvector: three tables; "
        "csv: without vectors, and with no cell that a spreadsheet takes for a formula",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="the file to write; for pgvector without --dsn, a folder for the database",
    )
    parser.add_argument("--dsn", metavar="URL", help="pgvector: the server, as postgresql://user@host/database")


def run(options: argparse.Namespace) -> int:
    from vec_pipeline.annotations import CsvReader

    with CsvReader(options.csv) as reader:
        return write(reader, options)


def write(reader: "CsvReader", options: argparse.Namespace) -> int:
    if options.to == "pgvector":
        from vec_pipeline.commands.export import pgvector

        print(pgvector.export(reader, options.dsn, options.out))
        return 0
    from vec_pipeline.commands.export import files

    if options.dsn or not options.out:
        raise UserError(f"--to {options.to} needs --out FILE, and does not take --dsn")
    if options.out.is_dir() or (options.out.exists() and options.csv.exists() and options.out.samefile(options.csv)):
        what = "a directory" if options.out.is_dir() else "the CSV itself"
        raise UserError(f"{options.out} is {what}: name another file")
    rows = files.WRITERS[options.to](reader, options.out)
    print(f"{rows:,} rows in {options.out}, {options.out.stat().st_size / 1e6:,.1f} MB")
    return 0
