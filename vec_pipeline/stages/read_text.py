"""content -> ocr_text, the text that is on the picture, by a text recogniser: rapidocr, or the system's tesseract."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from math import sqrt
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from vec_pipeline import weights
from vec_pipeline.engines import tesseract
from vec_pipeline.engines.text_lines import Line, TextReader, is_long, rows_of
from vec_pipeline.pictures.full_size import Opened, open_all
from vec_pipeline.record import Need, Stage, UserError, Values

INSTALL = "pip install 'vec-pipeline[ocr]'"
RECOGNISERS = {"en": "", "ru": "PaddlePaddle/eslav_PP-OCRv5_mobile_rec_onnx"}  # empty: the one in rapidocr's wheel
RECOGNISER_FILES = ("inference.onnx", "inference.yml")
TESSERACT_LANGUAGES = {"en": "eng", "ru": "rus+eng"}
SHARPER = 2  # lines are found in pictures of `ocr_size_px`, and read in pictures so many times as large
SURE = 0.997  # probability from which one letter alone is text; below it, it is a shape
HOST_GB = {"rapidocr": 0.6, "tesseract": 0.2}  # measured with 16 pictures at once


@dataclass(frozen=True, kw_only=True)
class ReadText(Stage):
    """The text on a picture; its lines, a JSON list of text, confidence and box; the mean confidence of its letters.

    A box has four corners, [x, y] in pixels of the picture in its full size, clockwise from where the text begins. The
    text is in the order of reading, a line for each row. `ocr_scripts` names the scripts that the engine can return.

    engine: auto is rapidocr where it is installed, else tesseract.
    language: of the text: en reads Latin letters (and rapidocr Chinese and Japanese), ru Cyrillic ones too.
    model: of rapidocr a recogniser of PaddleOCR for ONNX, a hub name or a folder; of tesseract its languages, such as
        deu+fra. Empty for that of the language.
    ocr_size_px: the longest side of what lines are looked for in; larger finds smaller print.
    min_confidence: lines below it are left out.
    max_megapixels: that an image may take in memory before it is reduced; a larger one gets an error.
    """

    # The image is too small to read; without it, a file that cannot be opened has its error of open_image already.
    reads: ClassVar[tuple[str, ...]] = ("content", "image")
    writes: ClassVar[Mapping[str, str]] = {"ocr_text": "text", "ocr_boxes": "json", "ocr_confidence": "number"}
    intermediates: ClassVar[Mapping[str, str]] = {"ocr_scripts": "json"}
    speed_options: ClassVar[tuple[str, ...]] = (*Stage.speed_options, "max_megapixels")

    engine: Literal["auto", "rapidocr", "tesseract"] = "auto"
    language: Literal["en", "ru"] = "en"
    model: str = ""
    revision: str = ""
    ocr_size_px: int = 960
    min_confidence: float = 0.6
    max_megapixels: int = 179
    batch_size: int = 16

    @property
    def is_rapid(self) -> bool:
        """Whether the engine is rapidocr. Raises UserError if it is to be, and is not installed."""
        if all(map(importlib.util.find_spec, ("rapidocr", "onnxruntime"))):
            return self.engine != "tesseract"
        if self.engine == "rapidocr" or (self.engine == "auto" and not tesseract.program()):
            raise UserError(f"{self.name} needs rapidocr: {INSTALL}, or apt-get install tesseract-ocr")
        return False

    def identity(self) -> str:
        return f"rapidocr {version('rapidocr')}" if self.is_rapid else f"tesseract {tesseract.version()}".strip()

    def fetch(self) -> None:
        if not self.is_rapid:
            tesseract.check(self._model)
        elif folder := self._recogniser(is_offline=False):
            self._check(folder)

    def _check(self, folder: Path) -> None:
        """Raise UserError where a folder holds no recogniser."""
        for name in RECOGNISER_FILES:
            if not (folder / name).is_file():
                raise UserError(
                    f"{self.name}: {folder} has no {name}: give a recogniser of PaddleOCR for ONNX, such as "
                    f"{RECOGNISERS['ru']}"
                )

    def need(self) -> Need:
        return Need(host_gb=HOST_GB["tesseract" if self.engine == "tesseract" else "rapidocr"])

    def load(self) -> TextReader:
        if not self.is_rapid:
            return tesseract.TesseractReader(self._model, SHARPER * self.ocr_size_px)
        from vec_pipeline.engines.rapid_text import RapidReader

        return RapidReader(self._recogniser(is_offline=True), self.ocr_size_px)

    def run(self, model: TextReader, rows: list[Values], at_once: int) -> list[Values]:
        pictures = open_all([row["content"] for row in rows], self._side_px, self.max_megapixels)
        found = iter(model.read([np.asarray(each.image) for each in pictures if isinstance(each, Opened)]))
        return [
            {"error": each} if isinstance(each, str) else self._values(next(found), each, model.scripts)
            for each in pictures
        ]

    @property
    def _model(self) -> str:
        return self.model or (RECOGNISERS if self.is_rapid else TESSERACT_LANGUAGES)[self.language]

    def _recogniser(self, *, is_offline: bool) -> Path | None:
        """The folder of rapidocr's recogniser; None for its own. Raises UserError."""
        if not self._model:
            return None
        try:
            return weights.fetch(self._model, RECOGNISER_FILES, revision=self.revision, is_offline=is_offline)
        except UserError as error:
            if self.model or self.language != "ru":
                raise
            raise UserError(
                f"{error}, or set {self.name}.engine: tesseract, after apt-get install tesseract-ocr-rus"
            ) from None

    def _side_px(self, size: tuple[int, int]) -> int:
        return longest_px(size, SHARPER * self.ocr_size_px)

    def _values(self, lines: Sequence[Line], picture: Opened, scripts: Sequence[str]) -> Values:
        scale = np.array(picture.size) / picture.image.size
        rows = rows_of([line for line in lines if is_text(line, self.min_confidence)])
        kept = [line for row in rows for line in row]
        letters = sum(len(line.text) for line in kept)
        confidence = sum(line.confidence * len(line.text) for line in kept) / max(1, letters)
        return {
            "ocr_text": "\n".join(" ".join(line.text for line in row) for row in rows),
            "ocr_boxes": [
                {
                    "text": line.text,
                    "confidence": line.confidence,
                    "box": (line.corners * scale).round().astype(int).tolist(),
                }
                for line in kept
            ],
            "ocr_confidence": round(confidence, 4) if kept else None,
            "ocr_scripts": list(scripts),
        }


def longest_px(size: tuple[int, int], side_px: int) -> int:
    """The side to reduce to: a long strip keeps as many pixels as a square of `side_px`."""
    return round(side_px * sqrt(max(size) / min(size))) if is_long(*size) else side_px


def is_text(line: Line, min_confidence: float) -> bool:
    """Whether a line is more than a shape that looks like a letter."""
    letters = sum(map(str.isalnum, line.text))
    return line.confidence >= min_confidence and (letters > 1 or (letters == 1 and line.confidence >= SURE))
