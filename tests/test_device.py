"""Free memory, CPU cores and batch sizes, within the limits of containers."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vec_pipeline import device

HUGE = 9223372036854771712  # what cgroup v1 has for no limit
MakeCgroups = Callable[[str, Mapping[str, str]], Path]


@pytest.fixture(autouse=True)
def restore_torch_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeCgroups:
    """Make a machine with 64 GB free and 16 cores, whose cgroup files are those given by path."""
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=64_000_000_000))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def make(of_process: str, files: Mapping[str, str]) -> Path:
        (tmp_path / "self").write_text(of_process)
        for name, content in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        monkeypatch.setattr(device, "CGROUPS_OF_PROCESS", tmp_path / "self")
        monkeypatch.setattr(device, "CGROUP_ROOT", tmp_path / "cgroup")
        return tmp_path / "cgroup"

    return make


def memory_v2(folder: str, limit: object, usage: int, inactive_file: int = 0) -> dict[str, str]:
    stat = f"anon 5\nfile 7\nactive_file 11\ninactive_file {inactive_file}\n"
    return {
        f"{folder}memory.max": f"{limit}\n",
        f"{folder}memory.current": f"{usage}\n",
        f"{folder}memory.stat": stat,
    }


def memory_v1(folder: str, limit: int, usage: int, total_inactive_file: int = 0) -> dict[str, str]:
    stat = f"cache 7\ninactive_file 3\ntotal_cache 7\ntotal_inactive_file {total_inactive_file}\n"
    return {
        f"memory/{folder}memory.limit_in_bytes": f"{limit}\n",
        f"memory/{folder}memory.usage_in_bytes": f"{usage}\n",
        f"memory/{folder}memory.stat": stat,
    }


V1 = "12:cpu,cpuacct:/docker/c0ffee\n4:memory:/docker/c0ffee\n1:name=systemd:/docker/c0ffee\n0::/\n"


@pytest.mark.parametrize(
    ("of_process", "files", "free_gb"),
    [
        # a container, whose own cgroup is its root
        ("0::/\n", memory_v2("", 8_000_000_000, 3_000_000_000), 5),
        ("0::/\n", memory_v2("", 8_000_000_000, 3_000_000_000, inactive_file=2_000_000_000), 7),
        ("0::/\n", memory_v2("", "max", 3_000_000_000), 64),
        ("0::/\n", memory_v2("", 100_000_000_000, 3_000_000_000), 64),
        ("0::/\n", memory_v2("", 8_000_000_000, 8_000_000_001), 0),
        # a process in a slice: the ancestors' limits count too, in any order
        (
            "0::/user.slice/job.scope\n",
            memory_v2("user.slice/job.scope/", 8_000_000_000, 1_000_000_000)
            | memory_v2("user.slice/", 9_000_000_000, 5_000_000_000),
            4,
        ),
        (
            "0::/user.slice/job.scope\n",
            memory_v2("user.slice/job.scope/", 8_000_000_000, 6_000_000_000)
            | memory_v2("user.slice/", "max", 7_000_000_000),
            2,
        ),
        ("0::/user.slice/job.scope\n", memory_v2("other.slice/", 1_000_000_000, 0), 64),
        # cgroup v1
        (V1, memory_v1("docker/c0ffee/", 6_000_000_000, 4_000_000_000), 2),
        (V1, memory_v1("docker/c0ffee/", 6_000_000_000, 4_000_000_000, total_inactive_file=1_500_000_000), 3.5),
        (V1, memory_v1("docker/c0ffee/", HUGE, 4_000_000_000), 64),
        (V1, memory_v1("docker/c0ffee/", HUGE, 4_000_000_000) | memory_v1("docker/", 5_000_000_000, 4_000_000_000), 1),
        # a container whose /proc names the host's path of its cgroup, which is mounted as the root
        (V1, memory_v1("", 6_000_000_000, 4_000_000_000), 2),
        # a limit of another controller says nothing about memory
        ("4:cpu:/job\n", memory_v1("job/", 6_000_000_000, 4_000_000_000), 64),
        # files above the root are not those of a cgroup
        ("0::/\n", memory_v2("../", 1_000_000_000, 0), 64),
        # v2 mounted beside v1, without the memory controller
        (V1, {"unified/cgroup.procs": "1\n"}, 64),
        ("", {}, 64),
    ],
)
def test_the_limits_of_a_container_count_as_the_hosts_memory(
    of_process: str, files: dict[str, str], free_gb: float, make_cgroups: MakeCgroups
) -> None:
    make_cgroups(of_process, files)
    assert device.host_free_gb() == pytest.approx(free_gb)


def test_the_host_counts_where_it_has_less_than_the_limit(
    make_cgroups: MakeCgroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cgroups("0::/\n", memory_v2("", 8_000_000_000, 1_000_000_000))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2_000_000_000))
    assert device.host_free_gb() == 2


@pytest.mark.parametrize("name", ["memory.max", "memory.current"])
@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError, OSError])
def test_cgroup_files_that_cannot_be_read_set_no_limit(
    name: str, error: type[OSError], make_cgroups: MakeCgroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cgroups("0::/\n", memory_v2("", 8_000_000_000, 1_000_000_000))
    assert device.host_free_gb() == 7
    fail_to_read(name, error, monkeypatch)
    assert device.host_free_gb() == 64


def fail_to_read(name: str, error: type[OSError], monkeypatch: pytest.MonkeyPatch) -> None:
    read_text = Path.read_text

    def read(self: Path, *arguments: str) -> str:
        if self.name == name:
            raise error(f"{self}: cannot be read")
        return read_text(self, *arguments)

    monkeypatch.setattr(Path, "read_text", read)


def test_a_limit_counts_without_the_statistics_of_the_page_cache(
    make_cgroups: MakeCgroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cgroups("0::/\n", memory_v2("", 8_000_000_000, 3_000_000_000, inactive_file=2_000_000_000))
    fail_to_read("memory.stat", PermissionError, monkeypatch)
    assert device.host_free_gb() == 5


@pytest.mark.parametrize("name", ["self", "absent"])
def test_without_cgroups_nothing_is_limited(
    name: str, make_cgroups: MakeCgroups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS has no /proc."""
    make_cgroups("0::/\n", {})
    monkeypatch.setattr(device, "CGROUPS_OF_PROCESS", tmp_path / name)
    assert device.host_free_gb() == 64
    assert device.free_cores() == 16


@pytest.mark.parametrize(
    ("of_process", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 16),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/a/b\n", {"a/b/cpu.max": "800000 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000\n", "a/cpu.max": "max 100000\n"}, 3),
        (
            V1,
            {"cpu/docker/c0ffee/cpu.cfs_quota_us": "400000\n", "cpu/docker/c0ffee/cpu.cfs_period_us": "100000\n"},
            4,
        ),
        (V1, {"cpu/docker/c0ffee/cpu.cfs_quota_us": "-1\n", "cpu/docker/c0ffee/cpu.cfs_period_us": "100000\n"}, 16),
        (V1, {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        (V1, {"cpu/docker/c0ffee/cpu.cfs_quota_us": "400000\n"}, 16),
    ],
)
def test_the_cpu_quota_of_a_container_limits_the_cores(
    of_process: str, files: dict[str, str], cores: int, make_cgroups: MakeCgroups
) -> None:
    make_cgroups(of_process, files)
    assert device.free_cores() == cores


@pytest.mark.parametrize(("cores", "half"), [(2, 1), (7, 3), (1, 1)])
def test_workers_side_by_side_get_half_of_the_cores_each(
    cores: int, half: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process's torch, and llama.cpp's process, which inherits the environment."""
    monkeypatch.setattr(device, "free_cores", lambda: cores)
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.delenv("OMP_NUM_THREADS")
    device.leave_half_the_cores()
    assert torch.get_num_threads() == half
    monkeypatch.undo()
    monkeypatch.setenv("OMP_NUM_THREADS", str(half))
    assert device.free_cores() == half


def test_omp_num_threads_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    device.leave_half_the_cores()
    assert torch.get_num_threads() == device.free_cores() == 3
    assert os.environ["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(("requested", "threads"), [("3,1", 3), ("", 2), ("0", 2), ("many", 2)])
def test_a_list_of_threads_counts_by_its_first_and_an_invalid_value_is_ignored(
    requested: str, threads: int, make_cgroups: MakeCgroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cgroups("0::/\n", {})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.setenv("OMP_NUM_THREADS", requested)
    device.leave_half_the_cores()
    assert torch.get_num_threads() == device.free_cores() == threads


def test_memory_in_torchs_cache_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is free for torch alone, so nothing but torch's own batch sizes may count on it."""
    monkeypatch.setattr(device, "gpu_free_gb", lambda: 2.0)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 7_000_000_000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 5_000_000_000)
    assert device.rows_that_fit("cuda", 1e8, 0.5, {"cuda": 256}) == 20
    assert device.rows_that_fit("cuda", 1e8, 0.5, {"cuda": 16}) == 16
    assert device.rows_that_fit("cuda", 1e12, 0.5, {"cuda": 16}) == 1


@pytest.mark.parametrize(("reserved_gb", "rows"), [(0.0, 20), (1.0, 15), (4.0, 1), (9.0, 1)])
def test_memory_reserved_for_other_models_is_left_to_them(
    reserved_gb: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "host_free_gb", lambda: 4.0)
    assert device.rows_that_fit("cpu", 1e8, 0.5, {"cpu": 256}, reserved_gb) == rows
