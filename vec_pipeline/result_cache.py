"""Finished results of stages, by the stage's settings and by the values that it read. Deleting them costs time."""

import json
import logging
import os
import sqlite3
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import closing
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vec_pipeline.database import VERSION, Database
from vec_pipeline.record import Record, Stage, Values

SCHEMA = """  -- paths and identities are hashes
CREATE TABLE IF NOT EXISTS results (key BLOB PRIMARY KEY, result BLOB);  -- JSON, then the bytes of arrays and images
CREATE TABLE IF NOT EXISTS pictures (image_path BLOB PRIMARY KEY, identity BLOB) WITHOUT ROWID;  -- of saved rows
CREATE TEMPORARY TABLE IF NOT EXISTS unsaved (image_path BLOB PRIMARY KEY, identity BLOB) WITHOUT ROWID;
"""
QUERY_KEYS = 256  # asked for at once
HASH_BYTES = 16

logger = logging.getLogger(__name__)


class ResultCache:
    """Results by key, and the identity that each picture's content had when its row was made.

    path: the file; None to keep nothing.
    fingerprint: returns what decides a stage's results beside what it reads.
    database: of a process that this one works for, in place of a file.
    """

    def __init__(
        self, path: Path | None, fingerprint: Callable[[Stage], str], database: Database | None = None
    ) -> None:
        self.database = database or Database(path, SCHEMA)
        self._begun = cache(lambda stage: blake2b(fingerprint(stage).encode(), digest_size=HASH_BYTES))

    def key(self, stage: Stage, record: Record) -> bytes:
        """What identifies the stage's result: its settings, and the values that it reads of this record.

        Content of which no identity can be had is the same as no other.
        """
        digest = self._begun(stage).copy()
        for own in (*stage.reads, *stage.optional):
            if (name := stage.read.get(own, own)) in record.values:
                digest.update(own.encode() + b"\0" + (hash_in(record, name) or os.urandom(HASH_BYTES)))
        return digest.digest()

    def find(self, keys: Iterable[bytes]) -> dict[bytes, Values]:
        """Return the results there are."""
        query = "SELECT key, result FROM results WHERE key IN"
        return {key: decode(result) for key, result in self._select(query, list(keys))}

    def store(self, results: Mapping[bytes, Values]) -> None:
        """Keep a batch of results, in one transaction."""
        rows = [(key, encode(values)) for key, values in results.items()]
        self.database.write(("INSERT OR REPLACE INTO results VALUES (?, ?)", rows))

    def note_pictures(self, records: Iterable[Record]) -> None:
        """Keep the identities of pictures whose rows are about to be saved, until `confirm_pictures`."""
        rows = [(hash_of(record.key), record.hashes["content"]) for record in records if record.hashes.get("content")]
        self.database.write(("INSERT OR REPLACE INTO unsaved VALUES (?, ?)", rows))

    def confirm_pictures(self) -> None:
        """The rows of all noted pictures are saved."""
        move = "INSERT OR REPLACE INTO pictures SELECT * FROM unsaved"
        self.database.write((move, [()]), ("DELETE FROM unsaved", [()]))

    def changed_pictures(self, records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
        """Those whose content is not what it was when their row was made, and those of which that is not known."""
        hashes = {hash_of(record.key): record for record in records}
        known = dict(self._select("SELECT image_path, identity FROM pictures WHERE image_path IN", list(hashes)))
        changed = [record for name, record in hashes.items() if name in known and has_changed(record, known[name])]
        return changed, [record for name, record in hashes.items() if name not in known]

    def take_over(self, path: Path, without: Container[bytes] = ()) -> None:
        """Add what another cache holds, as far as it can be read.

        without: hashes of keys, of which it knows another picture than the one that a row was made of.
        """
        if not path.exists():
            return
        try:
            with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as other:
                if other.execute("PRAGMA user_version").fetchone() != (VERSION,):
                    return
                for table in ("results", "pictures"):
                    rows = other.execute(f"SELECT * FROM {table}")
                    while some := rows.fetchmany(QUERY_KEYS):
                        kept = [row for row in some if row[0] not in without]
                        self.database.write((f"INSERT OR IGNORE INTO {table} VALUES (?, ?)", kept))
        except sqlite3.Error as error:
            logger.warning("%s cannot be read (%s): its results will be computed again", path, error)

    def close(self) -> None:
        self.database.close()

    def _select(self, query: str, keys: Sequence[bytes]) -> Iterable[tuple[Any, ...]]:
        for start in range(0, len(keys), QUERY_KEYS):
            some = keys[start : start + QUERY_KEYS]
            yield from self.database.read(f"{query} ({','.join('?' * len(some))})", tuple(some))


def has_changed(record: Record, before: bytes) -> bool:
    """Whether a record's content is another than it was; where nobody can tell without fetching it, it is not."""
    try:
        return hash_of([record.key, record.values["content"].identity()]) != before
    except FileNotFoundError:
        return True
    except Exception:  # of any place that content comes from
        return False


def identity_of(record: Record, name: str = "content") -> bytes:
    """Hash what a record's content is and where: two files may have one size and time. Empty where it cannot be had."""
    try:
        return hash_of([record.key, record.values[name].identity()])
    except Exception:  # of any place that content comes from: reading it will say so
        return b""


def hash_in(record: Record, name: str) -> bytes:
    """Hash a value of a record, once. A path stands for what is there, not for its letters alone."""
    if name not in record.hashes:
        if name in ("content", "image_path"):
            record.hashes[name] = identity_of(record)
        else:
            is_content = hasattr(record.values[name], "identity")
            record.hashes[name] = identity_of(record, name) if is_content else hash_of(record.values[name])
    return record.hashes[name]


def hash_of(value: Any) -> bytes:
    """Identify an image by its pixels, an array by its type, shape and bytes, all else by its JSON."""
    if isinstance(value, Image.Image):
        kind, content = f"{value.mode} {value.size}", value.tobytes()
    elif isinstance(value, np.ndarray):
        kind, content = f"{value.dtype.str} {value.shape}", value.tobytes()
    else:
        kind, content = "", json.dumps(value, sort_keys=True).encode()
    return blake2b(kind.encode() + b"\0" + content, digest_size=HASH_BYTES).digest()


def encode(values: Values) -> bytes:
    """Put a result into bytes that `decode` makes the same values of: types and shapes of arrays, modes of images."""
    plain, binary, parts = {}, {}, []
    for name, value in values.items():
        if isinstance(value, Image.Image):
            binary[name] = [value.mode, value.size]
            parts.append(value.tobytes())
        elif isinstance(value, np.ndarray):
            binary[name] = [value.dtype.str, value.shape]
            parts.append(value.tobytes())
        else:
            plain[name] = value
    head = [plain, {name: [*how, len(part)] for (name, how), part in zip(binary.items(), parts, strict=True)}]
    return b"\n".join([json.dumps(head).encode(), b"".join(parts)])


def decode(result: bytes) -> Values:
    head, _, content = result.partition(b"\n")
    values, binary = json.loads(head)
    offset = 0
    for name, (kind, shape, size) in binary.items():
        part, offset = content[offset : offset + size], offset + size
        if kind[0] in "<>|=":  # how numpy's names of types begin; no mode of Pillow does
            values[name] = np.frombuffer(part, kind).reshape(shape).copy()
        else:
            values[name] = Image.frombytes(kind, tuple(shape), part)
    return dict(values)
