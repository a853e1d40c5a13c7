"""text -> text_vector, by a SentenceTransformer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from vec_pipeline import device
from vec_pipeline.device import Device
from vec_pipeline.record import Need, UserError, Values
from vec_pipeline.weights import ModelStage

MOST_TEXTS = {"cuda": 256, "mps": 64, "cpu": 32}  # at once; more are no faster
LONGEST_TEXT_TOKENS = 512  # of models that do not say
FLOATS_AT_WORK, HEADS = 16, 16  # per token and channel, and of attention per pair of tokens, in one block
SHARE_OF_FREE = 0.25  # of the memory, left to one batch


@dataclass(frozen=True, kw_only=True)
class EmbedText(ModelStage):
    """Sentence embeddings of shape (dimensions,), float32, L2-normalised; none of a blank text."""

    reads: ClassVar[tuple[str, ...]] = ("text",)
    writes: ClassVar[Mapping[str, str]] = {"text_vector": "vector"}
    required: ClassVar[str] = "modules.json"
    files: ClassVar[tuple[str, ...]] = (
        "*.json",
        "*.txt",
        "*.model",
        "*.py",
        "model.safetensors",
        "model-*.safetensors",  # of large models, in several files
        "*/model.safetensors",
    )
    speed_options: ClassVar[tuple[str, ...]] = (*ModelStage.speed_options, "trust_remote_code")

    prefix: str = ""  # put before each text, as some models want ("passage: ")
    trust_remote_code: bool = False  # run the Python files that some models come with
    device: Device = "auto"
    batch_size: int | Literal["auto"] = "auto"

    def check(self, path: Path) -> None:
        from vec_pipeline.engines import checkpoint

        try:
            checkpoint.refuse_other(path, self.required, checkpoint.SENTENCE_ENCODER)
            super().check(path)
            with self.refusing_code():
                checkpoint.check_sentence_encoder(
                    path, allow_pickle=self.allow_pickle, trust_remote_code=self.trust_remote_code
                )
        except ValueError as error:
            raise UserError(f"{self.name}: {error}") from None

    def need(self) -> Need:
        gb = self.weights_gb()
        return Need(gpu_gb=gb) if device.resolve(self.device) == "cuda" else Need(host_gb=gb)

    def load(self) -> Any:
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # as in describe
        with self.refusing_code():
            return SentenceTransformer(
                str(self.path()),
                device=device.resolve(self.device),
                trust_remote_code=self.trust_remote_code,
                model_kwargs={"use_safetensors": None if self.allow_pickle else True},
            )

    def auto_batch_size(self, model: Any, reserved_gb: float) -> int:
        """As many of the longest texts as a share of the free memory holds at work, up to MOST_TEXTS."""
        tokens, channels = model.max_seq_length or LONGEST_TEXT_TOKENS, model.get_embedding_dimension() or 1024
        bytes_per_text = 4 * tokens * (FLOATS_AT_WORK * channels + HEADS * tokens)
        where = device.resolve(self.device)
        return device.rows_that_fit(where, bytes_per_text, SHARE_OF_FREE, MOST_TEXTS, reserved_gb)

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        texts = [self.prefix + row["text"] for row in rows if row["text"].strip()]
        options = {"batch_size": at_once, "normalize_embeddings": True, "show_progress_bar": False}
        vectors = iter(model.encode(texts, **options) if texts else [])
        return [{"text_vector": next(vectors) if row["text"].strip() else None} for row in rows]
