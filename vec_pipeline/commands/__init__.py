"""The commands of `python -m vec_pipeline`, a module or package each; and what several of them share.

A command's docstring is its help. `add_arguments(parser)` adds its options, and `run(options)` returns the exit status;
heavy libraries are imported in it, so that `--help` answers at once.
"""

import argparse
import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from vec_pipeline.record import UserError

if TYPE_CHECKING:
    from vec_pipeline.annotations import Block, CsvReader

CONFIG_HELP = (
    "a YAML file, or one that comes with the project: eyes, qwen3, small, laptop, edit, requests, demo, demo-eyes, "
    "demo-edit, demo-requests; default: %(default)s"
)
NAMED_DESCRIPTORS = {"-": 1, "/dev/stdout": 1, "/dev/stderr": 2}
DESCRIPTOR = re.compile(r"-|/dev/std(?:out|err)|/(?:dev|proc/self)/fd/(\d+)")


def add_csv_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--csv", type=path, default=Path("output/annotations.csv"), metavar="FILE", help="default: %(default)s"
    )


def add_rows_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what tells which rows of a CSV are read, and whether people's corrections count."""
    parser.add_argument(
        "--where",
        default="",
        metavar="QUERY",
        help="only rows that match, such as 'category:vehicle -verified text~\"sale\"'",
    )
    parser.add_argument("--machine", action="store_true", help="the models' values, without people's corrections")


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what tells which columns of a list or a data set are used."""
    parser.add_argument("--column", default="", metavar="NAME", help="of a list or a data set: where its pictures are")
    parser.add_argument(
        "--keep",
        type=lambda text: text.split(","),
        default=[],
        metavar="NAME,...",
        help="further columns of a list or a data set to be kept; NAME=AS gives one another name",
    )


def reader_of(options: argparse.Namespace) -> "CsvReader":
    """Open the CSV for `--csv`, `--where` and `--machine`. Raises UserError as CsvReader, and as `some_row`."""
    from vec_pipeline.annotations import CsvReader

    return some_row(CsvReader(options.csv, machine=options.machine, where=options.where), options.where)


Reader = TypeVar("Reader", bound="CsvReader")


def some_row(reader: Reader, where: str) -> Reader:
    """The reader itself. Raises UserError, and closes it, where no row matches its query."""
    try:
        if not where or next(reader.blocks(("image_path",)), None):
            return reader
        raise UserError(f"{reader.path} has no row that matches --where {where!r}: try another query")
    except BaseException:
        reader.close()
        raise


def blocks_with_bar(reader: "CsvReader", columns: Sequence[str] = (), **options: Any) -> Iterator["Block"]:
    """Yield from `reader.blocks`, with a progress bar if stderr is a terminal."""
    from tqdm import tqdm

    with tqdm(total=reader.status().st_size, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        for block in reader.blocks(columns, **options):
            yield block
            bar.update(int(block.ends[-1]) - bar.n)


def path(text: str) -> Path:
    """The path of an option: the shell leaves the `~` of `--out=~/file` as it is."""
    return Path(os.path.expanduser(text))  # Path's own raises for a user who does not exist


def descriptor_of(path: Path) -> int | None:
    """The open file that a path stands for: `-` and /dev/stdout are 1, /dev/fd/5 is 5; None for all other paths."""
    found = DESCRIPTOR.fullmatch(str(path))
    return found and NAMED_DESCRIPTORS.get(str(path), int(found[1] or 0))


def status_of(path: Path) -> os.stat_result:
    """Of the file that a path leads to. Raises OSError where there is none."""
    number = descriptor_of(path)
    return path.stat() if number is None else os.fstat(number)


def is_stdout(path: Path | None) -> bool:
    """Whether what is written to a path goes to stdout; what is said belongs on stderr then."""
    return path is not None and descriptor_of(path) == 1


def is_stream(path: Path) -> bool:
    """Whether a path is a pipe, a device or an open file, which cannot be replaced."""
    return descriptor_of(path) is not None or (path.exists() and not path.is_file() and not path.is_dir())


def refuse_own(out: Path, reader: "CsvReader") -> None:
    """Raise UserError where a file that is to be written is the CSV, or one of the files that belong to it."""
    with suppress(OSError):  # it does not exist yet, or writing says what is wrong
        if os.path.samestat(status_of(out), reader.status()):
            raise UserError(f"{out} is the CSV itself: name another file")
    if own_file_finder(reader.path)(out):
        raise UserError(f"{out} is for a file that belongs to {reader.path}: name another file")


def own_file_finder(csv_path: Path) -> Callable[[Path], bool]:
    """Return a function that tells whether a path, or what it leads to, is a CSV or a file that belongs to it."""
    from vec_pipeline.commands.run import own_files
    from vec_pipeline.sources import glob_finder

    find = glob_finder([*own_files(csv_path), *own_files(csv_path.resolve())])
    return lambda path: bool(find("", os.path.realpath(path)))


class ReaderGone(UserError):  # noqa: N818 (it says what happened)
    """The program at the other end of a pipe has ended, or has read enough."""


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write to, which replaces `path` atomically once the block has succeeded.

    Of a link, the target is replaced. A pipe, a device and `-`, which is stdout, are written to as they are.

    Raises UserError where it cannot be written, of which ReaderGone is one.
    """
    try:
        if is_stream(path):
            number = descriptor_of(path)
            with path.open("wb") if number is None else os.fdopen(os.dup(number), "wb") as file:
                yield file
        else:
            with replacing(Path(os.path.realpath(path))) as file:
                yield file
    except BrokenPipeError:
        raise ReaderGone(f"{path}: nobody reads it any more") from None
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}): name another file") from None


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    if path.is_symlink():  # to itself
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    new = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        with suppress(OSError):  # it has been renamed, or could not even be created
            new.unlink()
