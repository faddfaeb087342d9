"""What stops a stage, and what is said about it."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch
from tiny_plans import MODEL, create, plan_of, stage, write_data

from seqtune.config.plan import Plan
from seqtune.errors import SeqtuneError
from seqtune.packing.specs import BestFit, Unpacked
from seqtune.parallel.specs import Fsdp2
from seqtune.training import ends
from seqtune.training.preference import Preference
from seqtune.training.recorder import complete_checkpoints
from seqtune.training.reward import Reward
from seqtune.training.run import run_stage, train
from seqtune.training.sft import Sft
from seqtune.training.stage import stage_folder

if TYPE_CHECKING:
    from pathlib import Path

    from seqtune.config.plan import Stage


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path)


def stopped(folder: Path, one: Stage) -> tuple[SeqtuneError, Any]:
    """The error a stage ends with, and the run folder."""
    run = create(folder, one)
    with pytest.raises(SeqtuneError) as caught:
        run_stage(plan_of(run), run, 0, lambda event: None)
    return caught.value, run


def poison(monkeypatch: pytest.MonkeyPatch, kind: str, change: Any) -> None:
    """Let the losses a trainer differentiates be `change(loss, step)`."""
    trainer = {"sft": Sft, "dpo": Preference, "reward": Reward}[kind]
    real = trainer.measure

    def measure(self: Any, model: Any, batch: Any, denominator: Any) -> Any:
        measured = real(self, model, batch, denominator)
        if not torch.is_grad_enabled():
            return measured
        return measured._replace(loss=change(measured.loss, self.state.global_step))

    monkeypatch.setattr(trainer, "measure", measure)


@pytest.mark.parametrize("kind", ["sft", "dpo", "reward"])
def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(
    kind: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, kind, lambda loss, step: loss * float("nan") if step == 3 else loss)
    error, run = stopped(tmp_path / "run", stage(kind, data, train={"save_every": 2}))
    assert f"the gradient is not a finite number at step 4 of stage '{kind}'" in str(error)
    assert "the checkpoint of step 2 is kept" in str(error)
    assert "train.learning_rate" in str(error)
    kept = complete_checkpoints(stage_folder(run, kind))[-1]
    assert all(weight.isfinite().all() for weight in safetensors.torch.load_file(kept / "model.safetensors").values())
    assert [row["step"] for row in run.metrics() if "loss" in row] == [1, 2, 3]


def test_a_loss_that_is_not_finite_stops(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, "sft", lambda loss, step: loss * 0 + torch.inf)
    error, run = stopped(tmp_path / "run", stage("sft", data))
    assert "the loss is not a finite number at step 1 of stage 'sft'; no checkpoint was saved" in str(error)
    assert [row for row in run.metrics() if "loss" in row] == []


def test_a_full_disk_says_what_is_kept(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.save

    def save(value: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        if "checkpoint-4" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(value, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", save)
    error, run = stopped(tmp_path / "run", stage("sft", data, train={"save_every": 2}))
    assert "the disk is full; the checkpoint of step 2 is complete and kept" in str(error)
    assert f"seqtune train --resume {run.path}" in str(error)
    assert [path.name for path in complete_checkpoints(stage_folder(run, "sft"))] == ["checkpoint-2"]


def test_a_disk_that_is_really_full(data: Path, tmp_path: Path) -> None:
    run = create(tmp_path / "run", stage("sft", data))
    (run.path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(SeqtuneError, match="the disk is full; nothing of this stage was saved before"):
        run_stage(plan_of(run), run, 0, lambda event: None)


def test_another_error_is_not_called_a_full_disk(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(torch, "save", broken)
    run = create(tmp_path / "run", stage("sft", data, train={"save_every": 2}))
    with pytest.raises(PermissionError):
        run_stage(plan_of(run), run, 0, lambda event: None)


@pytest.mark.parametrize("overflow", ["error", "split"])
def test_pairs_longer_than_allowed_are_named(overflow: Any, data: Path, tmp_path: Path) -> None:
    error, _ = stopped(tmp_path / "run", stage("dpo", data, packing=Unpacked(capacity=12, on_overflow=overflow)))
    assert "pairs are longer than packing.capacity=12 tokens" in str(error)
    assert ("cannot be split" in str(error)) == (overflow == "split")
    assert "sums.jsonl:" in str(error)
    assert "packing.on_overflow=truncate" in str(error)


@pytest.mark.parametrize(("overflow", "said"), [("truncate", "cut"), ("drop", "left out")])
def test_long_pairs_can_be_cut_or_left_out_and_that_is_said(
    overflow: Any, said: str, data: Path, tmp_path: Path
) -> None:
    one = stage("dpo", data, packing=Unpacked(capacity=22, on_overflow=overflow), train={"max_steps": 1})
    run = create(tmp_path / "run", one)
    told: list[Any] = []
    run_stage(plan_of(run), run, 0, told.append)
    assert any(f"longer than packing.capacity=22 tokens: {said}" in str(event) for event in told)


def test_no_pair_left_is_an_error(data: Path, tmp_path: Path) -> None:
    error, _ = stopped(tmp_path / "run", stage("dpo", data, packing=Unpacked(capacity=5, on_overflow="drop")))
    assert "no training pair is left" in str(error)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_sequence_longer_than_the_model_reads_is_refused(kind: str, tmp_path: Path) -> None:
    packing = (BestFit if kind == "sft" else Unpacked)(capacity=64)
    short = MODEL.model_copy(update={"max_positions": 16})
    longer = write_data(tmp_path, rows=120)
    error, _ = stopped(tmp_path / "run", stage(kind, longer, packing=packing, model=short))
    assert "but the model reads at most 16" in str(error)


def test_sharding_on_a_cpu_is_refused_rather_than_ignored(data: Path, tmp_path: Path) -> None:
    if torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator to shard on")
    run = create(tmp_path / "run", stage("sft", data, parallel=Fsdp2(processes=2)))
    with pytest.raises(SeqtuneError, match="fsdp2 needs accelerators"):
        train(plan_of(run), folder=run, watch=lambda event: None)


def test_stages_that_cannot_follow_one_another_are_refused(data: Path) -> None:
    sft, dpo, reward = (stage(kind, data) for kind in ("sft", "dpo", "reward"))
    ends.check_chain(Plan(recipe="r", stages=(sft, dpo, reward)))
    with pytest.raises(SeqtuneError, match="stage 'dpo' cannot start from stage 'reward'"):
        ends.check_chain(Plan(recipe="r", stages=(reward, dpo)))
    other = stage("dpo", data, model=MODEL.model_copy(update={"layers": 3}))
    with pytest.raises(SeqtuneError, match="stage 'dpo' names another model than 'sft'"):
        ends.check_chain(Plan(recipe="r", stages=(sft, other)))
    half = stage("dpo", data, model=MODEL.model_copy(update={"dtype": "bfloat16"}))
    ends.check_chain(Plan(recipe="r", stages=(sft, half)))


def test_an_unfinished_stage_has_no_end(data: Path, tmp_path: Path) -> None:
    run = create(tmp_path / "run", stage("sft", data))
    with pytest.raises(SeqtuneError, match="is not finished"):
        ends.load_end(plan_of(run), run, -1)
