"""Decodes images in batches with `generate` of transformers: for the models that have no engine of their own."""

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

    model: any that AutoModelForImageTextToText loads. processor: the model's own; its tokenizer pads left from here on.
    max_new_tokens: of one answer, the end-of-turn token included.
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
        # By size, from which the length of the prompt follows: the longest one of a batch pads all others.
        order = sorted(range(len(images)), key=lambda index: (images[index].height * images[index].width, index))
        answers: dict[int, Answer] = {}
        for start in range(0, len(order), slots):
            batch = order[start : start + slots]
            answers |= zip(batch, self._answer([images[index] for index in batch]), strict=True)
        return [answers[index] for index in range(len(images))]

    def close(self) -> None:
        """Nothing is held between calls."""

    def bytes_per_slot(self) -> int:
        """Roughly what one more image at once takes beside the weights, where it is of moderate size."""
        return bytes_per_row(self._model, self._max_new_tokens, prefilled_share=1)

    def _answer(self, images: list[Image]) -> list[Answer]:
        # All that the processor returns goes in: without mm_token_type_ids positions are silently those of plain text.
        texts = [self._prompt] * len(images)
        inputs = self._processor(text=texts, images=images, return_tensors="pt", padding=True)
        inputs = inputs.to(self._model.device, dtype=self._model.dtype)  # the dtype of the pixels; tokens stay whole
        recorder = _ProbabilityRecorder()
        sequences = self._model.generate(**inputs, max_new_tokens=self._max_new_tokens, logits_processor=[recorder])
        tokens = sequences[:, inputs["input_ids"].shape[1] :].tolist()
        probabilities = torch.stack(recorder.probabilities, 1).tolist()
        return [self._cut(*row) for row in zip(tokens, probabilities, strict=True)]

    def _cut(self, tokens: list[int], probabilities: list[float]) -> Answer:
        """The answer up to its end; what follows that is padding, while longer answers of the batch went on."""
        ends = ends_of_turn(self._model)
        end = next((index for index, token in enumerate(tokens) if token in ends), None)
        count = len(tokens) if end is None else end + 1
        text = self._processor.tokenizer.decode(tokens[:count], skip_special_tokens=True)
        confidence = sum(probabilities[:count]) / count
        return Answer(text, end is not None, count - (end is not None), confidence)


class _ProbabilityRecorder:
    """A logits processor that changes nothing and keeps the best token's probability: a float per row and step."""

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
    """Estimate what a row of a batch takes: keys and values, logits, and the evaluation of its prompt at its peak.

    prefilled_share: of the rows, those whose prompts are evaluated at the same time.
    """
    text, vision = model.config.get_text_config(), getattr(model.config, "vision_config", None)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    per_token = 2 * text.num_hidden_layers * heads * head_size
    peak = _PROMPT_TOKENS * _layer_values(text)
    peak += _PROMPT_TOKENS * _PATCHES_PER_TOKEN * _layer_values(vision) if vision else 0
    values = per_token * (_PROMPT_TOKENS + max_new_tokens) + prefilled_share * peak
    return int(values * model.dtype.itemsize + 3 * 4 * text.vocab_size)  # logits in float32, and copies of them


def _layer_values(config: Any) -> int:
    """Values per token that a layer holds at once."""
    hidden: int = getattr(config, "embed_dim", None) or config.hidden_size
    inner: int = getattr(config, "intermediate_size", None) or 4 * hidden
    return 12 * hidden + 3 * inner
