"""The demo's sentence, word and CLIP models put like things near each other, unknown ones included."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from gensim.models.fasttext import FastTextKeyedVectors, load_facebook_vectors
from PIL import Image
from sentence_transformers import SentenceTransformer

from models.demo.drawing import draw
from models.demo.scenes import Scene, named, random_scene
from models.demo.vector_training import DEMO, paraphrase
from vec_pipeline import device
from vec_pipeline.stages.embed_text import EmbedText

Clip = tuple[torch.nn.Module, Callable[[Image.Image], torch.Tensor]]  # the model and its preprocessing
CLIP_FOLDER = DEMO / "clip"


@pytest.fixture(scope="module")
def sentences() -> SentenceTransformer:
    return SentenceTransformer(str(DEMO / "sentences"), device="cpu")


@pytest.fixture(scope="module")
def words() -> FastTextKeyedVectors:
    return load_facebook_vectors(str(DEMO / "words" / "words.bin"))


@pytest.fixture(scope="module")
def clip() -> Clip:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{CLIP_FOLDER}")
    return model.eval(), preprocess


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Forty scenes of different captions, of combinations that no training has seen."""
    rng = random.Random(2026)
    drawn = (random_scene(rng, held_out=True) for _ in range(80))
    return list({scene.caption(): scene for scene in drawn}.values())[:40]


@pytest.fixture(scope="module")
def pictures(scenes: list[Scene]) -> list[Image.Image]:
    """The scenes drawn square, wide, tall and at double size by turns."""
    sizes = ((112, 112, 1), (112, 96, 1), (96, 112, 1), (112, 112, 2))
    rng = random.Random(7)
    return [draw(scene, rng, *sizes[index % 4]).image for index, scene in enumerate(scenes)]


def found_at(queries: torch.Tensor, keys: torch.Tensor, among: int) -> float:
    """Share of queries whose own key is among the nearest so many; both (number, dimensions) of length 1."""
    nearest = (queries @ keys.T).topk(among).indices
    return (nearest == torch.arange(len(queries))[:, None]).any(dim=1).float().mean().item()


def encode_pictures(clip: Clip, pictures: list[Image.Image]) -> torch.Tensor:
    model, preprocess = clip
    with torch.no_grad():
        return model.encode_image(torch.stack([preprocess(picture) for picture in pictures]), normalize=True)


def encode_texts(clip: Clip, texts: list[str]) -> torch.Tensor:
    tokenize = open_clip.get_tokenizer(f"local-dir:{CLIP_FOLDER}")
    with torch.no_grad():
        return clip[0].encode_text(tokenize(texts), normalize=True)


def test_sentences_of_like_meaning_are_nearer(sentences: SentenceTransformer) -> None:
    query, same, other_colour, other_kind = sentences.encode(
        [
            "red car",
            "A red car on a white background, at the left. The text reads SALE.",
            "A green car on a white background, at the left. The text reads SALE.",
            "A blue fish on a black background, at the top. There is no text.",
        ]
    )
    assert query @ same > query @ other_colour + 0.1
    assert query @ other_colour > query @ other_kind + 0.1


def test_paraphrases_find_their_captions(sentences: SentenceTransformer, scenes: list[Scene]) -> None:
    rng = random.Random(3)
    captions = torch.from_numpy(sentences.encode([scene.caption() for scene in scenes]))
    reworded = torch.from_numpy(sentences.encode([paraphrase(scene, rng).text for scene in scenes]))
    assert found_at(reworded, captions, 1) >= 0.9


def test_sentence_vectors_are_float32_of_length_1_whatever_the_text(sentences: SentenceTransformer) -> None:
    vectors = sentences.encode(["", "zxqv ünknöwn 漢字 🙂", "a dog on the beach " * 100])
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)


def test_words_of_like_use_are_nearer(words: FastTextKeyedVectors) -> None:
    assert words.similarity("red", "pink") > words.similarity("red", "car") + 0.2
    assert words.similarity("car", "boat") > words.similarity("car", "left") + 0.2
    assert words.similarity("SALE", "STOP") > words.similarity("SALE", "red") + 0.2


def test_unknown_words_get_vectors_from_their_parts(words: FastTextKeyedVectors) -> None:
    assert "umbrellaz" not in words.key_to_index
    assert words.similarity("umbrellaz", "umbrella") > words.similarity("umbrellaz", "left") + 0.2
    assert np.isfinite(words["zyxwvq"]).all()
    assert np.linalg.norm(words["zyxwvq"]) > 0


def test_clip_finds_unseen_scenes_by_caption(
    clip: Clip,
    scenes: list[Scene],
    pictures: list[Image.Image],
) -> None:
    texts, images = encode_texts(clip, [scene.caption() for scene in scenes]), encode_pictures(clip, pictures)
    assert found_at(texts, images, 5) >= 0.8  # by chance 0.125
    assert found_at(texts, images, 1) >= 0.5  # by chance 0.025
    assert found_at(images, texts, 5) >= 0.8


def test_clip_tells_objects_apart_by_short_texts(clip: Clip, scenes: list[Scene], pictures: list[Image.Image]) -> None:
    single = [index for index, scene in enumerate(scenes) if scene.count == 1]
    texts = [named(scenes[index].things[0], 1) for index in single]
    choices = sorted(set(texts))
    cosines = encode_pictures(clip, [pictures[index] for index in single]) @ encode_texts(clip, choices).T
    right = [choices[found] == text for found, text in zip(cosines.argmax(dim=1).tolist(), texts, strict=True)]
    assert np.mean(right) >= 0.5  # by chance about 0.05


@pytest.mark.parametrize("size", [(112, 112), (640, 480), (30, 200), (1, 1)])
def test_clip_preprocessing_keeps_the_whole_picture(clip: Clip, size: tuple[int, int]) -> None:
    tensor = clip[1](Image.new("RGB", size, "white"))
    assert tensor.shape == (3, 112, 112)
    seen_px = (tensor[0] > 0).sum().item()
    assert seen_px == round(112 * size[0] / max(size)) * round(112 * size[1] / max(size))


def test_clip_loads_as_float32_from_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    model = open_clip.create_model(f"local-dir:{CLIP_FOLDER}")
    tokens = open_clip.get_tokenizer(f"local-dir:{CLIP_FOLDER}")(["Ünknown 漢字 🙂", "the word SALE " * 50])
    with torch.no_grad():
        vectors = model.encode_text(tokens)
    assert vectors.dtype == torch.float32
    assert vectors.isfinite().all()


@pytest.mark.parametrize(("free_gb", "expected"), [(100.0, 32), (0.01, 3), (0.0, 1)])
def test_texts_at_once_follow_from_the_free_memory(
    free_gb: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = EmbedText(model=str(DEMO / "sentences"), device="cpu")
    model = stage.load()
    monkeypatch.setattr(device, "host_free_gb", lambda: free_gb)
    assert stage.auto_batch_size(model, 0.0) == expected
    monkeypatch.setattr(device, "host_free_gb", lambda: free_gb + 2)
    assert stage.auto_batch_size(model, 2.0) == expected, "what is reserved for models to come is not free"
