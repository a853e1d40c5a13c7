"""Model names -> local paths, and one sentence where there is none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vec_pipeline import weights
from vec_pipeline.record import UserError


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
