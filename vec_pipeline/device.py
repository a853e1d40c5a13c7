"""Which GPU there is, and the memory that is free on it and on the host."""

import os
import sys

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


def leave_half_the_cores() -> None:
    """Let torch compute on half of the cores, because another lane needs the others; OMP_NUM_THREADS wins."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // 2)))  # read when torch is imported
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(int(threads))
