"""Reads text with the system's tesseract: one process a picture, several at once."""

import csv
import os
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from io import BytesIO

import numpy as np
from PIL import Image

from vec_pipeline import device
from vec_pipeline.engines.text_lines import Array, Line, tiles
from vec_pipeline.record import UserError

SPARSE = "11"  # of its page segmentation: find as much text as there is, in no order
TIMEOUT_S = 120  # of one tile
SMALL_PX = 300  # pictures up to this size are enlarged three times: it knows letters of 20 to 40 pixels
LEAST_PX = 48  # of the shorter side; smaller pictures get an edge
DOTS_PER_INCH = "150"  # it warns where there are none
SCRIPTS = {  # of its languages; those of the others are Latin
    **dict.fromkeys(("rus", "ukr", "bel", "bul", "srp", "mkd", "kaz", "mon"), ("CYRILLIC",)),
    **dict.fromkeys(("chi_sim", "chi_tra"), ("CJK",)),
    "jpn": ("CJK", "HIRAGANA", "KATAKANA"),
    "kor": ("HANGUL",),
    **dict.fromkeys(("ara", "fas", "urd"), ("ARABIC",)),
    "heb": ("HEBREW",),
    "ell": ("GREEK",),
    "hin": ("DEVANAGARI",),
    "tha": ("THAI",),
}


class TesseractReader:
    """Reads pictures with tesseract.

    languages: as its option -l takes them, such as rus+eng.
    """

    def __init__(self, languages: str, side_px: int) -> None:
        self._languages, self._side_px = languages, side_px
        found = {script for name in languages.split("+") for script in SCRIPTS.get(name, ("LATIN",))}
        self.scripts = tuple(sorted(found))
        self._pool = ThreadPoolExecutor(device.free_cores(), thread_name_prefix="tesseract")

    def read(self, pictures: Sequence[Array]) -> list[list[Line]]:
        """Return the lines of each picture. Raises RuntimeError where tesseract fails, and MemoryError."""
        found = [
            [self._pool.submit(self._read, *tile) for tile in tiles(picture, self._side_px)] for picture in pictures
        ]
        return [[line for tile in several for line in tile.result()] for several in found]

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _read(self, corner: tuple[int, int], tile: Array) -> list[Line]:
        factor = 3 if max(tile.shape[:2]) <= SMALL_PX else 1
        y, x = (max(0, LEAST_PX - side * factor + 1) // 2 for side in tile.shape[:2])
        image = Image.fromarray(tile).resize((tile.shape[1] * factor, tile.shape[0] * factor), Image.Resampling.BICUBIC)
        pixels = np.pad(np.asarray(image), ((y, y), (x, x), (0, 0)), "edge")
        command = [program(), "-", "-", "-l", self._languages, "--psm", SPARSE, "--dpi", DOTS_PER_INCH, "tsv"]
        table = called(command, png(pixels))
        return [line._replace(corners=(line.corners - (x, y)) / factor + corner) for line in lines_of(table)]


def png(pixels: Array) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def called(command: Sequence[str], content: bytes = b"") -> str:
    """What a command prints. Raises RuntimeError where it fails or takes too long."""
    environment = {**os.environ, "OMP_THREAD_LIMIT": "1"}  # more make it slower, several at once far slower
    try:
        done = subprocess.run(command, input=content, capture_output=True, timeout=TIMEOUT_S, env=environment)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"tesseract did not answer within {TIMEOUT_S} s") from None
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise RuntimeError(f"tesseract failed: {reason[:300] or f'exit status {done.returncode}'}")
    return done.stdout.decode(errors="replace")


def lines_of(table: str) -> list[Line]:
    """The lines of tesseract's table of words."""
    words: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for word in csv.DictReader(table.split("\n"), delimiter="\t", quoting=csv.QUOTE_NONE):
        if float(word["conf"]) >= 0 and word["text"].strip():
            words[word["block_num"], word["par_num"], word["line_num"]].append(word)
    found = []
    for row in words.values():
        left, top = (min(int(word[name]) for word in row) for name in ("left", "top"))
        right = max(int(word["left"]) + int(word["width"]) for word in row)
        bottom = max(int(word["top"]) + int(word["height"]) for word in row)
        corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float64)
        letters = sum(len(word["text"]) for word in row)
        confidence = sum(float(word["conf"]) * len(word["text"]) for word in row) / letters / 100
        found.append(Line(" ".join(word["text"] for word in row), round(confidence, 4), corners))
    return found


def program() -> str:
    """The path of tesseract; empty where it is not installed."""
    return shutil.which("tesseract") or ""


@cache
def version() -> str:
    """Its version, such as 5.3.0; empty where it is not installed."""
    return "".join(called([program(), "--version"]).split()[1:2]) if program() else ""


def known_languages() -> set[str]:
    """Those that are installed."""
    return set(called([program(), "--list-langs"]).splitlines()[1:]) if program() else set()


def check(languages: str) -> None:
    """Raise UserError if tesseract or one of its languages is not installed."""
    if not program():
        raise UserError("tesseract is not installed: apt-get install tesseract-ocr, or set read_text.engine: rapidocr")
    for name in languages.split("+"):
        if name not in known_languages():
            package = f"tesseract-ocr-{name.replace('_', '-')}"
            raise UserError(f"tesseract has no language {name}: apt-get install {package}, or copy {name}.traineddata")
