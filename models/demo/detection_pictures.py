"""What the detector is trained and measured on: drawn scenes, people and interface screens, with boxes."""

import random

from models.demo.boxed import BoxedPicture, boxed_scene
from models.demo.drawing import draw
from models.demo.people import PERSON, draw_people
from models.demo.scenes import KINDS, random_scene
from models.demo.screens import ELEMENTS, draw_screen

SIDE_PX = 160  # of the square that the detector takes
LABELS = (*KINDS, PERSON, *ELEMENTS)
SORTS = ("scene", "people", "screen")
SHARES_OF_SORTS = (45, 25, 30)
SCENE_PX = 112  # the longest side for which scenes are designed
SIDES_PX = (160, 160, 224, 320)  # of people and screens, before they are reduced


def random_picture(rng: random.Random, *, held_out: bool, sort: str = "") -> BoxedPicture:
    """A picture as the detector sees it, SIDE_PX square.

    held_out: draw combinations that training never sees (of object, colour and background; of age group, gender,
        clothes and skin; of a screen's theme, typeface, corners and lines), otherwise the others.
    sort: one of SORTS, or any of them.
    """
    return full_picture(rng, held_out=held_out, sort=sort).resized(SIDE_PX, SIDE_PX)


def full_picture(rng: random.Random, *, held_out: bool, sort: str = "") -> BoxedPicture:
    """A picture in its own size and shape."""
    sort = sort or rng.choices(SORTS, SHARES_OF_SORTS)[0]
    if sort == "scene":
        return random_boxed_scene(rng, held_out=held_out)
    longest = rng.choice(SIDES_PX)
    shortest = longest if rng.random() < 0.5 else round(longest * rng.uniform(0.7, 1))
    if sort == "people":
        return draw_people(rng, *rng.choice(((longest, shortest), (shortest, longest))), held_out=held_out)
    return draw_screen(rng, longest, shortest, held_out=held_out)


def random_boxed_scene(rng: random.Random, *, held_out: bool) -> BoxedPicture:
    """A scene at the size it is designed for or somewhat larger, half of them at twice as many pixels."""
    longest, scale = rng.choice(((SCENE_PX, 2), (SCENE_PX, 1), (SIDE_PX, 1), (SCENE_PX, 2)))
    shortest = longest if rng.random() < 0.5 else round(longest * rng.uniform(0.75, 1))
    width, height = rng.choice(((longest, shortest), (shortest, longest)))
    while True:
        try:
            return boxed_scene(draw(random_scene(rng, held_out=held_out), rng, width, height, scale))
        except ValueError:  # it does not fit: another scene will
            continue
