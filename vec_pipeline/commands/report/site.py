"""The report's folder: its data in script files, and an index.html that is put in place last.

    DIR/index.html                   names one data folder
    DIR/gallery/data-N/              one report: what is in page/, and the rows in pieces
    DIR/gallery/thumbnails/          shared by all reports

A browser lets a page from the disk load scripts but not read files, so the data are scripts that call a function.
"""

import json
import os
import shutil
from itertools import count
from pathlib import Path
from typing import Any

from vec_pipeline.commands import is_stream
from vec_pipeline.record import UserError

PAGE = Path(__file__).parent / "page"
GENERATOR = '<meta name="generator" content="vec_pipeline {}">'
DATA_PLACE = "{data}"


class Site:
    """A new folder, or that of an earlier report, which stays intact until `publish`.

    Raises UserError where it holds something else, and OSError where it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = folder / "index.html"
        self.thumbnails = folder / "gallery" / "thumbnails"
        refuse_what_is_not_ours(folder)
        self.thumbnails.mkdir(parents=True, exist_ok=True)
        self.data = new_folder(folder / "gallery")

    def write(self, name: str, function: str, *values: Any) -> None:
        """Write a script that hands values to a function of page/gallery.js."""
        (self.data / name).write_text(call(function, *values), encoding="utf-8", errors="backslashreplace")

    def publish(self) -> None:
        """Switch index.html to the new data atomically, and remove the data of earlier reports."""
        for path in PAGE.iterdir():
            if path.suffix in (".css", ".js"):
                shutil.copyfile(path, self.data / path.name)
        page = (PAGE / "index.html").read_text(encoding="utf-8")
        new = self.index.with_suffix(".new")
        new.write_text(page.replace(DATA_PLACE, f"gallery/{self.data.name}"), encoding="utf-8")
        os.replace(new, self.index)
        for old in self.data.parent.glob("data-*"):
            if old != self.data:
                shutil.rmtree(old)


def refuse_what_is_not_ours(
    folder: Path, command: str = "report", what: str = "a report", option: str = "--out"
) -> None:
    """Raise UserError for what is no folder, or a folder of other things: only what the command has made may go.

    what: it makes. option: names the folder.
    """
    if is_stream(folder) or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder} is not a folder: name one with {option}")
    index, gallery = folder / "index.html", folder / "gallery"
    for path in (index, gallery, gallery / "thumbnails"):  # what is in these is replaced and removed
        if path.is_symlink() or is_stream(path):
            raise UserError(f"{path} is a link, a pipe or a device: remove it, or name a new folder with {option}")
    if index.exists():
        is_ours = GENERATOR.format(command) in index.read_text(encoding="utf-8", errors="replace")
    else:
        is_ours = not folder.exists() or not any(folder.iterdir()) or (gallery / "thumbnails").is_dir()
    if not is_ours:
        raise UserError(f"{folder} is not empty and not {what}: name a new folder with {option}")


def new_folder(parent: Path) -> Path:
    """Make data-N with the first free number."""
    for number in count(1):
        folder = parent / f"data-{number}"
        if not folder.exists():
            folder.mkdir()
            return folder
    raise AssertionError


def call(function: str, *values: Any) -> str:
    """A script that calls a function with values as JSON that neither an HTML nor a script parser misreads."""
    arguments = ", ".join(json.dumps(value, ensure_ascii=False, separators=(",", ":")) for value in values)
    for character in "<\u2028\u2029":  # as in </script> and <!--; the others end lines in old JavaScript
        arguments = arguments.replace(character, f"\\u{ord(character):04x}")
    return f"gallery.{function}({arguments});\n"
