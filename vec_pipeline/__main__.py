"""All commands: `vec-pipeline COMMAND`, or `python -m vec_pipeline COMMAND`."""

import argparse
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence

from vec_pipeline import commands
from vec_pipeline.record import UserError
from vec_pipeline.terminal import INTERRUPTED, end_process, protect

UNUSABLE = 2


def main(arguments: Sequence[str] | None = None, command: str = "", program: str = "vec-pipeline") -> int:
    """Run one command and return its exit status; 2 for a UserError, 130 when interrupted.

    command: the only one there is, under the name `program`; empty for all of them.
    """
    parser = argparse.ArgumentParser(prog=program, description="Annotate images, and use the annotations.")
    if command:
        add_command(command, parser)
    else:
        subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
        for _, name, _ in pkgutil.iter_modules(commands.__path__):
            add_command(name, subparsers.add_parser(name, help=purpose(name)))
    options = parser.parse_args(arguments)
    # Threads that wait by spinning made torch 27 times slower on two cores that others used as well.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        status: int = options.run(options)
        return status
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED


def add_command(name: str, parser: argparse.ArgumentParser) -> None:
    module = importlib.import_module(f"vec_pipeline.commands.{name}")
    parser.description = purpose(name)
    module.add_arguments(parser)
    parser.set_defaults(run=module.run)


def purpose(name: str) -> str:
    """The first line of a command's docstring."""
    return (importlib.import_module(f"vec_pipeline.commands.{name}").__doc__ or "").partition("\n")[0]


def entry() -> None:
    """The program `vec-pipeline`."""
    protect()
    end_process(main())


if __name__ == "__main__":
    entry()
