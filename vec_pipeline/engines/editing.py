"""Pipelines of diffusers that edit a picture as a prompt says: which can, loading one, checking one, calling one."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from inspect import Parameter, signature
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from vec_pipeline import device
from vec_pipeline.engines import checkpoint

INDEX = "model_index.json"  # names the class of a pipeline, and the classes of its parts by their folders
WANTED = (
    "a diffusers pipeline that does, such as timbrooks/instruct-pix2pix, a Flux Kontext, a FLUX.2 klein, a "
    "Qwen-Image-Edit, or a Stable Diffusion, which has img2img"
)
SAFETY_CHECKER = "safety_checker"  # it replaces a picture that it rejects by a black one
NEEDED = {"image", "prompt", "generator", "num_inference_steps", "output_type"}
OF_OTHERS = {  # options of pipelines that want more than a picture and a prompt, or make something else of them
    *("mask_image", "control_image", "controlnet_conditioning_scale", "adapter_conditioning_scale"),
    *("num_frames", "frames", "video", "noise_level"),
}
NOT_EDITING = (  # in the names of others with the same options
    *("Upscale", "Refiner", "Prior", "Layered", "Diffuser", "VersatileDiffusion", "Gemma", "Onnx"),
)
NAMES = {  # of the options of `edit_image`, in the calls of pipelines
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "image_guidance": "image_guidance_scale",
    "strength": "strength",
}
SMALLEST_MULTIPLE_PX = 8
OF_WEIGHTS = re.compile(r"(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors")  # and of no variant such as fp16


class Editor(NamedTuple):
    """A pipeline that is loaded, and what it computes on."""

    pipeline: Any
    device: str

    @property
    def is_batched(self) -> bool:
        """Whether a list of pictures is one for each prompt; to other pipelines it is several to make one of."""
        names = options_of(type(self.pipeline))
        if "true_cfg_scale" in names:
            return type(self.pipeline).__name__ == "FluxKontextPipeline"
        return "image_guidance_scale" in names or "strength" in names

    @property
    def multiple_px(self) -> int:
        """What the sides of its pictures must be multiples of."""
        processor = getattr(self.pipeline, "image_processor", None)
        return max(SMALLEST_MULTIPLE_PX, int(processor.config.vae_scale_factor) if processor else 0)

    def edit(self, images: Sequence[Any], prompts: Sequence[str], seed: int, options: Mapping[str, Any]) -> list[Any]:
        """The edited pictures, RGB and of the size of these; None instead of one that is not finite.

        images: RGB, all of one size.
        seed: of the noise, which is the same for each picture, alone or in a batch.
        options: as `call_options` returns them.
        """
        padded = [pad(image, self.multiple_px) for image in images]
        if self.is_batched:
            made = self._call(padded, prompts, seed, options)
        else:
            pairs = zip(padded, prompts, strict=True)
            made = [array for image, prompt in pairs for array in self._call([image], [prompt], seed, options)]
        return [picture_of(array, padded[0].size, images[0].size) for array in made]

    def _call(self, images: list[Any], prompts: Sequence[str], seed: int, options: Mapping[str, Any]) -> Any:
        """Arrays of shape (height, width, 3) from 0 to 1, for pictures that go through together."""
        import torch

        width, height = images[0].size
        sizes = {"width": width, "height": height, "max_area": width * height, "_auto_resize": False}
        known = options_of(type(self.pipeline))
        return self.pipeline(
            image=images if self.is_batched else images[0],
            prompt=list(prompts) if self.is_batched else prompts[0],
            # On the CPU, so that a seed is the same noise whatever the model computes on.
            generator=[torch.Generator("cpu").manual_seed(seed) for _ in images],
            output_type="np",
            **{name: value for name, value in sizes.items() if name in known},
            **options,
        ).images

    def save_memory(self) -> bool:
        """Let large pictures pass the autoencoder in tiles, which takes less memory; whether that is new."""
        vae: Any = getattr(self.pipeline, "vae", None)
        if not hasattr(vae, "enable_tiling") or vae.use_tiling:
            return False
        vae.enable_tiling()
        return True


def pad(image: Any, multiple_px: int) -> Any:
    """The picture with its right and lower edge repeated until both sides are multiples: nothing is distorted."""
    import numpy as np
    from PIL import Image

    more = [(0, -side % multiple_px) for side in (image.height, image.width)]
    return Image.fromarray(np.pad(np.asarray(image), [*more, (0, 0)], mode="edge"))


def picture_of(array: Any, padded: tuple[int, int], size: tuple[int, int]) -> Any:
    """What a pipeline made of a picture that was padded, RGB at the picture's size; None if it is not finite.

    array: (height, width, 3), from 0 to 1; some pipelines choose the size. padded, size: width and height.
    """
    import numpy as np
    from PIL import Image

    if not np.isfinite(array).all():
        return None
    image = Image.fromarray((array.clip(0, 1) * 255).round().astype(np.uint8))
    return (image if image.size == padded else image.resize(padded)).crop((0, 0, *size))


def options_of(cls: type) -> Mapping[str, Parameter]:
    """What a pipeline's call takes."""
    return {name: each for name, each in signature(cls.__call__).parameters.items() if name != "self"}


def call_options(cls: type, chosen: Mapping[str, float]) -> dict[str, Any]:
    """The arguments of a pipeline's call that are not of one picture. Raises ValueError for an option it has not.

    chosen: values by the names in NAMES, of options that are not to have the pipeline's default.
    """
    known, names = options_of(cls), NAMES
    arguments: dict[str, Any] = {}
    if "true_cfg_scale" in known and known["guidance_scale"].default is None:  # the other is of distilled models
        names = {**NAMES, "guidance": "true_cfg_scale"}
        if chosen.get("guidance", known["true_cfg_scale"].default) > 1:
            arguments["negative_prompt"] = " "  # without one it takes no guidance
    for option, value in chosen.items():
        if names[option] not in known:
            raise ValueError(f"{option}: {cls.__name__} has no such option: remove it")
        arguments[names[option]] = value
    return arguments


def can_edit(cls: type) -> bool:
    """Whether a pipeline makes a picture of a picture and a prompt, and needs nothing else."""
    known = options_of(cls)
    needed = {name for name, each in known.items() if each.default is Parameter.empty and each.kind.name[:3] != "VAR"}
    has_other_use = known.keys() & OF_OTHERS or any(word in cls.__name__ for word in NOT_EDITING)
    return known.keys() >= NEEDED and needed <= NEEDED and not has_other_use


def pipeline_class(folder: Path) -> type:
    """The class that edits with the parts in a folder: its own, or img2img with the same parts. Raises ValueError."""
    name = read_index(folder).get("_class_name")
    if not isinstance(name, str):
        raise ValueError(f"{folder} brings a pipeline of its own, whose code is not run: give {WANTED}")
    with checkpoint.reading(folder):
        import diffusers

        own = getattr(diffusers, name, None)  # imports it, which libraries comment on that it does not need
    if not (isinstance(own, type) and issubclass(own, diffusers.DiffusionPipeline)):
        raise ValueError(
            f"{folder / INDEX}: diffusers {diffusers.__version__} knows no pipeline {name}: update diffusers, or use "
            "another model"
        )
    found = own if can_edit(own) else img2img_of(own)  # whose import takes seconds
    if not (found and can_edit(found)):
        raise ValueError(f"{folder} is a {name}, which does not edit pictures by a prompt alone: give {WANTED}")
    return found


def img2img_of(cls: type) -> type | None:
    """The pipeline that makes pictures of pictures with the parts of one that makes them of texts, if there is one."""
    from diffusers.pipelines import auto_pipeline

    kinds = [kind for kind, other in auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.items() if other is cls]
    return next((auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING.get(kind) for kind in kinds), None)


def read_index(folder: Path) -> dict[str, Any]:
    content = checkpoint.read_json(folder / INDEX)
    if not isinstance(content, dict):
        raise ValueError(f"{folder / INDEX} is damaged (it names no parts): delete it, and download or copy it again")
    return content


def parts_of(folder: Path) -> dict[str, tuple[str, str]]:
    """The names of the parts that are loaded -> the library and the class of each."""
    parts = {name: tuple(each) for name, each in read_index(folder).items() if isinstance(each, list)}
    return {name: (each[0], each[1]) for name, each in parts.items() if all(each) and name != SAFETY_CHECKER}


@cache
def weights_in(folder: Path) -> int:
    """The number of weights of the parts that are loaded, by the headers of their files."""
    from safetensors import safe_open

    count = 0
    for file in (each for part in parts_of(folder) for each in (folder / part).glob("*.safetensors")):
        if OF_WEIGHTS.fullmatch(file.name):
            with safe_open(file, framework="numpy") as weights:
                count += sum(prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return count


def load(folder: Path, where: str, *, allow_pickle: bool) -> Editor:
    """Load a pipeline onto a device, in the precision of `device.dtype`; it decodes one picture after the other."""
    pipeline = build(folder, {}, allow_pickle=allow_pickle, dtype=device.dtype(where))
    pipeline.set_progress_bar_config(disable=True)
    if hasattr(getattr(pipeline, "vae", None), "enable_slicing"):
        pipeline.vae.enable_slicing()  # changes nothing in the pictures, and a batch's decoding takes most memory
    return Editor(pipeline.to(where), where)


def build(folder: Path, parts: Mapping[str, Any], *, allow_pickle: bool, **options: Any) -> Any:
    """The pipeline of a folder without a safety checker. parts: those that are loaded already, by name."""
    from diffusers.utils import logging
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of reading files, in the middle of the worker's own
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # else it warns of the missing safety checker, at every load
    cls = pipeline_class(folder)
    without = {SAFETY_CHECKER: None, "requires_safety_checker": False}
    known = signature(cls).parameters
    return cls.from_pretrained(  # type: ignore[attr-defined]
        folder,
        use_safetensors=None if allow_pickle else True,
        local_files_only=True,
        **{name: value for name, value in without.items() if name in known},
        **parts,
        **options,
    )


def check(folder: Path, *, allow_pickle: bool) -> None:
    """Raise ValueError unless a folder holds every part of its pipeline, with all of its weights."""
    pipeline_class(folder)
    for name, (_, class_name) in parts_of(folder).items():
        if not (folder / name).is_dir():
            raise ValueError(f"{folder / name} is missing, the {class_name} of the pipeline: download or copy it too")
    models = dict(on_meta(folder, allow_pickle=allow_pickle))
    with checkpoint.reading(folder):
        pipeline = build(folder, models, allow_pickle=allow_pickle)
    for name in (each for each in parts_of(folder) if each.startswith("tokenizer")):
        with checkpoint.reading(folder / name, str):
            checkpoint.check_tokenizer(getattr(pipeline, name), folder / name)


def on_meta(folder: Path, *, allow_pickle: bool) -> Iterator[tuple[str, Any]]:
    """The models of a pipeline without their weights, of which names and shapes alone are read.

    Raises ValueError where some are missing: they would be random.
    """
    import diffusers
    import transformers
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    for name, (library, class_name) in parts_of(folder).items():
        cls = getattr({"diffusers": diffusers, "transformers": transformers}.get(library), class_name, None)
        if not (isinstance(cls, type) and issubclass(cls, diffusers.ModelMixin | transformers.PreTrainedModel)):
            continue  # a tokenizer, a scheduler
        with checkpoint.reading(folder / name):
            model, found = cls.from_pretrained(
                folder / name,
                device_map="meta",
                use_safetensors=None if allow_pickle else True,
                local_files_only=True,
                output_loading_info=True,
            )
        if missing := sorted(found["missing_keys"]):
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            raise ValueError(f"{folder / name} lacks {missing[0]}{more} of its weights: download or copy it again")
        yield name, model
