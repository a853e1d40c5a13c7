"""text -> word2vec_vector, the mean of the FastText vectors of its words."""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vec_pipeline.engines.checkpoint import FASTTEXT, kind_of, refuse_other
from vec_pipeline.engines.fasttext import FastTextVectors, is_fasttext, model_kind, words_in
from vec_pipeline.record import Need, UserError, Values
from vec_pipeline.weights import ModelStage, cached_path, damaged, local_path

MARKS = "".join(  # combining marks, which \w lacks: vowels of Hindi and Thai, points of Arabic, stress of Russian
    mark
    for mark in map(chr, range(0x300, 0x20000))
    if unicodedata.category(mark) in ("Mn", "Mc")
    and not "\ufe00" <= mark <= "\ufe0f"  # which turn a digit into an emoji
)
WORD = re.compile(rf"\w[\w{MARKS}\u200c\u200d]*")  # with the joiners of Persian and Hindi
WORD2VEC_HEADER = re.compile(rb"([1-9]\d{0,9}) ([1-9]\d{0,5})\s*\n")  # the numbers of words and dimensions
OFFICIAL_WORDS = 2_000_000  # in each model of facebook/fasttext-*-vectors
BYTES_PER_WORD = 160  # of a vocabulary in memory
FORMATS = "FastText's .bin or .ftz, a .vec, or word2vec's .bin"


@dataclass(frozen=True, kw_only=True)
class EmbedWords(ModelStage):
    """Mean word vectors of shape (dimensions,), float32; none of a blank text.

    A word that the model does not know gets a vector from its n-grams; where it has none of these either, it is left
    out. A text in which no word is left gets zeros.

    model: FastText's .bin or .ftz, classifiers included, which are memory-mapped; a .vec, or word2vec's .bin, which are
    loaded; or, with allow_pickle, what gensim saves.
    """

    reads: ClassVar[tuple[str, ...]] = ("text",)
    writes: ClassVar[Mapping[str, str]] = {"word2vec_vector": "vector"}
    version: ClassVar[int] = 2
    required: ClassVar[str] = "model.bin"
    files: ClassVar[tuple[str, ...]] = (required,)

    batch_size: int = 64

    def is_safe(self, file: Path) -> bool:
        self._refuse_other(file)
        return is_fasttext(file) or word2vec_shape(file) is not None

    def check(self, path: Path) -> None:
        file = self._file(path)
        if path.is_dir():
            try:
                refuse_other(path, self.required, FORMATS)
            except ValueError as error:
                raise UserError(f"{self.name}: {error}") from None
        self._refuse_other(file)
        super().check(path)
        kind = "word2vec"
        try:
            if is_fasttext(file):
                kind = f"FastText, {model_kind(file)}"
                FastTextVectors(file)
            elif shape := word2vec_shape(file):
                check_size(file, *shape)
        except ValueError as error:
            raise damaged(file, f"{kind}: {error}") from None

    def _refuse_other(self, path: Path) -> None:
        """Raise UserError for what is known to hold no word vectors, which no option would let through."""
        if (kind := kind_of(path)) not in ("", FASTTEXT):
            raise UserError(f"{self.name}: {path} is {kind}: give {FORMATS}")

    def need(self) -> Need:
        path = local_path(self.model) or cached_path(self.model, self.revision)
        file = self._file(path) if path else None
        if file is None or not file.is_file():
            return Need(host_gb=OFFICIAL_WORDS * BYTES_PER_WORD / 1e9)
        if is_fasttext(file):
            return Need(host_gb=words_in(file) * BYTES_PER_WORD / 1e9)
        if shape := word2vec_shape(file):
            words, dimensions = shape
            words = min(words, file.stat().st_size // (2 * dimensions))  # a damaged header may say anything
            return Need(host_gb=words * (BYTES_PER_WORD + 4 * dimensions) / 1e9)
        return super().need()

    def load(self) -> Any:
        return load_word_vectors(self._file(self.path()))

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        return [
            {"word2vec_vector": mean_vector(model, words_of(row["text"])) if row["text"].strip() else None}
            for row in rows
        ]

    def _file(self, path: Path) -> Path:
        return path / self.required if path.is_dir() else path


def load_word_vectors(file: Path) -> Any:
    """Return what has vector_size, and a vector for each word in it: FastTextVectors, or KeyedVectors of gensim."""
    if is_fasttext(file):
        return FastTextVectors(file)
    from gensim.models import KeyedVectors
    from gensim.utils import SaveLoad

    if shape := word2vec_shape(file):
        is_binary = not is_text(file, shape[1])
        return KeyedVectors.load_word2vec_format(str(file), binary=is_binary, unicode_errors="replace")
    model = SaveLoad.load(str(file))
    return getattr(model, "wv", model)  # of a whole FastText or Word2Vec model


def word2vec_shape(file: Path) -> tuple[int, int] | None:
    """The numbers of words and dimensions of a .vec or a file of word2vec; None for other files."""
    with file.open("rb") as opened:
        header = WORD2VEC_HEADER.fullmatch(opened.readline(100))
    return (int(header[1]), int(header[2])) if header else None


def is_text(file: Path, dimensions: int) -> bool:
    """Whether a word and its numbers follow the header, and not a word and bytes."""
    with file.open("rb") as opened:
        opened.readline()
        return len(opened.readline(100 * (dimensions + 1)).split()) == dimensions + 1


def check_size(file: Path, words: int, dimensions: int) -> None:
    """Raise ValueError if the file ends before the last of its words.

    In word2vec's binary format, where the lengths of the words are not known, gensim may be the first to see that.
    """
    if is_text(file, dimensions):
        with file.open("rb") as opened:
            last = next(islice(opened, words, None), b"")
        is_complete = len(last.split()) > dimensions
    else:
        is_complete = file.stat().st_size > words * (4 * dimensions + 2)
    if not is_complete:
        raise ValueError("its size does not match its header")


def mean_vector(vectors: Any, words: list[str]) -> Any:
    known = [vectors[word] for word in words if word in vectors]
    return np.mean(known, axis=0, dtype=np.float32) if known else np.zeros(vectors.vector_size, np.float32)


def words_of(text: str) -> list[str]:
    """Letters, digits and underscores in a row, with the marks and joiners after them; in NFC."""
    return WORD.findall(unicodedata.normalize("NFC", text))
