"""Count what a CSV holds, or make a page of figures: errors, categories, keywords, lengths, numbers, times, speed."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from vec_pipeline.commands import add_csv_argument, add_rows_arguments, reader_of
from vec_pipeline.object_stores import without_login
from vec_pipeline.record import UserError
from vec_pipeline.uploads import path_or_address

if TYPE_CHECKING:
    from vec_pipeline.annotations import CsvReader


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_csv_argument(parser)
    add_rows_arguments(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument(
        "--html",
        type=path_or_address,
        metavar="DIR",
        help="make a page of figures, each a file of its own: open index.html in it",
    )


def run(options: argparse.Namespace) -> int:
    from vec_pipeline.commands.stats import counts

    if isinstance(options.html, str):
        raise UserError(f"--html needs a folder of this machine: copy it to {without_login(options.html)} afterwards")
    with reader_of(options) as reader:
        if options.html:
            print(made_page(reader, options.html))
            return 0
        found = counts.statistics(counts.counted(reader))
    print(json.dumps(found, ensure_ascii=False, indent=2) if options.json else counts.report(found))
    return 0


def made_page(reader: "CsvReader", out: Path) -> str:
    """Make the page of figures. Raises UserError where that cannot be done."""
    from vec_pipeline.commands.stats.page import make_page

    try:
        return make_page(reader, out)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror or error}): name another folder") from None
