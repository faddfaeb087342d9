"""Randomness that depends on what is drawn, not on when: a hash of (seed, step, vocabulary index)."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

# The finaliser of SplitMix64 (https://doi.org/10.1145/2714064.2660195), its constants as signed 64-bit integers.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def seed_of(*parts: int) -> int:
    """A 63-bit seed from integers such as (run seed, generation step, prompt, completion)."""
    words = b"".join(part.to_bytes(16, "little", signed=True) for part in parts)
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little") >> 1


def gumbel(seeds: Tensor, step: int, size: int) -> Tensor:
    """Standard Gumbel noise, the same numbers for the same `(seed, step, index)` on every device and in every batch.

    Args:
        seeds: `[B]` int64, one a row.
        step: Position of the token within its completion, from 0.
        size: V, size of the vocabulary.

    Returns:
        `[B, V]` float32.
    """
    rows = _mix(seeds + torch.full_like(seeds, step + 1) * _GOLDEN)  # [B]
    indices = torch.arange(1, size + 1, device=seeds.device) * _GOLDEN  # [V]
    bits = _mix(rows.unsqueeze(1) ^ _mix(indices)).bitwise_and_(0xFFFFFFFF)  # [B, V], 32 random bits
    # -log1p(-u) keeps full relative precision for small u, which is where the large (winning) noise comes from.
    uniform = bits.float().add_(0.5).mul_(2.0**-32).clamp_(max=1 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()  # -log(-log1p(-u)), in place: [B, V] is large


def _mix(x: Tensor) -> Tensor:
    x = _shifted(x, 30).bitwise_xor_(x).mul_(_MIX_1)  # int64 products wrap around
    x = _shifted(x, 27).bitwise_xor_(x).mul_(_MIX_2)
    return _shifted(x, 31).bitwise_xor_(x)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """`>>` that fills with zeros, where torch's keeps the sign; a new tensor."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)
