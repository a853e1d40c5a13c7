"""The stage edit_image: pipelines of several families, batches, files, the cache, and what is refused beforehand."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import tiny_editors
from tests.conftest import EXAMPLES, PROJECT, Run
from vec_pipeline.engines import editing
from vec_pipeline.record import UserError, Values
from vec_pipeline.result_cache import decode
from vec_pipeline.stages import edit_image
from vec_pipeline.stages.compare_pair import largest_difference
from vec_pipeline.stages.edit_image import EditImage
from vec_pipeline.weights import PICKLE_SUFFIXES

pytest.importorskip("diffusers")

SIZES = ((80, 64), (70, 72), (80, 64))  # of pictures: two of one size, one whose width is no multiple of 8
PROMPT = "Make it red"
SMALL_AREA = 64 * 64

Pipelines = Callable[..., Path]


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Pipelines:
    """The folder of a tiny pipeline of a family, made once; `copy` for one that may be changed."""
    folder = tmp_path_factory.mktemp("pipelines")

    def get(family: str = "instruct_pix2pix", copy: Path | None = None) -> Path:
        if not (folder / family).exists():
            tiny_editors.write(folder / family, family)
        return shutil.copytree(folder / family, copy / "model") if copy else folder / family

    return get


@pytest.fixture
def stage(pipelines: Pipelines, tmp_path: Path) -> Callable[..., EditImage]:
    def make(family: str = "instruct_pix2pix", **options: Any) -> EditImage:
        usual = {"model": str(pipelines(family)), "prompt": PROMPT, "steps": 3, "device": "cpu"}
        return EditImage(**{**usual, "csv_folder": tmp_path / "out", **options})

    return make


@pytest.fixture
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen-Image-Edit looks at pictures of a megapixel, which takes minutes here."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus

    whole = pipeline_qwenimage_edit.calculate_dimensions
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda _, ratio: whole(SMALL_AREA, ratio))
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", SMALL_AREA)
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "CONDITION_IMAGE_SIZE", SMALL_AREA)


def picture(width: int = 80, height: int = 64, seed: int = 0) -> Image.Image:
    """Smooth colours that differ with the seed."""
    colours = np.random.default_rng(seed).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height))


def rows() -> list[Values]:
    return [{"image": picture(*size, seed)} for seed, size in enumerate(SIZES)]


def pixels(result: Values) -> Any:
    return np.asarray(result["edited_image"], np.int16)


def one(stage: EditImage, row: Values | None = None) -> Values:
    (result,) = stage.run(stage.load(), [row or rows()[0]], 1)
    return result


# --- What comes out


@pytest.mark.usefixtures("small_pictures")
@pytest.mark.parametrize("family", tiny_editors.FAMILIES)
def test_a_picture_keeps_its_size_and_is_the_same_alone_and_in_a_batch(
    family: str, stage: Callable[..., EditImage], tmp_path: Path
) -> None:
    made = stage(family)
    made.fetch()
    model = made.load()
    together = made.run(model, rows(), 8)
    shutil.rmtree(tmp_path / "out")
    for row, result in zip(rows(), together, strict=True):
        (alone,) = made.run(model, [row], 1)
        assert np.abs(pixels(alone) - pixels(result)).max() <= 1, "of 255: the last bits of float32 may differ"
        assert result["edited_image"].size == row["image"].size
        assert alone["edited_path"] == result["edited_path"]
        expected = largest_difference(row["image"], result["edited_image"])
        assert result["edit_difference"] == pytest.approx(expected, abs=1e-4)
        assert alone["edit_difference"] == pytest.approx(expected, abs=0.01)
    assert np.abs(pixels(together[0]) - pixels(together[2])).max() > 1, "the picture decides"


def test_rows_of_one_size_go_through_together(stage: Callable[..., EditImage], monkeypatch: pytest.MonkeyPatch) -> None:
    made, sizes = stage(), []
    model = made.load()
    call = editing.Editor._call

    def noted(self: Any, images: list[Any], *arguments: Any) -> Any:
        sizes.append([image.size for image in images])
        return call(self, images, *arguments)

    monkeypatch.setattr(editing.Editor, "_call", noted)
    made.run(model, [{"image": picture(32, 24, seed)} for seed in range(3)] + [{"image": picture(24, 32, 9)}], 2)
    assert sizes == [[(32, 24)] * 2, [(32, 24)], [(24, 32)]]
    made.run(model, [{"image": picture(30, 17)}], 2)
    assert sizes[-1] == [(32, 24)], "padded, so that the pipeline does not stretch it"


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("instruct_pix2pix", {"prompt": "Make it snow"}),
        ("instruct_pix2pix", {"steps": 4}),
        ("instruct_pix2pix", {"guidance": 2.0}),
        ("instruct_pix2pix", {"image_guidance": 4.0}),
        ("instruct_pix2pix", {"seed": 1}),
        ("stable_diffusion", {"strength": 0.5}),
        ("flux_kontext", {"guidance": 9.0}),
        ("qwen_image_edit", {"guidance": 1.0}),
    ],
)
@pytest.mark.usefixtures("small_pictures")
def test_an_option_changes_the_picture_and_its_file(
    family: str, options: dict[str, Any], stage: Callable[..., EditImage]
) -> None:
    usual, other = one(stage(family)), one(stage(family, **options))
    assert np.abs(pixels(usual) - pixels(other)).max() > 0
    assert usual["edited_path"] != other["edited_path"]
    assert stage(family).loaded_as == stage(family, **options).loaded_as, "they share one loaded model"


def test_values_of_the_row_are_filled_into_the_prompt(stage: Callable[..., EditImage]) -> None:
    by_column = stage(prompt="Make it {what}")
    assert by_column.input_names == ("image", "what")
    assert one(by_column, {**rows()[0], "what": "red"})["edited_path"] == one(stage())["edited_path"]
    assert stage(prompt="Taken by {exif.camera} in {folder}").input_names == ("image", "exif.camera", "file.folder")
    assert one(stage(prompt="{what}"), rows()[0]) == {
        "error": "ValueError: the prompt is empty once the row's values are filled in"
    }


def test_nothing_is_distorted_or_moved() -> None:
    """What makes the sides multiples is taken off again."""
    image = picture(50, 37)
    padded = editing.pad(image, 16)
    assert padded.size == (64, 48)
    edges = np.asarray(padded)
    assert (edges[:37, 50:] == edges[:37, 49:50]).all() and (edges[37:] == edges[36]).all()
    back = editing.picture_of(edges / 255, padded.size, image.size)
    assert (np.asarray(back) == np.asarray(image)).all()
    larger = editing.picture_of(np.asarray(padded.resize((128, 96))) / 255, padded.size, image.size)
    assert np.abs(np.asarray(larger, int) - np.asarray(image, int)).mean() < 2, "of a pipeline that chooses the size"


def test_a_picture_that_comes_back_as_it_was_differs_by_nothing(
    stage: Callable[..., EditImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(editing.Editor, "edit", lambda self, images, *_: images)
    assert one(stage())["edit_difference"] == 0


def test_other_pictures_than_rgb_are_converted(stage: Callable[..., EditImage]) -> None:
    for mode in ("L", "RGBA"):
        assert one(stage(), {"image": picture().convert(mode)})["edited_image"].mode == "RGB"


def test_a_picture_that_is_not_finite_is_an_error_of_its_row(
    stage: Callable[..., EditImage], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Instead of a black picture, which is what numpy makes of it."""
    call = editing.Editor._call

    def broken(self: Any, *arguments: Any) -> Any:
        made = call(self, *arguments)
        made[1, 3, 3, 0] = np.nan
        return made

    monkeypatch.setattr(editing.Editor, "_call", broken)
    made = stage()
    good, bad = made.run(made.load(), [{"image": picture(seed=seed)} for seed in (1, 2)], 2)
    assert bad == {"error": "ValueError: the model's picture holds numbers that are not finite"}
    assert [path.name for path in (tmp_path / "out/edited").iterdir()] == [Path(good["edited_path"]).name]


def test_no_safety_checker_is_loaded(stage: Callable[..., EditImage]) -> None:
    """It would replace edited pictures by black ones. stable_diffusion has one."""
    made = stage("stable_diffusion")
    assert (Path(made.model) / editing.SAFETY_CHECKER).is_dir()
    pipeline = made.load().pipeline
    assert pipeline.safety_checker is None
    assert type(pipeline).__name__ == "StableDiffusionImg2ImgPipeline", "the one of texts cannot edit"


# --- Files


def test_a_file_is_the_picture_and_is_kept(
    stage: Callable[..., EditImage], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = stage()
    result = one(made)
    path = tmp_path / "out" / result["edited_path"]
    with Image.open(path) as saved:
        assert (np.asarray(saved, np.int16) == pixels(result)).all()
    assert path.parent == tmp_path / "out" / "edited" and path.suffix == ".png"
    model = made.load()
    monkeypatch.setattr(editing.Editor, "edit", None)
    (again,) = made.run(model, [rows()[0]], 1)
    assert (pixels(again) == pixels(result)).all() and again["edit_difference"] == result["edit_difference"]


def test_a_damaged_file_is_made_again(stage: Callable[..., EditImage], tmp_path: Path) -> None:
    made, result = stage(), one(stage())
    path = tmp_path / "out" / result["edited_path"]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert made.restored({"edited_path": result["edited_path"], "edit_difference": 0.1}) is None
    assert one(made)["edited_path"] == result["edited_path"]
    assert path.read_bytes() == whole


def test_a_file_in_the_place_of_the_folder_is_named(stage: Callable[..., EditImage], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "edited").touch()
    with pytest.raises(UserError, match="edited is a file, and edit_image writes into a folder of that name"):
        stage().fetch()


# --- Memory


def test_large_pictures_are_tiled_once_memory_is_short(stage: Callable[..., EditImage]) -> None:
    made = stage()
    model = made.load()
    assert not model.pipeline.vae.use_tiling
    assert [made.save_memory(model), made.save_memory(model)] == [True, False]
    assert model.pipeline.vae.use_tiling
    assert np.abs(pixels(one(made)) - pixels(made.run(model, [rows()[0]], 1)[0])).max() == 0, "the file is kept"


def test_a_batch_is_decoded_picture_by_picture(stage: Callable[..., EditImage]) -> None:
    assert stage().load().pipeline.vae.use_slicing


def test_the_memory_that_it_needs_is_that_of_the_parts_that_are_loaded(stage: Callable[..., EditImage]) -> None:
    made = stage("stable_diffusion", batch_size=2)
    pipeline = made.load().pipeline
    models = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    count = sum(weight.numel() for model in models for weight in model.parameters())
    need = made.need()
    assert need.host_gb == pytest.approx(4 * count / 1e9, rel=0.01), "in float32, without the safety checker"
    assert need.rows_gb == pytest.approx(2 * 2 * edit_image.ROW_GB)
    assert EditImage(prompt=PROMPT, device="cpu").need().host_gb == pytest.approx(4.3), "a hub's, by its known size"


@pytest.mark.parametrize(("family", "most"), [("instruct_pix2pix", 8), ("flux2_klein", 1)])
def test_a_pipeline_that_takes_one_picture_gets_one_at_a_time(
    family: str, most: int, stage: Callable[..., EditImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edit_image.device, "host_free_gb", lambda: 100.0)
    assert stage(family).auto_batch_size(stage(family).load(), 0.0) == most


# --- What is refused before the first picture


def refusal(stage: EditImage) -> str:
    with pytest.raises(UserError) as raised:
        stage.fetch()
    return str(raised.value)


def edited_index(folder: Path, **changes: Any) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, **changes}))


def without(name: str, folder: Path) -> None:
    shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def with_weights(changed: Callable[[dict[str, Any]], dict[str, Any]], folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(changed(load_file(file)), file)


def lacking_one(weights: dict[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in weights.items() if name != "conv_in.bias"}


def pickled(folder: Path) -> None:
    (folder / "unet/diffusion_pytorch_model.safetensors").rename(folder / "unet/diffusion_pytorch_model.bin")


def of_transformers(folder: Path) -> None:
    without("model_index.json", folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (partial(without, "vae"), "vae is missing, the AutoencoderKL of the pipeline: download or copy it too"),
        (partial(without, "tokenizer/tokenizer.json"), "tokenizer has no vocabulary (tokenizer.json or"),
        (partial(without, "unet/diffusion_pytorch_model.safetensors"), "no file named diffusion_pytorch_model.safet"),
        (partial(with_weights, lacking_one), "unet lacks conv_in.bias of its weights: download or copy it again"),
        (pickled, "diffusion_pytorch_model.bin may be a pickle"),
        (of_transformers, "model is a bert model of transformers: give a diffusers pipeline that does, such as tim"),
        (
            partial(edited_index, _class_name="StableDiffusionInpaintPipeline"),
            "is a StableDiffusionInpaintPipeline, which does not edit pictures by a prompt alone: give a diffusers",
        ),
        (partial(edited_index, _class_name="NoSuchPipeline"), "knows no pipeline NoSuchPipeline: update diffusers, or"),
        (partial(edited_index, _class_name="UNet2DModel"), "knows no pipeline UNet2DModel: update diffusers, or"),
        (partial(edited_index, _class_name=["mine", "Mine"]), "brings a pipeline of its own, whose code is not run"),
        (lambda folder: (folder / "model_index.json").write_text("[]"), "model_index.json is damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_folder_that_cannot_edit_is_named(
    change: Callable[[Path], None], message: str, stage: Callable[..., EditImage], pipelines: Pipelines, tmp_path: Path
) -> None:
    folder = pipelines(copy=tmp_path)
    change(folder)
    found = refusal(stage(model=str(folder)))
    assert message in found
    assert found.startswith("edit_image: ") and "\n" not in found


def test_what_is_not_loaded_may_be_pickled(
    stage: Callable[..., EditImage], pipelines: Pipelines, tmp_path: Path
) -> None:
    """A checkpoint beside the parts, as timbrooks/instruct-pix2pix has, and a safety checker."""
    folder = pipelines("stable_diffusion", copy=tmp_path)
    (folder / "whole.ckpt").touch()
    (folder / "safety_checker/model.safetensors").rename(folder / "safety_checker/pytorch_model.bin")
    stage(model=str(folder)).fetch()


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("instruct_pix2pix", {"strength": 0.5}, "strength: StableDiffusionInstructPix2PixPipeline has no such option"),
        ("flux2_klein", {"image_guidance": 2.0}, "image_guidance: Flux2KleinPipeline has no such option: remove it"),
        ("instruct_pix2pix", {"prompt": " "}, "prompt: it is empty: say what to change, such as make it snow"),
    ],
)
def test_an_option_that_the_pipeline_has_not_is_named(
    family: str, options: dict[str, Any], message: str, stage: Callable[..., EditImage]
) -> None:
    assert message in refusal(stage(family, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_guidance": 0.5}, "must be at least 1"),
        ({"strength": 1.5}, "must be above 0 and at most 1, not 1.5"),
        ({"strength": 0.0}, "must be above 0 and at most 1, not 0.0"),
        ({"strength": 0.2, "steps": 4}, "0.2 of 4 steps is none: raise one of the two"),
        ({"prompt": "Make it {}"}, "is not the name of a value"),
    ],
)
def test_a_number_that_cannot_be_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EditImage(**{"prompt": PROMPT, **options})


def test_a_missing_library_is_named(stage: Callable[..., EditImage], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edit_image.importlib.util, "find_spec", lambda name: None if name == "diffusers" else find_spec)
    assert refusal(stage()) == "edit_image needs diffusers: pip install 'vec-pipeline[edit]'"


def test_of_a_repository_the_parts_that_are_loaded_are_fetched() -> None:
    """The files that timbrooks/instruct-pix2pix has, and some of others."""
    from huggingface_hub.utils import filter_repo_objects

    wanted = [
        *("model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"),
        *("text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors", "unet/config.json"),
        *("vae/diffusion_pytorch_model.safetensors", "tokenizer_2/spiece.model", "tokenizer/chat_template.jinja"),
        *("text_encoder_2/model-00001-of-00002.safetensors", "text_encoder_2/model.safetensors.index.json"),
        "transformer/diffusion_pytorch_model-00001-of-00003.safetensors",
    ]
    pickled = ["unet/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin"]
    others = [
        *("instruct-pix2pix-00-22000.ckpt", "instruct-pix2pix-00-22000.safetensors", "README.md", "imgs/example.jpg"),
        *("safety_checker/model.safetensors", "safety_checker/pytorch_model.bin", "unet/model.onnx"),
        *("unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors"),
        *("vae/diffusion_pytorch_model.non_ema.safetensors", "flux1-dev-kontext.safetensors"),
    ]
    names = [*wanted, *pickled, *others]
    stage = EditImage(prompt=PROMPT)
    assert set(filter_repo_objects(names, allow_patterns=list(stage.patterns))) == set(wanted)
    trusting = EditImage(prompt=PROMPT, allow_pickle=True)
    assert set(filter_repo_objects(names, allow_patterns=list(trusting.patterns))) == {*wanted, *pickled}
    assert {Path(name).suffix for name in pickled} <= set(PICKLE_SUFFIXES)


def test_a_pickled_model_is_loaded_where_it_is_trusted(
    stage: Callable[..., EditImage], pipelines: Pipelines, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    folder = pipelines(copy=tmp_path)
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    trusting = stage(model=str(folder), allow_pickle=True)
    trusting.fetch()
    assert (pixels(one(trusting)) == pixels(one(stage()))).all()


# --- Through the program

CONFIG = """
output: annotations.csv
device: cpu
stages:
  - {{use: open_image, max_size_px: 48}}
  - {{use: edit_image, model: {model}, prompt: "Make it {{name}}", steps: 2, batch_size: 2}}
  - use: flag
    name: flag_edited
    read: {{image: edited_image}}
    write: {{flags: edited_flags}}
    blank_image: {blank}
"""


def run(folder: Path, *options: str) -> Run:
    names = ("brown-fish.jpg", "purple-cat.png", "red-flower.png")
    arguments = [*(str(EXAMPLES / name) for name in names), "--config", str(folder / "edit.yaml"), *options]
    output = ["--output", str(folder / "annotations.csv")]
    return subprocess.run(
        [sys.executable, "run.py", *arguments, *output], cwd=PROJECT, capture_output=True, text=True, timeout=240,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


def csv_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "annotations.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def cached(folder: Path) -> list[Values]:
    import sqlite3

    with sqlite3.connect(folder / "annotations.cache.sqlite") as database:
        return [decode(result) for (result,) in database.execute("SELECT result FROM results")]


def test_later_stages_see_the_edited_picture_also_of_a_cached_result(pipelines: Pipelines, tmp_path: Path) -> None:
    def configure(blank: float) -> None:
        (tmp_path / "edit.yaml").write_text(CONFIG.format(model=pipelines(), blank=blank), encoding="utf-8")

    configure(0.0)
    first = run(tmp_path)
    assert first.returncode == 0, first.stderr
    rows = csv_rows(tmp_path)
    assert len({row["edited_path"] for row in rows}) == 3
    for row in rows:
        with Image.open(tmp_path / row["edited_path"]) as picture:
            assert max(picture.size) == 48
        assert 0 < float(row["edit_difference"]) < 1
        assert row["edited_flags"] == ""
    kept = [result for result in cached(tmp_path) if "edited_path" in result]
    assert len(kept) == 3 and all("edited_image" not in result for result in kept), "its pixels are in the file"

    configure(1e9)
    gone = tmp_path / rows[0]["edited_path"]
    before = gone.read_bytes()
    gone.unlink()
    second = run(tmp_path, "--refresh")
    assert second.returncode == 0, second.stderr
    assert gone.read_bytes() == before, "a file that was deleted is made again"
    assert [row["edited_flags"] for row in csv_rows(tmp_path)] == ["blank_image"] * 3, "read from the files"
    log = (tmp_path / "annotations.log").read_text(encoding="utf-8")
    batches = [line.partition("edit_image: ")[2] for line in log.splitlines() if "edit_image: a batch of" in line]
    assert batches == ["a batch of 3, 2 at once", "a batch of 1, 1 at once"], "the other two are of the cache"


def test_make_takes_so_many_pictures_and_a_prompt_with_quotes() -> None:
    plan = subprocess.run(
        ["make", "-n", "--no-print-directory", "run", "N=5", 'PROMPT=Make it "red"'],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()[-1]
    assert '--config "configs/demo-edit.yaml" --output output/demo-edit/annotations.csv --limit 5 ' in plan
    assert '--set "edit_image.prompt=$PROMPT"' in plan, "the shell fills it in, and reads no quotes in it"
