"""The rows of a CSV one by one, with what the gallery shows of them."""

from collections.abc import Iterator
from pathlib import Path

from vec_pipeline.annotations import arrays, column_names, read_blocks
from vec_pipeline.record import Values

UNUSED = ("text_vector", "word2vec_vector", "llama_extracted")


def read_rows(path: Path) -> Iterator[Values]:
    """Yield each whole row by column name: image_vector as float32 of shape (dimensions,) or None, timestamp as a
    datetime, text_confidence and clip_score (where the CSV has them) as float or None, the rest as text.

    Raises UserError, before the first row is asked for, where the file is missing or none of ours.
    """
    return rows_of(path, [name for name in column_names(path) if name not in UNUSED])


def rows_of(path: Path, columns: list[str]) -> Iterator[Values]:
    for block in read_blocks(path, columns):
        vectors = arrays(block.table["image_vector"])
        rows = block.table.drop_columns(["image_vector"]).to_pylist()
        for row, vector in zip(rows, vectors, strict=True):
            yield row | {"image_vector": vector}
