"""How fast monthly archives of reddit are read, and whether memory grows with them.

    .venv/bin/python benchmarks/reddit.py

Invents a frame of comments, of which a few are of one subreddit; the archives repeat it. Another archive is of that
subreddit alone. All times are CPU seconds, because other programs may run beside it. The others read one frame:
`zstd -d | jq` (left out where they are not installed), and zstandard with json.loads for each line.
"""

import argparse
import json
import random
import resource
import shutil
import string
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from tests.reddit_dumps import SUBREDDIT, comment, frame, line, post  # noqa: E402

LINES = 40_000  # of a frame
SHARE = 0.0005  # of lines that are of the subreddit
ANSWERS, SHARE_OF_PICTURES = 9, 0.3
WORDS, SUBREDDITS = 20_000, 3000
LEVEL, WINDOW_LOG = 12, 27
READ = """
import sys, time
from vec_pipeline.sources.reddit import Reddit
source, begun_s = Reddit("reddit:" + sys.argv[1]), time.process_time()
rows = len(list(source))
print(rows, time.process_time() - begun_s)
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024)
"""
PARSE = """
import io, json, sys, time, zstandard
begun_s, rows = time.process_time(), 0
with open(sys.argv[1], "rb") as file:
    for line in io.BufferedReader(zstandard.ZstdDecompressor(max_window_size=2**31).stream_reader(file)):
        rows += json.loads(line).get("subreddit") == sys.argv[2]
print(rows, time.process_time() - begun_s)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 80], help="of each archive, of about 6 MB")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = folder / "1.zst"
        plain = b"".join(Inventor(random.Random(0)).lines())
        first.write_bytes(frame([plain], level=LEVEL, window_log=WINDOW_LOG))
        ratio = len(plain) / first.stat().st_size
        print(f"lines of {len(plain) / LINES:,.0f} bytes, compressed {ratio:.1f} to 1 (level {LEVEL}); CPU seconds")
        print("| | compressed MB | MB/s | peak MB |\n|---|---|---|---|")
        for path in [repeated(first, times) for times in options.frames]:
            rows, seconds, peak_mb = map(float, python(READ, path)[-3:])
            print(f"| this source, {rows:,.0f} rows | {row(path, seconds)} | {peak_mb:.0f} |")
        single = folder / "single.zst"
        single.write_bytes(frame(list(Inventor(random.Random(0)).lines_of_one()), level=LEVEL, window_log=WINDOW_LOG))
        rows, seconds, peak_mb = map(float, python(READ, single)[-3:])
        said = f"of one subreddit, {rows:,.0f} rows, {LINES / seconds:,.0f} lines/s"
        print(f"| this source, {said} | {row(single, seconds)} | {peak_mb:.0f} |")
        seconds = float(python(PARSE, first, SUBREDDIT)[1])
        print(f"| zstandard, json.loads of each line | {row(first, seconds)} | |")
        if shutil.which("jq") and shutil.which("zstd"):
            command = f"zstd -dc --long=31 {first} | jq -c 'select(.subreddit == \"{SUBREDDIT}\")' > {folder}/found"
            seconds = of_children(lambda: subprocess.run(command, shell=True, check=True))
            print(f"| zstd -d, jq | {row(first, seconds)} | |")


def row(path: Path, seconds: float) -> str:
    return f"{path.stat().st_size / 1e6:.0f} | {path.stat().st_size / 1e6 / seconds:.1f}"


def python(program: str, *arguments: object) -> list[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.split()


def of_children(what: Callable[[], Any]) -> float:
    """CPU seconds of the processes that it starts and waits for."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = used()
    what()
    return used() - before


def repeated(first: Path, times: int) -> Path:
    path = first.with_name(f"{times}-times.zst")
    with open(path, "wb") as file:
        for _ in range(times):
            file.write(first.read_bytes())
    return path


class Inventor:
    """Invents words, names and comments, as unlike each other as real ones are."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._words = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(WORDS)]
        self._weights = list(accumulate(1 / place for place in range(1, WORDS + 1)))  # as in languages
        self._subreddits = [self._text(1).capitalize() + self._name(3) for _ in range(SUBREDDITS)]

    def lines(self) -> Iterator[bytes]:
        for number in range(LINES):
            if self._rng.random() < SHARE:
                yield line(post(number))
                yield line(comment(f"c{number}", number))
            else:
                yield line(self._comment())

    def lines_of_one(self) -> Iterator[bytes]:
        """An archive of one subreddit: posts, each with answers, of which some have a picture."""
        for number in range(0, LINES, ANSWERS + 1):
            yield line(post(number, title=self._text(8), selftext=self._text(40), author=self._name(9)))
            for _ in range(ANSWERS):
                picture = f" https://i.redd.it/{self._name(13)}.png" * (self._rng.random() < SHARE_OF_PICTURES)
                of_post = comment(self._name(7), number, self._text(self._rng.randint(3, 60)) + picture)
                yield line({**self._comment(), **of_post, "author": self._name(9)})

    def _comment(self) -> dict[str, Any]:
        subreddit, of_post, name = self._rng.choice(self._subreddits), self._name(7), self._name(7)
        return {
            **comment(name, 0, self._text(self._rng.randint(3, 60))),
            **OTHER_FIELDS,
            "author": self._text(1) + self._name(4),
            "author_fullname": f"t2_{self._name(8)}",
            "link_id": f"t3_{of_post}",
            "parent_id": f"t1_{self._name(7)}",
            "permalink": f"/r/{subreddit}/comments/{of_post}/{self._text(5).replace(' ', '_')}/{name}/",
            "score": self._rng.randint(-3, 300),
            "subreddit": subreddit,
            "subreddit_id": f"t5_{self._name(5)}",
            "subreddit_name_prefixed": f"r/{subreddit}",
        }

    def _text(self, words: int) -> str:
        return " ".join(self._rng.choices(self._words, cum_weights=self._weights, k=words))

    def _name(self, length: int) -> str:
        return "".join(self._rng.choices(string.ascii_lowercase + string.digits, k=length))


OTHER_FIELDS: dict[str, Any] = json.loads("""
{"all_awardings": [], "associated_award": null, "author_flair_background_color": null, "author_flair_css_class": null,
"author_flair_richtext": [], "author_flair_template_id": null, "author_flair_text": null, "author_flair_type": "text",
"author_patreon_flair": false, "author_premium": false, "can_gild": true, "collapsed_because_crowd_control": null,
"collapsed_reason": null, "comment_type": null, "gilded": 0, "gildings": {}, "no_follow": true, "removal_reason": null,
"send_replies": true, "subreddit_type": "public", "top_awarded_type": null, "total_awards_received": 0,
"treatment_tags": [], "unrepliable_reason": null}
""")


if __name__ == "__main__":
    main()
