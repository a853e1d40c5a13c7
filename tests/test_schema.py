"""structure with a schema of the configuration: what it may hold, and the columns that come of it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import EXAMPLES, PROJECT, Run
from tests.endpoint_server import EndpointServer, Reply, completion
from vec_pipeline import load_annotations
from vec_pipeline.config import ConfigError, check_wiring, load_config
from vec_pipeline.contract import check_results, normalised
from vec_pipeline.engines import Answer, Message, grammar
from vec_pipeline.record import Stage, UserError
from vec_pipeline.settings import changed_settings, fingerprint, stage_settings, write_settings
from vec_pipeline.settings import recorded_settings as recorded
from vec_pipeline.stages.flag import Flag
from vec_pipeline.stages.structure import LONGEST_ANSWER_BYTES, MAX_ITEMS, MAX_LENGTH, Structure
from vec_pipeline.stages.translate import Translate

PROMPT = "You turn a request into JSON: its task, what it is about, and how sure you are."
PROPERTIES: Mapping[str, Any] = {
    "task": {"enum": ["remove", "add", "other"]},
    "what": {"type": "string", "maxLength": 60},
    "urgency": {"type": "integer", "minimum": 1, "maximum": 5},
    "sure": {"type": "number", "minimum": 0, "maximum": 1},
    "is_paid": {"type": "boolean"},
    "places": {"type": "array", "items": {"type": "string"}},
    "tip": {"type": "object", "properties": {"currency": {"enum": ["USD", "EUR"]}, "amount": {"type": "string"}}},
}
SCHEMA: Mapping[str, Any] = {"type": "object", "properties": PROPERTIES}
ANSWER = {
    **{"task": "remove", "what": "the man, left", "urgency": 3, "sure": 0.75, "is_paid": False},
    **{"places": ["left, top", "sky"], "tip": {"currency": "USD", "amount": "5"}},
}
COLUMNS = {
    **{"task": "text", "what": "text", "urgency": "number", "sure": "number", "is_paid": "json"},
    **{"places": "json", "tip": "json", "llama_extracted": "text"},
}


class Told:
    """A model that gives one answer, and notes what it was told."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.conversations: list[Sequence[Message]] = []

    def generate(
        self, conversations: Sequence[Sequence[Message]], gbnf: str, max_tokens: int, slots: int
    ) -> list[Answer]:
        self.conversations += conversations
        return [self.answer] * len(conversations)

    @property
    def texts(self) -> list[str]:
        return [conversation[1]["content"] for conversation in self.conversations]


def stage(**options: Any) -> Structure:
    return Structure(**{"model": "m", "prompt": PROMPT, "schema": SCHEMA, **options})


def test_the_properties_are_columns_of_their_types() -> None:
    model = Told(Answer(json.dumps(ANSWER), True, 50))
    found = stage().run(model, [{"text": "Please remove the man."}], 1)
    assert found == [{**ANSWER, "llama_extracted": json.dumps(ANSWER)}]
    assert stage().writes == COLUMNS
    check_results(stage(), found, 1)
    for name, value in found[0].items():
        assert normalised(stage(), name, value) == value
    assert model.conversations[0][0] == {"role": "system", "content": PROMPT}


def test_texts_and_lists_have_a_bound_where_the_schema_sets_none() -> None:
    """And the settings of a CSV say which."""
    properties = stage().schema["properties"]
    assert properties["places"] == {"type": "array", "items": {"type": "string", "maxLength": 400}, "maxItems": 10}
    assert (MAX_LENGTH, MAX_ITEMS) == (400, 10), "as docs/stages/structure.md says"
    assert properties["what"]["maxLength"] == 60
    assert stage_settings(stage())["schema"]["properties"]["places"] == properties["places"]
    assert grammar.parse(json.dumps(ANSWER), stage().answer_schema) == ANSWER


def test_a_blank_text_is_not_asked_about() -> None:
    model = Told(Answer(json.dumps(ANSWER), True, 50))
    found = stage().run(model, [{"text": " \n"}, {"text": "x"}], 2)
    assert model.texts == ["x"]
    assert found[0] == {name: "" if kind == "text" else None for name, kind in COLUMNS.items()}
    assert found[1]["task"] == "remove"
    for name, value in found[0].items():
        normalised(stage(), name, value)


def test_an_answer_that_is_cut_or_outside_the_schema_is_an_error_of_its_row() -> None:
    cut = Answer('{"task": "rem', False, 9)
    assert stage().run(Told(cut), [{"text": "x"}], 1) == [
        {"llama_extracted": '{"task": "rem', "error": "CutAnswer: the JSON ends after 9 tokens"}
    ]
    wrong = json.dumps({**ANSWER, "urgency": 6})
    [row] = stage().run(Told(Answer(wrong, True, 9)), [{"text": "x"}], 1)
    assert row == {"llama_extracted": wrong, "error": "ValueError: $.urgency: 6 is not between 1 and 5"}


def test_several_columns_are_told_as_paragraphs() -> None:
    model = Told(Answer(json.dumps(ANSWER), True, 50))
    title = stage(texts=("post_title", "post_text"))
    assert (title.reads, title.input_names) == (("post_title", "post_text"), ("post_title", "post_text"))
    rows = [
        {"post_title": "Remove him", "post_text": "The man.\n$5"},
        {"post_title": "Remove him", "post_text": " "},
        {"post_title": "", "post_text": ""},
    ]
    found = title.run(model, rows, 3)
    assert model.texts == ["Remove him\n\nThe man.\n$5", "Remove him"]
    assert [row["task"] for row in found] == ["remove", "remove", ""]
    assert Structure(model="m", read={"text": "title"}).input_names == ("title",)
    for texts in ((), ("a", "a")):
        with pytest.raises(ValueError, match=r"^texts: name each column to read once, such as \[text\]$"):
            stage(texts=texts)


def test_language_and_categories_do_not_count_beside_a_schema() -> None:
    """They may stand above `stages:` for others."""
    other = stage(language="ru", categories=("cat", "dog"))
    assert other == stage()
    assert fingerprint(other) == fingerprint(stage())


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (Structure(model="a/b", file="c.gguf"), "a56c5dbe59a9d483"),
        (
            Structure(model="a/b", language="ru", categories=("x", "y"), prompt="P {category} {", max_tokens=5),
            "0b822d394f230a06",
        ),
        (Flag(), "ecba90050998457d"),
        (Flag(low_confidence=0.98), "340fd86f81d49845"),
    ],
    ids=str,
)
def test_results_of_before_there_were_schemas_and_pairs_stay_valid(made: Stage, expected: str) -> None:
    """The hashes are those of 4fd9b98: a result of llama.cpp may have taken hours."""
    assert blake2b(fingerprint(made).encode(), digest_size=8).hexdigest() == expected


def test_another_value_of_a_newer_option_is_another_result() -> None:
    made = (Flag(), Flag(low_edit_difference=0.1), Flag(low_pair_similarity=0.1), Structure(model="m"), stage())
    assert len({*map(fingerprint, made)}) == len(made)


def test_a_csv_of_before_goes_on_and_a_schema_is_a_change(tmp_path: Path) -> None:
    def written(stages: Sequence[Stage]) -> Any:
        write_settings(tmp_path / "a.csv", stages, stages, {}, [])
        return recorded(tmp_path / "a.csv")

    before = written([Structure(model="m"), Flag()])
    for name, options in (("structure", ("schema", "texts")), ("flag", ("low_edit_difference", "low_pair_similarity"))):
        for option in options:
            del before.stages[name][option]
    assert changed_settings(before, [Structure(model="m"), Flag()]) == []
    assert changed_settings(before, [Structure(model="m", texts=("title",)), Flag()]) == ["structure.texts"]
    assert changed_settings(before, [Structure(model="m"), Flag(low_pair_similarity=0.5)]) == [
        "flag.low_pair_similarity"
    ]
    assert changed_settings(before, [stage(), Flag()]) == ["structure.prompt", "structure.schema", "structure.identity"]
    assert changed_settings(written([stage()]), [stage()]) == []


def test_no_schema_is_the_same_whether_it_is_written_or_not() -> None:
    assert Structure(model="m", schema={}) == Structure(model="m")
    assert hash(Structure(model="m", schema={})) == hash(Structure(model="m"))


def test_other_schemas_have_other_results_and_share_the_model() -> None:
    backwards = stage(schema={"type": "object", "properties": dict(reversed([*PROPERTIES.items()]))})
    longer = stage(schema={**SCHEMA, "properties": {**PROPERTIES, "what": {"type": "string", "maxLength": 61}}})
    made = {stage(), backwards, longer, Structure(model="m", prompt=PROMPT)}
    assert len(made) == len({*map(fingerprint, made)}) == 4
    assert backwards != stage(), "a model writes one property after the other"
    assert {each.loaded_as for each in made} == {Structure(model="m")}
    assert Translate(model="m", engine="llama").loaded_as == stage(texts=("description",)).loaded_as
    assert replace(stage(), batch_size=3).schema == stage().schema


# --- mistakes of the configuration


def mistake(tmp_path: Path, schema: Any, prompt: str = PROMPT) -> str:
    """What is said of a configuration with this schema."""
    entry = {"use": "structure", "model": "m", "prompt": prompt, "schema": schema, "texts": ["image_path"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"stages": [entry]}, sort_keys=False), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        check_wiring(load_config(tmp_path / "config.yaml").stages, {})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def of(**properties: Any) -> Any:
    return {"type": "object", "properties": properties}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (of(a={"type": "null"}), "schema: $.a: the type null is not supported; use one of object, array, string,"),
        (of(a={"type": ["string", "null"]}), "schema: $.a: the type ['string', 'null'] is not supported"),
        (of(a={"$ref": "#/b"}), "schema: $.a: the type None is not supported"),
        (of(a={"type": "string", "pattern": "x"}), "schema: $.a: pattern is not supported for string"),
        (
            of(a={"type": "string", "maxLength": 2000}),
            "schema: $.a: minLength 0 must be 0 to maxLength 2000, at most 1999",
        ),
        (of(a={"type": "integer"}), "schema: $.a: minimum or maximum is missing, so it is unbounded"),
        (of(a={"type": "number", "minimum": 0}), "schema: $.a: minimum or maximum is missing"),
        (of(a={"type": "number", "minimum": 0, "maximum": 0.5}), "schema: $.a: the bound 0.5 is not an integer"),
        (
            of(a={"type": "integer", "minimum": 0, "maximum": 9999}),
            "schema: $.a: minimum to maximum spans 10000 values",
        ),
        (of(a={"type": "array"}), "schema: $.a: items is missing"),
        (of(a={"type": "array", "items": {"type": "x"}}), "schema: $.a.items: the type x is not supported"),
        (of(a={"type": "array", "items": of(b=5)}), "schema: $.a.items.b: 5 is not a schema"),
        (of(a={"enum": ["x", 1]}), "schema: $.a: enum needs strings"),
        (of(a={"type": "boolean", "default": "2020-01-01"}, b=of()), ""),
        ({**of(a={"type": "boolean"}), "required": []}, "schema: $: an object needs properties, all of them required"),
        (of(), "schema: $: an answer is an object with properties"),
        ({"type": "string"}, "schema: $: an answer is an object with properties"),
        ({"task": {"type": "string"}}, "schema: $: the type None is not supported"),
        (of(error={"type": "string"}), "schema: $.error: every row may have a value of that name: rename the property"),
        (of(llama_extracted={"type": "string"}), "schema: $.llama_extracted: every row may have a value of that name"),
        (
            of(a={"type": "array", "maxItems": 1999, "items": {"type": "string", "maxLength": 20}}),
            "schema: $: the longest answer has 167,923 bytes, and at most 100,000 are possible: lower maxLength and",
        ),
        ("object", "schema: 'object' is not a mapping of names"),
        (["object"], "schema: ['object'] is not a mapping of names"),
    ],
    ids=str,
)
def test_a_schema_that_cannot_be_is_one_sentence_that_names_the_property(
    schema: Any, expected: str, tmp_path: Path
) -> None:
    if not expected:
        stage(schema=schema)
        return
    sentence = mistake(tmp_path, schema)
    assert re.sub(r"^structure[:.] ?", "", sentence).startswith(expected)


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (
            of(keywords={"type": "array", "items": {"type": "string"}}),
            "structure writes keywords as json, and that column",
        ),
        (of(timestamp={"type": "string"}), "structure: 'timestamp' cannot be the name of timestamp: rename it with"),
        (
            of(**{"to do": {"type": "string"}}),
            "structure: 'to do' cannot be the name of to do: rename it with `write:`",
        ),
    ],
    ids=str,
)
def test_a_property_that_cannot_be_a_column_is_one_sentence(schema: Any, expected: str, tmp_path: Path) -> None:
    assert mistake(tmp_path, schema).startswith(expected)


def test_a_column_that_the_source_has_and_one_that_another_stage_writes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^stages: structure writes what, which the source writes too"):
        check_wiring([stage(texts=("task_text",))], {"what": "text", "task_text": "text"})
    twice = [stage(texts=("title",)), stage(texts=("title",), name="again")]
    with pytest.raises(
        ConfigError, match=r"^stages: again writes task, which structure writes too: .*`write: \{task: N"
    ):
        check_wiring(twice, {"title": "text"})
    renamed = stage(texts=("title",), name="again", write={name: f"{name}_again" for name in COLUMNS})
    check_wiring([twice[0], renamed], {"title": "text"})


def test_a_schema_needs_a_prompt(tmp_path: Path) -> None:
    assert mistake(tmp_path, SCHEMA, prompt="") == (
        "structure: schema: the model is told the prompt alone: set `prompt:` to what each property means"
    )


def test_a_date_in_what_describes_a_property_is_refused(tmp_path: Path) -> None:
    text = "{type: object, properties: {a: {type: boolean, default: 2020-01-01}}}"
    (tmp_path / "c.yaml").write_text(f"stages: [{{use: structure, model: m, prompt: x, schema: {text}}}]")
    with pytest.raises(ConfigError, match=r"^structure: schema: \$: .*date.*: put it into quotes$"):
        load_config(tmp_path / "c.yaml")


WORDS = st.sampled_from(
    [
        *(
            "type",
            "properties",
            "items",
            "enum",
            "required",
            "maxLength",
            "minLength",
            "maxItems",
            "minimum",
            "maximum",
        ),
        *(
            "object",
            "array",
            "string",
            "integer",
            "number",
            "boolean",
            "additionalProperties",
            "title",
            "a",
            "error",
            "",
        ),
    ]
)
VALUES = st.none() | st.booleans() | st.integers(-9, 2000) | st.floats() | WORDS | st.dates()
ANYTHING = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | VALUES, inner, max_size=4),
    max_leaves=15,
)
BOUNDS = st.integers(0, 9) | st.integers(5, 40) | VALUES
TYPES = st.sampled_from(["object", "array", "string", "integer", "number", "boolean"])
LIKELY = st.recursive(
    st.fixed_dictionaries({"type": TYPES}, optional={"maxLength": BOUNDS, "minimum": BOUNDS, "maximum": BOUNDS})
    | st.fixed_dictionaries({"enum": st.lists(st.text(max_size=5), min_size=1, max_size=4) | ANYTHING}),
    lambda inner: (
        st.fixed_dictionaries({"type": st.just("array"), "items": inner}, optional={"maxItems": BOUNDS})
        | st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.dictionaries(WORDS, inner, max_size=3)},
            optional={"required": ANYTHING, "title": ANYTHING},
        )
    ),
    max_leaves=8,
)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(schema=ANYTHING | LIKELY | st.builds(lambda each: of(a=each), LIKELY))
def test_any_schema_is_taken_or_refused_in_one_sentence(schema: Any) -> None:
    if not isinstance(schema, dict) or not schema:
        return
    try:
        made = stage(schema=schema)
    except ValueError as error:
        assert str(error).startswith("schema: $")
        return
    answers = grammar.max_bytes(made.answer_schema)
    assert 0 < answers <= LONGEST_ANSWER_BYTES
    assert grammar.to_gbnf(made.answer_schema)
    assert {made: 1}[replace(made)] == 1
    assert made.identity() and fingerprint(made)


def test_a_schema_of_the_command_line_is_taken(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("stages: [{use: structure, model: m, prompt: x}]")
    made = load_config(tmp_path / "c.yaml", ["structure.schema={type: object, properties: {a: {type: boolean}}}"])
    assert made.stages[0].writes == {"a": "json", "llama_extracted": "text"}


# --- with a server, and with the bundled model


def test_a_server_is_told_the_schema_and_its_answer_is_fitted() -> None:
    answer = {**ANSWER, "places": ["", *"abcdefghijklm"], "tip": {"amount": "x" * 401, "currency": "EUR"}}
    with EndpointServer(lambda _: Reply(completion(json.dumps(answer)))) as server:
        remote = stage(model="vision:7b", engine="endpoint", endpoint=server.url)
        with closing(remote.load()) as model:
            [row] = remote.run(model, [{"text": "x"}], 1)
    assert row["places"] == list("abcdefghij")
    assert row["tip"] == {"currency": "EUR", "amount": "x" * 400}
    assert row["llama_extracted"] == json.dumps(answer), "as it came"
    told = server.requests[0].body["response_format"]["json_schema"]["schema"]
    assert told["properties"]["tip"]["additionalProperties"] is False
    assert told["properties"]["places"]["maxItems"] == 10
    assert (told["required"], told["additionalProperties"]) == ([*PROPERTIES], False)


SHORT = {"type": "array", "items": {"type": "string", "maxLength": 9}, "maxItems": 2}
DEMO = {
    "use": "structure",
    "model": "models/demo/llama/llama.gguf",
    "prompt": "Answer as JSON.",
    "batch_size": 4,
    "schema": {
        **SCHEMA,
        "properties": {**PROPERTIES, "places": SHORT, "tip": {"type": "object", "properties": {"a": SHORT}}},
    },
}


def run_program(*arguments: object) -> Run:
    return subprocess.run(
        [sys.executable, PROJECT / "run.py", *map(str, arguments)], capture_output=True, text=True, timeout=240,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


def test_a_run_with_a_schema_has_its_columns(tmp_path: Path) -> None:
    """The bundled Llama knows one kind of answer: here it says nothing true, but within the schema."""
    config = yaml.safe_load((PROJECT / "configs/demo.yaml").read_text())
    kept = [each for each in config["stages"] if each["use"] in ("open_image", "describe")]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**config, "stages": [*kept, DEMO]}, sort_keys=False))
    options = (EXAMPLES, "--limit", "3", "--output", tmp_path / "a.csv", "--config", tmp_path / "c.yaml")
    run = run_program(*options)
    assert run.returncode == 0, run.stderr
    table = load_annotations(tmp_path / "a.csv")
    schema = stage(schema=DEMO["schema"]).answer_schema
    for row in table.to_dict("records"):
        answer = grammar.parse(row["llama_extracted"], schema)
        assert {name: row[name] for name in PROPERTIES} == answer
    assert (table["description"] == "").all(), "no stage writes it now"
    changed = run_program(*options, "--set", "structure.prompt=Otherwise.")
    assert "was made with other settings (structure.prompt, structure.identity)" in changed.stderr


def test_check_compiles_the_grammar(tmp_path: Path) -> None:
    """Which llama.cpp may refuse: before the first picture."""
    made = Structure(model="models/demo/llama/llama.gguf", prompt=PROMPT, schema=SCHEMA, device="cpu")
    made.fetch()
    with pytest.raises(UserError, match=r"context_tokens is 512: .*, or shorten the prompt$"):
        replace(made, prompt="x y z " * 200, context_tokens=512).fetch()
