"""What was found, as one HTML file with its thumbnails in it, which opens from the disk."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

from vec_pipeline.commands import in_one_step
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
ITEM = """<li><a href="{link}">{picture}</a>
<p>{rank}. <b>{score:.3f}</b> {description}<br><small>{path}</small></p></li>"""


def write_page(path: Path, title: str, found: Sequence[Mapping[str, Any]]) -> None:
    """Write the page in one step. Text of images and models is shown as text, whatever it says."""
    OpenImage().load()  # readers of rarer formats
    with in_one_step(path) as new:
        new.write_text(PAGE.format(title=escape(title), items="\n".join(map(item, found))), encoding="utf-8")


def item(row: Mapping[str, Any]) -> str:
    image_path, description = Path(row["image_path"]).absolute(), escape(row["description"])
    return ITEM.format(
        link=escape(image_path.as_uri()),
        picture=picture(image_path, description),
        description=description,
        path=escape(row["image_path"]),
        rank=row["rank"],
        score=row["score"],
    )


def picture(image_path: Path, alt: str) -> str:
    """A thumbnail as an <img>, or why there is none."""
    try:
        image = open_image(image_path.read_bytes(), THUMBNAIL_PX)
    except Exception as error:  # of the many kinds that decoders raise
        return f'<span class="missing">{escape(type(error).__name__)}</span>'
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f'<img alt="{alt}" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
