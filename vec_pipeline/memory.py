"""Models in the memory there is, and what running out of it looks like."""

import contextlib
import gc
import logging
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from vec_pipeline import device
from vec_pipeline.record import Need, Stage, UserError

logger = logging.getLogger(__name__)

OUT_OF_MEMORY_SIGNS = {  # in the text of an exception, with its name -> who says so
    "OutOfMemoryError": "torch",
    "out of memory": "torch on a GPU, CUDA and Apple's; llama.cpp loading and decoding",
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


class BrokenGpu(UserError):  # noqa: N818 (it says what happened)
    """A GPU has failed: only another process can go on with it."""


@dataclass(frozen=True)
class Failure:
    """What went wrong, as text: the exception itself would keep the tensors of its frames alive."""

    message: str
    is_out_of_memory: bool
    is_of_gpu: bool  # every later call of this process fails too


class ModelCache:
    """The models in memory, least recently used first, and their only owner. Threads may share it.

    Stages that are `loaded_as` the same share one model. A model in use stays. Where two threads need models that do
    not fit together, one waits for the other to finish its stage; where all fit, neither ever waits.

    stages: all that will be used.
    capacity: models held at most.
    clear_threshold_gb: memory, on the GPU and on the host, that must stay free beside a model about to be loaded.
    images_gb: host memory that the images at work take.
    holds_all: whether all models and their rows at work fit into what is free now.
    summary: the figures behind that.
    """

    def __init__(
        self, stages: Iterable[Stage], capacity: int, clear_threshold_gb: float, images_gb: float = 0.0
    ) -> None:
        self.capacity = capacity
        self.clear_threshold_gb = clear_threshold_gb
        self.load_seconds: defaultdict[str, float] = defaultdict(float)  # by stage name
        self._needs = largest_needs(stage for stage in stages if stage.worker != "reader")
        self._models: OrderedDict[Stage, Any] = OrderedDict()
        self._in_use: set[Stage] = set()
        self._reserved_for: Stage | None = None  # memory ran out for it: no other may begin
        self._changed = threading.Condition()  # any of these
        self.holds_all, self.summary = self._fit_together(images_gb)

    def _fit_together(self, images_gb: float) -> tuple[bool, str]:
        needs = self._needs.values()
        models = sum(bool(need.gpu_gb or need.host_gb) for need in needs)
        gpu_gb = sum(need.gpu_gb + need.rows_gb for need in needs if need.gpu_gb)
        host_gb = images_gb + sum(need.host_gb + need.rows_gb for need in needs if not need.gpu_gb)
        free_gpu_gb = (device.gpu_free_gb() if gpu_gb and device.has_gpu() else None) or 0.0
        free_host_gb = device.host_free_gb()
        holds_all = (
            host_gb + self.clear_threshold_gb <= free_host_gb
            and (not gpu_gb or gpu_gb + self.clear_threshold_gb <= free_gpu_gb)
            and models <= self.capacity
        )
        gpu = f"{gpu_gb:.1f} of {free_gpu_gb:.1f} GB GPU memory, " if gpu_gb else ""
        return holds_all, (
            f"{models} models and their rows {'fit' if holds_all else 'do not fit'} together "
            f"({gpu}{host_gb:.1f} of {free_host_gb:.1f} GB host memory; at most {self.capacity} models)"
        )

    @contextlib.contextmanager
    def use(self, stage: Stage) -> Iterator[Any]:
        """The stage's model, loaded if need be; no other thread can use or evict it meanwhile. Raises LoadError."""
        stage = stage.loaded_as
        with self._changed:
            self._changed.wait_for(lambda: self._reserved_for in (None, stage) and stage not in self._in_use)
            try:
                if type(stage).load is not Stage.load:  # else it has none, and must not take the place of one
                    self._hold(stage)
                self._in_use.add(stage)
            except BaseException:
                self._end_reservation(stage)
                raise
        try:
            yield self._models.get(stage)
        finally:
            with self._changed:
                self._in_use.discard(stage)
                self._end_reservation(stage)

    def keep_only(self, stage: Stage) -> bool:
        """Evict every other model, once nobody uses it, and keep others out until the stage is no longer in use.

        Return whether that freed anything: not where there was no other, or another stage has asked before.
        """
        stage, has_evicted = stage.loaded_as, False
        with self._changed:
            if self._reserved_for not in (None, stage):
                return False
            self._reserved_for = stage
            while others := [other for other in self._here() if other != stage]:
                has_evicted |= self._evict_one_of(others)
        release()
        return has_evicted

    def reserved_gb(self, stage: Stage) -> float:
        """Memory of the stage's kind to be left to models that are not loaded yet, where all are to stay loaded."""
        if not self.holds_all:
            return 0.0
        stage = stage.loaded_as
        on_gpu = bool(self._needs[stage].gpu_gb)
        others = [need for other, need in self._needs.items() if other not in self._models and other != stage]
        return sum((need.gpu_gb or need.host_gb) + need.rows_gb for need in others if bool(need.gpu_gb) == on_gpu)

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

    def _hold(self, stage: Stage) -> None:
        while stage not in self._models:
            victims = [] if stage.is_remote else self._victims(stage.need())
            if self._reserved_for not in (None, stage):
                self._changed.wait()
            elif victims:
                self._evict_one_of(victims)
            else:
                self._models[stage] = self._load(stage)
        self._models.move_to_end(stage)

    def _here(self) -> list[Stage]:
        """Those whose models are in this machine's memory, least recently used first."""
        return [stage for stage in self._models if not stage.is_remote]

    def _end_reservation(self, stage: Stage) -> None:
        if self._reserved_for == stage and stage not in self._in_use:
            self._reserved_for = None
        self._changed.notify_all()

    def _evict_one_of(self, stages: list[Stage]) -> bool:
        """Evict the first that nobody uses, or wait until that may have changed."""
        unused = next((stage for stage in stages if stage not in self._in_use), None)
        if unused is None:
            self._changed.wait()
        else:
            self._evict(unused)
        return unused is not None

    def _victims(self, need: Need) -> list[Stage]:
        """The models that may make way: all where the cache is full, else those with memory that is short."""
        models = self._here()
        if len(models) >= self.capacity:
            return models
        if models and any(self._short_of(need)):
            release()  # what torch keeps for later counts as taken
        gpu_is_short, host_is_short = self._short_of(need)
        return [
            stage
            for stage, held in ((stage, stage.need()) for stage in models)
            if (gpu_is_short and (held.gpu_gb or not held.host_gb)) or (host_is_short and not held.gpu_gb)
        ]

    def _short_of(self, need: Need) -> tuple[bool, bool]:
        """Whether memory of the GPU, and of the host, is short."""
        free_gpu_gb = device.gpu_free_gb()
        gpu_is_short = free_gpu_gb is not None and free_gpu_gb < need.gpu_gb + self.clear_threshold_gb
        return gpu_is_short, device.host_free_gb() < need.host_gb + self.clear_threshold_gb

    def _load(self, stage: Stage, *, is_second: bool = False) -> Any:
        """Load a model, if need be a second time with the device to itself. Raises LoadError."""
        failure = None
        try:
            return self._timed_load(stage)
        except UserError:
            raise
        except Exception as error:
            failure = describe_failure(error)
            logger.warning("loading %s failed (%s)", stage.name, failure.message, exc_info=True)
        has_died = "LlamaDied" in failure.message  # whatever ended it may not do so twice
        if is_second or not (self.keep_only(stage) or has_died):
            raise LoadError(f"{stage.name}: the model cannot be loaded: {failure.message}")
        logger.warning("loading %s again, with the device to itself", stage.name)
        return self._load(stage, is_second=True)

    def _timed_load(self, stage: Stage) -> Any:
        if device.host_free_gb() < stage.need().host_gb:  # the kernel would end the process instead of failing the load
            raise MemoryError(
                f"it needs {stage.need().host_gb:.1f} GB of host memory, {device.host_free_gb():.1f} GB are free"
            )
        before_gpu_gb, before_host_gb, start_s = device.gpu_free_gb() or 0.0, device.host_free_gb(), time.monotonic()
        model = stage.load()
        seconds = time.monotonic() - start_s
        self.load_seconds[stage.name] += seconds
        gpu_gb, host_gb = before_gpu_gb - (device.gpu_free_gb() or 0.0), before_host_gb - device.host_free_gb()
        logger.info("loaded %s in %.1f s: %.2f GB GPU, %.2f GB host", stage.name, seconds, gpu_gb, max(host_gb, 0.0))
        return model

    def _evict(self, stage: Stage) -> None:
        model = self._models.pop(stage)
        before_gpu_gb, before_host_gb = device.gpu_free_gb() or 0.0, device.host_free_gb()
        close_model(model)
        del model
        release()
        gpu_gb, host_gb = (device.gpu_free_gb() or 0.0) - before_gpu_gb, device.host_free_gb() - before_host_gb
        logger.info("evicted %s: %.2f GB GPU, %.2f GB host freed", stage.name, gpu_gb, max(host_gb, 0.0))


def largest_needs(stages: Iterable[Stage]) -> dict[Stage, Need]:
    """What each model needs, with the rows of the stage that needs most of those that share it."""
    needs: dict[Stage, Need] = {}
    for stage in stages:
        need, key = stage.need(), stage.loaded_as
        if key not in needs or need.rows_gb > needs[key].rows_gb:
            needs[key] = need
    return needs


def close_model(model: Any) -> None:
    """End the child process of llama.cpp, where it is one, and with it all memory it holds."""
    if close := getattr(model, "close", None):
        close()


def describe_failure(error: Exception) -> Failure:
    """Put an exception into one line of text, and recognise the kinds that other inputs share."""
    message = f"{type(error).__name__}: {' '.join(str(error).split())}"
    is_out_of_memory = any(sign in message for sign in OUT_OF_MEMORY_SIGNS)
    return Failure(message[:500], is_out_of_memory, BROKEN_GPU_SIGN in message and not is_out_of_memory)


def release() -> None:
    """Give freed memory back to the device."""
    gc.collect()
    if torch := device.imported_torch():
        with contextlib.suppress(RuntimeError):  # after a failed kernel the next CUDA call may raise once more
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            if torch.backends.mps.is_available():
                torch.mps.empty_cache()
