"""content -> objects, what is where in a picture, and object_counts, by an object detector of transformers."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from PIL import Image

from vec_pipeline import device
from vec_pipeline.device import Device
from vec_pipeline.engines import detectors
from vec_pipeline.engines.detectors import Detector, Found
from vec_pipeline.pictures.full_size import Opened, open_all
from vec_pipeline.record import Need, UserError, Values
from vec_pipeline.weights import ModelStage

MOST_IMAGES = {"cuda": 64, "mps": 16, "cpu": 16}  # at once; more are no faster
# Of the model's input, while a picture passes it: 170 to 280 measured, and 1,300 of Grounding DINO, which joins every
# place of a picture with every word.
BYTES_PER_PIXEL, OPEN_BYTES_PER_PIXEL = 300, 1500
SHARE_OF_FREE = 0.25  # of the memory, left to one batch
MIN_SCORE, OPEN_MIN_SCORE = 0.5, 0.3  # by default; models for any labels give lower scores


class Preset(NamedTuple):
    """Options for a purpose; docs/detect.md has the licences of the models."""

    model: str
    revision: str = ""
    labels: tuple[str, ...] = ()


PRESETS = {
    "coco": Preset("PekingU/rtdetr_v2_r18vd"),
    "people": Preset("PekingU/rtdetr_v2_r18vd", labels=("person",)),
    "ui": Preset("Satish678/UIED", revision="refs/pr/2"),  # the proposal that adds safetensors to pickled weights
}


@dataclass(frozen=True, kw_only=True)
class Detect(ModelStage):
    """Objects, best score first, each with its label, score and box; and how many there are of each label.

    A box is [left, top, right, bottom] in pixels of the picture in its full size and the right way up.

    preset: the model, its revision and the labels that options which are not set stand for.
    model: an object detector of transformers. Some have labels of their own; others find whatever `labels` names.
    labels: of a model's own labels, those to keep; or what to look for.
    min_score: objects below it are left out; auto is 0.5, and 0.3 for models that find whatever `labels` names.
    suppression: of boxes that overlap by more than `overlap`, keep the best of all, of each label (class), or all.
    overlap: the intersection of two boxes by their union.
    most_objects: the best are written; `object_counts` counts them all.
    max_megapixels: that a picture may take in memory before it is reduced; a larger one gets an error.
    """

    # The image is too small to find small objects; without it, an unreadable file has its error of open_image already.
    reads: ClassVar[tuple[str, ...]] = ("content", "image")
    writes: ClassVar[Mapping[str, str]] = {"objects": "json", "object_counts": "json"}
    required: ClassVar[str] = "config.json"
    files: ClassVar[tuple[str, ...]] = ("*.json", "*.txt", "model*.safetensors")
    # The preset decides nothing itself: the settings hold the options that it stands for.
    speed_options: ClassVar[tuple[str, ...]] = (*ModelStage.speed_options, "max_megapixels", "preset")

    preset: Literal["coco", "people", "ui"] = "coco"
    model: str = ""
    labels: tuple[str, ...] = ()
    min_score: float | Literal["auto"] = "auto"
    suppression: Literal["none", "class", "all"] = "all"
    overlap: float = 0.7
    most_objects: int = 300
    max_megapixels: int = 179
    device: Device = "auto"
    batch_size: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        """Raises ValueError for a score or an overlap above 1."""
        super().__post_init__()
        preset = PRESETS[self.preset]
        if not self.model:
            object.__setattr__(self, "model", preset.model)
            object.__setattr__(self, "revision", self.revision or preset.revision)
        object.__setattr__(self, "labels", self.labels or preset.labels)
        for option in ("min_score", "overlap"):
            if (value := getattr(self, option)) != "auto" and value > 1:
                raise ValueError(f"{option}: must be a number from 0 to 1, not {value}")

    def check(self, path: Path) -> None:
        from vec_pipeline.engines import checkpoint

        try:
            checkpoint.refuse_other(path, self.required, checkpoint.DETECTOR)
            super().check(path)
            detectors.check(path, self.labels, allow_pickle=self.allow_pickle)
        except ValueError as error:
            raise UserError(f"{self.name}: {error}") from None

    def need(self) -> Need:
        gb = self.weights_gb()
        return Need(gpu_gb=gb) if device.resolve(self.device) == "cuda" else Need(host_gb=gb)

    def load(self) -> Detector:
        where = device.resolve(self.device)
        return detectors.load(self.path(), self.labels, where, allow_pickle=self.allow_pickle)

    def auto_batch_size(self, model: Detector, reserved_gb: float) -> int:
        """As many pictures as a share of the free memory holds at work, up to MOST_IMAGES."""
        height, width = model.input_size
        image_bytes = height * width * (OPEN_BYTES_PER_PIXEL if model.text else BYTES_PER_PIXEL)
        return device.rows_that_fit(model.device, image_bytes, SHARE_OF_FREE, MOST_IMAGES, reserved_gb)

    def run(self, model: Detector, rows: list[Values], at_once: int) -> list[Values]:
        pictures = open_all([row["content"] for row in rows], model.side_px, self.max_megapixels)
        images = [detectors.evened(each.image) for each in pictures if isinstance(each, Opened)]
        answers = iter(zip(images, model.detect(images, self._least_score(model)), strict=True))
        return [
            {"error": each} if isinstance(each, str) else self._values(model.names, each.size, *next(answers))
            for each in pictures
        ]

    def _least_score(self, model: Detector) -> float:
        if self.min_score != "auto":
            return self.min_score
        return OPEN_MIN_SCORE if model.text else MIN_SCORE

    def _values(
        self, names: Mapping[int, str], size: tuple[int, int], image: Image.Image, found: Found | str
    ) -> Values:
        """size: width and height of the file. image: what the model was given."""
        if isinstance(found, str):
            return {"error": found}
        kept = suppressed(placed(found, image.size, size), self.suppression, self.overlap)
        objects = [
            {"label": names.get(label, f"label {label}"), "score": round(score, 4), "box": box}
            for score, label, box in zip(*(each.tolist() for each in kept), strict=True)
        ]
        if self.labels:
            objects = [each for each in objects if each["label"] in self.labels]
        counts = Counter(each["label"] for each in objects)
        return {
            "objects": objects[: self.most_objects],
            "object_counts": dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        }


def placed(found: Found, given: tuple[int, int], full: tuple[int, int]) -> Found:
    """With boxes in whole pixels of the full picture and of at least one, without those that lie outside it.

    given, full: width and height of the picture that the model was given, and of the file.
    """
    import torch

    edges = torch.tensor(full * 2)
    boxes = (found.boxes * edges / torch.tensor(given * 2)).clamp(min=0).minimum(edges)
    is_inside = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    corners = boxes[is_inside].round().long()
    first = corners[:, :2].minimum(edges[:2] - 1)
    last = corners[:, 2:].maximum(first + 1)
    return Found(found.scores[is_inside], found.labels[is_inside], torch.cat([first, last], dim=1))


def suppressed(found: Found, suppression: str, overlap: float) -> Found:
    """Best score first, without boxes that overlap a better one of any label (all), or of their own (class)."""
    from torchvision.ops import batched_nms, nms

    boxes = found.boxes.float()
    if suppression == "none":
        order = found.scores.argsort(descending=True, stable=True)
    elif suppression == "class":
        order = batched_nms(boxes, found.scores, found.labels, overlap)
    else:
        order = nms(boxes, found.scores, overlap)
    return Found(*(each[order] for each in found))
