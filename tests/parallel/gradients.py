"""Writes the gradients of the first optimiser steps of a tiny stage: `OUT KIND PLAN PROCESSES PEFT`, alone or launched.

The rows of a step are the same for one process with twice the micro-batch as for two processes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback

from seqtune.config.axes import DataSpec, EvalSpec, TinyModelSpec, TrainSpec
from seqtune.config.plan import Stage
from seqtune.data.sources import Examples
from seqtune.models.load import load_model, load_tokenizer
from seqtune.objectives.specs import Dpo, Reward, Sft
from seqtune.packing.specs import BestFit
from seqtune.parallel.launch import SCRATCH, to_launcher
from seqtune.parallel.specs import Ddp, Fsdp2, Single
from seqtune.peft.specs import Full, Lora
from seqtune.report.run_folder import RunFolder
from seqtune.training.common import StageRun

STEPS = 2


class Capture(TrainerCallback):
    """Keeps the gradients each optimiser step sees."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        found = {}
        for name, weight in model.named_parameters():
            if weight.grad is not None:
                gradient = weight.grad.full_tensor() if hasattr(weight.grad, "full_tensor") else weight.grad
                found[name.removeprefix("module.")] = gradient.clone()
        self.steps.append(found)


def examples(kind: str) -> Dataset:
    """Completions of many lengths, so that micro-batches hold different numbers of tokens."""
    rows = [
        {"prompt": f"{n} times {n} is ", "chosen": f"{n * n}" * (1 + n % 5), "rejected": f"{n}, I think" * (1 + n % 3)}
        for n in range(11)
    ]
    if kind == "sft":
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    return Dataset.from_list(rows)


def main(out: str, kind: str, plan: str, processes: str, peft: str) -> None:
    """Train `STEPS` steps and write the gradients and the metrics' rows."""
    count = int(processes)
    parallel = Single() if count == 1 else {"ddp": Ddp, "fsdp2": Fsdp2}[plan](processes=count)
    stage = Stage(
        name=kind,
        model=TinyModelSpec(name="tiny", hidden_size=32, layers=2, heads=2, kv_heads=1, intermediate_size=64),
        data=DataSpec(path="none"),
        packing=BestFit(capacity=64),
        objective={"sft": Sft, "dpo": Dpo, "reward": Reward}[kind](),
        peft=Lora(rank=2) if peft == "lora" else Full(),
        parallel=parallel,
        train=TrainSpec(
            learning_rate=1e-4, batch_size=4 // count, accumulate=2, max_steps=STEPS, max_grad_norm=1e9, eval_every=1
        ),
        eval=EvalSpec(),
    )
    rows = examples(kind)
    run = StageRun(
        stage=stage,
        index=0,
        stages=1,
        folder=RunFolder(Path(out)),
        watch=lambda event: None,
        model=load_model(stage.model),
        tokenizer=load_tokenizer(stage.model),
        examples=Examples(train=rows.select(range(8)), heldout=rows.select(range(8, 11)), skipped={}),
        checkpoint=None,
    )
    if kind == "sft":
        from seqtune.training.sft import trainer
    elif kind == "dpo":
        from seqtune.training.preference import trainer
    else:
        from seqtune.training.reward import trainer
    made = trainer(run)
    capture = Capture()
    made.add_callback(capture)
    made.train()
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save(capture.steps, Path(out) / "gradients.pt")


if __name__ == "__main__":
    with to_launcher() if SCRATCH in os.environ else contextlib.nullcontext():
        main(*sys.argv[1:])
