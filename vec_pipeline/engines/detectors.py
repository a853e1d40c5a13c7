"""Object detectors of transformers, with labels of their own or for any: pictures to boxes, labels and scores."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from vec_pipeline.engines import checkpoint

LARGEST_SIDE_PX = 1333  # of processors that do not say
MOST_SQUEEZED = 4  # how many times as long as the model's input a narrow picture is kept, which is squeezed to a square
LARGEST_ASPECT = 10  # of the longer side to the shorter: processors reduce the shorter one, in the end to nothing
ENDS = 2  # tokens that begin and end a text
NOT_A_NUMBER = "ValueError: the model's answer is not a number"


class Found(NamedTuple):
    """What a detector finds in a picture: tensors of torch, in no particular order.

    scores: (n,), of 0 to 1. labels: (n,), numbers of labels. boxes: (n, 4), left, top, right and bottom in pixels of
    the picture that it was given; they may reach beyond its edges.
    """

    scores: Any
    labels: Any
    boxes: Any


@dataclass(frozen=True)
class Detector:
    """A detector in memory.

    names: of its labels, by their numbers.
    text: what it is asked to look for, as tensors for one picture; empty for a model with labels of its own.
    """

    model: Any
    processor: Any
    names: Mapping[int, str]
    text: Mapping[str, Any]
    device: str

    @cached_property
    def input_size(self) -> tuple[int, int]:
        """The largest height and width that the processor of pictures makes."""
        size = {name: px for name, px in dict(_images(self.processor).size or {}).items() if px}
        longest = max(size.values(), default=LARGEST_SIDE_PX)
        return size.get("height", size.get("shortest_edge", longest)), size.get("width", longest)

    def side_px(self, size: tuple[int, int]) -> int:
        """The longest side to reduce a picture of a width and height to, without a loss for the model.

        Many processors squeeze pictures to a square, so that a narrow one keeps more pixels of its longer side.
        """
        return round(max(self.input_size) * min(MOST_SQUEEZED, max(size) / min(size)))

    def detect(self, images: Sequence[Image.Image], min_score: float) -> list[Found | str]:
        """What is found in each RGB picture with a score above `min_score`; or the error of its row.

        Pictures that the processor makes equally large go through the model together. Others would have to be padded,
        which YOLOS takes for a part of the picture, and which moves the boxes of the other models by some pixels.
        """
        pixels = [_images(self.processor)(image, return_tensors="pt") for image in images]
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, each in enumerate(pixels):
            groups[each["pixel_values"].shape].append(index)
        results: dict[int, Found | str] = {}
        for group in groups.values():
            sizes = [images[index].size[::-1] for index in group]
            results |= zip(
                group, self._of_equal_size([pixels[index] for index in group], sizes, min_score), strict=True
            )
        return [results[index] for index in range(len(images))]

    def _of_equal_size(
        self, pixels: Sequence[Mapping[str, Any]], sizes: Sequence[tuple[int, int]], min_score: float
    ) -> list[Found | str]:
        """sizes: height and width of each picture."""
        import torch

        batch = {name: torch.cat([each[name] for each in pixels]) for name in pixels[0] if name.startswith("pixel_")}
        batch |= {name: value.repeat(len(pixels), *[1] * (value.ndim - 1)) for name, value in self.text.items()}
        with torch.inference_mode():
            outputs = self.model(**{name: value.to(self.device) for name, value in batch.items()})
            found = self._found(outputs, min_score, torch.tensor(sizes, device=self.device))
        return [
            NOT_A_NUMBER if is_bad else Found(*(each[name].cpu() for name in ("scores", "labels", "boxes")))
            for each, is_bad in zip(found, _lacks_numbers(outputs), strict=True)
        ]

    def _found(self, outputs: Any, min_score: float, sizes: Any) -> list[dict[str, Any]]:
        from transformers import GroundingDinoProcessor

        if not self.text:
            return list(self.processor.post_process_object_detection(outputs, threshold=min_score, target_sizes=sizes))
        if isinstance(self.processor, GroundingDinoProcessor):
            return grounded(outputs, self.text["input_ids"].to(self.device), min_score, sizes)
        return list(
            self.processor.post_process_grounded_object_detection(outputs, threshold=min_score, target_sizes=sizes)
        )


def grounded(outputs: Any, input_ids: Any, min_score: float, sizes: Any) -> list[dict[str, Any]]:
    """What Grounding DINO finds, with numbers of labels.

    The processor's own method returns the words above a threshold, which may be of two labels or a part of one. Here a
    box has the label whose words have the highest mean, as in its authors' evaluation, and the score of the best one
    of them, as in that method.

    input_ids: (1, tokens). sizes: (pictures, 2), height and width.
    """
    from transformers.image_transforms import center_to_corners_format
    from transformers.models.grounding_dino.modeling_grounding_dino import build_label_maps

    [words] = build_label_maps(outputs.logits[:1], input_ids)  # (labels, tokens): 1 for those of a label
    words = words.to(outputs.logits.dtype)
    by_word = outputs.logits.sigmoid()  # (pictures, boxes, tokens)
    labels = (by_word @ (words / words.sum(dim=1, keepdim=True)).T).argmax(dim=-1)
    scores = (by_word * words[labels]).amax(dim=-1)
    boxes = center_to_corners_format(outputs.pred_boxes) * sizes.flip(1).repeat(1, 2)[:, None]
    kept = scores > min_score
    return [
        {"scores": scores[index][keep], "labels": labels[index][keep], "boxes": boxes[index][keep]}
        for index, keep in enumerate(kept)
    ]


def _lacks_numbers(outputs: Any) -> list[bool]:
    """Of each picture, whether some of the answers are NaN, which no threshold tells from a low score."""
    import torch

    answers = [outputs[name] for name in ("logits", "pred_boxes") if name in outputs]
    return list(map(any, zip(*(torch.isnan(each).flatten(1).any(dim=1).tolist() for each in answers), strict=True)))


def evened(image: Image.Image) -> Image.Image:
    """A picture that is not too narrow for processors: its shorter side is stretched, which boxes can be scaled by."""
    least = -(-max(image.size) // LARGEST_ASPECT)
    return image if min(image.size) >= least else image.resize((max(image.width, least), max(image.height, least)))


def load(folder: Path, labels: Sequence[str], where: str, *, allow_pickle: bool) -> Detector:
    """Load the detector of a folder that `check` has passed. labels: what a model for any labels is to look for."""
    import torch
    from transformers import AutoModelForObjectDetection, AutoModelForZeroShotObjectDetection
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # it would break the one of the run
    config = _config(folder)
    is_open = _is_open(config)
    cls = AutoModelForZeroShotObjectDetection if is_open else AutoModelForObjectDetection
    model = cls.from_pretrained(folder, dtype=torch.float32, use_safetensors=None if allow_pickle else True)
    processor = _processor(folder, is_open=is_open)
    names = dict(enumerate(labels)) if is_open else {int(key): str(name) for key, name in config.id2label.items()}
    layout = torch.channels_last if where == "cpu" else torch.preserve_format  # a fifth faster there
    model = model.to(where, memory_format=layout).eval()
    return Detector(model, processor, names, _text(processor, labels) if is_open else {}, where)


def check(folder: Path, labels: Sequence[str], *, allow_pickle: bool) -> None:
    """Raise ValueError unless a folder holds all that detecting takes, and its model knows or can read the labels."""
    checkpoint.check_weights(folder, allow_pickle=allow_pickle)
    config = _config(folder)
    is_open = _is_open(config)
    with checkpoint.reading(folder):
        processor = _processor(folder, is_open=is_open)
    if not is_open:
        if not hasattr(processor, "post_process_object_detection"):
            name = type(processor).__name__
            raise ValueError(
                f"{folder / 'preprocessor_config.json'} names {name}, which is not that of a detector: copy it again"
            )
        _check_known(labels, [str(name) for name in config.id2label.values()])
        return
    if not labels:
        raise ValueError(f"{folder} is a {config.model_type} model, which finds what it is told to: set `labels:`")
    _check_texts(labels, processor, config)


def _check_known(labels: Sequence[str], known: Sequence[str]) -> None:
    for label in labels:
        if label not in known:
            matches = get_close_matches(label, known, n=1, cutoff=0.5)
            hint = f"did you mean {matches[0]!r}?" if matches else f"there are: {', '.join(known)}"
            raise ValueError(f"labels: the model has no label {label!r} ({hint})"[:1000])


def _check_texts(labels: Sequence[str], processor: Any, config: Any) -> None:
    """Raise ValueError for labels that a model for any labels cannot read, or not to their end."""
    most, total = config.get_text_config().max_position_embeddings, 0
    for label in labels:
        tokens = processor.tokenizer(_sayable(label), add_special_tokens=False, verbose=False)["input_ids"]
        if not set(tokens) - {processor.tokenizer.unk_token_id}:
            raise ValueError(f"labels: {label!r} has no letter of the model's vocabulary: name what to look for")
        if len(tokens) + ENDS > most:
            raise ValueError(
                f"labels: {label!r} has {len(tokens)} tokens and the model reads {most - ENDS}: shorten it"
            )
        total += len(tokens) + 1  # the mark that ends it
    if 0 < (most := getattr(config, "max_text_len", 0)) < total + ENDS:
        raise ValueError(
            f"labels: they have {total} tokens and the model reads {most - ENDS}: give fewer, or shorter ones"
        )


def _sayable(label: str) -> str:
    """A label without the marks that end one in the texts of Grounding DINO: "St. Bernard" would be two."""
    return " ".join(label.replace(".", " ").replace("?", " ").split())


def _text(processor: Any, labels: Sequence[str]) -> dict[str, Any]:
    """What a model for any labels reads beside a picture: tensors for one."""
    blank = Image.new("RGB", (64, 64))  # some processors take no text alone
    inputs = processor(images=[blank], text=[[_sayable(label) for label in labels]], return_tensors="pt")
    return {name: value for name, value in inputs.items() if not name.startswith("pixel_")}


def _images(processor: Any) -> Any:
    """The part of a processor that prepares pictures."""
    return getattr(processor, "image_processor", processor)


def _processor(folder: Path, *, is_open: bool) -> Any:
    from transformers import AutoImageProcessor, AutoProcessor

    return (AutoProcessor if is_open else AutoImageProcessor).from_pretrained(folder)


def _config(folder: Path) -> Any:
    """The configuration. Raises ValueError where it cannot be read."""
    from transformers import AutoConfig

    try:
        with checkpoint.reading(folder):
            return AutoConfig.from_pretrained(folder)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(f"{folder} runs Python files of its own: give {checkpoint.DETECTOR}") from None


def _is_open(config: Any) -> bool:
    """Whether a model finds what it is told to. Raises ValueError where it is no detector."""
    from transformers import MODEL_FOR_OBJECT_DETECTION_MAPPING, MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING

    is_open = type(config) in MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING
    mapping = MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING if is_open else MODEL_FOR_OBJECT_DETECTION_MAPPING
    kind = config.model_type
    if type(config) not in mapping:
        raise ValueError(f"{config.name_or_path} is a {kind} model, which finds no objects: give {checkpoint.DETECTOR}")
    trained = config.architectures or []
    if trained and mapping[type(config)].__name__ not in trained:
        raise ValueError(
            f"{config.name_or_path} holds a {trained[0]}, which finds no objects: give {checkpoint.DETECTOR}"
        )
    return is_open
