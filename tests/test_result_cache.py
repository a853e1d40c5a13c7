"""The ledger: results that come back bit for bit, and images that killed a process known by it."""

import functools
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import PROJECT
from vec_pipeline.ledger import Ledger, NoLedger, open_ledger
from vec_pipeline.record import UserError

STAGE = "describe:1"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "annotations.ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with closing(Ledger(path)) as opened:
        yield opened


def kill_in_flight(path: Path, *batches: str) -> None:
    """Have one process after another killed while it works on the images of a batch, each named by a letter."""
    program = """if True:
        import os, signal, sys
        from pathlib import Path
        from vec_pipeline.ledger import Ledger
        for batch in sys.argv[2:]:
            worker = os.fork()
            if not worker:
                with Ledger(Path(sys.argv[1])).in_flight(list(batch), "describe"):
                    os.kill(os.getpid(), signal.SIGKILL)
            assert os.waitpid(worker, 0)[1] == signal.SIGKILL
    """
    subprocess.run([sys.executable, "-c", program, str(path), *batches], cwd=PROJECT, timeout=60, check=True)


def test_results_come_back_as_they_were(ledger: Ledger) -> None:
    values = {"text": 'Красная "машина" 🚗\n\0\ud83d', "count": 3, "share": 0.1, "list": ["a", None], "map": {"a": {}}}
    ledger.store(STAGE, {"a": values, "b": {}})
    assert ledger.recall(STAGE, ["a", "b"]) == {"a": values, "b": {}}


def test_vectors_come_back_bit_for_bit(ledger: Ledger) -> None:
    vector = np.frombuffer(random.Random(0).randbytes(40_000), np.float32)
    vector = np.append(vector[np.isfinite(vector)], np.float32([0.1, -0.0, 1e-45]))
    ledger.store(STAGE, {"a": {"text_vector": vector, "text": "a car"}})
    recalled = ledger.recall(STAGE, ["a"])["a"]["text_vector"]
    assert recalled.dtype == np.float32
    np.testing.assert_array_equal(recalled.view(np.uint32), vector.view(np.uint32))


def test_results_belong_to_one_stage_and_one_image(ledger: Ledger) -> None:
    ledger.store(STAGE, {"a": {"text": "of a"}})
    ledger.store("describe:2", {"a": {"text": "of a, by another prompt"}, "b": {"text": "of b"}})
    assert ledger.recall(STAGE, ["a", "b", "c"]) == {"a": {"text": "of a"}}
    assert ledger.recall("describe:3", ["a", "b"]) == {}


def test_a_result_is_replaced_by_a_newer_one(ledger: Ledger) -> None:
    for text in ("old", "new"):
        ledger.store(STAGE, {"a": {"text": text}})
    assert ledger.recall(STAGE, ["a"]) == {"a": {"text": "new"}}


def test_a_batch_that_cannot_be_stored_leaves_the_ledger_usable(ledger: Ledger) -> None:
    with pytest.raises(TypeError):
        ledger.store(STAGE, {"a": {"text": "fine"}, "b": {"text": object()}})
    with pytest.raises(sqlite3.Error):
        ledger.store(STAGE, {"a": {"text": "fine"}, object(): {}})  # type: ignore[dict-item]
    assert ledger.recall(STAGE, ["a"]) == {}
    ledger.store(STAGE, {"a": {"text": "fine"}})
    assert ledger.recall(STAGE, ["a"]) == {"a": {"text": "fine"}}


def test_results_outlive_the_ledger_object(path: Path, ledger: Ledger) -> None:
    ledger.store(STAGE, {"a": {"text": "a car"}})
    ledger.close()
    with closing(Ledger(path)) as reopened:
        assert reopened.recall(STAGE, ["a"]) == {"a": {"text": "a car"}}
        assert reopened.deaths == {}


def test_a_batch_that_was_killed_is_suspect(path: Path) -> None:
    kill_in_flight(path, "ab")
    for _ in range(2):  # reopening counts no death twice
        with closing(Ledger(path)) as ledger:
            assert ledger.deaths == {"a": 1, "b": 1}
            assert not any(map(ledger.is_fatal, "abc"))


def test_an_image_killed_a_second_time_is_fatal_and_its_stage_is_known(path: Path) -> None:
    kill_in_flight(path, "ab", "a")
    with closing(Ledger(path)) as ledger:
        assert ledger.deaths == {"a": 2, "b": 1}
        assert [ledger.is_fatal(image) for image in "abc"] == [True, False, False]
        assert ledger.stages["a"] == "describe"


def test_many_that_die_together_are_narrowed_down_before_one_is_fatal(path: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJK"
    kill_in_flight(path, letters)
    with closing(Ledger(path)) as ledger:
        assert ledger.suspects() == dict.fromkeys(letters, 32)
    kill_in_flight(path, letters[:32])
    with closing(Ledger(path)) as ledger:
        assert ledger.suspects() == {**dict.fromkeys(letters[:32], 1), **dict.fromkeys(letters[32:], 32)}
        assert not any(map(ledger.is_fatal, letters))
        with ledger.in_flight(["a"], "describe"):
            pass
        ledger.in_flight(["b"], "describe").__enter__()
    with closing(Ledger(path)) as ledger:
        assert not any(map(ledger.is_fatal, letters)), "they were alone, and lived"
    kill_in_flight(path, "c")
    with closing(Ledger(path)) as ledger:
        assert list(filter(ledger.is_fatal, letters)) == ["c"]


def test_what_a_thread_has_in_flight_at_a_regular_end_is_no_death(path: Path) -> None:
    kill_in_flight(path, "ab")
    ledger = Ledger(path)
    marks = [ledger.in_flight(["a", "c"], "describe"), ledger.in_flight(["d"], "structure")]
    for mark in marks:
        mark.__enter__()
    ledger.close()
    with closing(Ledger(path)) as reopened:
        assert reopened.deaths == {"a": 1, "b": 1}


def test_a_ledger_of_an_older_version_is_begun_anew(path: Path) -> None:
    with closing(sqlite3.connect(path)) as old:
        old.execute("CREATE TABLE results (image TEXT PRIMARY KEY, result TEXT)")
        old.execute("CREATE TABLE in_flight (image TEXT PRIMARY KEY, is_alone INTEGER, deaths INTEGER)")
        old.commit()
    with closing(Ledger(path)) as ledger:
        ledger.store(STAGE, {"a": {"text": "a car"}})
        assert ledger.recall(STAGE, ["a"]) == {"a": {"text": "a car"}}


def test_vectors_are_stored_as_four_bytes_a_number(path: Path, ledger: Ledger) -> None:
    ledger.store(
        STAGE, {str(n): {"text_vector": np.random.default_rng(n).random(1000, np.float32)} for n in range(100)}
    )
    ledger.close()
    assert path.stat().st_size < 1.2 * 100 * 4000


def test_it_may_be_used_from_several_threads(ledger: Ledger) -> None:
    def work(thread: int) -> None:
        for n in range(50):
            image = f"{thread}-{n}"
            with ledger.in_flight([image], STAGE):
                ledger.store(STAGE, {image: {"text": image}})
            assert ledger.recall(STAGE, [image]) == {image: {"text": image}}

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_closing_it_under_a_thread_that_uses_it_does_not_end_the_process(path: Path) -> None:
    """As an interrupt does. Closed outside of its lock, it crashed every time this ran."""
    program = """if True:
        import contextlib, random, sqlite3, sys, threading, time
        from pathlib import Path
        from vec_pipeline.ledger import Ledger

        def work(ledger):
            images = [str(number) for number in range(16)]
            with contextlib.suppress(sqlite3.ProgrammingError):
                while True:
                    with ledger.in_flight(images, "describe"):
                        ledger.store("describe", dict.fromkeys(images, {"text": "a car"}))
                    ledger.recall("describe", images)

        for _ in range(200):
            ledger = Ledger(Path(sys.argv[1]))
            thread = threading.Thread(target=work, args=[ledger])
            thread.start()
            time.sleep(random.random() * 0.02)
            ledger.close()
            thread.join()
    """
    subprocess.run([sys.executable, "-c", program, str(path)], cwd=PROJECT, timeout=120, check=True)


def test_without_a_ledger_nothing_is_kept() -> None:
    ledger = NoLedger()
    with ledger.in_flight(["a"], STAGE):
        ledger.store(STAGE, {"a": {"text": "a car"}})
    assert ledger.recall(STAGE, ["a"]) == {}
    assert not ledger.is_fatal("a")


@pytest.mark.parametrize("exception", [ValueError, MemoryError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_no_mark(path: Path, ledger: Ledger, exception: type[BaseException]) -> None:
    with pytest.raises(exception), ledger.in_flight(["a"], "describe"):
        raise exception
    with ledger.in_flight(["b", "c"], "describe"):
        pass
    ledger.close()
    with closing(Ledger(path)) as reopened:
        assert reopened.deaths == {}


def test_results_may_be_stored_while_images_are_in_flight(ledger: Ledger) -> None:
    with ledger.in_flight(["a"], "describe"):
        ledger.store(STAGE, {"a": {"text": "a car"}})
        assert ledger.recall(STAGE, ["a"]) == {"a": {"text": "a car"}}


def test_a_suspect_is_forgiven_for_good(path: Path) -> None:
    kill_in_flight(path, "ab")
    with closing(Ledger(path)) as ledger:
        ledger.forgive(["a", "unknown"])
        assert ledger.deaths == {"b": 1}
    with closing(Ledger(path)) as reopened:
        assert reopened.deaths == {"b": 1}


def test_a_result_stored_before_a_kill_is_there_afterwards(path: Path) -> None:
    program = """if True:
        import os, signal, sys
        from pathlib import Path
        from vec_pipeline.ledger import Ledger
        Ledger(Path(sys.argv[1])).store(sys.argv[2], {"a": {"text": "a car"}})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", program, str(path), STAGE], cwd=PROJECT, timeout=60)
    with closing(Ledger(path)) as ledger:
        assert ledger.recall(STAGE, ["a"]) == {"a": {"text": "a car"}}


def break_start(path: Path) -> None:
    path.write_bytes(b"this is no database" * 100)


def break_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100:] = os.urandom(len(content) - 100)
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [break_start, break_middle])
def test_a_broken_ledger_is_put_aside(
    path: Path, ledger: Ledger, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    ledger.store(STAGE, {"a": {"text": "a car"}})
    ledger.close()
    damage(path)
    content = path.read_bytes()
    with closing(open_ledger(path)) as fresh:
        assert fresh.recall(STAGE, ["a"]) == {}
        fresh.store(STAGE, {"a": {"text": "a bus"}})
        assert fresh.recall(STAGE, ["a"]) == {"a": {"text": "a bus"}}
    assert path.with_suffix(".broken").read_bytes() == content
    assert f"{path} is broken" in caplog.text


def test_a_ledger_in_use_is_not_put_aside(path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, timeout=0.1))
    ledger.store(STAGE, {"a": {"text": "a car"}})
    with ledger._transaction():
        with pytest.raises((sqlite3.OperationalError, UserError), match="locked"):
            open_ledger(path)
        assert path.exists()
    assert not path.with_suffix(".broken").exists()


def test_a_ledger_that_was_deleted_begins_anew(path: Path, ledger: Ledger) -> None:
    ledger.store(STAGE, {"a": {"text": "a bus"}})
    ledger.close()
    for file in path.parent.iterdir():
        file.unlink()
    with closing(open_ledger(path)) as fresh:
        assert fresh.recall(STAGE, ["a"]) == {}
        fresh.store(STAGE, {"a": {"text": "a car"}})
        assert fresh.recall(STAGE, ["a"]) == {"a": {"text": "a car"}}
