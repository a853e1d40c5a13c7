"""Rows to a gallery: one pass over the CSV for pieces, counts and thumbnails, then the map and the groups."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vec_pipeline.annotations import CsvReader, content_reader
from vec_pipeline.commands.report.places import place
from vec_pipeline.commands.report.rows import LINES, OBJECTS, UNUSED, read_rows, vectors_for
from vec_pipeline.commands.report.site import Site
from vec_pipeline.commands.report.summary import SCORES, Summary, stage_seconds
from vec_pipeline.commands.report.thumbnails import Picture, Thumbnails
from vec_pipeline.corrections import VERIFIED
from vec_pipeline.pairs import Pairs, pairs_of
from vec_pipeline.record import UserError, Values, beside
from vec_pipeline.similarity import group
from vec_pipeline.terminal import plural

ROWS_PER_PIECE = 1_000
COLUMNS = (
    *("image_path", "text", "edited_text", "description", "categories", "keywords", "image_text", "error", "flags"),
    *("verified", *SCORES),
)
BOXES = {"objects": OBJECTS, "ocr_boxes": LINES}  # as the page calls them
MAP_STEPS = 10_000  # places are written as integers

Vectors = list[np.ndarray[Any, Any] | None]
Plan = dict[str, list[int]]


def make_report(reader: CsvReader, folder: Path, duplicate_cosine: float, by: str) -> str:
    """Write the gallery of a CSV, and return what to say of it.

    by: the column of the vectors that make near-duplicates and places on the map; empty for the usual one.

    Raises UserError and OSError as `CsvReader.blocks`, `vectors_for` and Site.
    """
    start_s = time.monotonic()
    csv_path, by = reader.path, vectors_for(reader, by)
    with contextlib.ExitStack() as stack:
        site = Site(folder)
        thumbnails = stack.enter_context(contextlib.closing(Thumbnails(site.thumbnails, content_reader(csv_path))))
        summary, vectors = write_rows(reader, site, thumbnails, by, pairs_of(csv_path, reader.types))
        plan = plan_of(vectors, duplicate_cosine, by)
        site.write("data-map.js", "addMap", plan)
        head = {
            "name": csv_path.name,
            "made": datetime.now().isoformat(timespec="seconds"),
            "rows_per_piece": ROWS_PER_PIECE,
            "numbers": numbers_of(reader),
            "texts": texts_of(reader),
            "types": types_of(reader),
            "map_steps": MAP_STEPS,
            "groups": max(plan["group"], default=0),
            "duplicate_cosine": duplicate_cosine,
            "stages": stage_seconds(beside(csv_path, "log")),
        }
        site.write("data-head.js", "start", head | summary.as_dict())
        site.publish()
        thumbnails.remove_unused()
    seconds = time.monotonic() - start_s
    made = f"{plural(summary.rows, 'image')}, {plural(thumbnails.made, 'new thumbnail')}"
    return f"{made}, {seconds:.0f} s: open {site.index}"


def write_rows(reader: CsvReader, site: Site, thumbnails: Thumbnails, by: str, pairs: Pairs) -> tuple[Summary, Vectors]:
    """Write the rows in pieces, with their thumbnails; return their counts and their vectors in the column `by`."""
    summary, vectors, rows = Summary(), Vectors(), read_rows(reader, by)
    machine = machine_values(reader)
    with tqdm(unit=" images", desc="thumbnails", disable=None) as bar:
        for index, piece in enumerate(iter(lambda: list(islice(rows, ROWS_PER_PIECE)), [])):
            boxed = {row["image_path"] for row in piece if row.get(OBJECTS) or row.get(LINES)}
            pictures = thumbnails.of((row["image_path"] for row in piece), boxed)
            found = columns(piece, pictures, numbers_of(reader), texts_of(reader), machine)
            found |= columns_of_pairs(piece, pairs, thumbnails) if pairs else {}
            site.write(f"data-rows-{index}.js", "addRows", index, found)
            for row in piece:
                summary.add(row)
                vectors.append(row[by])
            bar.update(len(piece))
    return summary, vectors


def numbers_of(reader: CsvReader) -> list[str]:
    """The columns of numbers that the page shows by their own names: all but the scores that it knows."""
    return [name for name in reader.names_of("number") if name not in SCORES]


def texts_of(reader: CsvReader) -> list[str]:
    """The columns of text that the page does not show, and only queries look at."""
    return [name for name in reader.names_of("text") if name not in (*COLUMNS, *UNUSED, "timestamp")]


def types_of(reader: CsvReader) -> dict[str, str]:
    """The columns that queries of the page can ask for, and their types."""
    known = {name: kind for name, kind in reader.types.items() if kind in ("text", "number") and name not in UNUSED}
    return known | {VERIFIED: "text"}


def machine_values(reader: CsvReader) -> dict[str, Values]:
    """What the models wrote where people have corrected it, by image_path and column."""
    given = {key: reader.corrections.of(key).keys() - {VERIFIED} for key in reader.corrections.values}
    given = {key: names for key, names in given.items() if names}
    if not given:
        return {}
    found = {}
    with CsvReader(reader.path, machine=True) as machine:
        names = [name for name in machine.types if any(name in each for each in given.values())]
        for block in machine.blocks(["image_path", *names]):
            for row in block.table.to_pylist():
                if row["image_path"] in given:
                    found[row["image_path"]] = {name: row[name] for name in names if name in given[row["image_path"]]}
    return found


def columns(
    rows: Sequence[Values], pictures: Sequence[Picture], numbers: Sequence[str], texts: Sequence[str],
    machine: Mapping[str, Values],
) -> dict[str, list[Any]]:  # fmt: skip
    """What the page knows of some rows, column by column; a column the CSV lacks is left out."""
    found: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in COLUMNS if name in rows[0]}
    found |= {name: [row[key] for row in rows] for name, key in BOXES.items() if key in rows[0]}
    found["timestamp"] = [row["timestamp"] and row["timestamp"].isoformat() for row in rows]
    found["thumbnail"] = [picture.thumbnail for picture in pictures]
    found["link"] = [picture.link for picture in pictures]
    if any(picture.size for picture in pictures):
        found["size"] = [picture.size for picture in pictures]
    if numbers:
        found["numbers"] = [[row[name] for name in numbers] for row in rows]
    if texts:
        found["texts"] = [[row[name] for name in texts] for row in rows]
    if any(row["image_path"] in machine for row in rows):
        found["machine"] = [machine.get(row["image_path"]) for row in rows]
    return found


def columns_of_pairs(rows: Sequence[Values], pairs: Pairs, thumbnails: Thumbnails) -> dict[str, list[str]]:
    """What the page knows of the edited pictures of some rows; empty texts where a row has none."""
    pictures = thumbnails.of([pairs.key(row) for row in rows])
    return {
        "request": [pairs.request(row) if pairs.key(row) else "" for row in rows],
        "edited": [picture.thumbnail for picture in pictures],
        "edited_link": [picture.link for picture in pictures],
    }


def plan_of(vectors: Vectors, duplicate_cosine: float, name: str) -> Plan:
    """Place and group of each row by its vector: x and y up to MAP_STEPS, or -1 for a row without a vector.

    name: of the column.
    """
    has_vector = np.array([vector is not None for vector in vectors], bool)
    places = np.full((len(vectors), 2), -1)
    groups = np.zeros(len(vectors), int)
    if has_vector.any():
        known = matrix_of([vector for vector in vectors if vector is not None], name)
        places[has_vector] = np.rint(place(known) * MAP_STEPS)
        groups[has_vector] = group(known, duplicate_cosine)
    return {"x": places[:, 0].tolist(), "y": places[:, 1].tolist(), "group": groups.tolist()}


def matrix_of(vectors: Sequence[np.ndarray[Any, Any]], name: str) -> np.ndarray[Any, Any]:
    """Vectors as one matrix. Raises UserError where they are not of one length."""
    shapes = sorted({vector.shape for vector in vectors})
    if len(shapes) > 1 or len(shapes[0]) > 1:
        raise UserError(f"{name} has the shapes {' and '.join(map(str, shapes))}, not one length: run with --refresh")
    return np.stack(vectors)
