"""Editing requests: a row of the CSV is a request with one of its answers; what is of the request counts once."""

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vec_pipeline.commands.stats.columns import Column, moments
from vec_pipeline.settings import Recorded
from vec_pipeline.stages.structure import Structure

if TYPE_CHECKING:
    import pandas as pd

POST, ANSWER, OF_POST, TASK = "post_id", "answer_id", "post_", "task"
SECONDS_PER_HOUR = 3600


def rows_of_requests(table: "pd.DataFrame") -> "pd.DataFrame":
    """The rows that are of a request; none where the CSV knows of no such thing."""
    if POST not in table.columns:
        return table[:0]
    posts = table[POST].astype(object)
    return table[(posts.where(posts.notna(), "") != "").to_numpy(bool)]


def one_each(table: "pd.DataFrame") -> "pd.DataFrame":
    """One row for each request."""
    rows = rows_of_requests(table)
    return rows.drop_duplicates(POST) if len(rows) else rows


def is_of_request(name: str, made: Collection[str] = ()) -> bool:
    """Whether a column has one value for a request, however many answers it has.

    made: the columns that `made_of_requests` finds.
    """
    return name.startswith(OF_POST) or name == TASK or name in made


def made_of_requests(recorded: Recorded) -> set[str]:
    """The columns that the stages of a CSV, in their order, have made of the texts of a request and of nothing else."""
    made: set[str] = set()
    for options in recorded.stages.values():
        read, write = options.get("read") or {}, options.get("write") or {}
        for texts, columns in made_of_texts(options):
            if all(is_of_request(read.get(name, name), made) for name in texts):
                made.update(write.get(name, name) for name in columns)
    return made


def made_of_texts(options: Mapping[str, Any]) -> Iterator[tuple[list[str], list[str]]]:
    """The texts that a stage reads, and the columns that it makes of these alone, by its own names for both."""
    texts = options.get("texts") or []
    if options.get("use") == "structure":
        yield texts, list((options.get("schema") or {}).get("properties") or Structure.writes)
    elif options.get("use") == "translate":
        yield from (([name], [f"{name}_{options['to']}"]) for name in texts)


def hours_until_answered(table: "pd.DataFrame") -> "pd.Series[Any]":
    """Hours from each request to its first answer, by its id; NaN where one of the times is missing."""
    asked, answered = (moments(table[name].tolist()) for name in ("post_time", "answer_time"))
    waited = (answered - asked).dt.total_seconds() / SECONDS_PER_HOUR
    return waited.groupby(table[POST].tolist(), sort=False).min()


def column_of_requests(name: str, values: "pd.Series[Any]") -> Column:
    """Numbers by the ids of requests, as a column."""
    there = values.dropna()
    labels = [str(post) for post in there.index]
    return Column(name, "number", there.tolist(), labels, len(values) - len(there), "request")
