"""FastText's .bin and .ftz (fasttext.cc): the vocabulary becomes a dict, the vectors stay in the mapped file."""

import math
import mmap
import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MAGIC = struct.pack("<i", 793712314)
HEADER = "<4x 2i 24x 4i 12x 3i 8x q"  # version, dimensions, ... without the options of the training
ENTRY_BYTES = 10  # of a word in the vocabulary beside its letters: a zero, a count, a type
SUPERVISED = 3
KINDS = {1: "CBOW", 2: "skipgram", SUPERVISED: "a classifier"}
NOT_QUANTISED = "it is quantised, but not in FastText's format"
CACHED_WORDS = 20_000  # 26 MB at 300 dimensions

Array = npt.NDArray[Any]


class FastTextVectors:
    """Word vectors equal to gensim's: the mean of the rows of the word, if it is known, and of its n-grams; float32.

    vector_size: dimensions. `word in vectors`: whether the word has a row at all.

    Raises ValueError where the file is truncated or overwritten, as far as that shows outside the vectors.
    """

    def __init__(self, path: Path) -> None:
        cursor = Cursor(path)
        version, self.vector_size, model, buckets, min_n, max_n, entries, words, labels, kept = cursor.numbers(HEADER)
        check(min(words, self.vector_size) > 0 <= buckets and entries == words + labels)
        self._rows = {cursor.word(): row for row in range(words)}
        for _ in range(labels):  # of a classifier
            cursor.word()
        pairs = cursor.array(np.int32, max(kept, 0), 2)  # bucket and row of each n-gram that quantisation has kept
        self._matrix = cursor.matrix()
        is_pruned = isinstance(self._matrix, Quantised) and kept >= 0
        self._bucket_rows = {bucket: words + row for bucket, row in pairs.tolist()} if is_pruned else None
        check(self._matrix.shape == (words + (kept if is_pruned else buckets), self.vector_size))
        cursor.matrix()  # of the output
        check(cursor.at == len(cursor.data))
        cursor.data.madvise(mmap.MADV_RANDOM)  # else the kernel reads 128 kB for each row
        has_ngrams = buckets and (version, model) != (11, SUPERVISED)  # those had none, whatever their header says
        self._words, self._buckets, self._min_n, self._max_n = words, buckets, min_n, max_n if has_ngrams else 0
        self._vector = lru_cache(CACHED_WORDS)(self._mean_of_rows)

    def __contains__(self, word: str) -> bool:
        return self._vector(word) is not None

    def __getitem__(self, word: str) -> Array:
        if (vector := self._vector(word)) is None:
            raise KeyError(word)
        return vector

    def _mean_of_rows(self, word: str) -> Array | None:
        rows = [self._rows.get(word.encode())]
        buckets = (value % self._buckets for value in ngram_hashes(word, self._min_n, self._max_n))
        rows += [self._words + each if self._bucket_rows is None else self._bucket_rows.get(each) for each in buckets]
        found = [row for row in rows if row is not None]
        return self._matrix[found].mean(axis=0) if found else None


class Cursor:
    """Reads a mapped file part by part. Raises ValueError where it ends before a part does."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.at = 0

    def skip(self, size_bytes: int) -> int:
        """Move on; return where the part begins."""
        start, self.at = self.at, self.at + size_bytes
        check(start <= self.at <= len(self.data))
        return start

    def numbers(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack_from(layout, self.data, self.skip(struct.calcsize(layout)))

    def array(self, dtype: type[np.generic], *shape: int) -> Array:
        check(min(shape) >= 0)
        return np.ndarray(shape, dtype, self.data, self.skip(math.prod(shape) * np.dtype(dtype).itemsize))

    def word(self) -> bytes:
        end = self.data.find(b"\0", self.at)
        return self.data[self.skip(end + ENTRY_BYTES - self.at) : end]

    def matrix(self) -> "Array | Quantised":
        [is_quantised] = self.numbers("<?")
        return Quantised(self) if is_quantised else self.array(np.float32, *self.numbers("<2q"))


class Quantised:
    """Product quantisation: a row consists of parts, each one of 256 centroids, times one of 256 norms."""

    def __init__(self, cursor: Cursor) -> None:
        has_norms, rows, columns, codes = cursor.numbers("<?2qi")
        check(rows > 0 and codes % rows == 0, NOT_QUANTISED)
        self.shape = rows, columns
        self._codes = cursor.array(np.uint8, rows, codes // rows)
        _, parts, width, _ = cursor.numbers("<4i")
        check(width > 0 and codes == rows * parts and parts == -(-columns // width), NOT_QUANTISED)
        ends = range(256 * width, 256 * columns, 256 * width)  # the last part may be narrower
        self._centroids = np.split(cursor.array(np.float32, 256 * columns), ends)
        self._norms: Array = np.ones(rows, np.float32)
        if has_norms:
            norm_codes = cursor.array(np.uint8, rows)
            cursor.numbers("<4i")
            self._norms = cursor.array(np.float32, 256)[norm_codes]

    def __getitem__(self, rows: list[int]) -> Array:
        codes = self._codes[rows].T
        parts = [part.reshape(256, -1)[own] for part, own in zip(self._centroids, codes, strict=True)]
        return np.concatenate(parts, axis=1) * self._norms[rows, None]


def ngram_hashes(word: str, min_n: int, max_n: int) -> Iterator[int]:
    """FNV-1a of the UTF-8 of each n-gram of "<word>", with bytes as signed numbers, as in dictionary.cc."""
    letters = [[byte if byte < 128 else byte | 0xFFFFFF00 for byte in letter.encode()] for letter in f"<{word}>"]
    for start in range(len(letters)):
        value = 2166136261
        for n, letter in enumerate(letters[start : start + max_n], 1):
            for byte in letter:
                value = (value ^ byte) * 16777619 & 0xFFFFFFFF
            if n >= min_n and not (n == 1 and start in (0, len(letters) - 1)):  # a lone "<" or ">"
                yield value


def is_fasttext(path: Path) -> bool:
    """Whether a file is FastText's .bin or .ftz, possibly truncated: an empty file counts as one."""
    with path.open("rb") as file:
        return MAGIC.startswith(file.read(len(MAGIC)))


def model_kind(path: Path) -> str:
    """How the vectors were trained, by the header."""
    return KINDS.get(header_of(path)[2], "of an unknown kind")


def header_of(path: Path) -> tuple[int, ...]:
    """The numbers of HEADER; zeros where it is truncated."""
    with path.open("rb") as file:
        return struct.unpack(HEADER, file.read(struct.calcsize(HEADER)).ljust(struct.calcsize(HEADER), b"\0"))


def words_in(path: Path) -> int:
    """The number of words in the header, but at most what the file can hold; 0 where the header is truncated."""
    words = header_of(path)[7]
    return min(max(0, words), path.stat().st_size // ENTRY_BYTES)


def check(is_sound: bool, damage: str = "its size does not match its header") -> None:
    if not is_sound:
        raise ValueError(damage)
