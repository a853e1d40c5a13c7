"""Which rows are for training and which for validation: near-duplicates are on one side, whatever else is chosen."""

import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from vec_pipeline.annotations import Block, CsvReader
from vec_pipeline.commands.duplicates.listing import read_vectors
from vec_pipeline.commands.report import DEFAULT_COSINE
from vec_pipeline.commands.report.rows import vectors_for
from vec_pipeline.record import UserError
from vec_pipeline.similarity import group, splits

SPLIT = "split"  # the column
SIDES = ("train", "validation")


class SplitReader(CsvReader):
    """A CSV whose rows have one more column, `split`: each is of SIDES.

    A picture is on the side of its near-duplicates in the whole CSV, of which `where` chooses; so two exports with
    other queries have it on the same side.

    share: of the rows that are to be for training.

    Raises UserError as CsvReader, and where there is a column of that name.
    """

    def __init__(self, path: Path, share: float, *, machine: bool = False, where: str = "") -> None:
        super().__init__(path, machine=machine, where=where)
        try:
            if SPLIT in self.types:
                raise UserError(f"{path} has a column {SPLIT} of its own: leave --split out, or rename that column")
        except BaseException:
            self.close()
            raise
        self.types[SPLIT] = "text"
        self._share = share

    @cached_property
    def _grouped(self) -> Mapping[str, str]:
        return sides_of_groups(self.path, self._share)

    def blocks(self, columns: Sequence[str] = (), *, as_text: Collection[str] = (), start: int = 0) -> Iterator[Block]:
        wanted = columns or tuple(self.types)
        if SPLIT not in wanted:
            yield from super().blocks(wanted, as_text=as_text, start=start)
            return
        needed = dict.fromkeys(["image_path", *(name for name in wanted if name != SPLIT)])
        for block in super().blocks(tuple(needed), as_text=as_text, start=start):
            sides = self._sides(block.table["image_path"].to_pylist())
            yield replace(block, table=block.table.append_column(SPLIT, [sides]).select(wanted))

    def _sides(self, keys: Sequence[str]) -> list[str]:
        """The side of each key; those without near-duplicates are on the one that a hash of the key says."""
        alone = splits(np.zeros(len(keys), np.int64), self._share, keys)
        return [self._grouped.get(key, str(side)) for key, side in zip(keys, alone, strict=True)]


def sides_of_groups(path: Path, share: float) -> Mapping[str, str]:
    """The side of each picture that has near-duplicates, by its key; by the vectors that `report` compares.

    Raises UserError where the vectors are of different lengths, or there is no space for them in a temporary file.
    """
    try:
        with CsvReader(path, machine=True) as reader, tempfile.TemporaryFile() as file:
            name = vectors_for(reader, "")
            cells = (block.table[name] for block in reader.blocks((name,), as_text=(name,)))
            if all(column.null_count == len(column) for column in cells):
                print(f"{path} has no {name}: --split cannot keep near-duplicates together", file=sys.stderr)
                return {}
            rows, vectors, _ = read_vectors(reader, name, file)
            groups = group(vectors, DEFAULT_COSINE)
    except OSError as error:
        raise UserError(
            f"--split: the vectors cannot be saved ({error.strerror}): set TMPDIR to another folder"
        ) from None
    grouped = np.flatnonzero(groups)
    keys = rows["image_path"].take(grouped).to_pylist()
    return dict(zip(keys, map(str, splits(groups[grouped], share, keys)), strict=True))
