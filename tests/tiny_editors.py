"""Tiny random editing pipelines of diffusers: real classes, configurations and layouts, no weights of any."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel

from tests import tiny_families
from tests.tiny_translators import LETTERS

WIDTH = 32  # of the text encoders
GAIN = 1.6  # of the random weights
LEVELS = {  # a U-Net of two levels, of which the lower one reads the prompt
    "sample_size": 16,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": WIDTH,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
FLOW = {"base_shift": 0.5, "max_shift": 1.15, "use_dynamic_shifting": True}


def instruct_pix2pix() -> Any:
    """As timbrooks/instruct-pix2pix."""
    from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel

    return StableDiffusionInstructPix2PixPipeline(
        vae=autoencoder(), text_encoder=CLIPTextModel(clip_config()), tokenizer=clip_tokenizer(),
        unet=UNet2DConditionModel(in_channels=8, **LEVELS), scheduler=EulerAncestralDiscreteScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def instruct_pix2pix_xl() -> Any:
    """As diffusers/sdxl-instructpix2pix-768."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLInstructPix2PixPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        in_channels=8, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=WIDTH + 6 * 4, **LEVELS | {"cross_attention_dim": 2 * WIDTH},
    )  # fmt: skip
    return StableDiffusionXLInstructPix2PixPipeline(
        vae=autoencoder(), text_encoder=CLIPTextModel(clip_config()), tokenizer=clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config()), tokenizer_2=clip_tokenizer(), unet=unet,
        scheduler=EulerDiscreteScheduler(),
    )  # fmt: skip


def stable_diffusion() -> Any:
    """A pipeline of texts to pictures, whose parts img2img uses too; with a safety checker."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    checker = CLIPConfig(vision_config=shape | {"image_size": 28, "patch_size": 14}, text_config=shape)
    return StableDiffusionPipeline(
        vae=autoencoder(), text_encoder=CLIPTextModel(clip_config()), tokenizer=clip_tokenizer(),
        unet=UNet2DConditionModel(in_channels=4, **LEVELS), scheduler=PNDMScheduler(skip_prk_steps=True),
        safety_checker=StableDiffusionSafetyChecker(checker),
        feature_extractor=CLIPImageProcessor(size=28, crop_size=28),
    )  # fmt: skip


def flux_kontext() -> Any:
    """As black-forest-labs/FLUX.1-Kontext-dev."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    return FluxKontextPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(**FLOW), vae=autoencoder(shift_factor=0.1),
        text_encoder=CLIPTextModel(clip_config()), tokenizer=clip_tokenizer(),
        text_encoder_2=T5EncoderModel(t5_config()), tokenizer_2=t5_tokenizer(),
    )  # fmt: skip


def flux2_klein() -> Any:
    """As black-forest-labs/FLUX.2-klein-4B."""
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )
    from transformers import Qwen3Config, Qwen3ForCausalLM

    layers = 28  # of which the pipeline takes the 9th, the 18th and the 27th
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    text = Qwen3Config(num_hidden_layers=layers, head_dim=8, vocab_size=tiny_families.VOCABULARY, **shape)
    transformer = Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=3 * 16, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=32,
        block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=2, latent_channels=4,
    )  # fmt: skip
    tokenizer = tiny_families.tokenizer(*tiny_families.CHATML_TOKENS)
    tokenizer.chat_template = tiny_families.CHATML
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**FLOW), vae=vae, text_encoder=Qwen3ForCausalLM(text),
        tokenizer=tokenizer, transformer=transformer, is_distilled=True,
    )  # fmt: skip


def qwen_edit(name: str) -> Any:
    import diffusers

    text_encoder, processor = tiny_families.qwen2_5_vl()
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=64, axes_dims_rope=(4, 6, 6), guidance_embeds=False,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    return getattr(diffusers, name)(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**FLOW), vae=vae, text_encoder=text_encoder,
        tokenizer=processor.tokenizer, processor=processor, transformer=transformer,
    )  # fmt: skip


def qwen_image_edit() -> Any:
    return qwen_edit("QwenImageEditPipeline")


def qwen_image_edit_plus() -> Any:
    return qwen_edit("QwenImageEditPlusPipeline")


FAMILIES: dict[str, Callable[[], Any]] = {
    each.__name__: each
    for each in (
        *(instruct_pix2pix, instruct_pix2pix_xl, stable_diffusion),
        *(flux_kontext, flux2_klein, qwen_image_edit, qwen_image_edit_plus),
    )
}


def write(folder: Path, family: str = "instruct_pix2pix") -> Path:
    """A pipeline of a few hundred kB as a folder that `from_pretrained` loads; the same at each call."""
    torch.manual_seed(0)
    pipeline = FAMILIES[family]()
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            strengthen(part)
    pipeline.save_pretrained(folder)
    return folder


def strengthen(model: torch.nn.Module) -> None:
    """Make the weights large enough for every picture and prompt to change what comes out."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0, GAIN / parameter[0].numel() ** 0.5)


def autoencoder(**options: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
        block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=2, sample_size=32, **options,
    )  # fmt: skip


def clip_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=2 * len(LETTERS) + 2, hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        projection_dim=WIDTH,
    )  # fmt: skip


def clip_tokenizer() -> CLIPTokenizer:
    """Of letters."""
    letters = [letter.lower() for letter in LETTERS]
    tokens = dict.fromkeys(["<|startoftext|>", "<|endoftext|>", *letters, *(f"{each}</w>" for each in letters)])
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=16)


def t5_tokenizer() -> Any:
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((each, -3.0) for each in LETTERS)]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def t5_config() -> Any:
    from transformers import T5Config

    return T5Config(vocab_size=len(LETTERS) + 4, d_model=WIDTH, d_kv=4, d_ff=32, num_layers=1, num_heads=2)
