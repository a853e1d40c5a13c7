"""The child process of llama.cpp: its errors, how it dies, and that it leaves nothing behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import llama_cpp
import psutil
import pytest

from tests.tiny_gguf import write_tiny_gguf
from vec_pipeline.engines import Message
from vec_pipeline.engines.grammar import to_gbnf
from vec_pipeline.engines.llama_process import LlamaDied, LlamaProcess, supports_gpu
from vec_pipeline.engines.llama_slots import LlamaSlots

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = {"tokens_per_slot": 2048, "threads": 1}
CHATS: list[list[Message]] = [[{"role": "user", "content": text}] for text in ("a red car", "две кошки", "雨")]
SHORT = to_gbnf({"type": "object", "properties": {"a": {"type": "string", "maxLength": 9}}})
LONG = to_gbnf({"type": "string", "minLength": 1900, "maxLength": 1900})
MANY_CHATS = CHATS * 40

# A program like run.py: with a main guard, started from another folder, reporting on stdout.
PROGRAM = """
import os, signal, time
from vec_pipeline.engines.llama_process import LlamaProcess
CHATS = [[{{"role": "user", "content": "a red car"}}]] * 40
if __name__ == "__main__":
    llama = LlamaProcess({path!r}, tokens_per_slot=2048, threads=1)
    {body}
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def llama(path: Path) -> Iterator[LlamaProcess]:
    with closing(LlamaProcess(path, **OPTIONS)) as llama:
        yield llama


def child_pid(llama: LlamaProcess) -> int:
    return llama._child._process.pid


def is_gone(pid: int) -> bool:
    """True soon after the process has ended; False where it still runs after 10 seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def while_it_generates(action: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(0.3, action)
    timer.start()
    return timer


def start_program(path: Path, folder: Path, body: str) -> subprocess.Popen[str]:
    program = folder / "program.py"
    program.write_text(PROGRAM.format(path=str(path), body=body))
    return subprocess.Popen(
        [sys.executable, str(program)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )


def test_the_child_answers_as_llama_slots_does(path: Path, llama: LlamaProcess) -> None:
    with closing(LlamaSlots(path, **OPTIONS)) as slots:
        assert llama.generate(CHATS, SHORT, max_tokens=60) == slots.generate(CHATS, SHORT, max_tokens=60)
        assert llama.generate(CHATS, max_tokens=7) == slots.generate(CHATS, max_tokens=7)


@pytest.mark.parametrize("content", [b"", b"not a model at all", None], ids=["empty", "garbage", "missing"])
def test_a_model_that_does_not_load_is_a_value_error_here(tmp_path: Path, content: bytes | None) -> None:
    broken = tmp_path / "broken.gguf"
    if content is not None:
        broken.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.gguf(: no such file| is not | is damaged)"):
        LlamaProcess(broken, **OPTIONS)


def test_a_truncated_model_is_a_value_error_here(tmp_path: Path, path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(path.read_bytes()[:-10_000])
    with pytest.raises(ValueError, match=r"broken\.gguf is .*not within the file bounds"):
        LlamaProcess(broken, **OPTIONS)


def test_a_context_that_cannot_be_allocated_is_a_memory_error_here(path: Path, tmp_path: Path) -> None:
    body = f"""
    import psutil, resource
    enough_to_load = psutil.Process(llama._child._process.pid).memory_info().vms + (200 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (enough_to_load, enough_to_load))
    try:
        LlamaProcess({str(path)!r}, context_tokens=1 << 21, tokens_per_slot=0, threads=1).generate(CHATS, max_tokens=2)
    except MemoryError as error:
        print("MemoryError:", error)
    """
    program = start_program(path, tmp_path, body.strip())
    output, _ = program.communicate(timeout=60)
    assert "MemoryError: llama.cpp cannot allocate a context of 2097152 tokens for 8 slots. " in output


def test_after_too_large_a_context_a_new_child_holds_a_smaller_one(path: Path, tmp_path: Path) -> None:
    """Real memory with a real limit: 64 sequences do not fit, 8 do."""
    body = f"""
    import psutil, resource
    first = llama._child._process.pid
    enough_to_load = psutil.Process(first).memory_info().vms + (200 << 20)
    llama.close()
    resource.setrlimit(resource.RLIMIT_AS, (enough_to_load, enough_to_load))
    llama = LlamaProcess({str(path)!r}, context_tokens=256, tokens_per_slot=1 << 12, batch_tokens=128, threads=1)
    for slots in (64, 8, 8):
        try:
            print(slots, len(llama.generate(CHATS, max_tokens=2, slots=slots)), llama._child._process.pid == first)
        except MemoryError as error:
            first = llama._child._process.pid
            print(slots, "MemoryError")
    """
    program = start_program(path, tmp_path, body.strip())
    output, _ = program.communicate(timeout=60)
    assert output.splitlines() == ["64 MemoryError", "8 40 False", "8 40 False"]


def test_an_invalid_request_leaves_the_child_alive(llama: LlamaProcess) -> None:
    before = child_pid(llama)
    with pytest.raises(ValueError, match="cannot use this grammar"):
        llama.generate(CHATS, "no grammar")
    assert len(llama.generate(CHATS, SHORT, max_tokens=60)) == len(CHATS)
    assert child_pid(llama) == before


def test_an_error_of_another_kind_is_named_and_the_child_replaced(llama: LlamaProcess) -> None:
    before = child_pid(llama)
    with pytest.raises(RuntimeError, match="KeyError: 'content'"):
        llama.generate([[{"role": "user"}]])  # type: ignore[typeddict-item]
    assert is_gone(before)
    assert len(llama.generate(CHATS, SHORT, max_tokens=60)) == len(CHATS)


def test_a_child_killed_during_a_call_is_reported_and_the_next_call_works(llama: LlamaProcess) -> None:
    expected = llama.generate(CHATS, SHORT, max_tokens=60)
    victim = child_pid(llama)
    while_it_generates(lambda: os.kill(victim, signal.SIGKILL))
    with pytest.raises(LlamaDied, match="signal SIGKILL"):
        llama.generate(MANY_CHATS, LONG, max_tokens=9000)
    assert llama.generate(CHATS, SHORT, max_tokens=60) == expected
    assert child_pid(llama) != victim


def test_the_stderr_of_an_abort_is_quoted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")  # it writes a traceback to stderr, as llama.cpp writes its error
    with closing(LlamaProcess(path, **OPTIONS)) as llama:
        while_it_generates(lambda: os.kill(child_pid(llama), signal.SIGABRT))
        with pytest.raises(LlamaDied, match=r"(?s)signal SIGABRT: .*llama_process\.py"):
            llama.generate(MANY_CHATS, LONG, max_tokens=9000)


def test_a_child_that_died_between_two_calls_is_replaced(llama: LlamaProcess) -> None:
    victim = child_pid(llama)
    os.kill(victim, signal.SIGKILL)
    # Its main thread is a zombie before the other threads have ended, so wait for the kernel to report its exit.
    os.waitid(os.P_PID, victim, os.WEXITED | os.WNOWAIT)
    assert len(llama.generate(CHATS, SHORT, max_tokens=60)) == len(CHATS)


def test_a_death_while_loading_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(LlamaDied, match="exit status 1: it left no message"):
        LlamaProcess(path, **OPTIONS)


def test_close_ends_the_child_and_frees_its_memory(path: Path) -> None:
    llama = LlamaProcess(path, **OPTIONS)
    child = child_pid(llama)
    llama.close()
    llama.close()
    assert is_gone(child)
    with pytest.raises(RuntimeError, match="closed"):
        llama.generate(CHATS)


def test_the_child_ends_with_the_last_reference(path: Path) -> None:
    llama = LlamaProcess(path, **OPTIONS)
    child = child_pid(llama)
    del llama
    assert is_gone(child)


def test_ctrl_c_while_waiting_leaves_an_object_that_works(llama: LlamaProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main = threading.main_thread().ident
        assert main is not None
        while_it_generates(lambda: signal.pthread_kill(main, signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            llama.generate(MANY_CHATS, LONG, max_tokens=9000)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(llama.generate(CHATS, SHORT, max_tokens=60)) == len(CHATS)


def test_ctrl_c_does_not_reach_the_child(path: Path, tmp_path: Path) -> None:
    body = """
    received = []
    signal.signal(signal.SIGINT, lambda *_: received.append("SIGINT"))
    child = llama._child._process.pid
    print("ready", child, flush=True)
    answers = llama.generate(CHATS, max_tokens=100)
    while not received:
        time.sleep(0.01)
    os.kill(child, signal.SIGINT)
    answers += llama.generate(CHATS, max_tokens=2)
    print(received, len(answers), child == llama._child._process.pid)
    """
    program = start_program(path, tmp_path, body.strip())
    assert program.stdout is not None
    assert program.stdout.readline().startswith("ready")
    os.killpg(program.pid, signal.SIGINT)
    output, _ = program.communicate(timeout=60)
    assert output.strip() == "['SIGINT'] 80 True"
    assert program.returncode == 0


@pytest.mark.parametrize(
    "body", ["signal.pause()", f"llama.generate(CHATS, {LONG!r}, max_tokens=9000)"], ids=["idle", "busy"]
)
def test_no_orphan_is_left_by_a_killed_parent(path: Path, tmp_path: Path, body: str) -> None:
    program = start_program(path, tmp_path, f"print(llama._child._process.pid, flush=True); {body}")
    assert program.stdout is not None
    child = int(program.stdout.readline())
    time.sleep(0.2)
    assert psutil.pid_exists(child)
    program.kill()
    program.wait()
    assert is_gone(child)


def test_no_orphan_is_left_by_a_parent_that_ends(path: Path, tmp_path: Path) -> None:
    program = start_program(path, tmp_path, "print(llama._child._process.pid, flush=True)")
    output, _ = program.communicate(timeout=60)
    assert program.returncode == 0
    assert is_gone(int(output))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="/proc is Linux")
def test_the_child_loads_llama_cpp_and_not_torch(llama: LlamaProcess) -> None:
    libraries = Path(f"/proc/{child_pid(llama)}/maps").read_text()
    assert "libllama" in libraries
    assert "libtorch" not in libraries


def test_the_parent_does_not_load_llama_cpp() -> None:
    code = "import sys, vec_pipeline.engines.llama_process; print('llama_cpp' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert output.stdout.strip() == "False"


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="/proc is Linux")
def test_the_child_finds_the_cuda_that_torch_brings(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel of llama.cpp for CUDA links libraries that are in torch's packages only."""
    (tmp_path / "nvidia/cu13/lib").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/mine")
    with closing(LlamaProcess(path, **OPTIONS)) as llama:
        lines = Path(f"/proc/{child_pid(llama)}/environ").read_bytes().split(b"\0")
    (folders,) = (line.decode().partition("=")[2] for line in lines if line.startswith(b"LD_LIBRARY_PATH="))
    assert folders.startswith("/opt/mine:")
    assert str(tmp_path / "nvidia/cu13/lib") in folders.split(":")


def test_supports_gpu_is_what_llama_cpp_says() -> None:
    assert supports_gpu() is bool(llama_cpp.llama_supports_gpu_offload())
