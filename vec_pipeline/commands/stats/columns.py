"""What kind of values a column holds, found by looking at them: numbers, times, a few texts, long texts, JSON."""

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["number", "time", "few", "words", "list", "json", "names", "empty"]

SEPARATORS = {"keywords": ", ", "flags": " "}  # columns of several values in a text
MOST_VALUES = 30  # of a column with few values, as bars
MOST_NUMBERS = 12  # of whole numbers that are bars, not a histogram
FEWEST_WORDS = 4  # on average, of a long text
LOOKED_AT = 200  # texts that tell whether a column has times or long texts
MOST_COUNTED = 2**53  # of a JSON number that counts its key
TIME = re.compile(r"[12]\d{3}([-:])\d\d\1\d\d([ T]\d\d:\d\d(:\d\d)?.*)?")  # ISO 8601, and as EXIF has it
EXIF_DATE = re.compile(r"^(\d{4}):(\d\d):(\d\d)")
TIME_NAME = re.compile(r"(^|_)(time|utc|created|date)$")
YEARS = (1, 9998)  # the ends of periods are drawn too
EPOCH_S = (1e9, 4e9)  # seconds since 1970 of 2001 to 2096
OF_JSON = ("label", "text", "name")  # what an object in a list is counted by


@dataclass(frozen=True)
class Column:
    """A column's values, without those that are missing.

    values: numbers, datetimes, texts or what JSON holds.
    labels: the row of each, as a person knows it.
    missing: how many rows have none.
    of: what the rows are.
    """

    name: str
    kind: Kind
    values: Sequence[Any]
    labels: Sequence[str]
    missing: int
    of: str = "row"

    @property
    def rows(self) -> int:
        return len(self.values) + self.missing


def column_of(name: str, cells: "pd.Series[Any]", labels: Sequence[str], of: str = "row") -> Column:
    """Read a column of a table, in which JSON may be text yet. What is empty or not finite is missing."""
    known = zip(cells.notna().tolist(), cells.tolist(), labels, strict=True)
    found = [(cell, label) for is_there, cell, label in known if is_there and not is_missing(cell)]
    values = [cell for cell, _ in found]
    kind = kind_of(name, values)
    if kind == "json" and all(isinstance(value, str) for value in values):  # others were parsed before
        values = list(map(json.loads, values))
    return Column(name, kind, values, [label for _, label in found], len(cells) - len(found), of)


def is_missing(cell: Any) -> bool:
    return cell == "" if isinstance(cell, str) else isinstance(cell, float) and not math.isfinite(cell)


def kind_of(name: str, values: Sequence[Any]) -> Kind:
    if not values:
        return "empty"
    if all(isinstance(value, datetime) for value in values):
        return "time"
    if all(is_number(value) for value in values):
        is_epoch = TIME_NAME.search(name) and EPOCH_S[0] < min(values) <= max(values) < EPOCH_S[1]
        return "time" if is_epoch else "number"
    if not all(isinstance(value, str) for value in values):
        return "json"
    if name == "error":
        return "few"  # kinds of errors, however many messages
    if all(map(is_json, values)):
        return "json"
    return "list" if name in SEPARATORS else kind_of_text(values)


def kind_of_text(values: Sequence[str]) -> Kind:
    looked_at = values[:LOOKED_AT]
    if sum(bool(TIME.fullmatch(value)) for value in looked_at) > 0.8 * len(looked_at):
        return "time"
    different = len(set(values))
    is_long = sum(len(value.split()) for value in looked_at) >= FEWEST_WORDS * len(looked_at)
    if is_long and different > len(values) / 2 and len(values) > 1:
        return "words"
    return "few" if different <= MOST_VALUES and (different < len(values) or different == 1) else "names"


def is_number(value: Any) -> bool:
    """Whether a value is a number that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_json(value: str) -> bool:
    if not value.startswith(("[", "{")) and value not in ("true", "false"):
        return False
    try:
        json.loads(value)
    except (ValueError, RecursionError):
        return False
    return True


def moments(values: Sequence[Any]) -> "pd.Series[Any]":
    """Times in UTC, in the order of the values: ISO 8601, as EXIF has them, datetimes, or seconds since 1970.

    NaT for what no calendar has.
    """
    import pandas as pd

    if values and all(isinstance(value, int | float) for value in values):
        return in_calendar(pd.to_datetime(pd.Series(values), unit="s", errors="coerce"))
    texts = [EXIF_DATE.sub(r"\1-\2-\3", str(value)) for value in values]
    return in_calendar(
        pd.to_datetime(pd.Series(texts), format="ISO8601", errors="coerce", utc=True).dt.tz_localize(None)
    )


def in_calendar(times: "pd.Series[Any]") -> "pd.Series[Any]":
    """Times of years that Python and matplotlib have, and NaT for others, which pandas reads too."""
    return times.where(times.dt.year.between(YEARS[0], YEARS[1]))


def counts_of(column: Column) -> Counter[str]:
    """How often each value occurs: of a text with several its parts, of JSON what is in the lists and objects."""
    if column.kind == "list":
        return Counter(part for value in column.values for part in value.split(SEPARATORS[column.name]) if part)
    if column.name == "error":
        return Counter(": ".join(value.split(": ")[:2]) for value in column.values)
    if column.kind == "json":
        return sum_of(map(counts_of_json, column.values))
    return Counter(shown(value) for value in column.values)


def sum_of(counters: Iterable[Counter[str]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for counter in counters:
        found.update(counter)
    return found


def counts_of_json(value: Any) -> Counter[str]:
    """Of a list its texts, or what names its objects; of an object its keys, by their numbers where these can count."""
    if isinstance(value, dict):
        return Counter({key: number if is_count(number) else 1 for key, number in value.items()})
    if not isinstance(value, list):
        return Counter([json.dumps(value)])
    named = [
        next((each[key] for key in OF_JSON if each.get(key)), "") if isinstance(each, dict) else each for each in value
    ]
    return Counter(each for each in named if isinstance(each, str) and each)


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_COUNTED


def shown(value: Any) -> str:
    """A value as a person reads it: 3.0 is 3."""
    return f"{value:,.6g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
