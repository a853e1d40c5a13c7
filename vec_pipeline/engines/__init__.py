"""Fast decoding for describe and structure: conversations in, answers out; no knowledge of records."""

from dataclasses import dataclass
from typing import NamedTuple, TypedDict

REASONING = (  # what encloses the reasoning of a model that thinks before it answers
    ("<think>", "</think>"),  # Qwen, GLM, InternVL and most others
    ("<|channel>", "<channel|>"),  # Gemma 4
    ("[THINK]", "[/THINK]"),  # Mistral
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Cohere
    ("◁think▷", "◁/think▷"),  # Kimi
)


class Message(TypedDict):
    """One message of a conversation."""

    role: str  # system, user or assistant
    content: str


@dataclass(frozen=True)
class Answer:
    """The answer of a language model.

    text: the answer, without end-of-turn tokens.
    is_complete: the model or its grammar ended the answer; False if max_tokens or the context truncated it.
    tokens: how many tokens were generated.
    confidence: mean probability of the generated tokens, including the end-of-turn token; None if not recorded.
    error: why there is no answer, where a server has failed with this one alone.
    """

    text: str
    is_complete: bool
    tokens: int
    confidence: float | None = None
    error: str = ""


class PromptSize(NamedTuple):
    """The size of a prompt.

    prompt_tokens: what it takes.
    trained_tokens: the context that the model was trained on; 0 if its file does not say.
    """

    prompt_tokens: int
    trained_tokens: int
