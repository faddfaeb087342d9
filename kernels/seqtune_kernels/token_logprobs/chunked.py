"""A few tokens' logits at a time, in memory used over and over, on any device.

With unit gradients, ∂ log p(y) / ∂ hidden = (W[y] - Σ_v p_v W[v]) / temperature does not depend on what follows, so the
forward pass takes it while the logits are at hand. The gradient of the weight, Σ_m g_m (1[y_m] - p_m) h_mᵀ, does: it
needs the logits again, unless every g_m is the same number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from seqtune_kernels.token_logprobs.reference import TokenLogprobs
from seqtune_kernels.token_logprobs.scan import Scan, scan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHUNK_BYTES = 66 << 20
"""Memory of a chunk's logits: 112 tokens of a vocabulary of 150,000."""
TILE_BYTES = 16 << 20
"""Memory of the rows of the head that are cast to a wider dtype at a time."""


class _Head(NamedTuple):
    """The head, what follows it, and how its logits are computed and read."""

    weight: Tensor
    bias: Tensor | None
    temperature: float
    softcap: float | None
    dtype: torch.dtype
    """Of the matrix products."""
    chunk: int | None
    read: Callable[..., Scan]

    @property
    def wide(self) -> torch.dtype:
        """In which everything after the matrix product is computed, and gradients are summed."""
        return torch.promote_types(self.dtype, torch.float32)

    def chunks(self, hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Which tokens, and [m, V] memory for their logits, the same each time."""
        size = self.chunk or max(1, CHUNK_BYTES // (len(self.weight) * self.dtype.itemsize))
        size = min(size - size % 16 if size > 16 and self.chunk is None else size, len(hidden))
        memory = hidden.new_empty(size, len(self.weight), dtype=self.dtype)
        for start in range(0, len(hidden), size or 1):
            rows = slice(start, min(start + size, len(hidden)))
            yield rows, memory[: rows.stop - start]

    def tiles(self, dtype: torch.dtype) -> Iterator[slice]:
        """Rows of the head: all of them, unless they have to be cast to `dtype`."""
        rows = len(self.weight)
        size = rows if self.weight.dtype == dtype else max(1, TILE_BYTES // (self.weight.shape[1] * dtype.itemsize))
        for start in range(0, rows, size):
            yield slice(start, min(start + size, rows))

    def scan(self, hidden: Tensor, targets: Tensor, memory: Tensor, entropy: bool, factors: Tensor | None) -> Scan:
        """What is found of [m, H] hidden states; where there are factors, `memory` then holds the residual."""
        hidden = hidden.to(self.dtype)
        for tile in self.tiles(self.dtype):
            torch.mm(hidden, self.weight[tile].to(self.dtype).T, out=memory[:, tile])
        if self.bias is not None:
            memory += self.bias
        options = {"temperature": self.temperature, "softcap": self.softcap}
        return self.read(memory, targets, **options, entropy=entropy, factors=factors)

    def add(self, residual: Tensor, hidden: Tensor, to: _Sums, rows: slice) -> None:
        """A chunk's share of each gradient that is wanted."""
        if to.bias is not None:
            to.bias.add_(residual.sum(0, dtype=to.bias.dtype))
        if to.hidden is not None:
            for tile in self.tiles(self.dtype):
                _add_product(to.hidden[rows], residual[:, tile], self.weight[tile].to(self.dtype))
        if to.weight is not None:
            hidden = hidden.to(self.dtype)
            for tile in self.tiles(to.weight.dtype):
                _add_product(to.weight[tile], residual[:, tile].T, hidden)


class _Sums(NamedTuple):
    """Gradients that are being summed, at least fp32; None for those that nobody wants."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def _add_product(to: Tensor, a: Tensor, b: Tensor) -> None:
    """`to += a @ b`. A product rounded to half precision before it is summed would bias the sum."""
    if a.dtype == to.dtype:
        to.addmm_(a, b)
    elif a.device.type == "cuda":
        torch.addmm(to, a, b, out_dtype=to.dtype, out=to)
    else:
        to.addmm_(a.to(to.dtype), b.to(to.dtype))


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        entropy, uniform = options.pop("entropy"), options.pop("uniform")
        head = _Head(weight, bias, **options)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        new: dict[str, Any] = {"dtype": head.wide, "device": hidden.device}
        logps, spread = (torch.empty(len(hidden), **new) for _ in range(2))
        top1 = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
        unit = _Sums(
            torch.zeros(hidden.shape, **new) if need_hidden else None,
            torch.zeros(weight.shape, **new) if uniform and need_weight else None,
            torch.zeros(len(weight), **new) if uniform and need_bias else None,
        )
        wanted = any(x is not None for x in unit)
        for rows, memory in head.chunks(hidden):
            ones = torch.ones(len(memory), **new) if wanted else None
            logps[rows], spread[rows], top1[rows] = head.scan(hidden[rows], targets[rows], memory, entropy, ones)
            if wanted:
                head.add(memory, hidden[rows], unit, rows)
        ctx.save_for_backward(hidden, weight, bias, targets, unit.hidden)
        ctx.taken = unit[1:]
        ctx.options = options
        ctx.mark_non_differentiable(spread, top1)
        return logps, spread, top1

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, unit_hidden = ctx.saved_tensors
        head = _Head(weight, bias, **ctx.options)
        taken, ctx.taken = ctx.taken, (None, None)  # given away here: a second backward pass computes them anew
        grad = grads[0].to(head.wide)
        _, need_weight, need_bias = ctx.needs_input_grad[:3]
        taken_at_all = any(x is not None for x in taken)
        if taken_at_all and len(grad) and bool((grad == grad[0]).all()):
            sums = _Sums(None, *(x.mul_(grad[0]) if x is not None else None for x in taken))
        else:
            del taken
            new: dict[str, Any] = {"dtype": head.wide, "device": hidden.device}
            sums = _Sums(
                None,
                torch.zeros(weight.shape, **new) if need_weight else None,
                torch.zeros(len(weight), **new) if need_bias else None,
            )
            if need_weight or need_bias:
                for rows, memory in head.chunks(hidden):
                    head.scan(hidden[rows], targets[rows], memory, False, grad[rows])
                    head.add(memory, hidden[rows], sums, rows)
        found = (
            (unit_hidden * grad[:, None]).to(hidden.dtype) if unit_hidden is not None else None,
            sums.weight.to(weight.dtype) if sums.weight is not None else None,
            sums.bias.to(bias.dtype) if sums.bias is not None else None,
        )
        return *found, None, None


def token_logprobs_chunked(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    fp32_head: bool = False,
    uniform: bool = False,
    chunk: int | None = None,
    read: Callable[..., Scan] = scan,
) -> TokenLogprobs:
    """As `seqtune_kernels.token_logprobs.token_logprobs`; `read` is `scan` or a faster form of it."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and not fp32_head and hidden.dtype != torch.float64:
        narrow = torch.get_autocast_dtype(device)
        hidden, weight, bias = hidden.to(narrow), weight.to(narrow), bias.to(narrow) if bias is not None else None
    if not torch.is_grad_enabled():  # else the forward pass takes gradients that nobody will ask for
        hidden, weight, bias = hidden.detach(), weight.detach(), bias.detach() if bias is not None else None
    options = {
        "temperature": temperature,
        "softcap": softcap,
        "entropy": entropy,
        "uniform": uniform,
        "dtype": torch.promote_types(hidden.dtype, torch.float32) if fp32_head else hidden.dtype,
        "chunk": chunk,
        "read": read,
    }
    with torch.autocast(device, enabled=False):
        logps, spread, is_top1 = _TokenLogprobs.apply(hidden, weight, bias, targets, options)  # type: ignore[no-untyped-call]  # torch's own
    return TokenLogprobs(logps, spread if entropy else None, is_top1)
