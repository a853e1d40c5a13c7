"""Draws interface screens with a box around each button, field, checkbox, icon and menu."""

import random
from dataclasses import dataclass, field
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from models.demo.boxed import BoxedPicture, Labelled
from models.demo.drawing import RGB, RGB_OF_COLOUR, Box, font, shape_mask, tinted, varied
from models.demo.people import roughened, tight_box
from models.demo.scenes import COLOURS, KINDS, is_held_out, random_word

ELEMENTS = ("button", "field", "checkbox", "icon", "menu")
TYPEFACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansCondensed-Bold")
CORNERS_PX = (0, 3, 6, 10)  # radii
LINES_PX = (1, 2)
DESIGN_PX = 320  # the width for which all sizes below are given
OVERSAMPLING = 2  # screens are drawn larger and reduced
MARGIN_PX = 6
WHITE: RGB = (250, 250, 250)
BLACK: RGB = (15, 15, 15)
LIGHT = 380  # sum of the channels, from which on dark type is read better


class Theme(NamedTuple):
    window: RGB
    surface: RGB
    ink: RGB
    accent: RGB


THEMES = {
    "light": Theme((240, 240, 240), (255, 255, 255), (20, 20, 20), (0, 110, 215)),
    "paper": Theme((255, 255, 255), (245, 246, 248), (40, 40, 40), (30, 140, 80)),
    "dark": Theme((32, 34, 38), (52, 55, 61), (230, 230, 230), (80, 140, 240)),
    "classic": Theme((214, 210, 200), (255, 255, 255), (0, 0, 0), (200, 196, 186)),
    "sky": Theme((236, 242, 250), (255, 255, 255), (20, 30, 60), (150, 60, 190)),
    "night": Theme((24, 24, 40), (40, 40, 66), (220, 220, 240), (230, 110, 40)),
}


class Look(NamedTuple):
    """What all elements of a screen share."""

    theme: str
    typeface: str
    corner_px: int
    line_px: int


def random_look(rng: random.Random, *, held_out: bool) -> Look:
    """held_out: a combination that training never sees, otherwise one of the others."""
    while True:
        look = Look(rng.choice(tuple(THEMES)), rng.choice(TYPEFACES), rng.choice(CORNERS_PX), rng.choice(LINES_PX))
        if is_held_out("screen", *map(str, look)) == held_out:
            return look


def draw_screen(rng: random.Random, width: int, height: int, *, held_out: bool) -> BoxedPicture:
    """Draw a window: perhaps a title, a menu bar and icons, and then a form until it is full."""
    screen = Screen(rng, random_look(rng, held_out=held_out), width, height, held_out)
    screen.paint()
    image = screen.image.reduce(OVERSAMPLING)
    objects = (
        item._replace(box=Box(*(edge / OVERSAMPLING for edge in item.box))).within(width, height)
        for item in screen.objects
    )
    return BoxedPicture(roughened(image, rng), tuple(objects))


@dataclass
class Screen:
    """A window being painted from the top down; `y` is where the next element may begin."""

    rng: random.Random
    look: Look
    picture_width: int
    picture_height: int
    held_out: bool
    objects: list[Labelled] = field(default_factory=list)
    y: float = 0.0

    def __post_init__(self) -> None:
        rng, look = self.rng, self.look
        self.width, self.height = OVERSAMPLING * self.picture_width, OVERSAMPLING * self.picture_height
        self.unit = self.width / DESIGN_PX
        self.theme = Theme(*(tinted(rgb, rng) for rgb in THEMES[look.theme]))
        self.image = Image.new("RGB", (self.width, self.height), self.theme.window)
        self.pen = ImageDraw.Draw(self.image)
        self.type_px = int(rng.uniform(13, 17) * self.unit)
        self.type: ImageFont.FreeTypeFont = font(look.typeface, self.type_px)
        self.border = mixed(self.theme.ink, self.theme.window)
        self.corner, self.line = look.corner_px * self.unit, max(1, round(look.line_px * self.unit))
        self.left = self.sized(6, 30)
        self.right, self.bottom = self.width - MARGIN_PX * self.unit, self.height - MARGIN_PX * self.unit

    def paint(self) -> None:
        self.y = 4 * self.unit
        for paint, share in ((self.title, 0.5), (self.menu_bar, 0.5), (self.icons, 0.45)):
            if self.rng.random() < share:
                paint()
        rows = (self.fields, self.checkboxes, self.buttons, self.open_menu)
        while self.y < 0.9 * self.height and self.rng.choices(rows, (30, 30, 28, 12))[0]():
            self.y += self.sized(8, 16)

    def title(self) -> None:
        self.pen.rectangle((0, 0, self.width, 24 * self.unit), fill=self.theme.accent)
        self.write(8 * self.unit, 12 * self.unit, self.word(), readable_on(self.theme.accent))
        self.y = 28 * self.unit

    def menu_bar(self) -> None:
        box = Box(0, self.y, self.width - 1, self.y + 26 * self.unit)
        outline = self.border if self.rng.random() < 0.5 else None
        self.pen.rectangle(box, fill=self.theme.surface, outline=outline, width=self.line)
        x = 8 * self.unit
        for _ in range(self.rng.randint(3, 5)):
            text = self.word()[:6]
            if x + self.type.getlength(text) > self.right:
                break
            x += self.write(x, self.y + 13 * self.unit, text) + 14 * self.unit
        self.add("menu", box)
        self.y += 34 * self.unit

    def icons(self) -> None:
        size = round(self.sized(24, 38))
        x, on_tiles = self.sized(6, 40), self.rng.random() < 0.5
        for _ in range(self.rng.randint(2, 6)):
            if x + size > self.right:
                break
            self.icon(Box(x, self.y, x + size, self.y + size), on_tile=on_tiles)
            x += size + self.sized(8, 20)
        self.y += size + 12 * self.unit

    def icon(self, box: Box, *, on_tile: bool) -> None:
        size = round(box.right - box.left)
        kind, rgb = self.random_icon()
        if on_tile:
            self.plate(box, self.corner, self.theme.surface)
        inner = round(size * (0.7 if on_tile else 1.0))
        corner = round(box.left + (size - inner) / 2), round(box.top + (size - inner) / 2)
        mask = shape_mask(kind, inner, 0, False)
        self.image.paste(rgb, corner, mask)
        self.add("icon", box if on_tile else tight_box(mask, Box(*corner, corner[0] + inner, corner[1] + inner)))

    def random_icon(self) -> tuple[str, RGB]:
        """A kind of object and its colour, of those that are held out together with this theme or not."""
        while True:
            kind, colour = self.rng.choice(KINDS), self.rng.choice(("ink", "accent", *COLOURS))
            if is_held_out("icon", kind, colour, self.look.theme) == self.held_out:
                break
        own = {"ink": self.theme.ink, "accent": self.theme.accent}
        return kind, own.get(colour) or varied(RGB_OF_COLOUR[colour], self.rng)

    def fields(self) -> bool:
        """A field with its name before it or above it; False where the window is full, as the others below."""
        high, above = self.sized(24, 32), self.rng.random() < 0.4
        if self.y + high + (20 * self.unit if above else 0) > self.bottom:
            return False
        text, x = self.word(), self.left
        if above:
            self.write(x, self.y + 9 * self.unit, text)
            self.y += 20 * self.unit
        elif self.rng.random() < 0.8:
            self.write(x, self.y + high / 2, text)
            x += max(self.type.getlength(text) + 8 * self.unit, 60 * self.unit)
        box = Box(x, self.y, min(self.right, x + self.sized(90, 220)), self.y + high)
        if box.right - x > 40 * self.unit:
            self.plate(box, self.corner / 2, self.theme.surface)
            self.add("field", box)
            typed = self.word()
            if self.rng.random() < 0.5 and self.type.getlength(typed) < box.right - x - 12 * self.unit:
                self.write(x + 6 * self.unit, self.y + high / 2, typed, self.rng.choice((self.border, self.theme.ink)))
        self.y += high
        return True

    def checkboxes(self) -> bool:
        size, x = self.sized(18, 26), self.left
        if self.y + size > self.bottom:
            return False
        for _ in range(self.rng.choice((1, 1, 2))):
            text = self.word()
            if x + size + 8 * self.unit + self.type.getlength(text) > self.width - 4:
                break
            self.checkbox(Box(x, self.y, x + size, self.y + size))
            x += size + 7 * self.unit
            x += self.write(x, self.y + size / 2, text) + 18 * self.unit
        self.y += size
        return True

    def checkbox(self, box: Box) -> None:
        checked, size = self.rng.random() < 0.5, box.right - box.left
        filled = checked and self.rng.random() < 0.5
        self.plate(box, self.corner / 3, self.theme.accent if filled else self.theme.surface)
        if checked:
            ink = readable_on(self.theme.accent) if filled else self.theme.ink
            tick = [(box.left + x * size, box.top + y * size) for x, y in ((0.22, 0.5), (0.43, 0.72), (0.8, 0.26))]
            self.pen.line(tick, fill=ink, width=max(2, round(0.12 * size)))
        self.add("checkbox", box)

    def buttons(self) -> bool:
        high = self.sized(26, 36)
        if self.y + high > self.bottom:
            return False
        x = self.left + (0 if self.rng.random() < 0.6 else self.sized(0, 80))
        in_accent = self.rng.random() < 0.7
        for _ in range(self.rng.choice((1, 2, 2, 3))):
            text = self.word()
            wide = self.type.getlength(text) + self.sized(18, 44)
            if x + wide > self.right:
                break
            self.button(Box(x, self.y, x + wide, self.y + high), text, in_accent=in_accent)
            x += wide + self.sized(8, 18)
            in_accent = in_accent and self.rng.random() < 0.5
        self.y += high
        return True

    def button(self, box: Box, text: str, *, in_accent: bool) -> None:
        window = self.theme.window
        raised = shaded(window, -25 if sum(window) > 500 else 20)
        fill = self.theme.accent if in_accent else raised
        self.plate(box, self.corner, fill, outlined=not in_accent or self.rng.random() < 0.5)
        middle = ((box.left + box.right) / 2, (box.top + box.bottom) / 2)
        self.write(*middle, text, readable_on(fill), anchor="mm")
        self.add("button", box)

    def open_menu(self) -> bool:
        items = [self.word() for _ in range(self.rng.randint(3, 5))]
        row = self.type_px + 8 * self.unit
        wide = max(map(self.type.getlength, items)) + 28 * self.unit
        high = row * len(items) + 6 * self.unit
        if self.y + high > self.bottom or self.left + wide > self.right:
            return False
        x = self.rng.uniform(self.left, self.right - wide)
        box = Box(x, self.y, x + wide, self.y + high)
        self.pen.rectangle(box, fill=self.theme.surface, outline=self.border, width=self.line)
        chosen = self.rng.randrange(len(items)) if self.rng.random() < 0.5 else -1
        for index, item in enumerate(items):
            self.menu_item(box, self.y + 3 * self.unit + row * (index + 0.5), row, item, chosen=index == chosen)
        self.add("menu", box)
        self.y = box.bottom
        return True

    def menu_item(self, box: Box, middle: float, row: float, text: str, *, chosen: bool) -> None:
        ink = self.theme.ink
        if chosen:
            edges = (box.left + self.line, middle - row / 2, box.right - self.line, middle + row / 2)
            self.pen.rectangle(edges, fill=self.theme.accent)
            ink = readable_on(self.theme.accent)
        self.write(box.left + 10 * self.unit, middle, text, ink)

    def plate(self, box: Box, corner: float, fill: RGB, *, outlined: bool = True) -> None:
        outline = self.border if outlined else None
        self.pen.rounded_rectangle(box, corner, fill=fill, outline=outline, width=self.line)

    def write(self, x: float, y: float, text: str, rgb: RGB | None = None, anchor: str = "lm") -> float:
        """Write a text and return how wide it is."""
        self.pen.text((x, y), text, fill=rgb or self.theme.ink, font=self.type, anchor=anchor)
        return self.type.getlength(text)

    def word(self) -> str:
        """Screens that are held out carry strings that are held out, too, besides known words."""
        kind = "random" if self.rng.random() < 0.3 else "lexicon"
        return random_word(self.rng, kind, held_out=self.held_out)

    def sized(self, least_px: float, most_px: float) -> float:
        return self.rng.uniform(least_px, most_px) * self.unit

    def add(self, label: str, box: Box) -> None:
        self.objects.append(Labelled(label, box))


def readable_on(fill: RGB) -> RGB:
    return WHITE if sum(fill) < LIGHT else BLACK


def shaded(rgb: RGB, by: int) -> RGB:
    red, green, blue = (max(0, min(255, channel + by)) for channel in rgb)
    return red, green, blue


def mixed(first: RGB, second: RGB) -> RGB:
    red, green, blue = ((a + b) // 2 for a, b in zip(first, second, strict=True))
    return red, green, blue
