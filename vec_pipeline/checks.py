"""Checks what would make a run fail, before any model loads."""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType

from vec_pipeline import device, drivers, weights
from vec_pipeline.chunk_size import chunk_size
from vec_pipeline.config import Config, check_wiring
from vec_pipeline.memory import ModelCache
from vec_pipeline.record import Stage, UserError
from vec_pipeline.remote import RemoteStage
from vec_pipeline.settings import check_settings
from vec_pipeline.sinks.csv_rows import contents_of
from vec_pipeline.terminal import visible

LIBRARIES = [
    "torch",
    "transformers",
    "sentence-transformers",
    "open_clip_torch",
    "gensim",
    "llama-cpp-python",
    "pandas",
    "pillow",
    "psutil",
]
SPARE_DISK_GB = 1.0  # that a download leaves: a full disk also stops the CSV and the log
# Of a GPU, beside a model and its rows: kernels, which CUDA loads with their first use, work space of cuBLAS, gaps in
# torch's memory (0.3 to 0.6 GB together); and of llama.cpp's process a CUDA context of its own (0.3 to 0.5 GB).
WORK_SPACE_GB = 0.6
ROW_BYTES = 20_000  # a row with its vectors, in the CSV and again in the result cache


@dataclass(frozen=True)
class Finding:
    """One check: what was found, and whether it would stop a run."""

    name: str
    text: str
    is_fine: bool = True

    def __str__(self) -> str:
        return f"{'ok  ' if self.is_fine else 'FAIL'}  {self.name}: {self.text}"


def check_memory(stages: Sequence[Stage]) -> None:
    """Raise UserError where one model needs a GPU that is not there, or more memory than is free.

    Models are loaded one after the other where they do not all fit, so the largest alone decides; and with a single
    row at once where there is no room for more.
    """
    device.use_one_gpu(devices_of(stages))
    for stage in stages:
        check_device(stage)
        model = model_name(stage)
        need = replace(stage, batch_size=1).need()  # halving ends there
        beside_gb = need.rows_gb + (WORK_SPACE_GB if need.gpu_gb else 0.0)
        for kind, model_gb, free_gb in (
            ("GPU", need.gpu_gb, device.gpu_free_gb() if need.gpu_gb else None),
            ("host", need.host_gb, device.host_free_gb()),
        ):
            needed_gb = model_gb + beside_gb
            if free_gb is not None and model_gb and needed_gb > free_gb:
                options = [option for option, gb in need.smaller if gb + beside_gb <= free_gb]
                last = "use configs/small.yaml" if kind == "GPU" else f"leave {stage.name} out, or give a smaller model"
                remedy = ", or ".join([*options[:1], last])
                if problem := unused_gpu([stage]):
                    remedy = f"it is not on the GPU, as {problem}"
                digits = 0 if round(needed_gb) > round(free_gb) else 1
                raise UserError(
                    f"{model} needs about {needed_gb:.{digits}f} GB of {kind} memory and {free_gb:.{digits}f} GB are "
                    f"free: {remedy}"
                )


def model_name(stage: Stage) -> str:
    """What messages call the models of a stage; its own name where it has none."""
    options = stage.models if isinstance(stage, weights.ModelStage) else ("model",)
    return " and ".join(str(getattr(stage, option, "")) for option in options) or stage.name


def devices_of(stages: Iterable[Stage]) -> list[str]:
    return [name for stage in stages if (name := getattr(stage, "device", ""))]


def check_device(stage: Stage) -> None:
    """Raise UserError where the device of a stage is not there, or torch cannot use it."""
    for name in devices_of([stage]):
        kind = device.resolve(name)
        if kind == "mps" and not device.has_mps():
            raise UserError(f"{stage.name}.device: mps is an Apple GPU, and torch finds none: set cuda, cpu or auto")
        problem = (drivers.setup_problem() or no_gpu()) if kind == "cuda" else ""
        if problem:
            need, model = stage.need(), model_name(stage)
            figure = f"{model} needs about {roughly(need.gpu_gb)} of GPU memory" if need.gpu_gb else ""
            raise UserError(f"{figure or stage.name + ' asks for a GPU'} and {problem}")


def no_gpu() -> str:
    """That there is no GPU with CUDA, and what to do; empty where there is one."""
    if device.has_gpu():
        return ""
    if device.has_mps():
        return "no GPU with CUDA was found: set device: mps"
    return "no GPU was found: use configs/small.yaml, which a CPU can run slowly, or configs/demo.yaml to try it"


def unused_gpu(stages: Sequence[Stage]) -> str:
    """Why stages whose device is auto go to the CPU although there is a GPU; empty where they do not."""
    return drivers.setup_problem() if "auto" in devices_of(stages) and not device.has_gpu() else ""


def downloads(stages: Sequence[Stage]) -> str:
    """What `check_download_space` says of the models that the hub knows; each of the others has a line of its own."""
    known: list[Stage] = []
    for stage in stages:
        with contextlib.suppress(UserError):
            if isinstance(stage, weights.ModelStage) and stage.missing_gb:
                known.append(stage)
    return check_download_space(known)


def check_download_space(stages: Sequence[Stage]) -> str:
    """Return what is still to download and where. Raises UserError where the disk cannot hold it, or the hub fails."""
    needed_gb = sum(stage.missing_gb for stage in stages if isinstance(stage, weights.ModelStage))
    folder = weights.cache_folder()
    free_gb = shutil.disk_usage(existing_folder(folder / "models")).free / device.GB
    if needed_gb and needed_gb + SPARE_DISK_GB > free_gb:
        raise UserError(
            f"{amount(needed_gb)} of models are still to be downloaded to {folder}, and {amount(free_gb)} are free "
            "there: free some disk space, or set HF_HOME to a folder on a larger disk"
        )
    return f"{amount(needed_gb)} to {folder}, {amount(free_gb)} free" if needed_gb else "nothing is known to be missing"


def findings(
    config: Config, of_source: Mapping[str, str] = MappingProxyType({}), *, check_rows: bool = True
) -> Iterator[Finding]:
    """Check everything a run depends on, without loading or downloading a model.

    of_source: the columns that the source brings.
    check_rows: compare the settings with those that the rows of the CSV were made with.
    """
    yield python()
    yield from libraries()
    yield gpu(config.stages)
    yield tried("downloads", lambda: downloads(config.stages))
    yield tried("memory", lambda: memory(config))
    yield tried("plan", lambda: plan(config))
    yield disk(config.output)
    for stage in config.stages:
        if isinstance(stage, weights.ModelStage) and stage.models:
            yield tried(stage.name, lambda stage=stage: model_files(stage))  # type: ignore[misc]
    yield tried("stages", lambda: wiring(config, of_source))
    yield tried("output", lambda: check_output(config, of_source, check_rows=check_rows))


def print_all(found: Iterable[Finding]) -> bool:
    """Print findings as they come; return whether all are fine."""
    is_fine = True
    for finding in found:
        print(visible(str(finding)), flush=True)
        is_fine = is_fine and finding.is_fine
    return is_fine


def python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    is_fine = (3, 11) <= sys.version_info < (3, 14)
    return Finding("python", found if is_fine else f"{found}: use 3.11 to 3.13", is_fine)


def libraries() -> Iterator[Finding]:
    for name in LIBRARIES:
        try:
            yield Finding(name, version(name))
        except PackageNotFoundError:
            yield Finding(name, "is not installed: run make venv, or pip install .", False)


def gpu(stages: Sequence[Stage]) -> Finding:
    """The GPU that the stages use, and what keeps torch or llama.cpp from using it."""
    try:
        device.use_one_gpu(devices_of(stages))
    except UserError as error:
        return Finding("gpu", str(error), False)
    is_used = "cuda" in map(device.resolve, devices_of(stages))
    problem = drivers.setup_problem()
    if not device.has_gpu():
        apple = "Apple's (mps), which shares the memory of the host" if device.has_mps() else ""
        none = "none; the demo and small models run on the CPU"
        return Finding("gpu", problem or apple or none, not (problem and is_used))
    import torch

    from vec_pipeline.engines.llama_process import gpu_problem

    total_gb = torch.cuda.get_device_properties(0).total_memory / device.GB
    text = f"{torch.cuda.get_device_name(0)}, {device.gpu_free_gb():.0f} of {total_gb:.0f} GB free"
    if not problem and (reason := gpu_problem()):
        problem = f"llama.cpp {reason}: run make llama"
    return Finding("gpu", f"{text}; {problem}" if problem else text, not (problem and is_used))


def memory(config: Config) -> str:
    check_memory(config.stages)
    return f"{device.host_free_gb():.0f} GB free on the host"


def plan(config: Config) -> str:
    """How the run uses the memory there is."""
    size = chunk_size(config.stages, config.chunk_size)
    models = ModelCache(config.stages, config.model_cache_size, config.clear_threshold_gb, size.images_gb)
    more = "" if models.holds_all or size.largest == size.first else f" at first, {size.largest} at most"
    return f"{models.summary}; chunks of {size.first} images{more}"


def wiring(config: Config, of_source: Mapping[str, str]) -> str:
    check_wiring(config.stages, of_source)
    return f"{len(config.stages)}, each reads what an earlier one writes"


def disk(output_path: Path) -> Finding:
    folder = existing_folder(output_path)
    free_gb = shutil.disk_usage(folder).free / device.GB
    rows = int(free_gb * device.GB / (2 * ROW_BYTES))
    return Finding("disk", f"{free_gb:.0f} GB free at {folder}: enough for about {rows:,} rows", free_gb > 1)


def model_files(stage: weights.ModelStage) -> str:
    """Where the weights are, their size and need. Raises UserError where a run would refuse them."""
    if isinstance(stage, RemoteStage) and stage.is_remote:
        stage.fetch()
        return f"{stage.model} at {stage.endpoint}"
    where = "on this machine"
    if not all(weights.local_path(getattr(stage, option)) for option in stage.models):
        where = "to download" if stage.missing_gb else "in the cache"
    if where != "to download":
        for option in stage.models:
            stage.check(stage.path(option))
    need = stage.need()
    needs = [f"{amount(gb)} of {kind}" for gb, kind in ((need.gpu_gb, "GPU"), (need.host_gb, "host")) if gb]
    memory = f"needs about {' and '.join(needs)} memory" if needs else "of unknown size"
    return f"{model_name(stage)}, {amount(stage.weights_gb())} {where}, {memory}"


def roughly(gb: float) -> str:
    return f"{gb:.0f} GB" if gb >= 1 else amount(gb)


def amount(gb: float) -> str:
    return f"{gb:.1f} GB" if gb >= 0.1 else f"{1000 * gb:.1f} MB"


def check_output(config: Config, of_source: Mapping[str, str], *, check_rows: bool) -> str:
    """Return the CSV's path. Raises UserError where it could not be written; makes nothing that was not there."""
    existing = contents_of(config.output, tuple(config.extra_columns(of_source)))
    if check_rows and existing.rows:
        check_settings(config.output, config.stages, existing.header)
    place = config.output if config.output.exists() else existing_folder(config.output)
    if not os.access(place, os.W_OK):
        raise UserError(f"{place} cannot be written: name another file with --output")
    return str(config.output)


def existing_folder(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.exists())


def tried(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, check())
    except UserError as error:
        return Finding(name, str(error).removeprefix(f"{name}: "), False)
