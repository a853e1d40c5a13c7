"""Annotate images: the same as `vec-pipeline run`."""

import sys
from collections.abc import Sequence

from vec_pipeline.__main__ import main as run_command
from vec_pipeline.terminal import end_process, protect


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(arguments, command="run", program="run.py")


if __name__ == "__main__":
    protect()
    end_process(main(sys.argv[1:]))
