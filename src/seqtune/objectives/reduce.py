"""Reductions, written once. Masked entries are selected away, never multiplied by 0, so NaN and inf cannot leak.

Shapes: `B` sequences, `T` tokens of the padded row. `mask` is bool, or numbers where non-zero means true.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """`x` where the mask is set, 0 elsewhere; the gradient elsewhere is 0 whatever `x` holds there."""
    return torch.where(mask.bool(), x, torch.zeros((), dtype=x.dtype, device=x.device))


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Σ over the masked entries of `x` (of everything, or along `dim`); 0 if there are none."""
    return masked(x, mask).sum() if dim is None else masked(x, mask).sum(dim)


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean over the masked entries of `x` (of everything, or along `dim`); 0 if there are none."""
    mask = mask.bool()
    count = mask.sum() if dim is None else mask.sum(dim)
    return masked_sum(x, mask, dim) / count.clamp(min=1).to(x.dtype)


def sequence_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the rows `[B, T]` that have a masked entry of each row's masked mean; 0 if there is no such row."""
    return masked_mean(masked_mean(x, mask, dim=-1), mask.bool().any(-1))


def extent(mask: Tensor) -> Tensor:
    """Places of each row up to its last masked one, `[B]`: a completion's length with what tools wrote inside it."""
    return (torch.arange(1, mask.shape[-1] + 1, device=mask.device) * mask.bool()).amax(-1)


def last_tokens(mask: Tensor) -> Tensor:
    """The last masked place of each row, `[B, T]` bool; none in an empty row."""
    return torch.arange(1, mask.shape[-1] + 1, device=mask.device) == extent(mask).unsqueeze(-1)


def divided(total: Tensor, denominator: float | Tensor) -> Tensor:
    """`total / denominator`, with 0 / 0 read as 0: a step that trains nothing has loss 0.

    Args:
        total: Sum over one micro-batch of one rank.
        denominator: The same count over the whole optimiser step, all micro-batches and ranks together; need not be
            whole, so that a factor of the trainer's own averaging can be folded in.
    """
    count = torch.as_tensor(denominator, dtype=total.dtype, device=total.device)
    return total / torch.where(count == 0, torch.ones_like(count), count)


def at_least_fp32(x: Tensor) -> Tensor:
    """`x` in float32, or float64 if it already is: log-probs and ratios are never computed in half precision."""
    return x if x.dtype == torch.float64 else x.float()
