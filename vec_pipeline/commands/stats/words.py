"""Frequent words and pairs of words, without those that every text has."""

import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

MOST_DIFFERENT = 200_000  # words or pairs that are counted at once; the rarest make way for new ones
WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
# No pair of words goes over one; addresses and hashed names of users are no words.
BREAK = re.compile(r"https?://\S+|\bu/[\w-]*|[.!?;:,()\[\]\"\n]")

STOP_WORDS = frozenset(
    # English
    "a about above after again against all also am an and any are as at be because been before being below between "
    "both but by can could did do does doing don't down during each few for from further get had has have having he "
    "her here hers him his how i i'd i'll i'm i've if in into is it it's its itself just me more most my no nor not "
    "of off on once only or other our ours out over own s same she should so some such t than that that's the their "
    "theirs them then there these they this those through to too under until up us very was we were what when where "
    "which while who whom why will with would you your yours "
    # Russian
    "а без более бы был была были было быть в вам вас весь во вот все всего всех вы где да даже для до его ее её ей "
    "ему если есть еще ещё же за здесь и из или им их к как какая какой когда кто ли либо мне может мы на над надо "
    "наш не него нее неё нет ни них но ну о об однако он она они оно от очень по под при с со так также такой там те "
    "тем то того тоже той только том ты у уже хотя чего чей чем что чтобы эта эти это этого этой этом этот я".split()
)


def words_and_pairs(texts: Iterable[str]) -> tuple[Counter[str], Counter[str]]:
    """How often each word occurs, and each two that follow one another within a part of a sentence; in lower case."""
    words: Counter[str] = Counter()
    pairs: Counter[str] = Counter()
    for text in texts:
        for part in BREAK.split(text.lower()):
            found = WORD.findall(part)
            words.update(word for word in found if word not in STOP_WORDS)
            pairs.update(f"{one} {two}" for one, two in pairwise(found) if not {one, two} & STOP_WORDS)
        for counter in (words, pairs):
            if len(counter) > MOST_DIFFERENT:
                drop_rarest(counter)
    return words, pairs


def drop_rarest(counter: Counter[str]) -> None:
    """Keep the more frequent half."""
    kept = counter.most_common(MOST_DIFFERENT // 2)
    counter.clear()
    counter.update(dict(kept))
