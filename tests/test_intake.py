"""Uploads that wait: who may still want them, what becomes of their files, and what is said of those that failed."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.test_annotator import wait_for
from tests.test_serve import FLOWER
from vec_pipeline.commands.serve import intake as intake_module
from vec_pipeline.commands.serve.annotator import Annotator, Chunk, Full
from vec_pipeline.commands.serve.intake import Intake
from vec_pipeline.commands.serve.metrics import Metrics
from vec_pipeline.commands.serve.rows import Rows
from vec_pipeline.commands.serve.uploads import Uploads
from vec_pipeline.record import COLUMNS, Record, UserError

PICTURE = FLOWER.read_bytes()


class Parts:
    """An intake whose uploads wait until `may_work` is set, and are saved unless there is a `save_error`."""

    def __init__(self, folder: Path) -> None:
        self.may_work = threading.Event()
        self.save_error: UserError | None = None
        self.rows, self.uploads = Rows(COLUMNS, None), Uploads(folder)
        self.annotator = Annotator(lambda _: self.work, self.save, self.rows.has_result, 2, 4)
        self.intake = Intake(self.annotator, self.uploads, self.rows, Metrics(lambda: self.annotator.number_waiting))

    def work(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            for record in chunk:
                record.values["sound"] = "audio/1"
            self.may_work.wait(10)
            yield chunk

    def save(self, records: Sequence[Record]) -> None:
        if self.save_error:
            raise self.save_error
        self.rows.save(records)

    def take(self, wishes: str = "") -> str:
        return self.intake.take(PICTURE, wishes, "normal", frozenset())

    def files(self) -> int:
        return sum(path.is_file() for path in self.uploads.folder.rglob("*"))


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    made = Parts(tmp_path)
    yield made
    made.may_work.set()
    made.annotator.close(5)


def test_the_last_one_that_leaves_gives_the_place_up(parts: Parts) -> None:
    name = parts.take()
    assert parts.take() == name
    parts.intake.release([name], has_left=True)
    assert parts.intake.state(name) and parts.files() == 1
    parts.intake.release([name], has_left=True)
    assert not parts.intake.state(name) and parts.files() == 0
    assert parts.annotator.number_waiting == 0 and parts.intake.failure(name) == ""


def test_who_was_given_the_id_keeps_the_place(parts: Parts) -> None:
    name = parts.take()
    parts.intake.release([name], has_left=False)
    parts.take()
    parts.intake.release([name], has_left=True)
    assert parts.intake.state(name)
    parts.may_work.set()
    wait_for(lambda: parts.rows.find(name))
    assert parts.files() == 1


def test_a_promise_ends_with_the_row(parts: Parts) -> None:
    parts.save_error = UserError("a.csv: No space left on device")
    parts.may_work.set()
    name = parts.take()
    parts.intake.release([name], has_left=False)
    wait_for(lambda: parts.intake.failure(name))
    parts.may_work.clear()
    parts.take()
    parts.intake.release([name], has_left=True)
    assert not parts.intake.state(name)


def test_a_file_that_is_needed_is_not_deleted(parts: Parts) -> None:
    name = parts.take()
    parts.intake.forget([name])
    assert parts.files() == 1, "it is at work"
    parts.may_work.set()
    wait_for(lambda: parts.rows.find(name))
    parts.intake.forget([name])
    assert parts.files() == 1, "there is its row"


def test_files_of_what_is_at_work_are_known_until_there_is_a_row(parts: Parts) -> None:
    name = parts.take()
    wait_for(lambda: "audio/1" in parts.intake.texts_at_work())
    parts.may_work.set()
    wait_for(lambda: parts.rows.find(name))
    wait_for(lambda: not parts.intake.texts_at_work())


def test_a_refused_one_leaves_no_file_and_is_counted_nowhere(parts: Parts) -> None:
    for wishes in "ab":
        parts.take(wishes)
    with pytest.raises(Full):
        parts.take("c")
    assert parts.files() == 2


def test_why_there_is_no_row_is_known_until_it_is_tried_again(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "MOST_FAILURES", 1)
    parts.save_error = UserError("a.csv: No space left on device")
    parts.may_work.set()
    first, second = (parts.take(wishes) for wishes in "ab")
    wait_for(lambda: parts.intake.failure(second) and not parts.intake.state(first))
    assert parts.intake.failure(second) == "a.csv: No space left on device"
    wait_for(lambda: parts.files() == 0)
    assert parts.intake.failure(first) == "", "of the last alone"
    parts.save_error = None
    parts.take("b")
    assert parts.intake.failure(second) == ""
    wait_for(lambda: parts.rows.find(second))


def test_an_upload_that_several_wait_for_is_counted_once(parts: Parts) -> None:
    from prometheus_client import generate_latest

    metrics = Metrics(lambda: 0)
    parts.intake = Intake(parts.annotator, parts.uploads, parts.rows, metrics)
    [name] = {parts.take() for _ in range(3)}
    parts.may_work.set()
    wait_for(lambda: parts.rows.find(name) and not parts.intake.state(name))
    assert b'vec_uploads_total{outcome="ok"} 1.0' in generate_latest(metrics.registry)


def test_a_file_that_was_cut_off_is_written_again(parts: Parts) -> None:
    name = parts.take()
    path = parts.uploads.path(name)
    assert path
    path.write_bytes(b"")
    parts.take()
    assert path.read_bytes() == PICTURE
