"""The SQLite files beside a CSV: whatever becomes of them costs time, never a row."""

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from vec_pipeline import database
from vec_pipeline.database import Database
from vec_pipeline.record import UserError

SCHEMA = "CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, result TEXT);"
INSERT = "INSERT OR REPLACE INTO results VALUES (?, ?)"
SELECT = "SELECT key, result FROM results ORDER BY key"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "annotations.cache.sqlite"


@pytest.fixture
def opened(path: Path) -> Iterator[Database]:
    with closing(Database(path, SCHEMA)) as opened:
        opened.write((INSERT, [("a", "a car")]))
        yield opened


def rows_in(path: Path) -> list[tuple[str, str]]:
    with closing(Database(path, SCHEMA)) as again:
        return again.read(SELECT)


def test_what_is_written_is_there_for_the_next(path: Path, opened: Database) -> None:
    opened.write((INSERT, [("b", "a bus"), ("c", "a cup")]), ("DELETE FROM results WHERE key = ?", [("c",)]))
    assert opened.read("SELECT result FROM results WHERE key = ?", ("b",)) == [("a bus",)]
    opened.close()
    assert rows_in(path) == [("a", "a car"), ("b", "a bus")]


def test_statements_are_one_transaction(opened: Database) -> None:
    with pytest.raises(sqlite3.Error):
        opened.write((INSERT, [("b", "a bus")]), (INSERT, [("c",)]))
    assert opened.read(SELECT) == [("a", "a car")]
    opened.write((INSERT, [("b", "a bus")]))
    assert opened.read(SELECT) == [("a", "a car"), ("b", "a bus")]


def test_a_write_is_on_the_disk_after_a_kill_and_costs_no_fsync(opened: Database) -> None:
    """An fsync a batch would cost more than a small image; only a failure of the power loses the last batches."""
    assert opened.read("PRAGMA synchronous") == [(1,)], "NORMAL"
    assert opened.read("PRAGMA journal_mode") == [("wal",)]


def test_without_a_file_nothing_is_kept() -> None:
    empty = Database(None, SCHEMA)
    empty.write((INSERT, [("a", "a car")]))
    assert empty.read(SELECT) == []
    empty.close()


@pytest.mark.parametrize("version", [0, database.VERSION - 1, database.VERSION + 1])
def test_tables_of_another_version_are_dropped(version: int, path: Path) -> None:
    with closing(sqlite3.connect(path)) as old:
        old.execute("CREATE TABLE results (image TEXT PRIMARY KEY, stage TEXT, result TEXT)")
        old.execute("INSERT INTO results VALUES ('a', 'describe', 'a car')")
        old.execute("CREATE TABLE in_flight (image TEXT PRIMARY KEY)")
        old.execute(f"PRAGMA user_version = {version}")
        old.commit()
    assert rows_in(path) == []
    with closing(Database(path, SCHEMA)) as new:
        new.write((INSERT, [("a", "a car")]))
    assert rows_in(path) == [("a", "a car")]


def test_a_file_that_was_deleted_is_begun_from_scratch(path: Path, opened: Database) -> None:
    opened.close()
    for file in path.parent.iterdir():
        file.unlink()
    assert rows_in(path) == []


# --- damaged


def break_start(path: Path) -> None:
    path.write_bytes(b"this is no database" * 100)


def break_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100:] = os.urandom(len(content) - 100)
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [break_start, break_middle])
def test_a_damaged_file_is_set_aside_and_said(
    path: Path,
    opened: Database,
    damage: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    opened.close()
    damage(path)
    content = path.read_bytes()
    path.with_name(f"{path.name}-wal").write_bytes(b"of the damaged file")
    with closing(Database(path, SCHEMA)) as fresh:
        assert fresh.read(SELECT) == []
        fresh.write((INSERT, [("a", "a bus")]))
        assert fresh.read(SELECT) == [("a", "a bus")]
    assert path.with_suffix(".broken").read_bytes() == content
    assert f"{path} is damaged" in caplog.text
    assert f"{path} is damaged and was set aside as annotations.cache.broken" in capsys.readouterr().out
    assert rows_in(path) == [("a", "a bus")]


def test_a_file_that_is_damaged_while_it_is_used_is_set_aside(path: Path, opened: Database) -> None:
    many = [(f"{n}", "a car" * 100) for n in range(1000)]
    opened.write((INSERT, many))
    opened.read("PRAGMA wal_checkpoint(TRUNCATE)")
    break_middle(path)
    opened.read("PRAGMA shrink_memory")
    assert opened.read(SELECT) == []
    opened.write((INSERT, [("a", "a bus")]))
    assert opened.read(SELECT) == [("a", "a bus")]
    assert path.with_suffix(".broken").exists()


def test_a_folder_in_its_place_is_set_aside(path: Path) -> None:
    path.mkdir()
    with closing(Database(path, SCHEMA)) as fresh:
        fresh.write((INSERT, [("a", "a bus")]))
    assert rows_in(path) == [("a", "a bus")]
    assert path.with_suffix(".broken").is_dir()


# --- locked by another program


def test_a_file_that_stays_locked_is_waited_for_and_then_left_alone(
    path: Path, opened: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened.close()
    monkeypatch.setattr(database, "BUSY_S", 0.3)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        start_s = time.monotonic()
        with closing(Database(path, SCHEMA)) as locked:
            assert time.monotonic() - start_s >= 0.3
            assert locked.read(SELECT) == []
            locked.write((INSERT, [("b", "a bus")]))
        assert f"{path} cannot be used (database is locked): continuing without it" in capsys.readouterr().out
    assert not path.with_suffix(".broken").exists()
    assert rows_in(path) == [("a", "a car")]


def test_a_file_that_is_locked_during_the_run_is_left_alone_from_then_on(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(database, "BUSY_S", 0.1)
    with closing(Database(path, SCHEMA)) as opened, closing(sqlite3.connect(path, isolation_level=None)) as other:
        opened.write((INSERT, [("a", "a car")]))
        other.execute("BEGIN IMMEDIATE")
        opened.write((INSERT, [("b", "a bus")]))
        other.execute("COMMIT")
        opened.write((INSERT, [("c", "a cup")]))
        assert opened.read(SELECT) == []
    assert capsys.readouterr().out.count("continuing without it") == 1
    assert rows_in(path) == [("a", "a car")]


def test_a_file_that_is_locked_for_a_moment_is_waited_for(path: Path, opened: Database) -> None:
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    with closing(other):
        other.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.2, other.execute, ["COMMIT"])
        timer.start()
        opened.write((INSERT, [("b", "a bus")]))
        timer.join()
    assert opened.read(SELECT) == [("a", "a car"), ("b", "a bus")]
    assert database.BUSY_S >= 20


def test_a_file_that_cannot_be_opened_is_left_alone(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = path.parent / "missing" / path.name
    with closing(Database(nowhere, SCHEMA)) as opened:
        opened.write((INSERT, [("a", "a car")]))
        assert opened.read(SELECT) == []
    assert f"{nowhere} cannot be used (unable to open database file)" in capsys.readouterr().out


# --- a full disk, threads, the end


def test_a_full_disk_is_one_sentence(path: Path, opened: Database) -> None:
    ((pages,),) = opened.read("PRAGMA page_count")
    opened.read(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(UserError, match=r"annotations.cache.sqlite: .*full: free some disk space, then rerun$"):
        opened.write((INSERT, [(f"{n}", "a car" * 1000) for n in range(100)]))
    assert opened.read(SELECT) == [("a", "a car")]


def test_threads_share_it(opened: Database) -> None:
    def work(thread: int) -> None:
        for n in range(50):
            opened.write((INSERT, [(f"{thread}-{n}", "a car")]))
            assert opened.read("SELECT result FROM results WHERE key = ?", (f"{thread}-{n}",)) == [("a car",)]

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened.read("SELECT count(*) FROM results") == [(201,)]


def test_closing_writes_a_last_time_and_what_comes_later_has_no_effect(path: Path, opened: Database) -> None:
    opened.close((INSERT, [("b", "a bus")]))
    opened.write((INSERT, [("c", "a cup")]))
    assert opened.read(SELECT) == []
    opened.close((INSERT, [("d", "a dog")]))
    assert rows_in(path) == [("a", "a car"), ("b", "a bus")]


def test_closing_does_not_wait_for_a_thread_that_waits_for_another_program(path: Path, opened: Database) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        thread = threading.Thread(target=opened.write, args=[(INSERT, [("b", "a bus")])])
        thread.start()
        time.sleep(0.1)
        opened.close()
        assert thread.is_alive()
        other.execute("COMMIT")
        thread.join(20)
    assert not thread.is_alive()


def test_closing_it_under_a_thread_that_uses_it_does_not_end_the_process(path: Path) -> None:
    """As an interrupt does. Closed outside of its lock, it crashed every time this ran."""
    program = """if True:
        import random, sys, threading, time
        from pathlib import Path
        from tests.test_database import INSERT, SCHEMA, SELECT, Database

        def work(database):
            rows = [(str(number), "a car") for number in range(16)]
            while database._connection:
                database.write((INSERT, rows))
                database.read(SELECT)

        for _ in range(200):
            database = Database(Path(sys.argv[1]), SCHEMA)
            thread = threading.Thread(target=work, args=[database])
            thread.start()
            time.sleep(random.random() * 0.02)
            database.close()
            thread.join()
    """
    subprocess.run([sys.executable, "-c", program, str(path)], cwd=PROJECT, timeout=120, check=True)
