"""The slow, readable statement: all logits at once, any dtype up to fp64."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn.functional import linear

if TYPE_CHECKING:
    from torch import Tensor


class TokenLogprobs(NamedTuple):
    """What a head says of one chosen token for each of M hidden states."""

    logps: Tensor
    """[M] log-probs, nats, at least fp32."""
    entropy: Tensor | None
    """[M] entropy of the distributions, nats, without gradient; None when not asked for."""
    is_top1: Tensor
    """[M] bool, whether no token is likelier."""


def token_logprobs_reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    fp32_head: bool = False,
) -> TokenLogprobs:
    """As `seqtune_kernels.token_logprobs.token_logprobs`, with logits [M, V] in memory."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    if fp32_head:
        hidden, weight, bias = hidden.to(wide), weight.to(wide), bias.to(wide) if bias is not None else None
    logits = linear(hidden, weight, bias).to(wide)  # [M, V]
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logps = (logits / temperature).log_softmax(-1)  # [M, V]
    chosen = logps.gather(1, targets[:, None])[:, 0]
    with torch.no_grad():
        spread = -(logps.exp() * logps).sum(-1) if entropy else None
        is_top1 = chosen == logps.amax(-1) if len(logps) else targets.bool()
    return TokenLogprobs(chosen, spread, is_top1)
