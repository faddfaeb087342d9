import pytest
import torch
from fixture_f1 import REWARDS
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from seqtune.objectives.advantages import batch_std, centered, group, leave_one_out
from seqtune.objectives.specs.grpo import Grpo
from seqtune.objectives.specs.policy import Policy

NAN = float("nan")
rewards_of_two_groups = st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=8, max_size=8)


def expected(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_worked_group_advantages() -> None:
    """r = [1, 0, .25, 0]: mean .3125; deviations [.6875, -.3125, -.0625, -.3125], squares sum to .671875;
    std = sqrt(.671875 / 3) = .473242; A_1 = .6875 / .473342 = 1.452437 (with ddof 0 it would be 1.677)."""
    assert_close(group(REWARDS, 4), expected(1.452437, -0.660199, -0.132040, -0.660199), rtol=0, atol=1e-6)
    by_verl = group(REWARDS, 4, epsilon=1e-6)
    assert_close(by_verl, expected(1.452741, -0.660337, -0.132067, -0.660337), rtol=0, atol=1e-6)


def test_worked_centered_advantages() -> None:
    assert_close(centered(REWARDS, 4), expected(0.6875, -0.3125, -0.0625, -0.3125))


def test_a_pair_of_one_and_zero() -> None:
    """std of [1, 0] with ddof 1 is sqrt(.5) = .707107; A = ±.5 / .707207 = ±.707007."""
    assert_close(group(expected(1, 0), 2), expected(0.707007, -0.707007), rtol=0, atol=1e-6)


@pytest.mark.parametrize("estimator", [group, centered])
@pytest.mark.parametrize(
    "rewards",
    [
        pytest.param([0.3, 0.3, 0.3, 0.3], id="equal"),
        pytest.param([0.1 + 0.2, 0.3, 0.3, 0.3], id="equal up to rounding"),
        pytest.param([NAN, NAN, NAN, NAN], id="none scored"),
        pytest.param([NAN, 1.0, NAN, NAN], id="one scored"),
    ],
)
def test_a_group_with_nothing_to_compare_gets_zeros(estimator, rewards) -> None:
    assert estimator(expected(*rewards), 4).tolist() == [0, 0, 0, 0]


def test_a_small_difference_is_one() -> None:
    """Rewards 1e-4 apart: 5e-5 / (7.071e-5 + 1e-4) = .292893."""
    assert_close(group(expected(1e-4, 0), 2), expected(0.292893, -0.292893), rtol=0, atol=1e-6)
    assert_close(group(expected(2e-8, 0), 2, epsilon=0), expected(0.5**0.5, -(0.5**0.5)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("estimator", [group, centered])
def test_an_unscored_completion_is_left_out_of_the_statistics(estimator) -> None:
    whole = estimator(expected(1, 0, 0.25), 3)
    assert_close(estimator(expected(1, NAN, 0, 0.25), 4), expected(whole[0], 0, whole[1], whole[2]))


@pytest.mark.parametrize("estimator", [group, centered, batch_std, leave_one_out])
def test_a_group_of_one_incomplete_groups_and_infinity_are_refused(estimator) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        estimator(REWARDS, 1)
    with pytest.raises(ValueError, match="whole groups of 3"):
        estimator(REWARDS, 3)
    with pytest.raises(ValueError, match="infinite"):
        estimator(expected(1, float("inf")), 2)


@given(rewards_of_two_groups, st.floats(0.5, 4), st.floats(-5, 5))
def test_group_advantages_ignore_scale_and_origin_of_the_reward(rewards, scale, shift) -> None:
    r = expected(*rewards)
    assert_close(group(scale * r + shift, 4, epsilon=0), group(r, 4, epsilon=0), rtol=1e-5, atol=1e-5)


@given(rewards_of_two_groups)
def test_advantages_sum_to_zero_in_each_group_and_groups_do_not_mix(rewards) -> None:
    r = expected(*rewards)
    for estimator in (group, centered):
        both = estimator(r, 4)
        assert_close(both.reshape(2, 4).sum(1), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-9)
        assert_close(both, torch.cat([estimator(r[:4], 4), estimator(r[4:], 4)]))
        order = torch.tensor([2, 0, 3, 1])
        assert_close(estimator(r[:4][order], 4), estimator(r[:4], 4)[order])


def test_the_spec_picks_the_estimator() -> None:
    assert_close(Grpo(group_size=4).build_advantage()(REWARDS), group(REWARDS, 4))
    assert_close(Policy(group_size=4, advantage="centered").build_advantage()(REWARDS), centered(REWARDS, 4))
