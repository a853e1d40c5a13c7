"""The file that `calibrate` writes and the stage `flag` reads: thresholds, and the model of `p_wrong`."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, Self

from vec_pipeline.record import Stage, Values, beside

VERSION = 1  # of the file
LEAST_DOUBT = 1e-4  # confidences are saved with four digits
HARMLESS = {"blank_image", "pages"}  # flags that say nothing of whether the description is right
DOUBT_COLUMNS = ("p_wrong", "flags", "text_confidence", "clip_score", "error")  # what `doubt` looks at


class Term(NamedTuple):
    """What a signal adds to the logit of p_wrong: weight * (value - mean) / scale; nothing where it is missing."""

    mean: float
    scale: float
    weight: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was fitted to rows that people have marked.

    thresholds: options of `flag`.
    intercept, terms: of the logistic model of p_wrong; the terms by their signals.
    made: when, ISO 8601.
    labels: the number of rows marked `right` and `wrong`.
    figures: cross-validated ones, each with its 95 % interval: [value, low, high].
    stages: hashes of the settings of the stages that the signals come from.
    """

    thresholds: Mapping[str, float]
    intercept: float
    terms: Mapping[str, Term]
    made: str = ""
    labels: Mapping[str, int] = field(default_factory=dict)
    figures: Mapping[str, list[float]] = field(default_factory=dict)
    stages: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file. Raises ValueError where it is missing or damaged, which says what to do."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("version") != VERSION:
                raise ValueError
            content["terms"] = {name: Term(**term) for name, term in content["terms"].items()}
            found = cls(**content)
            numbers = [*found.thresholds.values(), found.intercept, *(each for t in found.terms.values() for each in t)]
            if not all(map(math.isfinite, numbers)) or any(term.scale <= 0 for term in found.terms.values()):
                raise ValueError
        except FileNotFoundError:
            raise ValueError(f"{path} does not exist: make it with `vec-pipeline calibrate`") from None
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror}): name a file that calibrate wrote") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ValueError(
                f"{path} is damaged, or not made by calibrate: run `vec-pipeline calibrate` again"
            ) from None
        return found

    def text(self) -> str:
        """The content of the file."""
        terms = {name: term._asdict() for name, term in self.terms.items()}
        return json.dumps({"version": VERSION, **asdict(self), "terms": terms}, indent=2) + "\n"

    def identity(self) -> str:
        """What changes when the model of p_wrong does."""
        model = json.dumps([self.intercept, sorted(self.terms.items())])
        return hashlib.sha256(model.encode()).hexdigest()[:16]

    def p_wrong(self, signals: Mapping[str, float]) -> float | None:
        """The probability that a row is wrong, with four digits; None where it has none of the signals.

        signals: by name, NaN for one that is missing.
        """
        known = {name: value for name, value in features(signals).items() if name in self.terms}
        if not known:
            return None
        terms = [(self.terms[name], value) for name, value in known.items()]
        logit = self.intercept + sum(term.weight * (value - term.mean) / term.scale for term, value in terms)
        return round(sigmoid(logit), 4)

    def other_stages(self, recorded: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Names of the stages whose settings are others than when it was fitted.

        recorded: the settings of a CSV's stages, by name.
        """
        now = hashes_of(recorded, self.stages)
        return [name for name, before in self.stages.items() if now.get(name) != before]


def notes(stages: Iterable[Stage], recorded: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is to be said of stages whose calibration was fitted to rows of other models than a CSV has.

    recorded: the settings of the CSV's stages, by name.
    """
    fitted = {stage.name: getattr(stage, "fitted", None) for stage in stages}
    others = {name: found.other_stages(recorded) for name, found in fitted.items() if found}
    return [
        f"{name}.calibration was fitted to rows of other settings of {', '.join(each)}: mark rows of this CSV, then "
        "run `vec-pipeline calibrate`"
        for name, each in others.items()
        if each
    ]


def calibration_path(csv_path: Path) -> Path:
    return beside(csv_path, "calibration.json")


def hashes_of(recorded: Mapping[str, Mapping[str, Any]], names: Iterable[str]) -> dict[str, str]:
    """Hashes of the settings of some stages, by name; those that are not there are left out."""
    return {
        name: hashlib.sha256(json.dumps(recorded[name], default=str).encode()).hexdigest()[:16]
        for name in names
        if name in recorded
    }


def features(signals: Mapping[str, float]) -> dict[str, float]:
    """What the model of p_wrong is given: the signals that are not NaN, a confidence as its logit.

    0.99 and 0.999 differ as much as 0.9 and 0.99, as far as errors are concerned.
    """
    found = {name: value for name, value in signals.items() if not math.isnan(value)}
    if "text_confidence" in found:
        confidence = min(max(found["text_confidence"], LEAST_DOUBT), 1 - LEAST_DOUBT)
        found["text_confidence"] = math.log(confidence / (1 - confidence))
    return found


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-max(-700.0, min(700.0, logit))))


def doubt(row: Values) -> float:
    """How much a row is to be doubted, from 0 to 1, so that the most doubtful can be looked at first.

    It is p_wrong where the row has it. Otherwise a row with an error comes first, then one with more flags, then one of
    a lower confidence, or without it of a lower clip_score.

    row: its values as far as they are there: DOUBT_COLUMNS.
    """
    p_wrong = number(row.get("p_wrong"))
    if not math.isnan(p_wrong):
        return p_wrong
    if row.get("error"):
        return 1.0
    flags = len(set(str(row.get("flags") or "").split()) - HARMLESS)
    confidence, score = number(row.get("text_confidence")), number(row.get("clip_score"))
    sure = score / 2 + 0.5 if math.isnan(confidence) else confidence  # a cosine is from -1 on
    unsure = 0.5 if math.isnan(sure) else 1 - min(max(sure, 0.0), 1.0)
    return (flags + unsure) / (flags + unsure + 1)


def number(value: object) -> float:
    """A value as a float; NaN for what is no number."""
    return float(value) if isinstance(value, Real) else math.nan
