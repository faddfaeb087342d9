"""Rewards: a batch of completions in, one number a row out."""

from seqtune.registry import Registry

REWARDS = Registry(
    "rewards",
    {
        "math_equiv": "seqtune.rewards.specs:MathEquiv",
        "exact": "seqtune.rewards.specs:Exact",
        "format": "seqtune.rewards.specs:Format",
    },
)
