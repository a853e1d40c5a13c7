"""What a response shows: whether it is a picture, a placeholder, a web page, or not meant for machines that learn."""

import re
from collections.abc import Iterable
from io import BytesIO
from urllib.parse import urlsplit

from vec_pipeline.downloads import DownloadError
from vec_pipeline.pictures.kinds import HEAD_BYTES, kind_of

SNIFFED_BYTES = 32_768  # an SVG may define much before it begins, and a web page too
PAGE = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*|<!--.*?-->\s*)*+"
    rb"<(?:!doctype\s+html|html|head|body|title|meta|script|style|link|iframe|div|p|h1|center)[\s>/]",
    re.IGNORECASE | re.DOTALL,
)
OF_ANY_BYTES = frozenset(  # types that say nothing; those of pictures begin with image/
    "application/octet-stream binary/octet-stream application/binary application/x-binary application/download "
    "application/x-download application/force-download".split()
)
OTHER_FILES = (b"{", b"[", b"%PDF", b"PK\x03\x04", b"Rar!", b"\xff\xfe", b"\xfe\xff", b"<?xml", b"ID3", b"\x7fELF")
ONE_PIXEL_BYTES = 4096  # no picture of one pixel is larger
PLACEHOLDER = re.compile(
    r"(?<![a-z])(?:no[-_]?(?:image|photo|picture|pic|img|thumb(?:nail)?)|place[-_]?holder|not[-_]?found|image[-_]?removed|"
    r"(?:image|photo)[-_]?(?:not[-_]?available|unavailable)|default[-_]?(?:image|img|photo))(?![a-z])",
    re.IGNORECASE,
)
REMOVED = re.compile(r"//i\.imgur\.com/removed\.png|//[^/]*(?:flickr|yimg)\.com/.*photo_unavailable", re.IGNORECASE)
OWN_NAMES = ("*", "vec-pipeline")  # of robots, as X-Robots-Tag names them
WITH_VALUES = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")  # not names of robots
NO_AI = ("noai", "noimageai")


def is_picture(head: bytes, content_type: str, *, is_whole: bool) -> bool:
    """Whether these first bytes may be those of a picture; False where more of them have to be seen.

    The bytes decide, and the type only where they say nothing. Raises DownloadError.
    is_whole: there are no more bytes.
    """
    if PAGE.match(head):
        raise DownloadError("NotAnImage", "the server sent a web page")
    if kind_of(head):
        return True
    is_markup = head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")
    if not is_whole and len(head) < (SNIFFED_BYTES if is_markup else HEAD_BYTES):
        return False
    if not head:
        raise DownloadError("NotAnImage", "the server sent an empty file")
    if head.startswith(OTHER_FILES):
        raise DownloadError("NotAnImage", "the server sent a text or a document")
    if content_type and content_type not in OF_ANY_BYTES and not content_type.startswith("image/"):
        raise DownloadError("NotAnImage", f"the server sent {ascii(content_type[:60])[1:-1]}")
    return True


def check_pixels(data: bytes) -> None:
    """Raise DownloadError for a picture of one pixel, which stands for one that is gone, or counts visitors."""
    from PIL import Image

    try:
        with Image.open(BytesIO(data)) as image:
            size = image.size
    except Exception:  # whatever a decoder raises: the stage that opens pictures will say it
        return
    if size == (1, 1):
        raise DownloadError("Placeholder", "the picture has one pixel")


def check_redirect(asked: str, target: str) -> None:
    """Raise DownloadError for a redirect to a picture that says that there is none."""
    asked_path, target_path = urlsplit(asked).path, urlsplit(target).path
    if REMOVED.search(target) or (PLACEHOLDER.search(target_path) and not PLACEHOLDER.search(asked_path)):
        raise DownloadError("Placeholder", "the server redirects to a picture that stands for a missing one")


def forbids_ai(headers: Iterable[str]) -> bool:
    """Whether X-Robots-Tag headers say noai or noimageai to all robots, or to this one."""
    for header in headers:
        name = "*"
        for part in header.lower().split(","):
            before, colon, rest = part.partition(":")
            if colon and before.strip() not in WITH_VALUES:
                name, part = before.strip(), rest
            if part.strip() in NO_AI and name in OWN_NAMES:
                return True
    return False
