"""text -> description, categories, keywords, image_text and llama_extracted, by a Llama of llama.cpp."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from vec_pipeline import device, weights
from vec_pipeline.engines import grammar
from vec_pipeline.prompts import PROMPTS
from vec_pipeline.record import Need, UserError, Values, Worker
from vec_pipeline.weights import ModelStage

KV_GB_PER_TOKEN = 131_072 / 1e9  # Llama 3.1 8B in f16
SIZE_GB = 4.9  # of its weights as Q4_K_M; smaller models need less for a token too
ROW_TOKENS = 384  # a usual description and its answer
MOST_ROWS_ON_GPU, MOST_ROWS_ON_CPU = 64, 16  # answers at once; beyond that they hardly come faster
MOST_ROWS = 255  # that llama.cpp decodes at once
FEW_ROWS = 8  # that memory should hold at least, and up to which a shared context is faster on a CPU too
RESERVE_GB = 1.0  # free memory that is left to llama.cpp's buffers and to the other models


@dataclass(frozen=True, kw_only=True)
class Structure(ModelStage):
    """Turns a description into one JSON object, under a grammar that bounds every string and list.

    model: a GGUF file, or a hub repository with `file` naming one in it.
    max_tokens: of one answer; 0 for as many as the grammar admits and `context_tokens` holds.
    batch_size: answers decoded at once; a finished one is replaced by the next.
    context_tokens: what prompt, description and answer of a row may take together.
    threads: 0 for as many as make it faster.
    """

    reads: ClassVar[tuple[str, ...]] = ("text",)
    writes: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("description", "categories", "keywords", "image_text", "llama_extracted"), "text"
    )
    speed_options: ClassVar[tuple[str, ...]] = (*ModelStage.speed_options, "context_tokens", "threads")
    worker: ClassVar[Worker] = "child"
    refills: ClassVar[bool] = True

    file: str = ""
    prompt: str = ""  # empty: the one of the language; `{category}` stands for what is said of the category
    language: Literal["en", "ru"] = "en"
    categories: tuple[str, ...] = ()
    max_tokens: int = 0
    context_tokens: int = 2048
    threads: int = 0
    device: Literal["auto", "cuda", "cpu"] = "auto"
    batch_size: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size != "auto" and self.batch_size > MOST_ROWS:
            raise ValueError(f"batch_size is {self.batch_size}, and llama.cpp decodes at most {MOST_ROWS} at once")

    @property
    def patterns(self) -> tuple[str, ...]:
        return (self.file,)

    def path(self, *, is_offline: bool = True) -> Path:
        folder = weights.fetch(self.model, self.patterns, revision=self.revision, is_offline=is_offline)
        return folder / self.file if self.file else folder

    def need(self) -> Need:
        gb = weights.size_gb(self.model, self.file, self.revision)
        gb_per_token = KV_GB_PER_TOKEN * min(1.0, gb / SIZE_GB) ** 0.5  # which grows with the model's width
        shared_tokens, tokens_per_slot = self._context()
        gb += (shared_tokens + FEW_ROWS * tokens_per_slot) * gb_per_token
        most = self._most_rows() if self.batch_size == "auto" else self.batch_size
        rows_gb = max(0, most - FEW_ROWS) * tokens_per_slot * gb_per_token
        return Need(gpu_gb=gb, rows_gb=rows_gb) if self._on_gpu() else Need(host_gb=gb, rows_gb=rows_gb)

    def identity(self) -> str:
        return f"{self.system_prompt()} {json.dumps(self.schema(), ensure_ascii=False)}"

    def _on_gpu(self) -> bool:
        """Whether the model goes to the GPU. Raises UserError where it should and llama.cpp was built without."""
        if device.resolve(self.device) == "cpu":
            return False
        from vec_pipeline.engines.llama_process import supports_gpu

        if self.device == "cuda" and device.has_gpu() and not supports_gpu():
            raise UserError(
                "structure: llama.cpp was built without the GPU: run make llama, or --set structure.device=cpu"
            )
        return supports_gpu()

    def load(self) -> Any:
        from vec_pipeline.engines.llama_process import LlamaProcess

        shared_tokens, tokens_per_slot = self._context()
        return LlamaProcess(
            self.path(),
            context_tokens=shared_tokens,
            tokens_per_slot=tokens_per_slot,
            gpu_layers=-1 if self._on_gpu() else 0,
            threads=self.threads,
        )

    def auto_batch_size(self, model: Any, reserved_gb: float) -> int:
        """As many answers at once as are still faster, and as fit into free memory beside what the model holds."""
        on_gpu = self._on_gpu()
        free_gb = device.gpu_free_gb() if on_gpu and device.has_gpu() else device.host_free_gb()
        free_tokens = ((free_gb or 0.0) - RESERVE_GB - reserved_gb) * 1e9 / model.kv_bytes_per_token
        shared_tokens, tokens_per_slot = self._context()
        fitting = int((free_tokens - shared_tokens) / tokens_per_slot)
        return max(1, int(model.slots), min(self._most_rows(), fitting))

    def _most_rows(self) -> int:
        return MOST_ROWS_ON_GPU if self._on_gpu() else MOST_ROWS_ON_CPU

    def _context(self) -> tuple[int, int]:
        """Tokens that all rows share, and tokens for each.

        Where they share, the prompt's beginning is in memory once, but each row's attention passes over the tokens of
        all: many rows on a CPU are faster apart.
        """
        are_few = self.batch_size != "auto" and self.batch_size <= FEW_ROWS
        return (self.context_tokens, ROW_TOKENS) if are_few or self._on_gpu() else (0, self.context_tokens)

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        """A blank text is not asked about: a language model would invent a description."""
        schema, system = self.schema(), self.system_prompt()
        conversations = [
            [{"role": "system", "content": system}, {"role": "user", "content": row["text"]}]
            for row in rows
            if row["text"].strip()
        ]
        max_tokens = self.max_tokens or grammar.max_bytes(schema)
        asked = model.generate(conversations, grammar.to_gbnf(schema), max_tokens, at_once) if conversations else []
        answers = iter(asked)
        empty = dict.fromkeys(self.writes, "")
        return [self._columns(next(answers)) if row["text"].strip() else dict(empty) for row in rows]

    def _columns(self, answer: Any) -> Values:
        if not answer.is_complete:
            return {"llama_extracted": answer.text, "error": f"CutAnswer: the JSON ends after {answer.tokens} tokens"}
        try:
            extracted = grammar.parse(answer.text, self.schema())
        except ValueError as error:
            return {"llama_extracted": answer.text, "error": f"ValueError: {error}"}
        return {
            "description": extracted["description"],
            "categories": extracted["category"],
            "keywords": ", ".join(distinct(extracted["keywords"])),
            "image_text": extracted["image_text"],
            "llama_extracted": answer.text,
        }

    def system_prompt(self) -> str:
        prompts = PROMPTS[self.language]
        one = prompts.one_category.replace("{categories}", ", ".join(self.categories))
        category = one if self.categories else prompts.any_category
        return (self.prompt or prompts.structure).replace("{category}", category)

    def schema(self) -> dict[str, Any]:
        """The JSON schema of an answer. Its bounds keep the longest answer within a few thousand tokens."""
        category = {"enum": list(self.categories)} if self.categories else {"type": "string", "maxLength": 40}
        keyword = {"type": "string", "minLength": 1, "maxLength": 40}
        return {
            "type": "object",
            "properties": {
                "description": {"type": "string", "maxLength": 400},
                "category": category,
                "keywords": {"type": "array", "items": keyword, "maxItems": 10},
                "image_text": {"type": "string", "maxLength": 400},
            },
        }


def distinct(keywords: list[str]) -> list[str]:
    """Keywords without duplicates (letter case aside), without commas, which separate them, and without blanks."""
    kept: dict[str, str] = {}
    for keyword in keywords:
        if cleaned := " ".join(keyword.replace(",", " ").split()):
            kept.setdefault(cleaned.casefold(), cleaned)
    return list(kept.values())
