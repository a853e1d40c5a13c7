"""A pool of drawn pictures with their labels, so that a training step does not wait for drawing."""

import random
from dataclasses import dataclass

import numpy as np
import torch
from open_clip.transform import CenterCropOrPad
from PIL import Image

from models.demo.drawing import Canvas, draw
from models.demo.scenes import BACKGROUNDS, COLOURS, KINDS, PLACES, RELATIONS, Scene, random_scene

SIDE_PX = 112  # of the square that the image tower takes
PATCH_PX = 16
PATCHES = SIDE_PX // PATCH_PX  # along one side
LETTERS = 26
MOST_CAPITALS = 8  # in a word
SOLID_SHARE = 0.12  # of a patch that an object must cover to be the patch's label

# What is asked of a whole picture and how many answers each question has; 0 means "there is none".
QUESTIONS = {
    "first kind": len(KINDS) + 1,
    "first colour": len(COLOURS) + 1,
    "second kind": len(KINDS) + 1,
    "second colour": len(COLOURS) + 1,
    "count": 5,
    "place": len(PLACES) + len(RELATIONS) + 1,
    "background": len(BACKGROUNDS) + 1,
    **{f"capital {index}": LETTERS + 1 for index in range(MOST_CAPITALS)},
}


@dataclass(frozen=True)
class Example:
    """A drawn scene.

    pixels: uint8 (SIDE_PX, SIDE_PX, 3); a picture that is not square is padded with black as open_clip pads it.
    kinds, colours: uint8 (PATCHES, PATCHES), 1 + index of the object's kind and colour on each patch, 0 elsewhere.
    capitals: uint8 (PATCHES, PATCHES, LETTERS), 1 where the middle of that printed capital lies on the patch.
    """

    scene: Scene
    pixels: np.ndarray
    kinds: np.ndarray
    colours: np.ndarray
    capitals: np.ndarray


class Pool:
    """`size` examples that are gradually replaced by new ones."""

    def __init__(self, size: int, rng: random.Random) -> None:
        self.examples = [random_example(rng, held_out=False) for _ in range(size)]
        self._oldest = 0

    def renew(self, number: int, rng: random.Random) -> None:
        for _ in range(number):
            self.examples[self._oldest] = random_example(rng, held_out=False)
            self._oldest = (self._oldest + 1) % len(self.examples)

    def sample(self, number: int, rng: random.Random) -> list[Example]:
        return rng.sample(self.examples, number)


def random_example(rng: random.Random, *, held_out: bool) -> Example:
    """Draw a random scene, half of them square, the rest down to 3:4 either way, some reduced from double size."""
    short_px = SIDE_PX if rng.random() < 0.5 else rng.randint(84, SIDE_PX)
    width, height = rng.choice(((SIDE_PX, short_px), (short_px, SIDE_PX)))
    scale = 2 if rng.random() < 0.1 else 1
    while True:
        scene = random_scene(rng, held_out=held_out)
        try:
            canvas = draw(scene, rng, width, height, scale)
        except ValueError:  # a long word and large objects: another scene will fit
            continue
        return example_of(scene, canvas)


def example_of(scene: Scene, canvas: Canvas) -> Example:
    size = (canvas.width, canvas.height)
    pad = CenterCropOrPad(SIDE_PX)
    image = pad(canvas.image.resize(size, Image.Resampling.BICUBIC)) if canvas.scale > 1 else pad(canvas.image)
    kinds, colours = (
        patch_labels(np.asarray(pad(labels.resize(size, Image.Resampling.NEAREST))))
        for labels in (canvas.kinds, canvas.colours)
    )
    capitals = np.zeros((PATCHES, PATCHES, LETTERS), np.uint8)
    left, top = (SIDE_PX - canvas.width) // 2, (SIDE_PX - canvas.height) // 2
    for letter in canvas.letters:
        row, column = int((letter.y + top) / PATCH_PX), int((letter.x + left) / PATCH_PX)
        capitals[row, column, ord(letter.capital) - ord("A")] = 1
    return Example(scene, np.asarray(image), kinds, colours, capitals)


def patch_labels(labels: np.ndarray) -> np.ndarray:
    """The label that covers most of each patch, 0 where none covers SOLID_SHARE; (SIDE_PX, SIDE_PX) labels."""
    patches = labels.reshape(PATCHES, PATCH_PX, PATCHES, PATCH_PX).swapaxes(1, 2).reshape(-1, PATCH_PX**2)
    most = [np.bincount(patch, minlength=2)[1:] if patch.any() else np.zeros(1) for patch in patches]
    least = SOLID_SHARE * PATCH_PX**2
    chosen = [counts.argmax() + 1 if counts.max() >= least else 0 for counts in most]
    return np.array(chosen, np.uint8).reshape(PATCHES, PATCHES)


def answers(scene: Scene) -> list[int]:
    """The correct answer to each of QUESTIONS about a scene."""
    first, second = (*scene.things, None, None)[:2]
    places = ("", *PLACES, *RELATIONS)
    grounds = ("noise", *BACKGROUNDS)
    word = [ord(capital) - ord("A") + 1 for capital in scene.word[:MOST_CAPITALS]]
    return [
        KINDS.index(first.kind) + 1 if first else 0,
        COLOURS.index(first.colour) + 1 if first else 0,
        KINDS.index(second.kind) + 1 if second else 0,
        COLOURS.index(second.colour) + 1 if second else 0,
        scene.count,
        places.index(scene.place),
        grounds.index(scene.background),
        *word,
        *[0] * (MOST_CAPITALS - len(word)),
    ]


def pixels_of(examples: list[Example]) -> torch.Tensor:
    """Pictures as uint8 (batch, 3, SIDE_PX, SIDE_PX)."""
    return torch.from_numpy(np.stack([example.pixels for example in examples])).permute(0, 3, 1, 2)
