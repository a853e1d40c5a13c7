"""Annotates pictures as they arrive: those that wait at the same time, and are asked the same, share a batch."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from time import sleep

from vec_pipeline.record import Record, UserError

GATHER_S = 0.005  # after the first upload of a batch: those sent together arrive within it
Chunk = list[Record]
Work = Callable[[Iterable[Chunk]], Iterator[Chunk]]  # such as an Executor

logger = logging.getLogger(__name__)


class Full(Exception):  # noqa: N818 (it says what is the matter)
    """As many uploads wait as may; the client is to come again."""


@dataclass(eq=False)
class Upload:
    """A record on its way to its row.

    future: of the record, annotated and saved.
    is_running: it is in a chunk that the models have begun, or begin next.
    is_saving: its row is being saved, so its place can no longer be given up.
    """

    record: Record
    future: "Future[Record]" = field(default_factory=Future)
    is_running: bool = False
    is_saving: bool = False


class Everything:
    """Contains everything."""

    def __contains__(self, _: object) -> bool:
        return True


Queue = SimpleQueue[Upload | None]


class Annotator:
    """One queue, and a thread for each way to annotate, such as each level of detail. They share models and results.

    make: makes what annotates chunks, for the name of a way; called once for each name, in its thread.
    save: keeps finished records; what it raises is the error of each of them. It is never called twice at once.
    has_row: whether there is a row for a key, so that it needs no work.
    most_waiting: uploads that may wait or be at work.
    most_together: uploads in one chunk.
    failure: why no more uploads can be annotated; empty as long as they can.
    """

    def __init__(
        self,
        make: Callable[[str], Work],
        save: Callable[[Sequence[Record]], None],
        has_row: Callable[[str], bool],
        most_waiting: int,
        most_together: int,
    ) -> None:
        self.failure = ""
        self._make, self._save, self._has_row = make, save, has_row
        self.most_waiting, self._most_together = most_waiting, most_together
        self._queues: dict[str, Queue] = {}
        self._threads: list[threading.Thread] = []
        self._at_work: dict[str, Upload] = {}  # by key, waiting ones included; what is not here any more gets no row
        self._changed = threading.Lock()  # of the three above
        self._saving = threading.Lock()

    @property
    def number_waiting(self) -> int:
        """Uploads that wait or are at work."""
        return len(self._at_work)

    @property
    def is_full(self) -> bool:
        """Whether no other upload may wait."""
        return len(self._at_work) >= self.most_waiting

    def number_before(self, key: str) -> int:
        """Uploads that wait or are at work and came earlier; 0 for one that is neither."""
        with self._changed:
            return list(self._at_work).index(key) if key in self._at_work else 0

    def submit(self, record: Record, way: str) -> Upload | None:
        """Annotate a record, whose key nobody else has unless the picture and what is asked of it are the same.

        Return None where there is a row for it. Raises Full, and UserError where nothing more can be annotated.
        """
        with self._changed:
            if known := self._at_work.get(record.key):
                return known
            if self._has_row(record.key):  # after the above: a row is saved before its upload leaves `_at_work`
                return None
            if self.failure:
                raise UserError(self.failure)
            if self.is_full:
                raise Full
            upload = self._at_work[record.key] = Upload(record)
            if way not in self._queues:
                self._begin(way)
            self._queues[way].put(upload)
        return upload

    def is_at_work(self, key: str) -> bool:
        """Whether an upload waits or is at work."""
        return key in self._at_work

    def give_up(self, key: str) -> None:
        """Free the place of an upload that nobody waits for, unless its row is being saved.

        The stages that have begun finish, no other one begins, and there is no row. Its future is cancelled.
        """
        with self._changed:
            upload = self._at_work.get(key)
            if not upload or upload.is_saving:
                return
            del self._at_work[key]
        upload.record.without = Everything()
        upload.future.cancel()

    def close(self, wait_s: float) -> None:
        """Finish what waits, for so many seconds at most; what is left then has this as its error."""
        with self._changed:
            self.failure = self.failure or "the server is ending: try again later"
            for queue in self._queues.values():
                queue.put(None)
        end_s = time.monotonic() + wait_s
        for thread in self._threads:
            thread.join(max(0.0, end_s - time.monotonic()))
        self._refuse_all()

    def _begin(self, way: str) -> None:
        self._queues[way] = SimpleQueue()
        thread = threading.Thread(target=self._run, args=(way,), name=f"annotate-{way}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self, way: str) -> None:
        taken: dict[int, Upload] = {}
        try:
            for chunk in self._make(way)(self._chunks(self._queues[way], taken)):
                self._finish([taken.pop(id(record)) for record in chunk])
        except BaseException as error:
            logger.exception("no more pictures can be annotated")
            self._fail(error)

    def _chunks(self, queue: Queue, taken: dict[int, Upload]) -> Iterator[Chunk]:
        """What waits, each time it is asked for: the longer the models work, the more there is in a chunk."""
        is_open = True
        while is_open and (first := queue.get()) is not None:
            sleep(GATHER_S)
            chunk = []
            for upload in (first, *drained(queue, self._most_together - 1)):
                if upload is None:
                    is_open = False
                elif not upload.future.cancelled():
                    upload.is_running = True
                    taken[id(upload.record)] = upload
                    chunk.append(upload.record)
            if chunk:
                yield chunk

    def _finish(self, uploads: Sequence[Upload]) -> None:
        with self._changed:
            kept = [each for each in uploads if self._at_work.get(each.record.key) is each]
            for upload in kept:
                upload.is_saving = True
        if not kept:
            return
        error = None
        try:
            with self._saving:
                self._save([upload.record for upload in kept])
        except Exception as caught:  # a full disk, say
            logger.exception("%d rows cannot be saved", len(kept))
            error = caught
        with self._changed:
            for upload in kept:
                del self._at_work[upload.record.key]
        for upload in kept:
            if error:
                upload.future.set_exception(error)
            else:
                upload.future.set_result(upload.record)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self.failure = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        self._refuse_all()

    def _refuse_all(self) -> None:
        """Tell all that wait why they get no row."""
        with self._changed:
            left = [upload for upload in self._at_work.values() if not upload.is_saving]
            for upload in left:
                del self._at_work[upload.record.key]
        for upload in left:
            upload.future.set_exception(UserError(self.failure))


def drained(queue: Queue, most: int) -> Iterator[Upload | None]:
    """What is in a queue now."""
    for _ in range(most):
        try:
            yield queue.get_nowait()
        except Empty:
            return
