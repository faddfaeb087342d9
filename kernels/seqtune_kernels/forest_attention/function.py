"""Forest attention by the name of its backend, and the one autograd function all kernels share.

The backward pass runs each piece against the *merged* output and log-sum-exp, which makes its gradients exact: the
softmax weights it recomputes are those of the whole row, and no derivative through the log-sum-exp is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from seqtune_kernels.forest_attention import cpu, flex
from seqtune_kernels.forest_attention.merge import merge
from seqtune_kernels.forest_attention.reference import forest_attention_reference
from seqtune_kernels.forest_attention.varlen import FlashAttnOps, TorchOps, Varlen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from seqtune_kernels.forest_attention.layout import Layout


class Kernel(Protocol):
    """Attention of a layout as two pure functions. `Tq` queries and `Tk` keys: those the layout has at hand."""

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
        """[Tq, Hq, D] output, and [Hq, Tq] log-sum-exp of the scores, at least fp32.

        A query that sees no key has output 0 and log-sum-exp -inf.
        """

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
        """Gradients of `q`, `k` and `v` from [Tq, Hq, D] `grad` and `out` and [Hq, Tq] `lse` of whole rows.

        Whole rows: merged with whatever else the queries saw. The gradients are at least fp32.
        """


_ON_CUDA: dict[str, Kernel] = {"sdpa": Varlen(TorchOps()), "flash_attention_2": Varlen(FlashAttnOps())}


class _ForestAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernel: Kernel,
        layout: Layout,
        options: dict[str, Any],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *parts: Tensor,
    ) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):  # sums inside a kernel keep the precision they ask for
            out, lse = kernel.forward(q, k, v, layout, **options)
            if parts:
                out, lse = out.to(lse.dtype), lse.T  # [Tq, Hq, D] and [Tq, Hq]
                for part, part_lse in zip(parts[::2], parts[1::2], strict=True):
                    out, lse = merge(out, lse, part.to(out.dtype), part_lse.to(lse.dtype))
                lse = lse.T.contiguous()
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse, *parts)
        ctx.kernel, ctx.layout, ctx.options = kernel, layout, options
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, *parts = ctx.saved_tensors
        (grad,) = grads
        with torch.autocast(q.device.type, enabled=False):
            found = ctx.kernel.backward(grad, q, k, v, out, lse, ctx.layout, **ctx.options)
        of_parts: list[Tensor] = []
        for part, part_lse in zip(parts[::2], parts[1::2], strict=True):
            share = (part_lse - lse.T).exp().nan_to_num(0.0)  # [Tq, Hq] of the softmax; -inf - -inf has none
            of_parts.append((share.unsqueeze(-1) * grad).to(part.dtype))
            of_parts.append((share * (grad * (part - out)).sum(-1)).to(part_lse.dtype))
        return None, None, None, *(one.to(x.dtype) for one, x in zip(found, (q, k, v), strict=True)), *of_parts


def attend(
    kernel: Kernel,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    parts: Sequence[tuple[Tensor, Tensor]] = (),
) -> Tensor:
    """Attention by one kernel, merged with results over other keys; differentiable in everything.

    Args:
        kernel: Which.
        q: [Tq, Hq, D] queries.
        k: [Tk, Hkv, D] keys; `Hq` is a multiple of `Hkv`.
        v: [Tk, Hkv, D] values.
        layout: Of the row, or of the part of it that is at hand.
        scale: Factor of the scores.
        window: A token sees keys less than this many positions before it; None sees all.
        softcap: Scores `s` become `softcap · tanh(s / softcap)`; None leaves them.
        parts: Results over keys outside the row: [Tq, Hq, D] outputs and [Tq, Hq] log-sum-exps.

    Returns:
        [Tq, Hq, D] in the dtype of `q`.
    """
    options = {"scale": scale, "window": window, "softcap": softcap}
    flat = [tensor for part in parts for tensor in part]
    result: Tensor = _ForestAttention.apply(kernel, layout, options, q, k, v, *flat)  # type: ignore[no-untyped-call]  # torch's own
    return result


def forest_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    backend: str = "sdpa",
) -> Tensor:
    """Attention of the tokens of a row to their own segments and its ancestors, differentiable.

    Args:
        q: [T, Hq, D] queries.
        k: [T, Hkv, D] keys; `Hq` is a multiple of `Hkv`.
        v: [T, Hkv, D] values.
        layout: Of the whole row.
        scale: Factor of the scores.
        window: A token sees keys less than this many positions before it; None sees all.
        softcap: Scores `s` become `softcap · tanh(s / softcap)`; None leaves them.
        sinks: [Hq] a score of each head that takes its share of the softmax and gives no value.
        backend: As `capability.choose_forest_attention` names it.

    Returns:
        [T, Hq, D] in the dtype of `q`.
    """
    if backend == "eager":
        visible = layout.mask(window, q.device)
        return forest_attention_reference(q, k, v, visible, scale=scale, softcap=softcap, sinks=sinks)
    if backend == "flex_attention":
        return flex.forward(q, k, v, layout, scale=scale, window=window, softcap=softcap, sinks=sinks)
    kernel: Kernel = cpu if q.device.type == "cpu" else _ON_CUDA[backend]
    parts = [] if sinks is None else [(q.new_zeros(1).expand_as(q), sinks.expand(len(q), -1))]
    return attend(kernel, q, k, v, layout, scale=scale, window=window, softcap=softcap, parts=parts)
