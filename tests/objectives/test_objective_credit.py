"""Credit to tokens: trees, ranks, spans, demonstrations, distinct completions, tools; worked and by property."""

import numpy as np
import oracle
import pytest
import torch
from fixture_f1 import LOGPS, MASK, OLD, REWARDS, D, gradient_of, near, padded
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from seqtune.objectives.advantages import group
from seqtune.objectives.credit import entropy_floor, only_uncertain, spread, tree
from seqtune.objectives.dagrpo import distinct, edit_distances, shaped_probability
from seqtune.objectives.foresight import foresight
from seqtune.objectives.policy import pessimistic_clip, segment_log_ratio
from seqtune.objectives.prefix_rft import uncertain_prefix
from seqtune.objectives.rank_grpo import discounted_ranks, list_shape, rank_advantages
from seqtune.objectives.searcher import fewest_calls
from seqtune.objectives.segments import lines, plan_and_answer
from seqtune.objectives.specs.dagrpo import DaGrpo
from seqtune.objectives.specs.foresight import Foresight
from seqtune.objectives.specs.grpo import Grpo
from seqtune.objectives.specs.policy import Policy
from seqtune.objectives.specs.prefix_rft import PrefixRft
from seqtune.objectives.specs.rank_grpo import RankGrpo
from seqtune.objectives.specs.searcher import Searcher
from seqtune.objectives.specs.tempo import Tempo
from seqtune.objectives.specs.ts_grpo import TsGrpo

NAN = float("nan")
A = group(REWARDS, 4)
HALF = 0.865875
"""(1 - .5) / (std of [1, 0, 1, 0] + 1e-4) = .5 / (.577350 + .0001)."""


def of(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def completions(*paths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, paths))
    ids = torch.tensor([path + [0] * (longest - len(path)) for path in paths])
    return ids, torch.tensor([[t < len(path) for t in range(longest)] for path in paths])


# Trees

PATHS = ([5, 7, 9, 2], [5, 7, 8, 2], [5, 6, 2], [4, 2])
PATH_REWARDS = of(1, 0, 1, 0)


def test_worked_tempo() -> None:
    """a = ±.865875. V(5) = a/3 = .288625, V(57) = 0, V(579) = a: differences .288625, -.288625, .865875, 0 in row 1."""
    ids, mask = completions(*PATHS)
    a = group(PATH_REWARDS, 4)
    near(a, [HALF, -HALF, HALF, -HALF])
    wanted = [
        [1.154501, 0.577250, 1.731751, 0.865875],
        [-0.577250, -1.154501, -1.731751, -0.865875],
        [1.154501, 1.443126, 0.865875, 0],
        [-1.731751, -0.865875, 0, 0],
    ]
    near(tree(a, ids, mask, 4), wanted)
    near(Tempo(group_size=4).build_advantage()(PATH_REWARDS, completion_ids=ids, mask=mask), wanted)
    for row, expected in zip(oracle.tree(PATHS, a.tolist()), wanted, strict=True):
        assert row == pytest.approx(expected[: len(row)], abs=2e-6)


def test_tempo_is_not_grpo_and_weight_zero_is() -> None:
    ids, mask = completions(*PATHS)
    inputs = {"completion_ids": ids, "mask": mask}
    plain = group(PATH_REWARDS, 4)
    assert not torch.allclose(Tempo(group_size=4).build_advantage()(PATH_REWARDS, **inputs)[:, 0], plain, atol=0.1)
    without = Tempo(group_size=4, tree_weight=0.0).build_advantage()(PATH_REWARDS, **inputs)
    near(without, torch.where(mask, plain.unsqueeze(1), 0))


def test_the_root_counts_as_a_branch_or_not() -> None:
    ids, mask = completions([1, 2], [3, 2], [4, 2], [5, 2])
    near(tree(A, ids, mask, 4)[:, 0], 2 * A)
    near(tree(A, ids, mask, 4, root=False), torch.where(mask, A.unsqueeze(1), 0))
    ids, mask = completions(*PATHS)
    with_root, without = (tree(A, ids, mask, 4, root=root) for root in (True, False))
    near(without[:, 0], A)
    near(without[:, 1:], with_root[:, 1:])
    by_spec = Tempo(group_size=4, tree_root=False).build_advantage()(REWARDS, completion_ids=ids, mask=mask)
    near(by_spec, without)


def test_a_beginning_of_another_completion_counts_only_as_far_as_it_goes() -> None:
    """[1] and [1, 0, 2]: the padding of the first is no token 0. V(1) = .5, V(1 0) = 1."""
    ids, mask = completions([1], [1, 0, 2])
    near(tree(of(0.0, 1.0), ids, mask, 2) - torch.where(mask, of(0.0, 1.0).unsqueeze(1), 0), [[0, 0, 0], [0, 0.5, 0]])


def test_duplicates_share_their_value_to_the_end() -> None:
    ids, mask = completions([1, 2], [1, 2], [1, 3], [1, 3])
    found = tree(of(1.0, 0.0, -1.0, 0.0), ids, mask, 4) - of(1.0, 0.0, -1.0, 0.0).unsqueeze(1)
    near(found, [[0, 0.5], [0, 0.5], [0, -0.5], [0, -0.5]])


trees = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=4, max_size=4)


@given(trees, st.permutations(range(4)))
def test_properties_of_the_tree(paths, order) -> None:
    paths = [[*path, 9] for path in paths]  # ends make completions prefix-free
    ids, mask = completions(*paths)
    a = group(of(1, 0.2, -0.5, 0), 4)
    found = tree(a, ids, mask, 4)
    for row, expected in zip(found.tolist(), oracle.tree(paths, a.tolist()), strict=True):
        assert row[: len(expected)] == pytest.approx(expected, abs=1e-9)
    assert_close(tree(a[order], ids[order], mask[order], 4), found[order])
    delta = (found - a.unsqueeze(1)).masked_fill(~mask, 0)
    for i, path in enumerate(paths):
        if paths.count(path) == 1:
            assert_close(delta[i].sum(), a[i], msg="differences add up to the advantage of a completion of its own")
        for t in range(len(path)):
            same = [other for other in paths if other[:t] == path[:t]]
            if len({tuple(other[: t + 1]) for other in same}) == 1:
                assert abs(float(delta[i, t])) < 1e-9, "nothing is gained where nothing branches"
    assert abs(float((delta[:, 0]).sum())) < 1e-9, "over the children of the prompt the gains cancel"


def test_rewards_that_are_equal_give_no_credit() -> None:
    ids, mask = completions(*PATHS)
    assert not Tempo(group_size=4).build_advantage()(of(1, 1, 1, 1), completion_ids=ids, mask=mask).any()


def test_what_a_tool_wrote_is_part_of_the_state() -> None:
    """[1, tool 8 8, 3, 4] and [1, tool 8 8, 3, 5] part at the last token; what follows another result is new. Without
    the results [1, 3, 4] stands twice: .65 after .1."""
    ids = torch.tensor([[1, 8, 8, 3, 4], [1, 8, 8, 3, 5], [1, 8, 9, 3, 4]])
    mask = torch.tensor([[1, 0, 0, 1, 1]]).expand(3, 5)
    a = of(1.0, -1.0, 0.3)
    found = tree(a, ids, mask, 3)
    near(found - torch.where(mask.bool(), a.unsqueeze(1), 0), [[0, 0, 0, 0, 1], [0, 0, 0, 0, -1], [0, 0, 0, 0, 0]])
    near(tree(a, ids[:, [0, 3, 4]], torch.ones(3, 3), 3)[0, 2] - a[0], 0.65 - 0.1)


def test_a_completion_without_a_score_is_no_part_of_the_tree() -> None:
    ids, mask = completions([1, 2], [1, 3], [1, 2], [4, 2])
    found = Tempo(group_size=4).build_advantage()(of(1, 0, NAN, NAN), completion_ids=ids, mask=mask)
    near(found[:2], Tempo(group_size=2).build_advantage()(of(1, 0), completion_ids=ids[:2], mask=mask[:2]))
    assert not found[2:].any()


def test_gains_cancel_over_the_children_of_every_node_where_nothing_ends() -> None:
    ids, mask = completions([5, 7, 8, 2], [5, 7, 9, 2], [5, 6, 2], [5, 7, 8, 4])
    delta = tree(A, ids, mask, 4) - torch.where(mask, A.unsqueeze(1), 0)
    near(delta[:, 1].sum(), 0.0)  # children of 5
    near(delta[[0, 1, 3], 2].sum(), 0.0)  # of 5 7
    near(delta[[0, 3], 3].sum(), 0.0)  # of 5 7 8
    assert delta[0, 3].abs() > 0.1


# Ranks


def test_items_of_a_list() -> None:
    """A newline belongs to the item it closes; a token with two skips one."""
    assert lines(["a", "b\n", "c", "\n", "d"]) == [0, 0, 1, 1, 2]
    assert lines(["a\n\n", "b"]) == [0, 2]
    assert lines([]) == []


def test_the_end_of_the_sequence_begins_no_item() -> None:
    """K = 2 with a newline after the last item: a whole list, whose end has the ratio of that item."""
    assert lines(["a", "\n", "b", "\n", ""]) == [0, 0, 1, 1, 1]
    assert lines(["", "a\n", ""]) == [0, 0, 0]
    items, ended = torch.tensor([lines(["a\n", "b\n", ""])]), torch.tensor([True])
    near(list_shape(items, torch.ones(1, 3), ended, 2), [[0, 0, 0.1]])


RELEVANCE = torch.tensor([[1.0, 0, 1], [0, 1, 0], [0, 0, 0]]).double()


def test_worked_rank_rewards_and_advantages() -> None:
    """disc = [1, .630930, .5]: row 1 earns 1 + .5, .5, .5; row 2 .630930, .630930, 0."""
    r = discounted_ranks(RELEVANCE)
    near(r, [[1.5, 0.5, 0.5], [0.630930, 0.630930, 0], [0, 0, 0]])
    from seqtune.objectives.advantages import by_column

    near(
        by_column(r, 3),
        [[1.048385, 0.369362, 1.154301], [-0.105384, 0.762461, -0.577150], [-0.943001, -1.131823, -0.577150]],
    )
    near(
        by_column(RELEVANCE, 3),
        [[1.154501, -0.577250, 1.154501], [-0.577250, 1.154501, -0.577250], [-0.577250, -0.577250, -0.577250]],
    )


def test_worked_rank_loss() -> None:
    """Means of d: .03, .06, -.04: w = [1.030455, 1.061837, .960789]; at ε .06/.08 nothing is clipped; per item
    -1.080314, -.392202, -1.109040: mean -.860518; weighed by tokens (3, 2, 3): -.919058."""
    d = of(0.04, -0.02, 0.07, 0.10, 0.02, -0.09, -0.03, 0.0).unsqueeze(0)
    items = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2]])
    a = spread(of(1.048385, 0.369362, 1.154301).unsqueeze(0), items, torch.ones(1, 8))
    for how, count, wanted in (("rank", 1, -0.860518), ("token_mean", 8, -0.919058)):
        loss, _ = RankGrpo(ranks=3, aggregation=how, beta=0).build()(
            d, torch.zeros(1, 8).double(), a, torch.ones(1, 8), segments=items, denominator=count
        )
        near(loss, wanted)
    w = segment_log_ratio(d, torch.ones(1, 8), items).exp()[0, [0, 3, 5]]
    near(w, [1.030455, 1.061837, 0.960789])
    by_item = pessimistic_clip(w, a[0, [0, 3, 5]], epsilon_low=0.06, epsilon_high=0.08)
    near(by_item, [-1.080314, -0.392202, -1.109040])


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=2, max_size=4))
def test_properties_of_rank_rewards(rows) -> None:
    relevance = torch.tensor(rows, dtype=torch.float64)
    r = discounted_ranks(relevance)
    steps = r - torch.cat([r[:, 1:], torch.zeros(len(r), 1)], 1)
    discount = 1 / torch.log2(torch.arange(5) + 2.0)
    assert_close(steps, relevance * discount, rtol=0, atol=1e-6)
    assert (steps >= -1e-9).all()
    flipped = relevance.clone()
    flipped[0, 2] = 1 - flipped[0, 2]
    assert_close(discounted_ranks(flipped)[:, 3:], r[:, 3:])


def test_a_list_is_shaped_to_its_length() -> None:
    """K = 2. Whole and ended: +.1 at the end; too short: -.1; too long: -.1 on what is beyond, nothing at the end;
    cut off: nothing."""
    items = torch.tensor([[0, 1, 1], [0, 0, 0], [0, 1, 2], [0, 0, 1]])
    ended = torch.tensor([True, True, True, False])
    near(
        list_shape(items, torch.ones(4, 3), ended, 2),
        [[0, 0, 0.1], [0, 0, -0.1], [0, 0, -0.1], [0, 0, 0]],
    )


def test_rank_advantages_skip_the_end_and_the_overflow() -> None:
    items = torch.tensor([[0, 1, 1], [0, 1, 1]])
    spec = RankGrpo(group_size=2, ranks=2, rank_reward="own")
    rewards, earned = of(1.0, 1.0), torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
    given_ = {"rank_rewards": earned, "segments": items, "mask": torch.ones(2, 3)}
    found = spec.build_advantage()(rewards, ended=torch.tensor([True, False]), **given_)
    near(found, [[0.707007, -0.707007, 0.1], [-0.707007, 0.707007, 0.707007]])
    with pytest.raises(ValueError, match="2 ranks, not 20"):
        RankGrpo(group_size=2).build_advantage()(rewards, ended=torch.tensor([True, False]), **given_)


def test_shaping_is_as_large_as_the_fields_say() -> None:
    """K = 1: two tokens beyond in the first list; the second is whole, its end gets the bonus alone."""
    spec = RankGrpo(group_size=2, ranks=1, overflow_penalty=0.3, ending_bonus=0.5)
    found = spec.build_advantage()(
        of(1, 0),
        rank_rewards=of(1, 0).unsqueeze(1),
        segments=torch.tensor([[0, 1, 1], [0, 0, 0]]),
        mask=torch.ones(2, 3),
        ended=torch.ones(2),
    )
    near(found, [[0.707007, -0.3, -0.3], [-0.707007, -0.707007, 0.5]])


def test_ranks_that_are_missing_count_as_nothing_earned() -> None:
    """The second list has one item: at rank 2 it has 0 in the statistics and no token."""
    items, earned = torch.tensor([[0, 1], [0, 0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]]).double()
    shared = {"mask": torch.ones(2, 2), "segments": items, "ended": torch.zeros(2)}
    spec = RankGrpo(group_size=2, ranks=2, rank_reward="own")
    near(spec.build_advantage()(of(2, 0), rank_rewards=earned, **shared), [[0.707007] * 2, [-0.707007] * 2])
    unscored = spec.build_advantage()(of(2, NAN), rank_rewards=earned, **{**shared, "ended": torch.ones(2)})
    assert not unscored[1].any(), "nor has a list without a score any shaping"


@pytest.mark.parametrize("fields", [{"truncated": "drop"}, {"entropy_drop": 0.5}, {"kl_in": "reward"}])
def test_rank_grpo_refuses_what_it_would_not_read(fields) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        RankGrpo(**fields)


def test_tokens_beyond_the_last_rank_share_a_ratio_and_those_before_the_first_are_none() -> None:
    """K = 1: items 1 and 2 are beyond, d .2 and -.2, so that their one ratio is 1 and A = -.1 gives .1 a token; by rank
    they and a token of no item (-1) add nothing."""
    d, items = of(0.1, 0.2, -0.2, 0.3).unsqueeze(0), torch.tensor([[0, 1, 2, -1]])
    a, mask = of(1.0, -0.1, -0.1, 0.0).unsqueeze(0), torch.ones(1, 4)
    fields = {"ranks": 1, "beta": 0, "epsilon_low": 0.5, "epsilon_high": 0.5}
    by_token = RankGrpo(**fields, aggregation="token_sum").build()
    near(by_token(d, 0 * d, a, mask, segments=items, denominator=1)[0], -np.exp(0.1) + 0.1 + 0.1)
    other = of(1.0, -0.1, -0.1, 5.0).unsqueeze(0)
    near(RankGrpo(**fields).build()(d, 0 * d, other, mask, segments=items, denominator=1)[0], -np.exp(0.1))


def test_every_rank_is_counted_whether_a_list_has_it_or_not() -> None:
    """One item of K = 4: a quarter of its loss."""
    d, items, one = of(0.1).unsqueeze(0), torch.tensor([[0]]), torch.ones(1, 1)
    spec = RankGrpo(ranks=4, beta=0, epsilon_high=0.5)
    near(spec.build()(d, 0 * d, one.double(), one, segments=items, denominator=1)[0], -np.exp(0.1) / 4)


def test_items_weigh_the_same_however_long_they_are() -> None:
    """Item 0 written in one token or in three of its mean: the same loss by rank, another one by token."""
    short, long = torch.tensor([[0, 1]]), torch.tensor([[0, 0, 0, 1]])
    values, a = of(0.05, -0.02).unsqueeze(0), of(1.0, -0.5).unsqueeze(0)
    found = {}
    for how in ("rank", "token_mean"):
        for name, items in (("short", short), ("long", long)):
            d, mask = values.gather(1, items), torch.ones(items.shape)
            loss = RankGrpo(ranks=2, aggregation=how, beta=0).build()
            count = 1 if how == "rank" else items.numel()
            found[how, name] = loss(d, 0 * d, a.gather(1, items), mask, segments=items, denominator=count)[0]
    near(found["rank", "long"], found["rank", "short"])
    assert abs(found["token_mean", "long"] - found["token_mean", "short"]) > 0.1


def test_ranks_are_compared_across_the_group_and_sequences_are_not() -> None:
    """Both lists earn the same in all: GRPO sees nothing, Rank-GRPO sees who was better at which rank."""
    items = torch.tensor([[0, 1], [0, 1]])
    earned = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
    assert not group(earned.sum(1), 2).any()
    ranked = rank_advantages(
        earned.sum(1),
        rank_rewards=earned,
        segments=items,
        mask=torch.ones(2, 2),
        ended=torch.zeros(2),
        group_size=2,
        ranks=2,
        discounted=False,
        overflow=0,
        ending=0,
    )
    assert (ranked.sign() == torch.tensor([[1, -1], [-1, 1]])).all()


# Spans


def test_plan_and_answer_of_texts() -> None:
    """A token that straddles an edge belongs to the span of its last character."""
    assert plan_and_answer(["go ", "</think>", "42"], "</think>") == [0, -1, 1]
    assert plan_and_answer(["go</thi", "nk> 4", "2"], "</think>") == [-1, 1, 1]
    assert plan_and_answer(["no ", "marker"], "</think>") == [1, 1]
    assert plan_and_answer(["a</think>", "b</think>"], "</think>") == [-1, 1]
    assert plan_and_answer(["ab", "<", "/think>", "c"], "</think>") == [0, -1, -1, 1]
    assert TsGrpo(marker="#").build_segments()(["a", "#", "b</think>"]) == [0, -1, 1]


SPANS = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 9, 9], [0, 0, 1, 1, 9], [1, 1, 9, 9, 9]])
PLAN_REWARDS = of(0.5, 1, 0, 0)


def test_worked_ts_grpo() -> None:
    """A^P = [.261062, 1.305310, -.783186, -.783186]; s over the answers e^(.1/3), e^-.11, e^.01, e^-.15;
    L_P = [-.268424, -1.566372, .809294, 0], L_S = [-1.458247, .658218, .133367, .658218]; mean of sums -.258486."""
    spec = TsGrpo(group_size=4, plan_advantage="own")
    a = spec.build_advantage()(REWARDS, plan_rewards=PLAN_REWARDS, segments=SPANS, mask=MASK)
    near(a[:3, 0], [0.261062, 1.305310, -0.783186])
    near(a[:, 1:][SPANS[:, 1:] == 1], A[torch.where(SPANS[:, 1:] == 1)[0]])
    near(gradient_of(spec, a, segments=SPANS)[0], -0.258486)
    plans = TsGrpo(group_size=4, plan_advantage="own", answer_weight=0.0)
    answers = TsGrpo(group_size=4, plan_advantage="own", plan_weight=0.0)
    for rows, wanted in (
        (plans, [-0.268424, -1.566372, 0.809294, 0]),
        (answers, [-1.458247, 0.658218, 0.133367, 0.658218]),
    ):
        for i, row in enumerate(wanted):
            one = slice(i, i + 1)
            near(rows.build()(LOGPS[one], OLD[one], a[one], MASK[one], segments=SPANS[one], denominator=1)[0], row)
    s = torch.where(SPANS == 1, D, 0).nan_to_num().sum(1) / (SPANS == 1).sum(1)
    near(s.exp(), [1.033895, 0.895834, 1.010050, 0.860708])


def test_the_plan_may_take_the_advantage_of_the_answer() -> None:
    inputs = {"segments": SPANS, "mask": MASK}
    shared = TsGrpo(group_size=4).build_advantage()(REWARDS, **inputs)
    near(shared, torch.where(MASK, A.unsqueeze(1), 0))
    marked = TsGrpo(group_size=4).build_advantage()(REWARDS, segments=torch.where(SPANS == 0, -1, SPANS), mask=MASK)
    near(marked, torch.where(MASK & (SPANS == 1), A.unsqueeze(1), 0))
    both = TsGrpo(group_size=4, plan_advantage="sum").build_advantage()(REWARDS, plan_rewards=PLAN_REWARDS, **inputs)
    near(both[:3, 0], group(PLAN_REWARDS, 4)[:3] + A[:3])


@pytest.mark.parametrize("plan", ["answer", "own", "sum"])
def test_what_leaves_an_answer_out_leaves_its_plan_out_too(plan: str) -> None:
    """Truncated completions as a whole, and the least uncertain tokens of plans as of answers."""
    items, mask = torch.tensor([[0, 1], [0, 1]]), torch.ones(2, 2)
    shared = {"segments": items, "mask": mask, **({} if plan == "answer" else {"plan_rewards": of(0, 1)})}
    cut = TsGrpo(group_size=2, plan_advantage=plan, truncated="drop").build_advantage()
    found = cut(of(1, 0), ended=torch.tensor([True, False]), **shared)
    assert found.isnan().tolist() == [[False, False], [True, True]]
    sure = TsGrpo(group_size=2, plan_advantage=plan, entropy_drop=0.5).build_advantage()
    assert not sure(of(1, 0), entropies=torch.tensor([[0.0, 1.0], [0.0, 1.0]]), **shared)[:, 0].any()


def test_a_plan_that_is_not_there_has_earned_nothing() -> None:
    """Whatever the reward says of the second completion, the first plan is compared with 0."""
    items, mask = torch.tensor([[0, 1], [1, 1]]), torch.ones(2, 2)
    found = [
        TsGrpo(group_size=2, plan_advantage="own").build_advantage()(
            of(0, 0), plan_rewards=of(1, earned), segments=items, mask=mask
        )
        for earned in (0, 1, 5)
    ]
    for one in found:
        near(one, [[0.707007, 0], [0, 0]])


def test_an_overlong_completion_does_not_lower_the_plans_own_reward() -> None:
    items, mask = torch.tensor([[0, 1, 1, 1], [0, 1, -1, -1]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    spec = TsGrpo(group_size=2, plan_advantage="own", overlong=0.5).build_advantage()
    found = spec(of(0, 0), plan_rewards=of(1, 0), segments=items, mask=mask, limit=4)
    near(found, [[0.707007, -0.707007, -0.707007, -0.707007], [-0.707007, 0.707007, 0, 0]])


def test_spans_are_separate() -> None:
    a = A.unsqueeze(1).repeat(1, 5)
    _, plan, _ = gradient_of(TsGrpo(answer_weight=0.0), a, segments=SPANS)
    _, answer, _ = gradient_of(TsGrpo(plan_weight=0.0), a, segments=SPANS)
    _, both, _ = gradient_of(TsGrpo(), a, segments=SPANS)
    assert not plan[SPANS == 1].any()
    assert not answer[SPANS == 0].any()
    assert_close(plan + answer, both)
    neither = torch.where(SPANS == 0, -1, SPANS)
    assert_close(gradient_of(TsGrpo(), a, segments=neither)[1], answer)


# Tokens by entropy, demonstrations

PREFIX_ENTROPIES = of(0.1, 0.9, 0.3, 2, 0.05, 0.6, 1.2, 0.02, 0.4, 0.7).unsqueeze(0)


def test_worked_uncertain_prefix() -> None:
    """Ten demonstration tokens, 20 % kept: numbers 3 and 6. Own tokens keep their advantage."""
    ones = torch.ones(1, 10)
    found = uncertain_prefix(of(0.625), PREFIX_ENTROPIES, ones, ones, 0.2)
    assert found[0].nonzero().flatten().tolist() == [3, 6]
    half = torch.arange(10).unsqueeze(0) < 5
    assert uncertain_prefix(of(0.625), PREFIX_ENTROPIES, ones, half, 0.2)[0].nonzero().flatten().tolist() == [
        3,
        5,
        6,
        7,
        8,
        9,
    ]
    near(uncertain_prefix(of(0.625), PREFIX_ENTROPIES, ones, ones, 1.0), torch.full((1, 10), 0.625))
    assert not uncertain_prefix(of(0.625), PREFIX_ENTROPIES, ones, ones, 0.0).any()
    near(uncertain_prefix(of(0.625), PREFIX_ENTROPIES, ones, 0 * ones, 0.2), torch.full((1, 10), 0.625))


def test_worked_prefix_rft_advantages() -> None:
    """Seven of its own [1,0,0,1,0,0,0] and the hybrid 1: mean .375: .625 and -.375."""
    rewards = of(1, 0, 0, 1, 0, 0, 0, 1)
    mask = torch.ones(8, 2)
    prefix = torch.zeros(8, 2)
    prefix[7, 0] = 1
    found = PrefixRft(prefix_keep=1.0).build_advantage()(
        rewards, entropies=torch.ones(8, 2), mask=mask, prefix_mask=prefix
    )
    near(found[:, 1], torch.where(rewards == 1, 0.625, -0.375))
    near(found[7], [0.625, 0.625])


def test_a_demonstration_of_a_completion_that_is_left_out_is_left_out() -> None:
    """Its dropped tokens are NaN, not 0: a token mean does not count them."""
    found = PrefixRft(group_size=2, truncated="drop").build_advantage()(
        of(1, 0),
        entropies=torch.tensor([[0.0, 1.0], [0.0, 1.0]]),
        mask=torch.ones(2, 2),
        prefix_mask=torch.tensor([[0, 0], [1, 0]]),
        ended=torch.tensor([True, False]),
    )
    assert found.isnan().tolist() == [[False, False], [True, True]]


def test_the_shares_of_demonstrations_are_those_of_the_fields() -> None:
    spec = PrefixRft(share_first=0.8, share_last=0.2, share_high=0.6, share_schedule="linear")
    shares = spec.build_prefix_shares(10)
    assert [shares(step) for step in (0, 2, 5, 10, 20)] == [
        (0.8, 0.8),
        (pytest.approx(0.68), pytest.approx(0.68)),
        (pytest.approx(0.5), 0.6),
        (pytest.approx(0.2), 0.6),
        (pytest.approx(0.2), 0.6),
    ]


def test_demonstration_tokens_have_ratio_one_in_half_precision_too() -> None:
    logps = torch.tensor([[-1.2345, -2.3456]])
    loss, metrics = PrefixRft().build()(
        logps, logps.bfloat16(), of(1).float(), torch.ones(1, 2), prefix_mask=torch.ones(1, 2), denominator=2
    )
    assert metrics["policy/ratio_mean"] == 1
    assert loss == -1


def test_demonstration_tokens_have_ratio_one() -> None:
    """Their gradient is -A whatever π_old says; nothing clips them; without any the loss is the plain one."""
    prefix = torch.zeros_like(MASK)
    spec = PrefixRft(aggregation="sequence_mean")
    plain = Policy(bound=3.0)
    assert_close(gradient_of(spec, A, prefix_mask=prefix)[:2], gradient_of(plain, A)[:2])
    prefix[0] = True
    _, gradient, _ = gradient_of(spec, A, prefix_mask=prefix)
    near(gradient[0], torch.full((5,), float(-A[0] / 20)))
    assert gradient_of(plain, A)[1][0, 2] == 0


def test_only_uncertain_tokens_keep_their_advantage() -> None:
    found = only_uncertain(of(2.0), PREFIX_ENTROPIES, torch.ones(1, 10), 0.8)
    assert found[0].nonzero().flatten().tolist() == [3, 6]
    spec = Policy(group_size=4, entropy_drop=0.5)
    entropies = torch.where(MASK, torch.arange(20.0).reshape(4, 5), torch.nan)
    a = spec.build_advantage()(REWARDS, entropies=entropies, mask=MASK)
    assert int((a[MASK] != 0).sum()) == 7


@given(st.lists(st.floats(0, 3), min_size=1, max_size=12), st.sampled_from([0.1, 0.3, 0.5, 0.8]))
def test_the_tokens_that_stay_are_those_from_the_quantile_on(values, drop) -> None:
    entropies = of(*values).unsqueeze(0)
    found = only_uncertain(of(1.0), entropies, torch.ones_like(entropies), drop)
    assert (found != 0).tolist() == (entropies >= torch.quantile(entropies, drop)).tolist()


def test_what_is_left_out_stays_left_out() -> None:
    found = only_uncertain(of(NAN, 1.0), torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.ones(2, 2), 0.5)
    assert found.isnan().tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize(("keep", "kept"), [(0.0, 0), (0.1, 0), (0.2, 1), (0.5, 2), (1.0, 3)])
def test_the_share_of_a_demonstration_is_rounded(keep: float, kept: int) -> None:
    ones = torch.ones(1, 3)
    assert int((uncertain_prefix(of(1.0), torch.tensor([[0.1, 0.3, 0.2]]), ones, ones, keep) != 0).sum()) == kept


def test_a_rollout_of_any_size_has_a_quantile() -> None:
    """torch.quantile takes 2^24 numbers at most; 4 100 completions of 4 100 tokens have more."""
    entropies = torch.arange(4100.0).expand(4100, 4100)
    assert entropy_floor(entropies, entropies >= 0, 0.5) == 2050


def test_the_dropped_share_is_exact() -> None:
    """.07 of the way from the first of 101 entropies to the last are seven; .07 × 100 in binary is a little more."""
    found = only_uncertain(of(1.0), torch.arange(101.0).unsqueeze(0), torch.ones(1, 101), 0.07)
    assert int((found == 0).sum()) == 7


def test_without_a_token_there_is_no_quantile() -> None:
    near(only_uncertain(of(1.0), torch.ones(1, 3), torch.zeros(1, 3), 0.5), [[0.0] * 3])


# Distinct completions


def test_worked_dagrpo() -> None:
    """Scores [.9, .55, .5, .1], outcomes [1, 1, 0, 0]: gaps [.4, .05, .05, .45], kept at τ .2 [1, 0, 0, 1]."""
    scores = of(0.9, 0.55, 0.5, 0.1)
    distances = (scores[:, None] - scores[None]).abs().unsqueeze(0)
    rewards = of(1, 1, 0, 0)
    assert distinct(rewards, distances, success=0.5, tau=0.2).tolist() == [True, False, False, True]
    near(group(rewards, 4), [HALF, HALF, -HALF, -HALF])
    assert distinct(1 - rewards, distances, success=0.5, tau=0.2).tolist() == [True, False, False, True]
    assert distinct(rewards, distances, success=0.5, tau=0.0).all()
    assert not distinct(rewards, distances, success=0.5, tau=1.1).any()
    assert distinct(of(1, 1, 1, 1), distances, success=0.5, tau=1.1).all(), "no one differs in outcome"
    assert distinct(rewards / 2, distances, success=0.5, tau=1.1).all(), "a reward of .5 is not above it"
    some = distinct(of(1, NAN, 0, 0), distances, success=0.5, tau=0.42)
    assert some.tolist() == [False, True, False, True], "without a score: kept, and no one's opposite"
    assert distinct(of(1, NAN, 0, 0), distances, success=0.5, tau=0.38).all(), "though it is .35 from the first"
    assert distinct(of(1, 0), torch.tensor([[[0, 0.25], [0.25, 0]]]), success=0.5, tau=0.25).all(), "τ itself is enough"


def test_values_of_segments_that_are_none_are_zero() -> None:
    items = torch.tensor([[-1, 0, 1, 2, 0]])
    near(spread(of(3, 5).unsqueeze(0), items, torch.tensor([[1, 1, 1, 1, 0]])), [[0.0, 3, 5, 0, 0]])


@given(st.lists(st.lists(st.integers(0, 3), max_size=6), min_size=2, max_size=2))
def test_edit_distance_against_the_table(pair) -> None:
    ids, mask = completions(*([*one, 7] for one in pair))
    found = edit_distances(ids, mask, 2)[0, 0, 1]
    one, other = ([*row, 7] for row in pair)
    assert float(found) == pytest.approx(oracle.levenshtein(one, other) / max(len(one), len(other)), abs=1e-6)


def test_the_edit_distance_is_of_what_the_mask_holds_over_the_longer_one() -> None:
    """[1, 2] and [1, 2, 3, 4]: two insertions of four; two empty completions are the same."""
    ids, mask = completions([1, 2], [1, 2, 3, 4])
    near(edit_distances(ids, mask, 2), [[[0, 0.5], [0.5, 0]]])
    near(edit_distances(ids, 0 * mask, 2), torch.zeros(1, 2, 2))
    near(
        edit_distances(torch.tensor([[1, 9, 2], [1, 8, 2]]), torch.tensor([[1, 0, 1], [1, 0, 1]]), 2),
        torch.zeros(1, 2, 2),
    )


def test_dagrpo_leaves_near_duplicates_with_the_other_outcome_out() -> None:
    ids, mask = completions([1, 2, 3, 4], [1, 2, 3, 5], [6, 7, 8, 9], [1, 1, 6, 6])
    rewards = of(1, 0, 0, 1)
    a = DaGrpo(group_size=4, tau=0.3).build_advantage()(rewards, completion_ids=ids, mask=mask)
    assert a.isnan().tolist() == [True, True, False, False]
    near(a[2:], group(rewards, 4)[2:])
    near(DaGrpo(group_size=4, tau=0).build_advantage()(rewards, completion_ids=ids, mask=mask), group(rewards, 4))


def test_worked_anchor_weight() -> None:
    """f = π/(π + .1) at log π -.1, -1, -4: .900481, .786270, .154803; slopes .1 π/(π + .1)²."""
    logps = of(-0.1, -1, -4).requires_grad_()
    f = shaped_probability(logps, 0.1)
    near(f, [0.900481, 0.786270, 0.154803])
    near(torch.autograd.grad(f.sum(), logps)[0], [0.089615, 0.168050, 0.130839])


def test_anchors_are_learnt_without_a_ratio() -> None:
    prefix = torch.zeros_like(MASK)
    spec = DaGrpo(anchors=True)
    plain = gradient_of(DaGrpo(), A, count=14)
    assert_close(gradient_of(spec, A, count=14, prefix_mask=prefix)[:2], plain[:2])
    prefix[0] = True
    _, gradient, _ = gradient_of(spec, A, count=14, prefix_mask=prefix)
    p = LOGPS[0].exp()
    near(gradient[0], -A[0] * 0.1 * p / (p + 0.1) ** 2 / 14)
    assert_close(gradient[1:], plain[1][1:])


def test_an_anchor_that_is_left_out_teaches_nothing() -> None:
    prefix, a = torch.zeros_like(MASK), A.clone()
    prefix[0], a[0] = True, NAN
    loss, gradient, metrics = gradient_of(DaGrpo(anchors=True), a, count=9, prefix_mask=prefix)
    near(loss, gradient_of(DaGrpo(), a, count=9)[0])
    assert not gradient[0].any()
    near(metrics["policy/empty_rows"], 0.25)


def test_an_answer_rewritten_in_its_own_row_is_not_alone() -> None:
    """Two of the tokens of row 1 are memory, three are its own: no row is empty, and nll is a mean over all four."""
    memory = torch.zeros_like(MASK)
    memory[0, :2] = True
    metrics = gradient_of(Searcher(beta=0.0), A, count=14, memory_mask=memory)[2]
    near(metrics["policy/memory_nll"], (1.1 + 0.75) / 4)
    assert metrics["policy/empty_rows"] == 0


def test_an_anchor_is_no_empty_row_and_a_token_without_a_probability_teaches_nothing() -> None:
    prefix = torch.zeros_like(MASK)
    prefix[0] = True
    assert gradient_of(DaGrpo(anchors=True), A, count=14, prefix_mask=prefix)[2]["policy/empty_rows"] == 0
    logps = LOGPS.clone()
    logps[0, 1] = NAN
    loss, gradient, _ = gradient_of(DaGrpo(anchors=True), A, count=14, prefix_mask=prefix, logps=logps)
    assert loss.isfinite()
    assert gradient[0, 1] == 0
    loss, gradient, metrics = gradient_of(Searcher(beta=0.0), A, count=14, memory_mask=prefix, logps=logps)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert metrics["policy/memory_nll"].isfinite()


# Two models, tools


def test_worked_foresight() -> None:
    """R = [.8, .4, .2, .2]: A = [1.413714, 0, -.706857, -.706857]."""
    a = Foresight(group_size=4).build_advantage()(
        of(0, 0, 0, 0),
        format_scores=of(1, 1, 1, 1),
        executions=torch.tensor([[1.0, 0.666667], [0.5, 0.166667], [0, 0], [0, 0]]).double(),
        judge_scores=of(0.5, 0, 0, 0),
    )
    near(a, [1.413714, 0, -0.706857, -0.706857])


def test_a_subgoal_that_does_not_parse_executes_nothing() -> None:
    tries = torch.tensor([[1.0, 1.0], [1.0, torch.nan]]).double()
    near(foresight(of(0, 1), tries, of(0, 0), weights=(0.2, 0.6, 0.2)), [0.0, 0.2 + 0.3])
    near(foresight(of(0, 1), tries, of(1, 1), weights=(1, 0, 0)), [0, 1])
    near(foresight(of(0, 1), tries, of(1, 1), weights=(0.2, 0.6, 0.2)), [0.2, 0.2 + 0.3 + 0.2])
    near(foresight(of(0, 1), tries.flip(1), of(1, 1), weights=(0.2, 0.6, 0.2)), [0.2, 0.2 + 0.3 + 0.2])


def test_worked_fewest_calls() -> None:
    """Correct completions with 3, 1 and 2 calls: variance 2/3, twice that 1.333333 to the one with 1 call."""
    correct, calls = torch.tensor([True, True, True, False]), torch.tensor([3, 1, 2, 0])
    near(fewest_calls(correct, calls, 4), [0, 4 / 3, 0, 0])
    near(fewest_calls(correct, 5 * calls, 4), [0, 2, 0, 0])
    near(fewest_calls(correct & False, calls, 4), [0, 0, 0, 0])
    near(fewest_calls(torch.tensor([True, False, False, False]), calls, 4), [0, 0, 0, 0])


def test_the_searcher_adds_its_bonus_to_the_reward() -> None:
    spec = Searcher(group_size=4, beta=0.0)
    rewards, calls, mask = of(1, 1, 1, 0), torch.tensor([3, 1, 2, 0]), torch.ones(4, 2)
    found = spec.build_advantage()(rewards, calls=calls, mask=mask)
    from seqtune.objectives.advantages import reinforce_pp

    near(found, reinforce_pp(of(1, 1 + 4 / 3, 1, 0), mask))


def test_rewritten_answers_are_memorised() -> None:
    """Row 4 rewritten: L = L_policy of the others + .1 × its mean nll share: -log π = .8, 1.8: .26 / 14."""
    memory = torch.zeros_like(MASK)
    memory[3] = True
    spec = Searcher(beta=0.0)
    loss, gradient, metrics = gradient_of(spec, A, count=14, memory_mask=memory)
    others, _, _ = gradient_of(Searcher(beta=0.0, mu=0.0), A, count=14, mask=MASK & ~memory)
    near(loss - others, 0.1 * 2.6 / 14)
    near(gradient[3, :2], [-0.1 / 14, -0.1 / 14])
    near(metrics["policy/memory_nll"], 2.6 / 3)
    near(metrics["policy/empty_rows"], 0)
    none = gradient_of(spec, A, count=14, memory_mask=torch.zeros_like(MASK))
    near(none[0], gradient_of(Searcher(beta=0.0, mu=0.0), A, count=14)[0])


# The reduction table


def test_reductions() -> None:
    """Each method at the setting where it is another one."""
    from fixture_f1 import ENTROPIES, ROWS

    from seqtune.objectives.specs.espo_entropy import EspoEntropy
    from seqtune.objectives.specs.gspo import Gspo
    from seqtune.objectives.specs.gspo_token import GspoToken

    grpo, a2 = Policy(epsilon_low=0.003, epsilon_high=0.004), A.unsqueeze(1).repeat(1, 5)
    gspo = Gspo(epsilon_low=0.003, epsilon_high=0.004)
    one = MASK & (torch.arange(5) == 0)

    def same(left, right) -> None:
        assert_close(left[:2], right[:2])

    same(gradient_of(gspo, A, mask=one), gradient_of(grpo, A, mask=one))  # GSPO of one token
    same(gradient_of(GspoToken(epsilon_low=0.003, epsilon_high=0.004), A), gradient_of(gspo, A))
    bins = {"grouping": "bins", "alpha": 0.0}
    same(gradient_of(EspoEntropy(**bins, bins=1), A, entropies=ENTROPIES), gradient_of(gspo, A))
    same(gradient_of(EspoEntropy(**bins, bins=5), A, entropies=ENTROPIES), gradient_of(grpo, A))
    answers, plans = torch.ones_like(SPANS), torch.zeros_like(SPANS)
    same(gradient_of(TsGrpo(epsilon_low=0.003, epsilon_high=0.004), a2, segments=answers), gradient_of(gspo, A))
    same(gradient_of(TsGrpo(), a2, segments=plans), gradient_of(Policy(), A))
    item = RankGrpo(ranks=1, epsilon_low=0.003, epsilon_high=0.004, beta=0)
    same(gradient_of(item, a2, segments=plans), gradient_of(gspo, A))  # one item
    place = torch.arange(5).expand(4, 5)
    tokens = RankGrpo(ranks=5, beta=0, epsilon_low=0.2, epsilon_high=0.2, aggregation="token_mean")
    same(gradient_of(tokens, a2, segments=place), gradient_of(Policy(aggregation="token_mean"), A))
    same(gradient_of(DaGrpo(), A, count=14), gradient_of(Grpo(beta=0, aggregation="token_mean"), A, count=14))
    same(
        gradient_of(PrefixRft(bound=None, aggregation="sequence_mean"), A, prefix_mask=MASK & False),
        gradient_of(Policy(), A),
    )
    assert ROWS == 4
    assert D.shape == OLD.shape
    assert padded([[1.0]] * 4).shape == (4, 5)


@pytest.mark.parametrize("left_out", [0, 3])
def test_dagrpo_with_rows_left_out_is_the_token_mean_of_the_rest(left_out: int) -> None:
    a, mask = A.clone(), MASK.clone()
    a[left_out] = torch.nan
    mask[left_out] = False
    kept = int(mask.sum())
    assert_close(
        gradient_of(DaGrpo(), a, count=kept)[:2],
        gradient_of(Grpo(beta=0, aggregation="token_mean"), A, count=kept, mask=mask)[:2],
    )
