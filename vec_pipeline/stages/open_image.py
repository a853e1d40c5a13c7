"""content -> upright RGB image, longest side <= max_size_px."""

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from PIL import Image

from vec_pipeline.pictures import Limits, decode
from vec_pipeline.pictures.metadata import NAMES, metadata, place_in_folders
from vec_pipeline.record import Stage, Values, Worker

LARGEST_ASPECT = 50  # of the longer side to the shorter; vision-language models refuse images beyond about 200
WHITE = (255, 255, 255)


@dataclass(frozen=True, kw_only=True)
class OpenImage(Stage):
    """Reads and decodes images, ahead of the models and in threads.

    max_size_px: the longest side that the models see.
    max_megapixels: that an image may take in memory before it is reduced; a larger one gets an error.
    truncated: keep what there is of a file that is cut off, which raises the flag truncated_image, or give it an error.
    """

    reads: ClassVar[tuple[str, ...]] = ("content",)
    optional: ClassVar[tuple[str, ...]] = ("image_path",)
    intermediates: ClassVar[Mapping[str, str]] = {
        **{"image": "image", "has_pages": "json", "is_cut": "json"},
        **dict.fromkeys(NAMES, "text"),
    }
    speed_options: ClassVar[tuple[str, ...]] = (*Stage.speed_options, "max_megapixels")
    version: ClassVar[int] = 2  # greys of more than 8 bits by their range, colours by their profile
    worker: ClassVar[Worker] = "reader"

    max_size_px: int = 384
    max_megapixels: int = 179
    truncated: Literal["keep", "error"] = "keep"

    def load(self) -> None:
        logging.captureWarnings(True)  # of odd metadata: they would break the progress bar
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        Image.MAX_IMAGE_PIXELS = self.max_megapixels * 500_000  # Pillow warns from here and refuses twice as many

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        limits = Limits(self.max_size_px, self.max_megapixels, keeps_cut=self.truncated == "keep")
        return [self.opened(row["content"].read(), limits, row.get("image_path", "")) for row in rows]

    def opened(self, content: bytes, limits: Limits, key: str = "") -> Values:
        picture = decode(content, limits)
        return {
            **dict.fromkeys(NAMES),
            **metadata(content),
            **place_in_folders(key),
            "image": padded(picture.image),
            "has_pages": picture.has_pages or None,
            "is_cut": picture.is_cut or None,
        }


def open_image(content: bytes, max_size_px: int) -> Image.Image:
    """Decode a file's content into an upright RGB image.

    Alpha is laid on white, the longest side is reduced to `max_size_px` and never enlarged, and an aspect ratio over
    LARGEST_ASPECT is padded on white. Raises as `pictures.decode` does.
    """
    return padded(decode(content, Limits(max_size_px)).image)


def padded(image: Image.Image) -> Image.Image:
    """Pad the shorter side on white until no model refuses the aspect ratio."""
    shortest_px = -(-max(image.size) // LARGEST_ASPECT)
    if min(image.size) >= shortest_px:
        return image
    size = max(image.width, shortest_px), max(image.height, shortest_px)
    framed = Image.new("RGB", size, WHITE)
    framed.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return framed
