"""Every stage over chunks: what runs, in which batches, and what is left of a failure."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes import (
    Describe,
    EmbedImage,
    EmbedText,
    HungryDescribe,
    Journal,
    ListSink,
    ListSource,
    Model,
    PickyDescribe,
    Read,
    record_of,
    records,
)
from vec_pipeline.annotator import Annotator, lanes_of
from vec_pipeline.ledger import Ledger
from vec_pipeline.memory import ModelCache
from vec_pipeline.pipeline import chunks, run
from vec_pipeline.record import Record, Stage, UserError, Values

EIGHT = "abcdefgh"
Make = Callable[..., Annotator]


@pytest.fixture
def ledger_path(tmp_path: Path) -> Path:
    return tmp_path / "annotations.ledger.sqlite"


@pytest.fixture
def make(ledger_path: Path) -> Iterator[Make]:
    """Make an annotator of the given stages, behind one that reads; each one is a new run over the same ledger."""
    ledgers = []

    def annotator(*stages: Stage, capacity: int = 5, fingerprint: str = "", **options: Any) -> Annotator:
        stages = (Read(), *stages)
        ledgers.append(Ledger(ledger_path))
        prints = {stage: stage.name + fingerprint for stage in stages}
        return Annotator(stages, ModelCache(capacity, 0.0), ledgers[-1], prints, threads=2, **options)

    yield annotator
    for ledger in ledgers:
        ledger.close()


@pytest.fixture
def journal() -> Journal:
    return Journal()


def annotate(annotator: Annotator, *annotated: list[Record]) -> list[Record]:
    """Run the chunks through, and return their records in one list."""
    return [record for chunk in annotator(annotated) for record in chunk]


def die_in_flight(ledger_path: Path, *images: str) -> None:
    """A process is killed while it works on a batch of these images."""
    program = (
        "import os, sys, pathlib; from vec_pipeline.ledger import Ledger\n"
        "with Ledger(pathlib.Path(sys.argv[1])).in_flight(sys.argv[2:], 'describe'): os._exit(137)"
    )
    died = subprocess.run([sys.executable, "-c", program, str(ledger_path), *images])
    assert died.returncode == 137


def test_a_model_is_swapped_once_a_chunk(make: Make, journal: Journal) -> None:
    stages = Describe(batch_size=2, journal=journal), EmbedText(batch_size=2, journal=journal)
    annotated = annotate(make(*stages, capacity=1), records(*"abcd"), records(*"efgh"))
    assert journal.loads == ["describe", "embed_text"] * 2
    assert journal.sizes("describe") == [2, 2, 2, 2]
    assert [record.values["text"] for record in annotated] == [f"{name}, 40 px" for name in EIGHT]
    assert all(record.values["text_vector"] == [8.0] for record in annotated)


def test_models_that_fit_together_stay(make: Make, journal: Journal) -> None:
    annotate(make(Describe(journal=journal), EmbedText(journal=journal)), records(*"abcd"), records(*"efgh"))
    assert journal.loads == ["describe", "embed_text"]


def test_a_failed_stage_stops_only_those_that_read_what_it_writes(make: Make, journal: Journal) -> None:
    stages = (
        PickyDescribe(poison="b", journal=journal),
        EmbedText(journal=journal),
        EmbedImage(journal=journal),
    )
    good, bad, _ = annotate(make(*stages), records("a", "b", "c"))
    assert good.values.keys() == {"path", "text", "text_vector", "image_vector"}
    assert bad.values.keys() == {"path", "image_vector"}
    assert journal.sizes("embed_text") == [2]


def test_the_error_names_the_stage_and_the_exception(make: Make) -> None:
    annotated = annotate(make(PickyDescribe(poison="b")), records("a", "b"))
    assert [record.error for record in annotated] == [
        "",
        "describe: ValueError: absolute aspect ratio must be smaller than 200",
    ]


def test_the_first_of_two_failures_is_kept(make: Make) -> None:
    class FailingEmbedImage(EmbedImage):
        def answer(self, row: Values) -> Values:
            raise KeyError("a later failure")

    (record,) = annotate(make(PickyDescribe(poison="a"), FailingEmbedImage()), records("a"))
    assert record.error.startswith("describe: ValueError: ")


def test_a_row_that_a_stage_marks_as_failed_keeps_what_was_found(make: Make) -> None:
    class CutDescribe(Describe):
        def answer(self, row: Values) -> Values:
            return {"llama_extracted": '{"descr', "error": "CutAnswer: the JSON ends after 3 tokens"}

    (record,) = annotate(make(CutDescribe()), records("a"))
    assert record.error == "describe: CutAnswer: the JSON ends after 3 tokens"
    assert record.values == {"path": "a", "llama_extracted": '{"descr'}


def test_a_broken_image_among_good_ones_costs_one_row(make: Make, journal: Journal) -> None:
    annotated = annotate(make(Describe(journal=journal)), records("a", "broken", "c"))
    assert [record.error for record in annotated] == ["", "read: OSError: image file is truncated", ""]
    assert journal.batches == [("describe", ["a", "c"])]
    assert annotated[1].values == {"path": "broken"}


def test_a_stage_that_reads_only_the_path_meets_a_broken_image(make: Make) -> None:
    @dataclass(frozen=True, kw_only=True)
    class FileName(EmbedText):
        reads = ("path",)
        writes = ("file_name",)

        def answer(self, row: Values) -> Values:
            return {"file_name": row["path"]}

    annotated = annotate(make(FileName()), records("a", "broken"))
    assert annotated[0].values["file_name"] == "a"
    assert annotated[1].error == "read: OSError: image file is truncated"


def test_the_batch_size_grows_back_after_an_out_of_memory(make: Make, journal: Journal) -> None:
    """A large image slows its own chunk; after it, batches double up to the configured size."""
    annotator = make(HungryDescribe(largest_px=200 * 200, journal=journal))
    parts = [records(*(f"{name}{n}" for name in EIGHT)) for n in range(4)]
    parts[0][3] = record_of("d0, large")
    annotated = annotate(annotator, *parts)
    first = [8, 4, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1]  # d0 alone three times: 800, 400 and 200 pixels wide
    assert journal.sizes("describe") == [*first, 2, 2, 2, 2, 4, 4, 8]
    assert annotated[3].values["text"] == "d0, large, 200 px"
    assert not any(record.error for record in annotated)


def test_other_models_are_evicted_before_the_batch_is_halved(make: Make, journal: Journal) -> None:
    stages = EmbedImage(journal=journal), HungryDescribe(largest_batch=4, journal=journal)
    annotate(make(*stages), records(*EIGHT))
    assert journal.closes == ["embed_image"]
    assert journal.sizes("describe") == [8, 8, 4, 4]


def test_an_image_too_large_even_alone_and_shrunk_costs_one_row(make: Make) -> None:
    annotated = annotate(make(HungryDescribe(largest_px=50 * 50)), records("a", "large", "c"))
    assert [record.error.split(".")[0] for record in annotated] == [
        "",
        "describe: RuntimeError: CUDA out of memory",
        "",
    ]
    assert "text" not in annotated[1].values


def test_an_image_shrunk_for_one_stage_stays_whole_for_the_others(make: Make, journal: Journal) -> None:
    stages = (HungryDescribe(largest_px=150 * 150), EmbedImage(journal=journal))
    [alone] = annotate(make(*stages), records("large"))
    assert "text" in alone.values
    [plain] = annotate(make(EmbedImage(journal=journal), fingerprint="plain"), records("large"))
    assert alone.values["image_vector"] == plain.values["image_vector"]


def test_what_was_made_of_a_shrunk_image_is_not_kept_for_other_runs(make: Make, journal: Journal) -> None:
    annotate(make(HungryDescribe(largest_px=150 * 150, journal=journal)), records("large"))
    batches = len(journal.sizes("describe"))
    annotate(make(Describe(journal=journal)), records("large"))
    assert len(journal.sizes("describe")) == batches + 1


def test_a_vector_that_is_not_finite_is_an_error_of_its_row(make: Make) -> None:
    class Overflowing(EmbedImage):
        def answer(self, row: Values) -> Values:
            return {"image_vector": np.array([np.inf if row["content_hash"] == "b" else 1.0], np.float32)}

    annotated = annotate(make(Overflowing()), records(*"abc"))
    assert [record.error for record in annotated] == [
        "", "embed_image: ValueError: image_vector holds a value that is not finite", "",
    ]  # fmt: skip
    assert "image_vector" not in annotated[1].values


def test_a_duplicate_image_runs_once_and_both_rows_are_filled(make: Make, journal: Journal) -> None:
    chunk = [record_of("a"), record_of("b"), record_of("copy of a", content="a")]
    annotated = annotate(make(Describe(journal=journal)), chunk, [record_of("later copy", content="a")])
    assert journal.batches == [("describe", ["a", "b"])]
    assert [record.values["text"][0] for record in annotated] == ["a", "b", "a", "a"]


def test_a_duplicate_of_a_failed_image_gets_its_error(make: Make, journal: Journal) -> None:
    chunk = [record_of("a"), record_of("copy of a", content="a")]
    first, second = annotate(make(PickyDescribe(poison="a", journal=journal)), chunk)
    assert second.error == first.error != ""
    assert journal.sizes("describe") == [1]


def test_results_in_the_ledger_are_not_computed_again(make: Make, journal: Journal) -> None:
    first = annotate(make(Describe(), EmbedText()), records("a", "b"))
    again = annotate(make(Describe(journal=journal), EmbedText(journal=journal)), records("a", "b", "c"))
    assert journal.batches == [("describe", ["c"]), ("embed_text", ["c, 40 px"])]
    assert [record.values for record in again[:2]] == [record.values for record in first]


def test_what_depends_on_the_path_is_not_shared_by_images_of_equal_pixels(make: Make, journal: Journal) -> None:
    class ReadPixels(Read):
        def _open(self, path: str) -> Values:
            return {**super()._open(path), "content_hash": "the same pixels"}

    class Folder(Describe):
        reads = ("path",)
        writes = ("folder",)

        def answer(self, row: Values) -> Values:
            return {"folder": row["path"]}

    class OfFolder(EmbedImage):
        reads = ("image", "folder")

        def answer(self, row: Values) -> Values:
            return {"image_vector": [float(len(row["folder"]))]}

    for _ in range(2):  # the second time from the ledger
        annotator = make(ReadPixels(), Folder(journal=journal), OfFolder(journal=journal))
        one, two = annotate(annotator, records("a", "bb"))
        assert (one.values["folder"], two.values["folder"]) == ("a", "bb")
        assert (one.values["image_vector"], two.values["image_vector"]) == ([1.0], [2.0])
    assert len(journal.batches) == 2


def test_results_of_other_settings_are_computed_again(make: Make, journal: Journal) -> None:
    annotate(make(Describe()), records("a", "b"))
    annotate(make(Describe(journal=journal), fingerprint="other"), records("a", "b"))
    assert journal.batches == [("describe", ["a", "b"])]


def test_images_under_suspicion_run_alone_and_last(make: Make, ledger_path: Path, journal: Journal) -> None:
    die_in_flight(ledger_path, "b", "c")
    annotator, sink = make(Describe(journal=journal)), ListSink()
    run(ListSource("abcd"), annotator, sink, lambda: 4, suspects=annotator.ledger.suspects())
    assert [batch for _, batch in journal.batches] == [["a", "d"], ["b"], ["c"]]
    assert not any(record.error for write in sink.writes for record in write)
    assert annotator.ledger.deaths == {}


def test_many_under_suspicion_run_a_few_at_once(make: Make, ledger_path: Path, journal: Journal) -> None:
    """A kill of a batch of a thousand must not cost a thousand batches of one."""
    names = [f"i{number:02}" for number in range(70)]
    die_in_flight(ledger_path, *names)
    die_in_flight(ledger_path, *names[:3])  # these were among the few
    annotator, sink = make(Describe(journal=journal, batch_size=64)), ListSink()
    run(ListSource(names), annotator, sink, lambda: 100, suspects=annotator.ledger.suspects())
    assert journal.sizes("describe") == [32, 32, 3, 1, 1, 1]
    assert journal.batches[-1] == ("describe", ["i02"])
    assert sum(map(len, sink.writes)) == 70
    assert annotator.ledger.deaths == {}


def test_an_image_that_went_well_is_no_longer_suspect(make: Make, ledger_path: Path, journal: Journal) -> None:
    annotate(make(Describe()), records(*"ab"))
    die_in_flight(ledger_path, "b")
    annotate(make(Describe()), records(*"ab"))  # nothing runs: all is in the ledger
    annotate(make(Describe(journal=journal), fingerprint="other"), records(*"ab"))
    assert journal.batches == [("describe", ["a", "b"])]


def test_an_image_that_was_in_flight_at_two_deaths_gets_an_error_and_the_others_go_on(
    make: Make, ledger_path: Path, journal: Journal
) -> None:
    die_in_flight(ledger_path, "a", "b")
    die_in_flight(ledger_path, "b")
    annotated = annotate(make(Describe(journal=journal)), records(*"abc"))
    assert [record.error.split(": ")[:2] for record in annotated] == [[""], ["describe", "ProcessDied"], [""]]
    assert [batch for _, batch in journal.batches] == [["a", "c"]]
    assert make(Describe()).ledger.deaths == {"b": 2}, "it stays given up until errors are retried"


@dataclass(frozen=True, kw_only=True)
class InterruptedEmbedImage(EmbedImage):
    """Ctrl-C is pressed during its second batch."""

    def run(self, model: Model, rows: list[Values]) -> list[Values]:
        answers = super().run(model, rows)
        if len(self.journal.sizes(self.name)) == 2:
            raise KeyboardInterrupt
        return answers


def test_an_interrupt_yields_the_complete_rows_first(make: Make) -> None:
    chunked = make(Describe(), InterruptedEmbedImage(batch_size=2))([records(*"ab"), records(*"cdef")])
    assert [record.key for record in next(chunked)] == ["a", "b"]
    assert [record.key for record in next(chunked)] == []
    with pytest.raises(KeyboardInterrupt):
        next(chunked)


def test_an_interrupt_in_the_last_stage_loses_only_the_batch_in_flight(make: Make, journal: Journal) -> None:
    chunked = make(Describe(), InterruptedEmbedImage(batch_size=3))([records(*EIGHT)])
    saved = next(chunked)
    assert [record.key for record in saved] == ["a", "b", "c"]
    assert all({"text", "image_vector"} <= record.values.keys() for record in saved)
    with pytest.raises(KeyboardInterrupt):
        next(chunked)
    annotate(make(Describe(journal=journal), EmbedImage(journal=journal)), records(*"defgh"))
    assert journal.batches == [("embed_image", list("defgh"))]


def test_working_values_do_not_reach_the_sink(make: Make) -> None:
    (record,) = annotate(make(Describe()), records("a"))
    assert record.values.keys() == {"path", "text"}


def test_working_values_do_not_reach_the_sink_when_interrupted(make: Make) -> None:
    chunked = make(Describe(), InterruptedEmbedImage(batch_size=2))([records(*EIGHT)])
    assert [record.values.keys() for record in next(chunked)] == [{"path", "text", "image_vector"}] * 2


def test_the_next_chunk_is_read_while_the_models_work(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model waits until the second chunk has been read, and the third is not touched by then."""
    is_read = {name: threading.Event() for name in "abcdef"}
    original = Read.run

    def run(self: Read, model: Any, rows: list[Values]) -> list[Values]:
        answers = original(self, model, rows)
        is_read[rows[0]["path"]].set()
        return answers

    monkeypatch.setattr(Read, "run", run)
    source = ListSource("abcdef")
    seen: list[tuple[bool, list[str]]] = []

    class WaitingDescribe(Describe):
        def run(self, model: Model, rows: list[Values]) -> list[Values]:
            if not seen:
                seen.append((all(is_read[name].wait(20) for name in "cd"), list(source.taken)))
            return super().run(model, rows)

    annotated = [record for chunk in make(WaitingDescribe())(chunks(source, lambda: 2)) for record in chunk]
    assert seen == [(True, list("abcd"))]
    assert [record.key for record in annotated] == list("abcdef")


def test_stages_of_another_process_and_their_readers_come_after_the_others() -> None:
    class Judge(EmbedImage):
        may_read = ("text_vector",)
        writes = ("flags",)

    stages = Read(), Describe(), EmbedText(), EmbedImage(), Judge()
    first, second = lanes_of(list(stages))
    assert first == [stages[1], stages[3]]
    assert second == [stages[2], stages[4]]


def test_side_by_side_the_first_lane_is_up_to_two_chunks_ahead(make: Make) -> None:
    """Each text waits for the first lane to begin the chunk after the next, which it could not do after it."""
    has_begun = {name: threading.Event() for name in "abcd"}

    class BeginningDescribe(Describe):
        def answer(self, row: Values) -> Values:
            has_begun[row["content_hash"]].set()
            return super().answer(row)

    class WaitingEmbedText(EmbedText):
        def answer(self, row: Values) -> Values:
            following = chr(ord(row["text"][0]) + 2)
            assert following not in has_begun or has_begun[following].wait(20)
            return super().answer(row)

    annotated = annotate(make(BeginningDescribe(), WaitingEmbedText(), overlap=True), *map(records, "abcd"))
    assert [record.key for record in annotated] == list("abcd")
    assert all("text_vector" in record.values and not record.error for record in annotated)


def test_side_by_side_the_second_lanes_model_is_there_before_the_first_sizes_its_batches(
    make: Make, journal: Journal
) -> None:
    annotate(make(Describe(journal=journal), EmbedText(journal=journal), overlap=True), records("a"), records("b"))
    assert journal.loads == ["embed_text", "describe"]


def test_side_by_side_nothing_is_loaded_for_results_in_the_ledger(make: Make, journal: Journal) -> None:
    annotate(make(Describe(), EmbedText()), records("a"), records("b"))
    annotate(make(Describe(journal=journal), EmbedText(journal=journal), overlap=True), records("a"), records("b"))
    assert not journal.loads


def test_side_by_side_only_what_the_second_lane_will_need_is_loaded(make: Make, journal: Journal) -> None:
    annotate(make(Describe(), EmbedText()), records("a"), records("b"))
    stages = Describe(), EmbedImage(journal=journal), EmbedText(journal=journal)
    annotate(make(*stages, overlap=True), records("a"), records("b"))
    assert journal.loads == ["embed_image"]
    annotate(make(*stages, overlap=True), records("a"), records("c"))
    assert sorted(journal.loads) == ["embed_image", "embed_image", "embed_text"]


def test_side_by_side_a_load_ahead_is_counted_as_its_own_stages_time(make: Make) -> None:
    class SlowToLoad(EmbedText):
        def load(self) -> Model:
            time.sleep(0.3)
            return super().load()

    annotator = make(Describe(), SlowToLoad(), overlap=True)
    annotate(annotator, records("a"))
    assert annotator.seconds["embed_text"] > annotator.seconds["describe"] >= 0
    assert [*annotator.seconds] == ["describe", "embed_text"]


@pytest.mark.parametrize("capacity", [1, 5])
def test_side_by_side_and_one_after_the_other_give_the_same(make: Make, capacity: int, journal: Journal) -> None:
    stages = (
        HungryDescribe(largest_batch=2, journal=journal),
        EmbedText(journal=journal),
        EmbedImage(journal=journal),
    )
    chunked = [records(*(f"{name}{n}" for name in "abc")) for n in range(5)]
    expected = annotate(make(*stages), *chunked)
    chunked = [records(*(f"{name}{n}" for name in "abc")) for n in range(5)]
    found = annotate(make(*stages, overlap=True, capacity=capacity, fingerprint="again"), *chunked)
    assert [(record.key, record.values) for record in found] == [(record.key, record.values) for record in expected]


def test_side_by_side_memory_that_runs_out_makes_the_lanes_take_turns(make: Make, journal: Journal) -> None:
    """The describer fails as long as the other lane's model is in memory; it must not be reloaded batch by batch."""

    class JealousDescribe(Describe):
        def run(self, model: Model, rows: list[Values]) -> list[Values]:
            if journal.loads.count("embed_text") > journal.closes.count("embed_text"):
                raise MemoryError
            return super().run(model, rows)

    chunked = [records(*(f"{name}{n}" for name in EIGHT)) for n in range(4)]
    stages = JealousDescribe(batch_size=2, journal=journal), EmbedText(batch_size=2, journal=journal)
    annotated = annotate(make(*stages, overlap=True), *chunked)
    assert not any(record.error for record in annotated)
    assert journal.loads.count("embed_text") <= len(chunked)
    assert set(journal.sizes("describe")) == {2}


def test_side_by_side_a_failure_of_the_first_lane_comes_after_the_chunks_before_it(make: Make) -> None:
    class Failing(Describe):
        def answer(self, row: Values) -> Values:
            if row["content_hash"] == "c":
                raise UserError("the disk is full")
            return super().answer(row)

    chunked = make(Failing(), EmbedText(), overlap=True)([records("a"), records("b"), records("c")])
    assert [record.key for record in next(chunked)] == ["a"]
    assert [record.key for record in next(chunked)] == ["b"]
    assert next(chunked) == []
    with pytest.raises(UserError, match="the disk is full"):
        next(chunked)


def test_side_by_side_an_interrupt_stops_the_first_lane_after_its_batch(make: Make, journal: Journal) -> None:
    is_waiting, go_on = threading.Event(), threading.Event()

    class SlowDescribe(Describe):
        def answer(self, row: Values) -> Values:
            if row["content_hash"] == "c":
                is_waiting.set()
                assert go_on.wait(20)
            return super().answer(row)

    class InterruptedEmbedText(EmbedText):
        def answer(self, row: Values) -> Values:
            if row["text"].startswith("b"):
                assert is_waiting.wait(20)
                raise KeyboardInterrupt
            return super().answer(row)

    stages = SlowDescribe(batch_size=1, journal=journal), InterruptedEmbedText(batch_size=1)
    chunked = make(*stages, overlap=True)([records(*"ab"), records(*"cdef")])
    assert [record.key for record in next(chunked)] == ["a"]
    go_on.set()
    with pytest.raises(KeyboardInterrupt):
        next(chunked)
    for thread in threading.enumerate():
        if thread.name.startswith("first-lane"):
            thread.join(20)
    assert [batch for _, batch in journal.batches] == [["a"], ["b"], ["c"]]


@dataclass(frozen=True, kw_only=True)
class BrokenEmbedText(EmbedText):
    """Fails on every text but one."""

    good: str = ""

    def answer(self, row: Values) -> Values:
        if row["text"].startswith(self.good or "-"):
            return super().answer(row)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_failures_in_a_row_stop_the_run_and_get_no_rows(make: Make) -> None:
    chunked = make(BrokenEmbedText(), EmbedImage(), Describe(), max_consecutive_errors=3)([records(*EIGHT)])
    with pytest.raises(UserError, match=r"^3 images in a row failed alike \(embed_text: RuntimeError: mat1") as stop:
        assert next(chunked) == []
        next(chunked)
    assert "max_consecutive_errors" in str(stop.value)


def test_a_success_ends_a_row_of_failures(make: Make) -> None:
    stages = Describe(), BrokenEmbedText(good="c", batch_size=1)
    annotated = annotate(make(*stages, max_consecutive_errors=3), records(*"abcde"))
    assert [bool(record.error) for record in annotated] == [True, True, False, True, True]


def test_what_was_read_before_a_row_of_failed_readings_is_annotated(make: Make) -> None:
    names = ["a", "broken 1", "b", *(f"broken {n}" for n in range(5))]
    chunked = make(Describe(), max_consecutive_errors=3)([records(*names), records("c")])
    assert [record.key for record in next(chunked)] == ["a", "broken 1", "b"]
    with pytest.raises(UserError, match=r"^3 images in a row failed alike \(read: OSError"):
        assert next(chunked) == []
        next(chunked)


def test_optional_inputs_are_given_where_they_are_there(make: Make) -> None:
    class Score(EmbedImage):
        may_read = ("text",)

        def answer(self, row: Values) -> Values:
            return {"image_vector": [float("text" in row)]}

    annotated = annotate(make(PickyDescribe(poison="b"), Score()), records(*"ab"))
    assert [record.values["image_vector"] for record in annotated] == [[1.0], [0.0]]


def test_a_stage_not_worth_keeping_runs_each_time_and_sees_what_was_lowered(make: Make, journal: Journal) -> None:
    class Flag(Describe):
        may_read = ("pixels_lowered",)
        writes = ("flags",)
        is_kept = False
        name = "flag"  # type: ignore[assignment]

        def answer(self, row: Values) -> Values:
            return {"flags": "pixels_lowered" if row.get("pixels_lowered") else ""}

    chunk = records("a", "large"), [record_of("copy of large", content="large")]
    annotated = annotate(make(HungryDescribe(largest_px=150 * 150), Flag(journal=journal)), *chunk)
    assert [record.values["flags"] for record in annotated] == ["", "pixels_lowered", "pixels_lowered"]
    assert "pixels_lowered" not in annotated[1].values
    annotate(make(HungryDescribe(largest_px=150 * 150), Flag(journal=journal)), records("a"))
    assert journal.batches[-1] == ("flag", ["a"])


def test_batches_of_auto_are_what_the_stage_says_of_its_model(make: Make, journal: Journal) -> None:
    class AutoDescribe(Describe):
        def auto_batch_size(self, model: Model) -> int:
            assert model.name == "describe"
            return 3

    annotate(make(AutoDescribe(batch_size="auto", journal=journal)), records(*EIGHT))
    assert journal.sizes("describe") == [3, 3, 2]
