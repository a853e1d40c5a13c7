"""What people have corrected: a layer over a CSV, in an SQLite file beside it; with history, undo, and who it was."""

import json
import math
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from vec_pipeline.record import UserError, beside

VERSION = 1  # of the tables
BUSY_S = 30.0  # to wait for another program that has locked the file
VERIFIED = "verified"  # a column of this layer alone: empty, or one of the two below
ACCEPTED, REJECTED = "accepted", "rejected"
EDIT = "edit"  # the `what` of an act by hand on one picture; bulk acts say what they did
NEVER = ("image_path", "timestamp", "error", "llama_extracted", "flags")  # columns that cannot be corrected
CORRECTABLE = ("text", "json", "number")  # types of those that can

SCHEMA = """
CREATE TABLE pictures (id INTEGER PRIMARY KEY);
CREATE TABLE places (key TEXT PRIMARY KEY, picture INTEGER NOT NULL) WITHOUT ROWID;  -- key: image_path
CREATE TABLE pixels (hash BLOB, reader TEXT, picture INTEGER, PRIMARY KEY (hash, reader, picture)) WITHOUT ROWID;
CREATE INDEX pixels_of_picture ON pixels (picture, reader);
CREATE INDEX places_of_picture ON places (picture);
CREATE TABLE acts (id INTEGER PRIMARY KEY AUTOINCREMENT, uuid TEXT UNIQUE NOT NULL, time TEXT NOT NULL,
  who TEXT NOT NULL, what TEXT NOT NULL, undoes INTEGER);
CREATE INDEX acts_that_undo ON acts (undoes);
-- A value is NULL where it is the machine's; its act is the one that made it, 0 for the machine.
CREATE TABLE changes (act INTEGER NOT NULL, picture INTEGER NOT NULL, name TEXT NOT NULL, key TEXT NOT NULL, old TEXT,
  old_act INTEGER NOT NULL, new TEXT, new_act INTEGER NOT NULL, PRIMARY KEY (act, picture, name)) WITHOUT ROWID;
CREATE INDEX changes_of_picture ON changes (picture);
CREATE INDEX changes_of_key ON changes (key);
CREATE TABLE corrections (picture INTEGER, name TEXT, value TEXT, act INTEGER NOT NULL, changed_by INTEGER NOT NULL,
  PRIMARY KEY (picture, name)) WITHOUT ROWID;  -- as it is now
CREATE TABLE applied (key TEXT, name TEXT, value TEXT NOT NULL, PRIMARY KEY (key, name)) WITHOUT ROWID;
"""
NOW = """SELECT key, name, value, act, what, who, time FROM corrections JOIN places USING (picture)
  JOIN acts ON acts.id = act"""


class Change(NamedTuple):
    """A value to give to a column of a picture.

    value: the text of the cell; None for the machine's own.
    seen: the act that made the value which the editor saw, 0 for the machine's; None not to compare.
    """

    key: str
    column: str
    value: str | None
    seen: int | None = None


class Correction(NamedTuple):
    """What a column of a picture was given last; `value` is None where that is the machine's own."""

    value: str | None
    act: int
    what: str
    who: str
    time: str


class Clash(NamedTuple):
    """A value that somebody else has changed since it was seen."""

    key: str
    column: str
    now: Correction


class Conflict(Exception):  # noqa: N818 (it says what happened)
    """Values have been changed since they were seen; nothing of the act was done.

    entries: what they are now.
    """

    def __init__(self, entries: Sequence[Clash]) -> None:
        super().__init__(
            f"{entries[0].column} of {entries[0].key} was changed by {entries[0].now.who or 'somebody else'}"
        )
        self.entries = list(entries)


class Unavailable(UserError):  # noqa: N818 (it says what is the matter)
    """The corrections can be neither read nor written now: the disk is full, say, or the file is damaged."""


class Act(NamedTuple):
    """One thing that somebody did, to one picture or to many.

    changes: how many values it changed.
    undoes, undone_by: the act that it undoes, and the one that has undone it; 0 for none.
    """

    id: int
    time: str
    who: str
    what: str
    changes: int
    undoes: int
    undone_by: int


class Entry(NamedTuple):
    """One value in the history of a picture; `old` and `new` are None for the machine's."""

    act: int
    time: str
    who: str
    what: str
    column: str
    old: str | None
    new: str | None


@dataclass(frozen=True)
class Current:
    """The corrections as they are at a moment, by image_path and column.

    exists: whether there is a file of corrections; then readers have the column `verified`.
    """

    values: Mapping[str, Mapping[str, Correction]] = field(default_factory=dict)
    exists: bool = False

    def of(self, key: str) -> dict[str, str]:
        """What the columns of a picture were given; those that are the machine's are left out."""
        found = self.values.get(key, {})
        return {name: each.value for name, each in found.items() if each.value is not None}

    def marks(self) -> "Current":
        """What was accepted and rejected alone."""
        return Current(
            {key: {VERIFIED: found[VERIFIED]} for key, found in self.values.items() if VERIFIED in found}, True
        )


def corrections_path(csv_path: Path) -> Path:
    """Beside the CSV itself where the path is a link."""
    return beside(csv_path.resolve(), "corrections.sqlite")


def current_of(csv_path: Path) -> Current:
    """A snapshot for readers, who need no lock. Raises UserError where the file cannot be read."""
    path = corrections_path(csv_path)
    if not is_there(path):
        return Current()
    with failures_named(path), closing(connect(path)) as connection:
        return snapshot(connection)


def is_there(path: Path) -> bool:
    """Whether there is a file with corrections; one that a kill left empty has none."""
    return path.exists() and path.stat().st_size > 0


def check_change(types: Mapping[str, str], column: str, value: str | None) -> None:
    """Raise UserError where a column of a CSV cannot be given this value.

    types: of the CSV's columns, by name.
    """
    if column == VERIFIED:
        if value not in (None, "", ACCEPTED, REJECTED):
            raise UserError(f"{VERIFIED}: {value!r} is neither {ACCEPTED} nor {REJECTED}")
        return
    kind = types.get(column)
    if kind not in CORRECTABLE or column in NEVER:
        raise UserError(f"{column} cannot be corrected: it is {'no column' if kind is None else 'made by the worker'}")
    try:
        typed(kind, value or "")
    except (ValueError, RecursionError):
        raise UserError(f"{column}: {(value or '')[:40]!r} is not {'JSON' if kind == 'json' else 'a number'}") from None


def typed(kind: str, cell: str) -> Any:
    """A cell of the layer as a stage would write it, None for an empty number or JSON. Raises ValueError."""
    if kind not in ("json", "number"):
        return cell
    if not cell:
        return None
    if kind == "number":
        if "_" in cell or not cell.isascii():
            raise ValueError("Python's own ways to write numbers, which no reader of a CSV knows")
        return finite(float(cell))
    return json.loads(cell, parse_constant=finite)


def finite(value: float | str) -> float:
    """The number. Raises ValueError for NaN and the infinities, which are no JSON."""
    if not math.isfinite(float(value)):
        raise ValueError(f"{value} is no number")
    return float(value)


class Corrections:
    """The layer of one CSV, to be changed: the caller holds the CSV's lock.

    The file is made with the first change. Every act is one transaction, which is on the disk when it returns.

    Raises UserError where the file is damaged, or cannot be written.
    """

    def __init__(self, csv_path: Path) -> None:
        self.path = corrections_path(csv_path)
        self._opened: sqlite3.Connection | None = None

    def correct(self, changes: Sequence[Change], what: str = EDIT, who: str = "") -> int:
        """Make some changes, of one column of a picture one, as one act; return its number.

        Raises Conflict, and changes nothing, where a value is not what was seen.
        """
        with self._transaction() as connection:
            steps = [Step(picture_of(connection, each.key), *each) for each in changes]
            return act_on(connection, steps, what, who)

    def undo(self, act: int, who: str = "") -> int:
        """Give the values that an act changed what they had before, as an act of its own; return its number.

        To undo that one is to do the first again. Raises Conflict where a value was changed since, and UserError where
        there is no such act or it is undone already.
        """
        with self._transaction() as connection:
            found = connection.execute("SELECT what FROM acts WHERE id = ?", (act,)).fetchone()
            if not found or connection.execute("SELECT 1 FROM acts WHERE undoes = ?", (act,)).fetchone():
                raise UserError(
                    f"there is nothing to undo: act {act} {'is undone already' if found else 'is not there'}"
                )
            query = "SELECT picture, key, name, old, new_act, old_act FROM changes WHERE act = ?"
            steps = [Step(*row) for row in connection.execute(query, (act,))]
            return act_on(connection, steps, f"undo: {found[0]}", who, act)

    def acts(self, most: int = 100, before: int | None = None) -> list[Act]:
        """The last acts, the newest first; those before one of them where `before` names it."""
        query = """SELECT id, time, who, what, (SELECT count(*) FROM changes WHERE act = id), coalesce(undoes, 0),
          coalesce((SELECT id FROM acts AS later WHERE later.undoes = acts.id), 0)
          FROM acts WHERE id < ? ORDER BY id DESC LIMIT ?"""
        return [Act(*row) for row in self._read(query, (before or 1 << 62, most))]

    def history(self, key: str) -> list[Entry]:
        """What was done to a picture, and to others that were at its place, the newest first."""
        query = """SELECT act, time, who, what, name, old, new FROM changes JOIN acts ON acts.id = act
          WHERE key = ?1 OR picture = (SELECT picture FROM places WHERE key = ?1) ORDER BY act DESC"""
        return [Entry(*row) for row in self._read(query, (key,))]

    def current(self) -> Current:
        with failures_named(self.path):
            return snapshot(self._connection) if is_there(self.path) else Current()

    def changed_since(self, act: int) -> dict[str, dict[str, Correction]]:
        """The corrections, as they are now, of pictures that later acts have changed, by key and column."""
        query = """SELECT key, name, value, corrections.act, what, who, time FROM places
          LEFT JOIN corrections ON corrections.picture = places.picture AND act > 0
          LEFT JOIN acts ON acts.id = corrections.act
          WHERE places.picture IN (SELECT picture FROM changes WHERE act > ?)"""
        found: dict[str, dict[str, Correction]] = {}
        for key, name, *rest in self._read(query, (act,)):
            of_key = found.setdefault(key, {})
            if name is not None:
                of_key[name] = Correction(*rest)
        return found

    def note_pixels(self, hashes: Mapping[str, bytes], reader: str) -> tuple[list[str], list[str]]:
        """Keep what pictures look like, and tell which corrected ones have moved, and which were replaced.

        hashes: of the pixels, by image_path, of as many pictures as the caller likes.
        reader: what decides the pixels beside the picture: the settings of the stage that opens it.

        Return the keys where a picture was found again that was corrected elsewhere, and those where another picture is
        than the one that was corrected: its corrections are kept, but do not hold for the new one.
        """
        if not is_there(self.path):
            return [], []
        found, replaced = [], []
        with self._transaction() as connection:
            for key, digest in hashes.items():
                is_found, is_replaced = link(connection, key, digest, reader)
                found += [key] if is_found else []
                replaced += [key] if is_replaced else []
        return found, replaced

    def without_pixels(self, reader: str, most: int = 100) -> list[str]:
        """Keys of corrected pictures whose pixels are not known as a reader sees them."""
        query = """SELECT min(key) FROM places WHERE picture NOT IN (SELECT picture FROM pixels WHERE reader = ?)
          GROUP BY picture LIMIT ?"""
        return [key for (key,) in self._read(query, (reader, most))]

    def stale(self, columns: Iterable[str]) -> list[str]:
        """Keys of rows that were made with other values of these columns than they have now."""
        names = sorted(set(columns))
        marks = ",".join("?" * len(names))
        now = f"""SELECT key, name, value FROM corrections JOIN places USING (picture)
          WHERE value IS NOT NULL AND name IN ({marks})"""
        then = f"SELECT key, name, value FROM applied WHERE name IN ({marks})"
        query = f"SELECT key FROM (SELECT * FROM ({now} EXCEPT {then}) UNION SELECT * FROM ({then} EXCEPT {now}))"
        return sorted({key for (key,) in self._read(query, tuple(names * 4))})

    def confirm(self, rows: Mapping[str, Mapping[str, str]]) -> None:
        """Rows were made with what people had given columns: the texts of cells by column, by image_path."""
        if not is_there(self.path):
            return
        with self._transaction() as connection:
            for key, given in rows.items():
                connection.execute("DELETE FROM applied WHERE key = ?", (key,))
                texts = [(key, name, value) for name, value in given.items() if name != VERIFIED]
                connection.executemany("INSERT INTO applied VALUES (?, ?, ?)", texts)

    def made_with(self) -> set[str]:
        """Keys of the rows that were made with a value that people had given."""
        return {key for (key,) in self._read("SELECT DISTINCT key FROM applied", ())}

    def take_over(self, csv_path: Path) -> None:
        """Add what people have done to another CSV; where both have a value, the later one stays."""
        other = corrections_path(csv_path)
        if not is_there(other) or other == self.path:
            return
        with failures_named(other), closing(connect(other)) as theirs, self._transaction() as connection:
            pictures = {picture: same_picture(theirs, connection, picture) for picture in ids(theirs, "pictures")}
            for key, picture in theirs.execute("SELECT key, picture FROM places"):
                connection.execute("INSERT OR IGNORE INTO places VALUES (?, ?)", (key, pictures[picture]))
            for digest, reader, picture in theirs.execute("SELECT hash, reader, picture FROM pixels"):
                row = (digest, reader, pictures[picture])
                connection.execute("INSERT OR IGNORE INTO pixels VALUES (?, ?, ?)", row)
            copy_acts(theirs, connection, pictures)
            of_rows = theirs.execute("SELECT key, name, value FROM applied")
            connection.executemany("INSERT OR IGNORE INTO applied VALUES (?, ?, ?)", of_rows)

    def close(self) -> None:
        if self._opened:
            self._opened.close()
            self._opened = None

    def _read(self, query: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        if not is_there(self.path):
            return []
        with failures_named(self.path):
            return self._connection.execute(query, parameters).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A block whose changes are on the disk after it, or none of them."""
        with failures_named(self.path), self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection

    @property
    def _connection(self) -> sqlite3.Connection:
        if not self._opened:
            self._opened = connect(self.path, makes=True)
        return self._opened


def connect(path: Path, *, makes: bool = False) -> sqlite3.Connection:
    """Open the file; `makes` it where it is missing. Raises UserError for one of another version."""
    mode = "rwc" if makes else "rw" if os.access(path, os.W_OK) else "ro"
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode={mode}", BUSY_S, uri=True, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA synchronous = EXTRA")  # an act that returned outlives a power failure
        if mode != "ro" and not connection.execute("SELECT name FROM sqlite_master").fetchone():
            connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT")
        [version] = connection.execute("PRAGMA user_version").fetchone()
    except BaseException:
        connection.close()
        raise
    if version != VERSION:
        connection.close()
        raise UserError(
            f"{path} is of another version of this program ({version}): use that one, or move the file away"
        )
    return connection


@contextmanager
def failures_named(path: Path) -> Iterator[None]:
    """A block that works with the file: what SQLite raises becomes a UserError, since no correction may get lost."""
    try:
        yield
    except sqlite3.Error as error:
        raise Unavailable(
            f"{path} holds what people have corrected, and cannot be used ({error}): free some disk space, or restore "
            "it from a copy"
        ) from None


def snapshot(connection: sqlite3.Connection) -> Current:
    found: dict[str, dict[str, Correction]] = {}
    for key, name, *rest in connection.execute(NOW):
        found.setdefault(key, {})[name] = Correction(*rest)
    return Current(found, exists=True)


def picture_of(connection: sqlite3.Connection, key: str) -> int:
    """The picture of a key, a new one where it has none."""
    found = connection.execute("SELECT picture FROM places WHERE key = ?", (key,)).fetchone()
    if found:
        return int(found[0])
    picture = connection.execute("INSERT INTO pictures DEFAULT VALUES").lastrowid
    assert picture is not None
    connection.execute("INSERT INTO places VALUES (?, ?)", (key, picture))
    return picture


def link(connection: sqlite3.Connection, key: str, digest: bytes, reader: str) -> tuple[bool, bool]:
    """Note the pixels of a key; return whether a corrected picture was found there, and whether one was replaced."""
    place = connection.execute("SELECT picture FROM places WHERE key = ?", (key,)).fetchone()
    if place:
        query = "SELECT hash FROM pixels WHERE picture = ? AND reader = ?"
        hashes = {known for (known,) in connection.execute(query, (place[0], reader))}
        if not hashes:
            connection.execute("INSERT INTO pixels VALUES (?, ?, ?)", (digest, reader, place[0]))
        if not hashes or digest in hashes:
            return False, False
        connection.execute("DELETE FROM places WHERE key = ?", (key,))
    query = "SELECT min(picture) FROM pixels WHERE hash = ? AND reader = ?"
    [same] = connection.execute(query, (digest, reader)).fetchone()
    if same is not None:
        connection.execute("INSERT INTO places VALUES (?, ?)", (key, same))
    return same is not None, place is not None


class Step(NamedTuple):
    """A change of a picture, see Change; `maker` is the act that the value is from, None for this one."""

    picture: int
    key: str
    column: str
    value: str | None
    seen: int | None
    maker: int | None = None


def act_on(connection: sqlite3.Connection, steps: Sequence[Step], what: str, who: str, undoes: int = 0) -> int:
    """Make changes as one act; return its number. Raises Conflict."""
    if clashes := list(clashes_of(connection, steps)):
        raise Conflict(clashes)
    now = datetime.now().isoformat(timespec="seconds")
    act = insert_act(connection, uuid4().hex, now, who, what, undoes or None)
    for step in steps:
        make(connection, act, step)
    return act


def insert_act(connection: sqlite3.Connection, *row: Any) -> int:
    insert = "INSERT INTO acts (uuid, time, who, what, undoes) VALUES (?, ?, ?, ?, ?)"
    number = connection.execute(insert, row).lastrowid
    assert number is not None
    return number


def clashes_of(connection: sqlite3.Connection, steps: Iterable[Step]) -> Iterator[Clash]:
    """Those of some changes that would overwrite what their editors have not seen."""
    query = """SELECT value, act, what, who, time FROM corrections JOIN acts ON acts.id = act
      WHERE picture = ? AND name = ?"""
    for step in steps:
        if step.seen is not None:
            found = connection.execute(query, (step.picture, step.column)).fetchone()
            now = Correction(*found) if found else Correction(None, 0, "", "", "")
            if now.act != step.seen:
                yield Clash(step.key, step.column, now)


def make(connection: sqlite3.Connection, act: int, step: Step) -> None:
    """Give a value to a picture."""
    maker = act if step.maker is None else step.maker
    query = "SELECT value, act FROM corrections WHERE picture = ? AND name = ?"
    old, old_act = connection.execute(query, (step.picture, step.column)).fetchone() or (None, 0)
    row = (act, step.picture, step.column, step.key, old, old_act, step.value, maker)
    again = "ON CONFLICT DO UPDATE SET new = excluded.new"  # two keys of one picture
    connection.execute(f"INSERT INTO changes VALUES (?, ?, ?, ?, ?, ?, ?, ?) {again}", row)
    now = (step.picture, step.column, step.value, maker, act)
    connection.execute("INSERT OR REPLACE INTO corrections VALUES (?, ?, ?, ?, ?)", now)


def ids(connection: sqlite3.Connection, table: str) -> list[int]:
    return [number for (number,) in connection.execute(f"SELECT id FROM {table} ORDER BY id")]


def same_picture(theirs: sqlite3.Connection, connection: sqlite3.Connection, picture: int) -> int:
    """The picture of ours that is one of theirs, by its places and then its pixels; a new one where there is none."""
    for query, find in (
        ("SELECT key FROM places WHERE picture = ?", "SELECT picture FROM places WHERE key = ?"),
        (
            "SELECT hash, reader FROM pixels WHERE picture = ?",
            "SELECT picture FROM pixels WHERE hash = ? AND reader = ?",
        ),
    ):
        for known in theirs.execute(query, (picture,)):
            if found := connection.execute(find, known).fetchone():
                return int(found[0])
    new = connection.execute("INSERT INTO pictures DEFAULT VALUES").lastrowid
    assert new is not None
    return new


def copy_acts(theirs: sqlite3.Connection, connection: sqlite3.Connection, pictures: Mapping[int, int]) -> None:
    """Copy acts that are not here yet, and their changes. A value of theirs stays only where ours is older."""
    known = dict(connection.execute("SELECT uuid, id FROM acts"))
    numbers = {0: 0}
    for act, uuid, *row, undoes in theirs.execute("SELECT id, uuid, time, who, what, undoes FROM acts ORDER BY id"):
        undone = numbers.get(undoes or 0) or None
        numbers[act] = known.get(uuid) or insert_act(connection, uuid, *row, undone)
    changes = "SELECT act, picture, name, key, old, old_act, new, new_act FROM changes"
    for act, picture, name, key, old, old_act, new, new_act in theirs.execute(changes):
        row = (numbers[act], pictures[picture], name, key, old, numbers[old_act], new, numbers[new_act])
        connection.execute("INSERT OR IGNORE INTO changes VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    for picture, name, value, act, changed_by in theirs.execute("SELECT * FROM corrections"):
        take(connection, (pictures[picture], name), (value, numbers[act], numbers[changed_by]))


def take(connection: sqlite3.Connection, cell: tuple[int, str], theirs: tuple[str | None, int, int]) -> None:
    """Let a value of theirs hold where it is later than ours; to undo the later one gives the other one back."""
    query = """SELECT value, act, changed_by, (SELECT time FROM acts WHERE id = changed_by),
      (SELECT time FROM acts WHERE id = ?) FROM corrections WHERE picture = ? AND name = ?"""
    *ours, then, now = connection.execute(query, (theirs[2], *cell)).fetchone() or (None, 0, 0, "", "~")
    later, earlier = (theirs, tuple(ours)) if now > then else (tuple(ours), theirs)
    if later[2] != earlier[2]:
        undone = "UPDATE changes SET old = ?, old_act = ? WHERE act = ? AND picture = ? AND name = ? AND old_act = 0"
        connection.execute(undone, (*earlier[:2], later[2], *cell))
    connection.execute("INSERT OR REPLACE INTO corrections VALUES (?, ?, ?, ?, ?)", (*cell, *later))
