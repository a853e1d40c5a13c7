"""Writes a random Llama of a few hundred kB that has the kinds of tokens and the chat template of Llama 3.1."""

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

LAYERS, HEADS, KV_HEADS = 2, 4, 2
TRAINED_CONTEXT_TOKENS = 4096

SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
MERGES = ("t h", "th e", "i n", "a n", "an d", "Ġ t", "Ġ a", '" ,', '" }', '{ "', '" :', "Ð ¿", "Ñ Ģ", "Ð ¾", "Ċ Ċ")

VOCABULARY_TOKENS = 256 + len(MERGES) + len(SPECIAL_TOKENS)

CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{%- endif %}"
)


GEMMA_TEMPLATE = (  # the form of Gemma's: no system role, and roles that alternate
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>model<|end_header_id|>\n' }}{% endif %}"
)


def write_tiny_gguf(
    path: Path,
    chat_template: str | None = CHAT_TEMPLATE,
    seed: int = 0,
    width: int = 64,
    *,
    architecture: str = "llama",
    metadata: Mapping[str, str | int | bool] | None = None,
    has_vocabulary: bool = True,
    has_weights: bool = True,
    tensors_per_file: int = 0,
) -> Path:
    """Writes the model to `path` in float32 and returns `path`. The weights follow from `seed`.

    metadata: more entries of the header.
    tensors_per_file: in several files, of which the first is returned; 0 for one.
    """
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=tensors_per_file)
    _add_shape(writer, width)
    if has_vocabulary:
        _add_vocabulary(writer)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    for key, value in (metadata or {}).items():
        {str: writer.add_string, int: writer.add_uint32, bool: writer.add_bool}[type(value)](key, value)
    if has_weights:
        _add_weights(writer, VOCABULARY_TOKENS, width, np.random.default_rng(seed))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if path.exists() else min(path.parent.glob(f"{path.stem}-*-of-*.gguf"))


def _add_shape(writer: gguf.GGUFWriter, width: int) -> None:
    writer.add_context_length(TRAINED_CONTEXT_TOKENS)
    writer.add_embedding_length(width)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // HEADS)
    writer.add_rope_freq_base(500000.0)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def _add_vocabulary(writer: gguf.GGUFWriter) -> None:
    normal = [*_byte_letters(), *(merge.replace(" ", "") for merge in MERGES)]
    kinds = [gguf.TokenType.NORMAL] * len(normal) + [gguf.TokenType.CONTROL] * len(SPECIAL_TOKENS)
    tokens = [*normal, *SPECIAL_TOKENS]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(tokens.index("<|begin_of_text|>"))
    writer.add_eos_token_id(tokens.index("<|eot_id|>"))
    writer.add_add_bos_token(True)


def _byte_letters() -> list[str]:
    """GPT-2's visible letter for each of the 256 bytes."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = {byte: chr(byte) for byte in visible} | {byte: chr(256 + index) for index, byte in enumerate(hidden)}
    return [letters[byte] for byte in range(256)]


def _add_weights(writer: gguf.GGUFWriter, vocabulary_tokens: int, width: int, random: np.random.Generator) -> None:
    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, (random.standard_normal(shape) * 3 / shape[-1] ** 0.5).astype(np.float32))

    def add_norm(name: str) -> None:
        writer.add_tensor(name, np.ones(width, dtype=np.float32))

    head = width // HEADS
    add("token_embd.weight", vocabulary_tokens, width)
    add_norm("output_norm.weight")
    add("output.weight", vocabulary_tokens, width)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        add_norm(f"{block}.attn_norm.weight")
        add(f"{block}.attn_q.weight", width, width)
        add(f"{block}.attn_k.weight", KV_HEADS * head, width)
        add(f"{block}.attn_v.weight", KV_HEADS * head, width)
        add(f"{block}.attn_output.weight", width, width)
        add_norm(f"{block}.ffn_norm.weight")
        add(f"{block}.ffn_gate.weight", 2 * width, width)
        add(f"{block}.ffn_up.weight", 2 * width, width)
        add(f"{block}.ffn_down.weight", width, 2 * width)
