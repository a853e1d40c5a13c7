"""Figures as SVG files by matplotlib: the same values make the same bytes, and dark colours come by themselves."""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vec_pipeline.record import UserError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

WIDTH_IN, HEIGHT_IN = 6.4, 3.0
BAR_IN, BOX_IN, AXIS_IN = 0.26, 0.4, 0.7  # height of a horizontal bar, of a box, and of an axis with its name
LABEL_CHARACTERS = 36
BINS = 30
BAR, INK, MUTED, LINE = "#2a56c6", "#1a1d23", "#59606e", "#dcdfe5"  # as in the gallery
DARK = {BAR: "#8fb1ff", INK: "#e9ebf0", MUTED: "#a4abb9", LINE: "#343945"}
STYLE = {
    "svg.fonttype": "none",  # text stays text, for readers and searches
    "svg.hashsalt": "vec_pipeline",
    "text.parse_math": False,  # a $ in a text is a $
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]+")  # what XML cannot hold
TINY = 1e-12
MOST_DIGITS = 1e9  # from here on a number has an exponent


def require(what: str = "stats --html") -> None:
    """Raise UserError where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError(f"{what} needs matplotlib: pip install 'vec-pipeline[figures]'") from None


def drawn(draw: Callable[[Any], None], height_in: float = HEIGHT_IN) -> bytes:
    """The SVG of what a function draws."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    file = io.BytesIO()
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # the font of the viewer has it
        figure = Figure((WIDTH_IN, height_in), layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return with_dark_colours(file.getvalue())


def with_dark_colours(svg: bytes) -> bytes:
    """Let a viewer in dark mode see light lines: style sheets go before the attributes where they are important."""
    rules = "".join(
        f'[style*="{part}: {light}"] {{ {part}: {dark} !important }} '
        for light, dark in DARK.items()
        for part in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark) {{ {rules}}}</style>\n"
    head, mark, rest = svg.partition(b"<defs>")
    return head + style.encode() + mark + rest


def label(text: str, most: int = LABEL_CHARACTERS) -> str:
    """A text on one line, of a bounded length, that an SVG can hold."""
    line = " ".join(UNPRINTABLE.sub(" ", text).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def bars(counts: Mapping[str, float]) -> bytes:
    """Horizontal bars, in the order of the mapping from above, each with its number."""

    def draw(axes: Any) -> None:
        rows = range(len(counts))
        found = axes.barh(rows, list(counts.values()), color=BAR)
        axes.bar_label(found, [f"{number:,.6g}" for number in counts.values()], padding=3, color=MUTED)
        axes.set_yticks(rows, [label(name) or "(none)" for name in counts], color=INK)
        axes.invert_yaxis()
        axes.margins(x=0.12, y=0.3 / len(counts))
        axes.grid(visible=False)
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)

    return drawn(draw, BAR_IN * (len(counts) + 1))


def histogram(values: "np.ndarray[Any, Any]", name: str, of: str, *, is_log: bool) -> bytes:
    """How many values lie within each of about 30 ranges; on a logarithmic axis these are equal ratios.

    of: what has a value each, such as row.
    """
    import numpy as np

    edges = log_edges(values) if is_log else np.histogram_bin_edges(values, BINS)
    if (values == np.rint(values)).all():
        edges = whole_edges(values, edges, is_log=is_log)

    def draw(axes: Any) -> None:
        axes.hist(values, edges, color=BAR, edgecolor="none", rwidth=0.94)
        name_axes(axes, name, f"{of}s")
        if is_log:
            set_log(axes, linear_below(values), values.min())

    return drawn(draw)


def log_edges(values: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Ends of ranges of equal ratios, above 0 and below it where values are, and one at 0 where some are no larger."""
    import numpy as np

    smallest, largest = linear_below(values), np.abs(values).max() * (1 + TINY)
    steps = np.geomspace(smallest, largest, BINS)

    def up_to(highest: float) -> "np.ndarray[Any, Any]":
        return steps[: np.searchsorted(steps, highest, side="right") + 1]

    above, below = up_to(values.max()), -up_to(-values.min())[::-1]
    if values.max() < smallest:
        return np.append(below, 0.0)
    if values.min() >= smallest:
        return above
    return np.concatenate([below if values.min() < 0 else [], [0.0], above])


def whole_edges(
    values: "np.ndarray[Any, Any]", edges: "np.ndarray[Any, Any]", *, is_log: bool
) -> "np.ndarray[Any, Any]":
    """Ends between whole numbers: without them some ranges have one number more than others, which look like gaps."""
    import numpy as np

    if is_log:
        whole = np.unique(np.rint(edges))
        return np.append(whole, whole[-1] + 1) - 0.5
    step = -(-(values.max() - values.min()) // BINS)
    return np.arange(values.min(), values.max() + step + 1, step) - 0.5


def set_log(axes: Any, smallest: float, lowest: float) -> None:
    """A logarithmic x axis, linear from 0 to the smallest size of a value.

    lowest: of the values; a mark below 0 belongs to values below it.
    """
    axes.set_xlabel(f"{axes.get_xlabel()} (logarithmic)")
    axes.set_xscale("symlog", linthresh=smallest, linscale=0.3)
    if lowest >= 0:
        axes.set_xlim(left=max(axes.get_xlim()[0], -0.5 * smallest))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if 1 <= abs(value) < MOST_DIGITS else f"{value:g}")


def name_axes(axes: Any, x: str, y: str) -> None:
    """Name both axes; upwards are whole numbers, with lines."""
    axes.set_xlabel(label(x))
    axes.set_ylabel(label(y))
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(visible=False, axis="x")


def linear_below(values: "np.ndarray[Any, Any]") -> float:
    """The smallest size of a value that is not 0: between it and 0 a logarithmic axis has to be linear."""
    return float(abs(values[values != 0]).min())


def over_time(numbers: "pd.Series[int]", name: str, of: str, unit: str) -> bytes:
    """Rows in each period of a series whose index is a PeriodIndex."""
    from matplotlib import dates

    index: Any = numbers.index
    starts, ends = index.start_time, (index + 1).start_time

    def draw(axes: Any) -> None:
        widths = (ends - starts).total_seconds() / 86_400
        axes.bar(dates.date2num(starts), numbers.to_numpy(), widths * 0.94, align="edge", color=BAR)
        locator = dates.AutoDateLocator()
        axes.xaxis_date()
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
        name_axes(axes, name, f"{of}s per {unit}")

    return drawn(draw)


def boxes(groups: Mapping[str, Sequence[float]], name: str, *, is_log: bool) -> bytes:
    """A box for each group: the middle half of its values, the median, and the others as far as 1.5 times the box."""

    def draw(axes: Any) -> None:
        lines = {part: {"color": MUTED} for part in ("whiskerprops", "capprops")}
        axes.boxplot(
            list(groups.values()),
            orientation="horizontal",
            tick_labels=[f"{label(group)} ({len(values):,})" for group, values in groups.items()],
            patch_artist=True,
            boxprops={"facecolor": BAR, "edgecolor": "none"},
            medianprops={"color": INK, "linewidth": 2},
            flierprops={"marker": ".", "markerfacecolor": MUTED, "markeredgecolor": "none", "markersize": 5},
            **lines,
        )
        axes.invert_yaxis()
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_xlabel(label(name))
        if is_log:
            set_log(axes, 1, min(map(min, groups.values())))
        axes.grid(visible=False, axis="y")

    return drawn(draw, BOX_IN * len(groups) + AXIS_IN)
