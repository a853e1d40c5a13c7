"""Editing requests: a row of the CSV is a request with one of its answers; what is of the request counts once."""

from typing import TYPE_CHECKING, Any

from vec_pipeline.commands.stats.columns import Column, moments

if TYPE_CHECKING:
    import pandas as pd

POST, OF_POST, TASK = "post_id", "post_", "task"
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


def is_of_request(name: str) -> bool:
    """Whether a column has one value for a request, however many answers it has."""
    return name.startswith(OF_POST) or name == TASK


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
