"""Pictures whose truth is boxes: what the detector is trained and measured on, besides drawn scenes."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from models.demo.drawing import Box, Canvas
from models.demo.scenes import KINDS

Size = tuple[int, int]


class Labelled(NamedTuple):
    """One object of a picture: its label, and its tight box in pixels of the picture.

    age, gender: of a person, or empty.
    """

    label: str
    box: Box
    age: str = ""
    gender: str = ""

    def within(self, width: int, height: int) -> "Labelled":
        """The same, its box cut off at the edges of a picture."""
        left, top, right, bottom = self.box
        return self._replace(box=Box(max(0.0, left), max(0.0, top), min(right, width), min(bottom, height)))


@dataclass(frozen=True)
class BoxedPicture:
    """A drawn picture and all objects in it."""

    image: Image.Image
    objects: tuple[Labelled, ...]

    def resized(self, width: int, height: int) -> "BoxedPicture":
        """The picture squeezed to a size, as a detector's image processor does it."""
        if self.image.size == (width, height):
            return self
        across, down = width / self.image.width, height / self.image.height
        objects = tuple(
            item._replace(box=Box(box.left * across, box.top * down, box.right * across, box.bottom * down))
            for item in self.objects
            for box in [item.box]
        )
        return BoxedPicture(self.image.resize((width, height), Image.Resampling.BILINEAR), objects)


def boxed_scene(canvas: Canvas) -> BoxedPicture:
    """A drawn scene with the tight boxes of its objects."""
    kinds = np.asarray(canvas.kinds)
    rows, columns = np.nonzero(kinds)
    if not len(rows):
        return BoxedPicture(canvas.image, ())
    # The squares that objects are painted in are of one size and apart, so a pixel belongs to the nearest middle.
    middles = np.array(canvas.centres) * canvas.scale
    away = np.maximum(abs(columns + 0.5 - middles[:, :1]), abs(rows + 0.5 - middles[:, 1:]))
    nearest = away.argmin(0)
    objects = []
    for index in range(len(middles)):
        x, y = columns[nearest == index], rows[nearest == index]
        box = Box(float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1))
        objects.append(Labelled(KINDS[kinds[y[0], x[0]] - 1], box))
    return BoxedPicture(canvas.image, tuple(objects))
