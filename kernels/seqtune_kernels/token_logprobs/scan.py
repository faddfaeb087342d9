"""What a chunk of logits says of the chosen tokens, and its residual ∂ log p(y) / ∂ logits, row by row.

Shapes: `m` tokens of the chunk, `V` vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_BYTES = 1 << 20
"""Memory of the rows one thread of a CPU reads at a time: what its cache holds is read again for nothing."""


class Scan(NamedTuple):
    """What was found of each token of a chunk."""

    logps: Tensor
    """[m] log-prob of the chosen token, at least fp32."""
    entropy: Tensor
    """[m] entropy in nats; what it holds when not asked for means nothing."""
    is_top1: Tensor
    """[m] bool, whether no token is likelier."""


def scan(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    softcap: float | None,
    entropy: bool,
    factors: Tensor | None,
) -> Scan:
    """Read a chunk, in PyTorch; where `factors`, leave factor times ∂ log p(y) / ∂ logits in the memory of `logits`.

    Args:
        logits: [m, V] as the head gives them, contiguous; overwritten.
        targets: [m] chosen tokens.
        temperature: The logits are divided by it, after the soft-cap.
        softcap: c of `c tanh(logits / c)`.
        entropy: Whether to compute entropies.
        factors: [m] of each row's residual; None when the residual is not wanted.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    size = max(1, len(logits))
    if logits.device.type == "cpu":
        size = max(1, BLOCK_BYTES // (logits.shape[1] * wide.itemsize)) * torch.get_num_threads()
    logps, spread = (torch.empty(len(logits), dtype=wide, device=logits.device) for _ in range(2))
    top1 = torch.empty(len(logits), dtype=torch.bool, device=logits.device)
    for start in range(0, len(logits), size):
        rows = slice(start, start + size)
        x = logits[rows].to(wide)  # the memory of `logits` itself, where that is wide enough
        at = targets[rows, None]
        slope = None
        if softcap is not None:
            x.div_(softcap).tanh_()
            slope = 1 - x.square() if factors is not None else None
            x.mul_(softcap)
        if temperature != 1.0:
            x.div_(temperature)
        largest = x.amax(-1, keepdim=True)
        chosen = x.gather(1, at).sub_(largest)
        top1[rows] = (chosen == 0)[:, 0]
        x.sub_(largest)
        weights = x.exp() if entropy else x.exp_()
        total = weights.sum(-1, keepdim=True)
        logps[rows] = (chosen - total.log())[:, 0]
        if entropy:
            spread[rows] = total.log()[:, 0] - torch.linalg.vecdot(weights, x) / total[:, 0]  # log Σ e^x - E[x]
        if factors is not None:
            factor = factors[rows, None] / temperature
            residual = weights.mul_(-factor / total)
            residual.scatter_add_(1, at, factor)
            logits[rows] = residual if slope is None else residual.mul_(slope)
    return Scan(logps, spread, top1)
