"""Decodes many images at once with Qwen2-VL, Qwen2.5-VL or Qwen3-VL, each in its own slot (continuous batching).

A slot is a row of the key-value cache with its own position. Rows in use stay contiguous: the last one replaces one
that has finished, and waiting images are prefilled, a few at a time, after it. Greedy output equals that of `generate`
on each image alone, in float32 row by row. The model is not modified.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from statistics import fmean
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence

from vec_pipeline.engines import Answer
from vec_pipeline.engines.batched_generate import bytes_per_row
from vec_pipeline.engines.families import Tokens, ends_of_turn, image_prompt, reasoning_length
from vec_pipeline.engines.qwen_vision import Grid, ImageReader, Rotation, VisionTower, feed_forward, linear, normed

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")  # model types; mixtures of experts have others
_INTERLEAVED = ("qwen3_vl",)  # those whose rotation interleaves the axes: in transformers, by type and not by option
_GROUPS = 8  # images are prefilled slots / 8 at a time: with more, slots would be idle; with fewer, compute units
_LENGTH_STEP = 64  # of the cache, in tokens: the alignment that attention kernels prefer
# All but cuDNN's, which is the first choice on Hopper and builds a new plan for each number of rows and tokens.
_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_STEPS_PER_CHECK = 4  # decode steps on a GPU between checks for finished rows, because each check waits for the GPU

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def supports(model: Any) -> bool:
    """Whether this engine decodes `model`: of these families, those without sliding windows or scaled positions."""
    if model.config.model_type not in FAMILIES or model.device.type not in ("cpu", "cuda"):
        return False
    text = model.config.text_config
    layer_types = getattr(text, "layer_types", ["full_attention"])  # Qwen3-VL has no others, and no such field
    return text.rope_parameters["rope_type"] == "default" and set(layer_types) == {"full_attention"}


class _Prompt(NamedTuple):
    """The text of a conversation about an image, and its tokens before and after those of the image."""

    text: str
    before: Tokens
    after: Tokens


class _Waiting(NamedTuple):
    """A queued image. number: its index in the call."""

    number: int
    image: Image
    grid: Grid
    prompt: _Prompt


class QwenSlots:
    """One model, and a question asked of many images at once.

    kind: its model type.

    model: Qwen2VLForConditionalGeneration, or that of Qwen2.5-VL or Qwen3-VL, that `supports` accepts.
    processor: the model's own; images are prepared as by its PIL backend.
    max_new_tokens: of one answer, including the end-of-turn token.
    system_prompt: empty for none.

    Raises ValueError unless the chat template puts exactly one image into the prompt.
    """

    def __init__(self, model: Any, processor: Any, question: str, max_new_tokens: int, system_prompt: str = "") -> None:
        self._model = model
        self.kind: str = model.config.model_type
        self._processor, self._tokenizer = processor, processor.tokenizer
        self._system_prompt = system_prompt
        self._merge: int = processor.image_processor.merge_size
        self._reader = ImageReader(processor.image_processor, model.device)
        self._tower = VisionTower(model.model.visual)
        self._slots: _Slots | None = None  # kept for the next call
        self._question: str | None = None
        self.set_question(question, max_new_tokens)

    def set_question(self, question: str, max_new_tokens: int) -> None:
        """Ask this from now on."""
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}: it must be 1 or more")
        if question != self._question:
            self._prompt, self._question = self._prompt_of(question), question
        self._max_new_tokens = max_new_tokens

    @torch.inference_mode()
    def generate(self, images: Sequence[Image], slots: int, questions: Sequence[str] | None = None) -> list[Answer]:
        """Answer the question about each image, in order, with at most `slots` images in the cache at once.

        questions: one for each image, instead of the engine's own.

        On any exception (out of memory, for example) the cache is freed, and the next call starts from scratch.
        """
        own = {question: self._prompt_of(question) for question in set(questions or ())}
        prompts = [own[question] for question in questions] if questions else [self._prompt] * len(images)
        queue = [
            _Waiting(number, image, self._reader.grid(image), prompt)
            for number, (image, prompt) in enumerate(zip(images, prompts, strict=True))
        ]
        # By size, so that the prompts of a group are of similar length and images of one size share attention calls.
        queue.sort(key=lambda waiting: (waiting.grid.patches, waiting.grid), reverse=True)
        try:
            with sdpa_kernel(_ATTENTION):
                found = dict(self._run(queue, min(slots, len(queue)))) if queue else {}
        except BaseException:
            self.close()
            raise
        return [self._answer(prompt, *found[number]) for number, prompt in enumerate(prompts)]

    def close(self) -> None:
        """Free the cache. The engine stays usable."""
        self._slots = None

    @property
    def slots(self) -> int:
        """Capacity of the cache in images; 0 if there is none."""
        return self._slots.slots if self._slots else 0

    def bytes_per_slot(self) -> int:
        """Estimate the memory of one more slot for an image of moderate size."""
        return bytes_per_row(self._model, self._max_new_tokens, prefilled_share=1 / _GROUPS)

    def _prompt_of(self, question: str) -> _Prompt:
        text = image_prompt(self._processor, question, self._system_prompt)
        return _Prompt(text, *tokens_around_image(text, self._tokenizer, self._model.config.image_token_id))

    def _run(self, queue: list[_Waiting], slots: int) -> Iterator[tuple[int, tuple[Tokens, list[float]]]]:
        """Admit, decode and release in a loop. Yields tokens and probabilities with their image's index in the call."""
        cache = self._slots_of(slots, max(map(self._prompt_tokens, queue)))
        running: list[int] = []  # the image in each row, by its index in the call
        groups = self._groups(iter(queue), max(1, slots // _GROUPS))
        group = next(groups, None)
        while group or running:
            while group and len(running) + len(group.numbers) <= slots:
                self._prefill(cache, group, len(running))
                running += group.numbers
                group = next(groups, None)  # resized while the GPU works
            for row, tokens, probabilities in cache.decode(len(running)):
                yield running[row], (tokens, probabilities)
                cache.move(len(running) - 1, row)
                running[row] = running[-1]
                running.pop()

    def _slots_of(self, slots: int, prompt_tokens: int) -> "_Slots":
        """A cache of at least that size: that of the last call if it is large enough."""
        length = -(-(prompt_tokens + self._max_new_tokens) // _LENGTH_STEP) * _LENGTH_STEP
        wanted = (slots, length, self._max_new_tokens)
        if self._slots is None or any(map(int.__lt__, self._slots.size, wanted)):
            self.close()  # first, because the two must not be in memory at the same time
            self._slots = _Slots(self._model, *wanted)
        self._slots.limit.fill_(self._max_new_tokens)
        return self._slots

    def _groups(self, queue: Iterator[_Waiting], size: int) -> Iterator["_Group"]:
        while chosen := list(islice(queue, size)):
            pixels = [self._reader.resize(waiting.image, waiting.grid) for waiting in chosen]
            numbers, grids, prompts = zip(*((each.number, each.grid, each.prompt) for each in chosen), strict=True)
            yield _Group(list(numbers), list(grids), pixels, list(prompts))

    def _image_tokens(self, grid: Grid) -> int:
        return grid.patches // self._merge**2

    def _prompt_tokens(self, waiting: _Waiting) -> int:
        return len(waiting.prompt.before) + self._image_tokens(waiting.grid) + len(waiting.prompt.after)

    def _prefill(self, cache: "_Slots", group: "_Group", row: int) -> None:
        """Evaluate the prompts of a group into the rows of the cache starting at `row`."""
        texts = {prompt.text: (self._text(prompt.before), self._text(prompt.after)) for prompt in group.prompts}
        features = self._tower(self._reader.patches(group.pixels), group.grids).to(self._model.dtype)
        images = torch.split(features, [self._image_tokens(grid) for grid in group.grids])
        around = [texts[prompt.text] for prompt in group.prompts]
        prompts = [torch.cat([before, image, after]) for (before, after), image in zip(around, images, strict=True)]
        cells = [Grid(grid.rows // self._merge, grid.columns // self._merge) for grid in group.grids]
        positions = [
            prompt_positions(len(prompt.before), each, len(prompt.after))
            for prompt, each in zip(group.prompts, cells, strict=True)
        ]
        cache.prefill(row, prompts, positions)

    def _text(self, tokens: Tokens) -> Tensor:
        """Embed text as the vision tower does images: shape (tokens, levels, hidden), zero but for level 0."""
        embeddings = self._model.get_input_embeddings()(torch.tensor(tokens, device=self._model.device))
        return pad(embeddings[:, None], (0, 0, 0, self._tower.levels - 1))

    def _answer(self, prompt: _Prompt, tokens: Tokens, probabilities: list[float]) -> Answer:
        """The answer, without the reasoning of a model that thinks first."""
        start = reasoning_length(self._tokenizer, prompt.text, tokens)
        if start == len(tokens):
            return Answer("", False, 0)
        is_complete = tokens[-1] in ends_of_turn(self._model)
        text = self._tokenizer.decode(tokens[start:], skip_special_tokens=True)
        return Answer(text, is_complete, len(tokens) - start - is_complete, fmean(probabilities[start:]))


class _Group(NamedTuple):
    """Images prefilled together. numbers: their indices in the call."""

    numbers: list[int]
    grids: list[Grid]
    pixels: list[Tensor]
    prompts: list[_Prompt]


class _Slots:
    """The key-value cache, and the decoder that works on its rows.

    slots: number of rows. length: of each row, in tokens, a multiple of 64. max_new_tokens: that answers have room for.
    size: all three. limit: the tokens that answers may have now.
    """

    def __init__(self, model: Any, slots: int, length: int, max_new_tokens: int) -> None:
        self.slots, self.length, self.size = slots, length, (slots, length, max_new_tokens)
        self._model, self._decoder = model, model.model.language_model
        device, text = model.device, model.config.text_config
        self.limit = torch.full((), max_new_tokens, device=device)  # a tensor: a graph keeps numbers as they were
        self._head_size: int = self._decoder.layers[0].self_attn.head_dim
        rotary, is_interleaved = self._decoder.rotary_emb, model.config.model_type in _INTERLEAVED
        self._inverse_frequencies: Tensor = rotary.inv_freq.float()
        self._axes = rotated_axes(rotary.mrope_section, is_interleaved, self._head_size // 2).to(device)
        self._ends = torch.tensor(sorted(ends_of_turn(model)), dtype=torch.long, device=device)
        self._range = torch.arange(max(slots, length), device=device)

        shape = (text.num_hidden_layers, slots, text.num_key_value_heads, length, self._head_size)
        self._keys = torch.zeros(shape, dtype=model.dtype, device=device)
        self._values = torch.zeros_like(self._keys)
        self._token = torch.zeros(slots, dtype=torch.long, device=device)  # the next one to evaluate
        self._cache_position = torch.zeros_like(self._token)  # its index in the cache
        self._offset = torch.zeros_like(self._token)  # from there to its position: image tokens share positions
        self._count = torch.zeros_like(self._token)  # of tokens generated
        self._tokens = torch.zeros(slots, max_new_tokens + 1, dtype=torch.long, device=device)  # one more for idle rows
        self._probabilities = torch.zeros(self._tokens.shape, device=device)  # of those tokens
        self._is_running = torch.zeros(slots, dtype=torch.bool, device=device)
        is_static = device.type == "cuda" and not getattr(model, "is_quantized", False)  # quantised layers may sync
        self._graph = self._capture() if is_static else None

    def prefill(self, row: int, prompts: list[Tensor], positions: list[Tensor]) -> None:
        """Evaluate prompts into the rows starting at `row`, and choose the first token of each answer.

        prompts: embeddings and what is added to them later (see `_evaluate`), each of shape (tokens, levels, hidden).
        positions: of their tokens, each of shape (3, tokens).
        Padding is on the right, which causal attention never sees, so no mask is needed.
        """
        rows = slice(row, row + len(prompts))
        prompt = pad_sequence(prompts, batch_first=True)
        # All copies to the GPU come before the layers: each waits for the work queued before it.
        padded = pad_sequence([each.T for each in positions], batch_first=True).to(prompt.device)
        lengths = torch.tensor([len(each) for each in prompts], device=prompt.device)
        ends = torch.tensor([int(each.max()) + 1 for each in positions], device=prompt.device)
        angles = padded[:, None, :, self._axes] * self._inverse_frequencies

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            self._keys[layer, rows, :, : keys.shape[2]] = keys
            self._values[layer, rows, :, : keys.shape[2]] = values
            return scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)

        last = (self._range[: len(prompts)], lengths - 1)
        hidden = self._evaluate(prompt.unbind(2), Rotation(angles, prompt.dtype), attend, last)
        self._cache_position[rows] = lengths
        self._offset[rows] = ends - lengths
        self._count[rows], self._is_running[rows] = 0, True
        self._choose(hidden, rows)

    def decode(self, count: int) -> list[tuple[int, Tokens, list[float]]]:
        """Run a few steps of the first `count` rows.

        Returns the rows that have finished since, the last one first, with their tokens and the probability of each.
        """
        for _ in range(1 if self._keys.device.type == "cpu" else _STEPS_PER_CHECK):
            if self._graph is not None:
                self._graph.replay()
            else:
                self._step(count)
        is_running = self._is_running[:count].tolist()  # waits for the GPU
        rows = [row for row in reversed(range(count)) if not is_running[row]]
        if not rows:
            return []
        finished = (each[rows].tolist() for each in (self._count, self._tokens, self._probabilities))
        columns = zip(rows, *finished, strict=True)
        return [(row, tokens[:n], probabilities[:n]) for row, n, tokens, probabilities in columns]

    def move(self, source: int, target: int) -> None:
        """Overwrite a row with another one."""
        if source != target:
            for each in (self._keys, self._values):
                each[:, target] = each[:, source]
            state = (self._token, self._cache_position, self._offset, self._count, self._is_running)
            for each in (*state, self._tokens, self._probabilities):
                each[target] = each[source]

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Capture one step of all rows as a CUDA graph, to be replayed without Python; no row is in use yet."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # kernels choose their algorithms and allocate workspaces
                self._step(self.slots)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the GPU meanwhile
            self._step(self.slots)
        return graph

    def _step(self, count: int) -> None:
        """Evaluate the next token of the first `count` rows and choose the one after it; never waits for the GPU."""
        position, rows = self._cache_position[:count], self._range[:count]
        length = int(position.max()) + 1 if position.device.type == "cpu" else self.length
        angles = (position + self._offset[:count])[:, None, None, None] * self._inverse_frequencies
        is_future = self._range[:length] > position[:, None, None, None]
        mask = torch.zeros_like(is_future, dtype=self._keys.dtype).masked_fill_(is_future, -torch.inf)

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            cached_keys, cached_values = self._keys[layer, :count], self._values[layer, :count]
            cached_keys[rows, :, position], cached_values[rows, :, position] = keys[:, :, 0], values[:, :, 0]
            # Queries that share a key head are packed like consecutive tokens: its keys are read once, not repeated.
            packed = queries.reshape(count, cached_keys.shape[1], -1, self._head_size)
            cached = (cached_keys[:, :, :length], cached_values[:, :, :length])
            return scaled_dot_product_attention(packed, *cached, attn_mask=mask).reshape(queries.shape)

        embeddings = self._model.get_input_embeddings()(self._token[:count, None])
        hidden = self._evaluate([embeddings], Rotation(angles, embeddings.dtype), attend, (slice(None), 0))
        position += self._is_running[:count]
        self._choose(hidden, slice(count))

    def _evaluate(self, levels: Sequence[Tensor], rotation: Rotation, attend: Attend, last: tuple[Any, Any]) -> Tensor:
        """Run the decoder's layers; after the attention of the last one, only the tokens selected by `last` go on.

        levels: the embeddings, and what is added after the first layer, the second and so on (DeepStack, of image
        tokens); each of shape (rows, tokens, hidden). Returns shape (rows, hidden).
        """
        layers, hidden = self._decoder.layers, levels[0]
        for index, layer in enumerate(layers):
            if 0 < index < len(levels):
                hidden = hidden + levels[index]
            attention, x = layer.self_attn, normed(layer.input_layernorm, hidden)
            queries, keys, values = self._heads(attention, x)
            attended = attend(index, rotation(queries), rotation(keys), values).transpose(1, 2).flatten(2)
            if index == len(layers) - 1:
                hidden, attended = hidden[last], attended[last]
            hidden = hidden + linear(attention.o_proj, attended)
            hidden = hidden + feed_forward(layer.mlp, normed(layer.post_attention_layernorm, hidden))
        return normed(self._decoder.norm, hidden)

    def _heads(self, attention: Any, x: Tensor) -> list[Tensor]:
        """Queries, keys and values, each of shape (rows, heads, tokens, head size)."""
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        heads = [linear(each, x).view(*x.shape[:2], -1, self._head_size) for each in projections]
        if hasattr(attention, "q_norm"):  # Qwen3-VL
            heads[:2] = normed(attention.q_norm, heads[0]), normed(attention.k_norm, heads[1])
        return [each.transpose(1, 2) for each in heads]

    def _choose(self, hidden: Tensor, rows: slice) -> None:
        """Append the best token of each row; idle rows write into a column that is never read."""
        logits = linear(self._model.lm_head, hidden).float()
        best, token = logits.max(-1)
        count, is_running = self._count[rows], self._is_running[rows]
        self._tokens[rows].scatter_(1, count[:, None], token[:, None])
        self._probabilities[rows].scatter_(1, count[:, None], (best - logits.logsumexp(-1)).exp()[:, None])
        self._token[rows] = token
        count += is_running
        is_running &= (token[:, None] != self._ends).all(-1) & (count < self.limit)


def tokens_around_image(prompt: str, tokenizer: Any, image_token: int) -> tuple[Tokens, Tokens]:
    """The tokens of a prompt before and after the image. Raises ValueError unless there is exactly one image."""
    tokens: Tokens = tokenizer(prompt)["input_ids"]
    if tokens.count(image_token) != 1:
        raise ValueError(f"expected one image in the prompt, got {tokens.count(image_token)}: {prompt!r}")
    index = tokens.index(image_token)
    return tokens[:index], tokens[index + 1 :]


@lru_cache(maxsize=256)
def prompt_positions(before: int, image: Grid, after: int) -> Tensor:
    """Position of each prompt token in time, height and width; shape (3, tokens).

    before, after: number of text tokens around the image. image: its size in tokens.
    Source: get_rope_index in transformers/models/qwen2_vl/modeling_qwen2_vl.py
    """
    cells = torch.cartesian_prod(torch.arange(1), torch.arange(image.rows), torch.arange(image.columns)).T
    text_before = torch.arange(before).expand(3, -1)
    text_after = torch.arange(after).expand(3, -1) + before + max(image)
    return torch.cat([text_before, cells + before, text_after], 1)


def rotated_axes(sections: Sequence[int], is_interleaved: bool, values: int) -> Tensor:
    """The axis (time, height, width) that rotates each value of a head's first half; shape (values,).

    sections: how many values each axis rotates. is_interleaved: the axes alternate; what is left at the end is time's.
    """
    if is_interleaved:
        return torch.tensor([i % 3 if i < 3 * sections[i % 3] else 0 for i in range(values)])
    return torch.tensor([index % 3 for index, size in enumerate(sections) for _ in range(size)])
