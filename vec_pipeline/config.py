"""YAML to objects: every mistake of a configuration is named before any model loads."""

import importlib
import importlib.util
import inspect
import math
import os
import re
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from vec_pipeline.contract import check_declaration
from vec_pipeline.record import (
    COLUMN_TYPES,
    COLUMNS,
    OF_FILE,
    SOURCE_VALUES,
    DownloadOptions,
    SourceOptions,
    Stage,
    UserError,
    beside,
)

LARGEST_CONFIG, LARGEST_NUMBER = 100_000, 10**12
NAME = re.compile(r"[\w.-]+")  # of a stage or a column
OWN_COLUMNS = ("image_path", "timestamp", "error", "verified", *SOURCE_VALUES)  # which no stage writes
MERGE = "tag:yaml.org,2002:merge"  # <<, which may come several times
PLACEMENT = ("name", "read", "write")  # options of an entry that say where its stage stands among the others


class ConfigError(UserError):
    """A mistake in the configuration, named by its key."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split())[:1000])  # one line, whatever the file holds


@dataclass(frozen=True, kw_only=True)
class Config(DownloadOptions):
    """The worker's own options. Those of the stages are the fields of the stages."""

    stages: tuple[Stage, ...]
    output: Path = Path("output/annotations.csv")
    chunk_size: int | Literal["auto"] = "auto"
    result_cache: bool = True
    max_consecutive_errors: int = 50
    model_cache_size: int = 5
    clear_threshold_gb: float = 1.0
    read_threads: int = 4
    devices: str = ""
    log_level: Literal["debug", "info", "warning"] = "info"
    sources: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ("@eaDir", "#recycle", ".thumbnails")
    store: Path | Literal["auto", "none"] = "auto"

    def __post_init__(self) -> None:
        """Tell the stages where the CSV is, beside which they put files."""
        stages = tuple(replace(stage, csv_folder=self.output.parent) for stage in self.stages)
        object.__setattr__(self, "stages", stages)

    @property
    def store_path(self) -> Path | None:
        """The folder of downloaded pictures; None where they are not kept."""
        if isinstance(self.store, Path):
            return self.store
        return beside(self.output, "images") if self.store == "auto" else None

    def source_options(self, column: str = "", keep: Sequence[str] = (), exclude: Sequence[str] = ()) -> SourceOptions:
        """What sources are told: the options of the configuration, and those of the command line.

        exclude: globs beside those of the configuration.
        """
        return SourceOptions(
            **{each.name: getattr(self, each.name) for each in fields(DownloadOptions)},
            exclude=(*self.exclude, *exclude),
            column=column,
            keep=tuple(keep),
            store=self.store_path,
            temporary=beside(self.output, "downloads"),
            positions=beside(self.output, "positions.json"),
            salt=beside(self.output, "salt"),
        )

    def extra_columns(self, of_source: Mapping[str, str]) -> dict[str, str]:
        """Columns after those of the contract, and their types: those that the source brings, then the stages'.

        of_source: the columns of the source.
        """
        written = {name: kind for stage in self.stages for name, kind in stage.columns.items()}
        kinds = {**of_source, **written}
        return {name: kind for name, kind in kinds.items() if name not in COLUMNS and kind != "content"}

    def stages_for(self, header: Collection[str]) -> tuple[Stage, ...]:
        """The stages that write columns of a CSV, and those that they read from; all if it has none yet."""
        if not header:
            return self.stages
        needed, kept = set(header), []
        for stage in reversed(self.stages):
            if not stage.columns or needed.intersection(stage.outputs.values()):
                kept.append(stage)
                needed.update(stage.input_names)
        return tuple(reversed(kept))


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
    if not isinstance(content.get("stages"), list) or not content["stages"]:
        raise ConfigError(f"{path}: `stages:` with a list of stages is missing")
    return build(content)


class Loader(yaml.SafeLoader):
    """Refuses a mapping that has a key twice, of which YAML would keep the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}  # of the keys, by type and text
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
                name, line = (key.tag, key.value), key.start_mark.line + 1
                if name in lines:
                    raise ValueError(f"{key.value!r} is given in line {lines[name]} and in line {line}: delete one")
                lines[name] = line
        return node


def parse(text: str) -> Any:
    """Read YAML of the size of a configuration; aliases of aliases can make a billion values of a few hundred bytes.

    Raises ValueError for more than that and for a key that is given twice, yaml.YAMLError, and RecursionError for lists
    within lists without end.
    """
    if len(text) > LARGEST_CONFIG:
        raise ValueError(f"it has more than the {LARGEST_CONFIG:,} characters of a configuration")
    content = yaml.load(text, Loader)
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
    shareable = {name for cls in known for name in option_names(cls)} - {"batch_size", "model", "revision", *PLACEMENT}
    for key in shared.keys() - shareable:
        raise ConfigError(unknown(key, own | shareable))
    stages = tuple(build_stage(cls, entry, shared) for cls, entry in zip(classes, entries, strict=True))
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


def option_names(cls: type[Stage]) -> set[str]:
    """What an entry may set: every field but the one that Config does."""
    return {field.name for field in fields(cls)} - {"csv_folder"}


def build_stage(cls: type[Stage], entry: Mapping[str, Any], shared: Mapping[str, Any]) -> Stage:
    """Make a stage of its entry in a configuration, and of the options that all stages share."""
    names = option_names(cls)
    where = f"{entry.get('name') or cls.__module__.rpartition('.')[2]}."
    options = {key: value for key, value in shared.items() if key in names - {*PLACEMENT}}
    options |= {key: value for key, value in entry.items() if key != "use"}
    language = str(options.get("language") or shared.get("language", "en"))
    options = {
        key: type(value)(value.replace("{language}", language)) if isinstance(value, str) else value
        for key, value in options.items()
    }
    for key in options.keys() - names:
        raise ConfigError(unknown(key, names, where=where))
    try:
        check_declaration(cls)
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
    hints = typing.get_type_hints(cls, include_extras=True)
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
    if origin in (Literal, Annotated):  # annotated: a text, with the forms that it may have, 0 for any number
        forms = arguments if origin is Literal else arguments[1:]
        if value in forms or (origin is Annotated and isinstance(value, str) and re.sub(r"\d+", "0", value) in forms):
            return value
        raise ConfigError(f"{key}: {value!r} is not one of {', '.join(map(str, forms))}{nearest(value, forms)}")
    if origin is tuple and isinstance(value, list):
        return tuple(convert(item, arguments[0], key) for item in value)
    if origin is Mapping and isinstance(value, dict):
        return {convert(name, arguments[0], key): convert(each, arguments[1], key) for name, each in value.items()}
    if hint is Any:
        return value
    if hint is Path and isinstance(value, str):
        return Path(os.path.expanduser(value))  # Path's own raises for a user who does not exist
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wanted = origin or hint
    if isinstance(value, wanted) and not (isinstance(value, bool) and wanted is not bool):
        return value
    kinds = " or ".join([TYPE_NAMES.get(wanted, wanted.__name__), *words])
    raise ConfigError(f"{key}: {value!r} is not {kinds}")


TYPE_NAMES = {
    **{int: "an integer", float: "a number", str: "text", bool: "true or false", tuple: "a list", Path: "a path"},
    Mapping: "a mapping of names",
}


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
    names = [str(entry.get("name") or entry.get("use")) for entry in content["stages"]]
    chosen = [entry for entry, name in zip(content["stages"], names, strict=True) if name == stage_name]
    if not chosen:
        raise ConfigError(f"--set {override}: {unknown(stage_name, names, 'stage')}")
    for entry in chosen:
        entry[option] = Override(text)


def yaml_of(text: str) -> Any:
    try:
        return parse(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def check_wiring(stages: Sequence[Stage], of_source: Mapping[str, str]) -> None:
    """Raise ConfigError where a stage reads what no earlier stage makes, or writes what another one has written.

    of_source: the columns that the source brings, and their types.
    """
    for name, kind in of_source.items():
        if (
            name in OWN_COLUMNS
            or not NAME.fullmatch(name)
            or COLUMNS.get(name, kind) != kind
            or kind not in (*COLUMN_TYPES, "content")
        ):
            raise ConfigError(f"the source brings a column {name!r} of type {kind!r}: fix the source")
    makers: dict[str, Stage | None] = dict.fromkeys((*SOURCE_VALUES, *of_source))
    types = {**SOURCE_VALUES, **of_source}
    for stage in stages:
        if any(other.name == stage.name and other is not stage for other in stages):
            raise ConfigError(f"stages: two are called {stage.name}: give one of them another `name:`")
        check_names(stage)
        for name in (stage.read.get(own, own) for own in stage.reads):
            if name not in makers:
                later = [other.name for other in stages if name in other.outputs.values()]
                add = f"add a stage that writes {name} before it, or name a source that brings it"
                remedy = f"move {later[0]} before it" if later else add
                raise ConfigError(f"stages: {stage.name} reads {name}, which no earlier stage writes: {remedy}")
        check_placeholders(stage, types)
        for name in stage.input_names:
            maker = makers.get(name)
            if maker and stage.worker == "reader" != maker.worker:
                raise ConfigError(f"stages: {stage.name} runs while images are read, before {maker.name} writes {name}")
        for own, name in stage.outputs.items():
            if name in makers:
                raise ConfigError(
                    f"stages: {stage.name} writes {name}, which {makers[name].name if makers[name] else 'the source'} "  # type: ignore[union-attr]
                    f"writes too: leave one out, or rename it with `write: {{{own}: NAME}}`"
                )
            makers[name] = stage
            types[name] = {**stage.writes, **stage.intermediates}[own]


def check_placeholders(stage: Stage, types: Mapping[str, str]) -> None:
    """Raise ConfigError for a name in a prompt that no value has. types: of the values there are, by name."""
    texts = {name: name.removeprefix(OF_FILE) for name, kind in types.items() if kind in ("text", "number")}
    for own in stage.placeholders:
        if stage.read.get(own, own) not in texts:
            raise ConfigError(
                f"{stage.name}.prompt: unknown placeholder {{{own}}} (there are: {', '.join(sorted(texts.values()))}); "
                "{{ and }} stand for braces"
            )


def check_names(stage: Stage) -> None:
    """Raise ConfigError for names of `name:`, `read:` and `write:` that are none, or that the stage does not know."""
    if not NAME.fullmatch(stage.name):
        raise ConfigError(f"stages: name: {stage.name!r} is not a name of letters, digits, '_', '-' and '.'")
    for option, names in (("read", (*stage.reads, *stage.optional)), ("write", tuple(stage.outputs))):
        for name in getattr(stage, option):
            if name not in names:
                raise ConfigError(f"{stage.name}.{option}: {unknown(name, names, 'value')}")
    for own, name in stage.outputs.items():
        if name in OWN_COLUMNS or not NAME.fullmatch(name):
            raise ConfigError(f"{stage.name}: {name!r} cannot be the name of {own}: rename it with `write:`")
        if (kind := stage.columns.get(name)) and COLUMNS.get(name, kind) != kind:
            raise ConfigError(f"{stage.name} writes {name} as {kind}, and that column holds {COLUMNS[name]}")


def unknown(key: str, valid: Iterable[str], what: str = "option", where: str = "") -> str:
    return f"unknown {what} '{where}{key}'{nearest(key, valid, where)}"


def nearest(value: object, valid: Iterable[object], where: str = "") -> str:
    names = sorted(map(str, valid))
    matches = get_close_matches(str(value), names, n=1, cutoff=0.5)
    return f" (did you mean '{where}{matches[0]}'?)" if matches else f" (there are: {', '.join(names)})"


def similar_file(path: Path) -> str:
    folder = path.parent
    names = [file.name for file in folder.glob("*.y*ml")] if folder.is_dir() else []
    matches = get_close_matches(path.name, names, n=1, cutoff=0.4)
    return f" (did you mean {folder / matches[0]}?)" if matches else ""
