"""Running out of memory on a real GPU: the errors are torch's own, and every image still gets its row."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes import Describe, EmbedImage, Journal, Model, Read, records
from vec_pipeline.annotator import Annotator
from vec_pipeline.ledger import Ledger
from vec_pipeline.memory import ModelCache, describe_failure
from vec_pipeline.record import Values

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

    def run(self, model: Model, rows: list[Values]) -> list[Values]:
        answers = super().run(model, rows)
        shares = [(row["image"].width / 40) ** 2 for row in rows]
        tensors = [torch.zeros(int(ROW_BYTES * share), dtype=torch.uint8, device="cuda") for share in shares]
        assert len(tensors) == len(rows)
        return answers


def test_a_real_out_of_memory_is_recognised_and_halves_the_batch(tmp_path: Path) -> None:
    journal = Journal()
    stages = [Read(), EmbedImage(journal=journal), GpuDescribe(batch_size=16, journal=journal)]
    with closing(Ledger(tmp_path / "ledger.sqlite")) as ledger:
        annotator = Annotator(stages, ModelCache(5, 0.1), ledger, {stage: stage.name for stage in stages}, threads=2)
        chunk = records(*(f"image {n}" for n in range(16)))
        (annotated,) = annotator([chunk])
    assert [record.error for record in annotated] == [""] * 16
    assert all("text" in record.values for record in annotated)
    assert journal.closes[:1] == ["embed_image"], "the other model leaves first"
    assert journal.sizes("describe")[:4] == [16, 16, 8, 8]


def test_an_image_too_large_for_the_gpu_is_made_smaller(tmp_path: Path) -> None:
    stages = [Read(), GpuDescribe()]
    with closing(Ledger(tmp_path / "ledger.sqlite")) as ledger:
        annotator = Annotator(stages, ModelCache(5, 0.1), ledger, {stage: stage.name for stage in stages}, threads=2)
        (annotated,) = annotator([records("large")])
    assert annotated[0].error == ""
    assert annotated[0].values["text"] != "large, 800 px"


def test_the_text_of_the_error_is_in_the_table() -> None:
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.zeros(2_000_000_000, dtype=torch.uint8, device="cuda")
    assert describe_failure(caught.value).is_out_of_memory
