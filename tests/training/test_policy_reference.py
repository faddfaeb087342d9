"""A reference model that follows the policy, and what a run knows of the parts of its reward."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from policy_stage import stage, stage_run
from safetensors.torch import load_file

from seqtune.objectives.advantages import columns
from seqtune.objectives.assign import assign
from seqtune.report.run_folder import RunFolder
from seqtune.rewards.combined import Combined as Together
from seqtune.rewards.specs import Combined
from seqtune.training.policy import Policy, trainer

if TYPE_CHECKING:
    from pathlib import Path

ASCII = {"name": "format", "pattern": r"(?s)[\x00-\x7f].*"}
PARTS = {"ascii": ASCII, "long": {"name": "length_budget", "target": 6, "unit": "characters"}}


def moving(folder: Path, **train: Any) -> Policy:
    objective = {"name": "grpo", "group_size": 4, "beta": 0.5, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.6}
    made = stage(objective=objective, reward=ASCII, train={"max_steps": 5, "learning_rate": 0.02, **train})
    return trainer(stage_run(folder, made))


def test_the_reference_moves_towards_the_policy(tmp_path: Path) -> None:
    """0.6 of the policy and 0.4 of itself after steps 2 and 4."""
    one = moving(tmp_path, max_steps=4)
    start = {name: weight.clone() for name, weight in one.ref_model.named_parameters()}
    policies: list[dict[str, torch.Tensor]] = []
    original = one.training_step

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        policies.append({name: weight.detach().clone() for name, weight in one.model.named_parameters()})
        return original(*args, **kwargs)

    one.training_step = watched
    one.train()
    policies.append({name: weight.detach().clone() for name, weight in one.model.named_parameters()})
    for name, weight in one.ref_model.named_parameters():
        once = 0.4 * start[name] + 0.6 * policies[2][name]
        torch.testing.assert_close(weight, 0.4 * once + 0.6 * policies[4][name], rtol=1e-5, atol=1e-6, msg=name)
        assert not weight.requires_grad
    assert any((weight - start[name]).abs().max() > 1e-3 for name, weight in one.ref_model.named_parameters())


def test_it_is_where_it_was_when_a_run_goes_on(tmp_path: Path) -> None:
    def told(folder: Path) -> list[dict[str, Any]]:
        one = moving(folder, save_every=3, keep_checkpoints=9)
        one.train(resume_from_checkpoint=str(one.run.checkpoint) if one.run.checkpoint else None)
        return [{key: value for key, value in row.items() if key != "seconds"} for row in RunFolder(folder).metrics()]

    whole = told(tmp_path)
    checkpoint = tmp_path / "checkpoints" / "policy" / "checkpoint-3"
    assert (
        load_file(checkpoint / "reference-0.safetensors").keys() == load_file(checkpoint / "model.safetensors").keys()
    )
    folder = RunFolder(tmp_path)
    folder.truncate_metrics(json.loads((checkpoint / "complete.json").read_text())["metrics"])
    assert told(tmp_path) == whole
    assert len(whole) == 5


def combined(folder: Path, objective: dict[str, Any], **reward: Any) -> Policy:
    made = stage(objective={"group_size": 4, **objective}, train={"batch_size": 16, "max_steps": 1})
    spec = Combined.model_validate({"name": "combined", "parts": PARTS, **reward})
    return trainer(stage_run(folder, made.model_copy(update={"reward": spec})))


def test_every_part_of_a_reward_is_recorded(tmp_path: Path) -> None:
    one = combined(tmp_path, {"name": "gspo"}, weights={"ascii": 2.0})
    one.train()
    (row,) = RunFolder(tmp_path).metrics()
    assert 0 < row["reward/ascii/mean"] < 1
    assert row["reward/long/mean"] < 0
    assert row["reward/mean"] == pytest.approx(2 * row["reward/ascii/mean"] + row["reward/long/mean"], abs=1e-6)


@pytest.mark.parametrize("gates", [(), ("ascii",)])
def test_columns_are_normalised_apart_and_weighed(gates: tuple[str, ...], tmp_path: Path) -> None:
    weights = {"long": 3.0} if gates else {"ascii": 2.0, "long": 3.0}
    one = combined(tmp_path, {"name": "policy", "advantage": "columns"}, weights=weights, gates=gates)
    asked: dict[str, Any] = {}
    assign = one.advantage
    one.advantage = lambda rewards, **given: asked.update(given, r=rewards) or assign(rewards, **given)
    one.train()
    parts = asked["reward_columns"]
    assert parts.shape == (16, 1 if gates else 2)
    assert asked["reward_weights"] == ((3.0,) if gates else (2.0, 3.0))
    torch.testing.assert_close(parts @ torch.tensor(asked["reward_weights"]), asked["r"])
    wanted = columns(parts, 4, weights=asked["reward_weights"])
    used = one._buffered_inputs[0]["advantages"]
    torch.testing.assert_close(used.sort().values, wanted.sort().values)


def test_what_is_not_scored_has_no_advantage_among_columns() -> None:
    """Two groups; the second part scores nobody in the second, and nothing at all scores the last completion."""
    nan = torch.nan
    given = torch.tensor([[1.0, 4.0], [0.0, 8.0], [1.0, nan], [nan, nan]])
    a = assign(
        torch.tensor([5.0, 8.0, 1.0, nan]),
        reward_columns=given,
        reward_weights=(1.0, 0.5),
        estimator="columns",
        group_size=2,
    )
    assert a[3] == pytest.approx(0, abs=1e-6)
    assert (a[0] > 0) is not (a[1] > 0)


def test_columns_of_gates_and_of_what_has_no_score() -> None:
    reward = Together({"a": len, "b": len, "g": len}, weights={"a": 2.0}, gates=("g",))
    parts = {"a": [1.0, 2.0, None], "b": [3.0, None, 1.0], "g": [1.0, 0.5, None]}
    assert reward.column_weights == (2.0, 1.0)
    first, second, third = reward.columns(parts)
    assert first == [1.0, 3.0]
    assert second[0] == 1.0
    assert math.isnan(second[1])
    assert all(math.isnan(value) for value in third)
    assert reward.combined(parts) == [5.0, 2.0, None]
    alone = Together({"g": len, "h": len}, weights={}, gates=("g", "h"))
    assert alone.columns({"g": [2.0], "h": [3.0]}) == [[6.0]]
    assert alone.column_weights == (1.0,)
