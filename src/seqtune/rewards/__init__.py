"""Rewards: a batch of completions in, one number a row out."""

from seqtune.registry import Registry

REWARDS = Registry(
    "rewards",
    {
        "math_equiv": "seqtune.rewards.specs:MathEquiv",
        "exact": "seqtune.rewards.specs:Exact",
        "f1": "seqtune.rewards.specs:F1",
        "format": "seqtune.rewards.specs:Format",
        "code_exec": "seqtune.rewards.specs:CodeExec",
        "list_ndcg": "seqtune.rewards.specs:ListNdcg",
        "cosine_length": "seqtune.rewards.specs:CosineLength",
        "soft_overlong": "seqtune.rewards.specs:SoftOverlong",
        "length_budget": "seqtune.rewards.specs:LengthBudget",
        "repetition": "seqtune.rewards.specs:Repetition",
        "reward_model": "seqtune.rewards.specs:RewardModel",
        "combined": "seqtune.rewards.specs:Combined",
    },
)
