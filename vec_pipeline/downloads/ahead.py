"""One pass over records: a thread reads them, another one fetches their content, and they are taken as they arrive."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from vec_pipeline.downloads import DownloadError, is_remote, to_fetch
from vec_pipeline.downloads.network import message_of
from vec_pipeline.downloads.statistics import Statistics
from vec_pipeline.record import Record, UserError, Values

if TYPE_CHECKING:
    from vec_pipeline.downloads.client import Client

WINDOW = 1024  # records that were read and not taken yet: waiting, being fetched, or there
REFILL = WINDOW // 4  # that were taken before more are read, so that threads seldom wake each other
CLOSE_S = 1.0  # to wait for the threads


class Ahead:
    """Reads `records` in one thread and fetches in the event loop of another; both end with `run`.

    arrived: records that can be taken.
    """

    def __init__(self, records: Iterator[Record], client: Callable[[], "Client"], statistics: Statistics) -> None:
        self.arrived: deque[Record] = deque()
        self._records = records
        self._make_client = client
        self._statistics = statistics
        self._read = self._taken = 0  # records
        self._unbegun: deque[Record] = deque()  # that were read
        self._is_read_up = False
        self._is_over = False  # nothing more will arrive
        self._is_closing = False
        self._failure: BaseException | None = None
        self._news = threading.Event()  # something has arrived, or nothing will
        self._room = threading.Event()  # more may be read
        self._is_notified = False  # the loop, of records to begin with
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()  # the loop
        self._tasks: set[asyncio.Task[None]] = set()
        self._threads: list[threading.Thread] = []

    def run(self) -> Iterator[Record]:
        """Yield the records. Raises what `records` raises, and UserError."""
        self._start(self._fetch_all, "downloads")
        try:
            while self._wait_for_news():
                record = self.arrived.popleft()
                self._taken += 1
                if not self._room.is_set() and self._read - self._taken <= WINDOW - REFILL:
                    self._room.set()
                yield record
            if self._failure:
                raise self._failure
        finally:
            self.close()

    def _start(self, target: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _wait_for_news(self) -> bool:
        """Wait until a record has arrived, and return True, or until none will."""
        while not self.arrived:
            if self._is_over:
                return bool(self.arrived)  # it may have arrived between the two questions
            self._news.clear()
            if not self.arrived and not self._is_over:
                self._news.wait()
        return True

    def close(self) -> None:
        """End the threads, within a second; one that reads may be blocked by what it reads from."""
        self._is_closing = True
        self._room.set()
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._stopped.set)
        for thread in self._threads:
            thread.join(CLOSE_S / len(self._threads))
        self.arrived.clear()

    def _read_all(self) -> None:
        """The thread that reads."""
        try:
            for record in self._records:
                self._read += 1
                if is_remote(record):
                    self._unbegun.append(record)
                    self._notify_loop()
                else:
                    self._deliver(record)
                self._wait_for_room()
                if self._is_closing:
                    return
        except BaseException as error:
            self._failure = self._failure or error
        finally:
            self._is_read_up = True
            self._notify_loop()

    def _wait_for_room(self) -> None:
        while self._read - self._taken >= WINDOW and not self._is_closing:
            self._room.clear()
            if self._read - self._taken >= WINDOW and not self._is_closing:
                self._room.wait()

    def _notify_loop(self) -> None:
        if not self._is_notified:
            self._is_notified = True
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._begin)

    def _deliver(self, record: Record) -> None:
        self.arrived.append(record)
        if not self._news.is_set():
            self._news.set()

    def _fetch_all(self) -> None:
        """The thread of the event loop."""
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            self._failure = self._failure or error
        finally:
            self._is_closing = self._is_over = True
            self._room.set()
            self._news.set()
            self._loop.close()

    async def _serve(self) -> None:
        async with self._make_client() as self._client:
            self._start(self._read_all, "reading")
            await self._stopped.wait()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self) -> None:
        self._is_notified = False  # first: what is read from now on notifies again
        while self._unbegun and not self._stopped.is_set():
            task = self._loop.create_task(self._fetch(self._unbegun.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._note_end)
        self._stop_if_over()

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._failure = self._failure or error
            self._stopped.set()
        self._stop_if_over()

    def _stop_if_over(self) -> None:
        if self._is_read_up and not self._tasks and not self._unbegun:
            self._stopped.set()

    async def _fetch(self, record: Record) -> None:
        """Give the record its content, or an error; of several, the first that cannot be had. Raises UserError."""
        for name in to_fetch(record):
            try:
                content, values = await record.values[name].fetch(self._client)
                record.values |= {name: content, **named_after(name, values)}
            except UserError:
                raise
            except DownloadError as error:
                self._note_failure(record, name, error)
            except Exception as error:  # whatever a library raises
                self._note_failure(record, name, DownloadError(type(error).__name__, message_of(error)))
            if record.error:
                break
        self._deliver(record)

    def _note_failure(self, record: Record, name: str, error: DownloadError) -> None:
        self._statistics.note_failure(error.kind)
        for each in to_fetch(record):  # which a stage would fetch again
            del record.values[each]
        record.values |= named_after(name, error.values)
        which = "" if name == "content" else f" ({name})"
        record.error = f"download: {error.kind}: {error}{which}"


def named_after(content: str, values: Values) -> Values:
    """The columns that one content of a record adds: http_status, and edited_http_status for edited_content."""
    prefix = content.removesuffix("content")
    return {f"{prefix}{name}": value for name, value in values.items()}
