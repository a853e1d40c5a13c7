"""YAML to objects, every mistake named before any model loads; and the settings a CSV was made with."""

import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import os
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml

from vec_pipeline import weights
from vec_pipeline.record import COLUMNS, Stage, UserError

SOURCE_VALUES = ("path",)
LARGEST_CONFIG, LARGEST_NUMBER = 100_000, 10**12


class ConfigError(UserError):
    """A mistake in the configuration, named by its key."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split())[:1000])  # one line, whatever the file holds


@dataclass(frozen=True, kw_only=True)
class Config:
    """The worker's own options. Those of the stages are the fields of the stages."""

    stages: tuple[Stage, ...]
    output: Path = Path("output/annotations.csv")
    chunk_size: int | Literal["auto"] = "auto"
    overlap: bool | Literal["auto"] = "auto"
    ledger: bool = True
    max_consecutive_errors: int = 50
    checkpoint_every: int = 10
    model_cache_size: int = 5
    clear_threshold_gb: float = 1.0
    read_threads: int = 4
    log_level: Literal["debug", "info", "warning"] = "info"

    def extra_columns(self) -> tuple[str, ...]:
        """Columns that stages write beside those of the contract."""
        written = (name for stage in self.stages for name in stage.writes)
        return tuple(dict.fromkeys(name for name in written if name not in COLUMNS))


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration file; `overrides` are KEY=VALUE, with STAGE.KEY for a stage's option.

    A key beside those of Config and `stages` is shared: it is an option of every stage that has a field of that name.
    Raises ConfigError, naming the key and the nearest valid one.
    """
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}{similar_file(path)}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: `stages:` with a list of stages is missing")
    for override in overrides:
        apply_override(content, override)
    if not isinstance(content.get("stages"), list):
        raise ConfigError(f"{path}: `stages:` with a list of stages is missing")
    return build(content)


def parse(text: str) -> Any:
    """Read YAML of the size of a configuration; aliases of aliases can make a billion values of a few hundred bytes.

    Raises ValueError for more than that, yaml.YAMLError, and RecursionError for lists within lists without end.
    """
    if len(text) > LARGEST_CONFIG:
        raise ValueError(f"it has more than the {LARGEST_CONFIG:,} characters of a configuration")
    content = yaml.safe_load(text)
    waiting, size = [content], 0
    while waiting:
        value = waiting.pop()
        size += len(value) if isinstance(value, (str, list, dict)) else 1
        if size > LARGEST_CONFIG:
            raise ValueError(f"it holds more than the {LARGEST_CONFIG:,} values and letters of a configuration")
        if isinstance(value, str) and b"\0" in value.encode():  # refuses half a character too
            raise ValueError("a text holds a zero byte")
        if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
            raise ValueError(f"a number is larger than {LARGEST_NUMBER:,}")
        if isinstance(value, (list, dict)):
            waiting += [*value, *value.values()] if isinstance(value, dict) else value
    return content


def build(content: dict[str, Any]) -> Config:
    """Make the configuration out of what a file holds."""
    own = {field.name for field in fields(Config)}
    shared = {key: value for key, value in content.items() if key not in own}
    entries = [entry if isinstance(entry, dict) else {"use": entry} for entry in content["stages"]]
    classes = [stage_class(entry) for entry in entries]
    known = {*classes, *(stage_class({"use": name}) for name in stage_names())}
    shareable = {field.name for cls in known for field in fields(cls)} - {"batch_size", "model"}
    for key in shared.keys() - shareable:
        raise ConfigError(unknown(key, own | shareable))
    stages = tuple(build_stage(cls, entry, shared) for cls, entry in zip(classes, entries, strict=True))
    check_wiring(stages)
    options = {key: value for key, value in content.items() if key in own and key != "stages"}
    config = Config(stages=stages, **typed(Config, options, ""))
    check_numbers(config, "")
    return config


def stage_names() -> list[str]:
    """The stages of the package."""
    return sorted(file.stem for file in (Path(__file__).parent / "stages").glob("[a-z]*.py"))


def stage_class(entry: Mapping[str, Any]) -> type[Stage]:
    """Find the stage that `use:` names: a file of vec_pipeline/stages, or a dotted path to a module or class."""
    name = entry.get("use")
    if not isinstance(name, str):
        raise ConfigError(f"stages: {dict(entry)} has no `use: NAME`")
    if "." not in name and name not in stage_names():
        raise ConfigError(f"stages: {unknown(name, stage_names(), 'stage')}")
    try:
        found = stages_of(name if "." in name else f"vec_pipeline.stages.{name}")
    except Exception as error:  # whatever its module raises
        raise ConfigError(f"stages: {name} cannot be imported: {error}") from None
    if len(found) != 1:
        raise ConfigError(f"stages: {name} names {len(found)} stages; give MODULE.CLASS")
    return found[0]


def stages_of(dotted_path: str) -> list[type[Stage]]:
    """The stages that a module defines, or the one that MODULE.CLASS names. Raises ImportError."""
    parent, _, name = dotted_path.rpartition(".")
    if importlib.util.find_spec(parent) and hasattr(importlib.import_module(parent), name):
        candidates = [getattr(importlib.import_module(parent), name)]
    else:
        candidates = []
    if not any(inspect.isclass(candidate) for candidate in candidates):
        module = importlib.import_module(dotted_path)
        candidates = [value for value in vars(module).values() if getattr(value, "__module__", "") == dotted_path]
    return [value for value in candidates if inspect.isclass(value) and issubclass(value, Stage)]


def build_stage(cls: type[Stage], entry: Mapping[str, Any], shared: Mapping[str, Any]) -> Stage:
    names = {field.name for field in fields(cls)}
    where = f"{cls.__module__.rpartition('.')[2]}."
    options = {key: value for key, value in shared.items() if key in names}
    options |= {key: value for key, value in entry.items() if key != "use"}
    language = str(options.get("language") or shared.get("language", "en"))
    options = {
        key: type(value)(value.replace("{language}", language)) if isinstance(value, str) else value
        for key, value in options.items()
    }
    for key in options.keys() - names:
        raise ConfigError(unknown(key, names, f"option of {where[:-1]}", where))
    try:
        stage = cls(**typed(cls, options, where))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where[:-1]}: {error}") from None
    check_numbers(stage, where)
    return stage


def check_numbers(instance: Config | Stage, where: str) -> None:
    """Raise ConfigError for a number below 1, or below 0 where 0 is the default and has a meaning of its own."""
    for field in fields(instance):
        value, lowest = getattr(instance, field.name), 0 if field.default == 0 else 1
        if isinstance(value, int) and not isinstance(value, bool) and value < lowest:
            raise ConfigError(f"{where}{field.name}: must be at least {lowest}, not {value}")
        if isinstance(value, float) and not 0 <= value < math.inf:
            raise ConfigError(f"{where}{field.name}: must be a number from 0 on, not {value}")


def typed(cls: type, options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check each option against its field's type; lists become tuples and texts become paths where wanted."""
    hints = typing.get_type_hints(cls)
    return {key: convert(value, hints[key], where + key) for key, value in options.items()}


class Override(str):
    """The text of a --set: taken as it is where the option is a text, else read as YAML."""


def convert(value: Any, hint: Any, key: str, words: Sequence[str] = ()) -> Any:
    """Return the value as the type the hint names, or one of the words. Raises ConfigError."""
    if isinstance(value, Override):
        value = str(value) if hint in (str, Path) else yaml_of(value)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and types.NoneType in arguments:
            return None
        words = [word for argument in arguments for word in typing.get_args(argument)]  # of a Literal: "auto"
        hint = next(hint for hint in arguments if hint is not types.NoneType and not typing.get_args(hint))
        return words[words.index(value)] if value in words else convert(value, hint, key, words)
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(
            f"{key}: {value!r} is none of {', '.join(map(str, arguments))}{did_you_mean(value, arguments)}"
        )
    if origin is tuple and isinstance(value, list):
        return tuple(convert(item, arguments[0], key) for item in value)
    if hint is Path and isinstance(value, str):
        return Path(os.path.expanduser(value))  # Path's own raises for a user who does not exist
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wanted = origin or hint
    if isinstance(value, wanted) and not (isinstance(value, bool) and wanted is not bool):
        return value
    kinds = " or ".join([TYPE_NAMES.get(wanted, wanted.__name__), *words])
    raise ConfigError(f"{key}: {value!r} is no {kinds}")


TYPE_NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false", tuple: "list", Path: "path"}


def apply_override(content: dict[str, Any], override: str) -> None:
    """Apply one KEY=VALUE of the command line to what the file holds."""
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"--set {override}: give KEY=VALUE, for example describe.batch_size=4")
    stage_name, dot, option = key.rpartition(".")
    if not dot:
        content[key] = yaml_of(text) if key == "stages" else Override(text)
        return
    if not isinstance(content.get("stages"), list):
        return
    content["stages"] = [entry if isinstance(entry, dict) else {"use": entry} for entry in content["stages"]]
    chosen = [entry for entry in content["stages"] if str(entry.get("use")) == stage_name]
    if not chosen:
        names = [str(entry.get("use")) for entry in content["stages"]]
        raise ConfigError(f"--set {unknown(stage_name, names, 'stage of this configuration')}")
    for entry in chosen:
        entry[option] = Override(text)


def yaml_of(text: str) -> Any:
    try:
        return parse(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def check_wiring(stages: Iterable[Stage]) -> None:
    """Raise ConfigError where a stage reads what no earlier stage makes."""
    stages = list(stages)
    available = set(SOURCE_VALUES)
    for stage in stages:
        if sum(other.name == stage.name for other in stages) > 1:
            raise ConfigError(f"stages: there are two called {stage.name}: leave one out, or rename its file")
        if twice := available.intersection((*stage.writes, *stage.makes)):
            raise ConfigError(f"stages: {stage.name} writes {min(twice)}, which an earlier stage writes: leave one out")
        for name in stage.reads:
            if name not in available:
                makers = [other.name for other in stages if name in (*other.writes, *other.makes)]
                remedy = f"move {makers[0]} before it" if makers else f"add a stage that writes {name} before it"
                raise ConfigError(f"stages: {stage.name} reads {name}, which no earlier stage writes: {remedy}")
        available.update(stage.writes, stage.makes)
    if not any("content_hash" in stage.makes for stage in stages):
        raise ConfigError("stages: open_image is missing: put it first")


def unknown(key: str, valid: Iterable[str], what: str = "option", where: str = "") -> str:
    return f"{where}{key} is no {what}{did_you_mean(key, valid, where)}"


def did_you_mean(value: object, valid: Iterable[object], where: str = "") -> str:
    names = sorted(map(str, valid))
    matches = get_close_matches(str(value), names, n=1, cutoff=0.5)
    return f"; did you mean {where}{matches[0]}?" if matches else f"; there are: {', '.join(names)}"


def similar_file(path: Path) -> str:
    folder = path.parent
    names = [file.name for file in folder.glob("*.y*ml")] if folder.is_dir() else []
    matches = get_close_matches(path.name, names, n=1, cutoff=0.4)
    return f"; did you mean {folder / matches[0]}?" if matches else ""


def settings(stages: Iterable[Stage]) -> dict[str, dict[str, Any]]:
    """What decides the content of a row: every stage's options but those of tuning, defaults and prompts included."""
    return {stage.name: stage_settings(stage) for stage in stages}


def stage_settings(stage: Stage) -> dict[str, Any]:
    names = [field.name for field in fields(stage) if field.name not in stage.tuning]
    found = {name: plain(getattr(stage, name)) for name in names}
    return {**found, "identity": stage.identity()} if stage.identity() else found


def plain(value: Any) -> Any:
    """The value as YAML knows it."""
    return list(value) if isinstance(value, tuple) else value


def fingerprints(stages: Iterable[Stage]) -> dict[Stage, str]:
    """What identifies each stage's results: its settings, its local weights, and those of the stages it reads from."""
    makers: dict[str, str] = {}
    prints = {}
    for stage in stages:
        inputs = (*stage.reads, *stage.may_read)
        parts = [stage.name, stage_settings(stage), [makers.get(name, "") for name in inputs]]
        if isinstance(model := getattr(stage, "model", None), str):
            parts.append(weights.version(model))
        prints[stage] = hashlib.blake2b(json.dumps(parts, default=str).encode(), digest_size=16).hexdigest()
        makers.update(dict.fromkeys((*stage.writes, *stage.makes), prints[stage]))
    return prints


def changed_settings(csv_path: Path, stages: Sequence[Stage], header: Sequence[str] = ()) -> list[str]:
    """The settings, as STAGE.KEY, that are others than those the CSV was made with, which stand beside it.

    A stage that writes none of the columns of `header` does not count, and neither does an option that is younger than
    the CSV and has its default. Raises UserError where the settings file is damaged.
    """
    path = settings_path(csv_path)
    if not (csv_path.exists() and csv_path.stat().st_size and path.exists()):
        return []
    try:
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        before = None
    if not isinstance(before, dict) or not all(isinstance(options, dict) for options in before.values()):
        raise UserError(f"{path} is damaged: delete it if {csv_path} was made with these settings, or use --output")
    changed = []
    for stage in stages:
        now = stage_settings(stage)
        if stage.name in before:
            then = {**defaults(stage), **before.pop(stage.name)}
            changed += [f"{stage.name}.{key}" for key, value in now.items() if then.get(key) != value]
        elif not (stage.writes and header) or set(stage.writes) & set(header):
            changed += [f"{stage.name}.{key}" for key in now]
    return changed + [f"{name}.{key}" for name, options in before.items() for key in options]


def defaults(stage: Stage) -> dict[str, Any]:
    return {field.name: plain(field.default) for field in fields(stage)}


def check_settings(csv_path: Path, stages: Sequence[Stage], header: Sequence[str] = ()) -> None:
    """Raise UserError where the settings have changed: rows of two models in one file could not be told apart."""
    if changed := changed_settings(csv_path, stages, header):
        raise UserError(
            f"{csv_path} was made with other settings ({', '.join(changed[:3])}{', ...' if changed[3:] else ''}): "
            f"put them back as in {settings_path(csv_path)}, name a new file with --output, or use --refresh to bring "
            "its rows up to date"
        )


def write_settings(csv_path: Path, stages: Iterable[Stage]) -> None:
    """Write the settings beside the CSV."""
    text = yaml.safe_dump(settings(stages), allow_unicode=True, sort_keys=False)
    new = settings_path(csv_path).with_suffix(".new")  # a kill must not leave half a file
    try:
        with new.open("w", encoding="utf-8") as file:
            file.write("# The settings this CSV was made with.\n" + text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(settings_path(csv_path))
    except OSError as error:
        raise UserError(
            f"{new} cannot be written ({error.strerror}): make room and run the same command again"
        ) from None


def settings_path(csv_path: Path) -> Path:
    return csv_path.with_suffix(".settings.yaml")
