"""image -> text, by a vision-language model of transformers (Qwen2-VL and others)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from vec_pipeline import device, weights
from vec_pipeline.prompts import PROMPTS
from vec_pipeline.record import Need, UserError, Values
from vec_pipeline.weights import ModelStage

SHARE_OF_BF16 = {"nf4": 0.42, "int8": 0.61, "none": 1.0}  # of the 7B: the vision tower stays in bf16


class Describer(NamedTuple):
    """A vision-language model with the processor that prepares its input."""

    model: Any
    processor: Any


@dataclass(frozen=True, kw_only=True)
class Describe(ModelStage):
    """Asks one question about each image; greedy decoding, so the same image gets the same answer."""

    reads: ClassVar[tuple[str, ...]] = ("image",)
    writes: ClassVar[tuple[str, ...]] = ("text",)
    required: ClassVar[str] = "config.json"
    files: ClassVar[tuple[str, ...]] = ("*.json", "*.safetensors", "*.txt", "*.jinja")

    quantization: Literal["none", "int8", "nf4"] = "none"
    prompt: str = ""  # empty: the one of the language
    language: Literal["en", "ru"] = "en"
    max_new_tokens: int = 256
    device: Literal["auto", "cuda", "cpu"] = "auto"
    batch_size: int = 16

    def need(self) -> Need:
        bf16_gb = weights.size_gb(self.model)
        shares = SHARE_OF_BF16.items()
        smaller = tuple((f"set quantization: {name}", bf16_gb * share) for name, share in shares if share < 1)
        if device.resolve(self.device) == "cuda":
            return Need(gpu_gb=bf16_gb * SHARE_OF_BF16[self.quantization], smaller=smaller)
        if self.quantization != "none":
            raise UserError(f"describe.quantization: {self.quantization} needs a GPU: set it to none, or device: cuda")
        return Need(host_gb=2 * bf16_gb)  # float32 on a CPU

    def identity(self) -> str:
        return self.question()

    def question(self) -> str:
        return self.prompt or PROMPTS[self.language].describe

    def load(self) -> Describer:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # of reading files, in the middle of the worker's own; downloads have theirs
        where = device.resolve(self.device)
        path = self.path()
        processor = AutoProcessor.from_pretrained(path)
        processor.tokenizer.padding_side = "left"  # right padding would put pads between prompt and answer
        model = AutoModelForImageTextToText.from_pretrained(
            path,
            dtype=torch.bfloat16 if where == "cuda" else torch.float32,
            device_map=where,
            quantization_config=quantization_config(self.quantization),
        )
        model.eval()
        settings = model.generation_config  # the stock one may sample, at a tiny temperature
        settings.do_sample, settings.repetition_penalty = False, 1.0
        settings.temperature = settings.top_p = settings.top_k = None
        return Describer(model, processor)

    def run(self, model: Describer, rows: list[Values]) -> list[Values]:
        import torch

        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": self.question()}]}]
        prompt = model.processor.apply_chat_template(messages, add_generation_prompt=True)
        images = [row["image"] for row in rows]
        # All that the processor returns goes in: without mm_token_type_ids positions are silently those of plain text.
        inputs = model.processor(text=[prompt] * len(rows), images=images, return_tensors="pt", padding=True)
        inputs = inputs.to(model.model.device, dtype=model.model.dtype)  # the dtype of the pixels; tokens stay whole
        with torch.no_grad():
            tokens = model.model.generate(**inputs, max_new_tokens=self.max_new_tokens)
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        texts = model.processor.batch_decode(answers, skip_special_tokens=True)
        return [{"text": text.strip()} for text in texts]


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
