"""What the user sees of a run."""

import importlib.machinery
import io
import sys
import types
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from tests.fakes import Describe
from vec_pipeline import device, progress
from vec_pipeline.crash_journal import CrashJournal
from vec_pipeline.executor import Executor
from vec_pipeline.memory import ModelCache
from vec_pipeline.progress import Progress
from vec_pipeline.record import Record
from vec_pipeline.result_cache import ResultCache
from vec_pipeline.terminal import duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Time that passes when a test says so, and a millisecond each time it is asked for."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        self.now_s += 0.001
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=clock.monotonic))
    monkeypatch.setattr(progress, "gpu_free_gb", lambda: None)
    return clock


@pytest.fixture
def executor() -> Executor:
    stages = [Describe()]
    results = ResultCache(None, lambda stage: stage.name)
    return Executor(stages, ModelCache(stages, 1, 0.0), results, CrashJournal(None), threads=1)


Show = Callable[..., Progress]


@pytest.fixture
def show(executor: Executor, clock: Clock) -> Iterator[Show]:
    """Start a progress of 40 images, or as many as are given; all are closed at the end."""
    shown = []

    def start(stream: io.StringIO, total: int | None = 40) -> Progress:
        shown.append(Progress(total, executor, stream))
        return shown[-1]

    yield start
    for one in shown:
        one.close()


def rows(*errors: str) -> list[Record]:
    return [Record(str(n), {}, error) for n, error in enumerate(errors)]


TEN = ["describe: ValueError: a", "describe: ValueError: b", "open_image: OSError: c", *[""] * 7]


def test_the_line_says_where_the_run_stands(
    show: Show, executor: Executor, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = show(io.StringIO())
    shown.count(rows(*TEN))
    clock.now_s += 100
    executor.at_work += ["describe", "embed_text"]
    monkeypatch.setattr(progress, "gpu_free_gb", lambda: 3.21)
    assert shown.line() == "10/40, 0.10 images/s, 5:00 left, 3 errors, 3.2 GB GPU free, describe + embed_text"


def test_the_line_before_the_first_row(show: Show) -> None:
    assert show(io.StringIO()).line() == "0/40, 0.00 images/s"


def test_a_stream_of_unknown_length_has_no_total_and_no_time_left(show: Show, clock: Clock) -> None:
    stream = Terminal()
    shown = show(stream, None)
    assert shown.line() == "0, 0.00 images/s"
    shown.count(rows(*[""] * 10))
    clock.now_s += 100
    assert shown.line() == "10, 0.10 images/s"
    shown.close()
    assert stream.getvalue().split("\r")[-1].startswith("\033[K10, 0.10 images/s")


def test_a_run_without_images_is_no_division_by_zero(show: Show) -> None:
    shown = show(Terminal(), 0)
    assert shown.line() == "0/0, 0.00 images/s"
    assert shown.summary().startswith("0 images in 0:00")


@pytest.mark.parametrize("error", [OSError("gone"), ValueError("I/O operation on closed file")])
def test_a_terminal_that_is_gone_stops_nothing(error: Exception, show: Show) -> None:
    class Gone(Terminal):
        def write(self, _: str) -> int:
            raise error

    shown = show(Gone())
    shown.count(rows(""))
    shown.close()
    assert shown.done == 1


def test_the_bar_fits_into_one_line_of_the_terminal(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    stream = Terminal()
    show(stream).close()
    assert len(stream.getvalue().split("\033[K")[-1].rstrip("\n")) == 29


def test_plain_lines_where_there_is_no_terminal(show: Show) -> None:
    stream = io.StringIO()
    shown = show(stream)
    shown.count(rows(*[""] * 10))
    shown.close()
    assert stream.getvalue().startswith("10/40, ")
    assert stream.getvalue().endswith("\n")
    assert "\r" not in stream.getvalue()


def test_a_bar_in_a_terminal(show: Show) -> None:
    stream = Terminal()
    shown = show(stream)
    shown.count(rows(*[""] * 10))
    shown.close()
    last = stream.getvalue().split("\r")[-1]
    assert "[#####...............] 10/40, " in last
    assert last.endswith("\n")


def test_the_summary_counts_errors_by_kind(show: Show, executor: Executor, clock: Clock) -> None:
    shown = show(io.StringIO())
    shown.count(rows(*TEN[:5]))
    shown.count(rows(*TEN[5:]))
    clock.now_s += 100
    executor.seconds["describe"] = 90.0
    executor.models.load_seconds["describe"] = 20.0
    executor.retries["describe"] = 3
    first, stage, retries, *errors = shown.summary().splitlines()
    assert first == "10 images in 1:40: 0.10 images/s"
    assert stage.split() == ["describe", "70.0", "s,", "and", "20.0", "s", "to", "load", "its", "model"]
    assert retries == "  3 x describe: a batch failed and was tried in halves, see the log"
    assert errors == ["  2 x describe: ValueError", "  1 x open_image: OSError"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3599, "59:59"), (3723, "1:02:03")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_free_memory_may_be_asked_while_torch_is_being_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The progress thread asks at any moment; an exception would end it, and the user would see no more progress."""
    torch = types.ModuleType("torch")  # half imported: it stands in sys.modules, and has no `cuda` yet
    torch.__spec__ = importlib.machinery.ModuleSpec("torch", None)
    torch.__spec__._initializing = True
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert device.gpu_free_gb() is None


def test_an_estimate_is_called_one_and_is_dropped_once_it_is_exceeded(executor: Executor, clock: Clock) -> None:
    progress = Progress(None, executor, io.StringIO(), about=2)
    progress.count([Record("a")])
    assert progress.line().startswith("1/about 2, ")
    assert "left" in progress.line()
    progress.count([Record("b"), Record("c")])
    assert progress.line().startswith("3, ")
    assert "left" not in progress.line()
    progress.close()
