"""image -> edited_path, the picture changed as a prompt says: by an image-editing pipeline of diffusers."""

import importlib.util
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vec_pipeline import device, files, weights
from vec_pipeline.device import Device
from vec_pipeline.engines import editing
from vec_pipeline.prompts import filled, placeholders
from vec_pipeline.record import OF_FILE, Need, UserError, Values
from vec_pipeline.stages.compare_pair import largest_difference
from vec_pipeline.stages.describe import FILE_VALUES
from vec_pipeline.weights import ModelStage

if TYPE_CHECKING:
    from vec_pipeline.engines.editing import Editor

FOLDER = "edited"  # beside the CSV
WEIGHTS = "[!s]*/"  # of every part but the safety checker, which is not loaded
MOST_AT_ONCE = {"cuda": 16, "mps": 2, "cpu": 8}
ROW_GB = 0.3  # that a picture of 512 x 512 takes in 16 bits while it passes the model
SHARE_OF_FREE = 0.5


@dataclass(frozen=True, kw_only=True)
class EditImage(ModelStage):
    """Edited pictures, PNG files in `edited` beside the CSV; the column holds the path from the CSV's folder on.

    A picture keeps its size. A file's name is a hash of the picture, the prompt and the settings: a file that is there
    is kept. No safety checker runs, as it would replace the edited picture by a black one.

    prompt: what to change; `{name}`, `{exif.date}` and columns are filled in as those of describe are.
    steps, guidance, image_guidance, strength: auto for what the pipeline itself takes.
    seed: of the noise, which is the same for every picture.
    """

    reads: ClassVar[tuple[str, ...]] = ("image",)
    writes: ClassVar[Mapping[str, str]] = {"edited_path": "file", "edit_difference": "number"}
    intermediates: ClassVar[Mapping[str, str]] = {"edited_image": "image"}
    in_files: ClassVar[tuple[str, ...]] = ("edited_image",)
    call_options: ClassVar[tuple[str, ...]] = ("prompt", "steps", "guidance", "image_guidance", "strength", "seed")
    refills: ClassVar[bool] = True  # pictures of one size go through together, and more rows hold more of each
    required: ClassVar[str] = editing.INDEX
    files: ClassVar[tuple[str, ...]] = (
        *("*.json", "*/*.txt", "*/*.jinja", "*/spiece.model"),
        *(f"{WEIGHTS}{name}.safetensors" for name in ("model", "model-*-of-*")),
        *(f"{WEIGHTS}diffusion_pytorch_{name}.safetensors" for name in ("model", "model-*-of-*")),
    )

    model: str = "timbrooks/instruct-pix2pix"
    prompt: str = ""
    steps: int | Literal["auto"] = "auto"
    guidance: float | Literal["auto"] = "auto"
    image_guidance: float | Literal["auto"] = "auto"
    strength: float | Literal["auto"] = "auto"
    seed: int = 0
    device: Device = "auto"
    batch_size: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        """Raises ValueError for a prompt whose braces hold no names, and for numbers that are out of range."""
        super().__post_init__()
        names = placeholders(self.prompt)
        of_file = {name: OF_FILE + name for name in names if name in FILE_VALUES}
        object.__setattr__(self, "read", {**of_file, **self.read})
        object.__setattr__(self, "optional", names)
        object.__setattr__(self, "placeholders", names)
        if self.image_guidance != "auto" and self.image_guidance < 1:
            raise ValueError("image_guidance: must be at least 1: below it, pipelines silently drop `guidance` too")
        if self.strength != "auto" and not 0 < self.strength <= 1:
            raise ValueError(f"strength: must be above 0 and at most 1, not {self.strength}")
        if self.steps != "auto" and self.strength != "auto" and self.steps * self.strength < 1:
            raise ValueError(f"strength: {self.strength} of {self.steps} steps is none: raise one of the two")

    @property
    def patterns(self) -> tuple[str, ...]:
        pickled = ("pytorch_model*.bin", "diffusion_pytorch_model*.bin")
        return self.files + (tuple(f"{WEIGHTS}{name}" for name in pickled) if self.allow_pickle else ())

    def is_safe(self, file: Path) -> bool:
        is_loaded = file.parent.name != editing.SAFETY_CHECKER and not (file.parent / self.required).exists()
        return super().is_safe(file) or not is_loaded

    def fetch(self) -> None:
        if not self.prompt.strip():
            raise UserError(f"{self.name}.prompt: it is empty: say what to change, such as make it snow")
        if not importlib.util.find_spec("diffusers"):
            raise UserError(f"{self.name} needs diffusers: pip install 'vec-pipeline[edit]'")
        files.check_folder(self.csv_folder / FOLDER, self.name)
        super().fetch()

    def check(self, path: Path) -> None:
        from vec_pipeline.engines import checkpoint

        try:
            checkpoint.refuse_other(path, self.required, editing.WANTED)
            super().check(path)
            self._options(editing.pipeline_class(path))
            editing.check(path, allow_pickle=self.allow_pickle)
        except ValueError as error:
            raise UserError(f"{self.name}: {error}") from None

    def need(self) -> Need:
        where = device.resolve(self.device)
        bytes_each = 4 if where == "cpu" else 2
        path = weights.local_path(self.model) or weights.cached_path(self.model, self.revision)
        is_there = path is not None and (path / self.required).is_file()
        gb = editing.weights_in(path) * bytes_each / device.GB if path and is_there else self.weights_gb()
        rows = self.batch_size if self.batch_size != "auto" else 1
        rows_gb = rows * ROW_GB * bytes_each / 2
        return Need(gpu_gb=gb, rows_gb=rows_gb) if where == "cuda" else Need(host_gb=gb, rows_gb=rows_gb)

    def load(self) -> "Editor":
        files.remove_abandoned(self.csv_folder / FOLDER)
        return editing.load(self.path(), device.resolve(self.device), allow_pickle=self.allow_pickle)

    def auto_batch_size(self, model: "Editor", reserved_gb: float) -> int:
        """As many pictures of 512 x 512 as a share of the free memory holds; one of pipelines that take one."""
        if not model.is_batched:
            return 1
        row_bytes = ROW_GB * device.GB * (2 if model.device == "cpu" else 1)
        return device.rows_that_fit(model.device, row_bytes, SHARE_OF_FREE, MOST_AT_ONCE, reserved_gb)

    def save_memory(self, model: "Editor") -> bool:
        return model.save_memory()

    def run(self, model: "Editor", rows: list[Values], at_once: int) -> list[Values]:
        images = [row["image"].convert("RGB") for row in rows]
        prompts = [filled(self.prompt, row) for row in rows]
        paths = [self._path(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        edited = [opened(self.csv_folder / path) for path in paths]
        missing = [n for n, picture in enumerate(edited) if picture is None and prompts[n].strip()]
        options = self._options(type(model.pipeline))
        for batch in of_one_size(images, missing, at_once):
            made = model.edit([images[n] for n in batch], [prompts[n] for n in batch], self.seed, options)
            for n, picture in zip(batch, made, strict=True):
                edited[n] = picture
                if picture is not None:
                    files.save(self.csv_folder / paths[n], png(picture))
        return [values(*each) for each in zip(images, prompts, paths, edited, strict=True)]

    def restored(self, result: Values) -> Values | None:
        picture = opened(self.csv_folder / result["edited_path"])
        return picture and {**result, "edited_image": picture}

    def _options(self, cls: type) -> dict[str, Any]:
        """The arguments of a pipeline's call. Raises ValueError for an option that it has not."""
        chosen = {name: getattr(self, name) for name in editing.NAMES}
        return editing.call_options(cls, {name: value for name, value in chosen.items() if value != "auto"})

    def _path(self, image: Any, prompt: str) -> str:
        """The file of a picture, from the CSV's folder on. Nothing that comes from a source is in its name."""
        options = [getattr(self, name) for name in self.call_options if name != "prompt"]
        model = (self.model, self.revision, weights.version(self.model))
        settings = json.dumps([self.version, *model, *options, prompt, image.size])
        return f"{FOLDER}/{blake2b(settings.encode() + image.tobytes(), digest_size=16).hexdigest()}.png"


def of_one_size(images: Sequence[Any], numbers: Sequence[int], at_once: int) -> list[list[int]]:
    """The numbers of pictures that go through together: of one size, at most so many."""
    batches = []
    for size in dict.fromkeys(images[n].size for n in numbers):
        same = [n for n in numbers if images[n].size == size]
        batches += [same[start : start + at_once] for start in range(0, len(same), at_once)]
    return batches


def values(image: Any, prompt: str, path: str, edited: Any) -> Values:
    """The result of a row."""
    if not prompt.strip():
        return {"error": "ValueError: the prompt is empty once the row's values are filled in"}
    if edited is None:
        return {"error": "ValueError: the model's picture holds numbers that are not finite"}
    difference = round(largest_difference(image, edited), 4)
    return {"edited_path": path, "edit_difference": difference, "edited_image": edited}


def png(image: Any) -> bytes:
    """A file without loss: what is read from it later is the picture that the model made."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def opened(path: Path) -> Any:
    """The picture in a file; None where it is missing or damaged."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError):  # what Pillow raises for damaged files
        return None
