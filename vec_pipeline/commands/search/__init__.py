"""Find images by a text that says what they show, by another image, or by what their descriptions mean."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from vec_pipeline.commands import add_csv_argument, is_stdout, path
from vec_pipeline.record import UserError

COLUMN_OF = {"image": "image_vector", "text": "text_vector"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("query", nargs="?", metavar="TEXT", help='what to look for, such as "a red car"')
    add_csv_argument(parser)
    parser.add_argument(
        "--like", type=os.path.expanduser, metavar="IMAGE", help="look for what looks like this image, instead of TEXT"
    )
    parser.add_argument(
        "--in",
        dest="where",
        choices=tuple(COLUMN_OF),
        default="image",
        help="image: what can be seen, by CLIP (default); text: what the descriptions mean, by the sentence model",
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
    if bool(options.query) == bool(options.like) or (options.like and options.where == "text"):
        raise UserError('search needs either a text, such as "a red car", or --like IMAGE without --in text')
    from vec_pipeline.commands.search.page import write_page
    from vec_pipeline.commands.search.query import image_query, meaning_query, sight_query
    from vec_pipeline.commands.search.vector_cache import Vectors

    with Vectors(options.csv, COLUMN_OF[options.where]) as vectors:  # before a model loads: it may refuse
        if options.like:
            query = image_query(options.csv, options.like)
        else:
            query = (sight_query if options.where == "image" else meaning_query)(options.csv, options.query)
        found = vectors.nearest(query, options.top)
    if options.html:
        write_page(options.html, options.query or f"like {options.like}", found, options.csv)
    said = json.dumps(found, ensure_ascii=False, indent=2) if options.json else table(found)
    print(said, file=sys.stderr if is_stdout(options.html) else sys.stdout)
    return 0


def table(found: Sequence[dict[str, Any]]) -> str:
    """Rank, cosine, key and description of each row; in a terminal, cut to its width."""
    longest = max((len(row["image_path"]) for row in found), default=0)
    lines = [f"{'rank':>4}  {'score':>6}  {'image_path':<{longest}}  description"]
    for row in found:
        description = " ".join(row["description"].split())
        lines.append(f"{row['rank']:>4}  {row['score']:>6.3f}  {row['image_path']:<{longest}}  {description}")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    return "\n".join(line[:width].rstrip() for line in lines)
