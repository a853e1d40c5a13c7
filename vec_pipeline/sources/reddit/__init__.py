"""Requests for edits on reddit: a record for each picture that answers a post with a picture."""

import logging
import os
import re
import secrets
import sqlite3
import sys
import time
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile
from urllib.parse import parse_qsl

from vec_pipeline.downloads.addresses import key_of
from vec_pipeline.downloads.web import WebPicture
from vec_pipeline.record import Record, SourceOptions, UserError, Values
from vec_pipeline.sources import DEFAULT_OPTIONS
from vec_pipeline.sources.reddit.places import Api, DamagedError, Json, archives_in, lines_of, parsed, shown_size
from vec_pipeline.sources.reddit.posts import Entry, entry_of, retrieved_s, text

SCHEME = "reddit:"
KEY = re.compile(r"(https?://[^#]*)#reddit/[a-z0-9]+/[a-z0-9]+/\d+", re.IGNORECASE)  # of one record: ORIGINAL#...
API_PLACE = re.compile(r"/?r/(\w{2,21})/?")
SUBREDDIT = re.compile(r"\w{2,21}")
USUAL_SUBREDDIT, USUAL_ANSWERS = "PhotoshopRequest", 3
SALT_VARIABLE = "REDDIT_SALT"
SALT_BYTES = 32
MOST_SILENT = 3  # posts in a row whose answers reddit does not send; then it is not asked any more
SCHEMA = """
PRAGMA journal_mode = OFF;  -- nobody else reads it, and nothing is rolled back
CREATE TABLE posts (id TEXT PRIMARY KEY, post, score, time_s, retrieved_s, data) WITHOUT ROWID;
CREATE TABLE answers (id TEXT PRIMARY KEY, post, score, time_s, retrieved_s, data) WITHOUT ROWID;
CREATE INDEX of_post ON answers (post);
"""
UPSERT = """
INSERT INTO {} VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET
score = excluded.score, time_s = excluded.time_s, retrieved_s = excluded.retrieved_s, data = excluded.data
WHERE excluded.retrieved_s >= retrieved_s
"""

logger = logging.getLogger("vec_pipeline")


class Reddit:
    """A record per picture of an answer, beside the original of its post: `content` and `edited_content`.

    reddit:PLACE,PLACE?subreddit=NAME&answers=N reads archives and the API (r/NAME) as one: a post or an answer that
    comes twice is as it was when reddit was read last. Posts are in the order of their times, their answers by score.
    All entries of the subreddit wait in a temporary file, so that neither their number nor their order matters. Names
    of users are hashed before. The file is kept as long as the source, which may be read again.
    """

    columns: Mapping[str, str] = {
        **{"edited_content": "content", "post_id": "text", "post_title": "text", "post_text": "text"},
        **{"post_score": "number", "post_comments": "number", "post_flair": "text", "post_time": "text"},
        **{"post_author": "text", "post_link": "text", "post_pictures": "number", "original_url": "text"},
        **{"answer_id": "text", "answer_score": "number", "answer_time": "text", "answer_author": "text"},
        **{"answer_link": "text", "edited_url": "text", "http_status": "number", "edited_http_status": "number"},
    }
    is_stream = False
    is_counted = False

    def __init__(self, argument: str, exclude: Sequence[str] = (), options: SourceOptions = DEFAULT_OPTIONS) -> None:
        self._options = options
        self._key = argument if KEY.fullmatch(argument) else ""
        self._counts: Counter[str] = Counter()
        self._left_out: dict[str, Counter[str]] = {"posts": Counter(), "answers": Counter()}
        self._table: Table | None = None  # what was read, once it was
        self._salt = b""
        self._online: set[str] = set()  # ids of posts whose answers the API was not yet asked for
        self._unreadable = 0
        self._missing = ""  # which archives are, in a sentence
        self.failures: list[str] = []
        if not self._key:
            self._archives, self._api, self._subreddit, self._answers = divided(argument)
            check_installed(self._archives)
            self._reddit = Api(options.contact) if self._api else None

    @classmethod
    def accepts(cls, argument: str) -> bool:
        return argument.lower().startswith(SCHEME) or bool(KEY.fullmatch(argument))

    def __iter__(self) -> Iterator[Record]:
        if self._key:
            yield Record(self._key, {"content": WebPicture(self._key.partition("#")[0], self._options)})
            return
        try:
            if not self._table:
                self._table = self._filled()
            yield from self._records(self._table)
        except sqlite3.Error as error:
            message = f"posts wait in a temporary file ({error}): free some disk space, or set TMPDIR to another folder"
            raise UserError(message) from None

    @property
    def notes(self) -> list[str]:
        """After iteration: what came of how many posts, and what was left out."""
        if not self._counts["posts"]:
            return []
        found = [f"r/{self._subreddit}: {self._counts['rows']:,} pairs of pictures in {self._counts['posts']:,} posts"]
        for what, counts in self._left_out.items():
            if counts:
                found.append(
                    f"{what} left out: {', '.join(f'{number:,} {why}' for why, number in sorted(counts.items()))}"
                )
        if self._missing:
            found.append(self._missing)
        counted = {**self._counts, "unreadable": self._unreadable}
        for what in NOTED:
            if number := counted.get(what):
                found.append(NOTED[what].format(number))
        return found

    def _filled(self) -> "Table":
        """What the archives hold and the API lists. Answers of the API follow with their posts."""
        self._unreadable = 0
        self._online.clear()
        self.failures.clear()
        self._salt = salt_of(self._options)
        table = Table()
        weakref.finalize(self, table.close)
        self._add(table, self._of_archives())
        self._missing = self._missing_archives(table) if self._archives else ""
        self._add(table, self._of_api())
        if not table.number_of("posts"):
            self.failures.append(self._missing or f"no post of r/{self._subreddit} was found: correct its name")
        return table

    def _missing_archives(self, table: "Table") -> str:
        """What to add to archives that the table was made of; empty where they hold posts and answers."""
        has_posts, has_answers = table.number_of("posts"), table.number_of("answers")
        if has_posts and has_answers:
            return ""
        if has_posts:
            return f"the archives hold posts of r/{self._subreddit} and no answers: add those of comments (RC_...)"
        if has_answers:
            return f"the archives hold answers in r/{self._subreddit} and no posts: add those of posts (RS_...)"
        return f"the archives hold nothing of r/{self._subreddit}: correct its name, or name other archives"

    def _add(self, table: "Table", entries: Iterable[tuple[Entry, float]]) -> None:
        refused = table.add(entries)  # which counts, too
        self._unreadable += refused

    def _records(self, table: "Table") -> Iterator[Record]:
        self._counts.clear()
        self._left_out = {"posts": Counter(), "answers": Counter()}
        self._counts["orphans"] = table.number_of_orphans()
        silent = 0
        for post in table.posts():
            self._counts["posts"] += 1
            self._counts["crossposts"] += post.is_crosspost
            self._counts["albums"] += post.albums
            if post.left_out:
                self._left_out["posts"][post.left_out] += 1
                continue
            if post.id in self._online and post.comments != 0:
                silent = 0 if self._ask_for_answers(post, table) else silent + 1
                self._online.discard(post.id)
                if silent == MOST_SILENT:
                    self._online.clear()
            yield from self._of_post(post, table.answers(post.id))

    def _of_archives(self) -> Iterator[tuple[Entry, float]]:
        """The entries of all archives, and when they were retrieved."""
        needle = f'"{self._subreddit}"'.encode()  # whatever stands between it and "subreddit"
        for number, path in enumerate(self._archives, 1):
            logger.info("reading %s", path)
            say(f"reading {Path(path).name} ({shown_size(path)}), {number} of {len(self._archives)}")
            try:
                for line in lines_of(path, needle):
                    yield from self._of_line(line)
            except DamagedError as error:
                self.failures.append(f"{path} is damaged ({error}): what comes before was read")

    def _of_line(self, line: bytes) -> Iterator[tuple[Entry, float]]:
        try:
            found = parsed(line)
            is_of_it = text(found, "subreddit").lower() == self._subreddit.lower()
            if is_of_it and (entry := entry_of(found, self._salt)):
                yield entry, retrieved_s(found)
        except ValueError:
            self._unreadable += 1

    def _of_api(self) -> Iterator[tuple[Entry, float]]:
        """The posts that the API lists."""
        if not self._reddit:
            return
        try:
            for found in self._reddit.posts(self._subreddit):
                for entry in self._readable([found]):
                    self._online.add(entry.id)
                    yield entry, time.time()
        except DamagedError as error:
            self.failures.append(f"r/{self._subreddit} cannot be listed to its end ({error}): run again later")

    def _ask_for_answers(self, post: Entry, table: "Table") -> bool:
        """Ask the API for the answers to a post. Return whether it has sent them."""
        assert self._reddit
        try:
            found = self._readable(self._reddit.answers(post.id))
        except DamagedError as error:
            self.failures.append(f"{link(post.id)}: its answers cannot be read ({error}): run again later")
            return False
        self._add(table, ((entry, time.time()) for entry in found))
        return True

    def _readable(self, found: Iterable[Json]) -> list[Entry]:
        entries = []
        for each in found:
            try:
                entries.append(entry_of(each, self._salt))
            except ValueError:
                self._unreadable += 1
        return [entry for entry in entries if entry]

    def _of_post(self, post: Entry, answers: Iterable[Entry]) -> Iterator[Record]:
        """The records of the best answers to a post, which come by score."""
        taken = 0
        for answer in answers:
            edited = [each for each in answer.pictures if each not in post.pictures]
            self._counts["albums"] += answer.albums
            if why := self._why_left_out(post, answer, edited, taken):
                self._left_out["answers"][why] += 1
                continue
            taken += 1
            for number, address in enumerate(edited):
                is_one_to_one = len(edited) == len(post.pictures)
                self._counts["rows"] += 1
                yield self._record(post, answer, post.pictures[number if is_one_to_one else 0], address, number + 1)
        if not taken:
            self._left_out["posts"]["without an edited picture"] += 1

    def _why_left_out(self, post: Entry, answer: Entry, edited: Sequence[str], taken: int) -> str:
        if answer.left_out:
            return answer.left_out
        if answer.author and answer.author == post.author:
            return "by who asked"
        if not edited:
            return "without a picture"
        return f"beyond the best {self._answers}" if taken == self._answers else ""

    def _record(self, post: Entry, answer: Entry, original: str, edited: str, number: int) -> Record:
        values: Values = {
            "content": WebPicture(original, self._options),
            "edited_content": WebPicture(edited, self._options),
            "post_id": post.id,
            "post_title": post.title,
            "post_text": post.text,
            "post_score": post.score,
            "post_comments": post.comments,
            "post_flair": post.flair,
            "post_time": shown_time(post.time_s),
            "post_author": post.author,
            "post_link": link(post.id),
            "post_pictures": len(post.pictures),
            "original_url": key_of(original),
            "answer_id": answer.id,
            "answer_score": answer.score,
            "answer_time": shown_time(answer.time_s),
            "answer_author": answer.author,
            "answer_link": link(post.id, answer.id),
            "edited_url": key_of(edited),
        }
        return Record(f"{key_of(original)}#reddit/{post.id}/{answer.id}/{number}", values)


NOTED = {  # what is counted, and how it is said
    "crossposts": "cross-posts: {:,}, with the pictures of the posts that they repeat",
    "albums": "albums of imgur: {:,} not opened, which needs a key of imgur's",
    "orphans": "answers to posts that were not found: {:,}",
    "unreadable": "lines that are neither posts nor comments: {:,}",
}


class Table:
    """The entries of a subreddit, in a temporary file that goes with it."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", check_same_thread=False)
        self._database.executescript(SCHEMA)

    def add(self, entries: Iterable[tuple[Entry, float]]) -> int:
        """Add entries, each with the time it was retrieved: of those with one id, the last one is kept.

        Return the number of those that cannot be kept.
        """
        import orjson

        refused = 0
        for entry, retrieved in entries:
            try:
                data = orjson.dumps(entry)
                row = (entry.id, entry.post, entry.score, entry.time_s, retrieved, data)
                self._database.execute(UPSERT.format("answers" if entry.post else "posts"), row)
            except (TypeError, OverflowError):  # halves of characters, numbers of more than 64 bits
                refused += 1
        return refused

    def posts(self) -> Iterator[Entry]:
        yield from self._entries("SELECT data FROM posts ORDER BY time_s, id", ())

    def answers(self, post: str) -> Iterator[Entry]:
        """Those to a post, the best first."""
        yield from self._entries("SELECT data FROM answers WHERE post = ? ORDER BY score DESC, time_s, id", (post,))

    def number_of(self, table: str) -> int:
        return self._number(f"SELECT count(*) FROM {table}")

    def number_of_orphans(self) -> int:
        return self._number("SELECT count(*) FROM answers WHERE post NOT IN (SELECT id FROM posts)")

    def close(self) -> None:
        self._database.close()

    def _entries(self, query: str, values: tuple[str, ...]) -> Iterator[Entry]:
        import orjson

        for (data,) in self._database.execute(query, values):
            yield Entry(**orjson.loads(data))

    def _number(self, query: str) -> int:
        (number,) = self._database.execute(query).fetchone()
        return int(number)


def divided(argument: str) -> tuple[list[str], bool, str, int]:
    """What an argument names: archives, whether the API is asked too, the subreddit, the most answers to a post.

    Raises UserError, also NotFound.
    """
    places, _, query = argument[len(SCHEME) :].partition("?")
    given = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := given.keys() - {"subreddit", "answers"}:
        raise UserError(f"{argument.partition('?')[0]} has no parameter {min(unknown)!r}: it takes subreddit, answers")
    answers = given.get("answers", str(USUAL_ANSWERS))
    if not (answers.isdecimal() and int(answers)):
        raise UserError(f"{argument}: answers is {answers!r}: write a number from 1 on")
    named = [places] if os.path.exists(os.path.expanduser(places)) else list(filter(None, places.split(",")))
    if not named:
        raise UserError(f"{argument} names no place: write {SCHEME}FOLDER of archives, or {SCHEME}r/NAME for the API")
    of_api = [found[1] for each in named if (found := API_PLACE.fullmatch(each))]
    subreddits = [*of_api, *([given["subreddit"]] if "subreddit" in given else [])] or [USUAL_SUBREDDIT]
    if len({each.lower() for each in subreddits}) > 1 or not SUBREDDIT.fullmatch(subreddits[0]):
        shown = ", ".join(sorted(set(subreddits)))
        raise UserError(f"{argument}: {shown!r} is not one subreddit: name one for each source")
    archives = [path for each in named if not API_PLACE.fullmatch(each) for path in archives_in(each)]
    return list(dict.fromkeys(archives)), bool(of_api), subreddits[0], int(answers)


def say(line: str) -> None:
    """Print a line during the run, in a terminal over its progress bar."""
    shown = "".join(each if each.isprintable() else "?" for each in line)
    print(f"\r\033[K{shown}" if sys.stdout.isatty() else shown, flush=True)


def check_arguments(arguments: Sequence[str], *, has_parts: bool) -> None:
    """Raise UserError for what a run cannot make rows of.

    has_parts: whether the run is one of several, which share no file.
    """
    of_reddit = [each for each in arguments if Reddit.accepts(each)]
    if keys := [each for each in of_reddit if KEY.fullmatch(each)]:
        raise UserError(f"{keys[0]} is a row's key, without its request: name the archives or the API (reddit:PLACE)")
    if of_reddit and has_parts and not os.environ.get(SALT_VARIABLE):
        raise UserError(f"the parts of a run need the same key: set {SALT_VARIABLE} for all of them")


def check_installed(archives: Sequence[str]) -> None:
    """Raise UserError where the library is missing that unpacks the archives."""
    if any(path.lower().endswith(".zst") for path in archives) and not find_spec("zstandard"):
        raise UserError("reddit: needs zstandard for archives: pip install 'vec-pipeline[requests]'")


def salt_of(options: SourceOptions) -> bytes:
    """What names are hashed with: of the environment, or a random one that is kept beside the CSV.

    Raises UserError where it can be neither read nor kept.
    """
    if given := os.environ.get(SALT_VARIABLE):
        return blake2b(given.encode("utf-8", "surrogateescape"), digest_size=SALT_BYTES).digest()
    if not options.salt:
        return secrets.token_bytes(SALT_BYTES)
    try:
        if not options.salt.exists():
            keep_salt(options.salt)
        salt = bytes.fromhex(options.salt.read_text())
        if len(salt) != SALT_BYTES:  # shorter ones hash as well, and can be guessed
            raise ValueError(f"it holds {len(salt)} and not {SALT_BYTES} bytes in hexadecimal")
        return salt
    except (OSError, ValueError) as error:
        raise UserError(f"{options.salt} cannot be used ({error}): delete it, or set {SALT_VARIABLE}") from None


def keep_salt(path: Path) -> None:
    """Make the file, for nobody else to read; it gets its name when it is whole. One that is there by then stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", suffix=".new") as file:
        file.write(secrets.token_hex(SALT_BYTES))
        file.flush()
        os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(file.name, path)


def link(post: str, answer: str = "") -> str:
    """The address of a post or an answer, which names no user."""
    return f"https://www.reddit.com/comments/{post}/" + (f"_/{answer}/" if answer else "")


def shown_time(time_s: float | None) -> str:
    """In ISO 8601 and UTC; empty where it is not known."""
    with suppress(OverflowError, ValueError, OSError):
        return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="seconds") if time_s else ""
    return ""
