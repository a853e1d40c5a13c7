"""How many images make a chunk, and whether all models stay, follow from what is free and what the models need."""

from pathlib import Path

import pytest

from tests.fakes import Describe, EmbedText, Journal, Read, records
from tests.test_checks import Machine
from vec_pipeline.checks import findings
from vec_pipeline.chunk_size import CHUNKS_AT_WORK, LARGEST_IMAGES, LOADING_SHARE, ChunkSize, chunk_size
from vec_pipeline.config import load_config
from vec_pipeline.crash_journal import CrashJournal
from vec_pipeline.executor import Executor
from vec_pipeline.memory import ModelCache
from vec_pipeline.record import Need, Stage
from vec_pipeline.result_cache import ResultCache
from vec_pipeline.stages import describe

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def size_of(*overrides: str) -> ChunkSize:
    config = load_config(PROJECT / "config.yaml", overrides)
    return chunk_size(config.stages, config.chunk_size)


def models_of(*overrides: str) -> ModelCache:
    config = load_config(PROJECT / "config.yaml", overrides)
    images_gb = chunk_size(config.stages, config.chunk_size).images_gb
    return ModelCache(config.stages, config.model_cache_size, config.clear_threshold_gb, images_gb)


# --- whether all models stay


def test_models_that_fit_together_stay(machine: Machine) -> None:
    machine.has(gpu_gb=79.0, host_gb=100.0)
    assert models_of().holds_all
    assert "of 79.0 GB GPU memory" in models_of().summary


@pytest.mark.parametrize(("gpu_gb", "host_gb"), [(20.0, 100.0), (79.0, 1.2)])
def test_models_that_do_not_fit_together_are_said(gpu_gb: float, host_gb: float, machine: Machine) -> None:
    machine.has(gpu_gb=gpu_gb, host_gb=host_gb)
    assert not models_of().holds_all
    assert "do not fit together" in models_of().summary


def test_where_the_weights_alone_fit_models_do_not_stay(machine: Machine) -> None:
    """Two at once with ten rows each are slower than one after the other with a hundred."""
    machine.has(gpu_gb=79.0, host_gb=100.0)
    weights_gb = sum(stage.need().gpu_gb for stage in load_config(PROJECT / "config.yaml").stages)
    machine.has(gpu_gb=weights_gb + 2.0, host_gb=100.0)
    assert not models_of().holds_all
    machine.has(gpu_gb=weights_gb + 12.0, host_gb=100.0)
    assert models_of().holds_all


def test_a_cache_of_fewer_models_does_not_hold_them(machine: Machine) -> None:
    machine.has(gpu_gb=79.0, host_gb=100.0)
    assert not models_of("model_cache_size=2").holds_all


def test_rows_count_as_many_as_are_asked_for(machine: Machine) -> None:
    machine.has(gpu_gb=33.0, host_gb=100.0)
    few = ("describe.batch_size=8", "structure.batch_size=8")
    assert not models_of().holds_all
    assert models_of(*few).holds_all
    assert not models_of(*few, "describe.max_new_tokens=20000").holds_all


def test_pixels_of_the_chunks_at_work_count(machine: Machine) -> None:
    machine.has(gpu_gb=79.0, host_gb=30.0)
    assert models_of("open_image.max_size_px=1024").holds_all
    assert not models_of("open_image.max_size_px=1024", "chunk_size=2000").holds_all


# --- the first chunk


def test_a_gpu_gets_chunks_of_several_times_what_it_decodes_at_once(machine: Machine) -> None:
    """Or no slot would ever be refilled, and each batch would wait for its longest answer."""
    machine.has(gpu_gb=79.0, host_gb=100.0)
    assert size_of().first == 1024 >= 4 * describe.MOST_AT_ONCE["cuda"]


def test_a_cpu_gets_small_chunks(machine: Machine) -> None:
    """So that a kill costs minutes, not hours."""
    machine.has(gpu_gb=None, host_gb=100.0)
    config = load_config(PROJECT / "configs/demo.yaml")
    assert chunk_size(config.stages, config.chunk_size).first == 64


def test_the_option_wins(machine: Machine) -> None:
    machine.has(gpu_gb=20.0, host_gb=100.0)
    assert (size_of("chunk_size=32").first, size_of("chunk_size=32").largest) == (32, 32)


@pytest.mark.parametrize("side_px", [384, 1000, 2000, 50_000])
def test_pixels_of_the_chunks_at_work_leave_most_of_the_memory(side_px: int, machine: Machine) -> None:
    machine.has(gpu_gb=20.0, host_gb=20.0)
    size = size_of(f"open_image.max_size_px={side_px}")
    image_bytes = 4 * side_px**2
    assert size.images_gb == pytest.approx(CHUNKS_AT_WORK * size.first * image_bytes / 1e9)
    assert size.first == 1 or size.images_gb <= 0.1 * 20
    assert size.largest == max(size.first, min(LARGEST_IMAGES, int(0.1 * 20e9 / image_bytes)))


def test_images_of_unknown_size_are_taken_for_a_megapixel(machine: Machine) -> None:
    machine.has(gpu_gb=20.0, host_gb=20.0)
    assert chunk_size([Read(), Describe()], "auto").image_bytes == 4 * 1024**2


# --- later chunks


def executor_after(chunks: int, load_s: float, work_s: float, *, holds_all: bool = False) -> Executor:
    """An executor that has spent so long on loading and on work, over chunks of 10 images."""
    stages: list[Stage] = [Read(), Describe(journal=Journal()), EmbedText(journal=Journal())]
    models = ModelCache(stages, 1, 0.0)
    executor = Executor(stages, models, ResultCache(None, lambda stage: stage.name), CrashJournal(None), threads=1)
    list(executor([records(*(f"{chunk}-{n}" for n in range(10))) for chunk in range(chunks)]))
    models.holds_all = holds_all
    models.load_seconds.clear()
    executor.seconds.clear()
    models.load_seconds["describe"] = load_s
    executor.seconds["describe"] = load_s + work_s
    return executor


TEN = ChunkSize(first=10, largest=2000, image_bytes=1)


def test_chunks_grow_until_loading_costs_little() -> None:
    """Four seconds to load for each chunk, and a tenth of a second of work for each image."""
    assert TEN.next(executor_after(0, 0, 0)) == 10
    size = TEN.next(executor_after(2, load_s=8.0, work_s=2.0))
    assert size == 800
    assert 4.0 / (size * 0.1) == LOADING_SHARE


def test_chunks_stay_small_where_nothing_is_loaded_and_within_memory() -> None:
    assert TEN.next(executor_after(2, load_s=0.0, work_s=2.0)) == 10
    assert TEN.next(executor_after(2, load_s=80.0, work_s=2.0)) == 2000
    assert TEN.next(executor_after(2, load_s=80.0, work_s=0.0)) == 2000
    assert TEN.next(executor_after(2, load_s=8.0, work_s=2.0, holds_all=True)) == 10, "its models were loaded once"


# --- what is said of it


@pytest.mark.parametrize(
    ("host_gb", "wanted", "more"), [(100.0, "auto", ""), (1.0, "auto", " at first, 1992 at most"), (1.0, "64", "")]
)
def test_check_tells_the_plan(host_gb: float, wanted: str, more: str, machine: Machine, tmp_path: Path) -> None:
    machine.has(gpu_gb=None, host_gb=host_gb)
    overrides = [f"output={tmp_path / 'a.csv'}", f"chunk_size={wanted}"]
    told = {each.name: each.text for each in findings(load_config(PROJECT / "configs/demo.yaml", overrides))}["plan"]
    assert told.endswith(f"; chunks of 64 images{more}")
    assert ("do not fit" in told) == (host_gb < 2)


def test_two_stages_are_at_work_on_the_same_cores_only_where_both_are_there_and_stay(
    monkeypatch: pytest.MonkeyPatch, machine: Machine
) -> None:
    machine.has(gpu_gb=50.0, host_gb=50.0)

    def has_two(*stages: Stage, capacity: int = 5) -> bool:
        models = ModelCache(stages, capacity, 0.0)
        results = ResultCache(None, lambda stage: stage.name)
        return Executor(stages, models, results, CrashJournal(None), threads=1).has_two_at_work

    monkeypatch.setattr(EmbedText, "need", lambda self: Need(host_gb=1.0))
    monkeypatch.setattr(Describe, "need", lambda self: Need(host_gb=1.0))
    assert has_two(Describe(), EmbedText())
    assert not has_two(Describe(), EmbedText(), capacity=1)
    assert not has_two(Describe())
    monkeypatch.setattr(Describe, "need", lambda self: Need(gpu_gb=1.0))
    assert not has_two(Describe(), EmbedText())
