"""The demo's CLIP prefers the right caption of a picture to any other, and its image vectors know nothing of texts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from vec_pipeline import device
from vec_pipeline.record import Values
from vec_pipeline.stages.embed_image import Clip, EmbedImage, bytes_per_image
from vec_pipeline.stages.open_image import open_image

PROJECT = Path(__file__).resolve().parent.parent
CLIP_FOLDER = PROJECT / "models" / "demo" / "clip"
STAGE = EmbedImage(model=str(CLIP_FOLDER), device="cpu")


@pytest.fixture(scope="module")
def clip() -> Clip:
    return STAGE.load()


@pytest.fixture(scope="module")
def examples() -> list[Values]:
    """The example pictures as the stage sees them, each with its true caption."""
    paths = sorted((PROJECT / "examples" / "images").glob("*.[jp][pn]g"))
    truths = [json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) for path in paths]
    return [
        {"image": open_image(path.read_bytes(), 112), "text": truth["caption"]}
        for path, truth in zip(paths, truths, strict=True)
    ]


def scores(clip: Clip, rows: list[Values]) -> list[float]:
    return [result["clip_score"] for result in STAGE.run(clip, rows, 16)]


def test_the_right_caption_scores_above_every_other(clip: Clip, examples: list[Values]) -> None:
    right = scores(clip, examples)
    assert min(right) > 0.33
    for shift in range(1, len(examples), 4):  # each picture with the caption of another
        captions = [row["text"] for row in examples[shift:] + examples[:shift]]
        wrong = scores(clip, [{**row, "text": text} for row, text in zip(examples, captions, strict=True)])
        assert all(other < own for other, own in zip(wrong, right, strict=True))
        assert np.mean(wrong) < 0.2


def test_one_wrong_word_scores_lower(clip: Clip, examples: list[Values]) -> None:
    [cat] = [row for row in examples if row["text"].startswith("Four pink cats")]
    own, colour, kind = scores(
        clip,
        [cat, *({**cat, "text": cat["text"].replace(*change)} for change in (("pink", "green"), ("cats", "keys")))],
    )
    assert max(colour, kind) < own - 0.1


def test_the_score_is_the_cosine_of_the_two_vectors(clip: Clip, examples: list[Values]) -> None:
    results = STAGE.run(clip, examples[:5], 16)
    tokenize = open_clip.get_tokenizer(f"local-dir:{CLIP_FOLDER}")
    with torch.no_grad():
        texts = clip.model.encode_text(tokenize([row["text"] for row in examples[:5]]), normalize=True).numpy()
    expected = [float(result["image_vector"] @ text) for result, text in zip(results, texts, strict=True)]
    assert [result["clip_score"] for result in results] == pytest.approx(expected, abs=1e-4)


def test_texts_do_not_change_image_vectors(clip: Clip, examples: list[Values]) -> None:
    with_text = STAGE.run(clip, examples, 16)
    without = STAGE.run(clip, [{"image": row["image"]} for row in examples], 16)
    for one, other in zip(with_text, without, strict=True):
        assert one["image_vector"].dtype == np.float32
        assert one["image_vector"].shape == (256,)
        assert np.linalg.norm(one["image_vector"]) == pytest.approx(1, abs=1e-5)
        assert np.array_equal(one["image_vector"], other["image_vector"])


def test_rows_without_a_text_have_an_empty_score(clip: Clip, examples: list[Values]) -> None:
    first, second, third = examples[:3]
    mixed = [{"image": first["image"]}, second, {**third, "text": ""}, {**third, "text": " \n"}]
    expected = [None, scores(clip, examples[:3])[1], None, None]
    assert [result["clip_score"] for result in STAGE.run(clip, mixed, 16)] == expected


def test_texts_longer_than_the_model_reads_are_cut(clip: Clip, examples: list[Values]) -> None:
    row = examples[0]
    own, longer, endless, odd = scores(
        clip,
        [row, *({**row, "text": row["text"] + " " + tail} for tail in ("A frame. " * 9, "x" * 9999, "[EOS] \0 🙂"))],
    )
    assert all(-1 <= score <= 1 for score in (own, longer, endless, odd))
    assert longer > 0.3  # what stands first is what is read


def test_auto_batch_size_follows_the_free_memory(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    assert STAGE.auto_batch_size(clip, 0.0) == 16
    on_gpu = clip._replace(device="cuda")
    bytes_each = bytes_per_image(clip.model)
    for free_images, expected in ((10**9, 256), (400, 100), (1, 1), (0, 1)):
        monkeypatch.setattr(device, "gpu_free_gb", lambda images=free_images: (images + 0.5) * bytes_each / 1e9)
        assert STAGE.auto_batch_size(on_gpu, 0.0) == expected
    monkeypatch.setattr(device, "gpu_free_gb", lambda: 3.0 + 400.5 * bytes_each / 1e9)
    assert STAGE.auto_batch_size(on_gpu, 3.0) == 100, "what is reserved for models to come is not free"


def test_memory_of_an_image_is_estimated_above_what_it_takes(clip: Clip) -> None:
    pixels = torch.zeros(8, 3, 112, 112)
    with torch.inference_mode(), torch.profiler.profile(profile_memory=True) as profile:
        clip.model.encode_image(pixels)
    held = np.cumsum([event.nbytes() for event in memory_events(profile)])
    assert 0.5 < held.max() / len(pixels) / bytes_per_image(clip.model) < 1


def memory_events(profile: torch.profiler.profile) -> list[Any]:
    events = (event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")
    return sorted(events, key=lambda event: event.start_ns())


def test_a_picture_of_any_shape_has_a_vector(clip: Clip) -> None:
    results = STAGE.run(clip, [{"image": Image.new("RGB", size), "text": "?"} for size in ((1, 1), (112, 3))], 16)
    assert all(np.isfinite(result["image_vector"]).all() for result in results)
