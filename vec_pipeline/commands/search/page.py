"""The results as one HTML file, with the thumbnails in it, that opens from the disk."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

from vec_pipeline.annotations import content_reader
from vec_pipeline.commands import writing
from vec_pipeline.record import Content, ContentOf, NotFound, UserError
from vec_pipeline.stages.open_image import OpenImage, open_image

THUMBNAIL_PX = 320
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
  body {{ font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem; color-scheme: light dark }}
  ol {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1.5rem; padding: 0 }}
  li {{ list-style: none; overflow-wrap: anywhere }}
  img, .missing {{ width: 100%; height: 12rem; object-fit: contain; background: #8882 }}
  .missing {{ display: grid; place-items: center }}
  small {{ opacity: .7 }}
</style>
<h1>{title}</h1>
<ol>
{items}
</ol>
</html>
"""
ITEM = """<li>{picture}
<p>{rank}. <b>{score:.3f}</b> {description}<br><small>{path}</small></p></li>"""


def write_page(path: Path, title: str, found: Sequence[Mapping[str, Any]], csv_path: Path) -> None:
    """Write the page, as `writing` does. Text of images and models is shown as text, whatever it says.

    csv_path: of the rows that were found, whose keys its sources can read.
    """
    OpenImage().load()  # readers of rarer formats
    content_of = content_reader(csv_path)
    items = "\n".join(item(row, content_of) for row in found)
    with writing(path) as file:
        file.write(PAGE.format(title=escape(title), items=items).encode(errors="backslashreplace"))


def item(row: Mapping[str, Any], content_of: ContentOf) -> str:
    description = escape(row["description"])
    try:
        content = content_of(row["image_path"])
        shown = picture(content, description)
        link = content.link
    except UserError as error:
        shown, link = missing("not found" if isinstance(error, NotFound) else "not an image"), ""
    return ITEM.format(
        picture=f'<a href="{escape(link)}">{shown}</a>' if link else shown,
        description=description,
        path=escape(row["image_path"]),
        rank=row["rank"],
        score=row["score"],
    )


def picture(content: Content, alt: str) -> str:
    """A thumbnail as an <img>, or why there is none."""
    try:
        image = open_image(content.read(), THUMBNAIL_PX)
    except Exception as error:  # of the many kinds that decoders raise
        return missing(type(error).__name__)
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f'<img alt="{alt}" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def missing(reason: str) -> str:
    return f'<span class="missing">{escape(reason)}</span>'
