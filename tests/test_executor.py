"""Every stage over chunks: what runs, in which worker and in which batches, and what is left of a failure."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.fakes import (
    Describe,
    EmbedImage,
    EmbedText,
    HungryDescribe,
    Journal,
    ListSource,
    Model,
    PickyDescribe,
    Read,
    record_of,
    records,
)
from tests.runs import Runs, annotate, loop
from vec_pipeline.executor import by_worker
from vec_pipeline.pipeline import chunks
from vec_pipeline.record import Need, Record, UserError, Values

EIGHT = "abcdefgh"


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Runs]:
    """Make the executor of a run; each one is a new run over the same result cache and crash journal."""
    with closing(Runs(tmp_path)) as runs:
        yield runs


@pytest.fixture
def journal() -> Journal:
    return Journal()


# --- chunks and models


def test_a_model_is_swapped_once_a_chunk(make: Runs, journal: Journal) -> None:
    stages = Describe(batch_size=2, journal=journal), EmbedImage(batch_size=2, journal=journal)
    annotated = annotate(make(*stages, capacity=1), records(*"abcd"), records(*"efgh"))
    assert journal.loads == ["describe", "embed_image"] * 2
    assert journal.sizes("describe") == [2, 2, 2, 2]
    assert [record.values["text"] for record in annotated] == [f"{name}, 40 px" for name in EIGHT]
    assert all(record.values["image_vector"] == [40.0] for record in annotated)


def test_models_that_fit_together_stay(make: Runs, journal: Journal) -> None:
    annotate(make(Describe(journal=journal), EmbedText(journal=journal)), records(*"abcd"), records(*"efgh"))
    assert journal.loads == ["describe", "embed_text"]


def test_batches_of_auto_are_what_the_stage_says_of_its_model_and_of_the_memory_of_others(
    make: Runs, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AutoDescribe(Describe):
        def auto_batch_size(self, model: Model, reserved_gb: float) -> int:
            assert model.name == "describe"
            return int(reserved_gb)

    monkeypatch.setattr(EmbedText, "need", lambda self: Need(host_gb=1e-9))
    monkeypatch.setattr("vec_pipeline.memory.ModelCache.reserved_gb", lambda self, stage: 3.0)
    annotate(make(AutoDescribe(batch_size="auto", journal=journal)), records(*EIGHT))
    assert journal.sizes("describe") == [3, 3, 2]


def test_intermediates_do_not_reach_the_sink(make: Runs) -> None:
    (record,) = annotate(make(HungryDescribe(largest_px=200 * 200)), records("large"))
    assert record.values == {"image_path": "large", "text": "large, 200 px"}


# --- failures of single images


def test_a_failed_stage_stops_only_those_that_read_what_it_writes(make: Runs, journal: Journal) -> None:
    stages = PickyDescribe(poison="b", journal=journal), EmbedText(journal=journal), EmbedImage(journal=journal)
    good, bad, _ = annotate(make(*stages), records("a", "b", "c"))
    assert good.values.keys() == {"image_path", "text", "text_vector", "image_vector"}
    assert bad.values.keys() == {"image_path", "image_vector"}
    assert journal.sizes("embed_text") == [2]


def test_the_error_names_the_stage_and_the_exception(make: Runs) -> None:
    annotated = annotate(make(PickyDescribe(poison="b")), records("a", "b"))
    assert [record.error for record in annotated] == [
        "",
        "describe: ValueError: absolute aspect ratio must be smaller than 200",
    ]


def test_the_first_of_two_failures_is_kept(make: Runs) -> None:
    class FailingEmbedImage(EmbedImage):
        def answer(self, row: Values) -> Values:
            raise KeyError("a later failure")

    (record,) = annotate(make(PickyDescribe(poison="a"), FailingEmbedImage()), records("a"))
    assert record.error.startswith("describe: ValueError: ")


def test_a_broken_image_among_good_ones_costs_one_row(make: Runs, journal: Journal) -> None:
    annotated = annotate(make(Describe(journal=journal)), records("a", "broken", "c"))
    assert [record.error for record in annotated] == ["", "read: OSError: image file is truncated", ""]
    assert journal.batches == [("describe", ["a", "c"])]
    assert annotated[1].values == {"image_path": "broken"}


def test_a_stage_that_reads_only_the_path_runs_for_a_broken_image(make: Runs) -> None:
    @dataclass(frozen=True, kw_only=True)
    class FileName(Describe):
        reads = ("image_path",)
        writes: ClassVar[Mapping[str, str]] = {"file_name": "text"}

        def answer(self, row: Values) -> Values:
            return {"file_name": row["image_path"]}

    annotated = annotate(make(FileName()), records("a", "broken"))
    assert [record.values["file_name"] for record in annotated] == ["a", "broken"]
    assert annotated[1].error == "read: OSError: image file is truncated"


def test_a_record_that_the_source_could_not_read_keeps_its_error(make: Runs, journal: Journal) -> None:
    item = record_of("item")
    item.values.clear()
    item.error = "source: ValueError: no such row"
    annotated = annotate(make(Describe(journal=journal)), [item, *records("a")])
    assert [record.error for record in annotated] == ["source: ValueError: no such row", ""]
    assert journal.batches == [("describe", ["a"])]


def test_a_copy_of_a_failed_image_gets_its_error(make: Runs, journal: Journal) -> None:
    chunk = [record_of("a"), record_of("copy of a", content="a")]
    first, second = annotate(make(PickyDescribe(poison="a", journal=journal)), chunk)
    assert second.error == first.error != ""
    assert journal.sizes("describe") == [1]


def test_many_copies_of_one_failed_image_do_not_stop_the_run(make: Runs, journal: Journal) -> None:
    chunk = [*(record_of(f"copy {n}", content="a") for n in range(9)), *records("b")]
    annotated = annotate(make(PickyDescribe(poison="a", journal=journal), max_consecutive_errors=3), chunk)
    assert [bool(record.error) for record in annotated] == [True] * 9 + [False]
    assert journal.sizes("describe") == [2, 1, 1]


def test_a_copy_of_an_image_with_an_error_beside_values_gets_both(make: Runs) -> None:
    class Doubtful(Describe):
        def answer(self, row: Values) -> Values:
            return {**super().answer(row), "error": "LowConfidence: 3%"}

    chunk = [record_of("a"), record_of("copy of a", content="a")]
    for record in annotate(make(Doubtful(), EmbedText()), chunk):
        assert record.error == "describe: LowConfidence: 3%"
        assert record.values["text"] == "a, 40 px"
        assert list(record.values["text_vector"]) == [8.0]


def test_a_failure_shared_with_an_image_that_failed_before_is_in_the_error_of_the_other(make: Runs) -> None:
    """Both have the same text; the one that is embedded for both already has another error."""

    class Same(Describe):
        def answer(self, row: Values) -> Values:
            return {"text": "nothing"}

    class PickyEmbedImage(EmbedImage):
        def answer(self, row: Values) -> Values:
            if row["content_text"] == "a":
                raise ValueError("too wide")
            return super().answer(row)

    class FailingEmbedText(EmbedText):
        def answer(self, row: Values) -> Values:
            return {"error": "ValueError: no words"}

    annotated = annotate(make(Same(), PickyEmbedImage(), FailingEmbedText()), records("a", "b"))
    assert [record.error for record in annotated] == [
        "embed_image: ValueError: too wide",
        "embed_text: ValueError: no words",
    ]


def test_optional_inputs_are_given_where_they_are_there(make: Runs) -> None:
    class Score(EmbedImage):
        optional = ("text",)

        def answer(self, row: Values) -> Values:
            return {"image_vector": [float("text" in row)]}

    annotated = annotate(make(PickyDescribe(poison="b"), Score()), records(*"ab"))
    assert [list(record.values["image_vector"]) for record in annotated] == [[1.0], [0.0]]


# --- memory


def test_the_batch_size_grows_back_after_an_out_of_memory(make: Runs, journal: Journal) -> None:
    """A large image slows its own chunk; after it, batches double up to the configured size."""
    executor = make(HungryDescribe(largest_px=200 * 200, journal=journal))
    parts = [records(*(f"{name}{n}" for name in EIGHT)) for n in range(4)]
    parts[0][3] = record_of("d0, large")
    annotated = annotate(executor, *parts)
    first = [8, 4, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1]  # d0 alone three times: 800, 400 and 200 pixels wide
    assert journal.sizes("describe") == [*first, 2, 2, 2, 2, 4, 4, 8]
    assert annotated[3].values["text"] == "d0, large, 200 px"
    assert not any(record.error for record in annotated)


def test_other_models_are_evicted_before_the_batch_is_halved(make: Runs, journal: Journal) -> None:
    stages = EmbedImage(journal=journal), HungryDescribe(largest_batch=4, journal=journal)
    annotate(make(*stages), records(*EIGHT))
    assert journal.closes == ["embed_image"]
    assert journal.sizes("describe") == [8, 8, 4, 4]


def test_an_image_too_large_even_alone_and_shrunk_costs_one_row(make: Runs) -> None:
    annotated = annotate(make(HungryDescribe(largest_px=50 * 50)), records("a", "large", "c"))
    assert [record.error.split(".")[0] for record in annotated] == [
        "",
        "describe: RuntimeError: CUDA out of memory",
        "",
    ]
    assert "text" not in annotated[1].values


def test_an_image_shrunk_for_one_stage_keeps_its_size_for_the_others(make: Runs) -> None:
    (record,) = annotate(make(HungryDescribe(largest_px=150 * 150), EmbedImage()), records("large"))
    assert record.values["text"] == "large, 100 px"
    assert list(record.values["image_vector"]) == [800.0]


@pytest.mark.parametrize("capacity", [1, 5])
def test_workers_that_wait_for_each_other_and_those_that_do_not_give_the_same(
    make: Runs, capacity: int, journal: Journal
) -> None:
    def chunked() -> list[list[Any]]:
        return [records(*(f"{name}{n}" for name in "abc")) for n in range(5)]

    annotated = annotate(
        make(HungryDescribe(largest_batch=2, journal=journal), EmbedText(), EmbedImage(), capacity=capacity), *chunked()
    )
    texts = [f"{name}{n}, 40 px" for n in range(5) for name in "abc"]
    assert [record.values["text"] for record in annotated] == texts
    assert all(list(record.values["text_vector"]) == [9.0] for record in annotated)
    assert all(list(record.values["image_vector"]) == [40.0] for record in annotated)
    assert not any(record.error for record in annotated)


def test_memory_that_runs_out_beside_another_model_keeps_it_out_until_the_chunk_is_done(
    make: Runs, journal: Journal
) -> None:
    """The describer fails as long as the other worker's model is in memory; it must not be reloaded batch by batch."""

    class JealousDescribe(Describe):
        def run(self, model: Model, rows: list[Values], at_once: int) -> list[Values]:
            if journal.loads.count("embed_text") > journal.closes.count("embed_text"):
                raise MemoryError
            return super().run(model, rows, at_once)

    chunked = [records(*(f"{name}{n}" for name in EIGHT)) for n in range(4)]
    stages = JealousDescribe(batch_size=2, journal=journal), EmbedText(batch_size=2, journal=journal)
    annotated = annotate(make(*stages), *chunked)
    assert not any(record.error for record in annotated)
    assert journal.loads.count("embed_text") <= len(chunked)
    assert set(journal.sizes("describe")) == {2}


def test_two_stages_that_run_out_of_memory_at_once_both_end(make: Runs) -> None:
    """One reserves the memory until the other has left it; that one must not wait for the first, and halves."""
    both = threading.Barrier(2, timeout=20)
    failed = []

    def run_out_once(stage_name: str) -> None:
        if stage_name not in failed:
            failed.append(stage_name)
            both.wait()
            raise MemoryError

    class First(Describe):
        def answer(self, row: Values) -> Values:
            if row["content_text"].startswith("b"):
                run_out_once("describe")
            return super().answer(row)

    class Second(EmbedText):
        def answer(self, row: Values) -> Values:
            if row["text"].startswith("a"):
                run_out_once("embed_text")
            return super().answer(row)

    executor = make(First(), Second())
    annotated: list[Any] = []
    chunked = records("a1", "a2"), records("b1", "b2")
    thread = threading.Thread(target=lambda: annotated.extend(annotate(executor, *chunked)), daemon=True)
    thread.start()
    thread.join(20)
    assert [record.key for record in annotated] == ["a1", "a2", "b1", "b2"]
    assert not any(record.error for record in annotated)


# --- the three workers


def test_the_next_chunk_is_read_while_the_models_work(make: Runs) -> None:
    """The model waits until the second chunk has been read; the third is not touched meanwhile."""
    is_read = {name: threading.Event() for name in "abcdef"}
    source = ListSource("abcdef")
    seen: list[tuple[bool, bool, list[str]]] = []

    class NotingRead(Read):
        def _open(self, text: str) -> Values:
            is_read[text].set()
            return super()._open(text)

    class WaitingDescribe(Describe):
        def run(self, model: Model, rows: list[Values], at_once: int) -> list[Values]:
            if not seen:
                is_next_read = all(is_read[name].wait(20) for name in "cd")
                seen.append((is_next_read, is_read["e"].wait(0.2), list(source.taken)))
            return super().run(model, rows, at_once)

    executor = make(WaitingDescribe(), reader=NotingRead())
    annotated = [record for chunk in executor(chunks(source, lambda: 2)) for record in chunk]
    assert seen == [(True, False, list("abcd"))]
    assert [record.key for record in annotated] == list("abcdef")


def test_stages_of_the_child_process_and_their_readers_come_after_the_others() -> None:
    class Judge(EmbedImage):
        optional = ("text_vector",)
        writes: ClassVar[Mapping[str, str]] = {"flags": "text"}

    stages = Read(), Describe(), EmbedText(), EmbedImage(), Judge()
    assert by_worker(stages) == ([stages[0]], [stages[1], stages[3]], [stages[2], stages[4]])


def test_a_renamed_column_of_the_child_process_counts_as_its_own() -> None:
    class Judge(EmbedImage):
        optional = ("vector",)
        writes: ClassVar[Mapping[str, str]] = {"flags": "text"}

    stages = Describe(), EmbedText(write={"text_vector": "title_vector"}), Judge(read={"vector": "title_vector"})
    assert by_worker(stages) == ([], [stages[0]], [stages[1], stages[2]])


def test_this_process_is_up_to_two_chunks_ahead_of_the_child(make: Runs) -> None:
    """Each text waits for the describer to begin the chunk after the next, which it could not do after it."""
    has_begun = {name: threading.Event() for name in "abcd"}

    class BeginningDescribe(Describe):
        def answer(self, row: Values) -> Values:
            has_begun[row["content_text"]].set()
            return super().answer(row)

    class WaitingEmbedText(EmbedText):
        def answer(self, row: Values) -> Values:
            following = chr(ord(row["text"][0]) + 2)
            assert following not in has_begun or has_begun[following].wait(20)
            return super().answer(row)

    annotated = annotate(make(BeginningDescribe(), WaitingEmbedText()), *map(records, "abcd"))
    assert [record.key for record in annotated] == list("abcd")
    assert all("text_vector" in record.values and not record.error for record in annotated)


def test_loading_is_counted_as_the_stages_own_time(make: Runs) -> None:
    class SlowToLoad(EmbedText):
        def load(self) -> Model:
            time.sleep(0.3)
            return super().load()

    executor = make(Describe(), SlowToLoad())
    annotate(executor, records("a"))
    assert executor.seconds["embed_text"] >= executor.models.load_seconds["embed_text"] >= 0.3
    assert executor.seconds["describe"] < executor.seconds["embed_text"]
    assert [*executor.seconds] == ["describe", "embed_text"]
    assert (executor.chunks, executor.images) == (1, 1)


def test_what_is_at_work_is_said(make: Runs) -> None:
    seen = []

    class Watched(Describe):
        def answer(self, row: Values) -> Values:
            seen.extend(executor.at_work)
            return super().answer(row)

    executor = make(Watched())
    annotate(executor, records("a"))
    assert (seen, executor.at_work) == (["describe"], [])


def test_a_failure_in_this_process_comes_after_the_chunks_before_it(make: Runs) -> None:
    class Failing(Describe):
        def answer(self, row: Values) -> Values:
            if row["content_text"] == "c":
                raise UserError("the disk is full")
            return super().answer(row)

    chunked = make(Failing(), EmbedText())([records("a"), records("b"), records("c")])
    assert [record.key for record in next(chunked)] == ["a"]
    assert [record.key for record in next(chunked)] == ["b"]
    assert next(chunked) == []
    with pytest.raises(UserError, match="the disk is full"):
        next(chunked)


# --- interrupts


@dataclass(frozen=True, kw_only=True)
class InterruptedEmbedImage(EmbedImage):
    """Ctrl-C is pressed during its second batch."""

    def run(self, model: Model, rows: list[Values], at_once: int) -> list[Values]:
        answers = super().run(model, rows, at_once)
        if len(self.journal.sizes(self.name)) == 2:
            raise KeyboardInterrupt
        return answers


def test_an_interrupt_yields_the_complete_rows_first(make: Runs) -> None:
    chunked = make(Describe(), InterruptedEmbedImage(batch_size=2))([records(*"ab"), records(*"cdef")])
    assert [record.key for record in next(chunked)] == ["a", "b"]
    assert [record.key for record in next(chunked)] == []
    with pytest.raises(KeyboardInterrupt):
        next(chunked)


def test_an_interrupt_in_the_last_stage_loses_only_the_batch_in_flight(make: Runs, journal: Journal) -> None:
    chunked = make(Describe(), InterruptedEmbedImage(batch_size=3))([records(*EIGHT)])
    saved = next(chunked)
    assert [record.key for record in saved] == ["a", "b", "c"]
    assert all(record.values.keys() == {"image_path", "text", "image_vector"} for record in saved)
    with pytest.raises(KeyboardInterrupt):
        next(chunked)
    annotate(make(Describe(journal=journal), EmbedImage(journal=journal)), records(*"defgh"))
    assert journal.batches == [("embed_image", list("defgh"))]


def test_an_interrupt_of_the_child_stops_this_process_after_its_batch(make: Runs, journal: Journal) -> None:
    is_waiting, go_on, is_beyond = threading.Event(), threading.Event(), threading.Event()

    class SlowDescribe(Describe):
        def answer(self, row: Values) -> Values:
            if row["content_text"] == "c":
                is_waiting.set()
                assert go_on.wait(20)
            if row["content_text"] == "d":
                is_beyond.set()
            return super().answer(row)

    class InterruptedEmbedText(EmbedText):
        def answer(self, row: Values) -> Values:
            if row["text"].startswith("b"):
                assert is_waiting.wait(20)
                raise KeyboardInterrupt
            return super().answer(row)

    stages = SlowDescribe(batch_size=1, journal=journal), InterruptedEmbedText(batch_size=1)
    chunked = make(*stages)([records(*"ab"), records(*"cdef")])
    assert [record.key for record in next(chunked)] == ["a"]
    go_on.set()
    assert not is_beyond.wait(0.2), "while the row is being saved"
    with pytest.raises(KeyboardInterrupt):
        next(chunked)
    assert [batch for _, batch in journal.batches] == [["a"], ["b"], ["c"]]


def test_a_loop_that_ends_stops_all_workers_after_their_batch(make: Runs, journal: Journal) -> None:
    """As where the disk is full: nobody asks for the next chunk."""
    is_waiting, go_on = threading.Event(), threading.Event()

    class SlowDescribe(Describe):
        def answer(self, row: Values) -> Values:
            if row["content_text"] == "b":
                is_waiting.set()
                assert go_on.wait(20)
            return super().answer(row)

    before = set(threading.enumerate())
    chunked = make(SlowDescribe(batch_size=1, journal=journal))([records("a"), records(*"bcd")])
    assert [record.key for record in next(chunked)] == ["a"]
    assert is_waiting.wait(20)
    chunked.close()  # type: ignore[attr-defined]
    go_on.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
    assert [batch for _, batch in journal.batches] == [["a"], ["b"]]


# --- failures in a row


@dataclass(frozen=True, kw_only=True)
class BrokenEmbedText(EmbedText):
    """Fails on every text but one."""

    good: str = ""

    def answer(self, row: Values) -> Values:
        if row["text"].startswith(self.good or "-"):
            return super().answer(row)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_failures_in_a_row_stop_the_run_and_get_no_rows(make: Runs) -> None:
    chunked = make(BrokenEmbedText(), EmbedImage(), Describe(), max_consecutive_errors=3)([records(*EIGHT)])
    with pytest.raises(UserError, match=r"^3 images in a row failed with the same error \(embed_text: Runt") as stop:
        assert next(chunked) == []
        next(chunked)
    assert "max_consecutive_errors" in str(stop.value)


def test_a_success_ends_a_series_of_failures(make: Runs) -> None:
    stages = Describe(), BrokenEmbedText(good="c", batch_size=1)
    annotated = annotate(make(*stages, max_consecutive_errors=3), records(*"abcde"))
    assert [bool(record.error) for record in annotated] == [True, True, False, True, True]


def test_failures_of_different_kinds_are_no_series(make: Runs) -> None:
    class Various(Describe):
        def answer(self, row: Values) -> Values:
            return {"error": f"Error{row['content_text']}: no answer"}

    annotated = annotate(make(Various(), max_consecutive_errors=2), records(*EIGHT))
    assert [record.error for record in annotated] == [f"describe: Error{name}: no answer" for name in EIGHT]


@dataclass(frozen=True, kw_only=True)
class ErrnoRead(Read):
    """Fails with an error of the system on everything that is gone."""

    number: int

    def _open(self, text: str) -> Values:
        if "gone" in text:
            raise OSError(self.number, "of the system")
        return super()._open(text)


def in_chunks_of_20(names: list[str]) -> Iterator[list[Any]]:
    return chunks(iter(records(*names)), lambda: 20)


@pytest.mark.parametrize("number", [2, 5, 107, 112, 116])
def test_fifty_failures_of_a_drive_in_a_row_stop_the_run(number: int, make: Runs) -> None:
    names = ["a", *(f"gone {n}" for n in range(60))]
    chunked = make(Describe(), reader=ErrnoRead(number=number))(in_chunks_of_20(names))
    saved = []
    with pytest.raises(UserError, match=rf"^50 images in a row failed .*\[Errno {number}\] of the system"):
        saved += [record.key for chunk in chunked for record in chunk]
    chunked = make(Describe(), reader=ErrnoRead(number=number))(in_chunks_of_20(names[:50]))
    assert [bool(record.error) for chunk in chunked for record in chunk] == [False, *[True] * 49]


@pytest.mark.parametrize("name", ["broken", "gone"])
def test_any_number_of_unreadable_pictures_in_a_row_do_not_stop_the_run(name: str, make: Runs) -> None:
    """A folder of placeholders, or of pictures that only another user may read (Errno 13)."""
    names = [*(f"{name} {n}" for n in range(60)), "a"]
    chunked = make(Describe(), reader=ErrnoRead(number=13))(in_chunks_of_20(names))
    assert [bool(record.error) for chunk in chunked for record in chunk] == [*[True] * 60, False]


def test_a_picture_that_can_be_read_ends_a_series_of_failed_readings(make: Runs) -> None:
    names = ["gone 1", "gone 2", "a", "gone 3", "gone 4", "broken", "gone 5"]
    annotated = annotate(make(Describe(), reader=ErrnoRead(number=5), max_consecutive_errors=3), records(*names))
    assert [bool(record.error) for record in annotated] == [True, True, False, True, True, True, True]


def test_what_was_read_before_a_series_of_failed_readings_is_annotated(make: Runs) -> None:
    names = ["a", "broken 1", "broken 2", "broken 3", "b", *(f"gone {n}" for n in range(5))]
    executor = make(Describe(), reader=ErrnoRead(number=2), max_consecutive_errors=3)
    chunked = executor([records(*names), records("c")])
    assert [record.key for record in next(chunked)] == names[:5]
    with pytest.raises(UserError, match=r"^3 images in a row failed with the same error \(read: FileNotFoundError"):
        assert next(chunked) == []
        next(chunked)


# --- images that end the process


def test_suspects_run_alone_and_last_and_share_no_chunk_with_others(make: Runs, journal: Journal) -> None:
    make.die_in_flight("b", "c")
    executor = make(Describe(journal=journal))
    sink = loop(executor, "abcd", chunk_size=4)
    assert [batch for _, batch in journal.batches] == [["a", "d"], ["b"], ["c"]]
    assert [[record.key for record in write] for write in sink.writes] == [["a", "d"], ["b", "c"]]
    assert not any(record.error for write in sink.writes for record in write)
    assert executor.journal.deaths == {}


def test_many_suspects_run_a_few_at_once(make: Runs, journal: Journal) -> None:
    """A kill of a batch of a thousand must not cost a thousand batches of one."""
    names = [f"i{number:02}" for number in range(70)]
    make.die_in_flight(*names)
    make.die_in_flight(*names[:3])  # these were among the few
    executor = make(Describe(journal=journal, batch_size=64))
    sink = loop(executor, names, chunk_size=100)
    assert journal.sizes("describe") == [32, 32, 3, 1, 1, 1]
    assert journal.batches[-1] == ("describe", ["i02"])
    assert [len(write) for write in sink.writes] == [67, 3]
    assert executor.journal.deaths == {}


@dataclass(frozen=True, kw_only=True)
class CountingRead(Read):
    """Notes how many images are being read at the same moment, at most, and which are read."""

    now: list[str] = field(default_factory=list, compare=False)
    most: list[int] = field(default_factory=lambda: [0], compare=False)
    all: list[str] = field(default_factory=list, compare=False)

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        names = [row["content"].text for row in rows]
        self.now.extend(names)
        self.all.extend(names)
        self.most[0] = max(self.most[0], len(self.now))
        time.sleep(0.005)
        for name in names:
            self.now.remove(name)
        return super().run(model, rows, at_once)


def test_suspects_are_read_one_by_one(make: Runs) -> None:
    names = [f"{n:02}" for n in range(20)]
    make.die_in_flight(*names)
    suspect, other = CountingRead(), CountingRead()
    assert len(loop(make(Describe(), reader=suspect), names, chunk_size=20).done) == 20
    assert len(loop(make(Describe(), reader=other), names, chunk_size=20).done) == 20
    assert suspect.most == [1]
    assert other.most[0] > 1


def test_an_image_that_went_well_is_no_longer_suspect(make: Runs, journal: Journal) -> None:
    annotate(make(Describe()), records(*"ab"))
    make.die_in_flight("b")
    annotate(make(Describe()), records(*"ab"))  # nothing runs: all is in the result cache
    annotate(make(Describe(journal=journal), fingerprint=lambda stage: "other"), records(*"ab"))
    assert journal.batches == [("describe", ["a", "b"])]


def test_an_image_that_was_in_flight_at_two_deaths_gets_an_error_and_the_others_continue(
    make: Runs, journal: Journal
) -> None:
    class OfPath(EmbedImage):
        reads = ("image_path",)

        def answer(self, row: Values) -> Values:
            return {"image_vector": [1.0]}

    make.die_in_flight("a", "b")
    make.die_in_flight("b")
    reader = CountingRead()
    stages = Describe(journal=journal), OfPath(journal=journal)
    annotated = annotate(make(*stages, reader=reader), records(*"abc"))
    assert [record.error.split(": ")[:2] for record in annotated] == [[""], ["describe", "ProcessDied"], [""]]
    assert sorted(reader.all) == ["a", "c"], "what ends the process is not even read"
    assert [batch for _, batch in journal.batches] == [["a"], ["c"]] * 2
    assert make(Describe()).journal.deaths == {"b": 2}, "it keeps its error until errors are retried"


def test_without_a_result_cache_that_can_be_used_rows_are_made_and_a_killer_is_found(
    make: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    """The crash journal has a file of its own."""
    make.cache_path = make.cache_path.parent / "missing" / "annotations.cache.sqlite"
    make.die_in_flight("a", "b")
    make.die_in_flight("b")
    annotated = annotate(make(Describe(), EmbedText()), records(*"abc"))
    assert f"{make.cache_path} cannot be used" in capsys.readouterr().out
    assert [bool(record.error) for record in annotated] == [False, True, False]
    assert all("text_vector" in record.values for record in annotated if not record.error)


@dataclass(frozen=True, kw_only=True)
class AssertingDescribe(PickyDescribe):
    """The kernel for one image fails, and with it every later call of the process."""

    def answer(self, row: Values) -> Values:
        try:
            return super().answer(row)
        except ValueError:
            raise RuntimeError("CUDA error: device-side assert triggered") from None


def test_an_image_that_breaks_the_gpu_at_every_start_gets_an_error_row_at_the_third(
    make: Runs, journal: Journal
) -> None:
    def stage() -> AssertingDescribe:
        return AssertingDescribe(poison="f", journal=journal)

    for start in ([list(EIGHT)], [list(name) for name in "abcdef"]):
        journal.batches.clear()
        executor = make(stage())
        with pytest.raises(UserError, match=r"^the GPU failed \(RuntimeError: CUDA error: .*rerun the same command"):
            loop(executor, EIGHT, chunk_size=8)
        assert [batch for _, batch in journal.batches] == start
    journal.batches.clear()
    sink = loop(make(stage()), EIGHT, chunk_size=8)
    assert [batch for _, batch in journal.batches] == [["g"], ["h"]], "a to e are in the result cache"
    errors = {record.key: record.error for write in sink.writes for record in write}
    assert sorted(errors) == list(EIGHT)
    assert [key for key, error in errors.items() if error] == ["f"]
    assert errors["f"].startswith("describe: ProcessDied: ")


# --- what people have corrected


def corrected(name: str, **values: str) -> Record:
    record = record_of(name)
    record.corrected = values
    return record


def test_later_stages_read_what_people_corrected_and_the_row_keeps_the_machines(make: Runs, journal: Journal) -> None:
    stages = Describe(journal=journal), EmbedText(journal=journal)
    record, other = annotate(make(*stages), [corrected("a", text="longer than it was"), record_of("b")])
    assert record.values["text"] == "a, 40 px" and record.values["text_vector"] == [18.0]
    assert other.values["text_vector"] == [8.0]


def test_the_cache_keeps_what_stages_wrote_whatever_people_corrected(make: Runs, journal: Journal) -> None:
    stages = Describe(journal=journal), EmbedText(journal=journal)
    annotate(make(*stages), [corrected("a", text="longer than it was")])
    (record,) = annotate(make(*stages), [record_of("a")])
    assert record.values["text"] == "a, 40 px" and record.values["text_vector"] == [8.0]
    assert journal.sizes("describe") == [1] and journal.sizes("embed_text") == [1, 1]


def test_copies_in_one_batch_are_corrected_each_for_itself(make: Runs, journal: Journal) -> None:
    stages = Describe(journal=journal), EmbedText(journal=journal)
    copies = [corrected("a", text="short"), record_of("a"), corrected("a", text="longer than it was")]
    for number, record in enumerate(copies):
        record.key = f"copy {number}"
    annotated = annotate(make(*stages), copies)
    assert [record.values["text_vector"] for record in annotated] == [[5.0], [8.0], [18.0]]
    assert [record.values["text"] for record in annotated] == ["a, 40 px"] * 3
    assert journal.sizes("describe") == [1]


def test_a_corrected_column_of_the_source_is_read_by_stages(make: Runs, journal: Journal) -> None:
    embed = EmbedText(journal=journal, read={"text": "title"})
    record = corrected("a", title="given by people")
    record.values["title"] = "of the list"
    (annotated,) = annotate(make(embed, source_columns={"title": "text"}), [record])
    assert annotated.values["title"] == "of the list" and annotated.values["text_vector"] == [15.0]


def test_a_text_that_no_stage_wrote_is_corrected_too(make: Runs, journal: Journal) -> None:
    class Silent(Describe):
        def answer(self, row: Values) -> Values:
            return {"text": None}

    (record,) = annotate(make(Silent(journal=journal), EmbedText(journal=journal)), [corrected("a", text="said")])
    assert "text" not in record.values and record.values["text_vector"] == [4.0]
