"""What people have corrected: a layer over a CSV, in an SQLite file beside it; with history, undo, and who it was."""

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

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
CREATE TABLE pixels (hash BLOB PRIMARY KEY, reader TEXT NOT NULL, picture INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE acts (id INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL,
  undoes INTEGER);
CREATE INDEX acts_that_undo ON acts (undoes);
-- A value is NULL where it is the machine's; its act is the one that made it, 0 for the machine.
CREATE TABLE changes (act INTEGER NOT NULL, picture INTEGER NOT NULL, name TEXT NOT NULL, key TEXT NOT NULL, old TEXT,
  old_act INTEGER NOT NULL, new TEXT, new_act INTEGER NOT NULL, PRIMARY KEY (act, picture, name)) WITHOUT ROWID;
CREATE INDEX changes_of_picture ON changes (picture);
CREATE TABLE corrections (picture INTEGER, name TEXT, value TEXT, act INTEGER NOT NULL, PRIMARY KEY (picture, name))
  WITHOUT ROWID;  -- as it is now
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


def corrections_path(csv_path: Path) -> Path:
    """Beside the CSV itself where the path is a link."""
    return beside(csv_path.resolve(), "corrections.sqlite")


def current_of(csv_path: Path) -> Current:
    """A snapshot for readers, who need no lock. Raises UserError where the file cannot be read."""
    path = corrections_path(csv_path)
    if not path.exists():
        return Current()
    with failures_named(path), closing(connect(path)) as connection:
        return snapshot(connection)


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
    except ValueError:
        raise UserError(f"{column}: {(value or '')[:40]!r} is not {'JSON' if kind == 'json' else 'a number'}") from None


def typed(kind: str, cell: str) -> Any:
    """A cell of the layer as a stage would write it, None for an empty number or JSON. Raises ValueError."""
    if kind not in ("json", "number"):
        return cell
    if not cell:
        return None
    return json.loads(cell) if kind == "json" else float(cell)


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
        return self._act(changes, what, who, 0)

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
            query = "SELECT key, name, old, new_act, old_act FROM changes WHERE act = ?"
            rows = connection.execute(query, (act,)).fetchall()
        changes = [Change(*row[:4]) for row in rows]
        return self._act(changes, f"undo: {found[0]}", who, act, [row[4] for row in rows])

    def acts(self, most: int = 100, before: int | None = None) -> list[Act]:
        """The last acts, the newest first; those before one of them where `before` names it."""
        query = """SELECT id, time, who, what, (SELECT count(*) FROM changes WHERE act = id), coalesce(undoes, 0),
          coalesce((SELECT id FROM acts AS later WHERE later.undoes = acts.id), 0)
          FROM acts WHERE id < ? ORDER BY id DESC LIMIT ?"""
        return [Act(*row) for row in self._read(query, (before or 1 << 62, most))]

    def history(self, key: str) -> list[Entry]:
        """What was done to a picture, the newest first."""
        query = """SELECT act, time, who, what, name, old, new FROM changes JOIN acts ON acts.id = act
          WHERE picture = (SELECT picture FROM places WHERE key = ?) ORDER BY act DESC"""
        return [Entry(*row) for row in self._read(query, (key,))]

    def current(self) -> Current:
        with failures_named(self.path):
            return snapshot(self._connection) if self.path.exists() else Current()

    def changed_since(self, act: int) -> dict[str, dict[str, Correction]]:
        """The corrections, as they are now, of pictures that later acts have changed, by key and column."""
        query = """SELECT key, name, value, corrections.act, what, who, time FROM places
          LEFT JOIN corrections USING (picture) LEFT JOIN acts ON acts.id = corrections.act
          WHERE picture IN (SELECT picture FROM changes WHERE act > ?)"""
        found: dict[str, dict[str, Correction]] = {}
        for key, name, *rest in self._read(query, (act,)):
            of_key = found.setdefault(key, {})
            if name is not None:
                of_key[name] = Correction(*rest)
        return found

    def note_pixels(self, hashes: Mapping[str, bytes], reader: str) -> int:
        """Keep what pictures look like, and find corrected ones again that have moved; return how many of these.

        hashes: of the pixels, by image_path, of as many pictures as the caller likes.
        reader: what decides the pixels beside the picture: the settings of the stage that opens it.

        A picture whose pixels are others than they were has no corrections any more.
        """
        if not self.path.exists():
            return 0
        found = 0
        with self._transaction() as connection:
            for key, digest in hashes.items():
                found += link(connection, key, digest, reader)
        return found

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

    def confirm(self, keys: Iterable[str]) -> None:
        """The rows of these keys are made with the values of now."""
        if not self.path.exists():
            return
        now = f"""INSERT INTO applied SELECT key, name, value FROM corrections JOIN places USING (picture)
          WHERE value IS NOT NULL AND name != '{VERIFIED}' AND key = ?"""
        with self._transaction() as connection:
            for key in keys:
                connection.execute("DELETE FROM applied WHERE key = ?", (key,))
                connection.execute(now, (key,))

    def take_over(self, csv_path: Path) -> None:
        """Add what people have done to another CSV; where both have a value, the later one stays."""
        other = corrections_path(csv_path)
        if not other.exists() or other == self.path:
            return
        with failures_named(other), closing(connect(other)) as theirs, self._transaction() as connection:
            pictures: dict[int, int] = {}
            for key, picture in theirs.execute("SELECT key, picture FROM places"):
                pictures[picture] = pictures.get(picture) or picture_of(connection, key)
                connection.execute("INSERT OR IGNORE INTO places VALUES (?, ?)", (key, pictures[picture]))
            for digest, reader, picture in theirs.execute("SELECT hash, reader, picture FROM pixels"):
                if picture in pictures:
                    row = (digest, reader, pictures[picture])
                    connection.execute("INSERT OR IGNORE INTO pixels VALUES (?, ?, ?)", row)
            copy_acts(theirs, connection, pictures)
            connection.executemany(
                "INSERT OR IGNORE INTO applied VALUES (?, ?, ?)", theirs.execute("SELECT * FROM applied")
            )

    def close(self) -> None:
        if self._opened:
            self._opened.close()
            self._opened = None

    def _act(self, changes: Sequence[Change], what: str, who: str, undoes: int = 0, makers: Sequence[int] = ()) -> int:
        """Make changes as one act.

        makers: the acts that made the values, where that is not this one.
        """
        now = datetime.now().isoformat(timespec="seconds")
        with self._transaction() as connection:
            if clashes := list(clashes_of(connection, changes)):
                raise Conflict(clashes)
            row = (now, who, what, undoes or None)
            act = connection.execute("INSERT INTO acts (time, who, what, undoes) VALUES (?, ?, ?, ?)", row).lastrowid
            assert act is not None
            for number, change in enumerate(changes):
                make(connection, act, change, makers[number] if makers else act)
        return act

    def _read(self, query: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        if not self.path.exists():
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
        if makes and not connection.execute("SELECT name FROM sqlite_master").fetchone():
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


def link(connection: sqlite3.Connection, key: str, digest: bytes, reader: str) -> bool:
    """Note the pixels of a key; return whether it now has the corrections of a picture that was elsewhere."""
    place = connection.execute("SELECT picture FROM places WHERE key = ?", (key,)).fetchone()
    same = connection.execute("SELECT picture FROM pixels WHERE hash = ?", (digest,)).fetchone()
    if place:
        known = connection.execute("SELECT hash FROM pixels WHERE picture = ? AND reader = ?", (place[0], reader))
        hashes = {row[0] for row in known}
        if not hashes and not same:
            connection.execute("INSERT INTO pixels VALUES (?, ?, ?)", (digest, reader, place[0]))
        if not hashes or digest in hashes:
            return False
        connection.execute("DELETE FROM places WHERE key = ?", (key,))  # another picture is there now
    if same:
        connection.execute("INSERT INTO places VALUES (?, ?)", (key, same[0]))
    return same is not None


def clashes_of(connection: sqlite3.Connection, changes: Iterable[Change]) -> Iterator[Clash]:
    """Those of some changes that would overwrite what their editors have not seen."""
    query = f"{NOW} WHERE key = ? AND name = ?"
    for change in changes:
        if change.seen is not None:
            found = connection.execute(query, (change.key, change.column)).fetchone()
            if (found[3] if found else 0) != change.seen:
                now = Correction(*found[2:]) if found else Correction(None, 0, "", "", "")
                yield Clash(change.key, change.column, now)


def make(connection: sqlite3.Connection, act: int, change: Change, maker: int) -> None:
    """Give a value to a picture; `maker` is the act that it is from, 0 for the machine."""
    picture = picture_of(connection, change.key)
    query = "SELECT value, act FROM corrections WHERE picture = ? AND name = ?"
    old, old_act = connection.execute(query, (picture, change.column)).fetchone() or (None, 0)
    row = (act, picture, change.column, change.key, old, old_act, change.value, maker)
    again = "ON CONFLICT DO UPDATE SET new = excluded.new"  # two keys of one picture
    connection.execute(f"INSERT INTO changes VALUES (?, ?, ?, ?, ?, ?, ?, ?) {again}", row)
    row_now = (picture, change.column, change.value, maker)
    connection.execute("INSERT OR REPLACE INTO corrections VALUES (?, ?, ?, ?)", row_now)
    connection.execute("DELETE FROM corrections WHERE act = 0 AND picture = ?", (picture,))


def copy_acts(theirs: sqlite3.Connection, connection: sqlite3.Connection, pictures: Mapping[int, int]) -> None:
    """Copy acts and their changes. A value of theirs stays only where ours is older."""
    numbers = {0: 0}
    for act, time, who, what, undoes in theirs.execute("SELECT id, time, who, what, undoes FROM acts ORDER BY id"):
        row = (time, who, what, numbers.get(undoes or 0) or None)
        number = connection.execute("INSERT INTO acts (time, who, what, undoes) VALUES (?, ?, ?, ?)", row).lastrowid
        assert number is not None
        numbers[act] = number
    changes = "SELECT act, picture, name, key, old, old_act, new, new_act FROM changes"
    for act, picture, name, key, old, old_act, new, new_act in theirs.execute(changes):
        values = (old, numbers[old_act], new, numbers[new_act])
        row_of_change = (numbers[act], pictures[picture], name, key, *values)
        connection.execute("INSERT OR IGNORE INTO changes VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row_of_change)
    newer = """INSERT INTO corrections VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE SET value = ?3, act = ?4
      WHERE (SELECT time FROM acts WHERE id = act) < (SELECT time FROM acts WHERE id = ?4)"""
    for picture, name, value, act in theirs.execute("SELECT picture, name, value, act FROM corrections"):
        connection.execute(newer, (pictures[picture], name, value, numbers[act]))
