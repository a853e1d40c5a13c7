"""From a description to columns: what is asked of the language model, and what becomes of its answer."""

import json
from collections.abc import Sequence

import pytest

from vec_pipeline.engines import Answer, Message, grammar
from vec_pipeline.stages.structure import Structure, distinct

ANSWER = {
    "description": "A red car.",
    "category": "vehicle",
    "keywords": ["car", "red, fast", "Car", " "],
    "image_text": "SALE",
}


class Parrot:
    """Gives one answer to everybody, and remembers what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.conversations: Sequence[Sequence[Message]] = []
        self.max_tokens = 0

    def generate(self, conversations: Sequence[Sequence[Message]], gbnf: str, max_tokens: int) -> list[Answer]:
        self.conversations, self.max_tokens = conversations, max_tokens
        return [self.answer] * len(conversations)


def test_an_answer_fills_the_columns() -> None:
    text = json.dumps(ANSWER)
    [row] = Structure(model="m").run(Parrot(Answer(text, True, 30)), [{"text": "A red car."}])
    assert row == {
        "description": "A red car.",
        "categories": "vehicle",
        "keywords": "car, red fast",
        "image_text": "SALE",
        "llama_extracted": text,
    }


def test_a_cut_answer_is_recorded_as_it_was_with_an_error() -> None:
    cut = '{"description": "A red car and'
    [row] = Structure(model="m").run(Parrot(Answer(cut, False, 9)), [{"text": "A red car."}])
    assert row == {"llama_extracted": cut, "error": "CutAnswer: the JSON ends after 9 tokens"}


@pytest.mark.parametrize("categories", [(), ("портрет", 'a "quoted" one', "document")])
def test_the_longest_answer_the_grammar_admits_fits_the_tokens_asked_for(categories: tuple[str, ...]) -> None:
    stage = Structure(model="m", categories=categories)
    longest = {
        "description": "\N{GRINNING FACE}" * 400,
        "category": max(categories, key=len) if categories else "\N{GRINNING FACE}" * 40,
        "keywords": ["\N{GRINNING FACE}" * 40] * 10,
        "image_text": "\N{GRINNING FACE}" * 400,
    }
    answer = json.dumps(longest, ensure_ascii=False)
    parrot = Parrot(Answer(answer, True, 1))
    stage.run(parrot, [{"text": "?"}])
    assert grammar.parse(answer, stage.schema()) == longest
    assert len(answer.encode()) <= parrot.max_tokens


def test_only_configured_categories_are_admitted() -> None:
    schema = Structure(model="m", categories=("portrait", "document")).schema()
    grammar.parse(json.dumps({**ANSWER, "category": "portrait", "keywords": []}), schema)
    with pytest.raises(ValueError, match="category"):
        grammar.parse(json.dumps({**ANSWER, "keywords": []}), schema)


def test_the_prompt_follows_language_categories_and_option() -> None:
    parrot = Parrot(Answer(json.dumps(ANSWER), True, 1))
    Structure(model="m", language="ru").run(parrot, [{"text": "Красная машина."}])
    system, user = parrot.conversations[0]
    assert "Отвечай по-русски" in system["content"]
    assert user == {"role": "user", "content": "Красная машина."}
    assert "portrait, document" in Structure(model="m", categories=("portrait", "document")).system_prompt()
    assert Structure(model="m", prompt="JSON! {category}").system_prompt().startswith("JSON! one or two words")


def test_keywords_are_distinct_whatever_their_case() -> None:
    assert distinct(["Car", "red", "car", "RED", "blue  sky", ""]) == ["Car", "red", "blue sky"]
