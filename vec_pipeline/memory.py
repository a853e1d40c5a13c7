"""Keeping models and batches inside the memory there is. The only place that knows about running out of it."""

import contextlib
import gc
import logging
import sys
import time
from collections import OrderedDict, defaultdict, deque
from dataclasses import dataclass
from typing import Any, Protocol

from vec_pipeline.device import gpu_free_gb, host_free_gb
from vec_pipeline.record import Need, Record, Stage, UserError

logger = logging.getLogger(__name__)

OUT_OF_MEMORY_SIGNS = (
    "out of memory",
    "MemoryError",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # what cuBLAS says where there is no room for its handle
    "CUDNN_STATUS_ALLOC_FAILED",
    "signal SIGKILL",  # a child process that the kernel ended for its memory
)
BROKEN_GPU_SIGN = "CUDA error:"  # any but out of memory: every later call of this process fails too


class LoadError(UserError):
    """A model could not be loaded, not even with the device to itself."""


@dataclass(frozen=True)
class Failure:
    """What went wrong, as text: the exception itself would keep the tensors of its frames alive."""

    message: str
    is_out_of_memory: bool


class ModelCache:
    """The models in memory, least recently used first, and their only owner.

    capacity: models held at most.
    clear_threshold_gb: memory, on the GPU and on the host, that must stay free beside a model about to be loaded.
    """

    def __init__(self, capacity: int, clear_threshold_gb: float) -> None:
        self.capacity = capacity
        self.clear_threshold_gb = clear_threshold_gb
        self.load_seconds: defaultdict[str, float] = defaultdict(float)  # by stage name
        self._models: OrderedDict[Stage, Any] = OrderedDict()

    def get(self, stage: Stage) -> Any:
        """Return the stage's model, loaded if need be. Raises LoadError."""
        if stage not in self._models:
            self._make_room(stage)
            self._models[stage] = self._load(stage)
        self._models.move_to_end(stage)
        return self._models[stage]

    def keep_only(self, stage: Stage) -> bool:
        """Evict every other model; say whether there was one."""
        others = [other for other in self._models if other != stage]
        for other in others:
            self._evict(other)
        release()
        return bool(others)

    def close(self) -> None:
        """Evict every model."""
        while self._models:
            self._evict(next(iter(self._models)))

    def _make_room(self, stage: Stage) -> None:
        while len(self._models) >= self.capacity:
            self._evict(next(iter(self._models)))
        release()  # what torch keeps for later counts as taken
        while (victim := self._victim(stage.need())) is not None:
            self._evict(victim)

    def _victim(self, need: Need) -> Stage | None:
        """The least recently used model that holds memory of the kind that is short; None where none is short."""
        free_gpu_gb = gpu_free_gb()
        gpu_is_short = free_gpu_gb is not None and free_gpu_gb < need.gpu_gb + self.clear_threshold_gb
        host_is_short = host_free_gb() < need.host_gb + self.clear_threshold_gb
        for stage in self._models:
            held = stage.need()
            if (gpu_is_short and (held.gpu_gb or not held.host_gb)) or (host_is_short and not held.gpu_gb):
                return stage
        return None

    def _load(self, stage: Stage) -> Any:
        failure = None
        try:
            return self._timed_load(stage)
        except UserError:
            raise
        except Exception as error:
            failure = describe_failure(error)
            logger.warning("loading %s failed (%s)", stage.name, failure.message, exc_info=True)
        if not self.keep_only(stage):
            raise LoadError(f"{stage.name}: the model cannot be loaded: {failure.message}")
        logger.warning("loading %s again with the device to itself", stage.name)
        try:
            return self._timed_load(stage)
        except Exception as error:
            raise LoadError(f"{stage.name}: the model cannot be loaded: {describe_failure(error).message}") from error

    def _timed_load(self, stage: Stage) -> Any:
        before_gpu_gb, before_host_gb, start_s = gpu_free_gb() or 0.0, host_free_gb(), time.monotonic()
        model = stage.load()
        seconds = time.monotonic() - start_s
        self.load_seconds[stage.name] += seconds
        gpu_gb, host_gb = before_gpu_gb - (gpu_free_gb() or 0.0), before_host_gb - host_free_gb()
        logger.info("loaded %s in %.1f s: %.2f GB GPU, %.2f GB host", stage.name, seconds, gpu_gb, max(host_gb, 0.0))
        return model

    def _evict(self, stage: Stage) -> None:
        model = self._models.pop(stage)
        before_gpu_gb, before_host_gb = gpu_free_gb() or 0.0, host_free_gb()
        if close := getattr(model, "close", None):
            close()  # llama.cpp frees device memory here, not when Python collects the object
        del model
        release()
        gpu_gb, host_gb = (gpu_free_gb() or 0.0) - before_gpu_gb, host_free_gb() - before_host_gb
        logger.info("evicted %s: %.2f GB GPU, %.2f GB host freed", stage.name, gpu_gb, max(host_gb, 0.0))


class Job(Protocol):
    """What `fit` does with batches of records, and how it can get by with less memory."""

    def run(self, records: list[Record]) -> None: ...
    def relieve(self) -> bool:
        """Free memory that others hold; say whether there was any."""
        ...

    def shrink(self, record: Record) -> bool:
        """Make one record smaller; say whether that was possible."""
        ...

    def blame(self, record: Record, message: str) -> None:
        """Write the failure into the record."""
        ...


def fit(job: Job, records: list[Record], size: int, proven_size: int = 0) -> int:
    """Work through the records in batches of `size`; return the size that fitted in the end.

    Out of memory: first other models are evicted, then the batch is halved, and one record alone is made smaller as
    long as that helps. Batches over `proven_size`, where it is known, are an attempt to grow, and halved at once. Any
    other failure of a batch: row by row, so that one bad row costs one row.
    """
    waiting = deque(records)
    while waiting:
        batch = [waiting.popleft() for _ in range(min(size, len(waiting)))]
        failure = attempt(job, batch)
        is_growing = 0 < proven_size < len(batch)
        if failure and failure.is_out_of_memory and not is_growing and job.relieve():
            logger.warning("out of memory: other models evicted, the batch of %d is tried again", len(batch))
            failure = attempt(job, batch)
        if failure is None:
            continue
        if len(batch) == 1:
            last_resort(job, batch[0], failure)
        elif failure.is_out_of_memory:
            size = len(batch) // 2
            logger.warning("out of memory: batches of %d from here", size)
            waiting.extendleft(reversed(batch))
        else:
            for record in batch:  # one of them is bad: find it alone
                fit(job, [record], 1)
    return size


def last_resort(job: Job, record: Record, failure: Failure | None) -> None:
    """Try one record smaller and smaller while memory is what lacks; then it gets its error."""
    while failure and failure.is_out_of_memory and job.shrink(record):
        logger.warning("out of memory: %s is tried with fewer pixels", record.key)
        failure = attempt(job, [record])
    if failure:
        job.blame(record, failure.message)


def attempt(job: Job, records: list[Record]) -> Failure | None:
    """Try once. A UserError passes through: no smaller batch would mend it."""
    try:
        job.run(records)
    except UserError:
        raise
    except Exception as error:
        logger.warning("a batch of %d failed: %s", len(records), ", ".join(r.key for r in records), exc_info=True)
        failure = describe_failure(error)
        if BROKEN_GPU_SIGN in failure.message and not failure.is_out_of_memory:
            raise UserError(f"the GPU failed ({failure.message[:200]}): run the same command again") from None
        return failure
    return None


def describe_failure(error: Exception) -> Failure:
    """Put an exception into one line of text, and recognise the ones about memory."""
    message = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return Failure(message[:500], any(sign in message for sign in OUT_OF_MEMORY_SIGNS))


def release() -> None:
    """Give freed memory back to the device."""
    gc.collect()
    if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
        with contextlib.suppress(RuntimeError):  # after a failed kernel the next CUDA call may raise once more
            torch.cuda.empty_cache()
