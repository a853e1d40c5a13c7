"""Every stage over chunks of records, by three workers: the reading threads, this process, and a child process."""

import contextlib
import logging
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Queue
from types import MappingProxyType
from typing import Any, TypeVar

from vec_pipeline.batches import PIXELS_LOWERED, Batches, Streak, put
from vec_pipeline.contract import source_values
from vec_pipeline.crash_journal import CrashJournal
from vec_pipeline.memory import ModelCache
from vec_pipeline.record import Record, Stage, UserError, Values
from vec_pipeline.result_cache import ResultCache, hash_in

logger = logging.getLogger(__name__)

Chunk = list[Record]
Item = TypeVar("Item")
READ_TOGETHER = 8  # images that a thread takes at once: the journal's marks cost more than a small image
# ENOENT, EIO, ENOTCONN, EHOSTDOWN, ESTALE; or no network at all
SYSTEMIC = re.compile(r"\S+: (?:NoNetwork: |\w+: \[Errno (2|5|107|112|116)\])")


class Stopped(BaseException):
    """The run is ending: raised between batches in a thread that works beside the caller's."""


class Executor:
    """Runs stages over chunks: one chunk is read while others are worked on in this process and in the child.

    Two models are at work at the same time wherever the model cache holds both.

    stages: in the order of the configuration.
    threads: number of images read and decoded at once.
    source_columns: that come with each record, and their types.
    max_consecutive_errors: images in a row that may fail in one stage with one kind of error; then the run stops.
    """

    def __init__(
        self,
        stages: Iterable[Stage],
        models: ModelCache,
        results: ResultCache,
        journal: CrashJournal,
        threads: int,
        source_columns: Mapping[str, str] = MappingProxyType({}),
        max_consecutive_errors: int = 50,
    ) -> None:
        self.stages = list(stages)
        self.readers, self.local, self.child = by_worker(self.stages)
        self.models = models
        self.results = results
        self.journal = journal
        self.threads = threads
        self.source_columns = source_columns
        self.streaks = {stage.name: Streak(max_consecutive_errors) for stage in self.stages}
        self.reading_streak = Streak(max_consecutive_errors)
        self.proven: dict[Stage, int] = {}  # rows at once that fitted last time
        self.seconds: defaultdict[str, float] = defaultdict(float)  # by stage name, loading included
        self.retries: Counter[str] = Counter()  # by stage name, batches that failed and were tried in halves
        self.at_work: list[str] = []  # names of stages, at this moment
        self.chunks = self.images = 0  # that have gone through every stage
        self._is_stopping = threading.Event()
        self._unfinished: list[Chunk] = []  # being read or annotated
        made = [stage.outputs[own] for stage in self.stages for own in stage.intermediates]
        contents = [name for name, kind in source_columns.items() if kind == "content"]
        self._intermediates = {*made, *contents, PIXELS_LOWERED, "content"}

    def __call__(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Yield each chunk annotated; when interrupted, first the rows that are complete by then."""
        self._unfinished, self._is_stopping = [], threading.Event()
        with contextlib.ExitStack() as stack:
            stack.callback(self._is_stopping.set)
            pool = ThreadPoolExecutor(self.threads, thread_name_prefix="read")
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)
            read = in_thread(self._read(chunks, pool), 1, stack)
            annotated = in_thread(self._annotate(self.local, read), 2, stack)  # neither waits if a chunk takes long
            try:
                for chunk in self._annotate(self.child, annotated):
                    self._unfinished.remove(chunk)
                    self.chunks, self.images = self.chunks + 1, self.images + len(chunk)
                    yield self._finished(chunk)
            except GeneratorExit:
                raise
            except BaseException:
                self._is_stopping.set()
                yield self._finished([r for chunk in self._unfinished for r in chunk if self._is_complete(r)])
                raise

    @property
    def has_two_at_work(self) -> bool:
        """Whether this process and the child work at the same time on the same cores."""
        has_child_at_work = any(not stage.is_remote for stage in self.child)
        return has_child_at_work and self.models.holds_all and not any(stage.need().gpu_gb for stage in self.stages)

    def _read(self, chunks: Iterable[Chunk], pool: ThreadPoolExecutor) -> Iterator[Chunk]:
        models = {stage.name: stage.load() for stage in self.readers}
        for chunk in chunks:
            self._unfinished.append(chunk)
            for record in chunk:
                given, record.values = source_values(record.values, self.source_columns), {}
                record.give({**given, "image_path": record.key})
                if name := self.journal.fatal_stage(record.key):
                    record.error = f"{name}: ProcessDied: it was in flight when the process died, and again, alone"
            alive = [record for record in chunk if not record.error]
            groups = [alive[start : start + READ_TOGETHER] for start in range(0, len(alive), READ_TOGETHER)]
            list(pool.map(lambda group: self._read_group(group, models), groups))
            broken = self._count_failures(chunk)
            yield chunk
            if broken:
                raise broken

    def _read_group(self, records: Chunk, models: dict[str, Any]) -> None:
        for record in records:
            hash_in(record, "content")  # before it is read: a later change must not go unnoticed
        for stage in self.readers:
            ready = [record for record in records if stage.is_ready(record.values)]
            self._batches(stage, models[stage.name]).run(ready, READ_TOGETHER)
        for record in records:
            for name in record.values.keys() & self._intermediates:
                hash_in(record, name)  # here, where it keeps no model waiting

    def _count_failures(self, chunk: Chunk) -> UserError | None:
        """Cut the chunk before a series of failed readings; what was read well before is annotated first.

        Only what a whole drive can have counts, never what a picture is.
        """
        for number, record in enumerate(chunk, 1):
            try:
                self.reading_streak.note(record.error if SYSTEMIC.match(record.error) else "")
            except UserError as error:
                del chunk[max(0, number - self.reading_streak.limit) :]
                return error
        return None

    def _annotate(self, stages: list[Stage], chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Yield chunks with these stages done: stages outside, records inside, so a model is swapped once a chunk."""
        for chunk in chunks:
            alive = [record for record in chunk if not self.journal.fatal_stage(record.key)]
            for stage in stages:
                with self._timed(stage):
                    ready = [record for record in alive if stage.is_ready(record.values)]
                    self._run_stage(stage, [record for record in ready if stage.name not in record.without])
            yield chunk

    def _run_stage(self, stage: Stage, records: list[Record]) -> None:
        """Take the results there are, run one record of each other key, then the copies of those that were shrunk."""
        keys = {record.key: self.results.key(stage, record) for record in records}
        cached = self.results.find(set(keys.values()))
        found = {key: result for key, each in cached.items() if (result := stage.restored(each)) is not None}

        def keep(done: list[Record]) -> None:
            names = stage.outputs.items()
            new = {keys[r.key]: {own: r.written(name) for own, name in names} for r in done}
            self.results.store({key: without(result, stage.in_files) for key, result in new.items()})
            found.update(new)

        def without_result(records: Iterable[Record]) -> list[Record]:
            return [record for record in records if not self._take_result(stage, record, found.get(keys[record.key]))]

        missing = without_result(records)
        if not missing:
            return
        firsts = {keys[record.key]: record for record in reversed(missing)}
        copies = [record for record in missing if firsts[keys[record.key]] is not record]
        with self.models.use(stage) as model:
            batches = self._batches(stage, model, keep)
            most, proven = self._batch_size(stage, model), self.proven.get(stage, 0)
            size = min(2 * proven or most, most)  # grow back after memory ran out
            size = batches.run([record for record in missing if firsts[keys[record.key]] is record], size, proven)
            copies = [r for r in without_result(copies) if not batches.fails_alike(firsts[keys[r.key]], r)]
            self.proven[stage] = batches.run(copies, size, size)

    def _take_result(self, stage: Stage, record: Record, result: Values | None) -> bool:
        if result is None:
            return False
        put(stage, record, result)
        record.done.add(stage.name)
        return True

    def _batch_size(self, stage: Stage, model: Any) -> int:
        if stage.batch_size != "auto":
            return stage.batch_size
        size = stage.auto_batch_size(model, self.models.reserved_gb(stage))
        if stage not in self.proven:
            logger.info("%s: batch_size auto is %d", stage.name, size)
        return size

    def _batches(self, stage: Stage, model: Any, keep: Any = lambda _: None) -> Batches:
        streak = self.streaks[stage.name]
        return Batches(stage, model, self.models, self.journal, streak, keep, self._may_begin, self.retries)

    @contextlib.contextmanager
    def _timed(self, stage: Stage) -> Iterator[None]:
        """A block that is the stage's work, for the progress bar and the summary."""
        start_s = time.monotonic()
        self.at_work.append(stage.name)
        try:
            yield
        finally:
            self.seconds[stage.name] += time.monotonic() - start_s
            self.at_work.remove(stage.name)

    def _may_begin(self) -> None:
        if self._is_stopping.is_set():
            raise Stopped

    def _finished(self, records: Chunk) -> Chunk:
        """Intermediates, such as the pixels, end here; and so does the suspicion of images that have lived."""
        self.journal.clear([record.key for record in records if not self.journal.fatal_stage(record.key)])
        for record in records:
            record.take_back()
            for name in self._intermediates & record.values.keys():
                del record.values[name]
        return records

    def _is_complete(self, record: Record) -> bool:
        stages = (*self.local, *self.child)
        return all(stage.name in record.done or stage.name in record.without for stage in stages)


def without(result: Values, names: Sequence[str]) -> Values:
    return {name: value for name, value in result.items() if name not in names}


def by_worker(stages: Sequence[Stage]) -> tuple[list[Stage], list[Stage], list[Stage]]:
    """Those of the reading threads, of this process, and of a child process with all that read what they write."""
    readers: list[Stage] = []
    local: list[Stage] = []
    child: list[Stage] = []
    of_child: set[str] = set()
    for stage in stages:
        if stage.worker == "reader":
            readers.append(stage)
        elif stage.worker == "child" or of_child.intersection(stage.input_names):
            child.append(stage)
            of_child.update(stage.outputs.values())
        else:
            local.append(stage)
    return readers, local, child


def in_thread(items: Iterator[Item], ahead: int, stack: contextlib.ExitStack) -> Iterator[Item]:
    """Yield items while the next `ahead` are made in another thread; what is raised there is raised here."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="worker")
    stack.callback(thread.shutdown, wait=False, cancel_futures=True)
    coming: Queue[Future[Item | None]] = Queue()
    for _ in range(ahead):
        coming.put(thread.submit(next, items, None))
    while (item := coming.get().result()) is not None:
        coming.put(thread.submit(next, items, None))
        yield item
