"""From a description to columns: what is asked of the language model, and what becomes of its answer."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.fakes import Describe, EmbedText, Read, records
from vec_pipeline import device
from vec_pipeline.crash_journal import CrashJournal
from vec_pipeline.engines import Answer, Message, grammar
from vec_pipeline.engines.llama_process import _Child
from vec_pipeline.executor import Executor
from vec_pipeline.memory import ModelCache
from vec_pipeline.record import Record, Stage, Values
from vec_pipeline.result_cache import ResultCache
from vec_pipeline.settings import fingerprint
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
        self.max_tokens = self.slots = 0

    def generate(
        self, conversations: Sequence[Sequence[Message]], gbnf: str, max_tokens: int, slots: int
    ) -> list[Answer]:
        self.conversations, self.max_tokens, self.slots = conversations, max_tokens, slots
        return [self.answer] * len(conversations)


def test_an_answer_fills_the_columns() -> None:
    text = json.dumps(ANSWER)
    [row] = Structure(model="m").run(Parrot(Answer(text, True, 30)), [{"text": "A red car."}], 1)
    assert row == {
        "description": "A red car.",
        "categories": "vehicle",
        "keywords": "car, red fast",
        "image_text": "SALE",
        "llama_extracted": text,
    }


def test_a_cut_answer_is_recorded_as_it_was_with_an_error() -> None:
    cut = '{"description": "A red car and'
    [row] = Structure(model="m").run(Parrot(Answer(cut, False, 9)), [{"text": "A red car."}], 1)
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
    stage.run(parrot, [{"text": "?"}], 1)
    assert grammar.parse(answer, stage.schema()) == longest
    assert len(answer.encode()) <= parrot.max_tokens


def test_only_configured_categories_are_admitted() -> None:
    schema = Structure(model="m", categories=("portrait", "document")).schema()
    grammar.parse(json.dumps({**ANSWER, "category": "portrait", "keywords": []}), schema)
    with pytest.raises(ValueError, match="category"):
        grammar.parse(json.dumps({**ANSWER, "keywords": []}), schema)


def test_the_prompt_follows_language_categories_and_option() -> None:
    parrot = Parrot(Answer(json.dumps(ANSWER), True, 1))
    Structure(model="m", language="ru").run(parrot, [{"text": "Красная машина."}], 1)
    system, user = parrot.conversations[0]
    assert "Отвечай по-русски" in system["content"]
    assert user == {"role": "user", "content": "Красная машина."}
    assert "portrait, document" in Structure(model="m", categories=("portrait", "document")).system_prompt()
    assert Structure(model="m", prompt="JSON! {category}").system_prompt().startswith("JSON! one or two words")


def test_a_blank_text_is_never_asked_about() -> None:
    """A refusal, an answer that is all reasoning: a language model would invent a description."""
    parrot = Parrot(Answer(json.dumps(ANSWER), True, 1))
    stage = Structure(model="m")
    empty, car, blank = stage.run(parrot, [{"text": ""}, {"text": "A red car."}, {"text": " \n\t"}], 8)
    assert [conversation[1]["content"] for conversation in parrot.conversations] == ["A red car."]
    assert car["description"] == "A red car."
    assert empty == blank == dict.fromkeys(Structure.writes, "")
    parrot.conversations = []
    assert stage.run(parrot, [{"text": ""}], 8) == [empty]
    assert parrot.conversations == []


def test_keywords_are_distinct_whatever_their_case() -> None:
    assert distinct(["Car", "red", "car", "RED", "blue  sky", ""]) == ["Car", "red", "blue sky"]


class ChildOf:
    """The figures of a loaded model that the size of a batch depends on."""

    def __init__(self, kv_bytes_per_token: int, slots: int = 0) -> None:
        self.kv_bytes_per_token = kv_bytes_per_token
        self.slots = slots


@pytest.mark.parametrize(
    ("free_gb", "kv_bytes_per_token", "expected"),
    [
        (100.0, 131_072, 16),  # more would hardly be faster on a CPU
        (2.0, 131_072, 3),  # 1 GB is left alone, and each row may take 2048 tokens
        (0.5, 131_072, 1),
        (1.01, 256, 16),
    ],
)
def test_rows_at_once_follow_from_free_memory(
    free_gb: float, kv_bytes_per_token: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "host_free_gb", lambda: free_gb)
    stage = Structure(model="m", device="cpu")
    monkeypatch.setattr(device, "gpu_free_gb", lambda: 0.1)
    assert stage.auto_batch_size(ChildOf(kv_bytes_per_token), 0.0) == expected
    assert stage.auto_batch_size(ChildOf(kv_bytes_per_token, slots=20), 0.0) == 20, "its own memory is no longer free"


def test_rows_share_the_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were one: 1 GB is left alone, 2048 tokens are for a long row, and 384 for each."""
    monkeypatch.setattr(Structure, "_on_gpu", lambda self: True)
    monkeypatch.setattr(device, "has_gpu", lambda: True)
    stage = Structure(model="m", device="cuda")
    for free_gb, expected in ((80.0, 64), (2.0, 14), (1.2, 1)):
        monkeypatch.setattr(device, "gpu_free_gb", lambda free_gb=free_gb: free_gb)
        assert stage.auto_batch_size(ChildOf(131_072), 0.0) == expected
    monkeypatch.setattr(device, "gpu_free_gb", lambda: 5.0)
    assert stage.auto_batch_size(ChildOf(131_072), 3.0) == 14, "what is reserved for models to come is not free"


def test_as_many_rows_are_decoded_at_once_as_the_executor_says() -> None:
    parrot = Parrot(Answer(json.dumps(ANSWER), True, 1))
    Structure(model="m", batch_size=8).run(parrot, [{"text": "?"}] * 7, 3)
    assert parrot.slots == 3


# The bundled model at work in its child process, under the executor's recovery.

CAPTIONS = [
    f'{count} {colour} {kind} on a {background} background. The text reads "{word}".'
    for count, word in (("Two", "SALE"), ("Three", "OPEN"))
    for colour in ("red", "green", "blue")
    for kind in ("cars", "cats", "cups", "stars")
    for background in ("white", "yellow")
]
STAGE = Structure(model="models/demo/llama/llama.gguf", device="cpu", batch_size=8)
Annotate = Callable[..., list[Record]]


@pytest.fixture
def annotate(tmp_path: Path) -> Iterator[Annotate]:
    """Annotates captions in one chunk, and leaves the models in memory until the test is over."""
    owners: list[Any] = []

    def run(captions: list[str], *others: Stage, capacity: int = 5) -> list[Record]:
        stages = (Read(), Caption(), STAGE, *others)
        models = ModelCache(stages, capacity, 0.0)
        results = ResultCache(tmp_path / f"{len(owners)}.cache.sqlite", fingerprint)
        journal = CrashJournal(tmp_path / f"{len(owners)}.journal.sqlite")
        owners.extend([models, results, journal])
        executor = Executor(stages, models, results, journal, threads=1)
        return [record for chunk in executor([records(*captions)]) for record in chunk]

    yield run
    for owner in owners:
        owner.close()


@dataclass(frozen=True, kw_only=True)
class Caption(Describe):
    """An image whose content says what it shows -> that caption."""

    name: str = field(default="caption", compare=False)

    def answer(self, row: Values) -> Values:
        return {"text": row["content_text"]}


@pytest.fixture(scope="module")
def expected() -> list[Values]:
    """What the model makes of the captions when nothing happens."""
    with closing(STAGE.load()) as model:
        return STAGE.run(model, [{"text": caption} for caption in CAPTIONS], 8)


def llama_processes() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [child for child in children if "vec_pipeline.engines.llama_process" in child.cmdline()]


def signal_the_child(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, *, times: int, after_s: float
) -> list[int]:
    """From now on, so many requests for answers reach a child that a signal ends, some time into its work.

    Returns a list that every request adds its number of slots to.
    """
    ask = _Child.ask
    slots: list[int] = []

    def ask_and_signal(child: _Child, request: dict[str, Any]) -> Any:
        if "conversations" not in request:
            return ask(child, request)
        slots.append(request["slots"])
        if len(slots) <= times:
            timer = threading.Timer(after_s, os.kill, (child._process.pid, number))
            timer.start()
            if not after_s:
                timer.join()
        return ask(child, request)

    monkeypatch.setattr(_Child, "ask", ask_and_signal)
    return slots


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_a_child_that_dies_in_the_middle_of_a_chunk_costs_no_row(
    number: signal.Signals,
    annotate: Annotate,
    expected: list[Values],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    slots = signal_the_child(monkeypatch, number, times=2, after_s=0.05)
    annotated = annotate(CAPTIONS)
    assert slots[:3] == [8, 8, 4], "a new child once other models have left, then one with half as many sequences"
    assert set(slots[2:]) == {4}
    assert f"LlamaDied: the llama.cpp process ended by signal {number.name}" in caplog.text
    assert [record.error for record in annotated] == [""] * len(CAPTIONS)
    assert [{name: record.values[name] for name in STAGE.writes} for record in annotated] == expected
    assert expected[0]["image_text"] == "SALE"


def test_a_child_that_dies_of_one_row_alone_again_and_again_costs_that_row(
    annotate: Annotate, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal_the_child(monkeypatch, signal.SIGKILL, times=1000, after_s=0)
    annotated = annotate(CAPTIONS[:2])
    death = "structure: LlamaDied: the llama.cpp process ended by signal SIGKILL: it left no message"
    assert [record.error for record in annotated] == [death, death]
    assert [record.values["text"] for record in annotated] == CAPTIONS[:2]


def test_eviction_ends_the_child(annotate: Annotate) -> None:
    annotate(CAPTIONS[:2], capacity=5)
    assert len(llama_processes()) == 1
    annotate(CAPTIONS[:2], EmbedText(), capacity=1)  # which loads after it, and leaves no place
    assert len(llama_processes()) == 1, "only the one of before is left"


@pytest.mark.parametrize(("batch_size", "is_shared"), [(1, True), (8, True), (9, False), ("auto", False)])
def test_few_rows_share_their_context_on_a_cpu(
    batch_size: Any, is_shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that share get tokens in common when the model loads, and fewer for each."""
    loaded = []
    monkeypatch.setattr(
        "vec_pipeline.engines.llama_process.LlamaProcess", lambda path, **options: loaded.append(options)
    )
    stage = Structure(model="models/demo/llama/llama.gguf", device="cpu", batch_size=batch_size, context_tokens=1024)
    stage.load()
    (options,) = loaded
    assert (options["context_tokens"], options["tokens_per_slot"]) == ((1024, 384) if is_shared else (0, 1024))
