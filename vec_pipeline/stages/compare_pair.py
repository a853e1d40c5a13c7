"""image and edited_image -> pair_similarity, pair_difference and edit_direction: how a picture and its edit differ."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from vec_pipeline.record import Stage, UserError, Values
from vec_pipeline.stages.embed_image import Clip, EmbedImage

CELL_PX = 8  # averages what JPEG and another size change away, and leaves a removed word


@dataclass(frozen=True, kw_only=True)
class ComparePair(EmbedImage):
    """Compares a picture with its edit: by their CLIP embeddings, by their pixels, and with what their texts say.

    pair_similarity: the cosine of `image_vector` and `edited_vector`; empty without them.
    pair_difference: `largest_difference` of the pixels.
    edit_direction: CLIP directional similarity (Gal et al. 2021, StyleGAN-NADA; Brooks et al. 2023, InstructPix2Pix):
        the cosine of what the edit changed in the image embedding and in that of the text; empty where the vectors or
        a text are missing, or the texts are equal.

    The CLIP embeds the texts. A stage `embed_image` with the same options shares it, and has to be of the same model.
    """

    reads: ClassVar[tuple[str, ...]] = ("image", "edited_image")
    optional: ClassVar[tuple[str, ...]] = ("image_vector", "edited_vector", "text", "edited_text")
    writes: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("pair_similarity", "pair_difference", "edit_direction"), "number"
    )

    @cached_property
    def loaded_as(self) -> Stage:
        names = ("name", "model", "revision", "device", "batch_size", "allow_pickle")
        return EmbedImage(**{name: getattr(self, name) for name in names})

    def run(self, model: Clip, rows: list[Values], at_once: int) -> list[Values]:
        directions = self._directions(model, rows)
        return [
            {
                "pair_similarity": cosine(row["image_vector"], row["edited_vector"]) if has_vectors(row) else None,
                "pair_difference": round(largest_difference(row["image"], row["edited_image"]), 4),
                "edit_direction": directions.get(index),
            }
            for index, row in enumerate(rows)
        ]

    def _directions(self, model: Clip, rows: list[Values]) -> dict[int, float | None]:
        """The `edit_direction` of the rows that have one, by their indices. Raises UserError for another CLIP's."""
        import torch

        told = {index: row for index, row in enumerate(rows) if has_vectors(row) and has_two_texts(row)}
        if not told:
            return {}
        texts = [row[name] for name in ("text", "edited_text") for row in told.values()]
        with torch.inference_mode():
            tokens = model.tokenize(texts).to(model.device)
            before, after = (
                model.model.encode_text(tokens, normalize=True).float().cpu().numpy().reshape(2, len(told), -1)
            )
        numbers = {row["image_vector"].size for row in told.values()}
        if numbers != {before.shape[1]}:
            raise UserError(
                f"{self.name}: image_vector has {numbers.pop()} numbers, and {self.model} gives {before.shape[1]}: set "
                f"{self.name}.model to that of the stage which writes image_vector"
            )
        moves = zip(told.items(), after - before, strict=True)
        return {index: cosine(row["edited_vector"] - row["image_vector"], move) for (index, row), move in moves}


def has_vectors(row: Values) -> bool:
    return "image_vector" in row and "edited_vector" in row


def has_two_texts(row: Values) -> bool:
    """Whether both pictures have a text, and not the same one."""
    texts = [str(row.get(name, "")).strip() for name in ("text", "edited_text")]
    return all(texts) and texts[0] != texts[1]


def cosine(first: Any, second: Any) -> float | None:
    """Of two vectors; None where one of them is zero."""
    lengths = float(np.linalg.norm(first)) * float(np.linalg.norm(second))
    return round(float(np.dot(first, second)) / lengths, 4) if lengths else None


def largest_difference(first: Image.Image, second: Image.Image) -> float:
    """How much two pictures differ where they differ most: 0 for the same, 1 for black and white.

    Both are reduced to cells of CELL_PX pixels of the smaller width and height, to which the other is stretched where
    its aspect ratio is another; of each cell, the mean absolute difference of the three colours counts.
    """
    size = cells_along(first.width, second.width), cells_along(first.height, second.height)
    cells = [np.asarray(each.convert("RGB").resize(size, Image.Resampling.BILINEAR), int) for each in (first, second)]
    return float(np.abs(cells[0] - cells[1]).mean(axis=2).max()) / 255


def cells_along(*sides_px: int) -> int:
    return max(1, round(min(sides_px) / CELL_PX))
