"""A run folder as a run of two stages leaves it, without running one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from seqtune.config.provenance import provenance
from seqtune.config.reading import dump, read
from seqtune.report.events import Notice, RunStarted, StageStarted
from seqtune.report.run_folder import RunFolder
from seqtune_cli.compose import compose

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "<script>alert('sample')</script>"
"""What a model may well write."""


def fabricate(path: Path) -> RunFolder:
    """Metrics, samples, evaluations and events of 200 steps of SFT, then of 30 of the 40 steps of GSPO."""
    composed = compose(["train.seed=3"], "quickstart")
    plan = read(composed)
    names = [stage.name for stage in plan.stages]
    folder = RunFolder(path)
    environment = {"python": "3.12.1", "packages": {"torch": "2.13.0"}, "accelerators": []}
    folder.create(dump(plan), provenance(composed, names), environment)
    watch = folder.recording(lambda event: None)
    watch(RunStarted(str(path), tuple(names)))
    watch(StageStarted(names[0], 0, 2, 200))
    watch(Notice("3 rows were left out: empty text 3"))
    for step in range(0, 201, 2):
        noise = 0.08 * math.sin(step * 12.9898)
        row = {"stage": names[0], "step": step, "loss": 4.5 * math.exp(-step / 50) + 0.5 + noise}
        row |= {"tokens": step * 4096, "seconds": 0.2 * step + 0.1, "train/learning_rate": 1e-3 * (1 - step / 210)}
        row |= {"train/grad_norm": 1.5 + noise, "train/token_accuracy": 1 - 0.9 * math.exp(-step / 60)}
        folder.append_metrics(row)
        if step % 50 == 0:
            heldout = {"eval/loss": 4.5 * math.exp(-step / 55) + 0.62, "eval/token_accuracy": 1 - math.exp(-step / 60)}
            folder.append_metrics({key: row[key] for key in ("stage", "step", "tokens", "seconds")} | heldout)
    watch(StageStarted(names[1], 1, 2, 40))
    for step in range(1, 31):
        reward = 0.45 + 0.4 * (1 - math.exp(-step / 12)) + 0.04 * math.sin(step * 7.13)
        row = {"stage": names[1], "step": step, "loss": 0.001 * math.sin(step), "tokens": step * 3000}
        row |= {"tokens/computed": 1000, "tokens/padded": 4000, "tokens/saving": 0.75}
        row |= {"seconds": step * 1.5, "reward/mean": reward, "reward/std": 0.4, "policy/clip_high": 0.15}
        folder.append_metrics(row | {"policy/entropy": 1.2 - step / 60, "completions/mean_length": 40 - step / 3})
        group = [
            {
                "stage": names[1],
                "step": step,
                "prompt": f"Gus has {step} boxes of 4 cups. How many?\n",
                "completion": f"{step} * 4 = {step * 4 + member % 2}\n#### {step * 4 + member % 2}",
                "reward": 1.0 - member % 2,
                "advantage": (0.94, -0.94)[member % 2],
            }
            for member in range(4)
        ]
        group[3]["completion"] = HOSTILE
        folder.append_samples(group)
    for label, right in (("untrained", 0), (names[0], 271), (names[1], 402)):
        accuracy = {"value": right / 500, "low": max(0.0, right / 500 - 0.04), "high": right / 500 + 0.04, "n": 500}
        length = {"value": 38.2, "low": 37.5, "high": 39.0, "n": 500}
        record = {"label": label, "stage": names[0] if label == "untrained" else label, "eval": {"name": "greedy"}}
        folder.write_json(f"eval/{label}.json", record | {"metrics": {"accuracy": accuracy, "length": length}})
    return folder
