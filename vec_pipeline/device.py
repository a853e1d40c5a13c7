"""The devices of this machine: whether there is a GPU, the free memory of the GPU and of the host, the CPU cores."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

GB = 1e9
CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUPS_OF_PROCESS = Path("/proc/self/cgroup")
NO_LIMIT_BYTES = 1 << 60  # cgroup v1 has a huge number instead of no limit


def has_gpu() -> bool:
    """Whether torch can use a GPU (imports torch, which takes seconds)."""
    import torch

    return torch.cuda.is_available()


def resolve(device: str) -> str:
    """Turn "auto" into "cuda" where there is a GPU, else into "cpu"."""
    return ("cuda" if has_gpu() else "cpu") if device == "auto" else device


def gpu_free_gb() -> float | None:
    """Free memory of the GPU in use; None without a GPU, or before torch is imported."""
    torch = sys.modules.get("torch")
    if torch is None or getattr(torch.__spec__, "_initializing", False):  # another thread may be importing it
        return None
    if torch.cuda.is_available():
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
