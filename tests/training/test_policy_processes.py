"""Two processes take the gradient that one takes, on the very same rollouts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from policy_processes import OBJECTIVES

from seqtune.parallel.launch import launch
from seqtune.report.run_folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """What one process wrote, and what two did."""
    place = tmp_path_factory.mktemp("processes")
    one, two = place / "one", place / "two"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)
        patch.setenv("OMP_NUM_THREADS", "1")
        command = [sys.executable, "-m", "policy_processes", str(one), "1"]
        subprocess.run(command, check=True, env=os.environ, timeout=300)
        launch("policy_processes", [str(two), "2"], processes=2, log=place / "log", receive=lambda message: None)
        yield one, two


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: str(objective["name"]))
def test_two_processes_equal_one(objective: dict[str, Any], runs: tuple[Path, Path]) -> None:
    one, two = (folder / objective["name"] for folder in runs)
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
    for key, field in (("rollout/rounds", "sampling_rounds"), ("rollout/anchors", "anchors")):
        if field in objective:
            counted = [row[key] for row in alone_rows]
            assert max(counted) > (key == "rollout/rounds"), "the first round, or no group, was not enough"
            assert [row[key] for row in together_rows] == counted
