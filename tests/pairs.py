"""CSVs of pairs, without models: originals and edited pictures, as the stage `edit_image` names them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from tests.rows import failed, finished, write
from vec_pipeline.record import Record
from vec_pipeline.settings import settings_path

RED, BLUE = (210, 30, 30), (30, 60, 200)
PROMPT = "make the {categories} blue"


def draw(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def pair(folder: Path, number: int, **values: Any) -> Record:
    """A row with a red original, whose edited picture is blue."""
    original = draw(folder / "photos" / f"{number}.png", RED)
    edited = draw(folder / "edited" / f"{number}.png", BLUE)
    row = finished(number, edited_path=f"edited/{edited.name}", edit_difference=0.5, **values)
    row.key = str(original)
    return row


def write_pairs(folder: Path, *rows: Record, edit: Mapping[str, Any] | None = None) -> Path:
    """The CSV of some rows, with the settings of a stage `edit_image`; of three pairs and a failure without rows."""
    path = folder / "annotations.csv"
    options = {"use": "edit_image", "prompt": PROMPT, **(edit or {})}
    column = options.get("write", {}).get("edited_path", "edited_path")
    types = {column: "file", "edit_difference": "number", "edited_text": "text"}
    settings_path(path).parent.mkdir(parents=True, exist_ok=True)
    settings_path(path).write_text(yaml.safe_dump({"columns": types, "stages": {"edit_image": options}}))
    return write(path, rows or [*(pair(folder, number) for number in range(3)), failed(3)], tuple(types))
