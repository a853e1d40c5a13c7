"""What surrounds every request: who may ask, how large and how slow it may be, and the headers of every answer."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from fastapi import HTTPException

from vec_pipeline.commands.serve.access import is_right

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LINGER_S = 2.0
LARGEST_AT_ONCE = 8  # bodies as large as one may be, until they are kept: in memory, or in a folder that may be memory
RETRY_AFTER = {"Retry-After": "2"}  # seconds
BODY_KEPT = "body_kept"  # in the scope of a request: what to call when its body is kept
UPLOADS = ("POST", "/v1/annotations")
OPEN_PATHS = ("/healthz", "/", "/docs", "/review")  # without a token: they show no picture and no row
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "media-src 'self' blob:; connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass
class Bodies:
    """Bytes of the bodies, of all requests, that are being received or wait to be kept; and how many there may be."""

    most: int
    held: int = 0


@dataclass
class Body:
    """The share of one request."""

    bodies: Bodies
    held: int = 0

    def hold(self, size: int) -> None:
        """Have room for so many bytes altogether. Raises HTTPException where there is none now."""
        more = max(0, size - self.held)
        if self.bodies.held + more > self.bodies.most:
            raise HTTPException(429, "too much is being received: come again", RETRY_AFTER)
        self.bodies.held += more
        self.held += more

    def release(self) -> None:
        """Give the room back."""
        self.bodies.held -= self.held
        self.held = 0


class Limited:
    """An ASGI application behind these checks.

    token_hash: of the token that requests must have; empty where none is needed.
    hosts: names that a request may call the server by: a page elsewhere cannot have its own name lead here.
    most_bytes: of a body; LARGEST_AT_ONCE times that of all bodies. body_s: until all of it is there.
    is_full: whether the queue is full; then no upload is received.
    """

    def __init__(
        self,
        app: App,
        token_hash: str,
        hosts: frozenset[str],
        most_bytes: int,
        body_s: float,
        is_full: Callable[[], bool] = lambda: False,
    ) -> None:
        self._app, self._token_hash, self._hosts = app, token_hash, hosts
        self._most_bytes, self._body_s, self._is_full = most_bytes, body_s, is_full
        self._bodies = Bodies(LARGEST_AT_ONCE * most_bytes)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False
        refusal: HTTPException | None = None

        async def sending(message: Message) -> None:
            nonlocal has_begun
            if refusal and not has_begun:
                return  # what the application says of a body that it could not receive
            has_begun = True
            await send(with_headers(message))

        async def receiving() -> Message:
            nonlocal refusal
            try:
                return await receiving_all()
            except HTTPException as error:
                refusal = error
                raise

        body = Body(self._bodies)
        receiving_all = self._receiving(receive, body)
        try:
            self._check(scope)
            body.hold(length_of(headers_of(scope)))
            # A HEAD is answered as a GET, whose body the server leaves out.
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            await self._app({**scope, "method": method, BODY_KEPT: body.release}, receiving, sending)
        except HTTPException as error:
            refusal = error
        finally:
            body.release()
        if refusal and not has_begun:
            await answer(send, refusal, receive)

    def _check(self, scope: Message) -> None:
        headers = headers_of(scope)
        host, origin = headers.get("host", "").lower(), headers.get("origin", "").lower()
        if self._hosts and host not in self._hosts:
            raise HTTPException(421, "the server is not known by this name")
        if origin and origin.partition("://")[2] != host:
            raise HTTPException(403, "pages of other origins may not use this server")
        if (
            self._token_hash
            and not is_open(scope["path"])
            and not is_right(headers.get("authorization", ""), self._token_hash)
        ):
            raise HTTPException(401, "a token is needed: Authorization: Bearer TOKEN")
        if length_of(headers) > self._most_bytes:
            raise HTTPException(413, f"more than {self._most_bytes // 10**6} MB")
        if (scope["method"], scope["path"]) == UPLOADS and self._is_full():
            raise HTTPException(429, "too many pictures wait: come again", RETRY_AFTER)

    def _receiving(self, receive: Receive, body: Body) -> Receive:
        """Receive a body that may be neither too large nor too slow, as long as there is room for it."""
        size, deadline = 0, asyncio.get_running_loop().time() + self._body_s
        is_whole = False

        async def receiving() -> Message:
            nonlocal size, is_whole
            if is_whole:  # what is waited for now is the client's leaving
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the request took more than {self._body_s:.0f} s") from None
            size += len(message.get("body", b""))
            if size > self._most_bytes:
                raise HTTPException(413, f"more than {self._most_bytes // 10**6} MB")
            body.hold(size)  # more than was announced, or nothing was
            is_whole = not message.get("more_body", False)
            return message

        return receiving


def headers_of(scope: Message) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def length_of(headers: Mapping[str, str]) -> int:
    """The bytes that a body is to have; 0 where that is not said."""
    length = headers.get("content-length", "")
    return int(length) if length.isdecimal() else 0


def with_headers(message: Message) -> Message:
    """A message of an answer, with the headers that every answer has."""
    if message["type"] != "http.response.start":
        return message
    own = {name for name, _ in message.get("headers", ())}
    added = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in own]
    return {**message, "headers": [*message.get("headers", ()), *added]}


def is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith("/page/")


async def answer(send: Send, error: HTTPException, receive: Receive) -> None:
    """Send a refusal, and take for a moment what still comes: who is hung up on while sending reads nothing."""
    body = json.dumps({"detail": error.detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"connection", b"close")] + [(b"www-authenticate", b"Bearer")] * (error.status_code == 401)
    headers += [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
    await send(with_headers({"type": "http.response.start", "status": error.status_code, "headers": headers}))
    await send({"type": "http.response.body", "body": body, "more_body": True})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while (await receive()).get("more_body"):
                pass
    await send({"type": "http.response.body"})
