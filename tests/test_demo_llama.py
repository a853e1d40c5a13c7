"""The demo Llama turns captions it never saw into the wanted JSON, through llama.cpp and the official chat template."""

import random
from collections.abc import Iterator
from pathlib import Path
from string import ascii_uppercase

import pytest
from llama_cpp import Llama
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from models.demo.llama_text import structure_prompt, wanted_answer
from models.demo.scenes import random_scene

GGUF_PATH = Path(__file__).parent.parent / "models" / "demo" / "llama" / "llama.gguf"


@pytest.fixture(scope="module")
def llama() -> Iterator[Llama]:
    model = Llama(str(GGUF_PATH), n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False)
    yield model
    model.close()


def answer(llama: Llama, description: str) -> str:
    """The greedy answer to a description under the default structure prompt, with no grammar."""
    messages = [{"role": "system", "content": structure_prompt()}, {"role": "user", "content": description}]
    result = llama.create_chat_completion(messages, temperature=0.0, repeat_penalty=1.0, max_tokens=150)
    assert result["choices"][0]["finish_reason"] == "stop"
    return result["choices"][0]["message"]["content"]


@pytest.mark.parametrize(("words", "least"), [("lexicon", 18), ("random", 16), ("none", 18)])
def test_most_held_out_captions_become_exactly_their_json(llama: Llama, words: str, least: int) -> None:
    """Not all: letters printed twice in a random string are sometimes miscounted."""
    rng = random.Random(f"held out/{words}")
    scenes = [random_scene(rng, held_out=True, words=words) for _ in range(20)]
    exact = [answer(llama, scene.caption()) == wanted_answer(scene) for scene in scenes]
    assert sum(exact) >= least


def test_other_wording_is_understood(llama: Llama) -> None:
    assert answer(llama, 'Two green cats on a white background. The text says "HOT DOG"') == (
        '{"description": "Two green cats on a white background.", "category": "animal", '
        '"keywords": ["cat", "green", "two", "white background"], "image_text": "HOT DOG"}'
    )


def test_chat_template_is_the_official_one(llama: Llama) -> None:
    formatter = Jinja2ChatFormatter(
        template=llama.metadata["tokenizer.chat_template"], eos_token="<|eot_id|>", bos_token="<|begin_of_text|>"
    )
    messages = [{"role": "system", "content": " Be brief.\n"}, {"role": "user", "content": "Hello "}]
    assert formatter(messages=messages).prompt == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
        "Be brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "Hello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_end_of_turn_ends_the_answer(llama: Llama) -> None:
    end_of_turn = llama.tokenize(b"<|eot_id|>", add_bos=False, special=True)
    assert end_of_turn == [llama.token_eos()]
    assert llama.token_bos() == llama.tokenize(b"", add_bos=True)[0]


def test_capitals_are_single_tokens(llama: Llama) -> None:
    for text in (ascii_uppercase, "SALE", "THEKEYS", "AAAA"):
        tokens = llama.tokenize(text.encode(), add_bos=False)
        assert [llama.detokenize([token]).decode() for token in tokens] == list(text)
