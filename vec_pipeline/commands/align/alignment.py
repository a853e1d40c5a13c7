"""A projection of text vectors into the space of an image vector column, in a folder that `align` writes."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vec_pipeline.commands import writing
from vec_pipeline.commands.align.loss_picture import Curve, loss_png
from vec_pipeline.commands.search.query import recorded_maker, text_vectors
from vec_pipeline.record import UserError

if TYPE_CHECKING:
    from torch import nn

PROJECTION, SETTINGS, LOSS = "projection.safetensors", "settings.json", "loss.png"
WIDENING = 4  # of the layer between two
NAMES = ("name", "read", "write")  # of a recorded stage's options, those that change no vectors

Matrix = np.ndarray[Any, np.dtype[np.float32]]


def network(inner: int, width: int, layers: int) -> "nn.Sequential":
    """A linear layer from `inner` to `width` dimensions, or two with one of WIDENING times `inner` between them."""
    from torch import nn

    if layers == 1:
        return nn.Sequential(nn.Linear(inner, width))
    return nn.Sequential(nn.Linear(inner, WIDENING * inner), nn.GELU(), nn.Linear(WIDENING * inner, width))


def project(net: "nn.Module", texts: Matrix) -> Matrix:
    """Text vectors of shape (texts, dimensions) -> directions among centred image vectors, of length 1."""
    import torch

    with torch.inference_mode():
        return unit(net(torch.from_numpy(texts)).numpy())


def unit(vectors: Matrix) -> Matrix:
    """Rows scaled to length 1; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    result: Matrix = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return result


def model_of(csv_path: Path, column: str) -> dict[str, Any]:
    """What decides the vectors of a column: the recorded options of its stage, the commit of a hub model among them."""
    maker = recorded_maker(csv_path, column)
    options = {"use": maker.name, **maker.options}
    return {name: value for name, value in options.items() if name not in NAMES}


@dataclass(frozen=True)
class Alignment:
    """A projection, and what it was made with.

    net: from text vectors to centred image vectors, of any length.
    mean: of the image vectors, float32 of shape (dimensions,): cosines are those of vectors from which it is taken.
    settings: what settings.json holds. `text` and `image` each have the column of the vectors, and the stage that wrote
        it (of `text` with a CLIP, the stage whose text tower embeds).
    """

    net: "nn.Module"
    mean: Matrix
    settings: Mapping[str, Any]

    @property
    def column(self) -> str:
        """The column of the image vectors."""
        return str(self.settings["image"]["column"])

    def query(self, csv_path: Path, text: str) -> Matrix:
        """Embed a text and project it: float32 of shape (dimensions,), of length 1."""
        vector: Matrix = project(self.net, text_vectors(csv_path, self.settings["text"]["column"], [text]))[0]
        return vector

    def write(self, folder: Path, curve: Curve) -> None:
        """Write the files, each atomically and all of them or, if interrupted, none. Raises UserError."""
        import torch
        from safetensors.torch import save

        weights = {f"layers.{name}": weight.contiguous() for name, weight in self.net.state_dict().items()}
        projection = save({**weights, "mean": torch.from_numpy(self.mean)})
        settings = {**self.settings, "loss": asdict(curve), "sha256": hashlib.sha256(projection).hexdigest()}
        files = {
            SETTINGS: json.dumps(settings, ensure_ascii=False, indent=2).encode() + b"\n",
            LOSS: loss_png(curve),
            PROJECTION: projection,
        }
        with ExitStack() as stack:  # the files get their names when it ends
            for name, content in files.items():
                file = stack.enter_context(writing(folder / name))
                file.write(content)
                file.flush()

    @classmethod
    def read(cls, folder: Path, csv_path: Path) -> "Alignment":
        """Read what `write` has written, for a CSV. Raises UserError where it does not fit the CSV's models."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        again = f"run `vec-pipeline align --csv {csv_path}`"
        try:
            settings = json.loads((folder / SETTINGS).read_bytes())
            projection = (folder / PROJECTION).read_bytes()
            if settings["sha256"] != hashlib.sha256(projection).hexdigest():
                raise ValueError("files of two alignments")
            tensors = load(projection)
            mean = tensors.pop("mean").numpy()
            inner, width = settings["dimensions"]
            net = network(inner, width, settings["layers"])
            net.load_state_dict({name.removeprefix("layers."): weight for name, weight in tensors.items()})
            parts = [(settings[name]["column"], settings[name]["stage"]) for name in ("text", "image")]
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{folder} holds no alignment of texts with these vectors: {again}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError):
            raise UserError(f"{folder} is damaged: {again}") from None
        for column, stage in parts:
            if model_of(csv_path, column) != stage:
                raise UserError(f"{folder} was made with another model of {column} than {csv_path} has now: {again}")
        return cls(net.eval(), mean, settings)
