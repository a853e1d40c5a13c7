"""Write the rows as Parquet, JSON lines, CSV or xlsx, into PostgreSQL with pgvector, or as a training set."""

import argparse
import importlib
import os
import sys
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vec_pipeline.commands import ReaderGone, add_csv_argument, descriptor_of, is_stdout, is_stream, writing
from vec_pipeline.object_stores import without_login
from vec_pipeline.record import UserError
from vec_pipeline.terminal import plural
from vec_pipeline.uploads import path_or_address, uploading

if TYPE_CHECKING:
    from vec_pipeline.annotations import CsvReader

DELIMITERS = {",": ",", ";": ";", "tab": "\t", "\\t": "\t", "\t": "\t"}
BINARY = ("parquet", "xlsx")
FOLDERS = ("webdataset", "imagefolder")  # a module each: a new training set is a new file and its name here
READER_GONE = 141  # as a shell says of a program that SIGPIPE ended


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_csv_argument(parser)
    parser.add_argument(
        "--to",
        required=True,
        choices=("parquet", "jsonl", "pgvector", "csv", "xlsx", *FOLDERS),
        help="parquet: embeddings as fixed-size float32 lists; jsonl: an object per row; pgvector: three tables; "
        "csv, xlsx: without vectors, and with no cell that a spreadsheet takes for a formula; webdataset: tar shards "
        "of pictures, texts and JSON; imagefolder: pictures and metadata.jsonl for Hugging Face datasets",
    )
    parser.add_argument(
        "--out",
        type=path_or_address,
        metavar="PATH",
        help="the file, - for stdout, or an address such as s3://bucket/rows.parquet; a link is kept and its target "
        "replaced, a pipe or a device is written to; for pgvector without --dsn, a folder for the database; for "
        "webdataset and imagefolder, a new folder",
    )
    parser.add_argument("--dsn", metavar="URL", help="pgvector: the server, as postgresql://user@host/database")
    parser.add_argument(
        "--delimiter", type=delimiter, metavar="CHARACTER", help="csv: between the cells: ',' (default), ';' or tab"
    )
    parser.add_argument(
        "--shard-mb", type=megabytes, metavar="MB", help="webdataset: the most in one tar file; default: 1,000"
    )


def megabytes(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of MB from 1 on")
    return int(text)


def delimiter(text: str) -> str:
    if text not in DELIMITERS:
        raise argparse.ArgumentTypeError(f"{text!r} is not ',', ';' or tab")
    return DELIMITERS[text]


def run(options: argparse.Namespace) -> int:
    from vec_pipeline.annotations import CsvReader

    if options.delimiter and options.to != "csv":
        raise UserError(f"--to {options.to} does not take --delimiter")
    if options.shard_mb and options.to != "webdataset":
        raise UserError(f"--to {options.to} does not take --shard-mb")
    with CsvReader(options.csv) as reader:
        if options.to == "pgvector":
            if isinstance(options.out, str):
                raise UserError("--to pgvector needs a folder of this machine: a server runs in it")
            from vec_pipeline.commands.export import pgvector

            print(pgvector.export(reader, options.dsn, options.out))
            return 0
        if options.dsn or not options.out:
            what = "DIR" if options.to in FOLDERS else "FILE"
            raise UserError(f"--to {options.to} needs --out {what}, and does not take --dsn")
        return (write_folder if options.to in FOLDERS else write)(reader, options)


def write_folder(reader: "CsvReader", options: argparse.Namespace) -> int:
    """Write a training set, and say what was written and left out. Raises UserError where no row is left."""
    from vec_pipeline.commands.export.training import Examples, new_folder

    if isinstance(options.out, str):
        address = without_login(options.out)
        raise UserError(f"--to {options.to} needs a folder of this machine: copy it to {address} afterwards")
    module = importlib.import_module(f"{__name__}.{options.to}")
    examples = Examples(reader)
    with new_folder(options.out) as folder:
        module.write(examples, folder, **({"shard_mb": options.shard_mb} if options.shard_mb else {}))
        if not examples.rows:
            raise UserError("; ".join([f"{reader.path} has no row for a training set", *examples.notes]))
    notes = "".join(f"; {note}" for note in examples.notes)
    print(f"{plural(examples.rows, 'row')} in {options.out}{notes}")
    return 0


def write(reader: "CsvReader", options: argparse.Namespace) -> int:
    """Write one file, and say what was written."""
    from vec_pipeline.commands.export import files

    writer = files.WRITERS[options.to]
    if options.delimiter:
        writer = partial(files.write_spreadsheet, delimiter=options.delimiter)
    is_remote = isinstance(options.out, str)
    with uploading(options.out) if is_remote else nullcontext(options.out) as out:
        refuse_output(out, reader.status(), options.to)
        try:
            with writing(out) as file:
                written = writer(reader, file)
        except ReaderGone:  # such as `head`, which has read enough
            return READER_GONE
        size = "" if is_stream(out) else f", {out.stat().st_size / 1e6:,.1f} MB"
    notes = "".join(f"; {note}" for note in written.notes)
    where = "stdout" if is_stdout(out) else without_login(options.out) if is_remote else out
    said = f"{plural(written.rows, 'row')} in {where}{size}{notes}"
    print(said, file=sys.stderr if is_stdout(out) else sys.stdout)
    return 0


def refuse_output(out: Path, csv: os.stat_result, to: str) -> None:
    """Raise UserError where a file cannot be written to `out`."""
    number = descriptor_of(out)
    if number is None and out.is_dir():
        raise UserError(f"{out} is a directory: name another file")
    with suppress(OSError):  # it does not exist yet, or writing says what is wrong
        if os.path.samestat(out.stat() if number is None else os.fstat(number), csv):
            raise UserError(f"{out} is the CSV itself: name another file")
        if number is not None and to in BINARY and os.isatty(number):
            raise UserError(f"{to} is not for a terminal: redirect it to a file, or name one with --out")
