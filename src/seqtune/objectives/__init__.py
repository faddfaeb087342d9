"""Objectives: pure functions of tensors, found by name."""

from seqtune.registry import Registry

OBJECTIVES = Registry(
    "objectives",
    {
        "sft": "seqtune.objectives.specs:Sft",
        "dpo": "seqtune.objectives.specs:Dpo",
        "kto": "seqtune.objectives.specs:Kto",
        "reward": "seqtune.objectives.specs:Reward",
        "policy": "seqtune.objectives.specs:Policy",
        "grpo": "seqtune.objectives.specs:Grpo",
        "gspo": "seqtune.objectives.specs:Gspo",
        "dr_grpo": "seqtune.objectives.methods:DrGrpo",
        "dapo": "seqtune.objectives.methods:Dapo",
        "rloo": "seqtune.objectives.methods:Rloo",
        "reinforce_pp": "seqtune.objectives.methods:ReinforcePP",
        "gspo_token": "seqtune.objectives.methods:GspoToken",
        "ts_grpo": "seqtune.objectives.methods:TsGrpo",
        "espo_entropy": "seqtune.objectives.methods:EspoEntropy",
        "dagrpo": "seqtune.objectives.methods:DaGrpo",
        "tempo": "seqtune.objectives.methods:Tempo",
        "rank_grpo": "seqtune.objectives.methods:RankGrpo",
        "minirl": "seqtune.objectives.methods:MiniRl",
        "prefix_rft": "seqtune.objectives.methods:PrefixRft",
        "foresight": "seqtune.objectives.methods:Foresight",
        "searcher": "seqtune.objectives.methods:Searcher",
        "a_lol": "seqtune.objectives.methods:ALol",
        "a_lol_ref_free": "seqtune.objectives.methods:ALolRefFree",
        "a_lol_seq": "seqtune.objectives.methods:ALolSeq",
        "a_lol_kl": "seqtune.objectives.methods:ALolKl",
        "slic": "seqtune.objectives.methods:Slic",
    },
)
