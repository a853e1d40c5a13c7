"""FastText vectors from each file format, equal to gensim's, and their mean over a text."""

import os
import pickle
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from gensim.models import FastText, Word2Vec
from gensim.models.fasttext import ft_ngram_hashes, load_facebook_vectors, save_facebook_model

from tests.conftest import PROJECT
from tests.tiny_fasttext import write_fasttext, write_sparse
from vec_pipeline.memory import LoadError, ModelCache
from vec_pipeline.record import UserError
from vec_pipeline.stages.embed_words import EmbedWords, words_of

SENTENCES = [["a", "red", "car"], ["a", "blue", "car"], ["красная", "машина"], ["红色", "汽车"], ["हिन्दी"]] * 20
WORDS = PROJECT / "models/demo/words/words.bin"


def trained_model(n: tuple[int, int] = (3, 6), buckets: int = 200) -> FastText:
    options = {"min_n": n[0], "max_n": n[1], "bucket": buckets}
    return FastText(SENTENCES, vector_size=8, min_count=1, epochs=3, seed=1, workers=1, **options)


@pytest.fixture(scope="module")
def trained() -> FastText:
    return trained_model()


def vector(stage: EmbedWords, text: str) -> np.ndarray:
    [row] = stage.run(stage.load(), [{"text": text}], 1)
    return row["word2vec_vector"]


FORMATS: dict[str, tuple[str, Callable[[FastText, str], None]]] = {
    "FastText": ("words.bin", save_facebook_model),
    "FastText in a folder": ("model.bin", save_facebook_model),
    "text": ("words.vec", lambda model, path: model.wv.save_word2vec_format(path)),
    "word2vec": ("model.bin", lambda model, path: model.wv.save_word2vec_format(path, binary=True)),
    "gensim model": ("words.model", lambda model, path: model.save(path)),
    "gensim vectors": ("words.kv", lambda model, path: model.wv.save(path)),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_mean(kind: str, trained: FastText, tmp_path: Path) -> None:
    name, save = FORMATS[kind]
    save(trained, str(tmp_path / name))
    stage = EmbedWords(
        model=str(tmp_path if name == "model.bin" else tmp_path / name), allow_pickle=kind.startswith("gensim")
    )
    stage.fetch()
    found = vector(stage, "A red car, машина.")
    words = ["A", "red", "car", "машина"]  # "A" is unknown: its vector comes from its parts, in the formats with parts
    expected = np.mean([trained.wv[word] for word in words[kind in ("text", "word2vec") :]], axis=0)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_vectors_of_word2vec_that_gensim_saved_are_used_too(tmp_path: Path) -> None:
    model = Word2Vec(SENTENCES, vector_size=8, min_count=1, seed=1, workers=1)
    model.save(str(tmp_path / "words.model"))
    stage = EmbedWords(model=str(tmp_path / "words.model"), allow_pickle=True)
    assert (vector(stage, "unknown car") == model.wv["car"]).all()


# --- FastText's own format, read where it lies


KNOWN = ["a", "red", "car", "красная", "машина", "红色", "汽车", "हिन्दी"]
UNKNOWN = ["cars", "b", "прекрасная", "я", "汽车站", "电", "हिन्दुस्तान", "за\u0301мок", "naïve", "𝔘nicode", "x" * 40]


@pytest.mark.parametrize("n", [(3, 6), (5, 5), (1, 3), (2, 40)])
def test_vectors_are_bit_for_bit_those_of_gensim(n: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "words.bin"
    save_facebook_model(trained_model(n), str(path))
    model, expected = EmbedWords(model=str(path)).load(), load_facebook_vectors(str(path))
    assert model.vector_size == 8
    for word in KNOWN + UNKNOWN:
        if word in model:
            assert (model[word] == expected[word]).all(), word
            assert model[word].dtype == np.float32
        else:
            assert not expected[word].any(), f"{word} is too short for an n-gram, of which gensim makes zeros"
    assert all(word in model for word in KNOWN)
    assert all(word in model for word in UNKNOWN if len(word) + 2 >= n[0])


def test_the_bundled_model_gives_the_vectors_it_gave_through_gensim() -> None:
    expected = load_facebook_vectors(str(WORDS))
    stage = EmbedWords(model=str(WORDS))
    for text in ("A green car on a white background. The text reads SALE.", "umbrellaz, zyxwvq", "Красная машина"):
        words = text.replace(".", "").replace(",", "").split()
        assert (vector(stage, text) == np.mean([expected[word] for word in words], axis=0, dtype=np.float32)).all()


@pytest.mark.parametrize("length", range(1, 5))
def test_the_vectors_may_begin_at_any_byte(length: int, tmp_path: Path) -> None:
    vectors = write_fasttext(tmp_path / "words.bin", ["a", "b" * length], buckets=0)
    model = EmbedWords(model=str(tmp_path / "words.bin")).load()
    assert (model["a"] == vectors[0]).all() and (model["b" * length] == vectors[1]).all()


def test_the_words_of_a_classifier_are_used_and_its_labels_are_no_words(tmp_path: Path) -> None:
    vectors = write_fasttext(tmp_path / "lid.bin", ["red", "car"], labels=["__label__1", "b"], buckets=7, n=(0, 0))
    stage = EmbedWords(model=str(tmp_path / "lid.bin"))
    stage.fetch()
    np.testing.assert_array_equal(vector(stage, "red __label__1 b unknown car"), vectors[:2].mean(axis=0))


@pytest.mark.parametrize(("version", "has_ngrams"), [(11, False), (12, True)])
def test_classifiers_of_the_first_version_have_no_ngrams(version: int, has_ngrams: bool, tmp_path: Path) -> None:
    """Whatever their header says (fasttext.cc, loadModel)."""
    write_fasttext(tmp_path / "lid.bin", ["red"], labels=["__label__1"], version=version)
    assert ("unknown" in EmbedWords(model=str(tmp_path / "lid.bin")).load()) == has_ngrams


@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize("part_width", [2, 3, 8])
@pytest.mark.parametrize("kept", [None, [], [41, 3, *range(10, 40)]], ids=["whole", "no n-grams", "pruned"])
def test_quantised_vectors_are_decoded(
    kept: list[int] | None, part_width: int, has_norms: bool, tmp_path: Path
) -> None:
    path = tmp_path / "words.ftz"
    vectors = write_fasttext(path, ["red", "car"], kept=kept, part_width=part_width, has_norms=has_norms)
    stage = EmbedWords(model=str(path))
    stage.fetch()
    model = stage.load()
    buckets = list(range(50)) if kept is None else kept
    for word, own in {"red": [0], "car": [1], "umbrella": []}.items():
        ngrams = [2 + buckets.index(bucket) for bucket in ft_ngram_hashes(word, 3, 6, 50) if bucket in buckets]
        if own + ngrams:
            np.testing.assert_allclose(model[word], vectors[own + ngrams].mean(axis=0), rtol=1e-6)
        else:
            assert word not in model


def test_a_model_larger_than_the_memory_is_opened_at_once(tmp_path: Path) -> None:
    """A sparse file: it takes no space on the disk."""
    size_gb = 2 * psutil.virtual_memory().total / 1e9
    write_sparse(tmp_path / "words.bin", ["red", "car"], 300, int(size_gb * 1e9 / 1200))
    stage = EmbedWords(model=str(tmp_path / "words.bin"))
    before = psutil.Process().memory_info().rss
    stage.fetch()
    assert stage.need().host_gb < 0.001
    assert (vector(stage, "a red car, unknown") == np.zeros(300, np.float32)).all()
    assert psutil.Process().memory_info().rss - before < 50e6


def test_the_need_is_the_vocabulary_or_all_vectors_where_they_are_loaded(trained: FastText, tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(10_000)]
    write_fasttext(tmp_path / "words.bin", words, dimensions=100)
    assert EmbedWords(model=str(tmp_path / "words.bin")).need().host_gb == pytest.approx(0.0016)
    (tmp_path / "words.vec").write_text("10000 100\n" + ("word" + " 0.25" * 100 + "\n") * 10_000)
    assert EmbedWords(model=str(tmp_path / "words.vec")).need().host_gb == pytest.approx(0.0056)
    assert 0.2 < EmbedWords(model="facebook/fasttext-en-vectors").need().host_gb < 0.5, "known before the download"


@pytest.mark.parametrize(
    "content",
    [b"", b"\xba\x16", b"\xba\x16O/" + b"\xff" * 200, b"\xba\x16O/" + b"\x7f" * 200, b"9999999999 300\nred "],
)
def test_no_damage_makes_the_need_large(content: bytes, tmp_path: Path) -> None:
    """It is looked at before the damage is."""
    (tmp_path / "words.bin").write_bytes(content)
    assert EmbedWords(model=str(tmp_path / "words.bin")).need().host_gb < 0.001


@pytest.mark.parametrize(
    ("kind", "length"),
    [("text", 10), ("text", 100), ("text", -60), ("word2vec", 10), ("word2vec", 100), ("word2vec", 300)],
)
def test_cut_vectors_that_are_loaded_are_named_before(
    kind: str, length: int, trained: FastText, tmp_path: Path
) -> None:
    path = tmp_path / "words.vec"
    FORMATS[kind][1](trained, str(path))
    stage = EmbedWords(model=str(path))
    stage.fetch()
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=rf"{path} is damaged .*: delete it, and download or copy it again"):
        stage.fetch()


@pytest.mark.parametrize("length", [-60, -1])
def test_a_cut_that_does_not_show_before_is_an_error_of_loading(length: int, trained: FastText, tmp_path: Path) -> None:
    path = tmp_path / "words.bin"
    FORMATS["word2vec"][1](trained, str(path))
    path.write_bytes(path.read_bytes()[:length])
    stage = EmbedWords(model=str(path))
    with pytest.raises(LoadError, match=r"^embed_words: the model cannot be loaded: EOFError: unexpected end of input"):
        ModelCache([stage], 5, 0.0).use(stage).__enter__()


@pytest.mark.parametrize("ending", ["bin.gz", "vec.zip"])
def test_a_compressed_model_is_named(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"cc.en.300.{ending}"
    path.write_bytes(random.Random(0).randbytes(100))
    with pytest.raises(UserError, match=rf"{path} is compressed: unpack it, and set `model:` to what it held"):
        EmbedWords(model=str(path)).fetch()


def save_torch(path: Path, *, is_old: bool) -> None:
    import torch

    torch.save({"weight": torch.zeros(4)}, path, _use_new_zipfile_serialization=not is_old)


WORD_VECTORS = "give FastText's .bin or .ftz, a .vec, or word2vec's .bin"
OTHERS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "GGUF": ("llama.gguf", lambda path: path.write_bytes(b"GGUF" + bytes(100)), "is a GGUF file"),
    "torch": ("pytorch_model.bin", lambda path: save_torch(path, is_old=False), "is weights of torch"),
    "old torch": ("pytorch_model.bin", lambda path: save_torch(path, is_old=True), "is weights of torch"),
    "safetensors": (
        "model.safetensors",
        lambda path: path.write_bytes(b"\2" + bytes(7) + b'{"a"'),
        "is a safetensors file",
    ),
    "web page": ("cc.en.300.bin", lambda path: path.write_text("<!DOCTYPE html><title>404"), "is a web page"),
    "Git LFS": (
        "model.bin",
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "is a pointer of Git LFS in place of the file, which git lfs pull fetches",
    ),
}


@pytest.mark.parametrize("allow_pickle", [False, True])
@pytest.mark.parametrize("kind", OTHERS)
def test_a_file_of_another_kind_is_named(kind: str, allow_pickle: bool, tmp_path: Path) -> None:
    """It is no pickle that an option would let through."""
    name, write, expected = OTHERS[kind]
    path = tmp_path / name
    write(path)
    stage = EmbedWords(model=str(path), allow_pickle=allow_pickle)
    with pytest.raises(UserError) as caught:
        stage.fetch()
    assert str(caught.value) == f"embed_words: {path} {expected}: {WORD_VECTORS}"


def test_a_folder_of_another_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=rf"^embed_words: .*/sentences is a sentence-transformers model: {WORD_VECTORS}$"
    ):
        EmbedWords(model=str(PROJECT / "models/demo/sentences")).fetch()
    with pytest.raises(UserError, match=rf"^embed_words: {tmp_path}/model.bin is missing: .*, or {WORD_VECTORS}$"):
        EmbedWords(model=str(tmp_path)).fetch()


@pytest.mark.parametrize(
    ("options", "kind"), [({}, "FastText, skipgram"), ({"labels": ["__label__1"]}, "FastText, a classifier")]
)
def test_a_damaged_file_is_named_with_its_kind(options: dict[str, list[str]], kind: str, tmp_path: Path) -> None:
    path = tmp_path / "words.bin"
    write_fasttext(path, ["red", "car"], **options)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError) as caught:
        EmbedWords(model=str(path)).fetch()
    assert str(caught.value) == (
        f"{path} is damaged ({kind}: its size does not match its header): delete it, and download or copy it again"
    )


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["words.model", "words.bin", "words.gguf", "words.safetensors", "words.vec"])
@pytest.mark.parametrize("method", ["fetch", "load"])
def test_a_pickle_of_gensim_is_refused_with_the_option_that_allows_it(method: str, name: str, tmp_path: Path) -> None:
    path, made = tmp_path / name, tmp_path / "executed"
    path.write_bytes(pickle.dumps(Payload(made)))
    with pytest.raises(UserError, match=rf"{name} may be a pickle.*set embed_words\.allow_pickle: true"):
        getattr(EmbedWords(model=str(path)), method)()
    assert not made.exists()


# --- words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A red car, isn't it? Nr. 5", ["A", "red", "car", "isn", "t", "it", "Nr", "5"]),
        ("हिन्दी भाषा।", ["हिन्दी", "भाषा"]),
        ("السَّلَامُ عَلَيْكُم", [unicodedata.normalize("NFC", word) for word in ("السَّلَامُ", "عَلَيْكُم")]),
        ("за\u0301мок, замо\u0301к", ["за\u0301мок", "замо\u0301к"]),
        ("cafe\u0301 и\u0306од", ["café", "йод"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("红色汽车", ["红色汽车"]),
        ("\u0301 ❤\ufe0f 1\ufe0f\u20e3 👨\u200d👩", ["1"]),
    ],
)
def test_words_are_whole(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@pytest.mark.parametrize("text", ["Café très naïve", "Йод и ёлка", "Việt Nam", "한국어", "ガラス"])
def test_composed_and_decomposed_texts_have_the_same_vector(text: str) -> None:
    stage = EmbedWords(model=str(WORDS))
    composed, decomposed = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    assert composed != decomposed
    assert (vector(stage, composed) == vector(stage, decomposed)).all()
    assert vector(stage, composed).any()


def test_words_without_a_vector_are_left_out(tmp_path: Path) -> None:
    vectors = write_fasttext(tmp_path / "words.bin", ["red", "car"], buckets=0)
    stage = EmbedWords(model=str(tmp_path / "words.bin"))
    assert (vector(stage, "an unknown red thing") == vectors[0]).all()
    assert (vector(stage, "nothing known") == np.zeros(8)).all()


def test_a_text_without_words_gets_zeros_and_a_blank_one_no_vector() -> None:
    stage = EmbedWords(model=str(WORDS))
    texts = ["", " \n", "?!", "a car"]
    empty, blank, marks, words = stage.run(stage.load(), [{"text": text} for text in texts], 4)
    assert empty["word2vec_vector"] is blank["word2vec_vector"] is None
    assert marks["word2vec_vector"].shape == words["word2vec_vector"].shape == (64,)
    assert not marks["word2vec_vector"].any() and words["word2vec_vector"].any()
