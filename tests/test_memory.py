"""Models share the memory there is: who stays, who is evicted, who waits, and what running out of it looks like."""

import gc
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import pytest

from tests.fakes import OUT_OF_MEMORY, Describe, EmbedImage, EmbedText, Journal, Model, Read, StubbornDescribe
from vec_pipeline import device, memory
from vec_pipeline.engines.llama_process import LlamaDied
from vec_pipeline.memory import LoadError, ModelCache
from vec_pipeline.record import Need, Stage, UserError


@pytest.fixture(autouse=True)
def free_gb(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The memory that is free, as the cache sees it; plenty unless a test says otherwise."""
    free = {"gpu": 100.0, "host": 100.0}
    monkeypatch.setattr(device, "has_gpu", lambda: True)
    monkeypatch.setattr(device, "gpu_free_gb", lambda: free["gpu"])
    monkeypatch.setattr(device, "host_free_gb", lambda: free["host"])
    return free


@pytest.fixture
def journal() -> Journal:
    return Journal()


def stages_of(journal: Journal) -> tuple[Stage, Stage, Stage]:
    return Describe(journal=journal), EmbedText(journal=journal), EmbedImage(journal=journal)


def cache_of(*stages: Stage, capacity: int = 5, clear_threshold_gb: float = 1.0) -> ModelCache:
    return ModelCache(stages, capacity, clear_threshold_gb)


def load(cache: ModelCache, stage: Stage) -> Model:
    """Use the stage's model for a moment."""
    with cache.use(stage) as model:
        assert isinstance(model, Model)
        return model


def is_waiting(thread: threading.Thread) -> bool:
    """Whether a thread that has had time to finish has not."""
    thread.join(0.2)
    return thread.is_alive()


def start(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


# --- which models stay


def test_the_least_recently_used_model_is_evicted_and_closed(journal: Journal) -> None:
    describe, embed_text, embed_image = stages_of(journal)
    cache = cache_of(describe, embed_text, embed_image, capacity=2)
    for stage in (describe, embed_text, describe, embed_image, describe):
        assert load(cache, stage).name == stage.name
    assert journal.loads == ["describe", "embed_text", "embed_image"]
    assert journal.closes == ["embed_text"]


@pytest.mark.parametrize("kind", ["gpu", "host"])
def test_models_are_evicted_until_enough_memory_is_free(
    kind: str, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One GB must stay free, each model takes three of ten, and the new one needs five."""
    describe, embed_text, embed_image = stages_of(journal)
    monkeypatch.setattr(EmbedImage, "need", lambda self: Need(gpu_gb=5.0) if kind == "gpu" else Need(host_gb=5.0))

    def free() -> float:
        return 10.0 - 3.0 * (len(journal.loads) - len(journal.closes))

    monkeypatch.setattr(device, f"{kind}_free_gb", free)
    cache = cache_of(describe, embed_text, embed_image)
    for stage in (describe, embed_text, embed_image):
        load(cache, stage)
    assert journal.closes == ["describe"]


def test_a_model_in_host_memory_stays_when_the_gpu_is_short(
    journal: Journal, free_gb: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    describe, embed_text, embed_image = stages_of(journal)
    monkeypatch.setattr(Describe, "need", lambda self: Need(gpu_gb=3.0))
    monkeypatch.setattr(EmbedText, "need", lambda self: Need(host_gb=3.0))
    cache = cache_of(describe, embed_text, embed_image)
    load(cache, embed_text)
    load(cache, describe)
    free_gb["gpu"] = 2.0
    load(cache, embed_image)
    assert journal.closes == ["describe"]


def test_the_threshold_stays_free_beside_a_model_of_unknown_size(journal: Journal, free_gb: dict[str, float]) -> None:
    describe, embed_text, _ = stages_of(journal)
    cache = cache_of(describe, embed_text, clear_threshold_gb=2.0)
    load(cache, describe)
    free_gb["gpu"] = 1.9
    load(cache, embed_text)
    assert journal.closes == ["describe"]


def test_a_stage_without_a_model_takes_no_place(journal: Journal) -> None:
    describe, _, _ = stages_of(journal)
    cache = cache_of(describe, capacity=1)
    load(cache, describe)
    with cache.use(Stage()) as model:
        assert model is None
    assert journal.closes == []


def test_stages_of_equal_options_share_a_model_whatever_they_are_called(journal: Journal) -> None:
    one = EmbedText(journal=journal)
    other = EmbedText(name="embed_title", read={"text": "title"}, journal=journal)
    cache = cache_of(one, other)
    assert load(cache, one) is load(cache, other)
    assert journal.loads == ["embed_text"]


@dataclass(frozen=True, kw_only=True)
class Asked(EmbedText):
    """A stage whose model answers any question."""

    call_options: ClassVar[tuple[str, ...]] = ("question",)
    question: str = ""

    def need(self) -> Need:
        return Need(host_gb=1.0, rows_gb=float(len(self.question)))


def test_stages_that_differ_in_what_they_ask_share_a_model(journal: Journal, free_gb: dict[str, float]) -> None:
    short, long = Asked(question="a", journal=journal), Asked(question="abcde", journal=journal)
    other = EmbedText(journal=journal)
    free_gb["host"] = 7.0
    assert cache_of(short, long).holds_all, "one model, and the rows of the one that needs most of them"
    free_gb["host"] = 6.9
    assert not cache_of(long, short).holds_all
    free_gb["host"] = 9.0
    cache = cache_of(short, long, other)
    assert cache.reserved_gb(other) == 6.0
    model = load(cache, long)
    assert load(cache, short) is model
    assert cache.reserved_gb(other) == 0.0
    load(cache, other)
    with cache.use(short):
        assert cache.keep_only(short) and not cache.keep_only(long)
    assert load(cache, long) is model
    assert journal.loads == ["embed_text", "embed_text"]


def test_what_torch_keeps_for_later_is_freed_before_a_model_is_evicted(
    journal: Journal, free_gb: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    describe, embed_text, _ = stages_of(journal)
    cache = cache_of(describe, embed_text)
    load(cache, describe)
    free_gb["gpu"] = 0.5
    monkeypatch.setattr(memory, "release", lambda: free_gb.update(gpu=50.0))
    load(cache, embed_text)
    assert journal.closes == []


def test_closing_the_cache_closes_every_model(journal: Journal) -> None:
    stages = stages_of(journal)
    cache = cache_of(*stages)
    for stage in stages:
        load(cache, stage)
    cache.close()
    assert sorted(journal.closes) == sorted(journal.loads)


def test_closing_does_not_wait_for_a_model_that_is_being_loaded(journal: Journal) -> None:
    is_loading, go_on = threading.Event(), threading.Event()

    class SlowDescribe(Describe):
        def load(self) -> Model:
            is_loading.set()
            assert go_on.wait(20)
            return super().load()

    slow, embed_text = SlowDescribe(journal=journal), EmbedText(journal=journal)
    cache = cache_of(slow, embed_text)
    load(cache, embed_text)
    thread = start(lambda: load(cache, slow))
    assert is_loading.wait(20)
    cache.close()
    assert journal.closes == ["embed_text"]
    assert not go_on.is_set()
    go_on.set()
    thread.join(20)


# --- who waits for whom


def test_a_model_in_use_by_another_thread_stays_until_it_is_free(journal: Journal) -> None:
    describe, embed_text, _ = stages_of(journal)
    cache = cache_of(describe, embed_text, capacity=1)
    with cache.use(describe):
        other = start(lambda: load(cache, embed_text))
        assert is_waiting(other)
        assert (journal.loads, journal.closes) == (["describe"], [])
    other.join(20)
    assert journal.closes == ["describe"]
    assert journal.loads == ["describe", "embed_text"]


def test_models_that_fit_are_used_by_two_threads_at_once(journal: Journal) -> None:
    describe, embed_text, _ = stages_of(journal)
    cache = cache_of(describe, embed_text, capacity=2)
    with cache.use(describe):
        other = start(lambda: load(cache, embed_text))
        other.join(20)
        assert journal.loads == ["describe", "embed_text"]


def test_one_model_is_never_used_by_two_threads_at_once(journal: Journal) -> None:
    one, other = Describe(journal=journal), Describe(name="again", journal=journal)
    cache = cache_of(one, other)
    with cache.use(one):
        thread = start(lambda: load(cache, other))
        assert is_waiting(thread)
    thread.join(20)
    assert not thread.is_alive()
    assert journal.loads == ["describe"]


def test_keep_only_evicts_the_others(journal: Journal) -> None:
    describe, embed_text, embed_image = stages_of(journal)
    cache = cache_of(describe, embed_text, embed_image)
    for stage in (describe, embed_text, embed_image):
        load(cache, stage)
    with cache.use(embed_text):
        assert cache.keep_only(embed_text) is True
        assert sorted(journal.closes) == ["describe", "embed_image"]
        assert cache.keep_only(embed_text) is False


def test_what_keep_only_freed_stays_free_until_the_stage_is_done(journal: Journal) -> None:
    describe, embed_text, _ = stages_of(journal)
    cache = cache_of(describe, embed_text)
    load(cache, embed_text)
    with cache.use(describe):
        assert cache.keep_only(describe) is True
        other = start(lambda: load(cache, embed_text))
        assert is_waiting(other)
        assert journal.loads == ["embed_text", "describe"]
    other.join(20)
    assert journal.loads == ["embed_text", "describe", "embed_text"]
    assert journal.closes == ["embed_text"]


def test_keep_only_waits_for_a_model_in_use_and_its_thread_gets_no_more(journal: Journal) -> None:
    """Two that run out of memory at once must not wait for each other for ever."""
    describe, embed_text, _ = stages_of(journal)
    cache = cache_of(describe, embed_text)
    freed = []
    is_in_use = threading.Event()

    def keep() -> None:
        with cache.use(describe):
            is_in_use.set()
            freed.append(cache.keep_only(describe))

    with cache.use(embed_text):
        thread = start(keep)
        assert is_in_use.wait(20)
        assert is_waiting(thread)
        assert cache.keep_only(embed_text) is False
        assert journal.closes == []
    thread.join(20)
    assert freed == [True]
    assert journal.closes == ["embed_text"]


@pytest.mark.parametrize("wanted", ["embed_image", "embed_text"])
def test_who_waits_already_gets_no_model_before_the_one_who_reserved_the_memory(wanted: str, journal: Journal) -> None:
    """Neither the model in use that is to be evicted, nor its place for another model."""
    stages = {stage.name: stage for stage in stages_of(journal)}
    describe, embed_image = stages["describe"], stages["embed_image"]
    cache = cache_of(*stages.values(), capacity=2)
    order = []
    is_in_use, is_reserving = threading.Event(), threading.Event()

    def keep() -> None:
        with cache.use(describe):
            is_in_use.set()
            assert is_reserving.wait(20)
            assert cache.keep_only(describe)
            order.append("kept")

    def use() -> None:
        with cache.use(stages[wanted]):
            order.append("used")

    with cache.use(embed_image):
        keeper = start(keep)
        assert is_in_use.wait(20)
        user = start(use)
        assert is_waiting(user)
        is_reserving.set()
        assert is_waiting(keeper)
    for thread in (keeper, user):
        thread.join(20)
    assert order == ["kept", "used"]


def test_memory_is_freed_also_where_there_is_no_other_model(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the failed attempt took must be there for the next."""
    released = []
    monkeypatch.setattr(memory, "release", lambda: released.append(True))
    describe, _, _ = stages_of(journal)
    cache = cache_of(describe)
    with cache.use(describe):
        assert cache.keep_only(describe) is False
    assert released == [True]


def test_another_model_is_loaded_after_a_failed_load_has_reserved_the_memory(journal: Journal) -> None:
    describe, embed_text, _ = stages_of(journal)
    stubborn = StubbornDescribe(failures=9, journal=journal)
    cache = cache_of(describe, embed_text, stubborn)
    load(cache, embed_text)
    with pytest.raises(LoadError):
        load(cache, stubborn)
    thread = start(lambda: load(cache, embed_text))
    thread.join(20)
    assert not thread.is_alive()


# --- loading


def test_a_failed_load_is_tried_again_with_the_device_to_itself(journal: Journal) -> None:
    embed_text, stubborn = EmbedText(journal=journal), StubbornDescribe(failures=1, journal=journal)
    cache = cache_of(embed_text, stubborn)
    load(cache, embed_text)
    assert load(cache, stubborn).name == "describe"
    assert journal.loads == ["embed_text", "describe", "describe"]
    assert journal.closes == ["embed_text"]


@pytest.mark.parametrize("is_alone", [True, False])
def test_a_model_that_cannot_be_loaded_is_named(is_alone: bool, journal: Journal) -> None:
    embed_text, stubborn = EmbedText(journal=journal), StubbornDescribe(failures=9, journal=journal)
    cache = cache_of(embed_text, stubborn)
    if not is_alone:
        load(cache, embed_text)
    with pytest.raises(LoadError, match=r"^describe: the model cannot be loaded: .*CUDA out of memory"):
        load(cache, stubborn)
    assert journal.loads.count("describe") == (1 if is_alone else 2)


def test_a_child_that_is_killed_while_it_loads_is_started_again(journal: Journal) -> None:
    """Even where no other model could leave: what killed it may have been chance."""

    class Killed(Describe):
        def load(self) -> Model:
            model = super().load()
            if len(self.journal.loads) == 1:
                raise LlamaDied("the llama.cpp process ended by signal SIGKILL: it left no message")
            return model

    stage = Killed(journal=journal)
    assert load(cache_of(stage), stage).name == "describe"
    assert journal.loads == ["describe", "describe"]


def test_a_user_error_of_a_load_passes_through(journal: Journal) -> None:
    class Refusing(Describe):
        def load(self) -> Model:
            raise UserError("connect once to download it")

    cache = cache_of(Refusing(), *stages_of(journal))
    load(cache, EmbedText(journal=journal))
    with pytest.raises(UserError, match=r"^connect once"):
        load(cache, Refusing())
    assert journal.closes == []


def test_tensors_of_a_failed_load_are_gone_before_the_next(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.logger, "propagate", False)  # pytest keeps log records, and so their exceptions
    references: list[weakref.ref[object]] = []
    alive: list[bool] = []
    original: Callable[..., object] = StubbornDescribe.load

    def load_half(self: StubbornDescribe) -> object:
        alive.extend(reference() is not None for reference in references)
        weights = Journal()  # stands for gigabytes that are half loaded when the memory ends
        references.append(weakref.ref(weights))
        return original(self)

    monkeypatch.setattr(StubbornDescribe, "load", load_half)
    embed_text, stubborn = EmbedText(journal=journal), StubbornDescribe(failures=1, journal=journal)
    cache = cache_of(embed_text, stubborn)
    load(cache, embed_text)
    load(cache, stubborn)
    assert alive == [False]


def test_too_little_host_memory_is_a_failed_load_and_not_a_killed_process(
    journal: Journal, free_gb: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EmbedText, "need", lambda self: Need(host_gb=5.0))
    free_gb["host"] = 4.0
    embed_text = EmbedText(journal=journal)
    with pytest.raises(LoadError, match=r"needs 5.0 GB of host memory, 4.0 GB are free"):
        load(cache_of(embed_text), embed_text)
    assert journal.loads == []


# --- the sum of what all need


def needs(monkeypatch: pytest.MonkeyPatch, **of: Need) -> tuple[Stage, ...]:
    """Three stages with the needs that are given by their names."""
    for cls in (Describe, EmbedText, EmbedImage):
        monkeypatch.setattr(cls, "need", lambda self: of.get(self.name, Need()))
    return Read(), Describe(), EmbedText(), EmbedImage()


def test_all_models_and_their_rows_fit_or_do_not(free_gb: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    stages = needs(
        monkeypatch,
        describe=Need(gpu_gb=17.0, rows_gb=4.0),
        embed_image=Need(gpu_gb=1.0),
        embed_text=Need(host_gb=6.0, rows_gb=1.0),
    )
    free_gb.update(gpu=23.0, host=8.0)
    cache = cache_of(*stages)
    assert cache.holds_all
    assert cache.summary == (
        "3 models and their rows fit together (22.0 of 23.0 GB GPU memory, 7.0 of 8.0 GB host memory; at most 5 models)"
    )
    for kind in ("gpu", "host"):
        free_gb[kind] -= 0.1
        cache = cache_of(*stages)
        assert not cache.holds_all
        assert cache.summary.startswith("3 models and their rows do not fit together")
        free_gb[kind] += 0.1
    assert not cache_of(*stages, capacity=2).holds_all
    assert not ModelCache(stages, 5, 1.0, images_gb=0.1).holds_all
    assert not cache_of(*stages, clear_threshold_gb=1.1).holds_all


def test_a_shared_model_counts_once(free_gb: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    needs(monkeypatch, embed_text=Need(host_gb=7.0))
    free_gb["host"] = 8.0
    assert cache_of(EmbedText(), EmbedText(read={"text": "title"})).holds_all


def test_models_for_a_gpu_do_not_fit_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = needs(monkeypatch, describe=Need(gpu_gb=1.0))
    monkeypatch.setattr(device, "has_gpu", lambda: False)
    assert not cache_of(*stages).holds_all


def test_memory_is_reserved_for_models_that_are_not_loaded_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = needs(
        monkeypatch, describe=Need(gpu_gb=17.0, rows_gb=4.0), embed_image=Need(gpu_gb=1.0, rows_gb=0.5),
        embed_text=Need(host_gb=7.0),
    )  # fmt: skip
    _, describe, embed_text, embed_image = stages
    cache = cache_of(*stages)
    assert cache.reserved_gb(describe) == 1.5
    assert cache.reserved_gb(embed_image) == 21.0
    assert cache.reserved_gb(embed_text) == 0.0, "the others take no host memory"
    load(cache, embed_image)
    assert cache.reserved_gb(describe) == 0.0
    assert cache_of(*stages, capacity=2).reserved_gb(describe) == 0.0, "where not all stay, each may take what there is"


# --- failures


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(OUT_OF_MEMORY),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError(
            "MPS backend out of memory (MPS allocated: 17.9 GB, max allowed: 18.1 GB). Tried to allocate 1 GB"
        ),
        RuntimeError("CUDA driver error: out of memory"),  # of torch's expandable segments
        RuntimeError("llama.cpp: decoding failed (1)"),
        MemoryError(),
        LlamaDied("the llama.cpp process ended by signal SIGABRT: CUDA error: out of memory"),
        LlamaDied("the llama.cpp process ended by signal SIGKILL: it left no message"),
    ],
)
def test_each_way_to_run_out_of_memory_is_recognised(error: Exception) -> None:
    failure = memory.describe_failure(error)
    assert failure.is_out_of_memory
    assert not failure.is_of_gpu


def test_a_gpu_that_failed_is_recognised() -> None:
    failure = memory.describe_failure(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert (failure.is_out_of_memory, failure.is_of_gpu) == (False, True)


def test_another_failure_is_neither_and_one_line() -> None:
    failure = memory.describe_failure(ValueError("bad\n  image" + "!" * 1000))
    assert (failure.is_out_of_memory, failure.is_of_gpu) == (False, False)
    assert failure.message == ("ValueError: bad image" + "!" * 1000)[:500]


def torch_with(kind: str, empty_cache: Callable[[], None]) -> SimpleNamespace:
    """A torch that uses a GPU with CUDA, one of Apple's, or none."""
    cuda = SimpleNamespace(is_initialized=lambda: kind == "cuda", empty_cache=empty_cache)
    backends = SimpleNamespace(mps=SimpleNamespace(is_available=lambda: kind == "mps"))
    return SimpleNamespace(cuda=cuda, mps=SimpleNamespace(empty_cache=empty_cache), backends=backends)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize("is_broken", [False, True])
def test_release_collects_cycles_and_empties_the_cache_of_torch(
    is_broken: bool, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model is full of cycles, and torch keeps what was freed; after a failed kernel it may raise once more."""
    emptied = []

    class Cycle:
        def __init__(self) -> None:
            self.itself = self

    def empty_cache() -> None:
        emptied.append(reference() is None)
        if is_broken:
            raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setitem(sys.modules, "torch", torch_with(kind, empty_cache))
    gc.disable()
    try:
        reference = weakref.ref(Cycle())
        memory.release()
    finally:
        gc.enable()
    assert emptied == [True], "what was freed goes back to the device after it was freed"


def test_release_leaves_torch_alone_where_it_is_not_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[None] = []
    monkeypatch.setitem(sys.modules, "torch", torch_with("", lambda: emptied.append(None)))
    memory.release()
    assert not emptied
    monkeypatch.delitem(sys.modules, "torch")
    memory.release()
