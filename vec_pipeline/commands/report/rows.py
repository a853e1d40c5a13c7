"""The rows of a CSV one by one, with what the gallery shows of them."""

from collections.abc import Iterator

from vec_pipeline.annotations import CsvReader, arrays
from vec_pipeline.record import Values

UNUSED = ("llama_extracted",)


def read_rows(reader: CsvReader) -> Iterator[Values]:
    """Yield each whole row by column name: image_vector as float32 of shape (dimensions,) or None, timestamp as a
    datetime, numbers as float or None, the rest as text. Other vectors, JSON and files are left out.
    """
    names = [name for name in reader.names_of("text", "number") if name not in UNUSED]
    for block in reader.blocks([*names, "image_vector"]):
        vectors = arrays([block.table["image_vector"]], f"{reader.path}: image_vector")
        for row, vector in zip(block.table.select(names).to_pylist(), vectors, strict=True):
            yield row | {"image_vector": vector}
