"""Forest attention on CPU: each block is one call of PyTorch's flash kernel, merged by log-sum-exp."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from seqtune_kernels.forest_attention import dense
from seqtune_kernels.forest_attention.merge import merge

if TYPE_CHECKING:
    from torch import Tensor

    from seqtune_kernels.forest_attention.layout import Layout

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def by_kv_head(x: Tensor, kv_heads: int) -> Tensor:
    """[T, H, D] as [Hkv, H / Hkv, T, D], a view: key/value heads are the batch, so none is repeated in memory."""
    return x.view(len(x), kv_heads, x.shape[1] // kv_heads, x.shape[2]).permute(1, 2, 0, 3)


def forward(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, *, scale: float, window: int | None, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp; see `function.Kernel`."""
    kv_heads, group = k.shape[1], q.shape[1] // k.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)
    result, lse = q.new_empty(q.shape, dtype=wide), q.new_empty(q.shape[1], len(q), dtype=wide)
    if not layout.covered:
        result.zero_()
        lse.fill_(float("-inf"))
    out, sums = by_kv_head(result, kv_heads), lse.view(kv_heads, group, len(q))
    queries, keys, values = (by_kv_head(x, kv_heads) for x in (q, k, v))
    for b in layout.tiles(window):
        rows, columns = b.rows, b.columns
        few, seen, shown = queries[:, :, rows], keys[:, :, columns], values[:, :, columns]
        if softcap is not None or b.reach is not None:
            part, part_lse = dense.forward(few, seen[:, 0], shown[:, 0], b, scale=scale, softcap=softcap)
        else:
            seen, shown = seen.expand(-1, group, -1, -1), shown.expand(-1, group, -1, -1)
            part, part_lse = _forward(few, seen, shown, 0.0, b.causal, scale=scale)
        if b.causal and layout.covered:  # causal blocks come first and share no query
            out[:, :, rows], sums[:, :, rows] = part, part_lse
        else:
            out[:, :, rows], sums[:, :, rows] = merge(out[:, :, rows], sums[:, :, rows], part.to(wide), part_lse)
    return result, lse


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    layout: Layout,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values; see `function.Kernel`."""
    kv_heads, group = k.shape[1], q.shape[1] // k.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)
    make = torch.empty if layout.covered else torch.zeros
    grads = [make(x.shape, dtype=wide) for x in (q, k, v)]
    grad_q, grad_k, grad_v = (by_kv_head(x, kv_heads) for x in grads)
    queries, keys, values, upstream, result = (by_kv_head(x, kv_heads) for x in (q, k, v, grad, out))
    sums = lse.view(kv_heads, group, len(q))
    for b in layout.tiles(window):
        rows, columns = b.rows, b.columns
        few, seen, shown = queries[:, :, rows], keys[:, :, columns], values[:, :, columns]
        of_few, result_few, sums_few = upstream[:, :, rows], result[:, :, rows], sums[:, :, rows]
        if softcap is not None or b.reach is not None:
            dq, dk, dv = dense.backward(
                of_few, few, seen[:, 0], shown[:, 0], result_few, sums_few, b, scale=scale, softcap=softcap
            )
        else:
            seen, shown = seen.expand(-1, group, -1, -1), shown.expand(-1, group, -1, -1)
            dq, dk, dv = _backward(of_few, few, seen, shown, result_few, sums_few, 0.0, b.causal, scale=scale)
            dk, dv = dk.sum(1), dv.sum(1)
        parts = (grad_q[:, :, rows], dq), (grad_k[:, 0, columns], dk), (grad_v[:, 0, columns], dv)
        for total, part in parts:
            if b.causal and layout.covered:  # they come first, and share no query and no key
                total.copy_(part)
            else:
                total.add_(part)
    return grads[0], grads[1], grads[2]
