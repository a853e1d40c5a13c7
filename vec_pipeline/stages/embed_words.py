"""text -> word2vec_vector, the mean of the FastText vectors of its words."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vec_pipeline.record import Values
from vec_pipeline.weights import ModelStage, is_fasttext

WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class EmbedWords(ModelStage):
    """Mean word vectors of shape (dimensions,), float32; zeros for a text without a word, none of a blank text.

    Words the model does not know get a vector from their parts.
    """

    reads: ClassVar[tuple[str, ...]] = ("text",)
    writes: ClassVar[Mapping[str, str]] = {"word2vec_vector": "vector"}
    required: ClassVar[str] = "model.bin"
    files: ClassVar[tuple[str, ...]] = (required,)

    batch_size: int = 64

    def load(self) -> Any:
        path = self.path()
        return load_word_vectors(path / self.required if path.is_dir() else path)

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        return [
            {"word2vec_vector": mean_vector(model, WORD.findall(row["text"])) if row["text"].strip() else None}
            for row in rows
        ]


def load_word_vectors(path: Path) -> Any:
    """Load FastText vectors: Facebook's .bin, or the pickle that gensim saves (a FastText model or its vectors)."""
    from gensim.models import FastText
    from gensim.models.fasttext import load_facebook_vectors
    from gensim.utils import SaveLoad

    if is_fasttext(path):
        return load_facebook_vectors(str(path))
    model = SaveLoad.load(str(path))
    return model.wv if isinstance(model, FastText) else model


def mean_vector(vectors: Any, words: list[str]) -> Any:
    if not words:
        return np.zeros(vectors.vector_size, np.float32)
    return np.mean([vectors[word] for word in words], axis=0, dtype=np.float32)
