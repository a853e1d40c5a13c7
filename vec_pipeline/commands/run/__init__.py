"""Annotate images: one CSV row per picture. Run the same command again to continue where it stopped."""

import argparse
import contextlib
import glob
import logging
import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vec_pipeline.commands import CONFIG_HELP, path
from vec_pipeline.commands.run.messages import start_log, stderr_in
from vec_pipeline.record import COLUMNS, Record, Source, Stage, UserError, beside
from vec_pipeline.terminal import INTERRUPTED, Interrupt, plural, visible

if TYPE_CHECKING:
    from vec_pipeline.commands.run.todo import Todo
    from vec_pipeline.config import Config
    from vec_pipeline.progress import Progress
    from vec_pipeline.result_cache import ResultCache
    from vec_pipeline.sinks.csv_file import CsvFile
    from vec_pipeline.sinks.csv_rows import Contents

ALL_FINE, SOME_ERRORS, UNUSABLE = 0, 1, 2

logger = logging.getLogger("vec_pipeline")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "exit status: 0 every image has a row without error; 1 some rows have an error, or a folder could not be "
        "listed; 2 unusable arguments, configuration, models or output file; 130 interrupted, finished rows are saved"
    )
    parser.add_argument("source", nargs="+", metavar="SOURCE", help="folders, walked recursively, or images")
    parser.add_argument("--config", type=path, default=Path("config.yaml"), metavar="FILE", help=CONFIG_HELP)
    parser.add_argument("--output", type=path, metavar="FILE", help="the CSV (default: the configuration's `output`)")
    parser.add_argument("--limit", type=integer, metavar="N", help="annotate at most N images in this run")
    parser.add_argument("--retry-errors", action="store_true", help="annotate rows with an error again")
    parser.add_argument("--refresh", action="store_true", help="update rows of other settings or changed pictures")
    parser.add_argument("--prune", action="store_true", help="drop rows of pictures that no longer exist")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="set an option, e.g. describe.batch_size=4"
    )


def integer(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer")
    return int(text)


def run(options: argparse.Namespace) -> int:
    if options.refresh and (options.retry_errors or options.limit is not None):
        raise UserError("--refresh updates all rows: leave --limit and --retry-errors out")
    interrupt = Interrupt()
    try:
        return annotate(options, interrupt)
    except KeyboardInterrupt:
        print("\ninterrupted: what was finished is saved; run the same command again to continue", file=sys.stderr)
        return INTERRUPTED
    except UserError:
        raise
    except Exception as error:  # of the worker itself: what fails with an image is in its row
        logger.exception("the run ended early")
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{reason}: what was finished is saved, see the log beside the CSV") from None


def annotate(options: argparse.Namespace, interrupt: Interrupt) -> int:
    from vec_pipeline import checks, settings
    from vec_pipeline.config import check_wiring, load_config
    from vec_pipeline.result_cache import ResultCache
    from vec_pipeline.sinks.csv_file import CsvFile
    from vec_pipeline.sinks.csv_rows import contents_of
    from vec_pipeline.sources import open_source

    config = load_config(options.config, options.set)
    config = replace(config, output=options.output or config.output)
    source = open_source(options.source, config.sources, exclude=[*config.exclude, *own_files(config.output)])
    check_wiring(config.stages, source.columns)
    columns = config.extra_columns(source.columns)
    existing = contents_of(config.output, tuple(columns))
    plan = plan_refresh if options.refresh else plan_run
    stages, todo = plan(config, source, existing, columns, options)
    if options.prune:
        todo.prune(config.sources)
    if options.dry_run:
        found = checks.findings(config, source.columns, check_rows=not options.refresh)
        return ALL_FINE if checks.print_all(found) else UNUSABLE
    sink = CsvFile(
        config.output, columns, existing, retry_errors=options.retry_errors, refresh=options.refresh, drop=todo.gone
    )
    types = {name: {**COLUMNS, **columns}[name] for name in sink.header}
    with contextlib.ExitStack() as stack:
        results = ResultCache(cache_path(config) if todo.number != 0 else None, settings.fingerprint)
        stack.callback(results.close)
        stack.callback(close, sink, results, interrupt)
        if not options.refresh:
            if sink.rows:  # again: no other worker can change them now
                settings.check_settings(config.output, config.stages, sink.header)
            settings.write_settings(config.output, stages, config.stages, types, config.sources)
        if todo.number != 0:
            start_log(beside(config.output, "log"), config.log_level)
            logger.info("run: %s", config)
            work(config, stages, todo, sink, results, options, interrupt)
        if options.refresh:
            changed = sink.replace_rows()
            settings.write_settings(config.output, stages, config.stages, types, config.sources)
            results.confirm_pictures()
            print(f"{plural(changed, 'row')} changed, {sink.rows - changed:,} unchanged")
    return verdict(sink, source)


Plan = tuple[tuple[Stage, ...], "Todo"]


def plan_run(
    config: "Config", source: Source, existing: "Contents", columns: Collection[str], options: argparse.Namespace
) -> Plan:
    """The stages to run, hub models at the commits that the CSV was begun with, and the images that are left."""
    from vec_pipeline import settings
    from vec_pipeline.commands.run.todo import Todo

    if existing.rows:
        settings.check_settings(config.output, config.stages, existing.header)
    if existing.header and (missing := [name for name in columns if name not in existing.header]):
        print(f"{config.output} has no column {', '.join(missing)}: run with --refresh to add it")
    todo = Todo(source, existing, cache_path(config))
    todo.new(options.limit, options.retry_errors)
    recorded = settings.recorded_settings(config.output) if existing.rows else settings.Recorded()
    stages = settings.with_recorded_commits(config.stages_for(existing.header), recorded)
    return stages if options.dry_run or todo.number == 0 else fetched(stages), todo


def plan_refresh(
    config: "Config", source: Source, existing: "Contents", columns: Collection[str], options: argparse.Namespace
) -> Plan:
    """All stages, hub models at their newest commits, and the rows that are behind."""
    from vec_pipeline import settings
    from vec_pipeline.commands.run.todo import Todo

    stages = config.stages if options.dry_run else fetched(config.stages)
    todo = Todo(source, existing, cache_path(config))
    todo.refresh(settings.outdated(config.output, config.stages, stages, existing.header, columns))
    return stages, todo


def own_files(output: Path) -> list[str]:
    """Globs of the output and what lies beside it, which a folder of images may hold too."""
    output = output.parent.resolve() / output.name
    databases = [f"{name}.{ending}" for name in ("cache", "journal") for ending in ("sqlite*", "broken")]
    begin = glob.escape(str(beside(output, "")))
    return [glob.escape(str(output)), *(f"{begin}{end}" for end in ("log", "lock", "settings.yaml*", *databases))]


def cache_path(config: "Config") -> Path | None:
    return beside(config.output, "cache.sqlite") if config.result_cache else None


def fetched(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages with their weights on this machine, hub models at the commit that is there."""
    from vec_pipeline import checks, weights

    if problem := checks.unused_gpu(stages):
        print(f"models run on the CPU: {problem}", flush=True)
    checks.check_memory(stages)
    checks.check_download_space(stages)
    checks.check_memory(stages)  # with what the hub says of the sizes of models that nothing was known of
    for stage in stages:
        stage.fetch()
    return tuple(map(weights.resolved, stages))


def work(
    config: "Config",
    stages: Sequence[Stage],
    todo: "Todo",
    sink: "CsvFile",
    results: "ResultCache",
    options: argparse.Namespace,
    interrupt: Interrupt,
) -> None:
    """Make the parts, run the loop, and take the parts down again however it ends."""
    from vec_pipeline import device, pipeline
    from vec_pipeline.chunk_size import chunk_size
    from vec_pipeline.crash_journal import CrashJournal
    from vec_pipeline.executor import Executor
    from vec_pipeline.memory import ModelCache
    from vec_pipeline.progress import Progress

    with contextlib.ExitStack() as stack:
        terminal = stack.enter_context(stderr_in(beside(config.output, "log")))
        journal = stack.enter_context(contextlib.closing(CrashJournal(beside(config.output, "journal.sqlite"))))
        if options.retry_errors:
            journal.clear(list(journal.deaths))
        size = chunk_size(stages, config.chunk_size)
        models = ModelCache(stages, config.model_cache_size, config.clear_threshold_gb, size.images_gb)
        stack.callback(models.close)
        logger.info("%s; chunks of %d images", models.summary, size.first)
        executor = Executor(
            stages, models, results, journal, config.read_threads, todo.source_columns, config.max_consecutive_errors
        )
        if executor.has_two_at_work and (todo.number is None or todo.number > size.first):
            device.leave_half_the_cores()
        progress = Progress(todo.number, executor, terminal)
        stack.callback(summarise, progress)  # after the bar is closed, however the run ends
        stack.enter_context(contextlib.closing(progress))

        def save(records: Sequence[Record]) -> None:
            with interrupt.shield():
                sink.write(records)
                progress.count(records)
                results.note_pictures(records)
                if not sink.replaces_rows:
                    results.confirm_pictures()

        groups = journal.suspects_last
        pipeline.run(todo.records, executor, sink.keys(), save, lambda: size.next(executor), options.limit, groups)


def close(sink: "CsvFile", results: "ResultCache", interrupt: Interrupt) -> None:
    with interrupt.shield():
        if sink.close():
            results.confirm_pictures()


def summarise(progress: "Progress") -> None:
    summary = progress.summary()
    print(summary)
    logger.info("%s", summary)


def verdict(sink: "CsvFile", source: Source) -> int:
    """Say what the file holds now, and what could not be listed; return the exit status."""
    print(f"{sink.path} holds {plural(sink.rows, 'row')}, {len(sink.failed):,} of them with an error")
    for key, error in sink.error_examples:
        print(f"  {visible(key)}: {visible(error)}")
    if sink.failed:
        print(f"  --retry-errors annotates them again; see {beside(sink.path, 'log')}")
    if source.failures:
        print(f"{plural(len(source.failures), 'folder or file')} could not be listed:")
        print(*(f"  {visible(failure)}" for failure in source.failures[:3]), sep="\n")
    return SOME_ERRORS if sink.failed or source.failures else ALL_FINE
