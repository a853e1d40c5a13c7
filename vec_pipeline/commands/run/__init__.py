"""Annotate images: one CSV row per picture. Run the same command again to continue where it stopped."""

import argparse
import contextlib
import glob
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vec_pipeline.commands import CONFIG_HELP, add_source_arguments, path
from vec_pipeline.commands.run.order import ORDER_HELP, order_type
from vec_pipeline.commands.run.shard import output_of, part_of, shard_type
from vec_pipeline.record import COLUMNS, Source, SourceOptions, Stage, UserError, beside
from vec_pipeline.terminal import INTERRUPTED, Interrupt, handled, plural, visible

if TYPE_CHECKING:
    from vec_pipeline.commands.run.corrected import Corrected
    from vec_pipeline.commands.run.todo import Todo
    from vec_pipeline.config import Config
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
    parser.add_argument(
        "source",
        nargs="+",
        metavar="SOURCE",
        help="folders, images, lists of addresses, archives, data sets, buckets: see docs/sources.md",
    )
    parser.add_argument("--config", type=path, default=Path("config.yaml"), metavar="FILE", help=CONFIG_HELP)
    parser.add_argument("--output", type=path, metavar="FILE", help="the CSV (default: the configuration's `output`)")
    parser.add_argument("--limit", type=integer, metavar="N", help="annotate at most N images in this run")
    add_source_arguments(parser)
    parser.add_argument("--order", type=order_type, default="", metavar="ORDER", help=ORDER_HELP)
    parser.add_argument("--first", action="append", default=[], metavar="GLOB", help="what matches is annotated first")
    parser.add_argument(
        "--shard", type=shard_type, metavar="K/N", help="one of N parts, each run alone and merged later: 0/8 to 7/8"
    )
    parser.add_argument("--engine", choices=["ray"], help="where it runs, if not here: on a cluster, see docs/scale.md")
    parser.add_argument(
        "--address", default="", metavar="HOST:PORT", help="of the Ray cluster, or auto on a machine of it"
    )
    parser.add_argument("--watch", action="store_true", help="stay, and annotate files that arrive in the folders")
    parser.add_argument(
        "--mirror", default="", metavar="ADDRESS", help="copy the CSV there as it grows, such as s3://bucket/a.csv"
    )
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
    if options.watch and (options.refresh or options.dry_run or options.shard):
        raise UserError("--watch waits for new files: leave --refresh, --dry-run and --shard out")
    interrupt = Interrupt()
    with handled(interrupt.on_signal):
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
    from vec_pipeline import calibration, checks, settings
    from vec_pipeline.commands.run.corrected import Corrected
    from vec_pipeline.commands.run.watch import Watcher
    from vec_pipeline.commands.run.work import Job, devices_of, mirrored, work
    from vec_pipeline.config import check_wiring, load_config
    from vec_pipeline.result_cache import ResultCache
    from vec_pipeline.sinks.csv_rows import contents_of
    from vec_pipeline.sources import content_of

    config = load_config(options.config, options.set)
    config = replace(config, output=options.output or output_of(config.output, options.shard))
    devices = devices_of(config, options)  # before this process chooses a GPU for itself
    wanted = config.source_options(options.column, options.keep, own_files(config.output, config.store_path))
    source = source_of(config, options, wanted)
    check_wiring(config.stages, source.columns)
    of_sources = settings.columns_of_sources(config.output, source.columns)
    columns = config.extra_columns(of_sources)
    existing = contents_of(config.output, tuple(columns))
    plan = plan_refresh if options.refresh else plan_run
    stages, todo = plan(config, source, existing, columns, options)
    if options.prune:
        todo.prune(config.output, lambda key: content_of(key, config.sources, wanted))
    if options.dry_run:
        found = checks.findings(config, source.columns, check_rows=not options.refresh)
        return ALL_FINE if checks.print_all(found) else UNUSABLE
    sink = sink_of(config, columns, existing, todo, options)
    watcher = Watcher(options.source, wanted.exclude, sink.keys()) if options.watch else None
    types = {name: {**COLUMNS, **columns}[name] for name in sink.header}

    def record_settings() -> None:
        modules, store = config.sources, config.store_path
        settings.write_settings(config.output, stages, config.stages, types, modules, of_sources, store)
        for note in calibration.notes(stages, settings.recorded_settings(config.output).stages):
            print(note)

    corrected = Corrected(config.output, types, stages, todo.changed)  # again: nobody else can change them now
    has_work = todo.number != 0 or options.watch
    with contextlib.ExitStack() as stack:
        mirror = stack.enter_context(mirrored(config.output, options.mirror))  # closed last: with the rows replaced
        results = ResultCache(cache_path(config) if has_work else None, settings.fingerprint)
        stack.callback(results.close)
        stack.callback(close, sink, results, corrected, interrupt)
        if not options.refresh:
            if sink.rows:  # again: no other worker can change them now
                settings.check_settings(config.output, config.stages, sink.header)
            record_settings()
        if has_work:
            job = Job(config, stages, devices, source, wanted, todo, sink, results, corrected, options, interrupt)
            work(replace(job, mirror=mirror, watcher=watcher))
        if options.refresh:
            replace_rows(sink, results, corrected, record_settings)
        corrected.look()
    may_be_empty = options.limit == 0 or options.watch or options.shard is not None
    return verdict(sink, source, watcher.failures if watcher else [], may_be_empty=may_be_empty)


def sink_of(
    config: "Config", columns: Mapping[str, str], existing: "Contents", todo: "Todo", options: argparse.Namespace
) -> "CsvFile":
    """The CSV, locked. Raises UserError."""
    from vec_pipeline.sinks.csv_file import CsvFile

    retries, refresh = options.retry_errors, options.refresh
    return CsvFile(config.output, columns, existing, retry_errors=retries, refresh=refresh, drop=todo.gone)


def source_of(config: "Config", options: argparse.Namespace, wanted: SourceOptions) -> Source:
    """What the command line names, or the shard of it. Raises UserError."""
    from vec_pipeline.commands.run.watch import check_folders
    from vec_pipeline.sources import open_source, reddit

    if options.watch:
        check_folders(options.source)
    reddit.check_arguments(options.source, has_parts=options.shard is not None)
    return part_of(open_source(options.source, config.sources, wanted), options.shard)


Plan = tuple[tuple[Stage, ...], "Todo"]


def plan_run(
    config: "Config", source: Source, existing: "Contents", columns: Mapping[str, str], options: argparse.Namespace
) -> Plan:
    """The stages to run, hub models at the commits that the CSV was begun with, and the images that are left."""
    from vec_pipeline import settings
    from vec_pipeline.commands.run.todo import Todo

    if existing.rows:
        settings.check_settings(config.output, config.stages, existing.header)
    if existing.header and (missing := [name for name in columns if name not in existing.header]):
        print(f"{config.output} has no column {', '.join(missing)}: run with --refresh to add it")
    todo = Todo(
        source, existing, cache_path(config), compares=options.prune, may_be_empty=options.watch or bool(options.shard)
    )
    todo.new(options.limit, options.retry_errors)
    if stale := stale_rows(config, config.stages, columns):
        print(
            f"{plural(len(stale), 'row')} made before people corrected them: --refresh updates what follows from that"
        )
    recorded = settings.recorded_settings(config.output) if existing.rows else settings.Recorded()
    stages = settings.with_recorded_commits(config.stages_for(existing.header), recorded)
    has_work = todo.number != 0 or options.watch
    return fetched(stages, options.engine) if has_work and not options.dry_run else stages, todo


def plan_refresh(
    config: "Config", source: Source, existing: "Contents", columns: Mapping[str, str], options: argparse.Namespace
) -> Plan:
    """All stages, hub models at their newest commits, and the rows that are behind."""
    from vec_pipeline import settings
    from vec_pipeline.commands.run.todo import Todo
    from vec_pipeline.key_set import KeySet
    from vec_pipeline.sinks.csv_rows import keys_without_files

    stages = config.stages if options.dry_run else fetched(config.stages, options.engine)
    todo = Todo(source, existing, cache_path(config), compares=True, may_be_empty=options.shard is not None)
    of_files = [name for stage in config.stages for name, kind in stage.columns.items() if kind == "file"]
    gone = KeySet(keys_without_files(config.output, of_files) if of_files and existing.rows else ())
    stale = KeySet(stale_rows(config, stages, columns))
    todo.refresh(settings.outdated(config.output, config.stages, stages, existing.header, columns), gone, stale)
    return stages, todo


def stale_rows(config: "Config", stages: Sequence[Stage], columns: Mapping[str, str]) -> list[str]:
    """Keys of the rows that were made before what their stages read was corrected."""
    from vec_pipeline.commands.run.corrected import Corrected

    corrected = Corrected(config.output, {**COLUMNS, **columns}, stages)
    corrected.close()
    return corrected.stale


def own_files(output: Path, store: Path | None = None) -> list[str]:
    """Globs of the output, what lies beside it, and the store, which a folder of images may hold too."""
    output = output.parent.resolve() / output.name
    databases = [
        f"{name}.{ending}" for name in ("cache", "corrections", "journal", "xmp") for ending in ("sqlite*", "broken")
    ]
    names = ("calibration.json", "downloads", "images", "lock", "log", "positions.json*", "salt", "settings.yaml*")
    endings = (*names, *databases)
    begin = glob.escape(str(beside(output, "")))
    alignment = output.with_name("align") / "loss.png"  # of `vec-pipeline align`
    others = [glob.escape(str(path)) for path in (output, alignment, store and store.resolve()) if path]
    return [*others, *(f"{begin}{ending}" for ending in endings)]


def cache_path(config: "Config") -> Path | None:
    return beside(config.output, "cache.sqlite") if config.result_cache else None


def fetched(stages: Sequence[Stage], engine: str | None = None) -> tuple[Stage, ...]:
    """The stages with their weights on this machine, hub models at the commit that is there.

    engine: that runs them on other machines, whose memory and devices are not known here; None for this one.
    """
    from vec_pipeline import checks, weights

    if not engine:
        if problem := checks.unused_gpu(stages):
            print(f"models run on the CPU: {problem}", flush=True)
        checks.check_memory(stages)
    checks.check_download_space(stages)
    if not engine:
        checks.check_memory(stages)  # with what the hub says of the sizes of models that nothing was known of
    for stage in stages:
        stage.fetch()
    return tuple(map(weights.resolved, stages))


def close(sink: "CsvFile", results: "ResultCache", corrected: "Corrected", interrupt: Interrupt) -> None:
    with interrupt.shield():
        if sink.close():
            results.confirm_pictures()
            corrected.confirm()
        corrected.close()
    for note in corrected.notes:
        print(note)


def replace_rows(
    sink: "CsvFile", results: "ResultCache", corrected: "Corrected", record_settings: Callable[[], None]
) -> None:
    """Replace the old rows by those of a refresh, and print how many differ."""
    changed = sink.replace_rows()
    record_settings()
    results.confirm_pictures()
    corrected.confirm()
    print(f"{plural(changed, 'row')} changed, {sink.rows - changed:,} unchanged")


def verdict(sink: "CsvFile", source: Source, of_watch: Sequence[str], *, may_be_empty: bool) -> int:
    """Say what the file holds now, and what could not be listed; return the exit status.

    Raises UserError where a source that was not counted held no image.
    """
    from vec_pipeline.sources import is_counted

    notes = [] if is_counted(source) else [f"{visible(note)}\n" for note in source.notes]  # else said before
    if not (sink.rows or may_be_empty or is_counted(source)):
        print(*notes, sep="", end="")
        reasons = "".join(f"; {visible(failure)}" for failure in source.failures[:3])
        raise UserError(f"no image found{reasons}: name other sources")
    print(f"{sink.path} holds {plural(sink.rows, 'row')}, {len(sink.failed):,} of them with an error")
    for key, error in sink.error_examples:
        print(f"  {visible(key)}: {visible(error)}")
    if sink.failed:
        print(f"  --retry-errors annotates them again; see {beside(sink.path, 'log')}")
    print(*notes, sep="", end="")
    if failures := list(dict.fromkeys([*source.failures, *of_watch])):
        many = f"{len(failures):,} folders or files" if len(failures) > 1 else "1 folder or file"
        print(f"{many} could not be listed or read to the end:")
        print(*(f"  {visible(failure)}" for failure in failures[:3]), sep="\n")
    return SOME_ERRORS if sink.failed or failures else ALL_FINE
