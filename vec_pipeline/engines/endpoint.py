"""Asks a model of an OpenAI-compatible server, such as vLLM, SGLang, llama-server or Ollama: several rows at once."""

import asyncio
import base64
import contextlib
import io
import json
import math
import os
import random
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from vec_pipeline.engines import REASONING, Answer, Message
from vec_pipeline.record import Interrupted, UserError

if TYPE_CHECKING:
    import httpx2
    from PIL.Image import Image

TOKEN_VARIABLE = "VEC_ENDPOINT_TOKEN"  # of the environment: the bearer token that a server asks for
TIMEOUT_S = 300.0  # of a request, until the last byte of its answer
CONNECT_TIMEOUT_S = 10.0
CHECK_TIMEOUT_S = 10.0  # of asking which models there are
KEEP_ALIVE_S = 3.0  # below the 5 s after which uvicorn closes a connection that is not in use
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0  # before a request is repeated
HUNG_IN_A_ROW = 8  # requests without an answer in time, and none with one between them: the server hangs
REFUSED_IN_A_ROW = 5  # refusals with the same words, and no answer yet: the pictures are not the cause
LOSSLESS_PX = 512 * 512  # of a picture: up to here it is sent as PNG, beyond as JPEG
JPEG_QUALITY = 95
COMPLETE = ("stop", "eos", "eos_token", "tool_calls", "", None)  # why an answer ends that is whole
MESSAGE_LENGTH = 300  # of what a server says about an error: some repeat the whole request

# Extra fields of a request, the best first. A server that refuses the first is asked with the next.
Variants = tuple[Mapping[str, Any], ...]
WITH_LOGPROBS: Variants = ({"logprobs": True, "top_logprobs": 1}, {})  # top_logprobs: else llama.cpp gives none


@dataclass(frozen=True)
class Kind:
    """A kind of failure.

    name: in the error of a row.
    tries: after so many the row has the error, or the run ends.
    """

    name: str
    tries: int


REFUSED = Kind("RequestRefused", 1)  # this picture or text; or a field of the request
DENIED = Kind("RequestDenied", 1)  # the same, by a status that means the whole server until it has answered others
FAILED = Kind("ServerError", 3)
HUNG = Kind("Timeout", 2)
LOST = Kind("ConnectionLost", 3)
BUSY = Kind("ServerBusy", 8)  # or starting, or gone: about a minute
LIMITED = Kind("TooManyRequests", 8)
KINDS = {  # by HTTP status; other 5xx are FAILED, other 4xx DENIED, and 3xx end the run
    **dict.fromkeys((400, 413, 415, 422), REFUSED),
    **dict.fromkeys((408, 425, 502, 503, 504, 529), BUSY),
    429: LIMITED,
}
OF_THE_USER = (401, 402, 407)  # the token, its credit, a proxy's password: they end the run whenever they come
REMEDIES = {
    401: f"set the environment variable {TOKEN_VARIABLE} to the token it asks for",
    403: f"set the environment variable {TOKEN_VARIABLE} to a token that may use the model",
    404: "check `model:` and `endpoint:`, which ends in /v1 for most servers",
}


@dataclass(frozen=True)
class Failure:
    """Why a request has no answer.

    wait_s: what the server asks for before the next; None where it does not say.
    """

    kind: Kind
    message: str
    wait_s: float | None = None


class Endpoint:
    """A model of a server: `ask` keeps several requests in flight, over connections that stay open.

    It can be closed from any thread, which ends `ask` at once.
    """

    def __init__(self, url: str, model: str, variants: Variants, causes: tuple[Kind, ...] = (REFUSED,)) -> None:
        """Open no connection yet. Raises UserError for a token, a proxy or a file of certificates that is of no use.

        causes: failures that a field of `variants` may have led to.
        """
        import httpx2

        self._url = url.rstrip("/")
        self._model = model
        self._variants = variants
        self._causes = causes
        self._token = token()
        with explaining(self._url):
            self._tls = httpx2.create_ssl_context()  # which takes 0.1 s
        self._client = self._new_client()
        self._answered = 0  # requests
        self._hung_in_a_row = self._refused_in_a_row = 0
        self._refused = ""  # the words of the last refusal
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()

    def ask(self, conversations: Sequence[Callable[[], Any]], max_tokens: int, at_once: int) -> list[Answer]:
        """Return an answer to each conversation, in order; one that fails alone has an error.

        conversations: functions that return the messages, called when it is their turn.
        max_tokens: of one answer.
        at_once: requests in flight.

        Raises Interrupted, with the answers so far, where the server itself, the token or the model is the cause, and
        RuntimeError once closed.
        """
        if self._loop.is_closed():
            raise RuntimeError("this endpoint is closed")
        return asyncio.run_coroutine_threadsafe(self._ask(conversations, max_tokens, at_once), self._loop).result()

    def close(self) -> None:
        """End the requests in flight, and the connections. May be called again."""
        if self._thread.is_alive():
            with contextlib.suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(CONNECT_TIMEOUT_S)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CONNECT_TIMEOUT_S)
            self._loop.close()

    async def _close(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()

    async def _ask(self, conversations: Sequence[Callable[[], Any]], max_tokens: int, at_once: int) -> list[Answer]:
        turn = asyncio.Semaphore(at_once)

        async def answer(conversation: Callable[[], Any]) -> Answer:
            async with turn:
                messages = await asyncio.to_thread(conversation)
                return await self._answer(self._body(messages, max_tokens))

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(answer(conversation)) for conversation in conversations]
        except BaseExceptionGroup as failures:
            error = failures.exceptions[0]  # which has ended the others
            if isinstance(error, UserError):
                answers = [None if task.cancelled() or task.exception() else task.result() for task in tasks]
                error = Interrupted(str(error), answers)
            raise error from None
        return [task.result() for task in tasks]

    def _body(self, messages: Any, max_tokens: int) -> dict[str, Any]:
        fixed = {"temperature": 0, "seed": 0, "stream": False}  # greedy: the same picture gets the same answer
        return {"model": self._model, "messages": messages, "max_tokens": max_tokens, **fixed}

    async def _answer(self, body: Mapping[str, Any]) -> Answer:
        """Repeat a request until there is an answer, or its error is known to be the row's."""
        variants, answered, fresh = self._variants, self._answered, False
        failures: list[Kind] = []
        while True:
            found = await self._attempt({**body, **variants[0]}, fresh=fresh)
            if isinstance(found, Answer):
                return await self._settled(body, found, variants, may_have_passed=FAILED in failures)
            self._note(found)
            if found.kind in (BUSY, LIMITED) and answered != self._answered:
                failures, answered = [], self._answered  # it answers others: it is our turn some time
            failures.append(found.kind)
            tries = failures.count(found.kind)
            is_of_a_field = found.kind in self._causes and (found.kind == REFUSED or tries == FAILED.tries - 1)
            if is_of_a_field and variants[1:]:
                variants = variants[1:]
                if found.kind == REFUSED:
                    continue
            elif tries >= found.kind.tries:
                return await self._give_up(found)
            fresh = found.kind in (FAILED, LOST, HUNG)  # transformers serve resets a connection that it answered 500 on
            if not (found.kind == LOST and tries == 1):  # a connection that was not in use for a while may be closed
                await asyncio.sleep(wait_s(len(failures), found.wait_s))

    async def _settled(
        self, body: Mapping[str, Any], answer: Answer, variants: Variants, *, may_have_passed: bool
    ) -> Answer:
        """Remember the first of the variants that has an answer, and return that of a request.

        may_have_passed: another variant had an error that another try may not have: it is tried once more.
        """
        self._answered, self._hung_in_a_row, self._refused_in_a_row = self._answered + 1, 0, 0
        if may_have_passed and len(variants) < len(self._variants):
            again = await self._attempt({**body, **self._variants[0]}, fresh=True)
            if isinstance(again, Answer):
                answer, variants = again, self._variants
            elif again.kind not in self._causes:
                return answer
        if len(self._variants) > 1:
            self._variants = variants[:1]
        return answer

    async def _attempt(self, body: Mapping[str, Any], *, fresh: bool) -> Answer | Failure:
        """Send a request once. Raises UserError for what no other picture or text would change."""
        import httpx2

        try:
            async with asyncio.timeout(TIMEOUT_S):
                response = await self._post(body, fresh=fresh)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
            return Failure(BUSY, f"no connection: {reason(error)}")
        except (TimeoutError, httpx2.TimeoutException):
            return Failure(HUNG, f"no answer within {TIMEOUT_S:.0f} s")
        except httpx2.DecodingError as error:
            return Failure(FAILED, f"its answer is damaged: {reason(error)}")
        except httpx2.TransportError as error:
            return Failure(LOST, reason(error))
        return self._judged(response)

    async def _post(self, body: Mapping[str, Any], *, fresh: bool) -> "httpx2.Response":
        """Over a connection that is open already, or over a fresh one."""
        content = json.dumps(body).encode()  # httpx2's own raises for half a character, which a text may hold
        with explaining(self._url):
            if not fresh:
                return await self._client.post("chat/completions", content=content)
            async with self._new_client() as client:
                return await client.post("chat/completions", content=content)

    def _new_client(self) -> "httpx2.AsyncClient":
        import httpx2

        with explaining(self._url):
            return httpx2.AsyncClient(
                base_url=self._url,
                headers=headers(self._token),
                verify=self._tls,
                timeout=httpx2.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S, pool=None),
                limits=httpx2.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_S),
            )

    def _judged(self, response: "httpx2.Response") -> Answer | Failure:
        status = response.status_code
        if status == 200:
            try:
                return answer_of(response.json())
            except (ValueError, KeyError, IndexError, TypeError, AttributeError):
                return Failure(FAILED, f"its answer is not one of chat completions: {self._words(response)}")
        kind = KINDS.get(status) or (FAILED if status >= 500 else DENIED)
        if kind == DENIED and (status < 400 or status in OF_THE_USER or not self._answered):
            raise UserError(stopped(self._url, status, self._words(response)))
        return Failure(kind, f"{status}: {self._words(response)}", retry_after_s(response.headers.get("Retry-After")))

    def _words(self, response: "httpx2.Response") -> str:
        return words_of(response.content, self._token)

    def _note(self, failure: Failure) -> None:
        """Count requests without an answer in time. Raises UserError where there are only such, and for a long wait."""
        if failure.kind in (BUSY, LIMITED) and (failure.wait_s or 0.0) > LONGEST_WAIT_S:
            raise UserError(
                f"{self._url}: {failure.message}: it asks for a wait of {failure.wait_s:.0f} s: rerun after that"
            )
        self._hung_in_a_row += failure.kind == HUNG
        if self._hung_in_a_row >= HUNG_IN_A_ROW:
            raise UserError(
                f"{self._url}: {failure.message}, {self._hung_in_a_row} times in a row: set a smaller batch_size if it "
                "is slow, or start the server again; then rerun"
            )

    async def _give_up(self, failure: Failure) -> Answer:
        """The answer of a row whose error it is. Raises UserError where it is the server's."""
        if failure.kind == LIMITED:
            raise UserError(f"{self._url}: {failure.message}: set a smaller batch_size, or wait; then rerun")
        if failure.kind in (REFUSED, DENIED):
            self._count_refusal(failure)
        elif not await self._is_up():
            raise UserError(
                f"{self._url} is down ({failure.message}): start the server, or set `endpoint:` to where it is; then "
                "rerun"
            )
        return Answer("", False, 0, error=f"{failure.kind.name}: {failure.message}")

    def _count_refusal(self, failure: Failure) -> None:
        """Raises UserError where one request after the other is refused with the same words, whatever the numbers.

        Once the server has answered others, only DENIED counts: a folder may hold many pictures in a row that a
        filter of the server refuses with 400.
        """
        words = re.sub(r"\d+", "", failure.message)
        self._refused_in_a_row = self._refused_in_a_row + 1 if words == self._refused else 1
        self._refused = words
        if self._refused_in_a_row >= REFUSED_IN_A_ROW and (failure.kind == DENIED or not self._answered):
            raise UserError(
                f"{self._url} refuses one request after the other ({failure.message}): check `model:`, the token and "
                "the log of the server, or set a smaller `max_new_tokens` (describe) or `max_tokens` (structure); then "
                "rerun"
            )

    async def _is_up(self) -> bool:
        import httpx2

        try:
            with explaining(self._url):
                async with asyncio.timeout(CHECK_TIMEOUT_S), self._new_client() as client:
                    return (await client.get("models")).status_code < 500
        except (TimeoutError, httpx2.HTTPError):
            return False


class PictureEndpoint(Endpoint):
    """One question, asked about many pictures; after a system message where that is not empty."""

    def __init__(self, url: str, model: str, question: str, max_new_tokens: int, system_prompt: str = "") -> None:
        super().__init__(url, model, WITH_LOGPROBS)
        self._system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        self.set_question(question, max_new_tokens)

    def set_question(self, question: str, max_new_tokens: int) -> None:
        """Ask this from now on."""
        self._question, self._max_new_tokens = question, max_new_tokens

    def generate(self, images: Sequence["Image"], slots: int, questions: Sequence[str] | None = None) -> list[Answer]:
        """Answer the question about each image, in order, with `slots` requests in flight.

        questions: one for each image, instead of the one that is asked about all.
        """
        pairs = zip(images, questions or [self._question] * len(images), strict=True)
        return self.ask([partial(self._messages, *pair) for pair in pairs], self._max_new_tokens, slots)

    def _messages(self, image: "Image", question: str) -> list[dict[str, Any]]:
        picture = {"type": "image_url", "image_url": {"url": data_url(image)}}
        return [*self._system, {"role": "user", "content": [picture, {"type": "text", "text": question}]}]


class JsonEndpoint(Endpoint):
    """Conversations whose answers are JSON of one schema."""

    def __init__(self, url: str, model: str, schema: Mapping[str, Any]) -> None:
        super().__init__(url, model, response_formats(schema), (REFUSED, FAILED))  # llama_cpp.server answers 500

    def generate(
        self, conversations: Sequence[Sequence[Message]], gbnf: str, max_tokens: int, slots: int
    ) -> list[Answer]:
        """As `LlamaProcess.generate`, with `slots` requests in flight; the server makes its own grammar."""
        return self.ask([partial(list, each) for each in conversations], max_tokens, slots)


def response_formats(schema: Mapping[str, Any]) -> Variants:
    """The form of OpenAI, which most servers know, and the older one, the only one that llama_cpp.server knows."""
    closed = {**schema, "required": list(schema["properties"]), "additionalProperties": False}
    json_schema = {"name": "annotation", "schema": closed, "strict": True}
    return (
        {"response_format": {"type": "json_schema", "json_schema": json_schema}},
        {"response_format": {"type": "json_object", "schema": closed}},
    )


def check_model(url: str, model: str) -> None:
    """Raise UserError where the server does not answer, or has no such model."""
    names = models_of(url)
    if model not in names:
        from difflib import get_close_matches

        known = get_close_matches(model, names, n=3, cutoff=0.0)
        others = f" and {len(names) - len(known)} more" if names[len(known) :] else ""
        has = f"it has {', '.join(known)}{others}" if names else "it has none"
        raise UserError(f"{url} has no model {model!r}: {has}: set `model:` to one of them")


def models_of(url: str) -> list[str]:
    """The names of a server's models. Raises UserError where it cannot be asked."""
    import httpx2

    secret = token()
    try:
        with explaining(url):
            response = httpx2.get(f"{url.rstrip('/')}/models", headers=headers(secret), timeout=CHECK_TIMEOUT_S)
    except httpx2.HTTPError as error:
        raise UserError(
            f"{url} does not answer ({reason(error)}): start the server, or set `endpoint:` to where it is"
        ) from None
    words = words_of(response.content, secret)
    if response.status_code != 200:
        raise UserError(stopped(url, response.status_code, words))
    try:
        return [str(each["id"]) for each in response.json()["data"]]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{url} is not an OpenAI-compatible server ({words}): check `endpoint:`") from None


@contextlib.contextmanager
def explaining(url: str) -> Iterator[None]:
    """A block that connects. Raises UserError for an address, a proxy or a file of certificates that is of no use."""
    import httpx2

    try:
        yield
    except TimeoutError:
        raise
    except (ImportError, ValueError, OSError, httpx2.InvalidURL) as error:
        raise UserError(
            f"{url} cannot be asked ({reason(error)}): check `endpoint:`, and ALL_PROXY, HTTP_PROXY, HTTPS_PROXY "
            "and SSL_CERT_FILE of the environment"
        ) from None


def token() -> str:
    """The token of the environment, empty if there is none. Raises UserError, without it, if it cannot be sent."""
    found = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not (found.isascii() and found.isprintable()) or " " in found:
        raise UserError(f"{TOKEN_VARIABLE} holds a character that no token has: set it again")
    return found


def headers(secret: str) -> dict[str, str]:
    always = {"User-Agent": "vec-pipeline", "Content-Type": "application/json"}
    return {**always, "Authorization": f"Bearer {secret}"} if secret else always


def stopped(url: str, status: int, words: str) -> str:
    """The sentence for a status that no other picture or text would change."""
    remedy = REMEDIES.get(status, "check `endpoint:` and `model:`, and the log of the server")
    return f"{url} answers {status} ({words}): {remedy}"


def answer_of(content: Any) -> Answer:
    """The answer in the JSON of a response. Raises what an unexpected form of it leads to."""
    choice = content["choices"][0]
    message = choice["message"]
    text = text_of(message.get("content") or message.get("refusal") or "")
    begins = reasoning_length(text)
    return Answer(
        text[begins:].strip() if begins else text,
        choice.get("finish_reason") in COMPLETE,
        int((content.get("usage") or {}).get("completion_tokens") or 0),
        confidence_of(choice.get("logprobs")),
    )


def text_of(content: Any) -> str:
    """The text of a message, which is one or comes in parts. Raises TypeError for anything else."""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part["type"] == "text")
    if not isinstance(content, str):
        raise TypeError
    return content


def confidence_of(logprobs: Any) -> float | None:
    """The mean probability of the tokens, which most servers give without the end-of-turn token; None without any.

    Those of reasoning are left out where their texts show which they are.
    """
    try:
        tokens = (logprobs or {}).get("content") or []
        values = [float(each["logprob"]) for each in tokens]
        texts = [str(each.get("token") or "") for each in tokens]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    begins = reasoning_length("".join(texts))
    starts = accumulate(map(len, texts), initial=0)
    kept = [value for value, start in zip(values, starts, strict=False) if start >= begins]
    if not kept or any(map(math.isnan, kept)):
        return None
    return sum(math.exp(min(0.0, value)) for value in kept) / len(kept)


def reasoning_length(text: str) -> int:
    """How many characters of a text are reasoning that comes before the answer; all, where it does not end.

    A server whose template opens the reasoning gives its end alone, and a blank line after it: no text of JSON holds
    that, as a line break is escaped there.
    """
    for opening, closing in REASONING:
        if text.lstrip().startswith(opening):
            return len(text) - len(text.partition(closing)[2])
    if not any(opening in text for opening, _ in REASONING):
        for _, closing in REASONING:
            if (end := text.find(f"{closing}\n\n")) >= 0:
                return end + len(closing)
    return 0


def data_url(image: "Image") -> str:
    """The picture in a `data:` URL: lossless, or a JPEG of high quality where it is large."""
    file = io.BytesIO()
    is_small = image.width * image.height <= LOSSLESS_PX
    if is_small:
        image.save(
            file, "PNG", compress_level=1, compress_type=zlib.Z_RLE
        )  # half the time, and smaller than deflate's 1
    else:
        image.save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return f"data:image/{'png' if is_small else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode()}"


def wait_s(failures: int, wanted_s: float | None) -> float:
    """Seconds before the next try: twice as long each time, and what the server wants; not the same for all."""
    exponential_s = min(FIRST_WAIT_S * 2.0 ** (failures - 1), LONGEST_WAIT_S) * random.uniform(0.5, 1)
    if wanted_s is None:
        return exponential_s
    return max(exponential_s, min(wanted_s, LONGEST_WAIT_S) + random.uniform(0, FIRST_WAIT_S))


def retry_after_s(value: str | None) -> float | None:
    """What a Retry-After header says, in seconds from now: it is a number, or a date of HTTP."""
    if value is None:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(value)) if math.isfinite(float(value)) else None
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None


def words_of(content: bytes, secret: str) -> str:
    """What a response says, in one short line, without the token."""
    text = content.decode("utf-8", "replace")
    with contextlib.suppress(ValueError, RecursionError):
        text = next(messages_in(json.loads(text)), text)
    line = " ".join(text.split())
    return (line.replace(secret, "***") if secret else line)[:MESSAGE_LENGTH] or "no message"


def messages_in(content: Any) -> Iterator[str]:
    """Texts where servers put their message: {"error": {"message": ...}}, {"error": ...}, {"detail": ...}."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        for name in ("error", "message", "detail"):
            yield from messages_in(content.get(name))


def reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
