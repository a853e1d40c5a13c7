"""Everything beside annotating: `python -m vec_pipeline COMMAND`."""

import argparse
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence

from vec_pipeline import commands
from vec_pipeline.record import UserError

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0 fine, 1 something was found wanting, 2 unusable arguments."""
    parser = argparse.ArgumentParser(prog="python -m vec_pipeline", description="What to do beside annotating.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for _, name, _ in pkgutil.iter_modules(commands.__path__):
        module = importlib.import_module(f"vec_pipeline.commands.{name}")
        purpose = (module.__doc__ or "").partition("\n")[0]
        subparser = subparsers.add_parser(name, help=purpose, description=purpose)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as run.py does
    try:
        status: int = options.run(options)
        return status
    except UserError as error:
        print(f"vec_pipeline: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
