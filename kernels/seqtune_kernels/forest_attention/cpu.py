"""Forest attention on CPU: each piece is one call of PyTorch's flash kernel, merged by log-sum-exp.

The backward pass runs each piece against the *merged* output and log-sum-exp, which makes its gradients exact: the
softmax weights it recomputes are those of the whole row, and no derivative through the log-sum-exp is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from seqtune_kernels.forest_attention.merge import merge

if TYPE_CHECKING:
    from collections.abc import Sequence

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class Piece(Protocol):
    """Queries `[q_start, q_end)` against keys `[k_start, k_end)`; causal pieces have equal ranges."""

    @property
    def q_start(self) -> int: ...
    @property
    def q_end(self) -> int: ...
    @property
    def k_start(self) -> int: ...
    @property
    def k_end(self) -> int: ...
    @property
    def causal(self) -> bool: ...


def _by_kv_head(x: Tensor, kv_heads: int) -> Tensor:
    """[T, H, D] as [Hkv, H / Hkv, T, D], a view: key/value heads are the batch, so none is repeated in memory."""
    return x.view(len(x), kv_heads, x.shape[1] // kv_heads, x.shape[2]).permute(1, 2, 0, 3)


class _ForestAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, pieces: Sequence[Piece], scale: float) -> Tensor:
        kv_heads, group = k.shape[1], q.shape[1] // k.shape[1]
        queries, keys, values = (_by_kv_head(x, kv_heads) for x in (q, k, v))
        keys, values = (x.expand(-1, group, -1, -1) for x in (keys, values))
        wide = torch.promote_types(q.dtype, torch.float32)
        out = torch.zeros(kv_heads, group, *q.shape[::2], dtype=wide)  # [Hkv, G, T, D]
        lse = torch.full(out.shape[:-1], float("-inf"), dtype=wide)  # [Hkv, G, T]
        for p in pieces:
            rows, columns = slice(p.q_start, p.q_end), slice(p.k_start, p.k_end)
            part, part_lse = _forward(
                queries[:, :, rows], keys[:, :, columns], values[:, :, columns], 0.0, p.causal, scale=scale
            )
            out[:, :, rows], lse[:, :, rows] = merge(out[:, :, rows], lse[:, :, rows], part.to(wide), part_lse)
        result = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, result, lse)
        ctx.pieces, ctx.scale = pieces, scale
        return result.permute(2, 0, 1, 3).flatten(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, out, lse = ctx.saved_tensors
        kv_heads, group = k.shape[1], q.shape[1] // k.shape[1]
        queries, keys, values = (_by_kv_head(x, kv_heads) for x in (q, k, v))
        keys, values = (x.expand(-1, group, -1, -1) for x in (keys, values))
        grad_out = _by_kv_head(grads[0], kv_heads)
        wide = lse.dtype
        grad_q = torch.zeros(queries.shape, dtype=wide)
        grad_k, grad_v = (torch.zeros(kv_heads, *k.shape[::2], dtype=wide) for _ in range(2))
        for p in ctx.pieces:
            rows, columns = slice(p.q_start, p.q_end), slice(p.k_start, p.k_end)
            dq, dk, dv = _backward(
                grad_out[:, :, rows], queries[:, :, rows], keys[:, :, columns], values[:, :, columns],
                out[:, :, rows], lse[:, :, rows], 0.0, p.causal, scale=ctx.scale,
            )  # fmt: skip
            grad_q[:, :, rows] += dq
            grad_k[:, columns] += dk.sum(1)
            grad_v[:, columns] += dv.sum(1)
        return (
            grad_q.permute(2, 0, 1, 3).flatten(1, 2).to(q.dtype),
            grad_k.transpose(0, 1).to(k.dtype),
            grad_v.transpose(0, 1).to(v.dtype),
            None,
            None,
        )


def forest_attention_cpu(q: Tensor, k: Tensor, v: Tensor, pieces: Sequence[Piece], *, scale: float) -> Tensor:
    """Attention of a forest's pieces on CPU, differentiable.

    Args:
        q: [T, Hq, D] queries.
        k: [T, Hkv, D] keys; `Hq` is a multiple of `Hkv`.
        v: [T, Hkv, D] values.
        pieces: What to compute; together they show every query at least one key, and no pair twice.
        scale: Factor of the scores.

    Returns:
        [T, Hq, D] in the dtype of `q`.
    """
    result: Tensor = _ForestAttention.apply(q, k, v, pieces, scale)  # type: ignore[no-untyped-call]  # torch's own
    return result
