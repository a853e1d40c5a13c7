"""The rows that people have marked right or wrong, and the numbers that `flag` reads of each."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vec_pipeline import calibration
from vec_pipeline.annotations import CsvReader, json_of
from vec_pipeline.config import ConfigError, build_stage, option_names, stage_class
from vec_pipeline.corrections import ACCEPTED, EDIT, REJECTED, VERIFIED, Correction, Corrections, current_of
from vec_pipeline.engines.text_lines import scripts_of
from vec_pipeline.record import Values
from vec_pipeline.settings import recorded_settings
from vec_pipeline.stages.flag import Flag, lines_of

JUDGED = ("text", "description", "categories", "keywords", "image_text")  # wrong where people have changed one of them

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Marked:
    """Marked rows.

    signals: float of shape (rows,) by name, NaN where a value is missing.
    is_wrong: bool of shape (rows,).
    flag: the stage with the options that the rows were made with, but without a calibration.
    stages: hashes of the settings of the stages whose columns it reads, by name.
    gone, doubles, empty: marks without a row, rows equal to others, and rows without signals, which are left out.
    refreshed: rows that were made with corrected values, whose signals are not the models': left out, too.
    others: text_confidence of the rows that are not marked, as far as they have it.
    """

    signals: Mapping[str, Array]
    is_wrong: Array
    flag: Flag
    stages: Mapping[str, str]
    gone: int
    doubles: int
    empty: int
    refreshed: int
    others: Array

    @property
    def right(self) -> int:
        return int((~self.is_wrong).sum())

    @property
    def wrong(self) -> int:
        return int(self.is_wrong.sum())

    def features(self) -> dict[str, Array]:
        """What the model is given, as `calibration.features`: float of shape (rows,) by name, NaN where missing."""
        rows = [dict(zip(self.signals, row, strict=True)) for row in zip(*self.signals.values(), strict=True)]
        found = [calibration.features(row) for row in rows]
        return {name: np.array([row.get(name, math.nan) for row in found]) for name in self.signals}


def marked_rows(csv_path: Path) -> Marked:
    """Read the marks, and the machine's values of their rows. Raises UserError as CsvReader."""
    recorded = recorded_settings(csv_path).stages
    flag = flag_of(recorded)
    marks = {key: given for key, given in current_of(csv_path).values.items() if has_mark(given)}
    with closing(Corrections(csv_path)) as corrections:
        refreshed = corrections.made_with() & marks.keys()  # whose signals are those of corrected texts
    rows, others = rows_of(csv_path, [key for key in marks if key not in refreshed], flag)
    inputs = {key: inputs_of(flag, row) for key, row in rows.items()}
    scripts = known_scripts(inputs.values())
    seen: set[tuple[object, ...]] = set()
    signals, is_wrong, empty = [], [], 0
    for key, row in rows.items():
        found = flag.signals({**inputs[key], "ocr_scripts": scripts})
        if not calibration.features(found):
            empty += 1
        elif (same := (row.get("text"), *map(str, found.values()))) not in seen:
            seen.add(same)
            signals.append(found)
            is_wrong.append(is_wrong_by(marks[key], row))
    return Marked(
        {name: np.array([row[name] for row in signals], float) for name in flag.signals({})},
        np.array(is_wrong, bool),
        flag,
        calibration.hashes_of(recorded, makers(recorded, flag)),
        len(marks) - len(refreshed) - len(rows),
        len(rows) - empty - len(signals),
        empty,
        len(refreshed),
        others,
    )


def has_mark(given: Mapping[str, Correction]) -> bool:
    return VERIFIED in given and given[VERIFIED].value in (ACCEPTED, REJECTED)


def is_wrong_by(given: Mapping[str, Correction], row: Values) -> bool:
    """Whether people have rejected a row of the machine's values, or had to correct it by hand before they accepted."""
    edits = [(name, given[name].value) for name in JUDGED if name in given and given[name].what == EDIT]
    was_edited = any(value is not None and value != (row.get(name) or "") for name, value in edits)
    return given[VERIFIED].value == REJECTED or was_edited


def rows_of(csv_path: Path, keys: Sequence[str], flag: Flag) -> tuple[dict[str, Values], Array]:
    """The rows of some pictures, the last of each: what people judge, and what `flag` reads.

    And text_confidence of all others.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    rows: dict[str, Values] = {}
    others = [np.zeros(0)]
    confidence = flag.read.get("text_confidence", "text_confidence")
    with CsvReader(csv_path, machine=True) as reader:
        names = [name for name in dict.fromkeys(["image_path", *JUDGED, *flag.input_names]) if name in reader.types]
        for block in reader.blocks(names):
            is_chosen = pc.is_in(block.table["image_path"], value_set=pa.array(keys, pa.string()))
            rows |= {row["image_path"]: row for row in block.table.filter(is_chosen).to_pylist()}
            if reader.types.get(confidence) == "number":
                others.append(block.table[confidence].filter(pc.invert(is_chosen)).drop_null().to_numpy())
    return rows, np.concatenate(others)


def inputs_of(flag: Flag, row: Values) -> Values:
    """What the stage read of a row, by its own names, as far as the CSV holds it. Raises UserError for damaged JSON."""
    found = {own: value for own, value in flag.inputs(row).items() if value is not None}
    if "ocr_boxes" in found:
        found["ocr_boxes"] = json_of(found["ocr_boxes"], f"ocr_boxes of {row['image_path']}")
    return found


def known_scripts(inputs: Iterable[Values]) -> list[str]:
    """The scripts that read_text has returned: those that it can return are not saved."""
    return sorted(
        {script for row in inputs if "ocr_boxes" in row for text, _ in lines_of(row) for script in scripts_of(text)}
    )


def flag_of(recorded: Mapping[str, Mapping[str, Any]]) -> Flag:
    """The stage that a CSV was made with; with its defaults where there was none."""
    settings = next((each for each in recorded.values() if each.get("use") == "flag"), {})
    options = {name: value for name, value in settings.items() if name in option_names(Flag) - {"calibration"}}
    found = build_stage(Flag, options, {})
    assert isinstance(found, Flag)
    return found


def makers(recorded: Mapping[str, Mapping[str, Any]], flag: Flag) -> list[str]:
    """Names of the stages that write what `flag` reads."""
    return [name for name, settings in recorded.items() if columns_of(settings) & {*flag.input_names}]


def columns_of(settings: Mapping[str, Any]) -> set[str]:
    """The columns that a stage writes; none where its module is not there any more."""
    try:
        written = stage_class(settings).writes
    except ConfigError:
        return set()
    renamed = settings.get("write") or {}
    return {renamed.get(name, name) for name in written}
