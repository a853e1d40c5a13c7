"""The losses of a training, and their curves as a PNG."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont

SIZE = WIDTH, HEIGHT = 640, 400
LEFT, TOP, RIGHT, BOTTOM = 70, 36, 24, 52  # margins
TYPE_PX = 14
TICKS = 5
TRAIN, VALIDATION, INK, GRID = "#1f77b4", "#d95f02", "#333333", "#dddddd"


@dataclass
class Curve:
    """Losses while training: contrastive losses divided by that of guessing, so that 1 is chance.

    steps: of each evaluation.
    train: the mean of the batches since the evaluation before.
    validation: of all validation rows.
    """

    steps: list[int] = field(default_factory=list)
    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)

    @property
    def best(self) -> int:
        """The index of the lowest validation loss."""
        return self.validation.index(min(self.validation))


def loss_png(curve: Curve) -> bytes:
    """Draw both losses over the steps, with a line where the projection was taken."""
    image = Image.new("RGB", SIZE, "white")
    drawing = ImageDraw.Draw(image)
    drawing.font = ImageFont.load_default(TYPE_PX)
    last, highest = curve.steps[-1], nice(max(*curve.train, *curve.validation))

    def place(step: float, loss: float) -> tuple[float, float]:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * loss / highest

    draw_axes(drawing, last, highest)
    kept = curve.steps[curve.best]
    drawing.line([place(kept, 0), place(kept, highest)], GRID, 3)
    for losses, colour in ((curve.train, TRAIN), (curve.validation, VALIDATION)):
        points = [place(step, loss) for step, loss in zip(curve.steps, losses, strict=True)]
        drawing.line(points, colour, 2, joint="curve")
        x, y = points[-1]
        drawing.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
    legend = (("training", TRAIN), ("validation", VALIDATION), (f"kept: step {kept:,}", INK))
    drawing.rectangle((WIDTH - RIGHT - 130, TOP + 2, WIDTH - RIGHT, TOP + 70), "white")
    for row, (text, colour) in enumerate(legend):
        drawing.text((WIDTH - RIGHT - 8, TOP + 8 + 20 * row), text, colour, anchor="ra")
    file = BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def draw_axes(drawing: ImageDraw.ImageDraw, last: int, highest: float) -> None:
    """Ticks, their numbers and the names of both axes."""
    for tick in range(TICKS + 1):
        share = tick / TICKS
        x = LEFT + (WIDTH - LEFT - RIGHT) * share
        y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share
        drawing.line((LEFT, y, WIDTH - RIGHT, y), GRID)
        drawing.text((LEFT - 8, y), f"{highest * share:.3g}", INK, anchor="rm")
        drawing.text((x, HEIGHT - BOTTOM + 8), f"{last * share:,.0f}", INK, anchor="mt")
    drawing.line((LEFT, TOP, LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM), INK)
    drawing.text((LEFT + (WIDTH - LEFT - RIGHT) / 2, HEIGHT - 8), "step", INK, anchor="mb")
    drawing.text((8, 6), "loss (1: chance)", INK)


def nice(highest: float, steps: Sequence[float] = (0.1, 0.2, 0.25, 0.5, 1, 1.5, 2, 3, 5, 10)) -> float:
    """The end of the axis of losses: the first of `steps` that is not below the highest."""
    return next((step for step in steps if step >= highest), highest)
