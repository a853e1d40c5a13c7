"""One stage over a list of records: in batches that fit into memory, with those that fail found and left out."""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vec_pipeline.contract import check_results, is_finite, normalised
from vec_pipeline.crash_journal import CrashJournal
from vec_pipeline.memory import BrokenGpu, Failure, ModelCache, describe_failure
from vec_pipeline.record import Interrupted, Record, Stage, UserError, Values

logger = logging.getLogger(__name__)

SMALLEST_SIDE_PX = 56  # an image is not shrunk below this to make it fit into memory
REFILLS = 8  # a stage that refills gets so many rows for each that it has in memory at once
REMOTE_REFILLS = 2  # where a server has the model: a run that is killed loses few answers, which may be paid for
PIXELS_LOWERED = "pixels_lowered"  # the intermediate of a record whose image was shrunk


class AllFail(UserError):  # noqa: N818 (it says what happened)
    """Too many images in a row have failed with the same error: the cause is not the images."""


class Streak:
    """Failures in a row: where `limit` images have the same error in one stage, the images are not the cause."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kind = ""
        self._length = 0

    def note(self, error: str) -> None:
        """Count an image's error, empty where it went well. Raises UserError at the limit."""
        kind = ": ".join(error.split(": ")[:2])
        self._length = self._length + 1 if kind == self._kind else 1
        self._kind = kind
        if kind and self._length >= self.limit:
            raise AllFail(
                f"{self._length} images in a row failed with the same error ({error[:300]}): they are not saved; "
                "fix the cause, or raise max_consecutive_errors if it is the images, then rerun"
            )


@dataclass
class Batches:
    """One stage at work.

    keep: called after each batch with the records whose results may be stored.
    may_begin: called before each batch; it raises where the run has ended.
    smaller: images with fewer pixels than they had, by key: for this stage only.
    errors: of this stage, by key.
    retries: by stage name, how many batches failed for another reason than memory, and were tried in halves.
    """

    stage: Stage
    model: Any
    models: ModelCache
    journal: CrashJournal
    streak: Streak
    keep: Callable[[list[Record]], None] = lambda _: None
    may_begin: Callable[[], None] = lambda: None
    retries: Counter[str] = field(default_factory=Counter)
    smaller: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def run(self, records: list[Record], at_once: int, proven: int = 0) -> int:
        """Work through the records, `at_once` of them in memory; return how many fitted in the end.

        Out of memory: first other models are evicted, then `at_once` is halved; for one record alone, the model saves
        memory where it can, and then the image is made smaller as long as that helps. Beyond `proven`, where it is
        known, `at_once` is an attempt to grow, and halved at once.
        Any other failure: the batch is halved until the records that fail are alone.
        """
        waiting = [records] if records else []  # the next batch is the last
        while waiting:
            batch = waiting.pop()
            now = self.journal.fitting(batch, at_once * self._refills())
            if rest := batch[len(now) :]:
                waiting.append(rest)
            size = min(at_once, len(now))
            failure = self._attempt(now, size)
            is_growing = 0 < proven < size
            if failure and failure.is_out_of_memory and not is_growing and self._evict_others():
                logger.warning("out of memory: other models evicted, the batch of %d is tried again", len(now))
                failure = self._attempt(now, size)
            if not failure:
                continue
            if failure.is_out_of_memory and size > 1:
                at_once = size // 2
                logger.warning("out of memory: %d at once from here", at_once)
                waiting.append(now)
            elif len(now) > 1:
                if not failure.is_out_of_memory and self.stage.worker != "reader":  # there a bad file is nothing rare
                    self.retries[self.stage.name] += 1
                waiting += [now[len(now) // 2 :], now[: len(now) // 2]]
            elif failure.is_out_of_memory and self.stage.save_memory(self.model):
                logger.warning("out of memory: %s saves memory from here, and is slower", self.stage.name)
                waiting.append(now)
            elif failure.is_out_of_memory and self._shrink(now[0]):
                logger.warning("out of memory: %s is tried with fewer pixels", now[0].key)
                waiting.append(now)
            else:
                self._fail(now[0], failure.message)
        return at_once

    def _refills(self) -> int:
        if not self.stage.refills:
            return 1
        return REMOTE_REFILLS if self.stage.is_remote else REFILLS

    def _attempt(self, batch: list[Record], at_once: int) -> Failure | None:
        """Try once. A UserError passes through: no smaller batch would help."""
        try:
            self._call(batch, at_once)
        except UserError:
            raise
        except Exception as error:
            names = ", ".join(record.key for record in batch)
            shows_traceback = len(batch) == 1 or self.stage.worker != "reader"
            logger.warning("%s: a batch of %d failed: %s", self.stage.name, len(batch), names, exc_info=shows_traceback)
            failure = describe_failure(error)
            if failure.is_of_gpu:
                self.journal.count_death([record.key for record in batch], self.stage.name)
                raise BrokenGpu(f"the GPU failed ({failure.message[:200]}): rerun the same command") from None
            return failure
        return None

    def _call(self, batch: list[Record], at_once: int) -> None:
        self.may_begin()
        try:
            with self.journal.in_flight([record.key for record in batch], self.stage.name):
                results = self.stage.run(self.model, [self._row(record) for record in batch], at_once)
        except Interrupted as error:
            found = [pair for pair in zip(batch, error.results, strict=True) if pair[1] and not pair[1].get("error")]
            self._take_all([record for record, _ in found], [result for _, result in found])
            raise
        self._take_all(batch, results)
        logger.info("%s: a batch of %d, %d at once", self.stage.name, len(batch), at_once)

    def _take_all(self, batch: list[Record], results: list[Values]) -> None:
        check_results(self.stage, results, len(batch))
        for record, result in zip(batch, results, strict=True):
            self._take(record, result)
        done = [record for record in batch if self.stage.name in record.done]
        if done:
            self.streak.note("")
        self.keep([record for record in done if record.key not in self.smaller])

    def _row(self, record: Record) -> Values:
        """What the stage is given of a record."""
        row = self.stage.inputs(record.values)
        return {**row, "image": self.smaller[record.key]} if record.key in self.smaller else row

    def _take(self, record: Record, result: Values) -> None:
        """Put a result into its record."""
        message = result.get("error", "")
        values = {own: normalised(self.stage, own, result[own]) for own in self.stage.outputs if own in result}
        if wrong := [own for own, value in values.items() if not is_finite(value)]:
            message = message or f"ValueError: {', '.join(wrong)} holds a value that is not finite"
        put(self.stage, record, {own: value for own, value in values.items() if own not in wrong})
        if message:
            self._fail(record, message)
        else:
            record.done.add(self.stage.name)
            logger.debug("%s: %s is done", self.stage.name, record.key)

    def _evict_others(self) -> bool:
        return self.stage.worker != "reader" and self.models.keep_only(self.stage)

    def _shrink(self, record: Record) -> bool:
        """Halve the sides of the image that the stage reads; return whether that was possible."""
        image = self._row(record).get("image")
        if image is None or max(image.size) < 2 * SMALLEST_SIDE_PX:
            return False
        self.smaller[record.key] = image.resize((max(1, image.width // 2), max(1, image.height // 2)))
        record.values[PIXELS_LOWERED] = True
        return True

    def _fail(self, record: Record, message: str) -> None:
        """Write an error into the record. Those of the reading threads are counted by the executor, in order."""
        self.errors[record.key] = f"{self.stage.name}: {message}"
        record.error = record.error or self.errors[record.key]
        if self.stage.worker != "reader":
            self.streak.note(self.errors[record.key])

    def fails_alike(self, first: Record, copy: Record) -> bool:
        """Give a failure to a record that is the same to the stage; False where there is none, or of fewer pixels."""
        if first.key in self.smaller or first.key not in self.errors:
            return False
        names = self.stage.outputs.values()
        copy.give({name: first.written(name) for name in names})
        copy.error = copy.error or self.errors[first.key]
        return True


def put(stage: Stage, record: Record, values: Values) -> None:
    """Give a record a stage's values; one that is None is left out, and stages that read it do not run."""
    names = stage.outputs
    record.give({names[own]: value for own, value in values.items()})
