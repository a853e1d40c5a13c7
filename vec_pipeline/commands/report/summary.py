"""Counts what the summary page shows, row by row, and reads the seconds per stage from the log."""

import math
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from vec_pipeline.commands.report.rows import LINES, OBJECTS
from vec_pipeline.record import Values

MOST = 500  # categories and labels to choose from, keywords suggested while typing; the page plots the first of them
BIN = 0.05
FEWEST_BINS = 10  # a single bar would not look like a distribution
SCORES = ("text_confidence", "clip_score")
STAGE_SECONDS = re.compile(r"^  (\w[\w.]*) +([\d.]+) s, and ([\d.]+) s to load its model$", re.MULTILINE)


class Summary:
    """Distributions over all rows."""

    def __init__(self) -> None:
        self.rows = 0
        self.with_text = 0
        self.categories: Counter[str] = Counter()
        self.keywords: Counter[str] = Counter()
        self.flags: Counter[str] = Counter()
        self.objects: Counter[str] = Counter()  # by label
        self.with_object: Counter[str] = Counter()  # images, by label
        self.boxed = {"objects": 0, "people": 0, "text": 0}  # images with boxes of each kind
        self.errors: Counter[str] = Counter()  # by kind: "stage: ExceptionName"
        self.scores = {name: Counter[int]() for name in SCORES}

    def add(self, row: Values) -> None:
        self.rows += 1
        self.with_text += bool(row["image_text"])
        objects, lines = row.get(OBJECTS, ()), row.get(LINES, ())
        labels = Counter(label for label, *_ in objects if label)
        self.objects.update(labels)
        self.with_object.update(labels.keys())
        self.boxed["objects"] += bool(labels)
        self.boxed["people"] += any(isinstance(each[-1], list) for each in objects)
        self.boxed["text"] += bool(lines)
        if row["categories"]:
            self.categories[row["categories"]] += 1
        self.keywords.update(split_keywords(row["keywords"]))
        self.flags.update(row.get("flags", "").split())
        if row["error"]:
            self.errors[error_kind(row["error"])] += 1
        for name, bins in self.scores.items():
            if (score := row.get(name)) is not None:
                bins[bin_of(score)] += 1

    def as_dict(self) -> dict[str, Any]:
        """Pairs of a value and its number, most frequent first; scores as pairs of a bin's lower end and its number.

        objects: a label, the number of images with it, and that of the objects.
        """
        return {
            "rows": self.rows,
            "with_text": self.with_text,
            "categories": self.categories.most_common(MOST),
            "keywords": self.keywords.most_common(MOST),
            "boxed": self.boxed,
            "objects": [(label, images, self.objects[label]) for label, images in self.with_object.most_common(MOST)],
            "different": {
                "categories": len(self.categories),
                "keywords": len(self.keywords),
                "objects": len(self.objects),
            },
            "flags": self.flags.most_common(),
            "errors": self.errors.most_common(),
            "bin": BIN,
            "scores": {name: histogram(bins) for name, bins in self.scores.items() if bins},
        }


def split_keywords(text: str) -> list[str]:
    return [word for word in text.split(", ") if word]


def error_kind(error: str) -> str:
    return ": ".join(error.split(": ")[:2])


def bin_of(score: float) -> int:
    """The number of the bin that a score of at most 1 falls into; 1 itself belongs to the last one."""
    return min(math.floor(round(score / BIN, 6)), round(1 / BIN) - 1)  # 0.85 / 0.05 is a little under 17


def histogram(bins: Counter[int]) -> list[tuple[float, int]]:
    """Every bin from the lowest to the highest that is not empty, and FEWEST_BINS at least."""
    first = min(*bins, max(bins) + 1 - FEWEST_BINS)
    return [(round(index * BIN, 2), bins[index]) for index in range(first, max(bins) + 1)]


def stage_seconds(log: Path) -> list[tuple[str, float, float]]:
    """Sum each stage's seconds of work and of loading over the runs in a log; empty where there is no log."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    work: defaultdict[str, float] = defaultdict(float)
    loading: defaultdict[str, float] = defaultdict(float)
    for name, work_s, load_s in STAGE_SECONDS.findall(text):
        work[name] += float(work_s)
        loading[name] += float(load_s)
    return [(name, round(work[name], 1), round(loading[name], 1)) for name in work]
