"""Captions as text files that trainers read, one for each picture: `photo.txt` for `photo.jpg`."""

import argparse
import errno
import os
import re
from collections.abc import Mapping
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

from vec_pipeline.annotations import CsvReader
from vec_pipeline.commands import own_file_finder
from vec_pipeline.commands.export.places import Row, Rows, nothing_written
from vec_pipeline.files import write_whole
from vec_pipeline.key_set import KeySet
from vec_pipeline.pictures.kinds import HEAD_BYTES, SUFFIXES, kind_of
from vec_pipeline.prompts import placeholders
from vec_pipeline.record import UserError
from vec_pipeline.terminal import plural

TEMPLATE = "{trigger}, {description}"
TRIGGER = "trigger"
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
FULL = (errno.ENOSPC, errno.EDQUOT)


class Template(NamedTuple):
    """A caption with columns in braces.

    parts: between commas, each as literals with the name that follows, None for none.
    """

    parts: list[list[tuple[str, str | None]]]
    trigger: str

    @property
    def columns(self) -> list[str]:
        return [name for part in self.parts for _, name in part if name and name != TRIGGER]

    def filled(self, values: Mapping[str, Any]) -> str:
        """One line. A part all of whose columns are empty is left out with its comma."""
        known = {**values, TRIGGER: self.trigger}
        found = []
        for part in self.parts:
            texts = [one_line(known.get(name)) for _, name in part if name]
            if any(texts) or not texts:
                found.append("".join(literal + (one_line(known.get(name)) if name else "") for literal, name in part))
        return ", ".join(text for part in found if (text := one_line(part)))


def export(reader: CsvReader, options: argparse.Namespace) -> None:
    """Write the files, and say how many. Raises UserError for what is wrong with the options, before a file is made."""
    template = parsed(options.template or TEMPLATE, options.trigger or "", reader.types)
    suffix = checked_suffix(options.suffix or ".txt")
    rows = Rows(reader, template.columns, options.out)
    if options.existing in (None, "error"):
        refuse_existing(rows, suffix)
    is_own = own_file_finder(reader.path)
    written = kept = 0
    targets = KeySet()
    for row in rows:
        target, caption = target_of(row, suffix), template.filled(row.values)
        if not caption:
            rows.left_out["without a caption"] += 1
        elif str(target) in targets:
            rows.left_out["whose file would have the name of another picture's"] += 1
        elif is_own(target):
            rows.left_out["whose file would replace one that belongs to the CSV"] += 1
        elif options.existing == "overwrite" and is_picture(target):
            rows.left_out["whose file would replace a picture"] += 1
        elif options.existing == "skip" and os.path.lexists(target):
            kept += 1
        elif save(target, caption):
            written += 1
        else:
            rows.left_out["whose folder cannot be written"] += 1
        targets.add(str(target))
    notes = [*([f"kept: {plural(kept, 'existing file')}"] if kept else []), *rows.notes()]
    if not written + kept:
        raise nothing_written(reader, "a caption", notes)
    where = f"in {options.out}" if options.out else "beside the pictures"
    print("; ".join([f"{plural(written, 'caption')} {where}", *notes]))


def parsed(text: str, trigger: str, types: Mapping[str, str]) -> Template:
    """Raises UserError for braces that hold no column."""
    try:
        names = placeholders(text)
    except ValueError as error:
        raise UserError(f"--template {str(error).removeprefix('prompt: ')}") from None
    known = [TRIGGER, *(name for name, kind in types.items() if kind != "vector")]
    for name in names:
        if name not in known:
            raise UserError(f"--template: unknown column {{{name}}} (there are: {', '.join(known)})")
    parts = [[(literal, name) for literal, name, _, _ in Formatter().parse(part)] for part in text.split(",")]
    return Template(parts, trigger)


def checked_suffix(suffix: str) -> str:
    if not suffix.startswith(".") or "/" in suffix or len(suffix) < 2:
        raise UserError(f"--suffix {suffix} is not the end of a file's name: use .txt or .caption, say")
    if suffix.lower() in SUFFIXES:
        raise UserError(f"--suffix {suffix} would replace pictures: use .txt or .caption, say")
    return suffix


def refuse_existing(rows: Rows, suffix: str) -> None:
    found = [target for row in rows if os.path.lexists(target := target_of(row, suffix))]
    if found:
        exist = "caption file exists" if len(found) == 1 else "caption files exist"
        raise UserError(
            f"{len(found):,} {exist} already, such as {found[0]}: keep them with --existing skip, or replace them with "
            "--existing overwrite"
        )


def target_of(row: Row, suffix: str) -> Path:
    return row.place.with_name(row.place.stem + suffix)


def is_picture(path: Path) -> bool:
    """Whether there is a file that begins as pictures do: those of a list may have any suffix."""
    try:
        with path.open("rb") if path.is_file() else nullcontext(BytesIO()) as file:
            return bool(kind_of(file.read(HEAD_BYTES)))
    except OSError:  # writing says what is wrong
        return False


def save(target: Path, caption: str) -> bool:
    """Write a file; of a link, the target. Returns whether that was possible. Raises UserError on a full disk."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(os.path.realpath(target)), caption.encode("utf-8", "replace") + b"\n")
    except OSError as error:
        if error.errno in FULL:
            raise UserError(
                f"{target} cannot be written ({error.strerror}): free some disk space, then rerun"
            ) from None
        return False
    return True


def one_line(value: object) -> str:
    """Trainers read a caption as one line; control characters are left out."""
    return "" if value is None else CONTROL.sub("", " ".join(str(value).split()))
