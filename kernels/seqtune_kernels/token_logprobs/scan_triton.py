"""`scan` as one Triton kernel: a program reads its row once for the sums and once more for the residual."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqtune_kernels.token_logprobs.scan import Scan

BLOCK = 4096
"""Logits of a row that are read at a time."""


@triton.jit  # type: ignore[untyped-decorator]  # Triton is untyped
def _scan_row(
    logits: Any,
    targets: Any,
    logps: Any,
    spreads: Any,
    top1: Any,
    factors: Any,
    vocabulary: Any,
    temperature: Any,
    softcap: Any,
    CAPPED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SIZE: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * vocabulary
    target = tl.load(targets + row)
    # Running over blocks: the largest logit so far, Σ e^(x - largest) and Σ e^(x - largest) (x - largest).
    largest = float("-inf")
    total = 0.0
    weighed = 0.0
    chosen = 0.0
    for first in range(0, vocabulary, SIZE):
        places = first + tl.arange(0, SIZE)
        inside = places < vocabulary
        x = tl.load(start + places, mask=inside, other=0.0).to(tl.float32)
        if CAPPED:
            x = softcap * (2 / (1 + tl.exp(-2 * x / softcap)) - 1)  # tanh
        x = x / temperature
        seen = tl.where(inside, x, float("-inf"))
        new = tl.maximum(largest, tl.max(seen, 0))
        weights = tl.exp(seen - new)
        shift = tl.where(total > 0, largest - new, 0.0)  # -inf before the first block
        weighed = tl.exp(shift) * (weighed + shift * total) + tl.sum(weights * (x - new), 0)
        total = tl.exp(shift) * total + tl.sum(weights, 0)
        chosen += tl.sum(tl.where(places == target, x, 0.0), 0)
        largest = new
    tl.store(logps + row, chosen - largest - tl.log(total))
    tl.store(spreads + row, tl.log(total) - weighed / total)
    tl.store(top1 + row, chosen == largest)
    if RESIDUAL:
        factor = tl.load(factors + row) / temperature
        for first in range(0, vocabulary, SIZE):
            places = first + tl.arange(0, SIZE)
            inside = places < vocabulary
            x = tl.load(start + places, mask=inside, other=0.0).to(tl.float32)
            slope = factor
            if CAPPED:
                squashed = 2 / (1 + tl.exp(-2 * x / softcap)) - 1
                slope = (1 - squashed * squashed) * factor
                x = softcap * squashed
            residual = (tl.where(places == target, 1.0, 0.0) - tl.exp(x / temperature - largest) / total) * slope
            tl.store(start + places, residual.to(logits.dtype.element_ty), mask=inside)


def scan_triton(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    softcap: float | None,
    entropy: bool,
    factors: Tensor | None,
) -> Scan:
    """As `seqtune_kernels.token_logprobs.scan.scan`, computed in fp32; entropies come with the rest."""
    rows = len(logits)
    logps, spread = (torch.empty(rows, dtype=torch.float32, device=logits.device) for _ in range(2))
    top1 = torch.empty(rows, dtype=torch.bool, device=logits.device)
    if rows:
        _scan_row[(rows,)](
            logits,
            targets,
            logps,
            spread,
            top1,
            factors,
            logits.shape[1],
            temperature,
            softcap if softcap is not None else 1.0,
            CAPPED=softcap is not None,
            RESIDUAL=factors is not None,
            SIZE=min(BLOCK, triton.next_power_of_2(logits.shape[1])),
        )
    return Scan(logps, spread, top1)
