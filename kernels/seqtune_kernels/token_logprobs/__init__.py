"""Log-probs of chosen tokens from hidden states and an LM head; logits are never built whole."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

import torch

from seqtune_kernels.capability import Unusable
from seqtune_kernels.token_logprobs.chunked import token_logprobs_chunked
from seqtune_kernels.token_logprobs.reference import TokenLogprobs, token_logprobs_reference
from seqtune_kernels.token_logprobs.scan import scan

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from seqtune_kernels.token_logprobs.scan import Scan

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
    fp32_head: bool = False,
    uniform: bool = False,
    chunk: int | None = None,
    implementation: str = "auto",
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
        fp32_head: Whether the matrix products with the head are computed in fp32 when the tensors are narrower.
        uniform: A promise that the gradients of all log-probs will be equal, as those of their mean are: the gradient
            of the weight is then taken in the forward pass, and no logit computed twice. A promise not kept costs
            time, never exactness.
        chunk: Tokens whose logits exist at a time; None takes what 66 MiB hold.
        implementation: `torch`; `triton`, which reads each chunk of logits in one kernel, on CUDA; or `auto`.

    Raises:
        ValueError: A target is not a token of the head.
        Unusable: The implementation asked for cannot run here.
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
        fp32_head=fp32_head,
        uniform=uniform,
        chunk=chunk,
        read=_reader(implementation, hidden),
    )


def _reader(asked: str, hidden: Tensor) -> Callable[..., Scan]:
    if asked not in ("auto", "torch", "triton"):
        raise Unusable(f"there is no implementation '{asked}' of token_logprobs (have: auto, torch, triton)")
    fault = _fault_of_triton(hidden)
    if asked == "triton" and fault is not None:
        raise Unusable(f"token_logprobs cannot use Triton here: {fault}")
    if asked == "torch" or (asked == "auto" and (fault is not None or hidden.device.type == "cpu")):
        return scan
    from seqtune_kernels.token_logprobs.scan_triton import scan_triton

    return scan_triton


def _fault_of_triton(hidden: Tensor) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if hidden.dtype == torch.float64:
        return "its kernel computes in float32, and the hidden states are float64"
    if hidden.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"it needs a CUDA device, and this is {hidden.device.type}"
    return None
