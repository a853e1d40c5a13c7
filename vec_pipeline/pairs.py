"""The pairs of a CSV: which edited picture a row has beside its original, and what was asked for."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vec_pipeline.prompts import filled
from vec_pipeline.record import Values
from vec_pipeline.settings import Recorded, recorded_settings

EDITED_URL = "edited_url"  # of the source `reddit:`
PROMPT = "edit_prompt"  # a column that goes before all else
REQUEST = ("post_title", "post_text")  # of `reddit:`: together, the request


@dataclass(frozen=True)
class Pairs:
    """How the rows of a CSV name their edited pictures and requests.

    column: with the file from the CSV's folder on, or the address; empty where the rows are no pairs.
    prompt: of the stage `edit_image`, with placeholders; empty where the rows have the requests.
    """

    folder: Path
    column: str = ""
    is_file: bool = False
    prompt: str = ""

    def __bool__(self) -> bool:
        return bool(self.column)

    def key(self, row: Values) -> str:
        """The key of a row's edited picture, for `annotations.content_reader`; empty where it has none."""
        name = row.get(self.column) or ""
        return os.path.abspath(self.folder / name) if name and self.is_file else name

    def request(self, row: Values) -> str:
        """What was asked for, as a text; empty where that is not known."""
        if row.get(PROMPT):
            return str(row[PROMPT])
        if self.prompt:
            return filled(self.prompt, row)
        return "\n\n".join(str(row[name]) for name in REQUEST if row.get(name))


def pairs_of(csv_path: Path, types: Mapping[str, str]) -> Pairs:
    """Find them by the settings beside a CSV, and its columns with their types. Raises UserError as the settings do."""
    name, prompt = edit_of(recorded_settings(csv_path))
    if types.get(name) == "file":
        return Pairs(csv_path.parent, name, True, prompt)
    return Pairs(csv_path.parent, EDITED_URL if EDITED_URL in types else "")


def edit_of(recorded: Recorded) -> tuple[str, str]:
    """The column of files and the prompt of the first stage `edit_image`; the usual name and none without one."""
    name = "edited_path"
    for options in recorded.stages.values():
        if options.get("use") == "edit_image":
            return (options.get("write") or {}).get(name, name), str(options.get("prompt") or "")
    return name, ""
