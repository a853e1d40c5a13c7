"""A child process: runs the stages on one device over the chunks that its parent hands it, see `children`."""

import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, NamedTuple

from vec_pipeline import device
from vec_pipeline.batches import AllFail
from vec_pipeline.crash_journal import CrashJournal, Suspicion
from vec_pipeline.database import Database, Statement
from vec_pipeline.executor import Executor
from vec_pipeline.memory import BrokenGpu, LoadError, ModelCache
from vec_pipeline.record import Record, Stage, UserError
from vec_pipeline.result_cache import ResultCache

logger = logging.getLogger(__name__)

Chunk = list[Record]


@dataclass(frozen=True)
class Work:
    """What a child is made with; all of it can be pickled.

    begin: called in the child before anything else, to open the log, say.
    """

    stages: tuple[Stage, ...]
    model_cache_size: int
    clear_threshold_gb: float
    images_gb: float
    read_threads: int
    source_columns: Mapping[str, str]
    max_consecutive_errors: int
    cpu_threads: int
    fingerprint: Callable[[Stage], str]
    begin: Callable[[], None]


@dataclass
class Figures:
    """What a child has done so far, as `Executor` has it."""

    seconds: dict[str, float] = field(default_factory=dict)
    load_seconds: dict[str, float] = field(default_factory=dict)
    retries: dict[str, int] = field(default_factory=dict)
    chunks: int = 0
    images: int = 0
    holds_all: bool = True


class Failed(NamedTuple):
    """Why a child has ended: is_of_device where another device might do better."""

    message: str
    is_of_device: bool


class RemoteDatabase(Database):
    """A database of the parent."""

    def __init__(self, name: str, connection: "Connection[Any, Any]", lock: threading.Lock) -> None:
        super().__init__(None, "")
        self._name, self._link, self._one_at_a_time = name, connection, lock

    def read(self, query: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = self._ask("read", query, parameters)
        return rows

    def write(self, *statements: Statement) -> None:
        self._ask("write", *((sql, list(rows)) for sql, rows in statements))

    def _ask(self, method: str, *arguments: Any) -> Any:
        with self._one_at_a_time:
            self._link.send((self._name, method, arguments))
            error, answer = self._link.recv()
        if error:
            raise UserError(error)
        return answer


def serve(name: str, work: Work, connection: "Connection[Any, Any]", store: "Connection[Any, Any]") -> None:
    """A child: annotates chunks until it is told to stop, or the parent is gone."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which `stop` raises
    os.setpgrp()  # Ctrl-C in a terminal signals a whole group: the parent decides
    for number in (signal.SIGTERM, signal.SIGHUP):  # which Slurm and systemd send to every process
        signal.signal(number, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = str(work.cpu_threads)  # read when torch is imported
    parent = Sender(connection)
    chunks: SimpleQueue[tuple[Chunk, dict[str, Suspicion]]] = SimpleQueue()
    threading.Thread(target=hear, args=(connection, chunks), name="parent", daemon=True).start()
    try:
        work.begin()
        device.use_one_gpu([name] if name.startswith("cuda") else [])
        run_executor(name, work, parent, store, chunks)
    except KeyboardInterrupt:
        parent.send("stopped")
    except BaseException as error:
        parent.send("failed", failure_of(error))
    threading.Event().wait()  # for `quit`: the parent may still be reading


class Sender:
    """What a child has to say; its threads say one thing at a time."""

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self._connection, self._one_at_a_time = connection, threading.Lock()

    def send(self, kind: str, value: Any = None) -> None:
        with self._one_at_a_time:
            self._connection.send((kind, value))


def failure_of(error: BaseException) -> Failed:
    if not isinstance(error, UserError):
        logger.exception("the child has failed")
        return Failed(f"{type(error).__name__}: {error}", is_of_device=True)
    return Failed(str(error), isinstance(error, LoadError | BrokenGpu | AllFail))


def hear(connection: "Connection[Any, Any]", chunks: "SimpleQueue[Any]") -> None:
    """The thread that hears the parent: it may say something, or be gone, in the middle of a batch."""
    try:
        while True:
            kind, *value = connection.recv()
            if kind == "chunk":
                chunks.put(value)
            elif kind == "stop":
                os.kill(os.getpid(), signal.SIGINT)
            else:
                break
    except Exception:  # it has ended, or a signal has interrupted it in the middle of a message
        pass
    os._exit(0)


def run_executor(
    name: str,
    work: Work,
    parent: "Sender",
    store: "Connection[Any, Any]",
    chunks: "SimpleQueue[Any]",
) -> None:
    lock, stages = threading.Lock(), [on_device(stage, name) for stage in work.stages]
    results = ResultCache(None, work.fingerprint, RemoteDatabase("results", store, lock))
    journal = CrashJournal(None, RemoteDatabase("journal", store, lock))
    models = ModelCache(stages, work.model_cache_size, work.clear_threshold_gb, work.images_gb)
    logger.info("%s: %s", name, models.summary)
    executor = Executor(
        stages, models, results, journal, work.read_threads, work.source_columns, work.max_consecutive_errors
    )
    if executor.has_two_at_work:
        device.leave_half_the_cores()

    given: deque[Chunk] = deque()

    def asked_for() -> Iterator[Chunk]:
        while True:
            parent.send("next")
            chunk, suspicions = chunks.get()
            journal.learn(suspicions)
            given.append(chunk)
            yield chunk

    for chunk in executor(asked_for()):
        if not given or chunk is not given[0]:  # of several chunks, what was complete when the executor was stopped
            parent.send("part", chunk)
            continue
        given.popleft()
        figures = Figures(
            dict(executor.seconds), dict(models.load_seconds), dict(executor.retries),
            executor.chunks, executor.images, models.holds_all,
        )  # fmt: skip
        parent.send("done", (chunk, figures))


def on_device(stage: Stage, name: str) -> Stage:
    """The stage with its models on a device, unless it is to stay on the CPU."""
    kind = "cuda" if name.startswith("cuda") else "cpu"
    has_choice = any(each.name == "device" for each in fields(stage)) and getattr(stage, "device", "") != "cpu"
    own: dict[str, Any] = {"device": kind}
    return replace(stage, **own) if has_choice else stage
