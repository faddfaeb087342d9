"""The direction checks run, and judge what they find as their page says."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import directions
import pytest
import torch
from common import write_section
from direction_loop import END, encode, model, padded, sampled, scores, success
from directions import CHECKS, Arm, agreed, cell, collapsed, section, table

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", list(CHECKS))
def test_a_short_run_of_each_check(name: str) -> None:
    """Two rollouts or a few steps of one seed: every number is there, and the two arms begin at the same place."""
    arms = CHECKS[name].run(0, 0.02)
    assert len(arms) >= 2
    columns = {tuple(arm.numbers) for arm in arms.values()}
    assert len(columns) == 1
    starts = [[curve[0] for curve in arm.curves.values()] for arm in arms.values()]
    assert all(start == starts[0] for start in starts)
    assert all(0 <= value <= 1 for arm in arms.values() for curve in arm.curves.values() for value in curve)
    text = section(name, [arms], 1.0)
    assert ("**The direction appears.**" in text) is CHECKS[name].verdict([arms])[0]
    assert "direction check" in directions.HEAD.lower()


def test_success_is_the_probability_of_what_earns_one() -> None:
    """Of the right beginning by its definition: the product of the probabilities of its tokens."""
    task, _ = directions.paths(0)
    policy = model(0)
    with torch.no_grad():
        logits = policy(torch.cat([task.prompts, task.right], 1)).logits.softmax(-1)
    wanted = [
        math.prod(float(logits[n, place, token]) for place, token in enumerate(right))
        for n, right in enumerate(task.right.tolist())
    ]
    assert success(policy, task)["all"] == pytest.approx(sum(wanted) / len(wanted))


def test_padding_does_not_change_a_score() -> None:
    policy, (ids, mask) = model(0), padded([encode("12."), encode("3.")])
    assert ids.tolist()[1] == [*encode("3."), END]
    assert mask.tolist() == [[True] * 3, [True, True, False]]
    prompts = torch.tensor([encode("a"), encode("a")])
    with torch.no_grad():
        together = scores(policy, prompts, ids)[0][1, :2]
        alone = scores(policy, prompts[1:], torch.tensor([encode("3.")]))[0][0]
    assert together.tolist() == pytest.approx(alone.tolist(), abs=1e-6)


def test_a_completion_goes_on_from_its_beginning() -> None:
    task, _ = directions.codes(0)
    found = sampled(model(0), task, torch.tensor([0, 1]), [encode("123"), []], (0,))
    assert found[0][:3] == encode("123")
    assert all(len(row) <= task.limit for row in found)


@pytest.mark.parametrize(
    ("pairs", "judged"),
    [
        ([(1.0, 0.0)] * 4 + [(0.0, 1.0)], (True, 4)),
        ([(1.0, 0.0)] * 3 + [(0.0, 1.0)] * 2, (False, 3)),
        ([(0.1, 0.0)] * 4 + [(0.0, 1.0)], (False, 4)),  # the mean says the opposite
        ([(1.0, 1.0)] * 5, (False, 0)),
    ],
)
def test_a_direction_needs_the_mean_and_four_fifths_of_the_seeds(
    pairs: list[tuple[float, float]], judged: tuple[bool, int]
) -> None:
    assert agreed(pairs) == judged


@pytest.mark.parametrize(
    ("alone", "led", "appears"),
    [(0.0, [0.5] * 4 + [0.0], True), (0.0, [0.5] * 3 + [0.0] * 2, False), (0.02, [0.5] * 5, False)],
)
def test_prefixes_teach_where_grpo_learns_nothing(alone: float, led: list[float], appears: bool) -> None:
    """Next to nothing is not more than nothing: at least four fifths of the seeds are above one percent."""
    column = "hard: success at the end"
    seeds = [{"GRPO": Arm({column: alone}, {}), "Prefix-RFT": Arm({column: value}, {})} for value in led]
    assert directions.of_prefix(seeds)[0] is appears


@pytest.mark.parametrize(("grpo", "gspo", "appears"), [(3, 1, True), (1, 1, False), (1, 2, False)])
def test_lost_runs_are_counted(grpo: int, gspo: int, appears: bool) -> None:
    seeds = [
        {name: Arm({"collapsed": float(n < lost)}, {}) for name, lost in (("GRPO", grpo), ("GSPO", gspo))}
        for n in range(5)
    ]
    assert directions.of_moe(seeds) == (appears, f"Of 5 runs GRPO loses {grpo} and GSPO {gspo}.")


def test_a_section_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for title, body in (("One", "a"), ("Two", "b"), ("One", "c\\1")):
        write_section(title, body, page, "# Head\n")
    assert page.read_text() == "# Head\n\n## One\n\nc\\1\n\n## Two\n\nb\n"


def test_a_run_is_lost_below_half_of_its_best_stretch() -> None:
    assert collapsed([0.3] * 10 + [0.8] * 20 + [0.39] * 10)
    assert not collapsed([0.3] * 10 + [0.8] * 20 + [0.41] * 10)
    assert not collapsed([0.3] * 20 + [0.9] + [0.3] * 19), "one high point is no stretch"


def test_cells() -> None:
    assert cell("collapsed", [1.0, 0.0, 1.0]) == "2 of 3"
    assert cell("success at the end", [0.5, 0.7]) == "60.0% ± 14.1% (50.0% to 70.0%)"
    assert cell("rollouts to 90 %", [10.0]) == "10.0 (10.0 to 10.0)"
    found = table([{"GRPO": Arm({"at the end": 0.5}, {}), "GSPO": Arm({"at the end": 0.7}, {})}])
    assert found.splitlines()[2:] == ["| GRPO | 50.0% (50.0% to 50.0%) |", "| GSPO | 70.0% (70.0% to 70.0%) |"]
