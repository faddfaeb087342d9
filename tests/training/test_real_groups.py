"""Five real answers to each question, of people and of four models, through every kind of objective on groups.

`pytest -s tests/training/test_real_groups.py` prints what was measured before and after.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from seqtune.config.reading import dump, read
from seqtune.report.run_folder import RunFolder
from seqtune.training.run import run_stage
from seqtune_cli.compose import compose

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WORDS = """
data=gsm8k_solutions data.limit=64 data.eval_size=16 packing.capacity=512 packing.on_overflow=drop
model.hidden_size=64 model.layers=2 model.heads=2 model.kv_heads=1 model.intermediate_size=128
train.max_steps=12 train.batch_size=4 train.log_every=4
"""
OWN = {
    "a_lol": "train.learning_rate=3e-3 objective.value_samples=1 objective.value_prompts=16 rollout.max_new_tokens=8",
    "dpo": "train.learning_rate=5e-4 data.pairs=all",
    "slic": "train.learning_rate=3e-3",
    "tempo": "train.learning_rate=1e-3",
}
SHOWN = ("eval/loss", "eval/a_lol_nll", "eval/a_lol_learnt_from", "eval/rewards_accuracy", "eval/rewards_margin",
         "eval/rank_accuracy", "eval/rank_best_logp", "eval/policy_approx_kl")  # fmt: skip


@pytest.mark.parametrize("name", list(OWN))
def test_real_answers_train(name: str, real_data: Callable[[str], Path], tmp_path: Path) -> None:
    words = [f"data.path={real_data('gsm8k_model_solutions.jsonl')}", *WORDS.split(), *OWN[name].split()]
    plan = read(compose([f"objective={name}", *words], "offline_tiny"))
    folder = RunFolder(tmp_path / "run")
    folder.create(dump(plan), {}, {})
    run_stage(plan, folder, 0, lambda event: None)
    start, *rows, end = folder.metrics()
    told = [f"{key.removeprefix('eval/')} {start[key]:.4g} -> {end[key]:.4g}" for key in SHOWN if key in start]
    losses = " ".join(f"{row['loss']:.4g}" for row in rows)
    print(f"\n{name}: {', '.join(told)}; losses {losses}; {rows[-1]['tokens/saving']:.0%} of padded tokens saved")
    assert rows[-1]["tokens/saving"] > (0.1 if name == "a_lol" else 0.4), "texts drawn one by one share less"
    if name == "a_lol":
        assert rows[0]["value/reward"] == 0, "the untrained model answers nothing right"
        assert 0.2 < start["eval/a_lol_learnt_from"] < 0.8
        assert end["eval/a_lol_nll"] < start["eval/a_lol_nll"] - 0.5
    elif name == "dpo":
        assert start["eval/loss"] == pytest.approx(0.693147, abs=1e-5)
        assert end["eval/rewards_margin"] > 0
    elif name == "slic":
        assert end["eval/rank_best_logp"] > start["eval/rank_best_logp"] + 50
        assert end["eval/loss"] < start["eval/loss"]
    else:
        assert start["eval/policy_ratio_mean"] == pytest.approx(1, abs=1e-5)
        assert end["eval/policy_approx_kl"] > 1e-5
