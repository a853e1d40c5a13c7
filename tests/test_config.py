"""Configurations: the shipped ones load, and every mistake is named with its key and the nearest valid one."""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes import Describe as FakeDescribe
from vec_pipeline import prompts, weights
from vec_pipeline.config import (
    SOURCE_VALUES,
    Config,
    ConfigError,
    check_settings,
    fingerprints,
    load_config,
    stage_class,
    write_settings,
)
from vec_pipeline.record import Stage, UserError
from vec_pipeline.sources.folder import Folder

PROJECT = Path(__file__).resolve().parent.parent
PRODUCTION = PROJECT / "config.yaml"
SHIPPED = [PRODUCTION, PROJECT / "configs/small.yaml", PROJECT / "configs/demo.yaml"]
STAGE_NAMES = sorted(path.stem for path in (PROJECT / "vec_pipeline/stages").glob("[a-z]*.py"))

Load = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a configuration given as YAML, with overrides; three stages unless the text says otherwise."""

    def load_text(text: str, *overrides: str) -> Config:
        if "stages:" not in text:
            text += "\nstages: [open_image, {use: describe, model: a/b}, {use: structure, model: c/d}]"
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(path, overrides)

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
    assert sorted(stage.name for stage in config.stages) == STAGE_NAMES
    assert config.extra_columns() == ("text_confidence", "clip_score", "flags")


def test_every_option_stands_in_the_production_set() -> None:
    content = yaml.safe_load(PRODUCTION.read_text(encoding="utf-8"))
    assert {field.name for field in fields(Config)} <= content.keys()
    for entry in content["stages"]:
        cls = stage_class(entry)
        options = {field.name for field in fields(cls)} - ({"batch_size"} if cls.runs_ahead else set())
        assert options <= entry.keys() | content.keys(), entry["use"]


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
    assert f"did you mean {expected}?" in mistake(load, text)


def test_a_name_like_no_other_gets_the_list(load: Load) -> None:
    sentence = mistake(load, "stages: [xyz]")
    assert all(name in sentence for name in ("xyz", *STAGE_NAMES))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("chunk_size: many", "chunk_size: 'many' is no whole number or auto"),
        ("chunk_size: 2.5", "chunk_size: 2.5 is no whole number or auto"),
        ("chunk_size: true", "chunk_size: True is no whole number or auto"),
        ("clear_threshold_gb: much", "clear_threshold_gb: 'much' is no number"),
        ("log_level: loud", "log_level: 'loud' is none of debug, info, warning"),
        ("output: 3", "output: 3 is no path"),
        ("device: gpu", "describe.device: 'gpu' is none of auto, cuda, cpu"),
        ("language: fr", "describe.language: 'fr' is none of en, ru"),
        ("categories: animal", "structure.categories: 'animal' is no list"),
        ("categories: [animal, 3]", "structure.categories: 3 is no text"),
        ("stages: [open_image, {use: describe, model: 7}]", "describe.model: 7 is no text"),
    ],
)
def test_a_wrong_type_is_named(text: str, expected: str, load: Load) -> None:
    assert expected in mistake(load, text)


def test_true_or_false_is_wanted_where_a_stage_has_a_switch(load: Load, tmp_path: Path) -> None:
    with outside_stage(tmp_path, "switched", "is_loud: bool = False"):
        assert "switched.is_loud: 1 is no true or false" in mistake(
            load, "stages: [open_image, {use: switched.Outside, is_loud: 1}]"
        )


@pytest.mark.parametrize("key", ["chunk_size", "checkpoint_every", "model_cache_size", "read_threads"])
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
            "embed_text reads text, which no earlier stage writes: add a stage that writes text before it",
        ),
        ("stages: [{use: describe, model: a/b}, open_image]", "move open_image before it"),
        ("stages: []", "open_image is missing"),
        ("output: a.csv\nstages: describe", "`stages:` with a list of stages is missing"),
        ("stages: [{model: a/b}]", "has no `use: NAME`"),
    ],
)
def test_stages_that_cannot_work_are_refused(text: str, expected: str, load: Load) -> None:
    assert expected in mistake(load, text)


def test_a_stage_given_twice_is_refused(load: Load) -> None:
    """The second would write over the columns of the first, and the settings file can hold only one of them."""
    twice = "{use: describe, model: a/b}, {use: describe, model: c/d}"
    assert "describe" in mistake(load, f"stages: [open_image, {twice}]")


def test_what_the_wiring_takes_for_granted_comes_from_the_source(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (record,) = Folder(tmp_path)
    assert set(SOURCE_VALUES) <= record.values.keys()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("chunk_size", "give KEY=VALUE"),
        ("chunksize=3", "did you mean chunk_size?"),
        ("describe.batchsize=3", "did you mean describe.batch_size?"),
        ("describ.batch_size=3", "did you mean describe?"),
        ("describe.batch_size=many", "describe.batch_size: 'many' is no whole number or auto"),
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


@contextlib.contextmanager
def outside_stage(folder: Path, module: str, option: str = "size: int = 1") -> Iterator[None]:
    """A module with one stage, that a user keeps outside the package."""
    (folder / f"{module}.py").write_text(
        "from dataclasses import dataclass\nfrom vec_pipeline.record import Stage\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Outside(Stage):\n"
        f"    reads = ('image',)\n    writes = ('sharpness',)\n    {option}\n",
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
    assert config.extra_columns() == ("sharpness",)


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
    """Names of the stages whose results an override makes void."""
    before = {stage.name: text for stage, text in fingerprints(config.stages).items()}
    other = load_config(PRODUCTION, overrides).stages
    return {stage.name for stage, text in fingerprints(other).items() if text != before[stage.name]}


@pytest.fixture
def production() -> Config:
    return load_config(PRODUCTION)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("describe.prompt=What is this?", set(STAGE_NAMES) - {"open_image"}),
        ("structure.prompt=What is this?", {"structure", "flag"}),
        ("embed_image.model=a/b", {"embed_image", "flag"}),
        ("open_image.max_size_px=100", set(STAGE_NAMES)),
        ("categories=[animal]", {"structure", "flag"}),
    ],
)
def test_a_changed_option_voids_what_depends_on_it(override: str, expected: set[str], production: Config) -> None:
    assert changed(production, override) == expected


def test_tuning_voids_nothing(production: Config) -> None:
    tuning = ("describe.batch_size=1", "structure.batch_size=2", "structure.threads=1", "structure.context_tokens=4096")
    assert changed(production, *tuning, "device=cpu", "chunk_size=2") == set()


def test_another_wording_in_prompts_py_voids_what_depends_on_it(
    production: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprints(production.stages)
    monkeypatch.setitem(prompts.PROMPTS, "en", replace(prompts.PROMPTS["en"], describe="What is this?"))
    after = fingerprints(production.stages)
    voided = {stage.name for stage in production.stages if before[stage] != after[stage]}
    assert voided == set(STAGE_NAMES) - {"open_image"}


def test_another_file_in_the_place_of_a_local_model_voids_its_results(load: Load, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    stages = load("", f"structure.model={model}").stages
    before = fingerprints(stages)
    model.write_bytes(b"GGUF, trained longer")
    after = fingerprints(stages)
    assert {stage.name for stage in stages if before[stage] != after[stage]} == {"structure"}


@pytest.fixture
def csv_path(tmp_path: Path, production: Config) -> Path:
    """A CSV with rows of the production set, and its settings."""
    path = tmp_path / "annotations.csv"
    path.write_text("image_path\n/a.jpg\n")
    write_settings(path, production.stages)
    return path


def stages_with(*overrides: str) -> tuple[Stage, ...]:
    return load_config(PRODUCTION, overrides).stages


def test_a_rerun_with_the_same_settings_passes(csv_path: Path) -> None:
    check_settings(csv_path, stages_with("describe.batch_size=1", "device=cpu", "categories=[]"))


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("describe.model=Qwen/Qwen2-VL-2B-Instruct", "describe.model"),
        ("categories=[animal]", "structure.categories"),
    ],
)
def test_a_rerun_with_other_settings_is_refused_by_key(override: str, key: str, csv_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        check_settings(csv_path, stages_with(override))
    assert key in str(caught.value)
    assert "--output" in str(caught.value)
    assert str(csv_path.with_suffix(".settings.yaml")) in str(caught.value)


def test_a_rerun_without_a_stage_is_refused(csv_path: Path, production: Config) -> None:
    with pytest.raises(UserError, match=r"describe\.model"):
        check_settings(csv_path, production.stages[:1])


def test_a_csv_without_rows_or_settings_is_no_obstacle(csv_path: Path) -> None:
    other = stages_with("categories=[animal]")
    csv_path.with_suffix(".settings.yaml").rename(csv_path.with_suffix(".elsewhere"))
    check_settings(csv_path, other)
    csv_path.with_suffix(".elsewhere").rename(csv_path.with_suffix(".settings.yaml"))
    csv_path.write_text("")
    check_settings(csv_path, other)


def test_a_kill_while_the_settings_are_written_again_leaves_them_whole(
    csv_path: Path, production: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are written at each start; a torn file would refuse every later run."""

    def torn(path: Path, text: str, *arguments: Any, **options: Any) -> None:
        path.write_bytes(text.encode()[:20])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", torn)
    with contextlib.suppress(KeyboardInterrupt):
        write_settings(csv_path, production.stages)
    monkeypatch.undo()
    check_settings(csv_path, production.stages)
