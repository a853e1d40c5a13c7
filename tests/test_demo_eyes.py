"""The demo's detector, classifiers, DINOv2 and CLIP see what was drawn, and the boxes they learn from are true."""

import json
import random
from itertools import product
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, Dinov2Config, Dinov2Model

from models.demo import detection_pictures, people, screens, tower
from models.demo.boxed import BoxedPicture, Labelled, boxed_scene
from models.demo.detection_pictures import LABELS, SIDE_PX, SORTS, random_picture
from models.demo.detector_accuracy import Found, average_precision, detect, people_counted, whole_right
from models.demo.detector_loss import DenseLoss, Targets
from models.demo.drawing import Box, draw
from models.demo.people import AGES, GENDERS, PERSON, Person, draw_people, figure, random_person
from models.demo.scenes import Scene, Thing
from models.demo.screens import ELEMENTS, THEMES, draw_screen, random_look
from models.demo.train_dino import build_processor, drawn_gallery, share_of_neighbours, wanted_cosines
from models.demo.training import Progress, Renewed, export_half
from models.demo.vector_training import DEMO

DETECTOR, PEOPLE, DINO, CLIP = (DEMO / name for name in ("detector", "people", "dino", "clip"))
RED_CAR, RED_FISH, BLUE_CAR = Thing("car", "red"), Thing("fish", "red"), Thing("car", "blue")


def trained(folder: Path) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not folder.exists(), reason=f"{folder.name} has not been trained: make demo-models")


def answered(picture: BoxedPicture, *extra: Labelled) -> Found:
    """What a perfect detector answers for a picture, and `extra` besides."""
    objects = [*picture.objects, *extra]
    labels = torch.tensor([LABELS.index(item.label) for item in objects], dtype=torch.long)
    boxes = torch.tensor([item.box for item in objects], dtype=torch.float).view(-1, 4)
    return Found(torch.linspace(0.95, 0.9, len(objects)), labels, boxes)


@pytest.mark.parametrize("sort", SORTS)
def test_a_seed_always_draws_the_same(sort: str) -> None:
    first, second = (random_picture(random.Random(5), held_out=False, sort=sort) for _ in range(2))
    assert first.objects == second.objects
    assert ImageChops.difference(first.image, second.image).getbbox() is None


@pytest.mark.parametrize("sort", SORTS)
def test_boxes_lie_inside_the_picture_and_have_known_labels(sort: str) -> None:
    rng = random.Random(1)
    for _ in range(30):
        picture = random_picture(rng, held_out=False, sort=sort)
        assert picture.image.size == (SIDE_PX, SIDE_PX)
        for item in picture.objects:
            assert 0 <= item.box.left < item.box.right <= SIDE_PX
            assert 0 <= item.box.top < item.box.bottom <= SIDE_PX
            assert item.label in LABELS


def test_every_label_is_drawn() -> None:
    rng = random.Random(2)
    numbers = zip(SORTS, (150, 20, 30), strict=True)
    drawn = (random_picture(rng, held_out=False, sort=sort) for sort, number in numbers for _ in range(number))
    seen = {item.label for picture in drawn for item in picture.objects}
    assert seen == set(LABELS)


def test_boxes_of_a_scene_are_tight_at_every_scale() -> None:
    """Where the objects are is read off a second, finer look: the pixels that differ from the background."""
    for scale in (1, 4):
        scene = Scene((Thing("square", "red"),), 3, "", "white", "")
        canvas = draw(scene, random.Random(4), 112, 112, scale)
        picture = boxed_scene(canvas)
        assert len(picture.objects) == 3
        red = (np.asarray(picture.image)[..., 1] < 120).astype(np.uint8)
        inside = np.zeros_like(red)
        for item in picture.objects:
            left, top, right, bottom = (int(edge) for edge in item.box)
            inside[top:bottom, left:right] = 1
            patch = red[top:bottom, left:right]
            for edge in (patch[0], patch[-1], patch[:, 0], patch[:, -1]):  # an object touches all edges of its box
                assert edge.any()
        assert not (red & (1 - inside)).any()


def test_two_kinds_in_a_scene_each_have_their_own_box() -> None:
    scene = Scene((RED_CAR, Thing("fish", "blue")), 2, "to the left of", "white", "")
    car, fish = boxed_scene(draw(scene, random.Random(1), scale=4)).objects
    assert (car.label, fish.label) == ("car", "fish")
    assert 0 < car.box.right - car.box.left < 4 * 0.38 * 112
    assert car.box.right <= fish.box.left


def test_a_plain_scene_and_noise_have_no_boxes() -> None:
    for background in ("white", "noise"):
        assert boxed_scene(draw(Scene((), 0, "", background, ""), random.Random(1))).objects == ()


def test_resizing_moves_the_boxes_with_the_picture() -> None:
    picture = BoxedPicture(Image.new("RGB", (200, 100)), (Labelled("car", Box(20, 10, 40, 60)),))
    assert picture.resized(100, 200).objects[0].box == Box(10, 20, 20, 120)


def test_a_box_that_reaches_beyond_the_picture_is_cut_off() -> None:
    assert Labelled("menu", Box(-2, -1, 164, 165)).within(160, 120).box == Box(0, 0, 160, 120)


def test_combinations_that_are_held_out_are_never_drawn_for_training() -> None:
    rng = random.Random(3)
    seen, kept = ({random_person(rng, "white", held_out=held_out) for _ in range(2_000)} for held_out in (False, True))
    assert {(person.age, person.gender) for person in kept} == set(product(AGES, GENDERS))
    assert not seen & kept
    looks, kept_looks = ({random_look(rng, held_out=held_out) for _ in range(900)} for held_out in (False, True))
    assert {look.theme for look in kept_looks} == set(THEMES)
    assert not looks & kept_looks


def test_things_beside_people_and_icons_keep_to_the_combinations_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(people, "random_thing", lambda rng, ground, *, held_out: asked.append(held_out) or RED_CAR)
    monkeypatch.setattr(screens, "random_word", lambda rng, kind, *, held_out: asked.append(held_out) or "SALE")
    monkeypatch.setattr(screens, "is_held_out", lambda *parts: asked.append(parts[0]) or True)
    rng = random.Random(3)
    for _ in range(10):
        draw_people(rng, 112, 112, held_out=True)
        draw_screen(rng, 160, 160, held_out=True)
    assert {True, "screen", "icon"} <= set(asked)
    assert False not in asked


@pytest.mark.parametrize("held_out", [True, False])
def test_pictures_of_every_sort_are_drawn_from_the_combinations_asked_for(
    held_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def drawn(*_arguments: object, held_out: bool) -> BoxedPicture:
        asked.append(held_out)
        return BoxedPicture(Image.new("RGB", (SIDE_PX, SIDE_PX)), ())

    for name in ("random_boxed_scene", "draw_people", "draw_screen"):
        monkeypatch.setattr(detection_pictures, name, drawn)
    for sort in SORTS:
        random_picture(random.Random(1), held_out=held_out, sort=sort)
    assert asked == [held_out] * 3


def test_held_out_looks_exist_for_every_element() -> None:
    rng = random.Random(8)
    seen = {item.label for _ in range(60) for item in draw_screen(rng, 224, 224, held_out=True).objects}
    assert seen == set(ELEMENTS)


def test_people_are_painted_where_their_boxes_are() -> None:
    rng = random.Random(6)
    layer = figure(Person("senior", "male", "red", "light"), rng, 90)
    assert layer.getbbox() == (0, 0, *layer.size)
    alone = [picture for _ in range(60) if len((picture := draw_people(rng, 160, 160, held_out=False)).objects) == 1]
    assert len(alone) > 5
    for picture in alone:
        assert picture.objects[0].age in AGES or picture.objects[0].label != PERSON
        left, top, right, bottom = (int(edge) for edge in picture.objects[0].box)
        pixels = np.asarray(picture.image).astype(int)
        outside = np.ones(pixels.shape[:2], bool)
        outside[top:bottom, left:right] = False
        ground = pixels[0, 0] if top > 0 and left > 0 else pixels[0, -1]
        assert abs(pixels[top:bottom, left:right] - ground).max() > 60
        assert abs(pixels[outside] - ground).max() < 120  # noise and the floor are fainter than a person


def test_figures_show_age_and_gender() -> None:
    """Only seniors are grey, only women are wide at the hem, and children have large heads."""
    rng = random.Random(9)
    share_of_hair, hem, head = {}, {}, {}
    for age in AGES:
        for gender in GENDERS:
            layer = np.asarray(figure(Person(age, gender, "blue", "medium"), rng, 120)).astype(int)
            solid = layer[..., 3] > 128
            grey = solid & (abs(layer[..., :3].max(-1) - layer[..., :3].min(-1)) < 35) & (layer[..., 0] > 150)
            share_of_hair[age, gender] = grey.sum() / solid.sum()
            head[age, gender] = solid[round(0.1 * len(solid))].sum() / len(solid)
            hem[age, gender] = solid[round(0.68 * len(solid))].sum() / len(solid)
    assert all(hem[age, "female"] > 1.2 * hem[age, "male"] for age in AGES)
    assert all(head["child", gender] > 1.2 * head["adult", gender] for gender in GENDERS)
    assert min(share_of_hair["senior", gender] for gender in GENDERS) > 0.03
    assert max(share_of_hair[age, gender] for age in ("child", "adult") for gender in GENDERS) < 0.02


def test_perfect_answers_are_perfect_and_missing_or_wrong_ones_are_not() -> None:
    rng = random.Random(11)
    pictures = [random_picture(rng, held_out=True, sort=sort) for sort in SORTS for _ in range(12)]
    assert average_precision([answered(picture) for picture in pictures], pictures) == pytest.approx(1.0)
    assert all(whole_right(answered(picture), picture) for picture in pictures)
    assert all(people_counted(answered(picture), picture) for picture in pictures)
    picture = next(one for one in pictures if len(one.objects) >= 2)
    full = answered(picture)
    assert not whole_right(Found(*(column[1:] for column in full)), picture)
    assert not whole_right(full._replace(labels=full.labels.roll(1) + 1), picture)
    assert not whole_right(full._replace(boxes=full.boxes + SIDE_PX), picture)
    assert not whole_right(answered(picture, Labelled("car", Box(0, 0, 9, 9))), picture)
    half = [Found(*(column[: len(column) // 2] for column in answered(one))) for one in pictures]
    assert average_precision(half, pictures) < 0.7


def test_an_object_found_twice_is_counted_once_after_suppression() -> None:
    box = Box(20, 20, 60, 120)
    picture = BoxedPicture(Image.new("RGB", (SIDE_PX, SIDE_PX)), (Labelled(PERSON, box),))
    twice = answered(picture, Labelled(PERSON, Box(21, 20, 61, 121)), Labelled("car", Box(20, 21, 60, 119)))
    assert not people_counted(twice, picture)
    assert people_counted(twice.suppressed(), picture)
    assert whole_right(twice.suppressed(), picture)
    doubtful = twice._replace(
        scores=torch.tensor([0.9, 0.1, 0.1]), boxes=twice.boxes + torch.tensor([[0.0], [60], [90]])
    )
    assert len(doubtful.suppressed().labels) == 1
    beside = answered(picture)
    assert not whole_right(beside._replace(boxes=beside.boxes + 20), picture)


def test_dense_loss_teaches_the_seven_best_places_of_an_object() -> None:
    torch.manual_seed(0)
    loss = DenseLoss(8, 3, (8, 16), 64)
    loss.memory = torch.randn(1, 64 + 16, 8)
    targets = Targets(
        torch.tensor([[[0.5, 0.0, 1.0, 0.25], [0, 0, 0, 0]]]), torch.tensor([[1, 0]]), torch.tensor([[True, False]])
    )
    found = torch.tensor([0.7, 0.15, 0.3, 0.2]).logit().expand(1, 80, 4).clone().requires_grad_()
    loss(found, targets).backward()
    taught = found.grad.abs().sum(-1)[0] > 0  # type: ignore[union-attr]
    assert taught.sum() == 7
    middles = loss.places[taught]  # type: ignore[index]
    assert ((middles > torch.tensor([0.5, 0.0])) & (middles < torch.tensor([1.0, 0.25]))).all()
    assert loss.places[:2].tolist() == [[0.0625, 0.0625], [0.1875, 0.0625]]  # type: ignore[index]


def test_dense_loss_of_a_picture_without_objects_only_wants_silence() -> None:
    loss = DenseLoss(8, 3, (8, 16), 64)
    loss.memory = torch.randn(1, 80, 8)
    coordinates = torch.zeros(1, 80, 4, requires_grad=True)
    nothing = Targets(torch.zeros(1, 1, 4), torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.bool))
    loss(coordinates, nothing).backward()
    assert not coordinates.grad.any()  # type: ignore[union-attr]
    assert loss.score.weight.grad.any()  # type: ignore[union-attr]


def test_same_kind_and_colour_is_wanted_nearest() -> None:
    scenes = [Scene((thing,), 1, "at the top", "white", "") for thing in (RED_CAR, RED_CAR, RED_FISH, BLUE_CAR)]
    scenes[1] = Scene((RED_CAR,), 3, "", "black", "SALE")
    wanted = wanted_cosines(scenes)[0]
    assert wanted[0] == pytest.approx(1.0)
    assert wanted[1] > max(wanted[2], wanted[3])
    swapped = [(RED_CAR, Thing("fish", "blue")), (BLUE_CAR, RED_FISH)]
    assert wanted_cosines([Scene(things, 2, "above", "white", "") for things in swapped])[0, 1] < 0.9


def test_the_share_of_neighbours_counts_scenes_of_one_kind() -> None:
    scenes = [Scene((thing,), 1, "", "white", "") for thing in (RED_CAR, RED_CAR, RED_FISH)]
    vectors = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    assert share_of_neighbours(vectors, scenes) == pytest.approx(2 / 3)
    two = Scene((RED_CAR, RED_FISH), 2, "above", "white", "")
    assert share_of_neighbours(torch.cat((vectors, torch.tensor([[5.0, 5.0]]))), [*scenes, two]) == pytest.approx(2 / 3)


def test_the_gallery_holds_what_training_never_sees() -> None:
    from models.demo.scenes import is_held_out

    gallery = [item.scene for item in drawn_gallery(150)]
    kept = [is_held_out(s.things[0].kind, s.things[0].colour, s.background) for s in gallery if s.things]
    assert 0.02 < np.mean(kept) < 0.25


def test_clip_takes_over_a_dinov2_tower_exactly() -> None:
    from open_clip.transformer import VisionTransformer

    from models.demo.train_clip_kinds import VISION, copy_image_tower, image_vectors

    torch.manual_seed(2)
    shape = {"hidden_size": 160, "num_hidden_layers": 5, "num_attention_heads": 5, "mlp_ratio": 2}
    dino = Dinov2Model(Dinov2Config(**shape, image_size=112, patch_size=14, layerscale_value=0.7)).eval()
    torch.nn.init.normal_(dino.embeddings.patch_embeddings.projection.bias)
    sizes = {key: VISION[key] for key in ("image_size", "patch_size", "width", "layers", "mlp_ratio", "no_ln_pre")}
    visual = VisionTransformer(**sizes, heads=5, output_dim=256).eval()
    copy_image_tower(visual, dino)
    images = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        vectors, tokens = image_vectors(torch.nn.ModuleDict({"visual": visual}), images)
        wanted = dino(pixel_values=images).last_hidden_state
    torch.testing.assert_close(tokens, wanted[:, 1:], atol=1e-3, rtol=0)
    projected = torch.nn.functional.normalize(wanted[:, 0] @ visual.proj, dim=-1)
    torch.testing.assert_close(vectors, projected, atol=1e-3, rtol=0)


def test_a_pool_renews_its_oldest_first_and_progress_resumes() -> None:
    numbers = iter(range(100))
    pool = Renewed(4, lambda rng: next(numbers), random.Random(0))
    assert sorted(pool.sample(4, 2, random.Random(0))) == [2, 3, 4, 5]
    progress = Progress(10)
    progress.load_state_dict({"step": 5})
    assert progress.done == 0.5


def test_exported_weights_take_half_the_room_and_load_in_full_precision(tmp_path: Path) -> None:
    config = Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=1, image_size=28, patch_size=14)
    model = Dinov2Model(config)
    export_half(model, build_processor(), tmp_path)
    assert {weight.dtype for weight in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.dtype == torch.float32
    torch.testing.assert_close(loaded.embeddings.cls_token, model.embeddings.cls_token, atol=1e-3, rtol=0)
    assert AutoImageProcessor.from_pretrained(tmp_path).size == {"height": tower.SIDE_PX, "width": tower.SIDE_PX}


def test_patch_labels_are_put_in_the_order_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    side = tower.PATCHES
    squares = np.arange(side**2).reshape(side // 2, 2, side // 2, 2, 1).swapaxes(1, 2).reshape(side**2, 1)
    monkeypatch.setattr(tower, "labelled_picture", lambda *_arguments, collage_wanted: (None, squares, 0, None))
    assert tower.labelled(random.Random(1))[1][:, 0].tolist() == list(range(side**2))


@trained(DETECTOR)
def test_the_detector_finds_what_is_drawn() -> None:
    rng = random.Random(77)
    pictures = {sort: [random_picture(rng, held_out=True, sort=sort) for _ in range(40)] for sort in SORTS}
    found = {sort: [answer.suppressed() for answer in detect(DETECTOR, some)] for sort, some in pictures.items()}
    assert np.mean([whole_right(*pair) for pair in zip(found["scene"], pictures["scene"], strict=True)]) > 0.85
    assert np.mean([people_counted(*pair) for pair in zip(found["people"], pictures["people"], strict=True)]) > 0.9
    assert np.mean([whole_right(*pair) for pair in zip(found["screen"], pictures["screen"], strict=True)]) > 0.7


@pytest.mark.parametrize("question", ["age", "gender"])
@trained(PEOPLE)
def test_classifiers_see_the_age_group_and_the_gender_of_figures(question: str) -> None:
    from models.demo.train_people import share_right

    assert share_right(PEOPLE / question, question, 100) > 0.9


@trained(DINO)
def test_the_nearest_scene_shows_the_same_kind_and_colour() -> None:
    from models.demo.train_dino import neighbours_right

    figures = neighbours_right(Dinov2Model.from_pretrained(DINO).eval(), drawn_gallery(600))
    assert max(float(figure.split()[-1]) for figure in figures.split(", ")) > 0.6


CLIP_KNOWS_KINDS = json.loads((CLIP / "open_clip_config.json").read_text())["model_cfg"]["vision_cfg"].get("no_ln_pre")


@pytest.mark.skipif(not CLIP_KNOWS_KINDS, reason="clip has not been trained by train_clip_kinds: make demo-models")
def test_clip_tells_kinds_of_objects_apart() -> None:
    from models.demo.train_clip_kinds import accuracy, held_out_examples

    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{CLIP}")
    figures = accuracy(model, open_clip.get_tokenizer(f"local-dir:{CLIP}"), held_out_examples(100))
    kind, recall_at_1, recall_at_5 = (float(figure.split()[-1]) for figure in figures.split(", "))
    assert kind > 0.65
    assert recall_at_1 > 0.7
    assert recall_at_5 > 0.9
