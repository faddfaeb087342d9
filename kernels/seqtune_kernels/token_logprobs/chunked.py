"""A few tokens' logits at a time, in PyTorch, on any device.

With unit gradients, ∂ log p(y) / ∂ hidden = (W[y] - Σ_v p_v W[v]) / temperature does not depend on what follows, so the
forward pass takes it while the logits are at hand. The gradient of the weight, Σ_m g_m (1[y_m] - p_m) h_mᵀ, does: it
needs the logits again, unless every g_m is the same number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from seqtune_kernels.token_logprobs.reference import TokenLogprobs

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK_BYTES = 40 << 20
"""Memory of the logits of a chunk; two such buffers exist at a time."""


def _chunks(rows: int, vocabulary: int, wide: torch.dtype) -> Iterator[slice]:
    size = max(1, CHUNK_BYTES // (vocabulary * wide.itemsize))
    size -= size % 16 if size > 16 else 0
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


class _Head:
    """The head and what follows it up to the softmax."""

    def __init__(self, weight: Tensor, bias: Tensor | None, temperature: float, softcap: float | None) -> None:
        self.weight, self.bias, self.temperature, self.softcap = weight, bias, temperature, softcap
        self.wide = torch.promote_types(weight.dtype, torch.float32)

    def logits(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """[m, V] logits over the temperature, and the derivative of the soft-cap where there is one."""
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias).to(self.wide)
        slope = None
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_()
            slope = 1 - logits.square()
            logits.mul_(self.softcap)
        return logits.div_(self.temperature) if self.temperature != 1.0 else logits, slope

    def residual(self, logits: Tensor, lse: Tensor, targets: Tensor, slope: Tensor | None) -> Tensor:
        """[m, V] ∂ log p(y) / ∂ (raw logits), in the memory of `logits`."""
        residual = logits.sub_(lse[:, None]).exp_().neg_()  # -p
        rows = torch.arange(len(targets), device=targets.device)
        residual[rows, targets] += 1.0
        if slope is not None:
            residual.mul_(slope)
        return residual.div_(self.temperature) if self.temperature != 1.0 else residual


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        softcap: float | None,
        entropy: bool,
        uniform: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        head = _Head(weight, bias, temperature, softcap)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        speculate = uniform and (need_weight or need_bias)
        lse = hidden.new_empty(len(hidden), dtype=head.wide)
        logps, spread, top1 = torch.empty_like(lse), torch.empty_like(lse), torch.empty_like(lse, dtype=torch.bool)
        unit_hidden = hidden.new_empty(hidden.shape, dtype=head.wide) if need_hidden else None
        unit_weight = weight.new_zeros(weight.shape, dtype=head.wide) if speculate and need_weight else None
        unit_bias = weight.new_zeros(len(weight), dtype=head.wide) if speculate and need_bias else None
        for rows in _chunks(len(hidden), len(weight), head.wide):
            logits, slope = head.logits(hidden[rows])
            lse[rows] = logits.logsumexp(-1)
            chosen = logits.gather(1, targets[rows, None])[:, 0]
            logps[rows] = chosen - lse[rows]
            top1[rows] = chosen == logits.amax(-1)
            if entropy:
                weighed = (logits - lse[rows, None]).exp_().mul_(logits).sum(-1)  # E[logit]
                spread[rows] = lse[rows] - weighed
            if need_hidden or speculate:
                residual = head.residual(logits, lse[rows], targets[rows], slope)
                _add(residual, hidden[rows], weight, rows, unit_hidden, unit_weight, unit_bias)
        ctx.save_for_backward(hidden, weight, bias, targets, lse, unit_hidden, unit_weight, unit_bias)
        ctx.settings = temperature, softcap
        ctx.mark_non_differentiable(spread, top1)
        return logps, spread, top1

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, lse, unit_hidden, unit_weight, unit_bias = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        head = _Head(weight, bias, *ctx.settings)
        grad = grads[0].to(head.wide)
        grad_hidden = (unit_hidden * grad[:, None]).to(hidden.dtype) if need_hidden else None
        grad_weight = grad_bias = None
        if need_weight or need_bias:
            if (unit_weight is not None or unit_bias is not None) and len(grad) and bool((grad == grad[0]).all()):
                grad_weight = unit_weight * grad[0] if need_weight else None
                grad_bias = unit_bias * grad[0] if need_bias else None
            else:
                grad_weight = weight.new_zeros(weight.shape, dtype=head.wide) if need_weight else None
                grad_bias = weight.new_zeros(len(weight), dtype=head.wide) if need_bias else None
                for rows in _chunks(len(hidden), len(weight), head.wide):
                    logits, slope = head.logits(hidden[rows])
                    residual = head.residual(logits, lse[rows], targets[rows], slope).mul_(grad[rows, None])
                    _add(residual, hidden[rows], weight, rows, None, grad_weight, grad_bias)
            grad_weight = grad_weight.to(weight.dtype) if grad_weight is not None else None
            grad_bias = grad_bias.to(bias.dtype) if grad_bias is not None else None
        return grad_hidden, grad_weight, grad_bias, None, None, None, None, None


def _add(
    residual: Tensor,
    hidden: Tensor,
    weight: Tensor,
    rows: slice,
    into_hidden: Tensor | None,
    into_weight: Tensor | None,
    into_bias: Tensor | None,
) -> None:
    """A chunk's share of each gradient that is wanted. Half-precision products are summed in fp32 over the chunks."""
    if into_bias is not None:
        into_bias += residual.sum(0)
    narrow = residual.to(weight.dtype)
    if into_hidden is not None:
        into_hidden[rows] = narrow @ weight
    if into_weight is not None:
        if weight.dtype == into_weight.dtype:
            into_weight.addmm_(narrow.T, hidden)
        else:
            into_weight += narrow.T @ hidden


def token_logprobs_chunked(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    uniform: bool = False,
) -> TokenLogprobs:
    """As `seqtune_kernels.token_logprobs.token_logprobs`."""
    logps, spread, is_top1 = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]  # torch's own
        hidden, weight, bias, targets, temperature, softcap, entropy, uniform
    )
    return TokenLogprobs(logps, spread if entropy else None, is_top1)
