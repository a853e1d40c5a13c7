"""What `run` would refuse of a model is found by `check`, before the first picture: one sentence with file and fix."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from tests import tiny_families
from tests.conftest import PROJECT
from tests.test_describe import save_llava
from tests.tiny_fasttext import write_fasttext
from tests.tiny_gguf import write_tiny_gguf
from vec_pipeline import device
from vec_pipeline.record import UserError
from vec_pipeline.stages.describe import Describe
from vec_pipeline.stages.embed_image import EmbedImage
from vec_pipeline.stages.embed_text import EmbedText
from vec_pipeline.weights import ModelStage

DEMO = PROJECT / "models" / "demo"
FOLDERS: dict[type[ModelStage], str] = {Describe: "vision_language", EmbedText: "sentences", EmbedImage: "clip"}
Damage = Callable[[Path], None]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def damaged(cls: type[ModelStage], folder: Path, damage: Damage, **options: Any) -> ModelStage:
    """A stage whose model is a damaged copy of the bundled one."""
    shutil.copytree(DEMO / FOLDERS[cls], folder)
    damage(folder)
    return cls(model=str(folder), device="cpu", **options)


def refusal(stage: ModelStage) -> str:
    with pytest.raises(UserError) as caught:
        stage.fetch()
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.startswith(f"{stage.name}: {stage.model}")
    assert len(sentence) < len(stage.model) + 400
    return sentence


def without(*names: str) -> Damage:
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


def writing(name: str, content: str) -> Damage:
    return lambda folder: bool((folder / name).write_text(content)) and None


def setting(name: str, **options: Any) -> Damage:
    """Set options in a JSON file; None removes one."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        content = {key: value for key, value in {**content, **options}.items() if value is not None}
        (folder / name).write_text(json.dumps(content))

    return damage


def both(*damages: Damage) -> Damage:
    return lambda folder: [damage(folder) for damage in damages] and None


def in_shards(folder: Path) -> None:
    """The first of three shards is there, by another name."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00003.safetensors")
    shards = {f"weight{number}": f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3, 1)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


CASES: dict[str, tuple[type[ModelStage], Damage, str]] = {
    # Weights and lists of them
    "no weights": (
        Describe,
        without("model.safetensors"),
        r"/model\.safetensors is missing: download or copy .*, or, if it has pickled weights only .*: true",
    ),
    "missing shards": (
        Describe,
        in_shards,
        r" lacks model-00002-of-00003\.safetensors, model-00003-of-00003\.safetensors of the 3 files of its weights: ",
    ),
    "shards without a list": (
        Describe,
        both(in_shards, writing("model.safetensors.index.json", "{}")),
        r"/model\.safetensors\.index\.json is damaged \(it has no weight_map\): delete it",
    ),
    "a list of shards that is cut": (
        Describe,
        both(in_shards, writing("model.safetensors.index.json", '{"weight_map": {"a')),
        r"/model\.safetensors\.index\.json is damaged \(Unterminated string.*\): delete it",
    ),
    "missing shards of an encoder": (EmbedText, in_shards, r" lacks model-00002-of-00003\.safetensors, "),
    "no weights of an encoder": (EmbedText, without("model.safetensors"), r"/model\.safetensors is missing: download"),
    # A vision-language model
    "no configuration": (Describe, without("config.json"), r"/config\.json is missing: .* Qwen/Qwen2-VL-7B-Instruct"),
    "a configuration that is cut": (Describe, writing("config.json", "{"), r"/config\.json is damaged \(Expecting"),
    "a model type of the future": (
        Describe,
        setting("config.json", model_type="brandnew9"),
        r"/config\.json: transformers [\d.]+ does not know the model type 'brandnew9': update transformers, or use",
    ),
    "no model type": (Describe, setting("config.json", model_type=None), r" cannot be used \(ValueError: Unrecognized"),
    "a text model": (
        Describe,
        writing("config.json", '{"model_type": "llama"}'),
        r" is a llama model, which does not answer questions about images: give .* Qwen/Qwen2-VL-7B-Instruct",
    ),
    "a transformers CLIP for describe": (
        Describe,
        writing("config.json", '{"model_type": "clip"}'),
        r" is a clip model",
    ),
    "no processor": (
        Describe,
        without("processor_config.json"),
        r"/preprocessor_config\.json is missing: download or copy all files of the model again",
    ),
    "a processor that is cut": (
        Describe,
        writing("processor_config.json", '{"image_processor": '),
        r"/processor_config\.json is damaged \(Expecting value.*\): delete it, and download or copy it again",
    ),
    "a processor of the future": (
        Describe,
        setting("processor_config.json", processor_class="BrandNewProcessor"),
        r" has no processor for images",
    ),
    "no tokenizer": (
        Describe,
        without("tokenizer.json", "tokenizer_config.json"),
        r" has no vocabulary \(tokenizer\.json or vocab\.json or merges\.txt\): download or copy all files",
    ),
    "a tokenizer without its vocabulary": (
        Describe,
        without("tokenizer.json"),
        r" has no vocabulary \(tokenizer\.json",
    ),
    "a tokenizer that is cut": (Describe, writing("tokenizer.json", '{"a'), r"/tokenizer\.json is damaged \("),
    "a tokenizer of something else": (Describe, writing("tokenizer.json", "{}"), r" cannot be used \(KeyError: "),
    "no chat template": (
        Describe,
        without("chat_template.jinja"),
        r" has no chat template \(chat_template\.jinja\): .*, or use a model tuned for conversations",
    ),
    "a chat template that fails": (
        Describe,
        writing("chat_template.jinja", "{{ raise_exception('no images') }}"),
        r": no prompt can be made of a question and an image: no images$",
    ),
    "a chat template that drops the question": (
        Describe,
        writing("chat_template.jinja", "<|im_start|>"),
        r": its chat template leaves the question out",
    ),
    # A sentence encoder
    "an encoder of transformers": (
        EmbedText,
        without("modules.json"),
        r" is a bert model of transformers: give a sentence-transformers model.* intfloat/multilingual-e5-base",
    ),
    "modules that are cut": (EmbedText, writing("modules.json", "[{"), r"/modules\.json is damaged \(Expecting"),
    "no modules": (EmbedText, writing("modules.json", "[]"), r"/modules\.json is damaged \(it lists no modules\): "),
    "modules of another form": (
        EmbedText,
        writing("modules.json", '{"a": 1}'),
        r"/modules\.json is damaged \(it lists",
    ),
    "a module of the future": (
        EmbedText,
        writing("modules.json", '[{"path": "", "type": "sentence_transformers.models.BrandNew"}]'),
        r"/modules\.json: sentence-transformers [\d.]+ has no sentence_transformers\.models\.BrandNew: update it",
    ),
    "no pooling": (
        EmbedText,
        lambda folder: shutil.rmtree(folder / "1_Pooling"),
        r"/1_Pooling cannot be used \(TypeError: .*\): download or copy all files of the model again",
    ),
    "a pooling that is cut": (EmbedText, writing("1_Pooling/config.json", "{"), r"/1_Pooling/config\.json is damaged"),
    "an encoder without configuration": (EmbedText, without("config.json"), r" cannot be used \(ValueError: Unrecogn"),
    "an encoder of the future": (
        EmbedText,
        setting("config.json", model_type="brandnew9"),
        r"/config\.json: transformers [\d.]+ does not know the model type 'brandnew9'",
    ),
    "an encoder without its vocabulary": (
        EmbedText,
        without("tokenizer.json"),
        r" has no vocabulary \(tokenizer\.json or vocab\.txt\): ",
    ),
    # A CLIP
    "a CLIP of transformers": (
        EmbedImage,
        both(without("open_clip_config.json"), writing("config.json", '{"model_type": "clip"}')),
        r" is a clip model of transformers: give a model of open_clip, .* timm/vit_base_patch32_clip_224\.openai",
    ),
    "a configuration of CLIP that is cut": (
        EmbedImage,
        writing("open_clip_config.json", "{"),
        r"/open_clip_config\.json is damaged \(Expecting",
    ),
    "no model in the configuration": (
        EmbedImage,
        setting("open_clip_config.json", model_cfg=None),
        r"/open_clip_config\.json is damaged \(it has no model_cfg\): delete it",
    ),
    "half a model in the configuration": (
        EmbedImage,
        setting("open_clip_config.json", model_cfg={"embed_dim": 256, "vision_cfg": {}}),
        r"/open_clip_config\.json: open_clip [\d.]+ cannot build this model \(KeyError: 'text_cfg'\)",
    ),
    "an option of the future": (
        EmbedImage,
        setting("open_clip_config.json", model_cfg={"embed_dim": 256, "vision_cfg": {"brandnew": 1}, "text_cfg": {}}),
        r"/open_clip_config\.json: open_clip [\d.]+ cannot build this model \(TypeError: .*brandnew.*\): update",
    ),
    "an image tower of the future": (
        EmbedImage,
        setting(
            "open_clip_config.json",
            model_cfg={"embed_dim": 256, "vision_cfg": {"timm_model_name": "vit_brandnew"}, "text_cfg": {}},
        ),
        r"cannot build this model \(RuntimeError: Unknown model \(vit_brandnew\)\): update open_clip_torch and timm",
    ),
    "a text tower that is not here": (
        EmbedImage,
        setting(
            "open_clip_config.json",
            model_cfg={"embed_dim": 256, "vision_cfg": {}, "text_cfg": {"hf_model_name": "xlm-roberta-base"}},
        ),
        r"its text tower needs the configuration of xlm-roberta-base, which is not in the hub's cache \(OSError: ",
    ),
    "no weights of CLIP": (
        EmbedImage,
        without("open_clip_model.safetensors"),
        r"/open_clip_model\.safetensors is missing: .* allow_pickle: true",
    ),
    "weights of another CLIP": (
        EmbedImage,
        lambda folder: save_hf_clip(folder / "open_clip_model.safetensors"),
        r"/open_clip_model\.safetensors holds the weights of a CLIP of transformers: give a model of open_clip",
    ),
    "a CLIP whose tokenizer is code": (
        EmbedImage,
        setting("tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["custom.Own", None]}),
        r" cannot be used \(ValueError: .*\): download or copy all files of the model again",
    ),
    "a CLIP with an empty vocabulary": (
        EmbedImage,
        both(without("tokenizer.json"), writing("tokenizer_config.json", '{"tokenizer_class": "CLIPTokenizer"}')),
        r" has no vocabulary \(tokenizer\.json or vocab\.json or merges\.txt\): download or copy all files",
    ),
    "a CLIP without its vocabulary": (
        EmbedImage,
        without("tokenizer.json"),
        r" cannot be used \(ValueError: Couldn't instantiate the backend tokenizer.*\): download or copy all files",
    ),
}


def save_hf_clip(file: Path) -> None:
    save_file({"vision_model.embeddings.class_embedding": torch.zeros(4), "logit_scale": torch.zeros(1)}, file)


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_or_incomplete_model_is_one_sentence(case: str, tmp_path: Path) -> None:
    cls, damage, expected = CASES[case]
    assert re.search(expected, refusal(damaged(cls, tmp_path / "model", damage)))


def test_a_package_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", None)
    smolvlm = setting("processor_config.json", processor_class="SmolVLMProcessor")
    sentence = refusal(damaged(Describe, tmp_path / "model", smolvlm))
    assert re.search(
        r" needs another package: Package `num2words` is required .* `pip install 'vec-pipeline\[smolvlm\]'`", sentence
    )


@pytest.mark.parametrize("cls", FOLDERS)
def test_the_bundled_models_pass_without_a_word(
    cls: type[ModelStage], tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    damaged(cls, tmp_path / "model", lambda folder: None).fetch()
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_libraries_say_nothing_and_leave_nothing_behind() -> None:
    """transformers has a log of its own; the first message to the root logger, as open_clip's, makes one on stderr."""
    program = (
        "import logging, warnings; from pathlib import Path; from transformers.utils import logging as theirs\n"
        "from vec_pipeline.engines.checkpoint import reading\n"
        "theirs.set_verbosity_info()\n"
        "with reading(Path()):\n"
        " logging.warning('1'); warnings.warn('2'); theirs.get_logger('transformers').warning('3')\n"
        "assert logging.getLogger().handlers == [] and theirs.get_verbosity() == logging.INFO\n"
        "theirs.get_logger('transformers').warning('4')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=PROJECT)
    assert (done.returncode, done.stdout) == (0, "")
    assert re.fullmatch(r"(\[transformers\] )?4\n", done.stderr)


FAMILIES = {**tiny_families.CHAT, **tiny_families.WITHOUT_TEMPLATE}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_vision_language_models_passes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", str)
    stage = Describe(model=str(tiny_families.save(tmp_path / "model", *FAMILIES[name]())), device="cpu")
    stage.fetch()
    asked = replace(stage, system_prompt="Answer in one word.")
    if name in tiny_families.CHAT:
        asked.fetch()
    else:
        assert "takes no system prompt: leave `system_prompt` empty" in refusal(asked)


OTHERS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "GGUF": ("llama.gguf", lambda path: write_tiny_gguf(path), "is a GGUF file"),
    "FastText": ("words.bin", lambda path: write_fasttext(path, ["red"]), "is word vectors of FastText"),
    "weights alone": ("a.safetensors", lambda path: save_hf_clip(path), "is a safetensors file"),
    "a folder of GGUF": ("llama", lambda path: path.mkdir() or write_tiny_gguf(path / "a.gguf"), "is a folder of GGUF"),
    "adapter": (
        "lora",
        lambda path: path.mkdir() or (path / "adapter_config.json").write_text("{}"),
        "is an adapter wi",
    ),
    "nothing": (
        "empty",
        lambda path: path.mkdir(),
        " is missing: download or copy all files of the model again, or give",
    ),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("cls", FOLDERS)
def test_a_model_of_another_kind_is_named(cls: type[ModelStage], other: str, tmp_path: Path) -> None:
    name, write, expected = OTHERS[other]
    write(tmp_path / name)
    stage = cls(model=str(tmp_path / name), device="cpu", allow_pickle=name.endswith(".bin"))
    assert expected in refusal(stage)


@pytest.mark.parametrize("cls", FOLDERS)
def test_a_model_cloned_without_its_large_files_is_named(cls: type[ModelStage], tmp_path: Path) -> None:
    def damage(folder: Path) -> None:
        [weights] = folder.glob("*.safetensors")
        weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 16\n")

    sentence = refusal(damaged(cls, tmp_path / "model", damage))
    assert sentence.endswith(
        "model.safetensors is a pointer of Git LFS in place of the file, which git lfs pull fetches"
    )


# --- a vision-language model


def test_an_engine_that_is_not_for_the_model_is_refused(tmp_path: Path) -> None:
    stage = Describe(model=str(save_llava(tmp_path)), engine="slots", device="cpu")
    with pytest.raises(UserError, match=r"^describe.engine: slots is for Qwen2-VL, .* is llava: set auto"):
        stage.fetch()
    replace(stage, engine="generate").fetch()


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("awq", r" needs another package: Loading an AWQ quantized model requires gptqmodel.* `pip install gptqmodel`"),
        ("brandnew", r" cannot be used \(ValueError: Unknown quantization type, got brandnew"),
    ],
)
def test_weights_of_a_quantisation_that_cannot_be_read_are_refused(method: str, expected: str, tmp_path: Path) -> None:
    quantised = setting("config.json", quantization_config={"quant_method": method, "bits": 4})
    assert re.search(expected, refusal(damaged(Describe, tmp_path / "model", quantised)))


def test_a_quantisation_whose_package_is_not_installed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available", lambda **_: False)
    monkeypatch.setattr(device, "dtype", lambda where: torch.bfloat16)
    stage = replace(damaged(Describe, tmp_path / "model", lambda folder: None), quantization="nf4", device="cuda")
    assert re.search(r" needs another package: .*bitsandbytes.* `pip install -U bitsandbytes", refusal(stage))


@pytest.mark.parametrize(
    ("cls", "damage"),
    [
        (Describe, setting("config.json", model_type="custom", auto_map={"AutoConfig": "custom.Config"})),
        (EmbedText, writing("modules.json", '[{"path": "", "type": "custom.Module"}]')),
        (EmbedText, setting("config.json", model_type="custom", auto_map={"AutoConfig": "custom.Config"})),
    ],
)
def test_code_of_a_model_is_not_run_but_named(cls: type[ModelStage], damage: Damage, tmp_path: Path) -> None:
    code = writing("custom.py", f"open({str(tmp_path / 'executed')!r}, 'w')")
    stage = damaged(cls, tmp_path / "model", both(damage, code))
    with pytest.raises(UserError, match=rf"runs Python files of its own: .*set {stage.name}\.trust_remote_code: true"):
        stage.fetch()
    assert not (tmp_path / "executed").exists()


# --- weights


@pytest.mark.parametrize("cls", [Describe, EmbedText])
def test_weights_in_several_files_are_used(cls: type[ModelStage], tmp_path: Path) -> None:
    stage = damaged(cls, tmp_path / "model", lambda folder: None)
    tensors = load_file(tmp_path / "model/model.safetensors")
    parts = [dict(list(tensors.items())[start::2]) for start in range(2)]
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, tmp_path / "model" / name, {"format": "pt"})
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    (tmp_path / "model/model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (tmp_path / "model/model.safetensors").unlink()
    stage.fetch()
    stage.load()
    (tmp_path / "model" / names[1]).unlink()
    assert f" lacks {names[1]} of the 2 files" in refusal(stage)


def test_pickles_in_several_files_are_looked_for_if_they_are_allowed(tmp_path: Path) -> None:
    index = writing("pytorch_model.bin.index.json", '{"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}')
    stage = damaged(EmbedText, tmp_path / "model", both(without("model.safetensors"), index), allow_pickle=True)
    assert " lacks pytorch_model-00001-of-00001.bin of the 1 files" in refusal(stage)
    assert refusal(replace(stage, allow_pickle=False)).endswith("you trust it, set allow_pickle: true")
    (tmp_path / "model/pytorch_model-00001-of-00001.bin").touch()
    stage.fetch()
    (tmp_path / "model/pytorch_model.bin.index.json").unlink()
    assert refusal(stage).endswith("/model.safetensors is missing: download or copy all files of the model again")


def test_a_clip_whose_own_weights_are_pickles_does_not_load_them_beside_others(tmp_path: Path) -> None:
    """open_clip prefers them to model.safetensors, which may be of transformers."""

    def damage(folder: Path) -> None:
        (folder / "open_clip_model.safetensors").rename(folder / "model.safetensors")
        (folder / "open_clip_pytorch_model.bin").touch()

    stage = damaged(EmbedImage, tmp_path / "model", damage)
    assert "/open_clip_model.safetensors is missing: " in refusal(stage)
    replace(stage, allow_pickle=True).fetch()
    (tmp_path / "model/open_clip_pytorch_model.bin").unlink()
    stage.fetch()
    stage.load()


HUB = {
    EmbedImage: (
        "open_clip_config.json open_clip_model.safetensors tokenizer.json tokenizer_config.json vocab.json merges.txt "
        "special_tokens_map.json",
        "open_clip_pytorch_model.bin pytorch_model.bin",
        "config.json model.safetensors preprocessor_config.json README.md .gitattributes",
    ),
    EmbedText: (
        "modules.json config.json tokenizer.json sentencepiece.bpe.model 1_Pooling/config.json model.safetensors "
        "model-00001-of-00002.safetensors model.safetensors.index.json 2_Dense/model.safetensors",
        "pytorch_model.bin 2_Dense/pytorch_model.bin",
        "onnx/model.onnx openvino/openvino_model.xml README.md",
    ),
}


@pytest.mark.parametrize("cls", HUB)
def test_of_a_repository_what_is_needed_is_downloaded(cls: type[ModelStage]) -> None:
    """laion's CLIPs have the same 0.6 GB again as a pickle."""
    needed, pickles, others = (names.split() for names in HUB[cls])
    stage, files = cls(model="a/b"), [*needed, *pickles, *others]
    assert sorted(filter_repo_objects(files, allow_patterns=list(stage.patterns))) == sorted(needed)
    allowed = replace(stage, allow_pickle=True).patterns
    assert sorted(filter_repo_objects(files, allow_patterns=list(allowed))) == sorted([*needed, *pickles])
