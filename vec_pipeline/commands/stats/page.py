"""A page of figures of any CSV: index.html, and beside it every figure as a file of its own."""

import re
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from html import escape
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from vec_pipeline.annotations import CsvReader, content_reader
from vec_pipeline.commands import blocks_with_bar, writing
from vec_pipeline.commands.report import site as report_site
from vec_pipeline.commands.report.thumbnails import Thumbnails
from vec_pipeline.commands.stats import drawing
from vec_pipeline.commands.stats.columns import Column, moments, shown
from vec_pipeline.commands.stats.figures import Figure, columns_of, figures_of, figures_of_requests
from vec_pipeline.commands.stats.pairs import sample
from vec_pipeline.commands.stats.requests import POST, made_of_requests
from vec_pipeline.pairs import pairs_of
from vec_pipeline.settings import recorded_settings
from vec_pipeline.terminal import plural

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

MOST_ROWS = 100_000
MOST_PAIRS = 12
REQUEST_CHARACTERS = REASON_CHARACTERS = 120
FIGURES, PICTURES = Path("gallery/figures"), Path("gallery/thumbnails")
REQUESTS = "Requests"
SECTIONS = {  # by the kind of a column's values, in the order of the page
    "time": "Over time",
    "number": "Numbers",
    "few": "Values",
    "list": "Values",
    "json": "Values",
    "words": "Texts",
}
KINDS = {
    "number": "numbers",
    "time": "times",
    "few": "few values",
    "words": "texts",
    "list": "lists",
    "json": "JSON",
    "names": "different texts",
    "empty": "",
}
STYLE = Path(__file__).parent / "stats.css"
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="vec_pipeline stats">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'self' file:; \
img-src 'self' file: data:; base-uri 'none'; form-action 'none'">
<title>{title}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="gallery/gallery.css">
<link rel="stylesheet" href="gallery/stats.css">
</head>
<body>
<header class="top"><div class="title"><h1>{title}</h1><p class="muted">{about}</p></div></header>
<main class="stats">
{sections}
</main>
</body>
</html>
"""


class Page:
    """The folder of a page, new or of an earlier page. Raises UserError where it holds something else."""

    def __init__(self, out: Path) -> None:
        report_site.refuse_what_is_not_ours(out, "stats", "a page of figures", "--html")
        (out / PICTURES).mkdir(parents=True, exist_ok=True)  # by which a page is known that was not finished
        self.out = out
        self._sections: defaultdict[str, list[str]] = defaultdict(list)
        self._used: set[str] = set()
        self.failed: list[str] = []  # which figures could not be made, and why

    def add_all(self, name: str, of: str, figures: Iterator[Figure]) -> None:
        """Add the figures of a column to a section, or note why they cannot be drawn."""
        try:
            found = list(figures)
        except Exception as error:  # of matplotlib, pandas: the other columns have their figures
            self.failed.append(drawing.label(f"no figure of {of} ({type(error).__name__}: {error})", REASON_CHARACTERS))
            return
        for figure in found:
            self.add(name, figure)

    def add(self, section: str, figure: Figure) -> None:
        """Write the file of a figure, and show it in a section."""
        stem = re.sub(r"[^\w.-]+", "-", figure.name).strip("-.")[:50] or "figure"
        name = next(
            name for n in count(1) if (name := f"{stem}{'' if n == 1 else f'-{n}'}.svg").lower() not in self._used
        )
        self._used.add(name.lower())
        put(self.out / FIGURES / name, figure.svg)
        self._sections[section].append(
            f'<figure class="plot"><h3>{text(figure.title)}</h3>'
            f'<img src="{text(quote((FIGURES / name).as_posix()))}" alt="{text(figure.says)}">'
            f'<figcaption class="note">{text(figure.note)}</figcaption></figure>'
        )

    def __len__(self) -> int:
        return len(self._used)

    def publish(self, title: str, about: str, columns: str, pairs: str) -> None:
        """Write index.html, and remove the figures of an earlier page that are not part of this one."""
        order = (REQUESTS, *dict.fromkeys(SECTIONS.values()))
        found = [
            section(name, f'<div class="plots">{"".join(self._sections[name])}</div>')
            for name in order
            if self._sections[name]
        ]
        put(self.out / "gallery/gallery.css", (report_site.PAGE / "gallery.css").read_bytes())
        put(self.out / "gallery/stats.css", STYLE.read_bytes())
        page = PAGE.format(title=text(title), about=text(about), sections="\n".join([columns, *found, pairs]))
        put(self.out / "index.html", page.encode())
        for old in (self.out / FIGURES).glob("*.svg"):
            if old.name.lower() not in self._used:
                old.unlink()


def make_page(reader: CsvReader, out: Path) -> str:
    """Write the page of a CSV, and return what to say of it.

    Raises UserError where matplotlib is missing, or the folder holds something else or cannot be written; OSError where
    thumbnails cannot be.
    """
    drawing.require()
    page = Page(out)
    table, rows, every = sampled(reader)
    page.add_all(REQUESTS, "the requests", figures_of_requests(table))
    lines = []
    for column in columns_of(table, made_of_requests(recorded_settings(reader.path))):
        lines.append(line_of(column))
        page.add_all(SECTIONS.get(column.kind, ""), column.name, figures_of(column))
    counted = f", {counted_of(reader, every)}" if every > 1 else ""
    failed = "".join(f"; {reason}" for reason in page.failed)
    about = f"{plural(rows, 'row')}{counted}{failed}; made {datetime.now().isoformat(' ', timespec='seconds')}"
    page.publish(f"Figures of {reader.path.name}", about, columns_section(lines), pairs_section(reader, table, out))
    return f"{plural(len(page), 'figure')} of {plural(rows, 'row')}{counted}{failed}: open {out / 'index.html'}"


def counted_of(reader: CsvReader, every: int) -> str:
    """Which rows a sample has."""
    if POST in reader.types:
        return f"of which those of one request in {every:,} are counted"
    return f"of which one in {every:,} is counted"


def sampled(reader: CsvReader) -> tuple["pd.DataFrame", int, int]:
    """The rows without vectors as a table, and how many there are; of more than MOST_ROWS one in 2, 4, 8, ..., and in
    which number of them. Of a request all rows are there, or none.
    """
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    names = [name for name, kind in reader.types.items() if kind != "vector"]
    kept, every, rows = reader.schema(names).empty_table(), 1, 0
    numbers = numbers_of(kept, 0)
    for block in blocks_with_bar(reader, names):
        found = numbers_of(block.table, rows)
        is_kept = found % every == 0
        kept = pa.concat_tables([kept, block.table.filter(pa.array(is_kept))])
        numbers = np.concatenate([numbers, found[is_kept]])
        rows += len(block.table)
        while len(kept) > MOST_ROWS:
            every *= 2
            is_kept = numbers % every == 0
            kept, numbers = kept.filter(pa.array(is_kept)), numbers[is_kept]
    return kept.to_pandas(types_mapper=pd.ArrowDtype), rows, every


def numbers_of(table: "pa.Table", before: int) -> "np.ndarray[Any, Any]":
    """A number for each row, by which it is counted or not: its place, or the same one for all rows of a request."""
    import numpy as np

    if POST not in table.column_names:
        return np.arange(before, before + len(table))
    posts, paths = (table[name].to_pylist() for name in (POST, "image_path"))
    return np.array([zlib.crc32(str(post or path).encode()) for post, path in zip(posts, paths, strict=True)], np.int64)


def put(path: Path, content: bytes) -> None:
    with writing(path) as file:
        file.write(content)


def text(value: str) -> str:
    """A text within HTML, without what no page can hold."""
    return escape(value.encode("utf-8", "replace").decode())


def section(title: str, content: str) -> str:
    return f"<section><h2>{text(title)}</h2>{content}</section>"


def line_of(column: Column) -> str:
    """A column's line in the table: its name and kind, how many rows have a value and how many none, its values."""
    cells = (KINDS[column.kind], f"{len(column.values):,}", f"{column.missing:,}", in_short(column))
    return (
        f'<tr><th scope="row">{text(column.name)}</th>' + "".join(f"<td>{text(cell)}</td>" for cell in cells) + "</tr>"
    )


def in_short(column: Column) -> str:
    """The range of numbers and times, the number of different texts, or the only one."""
    if column.kind == "time":
        times = moments(column.values).dropna()
        return f"{times.min():%Y-%m-%d} to {times.max():%Y-%m-%d}" if len(times) else ""
    if column.kind == "number":
        return f"{shown(min(column.values))} to {shown(max(column.values))}"
    if column.kind in ("few", "words", "names", "list"):
        different = set(column.values)
        return f"{len(different):,} different" if len(different) > 1 else f"all “{drawing.label(different.pop())}”"
    return ""


def columns_section(lines: list[str]) -> str:
    titles = "".join(
        f'<th scope="col">{title}</th>' for title in ("Column", "Holds", "Rows with a value", "Without", "Values")
    )
    rows = "".join(lines)
    table = f"<table><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>"
    return section("Columns", f'<div class="scroll" tabindex="0" role="region" aria-label="Columns">{table}</div>')


def pairs_section(reader: CsvReader, table: "pd.DataFrame", out: Path) -> str:
    """Originals beside their edited pictures, a sample; empty where the rows are no pairs."""
    pairs = pairs_of(reader.path, reader.types)
    if not pairs:
        return ""
    rows = int((table[pairs.column] != "").sum())
    chosen = sample(table, pairs, MOST_PAIRS)
    with closing(Thumbnails(out / PICTURES, content_reader(reader.path))) as thumbnails:
        originals = thumbnails.of(row["image_path"] for row in chosen)
        edited = thumbnails.of(map(pairs.key, chosen))
        thumbnails.remove_unused()
    shown_pairs = [
        pair_html(one.thumbnail, other.thumbnail, pairs.request(row))
        for row, one, other in zip(chosen, originals, edited, strict=True)
        if one.thumbnail and other.thumbnail
    ]
    gone = f"; the pictures of {len(chosen) - len(shown_pairs):,} are gone" if len(shown_pairs) < len(chosen) else ""
    about = f'<p class="muted">{len(chosen):,} of {plural(rows, "pair")}{gone}</p>'
    return section("Pairs", f'{about}<div class="couples">{"".join(shown_pairs)}</div>')


def pair_html(original: str, edited: str, request: str) -> str:
    def image(name: str, alt: str) -> str:
        return f'<img src="{(PICTURES / name[:2] / name).as_posix()}.webp" alt="{text(alt)}" loading="lazy">'

    asked = drawing.label(request, REQUEST_CHARACTERS) or "its request is not known"
    images = image(original, "original") + image(edited, f"result: {asked}")
    return f'<figure class="plot"><div class="couple">{images}</div><figcaption>{text(asked)}</figcaption></figure>'
