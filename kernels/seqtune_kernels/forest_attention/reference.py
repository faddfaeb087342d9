"""The slow, readable statement of forest attention: one dense mask, any dtype up to fp64."""

from __future__ import annotations

import torch
from torch import Tensor


def forest_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Softmax attention under a dense mask, every step written out.

    Args:
        q: [T, Hq, D] queries.
        k: [T, Hkv, D] keys; `Hq` is a multiple of `Hkv` (grouped-query attention).
        v: [T, Hkv, D] values.
        visible: [T, T] bool, query by key; every query sees at least itself.
        scale: Factor of the scores.
        softcap: Scores `s` become `softcap · tanh(s / softcap)`.
        sinks: [Hq] a score of each head that takes its share of the softmax and gives no value.

    Returns:
        [T, Hq, D] in the dtype of `q`.
    """
    group = q.shape[1] // k.shape[1]
    keys, values = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, keys) * scale
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    scores = scores.masked_fill(~visible, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype)[:, None, None].expand(-1, len(q), 1)], -1)
    weights = scores.softmax(-1)[..., : len(k)]
    return torch.einsum("hqk,khd->qhd", weights, values)
