"""The machines that the production set meets: drivers, several GPUs, old and small ones, Apple's, CUDA's libraries."""

import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.test_checks import Machine
from vec_pipeline import checks, device, drivers
from vec_pipeline.__main__ import main, set_defaults
from vec_pipeline.checks import check_memory
from vec_pipeline.commands.run import fetched
from vec_pipeline.config import ConfigError, load_config
from vec_pipeline.engines import llama_process
from vec_pipeline.record import Stage, UserError
from vec_pipeline.stages.describe import Describe, quantization_config
from vec_pipeline.stages.embed_image import EmbedImage
from vec_pipeline.stages.embed_text import EmbedText
from vec_pipeline.stages.structure import Structure

PROJECT = Path(__file__).resolve().parent.parent
VISIBLE = "CUDA_VISIBLE_DEVICES"
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@pytest.fixture(autouse=True)
def fresh_choice_of_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has not chosen a GPU, and whose environment names none."""
    monkeypatch.setenv(VISIBLE, "")
    monkeypatch.delenv(VISIBLE)
    device.visible_at_start.cache_clear()
    yield
    device.visible_at_start.cache_clear()


class Host:
    """A machine as torch and nvidia-smi show it."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self._patch, self._folder = patch, folder
        patch.setenv("PATH", str(folder))
        patch.setattr(drivers, "KERNEL_MODULE", folder / "version")
        patch.setattr(device, "has_mps", lambda: False)
        self.has_torch("13.0", None)

    def has_torch(self, cuda: str | None, gpu: str | None, capability: tuple[int, int] = (8, 6)) -> None:
        """A torch that is built for a version of CUDA, and the GPU that it sees."""
        self._patch.setattr(torch.version, "cuda", cuda)
        self._patch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
        self._patch.setattr(torch.cuda, "get_device_name", lambda *_: gpu)
        self._patch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        self._patch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_86", "sm_90", "sm_120"])
        self._patch.setattr(torch.cuda, "init", self._init)

    def has_driver(self, version: str, *gpus: str, capability: str = "8.6") -> None:
        """An nvidia-smi that lists these GPUs."""
        lines = "".join(f"echo '{version}, {gpu}, {capability}'\n" for gpu in gpus)
        self.program(f"#!/bin/sh\n{lines}")

    def program(self, text: str) -> None:
        (self._folder / "nvidia-smi").write_text(text)
        (self._folder / "nvidia-smi").chmod(0o755)

    def has_module(self, text: str) -> None:
        (self._folder / "version").write_text(text)

    @staticmethod
    def _init() -> None:
        raise RuntimeError("Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized\nmore")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Host:
    return Host(monkeypatch, tmp_path)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def stages_of(config: str = "config.yaml", *overrides: str) -> tuple[Stage, ...]:
    return load_config(PROJECT / config, overrides).stages


def refusal(*overrides: str, config: str = "config.yaml") -> str:
    with pytest.raises(UserError) as caught:
        check_memory(stages_of(config, *overrides))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- one GPU


@pytest.mark.parametrize(
    ("before", "names", "after"),
    [
        (None, ["cuda", "cuda"], "0"),
        (None, ["auto", "cpu"], "0"),
        (None, ["cuda:1"], "1"),
        (None, ["cuda", "cuda:2", "cpu", "cuda:2"], "2"),
        ("3,5", ["cuda"], "3"),
        ("3, 5", ["cuda:1"], "5"),
        ("GPU-8932f937,GPU-0a1b", ["cuda:1"], "GPU-0a1b"),
        ("MIG-1,MIG-2", ["auto"], "MIG-1"),
        ("", ["cuda"], ""),
        ("-1", ["cuda"], "-1"),
    ],
)
def test_a_run_sees_the_gpu_that_is_named_and_no_other(
    before: str | None, names: list[str], after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In torch, bitsandbytes and llama.cpp alike, whose process inherits the environment."""
    if before is not None:
        monkeypatch.setenv(VISIBLE, before)
    for _ in range(2):  # the second time, N must not count within what the first has chosen
        device.use_one_gpu(names)
        assert llama_process._environment()[VISIBLE] == os.environ[VISIBLE] == after


def test_the_checks_choose_the_gpu_before_torch_looks_for_one(
    monkeypatch: pytest.MonkeyPatch, machine: Machine, tmp_path: Path
) -> None:
    machine.has(gpu_gb=40, host_gb=64)
    seen = []
    monkeypatch.setattr(device, "has_gpu", lambda: bool(seen.append(os.environ.get(VISIBLE)) or True))
    check_memory(stages_of("config.yaml", "describe.device=cuda:1"))
    monkeypatch.delenv(VISIBLE)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("", (), {"total_memory": 40e9}))
    checks.gpu(stages_of("config.yaml", "describe.device=cuda:1"))
    assert set(seen) == {"1"}


def test_a_stage_of_its_own_goes_to_the_gpu_that_it_names() -> None:
    assert device.resolve("cuda:3") == "cuda"
    assert os.environ[VISIBLE] == "3"


def test_stages_on_two_gpus_are_refused(machine: Machine) -> None:
    machine.has(gpu_gb=40, host_gb=64)
    overrides = ("describe.device=cuda:0", "structure.device=cuda:1")
    assert refusal(*overrides).startswith("the stages name cuda:0 and cuda:1, and a run uses one GPU: ")
    finding = checks.gpu(stages_of("config.yaml", *overrides))
    assert not finding.is_fine
    assert "cuda:0 and cuda:1" in finding.text


@pytest.mark.parametrize(("visible", "gpus"), [("3,5", 2), ("2,-1,4,5,6,7", 1), ("GPU-1", 1), ("", 0)])
def test_a_gpu_that_is_not_visible_is_named(visible: str, gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, visible)
    with pytest.raises(UserError, match=rf"^cuda:4: CUDA_VISIBLE_DEVICES names {gpus} GPUs?, counted from 0"):
        device.use_one_gpu(["cuda:4"])


def test_a_gpu_that_is_not_there_is_named(host: Host) -> None:
    host.has_driver("580.65.06", "NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-40GB")
    sentence = refusal("device=cuda:7")
    assert "there is no GPU 7: the machine has 2, counted from 0 (NVIDIA A100-SXM4-40GB, " in sentence


def test_cuda_that_is_in_use_already_is_not_moved_to_another_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library in this process may have initialised it, and then it never reads the environment again."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    device.use_one_gpu(["cuda"])
    assert VISIBLE not in os.environ
    with pytest.raises(UserError, match=r"^cuda:1: .* set CUDA_VISIBLE_DEVICES=1 before it starts"):
        device.use_one_gpu(["cuda:1"])
    assert VISIBLE not in os.environ


def test_the_gpu_that_was_chosen_stays_usable_while_it_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stage asks again, in the middle of a run."""
    device.use_one_gpu(["cuda:1", "cuda"])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert device.resolve("cuda:1") == "cuda"
    device.use_one_gpu(["cuda", "cuda:1"])
    assert os.environ[VISIBLE] == "1"


@pytest.mark.parametrize(("gpus", "is_refused"), [(2, True), (1, False)])
def test_cuda_that_has_counted_its_gpus_already_is_noticed(
    gpus: int, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.cuda.is_available(), in a module of somebody's, makes CUDA read the environment."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if is_refused:
        with pytest.raises(UserError, match="set CUDA_VISIBLE_DEVICES=1 before it starts"):
            device.use_one_gpu(["cuda:1"])
    else:
        device.use_one_gpu(["cuda:1"])


@pytest.mark.parametrize(("on_gpu", "main_gpu"), [(True, 0), (False, -1)])
def test_llama_cpp_keeps_a_model_on_one_gpu_or_off_all(
    on_gpu: bool, main_gpu: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from vec_pipeline.engines import llama_slots

    asked: list[Any] = []
    monkeypatch.setattr(llama_slots.c, "llama_supports_gpu_offload", lambda: on_gpu)
    monkeypatch.setattr(llama_slots.c, "llama_model_load_from_file", lambda path, options: asked.append(options) or 0)
    (tmp_path / "model.gguf").touch()
    for layers in (-1, 0):
        with pytest.raises(ValueError, match=r"model\.gguf"):
            llama_slots._Model(tmp_path / "model.gguf", layers)
    assert [options.split_mode for options in asked] == [llama_slots.c.LLAMA_SPLIT_MODE_NONE] * 2
    assert [options.main_gpu for options in asked] == [main_gpu, -1]


# --- the option `device`


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0", "cuda:15", "cpu", "mps"])
def test_every_stage_with_a_model_of_torch_takes_the_same_devices(name: str, tmp_path: Path) -> None:
    chosen = {stage.name: getattr(stage, "device", None) for stage in stages_of("config.yaml", f"device={name}")}
    assert {key for key, value in chosen.items() if value == name} == {
        "describe", "embed_text", "embed_image", "structure"
    }  # fmt: skip
    path = tmp_path / "one.yaml"
    path.write_text(f"stages: [open_image, {{use: describe, model: a/b, device: {name}}}]")
    assert load_config(path).stages[1].device == name  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "suggested"), [("cuda:x", "cuda:0"), ("cuda:one", "cuda:0"), ("cuad", "cuda"), ("cuda:-1", "cuda:0")]
)
def test_a_device_that_is_none_is_named(text: str, suggested: str) -> None:
    with pytest.raises(ConfigError) as caught:
        stages_of("config.yaml", f"describe.device={text}")
    sentence = f"describe.device: '{text}' is not one of auto, cuda, cuda:0, cpu, mps (did you mean '{suggested}'?)"
    assert str(caught.value) == sentence


@pytest.mark.parametrize("text", ["3", "[cuda]", "null", "{a: b}", "true"])
def test_a_device_that_is_no_text_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^describe\.device: .* is not one of auto, cuda, cuda:0, cpu, mps"):
        stages_of("config.yaml", f"describe.device={text}")


# --- driver and torch


def test_a_driver_older_than_torch_is_named_with_what_to_install(host: Host) -> None:
    host.has_driver("535.183.01", "NVIDIA GeForce RTX 3090")
    sentence = refusal()
    assert sentence == (
        "Qwen/Qwen2-VL-7B-Instruct needs about 17 GB of GPU memory and the NVIDIA driver 535.183.01 (NVIDIA GeForce "
        "RTX 3090) is older than 580, which CUDA 13.0 of this torch needs: update the driver, or "
        "`pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cu126`"
    )
    finding = checks.gpu(stages_of())
    assert not finding.is_fine
    assert finding.text in sentence


@pytest.mark.parametrize(
    ("cuda", "driver", "is_old"),
    [
        ("13.0", "579.99", True),
        ("13.2", "580.65.06", False),
        ("12.6", "525.60.13", False),  # by CUDA's minor version compatibility
        ("12.8", "550.54", False),
        ("12.8", "470.256.02", True),
        ("11.8", "470.256.02", False),
        ("11.8", "440.33", True),
    ],
)
def test_which_driver_a_torch_needs(cuda: str, driver: str, is_old: bool, host: Host) -> None:
    host.has_torch(cuda, None)
    host.has_driver(driver, "NVIDIA A10")
    problem = drivers.setup_problem()
    assert ("is older than" in problem) == is_old
    assert driver in problem


def test_a_gpu_that_auto_cannot_use_is_said_at_the_start(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.has_torch("13.0", None)
    fetched(stages_of("configs/demo.yaml", "device=auto"))
    assert capsys.readouterr().out == ""
    host.has_driver("535.54", "NVIDIA A10")
    fetched(stages_of("configs/demo.yaml", "device=auto"))
    assert capsys.readouterr().out.startswith("models run on the CPU: the NVIDIA driver 535.54 (NVIDIA A10) is older")
    fetched(stages_of("configs/demo.yaml", "device=cpu"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("driver", "capability", "index"),
    [
        ("580.65.06", "8.6", "cu130"),
        ("610.10", "12.0", "cu130"),
        ("580.65.06", "6.1", "cu126"),  # CUDA 13 is for 7.5 and newer
        ("570.124", "8.9", "cu126"),
        ("525.60.13", "7.0", "cu126"),
        ("570.124", "12.0", None),  # CUDA 12.6 does not know it
        ("470.256.02", "7.5", None),
    ],
)
def test_the_index_to_install_from_suits_driver_and_gpu(
    driver: str, capability: str, index: str | None, host: Host
) -> None:
    host.has_torch(None, None)
    host.has_driver(driver, "a GPU", capability=capability)
    problem = drivers.setup_problem()
    assert (f"https://download.pytorch.org/whl/{index}`" in problem) == (index is not None)
    assert ("https://" in problem) == (index is not None)
    assert index or "update the driver to 580 or newer" in problem


def test_a_torch_without_cuda_is_named(host: Host) -> None:
    host.has_torch(None, None)
    host.has_driver("580.65.06", "NVIDIA L4")
    assert (
        f"torch {torch.__version__} is built without CUDA, although there is the NVIDIA driver 580.65.06 (NVIDIA L4): "
        "`pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cu130`"
    ) in refusal()


@pytest.mark.parametrize(
    ("capability", "is_built_for"),
    [((6, 1), False), ((7, 5), True), ((8, 9), True), ((9, 0), True), ((10, 0), False), ((12, 1), True)],
)
def test_a_gpu_that_torch_is_not_built_for_is_named(
    capability: tuple[int, int], is_built_for: bool, host: Host, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch says that such a GPU is available, and fails with its first kernel."""
    found = drivers.capability_problem
    machine.has(gpu_gb=40, host_gb=64)
    monkeypatch.setattr(drivers, "capability_problem", found)
    host.has_torch("13.0", "NVIDIA GeForce GTX 1080 Ti", capability)
    host.has_driver("580.65.06", "NVIDIA GeForce GTX 1080 Ti", capability=".".join(map(str, capability)))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("", (), {"total_memory": 40e9}))
    finding = checks.gpu(stages_of())
    assert finding.is_fine == is_built_for
    if is_built_for:
        check_memory(stages_of())
        return
    version = ".".join(map(str, capability))
    sentence = f"the NVIDIA GeForce GTX 1080 Ti has compute capability {version}, and this torch is built for 7.5, 8.0,"
    for text in (finding.text, refusal(), refusal("device=auto"), refusal("device=cuda:0")):
        assert sentence in text
        assert ("--index-url https://download.pytorch.org/whl/cu126" in text) == (capability < (7, 5))
        assert ("`pip install --upgrade torch torchvision`" in text) == (capability > (7, 5))
    check_memory(stages_of("configs/small.yaml", "device=cpu"))


def test_ptx_runs_on_newer_gpus_and_an_unknown_list_is_no_problem() -> None:
    assert drivers.is_built_for((13, 0), ["sm_80", "compute_120"])
    assert not drivers.is_built_for((13, 0), ["sm_80", "sm_120"])
    assert not drivers.is_built_for((9, 0), ["compute_120"])
    assert drivers.is_built_for((9, 0), ["sm_75", "sm_90a"])
    assert drivers.is_built_for((9, 0), [])
    assert drivers.is_built_for((9, 0), ["gfx90a", "gfx942"])  # of ROCm


OPEN_MODULE = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.129.03  Release Build  (dvs@x)  Tue\nGCC 12.3\n"
)
MODULE = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:42:13 UTC 2023\nGCC version: 12.3.0\n"
)


@pytest.mark.parametrize("text", [OPEN_MODULE, MODULE])
@pytest.mark.parametrize("program", [None, "#!/bin/sh\necho 'Failed to initialize NVML'; exit 18\n"])
def test_without_nvidia_smi_the_kernel_module_names_the_driver(text: str, program: str | None, host: Host) -> None:
    host.has_module(text)
    if program:
        host.program(program)
    assert "the NVIDIA driver 535.129.03 is older than 580" in refusal()


def test_an_nvidia_smi_that_hangs_is_left_alone(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.program(f"#!/bin/sh\nexec {shutil.which('sleep', path=os.defpath)} 60\n")
    monkeypatch.setattr(drivers, "TIMEOUT_S", 0.2)
    assert drivers.nvidia_driver() is None


def test_a_gpu_that_torch_cannot_reach_is_explained(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container without --gpus sees the host's kernel module, and nothing else."""
    host.has_driver("580.65.06", "NVIDIA H100")
    sentence = refusal()
    assert "although there is the NVIDIA driver 580.65.06 (NVIDIA H100)" in sentence
    assert "Error 802: system not yet initialized)" in sentence
    assert sentence.endswith("start a container with --gpus all")
    device.visible_at_start.cache_clear()
    monkeypatch.setenv(VISIBLE, "-1")
    assert "CUDA_VISIBLE_DEVICES is '-1', which hides the GPU" in refusal()


def test_without_a_driver_there_is_no_gpu_and_nothing_to_install(host: Host) -> None:
    assert drivers.setup_problem() == ""
    assert "no GPU was found: use configs/small.yaml" in refusal()
    finding = checks.gpu(stages_of("configs/demo.yaml"))
    assert finding == checks.Finding("gpu", "none; the demo and small models run on the CPU")


def test_a_model_that_is_on_the_cpu_for_want_of_a_driver_says_so(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "host_free_gb", lambda: 4.0)
    assert "and 4 GB are free: leave describe out" in refusal(config="configs/small.yaml")
    host.has_driver("535.183.01", "NVIDIA A10")
    sentence = refusal(config="configs/small.yaml")
    assert (
        "needs about 9 GB of host memory and 4 GB are free: it is not on the GPU, as the NVIDIA driver 535" in sentence
    )
    assert "are free: leave describe out" in refusal("device=cpu", config="configs/small.yaml")


def test_a_problem_of_the_gpu_stops_no_run_that_does_not_use_it(host: Host) -> None:
    host.has_driver("535.183.01", "NVIDIA A10")
    finding = checks.gpu(stages_of("configs/demo.yaml"))
    assert finding.is_fine
    assert "535.183.01" in finding.text


# --- memory of the GPU


@pytest.mark.parametrize("free_gb", [15.6, 16.7, 17.1])
def test_a_card_of_16_gb_is_refused_before_the_download(free_gb: float, machine: Machine) -> None:
    """The weights alone would fit into the last two, and nothing beside them."""
    machine.has(gpu_gb=free_gb, host_gb=64)
    sentence = refusal()
    assert sentence.startswith("Qwen/Qwen2-VL-7B-Instruct needs about 17")
    assert sentence.endswith(": set quantization: nf4, or use configs/small.yaml")
    for quantization in ("nf4", "int8"):
        check_memory(stages_of("config.yaml", f"describe.quantization={quantization}"))


@pytest.mark.parametrize("free_gb", [22.0, 24.0])
def test_a_card_of_24_gb_passes(free_gb: float, machine: Machine) -> None:
    machine.has(gpu_gb=free_gb, host_gb=64)
    check_memory(stages_of())


def test_room_for_one_row_is_needed_and_for_no_more(machine: Machine) -> None:
    for model, quantization in (("", "nf4"), ("", "none")):
        stage = stages_of("config.yaml", f"describe.quantization={quantization}", "describe.batch_size=1")[1]
        machine.has(gpu_gb=40, host_gb=64)
        needed_gb = stage.need().gpu_gb + stage.need().rows_gb + checks.WORK_SPACE_GB
        assert stage.need().rows_gb > 0.05, model
        for batch_size in ("auto", "1", "200"):
            options = (f"describe.quantization={quantization}", f"describe.batch_size={batch_size}")
            machine.has(gpu_gb=needed_gb - 0.01, host_gb=64)
            assert "GB of GPU memory and " in refusal(*options)
            machine.has(gpu_gb=needed_gb + 0.01, host_gb=64)
            check_memory(stages_of("config.yaml", *options))


def test_an_option_is_proposed_only_where_its_rows_fit_too(machine: Machine) -> None:
    machine.has(gpu_gb=7.1, host_gb=64)
    assert "nf4" not in refusal(), "7.0 GB of weights fit, and nothing beside them"
    machine.has(gpu_gb=7.9, host_gb=64)
    assert "nf4" in refusal()


# --- what a GPU can do


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((12, 0), torch.bfloat16)]
)
def test_a_gpu_before_ampere_computes_in_float16(
    capability: tuple[int, int], expected: torch.dtype, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.has_torch("13.0", "Tesla T4", capability)
    assert device.dtype("cuda") == expected
    assert (device.dtype("mps"), device.dtype("cpu")) == (torch.float16, torch.float32)
    asked = loading_options(Describe(model="a/b", device="cuda", quantization="nf4"), monkeypatch)
    assert asked["dtype"] == asked["quantization_config"].bnb_4bit_compute_dtype == expected
    assert asked["device_map"] == "cuda"


class Loaded(Exception):  # noqa: N818 (nothing went wrong)
    """Ends a load."""


def loading_options(stage: Describe, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the stage asks transformers for."""
    import transformers

    asked: dict[str, Any] = {}

    def load(path: Path, **options: Any) -> None:
        asked.update(options)
        raise Loaded

    patch.setattr(Describe, "path", lambda self: Path("model"))
    patch.setattr(transformers.AutoProcessor, "from_pretrained", lambda *_, **__: None)
    patch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", load)
    with pytest.raises(Loaded):
        stage.load()
    return asked


class OnGpu(torch.Tensor):
    """A tensor on the CPU that says that it is on a GPU."""

    is_cuda = property(lambda self: True)


@pytest.mark.parametrize("capability", [(7, 5), (8, 0)])
def test_images_of_different_sizes_share_a_call_from_ampere_on_and_not_before(
    capability: tuple[int, int], host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vec_pipeline.engines import qwen_vision

    host.has_torch("13.0", "Tesla T4", capability)
    calls = []
    monkeypatch.setattr(qwen_vision, "varlen_attn", lambda queries, *_: calls.append(1) or queries)
    lengths = [4, 6, 4]
    inputs = [torch.randn(14, 2, 8, generator=torch.manual_seed(seed)).half() for seed in range(3)]
    segments = qwen_vision.Segments(lengths, torch.device("cpu"))
    found = segments.attend(*(each.as_subclass(OnGpu) for each in inputs))
    assert bool(calls) == (capability >= (8, 0))
    if not calls:
        assert torch.equal(found.as_subclass(torch.Tensor), segments.attend(*inputs))


# --- Apple


@pytest.fixture
def mac(host: Host, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Apple silicon: no CUDA, a GPU of Metal, and 16 GB of memory that are the GPU's too."""
    machine.has(gpu_gb=None, host_gb=16)
    monkeypatch.setattr(device, "has_mps", lambda: True)
    monkeypatch.setattr(llama_process, "gpu_problem", lambda: "")
    return machine


def test_auto_is_cuda_else_mps_else_the_cpu(mac: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.resolve("auto") == "mps"
    monkeypatch.setattr(device, "has_gpu", lambda: True)
    assert device.resolve("auto") == "cuda"
    monkeypatch.setattr(device, "has_gpu", lambda: False)
    monkeypatch.setattr(device, "has_mps", lambda: False)
    assert device.resolve("auto") == "cpu"


@pytest.mark.parametrize("is_there", [True, False])
def test_torch_says_whether_there_is_apples_gpu(is_there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: is_there)
    assert device.has_mps() is is_there


@pytest.mark.parametrize("name", ["auto", "mps"])
def test_models_on_apples_gpu_need_memory_of_the_host(name: str, mac: Machine) -> None:
    for stage in stages_of("configs/small.yaml", f"device={name}"):
        assert stage.need().gpu_gb == 0
    describe = stages_of("configs/small.yaml", f"device={name}")[1]
    assert describe.need().host_gb == pytest.approx(4.4), "in float16"
    check_memory(stages_of("configs/small.yaml", f"device={name}"))
    mac.has(gpu_gb=None, host_gb=3)
    assert "needs about 4 GB of host memory and 3 GB are free" in refusal(f"device={name}", config="configs/small.yaml")


def test_every_stage_has_a_batch_size_on_apples_gpu(mac: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.test_structure import ChildOf
    from vec_pipeline.stages import describe, embed_dino, embed_image, embed_text

    for most in (describe.MOST_AT_ONCE, embed_dino.MOST_IMAGES, embed_image.MOST_IMAGES, embed_text.MOST_TEXTS):
        assert device.rows_that_fit("mps", 1.0, 0.5, most) == most["mps"]
        assert device.rows_that_fit("mps", 1e9, 0.5, most) == 8, "half of 16 GB"
    mac.has(gpu_gb=None, host_gb=2)
    monkeypatch.setattr(llama_process, "gpu_problem", lambda: "")
    assert Structure(model="m", device="mps").auto_batch_size(ChildOf(131_072), 0.0) == 14, "as with a GPU of 2 GB"
    assert Describe(model="a/b", device="mps").need().rows_gb >= 0


def test_what_needs_cuda_is_refused_on_apples_gpu(mac: Machine) -> None:
    assert refusal("device=mps", "describe.quantization=nf4") == (
        "describe.quantization: nf4 needs a GPU with CUDA: set it to none, or device: cuda"
    )
    assert "no GPU with CUDA was found: set device: mps" in refusal("device=cuda")
    finding = checks.gpu(stages_of("configs/small.yaml"))
    assert finding == checks.Finding("gpu", "Apple's (mps), which shares the memory of the host")


def test_mps_elsewhere_is_refused(machine: Machine) -> None:
    machine.has(gpu_gb=40, host_gb=64)
    assert refusal("device=mps") == "describe.device: mps is an Apple GPU, and torch finds none: set cuda, cpu or auto"


def test_llama_without_metal_is_named(mac: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_process, "gpu_problem", lambda: "was built without the GPU")
    assert "llama.cpp was built without the GPU" in refusal("device=mps", config="configs/small.yaml")
    check_memory(stages_of("configs/small.yaml"))


# --- libraries of CUDA for llama.cpp


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path of Python that holds CUDA as torch's wheels bring it, with a libcudart."""
    for folder in ("nvidia/cu13/lib", "nvidia/cudnn/lib", "nvidia/cuda_runtime/include"):
        (tmp_path / folder).mkdir(parents=True)
    library = psutil._psutil_linux.__file__ if hasattr(psutil, "_psutil_linux") else ""
    if library:  # any library does, as long as it is found
        shutil.copy(library, tmp_path / "nvidia/cu13/lib/libcudart.so.99")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    llama_process.gpu_problem.cache_clear()
    yield tmp_path
    llama_process.gpu_problem.cache_clear()


def put_llama(folder: Path, program: str) -> None:
    (folder / "llama_cpp.py").write_text(program)


LINKED = "import ctypes; ctypes.CDLL('libcudart.so.99')\ndef llama_supports_gpu_offload(): return True\n"
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="LD_LIBRARY_PATH is Linux")


@linux
def test_llama_cpp_finds_the_cuda_that_torch_brings(packages: Path) -> None:
    put_llama(packages, LINKED)
    assert llama_process.gpu_problem() == ""
    assert llama_process.supports_gpu()


@linux
def test_torch_is_not_imported_to_find_its_libraries(packages: Path) -> None:
    program = (
        "import sys; from vec_pipeline.engines.llama_process import supports_gpu\n"
        "print(supports_gpu(), 'torch' in sys.modules)"
    )
    put_llama(packages, LINKED)
    environment = os.environ | {"PYTHONPATH": f"{packages}{os.pathsep}{PROJECT}"}
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert output.stdout.split() == ["True", "False"], output.stderr


@linux
def test_folders_that_the_user_names_come_first(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/mine:/opt/other")
    folders = llama_process._environment()["LD_LIBRARY_PATH"].split(":")
    assert folders[:2] == ["/opt/mine", "/opt/other"]
    assert {str(packages / "nvidia/cu13/lib"), str(packages / "nvidia/cudnn/lib")} <= set(folders[2:])
    assert not any("include" in folder for folder in folders)


def test_where_nothing_is_found_the_path_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty entry would be the current folder."""
    monkeypatch.setattr(llama_process, "find_spec", lambda _: None)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    assert "LD_LIBRARY_PATH" not in llama_process._environment()
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/mine")
    assert llama_process._environment()["LD_LIBRARY_PATH"] == "/opt/mine"


@linux
def test_a_library_that_is_missing_is_named(packages: Path, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    put_llama(packages, LINKED.replace("libcudart.so.99", "libcudart.so.77"))
    assert not llama_process.supports_gpu()
    reason = "llama.cpp cannot be imported (OSError: libcudart.so.77: cannot open shared object file: No such file"
    host.has_torch("13.0", "NVIDIA L4")
    monkeypatch.setattr(device, "gpu_free_gb", lambda: 40.0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("", (), {"total_memory": 40e9}))
    assert f"structure: {reason}" in refusal()
    assert refusal().endswith("run make llama, or --set structure.device=cpu")
    finding = checks.gpu(stages_of())
    assert not finding.is_fine
    assert reason in finding.text
    assert checks.gpu(stages_of("configs/demo.yaml")).is_fine, "which uses no GPU"


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        ("def llama_supports_gpu_offload(): return False", "was built without the GPU"),
        (
            "import sys; print('ggml_cuda_init: CUDA driver version is insufficient', file=sys.stderr)\n"
            "def llama_supports_gpu_offload(): return False",
            "cannot use the GPU (ggml_cuda_init: CUDA driver version is insufficient)",
        ),
        ("import os; os.abort()", "cannot be imported (signal SIGABRT)"),
        ("import time; time.sleep(60)", "did not answer within 1 s"),
    ],
)
def test_why_llama_cpp_has_no_gpu(program: str, problem: str, packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_llama(packages, program)
    monkeypatch.setattr(llama_process, "TIMEOUT_S", 1 if "sleep" in program else 60)
    assert llama_process.gpu_problem() == problem


def test_a_module_of_the_current_folder_is_not_taken_for_llama_cpp(
    packages: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_llama(packages, "def llama_supports_gpu_offload(): return True")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    put_llama(elsewhere, "raise OSError('not this one')")
    monkeypatch.chdir(elsewhere)
    assert llama_process.gpu_problem() == ""


# --- defaults of libraries


@pytest.mark.parametrize("by_user", [None, *ALLOCATOR])
def test_torch_reserves_memory_in_segments_that_grow_unless_the_user_says_otherwise(
    by_user: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ALLOCATOR:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "uname", lambda: type("", (), {"release": "6.8.0-45-generic"}))
    monkeypatch.setattr(sys, "platform", "linux")
    if by_user:
        monkeypatch.setenv(by_user, "max_split_size_mb:64")
    set_defaults()
    found = {name: os.environ[name] for name in ALLOCATOR if name in os.environ}
    expected = {by_user: "max_split_size_mb:64"} if by_user else {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    assert found == expected


@pytest.mark.parametrize(
    ("platform", "release"),
    [
        ("linux", "5.15.153.1-microsoft-standard-WSL2"),
        ("linux", "4.4.0-19041-Microsoft"),
        ("linux", "5.15.136-tegra"),
        ("darwin", "24.6.0"),
    ],
)
def test_segments_do_not_grow_where_the_driver_cannot(
    platform: str, release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "uname", lambda: type("", (), {"release": release}))
    monkeypatch.setattr(sys, "platform", platform)
    set_defaults()
    assert not set(ALLOCATOR) & os.environ.keys()


def test_a_command_sets_the_defaults_before_torch_is_imported() -> None:
    program = (
        "import os, sys; from vec_pipeline import __main__ as m, commands\n"
        "m.set_defaults = lambda: print('torch' in sys.modules)\n"
        "m.main(['check', '--config', 'absent.yaml'])"
    )
    output = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True)
    assert output.stdout.splitlines()[0] == "False", output.stderr
    assert main is not set_defaults


@pytest.mark.parametrize("times", [1, 2])
def test_int8_is_quiet_about_what_it_does_at_every_call(times: int, caplog: pytest.LogCaptureFixture) -> None:
    """bitsandbytes logs it from 0.50 on, and warns before."""
    for _ in range(times):
        quantization_config("int8", torch.bfloat16)
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    logger.warning("MatMul8bitLt: inputs will be cast from %s to float16 during quantization", torch.bfloat16)
    logger.warning("something else of %s", "note")
    assert caplog.messages == ["something else of note"]
    assert len(logger.filters) == 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quantization_config("int8", torch.bfloat16)
        warnings.warn(
            "MatMul8bitLt: inputs will be cast from torch.bfloat16 to float16 during quantization", stacklevel=1
        )
        warnings.warn("something else", stacklevel=1)
    assert [str(each.message) for each in caught] == ["something else"]


def test_bitsandbytes_itself_is_quiet(caplog: pytest.LogCaptureFixture) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = bitsandbytes.nn.Linear8bitLt(64, 32, has_fp16_weights=False).to("cpu")
    quantization_config("int8", torch.bfloat16)
    with warnings.catch_warnings(record=True) as caught:
        quantization_config("int8", torch.bfloat16)
        layer(torch.randn(4, 64, dtype=torch.bfloat16))
    assert not [text for text in (*caplog.messages, *(str(each.message) for each in caught)) if "MatMul8bitLt" in text]


def test_stages_of_one_device_type() -> None:
    """A stage of somebody's takes the same type, so that its mistakes are answered alike."""
    from typing import get_type_hints

    for stage in (Describe, EmbedText, EmbedImage, Structure):
        assert get_type_hints(stage, include_extras=True)["device"] == device.Device
