"""Model names -> local paths, at the right revision, or one sentence; no weights that can run code unless allowed."""

import contextlib
import hashlib
import json
import os
import pickle
import random
import re
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import PROJECT
from tests.tiny_fasttext import write_fasttext
from vec_pipeline import device, settings, weights
from vec_pipeline.checks import check_download_space, model_files
from vec_pipeline.commands.run import fetched
from vec_pipeline.config import load_config
from vec_pipeline.memory import LoadError, ModelCache
from vec_pipeline.record import Stage, UserError
from vec_pipeline.stages.describe import Describe
from vec_pipeline.stages.embed_image import EmbedImage
from vec_pipeline.stages.embed_text import EmbedText
from vec_pipeline.stages.embed_words import EmbedWords
from vec_pipeline.stages.flag import Flag
from vec_pipeline.stages.structure import Structure


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with a model; the current folder is another one."""
    folder = tmp_path / "project"
    (folder / "models/demo").mkdir(parents=True)
    (folder / "models/demo/llama.gguf").write_bytes(b"GGUF of the project")
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(weights, "PROJECT_FOLDER", folder)
    monkeypatch.chdir(tmp_path / "here")
    return folder


def test_a_relative_path_is_found_from_the_project(project: Path) -> None:
    assert weights.local_path("models/demo/llama.gguf") == project / "models/demo/llama.gguf"


def test_the_current_folder_comes_first(project: Path) -> None:
    here = Path.cwd() / "models/demo/llama.gguf"
    here.parent.mkdir(parents=True)
    here.write_bytes(b"GGUF from here")
    assert weights.local_path("models/demo/llama.gguf") == here


def test_absolute_and_home_paths_are_found(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = project / "models/demo/llama.gguf"
    monkeypatch.setenv("HOME", str(project))
    assert weights.local_path(str(model)) == model
    assert weights.local_path("~/models/demo/llama.gguf") == model


def test_a_hub_name_is_not_a_path(project: Path) -> None:
    assert weights.local_path("Qwen/Qwen2-VL-7B-Instruct") is None


@pytest.mark.parametrize("model", ["models/demo/lama.gguf", "./models/demo/llama", "llama.gguf", "gpt2"])
def test_a_missing_path_is_one_sentence(model: str, project: Path) -> None:
    with pytest.raises(UserError) as caught:
        weights.local_path(model)
    assert str(caught.value).startswith(f"{model}: no such file or folder; ")
    assert "\n" not in str(caught.value)


def test_the_most_similar_path_is_suggested(project: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean models/demo/llama\.gguf\?"):
        weights.local_path("models/demo/lama.gguf")


def test_an_empty_name_is_not_the_current_folder(project: Path) -> None:
    with pytest.raises(UserError):
        weights.local_path("")


def fetch_offline(model: str, cache: Path) -> str:
    """Fetch in a subprocess, since the hub's library reads its settings once; return the error message."""
    program = (
        "import sys; from vec_pipeline import weights; from vec_pipeline.record import UserError\n"
        "try: weights.fetch(sys.argv[1], ('*.json',))\n"
        "except UserError as error: print(error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cache)}
    process = subprocess.run([sys.executable, "-c", program, model], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_a_hub_model_without_a_network_says_where_to_put_a_copy(tmp_path: Path) -> None:
    sentence = fetch_offline("Qwen/Qwen2-VL-7B-Instruct", tmp_path)
    assert sentence.startswith("Qwen/Qwen2-VL-7B-Instruct cannot be downloaded: ")
    assert "offline mode is enabled. To disable it, please unset the `HF_HUB_OFFLINE` environment variable" in sentence
    assert "put a copy on this machine and set `model:` to its path" in sentence
    assert sentence.count("\n") == 1


def test_an_invalid_hub_name_is_one_sentence(tmp_path: Path) -> None:
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


# --- revisions of hub models


OLD, NEW = "0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef"
WORDS = PROJECT / "models/demo/words/words.bin"


@dataclass
class Hub:
    """A hub with one repository, org/words.

    commits: the files of each. refs: branch or tag -> commit. requests: the paths asked for.
    """

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    requests: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body, as huggingface.co has them."""
        self.requests.append(path)
        match path.partition("?")[0].strip("/").split("/"):
            case ["api", "models", "org", "words", *at] if not at or at[0] == "revision":
                revision = at[1] if at else "main"
                commit = self.refs.get(revision, revision)
                if commit not in self.commits:
                    return 404, {"X-Error-Code": "RevisionNotFound"}, b""
                files = [
                    {"rfilename": name, "size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
                    for name, content in self.commits[commit].items()
                ]
                return 200, {}, json.dumps({"id": "org/words", "sha": commit, "siblings": files}).encode()
            case ["api", "models", "org", "words", "tree", commit]:
                files = [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in self.commits[commit].items()
                ]
                return 200, {}, json.dumps(files).encode()
            case ["org", "words", "resolve", commit, name]:
                content = self.commits[commit][name]
                return 200, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit}, content
        return 404, {"X-Error-Code": "RepoNotFound"}, b""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub for the hub's own library, and an empty cache."""
    from huggingface_hub import close_session

    old = WORDS.read_bytes()
    files = {
        OLD: {"model.bin": old, "README.md": b"words"},
        NEW: {"model.bin": negative_vectors(old), "README.md": b""},
    }
    hub = Hub(files, {"main": OLD, "v1": OLD})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = hub.answer(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url + template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    close_session()  # it may have been opened with other settings
    yield hub
    close_session()
    server.shutdown()
    server.server_close()


def negative_vectors(content: bytes) -> bytes:
    """FastText's .bin with every input vector negated."""
    dimensions, buckets, words = (struct.unpack_from("<i", content, at)[0] for at in (8, 40, 68))
    end = len(content) - 4 * dimensions * words - 17  # the output vectors, their shape and a flag
    start = end - 4 * dimensions * (words + buckets)
    return content[:start] + (-np.frombuffer(content[start:end], np.float32)).tobytes() + content[end:]


def test_without_a_revision_the_default_branch_is_used_and_with_one_that(hub: Hub, tmp_path: Path) -> None:
    snapshots = tmp_path / "hub/models--org--words/snapshots"
    assert weights.fetch("org/words", ("*.bin",)) == snapshots / OLD
    hub.refs["main"] = NEW
    assert weights.fetch("org/words", ("*.bin",)) == snapshots / NEW
    assert weights.fetch("org/words", ("*.bin",), revision="v1") == snapshots / OLD
    assert weights.fetch("org/words", ("*.bin",), revision=OLD) == snapshots / OLD
    assert (snapshots / NEW / "model.bin").read_bytes() == hub.commits[NEW]["model.bin"]
    assert not (snapshots / NEW / "README.md").exists()


@pytest.mark.parametrize("is_offline", [False, True])
def test_a_csv_resumes_at_its_recorded_commit_although_main_has_moved(
    is_offline: bool, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = EmbedWords(model="org/words")
    stage.fetch()
    first = weights.resolved(stage)
    assert first == replace(stage, revision=OLD)
    [before] = first.run(first.load(), [{"text": "A red car."}], 1)
    csv = tmp_path / "annotations.csv"
    settings.write_settings(csv, [first], [stage], {}, [])

    hub.refs["main"] = NEW
    stage.fetch()
    assert weights.resolved(stage) == replace(stage, revision=NEW), "a new CSV gets the new commit"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", is_offline)
    hub.requests.clear()
    [resumed] = settings.with_recorded_commits([stage], settings.recorded_settings(csv))
    resumed.fetch()
    assert resumed == weights.resolved(resumed) == first
    assert resumed.path().parts[-2:] == ("snapshots", OLD)
    [after] = resumed.run(resumed.load(), [{"text": "A red car."}], 1)
    assert (after["word2vec_vector"] == before["word2vec_vector"]).all()
    assert not hub.requests, "a commit never changes: it is not asked for again"


def test_another_commit_is_another_model(hub: Hub) -> None:
    stages = [EmbedWords(model="org/words", revision=commit) for commit in (OLD, NEW)]
    for stage in stages:
        stage.fetch()
    old, new = (stage.run(stage.load(), [{"text": "A red car."}], 1)[0]["word2vec_vector"] for stage in stages)
    assert old.any() and (new == -old).all()
    assert "revision" not in EmbedWords.speed_options
    assert [settings.stage_settings(stage)["revision"] for stage in stages] == [OLD, NEW]


def test_a_recorded_commit_is_downloaded_although_a_newer_one_is_cached(hub: Hub) -> None:
    hub.refs["main"] = NEW
    weights.fetch("org/words", ("*.bin",))
    assert weights.cached_path("org/words", OLD) is None
    assert weights.fetch("org/words", ("*.bin",), revision=OLD).name == OLD


def test_the_cache_is_read_although_files_that_are_not_needed_are_missing(hub: Hub) -> None:
    """The hub's library calls such a snapshot incomplete."""
    path = weights.fetch("org/words", ("*.bin",))
    assert not (path / "README.md").exists()
    assert weights.cached_path("org/words") == weights.cached_path("org/words", OLD) == path
    assert weights.size_gb("org/words", revision=OLD) == pytest.approx(WORDS.stat().st_size / 1e9)
    assert weights.size_gb("org/words", revision=NEW) == 0


def test_what_is_still_to_download_is_known_before(hub: Hub) -> None:
    words_gb = WORDS.stat().st_size / 1e9
    assert weights.missing_gb("org/words", ("model.bin",)) == pytest.approx(words_gb)
    assert weights.missing_gb("org/words", ("*.bin", "README.md"), NEW) == pytest.approx(words_gb)
    weights.fetch("org/words", ("model.bin",))
    assert weights.missing_gb("org/words", ("model.bin",)) == 0
    assert weights.missing_gb("org/words", ("model.bin",), NEW) == pytest.approx(words_gb)
    assert weights.missing_gb(str(WORDS), ()) == 0


def test_what_the_hub_does_not_have_is_said_before_the_download(hub: Hub) -> None:
    with pytest.raises(UserError, match=r"^org/nothing: the hub has no model of that name"):
        weights.missing_gb("org/nothing", ("*",))
    with pytest.raises(UserError, match="the hub has no branch, tag or commit 'v9'"):
        weights.missing_gb("org/words", ("*",), "v9")
    with pytest.raises(UserError, match=r"^org/nothing: the hub has no model of that name"):
        model_files(EmbedWords(model="org/nothing"))
    assert " to download, " in model_files(EmbedWords(model="org/words"))
    weights.fetch("org/words", ("model.bin",))
    assert " in the cache, " in model_files(EmbedWords(model="org/words"))
    hub.refs = hub.commits = {}
    assert weights.missing_gb("org/words", ("model.bin",)) == 0, "what is cached will do"


def test_the_size_of_a_model_is_asked_before_its_memory_is_checked(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commits[OLD]["model.safetensors"] = bytes(3_000_000)
    monkeypatch.setattr(weights, "_asked_gb", {})
    stage = EmbedText(model="org/words", device="cpu")
    assert stage.need().host_gb == 0
    assert stage.missing_gb == pytest.approx(0.003)
    assert stage.need().host_gb == pytest.approx(0.003)
    monkeypatch.setattr(device, "host_free_gb", lambda: 0.002)
    with pytest.raises(UserError, match=r"^org/words needs about 0\.0 GB of host memory"):
        fetched([replace(stage)])
    assert not any("resolve" in path for path in hub.requests)


@pytest.mark.parametrize(("free_bytes", "is_enough"), [(10**9 + 2 * 10**6, False), (10**9 + 3 * 10**6, True)])
def test_a_disk_that_is_too_small_is_named_before_the_download(
    free_bytes: int, is_enough: bool, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words take 2.2 MB, and 1 GB must be left."""
    usage = shutil.disk_usage(tmp_path)._replace(free=free_bytes)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    stages = [EmbedWords(model="org/words")]
    if is_enough:
        check_download_space(stages)
        return
    with pytest.raises(
        UserError, match=re.escape(f"2.2 MB of models are still to be downloaded to {tmp_path / 'hub'}")
    ):
        fetched(stages)
    assert not any("resolve" in path for path in hub.requests)


def test_only_hub_models_that_are_cached_get_a_commit(hub: Hub) -> None:
    others: list[Stage] = [
        Flag(),
        EmbedWords(model=str(WORDS)),
        EmbedWords(model="org/absent"),
        EmbedWords(model="org/words", revision="v2"),
    ]
    weights.fetch("org/words", ("model.bin",))
    assert [weights.resolved(stage) for stage in others] == others
    one_file = Structure(model="org/words", file="model.bin")
    assert weights.resolved(one_file) == replace(one_file, revision=OLD)
    assert weights.commit_of(one_file.path()) == OLD


def test_a_folder_with_the_name_of_a_cached_hub_model_has_no_commit(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights.fetch("org/words", ("model.bin",))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org/words").mkdir(parents=True)
    stage = EmbedWords(model="org/words")
    assert weights.resolved(stage) == stage


@pytest.mark.parametrize(
    ("path", "commit"),
    [
        (f"/hub/models--org--words/snapshots/{OLD}", OLD),
        (f"/hub/models--org--words/snapshots/{OLD}/1_Pooling/config.json", OLD),
        (f"/hub/models--org--words/snapshots/{OLD[:-1]}", ""),
        (f"/models/{OLD}", ""),
        ("/models/snapshots/final", ""),
        ("models/demo/words/words.bin", ""),
    ],
)
def test_the_commit_is_part_of_a_snapshots_path(path: str, commit: str) -> None:
    assert weights.commit_of(Path(path)) == commit


def test_a_revision_that_does_not_exist_is_one_sentence(hub: Hub) -> None:
    with pytest.raises(UserError, match=r"^org/words: the hub has no branch, tag or commit 'v2': check `revision:`"):
        weights.fetch("org/words", ("*.bin",), revision="v2")


def test_a_model_that_does_not_exist_is_one_sentence(hub: Hub) -> None:
    with pytest.raises(UserError, match=r"^org/sentences: the hub has no model of that name: check it, or put a copy"):
        weights.fetch("org/sentences", ("*.bin",))


def test_a_local_model_has_no_revision(project: Path) -> None:
    with pytest.raises(UserError, match=r"llama\.gguf is a local model, which has no revision 'v1': remove `revision"):
        weights.fetch("models/demo/llama.gguf", (), revision="v1")


def test_a_model_deleted_from_the_cache_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    stage = EmbedWords(model="org/words")
    stage.fetch()
    shutil.rmtree(tmp_path / "hub")
    with pytest.raises(UserError, match=r"^org/words cannot be downloaded: the hub's cache lacks some of its files: "):
        stage.path()


# --- failed downloads


def test_a_hub_that_does_not_speak_tls_is_the_reason_given(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a bad certificate is: the library wraps the error of the connection in one about the cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", constants.ENDPOINT.replace("http:", "https:"))
    with pytest.raises(UserError, match=r"^org/words cannot be downloaded: \[SSL.*\].*: try again, or put a copy on"):
        weights.fetch("org/words", ("*.bin",))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            RuntimeError("Data processing error: IO Error: No space left on device (os error 28)\ncaused by: 7"),
            "Data processing error: IO Error: No space left on device (os error 28): free some disk space, then rerun",
        ),
        (
            OSError(28, "No space left on device", "/hub/blobs/1"),
            "No space left on device: /hub/blobs/1: free some disk space, then rerun",
        ),
        (
            PermissionError(13, "Permission denied", "/hub"),
            "Permission denied: /hub: try again, or put a copy on this machine and set `model:` to its path",
        ),
        (
            RuntimeError("x" * 500),
            "x" * 200 + ": try again, or put a copy on this machine and set `model:` to its path",
        ),
        (RuntimeError(), "RuntimeError: try again, or put a copy on this machine and set `model:` to its path"),
    ],
    ids=["full disk in the downloader", "full disk", "folder not writable", "long", "empty"],
)
def test_the_reason_of_a_failed_download_is_given(
    error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(UserError) as caught:
        weights.fetch("org/words", ("*.bin",), revision="v1")
    assert str(caught.value) == f"org/words at revision v1 cannot be downloaded: {sentence}"


# --- weights that can run code


class Payload:
    """The content of a malicious pickle: loading it makes a file."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.made), "w")


def make_pickled(path: Path) -> Path:
    """Write a pickle to a path, and return the file that unpickling it would make."""
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
    """Many repositories contain both."""
    cls, model, file = STAGES[name]
    folder = copy_of_demo(model, tmp_path)
    made = make_pickled(folder / file)
    stage = cls(model=str(folder))
    stage.fetch()
    stage.load()
    assert not made.exists()


def test_pickled_weights_of_a_module_in_the_folder_are_refused(tmp_path: Path) -> None:
    folder = copy_of_demo("sentences", tmp_path)
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense/config.json").write_text("{}")
    make_pickled(folder / "2_Dense/pytorch_model.bin")
    with pytest.raises(UserError, match=r"2_Dense/pytorch_model\.bin may be a pickle"):
        EmbedText(model=str(folder)).fetch()


def test_weights_of_another_runtime_in_the_folder_are_ignored(tmp_path: Path) -> None:
    """Hub repositories of sentence models contain openvino/openvino_model.bin, which is not a pickle and not loaded."""
    folder = copy_of_demo("sentences", tmp_path)
    (folder / "openvino").mkdir()
    (folder / "openvino/openvino_model.bin").write_bytes(bytes(100))
    EmbedText(model=str(folder)).fetch()


def test_pickled_weights_load_if_allowed(tmp_path: Path) -> None:
    folder = copy_of_demo("sentences", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    expected = EmbedText(model=str(folder), device="cpu")
    [row] = expected.run(expected.load(), [{"text": "A red car."}], 1)
    (folder / "model.safetensors").unlink()
    stage = EmbedText(model=str(folder), device="cpu", allow_pickle=True)
    stage.fetch()
    [same] = stage.run(stage.load(), [{"text": "A red car."}], 1)
    assert (same["text_vector"] == row["text_vector"]).all()


def test_the_option_applies_to_all_stages_if_set_above_them(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "allow_pickle: true\nstages: [open_image, {use: describe, model: a/b}, {use: embed_text, model: a/b}]"
    )
    config = load_config(tmp_path / "config.yaml")
    assert [getattr(stage, "allow_pickle", None) for stage in config.stages] == [None, True, True]


def module_with_code(folder: Path) -> None:
    """Like a repository with its own code, from which sentence-transformers imports a class."""
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "custom.Module"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "custom.py").write_text(f"open({str(folder / 'executed')!r}, 'w')\n")


def config_with_code(folder: Path) -> None:
    """Like a repository with its own code, from which transformers imports the model's class."""
    config = json.loads((folder / "config.json").read_text())
    config["model_type"], config["auto_map"] = "custom", {"AutoConfig": "custom.Config", "AutoModel": "custom.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "custom.py").write_text(f"open({str(folder / 'executed')!r}, 'w')\n")


@pytest.mark.parametrize("make", [module_with_code, config_with_code])
def test_code_of_a_model_runs_only_if_the_option_is_set(make: Callable[[Path], None], tmp_path: Path) -> None:
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
    "a header that is not JSON": lambda content: content[:8] + b"\xff" * 50 + content[58:],
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


def overwritten(at: int, new: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content[:at] + new + content[at + len(new) :]


@pytest.mark.parametrize(
    "damage",
    [
        *(lambda content, share=share: content[: int(share * len(content))] for share in (0, 0.00001, 0.001, 0.5, 0.9)),
        *(lambda content, length=length: content[:-length] for length in (1, 16, 17, 100, 10_000)),
        *(lambda content, at=at: content[:at] + content[at + 4 :] for at in (4, 70)),  # four bytes are missing
        lambda content: content + bytes(1),
        changed(8, -64),  # dimensions
        changed(8, 1 << 20),
        changed(40, 1 << 30),  # buckets of n-grams
        changed(40, -1),
        changed(64, 1 << 30),  # entries of the dictionary
        changed(68, 1 << 30),  # words in it
        changed(68, 0),
        changed(72, 1),  # labels
        overwritten(84, struct.pack("<q", 1)),  # n-grams that quantisation has kept
        overwritten(84, struct.pack("<q", 1 << 40)),
        *(overwritten(at, random.Random(at).randbytes(100)) for at in (100, 1000, 2500, 5000)),  # the vocabulary
        overwritten(5321, b"\1"),  # the matrix is quantised
    ],
)
def test_damaged_word_vectors_are_named_before_any_model_loads(
    damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "words.bin"
    path.write_bytes(damage((PROJECT / "models/demo/words/words.bin").read_bytes()))
    with pytest.raises(UserError, match=rf"{path} is damaged .*: delete it, and download or copy it again"):
        EmbedWords(model=str(path)).fetch()


@pytest.mark.parametrize("options", [{"part_width": 3, "has_norms": True}, {"labels": ["__label__1", "__label__2"]}])
def test_word_vectors_that_are_cut_anywhere_are_named(options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "words.ftz"
    write_fasttext(path, ["red", "car"], buckets=5, **options)
    content = path.read_bytes()
    EmbedWords(model=str(path)).fetch()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"words\.ftz is damaged"):
            EmbedWords(model=str(path)).fetch()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("seed", range(8))
def test_changed_bytes_in_word_vectors_are_no_crash(seed: int, tmp_path: Path) -> None:
    """Among options and words they may go unnoticed; ModelCache turns any error into one sentence."""
    content = bytearray((PROJECT / "models/demo/words/words.bin").read_bytes())
    chance = random.Random(seed)
    for _ in range(8):
        content[chance.randrange(4, 100 if seed % 2 else 6000)] = chance.randrange(256)
    path = tmp_path / "words.bin"
    path.write_bytes(content)
    stage = EmbedWords(model=str(path))
    with contextlib.suppress(Exception):
        stage.fetch()
        stage.run(stage.load(), [{"text": "A red car."}], 1)


def test_random_weights_are_an_error_in_the_rows_or_other_numbers(tmp_path: Path) -> None:
    """No header shows that the numbers after it are wrong; the executor refuses those that are not finite."""
    folder = copy_of_demo("sentences", tmp_path)
    file = folder / "model.safetensors"
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    file.write_bytes(content[:start] + random.Random(0).randbytes(len(content) - start))
    stage = EmbedText(model=str(folder), device="cpu")
    stage.fetch()
    [row] = stage.run(stage.load(), [{"text": "A red car."}], 1)
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
    """llama.cpp may even abort its process, which is a child of the worker."""
    path = tmp_path / "llama.gguf"
    path.write_bytes(damage((PROJECT / "models/demo/llama/llama.gguf").read_bytes()))
    stage = Structure(model=str(path), device="cpu", threads=1)
    with pytest.raises(UserError) as found:
        stage.fetch()
    assert re.match(rf"structure: {path} is (damaged|not a GGUF file) \(.*\): ", str(found.value))
    cache = ModelCache([stage], 5, 0.0)
    with pytest.raises(LoadError) as caught, cache.use(stage):  # where it is damaged after the check
        pass
    assert str(caught.value).startswith("structure: the model cannot be loaded: ")
    assert "\n" not in str(found.value) + str(caught.value)
