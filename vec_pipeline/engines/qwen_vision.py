"""Images to embeddings for the decoder of Qwen2-VL, Qwen2.5-VL or Qwen3-VL, many in one pass of the vision tower.

The computation is that of transformers' modules with their weights; only the batching differs: images of one size share
one attention call, while the stock tower makes one per image and layer.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, groupby
from math import isqrt
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL.Image import Image, Resampling
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import interpolate, rms_norm, scaled_dot_product_attention

from vec_pipeline.device import is_ampere_or_newer

# The range in which the product of `linear` is faster than torch's own on a CPU (docs/lab-notes.md).
_MIN_ROWS, _MAX_ROWS, _MIN_WEIGHTS = 4, 128, 2**20


class Grid(NamedTuple):
    """Size of an image in patches, both sides multiples of the tower's merge size."""

    rows: int
    columns: int

    @property
    def patches(self) -> int:
        return self.rows * self.columns


class ImageReader:
    """Cuts images into the patches that the vision tower expects, exactly as `image_processor` (PIL backend) does.

    PIL resizes on the host, in bytes; scaling, normalising and cutting are tensor operations on the device, so only an
    eighth of the data is copied there.
    Source: transformers/models/qwen2_vl/image_processing_pil_qwen2_vl.py
    """

    def __init__(self, image_processor: Any, device: torch.device) -> None:
        self._processor = image_processor
        self._device = device
        self._mean = torch.tensor(image_processor.image_mean, dtype=torch.float32, device=device)
        self._std = torch.tensor(image_processor.image_std, dtype=torch.float32, device=device)

    def grid(self, image: Image) -> Grid:
        """The size of an image in patches after resizing."""
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        processor = self._processor
        height_px, width_px = smart_resize(
            image.height,
            image.width,
            factor=processor.patch_size * processor.merge_size,
            min_pixels=processor.size["shortest_edge"],
            max_pixels=processor.size["longest_edge"],
        )
        return Grid(height_px // processor.patch_size, width_px // processor.patch_size)

    def resize(self, image: Image, grid: Grid) -> Tensor:
        """The image at the model's input size: uint8 of shape (height_px, width_px, 3), on the host."""
        size_px = (grid.columns * self._processor.patch_size, grid.rows * self._processor.patch_size)
        return torch.from_numpy(np.array(image.convert("RGB").resize(size_px, Resampling(self._processor.resample))))

    def patches(self, images: Sequence[Tensor]) -> Tensor:
        """Cut resized images into normalised patches, concatenated: float32 of shape (patches, values)."""
        same = (torch.stack(list(group)) for _, group in groupby(images, key=lambda pixels: pixels.shape))
        return torch.cat([self._cut(self._normalise(pixels.to(self._device))) for pixels in same])

    def _normalise(self, pixels: Tensor) -> Tensor:
        scaled: Tensor = pixels.double() * self._processor.rescale_factor  # float64 as in transformers: bit-identical
        return (scaled.float() - self._mean) / self._std

    def _cut(self, pixels: Tensor) -> Tensor:
        """Patches in the order in which the tower merges them: merge_size x merge_size neighbours are adjacent."""
        size, merge = self._processor.patch_size, self._processor.merge_size
        count, height_px, width_px, colours = pixels.shape
        cell_px = merge * size
        blocks = pixels.view(count, height_px // cell_px, merge, size, width_px // cell_px, merge, size, colours)
        # image, row of blocks, row in block, y, column of blocks, column in block, x, colour
        patches = blocks.permute(0, 1, 4, 2, 5, 7, 3, 6).unsqueeze(6)
        frames = patches.expand(*[-1] * 6, self._processor.temporal_patch_size, -1, -1)  # a still image is repeated
        return frames.flatten(5).flatten(0, 4)


class VisionTower:
    """The forward pass of a family's vision tower, over the modules and weights of transformers.

    visual: the tower, which is not modified. Its attributes decide what is computed: windowed attention in Qwen2.5-VL;
    learned position embeddings and DeepStack, which passes the output of some blocks to the decoder, too, in Qwen3-VL.
    """

    def __init__(self, visual: Any) -> None:
        self._visual = visual
        self._merge: int = visual.spatial_merge_size
        self._device: torch.device = visual.patch_embed.proj.weight.device
        self._inverse_frequencies: Tensor = visual.rotary_pos_emb.inv_freq.float()
        # Qwen2.5-VL attends within windows in all but these layers.
        self._full_attention: Sequence[int] = getattr(visual, "fullatt_block_indexes", range(len(visual.blocks)))
        window_px: int = getattr(visual, "window_size", 0)
        self._window_cells = window_px // self._merge // visual.patch_embed.patch_size
        deepstack = (getattr(visual, name, ()) for name in ("deepstack_visual_indexes", "deepstack_merger_list"))
        self._deepstack: dict[int, Any] = dict(zip(*deepstack, strict=True))  # mergers, by the block that they follow
        self.levels = 1 + len(self._deepstack)

    def __call__(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Embed the images' patches: shape (tokens of all images, levels, hidden size of the decoder).

        Level 0 is the embedding of a token; the others, DeepStack's, are added after the decoder's first layers.
        """
        layouts = [layout(grid, self._merge, self._window_cells) for grid in grids]
        order = torch.cat([each.order + start for each, start in zip(layouts, self._starts(grids), strict=True)])
        images = Segments([grid.patches for grid in grids], self._device)
        windows = Segments([length for each in layouts for length in each.window_lengths], self._device)
        positions = torch.cat([each.positions for each in layouts]).to(self._device)
        rotation = Rotation((positions[:, :, None] * self._inverse_frequencies).flatten(1)[:, None])
        order = order.to(self._device)

        hidden = self._embed(self._in_order(patches, order))
        if hasattr(self._visual, "pos_embed"):
            hidden = hidden + self._position_embeddings(grids)
        deepstack = []
        for index, block in enumerate(self._visual.blocks):
            segments = images if index in self._full_attention else windows
            hidden = hidden + self._attend(block.attn, normed(block.norm1, hidden), rotation, segments)
            hidden = hidden + feed_forward(block.mlp, normed(block.norm2, hidden))
            if index in self._deepstack:
                deepstack.append(self._deepstack[index](hidden))
        merged = torch.stack([self._visual.merger(hidden), *deepstack], 1)
        return merged[order.argsort()] if self._window_cells else merged

    def _starts(self, grids: Sequence[Grid]) -> list[int]:
        """The index of the first cell (block of patches merged into one token) of each image."""
        return list(accumulate((grid.patches // self._merge**2 for grid in grids), initial=0))[:-1]

    def _in_order(self, patches: Tensor, order: Tensor) -> Tensor:
        if not self._window_cells:
            return patches
        return patches.view(-1, self._merge**2, patches.shape[1])[order].flatten(0, 1)

    def _embed(self, patches: Tensor) -> Tensor:
        convolution = self._visual.patch_embed.proj  # a Conv3d that is applied once to each patch
        weight: Tensor = convolution.weight
        return nn.functional.linear(patches.to(weight.dtype), weight.flatten(1), convolution.bias)

    def _position_embeddings(self, grids: Sequence[Grid]) -> Tensor:
        """The learned square of embeddings, resized to each image: shape (patches, hidden size of the tower)."""
        weight: Tensor = self._visual.pos_embed.weight
        side = isqrt(len(weight))
        square = weight.T.view(1, -1, side, side)
        resized = {grid: self._resized(square, grid) for grid in set(grids)}
        return torch.cat([resized[grid] for grid in grids])

    def _resized(self, square: Tensor, grid: Grid) -> Tensor:
        """Embeddings of an image's patches, in the order of `ImageReader.patches`."""
        image = interpolate(square, size=tuple(grid), mode="bilinear", align_corners=True)[0]
        cells = image.view(-1, grid.rows // self._merge, self._merge, grid.columns // self._merge, self._merge)
        return cells.permute(1, 3, 2, 4, 0).flatten(0, 3)

    def _attend(self, attention: Any, hidden: Tensor, rotation: "Rotation", segments: "Segments") -> Tensor:
        queries, keys, values = linear(attention.qkv, hidden).view(len(hidden), 3, attention.num_heads, -1).unbind(1)
        queries, keys = (rotation(each.float()).to(each.dtype) for each in (queries, keys))
        return linear(attention.proj, segments.attend(queries, keys, values).flatten(1))


class Layout(NamedTuple):
    """How the patches of one image lie in the tower's sequence.

    order: the cells (blocks of patches merged into one token) of the sequence, window by window; shape (cells,).
    positions: row and column of each patch, in that order; shape (patches, 2).
    window_lengths: patches of each window.
    """

    order: Tensor
    positions: Tensor
    window_lengths: list[int]


@lru_cache(maxsize=256)
def layout(grid: Grid, merge: int, window_cells: int) -> Layout:
    """Lay out an image; `window_cells` is the side of a window in cells, 0 for no windows."""
    cells = torch.cartesian_prod(torch.arange(grid.rows // merge), torch.arange(grid.columns // merge))
    inside = torch.cartesian_prod(torch.arange(merge), torch.arange(merge))
    window = cells // (window_cells or max(grid))
    number = window[:, 0] * grid.columns + window[:, 1]
    order = number.argsort(stable=True)
    positions = (cells[order, None] * merge + inside).flatten(0, 1)
    cells_of_windows = (count for count in number.bincount().tolist() if count)
    return Layout(order, positions, [count * merge**2 for count in cells_of_windows])


class Segments:
    """Segments of a packed sequence, each of which attends only to itself."""

    def __init__(self, lengths: list[int], device: torch.device) -> None:
        boundaries = torch.tensor([0, *accumulate(lengths)])
        self._longest = max(lengths)
        self._boundaries = boundaries.to(device, torch.int32)
        self._by_length = [  # for each length, the indices of its segments: shape (segments, length)
            (boundaries[:-1][torch.tensor(lengths) == length, None] + torch.arange(length)).to(device)
            for length in sorted(set(lengths))
        ]

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention within each segment; all tensors of shape (patches, heads, head size)."""
        if len(self._by_length) == 1:
            return self._attend_equal(queries, keys, values, self._longest)
        if queries.is_cuda and queries.dtype in (torch.float16, torch.bfloat16) and is_ampere_or_newer():
            bounds, longest = self._boundaries, self._longest
            return cast(Tensor, varlen_attn(queries, keys, values, bounds, bounds, longest, longest))
        out = torch.empty_like(queries, memory_format=torch.contiguous_format)
        for indices in self._by_length:  # one call per distinct length
            flat = indices.flatten()
            out[flat] = self._attend_equal(queries[flat], keys[flat], values[flat], indices.shape[1])
        return out

    @staticmethod
    def _attend_equal(queries: Tensor, keys: Tensor, values: Tensor, length: int) -> Tensor:
        shape = (-1, length, *queries.shape[1:])
        queries, keys, values = (each.reshape(shape).transpose(1, 2) for each in (queries, keys, values))
        return scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(0, 1)


class Rotation:
    """Rotary position embedding by given angles, which are broadcast to the tensor to rotate.

    angles: of the first half of a head's values; the second half is rotated by the same.
    dtype: of the sines and cosines.
    """

    def __init__(self, angles: Tensor, dtype: torch.dtype = torch.float32) -> None:
        cos, sin = angles.cos(), angles.sin()
        self._cos = torch.cat([cos, cos], -1).to(dtype)
        self._sin = torch.cat([-sin, sin], -1).to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.addcmul(x * self._cos, x.roll(x.shape[-1] // 2, -1), self._sin)


def linear(layer: Any, x: Tensor) -> Tensor:
    """Equal to `layer(x)`; on a CPU, a few dozen rows are computed as weight @ x.T, which is up to twice as fast."""
    rows = x.shape[:-1].numel()
    if x.is_cuda or type(layer) is not nn.Linear or not _MIN_ROWS <= rows <= _MAX_ROWS:
        return layer(x)  # type: ignore[no-any-return]
    if layer.weight.numel() < _MIN_WEIGHTS:
        return layer(x)  # type: ignore[no-any-return]
    columns = x.reshape(rows, -1).T
    product = layer.weight @ columns if layer.bias is None else torch.addmm(layer.bias[:, None], layer.weight, columns)
    return product.T.contiguous().view(*x.shape[:-1], -1)


def normed(norm: Any, x: Tensor) -> Tensor:
    """Equal to `norm(x)`, with root-mean-square norms in one kernel."""
    if hasattr(norm, "variance_epsilon"):
        return rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
    return norm(x)  # type: ignore[no-any-return]


def feed_forward(mlp: Any, x: Tensor) -> Tensor:
    """Equal to `mlp(x)`: gated as in the decoder and in Qwen2.5-VL's tower, or plain as in the other towers."""
    if hasattr(mlp, "gate_proj"):
        return linear(mlp.down_proj, mlp.act_fn(linear(mlp.gate_proj, x)) * linear(mlp.up_proj, x))
    if hasattr(mlp, "linear_fc1"):  # Qwen3-VL
        return linear(mlp.linear_fc2, mlp.act_fn(linear(mlp.linear_fc1, x)))
    return linear(mlp.fc2, mlp.act(linear(mlp.fc1, x)))
