"""A set of models with random weights, in memory or as the folders that run.py loads: true speed without a download.

The tokenizers and the FastText vectors are those of the bundled models: a look-up of words costs almost nothing at any
size.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.random_llama import LLAMA_8B, LLAMA_150M, Shape, write_random_llama

PROJECT = Path(__file__).resolve().parent.parent
DEMO = PROJECT / "models" / "demo"
TOKENS = {"image_token_id": 721, "video_token_id": 722, "vision_start_token_id": 718, "vision_end_token_id": 719}
SPECIAL_TOKENS_FROM = 709  # of the bundled tokenizer: what is before are words and letters

TEXT_7B: dict[str, Any] = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 152064,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}  # fmt: skip
VISION_7B = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "hidden_size": 3584}
TEXT_150M = TEXT_7B | {
    "hidden_size": 768, "intermediate_size": 4096, "num_hidden_layers": 10, "num_attention_heads": 12,
    "num_key_value_heads": 2, "vocab_size": 16384,
    "rope_parameters": TEXT_7B["rope_parameters"] | {"mrope_section": [8, 12, 12]},
}  # fmt: skip
VISION_150M = {"depth": 6, "embed_dim": 384, "num_heads": 6, "mlp_ratio": 4, "hidden_size": 768}


@dataclass(frozen=True)
class Set:
    """Shapes of the models of a whole pipeline, and what they are given. CLIP is a ViT-B-32 in each."""

    device: str
    text: dict[str, Any]
    vision: dict[str, Any]
    sentence_vocabulary: int  # of a BERT of 12 layers, 768 wide
    llama: Shape
    image_px: int
    new_tokens: int
    chunk_size: int | str = "auto"


OF_150M = Set("cpu", TEXT_150M, VISION_150M, 32_000, LLAMA_150M, 112, 64)
PRODUCTION = Set("cuda", TEXT_7B, VISION_7B, 250_002, LLAMA_8B, 384, 128, chunk_size=128)  # so that two workers overlap


def write_set(folder: Path, models: Set) -> Path:
    """Write the models and a configuration that names them into `folder`; return the configuration's path."""
    write_qwen(folder / "qwen", models)
    write_sentences(folder / "sentences", models.sentence_vocabulary)
    write_clip(folder / "clip")
    write_random_llama(folder / "llama.gguf", models.llama)
    config = {
        "device": models.device,
        "chunk_size": models.chunk_size,
        "stages": [
            {"use": "open_image", "max_size_px": models.image_px},
            {"use": "describe", "model": str(folder / "qwen"), "max_new_tokens": models.new_tokens},
            {"use": "embed_text", "model": str(folder / "sentences")},
            {"use": "embed_words", "model": str(DEMO / "words" / "words.bin")},
            {"use": "embed_image", "model": str(folder / "clip")},
            {"use": "structure", "model": str(folder / "llama.gguf")},
        ],
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def write_qwen(folder: Path, models: Set) -> None:
    dtype = torch.bfloat16 if models.device == "cuda" else torch.float32
    model = random_qwen(models.text, models.vision, dtype, models.device)
    model.save_pretrained(folder)
    del model
    torch.cuda.empty_cache()  # the worker needs the memory
    qwen_processor(models.image_px).save_pretrained(folder)


def random_qwen(text: dict[str, Any], vision: dict[str, Any], dtype: torch.dtype, device: str = "cpu") -> Any:
    """A Qwen2-VL whose answers have exactly `max_new_tokens` tokens, all of them words or letters."""
    from transformers import AutoModelForImageTextToText, Qwen2VLConfig

    torch.manual_seed(0)
    text = text | {"bos_token_id": None, "eos_token_id": None}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **TOKENS)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
    model.lm_head.weight.data[SPECIAL_TOKENS_FROM:] = 0.0  # never the best: some of the others is above zero
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 710
    return model


def qwen_processor(image_px: int) -> Any:
    """The bundled tokenizer and template, for images of `image_px` x `image_px` pixels at most."""
    from transformers import AutoImageProcessor, AutoProcessor

    bundled = DEMO / "vision_language"
    processor = AutoProcessor.from_pretrained(bundled)
    size = {"shortest_edge": 56 * 56, "longest_edge": (-(-image_px // 28) * 28) ** 2}
    processor.image_processor = AutoImageProcessor.from_pretrained(bundled, backend="pil", size=size)
    return processor


def write_sentences(folder: Path, vocabulary: int) -> None:
    """A SentenceTransformer of the base size for texts of up to 512 tokens."""
    from transformers import BertConfig, BertModel

    shutil.copytree(DEMO / "sentences", folder)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=vocabulary), add_pooling_layer=False).save_pretrained(folder)
    change_json(folder / "1_Pooling" / "config.json", embedding_dimension=768)
    change_json(folder / "tokenizer_config.json", model_max_length=512)


def write_clip(folder: Path) -> None:
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32")
    folder.mkdir()
    save_file({name: weight.contiguous() for name, weight in model.state_dict().items()},
              folder / "open_clip_model.safetensors")  # fmt: skip
    preprocess = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
    config = {"model_cfg": open_clip.get_model_config("ViT-B-32"), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
