"""Every stage over one chunk of records: the unit the loop maps."""

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vec_pipeline.ledger import Ledger
from vec_pipeline.memory import ModelCache, attempt, fit
from vec_pipeline.record import Record, Stage, Values

logger = logging.getLogger(__name__)

Chunk = list[Record]
SMALLEST_SIDE_PX = 56  # an image is not shrunk below this to make it fit in memory


class Annotator:
    """Runs stages over chunks; those that run ahead do so in threads, one chunk before the models.

    stages: in the order of the configuration.
    cache: owns the models.
    ledger: asked before a stage runs, and told after.
    fingerprints: what identifies each stage's results in the ledger.
    threads: number of images read and decoded at once.
    """

    def __init__(
        self, stages: Iterable[Stage], cache: ModelCache, ledger: Ledger, fingerprints: dict[Stage, str], threads: int
    ) -> None:
        stages = list(stages)
        self.ahead_stages = [stage for stage in stages if stage.runs_ahead]
        self.stages = [stage for stage in stages if not stage.runs_ahead]
        self.working_values = {name for stage in stages for name in stage.makes}
        self.cache = cache
        self.ledger = ledger
        self.fingerprints = fingerprints
        self.threads = threads
        self.proven_sizes: dict[Stage, int] = {}  # batch sizes that fitted last time
        self.seconds: defaultdict[str, float] = defaultdict(float)  # by stage name, loading included
        self.current = ""  # what is being done at this moment, for the progress bar

    def __call__(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Yield each chunk annotated; when interrupted, first the rows of the current one that are complete."""
        with ThreadPoolExecutor(self.threads, thread_name_prefix="read") as pool:
            try:
                for chunk in self._read_ahead(chunks, pool):
                    try:
                        self._annotate(chunk)
                    except BaseException:
                        yield self._finished([record for record in chunk if self._is_complete(record)])
                        raise
                    yield self._finished(chunk)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _read_ahead(self, chunks: Iterable[Chunk], pool: ThreadPoolExecutor) -> Iterator[Chunk]:
        models = [(stage, stage.load()) for stage in self.ahead_stages]

        def prepare(record: Record) -> Record:
            for stage, model in models:
                job = StageRun(stage, model)
                if is_ready(stage, record) and (failure := attempt(job, [record])):
                    job.blame(record, failure.message)
            return record

        waiting: Iterator[Record] | None = None
        for chunk in chunks:
            reading = pool.map(prepare, chunk)
            if waiting is not None:
                yield list(waiting)
            waiting = reading
        if waiting is not None:
            yield list(waiting)

    def _annotate(self, chunk: Chunk) -> None:
        readable = [record for record in chunk if "content_hash" in record.values]
        for stage in self.stages:  # stages outside, records inside: a model is swapped at most once a chunk
            start_s = time.monotonic()
            self.current = stage.name
            try:
                self._run_stage(stage, [record for record in readable if is_ready(stage, record)])
            finally:
                self.seconds[stage.name] += time.monotonic() - start_s
        self.current = ""
        self.ledger.forgive(record.values["content_hash"] for record in readable if not record.error)

    def _finished(self, records: Chunk) -> Chunk:
        """Working values, such as the pixels, end here."""
        for record in records:
            for name in self.working_values & record.values.keys():
                del record.values[name]
        return records

    def _run_stage(self, stage: Stage, records: list[Record]) -> None:
        """Fill in what is known, run one record of each remaining content, and copy its results to its duplicates."""
        self._recall(stage, records)
        unknown = [record for record in records if not has(stage, record)]
        first_of = {record.values["content_hash"]: record for record in reversed(unknown)}
        unique = [record for record in unknown if first_of[record.values["content_hash"]] is record]
        self._fit(stage, unique)
        for record in unknown:
            first = first_of[record.values["content_hash"]]
            record.values |= {name: first.values[name] for name in stage.writes if name in first.values}
            record.error = record.error or first.error

    def _recall(self, stage: Stage, records: list[Record]) -> None:
        found = self.ledger.recall(self.fingerprints[stage], {record.values["content_hash"] for record in records})
        for record in records:
            record.values |= found.get(record.values["content_hash"], {})

    def _fit(self, stage: Stage, records: list[Record]) -> None:
        job = ModelRun(stage, self.cache, self.ledger, self.fingerprints[stage])
        known = self.ledger
        calm = [record for record in records if not known.is_suspect(record.values["content_hash"])]
        if calm:
            proven = self.proven_sizes.get(stage, 0)
            size = min(2 * proven or stage.batch_size, stage.batch_size)  # grow back after memory ran out
            self.proven_sizes[stage] = fit(job, calm, size, proven)
        suspects = [record for record in records if known.is_suspect(record.values["content_hash"])]
        suspects.sort(key=lambda record: known.deaths[record.values["content_hash"]])
        for record in suspects:  # last and alone, so that a kill costs the others nothing; the most suspect at the end
            if known.is_fatal(record.values["content_hash"]):
                job.blame(record, "ProcessDied: this image killed the process again and again")
            else:
                fit(job, [record], 1)

    def _is_complete(self, record: Record) -> bool:
        return all(has(stage, record) for stage in self.stages)


def is_ready(stage: Stage, record: Record) -> bool:
    """Whether all the stage reads is there: an earlier failure stops only what depends on it."""
    return all(name in record.values for name in stage.reads)


def has(stage: Stage, record: Record) -> bool:
    return all(name in record.values for name in stage.writes)


def not_finite(result: Values) -> str:
    """Say which vector of a result holds NaN or an infinity; empty where none does."""
    bad = [name for name, value in result.items() if isinstance(value, np.ndarray) and not np.isfinite(value).all()]
    return f"ValueError: {', '.join(bad)} holds a value that is not finite" if bad else ""


class StageRun:
    """One stage at work on batches of records: the job that `fit` and `attempt` are given."""

    def __init__(self, stage: Stage, model: Any = None) -> None:
        self.stage = stage
        self.model = model

    def run(self, records: list[Record]) -> None:
        rows = [self.row(record) for record in records]
        for record, result in zip(records, self.stage.run(self.model, rows), strict=True):
            if failure := result.pop("error", "") or not_finite(result):
                self.blame(record, failure)
            record.values |= {name: value for name, value in result.items() if not not_finite({name: value})}
            logger.debug("%s: %s is done", record.key, self.stage.name)

    def row(self, record: Record) -> Values:
        """What the stage is given of a record."""
        return {name: record.values[name] for name in self.stage.reads}

    def relieve(self) -> bool:
        return False

    def shrink(self, record: Record) -> bool:
        return False

    def blame(self, record: Record, message: str) -> None:
        record.error = record.error or f"{self.stage.name}: {message}"


class ModelRun(StageRun):
    """The same with the model from the cache, results kept in the ledger, and ways to get by with less memory."""

    def __init__(self, stage: Stage, cache: ModelCache, ledger: Ledger, fingerprint: str) -> None:
        super().__init__(stage)
        self.cache = cache
        self.ledger = ledger
        self.fingerprint = fingerprint
        self._smaller: dict[str, Any] = {}  # images with fewer pixels, by key: for this stage only

    def row(self, record: Record) -> Values:
        row = super().row(record)
        return {**row, "image": self._smaller[record.key]} if record.key in self._smaller else row

    def run(self, records: list[Record]) -> None:
        self.model = self.cache.get(self.stage)
        try:
            with self.ledger.in_flight([record.values["content_hash"] for record in records]):
                super().run(records)
        finally:
            self.model = None  # the cache alone owns models
        done = [record for record in records if has(self.stage, record) and record.key not in self._smaller]
        self.ledger.store(self.fingerprint, {r.values["content_hash"]: self._results(r) for r in done})
        logger.info("%s: a batch of %d", self.stage.name, len(records))

    def _results(self, record: Record) -> Values:
        return {name: record.values[name] for name in self.stage.writes}

    def relieve(self) -> bool:
        return self.cache.keep_only(self.stage)

    def shrink(self, record: Record) -> bool:
        """Halve the sides of the image the stage reads."""
        image = self.row(record).get("image")
        if image is None or max(image.size) < 2 * SMALLEST_SIDE_PX:
            return False
        self._smaller[record.key] = image.resize((max(1, image.width // 2), max(1, image.height // 2)))
        return True
