"""The stage describe, with the bundled model and with a random one of another family: engines and how one is chosen."""

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import EXAMPLES, PROJECT
from vec_pipeline import device
from vec_pipeline.engines.batched_generate import BatchedGenerate
from vec_pipeline.engines.qwen_slots import QwenSlots
from vec_pipeline.memory import ModelCache
from vec_pipeline.record import UserError, Values
from vec_pipeline.stages.describe import Describe

BUNDLED = PROJECT / "models" / "demo" / "vision_language"
STAGE = Describe(model=str(BUNDLED), max_new_tokens=64, device="cpu", batch_size=4)


@pytest.fixture(scope="module")
def rows() -> list[Values]:
    paths = [path for path in sorted(EXAMPLES.iterdir()) if path.suffix in (".png", ".jpg")]
    return [{"image": Image.open(path).convert("RGB")} for path in paths[:12]]


@pytest.fixture(scope="module")
def truths() -> list[dict[str, Any]]:
    paths = [path for path in sorted(EXAMPLES.iterdir()) if path.suffix in (".png", ".jpg")]
    return [json.loads(path.with_suffix(".json").read_text()) for path in paths[:12]]


def described(stage: Describe, rows: list[Values]) -> list[Values]:
    model = stage.load()
    try:
        return stage.run(model, rows, 4)
    finally:
        model.close()


@pytest.fixture(scope="module")
def by_slots(rows: list[Values]) -> list[Values]:
    return described(STAGE, rows)


def test_the_bundled_model_names_the_colours(by_slots: list[Values], truths: list[dict[str, Any]]) -> None:
    for values, truth in zip(by_slots, truths, strict=True):
        assert all(thing["colour"] in values["text"] for thing in truth["things"])
        assert values.keys() == {*Describe.writes, *Describe.intermediates}
        assert 0.5 < values["text_confidence"] <= 1
        assert values["is_truncated"] is False


def test_both_engines_say_the_same(by_slots: list[Values], rows: list[Values]) -> None:
    by_generate = described(dataclasses.replace(STAGE, engine="generate"), rows)
    for slots, generate in zip(by_slots, by_generate, strict=True):
        assert slots["text"] == generate["text"]
        assert slots["text_confidence"] == pytest.approx(generate["text_confidence"], abs=2e-4)


@pytest.mark.parametrize("engine", ["slots", "generate"])
def test_stages_with_other_questions_share_one_model(
    rows: list[Values], by_slots: list[Values], engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    weights = Describe._load_weights
    monkeypatch.setattr(Describe, "_load_weights", lambda stage: loads.append(stage.name) or weights(stage))
    whole = dataclasses.replace(STAGE, engine=engine)
    word = dataclasses.replace(whole, name="word", prompt="What text is in the image?", max_new_tokens=7)
    models = ModelCache([whole, word], 5, 0.0)
    found = {}
    for stage in (whole, word, whole):
        with models.use(stage) as model:
            assert stage.auto_batch_size(model, 0.0) > 0
            found[stage] = stage.run(model, rows, 4)
    models.close()
    assert loads == ["describe"]
    assert [values["text"] for values in found[whole]] == [values["text"] for values in by_slots]
    assert [values["text"] for values in found[word]] == [values["text"] for values in described(word, rows)]
    assert found[word] != found[whole]


@pytest.mark.parametrize("engine", ["slots", "generate"])
def test_an_answer_cut_by_the_limit_is_marked(rows: list[Values], by_slots: list[Values], engine: Any) -> None:
    found = described(dataclasses.replace(STAGE, engine=engine, max_new_tokens=5), rows[:3])
    assert [values["is_truncated"] for values in found] == [True] * 3
    for values, whole in zip(found, by_slots, strict=False):
        assert values["text"] and whole["text"].startswith(values["text"])


def test_bfloat16_on_a_cpu_that_has_it_changes_no_answer_of_the_bundled_model(
    rows: list[Values], by_slots: list[Values], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "cpu_has_bfloat16", lambda: True)  # others emulate it
    in_bf16 = described(dataclasses.replace(STAGE, quantization="bf16"), rows)
    assert [row["text"] for row in in_bf16] == [row["text"] for row in by_slots]
    confidences = [[row["text_confidence"] for row in side] for side in (in_bf16, by_slots)]
    assert confidences[0] != confidences[1], "it must not have been float32"


def test_a_cpu_without_bfloat16_computes_in_float32(
    rows: list[Values], by_slots: list[Values], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(device, "cpu_has_bfloat16", lambda: False)
    stage = dataclasses.replace(STAGE, quantization="bf16")
    assert described(stage, rows) == by_slots
    assert "describe: this CPU does not compute in bfloat16: float32 is used" in caplog.text
    float32_gb = stage.need().host_gb
    monkeypatch.setattr(device, "cpu_has_bfloat16", lambda: True)
    assert stage.need().host_gb == pytest.approx(float32_gb / 2)


def test_options_of_speed_change_no_settings() -> None:
    """So a CSV made with one engine goes on with the other."""
    assert {"batch_size", "device", "engine", "trust_remote_code"} <= set(Describe.speed_options)


def test_auto_takes_slots_where_the_model_is_of_the_family(tmp_path: Path) -> None:
    assert isinstance(STAGE.load(), QwenSlots)
    assert isinstance(dataclasses.replace(STAGE, engine="generate").load(), BatchedGenerate)
    other = dataclasses.replace(STAGE, model=str(save_llava(tmp_path)))
    assert isinstance(other.load(), BatchedGenerate)
    with pytest.raises(UserError, match=r"^describe.engine: slots is for Qwen2-VL, .* is llava: set auto"):
        dataclasses.replace(other, engine="slots").load()


def save_llava(folder: Path) -> Path:
    """A random model of another family, with the bundled tokenizer."""
    import torch
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessor,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    vision = {
        "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14, "projection_dim": 32, "initializer_range": 0.3,
    }  # fmt: skip
    text = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 736,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.4, "pad_token_id": 710,
    }  # fmt: skip
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=721, image_seq_length=4)
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = list(range(0, 700, 9))
    model.generation_config.pad_token_id = 710
    model.save_pretrained(folder)
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"height": 28, "width": 28}, do_center_crop=False),
        tokenizer=AutoTokenizer.from_pretrained(BUNDLED, padding_side="right"),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<|image_pad|>",
        chat_template=(BUNDLED / "chat_template.jinja").read_text(),
    ).save_pretrained(folder)
    return folder


def test_batches_of_another_family_equal_single_images(tmp_path: Path, rows: list[Values]) -> None:
    """Answers of several lengths in one batch: what follows the end of the shorter ones counts for nothing."""
    stage = dataclasses.replace(STAGE, model=str(save_llava(tmp_path)), max_new_tokens=24)
    model = stage.load()
    images = [row["image"] for row in rows]
    single = [model.generate([image], 1)[0] for image in images]
    assert len({answer.tokens for answer in single}) > 2
    assert {answer.is_complete for answer in single} == {True, False}
    for batch_size in (5, 16):
        for answer, other in zip(model.generate(images, batch_size), single, strict=True):
            assert dataclasses.replace(answer, confidence=0) == dataclasses.replace(other, confidence=0)
            assert answer.confidence == pytest.approx(other.confidence, abs=1e-4)


def test_auto_batch_size_follows_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = dataclasses.replace(STAGE, batch_size="auto")
    model = stage.load()
    seconds = []
    for _ in range(20):
        start_s = time.perf_counter()
        assert stage.auto_batch_size(model, 0.0) == 32, "a CPU gains little beyond"
        seconds.append(time.perf_counter() - start_s)
    assert min(seconds) < 0.005
    monkeypatch.setattr(device, "host_free_gb", lambda: 0.0)
    assert stage.auto_batch_size(model, 0.0) == 1
    monkeypatch.setattr(device, "host_free_gb", lambda: 10.1 * model.bytes_per_slot() / 1e9)
    assert stage.auto_batch_size(model, 0.0) == 7
    model.generate([Image.new("RGB", (56, 56))] * 9, 9)
    assert stage.auto_batch_size(model, 0.0) == 9, "what it holds already is no longer free"


def test_the_production_model_fits_a_24_gb_card() -> None:
    """By the figures of Qwen2-VL-7B in bf16: 57 kB of keys and values a token, 16.6 GB of weights."""
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    text = {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064,
    }  # fmt: skip
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text)).bfloat16()
    from vec_pipeline.engines.batched_generate import bytes_per_row

    row_gb = bytes_per_row(model, 256, prefilled_share=1 / 8) / 1e9
    assert 57344 * 600 / 1e9 < row_gb < 57344 * 2000 / 1e9
    assert 32 <= 0.7 * (24 - 16.6) / row_gb <= 256


def test_a_models_own_code_and_pickles_stay_unread(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(BUNDLED, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard_of", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match=r"set describe.trust_remote_code: true"):
        dataclasses.replace(STAGE, model=str(folder)).load()
    shutil.rmtree(folder)
    shutil.copytree(BUNDLED, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises((OSError, UserError), match="safetensors"):
        dataclasses.replace(STAGE, model=str(folder)).load()
    assert not (tmp_path / "ran").exists()
