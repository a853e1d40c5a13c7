"""What a stage declares and returns is checked: a mistake there ends the run with a sentence, and costs no picture."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from tests.fakes import Describe, EmbedImage, EmbedText, Journal, Read, records
from tests.runs import Runs, annotate
from vec_pipeline.contract import as_array, check_declaration, check_results, is_finite, normalised
from vec_pipeline.record import Record, Stage, UserError, Values


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Runs]:
    with closing(Runs(tmp_path)) as runs:
        yield runs


@dataclass(frozen=True, kw_only=True)
class Odd(Stage):
    """Declares a value of every type."""

    writes: ClassVar[Mapping[str, str]] = {
        "text": "text",
        "number": "number",
        "vector": "vector",
        "json": "json",
        "file": "file",
    }
    intermediates: ClassVar[Mapping[str, str]] = {"image": "image"}

    name: str = field(default="odd", compare=False)


RIGHT: Values = {
    "text": "a cup",
    "number": 1.5,
    "vector": np.ones(3, np.float32),
    "json": {"cup": [1, None]},
    "file": "/a.png",
    "image": Image.new("L", (2, 2)),
}


# --- the shape of what `run` returns


def test_what_was_declared_passes() -> None:
    check_results(Odd(), [RIGHT, dict.fromkeys(RIGHT)], 2)
    check_results(Odd(), (RIGHT,), 1)
    check_results(Odd(), [{"error": "no answer"}, {**RIGHT, "error": "half an answer"}], 2)


@pytest.mark.parametrize(
    ("results", "sentence"),
    [
        (
            [{**RIGHT, "txet": "a"}],
            "odd returned 'txet', which it does not declare (text, number, vector, json, file, i",
        ),
        ([{name: RIGHT[name] for name in RIGHT if name != "json"}], "odd returned no 'json', which it declares: fix"),
        ([{}], "odd returned no 'file', which it declares: fix the stage"),
        ([{"txet": "a", "error": "no answer"}], "odd returned 'txet', which it does not declare"),
        ([], "odd returned a list of 0 for a batch of 1: fix the stage"),
        ([RIGHT, RIGHT], "odd returned a list of 2 for a batch of 1"),
        (RIGHT, "odd returned a dict, not a list"),
        (None, "odd returned a NoneType, not a list"),
        ((result for result in [RIGHT]), "odd returned a generator, not a list"),
        (["text"], "odd returned a str for a row, not a dict: fix the stage"),
        ([None], "odd returned a NoneType for a row, not a dict"),
    ],
)
def test_what_was_not_declared_is_named(results: Any, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        check_results(Odd(), results, 1)
    assert str(caught.value).startswith(sentence)


def test_names_in_messages_are_those_of_the_stage_and_not_of_the_columns() -> None:
    with pytest.raises(UserError, match=r"^title returned 'title', which it does not declare \(text, "):
        check_results(Odd(name="title", write={"text": "title"}), [{**RIGHT, "title": "a"}], 1)


# --- types


@pytest.mark.parametrize(
    ("own", "value"),
    [
        *(("text", value) for value in (3, b"bytes", ["a"], Path("/a"))),
        *(("number", value) for value in ("3", True, [3], 1j, np.ones(1), np.bool_(True))),
        *(("vector", value) for value in ("123", 3.0, {1: 2}, ["a"], [[1], [2, 3]], [1j], [None], np.array(["a"]))),
        *(("json", value) for value in ({1, 2}, object(), [np.float32(1)], {"a": b"a"}, {("a",): 1})),
        *(("file", value) for value in (b"/a", 3, ["/a"])),
        *(("image", value) for value in (np.ones((2, 2)), "/a.png", b"")),
    ],
)
def test_a_value_of_another_type_is_named_with_both_types(own: str, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        normalised(Odd(), own, value)
    kind = type(value).__name__
    assert str(caught.value) == f"odd returned '{own}' as a {kind}, and declares it as {own}: fix the stage"


def test_a_list_within_itself_is_named() -> None:
    value: list[Any] = []
    value.append(value)
    for own in ("json", "vector"):
        with pytest.raises(UserError, match=f"^odd returned '{own}' as a list"):
            normalised(Odd(), own, value)


@pytest.mark.parametrize(
    ("own", "value", "expected"),
    [
        ("text", "a\ud83d", "a\ud83d"),
        ("number", 3, 3),
        ("number", np.float32(0.5), 0.5),
        ("number", np.int64(3), 3),
        ("json", (1, (2.5, "a")), [1, [2.5, "a"]]),
        ("json", {1: "a"}, {"1": "a"}),
        ("json", "a", "a"),
        ("file", Path("/a/b.png"), "/a/b.png"),
        *((own, None, None) for own in RIGHT),
    ],
)
def test_values_are_what_the_cache_and_the_csv_bring_back(own: str, value: Any, expected: Any) -> None:
    found = normalised(Odd(), own, value)
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("value", "dtype", "shape"),
    [
        ([1.0, 2.0], np.float64, (2,)),
        ([[1, 2], [3, 4]], np.int64, (2, 2)),
        ((), np.float64, (0,)),
        (np.ones((2, 3), np.float16), np.float16, (2, 3)),
        (np.ones(3, ">f4"), np.float32, (3,)),
        (np.ones((3, 2), np.uint8).T, np.uint8, (2, 3)),
        (np.array([True, False]), np.uint8, (2,)),
    ],
)
def test_vectors_are_arrays_of_numbers_of_any_shape(value: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    array = as_array(value)
    assert (array.dtype, array.shape) == (dtype, shape)
    assert array.dtype.isnative and array.flags.c_contiguous
    assert np.array_equal(array, np.asarray(value))


def test_an_image_with_a_palette_becomes_one_that_its_bytes_describe() -> None:
    """The cache keeps bytes, which would lose the colours, and take two pictures of other colours for the same."""
    image = Image.new("P", (1, 1))
    image.putpalette([255, 0, 0])
    found = normalised(Odd(), "image", image)
    assert (found.mode, found.getpixel((0, 0))) == ("RGBA", (255, 0, 0, 255))
    assert normalised(Odd(), "image", RIGHT["image"]) is RIGHT["image"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *(
            (value, True)
            for value in (1.5, "nan", None, True, 10**400, [1, [2.5]], {"a": "inf"}, np.ones(2), np.arange(2))
        ),
        *((float(value), False) for value in ("nan", "inf", "-inf")),
        *((value, False) for value in ([1, [float("nan")]], {"a": {"b": float("inf")}}, np.float16([1, np.inf]))),
        (np.full((2, 2), np.nan), False),
    ],
)
def test_what_holds_nan_or_an_infinity_is_not_finite(value: Any, expected: bool) -> None:
    assert is_finite(value) is expected


# --- in a run


@dataclass(frozen=True, kw_only=True)
class WrongRead(Read):
    """Returns what it is told, for pictures and as a reader."""

    answer: Any = field(default=None, compare=False)

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        results = super().run(model, rows, at_once)
        return self.answer(results)  # type: ignore[no-any-return]


MISTAKES = [
    (lambda results: [{**result, "txet": "a"} for result in results], " returned 'txet', which it does not declare"),
    (lambda results: [{}] * len(results), " returned no '"),
    (lambda results: [dict.fromkeys(result, 3) for result in results], "' as a int, and declares it as "),
    (lambda results: results[1:], " returned a list of 1 for a batch of 2"),
    (lambda results: None, " returned a NoneType, not a list"),
    (lambda results: [result.popitem() for result in results], " returned a tuple for a row, not a dict"),
]


@pytest.mark.parametrize(("answer", "sentence"), MISTAKES)
@pytest.mark.parametrize("is_reader", [False, True])
def test_a_mistake_of_a_stage_ends_the_run_and_gives_no_picture_an_error(
    is_reader: bool, answer: Any, sentence: str, make: Runs
) -> None:
    class Wrong(Describe):
        def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
            return answer(super().run(model, rows, at_once))  # type: ignore[no-any-return]

    executor = make(Describe(), reader=WrongRead(answer=answer)) if is_reader else make(Wrong())
    rows: list[Record] = []
    with pytest.raises(UserError) as caught:
        rows += annotate(executor, records("a", "b"))
    assert str(caught.value).startswith("read" if is_reader else "describe")
    assert sentence in str(caught.value)
    assert rows == []


def test_an_error_beside_a_part_of_the_values_keeps_these(make: Runs) -> None:
    class CutDescribe(Describe):
        writes: ClassVar[Mapping[str, str]] = {"text": "text", "llama_extracted": "text"}

        def answer(self, row: Values) -> Values:
            return {"llama_extracted": '{"descr', "error": "CutAnswer: the JSON ends after 3 tokens"}

    journal = Journal()
    for _ in range(2):  # a failed row is not stored
        (record,) = annotate(make(CutDescribe(journal=journal), EmbedText(journal=journal)), records("a"))
        assert record.error == "describe: CutAnswer: the JSON ends after 3 tokens"
        assert record.values == {"image_path": "a", "llama_extracted": '{"descr'}
        assert "describe" not in record.done
    assert journal.batches == [("describe", ["a"])] * 2


def test_an_error_beside_all_of_the_values_is_an_error_of_the_row(make: Runs) -> None:
    class Doubtful(Describe):
        def answer(self, row: Values) -> Values:
            return {**super().answer(row), "error": "LowConfidence: 3%"}

    (record,) = annotate(make(Doubtful(), EmbedText()), records("a"))
    assert record.error == "describe: LowConfidence: 3%"
    assert record.values["text"] == "a, 40 px"
    assert list(record.values["text_vector"]) == [8.0], "what reads the values runs"


def test_an_error_of_a_reader_keeps_what_was_read(make: Runs) -> None:
    class HalfRead(Read):
        def _open(self, text: str) -> Values:
            return {"content_text": text, "error": "Truncated: half of it"}

    class Words(EmbedText):
        reads = ("content_text",)

        def answer(self, row: Values) -> Values:
            return {"text_vector": [1.0]}

    (record,) = annotate(make(Words(), reader=HalfRead()), records("a"))
    assert record.error == "read: Truncated: half of it"
    assert list(record.values["text_vector"]) == [1.0]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("vector", np.array([1, np.inf], np.float32)),
        ("vector", [[0.0, float("nan")]]),
        ("number", float("nan")),
        ("json", {"boxes": [{"score": float("inf")}]}),
    ],
)
def test_a_value_that_is_not_finite_is_an_error_of_its_row(kind: str, value: Any, make: Runs) -> None:
    class Overflowing(EmbedImage):
        writes: ClassVar[Mapping[str, str]] = {"image_vector": "vector", "found": kind}

        def answer(self, row: Values) -> Values:
            return {**super().answer(row), "found": value if row["content_text"] == "b" else None}

    annotated = annotate(make(Overflowing()), records(*"abc"))
    message = "embed_image: ValueError: found holds a value that is not finite"
    assert [record.error for record in annotated] == ["", message, ""]
    assert annotated[1].values.keys() == {"image_path", "image_vector"}


# --- declarations


def declared(**attributes: Any) -> type[Stage]:
    return type("Declared", (Stage,), attributes)


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        ({"reads": "image"}, "`reads` is a string: make it a tuple of names"),
        ({"optional": "text"}, "`optional` is a string: make it a tuple of names"),
        ({"writes": ("text",)}, "`writes` is a tuple: make it a dict of names and types"),
        ({"intermediates": "crop"}, "`intermediates` is a str: make it a dict of names and types"),
        (
            {"writes": {"text": "str"}},
            "`writes` declares text as 'str': the types are text, number, vector, json, file",
        ),
        ({"writes": {"crop": "image"}}, "`writes` declares crop as 'image'"),
        ({"intermediates": {"crop": "pixels"}}, "`intermediates` declares crop as 'pixels': the types are text, numb"),
        ({"run": lambda self, model, rows: rows}, "`run` must take (self, model, rows, at_once)"),
    ],
)
def test_a_mistake_of_a_declaration_is_named(attributes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TypeError) as caught:
        check_declaration(declared(**attributes))
    assert str(caught.value).startswith(sentence)


def test_declarations_without_a_mistake_pass() -> None:
    check_declaration(declared(reads=("image",), writes={"boxes": "json"}, intermediates={"crop": "image"}))
    for cls in (Odd, Describe, Read):
        check_declaration(cls)
