"""Figures of each configuration over the same pictures, with 95 % confidence intervals, and the table of them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vec_pipeline.commands.compare.differences import character_similarity
from vec_pipeline.commands.compare.variants import Variant
from vec_pipeline.commands.compare.worker import read_cost, work_seconds
from vec_pipeline.record import Values, beside
from vec_pipeline.settings import recorded_settings
from vec_pipeline.terminal import visible

Z = 1.959964  # of 95 % of a normal distribution
READ_TEXT = "read_text"  # the column of a stage that reads text from the picture
COLUMNS = (
    *("image_path", "text", "description", "categories", "keywords", "image_text", "error"),
    *("text_confidence", "clip_score", "flags", READ_TEXT),
)
WIDEST = 40  # letters of a name in the terminal's table

Found = dict[str, Any]


def figures_of(variant: Variant, rows: Sequence[Values], rows_made: int) -> Found:
    """What compare.json holds of a configuration; a figure that is not known is None.

    rows: of the pictures that are compared. rows_made: all that its CSV has, which its cost is for.
    """
    return {
        "name": variant.name,
        "config": str(variant.path),
        "csv": str(variant.csv),
        "pictures": len(rows),
        **speed(variant, rows_made),
        "words": mean([len(row["text"].split()) for row in rows if row["text"].strip()]),
        "text_confidence": mean(known(rows, "text_confidence")),
        "clip_score": interval(known(rows, "clip_score")),
        "flagged": mean([bool(flags) for flags in known(rows, "flags")]),
        "json_errors": json_errors(variant, rows),
        "row_errors": sum(bool(row["error"]) for row in rows),
        "text_agreement": text_agreement(rows),
    }


def speed(variant: Variant, rows_made: int) -> Found:
    """Images per second and peaks of memory, over all runs that made the CSV."""
    cost = read_cost(variant.csv)
    if not cost:
        return {}
    work_s = work_seconds(beside(variant.csv, "log"), cost.log_start)
    made = rows_made - cost.first_row
    return {
        "images_per_second": made / cost.seconds if cost.seconds else None,
        "images_per_second_without_loading": made / work_s if work_s else None,
        "peak_host_gb": cost.peak_host_gb or None,
        "peak_gpu_gb": cost.peak_gpu_gb,
    }


def known(rows: Sequence[Values], column: str) -> list[Any]:
    return [row[column] for row in rows if row[column] is not None]


def mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def interval(values: Sequence[float]) -> Found | None:
    """Mean, and Student's confidence interval of it; without one where there are fewer than two values."""
    from scipy.special import stdtrit

    if not values:
        return None
    found: Found = {"number": len(values), "mean": float(np.mean(values)), "low": None, "high": None}
    if len(values) > 1:
        t = float(stdtrit(len(values) - 1, 0.975))
        half = t * float(np.std(values, ddof=1)) / len(values) ** 0.5
        found |= {"low": found["mean"] - half, "high": found["mean"] + half}
    return found


def wilson(successes: float, number: int) -> tuple[float, float]:
    """Wilson's score interval of a share: a tie may count as a part of a success."""
    share = successes / number
    middle = share + Z**2 / (2 * number)
    half = Z * (share * (1 - share) / number + Z**2 / (4 * number**2)) ** 0.5
    return (middle - half) / (1 + Z**2 / number), (middle + half) / (1 + Z**2 / number)


def json_errors(variant: Variant, rows: Sequence[Values]) -> int | None:
    """Rows that failed in the stage that answers in JSON; None where there is no such stage."""
    stage = variant.stage_that_writes("llama_extracted")
    return sum(row["error"].startswith(f"{stage}: ") for row in rows) if stage else None


def text_agreement(rows: Sequence[Values]) -> float | None:
    """Mean similarity of image_text and what was read from the picture, where one of them is not empty."""
    pairs = [(row["image_text"], row[READ_TEXT]) for row in rows if row[READ_TEXT] is not None and not row["error"]]
    return mean([character_similarity(*pair) for pair in pairs if any(text.strip() for text in pair)])


def clip_of(variant: Variant) -> Found:
    """What decides clip_score, but for the text and the picture; empty where there is none."""
    return recorded_settings(variant.csv).stages.get(variant.stage_that_writes("clip_score"), {})


def add_clip_differences(found: Sequence[Found], clips: Sequence[Found], rows: Sequence[Sequence[Values]]) -> str:
    """Add the paired difference of the first configuration's CLIP scores to each other's; return what is to be said.

    CLIP scores of different models have different scales, so their difference is left out.
    """
    for figures, clip, other in zip(found[1:], clips[1:], rows[1:], strict=True):
        scores = [(one["clip_score"], two["clip_score"]) for one, two in zip(rows[0], other, strict=True)]
        pairs = [one - two for one, two in scores if one is not None and two is not None]
        figures["clip_difference"] = interval(pairs) if clip and clip == clips[0] else None
    models = [clip.get("model") or clip.get("use") or "unknown" for clip in clips]
    if not any(figures["clip_score"] for figures in found):
        return ""
    if all(clip and clip == clips[0] for clip in clips):
        return f"CLIP scores are all by {models[0]}."
    named = ", ".join(f"{each['name']}: {model}" for each, model in zip(found, models, strict=True))
    return f"CLIP scores by different models or settings cannot be compared: their difference is left out ({named})."


def add_win_rates(found: Sequence[Found], votes: Sequence[str | None]) -> None:
    """Add how often each configuration was voted best, ties in equal parts.

    votes: the name of each winner, None for a tie.
    """
    ties = sum(winner is None for winner in votes)
    for figures in found:
        wins = sum(winner == figures["name"] for winner in votes) + ties / len(found)
        figures["win_rate"] = None
        if votes:
            low, high = wilson(wins, len(votes))
            figures["win_rate"] = {"number": len(votes), "mean": wins / len(votes), "low": low, "high": high}


def table_of(found: Sequence[Found]) -> list[list[str]]:
    """The lines of the table as text, each with its label first; those without any figure are left out."""
    lines: list[tuple[str, str, Callable[[Any], str]]] = [
        ("pictures", "pictures", "{:,}".format),
        ("images/s with loading", "images_per_second", "{:.2f}".format),
        ("images/s without loading", "images_per_second_without_loading", "{:.2f}".format),
        ("peak GB of the host", "peak_host_gb", "{:.2f}".format),
        ("peak GB of the GPU", "peak_gpu_gb", "{:.2f}".format),
        ("words of text", "words", "{:.1f}".format),
        ("text_confidence", "text_confidence", "{:.3f}".format),
        ("CLIP score", "clip_score", lambda each: with_interval(each, "{:.3f}")),
        (f"  {found[0]['name']} minus this", "clip_difference", lambda each: with_interval(each, "{:+.3f}")),
        ("flagged", "flagged", "{:.1%}".format),
        ("JSON errors", "json_errors", "{:,}".format),
        ("rows with an error", "row_errors", "{:,}".format),
        ("image_text like read_text", "text_agreement", "{:.3f}".format),
        ("votes won", "win_rate", lambda each: with_interval(each, "{:.1%}")),
    ]
    table = [["", *(figures["name"] for figures in found)]]
    for label, key, shown in lines:
        cells = ["" if figures.get(key) is None else shown(figures[key]) for figures in found]
        table += [[label, *cells]] if any(cells) else []
    return table


def with_interval(found: Found, form: str) -> str:
    parts = [form.format(found[name]) for name in ("mean", "low", "high") if found[name] is not None]
    return parts[0] if len(parts) == 1 else "{} ({} to {})".format(*parts)


def as_text(table: Sequence[Sequence[str]]) -> str:
    """The table for a terminal."""
    cells = [[shortened(visible(cell)) for cell in line] for line in table]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in cells]
    return "\n".join(lines)


def shortened(text: str) -> str:
    return text if len(text) <= WIDEST else text[: WIDEST - 3] + "..."
