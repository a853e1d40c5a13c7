"""Every stage over one chunk of records: the unit the loop maps."""

import contextlib
import dataclasses
import logging
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from vec_pipeline.ledger import Ledger
from vec_pipeline.memory import ModelCache, Turns, attempt, fit
from vec_pipeline.record import Record, Stage, UserError, Values

logger = logging.getLogger(__name__)

Chunk = list[Record]
Item = TypeVar("Item")
SMALLEST_SIDE_PX = 56  # an image is not shrunk below this to make it fit in memory
READ_TOGETHER = 8  # images that a thread takes at once: the ledger's marks cost more than a small image
PIXELS_LOWERED = "pixels_lowered"  # the working value of a record whose image was shrunk


class Stopped(BaseException):
    """The run is ending: raised between batches in a thread that works beside the caller's."""


class Annotator:
    """Runs stages over chunks, in two lanes: those of this process, then those that compute in another one.

    Stages that run ahead (reading and decoding) do so in threads, one chunk before the first lane.

    stages: in the order of the configuration.
    cache: owns the models.
    ledger: asked before a stage runs, and told after.
    fingerprints: what identifies each stage's results in the ledger.
    threads: number of images read and decoded at once.
    overlap: run the lanes side by side, the second on one chunk and the first on the next two.
    max_consecutive_errors: images in a row that may fail in one stage with one kind of error; then the run stops.
    """

    def __init__(
        self,
        stages: Iterable[Stage],
        cache: ModelCache,
        ledger: Ledger,
        fingerprints: dict[Stage, str],
        threads: int,
        overlap: bool = False,
        max_consecutive_errors: int = 50,
    ) -> None:
        stages = list(stages)
        self.ahead_stages = [stage for stage in stages if stage.runs_ahead]
        self.lanes = lanes_of(stages)
        self.path_stages = dependents(stages, lambda stage: "path" in (*stage.reads, *stage.may_read))
        self.working_values = {name for stage in stages for name in stage.makes} | {PIXELS_LOWERED}
        self.cache = cache
        self.ledger = ledger
        self.fingerprints = fingerprints
        self.threads = threads
        self.overlap = overlap
        self.streaks = {stage: Streak(max_consecutive_errors) for stage in stages}
        self.reading_streak = Streak(max_consecutive_errors)
        self.turns = Turns()
        self.proven_sizes: dict[Stage, int] = {}  # batch sizes that fitted last time
        self.seconds: defaultdict[str, float] = defaultdict(float)  # by stage name, loading included
        self.at_work: dict[int, str] = {}  # lane -> stage, at this moment
        self.chunks = self.images = 0  # that have gone through every stage
        self.is_stopping = threading.Event()
        self._to_load = list(self.lanes[1])  # before the first lane's first batch, where they run side by side
        self._most_in_flight = sys.maxsize
        self._unfinished: list[Chunk] = []  # being read or annotated

    @property
    def current(self) -> str:
        """What is being done at this moment, for the progress bar."""
        return " + ".join(name for _, name in sorted(self.at_work.items()))

    def __call__(self, chunks: Iterable[Chunk], most_in_flight: int = sys.maxsize) -> Iterator[Chunk]:
        """Yield each chunk annotated; when interrupted, first the rows that are complete by then.

        most_in_flight: images at work at once, where there is one chunk: those a kill would leave under suspicion.
        """
        self._unfinished, self.is_stopping, self._most_in_flight = [], threading.Event(), most_in_flight
        threads = max(1, min(self.threads, most_in_flight // READ_TOGETHER))
        pool = ThreadPoolExecutor(threads, thread_name_prefix="read")
        try:
            described = self._through(0, self._read_ahead(chunks, pool))
            for chunk in self._through(1, in_thread(described) if self.overlap else described):
                self._unfinished.remove(chunk)
                self.chunks, self.images = self.chunks + 1, self.images + len(chunk)
                yield self._finished(chunk)
        except GeneratorExit:
            raise
        except BaseException:
            self.is_stopping.set()
            yield self._finished([r for chunk in self._unfinished for r in chunk if self._is_complete(r)])
            raise
        finally:
            self.is_stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _read_ahead(self, chunks: Iterable[Chunk], pool: ThreadPoolExecutor) -> Iterator[Chunk]:
        """Yield chunks read and decoded, while the next one is on its way."""
        models = {stage: stage.load() for stage in self.ahead_stages}
        for chunk, reading in one_ahead(self._start_reading(chunk, models, pool) for chunk in chunks):
            list(reading)
            broken = self._note_failures(chunk)
            yield chunk
            if broken:
                raise broken

    def _note_failures(self, chunk: Chunk) -> UserError | None:
        """Cut the chunk before a streak of failed readings; what was read well before is annotated first."""
        for number, record in enumerate(chunk, 1):
            try:
                self.reading_streak.note(record.error)
            except UserError as error:
                del chunk[max(0, number - self.reading_streak.limit) :]
                return error
        return None

    def _start_reading(
        self, chunk: Chunk, models: dict[Stage, Any], pool: ThreadPoolExecutor
    ) -> tuple[Chunk, Iterator[None]]:
        self._unfinished.append(chunk)
        size = min(READ_TOGETHER, self._most_in_flight)
        some = [chunk[start : start + size] for start in range(0, len(chunk), size)]
        return chunk, pool.map(lambda records: self._read(records, models), some)

    def _read(self, records: list[Record], models: dict[Stage, Any]) -> None:
        for record in records:
            if self.ledger.is_fatal(record.key):
                stage_name = self.ledger.stages[record.key]
                record.error = f"{stage_name}: ProcessDied: it was in flight when the process died, and again, alone"
        for stage, model in models.items():
            job = StageRun(stage, model)
            readable = [record for record in records if is_ready(stage, record) and not record.error]
            with self.ledger.in_flight([record.key for record in readable], stage.name):
                for record in readable:
                    if failure := attempt(job, [record], 1):
                        job.blame(record, failure.message)

    def _through(self, lane: int, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Yield chunks with every stage of a lane done."""
        for chunk in chunks:
            try:
                self._annotate(lane, [record for record in chunk if "content_hash" in record.values])
            finally:
                self.turns.give()
            yield chunk

    def _annotate(self, lane: int, records: Chunk) -> None:
        for stage in self.lanes[lane]:  # stages outside, records inside: a model is swapped at most once a chunk
            ready = [record for record in records if is_ready(stage, record)]
            with self._timed(lane, stage):
                self._recall(stage, ready)
            unknown = [record for record in ready if not has(stage, record)]
            if unknown and lane == 0 and self.overlap:
                self._load_second_lane(records)
            with self._timed(lane, stage):
                self._run_stage(stage, unknown)

    @contextlib.contextmanager
    def _timed(self, lane: int, stage: Stage) -> Iterator[None]:
        """A block that is the stage's work, for the progress bar and the summary."""
        start_s = time.monotonic()
        self.at_work[lane] = stage.name
        try:
            yield
        finally:
            self.seconds[stage.name] += time.monotonic() - start_s
            self.at_work.pop(lane, None)

    def _finished(self, records: Chunk) -> Chunk:
        """Working values, such as the pixels, end here; and so does the suspicion of images that have lived."""
        self.ledger.forgive([record.key for record in records if not self.ledger.is_fatal(record.key)])
        for record in records:
            for name in self.working_values & record.values.keys():
                del record.values[name]
        return records

    def _run_stage(self, stage: Stage, records: list[Record]) -> None:
        """Run one record of each content, and copy its results to its duplicates."""
        first_of = {self.content(stage, record): record for record in reversed(records)}
        self._fit(stage, [record for record in records if first_of[self.content(stage, record)] is record])
        for record in records:
            first = first_of[self.content(stage, record)]
            results = (*stage.writes, *stage.makes, PIXELS_LOWERED)
            record.values |= {name: first.values[name] for name in results if name in first.values}
            record.error = record.error or first.error

    def content(self, stage: Stage, record: Record) -> str:
        """What decides the stage's results: the image's content, and its path for a stage that depends on that."""
        content_hash: str = record.values["content_hash"]
        return f"{content_hash} {record.key}" if stage in self.path_stages else content_hash

    def _recall(self, stage: Stage, records: list[Record]) -> None:
        found = self._known(stage, records)
        for record in records:
            record.values |= found.get(self.content(stage, record), {})

    def _known(self, stage: Stage, records: list[Record]) -> dict[str, Values]:
        """Results in the ledger, by content."""
        contents = {self.content(stage, record) for record in records} if stage.is_kept else set()
        return self.ledger.recall(self.fingerprints[stage], contents)

    def _fit(self, stage: Stage, records: list[Record]) -> None:
        if not records:
            return
        job = ModelRun(stage, self)
        proven = self.proven_sizes.get(stage, 0)
        most = min(self._batch_size(stage), self._most_in_flight)
        size = min(2 * proven or most, most)  # grow back after memory ran out
        window = min(stage.window, self._most_in_flight // size)
        self.proven_sizes[stage] = fit(job, records, size, proven, window)

    def _load_second_lane(self, records: Chunk) -> None:
        """Load what it will need for these, before the first lane sizes its batches by what is left free."""
        for stage in list(self._to_load):
            known = self._known(stage, records)
            if any(self.content(stage, record) not in known for record in records):
                self.wait_for_turn()
                self._to_load.remove(stage)
                with self._timed(0, stage), self.cache.use(stage):
                    pass

    def _batch_size(self, stage: Stage) -> int:
        if stage.batch_size != "auto":
            return stage.batch_size
        self.wait_for_turn()
        with self.cache.use(stage) as model:
            size = stage.auto_batch_size(model)
        if stage not in self.proven_sizes:
            logger.info("%s: batch_size auto is %d", stage.name, size)
        return size

    def wait_for_turn(self) -> None:
        """Before a load or a batch. Raises Stopped where the run has ended by then."""
        self.turns.take()
        if self.is_stopping.is_set():
            raise Stopped

    def _is_complete(self, record: Record) -> bool:
        return all(has(stage, record) for lane in self.lanes for stage in lane)


def lanes_of(stages: list[Stage]) -> tuple[list[Stage], list[Stage]]:
    """Those at work in this process; and those in a process of their own, with the stages that read what they write."""
    second = dependents(stages, lambda stage: stage.runs_apart)
    return [stage for stage in stages if not stage.runs_ahead and stage not in second], second


def dependents(stages: list[Stage], is_chosen: Callable[[Stage], bool]) -> list[Stage]:
    """The stages chosen, and those that read what such a stage writes; none that runs ahead."""
    found: list[Stage] = []
    written: set[str] = set()
    for stage in (stage for stage in stages if not stage.runs_ahead):
        if is_chosen(stage) or written.intersection((*stage.reads, *stage.may_read)):
            found.append(stage)
            written.update(stage.writes, stage.makes)
    return found


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield items, each after the next one has been made."""
    iterator = iter(items)
    for waiting in iterator:
        for item in iterator:
            yield waiting
            waiting = item
        yield waiting


def in_thread(items: Iterator[Item]) -> Iterator[Item]:
    """Yield items while the next two are made in another thread; what is raised there is raised here.

    Two, so that neither side waits wherever an item takes one of them longer than the other.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="first-lane")
    try:
        coming = deque(thread.submit(next, items, None) for _ in range(2))
        while (item := coming.popleft().result()) is not None:
            coming.append(thread.submit(next, items, None))
            yield item
    finally:
        thread.shutdown(wait=False, cancel_futures=True)


def is_ready(stage: Stage, record: Record) -> bool:
    """Whether all the stage reads is there: an earlier failure stops only what depends on it."""
    return all(name in record.values for name in stage.reads)


def has(stage: Stage, record: Record) -> bool:
    return all(name in record.values for name in stage.writes)


def is_finite(value: Any) -> bool:
    """False for a vector that holds NaN or an infinity."""
    return not isinstance(value, np.ndarray) or bool(np.isfinite(value).all())


class Streak:
    """Failures in a row: where `limit` images fail alike in one stage, it is no image's fault."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kind = ""
        self._length = 0

    def note(self, error: str) -> None:
        """Take note of how an image fared, with an empty error where it went well. Raises UserError at the limit."""
        kind = ": ".join(error.split(": ")[:2])
        self._length = self._length + 1 if kind == self._kind else 1
        self._kind = kind
        if kind and self._length >= self.limit:
            raise UserError(
                f"{self._length} images in a row failed alike ({error[:300]}): the run stops and gives them no rows; "
                "mend the cause, or raise max_consecutive_errors if it is the images"
            )


class StageRun:
    """One stage at work on batches of records: the job that `fit` and `attempt` are given."""

    def __init__(self, stage: Stage, model: Any = None) -> None:
        self.stage = stage
        self.model = model

    def run(self, records: list[Record], size: int) -> None:
        rows = [self.row(record) for record in records]
        stage = self.stage if self.stage.batch_size == size else dataclasses.replace(self.stage, batch_size=size)
        for record, result in zip(records, stage.run(self.model, rows), strict=True):
            failure = result.pop("error", "")
            if bad := [name for name, value in result.items() if not is_finite(value)]:
                failure = failure or f"ValueError: {', '.join(bad)} holds a value that is not finite"
                result = {name: value for name, value in result.items() if name not in bad}
            record.values |= result
            if failure:
                self.blame(record, failure)
            logger.debug("%s: %s is done", record.key, self.stage.name)

    def row(self, record: Record) -> Values:
        """What the stage is given of a record."""
        optional = [name for name in self.stage.may_read if name in record.values]
        return {name: record.values[name] for name in (*self.stage.reads, *optional)}

    def relieve(self) -> bool:
        return False

    def shrink(self, record: Record) -> bool:
        return False

    def blame(self, record: Record, message: str) -> None:
        record.error = record.error or f"{self.stage.name}: {message}"


class ModelRun(StageRun):
    """The same with the model from the cache, results kept in the ledger, and ways to get by with less memory."""

    def __init__(self, stage: Stage, annotator: Annotator) -> None:
        super().__init__(stage)
        self.cache = annotator.cache
        self.ledger = annotator.ledger
        self.turns = annotator.turns
        self.streak = annotator.streaks[stage]
        self.fingerprint = annotator.fingerprints[stage]
        self.content = annotator.content
        self.wait_for_turn = annotator.wait_for_turn
        self._smaller: dict[str, Any] = {}  # images with fewer pixels, by key: for this stage only

    def row(self, record: Record) -> Values:
        row = super().row(record)
        return {**row, "image": self._smaller[record.key]} if record.key in self._smaller else row

    def run(self, records: list[Record], size: int) -> None:
        self.wait_for_turn()
        with self.cache.use(self.stage) as self.model:
            try:
                with self.ledger.in_flight([record.key for record in records], self.stage.name):
                    super().run(records, size)
            finally:
                self.model = None  # the cache alone owns models
        done = [record for record in records if has(self.stage, record)]
        if done:
            self.streak.note("")
        if self.stage.is_kept:
            self._keep([record for record in done if record.key not in self._smaller])
        logger.info("%s: a batch of %d, %d at once", self.stage.name, len(records), size)

    def _keep(self, records: list[Record]) -> None:
        names = (*self.stage.writes, *self.stage.makes)
        results = {self.content(self.stage, r): {n: r.values[n] for n in names if n in r.values} for r in records}
        self.ledger.store(self.fingerprint, results)

    def blame(self, record: Record, message: str) -> None:
        super().blame(record, message)
        self.streak.note(f"{self.stage.name}: {message}")

    def relieve(self) -> bool:
        self.turns.begin()
        return self.cache.keep_only(self.stage)

    def shrink(self, record: Record) -> bool:
        """Halve the sides of the image the stage reads."""
        image = self.row(record).get("image")
        if image is None or max(image.size) < 2 * SMALLEST_SIDE_PX:
            return False
        self._smaller[record.key] = image.resize((max(1, image.width // 2), max(1, image.height // 2)))
        record.values[PIXELS_LOWERED] = True
        return True
