"""Where the posts and comments of a subreddit come from: archives, which are streamed, and the API of reddit."""

import json
import os
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, BinaryIO

import numpy as np

import vec_pipeline
from vec_pipeline.record import NotFound, UserError

SUFFIXES = re.compile(r"\.(?:zst|(?:jsonl|ndjson)(?:\.gz)?)$", re.IGNORECASE)
READ_BYTES = 1 << 20
GZIP_READ_BYTES = 4096  # what zlib has unpacked of it is lost where it finds damage
GZIP_BITS = 31  # of zlib's window: the largest, with the header of gzip
LARGEST_WINDOW_BYTES = 1 << 31  # of zstd, as the archives use it
ZSTD_FRAME = b"\x28\xb5\x2f\xfd"  # how frames of content begin, RFC 8878
ZSTD_SKIPPED = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")  # and those of anything else
REPEATED_BYTE = 1  # the type of a block that has one byte, whatever its size
LONGEST_LINE_BYTES = 1 << 26
LISTINGS: tuple[tuple[str, dict[str, str]], ...] = (("new", {}), ("top", {"t": "all"}))
LISTED_AT_ONCE = 100  # the most that reddit sends in an answer
MOST_LISTED = 1000  # the most that a listing goes back
LONGEST_PAUSE_S, USUAL_PAUSE_S = 120.0, 30.0  # that reddit asks for, or does not say
TRIES = 3

Json = dict[str, Any]


class DamagedError(Exception):
    """Why the rest of an archive cannot be read."""


# -- archives -------------------------------------------------------------------------------------------------------


def archives_in(place: str) -> list[str]:
    """The archives in a folder and the folders in it, sorted; or the one file. Raises UserError, also NotFound."""
    path = os.path.realpath(os.path.expanduser(place))
    if os.path.isfile(path):
        return [path]
    if not os.path.isdir(path):
        raise NotFound(f"{place} does not exist: name a folder of archives, or r/NAME for the API of reddit")
    found = [f"{folder}/{name}" for folder, _, names in os.walk(path) for name in names if SUFFIXES.search(name)]
    if not found:
        raise UserError(f"{place} holds no archive (.zst, .jsonl, .ndjson): name another folder")
    return sorted(found)


def shown_size(path: str) -> str:
    try:
        size = os.path.getsize(path)
    except OSError:
        return "gone"
    unit, length = next(((unit, each) for unit, each in (("GB", 1e9), ("MB", 1e6)) if size >= each), ("kB", 1e3))
    return f"{size / length:.1f} {unit}"


def lines_of(path: str, needle: bytes) -> Iterator[bytes]:
    """Yield the lines of an archive that hold some bytes in upper or lower case, as `lines_with` finds them.

    Raises DamagedError after those of what can be read.
    """
    try:
        with open(path, "rb") as file:
            yield from lines_with(needle, blocks_of(file, path.lower()))
    except (OSError, EOFError, ValueError) as error:
        raise DamagedError(getattr(error, "strerror", None) or str(error)) from None


def blocks_of(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Yield the content of a file, unpacked. Raises OSError, EOFError and ValueError where it is damaged."""
    if name.endswith(".zst"):
        import zstandard

        decompressor = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW_BYTES)
        yield from unpacked(pieces_of_zstd(file), decompressor.decompressobj, zstandard.ZstdError)
    elif name.endswith(".gz"):
        pieces = iter(lambda: file.read(GZIP_READ_BYTES), b"")
        yield from unpacked(pieces, lambda: zlib.decompressobj(GZIP_BITS), zlib.error)
    else:
        while block := file.read(READ_BYTES):
            yield block


def unpacked(pieces: Iterator[bytes], begin: Callable[[], Any], damage: type[Exception]) -> Iterator[bytes]:
    """Yield the content of frames of zstd or gzip, which may follow each other. Raises EOFError and ValueError.

    begin: makes what unpacks a frame, as zlib's decompressobj. damage: what that raises.
    """
    frame = begin()
    try:
        for data in pieces:
            while data := data.lstrip(b"\0") if frame.eof else data:  # zeros may fill a file up
                if frame.eof:
                    frame = begin()
                yield frame.decompress(data)
                data = frame.unused_data if frame.eof else b""
    except damage as error:
        raise ValueError(str(error)) from None
    if not frame.eof:
        raise EOFError("its end is missing")


def pieces_of_zstd(file: BinaryIO) -> Iterator[bytes]:
    """Yield a file of zstd in pieces that become 128 kB each at most: its blocks.

    What zstd is given it unpacks at once, and without this 64 kB could become 2 GB. Only what is no zstd comes
    in larger pieces. Raises ZstdError where the file ends in a header.
    """
    while begin := file.read(4):
        if begin == ZSTD_FRAME:
            yield from pieces_of_frame(file)
        elif ZSTD_SKIPPED.fullmatch(begin):
            file.seek(int.from_bytes(file.read(4), "little"), os.SEEK_CUR)
        else:
            yield begin + file.read(READ_BYTES)


def pieces_of_frame(file: BinaryIO) -> Iterator[bytes]:
    """The pieces of a frame whose first four bytes have been read: its header, its blocks, and its checksum."""
    import zstandard

    header = ZSTD_FRAME + file.read(1)
    header += file.read(zstandard.frame_header_size(header) - len(header))
    yield header
    is_last = 0
    while not is_last and len(begin := file.read(3)) == 3:
        value = int.from_bytes(begin, "little")
        is_last, kind, size = value & 1, value >> 1 & 3, value >> 3
        yield begin + file.read(1 if kind == REPEATED_BYTE else size)
    if zstandard.get_frame_parameters(header).has_checksum:
        yield file.read(4)


def folded(data: bytes) -> bytes:
    """Bytes of which capitals are small letters, each in its place. Some other signs are equal then, too."""
    return (np.frombuffer(data, np.uint8) | 0x20).tobytes()  # with bytes.lower archives take 15% longer


def lines_with(needle: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the lines that hold some bytes, in upper or lower case, and perhaps a few that do not.

    Whole blocks are searched: to look at each line would take far longer.

    Raises ValueError for a line that is too long to be one.
    """
    needle = folded(needle)
    rest = b""  # of the line that the last block has begun
    for block in blocks:
        begin = block.find(b"\n") + 1
        rest += block[: begin or None]
        if len(rest) > LONGEST_LINE_BYTES:
            raise ValueError("it has no lines")
        if not begin:
            continue
        if needle in folded(rest):
            yield rest
        searched, end = folded(block), block.rfind(b"\n") + 1
        while (found := searched.find(needle, begin, end)) >= 0:
            start, begin = block.rfind(b"\n", 0, found) + 1, block.find(b"\n", found) + 1
            yield block[start:begin]
        rest = block[end:]
    if needle in folded(rest):
        yield rest


def parsed(line: bytes) -> Json:
    """The object of a line. Raises ValueError where it is none."""
    import orjson

    try:
        found = orjson.loads(line)
    except ValueError:
        try:
            found = json.loads(line.decode(errors="replace"))  # which takes halves of characters
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("it is no object")
    return found


# -- the API --------------------------------------------------------------------------------------------------------


class Api:
    """The API of reddit, by an application's credentials. Raises UserError where there are none.

    All its methods raise DamagedError where reddit does not answer, and UserError where it refuses the credentials.
    """

    def __init__(self, contact: str) -> None:
        try:
            import praw
        except ImportError:
            raise UserError("reddit: needs praw: pip install 'vec-pipeline[requests]'") from None
        own = f"{sys.platform}:vec-pipeline:{vec_pipeline.__version__}" + (f" (+{contact})" if contact else "")
        try:
            agent = os.environ.get("praw_user_agent") or own  # noqa: SIM112 (as PRAW calls it)
            self._reddit = praw.Reddit(user_agent=agent, check_for_updates=False)
        except praw.exceptions.MissingRequiredAttributeException:
            raise UserError(
                "the API of reddit needs an application: register one at https://www.reddit.com/prefs/apps and set the "
                "environment variables praw_client_id and praw_client_secret"
            ) from None

    def posts(self, subreddit: str) -> Iterator[Json]:
        """Yield the newest posts and the best ones, as far as listings go back; some of them twice."""
        for listing, options in LISTINGS:
            yield from islice(self._listed(f"/r/{subreddit}/{listing}", options), MOST_LISTED)

    def answers(self, post: str) -> list[Json]:
        """The best answers to a post, a hundred at most."""
        options = {"sort": "top", "depth": "1", "limit": str(LISTED_AT_ONCE)}
        found = self._asked(f"/comments/{post}", options)
        return children(found[1]) if isinstance(found, list) and len(found) > 1 else []

    def _listed(self, path: str, options: dict[str, str]) -> Iterator[Json]:
        after: dict[str, str] = {}
        while True:
            answer = self._asked(path, {**options, **after, "limit": str(LISTED_AT_ONCE)})
            yield from children(answer)
            data = answer.get("data") if isinstance(answer, dict) else None
            if not (isinstance(data, dict) and isinstance(data.get("after"), str)):
                return
            after = {"after": data["after"]}

    def _asked(self, path: str, options: dict[str, str]) -> Any:
        """An answer, when it is our turn: PRAW keeps to the rate that reddit allows."""
        import prawcore

        for left in reversed(range(TRIES)):
            try:
                return self._reddit.request(method="GET", path=path, params=dict(options))
            except prawcore.TooManyRequests as error:
                if not left:
                    raise DamagedError("HTTP 429: it has enough to do") from None
                time.sleep(pause_s(error.retry_after))
            except Exception as error:  # of prawcore, praw and requests
                raise failure_of(error) from None
        raise AssertionError


def children(listing: Any) -> list[Json]:
    """What a listing holds; what stands for more of it is left out."""
    data = listing.get("data") if isinstance(listing, dict) else None
    found = data.get("children") if isinstance(data, dict) else None
    inside = [each.get("data") for each in found or [] if isinstance(each, dict) and each.get("kind") in ("t1", "t3")]
    return [each for each in inside if isinstance(each, dict)]


def pause_s(retry_after: str | None) -> float:
    try:
        return min(max(float(retry_after or USUAL_PAUSE_S), 0.0), LONGEST_PAUSE_S)
    except ValueError:
        return USUAL_PAUSE_S


def failure_of(error: Exception) -> Exception:
    import prawcore

    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401 or isinstance(error, prawcore.OAuthException):
        return UserError("reddit refuses the credentials: correct praw_client_id and praw_client_secret")
    return DamagedError(f"HTTP {status}" if status else f"{type(error).__name__}: {error}"[:200])
