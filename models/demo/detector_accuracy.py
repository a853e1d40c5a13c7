"""How right the demo detector is on drawn pictures: `python -m models.demo.detector_accuracy` prints the figures."""

import contextlib
import io
import random
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou, nms

from models.demo.boxed import BoxedPicture
from models.demo.detection_pictures import LABELS, SORTS, random_picture
from models.demo.people import PERSON

FOLDER = Path(__file__).parent / "detector"
LEAST_SCORE = 0.4  # from which on an answer counts as an object
SAME_OBJECT = 0.7  # overlap (intersection over union) from which on two answers are one object, whatever their labels
RIGHT_OVERLAP = 0.5
BATCH = 32


class Found(NamedTuple):
    """A model's answers for one picture, best first: scores and labels (n,), boxes (n, 4) in pixels."""

    scores: Tensor
    labels: Tensor
    boxes: Tensor

    def suppressed(self, least_score: float = LEAST_SCORE) -> "Found":
        """Without what is doubtful or the same object again."""
        likely = self.scores > least_score
        scores, labels, boxes = (column[likely] for column in self)
        kept = nms(boxes, scores, SAME_OBJECT)
        return Found(scores[kept], labels[kept], boxes[kept])


def accuracy(folder: Path, pictures: dict[str, list[BoxedPicture]]) -> dict[str, float]:
    """Mean average precision at an overlap of 0.5 over all labels, and the shares of people counted right and of
    interface screens whose elements are all right and nothing else."""
    found = {sort: detect(folder, some) for sort, some in pictures.items()}
    everything = [answer for answers in found.values() for answer in answers]
    figures = {"mAP@50": average_precision(everything, [one for some in pictures.values() for one in some])}
    figures |= {f"mAP@50 {sort}": average_precision(found[sort], some) for sort, some in pictures.items()}
    clean = {sort: [answer.suppressed() for answer in answers] for sort, answers in found.items()}
    figures["people counted"] = share(map(people_counted, clean["people"], pictures["people"]))
    figures |= {f"whole {sort} right": share(map(whole_right, clean[sort], some)) for sort, some in pictures.items()}
    return {name: round(value, 3) for name, value in figures.items()}


@torch.no_grad()
def detect(folder: Path, pictures: list[BoxedPicture]) -> list[Found]:
    """All answers of the model in a folder, through the library's own processor."""
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    model = AutoModelForObjectDetection.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    found = []
    for start in range(0, len(pictures), BATCH):
        images = [picture.image for picture in pictures[start : start + BATCH]]
        output = model(**processor(images, return_tensors="pt"))
        sizes = [(image.height, image.width) for image in images]
        answers = processor.post_process_object_detection(output, threshold=0.0, target_sizes=sizes)
        found += [Found(answer["scores"], answer["labels"], answer["boxes"]) for answer in answers]
    return found


def people_counted(found: Found, picture: BoxedPicture) -> bool:
    people = sum(item.label == PERSON for item in picture.objects)
    return int((found.labels == LABELS.index(PERSON)).sum()) == people


def whole_right(found: Found, picture: BoxedPicture) -> bool:
    """Whether every object was found once, with its label and a box that overlaps, and nothing besides."""
    if len(found.labels) != len(picture.objects):
        return False
    if not picture.objects:
        return True
    overlaps = box_iou(torch.tensor([item.box for item in picture.objects]), found.boxes)
    best, which = overlaps.max(1)
    labels = torch.tensor([LABELS.index(item.label) for item in picture.objects])
    once = len(set(which.tolist())) == len(which)
    return once and bool((best >= RIGHT_OVERLAP).all()) and bool((found.labels[which] == labels).all())


def average_precision(found: list[Found], pictures: list[BoxedPicture]) -> float:
    """COCO's mean over the labels that occur, at an overlap of 0.5."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = coco_truth(pictures)
        truth.createIndex()
        rows = [
            [index, left, top, right - left, bottom - top, score, label]
            for index, answer in enumerate(found)
            for score, label, (left, top, right, bottom) in zip(*(column.tolist() for column in answer), strict=True)
        ]
        evaluation = COCOeval(truth, truth.loadRes(np.array(rows)), "bbox")
        evaluation.params.iouThrs = np.array([RIGHT_OVERLAP])
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][0, :, :, 0, -1]  # recalls by labels; all sizes, 100 answers a picture
    return float(precision[precision > -1].mean())


def coco_truth(pictures: list[BoxedPicture]) -> dict[str, list[dict[str, Any]]]:
    objects = [(index, item) for index, picture in enumerate(pictures) for item in picture.objects]
    annotations = [
        {
            "id": number,
            "image_id": index,
            "category_id": LABELS.index(item.label),
            "bbox": [left, top, right - left, bottom - top],
            "area": (right - left) * (bottom - top),
            "iscrowd": 0,
        }
        for number, (index, item) in enumerate(objects, 1)
        for left, top, right, bottom in [item.box]
    ]
    return {
        "images": [{"id": index} for index in range(len(pictures))],
        "annotations": annotations,
        "categories": [{"id": index, "name": name} for index, name in enumerate(LABELS)],
    }


def share(answers: Any) -> float:
    return float(np.mean(list(answers)))


def main(folder: Path = FOLDER, number: int = 500) -> None:
    rng = random.Random("accuracy")
    pictures = {sort: [random_picture(rng, held_out=True, sort=sort) for _ in range(number)] for sort in SORTS}
    for name, value in accuracy(folder, pictures).items():
        print(f"{name}: {value:.3f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*map(Path, sys.argv[1:2]))
