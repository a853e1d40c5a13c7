"""Resolves a model's hub name or local path to a local path, and checks the weights. Nothing else downloads any."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from vec_pipeline.record import Need, Stage, UserError

PROJECT_FOLDER = Path(__file__).resolve().parent.parent
HUB_GB = {  # sizes of the models in config.yaml and configs/, of one GGUF file if a repository has several
    "Qwen/Qwen2-VL-7B-Instruct": 16.6,
    "Qwen/Qwen2-VL-2B-Instruct": 4.4,
    "Qwen/Qwen3-VL-4B-Instruct": 8.9,
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": 1.0,
    "intfloat/multilingual-e5-base": 1.1,
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2": 0.5,
    "facebook/fasttext-en-vectors": 7.2,
    "facebook/fasttext-ru-vectors": 7.2,
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": 0.6,
    "timm/ViT-B-16-SigLIP2-256": 1.5,
    "facebook/dinov2-base": 0.3,
    "timbrooks/instruct-pix2pix": 4.3,
    "PekingU/rtdetr_v2_r18vd": 0.1,
    "Satish678/UIED": 0.2,
    "dima806/fairface_age_image_detection": 0.3,
    "dima806/fairface_gender_image_detection": 0.3,
    "bartowski/Meta-Llama-3.1-8B-Instruct-GGUF": 4.9,
    "bartowski/Llama-3.2-1B-Instruct-GGUF": 0.8,
}
WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".bin", ".npy", ".model")
LOCAL_SUFFIXES = (".gguf", ".bin", ".ftz", ".vec", ".model", ".kv", ".safetensors")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")  # weights that torch would unpickle
COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zip")
HUB_TIMEOUT_S = 10
_asked_gb: dict[str, float] = {}  # sizes of weights that the hub has given in this process
COMMIT = re.compile("[0-9a-f]{40}")


def local_path(model: str) -> Path | None:
    """Return the local path of a model, relative to the current folder or to the project; None for a hub name.

    Raises UserError if the name can only be a path and nothing exists there.
    """
    if not model:
        raise UserError("`model:` is empty: give a path or a hub name")
    for base in (Path.cwd(), PROJECT_FOLDER):
        path = base / os.path.expanduser(model)
        if path.exists():
            return path
    if model.startswith((".", "/", "~", "models/")) or model.count("/") != 1 or model.endswith(LOCAL_SUFFIXES):
        raise UserError(f"{model}: no such file or folder{nearest(Path(os.path.expanduser(model)))}")
    return None


def nearest(path: Path) -> str:
    """Suggest the most similar name in the folder of a missing path."""
    from difflib import get_close_matches

    for base in (Path.cwd(), PROJECT_FOLDER):
        folder = (base / path).parent
        if folder.is_dir():
            matches = get_close_matches(path.name, os.listdir(folder), n=1, cutoff=0.4)
            if matches:
                return f"; did you mean {path.parent / matches[0]}?"
    return "; give a path that exists, or a hub name such as Qwen/Qwen2-VL-7B-Instruct"


def fetch(model: str, patterns: tuple[str, ...], *, revision: str = "", is_offline: bool = False) -> Path:
    """Return the local path of a model; a hub model is downloaded once, with a progress bar, and then cached.

    patterns: the files needed of a hub repository.
    revision: a branch, tag or commit of a hub repository; empty for the default branch.
    is_offline: use the cache without asking the hub.

    Raises UserError if the model is not on this machine and cannot be downloaded, or if a path comes with a revision.
    """
    if path := local_path(model):
        if revision:
            raise UserError(f"{path} is a local model, which has no revision {revision!r}: remove `revision:`")
        return path
    from huggingface_hub import snapshot_download

    options = {"revision": revision or None, "local_files_only": is_offline}
    with hub_errors(model, revision, is_offline=is_offline):
        return Path(snapshot_download(model, allow_patterns=list(patterns), **options))


@contextlib.contextmanager
def hub_errors(model: str, revision: str = "", *, is_offline: bool = False) -> Iterator[None]:
    """A context that asks the hub for a model; what goes wrong becomes a UserError with the fix."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    or_copy = "or put a copy on this machine and set `model:` to its path"
    try:
        yield
    except GatedRepoError:
        raise UserError(f"{model}: accept its licence on the hub and log in (hf auth login), {or_copy}") from None
    except HFValidationError:
        raise UserError(f"{model} is neither an existing path nor a valid hub name: check it, {or_copy}") from None
    except RepositoryNotFoundError:
        raise UserError(f"{model}: the hub has no model of that name: check it, {or_copy}") from None
    except RevisionNotFoundError:
        fix = "check `revision:`, or use --refresh if an earlier run recorded that commit"
        raise UserError(f"{model}: the hub has no branch, tag or commit {revision!r}: {fix}") from None
    except Exception as error:  # the hub's own classes, those of its HTTP library, RuntimeError of its downloader
        reason = "the hub's cache lacks some of its files" if is_offline else reason_of(error)
        fix = "free some disk space, then rerun" if "No space left" in reason else f"try again, {or_copy}"
        at_revision = f" at revision {revision}" if revision else ""
        raise UserError(f"{model}{at_revision} cannot be downloaded: {reason}: {fix}") from None


def reason_of(error: BaseException) -> str:
    """The first line of an error of the hub's library or its cause, at most 200 characters."""
    if isinstance(error, FileNotFoundError) and error.__cause__:  # "not in the cache", because the hub failed
        error = error.__cause__
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"[:200]
    line = (str(error).strip().partition("\n")[0] or type(error).__name__)[:200].rstrip(" .:")
    if line.startswith("[Errno "):  # of the network, which says what failed and not with whom
        from huggingface_hub import constants

        return f"{constants.ENDPOINT} cannot be reached ({line})"
    return line


def cached_path(model: str, revision: str = "") -> Path | None:
    """The snapshot of a hub model in the cache, which may hold a part of its files; None if there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision or None, local_files_only=True))
    except LocalEntryNotFoundError as error:  # also raised for files that were never needed, and not downloaded
        path = getattr(error, "snapshot_path", None)
        return Path(path) if path else None
    except HFValidationError:
        return None


def missing_gb(model: str, patterns: tuple[str, ...], revision: str = "") -> float:
    """GB of a hub model that its cache lacks, as the hub says; 0 for a local model. `size_gb` knows its size then.

    patterns, revision: as in `fetch`.

    Raises UserError where the hub does not answer, or has no such model, and nothing of it is cached.
    """
    if local_path(model):
        return 0.0
    from huggingface_hub import HfApi
    from huggingface_hub.utils import filter_repo_objects

    try:
        with hub_errors(model, revision):
            found = HfApi().model_info(model, revision=revision or None, files_metadata=True, timeout=HUB_TIMEOUT_S)
    except UserError:
        if cached_path(model, revision):
            return 0.0
        raise
    wanted = list(filter_repo_objects(found.siblings or [], allow_patterns=list(patterns), key=lambda f: f.rfilename))
    sizes = {file.rfilename: file.size / 1e9 for file in wanted if file.rfilename.endswith(WEIGHT_SUFFIXES)}
    _asked_gb[model] = sum(gb for name, gb in sizes.items() if name.endswith(".safetensors")) or sum(sizes.values())
    blobs = cache_folder() / f"models--{model.replace('/', '--')}" / "blobs"
    missing = (file for file in wanted if not (blobs / (file.lfs.sha256 if file.lfs else file.blob_id)).exists())
    return float(sum(file.size for file in missing)) / 1e9


def cache_folder() -> Path:
    """Where downloads go: HF_HUB_CACHE, else hub/ in HF_HOME."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def commit_of(path: Path) -> str:
    """The commit of a snapshot (or of a file in one) in the hub's cache: `.../snapshots/<commit>`; empty for others."""
    folders = (each.name for each in (path, *path.parents) if each.parent.name == "snapshots")
    return next(filter(COMMIT.fullmatch, folders), "")


def resolved(stage: Stage) -> Stage:
    """The stage with its cached hub models at their commits, after `fetch`; one without such is returned unchanged."""
    if not isinstance(stage, ModelStage) or stage.is_remote:
        return stage
    commits: dict[str, Any] = {}
    for option, revision in stage.models.items():
        model = getattr(stage, option)
        path = None if local_path(model) else cached_path(model, getattr(stage, revision))
        if commit := commit_of(path) if path else "":
            commits[revision] = commit
    return replace(stage, **commits) if commits else stage


def size_gb(model: str, file: str = "", revision: str = "") -> float:
    """Size of a model's weights in GB: known for some hub names, else measured, else as the hub says; 0 if unknown.

    file: the only one of a folder or repository that counts. Otherwise safetensors alone count where there are any.
    """
    path = local_path(model)
    if path is None and model in HUB_GB:
        return HUB_GB[model]
    path = path or cached_path(model, revision)
    if path is None:
        return _asked_gb.get(model, 0.0)
    path = path / file if file else path
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.suffix in WEIGHT_SUFFIXES]
    files = [each for each in files if each.suffix == ".safetensors"] or files
    return sum(each.stat().st_size for each in files) / 1e9


def version(model: str) -> str:
    """A text that changes with the files of a local model: their names, sizes and times; empty for a hub name."""
    try:
        path = local_path(model)
    except UserError:
        return ""
    if path is None:
        return ""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return ",".join(f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files)


def pickles(path: Path, is_safe: Callable[[Path], bool]) -> list[Path]:
    """Return the weights that can only be unpickled, which runs any code they contain.

    path: a file; or a folder, which is searched, together with the modules in it (folders with their own
    configuration), for pickles without safetensors beside them.
    is_safe: whether a file is read without unpickling it.
    """
    if path.is_file():
        return [] if is_safe(path) else [path]
    folders = {path, *(config.parent for config in path.glob("*/*config.json"))}
    unsafe = [folder for folder in folders if not any(folder.glob("*.safetensors"))]
    files = sorted(file for folder in unsafe for file in folder.iterdir() if file.suffix in PICKLE_SUFFIXES)
    return [file for file in files if not is_safe(file)]


def check_headers(path: Path) -> None:
    """Raise UserError if a safetensors file is truncated or overwritten, judged by its header."""
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.suffix == ".safetensors" and (damage := safetensors_damage(file)):
            raise damaged(file, damage)


def damaged(file: Path, damage: str) -> UserError:
    return UserError(f"{file} is damaged ({damage}): delete it, and download or copy it again")


def safetensors_damage(path: Path) -> str:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            return ""
    except (SafetensorError, OSError) as error:
        return str(error)


@dataclass(frozen=True, kw_only=True)
class ModelStage(Stage):
    """A stage whose weights have a hub name or a local path. One with further models overrides `models`.

    files: patterns of the files needed of a hub repository.
    required: a file that every folder of such a model contains.
    revision: a branch, tag or commit of a hub repository; empty for the default branch.
    allow_pickle: load pickled weights too, although loading them runs any code they contain.
    """

    required: ClassVar[str] = ""
    files: ClassVar[tuple[str, ...]] = ()
    speed_options: ClassVar[tuple[str, ...]] = (*Stage.speed_options, "allow_pickle")

    model: str
    revision: str = ""
    allow_pickle: bool = False

    @property
    def models(self) -> Mapping[str, str]:
        """The options that name its models, and for each the option that names its revision."""
        return {"model": "revision"}

    def path(self, option: str = "model", *, is_offline: bool = True) -> Path:
        """The local path of the weights, which `fetch` has downloaded.

        option: that names the model.

        Raises UserError if they are pickled and `allow_pickle` is not set.
        """
        revision = getattr(self, self.models[option])
        path = fetch(getattr(self, option), self.patterns, revision=revision, is_offline=is_offline)
        if not self.allow_pickle and (refused := pickles(path, self.is_safe)):
            if refused[0].suffix in COMPRESSED_SUFFIXES:
                raise UserError(f"{self.name}: {refused[0]} is compressed: unpack it, and set `model:` to what it held")
            raise UserError(
                f"{self.name}: {refused[0]} may be a pickle, which can run any code when it is loaded: use "
                f"safetensors, GGUF or FastText's .bin, or, if you trust it, set {self.name}.allow_pickle: true"
            )
        return path

    @property
    def patterns(self) -> tuple[str, ...]:
        """The files to download of a hub repository."""
        return self.files + (tuple(f"*{suffix}" for suffix in PICKLE_SUFFIXES) if self.allow_pickle else ())

    @cached_property
    def missing_gb(self) -> float:
        """GB that were still to download when this was asked first."""
        names = ((getattr(self, option), getattr(self, revision)) for option, revision in self.models.items())
        return sum(missing_gb(model, self.patterns, revision) for model, revision in names)

    def is_safe(self, file: Path) -> bool:
        """Whether the stage reads a file without unpickling it."""
        return file.suffix in (".gguf", ".safetensors")

    def fetch(self) -> None:
        for option in self.models:
            self.check(self.path(option, is_offline=False))

    def check(self, path: Path) -> None:
        """Raise UserError if weights at a path are missing or damaged, as far as their headers say."""
        missing = path / self.required if path.is_dir() else path
        if not missing.exists():
            raise UserError(f"{self.name}: {missing} is missing{nearest(missing)}")
        check_headers(path)

    @contextlib.contextmanager
    def refusing_code(self) -> Iterator[None]:
        """A context that loads a model; if its library asks for `trust_remote_code`, UserError names the option."""
        try:
            yield
        except ValueError as error:
            if "trust_remote_code" not in str(error):
                raise
            raise UserError(
                f"{self.model} runs Python files of its own: review them, then set {self.name}.trust_remote_code: true"
            ) from None

    def weights_gb(self) -> float:
        """Size of the weights; 0 if it is not known yet."""
        names = ((getattr(self, option), getattr(self, revision)) for option, revision in self.models.items())
        return sum(size_gb(model, revision=revision) for model, revision in names)

    def need(self) -> Need:
        return Need(host_gb=self.weights_gb())
