"""Texts and images -> the vectors to search for, by the models that the rows were made with."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vec_pipeline.config import build_stage, stage_class
from vec_pipeline.record import Content, Stage, UserError
from vec_pipeline.settings import recorded_settings, settings_path
from vec_pipeline.stages.embed_image import Clip, EmbedImage
from vec_pipeline.stages.embed_text import EmbedText

Vector = np.ndarray[Any, np.dtype[np.float32]]
Matrix = np.ndarray[Any, np.dtype[np.float32]]
QUERY_PREFIXES = {"passage: ": "query: "}  # of the e5 models; any other prefix is that of queries as well
NOT_OPTIONS = ("use", "version", "identity", "commit")  # that are recorded beside a stage's options
TEXTS_AT_ONCE = 64


@dataclass(frozen=True)
class Makers:
    """The stages that wrote what is searched, and their models.

    of: a column or an intermediate -> its stage, and how the stage itself calls it. Raises UserError.
    use: a stage -> its model, for as long as the block lasts.
    """

    of: Callable[[str], tuple[Stage, str]]
    use: Callable[[Stage], AbstractContextManager[Any]]

    def sight_query(self, text: str) -> Vector:
        """Embed a text with the text tower of the CLIP: float32 of shape (dimensions,), L2-normalised."""
        stage, _ = self.of("image_vector")
        if not isinstance(stage, EmbedImage):
            raise UserError(
                f"{stage.name}, which wrote image_vector, cannot embed a text: search with --like or --in text"
            )
        with self.use(stage) as clip:
            vector: Vector = clip_texts(clip, [text])[0]
        return vector

    def image_query(self, content: Content, column: str, called: str) -> Vector:
        """Embed an image as those were that have their vectors in a column.

        called: the image, in a message. Raises UserError where it cannot be opened.
        """
        stage, own_name = self.of(column)
        opener, image = self.of(stage.read.get("image", "image"))
        try:
            with self.use(opener) as model:
                opened = opener.run(model, [{"content": content}], 1)[0]
        except Exception as error:  # of the many kinds that decoders raise
            opened = {"error": str(error)}
        if "error" in opened:
            raise UserError(f"{called} cannot be opened: {opened['error']}")
        with self.use(stage) as model:
            vector: Vector = stage.run(model, [{"image": opened[image]}], 1)[0][own_name]
        return vector

    def meaning_query(self, text: str) -> Vector:
        """Embed a text with the sentence model, as a query where it distinguishes queries from passages."""
        stage, own_name = self.of("text_vector")
        asked = stage
        if isinstance(stage, EmbedText):
            asked = replace(stage, prefix=QUERY_PREFIXES.get(stage.prefix, stage.prefix))
        with self.use(stage) as model:
            vector: Vector = asked.run(model, [{stage.reads[0]: text}], 1)[0][own_name]
        return vector


def makers_of(csv_path: Path) -> Makers:
    """The stages that a CSV was made with; a model is loaded whenever it is used."""
    return Makers(lambda name: maker_of(csv_path, name), lambda stage: nullcontext(stage.load()))


def text_vectors(csv_path: Path, column: str, texts: Sequence[str]) -> Matrix:
    """Embed texts by the model that wrote a column: a CLIP by its text tower, a sentence model as it did for the CSV.

    texts: none of them blank. Returns float32 of shape (texts, dimensions), L2-normalised.
    """
    stage, own_name = maker_of(csv_path, column)
    if isinstance(stage, EmbedImage):
        return clip_texts(stage.load(), texts)
    found = stage.run(stage.load(), [{stage.reads[0]: text} for text in texts], TEXTS_AT_ONCE)
    return np.stack([row[own_name] for row in found])


def clip_texts(clip: Clip, texts: Sequence[str]) -> Matrix:
    """Embed texts with the text tower of a CLIP: float32 of shape (texts, dimensions), L2-normalised."""
    import torch
    from tqdm import tqdm

    starts = range(0, len(texts), TEXTS_AT_ONCE)
    parts = []
    for start in tqdm(starts, desc="texts", unit=" batches", disable=None if len(starts) > 1 else True, leave=False):
        tokens = clip.tokenize(list(texts[start : start + TEXTS_AT_ONCE])).to(clip.device)
        with torch.inference_mode():
            parts.append(clip.model.encode_text(tokens, normalize=True).float().cpu().numpy())
    return np.concatenate(parts)


def maker_of(csv_path: Path, name: str) -> tuple[Stage, str]:
    """Build the stage that wrote a column or an intermediate as it was then; and how the stage itself calls the value.

    Raises UserError where the settings beside the CSV name no such stage.
    """
    maker = recorded_maker(csv_path, name)
    own = {key: value for key, value in maker.options.items() if key not in NOT_OPTIONS}
    commit = {"revision": maker.options["commit"]} if maker.options.get("commit") else {}
    stage = build_stage(maker.cls, {"name": maker.name, **own, **commit}, {"device": "auto"})
    stage.fetch()
    return stage, maker.own_name_of(name)


@dataclass(frozen=True)
class Maker:
    """A stage as the settings beside a CSV have it; options: with its version, its commit and what else they record."""

    name: str
    cls: type[Stage]
    options: Mapping[str, Any]

    def own_name_of(self, name: str) -> str:
        """How the stage calls the value `name` that it writes; empty where it does not write it."""
        written = self.options.get("write", {})
        return next((own for own in (*self.cls.writes, *self.cls.intermediates) if written.get(own, own) == name), "")


def recorded_maker(csv_path: Path, name: str) -> Maker:
    """The stage that wrote a column or an intermediate. Raises UserError where the settings name none."""
    for maker in makers(csv_path):
        if maker.own_name_of(name):
            return maker
    raise UserError(
        f"{csv_path} was made without a stage that writes {name}: add one and run with --refresh, or use another column"
    )


def makers(csv_path: Path) -> Iterator[Maker]:
    """The stages that a CSV was made with. Raises UserError where there are no settings beside it."""
    stages = recorded_settings(csv_path).stages
    if not stages:
        raise UserError(f"{settings_path(csv_path)} does not exist: restore it, since it says which models to use")
    for name, options in stages.items():
        with suppress(UserError):  # of another stage, whose module is not installed here
            yield Maker(name, stage_class({"use": options.get("use", name)}), options)
