"""Writes the .bin and .ftz files of FastText (fasttext.cc, quantmatrix.cc), with random vectors."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

MAGIC = 793712314
CBOW, SKIPGRAM, SUPERVISED = 1, 2, 3


def write_fasttext(
    path: Path,
    words: Sequence[str],
    *,
    labels: Sequence[str] = (),
    dimensions: int = 8,
    buckets: int = 50,
    n: tuple[int, int] = (3, 6),
    kept: Sequence[int] | None = None,
    part_width: int = 0,
    has_norms: bool = False,
    version: int = 12,
) -> np.ndarray:
    """Return the rows of the words and n-grams, of shape (rows, dimensions).

    labels: those of a classifier.
    n: lengths of the n-grams, both inclusive.
    kept: the buckets that are left after pruning, in the order of their rows.
    part_width: columns of a part of a quantised row; 0 for float32.
    """
    rows = len(words) + (buckets if kept is None else len(kept))
    vectors = np.random.default_rng(0).normal(size=(rows, dimensions)).astype(np.float32)
    with path.open("wb") as file:
        write_vocabulary(file, words, labels, dimensions, buckets, n, kept, version)
        if part_width:
            vectors = write_quantised(file, rows, dimensions, part_width, has_norms)
        else:
            file.write(struct.pack("<?2q", False, *vectors.shape) + vectors.tobytes())
        output = np.zeros((len(labels or words), dimensions), np.float32)
        file.write(struct.pack("<?2q", False, *output.shape) + output.tobytes())
    return vectors


def write_sparse(path: Path, words: Sequence[str], dimensions: int, buckets: int) -> None:
    """A model of zeros, of any size, that takes no space on the disk."""
    with path.open("wb") as file:
        write_vocabulary(file, words, (), dimensions, buckets, (3, 6), None, 12)
        for rows in (len(words) + buckets, len(words)):
            file.write(struct.pack("<?2q", False, rows, dimensions))
            file.seek(4 * rows * dimensions, 1)
        file.truncate()


def write_vocabulary(
    file: BinaryIO,
    words: Sequence[str],
    labels: Sequence[str],
    dimensions: int,
    buckets: int,
    n: tuple[int, int],
    kept: Sequence[int] | None,
    version: int,
) -> None:
    kind = SUPERVISED if labels else SKIPGRAM
    file.write(struct.pack("<2i", MAGIC, version))
    file.write(struct.pack("<12i d", dimensions, 5, 5, 1, 5, 1, 2, kind, buckets, *n, 100, 1e-4))
    file.write(struct.pack("<3i", len(words) + len(labels), len(words), len(labels)))
    file.write(struct.pack("<2q", 1000, -1 if kept is None else len(kept)))
    for is_label, texts in enumerate((words, labels)):
        for text in texts:
            file.write(text.encode() + b"\0" + struct.pack("<qb", 10, is_label))
    for row, bucket in enumerate(kept or ()):
        file.write(struct.pack("<2i", bucket, row))


def write_quantised(file: BinaryIO, rows: int, dimensions: int, part_width: int, has_norms: bool) -> np.ndarray:
    """Write random codes and centroids, and return the rows that they stand for."""
    chance = np.random.default_rng(1)
    parts, last_width = -(-dimensions // part_width), dimensions % part_width or part_width
    codes = chance.integers(256, size=(rows, parts), dtype=np.uint8)
    centroids = chance.normal(size=256 * dimensions).astype(np.float32)
    file.write(struct.pack("<??2qi", True, has_norms, rows, dimensions, codes.size) + codes.tobytes())
    file.write(struct.pack("<4i", dimensions, parts, part_width, last_width) + centroids.tobytes())
    vectors = np.empty((rows, dimensions), np.float32)
    for row in range(rows):
        for column in range(dimensions):
            part, within = divmod(column, part_width)
            width = last_width if part == parts - 1 else part_width
            vectors[row, column] = centroids[part * 256 * part_width + int(codes[row, part]) * width + within]
    if has_norms:
        norm_codes = chance.integers(256, size=rows, dtype=np.uint8)
        norms = chance.uniform(0.5, 2, size=256).astype(np.float32)
        file.write(norm_codes.tobytes() + struct.pack("<4i", 1, 1, 1, 1) + norms.tobytes())
        vectors *= norms[norm_codes][:, None]
    return vectors
