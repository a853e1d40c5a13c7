"""Rows to a folder of pictures with metadata.jsonl, as `datasets` reads it and the trainers of diffusers use it."""

import json
from pathlib import Path

from vec_pipeline.commands.export.training import IMAGE, REQUEST, Example, Examples

NAME = "file_name"  # what ends with it names a picture, which becomes the column with the rest of the name


def write(examples: Examples, folder: Path) -> None:
    """Write the pictures, and a line for each row."""
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
        for example in examples:
            names = {}
            for name, picture in example.pictures.items():
                is_pair = name != IMAGE
                file = f"{example.key}.{name}.{picture.suffix}" if is_pair else f"{example.key}.{picture.suffix}"
                (folder / file).write_bytes(picture.content)
                names[f"{name}_{NAME}" if is_pair else NAME] = file
            metadata.write(json.dumps(names | columns(example), ensure_ascii=False) + "\n")


def columns(example: Example) -> dict[str, object]:
    """The row's columns, without those that `datasets` would take for pictures or that have the name of one."""
    kept = {
        name: value
        for name, value in example.row.items()
        if name not in example.pictures and not name.endswith((NAME, f"{NAME}s"))
    }
    return kept if example.request is None else kept | {REQUEST: example.request}
