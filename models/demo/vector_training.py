"""What the trainings of the three vector models share: phrases about scenes, the optimiser, and resuming."""

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.demo.muon import Muon
from models.demo.scenes import CATEGORY_OF_KIND, Scene, capitalised, named

DEMO = Path(__file__).resolve().parent
STATES = DEMO / ".training"

EVERYTHING = frozenset({"kind", "colour", "count", "place", "background", "word"})
OPENINGS = ("", "", "picture of ", "an image of ", "there is ", "a drawing with ", "we see ")
GROUNDS = ("on a {} background", "against a {} background", "the background is {}", "with {} behind")
WRITINGS = (
    "The text reads {}",
    "the word {} is written on it",
    "it says {}",
    "with the word {}",
    "the text is {}",
    "a sign reads {}",
)
SILENCES = ("no text", "There is no text", "nothing is written", "without any words")
PLACE_SYNONYMS = {
    "at the top left": ("at the upper left", "in the top left corner"),
    "at the top": ("near the top", "in the upper part"),
    "at the top right": ("at the upper right", "in the top right corner"),
    "at the left": ("on the left", "on the left side"),
    "in the centre": ("in the middle", "at the center"),
    "at the right": ("on the right", "on the right side"),
    "at the bottom left": ("at the lower left", "in the bottom left corner"),
    "at the bottom": ("near the bottom", "in the lower part"),
    "at the bottom right": ("at the lower right", "in the bottom right corner"),
}
OPPOSITES = {"to the left of": ("to the right of", "right of"), "above": ("below", "under")}


@dataclass(frozen=True)
class Phrase:
    """A text about a scene, and the aspects of the scene that it mentions (some of EVERYTHING, or "category")."""

    text: str
    aspects: frozenset[str]


def any_phrase(scene: Scene, rng: random.Random) -> Phrase:
    """A caption, a paraphrase or a short query, in the shares that the sentence and word models are trained with."""
    form = rng.choices(("caption", "objects", "paraphrase", "keywords", "query"), (20, 8, 40, 7, 25))[0]
    if form == "caption":
        return Phrase(scene.caption(), EVERYTHING)
    if form == "objects":
        return Phrase(scene.objects() + ".", EVERYTHING - {"word"})
    if form == "keywords":
        return Phrase(", ".join(scene.keywords()), EVERYTHING - {"word", "place"})
    return paraphrase(scene, rng) if form == "paraphrase" else short_query(scene, rng)


def paraphrase(scene: Scene, rng: random.Random) -> Phrase:
    """Say everything in the caption in other words and in another order."""
    clauses = [subject(scene, rng)]
    if scene.background != "noise":
        clauses.append(rng.choice(GROUNDS).format(scene.background))
    if len(scene.things) == 1 and scene.place:
        clauses.append(rng.choice((scene.place, *PLACE_SYNONYMS[scene.place])))
    clauses.append(rng.choice(WRITINGS).format(scene.word) if scene.word else rng.choice(SILENCES))
    if rng.random() < 0.5:
        rng.shuffle(clauses)
    text = rng.choice((", ", ", ", ". ")).join(clauses)
    return Phrase(capitalised(text) + "." if rng.random() < 0.5 else text, EVERYTHING)


def subject(scene: Scene, rng: random.Random) -> str:
    opening = rng.choice(OPENINGS)
    if not scene.things:
        return rng.choice(("random noise", "just noise") if scene.background == "noise" else ("nothing", "no object"))
    if len(scene.things) == 1:
        return opening + named(scene.things[0], scene.count)
    first, second = (named(thing, 1) for thing in scene.things)
    if rng.random() < 0.5:
        return f"{opening}{first} {scene.place} {second}"
    return f"{opening}{second} {rng.choice(OPPOSITES[scene.place])} {first}"


def short_query(scene: Scene, rng: random.Random) -> Phrase:
    """What somebody might type to find the scene: part of what it shows."""
    if scene.word and (not scene.things or rng.random() < 0.3):
        text = rng.choice(("the word {}", "{}", "a sign that says {}", "text {}")).format(scene.word)
        return Phrase(text, frozenset({"word"}))
    if not scene.things:
        text = "random noise" if scene.background == "noise" else f"a plain {scene.background} background"
        return Phrase(text, frozenset({"background"}))
    thing = scene.things[0]
    if len(scene.things) == 2:
        return Phrase(f"{named(thing, 1)} and {named(scene.things[1], 1)}", frozenset({"kind", "colour"}))
    choices = [
        Phrase(f"{thing.colour} {thing.kind}", frozenset({"kind", "colour"})),
        Phrase(named(thing, scene.count), frozenset({"kind", "colour", "count"})),
        Phrase(rng.choice((thing.kind, f"the {thing.kind}")), frozenset({"kind"})),
        Phrase(rng.choice((thing.colour, f"something {thing.colour}")), frozenset({"colour"})),
        Phrase(CATEGORY_OF_KIND[thing.kind], frozenset({"category"})),
        Phrase(f"{thing.kind} on {scene.background}", frozenset({"kind", "background"})),
    ]
    return rng.choices(choices, (4, 4, 2, 1, 1, 2))[0]


class Optimiser:
    """Muon for the weight matrices inside transformer blocks, AdamW for everything else, with one schedule."""

    def __init__(self, model: nn.Module, lr: float, *, blocks: str, weight_decay: float = 0.02) -> None:
        """blocks: the part of a parameter's name that distinguishes transformer blocks from embeddings and heads."""
        named_weights = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
        matrices = [weight for name, weight in named_weights if blocks in name and weight.ndim == 2]
        chosen = {id(weight) for weight in matrices}
        others = [weight for _, weight in named_weights if id(weight) not in chosen]
        self.lr = lr
        self.weights = [weight for _, weight in named_weights]
        self.parts = (
            Muon(matrices, lr=lr, weight_decay=weight_decay),
            torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay),
        )

    def step(self, loss: torch.Tensor, lr_factor: float) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.lr * lr_factor
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def lr_factor(done: float) -> float:
    """Warm-up over the first 3 % of a training, constant, then linear to 0 over the last half."""
    return min(1.0, done / 0.03 + 0.02, (1 - done) / 0.5)


class Clock:
    """The progress of a training, in steps and in its allotted time, over all its runs."""

    def __init__(self, minutes: float) -> None:
        self.allotted_s = minutes * 60
        self.step = 0
        self._spent_s = 0.0
        self._started_s = time.monotonic()

    @property
    def spent_s(self) -> float:
        return self._spent_s + time.monotonic() - self._started_s

    @property
    def done(self) -> float:
        """The share of the allotted time that is used up, 0 to 1."""
        return min(1.0, self.spent_s / self.allotted_s)

    def state_dict(self) -> dict[str, float]:
        return {"step": self.step, "spent_s": self.spent_s}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.step, self._spent_s = int(state["step"]), state["spent_s"]


def save_state(name: str, parts: dict[str, Any]) -> None:
    """Write what a training needs to be resumed, atomically. parts: objects with a state_dict."""
    STATES.mkdir(exist_ok=True)
    partial = STATES / f"{name}.partial"
    torch.save({key: part.state_dict() for key, part in parts.items()}, partial)
    partial.replace(STATES / f"{name}.pt")


def load_state(name: str, parts: dict[str, Any]) -> None:
    """Restore what save_state wrote, if anything. To train from scratch, delete the state."""
    path = STATES / f"{name}.pt"
    if path.exists():
        states = torch.load(path)
        for key, part in parts.items():
            part.load_state_dict(states[key])
