"""Two processes take the gradient that one takes, on the very same rollouts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seqtune.parallel.launch import launch
from seqtune.report.run_folder import RunFolder

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "aggregation"), [("gspo", "sequence_mean"), ("grpo", "token_mean"), ("tempo", "token_mean")]
)
def test_two_processes_equal_one(
    objective: str, aggregation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    words = [objective, aggregation]
    subprocess.run(
        [sys.executable, "-m", "policy_processes", str(one), *words, "1"], check=True, env=os.environ, timeout=300
    )
    launch("policy_processes", [str(two), *words, "2"], processes=2, log=tmp_path / "log", receive=lambda message: None)

    single, double = (torch.load(folder / "gradients.pt", weights_only=True) for folder in (one, two))
    assert len(single) == len(double) == 2
    for ours, theirs in zip(double, single, strict=True):
        assert ours.keys() == theirs.keys()
        assert max(gradient.abs().max() for gradient in theirs.values()) > 1e-3, "there is something to compare"
        for name, gradient in theirs.items():
            assert (ours[name] - gradient).abs().max() <= 1e-6, name
    alone, together = ([row["completion"] for row in RunFolder(folder).samples()] for folder in (one, two))
    assert alone == together
    alone_rows, together_rows = (RunFolder(folder).metrics() for folder in (one, two))
    for key in ("reward/mean", "reward/std", "tokens", "completions/mean_length", "completions/clipped_ratio"):
        assert [row[key] for row in alone_rows] == pytest.approx([row[key] for row in together_rows], abs=1e-6), key
