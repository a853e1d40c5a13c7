"""New images of folders as they arrive: `--watch`."""

import logging
import os
import stat
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING

from vec_pipeline.key_set import KeySet
from vec_pipeline.record import Record, UserError
from vec_pipeline.sources.folder import REPORT, Folder, gallery_of, key_of, record_of, shows_image
from vec_pipeline.terminal import plural, visible

if TYPE_CHECKING:
    from watchfiles import Change
    from watchfiles.main import FileChange

SETTLE_S = 2.0  # for which a file must stay the same to be whole
EMPTY_S = 600.0  # the same for an empty one: browsers create it long before they rename the download into its place
WALK_INTERVAL_S = 600.0  # for what was missed: too many changes at once, and all changes on some network drives
RESTART_INTERVAL_S = 5.0  # at least, since the last time that watching was begun
UNWATCHED_INTERVAL_S = 60.0  # between walks where changes are not reported
CHANGES_MS, STEP_MS = 100, 50  # to wait for changes, and for more of them
WALK_S = 0.2  # of a walk at a time
MOST_WAITING = 10_000  # files, and folders; for more, the folder is walked again later

logger = logging.getLogger(__name__)

State = tuple[int, int, int]  # size in bytes, time of modification in ns, inode


class Watcher:
    """A record per new image of some folders, as soon as it is whole, until `stop`.

    What counts is what a walk of the folder finds. A file is whole when its size and time have not changed for
    SETTLE_S. Changes that the system reports make it quick. A walk at the start, and then every WALK_INTERVAL_S, finds
    what no change was reported of.

    done: keys to leave out, which may grow.
    say: prints a line where a folder has gone or cannot be watched.
    notes: how many images have changed after they were taken, or left out as done.
    failures: folders that are missing, or could not be listed the last time.

    Raises UserError where an argument is no folder.
    """

    columns: Mapping[str, str] = {}
    is_stream = True

    def __init__(
        self,
        folders: Sequence[str],
        exclude: Sequence[str] = (),
        done: Container[str] = (),
        say: Callable[[str], None] = print,
    ) -> None:
        check_folders(folders)
        self._folders = {folder.root: folder for folder in (WatchedFolder(each, exclude) for each in folders)}
        self._done = done
        self._say = say
        self._stopped = threading.Event()
        self._taken = KeySet()
        self._states = KeySet()  # keys of what was taken with their states then
        self._changed = KeySet()
        self._waiting: dict[str, tuple[State, float]] = {}  # files, and since when they have been in this state
        self._ready: deque[Record] = deque()
        self._walks: deque[tuple[float, Iterator[str]]] = deque()  # when they may begin, and what they find
        self._is_walking = False  # through all folders
        self._next_walk_s = self._next_start_s = 0.0
        self._roots: dict[str, tuple[int, int]] = {}  # the folders that are there, and their places
        self._changes: Iterator[set[FileChange]] | None = None
        self._is_restart_due = True
        self._said: set[str] = set()

    def __iter__(self) -> Iterator[Record]:
        while not self._stopped.is_set():
            if self._ready:
                yield self._ready.popleft()
            else:
                self._look()

    def ready(self) -> int:
        """How many can be taken without waiting. To be called between two of them, in the same thread."""
        self._look()
        return len(self._ready)

    def stop(self) -> None:
        """End the iteration. May be called in any thread, and on a signal."""
        self._stopped.set()

    @property
    def notes(self) -> list[str]:
        changed = plural(len(self._changed), "picture")
        return [f"{changed} changed after the rows were made: --refresh updates them"] if len(self._changed) else []

    @property
    def failures(self) -> list[str]:
        missing = [f"{key_of(root)} (no longer there)" for root in self._folders if not os.path.isdir(root)]
        return missing + [failure for folder in self._folders.values() for failure in folder.failures]

    def _look(self) -> None:
        """Find out which files have arrived and which are whole by now; takes a moment."""
        self._notice_roots()
        now_s = time.monotonic()
        if self._is_restart_due and now_s >= self._next_start_s:
            self._start()
        for change, path in self._reported():
            self._note(path, change)
        if now_s >= self._next_walk_s and not self._is_walking and len(self._waiting) < MOST_WAITING:
            self._is_walking, self._next_walk_s = True, now_s + WALK_INTERVAL_S
            self._walks.append((now_s, self._all_images()))
        self._walk()
        self._settle()

    def _notice_roots(self) -> None:
        """Begin from scratch where a folder has gone or come back, as the one of a drive that is unmounted does."""
        roots = {root: place for root in self._folders if (place := place_of(root))}
        if roots != self._roots:
            for root in self._roots.keys() - roots.keys():
                self._say(f"{visible(key_of(root))} is no longer there: waiting for it to come back")
            self._roots = roots
            self._is_restart_due, self._next_start_s = True, 0.0

    def _start(self) -> None:
        """Watch from now on; what was there before, a walk finds."""
        from watchfiles import watch

        self._next_start_s = time.monotonic() + RESTART_INTERVAL_S
        self._next_walk_s = 0.0
        self._is_restart_due = False
        self._changes = None
        if self._roots:
            self._changes = watch(
                *self._roots, watch_filter=None, debounce=2 * CHANGES_MS, step=STEP_MS, rust_timeout=CHANGES_MS,
                yield_on_timeout=True,
            )  # fmt: skip

    def _say_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            self._say(message)

    def _reported(self) -> "Collection[FileChange]":
        """The changes since the last time."""
        try:
            if self._changes is not None:
                return next(self._changes)
        except (OSError, RuntimeError) as error:  # no permission, too many folders, a name that is not UTF-8
            self._changes, self._is_restart_due = None, True
            logger.warning("watching: %s", error)
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):  # that is tried again at once
                self._next_start_s = time.monotonic() + UNWATCHED_INTERVAL_S
                self._say_once(
                    f"watching failed ({error}): new files are looked for every {UNWATCHED_INTERVAL_S:.0f} s"
                )
        time.sleep(CHANGES_MS / 1000)
        return ()

    def _note(self, path: str, change: "Change") -> None:
        """Look at what has changed. What was removed is noticed when it is due."""
        is_removed, is_added = change.name == "deleted", change.name == "added"
        if path in self._roots:
            self._is_restart_due |= is_removed  # and has been made again since
        elif not os.path.isdir(path):
            for image in () if is_removed else self._images_at(path):
                self._notice(image, is_reported=True)
        elif is_added and len(self._walks) < MOST_WAITING:
            self._walks.append((time.monotonic() + SETTLE_S, self._images_at(path)))  # when it is watched for certain
            self._is_restart_due |= os.path.islink(path)  # what such a link leads to is not watched otherwise
        elif is_added:
            self._next_walk_s = 0.0

    def _images_at(self, path: str) -> Iterator[str]:
        for folder in self._folders.values():
            yield from folder.images_at(path)

    def _all_images(self) -> Iterator[str]:
        for root in self._roots:
            yield from self._folders[root].images()
        self._is_walking = False

    def _walk(self) -> None:
        """Go on with the walks for a moment."""
        end_s = time.monotonic() + WALK_S
        while self._walks and len(self._waiting) < MOST_WAITING and time.monotonic() < end_s:
            begin_s, images = self._walks[0]
            if begin_s > time.monotonic():
                return
            if (path := next(images, None)) is None:
                self._walks.popleft()
            else:
                self._notice(path)

    def _notice(self, path: str, *, is_reported: bool = False) -> None:
        """An image has been found, or was reported to have changed."""
        key = key_of(path)
        is_taken = key in self._done or key in self._taken
        is_of_interest = is_reported or not is_taken
        if not is_of_interest or not (state := state_of(path)):
            return
        if is_taken:
            if f"{state} {key}" not in self._states:
                self._changed.add(key)
        elif path not in self._waiting and len(self._waiting) >= MOST_WAITING:
            self._next_walk_s = 0.0
        elif path not in self._waiting or self._waiting[path][0] != state:
            self._waiting[path] = state, time.monotonic()

    def _settle(self) -> None:
        """Take the files that have not changed for long enough."""
        now_s = time.monotonic()
        for path, (state, since_s) in list(self._waiting.items()):
            if now_s - since_s < (SETTLE_S if state[0] else EMPTY_S):
                continue
            del self._waiting[path]
            if (new := state_of(path)) == state:
                record = record_of(path)
                self._taken.add(record.key)
                self._states.add(f"{state} {record.key}")
                self._ready.append(record)
            elif new:
                self._waiting[path] = new, now_s


def check_folders(arguments: Sequence[str]) -> None:
    """Raise UserError where an argument is no folder."""
    for each in arguments:
        if not os.path.isdir(os.path.expanduser(each)):
            raise UserError(f"--watch needs folders: {each} is none")


class WatchedFolder(Folder):
    """A folder that knows of one path what its walk would find there."""

    def images(self) -> Iterator[str]:
        """Walk it again."""
        return self._images()

    def images_at(self, path: str) -> Iterator[str]:
        """The image files that the walk finds at a path and below it, under the names that it finds them by."""
        walker = copy(self)  # what fails here is not the folder's failure: it may have been removed again
        walker.left_out, walker.failures = Counter(), []
        real = os.path.realpath(path)
        for each in dict.fromkeys((real, path)):  # changes may be reported under any of the ways that lead to a file
            if not self._comes_by(each):
                continue
            is_linked = each != real
            if os.path.isfile(each):
                yield from [real] if shows_image(each) else []
            elif os.path.isdir(each):
                for found, is_found_linked in walker._walk(each, set(), is_linked=is_linked):
                    yield os.path.realpath(found) if is_found_linked else found

    def _comes_by(self, path: str) -> bool:
        """Whether the walk comes by a path, which is not that of the folder itself."""
        folder = self.root
        for name in os.path.relpath(path, self.root).split(os.sep):  # begins with a dot where it is not below
            each = os.path.join(folder, name)
            if name.startswith(".") or self._excluding(name, each) or name == gallery_of(folder, set(REPORT)):
                return False
            folder = each
        return True


def state_of(path: str) -> State | None:
    """What changes while a file is written; None where there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def place_of(folder: str) -> tuple[int, int] | None:
    """Drive and number of a folder; None where there is none."""
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISDIR(status.st_mode) else None
