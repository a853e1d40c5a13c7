"""image -> text, by a vision-language model of transformers (Qwen2-VL and others)."""

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vec_pipeline import device
from vec_pipeline.device import Device
from vec_pipeline.engines import Answer
from vec_pipeline.engines.endpoint import PictureEndpoint
from vec_pipeline.prompts import PROMPTS, filled, placeholders
from vec_pipeline.record import OF_FILE, Interrupted, Need, UserError, Values
from vec_pipeline.remote import RemoteStage

if TYPE_CHECKING:
    from vec_pipeline.engines.batched_generate import BatchedGenerate
    from vec_pipeline.engines.qwen_slots import QwenSlots

    Model = QwenSlots | BatchedGenerate | PictureEndpoint

SHARE_OF_BF16 = {"nf4": 0.42, "int8": 0.61, "bf16": 1.0, "none": 1.0}  # of the 7B: the vision tower stays in bf16
MOST_AT_ONCE = {"cuda": 256, "mps": 64, "cpu": 32}  # a GPU's by the roofline, a CPU's so that the first rows come soon
ENOUGH_AT_ONCE = {"cuda": 64, "mps": 16, "cpu": 8}  # with fewer, the weights are read for too little
SIZE_GB, ROW_GB, TOKEN_GB = 16.6, 0.06, 57e-6  # of the 7B in bf16: weights, prompt at its peak, each new token
FILE_VALUES = ("folder", "name", "gps", "keywords")  # that a prompt calls so, beside exif.date and exif.camera
MAX_NEW_TOKENS = {"brief": 64, "normal": 256, "full": 512}  # by `detail`
SHARE_OF_FREE = 0.7  # of the memory that is free: the rest is for larger images than usual, and for fragments

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Describe(RemoteStage):
    """Asks one question about each image; greedy decoding, so the same image gets the same answer.

    quantization: none is 16 bits on a GPU and float32 on a CPU; bf16 is 16 bits on a CPU that computes in them, too.
    prompt: `{name}`, `{exif.date}` and other values of a picture are filled in, see docs/models.md.
    engine: slots (Qwen2-VL, Qwen2.5-VL, Qwen3-VL: a finished row is refilled at once), generate (any model, in
    batches), or auto (slots where it can). They give the same answers. Or endpoint: a server has the model, see
    docs/endpoints.md.
    batch_size: images decoded at once, or requests in flight.
    trust_remote_code: run the Python files that a model brings along, of which most have none.
    """

    reads: ClassVar[tuple[str, ...]] = ("image",)
    writes: ClassVar[Mapping[str, str]] = {"text": "text", "text_confidence": "number"}
    intermediates: ClassVar[Mapping[str, str]] = {"is_truncated": "json"}
    speed_options: ClassVar[tuple[str, ...]] = (*RemoteStage.speed_options, "engine", "trust_remote_code")
    call_options: ClassVar[tuple[str, ...]] = ("prompt", "detail", "language", "max_new_tokens")
    local_options: ClassVar[tuple[str, ...]] = (*RemoteStage.local_options, "quantization", "trust_remote_code")
    refills: ClassVar[bool] = True
    required: ClassVar[str] = "config.json"
    files: ClassVar[tuple[str, ...]] = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.py")

    quantization: Literal["none", "bf16", "int8", "nf4"] = "none"
    prompt: str = ""  # empty: the one of the language and of `detail`
    system_prompt: str = ""
    detail: Literal["brief", "normal", "full"] = "normal"
    language: Literal["en", "ru"] = "en"
    max_new_tokens: int | Literal["auto"] = "auto"  # by `detail`
    device: Device = "auto"
    engine: Literal["auto", "slots", "generate", "endpoint"] = "auto"
    batch_size: int | Literal["auto"] = "auto"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for a prompt whose braces hold no names, and for options that do not go together."""
        super().__post_init__()
        names = placeholders(self.prompt)
        of_file = {name: OF_FILE + name for name in names if name in FILE_VALUES}
        object.__setattr__(self, "read", {**of_file, **self.read})
        object.__setattr__(self, "optional", names)  # so that what is filled in decides the result, and nothing else
        object.__setattr__(self, "placeholders", names)
        object.__setattr__(self, "max_new_tokens", self.most_tokens)  # settings hold the number, as they always did

    def check(self, path: Path) -> None:
        from vec_pipeline.engines import checkpoint, qwen_slots

        where = device.resolve(self.device)
        try:
            checkpoint.refuse_other(path, self.required, checkpoint.VISION_LANGUAGE)
            super().check(path)
            checkpoint.check_weights(path, allow_pickle=self.allow_pickle)
            with self.refusing_code():
                kind = checkpoint.check_vision_language(
                    path,
                    self.question(),
                    where,
                    quantization_config(self.quantization, device.dtype(where)),
                    system_prompt=self.system_prompt,
                    trust_remote_code=self.trust_remote_code,
                )
        except ValueError as error:
            raise UserError(f"{self.name}: {error}") from None
        if self.engine == "slots" and (kind not in qwen_slots.FAMILIES or where == "mps"):
            raise self._without_slots(kind)

    def need(self) -> Need:
        if self.is_remote:
            return Need()
        bf16_gb = self.weights_gb()
        shares = SHARE_OF_BF16.items()
        smaller = tuple((f"set quantization: {name}", bf16_gb * share) for name, share in shares if share < 1)
        where = device.resolve(self.device)
        rows = ENOUGH_AT_ONCE[where] if self.batch_size == "auto" else self.batch_size
        of_7b = min(1.0, bf16_gb / SIZE_GB) ** 0.5  # what a token needs grows with the model's width
        rows_gb = rows * (ROW_GB + self.most_tokens * TOKEN_GB) * of_7b / SHARE_OF_FREE
        if where == "cuda":
            return Need(gpu_gb=bf16_gb * SHARE_OF_BF16[self.quantization], rows_gb=rows_gb, smaller=smaller)
        if self.quantization in ("int8", "nf4"):
            raise UserError(
                f"describe.quantization: {self.quantization} needs a GPU with CUDA: set it to none, or device: cuda"
            )
        size = 2 if where == "cpu" and not self._computes_in_bf16(where) else 1  # of 16 bits
        return Need(host_gb=size * bf16_gb, rows_gb=size * rows_gb)

    def identity(self) -> str:
        return self.question()

    @property
    def most_tokens(self) -> int:
        """Tokens of an answer at most."""
        return MAX_NEW_TOKENS[self.detail] if self.max_new_tokens == "auto" else self.max_new_tokens

    def question(self) -> str:
        """What a model is asked that answers any question: families without a chat template have tasks of their own."""
        if self.prompt:
            return self.prompt if self.placeholders else filled(self.prompt, {})
        prompts = PROMPTS[self.language]
        return {"brief": prompts.brief, "normal": prompts.describe, "full": prompts.full}[self.detail]

    def load(self) -> "Model":
        if self.is_remote:
            return PictureEndpoint(self.endpoint, self.model, self.question(), self.most_tokens, self.system_prompt)
        from vec_pipeline.engines.batched_generate import BatchedGenerate
        from vec_pipeline.engines.qwen_slots import QwenSlots, supports

        model, processor = self._load_weights()
        kind = model.config.model_type
        if self.engine == "slots" and not supports(model):
            raise self._without_slots(kind)
        if self.engine != "generate" and supports(model):
            return QwenSlots(model, processor, self.question(), self.most_tokens, self.system_prompt)
        try:
            return BatchedGenerate(model, processor, self._question_for(kind), self.most_tokens, self.system_prompt)
        except ValueError as error:
            raise UserError(f"{self.name}: {self.model}: {error}") from None

    def _question_for(self, kind: str) -> str:
        """What a model of this type is asked."""
        from vec_pipeline.engines.families import own_question

        own = None if self.prompt else own_question(kind, self.detail, self.language)
        return self.question() if own is None else own

    def _asked(self, model: Any) -> Any:
        """The model with this stage's question: another stage may have asked it another one."""
        question = self.question() if self.is_remote else self._question_for(model.kind)
        try:
            model.set_question(question, self.most_tokens)
        except ValueError as error:
            raise UserError(f"{self.name}: {self.model}: {error}") from None
        return model

    def _computes_in_bf16(self, where: str) -> bool:
        """Whether the CPU is asked to compute in 16 bits, and can."""
        return where == "cpu" and self.quantization == "bf16" and device.cpu_has_bfloat16()

    def _dtype(self, where: str) -> Any:
        """The torch.dtype that the model computes in."""
        import torch

        if self._computes_in_bf16(where):
            return torch.bfloat16
        if where == "cpu" and self.quantization == "bf16":
            logger.warning("%s: this CPU does not compute in bfloat16: float32 is used", self.name)
        return device.dtype(where)

    def _without_slots(self, kind: str) -> UserError:
        place = " on mps" if device.resolve(self.device) == "mps" else ""
        return UserError(
            f"describe.engine: slots is for Qwen2-VL, Qwen2.5-VL and Qwen3-VL, on a CPU or with CUDA, and {self.model} "
            f"is {kind}{place}: set auto"
        )

    def _load_weights(self) -> tuple[Any, Any]:
        """The model and its processor."""
        from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor
        from transformers.utils.logging import disable_progress_bar

        from vec_pipeline.engines.qwen_slots import supports

        disable_progress_bar()  # of reading files, in the middle of the worker's own; downloads have theirs
        path, where = self.path(), device.resolve(self.device)
        dtype = self._dtype(where)
        with self.refusing_code():
            processor = AutoProcessor.from_pretrained(path, trust_remote_code=self.trust_remote_code)
            model, report = AutoModelForImageTextToText.from_pretrained(
                path,
                dtype=dtype,
                device_map=where,
                quantization_config=quantization_config(self.quantization, dtype),
                use_safetensors=None if self.allow_pickle else True,
                trust_remote_code=self.trust_remote_code,
                output_loading_info=True,
            )
        if missing := sorted(report["missing_keys"]):  # they would be random numbers
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            raise UserError(
                f"{self.name}: {self.model} has no weights for {missing[0]}{more}: use a copy for the "
                f"{type(model).__name__} of transformers, see docs/models.md"
            )
        if supports(model):  # both engines see the same pixels then, those that the family was made with
            processor.image_processor = AutoImageProcessor.from_pretrained(path, backend="pil")
        model.eval()
        return model, processor

    def auto_batch_size(self, model: Any, reserved_gb: float) -> int:
        """As many images at once as the model has slots for, or as free memory holds, up to where more gain nothing."""
        if self.is_remote:
            return super().auto_batch_size(model, reserved_gb)
        size_bytes = self._asked(model).bytes_per_slot()
        where = device.resolve(self.device)
        return max(int(model.slots), device.rows_that_fit(where, size_bytes, SHARE_OF_FREE, MOST_AT_ONCE, reserved_gb))

    def run(self, model: "Model", rows: list[Values], at_once: int) -> list[Values]:
        asked = {"questions": [filled(self.prompt, row) for row in rows]} if self.placeholders else {}
        try:
            answers = self._asked(model).generate([row["image"] for row in rows], at_once, **asked)
        except Interrupted as error:
            raise Interrupted(str(error), [answer and columns(answer) for answer in error.results]) from None
        return [columns(answer) for answer in answers]


def columns(answer: Answer) -> Values:
    if answer.error:
        return {"error": answer.error}
    return {
        "text": answer.text.strip(),
        "text_confidence": None if answer.confidence is None else round(answer.confidence, 4),
        "is_truncated": not answer.is_complete,
    }


def quantization_config(quantization: str, dtype: Any) -> Any:
    """The bitsandbytes settings of an option, None where weights are not quantised; vision tower and output layer stay.

    dtype: the torch.dtype that products are computed in.
    """
    if quantization in ("none", "bf16"):
        return None
    from transformers import BitsAndBytesConfig

    from vec_pipeline.engines.families import VISION_MODULES

    kept = [*VISION_MODULES, "lm_head"]
    if quantization == "int8":
        logging.getLogger("bitsandbytes.autograd._functions").addFilter(is_no_notice_of_casts)
        warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")  # bitsandbytes before 0.50
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=kept,
    )


def is_no_notice_of_casts(record: logging.LogRecord) -> bool:
    """A filter of bitsandbytes' log, which says at every call of every int8 layer that it casts its inputs."""
    return not str(record.msg).startswith("MatMul8bitLt: inputs will be cast")
