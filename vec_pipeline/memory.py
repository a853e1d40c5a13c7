"""Keeping models and batches inside the memory there is. The only place that knows about running out of it."""

import contextlib
import gc
import logging
import sys
import threading
import time
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from vec_pipeline.device import gpu_free_gb, host_free_gb
from vec_pipeline.record import Need, Record, Stage, UserError

logger = logging.getLogger(__name__)

OUT_OF_MEMORY_SIGNS = {  # in the text of an exception, with its name -> who says so
    "OutOfMemoryError": "torch",
    "out of memory": "torch on a GPU, CUDA, llama.cpp loading and decoding",
    "can't allocate memory": "torch on the host",
    "CUBLAS_STATUS_ALLOC_FAILED": "cuBLAS",
    "CUBLAS_STATUS_NOT_INITIALIZED": "cuBLAS, where there is no room for its handle",
    "CUDNN_STATUS_ALLOC_FAILED": "cuDNN",
    "MemoryError": "Python, numpy, llama.cpp's weights and context, and ModelCache where psutil sees too little",
    "llama.cpp: decoding failed": "llama.cpp, where a decode fails for any other reason",
    "LlamaDied": "the process of llama.cpp, which ends where a decode cannot allocate, or is killed by the kernel",
}
BROKEN_GPU_SIGN = "CUDA error:"  # any but out of memory: every later call of this process fails too


class LoadError(UserError):
    """A model could not be loaded, not even with the device to itself."""


@dataclass(frozen=True)
class Failure:
    """What went wrong, as text: the exception itself would keep the tensors of its frames alive."""

    message: str
    is_out_of_memory: bool


class ModelCache:
    """The models in memory, least recently used first, and their only owner. Threads may share it.

    capacity: models held at most.
    clear_threshold_gb: memory, on the GPU and on the host, that must stay free beside a model about to be loaded.
    """

    def __init__(self, capacity: int, clear_threshold_gb: float) -> None:
        self.capacity = capacity
        self.clear_threshold_gb = clear_threshold_gb
        self.load_seconds: defaultdict[str, float] = defaultdict(float)  # by stage name
        self._models: OrderedDict[Stage, Any] = OrderedDict()
        self._pins: Counter[Stage] = Counter()  # how many threads use a model
        self._changed = threading.Condition()  # of both

    @contextlib.contextmanager
    def use(self, stage: Stage) -> Iterator[Any]:
        """The stage's model, loaded if need be; it cannot be evicted inside the block. Raises LoadError."""
        if type(stage).load is Stage.load:  # it has none, and must not take the place of one
            yield None
            return
        with self._changed:
            if stage not in self._models:
                self._make_room(stage)
                self._models[stage] = self._load(stage)
            self._models.move_to_end(stage)
            self._pins[stage] += 1
        try:
            yield self._models[stage]
        finally:
            with self._changed:
                self._pins[stage] -= 1
                self._changed.notify_all()

    def keep_only(self, stage: Stage) -> bool:
        """Evict every other model, once nobody uses it; say whether there was one."""
        has_evicted = False
        with self._changed:
            while others := [other for other in self._models if other != stage]:
                self._evict_one_of(others)
                has_evicted = True
        release()
        return has_evicted

    def close(self) -> None:
        """Let go of every model, also of one that a thread left behind still uses.

        Where such a thread is still loading one, that may take minutes, and is not waited for.
        """
        is_loading = not self._changed.acquire(timeout=1)
        for model in list(self._models.values()):
            close_model(model)
        if not is_loading:
            self._models.clear()
            self._changed.release()
        release()

    def _make_room(self, stage: Stage) -> None:
        while len(self._models) >= self.capacity:
            self._evict_one_of(list(self._models))
        if self._victims(stage.need()):
            release()  # what torch keeps for later counts as taken
        while victims := self._victims(stage.need()):
            self._evict_one_of(victims)

    def _evict_one_of(self, stages: list[Stage]) -> None:
        """Evict the first that nobody uses, or wait until that may have changed."""
        free = next((stage for stage in stages if not self._pins[stage]), None)
        if free is None:
            self._changed.wait()
        else:
            self._evict(free)

    def _victims(self, need: Need) -> list[Stage]:
        """The models that hold memory of the kind that is short; none where none is short."""
        free_gpu_gb = gpu_free_gb()
        gpu_is_short = free_gpu_gb is not None and free_gpu_gb < need.gpu_gb + self.clear_threshold_gb
        host_is_short = host_free_gb() < need.host_gb + self.clear_threshold_gb
        return [
            stage
            for stage, held in ((stage, stage.need()) for stage in self._models)
            if (gpu_is_short and (held.gpu_gb or not held.host_gb)) or (host_is_short and not held.gpu_gb)
        ]

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
        if host_free_gb() < stage.need().host_gb:  # the kernel would end the process instead of failing the load
            raise MemoryError(
                f"it needs {stage.need().host_gb:.1f} GB of host memory, {host_free_gb():.1f} GB are free"
            )
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
        close_model(model)
        del model
        release()
        gpu_gb, host_gb = (gpu_free_gb() or 0.0) - before_gpu_gb, host_free_gb() - before_host_gb
        logger.info("evicted %s: %.2f GB GPU, %.2f GB host freed", stage.name, gpu_gb, max(host_gb, 0.0))


def close_model(model: Any) -> None:
    """End the child process of llama.cpp, where it is one, and with it all memory it holds."""
    if close := getattr(model, "close", None):
        close()


class Turns:
    """Two threads that annotate side by side until memory is short; from then on one chunk at a time is at work."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = 0
        self._are_taken = False

    def begin(self) -> None:
        """Take turns from here on, this thread first."""
        self._are_taken = True
        self.take()

    def take(self) -> None:
        """Wait for this thread's turn, where turns are taken."""
        if self._are_taken and self._owner != threading.get_ident():
            self._lock.acquire()
            self._owner = threading.get_ident()

    def give(self) -> None:
        """Let the other thread go on."""
        if self._owner == threading.get_ident():
            self._owner = 0
            self._lock.release()


class Job(Protocol):
    """What `fit` does with batches of records, and how it can get by with less memory."""

    def run(self, records: list[Record], size: int) -> None:
        """Work through the records, `size` of them at once."""
        ...

    def relieve(self) -> bool:
        """Free memory that others hold; say whether there was any."""
        ...

    def shrink(self, record: Record) -> bool:
        """Make one record smaller; say whether that was possible."""
        ...

    def blame(self, record: Record, message: str) -> None:
        """Write the failure into the record."""
        ...


def fit(job: Job, records: Iterable[Record], size: int, proven_size: int = 0, window: int = 1) -> int:
    """Work through the records, `size` of them at once; return the size that fitted in the end.

    Out of memory: first other models are evicted, then the size is halved, and one record alone is made smaller as
    long as that helps. Sizes over `proven_size`, where it is known, are an attempt to grow, and halved at once. Any
    other failure of a batch: row by row, so that one bad row costs one row. A batch is `window` times the size.
    """
    waiting = deque(records)
    while waiting:
        batch = [waiting.popleft() for _ in range(min(window * size, len(waiting)))]
        at_once = min(size, len(batch))
        failure = attempt(job, batch, at_once)
        is_growing = 0 < proven_size < at_once
        if failure and failure.is_out_of_memory and not is_growing and job.relieve():
            logger.warning("out of memory: other models evicted, the batch of %d is tried again", len(batch))
            failure = attempt(job, batch, at_once)
        if failure is None:
            continue
        if len(batch) == 1:
            last_resort(job, batch[0], failure)
        elif failure.is_out_of_memory and at_once > 1:
            size = at_once // 2
            logger.warning("out of memory: %d at once from here", size)
            waiting.extendleft(reversed(batch))
        else:
            for record in batch:  # one of them is bad: find it alone
                fit(job, [record], 1)
    return size


def last_resort(job: Job, record: Record, failure: Failure | None) -> None:
    """Try one record smaller and smaller while memory is what lacks; then it gets its error."""
    while failure and failure.is_out_of_memory and job.shrink(record):
        logger.warning("out of memory: %s is tried with fewer pixels", record.key)
        failure = attempt(job, [record], 1)
    if failure:
        job.blame(record, failure.message)


def attempt(job: Job, records: list[Record], size: int) -> Failure | None:
    """Try once. A UserError passes through: no smaller batch would mend it."""
    try:
        job.run(records, size)
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
