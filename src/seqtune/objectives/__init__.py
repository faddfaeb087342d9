"""Objectives: pure functions of tensors, found by name."""

from seqtune.registry import Registry

OBJECTIVES = Registry(
    "objectives",
    {
        "sft": "seqtune.objectives.specs.sft:Sft",
        "dpo": "seqtune.objectives.specs.dpo:Dpo",
        "kto": "seqtune.objectives.specs.kto:Kto",
        "reward": "seqtune.objectives.specs.reward:Reward",
        "policy": "seqtune.objectives.specs.policy:Policy",
        "grpo": "seqtune.objectives.specs.grpo:Grpo",
        "gspo": "seqtune.objectives.specs.gspo:Gspo",
        "dr_grpo": "seqtune.objectives.specs.dr_grpo:DrGrpo",
        "dapo": "seqtune.objectives.specs.dapo:Dapo",
        "rloo": "seqtune.objectives.specs.rloo:Rloo",
        "reinforce_pp": "seqtune.objectives.specs.reinforce_pp:ReinforcePP",
        "gspo_token": "seqtune.objectives.specs.gspo_token:GspoToken",
        "ts_grpo": "seqtune.objectives.specs.ts_grpo:TsGrpo",
        "espo_entropy": "seqtune.objectives.specs.espo_entropy:EspoEntropy",
        "dagrpo": "seqtune.objectives.specs.dagrpo:DaGrpo",
        "tempo": "seqtune.objectives.specs.tempo:Tempo",
        "rank_grpo": "seqtune.objectives.specs.rank_grpo:RankGrpo",
        "minirl": "seqtune.objectives.specs.minirl:MiniRl",
        "prefix_rft": "seqtune.objectives.specs.prefix_rft:PrefixRft",
        "foresight": "seqtune.objectives.specs.foresight:Foresight",
        "searcher": "seqtune.objectives.specs.searcher:Searcher",
        "a_lol": "seqtune.objectives.specs.a_lol:ALol",
        "a_lol_ref_free": "seqtune.objectives.specs.a_lol:ALolRefFree",
        "a_lol_seq": "seqtune.objectives.specs.a_lol:ALolSeq",
        "a_lol_kl": "seqtune.objectives.specs.a_lol:ALolKl",
        "slic": "seqtune.objectives.specs.slic:Slic",
    },
)
