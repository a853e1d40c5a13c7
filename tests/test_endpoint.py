"""`engine: endpoint`: describe and structure by a server, which may be slow, and fail in every way there is."""

import contextlib
import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image, JpegImagePlugin

from tests import fakes
from tests.conftest import EXAMPLES, PROJECT, Run
from tests.endpoint_server import (
    MODEL,
    STRUCTURED,
    EndpointServer,
    Reply,
    Request,
    completion,
    free_port,
    name_of,
    well,
)
from tests.fakes import Journal
from vec_pipeline import device, load_annotations
from vec_pipeline.__main__ import main
from vec_pipeline.config import ConfigError, load_config
from vec_pipeline.engines import Answer, endpoint
from vec_pipeline.engines.endpoint import Endpoint, JsonEndpoint, PictureEndpoint
from vec_pipeline.memory import ModelCache
from vec_pipeline.record import Interrupted, Need, Stage, UserError, Values
from vec_pipeline.settings import stage_settings
from vec_pipeline.stages.describe import Describe
from vec_pipeline.stages.open_image import open_image
from vec_pipeline.stages.structure import Structure

COLOURS = [(red, green, 40) for red in range(0, 250, 50) for green in range(0, 250, 50)]
SCHEMA = Structure(model=MODEL).answer_schema
QUESTION = "What is it?"
CAR = Answer("A car.", True, 7)  # without probabilities


def picture(number: int, side_px: int = 24) -> Image.Image:
    """One of 25 pictures, each of another colour."""
    return Image.new("RGB", (side_px, side_px), COLOURS[number])


PICTURES = [picture(number) for number in range(12)]
NAMES = [name_of(colour) for colour in COLOURS[:12]]  # what the server calls them


@pytest.fixture
def server() -> Iterator[EndpointServer]:
    with EndpointServer() as server:
        yield server


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float | None]]:
    """No wait before a request is repeated; returns what the waits would have been computed of."""
    asked: list[tuple[int, float | None]] = []

    def wait_s(failures: int, wanted_s: float | None) -> float:
        asked.append((failures, wanted_s))
        return 0.0

    monkeypatch.setattr(endpoint, "wait_s", wait_s)
    return asked


def described(server: EndpointServer, images: list[Image.Image] = PICTURES, at_once: int = 4) -> list[Answer]:
    with closing(PictureEndpoint(server.url, MODEL, QUESTION, 64)) as model:
        return model.generate(images, at_once)


def structured(server: EndpointServer, texts: list[str], at_once: int = 1) -> list[Answer]:
    with closing(JsonEndpoint(server.url, MODEL, SCHEMA)) as model:
        return model.generate([[{"role": "user", "content": text}] for text in texts], "", 500, at_once)


def for_one(name: str, reply: Callable[[Request], Reply]) -> Callable[[Request], Reply]:
    """A server that works, but for one picture or text."""
    return lambda request: reply(request) if request.asked == name else well(request)


def for_the_first(number: int, reply: Callable[[Request], Reply]) -> Callable[[Request], Reply]:
    """A server that fails with so many requests, and works from then on."""
    left = list(range(number))

    def behaviour(request: Request) -> Reply:
        return reply(request) if left and left.pop() is not None else well(request)

    return behaviour


def fails(status: int, message: str = "something", **headers: str) -> Callable[[Request], Reply]:
    return lambda _: Reply({"error": {"message": message}}, status, headers)


# --- What is asked, and what becomes of the answer


def test_so_many_requests_are_in_flight_over_connections_that_stay_open(server: EndpointServer) -> None:
    server.behaviour = lambda request: dataclasses.replace(well(request), delay_s=0.05)
    answers = described(server, at_once=4)
    assert [answer.text for answer in answers] == [f"A picture of {name}." for name in NAMES]
    assert server.most_in_flight == 4
    assert {request.connection for request in server.requests} == {0, 1, 2, 3}
    assert described(server, PICTURES[:3], at_once=1)
    assert {request.connection for request in server.requests} == {0, 1, 2, 3, 4}


def test_a_request_is_greedy_and_bounded(server: EndpointServer) -> None:
    described(server, [picture(3)])
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    wanted = {"model": MODEL, "temperature": 0, "seed": 0, "max_tokens": 64, "logprobs": True, "stream": False}
    assert wanted.items() <= request.body.items()
    (message,) = request.body["messages"]
    assert message["role"] == "user"
    assert message["content"][1] == {"type": "text", "text": QUESTION}


def test_a_picture_is_sent_as_it_is_and_a_large_one_nearly(server: EndpointServer) -> None:
    small = Image.effect_noise((512, 512), 50).convert("RGB")
    large = Image.effect_noise((130, 513), 50).convert("RGB").resize((1300, 513), Image.Resampling.BICUBIC)
    described(server, [small, large], at_once=1)
    sent, compressed = (request.image for request in server.requests)
    assert (sent.format, sent.mode, sent.tobytes()) == ("PNG", "RGB", small.tobytes())
    assert (compressed.format, compressed.size) == ("JPEG", large.size)
    assert JpegImagePlugin.get_sampling(compressed) == 0, "of the colours too"
    differences = zip(compressed.convert("RGB").tobytes()[::97], large.tobytes()[::97], strict=True)
    assert max(abs(one - other) for one, other in differences) < 40


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (completion("A car.", logprobs=[0.0, math.log(0.5)]), Answer("A car.", True, 7, 0.75)),
        (completion("A car.", logprobs=[0.0, 1e-3]), Answer("A car.", True, 7, 1.0)),
        (completion("A car."), Answer("A car.", True, 7, None)),
        (completion("A car.", logprobs=[]), Answer("A car.", True, 7, None)),
        (completion("A c", finish_reason="length", tokens=3), Answer("A c", False, 3, None)),
        (completion("A c", finish_reason="content_filter"), Answer("A c", False, 7, None)),
        (completion(None, finish_reason="length"), Answer("", False, 7, None)),
        (completion("<think>\nA car?\n</think>\n\nA car."), Answer("A car.", True, 7, None)),
        (completion("A car?\n</think>\n\nA car."), Answer("A car.", True, 7, None)),
        (completion("<think> A car? A", finish_reason="length"), Answer("", False, 7, None)),
        (completion("<|channel>thought\nA car?<channel|>A car."), Answer("A car.", True, 7, None)),
        (completion("[THINK]A car?[/THINK]A car."), Answer("A car.", True, 7, None)),
        (completion("◁think▷A car?◁/think▷A car.</think> ends"), Answer("A car.</think> ends", True, 7, None)),
        (
            completion("A sign: </think> and\n</think>\nno more"),
            Answer("A sign: </think> and\n</think>\nno more", True, 7),
        ),
        (completion("A sign: <think>\n</think>\n\nA car."), Answer("A sign: <think>\n</think>\n\nA car.", True, 7)),
        (completion('{"a": "</think>\\n\\n"}\n'), Answer('{"a": "</think>\\n\\n"}\n', True, 7)),
        (completion('["<think>", "</think>\\n\\n"]'), Answer('["<think>", "</think>\\n\\n"]', True, 7)),
        (completion([{"type": "text", "text": "A "}, {"type": "x"}, {"type": "text", "text": "car."}]), CAR),
        (completion("A car.", logprobs=[None]), CAR),
        (completion("A car.", logprobs=[math.nan]), CAR),
        (completion("A car.", logprobs=["high"]), CAR),
        (completion("A car.", finish_reason="abort"), Answer("A car.", False, 7)),
        (completion("A car.", finish_reason="error"), Answer("A car.", False, 7)),
        (completion("A car.", finish_reason="eos_token"), CAR),
        (completion("A car.", finish_reason=None), CAR),
        ({"choices": [{"message": {"content": "A car."}}]}, Answer("A car.", True, 0, None)),
        ({"choices": [{"message": {"content": None, "refusal": "I cannot."}}]}, Answer("I cannot.", True, 0, None)),
    ],
)
def test_an_answer_is_read(server: EndpointServer, body: Any, expected: Answer) -> None:
    server.behaviour = lambda _: Reply(body)
    (answer,) = described(server, [picture(0)])
    assert dataclasses.replace(answer, confidence=None) == dataclasses.replace(expected, confidence=None)
    assert answer.confidence == (expected.confidence and pytest.approx(expected.confidence, abs=1e-6))


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["<think>", "A?", "</think>", "\n\n", "A car", "."], 0.75),
        (["A?", "</think>", "\n\n", "A car", "."], 0.75),
        (["<think>", "A?", "</th", "ink>", "\n\n", "A car", "."], 0.75),
        (["", "A?", "", "\n\n", "A car", "."], None),  # a tokenizer without texts for its special tokens
        (["A", " car", "."], None),
        (["<think>", "A?"], 0.0),
    ],
)
def test_the_confidence_is_of_the_answer_where_its_tokens_are_known(tokens: list[str], expected: float | None) -> None:
    """Three tokens of an answer, of 1, 1 and 0.25, after reasoning of 0.25 each."""
    chances = [*[0.25] * 9, 1.0, 1.0, 0.25][-len(tokens) :]
    given = [{"token": each, "logprob": math.log(chance)} for each, chance in zip(tokens, chances, strict=True)]
    found = endpoint.confidence_of({"content": given})
    if expected == 0.0:
        assert found is None, "all of it is reasoning"
    else:
        assert found == pytest.approx(expected or sum(chances) / len(chances))


# --- Failures


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_a_picture_that_the_server_refuses_is_a_row_with_an_error(
    status: int, server: EndpointServer, waits: list[Any]
) -> None:
    server.behaviour = for_one(NAMES[5], fails(status, "the picture\nis bad"))
    answers = described(server)
    assert [bool(answer.error) for answer in answers] == [name == NAMES[5] for name in NAMES]
    assert answers[5].error == f"RequestRefused: {status}: the picture is bad"
    assert server.asked().count(NAMES[5]) <= 2, "once, and once with fewer fields where no answer has come before"
    assert not waits


@pytest.mark.parametrize("status", [500, 501, 599])
def test_an_error_of_the_server_with_one_picture_is_its_rows_after_two_more_tries(
    status: int, server: EndpointServer, waits: list[Any]
) -> None:
    server.behaviour = for_one(NAMES[5], fails(status))
    answers = described(server)
    assert [bool(answer.error) for answer in answers] == [name == NAMES[5] for name in NAMES]
    assert answers[5].error == f"ServerError: {status}: something"
    tries = [request for request in server.requests if request.asked == NAMES[5]]
    assert len(tries) == 3
    assert [request.place for request in tries[1:]] == [0, 0], "each on a connection of its own"
    assert len({request.connection for request in tries}) == 3
    assert [failures for failures, _ in waits] == [1, 2]


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 529])
def test_what_passes_costs_no_row(status: int, server: EndpointServer, waits: list[Any]) -> None:
    server.behaviour = for_the_first(2, fails(status))
    answers = described(server, at_once=1)
    assert [answer.error for answer in answers] == [""] * len(PICTURES)
    assert server.asked() == [NAMES[0], NAMES[0], *NAMES]
    assert [failures for failures, _ in waits] == [1, 2]
    assert all(answer.confidence for answer in answers), "no field is given up for it"


def test_a_server_that_answers_others_is_waited_for(server: EndpointServer, waits: list[Any]) -> None:
    """A limit of requests a minute: one of many may be refused many times."""
    left = [429] * 15

    def behaviour(request: Request) -> Reply:
        return fails(left.pop())(request) if request.asked == NAMES[0] and left else well(request)

    server.behaviour = lambda request: dataclasses.replace(behaviour(request), delay_s=0.01)
    assert [answer.error for answer in described(server, [*PICTURES, *PICTURES[1:]], at_once=2)] == [""] * 23


def test_a_limit_that_never_ends_stops_the_run(server: EndpointServer, waits: list[Any]) -> None:
    server.behaviour = fails(429, "no credit left")
    with pytest.raises(UserError, match=rf"^{server.url}: 429: no credit left: set a smaller batch_size, or wait; "):
        described(server, at_once=1)
    assert len(server.requests) == len(waits) + 1 == 8


def test_retry_after_is_honoured(server: EndpointServer) -> None:
    arrivals: list[float] = []

    def behaviour(request: Request) -> Reply:
        arrivals.append(time.monotonic())
        return fails(429, **{"Retry-After": "1"})(request) if len(arrivals) == 1 else well(request)

    server.behaviour = behaviour
    assert not described(server, [picture(0)])[0].error
    assert arrivals[1] - arrivals[0] >= 1


def test_retry_after_is_seconds_or_a_date_and_bounded() -> None:
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert endpoint.retry_after_s("7") == 7
    assert endpoint.retry_after_s(in_a_minute) == pytest.approx(30, abs=2)
    assert endpoint.retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert [endpoint.retry_after_s(value) for value in (None, "", "soon", "nan", "inf")] == [None] * 5
    assert endpoint.retry_after_s("-3") == 0
    assert 7 <= endpoint.wait_s(1, 7.0) < 8
    assert 60 <= endpoint.wait_s(1, 86_400.0) < 61
    for failures in range(1, 9):
        least_s = [min(endpoint.wait_s(failures, wanted_s) for _ in range(50)) for wanted_s in (0.0, 1.0)]
        assert least_s[0] >= min(60, 0.5 * 2 ** (failures - 1)) / 2, (
            "a server that says 0 is not asked eight times a second"
        )
        assert least_s[1] >= max(1, least_s[0] / 2)
    for failures, longest_s in ((1, 0.5), (2, 1), (3, 2), (9, 60)):
        waits = {endpoint.wait_s(failures, None) for _ in range(50)}
        assert len(waits) == 50, "not all at the same time"
        assert all(longest_s / 2 <= wait <= longest_s for wait in waits)


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_asks_for_a_longer_wait_stops_the_run_at_once(status: int, server: EndpointServer) -> None:
    server.behaviour = fails(status, "come back", **{"Retry-After": "3600"})
    with pytest.raises(
        UserError, match=rf"^{server.url}: {status}: come back: it asks for a wait of 3600 s: rerun after that$"
    ):
        described(server, at_once=1)
    assert len(server.requests) == 1
    server.behaviour = for_one(NAMES[5], fails(400, **{"Retry-After": "3600"}))
    assert described(server)[5].error == "RequestRefused: 400: something"


def test_a_connection_that_was_closed_meanwhile_costs_nothing(server: EndpointServer, waits: list[Any]) -> None:
    """As `transformers serve` does after an error, and every server with connections that were not in use."""
    server.behaviour = lambda request: Reply({}, then="reset") if request.place else well(request)
    assert [answer.error for answer in described(server, at_once=1)] == [""] * len(PICTURES)
    assert not waits, "it is tried again at once"
    assert len(server.requests) <= 2 * len(PICTURES)


def test_a_picture_that_breaks_every_connection_is_a_row_with_an_error(
    server: EndpointServer, waits: list[Any]
) -> None:
    server.behaviour = for_one(NAMES[5], lambda _: Reply({}, then="reset"))
    answers = described(server)
    assert [bool(answer.error) for answer in answers] == [name == NAMES[5] for name in NAMES]
    assert answers[5].error.startswith("ConnectionLost: ")
    assert server.asked().count(NAMES[5]) == 3


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": 7}}]}', b"\xff{"],
    ids=str,
)
def test_an_answer_that_is_none_is_a_row_with_an_error(body: bytes, server: EndpointServer, waits: list[Any]) -> None:
    server.behaviour = for_one(NAMES[5], lambda _: Reply(body))
    answers = described(server)
    assert [bool(answer.error) for answer in answers] == [name == NAMES[5] for name in NAMES]
    assert answers[5].error.startswith("ServerError: its answer is not one of chat completions")
    server.behaviour = for_the_first(1, lambda _: Reply(body))
    assert not any(answer.error for answer in described(server))


def test_a_request_that_hangs_is_a_row_with_an_error(
    server: EndpointServer, waits: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "TIMEOUT_S", 0.5)
    server.behaviour = for_one(NAMES[5], lambda _: Reply({}, then="hang"))
    answers = described(server)
    assert [bool(answer.error) for answer in answers] == [name == NAMES[5] for name in NAMES]
    assert answers[5].error == "Timeout: no answer within 0 s"
    assert server.asked().count(NAMES[5]) == 2


def test_a_server_that_hangs_stops_the_run(
    server: EndpointServer, waits: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "TIMEOUT_S", 1.4)
    server.behaviour = lambda _: Reply({}, then="hang")
    with pytest.raises(UserError, match=rf"^{server.url}: no answer within 1 s, 8 times in a row: set a smaller batch"):
        described(server, at_once=12)
    assert sorted(server.asked()) == sorted(NAMES), "it is known after one wait"


def test_a_server_that_hangs_now_and_then_does_not(
    server: EndpointServer, waits: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "TIMEOUT_S", 0.4)
    stuck = NAMES[::2]
    server.behaviour = lambda request: Reply({}, then="hang") if request.asked in stuck else well(request)
    assert [bool(answer.error) for answer in described(server, at_once=1)] == [True, False] * 6
    assert len(server.requests) >= 18, "of which 12 have hung"


def test_a_picture_that_a_proxy_gives_up_on_is_a_row_with_an_error(server: EndpointServer, waits: list[Any]) -> None:
    """It is the server's failure only if that does not answer when it is asked for its models."""
    server.behaviour = for_one(NAMES[5], fails(504))
    answers = described(server)
    assert [bool(answer.error) for answer in answers] == [name == NAMES[5] for name in NAMES]
    assert answers[5].error == "ServerBusy: 504: something"


@pytest.mark.parametrize("reply", [fails(503, "loading"), lambda _: Reply({}, then="hang")], ids=["loading", "hangs"])
def test_a_server_that_does_not_even_name_its_models_stops_the_run(
    reply: Callable[[Request], Reply], server: EndpointServer, waits: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "TIMEOUT_S", 0.4)
    monkeypatch.setattr(endpoint, "CHECK_TIMEOUT_S", 0.4)
    monkeypatch.setattr(server, "_reply", reply)
    with pytest.raises(UserError, match=rf"^{server.url} is down \((503: loading|no answer within 0 s)\): start the"):
        described(server, [picture(0)])


def test_a_server_that_dies_stops_the_run(server: EndpointServer, waits: list[Any]) -> None:
    """It is waited for, as it may come back."""

    def behaviour(request: Request) -> Reply:
        if len(server.requests) == 6:
            threading.Thread(target=server.die).start()
            return dataclasses.replace(well(request), delay_s=10)
        return well(request)

    server.behaviour = behaviour
    with pytest.raises(UserError, match=rf"^{server.url} is down \(no connection: .*\): start the server"):
        described(server, at_once=2)
    assert max(failures for failures, _ in waits) > 5


@pytest.mark.parametrize("status", [301, 401, 402, 403, 404, 405])
def test_what_no_other_picture_would_change_stops_the_run(status: int, server: EndpointServer) -> None:
    server.behaviour = fails(status, "you there")
    with pytest.raises(UserError, match=rf"^{server.url} answers {status} \(you there\): ") as raised:
        described(server, at_once=1)
    assert len(server.requests) == 1
    assert ("VEC_ENDPOINT_TOKEN" in str(raised.value)) == (status in (401, 403))


@pytest.mark.parametrize("status", [403, 451])
def test_a_picture_that_is_denied_is_a_row_with_an_error_once_others_are_answered(
    status: int, server: EndpointServer, waits: list[Any]
) -> None:
    server.behaviour = for_one(NAMES[5], fails(status, "not this one"))
    answers = described(server, at_once=1)
    assert [bool(answer.error) for answer in answers] == [name == NAMES[5] for name in NAMES]
    assert answers[5].error == f"RequestDenied: {status}: not this one"
    assert len(server.requests) == len(PICTURES)
    server.behaviour = lambda request: well(request) if request.asked in NAMES[:2] else fails(status)(request)
    server.requests = []
    with pytest.raises(UserError, match=rf"^{server.url} refuses one request after the other \({status}: something\)"):
        described(server, at_once=1)
    assert len(server.requests) == 2 + 5
    good = (NAMES[0], NAMES[5], NAMES[10])
    server.behaviour = lambda request: well(request) if request.asked in good else fails(status)(request)
    assert sum(not answer.error for answer in described(server, at_once=1)) == 3, "four in a row are rows with errors"


@pytest.mark.parametrize("status", [301, 401, 402])
def test_a_token_that_expires_stops_the_run(status: int, server: EndpointServer) -> None:
    server.behaviour = for_one(NAMES[5], fails(status, "expired"))
    with pytest.raises(UserError, match=rf"^{server.url} answers {status} \(expired\): "):
        described(server, at_once=1)
    assert len(server.requests) == 6


def test_a_refusal_of_every_request_stops_the_run(server: EndpointServer) -> None:
    """As where `max_tokens` is more than the context holds, which the server says with other numbers each time."""
    server.behaviour = lambda request: fails(400, f"too long: {len(server.requests)} + 5000 tokens")(request)
    with pytest.raises(
        UserError, match=r"refuses .* \(400: too long: \d+ \+ 5000 tokens\): .*`model:`.*max_new_tokens.*max_tokens"
    ):
        described(server, at_once=1)
    assert len(server.requests) == 2 * 5, "with logprobs and without"
    refused = iter(range(100))
    server.behaviour = lambda request: fails(400, "xyzuvw"[next(refused) // 2 % 6])(request)
    assert all(answer.error for answer in described(server, at_once=1)), "each for a reason of its own"
    server.behaviour = lambda request: well(request) if request.asked == NAMES[0] else fails(400)(request)
    assert all(answer.error for answer in described(server, at_once=1)[1:]), "it does answer: the pictures are refused"


def test_a_message_is_short_and_of_one_line(server: EndpointServer) -> None:
    for body, words in (
        ({"error": "no\nimage"}, "no image"),
        ({"detail": [{"msg": "long" * 1000}]}, '{"detail": [{"msg": "long'),
        (b"Internal Server Error", "Internal Server Error"),
        ({"message": "why"}, "why"),
        (b"", "no message"),
    ):
        server.behaviour = lambda _, body=body: Reply(body, 400)  # type: ignore[misc]
        (answer,) = described(server, [picture(0)])
        assert answer.error.startswith(f"RequestRefused: 400: {words}")
        assert len(answer.error) < 350


def test_one_picture_that_fails_ends_no_other_request(server: EndpointServer, waits: list[Any]) -> None:
    """It is in flight with others, of which none is asked again."""
    server.behaviour = lambda request: dataclasses.replace(
        fails(400)(request) if request.asked == NAMES[0] else well(request),
        delay_s=0.0 if request.asked == NAMES[0] else 0.1,
    )
    described(server, at_once=12)
    assert sorted(name for name in server.asked() if name != NAMES[0]) == sorted(NAMES[1:])


# --- Fields that not every server knows


@pytest.mark.parametrize(("status", "requests"), [(400, 1), (422, 1), (500, 2)])
def test_a_server_without_json_schema_is_asked_in_the_older_way_from_then_on(
    status: int, requests: int, server: EndpointServer, waits: list[Any]
) -> None:
    def behaviour(request: Request) -> Reply:
        is_known = request.body["response_format"]["type"] == "json_object"
        return well(request) if is_known else fails(status)(request)

    server.behaviour = behaviour
    answers = structured(server, ["a car", "a cat", "a cup"])
    assert [json.loads(answer.text)["description"] for answer in answers] == ["a car", "a cat", "a cup"]
    formats = [request.body["response_format"] for request in server.requests]
    tried = ["json_schema"] * requests + ["json_object"]
    confirmed = ["json_schema"] if status == 500 else []  # as an error of the server may have passed meanwhile
    assert [each["type"] for each in formats] == [*tried, *confirmed, "json_object", "json_object"]
    closed = {**SCHEMA, "required": list(SCHEMA["properties"]), "additionalProperties": False}
    assert formats[0]["json_schema"] == {"name": "annotation", "schema": closed, "strict": True}
    assert formats[-1]["schema"] == closed


@pytest.mark.parametrize("status", [400, 500])
def test_a_server_with_json_schema_is_never_asked_in_the_older_way(
    status: int, server: EndpointServer, waits: list[Any]
) -> None:
    server.behaviour = for_one("a cat", fails(status))
    answers = structured(server, ["a car", "a cat", "a cup"])
    assert [bool(answer.error) for answer in answers] == [False, True, False]
    assert {request.body["response_format"]["type"] for request in server.requests} == {"json_schema"}


def test_errors_that_pass_change_no_field_of_later_requests(server: EndpointServer, waits: list[Any]) -> None:
    server.behaviour = for_the_first(2, fails(500))
    assert all(answer.confidence for answer in described(server, at_once=1))
    assert all("logprobs" in request.body for request in server.requests)
    server.behaviour, server.requests = for_the_first(2, fails(500)), []
    assert not any(answer.error for answer in structured(server, ["a car", "a cat", "a cup"]))
    formats = [request.body["response_format"]["type"] for request in server.requests]
    assert formats == [*["json_schema"] * 2, "json_object", *["json_schema"] * 3]


def test_a_server_without_logprobs_is_asked_without_them(server: EndpointServer) -> None:
    server.behaviour = lambda request: fails(400)(request) if "logprobs" in request.body else well(request)
    assert not any(answer.error for answer in described(server, at_once=1))
    assert ["logprobs" in request.body for request in server.requests] == [True, *[False] * len(PICTURES)]


# --- The token


def test_the_token_is_sent_and_never_shown(server: EndpointServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEC_ENDPOINT_TOKEN", "secret-7\n")
    server.token = "secret-7"
    endpoint.check_model(server.url, MODEL)
    assert not described(server, [picture(0)])[0].error
    assert server.requests[0].headers["authorization"] == "Bearer secret-7"
    server.token = "another"
    said = r"answers 401 \(the token is wrong: Bearer \*\*\*\): set the environment variable VEC_ENDPOINT_TOKEN"
    for ask in (lambda: endpoint.check_model(server.url, MODEL), lambda: described(server)):
        with pytest.raises(UserError, match=said) as raised:
            ask()
        assert "secret" not in str(raised.value)


@pytest.mark.parametrize("token", ["secret 7", "sécret", "sec\nret", "sec\x01ret"])
def test_a_token_that_cannot_be_sent_is_not_shown(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEC_ENDPOINT_TOKEN", token)
    with pytest.raises(UserError, match=r"^VEC_ENDPOINT_TOKEN holds a character that no token has: set it again$"):
        PictureEndpoint("http://127.0.0.1:9/v1", MODEL, QUESTION, 64)


# --- Whether the model is there


def test_a_model_that_the_server_does_not_have_is_named(server: EndpointServer) -> None:
    server.models = (MODEL, "vision:72b", *(f"m{number}" for number in range(20)))
    endpoint.check_model(server.url, MODEL)
    endpoint.check_model(server.url + "/", MODEL)
    with pytest.raises(UserError, match=rf"^{server.url} has no model 'vision': it has {MODEL}, .* and 19 more: set"):
        endpoint.check_model(server.url, "vision")


def test_what_is_no_such_server_is_said(server: EndpointServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"answers 404 \(Not Found\): check `model:` and `endpoint:`, which ends in"):
        endpoint.check_model(server.url.removesuffix("/v1"), MODEL)
    down = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(UserError, match=rf"^{down} does not answer \(.*refused.*\): start the server, or set"):
        endpoint.check_model(down, MODEL)
    for body in (b"<html>hello</html>", b"[]", b'{"data": 7}'):
        monkeypatch.setattr(server, "_reply", lambda _, body=body: Reply(body))  # type: ignore[misc]
        with pytest.raises(UserError, match="is not an OpenAI-compatible server"):
            endpoint.check_model(server.url, MODEL)
    monkeypatch.setattr(server, "_reply", lambda _: Reply({}, then="hang"))
    monkeypatch.setattr(endpoint, "CHECK_TIMEOUT_S", 0.2)
    with pytest.raises(UserError, match=r"does not answer \(timed out\)"):
        endpoint.check_model(server.url, MODEL)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ALL_PROXY": "socks5://me:secret@127.0.0.1:1"}, "SOCKS"),
        ({"ALL_PROXY": "foo://me:secret@127.0.0.1:1"}, "proxy"),
        ({"HTTP_PROXY": "http://[::1"}, "Invalid port"),
        ({"SSL_CERT_FILE": "/none.pem"}, "No such file"),
    ],
)
def test_an_environment_that_allows_no_connection_is_said_in_one_sentence(
    environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    sentence = rf"^{url} cannot be asked \(.*{said}.*\): check .*ALL_PROXY.*SSL_CERT_FILE"
    for ask in (lambda: endpoint.check_model(url, MODEL), lambda: PictureEndpoint(url, MODEL, QUESTION, 64)):
        with pytest.raises(UserError, match=sentence) as raised:
            ask()
        assert "secret" not in str(raised.value)
    assert "endpoint" not in [thread.name for thread in threading.enumerate()]


def test_an_address_that_cannot_be_looked_up_is_said_in_one_sentence() -> None:
    for url in ("http://gpu..lan:8000/v1", f"http://{'a' * 64}.lan/v1"):
        with pytest.raises(UserError, match=r"cannot be asked \(.*label.*\): check `endpoint:`"):
            endpoint.check_model(url, MODEL)


# --- Ends


def test_closing_ends_what_is_in_flight(server: EndpointServer) -> None:
    server.behaviour = lambda _: Reply({}, then="hang")
    model = PictureEndpoint(server.url, MODEL, QUESTION, 64)
    raised: list[BaseException] = []

    def generate() -> None:
        try:
            model.generate(PICTURES, 4)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=generate)
    thread.start()
    wait_until(lambda: len(server.requests) == 4)
    model.close()
    thread.join(10)
    assert len(raised) == 1
    model.close()
    with pytest.raises(RuntimeError):
        model.generate(PICTURES, 4)
    assert not [thread for thread in threading.enumerate() if thread.name == "endpoint"]


def wait_until(is_so: Callable[[], bool], limit_s: float = 100) -> None:
    end_s = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.02)


# --- The two stages


def describe(url: str, **options: Any) -> Describe:
    return Describe(**{"model": MODEL, "engine": "endpoint", "endpoint": url, **options})


def structure(url: str, **options: Any) -> Structure:
    return Structure(**{"model": MODEL, "engine": "endpoint", "endpoint": url, **options})


def run_stage(stage: Stage, rows: list[Values]) -> list[Values]:
    with closing(stage.load()) as model:
        return stage.run(model, rows, 4)


def test_describe_writes_its_columns(server: EndpointServer) -> None:
    def behaviour(request: Request) -> Reply:
        cut = completion(" A red", finish_reason="length")
        return {NAMES[0]: fails(422), NAMES[1]: lambda _: Reply(cut)}.get(request.asked, well)(request)

    server.behaviour = behaviour
    stage = describe(server.url, prompt="What?", max_new_tokens=9)
    refused, short, whole = run_stage(stage, [{"image": image} for image in PICTURES[:3]])
    assert refused == {"error": "RequestRefused: 422: something"}
    assert short == {"text": "A red", "text_confidence": None, "is_truncated": True}
    expected = round((1 + math.exp(-0.5)) / 2, 4)
    assert whole == {"text": f"A picture of {NAMES[2]}.", "text_confidence": expected, "is_truncated": False}
    assert {request.body["max_tokens"] for request in server.requests} == {9}
    assert server.requests[0].content[1]["text"] == "What?"
    assert {len(request.body["messages"]) for request in server.requests} == {1}
    run_stage(dataclasses.replace(stage, system_prompt="Be brief."), [{"image": PICTURES[2]}])
    assert server.requests[-1].body["messages"][0] == {"role": "system", "content": "Be brief."}
    asks = dataclasses.replace(stage, prompt="Is this {folder}?")
    run_stage(asks, [{"image": image, "folder": f"f{number}"} for number, image in enumerate(PICTURES[2:4])])
    assert {request.content[1]["text"] for request in server.requests[-2:]} == {"Is this f0?", "Is this f1?"}


def test_structure_writes_its_columns(server: EndpointServer) -> None:
    answers = {
        "cut": completion('{"description": "A', finish_reason="length", tokens=9),
        "prose": completion("Here is your JSON"),
        "long": completion(json.dumps({**STRUCTURED, "description": "a" * 401})),
        "thought": completion("<think>{</think>" + json.dumps(STRUCTURED)),
    }
    answers["many"] = completion(json.dumps({**STRUCTURED, "keywords": ["", *"abcdefghijklm", "k" * 50]}))
    answers["order"] = completion(json.dumps(dict(reversed(STRUCTURED.items()))))
    answers["fence"] = completion(f"```json\n{json.dumps(STRUCTURED)}\n```\n")
    answers["none"] = completion(" \n")
    answers["missing"] = completion('{"description": ""}')
    answers["list"] = completion("[]")
    answers["mixed"] = completion(json.dumps({**STRUCTURED, "keywords": [7, "a"], "description": None}))

    def behaviour(request: Request) -> Reply:
        return Reply(answers[request.asked]) if request.asked in answers else well(request)

    server.behaviour = lambda request: fails(413)(request) if request.asked == "refused" else behaviour(request)
    stage = structure(server.url, categories=("vehicle", "plant"), language="ru")
    texts = ["a car", "", *answers, "refused"]
    car, blank, *rows, refused = run_stage(stage, [{"text": text} for text in texts])
    cut, prose, long, thought, many, order, fence, none, missing, of_list, mixed = rows
    assert refused == {"error": "RequestRefused: 413: something"}
    assert car["llama_extracted"] == json.dumps({**STRUCTURED, "description": "a car"})
    del car["llama_extracted"]
    assert car == {"description": "a car", "categories": "vehicle", "keywords": "car, red", "image_text": ""}
    assert blank == dict.fromkeys(Structure.writes, "")
    assert cut == {"llama_extracted": '{"description": "A', "error": "CutAnswer: the JSON ends after 9 tokens"}
    assert prose["error"].startswith("ValueError: Expecting value")
    assert prose["llama_extracted"] == "Here is your JSON"
    assert (long["description"], "error" in long) == ("a" * 400, False)
    assert json.loads(long["llama_extracted"])["description"] == "a" * 401, "as it came"
    assert many["keywords"] == "a, b, c, d, e, f, g, h, i, j"
    assert order["description"] == fence["description"] == "A car."
    assert list(json.loads(order["llama_extracted"])) == list(reversed(STRUCTURED))
    assert fence["llama_extracted"].startswith("```json")
    assert none == {"llama_extracted": " \n", "error": "EmptyAnswer: the server's answer holds no text"}
    assert missing["error"].startswith("ValueError: $: expected the properties")
    assert of_list["error"] == "ValueError: $: expected object, got list"
    assert mixed["error"] == "ValueError: $.description: expected string, got NoneType"
    assert thought["description"] == "A car."
    request = server.requests[0]
    assert request.body["messages"][0] == {"role": "system", "content": stage.system_prompt()}
    assert request.body["response_format"]["json_schema"]["schema"]["properties"] == stage.answer_schema["properties"]
    assert "logprobs" not in request.body


def test_texts_may_hold_anything(server: EndpointServer) -> None:
    odd = "\0\x1b[2J\ud800 \u2028 \U0001f600 кот </think"
    server.behaviour = lambda request: Reply(completion(json.dumps({**STRUCTURED, "image_text": request.asked})))
    (row,) = run_stage(structure(server.url), [{"text": odd}])
    assert row["image_text"] == odd
    server.behaviour = lambda _: Reply(completion(odd))
    (row,) = run_stage(describe(server.url), [{"image": PICTURES[0]}])
    assert row["text"] == odd.strip()


def test_a_model_on_a_server_needs_nothing_here() -> None:
    for stage in (describe("http://h/v1", device="cuda"), structure("http://h/v1", device="cuda", batch_size=999)):
        assert stage.need() == Need()
        assert stage.missing_gb == 0
        assert stage.device == "cpu", "no GPU is asked for where `device: cuda` is for all stages"
        assert stage.auto_batch_size(None, 0.0) == 16


def test_a_model_on_a_server_waits_for_no_memory_and_evicts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a model on the GPU, which may fill it, works on meanwhile."""
    monkeypatch.setattr(device, "has_gpu", lambda: True)
    monkeypatch.setattr(device, "gpu_free_gb", lambda: 0.1)
    monkeypatch.setattr(device, "host_free_gb", lambda: 0.1)
    journal = Journal()
    here, there = fakes.Describe(journal=journal), structure("http://127.0.0.1:9/v1")
    models = ModelCache([here, there], capacity=1, clear_threshold_gb=1.0)

    def use() -> None:
        with models.use(there):
            pass

    with models.use(here):
        thread = threading.Thread(target=use, daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive(), "it waits for the other"
        with models.use(there):
            assert not models.keep_only(here), "nothing would be freed, and nobody is waited for"
    assert journal.closes == []
    with models.use(fakes.EmbedText(journal=journal)):  # for which there is no place
        assert journal.closes == [here.name]
    models.close()


def test_settings_record_the_endpoint_and_the_model_and_not_what_is_speed() -> None:
    for stage in (describe("http://h/v1"), structure("http://h/v1")):
        settings = stage_settings(stage)
        assert (settings["endpoint"], settings["model"]) == ("http://h/v1", MODEL)
        assert stage_settings(dataclasses.replace(stage, batch_size=3)) == settings  # type: ignore[type-var]
        assert stage_settings(dataclasses.replace(stage, endpoint="http://i/v1")) != settings  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"endpoint": ""}, "needs the address of a server, such as endpoint: http://127.0.0.1:8000/v1"),
        ({"engine": "auto"}, "engine is auto, and `endpoint:` is for engine: endpoint: set that, or remove it"),
        ({"model": ""}, "needs the server's name of the model as `model:`"),
        ({"revision": "main"}, "revision: is for a model on this machine, and the engine is endpoint: remove it"),
        ({"endpoint": "127.0.0.1:8000/v1"}, "endpoint: it is not an address such as http://127.0.0.1:8000/v1"),
        ({"endpoint": "ftp://h/v1"}, "endpoint: it is not an address"),
        ({"endpoint": "http:///v1"}, "endpoint: it is not an address"),
        ({"endpoint": "http://h:99999/v1"}, "endpoint: it is not an address"),
        ({"endpoint": "http://h:0/v1"}, "endpoint: it is not an address"),
        ({"endpoint": "http://[::1/v1"}, "endpoint: it is not an address"),
        ({"endpoint": "http://a b/v1"}, "endpoint: it is not an address"),
        ({"endpoint": "http://gpu..lan:8000/v1"}, "endpoint: it is not an address"),
        ({"endpoint": f"http://{'a' * 64}.lan/v1"}, "endpoint: it is not an address"),
        ({"endpoint": "http://h/v1?key=secret"}, "endpoint: it has a `?` or a `#`"),
        ({"endpoint": "http://h/v1#secret"}, "endpoint: it has a `?` or a `#`"),
        ({"endpoint": "http://me:secret@h/v1"}, "put the token into the environment variable VEC_ENDPOINT_TOKEN"),
        ({"endpoint": "http://secret@h/v1"}, "endpoint: it holds a user or a password"),
    ],
)
@pytest.mark.parametrize("use", ["describe", "structure"])
def test_options_that_do_not_go_together_are_refused(
    use: str, options: dict[str, str], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    entry = {"use": use, "model": MODEL, "engine": "endpoint", "endpoint": "http://h/v1", **options}
    path.write_text(yaml.safe_dump({"stages": [entry]}))
    with pytest.raises(ConfigError, match=re.escape(message)) as raised:
        load_config(path)
    assert str(raised.value).startswith(f"{use}: ")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("make", "name", "value", "way_out"),
    [
        (describe, "quantization", "nf4", "--set describe.quantization=none"),
        (describe, "trust_remote_code", True, "--set describe.trust_remote_code=false"),
        (structure, "file", "a.gguf", "--set structure.file="),
    ],
)
def test_options_of_a_model_on_this_machine_are_refused(
    make: Callable[..., Stage], name: str, value: Any, way_out: str
) -> None:
    said = f"{name}: is for a model on this machine, and the engine is endpoint: remove it, or {way_out}"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        make("http://h/v1", **{name: value})


@pytest.mark.parametrize("url", ["http://[::1]:8000/v1", "https://api.example.org/openai/v1/", "http://gpu-3:8000"])
def test_addresses_of_servers_are_taken(url: str) -> None:
    assert describe(url).endpoint == url


# --- Runs

PATIENT = "from vec_pipeline.engines import endpoint; endpoint.FIRST_WAIT_S = 0.01"  # for a server that is gone


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        picture(number).save(folder / f"{number:02}.png")
    return folder


def command(photos: Path, server: EndpointServer, *options: str) -> list[str]:
    """Annotate into out/a.csv beside the pictures, four at a time."""
    config = photos.parent / "config.yaml"
    remote = {"engine": "endpoint", "endpoint": server.url, "model": MODEL}
    stages = [{"use": "open_image"}, {"use": "describe", **remote}, {"use": "structure", **remote}]
    config.write_text(yaml.safe_dump({"device": "cuda", "chunk_size": 4, "stages": stages}))
    arguments = [photos, "--config", config, "--output", photos.parent / "out" / "a.csv", *options]
    start = f"{PATIENT}\nimport runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path('run.py', run_name='__main__')"
    return [sys.executable, "-c", start, "run.py", *map(str, arguments)]


def run(photos: Path, server: EndpointServer, *options: str, **environment: str) -> Run:
    return subprocess.run(
        command(photos, server, *options),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(PROJECT), **environment},
    )


def rows_of(photos: Path) -> dict[str, Any]:
    table = load_annotations(photos.parent / "out" / "a.csv")
    return {Path(row["image_path"]).stem: row for row in table.to_dict("records")}


def pictures_asked(server: EndpointServer) -> list[str]:
    """By the stage describe, in order of arrival."""
    return [name for name in server.asked() if name.startswith("#")]


def test_a_run_asks_once_and_a_second_one_only_what_is_left(photos: Path, server: EndpointServer) -> None:
    first = run(photos, server, "--limit", "5")
    assert first.returncode == 0, first.stderr
    assert len(server.requests) == 10
    second = run(photos, server, "--set", "describe.batch_size=2")
    assert second.returncode == 0, second.stderr
    assert len(server.asked()) == len(set(server.asked())) == 24, "12 pictures and 12 texts, each once"
    rows = rows_of(photos)
    assert [rows[f"{number:02}"]["text"] for number in range(12)] == [f"A picture of {name}." for name in NAMES]
    for row in rows.values():
        assert row["description"] == row["text"]
        assert (row["categories"], row["keywords"], row["error"]) == ("vehicle", "car, red", "")
        assert row["text_confidence"] == pytest.approx((1 + math.exp(-0.5)) / 2, abs=1e-4)
    settings = yaml.safe_load((photos.parent / "out" / "a.settings.yaml").read_text())
    assert settings["stages"]["describe"]["endpoint"] == settings["stages"]["structure"]["endpoint"] == server.url
    (photos.parent / "out" / "a.csv").unlink()
    third = run(photos, server)
    assert third.returncode == 0, third.stderr
    assert rows_of(photos).keys() == rows.keys()
    assert len(server.requests) == 24, "all results were in the cache"


def test_a_server_that_dies_leaves_the_finished_rows_and_a_rerun_continues(
    photos: Path, server: EndpointServer
) -> None:
    def behaviour(request: Request) -> Reply:
        if len(server.asked()) - len(pictures_asked(server)) == 5:  # the first four texts are answered
            threading.Thread(target=server.die).start()
            return dataclasses.replace(well(request), delay_s=10)
        return well(request)

    server.behaviour = behaviour
    first = run(photos, server)
    assert first.returncode == 2, first.stdout
    (sentence,) = [line for line in first.stderr.splitlines() if server.url in line]
    assert re.search(rf"^run.py: {server.url} is down \(no connection: .*\): start the server, or set", sentence)
    finished = rows_of(photos)
    assert 4 <= len(finished) <= 7, "with what was answered beside the fifth"
    assert all(not row["error"] for row in finished.values())
    with EndpointServer(port=server.port) as again:
        second = run(photos, again)
        assert second.returncode == 0, second.stderr
        asked = {NAMES[int(stem)] for stem in finished}
        assert not asked & set(pictures_asked(again)), "no finished row is asked about again"
        assert len(again.asked()) == len(set(again.asked()))
    rows = rows_of(photos)
    assert len(rows) == 12
    assert all(not row["error"] for row in rows.values())


def answered(server: EndpointServer, good: int, status: int = 401) -> Callable[[Request], Reply]:
    """A server that answers so many requests about pictures, one after the other, and fails from then on."""
    return lambda request: well(request) if len(pictures_asked(server)) <= good else fails(status)(request)


def test_no_answer_is_asked_for_twice_where_the_server_stops_the_run(photos: Path, server: EndpointServer) -> None:
    options = ("--set", "chunk_size=12", "--set", "describe.batch_size=1")
    server.behaviour = answered(server, 5)
    for asked in (6, 7):
        ended = run(photos, server, *options)
        assert ended.returncode == 2, ended.stderr
        assert len(pictures_asked(server)) == asked, "the second run begins with the one that was refused"
    server.behaviour = well
    assert run(photos, server, *options).returncode == 0
    assert {name: pictures_asked(server).count(name) for name in NAMES} == {**dict.fromkeys(NAMES, 1), NAMES[5]: 3}


def test_a_stop_keeps_the_answers_of_its_batch() -> None:
    """Of pictures and of texts, in their places, those in flight and those with errors aside."""
    for make, rows in ((describe, [{"image": each} for each in PICTURES]), (structure, [{"text": n} for n in NAMES])):
        with EndpointServer() as server:
            refused = {NAMES[1]: fails(400), NAMES[5]: fails(401)}
            server.behaviour = lambda request, refused=refused: refused.get(request.asked, well)(request)  # type: ignore[misc]
            stage = make(server.url)
            with closing(stage.load()) as model, pytest.raises(Interrupted, match="answers 401") as raised:
                stage.run(model, rows, 1)
        kept = raised.value.results
        assert [bool(each) for each in kept] == [number < 5 for number in range(12)]
        assert kept[1] == {"error": "RequestRefused: 400: something"}
        assert kept[4] and NAMES[4] in kept[4]["text" if make is describe else "description"]


def test_a_killed_run_asks_again_only_for_what_was_in_its_batches(photos: Path, server: EndpointServer) -> None:
    stuck = NAMES[7]
    server.behaviour = for_one(stuck, lambda _: Reply({}, then="hang"))
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    options = ("--set", "chunk_size=12", "--set", "describe.batch_size=1")
    arguments = command(photos, server, *options)
    with subprocess.Popen(
        arguments, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    ) as worker:
        wait_until(lambda: stuck in server.asked())
        worker.kill()
    server.behaviour = well
    assert run(photos, server, *options).returncode == 0
    twice = [name for name in NAMES if pictures_asked(server).count(name) > 1]
    assert set(twice) == set(NAMES[6:8]), "of a batch of two"
    assert len(rows_of(photos)) == 12


def test_a_picture_that_the_server_fails_with_costs_no_other(photos: Path, server: EndpointServer) -> None:
    server.behaviour = for_one(NAMES[5], fails(500))
    first = run(photos, server)
    assert first.returncode == 1, first.stderr
    errors = {stem: row["error"] for stem, row in rows_of(photos).items()}
    assert errors.pop("05") == "describe: ServerError: 500: something"
    assert set(errors.values()) == {""}
    assert max(server.asked().count(name) for name in server.asked() if name != NAMES[5]) == 1, "nothing is bisected"
    server.behaviour, server.requests = well, []
    second = run(photos, server, "--retry-errors")
    assert second.returncode == 0, second.stderr
    assert server.asked() == [NAMES[5], f"A picture of {NAMES[5]}."]


def test_a_server_that_fails_with_every_picture_stops_the_run(photos: Path, server: EndpointServer) -> None:
    server.behaviour = fails(500)
    ended = run(photos, server, "--set", "max_consecutive_errors=4")
    assert ended.returncode == 2
    assert "4 images in a row failed with the same error (describe: ServerError: 500: something)" in ended.stderr


def test_a_wrong_token_and_a_server_that_is_down_end_the_run_before_the_first_picture(
    photos: Path, server: EndpointServer
) -> None:
    server.token = "the right one"
    ended = run(photos, server, VEC_ENDPOINT_TOKEN="secret-7")
    assert ended.returncode == 2
    assert f"run.py: {server.url} answers 401 (the token is wrong: Bearer ***): set the environment" in ended.stderr
    server.die()
    ended = run(photos, server, VEC_ENDPOINT_TOKEN="secret-7")
    assert ended.returncode == 2
    assert f"run.py: {server.url} does not answer" in ended.stderr
    assert not server.requests
    assert not rows_written(photos)


def rows_written(photos: Path) -> bool:
    return (photos.parent / "out" / "a.csv").exists()


def test_the_token_is_in_no_file(photos: Path, server: EndpointServer) -> None:
    server.token = "secret-7"
    server.behaviour = lambda request: (
        fails(400, request.headers["authorization"])(request) if request.asked == NAMES[5] else well(request)
    )
    ended = run(photos, server, "--set", "log_level=debug", VEC_ENDPOINT_TOKEN="secret-7")
    assert ended.returncode == 1, ended.stderr
    assert rows_of(photos)["05"]["error"] == "describe: RequestRefused: 400: Bearer ***"
    files = sorted((photos.parent / "out").iterdir())
    assert {file.suffix for file in files} >= {".csv", ".log", ".yaml", ".sqlite"}
    assert not [file for file in files if b"secret-7" in file.read_bytes()]
    assert "secret-7" not in ended.stdout + ended.stderr


@pytest.mark.parametrize("stuck", [NAMES[9], f"A picture of {NAMES[9]}."], ids=["describe", "structure"])
def test_ctrl_c_does_not_wait_for_an_answer(stuck: str, photos: Path, server: EndpointServer) -> None:
    """Nor for the next request of a stage that runs in a thread."""
    server.behaviour = for_one(stuck, lambda _: Reply({}, then="hang"))
    csv = photos.parent / "out" / "a.csv"
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(
        command(photos, server), cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    ) as worker:
        wait_until(lambda: stuck in server.asked() and csv.exists() and csv.read_bytes().count(b"\n") > 8)
        worker.send_signal(signal.SIGINT)
        assert worker.wait(60) == 130
    assert len(rows_of(photos)) == 8
    assert endpoint.TIMEOUT_S > 60


def test_check_asks_the_server(photos: Path, server: EndpointServer, capsys: pytest.CaptureFixture[str]) -> None:
    command(photos, server)  # writes the configuration
    arguments = ["check", "--config", str(photos.parent / "config.yaml"), "--output", str(photos.parent / "b.csv")]
    main(arguments)
    lines = capsys.readouterr().out.splitlines()
    assert f"ok    describe: {MODEL} at {server.url}" in lines
    assert f"ok    structure: {MODEL} at {server.url}" in lines
    server.models = ("another",)
    assert main(arguments) == 2
    lines = capsys.readouterr().out.splitlines()
    assert f"FAIL  describe: {server.url} has no model {MODEL!r}: it has another: set `model:` to one of them" in lines
    assert not server.requests


# --- Servers of others, with the bundled models

VISION = PROJECT / "models" / "demo" / "vision_language"
LLAMA = PROJECT / "models" / "demo" / "llama" / "llama.gguf"
CATEGORIES = ("animal", "building", "household", "plant", "shape", "sky", "vehicle", "sign", "nothing")


@contextlib.contextmanager
def served(folder: Path, model: Path, *program: str) -> Iterator[str]:
    """The URL of a program that serves a model, once it is ready. It is killed at the end."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-m", *program, str(model), "--host", "127.0.0.1", "--port", str(port)]
    with (
        (folder / "server.log").open("w") as log,
        subprocess.Popen(arguments, stdout=log, stderr=log, env=environment, cwd=folder) as process,
    ):
        try:
            wait_until(lambda: process.poll() is not None or is_ready(url, str(model)), 120)
            assert process.poll() is None, (folder / "server.log").read_text()
            yield url
        finally:
            process.kill()


def is_ready(url: str, model: str) -> bool:
    try:
        endpoint.check_model(url, model)
    except UserError:
        return False
    return True


@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = ("transformers.cli.transformers", "serve", "--device", "cpu", "--dtype", "float32")
    with served(tmp_path_factory.mktemp("transformers"), VISION, *program) as url:
        yield url


@pytest.fixture(scope="module")
def llama_cpp_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("llama_cpp"), LLAMA, "llama_cpp.server", "--n_ctx", "2048", "--model") as url:
        yield url


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    paths = sorted(path for path in EXAMPLES.iterdir() if path.suffix in (".png", ".jpg"))[:8]
    return [open_image(path.read_bytes(), 112) for path in paths]


def test_transformers_serve_says_what_our_engine_says(transformers_serve: str, images: list[Image.Image]) -> None:
    """It knows no logprobs."""
    rows: list[Values] = [{"image": image} for image in images]
    here = run_stage(Describe(model=str(VISION), device="cpu", max_new_tokens=64), rows)
    there = run_stage(describe(transformers_serve, model=str(VISION), max_new_tokens=64), rows)
    assert there == [{**row, "text_confidence": None} for row in here]
    cut = run_stage(describe(transformers_serve, model=str(VISION), max_new_tokens=5), rows[:2])
    for row, whole in zip(cut, here, strict=False):
        assert row["is_truncated"]
        assert row["text"] and whole["text"].startswith(row["text"])


def test_transformers_serve_fails_with_one_picture(
    transformers_serve: str, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers 500 for a picture that is none, and breaks connections after that."""
    whole = endpoint.data_url
    monkeypatch.setattr(endpoint, "data_url", lambda image: whole(image)[: None if image.size != (9, 9) else 60])
    broken = Image.new("RGB", (9, 9))
    rows: list[Values] = [{"image": image} for image in (images[0], broken, *images[1:4])]
    first, error, *others = run_stage(describe(transformers_serve, model=str(VISION), max_new_tokens=64), rows)
    assert error == {"error": "ServerError: 500: Internal Server Error"}
    assert all(row["text"] for row in (first, *others))


def test_llama_cpp_server_says_what_our_engine_says(llama_cpp_server: str) -> None:
    """It knows no json_schema."""
    rows: list[Values] = [
        {"text": f'{count} {colour} {kind} on a white background. The text reads "SALE".'}
        for count in ("Two", "Three")
        for colour in ("red", "green")
        for kind in ("cars", "cats", "stars")
    ]
    here = run_stage(Structure(model=str(LLAMA), device="cpu", batch_size=4, categories=CATEGORIES), rows)
    there = run_stage(structure(llama_cpp_server, model=str(LLAMA), categories=CATEGORIES), rows)
    assert there == here
    assert there[0]["image_text"] == "SALE"


def test_llama_cpp_server_gives_the_probabilities_of_tokens(llama_cpp_server: str) -> None:
    with closing(Endpoint(llama_cpp_server, str(LLAMA), endpoint.WITH_LOGPROBS)) as model:
        (answer,) = model.ask([lambda: [{"role": "user", "content": "A red car."}]], 20, 1)
    assert answer.text
    assert 0.5 < (answer.confidence or 0) <= 1


def test_a_model_that_the_servers_do_not_have_is_named(transformers_serve: str, llama_cpp_server: str) -> None:
    for url in (transformers_serve, llama_cpp_server):
        with pytest.raises(UserError, match=rf"^{url} has no model 'org/none': it has {PROJECT}/models/demo/"):
            endpoint.check_model(url, "org/none")
