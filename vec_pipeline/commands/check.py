"""Check everything a run depends on, and say what would fail."""

import argparse
from pathlib import Path

from vec_pipeline.commands import path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=path, default=Path("config.yaml"), metavar="FILE", help="default: %(default)s")


def run(options: argparse.Namespace) -> int:
    """Print one line per check; return 1 where one of them would stop a run."""
    from vec_pipeline.checks import findings
    from vec_pipeline.config import load_config

    is_fine = True
    for finding in findings(load_config(options.config)):
        print(finding, flush=True)
        is_fine = is_fine and finding.is_fine
    return 0 if is_fine else 1
