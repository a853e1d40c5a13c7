"""The rows of a training set with the bytes of their pictures; what is left out is counted by its reason."""

import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from vec_pipeline.annotations import CsvReader, content_reader, in_threads
from vec_pipeline.commands import blocks_with_bar, is_stream
from vec_pipeline.commands.export.files import Written
from vec_pipeline.commands.export.split import SIDES, SPLIT, SplitReader
from vec_pipeline.files import ABANDONED_S
from vec_pipeline.pairs import Pairs, pairs_of
from vec_pipeline.pictures import SNIFFED_BYTES, Limits, decode
from vec_pipeline.pictures.kinds import kind_of
from vec_pipeline.pictures.pillow import turn_upright
from vec_pipeline.record import UserError, Values
from vec_pipeline.stages.open_image import OpenImage

# Names that the trainers of diffusers expect: train_text_to_image.py of one picture, train_instruct_pix2pix.py of two.
IMAGE, ORIGINAL, EDITED, REQUEST = "image", "input_image", "edited_image", "edit_prompt"
CAPTION = "text"
SUFFIXES = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "WEBP": "webp", "BMP": "bmp", "TIFF": "tiff"}
LARGEST_PX = 1 << 20  # a converted picture keeps its size
EXIF = re.compile(b"exif", re.IGNORECASE)  # as JPEG, PNG and WebP name it
JPEG_QUALITY = 95
ROWS_PER_FOLDER = 1_000
NEW_FOLDER = re.compile(r"\.[0-9a-f]{32}\.export\.new")  # while it is filled


class Picture(NamedTuple):
    content: bytes
    suffix: str  # by its kind, without the dot
    was: str = ""  # its kind before it was converted to PNG, as no trainer reads that


@dataclass(frozen=True)
class Example:
    """One row.

    key: the number of the row, of those that are exported, in nine digits.
    caption: the text that goes with it.
    row: its columns without vectors; JSON is text, timestamps are ISO texts, missing numbers are left out.
    pictures: IMAGE alone, or ORIGINAL and EDITED.
    request: what turns one into the other; None where there is one picture.
    side: of SIDES; empty where the rows are not divided.
    """

    key: str
    row: Values
    caption: str
    pictures: dict[str, Picture]
    request: str | None
    side: str

    @property
    def file(self) -> str:
        """The name of its picture without the suffix; in a folder of ROWS_PER_FOLDER but for the first rows.

        Programs that list folders stay quick, and the hub refuses one of more than 10,000 files.
        """
        number = int(self.key)
        return f"{number // ROWS_PER_FOLDER:06}/{self.key}" if number >= ROWS_PER_FOLDER else self.key


class LeftOut(Exception):  # noqa: N818 (it says what happened)
    """Why a row has no example, as the end of `1 row ...`."""


class Examples:
    """The examples of a CSV, read a few ahead of the one in use; iterate once, then read what was counted.

    caption: the column of the text that goes with a picture.
    pairs: where rows have an edited picture, give both, and leave out those without one.
    sides: of SIDES, or empty where the rows are not divided.
    written: how many there were, and what differs from the CSV.

    Raises UserError where there is no such column of text.
    """

    def __init__(self, reader: CsvReader, caption: str | None = None, *, pairs: bool = True) -> None:
        self._caption = caption or CAPTION
        if self._caption not in reader.names_of("text"):
            texts = ", ".join(reader.names_of("text"))
            raise UserError(f"--caption {caption}: {reader.path} has no such column of text: give one of {texts}")
        self.sides = SIDES if isinstance(reader, SplitReader) else ("",)
        self._counts = dict.fromkeys(self.sides, 0)
        self._reader = reader
        self._content_of = content_reader(reader.path)
        self._pairs = pairs_of(reader.path, reader.types) if pairs else Pairs(reader.path.parent)
        self._left_out: Counter[str] = Counter()
        self._converted: Counter[str] = Counter()
        OpenImage().load()  # HEIC, and Pillow's warnings

    def __iter__(self) -> Iterator[Example]:
        for found in in_threads(self._example_or_reason, enumerate(self._rows())):
            if isinstance(found, str):
                self._left_out[found] += 1
                continue
            self._counts[found.side] += 1
            self._converted.update(picture.was for picture in found.pictures.values() if picture.was)
            yield found

    @property
    def written(self) -> Written:
        sides = ", ".join(f"{number:,} for {side}" for side, number in self._counts.items() if side)
        left_out = ", ".join(f"{number:,} {reason}" for reason, number in self._left_out.most_common())
        converted = ", ".join(f"{number:,} {kind}" for kind, number in self._converted.most_common())
        notes = (sides, left_out and f"left out: {left_out}", converted and f"converted to PNG: {converted}")
        return Written(sum(self._counts.values()), list(filter(None, notes)))

    def _rows(self) -> Iterator[Values]:
        names = [name for name, kind in self._reader.types.items() if kind != "vector"]
        for block in blocks_with_bar(self._reader, names):
            yield from block.table.to_pylist()

    def _example_or_reason(self, numbered: tuple[int, Values]) -> Example | str:
        number, row = numbered
        try:
            return self._example(f"{number:09}", row)
        except LeftOut as reason:
            return str(reason)

    def _example(self, key: str, row: Values) -> Example:
        if row["error"]:
            raise LeftOut("with an error")
        known = {name: plain(value) for name, value in row.items() if value is not None}
        caption, side = str(row[self._caption]), row[SPLIT] if len(self.sides) > 1 else ""
        if not self._pairs:
            pictures = {IMAGE: self._picture(row["image_path"], "picture")}
            return Example(key, known, caption, pictures, None, side)
        edited = self._pairs.key(row)
        if not edited:
            raise LeftOut("without an edited picture")
        pictures = {
            ORIGINAL: self._picture(row["image_path"], "picture"),
            EDITED: self._picture(edited, "edited picture"),
        }
        return Example(key, known, caption, pictures, self._pairs.request(row), side)

    def _picture(self, key: str, what: str) -> Picture:
        try:
            content = self._content_of(key).read()
        except Exception:  # of any place that pictures come from
            raise LeftOut(f"whose {what} is gone") from None
        try:
            return picture_of(content)
        except Exception:  # of any decoder
            raise LeftOut(f"whose {what} cannot be read") from None


def picture_of(content: bytes) -> Picture:
    """The bytes as they are; upright, as JPEG or PNG, where EXIF says that they are not, since not every reader turns
    them and edited pictures are upright; or a PNG of what trainers do not read. Raises as `pictures.decode` does.
    """
    kind = kind_of(content[:SNIFFED_BYTES])
    is_known = kind in SUFFIXES
    if is_known and not is_turned(content):
        return Picture(content, SUFFIXES[kind])
    image = decode(content, Limits(LARGEST_PX, OpenImage.max_megapixels)).image
    file = BytesIO()
    if kind == "JPEG":
        image.save(file, "JPEG", quality=JPEG_QUALITY)
        return Picture(file.getvalue(), SUFFIXES[kind])
    image.save(file, "PNG")
    return Picture(file.getvalue(), "png", "" if is_known else kind or "other kinds")


def saved(picture: Picture, folder: Path, name: str) -> str:
    """Write a picture into a folder, under a name to which its suffix is added; return that name."""
    file = f"{name}.{picture.suffix}"
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_bytes(picture.content)
    return file


def is_turned(content: bytes) -> bool:
    """Whether EXIF asks for the picture to be turned; no where that cannot be told. Pillow turns TIFF files itself."""
    from PIL import Image

    if not EXIF.search(content):
        return False
    try:
        with Image.open(BytesIO(content)) as image:
            if image.format == "PNG":
                image.load()  # EXIF may stand after the pixels
            return turn_upright(image) is not None
    except Exception:  # of any decoder
        return False


def plain(value: object) -> object:
    """A value as JSON knows it."""
    return value.isoformat() if isinstance(value, datetime) else value


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a folder to fill, which becomes `out` once the block has succeeded.

    Raises UserError where there is something else, or where it cannot be written.
    """
    place = Path(os.path.realpath(out))  # `.` has no name, and what a link points to is filled
    new = place.parent / f".{uuid4().hex}.export.new"
    try:
        if is_stream(out) or (out.exists() and not out.is_dir()):
            raise UserError(f"{out} is not a folder: name a new one with --out")
        if out.is_dir() and any(out.iterdir()):
            raise UserError(f"{out} is not empty: name a new folder with --out")
        remove_abandoned(place.parent)
        new.mkdir(parents=True)
        yield new
        os.replace(new, place)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror or error}): name another folder") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def remove_abandoned(parent: Path) -> None:
    """Remove folders that kills have left half filled; one with a file of the last hour may be another export's."""
    for folder in parent.glob(".*.export.new"):
        with suppress(OSError):  # another export has removed it, or it is another user's
            times_s = (path.stat().st_mtime for path in (folder, *folder.rglob("*")))
            if NEW_FOLDER.fullmatch(folder.name) and time.time() - max(times_s) > ABANDONED_S:
                shutil.rmtree(folder)
