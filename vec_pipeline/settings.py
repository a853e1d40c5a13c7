"""What a CSV was made with: the settings and the types of its columns, in a file beside it; and what has changed."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from vec_pipeline import weights
from vec_pipeline.record import COLUMN_TYPES, COLUMNS, Stage, UserError, beside

BEFORE_DECLARATIONS = {"text_confidence": "number", "clip_score": "number"}  # of CSVs whose settings name no types


@dataclass
class Recorded:
    """What the file beside a CSV says.

    columns: every column's type, by name.
    stages: by name, their options, and what else decides their results.
    sources: modules beside `vec_pipeline.sources` that its keys came from.
    source_columns: of the columns, those that sources brought.
    store: the folder of downloaded pictures, from the CSV's own folder on; empty where they are not kept.
    """

    columns: dict[str, str] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    source_columns: list[str] = field(default_factory=list)
    store: str = ""
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)


def settings_path(csv_path: Path) -> Path:
    return beside(csv_path, "settings.yaml")


def recorded_settings(csv_path: Path) -> Recorded:
    """Read the settings beside a CSV; empty where there are none. Raises UserError where they are damaged."""
    path = settings_path(csv_path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content.get("stages"), dict):  # of a version that recorded the stages alone
            content = {"stages": content}
        recorded = Recorded(**{each.name: content[each.name] for each in fields(Recorded) if each.name in content})
        if is_valid(recorded):
            return recorded
    except (FileNotFoundError, NotADirectoryError):
        return Recorded()
    except (OSError, yaml.YAMLError, ValueError, RecursionError, AttributeError):
        pass
    raise UserError(f"{path} is damaged: delete it if {csv_path} was made with these settings, or use --output")


def is_valid(recorded: Recorded) -> bool:
    """Whether a file that is YAML holds what this one should."""
    return (
        isinstance(recorded.columns, dict)
        and all(kind in COLUMN_TYPES for kind in recorded.columns.values())
        and all(isinstance(options, dict) for options in recorded.stages.values())
        and all(isinstance(names, list) for names in (recorded.sources, recorded.source_columns))
        and isinstance(recorded.store, str)
    )


def column_types(csv_path: str | Path, names: Iterable[str]) -> dict[str, str]:
    """The types of columns of a CSV, as they were declared when it was made; text where nothing is known."""
    known = {**BEFORE_DECLARATIONS, **recorded_settings(Path(csv_path)).columns, **COLUMNS}
    return {name: known.get(name, "text") for name in names}


def stage_settings(stage: Stage) -> dict[str, Any]:
    """What decides a stage's results: all its options but the speed options, and what stands for empty ones."""
    names = [each.name for each in fields(stage) if each.name not in ("name", "csv_folder", *stage.speed_options)]
    found: dict[str, Any] = {"use": use_of(stage), "version": stage.version}
    found |= {name: plain(getattr(stage, name)) for name in names}
    return {**found, "identity": stage.identity()} if stage.identity() else found


def use_of(stage: Stage) -> str:
    """What `use:` in a configuration calls the stage's class."""
    package, _, module = type(stage).__module__.rpartition(".")
    return module if package == "vec_pipeline.stages" else f"{type(stage).__module__}.{type(stage).__qualname__}"


def plain(value: Any) -> Any:
    """The value as YAML knows it."""
    return list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value


def fingerprint(stage: Stage) -> str:
    """What decides the stage's results beside what it reads: its settings, but for names, and its local weights.

    It is what it was before there were newer options, where these have their defaults: a result may have taken hours.
    """
    usual = {name: value for name, value in defaults(stage).items() if name in stage.newer_options}
    left_out = {"read", "write", *(name for name, value in usual.items() if value == plain(getattr(stage, name)))}
    own = {name: value for name, value in stage_settings(stage).items() if name not in left_out}
    options = stage.models if isinstance(stage, weights.ModelStage) else ("model",)
    files = [weights.version(str(getattr(stage, option, ""))) for option in options]
    return json.dumps([own, *files], default=str)


def with_recorded_commits(stages: Iterable[Stage], recorded: Recorded) -> tuple[Stage, ...]:
    """The stages with their hub models at the commits that the CSV was begun with."""

    def at_commit(stage: Stage) -> Stage:
        then, commits = recorded.stages.get(stage.name, {}), {}
        for option, revision in models_of(stage).items():
            is_same = (then.get(option), then.get(revision, "")) == (getattr(stage, option), getattr(stage, revision))
            if is_same and (commit := then.get(key_of_commit(revision))):
                commits[revision] = commit
        return replace(stage, **commits) if commits else stage

    return tuple(map(at_commit, stages))


def models_of(stage: Stage) -> Mapping[str, str]:
    """The options that name a stage's models, and for each the option that names its revision."""
    return stage.models if isinstance(stage, weights.ModelStage) else {}


def key_of_commit(revision: str) -> str:
    """What the settings call the commit of the model whose revision is this option."""
    return revision.replace("revision", "commit")


def commits_of(stage: Stage, asked: Stage) -> dict[str, str]:
    """The commits, by their keys in the settings, of hub models whose revision is not what was asked for.

    stage: at the commits that are on this machine. asked: the same as it is configured.
    """
    revisions = [each for each in models_of(stage).values() if getattr(stage, each) != getattr(asked, each)]
    return {key_of_commit(each): getattr(stage, each) for each in revisions}


def changed_settings(recorded: Recorded, stages: Sequence[Stage], header: Sequence[str] = ()) -> list[str]:
    """The settings, as STAGE.KEY, that differ from the recorded ones.

    A stage that writes none of the columns of `header` does not count, and neither does an option that is newer than
    the CSV and has its default.
    """
    before = dict(recorded.stages)
    if not before:
        return []
    changed = []
    for stage in stages:
        now = stage_settings(stage)
        if stage.name in before:
            then = {**defaults(stage), **before.pop(stage.name)}
            changed += [f"{stage.name}.{key}" for key, value in now.items() if then.get(key) != value]
        elif not (stage.writes and header) or set(stage.columns) & set(header):
            changed.append(stage.name)
    return [*changed, *before]


def outdated(
    csv_path: Path, asked: Sequence[Stage], stages: Sequence[Stage], header: Sequence[str], columns: Iterable[str]
) -> list[str]:
    """What has changed since the rows were made: settings, commits of hub models, and columns that they lack.

    asked: the stages as they are configured.
    stages: the same at the commits that are on this machine now.
    """
    recorded = recorded_settings(csv_path)
    if not recorded.stages:
        return ["their settings are unknown"]
    moved = [
        f"{stage.name}.{key}"
        for stage, before in zip(stages, asked, strict=True)
        for key, commit in commits_of(stage, before).items()
        if recorded.stages.get(stage.name, {}).get(key) != commit
    ]
    return [*changed_settings(recorded, asked, header), *moved, *(name for name in columns if name not in header)]


def defaults(stage: Stage) -> dict[str, Any]:
    """The settings of a stage as a version recorded them that knew none of its newer options."""
    options = {each.name: plain(each.default) for each in fields(stage)}
    return {**options, "use": use_of(stage), "version": 1, "read": {}, "write": {}}


def check_settings(csv_path: Path, stages: Sequence[Stage], header: Sequence[str]) -> None:
    """Raise UserError where the settings have changed: rows of two models in one file could not be told apart."""
    if changed := changed_settings(recorded_settings(csv_path), stages, header):
        raise UserError(
            f"{csv_path} was made with other settings ({', '.join(changed[:3])}{', ...' if changed[3:] else ''}): "
            f"restore them as in {settings_path(csv_path)}, name a new file with --output, or use --refresh to bring "
            "its rows up to date"
        )


def columns_of_sources(csv_path: Path, columns: Mapping[str, str]) -> dict[str, str]:
    """The columns, and their types, that the sources of a CSV have brought so far, and those that one brings now."""
    recorded = recorded_settings(csv_path)
    before = {name: recorded.columns[name] for name in recorded.source_columns if name in recorded.columns}
    return {**before, **columns}


def write_settings(
    csv_path: Path,
    stages: Sequence[Stage],
    asked: Iterable[Stage],
    columns: Mapping[str, str],
    sources: Sequence[str],
    source_columns: Iterable[str] = (),
    store: Path | None = None,
) -> None:
    """Write the settings beside the CSV, atomically. Raises UserError where there is no space left.

    stages: those that run, hub models at the commits that are on this machine.
    asked: the stages as they are configured.
    columns: of the CSV, and their types.
    sources: modules that its keys come from.
    source_columns: of the columns, those that sources bring.
    store: the folder of downloaded pictures, if they are kept.
    """
    configured = {stage.name: stage for stage in asked}
    found = {stage.name: stage_settings(configured[stage.name]) for stage in stages}
    for stage in stages:
        found[stage.name] |= commits_of(stage, configured[stage.name])
    recorded = Recorded(
        columns=dict(columns),
        sources=list(sources),
        source_columns=[name for name in source_columns if name in columns],
        store=os.path.relpath(store, csv_path.parent) if store else "",
        stages=found,
    )
    write_recorded(csv_path, recorded)


def write_recorded(csv_path: Path, recorded: Recorded) -> None:
    """Write them beside a CSV, atomically. Raises UserError where there is no space left."""
    text = yaml.safe_dump(asdict(recorded), allow_unicode=True, sort_keys=False)
    new = settings_path(csv_path).with_suffix(".new")
    try:
        with new.open("w", encoding="utf-8") as file:
            file.write("# The settings this CSV was made with, and the types of its columns.\n" + text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(settings_path(csv_path))
    except OSError as error:
        raise UserError(f"{new} cannot be written ({error.strerror}): free some disk space, then rerun") from None
