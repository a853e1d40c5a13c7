"""Check everything a run depends on, and say what would fail."""

import argparse
from dataclasses import replace
from pathlib import Path

from vec_pipeline.commands import CONFIG_HELP, add_source_arguments, path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "exit status: 0 a run would begin; 2 something that is named would stop it"
    parser.add_argument("source", nargs="*", metavar="SOURCE", help="what will be annotated, for the columns it brings")
    parser.add_argument("--config", type=path, default=Path("config.yaml"), metavar="FILE", help=CONFIG_HELP)
    parser.add_argument("--output", type=path, metavar="FILE", help="the CSV (default: the configuration's `output`)")
    add_source_arguments(parser)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="set an option, e.g. describe.batch_size=4"
    )


def run(options: argparse.Namespace) -> int:
    """Print one line per check; return 2 where one of them would stop a run."""
    from vec_pipeline.checks import findings, print_all
    from vec_pipeline.config import load_config
    from vec_pipeline.sources import open_source

    config = load_config(options.config, options.set)
    config = replace(config, output=options.output or config.output)
    wanted = config.source_options(options.column, options.keep)
    columns = open_source(options.source, config.sources, wanted).columns if options.source else {}
    return 0 if print_all(findings(config, columns)) else 2
