"""The demo's editing model does what an instruction says, and the pairs that it learns from differ in that alone."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from PIL import Image

from models.demo import train_edit, vector_training
from models.demo.edit_accuracy import accuracy, held_out_pairs, judged
from models.demo.edit_model import build_autoencoder, build_pipeline, build_tokenizer, export_pipeline
from models.demo.edit_pairs import EDITS, INSTRUCTIONS, Pair, is_readable, random_pair
from models.demo.muon import Muon
from models.demo.scenes import BACKGROUNDS, COLOURS, KINDS, is_held_out
from models.demo.train_edit import LETTER_WEIGHT, MOST_WEIGHT, Batch, batch_of, loss_of_batch, weights_of
from models.demo.vector_training import DEMO
from tests.conftest import EXAMPLES, PROJECT
from vec_pipeline import load_annotations

EDIT = DEMO / "edit"
SIZE = (112, 84)


@pytest.fixture(scope="module")
def untrained() -> StableDiffusionInstructPix2PixPipeline:
    torch.manual_seed(0)
    pipeline = build_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pairs_of(edit: str, number: int, *, held_out: bool = False, scale: int | None = 1) -> list[Pair]:
    rng = random.Random(edit)
    return [random_pair(rng, SIZE, held_out=held_out, edit=edit, scale=scale) for _ in range(number)]


def edited(pipeline: StableDiffusionInstructPix2PixPipeline, image: Image.Image) -> Image.Image:
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 2, "guidance_scale": 1.0, "image_guidance_scale": 1.0}
    picture: Image.Image = pipeline("make it blue", image, generator=generator, **options).images[0]
    return picture


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference, of 255."""
    return float(np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean())


@pytest.mark.skipif(not EDIT.exists(), reason="edit has not been trained: make demo-models")
def test_the_describer_reads_the_change_and_the_objects_that_stay() -> None:
    found = accuracy(EDIT, held_out_pairs(4, seed="tests"))
    for what, least in (("change read", 0.8), ("objects exact", 0.7)):
        right, of = zip(*((share * of, of) for share, of in (found[f"{edit}: {what}"] for edit in EDITS)), strict=True)
        assert sum(right) >= least * sum(of)
        assert all(right)


@pytest.mark.parametrize("edit", EDITS)
def test_a_seed_always_draws_the_same(edit: str) -> None:
    first, second = pairs_of(edit, 3, scale=None), pairs_of(edit, 3, scale=None)
    assert first == second
    for one, other in zip(first, second, strict=True):
        assert (one.before.seen()[0] == other.before.seen()[0]).all()


def test_a_background_changes_and_the_objects_and_the_word_stay() -> None:
    for pair in pairs_of("background", 20):
        before, after = pair.before, pair.after
        assert (after.scene.things, after.scene.word) == (before.scene.things, before.scene.word)
        assert after.scene.background != before.scene.background
        assert after.scene.background in pair.instruction
        assert after.scene.background not in {thing.colour for thing in after.scene.things}
        assert not after.scene.word or is_readable(after.text_rgb, after.ground)
        kinds = np.asarray(before.painted().kinds)
        assert (kinds == np.asarray(after.painted().kinds)).all()  # the same poses at the same places
        for drawing in (before, after):
            pixels = np.asarray(drawing.painted().image)[kinds == 0]
            assert np.abs(np.median(pixels, axis=0) - drawing.ground).max() <= 3


def test_a_word_goes_and_nothing_else_changes() -> None:
    for pair in pairs_of("remove", 20):
        (before, letters), (after, _) = pair.before.seen(), pair.after.seen()
        changed = np.abs(before.astype(int) - after).max(2) > 60  # more than the artefacts of JPEG
        assert pair.after.scene.word == ""
        assert (changed & ~letters).sum() <= 0.05 * changed.sum()  # the edges of wide letters
        assert changed.any() == bool(pair.before.scene.word)


def test_an_object_changes_its_colour_and_the_other_kind_keeps_its_own() -> None:
    for pair in pairs_of("recolour", 40):
        before, after = pair.before.scene, pair.after.scene
        changed = [new for old, new in zip(before.things, after.things, strict=True) if new != old]
        assert [thing.kind for thing in before.things] == [thing.kind for thing in after.things]
        assert all(thing.colour in pair.instruction for thing in changed)
        if "object" in pair.instruction:
            assert len(changed) == len(after.things)
        else:
            assert len(changed) == 1
            assert changed[0].kind in pair.instruction
        assert ("objects" in pair.instruction or f"{changed[0].kind}s" in pair.instruction) == (
            len(pair.before.boxes) > 1
            and ("objects" in pair.instruction or len(after.things) == 1)
            and (changed[0].kind != "fish" or "objects" in pair.instruction)
        )
        kinds = np.asarray(pair.before.painted().kinds)
        differences = np.abs(pair.before.seen()[0].astype(int) - pair.after.seen()[0]).max(2)
        for thing in after.things:
            mean = differences[kinds == KINDS.index(thing.kind) + 1].mean()
            assert mean > 30 if thing in changed else mean < 10
        assert differences[kinds == 0].mean() < 10


def test_what_is_rare_occurs() -> None:
    recolourings = pairs_of("recolour", 200)
    assert 45 < sum(len(pair.before.scene.things) == 2 for pair in recolourings) < 75
    assert 25 < sum("object" in pair.instruction for pair in recolourings) < 55
    assert 8 < sum(pair.instruction.endswith(".") for pair in recolourings) < 32
    assert 6 < sum(not pair.before.scene.word for pair in pairs_of("remove", 200)) < 26
    some = [random_pair(random.Random(number), SIZE, held_out=False) for number in range(30)]
    assert {pair.edit for pair in some} == set(EDITS)
    assert {pair.before.scale for pair in some} == {1, 2, 3, 4}


@pytest.mark.parametrize("edit", EDITS)
def test_combinations_that_are_held_out_occur_neither_before_nor_after(edit: str) -> None:
    for pair in pairs_of(edit, 60):
        for scene in (pair.before.scene, pair.after.scene):
            assert not any(is_held_out(thing.kind, thing.colour, scene.background) for thing in scene.things)
    seen = [scene for pair in pairs_of(edit, 10, held_out=True) for scene in (pair.before.scene,)]
    assert all(is_held_out(thing.kind, thing.colour, scene.background) for scene in seen for thing in scene.things)


def test_a_word_is_one_token_and_other_words_are_bytes() -> None:
    tokenizer = build_tokenizer()
    texts = [text for texts in INSTRUCTIONS.values() for text in texts]
    for text in texts:
        filled = text.format(thing="umbrellas", colour="purple")
        assert len(tokenizer.tokenize(filled)) == len(filled.split())
    for known in (*KINDS, *COLOURS, *BACKGROUNDS, "objects"):
        assert tokenizer.tokenize(known.upper()) == [known + "</w>"]
    assert tokenizer.unk_token_id not in tokenizer("ÄÖ 1").input_ids[1:-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_autoencoder_hands_pixels_through(dtype: torch.dtype) -> None:
    model = build_autoencoder().to(dtype)
    pixels = torch.rand(2, 3, 28, 36, generator=torch.Generator().manual_seed(0)).to(dtype) * 2 - 1
    answer = model.decode(model.encode(pixels).latent_dist.sample()).sample
    assert (answer - pixels).abs().mean() < 0.01


def test_an_untrained_pipeline_hands_back_the_picture(
    untrained: StableDiffusionInstructPix2PixPipeline, tmp_path: Path
) -> None:
    image = Image.fromarray(pairs_of("recolour", 1)[0].before.seen()[0])
    assert difference(edited(untrained, image), image) < 3
    export_pipeline(untrained, tmp_path / "exported")
    loaded = StableDiffusionInstructPix2PixPipeline.from_pretrained(tmp_path / "exported", dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    assert untrained.unet.dtype == torch.float32
    assert difference(edited(loaded, image), edited(untrained, image)) < 0.5
    files = [file.stat() for file in (tmp_path / "exported").rglob("*.safetensors")]
    assert all(file.st_mode & 0o044 == 0o044 for file in files)  # everybody may read them
    assert sum(file.st_size for file in files) < 6.2e6  # two bytes a weight


def test_what_changes_weighs_as_much_as_what_stays_and_letters_more() -> None:
    before, letters = torch.zeros(2, 3, 20, 20), torch.zeros(2, 1, 20, 20)
    after = before.clone()
    after[0, 1, :5] = 0.5  # a quarter of one picture, and a pixel of the other
    after[1, 2, 0, 0] = 0.5
    letters[0, 0, 10] = 1
    weights = weights_of(Batch(before, after, letters, []))[:, 0]
    assert weights[0, :5].unique().tolist() == [2]
    torch.testing.assert_close(weights[0, 5:10], torch.full((5, 20), 2 / 3))
    torch.testing.assert_close(weights[0, 10], torch.full((20,), 2 / 3 * LETTER_WEIGHT))
    assert weights[1, 0, 0] == MOST_WEIGHT


def test_the_loss_of_what_changes_nothing_is_the_difference_of_before_and_after(
    untrained: StableDiffusionInstructPix2PixPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = pairs_of("background", 4)
    left = list(pairs)
    monkeypatch.setattr(train_edit, "BATCH", len(pairs))
    monkeypatch.setattr(train_edit, "random_pair", lambda _rng, _size, **_options: left.pop(0))
    batch = batch_of(pairs)
    wanted = (weights_of(batch) * (batch.after - batch.before).abs()).mean().item()
    assert wanted > 0.1
    with torch.no_grad():
        assert loss_of_batch(untrained, random.Random(0)).item() == pytest.approx(wanted, rel=0.15)


def test_the_judge_accepts_what_is_wanted_and_not_the_original() -> None:
    for pair in held_out_pairs(20):
        before, wanted = pair.before.scene.caption(), pair.after.scene.caption()
        assert all(judged(pair, before, wanted).values())
        assert not judged(pair, before, before)["change read"]
        assert judged(pair, before, before)["objects exact"] == (pair.edit == "remove")
        if pair.after.scene.word:
            assert not judged(pair, before, wanted.replace("The text reads", "The text reads X"))["word read as before"]


def test_muon_takes_a_kernel_for_a_matrix() -> None:
    gradient = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    kernel, matrix = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((4, 3, 3, 3), (4, 27)))
    kernel.grad, matrix.grad = gradient, gradient.flatten(1)
    Muon([kernel, matrix], lr=0.1).step()
    assert kernel.abs().max() > 0
    assert torch.equal(kernel.flatten(1), matrix)


def test_an_interrupted_training_ends_as_an_undisturbed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_edit, "BATCH", 2)
    monkeypatch.setattr(train_edit, "SAVE_EVERY", 1)
    monkeypatch.setattr(train_edit, "SIZES_PX", ((48, 48),) * 3)
    monkeypatch.setattr(
        train_edit, "random_pair", lambda rng, _size, **_options: pairs_of("remove", 9)[rng.randrange(9)]
    )
    monkeypatch.setattr(train_edit, "errors", lambda _pipeline: {})
    save = vector_training.save_state

    def train(name: str, save_state: Callable[..., None] = save) -> dict[str, torch.Tensor]:
        monkeypatch.setattr(vector_training, "STATES", tmp_path / name)
        monkeypatch.setattr(train_edit, "OUTPUT", tmp_path / f"{name}.out")
        monkeypatch.setattr(train_edit, "save_state", save_state)
        train_edit.main(2 / train_edit.STEPS_PER_MINUTE)
        weights: dict[str, torch.Tensor] = torch.load(tmp_path / name / "edit.pt")["unet"]
        return weights

    def save_and_end(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    undisturbed = train("undisturbed")
    with pytest.raises(KeyboardInterrupt):
        train("interrupted", save_and_end)
    resumed = train("interrupted")
    assert undisturbed.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], weight) for name, weight in undisturbed.items())
    assert (tmp_path / "interrupted.out/model_index.json").exists()


def test_the_demo_configuration_edits_describes_and_compares(tmp_path: Path) -> None:
    """As `make run N=5 PROMPT="change the background to blue"` does; the next run goes on with other pictures."""
    output = tmp_path / "annotations.csv"
    command = [sys.executable, "run.py", str(EXAMPLES), "--config", "demo-edit", "--output", str(output), "--limit"]
    prompt = ["--set", "edit_image.prompt=change the background to blue"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    for limit, rows in (("5", 5), ("2", 7)):
        run = subprocess.run([*command, limit, *prompt], cwd=PROJECT, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        table = load_annotations(output)
        assert len(table) == rows
    has_ground = table["text"].str.contains("background")
    assert has_ground.sum() >= 5
    assert table["edited_text"][has_ground].str.contains("blue background").mean() >= 0.8
    assert all((tmp_path / path).is_file() for path in table["edited_path"])
    assert not table["flags"].str.contains("edit_unchanged").any()
    assert table["edit_direction"][has_ground].median() > 0.3
