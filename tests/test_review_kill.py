"""A review server that is killed loses no correction that it has answered, and leaves no half of a bulk act.

VEC_REVIEW_KILLS sets how often it is killed.
"""

import contextlib
import os
import random
import signal
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2

from tests.rows import finished, write
from tests.test_serve import Server
from vec_pipeline import load_annotations

KILLS = int(os.environ.get("VEC_REVIEW_KILLS", "3"))
ROWS, BY_HAND = 120, 20  # rows; those that are corrected by hand, the others are changed by bulk acts
WRITERS = 3
SHORTEST_S, LONGEST_S = 0.05, 0.6  # of work until the server is killed


class Work:
    """What clients have asked for, and what was answered; writer 0 does bulk acts, another one corrects its own rows.

    asked, answered: the texts of a place in their order: of a row by its number, of those of bulk acts by `BY_HAND`.
    """

    def __init__(self) -> None:
        self.asked: dict[int, list[str]] = {}
        self.answered: dict[int, list[str]] = {}

    def note(self, place: int, text: str, response: httpx2.Response) -> None:
        assert response.status_code == 200, response.text
        self.answered.setdefault(place, []).append(text)

    def correct(self, client: httpx2.Client, place: int, text: str) -> None:
        self.asked.setdefault(place, []).append(text)
        changes = [{"row": place, "column": name, "value": text} for name in ("text", "description")]
        self.note(place, text, client.post("/v1/review/correct", json={"changes": changes, "who": text}))

    def bulk(self, client: httpx2.Client, text: str) -> None:
        self.asked.setdefault(BY_HAND, []).append(text)
        operation = {"kind": "set", "column": "text", "value": text}
        body = {"rows": list(range(BY_HAND, ROWS)), "operation": operation, "preview": False, "who": text}
        self.note(BY_HAND, text, client.post("/v1/review/bulk", json=body))

    def write(self, url: str, writer: int, attempt: int) -> None:
        """Work until the server is gone."""
        with contextlib.suppress(httpx2.TransportError), httpx2.Client(base_url=url, timeout=30) as client:
            for number in range(10_000):
                text = f"{attempt}.{writer}.{number}"
                if writer == 0:
                    self.bulk(client, text)
                else:
                    self.correct(client, writer + WRITERS * (number % 3), text)


def check(work: Work, client: httpx2.Client, csv: Path) -> None:
    """The last text of each place is the last that was answered, or one that was asked for after it, whole."""
    rows = client.post("/v1/review/rows", json={"rows": list(range(ROWS))}).json()
    now = [row["values"]["text"] for row in rows]
    assert len(set(now[BY_HAND:])) == 1  # all of a bulk act or nothing
    for place, asked in work.asked.items():
        answered = work.answered.get(place, [])
        possible = asked[asked.index(answered[-1]) :] if answered else [finished(place).values["text"], *asked]
        assert now[place] in possible, f"row {place}: {answered[-1:]} was answered"
        work.answered[place] = [now[place]] if now[place] in asked else []
    for row in rows[:BY_HAND]:
        if row["acts"]:
            assert row["values"]["text"] == row["values"]["description"]
            assert row["acts"]["text"] == row["acts"]["description"]
    assert load_annotations(csv)["text"].tolist() == now


def undo_and_redo(client: httpx2.Client) -> None:
    """The last act can be undone, with all of its changes, and done again."""

    def texts() -> list[Any]:
        found: list[Any] = client.post("/v1/review/rows", json={"rows": list(range(ROWS))}).json()
        return [row["values"] for row in found]

    before = texts()
    [last] = client.get("/v1/review/acts", params={"most": 1}).json()
    undone = client.post("/v1/review/undo", json={"act": last["id"]}).json()
    assert sum(old != new for old, new in zip(before, texts(), strict=True)) == len(undone["rows"]) > 0
    assert client.post("/v1/review/undo", json={"act": undone["act"]}).status_code == 200
    assert texts() == before


def test_every_answered_act_outlives_a_server_that_is_killed(tmp_path: Path) -> None:
    csv = write(tmp_path / "a.csv", [finished(number) for number in range(ROWS)])
    rng, work = random.Random(0), Work()
    for attempt in range(KILLS + 1):
        server = Server(csv, "--review-only")
        try:
            if attempt:
                check(work, server.client, csv)
                undo_and_redo(server.client)
            if attempt == KILLS:
                break
            writers = [threading.Thread(target=work.write, args=(server.url, each, attempt)) for each in range(WRITERS)]
            for thread in writers:
                thread.start()
            wait_for_an_answer(work, writers)
            time.sleep(rng.uniform(SHORTEST_S, LONGEST_S))
        finally:
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
            server.client.close()
        for thread in writers:
            thread.join(60)
        with closing(sqlite3.connect(tmp_path / "a.corrections.sqlite")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            counts = connection.execute("SELECT count(*) FROM changes GROUP BY act").fetchall()
            assert {count for (count,) in counts} <= {2, ROWS - BY_HAND}
    assert len(work.asked) > 1


def wait_for_an_answer(work: Work, writers: list[threading.Thread]) -> None:
    """Until each kind of act was answered once: a server that has just started is slow."""
    before = {place: len(texts) for place, texts in work.answered.items()}
    deadline_s = time.monotonic() + 20
    while not all(
        any(
            len(texts) > before.get(place, 0)
            for place, texts in list(work.answered.items())
            if (place == BY_HAND) == is_bulk
        )
        for is_bulk in (True, False)
    ):
        assert time.monotonic() < deadline_s and all(thread.is_alive() for thread in writers)
        time.sleep(0.01)
