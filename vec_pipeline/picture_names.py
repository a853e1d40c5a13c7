"""Which names in an archive or below a remote folder are those of pictures, and how many others there are, by kind."""

import re
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from posixpath import basename, dirname, splitext

from vec_pipeline.pictures import kinds

NOT_OF_A_USER = ("__MACOSX",)  # folders that macOS adds to an archive
MOST_KINDS = 8  # of files left out that a note names
SUFFIX = re.compile(r"\.[a-z0-9]{1,9}")  # of others, the note gives the number only


class PictureNames:
    """Tells pictures by their suffix; hidden names and those that globs exclude are left out, and folders of them.

    excluding: returns the glob that a name or its path matches, or an empty text, see `sources.glob_finder`.
    root: what the paths begin with; its own name may be anything.
    left_out: how many names, by the reason as the note gives it.
    """

    def __init__(self, excluding: Callable[[str, str], str], root: str) -> None:
        self.left_out: Counter[str] = Counter()
        self._excluding = excluding
        self._root = root
        self._reason_of_folder = lru_cache(1_000)(self._reason)  # thousands of names share one folder

    @property
    def notes(self) -> list[str]:
        return notes_of(self.left_out)

    def is_left_out(self, path: str) -> bool:
        """Whether a file or folder, or a folder that it is in, is hidden or excluded; if so, it is counted."""
        reason = self._reason(path)
        self.left_out.update([reason] if reason else [])
        return bool(reason)

    def is_picture(self, path: str, looks_like_one: Callable[[], bool] = lambda: False) -> bool:
        """Whether a file is a picture by its suffix; if not, it is counted.

        looks_like_one: asked where the suffix says nothing.
        """
        suffix = splitext(basename(path))[1].lower()
        if suffix in kinds.SUFFIXES or (suffix not in kinds.OTHER_SUFFIXES and looks_like_one()):
            return True
        self.left_out[suffix or "without a suffix"] += 1
        return False

    def _reason(self, path: str) -> str:
        name, folder = basename(path), dirname(path)
        if folder and folder != path and (reason := self._reason_of_folder(folder)):
            return reason
        if (name.startswith(".") and name not in (".", "..")) or name in NOT_OF_A_USER:
            return "hidden"
        return self._excluding(name, f"{self._root}/{path}")


def notes_of(left_out: Counter[str]) -> list[str]:
    """What is said of names that were left out, given how many by kind; nothing where there are none."""
    named = [kind for kind, _ in left_out.most_common() if not kind.startswith(".") or SUFFIX.fullmatch(kind)]
    others = left_out.total() - sum(left_out[kind] for kind in named[:MOST_KINDS])
    parts = [f"{left_out[kind]:,} {kind}" for kind in named[:MOST_KINDS]]
    parts += [f"{others:,} of other kinds"] if others else []
    return [f"left out: {', '.join(parts)}"] if parts else []
