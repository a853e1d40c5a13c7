"""Model names -> local paths, one sentence where there is none, and no weights that can run code unless allowed."""

import contextlib
import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import PROJECT
from vec_pipeline import weights
from vec_pipeline.config import load_config
from vec_pipeline.memory import LoadError, ModelCache
from vec_pipeline.record import UserError
from vec_pipeline.stages.describe import Describe
from vec_pipeline.stages.embed_image import EmbedImage
from vec_pipeline.stages.embed_text import EmbedText
from vec_pipeline.stages.embed_words import EmbedWords
from vec_pipeline.stages.structure import Structure


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with a model, and another folder as the current one."""
    folder = tmp_path / "project"
    (folder / "models/demo").mkdir(parents=True)
    (folder / "models/demo/llama.gguf").write_bytes(b"GGUF of the project")
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(weights, "PROJECT_FOLDER", folder)
    monkeypatch.chdir(tmp_path / "here")
    return folder


def test_a_relative_path_is_found_from_the_project(project: Path) -> None:
    assert weights.local_path("models/demo/llama.gguf") == project / "models/demo/llama.gguf"


def test_a_relative_path_is_found_from_here_first(project: Path) -> None:
    here = Path.cwd() / "models/demo/llama.gguf"
    here.parent.mkdir(parents=True)
    here.write_bytes(b"GGUF from here")
    assert weights.local_path("models/demo/llama.gguf") == here


def test_absolute_and_home_paths_are_found(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = project / "models/demo/llama.gguf"
    monkeypatch.setenv("HOME", str(project))
    assert weights.local_path(str(model)) == model
    assert weights.local_path("~/models/demo/llama.gguf") == model


def test_a_hub_name_is_no_path(project: Path) -> None:
    assert weights.local_path("Qwen/Qwen2-VL-7B-Instruct") is None


@pytest.mark.parametrize("model", ["models/demo/lama.gguf", "./models/demo/llama", "llama.gguf", "gpt2"])
def test_a_path_to_nothing_is_one_sentence(model: str, project: Path) -> None:
    with pytest.raises(UserError) as caught:
        weights.local_path(model)
    assert str(caught.value).startswith(f"{model}: no such file or folder; ")
    assert "\n" not in str(caught.value)


def test_a_path_to_nothing_gets_the_nearest_one(project: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean models/demo/llama\.gguf\?"):
        weights.local_path("models/demo/lama.gguf")


def test_an_empty_name_is_not_the_current_folder(project: Path) -> None:
    with pytest.raises(UserError):
        weights.local_path("")


def fetch_offline(model: str, cache: Path) -> str:
    """Fetch in a process of its own, since the hub's library reads its settings once; return what it says."""
    program = (
        "import sys; from vec_pipeline import weights; from vec_pipeline.record import UserError\n"
        "try: weights.fetch(sys.argv[1], ('*.json',))\n"
        "except UserError as error: print(error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cache)}
    process = subprocess.run([sys.executable, "-c", program, model], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_a_hub_model_without_a_network_says_where_a_copy_can_be_put(tmp_path: Path) -> None:
    sentence = fetch_offline("Qwen/Qwen2-VL-7B-Instruct", tmp_path)
    assert sentence.startswith("Qwen/Qwen2-VL-7B-Instruct ")
    assert "put a copy on this machine and give its path as `model:`" in sentence
    assert sentence.count("\n") == 1


def test_a_name_that_no_hub_could_have_is_one_sentence(tmp_path: Path) -> None:
    sentence = fetch_offline("my models/Qwen2 VL", tmp_path)
    assert "my models/Qwen2 VL" in sentence
    assert sentence.count("\n") == 1


def test_a_local_model_is_fetched_as_it_is(project: Path) -> None:
    assert weights.fetch("models/demo", ("*.gguf",)) == project / "models/demo"


@pytest.mark.parametrize("model", ["models/demo", "models/demo/llama.gguf"])
def test_the_version_changes_with_a_file(model: str, project: Path) -> None:
    before = weights.version(model)
    assert weights.version(model) == before != ""
    (project / "models/demo/llama.gguf").write_bytes(b"GGUF, trained longer")
    assert weights.version(model) != before


def test_the_version_of_a_folder_changes_with_one_more_file(project: Path) -> None:
    before = weights.version("models/demo")
    (project / "models/demo/config.json").touch()
    assert weights.version("models/demo") != before


def test_the_version_changes_with_a_file_of_the_same_size(project: Path) -> None:
    before, model = weights.version("models/demo"), project / "models/demo/llama.gguf"
    model.write_bytes(model.read_bytes()[::-1])
    os.utime(model, ns=(0, 0))
    assert weights.version("models/demo") != before


def test_the_size_is_that_of_the_weights(project: Path) -> None:
    (project / "models/demo/README.md").write_bytes(bytes(1000))
    assert weights.size_gb(project / "models/demo") == weights.size_gb(project / "models/demo/llama.gguf") == 19e-9


def test_other_files_of_the_same_weights_do_not_count(tmp_path: Path) -> None:
    for name, kb in {"a.Q4.gguf": 4, "a.Q8.gguf": 8}.items():
        (tmp_path / name).write_bytes(bytes(1000 * kb))
    assert weights.size_gb(str(tmp_path), "a.Q4.gguf") == pytest.approx(4e-6)
    assert weights.size_gb(str(tmp_path)) == pytest.approx(12e-6)
    (tmp_path / "model.safetensors").write_bytes(bytes(5000))
    assert weights.size_gb(str(tmp_path)) == pytest.approx(5e-6)


def test_the_size_of_a_model_in_the_hubs_cache_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert weights.size_gb("somebody/some-model") == 0
    folder = tmp_path / "models--somebody--some-model"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc" / "model.safetensors").write_bytes(bytes(7000))
    assert weights.size_gb("somebody/some-model") == pytest.approx(7e-6)
    assert weights.size_gb("Qwen/Qwen2-VL-7B-Instruct") == pytest.approx(16.6)


# --- weights that can run code


class Payload:
    """What a pickle can hold: loading it makes a file."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.made), "w")


def make_pickled(path: Path) -> Path:
    """Write a pickle at a path, and return the file that unpickling it would make."""
    made = path.parent / "executed"
    path.write_bytes(pickle.dumps(Payload(made)))
    return made


def copy_of_demo(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(PROJECT / "models/demo" / name, folder / name))


STAGES: dict[str, tuple[type[weights.ModelStage], str, str]] = {
    "describe": (Describe, "vision_language", "pytorch_model.bin"),
    "embed_text": (EmbedText, "sentences", "pytorch_model.bin"),
    "embed_image": (EmbedImage, "clip", "open_clip_pytorch_model.bin"),
}


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("method", ["fetch", "load"])
def test_a_folder_of_pickled_weights_is_refused_and_not_run(name: str, method: str, tmp_path: Path) -> None:
    cls, model, file = STAGES[name]
    folder = copy_of_demo(model, tmp_path)
    next(folder.glob("*.safetensors")).unlink()
    made = make_pickled(folder / file)
    with pytest.raises(UserError, match=rf"{file} may be a pickle.*set {name}\.allow_pickle: true"):
        getattr(cls(model=str(folder)), method)()
    assert not made.exists()


@pytest.mark.parametrize("name", STAGES)
def test_a_pickle_beside_safetensors_is_not_loaded(name: str, tmp_path: Path) -> None:
    """Many repositories carry both."""
    cls, model, file = STAGES[name]
    folder = copy_of_demo(model, tmp_path)
    made = make_pickled(folder / file)
    stage = cls(model=str(folder))
    stage.fetch()
    stage.load()
    assert not made.exists()


def test_pickled_weights_of_a_module_within_are_refused(tmp_path: Path) -> None:
    folder = copy_of_demo("sentences", tmp_path)
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense/config.json").write_text("{}")
    make_pickled(folder / "2_Dense/pytorch_model.bin")
    with pytest.raises(UserError, match=r"2_Dense/pytorch_model\.bin may be a pickle"):
        EmbedText(model=str(folder)).fetch()


def test_weights_of_another_runtime_within_are_no_obstacle(tmp_path: Path) -> None:
    """Hub repositories of sentence models have openvino/openvino_model.bin: no pickle, and nothing here reads it."""
    folder = copy_of_demo("sentences", tmp_path)
    (folder / "openvino").mkdir()
    (folder / "openvino/openvino_model.bin").write_bytes(bytes(100))
    EmbedText(model=str(folder)).fetch()


def test_pickled_weights_load_where_they_are_allowed(tmp_path: Path) -> None:
    folder = copy_of_demo("sentences", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    expected = EmbedText(model=str(folder), device="cpu")
    [row] = expected.run(expected.load(), [{"text": "A red car."}])
    (folder / "model.safetensors").unlink()
    stage = EmbedText(model=str(folder), device="cpu", allow_pickle=True)
    stage.fetch()
    [same] = stage.run(stage.load(), [{"text": "A red car."}])
    assert (same["text_vector"] == row["text_vector"]).all()


def test_the_option_stands_above_the_stages_for_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "allow_pickle: true\nstages: [open_image, {use: describe, model: a/b}, {use: embed_text, model: a/b}]"
    )
    config = load_config(tmp_path / "config.yaml")
    assert [getattr(stage, "allow_pickle", None) for stage in config.stages] == [None, True, True]


def module_with_code(folder: Path) -> None:
    """As a repository with code of its own: sentence-transformers is to import a class from it."""
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "custom.Module"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "custom.py").write_text(f"open({str(folder / 'executed')!r}, 'w')\n")


def config_with_code(folder: Path) -> None:
    """As a repository with code of its own: transformers is to import the model's class from it."""
    config = json.loads((folder / "config.json").read_text())
    config["model_type"], config["auto_map"] = "custom", {"AutoConfig": "custom.Config", "AutoModel": "custom.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "custom.py").write_text(f"open({str(folder / 'executed')!r}, 'w')\n")


@pytest.mark.parametrize("make", [module_with_code, config_with_code])
def test_code_of_a_model_runs_only_where_it_is_asked_for(make: Callable[[Path], None], tmp_path: Path) -> None:
    folder = copy_of_demo("sentences", tmp_path)
    make(folder)
    with pytest.raises(UserError, match=r"Python files of its own: .* set embed_text\.trust_remote_code: true"):
        EmbedText(model=str(folder)).load()
    assert not (folder / "executed").exists()
    with pytest.raises(Exception, match=r"custom|Module|Config"):  # the file has no such class
        EmbedText(model=str(folder), trust_remote_code=True).load()
    assert (folder / "executed").exists()


# --- damaged weights


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[:-100],
    "cut in the header": lambda content: content[:100],
    "a header longer than the file": lambda content: b"\xff" * 7 + b"\0" + content[8:],
    "a header that is no JSON": lambda content: content[:8] + b"\xff" * 50 + content[58:],
    "random bytes": lambda content: random.Random(0).randbytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("model", ["sentences", "vision_language", "clip"])
def test_damaged_safetensors_are_named_before_any_model_loads(damage: str, model: str, tmp_path: Path) -> None:
    folder = copy_of_demo(model, tmp_path)
    [file] = folder.glob("*.safetensors")
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    cls = next(cls for cls, of, _ in STAGES.values() if of == model)
    with pytest.raises(UserError, match=rf"{file} is damaged .*: delete it, and download or copy it again"):
        cls(model=str(folder)).fetch()


def changed(at: int, number: int) -> Callable[[bytes], bytes]:
    """Put another number into a header."""
    return lambda content: content[:at] + struct.pack("<i", number) + content[at + 4 :]


@pytest.mark.parametrize(
    "damage",
    [
        *(lambda content, share=share: content[: int(share * len(content))] for share in (0.00001, 0.001, 0.5, 0.9)),
        changed(8, -64),  # dimensions
        changed(8, 1 << 20),
        changed(40, 1 << 30),  # buckets of n-grams
        changed(64, 1 << 30),  # entries of the dictionary
        changed(68, 1 << 30),  # words in it
        changed(68, 0),
    ],
)
def test_damaged_word_vectors_are_named_before_any_model_loads(
    damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "words.bin"
    path.write_bytes(damage((PROJECT / "models/demo/words/words.bin").read_bytes()))
    with pytest.raises(UserError, match=rf"{path} is damaged .*: delete it, and download or copy it again"):
        EmbedWords(model=str(path)).fetch()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("seed", range(8))
def test_changed_bytes_in_word_vectors_are_no_crash(seed: int, tmp_path: Path) -> None:
    """Among options and words they may go unnoticed; ModelCache makes one sentence of any error."""
    content = bytearray((PROJECT / "models/demo/words/words.bin").read_bytes())
    chance = random.Random(seed)
    for _ in range(8):
        content[chance.randrange(4, 100 if seed % 2 else 6000)] = chance.randrange(256)
    path = tmp_path / "words.bin"
    path.write_bytes(content)
    stage = EmbedWords(model=str(path))
    with contextlib.suppress(Exception):
        stage.fetch()
        stage.run(stage.load(), [{"text": "A red car."}])


def test_random_weights_are_an_error_in_the_rows_or_other_numbers(tmp_path: Path) -> None:
    """No header tells that the numbers behind it are wrong; what is not finite is refused by the annotator."""
    folder = copy_of_demo("sentences", tmp_path)
    file = folder / "model.safetensors"
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    file.write_bytes(content[:start] + random.Random(0).randbytes(len(content) - start))
    stage = EmbedText(model=str(folder), device="cpu")
    stage.fetch()
    [row] = stage.run(stage.load(), [{"text": "A red car."}])
    assert row["text_vector"].shape == (128,)
    assert not np.isfinite(row["text_vector"]).all()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1000],
        lambda content: content[:200],
        lambda content: random.Random(0).randbytes(len(content)),
        lambda content: content[:4] + random.Random(0).randbytes(len(content) - 4),
        changed(8, -1),  # tensors
        changed(16, 1 << 30),  # entries of the header
        changed(24, 1 << 30),  # letters of the first one's name
    ],
    ids=["empty", "truncated", "cut in the header", "random", "random but for the magic", "tensors", "entries", "name"],
)
def test_a_damaged_gguf_is_one_sentence(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """llama.cpp may even end its process over it, which is a child of the worker's."""
    path = tmp_path / "llama.gguf"
    path.write_bytes(damage((PROJECT / "models/demo/llama/llama.gguf").read_bytes()))
    stage = Structure(model=str(path), device="cpu", threads=1)
    stage.fetch()
    cache = ModelCache(5, 0.0)
    with pytest.raises(LoadError) as caught, cache.use(stage):
        pass
    assert str(caught.value).startswith("structure: the model cannot be loaded: ")
    assert "\n" not in str(caught.value)
