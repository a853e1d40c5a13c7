"""Configurations: the shipped ones load, and every mistake is named with its key and the nearest valid one."""

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes import Describe as FakeDescribe
from tests.test_csv_file import disk_full_after
from vec_pipeline import prompts, weights
from vec_pipeline.config import PLACEMENT, Config, ConfigError, check_wiring, load_config, option_names, stage_class
from vec_pipeline.record import COLUMNS, SOURCE_VALUES, Stage, UserError
from vec_pipeline.settings import (
    Recorded,
    changed_settings,
    check_settings,
    column_types,
    fingerprint,
    outdated,
    recorded_settings,
    settings_path,
    with_recorded_commits,
    write_settings,
)
from vec_pipeline.sources import open_source
from vec_pipeline.sources.reddit import Reddit
from vec_pipeline.weights import HUB_GB, ModelStage

PROJECT = Path(__file__).resolve().parent.parent
PRODUCTION = PROJECT / "config.yaml"
SHIPPED = [PRODUCTION, *sorted((PROJECT / "configs").glob("*.yaml"))]
STAGE_NAMES = sorted(path.stem for path in (PROJECT / "vec_pipeline/stages").glob("[a-z]*.py"))

# The stages of most configurations, which of these some leave out, and which others some have, with their columns.
USUAL_STAGES = {*"open_image describe embed_text embed_words embed_image structure flag".split()}
LEFT_OUT = {
    "laptop.yaml": {"embed_words"},
    **{name: {"describe", "embed_words"} for name in ("requests.yaml", "demo-requests.yaml")},
    **{name: {"embed_text", "embed_words", "structure"} for name in ("edit.yaml", "demo-edit.yaml")},
}
EYES = {
    "read_text": {"ocr_text": "text", "ocr_boxes": "json", "ocr_confidence": "number"},
    "detect": {"objects": "json", "object_counts": "json"},
    "embed_dino": {"dino_vector": "vector"},
}
PEOPLE = {"people": {"people_count": "number", "people": "json"}}
TRANSLATION = {"translate": {"description_ru": "text"}}
PAIRS = {
    "embed_edited": {"edited_vector": "vector", "edited_clip_score": "number"},
    "compare_pair": dict.fromkeys(("pair_similarity", "pair_difference", "edit_direction"), "number"),
}
REQUESTS = {"open_edited": {}, "structure": dict.fromkeys(("task", "what", "where", "tone"), "text"), **PAIRS}
EDITS = {
    "edit_image": {"edited_path": "file", "edit_difference": "number"},
    "describe_edited": {"edited_text": "text", "edited_text_confidence": "number"},
    **PAIRS,
}
BESIDES: dict[str, dict[str, dict[str, str]]] = {
    **{"eyes.yaml": EYES, "demo-eyes.yaml": EYES | PEOPLE | TRANSLATION},
    **dict.fromkeys(("requests.yaml", "demo-requests.yaml"), REQUESTS),
    **dict.fromkeys(("edit.yaml", "demo-edit.yaml"), EDITS),
}

Load = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a configuration given as YAML, with overrides, and check its wiring; three stages unless the text says."""

    def load_text(text: str, *overrides: str) -> Config:
        if "stages:" not in text:
            text += "\nstages: [open_image, {use: describe, model: a/b}, {use: structure, model: c/d}]"
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        config = load_config(path, overrides)
        check_wiring(config.stages, {})
        return config

    return load_text


def stage_of(config: Config, name: str) -> Any:
    (stage,) = (stage for stage in config.stages if stage.name == name)
    return stage


def mistake(load: Load, text: str, *overrides: str) -> str:
    """Load, expect it refused, and return the one line that says why."""
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_configuration_loads_without_its_models(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights, "PROJECT_FOLDER", tmp_path)
    config = load_config(path)
    more, left_out = BESIDES.get(path.name, {}), LEFT_OUT.get(path.name, set())
    assert {stage.name for stage in config.stages} == USUAL_STAGES - left_out | more.keys()
    check_wiring(config.stages, Reddit.columns if "requests" in path.name else {})
    extra = {"clip_score": "number", "flags": "text"}
    extra |= {} if "describe" in left_out else {"text_confidence": "number"}
    assert config.extra_columns({}) == extra | {
        name: kind for columns in more.values() for name, kind in columns.items()
    }


@pytest.mark.parametrize(
    ("name", "base"), [("eyes.yaml", PRODUCTION), ("demo-eyes.yaml", PROJECT / "configs/demo.yaml")]
)
def test_a_configuration_with_more_stages_has_the_others_as_they_were(name: str, base: Path) -> None:
    stages = {stage.name: stage for stage in load_config(PROJECT / "configs" / name).stages}
    for stage in load_config(base).stages:
        assert stages[stage.name] == stage


def test_the_stage_that_is_commented_out_works_where_it_stands(load: Load) -> None:
    text = (PROJECT / "configs" / "eyes.yaml").read_text(encoding="utf-8")
    assert "people" in {stage.name for stage in load(text.replace("# - use: people", "- use: people")).stages}


def test_every_option_stands_in_the_production_set() -> None:
    content = yaml.safe_load(PRODUCTION.read_text(encoding="utf-8"))
    assert {field.name for field in fields(Config)} <= content.keys()
    for entry in content["stages"]:
        cls = stage_class(entry)
        options = option_names(cls) - {*PLACEMENT}
        assert options - ({"batch_size"} if cls.worker == "reader" else set()) <= entry.keys() | content.keys(), entry


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("chunksize: 3", "chunk_size"),
        ("langauge: ru", "language"),
        ("stages: [open_image, {use: descrive, model: a/b}]", "describe"),
        ("stages: [open_image, {use: describe, model: a/b, batchsize: 3}]", "describe.batch_size"),
        ("stages: [{use: open_image, max_size: 3}]", "open_image.max_size_px"),
        ("stages: [open_image, {use: describe, model: a/b, quantization: nf8}]", "nf4"),
    ],
)  # fmt: skip
def test_an_unknown_name_gets_the_nearest_valid_one(text: str, expected: str, load: Load) -> None:
    assert f"did you mean '{expected}'?" in mistake(load, text)


def test_an_unknown_option_is_one_plain_sentence(load: Load) -> None:
    expected = "unknown option 'describe.batchsize' (did you mean 'describe.batch_size'?)"
    assert mistake(load, "", "describe.batchsize=3") == expected
    assert mistake(load, "sorces: []") == "unknown option 'sorces' (did you mean 'sources'?)"
    assert mistake(load, "stages: [openimage]") == "stages: unknown stage 'openimage' (did you mean 'open_image'?)"


def test_a_name_like_no_other_gets_the_list(load: Load) -> None:
    sentence = mistake(load, "stages: [xyz]")
    assert all(name in sentence for name in ("xyz", *STAGE_NAMES))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("chunk_size: many", "chunk_size: 'many' is not an integer or auto"),
        ("chunk_size: 2.5", "chunk_size: 2.5 is not an integer or auto"),
        ("chunk_size: true", "chunk_size: True is not an integer or auto"),
        ("clear_threshold_gb: much", "clear_threshold_gb: 'much' is not a number"),
        ("log_level: loud", "log_level: 'loud' is not one of debug, info, warning"),
        ("output: 3", "output: 3 is not a path"),
        ("device: gpu", "describe.device: 'gpu' is not one of auto, cuda, cuda:0, cpu, mps"),
        ("language: fr", "describe.language: 'fr' is not one of en, ru"),
        ("categories: animal", "structure.categories: 'animal' is not a list"),
        ("categories: [animal, 3]", "structure.categories: 3 is not text"),
        ("stages: [open_image, {use: describe, model: 7}]", "describe.model: 7 is not text"),
    ],
)
def test_a_wrong_type_is_named(text: str, expected: str, load: Load) -> None:
    assert expected in mistake(load, text)


def test_true_or_false_is_wanted_where_a_stage_has_a_switch(load: Load, tmp_path: Path) -> None:
    with outside_stage(tmp_path, "switched", "is_loud: bool = False"):
        assert "switched.is_loud: 1 is not true or false" in mistake(
            load, "stages: [open_image, {use: switched.Outside, is_loud: 1}]"
        )


@pytest.mark.parametrize("key", ["chunk_size", "max_consecutive_errors", "model_cache_size", "read_threads"])
def test_less_than_one_is_refused(key: str, load: Load) -> None:
    assert f"{key}: must be at least 1, not 0" in mistake(load, f"{key}: 0")


@pytest.mark.parametrize("option", ["describe.batch_size", "describe.max_new_tokens", "open_image.max_size_px"])
@pytest.mark.parametrize("value", [0, -1])
def test_less_than_one_is_refused_of_a_stage_too(option: str, value: int, load: Load) -> None:
    """A batch of none would never end."""
    assert option in mistake(load, "", f"{option}={value}")


def test_a_missing_model_is_named(load: Load) -> None:
    sentence = mistake(load, "stages: [open_image, describe]")
    assert sentence.startswith("describe")
    assert "model" in sentence


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "stages: [open_image, {use: embed_text, model: a/b}, {use: describe, model: a/b}]",
            "embed_text reads text, which no earlier stage writes: move describe before it",
        ),
        (
            "stages: [open_image, {use: embed_text, model: a/b}]",
            "embed_text reads text, which no earlier stage writes: "
            "add a stage that writes text before it, or name a source that brings it",
        ),
        ("stages: [{use: describe, model: a/b}, open_image]", "move open_image before it"),
        ("stages: []", "`stages:` with a list of stages is missing"),
        ("output: a.csv\nstages: describe", "`stages:` with a list of stages is missing"),
        ("stages: [{model: a/b}]", "has no `use: NAME`"),
    ],
)
def test_stages_that_cannot_work_are_refused(text: str, expected: str, load: Load) -> None:
    assert expected in mistake(load, text)


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ("", "two are called describe: give one of them another `name:`"),
        (
            "name: title",
            "title writes text, which describe writes too: leave one out, or rename it with `write: {text: NAME}`",
        ),
        (
            "name: title, write: {text: title}",
            "title writes text_confidence, which describe writes too: "
            "leave one out, or rename it with `write: {text_confidence: NAME}`",
        ),
    ],
)
def test_a_stage_given_twice_must_be_told_apart(second: str, expected: str, load: Load) -> None:
    """The second would write over the columns of the first, and the settings file can hold only one of them."""
    twice = f"{{use: describe, model: a/b}}, {{use: describe, model: c/d, {second}}}"
    assert mistake(load, f"stages: [open_image, {twice}]") == f"stages: {expected}"


def test_a_stage_may_stand_twice_under_other_names(load: Load) -> None:
    config = load(
        "stages: [open_image, {use: describe, model: a/b}, {use: embed_text, model: c/d}, {use: describe, model: a/b,"
        " prompt: A title, name: title, write: {text: title, text_confidence: sure, is_truncated: cut}},"
        " {use: embed_text, model: c/d, name: embed_title, read: {text: title}, write: {text_vector: title_vector}}]",
        "title.max_new_tokens=9",
    )
    assert config.extra_columns({}) == {
        "text_confidence": "number",
        "title": "text",
        "sure": "number",
        "title_vector": "vector",
    }
    assert (stage_of(config, "title").max_new_tokens, stage_of(config, "describe").max_new_tokens) == (9, 256)
    assert stage_of(config, "embed_text") == stage_of(config, "embed_title"), "one model, and one place in the cache"
    assert stage_of(config, "embed_title").inputs({"text": "a", "title": "b"}) == {"text": "b"}


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("write: {texts: title}", "describe.write: unknown value 'texts' (did you mean 'text'?)"),
        ("read: {picture: image}", "describe.read: unknown value 'picture' (there are: image)"),
        ("write: {text: error}", "describe: 'error' cannot be the name of text: rename it with `write:`"),
        ("write: {text: 'a,b'}", "describe: 'a,b' cannot be the name of text: rename it with `write:`"),
        (
            "write: {text: text_vector}",
            "describe writes text_vector as text, and that column holds vector",
        ),
        ("write: text", "describe.write: 'text' is not a mapping of names"),
        ("name: 'a b'", "stages: name: 'a b' is not a name of letters, digits, '_', '-' and '.'"),
        ("read: {image: frame}", "stages: describe reads frame, which no earlier stage writes"),
    ],
)
def test_names_that_cannot_be_are_refused(entry: str, expected: str, load: Load) -> None:
    assert mistake(load, f"stages: [open_image, {{use: describe, model: a/b, {entry}}}]").startswith(expected)


def test_a_reader_that_reads_what_a_model_writes_is_refused(load: Load) -> None:
    """The reading threads run ahead of every model."""
    sentence = mistake(
        load, "stages: [open_image, {use: describe, model: a/b}, {use: open_image, name: again, read: {content: text}}]"
    )
    assert sentence == "stages: again runs while images are read, before describe writes text"


def test_columns_of_the_source_may_be_read_and_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("stages: [{use: embed_text, model: a/b, read: {text: caption}}]")
    config = load_config(path)
    with pytest.raises(ConfigError, match="embed_text reads caption, which no earlier stage writes"):
        check_wiring(config.stages, {})
    check_wiring(config.stages, {"caption": "text"})
    assert config.extra_columns({"caption": "text"}) == {"caption": "text"}


def test_what_the_wiring_takes_for_granted_comes_from_the_source(tmp_path: Path) -> None:
    """But for `image_path`, which is the record's key."""
    (tmp_path / "a.png").touch()
    (record,) = open_source([str(tmp_path)])
    assert set(SOURCE_VALUES) == {"image_path", *record.values}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("chunk_size", "give KEY=VALUE"),
        ("chunksize=3", "did you mean 'chunk_size'?"),
        ("describe.batchsize=3", "did you mean 'describe.batch_size'?"),
        ("describ.batch_size=3", "did you mean 'describe'?"),
        ("describe.batch_size=many", "describe.batch_size: 'many' is not an integer or auto"),
        ("structure.batch_size=300", "llama.cpp decodes at most 255 at once"),
        ("stages=3", "stages"),
        ("stages={}", "stages"),
    ],
)
def test_a_bad_override_is_named(override: str, expected: str, load: Load) -> None:
    assert expected in mistake(load, "", override)


def test_overrides_have_the_types_of_yaml(load: Load) -> None:
    config = load(
        "chunk_size: 5", "chunk_size=32", "clear_threshold_gb=2", "output=~/a.csv", "language=ru",
        "describe.prompt=What = this?", "structure.categories=[animal, plant]", "describe.batch_size=4",
    )  # fmt: skip
    assert (config.chunk_size, config.clear_threshold_gb) == (32, 2.0)
    assert config.output == Path.home() / "a.csv"
    describe, structure = stage_of(config, "describe"), stage_of(config, "structure")
    assert (describe.prompt, describe.batch_size, describe.language) == ("What = this?", 4, "ru")
    assert structure.categories == ("animal", "plant")


@pytest.mark.parametrize("text", ["Answer in one line: what is this?", "passage: ", "7", "[photo]"])
def test_an_override_of_a_text_is_taken_as_it_is(text: str, load: Load) -> None:
    assert stage_of(load("", f"describe.prompt={text}"), "describe").prompt == text


def test_shared_options_reach_the_stages_and_their_own_win(load: Load) -> None:
    config = load(
        "device: cpu\nlanguage: ru\nstages: [open_image, {use: describe, model: a/b},"
        " {use: embed_text, model: a/b}, {use: structure, model: a/b, language: en}]"
    )
    assert {stage.device for stage in config.stages if hasattr(stage, "device")} == {"cpu"}
    assert stage_of(config, "describe").language == "ru"
    assert stage_of(config, "structure").language == "en"


def test_a_shared_option_may_stay_when_its_stage_is_taken_out(load: Load) -> None:
    config = load("categories: [animal]\nstages: [open_image, {use: describe, model: a/b}]")
    assert len(config.stages) == 2


def test_a_model_is_not_shared(load: Load) -> None:
    assert "model" in mistake(load, "model: a/b")


def test_a_missing_file_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"configs/deom\.yaml cannot be read.*did you mean .*configs/demo\.yaml\?"):
        load_config(PROJECT / "configs/deom.yaml")


@pytest.mark.parametrize("text", ["stages: [", "a: b: c", "\tstages: []", "- a\n- b", "", "just a text"])
def test_a_file_that_is_no_configuration_is_one_sentence(text: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^.*broken\.yaml.*$") as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_a_file_of_other_bytes_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("output: Zürich.csv".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml is not valid YAML"):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("categories: [cat]\nlanguage: en\ncategories: [dog]\nstages: [open_image]\n", "categories", (1, 3)),
        ("stages:\n  - use: open_image\n    max_size_px: 9\n    max_size_px: 8\n", "max_size_px", (3, 4)),
        ("stages: [open_image, {use: flag, write: {flags: a, 'flags': b}}]\n", "flags", (1, 1)),
        ("stages: [open_image]\nstages: [open_image]\n", "stages", (1, 2)),
    ],
)
def test_a_key_that_is_given_twice_is_named_with_its_lines(
    text: str, key: str, lines: tuple[int, int], tmp_path: Path
) -> None:
    """YAML would take the last one, and nobody would know."""
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    first, second = lines
    assert f"config.yaml is not valid YAML: '{key}' is given in line {first} and in line {second}" in str(caught.value)


def test_a_merged_key_may_be_given_again(tmp_path: Path) -> None:
    """`<<` brings defaults, several of them even; what stands beside it wins."""
    path = tmp_path / "config.yaml"
    path.write_text(
        "stages:\n  - &first {use: open_image, max_size_px: 9, name: first}\n"
        "  - {<<: *first, <<: {name: third}, name: second, write: {image: other}}\n"
    )
    config = load_config(path)
    assert [(stage.name, stage_of(config, stage.name).max_size_px) for stage in config.stages] == [
        ("first", 9),
        ("second", 9),
    ]


@contextlib.contextmanager
def outside_stage(folder: Path, module: str, option: str = "size: int = 1") -> Iterator[None]:
    """A module with one stage, that a user keeps outside the package."""
    (folder / f"{module}.py").write_text(
        "from dataclasses import dataclass\nfrom vec_pipeline.record import Stage\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Outside(Stage):\n"
        f"    reads = ('image',)\n    writes = {{'sharpness': 'number'}}\n    {option}\n",
        encoding="utf-8",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        importlib.invalidate_caches()
        yield


def test_a_stage_outside_the_package_adds_its_column(load: Load, tmp_path: Path) -> None:
    with outside_stage(tmp_path, "sharpness"):
        config = load("stages: [open_image, {use: sharpness.Outside, size: 3}]", "sharpness.Outside.batch_size=2")
    stage = stage_of(config, "sharpness")
    assert (stage.size, stage.batch_size) == (3, 2)
    assert config.extra_columns({}) == {"sharpness": "number"}


def test_a_dotted_path_may_name_the_module_of_one_stage(load: Load, tmp_path: Path) -> None:
    (tmp_path / "house").mkdir()
    (tmp_path / "house" / "__init__.py").touch()
    with outside_stage(tmp_path / "house", "blur"), pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        config = load("stages: [open_image, {use: house.blur, size: 3}]")
    assert stage_of(config, "blur").size == 3


@pytest.mark.parametrize("name", ["nowhere.Stage", "tests.fakes.Nothing", "tests.fakes.Journal"])
def test_a_dotted_path_to_no_stage_is_named(name: str, load: Load) -> None:
    assert name in mistake(load, f"stages: [open_image, {name}]")


def test_a_class_is_found_among_others() -> None:
    assert stage_class({"use": "tests.fakes.Describe"}) is FakeDescribe


def changed(config: Config, *overrides: str) -> set[str]:
    """Names of the stages whose own settings an override changes. Of the others, what they read decides."""
    before = {stage.name: fingerprint(stage) for stage in config.stages}
    return {stage.name for stage in stages_with(*overrides) if fingerprint(stage) != before[stage.name]}


def stages_with(*overrides: str) -> tuple[Stage, ...]:
    return load_config(PRODUCTION, overrides).stages


@pytest.fixture
def production() -> Config:
    return load_config(PRODUCTION)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("describe.prompt=What is this?", {"describe"}),
        ("describe.revision=v2", {"describe"}),
        ("structure.prompt=What is this?", {"structure"}),
        ("embed_image.model=a/b", {"embed_image"}),
        ("open_image.max_size_px=100", {"open_image"}),
        ("categories=[animal]", {"structure"}),
        ("flag.repetitive=0.5", {"flag"}),
    ],
)
def test_a_changed_option_voids_the_results_of_its_stage(override: str, expected: set[str], production: Config) -> None:
    assert changed(production, override) == expected


def test_speed_options_void_nothing(production: Config) -> None:
    options = (
        "describe.batch_size=1",
        "structure.batch_size=2",
        "structure.threads=1",
        "structure.context_tokens=4096",
    )
    assert changed(production, *options, "device=cpu", "chunk_size=2", "result_cache=false") == set()


def test_a_stage_has_the_same_results_whatever_it_and_its_columns_are_called(production: Config) -> None:
    stage = stage_of(production, "embed_text")
    renamed = replace(stage, name="embed_title", read={"text": "title"}, write={"text_vector": "title_vector"})
    assert fingerprint(renamed) == fingerprint(stage)


def test_another_wording_in_prompts_py_voids_the_results_of_its_stage(
    production: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {stage: fingerprint(stage) for stage in production.stages}
    monkeypatch.setitem(prompts.PROMPTS, "en", replace(prompts.PROMPTS["en"], describe="What is this?"))
    assert [stage.name for stage in production.stages if fingerprint(stage) != before[stage]] == ["describe"]


def test_another_version_of_a_stage_voids_its_results(production: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {stage: fingerprint(stage) for stage in production.stages}
    monkeypatch.setattr(type(stage_of(production, "flag")), "version", 2)
    assert [stage.name for stage in production.stages if fingerprint(stage) != before[stage]] == ["flag"]


def test_another_file_in_the_place_of_a_local_model_voids_its_results(load: Load, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    stages = load("", f"structure.model={model}").stages
    before = {stage: fingerprint(stage) for stage in stages}
    model.write_bytes(b"GGUF, trained longer")
    assert [stage.name for stage in stages if fingerprint(stage) != before[stage]] == ["structure"]


# --- the settings beside a CSV

COMMIT, NEWER_COMMIT = "a" * 40, "b" * 40


@pytest.fixture
def csv_path(tmp_path: Path, production: Config) -> Path:
    """The path of a CSV with the settings of the production set, whose describer was at a commit then."""
    path = tmp_path / "annotations.csv"
    write_settings(path, at_commit(production.stages, COMMIT), production.stages, COLUMNS, ["shop.sources"])
    return path


def at_commit(stages: Sequence[Stage], commit: str) -> list[Stage]:
    """The stages, the describer's model at a commit."""
    return [replace(stage, revision=commit) if stage.name == "describe" else stage for stage in stages]  # type: ignore[call-arg]


def check(csv_path: Path, stages: Sequence[Stage], header: Sequence[str] = ()) -> None:
    check_settings(csv_path, stages, header)


def test_a_rerun_with_the_same_settings_passes(csv_path: Path) -> None:
    check(csv_path, stages_with("describe.batch_size=1", "device=cpu", "categories=[]"))


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("describe.model=Qwen/Qwen2-VL-2B-Instruct", "describe.model"),
        ("describe.revision=v2", "describe.revision"),
        ("categories=[animal]", "structure.categories"),
    ],
)
def test_a_rerun_with_other_settings_is_refused_by_key(override: str, key: str, csv_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        check(csv_path, stages_with(override))
    assert key in str(caught.value)
    assert "--output" in str(caught.value)
    assert str(csv_path.with_suffix(".settings.yaml")) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("annotations.csv", "annotations.settings.yaml"),
        ("a.v1", "a.v1.settings.yaml"),
        ("a.v1.csv", "a.v1.settings.yaml"),
        ("a.tsv", "a.tsv.settings.yaml"),
        ("a", "a.settings.yaml"),
    ],
)
def test_settings_stand_beside_the_output_under_its_name(name: str, expected: str) -> None:
    assert settings_path(Path("folder") / name) == Path("folder") / expected


def test_a_rerun_with_another_version_of_a_stage_is_refused(
    csv_path: Path, production: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(stage_of(production, "flag")), "version", 2)
    with pytest.raises(UserError, match=r"made with other settings \(flag\.version\)"):
        check(csv_path, production.stages)


def test_a_rerun_without_a_stage_is_refused(csv_path: Path, production: Config) -> None:
    with pytest.raises(UserError, match=r"made with other settings \(describe, embed_text, embed_words, \.\.\.\)"):
        check(csv_path, production.stages[:1])


def test_a_rerun_with_other_names_of_columns_is_refused(csv_path: Path, production: Config) -> None:
    renamed = [
        replace(stage, write={"flags": "doubts"}) if stage.name == "flag" else stage for stage in production.stages
    ]
    with pytest.raises(UserError, match=r"made with other settings \(flag\.write\)"):
        check(csv_path, renamed)


def test_a_stage_whose_columns_the_csv_lacks_is_no_obstacle(csv_path: Path, production: Config, load: Load) -> None:
    text = "stages: [open_image, {use: describe, model: a/b, name: title, write: {text: title, text_confidence: sure}}]"
    title = stage_of(load(text), "title")
    check(csv_path, (*production.stages, title), tuple(COLUMNS))
    with pytest.raises(UserError, match=r"made with other settings \(title\)"):
        check(csv_path, (*production.stages, title), (*COLUMNS, "title"))


def test_a_csv_without_settings_is_no_obstacle(csv_path: Path) -> None:
    settings_path(csv_path).unlink()
    assert recorded_settings(csv_path) == Recorded()
    check(csv_path, stages_with("categories=[animal]"))


def test_settings_of_before_columns_were_declared_are_understood(csv_path: Path, production: Config) -> None:
    """They hold the stages alone, without what is newer: the class, its version, which was the first, the renaming."""
    stages = yaml.safe_load(settings_path(csv_path).read_text())["stages"]
    for options in stages.values():
        for name in ("use", "version", "read", "write", "commit"):
            options.pop(name, None)
    settings_path(csv_path).write_text(yaml.safe_dump(stages))
    raised = [f"{stage.name}.version" for stage in production.stages if stage.version > 1]
    assert changed_settings(recorded_settings(csv_path), production.stages) == raised
    assert set(changed_settings(recorded_settings(csv_path), stages_with("categories=[animal]"))) == {
        *raised,
        "structure.categories",
        "structure.identity",
    }
    assert column_types(csv_path, ["text_vector", "clip_score", "flags"]) == {
        "text_vector": "vector",
        "clip_score": "number",
        "flags": "text",
    }


def test_types_of_columns_and_sources_are_recorded(csv_path: Path, production: Config) -> None:
    assert recorded_settings(csv_path).sources == ["shop.sources"]
    columns = {**COLUMNS, "boxes": "json", "title_vector": "vector"}
    write_settings(csv_path, production.stages, production.stages, columns, [])
    assert column_types(csv_path, ["boxes", "title_vector", "text", "unheard of"]) == {
        "boxes": "json",
        "title_vector": "vector",
        "text": "text",
        "unheard of": "text",
    }


@pytest.mark.parametrize(
    "content",
    [
        b"columns: {a: text", b"- a\n- b\n", b"text", b"", b"\xff\xfe\0", b"stages: 3", b"stages: {describe: 3}",
        b"columns: 3\nstages: {}", b"columns: {a: 3}\nstages: {}", b"sources: 3\nstages: {}",
        b"a: 2001-99-99", b"[" * 5000,
    ],
)  # fmt: skip
def test_damaged_settings_are_named(content: bytes, csv_path: Path) -> None:
    settings_path(csv_path).write_bytes(content)
    with pytest.raises(UserError, match=r"annotations\.settings\.yaml is damaged: delete it if .*, or use --output"):
        recorded_settings(csv_path)


def test_a_csv_stays_with_the_commits_it_was_begun_with(csv_path: Path, production: Config) -> None:
    recorded = recorded_settings(csv_path)
    resumed = with_recorded_commits(production.stages, recorded)
    assert {stage.name: stage.revision for stage in resumed if getattr(stage, "revision", "")} == {"describe": COMMIT}
    other_model = with_recorded_commits(stages_with("describe.model=a/b"), recorded)
    assert stage_of(Config(stages=other_model), "describe").revision == "", "that commit is of another repository"


def test_a_refresh_finds_newer_commits_settings_and_columns(csv_path: Path, production: Config) -> None:
    header = tuple(COLUMNS)

    def found(*overrides: str, commit: str, columns: Sequence[str] = ()) -> list[str]:
        asked = stages_with(*overrides)
        return outdated(csv_path, asked, at_commit(asked, commit), header, columns)

    assert found(commit=COMMIT) == []
    assert found(commit=NEWER_COMMIT) == ["describe.commit"]
    assert found("flag.repetitive=0.5", commit=COMMIT) == ["flag.repetitive"]
    assert found(commit=COMMIT, columns=["text", "clip_score"]) == ["clip_score"]
    settings_path(csv_path).unlink()
    assert found(commit=COMMIT) == ["their settings are unknown"]


def test_a_kill_while_the_settings_are_written_again_leaves_them_whole(
    csv_path: Path, production: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are written at each start; a torn file would refuse every later run."""
    before = settings_path(csv_path).read_bytes()

    def killed(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_settings(csv_path, production.stages[:2], production.stages, COLUMNS, [])
    assert settings_path(csv_path).read_bytes() == before
    check(csv_path, production.stages)


def test_settings_are_on_the_disk_before_they_have_their_name(
    csv_path: Path, production: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut could leave an empty file otherwise."""
    settings_path(csv_path).unlink()
    synced: list[bytes] = []

    def note(descriptor: int) -> None:
        assert not settings_path(csv_path).exists()
        synced.append(Path(f"/proc/self/fd/{descriptor}").read_bytes())

    monkeypatch.setattr(os, "fsync", note)
    write_settings(csv_path, production.stages, production.stages, COLUMNS, [])
    assert synced == [settings_path(csv_path).read_bytes()]


def test_settings_on_a_full_disk_are_one_sentence(csv_path: Path, production: Config) -> None:
    with disk_full_after(100), pytest.raises(UserError) as caught:
        write_settings(csv_path, production.stages[:2], production.stages, COLUMNS, [])
    assert str(caught.value).endswith("cannot be written (File too large): free some disk space, then rerun")
    check(csv_path, production.stages)


def test_the_laptop_set_downloads_less_than_3_gb() -> None:
    stages = load_config(PROJECT / "configs" / "laptop.yaml").stages
    models = [stage.model for stage in stages if isinstance(stage, ModelStage)]
    assert len(models) == 4
    assert 1 < sum(HUB_GB[model] for model in models) < 3
