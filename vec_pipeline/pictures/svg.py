"""SVG drawings, by CairoSVG in a child process, since a small file can ask for endless memory and time.

Run as a program, this is the child: it reads an SVG from stdin and writes a PNG to stdout.
"""

import base64
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote_to_bytes

from vec_pipeline.pictures import EXTRA, Limits, MissingDecoder, Picture, pillow
from vec_pipeline.pictures.kinds import GZIP

PACKAGE_ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 30
MEMORY_BYTES = 1 << 30
LARGEST_BYTES = 64 << 20
NO_CAIRO = 3  # exit status
DPI = 96
SIZE_WITHOUT_ONE = (300, 150)  # pixels, as browsers do
DOCTYPE = re.compile(rb"<!DOCTYPE[^\[>]*(?:\[.*?\]\s*)?>", re.DOTALL)
ENTITY = re.compile(rb"""<!ENTITY\s+([\w.-]+)\s+(?:"([^"&%]*)"|'([^'&%]*)')\s*>""")
MOST_EXPANDED = 1 << 20  # bytes that entities may add
FORBIDDEN = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "urllib.")
NOTHING = b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'


def decode(content: bytes, limits: Limits) -> Picture:
    """Draw it as large as `side_px` allows, on white, with nothing from outside the file; scripts do not run.

    Raises MissingDecoder, ValueError where it cannot be drawn, subprocess.TimeoutExpired.
    """
    if not importlib.util.find_spec("cairosvg"):
        raise MissingDecoder(f"SVG needs CairoSVG: {EXTRA}")
    paths = filter(None, [str(PACKAGE_ROOT), os.environ.get("PYTHONPATH")])
    child = subprocess.run(
        [sys.executable, "-P", "-m", __name__, str(limits.side_px)],
        input=content,
        capture_output=True,
        timeout=TIMEOUT_S,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        check=False,
    )
    if child.returncode == NO_CAIRO:
        raise MissingDecoder("SVG needs the cairo library: apt install libcairo2, or brew install cairo")
    if child.returncode:
        lines = child.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(f"not an SVG that CairoSVG can draw: {lines[-1] if lines else 'its process died'}")
    return pillow.decode(child.stdout, limits)


def main(side_px: int) -> None:
    """The child."""
    limit_resources()
    try:
        parser, surface = importlib.import_module("cairosvg.parser"), importlib.import_module("cairosvg.surface")
    except OSError:  # cairocffi finds no library
        sys.exit(NO_CAIRO)
    from PIL import Image

    Image.init()
    content = unpacked(sys.stdin.buffer.read())
    sys.addaudithook(forbid_what_is_outside)
    tree = parser.Tree(bytestring=with_entities(content), url_fetcher=fetch, unsafe=False)
    width, height = size(tree)
    factor = side_px / max(width, height)
    width, height = (max(1, round(side * factor)) for side in (width, height))
    surface.PNGSurface(tree, sys.stdout.buffer, DPI, output_width=width, output_height=height).finish()


def limit_resources() -> None:
    try:
        import resource
    except ImportError:  # not on every system
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (TIMEOUT_S, TIMEOUT_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def forbid_what_is_outside(event: str, args: tuple[Any, ...]) -> None:
    """An audit hook: no network, no program, no file but Python's own. `fetch` asks for none of them anyway."""
    if event == "open" and isinstance(args[0], str):
        is_forbidden = not os.path.abspath(args[0]).startswith((sys.base_prefix, sys.prefix, *filter(None, sys.path)))
    else:
        is_forbidden = event.startswith(FORBIDDEN)
    if is_forbidden:
        raise PermissionError(f"an SVG may not do this: {event}")


def fetch(url: str, resource_type: str) -> bytes:
    """What a URL in the drawing stands for: what it holds itself, or nothing."""
    head, comma, data = url.partition(",")
    if not head.startswith("data:") or not comma:
        return NOTHING
    content = unquote_to_bytes(data)
    return base64.b64decode(content) if head.endswith(";base64") else content


def unpacked(content: bytes) -> bytes:
    """An SVG as text, of an .svgz too."""
    return zlib.decompressobj(31).decompress(content, LARGEST_BYTES) if content.startswith(GZIP) else content


def with_entities(content: bytes) -> bytes:
    """Put the texts that a DOCTYPE defines, as Illustrator writes them, in their places; defusedxml refuses them all.

    Those that hold others stay, and so do those that would add more than MOST_EXPANDED bytes.
    """
    if not (doctype := DOCTYPE.search(content)):
        return content
    texts = {name: double or single for name, double, single in ENTITY.findall(doctype[0])}
    body = content[: doctype.start()] + content[doctype.end() :]
    added = sum(body.count(b"&%s;" % name) * len(text) for name, text in texts.items())
    if len(texts) != doctype[0].count(b"<!ENTITY") or added > MOST_EXPANDED:
        return content
    return re.sub(rb"&([\w.-]+);", lambda found: texts.get(found[1], found[0]), body)


def size(tree: Any) -> tuple[float, float]:
    """Width and height of a drawing in pixels."""
    surface = SimpleNamespace(context_width=None, context_height=None, dpi=DPI, font_size=16)
    width, height, box = importlib.import_module("cairosvg.helpers").node_format(surface, tree)
    if box and not (width and height):
        width, height = box[2:]
    return (width, height) if width > 0 and height > 0 else SIZE_WITHOUT_ONE


if __name__ == "__main__":
    main(int(sys.argv[1]))
