"""Translates sentences in batches, by a translation model of transformers: Marian, NLLB, M2M-100, MADLAD or T5."""

import re
import warnings
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from vec_pipeline.engines import Answer, checkpoint


class Language(NamedTuple):
    """Its English name, and its code of FLORES-200, which NLLB was trained with; the code ends in the script."""

    name: str
    code: str


LANGUAGES = {  # by the codes of `to:` and `language:`
    "ar": Language("Arabic", "arb_Arab"),
    "be": Language("Belarusian", "bel_Cyrl"),
    "bg": Language("Bulgarian", "bul_Cyrl"),
    "cs": Language("Czech", "ces_Latn"),
    "da": Language("Danish", "dan_Latn"),
    "de": Language("German", "deu_Latn"),
    "el": Language("Greek", "ell_Grek"),
    "en": Language("English", "eng_Latn"),
    "es": Language("Spanish", "spa_Latn"),
    "et": Language("Estonian", "est_Latn"),
    "fa": Language("Persian", "pes_Arab"),
    "fi": Language("Finnish", "fin_Latn"),
    "fr": Language("French", "fra_Latn"),
    "he": Language("Hebrew", "heb_Hebr"),
    "hi": Language("Hindi", "hin_Deva"),
    "hu": Language("Hungarian", "hun_Latn"),
    "hy": Language("Armenian", "hye_Armn"),
    "id": Language("Indonesian", "ind_Latn"),
    "it": Language("Italian", "ita_Latn"),
    "ja": Language("Japanese", "jpn_Jpan"),
    "ka": Language("Georgian", "kat_Geor"),
    "kk": Language("Kazakh", "kaz_Cyrl"),
    "ko": Language("Korean", "kor_Hang"),
    "lt": Language("Lithuanian", "lit_Latn"),
    "lv": Language("Latvian", "lvs_Latn"),
    "nb": Language("Norwegian", "nob_Latn"),
    "nl": Language("Dutch", "nld_Latn"),
    "pl": Language("Polish", "pol_Latn"),
    "pt": Language("Portuguese", "por_Latn"),
    "ro": Language("Romanian", "ron_Latn"),
    "ru": Language("Russian", "rus_Cyrl"),
    "sk": Language("Slovak", "slk_Latn"),
    "sv": Language("Swedish", "swe_Latn"),
    "th": Language("Thai", "tha_Thai"),
    "tr": Language("Turkish", "tur_Latn"),
    "uk": Language("Ukrainian", "ukr_Cyrl"),
    "vi": Language("Vietnamese", "vie_Latn"),
    "zh": Language("Chinese", "zho_Hans"),
}
TRANSLATOR = "a model that translates, such as Helsinki-NLP/opus-mt-en-ru or google/madlad400-3b-mt"
SENTENCE_END = re.compile(r"(?<=[.!?…])\s+(?=[^\W_]|[\"'«“(])|(?<!\s)\s*\n\s*")
OTHER_CODES = {"he": "iw", "nb": "no"}  # which M2M-100 and MADLAD have
MARK = re.compile(r"<2\w+>|__[a-z]{2,3}__|[a-z]{3}_[A-Z][a-z]{3}")  # of a language, of MADLAD, M2M-100 and NLLB
# A `"` after a digit is the sign for inches and opens nothing.
QUOTED = re.compile(r"""“([^”]{1,200})”|«([^»]{1,200})»|(?<!\d)"([^"]{1,200})"|(?<!\w)'([^']{1,200})'(?!\w)""")
MOST_TOKENS_FOR_EACH, MORE_TOKENS = 3, 16  # of an answer for a token of the sentence, and beside those
LONGEST_SENTENCE = 1024  # in tokens, of models that have no bound, such as T5
USUAL_TOKENS = 128  # of a long sentence and of its answer


class Request(NamedTuple):
    """How a model is told the languages.

    prefix: of each sentence.
    first_token: id that the answer is made to begin with; None for none.
    source: what the tokenizer calls the language of the sentence; empty where it is not told.
    """

    prefix: str = ""
    first_token: int | None = None
    source: str = ""


class Seq2Seq:
    """A model in memory. Answers are greedy, or by as many beams as the model's own generation settings say."""

    def __init__(
        self, path: Path, language: str, to: str, where: str, dtype: Any = None, *, allow_pickle: bool = False
    ) -> None:
        """language, to: keys of LANGUAGES. where: a device of torch. dtype: a torch.dtype, None for float32."""
        import torch
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        warnings.filterwarnings(
            "ignore", message="Recommended: pip install sacremoses"
        )  # which changes quotation marks
        disable_progress_bar()  # of reading files, in the middle of the worker's own; downloads have theirs
        offline = {"local_files_only": True, "trust_remote_code": False}
        self.tokenizer = AutoTokenizer.from_pretrained(path, **offline)
        self.model = AutoModelForSeq2SeqLM.from_pretrained(
            path, dtype=dtype or torch.float32, use_safetensors=None if allow_pickle else True, **offline
        )
        self.model.to(where).eval()
        self._request = request_of(self.tokenizer, self.model.config, path, language, to)
        if self._request.source:
            self.tokenizer.src_lang = self._request.source
        settings = self.model.generation_config
        settings.max_length = settings.forced_eos_token_id = None  # else an answer that is cut off looks complete

    def translate(self, texts: Sequence[str], at_once: int) -> list[Answer]:
        """Translate each text, sentence by sentence: that is what these models are trained on.

        at_once: sentences in one batch.

        A sentence without words, such as the number of a list, is copied. The answer to a text has an error where one
        of its sentences is longer than the model reads.
        """
        parts = [sentences(text) for text in texts]
        distinct = sorted({sentence for pairs in parts for sentence, _ in pairs}, key=len)
        found = {sentence: Answer(sentence, True, 0) for sentence in distinct if not has_words(sentence)}
        distinct = [sentence for sentence in distinct if sentence not in found]
        for start in range(0, len(distinct), at_once):
            some = distinct[start : start + at_once]
            found |= zip(some, self._batch(some), strict=True)
        return [joined([(found[sentence], space) for sentence, space in pairs]) for pairs in parts]

    def _batch(self, some: Sequence[str]) -> list[Answer]:
        import torch

        prompts = [self._request.prefix + each for each in some]
        tokens = self.tokenizer(prompts, padding=True, return_tensors="pt", verbose=False)  # no warning of its length
        lengths, longest = tokens["attention_mask"].sum(dim=1).tolist(), most_tokens(self.tokenizer, self.model.config)
        if max(lengths) > longest:
            return self._without_long_ones(some, lengths, longest)
        most_new = min(MOST_TOKENS_FOR_EACH * max(lengths) + MORE_TOKENS, longest - 1)
        with torch.inference_mode():
            answers = self.model.generate(
                input_ids=tokens["input_ids"].to(self.model.device),
                attention_mask=tokens["attention_mask"].to(self.model.device),
                forced_bos_token_id=self._request.first_token,
                max_new_tokens=most_new,
                do_sample=False,
            )
        texts = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        end = self.tokenizer.eos_token_id
        sizes = [ids.index(end) + 1 if end in ids else 0 for ids in answers[:, 1:].tolist()]
        return [
            Answer(text.strip(), is_complete=size > 0, tokens=size or most_new)
            for text, size in zip(texts, sizes, strict=True)
        ]

    def _without_long_ones(self, some: Sequence[str], lengths: Sequence[int], longest: int) -> list[Answer]:
        short = [each for each, length in zip(some, lengths, strict=True) if length <= longest]
        found = iter(self._batch(short) if short else [])
        return [
            next(found)
            if length <= longest
            else Answer("", False, 0, error=f"LongSentence: it has {length} tokens, and the model reads {longest}")
            for length in lengths
        ]

    def bytes_per_sentence(self) -> int:
        """Memory that a long sentence takes: keys and values of two attentions in each layer, and the probabilities."""
        config = self.model.config
        width, layers = config.hidden_size, config.num_hidden_layers
        return int(4 * (4 * USUAL_TOKENS * width * layers + 4 * USUAL_TOKENS * width + 2 * config.vocab_size))


def most_tokens(tokenizer: Any, config: Any) -> int:
    """Tokens that a model reads at once."""
    positions = getattr(config, "max_position_embeddings", None) or LONGEST_SENTENCE
    return int(min(tokenizer.model_max_length, positions, LONGEST_SENTENCE))


def has_words(text: str) -> bool:
    """Whether there is anything to translate: letters outside quotation marks."""
    return any(map(str.isalpha, QUOTED.sub("", text)))


def sentences(text: str) -> list[tuple[str, str]]:
    """The sentences of a text, each with the white space that follows it. Quoted text is never parted."""
    quoted = [(0, 0), *(match.span() for match in QUOTED.finditer(text))]
    starts = [first for first, _ in quoted]
    found, start = [], 0
    for end in SENTENCE_END.finditer(text):
        _, last = quoted[bisect_left(starts, end.start(), lo=1) - 1]  # the nearest that begins before
        if end.start() >= last - 1:
            found.append((text[start : end.start()], end[0]))
            start = end.end()
    return [(sentence, space) for sentence, space in [*found, (text[start:], "")] if sentence.strip()]


def joined(parts: Sequence[tuple[Answer, str]]) -> Answer:
    """One answer of those of its sentences, each with the white space after it."""
    return Answer(
        "".join(answer.text + space for answer, space in parts).strip(),
        all(answer.is_complete for answer, _ in parts),
        sum(answer.tokens for answer, _ in parts),
        error=next((answer.error for answer, _ in parts if answer.error), ""),
    )


def request_of(tokenizer: Any, config: Any, path: Path, language: str, to: str) -> Request:
    """How the model of a folder is told to translate from one language to another.

    Raises ValueError where it translates between others.
    """
    known, code = tokenizer.get_vocab(), LANGUAGES[to].code
    if by_language := {mark.strip("<2>_"): mark for mark in known if MARK.fullmatch(mark)}:
        return request_by_marks(known, by_language, path, language, to)
    if marks := [mark for mark in known if mark.startswith(">>") and mark.endswith("<<")]:  # Marian with several
        own = next((mark for mark in (f">>{to}<<", f">>{code[:3]}<<", f">>{code}<<") if mark in marks), None)
        return Request(prefix=f"{own} ") if own else refuse(path, [mark[2:-2] for mark in marks], to, to)
    if tasks := [task for task in getattr(config, "task_specific_params", None) or {} if task[:12] == "translation_"]:
        task = f"translation_{language}_to_{to}"  # T5
        return Request(config.task_specific_params[task]["prefix"]) if task in tasks else refuse(path, tasks, to, to)
    of_file = {**tokenizer.init_kwargs, **vars(tokenizer)}
    for name, wanted in (("source_lang", language), ("target_lang", to)):
        said = of_file.get(name)
        if said and said not in (wanted, LANGUAGES[wanted].code, LANGUAGES[wanted].code[:3]):
            direction = f"from {of_file.get('source_lang')} to {of_file.get('target_lang')}"
            raise ValueError(f"{path} translates {direction}, and not from {language} to {to}: give another model")
    is_told = of_file.get("source_lang") and of_file.get("target_lang")
    if not is_told and config.model_type != "marian":  # a Marian of one direction is nothing but a translator
        raise ValueError(f"{path} does not say which languages it translates: give {TRANSLATOR}")
    return Request()


def request_by_marks(known: Mapping[str, int], marks: Mapping[str, str], path: Path, language: str, to: str) -> Request:
    """The request to a model whose vocabulary has a mark for each of its languages. Raises ValueError for others."""
    own = next((marks[name] for name in spellings(to) if name in marks), None)
    if not own:
        return refuse(path, list(marks), to, to)
    if own.startswith("<2"):  # MADLAD, which is not told the language of the text
        return Request(prefix=f"{own} ")
    source = next((name for name in spellings(language) if name in marks), None)  # NLLB, M2M-100
    return Request(first_token=known[own], source=source) if source else refuse(path, list(marks), language, to)


def spellings(language: str) -> list[str]:
    """What models may call a language of LANGUAGES."""
    return [language, *filter(None, [OTHER_CODES.get(language)]), LANGUAGES[language].code]


def refuse(path: Path, known: Sequence[str], missing: str, to: str) -> Request:
    """Raises ValueError, as the model knows other languages than the missing one."""
    names = ", ".join(sorted(known)[:9]) + (", ..." if known[9:] else "")
    way, option = ("to", "to") if missing == to else ("from", "language")
    raise ValueError(
        f"{path} does not translate {way} {missing}: it knows {names}: give another model, or change `{option}:`"
    )


def check_translator(folder: Path, language: str, to: str, *, allow_pickle: bool) -> None:
    """Raise ValueError unless a folder holds a model that translates between two languages; without its weights."""
    from transformers import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, AutoConfig, AutoTokenizer

    with checkpoint.reading(folder):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if type(config) not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        raise ValueError(f"{folder} is a {config.model_type} model, which does not translate: give {TRANSLATOR}")
    checkpoint.check_weights(folder, allow_pickle=allow_pickle)
    if any(folder.glob("*.spm")) and not find_spec("sentencepiece"):
        raise ValueError(f"{folder} needs sentencepiece: pip install 'vec-pipeline[translate]'")
    with checkpoint.reading(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    checkpoint.check_tokenizer(tokenizer, folder)
    request_of(tokenizer, config, folder, language, to)
