"""description -> description_ru and the like, by a translation model, a Llama of llama.cpp or a server."""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from vec_pipeline import device
from vec_pipeline.device import Device
from vec_pipeline.engines import Answer, Message
from vec_pipeline.engines.endpoint import Endpoint
from vec_pipeline.engines.translation import LANGUAGES, QUOTED, TRANSLATOR, Seq2Seq, check_translator, has_words
from vec_pipeline.record import Interrupted, Need, Stage, UserError, Values
from vec_pipeline.remote import RemoteStage
from vec_pipeline.stages.structure import Structure

PROMPT = (
    "Translate the text of the user from {language} to {to}. Copy numbers, names and everything in quotation marks "
    "unchanged. Answer with the translation alone."
)
MOST_TOKENS = 1024  # of one answer of a language model
MOST_FOR_A_LETTER, MORE_TOKENS = 3, 64  # tokens of an answer of llama: a small model may repeat itself without end
MOST_SENTENCES = {"cpu": 16, "cuda": 128, "mps": 32}  # at once; more are no faster
SHARE_OF_FREE = 0.25  # of the memory, left to one batch of sentences

WORD = re.compile(r"[^\W_]+")
NUMBER = re.compile(r"\d+")
GROUPED = re.compile(r"\d{1,3}(?:[.,'’٬\s]\d{3})+(?!\d)|\d+")  # with what parts its thousands
REPEATED_SHARE, LEAST_WORDS = 0.8, 4  # words of the source from which on an answer is no translation, and of how many
NEAR = ({"da", "nb", "sv"}, {"cs", "sk"})  # languages in which a whole sentence may be the same
LETTERS_OF_NEIGHBOURS = {"ru": "іїєґў", "uk": "ыэёъў", "be": "иїєґъ"}  # which no word of the language has
SCRIPTS = {  # of an answer, by the end of the language's code, as Unicode's names of letters begin
    "Arab": ("ARABIC",),
    "Armn": ("ARMENIAN",),
    "Cyrl": ("CYRILLIC",),
    "Deva": ("DEVANAGARI",),
    "Geor": ("GEORGIAN",),
    "Grek": ("GREEK",),
    "Hang": ("HANGUL",),
    "Hans": ("CJK",),
    "Hebr": ("HEBREW",),
    "Jpan": ("HIRAGANA", "KATAKANA", "CJK"),
    "Latn": ("LATIN",),
    "Thai": ("THAI",),
}


@dataclass(frozen=True, kw_only=True)
class Translate(RemoteStage):
    """Translates columns of text, each to a column of its name, `_` and the language.

    A translation that lacks a number or a quoted text of its source is asked for once more, with them hidden; one that
    lacks it still, that ends too early or is in another language is an error of the row. What has no words to
    translate stays as it is.

    texts: the columns.
    to: the language of the translation, such as ru; docs/translate.md lists them.
    language: of the texts.
    model: of seq2seq a folder or hub name, of llama a GGUF file, or a hub repository with `file`; or the server's name.
    engine: auto is llama for a GGUF file, else seq2seq; or endpoint, see docs/endpoints.md.
    batch_size: sentences at once (seq2seq), answers at once (llama), or requests in flight.
    context_tokens, threads: of llama, as in structure, with which it shares a model where these, `model`, `file`,
    `revision`, `device` and `batch_size` are the same.
    """

    required: ClassVar[str] = "config.json"
    files: ClassVar[tuple[str, ...]] = ("*.json", "*.safetensors", "*.spm", "*.model", "*.txt")
    speed_options: ClassVar[tuple[str, ...]] = (*RemoteStage.speed_options, "engine", "context_tokens", "threads")
    local_options: ClassVar[tuple[str, ...]] = (*RemoteStage.local_options, "file")
    call_options: ClassVar[tuple[str, ...]] = ("texts",)

    texts: tuple[str, ...] = ("description",)
    to: str = "ru"
    language: str = "en"
    file: str = ""
    context_tokens: int = 2048
    threads: int = 0
    device: Device = "auto"
    engine: Literal["auto", "llama", "seq2seq", "endpoint"] = "auto"
    batch_size: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        """Raises ValueError for a language that is not known, and for options that do not go together."""
        super().__post_init__()
        for option in ("to", "language"):
            if getattr(self, option) not in LANGUAGES:
                raise ValueError(f"{option}: {getattr(self, option)!r} is not one of {', '.join(LANGUAGES)}")
        if self.to == self.language:
            raise ValueError(f"to: {self.to} is the language of the texts already: set `to:` or `language:` to another")
        if not self.texts or len(set(self.texts)) < len(self.texts):
            raise ValueError("texts: give the names of columns, each once, such as [description]")
        object.__setattr__(self, "reads", self.texts)
        object.__setattr__(self, "writes", {self.translated(name): "text" for name in self.texts})
        if self.is_llama or self.is_remote:
            object.__setattr__(self, "worker", "child")
            object.__setattr__(self, "refills", True)
        if self.is_llama:
            _ = self._llama  # raises ValueError for options that llama.cpp cannot have

    def translated(self, name: str) -> str:
        """The own name of the column with the translation of another."""
        return f"{name}_{self.to}"

    @property
    def is_llama(self) -> bool:
        """Whether llama.cpp runs the model on this machine."""
        is_gguf = bool(self.file) or self.model.endswith(".gguf")
        return self.engine == "llama" or (self.engine == "auto" and is_gguf)

    @cached_property
    def _llama(self) -> Structure:
        """The stage that loads the same Llama: one whose options are these shares it."""
        names = ("name", "model", "file", "revision", "context_tokens", "threads", "device", "batch_size")
        return Structure(**{name: getattr(self, name) for name in (*names, "allow_pickle")})

    @cached_property
    def loaded_as(self) -> Stage:
        return self._llama.loaded_as if self.is_llama else super().loaded_as

    @property
    def patterns(self) -> tuple[str, ...]:
        return self._llama.patterns if self.is_llama else super().patterns

    def path(self, option: str = "model", *, is_offline: bool = True) -> Path:
        find = self._llama.path if self.is_llama else super().path
        return find(option, is_offline=is_offline)

    def check(self, path: Path) -> None:
        from vec_pipeline.engines import checkpoint

        if self.is_llama:
            self._llama.check(path)
            return
        try:
            checkpoint.refuse_other(path, self.required, TRANSLATOR)
            super().check(path)
            check_translator(path, self.language, self.to, allow_pickle=self.allow_pickle)
        except ValueError as error:
            if "trust_remote_code" in str(error):
                error = ValueError(f"{path} runs Python files of its own: give {TRANSLATOR}")
            raise UserError(f"{self.name}: {error}") from None

    def weights_gb(self) -> float:
        return self._llama.weights_gb() if self.is_llama else super().weights_gb()

    def need(self) -> Need:
        if self.is_llama:
            return self._llama.need()
        gb = 0.0 if self.is_remote else self.weights_gb()
        return Need(gpu_gb=gb) if gb and device.resolve(self.device) == "cuda" else Need(host_gb=gb)

    def identity(self) -> str:
        return self._prompt if self.is_llama or self.is_remote else ""

    def load(self) -> Any:
        if self.is_remote:
            return Endpoint(self.endpoint, self.model, ({},))
        if self.is_llama:
            return self._llama.load()
        where = device.resolve(self.device)
        dtype = device.dtype(where)
        return Seq2Seq(self.path(), self.language, self.to, where, dtype, allow_pickle=self.allow_pickle)

    def auto_batch_size(self, model: Any, reserved_gb: float) -> int:
        if self.is_remote:
            return super().auto_batch_size(model, reserved_gb)
        if self.is_llama:
            return self._llama.auto_batch_size(model, reserved_gb)
        where = device.resolve(self.device)
        return device.rows_that_fit(where, model.bytes_per_sentence(), SHARE_OF_FREE, MOST_SENTENCES, reserved_gb)

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        found: dict[str, Answer] = {}  # by text: many pictures have the same
        texts = dict.fromkeys(self._text(row, name) for row in rows for name in self.texts)
        try:
            self._translate(model, [text for text in texts if has_words(text)], at_once, found)
        except Interrupted as error:
            raise Interrupted(str(error), [self._row(row, found) for row in rows]) from None
        return [self._row(row, found) or {} for row in rows]

    def _text(self, row: Values, name: str) -> str:
        """Raises UserError for a value that is no text."""
        if not isinstance(row[name], str):
            raise UserError(f"{self.name}: {name} holds no text: take it out of {self.name}.texts")
        return str(row[name])

    def _translate(self, model: Any, texts: Sequence[str], at_once: int, found: dict[str, Answer]) -> None:
        """Note the answer to each text in `found`, and once more to those whose answer lacks something.

        Raises Interrupted, with the answers so far in `found`.
        """
        self._ask(model, {text: text for text in texts}, at_once, found)
        lost = {text: lost_parts(text, found[text].text) for text in texts if not problem(found[text])}
        hidden = {text: Hidden(text, parts) for text, parts in lost.items() if parts}
        again: dict[str, Answer] = {}
        earlier = {text: found.pop(text) for text in hidden}
        try:
            self._ask(model, {text: each.text for text, each in hidden.items()}, at_once, again)
        finally:
            for text, answer in again.items():
                shown = hidden[text].shown(answer.text)
                is_better = not problem(answer) and not lost_parts(text, shown)
                found[text] = Answer(shown, True, answer.tokens) if is_better else earlier[text]

    def _ask(self, model: Any, texts: Mapping[str, str], at_once: int, found: dict[str, Answer]) -> None:
        """Note the answers to the values of `texts` by their keys. Raises Interrupted, with those that there are."""
        if not texts:
            return
        try:
            answers = self._answers(model, list(texts.values()), at_once)
        except Interrupted as error:
            found |= {text: answer for text, answer in zip(texts, error.results, strict=True) if answer}
            raise
        found |= zip(texts, answers, strict=True)

    def _answers(self, model: Any, texts: list[str], at_once: int) -> list[Answer]:
        if not (self.is_llama or self.is_remote):
            return list(model.translate(texts, at_once))
        conversations = [self._conversation(text) for text in texts]
        if self.is_remote:
            return list(model.ask([partial(list, each) for each in conversations], MOST_TOKENS, at_once))
        most = min(MOST_TOKENS, self.context_tokens // 2, MORE_TOKENS + MOST_FOR_A_LETTER * max(map(len, texts)))
        answers = model.generate(conversations, None, most, at_once)
        error = f"LongText: the text does not fit into {self.context_tokens:,} tokens: raise {self.name}.context_tokens"
        return [each if each.is_complete or each.tokens else replace(each, error=error) for each in answers]

    @property
    def _prompt(self) -> str:
        return PROMPT.format(language=LANGUAGES[self.language].name, to=LANGUAGES[self.to].name)

    def _conversation(self, text: str) -> list[Message]:
        return [{"role": "system", "content": self._prompt}, {"role": "user", "content": text}]

    def _row(self, row: Values, found: Mapping[str, Answer]) -> Values | None:
        """The columns of a row; None where an answer is missing, as the run ends."""
        values: Values = {}
        for name in self.texts:
            text = self._text(row, name)
            if has_words(text) and text not in found:
                return None
            answer = found[text].text.strip() if has_words(text) else text
            error = self._error(text, found[text]) if has_words(text) else ""
            if error:
                kind, _, words = error.partition(": ")
                values.setdefault("error", f"{kind}: {self.translated(name)}: {words}")
            else:
                values[self.translated(name)] = answer
        return values

    def _error(self, text: str, answer: Answer) -> str:
        """What is wrong with a translation, its kind first; empty for a good one."""
        if error := problem(answer):
            return error
        if parts := lost_parts(text, answer.text):
            return f"LostText: the translation lacks {', '.join(map(repr, parts))}: {shortened(answer.text)}"
        if is_other_language(text, answer.text, self.language, self.to):
            return f"WrongLanguage: the translation is not {LANGUAGES[self.to].name}: {shortened(answer.text)}"
        return ""


class Hidden:
    """A text in which parts are replaced by X1, X2 and so on, which models copy where they would translate."""

    def __init__(self, text: str, parts: Sequence[str]) -> None:
        letter = next((letter for letter in "XZQJW" if f"{letter}1" not in text), "X")
        self._parts = {f"{letter}{index}": part for index, part in enumerate(parts, 1)}
        self.text = text
        for mark, part in sorted(self._parts.items(), key=lambda item: -len(item[1])):
            self.text = re.sub(rf"(?<!\w){re.escape(part)}(?!\w)", mark, self.text)

    def shown(self, answer: str) -> str:
        """The answer with the parts again in the places of their marks."""
        return re.sub(r"\b[A-Z]\d+\b", lambda match: self._parts.get(match[0], match[0]), answer)


def problem(answer: Answer) -> str:
    """Why an answer is no translation at all, its kind first; empty where it may be one."""
    if answer.error:
        return answer.error
    if not answer.is_complete:
        return f"CutAnswer: the translation ends after {answer.tokens} tokens: {shortened(answer.text)}"
    return "" if answer.text.strip() else "EmptyAnswer: the translation is empty"


def shortened(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:99] + "…")


def quoted_texts(text: str) -> list[str]:
    return [next(filter(None, match.groups())) for match in QUOTED.finditer(text)]


def lost_parts(source: str, answer: str) -> list[str]:
    """The quoted texts and the numbers of a text that its translation lacks.

    Numbers are compared digit by digit, as 1,000.5 is written 1 000,5 or with other digits elsewhere. None is lost
    that is there either with its thousands parted or without.
    """
    quoted = [part for part in dict.fromkeys(quoted_texts(source)) if part not in answer]
    texts = without_quoted(source, source), without_quoted(answer, source)
    numbers = lost_numbers(*texts, NUMBER)
    return [*quoted, *(numbers if numbers and lost_numbers(*texts, GROUPED) else [])]


def lost_numbers(source: str, answer: str, pattern: re.Pattern[str]) -> list[str]:
    """The numbers of a text, each once, that its translation has less often."""
    left = Counter(digits(number) for number in pattern.findall(answer))
    left.subtract(digits(match[0]) for match in pattern.finditer(source) if stands_alone(match))
    numbers = [match[0] for match in pattern.finditer(source) if stands_alone(match)]
    return [number for number in dict.fromkeys(numbers) if left[digits(number)] < 0]


def digits(number: str) -> str:
    """Its digits alone, as 0 to 9."""
    return "".join(str(unicodedata.decimal(letter)) for letter in number if letter.isdecimal())


def stands_alone(number: re.Match[str]) -> bool:
    """Whether a number is no part of a word such as 3D, which is translated."""
    text, start, end = number.string, number.start(), number.end()
    around = text[max(0, start - 1) : start] + text[end : end + 1]
    return around.lower() == around.upper()  # which scripts without spaces, in which numbers touch words, do not change


def without_quoted(text: str, source: str) -> str:
    """A text, or its translation, without what is quoted in its source, as often as it is quoted there."""
    for part, times in Counter(quoted_texts(source)).items():
        text = text.replace(part, " ", times)
    return text


def names(text: str) -> Iterator[str]:
    """Words that may be names: in capitals, or with one in the middle of a sentence. None in a text in capitals."""
    words = WORD.findall(text)
    if len(words) >= LEAST_WORDS and 2 * sum(map(str.isupper, words)) > len(words):
        return
    end = 0  # of the word before
    for match in WORD.finditer(text):
        before, end, word = text[end : match.start()], match.end(), match[0]
        is_first = match.start() == 0 or any(mark in before for mark in '.!?…"«“\n')
        if (word.isupper() and len(word) > 1) or (word[0].isupper() and not is_first):
            yield word


def own_words(text: str, source: str, kept: Collection[str]) -> list[str]:
    """Words of a text or of its translation but those that are kept, numbers, and what is quoted in the source."""
    return [word for word in WORD.findall(without_quoted(text, source)) if word not in kept and not word.isdigit()]


def is_other_language(source: str, answer: str, language: str, to: str) -> bool:
    """Whether most letters of a translation are of another script, or its words are those of the source.

    Quoted texts and words with a capital in the source, which may be names, do not count in the translation. Languages
    of one script are told apart by no more than that.
    """
    words = own_words(answer, source, {word for word in WORD.findall(source) if word != word.lower()})
    letters = [letter for word in words for letter in word if letter.isalpha()]
    if not letters:
        return bool(own_words(source, source, set(names(source))))
    scripts = SCRIPTS[LANGUAGES[to].code[-4:]]
    own = sum(unicodedata.name(letter, "").startswith(scripts) for letter in letters)
    if 2 * own <= len(letters) or set("".join(words).lower()) & set(LETTERS_OF_NEIGHBOURS.get(to, "")):
        return True
    if any({language, to} <= group for group in NEAR):
        return False
    said = {word.lower() for word in WORD.findall(source)}
    repeated = sum(word.lower() in said for word in words)
    return len(words) >= LEAST_WORDS and repeated >= REPEATED_SHARE * len(words)
