"""The reliability diagram and the ROC curve of p_wrong, of rows that it was not fitted to, as SVG files."""

from typing import Any

import numpy as np

from vec_pipeline.commands.calibrate.fitting import NORMAL_95, number_of_bins, roc_auc
from vec_pipeline.commands.stats.drawing import BAR, MUTED, drawn

HEIGHT_IN = 4.6

Array = np.ndarray[Any, Any]


def reliability(p_wrong: Array, is_wrong: Array) -> bytes:
    """The share of wrong rows against p_wrong, over bins of equal size, each with the 95 % interval of its share."""
    bins = np.array_split(np.argsort(p_wrong, kind="stable"), number_of_bins(len(p_wrong)))
    said = np.array([p_wrong[each].mean() for each in bins])
    found = np.array([is_wrong[each].mean() for each in bins])
    low, high = wilson(found, np.array([len(each) for each in bins]))

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1)
        axes.vlines(said, low, high, color=BAR, linewidth=1.5)
        axes.plot(said, found, color=BAR, marker="o", linestyle="none")
        finish(axes, f"p_wrong, mean of about {len(p_wrong) // len(bins)} rows", "share of wrong rows")

    return drawn(draw, HEIGHT_IN)


def roc(p_wrong: Array, is_wrong: Array) -> bytes:
    """The wrong rows that are found against the right ones that are flagged, for every threshold of p_wrong."""
    from sklearn.metrics import roc_curve

    flagged, caught, _ = roc_curve(is_wrong, p_wrong)

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1)
        axes.step(flagged, caught, where="post", color=BAR, linewidth=2)
        finish(axes, f"right rows flagged (area under the curve {roc_auc(p_wrong, is_wrong):.2f})", "wrong rows caught")

    return drawn(draw, HEIGHT_IN)


def finish(axes: Any, x: str, y: str) -> None:
    """Name the axes, of shares from 0 to 1."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_aspect("equal")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)


def wilson(shares: Array, numbers: Array) -> tuple[Array, Array]:
    """The 95 % intervals of shares of so many (Wilson 1927)."""
    spread = NORMAL_95**2 / numbers
    middle = (shares + spread / 2) / (1 + spread)
    half = NORMAL_95 * np.sqrt(shares * (1 - shares) / numbers + spread / (4 * numbers)) / (1 + spread)
    return middle - half, middle + half
