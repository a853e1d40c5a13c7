"""The rows of a CSV one by one, with what the gallery shows of them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from vec_pipeline.annotations import CsvReader, arrays, json_of
from vec_pipeline.record import UserError, Values

USUAL_VECTORS = ("image_vector", "dino_vector")  # in the order of preference
UNUSED = ("llama_extracted",)
BOXED = ("objects", "people", "ocr_boxes")  # JSON columns of detect, people and read_text
OBJECTS, LINES = "boxes of objects", "boxes of lines"  # what becomes of them; no column has such a name
TRAITS = ("age", "gender")
CORNERS = 4


def vectors_for(reader: CsvReader, by: str) -> str:
    """The column of the vectors that pictures are compared by: `by`, or where that is empty the usual one.

    Raises UserError where there is no such column.
    """
    names = reader.names_of("vector")
    if by and by not in names:
        raise UserError(f"--by {by}: {reader.path} has no such column of vectors: give one of {', '.join(names)}")
    first = next(reader.blocks(USUAL_VECTORS, as_text=USUAL_VECTORS), None)
    filled = [name for name in USUAL_VECTORS if first and first.table[name].null_count < len(first.table)]
    return by or (*filled, *USUAL_VECTORS)[0]


def read_rows(reader: CsvReader, by: str) -> Iterator[Values]:
    """Yield each whole row by column name: the vectors `by` as float32 of shape (dimensions,) or None, timestamp as a
    datetime, numbers as float or None, text, files as texts, and what `drawn` makes of boxes. Other vectors and JSON
    are left out.
    """
    names = [name for name in reader.names_of("text", "number", "file") if name not in UNUSED]
    boxed = [name for name in reader.names_of("json") if name in BOXED]
    for block in reader.blocks([*names, *boxed, by]):
        vectors = arrays([block.table[by]], f"{reader.path}: {by}")
        for row, vector in zip(block.table.select([*names, *boxed]).to_pylist(), vectors, strict=True):
            cells = {name: row.pop(name) for name in boxed}
            found = {name: cell and json_of(cell, f"{reader.path}: {name}") for name, cell in cells.items()}
            yield row | drawn(found) | {by: vector}


def drawn(found: Values) -> Values:
    """What the page draws of the values of JSON columns: the arrays of `objects_of` and of `line_of`."""
    boxes = {}
    if "objects" in found or "people" in found:
        boxes[OBJECTS] = objects_of(found.get("objects"), found.get("people"))
    if "ocr_boxes" in found:
        boxes[LINES] = list(converted(found["ocr_boxes"], line_of))
    return boxes


def objects_of(objects: Any, people: Any) -> list[list[Any]]:
    """Arrays of label, score, left, top, right, bottom; those of people end with arrays of a trait and its probability.

    The label is empty where the column `people` alone has that box.
    """
    found = list(converted(objects, object_of))
    by_box: dict[tuple[Any, ...], list[list[Any]]] = {}
    for each in found:
        by_box.setdefault(tuple(each[1:]), []).append(each)
    for *box, traits in converted(people, person_of):
        if same := by_box.get(tuple(box)):
            same.pop(0).append(traits)
        else:
            found.append(["", *box, traits])
    return [[label, rounded(score), *others] for label, score, *others in found]


def object_of(entry: Any) -> list[Any]:
    left, top, right, bottom = map(int, entry["box"])
    return [str(entry["label"]), float(entry["score"]), left, top, right, bottom]


def person_of(entry: Any) -> list[Any]:
    """Score, left, top, right, bottom, and the most probable age group and gender, as far as there are any."""
    most = [max(entry[trait].items(), key=lambda pair: pair[1]) for trait in TRAITS if entry.get(trait)]
    return [*object_of({"label": "", **entry})[1:], [[str(name), rounded(share)] for name, share in most]]


def line_of(entry: Any) -> list[Any]:
    """Text, confidence, and x and y of each of the four corners."""
    corners = [int(value) for corner in entry["box"] for value in corner]
    if len(corners) != 2 * CORNERS:
        raise ValueError
    return [str(entry["text"]), rounded(entry["confidence"]), *corners]


def rounded(share: float) -> float:
    return round(float(share), 3)


def converted(entries: Any, convert: Callable[[Any], list[Any]]) -> Iterable[list[Any]]:
    """Convert the entries of a list; others are left out: a stage of one's own may use a name for something else."""
    for entry in entries if isinstance(entries, list) else ():
        try:
            yield convert(entry)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            continue
