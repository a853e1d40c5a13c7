"""Why torch cannot use the NVIDIA GPU of a machine, and what to install: its driver, torch's CUDA, GPUs it is for."""

import contextlib
import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from vec_pipeline import device

KERNEL_MODULE = Path("/proc/driver/nvidia/version")
TIMEOUT_S = 30  # of nvidia-smi, which takes seconds where the driver is not loaded yet
# By CUDA's major version; within one, a newer minor version runs on the same driver.
# Source: https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
TURING, HOPPER = (7, 5), (9, 0)  # compute capability: the oldest of CUDA 13, and the newest of torch's builds of 12.6


class Driver(NamedTuple):
    """The NVIDIA driver; and of its GPUs the names, and the first one's compute capability, where nvidia-smi runs."""

    version: str
    gpus: tuple[str, ...] = ()
    capability: tuple[int, int] = TURING

    def __str__(self) -> str:
        return f"the NVIDIA driver {self.version}" + (f" ({self.gpus[0]})" if self.gpus else "")

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0])

    @property
    def remedy(self) -> str:
        """What makes torch and this driver fit together."""
        if self.major >= OLDEST_DRIVER[13] and self.capability >= TURING:
            return install("cu130")
        if self.major >= OLDEST_DRIVER[12] and self.capability <= HOPPER:
            return install("cu126")
        return f"update the driver to {OLDEST_DRIVER[13]} or newer"


def install(cuda: str) -> str:
    index = f"https://download.pytorch.org/whl/{cuda}"
    return f"`pip install --force-reinstall torch torchvision --index-url {index}`"


def setup_problem() -> str:
    """Why torch cannot use the GPU, and what to do; empty where it can, and where there is no driver."""
    if device.has_gpu():
        return capability_problem()
    driver = nvidia_driver()
    return unseen_gpu(driver) if driver else ""


def unseen_gpu(driver: Driver) -> str:
    """Why torch does not see the GPU of a driver."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA, although there is {driver}: {driver.remedy}"
    oldest = OLDEST_DRIVER.get(int(torch.version.cuda.partition(".")[0]), 0)
    if driver.major < oldest:
        update = "" if "update" in driver.remedy else "update the driver, or "
        return (
            f"{driver} is older than {oldest}, which CUDA {torch.version.cuda} of this torch needs: "
            f"{update}{driver.remedy}"
        )
    visible = os.environ.get(device.VISIBLE, "0").strip()
    if driver.gpus and visible.isdecimal() and int(visible) >= len(driver.gpus):
        names = ", ".join(driver.gpus)
        return f"there is no GPU {visible}: the machine has {len(driver.gpus)}, counted from 0 ({names})"
    if device.visible_at_start() == ():
        return f"{device.VISIBLE} is {visible!r}, which hides the GPU: unset it"
    return (
        f"torch sees no GPU, although there is {driver} ({torch_error()}): see what `nvidia-smi` says, and start a "
        "container with --gpus all"
    )


def torch_error() -> str:
    """What CUDA says when torch initialises it."""
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except Exception as error:  # of several classes, by its cause
        return str(error).partition("\n")[0]
    return "and no error"


def capability_problem() -> str:
    """Why torch cannot use the GPU that it sees, and what to do; empty where it can."""
    import torch

    capability, architectures = torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
    if is_built_for(capability, architectures):
        return ""
    known = ", ".join(f"{number[:-1]}.{number[-1]}" for number in re.findall(r"sm_(\d+)", " ".join(architectures)))
    newer = "`pip install --upgrade torch torchvision`"
    return (
        f"the {torch.cuda.get_device_name()} has compute capability {capability[0]}.{capability[1]}, and this torch is "
        f"built for {known}: {install('cu126') if capability < TURING else newer}"
    )


def is_built_for(capability: tuple[int, int], architectures: Iterable[str]) -> bool:
    """Whether a GPU runs one of the architectures: `sm_86` is for 8.6 to 8.9, `compute_90` for 9.0 and all newer."""
    found = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", name) for name in architectures]
    known = [(match[1], (int(match[2]), int(match[3]))) for match in found if match]
    return not known or any(
        version <= capability and (kind == "compute" or version[0] == capability[0]) for kind, version in known
    )


def nvidia_driver() -> Driver | None:
    """The NVIDIA driver of this machine, by nvidia-smi or by the kernel module; None where there is none."""
    fields = "--query-gpu=driver_version,name,compute_cap"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", fields, "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        gpus = re.findall(r"^([\d.]+), (.+), (\d+)\.(\d+)$", answer.stdout, re.MULTILINE)
        if gpus:
            version, _, major, minor = gpus[0]
            return Driver(version, tuple(gpu[1] for gpu in gpus), (int(major), int(minor)))
    with contextlib.suppress(OSError):
        if found := re.search(r"\d{3}\.\d+(\.\d+)*", KERNEL_MODULE.read_text()):
            return Driver(found[0])
    return None
