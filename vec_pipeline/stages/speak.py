"""description -> description_audio, an audio file of what it says: by espeak-ng, piper or vosk."""

import importlib.util
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import ClassVar, Literal

from vec_pipeline import files, weights
from vec_pipeline.engines import speech
from vec_pipeline.engines.speech import EspeakVoice, PiperVoice, Voice, VoskVoice
from vec_pipeline.record import Stage, UserError, Values

FOLDER = "audio"  # beside the CSV
LONGEST_TEXT = 10_000  # characters: ten minutes of speech, and 26 MB of WAV
RATES = (80, 450)  # words per minute that espeak-ng can speak
VOICE = re.compile(r"[a-z]{2,3}(-[\w-]+)?(\+\w+)?", re.IGNORECASE)  # of espeak-ng: language, region, variant
INSTALL = {"piper": "pip install piper-tts", "vosk": "pip install vosk-tts"}


@dataclass(frozen=True, kw_only=True)
class Speak(Stage):
    """Audio files of texts, in `audio` beside the CSV; each column holds the path from the CSV's folder on.

    The column of a text has its name and `_audio`. A blank text has no file. A file's name is a hash of the text and of
    the settings: rows with the same text share it, other settings make another, and a file that is there is kept.

    texts: the columns to speak.
    language: of the texts: the voice of espeak-ng where `voice` is empty.
    voice: of espeak-ng such as en-us+f3; of piper and vosk the number of the speaker, where a model has several.
    model: of piper the .onnx file of the voice, of vosk its folder.
    rate: words per minute.
    """

    call_options: ClassVar[tuple[str, ...]] = ("texts", "format")

    texts: tuple[str, ...] = ("description",)
    engine: Literal["espeak", "piper", "vosk"] = "espeak"
    language: str = "en"
    voice: str = ""
    model: str = ""
    rate: int = speech.USUAL_RATE
    format: Literal["wav", "opus", "mp3"] = "wav"
    batch_size: int = 16

    def __post_init__(self) -> None:
        """Raises ValueError for options that are out of range or do not go together."""
        super().__post_init__()
        object.__setattr__(self, "reads", self.texts)
        object.__setattr__(self, "writes", {f"{name}_audio": "file" for name in self.texts})
        if not self.texts or len({*self.texts}) < len(self.texts):
            raise ValueError("texts: name each column to speak once, such as [description]")
        if not RATES[0] <= self.rate <= RATES[1]:
            raise ValueError(f"rate: must be from {RATES[0]} to {RATES[1]} words per minute, not {self.rate}")
        if self.is_espeak and self.model:
            raise ValueError("model: espeak-ng has no models: set engine: piper or vosk, or a voice")
        if self.is_espeak and not VOICE.fullmatch(self._voice):
            raise ValueError(f"voice: {self._voice!r} is not the code of a language, such as ru or en-us+f3")
        if not self.is_espeak and not (self.voice or "0").isdecimal():
            raise ValueError(f"voice: {self.voice!r} is not the number of a speaker, as {self.engine} has them")

    @property
    def is_espeak(self) -> bool:
        return self.engine == "espeak"

    @property
    def _voice(self) -> str:
        return self.voice or self.language

    @property
    def _folder(self) -> Path:
        return self.csv_folder / FOLDER

    def identity(self) -> str:
        if self.is_espeak:
            return f"espeak-ng {speech.espeak_version()}".strip()
        self._check_program()
        return f"{self.engine}-tts {speech.package_version(f'{self.engine}-tts')}".strip()

    def fetch(self) -> None:
        if self.is_espeak:
            speech.check_espeak(self._voice)
        else:
            self._check_model()
        if self.format != "wav":
            speech.encoder(self.format)
        files.check_folder(self._folder, self.name)

    def _check_program(self) -> None:
        """Raise UserError where piper or vosk is not installed."""
        is_there = shutil.which("piper") if self.engine == "piper" else importlib.util.find_spec("vosk_tts")
        if not is_there:
            raise UserError(f"{self.name}: {self.engine} is not installed: {INSTALL[self.engine]}")

    def _check_model(self) -> None:
        """Raise UserError where the program or the voice is not there."""
        self._check_program()
        path = self._model
        if self.engine == "piper" and not (self.model and path.is_file()):
            raise UserError(f"{self.name}.model: {self.model or 'nothing'} is no file: give the .onnx file of a voice")
        if self.engine == "vosk" and not (path / "model.onnx").is_file():
            raise UserError(f"{self.name}.model: {self.model or 'nothing'} is no voice of vosk: give its folder")
        if self.engine == "piper":
            speech.piper_language(path)

    @property
    def _model(self) -> Path:
        """The path of the voice. Raises UserError where there is none."""
        return (self.model and weights.local_path(self.model)) or Path(self.model)

    def load(self) -> Voice:
        files.remove_abandoned(self._folder)
        if self.is_espeak:
            return EspeakVoice(self._voice, self.rate)
        make = PiperVoice if self.engine == "piper" else VoskVoice
        return make(self._model, int(self.voice or "0"), self.rate)

    def run(self, model: Voice, rows: list[Values], at_once: int) -> list[Values]:
        texts = {text for row in rows for name in self.texts if (text := self._text(row, name))}
        errors = {text: error for text in texts if (error := self._refusal(text, model.scripts))}
        missing = sorted(text for text in texts - errors.keys() if not (self._folder / self._file(text)).exists())
        if missing:
            found = model.speak(missing, self._save)
            errors |= {text: error for text, error in zip(missing, found, strict=True) if error}
        return [self._values(row, errors) for row in rows]

    def _text(self, row: Values, name: str) -> str:
        """What is spoken of a value. Raises UserError for one that is no text."""
        if not isinstance(row[name], str):
            raise UserError(f"{self.name}: {name} holds no text: take it out of {self.name}.texts")
        return speech.plain(row[name])

    def _values(self, row: Values, errors: Mapping[str, str]) -> Values:
        texts = {f"{name}_audio": self._text(row, name) for name in self.texts}
        made = {own: f"{FOLDER}/{self._file(text)}" for own, text in texts.items() if text and text not in errors}
        values: Values = {own: made.get(own) for own in texts}
        failed = [errors[text] for text in texts.values() if text in errors]
        return {**values, "error": failed[0]} if failed else values

    def _refusal(self, text: str, scripts: Sequence[str]) -> str:
        """Why a text is not spoken; empty where it is."""
        if len(text) > LONGEST_TEXT:
            return f"ValueError: the text has {len(text):,} characters, more than the {LONGEST_TEXT:,} that are spoken"
        if unspoken := speech.unspoken_scripts(text, scripts):
            voice = f"the voice {self._voice}" if self.is_espeak else f"the voice of {self.engine}"
            return f"ValueError: the text is in {', '.join(unspoken)} letters, which {voice} does not speak"
        return ""

    def _file(self, text: str) -> str:
        """The name of a text's file. Nothing that comes from a source is in it."""
        version = weights.version(self.model) if self.model else ""
        options = (self.engine, "" if self.model else self._voice, self.voice, self.model, self.rate, self.format)
        settings = (self.version, self.identity(), version, *options)
        return f"{blake2b(json.dumps([*settings, text]).encode(), digest_size=16).hexdigest()}.{self.format}"

    def _save(self, text: str, wav: bytes) -> str:
        """Write a text's file; return why there is none, or nothing. Raises UserError on a full disk."""
        try:
            content = speech.encoded(wav, self.format)
        except RuntimeError as error:
            return f"RuntimeError: {error}"
        files.save(self._folder / self._file(text), content)
        return ""
