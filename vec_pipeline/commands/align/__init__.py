"""Train what lets `search --in dino` find pictures by a text: a projection of texts into DINO's space."""

import argparse

from vec_pipeline.commands import add_csv_argument, path
from vec_pipeline.record import UserError

FOLDER = "align"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_csv_argument(parser)
    parser.add_argument("--text", default="text", metavar="COLUMN", help="the texts; default: %(default)s")
    parser.add_argument(
        "--to", default="dino_vector", metavar="COLUMN", help="the vectors of the pictures; default: %(default)s"
    )
    parser.add_argument("--out", type=path, metavar="DIR", help=f"default: {FOLDER}, beside the CSV")
    parser.add_argument(
        "--using",
        choices=("sentences", "clip"),
        default="sentences",
        help="sentences: the vectors that embed_text made of the texts (default); clip: the text tower of embed_image",
    )
    parser.add_argument(
        "--layers", type=int, choices=(1, 2), default=1, help="of the projection: one is linear (default), two are not"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is random; default: %(default)s")


def run(options: argparse.Namespace) -> int:
    folder = options.out or options.csv.with_name(FOLDER)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name a folder with --out")
    from vec_pipeline.annotations import CsvReader
    from vec_pipeline.commands.align import work
    from vec_pipeline.commands.align.recall import table

    with CsvReader(options.csv) as reader:
        columns = work.columns_of(options.csv, options.text, options.to, options.using)
        pairs = work.read(reader, columns, options.seed)
    alignment, curve = work.learned(options.csv, columns, pairs, options.layers, options.seed)
    alignment.write(folder, curve)
    settings = alignment.settings
    rows = settings["rows"]
    not_used = f" ({settings['not_used']:,} more with one of their texts are not used)" if settings["not_used"] else ""
    print(
        f"{rows['train']:,} to train on, {rows['validation']:,} for validation, {rows['test']:,} for these figures"
        f"{not_used}:\n\n{table(settings['recall'])}\n\nwritten to {folder}: search with --in dino"
    )
    return 0
