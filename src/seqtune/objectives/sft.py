"""Supervised fine-tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seqtune.objectives.reduce import at_least_fp32, divided, masked_sum

if TYPE_CHECKING:
    from torch import Tensor


def sft_loss(logps: Tensor, mask: Tensor, *, denominator: float | Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log-likelihood of the trained tokens.

        L = -(1/N) Σ m log π

    Args:
        logps: log π of the target tokens, nats, any shape.
        mask: m, the same shape: 1 on trained tokens. What `logps` holds elsewhere does not matter.
        denominator: N, trained tokens of the whole optimiser step, all micro-batches and ranks.

    Returns:
        The scalar loss and no metrics: the loss is all there is to see.
    """
    return divided(-masked_sum(at_least_fp32(logps), mask), denominator), {}
