"""Find images by a text that says what they show, by another image, or by what their descriptions mean."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from vec_pipeline.commands import add_csv_argument, add_rows_arguments, is_stdout, path
from vec_pipeline.record import UserError, Values

COLUMN_OF = {"image": "image_vector", "text": "text_vector", "dino": "dino_vector"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("query", nargs="?", metavar="TEXT", help='what to look for, such as "a red car"')
    add_csv_argument(parser)
    add_rows_arguments(parser)
    parser.add_argument(
        "--like", type=os.path.expanduser, metavar="IMAGE", help="look for what looks like this image, instead of TEXT"
    )
    parser.add_argument(
        "--in",
        dest="within",
        choices=tuple(COLUMN_OF),
        default="image",
        help="image: what can be seen, by CLIP (default); text: what the descriptions mean, by the sentence model; "
        "dino: what can be seen, by DINO; a text needs what `align` has written",
    )
    parser.add_argument(
        "--align",
        type=path,
        metavar="DIR",
        help="what `align` has written; default: align, beside the CSV",
    )
    parser.add_argument("--top", type=positive, default=10, metavar="N", help="how many to show (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print a list of objects with image_path and score")
    parser.add_argument(
        "--html",
        type=path,
        metavar="FILE",
        help="write a page with thumbnails as well; a link is kept and its target replaced; - for stdout",
    )


def positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def run(options: argparse.Namespace) -> int:
    text = (options.query or "").strip()
    if bool(text) == bool(options.like) or (options.like and options.within == "text"):
        raise UserError('search needs either a text, such as "a red car", or --like IMAGE without --in text')
    if options.align and (options.like or options.within != "dino"):
        raise UserError("--align is for a text and --in dino")
    found = nearest_to_image(options) if options.like else nearest_to_text(options, text)
    if options.html:
        from vec_pipeline.commands.search.page import write_page

        write_page(options.html, options.query or f"like {options.like}", found, options.csv)
    said = json.dumps(found, ensure_ascii=False, indent=2) if options.json else table(found)
    print(said, file=sys.stderr if is_stdout(options.html) else sys.stdout)
    return 0


def nearest_to_image(options: argparse.Namespace) -> list[Values]:
    from vec_pipeline.annotations import content_reader
    from vec_pipeline.commands.search.query import makers_of
    from vec_pipeline.commands.search.vector_cache import Vectors

    column = COLUMN_OF[options.within]
    with Vectors(
        options.csv, column, machine=options.machine, where=options.where
    ) as vectors:  # before a model loads: it may refuse
        content = content_reader(options.csv)(options.like)
        return vectors.nearest(makers_of(options.csv).image_query(content, column, options.like), options.top)


def nearest_to_text(options: argparse.Namespace, text: str) -> list[Values]:
    from vec_pipeline.commands.search.query import makers_of
    from vec_pipeline.commands.search.vector_cache import Vectors

    if options.within == "dino":
        from vec_pipeline.annotations import CsvReader
        from vec_pipeline.commands.align import FOLDER
        from vec_pipeline.commands.align.alignment import Alignment

        CsvReader(options.csv).close()  # where there is no CSV, there is no folder beside it
        alignment = Alignment.read(options.align or options.csv.with_name(FOLDER), options.csv)
        with Vectors(options.csv, alignment.column, machine=options.machine, where=options.where) as vectors:
            return vectors.nearest(alignment.query(options.csv, text), options.top, alignment.mean)
    column = COLUMN_OF[options.within]
    with Vectors(options.csv, column, machine=options.machine, where=options.where) as vectors:
        makers = makers_of(options.csv)
        query = (makers.sight_query if options.within == "image" else makers.meaning_query)(text)
        return vectors.nearest(query, options.top)


def table(found: Sequence[dict[str, Any]]) -> str:
    """Rank, cosine, key and description of each row; in a terminal, cut to its width."""
    longest = max((len(row["image_path"]) for row in found), default=0)
    lines = [f"{'rank':>4}  {'score':>6}  {'image_path':<{longest}}  description"]
    for row in found:
        description = " ".join(row["description"].split())
        lines.append(f"{row['rank']:>4}  {row['score']:>6.3f}  {row['image_path']:<{longest}}  {description}")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    return "\n".join(line[:width].rstrip() for line in lines)
