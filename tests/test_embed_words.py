"""FastText vectors from each file format, and their mean over a text."""

from pathlib import Path

import numpy as np
import pytest
from gensim.models import FastText
from gensim.models.fasttext import save_facebook_model

from tests.conftest import PROJECT
from vec_pipeline.record import UserError
from vec_pipeline.stages.embed_words import EmbedWords

SENTENCES = [["a", "red", "car"], ["a", "blue", "car"], ["красная", "машина"]] * 20


@pytest.fixture(scope="module")
def trained() -> FastText:
    return FastText(SENTENCES, vector_size=8, min_count=1, bucket=200, epochs=3, seed=1, workers=1)


@pytest.mark.parametrize("kind", ["facebook", "gensim model", "gensim vectors", "folder with model.bin"])
def test_every_format_gives_the_same_mean(kind: str, trained: FastText, tmp_path: Path) -> None:
    path = tmp_path / ("model.bin" if kind in ("facebook", "folder with model.bin") else "words.model")
    if path.suffix == ".bin":
        save_facebook_model(trained, str(path))
    else:
        (trained if kind == "gensim model" else trained.wv).save(str(path))
    model = str(tmp_path if kind == "folder with model.bin" else path)
    stage = EmbedWords(model=model, allow_pickle=kind.startswith("gensim"))
    stage.fetch()
    [row] = stage.run(stage.load(), [{"text": "A red car, машина."}], 1)
    words = ("A", "red", "car", "машина")  # "A" is unknown: its vector comes from its parts
    expected = np.mean([trained.wv[word] for word in words], axis=0)
    assert row["word2vec_vector"].dtype == np.float32
    np.testing.assert_allclose(row["word2vec_vector"], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", ["fetch", "load"])
def test_a_pickle_of_gensim_is_refused_with_the_option_that_allows_it(
    method: str, trained: FastText, tmp_path: Path
) -> None:
    trained.wv.save(str(tmp_path / "words.model"))
    stage = EmbedWords(model=str(tmp_path / "words.model"))
    with pytest.raises(UserError, match=r"words\.model may be a pickle.*set embed_words\.allow_pickle: true"):
        getattr(stage, method)()


def test_a_text_without_words_gets_zeros_and_a_blank_one_no_vector() -> None:
    stage = EmbedWords(model=str(PROJECT / "models/demo/words/words.bin"))
    texts = ["", " \n", "?!", "a car"]
    empty, blank, marks, words = stage.run(stage.load(), [{"text": text} for text in texts], 4)
    assert empty["word2vec_vector"] is blank["word2vec_vector"] is None
    assert marks["word2vec_vector"].shape == words["word2vec_vector"].shape == (64,)
    assert not marks["word2vec_vector"].any() and words["word2vec_vector"].any()
