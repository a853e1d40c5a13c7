"""Fast decoding behind describe and structure: conversations in, answers out, nothing known of records."""

from dataclasses import dataclass
from typing import TypedDict


class Message(TypedDict):
    """One message of a conversation."""

    role: str  # system, user or assistant
    content: str


@dataclass(frozen=True)
class Answer:
    """What a language model said.

    text: the answer, without end-of-turn tokens.
    is_complete: the model or its grammar closed the answer; False where max_tokens or the context cut it short.
    tokens: how many tokens were generated.
    confidence: mean probability of the generated tokens, the one that ends the turn included; None where not recorded.
    """

    text: str
    is_complete: bool
    tokens: int
    confidence: float | None = None
