"""Compare configurations on the same pictures: speed, memory and scores, and a page to vote on the answers."""

import argparse

from vec_pipeline.commands import path
from vec_pipeline.commands.run import integer
from vec_pipeline.record import UserError

DEFAULT_LIMIT = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "exit status: 0 every picture has a row without error; 1 some rows have an error; 2 unusable arguments, or a "
        "configuration that cannot be run; 130 interrupted. Run the same command again to resume."
    )
    parser.add_argument("source", nargs="*", metavar="SOURCE", help="folders, walked recursively, or images")
    parser.add_argument(
        "--config", action="append", default=[], type=path, metavar="FILE", help="a configuration; give two or more"
    )
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="the folder; open index.html in it")
    parser.add_argument(
        "--limit",
        type=integer,
        default=DEFAULT_LIMIT,
        metavar="N",
        help="take the first N pictures (default: %(default)s)",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="set an option of every configuration"
    )
    parser.add_argument(
        "--votes",
        action="append",
        default=[],
        type=path,
        metavar="FILE",
        help="count the votes that the page has exported; give one for each voter",
    )


def run(options: argparse.Namespace) -> int:
    """Compare, or count votes. Raises UserError for what only the user can fix, with the configuration's name."""
    from vec_pipeline.commands.compare.comparison import compare, count_votes

    if options.votes:
        if options.source or options.config:
            raise UserError("--votes counts votes on answers that are there: leave SOURCE and --config out")
        count_votes(options.votes, options.out)
        return 0
    if not options.source or len(options.config) < 2:
        raise UserError("give pictures, and --config twice or more")
    try:
        return compare(options.config, options.source, options.out, options.limit, options.set)
    except OSError as error:
        raise UserError(
            f"{error.filename or options.out} cannot be written ({error.strerror}): free some disk space, or name "
            "another folder"
        ) from None
