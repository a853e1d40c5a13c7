"""Writes random translation models of a few hundred kB in the layouts of the hub: Marian, NLLB, M2M-100, MADLAD, T5."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

WIDTH = 16
SENTENCES = [
    "A red car, 2 cats. SALE",
    "Красная машина, 2 кошки. Надпись",
    "Two blue houses, one with a key",
    "Синий дом",
] * 50
LETTERS = sorted({letter for text in SENTENCES for letter in text if letter != " "})


def write_marian(folder: Path, **tokenizer_options: Any) -> Path:
    """As Helsinki-NLP/opus-mt-*: two files of SentencePiece and a vocabulary. Needs sentencepiece."""
    sentencepiece = import_module("sentencepiece")  # which mypy need not find
    from transformers import MarianConfig, MarianMTModel

    folder.mkdir(parents=True, exist_ok=True)
    pieces = []
    for name in ("source", "target"):
        with (folder / f"{name}.spm").open("wb") as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(SENTENCES),
                model_writer=file,
                vocab_size=70,
                character_coverage=1.0,
                hard_vocab_limit=False,
                minloglevel=2,
            )
        processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{name}.spm"))
        pieces += [processor.id_to_piece(index) for index in range(processor.get_piece_size())]
    words = list(dict.fromkeys(["</s>", "<unk>", *tokenizer_options.pop("marks", ()), *pieces, "<pad>"]))
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    options = {"tokenizer_class": "MarianTokenizer", "model_max_length": 512, **tokenizer_options}
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    pad = words.index("<pad>")
    config = MarianConfig(
        vocab_size=len(words), pad_token_id=pad, decoder_start_token_id=pad, eos_token_id=0, **bart_shape()
    )
    MarianMTModel(config).save_pretrained(folder)
    return folder


def write_nllb(folder: Path) -> Path:
    """As facebook/nllb-200-*: an M2M-100 whose tokenizer knows languages as rus_Cyrl."""
    from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

    vocab = {token: index for index, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "▁", *LETTERS])}
    tokenizer = NllbTokenizer(vocab=vocab, merges=[], model_max_length=1024)
    tokenizer.save_pretrained(folder)
    config = M2M100Config(vocab_size=len(tokenizer), max_position_embeddings=1024, **bart_shape())
    M2M100ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def write_t5(folder: Path, tokens: tuple[str, ...] = (), **config_options: Any) -> Path:
    """As google/madlad400-3b-mt, with its tokens `<2ru>`, or as T5, with `task_specific_params`."""
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((each, -1.0) for each in tokens), ("▁", -2.0)]
    tokenizer = T5Tokenizer(vocab=[*pieces, *((each, -3.0) for each in LETTERS)], extra_ids=0)
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    tokenizer.save_pretrained(folder)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=WIDTH, d_kv=4, d_ff=32, num_layers=1, num_heads=2, **config_options
    )
    config.decoder_start_token_id = 0
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def bart_shape() -> dict[str, int]:
    sides = ("encoder", "decoder")
    return {"d_model": WIDTH} | {
        f"{side}_{name}": value
        for side in sides
        for name, value in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))
    }
