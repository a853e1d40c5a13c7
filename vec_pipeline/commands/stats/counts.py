"""Counts of what a CSV holds, as a dict and as text for a terminal."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from vec_pipeline.annotations import CsvReader
from vec_pipeline.commands import blocks_with_bar
from vec_pipeline.terminal import duration, plural

COLUMNS = ("text", "description", "categories", "keywords", "image_text", "timestamp", "error", "flags")
TOP_KEYWORDS = 20
DIGITS = 6  # of a number, so that not every row has a value of its own
PAUSE_S = 3600  # after longer without a row, the worker was not running
INTERVALS_S = [seconds * unit for unit in (1, 60, 3600, 86400) for seconds in (1, 2, 5, 10, 20, 30)]
MOST_INTERVALS = 20
MOST_LINES, WIDTH = 20, 34  # of a list, and of its first column


@dataclass
class Counts:
    """What is counted row by row. Memory grows with the number of different values, not of rows.

    numbers: the columns of numbers.
    """

    numbers: Sequence[str] = ()
    rows: int = 0
    with_image_text: int = 0
    errors: Counter[str] = field(default_factory=Counter)  # by kind: "stage: ExceptionName"
    categories: Counter[str] = field(default_factory=Counter)
    keywords: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    measures: dict[str, Counter[float]] = field(default_factory=dict)  # values of each, by name
    seconds: Counter[datetime] = field(default_factory=Counter)  # rows by the moment they were finished

    def add(self, row: Mapping[str, Any]) -> None:
        self.rows += 1
        if row["timestamp"]:
            self.seconds[row["timestamp"]] += 1
        self.flags.update((row["flags"] or "").split())
        if row["error"]:
            self.errors[": ".join(row["error"].split(": ")[:2])] += 1
            return
        self.with_image_text += bool(row["image_text"])
        self.categories[row["categories"]] += 1
        self.keywords.update(keyword for keyword in row["keywords"].split(", ") if keyword)
        self._measure("words in text", len(row["text"].split()))
        self._measure("words in description", len(row["description"].split()))
        for name in self.numbers:
            if row[name] is not None:
                self._measure(name, float(f"{row[name]:.{DIGITS}g}"))

    def _measure(self, name: str, value: float) -> None:
        self.measures.setdefault(name, Counter())[value] += 1


def counted(reader: CsvReader) -> Counts:
    """Count all rows."""
    counts = Counts(reader.names_of("number"))
    for block in blocks_with_bar(reader, (*COLUMNS, *counts.numbers)):
        for row in block.table.to_pylist():
            counts.add(row)
    return counts


def statistics(counts: Counts) -> dict[str, Any]:
    """What `--json` prints. Shares are of the rows without error."""
    annotated = counts.rows - counts.errors.total()
    speeds, mean_speed = images_per_second(counts.seconds)
    return {
        "rows": counts.rows,
        "rows_with_error": counts.errors.total(),
        "errors": dict(counts.errors.most_common()),
        "categories": dict(counts.categories.most_common()),
        "keywords": dict(counts.keywords.most_common(TOP_KEYWORDS)),
        "flags": dict(counts.flags.most_common()),
        "share_with_image_text": counts.with_image_text / annotated if annotated else None,
        "measures": {name: distribution(values) for name, values in counts.measures.items()},
        "first_timestamp": min(counts.seconds).isoformat() if counts.seconds else None,
        "last_timestamp": max(counts.seconds).isoformat() if counts.seconds else None,
        "images_per_second": mean_speed,
        "images_per_second_over_time": speeds,
    }


def distribution(values: Counter[float]) -> dict[str, float]:
    """Mean, extremes and quantiles of counted values."""
    total = values.total()
    ordered = sorted(values.items())

    def quantile(share: float) -> float:
        left = share * (total - 1)
        for value, number in ordered:
            left -= number
            if left < 0:
                return value
        return ordered[-1][0]

    mean = sum(value * number for value, number in ordered) / total
    quantiles = {"p10": quantile(0.1), "median": quantile(0.5), "p90": quantile(0.9)}
    return {"rows": total, "mean": round(mean, 4), "min": ordered[0][0], **quantiles, "max": ordered[-1][0]}


def images_per_second(rows_at: Counter[datetime]) -> tuple[list[dict[str, Any]], float | None]:
    """Speed in equal intervals of time, and overall; None unless two different times are known.

    A worker saves rows in bursts, so the rows of a burst are spread over the time since the one before. Time in which
    no worker ran (PAUSE_S) is left out, and so is the burst after it, whose beginning is not known.
    """
    moments = sorted(rows_at)
    span_s = (moments[-1] - moments[0]).total_seconds() if moments else 0
    interval_s = next((size for size in INTERVALS_S if span_s <= MOST_INTERVALS * size), INTERVALS_S[-1])
    images: defaultdict[int, float] = defaultdict(float)
    seconds: defaultdict[int, float] = defaultdict(float)
    for before, now in pairwise(moments):
        start_s, end_s = (int((moment - moments[0]).total_seconds()) for moment in (before, now))
        if end_s - start_s > PAUSE_S:
            continue
        for interval in range(start_s // interval_s, -(-end_s // interval_s)):
            spent_s = min(end_s, (interval + 1) * interval_s) - max(start_s, interval * interval_s)
            seconds[interval] += spent_s
            images[interval] += rows_at[now] * spent_s / (end_s - start_s)
    speeds = [
        {
            "from": (moments[0] + timedelta(seconds=interval * interval_s)).isoformat(),
            "seconds": seconds[interval],
            "images_per_second": round(images[interval] / seconds[interval], 3),
        }
        for interval in sorted(seconds)
    ]
    return speeds, round(sum(images.values()) / sum(seconds.values()), 3) if seconds else None


def report(found: Mapping[str, Any]) -> str:
    """What `statistics` found as text for a terminal."""
    rows, failed = found["rows"], found["rows_with_error"]
    annotated = rows - failed
    lines = [f"{plural(rows, 'row')}, {failed:,} with an error"]
    if annotated:
        lines[0] += f", {found['share_with_image_text']:.1%} of the rest with text on the image"
    for title, total in (("errors", failed), ("categories", annotated), ("top keywords", annotated), ("flags", rows)):
        lines += bars(title, found[title.removeprefix("top ")], total)
    if found["measures"]:
        names = ("mean", "min", "p10", "median", "p90", "max")
        lines += ["", f"{'measures':<{WIDTH}}" + "".join(f"{name:>9}" for name in names)]
        for name, values in found["measures"].items():
            lines.append(f"  {name:<{WIDTH - 2}}" + "".join(f"{values[key]:>9.4g}" for key in names))
    return "\n".join([*lines, *speed_lines(found)])


def bars(title: str, counts: Mapping[str, int], total: int) -> list[str]:
    """The most frequent values of a column, with their share of `total`; no lines where there are none."""
    if not counts:
        return []
    lines = ["", f"{title:<{WIDTH}}{'rows':>9}{'share':>9}"]
    for name, number in list(counts.items())[:MOST_LINES]:
        label = " ".join(name.split()) or "(none)"
        label = label if len(label) <= WIDTH - 3 else label[: WIDTH - 6] + "..."
        share = number / total
        lines.append(f"  {label:<{WIDTH - 2}}{number:>9,}{share:>9.1%}  {'#' * round(20 * share)}".rstrip())
    if len(counts) > MOST_LINES:
        lines.append(f"  and {plural(len(counts) - MOST_LINES, 'other')}")
    return lines


def speed_lines(found: Mapping[str, Any]) -> list[str]:
    speeds = found["images_per_second_over_time"]
    if not speeds:
        return ["", "speed: unknown, since all rows were saved at the same time"] if found["rows"] else []
    worked = duration(sum(speed["seconds"] for speed in speeds))
    highest = max(speed["images_per_second"] for speed in speeds)
    lines = ["", f"speed: {found['images_per_second']:.2f} images/s over {worked} of work"]
    for speed in speeds:
        bar = "#" * round(20 * speed["images_per_second"] / highest)
        lines.append(f"  {speed['from'].replace('T', ' '):<{WIDTH - 2}}{speed['images_per_second']:>9.2f}{'':11}{bar}")
    return lines
