"""Threads for calls that block for a short time, such as saving a small file: many a second, at little cost each."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

CLOSE_S = 1.0  # to wait for a call to end


class Threads:
    """For one event loop, to which results go back together: run_in_executor costs several times as much."""

    def __init__(self, number: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._ended: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._is_notified = False  # the loop
        self._threads = [threading.Thread(target=self._work, name="saving", daemon=True) for _ in range(number)]
        for thread in self._threads:
            thread.start()

    async def call(self, function: Callable[[], Any]) -> Any:
        """Return what it returns; raise what it raises."""
        future = self._loop.create_future()
        self._calls.put((future, function))
        return await future

    def close(self) -> None:
        """End the threads once they have done what was asked for."""
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join(CLOSE_S)

    def _work(self) -> None:
        while call := self._calls.get():
            future, function = call
            try:
                self._ended.append((future, function(), None))
            except BaseException as error:
                self._ended.append((future, None, error))
            if not self._is_notified:
                self._is_notified = True
                with suppress(RuntimeError):  # the loop is closed
                    self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        self._is_notified = False  # first: what ends from now on notifies again
        while self._ended:
            future, result, error = self._ended.popleft()
            if future.done():  # cancelled
                continue
            if error:
                future.set_exception(error)
            else:
                future.set_result(result)
