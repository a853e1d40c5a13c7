"""Lines of text on pictures: what a reader returns, where long pictures are cut, the order of reading, and scripts."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

Array = np.ndarray[Any, Any]

WIDEST, TALLEST = 16, 4  # ratios of the sides beyond which a picture is read in tiles; more where a word may be cut
SEARCHED = 0.4  # of a piece, at its end, in which the widest gap is looked for
GAP_WIDTH = 0.3  # of the height of a line: the least space between words
BLANK = 0.15  # of the usual contrast of a line: a gap has less
LEAST_LETTERS = 20  # of an alphabet that a reader knows


class Line(NamedTuple):
    """Text in one line, and the mean probability of its letters.

    corners: (4, 2), x and y in pixels of the picture, clockwise from the one where the text begins.
    """

    text: str
    confidence: float
    corners: Array


class TextReader(Protocol):
    """What reads pictures, arrays of (height, width, 3) of RGB.

    scripts: whose letters it can return, by their names in Unicode, such as LATIN and CYRILLIC.
    """

    scripts: tuple[str, ...]

    def read(self, pictures: Sequence[Array]) -> list[list[Line]]:
        """Return the lines of each picture. Raises MemoryError."""
        ...


def tiles(picture: Array, least_px: int) -> Iterator[tuple[tuple[int, int], Array]]:
    """A picture, or tiles of a very long one, cut where least would be cut through; each with its x and y.

    least_px: pictures that are no longer are not cut.
    """
    if not is_long(*picture.shape[1::-1]) or max(picture.shape) <= least_px:
        yield (0, 0), picture
        return
    is_wide = picture.shape[1] > picture.shape[0]
    along = picture if is_wide else picture.transpose(1, 0, 2)
    longest_px = max(least_px, (WIDEST if is_wide else TALLEST) // 2 * along.shape[0])
    start = 0
    for end, _ in cuts(along, longest_px):
        tile = along[:, start:end]
        yield ((start, 0), tile) if is_wide else ((0, start), tile.transpose(1, 0, 2))
        start = end


def is_long(width: int, height: int) -> bool:
    """Whether a picture is read in tiles."""
    return width > WIDEST * height or height > TALLEST * width


def cuts(line: Array, longest_px: int) -> Iterator[tuple[int, bool]]:
    """Where the pieces of a line end, and whether there is a space: each is at most `longest_px` wide.

    They end at the widest gap in their last part, so that no letter is cut where there is one.
    """
    height, width = line.shape[:2]
    contrast = contrast_across(line)
    window = np.ones(max(1, round(GAP_WIDTH * height)))
    blank = BLANK * float(np.median(contrast))
    start = 0
    while width - start > longest_px:
        first = start + round((1 - SEARCHED) * longest_px)
        smooth = np.convolve(contrast[first : start + longest_px], window / len(window), "valid")
        start = first + int(smooth.argmin()) + len(window) // 2
        yield start, bool(smooth.min() <= blank)
    yield width, False


def contrast_across(line: Array) -> Array:
    """The standard deviation of each column's brightness; (width,)."""
    columns = [line[:, start : start + 4096].mean(axis=2).std(axis=0) for start in range(0, line.shape[1], 4096)]
    return np.concatenate(columns)


def rows_of(lines: Sequence[Line]) -> list[list[Line]]:
    """Lines in the order of reading, whichever way up most of them are: row by row."""
    if not lines:
        return []
    along = np.sum([line.corners[1] - line.corners[0] for line in lines], axis=0)
    along = np.sign(along) * (np.abs(along) == np.abs(along).max())  # right, left, up or down
    down = np.array([-along[1], along[0]])
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: float(line.corners.mean(0) @ down)):
        first = rows[-1][0].corners if rows else line.corners
        below = float((line.corners.mean(0) - first.mean(0)) @ down)
        if rows and below < np.linalg.norm(first[3] - first[0]) / 2:
            rows[-1].append(line)
        else:
            rows.append([line])
    return [sorted(row, key=lambda line: float(line.corners[0] @ along)) for row in rows]


def scripts_of(letters: Iterable[str], least: int = 1) -> tuple[str, ...]:
    """The scripts of which there are at least so many letters, by their names in Unicode."""
    single = (letter for letter in letters if len(letter) == 1 and letter.isalpha())
    counts = Counter(unicodedata.name(letter, "").partition(" ")[0] for letter in single)
    return tuple(sorted(script for script, number in counts.items() if number >= least))
