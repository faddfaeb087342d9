"""Two processes with a micro-batch of b train as one process with 2b."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradients
import pytest
import torch

from seqtune.parallel.launch import launch


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What one process and what two leave of every case."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    gradients.main(str(one), "1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        launch("gradients", [str(two), "2"], processes=2, log=two / "log", receive=lambda message: None)
    return one, two


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["-".join(case) for case in gradients.CASES])
def test_gradients_and_metrics_equal_those_of_one_process(case: str, traced: tuple[Path, Path]) -> None:
    one, two = (folder / case for folder in traced)
    expected, found = (torch.load(folder / "gradients.pt", weights_only=True) for folder in (one, two))
    assert len(expected) == len(found) == gradients.STEPS
    for step, other in zip(expected, found, strict=True):
        assert step.keys() == other.keys()
        largest = max(float(gradient.abs().max()) for gradient in step.values())
        assert largest > 1e-2
        for name, gradient in step.items():
            assert torch.allclose(gradient, other[name], rtol=0, atol=1e-6 * max(1.0, largest)), name
    for row, other in zip(rows_of(one), rows_of(two), strict=True):
        assert row.keys() == other.keys()
        layout = {"tokens/computed", "tokens/padded", "tokens/saving"}  # follow from how the step is cut
        for key in row.keys() - {"seconds", "stage"} - layout:
            assert row[key] == pytest.approx(other[key], abs=2e-5), key
