"""Which weights are trained."""

from seqtune.registry import Registry

PEFTS = Registry(
    "pefts",
    {
        "full": "seqtune.peft.specs:Full",
        "lora": "seqtune.peft.specs:Lora",
    },
)
