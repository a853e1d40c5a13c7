"""DINO vectors: which tokens count, which models are refused, and what the commands make of the column."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from PIL import Image
from transformers import (
    BitImageProcessor,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ConvNextBackbone,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    DINOv3ViTConfig,
    DINOv3ViTImageProcessor,
    DINOv3ViTModel,
    ViTConfig,
    ViTModel,
)

from models.demo import draw
from tests.conftest import PROJECT, Run
from tests.rows import failed, finished, unit_vectors, write, write_declared
from tests.test_embed_image import memory_events
from tests.test_export import exported, open_folder, postgres, query, query_last  # noqa: F401 (two are fixtures)
from tests.test_report import data_folder, picture, values_of
from vec_pipeline import device, load_annotations
from vec_pipeline.__main__ import main
from vec_pipeline.record import COLUMNS, UserError, Values
from vec_pipeline.stages import embed_dino
from vec_pipeline.stages.embed_dino import Dino, EmbedDino

DINO = PROJECT / "models" / "demo" / "dino"
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
CONVNEXT: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
MODELS: dict[str, Callable[[], Any]] = {
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SMALL)),
    "dinov2_with_registers": lambda: Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(**SMALL, num_register_tokens=3)
    ),
    "dinov3_vit": lambda: DINOv3ViTModel(DINOv3ViTConfig(**SMALL, intermediate_size=64, num_register_tokens=5)),
    "dinov3_convnext": lambda: DINOv3ConvNextModel(DINOv3ConvNextConfig(**CONVNEXT)),
}
REGISTERS = {"dinov2": 0, "dinov2_with_registers": 3, "dinov3_vit": 5, "dinov3_convnext": 0}
CROPPING = {"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}}  # as facebook/dinov2-base, smaller


def save(folder: Path, model: Any, **processor: Any) -> Path:
    """The folder of a model, with the image processor that its family has on the hub."""
    model.save_pretrained(folder)
    is_old = model.config.model_type.startswith("dinov2")
    options = processor or (CROPPING if is_old else {"size": {"height": 64, "width": 64}})
    (BitImageProcessor if is_old else DINOv3ViTImageProcessor)(**options).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save(tmp_path_factory.mktemp(request.param) / request.param, MODELS[request.param]())


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("small") / "dinov2", MODELS["dinov2"]())


def stage(folder: Path, **options: Any) -> EmbedDino:
    found = EmbedDino(model=str(folder), device="cpu", **options)
    found.fetch()
    return found


def rows_of(count: int, seed: int = 0) -> list[Values]:
    """Noise of several sizes and shapes."""
    rng = np.random.default_rng(seed)
    sizes = [(80, 60), (60, 80), (64, 64), (200, 20)]
    return [
        {"image": Image.fromarray(rng.integers(0, 256, (*sizes[index % 4], 3), np.uint8))} for index in range(count)
    ]


def vectors(own: EmbedDino, rows: list[Values], at_once: int = 16, model: Dino | None = None) -> list[Any]:
    model = model or own.load()
    batches = [rows[start : start + at_once] for start in range(0, len(rows), at_once)]
    return [result["dino_vector"] for batch in batches for result in own.run(model, batch, at_once)]


# --- which tokens count


@pytest.mark.parametrize(("pool", "length"), [("cls", 32), ("mean", 32), ("cls+mean", 64)])
def test_vectors_are_float32_of_length_1(folder: Path, pool: str, length: int) -> None:
    for vector in vectors(stage(folder, pool=pool), rows_of(4)):
        assert (vector.dtype, vector.shape) == (np.float32, (length,))
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_the_vectors_are_those_of_the_library(folder: Path) -> None:
    """The CLS token is the library's own pooler_output, and the patches are as many as fit into the picture."""
    own, rows = stage(folder), rows_of(3)
    model = own.load()
    pixels = model.processor([row["image"] for row in rows], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        outputs = model.model(pixel_values=pixels)
    patches = {"dinov3_convnext": (64 // 32) ** 2}.get(folder.name, (pixels.shape[-1] // 14) ** 2)
    assert outputs.last_hidden_state.shape[1] == 1 + REGISTERS[folder.name] + patches
    halves = [outputs.pooler_output.numpy(), outputs.last_hidden_state[:, -patches:].numpy().mean(axis=1)]
    units = [half / np.linalg.norm(half, axis=1, keepdims=True) for half in halves]
    expected = {"cls": units[0], "mean": units[1], "cls+mean": np.hstack(units) / np.sqrt(2)}
    for pool, wanted in expected.items():
        np.testing.assert_allclose(vectors(stage(folder, pool=pool), rows), wanted, atol=1e-5)
    np.testing.assert_allclose(vectors(own, rows), expected["cls+mean"], atol=1e-5)  # the default


def test_a_batch_has_the_vectors_of_its_pictures_alone(folder: Path) -> None:
    own, rows = stage(folder), rows_of(7)
    together, alone = vectors(own, rows, at_once=7), vectors(own, rows, at_once=1)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert min(np.linalg.norm(one - other) for one, other in pairwise(alone)) > 1e-4


def test_a_picture_of_any_shape_has_a_vector(folder: Path) -> None:
    rows = [{"image": Image.new("RGB", size, (9, 99, 200))} for size in ((1, 1), (1, 50), (448, 9), (3000, 2000))]
    assert np.isfinite(vectors(stage(folder), rows)).all()


def test_weights_of_half_precision_are_used_in_float32(tmp_path: Path) -> None:
    own = stage(save(tmp_path / "half", MODELS["dinov2"]().half()))
    assert {weight.dtype for weight in own.load().model.parameters()} == {torch.float32}


def test_weights_that_are_not_numbers_are_an_error_of_the_row_and_not_a_vector(tmp_path: Path) -> None:
    model = MODELS["dinov2"]()
    model.layernorm.bias.data.fill_(float("nan"))
    save(tmp_path / "nan", model)
    (tmp_path / "a").mkdir()
    picture(tmp_path / "a" / "red.png")
    assert run(tmp_path, tmp_path / "nan").returncode == 1
    table = load_annotations(tmp_path / "a.csv")
    assert table["error"][0] == "embed_dino: ValueError: dino_vector holds a value that is not finite"
    assert table["dino_vector"][0] is None


# --- memory


def test_memory_of_an_image_is_estimated_above_what_it_takes(folder: Path) -> None:
    model = stage(folder).load()
    pixels = embed_dino.prepared(model, [row["image"] for row in rows_of(8)])
    with torch.inference_mode(), torch.profiler.profile(profile_memory=True) as profile:
        model.model(pixel_values=pixels)
    held = np.cumsum([event.nbytes() for event in memory_events(profile)])
    assert 0.1 < (held.max() + pixels.nbytes) / len(pixels) / embed_dino.bytes_per_image(model) < 1


def test_auto_batch_size_follows_the_free_memory(dinov2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = stage(dinov2)
    model = own.load()
    assert own.auto_batch_size(model, 0.0) == 16
    size_bytes = embed_dino.bytes_per_image(model)
    monkeypatch.setattr(embed_dino, "bytes_per_image", lambda model: size_bytes)
    on_gpu = model._replace(device="cuda")
    for free_images, expected in ((10**9, 256), (400, 100), (0, 1)):
        monkeypatch.setattr(device, "gpu_free_gb", lambda images=free_images: (images + 0.5) * size_bytes / 1e9)
        assert own.auto_batch_size(on_gpu, 0.0) == expected
    monkeypatch.setattr(device, "gpu_free_gb", lambda: 3.0 + 400.5 * size_bytes / 1e9)
    assert own.auto_batch_size(on_gpu, 3.0) == 100, "what is reserved for models to come is not free"


def test_the_memory_it_needs_is_that_of_its_weights(dinov2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gb = (dinov2 / "model.safetensors").stat().st_size / 1e9
    assert (stage(dinov2).need().host_gb, stage(dinov2).need().gpu_gb) == (gb, 0)
    monkeypatch.setattr(device, "resolve", lambda name: "cuda")
    assert (EmbedDino(model=str(dinov2)).need().host_gb, EmbedDino(model=str(dinov2)).need().gpu_gb) == (0, gb)


@pytest.mark.parametrize(("where", "expected"), [("cuda", {"device": "cuda"}), ("cpu", {}), ("mps", {})])
def test_cuda_prepares_the_pictures_too(where: str, expected: dict[str, str]) -> None:
    asked: list[dict[str, Any]] = []

    class Pixels:
        def to(self, device: str) -> str:
            return device

    def processor(images: list[Any], return_tensors: str, **options: Any) -> dict[str, Pixels]:
        asked.append(options)
        return {"pixel_values": Pixels()}

    assert embed_dino.prepared(Dino(None, processor, where), [Image.new("RGB", (8, 8))]) == where
    assert asked == [expected]


# --- models that are refused, in one sentence and before the first picture


def changed(folder: Path, name: str, **values: Any) -> Path:
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return folder


def without(folder: Path, name: str) -> Path:
    (folder / name).unlink()
    return folder


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def truncated(folder: Path) -> Path:
    data = (folder / "model.safetensors").read_bytes()
    written(folder / "model.safetensors", data[:-100])
    return folder


def vit(folder: Path) -> Path:
    options = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**options)).save_pretrained(folder)
    return folder


DEMO = PROJECT / "models" / "demo"
GIVE = "give a DINOv2 or DINOv3 of transformers, such as facebook/dinov2-base"
REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {  # given a copy of a small DINOv2
    "clip": (lambda copy: DEMO / "clip", f"is a CLIP of open_clip: {GIVE}"),
    "text": (lambda copy: DEMO / "sentences", f"is a sentence-transformers model: {GIVE}"),
    "vision-language": (lambda copy: DEMO / "vision_language", f"is a qwen2_vl model of transformers: {GIVE}"),
    "gguf": (lambda copy: DEMO / "llama" / "llama.gguf", f"is a GGUF file: {GIVE}"),
    "vit": (lambda copy: vit(copy.with_name("vit")), f"is a vit model of transformers: {GIVE}"),
    "code": (
        lambda copy: changed(copy, "config.json", model_type="mine", auto_map={"AutoModel": "mine.Mine"}),
        f"is a mine model of transformers: {GIVE}",
    ),
    "nothing": (
        lambda copy: copy.parent,
        f"config.json is missing: download or copy all files of the model again, or {GIVE}",
    ),
    "no JSON": (
        lambda copy: written(copy / "config.json", b"{").parent,
        "config.json is damaged (Expecting property name",
    ),
    "a list": (
        lambda copy: written(copy / "config.json", b"[]").parent,
        f"is a nameless model of transformers: {GIVE}",
    ),
    "no weights": (lambda copy: without(copy, "model.safetensors"), "model.safetensors is missing: download or copy"),
    "cut": (truncated, "model.safetensors is damaged ("),
    "deeper": (
        lambda copy: changed(copy, "config.json", num_hidden_layers=3),
        f"lacks encoder.layer.2.attention.k_proj.bias and 17 more of the weights that its config.json tells of: {GIVE}",
    ),
    "wider": (
        lambda copy: changed(copy, "config.json", hidden_size=64),
        "lacks embeddings.cls_token and 4",
    ),
    "backbone": (
        lambda copy: save(copy.with_name("backbone"), DINOv3ConvNextBackbone(DINOv3ConvNextConfig(**CONVNEXT))),
        f"lacks layer_norm.bias and 1 more of the weights that its config.json tells of: {GIVE}",
    ),
    "no processor": (
        lambda copy: without(copy, "preprocessor_config.json"),
        "preprocessor_config.json is missing: download or copy all files of the model again",
    ),
    "sizes": (
        lambda copy: changed(copy, "preprocessor_config.json", do_center_crop=False),
        "preprocessor_config.json makes pictures of different sizes: set do_center_crop with a crop_size, or",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_other_models_are_refused_in_one_sentence(dinov2: Path, tmp_path: Path, kind: str) -> None:
    make, message = REFUSED[kind]
    path = make(shutil.copytree(dinov2, tmp_path / "copy"))
    with pytest.raises(UserError) as refusal:
        EmbedDino(model=str(path), device="cpu").fetch()
    said = str(refusal.value)
    assert message in said
    assert "\n" not in said
    assert said.startswith(f"embed_dino: {path}") or kind in ("no weights", "cut")


def test_it_is_refused_before_the_first_picture(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    picture(tmp_path / "a" / "red.png")
    refusal = run(tmp_path, DEMO / "clip")
    assert refusal.returncode == 2
    assert f"run.py: embed_dino: {DEMO / 'clip'} is a CLIP of open_clip: {GIVE}" in refusal.stderr
    assert not (tmp_path / "a.csv").exists()


def test_pickled_weights_are_loaded_where_they_are_allowed(dinov2: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dinov2, tmp_path / "pickled")
    torch.save(Dinov2Model.from_pretrained(dinov2).state_dict(), copy / "pytorch_model.bin")
    without(copy, "model.safetensors")
    with pytest.raises(UserError, match="may be a pickle"):
        stage(copy)
    found = vectors(stage(copy, allow_pickle=True), rows_of(1))
    np.testing.assert_allclose(found, vectors(stage(dinov2), rows_of(1)), atol=1e-6)


def test_a_classifier_made_of_a_dino_has_the_vectors_of_its_tower(tmp_path: Path) -> None:
    classifier = Dinov2ForImageClassification(Dinov2Config(**SMALL))
    whole, tower = save(tmp_path / "whole", classifier), save(tmp_path / "tower", classifier.dinov2)
    np.testing.assert_allclose(vectors(stage(whole), rows_of(2)), vectors(stage(tower), rows_of(2)), atol=1e-6)


def test_of_a_hub_repository_the_safetensors_alone_are_downloaded() -> None:
    of_base = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json", "pytorch_model.bin"]
    split = ["model-00001-of-00006.safetensors", "model.safetensors.index.json"]
    wanted = EmbedDino().patterns
    assert EmbedDino().model == "facebook/dinov2-base"
    assert list(filter_repo_objects(of_base, allow_patterns=wanted)) == of_base[1:4]
    assert list(filter_repo_objects(split, allow_patterns=wanted)) == split


# --- what the vectors say, through the whole program


def run(folder: Path, model: Path, *more: str) -> Run:
    """Annotate the pictures in folder/a into folder/a.csv, with DINO alone."""
    (folder / "dino.yaml").write_text(
        f"stages: [{{use: open_image, max_size_px: 112}}, {{use: embed_dino, model: {model}, device: cpu}}]\n"
    )
    arguments = [folder / "a", "--config", folder / "dino.yaml", "--output", folder / "a.csv", *more]
    return subprocess.run(
        [sys.executable, "run.py", *map(str, arguments)], cwd=PROJECT, capture_output=True, text=True, timeout=240,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CSV of drawn scenes, each of one kind of object, with the bundled model's vectors and no others."""
    folder = tmp_path_factory.mktemp("scenes")
    drawn = draw.main(folder / "all", 400, seed=7, scale=1)
    (folder / "a").mkdir()
    for path in drawn:
        if len(json.loads(path.with_suffix(".json").read_text())["things"]) == 1:
            path.rename(folder / "a" / path.name)
            path.with_suffix(".json").rename(folder / "a" / path.with_suffix(".json").name)
    done = run(folder, DINO)
    assert done.returncode == 0, done.stderr
    return folder / "a.csv"


@pytest.fixture(scope="module")
def table(scenes: Path) -> pd.DataFrame:
    return load_annotations(scenes)


def shown(table: pd.DataFrame) -> list[tuple[str, str]]:
    """The kind and the colour of the objects in each scene."""
    truths = [json.loads(Path(path).with_suffix(".json").read_text()) for path in table["image_path"]]
    return [(truth["things"][0]["kind"], truth["things"][0]["colour"]) for truth in truths]


def test_the_nearest_scene_shows_the_same_kind_of_object_in_the_same_colour(table: pd.DataFrame) -> None:
    matrix, truth = np.stack(table["dino_vector"].to_list()), shown(table)
    cosines = matrix @ matrix.T - 3 * np.eye(len(matrix))
    nearest = cosines.argmax(axis=1)
    kinds = np.mean([truth[one][0] == truth[other][0] for one, other in enumerate(nearest)])
    both = np.mean([truth[one] == truth[other] for one, other in enumerate(nearest)])
    far = truth[len(truth) // 2 :] + truth[: len(truth) // 2]
    assert np.mean([one[0] == other[0] for one, other in zip(truth, far, strict=True)]) < 0.2  # by chance
    assert kinds > 0.7
    assert both > 0.6


def test_the_columns_of_other_models_stay_empty(table: pd.DataFrame) -> None:
    assert list(table.columns) == [*COLUMNS, "dino_vector"]
    assert table["image_vector"].isna().all()
    assert {vector.shape for vector in table["dino_vector"]} == {(320,)}


def test_it_can_stand_twice_with_different_pools(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    picture(tmp_path / "a" / "red.png")
    config = f"""
    device: cpu
    stages:
      - use: open_image
      - {{use: embed_dino, model: {DINO}, pool: mean}}
      - {{use: embed_dino, model: {DINO}, pool: cls, name: cls, write: {{dino_vector: cls_vector}}}}
    """
    (tmp_path / "twice.yaml").write_text(config)
    paths = [tmp_path / "a", "--config", tmp_path / "twice.yaml", "--output", tmp_path / "a.csv"]
    assert main(["run", *map(str, paths)]) == 0
    row = load_annotations(tmp_path / "a.csv").iloc[0]
    assert row["dino_vector"].shape == row["cls_vector"].shape == (160,)
    assert row["dino_vector"] @ row["cls_vector"] < 0.99


# --- the commands


def report(csv: Path, out: Path, *more: str) -> int:
    return main(["report", "--csv", str(csv), "--out", str(out), *more])


def test_the_map_of_the_report_puts_scenes_of_one_kind_near_each_other(
    scenes: Path, table: pd.DataFrame, tmp_path: Path
) -> None:
    assert report(scenes, tmp_path / "site") == 0
    plan = values_of(tmp_path / "site", "data-map.js")
    kinds = np.array([kind for kind, _ in shown(table)])
    places = np.stack([plan["x"], plan["y"]], axis=1)
    assert (places >= 0).all()
    apart = np.linalg.norm(places[:, None] - places[None], axis=2) + 1e9 * np.eye(len(places))
    nearest = apart.argsort(axis=1)[:, :3]
    assert np.mean(kinds[nearest] == kinds[:, None]) > 0.5


def both_vectors(folder: Path) -> Path:
    """Rows whose image_vectors make pairs of one half of them, and whose dino_vectors make pairs of the other."""
    image, dino = unit_vectors(8, 6, seed=1), unit_vectors(8, 9, seed=2)
    image[1], dino[5] = image[0], dino[4]
    records = [
        finished(number, image_vector=image[number], dino_vector=dino[number], flags=None) for number in range(8)
    ]
    types = {"text_confidence": "number", "clip_score": "number", "flags": "text", "dino_vector": "vector"}
    return write_declared(folder / "a.csv", types, [*records, failed(8)])


@pytest.mark.parametrize(
    ("options", "pair"), [([], [0, 1]), (["--by", "image_vector"], [0, 1]), (["--by", "dino_vector"], [4, 5])]
)
def test_near_duplicates_are_by_the_vectors_that_are_asked_for(
    tmp_path: Path, options: list[str], pair: list[int]
) -> None:
    assert report(both_vectors(tmp_path), tmp_path / "site", *options) == 0
    plan = values_of(tmp_path / "site", "data-map.js")
    assert [index for index, group in enumerate(plan["group"]) if group] == pair
    assert plan["x"][8] == plan["y"][8] == -1


def test_vectors_that_are_not_there_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    csv = both_vectors(tmp_path)
    assert report(csv, tmp_path / "site", "--by", "flags") == 2
    names = "text_vector, word2vec_vector, image_vector, dino_vector"
    assert f"--by flags: {csv} has no such column of vectors: give one of {names}\n" in capsys.readouterr().err
    assert not (tmp_path / "site").exists()


def test_vectors_of_two_models_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [finished(size, image_vector="", dino_vector=unit_vectors(1, size)[0]) for size in (4, 5)]
    csv = write_declared(tmp_path / "a.csv", {"dino_vector": "vector"}, records)
    assert report(csv, tmp_path / "site") == 2
    assert "dino_vector has the shapes (4,) and (5,), not one length: run with --refresh" in capsys.readouterr().err


def test_a_report_without_rows_can_be_made(tmp_path: Path) -> None:
    assert report(write(tmp_path / "a.csv", []), tmp_path / "site") == 0
    assert data_folder(tmp_path / "site").is_dir()


def test_exported_files_have_the_vectors(scenes: Path, table: pd.DataFrame) -> None:
    read = pd.read_parquet(exported(scenes, "parquet"))
    lines = [json.loads(line) for line in exported(scenes, "jsonl").read_text().splitlines()]
    for row, vector in enumerate(table["dino_vector"]):
        assert np.array_equal(np.asarray(read["dino_vector"][row], np.float32), vector)
        assert np.array_equal(np.array(lines[row]["dino_vector"], np.float32), vector)
    from pyarrow import parquet

    assert str(parquet.read_schema(scenes.with_name("out.parquet")).field("dino_vector").type).endswith("[320]")


def test_postgres_has_the_vectors_with_an_index(scenes: Path, table: pd.DataFrame, postgres: str) -> None:  # noqa: F811
    assert main(["export", "--csv", str(scenes), "--to", "pgvector", "--dsn", postgres]) == 0
    [(kind,)] = query(
        postgres,
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attname = 'dino_vector' "
        "AND attrelid = 'image_embeddings'::regclass",
    )
    assert kind.endswith("vector(320)")
    nearest = """
        SET enable_seqscan = off; {} SELECT image_path FROM image_embeddings JOIN images ON id = image_id
        ORDER BY dino_vector <=> %s::vector LIMIT 1
    """
    vector = str(table["dino_vector"][5].tolist())
    assert any(
        "image_embeddings_dino_vector_hnsw" in line
        for (line,) in query_last(postgres, nearest.format("EXPLAIN"), vector)
    )
    assert query_last(postgres, nearest.format(""), vector) == [(table["image_path"][5],)]
