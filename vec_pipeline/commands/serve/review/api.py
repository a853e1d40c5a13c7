"""The HTTP interface of the review: what may be asked about rows, and the answer to each request."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import orjson
from fastapi import FastAPI, Header, HTTPException, Path, Query
from fastapi.responses import Response
from pydantic import BaseModel, Field

from vec_pipeline.commands.serve.pictures import OPENED_AT_ONCE, as_jpeg
from vec_pipeline.commands.serve.review import answers
from vec_pipeline.commands.serve.review.bulk import AnyOperation, Name, Whole
from vec_pipeline.commands.serve.review.order import Order
from vec_pipeline.commands.serve.review.work import Edit, Outdated, Review, Wish, version_of
from vec_pipeline.corrections import Conflict, Unavailable
from vec_pipeline.record import UserError

LARGEST = 1 << 53  # numbers that JavaScript has
MOST_SHOWN = 200
MOST_CHANGES = 1000  # in one request by hand
MOST_EXAMPLES = 20
ALL = 1 << 20  # rows that can be named one by one
READ_AT_ONCE = 8  # pictures: slow hosts of those at addresses must leave threads for other requests
KEPT_S = 3600  # by a browser, a picture

Row = Annotated[int, Field(ge=0, le=LARGEST, description="its place in the CSV, from 0 on")]
ActNumber = Annotated[int, Field(ge=0, le=LARGEST)]
Id = Annotated[str | None, Field(max_length=100)]
Who = Annotated[Whole, Field(max_length=100, description="whose act it is, for the history")]
Where = Annotated[
    str, Field(max_length=10_000, description="a query, such as `category:vehicle -verified`; empty: all")
]


class Rows(BaseModel):
    rows: Annotated[list[Row], Field(max_length=MOST_SHOWN)]


class OneChange(BaseModel):
    row: Row
    column: Name
    value: Annotated[Whole | None, Field(description="the text of a cell; null: what the models wrote")]
    seen: Annotated[ActNumber | None, Field(description="the act that made what was seen, 0: the models")] = None
    key: Annotated[Whole | None, Field(description="the `key` of the row, so that no other row is changed")] = None


class Changes(BaseModel):
    changes: Annotated[list[OneChange], Field(min_length=1, max_length=MOST_CHANGES)]
    who: Who = ""
    csv: Annotated[Id, Field(description="of `GET /v1/review`: whose rows they are")] = None


class Bulk(BaseModel):
    where: Where = ""
    rows: Annotated[list[Row] | None, Field(max_length=ALL, description="instead of a query")] = None
    server: Annotated[Id, Field(description="of `GET /v1/review`: whose numbers `rows` are")] = None
    operation: AnyOperation
    preview: bool = True
    who: Who = ""


class Undo(BaseModel):
    act: ActNumber
    csv: Annotated[Id, Field(description="of `GET /v1/review`: whose act it is")] = None
    who: Who = ""


def add_review(app: FastAPI, review: Review) -> None:
    """Add what shows rows, their pictures and their history, and what changes them."""
    add_rows(app, review)
    add_pictures(app, review)
    add_changes(app, review)
    add_history(app, review)
    app.add_exception_handler(Conflict, lambda _, error: refusal_of(review, error))
    app.add_exception_handler(Outdated, lambda _, error: answered({"detail": str(error), "conflicts": []}, 409))


def add_rows(app: FastAPI, review: Review) -> None:
    @app.get("/v1/review", responses=answers.LIST)
    def listed(
        where: Annotated[str, Query(max_length=10_000, examples=["category:vehicle -verified"])] = "",
        order: Order = "worth",
        unique: Annotated[bool, Query(description="of near-duplicates, the first alone")] = False,
    ) -> Response:
        """The numbers of rows that fulfil a query, those first of which a look is worth most."""
        act = review.last_act  # first: what is done meanwhile is news to the client
        with asked():
            return answered({
                "rows": review.matching(where, order, is_unique=unique), "total": len(review.table),
                "columns": review.table.types, "correctable": review.correctable(), "categories": review.categories(),
                "acts": act, "grouped": review.groups.is_known, "csv": review.csv_id, "server": review.server_id,
            })  # fmt: skip

    @app.get("/v1/review/next", responses=answers.NEXT)
    def next_open(
        after: Annotated[int, Query(ge=0, le=LARGEST, description="a row")],
        where: Annotated[str, Query(max_length=10_000)] = "",
        order: Order = "worth",
        unique: Annotated[bool, Query(description="of near-duplicates, the first alone")] = False,
    ) -> Response:
        """The next row after one, in an order, that nobody has accepted or rejected; after the last, the first."""
        with asked():
            return answered({"row": review.next_open(after, where, order, is_unique=unique)})

    @app.post("/v1/review/rows", responses=answers.ROWS)
    def rows(wanted: Rows) -> Response:
        """Rows with what people have corrected, and beside it what the models wrote."""
        with asked():
            return answered(review.shown(wanted.rows))


def add_pictures(app: FastAPI, review: Review) -> None:
    reading, opening = asyncio.Semaphore(READ_AT_ONCE), asyncio.Semaphore(OPENED_AT_ONCE)

    @app.get("/v1/review/picture/{row}", responses=answers.PICTURE, response_class=Response)
    async def picture(
        row: Annotated[int, Path(ge=0, le=LARGEST)],
        px: Annotated[int, Query(ge=16, le=2048, description="its longest side at most")] = 1024,
        v: Annotated[str, Query(max_length=100, description="as `picture` of the row has it")] = "",
        if_none_match: Annotated[str, Header(include_in_schema=False)] = "",
    ) -> Response:
        """The picture of a row, upright, as a JPEG."""
        async with reading:
            data, tag = await asyncio.to_thread(picture_of, review, row, px, v, if_none_match)
        headers = {"ETag": tag, "Cache-Control": f"private, max-age={KEPT_S}"}
        if data is None:
            return Response(status_code=304, headers=headers)
        try:
            async with opening:
                content, _ = await asyncio.to_thread(as_jpeg, data, px)
        except Exception as error:  # of any decoder
            raise HTTPException(422, f"it cannot be opened ({type(error).__name__})") from None
        return Response(content, media_type="image/jpeg", headers=headers)


def add_changes(app: FastAPI, review: Review) -> None:
    @app.post("/v1/review/correct", responses=answers.CORRECT)
    def correct(wanted: Changes) -> Response:
        """Correct, accept or reject rows, all or none of them, as one act."""
        if wanted.csv not in (None, review.csv_id):
            raise Outdated("the row is of another CSV: load the page again")
        with asked():
            act, rows = review.correct([Wish(**dict(each)) for each in wanted.changes], wanted.who)
            return answered({"act": act, "rows": review.shown(rows)})

    @app.post("/v1/review/bulk", responses=answers.BULK)
    def bulk(wanted: Bulk) -> Response:
        """Change many rows as one act, which can be undone as one, or say what that would do."""
        if wanted.rows is not None and wanted.server not in (None, review.server_id):
            raise Outdated("the server was started again: load the page again")
        with asked():
            done = review.bulk(wanted.where, wanted.rows, wanted.operation, wanted.who, is_preview=wanted.preview)
        examples = [example(edit) for edit in done.edits[:MOST_EXAMPLES]]
        return answered({"rows": done.rows, "changes": len(done.edits), "act": done.act or None, "examples": examples})

    @app.post("/v1/review/undo", responses=answers.UNDO)
    def undo(wanted: Undo) -> Response:
        """Give what an act changed the values that it had before; to undo that is to do the first again."""
        if wanted.csv not in (None, review.csv_id):
            raise Outdated("the act is of another CSV: load the page again")
        with asked():
            try:
                act, rows = review.undo(wanted.act, wanted.who)
            except Unavailable:
                raise
            except UserError as error:
                return answered({"detail": str(error), "conflicts": []}, 409)
            return answered({"act": act, "rows": rows})


def add_history(app: FastAPI, review: Review) -> None:
    @app.get("/v1/review/acts", responses=answers.ACTS)
    def acts(
        most: Annotated[int, Query(ge=1, le=1000)] = 100,
        before: Annotated[int | None, Query(ge=0, le=LARGEST, description="an act: those before it")] = None,
    ) -> Response:
        """What was done, the newest first."""
        with asked():
            return answered([act._asdict() for act in review.acts(most, before)])

    @app.get("/v1/review/history/{row}", responses=answers.HISTORY)
    def history(row: Annotated[int, Path(ge=0, le=LARGEST)]) -> Response:
        """What was done to a row, the newest first."""
        with asked(404):
            return answered([entry._asdict() for entry in review.history(row)])


@contextmanager
def asked(status: int = 422) -> Iterator[None]:
    """A block that does what a client asks for. Raises HTTPException: this status for what is not possible."""
    try:
        yield
    except Unavailable as error:
        raise HTTPException(503, str(error), {"Retry-After": "2"}) from None
    except UserError as error:
        raise HTTPException(status, str(error)) from None


def refusal_of(review: Review, conflict: Conflict) -> Response:
    """What is answered where somebody else was first: who, when, and the value now."""
    numbers = review.table.numbers
    conflicts = [
        {"row": numbers.get(clash.key), "column": clash.column, **clash.now._asdict()} for clash in conflict.entries
    ]
    return answered({"detail": str(conflict), "conflicts": conflicts}, 409)


def picture_of(review: Review, row: int, px: int, version: str, known: str) -> tuple[bytes | None, str]:
    """The file of a row's picture and its ETag; None where the client has it, by its ETag. Raises HTTPException."""
    with asked(404):
        key = review.key_of(row)
        if version not in ("", version_of(key)):
            raise UserError("this row has another picture: load the page again")
    try:
        content = review.content_of(key)
        tag = f'"{version_of(f"{key} {content.identity()} {px}")}"'
        return None if tag in known else content.read(), tag
    except Exception as error:  # of any place that content comes from
        raise HTTPException(404, f"the picture is gone, or cannot be read ({type(error).__name__})") from None


def example(edit: Edit) -> dict[str, Any]:
    return {"row": edit.row, "column": edit.column, "old": edit.old, "new": edit.new}


def answered(body: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), status, media_type="application/json")
