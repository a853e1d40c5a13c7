"""What earlier stages found -> flags: the reasons not to trust a row; no model."""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from vec_pipeline.record import Stage, Values

THUMBNAIL_PX = 32  # averages the noise of a camera away, and leaves a line of print its contrast
STRETCH = 16  # characters; prose seldom repeats so many, a loop does nothing else
WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, kw_only=True)
class Flag(Stage):
    """Names what is suspect about a row. A flag whose value is missing is not raised.

    low_confidence: text_confidence, a mean probability, is below it.
    low_clip_score: clip_score, a cosine, is below it; what is low differs between CLIPs.
    blank_image: the variance of the pixels, of 0 to 255 in a thumbnail, is below it.
    repetitive: the share of the text that it has said before is above it.
    truncated_image: the file is cut off or damaged, and a part of the pixels is missing.
    pages: the image is the first of several pages or frames.
    """

    reads: ClassVar[tuple[str, ...]] = ("image",)
    optional: ClassVar[tuple[str, ...]] = (
        "text",
        "text_confidence",
        "clip_score",
        "image_text",
        "is_truncated",
        "pixels_lowered",
        "is_cut",
        "has_pages",
    )
    writes: ClassVar[Mapping[str, str]] = {"flags": "text"}

    low_confidence: float = 0.64
    low_clip_score: float = 0.2
    blank_image: float = 10.0
    repetitive: float = 0.3
    batch_size: int = 64

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        return [{"flags": " ".join(name for name, is_raised in self.flags(row).items() if is_raised)} for row in rows]

    def flags(self, row: Values) -> dict[str, bool]:
        """Every flag, in the order in which a row names them, and whether it is raised."""
        return {
            "low_confidence": is_below(row.get("text_confidence"), self.low_confidence),
            "low_clip_score": is_below(row.get("clip_score"), self.low_clip_score),
            "blank_image": pixel_variance(row["image"]) < self.blank_image,
            "empty_text": isinstance(row.get("text"), str) and not row["text"].strip(),
            "truncated": row.get("is_truncated") is True,
            "repetitive": repeated_share(text_of(row, "text")) > self.repetitive,
            "text_mismatch": not words(text_of(row, "image_text")) <= words(text_of(row, "text")),
            "pixels_lowered": row.get("pixels_lowered") is True,
            "truncated_image": row.get("is_cut") is True,
            "pages": row.get("has_pages") is True,
        }


def is_below(value: object, threshold: float) -> bool:
    """Whether a number is below the threshold; what is no number, NaN included, is not."""
    return isinstance(value, Real) and float(value) < threshold


def text_of(row: Values, name: str) -> str:
    return value if isinstance(value := row.get(name), str) else ""


def pixel_variance(image: Image.Image) -> float:
    """Variance of the channel that varies most, over a thumbnail of the image."""
    thumbnail = image.resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX, reducing_gap=1.0)
    return float(np.asarray(thumbnail, np.float32).var(axis=(0, 1)).max())


def repeated_share(text: str) -> float:
    """Share of the text's stretches of characters that it holds before: near 0 for prose, towards 1 for a loop."""
    stretches = [text[start : start + STRETCH] for start in range(len(text) - STRETCH + 1)]
    return 1 - len(set(stretches)) / len(stretches) if stretches else 0.0


def words(text: str) -> set[str]:
    """The words of a text, so that letter case, quotes, punctuation, line breaks and order do not count."""
    return set(WORD.findall(unicodedata.normalize("NFKC", text).casefold()))
