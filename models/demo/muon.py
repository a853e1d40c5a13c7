"""The Muon optimiser in single precision, for the weight matrices of transformer blocks and for convolutions."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates for weight matrices (Keller Jordan, github.com/KellerJordan/Muon).

    torch.optim.Muon does its matrix products in bfloat16, which a CPU without such instructions emulates some seventy
    times slower than float32; hence float32 here. The step is scaled as `adjust_lr_fn="match_rms_adamw"` does it, so
    learning rate and weight decay mean the same as for AdamW. A stacked (3 * n, n) matrix is taken as query, key and
    value matrices, each orthogonalised by itself; the kernel of a convolution as one (out, in * height * width) matrix.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                mean = state.setdefault("momentum_buffer", torch.zeros_like(weight))
                mean.lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(mean, group["momentum"]).flatten(1)
                rows, columns = update.shape
                blocks = update.view(3, columns, columns) if rows == 3 * columns else update[None]
                scale = 0.2 * math.sqrt(max(blocks.shape[1:]))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(orthogonalised(blocks).reshape(weight.shape), alpha=-group["lr"] * scale)


def orthogonalised(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Bring the singular values of (batch, rows, columns) matrices near 1 by Newton-Schulz iteration."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x
