"""Rows to a COCO data set as pycocotools reads it: pictures, boxes with their labels, captions."""

import argparse
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from io import BytesIO
from pathlib import Path

from vec_pipeline.annotations import CsvReader, json_of
from vec_pipeline.commands.export.files import Written
from vec_pipeline.commands.export.training import IMAGE, Example, Examples, saved
from vec_pipeline.commands.report.rows import converted, object_of
from vec_pipeline.record import Values

BOXES = "objects"  # the column of `detect`


def write(reader: CsvReader, folder: Path, options: argparse.Namespace) -> Written:
    """Write images/, annotations/instances.json and annotations/captions.json; where the rows are divided, train/ and
    validation/, annotations/instances_train.json and so on.
    """
    examples = Examples(reader, options.caption, pairs=False)
    labels: dict[str, int] | None = {} if BOXES in reader.names_of("json") else None
    (folder / "annotations").mkdir()
    with ExitStack() as stack:
        made = {side: CocoSet(folder, side, labels, f"{reader.path}: {BOXES}") for side in examples.sides}
        sets = {side: stack.enter_context(closing(each)) for side, each in made.items()}
        for example in examples:
            sets[example.side].add(example)
    lost = sum(each.lost for each in made.values())
    rows, notes = examples.written
    notes = [*notes, *([f"boxes left out, without a label or outside of their picture: {lost:,}"] if lost else [])]
    return Written(rows, notes if labels is not None else [*notes, f"no boxes: there is no column {BOXES} of detect"])


class CocoSet:
    """The pictures and the files of one side.

    labels: the numbers of labels, by their names, which grow; None where there are no boxes.
    lost: boxes that were left out.
    """

    def __init__(self, folder: Path, side: str, labels: dict[str, int] | None, where: str) -> None:
        self.lost = 0
        self._folder, self._labels, self._where = folder / (side or "images"), labels, where
        self._folder.mkdir()
        ending = f"_{side}.json" if side else ".json"
        self._captions = CocoFile(folder / f"annotations/captions{ending}")
        self._instances = CocoFile(folder / f"annotations/instances{ending}", labels) if labels is not None else None

    def add(self, example: Example) -> None:
        """Save the picture and what is known of it; one whose `objects` is empty was never looked at."""
        image = self._saved(example)
        caption = " ".join(example.caption.split())
        self._captions.add(image, [{"caption": caption}] if caption else [])
        objects = json_of(str(example.row.get(BOXES, "null")), self._where) if self._instances else None
        if self._instances and objects is not None:
            self._instances.add(image, self._boxes(objects, image["width"], image["height"]))

    def close(self) -> None:
        self._captions.close()
        if self._instances:
            self._instances.close()

    def _saved(self, example: Example) -> Values:
        from PIL import Image

        picture, key = example.pictures[IMAGE], example.row["image_path"]
        with Image.open(BytesIO(picture.content)) as image:
            width, height = image.size
        file = saved(picture, self._folder, example.file)
        found = {"id": int(example.key), "file_name": file, "width": width, "height": height, "image_path": key}
        return found | ({"coco_url": key} if key.startswith(("http://", "https://")) else {})

    def _boxes(self, objects: object, width: int, height: int) -> list[Values]:
        """The annotations for the boxes of a picture: [left, top, width, height] in its pixels, within it."""
        assert self._labels is not None
        found = []
        for label, score, left, top, right, bottom in converted(objects, object_of):
            left, top = max(0, left), max(0, top)
            box = [left, top, min(right, width) - left, min(bottom, height) - top]
            if label and min(box[2:]) > 0:
                number = self._labels.setdefault(label, len(self._labels) + 1)
                known = {"category_id": number, "bbox": box, "area": box[2] * box[3], "iscrowd": 0, "score": score}
                found.append(known)
        self.lost += (len(objects) if isinstance(objects, list) else 1) - len(found)
        return found


class CocoFile:
    """A JSON file of images and annotations, written as they come; the annotations wait in a temporary file.

    labels: the numbers of labels, by their names, as they are when the file is closed; None for captions.
    """

    def __init__(self, path: Path, labels: Mapping[str, int] | None = None) -> None:
        self._labels = labels
        self._file = path.open("w", encoding="utf-8")
        self._waiting = tempfile.TemporaryFile("w+", encoding="utf-8", dir=path.parent)  # noqa: SIM115
        self._images = self._annotations = 0
        self._file.write('{"info": {}, "licenses": [],\n"images": [')

    def add(self, image: Values, annotations: Sequence[Values]) -> None:
        self._file.write(f"{',' if self._images else ''}\n{json.dumps(image, ensure_ascii=False)}")
        self._images += 1
        for annotation in annotations:
            comma = "," if self._annotations else ""
            self._annotations += 1  # numbers begin with 1: 0 means "no match" to COCOeval
            numbered = {"id": self._annotations, "image_id": image["id"], **annotation}
            self._waiting.write(f"{comma}\n{json.dumps(numbered, ensure_ascii=False)}")

    def close(self) -> None:
        with self._file, self._waiting:
            self._waiting.seek(0)
            self._file.write('],\n"annotations": [')
            shutil.copyfileobj(self._waiting, self._file)
            self._file.write("]")
            if self._labels is not None:
                categories = [{"id": number, "name": label} for label, number in self._labels.items()]
                self._file.write(f',\n"categories": {json.dumps(categories, ensure_ascii=False)}')
            self._file.write("}\n")
