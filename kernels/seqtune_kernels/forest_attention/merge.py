"""Merging partial attention results by their log-sum-exp (Hydragen, arXiv 2402.05099)."""

from __future__ import annotations

import torch
from torch import Tensor


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax attention over two disjoint sets of keys from the results over each.

    Associative and commutative; a part that saw no key has `lse = -inf` and any finite output.

    Args:
        out_a, out_b: [..., D] fp32 (or fp64) outputs, each normalised over its own keys.
        lse_a, lse_b: [...] log-sum-exp of the scaled scores of each.

    Returns:
        The merged output and log-sum-exp.
    """
    weight = torch.sigmoid(lse_b - lse_a).nan_to_num(0.0)  # -inf - -inf: neither saw a key, and either output will do
    return torch.lerp(out_a, out_b, weight.unsqueeze(-1)), torch.logaddexp(lse_a, lse_b)
