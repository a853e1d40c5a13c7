"""Batches are fitted into the memory there is, and models leave it in turn."""

import threading
import weakref
from collections.abc import Callable

import pytest

from tests.fakes import (
    OUT_OF_MEMORY,
    Describe,
    EmbedImage,
    EmbedText,
    Journal,
    Model,
    StubbornDescribe,
    records,
)
from vec_pipeline import memory
from vec_pipeline.engines.llama_process import LlamaDied
from vec_pipeline.memory import LoadError, ModelCache, Turns, fit
from vec_pipeline.record import Need, Record, Stage, UserError

EIGHT = "abcdefgh"


class Batches:
    """A job that notes its batches.

    largest_batch: above it the memory runs out.
    poison: the one record that fails for another reason.
    others: models that could be evicted.
    sides: of a record alone, how often it can be halved before it fits.
    """

    def __init__(self, largest_batch: int = 8, poison: str = "", others: int = 0, halvings: int = 0) -> None:
        self.largest_batch = largest_batch
        self.poison = poison
        self.others = others
        self.halvings = halvings
        self.batches: list[str] = []
        self.errors: dict[str, str] = {}

    def run(self, batch: list[Record], size: int) -> None:
        self.batches.append("".join(record.key for record in batch))
        if any(record.key == self.poison for record in batch):
            raise ValueError("bad\n image")
        if len(batch) > self.largest_batch:
            raise RuntimeError(OUT_OF_MEMORY)

    def relieve(self) -> bool:
        self.others -= 1
        return self.others >= 0

    def shrink(self, record: Record) -> bool:
        self.halvings -= 1
        self.largest_batch += self.halvings == 0
        return self.halvings >= 0

    def blame(self, record: Record, message: str) -> None:
        self.errors[record.key] = message


def test_what_fits_is_one_pass() -> None:
    job = Batches()
    assert fit(job, records(*EIGHT), 3) == 3
    assert job.batches == ["abc", "def", "gh"]


def test_out_of_memory_halves_the_batch_and_is_remembered() -> None:
    job = Batches(largest_batch=2)
    assert fit(job, records(*EIGHT), 8) == 2
    assert job.batches == ["abcdefgh", "abcd", "ab", "cd", "ef", "gh"]
    assert not job.errors


def test_a_stage_that_refills_gets_windows_and_halves_what_runs_at_once() -> None:
    sizes = []

    class Refilling(Batches):
        def run(self, batch: list[Record], size: int) -> None:
            sizes.append((len(batch), size))
            if size > 2:
                raise MemoryError

    job = Refilling()
    assert fit(job, records(*"abcdefghijklmnopqrst"), 4, window=4) == 2
    assert sizes == [(16, 4), (8, 2), (8, 2), (4, 2)]


def test_one_row_too_large_is_found_in_a_window_of_one_at_a_time() -> None:
    job = Batches(largest_batch=3)
    assert fit(job, records(*"abcd"), 1, window=4) == 1
    assert job.batches == ["abcd", "a", "b", "c", "d"]
    assert not job.errors


def test_other_models_leave_before_the_batch_is_halved() -> None:
    job = Batches(largest_batch=4, others=1)
    assert fit(job, records(*EIGHT), 8) == 4
    assert job.batches == ["abcdefgh", "abcdefgh", "abcd", "efgh"]


def test_an_attempt_to_grow_is_halved_without_evicting_others() -> None:
    job = Batches(largest_batch=2, others=1)
    assert fit(job, records(*"abcd"), 4, proven_size=2) == 2
    assert job.batches == ["abcd", "ab", "cd"]
    assert job.others == 1


def test_a_broken_gpu_ends_the_run_instead_of_blaming_every_image() -> None:
    class BrokenGpu(Batches):
        def run(self, batch: list[Record], size: int) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    job = BrokenGpu()
    with pytest.raises(UserError, match="the GPU failed"):
        fit(job, records(*EIGHT), 4)
    assert not job.errors


def test_another_failure_is_looked_for_row_by_row() -> None:
    job = Batches(poison="c")
    assert fit(job, records(*EIGHT), 4) == 4
    assert job.batches == ["abcd", "a", "b", "c", "d", "efgh"]
    assert job.errors == {"c": "ValueError: bad image"}


def test_one_record_alone_is_shrunk_until_it_fits() -> None:
    job = Batches(largest_batch=0, halvings=2)
    fit(job, records("a", "b"), 1)
    assert job.batches == ["a", "a", "a", "b"]
    assert not job.errors


def test_one_record_that_never_fits_is_blamed_and_the_next_is_tried() -> None:
    job = Batches(largest_batch=0)
    fit(job, records("a", "b"), 2)
    assert job.batches == ["ab", "a", "b"]
    assert job.errors == dict.fromkeys("ab", f"RuntimeError: {OUT_OF_MEMORY}")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(OUT_OF_MEMORY),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        MemoryError(),
        LlamaDied("the llama.cpp process ended by signal SIGABRT: CUDA error: out of memory"),
        LlamaDied("the llama.cpp process ended by signal SIGKILL: it left no message"),
    ],
)
def test_each_way_to_run_out_of_memory_is_recognised(error: Exception) -> None:
    assert memory.describe_failure(error).is_out_of_memory


def test_a_user_error_passes_through() -> None:
    class Refusing(Batches):
        def run(self, batch: list[Record], size: int) -> None:
            super().run(batch, size)
            raise UserError("connect once to download it")

    job = Refusing()
    with pytest.raises(UserError):
        fit(job, records(*EIGHT), 8)
    assert job.batches == [EIGHT]


def test_tensors_of_the_failed_frame_are_gone_before_memory_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.logger, "propagate", False)  # pytest keeps log records, and so their exceptions

    class Tensor:
        pass

    class Watched(Batches):
        references: tuple[weakref.ref[Tensor], ...] = ()
        alive_at_relief: tuple[bool, ...] = ()

        def run(self, batch: list[Record], size: int) -> None:
            tensor = Tensor()
            self.references += (weakref.ref(tensor),)
            super().run(batch, size)

        def relieve(self) -> bool:
            self.alive_at_relief += tuple(reference() is not None for reference in self.references)
            return super().relieve()

    job = Watched(largest_batch=1)
    fit(job, records("a", "b"), 2)
    assert job.alive_at_relief == (False,)


@pytest.fixture
def free_gb(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The memory that is free, as the cache sees it; plenty unless a test says otherwise."""
    free = {"gpu": 100.0, "host": 100.0}
    monkeypatch.setattr(memory, "gpu_free_gb", lambda: free["gpu"])
    monkeypatch.setattr(memory, "host_free_gb", lambda: free["host"])
    return free


@pytest.fixture
def journal() -> Journal:
    return Journal()


def stages_of(journal: Journal) -> tuple[Stage, Stage, Stage]:
    return Describe(journal=journal), EmbedText(journal=journal), EmbedImage(journal=journal)


def load(cache: ModelCache, stage: Stage) -> Model:
    """Use the stage's model for a moment."""
    with cache.use(stage) as model:
        assert isinstance(model, Model)
        return model


def test_the_least_recently_used_model_leaves_and_is_closed(journal: Journal, free_gb: dict[str, float]) -> None:
    describe, embed_text, embed_image = stages_of(journal)
    cache = ModelCache(2, 1.0)
    for stage in (describe, embed_text, describe, embed_image, describe):
        assert load(cache, stage).name == stage.name
    assert journal.loads == ["describe", "embed_text", "embed_image"]
    assert journal.closes == ["embed_text"]


@pytest.mark.parametrize("kind", ["gpu", "host"])
def test_models_leave_until_enough_memory_is_free(
    kind: str, journal: Journal, free_gb: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One GB must stay free, each model takes three of ten, and the new one needs five."""
    describe, embed_text, embed_image = stages_of(journal)
    monkeypatch.setattr(EmbedImage, "need", lambda self: Need(gpu_gb=5.0) if kind == "gpu" else Need(host_gb=5.0))

    def free() -> float:
        return 10.0 - 3.0 * (len(journal.loads) - len(journal.closes))

    monkeypatch.setattr(memory, f"{kind}_free_gb", free)
    cache = ModelCache(5, 1.0)
    for stage in (describe, embed_text, embed_image):
        load(cache, stage)
    assert journal.closes == ["describe"]


def test_a_model_in_host_memory_stays_when_the_gpu_is_short(
    journal: Journal, free_gb: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    describe, embed_text, embed_image = stages_of(journal)
    monkeypatch.setattr(Describe, "need", lambda self: Need(gpu_gb=3.0))
    monkeypatch.setattr(EmbedText, "need", lambda self: Need(host_gb=3.0))
    cache = ModelCache(5, 1.0)
    load(cache, embed_text)
    load(cache, describe)
    free_gb["gpu"] = 2.0
    load(cache, embed_image)
    assert journal.closes == ["describe"]


def test_the_threshold_stays_free_beside_a_model_of_unknown_size(journal: Journal, free_gb: dict[str, float]) -> None:
    describe, embed_text, _ = stages_of(journal)
    cache = ModelCache(5, clear_threshold_gb=2.0)
    load(cache, describe)
    free_gb["gpu"] = 1.9
    load(cache, embed_text)
    assert journal.closes == ["describe"]


def test_keep_only_evicts_the_others(journal: Journal, free_gb: dict[str, float]) -> None:
    describe, embed_text, embed_image = stages_of(journal)
    cache = ModelCache(5, 1.0)
    for stage in (describe, embed_text, embed_image):
        load(cache, stage)
    assert cache.keep_only(embed_text) is True
    assert sorted(journal.closes) == ["describe", "embed_image"]
    assert cache.keep_only(embed_text) is False


def test_closing_the_cache_closes_every_model(journal: Journal, free_gb: dict[str, float]) -> None:
    cache = ModelCache(5, 1.0)
    for stage in stages_of(journal):
        load(cache, stage)
    cache.close()
    assert sorted(journal.closes) == sorted(journal.loads)


def test_a_failed_load_is_tried_again_with_the_device_to_itself(journal: Journal, free_gb: dict[str, float]) -> None:
    cache = ModelCache(5, 1.0)
    load(cache, EmbedText(journal=journal))
    assert load(cache, StubbornDescribe(failures=1, journal=journal)).name == "describe"
    assert journal.loads == ["embed_text", "describe", "describe"]
    assert journal.closes == ["embed_text"]


@pytest.mark.parametrize("is_alone", [True, False])
def test_a_model_that_cannot_be_loaded_is_named(is_alone: bool, journal: Journal, free_gb: dict[str, float]) -> None:
    cache = ModelCache(5, 1.0)
    if not is_alone:
        load(cache, EmbedText(journal=journal))
    with pytest.raises(LoadError, match=r"^describe: .*CUDA out of memory"):
        load(cache, StubbornDescribe(failures=9, journal=journal))
    assert journal.loads.count("describe") == (1 if is_alone else 2)


def test_tensors_of_a_failed_load_are_gone_before_the_next(
    journal: Journal, free_gb: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory.logger, "propagate", False)
    references: list[weakref.ref[object]] = []
    alive: list[bool] = []
    original: Callable[..., object] = StubbornDescribe.load

    def load_half(self: StubbornDescribe) -> object:
        alive.extend(reference() is not None for reference in references)
        weights = Journal()  # stands for gigabytes that are half loaded when the memory ends
        references.append(weakref.ref(weights))
        return original(self)

    monkeypatch.setattr(StubbornDescribe, "load", load_half)
    cache = ModelCache(5, 1.0)
    load(cache, EmbedText(journal=journal))
    load(cache, StubbornDescribe(failures=1, journal=journal))
    assert alive == [False]


def test_too_little_host_memory_is_a_failed_load_and_not_a_killed_process(
    journal: Journal, free_gb: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EmbedText, "need", lambda self: Need(host_gb=5.0))
    free_gb["host"] = 4.0
    with pytest.raises(LoadError, match=r"needs 5.0 GB of host memory, 4.0 GB are free"):
        load(ModelCache(5, 1.0), EmbedText(journal=journal))
    assert journal.loads == []


def test_a_model_in_use_by_another_thread_stays_until_it_is_free(journal: Journal, free_gb: dict[str, float]) -> None:
    describe, embed_text, _ = stages_of(journal)
    cache = ModelCache(1, 1.0)
    other = threading.Thread(target=load, args=(cache, embed_text), daemon=True)
    with cache.use(describe):
        other.start()
        other.join(0.2)
        assert journal.loads == ["describe"]
        assert journal.closes == []
    other.join(20)
    assert journal.closes == ["describe"]
    assert journal.loads == ["describe", "embed_text"]


def test_turns_are_free_until_they_begin() -> None:
    turns = Turns()
    turns.take()
    turns.begin()
    order = []

    def other() -> None:
        turns.take()
        order.append("other")
        turns.give()

    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    thread.join(0.2)
    order.append("first")
    turns.take()  # a second time in one turn
    turns.give()
    thread.join(20)
    assert order == ["first", "other"]


def test_a_stage_without_a_model_takes_no_place(journal: Journal, free_gb: dict[str, float]) -> None:
    describe, _, _ = stages_of(journal)
    cache = ModelCache(1, 1.0)
    load(cache, describe)
    with cache.use(Stage()) as model:
        assert model is None
    assert journal.closes == []


def test_closing_does_not_wait_for_a_model_that_is_being_loaded(journal: Journal, free_gb: dict[str, float]) -> None:
    is_loading, go_on = threading.Event(), threading.Event()

    class SlowDescribe(Describe):
        def load(self) -> Model:
            is_loading.set()
            assert go_on.wait(20)
            return super().load()

    def load() -> None:
        with cache.use(SlowDescribe(journal=journal)):
            pass

    cache = ModelCache(5, 1.0)
    with cache.use(EmbedText(journal=journal)):
        pass
    thread = threading.Thread(target=load)
    thread.start()
    assert is_loading.wait(20)
    cache.close()
    assert journal.closes == ["embed_text"]
    assert not go_on.is_set()
    go_on.set()
    thread.join()
