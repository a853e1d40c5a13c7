"""Detecting objects: boxes lie in the full picture, every family of models answers, mistakes are named early."""

import json
import math
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from PIL import Image, ImageDraw
from tokenizers import pre_tokenizers
from transformers.utils import ModelOutput

from models.demo.detection_pictures import full_picture
from tests.conftest import EXAMPLES, PROJECT
from vec_pipeline import device, load_annotations, weights
from vec_pipeline.config import ConfigError, load_config
from vec_pipeline.engines import detectors
from vec_pipeline.engines.detectors import NOT_A_NUMBER, Detector, Found
from vec_pipeline.record import UserError, Values
from vec_pipeline.settings import stage_settings
from vec_pipeline.stages.detect import BYTES_PER_PIXEL, PRESETS, Detect, placed, suppressed

BUNDLED = PROJECT / "models" / "demo" / "detector"
needs_bundled = pytest.mark.skipif(
    not (BUNDLED / "model.safetensors").is_file(), reason="models/demo/detector is not trained yet"
)
EXIF_ORIENTATION = 0x0112
LABELS = ("cat", "dog", "person")
SIDE = {"height": 64, "width": 64}
EDGES = {"shortest_edge": 64, "longest_edge": 192}


class Bytes:
    """Content in memory."""

    link = ""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def read(self) -> bytes:
        return self.content

    def identity(self) -> str:
        return str(hash(self.content))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rows_of(*pictures: Image.Image | bytes) -> list[Values]:
    contents = [each if isinstance(each, bytes) else encoded(each) for each in pictures]
    return [{"content": Bytes(content)} for content in contents]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))


# --- tiny random models of real classes


NAMES = {"id2label": dict(enumerate(LABELS)), "label2id": {name: index for index, name in enumerate(LABELS)}}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1], "layer_type": "basic"}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
HYBRID = {
    "encoder_in_channels": [12, 16, 24], "encoder_hidden_dim": 32, "d_model": 32, "decoder_in_channels": [32] * 3,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "decoder_layers": 2, "num_queries": 12, "num_denoising": 0,
    **HEADS, **NAMES,
}  # fmt: skip
Made = tuple[Any, Any]  # a model and its processor


def rt_detr_v2() -> Made:
    backbone = transformers.RTDetrResNetConfig(**RESNET, out_indices=[2, 3, 4])
    config = transformers.RTDetrV2Config(backbone_config=backbone, **HYBRID)
    return transformers.RTDetrV2ForObjectDetection(config), transformers.RTDetrImageProcessor(size=SIDE)


def d_fine() -> Made:
    backbone = transformers.HGNetV2Config(
        stem_channels=[3, 8, 8], stage_in_channels=[8, 8, 12, 16], stage_mid_channels=[8] * 4,
        stage_out_channels=[8, 12, 16, 24], stage_num_blocks=[1] * 4, stage_numb_of_layers=[2] * 4, embedding_size=8,
        hidden_sizes=[8, 12, 16, 24], depths=[1] * 4, out_indices=[2, 3, 4],
    )  # fmt: skip
    config = transformers.DFineConfig(backbone_config=backbone, **HYBRID)
    return transformers.DFineForObjectDetection(config), transformers.RTDetrImageProcessor(size=SIDE)


def rf_detr() -> Made:
    backbone = {
        "model_type": "rf_detr_dinov2", "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
        "image_size": 64, "patch_size": 16, "num_windows": 2, "out_indices": [2, 3],
    }  # fmt: skip
    config = transformers.RfDetrConfig(
        backbone_config=backbone, d_model=32, decoder_ffn_dim=32, decoder_layers=2, decoder_self_attention_heads=2,
        decoder_cross_attention_heads=2, num_queries=12, group_detr=2, **NAMES,
    )  # fmt: skip
    return transformers.RfDetrForObjectDetection(config), transformers.RfDetrImageProcessor(size=SIDE)


def yolos() -> Made:
    config = transformers.YolosConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=[64, 192],
        num_detection_tokens=12, **NAMES,
    )  # fmt: skip
    return transformers.YolosForObjectDetection(config), transformers.YolosImageProcessor(size=EDGES)


def detr() -> Made:
    backbone = transformers.ResNetConfig(**RESNET, out_features=["stage4"])
    config = transformers.DetrConfig(
        backbone_config=backbone, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32,
        decoder_ffn_dim=32, num_queries=12, **HEADS, **NAMES,
    )  # fmt: skip
    return transformers.DetrForObjectDetection(config), transformers.DetrImageProcessor(size=EDGES)


def bert_tokenizer() -> Any:
    """A vocabulary of a few words and of letters, with the marks where Grounding DINO expects them."""
    vocabulary = [f"[unused{index}]" for index in range(1030)]
    words = [
        *"[UNK] a cat dog person red blue field button text box st bernard".split(),
        *"abcdefghijklmnopqrstuvwxyz!",
    ]
    vocabulary[: len(words) + 1] = ["[PAD]", *words]
    vocabulary[101], vocabulary[102], vocabulary[1012], vocabulary[1029] = "[CLS]", "[SEP]", ".", "?"
    vocabulary[200:226] = [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    return transformers.BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)})


def grounding_dino() -> Made:
    backbone = transformers.SwinConfig(
        image_size=64, embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    text = transformers.BertConfig(
        vocab_size=1030, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=256,
    )  # fmt: skip
    config = transformers.GroundingDinoConfig(
        backbone_config=backbone, text_config=text, num_queries=12, encoder_layers=1, decoder_layers=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, d_model=64, **HEADS,
    )  # fmt: skip
    images = transformers.GroundingDinoImageProcessor(size=EDGES)
    model = transformers.GroundingDinoForObjectDetection(config)
    return model, transformers.GroundingDinoProcessor(images, bert_tokenizer())


def clip_tokenizer() -> Any:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(
        vocab={word: index for index, word in enumerate(words)}, merges=[], model_max_length=16
    )


def owl(name: str, **images: Any) -> Made:
    """name: of its classes, `Owlv2` or `OwlViT`."""
    tokenizer = clip_tokenizer()
    layers = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": tokenizer.eos_token_id}
    config = getattr(transformers, f"{name}Config")(
        text_config=layers | text, vision_config={**layers, "image_size": 64, "patch_size": 16}, projection_dim=32
    )
    processor = getattr(transformers, f"{name}ImageProcessor")(size=SIDE, **images)
    return (
        getattr(transformers, f"{name}ForObjectDetection")(config),
        getattr(transformers, f"{name}Processor")(processor, tokenizer),
    )


def owlv2() -> Made:
    return owl("Owlv2")


def owlvit() -> Made:
    return owl("OwlViT", crop_size=SIDE)


CLOSED = (rt_detr_v2, d_fine, rf_detr, yolos, detr)
OPEN = (grounding_dino, owlv2, owlvit)
Folders = Callable[[Callable[[], Made]], Path]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Makes the folder of a family's model, once."""
    base = tmp_path_factory.mktemp("detectors")

    def folder(make: Callable[[], Made]) -> Path:
        path = base / make.__name__
        if not path.exists():
            torch.manual_seed(0)
            model, processor = make()
            enlarge(model)
            model.save_pretrained(path)
            processor.save_pretrained(path)
        return path

    return folder


def enlarge(model: Any) -> None:
    """Make random weights so large that every picture changes the answer."""
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and "bbox" not in name and "box_head" not in name:
            weight.data.normal_(0, 1.6 / math.sqrt(weight[0].numel()))


def detect(stage: Detect, model: Detector, *pictures: Image.Image | bytes) -> list[Values]:
    return stage.run(model, rows_of(*pictures), len(pictures))


@pytest.mark.parametrize("make", [*CLOSED, *OPEN], ids=lambda make: make.__name__)
def test_each_family_answers_in_batches_as_alone(folder_of: Folders, make: Callable[[], Made]) -> None:
    """Pictures of several sizes at once, down to one pixel: each has the boxes it has alone, and they are on it."""
    stage = Detect(
        model=str(folder_of(make)), labels=LABELS, min_score=0.0, suppression="none", device="cpu", most_objects=5
    )
    stage.fetch()
    model = stage.load()
    sizes = [(80, 60), (60, 80), (200, 150), (80, 60), (1, 1), (3, 1), (1, 5000), (300, 4)]
    pictures = [noise(*size, seed) for seed, size in enumerate(sizes)]
    together = detect(stage, model, *pictures)
    for picture, result in zip(pictures, together, strict=True):
        [alone] = detect(stage, model, picture)
        assert result == alone
        assert result.keys() == Detect.writes.keys()
        assert_valid(result, picture.size)
    assert any(result["objects"] for result in together)
    assert together[0] != together[3], "the answer must depend on the picture, or this shows nothing"


def assert_valid(result: Values, size: tuple[int, int]) -> None:
    scores = [each["score"] for each in result["objects"]]
    assert scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores)
    for each in result["objects"]:
        left, top, right, bottom = each["box"]
        assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1], each
        assert each["label"] in LABELS
    json.dumps(result)


# --- places


def red_box(image: Image.Image) -> tuple[float, float, float, float]:
    """The box of what is red on a picture, in its own pixels."""
    pixels = np.asarray(image).astype(int)
    rows, columns = np.nonzero(pixels[:, :, 0] - pixels[:, :, 1] > 100)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


class FindsRed(Detector):
    """Finds what is red, and notes the sizes of the pictures it was given."""

    seen: list[tuple[int, int]] = []  # noqa: RUF012 (of one test at a time)

    def detect(self, images: Sequence[Image.Image], min_score: float) -> list[Found | str]:
        self.seen[:] = [image.size for image in images]
        return [found((0, 0.9, red_box(image))) for image in images]


def found(*objects: tuple[int, float, Sequence[float]]) -> Found:
    """objects: each a label's number, a score and a box."""
    labels, scores, boxes = zip(*objects, strict=True) if objects else ((), (), ())
    return Found(
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
    )


FINDS_RED = FindsRed(None, SimpleNamespace(size={"height": 200, "width": 200}), {0: "red"}, {}, "cpu")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_boxes_are_in_pixels_of_the_full_picture_as_it_is_seen(kind: str, orientation: int) -> None:
    picture = Image.new("RGB", (1600, 1200), "white")
    ImageDraw.Draw(picture).rectangle((400, 600, 799, 1099), fill="red")
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    stored = picture.rotate(90, expand=True) if orientation == 6 else picture
    [result] = detect(Detect(), FINDS_RED, encoded(stored, kind, exif=exif))
    assert FINDS_RED.seen == [(267, 200)], "reduced to what the model sees"
    [each] = result["objects"]
    assert np.abs(np.subtract(each["box"], (400, 600, 800, 1100))).max() <= 6
    assert all(isinstance(number, int) for number in each["box"])


@pytest.mark.parametrize(("size", "given"), [((3000, 600), (800, 160)), ((2000, 10), (800, 80)), ((9, 900), (80, 800))])
def test_narrow_pictures_keep_more_pixels_and_are_evened(size: tuple[int, int], given: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, "white")
    box = (size[0] // 3, size[1] // 3, 2 * size[0] // 3, 2 * size[1] // 3)
    ImageDraw.Draw(picture).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill="red")
    [result] = detect(Detect(), FINDS_RED, picture)
    assert FINDS_RED.seen == [given]
    assert np.abs(np.subtract(result["objects"][0]["box"], box)).max() <= 0.01 * max(size) + 2


def test_small_pictures_are_not_enlarged() -> None:
    picture = Image.new("RGB", (40, 30), "red")
    assert detect(Detect(), FINDS_RED, picture)[0]["objects"][0]["box"] == [0, 0, 40, 30]
    assert FINDS_RED.seen == [(40, 30)]


def test_boxes_are_clipped_and_have_a_pixel_at_least() -> None:
    boxes = [(-5, -5, 20.4, 10.6), (99.9, 49.9, 140, 90), (10.3, 10.1, 10.4, 10.2), (100, 10, 120, 20), (8, -9, 9, -1)]
    result = placed(found(*((0, 0.5, box) for box in boxes)), (100, 50), (200, 150))
    assert result.boxes.tolist() == [[0, 0, 41, 32], [199, 149, 200, 150], [21, 30, 22, 31]]
    assert len(result.scores) == len(result.labels) == 3, "what lies outside is left out"


class Answers:
    """A model that gives the same answer to every picture: per box a score for each label or token."""

    def __init__(self, scores: Sequence[Sequence[float]], boxes: Sequence[Sequence[float]]) -> None:
        self.scores, self.boxes = torch.tensor(scores), torch.tensor(boxes)

    def __call__(self, pixel_values: torch.Tensor, **others: torch.Tensor) -> ModelOutput:
        count = len(pixel_values)
        logits = self.scores.logit(eps=1e-6).expand(count, -1, -1).clone()
        return ModelOutput(logits=logits, pred_boxes=self.boxes.expand(count, -1, -1))


BOX = (0.5, 0.25, 0.2, 0.1)  # middle x and y, width and height, by those of the picture


def test_boxes_of_a_closed_model_are_parts_of_the_picture() -> None:
    model = Detector(Answers([[0.1, 0.9]], [BOX]), rt_detr_v2()[1], {0: "cat", 1: "dog"}, {}, "cpu")
    results = detect(Detect(), model, noise(200, 100), noise(100, 200))
    assert [result["objects"] for result in results] == [
        [{"label": "dog", "score": 0.9, "box": [80, 20, 120, 30]}],
        [{"label": "dog", "score": 0.9, "box": [40, 40, 60, 60]}],
    ]


def test_what_a_processor_pads_is_masked() -> None:
    seen: dict[str, torch.Tensor] = {}

    def model(**inputs: torch.Tensor) -> ModelOutput:
        seen.update(inputs)
        return Answers([[0.9, 0.1]], [BOX])(inputs["pixel_values"])

    processor = transformers.DetrImageProcessor(size=EDGES, pad_size={"height": 192, "width": 192})
    detect(Detect(), Detector(model, processor, {0: "cat"}, {}, "cpu"), noise(80, 60))
    assert seen["pixel_values"].shape == (1, 3, 192, 192)
    assert 0 < seen["pixel_mask"].float().mean() < 1


def asked(model: Any, processor: Any, labels: Sequence[str]) -> Detector:
    return Detector(model, processor, dict(enumerate(labels)), detectors._text(processor, labels), "cpu")


def test_boxes_of_owlv2_are_parts_of_a_padded_square() -> None:
    model = asked(Answers([[0.1, 0.9]], [BOX]), owlv2()[1], ("cat", "dog"))
    wide, tall, narrow = detect(Detect(labels=("cat", "dog")), model, noise(200, 100), noise(100, 200), noise(20, 400))
    assert wide["objects"] == [{"label": "dog", "score": 0.9, "box": [80, 40, 120, 60]}]
    assert tall["objects"] == [{"label": "dog", "score": 0.9, "box": [80, 40, 100, 60]}], "clipped at the right"
    assert narrow["objects"] == [], "it would lie in the padding"


# --- labels of Grounding DINO


def grounding(labels: Sequence[str], *scores: dict[str, float]) -> list[tuple[str, float]]:
    """What is found where the words of a text have these scores: for each box a dict of those that are not 0."""
    _, processor = grounding_dino()
    words = processor.tokenizer.convert_ids_to_tokens(detectors._text(processor, labels)["input_ids"][0])
    table = torch.zeros(len(scores), 256)
    for row, each in enumerate(scores):
        for position, word in enumerate(words):
            table[row, position] = each.get(word, 0) if word != "red" or position < 3 else 0  # the first red alone
    boxes = [(0.1 + 0.2 * row, 0.5, 0.1, 0.1) for row in range(len(scores))]
    model = asked(Answers(table.tolist(), boxes), processor, labels)
    [result] = detect(Detect(labels=tuple(labels)), model, noise(100, 100))
    return [(each["label"], each["score"]) for each in result["objects"]]


def test_boxes_of_grounding_dino_are_parts_of_the_picture() -> None:
    words = [0.0, 0.9, *[0.0] * 254]  # the first one after the mark at the beginning
    results = detect(
        Detect(labels=("cat",)),
        asked(Answers([words], [BOX]), grounding_dino()[1], ("cat",)),
        noise(200, 100),
        noise(9, 9),
    )
    assert [result["objects"][0]["box"] for result in results] == [[80, 20, 120, 30], [4, 2, 5, 3]]


def test_a_phrase_becomes_a_label() -> None:
    labels = ("red cat", "Dog", "text box")
    assert grounding(labels, {"dog": 0.8}, {"red": 0.5, "cat": 0.7}, {"text": 0.6, "box": 0.1}) == [
        ("Dog", 0.8),
        ("red cat", 0.7),
        ("text box", 0.6),
    ]


def test_a_phrase_of_two_labels_becomes_the_likelier_one() -> None:
    assert grounding(("cat", "dog"), {"cat": 0.5, "dog": 0.6}) == [("dog", 0.6)]
    labels = ("red box", "red dog", "dog")
    assert grounding(labels, {"red": 0.9, "box": 0.2, "dog": 0.1}) == [("red box", 0.9)], "by the mean of its words"


def test_the_label_is_that_of_the_best_mean_and_not_the_longest() -> None:
    assert grounding(("red box", "dog"), {"red": 0.5, "box": 0.4, "dog": 0.6}) == [("dog", 0.6)]


def test_phrases_below_the_least_score_are_left_out() -> None:
    assert grounding(("cat", "dog"), {"cat": 0.29}, {"dog": 0.31}) == [("dog", 0.31)]


def test_marks_between_labels_are_no_words() -> None:
    assert grounding(("cat", "dog"), {".": 0.9, "[CLS]": 0.9, "[SEP]": 0.9, "cat": 0.4}) == [("cat", 0.4)]


def test_a_full_stop_in_a_label_does_not_split_it() -> None:
    assert grounding(("St. Bernard", "cat"), {"bernard": 0.8}, {"cat": 0.7}) == [("St. Bernard", 0.8), ("cat", 0.7)]


# --- suppression, labels and counts


BOXES = found(
    (0, 0.6, (0, 0, 100, 100)),
    (1, 0.9, (0, 0, 100, 98)),  # overlaps the first by 0.98
    (0, 0.7, (0, 0, 98, 98)),
    (0, 0.5, (0, 0, 100, 60)),  # overlaps the first by 0.6
    (1, 0.8, (200, 200, 300, 300)),
)


@pytest.mark.parametrize(
    ("suppression", "overlap", "scores"),
    [
        ("all", 0.7, [0.9, 0.8, 0.5]),
        ("class", 0.7, [0.9, 0.8, 0.7, 0.5]),
        ("none", 0.7, [0.9, 0.8, 0.7, 0.6, 0.5]),
        ("all", 0.5, [0.9, 0.8]),
        ("all", 1.0, [0.9, 0.8, 0.7, 0.6, 0.5]),
    ],
)
def test_suppression(suppression: str, overlap: float, scores: list[float]) -> None:
    result = suppressed(BOXES, suppression, overlap)
    assert result.scores.tolist() == pytest.approx(scores)
    assert result.boxes[1].tolist() == [200, 200, 300, 300] and result.labels[0] == 1


class Finds(Detector):
    """Finds the same in every picture."""

    answer: Found | str

    def detect(self, images: Sequence[Image.Image], min_score: float) -> list[Found | str]:
        return [self.answer for _ in images]


def result_of(stage: Detect, answer: Found | str) -> Values:
    model = Finds(None, SimpleNamespace(size={"longest_edge": 400}), {0: "cat", 1: "dog", 2: "ant"}, {}, "cpu")
    object.__setattr__(model, "answer", answer)
    [result] = detect(stage, model, noise(400, 400))
    return result


def test_labels_leave_others_out_and_change_nothing_else() -> None:
    """A cat that is rather a dog does not appear because dogs are left out."""
    result = result_of(Detect(labels=("cat",)), BOXES)
    assert [(each["label"], each["score"]) for each in result["objects"]] == [("cat", 0.5)]
    assert result["object_counts"] == {"cat": 1}


def test_counts_are_by_number_then_by_name() -> None:
    places = [(20 * index, 0, 20 * index + 10, 10) for index in range(6)]
    labels = (1, 2, 0, 0, 1, 2)
    result = result_of(Detect(), found(*((label, 0.9, box) for label, box in zip(labels, places, strict=True))))
    assert list(result["object_counts"].items()) == [("ant", 2), ("cat", 2), ("dog", 2)]
    result = result_of(Detect(), found((1, 0.9, places[0]), (2, 0.8, places[1]), (1, 0.7, places[2])))
    assert list(result["object_counts"].items()) == [("dog", 2), ("ant", 1)]


def test_nothing_found_is_an_empty_list() -> None:
    assert result_of(Detect(), found()) == {"objects": [], "object_counts": {}}


def test_ten_thousand_boxes_are_counted_and_the_best_are_written() -> None:
    places = [(4 * x, 4 * y, 4 * x + 3, 4 * y + 3) for x in range(100) for y in range(100)]
    scores = np.random.default_rng(0).uniform(0.5, 1, len(places))
    result = result_of(Detect(), found(*((0, score, box) for score, box in zip(scores, places, strict=True))))
    assert result["object_counts"] == {"cat": 10_000}
    assert len(result["objects"]) == 300
    assert result["objects"][-1]["score"] == pytest.approx(np.sort(scores)[-300], abs=1e-4)
    assert len(json.dumps(result)) < 32_000


@pytest.mark.parametrize(("text", "least"), [({}, 0.5), ({"input_ids": torch.zeros(1, 3)}, 0.3)])
def test_the_least_score_is_that_of_the_kind_of_model(text: dict[str, Any], least: float) -> None:
    model = Finds(None, None, {}, text, "cpu")
    assert Detect()._least_score(model) == least
    assert Detect(min_score=0.0)._least_score(model) == 0.0


@pytest.mark.parametrize("where", ["scores", "boxes"])
def test_an_answer_that_is_not_a_number_is_an_error_of_its_row(where: str) -> None:
    answers = Answers([[0.1, 0.9], [0.2, 0.8]], [BOX, (0.1, 0.1, 0.1, 0.1)])

    def of_black_pictures(pixel_values: torch.Tensor) -> ModelOutput:
        outputs = answers(pixel_values)
        value = outputs["logits" if where == "scores" else "pred_boxes"] = outputs[
            "logits" if where == "scores" else "pred_boxes"
        ].clone()
        value[pixel_values.amax(dim=(1, 2, 3)) < 0.1, 0, 0] = math.nan
        return outputs

    model = Detector(of_black_pictures, rt_detr_v2()[1], {0: "cat", 1: "dog"}, {}, "cpu")
    good, bad, other = detect(Detect(), model, noise(90, 90), Image.new("RGB", (90, 90)), noise(90, 90))
    assert bad == {"error": NOT_A_NUMBER}
    assert good == other and len(good["objects"]) == 2


def test_a_broken_file_is_an_error_of_its_row() -> None:
    red = Image.new("RGB", (40, 30), "red")
    results = detect(Detect(), FINDS_RED, red, b"no picture", encoded(red)[:60], red)
    assert [result.get("object_counts") for result in results] == [{"red": 1}, None, None, {"red": 1}]
    assert "UnidentifiedImageError" in results[1]["error"]
    assert results[2]["error"]


def test_auto_batch_size_follows_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = replace(FINDS_RED, device="cuda")
    bytes_each = BYTES_PER_PIXEL * 200 * 200
    for free_images, expected in ((10**9, 64), (40, 10), (1, 1), (0, 1)):
        monkeypatch.setattr(device, "gpu_free_gb", lambda images=free_images: (images + 0.5) * bytes_each / 1e9)
        assert Detect().auto_batch_size(on_gpu, 0.0) == expected
    monkeypatch.setattr(device, "gpu_free_gb", lambda: 3.0 + 40.5 * bytes_each / 1e9)
    assert Detect().auto_batch_size(on_gpu, 3.0) == 10, "what is reserved for models to come is not free"
    open_model = replace(on_gpu, text={"input_ids": torch.zeros(1, 3)})
    assert Detect().auto_batch_size(open_model, 3.0) == 2, "words take memory too"


@pytest.mark.parametrize(
    ("size", "expected"),
    [(SIDE, (64, 64)), (EDGES, (64, 192)), ({"longest_edge": 640}, (640, 640)), (None, (1333, 1333))],
)
def test_the_input_size_is_that_of_the_processor(size: Any, expected: tuple[int, int]) -> None:
    assert Detector(None, SimpleNamespace(size=size), {}, {}, "cpu").input_size == expected


# --- mistakes, found before the first picture


def refusal(model: Path | str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        Detect(model=str(model), device="cpu", **options).fetch()
    return str(caught.value).removeprefix("detect: ")


def test_an_unknown_label_is_named_with_the_nearest(folder_of: Folders) -> None:
    folder = folder_of(rt_detr_v2)
    assert refusal(folder, labels=("cat", "persn")) == "labels: the model has no label 'persn' (did you mean 'person'?)"
    assert "no label 'zebra' (there are: cat, dog, person)" in refusal(folder, labels=("zebra",))
    Detect(model=str(folder), labels=("dog",)).fetch()


@pytest.mark.parametrize("make", OPEN, ids=lambda make: make.__name__)
def test_models_for_any_labels_need_some(folder_of: Folders, make: Callable[[], Made]) -> None:
    assert "finds what it is told to: set `labels:`" in refusal(folder_of(make))


@pytest.mark.parametrize("make", [grounding_dino, owlv2], ids=lambda make: make.__name__)
@pytest.mark.parametrize("label", ["", " . ", "..."])
def test_labels_without_a_word_are_refused(folder_of: Folders, make: Callable[[], Made], label: str) -> None:
    assert f"labels: {label!r} has no letter" in refusal(folder_of(make), labels=("cat", label))


def test_labels_longer_than_the_model_reads_are_refused(folder_of: Folders, capfd: pytest.CaptureFixture[str]) -> None:
    long = "x" * 60
    assert refusal(folder_of(owlv2), labels=("cat", long)) == (
        f"labels: {long!r} has 60 tokens and the model reads 14: shorten it"
    )
    Detect(model=str(folder_of(owlv2)), labels=("x" * 14,)).fetch()
    assert "has 15 tokens" in refusal(folder_of(owlv2), labels=("x" * 15,))
    folder = folder_of(grounding_dino)
    Detect(model=str(folder), labels=("x" * 60, "cat")).fetch()
    Detect(model=str(folder), labels=("cat",) * 127).fetch()
    assert refusal(folder, labels=("cat",) * 128) == (
        "labels: they have 256 tokens and the model reads 254: give fewer, or shorter ones"
    )
    assert "longer than" not in capfd.readouterr().err, "the library's own words are not for the user"


def test_a_label_of_sixty_letters_is_found(folder_of: Folders) -> None:
    stage = Detect(model=str(folder_of(grounding_dino)), labels=("x" * 60,), min_score=0.0, device="cpu")
    [result] = detect(stage, stage.load(), noise(80, 60))
    assert set(result["object_counts"]) == {"x" * 60}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("models/demo/clip", "is a CLIP of open_clip: give an object detector of transformers, such as PekingU/"),
        ("models/demo/sentences", "is a bert model, which finds no objects: give an object detector"),
        ("models/demo/llama/llama.gguf", "is a GGUF file: give an object detector"),
        ("models/demo/vision_language", "is a qwen2_vl model, which finds no objects: give an object detector"),
        ("models/demo/detectors", "no such file or folder; did you mean"),
    ],
)
def test_other_models_are_refused(model: str, expected: str) -> None:
    assert expected in refusal(model)


def changed(folder: Path, to: Path, **config: Any) -> Path:
    """A copy of a model's folder, with other values in its configuration."""
    shutil.copytree(folder, to)
    content = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(content | config))
    return to


def test_damaged_and_foreign_folders_are_refused(folder_of: Folders, tmp_path: Path) -> None:
    good = folder_of(rt_detr_v2)
    headless = changed(good, tmp_path / "headless", architectures=["RTDetrV2Model"])
    assert "holds a RTDetrV2Model, which finds no objects" in refusal(headless)
    own_code = changed(good, tmp_path / "own", model_type="rf-detr-x", auto_map={"AutoConfig": "conf.RfConfig"})
    assert "runs Python files of its own: give an object detector" in refusal(own_code)
    newer = changed(good, tmp_path / "newer", model_type="rt_detr_v9")
    assert "does not know the model type 'rt_detr_v9': update transformers" in refusal(newer)
    (cut := changed(good, tmp_path / "cut") / "model.safetensors").write_bytes(b"12345678")
    assert "is damaged" in refusal(cut.parent)
    (changed(good, tmp_path / "bare") / "model.safetensors").unlink()
    assert "model.safetensors is missing" in refusal(tmp_path / "bare")
    (changed(good, tmp_path / "blind") / "preprocessor_config.json").unlink()
    assert str(tmp_path / "blind") in refusal(tmp_path / "blind")
    other = changed(good, tmp_path / "other") / "preprocessor_config.json"
    other.write_text(json.dumps({"image_processor_type": "ViTImageProcessor"}))
    assert "names ViTImageProcessor, which is not that of a detector: copy it again" in refusal(other.parent)
    pickled = changed(good, tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    assert "may be a pickle" in refusal(pickled)


def test_pickled_weights_load_where_they_are_allowed(folder_of: Folders, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = changed(folder_of(rt_detr_v2), tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    stage = Detect(model=str(folder), allow_pickle=True, device="cpu", min_score=0.0)
    stage.fetch()
    safe = replace(stage, model=str(folder_of(rt_detr_v2)), allow_pickle=False)
    assert detect(stage, stage.load(), noise(80, 60)) == detect(safe, safe.load(), noise(80, 60))


def test_weights_of_sixteen_bits_compute_in_float32(folder_of: Folders, tmp_path: Path) -> None:
    folder = folder_of(rt_detr_v2)
    half = transformers.AutoModelForObjectDetection.from_pretrained(folder, dtype=torch.float16)
    half.save_pretrained(tmp_path)
    shutil.copy(folder / "preprocessor_config.json", tmp_path)
    stage = Detect(model=str(tmp_path), device="cpu")
    assert {weight.dtype for weight in stage.load().model.parameters()} == {torch.float32}


# --- options


def config_of(folder: Path, options: dict[str, Any]) -> Detect:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"stages": [{"use": "open_image"}, {"use": "detect", **options}]}))
    stage = load_config(path).stages[1]
    assert isinstance(stage, Detect)
    return stage


def test_a_preset_stands_for_options_that_are_not_set(tmp_path: Path) -> None:
    for name, preset in PRESETS.items():
        stage = config_of(tmp_path, {"preset": name})
        assert (stage.model, stage.revision, stage.labels) == preset
    assert config_of(tmp_path, {}) == config_of(tmp_path, {"preset": "coco"})
    own = config_of(tmp_path, {"preset": "ui", "model": "models/demo/detector", "labels": ["button"], "min_score": 0})
    assert (own.model, own.revision, own.labels, own.min_score) == ("models/demo/detector", "", ("button",), 0)
    assert config_of(tmp_path, {"preset": "ui", "revision": "main"}).revision == "main"


def test_the_settings_hold_what_a_preset_stands_for(tmp_path: Path) -> None:
    stage = config_of(tmp_path, {"preset": "people"})
    settings = stage_settings(stage)
    assert settings["model"] == "PekingU/rtdetr_v2_r18vd" and settings["labels"] == ["person"]
    assert settings == stage_settings(config_of(tmp_path, {"model": stage.model, "labels": ["person"]}))
    pinned = replace(config_of(tmp_path, {"preset": "ui"}), revision="a" * 40)
    assert (pinned.revision, pinned.model) == ("a" * 40, PRESETS["ui"].model), "as weights.resolved pins it"
    assert replace(pinned, batch_size=1).revision == "a" * 40


def test_the_models_of_presets_load_from_the_cache_at_their_commits(
    folder_of: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "b" * 40
    for preset in set(PRESETS.values()):
        home = tmp_path / f"models--{preset.model.replace('/', '--')}"
        if not home.exists():
            shutil.copytree(folder_of(rt_detr_v2), home / "snapshots" / commit)
            (branch := home / "refs" / (preset.revision or "main")).parent.mkdir(parents=True)
            branch.write_text(commit)
    for name, preset in PRESETS.items():
        stage = weights.resolved(config_of(tmp_path, {"preset": name}))
        assert isinstance(stage, Detect)
        assert (stage.model, stage.revision, stage.labels) == (preset.model, commit, preset.labels)
        stage.check(stage.path())
        assert stage.load().names == dict(enumerate(LABELS))


@pytest.mark.parametrize("options", [{"min_score": 50}, {"overlap": 1.5}, {"preset": "cars"}, {"labels": "person"}])
def test_mistakes_in_options_are_named(tmp_path: Path, options: dict[str, Any]) -> None:
    [name] = options
    with pytest.raises(ConfigError, match=f"detect.*{name}.*"):
        config_of(tmp_path, options)


# --- through the program


def run(folder: Path, *pictures: Path, **options: Any) -> tuple[int, str, Any]:
    """The status, the output and the rows of a run, by file name."""
    config = folder / "detect.yaml"
    stages = [{"use": "open_image"}, {"use": "detect", "device": "cpu", **options}]
    config.write_text(yaml.safe_dump({"stages": stages, "output": str(folder / "out.csv")}))
    program = [sys.executable, str(PROJECT / "run.py"), *map(str, pictures), "--config", str(config)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=240)
    if not (folder / "out.csv").exists():
        return done.returncode, done.stderr, None
    table = load_annotations(folder / "out.csv")
    table.index = [Path(path).name for path in table["image_path"]]
    return done.returncode, done.stderr, table


def test_a_run_writes_a_row_for_every_file(folder_of: Folders, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("pink-square-SALE.png", "red-flower.jpg"):
        source = next(EXAMPLES.glob(f"{Path(name).stem}.*[!n]"))
        shutil.copy(source, pictures / name)
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing else")
    noise(1, 500).save(pictures / "strip.png")
    status, _, rows = run(tmp_path, pictures, model=str(folder_of(rt_detr_v2)), min_score=0.0, most_objects=3)
    assert status == 1
    assert rows.loc["broken.png", "error"].startswith("open_image: ")
    for name in ("pink-square-SALE.png", "red-flower.jpg", "strip.png"):
        objects, counts = rows.loc[name, "objects"], rows.loc[name, "object_counts"]
        assert rows.loc[name, "error"] == ""
        assert 1 <= len(objects) <= 3 and sum(counts.values()) >= len(objects)
        assert_valid({"objects": objects}, Image.open(pictures / name).size)


def test_a_run_with_an_unknown_label_ends_before_the_first_picture(folder_of: Folders, tmp_path: Path) -> None:
    status, output, rows = run(tmp_path, EXAMPLES, model=str(folder_of(rt_detr_v2)), labels=["cats"])
    assert status == 2 and rows is None
    assert "detect: labels: the model has no label 'cats' (did you mean 'cat'?)" in output


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """The intersection of two boxes by their union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(0.0, width) * max(0.0, height)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return both / (areas - both)


@needs_bundled
def test_the_bundled_detector_finds_what_was_drawn(tmp_path: Path) -> None:
    """Scenes, people and screens of combinations that it was not trained on, through the program."""
    rng, pictures, truths = random.Random(15), tmp_path / "pictures", {}
    pictures.mkdir()
    for sort in ("scene", "people", "screen"):
        for number in range(12):
            drawn = full_picture(rng, held_out=True, sort=sort)
            drawn.image.save(pictures / f"{sort}-{number}.png")
            truths[f"{sort}-{number}.png"] = drawn.objects
    status, output, rows = run(tmp_path, pictures, EXAMPLES, model=str(BUNDLED))
    assert status == 0, output
    examples = {path.stem: json.loads(path.read_text()) for path in EXAMPLES.glob("*.json")}
    counted = [
        rows.loc[name, "object_counts"]
        == {each["kind"]: truth["count"] // len(truth["things"]) for each in truth["things"]}
        for name in rows.index
        if (truth := examples.get(Path(name).stem))
    ]
    assert len(counted) == len(examples) and np.mean(counted) > 0.9
    hits = [
        any(each["label"] == one.label and overlap(each["box"], one.box) > 0.5 for each in rows.loc[name, "objects"])
        for name, objects in truths.items()
        for one in objects
    ]
    assert np.mean(hits) > 0.95, f"{np.mean(hits):.1%} of {len(hits)} objects found"
    people = [name for name in truths if name.startswith("people")]
    right = [rows.loc[name, "object_counts"].get("person", 0) == number_of_people(truths[name]) for name in people]
    assert np.mean(right) > 0.9, f"people are counted right in {np.mean(right):.1%} of {len(right)} pictures"


def number_of_people(objects: Sequence[Any]) -> int:
    return sum(each.label == "person" for each in objects)


@needs_bundled
def test_the_bundled_detector_counts_people_twice_without_suppression() -> None:
    stage = Detect(model=str(BUNDLED), labels=("person",), device="cpu")
    stage.fetch()
    model, rng = stage.load(), random.Random(16)
    drawn = [full_picture(rng, held_out=True, sort="people") for _ in range(30)]
    right = {
        name: np.mean(
            [
                result["object_counts"].get("person", 0) == number_of_people(each.objects)
                for each, result in zip(
                    drawn, detect(replace(stage, suppression=name), model, *(each.image for each in drawn)), strict=True
                )
            ]
        )
        for name in ("none", "class", "all")
    }
    assert right["all"] > 0.9 and right["all"] > right["none"] + 0.2, right
