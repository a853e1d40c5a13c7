"""Texts to speech by what the user installs: espeak-ng, piper or vosk; and the encoders of audio."""

import importlib
import json
import shutil
import subprocess
import tempfile
import unicodedata
import wave
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, TypeVar

from vec_pipeline import device
from vec_pipeline.engines.text_lines import scripts_of
from vec_pipeline.record import UserError

TIMEOUT_S = 60.0  # for one text; espeak-ng speaks the longest in 3
USUAL_RATE = 175  # words per minute: espeak-ng's default, and about how fast voices of piper and vosk speak
SCRIPTS = {  # of languages by espeak-ng's codes; those of the others are Latin
    **dict.fromkeys(("ba", "be", "bg", "cv", "kk", "ky", "mk", "nog", "ru", "sr", "tt", "uk"), ("CYRILLIC",)),
    **dict.fromkeys(("cmn", "hak", "yue", "zh"), ("CJK", "BOPOMOFO")),
    "ja": ("CJK", "HIRAGANA", "KATAKANA"),
    "ko": ("HANGUL",),
    **dict.fromkeys(("ar", "fa", "sd", "ug", "ur"), ("ARABIC",)),
    "he": ("HEBREW",),
    **dict.fromkeys(("el", "grc"), ("GREEK",)),
    **dict.fromkeys(("hy", "hyw"), ("ARMENIAN",)),
    "ka": ("GEORGIAN",),
    "am": ("ETHIOPIC",),
    "chr": ("CHEROKEE",),
    **dict.fromkeys(("hi", "kok", "mr", "ne"), ("DEVANAGARI",)),
    **dict.fromkeys(("as", "bn", "bpy"), ("BENGALI",)),
    **{"gu": ("GUJARATI",), "kn": ("KANNADA",), "ml": ("MALAYALAM",), "or": ("ORIYA",), "pa": ("GURMUKHI",)},
    **{"si": ("SINHALA",), "ta": ("TAMIL",), "te": ("TELUGU",), "th": ("THAI",)},
    **dict.fromkeys(("my", "shn"), ("MYANMAR",)),
}
FFMPEG = ("ffmpeg", "-v", "error", "-f", "wav", "-i", "pipe:0", "-fflags", "+bitexact", "-flags:a", "+bitexact")
ENCODERS = {  # by format: the programs that make it of a WAV file on their standard input, the first that is there
    "opus": (
        ("opusenc", "--quiet", "--bitrate", "24", "--serial", "0", "-", "-"),
        (*FFMPEG, "-c:a", "libopus", "-b:a", "24k", "-f", "ogg", "pipe:1"),
    ),
    "mp3": (  # a constant bit rate: players tell the length of the other kind by a header that a pipe cannot have
        ("lame", "--quiet", "-b", "48", "-", "-"),
        (*FFMPEG, "-c:a", "libmp3lame", "-b:a", "48k", "-f", "mp3", "pipe:1"),
    ),
}
PACKAGES = {"opus": "opus-tools", "mp3": "lame"}  # of Debian

Result = TypeVar("Result")


class Voice(Protocol):
    """What speaks texts. scripts: whose letters it speaks, by their names in Unicode, such as LATIN and CYRILLIC."""

    scripts: tuple[str, ...]

    def speak(self, texts: Sequence[str]) -> list[bytes | str]:
        """Return each text as a WAV file, or the error of a text that fails alone. The texts are as `plain` has them.

        Raises RuntimeError where all fail together.
        """
        ...


class EspeakVoice:
    """Speaks with espeak-ng: one process a text, several at once.

    name: such as en, ru or en-us+f3: the code of a language, and a variant.
    rate: words per minute.
    """

    def __init__(self, name: str, rate: int) -> None:
        self.scripts = scripts_of_language(name)
        # The text comes by stdin, where neither a leading "-" nor a quotation mark means anything.
        self._command = ("espeak-ng", "--stdin", "--stdout", "-v", name, "-s", str(rate))

    def speak(self, texts: Sequence[str]) -> list[bytes | str]:
        return in_parallel(self._speak, texts)

    def _speak(self, text: str) -> bytes | str:
        try:
            return with_length(called(self._command, text.encode()))
        except (RuntimeError, EOFError, wave.Error) as error:
            return f"{type(error).__name__}: {error}"


class PiperVoice:
    """Speaks with piper, a program of its own: one process for all texts, since each loads the voice.

    model: the voice's .onnx file; its .json lies beside it.
    speaker: of a voice that has several.
    """

    def __init__(self, model: Path, speaker: int, rate: int) -> None:
        self.scripts = scripts_of_language(piper_language(model))
        options = ("-s", str(speaker), "--length_scale", f"{USUAL_RATE / rate:.3f}")
        self._command = ("piper", "-m", str(model), *options)

    def speak(self, texts: Sequence[str]) -> list[bytes | str]:
        with tempfile.TemporaryDirectory() as folder:
            content = "".join(f"{text}\n" for text in texts).encode()
            called((*self._command, "--output_dir", folder), content, TIMEOUT_S * len(texts))
            files = sorted(Path(folder).glob("*.wav"), key=lambda file: int(file.stem))  # named by the time
            if len(files) != len(texts):
                raise RuntimeError(f"piper made {len(files)} files of {len(texts)} texts")
            return [file.read_bytes() for file in files]


class VoskVoice:
    """Speaks Russian with vosk-tts, in this process: its program takes texts as arguments alone.

    model: the folder of the voice.
    speaker: of a voice that has several.
    """

    scripts: tuple[str, ...] = ("CYRILLIC",)

    def __init__(self, model: Path, speaker: int, rate: int) -> None:
        vosk = importlib.import_module("vosk_tts")
        self._synth = vosk.Synth(vosk.Model(model_path=str(model)))
        self._options = {"speaker_id": speaker, "speech_rate": rate / USUAL_RATE}

    def speak(self, texts: Sequence[str]) -> list[bytes | str]:
        return [self._speak(text) for text in texts]

    def _speak(self, text: str) -> bytes | str:
        buffer = BytesIO()
        try:
            self._synth.synth(text, buffer, **self._options)
        except Exception as error:  # a KeyError for letters of another alphabet
            return f"RuntimeError: vosk cannot speak this text ({type(error).__name__}: {error})"
        return buffer.getvalue()


def plain(text: str) -> str:
    """A text in one line and without what a program might obey: espeak-ng takes [[...]] for phonemes, and piper lines.

    Control characters, with which espeak-ng would change its voice, and halves of characters become spaces.
    """
    spaced = "".join(" " if unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in text)
    while "[[" in spaced:
        spaced = spaced.replace("[[", "[ [")
    return " ".join(spaced.split())


def unspoken_scripts(text: str, scripts: Sequence[str]) -> tuple[str, ...]:
    """The scripts of the letters that a voice does not speak, where they are more than half of all; else none.

    A few, as in a quoted word, are spelled by the voice.
    """
    letters = [letter for letter in text if letter.isalpha()]
    others = [letter for letter in letters if not {*scripts_of(letter)} <= {*scripts}]
    return scripts_of(others) if 2 * len(others) > len(letters) else ()


def scripts_of_language(name: str) -> tuple[str, ...]:
    """The scripts that a voice of espeak-ng speaks: beside its own it reads Latin letters as English."""
    return ("LATIN", *SCRIPTS.get(name.partition("+")[0].partition("-")[0].lower(), ()))


def piper_language(model: Path) -> str:
    """The language that a voice of piper says it speaks. Raises UserError where the file does not say so."""
    path = model.with_name(f"{model.name}.json")
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["espeak"]["voice"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} does not describe a voice of piper: put the .json file beside the .onnx file"
        ) from None


def with_length(wav: bytes) -> bytes:
    """A WAV file whose header states its length, which a program that writes into a pipe does not know."""
    buffer = BytesIO()
    with wave.open(BytesIO(wav)) as old, wave.open(buffer, "wb") as new:
        new.setparams(old.getparams())
        new.writeframes(old.readframes(old.getnframes()))
    return buffer.getvalue()


def encoded(wav: bytes, kind: str) -> bytes:
    """A WAV file in another format, of ENCODERS. Raises RuntimeError where the encoder fails."""
    return called(encoder(kind), wav) if kind in ENCODERS else wav


def encoder(kind: str) -> tuple[str, ...]:
    """The command that encodes to a format. Raises UserError where no program for it is installed."""
    for command in ENCODERS[kind]:
        if shutil.which(command[0]):
            return command
    names = " or ".join(command[0] for command in ENCODERS[kind])
    raise UserError(f"format: {kind} needs {names}: apt-get install {PACKAGES[kind]}, or set format: wav")


def called(command: Sequence[str], content: bytes, timeout_s: float = TIMEOUT_S) -> bytes:
    """What a program writes. Raises RuntimeError where it fails or takes too long."""
    try:  # in a group of its own: a Ctrl-C is for the run, which finishes what it is at
        done = subprocess.run(command, input=content, capture_output=True, timeout=timeout_s, process_group=0)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{command[0]} did not end within {timeout_s:.0f} s") from None
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise RuntimeError(f"{command[0]} failed: {reason[:300] or f'exit status {done.returncode}'}")
    return done.stdout


def in_parallel(function: Callable[..., Result], *items: Sequence[Any]) -> list[Result]:
    """As `map`, with several at work at once: one program for each core."""
    with ThreadPoolExecutor(device.free_cores(), thread_name_prefix="speech") as pool:
        return list(pool.map(function, *items))


@cache
def espeak_version() -> str:
    """Such as 1.51; empty where it is not installed."""
    if not shutil.which("espeak-ng"):
        return ""
    words = called(["espeak-ng", "--version"], b"").decode(errors="replace").partition(":")[2].split()
    return "".join(words[:1])


def package_version(name: str) -> str:
    """The version of an installed package; empty where it is not installed."""
    try:
        return version_of(name)
    except PackageNotFoundError:
        return ""


def check_espeak(voice: str) -> None:
    """Raise UserError if espeak-ng or a voice of it is not installed."""
    if not shutil.which("espeak-ng"):
        raise UserError("espeak-ng is not installed: apt-get install espeak-ng, or set engine: piper")
    try:
        called(["espeak-ng", "-q", "--stdin", "-v", voice], b"")
    except RuntimeError:
        raise UserError(f"espeak-ng has no voice {voice}: espeak-ng --voices lists the languages that it has") from None
