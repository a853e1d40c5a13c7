"""Rows to a folder of pictures with metadata.jsonl, as `datasets` reads it and the trainers of diffusers use it."""

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

from vec_pipeline.annotations import CsvReader
from vec_pipeline.commands.export.files import Written
from vec_pipeline.commands.export.training import IMAGE, REQUEST, Example, Examples, saved

NAME = "file_name"  # what ends with it names a picture, which becomes the column with the rest of the name


def write(reader: CsvReader, folder: Path, options: argparse.Namespace) -> Written:
    """Write the pictures and a line for each row, of each side in a folder of its own; one without rows has none, since
    `datasets` would fail.
    """
    examples = Examples(reader)
    metadata: dict[str, TextIO] = {}
    with ExitStack() as stack:
        for example in examples:
            if example.side not in metadata:
                path = folder / example.side / "metadata.jsonl"
                path.parent.mkdir(exist_ok=True)
                metadata[example.side] = stack.enter_context(path.open("w", encoding="utf-8"))
            names = {}
            for name, picture in example.pictures.items():
                is_pair = name != IMAGE
                file = saved(picture, folder / example.side, f"{example.file}.{name}" if is_pair else example.file)
                names[f"{name}_{NAME}" if is_pair else NAME] = file
            line = json.dumps(names | columns(example), ensure_ascii=False)
            metadata[example.side].write(f"{line}\n")
    return examples.written


def columns(example: Example) -> dict[str, object]:
    """The row's columns, without those that `datasets` would take for pictures or that have the name of one."""
    kept = {
        name: value
        for name, value in example.row.items()
        if name not in example.pictures and not name.endswith((NAME, f"{NAME}s"))
    }
    return kept if example.request is None else kept | {REQUEST: example.request}
