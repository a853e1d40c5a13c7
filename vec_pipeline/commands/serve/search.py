"""Search over the rows of a server: by a text, by a picture, or by what is like one of them."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
import numpy as np
from fastapi import FastAPI, File, HTTPException, Query, UploadFile
from pydantic import BaseModel, Field

from vec_pipeline.commands.search import COLUMN_OF
from vec_pipeline.commands.search.query import Makers, Vector
from vec_pipeline.commands.search.vector_cache import NoVectors, Vectors
from vec_pipeline.commands.serve import openapi
from vec_pipeline.commands.serve.metrics import Metrics
from vec_pipeline.commands.serve.rows import Rows
from vec_pipeline.commands.serve.uploads import id_of, is_id
from vec_pipeline.downloads.temporary import InMemory
from vec_pipeline.memory import LoadError, ModelCache
from vec_pipeline.pictures.kinds import HEAD_BYTES, kind_of
from vec_pipeline.record import Stage, UserError, Values

Place = Literal["image", "text", "dino"]  # as the command `search` calls them

AT_ONCE = 2  # searches: the models belong to uploads first
MOST_WAITING = 16
LONGEST_TEXT = 1000  # characters; the models read some 80 to 500 tokens
MOST_FOUND = 100

logger = logging.getLogger("vec_pipeline")


class Found(BaseModel):
    """A row that was found."""

    id: openapi.Id | None = Field(description="of an annotation; null for a picture that was not uploaded here")
    image_path: str
    description: str
    score: float = Field(description="the cosine of both vectors, 1 at most")


@dataclass(frozen=True)
class Search:
    """What finds rows.

    rows: that are searched where there is no CSV.
    csv_path: of the rows; None where nothing is saved.
    """

    makers: Makers
    rows: Rows
    csv_path: Path | None

    @property
    def places(self) -> list[str]:
        """In which vectors can be searched; empty where the configuration makes none."""
        return [place for place, column in COLUMN_OF.items() if self._is_made(column)]

    def _is_made(self, column: str) -> bool:
        try:
            return bool(self.makers.of(column)) and column in self.rows.names_of("vector")
        except UserError:
            return False

    def query_of_text(self, text: str, place: Place) -> Vector:
        return self.makers.sight_query(text) if place == "image" else self.makers.meaning_query(text)

    def query_of_picture(self, content: bytes, place: Place) -> Vector:
        return self.makers.image_query(InMemory(content, "", ""), COLUMN_OF[place], "the picture")

    def nearest(self, query: Vector, place: Place, limit: int, but: str = "") -> list[Found]:
        """The rows whose vectors are most like the query's, best first, without the one that has the id `but`.

        query: of length 1. Raises UserError where the CSV cannot be searched now.
        """
        most = limit + bool(but)
        if self.csv_path is None:
            found = nearest_of(self.rows.in_memory(), COLUMN_OF[place], query, most)
        else:
            try:
                with Vectors(self.csv_path, COLUMN_OF[place]) as vectors:
                    found = vectors.nearest(query, most)
            except NoVectors:
                return []
        names = [id_of(row["image_path"]) for row in found]
        every = [Found(id=name if is_id(name) else None, **row) for name, row in zip(names, found, strict=True)]
        return [row for row in every if not but or row.id != but][:limit]


def nearest_of(rows: Sequence[Values], column: str, query: Vector, most: int) -> list[Values]:
    """The same among rows in memory."""
    rows = [row for row in rows if row[column]]
    scores = np.array([row[column] for row in rows], np.float32).reshape(len(rows), len(query)) @ query
    best = np.argsort(-scores, kind="stable")[:most]
    return [
        {"image_path": row["image_path"], "description": row["description"], "score": round(float(score), 4)}
        for row, score in ((rows[index], scores[index]) for index in best)
    ]


def makers_at(stages: Sequence[Stage], models: ModelCache) -> Makers:
    """The stages of an annotator, and their models where it has them: nobody else uses one at the same time."""

    def of(name: str) -> tuple[Stage, str]:
        for stage in stages:
            for own, written in stage.outputs.items():
                if written == name:
                    return stage, own
        raise UserError(f"this server has no stage that writes {name}")

    def use(stage: Stage) -> AbstractContextManager[Any]:
        return nullcontext(stage.load()) if stage.worker == "reader" else models.use(stage)

    return Makers(of, use)


def add_search(app: FastAPI, search: Search, metrics: Metrics) -> None:
    """Add what answers with rows that are like a text, a row or a picture."""
    limiter = anyio.CapacityLimiter(AT_ONCE)
    number_asked = 0

    async def answered(by: str, query: Callable[[], Vector], place: Place, limit: int, but: str = "") -> list[Found]:
        nonlocal number_asked
        if number_asked >= AT_ONCE + MOST_WAITING:
            raise HTTPException(429, "too many searches wait: come again", {"Retry-After": "2"})
        number_asked += 1
        try:
            found = await anyio.to_thread.run_sync(partial(nearest, search, query, place, limit, but), limiter=limiter)
        finally:
            number_asked -= 1
        metrics.searches.labels(by).inc()
        return found

    @app.get("/v1/search", responses={**REFUSALS, 404: openapi.UNKNOWN})
    async def by_text(
        text: Annotated[
            str, Query(max_length=LONGEST_TEXT, description="that says what to look for", examples=["a red flower"])
        ] = "",
        like: Annotated[str, Query(description="instead of a text, the id of an annotation")] = "",
        place: InPlace = "image",
        limit: Limit = 10,
    ) -> list[Found]:
        """Find rows by a text, or those that are like a row, most similar first: `limit` of them, however similar."""
        text = text.strip()
        if bool(text) == bool(like):
            raise HTTPException(422, "give either a `text` to look for, or the id of an annotation as `like`")
        check_place(search, place, ("image", "text") if text else tuple(COLUMN_OF))
        if text:
            return await answered("text", partial(search.query_of_text, text, place), place, limit)
        return await answered("like", partial(vector_of, search, like, place), place, limit, like)

    @app.post("/v1/search", responses={**REFUSALS, 415: openapi.ROWS[415]})
    async def by_picture(
        file: Annotated[UploadFile, File(description="a picture, which is not kept")],
        place: InPlace = "image",
        limit: Limit = 10,
    ) -> list[Found]:
        """Find rows whose pictures look like another picture, most similar first."""
        check_place(search, place, ("image", "dino"))
        if not kind_of(await file.read(HEAD_BYTES)):
            raise HTTPException(415, "this is no picture of a known format")
        await file.seek(0)

        def query() -> Vector:
            return search.query_of_picture(file.file.read(), place)  # in memory when it is its turn

        return await answered("picture", query, place, limit)


InPlace = Annotated[
    Place,
    Query(
        alias="in",
        description="what is compared. image: what can be seen; text: what the descriptions mean, not for a picture; "
        "dino: shapes and textures, not for a text. The configuration decides which there are.",
    ),
]
Limit = Annotated[int, Query(ge=1, le=MOST_FOUND, description="how many to find")]
REFUSALS: openapi.Responses = {
    422: {"description": "what cannot be searched for, or not on this server"},
    429: openapi.ROWS[429],
    503: {"description": "the server cannot search now"},
}


def check_place(search: Search, place: Place, possible: Sequence[str]) -> None:
    """Raises HTTPException where there are no such vectors, or none that it can be compared with."""
    if place not in possible:
        raise HTTPException(422, f"this cannot be searched for in {place}: `in` is {' or '.join(possible)}")
    if place not in (places := search.places):
        there = f"`in` is {' or '.join(places)}" if places else "its configuration has no stage such as embed_image"
        raise HTTPException(422, f"this server cannot search in {place}: {there}")


def vector_of(search: Search, name: str, place: Place) -> Vector:
    """The vector of an annotation's row. Raises HTTPException."""
    try:
        row = search.rows.find(name)
    except UserError as error:
        raise HTTPException(503, str(error)) from None
    if row is None:
        raise HTTPException(404, "there is no such annotation")
    if not (vector := row[COLUMN_OF[place]]):
        raise HTTPException(422, "this annotation has nothing to compare: its row has no such vector")
    return np.array(vector, np.float32)


def nearest(search: Search, query: Callable[[], Vector], place: Place, limit: int, but: str) -> list[Found]:
    """Raises HTTPException: 422 where there is something wrong with the request, 503 with the server."""
    try:
        vector = query()
        if not np.isfinite(vector).all():
            raise UserError("the model finds nothing in it to search for")
    except HTTPException:
        raise
    except LoadError as error:
        raise HTTPException(503, str(error)) from None
    except UserError as error:
        raise HTTPException(422, str(error)) from None
    except Exception as error:  # of a model, or of the memory that it needs
        logger.exception("a search failed")
        raise HTTPException(503, f"the search failed ({type(error).__name__})") from None
    try:
        return search.nearest(vector, place, limit, but)
    except UserError as error:
        raise HTTPException(503, str(error)) from None
