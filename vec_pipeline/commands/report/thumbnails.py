"""Small upright pictures for the gallery, made in threads and made once."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from vec_pipeline.device import free_cores
from vec_pipeline.record import Content, ContentOf
from vec_pipeline.stages.open_image import OpenImage, open_image

SIDE_PX = 192
QUALITY = 78  # of WebP: 5 to 8 kB for a photograph


class Picture(NamedTuple):
    """What the gallery shows of one image."""

    thumbnail: str  # the name without its suffix, or empty where none could be made
    link: str  # an address that a browser opens, or empty


class Thumbnails:
    """A folder of WebP files, each named by the hash of its image's key and by that of the image's identity.

    So a second report makes only those of new or changed images, and keeps the old one of an image that is gone.

    content_of: finds the picture of a key.
    """

    def __init__(self, folder: Path, content_of: ContentOf) -> None:
        self.folder = folder
        self.made = 0
        self._content_of = content_of
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
        """Remove those of images that no row names any more, and those of former states of an image."""
        for path in self.folder.glob("*/*"):
            if path.suffix != ".webp" or path.stem not in self._used:
                path.unlink()

    def _of(self, key: str) -> tuple[Picture, bool]:
        name = short_hash(key)
        folder = self.folder / name[:2]
        try:
            content = self._content_of(key)
            thumbnail = folder / f"{name}-{short_hash(content.identity())}.webp"
        except Exception:  # the image is gone, or the place it comes from does not answer
            old = max(folder.glob(f"{name}*.webp"), key=lambda path: path.stat().st_mtime_ns, default=None)
            return Picture(old.stem if old else "", ""), False
        if thumbnail.exists():
            return Picture(thumbnail.stem, content.link), False
        is_made = make(content, thumbnail)
        return Picture(thumbnail.stem if is_made else "", content.link), is_made


def short_hash(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def make(content: Content, thumbnail: Path) -> bool:
    """Write an image's thumbnail atomically; false where the image cannot be read."""
    try:
        image = open_image(content.read(), SIDE_PX)
    except Exception:  # Pillow's readers raise anything; the row tells of it already
        return False
    thumbnail.parent.mkdir(parents=True, exist_ok=True)
    new = thumbnail.with_suffix(".new")
    image.save(new, "WEBP", quality=QUALITY, method=2)
    new.replace(thumbnail)
    return True
