"""Tiny random models of the families of vision-language models: real configurations and processors, no weights of any.

Their tokenizer has the 256 bytes and the special tokens of the family. The templates are in the families' formats.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
)

BYTES = 256
VOCABULARY = 512
ENDS = list(range(0, BYTES, 11))  # tokens that end an answer: enough of them for answers of several lengths
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")

TEXT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": VOCABULARY, "max_position_embeddings": 4096,
}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", *CHATML_TOKENS)
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def tokenizer(*special: str, frame: str = "", **names: str) -> Any:
    """A tokenizer of bytes. special: its further tokens. frame: what it puts around a text, as `[CLS] $A [SEP]`.

    names: of special tokens, for attributes such as `image_token`.
    """
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", **names}
    tokens = list(dict.fromkeys([*names.values(), *special]))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    if frame:
        used = [token for token in frame.split() if token != "$A"]
        ids = [(token, backend.token_to_id(token)) for token in used]
        backend.post_processor = processors.TemplateProcessing(single=frame, special_tokens=ids)
    common = {name: names.pop(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    bert = {name: names.pop(name) for name in ("cls_token", "sep_token") if name in names}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **common, **bert, extra_special_tokens=names)


def model_of(model_type: str, gain: float = 1.6, **options: Any) -> Any:
    """A random model. Its weights are large enough for every picture to change the answer."""
    config = AutoConfig.for_model(model_type, **options)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in sorted(model.named_parameters()):
        if parameter.ndim > 1:
            deviation = gain / parameter[0].numel() ** 0.5
            if "position" in name or "word_embeddings" in name:
                deviation = 0.3
            elif "embed" in name or "shared" in name:  # which some families multiply by 8 or more
                deviation = 0.03
            parameter.data.normal_(0, deviation, generator=generator)
        elif name.endswith("gate"):
            parameter.data.fill_(1.0)
    for module in model.modules():
        if getattr(module, "generation_config", None) is not None:
            module.generation_config.eos_token_id = ENDS
            module.generation_config.pad_token_id = 0
    return model.eval()


def save(folder: Path, model: Any, processor: Any) -> Path:
    """A model as a folder that `from_pretrained` loads."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def ids(made: Any, **tokens: str) -> dict[str, int]:
    """Options of a configuration that name tokens: their ids."""
    return {name: made.convert_tokens_to_ids(token) for name, token in tokens.items()}


def vision(**more: Any) -> dict[str, Any]:
    return VISION | {"image_size": 28, "patch_size": 14} | more


def clip(**more: Any) -> dict[str, Any]:
    return vision(model_type="clip_vision_model", projection_dim=32, **more)


def siglip(**more: Any) -> dict[str, Any]:
    return vision(model_type="siglip_vision_model", **more)


def llama(model_type: str = "llama", **more: Any) -> dict[str, Any]:
    return TEXT | {"model_type": model_type, "pad_token_id": 0} | more


def qwen(model_type: str, prefix: str, vision_options: dict[str, Any], patch_px: int, **text: Any) -> tuple[Any, Any]:
    """Any of the Qwen-VL line."""
    import transformers

    made = tokenizer(*QWEN_TOKENS)
    size = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
    images = transformers.Qwen2VLImageProcessor(size=size, patch_size=patch_px, merge_size=2)
    videos = getattr(transformers, "Qwen3VLVideoProcessor" if patch_px == 16 else "Qwen2VLVideoProcessor")()
    processor = getattr(transformers, f"{prefix}Processor")(
        images, made, videos, chat_template=CHATML.replace("IMAGE", QWEN_IMAGE)
    )
    tokens = ids(
        made,
        image_token_id="<|image_pad|>",
        video_token_id="<|video_pad|>",
        vision_start_token_id="<|vision_start|>",
        vision_end_token_id="<|vision_end|>",
    )
    text = TEXT | {"rope_parameters": MROPE} | text
    return model_of(model_type, text_config=text, vision_config=vision_options, **tokens), processor


def qwen2_vl() -> tuple[Any, Any]:
    options = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}
    return qwen("qwen2_vl", "Qwen2VL", options, 14)


def qwen2_5_vl() -> tuple[Any, Any]:
    options = {
        "depth": 2, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48, "num_heads": 2,
        "window_size": 56, "fullatt_block_indexes": [1],
    }  # fmt: skip
    return qwen("qwen2_5_vl", "Qwen2_5_VL", options, 14)


QWEN3_VISION = {
    "depth": 2, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48, "num_heads": 2,
    "num_position_embeddings": 64,
}  # fmt: skip


def qwen3_vl() -> tuple[Any, Any]:
    return qwen("qwen3_vl", "Qwen3VL", QWEN3_VISION | {"deepstack_visual_indexes": [0]}, 16)


def qwen3_5() -> tuple[Any, Any]:
    linear = {
        "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    }  # fmt: skip
    layers = {"layer_types": ["linear_attention", "full_attention"], "partial_rotary_factor": 1.0}
    return qwen("qwen3_5", "Qwen3VL", QWEN3_VISION, 16, **linear, **layers)


def idefics3(model_type: str = "idefics3") -> tuple[Any, Any]:
    from transformers import Idefics3ImageProcessor, Idefics3Processor

    rows = [f"<row_{row + 1}_col_{column + 1}>" for row in range(6) for column in range(6)]
    special = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *rows, *CHATML_TOKENS)
    made = tokenizer(*special)
    images = Idefics3ImageProcessor(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    processor = Idefics3Processor(images, made, image_seq_len=4, chat_template=CHATML.replace("IMAGE", "<image>"))
    tokens = ids(made, image_token_id="<image>")
    return model_of(model_type, text_config=llama(), vision_config=vision(patch_size=7), **tokens), processor


def smolvlm() -> tuple[Any, Any]:
    from transformers import SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor

    model, other = idefics3("smolvlm")
    images = SmolVLMImageProcessor(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    videos = SmolVLMVideoProcessor(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    template = other.chat_template
    return model, SmolVLMProcessor(images, other.tokenizer, videos, image_seq_len=4, chat_template=template)


def llava() -> tuple[Any, Any]:
    from transformers import LlavaProcessor

    made = tokenizer("<image>", *CHATML_TOKENS, frame="<s> $A")
    images = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = LlavaProcessor(
        images, made, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=CHATML.replace("IMAGE", "<image>"),
    )  # fmt: skip
    tokens = ids(made, image_token_index="<image>")
    return model_of("llava", text_config=llama(), vision_config=clip(), **tokens), processor


PINPOINTS = [[28, 56], [56, 28], [56, 56]]


def llava_next() -> tuple[Any, Any]:
    from transformers import LlavaNextImageProcessor, LlavaNextProcessor

    made = tokenizer("<image>", *CHATML_TOKENS, frame="<s> $A")
    images = LlavaNextImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=PINPOINTS
    )
    processor = LlavaNextProcessor(
        images, made, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=CHATML.replace("IMAGE", "<image>"),
    )  # fmt: skip
    tokens = ids(made, image_token_index="<image>")
    options = {"text_config": llama(), "vision_config": clip(), "image_grid_pinpoints": PINPOINTS}
    return model_of("llava_next", **options, **tokens), processor


def llava_onevision() -> tuple[Any, Any]:
    from transformers import LlavaOnevisionImageProcessor, LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor

    made = tokenizer("<image>", "<video>", *CHATML_TOKENS)
    images = LlavaOnevisionImageProcessor(size={"height": 28, "width": 28}, image_grid_pinpoints=PINPOINTS)
    processor = LlavaOnevisionProcessor(
        images, made, LlavaOnevisionVideoProcessor(size={"height": 28, "width": 28}), num_image_tokens=4,
        vision_feature_select_strategy="full", chat_template=CHATML.replace("IMAGE", "<image>"),
    )  # fmt: skip
    tokens = ids(made, image_token_index="<image>", video_token_index="<video>")
    options = {"text_config": llama("qwen2"), "vision_config": siglip(), "image_grid_pinpoints": PINPOINTS}
    return model_of("llava_onevision", **options, **tokens), processor


def internvl() -> tuple[Any, Any]:
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

    names = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    made = tokenizer(*CHATML_TOKENS, **names)
    images = GotOcr2ImageProcessor(size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=4)
    videos = InternVLVideoProcessor(size={"height": 28, "width": 28})
    template = CHATML.replace("IMAGE", "<IMG_CONTEXT>\\n")
    processor = InternVLProcessor(images, made, videos, image_seq_length=4, chat_template=template)
    options = {"text_config": llama("qwen2"), "vision_config": vision(image_size=[28, 28], patch_size=[7, 7])}
    tokens = ids(made, image_token_id="<IMG_CONTEXT>")
    return model_of("internvl", **options, **tokens, image_seq_length=4), processor


def aya_vision() -> tuple[Any, Any]:
    from transformers import AyaVisionProcessor, GotOcr2ImageProcessor

    tiles = ["TILE_GLOBAL", *(f"TILE_{number}" for number in range(1, 5))]
    special = ("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", *tiles)
    made = tokenizer("<image>", *special, *CHATML_TOKENS, frame="<s> $A")
    images = GotOcr2ImageProcessor(size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=4)
    template = "{{ bos_token }}" + CHATML.replace("IMAGE", "<image>")
    processor = AyaVisionProcessor(images, made, patch_size=7, img_size=28, downsample_factor=2, chat_template=template)
    tokens = ids(made, image_token_index="<|IMG_PATCH|>")
    options = {"text_config": llama("cohere2"), "vision_config": siglip(patch_size=7), "adapter_layer_norm_eps": 1e-5}
    return model_of("aya_vision", **options, **tokens), processor


MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "[SYSTEM_PROMPT]{{ message['content'] }}[/SYSTEM_PROMPT]{% else %}[INST]{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}[IMG]{% else %}{{ part['text'] }}{% endif %}{% endfor %}[/INST]{% endif %}"
    "{% endfor %}"
)


def mistral3(model_type: str = "mistral3") -> tuple[Any, Any]:
    from transformers import PixtralImageProcessor, PixtralProcessor

    special = ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]", "[IMG_BREAK]", "[IMG_END]")
    made = tokenizer(*special, frame="<s> $A")
    merge = 2 if model_type == "mistral3" else 1
    images = PixtralImageProcessor(size={"longest_edge": 56}, patch_size={"height": 7 * merge, "width": 7 * merge})
    processor = PixtralProcessor(images, made, patch_size=7, spatial_merge_size=merge, chat_template=MISTRAL)
    tower = {**VISION, "model_type": "pixtral", "image_size": 56, "patch_size": 7}
    tokens = ids(made, image_token_index="[IMG]")
    options: dict[str, Any] = {"vision_feature_layer": -1}
    options |= {"spatial_merge_size": 2} if merge == 2 else {"vision_feature_select_strategy": "full"}
    return model_of(model_type, text_config=llama("mistral"), vision_config=tower, **options, **tokens), processor


def pixtral() -> tuple[Any, Any]:
    """Pixtral 12B: LLaVA around Pixtral's vision tower."""
    return mistral3("llava")


GLM = (
    "[gMASK]<sop>{% for message in messages %}<|{{ message['role'] }}|>\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|begin_of_image|><|image|><|end_of_image|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def glm4v() -> tuple[Any, Any]:
    from transformers import Glm4vImageProcessor, Glm4vProcessor, Glm4vVideoProcessor

    names = [f"<|{side}_of_{kind}|>" for kind in ("image", "video") for side in ("begin", "end")]
    made = tokenizer("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>", "<|image|>", "<|video|>", *names)
    size = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
    images = Glm4vImageProcessor(size=size, patch_size=14, merge_size=2)
    processor = Glm4vProcessor(images, made, Glm4vVideoProcessor(), chat_template=GLM)
    tower = {
        "depth": 2, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48, "num_heads": 2,
        "image_size": 56, "patch_size": 14,
    }  # fmt: skip
    tokens = ids(
        made, image_token_id="<|image|>", video_token_id="<|video|>", image_start_token_id="<|begin_of_image|>",
        image_end_token_id="<|end_of_image|>", video_start_token_id="<|begin_of_video|>",
        video_end_token_id="<|end_of_video|>",
    )  # fmt: skip
    text = TEXT | {"rope_parameters": MROPE | {"mrope_section": [2, 3, 3], "partial_rotary_factor": 1.0}}
    return model_of("glm4v", text_config=text, vision_config=tower, **tokens), processor


GEMMA3 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('no such role') }}{% endif %}<start_of_turn>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<start_of_image>{% else %}"
    "{{ part['text'] | trim }}{% endif %}{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def gemma3() -> tuple[Any, Any]:
    from transformers import Gemma3ImageProcessor, Gemma3Processor

    names = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    made = tokenizer("<start_of_turn>", "<end_of_turn>", frame="<s> $A", **names)
    images = Gemma3ImageProcessor(size={"height": 28, "width": 28})
    processor = Gemma3Processor(images, made, chat_template=GEMMA3, image_seq_length=4)
    tokens = ids(made, boi_token_index=names["boi_token"], eoi_token_index=names["eoi_token"])
    tokens |= ids(made, image_token_index=names["image_token"])
    text = TEXT | {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
    text |= {"query_pre_attn_scalar": 4}
    options = {"vision_config": siglip(patch_size=7), "mm_tokens_per_image": 4}
    return model_of("gemma3", text_config=text, **options, **tokens), processor


GEMMA4 = (
    "{{ bos_token }}{% for message in messages %}<|turn>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "\n\n<|image|>\n\n{% elif part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}{% endif %}"
    "<turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% if not enable_thinking | default(false) %}"
    "<|channel>thought\n<channel|>{% endif %}{% endif %}"
)


def gemma4() -> tuple[Any, Any]:
    from transformers import Gemma4AudioFeatureExtractor, Gemma4ImageProcessor, Gemma4Processor, Gemma4VideoProcessor

    names = {
        "image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>", "audio_token": "<|audio|>",
        "boa_token": "<|audio>", "eoa_token": "<audio|>",
    }  # fmt: skip
    made = tokenizer("<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|video|>", frame="<s> $A", **names)
    images = Gemma4ImageProcessor(patch_size=4, max_soft_tokens=70, pooling_kernel_size=3)
    videos = Gemma4VideoProcessor()
    processor = Gemma4Processor(Gemma4AudioFeatureExtractor(), images, made, videos, chat_template=GEMMA4)
    tokens = ids(
        made, boi_token_id="<|image>", eoi_token_id="<image|>", image_token_id="<|image|>", video_token_id="<|video|>",
        boa_token_id="<|audio>", eoa_token_index="<audio|>", audio_token_id="<|audio|>",
    )  # fmt: skip
    text = TEXT | {
        "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16, "global_head_dim": 16,
        "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 16, "num_kv_shared_layers": 0,
    }  # fmt: skip
    tower = {**VISION, "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "position_embedding_size": 256}
    return model_of("gemma4", text_config=text, vision_config=tower, audio_config=None, **tokens), processor


MLLAMA = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|image|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def mllama() -> tuple[Any, Any]:
    from transformers import MllamaImageProcessor, MllamaProcessor

    special = ("<|image|>", "<|python_tag|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    made = tokenizer(*special, frame="<s> $A")
    images = MllamaImageProcessor(size={"height": 28, "width": 28}, max_image_tiles=4)
    tower = {
        **VISION, "attention_heads": 2, "num_global_layers": 1, "image_size": 28, "patch_size": 7, "max_num_tiles": 4,
        "intermediate_layers_indices": [0], "vision_output_dim": 64,
    }  # fmt: skip
    text = TEXT | {"num_hidden_layers": 3, "cross_attention_layers": [1], "rope_parameters": {"rope_type": "default"}}
    text["rope_parameters"] |= {"rope_theta": 10000.0}
    text |= ids(made, bos_token_id="<s>", eos_token_id="</s>", pad_token_id="<pad>")
    tokens = ids(made, image_token_index="<|image|>")
    model = model_of("mllama", text_config=text, vision_config=tower, **tokens)
    return model, MllamaProcessor(images, made, chat_template=MLLAMA)


def lfm2_vl() -> tuple[Any, Any]:
    from transformers import Lfm2VlImageProcessor, Lfm2VlProcessor

    names = {
        "image_token": "<image>", "image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>",
        "image_thumbnail_token": "<|img_thumbnail|>",
    }  # fmt: skip
    rows = [f"<|img_row_{row + 1}_col_{column + 1}|>" for row in range(4) for column in range(4)]
    made = tokenizer(*rows, *CHATML_TOKENS, frame="<s> $A", **names)
    images = Lfm2VlImageProcessor(
        tile_size=32, encoder_patch_size=8, downsample_factor=2, min_tiles=2, max_tiles=4, min_image_tokens=4,
        max_image_tokens=9, max_num_patches=64,
    )  # fmt: skip
    template = "{{ bos_token }}" + CHATML.replace("IMAGE", "<image>")
    processor = Lfm2VlProcessor(images, made, chat_template=template)
    tower = {**VISION, "model_type": "siglip2_vision_model", "patch_size": 8, "num_patches": 16}
    text = TEXT | {"model_type": "lfm2", "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}
    tokens = ids(made, image_token_id="<image>")
    return model_of("lfm2_vl", 1.0, text_config=text, vision_config=tower, **tokens), processor


def paligemma() -> tuple[Any, Any]:
    from transformers import PaliGemmaProcessor

    made = tokenizer("<image>", image_token="<image>")
    images = SiglipImageProcessor(size={"height": 28, "width": 28})
    images.image_seq_length = 4
    processor = PaliGemmaProcessor(images, made)
    tokens = ids(made, image_token_index="<image>")
    size = len(made)  # with the 1,152 tokens of places that the processor adds
    text = TEXT | {"model_type": "gemma", "vocab_size": size}
    tower = siglip(projection_dim=64, vision_use_head=False)
    return model_of("paligemma", text_config=text, vision_config=tower, projection_dim=64, **tokens), processor


def bert() -> Any:
    return tokenizer(cls_token="[CLS]", sep_token="[SEP]", frame="[CLS] $A [SEP]")


def blip() -> tuple[Any, Any]:
    from transformers import BlipImageProcessor, BlipProcessor

    made = bert()
    text = {**TEXT, "encoder_hidden_size": 32, "bos_token_id": made.bos_token_id, "sep_token_id": ENDS[3]}
    text |= {"pad_token_id": made.pad_token_id, "eos_token_id": made.eos_token_id, "max_position_embeddings": 64}
    images = BlipImageProcessor(size={"height": 28, "width": 28})
    return model_of("blip", text_config=text, vision_config=vision()), BlipProcessor(images, made)


def blip2(text: Mapping[str, Any] | None = None) -> tuple[Any, Any]:
    from transformers import Blip2Processor, BlipImageProcessor

    made = tokenizer("<image>", frame="<s> $A")
    images = BlipImageProcessor(size={"height": 28, "width": 28})
    qformer = {**VISION, "encoder_hidden_size": 32, "vocab_size": VOCABULARY}
    opt = {
        "model_type": "opt", "hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": VOCABULARY, "max_position_embeddings": 256,
        **ids(made, bos_token_id="<s>", pad_token_id="<pad>", eos_token_id="</s>"),
    }  # fmt: skip
    options = {"vision_config": vision(), "qformer_config": qformer, "text_config": text or opt, "num_query_tokens": 4}
    tokens = ids(made, image_token_index="<image>")
    model = model_of("blip-2", **options, **tokens)
    model.generation_config.eos_token_id = made.eos_token_id  # that of the language model counts
    return model, Blip2Processor(images, made, num_query_tokens=4)


def blip2_t5() -> tuple[Any, Any]:
    """BLIP-2 around Flan-T5, an encoder-decoder."""
    t5 = {
        "model_type": "t5", "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4, "pad_token_id": 0,
        "vocab_size": VOCABULARY, "decoder_start_token_id": 0, "feed_forward_proj": "gated-gelu",
    }  # fmt: skip
    return blip2(t5)


def git() -> tuple[Any, Any]:
    from transformers import GitProcessor

    made = bert()
    text = {**TEXT, "max_position_embeddings": 256, **ids(made, bos_token_id="[CLS]", pad_token_id="<pad>")}
    images = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return model_of("git", vision_config=vision(), eos_token_id=ENDS[3], **text), GitProcessor(images, made)


def florence2() -> tuple[Any, Any]:
    from transformers import Florence2Processor

    places = [f"<loc_{number}>" for number in range(20)]
    made = tokenizer(*places, frame="<s> $A </s>", image_token="<image>")
    images = CLIPImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False)
    images.image_seq_length = 5
    rules = {"pure_text": {}, "description_with_bboxes": {"PATTERN": r"([a-zA-Z0-9 ]+)<loc_(\\d+)>"}}
    processor = Florence2Processor(images, made, post_processor_config=rules)
    tower = {
        "depths": [1, 1, 1, 1], "embed_dim": [16, 16, 32, 32], "num_heads": [2, 2, 2, 2], "num_groups": [2, 2, 2, 2],
        "window_size": 4, "projection_dim": 64, "max_position_embeddings": 8, "max_temporal_embeddings": 4,
    }  # fmt: skip
    text = {
        "model_type": "bart", "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "vocab_size": VOCABULARY,
        "max_position_embeddings": 128, "forced_eos_token_id": None,
        **ids(made, bos_token_id="<s>", pad_token_id="<pad>", eos_token_id="</s>", decoder_start_token_id="</s>"),
    }  # fmt: skip
    tokens = ids(made, image_token_id="<image>")
    model = model_of("florence2", 3.0, text_config=text, vision_config=tower, **tokens)
    model.generation_config.decoder_start_token_id = made.eos_token_id
    model.generation_config.num_beams = 3  # as in the published settings: greedy decoding must undo it
    return model, processor


def kosmos2() -> tuple[Any, Any]:
    from transformers import Kosmos2Processor

    made = tokenizer(*(f"<spare_{number}>" for number in range(70)))
    images = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = Kosmos2Processor(images, made, num_patch_index_tokens=16)
    text = {
        "embed_dim": 64, "layers": 2, "attention_heads": 4, "ffn_dim": 96, "vocab_size": len(made),
        "max_position_embeddings": 512, **ids(made, pad_token_id="<pad>", bos_token_id="<s>", eos_token_id="</s>"),
    }  # fmt: skip
    return model_of("kosmos-2", 4.0, text_config=text, vision_config=vision(), latent_query_num=64), processor


CHAT: dict[str, Callable[[], tuple[Any, Any]]] = {
    each.__name__: each
    for each in (
        *(qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_5, idefics3, smolvlm, llava, llava_next, llava_onevision, internvl),
        *(aya_vision, mistral3, pixtral, glm4v, gemma3, gemma4, mllama, lfm2_vl),
    )
}
WITHOUT_TEMPLATE = {each.__name__: each for each in (paligemma, blip, blip2, blip2_t5, git, florence2, kosmos2)}
