"""Small upright pictures for the gallery, made in threads and made once."""

import hashlib
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from vec_pipeline.device import free_cores
from vec_pipeline.pictures.full_size import opened
from vec_pipeline.record import Content, ContentOf
from vec_pipeline.stages.open_image import OpenImage, open_image, padded

SIDE_PX = 192
QUALITY = 78  # of WebP: 5 to 8 kB for a photograph
WIDTH, HEIGHT = 256, 257  # tags of EXIF, in which a thumbnail notes those of its picture


class Picture(NamedTuple):
    """What the gallery shows of one image."""

    thumbnail: str  # the name without its suffix, or empty where none could be made
    link: str  # an address that a browser opens, or empty
    size: tuple[int, int] | None = None  # width and height in pixels, upright, where they were asked for and are known


NO_PICTURE = Picture("", "")


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

    def of(self, keys: Iterable[str], sized: Collection[str] = ()) -> list[Picture]:
        """Make what is missing for the images of some rows; a picture that cannot be read has no thumbnail.

        keys: of the images; empty for none.

        sized: the keys of those whose size is needed, which takes longer.
        """
        keys = list(keys)
        different = dict.fromkeys(keys)  # two threads must not write one file
        found = dict(zip(different, self._pool.map(lambda key: self._of(key, key in sized), different), strict=True))
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

    def _of(self, key: str, is_sized: bool) -> tuple[Picture, bool]:
        if not key:
            return NO_PICTURE, False
        name = short_hash(key)
        folder = self.folder / name[:2]
        try:
            content = self._content_of(key)
            thumbnail = folder / f"{name}-{short_hash(content.identity())}.webp"
        except Exception:  # the image is gone, or the place it comes from does not answer
            old = max(folder.glob(f"{name}*.webp"), key=lambda path: path.stat().st_mtime_ns, default=None)
            return Picture(old.stem if old else "", "", size_in(old) if old and is_sized else None), False
        is_wanted = not thumbnail.exists() or (is_sized and not size_in(thumbnail))
        is_new = is_wanted and make(content, thumbnail, is_sized)
        if not thumbnail.exists():
            return Picture("", content.link), False
        return Picture(thumbnail.stem, content.link, size_in(thumbnail) if is_sized else None), is_new


def short_hash(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def make(content: Content, thumbnail: Path, is_sized: bool) -> bool:
    """Write an image's thumbnail atomically, with the image's size if asked; false where the image cannot be read."""
    notes = Image.Exif()
    try:
        if is_sized:
            image, size = opened(content.read(), lambda size: SIDE_PX, OpenImage.max_megapixels)
            notes[WIDTH], notes[HEIGHT] = size
        else:
            image = open_image(content.read(), SIDE_PX)
    except Exception:  # Pillow's readers raise anything; the row tells of it already
        return False
    thumbnail.parent.mkdir(parents=True, exist_ok=True)
    new = thumbnail.with_suffix(".new")
    padded(image).save(new, "WEBP", quality=QUALITY, method=2, exif=notes.tobytes() if is_sized else b"")
    new.replace(thumbnail)
    return True


def size_in(thumbnail: Path) -> tuple[int, int] | None:
    """Width and height of the picture that a thumbnail was made of, if it says so."""
    with suppress(OSError, KeyError), Image.open(thumbnail) as image:
        notes = image.getexif()
        return notes[WIDTH], notes[HEIGHT]
    return None
