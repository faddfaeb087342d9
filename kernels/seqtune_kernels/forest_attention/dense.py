"""One block by plain matrix products, on any device: what fused kernels cannot express (slanted windows, soft-caps).

Scores are built for `_ROWS` queries at a time, and only for the keys those can see.
Shapes: `K` key/value heads, `G` query heads of each, `n` queries, `m` keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from seqtune_kernels.forest_attention.layout import Block

_ROWS = 128


class _Chunk(NamedTuple):
    rows: slice
    columns: slice
    hidden: Tensor | None
    """[rows, columns] bool, what is masked; None masks nothing."""


def _chunks(block: Block, device: torch.device) -> Iterator[_Chunk]:
    queries, keys = block.q_end - block.q_start, block.k_end - block.k_start
    for start in range(0, queries, _ROWS):
        end = min(start + _ROWS, queries)
        first = 0 if block.reach is None else max(0, start - block.reach + 1)
        last = min(end, keys) if block.causal else keys
        hidden = None
        if block.causal or block.reach is not None:
            distance = torch.arange(start, end, device=device)[:, None] - torch.arange(first, last, device=device)
            hidden = distance < 0 if block.causal else torch.zeros_like(distance, dtype=torch.bool)
            if block.reach is not None:
                hidden |= distance >= block.reach
        yield _Chunk(slice(start, end), slice(first, last), hidden)


def _scores(q: Tensor, k: Tensor, hidden: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    """[K, G, rows, columns] masked scores."""
    scores = torch.matmul(q, k.unsqueeze(1).transpose(-1, -2)) * scale
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    return scores if hidden is None else scores.masked_fill(hidden, float("-inf"))


def forward(
    q: Tensor, k: Tensor, v: Tensor, block: Block, *, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Attention of one block.

    Args:
        q: [K, G, n, D] its queries.
        k, v: [K, m, D] its keys and values.

    Returns:
        [K, G, n, D] output and [K, G, n] log-sum-exp of the scores, at least fp32.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k, v = q.to(wide), k.to(wide), v.to(wide)
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:-1])
    for rows, columns, hidden in _chunks(block, q.device):
        scores = _scores(q[:, :, rows], k[:, columns], hidden, scale, softcap)
        lse[:, :, rows] = scores.logsumexp(-1)
        weights = (scores - lse[:, :, rows, None]).exp_()
        out[:, :, rows] = torch.matmul(weights, v[:, None, columns])
    return out, lse


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    block: Block,
    *,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one block's queries, keys and values.

    Args:
        grad: [K, G, n, D] of the output of the whole rows.
        out: [K, G, n, D] output of the whole rows, all blocks merged.
        lse: [K, G, n] log-sum-exp of the whole rows.

    Returns:
        [K, G, n, D], [K, m, D] and [K, m, D], at least fp32.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    grad, q, k, v, out = (x.to(wide) for x in (grad, q, k, v, out))
    grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    mean = (grad * out).sum(-1, keepdim=True)  # [K, G, n, 1] what the softmax takes off each row
    for rows, columns, hidden in _chunks(block, q.device):
        scores = _scores(q[:, :, rows], k[:, columns], hidden, scale, softcap)
        weights = (scores - lse[:, :, rows, None]).exp()
        of_scores = weights * (torch.matmul(grad[:, :, rows], v[:, None, columns].transpose(-1, -2)) - mean[:, :, rows])
        if softcap is not None:
            slope = 1 - (scores / softcap) ** 2
            of_scores *= slope if hidden is None else slope.masked_fill(hidden, 0.0)
        of_scores *= scale
        grad_q[:, :, rows] = torch.matmul(of_scores, k[:, None, columns])
        grad_k[:, columns] += torch.matmul(of_scores.transpose(-1, -2), q[:, :, rows]).sum(1)
        grad_v[:, columns] += torch.matmul(weights.transpose(-1, -2), grad[:, :, rows]).sum(1)
    return grad_q, grad_k, grad_v
