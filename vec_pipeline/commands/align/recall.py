"""How often a text finds a picture of its own, and a picture its text, among rows that training has not seen."""

from collections.abc import Mapping, Sequence
from math import comb
from typing import Any

import numpy as np

AMONG = (1, 5, 10)  # the nearest so many
WAYS = ("text to image", "image to text")

Matrix = np.ndarray[Any, np.dtype[np.float32]]
Recall = dict[str, list[float]]  # by way, a share for each of AMONG


def recall(texts: Matrix, images: Matrix, captions: Sequence[str]) -> Recall:
    """The shares of rows that have one of their caption among the nearest AMONG, both ways.

    texts, images: float32 of shape (rows, dimensions), of length 1.
    """
    scores = texts @ images.T
    numbers = np.unique(np.array(captions, object), return_inverse=True)[1]
    return {way: found(each, numbers) for way, each in zip(WAYS, (scores, scores.T), strict=True)}


def found(scores: Matrix, captions: "np.ndarray[Any, Any]") -> list[float]:
    nearest = np.argsort(-scores, axis=1, kind="stable")[:, : max(AMONG)]
    right = captions[nearest] == captions[:, None]
    return [round(float(right[:, :among].any(axis=1).mean()), 4) for among in AMONG]


def chance(captions: Sequence[str]) -> Recall:
    """What a random order would reach: a row whose caption others have finds one sooner."""
    rows = len(captions)
    _, places, counts = np.unique(np.array(captions, object), return_inverse=True, return_counts=True)
    shares = [
        round(
            float(np.mean([1 - comb(rows - count, among) / comb(rows, among) for count in counts[places].tolist()])), 4
        )
        for among in (min(among, rows) for among in AMONG)
    ]
    return dict.fromkeys(WAYS, shares)


def table(figures: Mapping[str, Recall]) -> str:
    """Recall by name of the method, as text for a terminal."""
    width = max(map(len, figures))
    columns = [f"@{among}" for _ in WAYS for among in AMONG]
    lines = [
        f"{'':<{width}}  " + "  ".join(f"{way:>22}" for way in WAYS),
        f"{'recall':<{width}}  " + "".join(f"{column:>8}" for column in columns),
    ]
    for name, shares in figures.items():
        lines.append(f"{name:<{width}}  " + "".join(f"{share:>8.3f}" for way in WAYS for share in shares[way]))
    return "\n".join(lines)
