"""A model's hub name or local path -> a local path. The only place that knows how weights get onto this machine."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vec_pipeline.record import Need, Stage, UserError

PROJECT_FOLDER = Path(__file__).resolve().parent.parent
HUB_GB = {  # weights of the models in config.yaml and configs/small.yaml, those of one GGUF where a repository has many
    "Qwen/Qwen2-VL-7B-Instruct": 16.6,
    "Qwen/Qwen2-VL-2B-Instruct": 4.4,
    "intfloat/multilingual-e5-base": 1.1,
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2": 0.5,
    "facebook/fasttext-en-vectors": 7.2,
    "facebook/fasttext-ru-vectors": 7.2,
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": 0.6,
    "bartowski/Meta-Llama-3.1-8B-Instruct-GGUF": 4.9,
    "bartowski/Llama-3.2-1B-Instruct-GGUF": 0.8,
}
WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".bin", ".npy", ".model")
LOCAL_SUFFIXES = (".gguf", ".bin", ".model", ".kv", ".safetensors")


def local_path(model: str) -> Path | None:
    """Return the path of a model on this machine, relative ones from here or from the project; None for a hub name.

    Raises UserError where the name can only be a path, and nothing is there.
    """
    if not model:
        raise UserError("an empty `model:` names nothing: give a path or a hub name")
    for base in (Path.cwd(), PROJECT_FOLDER):
        path = base / Path(model).expanduser()
        if path.exists():
            return path
    if model.startswith((".", "/", "~", "models/")) or model.count("/") != 1 or model.endswith(LOCAL_SUFFIXES):
        raise UserError(f"{model}: no such file or folder{nearest(Path(model).expanduser())}")
    return None


def nearest(path: Path) -> str:
    """Name what stands beside a missing path and is called much like it."""
    from difflib import get_close_matches

    for base in (Path.cwd(), PROJECT_FOLDER):
        folder = (base / path).parent
        if folder.is_dir():
            matches = get_close_matches(path.name, os.listdir(folder), n=1, cutoff=0.4)
            if matches:
                return f"; did you mean {path.parent / matches[0]}?"
    return "; give a path that exists, or a hub name such as Qwen/Qwen2-VL-7B-Instruct"


def fetch(model: str, patterns: tuple[str, ...], *, is_offline: bool = False) -> Path:
    """Return the local path of a model; a hub name is downloaded once, with a progress bar, and then cached.

    patterns: the files needed of a hub repository.
    is_offline: take what is in the cache without asking the hub.

    Raises UserError where the model is neither here nor to be had.
    """
    if path := local_path(model):
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    elsewhere = "put a copy on this machine and give its path as `model:`"
    try:
        return Path(snapshot_download(model, allow_patterns=list(patterns), local_files_only=is_offline))
    except GatedRepoError:
        raise UserError(f"{model} needs its licence accepted and a login (hf auth login); or {elsewhere}") from None
    except HFValidationError:
        raise UserError(
            f"{model} is no path on this machine and cannot be a hub name: check it, or {elsewhere}"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(f"{model}: the hub has no model of that name; check it, or {elsewhere}") from None
    except Exception as error:  # the hub's own kinds, those of its HTTP library, a full disk
        cause = f"the hub cannot be reached ({type(error).__name__})"
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS):
            cause = f"{error.strerror}: {error.filename}"
        raise UserError(
            f"{model} is not on this machine and cannot be downloaded: {cause}; try again, or {elsewhere}"
        ) from None


def is_cached(model: str) -> bool:
    """Whether the hub's cache on this machine holds (some of) the model."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        snapshot_download(model, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        return False
    return True


def size_gb(model: str) -> float:
    """Size of a model's weights in GB: measured for a local path, known for some hub names, else 0."""
    path = local_path(model)
    if path is None:
        return HUB_GB.get(model, 0.0)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.suffix in WEIGHT_SUFFIXES]
    return sum(file.stat().st_size for file in files) / 1e9


def version(model: str) -> str:
    """What changes when the files of a local model do; empty for a hub name."""
    try:
        path = local_path(model)
    except UserError:
        return ""
    if path is None:
        return ""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return ",".join(f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files)


@dataclass(frozen=True, kw_only=True)
class ModelStage(Stage):
    """A stage whose weights have a hub name or a local path.

    files: patterns of the files needed of a hub repository.
    required: a file that a folder of such a model cannot lack.
    """

    required: ClassVar[str] = ""
    files: ClassVar[tuple[str, ...]] = ()

    model: str

    def path(self, *, is_offline: bool = True) -> Path:
        """Where the weights are on this machine, after `fetch` has seen to it that they are."""
        return fetch(self.model, self.files, is_offline=is_offline)

    def fetch(self) -> None:
        path = self.path(is_offline=False)
        missing = path / self.required if path.is_dir() else path
        if not missing.exists():
            raise UserError(f"{self.name}: {missing} is missing{nearest(missing)}")

    def need(self) -> Need:
        return Need(host_gb=size_gb(self.model))
