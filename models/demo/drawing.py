"""Draws a scene as a picture, and records where everything on it is, for the labels of the training."""

import io
import math
import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from models.demo.scenes import COLOURS, KINDS, PLACES, Scene, Thing

RGB = tuple[int, int, int]

RGB_OF_COLOUR: dict[str, RGB] = {
    "red": (214, 32, 36),
    "orange": (245, 134, 20),
    "yellow": (250, 218, 40),
    "green": (40, 160, 60),
    "blue": (36, 80, 210),
    "purple": (130, 50, 170),
    "pink": (245, 130, 180),
    "brown": (120, 72, 36),
}
RGB_OF_BACKGROUND: dict[str, RGB] = {
    "white": (245, 245, 245),
    "black": (18, 18, 18),
    "grey": (128, 128, 128),
    "blue": (120, 180, 240),
    "green": (150, 215, 140),
    "yellow": (245, 232, 150),
}
RGB_OF_TEXT: tuple[RGB, ...] = (
    (0, 0, 0),
    (255, 255, 255),
    (150, 0, 0),
    (0, 0, 120),
    (0, 90, 0),
    (255, 230, 60),
)
LEAST_TEXT_CONTRAST = 95  # difference in luminance, of 255

FONT_FOLDER = Path(__file__).parent / "fonts"
# The smallest type of each font, in pixels at scale 1: below it the thin strokes are gone.
SMALLEST_TYPE_PX = {
    "DejaVuSans": 13,
    "DejaVuSans-Bold": 12,
    "DejaVuSansMono-Bold": 12,
    "DejaVuSansCondensed-Bold": 13,
    "DejaVuSerif-Bold": 13,
    "LiberationSerif-Bold": 14,
    "LiberationSerif-Regular": 15,
}
LARGEST_TYPE_PX = 26
MARGIN_PX = 2.0

SMALLEST_THING_PX = 20
MASTER_PX = 256  # shapes are drawn once at this size and reduced
ATTEMPTS = 80


class Box(NamedTuple):
    """An upright rectangle in pixels at scale 1."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box", gap_px: float) -> bool:
        return (
            self.left < other.right + gap_px
            and other.left < self.right + gap_px
            and self.top < other.bottom + gap_px
            and other.top < self.bottom + gap_px
        )


class Letter(NamedTuple):
    """One printed capital: its centre in pixels at scale 1, and how many letters of its word stand before it."""

    x: float
    y: float
    capital: str
    before: int


@dataclass(frozen=True)
class TypeStyle:
    """How a word is printed: font, type size in pixels at scale 1, rotation in degrees anticlockwise."""

    font: str
    size_px: int
    angle_deg: float

    def word_size_px(self, word: str) -> tuple[float, float]:
        """Width and height, at scale 1, of the upright box around the rotated word."""
        width, height = sum(self.advances_px(word)), self.cap_height_px()
        sine, cosine = abs(math.sin(math.radians(self.angle_deg))), abs(math.cos(math.radians(self.angle_deg)))
        return width * cosine + height * sine, width * sine + height * cosine

    def advances_px(self, word: str) -> list[float]:
        return [advance_px(self.font, self.size_px, capital) for capital in word]

    def cap_height_px(self) -> float:
        _, top, _, bottom = font(self.font, self.size_px).getbbox("H")
        return bottom - top


class Canvas:
    """A picture being drawn: paints objects and words, and records what it painted where.

    width, height: pixels at scale 1; `image` has `scale` times as many. All coordinates taken and kept are at scale 1.
    kinds, colours: maps of the size of `image` that hold 1 + the index of the object's kind or colour, 0 elsewhere.
    """

    def __init__(self, width: int, height: int, scale: int, background: str, rng: random.Random) -> None:
        self.width, self.height, self.scale, self.background, self.rng = width, height, scale, background, rng
        size = (width * scale, height * scale)
        self.ground = tinted(RGB_OF_BACKGROUND.get(background, RGB_OF_BACKGROUND["grey"]), rng)
        self.image = Image.new("RGB", size, self.ground)
        self.kinds, self.colours = Image.new("L", size), Image.new("L", size)
        self.centres: list[tuple[float, float]] = []
        self.letters: list[Letter] = []

    def paint_thing(self, thing: Thing, box: Box, rgb: RGB) -> None:
        size_px = round((box.right - box.left) * self.scale)
        mask = shape_mask(thing.kind, size_px, *random_pose(thing.kind, self.rng))
        corner = (round(box.left * self.scale), round(box.top * self.scale))
        self.image.paste(rgb, corner, mask)
        solid = mask.point(lambda opacity: 255 * (opacity > 127))
        self.kinds.paste(KINDS.index(thing.kind) + 1, corner, solid)
        self.colours.paste(COLOURS.index(thing.colour) + 1, corner, solid)
        self.centres.append(((box.left + box.right) / 2, (box.top + box.bottom) / 2))

    def print_word(self, word: str, style: TypeStyle, x: float, y: float, rgb: RGB) -> None:
        """Print a word with its middle at (x, y)."""
        mask = word_mask(word, style, self.scale)
        corner = (round(x * self.scale - mask.width / 2), round(y * self.scale - mask.height / 2))
        self.image.paste(rgb, corner, mask)
        advances = style.advances_px(word)
        sine, cosine = math.sin(math.radians(style.angle_deg)), math.cos(math.radians(style.angle_deg))
        offset = -sum(advances) / 2
        for before, (capital, advance) in enumerate(zip(word, advances, strict=True)):
            middle = offset + advance / 2
            self.letters.append(Letter(x + middle * cosine, y - middle * sine, capital, before))
            offset += advance

    def text_rgb(self) -> RGB:
        """A colour for text that can be read on this background."""
        readable = [rgb for rgb in RGB_OF_TEXT if abs(luminance(rgb) - luminance(self.ground)) > LEAST_TEXT_CONTRAST]
        return self.rng.choice(readable)

    def roughen(self) -> None:
        """Add what cameras and files add: noise of brightness and JPEG artefacts, each in some pictures only."""
        if self.rng.random() < 0.3:
            self.image = noisy(self.image, self.rng.uniform(2, 10), self.rng)
        if self.rng.random() < 0.2:
            self.image = jpeg_artefacts(self.image, self.rng.randint(50, 92))


def draw(scene: Scene, rng: random.Random, width: int = 112, height: int = 112, scale: int = 1) -> Canvas:
    """Draw a scene as a picture of `width * scale` by `height * scale` pixels.

    Colours, sizes, fonts, poses and exact places vary with `rng`. Raises ValueError where the canvas is too small for
    the scene.
    """
    canvas = Canvas(width, height, scale, scene.background, rng)
    if scene.background == "noise":
        canvas.image = random_pixels(canvas.image.size, rng, grain_px=max(1, round(scale * rng.choice((0.5, 1, 1, 2)))))
        return canvas
    boxes, style, spot = layout(scene, rng, width, height)
    rgbs = [varied(RGB_OF_COLOUR[thing.colour], rng) for thing in scene.things]
    for index, box in enumerate(boxes):
        which = min(index, len(scene.things) - 1)  # several objects of one kind share one entry
        canvas.paint_thing(scene.things[which], box, rgbs[which])
    if style:
        canvas.print_word(scene.word, style, *spot, canvas.text_rgb())
    canvas.roughen()
    return canvas


def layout(
    scene: Scene, rng: random.Random, width: int, height: int
) -> tuple[list[Box], TypeStyle | None, tuple[float, float]]:
    """Place a scene's objects and word: boxes, the word's type and its middle, in pixels at scale 1."""
    for attempt in range(ATTEMPTS):
        ease = attempt / ATTEMPTS  # the more attempts have failed, the smaller everything gets
        boxes = thing_boxes(scene, rng, width, height, ease)
        if boxes is None:
            continue
        if not scene.word:
            return boxes, None, (0.0, 0.0)
        style = random_style(scene.word, rng, width, ease)
        spot = free_spot(style.word_size_px(scene.word), boxes, rng, width, height)
        if spot:
            return boxes, style, spot
    raise ValueError(f"{scene.caption()!r} does not fit on {width} x {height} pixels")


def thing_boxes(scene: Scene, rng: random.Random, width: int, height: int, ease: float) -> list[Box] | None:
    """Boxes of a scene's objects that make the scene unambiguous, or None if this attempt did not fit."""
    number = max(scene.count, len(scene.things))
    if number == 0:
        return []
    largest = {1: 0.46, 2: 0.38, 3: 0.34, 4: 0.30}[number]
    smallest_px = max(SMALLEST_THING_PX, 0.2 * min(width, height))
    largest_px = max(smallest_px, largest * min(width, height) * (1 - 0.5 * ease))
    sizes_px = [round(rng.uniform(smallest_px, largest_px))] * number
    if len(scene.things) == 2:
        return related_boxes(scene.place, sizes_px[0], rng, width, height)
    if number == 1:
        return [placed_box(scene.place, sizes_px[0], rng, width, height)]
    return scattered_boxes(sizes_px, rng, width, height)


def placed_box(place: str, size_px: int, rng: random.Random, width: int, height: int) -> Box:
    """A box whose middle lies well inside one of the nine fields of the picture."""
    column, row = PLACES[place]
    x = ((column + 0.5) / 3 + rng.uniform(-0.06, 0.06)) * width
    y = ((row + 0.5) / 3 + rng.uniform(-0.06, 0.06)) * height
    half = size_px / 2 + 1
    return square_box(min(max(x, half), width - half), min(max(y, half), height - half), size_px)


def related_boxes(relation: str, size_px: int, rng: random.Random, width: int, height: int) -> list[Box] | None:
    """Two boxes, the first "to the left of" or "above" the second, apart along one axis and level along the other."""
    along, across = (width, height) if relation == "to the left of" else (height, width)
    half = size_px / 2 + 1
    gap = max(4.0, 0.06 * along)
    if 2 * size_px + gap + 2 > along:
        return None
    first = rng.uniform(half, along - half - size_px - gap)
    second = rng.uniform(first + size_px + gap, along - half)
    level = rng.uniform(half, across - half)
    other = min(max(level + rng.uniform(-0.08, 0.08) * across, half), across - half)
    if relation == "to the left of":
        return [square_box(first, level, size_px), square_box(second, other, size_px)]
    return [square_box(level, first, size_px), square_box(other, second, size_px)]


def scattered_boxes(sizes_px: list[int], rng: random.Random, width: int, height: int) -> list[Box] | None:
    boxes: list[Box] = []
    for size_px in sizes_px:
        half = size_px / 2 + 1
        for _ in range(20):
            box = square_box(rng.uniform(half, width - half), rng.uniform(half, height - half), size_px)
            if not any(box.overlaps(other, gap_px=3) for other in boxes):
                boxes.append(box)
                break
        else:
            return None
    return boxes


def square_box(x: float, y: float, size_px: int) -> Box:
    left, top = x - size_px / 2, y - size_px / 2
    return Box(left, top, left + size_px, top + size_px)


def random_style(word: str, rng: random.Random, width: int, ease: float) -> TypeStyle:
    """A font, type size and rotation in which the word is no wider than the picture, if possible."""
    name = rng.choice(tuple(SMALLEST_TYPE_PX))
    smallest_px = SMALLEST_TYPE_PX[name]
    widest_px = TypeStyle(name, 100, 0.0).word_size_px(word)[0]
    fitting_px = 100 * (width - 2 * MARGIN_PX - 2) / widest_px
    largest_px = min(LARGEST_TYPE_PX, fitting_px)
    largest_px = max(smallest_px, largest_px - ease * (largest_px - smallest_px))
    angle_deg = rng.uniform(-5, 5) if rng.random() < 0.4 else 0.0
    return TypeStyle(name, int(rng.uniform(smallest_px, largest_px + 0.99)), angle_deg)


def free_spot(
    size_px: tuple[float, float], boxes: list[Box], rng: random.Random, width: int, height: int
) -> tuple[float, float] | None:
    """A middle for a word of that size at which it touches neither the objects nor the edges."""
    half_width, half_height = size_px[0] / 2 + MARGIN_PX, size_px[1] / 2 + MARGIN_PX
    if 2 * half_width > width or 2 * half_height > height:
        return None
    for _ in range(20):
        x, y = rng.uniform(half_width, width - half_width), rng.uniform(half_height, height - half_height)
        word_box = Box(x - half_width, y - half_height, x + half_width, y + half_height)
        if not any(word_box.overlaps(box, gap_px=1) for box in boxes):
            return x, y
    return None


@lru_cache(maxsize=4096)
def font(name: str, size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONT_FOLDER / f"{name}.ttf", size_px, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=65536)
def advance_px(name: str, size_px: int, capital: str) -> float:
    # Measured at ten times the size, because the advance at small sizes is rounded to integer pixels.
    return font(name, 10 * size_px).getlength(capital) / 10


def word_mask(word: str, style: TypeStyle, scale: int) -> Image.Image:
    """Opacity of a printed word ("L"), its middle in the middle of the mask.

    Rotated words are printed larger, rotated and reduced, because rotating small type blurs it.
    """
    oversampling = max(1, 3 // scale) if style.angle_deg else 1
    size_px = style.size_px * scale * oversampling
    width = math.ceil(sum(style.advances_px(word)) * scale) + 2 * scale
    height = math.ceil(1.6 * style.size_px * scale)
    mask = Image.new("L", (width * oversampling, height * oversampling))
    middle = (mask.width / 2, mask.height / 2 + style.cap_height_px() / 2 * scale * oversampling)
    ImageDraw.Draw(mask).text(middle, word, fill=255, font=font(style.font, size_px), anchor="ms")
    if not style.angle_deg:
        return mask
    return mask.rotate(style.angle_deg, Image.Resampling.BILINEAR, expand=True).reduce(oversampling)


def random_pose(kind: str, rng: random.Random) -> tuple[int, bool]:
    """Rotation in degrees and whether mirrored. An arrow may point anywhere."""
    angle_deg = rng.choice((0, 0, 0, -5, 5, -10, 10, -15, 15))
    if kind == "arrow":
        angle_deg += rng.choice((0, 90, 180, 270))
    return angle_deg, rng.random() < 0.5


@lru_cache(maxsize=8192)
def shape_mask(kind: str, size_px: int, angle_deg: int, mirrored: bool) -> Image.Image:
    """Opacity of an object ("L", size_px square)."""
    return master_mask(kind, angle_deg, mirrored).resize((size_px, size_px), Image.Resampling.BILINEAR)


@lru_cache(maxsize=2048)
def master_mask(kind: str, angle_deg: int, mirrored: bool) -> Image.Image:
    """The object's shape on a square of MASTER_PX, drawn at four times that, rotated and reduced."""
    pen = Pen(4 * MASTER_PX)
    SHAPES[kind](pen)
    mask = pen.mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else pen.mask
    return mask.rotate(angle_deg, Image.Resampling.NEAREST).reduce(4)


class Pen:
    """Draws filled shapes on a mask in coordinates from 0 to 1; `ink=0` erases."""

    def __init__(self, size_px: int) -> None:
        self.size_px = size_px
        self.mask = Image.new("L", (size_px, size_px))
        self.pencil = ImageDraw.Draw(self.mask)

    def polygon(self, *points: tuple[float, float], ink: int = 255) -> None:
        self.pencil.polygon([(x * self.size_px, y * self.size_px) for x, y in points], fill=ink)

    def ellipse(self, left: float, top: float, right: float, bottom: float, ink: int = 255) -> None:
        self.pencil.ellipse([edge * self.size_px for edge in (left, top, right, bottom)], fill=ink)

    def disc(self, x: float, y: float, radius: float, ink: int = 255) -> None:
        self.ellipse(x - radius, y - radius, x + radius, y + radius, ink)

    def rectangle(self, left: float, top: float, right: float, bottom: float, ink: int = 255) -> None:
        self.pencil.rectangle([edge * self.size_px for edge in (left, top, right, bottom)], fill=ink)

    def arc(self, box: tuple[float, float, float, float], start_deg: float, end_deg: float, width: float) -> None:
        """A curved stroke, clockwise from three o'clock."""
        edges = [edge * self.size_px for edge in box]
        self.pencil.arc(edges, start_deg, end_deg, fill=255, width=round(width * self.size_px))


def _arrow(pen: Pen) -> None:
    pen.rectangle(0.06, 0.38, 0.56, 0.62)
    pen.polygon((0.52, 0.14), (0.96, 0.5), (0.52, 0.86))


def _boat(pen: Pen) -> None:
    pen.polygon((0.05, 0.66), (0.95, 0.66), (0.78, 0.92), (0.22, 0.92))
    pen.rectangle(0.47, 0.06, 0.52, 0.66)
    pen.polygon((0.57, 0.08), (0.9, 0.58), (0.57, 0.58))
    pen.polygon((0.42, 0.18), (0.42, 0.58), (0.16, 0.58))


def _car(pen: Pen) -> None:
    pen.polygon((0.22, 0.46), (0.34, 0.2), (0.7, 0.2), (0.82, 0.46))
    pen.rectangle(0.03, 0.44, 0.97, 0.7)
    pen.disc(0.26, 0.7, 0.13)
    pen.disc(0.74, 0.7, 0.13)
    pen.polygon((0.33, 0.44), (0.4, 0.27), (0.5, 0.27), (0.5, 0.44), ink=0)
    pen.polygon((0.55, 0.44), (0.55, 0.27), (0.65, 0.27), (0.72, 0.44), ink=0)
    pen.disc(0.26, 0.7, 0.055, ink=0)
    pen.disc(0.74, 0.7, 0.055, ink=0)


def _cat(pen: Pen) -> None:
    pen.ellipse(0.1, 0.24, 0.9, 0.94)
    pen.polygon((0.1, 0.04), (0.12, 0.56), (0.48, 0.3))
    pen.polygon((0.9, 0.04), (0.88, 0.56), (0.52, 0.3))
    pen.ellipse(0.26, 0.46, 0.4, 0.6, ink=0)
    pen.ellipse(0.6, 0.46, 0.74, 0.6, ink=0)
    pen.polygon((0.42, 0.68), (0.58, 0.68), (0.5, 0.8), ink=0)


def _circle(pen: Pen) -> None:
    pen.disc(0.5, 0.5, 0.44)


def _cloud(pen: Pen) -> None:
    pen.disc(0.24, 0.6, 0.2)
    pen.disc(0.5, 0.44, 0.26)
    pen.disc(0.76, 0.58, 0.21)
    pen.rectangle(0.24, 0.56, 0.76, 0.8)


def _cup(pen: Pen) -> None:
    pen.polygon((0.08, 0.16), (0.7, 0.16), (0.62, 0.88), (0.16, 0.88))
    pen.arc((0.5, 0.26, 0.96, 0.68), -100, 110, width=0.09)


def _fish(pen: Pen) -> None:
    pen.ellipse(0.03, 0.24, 0.76, 0.76)
    pen.polygon((0.64, 0.5), (0.94, 0.22), (0.94, 0.78))
    pen.disc(0.22, 0.43, 0.055, ink=0)


def _flower(pen: Pen) -> None:
    for petal in range(5):
        angle = 2 * math.pi * petal / 5
        pen.disc(0.5 + 0.2 * math.sin(angle), 0.37 - 0.2 * math.cos(angle), 0.145)
    pen.rectangle(0.465, 0.5, 0.535, 0.97)
    pen.ellipse(0.52, 0.7, 0.82, 0.84)
    pen.ellipse(0.18, 0.76, 0.48, 0.9)
    pen.disc(0.5, 0.37, 0.1, ink=0)


def _heart(pen: Pen) -> None:
    pen.disc(0.28, 0.33, 0.25)
    pen.disc(0.72, 0.33, 0.25)
    pen.polygon((0.07, 0.46), (0.5, 0.3), (0.93, 0.46), (0.5, 0.96))


def _house(pen: Pen) -> None:
    pen.polygon((0.5, 0.04), (0.97, 0.46), (0.03, 0.46))
    pen.rectangle(0.14, 0.46, 0.86, 0.9)
    pen.rectangle(0.54, 0.58, 0.74, 0.9, ink=0)
    pen.rectangle(0.24, 0.54, 0.42, 0.7, ink=0)


def _key(pen: Pen) -> None:
    pen.disc(0.26, 0.5, 0.23)
    pen.disc(0.26, 0.5, 0.11, ink=0)
    pen.rectangle(0.46, 0.44, 0.95, 0.56)
    pen.rectangle(0.69, 0.54, 0.77, 0.7)
    pen.rectangle(0.86, 0.54, 0.95, 0.74)


def _moon(pen: Pen) -> None:
    pen.disc(0.48, 0.5, 0.44)
    pen.disc(0.72, 0.42, 0.38, ink=0)


def _square(pen: Pen) -> None:
    pen.rectangle(0.1, 0.1, 0.9, 0.9)


def _star(pen: Pen) -> None:
    points = []
    for corner in range(10):
        radius, angle = (0.2, 0.49)[corner % 2 == 0], math.pi * corner / 5
        points.append((0.5 + radius * math.sin(angle), 0.53 - radius * math.cos(angle)))
    pen.polygon(*points)


def _tree(pen: Pen) -> None:
    pen.polygon((0.5, 0.02), (0.76, 0.34), (0.24, 0.34))
    pen.polygon((0.5, 0.16), (0.86, 0.58), (0.14, 0.58))
    pen.polygon((0.5, 0.34), (0.94, 0.8), (0.06, 0.8))
    pen.rectangle(0.42, 0.8, 0.58, 0.98)


def _triangle(pen: Pen) -> None:
    pen.polygon((0.5, 0.08), (0.91, 0.84), (0.09, 0.84))


def _umbrella(pen: Pen) -> None:
    pen.ellipse(0.04, 0.06, 0.96, 0.98)
    pen.rectangle(0.0, 0.5, 1.0, 1.0, ink=0)
    for left in (0.04, 0.347, 0.653):
        pen.ellipse(left, 0.42, left + 0.307, 0.6, ink=0)
    pen.rectangle(0.465, 0.3, 0.535, 0.84)
    pen.arc((0.465, 0.72, 0.74, 0.96), 0, 180, width=0.07)


SHAPES = {
    "arrow": _arrow,
    "boat": _boat,
    "car": _car,
    "cat": _cat,
    "circle": _circle,
    "cloud": _cloud,
    "cup": _cup,
    "fish": _fish,
    "flower": _flower,
    "heart": _heart,
    "house": _house,
    "key": _key,
    "moon": _moon,
    "square": _square,
    "star": _star,
    "tree": _tree,
    "triangle": _triangle,
    "umbrella": _umbrella,
}


def varied(rgb: RGB, rng: random.Random) -> RGB:
    red, green, blue = (max(0, min(255, channel + rng.randint(-14, 14))) for channel in rgb)
    return red, green, blue


def tinted(rgb: RGB, rng: random.Random) -> RGB:
    """A background: somewhat brighter or darker, but of nearly the same hue, or grey would no longer be grey."""
    brighter = rng.randint(-10, 10)
    red, green, blue = (max(0, min(255, channel + brighter + rng.randint(-4, 4))) for channel in rgb)
    return red, green, blue


def luminance(rgb: RGB) -> float:
    """Brightness of 0 to 255 (ITU-R BT.601)."""
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]


def noisy(image: Image.Image, standard_deviation: float, rng: random.Random) -> Image.Image:
    """The image with normal noise added to its brightness; the deviation is of 255."""
    generator = np.random.default_rng(rng.getrandbits(64))
    noise = generator.standard_normal((image.height, image.width), dtype=np.float32) * standard_deviation + 128
    grey = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
    return ImageChops.add(image, Image.merge("RGB", (grey, grey, grey)), offset=-128)


def jpeg_artefacts(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    with Image.open(file) as reopened:
        return reopened.convert("RGB")


def random_pixels(size: tuple[int, int], rng: random.Random, grain_px: int) -> Image.Image:
    """A picture of random colours in grains of `grain_px` pixels."""
    generator = np.random.default_rng(rng.getrandbits(64))
    grains = generator.integers(0, 256, (-(-size[1] // grain_px), -(-size[0] // grain_px), 3), dtype=np.uint8)
    whole = (grains.shape[1] * grain_px, grains.shape[0] * grain_px)
    return Image.fromarray(grains).resize(whole, Image.Resampling.NEAREST).crop((0, 0, *size))
