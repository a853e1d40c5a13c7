"""Reads text with rapidocr: lines are found picture by picture, and those of many pictures recognised together."""

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from vec_pipeline import device
from vec_pipeline.engines.text_lines import LEAST_LETTERS, Array, Line, cuts, scripts_of, tiles
from vec_pipeline.record import UserError

HEIGHT_PX = 48  # of the lines that the recogniser reads
WIDTH_STEP_PX = 3 * HEIGHT_PX  # their widths are multiples of it, so that a line is read alike in any company
WIDEST = 25  # heights of a line that is recognised in one piece: the time and memory of longer ones explode
TOGETHER_PX = 8 * 2 * WIDTH_STEP_PX  # the width of all pieces in one call of the recogniser, which bounds its memory
CROPS = 512  # lines held in memory at once
SMALL_PX = 240  # pictures up to this size are enlarged twice
DOUBTFUL = 0.9  # lines below this probability are read upside down as well
GREY = (127, 127, 127)  # of the edges of lines; zero to the recogniser
OUT_OF_MEMORY = ("bad_alloc", "Failed to allocate memory", "out of memory")
WEIGHTS, CHARACTERS = "inference.onnx", "inference.yml"  # of a recogniser of the hub

Item = TypeVar("Item")


class Crop(NamedTuple):
    """A line that was found: in which picture, its corners there, and its pixels, upright."""

    picture: int
    corners: Array
    pixels: Array


class RapidReader:
    """Finds and reads lines.

    recogniser: a folder of WEIGHTS and CHARACTERS; None for the model that comes with rapidocr.
    side_px: pictures and tiles are reduced to it while lines are looked for.
    """

    def __init__(self, recogniser: Path | None, side_px: int) -> None:
        options: dict[str, Any] = {
            "Global.use_cls": False,
            "Global.log_level": "critical",
            "Det.limit_type": "max",
            "Det.limit_side_len": side_px,
            "Rec.rec_batch_num": TOGETHER_PX // WIDTH_STEP_PX,
            "Rec.rec_img_shape": [3, HEIGHT_PX, WIDTH_STEP_PX],
            "EngineConfig.onnxruntime.intra_op_num_threads": device.free_cores(),
        }
        self._side_px = side_px
        with tempfile.TemporaryDirectory() as folder:
            if recogniser:
                letters = Path(folder) / "letters.txt"  # rapidocr would download its own
                letters.write_text("\n".join(characters(recogniser / CHARACTERS)), encoding="utf-8")
                options |= {"Rec.model_path": str(recogniser / WEIGHTS), "Rec.rec_keys_path": str(letters)}
            self._engine = started(options)
        self.scripts = scripts_of(self._engine.text_rec.postprocess_op.character, LEAST_LETTERS)

    def read(self, pictures: Sequence[Array]) -> list[list[Line]]:
        """Return the lines of each picture. Raises MemoryError."""
        found: list[list[Line]] = [[] for _ in pictures]
        crops = (crop for number, picture in enumerate(pictures) for crop in self._find(number, picture))
        with memory_errors():
            for some in batched(crops, CROPS):
                for crop, line in zip(some, self._lines(some), strict=True):
                    if line.text.strip():
                        found[crop.picture].append(line)
        return found

    def _find(self, number: int, picture: Array) -> Iterator[Crop]:
        """Yield the lines of a picture; a small one is enlarged."""
        import cv2
        from rapidocr.main import RapidOCRError

        for corner, tile in tiles(picture, self._side_px):
            factor, record = (2 if max(tile.shape) <= SMALL_PX else 1), dict[str, Any]()
            pixels = cv2.resize(tile[:, :, ::-1], None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
            try:
                crops, boxes = self._engine.detect_and_crop(pixels, record)
            except RapidOCRError:  # there is no text
                continue
            above = (0, record["padding_1"]["top"])  # which rapidocr adds to a narrow one
            largest = (tile.shape[1], tile.shape[0])
            for crop, corners in zip(crops, boxes.boxes, strict=True):
                inside = np.clip((corners - above) / factor, 0, largest) + corner
                yield Crop(number, np.roll(inside, -1, 0) if is_on_its_side(corners) else inside, crop)

    def _lines(self, crops: Sequence[Crop]) -> Iterator[Line]:
        """Recognise lines; those that are doubtful a second time, upside down."""
        texts = self._recognise([crop.pixels for crop in crops])
        doubtful = [index for index, (_, confidence) in enumerate(texts) if confidence < DOUBTFUL]
        turned = dict(zip(doubtful, self._recognise([crops[i].pixels[::-1, ::-1] for i in doubtful]), strict=True))
        for index, crop in enumerate(crops):
            upside_down = turned.get(index, ("", 0.0))
            if upside_down[1] > texts[index][1]:
                yield Line(*upside_down, np.roll(crop.corners, -2, 0))
            else:
                yield Line(*texts[index], crop.corners)

    def _recognise(self, lines: Sequence[Array]) -> list[tuple[str, float]]:
        """The text of each line and the mean probability of its letters, those of like width together."""
        from rapidocr.ch_ppocr_rec import TextRecInput

        pieces = [(index, *piece) for index, line in enumerate(lines) for piece in pieces_of(line)]
        by_width: dict[int, list[int]] = defaultdict(list)
        for number, (_, pixels, _) in enumerate(pieces):
            by_width[pixels.shape[1]].append(number)
        texts: dict[int, tuple[str, float]] = {}
        for width_px, numbers in by_width.items():
            for some in batched(numbers, max(1, TOGETHER_PX // width_px)):
                found = self._engine.text_rec(TextRecInput(img=[pieces[number][1] for number in some]))
                texts |= dict(zip(some, zip(found.txts, found.scores, strict=True), strict=True))
        parts: list[list[tuple[str, float]]] = [[] for _ in lines]
        for number, (index, _, space) in enumerate(pieces):
            text, confidence = texts[number]
            parts[index].append((text + space, confidence))
        return [joined(each) for each in parts]


def started(options: dict[str, Any]) -> Any:
    """A RapidOCR whose recogniser is loaded."""
    from rapidocr import RapidOCR

    engine = RapidOCR(params=options)
    engine.recognize_txt([np.zeros((HEIGHT_PX, WIDTH_STEP_PX, 3), np.uint8)])  # which loads it
    return engine


def is_on_its_side(corners: Array) -> bool:
    """Whether a line runs from top to bottom, so that rapidocr has turned its crop."""
    width, height = (max(distance(corners, 0, i), distance(corners, 2, j)) for i, j in ((1, 3), (3, 1)))
    return int(height) >= 1.5 * int(width)


def distance(corners: Array, first: int, second: int) -> float:
    return float(np.linalg.norm(corners[first] - corners[second]))


def pieces_of(line: Array) -> Iterator[tuple[Array, str]]:
    """A line, or pieces of a long one, as the recogniser takes them; each with the space after it, if there is one."""
    import cv2

    start = 0
    for end, is_space in cuts(line, WIDEST * line.shape[0]):
        piece = line[:, start:end]
        width_px = max(1, round(piece.shape[1] * HEIGHT_PX / piece.shape[0]))
        how = cv2.INTER_AREA if piece.shape[0] > HEIGHT_PX else cv2.INTER_CUBIC
        piece = cv2.resize(piece, (width_px, HEIGHT_PX), interpolation=how)
        edge_px = -width_px % WIDTH_STEP_PX
        yield cv2.copyMakeBorder(piece, 0, 0, 0, edge_px, cv2.BORDER_CONSTANT, value=GREY), " " if is_space else ""
        start = end


def joined(parts: Sequence[tuple[str, float]]) -> tuple[str, float]:
    """One text of several, and the mean of their probabilities over its letters."""
    letters = sum(len(text) for text, _ in parts)
    confidence = sum(len(text) * probability for text, probability in parts) / max(1, letters)
    return "".join(text for text, _ in parts).strip(), round(confidence, 4)


def characters(path: Path) -> list[str]:
    """The letters that a recogniser of PaddleOCR knows. Raises UserError."""
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))["PostProcess"]["character_dict"]
        if found and all(isinstance(letter, str) for letter in found):
            return list(found)
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        pass
    raise UserError(f"{path} lists no letters (PostProcess: character_dict): give a recogniser of PaddleOCR for ONNX")


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of so many items."""
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


@contextmanager
def memory_errors() -> Iterator[None]:
    """A context in which onnxruntime's own errors of too little memory are MemoryError."""
    from rapidocr.inference_engine.onnxruntime.main import ONNXRuntimeError

    try:
        yield
    except ONNXRuntimeError as error:
        if any(sign in str(error) for sign in OUT_OF_MEMORY):
            raise MemoryError("onnxruntime cannot allocate memory") from None
        raise RuntimeError(str(error).strip().rpartition("\n")[2]) from None
