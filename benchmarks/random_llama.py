"""Writes a Llama of random weights, with a vocabulary of Llama 3's size, as GGUF: true speed without a download."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type
from tokenizers.pre_tokenizers import ByteLevel

from models.demo.llama_text import BEGIN, CHAT_TEMPLATE, END_OF_TURN, SPECIAL_TOKENS

VOCABULARY_TOKENS = 128_256
LONGEST_TOKEN = 8  # letters
SCALE = 0.03  # about the standard deviation of a weight
POOL_BYTES = 1 << 24  # random bytes that quantised matrices are cut from


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama, and what its matrices are stored as."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    is_quantized: bool = False  # Q4_K_M, else F16
    is_tied: bool = True  # the output layer is the embedding


LLAMA_150M = Shape(512, 22, 8, 2, 2048)
LLAMA_8B = Shape(4096, 32, 32, 8, 14336, is_quantized=True, is_tied=False)  # Llama 3.1


def write_random_llama(path: Path, shape: Shape) -> Path:
    """Write the model to `path` and return `path`. 8B parameters as Q4_K_M: 4.9 GB, as fast as the disk takes them."""
    writer = gguf.GGUFWriter(path, "llama")
    _add_shape(writer, shape)
    _add_vocabulary(writer)
    pools = {kind: _pool(kind) for kind in (Type.Q4_K, Type.Q6_K)}
    rng = np.random.default_rng(0)
    for name, rows, columns, kind in _matrices(shape):
        if kind is Type.F16:
            writer.add_tensor(name, (SCALE * rng.standard_normal((rows, columns), np.float32)).astype(np.float16))
        else:
            writer.add_tensor(name, _repeat(pools[kind], rows, columns), raw_dtype=kind)
    for name in _vectors(shape):
        writer.add_tensor(name, np.ones(shape.width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_shape(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_context_length(131_072)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_rope_freq_base(500_000.0)


def _add_vocabulary(writer: gguf.GGUFWriter) -> None:
    alphabet = sorted(ByteLevel.alphabet())
    merges = _merges(VOCABULARY_TOKENS - len(alphabet) - len(SPECIAL_TOKENS))
    tokens = [*alphabet, *(first + second for first, second in merges), *SPECIAL_TOKENS]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token in SPECIAL_TOKENS else gguf.TokenType.NORMAL for token in tokens]
    )
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokens.index(BEGIN))
    writer.add_eos_token_id(tokens.index(END_OF_TURN))
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)


def _merges(number: int) -> list[tuple[str, str]]:
    """Pairs of tokens that make new ones: all of two letters, some after a space (Ġ), then random longer ones."""
    pairs = {first + second: (first, second) for first in ("Ġ", *ascii_lowercase) for second in ascii_lowercase}
    endings = [*ascii_lowercase, *(pair for pair in pairs if "Ġ" not in pair)]
    merges, beginnings = dict(pairs), list(pairs)
    rng = random.Random(0)
    while len(merges) < number:
        first, second = rng.choice(beginnings), rng.choice(endings)
        if len(first + second) <= LONGEST_TOKEN and first + second not in merges:
            merges[first + second] = (first, second)
            beginnings.append(first + second)
    return list(merges.values())


def _matrices(shape: Shape) -> Iterator[tuple[str, int, int, Type]]:
    """Name, rows, columns and type of each; as Q4_K_M has them, the output and half of two kinds are Q6_K."""
    usual, better = (Type.Q4_K, Type.Q6_K) if shape.is_quantized else (Type.F16, Type.F16)
    kv_width = shape.width // shape.heads * shape.kv_heads
    yield "token_embd.weight", VOCABULARY_TOKENS, shape.width, better if shape.is_tied else usual
    if not shape.is_tied:
        yield "output.weight", VOCABULARY_TOKENS, shape.width, better
    for layer in range(shape.layers):
        block, some = f"blk.{layer}", better if layer % 2 else usual
        yield f"{block}.attn_q.weight", shape.width, shape.width, usual
        yield f"{block}.attn_k.weight", kv_width, shape.width, usual
        yield f"{block}.attn_v.weight", kv_width, shape.width, some
        yield f"{block}.attn_output.weight", shape.width, shape.width, usual
        yield f"{block}.ffn_gate.weight", shape.feed_forward, shape.width, usual
        yield f"{block}.ffn_up.weight", shape.feed_forward, shape.width, usual
        yield f"{block}.ffn_down.weight", shape.width, shape.feed_forward, some


def _vectors(shape: Shape) -> Iterator[str]:
    yield "output_norm.weight"
    for layer in range(shape.layers):
        yield f"blk.{layer}.attn_norm.weight"
        yield f"blk.{layer}.ffn_norm.weight"


def _pool(kind: Type) -> npt.NDArray[np.uint8]:
    """Random blocks of 256 weights around zero, one a row; any bits are valid once the scales are.

    Q4_K, 144 bytes: d and dmin (float16), 12 bytes of scales and minima, 4-bit weights q; w = d scale q - dmin min.
    Q6_K, 210 bytes: 6-bit weights q, 16 scales (int8), d (float16); w = d scale (q - 32).
    Source: https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-common.h
    """
    block_bytes = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = np.random.default_rng(0).integers(0, 256, (POOL_BYTES // block_bytes, block_bytes), np.uint8)
    if kind is Type.Q4_K:
        d = SCALE / 32 / 4.6  # 32 is the scale, 4.6 the deviation of a random q
        blocks[:, :4] = np.array([d, 7.5 * d], np.float16).view(np.uint8)
        blocks[:, 4:16] = [0b10_100000] * 8 + [0] * 4  # every scale and minimum is 32: its lower bits, its upper ones
    else:
        blocks[:, 192:208] = 32
        blocks[:, 208:] = np.array([SCALE / 32 / 18.5], np.float16).view(np.uint8)
    return blocks


def _repeat(pool: npt.NDArray[np.uint8], rows: int, columns: int) -> npt.NDArray[np.uint8]:
    """Bytes of a matrix of (rows, columns) weights, of shape (rows, bytes), from the pool again and again."""
    blocks = rows * columns // gguf.QK_K
    return np.resize(pool, (blocks, pool.shape[1])).reshape(rows, -1)
