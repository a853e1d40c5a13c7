"""image -> dino_vector, by a DINOv2 or DINOv3 of transformers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from vec_pipeline import device
from vec_pipeline.device import Device
from vec_pipeline.engines import image_models
from vec_pipeline.record import Need, UserError, Values
from vec_pipeline.weights import ModelStage

MODEL_TYPES = ("dinov2", "dinov2_with_registers", "dinov3_vit", "dinov3_convnext")
WANTED = "a DINOv2 or DINOv3 of transformers, such as facebook/dinov2-base"
MOST_IMAGES = {"cuda": 256, "mps": 64, "cpu": 16}  # at once; more are no faster
FLOATS_AT_WORK = 16  # per token and channel, while an image passes a block: its MLP alone holds 8
SHARE_OF_FREE = 0.25  # of the memory, left to one batch


class Dino(NamedTuple):
    """A DINOv2 or DINOv3, the image processor that prepares its pictures, and where it runs."""

    model: Any
    processor: Any
    device: str


@dataclass(frozen=True, kw_only=True)
class EmbedDino(ModelStage):
    """Image embeddings, float32, L2-normalised: of what pictures look like, learned without any text.

    pool: cls is the token of the whole picture and mean the average of its patches, each of shape (hidden_size,);
        cls+mean is both, each of length 1, joined: twice as long. As in dino.txt (Jose et al. 2024, arXiv 2412.16334).
    """

    reads: ClassVar[tuple[str, ...]] = ("image",)
    writes: ClassVar[Mapping[str, str]] = {"dino_vector": "vector"}
    required: ClassVar[str] = "config.json"
    files: ClassVar[tuple[str, ...]] = ("*.json", "model.safetensors", "model-*.safetensors")

    model: str = "facebook/dinov2-base"
    pool: Literal["cls", "mean", "cls+mean"] = "cls+mean"
    device: Device = "auto"
    batch_size: int | Literal["auto"] = "auto"

    def check(self, path: Path) -> None:
        from vec_pipeline.engines import checkpoint

        try:
            checkpoint.refuse_other(path, self.required, WANTED)
            super().check(path)
            checkpoint.check_weights(path, allow_pickle=self.allow_pickle)
            check_dino(path, allow_pickle=self.allow_pickle)
        except ValueError as error:
            raise UserError(f"{self.name}: {error}") from None

    def need(self) -> Need:
        gb = self.weights_gb()
        return Need(gpu_gb=gb) if device.resolve(self.device) == "cuda" else Need(host_gb=gb)

    def load(self) -> Dino:
        where, path = device.resolve(self.device), self.path()
        model = image_models.load_model("AutoModel", path, where, allow_pickle=self.allow_pickle)
        return Dino(model, image_models.load_processor(path), where)

    def auto_batch_size(self, model: Dino, reserved_gb: float) -> int:
        """As many images as a share of the free memory holds at work, up to MOST_IMAGES."""
        return device.rows_that_fit(model.device, bytes_per_image(model), SHARE_OF_FREE, MOST_IMAGES, reserved_gb)

    def run(self, model: Dino, rows: list[Values], at_once: int) -> list[Values]:
        import torch

        pixels = prepared(model, [row["image"] for row in rows])
        with torch.inference_mode():
            tokens = model.model(pixel_values=pixels).last_hidden_state
            vectors = pooled(tokens, registers_of(model.model.config), self.pool)
        return [{"dino_vector": vector} for vector in vectors.float().cpu().numpy()]


def pooled(tokens: Any, registers: int, pool: str) -> Any:
    """Vectors of length 1, as `EmbedDino` says.

    tokens: (pictures, 1 + registers + patches, hidden_size); of a ConvNeXt the first is the mean of its last map.
    """
    import torch
    from torch.nn.functional import normalize

    parts = {"cls": tokens[:, 0], "mean": tokens[:, 1 + registers :].mean(1)}
    units = [normalize(parts[name], dim=-1) for name in pool.split("+")]
    return normalize(torch.cat(units, dim=-1), dim=-1)


def registers_of(config: Any) -> int:
    """How many tokens between the first and the patches belong to no place on the picture."""
    return getattr(config, "num_register_tokens", 0)


def prepared(model: Dino, images: list[Any]) -> Any:
    """Pixels as the model wants them, (images, 3, height, width), where it runs.

    A GPU with CUDA also reduces them, so that it does not wait for the CPU.
    """
    options = {"device": "cuda"} if model.device == "cuda" else {}
    return model.processor(images, return_tensors="pt", **options)["pixel_values"].to(model.device)


def bytes_per_image(model: Dino) -> int:
    """Memory that an image takes while it passes the model; of a ConvNeXt, the first of its stages, by far the most."""
    from PIL import Image

    pixels = prepared(model, [Image.new("RGB", image_models.TRIED_SIZES[0])])
    config = model.model.config
    channels, patch_px = getattr(config, "hidden_size", 0), getattr(config, "patch_size", 4)
    tokens = pixels[0, 0].numel() / patch_px**2 + 1 + registers_of(config)
    return int(4 * (FLOATS_AT_WORK * tokens * (channels or config.hidden_sizes[0]) + pixels.numel()))


def check_dino(folder: Path, *, allow_pickle: bool) -> None:
    """Raise ValueError unless a folder holds a DINO with all of its weights, and an image processor that suits it."""
    from vec_pipeline.engines import checkpoint

    config = checkpoint.read_json(folder / "config.json")
    if not isinstance(config, dict) or config.get("model_type") not in MODEL_TYPES:
        raise ValueError(f"{folder} is {checkpoint.kind_of(folder)}: give {WANTED}")
    image_models.check("AutoModel", folder, WANTED, allow_pickle=allow_pickle)
