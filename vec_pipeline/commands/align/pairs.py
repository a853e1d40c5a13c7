"""Rows of a CSV -> pairs of a text and an image vector, and a split in which no text is on both sides."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from vec_pipeline.annotations import Block, CsvReader, arrays
from vec_pipeline.commands import blocks_with_bar
from vec_pipeline.record import UserError

MOST_ROWS = 100_000  # that are used, drawn at random: 0.6 GB with two vectors of 768 numbers
TEST_SHARE, VALIDATION_SHARE, MOST_HELD_OUT = 0.2, 0.1, 500  # of the rows; and the most rows of either kind
MOST_OF_ONE_TEXT = 10  # rows held out, unless there are so few texts that more are needed

Matrix = np.ndarray[Any, np.dtype[np.float32]]
Places = np.ndarray[Any, np.dtype[np.int64]]


class Split(NamedTuple):
    """Indices of rows: to train on, to know when to stop, and to measure with; int64 of shape (rows,)."""

    train: Places
    validation: Places
    test: Places


@dataclass
class Pairs:
    """Rows that have a text and all vectors asked for.

    texts: a text per row.
    vectors: by column, float32 of shape (rows, dimensions); None of an optional column that some of the rows lack.
    left_out: why rows of the CSV are not among them, and how many.
    """

    texts: list[str] = field(default_factory=list)
    vectors: dict[str, Matrix | None] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)

    def split(self, seed: int) -> Split:
        """Hold rows out at random; rows of equal texts stay together, and the rest of very many is not used."""
        rows_of: defaultdict[str, list[int]] = defaultdict(list)
        for row, text in enumerate(self.texts):
            rows_of[text].append(row)
        groups = list(rows_of.values())
        random.Random(seed).shuffle(groups)
        parts: list[list[int]] = []
        for share in (TEST_SHARE, VALIDATION_SHARE):
            most_texts, most_rows = round(share * len(rows_of)), min(MOST_HELD_OUT, round(share * len(self.texts)))
            most_of_one = max(MOST_OF_ONE_TEXT, most_rows // max(1, most_texts))
            part: list[int] = []
            chosen = 0
            while chosen < most_texts and len(part) < most_rows:
                part += groups.pop()[:most_of_one]
                chosen += 1
            parts.append(part)
        train = [row for group in groups for row in group]
        return Split(*(np.array(part, np.int64) for part in (train, parts[1], parts[0])))


def read_pairs(reader: CsvReader, text: str, wanted: Sequence[str], optional: str, seed: int) -> Pairs:
    """Read the rows, at most MOST_ROWS of them, each with the same chance.

    text: the column of the texts.
    wanted, optional: columns of vectors; a row is used if it has those that are wanted. `optional` may be empty.

    Raises UserError where a column is missing, or vectors of one column differ in length.
    """
    for name, kind in ((text, "text"), *((name, "vector") for name in wanted)):
        if reader.types.get(name) != kind:
            there = ", ".join(reader.names_of(kind))
            raise UserError(f"{reader.path} has no {kind} column {name}: choose one of {there}")
    columns = [*dict.fromkeys([*wanted, *([optional] if optional in reader.types else [])])]
    pairs, rng = Pairs(), random.Random(seed)
    kept: list[Sequence[Any]] = []
    number = 0
    for block in blocks_with_bar(reader, (text, *columns, "error")):
        for row, vectors in usable(block, text, columns, wanted, pairs.left_out, reader):
            number += 1
            place = len(kept) if number <= MOST_ROWS else rng.randrange(number)  # reservoir sampling
            if place < MOST_ROWS:
                # Copies: a view would keep the vectors of its whole block in memory.
                kept[place : place + 1] = [(row, *(None if each is None else each.copy() for each in vectors))]
    pairs.left_out["more than are used"] = number - len(kept)
    pairs.texts = [row[0] for row in kept]
    for position, name in enumerate(columns, 1):
        pairs.vectors[name] = matrix_of([row[position] for row in kept], f"{reader.path}: {name}")
    return pairs


def usable(
    block: Block, text: str, columns: Sequence[str], wanted: Sequence[str], left_out: Counter[str], reader: CsvReader
) -> Iterator[tuple[str, Sequence[Matrix | None]]]:
    """The text and the vectors of each row of a block that can be used; the others are counted."""
    vectors = [arrays([block.table[name]], f"{reader.path}: {name}") for name in columns]
    texts, errors = (block.table[name].to_pylist() for name in (text, "error"))
    for row, error, *found in zip(texts, errors, *vectors, strict=True):
        if reason := fault(row, error, dict(zip(wanted, found, strict=False))):
            left_out[reason] += 1
        else:
            yield row.strip(), found


def fault(text: str, error: str, vectors: Mapping[str, Matrix | None]) -> str:
    """Why a row cannot be used; empty where it can."""
    if error:
        return "with an error"
    if not text.strip():
        return "without text"
    for name, vector in vectors.items():
        if vector is None:
            return f"without {name}"
        if not np.isfinite(vector).all() or not vector.any():
            return f"whose {name} is zero or not finite"
    return ""


def matrix_of(vectors: Sequence[Matrix | None], where: str) -> Matrix | None:
    """Vectors as one matrix, float32 of shape (rows, dimensions); None where one is missing or there are none."""
    there = [vector for vector in vectors if vector is not None]
    if not there or len(there) < len(vectors):
        return None
    if len({vector.shape for vector in there}) > 1:
        raise UserError(f"{where} has vectors of different lengths, of two models: run with --refresh")
    return np.stack(there).astype(np.float32)
