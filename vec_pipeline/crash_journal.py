"""Which images are in flight; and, of those that were when an earlier process died, which one kills it."""

import contextlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from vec_pipeline.database import Database
from vec_pipeline.record import Record

SCHEMA = """
CREATE TABLE IF NOT EXISTS in_flight (  -- live: images in flight with it; over 0 at the start: the process died
    image_path TEXT PRIMARY KEY, stage TEXT, live INTEGER, deaths INTEGER, together INTEGER  -- live at the last death
) WITHOUT ROWID;
"""
COUNT_DEATH = "UPDATE in_flight SET deaths = deaths + {}, together = live, live = 0 WHERE live"
SELECT = "SELECT image_path, stage, deaths, together FROM in_flight"
MARK = "INSERT OR REPLACE INTO in_flight VALUES (?, ?, ?, ?, ?)"
FATAL_DEATHS = 2  # of an image that was alone at the last one
FEW_SUSPECTS = 32  # of more, so many are tried at once: batches hold up to a thousand, and most kills are chance


class Suspicion(NamedTuple):
    """What is held against an image: the stage in which it was in flight, at how many deaths, with how many others."""

    stage: str
    deaths: int
    together: int


class CrashJournal:
    """Marks images that are being worked on. An image whose mark outlives its process is a suspect.

    Suspects come last. Nothing else is in flight with them: few go one by one, many a few at a time. One that is alone
    in flight at another death gets an error row.

    path: the file; None to keep nothing.
    database: of a process that this one works for, in place of a file: that process tells whom to suspect.
    deaths: of suspects, by image.
    """

    def __init__(self, path: Path | None, database: Database | None = None) -> None:
        self.database = database or Database(path, SCHEMA)
        self._changed = threading.Condition()
        self._batches, self._are_suspects = 0, False  # in flight
        self.deaths: dict[str, int] = {}
        self._stages: dict[str, str] = {}
        self._together: dict[str, int] = {}
        if database is None:
            self.database.write((COUNT_DEATH.format(1), [()]))
            self.learn({path: Suspicion(*rest) for path, *rest in self.database.read(SELECT)})

    def fatal_stage(self, image_path: str) -> str:
        """The stage in which an image was in flight at two deaths or more, the last time alone; else empty."""
        is_fatal = self.deaths.get(image_path, 0) >= FATAL_DEATHS and self._together[image_path] == 1
        return self._stages[image_path] if is_fatal else ""

    def learn(self, suspicions: Mapping[str, Suspicion]) -> None:
        """Take it into account that these images are suspects."""
        for path, (stage, deaths, together) in suspicions.items():
            self._stages[path], self.deaths[path], self._together[path] = stage, deaths, together

    def suspicions(self, image_paths: Iterable[str]) -> dict[str, Suspicion]:
        """What there is to `learn` of these images."""
        return {
            path: Suspicion(self._stages[path], self.deaths[path], self._together[path])
            for path in image_paths
            if path in self.deaths
        }

    def note_death(self, image_paths: Sequence[str], *, of_machine: bool = False) -> set[str]:
        """A process that had these images has died: suspect those that were in flight, and return them.

        of_machine: with the machine that it was on, which other causes have too: that counts against an image that was
        alone; others are tried alone next.
        """
        names = [(path,) for path in image_paths]
        deaths = "(live = 1)" if of_machine else 1
        self.database.write((f"{COUNT_DEATH.format(deaths)} AND image_path = ?", names))
        found = {path: Suspicion(*rest) for path, *rest in self.database.read(SELECT) if path in {*image_paths}}
        self.learn(found)
        return {*found}

    def suspects_last(self, records: Iterable[Record]) -> Iterator[Iterable[Record]]:
        """Yield what is not suspect, then the suspects that may go together, then those that go alone.

        A chunk must not hold records of two of these groups, or a killer would keep others from being saved.
        """
        held_back: list[Record] = []
        yield self._without_suspects(records, held_back)
        for limit in (FEW_SUSPECTS, 1):
            yield [record for record in held_back if self._limit(record.key, 0) == limit]

    def _without_suspects(self, records: Iterable[Record], held_back: list[Record]) -> Iterator[Record]:
        for record in records:
            if record.key in self.deaths:
                held_back.append(record)
            else:
                yield record

    def fitting(self, records: Sequence[Record], most: int) -> list[Record]:
        """Return the first records that may be in flight together, `most` of them at most."""
        limit = self._limit(records[0].key, most)
        return list(takewhile(lambda each: self._limit(each.key, most) == limit, records[: min(limit, most)]))

    def _limit(self, image_path: str, of_others: int) -> int:
        together = self._together.get(image_path)
        return of_others if together is None else FEW_SUSPECTS if together > FEW_SUSPECTS else 1

    @contextlib.contextmanager
    def in_flight(self, image_paths: Sequence[str], stage: str) -> Iterator[None]:
        """Mark images as being worked on: the mark outlives the block only if the process dies inside.

        Suspects wait until nothing else is in flight, and everything else waits for them.
        """
        are_suspects = any(path in self.deaths for path in image_paths)
        with self._changed:
            self._changed.wait_for(lambda: not (self._are_suspects or (are_suspects and self._batches)))
            self._batches, self._are_suspects = self._batches + 1, are_suspects
        try:
            rows = [(path, stage, len(image_paths), *self._past(path)) for path in image_paths]
            self.database.write((MARK, rows))
            yield
        finally:
            suspects = [(path,) for path in image_paths if path in self.deaths]
            others = [(path,) for path in image_paths if path not in self.deaths]
            try:
                self.database.write(
                    ("UPDATE in_flight SET live = 0 WHERE image_path = ?", suspects),
                    ("DELETE FROM in_flight WHERE image_path = ?", others),
                )
            finally:
                with self._changed:
                    self._batches, self._are_suspects = self._batches - 1, False
                    self._changed.notify_all()

    def _past(self, image_path: str) -> tuple[int, int]:
        return self.deaths.get(image_path, 0), self._together.get(image_path, 0)

    def count_death(self, image_paths: Sequence[str], stage: str) -> None:
        """Suspect images as if they had killed the process: after a GPU error only a new process can continue."""
        rows = [(path, stage, 0, self._past(path)[0] + 1, len(image_paths)) for path in image_paths]
        self.database.write((MARK, rows))

    def clear(self, image_paths: Iterable[str]) -> None:
        """Suspect images no longer: those that went well, or that the user wants tried again."""
        cleared = [(path,) for path in image_paths if self.deaths.pop(path, None) is not None]
        for (path,) in cleared:
            self._together.pop(path, None)
        if cleared:
            self.database.write(("DELETE FROM in_flight WHERE image_path = ?", cleared))

    def close(self) -> None:
        """Close the file. What a thread left behind has in flight then was not killed, and leaves no mark."""
        self.database.close(("DELETE FROM in_flight WHERE deaths = 0", [()]), ("UPDATE in_flight SET live = 0", [()]))
