import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from seqtune.objectives.dpo import dpo_loss
from seqtune.objectives.kto import kto_loss
from seqtune.objectives.reward import reward_loss
from seqtune.objectives.sft import sft_loss
from seqtune.objectives.specs.dpo import Dpo
from seqtune.objectives.specs.kto import Kto
from seqtune.objectives.specs.reward import Reward
from seqtune.objectives.specs.sft import Sft

numbers = st.lists(st.floats(-20, 0), min_size=3, max_size=3)


def of(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def near(value: Tensor, number: float) -> None:
    assert_close(value, torch.tensor(number, dtype=value.dtype), rtol=0, atol=1e-6)


def test_worked_dpo() -> None:
    """log π -10 and -12, log π_ref -10.5 and -11: r̂ = .1 * .5 = .05 and .1 * -1 = -.1; z = .15;
    L = -log σ(.15) = log(1 + e^-.15) = .620957."""
    loss, metrics = Dpo(beta=0.1).build()(of(-10), of(-12), of(-10.5), of(-11), denominator=1)
    near(loss, 0.620957)
    near(metrics["rewards/chosen"], 0.05)
    near(metrics["rewards/rejected"], -0.1)
    near(metrics["rewards/margin"], 0.15)
    assert metrics["rewards/accuracy"] == 1


def test_worked_dpo_with_label_smoothing() -> None:
    """λ = .1: .9 * .620957 + .1 * log(1 + e^.15) = .558861 + .1 * .770957 = .635957."""
    loss, _ = Dpo(label_smoothing=0.1).build()(of(-10), of(-12), of(-10.5), of(-11), denominator=1)
    near(loss, 0.635957)


def test_dpo_starts_at_log_two_and_pulls_the_pair_apart() -> None:
    """At π = π_ref, z = 0: L = log 2 = .693147; the gradient is -β/2 for the chosen and +β/2 for the rejected one."""
    chosen, rejected = of(-7).requires_grad_(), of(-9).requires_grad_()
    loss, metrics = dpo_loss(chosen, rejected, of(-7), of(-9), beta=0.3, denominator=1)
    near(loss, math.log(2))
    assert metrics["rewards/accuracy"] == 0  # a tie is not a win
    gradients = torch.autograd.grad(loss, [chosen, rejected])
    assert_close(gradients, (of(-0.15), of(0.15)))


@given(numbers, numbers, numbers, numbers)
def test_swapping_the_completions_of_all_pairs_mirrors_dpo(chosen, rejected, ref_chosen, ref_rejected) -> None:
    """L(z) - L(-z) = -z."""
    given_ = [of(*values) for values in (chosen, rejected, ref_chosen, ref_rejected)]
    loss, metrics = dpo_loss(*given_, beta=0.1, denominator=3)
    swapped, _ = dpo_loss(given_[1], given_[0], given_[3], given_[2], beta=0.1, denominator=3)
    assert_close(loss - swapped, -metrics["rewards/margin"])


def test_dpo_stays_finite_for_hopeless_pairs() -> None:
    loss, _ = dpo_loss(of(-1e5), of(-1), of(-1), of(-1e5), beta=1, denominator=1)
    near(loss, 2 * (1e5 - 1))


def test_worked_bradley_terry() -> None:
    """r⁺ .8, r⁻ .3: -log σ(.5) = log(1 + e^-.5) = .474077."""
    loss, metrics = Reward().build()(of(0.8), of(0.3), denominator=1)
    near(loss, 0.474077)
    near(metrics["rewards/margin"], 0.5)
    assert metrics["rewards/accuracy"] == 1


def test_worked_centering() -> None:
    """c = .01: .474077 + .01 * (.8 + .3)² = .474077 + .0121 = .486177."""
    near(reward_loss(of(0.8), of(0.3), center_coefficient=0.01, denominator=1)[0], 0.486177)


@given(numbers, numbers, st.floats(-5, 5))
def test_bradley_terry_does_not_see_the_origin_of_the_rewards(chosen, rejected, shift) -> None:
    one, _ = reward_loss(of(*chosen), of(*rejected), denominator=3)
    other, _ = reward_loss(of(*chosen) + shift, of(*rejected) + shift, denominator=3)
    assert_close(one, other)


def test_accuracy_counts_pairs() -> None:
    _, metrics = reward_loss(of(1, 2, 3, 4), of(0, 2, 4, 1), denominator=4)
    assert metrics["rewards/accuracy"] == 0.5
    near(metrics["rewards/chosen"], 2.5)
    near(metrics["rewards/rejected"], 1.75)


def test_worked_sft_of_documents() -> None:
    """Documents of 10, 20 and 90 tokens with summed losses 20, 30 and 90 (LongAlign, https://arxiv.org/abs/2401.18058):
    140/120 over tokens, (2 + 1.5 + 1)/3 over documents; one without a trained token changes neither."""
    counts, sums = torch.tensor([10, 20, 90, 0]), torch.tensor([20.0, 30.0, 90.0, 0.0])
    mask = torch.arange(90) < counts.unsqueeze(1)
    logps = -(sums / counts.clamp(min=1)).unsqueeze(1).expand(4, 90).masked_fill(~mask, torch.nan)
    assert sft_loss(logps, mask, denominator=120)[0].item() == pytest.approx(140 / 120)
    assert sft_loss(logps, mask, aggregation="sequence_mean", denominator=3)[0].item() == pytest.approx(1.5)


def test_worked_sft() -> None:
    """Three trained tokens with log-probs -1, -2 and -.5 out of four: (1 + 2 + .5) / 3 = 1.166667."""
    logps = torch.tensor([[-9.0, -1.0, -2.0], [-0.5, float("nan"), float("nan")]], requires_grad=True)
    mask = torch.tensor([[0, 1, 1], [1, 0, 0]])
    loss, metrics = Sft().build()(logps, mask, denominator=3)
    near(loss, 3.5 / 3)
    assert metrics == {}
    (gradient,) = torch.autograd.grad(loss, logps)
    assert_close(gradient, -mask / 3)


def test_sft_takes_packed_rows_of_any_shape() -> None:
    logps = torch.linspace(-3, -0.1, 12)
    mask = torch.arange(12) % 3 != 0
    assert_close(sft_loss(logps, mask, denominator=8)[0], sft_loss(logps.view(3, 4), mask.view(3, 4), denominator=8)[0])


@pytest.mark.parametrize(("loss", "count"), [(dpo_loss, 4), (reward_loss, 2)])
def test_pairs_are_computed_in_single_precision_at_least(loss, count) -> None:
    inputs = [torch.full((2,), 0.1, dtype=torch.bfloat16) for _ in range(count)]
    assert loss(*inputs, **({"beta": 0.1} if count == 4 else {}), denominator=2)[0].dtype == torch.float32


def test_worked_kto() -> None:
    """r(chosen) = .5, r(rejected) = -1, z = .2, β = .1:
    L = ((1 - σ(.03)) + 2 (1 - σ(.12))) / 2 = (.492501 + 2 * .470036) / 2 = .716287."""
    loss, metrics = Kto(undesirable_weight=2.0).build()(of(-10), of(-12), of(-10.5), of(-11), of(0.2)[0], denominator=1)
    near(loss, 0.716287)
    near(metrics["policy/kl"], 0.2)
    near(metrics["rewards/margin"], 0.15)


def test_metrics_of_kto() -> None:
    """r(chosen) = .5 and 2, r(rejected) = -1 and 2 at β = .1; the second pair is a tie."""
    given_ = of(-10, -8), of(-12, -9), of(-10.5, -10), of(-11, -11)
    loss, metrics = Kto(desirable_weight=3.0).build()(*given_, of(-1)[0], denominator=2)
    near(metrics["rewards/chosen"], 0.125)
    near(metrics["rewards/rejected"], 0.05)
    near(metrics["rewards/margin"], 0.075)
    assert metrics["rewards/accuracy"] == 0.5
    assert metrics["policy/kl"] == 0
    sigma = [1 / (1 + math.exp(-x)) for x in (0.05, 0.2, 0.1, -0.2)]
    near(loss, (3 * (2 - sigma[0] - sigma[1]) + 2 - sigma[2] - sigma[3]) / 4)


def test_kto_is_not_dpo() -> None:
    """A completion's gradient in KTO does not depend on its partner; in DPO it does."""
    found: dict[str, list[Tensor]] = {"kto": [], "dpo": []}
    for partner in (-12.0, -30.0):
        chosen = of(-10).requires_grad_()
        for name, loss in (
            ("kto", kto_loss(chosen, of(partner), of(-10.5), of(-11), of(0.2)[0], beta=0.1, denominator=1)[0]),
            ("dpo", dpo_loss(chosen, of(partner), of(-10.5), of(-11), beta=0.1, denominator=1)[0]),
        ):
            found[name] += torch.autograd.grad(loss, chosen)
    assert torch.equal(*found["kto"])
    assert not torch.allclose(*found["dpo"])


def test_a_negative_divergence_counts_as_none_and_carries_no_gradient() -> None:
    given_ = of(-10), of(-12), of(-10.5), of(-11)
    kl = torch.tensor(-3.0, dtype=torch.float64, requires_grad=True)
    below, _ = kto_loss(*given_, kl, beta=0.1, denominator=1)
    none, _ = kto_loss(*given_, torch.zeros_like(kl), beta=0.1, denominator=1)
    near(below, none.item())
    assert not below.requires_grad
