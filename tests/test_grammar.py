"""What the grammars accept, according to llama.cpp itself with the vocabulary of a tiny model."""

import ctypes
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import llama_cpp.llama_cpp as c
import pytest

from tests.tiny_gguf import write_tiny_gguf
from vec_pipeline.engines.grammar import MAX_REPETITIONS, Schema, bounded, max_bytes, parse, to_gbnf

CATEGORIES = ["животное", 'знак "Стоп"', "a\\b", "line\nbreak", "it's [a] - ^test", "日本 🚗"]
ANNOTATION: Schema = {
    "type": "object",
    "properties": {
        "description": {"type": "string", "minLength": 1, "maxLength": 30},
        "category": {"enum": CATEGORIES},
        "keywords": {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 8}, "maxItems": 4},
        "is_photo": {"type": "boolean"},
        "people": {"type": "integer", "minimum": -1, "maximum": 12},
    },
    "required": ["description", "category", "keywords", "is_photo", "people"],
    "additionalProperties": False,
}
ANSWER = {"description": "A cat.", "category": "a\\b", "keywords": ["cat", "red"], "is_photo": True, "people": 10}

Accepts = Callable[[Schema, str], bool]


@pytest.fixture(scope="module")
def accepts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Accepts]:
    """Whether the grammar of a schema accepts a text, token by token, and may end after it."""
    parameters = c.llama_model_default_params()
    parameters.vocab_only = True
    path = write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")
    model = c.llama_model_load_from_file(str(path).encode(), parameters)
    vocabulary = c.llama_model_get_vocab(model)

    def is_next(sampler: int, token: int) -> bool:
        candidate = c.llama_token_data(token, 0.0, 0.0)
        array = c.llama_token_data_array(ctypes.pointer(candidate), 1, -1, False)
        c.llama_sampler_apply(sampler, ctypes.byref(array))
        return bool(candidate.logit == 0.0)

    def accepts(schema: Schema, text: str) -> bool:
        sampler = c.llama_sampler_init_grammar(vocabulary, to_gbnf(schema).encode(), b"root")
        assert sampler
        data = text.encode()
        tokens = (c.llama_token * len(data))()
        count = c.llama_tokenize(vocabulary, data, len(data), tokens, len(data), False, False)
        try:
            for token in tokens[:count]:
                if not is_next(sampler, token):
                    return False
                c.llama_sampler_accept(sampler, token)
            return is_next(sampler, c.llama_vocab_eos(vocabulary))
        finally:
            c.llama_sampler_free(sampler)

    yield accepts
    c.llama_model_free(model)


def dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def random_answer(generator: random.Random) -> dict[str, Any]:
    letters = "ab /\\\"\n\tЖё€🚗«»'{}[]:,-^"

    def text(longest: int) -> str:
        return "".join(generator.choices(letters, k=generator.randint(1, longest)))

    return {
        "description": text(30),
        "category": generator.choice(CATEGORIES),
        "keywords": [text(8) for _ in range(generator.randint(0, 4))],
        "is_photo": generator.random() < 0.5,
        "people": generator.randint(-1, 12),
    }


@pytest.mark.parametrize("seed", range(20))
def test_every_answer_of_the_schema_is_accepted(accepts: Accepts, seed: int) -> None:
    answer = random_answer(random.Random(seed))
    assert accepts(ANNOTATION, dumps(answer))
    assert parse(dumps(answer), ANNOTATION) == answer
    assert len(dumps(answer).encode()) <= max_bytes(ANNOTATION)


@pytest.mark.parametrize("category", CATEGORIES)
def test_an_enum_survives_the_escapes_of_json_and_of_gbnf(accepts: Accepts, category: str) -> None:
    assert accepts({"enum": CATEGORIES}, dumps(category))
    assert not accepts({"enum": CATEGORIES}, dumps(category + "!"))
    assert not accepts({"enum": [other for other in CATEGORIES if other != category]}, dumps(category))


@pytest.mark.parametrize(
    "change",
    [
        {"description": ""},
        {"description": "x" * 31},
        {"category": "dog"},
        {"keywords": ["a"] * 5},
        {"keywords": [""]},
        {"keywords": ["123456789"]},
        {"is_photo": 1},
        {"is_photo": None},
        {"people": 13},
        {"people": -2},
        {"people": True},
        {"people": 1.5},
        {"extra": 1},
    ],
    ids=str,
)
def test_an_answer_outside_the_schema_is_refused_by_grammar_and_by_parse(
    accepts: Accepts, change: dict[str, Any]
) -> None:
    assert accepts(ANNOTATION, dumps(ANSWER))
    answer = dumps(ANSWER | change)
    assert not accepts(ANNOTATION, answer)
    with pytest.raises(ValueError, match=r"^\$"):
        parse(answer, ANNOTATION)


@pytest.mark.parametrize("character", ["\x00", "\n", "\t", "\x1f", "\x7f", "\x9f"], ids=ascii)
def test_a_raw_control_character_is_refused(accepts: Accepts, character: str) -> None:
    schema = {"type": "string", "maxLength": 5}
    assert accepts(schema, '"ab"')
    assert not accepts(schema, f'"a{character}b"')


@pytest.mark.parametrize("text", ['{"a":true}', '{ "a": true}', '{"a": true }', '{"a": true}\n', '{"a": tru', "true"])
def test_the_spacing_is_that_of_json_dumps(accepts: Accepts, text: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}}
    assert accepts(schema, json.dumps({"a": True}))
    assert not accepts(schema, text)


def test_properties_keep_their_order(accepts: Accepts) -> None:
    reordered = dict(reversed(ANSWER.items()))
    assert not accepts(ANNOTATION, dumps(reordered))
    with pytest.raises(ValueError, match="properties"):
        parse(dumps(reordered), ANNOTATION)


@pytest.mark.parametrize(
    ("min_size", "max_size", "accepted"),
    [(0, 0, {0}), (0, 1, {0, 1}), (1, 1, {1}), (0, 3, {0, 1, 2, 3}), (2, 3, {2, 3})],
)
def test_lists_and_strings_have_exactly_the_allowed_sizes(
    accepts: Accepts, min_size: int, max_size: int, accepted: set[int]
) -> None:
    array = {"type": "array", "items": {"type": "boolean"}, "minItems": min_size, "maxItems": max_size}
    string = {"type": "string", "minLength": min_size, "maxLength": max_size}
    assert {size for size in range(6) if accepts(array, dumps([True] * size))} == accepted
    assert {size for size in range(6) if accepts(string, dumps("ж" * size))} == accepted


@pytest.mark.parametrize(
    ("minimum", "maximum", "inside", "outside"),
    [
        (0, 1, ["0", "0.5", "0.125", "0.999", "1"], ["1.5", "1.000", "-0.5", "2", "0.", ".5", "0.1234", "00", "1e-1"]),
        (-2, 1, ["-2", "-1.75", "-1", "-0.5", "-0", "0", "0.5", "1"], ["-2.5", "-3", "1.001", "+1", "--1"]),
        (-5, -4, ["-5", "-4.5", "-4"], ["-5.1", "-3.9", "-3", "4", "0"]),
        (9, 11, ["9", "9.9", "10.05", "11"], ["8.9", "11.1", "1", "12"]),
        (3, 3, ["3"], ["3.5", "2", "4"]),
        (-1, 0, ["-1", "-0.9", "0"], ["-1.1", "0.1", "1"]),
    ],
)
def test_numbers_have_exactly_the_values_between_their_bounds(
    accepts: Accepts, minimum: int, maximum: int, inside: list[str], outside: list[str]
) -> None:
    schema = {"type": "number", "minimum": minimum, "maximum": maximum}
    for text in inside:
        assert accepts(schema, text), text
        assert parse(text, schema) == float(text)
        assert len(text) <= max_bytes(schema)
    assert [text for text in outside if accepts(schema, text)] == []


@pytest.mark.parametrize("answer", ["1.0001", "-0.1", "NaN", "Infinity", "true", '"0.5"', "null"])
def test_a_number_outside_its_bounds_is_no_answer(answer: str) -> None:
    with pytest.raises(ValueError, match=r"^\$: "):
        parse(answer, {"type": "number", "minimum": 0, "maximum": 1})


def test_bounds_that_a_schema_lacks_are_set_at_every_depth(accepts: Accepts) -> None:
    places = {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}}}
    properties = {"places": places, "tone": {"type": "string", "maxLength": 3, "description": "of voice"}}
    schema = bounded({"type": "object", "properties": properties, "required": ["tone", "places"]}, 5, 2)
    assert schema["properties"]["tone"] == properties["tone"], "what it says stays"
    assert [*schema["properties"]] == ["places", "tone"]
    assert accepts(schema, dumps({"places": [{"name": "x" * 5}] * 2, "tone": "xxx"}))
    assert not accepts(schema, dumps({"places": [{"name": "x" * 6}], "tone": ""}))
    assert not accepts(schema, dumps({"places": [{"name": ""}] * 3, "tone": ""}))
    inner = schema["properties"]["places"]["items"]
    assert (inner["required"], inner["additionalProperties"]) == (["name"], False), "as OpenAI's strict mode asks"
    assert bounded(schema, 99, 99) == schema


def test_nested_lists_and_objects(accepts: Accepts) -> None:
    pair = {"type": "object", "properties": {"ключ": {"type": "string", "maxLength": 2}, "": {"enum": ["x"]}}}
    row = {"type": "array", "items": pair, "maxItems": 2}
    schema = {"type": "array", "items": row, "minItems": 1, "maxItems": 2}
    value = [[{"ключ": "яя", "": "x"}], []]
    assert accepts(schema, dumps(value))
    assert parse(dumps(value), schema) == value
    assert not accepts(schema, "[]")


def test_the_largest_repetition_is_still_bounded(accepts: Accepts) -> None:
    schema = {"type": "string", "maxLength": MAX_REPETITIONS}
    assert accepts(schema, dumps("x" * MAX_REPETITIONS))
    assert not accepts(schema, dumps("x" * (MAX_REPETITIONS + 1)))


@pytest.mark.parametrize(
    ("schema", "longest"),
    [
        ({"type": "string", "maxLength": 3}, "🚗🚗🚗"),
        ({"enum": ["a", "щука", '""']}, "щука"),
        ({"type": "boolean"}, False),
        ({"type": "integer", "minimum": -100, "maximum": 5}, -100),
        ({"type": "number", "minimum": -100, "maximum": 5}, -99.125),
        ({"type": "number", "minimum": 10, "maximum": 10}, 10),
        ({"type": "array", "items": {"type": "boolean"}, "maxItems": 3}, [False, False, False]),
        ({"type": "array", "items": {"type": "boolean"}, "maxItems": 0}, []),
        ({"type": "object", "properties": {}}, {}),
        (
            {"type": "object", "properties": {"ы": {"type": "string", "maxLength": 1}, "b": {"type": "boolean"}}},
            {"ы": "🚗", "b": False},
        ),
    ],
    ids=str,
)
def test_max_bytes_is_the_length_of_the_longest_answer(accepts: Accepts, schema: Schema, longest: object) -> None:
    assert accepts(schema, dumps(longest))
    assert max_bytes(schema) == len(dumps(longest).encode())


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "string"}, r"^\$: maxLength is missing"),
        ({"type": "string", "maxLength": MAX_REPETITIONS + 1}, "at most 1999"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength 3"),
        ({"type": "string", "maxLength": 5, "pattern": "a+"}, "pattern is not supported"),
        ({"type": "array", "items": {"type": "boolean"}}, "maxItems is missing"),
        ({"type": "array", "maxItems": 3}, "items is missing"),
        ({"type": "array", "items": {"type": "string"}, "maxItems": 0}, r"^\$\.items: maxLength"),
        ({"type": "integer", "minimum": 0}, "maximum is missing"),
        ({"type": "integer", "minimum": 0, "maximum": 10**9}, "1000000001 values"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "spans 0 values"),
        ({"type": "number", "maximum": 3}, "minimum or maximum is missing"),
        ({"type": "number", "minimum": 0, "maximum": 0.5}, r"the bound 0\.5 is not an integer"),
        ({"type": "integer", "minimum": True, "maximum": 3}, "the bound True is not an integer"),
        ({"type": "string", "maxLength": "3"}, "the bound '3' is not an integer"),
        ({"type": "object", "properties": {"a": 5}}, r"^\$\.a: 5 is not a schema"),
        ({"type": "object", "properties": {5: {"type": "boolean"}}}, "whose names are texts"),
        ({"type": "object", "properties": ["a"]}, "whose names are texts"),
        ({"type": "object", "properties": {}, "required": "a"}, "all of them required"),
        ({"enum": "ab"}, "enum needs"),
        ({"type": "boolean", 3: 4}, "3 is not supported for boolean"),
        ({"type": "null"}, "null is not supported"),
        ({"type": ["string", "null"], "maxLength": 3}, "is not supported"),
        ({}, "None is not supported"),
        ({"enum": []}, "enum needs"),
        ({"enum": ["a", 1]}, "enum needs"),
        ({"$ref": "#/x"}, "is not supported"),
        ({"type": "object"}, "needs properties"),
        ({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": []}, "all of them required"),
        ({"type": "object", "properties": {}, "additionalProperties": True}, "additionalProperties"),
        (
            {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string"}, "maxItems": 1}}},
            r"^\$\.a\.items: maxLength is missing",
        ),
    ],
    ids=str,
)
def test_an_unbounded_or_unsupported_schema_is_refused_with_its_path(schema: Schema, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_gbnf(schema)
    with pytest.raises(ValueError, match=message):
        max_bytes(schema)


@pytest.mark.parametrize("answer", ["", "{", '{"description": "A cat', "NaN", '"a\nb"', "[]", "null"], ids=repr)
def test_parse_refuses_truncated_answers_and_other_types(answer: str) -> None:
    with pytest.raises(ValueError):
        parse(answer, ANNOTATION)
