"""Draws people of simple make, whose age group and gender their figure shows, with a box around each."""

import random
from dataclasses import astuple, dataclass, field

from PIL import Image, ImageDraw

from models.demo.boxed import BoxedPicture, Labelled
from models.demo.drawing import (
    RGB,
    RGB_OF_BACKGROUND,
    RGB_OF_COLOUR,
    Box,
    jpeg_artefacts,
    noisy,
    random_pose,
    shape_mask,
    tinted,
    varied,
)
from models.demo.scenes import BACKGROUNDS, COLOURS, is_held_out, random_thing

PERSON = "person"
AGES = ("child", "adult", "senior")
GENDERS = ("female", "male")
SKINS: dict[str, RGB] = {
    "very light": (255, 224, 196),
    "light": (240, 194, 160),
    "medium": (205, 150, 110),
    "dark": (150, 100, 70),
    "very dark": (95, 62, 45),
}
HAIRS: tuple[RGB, ...] = ((30, 22, 18), (90, 56, 30), (200, 160, 80), (150, 60, 30))
GREY_HAIR: RGB = (190, 190, 195)
DARK: RGB = (30, 30, 30)
STICK: RGB = (110, 70, 30)
OVERSAMPLING = 3  # figures are drawn larger and reduced
MOST_PEOPLE = 6
SHARES_OF_NUMBERS = (4, 18, 22, 20, 16, 12, 8)  # of pictures with 0 to MOST_PEOPLE people
ATTEMPTS = 25


@dataclass(frozen=True)
class Person:
    """The truth about one figure. clothes: the colour of dress or jacket; skin: a key of SKINS."""

    age: str
    gender: str
    clothes: str
    skin: str


def random_person(rng: random.Random, background: str, *, held_out: bool) -> Person:
    """held_out: take age group, gender, clothes and skin from the combinations that training never sees."""
    while True:
        age, gender = rng.choice(("child", "adult", "adult", "senior")), rng.choice(GENDERS)
        person = Person(age, gender, rng.choice(COLOURS), rng.choice(tuple(SKINS)))
        if person.clothes != background and is_held_out("person", *astuple(person)) == held_out:
            return person


def draw_people(rng: random.Random, width: int, height: int, *, held_out: bool) -> BoxedPicture:
    """Draw 0 to MOST_PEOPLE people, who may stand partly behind each other, and up to two things beside them."""
    background = rng.choice(BACKGROUNDS)
    image = Image.new("RGB", (width, height), tinted(RGB_OF_BACKGROUND[background], rng))
    if rng.random() < 0.5:
        paint_floor(image, rng)
    objects: list[Labelled] = []
    number = rng.choices(range(MOST_PEOPLE + 1), SHARES_OF_NUMBERS)[0]
    for _ in range(number):
        add_person(image, objects, rng, background, crowd=number > 3, held_out=held_out)
    for _ in range(rng.choice((0, 0, 1, 2))):
        add_thing(image, objects, rng, background, held_out=held_out)
    return BoxedPicture(roughened(image, rng), tuple(objects))


def paint_floor(image: Image.Image, rng: random.Random) -> None:
    top = round(rng.uniform(0.5, 0.9) * image.height)
    floor = tuple(max(0, channel - 25) for channel in image.getpixel((0, 0)))  # type: ignore[union-attr]
    ImageDraw.Draw(image).rectangle((0, top, image.width, image.height), fill=floor)


def add_person(
    image: Image.Image, objects: list[Labelled], rng: random.Random, background: str, *, crowd: bool, held_out: bool
) -> None:
    """Paint one more person where there is room; where there is none, paint nobody."""
    for _ in range(ATTEMPTS):
        person = random_person(rng, background, held_out=held_out)
        share = rng.uniform(0.34, 0.62) * (0.66 if person.age == "child" else 1) * (0.8 if crowd else 1)
        layer = figure(person, rng, round(share * image.height))
        box = random_box(image, layer.width, layer.height, rng)
        if box and is_free(box, objects, -0.12 * layer.width):
            image.paste(layer, (int(box.left), int(box.top)), layer)
            objects.append(Labelled(PERSON, box, person.age, person.gender))
            return


def add_thing(
    image: Image.Image, objects: list[Labelled], rng: random.Random, background: str, *, held_out: bool
) -> None:
    size_px = round(rng.uniform(0.14, 0.28) * min(image.size))
    box = random_box(image, size_px, size_px, rng)
    if box is None or not is_free(box, objects, 2):
        return
    thing = random_thing(rng, background, held_out=held_out)
    mask = shape_mask(thing.kind, size_px, *random_pose(thing.kind, rng))
    image.paste(varied(RGB_OF_COLOUR[thing.colour], rng), (int(box.left), int(box.top)), mask)
    objects.append(Labelled(thing.kind, tight_box(mask, box)))


def tight_box(mask: Image.Image, box: Box) -> Box:
    """The box of what a mask shows that is painted with its corner at the corner of `box`."""
    left, top, right, bottom = mask.point(lambda opacity: 255 * (opacity > 127)).getbbox() or (0, 0, *mask.size)
    return Box(box.left + left, box.top + top, box.left + right, box.top + bottom)


def random_box(image: Image.Image, width: int, height: int, rng: random.Random) -> Box | None:
    if width >= image.width or height >= image.height:
        return None
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    return Box(left, top, left + width, top + height)


def is_free(box: Box, objects: list[Labelled], gap_px: float) -> bool:
    return not any(box.overlaps(other.box, gap_px) for other in objects)


def roughened(image: Image.Image, rng: random.Random) -> Image.Image:
    """Add what cameras and files add, as Canvas.roughen does it."""
    if rng.random() < 0.3:
        image = noisy(image, rng.uniform(2, 10), rng)
    return jpeg_artefacts(image, rng.randint(50, 92)) if rng.random() < 0.2 else image


def figure(person: Person, rng: random.Random, height_px: int) -> Image.Image:
    """A person on a transparent layer that is cropped to what is painted."""
    body = Body(person, rng, OVERSAMPLING * height_px)
    body.paint()
    layer = body.layer.crop(body.layer.getbbox())
    size = (max(1, layer.width // OVERSAMPLING), max(1, layer.height // OVERSAMPLING))
    return layer.resize(size, Image.Resampling.BOX)


@dataclass
class Body:
    """A figure being painted in coordinates from 0 to 1 on a square layer.

    Children have large heads; seniors grey hair, a stoop and often a stick; women long hair and a dress; men trousers
    and, unless they are children, often a beard.
    """

    person: Person
    rng: random.Random
    side_px: int
    layer: Image.Image = field(init=False)
    pen: ImageDraw.ImageDraw = field(init=False)

    def __post_init__(self) -> None:
        rng, age = self.rng, self.person.age
        self.layer = Image.new("RGBA", (self.side_px, self.side_px))
        self.pen = ImageDraw.Draw(self.layer)
        self.head = (0.15 if age == "child" else 0.105) * rng.uniform(0.93, 1.07)  # its radius
        self.skin = varied(SKINS[self.person.skin], rng)
        self.hair = varied(GREY_HAIR if age == "senior" else rng.choice(HAIRS), rng)
        self.clothes = varied(RGB_OF_COLOUR[self.person.clothes], rng)
        self.trousers = varied(RGB_OF_COLOUR[rng.choice(COLOURS)], rng)
        stoop = rng.uniform(0.02, 0.05) if age == "senior" else rng.uniform(-0.01, 0.01)
        self.middle, self.top = 0.5, 0.5 + stoop  # x of the hips and of the head
        self.half = (0.085 if age == "child" else 0.1) * rng.uniform(0.9, 1.15)  # half the width of the shoulders
        self.neck, self.hip, self.foot = 2 * self.head + 0.01, 0.56, 0.97  # y
        self.has_stick = age == "senior" and rng.random() < 0.6

    def paint(self) -> None:
        if self.person.gender == "female":  # long hair, behind everything
            self.ellipse(self.top, self.head + 0.05, self.head * 1.25, self.head * 1.5, self.hair)
        if self.has_stick:
            hand = self.middle + self.half + 0.1
            self.line((hand, 0.5), (hand + 0.02, self.foot), 0.022, STICK)
        self.paint_limbs()
        self.paint_clothes()
        self.paint_head()

    def paint_limbs(self) -> None:
        stride, reach = self.rng.uniform(0.03, 0.1), 0.1 if self.has_stick else self.rng.uniform(0.03, 0.16)
        legs = self.skin if self.person.gender == "female" else self.trousers
        for side in (-1, 1):
            ankle = self.middle + side * (self.half * 0.5 + stride)
            self.line((self.middle + side * self.half * 0.5, self.hip - 0.02), (ankle, self.foot), 0.065, legs)
            self.ellipse(ankle + side * 0.015, self.foot, 0.045, 0.022, DARK)
            hand = (self.middle + side * (self.half + reach), self.hip - self.rng.uniform(-0.02, 0.25))
            self.line((self.top + side * self.half * 0.9, self.neck + 0.04), hand, 0.05, self.clothes)

    def paint_clothes(self) -> None:
        if self.person.gender == "female":
            shoulders, hem, wide = self.half * 0.8, self.hip + 0.17, self.half * 2
        else:
            shoulders, hem, wide = self.half, self.hip + 0.02, self.half
        upper, lower = (self.top - shoulders, self.neck), (self.top + shoulders, self.neck)
        corners = (upper, lower, (self.middle + wide, hem), (self.middle - wide, hem))
        self.pen.polygon([self.scaled(*corner) for corner in corners], fill=self.clothes)

    def paint_head(self) -> None:
        head = self.head
        self.ellipse(self.top, head + 0.01, head, head, self.skin)
        self.slice(head * 1.08, 0.0, (180, 360), self.hair)
        if self.person.gender == "male" and self.person.age != "child" and self.rng.random() < 0.4:
            self.slice(head * 0.8, head * 0.6, (20, 160), self.hair)  # a beard
        for side in (-1, 1):
            self.ellipse(self.top + side * head * 0.4, head * 1.15, head * 0.12, head * 0.12, DARK)

    def scaled(self, x: float, y: float) -> tuple[float, float]:
        return x * self.side_px, y * self.side_px

    def ellipse(self, x: float, y: float, across: float, down: float, rgb: RGB) -> None:
        self.pen.ellipse((*self.scaled(x - across, y - down), *self.scaled(x + across, y + down)), fill=rgb)

    def line(self, start: tuple[float, float], end: tuple[float, float], width: float, rgb: RGB) -> None:
        self.pen.line((self.scaled(*start), self.scaled(*end)), fill=rgb, width=max(1, int(width * self.side_px)))

    def slice(self, radius: float, top: float, angles_deg: tuple[int, int], rgb: RGB) -> None:
        corners = (*self.scaled(self.top - radius, top), *self.scaled(self.top + radius, self.head * 2.1))
        self.pen.pieslice(corners, *angles_deg, fill=rgb)
