"""The server as clients see it: rows for pictures, limits and refusals, and nothing lost when it ends."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import EXAMPLES, PROJECT
from tests.test_speak import needs_espeak
from vec_pipeline import load_annotations
from vec_pipeline.commands.serve.wishes import missing_inputs
from vec_pipeline.record import COLUMNS
from vec_pipeline.stages.describe import Describe
from vec_pipeline.stages.read_text import ReadText

CONFIG = PROJECT / "configs" / "demo.yaml"
FLOWER, CAT, CUP = (EXAMPLES / name for name in ("red-flower.png", "purple-cat.png", "orange-cup-XZWH.png"))
STARTS_S = 60


class Server:
    """A server in a process of its own."""

    def __init__(self, csv: Path | None, *options: str, config: Path = CONFIG) -> None:
        where = ["--csv", str(csv)] if csv else ["--ephemeral"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vec_pipeline", "serve", "--config", str(config), "--port", "0", *where, *options],
            cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(config.parent)},  # for stages beside it
        )  # fmt: skip
        assert self.process.stdout
        line = self.process.stdout.readline()
        found = re.match(r"(http://([\d.]+):(\d+))(?: annotates pictures|/review reviews)", line)
        assert found, line + self.process.stdout.read()
        self.url, self.host, self.port = found[1], found[2], int(found[3])
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def post(self, *pictures: Path | bytes, **options: Any) -> httpx2.Response:
        """Upload pictures; `params` and `headers` as they are, other options as fields of the form."""
        others = {name: options.pop(name) for name in ("params", "headers") if name in options}
        contents = [each if isinstance(each, bytes) else each.read_bytes() for each in pictures]
        files = [("file", (f"../../{number}.php", content)) for number, content in enumerate(contents)]
        return self.client.post("/v1/annotations", files=files, data=options, **others)

    def end(self) -> int:
        """Ask it to end, and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(60)
        self.client.close()
        return status


@contextlib.contextmanager
def running(csv: Path | None, *options: str, config: Path = CONFIG) -> Iterator[Server]:
    server = Server(csv, *options, config=config)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()
        server.client.close()


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served") / "annotations.csv"


@pytest.fixture(scope="module")
def server(csv: Path) -> Iterator[Server]:
    with running(csv) as server:
        server.post(FLOWER)
        yield server


def id_of(response: httpx2.Response) -> str:
    return response.headers["location"].rpartition("/")[2]


# --- rows


def test_an_upload_is_answered_with_its_row_which_is_in_the_csv(server: Server, csv: Path) -> None:
    response = server.post(FLOWER)
    row = response.json()
    assert response.status_code == 200
    assert row["description"] == "A red flower on a green background, at the top."
    assert len(row["image_vector"]) == len(row["text_vector"]) * 2
    assert row["error"] == ""
    table = load_annotations(csv)
    assert list(row) == list(table.columns)
    [saved] = [each for _, each in table.iterrows() if each["image_path"] == row["image_path"]]
    assert saved["description"] == row["description"]
    assert saved["image_vector"].tolist() == pytest.approx(row["image_vector"])
    assert Path(row["image_path"]).read_bytes() == FLOWER.read_bytes()


def test_a_row_is_answered_with_what_people_have_corrected(server: Server, csv: Path) -> None:
    name = id_of(server.post(CAT, stages="describe"))
    table = load_annotations(csv)
    [row] = [number for number, path in enumerate(table["image_path"]) if name in path]
    given = (("text", "A dog."), ("clip_score", ".5"))
    changes = [{"row": row, "column": column, "value": value} for column, value in given]
    response = server.client.post("/v1/review/correct", json={"changes": changes})
    assert response.json()["rows"][0]["values"]["text"] == "A dog."
    found = server.client.get(f"/v1/annotations/{name}").json()
    assert (found["text"], found["clip_score"], found["categories"]) == ("A dog.", 0.5, "")
    assert list(found) == list(table.columns)


def test_several_pictures_are_answered_in_order(server: Server) -> None:
    rows = server.post(CUP, FLOWER, CAT).json()
    assert [re.search("cup|flower|cat", row["text"])[0] for row in rows] == ["cup", "flower", "cat"]  # type: ignore[index]


def test_the_same_picture_is_one_row_and_other_wishes_are_another(server: Server, csv: Path) -> None:
    before = len(load_annotations(csv))
    first, again = server.post(CUP), server.post(CUP)
    other = server.post(CUP, stages="describe")
    assert first.json() == again.json()
    assert id_of(other) != id_of(first)
    assert other.json()["text"] == first.json()["text"]
    assert other.json()["image_vector"] is None and other.json()["categories"] == ""
    assert len(load_annotations(csv)) <= before + 2


def test_who_does_not_wait_asks_later(server: Server) -> None:
    content = resaved(CAT, 90)
    response = server.post(content, params={"wait_s": 0})
    assert response.status_code == 202 and response.json()["status"] in ("waiting", "running")
    assert server.client.get(f"/v1/annotations/{response.json()['id']}").status_code in (200, 202)
    with server.client.stream("GET", f"/v1/annotations/{response.json()['id']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        events = "".join(stream.iter_text()).strip().split("\n\n")
    kind, data = events[-1].split("\n")
    assert kind == "event: done"
    assert "cat" in json.loads(data.removeprefix("data: "))["text"]
    assert "cat" in server.client.get(f"/v1/annotations/{response.json()['id']}").json()["text"]


def resaved(path: Path, quality: int) -> bytes:
    from io import BytesIO

    from PIL import Image

    target = BytesIO()
    Image.open(path).convert("RGB").save(target, "JPEG", quality=quality)
    return target.getvalue()


def test_many_clients_at_once_get_their_own_rows(server: Server) -> None:
    pictures = [resaved(path, quality) for quality in range(80, 88) for path in (FLOWER, CAT, CUP)]
    with ThreadPoolExecutor(24) as pool:
        responses = list(pool.map(server.post, pictures))
    assert {response.status_code for response in responses} == {200}
    found = [re.search("cup|flower|cat", response.json()["text"]) for response in responses]
    assert [each and each[0] for each in found] == ["flower", "cat", "cup"] * 8


def test_a_picture_that_cannot_be_opened_is_a_row_with_an_error(server: Server) -> None:
    response = server.post(FLOWER.read_bytes()[:60] + b"nonsense")
    assert response.status_code == 200
    assert response.json()["error"].startswith("open_image: ")
    assert server.post(FLOWER).json()["error"] == ""


def test_the_history_begins_with_the_newest(server: Server) -> None:
    first, second = (server.post(resaved(FLOWER, quality)) for quality in (60, 61))
    assert server.client.get("/v1/annotations", params={"limit": 2}).json() == [id_of(second), id_of(first)]
    older = server.client.get("/v1/annotations", params={"before": id_of(second), "limit": 1}).json()
    assert older == [id_of(first)]
    unknown = server.client.get("/v1/annotations", params={"before": "0" * 32})
    assert (unknown.status_code, unknown.json()["detail"]) == (404, "there is no such annotation")


def test_rows_of_a_csv_that_was_moved_away_are_refused_with_a_sentence(server: Server, csv: Path) -> None:
    name = id_of(server.post(FLOWER))
    away = csv.rename(csv.with_name("away.csv"))
    try:
        for path in ("", f"/{'0' * 32}", f"/{'0' * 32}/events", f"/{'0' * 32}/audio"):
            response = server.client.get(f"/v1/annotations{path}")
            assert response.status_code == 503, path
            assert response.json()["detail"].endswith("annotations.csv cannot be read: put it back where it was")
        assert server.client.get("/v1/search", params={"like": "0" * 32}).status_code == 503
    finally:
        away.rename(csv)
    assert name in server.client.get("/v1/annotations", params={"limit": 200}).json()


def test_the_picture_comes_back_as_another_file(server: Server) -> None:
    from io import BytesIO

    from PIL import Image

    response = server.client.get(f"/v1/annotations/{id_of(server.post(FLOWER))}/image", params={"side_px": 64})
    assert response.headers["content-type"] == "image/jpeg"
    assert max(Image.open(BytesIO(response.content)).size) == 64


def test_figures_and_health(server: Server) -> None:
    assert server.client.get("/healthz").json()["status"] == "ok"
    figures = server.client.get("/metrics").text
    done = re.search(r'^vec_uploads_total\{outcome="ok"\} (\S+)', figures, re.MULTILINE)
    assert done and float(done[1]) >= 1
    assert "vec_upload_seconds_bucket" in figures


# --- what is refused


def test_what_a_prompt_names_is_needed_too() -> None:
    stages = [ReadText(), Describe(model="m", prompt="What is it? It reads {ocr_text}.")]
    [missing] = missing_inputs(stages, {"read_text"})
    assert missing == "describe needs ocr_text, which read_text writes: add read_text"
    assert list(missing_inputs(stages, set())) == []


@pytest.mark.parametrize(
    ("fields", "status", "detail"),
    [
        ({}, 422, "give one to 64 pictures"),
        ({"stages": "describ"}, 422, "there is no stage describ: there are describe"),
        ({"stages": "structure,flag"}, 422, "structure needs text, which describe writes: add describe"),
        ({"detail": "brief"}, 422, "its configuration sets describe.max_new_tokens: leave detail out"),
        ({"language": "ru"}, 422, "there is no ru"),
        ({"lang": "ru"}, 422, "unknown option 'lang' (did you mean 'language'?)"),
        ({"wait_s": "0"}, 422, "'wait_s' is no field of the form: put it into the address, as in ?wait_s=0"),
        ({"file": "abc"}, 422, "file: send a file, as in file=@picture.jpg"),
        ({"url": "http://127.0.0.1:1/a.png"}, 422, "the host is in a private network"),
        ({"url": "http://169.254.169.254/latest/meta-data"}, 422, "the host is in a private network"),
        ({"url": "file:///etc/passwd"}, 422, ""),
        ({"url": "/etc/passwd"}, 422, ""),
    ],
)
def test_what_cannot_be_done_is_said(server: Server, fields: dict[str, str], status: int, detail: str) -> None:
    response = server.client.post("/v1/annotations", data={"detail": "normal", **fields})
    assert response.status_code == status, response.text
    assert detail in str(response.json()["detail"])


@pytest.mark.parametrize(
    ("path", "parameters", "detail"),
    [
        ("", {"languag": "en"}, "unknown option 'languag' (did you mean 'language'?)"),
        ("", {"language": "en"}, "'language' is a field of the form: send it as in --form language=en"),
        ("", {"n" * 60_000: ""}, ""),
        ("?limt=1", None, "unknown option 'limt' (did you mean 'limit'?)"),
        (f"/{'0' * 32}?wait_s=1", None, "unknown option 'wait_s': this request has none"),
        ("/../review?wher=", None, "unknown option 'wher' (did you mean 'where'?)"),
    ],
)
def test_what_is_not_known_in_an_address_is_said(
    server: Server, path: str, parameters: dict[str, str] | None, detail: str
) -> None:
    if parameters:
        response = server.post(FLOWER, params=parameters)
    else:
        response = server.client.get(f"/v1/annotations{path}".replace("/annotations/..", ""))
    assert response.status_code in (400, 422) and detail in response.text


def test_pages_and_checks_of_health_have_any_address(server: Server) -> None:
    for path in ("/", "/docs", "/review", "/healthz", "/metrics", "/page/page.js"):
        assert server.client.get(path, params={"lang": "ru"}).status_code == 200


def test_what_is_no_picture_is_refused_and_not_kept(server: Server, csv: Path) -> None:
    before = sorted(csv.parent.rglob("*"))
    for content in (b"", b"#!/bin/sh\nrm -rf /", b"<html><script>alert(1)</script>"):
        assert server.post(content).status_code == 415
    assert sorted(csv.parent.rglob("*")) == before


def test_no_name_of_a_client_is_part_of_a_path(server: Server, csv: Path) -> None:
    names = [path.name for path in csv.parent.rglob("*") if path.is_file() and "uploads" in str(path)]
    assert names and all(re.fullmatch(r"[0-9a-f]{32}\.\w+", name) for name in names)


@pytest.mark.parametrize("name", ["..%2f..%2fetc%2fpasswd", "0" * 32, "../annotations.csv", "*", "0" * 31 + "%3f"])
def test_an_unknown_id_is_not_found(server: Server, name: str) -> None:
    for path in ("", "/image", "/audio"):
        assert server.client.get(f"/v1/annotations/{name}{path}").status_code == 404


def test_pages_of_other_origins_and_other_names_are_refused(server: Server) -> None:
    assert server.client.get("/healthz", headers={"Origin": "https://example.org"}).status_code == 403
    assert server.client.get("/healthz", headers={"Host": f"example.org:{server.port}"}).status_code == 421
    assert server.client.get("/healthz", headers={"Origin": server.url}).status_code == 200
    local = {"Host": f"LOCALHOST:{server.port}", "Origin": f"http://localhost:{server.port}"}
    assert server.client.get("/healthz", headers=local).status_code == 200


def test_every_answer_has_headers_that_keep_a_browser_safe(server: Server) -> None:
    for path in ("/healthz", "/nothing", "/v1/annotations"):
        headers = server.client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers


def test_too_large_a_body_is_refused_before_it_is_there(tmp_path: Path) -> None:
    with running(tmp_path / "a.csv", "--max-upload-mb", "1") as server:
        assert server.post(b"\xff\xd8\xff" + bytes(1_100_000)).status_code == 413

        def endless() -> Iterator[bytes]:
            yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n\xff\xd8\xff'
            for _ in range(100):
                yield bytes(100_000)

        sent = []
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        with contextlib.suppress(httpx2.TransportError):  # it may hang up before everything was sent
            response = server.client.post(
                "/v1/annotations", content=(sent.append(1) or part for part in endless()), headers=headers
            )
            assert response.status_code == 413
        assert server.post(FLOWER).status_code == 200
        assert server.end() == 0


def test_a_client_that_says_nothing_is_hung_up_on(server: Server) -> None:
    with socket.create_connection((server.host, server.port), timeout=30) as silent:
        silent.sendall(b"POST /v1/annotations HTTP/1.1\r\nHost: a\r\n")
        start_s = time.monotonic()
        assert silent.recv(1000) == b""
        assert time.monotonic() - start_s < 20


def test_too_many_uploads_are_told_to_come_again(tmp_path: Path) -> None:
    with running(tmp_path / "a.csv", "--most-waiting", "2") as server:
        pictures = [resaved(FLOWER, quality) for quality in range(50, 80)]
        with ThreadPoolExecutor(30) as pool:
            responses = list(pool.map(server.post, pictures))
        statuses = [response.status_code for response in responses]
        assert set(statuses) == {200, 429}
        assert all(int(each.headers["retry-after"]) > 0 for each in responses if each.status_code == 429)


def test_clients_that_leave_give_up_their_places(tmp_path: Path) -> None:
    with running(tmp_path / "a.csv", "--set", "chunk_size=4") as server:  # some chunks are taken ahead

        def hasty(content: bytes) -> None:
            client = httpx2.Client(base_url=server.url, timeout=httpx2.Timeout(30, read=0.3))
            with pytest.raises(httpx2.ReadTimeout):
                client.post("/v1/annotations", files={"file": ("a.jpg", content)})

        pictures = [resaved(FLOWER, quality) for quality in range(50, 80)]
        with ThreadPoolExecutor(30) as pool:  # before the models are loaded
            list(pool.map(hasty, pictures))
        wait_until(lambda: server.client.get("/healthz").json()["waiting"] == 0)
        assert server.post(CAT).status_code == 200
        assert len(server.client.get("/v1/annotations", params={"limit": 100}).json()) < 25


# --- who may use it


@pytest.mark.parametrize("review_only", [[], ["--review-only"]])
def test_a_port_in_use_is_said_before_anything_is_made(server: Server, tmp_path: Path, review_only: list[str]) -> None:
    csv = tmp_path / "a.csv"
    if review_only:
        csv.write_text(",".join(COLUMNS) + "\n")
    before = list(tmp_path.iterdir())
    command = [sys.executable, "-m", "vec_pipeline", "serve", "--config", str(CONFIG), "--csv", str(csv), *review_only]
    refused = subprocess.run(
        [*command, "--port", str(server.port)], cwd=PROJECT, capture_output=True, text=True, timeout=60
    )
    assert refused.returncode == 2
    assert "cannot be listened at (Address already in use): name another --port" in refused.stderr
    assert list(tmp_path.iterdir()) == before


def test_an_address_that_others_reach_needs_a_token(tmp_path: Path) -> None:
    csv = tmp_path / "a.csv"

    def said(*options: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "vec_pipeline", "serve", "--config", str(CONFIG), "--csv", str(csv), *options]
        return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)

    refused = said("--host", "0.0.0.0", "--port", "0")
    assert refused.returncode == 2
    assert "others can reach 0.0.0.0: make a token first, with --new-token" in refused.stderr
    token = said("--new-token").stdout.split()[-1]
    kept = tmp_path / "a.token"
    assert token not in kept.read_text() and kept.stat().st_mode & 0o077 == 0
    with running(csv, "--host", "0.0.0.0") as server:
        assert server.post(FLOWER).status_code == 401
        assert server.post(FLOWER, headers={"Authorization": f"Bearer {token}x"}).status_code == 401
        assert server.post(FLOWER, headers={"Authorization": f"Bearer {token}"}).status_code == 200
        assert server.client.get("/v1/annotations").status_code == 401
        assert server.client.get("/healthz").status_code == 200


# --- ends


def test_a_signal_lets_what_waits_finish(tmp_path: Path) -> None:
    csv = tmp_path / "a.csv"
    with running(csv) as server, ThreadPoolExecutor(12) as pool:
        server.post(FLOWER)
        responses = [pool.submit(server.post, resaved(CAT, quality)) for quality in range(60, 72)]
        wait_until(lambda: server.client.get("/healthz").json()["waiting"] > 3)
        server.process.send_signal(signal.SIGTERM)
        statuses = [response.result(60).status_code for response in responses]
        assert server.process.wait(60) == 0
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) > 3
    assert len(load_annotations(csv)) == 1 + statuses.count(200)


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_after_a_kill_rows_are_found_again_and_made_no_second_time(tmp_path: Path) -> None:
    csv = tmp_path / "a.csv"
    with running(csv) as server:
        name = id_of(server.post(FLOWER))
        server.process.kill()
        server.process.wait()
    with running(csv) as server:
        assert "flower" in server.client.get(f"/v1/annotations/{name}").json()["text"]
        assert id_of(server.post(FLOWER)) == name
        assert server.client.get("/v1/annotations").json() == [name]
    assert len(load_annotations(csv)) == 1


def test_a_csv_that_a_run_has_made_goes_on_with_the_columns_of_its_source(tmp_path: Path) -> None:
    csv = tmp_path / "a.csv"
    (tmp_path / "list.csv").write_text(f"path,title\n{FLOWER},A flower\n")
    run = [sys.executable, "run.py", str(tmp_path / "list.csv"), "--keep", "title", "--config", str(CONFIG)]
    assert subprocess.run([*run, "--output", str(csv)], cwd=PROJECT, timeout=120).returncode == 0
    settings = (tmp_path / "a.settings.yaml").read_text()
    with running(csv) as server:
        row = server.post(CAT).json()
        assert "cat" in row["text"] and row["title"] == ""
        assert server.client.get("/v1/annotations/red-flower").status_code == 404, "not an upload"
        assert len(server.client.get("/v1/annotations").json()) == 1
        assert server.end() == 0
    assert list(load_annotations(csv)["title"]) == ["A flower", ""]
    assert (tmp_path / "a.settings.yaml").read_text() == settings
    assert subprocess.run([*run, "--output", str(csv)], cwd=PROJECT, timeout=120).returncode == 0


def test_nothing_is_left_of_an_ephemeral_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with running(None) as server:
        name = id_of(server.post(FLOWER))
        assert "flower" in server.client.get(f"/v1/annotations/{name}").json()["text"]
        assert server.client.get("/v1/annotations").json() == [name]
        for path in ("/review", "/v1/review", "/v1/review/acts"):
            assert "saves no rows" in server.client.get(path).json()["detail"]
        assert server.end() == 0
    assert list(tmp_path.glob("vec-pipeline-*")) == []


# --- languages and speech

SPOKEN = """
device: cpu
stages:
  - {use: open_image, max_size_px: 112}
  - {use: describe, model: models/demo/vision_language, max_new_tokens: 64}
  - {use: translate, model: models/demo/translation, texts: [text]}
  - {use: speak, texts: [text]}
  - {use: speak, name: speak_ru, texts: [text_ru], language: ru}
"""


@needs_espeak
def test_a_language_decides_which_texts_and_speech_there_are(tmp_path: Path) -> None:
    config = tmp_path / "spoken.yaml"
    config.write_text(SPOKEN)
    with running(tmp_path / "a.csv", config=config) as server:
        rows = {language: server.post(FLOWER, language=language) for language in ("", "en", "ru")}
        found = {language: [name for name in ("text_ru", "text_audio", "text_ru_audio") if response.json()[name]]
                 for language, response in rows.items()}  # fmt: skip
        assert found == {"": ["text_ru", "text_audio", "text_ru_audio"], "en": ["text_audio"], "ru": [
            "text_ru", "text_audio", "text_ru_audio"]}  # fmt: skip
        assert "цветок" in rows["ru"].json()["text_ru"]
        name = id_of(rows["ru"])
        sounds = {
            column: server.client.get(f"/v1/annotations/{name}/audio", params={"column": column})
            for column in ("", "text_audio", "text_ru_audio")
        }
        assert all(sound.status_code == 200 and sound.content[:4] == b"RIFF" for sound in sounds.values())
        assert sounds[""].content == sounds["text_audio"].content != sounds["text_ru_audio"].content
        for column in ("image_path", "text", "nothing"):
            assert server.client.get(f"/v1/annotations/{name}/audio", params={"column": column}).status_code == 404
        assert server.post(FLOWER, language="de").status_code == 422
        for wishes, detail in (
            ({"stages": "translate,speak"}, "translate needs text, which describe writes: add describe; speak needs"),
            ({"stages": "describe,speak_ru"}, "speak_ru needs text_ru, which translate writes: add translate"),
            ({"stages": "describe,translate", "language": "en"}, "language en leaves out translate, which is for ru"),
        ):
            response = server.post(FLOWER, **wishes)
            assert response.status_code == 422 and response.json()["detail"].startswith(detail), response.text
        assert server.post(FLOWER, stages="describe,translate", language="ru").json()["text_ru"]
