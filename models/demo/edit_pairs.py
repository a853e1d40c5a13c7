"""Draws pairs of pictures, before and after an edit, with the instruction that leads from one to the other."""

import random
from dataclasses import dataclass, replace

import numpy as np

from models.demo.drawing import (
    LEAST_TEXT_CONTRAST,
    RGB,
    RGB_OF_BACKGROUND,
    RGB_OF_COLOUR,
    RGB_OF_TEXT,
    Box,
    Canvas,
    TypeStyle,
    layout,
    luminance,
    tinted,
    varied,
)
from models.demo.scenes import BACKGROUNDS, COLOURS, Scene, Thing, is_held_out, random_scene
from models.demo.vision_language_data import SCALES, SHARE_OF_SCALE, as_model_sees

EDITS = ("background", "remove", "recolour")
SHARE_OF_EDIT = (35, 25, 40)
INSTRUCTIONS = {
    "background": (
        "change the background to {colour}",
        "make the background {colour}",
        "turn the background {colour}",
        "put it on a {colour} background",
    ),
    "remove": ("remove the word", "remove the text", "erase the word", "delete the text"),
    "recolour": (
        "make the {thing} {colour}",
        "turn the {thing} {colour}",
        "paint the {thing} {colour}",
        "change the colour of the {thing} to {colour}",
        "change the color of the {thing} to {colour}",
    ),
}
SHARE_OF_ALL = 0.2  # of the recolourings: of all objects, whatever they are
SHARE_OF_TWO_KINDS = 0.3  # of the recolourings: they are harder
SHARE_WITHOUT_WORD = 0.08  # of the removals: nothing is to change
SHARE_WITH_FULL_STOP = 0.1


@dataclass(frozen=True)
class Drawing:
    """A scene with all that decides how it is drawn; two with the same seed have the same poses and roughness.

    width, height: pixels at scale 1. boxes: of the objects. rgbs: of the kinds of objects. style, spot: of the word.
    """

    scene: Scene
    width: int
    height: int
    scale: int
    seed: int
    ground: RGB
    rgbs: tuple[RGB, ...]
    text_rgb: RGB
    boxes: tuple[Box, ...]
    style: TypeStyle | None
    spot: tuple[float, float]

    def painted(self) -> Canvas:
        canvas = Canvas(self.width, self.height, self.scale, self.scene.background, random.Random(self.seed))
        canvas.image.paste(self.ground, (0, 0, *canvas.image.size))
        for index, box in enumerate(self.boxes):
            which = min(index, len(self.scene.things) - 1)  # several objects of one kind share one entry
            canvas.paint_thing(self.scene.things[which], box, self.rgbs[which])
        if self.style:
            canvas.print_word(self.scene.word, self.style, *self.spot, self.text_rgb)
        canvas.roughen()
        return canvas

    def seen(self) -> tuple[np.ndarray, np.ndarray]:
        """The picture as a model sees it, uint8 (height, width, 3), and where letters are, bool (height, width)."""
        canvas = self.painted()
        image = as_model_sees(canvas.image, canvas.rng, self.width, self.height)
        letters = np.zeros((self.height, self.width), bool)
        half_px = self.style.size_px / 2 + 1 if self.style else 0.0
        for letter in canvas.letters:
            top, left = max(0, round(letter.y - half_px)), max(0, round(letter.x - half_px))
            letters[top : round(letter.y + half_px), left : round(letter.x + half_px)] = True
        return np.asarray(image), letters


@dataclass(frozen=True)
class Pair:
    """An edit is one of EDITS."""

    edit: str
    instruction: str
    before: Drawing
    after: Drawing


def random_pair(
    rng: random.Random, size: tuple[int, int], *, held_out: bool, edit: str = "", scale: int | None = None
) -> Pair:
    """Draw one pair at random; width and height of `size` in pixels.

    held_out: the combinations of object, colour and background that training sees neither before nor after an edit.
    """
    edit = edit or rng.choices(EDITS, SHARE_OF_EDIT)[0]
    scale = scale or rng.choices(SCALES, SHARE_OF_SCALE)[0]
    lot = rng.random()
    while True:
        scene = random_scene(rng, held_out=held_out)
        if not is_fitting(scene, edit, lot):
            continue
        try:
            before = drawing_of(scene, rng, size, scale)
        except ValueError:  # a long word and large objects: another scene will fit
            continue
        pair = EDITORS[edit](before, rng)
        if pair and (held_out or not is_kept_from_training(pair.after.scene)):
            full_stop = "." if rng.random() < SHARE_WITH_FULL_STOP else ""
            return replace(pair, instruction=pair.instruction + full_stop)


def is_fitting(scene: Scene, edit: str, lot: float) -> bool:
    """Whether a scene is one for this edit; by a lot of 0 to 1 in the shares above."""
    if scene.background == "noise":
        return False
    if edit == "remove":
        return bool(scene.word) == (lot >= SHARE_WITHOUT_WORD)
    if edit == "recolour":
        return bool(scene.things) and (len(scene.things) == 2) == (lot < SHARE_OF_TWO_KINDS)
    return True


def is_kept_from_training(scene: Scene) -> bool:
    return any(is_held_out(thing.kind, thing.colour, scene.background) for thing in scene.things)


def drawing_of(scene: Scene, rng: random.Random, size: tuple[int, int], scale: int) -> Drawing:
    """Raises ValueError where the scene does not fit."""
    boxes, style, spot = layout(scene, rng, *size)
    ground = tinted(RGB_OF_BACKGROUND[scene.background], rng)
    return Drawing(
        scene=scene,
        width=size[0],
        height=size[1],
        scale=scale,
        seed=rng.getrandbits(32),
        ground=ground,
        rgbs=tuple(varied(RGB_OF_COLOUR[thing.colour], rng) for thing in scene.things),
        text_rgb=rng.choice([rgb for rgb in RGB_OF_TEXT if is_readable(rgb, ground)]),
        boxes=tuple(boxes),
        style=style,
        spot=spot,
    )


def is_readable(text_rgb: RGB, ground: RGB) -> bool:
    return abs(luminance(text_rgb) - luminance(ground)) > LEAST_TEXT_CONTRAST


def with_background(before: Drawing, rng: random.Random) -> Pair | None:
    """Another background, on which the word can still be read; None where there is none."""
    scene = before.scene
    taken = {scene.background, *(thing.colour for thing in scene.things)}
    colours = [
        name
        for name in BACKGROUNDS
        if name not in taken and (not scene.word or is_readable(before.text_rgb, RGB_OF_BACKGROUND[name]))
    ]
    if not colours:
        return None
    colour = rng.choice(colours)
    after = replace(before, scene=replace(scene, background=colour), ground=RGB_OF_BACKGROUND[colour])
    return Pair("background", rng.choice(INSTRUCTIONS["background"]).format(colour=colour), before, after)


def without_word(before: Drawing, rng: random.Random) -> Pair:
    after = replace(before, scene=replace(before.scene, word=""))
    return Pair("remove", rng.choice(INSTRUCTIONS["remove"]), before, after)


def with_colour(before: Drawing, rng: random.Random) -> Pair:
    """Another colour of one kind of object, or of all objects, as the instruction says."""
    scene = before.scene
    several = len(before.boxes) > 1
    chosen = rng.choice(scene.things)
    if rng.random() < SHARE_OF_ALL:
        changed, name = set(scene.things), "objects" if several else "object"
    else:
        plural = several and len(scene.things) == 1 and chosen.kind != "fish"
        changed, name = {chosen}, chosen.kind + "s" * plural
    taken = {scene.background, *(thing.colour for thing in changed)}
    colour = rng.choice([name for name in COLOURS if name not in taken])
    things = tuple(Thing(thing.kind, colour) if thing in changed else thing for thing in scene.things)
    rgbs = tuple(
        RGB_OF_COLOUR[colour] if thing in changed else rgb for thing, rgb in zip(scene.things, before.rgbs, strict=True)
    )
    instruction = rng.choice(INSTRUCTIONS["recolour"]).format(thing=name, colour=colour)
    return Pair("recolour", instruction, before, replace(before, scene=replace(scene, things=things), rgbs=rgbs))


EDITORS = {"background": with_background, "remove": without_word, "recolour": with_colour}
