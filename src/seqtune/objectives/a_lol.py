"""Advantage-leftover-lunch: weighted likelihood of scored texts that exist already, without rollouts.

Shapes: `B` texts, `T` tokens of the padded text. Symbols: nll = -log π, R the reward, V the reference model's expected
reward for the prompt, A = max(R - V, 0).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from seqtune.objectives.policy import LOG_RATIO_BOUND
from seqtune.objectives.reduce import at_least_fp32, divided, masked, masked_sum, sequence_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def leftover_advantages(rewards: Tensor, values: Tensor) -> Tensor:
    """A_i = max(R_i - V(x_i), 0), `[B]`: a text worse than what the reference model does anyway teaches nothing.

    Raises:
        ValueError: No text is better than expected, so there is nothing to learn.
    """
    advantages = (rewards - values).clamp(min=0)
    if not bool((advantages > 0).any()):
        raise ValueError("no text earns more than the reference model is expected to: every advantage is 0")
    return advantages


def priorities(advantages: Tensor) -> Tensor:
    """Probability of drawing each text, proportional to max(A, 0), `[B]`."""
    positive = advantages.clamp(min=0)
    return positive / positive.sum().clamp(min=torch.finfo(positive.dtype).tiny)


def a_lol_loss(
    logps: Tensor,
    ref_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    ratio: str,
    epsilon: float = 0.9,
    beta: float = 0.0,
    denominator: float | Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Advantage-weighted likelihood, A-LoL (https://arxiv.org/abs/2305.14718).

        L = (1/B) Σ_i A_i Σ_t m c nll_{i,t} + β Σ_t m (log π - log π_ref)
        sequence: c_i = clip(exp(Σ_t m (log π - log π_ref)), 1-ε, 1+ε)     token: of each token     none: c = 1

    Args:
        logps: log π, `[B, T]`; the only input that carries a gradient.
        ref_logps: log π_ref, `[B, T]`.
        advantages: A, `[B]`; negative ones count as 0.
        mask: `[B, T]`.
        ratio: `sequence` (A-LoL), `token` (A-LoL sequence, so called because tokens are multiplied along it) or `none`
            (A-LoL without reference).
        epsilon: ε, the range of c.
        beta: β of the KL form; it goes with `ratio="none"`.
        denominator: Texts of the whole step.

    Returns:
        The scalar loss and metrics. No gradient passes through c.
    """
    live = mask.bool()
    log_pi = masked(at_least_fp32(logps), live)
    q = log_pi - masked(ref_logps.to(log_pi.dtype), live)
    a = advantages.to(log_pi.dtype)
    a = masked(a, live.any(1)).clamp(min=0).unsqueeze(1)  # [B, 1]
    if ratio == "sequence":
        log_c = masked_sum(q, live, dim=1).unsqueeze(1)
    elif ratio == "token":
        log_c = q
    elif ratio == "none":
        log_c = torch.zeros_like(q)
    else:
        raise KeyError(ratio)
    c = log_c.detach().clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
    cut = c.clamp(1 - epsilon, 1 + epsilon) if ratio != "none" else c
    total = masked_sum(-a * cut * log_pi, live) + beta * masked_sum(q, live)
    metrics = {
        "a_lol/advantage": a.mean(),
        "a_lol/learnt_from": (a > 0).to(a.dtype).mean(),
        "a_lol/ratio_mean": sequence_mean(c.expand_as(q), live),
        "a_lol/clipped": sequence_mean((cut != c).to(q.dtype).expand_as(q), live),
        "a_lol/nll": sequence_mean(-log_pi, live),
    }
    return divided(total, denominator), {key: value.detach() for key, value in metrics.items()}


def fit_value(
    features: Tensor,
    rewards: Tensor,
    *,
    largest: float = 1.0,
    hidden: int = 64,
    steps: int = 500,
    learning_rate: float = 1e-2,
    seed: int = 0,
) -> torch.nn.Module:
    """A value head V(x) = R_max σ(MLP(x)), fitted by least squares to the rewards of the reference's own completions.

    Args:
        features: Prompts as vectors, `[N, D]`: pooled hidden states of the frozen reference model.
        rewards: Of a completion that the reference model wrote for the prompt, in [0, `largest`], `[N]`. Not those of
            the data set: V is what the reference is expected to earn.
        largest: R_max.
        hidden: Width of the hidden layer.
        steps: Full-batch AdamW steps.
        learning_rate: Of AdamW.
        seed: Of the initial weights.

    Returns:
        A module `[N, D] -> [N]`.

    Raises:
        ValueError: Rewards outside [0, `largest`], or as many features as rewards are not given.
    """
    if len(features) != len(rewards):
        raise ValueError(f"{len(features)} prompts for {len(rewards)} rewards")
    if len(rewards) and (float(rewards.min()) < 0 or float(rewards.max()) > largest):
        raise ValueError(f"rewards leave [0, {largest}]: scale them, or set the largest reward")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = ValueHead(features.shape[1], hidden, largest)
    optimiser = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=0.0)
    x, y = at_least_fp32(features.detach()).float(), rewards.float()
    with torch.enable_grad():
        for _ in range(steps):
            optimiser.zero_grad()
            (head(x) - y).square().mean().backward()
            optimiser.step()
    return head.requires_grad_(False)


class ValueHead(torch.nn.Module):
    """V(x) = R_max σ(MLP(x))."""

    def __init__(self, width: int, hidden: int, largest: float) -> None:
        super().__init__()
        layers: Sequence[torch.nn.Module] = (
            torch.nn.Linear(width, hidden),
            torch.nn.Tanh(),
            torch.nn.Linear(hidden, 1),
        )
        self.layers = torch.nn.Sequential(*layers)
        self.largest = largest

    def forward(self, features: Tensor) -> Tensor:
        """`[N, D] -> [N]`."""
        value: Tensor = self.largest * torch.sigmoid(self.layers(features)).squeeze(-1)
        return value
