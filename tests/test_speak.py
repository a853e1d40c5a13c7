"""Speech: a recogniser hears the words of sentences that were spoken, and files are whole, whatever the text."""

import io
import os
import random
import re
import shutil
import subprocess
import sys
import wave
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from models.demo import scenes
from tests.conftest import EXAMPLES, PROJECT
from vec_pipeline import load_annotations
from vec_pipeline.engines import speech
from vec_pipeline.record import UserError, Values
from vec_pipeline.settings import fingerprint, stage_settings
from vec_pipeline.stages import speak
from vec_pipeline.stages.speak import Speak

is_required = bool(os.environ.get("VEC_REQUIRE_ESPEAK"))  # as .ci/run does: then its absence is a failure
needs_espeak = pytest.mark.skipif(not (is_required or shutil.which("espeak-ng")), reason="espeak-ng is not installed")
RUSSIAN = "Красный дом на белом фоне. Надпись: ХЛЕБ."
PIPER = f"""#!{sys.executable}
import pathlib, sys, time, wave
arguments = sys.argv[1:]
folder = pathlib.Path(arguments[arguments.index("--output_dir") + 1])
pathlib.Path(__file__).with_name("calls").open("a").write(" ".join(arguments) + "\\n")
lines = sys.stdin.read().splitlines()
for line in lines[1:] if "unable" in lines[0] else lines:
    with wave.open(str(folder / f"{{time.monotonic_ns()}}.wav"), "wb") as file:
        file.setparams((1, 2, 22050, 0, "NONE", ""))
        file.writeframes(bytes([1, 0]) * 1000 * len(line))
if "broken" in lines[0]:
    sys.exit("a warning\\nthe voice is damaged")
"""
VOSK = """
import wave

class Model:
    def __init__(self, model_path): self.path = model_path

class Synth:
    def __init__(self, model): self.model = model
    def synth(self, text, file, speaker_id, speech_rate):
        if "SALE" in text: raise KeyError("s")
        with wave.open(file, "wb") as audio:
            audio.setparams((1, 2, 22050, 0, "NONE", ""))
            audio.writeframes(bytes([speaker_id, 0]) * round(1000 * len(text) / speech_rate))
"""
GRAMMAR = f"""#JSGF V1.0;
grammar scene;
<colour> = {" | ".join(scenes.COLOURS)};
<kind> = {" | ".join(kind + s for kind in scenes.KINDS for s in ("", "s") if kind + s != "fishs")};
<thing> = ( a | an ) <colour> <kind>;
<things> = ( two | three | four ) <colour> <kind>;
<ground> = on a ( {" | ".join(scenes.BACKGROUNDS)} ) background;
<place> = {" | ".join(scenes.PLACES)};
public <scene> = <thing> <ground> [ <place> ] | <things> <ground> | <thing> ( to the left of | above ) <thing> <ground>;
"""
Speaker = Callable[..., list[Values]]


@pytest.fixture
def say(tmp_path: Path) -> Speaker:
    """Speak texts with a stage of these options, in a folder of the test."""

    def say(*texts: str, **options: Any) -> list[Values]:
        stage = Speak(csv_folder=tmp_path, **options)
        return stage.run(stage.load(), [{"description": text} for text in texts], 4)

    return say


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Leave these programs alone on the PATH, and return the folder that it names."""
    folder, forget = tmp_path / "bin", speech.espeak_version.cache_clear
    folder.mkdir()
    forget()

    def only(*names: str) -> Path:
        for name in names:
            path = shutil.which(name)
            assert path, f"{name} is not installed"
            (folder / name).symlink_to(path)
        monkeypatch.setenv("PATH", str(folder))
        return folder

    yield only
    forget()


def samples(content: bytes) -> Any:
    """The samples of a WAV file of one channel, int16; its header must state its length."""
    with wave.open(io.BytesIO(content)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 22050)
        assert len(content) == 44 + 2 * file.getnframes()
        return np.frombuffer(file.readframes(file.getnframes()), np.int16)


def seconds(content: bytes) -> float:
    return len(samples(content)) / 22050


def phonemes(text: str, voice: str) -> str:
    """What espeak-ng would speak, in its letters for sounds."""
    command = ["espeak-ng", "--stdin", "-q", "-x", "-v", voice]
    return subprocess.run(command, input=text.encode(), capture_output=True).stdout.decode()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# --- what is heard


def held_out_scenes(number: int) -> list[scenes.Scene]:
    rng = random.Random(5)
    drawn = (scenes.random_scene(rng, held_out=True, words="none") for _ in range(3 * number))
    return [scene for scene in drawn if scene.things][:number]


def words_of(scene: scenes.Scene) -> set[str]:
    return {word for thing in scene.things for word in (thing.kind, thing.colour)}


@pytest.fixture(scope="module")
def listen(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], set[str]]:
    """Return the words that pocketsphinx hears in samples of 22,050 Hz, which are of a scene's form; plurals without s.

    It knows no digital silence, which synthetic speech has between words: a little noise makes up for it.
    """
    from pocketsphinx import Decoder, get_model_path
    from scipy.signal import resample_poly

    path = tmp_path_factory.mktemp("grammar") / "scene.gram"
    path.write_text(GRAMMAR)
    models = Path(get_model_path())
    decoder = Decoder(
        **{"hmm": str(models / "en-us/en-us"), "dict": str(models / "en-us/cmudict-en-us.dict"), "jsgf": str(path)},
        **{"beam": 1e-64, "pbeam": 1e-48, "wbeam": 1e-64, "fwdflat": False, "bestpath": False, "loglevel": "FATAL"},
    )

    def listen(audio: Any) -> set[str]:
        padded = np.pad(resample_poly(audio.astype(np.float64), 320, 441), 4000)
        noisy = padded + np.random.default_rng(0).normal(0, 20, len(padded))
        decoder.start_utt()
        decoder.process_raw(noisy.clip(-32768, 32767).astype(np.int16).tobytes(), full_utt=True)
        decoder.end_utt()
        heard = decoder.hyp().hypstr.split() if decoder.hyp() else []
        return {word.removesuffix("s") for word in heard}

    return listen


@needs_espeak
@pytest.mark.parametrize("voice", ["en", "en-us"])
def test_the_words_of_sentences_are_heard(
    say: Speaker, listen: Callable[[Any], set[str]], tmp_path: Path, voice: str
) -> None:
    drawn = held_out_scenes(20)
    results = say(*(f"{scene.objects()}." for scene in drawn), voice=voice)
    heard = [listen(samples((tmp_path / result["description_audio"]).read_bytes())) for result in results]
    said = [words_of(scene) for scene in drawn]
    right = sum(len(words & found) for words, found in zip(said, heard, strict=True))
    assert right >= 0.8 * sum(map(len, said))
    others = [there - here for here, there in zip(said, said[1:] + said[:1], strict=True)]  # the control
    wrong = sum(len(words & found) for words, found in zip(others, heard, strict=True))
    assert wrong <= 0.15 * sum(map(len, others))


@needs_espeak
def test_russian_has_its_sounds_its_length_and_its_level(say: Speaker, tmp_path: Path) -> None:
    [result] = say(RUSSIAN, language="ru")
    audio = samples((tmp_path / result["description_audio"]).read_bytes()).astype(float)
    letters = len(RUSSIAN)
    assert 0.04 * letters < len(audio) / 22050 < 0.15 * letters
    assert np.sqrt((audio**2).mean()) > 1000, "it is not silence"
    assert "r'Asnyj d'om" in phonemes("Красный дом", "ru")
    slow, fast = (say(RUSSIAN, language="ru", rate=rate)[0]["description_audio"] for rate in (100, 300))
    assert seconds((tmp_path / slow).read_bytes()) > 2 * seconds((tmp_path / fast).read_bytes())


def decoded(path: Path) -> bytes:
    """A WAV file of 22,050 Hz of what is encoded."""
    commands = {
        ".opus": ["opusdec", "--quiet", "--force-wav", "--rate", "22050", str(path), "-"],
        ".mp3": ["lame", "--quiet", "--decode", str(path), "-"],
    }
    content = subprocess.run(commands[path.suffix], capture_output=True, check=True).stdout
    return speech.with_length(content)


@needs_espeak
@pytest.mark.parametrize("kind, program", [("opus", "opusenc"), ("opus", "ffmpeg"), ("mp3", "lame"), ("mp3", "ffmpeg")])
def test_encoded_audio_says_the_same_and_is_small(
    say: Speaker,
    listen: Callable[[Any], set[str]],
    programs: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    program: str,
) -> None:
    decoder = {"opus": "opusdec", "mp3": "lame"}[kind]
    if missing := [name for name in (program, decoder) if not shutil.which(name)]:
        if is_required and "ffmpeg" not in missing:
            pytest.fail(f"{missing} are not installed")
        pytest.skip(f"{', '.join(missing)} not installed")
    path = os.environ["PATH"]
    programs("espeak-ng", program)
    drawn = held_out_scenes(4)
    results = say(*(f"{scene.objects()}." for scene in drawn), format=kind, voice="en-us")
    files = [tmp_path / result["description_audio"] for result in results]
    content = files[0].read_bytes()
    files[0].unlink()
    say(f"{drawn[0].objects()}.", format=kind, voice="en-us")
    assert files[0].read_bytes() == content, "the same text is the same file, byte for byte"
    monkeypatch.setenv("PATH", path)
    assert {file.suffix for file in files} == {f".{kind}"}
    heard = [listen(samples(decoded(file))) for file in files]
    right = sum(len(words_of(scene) & found) for scene, found in zip(drawn, heard, strict=True))
    assert right >= 0.8 * sum(len(words_of(scene)) for scene in drawn)
    assert all(file.stat().st_size < 44_100 * seconds(decoded(file)) / 5 for file in files)


# --- texts of all kinds


@needs_espeak
def test_a_text_in_letters_that_the_voice_does_not_speak_is_an_error(say: Speaker, tmp_path: Path) -> None:
    cyrillic, chinese, quoted = say("Красный дом", "红色的房子", 'The sign on the door reads "ХЛЕБ"')
    message = "ValueError: the text is in {} letters, which the voice en does not speak"
    assert cyrillic == {"description_audio": None, "error": message.format("CYRILLIC")}
    assert chinese == {"description_audio": None, "error": message.format("CJK")}
    assert "error" not in quoted, "a few letters are spelled"
    russian, english, greek = say("Красный дом", "A red house", "σπίτι", language="ru")
    assert "error" not in russian and "error" not in english, "the Russian voice reads Latin letters as English"
    assert greek["error"].startswith("ValueError: the text is in GREEK letters, which the voice ru")
    assert len(names_in(tmp_path)) == 3


@pytest.mark.parametrize(
    "text, scripts, unspoken",
    [
        ("ab", ("LATIN",), ()),
        ("aб", ("LATIN",), ()),
        ("aбв", ("LATIN",), ("CYRILLIC",)),
        ("aбв", ("LATIN", "CYRILLIC"), ()),
        ("aβб", ("LATIN",), ("CYRILLIC", "GREEK")),
        ("12 ?!", ("LATIN",), ()),
    ],
)
def test_more_than_half_of_the_letters_decide(text: str, scripts: Sequence[str], unspoken: Sequence[str]) -> None:
    assert speech.unspoken_scripts(text, scripts) == unspoken


@pytest.mark.parametrize(
    "voice, script",
    [("ru", "CYRILLIC"), ("ru-LV", "CYRILLIC"), ("uk+f2", "CYRILLIC"), ("ja", "KATAKANA"), ("zh", "CJK")],
)
def test_a_voice_speaks_the_script_of_its_language(voice: str, script: str) -> None:
    assert script in speech.scripts_of_language(voice) and "LATIN" in speech.scripts_of_language(voice)
    assert speech.scripts_of_language("en-us+f3") == ("LATIN",)


@needs_espeak
def test_every_script_is_one_that_unicode_has_and_every_language_one_that_espeak_has() -> None:
    listed = subprocess.run(["espeak-ng", "--voices"], capture_output=True, text=True, check=True).stdout
    assert not speech.SCRIPTS.keys() - {"zh"} - {line.split()[1].partition("-")[0] for line in listed.splitlines()}
    letters = {*speech.scripts_of(chr(number) for number in range(0x20000))}
    assert {script for scripts in speech.SCRIPTS.values() for script in scripts} <= letters


@needs_espeak
@pytest.mark.parametrize("texts", [("description",), ("description", "title")])
def test_a_blank_text_has_no_file_and_no_error(tmp_path: Path, texts: tuple[str, ...]) -> None:
    stage = Speak(csv_folder=tmp_path, texts=texts)
    results = stage.run(stage.load(), [dict.fromkeys(texts, text) for text in ("", " \n", "\0\ud800")], 4)
    assert results == [dict.fromkeys((f"{name}_audio" for name in texts), None)] * 3
    assert names_in(tmp_path) == []


@needs_espeak
def test_nothing_in_a_text_is_an_instruction(say: Speaker, tmp_path: Path) -> None:
    """Options, markup, phonemes in brackets and control characters are read out, or left out, and change no voice."""
    usual = say("The word is here", "b over b")
    texts = [
        "The\x01 9\x00word\n\n is\there",  # control characters are spaces
        "-v ru The word is here",
        "--help",
        "$(touch x) `touch x` ; touch x",
        "<b>b</b> &amp; <speak><audio src='/etc/passwd'/></speak>",
        "[[h@l'oU]] is in brackets",
        "a half of a character: \ud83d, and a car 🚗",
        "../../../etc/passwd",
    ]
    results = say(*texts)
    assert not [result for result in results if "error" in result]
    audio = [samples((tmp_path / result["description_audio"]).read_bytes()) for result in results]
    assert all(len(each) > 15_000 for each in audio)
    assert {*names_in(tmp_path)} == {Path(each["description_audio"]).name for each in (*usual, *results)}
    assert all(re.fullmatch(r"[0-9a-f]{32}\.wav", name) for name in names_in(tmp_path))
    assert speech.plain(texts[0]) == "The 9 word is here"
    assert speech.plain("[[[[x]]") == "[ [ [ [x]]"
    assert "h@l'oU" in phonemes("[[h@l'oU]]", "en") and "h@l'oU" not in phonemes(speech.plain("[[h@l'oU]]"), "en")


@needs_espeak
def test_a_text_without_end_is_an_error_of_its_row(say: Speaker, tmp_path: Path) -> None:
    fine, long = say("word " * 40, "word " * 2001)
    assert "error" not in fine
    assert long["error"] == "ValueError: the text has 10,004 characters, more than the 10,000 that are spoken"
    assert len(names_in(tmp_path)) == 1


@needs_espeak
def test_a_long_text_is_spoken_in_one_piece(say: Speaker, tmp_path: Path) -> None:
    """espeak-ng cuts lines of its standard input after 1,000 bytes, unless it is told to read all of it."""
    text = "Красный дом стоит на холме. " * 40
    [result] = say(text, language="ru", rate=450)
    (tmp_path / "text.txt").write_text(text.strip(), encoding="utf-8")
    whole = ["espeak-ng", "-f", str(tmp_path / "text.txt"), "-v", "ru", "-s", "450", "-w", str(tmp_path / "whole.wav")]
    subprocess.run(whole, check=True)
    assert (tmp_path / result["description_audio"]).read_bytes() == (tmp_path / "whole.wav").read_bytes()


# --- the program fails


def shell(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_program_that_fails_is_an_error_of_the_row_alone(
    say: Speaker, programs: Callable[..., Path], tmp_path: Path
) -> None:
    wav = tmp_path / "one.wav"
    with wave.open(str(wav), "wb") as file:
        file.setparams((1, 2, 22050, 0, "NONE", ""))
        file.writeframes(b"\1\0" * 100)
    script = f'IFS= read -r text; case "$text" in bad*) echo warning >&2; echo "the reason" >&2; exit 1;; cut*) exit 0;; died*) kill -9 $$;; esac; cat {wav}'  # noqa: E501
    shell(programs("cat"), "espeak-ng", script)
    fine, bad, cut, died, again = say("fine", "bad", "cut", "died", "bad")
    assert samples((tmp_path / fine["description_audio"]).read_bytes()).tolist() == [1] * 100
    assert bad == again == {"description_audio": None, "error": "RuntimeError: espeak-ng failed: the reason"}
    assert cut["error"].startswith("EOFError")
    assert died["error"] == "RuntimeError: espeak-ng failed: exit status -9"


def test_a_program_that_hangs_is_ended(
    say: Speaker, programs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shell(programs("sleep"), "espeak-ng", "exec sleep 60")
    monkeypatch.setattr(speech, "espeak_version", lambda: "1.5")
    monkeypatch.setattr(speech.called, "__defaults__", (0.2,))
    [result] = say("a")
    assert result["error"] == "RuntimeError: espeak-ng did not end within 0 s"


@needs_espeak
def test_an_encoder_that_fails_is_an_error_of_the_row(
    say: Speaker, programs: Callable[..., Path], tmp_path: Path
) -> None:
    shell(programs("espeak-ng"), "opusenc", "echo cannot encode >&2; exit 2")
    [result] = say("a", format="opus")
    assert result == {"description_audio": None, "error": "RuntimeError: opusenc failed: cannot encode"}
    assert "audio" not in [path.name for path in tmp_path.iterdir()]


@needs_espeak
def test_a_ctrl_c_in_the_terminal_does_not_reach_the_program(tmp_path: Path) -> None:
    """Its row would have an error that is not its own."""
    line = "import os; print(os.getpgid(0))"
    assert int(speech.called([sys.executable, "-c", line], b"")) != os.getpgid(0)


# --- files


@needs_espeak
def test_rows_with_one_text_share_a_file_and_other_settings_make_another(
    say: Speaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other, copy = say("A red house", "A blue house", "A  red\nhouse")
    assert first == copy != other
    assert first["description_audio"].startswith("audio/") and len(names_in(tmp_path)) == 2
    for options in ({"rate": 200}, {"voice": "en-us"}, {"voice": "en-us+f3"}, {"language": "fr"}):
        assert say("A red house", **options) != [first]
    assert say("A red house", voice="en") != [first] or fingerprint(Speak(voice="en")) == fingerprint(Speak())
    monkeypatch.setattr(speech, "espeak_version", lambda: "9.9")
    assert say("A red house") != [first], "another version of the program may sound otherwise"


@needs_espeak
def test_what_is_there_is_kept_and_what_is_gone_is_made(say: Speaker, tmp_path: Path) -> None:
    first, other = say("A red house", "A blue house")
    path, gone = tmp_path / first["description_audio"], tmp_path / other["description_audio"]
    before, content = path.stat(), gone.read_bytes()
    gone.unlink()
    assert say("A red house", "A blue house") == [first, other]
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert gone.read_bytes() == content


@needs_espeak
def test_the_example_of_the_page_is_what_is_written(say: Speaker) -> None:
    page = (PROJECT / "docs/stages/speak.md").read_text(encoding="utf-8")
    [text] = re.findall(r'whose description is "(.*?)"', page)
    shown = re.findall(r"description_audio  (\S+)", page)
    if speech.espeak_version() != "1.51":
        pytest.skip("the name holds the version of espeak-ng, and the page has that of 1.51")
    assert [say(text)[0]["description_audio"]] == shown


KILLED = """
import os, sys
from pathlib import Path
from vec_pipeline.stages import speak
os.fsync = lambda file: os._exit(9)  # killed before the file has its name
stage = speak.Speak(csv_folder=Path(sys.argv[1]))
stage.run(stage.load(), [{"description": "A red house"}], 1)
"""


@needs_espeak
def test_a_kill_leaves_no_half_file_and_the_next_run_no_temporary_one(say: Speaker, tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=PROJECT).returncode == 9
    [temporary] = names_in(tmp_path)
    assert temporary.startswith(".") and temporary.endswith(".wav.new")
    [result] = say("A red house")
    assert names_in(tmp_path) == [Path(result["description_audio"]).name]


@needs_espeak
def test_a_full_disk_ends_the_run_with_one_sentence(
    say: Speaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"\.wav cannot be written \(No space left on device\): free some disk space"):
        say("a")
    assert not [name for name in names_in(tmp_path) if not name.startswith(".")]


@needs_espeak
def test_several_columns_have_a_file_each_and_one_that_fails_leaves_the_other(tmp_path: Path) -> None:
    stage = Speak(csv_folder=tmp_path, texts=("description", "title"))
    assert stage.reads == ("description", "title")
    assert stage.columns == {"description_audio": "file", "title_audio": "file"}
    rows = [{"description": "A red house", "title": "Дом"}, {"description": "", "title": "A house"}]
    first, second = stage.run(stage.load(), rows, 2)
    assert (tmp_path / first["description_audio"]).exists() and first["title_audio"] is None
    assert "CYRILLIC" in first["error"]
    assert second == {"description_audio": None, "title_audio": second["title_audio"]}
    assert (tmp_path / second["title_audio"]).exists()


@needs_espeak
def test_texts_are_spoken_at_the_same_time(say: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, size: int, **options: Any) -> None:
            sizes.append(size)
            super().__init__(size, **options)

    monkeypatch.setattr(speech, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(speech.device, "free_cores", lambda: 3)
    results = say(*(f"number {number}" for number in range(12)))
    assert sizes == [3, 3] and len({result["description_audio"] for result in results}) == 12


# --- mistakes, named before the first picture


def test_where_a_program_is_missing_one_sentence_names_the_package(programs: Callable[..., Path]) -> None:
    programs()
    with pytest.raises(
        UserError, match=r"^espeak-ng is not installed: apt-get install espeak-ng, or set engine: piper"
    ):
        Speak().fetch()
    assert Speak().identity() == "espeak-ng"
    with pytest.raises(UserError, match=r"^speak: piper is not installed: pip install piper-tts$"):
        Speak(engine="piper", model="a.onnx").fetch()
    with pytest.raises(UserError, match=r"^speak: vosk is not installed: pip install vosk-tts$"):
        Speak(engine="vosk", model="a").fetch()
    for kind, package in (
        ("opus", "opusenc or ffmpeg: apt-get install opus-tools"),
        ("mp3", "lame or ffmpeg: apt-get"),
    ):
        with pytest.raises(UserError, match=f"^format: {kind} needs {package}"):
            speech.encoder(kind)


@needs_espeak
def test_a_voice_or_an_encoder_that_is_missing_is_named(programs: Callable[..., Path], tmp_path: Path) -> None:
    programs("espeak-ng")
    Speak(csv_folder=tmp_path).fetch()
    assert re.fullmatch(r"espeak-ng 1\.\d+\S*", Speak().identity())
    with pytest.raises(UserError, match=r"^espeak-ng has no voice xx: espeak-ng --voices lists"):
        Speak(voice="xx", csv_folder=tmp_path).fetch()
    with pytest.raises(UserError, match=r"^format: opus needs opusenc or ffmpeg: .*, or set format: wav$"):
        Speak(format="opus", csv_folder=tmp_path).fetch()
    (tmp_path / "audio").touch()
    with pytest.raises(UserError, match=r"audio is a file, and speak writes into a folder of that name: rename it$"):
        Speak(csv_folder=tmp_path).fetch()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rate": 79}, "rate: must be from 80 to 450 words per minute, not 79"),
        ({"rate": 451}, "rate: must be from 80 to 450 words per minute, not 451"),
        ({"texts": ()}, "texts: name each column to speak once"),
        ({"texts": ("a", "a")}, "texts: name each column to speak once"),
        ({"model": "a.onnx"}, "model: espeak-ng has no models"),
        ({"voice": "Russian"}, "voice: 'Russian' is not the code of a language"),
        ({"voice": "-x"}, "voice: '-x' is not the code of a language"),
        ({"language": "русский"}, "voice: 'русский' is not the code of a language"),
        ({"engine": "piper", "voice": "ru"}, "voice: 'ru' is not the number of a speaker, as piper has them"),
    ],
)
def test_options_that_are_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Speak(**options)
    assert Speak(rate=80).rate + Speak(rate=450).rate == 530


def test_the_folder_is_no_setting_and_the_columns_load_no_second_voice() -> None:
    assert Speak(csv_folder=Path("a")) == Speak(csv_folder=Path("b"))
    assert "csv_folder" not in stage_settings(Speak()) and "batch_size" not in stage_settings(Speak())
    assert stage_settings(Speak())["texts"] == ["description"]
    assert Speak(texts=("title",), format="mp3").loaded_as == Speak().loaded_as, "they share a voice"
    assert Speak(rate=200).loaded_as != Speak().loaded_as


# --- other engines: stand-ins for their programs, called as the real ones are


@pytest.fixture
def piper(programs: Callable[..., Path], tmp_path: Path) -> Path:
    """The model of a voice; its program makes samples of the length of each text."""
    path = programs() / "piper"
    path.write_text(PIPER)
    path.chmod(0o755)
    (tmp_path / "voice.onnx").touch()
    (tmp_path / "voice.onnx.json").write_text('{"espeak": {"voice": "en-us"}}')
    return tmp_path / "voice.onnx"


def test_piper_speaks_all_texts_in_one_process(say: Speaker, piper: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"engine": "piper", "model": str(piper), "voice": "3", "rate": 350}
    Speak(csv_folder=tmp_path, **options).fetch()
    texts = ["a\nlonger text, of two lines", "short", "--help"]
    *results, russian, blank = say(*texts, "Дом", " ", **options)
    for text, result in zip(texts, results, strict=True):
        content = (tmp_path / result["description_audio"]).read_bytes()
        assert samples(content).tolist() == [1] * 1000 * len(text)
    [call] = (tmp_path / "bin/calls").read_text().splitlines()
    assert call.startswith(f"-m {piper} -s 3 --length_scale 0.500 --output_dir ")
    assert russian["error"] == "ValueError: the text is in CYRILLIC letters, which the voice of piper does not speak"
    assert blank == {"description_audio": None}


def test_what_fails_in_piper_fails_for_its_texts_together(say: Speaker, piper: Path) -> None:
    options = {"engine": "piper", "model": str(piper)}
    with pytest.raises(RuntimeError, match=r"^piper failed: the voice is damaged$"):  # the run halves the batch
        say("broken", **options)
    with pytest.raises(RuntimeError, match=r"^piper made 1 files of 2 texts$"):
        say("unable", "z", **options)


def test_another_voice_of_piper_makes_other_files(say: Speaker, piper: Path) -> None:
    options = {"engine": "piper", "model": str(piper)}
    before = say("a", **options)
    assert say("a", **options) == before
    piper.write_bytes(b"other weights")
    assert say("a", **options) != before
    assert say("a", voice="1", **options) != say("a", **options)


def test_a_file_that_is_no_voice_of_piper_is_named(piper: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"speak\.model: nothing is no file: give the \.onnx file of a voice"):
        Speak(engine="piper").fetch()
    with pytest.raises(UserError, match=r"speak\.model: .*b\.onnx is no file"):
        Speak(engine="piper", model=str(tmp_path / "b.onnx")).fetch()
    for content in ("{}", "[]", "{", '{"espeak": 1}'):
        (tmp_path / "voice.onnx.json").write_text(content)
        with pytest.raises(UserError, match=r"voice\.onnx\.json does not describe a voice of piper: put the \.json"):
            Speak(engine="piper", model=str(piper)).fetch()
    (tmp_path / "voice.onnx.json").unlink()
    with pytest.raises(UserError, match=r"does not describe a voice of piper"):
        Speak(engine="piper", model=str(piper)).fetch()


def test_vosk_speaks_russian_alone(say: Speaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vosk_tts.py").write_text(VOSK)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"^speak\.model: nothing is no voice of vosk: give its folder$"):
        Speak(engine="vosk").fetch()
    (tmp_path / "voice").mkdir()
    (tmp_path / "voice/model.onnx").touch()
    options: dict[str, Any] = {"engine": "vosk", "model": str(tmp_path / "voice"), "voice": "7", "rate": 350}
    Speak(csv_folder=tmp_path, **options).fetch()
    russian, english, quoted = say("Дом", "A house", "Красный дом SALE", **options)
    assert samples((tmp_path / russian["description_audio"]).read_bytes()).tolist() == [7] * 1500
    assert english["error"].endswith("in LATIN letters, which the voice of vosk does not speak")
    assert quoted["error"] == "RuntimeError: vosk cannot speak this text (KeyError: 's')"
    assert Speak(**options).identity().startswith("vosk-tts")


# --- in a run


def run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    stages = [
        {"use": "open_image", "max_size_px": 112},
        {"use": "speak", "texts": ["title"], "batch_size": 3},
    ]
    (folder / "config.yaml").write_text(yaml.safe_dump({"device": "cpu", "stages": stages}))
    command = [sys.executable, str(PROJECT / "run.py"), str(folder / "list.csv"), "--keep", "title"]
    places = ["--config", str(folder / "config.yaml"), "--output", str(folder / "annotations.csv")]
    return subprocess.run([*command, *places, *arguments], capture_output=True, text=True, timeout=240)


def write_list(folder: Path, titles: Sequence[str]) -> None:
    pictures = sorted(EXAMPLES.glob("*.png"))[: len(titles)]
    lines = [f'{picture},"{title}"' for picture, title in zip(pictures, titles, strict=True)]
    (folder / "list.csv").write_text("\n".join(["image_path,title", *lines]) + "\n")


@needs_espeak
def test_a_run_writes_files_beside_the_csv(tmp_path: Path) -> None:
    titles = ["A red house", "A blue car", "", "Красный дом", "A red house"]
    write_list(tmp_path, titles)
    done = run(tmp_path)
    assert done.returncode == 1, done.stderr
    table = load_annotations(tmp_path / "annotations.csv").set_index("title", drop=False)
    assert not (table["title_audio"] == "").loc[["A red house", "A blue car"]].any()
    for path in table.loc[["A red house", "A blue car"], "title_audio"]:
        assert seconds((tmp_path / path).read_bytes()) > 0.5
    assert table.loc["", "title_audio"] == table.loc["Красный дом", "title_audio"] == ""
    assert list(table.loc[table["error"] != "", "title"]) == ["Красный дом"]
    assert table.loc["Красный дом", "error"].startswith("speak: ValueError: the text is in CYRILLIC letters")
    assert len(names_in(tmp_path / speak.FOLDER)) == 2, "the same title is the same file"
    rows = (tmp_path / "annotations.csv").read_bytes()
    assert run(tmp_path, "--set", "speak.batch_size=5").returncode == 1
    assert (tmp_path / "annotations.csv").read_bytes() == rows
    other = run(tmp_path, "--set", "speak.rate=250")
    assert other.returncode == 2 and "speak.rate" in other.stderr
    assert run(tmp_path, "--refresh", "--set", "speak.rate=250").returncode == 1
    assert len(names_in(tmp_path / speak.FOLDER)) == 4, "the former files stay"
    assert {*load_annotations(tmp_path / "annotations.csv")["title_audio"]} != {*table["title_audio"]}
