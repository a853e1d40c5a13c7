"""image -> image_vector, by a CLIP of open_clip, and clip_score: the cosine similarity of image and text."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from vec_pipeline import device
from vec_pipeline.device import Device
from vec_pipeline.record import Need, UserError, Values
from vec_pipeline.weights import ModelStage

MOST_IMAGES = {"cuda": 256, "mps": 64, "cpu": 16}  # at once; more are no faster
FLOATS_AT_WORK = 16  # per token and channel, while an image passes a transformer block: its MLP alone holds 8
SHARE_OF_FREE = 0.25  # of the memory, left to one batch


class Clip(NamedTuple):
    """A CLIP, the transform that prepares its images, its tokenizer, and where it runs."""

    model: Any
    transform: Any
    tokenize: Any
    device: str


@dataclass(frozen=True, kw_only=True)
class EmbedImage(ModelStage):
    """Image embeddings of shape (dimensions,), float32, L2-normalised; and their cosine with the text's embedding.

    The score is that of Hessel et al. 2021 (CLIPScore), unscaled; empty where there is no text.
    """

    reads: ClassVar[tuple[str, ...]] = ("image",)
    optional: ClassVar[tuple[str, ...]] = ("text",)
    writes: ClassVar[Mapping[str, str]] = {"image_vector": "vector", "clip_score": "number"}
    required: ClassVar[str] = "open_clip_config.json"
    files: ClassVar[tuple[str, ...]] = (
        "open_clip_*.json",
        "open_clip_*.safetensors",
        "tokenizer*",
        "vocab*",
        "merges*",
        "special_tokens*",
        "*.model",
    )

    device: Device = "auto"
    batch_size: int | Literal["auto"] = "auto"

    def check(self, path: Path) -> None:
        from vec_pipeline.engines import checkpoint

        try:
            checkpoint.refuse_other(path, self.required, checkpoint.CLIP)
            super().check(path)
            checkpoint.check_clip(path, allow_pickle=self.allow_pickle)
        except ValueError as error:
            raise UserError(f"{self.name}: {error}") from None

    def need(self) -> Need:
        gb = self.weights_gb()
        return Need(gpu_gb=gb) if device.resolve(self.device) == "cuda" else Need(host_gb=gb)

    def load(self) -> Clip:
        import open_clip

        where = device.resolve(self.device)
        name = f"local-dir:{self.path().resolve()}"
        model, transform = open_clip.create_model_from_pretrained(name, device=where)
        return Clip(model.eval(), transform, open_clip.get_tokenizer(name), where)

    def auto_batch_size(self, model: Clip, reserved_gb: float) -> int:
        """As many images as a share of the free memory holds at work, up to MOST_IMAGES."""
        size_bytes = bytes_per_image(model.model)
        return device.rows_that_fit(model.device, size_bytes, SHARE_OF_FREE, MOST_IMAGES, reserved_gb)

    def run(self, model: Clip, rows: list[Values], at_once: int) -> list[Values]:
        import torch

        pixels = torch.stack([model.transform(row["image"]) for row in rows]).to(model.device)
        with torch.inference_mode():
            vectors = model.model.encode_image(pixels, normalize=True).float()
        scores = clip_scores(model, vectors, [row.get("text", "") for row in rows])
        return [
            {"image_vector": vector, "clip_score": score}
            for vector, score in zip(vectors.cpu().numpy(), scores, strict=True)
        ]


def bytes_per_image(clip: Any) -> int:
    """Memory that an image takes while it passes the model: by the largest of its tables of (tokens, channels)."""
    names = ("positional_embedding", "pos_embed")  # of open_clip's own towers, text and image, and of timm's
    tables = [weight.numel() for name, weight in clip.named_parameters() if name.endswith(names)]
    return 4 * FLOATS_AT_WORK * max(tables, default=10**6)


def clip_scores(model: Clip, vectors: Any, texts: list[str]) -> list[float | None]:
    """Cosine of each image with its text, which the tokenizer cuts at what the model reads; None for a blank text.

    vectors: (batch, dimensions), of length 1.
    """
    import torch

    said = [index for index, text in enumerate(texts) if text.strip()]
    scores: list[float | None] = [None] * len(texts)
    if said:
        tokens = model.tokenize([texts[index] for index in said]).to(model.device)
        with torch.inference_mode():
            cosines = (vectors[said] * model.model.encode_text(tokens, normalize=True).float()).sum(dim=1)
        for index, cosine in zip(said, cosines.tolist(), strict=True):
            scores[index] = round(cosine, 4)
    return scores
