"""Train the bundled models from scratch, one after the other; a second call resumes an interrupted training."""

import argparse

from models.demo import (
    tower,
    train_clip,
    train_clip_kinds,
    train_detector,
    train_dino,
    train_edit,
    train_llama,
    train_people,
    train_sentences,
    train_translation,
    train_vision_language,
    train_words,
)

MINUTES = (  # on two CPU cores, each training by itself
    (train_words, 2.0),
    (train_sentences, 8.0),
    (train_llama, 60.0),
    (train_clip, 40.0),
    (train_vision_language, 90.0),
    (tower, 6.7),
    (train_dino, 8.0),
    (train_clip_kinds, 9.0),
    (train_people, 3.0),
    (train_detector, 30.0),
    (train_translation, 8.5),
    (train_edit, 50.0),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="of the time given to each training")
    scale = parser.parse_args().scale
    for training, minutes in MINUTES:
        print(f"{training.__name__}: {minutes * scale:.1f} minutes", flush=True)
        training.main(minutes * scale)


if __name__ == "__main__":
    main()
