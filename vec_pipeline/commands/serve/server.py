"""Makes the parts of a server, listens, and takes them down again however it ends."""

import argparse
import contextlib
import logging
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from io import FileIO
from pathlib import Path
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI, HTTPException
from uvicorn.protocols.http.h11_impl import H11Protocol

from vec_pipeline import settings
from vec_pipeline.annotations import CsvReader
from vec_pipeline.chunk_size import chunk_size
from vec_pipeline.commands.run import cache_path, fetched
from vec_pipeline.commands.run.messages import start_log
from vec_pipeline.commands.serve.annotator import Annotator
from vec_pipeline.commands.serve.api import Service, create_app, create_review_app
from vec_pipeline.commands.serve.intake import Intake
from vec_pipeline.commands.serve.limits import RETRY_AFTER, Limited, Message, Receive, Send
from vec_pipeline.commands.serve.limits import answer as answer_refusal
from vec_pipeline.commands.serve.metrics import Metrics
from vec_pipeline.commands.serve.review.work import Review
from vec_pipeline.commands.serve.rows import Rows
from vec_pipeline.commands.serve.search import Search, makers_at
from vec_pipeline.commands.serve.uploads import Uploads
from vec_pipeline.commands.serve.wishes import languages_of, ways_of
from vec_pipeline.config import Config, check_wiring
from vec_pipeline.crash_journal import CrashJournal
from vec_pipeline.downloads import Downloads
from vec_pipeline.downloads.web import web_record
from vec_pipeline.executor import Executor
from vec_pipeline.memory import ModelCache
from vec_pipeline.record import COLUMNS, Record, Stage, UserError, beside
from vec_pipeline.result_cache import ResultCache
from vec_pipeline.sinks.csv_file import CsvFile, lock_beside
from vec_pipeline.sinks.csv_rows import contents_of
from vec_pipeline.terminal import handled

HEADERS_S = 10.0  # until a request's headers are there
LINGER_S = 2.0  # for what a client still sends that was answered
BODY_S = 60.0  # until a request's body is there, or a client takes what it is sent
DRAIN_S = 60.0  # for what waits when the server ends
CONNECTIONS = 512
HTTP_PORT = 80  # which names of hosts leave out
NOT_TOLD = re.compile(r"^(\w+: ){1,2}(?=.)")  # to a client: who failed, and the class of the error
FETCH_S = 20.0  # for a picture at an address: a client waits for it

logger = logging.getLogger("vec_pipeline")


class Protocol(H11Protocol):
    """HTTP/1.1 whose clients must send the headers of each request in time, and take the answers."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            self.app = too_many  # of this connection
        self.loop.call_later(HEADERS_S, self._end_unless_begun, None)

    def on_response_complete(self) -> None:
        answered = self.cycle
        is_sending = self.conn.their_state is h11.SEND_BODY
        super().on_response_complete()  # which may begin the next request
        self.loop.call_later(LINGER_S if is_sending else HEADERS_S, self._end_unless_begun, answered)

    def _end_unless_begun(self, before: object) -> None:
        """Hang up unless another request than the one before has begun."""
        if self.cycle is before and not self.transport.is_closing():
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._taking = self.loop.call_later(BODY_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._taking.cancel()


async def too_many(scope: Message, receive: Receive, send: Send) -> None:
    """Refuse whatever is asked."""
    await answer_refusal(send, HTTPException(503, "too many connections: come again", RETRY_AFTER), receive)


class Server(uvicorn.Server):
    """A server that a signal ends, and not the process: it has rows to finish and files to close.

    ends_s: when it has to have ended, on the clock of time.monotonic.
    """

    ends_s = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal lets what waits finish, the second does not."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self.ends_s = time.monotonic() + (0 if self.force_exit else DRAIN_S)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        with handled(self.handle_exit):
            yield


def serve(config: Config, options: argparse.Namespace, token_hash: str) -> int:
    """Listen until a signal ends the server, and finish what waits then. Returns the exit status."""
    check_wiring(config.stages, {})
    if config.devices:
        print(f"devices: {config.devices} is for runs: the server uses one device", flush=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(handled(signal.default_int_handler))  # which raises: what follows is taken down again
        bound = stack.enter_context(contextlib.closing(bind(options.host, options.port)))  # before a file is made
        if options.ephemeral:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vec-pipeline-")))
            config = replace(config, output=folder / "annotations.csv", result_cache=False)
        else:
            config = replace(config, output=options.csv or config.output)
        recorded = settings.recorded_settings(config.output) if config.output.exists() else settings.Recorded()
        stages = fetched(settings.with_recorded_commits(config.stages, recorded))
        service = stack.enter_context(made(config, stages, options))
        app, is_full = create_app(service), lambda: service.annotator.is_full
        server = answer(app, bound, options, token_hash, " annotates pictures", is_full)
        if service.annotator.failure:
            print(f"the server has ended: {service.annotator.failure}", file=sys.stderr)
            return 2
        service.annotator.close(server.ends_s - time.monotonic())
    return 0


def serve_review(csv_path: Path, options: argparse.Namespace, token_hash: str) -> int:
    """Let people review the rows of a CSV until a signal ends the server, without any model. Returns the exit status.

    Raises UserError where the CSV is missing, damaged, or in use.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(handled(signal.default_int_handler))
        bound = stack.enter_context(contextlib.closing(bind(options.host, options.port)))
        CsvReader(csv_path, machine=True).close()  # before its lock, which would make a file
        stack.enter_context(contextlib.closing(locked(csv_path)))
        review = stack.enter_context(contextlib.closing(Review(csv_path)))
        review.groups.of(review.table.starts)  # so that they are known soon
        answer(create_review_app(review), bound, options, token_hash, f"/review reviews {csv_path}")
    return 0


def locked(csv_path: Path) -> FileIO:
    """Keep every other program from changing a CSV and its corrections. Raises UserError."""
    try:
        return lock_beside(csv_path.resolve())
    except OSError as error:
        raise UserError(
            f"the folder of {csv_path} cannot be written, where corrections are saved ({error.strerror}): name a copy"
        ) from None


def answer(
    app: FastAPI,
    bound: socket.socket,
    options: argparse.Namespace,
    token_hash: str,
    said: str,
    is_full: Callable[[], bool] = lambda: False,
) -> Server:
    """Listen, say so, and answer requests until a signal comes. Raises UserError where nobody can listen there."""
    with listening_errors(options.host, options.port):
        bound.listen(1024)
    host, port = bound.getsockname()[:2]
    names = frozenset() if token_hash else own_names(host, port)
    limited = Limited(app, token_hash, names, options.max_upload_mb * 10**6, BODY_S, is_full)
    server = Server(
        uvicorn.Config(
            limited, http=Protocol, ws="none", lifespan="off", log_config=None, access_log=False,
            server_header=False, timeout_keep_alive=15, timeout_graceful_shutdown=int(DRAIN_S),
        )
    )  # fmt: skip
    print(f"http://{in_address(host)}:{port}{said}; Ctrl-C ends it", flush=True)
    server.run(sockets=[bound])
    return server


def bind(host: str, port: int) -> socket.socket:
    """A socket that has the address, and does not listen yet: clients are refused until they can be answered.

    Raises UserError.
    """
    with listening_errors(host, port):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # asyncio sets TCP_NODELAY, without which answers wait 40 ms, where the protocol is named
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((host, port))
        except BaseException:
            bound.close()
            raise
    return bound


@contextlib.contextmanager
def listening_errors(host: str, port: int) -> Iterator[None]:
    """Raise what the system says of an address as a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{host}:{port} cannot be listened at ({error.strerror}): name another --port") from None


def in_address(host: str) -> str:
    """A host as an address of the web has it."""
    return f"[{host}]" if ":" in host else host


def own_names(host: str, port: int) -> frozenset[str]:
    """What requests may call a server without a token by, which only this machine reaches."""
    names = frozenset({"localhost", "127.0.0.1", "[::1]", in_address(host)})
    return frozenset(f"{name}:{port}" for name in names) | (names if port == HTTP_PORT else frozenset())


@contextlib.contextmanager
def made(config: Config, stages: Sequence[Stage], options: argparse.Namespace) -> Iterator[Service]:
    """What answers requests, until the block ends."""
    with contextlib.ExitStack() as stack:
        of_sources = settings.columns_of_sources(config.output, {})
        types = {**COLUMNS, **config.extra_columns(of_sources)}
        sink = (
            None
            if options.ephemeral
            else stack.enter_context(contextlib.closing(opened(config, stages, types, of_sources)))
        )
        start_log(beside(config.output, "log"), config.log_level)
        journal = stack.enter_context(contextlib.closing(CrashJournal(beside(config.output, "journal.sqlite"))))
        results = stack.enter_context(contextlib.closing(ResultCache(cache_path(config), settings.fingerprint)))
        ways = ways_of(stages)
        size = chunk_size(stages, config.chunk_size)
        every = [stage for some in ways.values() for stage in some]
        models = ModelCache(every, config.model_cache_size, config.clear_threshold_gb, size.images_gb)
        stack.callback(models.close)
        review = stack.enter_context(contextlib.closing(Review(config.output))) if sink else None
        known = {name: types[name] for name in sink.header} if sink else types
        rows = Rows(known, sink, review.given) if review else Rows(known, sink)

        def executor(way: str) -> Executor:
            return Executor(ways[way], models, results, journal, config.read_threads, {}, sys.maxsize)

        def save(records: Sequence[Record]) -> None:
            gone, files = rows.save(records)
            results.note_pictures(records)
            results.confirm_pictures()
            intake.forget(gone)
            folder = config.output.parent.resolve()
            for path in [(folder / name).resolve() for name in files - intake.texts_at_work()]:
                if path.is_relative_to(folder):  # a stage of somebody's own may name other files
                    path.unlink(missing_ok=True)

        annotator = Annotator(executor, save, rows.has_result, options.most_waiting, size.first)
        metrics = Metrics(lambda: annotator.number_waiting)
        uploads = Uploads(beside(config.output, "uploads"))
        intake = Intake(annotator, uploads, rows, metrics)
        service = Service(
            annotator, intake, config.output.parent, uploads, rows,
            [stage.name for stage in stages if stage.columns], languages_of(stages), list(ways),
            lambda url: downloaded(url, config, options.max_upload_mb), metrics,
            Search(makers_at(stages, models), rows, config.output if sink else None), review, stages,
        )  # fmt: skip
        try:
            yield service
        finally:
            annotator.close(0)


def opened(config: Config, stages: Sequence[Stage], types: Mapping[str, str], of_sources: Mapping[str, str]) -> CsvFile:
    """The CSV, whose settings must be these.

    types: of all columns. of_sources: those that sources have brought. Raises UserError.
    """
    extra = [name for name in types if name not in COLUMNS]
    existing = contents_of(config.output, tuple(extra))
    if existing.rows:
        settings.check_settings(config.output, config.stages, existing.header)
    sink = CsvFile(config.output, extra, existing, retry_errors=True)
    settings.write_settings(
        config.output, stages, config.stages, dict(types), config.sources, of_sources, config.store_path
    )
    return sink


def downloaded(url: str, config: Config, most_mb: int) -> bytes:
    """The bytes of a picture on the web, never of a private address. Raises UserError."""
    given = config.source_options()
    options = replace(
        given, store=None, allow_private=False, download_attempts=1,
        download_timeout_s=min(FETCH_S, given.download_timeout_s), max_download_mb=min(most_mb, given.max_download_mb),
    )  # fmt: skip
    folder = Path(tempfile.mkdtemp(prefix="vec-pipeline-"))
    try:
        with contextlib.closing(Downloads(options, folder)) as downloads:
            [record] = downloads.ahead([web_record(url, options)])
            if record.error:
                reason = NOT_TOLD.sub("", record.error)
                raise UserError(reason.replace(": set allow_private to fetch from it", ""))
            return bytes(record.values["content"].read())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
