"""Make a gallery of the rows: one folder that opens in a browser from the disk, without a server or a network."""

import argparse
import os

from vec_pipeline.commands import add_csv_argument, path
from vec_pipeline.record import UserError

DEFAULT_COSINE = 0.97


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_csv_argument(parser)
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="the folder; open index.html in it")
    parser.add_argument(
        "--duplicate-cosine",
        type=cosine,
        default=DEFAULT_COSINE,
        metavar="COSINE",
        help="group images whose vectors have at least this cosine as near-duplicates (default: %(default)s)",
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
        print(make_report(options.csv, options.out, options.duplicate_cosine))
    except OSError as error:
        raise UserError(
            f"{options.out} cannot be written ({error.strerror}): free some disk space, or name another folder"
        ) from None
    return 0
