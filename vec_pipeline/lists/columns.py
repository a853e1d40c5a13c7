"""Which columns of a table hold the pictures' addresses, and which come along."""

import re
from collections.abc import Sequence
from difflib import get_close_matches

from vec_pipeline.record import COLUMNS, UserError

ADDRESS_NAMES = (  # in lower case: the usual names of a column of addresses, paths or pictures
    *("url", "image_url", "img_url", "uri", "image_uri", "path", "image_path", "img_path", "file_path", "filepath"),
    *("file_name", "filename", "file", "image", "img"),
)
PRIORITY = "priority"  # the column by which a list says what comes first
NAME = re.compile(r"[\w.-]+")  # of a column in the CSV
OF_THE_WORKER = ("image_path", "timestamp", "error", "content", "source_url", "http_status")


def address_column(names: Sequence[str], wanted: str, where: str) -> str:
    """The column of addresses, paths or pictures: the wanted one, or the only one with a usual name.

    where: the table, for messages.

    Raises UserError.
    """
    if wanted:
        if wanted not in names:
            raise UserError(f"{where} has no column {wanted!r}{similar(wanted, names)}: correct --column")
        return wanted
    found = [name for name in names if name.strip().lower() in ADDRESS_NAMES]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{where} has the columns {' and '.join(found)}: choose the pictures' one with --column NAME")
    raise UserError(
        f"{where} has no column with a usual name such as url, path or image{there_are(names)}: "
        "choose the pictures' one with --column NAME"
    )


def kept_columns(keep: Sequence[str], names: Sequence[str], where: str) -> dict[str, str]:
    """The columns that come along -> their names in the CSV. Raises UserError."""
    kept: dict[str, str] = {}
    for each in keep:
        name, equals, new_name = each.rpartition("=")
        if not equals:
            name = new_name = each
        if name not in names:
            raise UserError(f"{where} has no column {name!r}{similar(name, names)}: correct --keep")
        if name in kept or new_name in kept.values():
            raise UserError(f"--keep {each}: that column is kept already: leave one of the two out")
        if new_name in OF_THE_WORKER or not NAME.fullmatch(new_name):
            raise UserError(f"--keep {each}: {new_name!r} cannot be the name of a column: use --keep '{name}=NAME'")
        kept[name] = new_name
    return kept


def check_types(columns: dict[str, str], where: str) -> dict[str, str]:
    """Return the columns that come along, with their types. Raises UserError where the CSV has another of that name."""
    for name, kind in columns.items():
        if COLUMNS.get(name, kind) != kind:
            raise UserError(
                f"{where} has {name} as {kind}, and that column of the CSV holds {COLUMNS[name]}: "
                f"use --keep '{name}=NAME'"
            )
    return columns


def similar(name: str, names: Sequence[str]) -> str:
    matches = get_close_matches(name, names, n=1, cutoff=0.5)
    return f" (did you mean {matches[0]!r}?)" if matches else there_are(names)


def there_are(names: Sequence[str]) -> str:
    more = f" and {len(names) - 20:,} more" if len(names) > 20 else ""
    return f" (there are: {', '.join(name[:60] for name in names[:20])}{more})"
