"""Running out of memory on a real GPU: the errors are torch's own, and every image still gets its row."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes import Describe, EmbedImage, Journal, Model, Read, records
from vec_pipeline.crash_journal import CrashJournal
from vec_pipeline.executor import Executor
from vec_pipeline.memory import ModelCache, describe_failure
from vec_pipeline.record import Record, Stage, Values
from vec_pipeline.result_cache import ResultCache

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: nothing is shown about GPU memory"),
]
ROW_BYTES = 100_000_000


@pytest.fixture(autouse=True)
def a_gigabyte() -> Iterator[None]:
    """Let this process have one gigabyte of the GPU."""
    total_bytes = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(1e9 / total_bytes)
    yield
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.0)


@dataclass(frozen=True, kw_only=True)
class GpuDescribe(Describe):
    """Takes 100 MB of the GPU for each row, less for a smaller image."""

    def run(self, model: Model, rows: list[Values], at_once: int) -> list[Values]:
        answers = super().run(model, rows, at_once)
        shares = [(row["image"].width / 40) ** 2 for row in rows]
        tensors = [torch.zeros(int(ROW_BYTES * share), dtype=torch.uint8, device="cuda") for share in shares]
        assert len(tensors) == len(rows)
        return answers


def annotate(stages: Sequence[Stage], chunk: list[Record], folder: Path) -> list[Record]:
    """One chunk, annotated."""
    models = ModelCache(stages, 5, 0.1)
    with (
        closing(models),
        closing(ResultCache(folder / "cache.sqlite", lambda stage: stage.name)) as results,
        closing(CrashJournal(folder / "journal.sqlite")) as journal,
    ):
        (annotated,) = Executor(stages, models, results, journal, threads=2)([chunk])
    return annotated


def test_a_real_out_of_memory_is_recognised_and_halves_the_batch(tmp_path: Path) -> None:
    journal = Journal()
    stages = [Read(), EmbedImage(journal=journal), GpuDescribe(batch_size=16, journal=journal)]
    annotated = annotate(stages, records(*(f"image {n}" for n in range(16))), tmp_path)
    assert [record.error for record in annotated] == [""] * 16
    assert all("text" in record.values for record in annotated)
    assert journal.closes[:1] == ["embed_image"], "the other model leaves first"
    assert journal.sizes("describe")[:4] == [16, 16, 8, 8]


def test_an_image_too_large_for_the_gpu_is_made_smaller(tmp_path: Path) -> None:
    stages = [Read(), GpuDescribe()]
    annotated = annotate(stages, records("large"), tmp_path)
    assert annotated[0].error == ""
    assert annotated[0].values["text"] != "large, 800 px"


def test_the_text_of_the_error_is_in_the_table() -> None:
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.zeros(2_000_000_000, dtype=torch.uint8, device="cuda")
    assert describe_failure(caught.value).is_out_of_memory
