"""Decodes images in batches with `generate` of transformers: for models without an engine of their own."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor

from vec_pipeline.engines import Answer

_PROMPT_TOKENS = 512  # assumed in estimates: an image of 500 x 500 pixels and its question
_PATCHES_PER_TOKEN = 4


class BatchedGenerate:
    """One model and one question, asked of many images in left-padded batches.

    model: any that AutoModelForImageTextToText loads. processor: the model's own; its tokenizer is set to pad left.
    max_new_tokens: of one answer, including the end-of-turn token.
    """

    slots: ClassVar[int] = 0  # nothing is held between calls

    def __init__(self, model: Any, processor: Any, question: str, max_new_tokens: int) -> None:
        processor.tokenizer.padding_side = "left"  # right padding would put pads between prompt and answer
        self._model = model
        self._processor = processor
        self._prompt = image_prompt(processor, question)
        self._max_new_tokens = max_new_tokens

    @torch.inference_mode()
    def generate(self, images: Sequence[Image], slots: int) -> list[Answer]:
        """Answer the question about each image, in order, `slots` images at a time."""
        # By size, which determines the length of the prompt: the prompts of a batch are padded to its longest.
        order = sorted(range(len(images)), key=lambda index: (images[index].height * images[index].width, index))
        answers: dict[int, Answer] = {}
        for start in range(0, len(order), slots):
            batch = order[start : start + slots]
            answers |= zip(batch, self._answer([images[index] for index in batch]), strict=True)
        return [answers[index] for index in range(len(images))]

    def close(self) -> None:
        """Nothing is held between calls."""

    def bytes_per_slot(self) -> int:
        """Estimate the memory for one more image at once, of moderate size, without the weights."""
        return bytes_per_row(self._model, self._max_new_tokens, prefilled_share=1)

    def _answer(self, images: list[Image]) -> list[Answer]:
        # Pass on all that the processor returns: without mm_token_type_ids the positions are silently those of text.
        texts = [self._prompt] * len(images)
        inputs = self._processor(text=texts, images=images, return_tensors="pt", padding=True)
        inputs = inputs.to(self._model.device, dtype=self._model.dtype)  # casts the pixels; token ids stay integers
        recorder = _ProbabilityRecorder()
        sequences = self._model.generate(**inputs, max_new_tokens=self._max_new_tokens, logits_processor=[recorder])
        tokens = sequences[:, inputs["input_ids"].shape[1] :].tolist()
        probabilities = torch.stack(recorder.probabilities, 1).tolist()
        return [self._cut(*row) for row in zip(tokens, probabilities, strict=True)]

    def _cut(self, tokens: list[int], probabilities: list[float]) -> Answer:
        """The answer up to its end; the rest is padding to the longest answer of the batch."""
        ends = ends_of_turn(self._model)
        end = next((index for index, token in enumerate(tokens) if token in ends), None)
        count = len(tokens) if end is None else end + 1
        text = self._processor.tokenizer.decode(tokens[:count], skip_special_tokens=True)
        confidence = sum(probabilities[:count]) / count
        return Answer(text, end is not None, count - (end is not None), confidence)


class _ProbabilityRecorder:
    """A logits processor that changes nothing and records the best token's probability at each step."""

    def __init__(self) -> None:
        self.probabilities: list[Tensor] = []  # of each step, shape (rows,)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logits = scores.float()
        self.probabilities.append((logits.max(-1).values - logits.logsumexp(-1)).exp())
        return scores


def image_prompt(processor: Any, question: str) -> str:
    """The text of a conversation that asks `question` about one image."""
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    prompt: str = processor.apply_chat_template(messages, add_generation_prompt=True)
    return prompt


def ends_of_turn(model: Any) -> set[int]:
    """The tokens that end an answer."""
    ends = model.generation_config.eos_token_id
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


def bytes_per_row(model: Any, max_new_tokens: int, prefilled_share: float) -> int:
    """Estimate the memory of a row in a batch: keys and values, logits, and the peak during prefill.

    prefilled_share: fraction of the rows that are prefilled at the same time.
    """
    text, vision = model.config.get_text_config(), getattr(model.config, "vision_config", None)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    per_token = 2 * text.num_hidden_layers * heads * head_size
    peak = _PROMPT_TOKENS * _layer_values(text)
    peak += _PROMPT_TOKENS * _PATCHES_PER_TOKEN * _layer_values(vision) if vision else 0
    values = per_token * (_PROMPT_TOKENS + max_new_tokens) + prefilled_share * peak
    return int(values * model.dtype.itemsize + 3 * 4 * text.vocab_size)  # float32 logits and their copies


def _layer_values(config: Any) -> int:
    """Activations per token that a layer holds at the same time."""
    hidden: int = getattr(config, "embed_dim", None) or config.hidden_size
    inner: int = getattr(config, "intermediate_size", None) or 4 * hidden
    return 12 * hidden + 3 * inner
