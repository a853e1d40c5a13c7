"""Drawn people are counted, and their age group and gender found by the bundled classifiers; bad boxes cost one row."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    CLIPImageProcessor,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from models.demo.boxed import BoxedPicture, Labelled
from models.demo.detection_pictures import full_picture
from models.demo.people import PERSON
from tests.conftest import PROJECT, Run
from vec_pipeline import settings, weights
from vec_pipeline.checks import findings, model_files
from vec_pipeline.config import Config, ConfigError, load_config
from vec_pipeline.contract import check_results
from vec_pipeline.engines import image_models
from vec_pipeline.pictures.full_size import Opened
from vec_pipeline.record import Stage, UserError, Values
from vec_pipeline.stages.people import AUTO, CROP_PX, PICTURE_PX, SMALLEST_PX, Classifier, People, cut, region_of

DEMO = PROJECT / "models" / "demo"
AGE, GENDER, DETECTOR = DEMO / "people" / "age", DEMO / "people" / "gender", DEMO / "detector"
EXIF_ORIENTATION = 0x0112
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
COUNT_ONLY = People(model="", gender_model="", device="cpu")

Model = dict[str, Classifier]


class Bytes:
    """Content in memory, which counts how often it is read."""

    link = ""

    def __init__(self, content: bytes) -> None:
        self.content, self.reads = content, 0

    def read(self) -> bytes:
        self.reads += 1
        return self.content

    def identity(self) -> str:
        return str(hash(self.content))


@pytest.fixture(scope="module")
def stage() -> People:
    return People(model=str(AGE), gender_model=str(GENDER), crop="whole", device="cpu")


@pytest.fixture(scope="module")
def model(stage: People) -> Model:
    return stage.load()


@dataclass
class Eyes:
    """Stands in for a classifier: what fills most of a crop, red, blue or white; and the crops that it saw at once."""

    seen: list[Sequence[Image.Image]]

    def answers(self, crops: Sequence[Image.Image]) -> list[dict[str, float]]:
        self.seen.append(crops)
        return [self._answer(crop.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))) for crop in crops]

    def _answer(self, pixel: Any) -> dict[str, float]:
        distance = {name: sum(abs(a - b) for a, b in zip(pixel, rgb, strict=True)) for name, rgb in COLOURS.items()}
        return {min(distance, key=lambda name: distance[name]): 1.0}


COLOURS = {"red": RED, "blue": BLUE, "white": WHITE}


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def person(*box: float, label: str = PERSON, score: float = 0.9) -> Values:
    return {"label": label, "score": score, "box": list(box)}


def row(image: Image.Image | bytes, *objects: Any) -> Values:
    content = image if isinstance(image, bytes) else encoded(image)
    return {"content": Bytes(content), "objects": list(objects)}


def painted(size: tuple[int, int], *regions: tuple[tuple[int, int, int, int], tuple[int, int, int]]) -> Image.Image:
    image = Image.new("RGB", size, WHITE)
    for region, colour in regions:
        image.paste(colour, region)
    return image


def looked_at(stage: People, *rows: Values, at_once: int = 8) -> list[Values]:
    """Run the stage with eyes for colours; `age` is the colour that was seen."""
    return stage.run({"age": Eyes([])}, list(rows), at_once)  # type: ignore[dict-item]


def ages(result: Values) -> list[str | None]:
    return [next(iter(each["age"])) if each["age"] else None for each in result["people"]]


def drawn(number: int, seed: int) -> list[BoxedPicture]:
    """Pictures with so many people together, of combinations that the classifiers were not trained on."""
    rng, pictures = random.Random(seed), list[BoxedPicture]()
    while sum(each.label == PERSON for picture in pictures for each in picture.objects) < number:
        pictures.append(full_picture(rng, held_out=True, sort="people"))
    return pictures


def true_objects(picture: BoxedPicture) -> list[Values]:
    return [person(*map(round, each.box), label=each.label) for each in picture.objects]


def people_on(picture: BoxedPicture) -> list[Labelled]:
    return [each for each in picture.objects if each.label == PERSON]


# --- content


def test_age_group_and_gender_of_drawn_people_are_found(stage: People, model: Model) -> None:
    pictures = drawn(60, seed=5)
    results = stage.run(model, [row(each.image, *true_objects(each)) for each in pictures], 8)
    assert [result["people_count"] for result in results] == [len(people_on(each)) for each in pictures]
    pairs = [
        (found, true)
        for result, picture in zip(results, pictures, strict=True)
        for found, true in zip(result["people"], people_on(picture), strict=True)
    ]
    for question in ("age", "gender"):
        right = [next(iter(found[question])) == getattr(true, question) for found, true in pairs]
        assert len(right) >= 60 and sum(right) / len(right) >= 0.95, question
    assert any(each.label != PERSON for picture in pictures for each in picture.objects), "which are not counted"


def test_an_entry_has_score_box_and_probabilities(stage: People, model: Model) -> None:
    picture = drawn(2, seed=7)[0]
    [result] = stage.run(model, [row(picture.image, *true_objects(picture))], 8)
    assert result.keys() == set(People.writes)
    check_results(stage, [result], 1)
    for found, given in zip(result["people"], true_objects(picture), strict=True):
        assert list(found) == ["score", "box", "age", "gender"]
        assert (found["score"], found["box"]) == (0.9, given["box"])
        assert set(found["age"]) == {"child", "adult", "senior"} and set(found["gender"]) == {"female", "male"}
        for answer in (found["age"], found["gender"]):
            assert list(answer.values()) == sorted(answer.values(), reverse=True)
            assert sum(answer.values()) == pytest.approx(1, abs=2e-4)
            assert all(probability == round(probability, 4) for probability in answer.values())
    json.dumps(result)


def test_a_batch_of_pictures_gives_what_they_give_alone(stage: People, model: Model) -> None:
    rows = [row(each.image, *true_objects(each)) for each in drawn(20, seed=9)]
    together = stage.run(model, rows, 8)
    for one, alone in zip(together, [stage.run(model, [each], 1)[0] for each in rows], strict=True):
        assert one["people_count"] == alone["people_count"]
        for found, expected in zip(one["people"], alone["people"], strict=True):
            for question in ("age", "gender"):
                assert found[question] == pytest.approx(expected[question], abs=1e-3)


# --- what classifiers see


@pytest.mark.parametrize(("crop", "colour"), [("head", "red"), ("whole", "blue")])
def test_the_head_of_a_box_is_its_top_as_high_as_it_is_wide(crop: Any, colour: str) -> None:
    image = painted((300, 400), ((100, 50, 160, 110), RED), ((100, 110, 160, 350), BLUE))
    [result] = looked_at(replace(COUNT_ONLY, crop=crop), row(image, person(100, 50, 160, 350)))
    assert ages(result) == [colour]
    picture = Opened(image, image.size)
    assert region_of([100, 50, 160, 350], picture, "head") == (100, 50, 160, 110)
    assert region_of([100, 50, 160, 350], picture, "whole") == (100, 50, 160, 350)
    assert region_of([100, 50, 260, 110], picture, "head") == (100, 50, 260, 110), "of one who lies, all of it"


def test_boxes_are_pixels_of_the_picture_in_its_full_size() -> None:
    def wide(scale: int) -> Values:
        image = painted((PICTURE_PX * scale, 300), ((1900 * scale, 100, 2000 * scale, 200), RED))
        return row(image, *(person(left * scale, 100, (left + 100) * scale, 200) for left in (1900, 1700)))

    eyes = Eyes([])
    results = COUNT_ONLY.run({"age": eyes}, [wide(1), wide(2)], 8)  # type: ignore[dict-item]
    assert [ages(result) for result in results] == [["red", "white"]] * 2
    assert [crop.size for crop in eyes.seen[0]] == [(100, 100)] * 2 + [(100, 50)] * 2, "of the reduced picture"


def test_boxes_are_of_the_picture_the_right_way_up() -> None:
    upright = painted((300, 200), ((200, 20, 280, 100), RED))
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    content = encoded(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)
    [result] = looked_at(COUNT_ONLY, row(content, person(200, 20, 280, 100), person(20, 20, 100, 100)))
    assert ages(result) == ["red", "white"]


def test_the_edges_of_a_box_are_cut_off_at_those_of_the_picture() -> None:
    picture = Opened(Image.new("RGB", (30, 20)), (300, 200))
    assert region_of([-50, -50, 90, 400], picture, "whole") == (0, 0, 9, 20)
    assert region_of([251.5, 150.2, 400, 400], picture, "whole") == (25, 15, 30, 20)
    assert region_of([299, 199, 300, 200], picture, "whole") == (29, 19, 30, 20), "a pixel at least"
    beside = ([-90, 0, 0, 50], [300, 0, 400, 50], [0, -9, 50, 0], [0, 200, 50, 300])
    for outside in (*beside, [90, 0, 10, 50], [9, 9, 9, 9]):
        assert region_of(outside, picture, "whole") is None


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1, 1), (16, 16)),
        ((3, 40), (16, 40)),
        ((1, 2000), (64, CROP_PX)),
        ((2000, 2), (CROP_PX, 64)),
        ((1000, 500), (CROP_PX, 256)),
        ((100, 80), (100, 80)),
    ],
)
def test_a_crop_has_a_size_that_every_processor_takes(size: tuple[int, int], expected: tuple[int, int]) -> None:
    image = Image.new("RGB", (2000, 2000), RED)
    crop = cut(image, (0, 0, *size))
    assert crop.size == expected and crop.getpixel((0, 0)) == RED
    assert min(crop.size) >= SMALLEST_PX


def test_a_crop_of_one_pixel_and_one_as_thin_as_a_line_are_classified(stage: People, model: Model) -> None:
    image = Image.new("RGB", (3000, 300), RED)
    boxes = [(0, 0, 1, 1), (0, 0, 1, 300), (0, 0, 3000, 1), (2999, 299, 3000, 300), (0, 0, 3, 9)]
    [result] = stage.run(model, [row(image, *(person(*box) for box in boxes))], 1)
    assert all(each["age"] and each["gender"] for each in result["people"])


# --- how many, and which


def test_without_models_people_are_counted_and_no_picture_is_opened() -> None:
    model = COUNT_ONLY.load()
    rows = [row(b"broken", person(1, 2, 3, 4), person(1, 2, 3, 4, label="car")), row(b"broken")]
    assert COUNT_ONLY.run(model, rows, 8) == [
        {"people_count": 1, "people": [{"score": 0.9, "box": [1, 2, 3, 4]}]},
        {"people_count": 0, "people": []},
    ]
    assert [each["content"].reads for each in rows] == [0, 0]
    COUNT_ONLY.fetch()
    assert (COUNT_ONLY.missing_gb, COUNT_ONLY.need().host_gb, weights.resolved(COUNT_ONLY)) == (0, 0, COUNT_ONLY)


def test_a_picture_without_people_is_not_opened(stage: People, model: Model) -> None:
    rows = [row(b"broken", person(1, 2, 3, 4, label="car"))]
    assert stage.run(model, rows, 8) == [{"people_count": 0, "people": []}]
    assert rows[0]["content"].reads == 0


@pytest.mark.parametrize(("option", "left"), [("model", "gender"), ("gender_model", "age")])
def test_one_question_can_be_switched_off(option: str, left: str, stage: People) -> None:
    off: dict[str, Any] = {option: ""}
    one = replace(stage, **off)
    one.fetch()
    picture = drawn(1, seed=3)[-1]
    [result] = one.run(one.load(), [row(picture.image, *true_objects(picture))], 8)
    assert all(each.keys() == {"score", "box", left} and each[left] for each in result["people"])


def test_labels_say_what_a_person_is() -> None:
    objects = [person(0, 0, 9, 9, label=label) for label in ("man", "Person", "woman", "man", "person")]
    [result] = replace(COUNT_ONLY, labels=("man", "woman")).run({}, [row(b"", *objects)], 1)
    assert result["people_count"] == 3


def test_people_of_many_pictures_are_classified_together_and_a_bounded_number_at_once() -> None:
    colours = [RED, BLUE, BLUE, RED, BLUE]
    rows = [row(Image.new("RGB", (40, 40), colour), *[person(0, 0, 40, 40)] * 5) for colour in colours]
    eyes = Eyes([])
    results = COUNT_ONLY.run({"age": eyes}, rows, 2)  # type: ignore[dict-item]
    assert [ages(result) for result in results] == [[name] * 5 for name in ("red", "blue", "blue", "red", "blue")]
    assert [len(crops) for crops in eyes.seen] == [8, 8, 8, 1], "four for each picture that may take memory at once"


def test_of_ten_thousand_people_all_are_counted_and_the_first_looked_at() -> None:
    eyes = Eyes([])
    image = Image.new("RGB", (40, 40), RED)
    rows = [row(image, *[person(0, 0, 40, 40, score=1 - number / 20_000) for number in range(10_000)])]
    [result] = COUNT_ONLY.run({"age": eyes}, rows, 8)  # type: ignore[dict-item]
    assert result["people_count"] == len(result["people"]) == 10_000
    assert ages(result) == ["red"] * 100 + [None] * 9_900
    assert [len(crops) for crops in eyes.seen] == [32, 32, 32, 4]
    assert rows[0]["content"].reads == 1


# --- bad input


def test_a_box_outside_of_the_picture_is_counted_and_not_looked_at() -> None:
    image = Image.new("RGB", (40, 40), RED)
    boxes = [(50, 0, 60, 10), (0, 0, 40, 40), (20, 20, 10, 10)]
    [result] = looked_at(COUNT_ONLY, row(image, *(person(*box) for box in boxes)))
    assert result["people_count"] == 3 and ages(result) == [None, "red", None]


BAD_OBJECTS: dict[str, tuple[Any, str]] = {
    "a text": ('[{"label": "person"}]', r"^ValueError: objects is a str, not a list of objects"),
    "a mapping": ({"person": 2}, r"^ValueError: objects is a dict, not a list"),
    "a name": (["person"], r"^ValueError: objects\[0\] has no label or no box in pixels; a valid one is \{"),
    "no label": ([{"box": [0, 0, 9, 9]}], r"objects\[0\] has no label or no box"),
    "a label that is a number": ([{"label": 3, "box": [0, 0, 9, 9]}], r"objects\[0\] has no label or no box"),
    "no box": ([person(0, 0, 9, 9), {"label": PERSON}], r"objects\[1\] has no label or no box"),
    "a box of three": ([person(0, 0, 9)], r"objects\[0\] has no label or no box"),
    "a box of five": ([person(0, 0, 9, 9, 9)], r"objects\[0\] has no label or no box"),
    "a box of texts": ([{"label": PERSON, "box": ["0", "0", "9", "9"]}], r"objects\[0\]"),
    "not a number": ([person(0, 0, float("nan"), 9)], r"objects\[0\]"),
    "infinity": ([person(0, 0, float("inf"), 9)], r"objects\[0\]"),
    "a number beyond floats": ([person(0, 0, 10**400, 9)], r"objects\[0\]"),
    "lists in lists": ([[[]]], r"objects\[0\]"),
}


@pytest.mark.parametrize("case", BAD_OBJECTS)
def test_objects_that_are_none_are_an_error_of_their_row(case: str) -> None:
    objects, expected = BAD_OBJECTS[case]
    image = Image.new("RGB", (40, 40), RED)
    bad, good = looked_at(COUNT_ONLY, {**row(image), "objects": objects}, row(image, person(0, 0, 40, 40)))
    assert re.search(expected, bad["error"]) and bad.keys() == {"error"}
    assert ages(good) == ["red"]
    check_results(COUNT_ONLY, [bad, good], 2)


def test_a_picture_that_cannot_be_opened_has_its_count_and_an_error() -> None:
    image = Image.new("RGB", (40, 40), BLUE)
    rows = [row(data, person(0, 0, 40, 40)) for data in (encoded(image), encoded(image)[:60], b"", encoded(image))]
    first, cut_off, empty, last = looked_at(COUNT_ONLY, *rows)
    assert ages(first) == ages(last) == ["blue"] and "error" not in first
    for bad in (cut_off, empty):
        assert re.match(r"\w+: \w", bad["error"])
        assert (bad["people_count"], ages(bad)) == (1, [None])


def test_an_object_without_a_score_is_a_person_too() -> None:
    [result] = COUNT_ONLY.run({}, [row(b"", {"label": PERSON, "box": [0, 0, 9, 9]})], 1)
    assert result["people"] == [{"score": None, "box": [0, 0, 9, 9]}]


# --- the models


def with_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def save_tower(folder: Path) -> None:
    """The same network without its classifying layer."""
    shutil.rmtree(folder)
    ConvNextModel(ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])).save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)


def copy_clip(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(DEMO / "clip", folder)


def run_code(folder: Path) -> None:
    with_config(folder, model_type="custom", auto_map={"AutoConfig": "custom.Config"})
    (folder / "custom.py").write_text(f"open({str(folder / 'executed')!r}, 'w')")


def make_pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


BAD_MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, r"no such file or folder"),
    "a CLIP": (copy_clip, r"^people: \S+ is a CLIP of open_clip: give an image classifier of transformers, such as"),
    "a text model": (
        lambda folder: with_config(folder, model_type="bert"),
        r" is a bert model, which does not classify",
    ),
    "a network without its last layer": (
        save_tower,
        r" lacks classifier\.bias and \d more of the weights that its config\.json tells of: ",
    ),
    "one label": (
        lambda folder: with_config(folder, id2label={"0": "x"}, label2id={"x": 0}),
        r" has one label, and so",
    ),
    "no processor": (
        lambda folder: (folder / "preprocessor_config.json").unlink(),
        r"preprocessor_config\.json is missing: download or copy",
    ),
    "a processor that keeps shapes": (
        lambda folder: CLIPImageProcessor(size={"shortest_edge": 64}, do_center_crop=False).save_pretrained(folder),
        r"preprocessor_config\.json makes pictures of different sizes: set do_center_crop with a crop_size, or a size",
    ),
    "a cut configuration": (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is damaged"),
    "cut weights": (
        lambda folder: (folder / "model.safetensors").write_bytes((AGE / "model.safetensors").read_bytes()[:99_999]),
        r"model\.safetensors is damaged",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors is missing"),
    "pickles": (make_pickled, r"pytorch_model\.bin may be a pickle.*set people\.allow_pickle: true"),
    "code of its own": (run_code, r"^people: \S+ runs Python files of its own: give an image classifier"),
}


@pytest.mark.parametrize("option", ["model", "gender_model"])
@pytest.mark.parametrize("case", BAD_MODELS)
def test_a_model_that_cannot_be_used_is_refused_before_the_first_picture(
    case: str, option: str, stage: People, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    change, expected = BAD_MODELS[case]
    folder = tmp_path / "model"
    shutil.copytree(AGE, folder)
    change(folder)
    bad: dict[str, Any] = {option: str(folder)}
    with pytest.raises(UserError) as caught:
        replace(stage, **bad).fetch()
    assert re.search(expected, str(caught.value)) and "\n" not in str(caught.value)
    assert not (folder / "executed").exists()


def test_pickled_weights_are_loaded_where_that_is_allowed_and_only_there(stage: People, tmp_path: Path) -> None:
    shutil.copytree(AGE, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(load_file(AGE / "model.safetensors"), tmp_path / "model" / "pytorch_model.bin")
    allowed = replace(stage, model=str(tmp_path / "model"), gender_model="", allow_pickle=True)
    allowed.fetch()
    picture = drawn(1, seed=3)[-1]
    [result] = allowed.run(allowed.load(), [row(picture.image, *true_objects(picture))], 1)
    assert all(each["age"] for each in result["people"])
    with pytest.raises(OSError, match="safetensors"):
        image_models.load_model(AUTO, tmp_path / "model", "cpu", allow_pickle=False)


@pytest.mark.parametrize("cls", ["convnext", "vit"])
def test_classifiers_as_the_hub_has_them_load_and_answer(cls: str, tmp_path: Path) -> None:
    labels = {0: "0-2", 1: "3-9", 2: "more than 70"}
    shape: dict[str, Any] = {"id2label": labels, "label2id": {name: index for index, name in labels.items()}}
    if cls == "vit":
        sides = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        network: Any = ViTForImageClassification(ViTConfig(image_size=32, patch_size=16, **sides, **shape))
    else:
        network = ConvNextForImageClassification(ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4, **shape))
    network.save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    stage = People(model=str(tmp_path), gender_model="", device="cpu")
    stage.fetch()
    [result] = stage.run(stage.load(), [row(Image.new("RGB", (60, 90), RED), person(0, 0, 60, 90))], 1)
    assert set(result["people"][0]["age"]) == set(labels.values())


def test_of_a_repository_the_classifier_alone_is_downloaded() -> None:
    """The hub's folders of these models hold checkpoints of the training, of a gigabyte each."""
    names = """.gitattributes README.md config.json model.safetensors preprocessor_config.json training_args.bin
        checkpoint-9376/config.json checkpoint-9376/model.safetensors checkpoint-9376/optimizer.pt
        checkpoint-9376/preprocessor_config.json checkpoint-9376/trainer_state.json""".split()
    wanted = filter_repo_objects(names, allow_patterns=list(People().patterns))
    assert set(wanted) == {"config.json", "model.safetensors", "preprocessor_config.json"}


def test_both_models_count_and_are_named(stage: People) -> None:
    sizes = [weights.size_gb(str(folder)) for folder in (AGE, GENDER)]
    assert stage.need().host_gb == stage.weights_gb() == pytest.approx(sum(sizes))
    assert model_files(stage).startswith(f"{AGE} and {GENDER}, {1000 * sum(sizes):.1f} MB on this machine, needs about")
    with pytest.raises(UserError, match="is a CLIP of open_clip: give an image classifier"):
        model_files(replace(stage, gender_model=str(DEMO / "clip")))


def test_what_is_to_download_is_that_of_both_models_at_their_revisions(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {("demo/age", "v1"): 1.0, ("demo/gender", "v2"): 2.5, (str(AGE), ""): 0.0}
    monkeypatch.setattr(weights, "missing_gb", lambda model, patterns, revision: sizes[model, revision])
    monkeypatch.setattr(weights, "size_gb", lambda model, revision: sizes[model, revision])
    both = People(model="demo/age", revision="v1", gender_model="demo/gender", gender_revision="v2", device="cpu")
    assert both.missing_gb == both.weights_gb() == 3.5
    assert " and demo/gender, 3.5 GB to download, needs about 3.5 GB of host" in model_files(both)
    one = replace(both, model=str(AGE), revision="")
    assert " and demo/gender, 2.5 GB to download, needs about 2.5 GB of host" in model_files(one)


def test_check_names_no_model_of_a_stage_that_has_none(tmp_path: Path) -> None:
    found = list(findings(Config(stages=(COUNT_ONLY,), output=tmp_path / "a.csv")))
    assert "people" not in [each.name for each in found]


@pytest.mark.parametrize("option", ["model", "gender_model"])
def test_results_of_files_that_have_changed_are_not_taken_from_the_cache(
    option: str, stage: People, tmp_path: Path
) -> None:
    shutil.copytree(AGE, tmp_path / "model")
    copied: dict[str, Any] = {option: str(tmp_path / "model")}
    before = settings.fingerprint(replace(stage, **copied))
    assert settings.fingerprint(replace(stage, **copied, max_megapixels=20, batch_size=1)) == before
    assert settings.fingerprint(replace(stage, **copied, most_people=5)) != before
    os.utime(tmp_path / "model" / "model.safetensors", ns=(0, 0))
    assert settings.fingerprint(replace(stage, **copied)) != before


# --- options


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("labels: []", "people: labels is empty: name labels that `objects` has, such as person"),
        ("labels: person", "people.labels: 'person' is not a list"),
        ("crop: face", "people.crop: 'face' is not one of head, whole (there are: head, whole)"),
        ("most_people: 0", "people.most_people: must be at least 1, not 0"),
    ],
)
def test_options_that_find_nobody_are_named(options: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"stages: [{{use: people, {options}}}]")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == expected


# --- runs


@dataclass(frozen=True, kw_only=True)
class TrueObjects(Stage):
    """image_path -> objects: what lies beside a picture, in place of a detector."""

    reads: ClassVar[tuple[str, ...]] = ("image_path",)
    writes: ClassVar[Mapping[str, str]] = {"objects": "json"}

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        return [{"objects": json.loads(Path(each["image_path"]).with_suffix(".json").read_text())} for each in rows]


CONFIG = f"""
device: cpu
stages:
- {{use: open_image, max_size_px: 112}}
- {{use: tests.test_people.TrueObjects, name: detect}}
- {{use: people, model: {AGE}, gender_model: {GENDER}, crop: whole}}
"""


def run(folder: Path, *options: str, config: str = CONFIG, status: int = 0) -> Run:
    (folder / "config.yaml").write_text(config)
    arguments = [folder / "photos", "--config", folder / "config.yaml", "--output", folder / "a.csv", *options]
    done = subprocess.run(
        [sys.executable, "run.py", *map(str, arguments)], cwd=PROJECT, capture_output=True, text=True, timeout=240,
        env={**os.environ, "HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done


def save(pictures: Sequence[BoxedPicture], folder: Path) -> None:
    (folder / "photos").mkdir()
    for number, picture in enumerate(pictures):
        picture.image.save(folder / "photos" / f"{number}.png")
        (folder / "photos" / f"{number}.json").write_text(json.dumps(true_objects(picture)))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    from vec_pipeline import load_annotations

    return [dict(each) for _, each in load_annotations(folder / "a.csv").iterrows()]


def test_a_run_writes_both_columns_and_a_bad_picture_ends_nothing(tmp_path: Path) -> None:
    pictures = drawn(8, seed=11)
    save(pictures, tmp_path)
    (tmp_path / "photos" / "bad.png").write_bytes(encoded(pictures[0].image)[:70])
    (tmp_path / "photos" / "bad.json").write_text("[]")
    pictures[0].image.save(tmp_path / "photos" / "odd.png")
    (tmp_path / "photos" / "odd.json").write_text('["person"]')
    done = run(tmp_path, status=1)
    assert "odd.png: people: ValueError: objects[0] has no label" in done.stdout
    rows = {Path(each["image_path"]).stem: each for each in rows_of(tmp_path)}
    assert rows["bad"]["error"].startswith("open_image: ")
    for number, picture in enumerate(pictures):
        each = rows[str(number)]
        assert each["people_count"] == len(people_on(picture))
        assert [found["box"] for found in each["people"]] == [list(map(round, one.box)) for one in people_on(picture)]
        assert all(found["age"] and found["gender"] for found in each["people"])


FIRST, SECOND, OTHER = "1" * 40, "2" * 40, "3" * 40  # commits


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with both classifiers, of age groups at two commits; what `main` of each is can be changed."""
    folder = tmp_path / "hub"
    for name, source, commits in (("age", AGE, (FIRST, SECOND)), ("gender", GENDER, (OTHER,))):
        for commit in commits:
            shutil.copytree(source, folder / f"models--demo--{name}" / "snapshots" / commit)
        (folder / f"models--demo--{name}" / "refs").mkdir()
        (folder / f"models--demo--{name}" / "refs" / "main").write_text(commits[0])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder


def test_a_csv_keeps_the_commits_of_both_models_until_it_is_refreshed(hub: Path, tmp_path: Path) -> None:
    asked = People(model="demo/age", gender_model="demo/gender", device="cpu")
    asked.fetch()
    first = weights.resolved(asked)
    assert first == replace(asked, revision=FIRST, gender_revision=OTHER)
    csv, header = tmp_path / "a.csv", ["people_count", "people"]
    settings.write_settings(csv, [first], [asked], {}, [])
    recorded = settings.recorded_settings(csv).stages["people"]
    assert (recorded["revision"], recorded["gender_revision"]) == ("", "")
    assert (recorded["commit"], recorded["gender_commit"]) == (FIRST, OTHER)
    assert settings.outdated(csv, [asked], [first], header, header) == []

    (hub / "models--demo--age" / "refs" / "main").write_text(SECOND)
    assert settings.with_recorded_commits([asked], settings.recorded_settings(csv)) == (first,)
    now = weights.resolved(asked)
    assert now == replace(asked, revision=SECOND, gender_revision=OTHER)
    assert settings.outdated(csv, [asked], [now], header, header) == ["people.commit"]
    changed = replace(asked, gender_model=str(GENDER))
    [kept] = settings.with_recorded_commits([changed], settings.recorded_settings(csv))
    assert kept == replace(changed, revision=FIRST), "the other commit is of another repository"


def test_a_second_model_that_moves_is_found_as_well(hub: Path, tmp_path: Path) -> None:
    asked = People(model=str(GENDER), gender_model="demo/age", device="cpu")
    first = weights.resolved(asked)
    assert first == replace(asked, gender_revision=FIRST)
    settings.write_settings(tmp_path / "a.csv", [first], [asked], {}, [])
    assert "commit" not in settings.recorded_settings(tmp_path / "a.csv").stages["people"]
    moved = replace(asked, gender_revision=SECOND)
    assert settings.outdated(tmp_path / "a.csv", [asked], [moved], [], []) == ["people.gender_commit"]
    pinned = replace(asked, gender_revision=SECOND)
    assert pinned.path("gender_model").name == SECOND and weights.resolved(pinned) == pinned


@pytest.mark.skipif(not DETECTOR.exists(), reason="the detector has not been trained: make demo-models")
def test_people_that_the_bundled_detector_finds_are_counted_and_described(tmp_path: Path) -> None:
    pictures = drawn(70, seed=17)
    save(pictures, tmp_path)
    detect = f"{{use: detect, model: {DETECTOR}}}"
    run(tmp_path, config=CONFIG.replace("{use: tests.test_people.TrueObjects, name: detect}", detect))
    rows = {int(Path(each["image_path"]).stem): each for each in rows_of(tmp_path)}
    counted = [rows[number]["people_count"] == len(people_on(picture)) for number, picture in enumerate(pictures)]
    assert sum(counted) / len(counted) >= 0.85
    pairs = [
        (found, min(people_on(picture), key=lambda true: away(true, found["box"])))
        for number, picture in enumerate(pictures)
        for found in rows[number]["people"]
        if people_on(picture)
    ]
    for question in ("age", "gender"):
        right = [next(iter(found[question])) == getattr(true, question) for found, true in pairs]
        assert len(right) >= 60 and sum(right) / len(right) >= 0.9


def away(true: Labelled, box: Sequence[float]) -> float:
    """How far the edges of a box are from those of the true one, in pixels together."""
    return sum(abs(a - b) for a, b in zip(true.box, box, strict=True))
