"""The plan of a run follows from what the models need and what is free, and is printed where it can be looked at."""

from pathlib import Path

import pytest

from tests.fakes import Describe, EmbedText, Journal, Read, records
from tests.test_checks import Machine
from vec_pipeline.annotator import Annotator
from vec_pipeline.checks import findings
from vec_pipeline.config import load_config
from vec_pipeline.ledger import NoLedger
from vec_pipeline.memory import ModelCache
from vec_pipeline.plan import LARGEST_CHUNK_IMAGES, LOADING_SHARE, Plan, plan
from vec_pipeline.record import UserError
from vec_pipeline.stages import describe

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def plan_of(*overrides: str) -> Plan:
    return plan(load_config(PROJECT / "config.yaml", overrides))


def test_models_that_fit_together_run_side_by_side(machine: Machine) -> None:
    machine.has(gpu_gb=79.0, host_gb=100.0)
    chosen = plan_of()
    assert (chosen.overlap, chosen.chunk_images, chosen.is_fixed) == (True, 1024, True)
    assert "of 79.0 GB GPU memory" in chosen.reason
    assert "while the other stages work on the next" in chosen.reason


def test_without_a_stage_of_another_process_nothing_runs_side_by_side(machine: Machine, tmp_path: Path) -> None:
    """So torch keeps all cores."""
    machine.has(gpu_gb=79.0, host_gb=100.0)
    config = tmp_path / "config.yaml"
    config.write_text("overlap: true\nstages: [open_image, {use: embed_image, model: models/demo/clip}]")
    chosen = plan(load_config(config))
    assert not chosen.overlap
    assert "one stage after the other" in chosen.reason


@pytest.mark.parametrize(("gpu_gb", "host_gb"), [(20.0, 100.0), (79.0, 6.0)])
def test_models_that_do_not_fit_together_take_turns(gpu_gb: float, host_gb: float, machine: Machine) -> None:
    machine.has(gpu_gb=gpu_gb, host_gb=host_gb)
    chosen = plan_of()
    assert (chosen.overlap, chosen.is_fixed) == (False, False)
    assert "do not fit together" in chosen.reason
    assert "loading under 5%" in chosen.reason


def test_where_the_weights_alone_fit_models_take_turns(machine: Machine) -> None:
    """Side by side with ten rows at once is slower than one after the other with a hundred."""
    machine.has(gpu_gb=79.0, host_gb=100.0)
    stages = load_config(PROJECT / "config.yaml").stages
    weights_gb = sum(stage.need().gpu_gb for stage in stages)
    machine.has(gpu_gb=weights_gb + 2.0, host_gb=100.0)
    assert not plan_of().overlap
    machine.has(gpu_gb=weights_gb + 12.0, host_gb=100.0)
    assert plan_of().overlap


def test_a_gpu_gets_chunks_of_several_times_what_it_decodes_at_once(machine: Machine) -> None:
    """Or no place would ever be refilled, and each batch would wait for its longest answer."""
    machine.has(gpu_gb=79.0, host_gb=100.0)
    assert plan_of().chunk_images >= 4 * describe.MOST_AT_ONCE["cuda"]


def test_a_cache_of_fewer_models_makes_them_take_turns(machine: Machine) -> None:
    machine.has(gpu_gb=79.0, host_gb=100.0)
    assert not plan_of("model_cache_size=2").overlap


def test_a_single_chunk_runs_one_stage_after_the_other_with_all_cores(machine: Machine) -> None:
    machine.has(gpu_gb=79.0, host_gb=100.0)
    config = load_config(PROJECT / "config.yaml")
    chosen = plan(config, 1024)
    assert not chosen.overlap
    assert "over one chunk of 1024 images" in chosen.reason
    assert plan(config, 1025).overlap
    assert plan(load_config(PROJECT / "config.yaml", ["overlap=true"]), 10).overlap


def test_side_by_side_needs_places_for_all_models_in_the_cache(machine: Machine) -> None:
    machine.has(gpu_gb=79.0, host_gb=100.0)
    with pytest.raises(UserError, match="set model_cache_size: 5"):
        plan_of("model_cache_size=2", "overlap=true")


def test_rows_count_as_many_as_are_asked_for(machine: Machine) -> None:
    machine.has(gpu_gb=33.0, host_gb=100.0)
    assert not plan_of().overlap
    assert plan_of("describe.batch_size=8", "structure.batch_size=8").overlap
    assert not plan_of("describe.batch_size=8", "structure.batch_size=8", "describe.max_new_tokens=20000").overlap


def test_pixels_of_the_chunks_at_work_count(machine: Machine) -> None:
    machine.has(gpu_gb=79.0, host_gb=30.0)
    assert plan_of("open_image.max_size_px=1024").overlap
    assert not plan_of("open_image.max_size_px=1024", "chunk_size=2000").overlap


def test_options_win(machine: Machine) -> None:
    machine.has(gpu_gb=79.0, host_gb=100.0)
    assert not plan_of("overlap=false").overlap
    machine.has(gpu_gb=20.0, host_gb=100.0)
    chosen = plan_of("overlap=true", "chunk_size=32")
    assert (chosen.overlap, chosen.chunk_images, chosen.is_fixed) == (True, 32, True)


def test_pixels_of_a_chunk_leave_most_of_the_memory(machine: Machine) -> None:
    machine.has(gpu_gb=20.0, host_gb=20.0)
    assert plan_of().largest_chunk_images == LARGEST_CHUNK_IMAGES
    large = plan_of("open_image.max_size_px=2000")
    assert large.largest_chunk_images * 4 * 2000**2 <= 0.1 * 20e9


def annotator_after(chunks: int, load_s: float, work_s: float) -> Annotator:
    """An annotator that has spent so long on loading and on work, over chunks of 10 images."""
    stages = [Read(), Describe(journal=Journal()), EmbedText(journal=Journal())]
    annotator = Annotator(stages, ModelCache(1, 0.0), NoLedger(), {stage: stage.name for stage in stages}, threads=1)
    list(annotator([records(*(f"{chunk}-{n}" for n in range(10))) for chunk in range(chunks)]))
    annotator.cache.load_seconds.clear()
    annotator.seconds.clear()
    annotator.cache.load_seconds["describe"] = load_s
    annotator.seconds["describe"] = load_s + work_s
    return annotator


def test_chunks_grow_until_loading_costs_little() -> None:
    """Four seconds to load for each chunk, and a tenth of a second of work for each image."""
    chosen = Plan(overlap=False, chunk_images=10, largest_chunk_images=2000, is_fixed=False, is_on_cpu=True, reason="")
    assert chosen.next_chunk_images(annotator_after(0, 0, 0)) == 10
    size = chosen.next_chunk_images(annotator_after(2, load_s=8.0, work_s=2.0))
    assert size == 800
    assert 4.0 / (size * 0.1) == LOADING_SHARE


def test_chunks_stay_small_where_nothing_is_loaded_and_within_memory() -> None:
    chosen = Plan(overlap=False, chunk_images=10, largest_chunk_images=100, is_fixed=False, is_on_cpu=True, reason="")
    assert chosen.next_chunk_images(annotator_after(2, load_s=0.0, work_s=2.0)) == 10
    assert chosen.next_chunk_images(annotator_after(2, load_s=80.0, work_s=2.0)) == 100


@pytest.mark.parametrize("host_gb", [100.0, 1.0])
def test_check_tells_the_plan(host_gb: float, machine: Machine, tmp_path: Path) -> None:
    machine.has(gpu_gb=None, host_gb=host_gb)
    config = load_config(PROJECT / "configs/demo.yaml", [f"output={tmp_path / 'a.csv'}"])
    told = {finding.name: finding.text for finding in findings(config)}
    assert told["plan"] == plan(config).reason
    assert ("do not fit" in told["plan"]) == (host_gb < 2)
