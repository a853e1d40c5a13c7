"""A text or an image -> the vector to search for, by the models that the CSV was made with."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vec_pipeline.annotations import content_reader
from vec_pipeline.config import build_stage, stage_class
from vec_pipeline.record import Stage, UserError
from vec_pipeline.settings import recorded_settings, settings_path
from vec_pipeline.stages.embed_image import EmbedImage
from vec_pipeline.stages.embed_text import EmbedText

Vector = np.ndarray[Any, np.dtype[np.float32]]
QUERY_PREFIXES = {"passage: ": "query: "}  # of the e5 models; any other prefix is that of queries as well
NOT_OPTIONS = ("use", "version", "identity", "commit")  # that are recorded beside a stage's options


def sight_query(csv_path: Path, text: str) -> Vector:
    """Embed a text with the text tower of the CLIP: float32 of shape (dimensions,), L2-normalised."""
    stage, _ = maker_of(csv_path, "image_vector")
    if not isinstance(stage, EmbedImage):
        raise UserError(f"{stage.name}, which wrote image_vector, cannot embed a text: search with --like or --in text")
    import torch

    clip = stage.load()
    with torch.inference_mode():
        vectors = clip.model.encode_text(clip.tokenize([text]).to(clip.device), normalize=True)
    vector: Vector = vectors[0].float().cpu().numpy()
    return vector


def image_query(csv_path: Path, argument: str) -> Vector:
    """Embed an image as the images of the CSV were.

    argument: a path, or whatever else a source of the CSV accepts for one image. Raises UserError where it cannot be
    read.
    """
    content = content_reader(csv_path)(argument)
    stage, own_name = maker_of(csv_path, "image_vector")
    opener, image = maker_of(csv_path, stage.read.get("image", "image"))
    try:
        opened = opener.run(opener.load(), [{"content": content}], 1)[0]
    except Exception as error:  # of the many kinds that decoders raise
        opened = {"error": str(error)}
    if "error" in opened:
        raise UserError(f"{argument} cannot be opened: {opened['error']}")
    vector: Vector = stage.run(stage.load(), [{"image": opened[image]}], 1)[0][own_name]
    return vector


def meaning_query(csv_path: Path, text: str) -> Vector:
    """Embed a text with the sentence model, as a query where it distinguishes queries from passages."""
    stage, own_name = maker_of(csv_path, "text_vector")
    if isinstance(stage, EmbedText):
        stage = replace(stage, prefix=QUERY_PREFIXES.get(stage.prefix, stage.prefix))
    vector: Vector = stage.run(stage.load(), [{stage.reads[0]: text}], 1)[0][own_name]
    return vector


def maker_of(csv_path: Path, name: str) -> tuple[Stage, str]:
    """Build the stage that wrote a column or an intermediate as it was then; and how the stage itself calls the value.

    Raises UserError where the settings beside the CSV name no such stage.
    """
    stages = recorded_settings(csv_path).stages
    if not stages:
        raise UserError(f"{settings_path(csv_path)} does not exist: restore it, since it says which models to use")
    for stage_name, options in stages.items():
        with suppress(UserError):  # of another stage, whose module is not installed here
            cls = stage_class({"use": options.get("use", stage_name)})
            if own_name := own_name_of(cls, options, name):
                break
    else:
        raise UserError(f"{csv_path} was made without a stage that writes {name}: search in another column")
    own = {key: value for key, value in options.items() if key not in NOT_OPTIONS}
    commit = {"revision": options["commit"]} if options.get("commit") else {}
    stage = build_stage(cls, {"name": stage_name, **own, **commit}, {"device": "auto"})
    stage.fetch()
    return stage, own_name


def own_name_of(cls: type[Stage], options: Mapping[str, Any], name: str) -> str:
    """How a stage with these options calls the value `name` that it writes; empty where it does not write it."""
    written = options.get("write", {})
    return next((own for own in (*cls.writes, *cls.intermediates) if written.get(own, own) == name), "")
