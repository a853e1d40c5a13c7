"""What would fail is said before any model loads, with the figure needed, the figure free, and what would fit."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from vec_pipeline import device, drivers, weights
from vec_pipeline.__main__ import main
from vec_pipeline.checks import check_memory
from vec_pipeline.config import load_config
from vec_pipeline.engines import llama_process
from vec_pipeline.record import COLUMNS, UserError
from vec_pipeline.settings import write_settings

PROJECT = Path(__file__).resolve().parent.parent
VISION = PROJECT / "models" / "demo" / "vision_language"
SENTENCES = PROJECT / "models" / "demo" / "sentences"


class Machine:
    """The GPU and the memory that the checks see."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch

    def has(self, gpu_gb: float | None, host_gb: float, *, llama_on_gpu: bool = True) -> None:
        llama_problem = "" if gpu_gb is not None and llama_on_gpu else "was built without the GPU"
        self._patch.setattr(llama_process, "gpu_problem", lambda: llama_problem)
        self._patch.setattr(drivers, "nvidia_driver", lambda: None)
        self._patch.setattr(drivers, "capability_problem", lambda: "")
        self._patch.setattr(device, "has_gpu", lambda: gpu_gb is not None)
        self._patch.setattr(device, "gpu_free_gb", lambda: gpu_gb)
        self._patch.setattr(device, "host_free_gb", lambda: host_gb)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def check(config: str, *overrides: str) -> None:
    check_memory(load_config(PROJECT / config, overrides).stages)


def shortage(config: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        check(config, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_gpu_names_the_figure_and_the_option(machine: Machine) -> None:
    machine.has(gpu_gb=None, host_gb=64)
    sentence = shortage("config.yaml")
    assert "Qwen/Qwen2-VL-7B-Instruct needs about 17 GB of GPU memory" in sentence
    assert "no GPU was found" in sentence
    assert "configs/small.yaml" in sentence


def test_llama_built_without_the_gpu_is_named(machine: Machine) -> None:
    machine.has(gpu_gb=40, host_gb=64, llama_on_gpu=False)
    assert "llama.cpp was built without the GPU" in shortage("config.yaml")
    check("config.yaml", "structure.device=cpu")


def test_quantization_without_a_gpu_is_refused(machine: Machine) -> None:
    machine.has(gpu_gb=None, host_gb=64)
    assert "needs a GPU" in shortage("configs/small.yaml", "describe.quantization=nf4")


def test_a_small_gpu_names_both_figures_and_the_quantization_that_fits(machine: Machine) -> None:
    machine.has(gpu_gb=11, host_gb=64)
    assert shortage("config.yaml") == (
        "Qwen/Qwen2-VL-7B-Instruct needs about 17 GB of GPU memory and 11 GB are free: "
        "set quantization: nf4, or use configs/small.yaml"
    )


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_the_quantization_that_fits_passes(quantization: str, machine: Machine) -> None:
    machine.has(gpu_gb=11, host_gb=64)
    check("config.yaml", f"describe.quantization={quantization}")


def test_nothing_is_proposed_that_would_not_fit(machine: Machine) -> None:
    machine.has(gpu_gb=4, host_gb=64)
    assert "set quantization" not in shortage("config.yaml")


def test_the_production_set_fits_its_card(machine: Machine) -> None:
    machine.has(gpu_gb=23, host_gb=32)
    check("config.yaml")


def test_models_on_a_cpu_need_memory_of_the_host(machine: Machine) -> None:
    machine.has(gpu_gb=None, host_gb=5)
    assert "Qwen/Qwen2-VL-2B-Instruct needs about 9 GB of host memory and 5 GB are free: " in shortage(
        "configs/small.yaml"
    )


def test_word_vectors_of_the_hub_need_memory_of_the_host(machine: Machine) -> None:
    """Of their vocabulary, since the vectors stay on the disk. It must be known before the download."""
    machine.has(gpu_gb=23, host_gb=0.2)
    expected = r"facebook/fasttext-en-vectors needs about 0\.[2-4] GB of host memory and 0\.2 GB are free: "
    assert re.match(expected, shortage("config.yaml"))


def test_a_local_model_is_measured(machine: Machine, tmp_path: Path) -> None:
    machine.has(gpu_gb=None, host_gb=2)
    model = tmp_path / "llama.gguf"
    with model.open("wb") as file:
        file.truncate(3_000_000_000)  # sparse: it takes no space on the disk
    (tmp_path / "describe").mkdir()
    sentence = shortage(
        "configs/demo.yaml", f"structure.model={model}", f"describe.model={tmp_path / 'describe'}",
        f"embed_image.model={tmp_path / 'describe'}", f"embed_text.model={tmp_path / 'describe'}",
        f"embed_words.model={tmp_path / 'describe'}",
    )  # fmt: skip
    assert sentence.startswith(f"{model} needs about 4 GB of host memory and 2 GB are free: ")


def test_check_of_a_broken_configuration_exits_2(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("chunksize: 3\nstages: [open_image]")
    process = subprocess.run(
        [sys.executable, "-m", "vec_pipeline", "check", "--config", str(path)],
        cwd=PROJECT, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 2
    assert process.stderr == "vec-pipeline: unknown option 'chunksize' (did you mean 'chunk_size'?)\n"


def demo_with(tmp_path: Path, model: Path) -> Path:
    """The demo set with one model, in a configuration of its own."""
    path = tmp_path / "demo.yaml"
    text = "device: cpu\nlanguage: en\noutput: {}\nstages:\n  - use: open_image\n  - {{use: describe, model: {}}}\n"
    path.write_text(text.format(tmp_path / "annotations.csv", model))
    return path


def test_check_of_a_missing_model_file_exits_2_and_names_it(
    tmp_path: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.has(gpu_gb=None, host_gb=64)
    (tmp_path / "vision").symlink_to(VISION)
    assert main(["check", "--config", str(demo_with(tmp_path, tmp_path / "vison"))]) == 2
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert any(line.startswith("FAIL  describe: ") and str(tmp_path / "vison") in line for line in failed)
    assert any(f"did you mean {tmp_path / 'vision'}?" in line for line in failed)


def test_check_of_what_would_work_exits_0_and_makes_nothing(
    tmp_path: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.has(gpu_gb=None, host_gb=64)
    (tmp_path / "vision").symlink_to(VISION)
    path = demo_with(tmp_path, tmp_path / "vision")
    before = sorted(tmp_path.iterdir())
    assert main(["check", "--config", str(path)]) == 0, capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == before


def test_check_of_stages_that_cannot_work_together_exits_2_and_names_them(
    tmp_path: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.has(gpu_gb=None, host_gb=64)
    (tmp_path / "vision").symlink_to(VISION)
    path = demo_with(tmp_path, tmp_path / "vision")
    path.write_text(path.read_text() + f"  - {{use: embed_text, model: {SENTENCES}, read: {{text: txt}}}}\n")
    assert main(["check", "--config", str(path)]) == 2
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert failed == [
        "FAIL  stages: embed_text reads txt, which no earlier stage writes: add a stage that writes txt before it, "
        "or name a source that brings it"
    ]


def test_check_says_how_the_memory_is_used(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vision").symlink_to(VISION)
    monkeypatch.setattr(weights, "size_gb", lambda *_, **__: 1.0)
    path = demo_with(tmp_path, tmp_path / "vision")
    for free_gb, fits in ((64, "fit"), (3, "do not fit")):
        machine.has(gpu_gb=None, host_gb=free_gb)
        assert main(["check", "--config", str(path)]) == 0
        [plan] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ok    plan: ")]
        assert f"1 models and their rows {fits} together" in plan
        assert f"of {free_gb}.0 GB host memory" in plan
        assert "chunks of " in plan


def test_check_names_settings_that_the_rows_were_not_made_with(
    tmp_path: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.has(gpu_gb=None, host_gb=64)
    (tmp_path / "vision").symlink_to(VISION)
    path = demo_with(tmp_path, tmp_path / "vision")
    config = load_config(path)
    then = load_config(path, ["describe.max_new_tokens=9"]).stages
    write_settings(config.output, then, then, COLUMNS, [])
    header = ",".join((*COLUMNS, "text_confidence"))
    config.output.write_text(f"{header}\n/a.jpg{',' * len(COLUMNS)}\n")
    assert main(["check", "--config", str(path)]) == 2
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert [line.split(":")[0] for line in failed] == ["FAIL  output"]
    assert "made with other settings (describe.max_new_tokens)" in failed[0]


def test_check_names_an_output_that_cannot_be_written(
    tmp_path: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.has(gpu_gb=None, host_gb=64)
    (tmp_path / "vision").symlink_to(VISION)
    (tmp_path / "annotations.csv").write_text("path,label\na.jpg,cat\n")
    assert main(["check", "--config", str(demo_with(tmp_path, tmp_path / "vision"))]) == 2
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert [line.split(":")[0] for line in failed] == ["FAIL  output"]
    assert "annotations.csv" in failed[0]


def test_check_takes_options_and_the_columns_of_a_source(
    tmp_path: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.has(gpu_gb=None, host_gb=64)
    path = demo_with(tmp_path, VISION)
    path.write_text(path.read_text() + f"  - {{use: embed_text, model: {SENTENCES}, read: {{text: caption}}}}\n")
    arguments = ["check", "--config", str(path), "--output", str(tmp_path / "b.csv")]
    assert main(arguments) == 2
    assert "reads caption, which no earlier stage writes" in capsys.readouterr().out
    assert main([*arguments, "--set", "sources=[tests.zip_source]", str(tmp_path / "photos.zip")]) == 0
    assert str(tmp_path / "b.csv") in capsys.readouterr().out


def test_a_dry_run_exits_as_check_does(tmp_path: Path, machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.has(gpu_gb=None, host_gb=64)
    arguments = ["run", str(PROJECT / "examples" / "images"), "--dry-run", "--config"]
    assert main([*arguments, str(demo_with(tmp_path, VISION))]) == 0
    assert main([*arguments, str(demo_with(tmp_path, tmp_path / "vision"))]) == 2
    assert "FAIL  describe: " in capsys.readouterr().out


def test_a_gpu_that_is_not_there_is_one_finding_and_no_traceback(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.has(gpu_gb=None, host_gb=64)
    assert main(["check", "--config", "demo", "--set", "device=cuda"]) == 2
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert [line.split(":")[0] for line in failed] == ["FAIL  memory"]
    assert "needs about 4.9 MB of GPU memory and no GPU was found" in failed[0]
