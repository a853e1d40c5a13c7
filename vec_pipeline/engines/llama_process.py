"""Runs `LlamaSlots` in a child process, because some failures of llama.cpp abort the process.

Requests and replies are pickles on the child's stdin and stdout; its stderr is kept for the error message if it dies.
"""

import contextlib
import functools
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, cast

from vec_pipeline.engines import Answer, Message, PromptSize

_PACKAGE_ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 120  # of looking for a GPU: libraries of a gigabyte may have to come from a slow disk
_ERRORS = {error.__name__: error for error in (ValueError, MemoryError, RuntimeError)}


class LlamaDied(RuntimeError):  # noqa: N818 (it says what happened)
    """The child process died. The message gives its exit status and the last lines of its stderr.

    Mostly for lack of memory: the kernel kills it, or llama.cpp aborts because a GPU has too little left to decode.
    """


class LlamaProcess:
    """`LlamaSlots` in a child process: the same options, the same `generate`, the same errors.

    If the child dies, `generate` raises LlamaDied. After that, and after any failure but an invalid request, the next
    call starts a new child with a context for the `slots` of that call: fewer slots take less memory. The child ends
    with `close()`, with the last reference to this object, and with the parent process, however that
    ends. Ctrl-C does not reach it.

    kv_bytes_per_token: memory of a token of context.
    slots: capacity of the child's context in sequences; 0 if there is none.

    Raises what LlamaSlots raises, and LlamaDied if the child dies while loading.
    """

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        self._options = {"path": os.fspath(path), **options}
        self._lock = threading.Lock()
        self._is_closed = False
        self.slots = 0
        self._child = _Child(self._options)
        self.kv_bytes_per_token = self._child.kv_bytes_per_token

    def generate(
        self,
        conversations: Sequence[Sequence[Message]],
        gbnf: str | None = None,
        max_tokens: int = 1024,
        slots: int = 8,
    ) -> list[Answer]:
        """As `LlamaSlots.generate`. An exception while it waits, such as KeyboardInterrupt, kills the child."""
        with self._lock:
            if self._is_closed:
                raise RuntimeError("this LlamaProcess is closed")
            if not self._child.is_alive:
                self.slots = 0
                self._child = _Child(self._options)
            request = {"conversations": conversations, "gbnf": gbnf, "max_tokens": max_tokens, "slots": slots}
            try:
                answers = cast(list[Answer], self._child.ask(request))
            except (MemoryError, RuntimeError):
                self._child.kill()  # it may hold memory that a smaller context does not need
                raise
            self.slots = max(self.slots, slots)
            return answers

    def close(self) -> None:
        """Ends the child, which frees its memory. May be called again."""
        self._is_closed = True
        self._child.kill()


class _Child:
    """The parent's side of a child process, which begins by loading a model with `options`."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(),
            start_new_session=True,  # Ctrl-C in a terminal signals the whole process group: the parent decides
        )
        self.kill = weakref.finalize(self, _kill, self._process)  # also on garbage collection and at interpreter exit
        self._last_lines: deque[bytes] = deque(maxlen=20)
        # The thread must not hold a reference to this object, or it would never be collected.
        self._reader = threading.Thread(target=_collect, args=(self._process.stderr, self._last_lines), daemon=True)
        self._reader.start()
        try:
            self.kv_bytes_per_token = int(self.ask(options))
        except BaseException:
            self.kill()
            raise

    @property
    def is_alive(self) -> bool:
        return bool(self.kill.alive) and self._process.poll() is None

    def ask(self, request: dict[str, Any]) -> Any:
        """Sends `request` and waits for the result, or raises the error that the child reports."""
        try:
            _send(cast(BinaryIO, self._process.stdin), request)
            error, result = pickle.load(cast(BinaryIO, self._process.stdout))
        except (EOFError, OSError, pickle.UnpicklingError):
            raise LlamaDied(self._describe_death()) from None
        except BaseException:
            self.kill()  # part of a reply may be left in the pipe, so this child is of no more use
            raise
        if error is not None:
            raise _ERRORS[error](result)
        return result

    def _describe_death(self) -> str:
        self.kill()  # a child whose pipe is closed is of no more use, even if it is still alive
        status = self._process.returncode
        self._reader.join(timeout=1)
        lines = b"".join(self._last_lines).decode("utf-8", "replace").strip()
        return f"the llama.cpp process ended by {_cause(status)}: {lines or 'it left no message'}"


def supports_gpu() -> bool:
    """Whether llama.cpp is built for a GPU and finds one."""
    return not gpu_problem()


@functools.cache
def gpu_problem() -> str:
    """Why llama.cpp does not use a GPU; empty if it can. Checked in a child, so that no GPU memory is taken here."""
    command = [sys.executable, "-P", "-c", "import llama_cpp; print(llama_cpp.llama_supports_gpu_offload())"]
    try:
        answer = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"did not answer within {TIMEOUT_S} s"
    reason = (answer.stderr.strip().splitlines() or [""])[-1][:300]
    if answer.returncode:
        return f"cannot be imported ({reason or _cause(answer.returncode)})"
    if answer.stdout.strip() == "True":
        return ""
    return f"cannot use the GPU ({reason})" if reason else "was built without the GPU"


def examine(path: str | os.PathLike[str], conversation: Sequence[Message], gbnf: str) -> PromptSize:
    """As `llama_slots.examine`, in a child: llama.cpp may abort while it reads a damaged file.

    Raises ValueError for what cannot be used, RuntimeError where llama.cpp itself cannot run.
    """
    code = "from vec_pipeline.engines import llama_process; llama_process._examine()"
    request = pickle.dumps((os.fspath(path), conversation, gbnf))
    command = [sys.executable, "-P", "-c", code]
    try:
        answer = subprocess.run(command, input=request, env=_environment(), capture_output=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"llama.cpp did not read the header of {path} within {TIMEOUT_S} s") from None
    if answer.returncode < 0:
        raise ValueError(
            f"{path} is damaged (llama.cpp ended by {_cause(answer.returncode)}): delete it, and download or copy it "
            "again"
        )
    if answer.returncode:
        reason = (answer.stderr.decode("utf-8", "replace").strip().splitlines() or [_cause(answer.returncode)])[-1]
        raise RuntimeError(f"llama.cpp cannot run ({reason[:300]}): run make llama")
    problem, size = pickle.loads(answer.stdout)
    if problem:
        raise ValueError(problem)
    return PromptSize(*size)


def _examine() -> None:
    """The child of `examine`: a problem or a size, pickled to stdout."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # as in `_serve`
    from vec_pipeline.engines import llama_slots

    try:
        _send(replies, ("", tuple(llama_slots.examine(*pickle.load(sys.stdin.buffer)))))
    except ValueError as error:
        _send(replies, (str(error), ()))


def _environment() -> dict[str, str]:
    """The child's environment: some variables are read when a library is imported."""
    paths = {
        "PYTHONPATH": [str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH")],
        "LD_LIBRARY_PATH": [os.environ.get("LD_LIBRARY_PATH"), *_cuda_folders()],
    }
    joined = {name: os.pathsep.join(filter(None, folders)) for name, folders in paths.items()}
    return {
        **os.environ,
        **{name: path for name, path in joined.items() if path},  # an empty one would mean the current folder
        "GGML_NO_BACKTRACE": "1",  # an abort would start a debugger
        "OMP_WAIT_POLICY": "passive",  # spinning at barriers beside another busy process makes steps 10 times slower
    }


def _cuda_folders() -> list[str]:
    """The CUDA libraries that torch's packages bring; llama.cpp's wheel for CUDA has none, and imports no torch."""
    spec = find_spec("nvidia")
    places = list(spec.submodule_search_locations or []) if spec else []
    return [str(folder) for place in places for folder in sorted(Path(place).glob("*/lib"))]


def _cause(status: int) -> str:
    """What ended a process."""
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # data buffered for a dead child cannot be flushed
            cast(BinaryIO, stream).close()


def _collect(stream: BinaryIO, lines: deque[bytes]) -> None:
    with stream:
        lines.extend(stream)


def _send(stream: BinaryIO, message: object) -> None:
    pickle.dump(message, stream)
    stream.flush()


def _serve() -> None:
    """The child: loads the model of the first request, then answers the others until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what llama.cpp prints must not end up among the replies
    requests = _read_requests()
    llama = None
    while True:
        request = requests.get()
        try:
            if llama is None:
                from vec_pipeline.engines.llama_slots import LlamaSlots

                llama = LlamaSlots(**request)
                _send(replies, (None, llama.kv_bytes_per_token))
            else:
                _send(replies, (None, llama.generate(**request)))
        except Exception as error:
            _send(replies, _describe(error))


def _read_requests() -> "queue.SimpleQueue[dict[str, Any]]":
    """Reads stdin in a thread, so that the parent's exit is noticed in the middle of an answer too.

    Linux's PR_SET_PDEATHSIG would not do: it is sent when the thread that started the child ends.
    """
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read() -> None:
        try:
            while True:
                requests.put(pickle.load(sys.stdin.buffer))
        finally:
            os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return requests


def _describe(error: Exception) -> tuple[str, str]:
    """The error as the parent will raise it: one of the classes it knows, and the message."""
    for name, kind in _ERRORS.items():
        if isinstance(error, kind):
            return name, str(error)
    return "RuntimeError", f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    _serve()
