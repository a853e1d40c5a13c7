"""The commands of `python -m vec_pipeline`, a module or package each; and what several of them share.

A command's docstring is its help. `add_arguments(parser)` adds its options, and `run(options)` returns the exit status;
heavy libraries are imported in it, so that `--help` answers at once.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vec_pipeline.record import UserError

if TYPE_CHECKING:
    from vec_pipeline.annotations import Block, CsvReader


def add_csv_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--csv", type=Path, default=Path("output/annotations.csv"), metavar="FILE", help="default: %(default)s"
    )


def blocks_with_bar(reader: "CsvReader", columns: Sequence[str] = (), **options: Any) -> Iterator["Block"]:
    """Yield from `reader.blocks`, with a progress bar if stderr is a terminal."""
    from tqdm import tqdm

    with tqdm(total=reader.status().st_size, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        for block in reader.blocks(columns, **options):
            yield block
            bar.update(int(block.ends[-1]) - bar.n)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to, and replace `path` by that file atomically once the block has succeeded.

    Raises UserError where `path` cannot be written.
    """
    new = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield new
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}): name another file") from None
    finally:
        with suppress(OSError):  # it has been renamed, or could not even be created
            new.unlink()
