"""Which GPU and which cores there are, and the memory that is free on the GPU and on the host."""

import math
import os
import sys
from pathlib import Path

import psutil

GB = 1e9


def has_gpu() -> bool:
    """Whether torch can use a GPU (imports torch, which takes seconds)."""
    import torch

    return torch.cuda.is_available()


def resolve(device: str) -> str:
    """Turn "auto" into "cuda" where there is a GPU, else into "cpu"."""
    return ("cuda" if has_gpu() else "cpu") if device == "auto" else device


def gpu_free_gb() -> float | None:
    """Free memory of the GPU in use; None where there is none, or where torch is not loaded yet."""
    torch = sys.modules.get("torch")
    if torch is None or getattr(torch.__spec__, "_initializing", False):  # another thread may be importing it
        return None
    if torch.cuda.is_available():
        free_bytes: int = torch.cuda.mem_get_info()[0]
        return free_bytes / GB
    return None


def host_free_gb() -> float:
    """Memory of the host that can be had without swapping."""
    return float(psutil.virtual_memory().available) / GB


def rows_that_fit(device: str, bytes_per_row: float, share: float, most: dict[str, int]) -> int:
    """Rows at once that a share of torch's free memory holds: at least one, and at most `most` of the device."""
    free_gb = (gpu_free_gb() or 0.0) + _gpu_unused_gb() if device == "cuda" else host_free_gb()
    return max(1, min(most[device], int(share * free_gb * GB / bytes_per_row)))


def _gpu_unused_gb() -> float:
    """Memory of the GPU that torch keeps for itself and has no tensors in."""
    import torch

    unused_bytes: int = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return unused_bytes / GB


def free_cores() -> int:
    """The CPU cores to use, by OMP_NUM_THREADS, affinity and cgroup quota; more threads make a step 10 times slower."""
    if threads := _threads_asked_for():
        return threads
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(cores, max(1, math.floor(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup, or its quota is "max"
        return cores


def leave_half_the_cores() -> None:
    """Let torch compute on half of the cores, and llama.cpp's process on as many; OMP_NUM_THREADS wins."""
    threads = _threads_asked_for() or max(1, free_cores() // 2)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is imported
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)


def _threads_asked_for() -> int:
    """The first number of OMP_NUM_THREADS, which may be a list; 0 where it holds none."""
    threads = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(threads) if threads.isdecimal() else 0
