"""Image models of transformers: loads one and its image processor, and checks that a folder holds all of both."""

from pathlib import Path
from typing import Any

TRIED_SIZES = ((64, 48), (48, 64))  # width and height of pictures for which an image processor is tried


def load_processor(folder: Path) -> Any:
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def load_model(auto: str, folder: Path, where: str, *, allow_pickle: bool) -> Any:
    """The model in float32, as `from_pretrained` returns it: for use, not for training.

    auto: the class of transformers that chooses the model's, such as AutoModel.
    """
    model, _ = _loaded(auto, folder, where, allow_pickle=allow_pickle)
    return model


def check(auto: str, folder: Path, wanted: str, *, allow_pickle: bool) -> None:
    """Raise ValueError unless a folder holds all weights of its model, and a processor that makes one size of pictures.

    wanted: what to give instead.
    """
    from PIL import Image

    from vec_pipeline.engines import checkpoint

    with checkpoint.reading(folder):
        # On this device nothing but the names and shapes of the weights is read.
        _, found = _loaded(auto, folder, "meta", allow_pickle=allow_pickle)
        processor = load_processor(folder)
        images = [Image.new("RGB", size) for size in TRIED_SIZES]
        shapes = {processor([image], return_tensors="pt")["pixel_values"].shape for image in images}
    if random := sorted(found["missing_keys"] | {name for name, *_ in found["mismatched_keys"]}):
        more = f" and {len(random) - 1} more" if random[1:] else ""
        raise ValueError(
            f"{folder} lacks {random[0]}{more} of the weights that its config.json tells of: give {wanted}"
        )
    if len(shapes) > 1:
        raise ValueError(
            f"{folder / 'preprocessor_config.json'} makes pictures of different sizes: set do_center_crop with a "
            "crop_size, or a size with a height and a width"
        )


def _loaded(auto: str, folder: Path, where: str, *, allow_pickle: bool) -> tuple[Any, dict[str, Any]]:
    """The model, and the names of weights that the folder lacks or has of another size: they would be random."""
    import torch
    import transformers
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of reading files, in the middle of the worker's own
    model, found = getattr(transformers, auto).from_pretrained(
        folder,
        dtype=torch.float32,
        device_map=where,
        use_safetensors=None if allow_pickle else True,
        local_files_only=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    return model, found
