"""Pictures for pages: upright, reduced, as new JPEGs."""

from io import BytesIO

from vec_pipeline.pictures import Limits
from vec_pipeline.pictures.full_size import opened

OPENED_AT_ONCE = 2  # of up to 1.5 GB each while they are decoded


def as_jpeg(content: bytes, side_px: int) -> tuple[bytes, tuple[int, int]]:
    """A picture as a JPEG, and the width and height of its file, in whose pixels boxes are. Raises as its decoder."""
    image, size = opened(content, lambda _: side_px, Limits.megapixels)
    target = BytesIO()
    image.save(target, "JPEG", quality=90)
    return target.getvalue(), size
