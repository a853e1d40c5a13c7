"""`--shard K/N`: the images whose keys' hashes fall to one of N runs, which share no CSV and no process."""

import argparse
import re
from collections.abc import Container, Iterator
from operator import length_hint
from pathlib import Path
from typing import NamedTuple

from vec_pipeline.record import Record, Source
from vec_pipeline.sources import UNKNOWN, is_counted, resume


class Shard(NamedTuple):
    """Which of how many; the first is number 0."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def holds(self, key: str) -> bool:
        from vec_pipeline.key_set import hash_of  # numpy, which `--help` does not wait for

        return hash_of(key) % self.of == self.number


def shard_type(text: str) -> Shard:
    """A value of --shard. Raises ArgumentTypeError."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found or not int(found[1]) < int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no shard: write 0/8 for the first of eight, 7/8 for the last")
    return Shard(int(found[1]), int(found[2]))


def output_of(output: Path, shard: Shard | None) -> Path:
    """The CSV of a shard where --output names none: annotations-0-of-8.csv for annotations.csv."""
    if not shard:
        return output
    return output.with_name(f"{output.name.removesuffix('.csv')}-{shard.number}-of-{shard.of}.csv")


def part_of(source: Source, shard: Shard | None) -> Source:
    """What of a source falls to a shard; all of it without one."""
    return Part(source, shard) if shard else source  # type: ignore[return-value]


class Part:
    """The records of a source that fall to a shard; a record falls to the same one whatever else the source holds."""

    def __init__(self, source: Source, shard: Shard) -> None:
        self._source, self._shard = source, shard
        self.columns = source.columns
        self.is_stream = source.is_stream
        self.is_counted = is_counted(source)
        self.has_priority = getattr(source, "has_priority", False)

    def __iter__(self) -> Iterator[Record]:
        return (record for record in self._source if self._shard.holds(record.key))

    def __length_hint__(self) -> int:
        hint = length_hint(self._source, UNKNOWN)
        return NotImplemented if hint == UNKNOWN else hint // self._shard.of

    def resume(self, done: Container[str]) -> None:
        resume(self._source, NotToDo(done, self._shard))

    @property
    def notes(self) -> list[str]:
        return self._source.notes

    @property
    def failures(self) -> list[str]:
        return self._source.failures


class NotToDo:
    """Keys that need no work here: those that are done, and those of other shards."""

    def __init__(self, done: Container[str], shard: Shard) -> None:
        self._done, self._shard = done, shard

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and (not self._shard.holds(key) or key in self._done)
