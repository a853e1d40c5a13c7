"""Small upright pictures for the gallery, made in threads and made once."""

import hashlib
import os
import re
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from vec_pipeline.device import free_cores
from vec_pipeline.stages.open_image import OpenImage, open_image

SIDE_PX = 192
QUALITY = 78  # of WebP: 5 to 8 kB for a photograph
SAME_TIME_S = 2.0  # what the coarsest file system keeps of a file's time
ESCAPED_BYTE = re.compile(rb"\\x([0-9a-f]{2})")


class Picture(NamedTuple):
    """What the gallery shows of one image file."""

    thumbnail: str  # the name without its ending, or empty where none could be made
    link: str  # file:// address, percent-encoded, or empty where the file is not there


class Thumbnails:
    """A folder of WebP files named by the image's path. Each carries its image's modification time.

    So a second report makes only those of new or changed images, and keeps those whose image has gone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made = 0
        self._used: set[str] = set()
        self._pool = ThreadPoolExecutor(free_cores(), thread_name_prefix="thumbnail")
        OpenImage().load()  # HEIC, and Pillow's warnings

    def of(self, keys: Iterable[str]) -> list[Picture]:
        """Make what is missing for the images of some rows; a picture that cannot be read has no thumbnail."""
        keys = list(keys)
        different = dict.fromkeys(keys)  # two threads must not write one file
        found = dict(zip(different, self._pool.map(self._of, different), strict=True))
        self.made += sum(is_new for _, is_new in found.values())
        self._used.update(picture.thumbnail for picture, _ in found.values())
        return [found[key][0] for key in keys]

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def remove_unused(self) -> None:
        """Remove those of images that no row names any more."""
        for path in self.folder.glob("*/*"):
            if path.suffix != ".webp" or path.stem not in self._used:
                path.unlink()

    def _of(self, key: str) -> tuple[Picture, bool]:
        name = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).hexdigest()
        thumbnail = self.folder / name[:2] / f"{name}.webp"
        path = file_of(key)
        try:
            status = path.stat()
            link = path.as_uri() if path.is_absolute() else ""
        except (OSError, ValueError):
            return Picture(name if thumbnail.exists() else "", ""), False
        if is_of(thumbnail, status):
            return Picture(name, link), False
        is_made = stat.S_ISREG(status.st_mode) and make(path, status, thumbnail)
        return Picture(name if is_made else "", link), is_made


def is_of(thumbnail: Path, status: os.stat_result) -> bool:
    try:
        return abs(thumbnail.stat().st_mtime - status.st_mtime) < SAME_TIME_S
    except OSError:
        return False


def make(path: Path, status: os.stat_result, thumbnail: Path) -> bool:
    """Write an image's thumbnail in one step; false where the image cannot be read."""
    try:
        image = open_image(path.read_bytes(), SIDE_PX)
    except Exception:  # Pillow's readers raise anything; the row tells of it already
        return False
    thumbnail.parent.mkdir(parents=True, exist_ok=True)
    new = thumbnail.with_suffix(".new")
    image.save(new, "WEBP", quality=QUALITY, method=2)
    os.utime(new, ns=(status.st_mtime_ns, status.st_mtime_ns))
    new.replace(thumbnail)
    return True


def file_of(key: str) -> Path:
    r"""The file a row is about: bytes of its name that are no UTF-8 stand as \xNN in the row."""
    if "\\x" not in key or os.path.exists(key):
        return Path(key)
    return Path(os.fsdecode(ESCAPED_BYTE.sub(lambda found: bytes.fromhex(found[1].decode()), os.fsencode(key))))
