"""Write the rows as a file or a database, as a training set with the pictures, or beside the pictures."""

import argparse
import importlib
import os
import sys
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vec_pipeline.commands import (
    ReaderGone,
    add_csv_argument,
    add_rows_arguments,
    descriptor_of,
    is_stdout,
    is_stream,
    reader_of,
    refuse_own,
    some_row,
    writing,
)
from vec_pipeline.object_stores import without_login
from vec_pipeline.record import UserError
from vec_pipeline.terminal import plural
from vec_pipeline.uploads import path_or_address, uploading

if TYPE_CHECKING:
    from vec_pipeline.annotations import CsvReader

DELIMITERS = {",": ",", ";": ";", "tab": "\t", "\\t": "\t", "\t": "\t"}
FILES = ("parquet", "jsonl", "csv", "xlsx", "sqlite")
BINARY = ("parquet", "xlsx")
FOLDERS = ("webdataset", "imagefolder", "coco", "lance")  # a module each: a new one is a new file and its name here
BESIDE = ("txt", "xmp")  # a module each: files beside the pictures, or a tree of them
ONLY_FOR = {  # options by their names, and the formats that take them
    "delimiter": ("csv",),
    "dsn": ("pgvector",),
    "split": (*FILES, *FOLDERS),
    "shard_mb": ("webdataset",),
    "caption": ("webdataset", "coco"),
    "push_to_hub": ("webdataset", "imagefolder"),
    "template": ("txt",),
    "trigger": ("txt",),
    "suffix": ("txt",),
    "existing": BESIDE,
    "sidecar": ("xmp",),
    "in_place": ("xmp",),
    "undo": ("xmp",),
}
READER_GONE = 141  # as a shell says of a program that SIGPIPE ended


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_csv_argument(parser)
    add_rows_arguments(parser)
    parser.add_argument(
        "--to",
        required=True,
        choices=(*FILES, "pgvector", *FOLDERS, *BESIDE),
        help="parquet: embeddings as fixed-size float32 lists; jsonl: an object per row; csv, xlsx: without vectors, "
        "and with no cell that a spreadsheet takes for a formula; sqlite: with a full-text search; pgvector: three "
        "tables; webdataset: tar shards of pictures, texts and JSON; imagefolder: pictures and metadata.jsonl for "
        "Hugging Face datasets; coco: pictures, boxes and captions; lance: a table for LanceDB; txt: a caption file "
        "beside each picture; xmp: a sidecar file beside each picture, or its own metadata",
    )
    parser.add_argument(
        "--out",
        type=path_or_address,
        metavar="PATH",
        help="the file, - for stdout, or an address such as s3://bucket/rows.parquet; a link is kept and its target "
        "replaced, a pipe or a device is written to; for pgvector without --dsn, a folder for the database; for "
        "webdataset, imagefolder, coco and lance, a new folder; for txt and xmp, a folder for the files in place of "
        "the pictures' own folders",
    )
    parser.add_argument("--dsn", metavar="URL", help="pgvector: the server, as postgresql://user@host/database")
    parser.add_argument(
        "--delimiter", type=delimiter, metavar="CHARACTER", help="csv: between the cells: ',' (default), ';' or tab"
    )
    parser.add_argument(
        "--shard-mb", type=megabytes, metavar="MB", help="webdataset: the most in one tar file; default: 1,000"
    )
    parser.add_argument(
        "--split",
        type=share,
        metavar="SHARE",
        help="divide the rows: this share, such as 0.9, for training, the others for validation; near-duplicates of a "
        "picture go with it",
    )
    parser.add_argument(
        "--caption", metavar="COLUMN", help="webdataset, coco: the text that goes with a picture; default: text"
    )
    parser.add_argument(
        "--push-to-hub",
        metavar="NAME",
        help="webdataset, imagefolder: upload the folder to this data set of the Hugging Face hub, which is private if "
        "it is new",
    )
    add_arguments_of_files_beside(parser)


def add_arguments_of_files_beside(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--template",
        metavar="TEXT",
        help="txt: the caption, with columns in braces; default: '{trigger}, {description}'",
    )
    parser.add_argument("--trigger", metavar="WORD", help="txt: what {trigger} stands for in the template")
    parser.add_argument("--suffix", metavar="SUFFIX", help="txt: of the files; default: .txt")
    parser.add_argument(
        "--existing",
        choices=("error", "skip", "overwrite"),
        help="txt: what to do where there is such a file (default: error); xmp: where there is such a text (default: "
        "skip)",
    )
    parser.add_argument(
        "--sidecar",
        choices=("photo.jpg.xmp", "photo.xmp"),
        help="xmp: how the file for photo.jpg is called: as in darktable and digiKam (default), or as Adobe does",
    )
    parser.add_argument(
        "--in-place",
        action="store_true",
        help="xmp: write into JPEG and PNG files themselves, without a change to their pixels; others get a sidecar",
    )
    parser.add_argument(
        "--undo", action="store_true", help="xmp: restore the files as they were before the exports of this CSV"
    )


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and below 1")
    return value


def megabytes(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of MB from 1 on")
    return int(text)


def delimiter(text: str) -> str:
    if text not in DELIMITERS:
        raise argparse.ArgumentTypeError(f"{text!r} is not ',', ';' or tab")
    return DELIMITERS[text]


def run(options: argparse.Namespace) -> int:
    for name, formats in ONLY_FOR.items():
        if getattr(options, name) and options.to not in formats:
            raise UserError(f"--to {options.to} does not take --{name.replace('_', '-')}")
    with opened(options) as reader:
        if options.to == "pgvector":
            if isinstance(options.out, str):
                raise UserError("--to pgvector needs a folder of this machine: a server runs in it")
            from vec_pipeline.commands.export import pgvector

            print(pgvector.export(reader, options.dsn, options.out))
            return 0
        if options.to in BESIDE:
            if isinstance(options.out, str):
                raise UserError(f"--to {options.to} needs a folder of this machine for --out")
            importlib.import_module(f"{__name__}.{options.to}").export(reader, options)
            return 0
        if not options.out:
            raise UserError(f"--to {options.to} needs --out {'DIR' if options.to in FOLDERS else 'FILE'}")
        return (write_folder if options.to in FOLDERS else write)(reader, options)


def opened(options: argparse.Namespace) -> "CsvReader":
    """The rows that are asked for. Raises UserError where there are none."""
    if not options.split:
        return reader_of(options)
    from vec_pipeline.commands.export.split import SplitReader

    reader = SplitReader(options.csv, options.split, machine=options.machine, where=options.where)
    return some_row(reader, options.where)


def write_folder(reader: "CsvReader", options: argparse.Namespace) -> int:
    """Write a folder, and say what was written and left out. Raises UserError where no row is left."""
    from vec_pipeline.commands.export.training import new_folder

    if isinstance(options.out, str):
        address = without_login(options.out)
        raise UserError(f"--to {options.to} needs a folder of this machine: copy it to {address} afterwards")
    module = importlib.import_module(f"{__name__}.{options.to}")
    if options.push_to_hub:
        from vec_pipeline.commands.export import hub

        hub.check(options.push_to_hub)
    with new_folder(options.out) as folder:
        written = module.write(reader, folder, options)
        if not written.rows:
            raise UserError("; ".join([f"{reader.path} has no row to export", *written.notes]))
    print("; ".join([f"{plural(written.rows, 'row')} in {options.out}", *written.notes]), flush=True)
    if options.push_to_hub:
        hub.push(options.out, options.push_to_hub, written.rows)
    return 0


def write(reader: "CsvReader", options: argparse.Namespace) -> int:
    """Write one file, and say what was written."""
    from vec_pipeline.commands.export import files

    writer = files.WRITERS[options.to]
    if options.delimiter:
        writer = partial(files.write_spreadsheet, delimiter=options.delimiter)
    is_remote = isinstance(options.out, str)
    with uploading(options.out) if is_remote else nullcontext(options.out) as out:
        refuse_output(out, reader, options.to)
        try:
            with writing(out) as file:
                written = writer(reader, file)
        except ReaderGone:  # such as `head`, which has read enough
            return READER_GONE
        size = "" if is_stream(out) else f", {out.stat().st_size / 1e6:,.1f} MB"
    where = "stdout" if is_stdout(out) else without_login(options.out) if is_remote else out
    said = "; ".join([f"{plural(written.rows, 'row')} in {where}{size}", *written.notes])
    print(said, file=sys.stderr if is_stdout(out) else sys.stdout)
    return 0


def refuse_output(out: Path, reader: "CsvReader", to: str) -> None:
    """Raise UserError where a file cannot be written to `out`."""
    number = descriptor_of(out)
    if number is None and out.is_dir():
        raise UserError(f"{out} is a directory: name another file")
    if to == "sqlite" and is_stream(out):
        raise UserError(f"--to sqlite needs a file, and {out} is none: it is not written from beginning to end")
    refuse_own(out, reader)
    with suppress(OSError):  # a descriptor that is not open: writing says so
        if number is not None and to in BINARY and os.isatty(number):
            raise UserError(f"{to} is not for a terminal: redirect it to a file, or name one with --out")
