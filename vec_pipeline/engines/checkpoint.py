"""Checks a model's folder in the layout of transformers without loading its weights, and names what else a path holds.

What cannot be used is a ValueError, whose sentence begins with the file.
"""

import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

_POINTER = b"version https://git-lfs"
_POINTER_BYTES = 1024  # at most
FASTTEXT = "word vectors of FastText"
_BEGINNINGS = (  # how files begin, and what they are
    (b"GGUF", "a GGUF file"),
    (b"\xba\x16O/", FASTTEXT),
    (_POINTER, "a pointer of Git LFS in place of the file, which git lfs pull fetches"),
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9", "weights of torch"),  # before torch 1.6
    (b"<!DOCTYPE", "a web page"),
    (b"<html", "a web page"),
)
_MARKERS = {  # files that only folders of one kind of model have
    "open_clip_config.json": "a CLIP of open_clip",
    "modules.json": "a sentence-transformers model",
    "adapter_config.json": "an adapter without the model that it changes",
}
VISION_LANGUAGE = "a vision-language model of transformers, such as Qwen/Qwen2-VL-7B-Instruct"
SENTENCE_ENCODER = (
    "a sentence-transformers model, such as intfloat/multilingual-e5-base, or make one of it with "
    "SentenceTransformer(...).save(...)"
)
CLIP = (
    "a model of open_clip, such as laion/CLIP-ViT-B-32-laion2B-s34B-b79K, or timm/vit_base_patch32_clip_224.openai "
    "for OpenAI's weights"
)
DETECTOR = (
    "an object detector of transformers, such as PekingU/rtdetr_v2_r18vd, or IDEA-Research/grounding-dino-tiny for "
    "any labels"
)
_OF_SMOLVLM = "pip install 'vec-pipeline[smolvlm]'"
_COPY = "download or copy all files of the model again"
_SAMPLE = "A red car, 2 cats. Красная машина. 红色汽车"  # letters that any vocabulary has some of


def kind_of(path: Path) -> str:
    """What there is at a path, such as `a GGUF file`; empty where it is not known."""
    if path.is_file():
        return _kind_of_file(path)
    for name, kind in _MARKERS.items():
        if (path / name).is_file():
            return kind
    if (path / "config.json").is_file():
        return f"a {_model_type(path) or 'nameless'} model of transformers"
    return "a folder of GGUF files" if any(path.glob("*.gguf")) else ""


def _kind_of_file(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(120)
    if head.startswith(b"PK") and b"data.pkl" in head:
        return "weights of torch"
    if head[8:10] == b'{"' and path.suffix == ".safetensors":
        return "a safetensors file"
    return next((kind for beginning, kind in _BEGINNINGS if head.startswith(beginning)), "")


def _model_type(folder: Path) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def refuse_other(path: Path, required: str, wanted: str) -> None:
    """Raise ValueError, naming what there is, unless `path` is a folder with the file `required`.

    wanted: the model to give instead.
    """
    if (path / required).is_file():
        _refuse_pointers(path)
        return
    if kind := kind_of(path):
        raise ValueError(f"{path} is {kind}: give {wanted}")
    raise ValueError(f"{path / required} is missing: {_COPY}, or give {wanted}")


def _refuse_pointers(folder: Path) -> None:
    """Raise ValueError for a folder that was cloned without Git LFS, which leaves small texts in place of weights."""
    for file in sorted([*folder.glob("*.*"), *folder.glob("*/*.*")]):
        if file.is_file() and file.stat().st_size < _POINTER_BYTES and file.read_bytes().startswith(_POINTER):
            raise ValueError(f"{file} is {kind_of(file)}")


def read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): delete it, and download or copy it again") from None


def check_weights(folder: Path, *, allow_pickle: bool) -> None:
    """Raise ValueError if the weights, or some of the files that they are split into, are missing."""
    for name in ("model.safetensors", "pytorch_model.bin")[: 1 + allow_pickle]:
        if (folder / name).is_file():
            return
        if (index := folder / f"{name}.index.json").is_file():
            _check_index(index)
            return
    pickled = "" if allow_pickle else ", or, if it has pickled weights only and you trust it, set allow_pickle: true"
    raise ValueError(f"{folder / 'model.safetensors'} is missing: {_COPY}{pickled}")


def _check_index(index: Path) -> None:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index} is damaged (it has no weight_map): delete it, and download or copy it again")
    files = sorted(set(map(str, weight_map.values())))
    if missing := [name for name in files if not (index.parent / name).is_file()]:
        names = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if missing[3:] else "")
        raise ValueError(
            f"{index.parent} lacks {names} of the {len(files)} files of its weights: download or copy them too"
        )


@contextmanager
def reading(folder: Path, sentence: Callable[[Exception], str] | None = None) -> Iterator[None]:
    """A context in which libraries read the files of a folder, without a word.

    sentence: what is said of the exceptions that they raise; by default, what is wrong with the folder.

    Raises ValueError with that sentence. By default, one that asks for `trust_remote_code` is left to the caller.
    """
    from transformers.utils.logging import get_verbosity, set_verbosity, set_verbosity_error

    verbosity, handler = get_verbosity(), logging.NullHandler()
    set_verbosity_error()
    logging.getLogger().addHandler(handler)  # else the first message of open_clip sets up a log on stderr
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        if sentence is None and isinstance(error, ValueError) and "trust_remote_code" in str(error):
            raise
        raise ValueError(sentence(error) if sentence else _sentence(folder, error)) from None
    finally:
        logging.getLogger().removeHandler(handler)
        set_verbosity(verbosity)


def _line(error: Exception) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)[:200]


def _sentence(folder: Path, error: Exception) -> str:
    line = _line(error)
    if isinstance(error, ImportError):
        return f"{folder} needs another package: {line.replace('pip install num2words', _OF_SMOLVLM)}"
    for file in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]):
        read_json(file)
    if "does not recognize this architecture" in line:
        return (
            f"{folder / 'config.json'}: transformers {version('transformers')} does not know the model type "
            f"{_model_type(folder)!r}: update transformers, or use another model"
        )
    if missing := re.search(r"containing a (\S+\.json) file", str(error)):
        return f"{folder / missing[1]} is missing: {_COPY}"
    return f"{folder} cannot be used ({type(error).__name__}: {line}): {_COPY}"


def check_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Raise ValueError if a tokenizer of transformers knows no letters: without its files it loads, empty."""
    known = set(tokenizer(_SAMPLE, add_special_tokens=False)["input_ids"]) - {tokenizer.unk_token_id}
    if not known:
        names = " or ".join(dict.fromkeys(["tokenizer.json", *tokenizer.vocab_files_names.values()]))
        raise ValueError(f"{folder} has no vocabulary ({names}): {_COPY}")


def check_sentence_encoder(folder: Path, *, allow_pickle: bool, trust_remote_code: bool) -> None:
    """Raise ValueError unless every module of a sentence-transformers model is there; of transformers, without weights.

    Raises ValueError that asks for `trust_remote_code` as well, for modules with code of their own.
    """
    list_file = folder / "modules.json"
    modules = read_json(list_file)
    if not (isinstance(modules, list) and modules and all({"path", "type"} <= set(module) for module in modules)):
        raise ValueError(f"{list_file} is damaged (it lists no modules): delete it, and download or copy it again")
    with reading(folder):
        from sentence_transformers.base.modules import InputModule, Transformer
    for module in modules:
        kind = _module_class(module["type"], list_file, trust_remote_code=trust_remote_code)
        part = folder / module["path"]
        if issubclass(kind, Transformer):
            check_weights(part, allow_pickle=allow_pickle)
            _check_encoder(part, trust_remote_code=trust_remote_code)
        elif not issubclass(kind, InputModule):  # pooling and the like are small
            with reading(part):
                kind.load(str(folder), subfolder=module["path"], local_files_only=True)


def _module_class(name: str, list_file: Path, *, trust_remote_code: bool) -> Any:
    from sentence_transformers.util import import_module_class

    try:
        return import_module_class(name, str(list_file.parent), trust_remote_code=trust_remote_code)
    except ImportError:
        ours = f"sentence-transformers {version('sentence-transformers')}"
        raise ValueError(f"{list_file}: {ours} has no {name}: update it, or use another model") from None


def _check_encoder(folder: Path, *, trust_remote_code: bool) -> None:
    from transformers import AutoConfig, AutoTokenizer

    with reading(folder):
        AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    check_tokenizer(tokenizer, folder)


def check_clip(folder: Path, *, allow_pickle: bool) -> None:
    """Raise ValueError unless open_clip can build the model of a folder, and finds its weights and its tokenizer."""
    config = read_json(folder / "open_clip_config.json")
    model = config.get("model_cfg") if isinstance(config, dict) else None
    if not isinstance(model, dict):
        raise ValueError(
            f"{folder / 'open_clip_config.json'} is damaged (it has no model_cfg): delete it, and download or copy it "
            "again"
        )
    with reading(folder):
        import open_clip
        import torch
    name = f"local-dir:{folder.resolve()}"
    _check_clip_weights(folder, allow_pickle=allow_pickle)
    with reading(folder, lambda error: _cannot_build(folder, model, error)), torch.device("meta"):  # without memory
        open_clip.create_model(name, load_weights=False, device="meta", pretrained_text=False)
    with reading(folder, lambda error: _sentence(folder, error)):
        tokenizer = open_clip.get_tokenizer(name)
    if hasattr(tokenizer, "tokenizer"):  # of transformers; the other has its vocabulary in open_clip
        check_tokenizer(tokenizer.tokenizer, folder)


def _check_clip_weights(folder: Path, *, allow_pickle: bool) -> None:
    from open_clip.factory import _find_checkpoint_in_dir

    with reading(folder):
        found = _find_checkpoint_in_dir(folder)
    if found is None or not (allow_pickle or found.endswith(".safetensors")):
        raise ValueError(
            f"{folder / 'open_clip_model.safetensors'} is missing: {_COPY}, or, if it has pickled weights only and you "
            "trust it, set allow_pickle: true"
        )
    if found.endswith(".safetensors"):
        from safetensors import safe_open

        with safe_open(found, framework="numpy") as weights:
            if any(name.startswith("vision_model.") for name in weights.keys()):  # noqa: SIM118 (it is no mapping)
                raise ValueError(f"{found} holds the weights of a CLIP of transformers: give {CLIP}")


def _cannot_build(folder: Path, model: dict[str, Any], error: Exception) -> str:
    file = folder / "open_clip_config.json"
    reason = f"{type(error).__name__}: {_line(error)}"
    text = model.get("text_cfg")
    if isinstance(error, OSError) and isinstance(text, dict) and text.get("hf_model_name"):
        return (
            f"{file}: its text tower needs the configuration of {text['hf_model_name']}, which is not in the hub's "
            f"cache ({reason}): try again with a connection to the hub"
        )
    ours = f"open_clip {version('open_clip_torch')}"
    return f"{file}: {ours} cannot build this model ({reason}): update open_clip_torch and timm, or give {CLIP}"


def check_vision_language(
    folder: Path,
    question: str,
    where: str,
    quantization: Any = None,
    *,
    system_prompt: str = "",
    trust_remote_code: bool = False,
) -> str:
    """Return the model type. Raise ValueError unless the folder holds all that describing takes beside the weights.

    where: what the model runs on, such as cuda. quantization: settings of bitsandbytes for weights of full precision.
    """
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig, AutoProcessor

    options = {"trust_remote_code": trust_remote_code}
    with reading(folder):
        config = AutoConfig.from_pretrained(folder, **options)
    kind = str(config.model_type)
    brings_code = "AutoModelForImageTextToText" in getattr(config, "auto_map", {})
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not (trust_remote_code and brings_code):
        raise ValueError(
            f"{folder} is a {kind} model, which does not answer questions about images: give {VISION_LANGUAGE}"
        )
    with reading(folder):
        _check_quantization(getattr(config, "quantization_config", None), quantization, where)
        processor = AutoProcessor.from_pretrained(folder, **options)
    if not hasattr(processor, "image_processor"):
        raise ValueError(f"{folder} has no processor for images (processor_config.json): {_COPY}")
    check_tokenizer(processor.tokenizer, folder)
    check_prompt(kind, processor, question, system_prompt, folder)
    return kind


def _check_quantization(of_weights: Any, wanted: Any, where: str) -> None:
    """Raise what loading would raise for want of a package or a GPU where the weights are quantised, or are to be."""
    if of_weights or wanted:
        from transformers.quantizers import AutoHfQuantizer

        quantizer = AutoHfQuantizer.from_config(of_weights or wanted, pre_quantized=bool(of_weights))
        quantizer.validate_environment(device_map=where)


def check_prompt(kind: str, processor: Any, question: str, system_prompt: str, folder: Path) -> None:
    """Raise ValueError unless a question can be asked about an image, which most families need a chat template for."""
    from vec_pipeline.engines.families import FAMILIES, Family, WithoutTemplate

    family = FAMILIES.get(kind, Family)
    if not (issubclass(family, WithoutTemplate) or processor.chat_template or processor.tokenizer.chat_template):
        raise ValueError(
            f"{folder} has no chat template (chat_template.jinja): {_COPY}, or use a model tuned for conversations"
        )
    with reading(folder, lambda error: f"{folder}: no prompt can be made of a question and an image: {_line(error)}"):
        prompt = family(processor, system_prompt).prompt(question)
    if question.strip() not in prompt:
        raise ValueError(f"{folder}: its chat template leaves the question out: use a model tuned for conversations")
