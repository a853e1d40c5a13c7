"""What the user sees of a run."""

import importlib.machinery
import io
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.fakes import Describe
from vec_pipeline import device, progress
from vec_pipeline.annotator import Annotator
from vec_pipeline.ledger import Ledger
from vec_pipeline.memory import ModelCache
from vec_pipeline.progress import Progress, duration
from vec_pipeline.record import Record


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Time that passes when a test says so, and a millisecond with each look at it."""

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
def annotator(tmp_path: Path) -> Iterator[Annotator]:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    yield Annotator([Describe()], ModelCache(1, 0.0), ledger, {}, threads=1)
    ledger.close()


Show = Callable[..., Progress]


@pytest.fixture
def show(annotator: Annotator, clock: Clock) -> Iterator[Show]:
    """Start a progress of 40 images; all are closed at the end."""
    shown = []

    def start(stream: io.StringIO) -> Progress:
        shown.append(Progress(40, annotator, stream))
        return shown[-1]

    yield start
    for one in shown:
        one.close()


def rows(*errors: str) -> list[Record]:
    return [Record(str(n), {}, error) for n, error in enumerate(errors)]


TEN = ["describe: ValueError: a", "describe: ValueError: b", "open_image: OSError: c", *[""] * 7]


def test_the_line_says_where_the_run_stands(
    show: Show, annotator: Annotator, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = show(io.StringIO())
    shown.count(rows(*TEN))
    clock.now_s += 100
    annotator.at_work |= {1: "embed_text", 0: "describe"}  # by lane
    monkeypatch.setattr(progress, "gpu_free_gb", lambda: 3.21)
    assert shown.line() == "10/40, 0.10 images/s, 5:00 left, 3 errors, 3.2 GB GPU free, describe + embed_text"


def test_the_line_before_the_first_row(show: Show) -> None:
    assert show(io.StringIO()).line() == "0/40, 0.00 images/s"


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


def test_the_summary_counts_errors_by_kind(show: Show, annotator: Annotator, clock: Clock) -> None:
    shown = show(io.StringIO())
    shown.count(rows(*TEN[:5]))
    shown.count(rows(*TEN[5:]))
    clock.now_s += 100
    annotator.seconds["describe"] = 90.0
    annotator.cache.load_seconds["describe"] = 20.0
    first, stage, *errors = shown.summary().splitlines()
    assert first == "10 images in 1:40: 0.10 images/s"
    assert stage.split() == ["describe", "70.0", "s,", "and", "20.0", "s", "to", "load", "its", "model"]
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
