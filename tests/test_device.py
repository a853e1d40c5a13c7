"""How many cores and rows there is room for."""

import os
from collections.abc import Iterator

import pytest
import torch

from vec_pipeline import device


@pytest.fixture(autouse=True)
def torch_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("cores", "half"), [(2, 1), (7, 3), (1, 1)])
def test_lanes_side_by_side_get_half_of_the_cores_each(cores: int, half: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process's torch, and llama.cpp's process, which is given the same environment."""
    monkeypatch.setattr(device, "free_cores", lambda: cores)
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.delenv("OMP_NUM_THREADS")
    device.leave_half_the_cores()
    assert torch.get_num_threads() == half
    monkeypatch.undo()
    monkeypatch.setenv("OMP_NUM_THREADS", str(half))
    assert device.free_cores() == half


def test_the_users_number_of_threads_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    device.leave_half_the_cores()
    assert torch.get_num_threads() == device.free_cores() == 3
    assert os.environ["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(("asked_for", "threads"), [("3,1", 3), ("", 2), ("0", 2), ("many", 2)])
def test_a_list_of_threads_counts_by_its_first_and_nonsense_not_at_all(
    asked_for: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.setattr("pathlib.Path.read_text", lambda _: "max 100000")
    monkeypatch.setenv("OMP_NUM_THREADS", asked_for)
    device.leave_half_the_cores()
    assert torch.get_num_threads() == device.free_cores() == threads


def test_memory_that_torch_keeps_on_the_gpu_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is free for torch alone, so nothing but torch's own batch sizes may count on it."""
    monkeypatch.setattr(device, "gpu_free_gb", lambda: 2.0)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 7_000_000_000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 5_000_000_000)
    assert device.rows_that_fit("cuda", 1e8, 0.5, {"cuda": 256}) == 20
    assert device.rows_that_fit("cuda", 1e8, 0.5, {"cuda": 16}) == 16
    assert device.rows_that_fit("cuda", 1e12, 0.5, {"cuda": 16}) == 1
