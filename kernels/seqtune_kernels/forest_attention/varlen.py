"""Forest attention on CUDA by kernels that take many sequences at once: one call for all causal pieces, one per depth.

What such a kernel cannot express, a full piece that a sliding window cuts at a slant, is left to `dense`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from seqtune_kernels.forest_attention import dense
from seqtune_kernels.forest_attention.cpu import by_kv_head
from seqtune_kernels.forest_attention.merge import merge

if TYPE_CHECKING:
    from torch import Tensor

    from seqtune_kernels.forest_attention.layout import Block, Layout, Level


@dataclass(frozen=True)
class Sequences:
    """How the queries and keys of one call fall into sequences.

    Args:
        q_starts, k_starts: [sequences + 1] int32, first query and key of each, and their number.
        longest_q, longest_k: Queries and keys of the longest.
        causal: Whether query i sees keys 0 to i only; sequences have as many queries as keys then.
        window: Of causal sequences: a query sees its own key and this many less one before it.
        scale: Factor of the scores.
        softcap: Scores `s` become `softcap · tanh(s / softcap)`.
    """

    q_starts: Tensor
    k_starts: Tensor
    longest_q: int
    longest_k: int
    causal: bool
    window: int | None
    scale: float
    softcap: float | None


class Ops(Protocol):
    """A kernel for many sequences: `n` queries, `m` keys of all of them one after another."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, s: Sequences) -> tuple[Tensor, Tensor]:
        """[n, Hq, D] output and [Hq, n] log-sum-exp."""

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, s: Sequences
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of `q`, `k` and `v` from `out` and `lse` of whole rows."""


class TorchOps:
    """FlashAttention as PyTorch ships it."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, s: Sequences) -> tuple[Tensor, Tensor]:
        """As `Ops`; there is no soft-cap."""
        out, lse, *_ = torch.ops.aten._flash_attention_forward.default(
            q, k, v, s.q_starts, s.k_starts, s.longest_q, s.longest_k, 0.0, s.causal, False,
            scale=s.scale, **self._window(s),
        )  # fmt: skip
        return out, lse

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, s: Sequences
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `Ops`."""
        state = q.new_empty(2, dtype=torch.uint64), q.new_empty((), dtype=torch.uint64)  # of dropout, which is off
        of_q, of_k, of_v = torch.ops.aten._flash_attention_backward.default(
            grad.contiguous(), q, k, v, out.contiguous(), lse.contiguous(), s.q_starts, s.k_starts, s.longest_q,
            s.longest_k, 0.0, s.causal, *state, scale=s.scale, **self._window(s),
        )  # fmt: skip
        return of_q, of_k, of_v

    @staticmethod
    def _window(s: Sequences) -> dict[str, int]:
        return {} if s.window is None else {"window_size_left": s.window - 1, "window_size_right": 0}


class FlashAttnOps:
    """The package `flash-attn`, version 2."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, s: Sequences) -> tuple[Tensor, Tensor]:
        """As `Ops`."""
        from flash_attn.flash_attn_interface import _flash_attn_varlen_forward

        out, lse, *_ = _flash_attn_varlen_forward(
            q, k, v, s.q_starts, s.k_starts, s.longest_q, s.longest_k, 0.0, **self._limits(s)
        )
        return out, lse

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, s: Sequences
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `Ops`."""
        from flash_attn.flash_attn_interface import _flash_attn_varlen_backward

        of_q, of_k, of_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        _flash_attn_varlen_backward(
            grad, q, k, v, out, lse.contiguous(), of_q, of_k, of_v, s.q_starts, s.k_starts, s.longest_q, s.longest_k,
            0.0, **self._limits(s), deterministic=False,
        )  # fmt: skip
        return of_q, of_k, of_v

    @staticmethod
    def _limits(s: Sequences) -> dict[str, Any]:
        return {
            "softmax_scale": s.scale,
            "causal": s.causal,
            "window_size_left": -1 if s.window is None else s.window - 1,
            "window_size_right": -1 if s.window is None else 0,
            "softcap": s.softcap or 0.0,
            "alibi_slopes": None,
        }


@dataclass(frozen=True)
class Varlen:
    """A `Kernel` from a kernel for many sequences; the layout must be of a whole row."""

    ops: Ops

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Layout,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> tuple[Tensor, Tensor]:
        """Attention and its log-sum-exp; see `function.Kernel`."""
        calls = layout.calls(window, q.device)
        out, lse = self.ops.forward(q, k, v, _causal(calls.starts, calls.longest, window, scale, softcap))
        if calls.levels or calls.rest:
            out, lse = out.to(torch.promote_types(q.dtype, torch.float32)), lse.T.contiguous()  # [T, Hq]
        for level in calls.levels:
            rows, columns = level.rows, level.columns
            part, part_lse = self.ops.forward(q[rows], k[columns], v[columns], _full(level, scale, softcap))
            out[rows], lse[rows] = merge(out[rows], lse[rows], part.to(out.dtype), part_lse.T)
        for b in calls.rest:
            queries, keys, values = _of_block(q, k, v, b)
            part, part_lse = dense.forward(queries, keys, values, b, scale=scale, softcap=softcap)
            part, part_lse = part.permute(2, 0, 1, 3).flatten(1, 2), part_lse.permute(2, 0, 1).flatten(1, 2)
            out[b.rows], lse[b.rows] = merge(out[b.rows], lse[b.rows], part, part_lse)
        return out, lse.T.contiguous() if calls.levels or calls.rest else lse

    def backward(
        self,
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
        calls = layout.calls(window, q.device)
        causal = _causal(calls.starts, calls.longest, window, scale, softcap)
        of_q, of_k, of_v = self.ops.backward(grad, q, k, v, out, lse, causal)
        if calls.levels or calls.rest:
            wide = torch.promote_types(q.dtype, torch.float32)
            of_q, of_k, of_v = of_q.to(wide), of_k.to(wide), of_v.to(wide)
        for level in calls.levels:
            rows, columns = level.rows, level.columns
            few = self.ops.backward(
                grad[rows], q[rows], k[columns], v[columns], out[rows], lse[:, rows], _full(level, scale, softcap)
            )
            of_q[rows] += few[0]  # queries of a level are distinct
            for total, part in ((of_k, few[1]), (of_v, few[2])):
                if isinstance(columns, slice):
                    total[columns] += part
                else:
                    total.index_add_(0, columns, part.to(total.dtype))
        for b in calls.rest:
            kv_heads, group = k.shape[1], q.shape[1] // k.shape[1]
            queries, keys, values = _of_block(q, k, v, b)
            upstream, result = by_kv_head(grad, kv_heads)[:, :, b.rows], by_kv_head(out, kv_heads)[:, :, b.rows]
            sums = lse.view(kv_heads, group, len(q))[:, :, b.rows]
            dq, dk, dv = dense.backward(upstream, queries, keys, values, result, sums, b, scale=scale, softcap=softcap)
            of_q[b.rows] += dq.permute(2, 0, 1, 3).flatten(1, 2)
            of_k[b.columns] += dk.transpose(0, 1)
            of_v[b.columns] += dv.transpose(0, 1)
        return of_q, of_k, of_v


def _causal(starts: Tensor, longest: int, window: int | None, scale: float, softcap: float | None) -> Sequences:
    return Sequences(starts, starts, longest, longest, True, window, scale, softcap)


def _full(level: Level, scale: float, softcap: float | None) -> Sequences:
    return Sequences(level.q_starts, level.k_starts, level.longest_q, level.longest_k, False, None, scale, softcap)


def _of_block(q: Tensor, k: Tensor, v: Tensor, b: Block) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [K, G, n, D], keys and values [K, m, D] of a block."""
    kv_heads = k.shape[1]
    return by_kv_head(q, kv_heads)[:, :, b.rows], k[b.columns].transpose(0, 1), v[b.columns].transpose(0, 1)
