"""A policy stage small enough for a test: stages, runs and a reward that needs no maths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datasets import Dataset

from seqtune.config.plan import Stage
from seqtune.data.sources import Examples
from seqtune.models.load import load_model, load_tokenizer
from seqtune.objectives import OBJECTIVES
from seqtune.parallel.specs import Single
from seqtune.peft import PEFTS
from seqtune.report.run_folder import RunFolder
from seqtune.rewards import REWARDS
from seqtune.training.recorder import complete_checkpoints
from seqtune.training.stage import StageRun, stage_folder

if TYPE_CHECKING:
    from pathlib import Path

PROMPTS = [f"{a} + {b} = ?\n" for a in range(4) for b in range(4)]
SUMS = [f"It is {a + b}." for a in range(4) for b in range(4)]


def stage(**changes: Any) -> Stage:
    """`group.field` values as nested mappings over the smallest sensible policy stage."""
    values: dict[str, dict[str, Any]] = {
        "model": {"name": "tiny", "hidden_size": 16, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate_size": 32},
        "data": {"name": "template_math"},
        "objective": {"name": "gspo", "group_size": 4},
        "peft": {"name": "full"},
        "rollout": {"max_new_tokens": 6},
        "reward": {"name": "format", "pattern": "[ -~]*"},
        "train": {"batch_size": 8, "max_steps": 3, "learning_rate": 1e-3},
    }
    parallel = changes.pop("parallel", Single())
    for group, fields in changes.items():
        values[group] = values[group] | fields
    return Stage.model_validate(
        {
            "name": "policy",
            "packing": {"name": "none"},
            "parallel": parallel,
            "eval": {},
            **values,
            "objective": OBJECTIVES.load(values["objective"]["name"]).model_validate(values["objective"]),
            "peft": PEFTS.load(values["peft"]["name"]).model_validate(values["peft"]),
            "reward": REWARDS.load(values["reward"]["name"]).model_validate(values["reward"]),
        }
    )


def stage_run(folder: Path, one: Stage, *, watch: Any = None) -> StageRun:
    """A run of one stage in `folder`, going on from its last complete checkpoint."""
    run_folder = RunFolder(folder)
    run_folder.path.mkdir(parents=True, exist_ok=True)
    output = stage_folder(run_folder, one.name)
    output.mkdir(parents=True, exist_ok=True)
    rows = Dataset.from_dict({"prompt": PROMPTS, "answer": [str(i) for i in range(len(PROMPTS))], "completion": SUMS})
    saved = complete_checkpoints(output)
    return StageRun(
        stage=one,
        index=0,
        stages=1,
        folder=run_folder,
        watch=watch or (lambda event: None),
        model=load_model(one.model),
        tokenizer=load_tokenizer(one.model),
        examples=Examples(rows, rows.select([]), {}),
        checkpoint=saved[-1] if saved else None,
    )
