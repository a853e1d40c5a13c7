"""Makes the parts of a run, runs the loop over what there is to do, and takes the parts down again however it ends."""

import argparse
import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from vec_pipeline import device, pipeline, ray_actors
from vec_pipeline.child import Work
from vec_pipeline.children import Children
from vec_pipeline.chunk_size import CHUNKS_AT_WORK, ChunkSize, chunk_size
from vec_pipeline.commands.run.corrected import Corrected
from vec_pipeline.commands.run.messages import start_log, stderr_in
from vec_pipeline.commands.run.order import ordered
from vec_pipeline.commands.run.todo import Todo
from vec_pipeline.commands.run.watch import Watcher
from vec_pipeline.config import Config
from vec_pipeline.crash_journal import CrashJournal
from vec_pipeline.downloads import Downloads
from vec_pipeline.executor import Executor
from vec_pipeline.memory import ModelCache
from vec_pipeline.progress import Progress
from vec_pipeline.record import Record, Source, SourceOptions, Stage, UserError, beside
from vec_pipeline.result_cache import ResultCache
from vec_pipeline.settings import fingerprint
from vec_pipeline.sinks.csv_file import CsvFile
from vec_pipeline.sources import resume
from vec_pipeline.terminal import Interrupt
from vec_pipeline.uploads import Mirror

INTERRUPTED_MIRROR_S = 10.0  # for the last copy of a CSV whose run was interrupted

logger = logging.getLogger("vec_pipeline")


@dataclass(frozen=True)
class Job:
    """What is to be done, planned by `commands.run`.

    stages: those of `config` with their weights at hand.
    devices: that have a process each; none where this process does the work.
    """

    config: Config
    stages: Sequence[Stage]
    devices: Sequence[str]
    source: Source
    source_options: SourceOptions
    todo: Todo
    sink: CsvFile
    results: ResultCache
    corrected: Corrected
    options: argparse.Namespace
    interrupt: Interrupt
    mirror: Mirror | None = None
    watcher: Watcher | None = None

    def records(self) -> Iterable[Record]:
        """What there is to go through, in the order that was asked for."""
        done, options = self.sink.keys(), self.options
        resume(self.source, done)
        order = options.order or ("priority" if getattr(self.source, "has_priority", False) else "")
        if not order and not options.first:
            return self.corrected.given(self.todo.records)
        left = (record for record in self.todo.records if record.key not in done)
        return self.corrected.given(ordered(left, order, options.first))


def work(job: Job) -> None:
    config, options, sink = job.config, job.options, job.sink
    start_log(beside(config.output, "log"), config.log_level)
    logger.info("run: %s", config)
    with contextlib.ExitStack() as stack:
        terminal = stack.enter_context(stderr_in(beside(config.output, "log")))
        journal = stack.enter_context(contextlib.closing(CrashJournal(beside(config.output, "journal.sqlite"))))
        if options.retry_errors:
            journal.clear(list(journal.deaths))
        size = chunk_size(job.stages, config.chunk_size)
        total = None if job.watcher else job.todo.number
        cluster = None
        if options.engine == "ray":
            cluster = stack.enter_context(ray_actors.connected(options.address, config.devices))
        names = cluster.names if cluster else job.devices
        size = smaller(size, total, len(names))
        executor: Executor | Children
        if names:
            executor = in_children(job, journal, size, names, cluster)
            stack.callback(executor.close)
        else:
            executor = in_this_process(job, journal, size, total, stack)
        downloads = stack.enter_context(
            contextlib.closing(Downloads(job.source_options, beside(config.output, "downloads")))
        )
        progress = Progress(total, executor, terminal, downloads.statistics, about=job.todo.about)
        stack.callback(summarise, progress)  # after the bar is closed, however the run ends
        stack.enter_context(contextlib.closing(progress))

        def save(records: Sequence[Record]) -> None:
            with job.interrupt.shield():
                job.results.note_pictures(records)
                if not sink.replaces_rows:  # a kill may leave a picture known without a row, never a row without it
                    job.results.confirm_pictures()
                sink.write(records)
                progress.count(records)
                job.corrected.note(records)
                if not sink.replaces_rows:
                    job.corrected.confirm()
            if job.mirror:
                job.mirror.note_checkpoint()

        def at_once() -> int:
            """Images of the next chunk: where a download is waited for, the models take what is there by then."""
            wanted = size.next(executor)
            takes_what_is_there = downloads.is_active and executor.models.holds_all
            return min(wanted, 1 + downloads.ready()) if takes_what_is_there else wanted

        records, done = job.records(), sink.keys()
        pipeline.run(records, executor, done, save, at_once, options.limit, downloads.ahead, journal.suspects_last)
        if watcher := job.watcher:
            limit = None if options.limit is None else options.limit - progress.done
            with watching(watcher, job.interrupt):
                pipeline.run(watcher, executor, done, save, lambda: min(size.first, 1 + watcher.ready()), limit)


def in_this_process(
    job: Job, journal: CrashJournal, size: ChunkSize, total: int | None, stack: contextlib.ExitStack
) -> Executor:
    config = job.config
    models = ModelCache(job.stages, config.model_cache_size, config.clear_threshold_gb, size.images_gb)
    stack.callback(models.close)
    logger.info("%s; chunks of %d images", models.summary, size.first)
    columns, most = job.todo.source_columns, config.max_consecutive_errors
    executor = Executor(job.stages, models, job.results, journal, config.read_threads, columns, most)
    if executor.has_two_at_work and (total is None or total > size.first):
        device.leave_half_the_cores()
    return executor


def in_children(
    job: Job, journal: CrashJournal, size: ChunkSize, names: Sequence[str], cluster: ray_actors.Cluster | None
) -> Children:
    config = job.config
    begin = partial(start_log, beside(config.output, "log"), config.log_level)
    if cluster:
        begin = partial(ray_actors.prepare, tuple(job.stages), shared_paths(job))
    child = Work(
        tuple(job.stages), config.model_cache_size, config.clear_threshold_gb, size.images_gb, config.read_threads,
        job.todo.source_columns, config.max_consecutive_errors, device.cores_each(len(names)), fingerprint, begin,
    )  # fmt: skip
    logger.info("a process each for %s; chunks of %d images", ", ".join(names), size.first)
    if cluster:
        return ray_actors.Actors(cluster, child, job.results, journal)
    device.show_all_gpus()  # to the children: the checks have chosen one for this process
    return Children(names, child, job.results, journal)


def shared_paths(job: Job) -> list[Path]:
    """What each machine of a cluster must have: something of each local source, and the CSV where files lie beside."""
    found = [Path(text).resolve() for text in job.options.source if Path(text).exists()]
    found = [next(path.iterdir(), path) if path.is_dir() else path for path in found]
    has_files = job.config.store_path or any("file" in stage.columns.values() for stage in job.stages)
    return [*found, *([job.config.output.resolve()] if has_files else [])]


def devices_of(config: Config, options: argparse.Namespace) -> list[str]:
    """The devices here that have a process each; none where this process or a cluster does the work. Raises UserError.

    What is wrong with the options of a cluster is found, too.
    """
    if options.engine == "ray":
        ray_actors.check(options.address, config.devices)
        return []
    if options.address:
        raise UserError("--address is that of a Ray cluster: add --engine ray")
    try:
        return device.names(config.devices) if config.devices else []
    except ValueError as error:
        raise UserError(f"devices: {error}") from None


def smaller(size: ChunkSize, total: int | None, processes: int) -> ChunkSize:
    """Chunks of which each of several processes gets its share, where there are few images."""
    if not processes or total is None:
        return size
    most = max(1, total // (CHUNKS_AT_WORK * processes))
    return replace(size, first=min(size.first, most), largest=min(size.largest, most))


@contextlib.contextmanager
def mirrored(csv_path: Path, address: str) -> Iterator[Mirror | None]:
    """What copies a CSV to an address, if one is given. A failure is said at the end, and fails nothing."""
    if not address:
        yield None
        return
    mirror = Mirror(csv_path, address)
    wait_s: float | None = INTERRUPTED_MIRROR_S
    try:
        yield mirror
        wait_s = None
    finally:
        mirror.close(wait_s)
        print(*mirror.failures, sep="\n", end="\n" if mirror.failures else "")


@contextlib.contextmanager
def watching(watcher: Watcher, interrupt: Interrupt) -> Iterator[None]:
    """A block that a signal ends: that is how a watch ends, and no interruption."""
    print("watching for new files: Ctrl-C or SIGTERM ends it", flush=True)
    try:
        yield
    except KeyboardInterrupt:
        interrupt.accept()
        print("\nwatching has ended", flush=True)
    finally:
        watcher.stop()
        print(*watcher.notes, sep="\n", end="\n" if watcher.notes else "")


def summarise(progress: Progress) -> None:
    summary = progress.summary()
    print(summary)
    logger.info("%s", summary)
