"""Every family of vision-language models in batches: asked as it expects, and answered as on each picture alone."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from tests import tiny_families
from tests.runs import Runs, annotate
from tests.tiny_families import CHAT, CHATML, WITHOUT_TEMPLATE
from vec_pipeline.engines.batched_generate import BatchedGenerate
from vec_pipeline.engines.families import family_of, image_prompt, own_question
from vec_pipeline.record import UserError
from vec_pipeline.sources.folder import Folder
from vec_pipeline.stages.describe import Describe, quantization_config
from vec_pipeline.stages.open_image import OpenImage

QUESTION = "What is this?"
SIZES = [(112, 112), (60, 140), (84, 84), (140, 60), (200, 90)]
MAX_NEW_TOKENS = 16
ALL = {**CHAT, **WITHOUT_TEMPLATE}


@pytest.fixture(autouse=True)
def num2words(monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolVLM's processor refuses to be made without this package, which only counts the frames of videos."""
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", str)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (height // 14 + 1, width // 14 + 1, 3), np.uint8) for width, height in SIZES]
    return [Image.fromarray(small).resize(size) for small, size in zip(noise, SIZES, strict=True)]


def question_of(name: str) -> str:
    own = own_question(ALL[name]()[0].config.model_type, "normal", "en")
    return QUESTION if own is None else own


def saved(name: str, folder: Path) -> Describe:
    """A stage that loads a model of the family from a folder."""
    tiny_families.save(folder, *ALL[name]())
    prompt = QUESTION if name in CHAT else ""
    return Describe(
        model=str(folder), prompt=prompt, max_new_tokens=MAX_NEW_TOKENS, device="cpu", engine="generate", batch_size=5
    )


@pytest.mark.parametrize("name", ALL)
def test_a_batch_of_pictures_is_described_as_each_alone(
    name: str, tmp_path: Path, images: list[Image.Image], caplog: pytest.LogCaptureFixture
) -> None:
    """From files to rows: the model as it is saved, pictures of several sizes, and no batch that is tried again."""
    stage = saved(name, tmp_path / "model")
    (tmp_path / "pictures").mkdir()
    for number, image in enumerate(images):
        image.save(tmp_path / "pictures" / f"{number}.png")
    runs = Runs(tmp_path)
    executor = runs(stage, reader=OpenImage())
    caplog.set_level("INFO")
    rows = annotate(executor, list(Folder(str(tmp_path / "pictures"))))
    runs.close()
    assert [row.error for row in rows] == [""] * 5
    assert not executor.retries
    assert [line for line in caplog.messages if line.startswith("describe: a batch")] == [
        "describe: a batch of 5, 5 at once"
    ]

    model = stage.load()
    alone = [stage.run(model, [{"image": row.values["image"]}], 1)[0] for row in with_images(rows, images)]
    assert [row.values.get("text", "") for row in rows] == [each["text"] for each in alone]
    for row, each in zip(rows, alone, strict=True):
        assert row.values["text_confidence"] == pytest.approx(each["text_confidence"], abs=2e-4)
    assert len({each["text"] for each in alone}) > 2, "the model must see the pictures, or nothing is compared"


def with_images(rows: list[Any], images: list[Image.Image]) -> list[Any]:
    """The executor lets go of the pixels."""
    for row, image in zip(rows, images, strict=True):
        row.values["image"] = image
    return rows


@pytest.mark.parametrize("name", CHAT)
def test_a_prompt_is_what_the_processor_makes_of_the_conversation(name: str, images: list[Image.Image]) -> None:
    """As the documentation of transformers asks it: no token twice, such as the first, and none missing."""
    model, processor = CHAT[name]()
    family = family_of(model, processor)
    content = [{"type": "image", "image": images[1]}, {"type": "text", "text": QUESTION}]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    expected = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, **options
    )
    inputs = family.inputs([family.prompt(QUESTION)], [images[1]])
    assert inputs.keys() == expected.keys()
    for key in expected:
        assert torch.equal(torch.as_tensor(inputs[key]), torch.as_tensor(expected[key])), key


def of_git(processor: Any, image: Image.Image, text: str) -> Any:
    ids = [processor.tokenizer.cls_token_id, *processor.tokenizer(text, add_special_tokens=False)["input_ids"]]
    return {**processor(images=image, return_tensors="pt"), "input_ids": torch.tensor([ids])}


DOCUMENTED = [  # family, question, and what its documentation passes to `generate`
    ("blip", "", lambda p, i: p(images=i, return_tensors="pt")),
    ("blip", "a picture of", lambda p, i: p(images=i, text="a picture of", return_tensors="pt")),
    ("blip2", "", lambda p, i: p(images=i, return_tensors="pt")),
    ("blip2", "Who?", lambda p, i: p(images=i, text="Question: Who? Answer:", return_tensors="pt")),
    ("blip2_t5", "Who?", lambda p, i: p(images=i, text="Question: Who? Answer:", return_tensors="pt")),
    ("git", "", lambda p, i: p(images=i, return_tensors="pt")),
    ("git", "a picture of", lambda p, i: of_git(p, i, "a picture of")),
    ("paligemma", "ocr", lambda p, i: p(images=i, text="<image>ocr", return_tensors="pt")),
    ("florence2", "<OCR>", lambda p, i: p(images=i, text="<OCR>", return_tensors="pt")),
    ("kosmos2", "An image of", lambda p, i: p(images=i, text="An image of", return_tensors="pt")),
]


@pytest.mark.parametrize(("name", "question", "documented"), DOCUMENTED)
def test_a_family_without_a_chat_template_is_asked_as_documented(
    name: str, question: str, documented: Any, images: list[Image.Image]
) -> None:
    """And what is not the answer, such as the prompt, is no part of the text."""
    model, processor = WITHOUT_TEMPLATE[name]()
    model.generation_config.num_beams = 1
    answers = []
    for image in images[:3]:
        inputs = {key: value for key, value in documented(processor, image).items() if key != "labels"}
        whole = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)[0].tolist()
        answer = BatchedGenerate(model, processor, question, MAX_NEW_TOKENS).generate([image], 1)[0]
        expected = processor.decode(whole[-answer.tokens - answer.is_complete :], skip_special_tokens=True)
        if name == "kosmos2":
            expected = processor.post_process_generation(expected)[0]
        assert answer.text.strip() == expected.strip()
        answers.append(answer.text.strip())
        assert answer.is_complete or answer.tokens == MAX_NEW_TOKENS
    assert any(answers)


def test_questions_of_their_own_share_batches(images: list[Image.Image]) -> None:
    """Where padding would shift positions, only prompts of one length do."""
    questions = ["a photo of", "my", "a picture of the", "my", "a photo of"]
    for name in ("llava", "gemma4", "blip", "git", "blip2", "florence2", "kosmos2"):
        model, processor = ALL[name]()
        engine = BatchedGenerate(model, processor, "", MAX_NEW_TOKENS)
        together = engine.generate(images, 5, questions)
        for image, question, answer in zip(images, questions, together, strict=True):
            alone = BatchedGenerate(model, processor, question, MAX_NEW_TOKENS).generate([image], 1)[0]
            assert (answer.text, answer.tokens) == (alone.text, alone.tokens), name
        sizes = [len(batch) for batch in engine._batches(images, questions, 5)]
        assert sorted(sizes) == ([1, 2, 2] if name in ("blip", "git", "florence2", "kosmos2") else [5]), name


@pytest.mark.parametrize("name", ["llava", "blip", "blip2", "florence2", "kosmos2"])
def test_decoding_is_greedy_whatever_the_published_settings(name: str, images: list[Image.Image]) -> None:
    """Those of a part of the model too, where that is what decodes."""
    texts = []
    for is_published in (False, True):
        model, processor = ALL[name]()
        for module in model.modules():
            if is_published and (settings := getattr(module, "generation_config", None)):
                settings.do_sample, settings.temperature, settings.num_beams = True, 3.0, 3
                settings.repetition_penalty, settings.length_penalty, settings.early_stopping = 1.5, 0.5, True
        engine = BatchedGenerate(model, processor, question_of(name), MAX_NEW_TOKENS)
        texts.append([answer.text for answer in engine.generate(images, 5)])
    assert texts[0] == texts[1]


def test_paligemma_is_given_its_image_and_no_labels(images: list[Image.Image]) -> None:
    family = family_of(*WITHOUT_TEMPLATE["paligemma"]())
    assert family.prompt("ocr") == "<image>ocr"
    assert "labels" not in family.inputs(["<image>ocr"], images[:1])


def test_florence_2_answers_its_tasks(images: list[Image.Image]) -> None:
    model, processor = WITHOUT_TEMPLATE["florence2"]()
    family = family_of(model, processor)
    end = processor.tokenizer.eos_token_id
    said = processor.tokenizer("car<loc_1><loc_2><loc_3><loc_4>", add_special_tokens=False)["input_ids"]
    assert family.text([*said, end], "<DETAILED_CAPTION>", images[0]) == "car<loc_1><loc_2><loc_3><loc_4>"
    assert json.loads(family.text([*said, end], "<OD>", images[0]))["labels"] == ["car"]
    with pytest.raises(ValueError, match="should be the only content"):
        BatchedGenerate(model, processor, "<CAPTION> of the car", MAX_NEW_TOKENS)


def test_kosmos_2_names_no_regions(images: list[Image.Image]) -> None:
    model, processor = WITHOUT_TEMPLATE["kosmos2"]()
    said = " a<phrase> snowman</phrase><object><patch_index_0001><patch_index_0009></object> by a fire"
    tokens = processor.tokenizer(said, add_special_tokens=False)["input_ids"]
    assert family_of(model, processor).text(tokens, "An image of", images[0]).split() == "a snowman by a fire".split()


class Scripted:
    """A model that says what it is told: `generate` of transformers around the tokens of a text.

    sure: a character of the text and each after it are certain, those before are as likely as another.
    """

    def __init__(self, like: Any, processor: Any, text: str, sure: int = 0) -> None:
        self.config, self.generation_config = like.config, like.generation_config
        self.device, self.dtype = like.device, like.dtype
        self._tokens = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        self._sure = len(processor.tokenizer(text[:sure], add_special_tokens=False)["input_ids"])

    def modules(self) -> list[Any]:
        return []

    def generate(self, input_ids: Any, max_new_tokens: int, logits_processor: Any, **inputs: Any) -> Any:
        tokens = self._tokens[:max_new_tokens]
        for step, token in enumerate(tokens):
            scores = torch.full((len(input_ids), 600), -1e4)
            scores[:, [token] if step >= self._sure else [token, token - 1]] = 0.0
            assert torch.equal(logits_processor[0](input_ids, scores), scores)
        return torch.cat([input_ids, torch.tensor([tokens] * len(input_ids))], 1)


def said(name: str, template: str, text: str, max_new_tokens: int = 300) -> Any:
    """What the engine makes of an output of a family, with another template instead of its own."""
    model, processor = CHAT[name]()
    processor.chat_template = template or processor.chat_template
    model.generation_config.eos_token_id = processor.tokenizer.convert_tokens_to_ids("</s>")
    marks = list(re.finditer(r"</think>|\[/THINK\]|<channel\|>", text))
    model = Scripted(model, processor, text, marks[-1].end() if marks else 0)
    return BatchedGenerate(model, processor, QUESTION, max_new_tokens).generate([Image.new("RGB", (56, 56))], 1)[0]


PLAIN = CHATML.replace("IMAGE", "<image>")
OPEN = PLAIN.replace("assistant\\n", "assistant\\n<think>\\n")
REASONED = {
    "think": ("llava", "", "<think>\nA car? Red.\n</think>\n\nA red car.</s>"),
    "of the prompt": ("llava", OPEN, "A car? Red.\n</think>\n\nA red car.</s>"),
    "gemma": ("gemma4", "", "<|channel>thought\nA car? Red.<channel|>A red car.</s>"),
    "mistral": ("mistral3", "", "[THINK]A car? Red.[/THINK]A red car.</s>"),
    "glm": ("glm4v", "", "<think>A car? Red.</think><answer><|begin_of_box|>A red car.<|end_of_box|></answer></s>"),
}


@pytest.mark.parametrize("case", REASONED)
def test_reasoning_is_no_part_of_the_answer(case: str) -> None:
    name, template, text = REASONED[case]
    answer = said(name, template, text)
    assert (answer.text.strip(), answer.is_complete) == ("A red car.", True)
    assert answer.confidence == pytest.approx(1, abs=0.01), "that of the answer's tokens: the others are a toss-up"

    ends = text.index("A red car.")
    inside = said(name, template, text, max_new_tokens=len("<think>") + 9 if name != "gemma4" else 9)
    assert (inside.text, inside.is_complete, inside.confidence) == ("", False, None)
    _, processor = CHAT[name]()
    before = len(processor.tokenizer(text[: ends + 5], add_special_tokens=False)["input_ids"])
    cut = said(name, template, text, max_new_tokens=before)
    assert (cut.text.strip(), cut.is_complete) == ("A red", False)


def test_marks_of_reasoning_in_an_answer_stay() -> None:
    """Such as a picture of a text that holds them."""
    for text in ("The sign says </think> in red.", "A sign: <think>twice</think>.", "[/THINK]"):
        answer = said("llava", "", f"{text}</s>")
        assert (answer.text, answer.is_complete) == (text, True)
    assert said("llava", OPEN.replace("<think>\\n", "<think></think>"), "No.</think></s>").text == "No.</think>"


def test_a_template_that_can_is_told_not_to_think() -> None:
    _, processor = CHAT["llava"]()
    thinks = "{% if enable_thinking is not defined or enable_thinking %}<think>{% else %}<think></think>{% endif %}"
    processor.chat_template = PLAIN + thinks
    assert image_prompt(processor, QUESTION).endswith("assistant\n<think></think>")
    processor.chat_template = None
    processor.tokenizer.chat_template = PLAIN  # where older checkpoints have it
    assert image_prompt(processor, QUESTION).endswith("assistant\n")
    processor.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="it has no chat template"):
        image_prompt(processor, QUESTION)


LISTS_ONLY = (
    "{% for message in messages %}<{{ message['role'] }}>{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)
REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no such role') }}{% endif %}" + LISTS_ONLY


def test_a_system_prompt_goes_where_the_family_has_it() -> None:
    _, processor = CHAT["llava"]()
    assert image_prompt(processor, QUESTION, "Be brief.").startswith("<|im_start|>system\nBe brief.<|im_end|>")
    processor.chat_template = LISTS_ONLY
    assert image_prompt(processor, QUESTION, "Be brief.") == f"<system>Be brief.<user><image>{QUESTION}"
    processor.chat_template = REFUSING
    assert image_prompt(processor, QUESTION, "Be brief.") == f"<user><image>Be brief.\n\n{QUESTION}"
    model, processor = CHAT["mistral3"]()
    engine = BatchedGenerate(model, processor, QUESTION, MAX_NEW_TOKENS, "Be brief.")
    assert engine._family.prompt(QUESTION) == f"<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST][IMG]{QUESTION}[/INST]"
    with pytest.raises(ValueError, match="takes no system prompt"):
        BatchedGenerate(*WITHOUT_TEMPLATE["git"](), "", MAX_NEW_TOKENS, "Be brief.")


def test_a_template_of_a_language_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its prompt would hold no picture, and every row would be an invention. Older versions of transformers let it."""
    model, processor = CHAT["llava"]()
    monkeypatch.setattr(type(processor), "validate_inputs", lambda self, **inputs: None, raising=False)
    processor.chat_template = CHATML.replace("IMAGE", "")
    with pytest.raises(ValueError, match="puts no image into the prompt"):
        BatchedGenerate(model, processor, QUESTION, MAX_NEW_TOKENS)


def test_estimates_count_the_tiles_that_the_processor_makes() -> None:
    """At its published size, a picture of 384 x 384 pixels is 17 tiles of 169 tokens to Idefics3 and SmolVLM2."""
    from transformers import Idefics3ImageProcessor

    model, processor = CHAT["idefics3"]()
    small = BatchedGenerate(model, processor, QUESTION, MAX_NEW_TOKENS)
    processor.image_processor = Idefics3ImageProcessor()
    processor.image_seq_len = 169
    published = BatchedGenerate(model, processor, QUESTION, MAX_NEW_TOKENS)
    inputs = published._family.inputs([image_prompt(processor, QUESTION)], [Image.new("RGB", (384, 384))])
    assert 2800 < inputs["input_ids"].shape[1] < 3100
    assert published.bytes_per_slot() > 20 * small.bytes_per_slot()
    text = model.config.text_config
    keys_and_values = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * 4
    assert published.bytes_per_slot() > keys_and_values * inputs["input_ids"].shape[1]


@pytest.mark.parametrize("name", ALL)
def test_every_family_has_an_estimate(name: str) -> None:
    engine = BatchedGenerate(*ALL[name](), question_of(name), MAX_NEW_TOKENS)
    assert 1e4 < engine.bytes_per_slot() < 1e7


@pytest.mark.parametrize("name", ALL)
def test_quantization_leaves_the_vision_tower_alone(name: str) -> None:
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    config = ALL[name]()[0].config
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    settings = quantization_config("nf4", torch.bfloat16)
    model = replace_with_bnb_linear(model, settings.llm_int8_skip_modules, settings)
    quantised = [module for module, layer in model.named_modules() if type(layer).__name__ == "Linear4bit"]
    text = r"model\.(language|text)_model\.|text_decoder\.|language_model\.|text_model\.|git\.encoder\.|output$"
    assert quantised and [module for module in quantised if not re.match(text, module)] == []


def test_a_model_whose_weights_are_of_another_layout_is_refused(tmp_path: Path) -> None:
    """Transformers makes up what is missing, and answers nonsense."""
    stage = saved("llava", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for name in [name for name in weights if "vision_tower" in name][3:]:
        weights[name.replace("vision_tower", "image_tower")] = weights.pop(name)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"has no weights for model.vision_tower.* more: use a copy for the LlavaFor"):
        stage.load()


def test_smolvlm_without_num2words_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = saved("smolvlm", tmp_path)
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", None)
    with pytest.raises(UserError, match=r"needs another package: .*pip install 'vec-pipeline\[smolvlm\]'"):
        stage.fetch()
