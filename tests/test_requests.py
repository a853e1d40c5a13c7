"""configs/demo-requests.yaml from a dump to triplets: who asked for what, both pictures, and which pairs are none."""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from tests.conftest import PROJECT, Run
from tests.http_server import Request, answer
from tests.reddit_dumps import PictureServer, comment, drawn, post, write
from vec_pipeline import load_annotations
from vec_pipeline.config import check_wiring, load_config
from vec_pipeline.engines import grammar
from vec_pipeline.sources.reddit import Reddit
from vec_pipeline.stages.structure import Structure

CONFIGS = [PROJECT / "configs" / name for name in ("requests.yaml", "demo-requests.yaml")]
POSTS, LIMIT_S = 8, 200
EDITS = ("edited", "resaved", "stranger")  # the answers to each post, and the flags that they deserve
FLAGS = {"edited": set(), "resaved": {"unchanged"}, "stranger": {"not_a_pair"}}


class Server(PictureServer):
    """Also saves an original again, at /resaved/NUMBER.jpg: smaller, and as a poor JPEG."""

    async def _resaved_route(self, request: Request) -> AsyncIterator[bytes]:
        image, content = Image.open(io.BytesIO(drawn(request.number, is_edited=False))), io.BytesIO()
        image.resize((90, 90), Image.Resampling.LANCZOS).save(content, "JPEG", quality=50)
        yield answer(content.getvalue())


def write_dumps(folder: Path, server: Server) -> dict[str, str]:
    """POSTS requests with three answers each; return the kind of each answer by the address of its picture."""
    posts, answers, kinds = [], [], {}
    for number in range(POSTS):
        original = server.url(f"/drawn/original/{number}.png")
        posts.append(post(number, url=original, title=f"Change the background of picture {number}", selftext="Please!"))
        paths = (f"/drawn/edited/{number}.png", f"/resaved/{number}.jpg", f"/drawn/original/{number + 1000}.png")
        for kind, path in zip(EDITS, paths, strict=True):
            kinds[server.url(path)] = kind
            answers.append(comment(f"{kind}{number}", number, f"[done]({server.url(path)})"))
    write(folder / "RS_2024-01.zst", posts)
    write(folder / "RC_2024-01.zst", answers)
    return kinds


def command(folder: Path, *options: object) -> list[str]:
    given = ("--config", "demo-requests", "--output", folder / "a.csv", "--set", "chunk_size=6", *options)
    return [sys.executable, "run.py", f"reddit:{folder}/dumps", *map(str, given)]


def run(folder: Path, *options: object) -> Run:
    return subprocess.run(
        command(folder, *options), cwd=PROJECT, capture_output=True, text=True, timeout=LIMIT_S, env=environment()
    )


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "REDDIT_SALT": "of the tests"}


@dataclass
class Finished:
    """A run that was killed in the middle, and a second one that went on to the end.

    asked, asked_again: for which pictures each has asked the server, and how often.
    stored: names of the pictures that lay beside the CSV in between.
    exported: addresses of the edited pictures that the export of docs/requests.md takes, sorted.
    """

    folder: Path
    server: Server
    kinds: dict[str, str]
    asked: Counter[str]
    asked_again: Counter[str]
    stored: set[str]
    rows_before: int
    second: Run
    rows: pd.DataFrame
    exported: list[str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    folder = tmp_path_factory.mktemp("requests")
    with Server() as server:
        kinds = write_dumps(folder / "dumps", server)
        rows_before = killed_in_the_middle(folder)
        asked, stored = Counter(server.requests), {path.name for path in (folder / "a.images").rglob("*.*")}
        second = run(folder)
        rows = load_annotations(folder / "a.csv")
        again = Counter(server.requests) - asked
        exported = exported_from(folder)
        yield Finished(folder, server, kinds, asked, again, stored, rows_before, second, rows, exported)


def exported_from(folder: Path) -> list[str]:
    page = (PROJECT / "docs" / "requests.md").read_text(encoding="utf-8")
    (printed,) = re.findall(r"`vec-pipeline (export [^`]+)`", page)
    places = {"output/requests.csv": folder / "a.csv", "shards": folder / "shards"}
    words = [str(places.get(word, word)) for word in shlex.split(printed)]
    subprocess.run([sys.executable, "-m", "vec_pipeline", *words], cwd=PROJECT, check=True)
    found = []
    for path in (folder / "shards").glob("*.tar"):
        with tarfile.open(path) as shard:
            files = [shard.extractfile(member) for member in shard if member.name.endswith(".json")]
            found += [json.load(file)["edited_url"] for file in files if file]
    return sorted(found)


def killed_in_the_middle(folder: Path) -> int:
    """Kill a run once its first rows are saved; return how many rows there are."""
    with subprocess.Popen(command(folder), cwd=PROJECT, env=environment(), stdout=subprocess.DEVNULL) as process:
        end_s = time.monotonic() + LIMIT_S
        while rows_in(folder / "a.csv") < 1:
            assert process.poll() is None and time.monotonic() < end_s
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    return rows_in(folder / "a.csv")


def rows_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") - 1 if path.exists() else 0


def test_every_answer_is_one_triplet(finished: Finished) -> None:
    assert finished.second.returncode == 0, finished.second.stderr
    rows = finished.rows
    assert len(rows) == 3 * POSTS == rows["image_path"].nunique()
    assert 0 < finished.rows_before < len(rows), "the first run was killed in the middle"
    assert set(rows["error"]) == {""}
    assert Counter(rows["edited_url"]) == dict.fromkeys(finished.kinds, 1)
    for row in rows.itertuples():
        number = row.post_id.removeprefix("p")
        assert row.original_url == finished.server.url(f"/drawn/original/{number}.png")
        assert (row.post_title, row.post_text) == (f"Change the background of picture {number}", "Please!")


def test_no_picture_is_downloaded_twice(finished: Finished) -> None:
    """But for those that were on their way when the run was killed."""
    assert len(finished.asked + finished.asked_again) == POSTS * 4
    again = finished.asked & finished.asked_again
    assert set(finished.asked_again.values()) <= {1}
    assert len(again) <= len(finished.asked) - len(finished.stored), "what was stored is not asked for again"
    before = finished.server.requests.copy()
    assert run(finished.folder, "--refresh", "--set", "flag.low_edit_difference=0").returncode == 0
    assert finished.server.requests == before
    assert "unchanged" not in " ".join(load_annotations(finished.folder / "a.csv")["flags"])


def test_flags_say_which_pairs_are_none(finished: Finished) -> None:
    for row in finished.rows.to_dict("records"):
        kind = finished.kinds[row["edited_url"]]
        raised = {*row["flags"].split()} & {"unchanged", "not_a_pair", "edit_unchanged"}
        assert raised == FLAGS[kind], (kind, row["pair_similarity"], row["pair_difference"])


def test_both_pictures_and_the_request_are_embedded(finished: Finished) -> None:
    rows = finished.rows
    originals = {row.post_id: row.image_vector for row in rows.itertuples()}
    for row in rows.itertuples():
        np.testing.assert_allclose(row.image_vector, originals[row.post_id], atol=1e-6)
        assert row.pair_similarity == pytest.approx(float(row.image_vector @ row.edited_vector), abs=1e-3)
    assert np.stack(rows["text_vector"]).shape == (3 * POSTS, 128)
    assert rows["edit_direction"].isna().all(), "which needs descriptions of both"


def test_the_request_is_structured_by_the_schema_of_the_configuration(finished: Finished) -> None:
    """The bundled Llama says nothing true here, but within the schema."""
    entry = structure_of(CONFIGS[1])
    schema = Structure(model="m", prompt="p", schema=entry["schema"]).answer_schema
    for row in finished.rows.to_dict("records"):
        assert grammar.parse(row["llama_extracted"], schema) == {name: row[name] for name in schema["properties"]}
    assert finished.rows.groupby("post_id")["task"].nunique().eq(1).all(), "the same request has the same answer"


def test_the_export_of_the_docs_leaves_out_what_teaches_nothing(finished: Finished) -> None:
    assert finished.exported == sorted(url for url, kind in finished.kinds.items() if kind == "edited")


def structure_of(path: Path) -> dict[str, object]:
    [entry] = [each for each in yaml.safe_load(path.read_text())["stages"] if each["use"] == "structure"]
    return dict(entry)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_configurations_fit_the_source_and_each_other(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    check_wiring(config.stages, Reddit.columns)
    columns = config.extra_columns(Reddit.columns)
    made = {name: columns[name] for name in columns if name not in Reddit.columns}
    assert list(made) == [
        *("clip_score", "edited_vector", "edited_clip_score", "pair_similarity", "pair_difference", "edit_direction"),
        *("task", "what", "where", "tone", "flags"),
    ]
    [structure] = [stage for stage in config.stages if isinstance(stage, Structure)]
    tasks = structure.answer_schema["properties"]["task"]["enum"]
    assert len(tasks) == 10
    production = str(structure_of(CONFIGS[0])["prompt"])
    assert [task for task in tasks if task not in production] == [], "the model is told the prompt alone"
