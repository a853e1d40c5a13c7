"""From a description to columns: what is asked of the language model, and what becomes of its answer."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from huggingface_hub.utils import filter_repo_objects

from tests.conftest import EXAMPLES, PROJECT
from tests.fakes import Describe, EmbedText, Read, records
from tests.tiny_gguf import GEMMA_TEMPLATE, write_tiny_gguf
from vec_pipeline import device
from vec_pipeline.config import ConfigError, load_config
from vec_pipeline.crash_journal import CrashJournal
from vec_pipeline.engines import Answer, Message, grammar, llama_process
from vec_pipeline.engines.llama_process import _Child
from vec_pipeline.engines.llama_slots import LlamaSlots
from vec_pipeline.executor import Executor
from vec_pipeline.memory import ModelCache
from vec_pipeline.record import Record, Stage, UserError, Values
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


def test_a_text_that_leaves_no_tokens_for_an_answer_is_an_error_that_says_so() -> None:
    [row] = Structure(model="m", context_tokens=512).run(Parrot(Answer("", False, 0)), [{"text": "A red car."}], 1)
    assert row["error"] == "CutAnswer: prompt and text take all of context_tokens (512)"


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
    assert grammar.parse(answer, stage.answer_schema) == longest
    assert len(answer.encode()) <= parrot.max_tokens


def test_only_configured_categories_are_admitted() -> None:
    schema = Structure(model="m", categories=("portrait", "document")).answer_schema
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


def test_a_llama_without_the_gpu_is_refused_by_the_name_of_its_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "resolve", lambda _: "cuda")
    monkeypatch.setattr(device, "has_gpu", lambda: True)
    monkeypatch.setattr(llama_process, "gpu_problem", lambda: "was built without the GPU")
    expected = "translate: llama.cpp was built without the GPU: run make llama, or --set translate.device=cpu"
    with pytest.raises(UserError, match=f"^{expected}$"):
        Structure(name="translate", model="m", device="cuda").auto_batch_size(None, 0.0)


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


# What a run would refuse, found by `check` before the first picture.


def refusal(stage: Structure) -> str:
    with pytest.raises(UserError) as caught:
        stage.fetch()
    sentence = str(caught.value)
    assert sentence.startswith(f"{stage.name}: ")
    assert "\n" not in sentence and len(sentence) < 600
    return sentence


def numbered(count: int) -> tuple[str, ...]:
    return tuple(f"category number {number}" for number in range(count))


@pytest.mark.parametrize("batch_size", [4, 16], ids=["shared", "apart"])
def test_a_prompt_that_leaves_no_room_for_a_row_is_refused_with_the_context_it_needs(
    batch_size: int, tmp_path: Path
) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", metadata={"llama.context_length": 16384})
    stage = Structure(model=str(path), device="cpu", categories=numbered(600), batch_size=batch_size)
    found = re.fullmatch(
        r"structure: the prompt takes ([\d,]+) tokens and a description with its answer about 384, but context_tokens "
        r"is 2,048: --set structure\.context_tokens=(\d+), or shorten the prompt or the list of categories",
        refusal(stage),
    )
    assert found
    prompt_tokens, enough = int(found[1].replace(",", "")), int(found[2])
    assert 0 <= enough - prompt_tokens - 384 < 256
    replace(stage, context_tokens=enough).fetch()
    with closing(LlamaSlots(path, threads=1, tokens_per_slot=256)) as llama:
        system, user = stage.system_prompt(), ""
        tokens = llama._model.tokenize_chat([{"role": "system", "content": system}, {"role": "user", "content": user}])
    assert prompt_tokens == len(tokens)


def test_no_more_context_is_proposed_than_the_model_was_trained_on(tmp_path: Path) -> None:
    """Which need not be a multiple of 256, as contexts are."""
    whole = Structure(model=str(write_tiny_gguf(tmp_path / "whole.gguf")), device="cpu", batch_size=16)
    stage = replace(whole, categories=numbered(150), context_tokens=1024)
    found = re.search(r"prompt takes ([\d,]+) tokens", refusal(stage))
    assert found
    needed = int(found[1].replace(",", "")) + 384
    assert needed % 256
    path = write_tiny_gguf(tmp_path / "tiny.gguf", metadata={"llama.context_length": needed})
    assert f"--set structure.context_tokens={needed}, or" in refusal(replace(stage, model=str(path)))
    replace(stage, model=str(path), context_tokens=needed).fetch()


def test_the_demo_with_600_categories_is_refused_before_the_first_picture(tmp_path: Path) -> None:
    """As a run: no row is written, and none has an error."""
    config = (PROJECT / "configs/demo.yaml").read_text().replace("[animal,", f"[{', '.join(numbered(600))}, animal,")
    (tmp_path / "demo.yaml").write_text(config)
    arguments = (EXAMPLES, "--output", tmp_path / "a.csv", "--config", tmp_path / "demo.yaml")
    run = subprocess.run(
        [sys.executable, PROJECT / "run.py", *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 2
    assert re.search(
        r"structure: the prompt takes [\d,]+ tokens .* was trained on 2,048: shorten the prompt", run.stderr
    )
    assert not (tmp_path / "a.csv").exists()


def test_a_context_that_the_model_was_not_trained_on_is_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    stage = Structure(model=str(path), device="cpu", context_tokens=8192)
    assert refusal(stage) == (
        f"structure: context_tokens is 8,192, and {path} was trained on 4,096: --set structure.context_tokens=4096"
    )
    replace(stage, context_tokens=4096).fetch()
    unknown = write_tiny_gguf(tmp_path / "unknown.gguf", metadata={"llama.context_length": 0})
    replace(stage, model=str(unknown)).fetch()


def test_a_prompt_longer_than_what_the_model_was_trained_on_is_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    sentence = refusal(Structure(model=str(path), device="cpu", categories=numbered(600), context_tokens=4096))
    assert re.fullmatch(
        r"structure: the prompt takes [\d,]+ tokens and a description with its answer about 384, but "
        rf"{path} was trained on 4,096: shorten the prompt or the list of categories, or use a model trained on more",
        sentence,
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"chat_template": None}, r"tiny\.gguf has no chat template .*: use an instruct model"),
        ({"chat_template": "{% for %}"}, r"tiny\.gguf: the chat template cannot be used: "),
        ({"chat_template": "{{ 1 / 0 }}"}, r"tiny\.gguf: the chat template rejects the conversation: division by zero"),
        ({"architecture": "clip"}, r"tiny\.gguf is the vision part of a model \(mmproj\): "),
        ({"metadata": {"llama.pooling_type": 1}}, r"tiny\.gguf is an embedding model"),
    ],
)
def test_a_gguf_file_that_cannot_structure_is_refused(options: dict[str, Any], expected: str, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", **options)
    assert re.match(rf"structure: {tmp_path}/{expected}", refusal(Structure(model=str(path), device="cpu")))


def test_a_template_without_a_system_role_is_used(tmp_path: Path) -> None:
    """As Gemma's: every picture had an error."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf", chat_template=GEMMA_TEMPLATE)
    stage = Structure(model=str(path), device="cpu", batch_size=1, max_tokens=5, threads=1)
    stage.fetch()
    with closing(stage.load()) as model:
        [row] = stage.run(model, [{"text": "A red car."}], 1)
    assert row["error"].startswith("CutAnswer")


def test_a_model_in_several_files_is_used_from_the_first(tmp_path: Path) -> None:
    first = write_tiny_gguf(tmp_path / "tiny.gguf", tensors_per_file=9)
    assert first.name == "tiny-00001-of-00003.gguf"
    stage = Structure(model=str(tmp_path), file=first.name, device="cpu")
    stage.fetch()
    whole_gb = sum(file.stat().st_size for file in tmp_path.iterdir()) / 1e9
    assert Structure(model=str(first), device="cpu").weights_gb() == stage.weights_gb() == pytest.approx(whole_gb)
    others = ["tiny.gguf", "tiny-00001-of-00002.gguf", "tiny-big-00001-of-00003.gguf"]
    parts = [f"tiny-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    assert list(filter_repo_objects([*others, *parts], allow_patterns=list(stage.patterns))) == parts
    later = refusal(replace(stage, file="tiny-00002-of-00003.gguf"))
    assert later.endswith(f"is a later part of a model in several files: give the first, {first}")
    (tmp_path / "tiny-00003-of-00003.gguf").unlink()
    assert "tiny-00003-of-00003.gguf is missing: download or copy all files of the model" in refusal(stage)


def test_a_folder_without_a_file_names_those_it_has(tmp_path: Path) -> None:
    stage = Structure(model=str(tmp_path), device="cpu")
    assert refusal(stage) == f"structure: {tmp_path} has no GGUF file: give the GGUF file of an instruct model"
    for name in "ab":
        write_tiny_gguf(tmp_path / f"{name}.gguf")
    assert refusal(stage) == f"structure: {tmp_path} is a folder: set structure.file to one of a.gguf, b.gguf"
    with pytest.raises(UserError, match=r"^structure: org/llama is a hub repository: set structure\.file to a GGUF"):
        Structure(model="org/llama", device="cpu").path()


def test_a_llama_that_dies_of_a_file_or_cannot_be_imported_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "lib/llama_cpp").mkdir(parents=True)
    package = tmp_path / "lib/llama_cpp/__init__.py"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    package.write_text("import os; os.abort()")
    assert refusal(Structure(model=str(path), device="cpu")) == (
        f"structure: {path} is damaged (llama.cpp ended by signal SIGABRT): delete it, and download or copy it again"
    )
    package.write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    assert refusal(Structure(model=str(path), device="cpu")) == (
        "structure: llama.cpp cannot run (OSError: libcudart.so.13: cannot open shared object file): run make llama"
    )


@pytest.mark.parametrize(
    ("categories", "problem"),
    [
        (("cat", "dog", "cat"), "categories: 'cat' is listed twice: delete one"),
        (("cat", " cat"), "categories: ' cat' is listed twice: delete one"),
        (("cat", ""), "categories: '' is blank: delete it"),
        (("cat", " \t"), "categories: ' \\t' is blank: delete it"),
        (("a\nb",), "categories: 'a\\nb' holds a control character or a line break: remove it"),
        (("a\x7fb",), "categories: 'a\\x7fb' holds a control character or a line break: remove it"),
        (("a\u2028b",), "categories: 'a\\u2028b' holds a control character or a line break: remove it"),
    ],
)
def test_categories_that_cannot_be_columns_are_a_mistake_of_the_configuration(
    categories: tuple[str, ...], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as caught:
        Structure(model="m", categories=categories)
    assert str(caught.value) == problem
    config = {"stages": ["open_image", {"use": "structure", "model": "m", "categories": list(categories)}]}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=f"^{re.escape(f'structure: {problem}')}$"):
        load_config(tmp_path / "config.yaml")


def test_categories_of_any_other_kind_are_admitted() -> None:
    Structure(model="m", categories=("cat", "Cat", "naïve café", 'a "quoted" one', "back\\slash", "日本", "👨\u200d👩"))
