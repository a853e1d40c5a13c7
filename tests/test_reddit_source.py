"""Requests for edits on reddit: archives and the API become pairs of pictures, however damaged they are."""

import json
import os
import random
import secrets
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import PRINT_PEAK_MB, PROJECT, Run
from tests.fakes import record_of
from tests.reddit_dumps import (
    BEGIN_S,
    HOUR_S,
    ApiServer,
    MeanColours,
    PictureServer,
    comment,
    drawn,
    frame,
    gallery,
    line,
    media,
    post,
    write,
    write_requests,
)
from tests.runs import Runs, annotate
from vec_pipeline import load_annotations
from vec_pipeline.contract import source_values
from vec_pipeline.downloads import Downloads
from vec_pipeline.pictures.metadata import NAMES
from vec_pipeline.record import COLUMNS, NotFound, Record, SourceOptions, UserError
from vec_pipeline.sources import content_of, open_source
from vec_pipeline.sources.reddit import Reddit, Table, places
from vec_pipeline.sources.reddit.places import DamagedError, lines_of, lines_with
from vec_pipeline.sources.reddit.posts import Entry, addresses_in, hash_of, number, picture_address, shown_text, text
from vec_pipeline.stages.open_image import open_image

Json = dict[str, Any]
NEEDLE = b'"PhotoshopRequest"'
RENAMED = ", ".join(f"{name}: edited_{name.replace('.', '_')}" for name in NAMES)
CONFIG = f"""
stages:
  - {{use: open_image, max_size_px: 112}}
  - use: open_image
    name: open_edited
    max_size_px: 112
    read: {{content: edited_content}}
    write: {{image: edited_image, has_pages: edited_pages, is_cut: edited_cut, {RENAMED}}}
  - use: tests.reddit_dumps.MeanColours
"""


@pytest.fixture(autouse=True)
def _salt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDDIT_SALT", "of the tests")
    monkeypatch.delenv("praw_client_id", raising=False)
    monkeypatch.delenv("praw_client_secret", raising=False)


def source_of(folder: Path, posts: Sequence[Any], answers: Sequence[Any], parameters: str = "") -> Reddit:
    write(folder / "RC_2024-01.zst", answers)
    write(folder / "RS_2024-01.zst", posts)
    return Reddit(f"reddit:{folder}{parameters}")


def names_of(source: Reddit) -> list[str]:
    """What of each key tells the pair: POST/ANSWER/NUMBER."""
    return [record.key.partition("#reddit/")[2] for record in source]


def pairs_of(source: Reddit) -> list[tuple[str, str]]:
    return [(record.values["original_url"], record.values["edited_url"]) for record in source]


def left_out(source: Reddit, what: str) -> str:
    """What the notes say of the posts or the answers that were left out."""
    return next((note.partition(": ")[2] for note in source.notes if note.startswith(f"{what} left out")), "")


# -- through the real program -------------------------------------------------------------------------------------


def run(folder: Path, source: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Run:
    config = folder / "config.yaml"
    config.write_text(CONFIG)
    command = [sys.executable, "run.py", source, "--config", config, "--output", folder / "out.csv", *arguments]
    return subprocess.run(
        list(map(str, command)),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(PROJECT), **(environment or {})},
    )


def test_a_run_makes_a_row_of_each_pair(tmp_path: Path) -> None:
    """Both pictures are fetched once each, opened and embedded; a rerun fetches nothing."""
    with PictureServer() as server:
        pairs = write_requests(tmp_path / "dumps", server.url(""), number=3)
        first = run(tmp_path, f"reddit:{tmp_path}/dumps")
        assert first.returncode == 0, first.stderr
        assert "r/PhotoshopRequest: 6 pairs of pictures in 7 posts\n" in first.stdout
        assert "posts left out: 2 deleted or removed, 1 without a picture, 1 without an edited picture" in first.stdout
        assert set(server.requests.values()) == {1}, "an original that has two answers is fetched once"
        assert len(server.requests) == len({address for pair in pairs for address in pair})
        before = (tmp_path / "out.csv").read_bytes()
        again = run(tmp_path, f"reddit:{tmp_path}/dumps")
        assert again.returncode == 0, again.stderr
        assert set(server.requests.values()) == {1}
        assert (tmp_path / "out.csv").read_bytes() == before
        check_rows(tmp_path, pairs)


def check_rows(folder: Path, pairs: Sequence[tuple[str, str]]) -> None:
    rows = load_annotations(folder / "out.csv").sort_values("image_path")
    assert "edited_content" not in rows.columns, "content is no column"
    assert sorted(zip(rows["original_url"], rows["edited_url"], strict=True)) == sorted(pairs)
    assert not any(rows["error"])
    assert set(rows["http_status"]) == set(rows["edited_http_status"]) == {200}
    options = SourceOptions(store=folder / "out.images")
    for row in rows.itertuples():
        original, edited = drawn_at(row.original_url), drawn_at(row.edited_url)
        assert content_of(row.image_path, options=options).read() == original
        assert content_of(row.edited_url, options=options).read() == edited
        np.testing.assert_allclose(row.mean_colour, mean_colour(original), atol=0.01)
        np.testing.assert_allclose(row.edited_mean_colour, mean_colour(edited), atol=0.01)


def drawn_at(address: str) -> bytes:
    """The picture that the server has at an address."""
    *_, kind, name = address.split("/")
    return drawn(int(name.removesuffix(".png")), is_edited=kind == "edited")


def mean_colour(content: bytes) -> list[float]:
    (values,) = MeanColours().run(None, [dict.fromkeys(("image", "edited_image"), open_image(content, 112))], 1)
    return list(values["mean_colour"])


def test_pictures_that_are_gone_are_rows_with_an_error(tmp_path: Path) -> None:
    removed = "/redirect/1.png?to=https://i.imgur.com/removed.png"
    with PictureServer() as server:
        fine = server.url("/drawn/edited/0.png")
        originals = ["/drawn/original/0.png", "/gone/1.png", "/drawn/original/2.png", removed, "/page/image/png/4.png"]
        edits = [fine, fine, server.url("/gone/2.png"), fine, fine]
        posts = [post(each, url=server.url(path)) for each, path in enumerate(originals)]
        write(tmp_path / "d/RS.zst", posts)
        write(tmp_path / "d/RC.zst", [comment(f"c{each}", each, address) for each, address in enumerate(edits)])
        assert run(tmp_path, f"reddit:{tmp_path}/d", "--set", "download_attempts=1").returncode == 1
    rows = load_annotations(tmp_path / "out.csv").set_index("post_id")
    assert dict(rows["error"]) == {
        "p0": "",
        "p1": "download: HTTP404: Not Found",
        "p2": "download: HTTP404: Not Found (edited_content)",
        "p3": "download: Placeholder: the server redirects to a picture that stands for a missing one",
        "p4": "download: NotAnImage: the server sent a web page",
    }
    assert rows["edited_http_status"]["p2"] == 404
    assert rows["http_status"]["p1"] == 404


def test_addresses_in_private_networks_are_refused(tmp_path: Path) -> None:
    with PictureServer() as server:
        write_requests(tmp_path / "dumps", server.url(""), number=1)
        assert run(tmp_path, f"reddit:{tmp_path}/dumps", "--set", "allow_private=false").returncode == 1
        assert not server.requests
    assert all(load_annotations(tmp_path / "out.csv")["error"].str.startswith("download: PrivateAddress"))


def test_of_a_failed_pair_nothing_is_left_to_fetch(tmp_path: Path) -> None:
    """Neither the second picture, nor a request for it: the row has an error."""
    with PictureServer() as server:
        (record,) = source_of(
            tmp_path, [post(1, url=server.url("/gone/1.png"))], [comment("c1", 1, server.url("/x.png"))]
        )
        with closing(Downloads(SourceOptions(download_attempts=1), tmp_path / "downloads")) as downloads:
            (record,) = downloads.ahead([record])
        assert list(server.requests) == ["/gone/1.png"]
    assert record.error == "download: HTTP404: Not Found"
    assert not {"content", "edited_content"} & record.values.keys()


def test_the_second_picture_ends_with_the_stages(tmp_path: Path) -> None:
    record = record_of("a")
    record.values["edited_content"] = record.values["content"]
    with closing(Runs(tmp_path)) as make:
        (done,) = annotate(make(source_columns={"edited_content": "content"}), [record])
    assert "edited_content" not in done.values


def test_what_a_source_declares_as_content_can_be_read() -> None:
    with pytest.raises(UserError, match="the source gave 'edited_content' as a str, and declares it as content"):
        source_values({"edited_content": "a.png"}, {"edited_content": "content"})


# -- archives -----------------------------------------------------------------------------------------------------


def test_a_record_has_the_request_and_where_it_comes_from(tmp_path: Path) -> None:
    asked = post(1, title="Remove &amp; replace", selftext="the *dog*", link_flair_text="Paid", score=7)
    source = source_of(tmp_path, [asked], [comment("c1", 1, score=3)])
    (record,) = source
    assert source.failures == []
    assert record.key == "https://i.redd.it/original1.png#reddit/p1/c1/1"
    assert record.values.pop("content").link == "https://i.redd.it/original1.png"
    assert record.values.pop("edited_content").link == "https://i.redd.it/editc1.png"
    authors = {record.values.pop("post_author"), record.values.pop("answer_author")}
    assert len(authors) == 2
    assert all(len(each) == 16 for each in authors)
    assert record.values == {
        "post_id": "p1",
        "post_title": "Remove & replace",
        "post_text": "the *dog*",
        "post_score": 7,
        "post_comments": 2,
        "post_flair": "Paid",
        "post_time": "2024-01-01T01:00:00+00:00",
        "post_link": "https://www.reddit.com/comments/p1/",
        "post_pictures": 1,
        "original_url": "https://i.redd.it/original1.png",
        "answer_id": "c1",
        "answer_score": 3,
        "answer_time": "2024-01-01T01:10:00+00:00",
        "answer_link": "https://www.reddit.com/comments/p1/_/c1/",
        "edited_url": "https://i.redd.it/editc1.png",
    }
    assert record.values.keys() <= source.columns.keys()
    assert not COLUMNS.keys() & source.columns.keys()


def test_posts_come_by_time_and_answers_by_score(tmp_path: Path) -> None:
    posts = [post(2), post(1), post(3, created_utc=BEGIN_S)]
    scores = {"a1": 1, "b1": 9, "c1": 5, "d1": 9, "a2": 0, "a3": -4}
    answers = [comment(name, int(name[1]), score=score) for name, score in scores.items()]
    source = source_of(tmp_path, posts, answers)
    expected = ["p3/a3/1", "p1/b1/1", "p1/d1/1", "p1/c1/1", "p2/a2/1"]
    assert names_of(source) == expected
    assert left_out(source, "answers") == "1 beyond the best 3"
    assert names_of(source) == expected, "it can be read again"
    assert source.notes[0] == "r/PhotoshopRequest: 5 pairs of pictures in 3 posts"
    best = Reddit(f"reddit:{tmp_path}?answers=1")
    assert names_of(best) == ["p3/a3/1", "p1/b1/1", "p2/a2/1"]
    assert best.notes[0] == "r/PhotoshopRequest: 3 pairs of pictures in 3 posts"


@pytest.mark.parametrize("first", [0, 1])
def test_what_was_retrieved_last_counts(tmp_path: Path, first: int) -> None:
    """Whichever archive is read first: of a post, of an answer, and of one that was deleted meanwhile."""
    old = [post(1, score=1), comment("c1", 1, score=1), post(2), comment("c2", 2)]
    new = [
        post(1, score=50, _meta={"retrieved_2nd_on": BEGIN_S + 90 * HOUR_S}),
        comment("c1", 1, score=40, retrieved_on=BEGIN_S + 90 * HOUR_S),
        post(2, selftext="[deleted]", retrieved_on=BEGIN_S + 90 * HOUR_S),
    ]
    write(tmp_path / f"{first}.zst", old)
    write(tmp_path / f"{1 - first}.zst", new)
    source = Reddit(f"reddit:{tmp_path}")
    (record,) = source
    assert (record.values["post_score"], record.values["answer_score"]) == (50, 40)
    assert left_out(source, "posts") == "1 deleted or removed"


def test_of_two_without_a_time_the_one_read_last_counts(tmp_path: Path) -> None:
    posts = [post(1, score=score, retrieved_on=None) for score in (1, 2, 3)]
    (record,) = source_of(tmp_path, posts, [comment("c1", 1)])
    assert record.values["post_score"] == 3


REMOVED: dict[str, Json] = {
    "by a moderator": {"removed_by_category": "moderator"},
    "by its author": {"selftext": "[deleted]", "author": "[deleted]"},
    "text removed": {"selftext": "[removed]"},
    "deleted between two retrievals": {"_meta": {"was_deleted_later": True}},
    "a cross-post of what was removed": {"crosspost_parent_list": [post(9, removed_by_category="reddit")]},
}


@pytest.mark.parametrize("changes", REMOVED.values(), ids=REMOVED)
def test_removed_posts_have_no_rows(tmp_path: Path, changes: Json) -> None:
    source = source_of(tmp_path, [post(1, **changes), post(2)], [comment("c1", 1), comment("c2", 2)])
    assert names_of(source) == ["p2/c2/1"]
    assert left_out(source, "posts") == "1 deleted or removed"


ANSWERS_LEFT_OUT: dict[str, tuple[Json, str]] = {
    "deleted": ({"body": "[deleted]"}, "1 deleted or removed"),
    "removed": ({"body": "[removed]"}, "1 deleted or removed"),
    "deleted later": ({"_meta": {"was_deleted_later": True}}, "1 deleted or removed"),
    "moderators' bot": ({"author": "AutoModerator"}, "1 by bots"),
    "a bot": ({"author": "Photoshop_Bot"}, "1 by bots"),
    "who asked": ({"is_submitter": True}, "1 by who asked"),
    "who asked, in old archives": ({"author": "asker1"}, "1 by who asked"),
    "thanks": ({"body": "Lovely! https://example.org/page"}, "1 without a picture"),
    "the original again": ({"body": "https://i.redd.it/original1.png"}, "1 without a picture"),
}


@pytest.mark.parametrize(("changes", "why"), ANSWERS_LEFT_OUT.values(), ids=ANSWERS_LEFT_OUT)
def test_answers_that_are_no_edits_have_no_rows(tmp_path: Path, changes: Json, why: str) -> None:
    source = source_of(tmp_path, [post(1)], [comment("c1", 1, score=9, **changes), comment("c2", 1)], "?answers=1")
    assert names_of(source) == ["p1/c2/1"], "it takes no place among the best"
    assert left_out(source, "answers") == why


def test_an_account_that_is_gone_is_no_reason(tmp_path: Path) -> None:
    source = source_of(tmp_path, [post(1, author="[deleted]")], [comment("c1", 1, author="[deleted]")])
    (record,) = source
    assert record.values["post_author"] == record.values["answer_author"] == ""


def test_people_who_like_robots_are_no_bots(tmp_path: Path) -> None:
    assert names_of(source_of(tmp_path, [post(1)], [comment("c1", 1, author="Bot_Fan")])) == ["p1/c1/1"]


def test_a_disk_that_is_full_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_full(self: Table, entries: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    source = source_of(tmp_path, [post(1)], [])
    monkeypatch.setattr(Table, "add", is_full)
    with pytest.raises(UserError, match=r"disk is full.*: free some disk space, or set TMPDIR to another folder"):
        list(source)


def test_answers_to_answers_and_to_unknown_posts(tmp_path: Path) -> None:
    answers = [comment("c1", 1), comment("c2", 1, parent_id="t1_c1"), comment("c3", 99)]
    source = source_of(tmp_path, [post(1), post(2)], answers)
    assert names_of(source) == ["p1/c1/1"]
    assert "answers to posts that were not found: 1" in source.notes
    assert left_out(source, "posts") == "1 without an edited picture"


BROKEN = [
    b'{"subreddit":"PhotoshopRequest","title":\n',
    b'["PhotoshopRequest"]\n',
    b'{"subreddit":"PhotoshopRequest"}\n',
    {"subreddit": "PhotoshopRequest", "id": "x"},
    post(1, id=7),
    post(1, id="../../etc"),
    comment("c9", 1, link_id="t3_../x", parent_id="t3_../x"),
    b'{"subreddit":"PhotoshopRequest","a":' + b"[" * 100_000 + b"\n",
]


def test_lines_that_are_broken_are_counted(tmp_path: Path) -> None:
    source = source_of(tmp_path, [*BROKEN, post(1)], [*BROKEN, comment("c1", 1)])
    assert names_of(source) == ["p1/c1/1"]
    assert f"lines that are neither posts nor comments: {2 * len(BROKEN)}" in source.notes
    assert source.failures == []


WRONG: list[Any] = [
    None,
    True,
    -1,
    1e400,
    "",
    "x",
    "\ud83d",
    [],
    [None],
    [[]],
    {},
    {"a": None},
    {"items": [1]},
    "9" * 400,
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda value: repr(value)[:20])
def test_values_of_other_types_are_missing(tmp_path: Path, wrong: Any) -> None:
    """All at once are something else, or not there: the post still is what its link says, and can be saved."""
    needed = ("id", "subreddit", "title", "link_id", "parent_id", "body", "url", "author")
    posts, answers = [post(1), post(2)], [comment("c1", 1), comment("c2", 2)]
    for entry in (posts[0], answers[0]):
        entry |= {name: wrong for name in (*entry, "preview", "_meta") if name not in needed}
    posts[0]["removed_by_category"] = answers[0]["is_submitter"] = None
    posts[1] = {name: posts[1][name] for name in needed if name in posts[1]}
    answers[1] = {name: answers[1][name] for name in needed if name in answers[1]}
    records = list(source_of(tmp_path, posts, answers))
    assert {record.values["edited_url"] for record in records} == {
        f"https://i.redd.it/edit{c}.png" for c in ("c1", "c2")
    }
    json.dumps([{**record.values, "content": "", "edited_content": ""} for record in records], allow_nan=False)
    "".join(value for record in records for value in record.values.values() if isinstance(value, str)).encode()


def test_numbers_and_texts_that_are_none() -> None:
    for wrong in (None, True, 1e400, float("nan"), "1e400", "9" * 400, 10**400, "x", [1]):
        assert number({"score": wrong}, "score") is None
    assert (number({"score": "2.0"}, "score"), number({"score": 0.5}, "score")) == (2, 0.5)
    assert text({"title": " a\0b\ud83d "}, "title") == "ab?"


def test_numbers_that_are_texts(tmp_path: Path) -> None:
    source = source_of(tmp_path, [post(1, created_utc=str(BEGIN_S), score="12")], [comment("c1", 1)])
    (record,) = source
    assert (record.values["post_score"], record.values["post_time"]) == (12, "2024-01-01T00:00:00+00:00")


@pytest.mark.parametrize("huge", [1e30, -1e25, 10**25, "99999999999999999999", 2**53])
def test_numbers_that_no_table_can_hold_are_missing(tmp_path: Path, huge: Any) -> None:
    names = ("score", "created_utc", "retrieved_on", "num_comments")
    wrong = dict.fromkeys(names, huge) | {"_meta": {"retrieved_2nd_on": huge}}
    source = source_of(tmp_path, [post(1, **wrong), post(2)], [comment("c1", 1, **wrong), comment("c2", 2)])
    records = {record.key.partition("#reddit/")[2]: record.values for record in source}
    assert records.keys() == {"p1/c1/1", "p2/c2/1"}
    assert records["p1/c1/1"]["post_score"] is records["p1/c1/1"]["answer_score"] is None
    assert number({"score": 2**53 - 1}, "score") == 2**53 - 1


def test_names_of_media_that_are_none(tmp_path: Path) -> None:
    found = {"b\ud800": media("", s={}), "../x": media("", s={}), "ü": media("", s={}), "b-_1": media("", s={})}
    source = source_of(tmp_path, [post(1)], [comment("c1", 1, "![img](a)", media_metadata=found)])
    assert [edited for _, edited in pairs_of(source)] == ["https://i.redd.it/b-_1.png"]


def test_what_cannot_be_kept_is_counted() -> None:
    entries = [Entry(id="p1", title="\ud800"), Entry(id="p2", score=2**70), Entry(id="p\ud800"), Entry(id="p4")]
    with closing(Table()) as table:
        assert table.add((entry, 0.0) for entry in entries) == 3
        assert table.add([(Entry(id="p5"), 2**70)]) == 1
        assert [entry.id for entry in table.posts()] == ["p4"]


def test_lines_that_cannot_be_kept_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vec_pipeline.sources.reddit.retrieved_s", lambda found: 2**70 if found["id"] == "p2" else 0)
    source = source_of(tmp_path, [post(2), post(1)], [comment("c1", 1)])
    assert names_of(source) == ["p1/c1/1"]
    assert "lines that are neither posts nor comments: 1" in source.notes


def test_a_time_beyond_the_calendar_is_missing(tmp_path: Path) -> None:
    (record,) = source_of(tmp_path, [post(1, created_utc=10**15)], [comment("c1", 1)])
    assert record.values["post_time"] == ""


def test_other_subreddits_are_passed_over(tmp_path: Path) -> None:
    other = post(1, subreddit="pics", title="PhotoshopRequest", crosspost_parent_list=[post(9)])
    source = source_of(tmp_path, [other, post(2)], [comment("c1", 1), comment("c2", 2)])
    assert names_of(source) == ["p2/c2/1"]
    assert names_of(Reddit(f"reddit:{tmp_path}?subreddit=pics")) == []


def test_spaces_behind_colons(tmp_path: Path) -> None:
    posts = [json.dumps(post(1), indent=None, separators=(", ", ": ")).encode() + b"\n"]
    assert names_of(source_of(tmp_path, posts, [comment("c1", 1)])) == ["p1/c1/1"]


@pytest.mark.parametrize("name", ["photoshoprequest", "PHOTOSHOPREQUEST", "PhotoshopRequest"])
def test_case_does_not_count_in_names_of_subreddits(tmp_path: Path, name: str) -> None:
    source = source_of(tmp_path, [post(1), post(2, subreddit="photoshopREQUEST")], [comment("c1", 1), comment("c2", 2)])
    for parameters in (f"?subreddit={name}", ""):
        source = Reddit(f"reddit:{tmp_path}{parameters}")
        assert names_of(source) == ["p1/c1/1", "p2/c2/1"]
        assert source.failures == []


NOTHING_THERE = "the archives hold nothing of r/PhotoshopRequest: correct its name, or name other archives"
NO_POSTS = "the archives hold answers in r/PhotoshopRequest and no posts: add those of posts (RS_...)"
NO_ANSWERS = "the archives hold posts of r/PhotoshopRequest and no answers: add those of comments (RC_...)"


def test_archives_of_another_subreddit(tmp_path: Path) -> None:
    """Also where a line names the one that is asked for elsewhere, or in place of a name has something else."""
    others = [post(1, subreddit="pics"), post(2, subreddit=None), post(3, subreddit=["PhotoshopRequest"])]
    source = source_of(tmp_path, others, [comment("c1", 1, subreddit="pics")])
    assert names_of(source) == []
    assert source.failures == [NOTHING_THERE]


def test_archives_of_answers_alone(tmp_path: Path) -> None:
    write(tmp_path / "RC_2024-01.zst", [comment("c1", 1), comment("c2", 1)])
    source = Reddit(f"reddit:{tmp_path}")
    assert names_of(source) == []
    assert source.failures == [NO_POSTS]


def test_archives_of_posts_alone(tmp_path: Path) -> None:
    write(tmp_path / "RS_2024-01.zst", [post(1), post(2), post(3)])
    source = Reddit(f"reddit:{tmp_path}")
    assert names_of(source) == []
    assert source.failures == []
    assert left_out(source, "posts") == "3 without an edited picture"
    assert NO_ANSWERS in source.notes
    write(tmp_path / "RC_2024-01.zst", [comment("c1", 1)])
    assert names_of(source) == [], "what was read is kept"
    source = Reddit(f"reddit:{tmp_path}")
    assert names_of(source) == ["p1/c1/1"]
    assert not [note for note in source.notes if "archives" in note]


def test_archives_are_named_as_they_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A month of all of reddit takes minutes, in which no row comes."""
    source = source_of(tmp_path, [post(1)], [comment("c1", 1)])
    sizes = [f"{(tmp_path / name).stat().st_size / 1e3:.1f} kB" for name in ("RC_2024-01.zst", "RS_2024-01.zst")]
    for _ in range(2):
        assert names_of(source) == ["p1/c1/1"]
    assert capsys.readouterr().out.splitlines() == [
        f"reading RC_2024-01.zst ({sizes[0]}), 1 of 2",
        f"reading RS_2024-01.zst ({sizes[1]}), 2 of 2",
    ]


def test_the_line_of_an_archive_replaces_the_bar_of_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = source_of(tmp_path, [post(1)], [comment("c1", 1)])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert names_of(source) == ["p1/c1/1"]
    assert all(each.startswith("\r\033[Kreading R") for each in capsys.readouterr().out.split("\n")[:-1])


def test_sizes_of_archives(tmp_path: Path) -> None:
    path = tmp_path / "a.zst"
    for size, shown in ((0, "0.0 kB"), (94_200, "94.2 kB"), (999_900_000, "999.9 MB"), (12_340_000_000, "12.3 GB")):
        with open(path, "wb") as file:
            file.truncate(size)
        assert places.shown_size(str(path)) == shown
    path.unlink()
    assert places.shown_size(str(path)) == "gone"


# -- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".zst", ".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.zst"])
def test_formats_of_archives(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / "reddit/submissions" / f"RS{suffix}", [post(1)])
    write(tmp_path / "reddit/comments" / f"RC{suffix}", [comment("c1", 1)])
    (tmp_path / "reddit/README.txt").write_bytes(line(comment("c9", 1)))
    assert names_of(Reddit(f"reddit:{tmp_path}/reddit")) == ["p1/c1/1"]
    files = ",".join(str(path) for path in tmp_path.rglob(f"R*{suffix}"))
    assert names_of(Reddit(f"reddit:{files}")) == ["p1/c1/1"]


def test_archives_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{each % 3}/{each}.jsonl", []) for each in range(30)]
    assert places.archives_in(str(tmp_path)) == sorted(map(str, paths))


def test_several_frames_of_zstd(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zst", [post(each) for each in range(10)], frames=3)
    assert len(list(lines_of(str(path), NEEDLE))) == 10
    path.write_bytes(path.read_bytes() + frame([]))
    assert len(list(lines_of(str(path), NEEDLE))) == 10


PEAK_MB = f"""
import sys
from vec_pipeline.sources.reddit.places import lines_of
print(sum(1 for _ in lines_of(sys.argv[1], b'"PhotoshopRequest"')))
{PRINT_PEAK_MB}
"""


def test_memory_does_not_grow_with_how_far_an_archive_was_compressed(tmp_path: Path) -> None:
    """64 kB of repeated lines would become several hundred MB at once."""
    peaks_mb = []
    for name, repeats in (("few", 100), ("many", 400_000)):
        path = tmp_path / f"{name}.zst"
        parts = [[line(post(0))], [line(post(1, subreddit="pics"))] * repeats, [line(post(2))]]
        path.write_bytes(b"".join(frame(each, window_log=20) for each in parts))  # a window is kept, whatever its size
        assert path.stat().st_size < 100_000
        program = [sys.executable, "-c", PEAK_MB, str(path)]
        done = subprocess.run(program, cwd=PROJECT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found, peak_mb = map(int, done.stdout.split())
        assert found == 2
        peaks_mb.append(peak_mb)
    assert peaks_mb[1] - peaks_mb[0] < 16, peaks_mb


def compressed(content: bytes, **options: Any) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(**options).compress(content)


def flushed_often(content: bytes) -> bytes:
    """Of blocks that end early."""
    import zstandard

    stream, data = zstandard.ZstdCompressor(write_checksum=True).compressobj(), b""
    for begin in range(0, len(content), 5000):
        data += stream.compress(content[begin : begin + 5000]) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    return data + stream.flush()


FRAMES: dict[str, Callable[[bytes], bytes]] = {
    "a checksum": lambda content: compressed(content, write_checksum=True),
    "neither checksum nor size": lambda content: compressed(content, write_checksum=False, write_content_size=False),
    "several threads": lambda content: compressed(content, threads=2),
    "fast": lambda content: compressed(content, level=-5),
    "short": lambda content: compressed(content[:7]) + compressed(content[7:]),
    "blocks that end early": flushed_often,
    "from a pipe": lambda content: frame([content]),
}
FILLED = b"\0" * 4098
SKIPPED = b"\x5a\x2a\x4d\x18" + (70_000).to_bytes(4, "little") + b"\x28\xb5\x2f\xfd" * 17_500  # of no content


@pytest.mark.parametrize("make", FRAMES.values(), ids=FRAMES)
def test_frames_of_any_kind(tmp_path: Path, make: Callable[[bytes], bytes]) -> None:
    """Alone and one after the other, with what zstd skips, and zeros that fill the file up."""
    noise = random.Random(0).randbytes(400_000)  # of which zstd makes blocks that are not compressed
    content = b"".join([*many(100), noise, *[line(post(1))] * 3000, b"a" * 1_000_000, *many(100)])
    data, path = make(content), tmp_path / "a.zst"
    for whole, times in ((data, 1), (data * 2, 2), (SKIPPED + data + SKIPPED + data + SKIPPED, 2), (data + FILLED, 1)):
        path.write_bytes(whole)
        with open(path, "rb") as file:
            blocks = list(places.blocks_of(file, path.name))
        assert b"".join(blocks) == content * times
        assert max(map(len, blocks)) <= 1 << 17


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_cut_at_any_byte_is_a_failure(tmp_path: Path, cut: int) -> None:
    path, whole = tmp_path / "a.zst", frame([line(post(1))])
    for data in (whole[:-cut], whole[:cut], whole + whole[:cut]):
        path.write_bytes(data)
        with pytest.raises(DamagedError):
            list(lines_of(str(path), NEEDLE))


def many(number: int) -> list[bytes]:
    """Lines that zstd cannot make much shorter, so that a part of the file holds some of them."""
    return [line(post(each, selftext=random.Random(each).randbytes(500).hex())) for each in range(number)]


@pytest.mark.parametrize("kind", [".zst", ".jsonl.gz"])
def test_what_comes_before_a_cut_is_read(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"RS{kind}", [post(0), *many(1500)])
    write(tmp_path / "RC.zst", [comment("c1", 0)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    source = Reddit(f"reddit:{tmp_path}")
    assert names_of(source) == ["p0/c1/1"]
    (failure,) = source.failures
    assert failure.startswith(f"{path} is damaged (")
    assert failure.endswith("): what comes before was read")
    posts = int(source.notes[0].partition(" in ")[2].split()[0].replace(",", ""))
    assert 500 < posts < 1000


DAMAGED = {
    "damage in the middle": lambda data: data[: len(data) // 2] + b"\0" * 100 + data[len(data) // 2 + 100 :],
    "no zstd": lambda data: b"hello\n" * 1000,
    "empty": lambda data: b"",
    "a second frame is cut off": lambda data: data + data[:100],
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_damaged_archives_do_not_end_the_run(tmp_path: Path, damage: Any) -> None:
    damaged = write(tmp_path / "RS_1.zst", many(300))
    damaged.write_bytes(damage(damaged.read_bytes()))
    write(tmp_path / "RS_2.zst", [post(5000)])
    write(tmp_path / "RC.zst", [comment("c1", 5000)])
    source = Reddit(f"reddit:{tmp_path}")
    for _ in range(2):  # a source may be read again
        assert names_of(source) == ["p5000/c1/1"]
        assert len(source.failures) == 1
    assert str(damaged) in source.failures[0]


def test_damage_in_gzip_is_a_failure(tmp_path: Path) -> None:
    """Also where zlib says so, and not the checksum; what comes before is used."""
    lines = [post(0), comment("c1", 0), *many(1500)]
    for seed in range(8):
        path = write(tmp_path / f"{seed}/RS.jsonl.gz", lines)
        data = bytearray(path.read_bytes())
        middle = len(data) // 2
        data[middle : middle + 200] = random.Random(seed).randbytes(200)
        path.write_bytes(data)
        source = Reddit(f"reddit:{path}")
        assert names_of(source) == ["p0/c1/1"]
        (failure,) = source.failures
        assert failure.startswith(f"{path} is damaged (")


def test_the_end_before_a_cut_is_read_of_gzip_too(tmp_path: Path) -> None:
    """Less than a block."""
    path = write(tmp_path / "RS.jsonl.gz", [post(0), comment("c1", 0), *many(40)])
    path.write_bytes(path.read_bytes()[:-20])
    source = Reddit(f"reddit:{path}")
    assert names_of(source) == ["p0/c1/1"]
    assert source.notes[0].endswith(" 39 posts"), "all but the line that is cut, and one that comes twice"


def test_parts_of_gzip_follow_each_other(tmp_path: Path) -> None:
    path = write(tmp_path / "RS.jsonl.gz", [post(0)])
    path.write_bytes(path.read_bytes() + write(tmp_path / "b.gz", [comment("c1", 0)]).read_bytes() + b"\0" * 100_000)
    source = Reddit(f"reddit:{path}")
    assert names_of(source) == ["p0/c1/1"]
    assert source.failures == []


def test_a_file_without_lines_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "LONGEST_LINE_BYTES", 2_000_000)
    (tmp_path / "a.jsonl").write_bytes(b"x" * 10_000_000)
    with pytest.raises(DamagedError, match="no lines"):
        list(lines_of(str(tmp_path / "a.jsonl"), NEEDLE))


@given(st.lists(st.sampled_from([b"", b"ab", b"xAb", b"aBx", b"a", b"B", b"xx"])), st.data())
def test_lines_are_found_wherever_blocks_end(lines: list[bytes], data: st.DataObject) -> None:
    """In all cuts into blocks, with and without an end of the last line."""
    whole = b"\n".join(lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)))))
    blocks = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    found = [each.removesuffix(b"\n") for each in lines_with(b"Ab", iter(blocks))]
    assert found == [each for each in lines if b"ab" in each.lower()]


# -- pictures -----------------------------------------------------------------------------------------------------

ADDRESSES = {
    "https://i.redd.it/abc.jpg": "https://i.redd.it/abc.jpg",
    "https://preview.redd.it/abc.jpeg?width=640&auto=webp&s=123": "https://i.redd.it/abc.jpeg",
    "https://preview.redd.it/remove-this-v0-abc.png?width=64": "https://i.redd.it/abc.png",
    "https://i.redd.it/abc.gif": "",
    "https://i.imgur.com/AbCd123.png": "https://i.imgur.com/AbCd123.png",
    "http://imgur.com/AbCd123": "https://i.imgur.com/AbCd123.jpg",
    "https://m.imgur.com/AbCd123?r": "https://i.imgur.com/AbCd123.jpg",
    "https://imgur.com/r/photoshoprequest/AbCd123": "https://i.imgur.com/AbCd123.jpg",
    "https://i.imgur.com/AbCd123.gifv": "",
    "https://i.imgur.com/AbCd123.mp4": "",
    "https://imgur.com/a/AbCd1": "",
    "https://imgur.com/gallery/AbCd1": "",
    "https://notimgur.com/AbCd123": "",
    "https://i.imgur.com/abcdefg.JPG": "https://i.imgur.com/abcdefg.jpg",
    "https://imgur.com/please-fix-this-AbCdEfG": "https://i.imgur.com/AbCdEfG.jpg",
    "https://imgur.com/a/please-fix-this-AbCdEfG": "",
    "https://i.imgur.com/abcdefg_d.webp?maxwidth=640&shape=thumb": "https://i.imgur.com/abcdefg.jpg",
    "https://i.imgur.com/abcdefg_d.mp4": "",
    "https://www.reddit.com/media?url=https%3A%2F%2Fi.redd.it%2Fabc.png": "https://i.redd.it/abc.png",
    "https://reddit.com/media?url=https%3A%2F%2Fpreview.redd.it%2Fx-v0-abc.png%3Fwidth%3D9": "https://i.redd.it/abc.png",
    "https://www.reddit.com/media?url=https%3A%2F%2Fi.redd.it%2Fa%00b.png": "",
    "https://www.reddit.com/media": "",
    "https://www.reddit.com/media?url=" * 2000 + "https://i.redd.it/abc.png": "",
    "https://example.org/dir/x.JPG?size=2#top": "https://example.org/dir/x.JPG?size=2",
    "https://example.org/page": "",
    "https://[broken/x.png": "",
    "https://example.org/a_(x)_1.png": "https://example.org/a_(x)_1.png",
    "https://example.org/it's_3.png": "https://example.org/it's_3.png",
    "/r/x/a.png": "",
    "a.png": "",
    "ftp://example.org/a.png": "",
    "https://example.org/a\nb.png": "",
    "https://example.org/a b.png": "https://example.org/a b.png",
}


@pytest.mark.parametrize(("address", "picture"), ADDRESSES.items(), ids=[each[:80] for each in ADDRESSES])
def test_addresses_of_pictures(address: str, picture: str) -> None:
    assert picture_address(address) == picture


A, B, C = (f"https://i.redd.it/{name}.png" for name in "abc")
SITE = "https://upload.example.org/o"
X, Y, Z = (f"{SITE}/{name}.png" for name in ("a_(x)_1", "b_(x_(y))_2", "it's_3"))
POSTS: dict[str, tuple[Json, list[str]]] = {
    "a link": ({"url": A}, [A]),
    "a link that a redirect replaces": ({"url": "https://redd.it/x", "url_overridden_by_dest": A}, [A]),
    "a link with parentheses": ({"url": X}, [X]),
    "a link with one parenthesis": ({"url": f"{SITE}/a_(x.png"}, [f"{SITE}/a_(x.png"]),
    "a link with an apostrophe": ({"url": f"{SITE}/it's_3.png"}, [f"{SITE}/it's_3.png"]),
    "a link with brackets": ({"url": f"{SITE}/a[1].png"}, [f"{SITE}/a[1].png"]),
    "a link that is no address": ({"url": "/r/x/a.png", "selftext": A}, [A]),
    "a link with space around": ({"url": f" {A}\n"}, [A]),
    "a text": ({"url": "https://www.reddit.com/r/x/", "selftext": f"see [this]({A}), and {B}."}, [A, B]),
    "escapes": (
        {"url": "", "selftext": "https://example.org/a\\_b.png?x=1&amp;y=2"},
        ["https://example.org/a_b.png?x=1&y=2"],
    ),
    "the same twice": ({"url": A, "selftext": A}, [A]),
    "pictures in the text": ({"url": "", "selftext": "text", "media_metadata": {"b": media(B)}}, [B]),
    "a gallery, in its order": (gallery(C, A, B), [C, A, B]),
    "a gallery, and a link in the text": ({**gallery(C, A), "selftext": f"like {B}, not {A}"}, [C, A, B]),
    "a gallery of previews": (gallery("https://preview.redd.it/a.png?width=9&amp;s=1"), [A]),
    "media without addresses": (
        {**gallery(A), "media_metadata": {"media0": media("", s={})}},
        ["https://i.redd.it/media0.png"],
    ),
    "an animation": ({**gallery(A), "media_metadata": {"media0": media(A, e="AnimatedImage", m="image/gif")}}, []),
    "what could not be processed": ({**gallery(A), "media_metadata": {"media0": media(A, status="failed")}}, []),
    "a cross-post": ({"url": "", "crosspost_parent_list": [post(9, url=B)]}, [B]),
    "the preview of a page": ({"url": "https://example.org/", "preview": {"images": [{"source": {"url": A}}]}}, [A]),
    "a frame of a video": ({"url": "", "is_video": True, "preview": {"images": [{"source": {"url": A}}]}}, []),
    "no picture": ({"url": "https://example.org/"}, []),
}


@pytest.mark.parametrize(("changes", "pictures"), POSTS.values(), ids=POSTS)
def test_pictures_of_posts(tmp_path: Path, changes: Json, pictures: list[str]) -> None:
    source = source_of(tmp_path, [post(1, **changes)], [comment("c1", 1)])
    records = list(source)
    assert [record.values["original_url"] for record in records] == pictures[:1]
    assert [record.values["post_pictures"] for record in records] == [len(pictures)] * bool(pictures)
    assert left_out(source, "posts") == ("" if pictures else "1 without a picture")


def test_cross_posts_and_albums_are_counted(tmp_path: Path) -> None:
    posts = [
        post(1, crosspost_parent_list=[post(9, url=A, selftext="the red one")], title="And remove the car"),
        post(2, url="https://imgur.com/a/AbCd1"),
        post(3, selftext="the picture above, not https://imgur.com/a/AbCd9"),
    ]
    albums = "https://imgur.com/a/AbCd2 or https://imgur.com/gallery/AbCd3, no: https://imgur.com/a/AbCd2"
    answers = [comment("c1", 1), comment("c3", 3, albums)]
    source = source_of(tmp_path, posts, answers)
    (record,) = source
    assert (record.values["post_title"], record.values["post_text"]) == ("And remove the car", "the red one")
    assert "cross-posts: 1, with the pictures of the posts that they repeat" in source.notes
    assert "albums of imgur: 3 not opened, which needs a key of imgur's" in source.notes


ANSWERS: dict[str, tuple[Json, list[str]]] = {
    "links": ({"body": f"one {A} two [b]({B})"}, [A, B]),
    "links with parentheses": ({"body": f"{X}, [b]({Y}) ({Z})"}, [X, Y, Z]),
    "links whose parentheses are escaped": ({"body": f"[b]({SITE}/a\\_\\(x\\)\\_1.png)"}, [X]),
    "a parenthesis that begins after a link": ({"body": f"{A}.(mine), ({B}(with {C})"}, [A, B, C]),
    "links in parentheses": ({"body": f"(see {A}) (or ({B})), {X})"}, [A, B, X]),
    "links right after each other": ({"body": f"[a]({A})[b]({B})({C})"}, [A, B, C]),
    "links in quotes": ({"body": f"'{A}', ('{B}'); '{X}'"}, [A, B, X]),
    "links in quotes, one after the other": ({"body": f"['{A}','{B}';'{X}']"}, [A, B, X]),
    "a link whose owner is named": ({"body": f"{A}'s colours"}, [A]),
    "uploaded": ({"body": "![img](a)", "media_metadata": {"a": media(A)}}, [A]),
    "stickers": ({"body": "x", "media_metadata": {"giphy|a": media(A), "b": media(B)}}, [B]),
}


@pytest.mark.parametrize(("changes", "pictures"), ANSWERS.values(), ids=ANSWERS)
def test_pictures_of_answers(tmp_path: Path, changes: Json, pictures: list[str]) -> None:
    pairs = pairs_of(source_of(tmp_path, [post(1)], [comment("c1", 1, **changes)]))
    assert pairs == [("https://i.redd.it/original1.png", each) for each in pictures]


def test_as_many_edits_as_originals_are_paired_in_order(tmp_path: Path) -> None:
    edits = [f"https://i.redd.it/edit{each}.png" for each in range(3)]
    answers = [comment("c2", 1, " ".join(edits[:2]), score=9), comment("c3", 1, " ".join(edits))]
    source = source_of(tmp_path, [post(1, **gallery(A, B))], answers)
    assert pairs_of(source) == [(A, edits[0]), (B, edits[1]), *((A, each) for each in edits)]
    assert names_of(source) == ["p1/c2/1", "p1/c2/2", "p1/c3/1", "p1/c3/2", "p1/c3/3"]


def test_links_are_found_at_once_in_any_text() -> None:
    begun = time.process_time()
    for part in ("https://", "https://x(", "https://x((a)", "https://x(a)'", "(", "https://'", "https://x(a'b("):
        addresses_in("https://x/((" + part * 5_000)
    assert time.process_time() - begun < 5


# -- names of users -----------------------------------------------------------------------------------------------


def test_no_name_of_a_user_is_kept(tmp_path: Path) -> None:
    said = "thanks u/Some_Friend, /u/Some_Friend and https://www.reddit.com/user/Some_Friend/ at https://example.org/u/page"
    asked = post(1, selftext=said, title="for u/Some_Friend", link_flair_text="u/some_friend")
    (record,) = source_of(tmp_path, [asked], [comment("c1", 1, permalink="/user/editor_c1/x")])
    shown = json.dumps({name: str(value) for name, value in record.values.items()}) + record.key
    for name in ("Some_Friend", "asker1", "editor_c1"):
        assert name.lower() not in shown.lower()
    friend = record.values["post_title"].removeprefix("for ")
    assert record.values["post_flair"] == friend, "case does not count"
    assert record.values["post_text"] == f"thanks {friend}, {friend} and {friend}/ at https://example.org/u/page"


NAMED = [  # how a text names a user, and what is left of it beside the hash
    ("u/some\\_user\\_x", "u/{}", "some_user_x"),
    ("see www.reddit.com/u/some_user", "see u/{}", "some_user"),
    ("reddit.com/user/some_user", "u/{}", "some_user"),
    ("https://m.www.reddit.com/u/some_user", "u/{}", "some_user"),
    ("http://web.archive.org/web/2024/https://old.reddit.com/u/some_user", "http://web.archive.org/web/2024/u/{}", ""),
    ("https://www.reddit.com/r/u_some_user/comments/1", "u/{}/comments/1", "some_user"),
    ("/r/u_some_user", "u/{}", "some_user"),
    ("_u/some_user_", "_u/{}_", "some_user"),
    ("__u/some_user__", "__u/{}__", "some_user"),
    ("...u/some_user", "...u/{}", "some_user"),
    ("u/some_user_", "u/{}", "some_user_"),
    ("u/" + 30 * "a", "u/{}", 30 * "a"),
    ("u/ab", "u/{}", "ab"),
    ("https://example.org/u/page", "https://example.org/u/page", ""),
    ("https://example.org/user/page", "https://example.org/user/page", ""),
    ("either/or menu/list", "either/or menu/list", ""),
]


@pytest.mark.parametrize(("said", "shown", "name"), NAMED, ids=[each[0][:40] for each in NAMED])
def test_names_in_texts_are_hashed_as_a_whole(said: str, shown: str, name: str) -> None:
    assert shown_text({"selftext": said}, "selftext", b"key") == shown.format(hash_of(name or "some_user", b"key"))


def test_names_are_found_at_once_in_any_text() -> None:
    """A search that tries each beginning to the end would take minutes."""
    begun = time.process_time()
    for said in ("a" * 40_000, "a." * 20_000, "u/" * 20_000, "reddit.com/" * 4_000, "https://" * 5_000):
        shown_text({"selftext": said}, "selftext", b"key")
    assert time.process_time() - begun < 5


def author(folder: Path, **options: Any) -> str:
    (record,) = Reddit(f"reddit:{folder}", options=SourceOptions(**options))
    return str(record.values["post_author"])


def test_the_salt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source_of(tmp_path / "d", [post(1)], [comment("c1", 1)])
    of_tests = author(tmp_path / "d")
    assert of_tests == author(tmp_path / "d", salt=tmp_path / "unused")
    assert not (tmp_path / "unused").exists()
    monkeypatch.setenv("REDDIT_SALT", "another")
    assert author(tmp_path / "d") != of_tests
    monkeypatch.delenv("REDDIT_SALT")
    assert author(tmp_path / "d") != author(tmp_path / "d"), "without a place to keep one, it is random"
    salt = tmp_path / "new" / "out.salt"
    assert author(tmp_path / "d", salt=salt) == author(tmp_path / "d", salt=salt)
    assert stat.S_IMODE(salt.stat().st_mode) == 0o600
    kept = salt.read_text()
    assert author(tmp_path / "d", salt=tmp_path / "other.salt") != author(tmp_path / "d", salt=salt)
    assert salt.read_text() == kept
    salt.write_text("no salt")
    with pytest.raises(UserError, match=f"{salt} cannot be used .*: delete it, or set REDDIT_SALT"):
        author(tmp_path / "d", salt=salt)


@pytest.mark.parametrize("kept", ["", "ab" * 31, "ab" * 33])
def test_a_salt_of_another_length_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str) -> None:
    """What a kill or a full disk has left would hash without a key."""
    monkeypatch.delenv("REDDIT_SALT")
    source_of(tmp_path / "d", [post(1)], [comment("c1", 1)])
    salt = tmp_path / "out.salt"
    salt.write_text(kept)
    with pytest.raises(UserError, match=f"{salt} cannot be used .*32 bytes.*: delete it, or set REDDIT_SALT"):
        author(tmp_path / "d", salt=salt)
    assert salt.read_text() == kept


def test_a_salt_gets_its_name_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDDIT_SALT")
    source_of(tmp_path / "d", [post(1)], [comment("c1", 1)])

    def is_full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", is_full)
        with pytest.raises(UserError, match="No space left on device"):
            author(tmp_path / "d", salt=tmp_path / "s" / "out.salt")
    assert not list((tmp_path / "s").iterdir())
    author(tmp_path / "d", salt=tmp_path / "s" / "out.salt")
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["out.salt"]


def test_of_two_that_begin_at_once_the_first_salt_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDDIT_SALT")
    source_of(tmp_path / "d", [post(1)], [comment("c1", 1)])
    salt, other = tmp_path / "out.salt", "ab" * 32
    make = secrets.token_hex

    def meanwhile(length: int) -> str:
        salt.write_text(other)
        return make(length)

    monkeypatch.setattr(secrets, "token_hex", meanwhile)
    found = author(tmp_path / "d", salt=salt)
    assert salt.read_text() == other
    assert found == author(tmp_path / "d", salt=salt)


def test_parts_of_a_run_need_one_salt(tmp_path: Path) -> None:
    """Each would make its own, and the same author would have another hash in each part."""
    with PictureServer() as server:
        write_requests(tmp_path / "dumps", server.url(""), number=1)
        refused = run(tmp_path, f"reddit:{tmp_path}/dumps", "--shard", "0/1", environment={"REDDIT_SALT": ""})
        assert refused.returncode == 2
        assert "the parts of a run need the same key: set REDDIT_SALT for all of them" in refused.stderr
        assert not (tmp_path / "out.salt").exists()
        done = run(tmp_path, f"reddit:{tmp_path}/dumps", "--shard", "0/1")
    assert done.returncode == 0, done.stderr


# -- the API ------------------------------------------------------------------------------------------------------


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Makes PRAW ask a server of ours, in this process."""
    import praw.config

    def use(server: ApiServer) -> ApiServer:
        for name, value in server.environment(tmp_path / "praw").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(praw.config.Config, "CONFIG", None)  # it reads its files once
        return server

    return use


def test_the_api_is_read_page_by_page(api: Any) -> None:
    """Both listings, 100 posts a request and 1,000 at most; answers of each post that has some, once."""
    posts = [post(each, num_comments=0) for each in range(1, 1105)]
    best = [post(5000), posts[0]]
    with api(ApiServer(posts, best, {"p5000": [comment("c1", 5000)]})) as server:
        source = Reddit("reddit:r/PhotoshopRequest")
        assert names_of(source) == ["p5000/c1/1"]
    assert source.notes[0] == "r/PhotoshopRequest: 1 pairs of pictures in 1,001 posts"
    assert not any("neither posts nor comments" in note for note in source.notes), "what stands for more is no comment"
    assert server.requests["/r/PhotoshopRequest/new"] == 10
    assert server.requests["/r/PhotoshopRequest/top"] == 1
    assert sum(count for path, count in server.requests.items() if path.startswith("/comments/")) == 1
    assert {query["limit"] for query in server.queries} == {"100"}
    (agent,) = server.agents
    assert agent.startswith(f"{sys.platform}:vec-pipeline:")


def test_who_asks_says_how_to_reach_them(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with api(ApiServer([post(1)])) as server:
        list(Reddit("reddit:r/pics", options=SourceOptions(contact="https://me.example")))
        monkeypatch.setenv("praw_user_agent", "my own agent")
        list(Reddit("reddit:r/pics"))
    agents = sorted(server.agents)
    assert "(+https://me.example)" in agents[0]
    assert agents[1].startswith("my own agent")


def test_archives_and_api_are_one(api: Any, tmp_path: Path) -> None:
    """A post of both comes once, as the API has it now; answers of both count."""
    source_of(
        tmp_path / "d", [post(1, score=1), post(2)], [comment("c1", 1, score=1), comment("c2", 1), comment("c3", 2)]
    )
    online = [post(1, score=99, retrieved_on=None), post(3)]
    answers = {"p1": [comment("c1", 1, score=77, retrieved_on=None)], "p3": [comment("c4", 3)]}
    with api(ApiServer(online, answers=answers)) as server:
        source = Reddit(f"reddit:{tmp_path}/d,r/PhotoshopRequest")
        records = {record.key.partition("#reddit/")[2]: record.values for record in source}
    assert list(records) == ["p1/c1/1", "p1/c2/1", "p2/c3/1", "p3/c4/1"]
    assert (records["p1/c1/1"]["post_score"], records["p1/c1/1"]["answer_score"]) == (99, 77)
    assert not server.requests["/comments/p2"], "it is not asked for posts that it did not list"


def test_an_api_without_posts(api: Any) -> None:
    with api(ApiServer([])):
        source = Reddit("reddit:r/pics")
        assert names_of(source) == []
    assert source.failures == ["no post of r/pics was found: correct its name"]


@pytest.mark.parametrize("name", ["PhotoshopRequest", "photoshoprequest"])
def test_archives_count_beside_the_api_however_the_name_is_spelt(api: Any, tmp_path: Path, name: str) -> None:
    source_of(tmp_path / "d", [post(each) for each in (1, 2, 3)], [comment(f"c{each}", each) for each in (1, 2, 3)])
    with api(ApiServer([post(4)], answers={"p4": [comment("c4", 4)]})):
        source = Reddit(f"reddit:{tmp_path}/d,r/{name}?subreddit=PHOTOSHOPREQUEST")
        assert names_of(source) == [f"p{each}/c{each}/1" for each in (1, 2, 3, 4)]
        assert source.failures == []


def test_archives_that_add_nothing_to_the_api_are_said(api: Any, tmp_path: Path) -> None:
    folder = write(tmp_path / "pics/RS.zst", [post(1, subreddit="pics")]).parent
    write(tmp_path / "answers/RC.zst", [comment("c1", 1)])
    with api(ApiServer([post(4)], answers={"p4": [comment("c4", 4)]})):
        source = Reddit(f"reddit:{folder},r/PhotoshopRequest")
        assert names_of(source) == ["p4/c4/1"]
        assert NOTHING_THERE in source.notes
        source = Reddit(f"reddit:{tmp_path}/answers,r/PhotoshopRequest")
        assert names_of(source) == ["p4/c4/1"]
    assert NO_POSTS in source.notes
    assert source.failures == []


def test_a_busy_api_is_asked_again(api: Any) -> None:
    with api(ApiServer([post(1)], answers={"p1": [comment("c1", 1)]})) as server:
        source = Reddit("reddit:r/PhotoshopRequest")
        server.refused = 2
        assert names_of(source) == ["p1/c1/1"]
        assert source.failures == []
        source = Reddit("reddit:r/PhotoshopRequest")
        server.refused = 99
        assert names_of(source) == []
        assert source.failures[0] == (
            "r/PhotoshopRequest cannot be listed to its end (HTTP 429: it has enough to do): run again later"
        )


def test_answers_that_the_api_does_not_send(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is said, the other posts go on, and after three in a row it is not asked any more."""
    posts = [post(each) for each in range(1, 9)]
    with api(ApiServer(posts, answers={f"p{each}": [comment(f"c{each}", each)] for each in range(1, 9)})) as server:
        server.statuses = {f"/comments/p{each}": 404 for each in (1, 2, 4, 5, 6)}
        source = Reddit("reddit:r/PhotoshopRequest")
        assert names_of(source) == ["p3/c3/1"]
    assert len(source.failures) == 5
    assert (
        source.failures[0]
        == "https://www.reddit.com/comments/p1/: its answers cannot be read (HTTP 404): run again later"
    )
    assert not server.requests["/comments/p7"]


def test_a_source_that_is_read_again_asks_for_nothing_twice(api: Any, tmp_path: Path) -> None:
    """As --refresh does; what was not asked for before the first reading ended is asked for then."""
    source_of(tmp_path / "d", [post(3), BROKEN[0]], [comment("c3", 3)])
    answers = {f"p{each}": [comment(f"c{each}", each), {"id": 7}] for each in (1, 2)}
    with api(ApiServer([post(1), post(2)], answers=answers)) as server:
        server.statuses = {"/r/PhotoshopRequest/top": 403}
        source = Reddit(f"reddit:{tmp_path}/d,r/PhotoshopRequest")
        first = next(iter(source))
        assert not server.requests["/comments/p2"]
        found = [list(source) for _ in range(3)]
    assert found[0] == found[1] == found[2]
    assert found[0][0] == first, "names have the same hashes"
    assert [record.key.partition("#reddit/")[2] for record in found[0]] == ["p1/c1/1", "p2/c2/1", "p3/c3/1"]
    assert max(server.requests[path] for path in server.requests if "access_token" not in path) == 1
    assert len(source.failures) == 1
    assert "lines that are neither posts nor comments: 3" in source.notes
    assert source.notes[0] == "r/PhotoshopRequest: 3 pairs of pictures in 3 posts"


def test_an_api_that_fails_in_the_middle(api: Any) -> None:
    with api(ApiServer([post(1)], answers={"p1": [comment("c1", 1)]})) as server:
        server.statuses = {"/r/PhotoshopRequest/top": 403}
        source = Reddit("reddit:r/PhotoshopRequest")
        assert names_of(source) == ["p1/c1/1"]
        assert source.failures == ["r/PhotoshopRequest cannot be listed to its end (HTTP 403): run again later"]


def test_refused_credentials_end_the_run(api: Any) -> None:
    with api(ApiServer([post(1)])) as server:
        server.statuses = {"/api/v1/access_token": 401}
        with pytest.raises(UserError, match="refuses the credentials: correct praw_client_id and praw_client_secret"):
            list(Reddit("reddit:r/PhotoshopRequest"))


def test_a_run_over_the_api(tmp_path: Path) -> None:
    with PictureServer() as pictures:
        original, edited = pictures.url("/drawn/original/1.png"), pictures.url("/drawn/edited/1.png")
        with ApiServer([post(1, url=original)], answers={"p1": [comment("c1", 1, edited)]}) as server:
            environment = {**server.environment(tmp_path / "praw"), "REDDIT_SALT": ""}
            done = run(tmp_path, "reddit:r/PhotoshopRequest", environment=environment)
    assert done.returncode == 0, done.stderr
    (row,) = load_annotations(tmp_path / "out.csv").to_dict("records")
    assert (row["original_url"], row["edited_url"], row["error"]) == (original, edited, "")
    assert (tmp_path / "out.salt").exists()


# -- arguments ----------------------------------------------------------------------------------------------------

MISTAKES = {
    "reddit:": "names no place: write reddit:FOLDER of archives, or reddit:r/NAME for the API",
    "reddit:nowhere": "nowhere does not exist: name a folder of archives, or r/NAME for the API of reddit",
    "reddit:EMPTY": "holds no archive (.zst, .jsonl, .ndjson): name another folder",
    "reddit:DUMPS?answer=3": "has no parameter 'answer': it takes subreddit, answers",
    "reddit:DUMPS?answers=0": "answers is '0': write a number from 1 on",
    "reddit:DUMPS?answers=some": "answers is 'some': write a number from 1 on",
    "reddit:DUMPS?subreddit=a/b": "'a/b' is not one subreddit: name one for each source",
    "reddit:r/pics,r/art": "'art, pics' is not one subreddit: name one for each source",
    "reddit:r/PhotoshopRequest": "register one at https://www.reddit.com/prefs/apps and set the environment variables",
}


@pytest.mark.parametrize(("argument", "message"), MISTAKES.items())
def test_mistakes_are_named(tmp_path: Path, argument: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "empty").mkdir()
    write(tmp_path / "dumps/RS.zst", [post(1)])
    argument = argument.replace("EMPTY", str(tmp_path / "empty")).replace("DUMPS", str(tmp_path / "dumps"))
    with pytest.raises(UserError) as caught:
        open_source([argument])
    assert message in str(caught.value)
    assert isinstance(caught.value, NotFound) == (argument == "reddit:nowhere")


@pytest.mark.parametrize(
    ("library", "argument"), [("zstandard", "reddit:DUMPS"), ("praw", "reddit:r/PhotoshopRequest")]
)
def test_libraries_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, argument: str
) -> None:
    write(tmp_path / "RS.zst", [post(1)])
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf"needs {library}.*: pip install 'vec-pipeline\[requests\]'"):
        open_source([argument.replace("DUMPS", str(tmp_path))])


def test_which_arguments_are_requests(tmp_path: Path) -> None:
    """Also a file that ends as lists do; an address with another fragment is none."""
    write(tmp_path / "RS.jsonl", [post(1)])
    assert isinstance(open_source([f"reddit:{tmp_path}/RS.jsonl"]), Reddit)
    assert isinstance(open_source(["https://i.redd.it/a.png#reddit/p1/c1/1"]), Reddit)
    assert not isinstance(open_source(["https://i.redd.it/a.png#part"]), Reddit)
    assert not isinstance(open_source(["https://i.redd.it/a.png"]), Reddit)


def test_a_key_is_its_original(tmp_path: Path) -> None:
    (record,) = source_of(tmp_path, [post(1)], [comment("c1", 1)])
    (again,) = open_source([record.key])
    assert again == Record(record.key, {"content": record.values["content"]})


def test_a_key_is_no_source_of_a_run(tmp_path: Path) -> None:
    """It would be a row without a request, and with --refresh erase what the row holds."""
    key = "http://127.0.0.1/o.png#reddit/p1/a1/1"
    refused = run(tmp_path, key)
    assert refused.returncode == 2
    assert f"{key} is a row's key, without its request: name the archives or the API" in refused.stderr
    assert not (tmp_path / "out.csv").exists()


def test_a_home_folder_and_an_archive_named_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    source_of(tmp_path / "with, comma", [post(1)], [comment("c1", 1)])
    assert names_of(Reddit("reddit:~/with, comma")) == ["p1/c1/1"]
    path = write(tmp_path / "all.jsonl", [post(1), comment("c1", 1), BROKEN[0]])
    source = Reddit(f"reddit:{path},{path}")
    assert names_of(source) == ["p1/c1/1"]
    assert "lines that are neither posts nor comments: 1" in source.notes
