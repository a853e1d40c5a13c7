"""Uploads that wait together share a batch; places are bounded, given up and finished, whatever happens."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import pytest

from vec_pipeline.commands.serve.annotator import Annotator, Full, Upload
from vec_pipeline.record import Record, UserError

Chunk = list[Record]


class Worker:
    """Annotates chunks as soon as `may_work` is set, and notes their keys."""

    def __init__(self) -> None:
        self.may_work = threading.Event()
        self.chunks: list[list[str]] = []
        self.ways: list[str] = []
        self.saved: list[list[str]] = []
        self.save_error: Exception | None = None
        self.done_keys: set[str] = set()
        self.may_save = threading.Event()
        self.may_save.set()

    def make(self, way: str) -> Callable[[Iterable[Chunk]], Iterator[Chunk]]:
        self.ways.append(way)
        return self.work

    def work(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            self.chunks.append([record.key for record in chunk])
            self.may_work.wait(10)
            if any(record.key == "fatal" for record in chunk):
                raise UserError("the GPU is gone")
            yield chunk

    def has_row(self, key: str) -> bool:
        return key in self.done_keys

    def save(self, records: Sequence[Record]) -> None:
        if self.save_error:
            raise self.save_error
        self.may_save.wait(10)
        self.saved.append([record.key for record in records])


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def annotator(worker: Worker) -> Iterator[Annotator]:
    made = Annotator(worker.make, worker.save, worker.has_row, most_waiting=5, most_together=3)
    yield made
    worker.may_work.set()
    made.close(5)


def submitted(annotator: Annotator, key: str, way: str = "normal") -> Upload:
    upload = annotator.submit(Record(key), way)
    assert upload
    return upload


def wait_for(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_waits_while_the_models_work_is_one_batch(worker: Worker, annotator: Annotator) -> None:
    first = submitted(annotator, "0").future
    wait_for(lambda: worker.chunks)
    others = [submitted(annotator, str(number)).future for number in range(1, 5)]
    worker.may_work.set()
    assert [future.result(10).key for future in (first, *others)] == ["0", "1", "2", "3", "4"]
    assert worker.chunks == [["0"], ["1", "2", "3"], ["4"]], "three together at most"
    assert worker.saved == worker.chunks
    assert annotator.number_waiting == 0


def test_each_way_has_a_worker_of_its_own(worker: Worker, annotator: Annotator) -> None:
    worker.may_work.set()
    for way in ("brief", "full", "brief"):
        submitted(annotator, way, way).future.result(10)
    assert worker.ways == ["brief", "full"]


def test_no_more_than_so_many_wait(worker: Worker, annotator: Annotator) -> None:
    futures = [submitted(annotator, str(number)).future for number in range(5)]
    with pytest.raises(Full):
        annotator.submit(Record("5"), "normal")
    worker.may_work.set()
    futures[-1].result(10)
    wait_for(lambda: annotator.number_waiting == 0)
    assert submitted(annotator, "5").future.result(10).key == "5"


def test_who_came_before_is_counted(worker: Worker, annotator: Annotator) -> None:
    for number in range(5):
        assert not annotator.is_full
        submitted(annotator, str(number), str(number % 2))
    assert annotator.is_full
    assert [annotator.number_before(key) for key in ("0", "3", "4", "unknown")] == [0, 3, 4, 0]
    annotator.give_up("1")
    assert annotator.number_before("3") == 2


def test_a_client_that_leaves_gives_up_its_place(worker: Worker, annotator: Annotator) -> None:
    submitted(annotator, "0")
    wait_for(lambda: worker.chunks)
    left = [submitted(annotator, str(number)) for number in range(1, 5)][:3]
    for upload in left:
        annotator.give_up(upload.record.key)
    assert all(upload.future.cancelled() for upload in left)
    assert annotator.number_waiting == 2
    worker.may_work.set()
    wait_for(lambda: annotator.number_waiting == 0)
    assert worker.chunks == [["0"], ["4"]]


def test_who_leaves_while_the_models_work_gets_no_row_and_no_further_stage(
    worker: Worker, annotator: Annotator
) -> None:
    first = submitted(annotator, "0")
    wait_for(lambda: worker.chunks)
    annotator.give_up("0")
    assert annotator.number_waiting == 0
    assert "any stage" in first.record.without
    second = submitted(annotator, "0")
    assert second is not first and "any stage" not in second.record.without
    worker.may_work.set()
    assert second.future.result(10) is second.record
    assert worker.chunks == [["0"], ["0"]] and worker.saved == [["0"]]


def test_a_row_that_is_being_saved_is_not_given_up(worker: Worker, annotator: Annotator) -> None:
    worker.may_work.set()
    upload = submitted(annotator, "0")
    upload.is_saving = True
    annotator.give_up("0")
    assert upload.future.result(10).key == "0"


def test_the_same_upload_is_annotated_once(worker: Worker, annotator: Annotator) -> None:
    one = annotator.submit(Record("same"), "normal")
    assert one and annotator.submit(Record("same"), "normal") is one
    worker.done_keys.add("same")
    assert annotator.submit(Record("same"), "normal") is one, "its row may be there before it is known to be"
    worker.may_work.set()
    one.future.result(10)
    assert annotator.submit(Record("same"), "normal") is None
    assert worker.chunks == [["same"]]


def test_rows_that_cannot_be_saved_are_errors_and_the_next_are_tried(worker: Worker, annotator: Annotator) -> None:
    worker.may_work.set()
    worker.save_error = UserError("free some disk space")
    with pytest.raises(UserError, match="free some disk space"):
        submitted(annotator, "0").future.result(10)
    worker.save_error = None
    assert submitted(annotator, "1").future.result(10).key == "1"
    assert annotator.failure == ""


def test_a_row_that_cannot_be_made_ends_nothing(worker: Worker, annotator: Annotator) -> None:
    worker.may_work.set()
    worker.save_error = ValueError("no JSON")
    with pytest.raises(ValueError, match="no JSON"):
        submitted(annotator, "0").future.result(10)
    worker.save_error = None
    assert submitted(annotator, "1").future.result(10).key == "1"


def test_what_ends_the_work_is_told_to_all_that_wait(worker: Worker, annotator: Annotator) -> None:
    futures = [submitted(annotator, key).future for key in ("fatal", "1", "2", "3")]
    worker.may_work.set()
    for future in futures:
        with pytest.raises(UserError, match="the GPU is gone"):
            future.result(10)
    wait_for(lambda: annotator.failure)
    with pytest.raises(UserError, match="the GPU is gone"):
        annotator.submit(Record("4"), "normal")


def test_a_row_that_is_being_saved_outlives_the_failure_of_another_way(worker: Worker, annotator: Annotator) -> None:
    worker.may_work.set()
    worker.may_save.clear()
    upload = submitted(annotator, "0", "brief")
    wait_for(lambda: upload.is_saving)
    submitted(annotator, "fatal", "full")
    wait_for(lambda: annotator.failure)
    worker.may_save.set()
    assert upload.future.result(10).key == "0"


def test_closing_finishes_what_waits_and_takes_no_more(worker: Worker, annotator: Annotator) -> None:
    futures = [submitted(annotator, str(number)).future for number in range(5)]
    worker.may_work.set()
    annotator.close(10)
    assert [future.result(0).key for future in futures] == ["0", "1", "2", "3", "4"]
    with pytest.raises(UserError, match="the server is ending"):
        annotator.submit(Record("5"), "normal")


def test_closing_refuses_what_does_not_end_in_time_and_waits_for_all_ways_together(
    worker: Worker, annotator: Annotator
) -> None:
    futures = [submitted(annotator, str(number), str(number % 3)).future for number in range(5)]
    wait_for(lambda: len(worker.chunks) == 3)
    start_s = time.monotonic()
    annotator.close(0.6)
    assert 0.5 < time.monotonic() - start_s < 1.5
    for future in futures:
        with pytest.raises(UserError, match="the server is ending"):
            future.result(0)
    worker.may_work.set()
    wait_for(lambda: not any(thread.name.startswith("annotate-") for thread in threading.enumerate()))
    assert worker.saved == []
