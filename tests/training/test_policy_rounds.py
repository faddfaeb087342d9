"""Dynamic sampling: groups with equal rewards give way to others, the same whatever the processes and resumptions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from policy_stage import PROMPTS, stage, stage_run
from test_policy import first_gradients

from seqtune.objectives.advantages import group
from seqtune.report.run_folder import RunFolder
from seqtune.training.policy import Policy, trainer
from seqtune.training.rollouts import Round, further, together

if TYPE_CHECKING:
    from pathlib import Path


def rounds(folder: Path, limit: int, **changes: Any) -> Policy:
    """A policy whose reward differs within groups of odd prompts only: half of the data teaches nothing."""
    objective = {"name": "policy", "group_size": 4, "sampling_rounds": limit, **changes.pop("objective", {})}
    made = stage(objective=objective, **{"train": {"batch_size": 16, "max_steps": 1}, **changes})
    one = trainer(stage_run(folder, made))
    one.reward_funcs = [of_odd_prompts]
    return one


def of_odd_prompts(prompts: list[str], completions: list[str], **others: Any) -> list[float]:
    """1, 2, 3, 4 in a group of an odd prompt, 1 in the others."""
    return [1.0 + (row % 4) * (PROMPTS.index(prompt) % 2) for row, prompt in enumerate(prompts)]


def prompts_of(one: Policy, rows: dict[str, torch.Tensor]) -> list[int]:
    """Number of the prompt of each row."""
    return [
        PROMPTS.index(one._tokenizer.decode(ids[mask.bool()]))
        for ids, mask in zip(rows["prompt_ids"], rows["prompt_mask"], strict=True)
    ]


def test_groups_with_equal_rewards_give_way(tmp_path: Path) -> None:
    one = rounds(tmp_path, 8)
    one.train()
    (rows,) = one._buffered_inputs
    numbers = prompts_of(one, rows)
    assert len(numbers) == 16
    assert all(number % 2 for number in numbers)
    expected = group(torch.tensor([1.0, 2.0, 3.0, 4.0]), 4)
    for first in range(0, 16, 4):
        assert len(set(numbers[first : first + 4])) == 1, "groups stay whole"
        torch.testing.assert_close(rows["advantages"][first : first + 4], expected)
    (row,) = RunFolder(tmp_path).metrics()
    assert row["rollout/rounds"] > 1
    assert row["rollout/dropped"] == pytest.approx(1 - 1 / row["rollout/rounds"])
    assert row["rollout/filled"] == 0
    assert [sample["reward"] for sample in RunFolder(tmp_path).samples()] == [1, 2, 3, 4]


def test_groups_of_the_first_round_that_are_kept_are_the_ones_there_would_be(tmp_path: Path) -> None:
    """Only which groups are seen changes, never what one earns: the kept ones are those without dynamic sampling."""
    alone, more = rounds(tmp_path / "one", 1), rounds(tmp_path / "more", 8)
    alone.train()
    more.train()

    def by_prompt(one: Policy) -> dict[int, list[list[float]]]:
        (rows,) = one._buffered_inputs
        found: dict[int, list[list[float]]] = {}
        for number, ids, mask, a in zip(
            prompts_of(one, rows), rows["completion_ids"], rows["completion_mask"], rows["advantages"], strict=True
        ):
            found.setdefault(number, []).append([*ids[mask.bool()].tolist(), float(a)])
        return found

    first, kept = by_prompt(alone), by_prompt(more)
    odd = {number: rows for number, rows in first.items() if number % 2}
    assert odd
    assert any(number % 2 == 0 for number in first)
    assert {number: rows for number, rows in kept.items() if number in odd} == odd
    assert "rollout/rounds" not in RunFolder(tmp_path / "one").metrics()[0]


def test_groups_without_differences_fill_what_is_missing(tmp_path: Path) -> None:
    one = rounds(tmp_path, 2)
    one.reward_funcs = [lambda prompts, **others: [1.0] * len(prompts)]
    one.train()
    (rows,) = one._buffered_inputs
    assert len(rows["advantages"]) == 16
    assert not rows["advantages"].any()
    (row,) = RunFolder(tmp_path).metrics()
    assert (row["rollout/rounds"], row["rollout/dropped"], row["rollout/filled"]) == (2, 0.5, 1)
    assert row["loss"] == 0


def test_one_round_is_enough_where_all_groups_differ(tmp_path: Path) -> None:
    one = rounds(tmp_path, 8)
    one.reward_funcs = [lambda prompts, **others: [float(row % 4) for row in range(len(prompts))]]
    one.train()
    (row,) = RunFolder(tmp_path).metrics()
    assert (row["rollout/rounds"], row["rollout/dropped"], row["rollout/filled"]) == (1, 0, 0)


@pytest.mark.parametrize(
    "objective",
    [{"name": "dapo", "truncated": "keep"}, {"name": "prefix_rft"}, {"name": "rloo"}, {"name": "espo_entropy"}],
    ids=lambda objective: str(objective["name"]),
)
def test_the_gradient_does_not_depend_on_the_micro_batches(
    objective: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an objective knows of its rows comes along from every round."""
    found = []
    for batch_size, accumulate in ((16, 1), (4, 4)):
        train = {"batch_size": batch_size, "accumulate": accumulate, "max_steps": 1}
        one = rounds(tmp_path / f"{batch_size}", 8, objective=objective, train=train)
        found.append(first_gradients(one, monkeypatch))
        assert all(number % 2 for rows in one._buffered_inputs for number in prompts_of(one, rows))
    assert any(gradient.any() for gradient in found[0].values())
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-7, msg=name)


def test_a_run_goes_on_with_the_rounds_it_would_have_had(tmp_path: Path) -> None:
    """A checkpoint inside a rollout of several rounds, and one between two rollouts."""
    train = {"batch_size": 8, "max_steps": 6, "save_every": 1, "keep_checkpoints": 9, "learning_rate": 0.01}

    def told(folder: Path) -> list[dict[str, Any]]:
        one = rounds(folder, 8, rollout={"updates": 2}, train=train)
        one.train(resume_from_checkpoint=str(one.run.checkpoint) if one.run.checkpoint else None)
        return [{key: value for key, value in row.items() if key != "seconds"} for row in RunFolder(folder).metrics()]

    whole = told(tmp_path / "run")
    folder, output = RunFolder(tmp_path / "run"), tmp_path / "run" / "checkpoints" / "policy"
    for kept in (3, 2):
        for late in sorted(output.glob("checkpoint-*")):
            if int(late.name.rpartition("-")[2]) > kept:
                late.rename(tmp_path / f"{kept}-{late.name}")
        folder.truncate_metrics(json.loads((output / f"checkpoint-{kept}" / "complete.json").read_text())["metrics"])
        assert told(tmp_path / "run") == whole


def test_every_completion_of_a_rollout_has_a_place_of_its_own(tmp_path: Path) -> None:
    """Or a prompt that comes again in a further round would get the completions it has."""
    one = rounds(tmp_path, 8)
    first = one._places(16)
    one._round = 2
    assert first == [(0, row // 4, row % 4) for row in range(16)]
    assert one._places(16) == [(0, 8 + row // 4, row % 4) for row in range(16)]


@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 3))
def test_further_rounds_go_through_all_prompts_before_any_comes_again(rows: int, prompts: int, rollout: int) -> None:
    drawn = [row for number in range(1, 9) for row in further(rows, prompts, number, (7, rollout))]
    assert len(drawn) == 8 * prompts
    for first in range(0, len(drawn) - rows + 1, rows):
        assert sorted(drawn[first : first + rows]) == list(range(rows))
    assert further(rows, prompts, 2, (7, rollout)) == drawn[prompts : 2 * prompts]


def test_groups_of_rounds_of_other_widths_are_put_together() -> None:
    """Two rounds of two groups of two; prompts are padded on the left, completions on the right."""
    narrow = Round(
        {
            "prompt_ids": torch.tensor([[1], [1], [2], [2]]),
            "completion_ids": torch.tensor([[5, 6]] * 4),
            "ranks": torch.arange(4),
        },
        [0.0, 1.0, 2.0, 2.0],
        [("a", "b")] * 4,
    )
    wide = Round(
        {
            "prompt_ids": torch.tensor([[3, 3], [3, 3], [0, 4], [0, 4]]),
            "completion_ids": torch.tensor([[7, 8, 9]] * 4),
            "ranks": torch.arange(4, 8),
        },
        [4.0, 5.0, 6.0, 7.0],
        [("c", "d")] * 4,
    )
    found = together([narrow, wide], [0, 3], 2, slice(1, 3))
    assert found.rewards == [0.0, 1.0, 6.0, 7.0]
    assert found.texts == [("a", "b")] * 2 + [("c", "d")] * 2
    assert found.tensors["prompt_ids"].tolist() == [[0, 1], [0, 4]]
    assert found.tensors["completion_ids"].tolist() == [[5, 6, 0], [7, 8, 9]]
    assert found.tensors["ranks"].tolist() == [1, 6]
