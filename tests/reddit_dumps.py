"""Archives of reddit with invented posts, in the shape that arctic_shift and pushshift give them, and a fake API.

`write_requests` makes a month of requests for edits whose pictures `PictureServer` draws.
"""

import gzip
import io
import json
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import parse_qsl, urlsplit

from PIL import ImageStat

from models.demo.drawing import draw
from models.demo.scenes import BACKGROUNDS, random_scene
from tests.http_server import HttpServer, Request, answer
from vec_pipeline.record import Stage, Values

Json = dict[str, Any]
SUBREDDIT = "PhotoshopRequest"
BEGIN_S = 1_704_067_200  # 2024-01-01
HOUR_S = 3600
WINDOW_LOG = 31  # as the archives are compressed: 2 GB


def post(number: int, **changes: Any) -> Json:
    """A post with a picture, as an archive has it."""
    name = f"p{number}"
    return {
        "all_awardings": [],
        "allow_live_comments": False,
        "archived": False,
        "author": f"asker{number}",
        "author_fullname": f"t2_a{number}",
        "created_utc": BEGIN_S + number * HOUR_S,
        "crosspost_parent_list": None,
        "domain": "i.redd.it",
        "gallery_data": None,
        "id": name,
        "is_gallery": False,
        "is_self": False,
        "is_video": False,
        "link_flair_text": "Free",
        "media_metadata": None,
        "name": f"t3_{name}",
        "num_comments": 2,
        "over_18": False,
        "permalink": f"/r/{SUBREDDIT}/comments/{name}/please/",
        "removed_by_category": None,
        "retrieved_on": BEGIN_S + number * HOUR_S + 60,
        "score": 10 + number,
        "selftext": "",
        "subreddit": SUBREDDIT,
        "subreddit_id": "t5_2txlp",
        "title": f"Please edit picture {number}",
        "upvote_ratio": 0.97,
        "url": f"https://i.redd.it/original{number}.png",
        **changes,
    }


def comment(name: str, number: int, body: str = "", **changes: Any) -> Json:
    """An answer to the post of a number, as an archive has it."""
    return {
        "archived": False,
        "author": f"editor_{name}",
        "body": body or f"[Here you go](https://i.redd.it/edit{name}.png)",
        "collapsed": False,
        "controversiality": 0,
        "created_utc": BEGIN_S + number * HOUR_S + 600,
        "distinguished": None,
        "edited": False,
        "id": name,
        "is_submitter": False,
        "link_id": f"t3_p{number}",
        "name": f"t1_{name}",
        "parent_id": f"t3_p{number}",
        "permalink": f"/r/{SUBREDDIT}/comments/p{number}/please/{name}/",
        "retrieved_on": BEGIN_S + number * HOUR_S + 660,
        "score": 5,
        "stickied": False,
        "subreddit": SUBREDDIT,
        "subreddit_id": "t5_2txlp",
        **changes,
    }


def gallery(*addresses: str) -> Json:
    """What a post has besides if it shows several pictures."""
    names = [f"media{number}" for number in range(len(addresses))]
    return {
        "url": "https://www.reddit.com/gallery/x",
        "is_gallery": True,
        "gallery_data": {"items": [{"media_id": name, "id": number} for number, name in enumerate(names)]},
        "media_metadata": dict(reversed([(name, media(each)) for name, each in zip(names, addresses, strict=True)])),
    }


def media(address: str, **changes: Any) -> Json:
    return {"status": "valid", "e": "Image", "m": "image/png", "s": {"x": 96, "y": 96, "u": address}, **changes}


def line(entry: Any) -> bytes:
    """A line of an archive; bytes stay as they are."""
    return entry if isinstance(entry, bytes) else json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def write(path: Path, entries: Iterable[Any], frames: int = 1) -> Path:
    """Write an archive, compressed as its name says; frames: of zstd, one after the other."""
    lines = [line(each) for each in entries]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zst":
        path.write_bytes(b"".join(frame(lines[start::frames]) for start in range(frames)))
    else:
        data = b"".join(lines)
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def frame(lines: Sequence[bytes], level: int = 1, window_log: int = WINDOW_LOG) -> bytes:
    """A frame of zstd, which does not say how long its content is: the archives are made from a pipe."""
    import zstandard

    parameters = zstandard.ZstdCompressionParameters.from_level(level, window_log=window_log)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return stream.compress(b"".join(lines)) + stream.flush()


def write_requests(folder: Path, url: str, number: int = 6) -> list[tuple[str, str]]:
    """Write RS_2024-01.zst and RC_2024-01.zst: requests with two answers each, and everything that gives no row.

    url: of a PictureServer. Return the addresses of the pairs, in the order of their rows.
    """
    posts, answers, pairs = [], [], []
    for each in range(number):
        original = f"{url}/drawn/original/{each}.png"
        edits = [f"{url}/drawn/edited/{each}.png", f"{url}/drawn/original/{each + 1000}.png"]  # the second is no edit
        posts.append(post(each, url=original, title="Change the background, please", selftext=f"u/friend{each} asks"))
        for place, edit in enumerate(edits):
            answers.append(comment(f"c{each}{place}", each, f"[done]({edit})", score=20 - place))
            pairs.append((original, edit))
    posts += [
        post(900, selftext="[removed]", removed_by_category="moderator"),
        post(901, selftext="[deleted]", author="[deleted]"),
        post(902, url="https://example.org/no-picture"),
        post(903, url=f"{url}/drawn/original/903.png"),
    ]
    answers += [
        comment("bot", 0, author="AutoModerator"),
        comment("asker", 0, is_submitter=True),
        comment("thanks", 0, "Thank you!"),
        comment("orphan", 999),
    ]
    write(folder / "RC_2024-01.zst", answers)
    write(folder / "RS_2024-01.zst", posts)
    return pairs


class PictureServer(HttpServer):
    """Draws scenes: /drawn/original/NUMBER.png, and /drawn/edited/NUMBER.png on another background."""

    async def _drawn_route(self, request: Request) -> AsyncIterator[bytes]:
        yield answer(drawn(request.number, is_edited=request.names[1] == "edited"))


def drawn(number: int, *, is_edited: bool) -> bytes:
    scene = random_scene(random.Random(number), held_out=True, words="none")
    if is_edited:
        taken = (scene.background, *(thing.colour for thing in scene.things))
        scene = replace(scene, background=next(each for each in BACKGROUNDS if each not in taken))
    file = io.BytesIO()
    draw(scene, random.Random(number), 112, 112).image.save(file, "png")
    return file.getvalue()


@dataclass(frozen=True, kw_only=True)
class MeanColours(Stage):
    """The mean colours of both pictures of a row."""

    reads: ClassVar[tuple[str, ...]] = ("image", "edited_image")
    writes: ClassVar[Mapping[str, str]] = {"mean_colour": "vector", "edited_mean_colour": "vector"}

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        pairs = [[ImageStat.Stat(row[name]).mean for name in self.reads] for row in rows]
        return [dict(zip(self.writes, pair, strict=True)) for pair in pairs]


class ApiServer:
    """The endpoints of reddit's API that are asked for posts and answers; serves within `with`, from a thread.

    posts: of the listing `new`; `best`: of the listing `top`. answers: by the number of their post.
    refused: how many requests get 429 first. statuses: of paths that answer with an error.
    requests: how often each path was asked for. agents: the user agents that asked. queries: of all requests.
    """

    def __init__(
        self, posts: Sequence[Json], best: Sequence[Json] = (), answers: Mapping[str, Sequence[Json]] | None = None
    ) -> None:
        self.posts, self.best, self.answers = posts, best, answers or {}
        self.refused = 0
        self.statuses: dict[str, int] = {}
        self.requests: Counter[str] = Counter()
        self.agents: set[str] = set()
        self.queries: list[dict[str, str]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                server.reply(self, {"access_token": "t", "expires_in": 3600, "token_type": "bearer", "scope": "*"})

            def do_GET(self) -> None:
                server.reply(self, None)

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, folder: Path) -> dict[str, str]:
        """The variables with which PRAW asks this server; their file is written into a folder."""
        address = f"http://127.0.0.1:{self._server.server_port}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "praw.ini").write_text(f"[DEFAULT]\noauth_url={address}\nreddit_url={address}\n")
        return {"XDG_CONFIG_HOME": str(folder), "praw_client_id": "id", "praw_client_secret": "secret"}

    def reply(self, handler: BaseHTTPRequestHandler, found: Json | None) -> None:
        target = urlsplit(handler.path)
        self.requests[target.path] += 1
        self.agents.add(handler.headers["User-Agent"])
        status, headers = self.statuses.get(target.path, 200), {}
        if found is None and self.refused:
            self.refused -= 1
            status, headers = 429, {"Retry-After": "0"}
        if found is None:
            self.queries.append(dict(parse_qsl(target.query)))
        data = json.dumps(found or self.content(target.path, self.queries[-1])).encode()
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data)), "Content-Type": "application/json"}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    def content(self, path: str, query: Mapping[str, str]) -> Any:
        names = path.strip("/").split("/")
        if names[0] == "comments":
            found = [{"kind": "t1", "data": each} for each in self.answers.get(names[1], ())]
            return [listing([]), listing([*found, {"kind": "more", "data": {"children": ["x"]}}])]
        entries = self.best if names[-1] == "top" else self.posts
        start, limit = int(query.get("after", "0")), int(query.get("limit", "25"))
        end = start + min(limit, 100)
        page = [{"kind": "t3", "data": each} for each in entries[start:end]]
        return listing(page, str(end) if end < len(entries) else None)


def listing(entries: Sequence[Json], after: str | None = None) -> Json:
    return {"kind": "Listing", "data": {"children": list(entries), "after": after}}
