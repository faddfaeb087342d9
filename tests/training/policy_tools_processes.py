"""Two steps of the searcher whose completions call a tool, in one process or several: `OUT PROCESSES TOOL`."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import torch
from policy_processes import Capture
from policy_stage import stage, stage_run
from test_policy_tools import scripted

from seqtune.parallel.launch import SCRATCH, to_launcher
from seqtune.parallel.specs import Ddp, Single
from seqtune.training.policy import trainer


def main(out: str, processes: str, tool: str) -> None:
    """Train; the first process writes gradients, metrics and samples."""
    count = int(processes)
    mine = {"name": tool, "open": "<up>", "close": "</up>", "result_open": "[", "result_close": "]"}
    one = stage(
        objective={"name": "searcher", "beta": 0.0, "group_size": 4},
        reward={"pattern": r"(?s)[\x00-\x7f].*"},
        rollout={"max_new_tokens": 60, "tools": {"up": mine}},
        train={"batch_size": 8 // count, "accumulate": 2, "max_steps": 2, "learning_rate": 1e-4, "max_grad_norm": 1e9},
        parallel=Single() if count == 1 else Ddp(processes=count),
    )
    made = trainer(stage_run(Path(out), one))
    scripted(made)
    capture = Capture()
    made.add_callback(capture)
    made.train()
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save(capture.steps, Path(out) / "gradients.pt")


if __name__ == "__main__":
    with to_launcher() if SCRATCH in os.environ else contextlib.nullcontext():
        main(*sys.argv[1:])
