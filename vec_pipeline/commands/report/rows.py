"""Reads the rows of a CSV one by one. (To be swapped for the reader of vec_pipeline.annotations when that lands.)"""

import csv
import io
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import numpy as np

from vec_pipeline.record import COLUMNS, UserError, Values
from vec_pipeline.sinks.csv_file import whole_rows


def read_rows(path: Path) -> Iterator[Values]:
    """Yield each whole row by column name: image_vector as float32 of shape (dimensions,) or None, timestamp as a
    datetime, text_confidence and clip_score (where the CSV has them) as float or None, the rest as text.

    Raises UserError, before the first row is asked for, where the file is missing or none of ours.
    """
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            header = next(csv.reader(file), [])
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name the CSV of a run with --csv") from None
    if tuple(header[: len(COLUMNS)]) != COLUMNS:
        raise UserError(f"{path} is not the CSV of a run: name one with --csv")
    return rows_of(path, header)


def rows_of(path: Path, header: list[str]) -> Iterator[Values]:
    with path.open("rb", buffering=0) as file:
        for is_header, _, row in whole_rows(file):
            if is_header:
                continue
            cells = next(csv.reader(io.StringIO(row.decode("utf-8", "replace"), newline="")))
            values: Values = dict(zip(header, cells, strict=False))
            vector = values["image_vector"]
            values["image_vector"] = np.array(json.loads(vector), np.float32) if vector else None
            values["timestamp"] = datetime.fromisoformat(values["timestamp"]) if values["timestamp"] else None
            for name in {"text_confidence", "clip_score"} & values.keys():
                values[name] = float(values[name]) if values[name] else None
            yield values
