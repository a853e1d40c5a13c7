"""Thresholds of single signals, and a logistic model of all of them, with figures by cross-validation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vec_pipeline.calibration import Term
from vec_pipeline.commands.calibrate.labels import Marked
from vec_pipeline.record import UserError
from vec_pipeline.stages.flag import THRESHOLDS

FOLDS, REPEATS = 5, 10
RESAMPLES = 500  # of the bootstrap
STRENGTH = 3.0  # `C` of scikit-learn: less makes p_wrong too cautious, more changes nothing (docs/trust.md)
LEAST_SHARE = 0.5  # of the rows, that must have a signal
MOST_BINS, ROWS_PER_BIN = 10, 10
NORMAL_95 = 1.96  # standard deviations to either side that hold 95 % of a normal distribution

Array = np.ndarray[Any, Any]


class Figure(NamedTuple):
    """A figure of rows that the model was not fitted to, and its 95 % interval by bootstrap."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f}, 95 % interval {self.low:.2f} to {self.high:.2f}"


class Threshold(NamedTuple):
    """A threshold of `flag`.

    caught, alarms: shares of the wrong and of the right rows beyond it.
    tells: whether the signal tells wrong rows from right ones.
    """

    option: str
    value: float
    caught: float
    alarms: float
    tells: bool


@dataclass(frozen=True)
class Model:
    """A model of p_wrong.

    out_of_fold: p_wrong of each row by models that were not fitted to it, the mean of several; float of shape (rows,).
    least_error: the expected calibration error that a perfectly calibrated model would show of so many rows.
    """

    intercept: float
    terms: Mapping[str, Term]
    out_of_fold: Array
    figures: Mapping[str, Figure]
    least_error: float

    @property
    def tells(self) -> bool:
        """Whether it tells wrong rows from right ones."""
        return self.figures["roc_auc"].low > 0.5


def fitted_thresholds(rows: Marked, false_alarms: float) -> list[Threshold]:
    """Each threshold that raises its flag for at most this share of the right rows, and else for as many as it can."""
    found = []
    for option, (name, is_above) in THRESHOLDS.items():
        known = ~np.isnan(rows.signals[name])
        values, is_wrong = rows.signals[name][known] * (-1 if is_above else 1), rows.is_wrong[known]
        if is_wrong.any() and not is_wrong.all():
            right = np.sort(values[~is_wrong])
            value = right[int(false_alarms * len(right))]  # so many lie below it, or fewer where some are equal
            caught, alarms = (float((values[each] < value).mean()) for each in (is_wrong, ~is_wrong))
            tells = bootstrapped(roc_auc, -values, is_wrong).low > 0.5
            found.append(Threshold(option, short(-value if is_above else value), caught, alarms, tells))
    return found


def fitted_model(features: Mapping[str, Array], is_wrong: Array) -> Model:
    """Fit the logistic model, and cross-validate it. Raises UserError where no signal differs between rows."""
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    intercept, terms = fit(features, is_wrong)
    if not terms:
        raise UserError(
            "the marked rows have no number that could tell right from wrong, such as text_confidence or clip_score: "
            "add embed_image or read_text to the configuration, then use `run --refresh`"
        )
    matrix = np.stack([features[name] for name in terms], axis=1)
    folds = [StratifiedKFold(FOLDS, shuffle=True, random_state=seed) for seed in range(REPEATS)]
    out_of_fold = np.mean(
        [cross_val_predict(logistic(), matrix, is_wrong, cv=each, method="predict_proba")[:, 1] for each in folds],
        axis=0,
    )
    measures = {"roc_auc": roc_auc, "brier": brier, "calibration_error": calibration_error}
    figures = {name: bootstrapped(measure, out_of_fold, is_wrong) for name, measure in measures.items()}
    return Model(intercept, terms, out_of_fold, figures, least_calibration_error(out_of_fold))


def fit(features: Mapping[str, Array], is_wrong: Array) -> tuple[float, dict[str, Term]]:
    """The intercept, and the term of each signal that can be used; no terms where there is none."""
    used = {name: values for name, values in features.items() if is_usable(values)}
    if not used:
        return 0.0, {}
    model = logistic().fit(np.stack(list(used.values()), axis=1), is_wrong)
    scaler, regression = model[0], model[-1]
    terms = zip(scaler.mean_, scaler.scale_, regression.coef_[0], strict=True)
    return short(regression.intercept_[0]), {
        name: Term(*map(short, term)) for name, term in zip(used, terms, strict=True)
    }


def short(value: float) -> float:
    """A number with as many digits as matter, for a file that people read."""
    return float(f"{value:.6g}")


def is_usable(values: Array) -> bool:
    """Whether enough rows have a signal, with more than one value."""
    known = values[~np.isnan(values)]
    return len(known) >= LEAST_SHARE * len(values) and len(np.unique(known)) > 1


def logistic() -> Any:
    """A regression of signals on one scale, of which a missing one counts as the mean."""
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    imputer = SimpleImputer(strategy="constant", fill_value=0.0, keep_empty_features=True)
    return make_pipeline(StandardScaler(), imputer, LogisticRegression(C=STRENGTH))


def bootstrapped(measure: Callable[[Array, Array], float], p_wrong: Array, is_wrong: Array) -> Figure:
    """A measure, and how it would differ with other rows."""
    generator = np.random.default_rng(0)
    found: list[float] = []
    while len(found) < RESAMPLES:
        rows = generator.integers(len(is_wrong), size=len(is_wrong))
        if 0 < is_wrong[rows].sum() < len(rows):
            found.append(measure(p_wrong[rows], is_wrong[rows]))
    value, spread = measure(p_wrong, is_wrong), NORMAL_95 * float(np.std(found))
    return Figure(value, max(0.0, value - spread), min(1.0, value + spread))


def roc_auc(p_wrong: Array, is_wrong: Array) -> float:
    """The probability that a wrong row has a higher p_wrong than a right one."""
    from scipy.stats import rankdata

    wrong, right = int(is_wrong.sum()), int((~is_wrong).sum())
    return float((rankdata(p_wrong)[is_wrong].sum() - wrong * (wrong + 1) / 2) / (wrong * right))


def brier(p_wrong: Array, is_wrong: Array) -> float:
    """The mean square of the difference from what was found."""
    return float(((p_wrong - is_wrong) ** 2).mean())


def calibration_error(p_wrong: Array, is_wrong: Array) -> float:
    """The expected calibration error: how far p_wrong and the share of wrong rows differ, in bins of equal size.

    Guo et al. 2017, arXiv:1706.04599, there with bins of equal width.
    """
    order = np.argsort(p_wrong, kind="stable")
    bins = np.array_split(order, number_of_bins(len(order)))
    return float(sum(abs(p_wrong[each].sum() - is_wrong[each].sum()) for each in bins) / len(order))


def number_of_bins(rows: int) -> int:
    return max(1, min(MOST_BINS, rows // ROWS_PER_BIN))


def least_calibration_error(p_wrong: Array) -> float:
    """The calibration error that chance alone makes where every p_wrong is right."""
    chance = np.random.default_rng(0).random((RESAMPLES, len(p_wrong)))
    return float(np.mean([calibration_error(p_wrong, each < p_wrong) for each in chance]))
