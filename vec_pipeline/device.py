"""Which device models run on, what it can do, the free memory of the GPU and of the host, the CPU cores."""

import functools
import os
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import psutil

from vec_pipeline.record import UserError

# The option `device` of a stage: a text of one of these forms, in which 0 stands for any number.
Device = Annotated[str, "auto", "cuda", "cuda:0", "cpu", "mps"]

GB = 1e9
MOST_PROCESSES = 256  # on CPUs
AMPERE = (8, 0)  # compute capability
VISIBLE = "CUDA_VISIBLE_DEVICES"
CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUPS_OF_PROCESS = Path("/proc/self/cgroup")
NO_LIMIT_BYTES = 1 << 60  # cgroup v1 has a huge number instead of no limit


def has_gpu() -> bool:
    """Whether torch can use a GPU with CUDA (imports torch, which takes seconds)."""
    import torch

    return torch.cuda.is_available()


def has_mps() -> bool:
    """Whether torch can use the GPU of Apple silicon, whose memory is the host's."""
    import torch

    return torch.backends.mps.is_available()


def resolve(device: str) -> str:
    """The kind of a device, as torch calls it: cuda, mps or cpu. "auto" is the first of these that there is."""
    if device == "auto":
        return "cuda" if has_gpu() else "mps" if has_mps() else "cpu"
    if device.startswith("cuda:"):
        use_one_gpu([device])
    return device.partition(":")[0]


def use_one_gpu(devices: Iterable[str]) -> None:
    """Let this process and its children see one GPU: the one that is named as `cuda:N`, else the first.

    N counts among those that CUDA_VISIBLE_DEVICES names where it is set, else among all. To be called with the devices
    of all stages, before CUDA is initialised.

    Raises UserError where two GPUs are named, where the named one is not visible, and where it is too late.
    """
    named = sorted({device for device in devices if device.startswith("cuda:")})
    if len(named) > 1:
        raise UserError(
            f"the stages name {' and '.join(named)}, and a run uses one GPU: give all stages the same `device:`, and "
            "start another run, with an --output of its own, for another GPU"
        )
    index = int(named[0].partition(":")[2]) if named else 0
    visible = visible_at_start()
    if visible is None or index < len(visible):
        _show_only(index, str(index) if visible is None else visible[index])
    elif named:  # else all are hidden
        gpus = f"{len(visible)} GPU{'' if len(visible) == 1 else 's'}"
        raise UserError(f"{named[0]}: {VISIBLE} names {gpus}, counted from 0: set another device, or unset it")


def _show_only(index: int, name: str) -> None:
    """Set CUDA_VISIBLE_DEVICES. Raises UserError where CUDA has read it already, and begins with another GPU."""
    if os.environ.get(VISIBLE) == name:
        return
    torch = imported_torch()
    is_late = torch is not None and torch.cuda.is_initialized()
    if not is_late:
        os.environ[VISIBLE] = name
        if index and torch is not None and torch.cuda.is_available():  # which makes CUDA read it, at the first call
            torch.cuda.init()
            is_late = torch.cuda.device_count() > 1
    if index and is_late:
        raise UserError(
            f"cuda:{index}: CUDA is in use in this process, on another GPU: set {VISIBLE}={name} before it starts, and "
            "device: cuda"
        )


def show_all_gpus() -> None:
    """Let processes that start from here on see what this one saw at its start, before `use_one_gpu`."""
    visible = visible_at_start()
    if visible is None:
        os.environ.pop(VISIBLE, None)
    else:
        os.environ[VISIBLE] = ",".join(visible)


@functools.cache
def visible_at_start() -> tuple[str, ...] | None:
    """What CUDA_VISIBLE_DEVICES named before this process changed it: numbers or UUIDs; None where it was not set."""
    if (text := os.environ.get(VISIBLE)) is None:
        return None
    is_valid = re.compile(r"\d+|(GPU|MIG)-.+").fullmatch  # CUDA ignores what follows an invalid one, such as -1
    return tuple(takewhile(is_valid, map(str.strip, text.split(","))))


def imported_torch() -> Any:
    """The module, where it is imported already; None if not, or while another thread imports it."""
    torch = sys.modules.get("torch")
    return None if getattr(getattr(torch, "__spec__", None), "_initializing", False) else torch


def is_ampere_or_newer() -> bool:
    """Whether the GPU has bfloat16 and flash attention; Turing and older ones have neither."""
    import torch

    return torch.cuda.get_device_capability() >= AMPERE


def dtype(kind: str) -> Any:
    """The torch.dtype that models compute in: of 16 bits on a GPU, and bfloat16 where it has that; float32 on a CPU."""
    import torch

    if kind == "cpu":
        return torch.float32
    has_bfloat16 = kind == "cuda" and has_gpu() and is_ampere_or_newer()
    return torch.bfloat16 if has_bfloat16 else torch.float16


def cpu_has_bfloat16() -> bool:
    """Whether the CPU computes in bfloat16 (AMX, AVX512-BF16, or Arm's): on others it is emulated, and slow."""
    import torch

    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def gpu_free_gb() -> float | None:
    """Free memory of the GPU in use; None without a GPU, or before torch is imported."""
    torch = imported_torch()
    if torch is not None and torch.cuda.is_available():
        free_bytes: int = torch.cuda.mem_get_info()[0]
        return free_bytes / GB
    return None


def host_free_gb() -> float:
    """Memory of the host available without swapping, within the limits of the process's cgroups (of a container)."""
    return min([psutil.virtual_memory().available, *_cgroups_free_bytes()]) / GB


def rows_that_fit(
    device: str, bytes_per_row: float, share: float, most: dict[str, int], reserved_gb: float = 0.0
) -> int:
    """Rows at once for which torch has memory: at least one, and at most `most` of the device.

    share: of the free memory, what the rows may take. reserved_gb: memory that is free and reserved for other models.
    """
    free_gb = (gpu_free_gb() or 0.0) + _gpu_cached_gb() if device == "cuda" else host_free_gb()
    return max(1, min(most[device], int(share * max(0.0, free_gb - reserved_gb) * GB / bytes_per_row)))


def _gpu_cached_gb() -> float:
    """GPU memory in the cache of torch's allocator: reserved, and without a tensor in it."""
    import torch

    cached_bytes: int = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return cached_bytes / GB


def free_cores() -> int:
    """CPU cores to use: OMP_NUM_THREADS, else the affinity within cgroup quotas; more threads are up to 10x slower."""
    if threads := _requested_threads():
        return threads
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *_cgroups_cores()]))


def _cgroups(controller: str) -> Iterator[Path]:
    """Folders of the process's cgroup and its ancestors, all of whose limits apply; cgroup v2 and v1.

    Inside a container the root may be the process's own cgroup, so some of the folders may not exist.
    """
    try:
        lines = CGROUPS_OF_PROCESS.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            root = CGROUP_ROOT / controller if controllers else CGROUP_ROOT  # v2 has one tree for all controllers
            folder = root / path.lstrip("/")
            yield from (each for each in (folder, *folder.parents) if each.is_relative_to(root))


def _cgroups_free_bytes() -> Iterator[int]:
    for folder in _cgroups("memory"):
        limit, *usage = (
            _integers(folder, "memory.max", "memory.current")
            or _integers(folder, "memory.limit_in_bytes", "memory.usage_in_bytes")
            or [NO_LIMIT_BYTES]
        )
        if limit < NO_LIMIT_BYTES:
            yield max(0, limit - sum(usage) + _reclaimable_bytes(folder))


def _reclaimable_bytes(folder: Path) -> int:
    """Page cache that the kernel reclaims before it enforces a limit."""
    try:
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))  # v1 has a total with its descendants


def _cgroups_cores() -> Iterator[int]:
    for folder in _cgroups("cpu"):
        quota = _integers(folder, "cpu.max") or _integers(folder, "cpu.cfs_quota_us", "cpu.cfs_period_us")
        if quota and quota[0] > 0:  # v1 has -1 for no quota
            yield quota[0] // quota[1]


def _integers(folder: Path, *names: str) -> list[int]:
    """The integers in files of a cgroup; none if a file is missing, unreadable or says "max"."""
    try:
        return [int(word) for name in names for word in (folder / name).read_text().split()]
    except (OSError, ValueError):
        return []


def cores_each(processes: int) -> int:
    """CPU cores for each of several processes that work at the same time: OMP_NUM_THREADS where it is set."""
    return _requested_threads() or max(1, free_cores() // processes)


def names(text: str) -> list[str]:
    """The devices of a run in several processes: all GPUs for all, else as listed; `cpu:N` stands for N processes.

    Raises ValueError for what is no such list.
    """
    found: list[str] = []
    for each in text.replace(" ", "").split(","):
        kind, _, number = each.partition(":")
        if each == "all":
            import torch

            found += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        elif kind == "cpu" and number.isdecimal() and 0 < int(number) <= MOST_PROCESSES:
            found += [f"cpu:{index}" for index in range(int(number))]
        elif kind == "cuda" and number.isdecimal():
            found.append(each)
        else:
            raise ValueError(f"{each!r} is not a device: name all, GPUs such as cuda:0,cuda:2, or cpu:2")
    if not found:
        raise ValueError("all: torch sees no GPU here: name cpu:2, say, or leave devices out")
    if len({*found}) < len(found):
        raise ValueError(f"{text!r} names a device twice")
    return found


def leave_half_the_cores() -> None:
    """Let torch use half of the cores and llama.cpp's process the other half, unless OMP_NUM_THREADS is set."""
    threads = _requested_threads() or max(1, free_cores() // 2)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is imported
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)


def _requested_threads() -> int:
    """The first number in OMP_NUM_THREADS, which may be a list; 0 if there is none."""
    threads = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(threads) if threads.isdecimal() else 0
