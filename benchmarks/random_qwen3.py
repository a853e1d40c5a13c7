"""Qwen3-VL of random weights, in memory: true speed without a download."""

from typing import Any

import torch

from benchmarks.random_models import SPECIAL_TOKENS_FROM, TOKENS, qwen_processor

PATCH_PX, CELL_PX = 16, 32  # sides of a patch, and of the patches merged into one token
TEXT_4B: dict[str, Any] = {
    "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True
    },
}  # fmt: skip
VISION_4B = {
    "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "out_hidden_size": 2560,
    "num_position_embeddings": 48**2, "deepstack_visual_indexes": [5, 11, 17],
}  # fmt: skip
TEXT_150M = TEXT_4B | {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 16,
    "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 16384,
    "rope_parameters": TEXT_4B["rope_parameters"] | {"mrope_section": [12, 10, 10]},
}  # fmt: skip
VISION_150M = VISION_4B | {
    "depth": 8, "hidden_size": 384, "intermediate_size": 1536, "num_heads": 6, "out_hidden_size": 768,
    "deepstack_visual_indexes": [1, 3, 5],
}  # fmt: skip


def random_qwen3(text: dict[str, Any], vision: dict[str, Any], dtype: torch.dtype, device: str = "cpu") -> Any:
    """A Qwen3-VL whose answers have exactly `max_new_tokens` tokens, all of them words or letters."""
    from transformers import AutoModelForImageTextToText, Qwen3VLConfig

    torch.manual_seed(0)
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **TOKENS)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
    model.lm_head.weight.data[SPECIAL_TOKENS_FROM:] = 0.0  # never the best: some of the others is above zero
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 710
    return model


def qwen3_processor(image_px: int) -> Any:
    """The bundled tokenizer and template, for images of `image_px` x `image_px` pixels at most."""
    processor = qwen_processor(image_px)
    images = processor.image_processor
    images.patch_size = PATCH_PX
    images.size = {"shortest_edge": (2 * CELL_PX) ** 2, "longest_edge": (-(-image_px // CELL_PX) * CELL_PX) ** 2}
    return processor
