"""What earlier stages found -> flags: the reasons not to trust a row; no model."""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from vec_pipeline.calibration import Calibration, number
from vec_pipeline.engines.text_lines import scripts_of
from vec_pipeline.record import Stage, Values

THUMBNAIL_PX = 32  # averages the noise of a camera away, and leaves a line of print its contrast
STRETCH = 16  # characters; prose seldom repeats so many, a loop does nothing else
WORD = re.compile(r"[^\W_]+")
QUOTED = re.compile(r"""“([^”]{1,200})”|«([^»]{1,200})»|"([^"]{1,200})"|(?<!\w)'([^']{1,200})'(?!\w)""")
ALIKE = str.maketrans("01авекмнорстухі", "olabekmhopctyxi")  # what a text recogniser, or a model, takes for another
UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")  # Chinese and Japanese, which do not part words
LONGEST_RUN = 4  # words that may be written as one, as where an end of line parts a word
SHORTEST = 2  # letters of a word that counts: one alone may be a shape
NUMBERS = ("text_confidence", "clip_score", "edit_difference", "pair_difference", "pair_similarity")  # signals as such
THRESHOLDS = {  # options that `calibrate` fits: the signal that each is for, and whether to be above it is suspect
    "low_confidence": ("text_confidence", False),
    "low_clip_score": ("clip_score", False),
    "repetitive": ("repeated", True),
    "ocr_missing": ("missing", True),
    "ocr_invented": ("invented", True),
    "low_edit_difference": ("edit_difference", False),
    "low_pair_similarity": ("pair_similarity", False),
}


@dataclass(frozen=True, kw_only=True)
class Flag(Stage):
    """Names what is suspect about a row. A flag whose value is missing is not raised.

    low_confidence: text_confidence, a mean probability, is below it.
    low_clip_score: clip_score, a cosine, is below it; what is low differs between CLIPs.
    blank_image: the variance of the pixels, of 0 to 255 in a thumbnail, is below it.
    repetitive: the share of the text that it has said before is above it.
    ocr_missing: the share of the clear words on the picture, by read_text, that the text lacks is above it.
    ocr_invented: the share of the words that the text says are on the picture, and read_text did not see, is above it.
    clear_text: the probability from which a line of read_text is clear.
    truncated_image: the file is cut off or damaged, and a part of the pixels is missing.
    pages: the image is the first of several pages or frames.
    low_edit_difference: edit_difference (flag edit_unchanged) or pair_difference (flag unchanged) is below it.
    low_pair_similarity: pair_similarity, a cosine of CLIP embeddings, is below it: flag not_a_pair.
    calibration: a file of `calibrate`, whose thresholds take the place of these; with it, `p_wrong` is the probability
        that people find the row wrong.
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
        "ocr_boxes",
        "ocr_scripts",
        "edit_difference",
        "pair_difference",
        "pair_similarity",
    )
    newer_options: ClassVar[tuple[str, ...]] = ("low_edit_difference", "low_pair_similarity", "calibration")
    writes: ClassVar[Mapping[str, str]] = {"flags": "text"}
    fitted: ClassVar[Calibration | None] = None  # what the file of `calibration` holds

    low_confidence: float = 0.64
    low_clip_score: float = 0.2
    blank_image: float = 10.0
    repetitive: float = 0.3
    ocr_missing: float = 0.1
    ocr_invented: float = 0.1
    clear_text: float = 0.9
    low_edit_difference: float = 0.05
    low_pair_similarity: float = 0.6
    calibration: str = ""
    batch_size: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibration:
            self._calibrate()

    def _calibrate(self) -> None:
        """Take the thresholds of the file. Raises ValueError where it cannot be used."""
        try:
            found = Calibration.load(Path(self.calibration).expanduser())
        except (ValueError, RuntimeError) as error:  # RuntimeError: of a user who does not exist
            raise ValueError(f"calibration: {error}") from None
        for name, threshold in found.thresholds.items():
            if name in THRESHOLDS:
                object.__setattr__(self, name, threshold)
        object.__setattr__(self, "fitted", found)
        object.__setattr__(self, "writes", {**Flag.writes, "p_wrong": "number"})

    def identity(self) -> str:
        return self.fitted.identity() if self.fitted else ""

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        return [self._values(row) for row in rows]

    def _values(self, row: Values) -> Values:
        signals = self.signals(row)
        flags = {"flags": " ".join(name for name, is_raised in self.flags(row, signals).items() if is_raised)}
        return {**flags, "p_wrong": self.fitted.p_wrong(signals)} if self.fitted else flags

    def signals(self, row: Values) -> dict[str, float]:
        """What has a threshold, and what `p_wrong` is computed from; NaN where a value is missing."""
        text = text_of(row, "text")
        return {
            **{name: number(row.get(name)) for name in NUMBERS},
            "repeated": repeated_share(text) if text.strip() else nan,
            "mismatched": mismatched_share(row),
            "missing": self.missing_share(row),
            "invented": invented_share(row),
        }

    def flags(self, row: Values, signals: Mapping[str, float]) -> dict[str, bool]:
        """Every flag, in the order in which a row names them, and whether it is raised."""
        return {
            "low_confidence": signals["text_confidence"] < self.low_confidence,
            "low_clip_score": signals["clip_score"] < self.low_clip_score,
            "blank_image": pixel_variance(row["image"]) < self.blank_image,
            "empty_text": isinstance(row.get("text"), str) and not row["text"].strip(),
            "truncated": row.get("is_truncated") is True,
            "repetitive": signals["repeated"] > self.repetitive,
            "text_mismatch": signals["mismatched"] > 0,
            "ocr_missing": signals["missing"] > self.ocr_missing,
            "ocr_invented": signals["invented"] > self.ocr_invented,
            "pixels_lowered": row.get("pixels_lowered") is True,
            "truncated_image": row.get("is_cut") is True,
            "pages": row.get("has_pages") is True,
            "edit_unchanged": signals["edit_difference"] < self.low_edit_difference,
            "unchanged": signals["pair_difference"] < self.low_edit_difference,
            "not_a_pair": signals["pair_similarity"] < self.low_pair_similarity,
        }

    def missing_share(self, row: Values) -> float:
        """Share of the clear words on the picture that the text lacks; 0 where it may write them in unknown letters.

        NaN where read_text did not run.
        """
        if not isinstance(row.get("ocr_boxes"), list):
            return nan
        said = text_of(row, "text")
        clear = [word for text, confidence in lines_of(row) if confidence >= self.clear_text for word in plain(text)]
        return 0.0 if is_unreadable(said, row) else unmatched_share(clear, plain(said))


def mismatched_share(row: Values) -> float:
    """Share of the words of image_text that the text lacks; NaN where there is neither."""
    said, claimed = words(text_of(row, "text")), words(text_of(row, "image_text"))
    return len(claimed - said) / len(claimed) if claimed else 0.0 if said else nan


def invented_share(row: Values) -> float:
    """Share of the words that the text says are on the picture, and that are not; words in unknown letters aside.

    NaN where read_text did not run.
    """
    if not isinstance(row.get("ocr_boxes"), list):
        return nan
    claimed = row.get("image_text")
    if not isinstance(claimed, str):
        claimed = " ".join("".join(groups) for groups in QUOTED.findall(text_of(row, "text")))
    readable = [word for word in WORD.findall(claimed) if not is_unreadable(word, row)]
    return unmatched_share(plain(" ".join(readable)), plain(" ".join(text for text, _ in lines_of(row))))


def lines_of(row: Values) -> list[tuple[str, float]]:
    """What read_text saw, line by line, and the probability of each."""
    return [(box["text"], box["confidence"]) for box in row["ocr_boxes"]]


def is_unreadable(text: str, row: Values) -> bool:
    """Whether a text has letters of a script that the text recogniser lacks: it returns others that look like them."""
    known = row.get("ocr_scripts")
    return isinstance(known, list) and not set(scripts_of(unicodedata.normalize("NFKD", text))) <= set(known)


def plain(text: str) -> list[str]:
    """The words of a text in order, without accents, and with one letter for all that look like it.

    Text without spaces between its words has none that could be compared.
    """
    letters = "".join(each for each in unicodedata.normalize("NFKD", text) if not unicodedata.combining(each))
    return WORD.findall(UNSPACED.sub(" ", letters).casefold().translate(ALIKE))


def unmatched_share(words: Sequence[str], others: Sequence[str]) -> float:
    """Share of the words, shorter ones aside, that are not among others; several in a row may be written as one."""
    known = {run for _, run in runs(others)}
    matched = {index for indices, run in runs(words) if run in known for index in indices}
    counted = [index for index, word in enumerate(words) if len(word) >= SHORTEST]
    return sum(index not in matched for index in counted) / len(counted) if counted else 0.0


def runs(words: Sequence[str]) -> Iterator[tuple[range, str]]:
    """Every word, and every few words in a row as one; with their indices."""
    for start in range(len(words)):
        for end in range(start + 1, min(start + LONGEST_RUN, len(words)) + 1):
            yield range(start, end), "".join(words[start:end])


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
