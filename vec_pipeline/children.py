"""Hands chunks to child processes, one for each device, as they become free; what a child had at its death goes on.

A child has its own models and its own executor. The source, the CSV, the result cache and the crash journal are the
parent's: a child sends it what it would read from or write to the last two. Children are processes of this machine,
or actors of a cluster, see `ray_actors`.
"""

import contextlib
import logging
import pickle
import signal
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from vec_pipeline.child import Figures, Work, serve
from vec_pipeline.crash_journal import FEW_SUSPECTS, CrashJournal, Suspicion
from vec_pipeline.database import Database
from vec_pipeline.downloads.temporary import InMemory, TemporaryFile
from vec_pipeline.record import Record, UserError
from vec_pipeline.result_cache import ResultCache

logger = logging.getLogger(__name__)

Chunk = list[Record]
MOST_FAILURES = 3  # of a device, one after the other, without a chunk that it finished: then it is left out
STOP_S = 5.0  # for children to hand over what is complete when the run is interrupted
CLOSE_S = 2.0  # for a child to end by itself


class Event(NamedTuple):
    """What has happened; the loop in the parent's thread acts on it.

    kind: next, done, part, failed, stopped, died or waits, of a child; chunk, end or error, of the source.
    """

    kind: str
    child: "Child | None" = None
    value: Any = None


class Children:
    """Annotates chunks as an `Executor` does; the chunks come in the order in which they are finished.

    names: of the devices, as `device.names` gives them.
    chunks, images, seconds, retries, models: of all children together, as those of an Executor.
    """

    has_two_at_work = False  # in this process

    def __init__(self, names: Sequence[str], work: Work, results: ResultCache, journal: CrashJournal) -> None:
        self._work, self._results, self._journal = work, results, journal
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._children = [self._child(name) for name in names]
        self._hungry: deque[Child] = deque()  # those that have asked for a chunk
        self._again: deque[Chunk] = deque()  # of children that died: what was not in flight
        self._suspects: list[Record] = []
        self._failures: Counter[str] = Counter()  # by device, since its last chunk
        self._past: list[Figures] = []  # of children that have died
        self._processed: Counter[str] = Counter()  # images by device

    def __call__(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Yield each chunk annotated; when interrupted, first the rows that are complete by then."""
        source = Pulled(chunks, self._events)
        try:
            self._hand_out(source)
            while not (source.is_over and not self._outstanding and not self._again and not self._suspects):
                finished = self._act_on(self._events.get(), source)
                if finished:
                    yield finished
                self._hand_out(source)
            if source.error:
                raise source.error
        except GeneratorExit:
            raise
        except BaseException:
            yield self._stopped()
            raise
        finally:
            source.close()

    @property
    def at_work(self) -> list[str]:
        return [f"{child.name} {self._processed[child.name]:,}" for child in self._children]

    @property
    def chunks(self) -> int:
        return sum(each.chunks for each in self._figures)

    @property
    def images(self) -> int:
        return sum(each.images for each in self._figures)

    @property
    def seconds(self) -> dict[str, float]:
        return summed(each.seconds for each in self._figures)

    @property
    def retries(self) -> dict[str, float]:
        return summed(each.retries for each in self._figures)

    @property
    def models(self) -> "Children":
        """What of an executor's model cache the progress is told: `holds_all` and `load_seconds`."""
        return self

    @property
    def holds_all(self) -> bool:
        return all(each.holds_all for each in self._figures)

    @property
    def load_seconds(self) -> dict[str, float]:
        return summed(each.load_seconds for each in self._figures)

    def close(self) -> None:
        """End the children; what they hold is lost."""
        for child in self._children:
            child.close()

    @property
    def _figures(self) -> list[Figures]:
        return [*self._past, *(child.figures for child in self._children)]

    @property
    def _outstanding(self) -> int:
        """Chunks that children have."""
        return sum(len(child.chunks) for child in self._children)

    @property
    def _databases(self) -> dict[str, Database]:
        return {"results": self._results.database, "journal": self._journal.database}

    def _child(self, name: str) -> "Child":
        return LocalChild(name, self._work, self._databases, self._events)

    def _hand_out(self, source: "Pulled") -> None:
        """Give chunks to the children that wait for one: what is left of others first, suspects after all else."""
        while self._hungry and (chunk := self._next_chunk(source)):
            suspicions = self._journal.suspicions(record.key for record in chunk)

            def least(child: Child, weighs_failures: bool = bool(suspicions)) -> tuple[int, int]:
                """Suspects go to a device that has not failed: else its own fault would be found in them again."""
                return self._failures[child.name] if weighs_failures else 0, len(child.chunks)

            child = min(self._hungry, key=least)
            self._hungry.remove(child)
            child.give(chunk, suspicions)

    def _next_chunk(self, source: "Pulled") -> Chunk | None:
        """The next chunk, if there is one now; the source is asked for more where it may have some."""
        if self._again:
            return self._again.popleft()
        if chunk := source.take():
            return chunk
        if self._suspects and not self._outstanding:
            first = self._journal.fitting(self._suspects, FEW_SUSPECTS)
            del self._suspects[: len(first)]
            return first
        return None

    def _act_on(self, event: Event, source: "Pulled") -> Chunk | None:
        """Take an event into account; return the chunk that it brings."""
        child = event.child
        if event.kind == "error" and source.error:
            raise source.error
        if child is None or child not in self._children:  # of the source, which has noted it; or of one that died
            return None
        if event.kind == "next":
            self._hungry.append(child)
        elif event.kind == "done":
            return self._taken(child, *event.value)
        elif event.kind == "part":
            return child.without(event.value)
        elif event.kind == "failed" and not event.value.is_of_device:
            raise UserError(event.value.message)
        else:
            self._replace(child, event.value.message if event.kind == "failed" else child.cause_of_death())
        return None

    def _taken(self, child: "Child", chunk: Chunk, figures: Figures) -> Chunk:
        child.figures = figures
        child.chunks.popleft()
        if not all(record.error for record in chunk):
            self._failures[child.name] = 0
        self._processed[child.name] += len(chunk)
        self._journal.clear([record.key for record in chunk if not self._journal.fatal_stage(record.key)])
        return chunk

    def _replace(self, child: "Child", reason: str) -> None:
        """Start another child for the device of one that has ended, and take up what it had. Raises UserError."""
        child.close()
        self._past.append(child.figures)
        self._children.remove(child)
        if child in self._hungry:
            self._hungry.remove(child)
        records = [record for chunk in child.chunks for record in chunk]
        suspects = self._journal.note_death([record.key for record in records], of_machine=child.died_with_machine)
        self._suspects += [record for record in records if record.key in suspects]
        self._again.extendleft(
            chunk for chunk in ([r for r in each if r.key not in suspects] for each in child.chunks) if chunk
        )
        self._failures[child.name] += 1
        logger.warning("%s has ended (%s): %d images were in flight", child.name, reason, len(suspects))
        if self._failures[child.name] < MOST_FAILURES:
            self._children.append(self._child(child.name))
            self._children.sort(key=lambda each: each.name)
            return
        print(f"{child.name} has failed {MOST_FAILURES} times, and is left out: {reason}", flush=True)
        if not self._children:
            raise UserError(f"no device is left: {child.name}: {reason}: fix the cause, then rerun")

    def _stopped(self) -> Chunk:
        """Stop the children, and return what was complete then."""
        complete: Chunk = []
        for child in self._children:
            child.send("stop")
        waiting = {child for child in self._children if child.chunks}  # the others have nothing to hand over
        with contextlib.suppress(Empty):
            while waiting:
                event = self._events.get(timeout=STOP_S)
                if event.kind in ("done", "part"):
                    complete += event.value[0] if event.kind == "done" else event.value
                elif event.kind in ("failed", "died", "stopped") and event.child in waiting:
                    waiting.remove(event.child)
        return complete


class Pulled:
    """A source of chunks, read in a thread of its own, one chunk ahead."""

    def __init__(self, chunks: Iterable[Chunk], events: SimpleQueue[Event]) -> None:
        self.is_over = False
        self.error: BaseException | None = None
        self._chunk: Chunk | None = None
        self._is_closed = False
        self._wanted = threading.Semaphore(1)
        self._events = events
        threading.Thread(target=self._read, args=(iter(chunks),), name="chunks", daemon=True).start()

    def take(self) -> Chunk | None:
        """The chunk that was read; None where none is there yet, or no more will be."""
        chunk, self._chunk = self._chunk, None
        if chunk:
            self._wanted.release()
        return chunk

    def close(self) -> None:
        self._is_closed = True
        self._wanted.release()

    def _read(self, chunks: Iterator[Chunk]) -> None:
        try:
            while self._wanted.acquire() and not self._is_closed and (chunk := next(chunks, None)):
                self._chunk = chunk
                self._events.put(Event("chunk"))
        except BaseException as error:
            self.error = error
        self.is_over = True
        self._events.put(Event("error" if self.error else "end"))


class Child:
    """The parent's side of a child, which has two connections to it: for work, and for the databases.

    A subclass begins and ends it.

    chunks: that it has, in the order in which it finishes them.
    died_with_machine: it has ended, and so has the machine that it was on.
    """

    died_with_machine = False

    def __init__(self, name: str, databases: Mapping[str, Database], events: SimpleQueue[Event]) -> None:
        self.name, self.figures = name, Figures()
        self.chunks: deque[Chunk] = deque()
        self._databases, self._events = databases, events
        self._work: Connection[Any, Any] | None = None

    def give(self, chunk: Chunk, suspicions: Mapping[str, Suspicion]) -> None:
        self.chunks.append(chunk)
        self.send("chunk", [self.sendable(record) for record in chunk], suspicions)

    def without(self, finished: Chunk) -> Chunk:
        """Take records that it has finished out of its chunks, and return them."""
        keys = {record.key for record in finished}
        self.chunks = deque([record for record in chunk if record.key not in keys] for chunk in self.chunks)
        return finished

    def send(self, *message: Any) -> None:
        if self._work:
            with contextlib.suppress(OSError):  # it has died, and an event says so
                self._work.send(message)

    def sendable(self, record: Record) -> Record:
        """The record as the child can have it."""
        return with_contents(record, lent)

    def cause_of_death(self) -> str:
        raise NotImplementedError

    def close(self) -> None:
        """End it; what it holds is lost."""
        raise NotImplementedError

    def _connect(self, work: "Connection[Any, Any]", store: "Connection[Any, Any]") -> None:
        self._work = work
        self._start(self._listen, work)
        self._start(self._answer, store)

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        threading.Thread(target=target, args=arguments, name=self.name, daemon=True).start()

    def _listen(self, connection: "Connection[Any, Any]") -> None:
        """The thread that hears what the child has to say."""
        try:
            while True:
                kind, value = connection.recv()
                self._events.put(Event(kind, self, value))
        except (EOFError, OSError, pickle.UnpicklingError):
            self._hung_up()

    def _hung_up(self) -> None:
        self._events.put(Event("died", self))

    def _answer(self, connection: "Connection[Any, Any]") -> None:
        """The thread that reads and writes the databases for the child."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                name, method, arguments = connection.recv()
                answer: tuple[str | None, Any]
                try:
                    answer = (None, getattr(self._databases[name], method)(*arguments))
                except UserError as error:
                    answer = (str(error), None)
                except Exception as error:  # the child must not wait for ever
                    answer = (f"{type(error).__name__}: {error}", None)
                connection.send(answer)


class LocalChild(Child):
    """A process of this machine."""

    def __init__(self, name: str, work: Work, databases: Mapping[str, Database], events: SimpleQueue[Event]) -> None:
        super().__init__(name, databases, events)
        context = get_context("spawn")  # forked from a process with threads, CUDA and OpenMP would hang
        own_work, work_end = context.Pipe()
        own_store, store_end = context.Pipe()
        self._process = context.Process(target=serve, args=(name, work, work_end, store_end), name=name, daemon=True)
        self._process.start()
        for end in (work_end, store_end):
            end.close()  # so that this side notices when the child's is gone
        self._connect(own_work, own_store)

    def cause_of_death(self) -> str:
        self._process.join(CLOSE_S)
        code = self._process.exitcode or 0
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def close(self) -> None:
        self.send("quit")
        self._process.join(CLOSE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


@dataclass(frozen=True, slots=True)
class Borrowed:
    """Content in a file that the parent keeps until the child has finished with it."""

    path: str
    version: str
    link: str

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            return file.read()

    def identity(self) -> str:
        return self.version


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Content that another process cannot have."""

    reason: str
    link: str = ""

    def read(self) -> bytes:
        raise OSError(self.reason)

    def identity(self) -> str:
        raise OSError(self.reason)


def with_contents(record: Record, lend: Callable[[Any], Any]) -> Record:
    """The record with each of its contents as `lend` returns it."""
    contents = {name: lend(value) for name, value in record.values.items() if hasattr(value, "read")}
    return replace(record, values={**record.values, **contents})


def lent(content: Any) -> Any:
    """Content for another process of this machine: a temporary file stays this one's."""
    if isinstance(content, TemporaryFile):
        return Borrowed(content.path, content.version, content.link)
    return portable(content)


def portable(content: Any) -> Any:
    """Content for any other process: what cannot be pickled is read here."""
    try:
        pickle.dumps(content)
        return content
    except Exception:  # whatever its classes raise
        pass
    try:
        return InMemory(content.read(), content.identity(), content.link)
    except Exception as error:  # of any place that content comes from
        return Unreadable(f"{type(error).__name__}: {error}", content.link)


def summed(parts: Iterable[Mapping[str, float]]) -> dict[str, Any]:
    total: defaultdict[str, Any] = defaultdict(int)
    for part in parts:
        for name, number in part.items():
            total[name] += number
    return total
