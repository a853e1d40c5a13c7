"""Decodes many conversations at once in one llama.cpp context, each in its own slot (continuous batching).

Each step advances every running sequence by one token and fills the rest of the batch with prompts of new ones. The
common prefix of all prompts is evaluated once. The grammar is checked after sampling, which for greedy decoding gives
the same tokens as masking the whole vocabulary first, at a thousandth of the cost.

Some failures in this module abort the process; `llama_process` isolates the caller from them.
"""

import ctypes
import datetime
import heapq
import os
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import llama_cpp.llama_cpp as c
import numpy as np
import numpy.typing as npt
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vec_pipeline.device import free_cores
from vec_pipeline.engines import Answer, Message, PromptSize

os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # an abort would start a debugger

MAX_SLOTS = c.llama_max_parallel_sequences() - 1  # one sequence holds the common prefix
SMALL_MODEL_BYTES = 100_000_000  # of weights
_MAX_SCANNED_TOKENS = 4096  # if more may come next, those with the best logits are tried before all of them
_TOP_TOKENS = 128  # how many these are
_CACHE_FULL, _OUT_OF_MEMORY = 1, -2  # return codes of llama_decode

_TOKEN_DATA = np.dtype([("id", np.intc), ("logit", np.single), ("p", np.single)], align=True)

_FIXED_DATE = datetime.date(2024, 7, 26)  # Llama 3.1's default: an answer must not depend on the date of the run

Tokens = list[int]

_GIVE = "give the GGUF file of an instruct model"


class LlamaSlots:
    """One GGUF model and one context, shared by as many sequences as a call to `generate` asks for.

    context_tokens: context shared by all sequences, of which a long one may take a large part; 0 for separate contexts,
        which are faster on a CPU, where the attention of each sequence then covers its own tokens only.
    tokens_per_slot: context for each sequence, added to the shared one or separate. llama.cpp rounds both up to 256.
    batch_tokens: tokens of one step; more than there are sequences.
    gpu_layers: layers to keep on the GPU, the first where there are several; -1 for all.
    threads: CPU threads, 0 for as many as are useful.

    Raises ValueError if the file is not a model with a chat template, MemoryError if it does not fit into memory.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        context_tokens: int = 0,
        tokens_per_slot: int = 2048,
        batch_tokens: int = 512,
        gpu_layers: int = -1,
        threads: int = 0,
    ) -> None:
        self._model = _Model(path, gpu_layers)
        self._is_closed = False
        self._shared_tokens, self._tokens_per_slot = context_tokens, tokens_per_slot
        self._batch_tokens = batch_tokens
        self._threads = threads or best_threads(c.llama_model_size(self._model.handle))
        self._context: Any = None
        self._context_slots = 0
        self._slots = 0  # sequences that decode at once in the current call
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []  # oldest first
        self._is_paused = False  # no admission until a sequence has finished: the cache overflowed

    @property
    def kv_bytes_per_token(self) -> int:
        """Memory of one token's keys and values in all layers."""
        return self._model.kv_bytes_per_token

    def generate(
        self,
        conversations: Sequence[Sequence[Message]],
        gbnf: str | None = None,
        max_tokens: int = 1024,
        slots: int = 8,
    ) -> list[Answer]:
        """Answers every conversation greedily, in order, at most `slots` (1 to 255) at the same time.

        gbnf constrains the answers to a grammar with the start rule `root`. Contents are stripped and never parsed as
        special tokens. A prompt that does not fit the context gets an empty, incomplete answer and affects no other.

        Raises ValueError for an unusable grammar or conversation, RuntimeError or MemoryError if llama.cpp fails; the
        next call starts from scratch.
        """
        self._check(max_tokens, slots)
        prompts = [self._model.tokenize_chat(conversation) for conversation in conversations]
        grammar = _Grammar.parse(self._model, gbnf) if gbnf is not None else None
        sequences = [_Sequence(prompt, max_tokens) for prompt in prompts]
        try:
            self._ensure_slots(slots)
            self._enqueue(sequences, grammar)
            while self._waiting or self._running:
                self._step()
        except BaseException:
            self._reset()
            raise
        finally:
            for owner in [*sequences, grammar]:
                if owner is not None:
                    owner.free()
        return [self._answer(sequence) for sequence in sequences]

    def close(self) -> None:
        """Frees the context and the model. May be called again."""
        self._close_context()
        self._model.close()
        self._is_closed = True

    def _check(self, max_tokens: int, slots: int) -> None:
        if self._is_closed:
            raise RuntimeError("this LlamaSlots is closed")
        if max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}: it must be 1 or more")
        if not 1 <= slots <= min(MAX_SLOTS, self._batch_tokens - 1):  # beyond that llama.cpp aborts
            raise ValueError(
                f"slots is {slots}: it must be 1 to {MAX_SLOTS} and below batch_tokens, {self._batch_tokens}"
            )

    def _ensure_slots(self, slots: int) -> None:
        """Replaces the context by a larger one if it has fewer than `slots` slots."""
        self._slots = slots
        if slots <= self._context_slots:
            return
        self._close_context()
        self._context = self._new_context(slots)
        self._context_slots = slots
        self._memory = c.llama_get_memory(self._context)
        self._sequence_tokens = int(c.llama_n_ctx_seq(self._context))  # the maximum of one sequence
        self._batch = _Batch(int(c.llama_n_batch(self._context)))  # never more than the context
        self._prefix_slot = slots
        self._prefix: Tokens = []  # the contents of the prefix slot; kept for the next call
        self._free_slots = list(range(slots))  # a heap

    def _new_context(self, slots: int) -> Any:
        parameters = c.llama_context_default_params()
        parameters.n_seq_max = slots + 1  # one holds the common prefix
        parameters.kv_unified = self._shared_tokens > 0
        parameters.n_ctx = self._shared_tokens + self._tokens_per_slot * (slots + (not parameters.kv_unified))
        parameters.n_batch = parameters.n_ubatch = self._batch_tokens
        parameters.n_threads = parameters.n_threads_batch = self._threads
        if not self._model.is_on_gpu:  # on a CPU it is slower, and results would depend on the rest of the batch
            parameters.flash_attn_type = c.LLAMA_FLASH_ATTN_TYPE_DISABLED
        context = c.llama_init_from_model(self._model.handle, parameters)
        if not context:
            raise MemoryError(
                f"llama.cpp cannot allocate a context of {parameters.n_ctx} tokens for {slots} slots. {_last_errors()}"
            )
        return context

    def _close_context(self) -> None:
        if self._context is not None:
            c.llama_free(self._context)
            self._context = None
            self._context_slots = 0

    def _step(self) -> None:
        """One step of the scheduler: admit, fill the batch, decode, sample, release what has finished."""
        self._admit()
        self._fill_batch()
        if not self._decode():
            self._preempt()
            return
        self._sample()
        self._release_finished()

    def _enqueue(self, sequences: list["_Sequence"], grammar: "_Grammar | None") -> None:
        """Queues the sequences that fit, and evaluates the common prefix of their prompts."""
        fitting = [sequence for sequence in sequences if len(sequence.prompt) < self._sequence_tokens]
        for sequence in fitting:
            sequence.grammar = grammar.clone() if grammar is not None else None
        if fitting:
            self._share_prefix([sequence.prompt for sequence in fitting])
        self._waiting.extend(fitting)

    def _share_prefix(self, prompts: list[Tokens]) -> None:
        """Evaluates the common prefix of `prompts` in the prefix slot, reusing what it already holds of it."""
        # The first and the last in lexical order share the shortest prefix. A prompt's last token is never shared,
        # because its logits are needed in each sequence.
        common = _common_length(min(prompts), max(prompts))
        prefix = prompts[0][: min(common, min(map(len, prompts)) - 1)]
        kept = _common_length(self._prefix, prefix)
        if not c.llama_memory_seq_rm(self._memory, self._prefix_slot, kept, -1):
            c.llama_memory_clear(self._memory, False)
            kept = 0
        for start in range(kept, len(prefix), self._batch.capacity):
            self._batch.clear()
            self._batch.add(prefix[start : start + self._batch.capacity], start, self._prefix_slot, False)
            if not self._decode():
                raise RuntimeError(f"a prefix of {len(prefix)} tokens exceeds the context of {self._sequence_tokens}")
        self._prefix = prefix

    def _admit(self) -> None:
        """Assigns free slots, which then hold the common prefix, to waiting sequences."""
        while self._waiting and len(self._running) < self._slots and not self._is_paused:
            sequence = self._waiting.popleft()
            sequence.slot = heapq.heappop(self._free_slots)
            sequence.position = len(self._prefix)
            c.llama_memory_seq_cp(self._memory, self._prefix_slot, sequence.slot, -1, -1)
            self._running.append(sequence)

    def _fill_batch(self) -> None:
        """One token of every decoding sequence, then as many prompt tokens as fit."""
        self._batch.clear()
        free_tokens = self._batch.capacity
        for sequence in sorted(self._running, key=lambda sequence: len(sequence.pending) > 1):
            sequence.scheduled = sequence.pending[:free_tokens]
            free_tokens -= len(sequence.scheduled)
        # With separate contexts, llama.cpp evaluates sequences together only if their slots are consecutive.
        for sequence in sorted(self._running, key=lambda sequence: sequence.slot):
            is_last = len(sequence.scheduled) == len(sequence.pending)
            sequence.row = self._batch.add(sequence.scheduled, sequence.position, sequence.slot, is_last)

    def _decode(self) -> bool:
        """Evaluates the batch; False, with nothing changed, if it does not fit into the cache."""
        code = c.llama_decode(self._context, self._batch.struct)
        if code == _OUT_OF_MEMORY:
            raise MemoryError(f"llama.cpp: out of memory while decoding. {_last_errors()}")
        if code not in (0, _CACHE_FULL):
            raise RuntimeError(f"llama.cpp: decoding failed with code {code}. {_last_errors()}")
        return bool(code == 0)

    def _preempt(self) -> None:
        """Returns the youngest sequence to the queue, with its tokens; one that runs alone is ended instead."""
        sequence = self._running.pop()
        self._release(sequence)
        if self._running:
            self._waiting.appendleft(sequence)
            self._is_paused = True
        else:
            self._is_paused = False

    def _sample(self) -> None:
        """Advances the sequences by what was evaluated; a fully evaluated one gets its next token."""
        ready = []
        for sequence in self._running:
            sequence.position += len(sequence.scheduled)
            if sequence.row is not None:
                ready.append(sequence)
        if not ready:
            return
        shape = (len(ready), self._model.vocabulary_tokens)
        logits = np.ctypeslib.as_array(c.llama_get_logits(self._context), shape)
        logits[:, self._model.suppressed_tokens] = -np.inf
        best = logits.argmax(axis=1).tolist()
        for sequence in ready:
            self._append(sequence, logits[sequence.row], best[sequence.row])

    def _append(self, sequence: "_Sequence", logits: npt.NDArray[np.float32], best: int) -> None:
        """Appends the best token that the grammar allows, or ends the sequence."""
        token = best if sequence.grammar is None else sequence.grammar.choose(logits, best)
        if token is None:
            sequence.is_finished = True
        elif token in self._model.ends_of_turn:
            sequence.is_finished = sequence.is_complete = True
        else:
            sequence.generated.append(token)
            self._check_end(sequence, token)

    def _check_end(self, sequence: "_Sequence", token: int) -> None:
        """Ends the sequence at its limit, or once the grammar is complete, which saves the step of the end token."""
        is_cut = len(sequence.generated) >= min(sequence.max_tokens, self._sequence_tokens - len(sequence.prompt))
        if sequence.grammar is not None and (is_cut or b"}" in self._model.piece(token)):
            sequence.is_complete = sequence.grammar.permits(self._model.end_of_turn)
        sequence.is_finished = is_cut or sequence.is_complete

    def _release_finished(self) -> None:
        for sequence in [sequence for sequence in self._running if sequence.is_finished]:
            self._running.remove(sequence)
            self._release(sequence)
            self._is_paused = False
        if not self._waiting:
            self._compact_slots()

    def _compact_slots(self) -> None:
        """Moves the last sequences into free slots before them, so that all are still evaluated together."""
        for sequence in sorted(self._running, key=lambda sequence: -sequence.slot):
            if self._free_slots and self._free_slots[0] < sequence.slot:
                source, sequence.slot = sequence.slot, heapq.heappop(self._free_slots)
                c.llama_memory_seq_cp(self._memory, source, sequence.slot, -1, -1)
                c.llama_memory_seq_rm(self._memory, source, -1, -1)
                heapq.heappush(self._free_slots, source)

    def _release(self, sequence: "_Sequence") -> None:
        c.llama_memory_seq_rm(self._memory, sequence.slot, -1, -1)
        heapq.heappush(self._free_slots, sequence.slot)

    def _reset(self) -> None:
        """Clears the cache and the queues after a failure during a call."""
        self._waiting.clear()
        self._running.clear()
        self._is_paused = False
        if self._context is not None:
            c.llama_memory_clear(self._memory, False)
            self._prefix = []
            self._free_slots = list(range(self._context_slots))

    def _answer(self, sequence: "_Sequence") -> Answer:
        data = b"".join(map(self._model.piece, sequence.generated))
        # A grammar matches code points, and tokens may still encode one in invalid bytes.
        return Answer(data.decode("utf-8", "ignore"), sequence.is_complete, len(sequence.generated))


@dataclass(eq=False)
class _Sequence:
    """One conversation and its state in the scheduler."""

    prompt: Tokens
    max_tokens: int
    grammar: "_Grammar | None" = None
    generated: Tokens = field(default_factory=list)
    slot: int = -1
    position: int = 0  # how many of its tokens are in the cache
    scheduled: Tokens = field(default_factory=list)  # its tokens in the current batch
    row: int | None = None  # of the logits of its next token among those of the batch
    is_finished: bool = False
    is_complete: bool = False

    @property
    def pending(self) -> Tokens:
        """The tokens not yet in the cache: first the prompt, then one at a time, all of them after a preemption."""
        start = self.position - len(self.prompt)
        return self.prompt[self.position :] + self.generated if start < 0 else self.generated[start:]

    def free(self) -> None:
        if self.grammar is not None:
            self.grammar.free()


class _Batch:
    """The tokens of one step, as arrays that llama.cpp reads in place."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._tokens = np.zeros(capacity, np.int32)
        self._positions = np.zeros(capacity, np.int32)
        self._slots = np.zeros(capacity, np.int32)
        self._wants_logits = np.zeros(capacity, np.int8)
        self._one_each = np.ones(capacity, np.int32)
        self._rows = 0  # of logits
        addresses = self._slots.ctypes.data + self._slots.itemsize * np.arange(capacity, dtype=np.uintp)
        self._slot_lists = addresses.astype(np.uintp)  # each token belongs to a list of one sequence
        self.struct = c.llama_batch(
            n_tokens=0,
            token=_pointer(self._tokens, ctypes.c_int32),
            pos=_pointer(self._positions, ctypes.c_int32),
            n_seq_id=_pointer(self._one_each, ctypes.c_int32),
            seq_id=_pointer(self._slot_lists, ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(self._wants_logits, ctypes.c_int8),
        )

    def clear(self) -> None:
        self.struct.n_tokens = 0
        self._rows = 0

    def add(self, tokens: Tokens, position: int, slot: int, wants_logits: bool) -> int | None:
        """Appends `tokens` at `position`; returns the row of the last one's logits if they are wanted."""
        start = int(self.struct.n_tokens)
        end = start + len(tokens)
        self._tokens[start:end] = tokens
        self._positions[start:end] = range(position, position + len(tokens))
        self._slots[start:end] = slot
        self._wants_logits[start:end] = 0
        self.struct.n_tokens = end
        if not wants_logits:
            return None
        self._wants_logits[end - 1] = 1
        self._rows += 1
        return self._rows - 1


class _Grammar:
    """A llama.cpp grammar and the state of one sequence in it."""

    def __init__(self, sampler: int, model: "_Model") -> None:
        self._sampler: int | None = sampler
        self._model = model
        self._one = c.llama_token_data()  # reused by `permits`: creating them takes longer than the check
        self._only_one = c.llama_token_data_array(ctypes.pointer(self._one), 1, -1, False)

    @classmethod
    def parse(cls, model: "_Model", gbnf: str) -> "_Grammar":
        sampler = c.llama_sampler_init_grammar(model.vocabulary, gbnf.encode(), b"root")
        if not sampler or not gbnf.strip():  # llama.cpp takes an empty one, which allows anything
            raise ValueError(f"llama.cpp cannot use this grammar: {gbnf}")
        return cls(sampler, model)

    def clone(self) -> "_Grammar":
        return _Grammar(c.llama_sampler_clone(self._sampler), self._model)

    def choose(self, logits: npt.NDArray[np.float32], best: int) -> int | None:
        """Accepts and returns the best allowed token; None if there is none.

        best: the token with the highest logit, allowed or not.
        """
        token = best if self.permits(best) else self._second_choice(logits)
        if token is not None:
            c.llama_sampler_accept(self._sampler, token)
        return token

    def permits(self, token: int) -> bool:
        """Whether `token` may come next; takes about 5 microseconds, whatever the size of the vocabulary."""
        self._one.id, self._one.logit = token, 0.0
        c.llama_sampler_apply(self._sampler, ctypes.byref(self._only_one))
        return bool(self._one.logit == 0.0)

    def _second_choice(self, logits: npt.NDArray[np.float32]) -> int | None:
        """The best allowed token, of those whose first byte is allowed or has no token of its own."""
        *with_byte, without = self._model.tokens_by_first_byte
        possible = [with_byte[index] for index in np.flatnonzero(self._allows(self._model.byte_tokens))]
        if sum(map(len, possible)) > _MAX_SCANNED_TOKENS:
            likely = np.argpartition(logits, -min(_TOP_TOKENS, len(logits)))[-_TOP_TOKENS:]
            token = self._best_allowed(np.sort(likely), logits)
            if token is not None:
                return token
        return self._best_allowed(np.sort(np.concatenate([*possible, without])), logits)

    def _best_allowed(self, tokens: npt.NDArray[np.intp], logits: npt.NDArray[np.float32]) -> int | None:
        """The allowed one of `tokens`, in ascending order, with the highest logit; the first of equals."""
        allowed = tokens[self._allows(tokens) & (logits[tokens] > -np.inf)]
        return int(allowed[logits[allowed].argmax()]) if allowed.size else None

    def _allows(self, tokens: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
        """Which of `tokens` may come next; takes about 0.1 microseconds each."""
        candidates = np.zeros(len(tokens), _TOKEN_DATA)
        candidates["id"] = tokens
        self._filter(_pointer(candidates, c.llama_token_data), len(candidates))
        allowed: npt.NDArray[np.bool_] = candidates["logit"] == 0.0
        return allowed

    def _filter(self, candidates: Any, count: int) -> None:
        """Sets the logit of every candidate that may not come next to minus infinity."""
        c.llama_sampler_apply(self._sampler, ctypes.byref(c.llama_token_data_array(candidates, count, -1, False)))

    def free(self) -> None:
        if self._sampler is not None:
            c.llama_sampler_free(self._sampler)
            self._sampler = None


class _Model:
    """The weights, the vocabulary and the chat template of one GGUF file.

    vocab_only: without the weights.
    """

    def __init__(self, path: str | os.PathLike[str], gpu_layers: int, *, vocab_only: bool = False) -> None:
        self._path = os.fspath(path)
        self.handle = _load(self._path, gpu_layers, vocab_only=vocab_only)
        self.is_on_gpu = gpu_layers != 0 and bool(c.llama_supports_gpu_offload())
        try:
            self._refuse_other_kinds()
            self.vocabulary = c.llama_model_get_vocab(self.handle)
            self.vocabulary_tokens = int(c.llama_vocab_n_tokens(self.vocabulary))
            self._pieces: dict[int, bytes] = {}
            self._template = self._compile_template()
            self.end_of_turn = self._end_of_turn()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self.handle is not None:
            c.llama_model_free(self.handle)
            self.handle = None

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values in float16, of all layers."""
        heads, heads_kv = c.llama_model_n_head(self.handle), c.llama_model_n_head_kv(self.handle)
        head_length = self._metadata("attention.key_length") or c.llama_model_n_embd(self.handle) // heads
        return int(2 * 2 * c.llama_model_n_layer(self.handle) * heads_kv * head_length)

    @property
    def trained_tokens(self) -> int:
        """The context that the model was trained on; 0 if the file does not say."""
        return self._metadata("context_length")

    def _refuse_other_kinds(self) -> None:
        if self._metadata("pooling_type") or self._metadata_text("attention.causal") == "false":
            raise ValueError(f"{self._path} is an embedding model, which gives no text: {_GIVE}")
        if not c.llama_model_size(self.handle):
            raise ValueError(f"{self._path} has no weights: {_GIVE}")

    def _metadata(self, key: str) -> int:
        """An integer of the file's metadata, 0 if it is missing; `key` without the architecture's prefix."""
        return int(self._metadata_text(key) or 0)

    def _metadata_text(self, key: str) -> str:
        """An entry of the file's metadata as text, empty if it is missing; `key` as in `_metadata`."""
        buffer = ctypes.create_string_buffer(64)
        c.llama_model_meta_val_str(self.handle, b"general.architecture", buffer, len(buffer))
        length = c.llama_model_meta_val_str(self.handle, buffer.value + b"." + key.encode(), buffer, len(buffer))
        return buffer.value.decode() if length > 0 else ""

    @cached_property
    def ends_of_turn(self) -> frozenset[int]:
        tokens = range(self.vocabulary_tokens)
        return frozenset(token for token in tokens if c.llama_vocab_is_eog(self.vocabulary, token))

    @cached_property
    def suppressed_tokens(self) -> npt.NDArray[np.intp]:
        """Control tokens that do not end a turn; a grammar would match them by the letters of their names."""
        tokens = range(self.vocabulary_tokens)
        controls = {token for token in tokens if c.llama_vocab_is_control(self.vocabulary, token)}
        return np.array(sorted(controls - self.ends_of_turn), np.intp)

    @cached_property
    def byte_tokens(self) -> npt.NDArray[np.intp]:
        """The tokens of a single byte, in the order of the vocabulary."""
        return np.array([token for token in range(self.vocabulary_tokens) if len(self.piece(token)) == 1], np.intp)

    @cached_property
    def tokens_by_first_byte(self) -> list[npt.NDArray[np.intp]]:
        """Tokens by first byte, in the order of `byte_tokens`; last those without bytes or whose first has no token."""
        index_of = {self.piece(int(token)): index for index, token in enumerate(self.byte_tokens)}
        tokens: list[list[int]] = [[] for _ in range(len(index_of) + 1)]
        for token in range(self.vocabulary_tokens):
            tokens[index_of.get(self.piece(token)[:1], -1)].append(token)
        return [np.array(some, np.intp) for some in tokens]

    def piece(self, token: int) -> bytes:
        """The bytes of `token`; none for a special token."""
        if token not in self._pieces:
            buffer = ctypes.create_string_buffer(256)
            length = c.llama_token_to_piece(self.vocabulary, token, buffer, len(buffer), 0, False)
            self._pieces[token] = buffer.raw[: max(length, 0)]
        return self._pieces[token]

    def tokenize_chat(self, conversation: Sequence[Message]) -> Tokens:
        """The prompt of `conversation` in the model's chat template, with one beginning-of-text token.

        The template is rendered with placeholders for the contents, so that only its own text yields special tokens.
        Where it has no system role, a system message goes to the beginning of the user's.
        """
        if conversation[0]["role"] == "system" and not self._has_system_role:
            conversation = _without_system_role(conversation)
        parts = re.split("\ue000(\\d+)\ue001", self._render([message["role"] for message in conversation]))
        if {int(index) for index in parts[1::2]} != set(range(len(conversation))):
            raise ValueError(f"{self._path}: the chat template leaves out what it is given: use an instruct model")
        tokens = self._tokenize(parts[0], is_template=True)
        for index, template_text in zip(parts[1::2], parts[2::2], strict=True):
            tokens += self._tokenize(conversation[int(index)]["content"].strip(), is_template=False)
            tokens += self._tokenize(template_text, is_template=True)
        bos = c.llama_vocab_bos(self.vocabulary)
        if c.llama_vocab_get_add_bos(self.vocabulary) and tokens[:1] != [bos]:
            tokens.insert(0, bos)
        if not tokens:
            raise ValueError(f"{self._path}: the chat template renders an empty prompt")
        return tokens

    @cached_property
    def _has_system_role(self) -> bool:
        """Whether the template renders a system message: some raise an error, others leave it out."""
        try:
            return "\ue0000\ue001" in self._render(["system", "user"])
        except ValueError:
            return False

    def _render(self, roles: Sequence[str]) -> str:
        """Render messages of these roles, each with its number in place of its content."""
        messages = [{"role": role, "content": f"\ue000{index}\ue001"} for index, role in enumerate(roles)]
        try:
            return self._template.render(messages=messages, add_generation_prompt=True)
        except Exception as error:  # whatever the expressions of a template raise
            raise ValueError(f"{self._path}: the chat template rejects the conversation: {error}") from error

    def _tokenize(self, text: str, *, is_template: bool) -> Tokens:
        data = text.encode("utf-8", "replace")
        # A token may have no bytes (a leading space), so there can be more tokens than bytes.
        tokens = (c.llama_token * (len(data) + 8))()
        count = c.llama_tokenize(self.vocabulary, data, len(data), tokens, len(tokens), False, is_template)
        if count < 0:
            raise RuntimeError(f"llama.cpp cannot tokenize {len(data)} bytes")
        return list(tokens[:count])

    def _compile_template(self) -> jinja2.Template:
        source = c.llama_model_chat_template(self.handle, None)
        if not source:
            raise ValueError(f"{self._path} has no chat template (tokenizer.chat_template): use an instruct model")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
        )
        environment.globals |= {
            "bos_token": self._text(c.llama_vocab_bos(self.vocabulary)),
            "eos_token": self._text(c.llama_vocab_eos(self.vocabulary)),
            "raise_exception": _raise_template_error,
            "strftime_now": _FIXED_DATE.strftime,
        }
        try:
            return environment.from_string(source.decode())
        except jinja2.TemplateError as error:
            raise ValueError(f"{self._path}: the chat template cannot be used: {error}") from error

    def _text(self, token: int) -> str:
        return str(c.llama_vocab_get_text(self.vocabulary, token).decode()) if token >= 0 else ""

    def _end_of_turn(self) -> int:
        for token in (c.llama_vocab_eot(self.vocabulary), c.llama_vocab_eos(self.vocabulary)):
            if token >= 0:
                return int(token)
        raise ValueError(f"{self._path} has no end-of-turn token: use an instruct model")


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` of transformers, which marks what a loss is computed of: its content, as it is."""

    tags: set[str] = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: Any) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        body: list[jinja2.nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


def examine(path: str | os.PathLike[str], conversation: Sequence[Message], gbnf: str) -> PromptSize:
    """Measure a prompt with a model's vocabulary and chat template, without loading its weights.

    Raises ValueError for a file, a chat template or a grammar that LlamaSlots could not use.
    """
    model = _Model(path, 0, vocab_only=True)
    try:
        _Grammar.parse(model, gbnf).free()
        return PromptSize(len(model.tokenize_chat(conversation)), model.trained_tokens)
    finally:
        model.close()


def _without_system_role(conversation: Sequence[Message]) -> list[Message]:
    """The conversation with the text of its system message before that of the user, and a blank line between."""
    system, user, *others = conversation
    text = f"{system['content'].strip()}\n\n{user['content'].strip()}"
    return [{"role": "user", "content": text}, *others]


def best_threads(weights_bytes: int) -> int:
    """One for a model so small that synchronising threads costs more than they gain; else all free cores."""
    return 1 if weights_bytes < SMALL_MODEL_BYTES else free_cores()


def _raise_template_error(message: str) -> None:
    raise jinja2.TemplateError(message)


_PROBLEMS = (  # what llama.cpp says of a file that it refuses, and what is said of it here
    (
        "invalid magic characters: 'vers'",
        "{path} is a pointer of Git LFS in place of the file, which git lfs pull fetches",
    ),
    ("invalid magic characters: '.*?'|failed to read magic", f"{{path}} is not a GGUF file ({{0}}): {_GIVE}"),
    ("GGUFv1 ", "{path} is of GGUF version 1, which llama.cpp no longer reads: download a newer conversion"),
    (
        r"this GGUF file is version (\d{1,2})\b",
        "{path} is of GGUF version {1}, which {ours} does not know: use an older conversion",
    ),
    ("CLIP cannot be used", "{path} is the vision part of a model (mmproj): give the GGUF file of its language part"),
    (
        "unknown model architecture: ('.*?')",
        "{path} has the architecture {1}, which {ours} does not know: use another model",
    ),
    ("key not found in model: tokenizer", f"{{path}} has no tokenizer, as an adapter has none: {_GIVE}"),
    ("illegal split file", "{path} is a later part of a model in several files: give the first, {first}"),
    ("failed to open GGUF file '(.*?)'", "{1} is missing: download or copy all files of the model again"),
)


def _problem_of(path: str, errors: Sequence[str]) -> str:
    """What is wrong with a file, by what llama.cpp has logged of it, the cause first."""
    for pattern, sentence in _PROBLEMS:
        if found := re.search(pattern, " ".join(errors)):
            ours = f"llama-cpp-python {version('llama-cpp-python')}"
            first = re.sub(r"-\d{5}-of-", "-00001-of-", path)
            return sentence.format(found[0], *found.groups(), path=path, ours=ours, first=first)
    cause = re.sub(r"^(?:\w+: |error loading model: )+", "", errors[0]) if errors else "llama.cpp cannot load it"
    return f"{path} is damaged ({cause}): delete it, and download or copy it again"


def _load(path: str, gpu_layers: int, *, vocab_only: bool = False) -> Any:
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    c.llama_log_set(_on_log, ctypes.c_void_p(None))
    c.llama_backend_init()
    parameters = c.llama_model_default_params()
    parameters.n_gpu_layers = gpu_layers
    parameters.vocab_only = vocab_only
    parameters.split_mode = c.LLAMA_SPLIT_MODE_NONE
    # -1: no GPU takes part, not even with buffers; and where there is none, 0 is an error.
    parameters.main_gpu = 0 if gpu_layers and c.llama_supports_gpu_offload() else -1
    parameters.use_extra_bufts = uses_extra_buffers()
    _errors.clear()
    handle = c.llama_model_load_from_file(os.fsencode(path), parameters)
    if handle:
        return handle
    lines = list(_errors)
    errors = _last_errors()
    if re.search("out of memory|allocate", errors):
        raise MemoryError(f"{path} does not fit into memory. {errors}")
    raise ValueError(_problem_of(path, lines))


def uses_extra_buffers() -> bool:
    """Whether weights are repacked for the processor: llama.cpp's AMX kernels crash on quantised ones."""
    return b"AMX_INT8 = 1" not in c.llama_print_system_info()


def _common_length(first: Tokens, second: Tokens) -> int:
    shorter = min(len(first), len(second))
    return next((index for index in range(shorter) if first[index] != second[index]), shorter)


def _pointer(array: npt.NDArray[Any], item: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(item))


_errors: deque[str] = deque(maxlen=8)
_LOG_ERROR, _LOG_CONTINUES = 4, 5
_log_level = 0


@c.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(level: int, text: bytes, _: object) -> None:
    """Keeps the errors, for exceptions to quote, and writes them to stderr, in case the process aborts."""
    global _log_level
    _log_level = _log_level if level == _LOG_CONTINUES else level
    if _log_level == _LOG_ERROR:
        _errors.append(text.decode("utf-8", "replace").strip())
        os.write(2, text)


def _last_errors() -> str:
    """The errors that llama.cpp has logged since the last call."""
    errors = " ".join(_errors)
    _errors.clear()
    return errors
