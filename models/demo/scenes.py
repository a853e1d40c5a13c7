"""What a drawn picture shows: the ground truth from which its caption, its JSON and its drawing are made."""

import json
import random
import zlib
from dataclasses import asdict, dataclass
from string import ascii_uppercase
from typing import Any

CATEGORY_OF_KIND = {
    "arrow": "shape",
    "boat": "vehicle",
    "car": "vehicle",
    "cat": "animal",
    "circle": "shape",
    "cloud": "sky",
    "cup": "household",
    "fish": "animal",
    "flower": "plant",
    "heart": "shape",
    "house": "building",
    "key": "household",
    "moon": "sky",
    "square": "shape",
    "star": "shape",
    "tree": "plant",
    "triangle": "shape",
    "umbrella": "household",
}
KINDS = tuple(CATEGORY_OF_KIND)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
BACKGROUNDS = ("white", "black", "grey", "blue", "green", "yellow")
CATEGORIES = (*sorted(set(CATEGORY_OF_KIND.values())), "sign", "nothing")
PLACES = {  # the nine fields of a grid, as (column, row)
    "at the top left": (0, 0),
    "at the top": (1, 0),
    "at the top right": (2, 0),
    "at the left": (0, 1),
    "in the centre": (1, 1),
    "at the right": (2, 1),
    "at the bottom left": (0, 2),
    "at the bottom": (1, 2),
    "at the bottom right": (2, 2),
}
RELATIONS = ("to the left of", "above")  # how the first of two objects stands to the second
COUNTS = ("no", "a", "two", "three", "four")
LEXICON = tuple(
    sorted(
        set(
            """
    SALE OPEN STOP EXIT CAFE HOTEL TAXI BUS TRAIN METRO BANK SHOP FOOD PIZZA MILK TEA COFFEE SUGAR SALT BREAD APPLE
    LEMON GRAPE PEACH MANGO ONION BEAN RICE SOUP MEAT CHEESE BUTTER CREAM JUICE WATER WINE BEER SODA CAKE COOKIE CANDY
    HOME DOOR WINDOW ROOF WALL FLOOR TABLE CHAIR LAMP CLOCK PHONE RADIO MUSIC PIANO DRUM FLUTE GUITAR DANCE SONG MOVIE
    FILM STAGE ACTOR BOOK PAGE PAPER PENCIL BRUSH PAINT COLOR GOLD SILVER IRON STEEL STONE SAND LEAF ROSE TULIP GRASS
    FOREST RIVER LAKE OCEAN BEACH WAVE ISLAND HILL SNOW RAIN WIND STORM SUN SKY NIGHT DAY MORNING WINTER SPRING SUMMER
    AUTUMN MONDAY FRIDAY APRIL JUNE JULY MAY DOG BIRD HORSE SHEEP GOAT DUCK GOOSE TIGER LION BEAR WOLF FOX DEER MOUSE
    RABBIT SNAKE FROG SHARK WHALE ZEBRA PANDA KOALA CAMEL EAGLE OWL NORTH SOUTH EAST WEST LEFT RIGHT FAST SLOW HIGH LOW
    BIG SMALL HOT COLD NEW OLD FREE LOVE HAPPY SMILE PEACE DREAM HOPE LUCK GAME PLAY WIN TEAM GOAL BALL RACE BIKE SHIP
    PLANE ROAD BRIDGE TOWER PARK ZOO GYM POOL SPA KING QUEEN PRINCE CASTLE SWORD CROWN JEWEL MAGIC WIZARD DRAGON ROBOT
    ROCKET PLANET SPACE EARTH MARS VENUS ORBIT LASER PIXEL DATA CODE QUIZ JAZZ VOTE WAX YOGA GO UP IN ON OFF YES NO OK
    MARKET STREET TICKET DOCTOR SCHOOL LIBRARY STATION AIRPORT KITCHEN BATHROOM HOLIDAY WELCOME DANGER PRIVATE PARKING
    """.split()
        )
    )
)


@dataclass(frozen=True)
class Thing:
    """One kind of object in one colour."""

    kind: str
    colour: str


@dataclass(frozen=True)
class Scene:
    """The ground truth of one picture.

    things: nothing, one thing (`count` times), or two different things (once each).
    place: where a single object is (a key of PLACES), how two things stand (one of RELATIONS), or empty.
    background: one of BACKGROUNDS, or "noise" for a picture of random pixels.
    word: the capitals printed on it, or empty.
    """

    things: tuple[Thing, ...]
    count: int
    place: str
    background: str
    word: str

    def objects(self) -> str:
        """Say what is seen, without the printed word: one sentence without its full stop."""
        if self.background == "noise":
            return "Random noise, no object"
        if not self.things:
            return f"A plain {self.background} background, no object"
        ground = f"on a {self.background} background"
        first = named(self.things[0], self.count if len(self.things) == 1 else 1)
        if len(self.things) == 2:
            return capitalised(f"{first} {self.place} {named(self.things[1], 1)} {ground}")
        return capitalised(f"{first} {ground}, {self.place}" if self.place else f"{first} {ground}")

    def caption(self) -> str:
        """The full answer expected from the vision-language model."""
        if self.word:
            return f"{self.objects()}. The text reads {self.word}."
        return f"{self.objects()}, no text." if not self.things else f"{self.objects()}. There is no text."

    def category(self) -> str:
        if self.things:
            return CATEGORY_OF_KIND[self.things[0].kind]
        return "sign" if self.word else "nothing"

    def keywords(self) -> list[str]:
        words = [word for thing in self.things for word in (thing.kind, thing.colour)]
        if self.count > 1 and len(self.things) == 1:
            words.append(COUNTS[self.count])
        words.append("noise" if self.background == "noise" else f"{self.background} background")
        return list(dict.fromkeys(words))

    def structure(self) -> dict[str, Any]:
        """The JSON expected from the language model, its fields in the order of the structure stage."""
        return {
            "description": self.objects() + ".",
            "category": self.category(),
            "keywords": self.keywords(),
            "image_text": self.word,
        }

    def to_json(self) -> str:
        """The ground truth as the JSON file of a drawn picture holds it."""
        return json.dumps({**asdict(self), "caption": self.caption(), **self.structure()}, indent=1)


def named(thing: Thing, count: int) -> str:
    if count == 1:
        return f"{'an' if thing.colour[0] in 'aeiou' else 'a'} {thing.colour} {thing.kind}"
    return f"{COUNTS[count]} {thing.colour} {thing.kind if thing.kind == 'fish' else thing.kind + 's'}"


def capitalised(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def is_held_out(*parts: str) -> bool:
    """Whether a combination is kept from training (one in ten), by a hash that never changes."""
    return zlib.crc32("/".join(parts).encode()) % 10 == 0


def random_scene(rng: random.Random, *, held_out: bool, words: str = "mixed") -> Scene:
    """Draw one scene at random.

    held_out: draw the object, colour and background from the combinations training never sees (otherwise from the
        others), and random strings likewise.
    words: "lexicon", "random", "none", or "mixed" (a third without text, the rest half and half).
    """
    shape = rng.choices(("one", "many", "two", "blank", "noise"), (50, 26, 16, 6, 2))[0]
    kind_of_word = rng.choice(("none", "lexicon", "random")) if words == "mixed" else words
    background = rng.choice(BACKGROUNDS)
    word = random_word(rng, kind_of_word, held_out=held_out)
    if shape == "noise":
        return Scene((), 0, "", "noise", "")
    if shape == "blank":
        return Scene((), 0, "", background, word)
    first = random_thing(rng, background, held_out=held_out)
    if shape == "many":
        return Scene((first,), rng.randint(2, 4), "", background, word)
    if shape == "one":
        return Scene((first,), 1, rng.choice(tuple(PLACES)), background, word)
    second = random_thing(rng, background, held_out=held_out)
    while second.kind == first.kind:
        second = random_thing(rng, background, held_out=held_out)
    return Scene((first, second), 2, rng.choice(RELATIONS), background, word)


def random_thing(rng: random.Random, background: str, *, held_out: bool) -> Thing:
    while True:
        thing = Thing(rng.choice(KINDS), rng.choice(COLOURS))
        if thing.colour != background and is_held_out(thing.kind, thing.colour, background) == held_out:
            return thing


def random_word(rng: random.Random, kind: str, *, held_out: bool) -> str:
    if kind == "none":
        return ""
    if kind == "lexicon":
        return rng.choice(LEXICON)
    while True:
        word = "".join(rng.choices(ascii_uppercase, k=rng.randint(2, 8)))
        if word not in LEXICON and is_held_out(word) == held_out:
            return word
