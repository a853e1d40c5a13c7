"""An OpenAI-compatible server on 127.0.0.1 that is as slow and fails in such ways as a test says."""

import asyncio
import base64
import io
import json
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

from PIL import Image

MODEL = "vision:7b"  # as Ollama calls models: neither a path nor the name of one on the hub
STRUCTURED = {"description": "A car.", "category": "vehicle", "keywords": ["car", "red"], "image_text": ""}


@dataclass(frozen=True)
class Request:
    """What a client has sent.

    connection: number of the connection, from 0. place: of the request on it, from 0.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    connection: int
    place: int

    @property
    def content(self) -> Any:
        """Of the last message: a text, or a list of parts."""
        return self.body["messages"][-1]["content"]

    @property
    def image(self) -> Image.Image:
        head, _, data = self.content[0]["image_url"]["url"].partition(",")
        assert head in ("data:image/png;base64", "data:image/jpeg;base64")
        return Image.open(io.BytesIO(base64.b64decode(data)))

    @property
    def asked(self) -> str:
        """What tells the requests of one run apart: the text, or the colour of the picture's first pixel."""
        return self.content if isinstance(self.content, str) else name_of(self.image.getpixel((0, 0)))


@dataclass(frozen=True)
class Reply:
    """What the server answers.

    then: what it does with the connection, `hang` and `reset` without an answer.
    """

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    then: Literal["keep", "hang", "reset"] = "keep"


Behaviour = Callable[[Request], Reply]


def name_of(colour: Any) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def completion(
    text: Any, *, logprobs: list[Any] | None = None, finish_reason: str | None = "stop", tokens: int = 7
) -> dict[str, Any]:
    """The body of an answer, as OpenAI's API has it.

    text: None, or a list of parts, too.
    """
    content = None if logprobs is None else {"content": [{"token": "x", "logprob": each} for each in logprobs]}
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": content}
    return {"object": "chat.completion", "choices": [choice], "usage": {"completion_tokens": tokens}}


def well(request: Request) -> Reply:
    """As a server that works answers: with what it was asked, or with JSON."""
    if "response_format" in request.body:
        return Reply(completion(json.dumps({**STRUCTURED, "description": request.asked[:400]})))
    return Reply(completion(f"A picture of {request.asked}.", logprobs=[0.0, -0.5]))


class EndpointServer:
    """Serves in a thread, within a `with` block, and notes all requests for answers.

    behaviour: answers these; it may be replaced at any time. models: names of the models that it lists.
    token: that it asks for, where it is not empty. port: 0 for any that is free.
    """

    def __init__(
        self, behaviour: Behaviour = well, models: tuple[str, ...] = (MODEL,), token: str = "", port: int = 0
    ) -> None:
        self.behaviour = behaviour
        self.models = models
        self.token = token
        self.requests: list[Request] = []
        self.most_in_flight = 0
        self._in_flight = 0
        self._connections: list[asyncio.StreamWriter] = []
        self._loop = asyncio.new_event_loop()
        self._socket = socket.create_server(("127.0.0.1", port))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "EndpointServer":
        self._thread.start()
        start = asyncio.start_server(self._serve, sock=self._socket)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.die()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def asked(self) -> list[str]:
        """What was asked, in order of arrival."""
        return [request.asked for request in self.requests]

    def die(self) -> None:
        """Close the port and every connection, as a process that is killed."""
        asyncio.run_coroutine_threadsafe(self._die(), self._loop).result(10)

    async def _die(self) -> None:
        self._server.close()
        for writer in self._connections:
            reset(writer)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection, place = len(self._connections), 0
        self._connections.append(writer)
        try:
            while (request := await received(reader, connection, place)) and await self._answer(request, writer):
                place += 1
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Return whether the connection stays open."""
        self._in_flight += request.path == "/v1/chat/completions"
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            reply = self._reply(request)
            await asyncio.sleep(reply.delay_s)
            if reply.then == "hang":
                await asyncio.sleep(3600)
            if reply.then == "reset":
                reset(writer)
                return False
            writer.write(encoded(reply))
            await writer.drain()
        finally:
            self._in_flight -= request.path == "/v1/chat/completions"
        return True

    def _reply(self, request: Request) -> Reply:
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            wrong = request.headers.get("authorization", "none")
            return Reply({"error": {"message": f"the token is wrong: {wrong}"}}, 401)
        if request.path == "/v1/models":
            return Reply({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})
        if request.path != "/v1/chat/completions":
            return Reply({"detail": "Not Found"}, 404)
        self.requests.append(request)
        return self.behaviour(request)


async def received(reader: asyncio.StreamReader, connection: int, place: int) -> Request | None:
    """The next request on a connection; None at its end."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").rstrip().split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    content = await reader.readexactly(int(headers.get("content-length", 0)))
    method, path, _ = first.split(" ")
    return Request(method, path, headers, json.loads(content) if content else {}, connection, place)


def encoded(reply: Reply) -> bytes:
    content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **reply.headers}
    lines = [f"HTTP/1.1 {reply.status} Reason", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + content


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection so that the client's next read fails, instead of seeing its end."""
    if not writer.is_closing():
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
