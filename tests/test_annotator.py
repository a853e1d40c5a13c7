"""Uploads that wait together share a batch; places are bounded, given up and finished, whatever happens."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError

import pytest

from vec_pipeline.commands.serve.annotator import Annotator, Full
from vec_pipeline.record import Record, UserError

Chunk = list[Record]


class Worker:
    """Annotates chunks as soon as `may_work` is set, and notes their keys."""

    def __init__(self) -> None:
        self.may_work = threading.Event()
        self.chunks: list[list[str]] = []
        self.ways: list[str] = []
        self.saved: list[list[str]] = []
        self.save_error: UserError | None = None

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

    def save(self, records: Sequence[Record]) -> None:
        if self.save_error:
            raise self.save_error
        self.saved.append([record.key for record in records])


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def annotator(worker: Worker) -> Iterator[Annotator]:
    made = Annotator(worker.make, worker.save, most_waiting=5, most_together=3)
    yield made
    worker.may_work.set()
    made.close(5)


def wait_for(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_waits_while_the_models_work_is_one_batch(worker: Worker, annotator: Annotator) -> None:
    first = annotator.submit(Record("0"), "normal")
    wait_for(lambda: worker.chunks)
    others = [annotator.submit(Record(str(number)), "normal") for number in range(1, 5)]
    worker.may_work.set()
    assert [future.result(10).key for future in (first, *others)] == ["0", "1", "2", "3", "4"]
    assert worker.chunks == [["0"], ["1", "2", "3"], ["4"]], "three together at most"
    assert worker.saved == worker.chunks
    assert annotator.number_waiting == 0


def test_each_way_has_a_worker_of_its_own(worker: Worker, annotator: Annotator) -> None:
    worker.may_work.set()
    for way in ("brief", "full", "brief"):
        annotator.submit(Record(way), way).result(10)
    assert worker.ways == ["brief", "full"]


def test_no_more_than_so_many_wait(worker: Worker, annotator: Annotator) -> None:
    futures = [annotator.submit(Record(str(number)), "normal") for number in range(5)]
    with pytest.raises(Full):
        annotator.submit(Record("5"), "normal")
    worker.may_work.set()
    futures[-1].result(10)
    wait_for(lambda: annotator.number_waiting == 0)
    assert annotator.submit(Record("5"), "normal").result(10).key == "5"


def test_a_client_that_leaves_gives_up_its_place(worker: Worker, annotator: Annotator) -> None:
    annotator.submit(Record("0"), "normal")
    wait_for(lambda: worker.chunks)
    left = [annotator.submit(Record(str(number)), "normal") for number in range(1, 5)][:3]
    assert all(future.cancel() for future in left)
    assert annotator.number_waiting == 2
    worker.may_work.set()
    wait_for(lambda: annotator.number_waiting == 0)
    assert worker.chunks == [["0"], ["4"]]


def test_the_same_upload_is_annotated_once(worker: Worker, annotator: Annotator) -> None:
    one = annotator.submit(Record("same"), "normal")
    assert annotator.submit(Record("same"), "normal") is one
    worker.may_work.set()
    one.result(10)
    assert worker.chunks == [["same"]]


def test_rows_that_cannot_be_saved_are_errors_and_the_next_are_tried(worker: Worker, annotator: Annotator) -> None:
    worker.may_work.set()
    worker.save_error = UserError("free some disk space")
    with pytest.raises(UserError, match="free some disk space"):
        annotator.submit(Record("0"), "normal").result(10)
    worker.save_error = None
    assert annotator.submit(Record("1"), "normal").result(10).key == "1"
    assert annotator.failure == ""


def test_what_ends_the_work_is_told_to_all_that_wait(worker: Worker, annotator: Annotator) -> None:
    futures = [annotator.submit(Record(key), "normal") for key in ("fatal", "1", "2", "3")]
    worker.may_work.set()
    for future in futures:
        with pytest.raises((UserError, CancelledError)):
            future.result(10)
    wait_for(lambda: annotator.failure)
    with pytest.raises(UserError, match="the GPU is gone"):
        annotator.submit(Record("4"), "normal")


def test_closing_finishes_what_waits_and_takes_no_more(worker: Worker, annotator: Annotator) -> None:
    futures = [annotator.submit(Record(str(number)), "normal") for number in range(5)]
    worker.may_work.set()
    annotator.close(10)
    assert [future.result(0).key for future in futures] == ["0", "1", "2", "3", "4"]
    with pytest.raises(UserError, match="the server is ending"):
        annotator.submit(Record("5"), "normal")


def test_closing_cancels_what_does_not_end_in_time(worker: Worker, annotator: Annotator) -> None:
    futures = [annotator.submit(Record(str(number)), "normal") for number in range(5)]
    wait_for(lambda: worker.chunks)
    start_s = time.monotonic()
    annotator.close(0.1)
    assert time.monotonic() - start_s < 5
    assert futures[-1].cancelled()
