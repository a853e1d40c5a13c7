"""What /openapi.json says of the answers of the review."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from vec_pipeline.commands.serve.openapi import PICTURES, Responses

Value = str | float | None
NOT_NOW: Responses = {503: {"description": "the rows or the corrections can be neither read nor written now"}}


class Listed(BaseModel):
    """Numbers of rows, and what can be asked and corrected."""

    rows: list[int]
    total: int = Field(description="rows of the CSV")
    columns: dict[str, str] = Field(description="types by name; vectors are left out")
    correctable: list[str]
    categories: list[str] = Field(description="the most frequent first")
    acts: int = Field(description="the last act, 0 for none")
    grouped: bool = Field(description="whether near-duplicates are known, which are looked for at the first request")
    csv: str = Field(description="tells it from other CSVs", pattern="^[0-9a-f]{16}$")
    server: str = Field(description="another one once rows may have other numbers", pattern="^[0-9a-f]{16}$")


class Next(BaseModel):
    """The number of a row, null where there is no other."""

    row: int | None


class ShownRow(BaseModel):
    """A row."""

    row: int
    key: str
    name: str
    picture: str = Field(description="where its picture is; `px` can be added")
    values: dict[str, Value] = Field(description="texts, of JSON and times too, and numbers")
    machine: dict[str, Value] = Field(description="what the models wrote, of the columns that people have corrected")
    acts: dict[str, int] = Field(description="what made each value that is not the models': `seen` of a change")
    verified: Literal["", "accepted", "rejected"]
    group: int = Field(description="of near-duplicates, 0 for none")


class Corrected(BaseModel):
    """What an act by hand has changed."""

    act: int
    rows: list[ShownRow]


class Example(BaseModel):
    """A cell before and after; null for what the models wrote."""

    row: int
    column: str
    old: str
    new: str | None


class Changed(BaseModel):
    """What an operation changes, or would change."""

    rows: int = Field(description="that were chosen")
    changes: int = Field(description="cells that become others")
    act: int | None
    examples: list[Example]


class Undone(BaseModel):
    """The act that undoes another, and the numbers of the rows that it changed."""

    act: int
    rows: list[int]


class ShownAct(BaseModel):
    """Something that was done."""

    id: int
    time: str
    who: str
    what: str
    changes: int
    undoes: int = Field(description="the act that it undoes, 0 for none")
    undone_by: int


class ShownEntry(BaseModel):
    """A value in the history of a row; null for the models'."""

    act: int
    time: str
    who: str
    what: str
    column: str
    old: str | None
    new: str | None


class Clashed(BaseModel):
    """A value that was changed since it was seen, as it is now."""

    row: int | None
    column: str
    value: str | None
    act: int
    what: str
    who: str
    time: str


class Refused(BaseModel):
    """Nothing was done."""

    detail: str
    conflicts: list[Clashed]


def of(model: Any, **others: str) -> Responses:
    """The answers to a request that is answered with a model. others: what else, by `s` and the status."""
    found: Responses = {200: {"model": model}, **NOT_NOW}
    return found | {int(status[1:]): {"description": text} for status, text in others.items()}


CONFLICT: Responses = {
    409: {"model": Refused, "description": "somebody else was first (see `conflicts`), or it is of other rows"}
}
WRONG = "a query, a row, a column or a value that is none"
LIST = of(Listed, s422=WRONG)
NEXT = of(Next, s422=WRONG)
ROWS = of(list[ShownRow], s422=WRONG)
CORRECT = of(Corrected, s422=WRONG) | CONFLICT
BULK = of(Changed, s422=WRONG) | CONFLICT
UNDO = of(Undone) | CONFLICT
ACTS = of(list[ShownAct])
HISTORY = of(list[ShownEntry], s404="there is no such row")
PICTURE: Responses = {
    200: {"description": "the picture", "content": PICTURES[200]["content"]},
    304: {"description": "as it was: `If-None-Match` has its ETag"},
    404: {"description": "there is no such row, or its picture is gone"},
    422: {"description": "it cannot be opened"},
    **NOT_NOW,
}
