"""Images in flight when a process died are suspect, and the one that kills it is found and known by its stage."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.fakes import records
from vec_pipeline.crash_journal import CrashJournal

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJK"  # 37, more than the few that are tried at once


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "annotations.journal.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[CrashJournal]:
    with closing(CrashJournal(path)) as opened:
        yield opened


def kill_in_flight(path: Path, *batches: str) -> None:
    """Have one process after another killed while it works on the images of a batch, each named by a letter."""
    program = """if True:
        import os, signal, sys
        from pathlib import Path
        from vec_pipeline.crash_journal import CrashJournal
        for batch in sys.argv[2:]:
            worker = os.fork()
            if not worker:
                with CrashJournal(Path(sys.argv[1])).in_flight(list(batch), "describe"):
                    os.kill(os.getpid(), signal.SIGKILL)
            assert os.waitpid(worker, 0)[1] == signal.SIGKILL
    """
    subprocess.run([sys.executable, "-c", program, str(path), *batches], cwd=PROJECT, timeout=60, check=True)


def fatal(journal: CrashJournal) -> str:
    return "".join(letter for letter in LETTERS if journal.fatal_stage(letter))


def groups(journal: CrashJournal, letters: str) -> list[str]:
    """What may share a chunk, in the order in which it is done."""
    return ["".join(record.key for record in group) for group in journal.suspects_last(records(*letters))]


def fitting(journal: CrashJournal, letters: str, most: int) -> str:
    return "".join(record.key for record in journal.fitting(records(*letters), most))


# --- suspects


def test_a_batch_that_was_killed_is_suspect(path: Path) -> None:
    kill_in_flight(path, "ab")
    for _ in range(2):  # opening it again counts no death twice
        with closing(CrashJournal(path)) as journal:
            assert journal.deaths == {"a": 1, "b": 1}
            assert fatal(journal) == ""


def test_an_image_that_was_alone_at_its_first_death_is_not_fatal(path: Path) -> None:
    """The power may have failed, or a person may have ended the process."""
    kill_in_flight(path, "a")
    with closing(CrashJournal(path)) as journal:
        assert (journal.deaths, fatal(journal)) == ({"a": 1}, "")


def test_an_image_killed_a_second_time_is_fatal_and_its_stage_is_known(path: Path) -> None:
    kill_in_flight(path, "ab", "a")
    with closing(CrashJournal(path)) as journal:
        assert journal.deaths == {"a": 2, "b": 1}
        assert fatal(journal) == "a"
        assert journal.fatal_stage("a") == "describe"


def test_an_image_that_was_not_alone_at_the_second_death_is_not_fatal(path: Path) -> None:
    kill_in_flight(path, "ab", "ab")
    with closing(CrashJournal(path)) as journal:
        assert journal.deaths == {"a": 2, "b": 2}
        assert fatal(journal) == ""


def test_many_that_die_together_are_narrowed_down_before_one_is_fatal(path: Path) -> None:
    kill_in_flight(path, LETTERS)
    with closing(CrashJournal(path)) as journal:
        assert groups(journal, LETTERS + "_") == ["_", LETTERS, ""]
        assert fitting(journal, LETTERS, 64) == LETTERS[:32]
        assert fitting(journal, LETTERS, 8) == LETTERS[:8]
    kill_in_flight(path, LETTERS[:32])
    with closing(CrashJournal(path)) as journal:
        assert groups(journal, LETTERS + "_") == ["_", LETTERS[32:], LETTERS[:32]]
        assert fitting(journal, LETTERS, 64) == "a"
        assert fatal(journal) == ""
        with journal.in_flight(["a"], "describe"):
            pass
        left_behind = journal.in_flight(["b"], "describe")
        left_behind.__enter__()
    with closing(CrashJournal(path)) as journal:
        assert fatal(journal) == "", "they were alone, and lived"
    kill_in_flight(path, "c")
    with closing(CrashJournal(path)) as journal:
        assert fatal(journal) == "c"


def test_a_batch_holds_suspects_of_one_kind_or_none(path: Path) -> None:
    kill_in_flight(path, LETTERS, "ab")
    with closing(CrashJournal(path)) as journal:
        assert fitting(journal, "_-a", 64) == "_-"
        assert fitting(journal, "cda_", 64) == "cd"
        assert fitting(journal, "abc", 64) == "a"


def test_what_is_not_suspect_streams_through(path: Path, journal: CrashJournal) -> None:
    """A source of a million images must not be in memory at once."""
    taken = []

    def source() -> Iterator[str]:
        for letter in "abc":
            taken.append(letter)
            yield letter

    first = next(iter(journal.suspects_last(chain.from_iterable(records(letter) for letter in source()))))
    assert next(iter(first)).key == "a"
    assert taken == ["a"]


def test_a_suspect_is_cleared_for_good(path: Path) -> None:
    kill_in_flight(path, "ab")
    with closing(CrashJournal(path)) as journal:
        journal.clear(["a", "unknown"])
        assert journal.deaths == {"b": 1}
    with closing(CrashJournal(path)) as journal:
        assert journal.deaths == {"b": 1}


def test_a_fatal_image_that_is_cleared_may_be_tried_again(path: Path) -> None:
    kill_in_flight(path, "a", "a")
    with closing(CrashJournal(path)) as journal:
        assert fatal(journal) == "a"
        journal.clear(journal.deaths.copy())
        assert fatal(journal) == ""
    with closing(CrashJournal(path)) as journal:
        assert (journal.deaths, fatal(journal)) == ({}, "")


def test_a_death_of_the_gpu_counts_as_one_of_the_process(path: Path) -> None:
    for number, batch in enumerate(("abc", "b"), 1):
        with closing(CrashJournal(path)) as journal:
            journal.count_death(batch, "describe")
            assert fatal(journal) == "", "not in the process that may not know what it did"
        with closing(CrashJournal(path)) as journal:
            assert journal.deaths == {"a": 1, "b": number, "c": 1}
    with closing(CrashJournal(path)) as journal:
        assert (fatal(journal), journal.fatal_stage("b")) == ("b", "describe")


# --- marks


@pytest.mark.parametrize("exception", [ValueError, MemoryError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_no_mark(path: Path, journal: CrashJournal, exception: type[BaseException]) -> None:
    with pytest.raises(exception), journal.in_flight(["a"], "describe"):
        raise exception
    with journal.in_flight(["b", "c"], "describe"):
        pass
    with closing(CrashJournal(path)) as other:  # as the next process finds it after a kill now
        assert other.deaths == {}


def test_what_a_thread_has_in_flight_at_a_regular_end_is_no_death(path: Path) -> None:
    kill_in_flight(path, "ab")
    journal = CrashJournal(path)
    left_behind = [journal.in_flight(["c"], "describe"), journal.in_flight(["d"], "structure")]
    for mark in left_behind:
        mark.__enter__()
    journal.close()
    with closing(CrashJournal(path)) as reopened:
        assert reopened.deaths == {"a": 1, "b": 1}


def test_a_suspect_that_lives_stays_suspect_until_its_row_is_done(path: Path) -> None:
    """Another stage may still kill the process."""
    kill_in_flight(path, "a")
    with closing(CrashJournal(path)) as journal, journal.in_flight(["a"], "describe"):
        pass
    with closing(CrashJournal(path)) as journal:
        assert journal.deaths == {"a": 1}


def is_waiting(thread: threading.Thread) -> bool:
    thread.join(0.1)
    return thread.is_alive()


@pytest.mark.parametrize(("first", "second"), [("a", "_"), ("_", "a"), ("a", "b")])
def test_nothing_else_is_in_flight_with_a_suspect(first: str, second: str, path: Path) -> None:
    kill_in_flight(path, "ab")

    def work() -> None:
        with journal.in_flight([second], "describe"):
            pass

    with closing(CrashJournal(path)) as journal:
        with journal.in_flight([first], "describe"):
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            assert is_waiting(thread)
        thread.join(20)
        assert not thread.is_alive()


def test_images_that_are_not_suspect_are_in_flight_together(journal: CrashJournal) -> None:
    both = threading.Barrier(2, timeout=20)

    def work() -> None:
        with journal.in_flight(["b"], "describe"):
            both.wait()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    with journal.in_flight(["a"], "read"):
        both.wait()
    thread.join(20)


def test_without_a_file_nothing_is_kept() -> None:
    journal = CrashJournal(None)
    with journal.in_flight(["a"], "describe"):
        journal.count_death(["a"], "describe")
    journal.clear(["a"])
    journal.close()
    assert (journal.deaths, fatal(journal)) == ({}, "")
