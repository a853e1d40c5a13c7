"""A picture and its edit are compared by pixels, by their embeddings, and with what their texts say."""

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from models.demo.edit_pairs import EDITS, random_pair
from vec_pipeline.memory import ModelCache
from vec_pipeline.record import UserError, Values
from vec_pipeline.stages.compare_pair import ComparePair, largest_difference
from vec_pipeline.stages.embed_image import Clip, EmbedImage
from vec_pipeline.stages.flag import Flag
from vec_pipeline.stages.open_image import open_image

MODEL = str(Path(__file__).resolve().parent.parent / "models/demo/clip")
DIMENSIONS = json.loads((Path(MODEL) / "open_clip_config.json").read_text())["model_cfg"]["embed_dim"]
EMBED, STAGE = EmbedImage(model=MODEL, device="cpu"), ComparePair(model=MODEL, device="cpu")
NOTHING = np.zeros(DIMENSIONS, np.float32)
COLUMNS = {"pair_similarity", "pair_difference", "edit_direction"}


@pytest.fixture(scope="module")
def clip() -> Clip:
    return EMBED.load()


@pytest.fixture(scope="module")
def rows(clip: Clip) -> list[Values]:
    """Of drawn pictures and their edits, with true captions and embeddings: 8 of each edit."""
    rng = random.Random(4)
    made: list[Values] = []
    while len(made) < 24:
        pair = random_pair(rng, (112, 84), held_out=False, edit=EDITS[len(made) % 3], scale=2)
        images = [open_image(content_of(each.painted().image), 112) for each in (pair.before, pair.after)]
        texts = [each.scene.caption() for each in (pair.before, pair.after)]
        if texts[0] != texts[1]:
            made.append(row_of(clip, images, texts))
    return made


def row_of(clip: Clip, images: list[Image.Image], texts: list[str]) -> Values:
    found = EMBED.run(clip, [{"image": image} for image in images], 2)
    before, after = (result["image_vector"] for result in found)
    names = ("image", "edited_image", "text", "edited_text", "image_vector", "edited_vector")
    return dict(zip(names, (*images, *texts, before, after), strict=True))


def content_of(image: Image.Image, quality: int = 0) -> bytes:
    """A PNG, or a JPEG of a quality."""
    content = io.BytesIO()
    image.save(content, "JPEG" if quality else "PNG", **({"quality": quality} if quality else {}))
    return content.getvalue()


def resaved(image: Image.Image, quality: int, share: float) -> Image.Image:
    size = round(image.width * share), round(image.height * share)
    return open_image(content_of(image.resize(size, Image.Resampling.LANCZOS), quality), 384)


def without(row: Values, *names: str) -> Values:
    return {name: value for name, value in row.items() if name not in names}


def test_an_edit_is_similar_and_another_picture_is_not(clip: Clip, rows: list[Values]) -> None:
    edits = [found["pair_similarity"] for found in STAGE.run(clip, rows, 24)]
    moved = [row["edited_vector"] for row in rows[1:] + rows[:1]]
    strangers = STAGE.run(clip, [{**row, "edited_vector": other} for row, other in zip(rows, moved, strict=True)], 24)
    assert np.median(edits) > 0.75
    assert np.median([found["pair_similarity"] for found in strangers]) < 0.4
    assert edits[0] == pytest.approx(float(rows[0]["image_vector"] @ rows[0]["edited_vector"]), abs=1e-4)


def test_the_direction_of_an_edit_is_that_of_its_texts_and_of_no_others(clip: Clip, rows: list[Values]) -> None:
    own = [found["edit_direction"] for found in STAGE.run(clip, rows, 24)]
    backwards = [{**row, "text": row["edited_text"], "edited_text": row["text"]} for row in rows]
    other = [
        {**row, "text": each["text"], "edited_text": each["edited_text"]}
        for row, each in zip(rows, rows[1:] + rows[:1], strict=True)
    ]
    assert min(own) > 0.3
    assert [found["edit_direction"] for found in STAGE.run(clip, backwards, 24)] == pytest.approx([-x for x in own])
    assert np.median([found["edit_direction"] for found in STAGE.run(clip, other, 24)]) < 0.15


def test_the_direction_is_the_cosine_of_the_two_moves(clip: Clip, rows: list[Values]) -> None:
    """As the authors of InstructPix2Pix compute it (metrics/clip_similarity.py): of embeddings of length 1."""
    row = rows[5]
    with torch.no_grad():
        texts = clip.model.encode_text(clip.tokenize([row["text"], row["edited_text"]]))
        texts = texts / texts.norm(dim=1, keepdim=True)
        images = torch.from_numpy(np.stack([row["image_vector"], row["edited_vector"]]))
        expected = torch.cosine_similarity(images[1:] - images[:1], texts[1:] - texts[:1])
    alone = STAGE.run(clip, [row], 1)
    assert alone[0]["edit_direction"] == pytest.approx(float(expected), abs=1e-4)
    assert STAGE.run(clip, rows, 24)[5]["edit_direction"] == pytest.approx(alone[0]["edit_direction"], abs=2e-4)


@pytest.mark.parametrize(
    ("changed", "empty"),
    [
        ({"text": None}, {"edit_direction"}),
        ({"edited_text": None}, {"edit_direction"}),
        ({"edited_text": " \n"}, {"edit_direction"}),
        ({"text": "A cat.", "edited_text": " A cat. "}, {"edit_direction"}),
        ({"image_vector": None}, {"edit_direction", "pair_similarity"}),
        ({"edited_vector": None}, {"edit_direction", "pair_similarity"}),
        ({"edited_vector": NOTHING}, {"pair_similarity"}),
    ],
)
def test_what_cannot_be_compared_is_empty(changed: Values, empty: set[str], clip: Clip, rows: list[Values]) -> None:
    row = {**rows[0], **changed}
    row = {name: value for name, value in row.items() if value is not None}
    found = STAGE.run(clip, [rows[1], row, rows[2]], 3)
    assert {name for name, value in found[1].items() if value is None} == empty
    assert found[1].keys() == COLUMNS
    assert found[0] == STAGE.run(clip, [rows[1]], 1)[0]
    assert None not in found[2].values()


def test_pixels_alone_are_enough(clip: Clip, rows: list[Values]) -> None:
    row = without(rows[0], "text", "edited_text", "image_vector", "edited_vector")
    assert STAGE.run(clip, [row], 1)[0]["pair_difference"] > 0.05
    same = {**rows[0], "edited_image": rows[0]["image"], "edited_vector": rows[0]["image_vector"]}
    assert STAGE.run(clip, [same], 1) == [{"pair_similarity": 1.0, "pair_difference": 0.0, "edit_direction": None}]


def test_vectors_of_another_model_are_named(clip: Clip, rows: list[Values]) -> None:
    row = {**rows[0], **dict.fromkeys(("image_vector", "edited_vector"), np.ones(3, np.float32))}
    with pytest.raises(UserError) as caught:
        STAGE.run(clip, [row], 1)
    assert str(caught.value) == (
        f"compare_pair: image_vector has 3 numbers, and {MODEL} gives {DIMENSIONS}: set compare_pair.model to that of "
        "the stage which writes image_vector"
    )
    assert STAGE.run(clip, [without(row, "text")], 1)[0]["pair_similarity"] == 1.0, "which needs no CLIP"


# --- the difference of the pixels


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("side_px", [112, 384])
def test_an_edit_differs_more_than_a_picture_that_was_saved_again(edit: str, side_px: int) -> None:
    rng, low = random.Random(side_px), Flag.low_edit_difference
    for _ in range(4):
        pair = random_pair(rng, (112, 112), held_out=False, edit=edit, scale=-(-side_px // 112))
        if pair.before == pair.after:
            continue
        before, after = (open_image(content_of(each.painted().image), side_px) for each in (pair.before, pair.after))
        assert largest_difference(before, after) > 1.3 * low
        assert largest_difference(before, resaved(after, 50, 0.8)) > low
        for quality, share in ((50, 1.0), (95, 0.8), (50, 0.8), (50, 0.5)):
            assert largest_difference(before, resaved(before, quality, share)) < low


def test_the_difference_is_that_of_the_part_that_differs_most() -> None:
    black = Image.new("RGB", (80, 80))
    assert largest_difference(black, black) == 0
    assert largest_difference(black, Image.new("RGB", (80, 80), "white")) == 1
    assert largest_difference(black, Image.new("RGB", (80, 80), (255, 0, 0))) == pytest.approx(1 / 3)
    spotted = black.copy()
    ImageDraw.Draw(spotted).rectangle((24, 24, 39, 39), fill="white")
    assert largest_difference(black, spotted) > 0.5
    assert largest_difference(black, spotted) == largest_difference(spotted, black)


@pytest.mark.parametrize("size", [(40, 40), (160, 80), (3, 200), (1, 1)])
def test_pictures_of_any_two_sizes_have_a_difference(size: tuple[int, int]) -> None:
    """Both are stretched to the smaller width and height."""
    first = Image.new("RGB", (80, 80), (200, 100, 0))
    assert largest_difference(first, Image.new("RGB", size, (200, 100, 0))) == 0
    assert largest_difference(first, Image.new("L", size, 100)) == pytest.approx(200 / 3 / 255)
    half = Image.new("RGB", (80, 80), "white")
    half.paste("black", (0, 0, 40, 80))
    assert largest_difference(half, half.resize((160, 240), Image.Resampling.NEAREST)) < 0.02


# --- the model


def test_the_clip_is_shared_with_embed_image(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []

    def load(stage: EmbedImage) -> Any:
        loads.append(stage.name)
        return object()

    monkeypatch.setattr(EmbedImage, "load", load)
    edited = EmbedImage(name="embed_edited", model=MODEL, device="cpu", write={"image_vector": "edited_vector"})
    stages = (EMBED, edited, STAGE)
    models = ModelCache(stages, 1, 0.0)
    for stage in stages:
        with models.use(stage) as model:
            assert model
    assert loads == ["embed_image"]
    assert STAGE.need() == EMBED.need()
    assert ComparePair(model=MODEL, device="cpu", batch_size=3).loaded_as == EmbedImage(
        model=MODEL, device="cpu", batch_size=3
    )
    assert ComparePair(model=MODEL, device="cpu", revision="x").loaded_as != EMBED
    models.close()


def test_a_model_that_is_no_clip_is_refused_by_the_name_of_the_stage() -> None:
    with pytest.raises(UserError, match=r"^compare_pair: .* is .*: give "):
        ComparePair(model=str(Path(MODEL).parent / "dino"), device="cpu").fetch()
    STAGE.fetch()
