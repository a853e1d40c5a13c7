"""Write a Llama and its tokenizer as a GGUF file that llama.cpp loads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter, LlamaFileType, TokenType
from tokenizers import Tokenizer
from torch import Tensor

from models.demo.llama_text import BEGIN, CHAT_TEMPLATE, END_OF_TURN, SPECIAL_TOKENS


def write_gguf(path: Path, shape: Mapping[str, Any], weights: Mapping[str, Tensor], tokenizer: Tokenizer) -> None:
    """Write matrices as float16 and vectors as float32; the same weights give the same bytes.

    shape: the fields of train_llama.Shape. weights: named as in GGUF, with or without the final ".weight"; queries and
    keys pair neighbouring features for the rotary positions, as llama.cpp expects for this architecture (weights in the
    layout of transformers would have to be permuted first).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    writer = GGUFWriter(unfinished, "llama")
    _add_shape(writer, shape)
    _add_tokenizer(writer, tokenizer)
    for name, weight in weights.items():
        array = weight.detach().numpy().astype(np.float16 if weight.ndim == 2 else np.float32)
        writer.add_tensor(name if name.endswith(".weight") else f"{name}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.replace(path)


def _add_shape(writer: GGUFWriter, shape: Mapping[str, Any]) -> None:
    writer.add_name("demo-llama")
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_vocab_size(shape["vocabulary_size"])
    writer.add_context_length(shape["context_length"])
    writer.add_embedding_length(shape["embedding_length"])
    writer.add_block_count(shape["block_count"])
    writer.add_feed_forward_length(shape["feed_forward_length"])
    writer.add_head_count(shape["head_count"])
    writer.add_head_count_kv(shape["head_count"])
    writer.add_rope_dimension_count(shape["embedding_length"] // shape["head_count"])
    writer.add_rope_freq_base(shape["rope_freq_base"])
    writer.add_layer_norm_rms_eps(shape["rms_epsilon"])


def _add_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer) -> None:
    tokens = [tokenizer.id_to_token(index) for index in range(tokenizer.get_vocab_size())]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in SPECIAL_TOKENS else TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokenizer.token_to_id(BEGIN))
    writer.add_eos_token_id(tokenizer.token_to_id(END_OF_TURN))
    writer.add_eot_token_id(tokenizer.token_to_id(END_OF_TURN))
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)
