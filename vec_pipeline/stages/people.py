"""content, objects -> people_count and people: the age group and gender that image classifiers guess for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from vec_pipeline import device
from vec_pipeline.device import Device
from vec_pipeline.engines import image_models
from vec_pipeline.pictures.full_size import Opened, open_all
from vec_pipeline.pictures.pixels import reduced, resized
from vec_pipeline.record import Need, UserError, Values
from vec_pipeline.weights import ModelStage

QUESTIONS = {"age": "model", "gender": "gender_model"}  # what is asked about a person, and the option with its model
AUTO = "AutoModelForImageClassification"
WANTED = "an image classifier of transformers, such as dima806/fairface_age_image_detection"
PICTURE_PX = 2048  # the longest side that pictures are reduced to before people are cut out
CROP_PX = 512  # and then what was cut out, so that memory is bounded; classifiers take 224 to 448
SMALLEST_PX = 16  # of a crop: transformers takes sides of 1 and 3 for colour channels
THINNEST = 8  # times as long as wide: processors that keep the shape would make a strip of a gigabyte of one line
CROPS_PER_PICTURE = 4  # classified at once, for each picture that may take memory at once
LARGEST_PX = 1 << 20  # that a box may say

Region = tuple[int, int, int, int]  # left, top, right, bottom in pixels


class Classifier(NamedTuple):
    """An image classifier, the processor that prepares its crops, and where it runs."""

    model: Any
    processor: Any
    device: str

    def answers(self, crops: Sequence[Any]) -> list[dict[str, float]]:
        """The probability of each of the model's labels, rounded to 4 places, most probable first, for each crop."""
        import torch

        pixels = self.processor(list(crops), return_tensors="pt")["pixel_values"].to(self.device)
        with torch.inference_mode():
            probabilities = self.model(pixel_values=pixels).logits.softmax(-1).tolist()
        names = self.model.config.id2label
        pairs = [sorted(enumerate(each), key=lambda pair: -pair[1]) for each in probabilities]
        return [{names[index]: round(probability, 4) for index, probability in each} for each in pairs]


@dataclass(frozen=True, kw_only=True)
class People(ModelStage):
    """How many people there are, and for each the probabilities of age groups and genders: guesses at appearance.

    Each has the `score` and `box` that it has in `objects`, and `age` and `gender`, which map the classifiers' labels
    to probabilities. One of them is null for a person that was not looked at: after the first `most_people`, or with a
    box outside of the picture.

    model: the classifier of age groups; empty to leave them out.
    gender_model: that of genders; empty to leave them out.
    labels: of the objects that are people.
    crop: what classifiers see: head, the top of the box, as high as it is wide; whole, all of it.
    most_people: of a picture, that are looked at.
    max_megapixels: that an image may take in memory before it is reduced; a larger one gets an error.
    """

    # Not `image`, in which heads have too few pixels. A file that cannot be opened has no objects, and no second error.
    reads: ClassVar[tuple[str, ...]] = ("content", "objects")
    writes: ClassVar[Mapping[str, str]] = {"people_count": "number", "people": "json"}
    required: ClassVar[str] = "config.json"
    files: ClassVar[tuple[str, ...]] = (
        "config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "model-*.safetensors",
    )
    speed_options: ClassVar[tuple[str, ...]] = (*ModelStage.speed_options, "max_megapixels")

    model: str = "dima806/fairface_age_image_detection"
    gender_model: str = "dima806/fairface_gender_image_detection"
    gender_revision: str = ""
    labels: tuple[str, ...] = ("person",)
    crop: Literal["head", "whole"] = "head"
    most_people: int = 100
    max_megapixels: int = 179
    device: Device = "auto"
    batch_size: int = 8

    def __post_init__(self) -> None:
        """Raises ValueError for options that find nobody."""
        super().__post_init__()
        if not self.labels:
            raise ValueError("labels is empty: name labels that `objects` has, such as person")

    @property
    def models(self) -> Mapping[str, str]:
        both = {"model": "revision", "gender_model": "gender_revision"}
        return {option: revision for option, revision in both.items() if getattr(self, option)}

    def check(self, path: Path) -> None:
        from vec_pipeline.engines import checkpoint

        try:
            checkpoint.refuse_other(path, self.required, WANTED)
            super().check(path)
            checkpoint.check_weights(path, allow_pickle=self.allow_pickle)
            check_classifier(path, allow_pickle=self.allow_pickle)
        except ValueError as error:
            runs_code = "trust_remote_code" in str(error)
            problem = f"{path} runs Python files of its own: give {WANTED}" if runs_code else error
            raise UserError(f"{self.name}: {problem}") from None

    def need(self) -> Need:
        gb = self.weights_gb()
        return Need(gpu_gb=gb) if device.resolve(self.device) == "cuda" else Need(host_gb=gb)

    def load(self) -> dict[str, Classifier]:
        where = device.resolve(self.device)
        model = {}
        for question, option in QUESTIONS.items():
            if option in self.models:
                path = self.path(option)
                network = image_models.load_model(AUTO, path, where, allow_pickle=self.allow_pickle)
                model[question] = Classifier(network, image_models.load_processor(path), where)
        return model

    def run(self, model: dict[str, Classifier], rows: list[Values], at_once: int) -> list[Values]:
        results = [people_of(row["objects"], self.labels, tuple(model)) for row in rows]
        wanted = [index for index, result in enumerate(results) if model and result.get("people")]
        contents = [rows[index]["content"] for index in wanted]
        pictures = open_all(contents, lambda _: PICTURE_PX, self.max_megapixels) if wanted else []
        crops: list[Crop] = []
        for index, picture in zip(wanted, pictures, strict=True):
            if isinstance(picture, str):
                results[index]["error"] = picture
            else:
                crops += self._crops(results[index]["people"], picture)
        for start in range(0, len(crops), CROPS_PER_PICTURE * at_once):
            ask(model, crops[start : start + CROPS_PER_PICTURE * at_once])
        return results

    def _crops(self, people: Sequence[Values], picture: Opened) -> list["Crop"]:
        """What classifiers are to see of the people of a picture, without those that are not looked at."""
        places = [(each, region_of(each["box"], picture, self.crop)) for each in people[: self.most_people]]
        return [Crop(person, picture.image, region) for person, region in places if region]


class Crop(NamedTuple):
    """A person to look at: its entry in the result, the picture, and the region of it that classifiers see."""

    person: Values
    image: Any
    region: Region


def ask(model: Mapping[str, Classifier], crops: Sequence[Crop]) -> None:
    """Write the classifiers' answers into the entries of the people."""
    images = [cut(each.image, each.region) for each in crops]
    for question, classifier in model.items():
        for each, answer in zip(crops, classifier.answers(images), strict=True):
            each.person[question] = answer


def people_of(objects: Any, labels: Sequence[str], questions: Sequence[str]) -> Values:
    """The result of a row before anybody was looked at; or why the value is no list of objects, as its error."""
    if not isinstance(objects, list):
        return {
            "error": f"ValueError: objects is a {type(objects).__name__}, not a list of objects as detect writes it"
        }
    for index, each in enumerate(objects):
        if not (isinstance(each, dict) and isinstance(each.get("label"), str) and is_box(each.get("box"))):
            form = '{"label": "person", "score": 0.9, "box": [10, 20, 110, 220]}'
            return {"error": f"ValueError: objects[{index}] has no label or no box in pixels; a valid one is {form}"}
    people = [each for each in objects if each["label"] in labels]
    entries = [{"score": each.get("score"), "box": each["box"], **dict.fromkeys(questions)} for each in people]
    return {"people_count": len(people), "people": entries}


def is_box(box: Any) -> bool:
    """Whether it is four numbers that can be pixels: not NaN, and not beyond any picture."""
    return isinstance(box, list) and len(box) == 4 and all(map(is_pixel, box))


def is_pixel(value: Any) -> bool:
    return isinstance(value, int | float) and -LARGEST_PX <= value <= LARGEST_PX


def region_of(box: Sequence[float], picture: Opened, crop: str) -> Region | None:
    """The part of a picture that classifiers see, in pixels of the reduced picture; None for nothing of the picture.

    box: in pixels of the picture in its full size.
    """
    left, top, right, bottom = box
    if crop == "head":
        bottom = min(bottom, top + right - left)
    (width, height), (reduced_width, reduced_height) = picture.size, picture.image.size
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if left >= right or top >= bottom:
        return None
    x, y = reduced_width / width, reduced_height / height
    return floor(left * x), floor(top * y), min(ceil(right * x), reduced_width), min(ceil(bottom * y), reduced_height)


def cut(image: Any, region: Region) -> Any:
    """The region of an image, of a size and shape that every processor can take."""
    crop = image.crop(region)
    width, height = reduced(crop.size, CROP_PX)
    return resized(crop, (max(width, height // THINNEST, SMALLEST_PX), max(height, width // THINNEST, SMALLEST_PX)))


def check_classifier(folder: Path, *, allow_pickle: bool) -> None:
    """Raise ValueError unless a folder holds an image classifier with all its weights and its image processor."""
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoConfig

    from vec_pipeline.engines import checkpoint

    with checkpoint.reading(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise ValueError(f"{folder} is a {config.model_type} model, which does not classify images: give {WANTED}")
    if config.num_labels < 2:
        raise ValueError(f"{folder} has one label, and so nothing to choose from: give {WANTED}")
    image_models.check(AUTO, folder, WANTED, allow_pickle=allow_pickle)
