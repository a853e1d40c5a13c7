"""The figures of a table of annotations: what each shows, in words, and its SVG."""

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vec_pipeline.commands.stats import drawing
from vec_pipeline.commands.stats.columns import MOST_NUMBERS, Column, column_of, counts_of, moments, shown
from vec_pipeline.commands.stats.requests import (
    ANSWER,
    POST,
    TASK,
    column_of_requests,
    hours_until_answered,
    is_of_request,
    made_of_requests,
    one_each,
    rows_of_requests,
)
from vec_pipeline.commands.stats.words import words_and_pairs
from vec_pipeline.settings import recorded_settings
from vec_pipeline.terminal import plural

if TYPE_CHECKING:
    import pandas as pd

Array = np.ndarray[Any, Any]

UNUSED = ("llama_extracted",)  # other columns have what it holds
MOST_BARS = 20
PERIODS = {"s": "second", "min": "minute", "h": "hour", "D": "day", "W": "week", "M": "month", "Y": "year"}
MOST_PERIODS = 60
LOG_FROM = (10, 100)  # times the median that the highest hundredth, or the highest, is above on a logarithmic axis
FAR = 3.0  # times the middle half's width beyond it
FAR_DECADES = 1.0  # beyond a middle half that is one value
FAR_NAMED = 3
LARGEST, SMALLEST = 1e100, 1e-100  # sizes of numbers that can be drawn: what is smaller is 0
SPACINGS = 4 * drawing.BINS  # of floats, that a histogram needs at least
KEPT = "; of the answers in the CSV: its source may have kept only the best"


@dataclass(frozen=True)
class Figure:
    """One picture of a page.

    name: of its file, without the suffix. title: for people.
    says: what it shows, with its numbers, for those who do not see it.
    note: how many rows it is of, how many have no value, and which lie far from the others.
    """

    name: str
    title: str
    says: str
    note: str
    svg: bytes

    def _repr_svg_(self) -> str:  # what notebooks show
        return self.svg.decode()


def all_figures(table: "pd.DataFrame", csv: str | Path = "") -> Iterator[Figure]:
    """The figures that `stats --html` makes, of a table that `load_annotations` has read without vectors.

    csv: the file that it was read from. Without it, what stages made of an editing request counts for each answer.
    Raises UserError where the settings beside it are damaged.
    """
    yield from figures_of_requests(table)
    for column in columns_of(table, made_of_requests(recorded_settings(Path(csv))) if csv else ()):
        yield from figures_of(column)


def columns_of(table: "pd.DataFrame", made: Collection[str] = ()) -> Iterator[Column]:
    """The columns of a table as `load_annotations` makes it, vectors left out, with the kinds of their values.

    made: those that stages made of editing requests. What belongs to a request counts once for it, not for each of its
        answers.
    """
    requests = one_each(table)
    for name in table.columns:
        if name in UNUSED or name.endswith("_vector"):
            continue
        rows, of = (requests, "request") if len(requests) and is_of_request(name, made) else (table, "row")
        labels = rows[POST].map(str).tolist() if of == "request" else labels_of(rows)
        yield column_of(name, rows[name], labels, of)


def labels_of(rows: "pd.DataFrame") -> list[str]:
    """What a person knows each row by: an answer by its id, others by the name of their file."""
    names = rows["image_path"].map(os.path.basename)
    if ANSWER not in rows.columns:
        return names.tolist()
    answers = rows[ANSWER].astype(object)
    known = answers.where(answers.notna(), "").map(str)
    return known.where(known != "", names).tolist()


def figures_of(column: Column) -> Iterator[Figure]:
    """The figures that fit the values of a column; none where there are fewer than two values to tell apart."""
    if column.kind == "number":
        yield from number_figures(column)
    elif column.kind == "time":
        yield from time_figures(column)
    elif column.kind == "words":
        yield from text_figures(column)
    elif column.kind in ("few", "list", "json"):
        yield from value_figures(column)


def value_figures(column: Column) -> Iterator[Figure]:
    """Bars of the most frequent values; of JSON lists that name nothing, the number of their entries."""
    counts = counts_of(column)
    if counts:
        yield bars_figure(column.name, column.name, counts, column)
    elif column.kind == "json":
        lengths = [len(value) for value in column.values if isinstance(value, list)]
        yield from number_figures(replace(column, name=f"{column.name}: entries", values=lengths))


def bars_figure(name: str, title: str, counts: Counter[str], column: Column) -> Figure:
    most = dict(counts.most_common(MOST_BARS))
    says = ", ".join(f"{drawing.label(value) or '(none)'} {number:,}" for value, number in most.items())
    others = f"; {plural(len(counts) - len(most), 'other value')} not shown" if len(counts) > len(most) else ""
    return Figure(name, title, says, missing_in(column) + others, drawing.bars(most))


def number_figures(column: Column) -> Iterator[Figure]:
    """A histogram, or bars where there are few whole numbers, none of them far from the others; none where all are
    equal, but for their last digits.
    """
    everything = np.array(column.values, float)
    is_drawn = np.abs(everything) <= LARGEST
    values = np.where(np.abs(everything) < SMALLEST, 0, everything)[is_drawn]
    if not len(values) or np.ptp(values) <= SPACINGS * np.spacing(np.abs(values).max()):
        return
    is_log = is_skewed(values)
    far = far_in(values, [each for each, is_there in zip(column.labels, is_drawn, strict=True) if is_there], is_log)
    note = missing_in(column) + far
    if left_out := len(everything) - len(values):
        note += f"; {left_out:,} too large to be drawn"
    says = in_words(values)
    svg = None
    if are_few_and_whole(values):
        counts = Counter(f"{value:,.15g}" for value in np.sort(values).tolist())
        says += "; " + ", ".join(f"{value}: {plural(number, column.of)}" for value, number in counts.items())
        svg = None if is_log or far else drawing.bars(counts)
    svg = svg or drawing.histogram(values, column.name, column.of, is_log=is_log)
    yield Figure(column.name, column.name, says, note, svg)


def are_few_and_whole(values: Array) -> bool:
    different = np.unique(values)
    return len(different) <= MOST_NUMBERS and bool((different == np.rint(different)).all())


def in_words(values: Array) -> str:
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    lowest, highest = shown(float(values.min())), shown(float(values.max()))
    return f"median {shown(median)}, the middle half from {shown(low)} to {shown(high)}, all from {lowest} to {highest}"


def is_skewed(values: Array) -> bool:
    """Whether a few values are so much larger than the others that these need a logarithmic axis.

    Fractions below 0 and above it come as near to 0 as they like, where such an axis has a gap.
    """
    sizes = np.abs(values)
    if not sizes.any() or (values.min() < 0 and (values != np.rint(values)).any()):
        return False
    usual = np.median(sizes[sizes > 0])
    return bool(np.quantile(sizes, 0.99) > LOG_FROM[0] * usual or sizes.max() > LOG_FROM[1] * usual)


def far_in(values: Array, labels: Sequence[str], is_log: bool) -> str:
    """The values that lie far beyond the middle half, on the axis that is drawn: how many, and the farthest by name."""
    placed = in_decades(values, drawing.linear_below(values)) if is_log else values
    low, middle, high = np.quantile(placed, (0.25, 0.5, 0.75))
    reach = FAR * (high - low)
    if not reach:  # without a width to measure by, sizes tell
        placed = in_decades(values, min(1.0, drawing.linear_below(values)))
        low, middle, high = np.quantile(placed, (0.25, 0.5, 0.75))
        reach = FAR_DECADES
    is_far = (placed < low - reach) | (placed > high + reach)
    if not is_far.any():
        return ""
    farthest = np.argsort(-np.abs(placed - middle), kind="stable")[: min(FAR_NAMED, is_far.sum())]
    named = ", ".join(f"{shown(float(values[each]))} ({drawing.label(labels[each])})" for each in farthest)
    return f"; {is_far.sum():,} far from the others: {named}{', ...' if is_far.sum() > FAR_NAMED else ''}"


def in_decades(values: Array, smallest: float) -> Array:
    """Places on a logarithmic axis whose 0 is at a size, and at all sizes below it."""
    return np.sign(values) * np.log10(np.maximum(np.abs(values) / smallest, 1))


def missing_in(column: Column) -> str:
    of = f"{plural(column.rows, column.of)}, "
    return of + (f"{column.missing:,} without a value" if column.missing else "all with a value")


def time_figures(column: Column) -> Iterator[Figure]:
    """Rows over time, in periods of such a length that there are at most MOST_PERIODS."""
    import pandas as pd

    times = moments(column.values).dropna()
    unreadable = len(column.values) - len(times)
    if times.nunique() < 2:
        return
    freq = next(freq for freq in PERIODS if spans_few(times, freq))
    periods, unit = times.dt.to_period(freq), PERIODS[freq]
    index = pd.period_range(periods.min(), periods.max(), freq=freq)
    numbers = periods.value_counts().reindex(index, fill_value=0)
    most = f"most in the {unit} {numbers.idxmax()}: {numbers.max():,}"
    says = f"from {times.min():%Y-%m-%d %H:%M} to {times.max():%Y-%m-%d %H:%M}, {most}"
    note = missing_in(column) + (f"; {unreadable:,} that are no dates" if unreadable else "")
    svg = drawing.over_time(numbers, column.name, column.of, unit)
    yield Figure(column.name, f"{column.name}, per {unit}", says, note, svg)


def spans_few(times: "pd.Series[Any]", freq: str) -> bool:
    """Whether times lie within MOST_PERIODS; of years, always."""
    first, last = times.min().to_period(freq), times.max().to_period(freq)
    return freq == "Y" or bool((last - first).n < MOST_PERIODS)


def text_figures(column: Column) -> Iterator[Figure]:
    """How long the texts are, and which words and pairs of words occur most."""
    lengths = [len(text.split()) for text in column.values]
    yield from number_figures(replace(column, name=f"{column.name}: words in each", values=lengths))
    for what, counts in zip(("words", "pairs of words"), words_and_pairs(column.values), strict=True):
        if counts and counts.most_common(1)[0][1] > 1:
            title = f"{column.name}: frequent {what}"
            yield bars_figure(title, title, counts, column)


def groups_figure(name: str, groups: Mapping[str, Sequence[float]], of: str) -> Figure:
    """A box per group of numbers.

    of: what the numbers are.
    """
    medians = ", ".join(f"{drawing.label(group)} {shown(float(np.median(each)))}" for group, each in groups.items())
    everything = np.concatenate([np.array(each, float) for each in groups.values()])
    svg = drawing.boxes(groups, of, is_log=is_skewed(everything))
    return Figure(name, name, f"medians: {medians}", plural(len(everything), "request"), svg)


def figures_of_requests(table: "pd.DataFrame") -> Iterator[Figure]:
    """Of editing requests: answers to each, hours until the first one, scores by task; each where its columns are."""
    from pandas.api.types import is_numeric_dtype

    rows, requests = rows_of_requests(table), one_each(table)
    names = set(table.columns) if len(rows) else set()
    if ANSWER in names:
        answers = rows.groupby(POST, sort=False)[ANSWER].nunique()
        yield from of_kept_answers(column_of_requests("answers per request", answers))
    if {"post_time", "answer_time"} <= names:
        yield from of_kept_answers(column_of_requests("hours until the first answer", hours_until_answered(rows)))
    if {TASK, "post_score"} <= names and is_numeric_dtype(requests["post_score"]):
        is_drawn = requests["post_score"].abs() <= LARGEST
        scores = requests[is_drawn & (requests[TASK] != "")].groupby(TASK)["post_score"]
        groups = sorted(((str(task), each.tolist()) for task, each in scores), key=lambda pair: -len(pair[1]))
        if len(groups) > 1:
            yield groups_figure("post_score by task", dict(groups[:MOST_BARS]), "post_score")


def of_kept_answers(column: Column) -> Iterator[Figure]:
    """Figures of what is counted from answers, of which the CSV has those that its source kept."""
    for figure in number_figures(column):
        yield replace(figure, note=figure.note + KEPT)
