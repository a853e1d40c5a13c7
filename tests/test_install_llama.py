"""scripts/install_llama.sh gives llama.cpp the GPU there is: with pip itself, small packages and faked drivers."""

import base64
import hashlib
import inspect
import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import PROJECT

SCRIPT = PROJECT / "scripts" / "install_llama.sh"
NAME = "llama_cpp_python-0.3.36"
NVIDIA_SMI = """#!/bin/sh
echo '| NVIDIA-SMI 580.65.06    Driver Version: 580.65.06    CUDA Version: {cuda} |'
"""
MODULE = """
__version__ = "0.3.36"
build, compiler = {build!r}, {compiler!r}
def llama_supports_gpu_offload():
    return build == "prebuilt" or "GGML_CUDA=on" in build
"""
BROKEN = 'raise OSError("libcudart.so.13: cannot open shared object file")'
# Builds the wheel as llama-cpp-python does: out of CMAKE_ARGS.
BACKEND = """
import os
from wheel_writer import write_wheel
def build_wheel(folder, config_settings=None, metadata_directory=None):
    values = {"build": os.environ.get("CMAKE_ARGS", ""), "compiler": os.environ.get("CUDACXX", "")}
    return write_wheel(folder, MODULE.format(**values))
"""


def write_wheel(folder: str, module: str) -> str:
    """Write a wheel of llama-cpp-python that holds one module; return the file's name."""
    name = "llama_cpp_python-0.3.36"  # not NAME: the source archive gets a copy of this function
    info = f"{name}.dist-info"
    files = {
        "llama_cpp/__init__.py": module,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 0.3.36\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text)}\n"
    with zipfile.ZipFile(os.path.join(folder, f"{name}-py3-none-any.whl"), "w") as wheel:
        for path, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            wheel.writestr(path, text)
    return f"{name}-py3-none-any.whl"


@dataclass
class Machine:
    """A machine with an environment, a PyPI that has the source alone, and an index of prebuilt wheels."""

    folder: Path
    python: Path

    def put_driver(self, cuda: str) -> None:
        self.program("bin/nvidia-smi", NVIDIA_SMI.format(cuda=cuda))

    def program(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def put_wheel(self, index: str, module: str) -> None:
        folder = self.folder / "whl" / index / "llama-cpp-python"
        folder.mkdir(parents=True, exist_ok=True)
        link(folder, write_wheel(str(folder), module))

    def install(self, python: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": str(self.folder / "bin"),  # nothing of this machine's own driver and nvcc
            "HOME": str(self.folder),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": (self.folder / "pypi").as_uri(),
            "LLAMA_WHEELS": (self.folder / "whl").as_uri(),
            "CUDA_HOME": str(self.folder / "cuda"),
        }
        return subprocess.run(
            [SCRIPT, python or self.python], env=environment, capture_output=True, text=True, timeout=120
        )

    def installed(self, name: str) -> str:
        program = f"import llama_cpp; print(llama_cpp.{name})"
        return subprocess.run([self.python, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def link(folder: Path, name: str) -> None:
    (folder / "index.html").write_text(f'<a href="{name}">{name}</a>')


def write_source(folder: Path) -> str:
    """Write the source archive of a llama-cpp-python that compiles at once; return the file's name."""
    files = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "PKG-INFO": "Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 0.3.36\n",
        "wheel_writer.py": f"import base64, hashlib, os, zipfile\n{inspect.getsource(write_wheel)}",
        "backend.py": f"MODULE = {MODULE!r}\n{BACKEND}",
    }
    with tarfile.open(folder / f"{NAME}.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"{NAME}/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return f"{NAME}.tar.gz"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return folder / "bin" / "python"


@pytest.fixture
def machine(environment: Path, tmp_path: Path) -> Machine:
    subprocess.run([environment, "-m", "pip", "uninstall", "--yes", "--quiet", "llama-cpp-python"], check=True)
    for name in ("bash", "dirname", "getconf", "grep"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    source = tmp_path / "pypi" / "llama-cpp-python"
    source.mkdir(parents=True)
    link(source, write_source(source))
    return Machine(tmp_path, environment)


def test_without_a_driver_it_is_compiled_for_the_cpu(machine: Machine) -> None:
    run = machine.install()
    assert run.returncode == 0, run.stderr
    assert f"-DCMAKE_PROJECT_llama_cpp_INCLUDE={PROJECT}/scripts/llama_build.cmake" in machine.installed("build")
    assert "CUDA" not in machine.installed("build")


def test_the_prebuilt_wheel_replaces_an_installed_cpu_build(machine: Machine) -> None:
    assert machine.install().returncode == 0
    machine.put_driver("13.1")
    machine.put_wheel("cu130", MODULE.format(build="prebuilt", compiler=""))
    run = machine.install()
    assert run.returncode == 0, run.stderr
    assert machine.installed("build") == "prebuilt"


def test_what_supports_the_gpu_is_not_built_again(machine: Machine) -> None:
    machine.put_driver("13.0")
    machine.put_wheel("cu130", MODULE.format(build="prebuilt", compiler=""))
    assert machine.install().returncode == 0
    machine.put_wheel("cu130", MODULE.format(build="newer", compiler=""))
    assert machine.install().stdout == "llama.cpp supports the GPU: nothing to install\n"
    assert machine.installed("build") == "prebuilt"


@pytest.mark.parametrize("prebuilt", ["", BROKEN, MODULE.format(build="cpu only", compiler="")])
def test_what_the_wheel_cannot_do_is_compiled_and_never_the_cached_cpu_build(machine: Machine, prebuilt: str) -> None:
    """The remedy where nvcc came later and is not on PATH: pip's cache has a CPU wheel of the same source."""
    assert machine.install().returncode == 0
    machine.put_driver("13.0")
    nvcc = machine.program("cuda/bin/nvcc", "#!/bin/sh\n")
    if prebuilt:
        machine.put_wheel("cu130", prebuilt)
    run = machine.install()
    assert run.returncode == 0, run.stderr
    assert "-DGGML_CUDA=on" in machine.installed("build")
    assert machine.installed("compiler") == str(nvcc)


def test_the_gpu_build_stays_out_of_the_cache(machine: Machine) -> None:
    machine.put_driver("13.0")
    machine.program("bin/nvcc", "#!/bin/sh\n")
    assert machine.install().returncode == 0
    (machine.folder / "bin" / "nvidia-smi").unlink()
    subprocess.run([machine.python, "-m", "pip", "uninstall", "--yes", "--quiet", "llama-cpp-python"], check=True)
    assert machine.install().returncode == 0
    assert "CUDA" not in machine.installed("build")


def test_without_wheel_and_nvcc_the_cpu_build_comes_with_the_remedy(machine: Machine) -> None:
    machine.put_driver("12.8")
    run = machine.install()
    assert run.returncode == 0, run.stderr
    assert "CUDA" not in machine.installed("build")
    assert run.stderr.splitlines()[-1] == (
        "llama.cpp will not use the GPU: no prebuilt wheel for CUDA 12.8 could be installed from "
        f"{(machine.folder / 'whl').as_uri()}/cu125, and there is no nvcc: "
        "install the CUDA toolkit, then run `make llama`"
    )


@pytest.mark.parametrize(
    ("cuda", "index"), [("13.2", "cu130"), ("13.0", "cu130"), ("12.9", "cu125"), ("12.2", "cu122"), ("11.7", None)]
)
def test_the_index_is_never_newer_than_the_driver(machine: Machine, cuda: str, index: str | None) -> None:
    machine.put_driver(cuda)
    log = machine.folder / "asked"
    python = machine.program("python", f'#!/bin/sh\necho "$@" >> {log}\n[ "$1" = -m ]\n')  # pip alone succeeds
    machine.install(python)
    first = next(line for line in log.read_text().splitlines() if line.startswith("-m pip install"))
    assert ("--only-binary llama-cpp-python --extra-index-url" in first) == bool(index)
    assert index is None or f"/whl/{index} " in first
