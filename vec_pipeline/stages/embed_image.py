"""image -> image_vector, by a CLIP of open_clip."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from vec_pipeline import device, weights
from vec_pipeline.record import Need, Values
from vec_pipeline.weights import ModelStage


class Clip(NamedTuple):
    """A CLIP, the transform that prepares its images, and where it runs."""

    model: Any
    transform: Any
    device: str


@dataclass(frozen=True, kw_only=True)
class EmbedImage(ModelStage):
    """Image embeddings of shape (dimensions,), float32, L2-normalised."""

    reads: ClassVar[tuple[str, ...]] = ("image",)
    writes: ClassVar[tuple[str, ...]] = ("image_vector",)
    required: ClassVar[str] = "open_clip_config.json"
    files: ClassVar[tuple[str, ...]] = ("open_clip_*", "tokenizer*", "vocab*", "merges*", "special_tokens*")

    device: Literal["auto", "cuda", "cpu"] = "auto"
    batch_size: int = 64

    def need(self) -> Need:
        gb = weights.size_gb(self.model)
        return Need(gpu_gb=gb) if device.resolve(self.device) == "cuda" else Need(host_gb=gb)

    def load(self) -> Clip:
        import open_clip

        where = device.resolve(self.device)
        path = self.path().resolve()
        model, transform = open_clip.create_model_from_pretrained(f"local-dir:{path}", device=where)
        return Clip(model.eval(), transform, where)

    def run(self, model: Clip, rows: list[Values]) -> list[Values]:
        import torch

        pixels = torch.stack([model.transform(row["image"]) for row in rows]).to(model.device)
        with torch.inference_mode():
            vectors = model.model.encode_image(pixels, normalize=True).float().cpu().numpy()
        return [{"image_vector": vector} for vector in vectors]
