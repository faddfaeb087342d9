"""Objectives: pure functions of tensors, found by name."""

from seqtune.registry import Registry

OBJECTIVES = Registry(
    "objectives",
    {
        "sft": "seqtune.objectives.specs:Sft",
        "dpo": "seqtune.objectives.specs:Dpo",
        "reward": "seqtune.objectives.specs:Reward",
        "policy": "seqtune.objectives.specs:Policy",
        "grpo": "seqtune.objectives.specs:Grpo",
        "gspo": "seqtune.objectives.specs:Gspo",
    },
)
