"""How each family of vision-language models is asked about an image, and which part of its output is the answer.

Most families have a chat template. Those without one are trained on prompts of their own, and answer no others.
"""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar

from PIL.Image import Image

from vec_pipeline.engines import REASONING

Tokens = list[int]

CHANNEL = re.compile(r"(?<=<\|channel>)\w*$")  # Gemma 4 names a channel at its beginning: <|channel>thought
FRAME = re.compile(r"</?answer>|<\|(begin|end)_of_box\|>")  # which GLM puts around what it says after reasoning
OWN_QUESTIONS = {  # of families that answer no others, by model type and detail; empty: an image alone is captioned
    "blip": ("", "", ""),
    "blip-2": ("", "", ""),
    "git": ("", "", ""),
    "florence2": ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>"),
    "kosmos-2": ("An image of", "Describe this image in detail:", "Describe this image in detail:"),
    "paligemma": ("caption {language}", "describe {language}", "describe {language}"),
}
DETAILS = ("brief", "normal", "full")
VISION_MODULES = (  # names of vision towers and of what connects them with the text, from the model on
    *("model.visual", "model.vision_tower", "model.vision_model", "vision_model", "git.image_encoder"),
    *("model.multi_modal_projector", "model.connector", "model.embed_vision", "git.visual_projection"),
    *("qformer", "language_projection", "image_to_text_projection"),
)


def own_question(model_type: str, detail: str, language: str) -> str | None:
    """What a family without a chat template is asked for a caption; None for families that answer any question."""
    questions = OWN_QUESTIONS.get(model_type)
    return questions and questions[DETAILS.index(detail)].replace("{language}", language)


class Family:
    """Models with a chat template.

    pads: prompts of several lengths may share a batch; False where padding would shift the positions of the text.

    Raises ValueError where there is no chat template.
    """

    pads: ClassVar[bool] = True

    def __init__(self, processor: Any, system_prompt: str = "") -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._system_prompt = system_prompt

    def prompt(self, question: str) -> str:
        """The text that goes to the processor beside an image."""
        return image_prompt(self._processor, question, self._system_prompt)

    def inputs(self, prompts: Sequence[str], images: Sequence[Image]) -> Any:
        """What `generate` is given for prompts with one image each: tensors by name."""
        bos = self._tokenizer.bos_token
        begun = {"add_special_tokens": False} if bos and prompts[0].startswith(bos) else {}  # by the template
        return self._process(prompts, images, **begun)

    def text(self, tokens: Tokens, question: str, image: Image) -> str:
        """The text of an answer."""
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    def ends(self, model: Any) -> set[int]:
        """The tokens that end an answer."""
        return ends_of_turn(model)

    def _process(self, prompts: Sequence[str], images: Sequence[Image], **options: Any) -> Any:
        # Nested, an image per prompt: some families take a flat list for the images of one prompt.
        nested = [[image] for image in images]
        inputs = self._processor(text=list(prompts), images=nested, return_tensors="pt", padding=True, **options)
        inputs.pop("labels", None)  # PaliGemma's, for training: with them it keeps the logits of whole prompts
        return inputs


class Glm(Family):
    """GLM-4V: what it says after its reasoning is framed."""

    def text(self, tokens: Tokens, question: str, image: Image) -> str:
        return FRAME.sub("", super().text(tokens, question, image))


class WithoutTemplate(Family):
    """Models that know no roles: the question is the prompt, or the beginning of the answer."""

    def __init__(self, processor: Any, system_prompt: str = "") -> None:
        super().__init__(processor, system_prompt)
        if system_prompt:
            raise ValueError("a model without a chat template takes no system prompt: leave `system_prompt` empty")

    def prompt(self, question: str) -> str:
        return question


class Blip(WithoutTemplate):
    """BLIP: the question is the beginning of the caption."""

    pads = False

    def ends(self, model: Any) -> set[int]:
        return {model.config.text_config.sep_token_id}  # `generate` of this class passes it on


class Git(WithoutTemplate):
    """GIT: the question is the beginning of the caption."""

    pads = False  # for transformers 5.17

    def inputs(self, prompts: Sequence[str], images: Sequence[Image]) -> Any:
        begun = [self._tokenizer.cls_token + prompt for prompt in prompts]  # the tokenizer's own [SEP] would end it
        return self._process(begun, images, add_special_tokens=False, return_token_type_ids=False)


class Blip2(WithoutTemplate):
    """BLIP-2: a caption where nothing is asked, else an answer."""

    def prompt(self, question: str) -> str:
        return f"Question: {question} Answer:" if question and "Answer:" not in question else question

    def ends(self, model: Any) -> set[int]:
        return ends_of_turn(model.language_model)


class PaliGemma(WithoutTemplate):
    """PaliGemma: the question is a task such as `caption en`, `ocr` or `answer en where is the cow?`."""

    def prompt(self, question: str) -> str:
        return f"{self._processor.image_token}{question}"


class Florence2(WithoutTemplate):
    """Florence-2: the question is a task token; what names regions is answered as JSON."""

    pads = False

    def text(self, tokens: Tokens, question: str, image: Image) -> str:
        task = re.match(r"<[A-Z_]+>|", question)[0]  # type: ignore[index]
        if not task:
            return super().text(tokens, question, image)
        raw = self._tokenizer.decode(tokens, skip_special_tokens=False)
        answer = self._processor.post_process_generation(text=raw, task=task, image_size=image.size)[task]
        return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)


class Kosmos2(WithoutTemplate):
    """Kosmos-2: the question is the beginning of the caption; `<grounding>` before it is answered with regions."""

    pads = False  # in the prompt alone padding is left out of the positions

    def text(self, tokens: Tokens, question: str, image: Image) -> str:
        caption: str = self._processor.post_process_generation(super().text(tokens, question, image))[0]
        return caption

    def ends(self, model: Any) -> set[int]:
        return ends_of_turn(model.text_model)


FAMILIES: dict[str, type[Family]] = {
    **dict.fromkeys(("glm4v", "glm4v_moe", "glm46v"), Glm),
    **{"blip": Blip, "blip-2": Blip2, "git": Git, "florence2": Florence2, "kosmos-2": Kosmos2, "paligemma": PaliGemma},
}


def family_of(model: Any, processor: Any, system_prompt: str = "") -> Family:
    """The family of a model, by its type. Raises ValueError where it takes no system prompt."""
    return FAMILIES.get(model.config.model_type, Family)(processor, system_prompt)


def image_prompt(processor: Any, question: str, system_prompt: str = "") -> str:
    """The text of a conversation that asks `question` about one image.

    A system prompt goes to the beginning of the question where the template knows no such role. Raises ValueError where
    there is no template.
    """
    template = template_of(processor)
    options = {"enable_thinking": False} if "enable_thinking" in template else {}

    def rendered(*messages: dict[str, Any]) -> str:
        prompt = processor.apply_chat_template(list(messages), template, add_generation_prompt=True, **options)
        return str(prompt)

    def user(text: str) -> dict[str, Any]:
        return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}

    if not system_prompt:
        return rendered(user(question))
    for content in (system_prompt, [{"type": "text", "text": system_prompt}]):  # templates know one form or both
        with suppress(Exception):  # of any template that refuses the role
            prompt = rendered({"role": "system", "content": content}, user(question))
            if system_prompt.strip() in prompt:
                return prompt
    return rendered(user(f"{system_prompt}\n\n{question}"))


def template_of(processor: Any) -> str:
    """The chat template of a processor, or of its tokenizer in older checkpoints. Raises ValueError without one."""
    template = processor.chat_template or processor.tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise ValueError("it has no chat template: choose a model that is tuned for instructions (Instruct, it, Chat)")
    return str(template)


def set_greedy(model: Any) -> None:
    """Set every module that decodes to the likeliest token each time: published settings may sample, or use beams."""
    for module in model.modules():
        if settings := getattr(module, "generation_config", None):
            settings.do_sample, settings.num_beams, settings.repetition_penalty = False, 1, 1.0
            settings.temperature = settings.top_p = settings.top_k = settings.length_penalty = None
            settings.early_stopping = None


def ends_of_turn(model: Any) -> set[int]:
    """The tokens that end an answer."""
    ends = model.generation_config.eos_token_id
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


def reasoning_length(tokenizer: Any, prompt: str, tokens: Tokens) -> int:
    """How many tokens of an output are reasoning that comes before the answer; all, where it does not end.

    prompt: which may open the reasoning.
    """
    text = tokenizer.decode(tokens, skip_special_tokens=False)
    beginning = CHANNEL.sub("", prompt.rstrip())
    for opening, closing in REASONING:
        if beginning.endswith(opening) or text.lstrip().startswith(opening):
            return length_with(tokenizer, tokens, closing)
    return 0


def length_with(tokenizer: Any, tokens: Tokens, marker: str) -> int:
    """How many tokens it takes for their text to hold a marker, which may be several of them; all if it never does."""
    shortest, longest = 0, len(tokens)
    while shortest < longest:
        middle = (shortest + longest) // 2
        if marker in tokenizer.decode(tokens[:middle], skip_special_tokens=False):
            longest = middle
        else:
            shortest = middle + 1
    return longest
