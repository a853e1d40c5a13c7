"""Annotates pictures as they arrive: those that wait at the same time, and are asked the same, share a batch."""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from time import sleep

from vec_pipeline.record import Record, UserError

GATHER_S = 0.005  # after the first upload of a batch: those sent together arrive within it
Chunk = list[Record]
Work = Callable[[Iterable[Chunk]], Iterator[Chunk]]  # such as an Executor
Upload = tuple[Record, "Future[Record]"]

logger = logging.getLogger(__name__)


class Full(Exception):  # noqa: N818 (it says what is the matter)
    """As many uploads wait as may; the client is to come again."""


class Annotator:
    """One queue, and a thread for each way to annotate, such as each level of detail. They share models and results.

    make: makes what annotates chunks, for the name of a way; called once for each name, in its thread.
    save: keeps finished records; what it raises is the error of each of them. It is never called twice at once.
    most_waiting: uploads that may wait or be at work.
    most_together: uploads in one chunk.
    failure: why no more uploads can be annotated; empty as long as they can.
    """

    def __init__(
        self,
        make: Callable[[str], Work],
        save: Callable[[Sequence[Record]], None],
        most_waiting: int,
        most_together: int,
    ) -> None:
        self.failure = ""
        self._make, self._save = make, save
        self._most_waiting, self._most_together = most_waiting, most_together
        self._queues: dict[str, SimpleQueue[Upload | None]] = {}
        self._threads: list[threading.Thread] = []
        self._at_work: dict[str, Future[Record]] = {}  # by key, waiting ones included
        self._changed = threading.Lock()  # of the three above
        self._saving = threading.Lock()

    @property
    def number_waiting(self) -> int:
        """Uploads that wait or are at work."""
        return len(self._at_work)

    def submit(self, record: Record, way: str) -> "Future[Record]":
        """Annotate a record, whose key nobody else has unless the picture and what is asked of it are the same.

        Cancelling the future gives up the place, as long as nothing has been done.

        Raises Full, and UserError where nothing more can be annotated.
        """
        with self._changed:
            if self.failure:
                raise UserError(self.failure)
            if known := self._at_work.get(record.key):
                return known
            if len(self._at_work) >= self._most_waiting:
                raise Full
            future: Future[Record] = Future()
            self._at_work[record.key] = future
            if way not in self._queues:
                self._begin(way)
        future.add_done_callback(lambda _: self._forget(record.key))
        self._queues[way].put((record, future))
        return future

    def close(self, wait_s: float) -> None:
        """Finish what waits, for so many seconds at most; what is left then is cancelled."""
        with self._changed:
            self.failure = self.failure or "the server is ending: try again later"
            for queue in self._queues.values():
                queue.put(None)
        for thread in self._threads:
            thread.join(wait_s)
        for future in list(self._at_work.values()):
            future.cancel()

    def _begin(self, way: str) -> None:
        self._queues[way] = SimpleQueue()
        thread = threading.Thread(target=self._run, args=(way,), name=f"annotate-{way}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _forget(self, key: str) -> None:
        with self._changed:
            self._at_work.pop(key, None)

    def _run(self, way: str) -> None:
        taken: dict[int, Future[Record]] = {}
        try:
            for chunk in self._make(way)(self._chunks(self._queues[way], taken)):
                self._finish(chunk, [taken.pop(id(record)) for record in chunk])
        except BaseException as error:
            logger.exception("no more pictures can be annotated")
            self._fail(error)

    def _chunks(self, queue: "SimpleQueue[Upload | None]", taken: dict[int, "Future[Record]"]) -> Iterator[Chunk]:
        """What waits, each time it is asked for: the longer the models work, the more there is in a chunk."""
        is_open = True
        while is_open and (first := queue.get()) is not None:
            sleep(GATHER_S)
            chunk = []
            for upload in (first, *drained(queue, self._most_together - 1)):
                if upload is None:
                    is_open = False
                elif upload[1].set_running_or_notify_cancel():
                    taken[id(upload[0])] = upload[1]
                    chunk.append(upload[0])
            if chunk:
                yield chunk

    def _finish(self, chunk: Chunk, futures: Sequence["Future[Record]"]) -> None:
        error = None
        try:
            with self._saving:
                self._save(chunk)
        except UserError as caught:  # a full disk, say
            error = caught
        for record, future in zip(chunk, futures, strict=True):
            if error:
                future.set_exception(error)
            else:
                future.set_result(record)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self.failure = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            waiting = list(self._at_work.values())
        for future in waiting:
            if not future.cancel() and not future.done():
                future.set_exception(UserError(self.failure))


def drained(queue: "SimpleQueue[Upload | None]", most: int) -> Iterator[Upload | None]:
    """What is in a queue now."""
    for _ in range(most):
        try:
            yield queue.get_nowait()
        except Empty:
            return
