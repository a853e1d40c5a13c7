"""Annotate a folder of images: arguments, wiring, exit status."""

import argparse
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vec_pipeline.record import Record, Source, UserError

if TYPE_CHECKING:
    from vec_pipeline.config import Config
    from vec_pipeline.progress import Progress
    from vec_pipeline.sinks.csv_file import Contents, CsvFile
    from vec_pipeline.sources.folder import Folder

ALL_FINE, SOME_ERRORS, UNUSABLE, INTERRUPTED = 0, 1, 2, 130


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Annotate images: one CSV row per picture. Run the same command again to go on where it stopped.",
        epilog="exit status: 0 every image has a row without error; 1 some rows carry an error; 2 unusable arguments, "
        "configuration, models or output file; 130 interrupted, what was finished is saved",
    )
    parser.add_argument("images", type=path, metavar="IMAGES", help="a folder, walked recursively, or one image")
    parser.add_argument("--config", type=path, default=Path("config.yaml"), metavar="FILE", help="default: %(default)s")
    parser.add_argument("--output", type=path, metavar="FILE", help="the CSV (default: the configuration's `output`)")
    parser.add_argument("--limit", type=whole_number, metavar="N", help="annotate at most N images in this run")
    parser.add_argument("--retry-errors", action="store_true", help="annotate rows with an error again, in their place")
    parser.add_argument(
        "--refresh",
        action="store_true",
        help="bring rows made with other settings up to date: only what has changed is run",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="set an option, e.g. describe.batch_size=4"
    )
    options = parser.parse_args(arguments)
    if options.refresh and (options.retry_errors or options.limit is not None):
        parser.error("--refresh goes through all rows: leave --limit and --retry-errors out")
    return options


def whole_number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def path(text: str) -> Path:
    return Path(os.path.expanduser(text))  # Path's own raises for a user who does not exist


class Interrupt:
    """Ctrl-C, SIGTERM, SIGHUP: the first stops the run, but never within a write; the second ends it at once."""

    def __init__(self) -> None:
        self._is_asked = False
        self._is_shielded = False
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGHUP, self._on_signal)  # a lost connection

    def _on_signal(self, number: int, frame: object) -> None:
        if self._is_asked:
            os._exit(INTERRUPTED)
        self._is_asked = True
        if not self._is_shielded:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def shield(self) -> Iterator[None]:
        """A block that an interrupt waits for."""
        self._is_shielded = True
        try:
            yield
        finally:
            self._is_shielded = False
        if self._is_asked:
            raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    # Threads that wait by spinning made torch 27 times slower on two cores that others used as well.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    interrupt = Interrupt()
    try:
        return annotate(options, interrupt)
    except UserError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return UNUSABLE
    except Exception as error:  # of the worker itself: what fails on an image is in its row
        logging.getLogger("vec_pipeline").exception("the run ended early")
        print(
            f"run.py: {type(error).__name__}: {error}: what was finished is saved, run.log says more", file=sys.stderr
        )
        return UNUSABLE
    except KeyboardInterrupt:
        print("\ninterrupted: what was finished is saved; run the same command again to go on", file=sys.stderr)
        return INTERRUPTED


def annotate(options: argparse.Namespace, interrupt: Interrupt) -> int:
    from vec_pipeline import checks
    from vec_pipeline.config import check_settings, load_config, write_settings
    from vec_pipeline.sinks.csv_file import CsvFile, contents_of
    from vec_pipeline.sources.folder import Folder

    config = load_config(options.config, options.set)
    config = replace(config, output=options.output or config.output)
    source = Folder(options.images, left_out=config.output.parent)
    existing = contents_of(config.output, config.extra_columns())
    if not options.refresh:
        check_settings(config.output, config.stages, existing.header)
    todo = count_todo(source, config, existing, options)
    if options.dry_run:
        print("\n".join(map(str, checks.findings(config, todo or None, check_rows=not options.refresh))))
        return ALL_FINE
    if todo:
        checks.check_memory(config.stages)
        for stage in config.stages:
            stage.fetch()
    sink = CsvFile(
        config.output, config.extra_columns(), config.checkpoint_every, options.retry_errors, existing, options.refresh
    )
    with contextlib.ExitStack() as stack:
        stack.callback(close_sink, sink, interrupt)
        if not options.refresh:
            check_settings(config.output, config.stages, existing.header)  # again: no other worker can change them now
            write_settings(config.output, config.stages)
        if todo:
            start_log(config)
            rows_only = (record for record in source if record.key in existing.keys)
            work(config, rows_only if options.refresh else source, sink, todo, options, interrupt)
        if options.refresh:
            changed = sink.replace_rows()
            write_settings(config.output, config.stages)
            print(f"{changed:,} rows have changed, {sink.rows - changed:,} are as they were")
    return verdict(sink)


def close_sink(sink: "CsvFile", interrupt: Interrupt) -> None:
    with interrupt.shield():
        sink.close()


def count_todo(source: "Folder", config: "Config", existing: "Contents", options: argparse.Namespace) -> int:
    """Walk the folder once, say what there is to do, and return the number. Raises UserError for no image at all."""
    found = known = failed = 0
    for record in source:
        found += 1
        known += record.key in existing.keys
        failed += record.key in existing.failed
    if not found:
        raise UserError(f"{options.images} holds no image: name a folder of images, or one image")
    if source.is_leaving_out:
        print(f"left out: {source.left_out}, where the output is")
    if options.refresh:
        return count_stale(config, existing, found, known)
    left = found - known + (failed if options.retry_errors else 0)
    todo = left if options.limit is None else min(left, options.limit)
    limited = f", {todo:,} of them in this run" if todo < left else ""
    print(f"{found:,} images: {found - left:,} done, {left:,} to do{limited}", flush=True)
    return todo


def count_stale(config: "Config", existing: "Contents", found: int, known: int) -> int:
    """Say which settings the rows are behind in, and return how many of them can be brought up to date."""
    from vec_pipeline.config import changed_settings, settings_path

    changed = changed_settings(config.output, config.stages, existing.header)
    missing = [name for name in config.extra_columns() if existing.header and name not in existing.header]
    if settings_path(config.output).exists() and not changed and not missing:
        print("every row was made with these settings: nothing to refresh")
        return 0
    print(f"{known:,} rows to bring up to date ({', '.join([*changed[:5], *missing]) or 'their settings are unknown'})")
    for number, what in (
        (existing.rows - known, "rows are of images that are not there, and stay as they are"),
        (found - known, "images have no row: run without --refresh afterwards"),
    ):
        if number:
            print(f"{number:,} {what}")
    sys.stdout.flush()
    return known


def work(
    config: "Config", source: Source, sink: "CsvFile", todo: int, options: argparse.Namespace, interrupt: Interrupt
) -> None:
    """Make the parts, run the loop, and take the parts down again however it ends."""
    from vec_pipeline import device, pipeline
    from vec_pipeline.annotator import Annotator
    from vec_pipeline.config import fingerprints
    from vec_pipeline.ledger import NoLedger, open_ledger
    from vec_pipeline.memory import ModelCache
    from vec_pipeline.plan import plan
    from vec_pipeline.progress import Progress

    with contextlib.ExitStack() as stack:
        ledger = open_ledger(config.output.with_suffix(".ledger.sqlite")) if config.ledger else NoLedger()
        stack.callback(ledger.close)
        if options.retry_errors:
            ledger.forgive(list(ledger.deaths))
        cache = stack.enter_context(contextlib.closing(ModelCache(config.model_cache_size, config.clear_threshold_gb)))
        chosen = plan(config, todo)
        logging.getLogger("vec_pipeline").info("%s", chosen.reason)
        if chosen.overlap and chosen.is_on_cpu:
            device.leave_half_the_cores()
        annotator = Annotator(
            config.stages,
            cache,
            ledger,
            fingerprints(config.stages),
            config.read_threads,
            chosen.overlap,
            config.max_consecutive_errors,
        )
        progress = Progress(todo, annotator)
        stack.callback(summarise, progress)  # after the bar is closed, however the run ends
        stack.enter_context(contextlib.closing(progress))
        pipeline.run(
            source,
            annotator,
            WatchedSink(sink, interrupt, progress),
            lambda: chosen.next_chunk_images(annotator),
            options.limit,
            suspects=ledger.suspects(),
        )


class WatchedSink:
    """The sink, with writes that an interrupt cannot cut, and rows counted for the progress."""

    def __init__(self, sink: "CsvFile", interrupt: Interrupt, progress: "Progress") -> None:
        self.keys = sink.keys
        self._write = sink.write
        self._interrupt = interrupt
        self._progress = progress

    def write(self, records: Sequence[Record]) -> None:
        with self._interrupt.shield():
            self._write(records)
            self._progress.count(records)


def summarise(progress: "Progress") -> None:
    summary = progress.summary()
    print(summary)
    logging.getLogger("vec_pipeline").info("%s", summary)


def start_log(config: "Config") -> None:
    log = config.output.parent / "run.log"
    handler = logging.FileHandler(log, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("vec_pipeline")
    root.addHandler(handler)
    root.setLevel(config.log_level.upper())
    root.propagate = False
    logging.raiseExceptions = False  # a log that cannot be written stops nothing
    root.info("run: %s", config)


def verdict(sink: "CsvFile") -> int:
    """Say what the file holds now; return the exit status."""
    print(f"{sink.path} holds {sink.rows:,} rows, {len(sink.failed):,} of them with an error")
    for key, error in sink.error_examples:
        print(f"  {visible(key)}: {visible(error)}")
    if sink.failed:
        print(f"  --retry-errors annotates them again; {sink.path.parent / 'run.log'} says more")
    return SOME_ERRORS if sink.failed else ALL_FINE


def visible(text: str) -> str:
    """Text for a terminal: the name of a file may hold what moves the cursor or ends the line."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


if __name__ == "__main__":
    status = main()
    if status == INTERRUPTED:  # a model may still be at work in a thread: nobody needs what it is making
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)
