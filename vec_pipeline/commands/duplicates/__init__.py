"""Find near-duplicates by the vectors of pictures, and list which of each group to keep; nothing is deleted."""

import argparse
import os
import stat
import sys
from pathlib import Path

from vec_pipeline.commands import (
    add_csv_argument,
    add_rows_arguments,
    descriptor_of,
    is_stdout,
    path,
    reader_of,
    refuse_own,
    status_of,
    writing,
)
from vec_pipeline.commands.report import DEFAULT_COSINE, cosine
from vec_pipeline.record import UserError
from vec_pipeline.terminal import plural

KEEP = ("best", "first", "largest", "newest")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_csv_argument(parser)
    add_rows_arguments(parser)
    parser.add_argument(
        "--cosine",
        type=cosine,
        default=DEFAULT_COSINE,
        metavar="COSINE",
        help="pictures whose vectors have at least this cosine are near-duplicates (default: %(default)s)",
    )
    parser.add_argument(
        "--by",
        default="",
        metavar="COLUMN",
        help="the vectors to compare (default: image_vector, or dino_vector where there is none)",
    )
    parser.add_argument(
        "--keep",
        choices=KEEP,
        default="best",
        help="of each group: best (default), which has no error, no flags and the most pixels; first, in the CSV; "
        "largest, in bytes; newest, by the time of its file",
    )
    parser.add_argument(
        "--out",
        type=path,
        default=path("-"),
        metavar="FILE",
        help="a CSV of the near-duplicates: group, image_path, keep (yes or no), and the cosine with the one of the "
        "group that is kept (default: -, stdout)",
    )
    parser.add_argument(
        "--list",
        type=path,
        metavar="FILE",
        help="also write the paths of those that are not kept, each ended by a NUL byte, as `xargs -0` reads them",
    )


def run(options: argparse.Namespace) -> int:
    """Write the list, and say how many there are. Raises UserError where there are no vectors."""
    from vec_pipeline.annotations import content_reader
    from vec_pipeline.commands.duplicates.listing import near_duplicates, write_paths, write_table

    if is_stdout(options.out) and is_stdout(options.list):
        raise UserError("--out and --list cannot both go to stdout: name a file with one of them")
    if options.list and is_same_output(options.out, options.list):
        raise UserError(f"--out and --list are both {options.list}: name two files")
    with reader_of(options) as reader:
        for out in filter(None, (options.out, options.list)):
            refuse_own(out, reader)
        found = near_duplicates(reader, options.by, options.cosine, options.keep, content_reader(options.csv))
    with writing(options.out) as file:
        write_table(found.rows, file)
    not_files = 0
    if options.list:
        with writing(options.list) as file:
            not_files = write_paths(found.rows, file)
    kept = sum(row.is_kept for row in found.rows)
    said = (
        f"{plural(found.pictures, 'picture')}, of which {len(found.rows):,} are near-duplicates in "
        f"{plural(kept, 'group')}: {len(found.rows) - kept:,} need not be kept"
    )
    said += f"; {plural(found.without, 'row')} without {found.by}" if found.without else ""
    said += f"; not listed: {not_files:,} in archives, at addresses or gone" if not_files else ""
    print(said, file=sys.stderr if is_stdout(options.out) or is_stdout(options.list) else sys.stdout)
    return 0


def is_same_output(first: Path, second: Path) -> bool:
    """Whether two paths are of one open file, or of one file that the second would replace."""
    if descriptor_of(first) is not None and descriptor_of(first) == descriptor_of(second):
        return True
    try:
        return stat.S_ISREG(status_of(first).st_mode) and os.path.samestat(status_of(first), status_of(second))
    except OSError:  # one is not there yet
        return os.path.realpath(first) == os.path.realpath(second)
