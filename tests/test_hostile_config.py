"""Hostile configuration files: a configuration, or one sentence that names the mistake, at once."""

import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vec_pipeline.config import Config, ConfigError, check_wiring, load_config

SLOW_S = 60.0  # a billion values would take hours; the margin is for a busy machine
REPEATABLE = settings(derandomize=True, deadline=None, max_examples=200)
LARGE = 10**400
SMALL = "stages: [open_image]\n"
STRUCTURE = "stages: [open_image, {use: describe, model: a/b}, {use: structure, model: a/b, %s}]\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def outcome(path: Path, *overrides: str) -> Config | str:
    """Read the file; return what became of it, a sentence where it was refused. Anything else fails the test."""
    start_s = time.monotonic()
    try:
        result: Config | str = load_config(path, overrides)
        check_wiring(result.stages, {})  # type: ignore[union-attr]
    except ConfigError as error:
        result = str(error)
        assert "\n" not in result
        assert 0 < len(result) < 2000
    assert time.monotonic() - start_s < SLOW_S
    return result


def laughs(key: str) -> str:
    """Aliases of aliases: a few hundred bytes that stand for a billion values."""
    levels = [f"&a{level} [{','.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 10)]
    return f"{key}: [&a0 [x, x], {', '.join(levels)}]\n"


REFUSED = {
    "a billion laughs": laughs("output") + SMALL,
    "a billion laughs of categories": laughs("categories") + STRUCTURE % "file: a",
    "a billion laughs as a language": laughs("language") + STRUCTURE % "file: a",
    "a billion laughs of stages": laughs("stages"),
    "a billion laughs in a stage": "stages:\n- {" + laughs("used").strip() + "}\n",
    "a list within itself": "categories: &a [*a]\n" + STRUCTURE % "file: a",
    "a stage within itself": "stages: [open_image, &a {use: *a}]\n",
    "stages within themselves": "stages: &a [*a]\n",
    "100,000 brackets": "output: " + "[" * 100_000,
    "5,000 lists in each other": "output: " + "[" * 5_000 + "]" * 5_000,
    "3,000 mappings in each other": "{a: " * 3_000 + "}" * 3_000,
    "a number of 5,000 digits": f"chunk_size: {'9' * 5_000}\n{SMALL}",
    "a number of 400 digits": f"chunk_size: {LARGE}\n{SMALL}",
    "a hexadecimal number of 5,000 digits": f"chunk_size: 0x{'f' * 5_000}\n{SMALL}",
    "a fraction of 400 digits": f"clear_threshold_gb: {LARGE}\n{SMALL}",
    "an infinite fraction": f"clear_threshold_gb: 1.0e+999\n{SMALL}",
    "a day that is none": f"chunk_size: 2001-99-99\n{SMALL}",
    "a megabyte of text": f"output: {'a' * 10**6}\n{SMALL}",
    "a list of 500,000 values": f"output: [{'a,' * 500_000}]\n{SMALL}",
    "a zero byte in a path": 'output: "a\\0b"\n' + SMALL,
    "half a character in a path": 'output: "\\ud800"\n' + SMALL,
    "half a character in a prompt": 'stages: [open_image, {use: describe, model: a/b, prompt: "\\ud800"}]\n',
    "an object of Python": f"output: !!python/object/apply:os.mkdir [executed]\n{SMALL}",
    "a module of Python": "stages: [open_image, !!python/module:antigravity ]\n",
    "a function in the place of a stage": "stages: [open_image, {use: os.system}]\n",
    "a relative module": "stages: [open_image, {use: .a}]\n",
    "the main module": "stages: [open_image, {use: __main__.a}]\n",
    "a path in the place of a module": "stages: [open_image, {use: ../a.b}]\n",
    "a zero byte in a module": 'stages: [open_image, {use: "a.b\\0"}]\n',
    "a key twice": SMALL + SMALL,
    "a key twice in an alias": "stages: [open_image, &a {use: open_image, name: a, name: b}, *a]\n",
    "two documents": f"{SMALL}---\n{SMALL}",
    "bytes of another encoding": "output: Zürich\n",
    "a zero byte": "\0",
    "a mapping as a key": f"? {{a: b}}\n: c\n{SMALL}",
    "a number as a key": f"3: 4\n{SMALL}",
    "nothing as a key": f"~: 4\n{SMALL}",
    "a number as a key of a stage": "stages: [{use: open_image, 3: 4}]\n",
    "a list as a name": "stages: [{use: open_image, name: [a]}]\n",
    "a control character in a name": 'stages: [{use: open_image, name: "a\\e[2J"}]\n',
    "a line feed in the name of a column": 'stages: [{use: open_image, write: {image: "a\\nb"}}]\n',
    "the name of the row's key for a column": "stages: [open_image, {use: flag, write: {flags: image_path}}]\n",
    "a number as a column": "stages: [open_image, {use: flag, write: {flags: 3}}]\n",
    "nothing as a column": "stages: [open_image, {use: flag, write: {flags: }}]\n",
    "one column twice": "stages: [open_image, {use: describe, model: a/b, write: {text_confidence: text}}]\n",
    "a list of a list as sources": f"sources: [[a]]\n{SMALL}",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_configuration_is_refused_in_one_sentence(
    name: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    path.write_bytes(REFUSED[name].encode("latin-1"))
    assert isinstance(outcome(path), str)
    assert list(path.parent.iterdir()) == [path]


def test_a_module_that_fails_is_one_sentence(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path.parent / "broken_stage_module.py").write_text("raise ValueError('not\\ntoday')\n")
    monkeypatch.syspath_prepend(path.parent)
    path.write_text("stages: [open_image, broken_stage_module.Stage]\n")
    assert "not today" in str(outcome(path))


KEYS = st.sampled_from(
    [
        *("output", "chunk_size", "result_cache", "model_cache_size", "clear_threshold_gb", "read_threads", "sources"),
        *("log_level", "device", "language", "categories", "stages", "use", "model", "prompt", "batch_size"),
        *("max_size_px", "allow_pickle", "name", "read", "write", "revision", "nonsense"),
    ]
)
NAMES = st.sampled_from(["open_image", "describe", "structure", "embed_text", "embed_words", "a.b", "cpu", "en", ""])
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.dates(), st.binary(max_size=9), NAMES
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
STAGES = st.lists(NAMES | st.dictionaries(KEYS, ANYTHING | NAMES, max_size=4) | ANYTHING, max_size=4)
CONTENTS = st.builds(
    lambda content, stages: {**content, "stages": stages}, st.dictionaries(KEYS, ANYTHING, max_size=5), STAGES
)


@REPEATABLE
@given(content=CONTENTS | ANYTHING)
def test_values_of_wrong_kinds_are_refused_in_one_sentence(
    content: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "content.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    outcome(path)


@REPEATABLE
@given(content=st.text(max_size=200) | st.binary(max_size=200))
def test_any_file_is_refused_in_one_sentence(content: str | bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    assert isinstance(outcome(path), str)


@REPEATABLE
@given(override=st.text(max_size=60) | st.builds("{}.{}={}".format, NAMES, KEYS, st.text(max_size=30)))
def test_any_override_is_taken_or_refused_in_one_sentence(
    override: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "override.yaml"
    path.write_text(STRUCTURE % "file: a", encoding="utf-8")
    outcome(path, override)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5_000, str(LARGE), "&a [*a]", "2001-99-99"])
@pytest.mark.parametrize("key", ["chunk_size", "structure.batch_size", "structure.categories", "stages"])
def test_a_hostile_override_is_refused_in_one_sentence(key: str, text: str, path: Path) -> None:
    path.write_text(STRUCTURE % "file: a", encoding="utf-8")
    assert isinstance(outcome(path, f"{key}={text}"), str)
