"""The checks of `seqtune doctor` pass on a sound trainer and each fails on the fault it is for."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import policy_stage
import pytest
import torch
from tiny_plans import create, plan_of, stage, write_data

from seqtune.config.plan import Plan
from seqtune.errors import SeqtuneError
from seqtune.forest import SegmentForest
from seqtune.models import forest as reading
from seqtune.registry import load
from seqtune.report.events import Notice
from seqtune.training import forest, proofs
from seqtune.training.audit import mask_audit
from seqtune.training.proofs import prove
from seqtune.training.run import TRAINERS, _stage_run, diagnose, ends, run_stage, trainer_of

if TYPE_CHECKING:
    from pathlib import Path


def made(kind: str, folder: Path) -> Any:
    """The trainer of a tiny stage."""
    if kind == "gspo":
        one = policy_stage.stage(rollout={"max_new_tokens": 6})
        return load(TRAINERS["policy"])(policy_stage.stage_run(folder / "run", one))
    run = create(folder / "run", stage(kind, write_data(folder)))
    plan = plan_of(run)
    (run.path / "checkpoints" / kind).mkdir(parents=True)
    model, tokenizer = ends.load_start(plan, run, 0)
    return load(trainer_of(plan.stages[0]))(_stage_run(plan, run, 0, lambda event: None, model, tokenizer, None))


def outcome(trainer: Any) -> dict[str, bool]:
    return {proof.name: proof.passed for proof in prove(trainer, quick=False)}


@pytest.mark.parametrize("kind", ["sft", "dpo", "reward", "gspo", "a_lol", "slic", "tempo"])
def test_a_sound_trainer_passes_and_is_left_as_it_was(kind: str, tmp_path: Path) -> None:
    trainer = made(kind, tmp_path)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    random = torch.get_rng_state()
    found = prove(trainer, quick=False)
    assert all(proof.passed for proof in found)
    names = ["isolation", "equivalence", "mask audit", "normalisation"]
    if kind == "sft":
        names.append("row cost")
        assert re.search(r"'parallel\.row_cost=\[[\d.e-]+,[\d.e-]+\]'", found[-1].detail)
    assert [proof.name for proof in found] == [name for name in names if kind != "gspo" or name != "mask audit"]
    assert found[0].found == 0.0
    assert 0 < found[1].found < 1e-5
    assert 1e-7 < found[1].limit < 1e-4
    assert torch.equal(torch.get_rng_state(), random)
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(weight, before[name])
        assert weight.grad is None


@pytest.mark.parametrize("kind", ["sft", "dpo", "reward", "gspo"])
def test_documents_that_see_each_other_are_caught(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = made(kind, tmp_path)
    real = reading.ForestRow.__init__

    def one_segment(self: Any, row: SegmentForest) -> None:
        real(self, SegmentForest([row.tokens], [-1]))

    monkeypatch.setattr(reading.ForestRow, "__init__", one_segment)
    found = outcome(trainer)
    assert not found["isolation"]
    assert not found["equivalence"]


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_positions_that_do_not_restart_are_caught(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = made(kind, tmp_path)
    real = forest.forest_inputs

    def running_on(flat: Any, device: Any) -> dict[str, Any]:
        inputs = real(flat, device)
        return {**inputs, "position_ids": torch.arange(inputs["input_ids"].shape[1])[None]}

    monkeypatch.setattr(forest, "forest_inputs", running_on)
    # RoPE sees distances alone: documents apart are equal, a completion further from its prompt is not.
    assert outcome(trainer)["equivalence"] == (kind == "sft")


def test_a_first_token_predicted_by_its_sibling_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = made("dpo", tmp_path)
    real = proofs.lay_out

    def sibling(sample: Any, device: Any, *, shared: bool) -> Any:
        batch = real(sample, device, shared=shared)
        return replace(batch, predictors=torch.where(batch.predictors > 0, batch.predictors + 1, batch.predictors))

    monkeypatch.setattr(proofs, "lay_out", sibling)
    assert not outcome(trainer)["equivalence"]


@pytest.mark.parametrize("kind", ["sft", "dpo", "reward", "gspo", "a_lol", "slic", "tempo"])
def test_a_loss_that_averages_over_its_micro_batch_is_caught(kind: str, tmp_path: Path) -> None:
    trainer = made(kind, tmp_path)
    real = trainer.measure
    trainer.measure = lambda model, batch, denominator: real(model, batch, trainer.count(batch))
    found = outcome(trainer)
    assert not found.pop("normalisation")
    assert all(found.values())


def test_masks_are_counted() -> None:
    """Two rows; the second trains nothing, and 9 ends a turn."""

    def one(ids: list[int], mask: list[bool]) -> forest.Scored:
        return forest.Scored(np.array(ids), np.array(mask))

    sound = [one([1, 2, 9], [False, True, True])]
    assert mask_audit([sound], 9)[0].passed
    (found,) = mask_audit([sound, [one([1, 2, 9], [False] * 3)]], 9)
    assert not found.passed
    assert found.detail.startswith("2 of 6 tokens in 2 rows are trained, 1 rows train none; 1 of 2")
    (found,) = mask_audit([[one([1, 2, 9], [False, True, False])]], 9)
    assert not found.passed, "the end of the turn is there and not trained"
    (found,) = mask_audit([[one([1, 9], [True, False]), one([1, 3], [True, False])]], 9)
    assert not found.passed, "a first token is never trained, whatever its mask says"


def test_a_run_is_stopped_before_its_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create(tmp_path / "run", stage("sft", write_data(tmp_path)))
    real = reading.ForestRow.__init__
    monkeypatch.setattr(reading.ForestRow, "__init__", lambda self, row: real(self, SegmentForest([row.tokens], [-1])))
    with pytest.raises(SeqtuneError, match=r"isolation: .* tokens of one sequence changed") as caught:
        run_stage(plan_of(run), run, 0, lambda event: None)
    assert "stage 'sft'" in str(caught.value)
    assert run.metrics() == []


def test_a_run_records_what_was_checked(tmp_path: Path) -> None:
    run = create(tmp_path / "run", stage("sft", write_data(tmp_path), train={"max_steps": 1}))
    events: list[Any] = []
    run_stage(plan_of(run), run, 0, events.append)
    recorded = run.read_json("proofs/sft.json")
    assert [proof["name"] for proof in recorded] == ["isolation", "equivalence", "mask audit"]
    assert all(proof["passed"] for proof in recorded)
    assert any("checked on this model and data" in event.text for event in events if isinstance(event, Notice))


def test_every_stage_of_a_plan_is_diagnosed_and_nothing_is_left_behind(tmp_path: Path) -> None:
    data = write_data(tmp_path)
    plan = Plan(recipe="test", stages=(stage("sft", data), stage("dpo", data)))
    found = diagnose(plan, watch=lambda event: None)
    assert list(found) == ["sft", "dpo"]
    assert all(proof.passed for checks in found.values() for proof in checks)
    assert [path.name for path in tmp_path.iterdir()] == [data.name]
