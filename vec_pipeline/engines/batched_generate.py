"""Decodes images in batches with `generate` of transformers: for models without an engine of their own."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from vec_pipeline.engines import Answer
from vec_pipeline.engines.families import Tokens, ends_of_turn, family_of, image_prompt, reasoning_length, set_greedy

__all__ = ["BatchedGenerate", "bytes_per_row", "ends_of_turn", "image_prompt"]

SAMPLE_PX = 384  # sides of the image that estimates are made for
_PROMPT_TOKENS = 512  # assumed in estimates where no processor says it: an image of 500 x 500 pixels and its question
_PATCHES_PER_TOKEN = 4


class BatchedGenerate:
    """One model and one question, asked of many images in left-padded batches.

    kind: its model type.
    model: any that AutoModelForImageTextToText loads; it is set to greedy decoding.
    processor: the model's own; its tokenizer is set to pad left.
    max_new_tokens: of one answer, including its reasoning and the end-of-turn token.
    system_prompt: empty for none.

    Raises ValueError where the model cannot be asked such a question, or its prompt holds no image.
    """

    slots: ClassVar[int] = 0  # nothing is held between calls

    def __init__(self, model: Any, processor: Any, question: str, max_new_tokens: int, system_prompt: str = "") -> None:
        tokenizer = processor.tokenizer
        tokenizer.padding_side = "left"  # right padding would put pads between prompt and answer
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        set_greedy(model)
        self._model = model
        self.kind: str = model.config.model_type
        self._tokenizer = tokenizer
        self._family = family_of(model, processor, system_prompt)
        self._ends = self._family.ends(model)
        self._question: str | None = None
        self.set_question(question, max_new_tokens)

    def set_question(self, question: str, max_new_tokens: int) -> None:
        """Ask this from now on. Raises ValueError as the constructor does."""
        self._max_new_tokens = max_new_tokens
        if question != self._question:
            self._prompt_tokens, self._patches = self._measure(question)
            self._question = question

    @torch.inference_mode()
    def generate(
        self, images: Sequence[Image.Image], slots: int, questions: Sequence[str] | None = None
    ) -> list[Answer]:
        """Answer the question about each image, in order, `slots` images at a time.

        questions: one for each image, instead of the engine's own.
        """
        asked = list(questions or [self._question or ""] * len(images))
        prompts = {question: self._family.prompt(question) for question in set(asked)}
        answers: dict[int, Answer] = {}
        for batch in self._batches(images, [prompts[question] for question in asked], slots):
            chosen = [asked[index] for index in batch]
            found = self._answer([images[index] for index in batch], chosen, [prompts[each] for each in chosen])
            answers |= zip(batch, found, strict=True)
        return [answers[index] for index in range(len(images))]

    def close(self) -> None:
        """Nothing is held between calls."""

    def bytes_per_slot(self) -> int:
        """Estimate the memory for one more image of 384 x 384 pixels at once, without the weights."""
        return bytes_per_row(self._model, self._max_new_tokens, 1, self._prompt_tokens, self._patches)

    def _measure(self, question: str) -> tuple[int, int]:
        """Tokens of a prompt, and patches that the vision tower sees, for an image of SAMPLE_PX: many in tiling models.

        Raises ValueError where the prompt holds no image, as that of a language model's template.
        """
        image = Image.new("RGB", (SAMPLE_PX, SAMPLE_PX))
        inputs = self._family.inputs([self._family.prompt(question)], [image])
        marker = getattr(self._model.config, "image_token_id", None)
        if marker is not None and marker not in inputs["input_ids"]:
            raise ValueError("its chat template puts no image into the prompt")
        tokens: int = inputs["input_ids"].shape[1]
        return tokens, patch_count(self._model.config, inputs) or _PATCHES_PER_TOKEN * tokens

    def _batches(self, images: Sequence[Image.Image], prompts: Sequence[str], slots: int) -> Iterator[list[int]]:
        """The indices of images that are answered together: by size, which determines the length of the prompt."""

        def length(index: int) -> int:
            return 0 if self._family.pads else len(self._tokenizer(prompts[index])["input_ids"])

        lengths = list(map(length, range(len(images))))
        order = sorted(range(len(images)), key=lambda i: (lengths[i], images[i].height * images[i].width, i))
        for _, group in groupby(order, key=lengths.__getitem__):
            alike = list(group)
            yield from (alike[start : start + slots] for start in range(0, len(alike), slots))

    def _answer(self, images: list[Image.Image], questions: list[str], prompts: list[str]) -> list[Answer]:
        # Pass on all that the processor returns: without mm_token_type_ids the positions are silently those of text.
        inputs = self._family.inputs(prompts, images)
        inputs = inputs.to(self._model.device, dtype=self._model.dtype)  # casts the pixels; token ids stay integers
        recorder = _ProbabilityRecorder()
        sequences = self._model.generate(**inputs, max_new_tokens=self._max_new_tokens, logits_processor=[recorder])
        tokens = sequences[:, -len(recorder.probabilities) :].tolist()  # what comes before differs between families
        probabilities = torch.stack(recorder.probabilities, 1).tolist()
        rows = zip(images, questions, prompts, tokens, probabilities, strict=True)
        return [self._cut(*row) for row in rows]

    def _cut(
        self, image: Image.Image, question: str, prompt: str, tokens: Tokens, probabilities: list[float]
    ) -> Answer:
        """The answer from the end of its reasoning to its own; the rest pads to the longest answer of the batch."""
        end = next((index for index, token in enumerate(tokens) if token in self._ends), None)
        count = len(tokens) if end is None else end + 1
        start = reasoning_length(self._tokenizer, prompt, tokens[:count])
        if start == count:
            return Answer("", False, 0)
        text = self._family.text(tokens[start:count], question, image)
        confidence = sum(probabilities[start:count]) / (count - start)
        return Answer(text, end is not None, count - start - (end is not None), confidence)


class _ProbabilityRecorder:
    """A logits processor that changes nothing and records the best token's probability at each step."""

    def __init__(self) -> None:
        self.probabilities: list[Tensor] = []  # of each step, shape (rows,)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logits = scores.float()
        self.probabilities.append((logits.max(-1).values - logits.logsumexp(-1)).exp())
        return scores


def patch_count(config: Any, inputs: Any) -> int:
    """How many patches an image is cut into, all of its tiles included; 0 where that is not known."""
    vision, pixels = getattr(config, "vision_config", None), inputs.get("pixel_values")
    size = vision and (getattr(vision, "patch_stride", None) or getattr(vision, "patch_size", None))
    if not size or pixels is None:
        return 0
    side = size if isinstance(size, int) else size[0]
    frames = getattr(vision, "temporal_patch_size", None) or 1
    return int(pixels.numel() // (3 * side**2 * frames))


def bytes_per_row(
    model: Any,
    max_new_tokens: int,
    prefilled_share: float,
    prompt_tokens: int = _PROMPT_TOKENS,
    patches: int = _PROMPT_TOKENS * _PATCHES_PER_TOKEN,
) -> int:
    """Estimate the memory of a row in a batch: keys and values, logits, and the peak during prefill.

    prefilled_share: fraction of the rows that are prefilled at the same time.
    prompt_tokens, patches: of a row's prompt, and of its image.
    """
    text, vision = model.config.get_text_config(), getattr(model.config, "vision_config", None)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    per_token = 2 * heads * head_size  # of one layer
    crossed = len(getattr(text, "cross_attention_layers", None) or ())  # Mllama's, which keep the image instead
    kept = (text.num_hidden_layers - crossed) * (prompt_tokens + max_new_tokens) + crossed * patches
    peak = prompt_tokens * _layer_values(text)
    peak += patches * _layer_values(vision) if vision else 0
    values = per_token * kept + prefilled_share * peak
    return int(values * model.dtype.itemsize + 3 * 4 * text.vocab_size)  # float32 logits and their copies


def _layer_values(config: Any) -> int:
    """Activations per token that a layer holds at the same time."""
    hidden = getattr(config, "embed_dim", None) or config.hidden_size
    hidden = hidden if isinstance(hidden, int) else hidden[0]  # of the first stage, which has the most patches
    inner: int = getattr(config, "intermediate_size", None) or 4 * hidden
    return 12 * hidden + 3 * inner
