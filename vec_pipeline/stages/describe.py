"""image -> text, by a vision-language model of transformers (Qwen2-VL and others)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vec_pipeline import device, weights
from vec_pipeline.prompts import PROMPTS
from vec_pipeline.record import Need, UserError, Values
from vec_pipeline.weights import ModelStage

if TYPE_CHECKING:
    from vec_pipeline.engines.batched_generate import BatchedGenerate
    from vec_pipeline.engines.qwen_slots import QwenSlots

SHARE_OF_BF16 = {"nf4": 0.42, "int8": 0.61, "none": 1.0}  # of the 7B: the vision tower stays in bf16
MOST_AT_ONCE = {"cuda": 256, "cpu": 32}  # a GPU's by the roofline, a CPU's so that the first rows come soon
ENOUGH_AT_ONCE = {"cuda": 64, "cpu": 8}  # with fewer, the weights are read for too little
SIZE_GB, ROW_GB, TOKEN_GB = 16.6, 0.06, 57e-6  # of the 7B in bf16: weights, prompt at its peak, each new token
SHARE_OF_FREE = 0.7  # of the memory that is free: the rest is for larger images than usual, and for fragments


@dataclass(frozen=True, kw_only=True)
class Describe(ModelStage):
    """Asks one question about each image; greedy decoding, so the same image gets the same answer.

    engine: slots (Qwen2-VL and Qwen2.5-VL: a finished row is refilled at once), generate (any model, in batches), or
    auto (slots where it can). They give the same answers.
    batch_size: images decoded at once.
    trust_remote_code: run the Python files that a model brings along, of which most have none.
    """

    reads: ClassVar[tuple[str, ...]] = ("image",)
    writes: ClassVar[Mapping[str, str]] = {"text": "text", "text_confidence": "number"}
    intermediates: ClassVar[Mapping[str, str]] = {"is_truncated": "json"}
    speed_options: ClassVar[tuple[str, ...]] = (*ModelStage.speed_options, "engine", "trust_remote_code")
    refills: ClassVar[bool] = True
    required: ClassVar[str] = "config.json"
    files: ClassVar[tuple[str, ...]] = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.py")

    quantization: Literal["none", "int8", "nf4"] = "none"
    prompt: str = ""  # empty: the one of the language
    language: Literal["en", "ru"] = "en"
    max_new_tokens: int = 256
    device: Literal["auto", "cuda", "cpu"] = "auto"
    engine: Literal["auto", "slots", "generate"] = "auto"
    batch_size: int | Literal["auto"] = "auto"
    trust_remote_code: bool = False

    def need(self) -> Need:
        bf16_gb = weights.size_gb(self.model, revision=self.revision)
        shares = SHARE_OF_BF16.items()
        smaller = tuple((f"set quantization: {name}", bf16_gb * share) for name, share in shares if share < 1)
        where = device.resolve(self.device)
        rows = ENOUGH_AT_ONCE[where] if self.batch_size == "auto" else self.batch_size
        of_7b = min(1.0, bf16_gb / SIZE_GB) ** 0.5  # what a token needs grows with the model's width
        rows_gb = rows * (ROW_GB + self.max_new_tokens * TOKEN_GB) * of_7b / SHARE_OF_FREE
        if where == "cuda":
            return Need(gpu_gb=bf16_gb * SHARE_OF_BF16[self.quantization], rows_gb=rows_gb, smaller=smaller)
        if self.quantization != "none":
            raise UserError(f"describe.quantization: {self.quantization} needs a GPU: set it to none, or device: cuda")
        return Need(host_gb=2 * bf16_gb, rows_gb=2 * rows_gb)  # float32 on a CPU

    def identity(self) -> str:
        return self.question()

    def question(self) -> str:
        return self.prompt or PROMPTS[self.language].describe

    def load(self) -> "QwenSlots | BatchedGenerate":
        from vec_pipeline.engines.batched_generate import BatchedGenerate
        from vec_pipeline.engines.qwen_slots import QwenSlots, supports

        model, processor = self._load_weights()
        if self.engine == "slots" and not supports(model):
            kind = model.config.model_type
            raise UserError(
                f"describe.engine: slots is for Qwen2-VL and Qwen2.5-VL, and {self.model} is {kind}: set auto"
            )
        uses_slots = self.engine != "generate" and supports(model)
        return (QwenSlots if uses_slots else BatchedGenerate)(model, processor, self.question(), self.max_new_tokens)

    def _load_weights(self) -> tuple[Any, Any]:
        """The model, set to greedy decoding, and its processor."""
        import torch
        from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor
        from transformers.utils.logging import disable_progress_bar

        from vec_pipeline.engines.qwen_slots import supports

        disable_progress_bar()  # of reading files, in the middle of the worker's own; downloads have theirs
        path, where = self.path(), device.resolve(self.device)
        with self.refusing_code():
            processor = AutoProcessor.from_pretrained(path, trust_remote_code=self.trust_remote_code)
            model = AutoModelForImageTextToText.from_pretrained(
                path,
                dtype=torch.bfloat16 if where == "cuda" else torch.float32,
                device_map=where,
                quantization_config=quantization_config(self.quantization),
                use_safetensors=None if self.allow_pickle else True,
                trust_remote_code=self.trust_remote_code,
            )
        if supports(model):  # both engines see the same pixels then, those that the family was made with
            processor.image_processor = AutoImageProcessor.from_pretrained(path, backend="pil")
        model.eval()
        settings = model.generation_config  # the stock one may sample, at a tiny temperature
        settings.do_sample, settings.repetition_penalty = False, 1.0
        settings.temperature = settings.top_p = settings.top_k = None
        return model, processor

    def auto_batch_size(self, model: "QwenSlots | BatchedGenerate", reserved_gb: float) -> int:
        """As many images at once as the model has slots for, or as free memory holds, up to where more gain nothing."""
        size_bytes = model.bytes_per_slot()
        where = device.resolve(self.device)
        return max(model.slots, device.rows_that_fit(where, size_bytes, SHARE_OF_FREE, MOST_AT_ONCE, reserved_gb))

    def run(self, model: "QwenSlots | BatchedGenerate", rows: list[Values], at_once: int) -> list[Values]:
        answers = model.generate([row["image"] for row in rows], at_once)
        return [
            {
                "text": answer.text.strip(),
                "text_confidence": None if answer.confidence is None else round(answer.confidence, 4),
                "is_truncated": not answer.is_complete,
            }
            for answer in answers
        ]


def quantization_config(quantization: str) -> Any:
    """The bitsandbytes settings of an option, None for full precision; vision tower and output layer stay."""
    if quantization == "none":
        return None
    import torch
    from transformers import BitsAndBytesConfig

    kept = ["model.visual", "lm_head"]  # "visual" alone no longer matches the module's name
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=kept,
    )
