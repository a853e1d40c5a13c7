"""The server keeps to its own description: requests made from /openapi.json, and their answers checked against it."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.test_serve import CAT, FLOWER, Server, id_of, running

EXAMPLES = 6  # of each request
OPERATIONS = (
    *("GET /healthz", "GET /metrics", "GET /v1/annotations", "GET /v1/annotations/{name}"),
    *("GET /v1/annotations/{name}/audio", "GET /v1/annotations/{name}/events", "GET /v1/annotations/{name}/image"),
    *("GET /v1/options", "GET /v1/search", "POST /v1/annotations", "POST /v1/search"),
    *("GET /v1/review", "GET /v1/review/acts", "GET /v1/review/history/{row}", "GET /v1/review/next"),
    "GET /v1/review/picture/{row}",
    *("POST /v1/review/bulk", "POST /v1/review/correct", "POST /v1/review/rows", "POST /v1/review/undo"),
)
WITHOUT_PARAMETERS = ("GET /healthz", "GET /metrics", "GET /v1/options")
few = settings(
    max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    csv = tmp_path_factory.mktemp("contract") / "a.csv"
    with running(csv, "--most-waiting", "4", "--max-upload-mb", "1") as server:
        yield server


@pytest.fixture(scope="module")
def contract(server: Server) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def operation(contract: Any, label: str) -> Any:
    method, path = label.split()
    return contract[path][method]


def test_every_request_is_described(contract: Any) -> None:
    assert sorted(each.ok().label for each in contract.get_all_operations()) == sorted(OPERATIONS)


@pytest.mark.parametrize(
    ("label", "mode"),
    [
        *((label, GenerationMode.POSITIVE) for label in OPERATIONS),
        *((label, GenerationMode.NEGATIVE) for label in OPERATIONS if label not in WITHOUT_PARAMETERS),
    ],
)
def test_whatever_is_asked_is_answered_as_described(contract: Any, label: str, mode: GenerationMode) -> None:
    @few
    @given(case=operation(contract, label).as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        case.call_and_validate(timeout=60, excluded_checks=[positive_data_acceptance])  # bytes may be no picture

    check()


@pytest.mark.parametrize("label", [label for label in OPERATIONS if "{name}" in label])
def test_of_a_row_everything_is_answered_as_described(server: Server, contract: Any, label: str) -> None:
    name = id_of(server.post(FLOWER))
    case = operation(contract, label).Case(path_parameters={"name": name})
    response = case.call_and_validate(timeout=60)
    assert response.status_code == (404 if label.endswith("/audio") else 200)


@pytest.mark.parametrize(
    ("label", "body", "status"),
    [
        ("GET /v1/review", None, 200),
        ("GET /v1/review/picture/{row}", None, 200),
        ("POST /v1/review/rows", {"rows": [0]}, 200),
        ("POST /v1/review/correct", {"changes": [{"row": 0, "column": "text", "value": "x"}]}, 200),
        ("POST /v1/review/correct", {"changes": [{"row": 0, "column": "text", "value": "y", "seen": 0}]}, 409),
        ("POST /v1/review/bulk", {"operation": {"kind": "set", "column": "text", "value": "z"}, "preview": False}, 200),
        ("POST /v1/review/undo", {"act": 1}, 409),
        ("GET /v1/review/acts", None, 200),
        ("GET /v1/review/history/{row}", None, 200),
        ("GET /v1/review/next", None, 200),
        ("POST /v1/review/undo", {"act": 1, "csv": "another"}, 409),
    ],
)
def test_a_review_is_answered_as_described(server: Server, contract: Any, label: str, body: Any, status: int) -> None:
    server.post(FLOWER)
    given = {"body": body, "media_type": "application/json"} if body else {}
    given |= {"query": {"after": 0}} if label.endswith("/next") else {}
    case = operation(contract, label).Case(path_parameters={"row": 0} if "{row}" in label else {}, **given)
    assert case.call_and_validate(timeout=60, excluded_checks=[positive_data_acceptance]).status_code == status


@pytest.mark.parametrize(
    ("pictures", "wait_s", "status"),
    [([CAT], 30, 200), ([FLOWER, CAT], 30, 200), ([], 0, 422), ([b"#!/bin/sh"], 0, 415)],
)
def test_uploads_are_answered_as_described(contract: Any, pictures: list[Any], wait_s: int, status: int) -> None:
    body = {"file": [each if isinstance(each, bytes) else each.read_bytes() for each in pictures], "detail": "normal"}
    case = operation(contract, "POST /v1/annotations").Case(
        body=body, query={"wait_s": wait_s}, media_type="multipart/form-data"
    )
    assert case.call_and_validate(timeout=60, excluded_checks=[positive_data_acceptance]).status_code == status
