"""The HTTP interface: pictures in, rows out. What may be asked, and the answer to each request."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import orjson
from fastapi import Depends, FastAPI, File, Form, HTTPException, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.params import Form as FormField
from fastapi.responses import FileResponse, RedirectResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException as Refusal  # that of FastAPI is one

from vec_pipeline.commands.serve import openapi
from vec_pipeline.commands.serve.annotator import Annotator, Full
from vec_pipeline.commands.serve.intake import Intake
from vec_pipeline.commands.serve.limits import BODY_KEPT, RETRY_AFTER
from vec_pipeline.commands.serve.metrics import Metrics
from vec_pipeline.commands.serve.openapi import Name
from vec_pipeline.commands.serve.pictures import OPENED_AT_ONCE, as_jpeg
from vec_pipeline.commands.serve.review.api import add_review
from vec_pipeline.commands.serve.review.work import Review
from vec_pipeline.commands.serve.rows import Rows
from vec_pipeline.commands.serve.search import Search, add_search
from vec_pipeline.commands.serve.uploads import NotAPicture, Uploads
from vec_pipeline.commands.serve.wishes import Detail, missing_inputs, why_no_details
from vec_pipeline.config import unknown
from vec_pipeline.pictures.kinds import HEAD_BYTES, kind_of
from vec_pipeline.record import Stage, UserError

POLL_S = 0.1
SILENT_S = 15.0  # of a stream of events: proxies hang up on one that says nothing for a minute or so
PAGE = Path(__file__).parent / "page"
MOST_FILES = 64
KEPT_AT_ONCE = 2  # uploads, each of which is in memory until it is written
FETCHED_AT_ONCE = 4  # pictures at addresses: slow hosts must leave threads for other requests, of 5 at least
NO_PICTURE = "this is no picture of a known format"


@dataclass(frozen=True)
class Service:
    """What requests are answered with.

    csv_folder: where the paths in columns of type file begin.
    stages: names of those that a request may leave out, in order.
    of_language: names of the stages that are only for answers in a language, by language; all run if none is named.
    details: that a request may ask for.
    fetch: the bytes at an address; raises UserError.
    review: of the CSV; None where nothing is saved.
    configured: all stages, in order, for what each one needs.
    """

    annotator: Annotator
    intake: Intake
    csv_folder: Path
    uploads: Uploads
    rows: Rows
    stages: Sequence[str]
    of_language: dict[str, frozenset[str]]
    details: Sequence[str]
    fetch: Callable[[str], bytes]
    metrics: Metrics
    search: Search
    review: Review | None = None
    configured: Sequence[Stage] = ()


def create_app(service: Service) -> FastAPI:
    """What annotates pictures; and what reviews the rows, where they are saved."""
    app = app_with_pages()
    add_annotations(app, service)
    add_rows(app, service)
    add_files(app, service)
    add_search(app, service.search, service.metrics)
    add_figures(app, service)
    app.add_api_route("/", lambda: FileResponse(PAGE / "index.html"), include_in_schema=False)
    if service.review:
        add_review_page(app, service.review)
    else:
        for path in ("/review", "/v1/review", "/v1/review/{path:path}"):
            add_refusal(app, path, "this server saves no rows that could be reviewed: start it without --ephemeral")
    openapi.describe(app, service.rows.types)
    return app


def create_review_app(review: Review) -> FastAPI:
    """What reviews rows, and annotates nothing."""
    app = app_with_pages()
    add_review_page(app, review)
    app.add_api_route("/", lambda: RedirectResponse("/review"), include_in_schema=False)
    app.add_api_route("/healthz", lambda: {"status": "ok", "waiting": 0}, responses={200: openapi.STATES[200]})
    add_refusal(app, "/v1/{path:path}", "this server only reviews: start one without --review-only to annotate")
    openapi.describe(app, review.table.types)
    return app


def app_with_pages() -> FastAPI:
    app = FastAPI(
        title="vec-pipeline", version="1", docs_url=None, redoc_url=None, openapi_url="/openapi.json",
        dependencies=[Depends(check_names)],
    )  # fmt: skip
    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(UserError, refused)
    app.add_exception_handler(RequestValidationError, refused)
    app.add_api_route("/docs", lambda: FileResponse(PAGE / "docs.html"), include_in_schema=False)
    app.mount("/page", StaticFiles(directory=PAGE))
    return app


def add_review_page(app: FastAPI, review: Review) -> None:
    add_review(app, review)
    app.add_api_route("/review", lambda: FileResponse(PAGE / "review.html"), include_in_schema=False)


def add_refusal(app: FastAPI, path: str, reason: str) -> None:
    """Answer whatever is asked at a path with 404 and a sentence."""

    def refuse() -> None:
        raise HTTPException(404, reason)

    app.add_api_route(path, refuse, methods=["GET", "POST"], include_in_schema=False)


async def check_names(request: Request) -> None:
    """Refuse names that a request of the API does not know: nobody is to take an answer for what was not asked.

    Raises HTTPException.
    """
    route = request.scope["route"]
    if not route.path.startswith("/v1/") or not route.include_in_schema:
        return  # of a page, which may have an address with more in it
    of_form = {each.alias for each in route.dependant.body_params if isinstance(each.field_info, FormField)}
    of_address = {each.alias for each in route.dependant.query_params}
    for name, value in request.query_params.items():
        if name in of_form:
            raise HTTPException(422, f"{name!r} is a field of the form: send it as in --form {name}={value[:50]}")
        check_name(name, of_address, of_form)
    for name in await request.form() if of_form else ():
        if name in of_address:
            raise HTTPException(422, f"{name!r} is no field of the form: put it into the address, as in ?{name}=0")
        check_name(name, of_form, of_address)


def check_name(name: str, valid: set[str], others: set[str]) -> None:
    """Raises HTTPException for a name that is not valid. others: names that are, at another place."""
    if name not in valid:
        name = name[:50]
        known = unknown(name, valid | others) if valid | others else f"unknown option '{name}': this request has none"
        raise HTTPException(422, known)


async def refused(request: Request, error: Exception) -> Response:
    """One sentence for whatever is wrong with a request, without what it held, or with the server."""
    if isinstance(error, RequestValidationError):
        error = Refusal(422, "; ".join(map(mistake, error.errors())))
    elif isinstance(error, UserError):  # of the CSV
        error = Refusal(503, str(error), RETRY_AFTER)
    assert isinstance(error, Refusal)
    body = json.dumps({"detail": error.detail})  # in ASCII: it may hold half of a surrogate pair
    return Response(body, error.status_code, error.headers, "application/json")


def mistake(error: dict[str, Any]) -> str:
    """What is wrong with a value, as pydantic says it, but for a file that is none."""
    name = [part for part in error["loc"] if isinstance(part, str)][-1]
    if "UploadFile" in error["msg"]:
        return f"{name}: send a file, as in {name}=@picture.jpg"
    return f"{name}: {error['msg']}"


def answered(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, "application/json")


def add_annotations(app: FastAPI, service: Service) -> None:
    """Add what takes pictures."""
    fetched = fetcher(service)
    keeping = asyncio.Semaphore(KEPT_AT_ONCE)

    async def keep(read: Callable[[], bytes], asked: Asked) -> str:
        async with keeping:
            return await asyncio.to_thread(lambda: take(service, read(), asked))

    @app.post("/v1/annotations", responses=openapi.ROWS, status_code=200)
    async def annotate(
        request: Request,
        file: Annotated[list[UploadFile], File(description="pictures")] = [],  # noqa: B006 (FastAPI copies it)
        url: Annotated[str, Form(description="the address of a picture, instead of a file")] = "",
        detail: Annotated[Detail, Form()] = "normal",
        language: Annotated[str, Form(description="of the answer, such as ru; empty for all")] = "",
        stages: Annotated[str, Form(description="names of stages, separated by commas; empty for all")] = "",
        wait_s: Annotated[float, Query(ge=0, le=300, description="seconds until 202 is answered instead")] = 30,
    ) -> Response:
        """Annotate pictures: 200 with the row of one, or the rows of several, or 202 with ids to ask for."""
        asked = Asked.of(service, detail, language, stages)
        check_number(len(file) + bool(url), service.annotator.most_waiting)
        await check_kinds(file)
        names: list[str] = []
        has_left = True  # also of what is refused halfway: nobody learns the ids of the pictures before
        try:
            for each in file:
                names.append(await keep(each.file.read, asked))
                await each.close()
            request.scope.get(BODY_KEPT, lambda: None)()
            if url:
                async with fetched(url) as content:
                    names.append(await keep(lambda: content, asked))
            has_left = await leaves(service, names, wait_s, request)
        finally:
            service.intake.release(names, has_left=has_left)
        answers = [await asyncio.to_thread(answer_of, service, name) for name in names]
        is_done = all(status == 200 for status, _ in answers)
        body = answers[0][1] if len(answers) == 1 else [each for _, each in answers]
        return answered(body, 200 if is_done else 202, {"Location": f"/v1/annotations/{names[0]}"})


def add_rows(app: FastAPI, service: Service) -> None:
    """Add what tells of pictures that were taken."""

    @app.get("/v1/annotations/{name}", responses=openapi.ROW)
    def annotation(name: Name) -> Response:
        """The row of a picture, or 202 as long as there is none."""
        status, body = answer_of(service, name)
        return answered(body, status)

    @app.get("/v1/annotations/{name}/events", responses=openapi.EVENTS, response_class=StreamingResponse)
    async def events(name: Name, request: Request) -> Response:
        """Server-sent events: `waiting` with the number of uploads before it, then `done` with the row."""
        await asyncio.to_thread(answer_of, service, name)
        return StreamingResponse(progress(service, name, request), media_type="text/event-stream")

    @app.get("/v1/annotations", responses=openapi.HISTORY)
    async def history(
        limit: Annotated[int, Query(ge=1, le=200)] = 20,
        before: Annotated[str, Query(description="an id: rows older than that one")] = "",
    ) -> list[openapi.Id]:
        """The ids of the newest rows, newest first."""
        try:
            return await asyncio.to_thread(service.rows.latest, limit, before)
        except KeyError:
            raise HTTPException(404, UNKNOWN) from None


def add_files(app: FastAPI, service: Service) -> None:
    """Add what sends pictures and audio."""
    opening = asyncio.Semaphore(OPENED_AT_ONCE)

    @app.get("/v1/annotations/{name}/image", responses=openapi.PICTURES, response_class=Response)
    async def image(name: Name, side_px: Annotated[int, Query(ge=16, le=2048)] = 1024) -> Response:
        """The picture, upright, reduced to `side_px`, as a JPEG: no byte of the upload itself is sent."""
        if not (path := service.uploads.path(name)):
            raise HTTPException(404, UNKNOWN)
        try:
            async with opening:
                content, (width, height) = await asyncio.to_thread(lambda: as_jpeg(path.read_bytes(), side_px))
            return Response(content, media_type="image/jpeg", headers={"Picture-Size": f"{width}x{height}"})
        except Exception as error:  # of any decoder
            raise HTTPException(422, f"it cannot be opened ({type(error).__name__})") from None

    @app.get("/v1/annotations/{name}/audio", responses=openapi.FILES, response_class=Response)
    def audio(name: Name, column: str = "") -> Response:
        """A column of type `file`, such as speech; the first one that there is."""
        _, row = answer_of(service, name)
        columns = [each for each in service.rows.names_of("file") if column in ("", each) and row.get(each)]
        path = (service.csv_folder / row[columns[0]]).resolve() if columns else None
        if not path or not path.is_relative_to(service.csv_folder.resolve()) or not path.is_file():
            raise HTTPException(404, "this annotation has no such file")
        return FileResponse(path)


def add_figures(app: FastAPI, service: Service) -> None:
    """Add what tells of the server itself."""

    @app.get("/v1/options", responses={422: openapi.ROWS[422]})
    async def options() -> dict[str, list[str]]:
        """What a request may ask for, the columns that `/audio` has files of, and what can be searched in."""
        return {
            "details": list(service.details),
            "languages": list(service.of_language),
            "stages": list(service.stages),
            "audio": service.rows.names_of("file"),
            "search": service.search.places,
        }

    @app.get("/metrics", responses=openapi.FIGURES, response_class=Response)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/healthz", responses=openapi.STATES)
    async def health() -> Response:
        """Whether pictures can be annotated, and how many wait."""
        failure = service.annotator.failure
        body = {"status": "failed" if failure else "ok", "waiting": service.annotator.number_waiting}
        return answered(body, 503 if failure else 200)  # the reason may name paths, and nobody has shown a token here


UNKNOWN = "there is no such annotation"


@dataclass(frozen=True)
class Asked:
    """What a request wants of a picture.

    without: names of the stages that are not to run.
    """

    detail: str
    language: str
    without: frozenset[str]

    @classmethod
    def of(cls, service: Service, detail: str, language: str, stages: str) -> "Asked":
        """Raises HTTPException for what the server does not have."""
        wanted = [name.strip() for name in stages.split(",") if name.strip()]
        if others := [name for name in wanted if name not in service.stages]:
            raise HTTPException(422, f"there is no stage {others[0]}: there are {', '.join(service.stages)}")
        if detail not in service.details:
            why = why_no_details(service.configured)
            raise HTTPException(
                422, f"this server has no detail {detail}, for its configuration {why}: leave detail out"
            )
        if language and language not in service.of_language:
            raise HTTPException(422, f"there is no {language}: there are {', '.join(service.of_language)}")
        left_out = frozenset(service.stages).difference(wanted) if wanted else frozenset[str]()
        for other, names in service.of_language.items():
            if language not in ("", other):
                left_out |= names
                if contrary := names.intersection(wanted):
                    raise HTTPException(422, f"language {language} leaves out {min(contrary)}, which is for {other}")
        if missing := list(missing_inputs(service.configured, left_out)):
            raise HTTPException(422, "; ".join(missing))
        return cls(detail, language, left_out)

    def __str__(self) -> str:
        return json.dumps([self.detail, self.language, sorted(self.without)])


def fetcher(service: Service) -> Callable[[str], AbstractAsyncContextManager[bytes]]:
    """What fetches the picture at an address, which is in memory until the block ends. It raises HTTPException."""
    fetching = asyncio.Semaphore(FETCHED_AT_ONCE)

    @asynccontextmanager
    async def fetched(url: str) -> AsyncIterator[bytes]:
        if fetching.locked():
            raise HTTPException(429, "too many addresses are being fetched: come again", RETRY_AFTER)
        async with fetching:
            try:
                content = await asyncio.to_thread(service.fetch, url)
            except UserError as error:
                raise HTTPException(422, str(error)) from None
            yield content

    return fetched


def check_number(pictures: int, most_waiting: int) -> None:
    """Raises HTTPException for no picture, and for more than can ever be taken."""
    most = min(MOST_FILES, most_waiting)
    if pictures > most:
        raise HTTPException(422, f"at most {most} pictures can be sent at once: send the others later")
    if not pictures:
        raise HTTPException(422, f"give one to {most} pictures as `file`, or the address of one as `url`")


async def check_kinds(files: Sequence[UploadFile]) -> None:
    """Raises HTTPException where one of them is no picture: before any is kept."""
    for each in files:
        if not kind_of(await each.read(HEAD_BYTES)):
            raise HTTPException(415, NO_PICTURE)
        await each.seek(0)


def take(service: Service, content: bytes, asked: Asked) -> str:
    """Keep a picture and put it into the queue, unless its row is there. Returns its id. Raises HTTPException."""
    try:
        return service.intake.take(content, str(asked), asked.detail, asked.without)
    except NotAPicture:
        raise HTTPException(415, NO_PICTURE) from None
    except OSError as error:
        raise HTTPException(507, f"it cannot be kept ({error.strerror})") from None
    except Full:
        raise HTTPException(429, "too many pictures wait: come again", RETRY_AFTER) from None
    except UserError as error:
        raise HTTPException(503, str(error), RETRY_AFTER) from None


async def leaves(service: Service, names: Sequence[str], wait_s: float, request: Request) -> bool:
    """Wait until all rows are there, for so many seconds at most; return whether the client has left instead."""
    futures = service.intake.futures(names)
    rows = {asyncio.ensure_future(asyncio.shield(asyncio.wrap_future(future))) for future in futures}
    deadline_s = asyncio.get_running_loop().time() + wait_s
    while rows and (left_s := deadline_s - asyncio.get_running_loop().time()) > 0:
        _, rows = await asyncio.wait(rows, timeout=min(left_s, POLL_S))
        if await request.is_disconnected():
            return True
    return False


def answer_of(service: Service, name: str) -> tuple[int, Any]:
    """The status and the body for an upload. Raises HTTPException where there is none, and where its row failed."""
    if state := service.intake.state(name):
        return 202, {"id": name, "status": state}
    if failure := service.intake.failure(name):
        raise HTTPException(503, failure, RETRY_AFTER)
    if row := service.rows.find(name):
        return 200, row
    raise HTTPException(404, UNKNOWN)


async def progress(service: Service, name: str, request: Request) -> AsyncIterator[bytes]:
    """Events until the row is there, or the client has left; `waiting` comes again before a proxy hangs up."""
    before, said_s = None, 0.0
    while not await request.is_disconnected():
        try:
            status, body = await asyncio.to_thread(answer_of, service, name)
        except (HTTPException, UserError) as error:
            yield event("error", {"detail": error.detail if isinstance(error, HTTPException) else str(error)})
            return
        if status == 200:
            yield event("done", body)
            return
        now, now_s = {**body, "ahead": service.intake.ahead(name)}, time.monotonic()
        if now != before or now_s - said_s >= SILENT_S:
            yield event("waiting", now)
            before, said_s = now, now_s
        await asyncio.sleep(POLL_S)


def event(kind: str, body: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), orjson.dumps(body))
