"""A run whose stage is trained by several processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tiny_plans import create, plan_of, stage, write_data

from seqtune.errors import SeqtuneError
from seqtune.packing.specs import BestFit
from seqtune.parallel.specs import Ddp
from seqtune.report.events import Notice, Step
from seqtune.training import ends
from seqtune.training.run import train

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
def test_the_events_and_the_end_of_a_launched_stage_reach_the_run(tmp_path: Path) -> None:
    data = write_data(tmp_path)
    folder = create(tmp_path / "run", stage("sft", data, parallel=Ddp(processes=2), train={"max_steps": 2}))
    events: list[Any] = []
    train(plan_of(folder), folder=folder, watch=events.append)
    assert [row["step"] for row in folder.metrics()] == [0, 1, 2, 2]
    assert [event.row for event in events if isinstance(event, Step)] == folder.metrics()
    assert sum(isinstance(event, Notice) for event in events) == 5  # each said once for both
    model, _ = ends.load_end(plan_of(folder), folder, 0)
    assert not model.training


@pytest.mark.slow
def test_an_error_in_a_process_is_the_error_of_the_run(tmp_path: Path) -> None:
    data = write_data(tmp_path)
    folder = create(tmp_path / "run", stage("sft", data, parallel=Ddp(processes=2), packing=BestFit(capacity=8)))
    with pytest.raises(SeqtuneError, match="longer than a row of 8 tokens"):
        train(plan_of(folder), folder=folder, watch=lambda event: None)
