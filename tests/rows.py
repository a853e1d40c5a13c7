"""CSVs made without models, as a run would write them: for what reads rows."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vec_pipeline.record import COLUMNS, Record
from vec_pipeline.settings import settings_path
from vec_pipeline.sinks.csv_file import CsvFile

TRUST_COLUMNS = ("text_confidence", "clip_score", "flags")
VECTOR_COLUMNS = tuple(name for name, kind in COLUMNS.items() if kind == "vector")
SIZES = dict(zip(VECTOR_COLUMNS, (5, 4, 3), strict=True))  # dimensions of the vectors


def unit_vectors(rows: int, dimensions: int, seed: int = 0) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """Random vectors of length 1, float32 of shape (rows, dimensions)."""
    vectors = np.random.default_rng(seed).standard_normal((rows, dimensions)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def finished(number: int, **values: Any) -> Record:
    """A record with every column filled, the trust columns included."""
    vectors = {name: unit_vectors(1, size, seed=number)[0] for name, size in SIZES.items()}
    texts = {
        "text": f'A red car, number {number}.\nThe text reads "SALE".',
        "description": f"A red car, number {number}.",
        "categories": "vehicle",
        "keywords": "car, red",
        "image_text": "SALE",
        "llama_extracted": '{"keywords": ["car", "red"]}',
        "text_confidence": 0.875,
        "clip_score": 0.25,
        "flags": "",
    }
    return Record(f"/photos/{number:06}.jpg", {**texts, **vectors, **values})


def failed(number: int, error: str = 'open_image: OSError: "truncated", at\nbyte 7') -> Record:
    return Record(f"/photos/{number:06}.jpg", {}, error)


def write(path: Path, records: Sequence[Record], extra_columns: Sequence[str] = TRUST_COLUMNS) -> Path:
    """Append rows."""
    with closing(CsvFile(path, extra_columns)) as sink:
        sink.write(records)
    return path


def write_declared(path: Path, types: Mapping[str, str], records: Sequence[Record]) -> Path:
    """Write a CSV with further columns, and their types beside it, as a run declares them."""
    settings_path(path).write_text(yaml.safe_dump({"columns": dict(types), "sources": [], "stages": {}}))
    return write(path, records, tuple(types))
