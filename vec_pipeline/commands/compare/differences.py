"""Where answers about one picture differ, word by word."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import combinations, groupby

TOKEN = re.compile(r"\s*\S+")  # a word, with the blanks before it
AROUND = re.compile(r"^\W+|\W+$")  # punctuation before and after a word

Part = tuple[str, bool]


def words_of(text: str) -> list[str]:
    """The words as they are compared: without the punctuation around them, upper and lower case alike."""
    return [AROUND.sub("", word).casefold() or word for word in text.split()]


def compared(texts: Sequence[str]) -> tuple[float, list[list[Part]]]:
    """Return the disagreement of texts, and each text in parts, with whether another text lacks that part.

    The disagreement is 1 minus the similarity of words, averaged over pairs of texts: difflib's ratio, which is 1 where
    all words are the same in the same order, and 0 where none is.
    """
    words = [words_of(text) for text in texts]
    is_shared = [[True] * len(each) for each in words]
    similarities = []
    for one, other in combinations(range(len(texts)), 2):
        matcher = SequenceMatcher(None, words[one], words[other], autojunk=False)
        similarities.append(matcher.ratio())
        here, there = [False] * len(words[one]), [False] * len(words[other])
        for first, second, size in matcher.get_matching_blocks():
            here[first : first + size] = there[second : second + size] = [True] * size
        for text, found in ((one, here), (other, there)):
            is_shared[text] = [before and now for before, now in zip(is_shared[text], found, strict=True)]
    return 1 - sum(similarities) / len(similarities), list(map(parts_of, texts, is_shared))


def parts_of(text: str, is_shared: Sequence[bool]) -> list[Part]:
    """A text in pieces, with whether a piece is marked; blanks before the first marked word of some are not."""
    marked = zip(TOKEN.findall(text), is_shared, strict=True)
    pieces = [
        ("".join(token for token, _ in group), not key) for key, group in groupby(marked, key=lambda pair: pair[1])
    ]
    return [part for piece, is_marked in pieces for part in split_blanks(piece, is_marked)]


def split_blanks(piece: str, is_marked: bool) -> list[Part]:
    stripped = piece.lstrip()
    blanks = piece[: len(piece) - len(stripped)]
    return [(blanks, False), (stripped, True)] if is_marked and blanks else [(piece, is_marked)]


def character_similarity(one: str, other: str) -> float:
    """difflib's ratio of the characters of two texts, from 0 to 1; upper and lower case and all blanks are alike."""
    first, second = (" ".join(text.split()).casefold() for text in (one, other))
    return SequenceMatcher(None, first, second, autojunk=False).ratio()
