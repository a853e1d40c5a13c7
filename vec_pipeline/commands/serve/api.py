"""The HTTP interface: pictures in, rows out. What may be asked, and the answer to each request."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, File, Form, HTTPException, Query, Request, UploadFile
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from vec_pipeline.commands.serve.annotator import Annotator, Full
from vec_pipeline.commands.serve.metrics import Metrics
from vec_pipeline.commands.serve.rows import Rows
from vec_pipeline.commands.serve.uploads import NotAPicture, Uploads, id_of
from vec_pipeline.record import Record, UserError
from vec_pipeline.sources import content_of

Detail = Literal["brief", "normal", "full"]
RETRY_AFTER_S = 2
POLL_S = 0.1
PAGE = Path(__file__).parent / "page"
MOST_FILES = 64


@dataclass
class Service:
    """What requests are answered with.

    csv_folder: where the paths in columns of type file begin.
    stages: names of those that a request may leave out, in order.
    of_language: names of the stages that are only for answers in a language, by language; all run if none is named.
    details: that a request may ask for.
    fetch: the bytes at an address; raises UserError.
    waiting: what becomes of the uploads that wait or are at work, by id.
    awaited: how many requests wait for each of them.
    """

    annotator: Annotator
    csv_folder: Path
    uploads: Uploads
    rows: Rows
    stages: Sequence[str]
    of_language: dict[str, frozenset[str]]
    details: Sequence[str]
    fetch: Callable[[str], bytes]
    metrics: Metrics
    is_draining: bool = False
    waiting: dict[str, "Future[Record]"] = field(default_factory=dict)
    awaited: Counter[str] = field(default_factory=Counter)

    def forget(self, name: str, done: "Future[Record]") -> None:
        """Keep why an upload has no row until that is asked for; of others, the row is all that is needed."""
        if done.cancelled() or not done.exception():
            self.waiting.pop(name, None)


def create_app(service: Service) -> FastAPI:
    app = FastAPI(title="vec-pipeline", version="1", docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    add_annotations(app, service)
    add_files(app, service)
    add_figures(app, service)
    app.add_api_route("/", lambda: FileResponse(PAGE / "index.html"), include_in_schema=False)
    app.add_api_route("/docs", lambda: FileResponse(PAGE / "docs.html"), include_in_schema=False)
    app.mount("/page", StaticFiles(directory=PAGE))
    return app


def add_annotations(app: FastAPI, service: Service) -> None:
    """Add what takes pictures and answers with rows."""

    @app.post("/v1/annotations", responses=RESPONSES | REFUSALS, status_code=200)
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
        contents = [await each.read() for each in file[:MOST_FILES]]
        if url:
            contents.append(await asyncio.to_thread(fetched, service, url))
        if not contents or len(file) > MOST_FILES:
            raise HTTPException(422, f"give one to {MOST_FILES} pictures as `file`, or the address of one as `url`")
        names = [await asyncio.to_thread(submit, service, content, asked) for content in contents]
        await settled(service, names, wait_s, request)
        answers = [answer_of(service, name) for name in names]
        is_done = all(status == 200 for status, _ in answers)
        body = answers[0][1] if len(answers) == 1 else [each for _, each in answers]
        return JSONResponse(body, 200 if is_done else 202, {"Location": f"/v1/annotations/{names[0]}"})

    @app.get("/v1/annotations/{name}", responses=RESPONSES)
    def annotation(name: str) -> Response:
        """The row of a picture, or 202 as long as there is none."""
        status, body = answer_of(service, name)
        return JSONResponse(body, status)

    @app.get("/v1/annotations/{name}/events", responses=RESPONSES)
    async def events(name: str, request: Request) -> Response:
        """Server-sent events: `waiting` with the number of uploads, then `done` with the row."""
        answer_of(service, name)
        return StreamingResponse(progress(service, name, request), media_type="text/event-stream")

    @app.get("/v1/annotations")
    async def history(
        limit: Annotated[int, Query(ge=1, le=200)] = 20,
        before: Annotated[str, Query(description="an id: rows older than that one")] = "",
    ) -> list[str]:
        """The ids of the newest rows, newest first."""
        return await asyncio.to_thread(service.rows.latest, limit, before)


def add_files(app: FastAPI, service: Service) -> None:
    """Add what sends pictures and audio."""

    @app.get("/v1/annotations/{name}/image", responses=PICTURES, response_class=Response)
    def image(name: str, side_px: Annotated[int, Query(ge=16, le=2048)] = 1024) -> Response:
        """The picture, upright, reduced to `side_px`, as a JPEG: no byte of the upload itself is sent."""
        if not (path := service.uploads.path(name)):
            raise HTTPException(404, UNKNOWN)
        try:
            content, (width, height) = as_jpeg(path.read_bytes(), side_px)
            return Response(content, media_type="image/jpeg", headers={"Picture-Size": f"{width}x{height}"})
        except Exception as error:  # of any decoder
            raise HTTPException(422, f"it cannot be opened ({type(error).__name__})") from None

    @app.get("/v1/annotations/{name}/audio", responses=SOUNDS, response_class=Response)
    def audio(name: str, column: str = "") -> Response:
        """A column of type `file`, such as speech; the first one that there is."""
        _, row = answer_of(service, name)
        files = [each for each in ([column] if column else service.rows.names_of("file")) if row.get(each)]
        path = service.csv_folder / row[files[0]] if files else None
        if not path or files[0] not in service.rows.names_of("file") or not path.is_file():
            raise HTTPException(404, "this annotation has no such file")
        return FileResponse(path)


def add_figures(app: FastAPI, service: Service) -> None:
    """Add what tells of the server itself."""

    @app.get("/v1/options")
    async def options() -> dict[str, list[str]]:
        """What a request may ask for, and the columns that `/audio` has files of."""
        return {
            "details": list(service.details),
            "languages": list(service.of_language),
            "stages": list(service.stages),
            "audio": service.rows.names_of("file"),
        }

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/healthz")
    async def health() -> Response:
        failure = service.annotator.failure
        body = {"status": "failed" if failure else "ok", "waiting": service.annotator.number_waiting}
        return JSONResponse(body | ({"reason": failure} if failure else {}), 503 if failure else 200)


UNKNOWN = "there is no such annotation"
SIZE = {"Picture-Size": {"description": "width x height of the file, upright, in pixels", "schema": {"type": "string"}}}
PICTURES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {}}, "headers": SIZE},
    404: {"description": UNKNOWN},
}
SOUNDS: dict[int | str, dict[str, Any]] = {200: {"content": {"audio/*": {}}}, 404: {"description": UNKNOWN}}
RESPONSES: dict[int | str, dict[str, Any]] = {
    202: {"description": "not done yet"},
    404: {"description": "unknown"},
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    413: {"description": "too large"},
    415: {"description": "no picture of a known format"},
    429: {"description": "too many wait: come again after Retry-After seconds"},
    503: {"description": "the server is ending, or has failed"},
    507: {"description": "no room on the disk"},
}


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
        if unknown := [name for name in wanted if name not in service.stages]:
            raise HTTPException(422, f"there is no stage {unknown[0]}: there are {', '.join(service.stages)}")
        if detail not in service.details:
            raise HTTPException(422, f"this server asks its own question: detail is {', '.join(service.details)}")
        if language and language not in service.of_language:
            raise HTTPException(422, f"there is no {language}: there are {', '.join(service.of_language)}")
        others = [names for of, names in service.of_language.items() if language not in ("", of)]
        left_out = set(service.stages) - set(wanted) if wanted else set()
        return cls(detail, language, frozenset(left_out).union(*others))

    def __str__(self) -> str:
        return json.dumps([self.detail, self.language, sorted(self.without)])


def submit(service: Service, content: bytes, asked: Asked) -> str:
    """Keep a picture and put it into the queue, unless its row is there. Returns its id. Raises HTTPException."""
    try:
        path = service.uploads.keep(content, str(asked))
    except NotAPicture:
        raise HTTPException(415, "this is no picture of a known format") from None
    except OSError as error:
        raise HTTPException(507, f"it cannot be kept ({error.strerror})") from None
    name = id_of(path)
    if not service.rows.has(path):
        record = Record(str(path), {"content": content_of(str(path))}, without=asked.without)
        try:
            future = service.annotator.submit(record, asked.detail)
            service.waiting[name] = future
            future.add_done_callback(lambda done: service.forget(name, done))
            service.metrics.watch(future)
        except Full:
            raise HTTPException(
                429, "too many pictures wait: come again", {"Retry-After": str(RETRY_AFTER_S)}
            ) from None
        except UserError as error:
            raise HTTPException(503, str(error), {"Retry-After": str(RETRY_AFTER_S)}) from None
    return name


def fetched(service: Service, url: str) -> bytes:
    try:
        return service.fetch(url)
    except UserError as error:
        raise HTTPException(422, str(error)) from None


async def settled(service: Service, names: Sequence[str], wait_s: float, request: Request) -> None:
    """Wait until all rows are there, for so many seconds at most. A client that leaves gives up its places."""
    at_work = {name: service.waiting[name] for name in names if name in service.waiting}
    service.awaited.update(at_work.keys())
    try:
        rows = {asyncio.ensure_future(asyncio.shield(asyncio.wrap_future(future))) for future in at_work.values()}
        deadline_s = asyncio.get_running_loop().time() + wait_s
        while rows and (left_s := deadline_s - asyncio.get_running_loop().time()) > 0:
            _, rows = await asyncio.wait(rows, timeout=min(left_s, POLL_S))
            if await request.is_disconnected():
                for name in at_work:
                    if service.awaited[name] == 1:  # by nobody else
                        at_work[name].cancel()
                return
    finally:
        service.awaited.subtract(at_work.keys())
        service.awaited = +service.awaited


def answer_of(service: Service, name: str) -> tuple[int, Any]:
    """The status and the body for an upload. Raises HTTPException where there is none, and where its row failed."""
    if future := service.waiting.get(name):
        if not future.done():
            return 202, {"id": name, "status": "running" if future.running() else "waiting"}
        service.waiting.pop(name, None)  # another thread may have taken it out
        if future.cancelled() or (error := future.exception()):
            raise HTTPException(503, "the server is ending" if future.cancelled() else str(error))
    if row := service.rows.find(name):
        return 200, row
    raise HTTPException(404, UNKNOWN)


async def progress(service: Service, name: str, request: Request) -> AsyncIterator[str]:
    """Events until the row is there, or the client has left."""
    before = None
    while not await request.is_disconnected():
        try:
            status, body = answer_of(service, name)
        except HTTPException as error:
            yield event("error", {"detail": error.detail})
            return
        if status == 200:
            yield event("done", body)
            return
        if (now := {**body, "ahead": service.annotator.number_waiting}) != before:
            yield event("waiting", now)
        before = now
        await asyncio.sleep(POLL_S)


def as_jpeg(content: bytes, side_px: int) -> tuple[bytes, tuple[int, int]]:
    """A picture as a JPEG, and the width and height of its file, in whose pixels boxes are. Raises as its decoder."""
    from io import BytesIO

    from vec_pipeline.pictures import Limits
    from vec_pipeline.pictures.full_size import opened

    image, size = opened(content, lambda _: side_px, Limits.megapixels)
    target = BytesIO()
    image.save(target, "JPEG", quality=90)
    return target.getvalue(), size


def event(kind: str, body: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps(body)}\n\n"
