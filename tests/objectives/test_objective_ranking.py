"""SLiC: worked numbers of its four calibrations, what sets them apart, and invariances."""

from __future__ import annotations

import pytest
import torch
from fixture_f1 import near
from hypothesis import given
from hypothesis import strategies as st

from seqtune.objectives.slic import CALIBRATIONS, slic_loss
from seqtune.objectives.specs.slic import Slic
from seqtune.testing import check_objective

LOGPS = torch.tensor([[-4.0, -3.5, -6.0]]).double()
SCORES = torch.tensor([[0.9, 0.6, 0.3]]).double()
numbers = st.lists(st.floats(-5, 5), min_size=4, max_size=4)


def run(logps: torch.Tensor = LOGPS, scores: torch.Tensor = SCORES, **fields: object) -> torch.Tensor:
    spec = Slic.model_validate({"regularisation": 0.0, **fields})
    loss: torch.Tensor = spec.build()(logps, scores, denominator=len(logps))[0]
    return loss


@pytest.mark.parametrize(
    ("fields", "places", "loss"),
    [
        ({}, 3, 0.5),
        ({}, 2, 1.5),
        ({"calibration": "margin", "margin": 10}, 2, 3.5),
        ({"calibration": "list", "margin": 0.5}, 3, 1.0),
        ({"calibration": "reward"}, 3, -0.693173),
        ({"regularisation": 0.5}, 2, 3.5),
    ],
)
def test_worked(fields: dict[str, object], places: int, loss: float) -> None:
    """lp [-4, -3.5, -6], s [.9, .6, .3]. rank: pairs 1 + 4 - 3.5 = 1.5, 0, 0: mean .5. margin: 10 * .3 + .5 = 3.5.
    list: .5 * 1 + .5 = 1; .5 * 2 - 2 < 0; .5 * 1 - 2.5 < 0. reward: softmax [.3592, .5922, .0486]: -.3233 - .3553 -
    .0146. λ = .5 on the best, lp -4: 1.5 + 2 = 3.5."""
    near(run(LOGPS[:, :places], SCORES[:, :places], **fields), loss)


def test_the_four_differ_and_two_completions_make_list_and_rank_one() -> None:
    found = [float(run(calibration=name, margin=0.8)) for name in CALIBRATIONS]
    assert len({round(value, 4) for value in found}) == 4
    near(run(LOGPS[:, :2], SCORES[:, :2], calibration="list"), run(LOGPS[:, :2], SCORES[:, :2]))


def test_equal_scores_share_a_rank() -> None:
    """s [1, 1, 0]: the two pairs are one rank apart, whatever stands between: .5 + .5 and .5 - 3 -> 1 with δ = .5."""
    near(run(torch.tensor([[-4.0, -1.0, -3.5]]).double(), torch.tensor([[1, 1, 0]]).double(), calibration="list",
             margin=0.5), 1.0)  # fmt: skip


@pytest.mark.parametrize("name", list(CALIBRATIONS))
@given(numbers, st.lists(st.integers(0, 3), min_size=4, max_size=4), st.floats(-3, 3))
def test_only_differences_of_log_probs_count_and_places_do_not(name, logps, scores, shift) -> None:
    lp, s = torch.tensor([logps]).double(), torch.tensor([scores]).double()
    order = [2, 0, 3, 1]
    near(run(lp + shift, s, calibration=name), run(lp, s, calibration=name))
    near(run(lp[:, order], s[:, order], calibration=name), run(lp, s, calibration=name))
    wider = torch.nn.functional.pad(lp, (0, 2)), torch.nn.functional.pad(s, (0, 2), value=torch.nan)
    near(run(*wider, calibration=name), run(lp, s, calibration=name))
    if name == "reward":
        assert -max(scores) - 1e-9 <= run(lp, s, calibration=name) <= -min(scores) + 1e-9


def test_pairs_in_order_and_ties_have_no_gradient() -> None:
    logps = torch.tensor([[-1.0, -5.0], [-2.0, -1.0]], requires_grad=True)
    scores = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    loss, metrics = slic_loss(logps, scores, denominator=2)
    (gradient,) = torch.autograd.grad(loss, logps)
    assert loss == 0
    assert not gradient.any()
    near(metrics["rank/tied"], 0.5)
    near(metrics["rank/accuracy"], 1.0)
    near(metrics["rank/best_logp"], -1.5)


def test_the_better_goes_up_and_the_worse_down() -> None:
    logps = LOGPS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(slic_loss(logps, SCORES, denominator=1)[0], logps)
    near(gradient, [[-1 / 3, 1 / 3, 0.0]])
    (anchored,) = torch.autograd.grad(slic_loss(logps, SCORES, regularisation=0.5, denominator=1)[0], logps)
    near(anchored - gradient, [[-0.5, 0.0, 0.0]])


def test_metrics_are_means_over_prompts() -> None:
    """Prompt 1: two of three pairs in order; prompt 2: its only pair; prompt 3: none, all scores equal."""
    logps = torch.tensor([[-1.0, -2.0, -1.5], [-1.0, -2.0, -9.0], [-1.0, -2.0, -3.0]])
    scores = torch.tensor([[0.2, 0.1, 0.3], [1.0, 0.0, torch.nan], [1.0, 1.0, 1.0]])
    _, metrics = slic_loss(logps, scores, denominator=3)
    near(metrics["rank/accuracy"], (2 / 3 + 1) / 2)
    near(metrics["rank/tied"], 1 / 3)
    near(metrics["rank/best_logp"], (-1.5 - 1 - 1) / 3)


@pytest.mark.parametrize("name", list(CALIBRATIONS))
def test_every_calibration_keeps_the_contract(name: str) -> None:
    check_objective("slic", calibration=name)
    check_objective("slic", calibration=name, regularisation=0.0)
