"""The parts of the demo editing model: an InstructPix2Pix pipeline small enough to be trained on one CPU core.

The autoencoder hands pixels through, so the U-Net works on pixels and letters survive. The U-Net predicts the edited
picture itself and begins as the identity, so that it only has to learn what changes.
"""

import json
import math
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, WhitespaceSplit
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from models.demo.edit_pairs import INSTRUCTIONS
from models.demo.scenes import BACKGROUNDS, COLOURS, KINDS

SIDE_PX = 112
LATENTS = 3  # red, green, blue
TOKENS, TEXT_WIDTH = 16, 64
CHANNELS, LAYERS = (16, 16, 32, 64, 96), (0, 0, 1, 1, 1)  # of the U-Net's levels, from the outermost
PAIRED = 2 * LATENTS + 2  # channels for a picture in pairs (x, -x), and two constants: see `pass_through`
CONSTANTS = {"autoencoder": 500.0, "unet": 8.0}  # beside pixels of -1 to 1

Weight = nn.Parameter | Tensor


def build_pipeline() -> StableDiffusionInstructPix2PixPipeline:
    """An untrained pipeline that hands back the picture it is given."""
    tokenizer = build_tokenizer()
    return StableDiffusionInstructPix2PixPipeline(
        vae=build_autoencoder(),
        text_encoder=build_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=build_unet(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_tokenizer() -> CLIPTokenizer:
    """One token for each word of the instructions, and bytes for anything else."""
    templates = " ".join(text for texts in INSTRUCTIONS.values() for text in texts).split()
    words = {word for word in templates if "{" not in word} | {"object", "objects", *COLOURS, *BACKGROUNDS}
    words |= set(KINDS) | {kind + "s" for kind in KINDS}
    merges = learnt_merges(words)
    letters = sorted(ByteLevel.alphabet())
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    tokens += dict.fromkeys(left + right for left, right in merges)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def learnt_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte pairs that make each of the words one token."""
    suffix = "</w>"
    learner = Tokenizer(BPE(end_of_word_suffix=suffix))
    learner.pre_tokenizer = WhitespaceSplit()
    trainer = BpeTrainer(vocab_size=5000, min_frequency=1, end_of_word_suffix=suffix, show_progress=False)
    learner.train_from_iterator(sorted(words), trainer)
    return [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


@torch.no_grad()
def build_autoencoder() -> AutoencoderKL:
    """An autoencoder of one level whose latents are the pixels."""
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(PAIRED,),
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=1,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,
        sample_size=SIDE_PX,
    )
    for name, weight in model.named_parameters():
        if "norm1" not in name and "norm2" not in name:  # with all else 0, the residual blocks add nothing
            weight.zero_()
    for half in (model.encoder, model.decoder):
        pass_through(half, CONSTANTS["autoencoder"], first_input=0, channels=PAIRED, groups=1)
    model.encoder.conv_out.bias[LATENTS:] = -30  # the logarithm of the variance: none
    return model


def build_unet() -> UNet2DConditionModel:
    levels = len(CHANNELS)
    has_attention = [level >= levels - 2 for level in range(levels)]
    unet = UNet2DConditionModel(
        sample_size=SIDE_PX,
        in_channels=2 * LATENTS,
        out_channels=LATENTS,
        down_block_types=["CrossAttnDownBlock2D" if here else "DownBlock2D" for here in has_attention],
        up_block_types=["CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(has_attention)],
        block_out_channels=CHANNELS,
        layers_per_block=LAYERS,
        norm_num_groups=2,
        attention_head_dim=4,  # the number of heads, in spite of its name
        cross_attention_dim=TEXT_WIDTH,
        resnet_time_scale_shift="scale_shift",
        time_embedding_dim=128,
        addition_embed_type="text",  # the instruction also reaches the levels without attention
        addition_embed_type_num_heads=4,
        use_linear_projection=True,
    )
    start_as_identity(unet)
    return unet


@torch.no_grad()
def start_as_identity(unet: UNet2DConditionModel) -> None:
    """Let the U-Net answer with the picture it is given, along the outermost skip connection."""
    last = unet.up_blocks[-1].resnets[-1]
    from_below = last.conv_shortcut.weight.shape[1] - CHANNELS[0]
    unet.conv_in.weight[:PAIRED] = 0
    unet.conv_in.bias[:PAIRED] = 0
    last.conv_shortcut.weight[:PAIRED] = 0
    last.conv_shortcut.bias[:PAIRED] = 0
    for channel in range(PAIRED):
        last.conv_shortcut.weight[channel, from_below + channel, 0, 0] = 1
    for layer in (last.conv2, unet.conv_out):
        layer.weight.mul_(0.02)
        layer.bias.zero_()
    unet.conv_out.weight[:, :PAIRED] = 0
    pass_through(unet, CONSTANTS["unet"], LATENTS, CHANNELS[0], unet.config.norm_num_groups)


def pass_through(network: nn.Module, constant: float, first_input: int, channels: int, groups: int) -> None:
    """Set conv_in, conv_norm_out and conv_out of a network so that three channels go through them unchanged.

    Each value x travels as a pair (x, -x), because silu(x) - silu(-x) = x. Beside the pairs are two constants, so
    large that the last GroupNorm divides by nearly the same number whatever the picture.
    """
    for channel in range(LATENTS):
        for index, sign in ((2 * channel, 1), (2 * channel + 1, -1)):
            network.conv_in.weight[index, first_input + channel, 1, 1] = sign
            network.conv_out.weight[channel, index, 1, 1] = sign
    network.conv_in.bias[PAIRED - 2], network.conv_in.bias[PAIRED - 1] = constant, -constant
    network.conv_norm_out.weight[: PAIRED - 2] = constant * math.sqrt(2 * groups / channels)


def build_scheduler() -> DDIMScheduler:
    """From pure noise (no signal at the first step) to a prediction of the picture itself."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="sample",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=True,
    )


def export_pipeline(pipeline: StableDiffusionInstructPix2PixPipeline, folder: Path) -> None:
    """Write the pipeline with float16 weights: load it with `dtype`, or its parts come in several types."""
    half = deepcopy(pipeline).to(dtype=torch.float16)
    half.unet.to(memory_format=torch.contiguous_format)
    half.save_pretrained(folder)
    for file in folder.rglob("*.*"):
        file.chmod(0o644)  # save_pretrained makes the weights readable by their owner only
