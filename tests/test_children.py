"""A child process for each device: rows as of one process, and what deaths, interrupts and bad devices leave."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import child_stages
from tests.child_stages import Tell, names_of, rows_of, work_of
from tests.conftest import EXAMPLES, PROJECT, Run, command, run_worker
from tests.fakes import record_of, records
from tests.test_promises import assert_same_rows
from vec_pipeline import device, load_annotations
from vec_pipeline.children import Children
from vec_pipeline.crash_journal import CrashJournal
from vec_pipeline.downloads.temporary import temporary_content
from vec_pipeline.pipeline import chunks, run
from vec_pipeline.record import Record, UserError
from vec_pipeline.result_cache import ResultCache

pytestmark = pytest.mark.timeout(120)
Make = Callable[..., Children]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Make the children of a run; each call is a new run over the same result cache and crash journal."""
    made: list[Any] = []

    def children(
        names: Sequence[str] = ("cpu:0", "cpu:1"),
        *,
        begin: Callable[[], None] = child_stages.begin,
        sleep_s: float = 0.0,
        most_errors: int = 50,
        breaks: str = "",
    ) -> Children:
        results = ResultCache(tmp_path / "cache.sqlite", child_stages.no_fingerprint_of_device)
        journal = CrashJournal(tmp_path / "journal.sqlite")
        tell = Tell(sleep_s=sleep_s, batch_size=4, breaks=breaks)
        work = work_of(tell, begin=begin, max_consecutive_errors=most_errors)
        made.extend([Children(names, work, results, journal), results, journal])
        return made[-3]

    yield children
    for each in made:
        each.close()


# --- work


def test_every_image_comes_out_once_and_both_processes_work(make: Make) -> None:
    children = make(sleep_s=0.01)
    rows = rows_of(children, records(*names_of(60)), by_all=True)
    assert {key: row.values["text"] for key, row in rows.items()} == {key: f"told {key}" for key in names_of(60)}
    assert not any(row.error for row in rows.values())
    assert len({row.values["pid"] for row in rows.values()}) == 2
    assert os.getpid() not in {row.values["pid"] for row in rows.values()}
    assert all("image" not in row.values and "content" not in row.values for row in rows.values())
    assert children.images == 60
    assert set(children.seconds) == {"tell"}
    assert sum(int(each.split()[1]) for each in children.at_work) == 60


def test_further_calls_use_the_same_processes(make: Make) -> None:
    children = make()
    first = rows_of(children, records("a", "b", "c", "d"))
    second = rows_of(children, records("e", "f", "g", "h"))
    pids = {row.values["pid"] for row in first.values()}
    assert {row.values["pid"] for row in second.values()} <= pids | {each._process.pid for each in children._children}
    assert len(children._children) == 2


def test_results_are_kept_for_the_next_run(make: Make) -> None:
    before = rows_of(make(), records(*names_of(9)))
    again = rows_of(make(), records(*names_of(9)))
    assert {key: row.values["pid"] for key, row in again.items()} == {
        key: row.values["pid"] for key, row in before.items()
    }, "what the first processes found is not computed again"


def test_copies_of_one_image_are_computed_once_by_a_process(make: Make) -> None:
    rows = rows_of(make(("cpu:0",)), [record_of(f"copy{number}", "same") for number in range(6)], size=6)
    assert {row.values["text"] for row in rows.values()} == {"told same"}
    assert len({row.values["call"] for row in rows.values()}) == 1


def test_a_row_that_fails_has_its_error_and_the_others_go_on(make: Make) -> None:
    rows = rows_of(make(), records("a", "refused", "b", "broken", "c"))
    assert rows["refused"].error == "tell: ValueError: no such picture"
    assert rows["broken"].error == "read: OSError: image file is truncated"
    assert not rows["a"].error and not rows["b"].error and not rows["c"].error


def test_what_the_source_raises_comes_after_the_rows_that_are_complete(make: Make) -> None:
    def source() -> Iterator[list[Record]]:
        yield records("a", "b")
        raise UserError("the list has gone")

    children = make()
    came: list[Record] = []
    with pytest.raises(UserError, match="the list has gone"):
        for chunk in children(source()):
            came += chunk
    assert {record.key for record in came} <= {"a", "b"}


def test_what_the_source_raises_is_not_lost_while_rows_are_saved(make: Make) -> None:
    def source() -> Iterator[list[Record]]:
        yield records("a", "b")
        time.sleep(0.2)
        raise UserError("the bucket has gone")

    with pytest.raises(UserError, match="the bucket has gone"):
        for _ in make()(source()):
            time.sleep(0.5)  # a slow disk


def test_a_database_that_fails_ends_the_run(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child would wait for ever for an answer."""
    children = make()

    def fail(*_: Any) -> None:
        raise MemoryError("no memory for an answer")

    monkeypatch.setattr(children._journal.database, "write", fail)
    with pytest.raises(UserError, match="no memory for an answer"):
        rows_of(children, records("a", "b"))


# --- content


def test_a_temporary_file_is_lent_and_stays_until_its_row_is_there(make: Make, tmp_path: Path) -> None:
    text = "large " * 20_000
    content = temporary_content(text.encode(), "version", folder=tmp_path / "downloads")
    path = Path(content.path)  # type: ignore[attr-defined]
    found = [Record("a", {"content": content})]
    del content
    rows = rows_of(make(), found)
    assert rows["a"].values["text"] == f"told {text}"
    assert path.exists(), "the record of this process still holds it"
    found.clear()
    rows.clear()
    assert not path.exists()


def test_content_that_cannot_be_pickled_is_read_by_the_parent(make: Make) -> None:
    class Local:
        link = ""

        def read(self) -> bytes:
            return b"from here"

        def identity(self) -> str:
            return "1"

    class Gone(Local):
        def read(self) -> bytes:
            raise OSError("gone")

    rows = rows_of(make(), [Record("a", {"content": Local()}), Record("b", {"content": Gone()})])
    assert rows["a"].values["text"] == "told from here"
    assert rows["b"].error == "read: OSError: OSError: gone"


# --- deaths


def test_the_image_that_kills_is_found_while_the_others_go_on(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    found = names_of(30)
    found[10] = "kill"
    children = make(sleep_s=0.001)
    rows = rows_of(children, records(*found), size=5)
    assert set(rows) == set(found)
    assert rows.pop("kill").error.startswith("tell: ProcessDied: ")
    assert not any(row.error for row in rows.values())
    assert len(children._children) == 2, "a process takes the place of one that died"
    assert "left out" not in capsys.readouterr().out


def test_several_that_kill_are_each_found(make: Make) -> None:
    found = [*names_of(12), "kill1", *(f"more{number}" for number in range(7)), "kill2"]
    rows = rows_of(make(), records(*found), size=4)
    assert set(rows) == set(found)
    assert {key for key, row in rows.items() if "ProcessDied" in row.error} == {"kill1", "kill2"}
    assert sum(bool(row.error) for row in rows.values()) == 2


def test_a_process_that_is_killed_from_outside_costs_no_row(make: Make) -> None:
    children = make(sleep_s=0.02)
    came: dict[str, Record] = {}
    for number, chunk in enumerate(children(chunks(records(*names_of(80)), lambda: 4))):
        came |= {record.key: record for record in chunk}
        if number in (2, 6):
            os.kill(children._children[number % 2]._process.pid or 0, signal.SIGKILL)
    assert set(came) == set(names_of(80))
    assert not any(record.error for record in came.values())


def test_a_gpu_that_fails_is_tried_by_another_process(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The image that broke it twice, the last time alone, gets the error."""
    rows = rows_of(make(), records("a", "b", "gpu", "c"), size=2)
    assert set(rows) == {"a", "b", "gpu", "c"}
    assert "ProcessDied" in rows["gpu"].error
    assert not rows["a"].error and not rows["b"].error and not rows["c"].error


def test_a_device_that_fails_for_good_is_left_out_and_said(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    children = make(begin=child_stages.begin_without_a_second_device, sleep_s=0.05)
    rows = rows_of(children, records(*names_of(60)))
    assert set(rows) == set(names_of(60))
    assert not any(row.error for row in rows.values())
    assert [child.name for child in children._children] == ["cpu:0"]
    assert "cpu:1 has failed 3 times, and is left out: RuntimeError: no such device" in capsys.readouterr().out


@pytest.mark.parametrize("breaks", ["CUDA error: unknown error", "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"])
def test_no_image_is_at_fault_where_a_device_breaks(
    make: Make, breaks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    children = make(breaks=breaks, sleep_s=0.05, most_errors=3)
    rows = rows_of(children, records(*names_of(60)), size=4)
    assert set(rows) == set(names_of(60))
    assert [key for key, row in rows.items() if row.error] == []
    assert "cpu:1 has failed 3 times, and is left out" in capsys.readouterr().out


def test_suspects_are_tried_again_while_the_source_pauses(make: Make) -> None:
    """As a folder that is watched does, for hours."""
    children = make(sleep_s=0.05)
    came: dict[str, float] = {}

    def source() -> Iterator[list[Record]]:
        yield records("a", "b", "c", "d")
        os.kill(children._children[0]._process.pid or 0, signal.SIGKILL)
        os.kill(children._children[1]._process.pid or 0, signal.SIGKILL)
        deadline_s = time.monotonic() + 60
        while len(came) < 4 and time.monotonic() < deadline_s:
            time.sleep(0.05)
        yield records("e")

    for chunk in children(source()):
        came |= {record.key: time.monotonic() for record in chunk}
    assert set(came) == set("abcde")
    assert came["e"] >= max(came[key] for key in "abcd")


def test_a_signal_to_all_processes_lets_children_go_on(make: Make) -> None:
    """As Slurm and systemd send it: the parent stops its children, after what is complete has been saved."""
    children = make(sleep_s=0.05)
    came = 0
    is_sent = False
    for chunk in children(chunks(records(*names_of(120)), lambda: 4)):
        came += len(chunk)
        if not is_sent and all(child.figures.images for child in children._children):  # both have begun
            is_sent = True
            for child in children._children:
                os.kill(child._process.pid or 0, signal.SIGTERM)
                os.kill(child._process.pid or 0, signal.SIGHUP)
    assert is_sent
    assert came == 120
    assert not children._past, "none has ended"


def test_without_any_device_the_run_ends(make: Make) -> None:
    with pytest.raises(UserError, match=r"no device is left: cpu:\d: RuntimeError: no such device"):
        rows_of(make(begin=child_stages.begin_without_any_device), records("a", "b"))


def test_what_only_the_user_can_fix_ends_the_run(make: Make) -> None:
    with pytest.raises(UserError, match="the disk is full"):
        rows_of(make(), records("a", "full", "b"))


def test_the_same_error_again_and_again_ends_the_run(make: Make) -> None:
    with pytest.raises(UserError, match="5 images in a row failed with the same error"):
        rows_of(make(("cpu:0",), most_errors=5), records(*(f"refused{number}" for number in range(20))))


# --- interrupts


def test_an_interrupt_hands_over_what_is_complete(make: Make) -> None:
    """As Ctrl-C in the parent: it is raised where the parent waits for its children."""
    children = make(sleep_s=0.05)
    saved: list[Record] = []

    def interrupt() -> None:
        while len(saved) < 8:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    import threading

    threading.Thread(target=interrupt, daemon=True).start()
    done: set[str] = set()

    def save(chunk: list[Record]) -> None:
        saved.extend(chunk)
        done.update(record.key for record in chunk)

    start_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(records(*names_of(400)), children, done, save, lambda: 4)
    assert time.monotonic() - start_s < 15
    assert 8 <= len(saved) < 400
    assert all(record.values["text"] == f"told {record.key}" for record in saved), "no row is saved that is not whole"


def test_children_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    output = tmp_path / "annotations.csv"
    arguments = command(EXAMPLES, "--output", output, "--set", "devices=cpu:2", "--set", "chunk_size=2")
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline_s = time.monotonic() + 100
        while time.monotonic() < deadline_s and not (output.exists() and output.read_bytes().count(b"\n") > 3):
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert len(children) >= 2
    _, alive = psutil.wait_procs(children, timeout=15)
    assert not alive, "a child that goes on would hold memory of the device"
    run_again = run_worker(EXAMPLES, "--output", output, "--set", "devices=cpu:2")
    assert run_again.returncode == 0, run_again.stdout + run_again.stderr


# --- the command line


def test_the_rows_are_those_of_one_process(example_run: tuple[Run, Path], tmp_path: Path) -> None:
    output = tmp_path / "annotations.csv"
    run = run_worker(EXAMPLES, "--output", output, "--set", "devices=cpu:2")
    assert run.returncode == 0, run.stderr
    assert_same_rows(load_annotations(output), load_annotations(example_run[1]))
    again = run_worker(EXAMPLES, "--output", output, "--refresh")
    assert "nothing to refresh" in again.stdout, "devices are no part of the settings, and the pictures are known"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gpu", "'gpu' is not a device"),
        ("cpu", "'cpu' is not a device"),
        ("cpu:0", "'cpu:0' is not a device"),
        ("cuda:0,cuda:0", "names a device twice"),
        ("cuda:0,", "'' is not a device"),
    ],
)
def test_what_is_no_device_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        device.names(text)


def test_devices_are_named() -> None:
    assert device.names("cpu:3") == ["cpu:0", "cpu:1", "cpu:2"]
    assert device.names("cuda:0, cuda:2") == ["cuda:0", "cuda:2"]


def test_all_is_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert device.names("all") == ["cuda:0", "cuda:1", "cuda:2"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="torch sees no GPU here"):
        device.names("all")


def test_a_child_sees_its_own_gpu_alone(tmp_path: Path) -> None:
    """In a process of its own: what CUDA may see is decided once."""
    code = (
        "import os; from vec_pipeline import device; device.use_one_gpu(['cuda:2']); "
        "from vec_pipeline.child import on_device; from tests.child_stages import Tell; "
        "print(os.environ['CUDA_VISIBLE_DEVICES'], on_device(Tell(), 'cuda:2').device, "
        "on_device(Tell(device='cpu'), 'cuda:2').device, on_device(Tell(), 'cpu:1').device)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT, env=environment)
    assert found.stdout.split() == ["2", "cuda", "cpu", "cpu"], found.stderr


def test_children_see_all_gpus_though_the_checks_choose_one() -> None:
    code = (
        "import os; from vec_pipeline import device\n"
        "device.use_one_gpu([]); print(os.environ['CUDA_VISIBLE_DEVICES'])\n"
        "device.show_all_gpus(); print(os.environ.get('CUDA_VISIBLE_DEVICES'))"
    )
    for visible, expected in ((None, ["0", "None"]), ("3,1", ["3", "3,1"])):
        environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        environment |= {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
        found = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT, env=environment
        )
        assert found.stdout.split() == expected, found.stderr


def test_a_run_on_gpus_gives_each_child_its_own(tmp_path: Path) -> None:
    """The demo's stages stay on the CPU, so this needs none: a child that cannot have its GPU would end the run."""
    output = tmp_path / "a.csv"
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    arguments = command(EXAMPLES / "red-flower.png", "--output", output, "--set", "devices=cuda:0,cuda:1")
    run = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    log = output.with_suffix(".log").read_text()
    assert "cuda:0: " in log
    assert "cuda:1: " in log


def test_the_configuration_is_checked_before_anything_is_read(tmp_path: Path) -> None:
    run = run_worker(EXAMPLES, "--output", tmp_path / "a.csv", "--set", "devices=gpu:1")
    assert run.returncode == 2
    assert "devices: 'gpu:1' is not a device: name all, GPUs such as cuda:0,cuda:2, or cpu:2" in run.stderr
    with suppress(FileNotFoundError), closing((tmp_path / "a.csv").open()):
        pytest.fail("no CSV is begun")
