"""Slot decoding gives every image the answer of `generate` on it alone, whatever else is in the slots."""

import gc
import json
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.conftest import EXAMPLES, PROJECT
from vec_pipeline.engines import Answer, families, qwen_slots
from vec_pipeline.engines.batched_generate import BatchedGenerate
from vec_pipeline.engines.qwen_slots import QwenSlots, _Slots, prompt_positions, rotated_axes, supports
from vec_pipeline.engines.qwen_vision import Grid, ImageReader, VisionTower

BUNDLED = PROJECT / "models" / "demo" / "vision_language"
QUESTION = "Describe this image."
MAX_NEW_TOKENS = 20
SIZES = [
    (112, 112), (60, 140), (84, 84), (140, 60), (112, 112), (90, 200), (84, 84), (28, 28), (112, 84), (168, 168),
    (64, 96), (200, 60),
]  # fmt: skip
gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def processor(family: str) -> Any:
    return small_processor(family)


def small_processor(family: str) -> Any:
    """The bundled tokenizer, and PIL's image preparation for 16 to 100 patches."""
    from transformers import AutoImageProcessor, AutoProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    patch_px = 16 if family == "qwen3_vl" else 14
    size = {"shortest_edge": (4 * patch_px) ** 2, "longest_edge": (10 * patch_px) ** 2}
    images = AutoImageProcessor.from_pretrained(BUNDLED, backend="pil", size=size, patch_size=patch_px)
    processor = AutoProcessor.from_pretrained(BUNDLED)
    processor.image_processor = images
    if family != "qwen3_vl":
        return processor
    return Qwen3VLProcessor(images, processor.tokenizer, Qwen3VLVideoProcessor(), processor.chat_template)


TEXT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 736, "initializer_range": 0.4, "max_position_embeddings": 2048,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
}  # fmt: skip
TEXTS = {
    "qwen2_vl": TEXT,
    "qwen2_5_vl": TEXT,
    "qwen3_vl": TEXT | {
        "num_hidden_layers": 5, "head_dim": 32,  # so that heads are wider than the hidden size together, as in the 4B
        "rope_parameters": TEXT["rope_parameters"] | {"mrope_section": [6, 5, 5], "mrope_interleaved": True},
    },
}  # fmt: skip
TOKENS = {"image_token_id": 721, "video_token_id": 722, "vision_start_token_id": 718, "vision_end_token_id": 719}
VISION = {
    "qwen2_vl": {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
    "qwen2_5_vl": {
        "depth": 3, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48, "num_heads": 2,
        "window_size": 56, "fullatt_block_indexes": [1],
    },
    "qwen3_vl": {
        "depth": 5, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48, "num_heads": 2,
        "num_position_embeddings": 36, "deepstack_visual_indexes": [0, 1, 3],
    },
}  # fmt: skip


def tiny_model(family: str, **text: Any) -> Any:
    """A random model of the family. Every ninth token ends its answers, so their lengths differ."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    vision = VISION[family] | {"initializer_range": 0.4}
    options = {"text_config": TEXTS[family] | text, "vision_config": vision, **TOKENS}
    config = AutoConfig.for_model(family, tie_word_embeddings=family == "qwen3_vl", **options)
    torch.manual_seed(2)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # biases and norms, which are zeros and ones otherwise
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.generation_config.eos_token_id = list(range(0, 736, 9))
    model.generation_config.pad_token_id = 710
    return model


@pytest.fixture(scope="module")
def model(family: str) -> Any:
    return tiny_model(family)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (height // 14 + 1, width // 14 + 1, 3), np.uint8) for width, height in SIZES]
    return [Image.fromarray(small).resize(size) for small, size in zip(noise, SIZES, strict=True)]


def generate_alone(
    model: Any, processor: Any, image: Image.Image, max_new_tokens: int = MAX_NEW_TOKENS
) -> tuple[list[int], float]:
    """The tokens and their mean probability by `generate` on one image."""
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=[prompt], images=[image], return_tensors="pt").to(model.device)
    options = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    result = model.generate(**inputs, max_new_tokens=max_new_tokens, **options)
    tokens = result.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    return tokens, float(torch.cat(result.logits).float().softmax(-1).max(-1).values.mean())


def alone(model: Any, processor: Any, image: Image.Image, max_new_tokens: int = MAX_NEW_TOKENS) -> Answer:
    """The reference: the answer to one image by itself."""
    tokens, confidence = generate_alone(model, processor, image, max_new_tokens)
    is_complete = tokens[-1] in model.generation_config.eos_token_id
    text = processor.decode(tokens, skip_special_tokens=True)
    return Answer(text, is_complete, len(tokens) - is_complete, confidence)


def assert_equal(answers: list[Answer], expected: list[Answer]) -> None:
    for answer, other in zip(answers, expected, strict=True):
        assert (answer.text, answer.is_complete, answer.tokens) == (other.text, other.is_complete, other.tokens)
        assert answer.confidence == pytest.approx(other.confidence, abs=1e-4)


@pytest.fixture(scope="module")
def expected(model: Any, processor: Any, images: list[Image.Image]) -> list[Answer]:
    return [alone(model, processor, image) for image in images]


def test_the_reference_is_a_meaningful_comparison(
    model: Any, processor: Any, images: list[Image.Image], expected: list[Answer]
) -> None:
    """Answers differ, and do not repeat one token: some end by themselves at different lengths, some at the limit."""
    assert len({answer.text for answer in expected}) > 6
    longest = max(range(len(images)), key=lambda index: expected[index].tokens)
    assert len(set(generate_alone(model, processor, images[longest])[0])) > MAX_NEW_TOKENS / 2
    assert len({answer.tokens for answer in expected if answer.is_complete}) >= 3
    assert not all(answer.is_complete for answer in expected)


@pytest.mark.parametrize("slots", [1, 3, 8, 16])
def test_equals_generate_on_each_image_alone(
    model: Any, processor: Any, images: list[Image.Image], expected: list[Answer], slots: int
) -> None:
    engine = QwenSlots(model, processor, QUESTION, MAX_NEW_TOKENS)
    assert_equal(engine.generate(images, slots), expected)
    assert_equal(engine.generate(images[:2], slots), expected[:2])


def test_images_of_several_sizes_are_prefilled_together(
    model: Any, processor: Any, images: list[Image.Image], expected: list[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In groups of four here; so few images would each be a group of its own otherwise."""
    monkeypatch.setattr(qwen_slots, "_GROUPS", 2)
    assert_equal(QwenSlots(model, processor, QUESTION, MAX_NEW_TOKENS).generate(images, 8), expected)


def test_each_image_may_have_a_question_of_its_own(
    model: Any, processor: Any, images: list[Image.Image], expected: list[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of other lengths, prefilled together, and after a system prompt."""
    monkeypatch.setattr(qwen_slots, "_GROUPS", 2)
    questions = ["What is red?" * (index % 5) for index in range(len(images))]
    system_prompt = "Name the colours first."
    answers = QwenSlots(model, processor, QUESTION, MAX_NEW_TOKENS, system_prompt).generate(images, 8, questions)
    by_generate = BatchedGenerate(model, processor, QUESTION, MAX_NEW_TOKENS, system_prompt)
    one_by_one = by_generate.generate(images, 1, questions)
    assert_equal(answers, one_by_one)
    assert sum(answer.text != other.text for answer, other in zip(answers, expected, strict=True)) > 6
    own = QwenSlots(model, processor, QUESTION, MAX_NEW_TOKENS, system_prompt).generate(images[:2], 2)
    assert_equal(own, by_generate.generate(images[:2], 1))
    assert own[0].text != answers[0].text


def test_a_finished_row_is_refilled_at_once(
    model: Any, processor: Any, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the number of rows only falls once no image is left."""
    counts: list[int] = []
    step = _Slots._step
    monkeypatch.setattr(_Slots, "_step", lambda self, count: (counts.append(count), step(self, count))[1])
    QwenSlots(model, processor, QUESTION, MAX_NEW_TOKENS).generate(images, 3)
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 3


def test_an_engine_is_reused_and_its_cache_fits(
    model: Any, processor: Any, images: list[Image.Image], expected: list[Answer]
) -> None:
    engine = QwenSlots(model, processor, QUESTION, MAX_NEW_TOKENS)
    assert_equal(engine.generate(images, 4), expected)
    first = engine._slots
    assert_equal(engine.generate(images[::-1], 4), expected[::-1])
    assert first is not None and engine._slots is first, "the same size must not be allocated again"
    longest = len(engine._prompt.before) + 25 + len(engine._prompt.after) + MAX_NEW_TOKENS
    assert longest <= first.length < longest + 64
    assert_equal(engine.generate(images[:3], 2), expected[:3])
    assert engine._slots is first and engine.slots == 4, "a larger one is reused"
    assert_equal(engine.generate(images, 5), expected)
    assert engine.slots == 5
    engine.close()
    assert engine.slots == 0


def test_another_question_with_shorter_answers_uses_the_same_cache(
    model: Any, processor: Any, images: list[Image.Image], expected: list[Answer]
) -> None:
    engine = QwenSlots(model, processor, QUESTION, MAX_NEW_TOKENS)
    assert_equal(engine.generate(images, 4), expected)
    first = engine._slots
    engine.set_question("What is red?", 2)
    assert_equal(engine.generate(images, 4), QwenSlots(model, processor, "What is red?", 2).generate(images, 4))
    assert engine._slots is first
    engine.set_question(QUESTION, MAX_NEW_TOKENS)
    assert_equal(engine.generate(images, 4), expected)
    assert engine._slots is first
    engine.set_question(QUESTION, 2 * MAX_NEW_TOKENS)
    longer = QwenSlots(model, processor, QUESTION, 2 * MAX_NEW_TOKENS)
    assert_equal(engine.generate(images, 4), longer.generate(images, 4))
    assert engine._slots is not first


def test_reasoning_is_left_out_as_in_batches(
    model: Any, processor: Any, images: list[Image.Image], expected: list[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it began where the prompt ends and ended with an `e`: some answers have one."""
    monkeypatch.setattr(families, "REASONING", (("assistant", "e"),))
    answers = QwenSlots(model, processor, QUESTION, MAX_NEW_TOKENS).generate(images, 3)
    assert_equal(answers, BatchedGenerate(model, processor, QUESTION, MAX_NEW_TOKENS).generate(images, 1))
    texts = [(answer.text, whole.text) for answer, whole in zip(answers, expected, strict=True)]
    assert any(text and text != whole for text, whole in texts)
    assert any(not text for text, _ in texts)


def test_one_token_and_no_image(model: Any, processor: Any, images: list[Image.Image]) -> None:
    engine = QwenSlots(model, processor, QUESTION, 1)
    assert engine.generate([], 4) == []
    assert_equal(engine.generate(images, 4), [alone(model, processor, image, 1) for image in images])


def test_the_model_is_not_modified(
    model: Any, processor: Any, images: list[Image.Image], expected: list[Answer]
) -> None:
    before = {name: (id(module), type(module), module.forward.__func__) for name, module in model.named_modules()}
    implementation = model.config.text_config._attn_implementation
    QwenSlots(model, processor, QUESTION, MAX_NEW_TOKENS).generate(images, 4)
    assert before == {name: (id(m), type(m), m.forward.__func__) for name, m in model.named_modules()}
    assert model.config.text_config._attn_implementation == implementation
    assert_equal([alone(model, processor, image) for image in images[:3]], expected[:3])


@pytest.mark.parametrize("method", ["prefill", "decode", "move"])
def test_a_failure_frees_the_cache_and_affects_no_later_call(
    model: Any, processor: Any, images: list[Image.Image], expected: list[Answer], monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:  # fmt: skip
    engine = QwenSlots(model, processor, QUESTION, MAX_NEW_TOKENS)
    original: Callable[..., Any] = getattr(_Slots, method)
    caches: list[weakref.ref[torch.Tensor]] = []

    def fail_the_third_time(self: _Slots, *arguments: Any) -> Any:
        caches.append(weakref.ref(self._keys))
        if len(caches) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(_Slots, method, fail_the_third_time)
        with pytest.raises(torch.OutOfMemoryError):
            engine.generate(images, 4)
    gc.collect()
    assert caches[0]() is None, "the cache is still in memory"
    assert_equal(engine.generate(images, 2), expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_patches_equal_those_of_the_pil_processor(processor: Any, mode: str) -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(3)
    images = [Image.fromarray(np.resize(levels, (height, width, 3))).convert(mode) for width, height in SIZES]
    stock = processor.image_processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
    reader = ImageReader(processor.image_processor, torch.device("cpu"))
    grids = [reader.grid(image) for image in images]
    patches = reader.patches([reader.resize(image, grid) for image, grid in zip(images, grids, strict=True)])
    assert [[1, *grid] for grid in grids] == stock["image_grid_thw"].tolist()
    assert torch.equal(patches, stock["pixel_values"])


@pytest.mark.parametrize("grids", [[(8, 8)] * 3, [(8, 8), (4, 10), (2, 2), (8, 8), (10, 6)]], ids=["equal", "mixed"])
def test_the_vision_tower_equals_the_stock_one(model: Any, grids: list[tuple[int, int]]) -> None:
    values = model.model.visual.patch_embed.proj.weight[0].numel()
    patches = torch.randn(sum(rows * columns for rows, columns in grids), values)
    with torch.inference_mode():
        tower = VisionTower(model.model.visual)
        ours = tower(patches, [Grid(*grid) for grid in grids])
        output = model.model.visual(patches, grid_thw=torch.tensor([[1, *grid] for grid in grids]))
    stock = torch.stack([output.pooler_output, *getattr(output, "deepstack_features", [])], 1)
    torch.testing.assert_close(ours, stock, rtol=1e-3, atol=1e-3 * float(stock.abs().max()))
    assert tower.levels == ours.shape[1] == (4 if model.config.model_type == "qwen3_vl" else 1)


@pytest.mark.parametrize("image", [Grid(2, 2), Grid(1, 7), Grid(9, 3)])
def test_positions_equal_those_of_transformers(model: Any, image: Grid) -> None:
    types = torch.tensor([[0] * 5 + [1] * image.patches + [0] * 4], dtype=torch.int)
    grid = torch.tensor([[1, 2 * image.rows, 2 * image.columns]])
    stock, _ = model.model.get_rope_index(types.long(), types, image_grid_thw=grid)
    assert torch.equal(prompt_positions(5, image, 4), stock[:, 0])


@pytest.mark.parametrize(
    ("family", "sections"), [("qwen2_vl", [16, 24, 24]), ("qwen3_vl", [24, 20, 20]), ("qwen3_vl", [16, 8, 8])], ids=str
)
def test_angles_equal_those_of_transformers(family: str, sections: list[int]) -> None:
    """Of real models, and of small ones whose sections rotate fewer values than a head has."""
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": sections}
    model = tiny_model(family, head_dim=128, hidden_size=512, rope_parameters=rope)
    rotary = model.model.language_model.rotary_emb
    positions = prompt_positions(5, Grid(3, 4), 4)
    cos, _ = rotary(torch.zeros(1), positions[:, None])
    angles = positions[rotated_axes(sections, family == "qwen3_vl", 64)].T * rotary.inv_freq
    torch.testing.assert_close(angles.cos(), cos.squeeze()[:, :64])


def test_what_is_not_supported(model: Any, processor: Any) -> None:
    from transformers import AutoConfig

    assert supports(model)
    for other in ("qwen3_vl_moe", "qwen3_5"):
        config = AutoConfig.for_model(other)
        assert not supports(SimpleNamespace(config=config, device=model.device))
    sliding = {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 16}
    assert not supports(tiny_model("qwen2_vl", **sliding))
    for family, text in TEXTS.items():
        scaled = text["rope_parameters"] | {"rope_type": "linear", "factor": 2.0}
        assert not supports(tiny_model(family, rope_parameters=scaled))
    with pytest.raises(ValueError, match="expected one image in the prompt, got 2"):
        QwenSlots(model, processor, "What is <|image_pad|>?", MAX_NEW_TOKENS)
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        QwenSlots(model, processor, QUESTION, 0)


def test_the_bundled_model_names_the_colours_in_the_pictures() -> None:
    """Checks content and equality with `generate`, at the sizes that the demo uses."""
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(BUNDLED)
    processor.image_processor = AutoImageProcessor.from_pretrained(BUNDLED, backend="pil")
    model = AutoModelForImageTextToText.from_pretrained(BUNDLED, dtype=torch.float32).eval()
    paths = [path for path in sorted(EXAMPLES.iterdir()) if path.suffix in (".png", ".jpg")]
    images = [Image.open(path).convert("RGB") for path in paths]
    answers = QwenSlots(model, processor, QUESTION, 64).generate(images, 8)
    things = [json.loads(path.with_suffix(".json").read_text())["things"] for path in paths]
    right = [all(thing["colour"] in a.text for thing in truth) for a, truth in zip(answers, things, strict=True)]
    assert sum(right) >= 0.9 * len(right)
    assert all(answer.is_complete and answer.confidence and answer.confidence > 0.5 for answer in answers)
    assert_equal(answers[:8], [alone(model, processor, image, 64) for image in images[:8]])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_never_waits_for_the_gpu(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake tensors on a GPU have no values, so reading one, as `item` does, is an error."""
    monkeypatch.setattr(_Slots, "_capture", lambda self: None)
    monkeypatch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
    model = tiny_model(family).bfloat16()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        slots = _Slots(model.to_empty(device="cuda"), 16, 128, MAX_NEW_TOKENS)
        slots._step(16)
        assert slots._token.is_cuda
        with pytest.raises(torch._subclasses.fake_tensor.DataDependentOutputException):
            slots.decode(16)  # which checks for finished rows


@gpu
@needs_gpu
@pytest.mark.parametrize("shape", [*FAMILIES, "qwen3_vl_4b"])
def test_a_gpu_replays_its_recorded_step(shape: str, images: list[Image.Image]) -> None:
    """In float32 as on the CPU; in bfloat16 every answer arrives, of the right length."""
    from benchmarks.random_qwen3 import TEXT_4B, VISION_4B, random_qwen3

    if shape == "qwen3_vl_4b":  # in a sixth of its depth
        model = random_qwen3(TEXT_4B | {"num_hidden_layers": 6}, VISION_4B, torch.float32, "cuda")
        model.generation_config.eos_token_id = list(range(0, 736, 9))
    else:
        model = tiny_model(shape).cuda()
    processor = small_processor(shape.removesuffix("_4b"))
    expected = [alone(model, processor, image) for image in images]
    engine = QwenSlots(model, processor, QUESTION, MAX_NEW_TOKENS)
    for slots in (3, 16):
        assert_equal(engine.generate(images, slots), expected)
        assert engine._slots is not None and engine._slots._graph is not None
    answers = QwenSlots(model.bfloat16(), processor, QUESTION, MAX_NEW_TOKENS).generate(images, 4)
    assert all(answer.is_complete or answer.tokens == MAX_NEW_TOKENS for answer in answers)
