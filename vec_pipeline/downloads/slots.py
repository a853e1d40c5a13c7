"""Who may transfer now: so many at once in all, and so many from each host that does not ask to wait."""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from weakref import WeakValueDictionary


@dataclass(eq=False)
class Host:
    """What is known of a host while somebody wants something of it.

    answered: how often it has given what it was asked for.
    """

    running: int = 0
    answered: int = 0
    is_paused: bool = False
    is_in_line: bool = False
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)


class Slots:
    """Gives turns to hosts in rotation, so one with many requests does not keep others waiting. For one event loop."""

    def __init__(self, at_once: int, per_host: int) -> None:
        self._free = at_once
        self._per_host = per_host
        self._hosts: WeakValueDictionary[str, Host] = WeakValueDictionary()
        self._line: deque[Host] = deque()  # hosts that may begin and have somebody waiting
        self._resumes: dict[Host, asyncio.TimerHandle] = {}

    def host(self, name: str) -> Host:
        """The same one as long as anybody holds it."""
        if (host := self._hosts.get(name)) is None:
            host = self._hosts[name] = Host()
        return host

    async def take(self, host: Host) -> None:
        """Wait for a slot. `give` it back."""
        if self._free and not host.waiting and self._may_begin(host):
            self._begin(host)
            return
        turn = asyncio.get_running_loop().create_future()
        host.waiting.append(turn)
        self._queue(host)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(host)
            raise

    def give(self, host: Host) -> None:
        self._free += 1
        host.running -= 1
        self._queue(host)
        self._pump()

    def pause(self, host: Host, seconds: float) -> None:
        """Begin nothing more with this host until then."""
        loop = asyncio.get_running_loop()
        if (earlier := self._resumes.get(host)) and earlier.when() >= loop.time() + seconds:
            return
        if earlier:
            earlier.cancel()
        host.is_paused = True
        self._resumes[host] = loop.call_later(seconds, self._resume, host)

    def _resume(self, host: Host) -> None:
        host.is_paused = False
        del self._resumes[host]
        self._queue(host)
        self._pump()

    def _may_begin(self, host: Host) -> bool:
        return host.running < self._per_host and not host.is_paused

    def _begin(self, host: Host) -> None:
        self._free -= 1
        host.running += 1

    def _queue(self, host: Host) -> None:
        if host.waiting and not host.is_in_line and self._may_begin(host):
            host.is_in_line = True
            self._line.append(host)

    def _pump(self) -> None:
        while self._free and self._line:
            host = self._line.popleft()
            host.is_in_line = False
            while host.waiting and host.waiting[0].done():  # cancelled
                host.waiting.popleft()
            if host.waiting and self._may_begin(host):
                host.waiting.popleft().set_result(None)
                self._begin(host)
            self._queue(host)
