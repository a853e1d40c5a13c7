"""Everything beside annotating: `python -m vec_pipeline COMMAND`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vec_pipeline.record import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0 fine, 1 something was found wanting, 2 unusable arguments."""
    parser = argparse.ArgumentParser(prog="python -m vec_pipeline")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="look at everything a run depends on, and say what would fail")
    check.add_argument("--config", type=Path, default=Path("config.yaml"), metavar="FILE", help="default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        return check_command(options.config)
    except UserError as error:
        print(f"vec_pipeline: {error}", file=sys.stderr)
        return 2


def check_command(config_path: Path) -> int:
    """Print one line per thing looked at; 1 where one of them would stop a run."""
    from vec_pipeline.checks import findings
    from vec_pipeline.config import load_config

    is_fine = True
    for finding in findings(load_config(config_path)):
        print(finding, flush=True)
        is_fine = is_fine and finding.is_fine
    return 0 if is_fine else 1


if __name__ == "__main__":
    sys.exit(main())
