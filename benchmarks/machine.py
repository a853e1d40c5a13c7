"""What a benchmark runs on."""

import os
import platform
import sys
from importlib.metadata import version

from vec_pipeline.engines.llama_process import supports_gpu


def machine(*libraries: str) -> str:
    """Processor, cores, GPU where there is one, and the versions of Python and of some libraries."""
    import torch

    gpu = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    versions = [f"{name} {version(name)}" for name in libraries]
    parts = [platform.machine(), f"{os.cpu_count()} cores", *gpu, f"Python {platform.python_version()}", *versions]
    return ", ".join(parts)


def require_gpu(*, for_llama: bool = False) -> None:
    """End the program with a sentence where torch sees no GPU, or llama.cpp none that it needs."""
    import torch

    if not torch.cuda.is_available():
        sys.exit("--gpu: torch finds no CUDA device here")
    if for_llama and not supports_gpu():
        sys.exit("--gpu: llama.cpp was built without the GPU: make clean-venv && make venv with nvcc on PATH")
