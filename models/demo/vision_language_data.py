"""Pictures to train the vision-language model on, with a label for every patch."""

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from string import ascii_uppercase

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.demo.drawing import (
    LARGEST_TYPE_PX,
    RGB_OF_COLOUR,
    SMALLEST_THING_PX,
    SMALLEST_TYPE_PX,
    Canvas,
    TypeStyle,
    draw,
    square_box,
    varied,
)
from models.demo.scenes import BACKGROUNDS, COLOURS, KINDS, Scene, is_held_out, random_scene, random_thing, random_word
from models.demo.vision_language_model import MERGED, PATCH_PX

SIZES_PX = ((112, 112), (112, 84), (84, 112), (112, 56), (56, 112))  # width, height
SHARE_OF_SIZE = (64, 13, 13, 5, 5)
SCALES = (1, 2, 3, 4)  # factors by which a picture is drawn larger than the model sees it
SHARE_OF_SCALE = (50, 25, 10, 15)
LONGEST_WORD = 8
IGNORED = -100  # torch's label for "no loss here"

# The columns of the labels, and the number of classes of each (0 is "nothing" in all but colour).
KIND, COLOUR, CENTRE, LETTER_LEFT, LETTER_RIGHT, INDEX_LEFT, INDEX_RIGHT = range(7)
CLASSES = [len(KINDS) + 1, len(COLOURS), 2, 27, 27, LONGEST_WORD + 1, LONGEST_WORD + 1]
BACKGROUND_CLASSES = (*BACKGROUNDS, "noise")


@dataclass
class Batch:
    """Pictures of one size.

    pixels: uint8, (pictures, height, width, 3).
    labels: int16, (pictures, patches, 7), the patches in the model's order: by squares of MERGED x MERGED.
    backgrounds: int64, (pictures,), indices into BACKGROUND_CLASSES.
    scenes: the truth of each picture; None for a collage, which has no caption.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int16]
    backgrounds: NDArray[np.int64]
    scenes: list[Scene | None]


def batches(seed: int, pictures: int, share_of_collages: float) -> Iterator[Batch]:
    """Endless batches of newly drawn pictures, without anything held out."""
    rng = random.Random(seed)
    while True:
        size = rng.choices(SIZES_PX, SHARE_OF_SIZE)[0]
        drawn = [labelled_picture(rng, *size, collage_wanted=rng.random() < share_of_collages) for _ in range(pictures)]
        pixels, labels, backgrounds, scenes = zip(*drawn, strict=True)
        yield Batch(np.stack(pixels), np.stack(labels), np.array(backgrounds), list(scenes))


def labelled_picture(
    rng: random.Random, width: int, height: int, *, collage_wanted: bool
) -> tuple[NDArray[np.uint8], NDArray[np.int16], int, Scene | None]:
    """One picture: pixels (height, width, 3), labels (patches, 7), index of its background, and truth."""
    scale = rng.choices(SCALES, SHARE_OF_SCALE)[0]
    scene = None
    if collage_wanted:
        canvas = collage(rng, width, height, scale)
    else:
        scene, canvas = drawable_scene(rng, width, height, scale)
    image = as_model_sees(canvas.image, rng, width, height)
    return np.asarray(image), patch_labels(canvas), BACKGROUND_CLASSES.index(canvas.background), scene


def drawable_scene(rng: random.Random, width: int, height: int, scale: int) -> tuple[Scene, Canvas]:
    """A random scene that fits into the picture."""
    while True:
        scene = random_scene(rng, held_out=False, words=rng.choices(("none", "lexicon", "random"), (20, 28, 52))[0])
        try:
            return scene, draw(scene, rng, width, height, scale)
        except ValueError:
            continue


def as_model_sees(image: Image.Image, rng: random.Random, width: int, height: int) -> Image.Image:
    """Reduce a picture as a file and the worker would: as PNG or JPEG, with one of the usual filters."""
    if image.size == (width, height):
        return image
    if rng.random() < 0.4:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=rng.randint(75, 95))
        image = Image.open(file)
        image.draft("RGB", (2 * width, 2 * height))
    return image.resize((width, height), rng.choice((Image.Resampling.LANCZOS, Image.Resampling.BICUBIC)))


def collage(rng: random.Random, width: int, height: int, scale: int) -> Canvas:
    """A picture full of words and objects in rows: many labels for the cost of one picture."""
    canvas = Canvas(width, height, scale, rng.choice(BACKGROUNDS), rng)
    share_of_text = rng.choice((0.2, 0.7, 1.0, 1.0))
    top = rng.uniform(0, 6)
    while top < height - SMALLEST_THING_PX / 2:
        row = row_of_words if rng.random() < share_of_text else row_of_things
        top = row(canvas, top)
    canvas.roughen()
    return canvas


def row_of_words(canvas: Canvas, top: float) -> float:
    """Print words from left to right in one type; return where the next row may begin."""
    rng = canvas.rng
    name = rng.choice(tuple(SMALLEST_TYPE_PX))
    style = TypeStyle(name, rng.randint(SMALLEST_TYPE_PX[name], LARGEST_TYPE_PX), 0.0)
    if rng.random() < 0.4:
        style = TypeStyle(name, style.size_px, rng.uniform(-5, 5))
    left, bottom = rng.uniform(1, 10), top
    while True:
        word = random_word(rng, rng.choice(("lexicon", "random", "random")), held_out=False)
        word_width, word_height = style.word_size_px(word)
        while left + word_width > canvas.width - 1 and len(word) > 2:
            word = random_string(rng, len(word) - 1)
            word_width, word_height = style.word_size_px(word)
        if left + word_width > canvas.width - 1 or top + word_height > canvas.height - 1:
            return max(bottom, top + style.cap_height_px()) + rng.uniform(3, 8)
        rgb = canvas.text_rgb()
        canvas.print_word(word, style, left + word_width / 2, top + word_height / 2, rgb)
        left += word_width + rng.uniform(0.5, 1.4) * style.size_px
        bottom = max(bottom, top + word_height)


def random_string(rng: random.Random, length: int) -> str:
    """Capitals of a given length, none of the held-out strings."""
    while True:
        word = "".join(rng.choices(ascii_uppercase, k=length))
        if not is_held_out(word):
            return word


def row_of_things(canvas: Canvas, top: float) -> float:
    """Paint objects of one size from left to right; return where the next row may begin."""
    rng = canvas.rng
    size_px = rng.randint(SMALLEST_THING_PX, 46)
    left = rng.uniform(0, 12)
    while left + size_px < canvas.width and top + size_px < canvas.height:
        thing = random_thing(rng, canvas.background, held_out=False)
        y = min(top + rng.uniform(0, 3), canvas.height - size_px) + size_px / 2
        canvas.paint_thing(thing, square_box(left + size_px / 2, y, size_px), varied(RGB_OF_COLOUR[thing.colour], rng))
        left += size_px + rng.uniform(2, 14)
    return top + size_px + rng.uniform(2, 8)


def patch_labels(canvas: Canvas) -> NDArray[np.int16]:
    """What is in each patch of a picture: (patches, 7), columns as CLASSES.

    A patch that shows too little of an object, or two objects, is IGNORED. There are labels for a letter in the left
    and in the right half of a patch, by where its middle is; two letters in one half are IGNORED too.
    """
    rows, columns = canvas.height // PATCH_PX, canvas.width // PATCH_PX
    labels = np.zeros((rows, columns, len(CLASSES)), np.int16)
    kinds, share_covered = only_value(np.asarray(canvas.kinds), rows, columns)
    labels[..., KIND] = np.where(share_covered < 0.04, 0, np.where(share_covered > 0.3, kinds, IGNORED))
    colours, share_covered = only_value(np.asarray(canvas.colours), rows, columns)
    labels[..., COLOUR] = np.where((share_covered > 0.12) & (colours > 0), colours - 1, IGNORED)
    for x, y in canvas.centres:
        labels[patch_at(y, rows), patch_at(x, columns), CENTRE] = 1
    for letter in canvas.letters:
        patch = labels[patch_at(letter.y, rows), patch_at(letter.x, columns)]
        right = int(letter.x / PATCH_PX * 2) % 2
        taken = patch[LETTER_LEFT + right] != 0
        patch[LETTER_LEFT + right] = IGNORED if taken else ascii_uppercase.index(letter.capital) + 1
        patch[INDEX_LEFT + right] = IGNORED if taken else letter.before + 1
    squares = labels.reshape(rows // MERGED, MERGED, columns // MERGED, MERGED, -1).swapaxes(1, 2)
    return squares.reshape(rows * columns, -1)


def only_value(values: NDArray[np.uint8], rows: int, columns: int) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """For each patch of a map: the one value above 0 in it (IGNORED where there are several), and its share."""
    patches = values.reshape(rows, values.shape[0] // rows, columns, -1).swapaxes(1, 2).reshape(rows, columns, -1)
    largest = patches.max(-1).astype(np.int16)
    smallest = np.where(patches > 0, patches, 255).min(-1)
    several = (largest > 0) & (smallest != largest)
    return np.where(several, np.int16(IGNORED), largest), (patches > 0).mean(-1)


def patch_at(position_px: float, patches: int) -> int:
    return min(max(int(position_px / PATCH_PX), 0), patches - 1)
