"""Advantages beyond those of GRPO: worked numbers, properties, and what sets each apart from its neighbour."""

import pytest
import torch
from fixture_f1 import LENGTHS, MASK, OLD, REF, REWARDS, near
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from seqtune.objectives.advantages import (
    batch_std,
    by_column,
    centered,
    columns,
    group,
    kl_shaped,
    leave_one_out,
    reinforce_pp,
    reinforce_pp_baseline,
    returns,
    whitened,
)
from seqtune.objectives.assign import assign
from seqtune.objectives.dapo import fill, informative, overlong
from seqtune.objectives.policy import KLS, k1
from seqtune.objectives.prefix_rft import prefix_length, prefix_share
from seqtune.objectives.specs.dapo import Dapo
from seqtune.objectives.specs.policy import Policy
from seqtune.objectives.specs.reinforce_pp import ReinforcePP
from seqtune.objectives.specs.rloo import Rloo

NAN = float("nan")
numbers = st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=8, max_size=8)


def of(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_worked_leave_one_out() -> None:
    """r = [1, 0, .25, 0]: 1 - .25/3 = .916667, 0 - 1.25/3, .25 - 1/3, 0 - 1.25/3."""
    near(leave_one_out(REWARDS, 4), [0.916667, -0.416667, -0.083333, -0.416667])


@given(numbers)
def test_leave_one_out_is_the_centred_advantage_stretched(rewards) -> None:
    r = of(*rewards)
    assert_close(leave_one_out(r, 4), 4 / 3 * centered(r, 4))
    direct = [r[i] - (r[:4].sum() - r[i]) / 3 for i in range(4)]
    if r[:4].max() - r[:4].min() >= 1e-8:
        assert_close(leave_one_out(r, 4)[:4], torch.stack(direct))


def test_leave_one_out_counts_the_scored_only() -> None:
    assert_close(leave_one_out(of(1, NAN, 0, 0.25), 4)[[0, 2, 3]], leave_one_out(of(1, 0, 0.25), 3))


def test_batch_std_divides_by_the_spread_of_the_batch() -> None:
    """Groups [1, 0] and [10, 0]: deviations ±.5 and ±5; std of all four = 4.856267. Per group both would be ±.7071."""
    found = batch_std(of(1, 0, 10, 0), 2)
    near(found, [0.5 / 4.856367, -0.5 / 4.856367, 5 / 4.856367, -5 / 4.856367])
    assert_close(group(of(1, 0, 10, 0), 2)[0], group(of(1, 0), 2)[0])


@pytest.mark.parametrize("estimator", [batch_std, leave_one_out])
def test_groups_without_differences_get_zeros(estimator) -> None:
    assert estimator(of(0.3, 0.1 + 0.2, 1, 0), 2)[:2].tolist() == [0, 0]
    assert estimator(of(NAN, 0.5, 1, 0), 2)[:2].tolist() == [0, 0]


def test_worked_reinforce_pp() -> None:
    """Fourteen token returns, 1 five times, 0 five times, .25 four times: mean .428571, var (ddof 1) .206044:
    (1 - .428571) / .453921 = 1.258873. With one group the baseline shifts all alike, which whitening takes away."""
    wanted = torch.tensor([1.258873, -0.944155, -0.393398, -0.944155]).double().unsqueeze(1) * MASK
    near(reinforce_pp(REWARDS, MASK), wanted)
    near(reinforce_pp_baseline(REWARDS, MASK, group_size=4), wanted)


def test_the_baseline_of_reinforce_pp_matters_with_two_groups() -> None:
    """Groups [1, 0] and [3, 2]: without baseline all of the second lie above the mean, with it one of each."""
    rewards, mask = of(1, 0, 3, 2), torch.ones(4, 2)
    assert (reinforce_pp(rewards, mask)[:, 0] > 0).tolist() == [False, False, True, True]
    assert (reinforce_pp_baseline(rewards, mask, group_size=2)[:, 0] > 0).tolist() == [True, False, True, False]


def test_returns_by_hand() -> None:
    """γ = .5, rewards [1, 2, 4]: 4; 2 + 2 = 4; 1 + 2 = 3. A hole in the mask takes no time."""
    near(returns(torch.tensor([[1.0, 2, 4]]), torch.ones(1, 3), gamma=0.5), [[3.0, 4.0, 4.0]])
    holed = returns(torch.tensor([[1.0, NAN, 4]]), torch.tensor([[1, 0, 1]]), gamma=0.5)
    near(holed, [[3.0, 0.0, 4.0]])


def test_the_kl_of_reinforce_pp_falls_on_the_tokens_from_there_back() -> None:
    """β = .5, log π_old - log π_ref = [0, .4] and [0, 0], rewards [1, 0]: returns .8 on both tokens of row 1 (the KL of
    the last counts for both), 0 on row 2; whitening leaves their order and equality."""
    old, ref, mask = of(-1, -1).repeat(2, 1), torch.tensor([[-1, -1.4], [-1, -1]]).double(), torch.ones(2, 2)
    found = reinforce_pp(of(1, 0), mask, old_logps=old, ref_logps=ref, beta=0.5, kl=k1)
    near(found, whitened(torch.tensor([[0.8, 0.8], [0, 0]]).double(), mask))
    moved = reinforce_pp(of(1, 0), mask, old_logps=old.flip(1), ref_logps=ref.flip(1), beta=0.5, kl=k1)
    near(moved, whitened(torch.tensor([[0.8, 1.0], [0, 0]]).double(), mask))


@given(numbers, st.floats(0.5, 4), st.floats(-5, 5))
def test_whitening_ignores_scale_and_origin(rewards, scale, shift) -> None:
    r, mask = of(*rewards), torch.arange(5) < torch.tensor([5, 3, 1, 2, 4, 5, 1, 2]).unsqueeze(1)
    found = reinforce_pp(r, mask)
    if found.any() and reinforce_pp(scale * r + shift, mask).any() and r.std() > 1e-2:
        assert_close(reinforce_pp(scale * r + shift, mask), found, rtol=1e-4, atol=1e-4)
    kept = found[mask]
    assert abs(float(kept.mean())) < 1e-6


def test_worked_kl_in_the_reward() -> None:
    """Sums of log π_old - log π_ref: [0, -.2, 0, -.15]; β = .05: r = [1, .01, .25, .0075], and leave-one-out of it.
    k2 of row 1: (.0025 + .01 + .04 + 0 + .0225) / 2 = .0375."""
    near(kl_shaped(REWARDS, MASK, OLD, REF, beta=1.0, kl=KLS["k2"])[0], 1 - 0.0375)
    shaped = kl_shaped(REWARDS, MASK, OLD, REF, beta=0.05, kl=k1)
    near(shaped, [1.0, 0.01, 0.25, 0.0075])
    found = Rloo(group_size=4, beta=0.05).build_advantage()(REWARDS, mask=MASK, old_logps=OLD, ref_logps=REF)
    near(found, [0.910833, -0.409167, -0.089167, -0.4125])


@pytest.mark.parametrize("side", ["old_logps", "ref_logps"])
@pytest.mark.parametrize("spec", [Rloo(group_size=2), ReinforcePP(group_size=2)], ids=["rloo", "reinforce_pp"])
def test_a_token_whose_kl_is_not_finite_pays_none(spec: Policy, side: str) -> None:
    """One -inf must make neither a reward infinite nor the whitened batch NaN, which would train nothing."""
    logps = {"old_logps": torch.full((2, 2), -1.0), "ref_logps": torch.full((2, 2), -1.5)}
    equal = {**logps, side: logps["old_logps" if side == "ref_logps" else "ref_logps"].clone()}
    for name in logps:  # row 1, token 1 differs in one of the two, and by nothing in the other
        equal[name] = torch.where(torch.tensor([[True, False], [False, False]]), -1.0, logps[name])
    broken = {**logps, side: logps[side].clone()}
    broken[side][0, 0] = -torch.inf
    advantage = spec.build_advantage()
    found = advantage(of(1, 0), mask=torch.ones(2, 2), **broken)
    near(found, advantage(of(1, 0), mask=torch.ones(2, 2), **equal))


def test_the_kl_in_the_reward_is_taken_in_single_precision() -> None:
    """-1.0078125 and 256 are bfloat16 numbers; their difference is not."""
    old, ref = torch.tensor([[256.0]]).bfloat16(), torch.tensor([[-1.0078125]]).bfloat16()
    near(kl_shaped(of(0), torch.ones(1, 1), old, ref, beta=1.0, kl=k1), [-257.0078125])


def test_columns_are_normalised_before_they_are_added() -> None:
    """Rewards 0/1 and 0/100 that disagree: added first, the large one decides; normalised first, they cancel."""
    rewards = torch.tensor([[1.0, 0.0], [0.0, 100.0], [1.0, 100.0], [0.0, 0.0]]).double()
    found = columns(rewards, 4)
    assert_close(found, of(0, 0, 1.224745, -1.224745), rtol=0, atol=5e-4)  # ± sqrt(3/2)
    assert group(rewards.sum(1), 4)[1] > 0.8
    near(by_column(rewards, 4)[:, 0], group(rewards[:, 0], 4))
    weighed = columns(rewards, 4, weights=(1.0, 0.0))
    near(weighed[0], weighed[2])
    with pytest.raises(ValueError, match="3 weights for 2"):
        columns(rewards, 4, weights=(1, 1, 1))


def test_a_completion_without_any_score_is_no_part_of_the_batch_that_columns_are_normalised_in() -> None:
    """Per column ±.707007 (two of each group): sums ±1.414014, 0, their std 1.264732 with the unscored row, 1.414014
    and mean 0 without: ±.999929. A column that is missing counts as 0."""
    rewards = torch.tensor([[1, 2], [0, 1], [NAN, NAN], [NAN, NAN]]).double()
    found = columns(rewards, 4)
    near(found, [1.414014 / (1.414014 * 2**0.5 + 1e-4), -1.414014 / (1.414014 * 2**0.5 + 1e-4), 0, 0])
    near(found[:2], columns(rewards[:2], 2))
    assert not columns(torch.full((4, 2), NAN), 2).any()
    partly = columns(torch.tensor([[1, 2], [0, 1], [1, NAN], [0, NAN]]).double(), 4)
    assert (partly.sign() == of(1, -1, 1, -1)).all()


def test_equal_sums_of_columns_and_equal_returns_are_no_signal() -> None:
    """0.1 + 0.2 and 0.3 differ by rounding only."""
    opposed = torch.tensor([[0.3, 0.0], [0.0, 0.1 + 0.2], [0.3, 0.0], [0.0, 0.3]]).double()
    assert not columns(opposed, 4).any()
    assert not whitened(of(0.1 + 0.2, 0.3, 0.3).unsqueeze(1), torch.ones(3, 1)).any()


def test_rewards_that_are_infinite_are_refused_everywhere() -> None:
    for estimator in (batch_std, leave_one_out):
        with pytest.raises(ValueError, match="infinite"):
            estimator(of(1, float("inf")), 2)
    with pytest.raises(ValueError, match="infinite"):
        reinforce_pp(of(1, float("inf")), torch.ones(2, 2))


def test_an_unscored_completion_is_left_out_of_reinforce_pp() -> None:
    rewards, mask = of(1, NAN, 0, 0.5), torch.ones(4, 3)
    found = reinforce_pp(rewards, mask)
    assert not found[1].any()
    assert_close(found[[0, 2, 3]], reinforce_pp(of(1, 0, 0.5), torch.ones(3, 3)))


# What DAPO adds


def test_worked_overlong_penalty() -> None:
    """L 100, c 20: 0 up to 80, then -1/20 a token, -1 from 100 on."""
    assert [overlong(n, limit=100, cache=20) for n in (70, 80, 85, 95, 100, 101)] == [0, 0, -0.25, -0.75, -1, -1]
    assert overlong(100, limit=100, cache=0) == 0


def test_the_overlong_penalty_enters_the_reward_before_the_group_is_compared() -> None:
    """Limit 5, the last .4 of it (2 tokens): lengths 5, 3, 4, 2 cost 1, 0, .5, 0: r = [0, 0, -.25, 0]."""
    found = Dapo(group_size=4, overlong=0.4, truncated="keep").build_advantage()(REWARDS, mask=MASK, limit=5)
    near(found, group(of(0, 0, -0.25, 0), 4))


def test_the_length_of_a_completion_that_called_tools_counts_what_they_gave() -> None:
    """Five tokens, two of them a tool's: as overlong as five of its own."""
    spec, rewards = Dapo(group_size=2, overlong=0.4, truncated="keep"), of(1, 0)
    called = torch.tensor([[1, 0, 0, 1, 1], [1, 1, 0, 0, 0]])
    near(spec.build_advantage()(rewards, mask=called, limit=5), spec.build_advantage()(of(0, 0), mask=called, limit=10))


def test_a_truncated_completion_leaves_the_loss_but_not_the_baseline() -> None:
    ended = torch.tensor([True, False, True, True])
    found = Dapo(group_size=4, overlong=0).build_advantage()(REWARDS, ended=ended)
    assert found.isnan().tolist() == [False, True, False, False]
    near(found[[0, 2, 3]], group(REWARDS, 4)[[0, 2, 3]])


def test_groups_worth_learning_from_are_kept() -> None:
    scores = [[1, 0, 1], [1, 1, 1], [0, 0, 0], [NAN, 1, 0], [NAN, 1, NAN], [0.1 + 0.2, 0.3, 0.3]]
    assert informative(scores) == [True, False, False, True, False, False]
    assert fill([0, 3], [1, 2, 4], 4) == [0, 3, 1, 2]
    assert fill([0, 3, 5], [1], 2) == [0, 3]
    with pytest.raises(ValueError, match="do not make 4"):
        fill([0], [1, 2], 4)


@given(numbers)
def test_keeping_groups_changes_no_advantage_inside_them(rewards) -> None:
    r = of(*rewards)
    kept = informative(r.reshape(2, 4).tolist())
    rows = torch.tensor(kept).repeat_interleave(4)
    if rows.any():
        assert_close(group(r[rows], 4), group(r, 4)[rows])


# Prefixes of demonstrations


def test_worked_prefix_schedule() -> None:
    def share(step: int, schedule: str = "cosine") -> float:
        return prefix_share(step, first=0.95, last=0.05, steps=100, schedule=schedule)

    found = [share(step) for step in (0, 25, 50, 75, 100)]
    assert found == pytest.approx([0.95, 0.818198, 0.5, 0.181802, 0.05], abs=1e-6)
    assert share(200) == pytest.approx(0.05)
    assert [share(step, "linear") for step in (0, 50, 100)] == pytest.approx([0.95, 0.5, 0.05])
    assert share(70, "constant") == 0.95


def test_a_prefix_leaves_something_to_write() -> None:
    assert [prefix_length(share, 10) for share in (0.0, 0.31, 0.39, 0.95, 1.0)] == [1, 3, 3, 9, 9]
    found = [prefix_length(share / 100, 37) for share in range(101)]
    assert found == sorted(found), "no less of a demonstration for a larger share"
    assert prefix_length(0.9, 1) == 0


# Composition


def test_parts_that_lack_a_tensor_say_which() -> None:
    with pytest.raises(ValueError, match="need mask"):
        assign(REWARDS, estimator="reinforce_pp", group_size=4)
    with pytest.raises(ValueError, match="need completion_ids"):
        assign(REWARDS, estimator="group", group_size=4, tree_weight=1.0)
    with pytest.raises(ValueError, match="need reward_columns"):
        Policy(group_size=4, advantage="columns").build_advantage()(REWARDS)


@pytest.mark.parametrize("name", ["group", "centered", "batch_std", "leave_one_out"])
def test_the_field_picks_its_estimator_and_no_other(name: str) -> None:
    rewards = torch.cat([REWARDS, 5 * REWARDS.flip(0)])
    found = Policy(group_size=4, advantage=name).build_advantage()(rewards)
    others = {"group": group, "centered": centered, "batch_std": batch_std, "leave_one_out": leave_one_out}
    near(found, others.pop(name)(rewards, 4))
    for other in others.values():
        assert not torch.allclose(found, other(rewards, 4), atol=1e-3)


def test_what_a_recipe_says_reaches_the_estimator() -> None:
    inputs = {"mask": MASK, "old_logps": OLD, "ref_logps": REF}
    found = ReinforcePP(group_size=4, beta=0.5, kl="k2", gamma=0.7).build_advantage()(REWARDS, **inputs)
    near(found, reinforce_pp(REWARDS, MASK, old_logps=OLD, ref_logps=REF, beta=0.5, kl=KLS["k2"], gamma=0.7))
    found = Rloo(group_size=4, beta=0.5, kl="k3").build_advantage()(REWARDS, **inputs)
    near(found, leave_one_out(kl_shaped(REWARDS, MASK, OLD, REF, beta=0.5, kl=KLS["k3"]), 4))
    rewards = torch.stack([REWARDS, REWARDS.flip(0)], 1)
    assign_columns = Policy(group_size=4, advantage="columns").build_advantage()
    near(
        assign_columns(REWARDS, reward_columns=rewards, reward_weights=(2.0, 1.0)), columns(rewards, 4, weights=(2, 1))
    )
    assert not assign_columns(REWARDS, reward_columns=rewards, reward_weights=()).allclose(
        columns(rewards, 4, weights=(2, 1))
    )


def test_the_baseline_of_reinforce_pp_leaves_out_who_has_no_score() -> None:
    """Its statistics are those of the other three completions, whose lengths differ."""
    rewards, mask = of(1, NAN, 0, 0.25), MASK.clone()
    found = reinforce_pp_baseline(rewards, mask, group_size=4)
    near(found[[0, 2, 3]], whitened(centered(of(1, 0, 0.25), 3).unsqueeze(1).expand(3, 5), mask[[0, 2, 3]]))
    assert not found[1].any()


def test_what_advantages_ask_for() -> None:
    assert Policy().advantage_inputs == frozenset()
    assert Rloo(beta=0).advantage_inputs == frozenset()
    assert Rloo().advantage_inputs == {"mask", "old_logps", "ref_logps"}
    assert ReinforcePP(beta=0).advantage_inputs == {"mask"}
    assert Policy(credit="tree").advantage_inputs == {"mask", "completion_ids"}
    assert Policy(correction="mask").loss_inputs == {"sampler_logps"}
    assert set(KLS) == {"k1", "k2", "k3"}
    assert sum(LENGTHS) == 14
