"""The server's search as clients see it: by a text, a picture and a row, with the annotator's models."""

import asyncio
import re
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import numpy as np
import pytest
from fastapi import FastAPI

from tests.conftest import Run, copied
from tests.rows import failed, finished, write
from tests.test_serve import CAT, CUP, FLOWER, Server, id_of, resaved, running
from vec_pipeline import load_annotations
from vec_pipeline.commands.search.query import Makers, Vector
from vec_pipeline.commands.serve.metrics import Metrics
from vec_pipeline.commands.serve.rows import Rows
from vec_pipeline.commands.serve.search import AT_ONCE, MOST_WAITING, Search, add_search, makers_at
from vec_pipeline.memory import LoadError, ModelCache
from vec_pipeline.record import COLUMNS, Stage, UserError, Values
from vec_pipeline.stages.open_image import OpenImage

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def csv(example_run: tuple[Run, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CSV of a finished run over the example pictures."""
    return copied(example_run[1], tmp_path_factory.mktemp("searched"))


@pytest.fixture(scope="module")
def server(csv: Path) -> Iterator[Server]:
    with running(csv) as server:
        yield server


def get(server: Server, **parameters: Any) -> httpx2.Response:
    return server.client.get("/v1/search", params=parameters)


def post(server: Server, content: bytes, **parameters: Any) -> httpx2.Response:
    return server.client.post("/v1/search", params=parameters, files={"file": ("../../a.php", content)})


def found(response: httpx2.Response) -> Found:
    assert response.status_code == 200, response.text
    rows: Found = response.json()
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    return rows


# --- with the bundled models, over the rows of a run and of uploads


def test_rows_are_found_by_what_they_show_and_by_what_they_mean(server: Server, csv: Path) -> None:
    assert server.client.get("/v1/options").json()["search"] == ["image", "text"]
    for place in ("image", "text"):
        rows = found(get(server, text="a purple cat", limit=2, **{"in": place}))
        assert Path(rows[0]["image_path"]).name.startswith("purple-cat")
        assert rows[0]["description"].startswith("A purple cat") and rows[0]["id"] is None  # it is of a run
        assert list(rows[0]) == ["id", "image_path", "description", "score"] and len(rows) == 2
    assert len(found(get(server, text="a purple cat"))) == 10
    assert len(found(get(server, text="a purple cat", limit=100))) == len(
        load_annotations(csv)["image_vector"].dropna()
    )


def test_an_upload_is_found_at_once_by_its_id(server: Server) -> None:
    assert found(post(server, CAT.read_bytes(), limit=1))[0]["id"] is None
    upload = server.post(resaved(CAT, 70))
    rows = found(get(server, text="a purple cat", limit=2))
    assert {row["id"] for row in rows} == {id_of(upload), None}
    row = server.client.get(f"/v1/annotations/{id_of(upload)}").json()
    assert {row["image_path"]} == {each["image_path"] for each in rows if each["id"]}


def test_a_picture_finds_those_that_look_like_it(server: Server) -> None:
    uploads = server.client.get("/v1/annotations").json()
    rows = found(post(server, FLOWER.read_bytes(), limit=3))
    assert server.client.get("/v1/annotations").json() == uploads  # it is not kept
    assert Path(rows[0]["image_path"]).name == "red-flower.png"
    assert rows[0]["score"] == pytest.approx(1, abs=1e-3) and rows[1]["score"] < 0.9


def test_what_is_like_a_row_is_found_without_the_row_itself(server: Server) -> None:
    name = id_of(server.post(resaved(FLOWER, 71)))
    for place in ("image", "text"):
        rows = found(get(server, like=name, limit=3, **{"in": place}))
        assert len(rows) == 3 and name not in [row["id"] for row in rows]
        assert Path(rows[0]["image_path"]).name == "red-flower.png"


def test_the_models_are_those_of_the_annotator(server: Server, csv: Path) -> None:
    server.post(resaved(CUP, 72))
    found(get(server, text="a cup"))
    found(get(server, text="a cup", **{"in": "text"}))
    found(post(server, CUP.read_bytes()))
    log = csv.with_suffix(".log").read_text()
    for stage in ("embed_image", "embed_text"):
        assert len(re.findall(rf"loaded {stage} in", log)) == 1, stage


def test_searches_and_uploads_at_the_same_time(server: Server) -> None:
    def at_work(number: int) -> int:
        if number % 3 == 0:
            return server.post(resaved(CAT, 20 + number)).status_code
        if number % 3 == 1:
            return get(server, text=f"{number} cats", **{"in": ("image", "text")[number % 2]}).status_code
        return post(server, resaved(FLOWER, 20 + number)).status_code

    with ThreadPoolExecutor(12) as pool:
        assert set(pool.map(at_work, range(36))) == {200}
    assert server.client.get("/healthz").json() == {"status": "ok", "waiting": 0}


def test_searches_are_counted(server: Server) -> None:
    def counts() -> dict[str, float]:
        figures = server.client.get("/metrics").text
        return {by: float(n) for by, n in re.findall(r'^vec_searches_total\{by="(\w+)"\} (\S+)', figures, re.MULTILINE)}

    name = id_of(server.post(CAT))
    found(get(server, text="a cat"))
    found(get(server, like=name))
    found(post(server, CAT.read_bytes()))
    before = counts()
    found(get(server, text="a cat"))
    get(server, text="a cat", **{"in": "dino"})  # a refusal is none
    assert counts() == {**before, "text": before["text"] + 1}


@pytest.mark.parametrize(
    ("parameters", "status", "detail"),
    [
        ({}, 422, "give either a `text`"),
        ({"text": " \n"}, 422, "give either a `text`"),
        ({"text": "a", "like": "b"}, 422, "give either a `text`"),
        ({"text": "a" * 1001}, 422, "at most 1000 characters"),
        ({"text": "a", "limit": 0}, 422, "greater than or equal to 1"),
        ({"text": "a", "limit": 101}, 422, "less than or equal to 100"),
        ({"text": "a", "in": "sight"}, 422, "'image', 'text' or 'dino'"),
        ({"text": "a", "in": "dino"}, 422, "this cannot be searched for in dino: `in` is image or text"),
        ({"like": "0" * 32, "in": "dino"}, 422, "this server cannot search in dino: `in` is image or text"),
        ({"like": "0" * 32}, 404, "there is no such annotation"),
        ({"like": "../../etc/passwd"}, 404, "there is no such annotation"),
    ],
)
def test_what_cannot_be_searched_for(server: Server, parameters: Values, status: int, detail: str) -> None:
    response = get(server, **parameters)
    assert response.status_code == status
    assert detail in str(response.json()["detail"])


def test_pictures_that_cannot_be_searched_for(server: Server) -> None:
    assert post(server, b"text").status_code == 415
    cut = post(server, FLOWER.read_bytes()[:60])
    assert cut.status_code == 422 and cut.json()["detail"].startswith("the picture cannot be opened: ")
    assert "`in` is image or dino" in post(server, FLOWER.read_bytes(), **{"in": "text"}).json()["detail"]
    assert server.client.post("/v1/search").status_code == 422
    failed = id_of(server.post(FLOWER.read_bytes()[:60] + b"nonsense"))
    assert get(server, like=failed).json()["detail"].startswith("this annotation has nothing to compare")


def test_rows_in_memory_are_searched_and_nothing_is_saved() -> None:
    with running(None) as server:
        assert found(get(server, text="a cat")) == []
        names = [id_of(server.post(path)) for path in (CAT, CUP, FLOWER)]
        server.post(FLOWER.read_bytes()[:60] + b"nonsense")  # a row without vectors
        assert found(get(server, text="a purple cat"))[0]["id"] == names[0]
        assert sorted(row["id"] for row in found(get(server, like=names[1]))) == sorted([names[0], names[2]])
        assert found(post(server, FLOWER.read_bytes(), limit=1))[0]["id"] == names[2]
        folder = Path(server.post(CAT).json()["image_path"]).parents[3]
        assert not list(folder.glob("*.vectors"))


# --- with functions in place of models


@dataclass(frozen=True, kw_only=True)
class Sight(Stage):
    """One whose model nobody else has."""

    writes: ClassVar[Mapping[str, str]] = {"image_vector": "vector"}

    def load(self) -> list[str]:
        return []


class Words(Makers):
    """Makes what a test gives of any text."""

    def __init__(self, query: Callable[[], Vector]) -> None:
        super().__init__(lambda name: (Sight(), name), lambda stage: nullcontext())
        object.__setattr__(self, "query", query)

    def sight_query(self, text: str) -> Vector:
        vector: Vector = self.query()  # type: ignore[attr-defined]
        return vector


def app_of(query: Callable[[], Vector], csv_path: Path | None = None) -> FastAPI:
    app = FastAPI()
    add_search(app, Search(Words(query), Rows(COLUMNS, None), csv_path), Metrics(lambda: 0))
    return app


def answers(app: FastAPI, number: int = 1, meanwhile: Callable[[], Awaitable[None]] | None = None) -> Any:
    """The answers to as many searches at once."""

    async def ask() -> list[httpx2.Response]:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://server") as client:
            asked = [asyncio.ensure_future(client.get("/v1/search?text=a")) for _ in range(number)]
            if meanwhile:
                await meanwhile()
            return await asyncio.gather(*asked)

    return asyncio.run(ask())


def test_more_searches_than_may_wait_are_refused() -> None:
    may_go_on, at_work = threading.Event(), []

    def query() -> Vector:
        at_work.append(1)
        assert may_go_on.wait(30)
        return np.zeros(3, np.float32)

    async def meanwhile() -> None:
        await asyncio.sleep(1)
        assert len(at_work) == AT_ONCE
        may_go_on.set()

    responses = answers(app_of(query), AT_ONCE + MOST_WAITING + 3, meanwhile)
    refused = [each for each in responses if each.status_code != 200]
    assert len(refused) == 3
    assert {each.status_code for each in refused} == {429}
    assert {each.headers["retry-after"] for each in refused} == {"2"}


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (LoadError("embed_image: the model cannot be loaded: MemoryError"), 503, "embed_image: the model cannot be"),
        (RuntimeError("CUDA error: /secret"), 503, "the search failed (RuntimeError)"),
        (UserError("the picture cannot be opened: x"), 422, "the picture cannot be opened: x"),
    ],
)
def test_a_model_that_fails_is_an_answer(error: Exception, status: int, detail: str) -> None:
    def query() -> Vector:
        raise error

    [response] = answers(app_of(query))
    assert response.status_code == status
    assert response.json()["detail"].startswith(detail) and "secret" not in response.text


def test_a_vector_that_is_not_finite_is_refused() -> None:
    [response] = answers(app_of(lambda: np.array([np.nan, 1], np.float32)))
    assert response.status_code == 422


def test_a_csv_that_cannot_be_searched_is_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "annotations.csv"
    write(path, [finished(1)])
    [response] = answers(app_of(lambda: np.ones(2, np.float32), path))
    assert response.status_code == 503 and "run with --refresh" in response.json()["detail"]


def test_a_csv_without_vectors_holds_nothing_to_find(tmp_path: Path) -> None:
    path = write(tmp_path / "annotations.csv", [failed(1)])
    [response] = answers(app_of(lambda: np.ones(3, np.float32), path))
    assert (response.status_code, response.json()) == (200, [])


def test_a_picture_is_opened_while_every_model_is_in_use() -> None:
    models = ModelCache([Sight()], 1, 0.0)
    opened = threading.Event()

    def open_one() -> None:
        with makers_at([], models).use(OpenImage()):
            opened.set()

    with models.use(Sight()):
        threading.Thread(target=open_one, daemon=True).start()
        assert opened.wait(10)
    models.close()


def test_a_model_is_pinned_while_a_search_uses_it() -> None:
    stage = Sight(name="sight")
    models = ModelCache([stage], 1, 0.0)
    makers = makers_at([stage], models)
    assert makers.of("image_vector") == (stage, "image_vector")
    with pytest.raises(UserError, match="this server has no stage that writes text_vector"):
        makers.of("text_vector")
    entered = threading.Event()

    def use() -> int:
        with models.use(stage) as model:
            entered.set()
            return id(model)

    with ThreadPoolExecutor(1) as pool:
        with makers.use(stage) as model:
            other = pool.submit(use)
            assert not entered.wait(0.2)
        assert other.result(10) == id(model)
    models.close()


def test_without_vectors_there_is_no_search() -> None:
    search = Search(makers_at([Stage()], ModelCache([], 1, 0.0)), Rows(COLUMNS, None), None)
    assert search.places == []
    app = FastAPI()
    add_search(app, search, Metrics(lambda: 0))
    [response] = answers(app)
    assert response.status_code == 422
    assert "its configuration has no stage such as embed_image" in response.json()["detail"]
    only_others = Search(makers_at([Sight()], ModelCache([], 1, 0.0)), Rows({"image_path": "text"}, None), None)
    assert only_others.places == []  # the CSV was begun without the column
