"""--order and --first: what is annotated first; every order of the same records gives the same rows."""

import argparse
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.conftest import EXAMPLES, PRINT_PEAK_MB, PROJECT, Run
from vec_pipeline import load_annotations
from vec_pipeline.commands.run.order import LOOKED_AT, ORDERS, order_type, ordered
from vec_pipeline.record import Record, UserError
from vec_pipeline.sources.folder import LocalFile


@dataclass(frozen=True, slots=True)
class Known:
    """Content of which size and time are known."""

    size_bytes: int
    time_s: float

    def size_and_time(self) -> tuple[int, float]:
        return self.size_bytes, self.time_s


@dataclass(frozen=True, slots=True)
class Unknown:
    """Content of an address: nothing is known of it before it is fetched."""


def record(key: str, content: Any = Unknown(), **values: Any) -> Record:
    return Record(key, {"content": content, **values})


def keys(records: "list[Record] | Iterator[Record]", order: str, *first: str) -> list[str]:
    return [each.key for each in ordered(records, order, first)]


def of_keys(*names: str) -> list[Record]:
    return [record(name) for name in names]


# --- orders


def test_path_sorts_keys_by_code_points() -> None:
    names = [
        "/b/10.jpg",
        "/a.jpg",
        "/B.jpg",
        "/я.jpg",
        "/é.jpg",
        "/b/2.jpg",
        "/\U0001f600.jpg",
        "/\uffee.jpg",
        "/\udc80",
    ]
    assert keys(of_keys(*names), "path") == sorted(names)


@pytest.mark.parametrize(
    ("order", "expected"), [("newest", "cab"), ("oldest", "bac"), ("largest", "bca"), ("smallest", "acb")]
)
def test_size_and_time_decide_and_what_has_none_comes_last(order: str, expected: str, tmp_path: Path) -> None:
    records = [Record("broken", {}, "list: ValueError: no address")]
    for name, size_bytes, time_s in (("a", 9, 1e9), ("b", 100, 2e8), ("c", 10, 1.5e9)):
        path = tmp_path / name
        path.write_bytes(b"x" * size_bytes)
        os.utime(path, (0, time_s))
        records.append(record(name, LocalFile(str(path))))
    records[2:2] = [record("gone", LocalFile(str(tmp_path / "gone"))), record("unknown")]
    assert keys(records, order) == [*expected, "broken", "gone", "unknown"]


def test_random_depends_on_the_seed_and_not_on_how_the_source_lists() -> None:
    names = [f"/{number}.jpg" for number in range(200)]
    once = keys(of_keys(*names), "random:1")
    assert once == keys(of_keys(*reversed(names)), "random:1")
    assert sorted(once) == sorted(names)
    assert len({tuple(keys(of_keys(*names), f"random:{seed}")) for seed in ("1", "2", "12", "a word")}) == 4
    places = [once.index(name) for name in names]
    neighbours = sum(abs(one - other) == 1 for one, other in itertools.pairwise(places))
    assert neighbours < 10, "a shuffle leaves about two of 200 beside each other"


def test_priority_takes_the_largest_number_first_and_none_last() -> None:
    given = {
        "a": "2",
        "b": 10,
        "c": None,
        "d": "",
        "e": "high",
        "f": -1,
        "g": 2.5,
        "h": float("nan"),
        "i": "0",
        "j": 10,
    }
    records = [record("without")] + [record(key, priority=value) for key, value in given.items()]
    assert keys(records, "priority") == [*"bjgaif", "without", *"cdeh"]


def test_equals_stay_as_the_source_lists_them() -> None:
    names = [f"/{number}.jpg" for number in (3, 1, 2)]
    assert keys([record(name, Known(5, 7.0)) for name in names], "newest") == names
    assert keys([record(name, priority=1) for name in names], "priority") == names


def test_without_an_order_records_pass_at_once() -> None:
    endless = (record(str(number)) for number in itertools.count())
    assert [each.key for each in itertools.islice(ordered(endless, ""), 3)] == ["0", "1", "2"]


def test_records_arrive_as_they_were() -> None:
    records = [
        Record("b", {"content": Known(1, 2.0), "title": "ü", "scores": [1, 2.5]}),
        Record("a", {}, "list: ValueError: no address", {"open_image"}, {"title": b"hash"}),
    ]
    assert list(ordered(records, "path")) == records[::-1]


def test_another_thread_may_take_the_rest() -> None:
    records = ordered(of_keys("c", "a", "b"), "path")
    assert next(records).key == "a"
    with ThreadPoolExecutor(1) as pool:
        assert [each.key for each in pool.submit(list, records).result()] == ["b", "c"]


def test_what_cannot_be_pickled_is_kept() -> None:
    """A source that is not of this package may have content of any kind."""
    stubborn = record("b", lambda: b"bytes")
    found = list(ordered([record("c"), stubborn, record("a")], "path"))
    assert [each.key for each in found] == ["a", "b", "c"]
    assert found[1] is stubborn


# --- first


def test_first_comes_first_in_the_order_of_its_globs() -> None:
    names = ["/x/a.jpg", "/x/b.PNG", "/cats/c.jpg", "/x/d.png", "/cats/old/e.png"]
    assert keys(of_keys(*names), "", "*.png") == [names[1], names[3], names[4], names[0], names[2]]
    assert keys(of_keys(*names), "", "cats/*", "*.png") == [names[2], names[4], names[1], names[3], names[0]]
    assert keys(of_keys(*names), "", "*.png", "cats/*") == [names[1], names[3], names[4], names[2], names[0]]
    assert keys(of_keys(*names), "", "C.*") == [names[2], *names[:2], *names[3:]]
    assert keys(of_keys("https://host/b/1.jpg", "https://host/a/1.jpg"), "", "a/*")[0] == "https://host/a/1.jpg"


def test_the_order_holds_within_first_and_after_it() -> None:
    names = ["/d.jpg", "/c.png", "/b.jpg", "/a.png"]
    assert keys(of_keys(*names), "path", "*.png") == ["/a.png", "/c.png", "/b.jpg", "/d.jpg"]


# --- what cannot be done


@pytest.mark.parametrize(
    ("order", "needed"), [("newest", "times"), ("oldest", "times"), ("largest", "sizes"), ("smallest", "sizes")]
)
def test_a_source_without_sizes_and_times_is_refused_early(order: str, needed: str) -> None:
    taken: list[int] = []

    def endless() -> Iterator[Record]:
        for number in itertools.count():
            taken.append(number)
            yield Record("bad line", {}, "list: ValueError: no address")
            yield record(str(number))

    message = f"--order {order} needs {needed}, which this source does not have: use path or random:SEED"
    with pytest.raises(UserError, match=message):
        next(ordered(endless(), order))
    assert len(taken) == LOOKED_AT
    with pytest.raises(UserError, match=message):
        next(ordered(of_keys("one"), order))


def test_a_source_that_has_some_sizes_is_not_refused() -> None:
    many = [record(str(number)) for number in range(3 * LOOKED_AT)]
    assert keys([*many[:50], record("known", Known(1, 1.0)), *many[50:]], "newest")[0] == "known"
    assert keys([], "newest") == []
    failed = [Record(str(number), {}, "list: ValueError: no address") for number in range(2 * LOOKED_AT)]
    assert len(keys(failed, "newest")) == 2 * LOOKED_AT
    assert keys([*failed, record("known", Known(1, 1.0))], "newest")[0] == "known"


def test_order_type_names_the_choices() -> None:
    good = ["", "path", "newest", "oldest", "largest", "smallest", "random:7", "random:a word"]
    assert [order_type(text) for text in good] == good
    for text in ("priority", "random", "random:", "size", "Newest"):
        with pytest.raises(argparse.ArgumentTypeError) as raised:
            order_type(text)
        assert repr(text) in str(raised.value)
        assert all(choice in str(raised.value) for choice in ORDERS)


# --- many records


SORT = f"""
import resource, sys
from vec_pipeline.commands.run.order import ordered
from vec_pipeline.record import Record, UserError
from vec_pipeline.sources.folder import LocalFile

number, limit = map(int, sys.argv[1:])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
paths = (f"/photos/of/many/years/{{7919 * each % number:09}}.jpg" for each in range(number))
before = ""
try:
    for record in ordered((Record(path, {{"content": LocalFile(path)}}) for path in paths), "path"):
        assert before < record.key
        before = record.key
except UserError as error:
    print(error)
{PRINT_PEAK_MB}
"""


def sort(number: int, limit_bytes: int = 0) -> list[str]:
    program = [sys.executable, "-c", SORT, str(number), str(limit_bytes)]
    return subprocess.run(program, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.splitlines()


def test_memory_does_not_grow_with_the_number_of_records() -> None:
    """A list of 150,000 such records takes 60 MB."""
    (few,), (many,) = sort(1_000), sort(150_000)
    assert int(many) - int(few) < 20


def test_a_full_disk_is_said() -> None:
    message, _ = sort(30_000, limit_bytes=1_000_000)
    assert message.startswith("sorting needs a temporary file (")
    assert message.endswith("free some disk space, or set TMPDIR to another folder")


# --- runs


CONFIG = """
device: cpu
chunk_size: 1
stages:
- {use: open_image, max_size_px: 112}
- {use: tests.poison.Poison, seconds: 0.1}
"""
EMBEDDING = "- {use: embed_image, model: models/demo/clip}\n"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve of the example pictures; the first name is the newest."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, path in enumerate(sorted(EXAMPLES.glob("*.png"))[:12]):
        shutil.copy(path, folder / f"{number:02}.png")
        os.utime(folder / f"{number:02}.png", (0, 2_000_000_000 - number))
    (tmp_path / "config.yaml").write_text(CONFIG)
    return folder


def arguments(photos: Path, output: Path, *options: str) -> list[str]:
    names = [sys.executable, "run.py", photos, "--config", photos.parent / "config.yaml", "--output", output, *options]
    return list(map(str, names))


def run(photos: Path, output: Path, *options: str) -> Run:
    return subprocess.run(arguments(photos, output, *options), cwd=PROJECT, capture_output=True, text=True, timeout=200)


def names(table: pd.DataFrame) -> list[int]:
    return [int(Path(path).stem) for path in table["image_path"]]


def test_rows_come_in_the_order_that_was_asked_for(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "annotations.csv"
    result = run(photos, output, "--order", "oldest", "--first", "03.png", "--first", "0[01].png", "--limit", "6")
    assert result.returncode == 0, result.stderr
    assert names(load_annotations(output)) == [3, 1, 0, 11, 10, 9]


def killed_after(rows: int, photos: Path, output: Path, *options: str) -> None:
    """Run, and kill the process once so many rows are there."""
    with subprocess.Popen(arguments(photos, output, *options), cwd=PROJECT, stdout=subprocess.DEVNULL) as process:
        wait_until(lambda: output.exists() and output.read_bytes().count(b"\n") > rows)
        process.send_signal(signal.SIGKILL)


def wait_until(condition: Callable[[], bool], timeout_s: float = 100) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def test_a_rerun_in_another_order_gives_the_same_rows(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG + EMBEDDING)
    undisturbed, output = tmp_path / "undisturbed.csv", tmp_path / "annotations.csv"
    assert run(photos, undisturbed).returncode == 0
    killed_after(3, photos, output, "--order", "newest")
    begun = names(load_annotations(output))
    assert begun == list(range(len(begun)))
    assert 3 <= len(begun) < 12, "it was killed in the middle"
    result = run(photos, output, "--order", "random:7", "--first", "11.png")
    assert result.returncode == 0, result.stderr
    table = load_annotations(output)
    rest = names(table)[len(begun) :]
    assert names(table)[: len(begun)] == begun
    assert rest[0] == 11
    assert rest != sorted(rest)
    ours, others = (each.sort_values("image_path") for each in (table, load_annotations(undisturbed)))
    for name in ("image_path", "text", "error"):
        assert list(ours[name]) == list(others[name])
    np.testing.assert_allclose(np.stack(ours["image_vector"]), np.stack(others["image_vector"]), atol=1e-5)


def test_an_unknown_order_is_refused_with_the_choices(photos: Path, tmp_path: Path) -> None:
    result = run(photos, tmp_path / "annotations.csv", "--order", "size")
    assert result.returncode == 2
    assert "'size' is not an order: choose from path, newest, oldest" in result.stderr
