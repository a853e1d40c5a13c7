"""Make a gallery of the rows: one folder that opens in a browser from the disk, without a server or a network."""

import argparse
import os

from vec_pipeline.commands import add_csv_argument, add_rows_arguments, reader_of
from vec_pipeline.object_stores import without_login
from vec_pipeline.record import UserError
from vec_pipeline.uploads import path_or_address, uploading_folder

DEFAULT_COSINE = 0.97
INDEX, THUMBNAILS = "index.html", "gallery/thumbnails"  # what a report's folder holds, the former once it is complete


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_csv_argument(parser)
    add_rows_arguments(parser)
    parser.add_argument(
        "--out",
        type=path_or_address,
        required=True,
        metavar="DIR",
        help="the folder, or an address such as s3://bucket/report; open index.html in it",
    )
    parser.add_argument(
        "--duplicate-cosine",
        type=cosine,
        default=DEFAULT_COSINE,
        metavar="COSINE",
        help="group images whose vectors have at least this cosine as near-duplicates (default: %(default)s)",
    )
    parser.add_argument(
        "--by",
        default="",
        metavar="COLUMN",
        help="the vectors that make near-duplicates and places on the map (default: image_vector, or dino_vector where "
        "there is none)",
    )


def cosine(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to 1")
    return value


def run(options: argparse.Namespace) -> int:
    """Write the folder and say where. Raises UserError where the CSV or the folder cannot be used."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # t-SNE's threads, which spin otherwise
    from vec_pipeline.commands.report.report import make_report

    try:
        with reader_of(options) as reader:
            if not isinstance(options.out, str):
                print(make_report(reader, options.out, options.duplicate_cosine, options.by))
                return 0
            with uploading_folder(options.out, INDEX, THUMBNAILS) as folder:
                said = make_report(reader, folder, options.duplicate_cosine, options.by)
        print(said.replace(str(folder), without_login(options.out).rstrip("/")))
    except OSError as error:
        raise UserError(
            f"{options.out} cannot be written ({error.strerror}): free some disk space, or name another folder"
        ) from None
    return 0
