"""Successive runs of the executor over one result cache and one crash journal, as of one CSV."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import PROJECT
from tests.fakes import ListSink, ListSource, Read
from vec_pipeline import pipeline
from vec_pipeline.crash_journal import CrashJournal
from vec_pipeline.executor import Executor
from vec_pipeline.memory import ModelCache
from vec_pipeline.record import Record, Stage
from vec_pipeline.result_cache import ResultCache

PROGRAM = """
import os, pathlib, sys
from vec_pipeline.crash_journal import CrashJournal
with CrashJournal(pathlib.Path(sys.argv[1])).in_flight(sys.argv[2:], 'describe'):
    os._exit(137)
"""


class Runs:
    """Makes an executor for each run, and closes what they have opened."""

    def __init__(self, folder: Path) -> None:
        self.cache_path = folder / "annotations.cache.sqlite"
        self.journal_path = folder / "annotations.journal.sqlite"
        self._executors: list[Executor] = []

    def __call__(
        self,
        *stages: Stage,
        reader: Stage | None = None,
        capacity: int = 5,
        fingerprint: Callable[[Stage], str] = lambda stage: stage.name,
        **options: Any,
    ) -> Executor:
        """An executor of stages behind one that reads. Stages of one fingerprint are the same to the result cache."""
        stages = (reader or Read(), *stages)
        results = ResultCache(self.cache_path, fingerprint)
        models, journal = ModelCache(stages, capacity, 0.0), CrashJournal(self.journal_path)
        self._executors.append(Executor(stages, models, results, journal, threads=2, **options))
        return self._executors[-1]

    def die_in_flight(self, *images: str) -> None:
        """A process is killed while it works on a batch of these images."""
        program = [sys.executable, "-c", PROGRAM, str(self.journal_path), *images]
        assert subprocess.run(program, cwd=PROJECT).returncode == 137

    def close(self) -> None:
        for executor in self._executors:
            executor.results.close()
            executor.journal.close()


def annotate(executor: Executor, *chunks: list[Record]) -> list[Record]:
    """Run the chunks through, and return their records in one list."""
    return [record for chunk in executor(chunks) for record in chunk]


def loop(executor: Executor, names: str | list[str], chunk_size: int) -> ListSink:
    """Run all images through the loop, suspects last."""
    sink, journal = ListSink(), executor.journal
    source = ListSource(names)
    pipeline.run(source, executor, sink.done, sink.write, lambda: chunk_size, in_groups=journal.suspects_last)
    return sink
