"""Write the rows as Parquet, as JSON lines, into PostgreSQL with pgvector, or as a CSV for a spreadsheet."""

import argparse
from pathlib import Path

from vec_pipeline.commands import add_csv_argument
from vec_pipeline.record import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_csv_argument(parser)
    parser.add_argument(
        "--to",
        required=True,
        choices=("parquet", "jsonl", "pgvector", "csv"),
        help="parquet: vectors as fixed-size float32 lists; jsonl: an object a row; pgvector: three tables; "
        "csv: without vectors, and with cells that a spreadsheet does not take for formulas",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="the file to write; of pgvector without --dsn, a folder for the database",
    )
    parser.add_argument("--dsn", metavar="URL", help="pgvector: the server, as postgresql://user@host/database")


def run(options: argparse.Namespace) -> int:
    from vec_pipeline.annotations import column_names
    from vec_pipeline.commands.export import files

    column_names(options.csv)  # raises where it is none of ours, before anything is made
    if options.to == "pgvector":
        from vec_pipeline.commands.export import pgvector

        print(pgvector.export(options.csv, options.dsn, options.out))
        return 0
    if options.dsn or not options.out:
        raise UserError(f"--to {options.to} needs --out FILE, and no --dsn")
    if options.out.is_dir() or (options.out.exists() and options.csv.exists() and options.out.samefile(options.csv)):
        raise UserError(
            f"{options.out} is {'a folder' if options.out.is_dir() else 'the CSV itself'}: name another file"
        )
    rows = files.WRITERS[options.to](options.csv, options.out)
    print(f"{rows:,} rows in {options.out}, {options.out.stat().st_size / 1e6:,.1f} MB")
    return 0
