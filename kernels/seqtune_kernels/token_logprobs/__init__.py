"""Log-probs of chosen tokens from hidden states and an LM head; logits are never built whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seqtune_kernels.token_logprobs.chunked import token_logprobs_chunked
from seqtune_kernels.token_logprobs.reference import TokenLogprobs, token_logprobs_reference

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TokenLogprobs", "token_logprobs", "token_logprobs_chunked", "token_logprobs_reference"]


def token_logprobs(
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
    """Log-prob of one chosen token for each hidden state.

    Args:
        hidden: [M, H] hidden states, differentiable.
        weight: [V, H] of the LM head, differentiable.
        targets: [M] int64 chosen tokens, in [0, V).
        bias: [V] of the LM head, differentiable.
        temperature: The logits are divided by it, after the soft-cap.
        softcap: c of `c tanh(logits / c)`.
        entropy: Whether to compute the entropies too.
        uniform: A promise that the gradients of all log-probs will be equal, as those of their mean are: the gradient
            of the weight is then taken in the forward pass, and no logit computed twice. A promise not kept costs
            time, never exactness.

    Raises:
        ValueError: A target is not a token of the head.
    """
    if len(targets) and not (int(targets.min()) >= 0 and int(targets.max()) < len(weight)):
        raise ValueError(f"targets are in [0, {len(weight)})")
    return token_logprobs_chunked(
        hidden,
        weight,
        targets,
        bias=bias,
        temperature=temperature,
        softcap=softcap,
        entropy=entropy,
        uniform=uniform,
    )
