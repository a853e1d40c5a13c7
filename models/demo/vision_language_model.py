"""Builds the untrained vision-language model: a Qwen2-VL of 2.4 million parameters with its tokenizer and processor."""

import json
import random
import re
from collections.abc import Iterable

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from models.demo.scenes import random_scene
from models.demo.vision_language_prompts import DESCRIBE, QUESTIONS, answer

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
SYSTEM_MESSAGE = "You are a helpful assistant."
# The template of Qwen/Qwen2-VL-7B-Instruct, without its optional numbering of pictures.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\n" + SYSTEM_MESSAGE + "<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}"
    "{% endif %}"
    "{% endfor %}<|im_end|>\n"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

PATCH_PX = 14
MERGED = 2  # patches along each side of what becomes one token of the language model
SMALLEST_PX2 = 56 * 56
LARGEST_PX2 = 112 * 112
VOCABULARY_SIZE = 720  # besides the special tokens

VISION = {
    "depth": 4,
    "embed_dim": 160,
    "num_heads": 5,
    "mlp_ratio": 2,
    "hidden_act": "relu",
    "patch_size": PATCH_PX,
    "spatial_merge_size": MERGED,
    "temporal_patch_size": 2,
    "in_channels": 3,
}
TEXT = {
    "hidden_size": 160,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "max_window_layers": 3,
    "rms_norm_eps": 1e-6,
    # There are few positions here, so the frequencies are high; time, height and width each get some of every band.
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [4, 3, 3, 4, 3, 3]},
}


def build_processor() -> Qwen2VLProcessor:
    """The processor: a tokenizer trained on captions and prompts, and images of up to LARGEST_PX2 pixels."""
    image_processor = Qwen2VLImageProcessor(min_pixels=SMALLEST_PX2, max_pixels=LARGEST_PX2)
    return Qwen2VLProcessor(
        image_processor=image_processor,
        tokenizer=build_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )


def build_tokenizer() -> Qwen2Tokenizer:
    """A byte-level BPE tokenizer in which a printed word is spelled letter by letter."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        min_frequency=10,
    )
    tokenizer.train_from_iterator(tokenizer_corpus(random.Random(1)), trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=trained["vocab"],
        merges=[tuple(merge) for merge in trained["merges"]],
        unk_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL_TOKENS,
        model_max_length=2048,
        padding_side="left",  # generation continues at the right end of every row
    )


def tokenizer_corpus(rng: random.Random) -> Iterable[str]:
    """Prompts and answers without printed words.

    Each is cut before its capitals. Otherwise a space and a capital would become one token, and a word's first letter
    would be another token than the same letter later in the word.
    """
    texts = [f"system\n{SYSTEM_MESSAGE}", "user\n", "assistant\n", " The text reads "] * 60
    texts += [prompt for prompt in DESCRIBE for _ in range(60)]
    for task, prompts in QUESTIONS.items():
        texts += [prompt for prompt in prompts for _ in range(20)]
        texts += [answer(random_scene(rng, held_out=False, words="none"), task) for _ in range(200)]
    texts += [random_scene(rng, held_out=False, words="none").caption() for _ in range(3000)]
    for text in texts:
        yield from re.split(r"(?<=\s)(?=[A-Z])", text)


def build_model(processor: Qwen2VLProcessor) -> Qwen2VLForConditionalGeneration:
    """The untrained model in float32, initialised from torch's current seed."""
    tokenizer = processor.tokenizer
    end_of_text, end_of_turn = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    tokens = {"bos_token_id": end_of_text, "eos_token_id": end_of_turn, "pad_token_id": end_of_text}
    config = Qwen2VLConfig(
        text_config={
            **TEXT,
            **tokens,
            "vocab_size": -(-len(tokenizer) // 16) * 16,
            "tie_word_embeddings": True,
        },
        vision_config={**VISION, "hidden_size": TEXT["hidden_size"]},
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = Qwen2VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        bos_token_id=end_of_text,
        eos_token_id=[end_of_turn, end_of_text],
        pad_token_id=end_of_text,
        do_sample=False,
        max_new_tokens=64,
    )
    initialise(model)
    return model


@torch.no_grad()
def initialise(model: Qwen2VLForConditionalGeneration) -> None:
    """Initialise by fan-in: the library's fixed deviation of 0.02 is meant for much wider networks."""
    for name, parameter in model.named_parameters():
        if "embed_tokens" in name:
            parameter.normal_(std=0.05)
        elif parameter.dim() >= 2:
            parameter.normal_(std=0.8 * parameter.flatten(1).shape[1] ** -0.5)
    for block in model.model.visual.blocks:  # additions to the residual stream start small
        block.attn.proj.weight.mul_(0.35)
        block.mlp.fc2.weight.mul_(0.35)
    for layer in model.model.language_model.layers:
        layer.self_attn.o_proj.weight.mul_(0.4)
        layer.mlp.down_proj.weight.mul_(0.4)
    model.model.visual.patch_embed.proj.weight.mul_(0.7)
