"""Writes the gradients of two policy steps of each objective into folders of its name: `OUT PROCESSES`.

A step has the same 16 completions whatever the number of processes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
from policy_stage import stage, stage_run
from transformers import TrainerCallback

from seqtune.parallel.launch import SCRATCH, to_launcher
from seqtune.parallel.specs import Ddp, Single
from seqtune.training.policy import trainer


class Capture(TrainerCallback):
    """Keeps the gradients each optimiser step sees."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        self.steps.append(
            {name.removeprefix("module."): weight.grad.clone() for name, weight in model.named_parameters()}
        )


OBJECTIVES: list[dict[str, Any]] = [
    {"name": "gspo"},
    {"name": "grpo", "aggregation": "token_mean"},
    {"name": "tempo"},
    {"name": "prefix_rft", "prefix_keep": 0.5},
    {"name": "policy", "sampling_rounds": 4},
    {"name": "dagrpo", "anchors": True, "tau": 0.0},
]


def main(out: str, processes: str) -> None:
    """Train two steps of each; the first process writes gradients, metrics and samples."""
    for objective in OBJECTIVES:
        train(Path(out) / objective["name"], objective, int(processes))


def train(out: Path, objective: dict[str, Any], count: int) -> None:
    one = stage(
        objective={"beta": 0.0, **objective},
        reward={"pattern": r"(?s)([\x00-\x3f]|It is).*"},  # of demonstrations and a quarter of completions
        rollout={"max_new_tokens": 10},
        train={"batch_size": 8 // count, "accumulate": 2, "max_steps": 2, "learning_rate": 1e-4, "max_grad_norm": 1e9},
        parallel=Single() if count == 1 else Ddp(processes=count),
    )
    made = trainer(stage_run(out, one))
    made.eos_token_ids = [258, *range(0, 256, 8)]  # completions end early, at different lengths
    capture = Capture()
    made.add_callback(capture)
    made.train()
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save(capture.steps, out / "gradients.pt")


if __name__ == "__main__":
    with to_launcher() if SCRATCH in os.environ else contextlib.nullcontext():
        main(*sys.argv[1:])
