"""Train the demo FastText model: vectors of words, unknown ones included, from phrases about scenes."""

import logging
import random
import re
import sys
import zlib

from gensim.models import FastText
from gensim.models.fasttext import save_facebook_model

from models.demo.scenes import random_scene
from models.demo.vector_training import DEMO, STATES, Clock, any_phrase

OUTPUT = DEMO / "words" / "words.bin"
SEED = 13
SENTENCES = 60_000
DIMENSIONS = 64
BUCKETS = 8_000  # hash slots of the n-grams from which unknown words get their vectors
EPOCHS = 10
START_ALPHA, END_ALPHA = 0.05, 0.001  # learning rate, falling linearly

log = logging.getLogger(__name__)


def main(minutes: float) -> None:
    """Train EPOCHS passes, or as many as fit into so many minutes, and write the model to OUTPUT.

    An unfinished training is resumed after its last complete pass. The vectors do not depend on PYTHONHASHSEED.
    """
    clock = Clock(minutes)
    sentences = corpus()
    state = STATES / "words.model"
    if state.exists():
        model = FastText.load(str(state))
    else:
        STATES.mkdir(exist_ok=True)
        model = untrained(sentences)
    while len(model.finished_epochs) < EPOCHS and clock.done < 1:
        epoch = len(model.finished_epochs)
        model.train(
            sentences,
            total_examples=len(sentences),
            epochs=1,
            start_alpha=alpha_at(epoch),
            end_alpha=alpha_at(epoch + 1),
        )
        model.finished_epochs.append(epoch)
        log.info("epoch %d, %.0f s", epoch + 1, clock.spent_s)
        model.save(str(state))
    OUTPUT.parent.mkdir(exist_ok=True)
    save_facebook_model(model, str(OUTPUT))  # gensim's own format is a pickle
    log.info("wrote %s", OUTPUT)


def corpus() -> list[list[str]]:
    """SENTENCES phrases about scenes outside the held-out ones, split into words as the worker splits captions."""
    rng = random.Random(SEED)
    scenes = (random_scene(rng, held_out=False) for _ in range(SENTENCES))
    return [re.findall(r"\w+", any_phrase(scene, rng).text) for scene in scenes]


def untrained(sentences: list[list[str]]) -> FastText:
    model = FastText(
        vector_size=DIMENSIONS,
        window=4,
        min_count=20,  # omits the random strings, whose vectors come from their n-grams
        min_n=3,
        max_n=5,
        bucket=BUCKETS,
        sg=1,
        negative=8,
        sample=1e-3,
        workers=1,
        seed=SEED,
        hashfxn=stable_hash,
    )
    model.lifecycle_events = None  # they contain the time
    model.build_vocab(sentences)
    model.hashfxn = hash  # gensim's default: a function of this file would have to be importable wherever it is loaded
    model.finished_epochs = []
    return model


def stable_hash(text: str) -> int:
    """A hash that, unlike Python's own, is the same in every process."""
    return zlib.crc32(text.encode())


def alpha_at(epoch: int) -> float:
    return START_ALPHA + (END_ALPHA - START_ALPHA) * epoch / EPOCHS


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 3.0)
