"""Writes the gradients of the first optimiser steps of tiny stages, alone or launched: `OUT PROCESSES`.

The rows of a step are the same for one process with twice the micro-batch as for two processes.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers import TrainerCallback

from seqtune.config.axes import DataSpec, EvalSpec, TinyModelSpec, TrainSpec
from seqtune.config.plan import Stage
from seqtune.data.sources import Examples
from seqtune.models.load import load_model, load_tokenizer
from seqtune.objectives.specs.a_lol import ALol
from seqtune.objectives.specs.dpo import Dpo
from seqtune.objectives.specs.kto import Kto
from seqtune.objectives.specs.reward import Reward
from seqtune.objectives.specs.sft import Sft
from seqtune.objectives.specs.slic import Slic
from seqtune.objectives.specs.tempo import Tempo
from seqtune.packing.specs import BestFit
from seqtune.parallel.launch import to_launcher
from seqtune.parallel.specs import Ddp, Single
from seqtune.peft.specs import Full, Lora
from seqtune.registry import load
from seqtune.report.run_folder import RunFolder
from seqtune.training.run import trainer_of
from seqtune.training.stage import StageRun, is_main

if TYPE_CHECKING:
    from seqtune.config.spec import ParallelSpec

STEPS = 2
CASES = (("sft", "full"), ("dpo", "full"), ("dpo", "lora"), ("kto", "full"), ("reward", "full"))
CASES += (("a_lol", "full"), ("a_lol", "lora"), ("slic", "full"), ("tempo", "full"))
OBJECTIVES: dict[str, Any] = {
    **{"sft": Sft, "dpo": Dpo, "kto": Kto, "reward": Reward, "slic": Slic, "tempo": Tempo},
    "a_lol": partial(ALol, value="group_mean"),
}
FROM_GROUPS = ("a_lol", "slic", "tempo")


class Capture(TrainerCallback):
    """Keeps the gradients each optimiser step sees."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        found = {}
        for name, weight in model.named_parameters():
            if weight.grad is not None:
                found[name.removeprefix("module.")] = weight.grad.clone()
        self.steps.append(found)


def examples(kind: str) -> Dataset:
    """Completions of many lengths, so that micro-batches hold different numbers of tokens."""
    rows = [
        {"prompt": f"{n} times {n} is ", "chosen": f"{n * n}" * (1 + n % 5), "rejected": f"{n}, I think" * (1 + n % 3)}
        for n in range(11)
    ]
    if kind in FROM_GROUPS:
        made = [[row["chosen"], row["rejected"], row["chosen"] + "!"][: 2 + n % 2] for n, row in enumerate(rows)]
        scores = [1.0, 0.0, 0.5]
        rows = [
            {"prompt": row["prompt"], "completions": texts, "scores": scores[: len(texts)]}
            for row, texts in zip(rows, made, strict=True)
        ]
    if kind == "sft":
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    return Dataset.from_list(rows)


def trace(out: Path, kind: str, peft: str, parallel: ParallelSpec) -> None:
    """Train `STEPS` steps of one case and write the gradients; the rows of metrics are written by the run."""
    out.mkdir(parents=True, exist_ok=True)
    stage = Stage(
        name=kind,
        model=TinyModelSpec(name="tiny", hidden_size=32, layers=2, heads=2, kv_heads=1, intermediate_size=64),
        data=DataSpec(path="none", format="groups" if kind in FROM_GROUPS else "text"),
        packing=BestFit(capacity=64),
        objective=OBJECTIVES[kind](),
        peft=Lora(rank=2) if peft == "lora" else Full(),
        parallel=parallel,
        train=TrainSpec(
            learning_rate=1e-4,
            batch_size=4 // parallel.processes,
            accumulate=2,
            max_steps=STEPS,
            max_grad_norm=1e9,
            eval_every=1,
        ),
        eval=EvalSpec(),
    )
    rows = examples(kind)
    run = StageRun(
        stage=stage,
        index=0,
        stages=1,
        folder=RunFolder(out),
        watch=lambda event: None,
        model=load_model(stage.model),
        tokenizer=load_tokenizer(stage.model),
        examples=Examples(train=rows.select(range(8)), heldout=rows.select(range(8, 11)), skipped={}),
        checkpoint=None,
    )
    made = load(trainer_of(stage))(run)
    capture = Capture()
    made.add_callback(capture)
    made.train()
    if is_main():
        torch.save(capture.steps, out / "gradients.pt")


def main(out: str, processes: str) -> None:
    """Trace every case."""
    parallel = Single() if processes == "1" else Ddp(processes=int(processes))
    for kind, peft in CASES:
        trace(Path(out) / f"{kind}-{peft}", kind, peft, parallel)


if __name__ == "__main__":
    with to_launcher():
        main(*sys.argv[1:])
