"""A model's hub name or local path -> a local path. The only place that knows how weights get onto this machine."""

import contextlib
import errno
import os
import struct
from collections.abc import Iterator
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
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")  # of weights that torch would unpickle
FASTTEXT_MAGIC = (793712314).to_bytes(4, "little")  # FastText's .bin, which is no pickle, begins so (fasttext.cc)
FASTTEXT_HEADER = struct.Struct("<14i d 3i")  # magic, version, 12 options, threshold, numbers of entries, words, labels


def local_path(model: str) -> Path | None:
    """Return the path of a model on this machine, relative ones from here or from the project; None for a hub name.

    Raises UserError where the name can only be a path, and nothing is there.
    """
    if not model:
        raise UserError("an empty `model:` names nothing: give a path or a hub name")
    for base in (Path.cwd(), PROJECT_FOLDER):
        path = base / os.path.expanduser(model)
        if path.exists():
            return path
    if model.startswith((".", "/", "~", "models/")) or model.count("/") != 1 or model.endswith(LOCAL_SUFFIXES):
        raise UserError(f"{model}: no such file or folder{nearest(Path(os.path.expanduser(model)))}")
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


def cached_path(model: str) -> Path | None:
    """Where the hub's cache on this machine holds (some of) the model; None where it does not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def size_gb(model: str, file: str = "") -> float:
    """Size of a model's weights in GB: known for some hub names, else measured; 0 where it is still to download.

    file: the only one of a folder or repository that counts. Without, other formats beside safetensors do not count.
    """
    path = local_path(model)
    if path is None and model in HUB_GB:
        return HUB_GB[model]
    path = path or cached_path(model)
    if path is None:
        return 0.0
    path = path / file if file else path
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.suffix in WEIGHT_SUFFIXES]
    files = [each for each in files if each.suffix == ".safetensors"] or files
    return sum(each.stat().st_size for each in files) / 1e9


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


def pickles(path: Path) -> list[Path]:
    """Return the weights that could only be unpickled, which runs whatever code they hold.

    path: one file: anything but GGUF, safetensors and FastText's .bin; or a folder: it and the modules in it (folders
    with a configuration of their own) are looked through for pickles that have no safetensors beside them.
    """
    if path.is_file():
        return [] if path.suffix in (".gguf", ".safetensors") or is_fasttext(path) else [path]
    folders = {path, *(config.parent for config in path.glob("*/*config.json"))}
    unsafe = [folder for folder in folders if not any(folder.glob("*.safetensors"))]
    files = sorted(file for folder in unsafe for file in folder.iterdir() if file.suffix in PICKLE_SUFFIXES)
    return [file for file in files if not is_fasttext(file)]


def is_fasttext(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(FASTTEXT_MAGIC)) == FASTTEXT_MAGIC


def check_headers(path: Path) -> None:
    """Raise UserError where a safetensors file or FastText's .bin is cut or overwritten: its header tells its size."""
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.suffix == ".safetensors":
            damage = safetensors_damage(file)
        elif file.suffix == ".bin" and is_fasttext(file):
            damage = fasttext_damage(file)
        else:
            continue
        if damage:
            raise UserError(f"{file} is damaged ({damage}): delete it, and download or copy it again")


def safetensors_damage(path: Path) -> str:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            return ""
    except (SafetensorError, OSError) as error:
        return str(error)


def fasttext_damage(path: Path) -> str:
    """Compare the file's size with its header: at the end of a file gensim looks for the end of a word for ever."""
    with path.open("rb") as file:
        header = file.read(FASTTEXT_HEADER.size)
    if len(header) < FASTTEXT_HEADER.size:
        return "it ends within its header"
    numbers = FASTTEXT_HEADER.unpack(header)
    dimensions, buckets, (entries, words, labels) = numbers[2], numbers[10], numbers[-3:]
    matrices_bytes = 4 * dimensions * (2 * words + buckets)  # input vectors of words and n-grams, output vectors
    is_fine = min(dimensions, words) > 0 <= buckets and entries == words + labels
    return "" if is_fine and matrices_bytes < path.stat().st_size else "its size is not what its header says"


@dataclass(frozen=True, kw_only=True)
class ModelStage(Stage):
    """A stage whose weights have a hub name or a local path.

    files: patterns of the files needed of a hub repository.
    required: a file that a folder of such a model cannot lack.
    allow_pickle: load pickled weights too, although loading them runs whatever code they hold.
    """

    required: ClassVar[str] = ""
    files: ClassVar[tuple[str, ...]] = ()
    tuning: ClassVar[tuple[str, ...]] = (*Stage.tuning, "allow_pickle")

    model: str
    allow_pickle: bool = False

    def path(self, *, is_offline: bool = True) -> Path:
        """Where the weights are on this machine, after `fetch` has seen to it that they are.

        Raises UserError where they are pickled, and that is not allowed.
        """
        pickled = tuple(f"*{suffix}" for suffix in PICKLE_SUFFIXES) if self.allow_pickle else ()
        path = fetch(self.model, self.files + pickled, is_offline=is_offline)
        if not self.allow_pickle and (refused := pickles(path)):
            raise UserError(
                f"{self.name}: {refused[0]} may be a pickle, which can run any code when it is loaded: give "
                f"safetensors, GGUF or FastText's .bin, or, if you trust it, set {self.name}.allow_pickle: true"
            )
        return path

    def fetch(self) -> None:
        path = self.path(is_offline=False)
        missing = path / self.required if path.is_dir() else path
        if not missing.exists():
            raise UserError(f"{self.name}: {missing} is missing{nearest(missing)}")
        check_headers(path)

    @contextlib.contextmanager
    def refusing_code(self) -> Iterator[None]:
        """A block that loads a model; UserError names the option where its libraries ask for `trust_remote_code`."""
        try:
            yield
        except ValueError as error:
            if "trust_remote_code" not in str(error):
                raise
            raise UserError(
                f"{self.model} brings Python files of its own: read them, and set {self.name}.trust_remote_code: true"
            ) from None

    def need(self) -> Need:
        return Need(host_gb=size_gb(self.model))
