"""The A-LoL family: worked numbers, what sets the four apart, and the fit of the value."""

import pytest
import torch
from fixture_f1 import near
from torch.testing import assert_close

from seqtune.objectives.a_lol import fit_value, leftover_advantages, priorities
from seqtune.objectives.specs.a_lol import ALol, ALolKl, ALolRefFree, ALolSeq

NLL = torch.tensor([[0.5, 1, 0.2], [0.8, 0.3, 0.1]], dtype=torch.float64)
REF_NLL = torch.tensor([[0.9, 0.7, 0.3], [0.4, 0.5, 0.6]], dtype=torch.float64)
REWARDS, VALUES = torch.tensor([0.9, 0.4]).double(), torch.tensor([0.5, 0.6]).double()
A = leftover_advantages(REWARDS, VALUES)


def run(spec, advantages=A, nll=NLL, ref=REF_NLL, mask=None):
    logps = (-nll).clone().requires_grad_()
    loss, metrics = spec.build()(
        logps, -ref, advantages, torch.ones_like(nll) if mask is None else mask, denominator=len(nll)
    )
    return loss.detach(), torch.autograd.grad(loss, logps)[0], metrics


@pytest.mark.parametrize(
    ("spec", "loss"),
    [(ALol(), 0.415277), (ALolRefFree(), 0.34), (ALolSeq(), 0.341553), (ALolKl(beta=0.1), 0.365)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_worked(spec, loss: float) -> None:
    """A = [.4, 0]; sums of nll 1.7, 1.2; c_1 = e^(1.9 - 1.7) = 1.221403: .4 * 1.221403 * 1.7 / 2 = .415277;
    token ratios 1.491825, .740818, 1.105171: .4 * (.745912 + .740818 + .221034) / 2 = .341553;
    KL: .34 + .1 * (.2 + .3) / 2 = .365."""
    near(A, [0.4, 0.0])
    near(run(spec)[0], loss)
    near(run(ALolKl(beta=0.3))[0], 0.34 + 0.3 * 0.25)


def test_no_gradient_passes_through_the_ratio() -> None:
    near(run(ALol())[1], torch.tensor([[-0.4 * 1.221403 / 2] * 3, [0.0] * 3]))
    near(run(ALolSeq())[1][0], [-0.2 * 1.491825, -0.2 * 0.740818, -0.2 * 1.105171])


def test_at_the_reference_all_but_the_kl_coincide_with_weighted_likelihood() -> None:
    wanted = run(ALolRefFree(), ref=NLL)
    for spec in (ALol(), ALolSeq(), ALolKl()):
        assert_close(run(spec, ref=NLL)[0], wanted[0])
    assert_close(run(ALol(), ref=NLL)[1], wanted[1])


def test_advantages_of_one_and_zero_are_filtered_likelihood() -> None:
    found = run(ALolRefFree(), advantages=torch.tensor([1.0, 0.0]).double())
    near(found[0], 1.7 / 2)
    assert not found[1][1].any()


def test_a_tiny_range_is_no_ratio_and_a_wide_one_saturates() -> None:
    near(run(ALol(epsilon=1e-9))[0], 0.34)
    far = run(ALol(), ref=REF_NLL + 5.0)
    near(far[0], 1.9 * 0.34)
    near(far[2]["a_lol/clipped"], 1.0)
    near(run(ALol(), ref=REF_NLL - 5.0)[0], 0.1 * 0.34)


def test_negative_advantages_never_unlearn() -> None:
    for spec in (ALol(), ALolSeq(), ALolRefFree()):
        _, gradient, metrics = run(spec, advantages=torch.tensor([0.4, -3.0]).double())
        assert (gradient <= 0).all()
        assert not gradient[1].any()
        near(metrics["a_lol/learnt_from"], 0.5)


def test_metrics_by_hand() -> None:
    """Advantages .4 and -3 (counted as 0); the ratio before it is cut; nll of 3 and of 2 tokens; row 2's ratio."""
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    far = REF_NLL + torch.tensor([[0.0], [1.0]])
    _, _, metrics = run(ALol(), advantages=torch.tensor([0.4, -3.0]).double(), ref=far, mask=mask)
    near(metrics["a_lol/advantage"], 0.2)
    near(metrics["a_lol/learnt_from"], 0.5)
    near(metrics["a_lol/nll"], (1.7 / 3 + 1.1 / 2) / 2)
    near(metrics["a_lol/ratio_mean"], (1.221403 + 6.049647) / 2)  # e^.2, e^(2.9 - 1.1)
    near(metrics["a_lol/clipped"], 0.5)


def test_the_seed_of_the_value_is_that_of_its_weights() -> None:
    features, rewards = torch.eye(3), torch.tensor([0.1, 0.5, 0.9])
    one, again, other = (fit_value(features, rewards, steps=0, seed=seed)(features) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_leftover_advantages_need_something_left_over() -> None:
    with pytest.raises(ValueError, match="every advantage is 0"):
        leftover_advantages(VALUES - 1, VALUES)


def test_worked_priorities() -> None:
    near(priorities(torch.tensor([0.3, -0.1, 0.5, 0.2, -0.4])), [0.3, 0, 0.5, 0.2, 0])


def test_the_value_learns_what_the_reference_earns() -> None:
    """Two kinds of prompt, on which the reference earns .2 and .9 of 1: V ends near, within the range, reproducibly."""
    kinds = torch.arange(64) % 2
    features = torch.nn.functional.one_hot(kinds, 4).float()
    noise = 0.05 * torch.randn(64, generator=torch.Generator().manual_seed(0))
    rewards = torch.where(kinds == 0, 0.2, 0.9) + noise.clamp(-0.1, 0.1)
    head = fit_value(features, rewards, steps=300)
    found = head(features)
    assert_close(found[:2], torch.tensor([0.2, 0.9]), rtol=0, atol=0.03)
    assert ((found > 0) & (found < 1)).all()
    assert torch.equal(found, fit_value(features, rewards, steps=300)(features))
    assert not any(weight.requires_grad for weight in head.parameters())


@pytest.mark.parametrize(
    ("rewards", "words"), [([0.5, 1.5], r"leave \[0, 1.0\]"), ([-0.1, 0.2], "leave"), ([0.5], "2 prompts for 1")]
)
def test_rewards_the_value_cannot_reach_are_refused(rewards, words) -> None:
    with pytest.raises(ValueError, match=words):
        fit_value(torch.zeros(2, 3), torch.tensor(rewards), steps=1)
