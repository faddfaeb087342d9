"""Stages from plan to weights: every family with full weights and adapters, chains of stages, exported models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from tiny_plans import MODEL, comparable, create, plan_of, stage, write_data
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from seqtune.errors import SeqtuneError
from seqtune.peft.specs import Full, Lora
from seqtune.report.events import Notice, RunFinished, RunStarted, StageStarted, Step
from seqtune.training import ends
from seqtune.training.export import export
from seqtune.training.recorder import area_name
from seqtune.training.run import resume, run_stage, train
from seqtune.training.stage import Stream, optimiser_steps

if TYPE_CHECKING:
    from pathlib import Path

    from seqtune.report.run_folder import RunFolder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path)


def run_all(folder: RunFolder) -> list[Any]:
    """The events of the stages of a run, without the report at its end."""
    events: list[Any] = []
    plan = plan_of(folder)
    for index in range(len(plan.stages)):
        run_stage(plan, folder, index, events.append)
    return events


def ids(text: str = "7 + 8 = 15") -> torch.Tensor:
    return torch.tensor([list(text.encode())])


@pytest.mark.parametrize("peft", [Full(), Lora(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("kind", ["sft", "dpo", "reward"])
def test_a_stage_learns_and_its_end_is_what_was_trained(kind: str, peft: Any, data: Path, tmp_path: Path) -> None:
    given = {"max_steps": 12, "learning_rate": 3e-3, "schedule": "constant"}
    folder = create(tmp_path / "run", stage(kind, data, peft=peft, train=given))
    events = run_all(folder)
    heldout = [row for row in folder.metrics() if "eval/loss" in row]
    assert [row["step"] for row in heldout] == [0, 12]
    assert heldout[1]["eval/loss"] < heldout[0]["eval/loss"] - 0.02
    if kind != "sft":
        assert heldout[1]["eval/rewards_margin"] > heldout[0]["eval/rewards_margin"] + 0.05
    steps = [row["step"] for row in folder.metrics() if "loss" in row]
    assert steps == list(range(1, 13))
    told = [event for event in events if not isinstance(event, Notice)]
    assert told[0] == StageStarted(kind, 0, 1, 12)
    assert [event.row for event in told[1:] if isinstance(event, Step)] == folder.metrics()

    model, tokenizer = ends.load_end(plan_of(folder), folder, 0)
    start, _ = ends.load_start(plan_of(folder), folder, 0)
    assert tokenizer("abc")["input_ids"] == [97, 98, 99]
    if kind == "reward":
        assert model(ids()).logits.shape == (1, 1)
    else:
        assert not torch.allclose(model(ids()).logits, start(ids()).logits, atol=1e-2)
    left = {path.name for path in ends.final(folder, kind).iterdir()}
    assert ("adapter_model.safetensors" in left) == isinstance(peft, Lora)
    assert ("model.safetensors" in left) == isinstance(peft, Full)
    assert not any(name.endswith((".bin", ".pt", ".pth")) for name in left)


def test_the_rows_of_a_stage_hold_what_the_page_says(data: Path, tmp_path: Path) -> None:
    folder = create(tmp_path / "run", stage("dpo", data, train={"max_steps": 1}))
    run_all(folder)
    start, row, _ = folder.metrics()
    assert list(row)[:5] == ["stage", "step", "loss", "tokens", "seconds"]
    assert set(row) - set(list(row)[:5]) == {
        *("train/grad_norm", "train/learning_rate", "train/entropy", "logps/chosen", "logps/rejected"),
        *("rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy"),
        *("tokens/computed", "tokens/padded", "tokens/saving"),
    }
    assert row["tokens/computed"] < row["tokens"] < row["tokens/padded"]
    # Before the first step model and reference are one: log 2, and no margin.
    assert start["eval/loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert row["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert row["rewards/margin"] == 0


@pytest.mark.parametrize("kind", ["sft", "dpo", "kto", "reward", "a_lol", "slic", "tempo"])
def test_a_step_does_not_depend_on_how_it_is_cut_into_micro_batches(kind: str, data: Path, tmp_path: Path) -> None:
    rows, ends_of = [], []
    for size, accumulate, budget in ((4, 1, None), (1, 4, None), (4, 1, 40)):
        given = {"batch_size": size, "accumulate": accumulate, "tokens_per_batch": budget}
        given |= {"max_steps": 2, "learning_rate": 1e-4}
        folder = create(tmp_path / f"{size}-{budget}", stage(kind, data, train=given))
        run_all(folder)
        rows.append(comparable(folder))
        ends_of.append(load_file(ends.final(folder, kind) / "model.safetensors"))
    for one, *others in zip(*rows, strict=True):
        for other in others:
            for key in ("loss", "train/grad_norm", "eval/loss", "rewards/margin"):
                assert one.get(key) == pytest.approx(other.get(key), abs=1e-5)
            assert one["tokens"] == other["tokens"]
    for name, weight in ends_of[0].items():
        assert all(torch.allclose(weight, other[name], atol=2e-5) for other in ends_of[1:]), name


def test_a_saved_adapter_loads_with_plain_peft(data: Path, tmp_path: Path) -> None:
    folder = create(tmp_path / "run", stage("sft", data, peft=Lora(rank=2)))
    run_all(folder)
    place = ends.final(folder, "sft")
    merged, _ = ends.load_end(plan_of(folder), folder, 0)
    plain = AutoPeftModelForCausalLM.from_pretrained(place)
    assert isinstance(plain, PeftModel)
    assert torch.allclose(plain(ids()).logits, merged(ids()).logits, atol=1e-5)
    assert AutoTokenizer.from_pretrained(place).eos_token == "<|im_end|>"


def test_a_reward_adapter_loads_with_plain_peft(data: Path, tmp_path: Path) -> None:
    folder = create(tmp_path / "run", stage("reward", data, peft=Lora(rank=2)))
    run_all(folder)
    merged, _ = ends.load_end(plan_of(folder), folder, 0)
    body = AutoModelForSequenceClassification.from_pretrained(ends.base(folder, "reward"), num_labels=1)
    plain = PeftModel.from_pretrained(body, ends.final(folder, "reward"))
    assert torch.allclose(plain(ids()).logits, merged(ids()).logits, atol=1e-5)


@pytest.mark.parametrize("first", [Full(), Lora(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("second", [Full(), Lora(rank=2)], ids=["full", "lora"])
def test_a_stage_starts_from_what_the_one_before_left(first: Any, second: Any, data: Path, tmp_path: Path) -> None:
    given = {"max_steps": 3, "learning_rate": 3e-3}
    folder = create(
        tmp_path / "run",
        stage("sft", data, peft=first, train=given),
        stage("dpo", data, peft=second, train=given),
    )
    run_all(folder)
    plan = plan_of(folder)
    left, _ = ends.load_end(plan, folder, 0)
    started, _ = ends.load_start(plan, folder, 1)
    assert torch.equal(left(ids()).logits, started(ids()).logits)
    before, *rows = [row for row in folder.metrics() if row["stage"] == "dpo"]
    # The reference is the start of the stage, not the untrained model.
    assert before["eval/loss"] == pytest.approx(0.6931472, abs=1e-5)
    assert rows[-1]["eval/loss"] < before["eval/loss"]
    ended, _ = ends.load_end(plan, folder, 1)
    if isinstance(second, Lora):
        plain = AutoPeftModelForCausalLM.from_pretrained(ends.final(folder, "dpo"))
        assert torch.allclose(plain(ids()).logits, ended(ids()).logits, atol=1e-5)
    assert not torch.allclose(ended(ids()).logits, left(ids()).logits, atol=1e-3)


@pytest.mark.parametrize("peft", [Full(), Lora(rank=2)], ids=["full", "lora"])
def test_an_export_is_plain_and_the_same_model(peft: Any, data: Path, tmp_path: Path) -> None:
    folder = create(tmp_path / "run", stage("sft", data, peft=peft))
    with pytest.raises(SeqtuneError, match="is finished"):
        export(folder, tmp_path / "out")
    run_all(folder)
    out = export(folder, tmp_path / "out")
    model, _ = ends.load_end(plan_of(folder), folder, 0)
    plain = AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(plain(ids()).logits, model(ids()).logits)
    assert AutoTokenizer.from_pretrained(out)("ab")["input_ids"] == [97, 98]
    assert not (out / "adapter_config.json").exists()
    with pytest.raises(SeqtuneError, match="is there already"):
        export(folder, out)


@pytest.mark.parametrize("peft", [Full(), Lora(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("kind", ["sft", "dpo", "reward", "tempo"])
def test_checkpointed_activations_change_no_number(kind: str, peft: Any, data: Path, tmp_path: Path) -> None:
    rows = []
    for checkpointing in (False, True):
        given = {"max_steps": 2, "gradient_checkpointing": checkpointing}
        folder = create(tmp_path / f"{checkpointing}", stage(kind, data, peft=peft, train=given))
        run_all(folder)
        rows.append(comparable(folder))
    assert rows[0] == rows[1]


@pytest.mark.parametrize("kind", ["sft", "dpo", "reward", "slic"])
def test_half_precision_trains(kind: str, data: Path, tmp_path: Path) -> None:
    half = MODEL.model_copy(update={"dtype": "bfloat16"})
    folder = create(tmp_path / "run", stage(kind, data, model=half))
    run_all(folder)
    first, *_, last = [row["eval/loss"] for row in folder.metrics() if "eval/loss" in row]
    assert last < first
    saved = load_file(ends.final(folder, kind) / "model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.bfloat16}


def test_a_run_tells_its_story_and_is_not_run_twice(data: Path, tmp_path: Path) -> None:
    folder = create(tmp_path / "run", stage("sft", data, train={"max_steps": 1}))
    events: list[Any] = []
    train(plan_of(folder), folder=folder, watch=events.append)
    assert isinstance(events[0], RunStarted)
    assert events[0].stages == ("sft",)
    assert isinstance(events[-1], RunFinished)
    assert (folder.path / "report.html").is_file()
    rows = folder.metrics()
    events.clear()
    resume(folder, watch=events.append)
    assert [type(event) for event in events] == [Notice]
    assert "finished" in events[0].text
    assert folder.metrics() == rows


def test_checkpoints_are_kept_up_to_the_number_asked_for(data: Path, tmp_path: Path) -> None:
    given = {"max_steps": 7, "save_every": 1, "keep_checkpoints": 2, "log_every": 5}
    folder = create(tmp_path / "run", stage("sft", data, train=given))
    run_all(folder)
    kept = sorted(path.name for path in (folder.path / "checkpoints" / "sft").iterdir())
    assert kept == ["checkpoint-5", "checkpoint-6", "final"]


def test_every_step_takes_as_many_rows_and_an_epoch_takes_each_row_once() -> None:
    order = list(Stream(rows=5, total=12, seed=3))
    assert len(order) == len(Stream(rows=5, total=12, seed=3)) == 12
    assert sorted(order[:5]) == sorted(order[5:10]) == [0, 1, 2, 3, 4]
    assert order[:5] != order[5:10]
    assert order == list(Stream(rows=5, total=12, seed=3))
    assert order != list(Stream(rows=5, total=12, seed=4))
    assert order[:7] == list(Stream(rows=5, total=7, seed=3))


def test_steps_of_an_epoch(data: Path) -> None:
    train_spec = stage("sft", data, train={"max_steps": None, "epochs": 1.5, "batch_size": 2, "accumulate": 2}).train
    assert optimiser_steps(train_spec, rows=20, processes=1) == 8  # 30 rows in steps of 4
    assert optimiser_steps(train_spec, rows=20, processes=2) == 4
    assert optimiser_steps(train_spec, rows=1, processes=2) == 1


def test_keys_of_trl_become_areas_and_names() -> None:
    assert area_name("grad_norm") == "train/grad_norm"
    assert area_name("mean_token_accuracy") == "train/token_accuracy"
    assert area_name("rewards/margin") == "rewards/margin"
    assert area_name("eval_loss") == "eval/loss"
