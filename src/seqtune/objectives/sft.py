"""Supervised fine-tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seqtune.objectives.reduce import at_least_fp32, divided, masked_mean, masked_sum

if TYPE_CHECKING:
    from torch import Tensor


def sft_loss(
    logps: Tensor, mask: Tensor, *, aggregation: str = "token_mean", denominator: float | Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log-likelihood of the trained tokens.

        token_mean: L = -(1/N) Σ m log π     sequence_mean: L = -(1/B) Σ_i (1/n_i) Σ_t m log π

    Args:
        logps: log π of the target tokens, nats, any shape; `[B, T]`, a row a document, for `sequence_mean`.
        mask: m, the same shape: 1 on trained tokens. What `logps` holds elsewhere does not matter.
        aggregation: `token_mean`, or `sequence_mean`, where a document without a trained token counts for nothing.
        denominator: N, trained tokens of the whole optimiser step, all micro-batches and ranks; or B, documents with
            one.

    Returns:
        The scalar loss and no metrics: the loss is all there is to see.
    """
    log_pi = at_least_fp32(logps)
    total = masked_sum(log_pi, mask) if aggregation == "token_mean" else masked_mean(log_pi, mask, dim=1).sum()
    return divided(-total, denominator), {}
