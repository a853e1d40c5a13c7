"""One stage over many records: batches that fit into memory, and the records that fail found and left out."""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

from tests.fakes import OUT_OF_MEMORY
from vec_pipeline import batches
from vec_pipeline.batches import REFILLS, Batches, Streak
from vec_pipeline.crash_journal import CrashJournal
from vec_pipeline.memory import ModelCache
from vec_pipeline.record import Interrupted, Record, Stage, UserError, Values

EIGHT = "abcdefgh"
THOUSAND = [f"{n:04}" for n in range(1024)]


@dataclass(frozen=True, kw_only=True)
class Spell(Stage):
    """key -> text, the same; notes its batches and what may run at once.

    largest: rows at once, above which the memory runs out.
    widest_px: of one image, above which it does too.
    poison: the rows that fail for another reason.
    """

    reads = ("key", "image")
    writes: ClassVar[Mapping[str, str]] = {"text": "text"}

    name: str = field(default="spell", compare=False)
    largest: int = 10**9
    widest_px: int = 10**9
    poison: str = ""
    batches: list[str] = field(default_factory=list)
    at_once: list[int] = field(default_factory=list)

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        self.batches.append("".join(row["key"] for row in rows))
        self.at_once.append(at_once)
        if any(row["key"] in self.poison.split() for row in rows):
            raise ValueError("bad\n image")
        if at_once > self.largest or any(row["image"].width > self.widest_px for row in rows):
            raise RuntimeError(OUT_OF_MEMORY)
        return [{"text": row["key"]} for row in rows]


@dataclass(frozen=True, kw_only=True)
class RefillingSpell(Spell):
    """As an engine that gives the place of a finished row to the next."""

    refills = True


class Others(ModelCache):
    """As if so many other models were in memory."""

    def __init__(self, number: int = 0) -> None:
        super().__init__([], 5, 0.0)
        self.number = number

    def keep_only(self, stage: Stage) -> bool:
        self.number -= 1
        return self.number >= 0


def batches_of(stage: Stage, others: int = 0, **options: Any) -> Batches:
    return Batches(stage, None, Others(others), CrashJournal(None), Streak(10**9), **options)


def spelled(*keys: str, side_px: int = 8) -> list[Record]:
    return [Record(key, {"key": key, "image": Image.new("L", (side_px, side_px))}) for key in keys]


def errors(annotated: list[Record]) -> dict[str, str]:
    return {record.key: record.error for record in annotated if record.error}


def test_what_fits_runs_once() -> None:
    stage, annotated = Spell(), spelled(*EIGHT)
    assert batches_of(stage).run(annotated, 3) == 3
    assert (stage.batches, stage.at_once) == (["abc", "def", "gh"], [3, 3, 2])
    assert [record.values["text"] for record in annotated] == list(EIGHT)
    assert all(record.done == {"spell"} for record in annotated)


def test_out_of_memory_halves_the_batch_and_is_remembered() -> None:
    stage, annotated = Spell(largest=2), spelled(*EIGHT)
    at_work = batches_of(stage)
    assert at_work.run(annotated, 8) == 2
    assert stage.batches == ["abcdefgh", "abcd", "ab", "cd", "ef", "gh"]
    assert not errors(annotated)
    assert not at_work.retries


def test_a_stage_that_refills_gets_several_times_the_rows_and_halves_what_runs_at_once() -> None:
    assert REFILLS >= 4, "or most places would wait for the longest answer of their batch"
    stage, annotated = RefillingSpell(largest=2), spelled(*"abcde" * REFILLS)
    assert batches_of(stage).run(annotated, 4) == 2
    assert [len(batch) for batch in stage.batches] == [4 * REFILLS, 2 * REFILLS, 2 * REFILLS, REFILLS]
    assert stage.at_once == [4, 2, 2, 2]
    assert not errors(annotated)


def test_a_stage_on_a_server_gets_fewer_rows_so_that_a_killed_run_loses_few_answers() -> None:
    class Remote(RefillingSpell):
        is_remote = True

    stage = Remote()
    batches_of(stage).run(spelled(*EIGHT), 2)
    assert stage.batches == ["abcd", "efgh"]


def test_a_stage_that_is_interrupted_keeps_what_it_has() -> None:
    class Stopping(RefillingSpell):
        def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
            first, *_ = super().run(model, rows, at_once)
            raise Interrupted("the token has expired", [first, None, {"error": "ValueError: bad"}])

    kept: list[Record] = []
    annotated = spelled(*"abc")
    with pytest.raises(Interrupted, match="the token has expired"):
        batches_of(Stopping(), keep=kept.extend).run(annotated, 3)
    assert kept == annotated[:1]
    assert [record.done for record in annotated] == [{"spell"}, set(), set()]
    assert not errors(annotated), "it is tried again"


def test_one_row_too_large_is_found_where_rows_run_one_at_a_time() -> None:
    """All rows that such a stage is given count, not those at work at the same time."""

    class Crowded(RefillingSpell):
        def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
            results = super().run(model, rows, at_once)
            if len(rows) > 3:
                raise MemoryError
            return results

    stage, annotated = Crowded(), spelled(*"abcd")
    assert batches_of(stage).run(annotated, 1) == 1
    assert stage.batches == ["abcd", "ab", "cd"]
    assert not errors(annotated)


def test_other_models_are_evicted_before_the_batch_is_halved() -> None:
    stage = Spell(largest=4)
    assert batches_of(stage, others=1).run(spelled(*EIGHT), 8) == 4
    assert stage.batches == ["abcdefgh", "abcdefgh", "abcd", "efgh"]


def test_an_attempt_to_grow_is_halved_without_evicting_others() -> None:
    stage = Spell(largest=2)
    at_work = batches_of(stage, others=1)
    assert at_work.run(spelled(*"abcd"), 4, 2) == 2
    assert stage.batches == ["abcd", "ab", "cd"]
    assert at_work.models.number == 1  # type: ignore[attr-defined]


def test_a_reader_evicts_no_model() -> None:
    class Reading(Spell):
        worker = "reader"

    stage, annotated = Reading(largest=1), spelled(*"ab")
    batches_of(stage, others=5).run(annotated, 2)
    assert stage.batches == ["ab", "a", "b"]


def test_files_that_cannot_be_read_are_no_failed_batches(caplog: pytest.LogCaptureFixture) -> None:
    """They have an error of their own, and one traceback each."""

    class Reading(Spell):
        worker = "reader"

    at_work, annotated = batches_of(Reading(poison="c")), spelled(*EIGHT)
    at_work.run(annotated, 8)
    assert errors(annotated) == {"c": "spell: ValueError: bad image"}
    assert not at_work.retries
    assert caplog.text.count("Traceback") == 1


def test_a_gpu_that_failed_ends_the_run_and_makes_its_batch_suspect(tmp_path: Path) -> None:
    class BrokenGpu(Spell):
        def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    annotated = spelled(*EIGHT)
    with closing(CrashJournal(tmp_path / "journal.sqlite")) as journal:
        at_work = Batches(BrokenGpu(), None, Others(1), journal, Streak(10**9))
        with pytest.raises(UserError, match=r"^the GPU failed \(RuntimeError: CUDA error: an illegal.*rerun the same"):
            at_work.run(annotated, 4)
    assert not errors(annotated)
    with closing(CrashJournal(tmp_path / "journal.sqlite")) as journal:
        assert journal.deaths == dict.fromkeys("abcd", 1)


def test_a_model_saves_memory_before_one_image_is_made_smaller() -> None:
    class Saving(Spell):
        """An image of twice the width fits once it saves memory, which it can do once."""

        asked: ClassVar[list[str]] = []

        def save_memory(self, model: Any) -> bool:
            self.asked.append(self.batches[-1])
            object.__setattr__(self, "widest_px", 600)
            return len(self.asked) == 1

    stage = Saving(widest_px=300, largest=1)
    annotated = [*spelled("a", side_px=100), *spelled("b", side_px=500), *spelled("c", side_px=1000)]
    at_work = batches_of(stage)
    at_work.run(annotated, 2)
    assert not errors(annotated)
    assert stage.batches == ["ab", "a", "b", "b", "c", "c"]
    assert stage.asked == ["b", "c"], "not of a batch, which is halved"
    assert [*at_work.smaller] == ["c"], "where saving has not helped"


def test_another_failure_is_found_by_halving() -> None:
    stage, annotated = Spell(poison="c"), spelled(*EIGHT)
    at_work = batches_of(stage)
    assert at_work.run(annotated, 4) == 4
    assert stage.batches == ["abcd", "ab", "cd", "c", "d", "efgh"]
    assert errors(annotated) == {"c": "spell: ValueError: bad image"}
    assert "text" not in annotated[2].values
    assert at_work.retries == {"spell": 2}, "abcd and cd"


@pytest.mark.parametrize("poison", ["0000", "0700", "1023"])
def test_one_bad_image_among_a_thousand_costs_about_twenty_calls(poison: str) -> None:
    stage, annotated = Spell(poison=poison), spelled(*THOUSAND)
    assert batches_of(stage).run(annotated, 1024) == 1024
    assert [*errors(annotated)] == [poison]
    assert len(stage.batches) == 21
    assert sum(record.done == {"spell"} for record in annotated) == 1023


def test_several_bad_images_are_all_found() -> None:
    stage, annotated = Spell(poison="0003 0004 0700"), spelled(*THOUSAND)
    batches_of(stage).run(annotated, 1024)
    assert [*errors(annotated)] == ["0003", "0004", "0700"]
    assert len(stage.batches) < 70


def test_one_image_alone_is_shrunk_until_it_fits() -> None:
    stage, annotated = Spell(widest_px=250), spelled("a", side_px=800)
    at_work = batches_of(stage)
    at_work.run([*annotated, *spelled("b")], 1)
    assert stage.batches == ["a", "a", "a", "b"]
    assert not errors(annotated)
    assert at_work.smaller["a"].size == (200, 200)
    assert annotated[0].values["image"].size == (800, 800), "other stages read it as it is"
    assert annotated[0].values["pixels_lowered"] is True


@pytest.mark.parametrize(("side_px", "calls"), [(111, 1), (112, 2)])
def test_an_image_that_never_fits_gets_an_error_and_the_next_is_tried(side_px: int, calls: int) -> None:
    """It is not shrunk below 56 pixels."""
    stage, annotated = Spell(widest_px=9), [*spelled("a", side_px=side_px), *spelled("b")]
    batches_of(stage).run(annotated, 1)
    assert stage.batches == ["a"] * calls + ["b"]
    assert errors(annotated) == {"a": f"spell: RuntimeError: {OUT_OF_MEMORY}"}


def test_a_row_without_an_image_that_never_fits_gets_an_error() -> None:
    class Words(Spell):
        reads = ("key",)

        def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
            raise MemoryError

    (record,) = spelled("a", side_px=800)
    batches_of(Words()).run([record], 1)
    assert record.error == "spell: MemoryError: "


def test_a_user_error_passes_through() -> None:
    class Refusing(Spell):
        def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
            super().run(model, rows, at_once)
            raise UserError("connect once to download it")

    stage = Refusing()
    with pytest.raises(UserError, match="connect once"):
        batches_of(stage).run(spelled(*EIGHT), 8)
    assert stage.batches == [EIGHT]


def test_tensors_of_the_failed_frame_are_gone_before_memory_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches.logger, "propagate", False)  # pytest keeps log records, and so their exceptions
    references: list[weakref.ref[object]] = []
    alive: list[bool] = []

    class Tensor:
        pass

    class Holding(Spell):
        def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
            tensor = Tensor()
            references.append(weakref.ref(tensor))
            return super().run(model, rows, at_once)

    class Watching(Others):
        def keep_only(self, stage: Stage) -> bool:
            alive.extend(reference() is not None for reference in references)
            return super().keep_only(stage)

    Batches(Holding(largest=1), None, Watching(1), CrashJournal(None), Streak(10**9)).run(spelled("a", "b"), 2)
    assert alive == [False]


def test_each_batch_is_kept_once_it_is_done_but_for_what_failed_or_was_shrunk() -> None:
    class Marking(Spell):
        def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
            results = super().run(model, rows, at_once)
            return [
                {"error": "no answer"} if row["key"] == "b" else result
                for row, result in zip(rows, results, strict=True)
            ]

    kept: list[str] = []
    stage, annotated = Marking(widest_px=99), [*spelled(*"abc"), *spelled("d", side_px=160), *spelled("e")]
    batches_of(stage, keep=lambda done: kept.append("".join(record.key for record in done))).run(annotated, 2)
    assert stage.batches == ["ab", "cd", "c", "d", "d", "e"]
    assert kept == ["a", "c", "", "e"]
    assert errors(annotated) == {"b": "spell: no answer"}
    assert "d" in annotated[3].values["text"]


def test_no_batch_begins_once_the_run_has_ended() -> None:
    class Ended(BaseException):
        pass

    def may_begin() -> None:
        if len(stage.batches) == 2:
            raise Ended

    stage = Spell()
    with pytest.raises(Ended):
        batches_of(stage, may_begin=may_begin).run(spelled(*EIGHT), 2)
    assert stage.batches == ["ab", "cd"]


def test_a_batch_is_marked_as_in_flight_while_it_runs_and_no_longer() -> None:
    marked: list[tuple[str, str]] = []

    class Marks(CrashJournal):
        @contextmanager
        def in_flight(self, image_paths: Any, stage: str) -> Iterator[None]:
            marked.append(("".join(image_paths), stage))
            yield
            marked.append(("", ""))

    class Looking(Spell):
        def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
            assert marked[-1] == ("".join(row["key"] for row in rows), "spell")
            return super().run(model, rows, at_once)

    Batches(Looking(), None, Others(), Marks(None), Streak(10**9)).run(spelled(*"abc"), 2)
    assert marked == [("ab", "spell"), ("", ""), ("c", "spell"), ("", "")]


def test_failures_in_a_row_end_the_run_at_the_limit_and_not_before() -> None:
    stage, annotated = Spell(poison=" ".join(EIGHT)), spelled(*EIGHT)
    at_work = Batches(stage, None, Others(), CrashJournal(None), Streak(3))
    with pytest.raises(
        UserError, match=r"^3 images in a row failed with the same error \(spell: ValueError: bad image\)"
    ):
        at_work.run(annotated, 4)
    assert [*errors(annotated)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("noted", "is_end"),
    [
        (["a: X: 1", "a: X: 2", "a: X: 3"], True),
        (["a: X: 1", "a: X: 2", "", "a: X: 3"], False),
        (["a: X: 1", "a: X: 2", "b: X: 3", "a: X: 4"], False),
        (["a: X: 1", "a: Y: 2", "a: X: 3"], False),
        (["", "", "", ""], False),
        (["", "a: X: 1", "a: X: 1", "a: X: 1"], True),
    ],
)
def test_a_series_is_of_one_kind_of_error_in_one_stage(noted: list[str], is_end: bool) -> None:
    streak = Streak(3)
    for error in noted[:-1]:
        streak.note(error)
    if is_end:
        with pytest.raises(UserError, match="raise max_consecutive_errors"):
            streak.note(noted[-1])
    else:
        streak.note(noted[-1])


def test_suspects_run_within_their_limit_whatever_runs_at_once(tmp_path: Path) -> None:
    with closing(CrashJournal(tmp_path / "journal.sqlite")) as journal:
        journal.count_death(["a", "b"], "spell")
    stage = RefillingSpell()
    with closing(CrashJournal(tmp_path / "journal.sqlite")) as journal:
        Batches(stage, None, Others(), journal, Streak(10**9)).run(spelled(*"abcdef"), 4)
    assert stage.batches == ["a", "b", "cdef"]
