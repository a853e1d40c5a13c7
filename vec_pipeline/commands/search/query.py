"""A text or an image -> the vector to look for, by the models that the CSV was made with."""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from vec_pipeline.config import build_stage, settings_path
from vec_pipeline.record import Stage, UserError
from vec_pipeline.stages.embed_image import EmbedImage
from vec_pipeline.stages.embed_text import EmbedText
from vec_pipeline.stages.open_image import OpenImage

AnyStage = TypeVar("AnyStage", bound=Stage)
Vector = np.ndarray[Any, np.dtype[np.float32]]
QUERY_PREFIXES = {"passage: ": "query: "}  # of the e5 models; any other prefix is that of queries as well


def sight_query(csv_path: Path, text: str) -> Vector:
    """Embed a text with the text tower of the CLIP: float32 of shape (dimensions,), L2-normalised."""
    stage = stage_of(csv_path, EmbedImage)
    import torch

    clip = stage.load()
    with torch.inference_mode():
        vectors = clip.model.encode_text(clip.tokenize([text]).to(clip.device), normalize=True)
    vector: Vector = vectors[0].float().cpu().numpy()
    return vector


def image_query(csv_path: Path, image_path: Path) -> Vector:
    """Embed an image as the images of the CSV were. Raises UserError where it cannot be read."""
    opener, stage = stage_of(csv_path, OpenImage), stage_of(csv_path, EmbedImage)
    opener.load()
    try:
        images = opener.run(None, [{"path": str(image_path)}])
    except Exception as error:  # of the many kinds that decoders raise
        raise UserError(f"{image_path} cannot be opened ({error}): name an image with --like") from None
    vector: Vector = stage.run(stage.load(), images)[0]["image_vector"]
    return vector


def meaning_query(csv_path: Path, text: str) -> Vector:
    """Embed a text with the sentence model, as a query where it tells queries from passages."""
    stage = stage_of(csv_path, EmbedText)
    stage = replace(stage, prefix=QUERY_PREFIXES.get(stage.prefix, stage.prefix))
    vector: Vector = stage.run(stage.load(), [{"text": text}])[0]["text_vector"]
    return vector


def stage_of(csv_path: Path, cls: type[AnyStage]) -> AnyStage:
    """Build a stage as it was when the CSV was made. Raises UserError where the settings beside it do not say how."""
    path, name = settings_path(csv_path), cls.__module__.rpartition(".")[2]
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        options = dict(settings[name])
    except OSError:
        raise UserError(f"{path} is not there, which says by what models: put it back beside {csv_path}") from None
    except KeyError:
        raise UserError(f"{csv_path} was made without {name}: add the stage, or search otherwise") from None
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError):
        raise UserError(f"{path} is damaged: put back the one that belongs to {csv_path}") from None
    options.pop("identity", None)
    stage = build_stage(cls, options, {"device": "auto"})
    assert isinstance(stage, cls)
    stage.fetch()
    return stage
