"""Align: a map that is there is found, rows that cannot be used are counted, and search uses what was written."""

import csv
import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from models.demo.draw import write_scene
from models.demo.scenes import Scene, Thing, random_scene
from tests.conftest import PROJECT
from tests.rows import failed, unit_vectors, write
from vec_pipeline.__main__ import main
from vec_pipeline.annotations import CsvReader
from vec_pipeline.commands.align import alignment as files
from vec_pipeline.commands.align import pairs as reading
from vec_pipeline.commands.align import work
from vec_pipeline.commands.align.alignment import Alignment, project, unit
from vec_pipeline.commands.align.loss_picture import TRAIN, VALIDATION, Curve, loss_png
from vec_pipeline.commands.align.pairs import Pairs, Split
from vec_pipeline.commands.align.recall import chance, recall, table
from vec_pipeline.commands.align.training import MOST_STEPS, contrastive_loss, has_settled, train
from vec_pipeline.commands.search.query import text_vectors
from vec_pipeline.record import Record, UserError
from vec_pipeline.settings import settings_path
from vec_pipeline.stages.embed_text import EmbedText

STAGES: dict[str, dict[str, Any]] = {
    "embed_text": {"use": "embed_text", "version": 1, "model": "models/demo/sentences", "prefix": ""},
    "embed_dino": {"use": "embed_dino", "version": 1, "model": "models/demo/dino", "pool": "cls+mean"},
}
INNER, WIDTH = 16, 24  # dimensions of texts and of images
OFFSET = 3.0  # length of what all images have in common


def planted(rows: int, seed: int = 0) -> tuple[Any, Any]:
    """Text vectors, and image vectors that are a linear map of them plus what all have in common, of length 1."""
    rng = np.random.default_rng(seed)
    texts = unit_vectors(rows, INNER, seed=seed)
    plane, common = np.linalg.qr(rng.standard_normal((WIDTH, INNER)))[0], unit_vectors(1, WIDTH, seed=99)
    images = texts @ plane.T + OFFSET * common + 0.02 * rng.standard_normal((rows, WIDTH))
    return texts, unit(images.astype(np.float32))


def record(number: int, text: str, text_vector: Any, dino_vector: Any) -> Record:
    values = {"text": text, "description": text, "text_vector": text_vector, "dino_vector": dino_vector}
    return Record(f"/photos/{number:06}.jpg", {name: value for name, value in values.items() if value is not None})


def csv_of(path: Path, records: Sequence[Record], stages: Mapping[str, Any] = STAGES) -> Path:
    columns = {"dino_vector": "vector"}
    settings_path(path).write_text(yaml.safe_dump({"columns": columns, "sources": [], "stages": dict(stages)}))
    return write(path, records, ["dino_vector"])


def planted_csv(path: Path, rows: int = 300, *, shuffled: bool = False) -> Path:
    texts, images = planted(rows)
    if shuffled:
        images = images[np.random.default_rng(1).permutation(rows)]
    return csv_of(path, [record(n, f"Picture {n}", texts[n], images[n]) for n in range(rows)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "annotations.csv"


def align(path: Path, *arguments: object) -> Any:
    """The settings that were written."""
    assert main(["align", "--csv", str(path), *map(str, arguments)]) == 0
    return json.loads((path.with_name("align") / "settings.json").read_text())


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one sentence that a command ends with."""
    assert main([*map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vec-pipeline: ")
    assert error.count("\n") == 1
    return error


# --- what is learned


@pytest.mark.parametrize("layers", [1, 2])
def test_a_map_that_is_there_is_found(path: Path, layers: int, capsys: pytest.CaptureFixture[str]) -> None:
    settings = align(planted_csv(path), "--layers", layers)
    assert settings["rows"] == {"train": 210, "validation": 30, "test": 60}
    assert settings["recall"]["chance"]["text to image"] == pytest.approx([1 / 60, 5 / 60, 10 / 60], abs=1e-4)
    for way in ("text to image", "image to text"):
        assert settings["recall"]["this projection"][way][0] >= (0.9 if layers == 1 else 0.7)
    printed = capsys.readouterr().out
    assert "300 rows with all that is needed\n" in printed
    assert "210 to train on, 30 for validation, 60 for these figures:" in printed
    assert table(settings["recall"]) in printed


def test_texts_that_say_nothing_of_their_pictures_stay_at_chance(path: Path) -> None:
    settings = align(planted_csv(path, shuffled=True))
    at_ten = [settings["recall"]["this projection"][way][2] for way in ("text to image", "image to text")]
    assert max(at_ten) < 0.35  # by chance 0.17 of 60 rows, with a standard error of 0.05
    assert settings["loss"]["steps"][-1] < MOST_STEPS / 2


def test_a_seed_decides_all_that_is_random(path: Path) -> None:
    """`--out` is where it is written."""
    planted_csv(path, 150)
    weights = []
    for number, seed in enumerate((5, 5, 6)):
        folder = path.with_name(f"out{number}")
        assert main(["align", "--csv", str(path), "--seed", str(seed), "--out", str(folder)]) == 0
        weights.append((folder / "projection.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]
    assert not path.with_name("align").exists()


def test_the_projection_is_the_one_of_the_lowest_loss() -> None:
    """Of texts that say nothing it learns by heart what it is trained on, and the validation loss rises."""
    texts = unit_vectors(200, INNER, seed=3)
    images = unit_vectors(200, WIDTH, seed=4)
    split = Split(np.arange(60), np.arange(60, 200), np.arange(0))
    captions = [str(row) for row in range(200)]
    net, curve = train(texts, images, captions, split, 2, 0)
    assert curve.train[-1] < 0.3
    assert curve.validation[-1] > curve.validation[curve.best] + 0.1
    assert curve.steps[-1] < MOST_STEPS / 2
    with torch.inference_mode():
        projected = net(torch.from_numpy(texts[:60]))
        # The temperature is not kept; at the lowest validation loss, little had been learned by heart.
        loss = contrastive_loss(projected, torch.from_numpy(images[:60]), torch.arange(60), torch.tensor(20.0))
    assert loss > 0.6


def test_the_loss_is_the_mean_of_both_ways() -> None:
    texts, images, captions = unit_vectors(6, 4, seed=1), unit_vectors(6, 4, seed=2), np.array([0, 1, 1, 2, 3, 4])
    likelihoods = []
    for scores in (9 * texts @ images.T, 9 * images @ texts.T):
        shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        likelihoods += [
            np.log(share[captions == caption]).mean() for share, caption in zip(shares, captions, strict=True)
        ]
    loss = contrastive_loss(*map(torch.from_numpy, (3 * texts, images, captions)), torch.tensor(9.0))
    assert loss.item() == pytest.approx(-np.mean(likelihoods) / log(6), abs=1e-5)


def test_training_stops_where_little_is_gained() -> None:
    falling = [1 - 0.01 * look for look in range(30)]
    assert not has_settled(falling)
    assert not has_settled(falling[:3])
    assert not has_settled([0.5] * 10)
    assert has_settled([0.5] * 11)
    assert has_settled([0.5, *(0.5 - 0.0004 * look for look in range(10))])


def test_pairs_of_one_caption_are_all_right() -> None:
    """No order of equal texts can be wrong: the lowest loss is reached where they share what they are near to."""
    directions = torch.eye(4)
    captions = torch.tensor([0, 0, 1, 1])
    by_caption = contrastive_loss(directions[captions], directions[captions], captions, torch.tensor(50.0))
    assert by_caption.item() == pytest.approx(log(2) / log(4), abs=1e-5)
    one_each = contrastive_loss(directions, directions, torch.arange(4), torch.tensor(50.0))
    assert one_each.item() == pytest.approx(0, abs=1e-5)
    guessing = contrastive_loss(torch.ones(4, 4), torch.ones(4, 4) / 2, torch.arange(4), torch.tensor(50.0))
    assert guessing.item() == pytest.approx(1, abs=1e-5)


def test_images_are_learned_without_their_mean(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def noted(texts: Any, images: Any, *_: object) -> None:
        given.append(images)
        raise KeyboardInterrupt

    monkeypatch.setattr(work, "train", noted)
    assert main(["align", "--csv", str(planted_csv(path, 300))]) == 130
    np.testing.assert_allclose(np.linalg.norm(given[0], axis=1), 1, atol=1e-5)
    assert np.linalg.norm(given[0].mean(0)) < 0.2


# --- how it is measured


def test_recall_counts_a_row_of_the_same_caption_as_right() -> None:
    images = np.eye(12, dtype=np.float32)
    order = [1, 0, *range(2, 12)]  # the first two are mistaken for each other
    assert recall(images[order], images, list("abcdefghijkl"))["text to image"] == [round(10 / 12, 4), 1.0, 1.0]
    assert recall(images[order], images, list("aacdefghijkl"))["image to text"] == [1.0, 1.0, 1.0]


def test_chance_is_that_of_a_random_order() -> None:
    """Against orders that were drawn."""
    captions = list("aaaabbcdefghijklmnopqrstuvwx")
    rng = np.random.default_rng(0)
    drawn = []
    for seed in rng.integers(0, 10**6, 100):
        texts, images = (unit_vectors(len(captions), 9, seed=seed + way) for way in (0, 500))
        drawn.append(recall(texts, images, captions))
    expected = np.mean([each["text to image"] for each in drawn], axis=0)
    np.testing.assert_allclose(chance(captions)["text to image"], expected, atol=0.03)
    assert chance(["a"] * 4)["image to text"] == [1.0, 1.0, 1.0]


def test_equal_texts_are_never_on_both_sides() -> None:
    texts = [f"text {number % 200}" for number in range(800)]
    pairs = Pairs(texts)
    split = pairs.split(1)
    assert sorted(np.concatenate(split).tolist()) == list(range(800))
    assert [len(part) for part in split] == [560, 80, 160]
    sides = [{texts[row] for row in part} for part in split]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    assert {texts[row] for row in pairs.split(2).test} != sides[2]


@pytest.mark.parametrize("seed", range(9))  # with which it is trained on or put aside
def test_a_text_of_very_many_rows_leaves_others_for_each_purpose(seed: int) -> None:
    texts = [f"text {number}" for number in range(100)] + ["the most frequent"] * 9_900
    sides = [[texts[row] for row in part] for part in Pairs(texts).split(seed)]
    assert [len(set(side)) for side in sides] == [71, 10, 20]
    assert all(side.count("the most frequent") <= 50 for side in sides[1:])


def test_few_texts_of_very_many_rows_are_split_as_well() -> None:
    texts = [f"text {number % 100}" for number in range(100_000)]
    sides = [[texts[row] for row in part] for part in Pairs(texts).split(0)]
    assert [(len(set(side)), len(side)) for side in sides] == [(70, 70_000), (10, 500), (20, 500)]


def test_no_more_are_held_out_than_figures_need() -> None:
    split = Pairs([str(number) for number in range(20_000)]).split(0)
    assert [len(part) for part in split] == [19_000, 500, 500]


def test_the_curve_is_drawn() -> None:
    from io import BytesIO

    curve = Curve([20, 40, 60, 80], [0.9, 0.5, 0.3, 0.2], [0.9, 0.6, 0.5, 0.55])
    assert curve.best == 2
    image = Image.open(BytesIO(loss_png(curve)))
    assert image.size == (640, 400)
    colours = {f"#{red:02x}{green:02x}{blue:02x}" for _, (red, green, blue) in image.getcolors(1 << 20)}  # type: ignore[union-attr,misc]
    assert {TRAIN, VALIDATION} <= colours


# --- rows that cannot be used


def test_what_is_left_out_is_counted(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts, images = planted(120)
    records = [record(n, f"Picture {n}", texts[n], images[n]) for n in range(110)]
    spoilt = images[0].copy()
    spoilt[3] = 7.25  # becomes NaN, which the worker would not write
    records += [
        failed(200),
        failed(201),
        record(202, "  ", texts[0], images[0]),
        record(203, "A picture", texts[0], None),
        record(204, "A picture", None, images[0]),
        record(205, "A picture", texts[0], spoilt),
        record(206, "A picture", np.zeros(INNER, np.float32), images[0]),
    ]
    csv_of(path, records)
    path.write_bytes(path.read_bytes().replace(b",7.25,", b",NaN,"))
    settings = align(path)
    assert settings["left_out"] == {
        "with an error": 2,
        "without text": 1,
        "without dino_vector": 1,
        "without text_vector": 1,
        "whose dino_vector is zero or not finite": 1,
        "whose text_vector is zero or not finite": 1,
    }
    assert sum(settings["rows"].values()) == 110
    assert "110 rows with all that is needed; left out: 2 with an error, 1 without text," in capsys.readouterr().out


def test_of_very_many_rows_some_are_drawn_from_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_ROWS", 120)
    planted_csv(path, 400)
    columns = work.columns_of(path, "text", "dino_vector", "sentences")
    with CsvReader(path) as reader:
        pairs = work.read(reader, columns, 0)
    numbers = [int(text.split()[1]) for text in pairs.texts]
    assert len(set(numbers)) == 120
    assert 140 < np.mean(numbers) < 260
    assert pairs.left_out == {"more than are used": 280}
    texts, images = planted(400)
    np.testing.assert_allclose(pairs.vectors["text_vector"], texts[numbers], atol=1e-6)
    np.testing.assert_allclose(pairs.vectors["dino_vector"], images[numbers], atol=1e-6)


def test_what_cannot_be_aligned_is_said_in_one_sentence(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, images = planted(150)
    few = csv_of(tmp_path / "few.csv", [record(n, f"Text {n % 99}", texts[n], images[n]) for n in range(150)])
    mixed = [record(n, f"Text {n}", texts[n], images[n][: 5 + n % 2]) for n in range(150)]
    planted_csv(path, 110)
    for csv_path, arguments, sentence in (
        (few, (), "few.csv has 99 different texts in these rows, and align needs 100: annotate more pictures"),
        (csv_of(tmp_path / "mixed.csv", mixed), (), "dino_vector has vectors of different lengths"),
        (path, ("--to", "dano_vector"), "was made without a stage that writes dano_vector: add one and run with --ref"),
        (path, ("--text", "title"), "without a stage embed_text that can embed title: add one and run with --refresh"),
        (path, ("--using", "clip"), "without a stage embed_image that can embed text: add one and run with --refresh"),
        (path, ("--using", "sentences", "--to", "image_vector"), "without a stage that writes image_vector"),
        (path, ("--out", few), "few.csv is a file: name a folder with --out"),
        (tmp_path / "none.csv", (), "none.csv does not exist"),
    ):
        assert sentence in refusal(capsys, "align", "--csv", csv_path, *arguments)
    assert not path.with_name("align").exists()


def test_a_csv_without_settings_is_refused(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings_path(planted_csv(path, 110)).unlink()
    assert "annotations.settings.yaml does not exist" in refusal(capsys, "align", "--csv", path)


def test_a_csv_that_lacks_the_column_is_refused(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings_path(path).write_text(yaml.safe_dump({"stages": STAGES}))
    write(path, [record(0, "A picture", None, None)], [])
    assert "has no vector column dino_vector: choose one of text_vector" in refusal(capsys, "align", "--csv", path)


# --- interrupts


@pytest.mark.parametrize("moment", ["vec_pipeline.commands.align.work.train", f"{files.__name__}.loss_png"])
def test_an_interrupt_leaves_no_half_folder(path: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planted_csv(path, 110)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(moment, interrupted)
        assert main(["align", "--csv", str(path)]) == 130
    assert not path.with_name("align").exists()


def test_a_full_disk_keeps_the_alignment_before(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first file is already written, under its temporary name."""
    align(planted_csv(path, 110))
    folder = path.with_name("align")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(path: Path) -> Any:
        if path.name == "loss.png":
            raise UserError("No space left on device")
        return writing(path)

    writing = files.writing
    with monkeypatch.context() as patch:
        patch.setattr(files, "writing", full)
        assert main(["align", "--csv", str(path), "--seed", "7"]) == 2
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert set(before) == {"projection.safetensors", "settings.json", "loss.png"}


# --- what search does with it


def test_scores_are_cosines_of_what_is_left_without_the_mean(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    align(planted_csv(path, 300))
    texts, images = planted(300)
    monkeypatch.setattr(files, "text_vectors", lambda csv_path, column, queries: texts[[int(queries[0])]])
    monkeypatch.setattr("vec_pipeline.commands.search.vector_cache.CENTRED_AT_ONCE", 70)
    made = Alignment.read(path.with_name("align"), path)
    centred = unit(images - made.mean)
    assert np.linalg.norm(images.mean(0)) > 0.9  # the cosines of the vectors themselves are all alike
    np.testing.assert_allclose(made.mean, images.mean(0), atol=0.05)
    assert np.mean(np.sum(project(made.net, texts) * centred, axis=1)) > 0.6
    firsts = []
    for number in (0, 69, 70, 299):
        capsys.readouterr()
        assert main(["search", str(number), "--csv", str(path), "--in", "dino", "--json", "--top", "5"]) == 0
        found = json.loads(capsys.readouterr().out)
        numbers = [int(Path(row["image_path"]).stem) for row in found]
        scores = centred @ made.query(path, str(number))
        assert numbers == np.argsort(-scores)[:5].tolist()
        np.testing.assert_allclose([row["score"] for row in found], scores[numbers], atol=1e-4)
        firsts.append(numbers[0])
    assert firsts == [0, 69, 70, 299]


@pytest.mark.parametrize(
    ("stage", "changed"),
    [
        ("embed_dino", {"model": "models/demo/other"}),
        ("embed_dino", {"pool": "cls"}),
        ("embed_dino", {"commit": "0" * 40}),
        ("embed_dino", {"version": 2}),
        ("embed_text", {"model": "models/demo/other"}),
        ("embed_text", {"prefix": "query: "}),
    ],
)
def test_an_alignment_of_other_models_is_refused(
    path: Path, stage: str, changed: Mapping[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    align(planted_csv(path, 110))
    stages = {**STAGES, stage: {**STAGES[stage], **changed}}
    settings_path(path).write_text(yaml.safe_dump({"columns": {"dino_vector": "vector"}, "stages": stages}))
    column = stage.replace("embed", "").strip("_") + "_vector"
    assert (
        f"align was made with another model of {column} than {path} has now: run `vec-pipeline align --csv {path}`"
        in refusal(capsys, "search", "a red car", "--csv", path, "--in", "dino")
    )


def test_an_alignment_serves_a_csv_whose_stages_have_other_names(path: Path) -> None:
    align(planted_csv(path, 110))
    stages = {
        "sight": STAGES["embed_dino"],
        "meaning": {**STAGES["embed_text"], "read": {"text": "title"}, "write": {}},
    }
    settings_path(path).write_text(yaml.safe_dump({"columns": {"dino_vector": "vector"}, "stages": stages}))
    assert Alignment.read(path.with_name("align"), path).column == "dino_vector"


def test_search_without_an_alignment_names_the_command(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planted_csv(path, 110)
    search = ("search", "a red car", "--csv", path, "--in", "dino")
    expected = f"holds no alignment of texts with these vectors: run `vec-pipeline align --csv {path}`"
    assert f"{path.with_name('align')} {expected}" in refusal(capsys, *search)
    assert f"elsewhere {expected}" in refusal(capsys, *search, "--align", path.with_name("elsewhere"))
    align(path)
    path.with_name("align").rename(path.with_name("elsewhere"))
    assert Alignment.read(path.with_name("elsewhere"), path).mean.shape == (WIDTH,)
    (path.with_name("elsewhere") / "projection.safetensors").unlink()
    capsys.readouterr()
    assert expected in refusal(capsys, *search, "--align", path.with_name("elsewhere"))


@pytest.mark.parametrize("name", ["projection.safetensors", "settings.json"])
def test_files_that_do_not_belong_together_are_refused(
    path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if the second had been killed between two of its files; and one that was overwritten."""
    align(planted_csv(path, 110))
    kept = (path.with_name("align") / name).read_bytes()
    align(path, "--seed", "8")
    capsys.readouterr()
    for content in (kept, b"{}", b"[]", b""):
        (path.with_name("align") / name).write_bytes(content)
        error = refusal(capsys, "search", "a red car", "--csv", path, "--in", "dino")
        assert f"align is damaged: run `vec-pipeline align --csv {path}`" in error


def test_a_csv_that_is_not_there_is_named_before_its_alignment(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"{path} does not exist" in refusal(capsys, "search", "a red car", "--csv", path, "--in", "dino")


def test_an_alignment_belongs_to_a_text_in_dino(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planted_csv(path, 2)
    for arguments in (("a red car", "--in", "image"), ("--like", "a.jpg", "--in", "dino")):
        said = refusal(capsys, "search", *arguments, "--csv", path, "--align", "align")
        assert "--align is for a text and --in dino" in said


def test_a_query_is_embedded_as_the_texts_were(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the prefix of passages, since the projection knows no queries."""
    stages = {**STAGES, "embed_text": {**STAGES["embed_text"], "prefix": "passage: "}}
    csv_of(path, [record(0, "A picture", *(each[0] for each in planted(1)))], stages)
    prefixes: list[str] = []

    def run(self: EmbedText, model: Any, rows: Any, at_once: int) -> Any:
        prefixes.append(self.prefix)
        return [{"text_vector": np.ones(3, np.float32)} for _ in rows]

    monkeypatch.setattr(EmbedText, "load", lambda self: None)
    monkeypatch.setattr(EmbedText, "run", run)
    assert text_vectors(path, "text_vector", ["a", "b"]).shape == (2, 3)
    assert prefixes == ["passage: "]


# --- pictures that the bundled models see

DRAWN = 300
SMALL = {
    "device": "cpu",
    "stages": [
        {"use": "open_image", "max_size_px": 112},
        {"use": "embed_text", "model": "models/demo/sentences", "read": {"text": "caption"}},
        {"use": "embed_image", "model": "models/demo/clip"},
        {"use": "embed_dino", "model": "models/demo/dino"},
    ],
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over drawn scenes, which come with their captions."""
    folder, rng = tmp_path_factory.mktemp("drawn"), random.Random(11)
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "caption"])
        for _ in range(DRAWN):
            scene = random_scene(rng, held_out=False, words="none")
            writer.writerow([write_scene(scene, folder, rng, scale=1), scene.caption()])
    (folder / "config.yaml").write_text(yaml.safe_dump(SMALL))
    arguments = ["list.csv", "--keep", "caption", "--config", "config.yaml", "--output", "annotations.csv"]
    run = subprocess.run(
        [sys.executable, PROJECT / "run.py", *arguments], cwd=folder, capture_output=True, text=True, timeout=240,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return folder / "annotations.csv"


def found(capsys: pytest.CaptureFixture[str], csv_path: Path, *arguments: object) -> list[str]:
    """The file names of what was found, best first."""
    capsys.readouterr()
    assert main(["search", "--csv", str(csv_path), "--json", *map(str, arguments)]) == 0
    return [Path(row["image_path"]).stem for row in json.loads(capsys.readouterr().out)]


@pytest.mark.parametrize("using", ["sentences", "clip"])
def test_drawn_scenes_are_found_by_their_captions(drawn: Path, using: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = align(drawn, "--text", "caption", "--using", using, "--out", drawn.with_name("align"))
    figures = settings["recall"]
    assert list(figures) == ["chance", "this projection", "CLIP"]
    for way in ("text to image", "image to text"):
        assert figures["chance"][way][1] < 0.2
        assert figures["this projection"][way][1] >= 0.6
        assert figures["CLIP"][way][1] >= 0.8
    assert settings["text"]["of"] == "caption"
    assert settings["text"]["column"] == {"sentences": "text_vector", "clip": "image_vector"}[using]
    assert settings["image"]["stage"]["model"] == "models/demo/dino"
    best = [found(capsys, drawn, text, "--in", "dino", "--top", 3) for text in (
        "a plain white background, no object", "random noise, no object",
    )]  # fmt: skip
    assert all(name.startswith("plain-white") for name in best[0][:1])
    assert any(name.startswith("noise") for name in best[1])


def test_a_picture_is_found_by_its_likeness_to_another_without_an_alignment(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = Scene((Thing("fish", "red"),), 1, "in the centre", "white", "")
    other = write_scene(scene, tmp_path, random.Random(99), scale=2)
    names = found(capsys, drawn, "--like", other, "--in", "dino", "--top", 5, "--csv", drawn)
    assert sum("red" in name for name in names) >= 3
    own = next(drawn.parent.glob("*.png"))
    assert found(capsys, drawn, "--like", own, "--in", "dino", "--top", 1) == [own.stem]
