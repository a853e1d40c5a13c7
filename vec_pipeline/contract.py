"""What a stage declares and what it returns, checked: a mistake there is the stage's, never a picture's."""

import inspect
import json
import math
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vec_pipeline.record import COLUMN_TYPES, Stage, UserError, Values

TYPES = {"writes": COLUMN_TYPES, "intermediates": (*COLUMN_TYPES, "image")}


def check_declaration(cls: type[Stage]) -> None:
    """Raise TypeError where a stage's class does not declare what it reads and writes as it must."""
    for name in ("reads", "optional"):
        if isinstance(getattr(cls, name), str):
            raise TypeError(f"`{name}` is a string: make it a tuple of names")
    for name, types in TYPES.items():
        declared = getattr(cls, name)
        if not isinstance(declared, Mapping):
            raise TypeError(f"`{name}` is a {type(declared).__name__}: make it a dict of names and types")
        for key, kind in declared.items():
            if kind not in types:
                raise TypeError(f"`{name}` declares {key} as {kind!r}: the types are {', '.join(types)}")
    try:
        inspect.signature(cls.run).bind(None, None, [], 1)
    except TypeError:
        raise TypeError("`run` must take (self, model, rows, at_once)") from None


def check_results(stage: Stage, results: Sequence[Values], rows: int) -> None:
    """Raise UserError where results are not what the stage declares: that is a fault of the stage, not of a picture."""
    if not isinstance(results, list | tuple):
        raise UserError(f"{stage.name} returned a {type(results).__name__}, not a list: fix the stage")
    if len(results) != rows:
        raise UserError(f"{stage.name} returned a list of {len(results)} for a batch of {rows}: fix the stage")
    declared = stage.outputs
    for result in results:
        if not isinstance(result, dict):
            raise UserError(f"{stage.name} returned a {type(result).__name__} for a row, not a dict: fix the stage")
        if unknown := result.keys() - declared.keys() - {"error"}:
            names = ", ".join(declared)
            raise UserError(
                f"{stage.name} returned {min(unknown)!r}, which it does not declare ({names}): fix the stage"
            )
        if not result.get("error") and (missing := declared.keys() - result.keys()):
            raise UserError(f"{stage.name} returned no {min(missing)!r}, which it declares: fix the stage")


def normalised(stage: Stage, own: str, value: Any) -> Any:
    """The value as the cache and the CSV bring it back. Raises UserError where it is not of its declared type."""
    kind = {**stage.writes, **stage.intermediates}[own]
    return as_declared(value, kind, f"{stage.name} returned {own!r}", "fix the stage")


def source_values(values: Values, columns: Mapping[str, str]) -> Values:
    """The same for what a source brings: the content, and the columns that it declares."""
    given = {name: values[name] for name in ("content", *columns) if values.get(name) is not None}
    return {
        name: as_declared(value, columns[name], f"the source gave {name!r}", "fix the source")
        if name in columns
        else value
        for name, value in given.items()
    }


def as_declared(value: Any, kind: str, what: str, remedy: str) -> Any:
    try:
        if value is None:
            return None
        if kind == "image" and isinstance(value, Image.Image):
            return value.convert("RGBA") if value.mode in ("P", "PA") else value  # bytes alone would lose the palette
        if kind == "vector":
            return as_array(value)
        if kind == "content" and hasattr(value, "read"):
            return value
        if kind == "json":
            return json.loads(json.dumps(value))
        if kind == "number" and isinstance(value, numbers.Real | np.number) and not isinstance(value, bool):
            return value.item() if isinstance(value, np.generic) else value
        if kind == "text" and isinstance(value, str):
            return str(value)
        if kind == "file" and isinstance(value, str | Path):
            return str(value)
    except (TypeError, ValueError, RecursionError):
        pass
    raise UserError(f"{what} as a {type(value).__name__}, and declares it as {kind}: {remedy}")


def as_array(value: Any) -> Any:
    """An array of integers or floats of any shape. Raises TypeError or ValueError for anything else."""
    if not isinstance(value, np.ndarray | list | tuple):
        raise TypeError
    array = np.ascontiguousarray(value)
    if array.dtype.kind not in "iufb" or array.dtype.itemsize > 8:
        raise TypeError
    return (
        array.astype(np.uint8) if array.dtype.kind == "b" else array.astype(array.dtype.newbyteorder("="), copy=False)
    )


def is_finite(value: Any) -> bool:
    """False for what holds NaN or an infinity."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind != "f" or bool(np.isfinite(value).all())
    if isinstance(value, list | dict):
        return all(map(is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)
