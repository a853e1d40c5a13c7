"""The folder of a comparison: compare.json, index.html, and what this page loads from gallery/."""

import json
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

from vec_pipeline.commands import is_stream, writing
from vec_pipeline.commands.compare.figures import table_of
from vec_pipeline.commands.report import site as report_site
from vec_pipeline.commands.report.thumbnails import Thumbnails
from vec_pipeline.record import ContentOf, UserError

PAGE = Path(__file__).parent / "page"
GENERATOR = "vec_pipeline compare"

Found = dict[str, Any]


def index_of(out: Path) -> Path:
    return out / "index.html"


def claim(out: Path) -> None:
    """Make the folder, or take that of an earlier comparison. Raises UserError where it holds something else."""
    if is_stream(out) or (out.exists() and not out.is_dir()):
        raise UserError(f"{out} is not a folder: name one with --out")
    if read(out):
        return
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and not a comparison: name a new folder with --out")
    write(out, {})


def read(out: Path) -> Found:
    """What compare.json holds; empty where there is none, or one of another program."""
    try:
        found = json.loads((out / "compare.json").read_text(encoding="utf-8"))
        return found if found["generator"] == GENERATOR else {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}


def write(out: Path, found: Found) -> None:
    text = json.dumps({"generator": GENERATOR, **found}, ensure_ascii=False, indent=1)
    put(out / "compare.json", text)


def publish(out: Path, found: Found, pictures: Sequence[Found], content_of: ContentOf) -> None:
    """Write compare.json and the page.

    pictures: with their answers, which compare.json does not hold. content_of: finds the picture of a key.
    """
    gallery = out / "gallery"
    with closing(Thumbnails(gallery / "thumbnails", content_of)) as thumbnails:
        shown = thumbnails.of(picture["image_path"] for picture in pictures)
        thumbnails.remove_unused()
    data = {
        "id": found["id"],
        "made": datetime.now().isoformat(" ", timespec="seconds"),
        "names": [each["name"] for each in found["configurations"]],
        "table": table_of(found["configurations"]),
        "notes": found["notes"],
        "pictures": [{**picture, **each._asdict()} for picture, each in zip(pictures, shown, strict=True)],
    }
    write(out, found)
    put(gallery / "data.js", report_site.call("start", data))
    for path in (report_site.PAGE / "gallery.css", PAGE / "compare.css", PAGE / "compare.js"):
        put(gallery / path.name, path.read_text(encoding="utf-8"))
    put(index_of(out), (PAGE / "index.html").read_text(encoding="utf-8"))


def put(path: Path, text: str) -> None:
    """Write a file atomically, and its folder where it is missing."""
    with writing(path) as file:
        file.write(text.encode(errors="backslashreplace"))
