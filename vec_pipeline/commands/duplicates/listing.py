"""The rows of a CSV -> its near-duplicates, group by group, and which of each group is kept."""

import csv
import io
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from vec_pipeline.annotations import CsvReader, arrays
from vec_pipeline.commands import blocks_with_bar
from vec_pipeline.commands.duplicates.ranking import RANKED_BY, ranked
from vec_pipeline.commands.report.rows import vectors_for
from vec_pipeline.record import ContentOf, UserError
from vec_pipeline.similarity import group, kept, numbered
from vec_pipeline.sources import local_path

if TYPE_CHECKING:
    import pyarrow as pa

Array = np.ndarray[Any, Any]


class Row(NamedTuple):
    """A near-duplicate; cosine: with the one of its group that is kept, 1 for that one."""

    group: int
    key: str
    is_kept: bool
    cosine: float


class Found(NamedTuple):
    """Near-duplicates, and how many rows were looked at.

    rows: group by group, the largest first; of each the one that is kept, and then the others, the nearest first.
    by: the column of vectors that were compared. pictures: rows that have one. without: rows that have none.
    """

    rows: list[Row]
    by: str
    pictures: int
    without: int


def near_duplicates(reader: CsvReader, by: str, cosine: float, keep: str, content_of: ContentOf) -> Found:
    """Find the near-duplicates of a CSV, and choose one of each group.

    by: the column of vectors; empty for the usual one. keep: one of KEEP. content_of: finds the picture of a key.

    All others of a group have at least `cosine` with the one that is kept. Raises UserError as `read_vectors`.
    """
    by = vectors_for(reader, by)
    with temporary_file() as file:
        table, vectors, rows = read_vectors(reader, by, file)
        groups = group(vectors, cosine)
        order = ranked(table, np.flatnonzero(groups), keep, content_of)
        stand_ins, cosines = kept(vectors, groups, order, cosine)
    numbers, places = numbered(stand_ins), np.arange(len(table))
    chosen = np.lexsort((places, -cosines, stand_ins != places, numbers))
    chosen = chosen[numbers[chosen] > 0]
    keys = table["image_path"].take(chosen).to_pylist()
    is_kept = (stand_ins == places)[chosen].tolist()
    listed = list(map(Row, numbers[chosen].tolist(), keys, is_kept, cosines[chosen].tolist()))
    return Found(listed, by, len(table), rows - len(table))


@contextmanager
def temporary_file() -> Iterator[BinaryIO]:
    """Give a file that has no name. Raises UserError where it cannot be written, be it in the block."""
    try:
        with tempfile.TemporaryFile() as file:
            yield file
    except OSError as error:
        fix = "free some disk space, or set TMPDIR to another folder"
        raise UserError(f"the vectors need a temporary file ({error.strerror}): {fix}") from None


def read_vectors(reader: CsvReader, by: str, file: BinaryIO) -> tuple["pa.Table", Array, int]:
    """Read the rows that have vectors: a table of RANKED_BY, and the vectors, float32 of shape (rows, dimensions).

    The vectors are mapped from `file`, which takes 2 GB for a million of 512 numbers. Also returned: how many rows
    there are, those without a vector included. Raises UserError where none has one, and where they are of different
    lengths; OSError where the disk is full.
    """
    import pyarrow as pa

    names = [name for name in RANKED_BY if name in reader.types]
    tables, shapes, rows = [], set[tuple[int, ...]](), 0
    for block in blocks_with_bar(reader, [*names, by]):
        vectors = arrays([block.table[by]], f"{reader.path}: {by}")
        is_there = [vector is not None and vector.size > 0 for vector in vectors]
        found = [vector for vector in vectors if vector is not None and vector.size]
        tables.append(block.table.select(names).filter(is_there))
        shapes |= {vector.shape for vector in found}
        if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
            lengths = " and ".join(map(str, sorted(shapes)))
            raise UserError(f"{reader.path}: {by} has the shapes {lengths}, not one length: run with --refresh")
        file.write(np.array(found, np.float32).tobytes())
        rows += len(vectors)
    if not shapes:
        raise UserError(f"{reader.path} has no {by} in any row: there is nothing to compare")
    file.flush()
    table = pa.concat_tables(tables)
    return table, np.memmap(file, np.float32, "r", shape=(len(table), *shapes.pop())), rows


def write_table(rows: Iterable[Row], file: BinaryIO) -> None:
    """Write a CSV of group, image_path, keep (yes or no) and cosine."""
    text = io.TextIOWrapper(file, "utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("group", "image_path", "keep", "cosine"))
    for row in rows:
        writer.writerow((row.group, row.key, "yes" if row.is_kept else "no", f"{row.cosine:.4f}"))
    text.detach()  # which writes what it holds


def write_paths(rows: Iterable[Row], file: BinaryIO) -> int:
    """Write the paths of those that are not kept, each ended by a NUL byte; return how many are no files."""
    paths = [local_path(row.key) for row in rows if not row.is_kept]
    of_files = [path for path in paths if os.path.isfile(path)]  # False for a name that no disk takes
    file.writelines(os.fsencode(path) + b"\0" for path in of_files)
    return len(paths) - len(of_files)
