"""Parts of the space one by one and together: clips, units, corrections, aggregation, KL; worked on F1."""

import numpy as np
import oracle
import pytest
import torch
from fixture_f1 import (
    ENTROPIES,
    LIVE_TOKENS,
    LOGPS,
    MASK,
    OLD,
    REF,
    REWARDS,
    ROWS,
    SAMPLER,
    D,
    gradient_of,
    near,
    padded,
)
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from seqtune.objectives.advantages import centered, group, leave_one_out
from seqtune.objectives.policy import (
    Clip,
    Correction,
    Rejection,
    dual_clip,
    importance_ratio,
    k1,
    k2,
    k3,
    micro_batch_mean,
    pessimistic_clip,
    policy_loss,
    segment_log_ratio,
    sequence_log_ratio,
    soft_gate,
    strayed,
    token_log_ratio,
)
from seqtune.objectives.reduce import masked_mean
from seqtune.objectives.specs.dr_grpo import DrGrpo
from seqtune.objectives.specs.espo_entropy import EspoEntropy
from seqtune.objectives.specs.gspo import Gspo
from seqtune.objectives.specs.gspo_token import GspoToken
from seqtune.objectives.specs.minirl import MiniRl
from seqtune.objectives.specs.policy import Policy
from seqtune.objectives.specs.rloo import Rloo

A = group(REWARDS, 4)
zero = torch.zeros_like
floats = st.floats(-0.6, 0.6)


def number(value: float, grad: bool = False) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=grad)


# Clips


@given(st.floats(0.05, 8), st.sampled_from([-2.0, -0.3, 0.4, 1.5]), st.floats(1.6, 5))
def test_the_outer_bound_is_the_dual_clip(w, advantage, bound) -> None:
    one, other = number(w, True), number(w, True)
    a = number(advantage)
    bounded = pessimistic_clip(one, a, epsilon_low=0.2, epsilon_high=0.5, bound=bound)
    dual = dual_clip(other, a, epsilon_low=0.2, epsilon_high=0.5, c=bound)
    assert_close(bounded, dual)
    if abs(w - bound) > 1e-9:
        assert_close(torch.autograd.grad(bounded, one), torch.autograd.grad(dual, other))


def test_only_the_outer_bound_stops_a_huge_ratio_with_a_negative_advantage() -> None:
    """w = 10, A = -1: the loss is 10 without, 3 with δ = 3, and then without a gradient."""
    w, a = number(10.0, True), number(-1.0)
    near(pessimistic_clip(w, a, epsilon_low=0.2, epsilon_high=0.2), 10)
    bounded = pessimistic_clip(w, a, epsilon_low=0.2, epsilon_high=0.2, bound=3)
    near(bounded, 3)
    assert torch.autograd.grad(bounded, w)[0] == 0
    low, _ = Clip("pessimistic", 0.2, 0.2, 3).acts(w, a)
    assert low


def test_a_bound_acts_beyond_it_and_for_the_sign_it_is_meant_for() -> None:
    """ε .5 and δ 3, exact in binary: at the bounds the whole gradient passes; nothing is clipped where A is 0."""
    rule = Clip("pessimistic", 0.5, 0.5, 3.0)
    w = torch.tensor([0.5, 1.5, 3.0, 4.0, 0.25], dtype=torch.float64)
    for a, low, high in (
        (-1.0, [False, False, False, True, True], [False] * 5),
        (0.0, [False] * 5, [False] * 5),
        (1.0, [False] * 5, [False, False, True, True, False]),
    ):
        found = rule.acts(w, torch.full_like(w, a))
        assert (found[0].tolist(), found[1].tolist()) == (low, high)
        for name in ("pessimistic", "gate"):
            leaf = w.clone().requires_grad_()
            values = Clip(name, 0.5, 0.5, 3.0 if name == "pessimistic" else None).loss(leaf, torch.full_like(w, a), w)
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
            stopped = [x or y for x, y in zip(low, high, strict=True)]
            if name == "gate" and a < 0:
                stopped[3] = False  # has no outer bound
            assert gradient.tolist() == [0.0 if stop else -a for stop in stopped]


def test_worked_cispo() -> None:
    """-sg(min(ρ, 1.2)) A log π, mean over 14 tokens: .281011; no token is without a gradient."""
    spec = Policy(clip="cispo", epsilon_high=0.2, aggregation="token_mean")
    loss, gradient, metrics = gradient_of(spec, A, count=LIVE_TOKENS)
    near(loss, 0.281011)
    assert (gradient[MASK] != 0).all()
    assert_close(gradient[0, 2], -1.2 * A[0] / 14)
    near(metrics["policy/clip_high"], 2 / 14)
    assert metrics["policy/clip_low"] == 0


def test_the_gate_has_the_gradient_of_the_clip_and_another_value() -> None:
    clipped, gated = (gradient_of(Policy(clip=rule), A) for rule in ("pessimistic", "gate"))
    assert_close(clipped[1], gated[1])
    assert abs(clipped[0] - gated[0]) > 0.01
    near(clipped[0], -0.003360)


def test_the_soft_gate_is_the_policy_gradient_at_one_and_fades() -> None:
    w = torch.tensor([1.0, 1.5, 3.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(soft_gate(w, number(1.0), tau_positive=1, tau_negative=2).sum(), w)
    near(gradient[0], -1.0)
    assert gradient[0] < gradient[1] < gradient[2] < 0
    (negative,) = torch.autograd.grad(soft_gate(w, number(-1.0), tau_positive=1, tau_negative=2).sum(), w)
    near(negative[0], 1.0)
    assert negative[2] < -gradient[2], "with a larger τ the gradient fades sooner"
    near(soft_gate(number(2.0), number(1.0), tau_positive=1, tau_negative=2), -4 / (1 + np.exp(-1)))


@pytest.mark.parametrize("rule", ["pessimistic", "cispo", "gate", "soft"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_on_policy_every_rule_is_the_policy_gradient(rule: str, ratio: str) -> None:
    """-A_i / (B n_i) on every token."""
    _, gradient, _ = gradient_of(Policy(clip=rule, ratio=ratio), A, logps=OLD)
    near(gradient, torch.where(MASK, -A.unsqueeze(1) / (4 * MASK.sum(1, keepdim=True)), 0))


@pytest.mark.parametrize("rules", [("pessimistic", "cispo"), ("pessimistic", "soft"), ("cispo", "gate")])
def test_off_policy_the_rules_differ(rules) -> None:
    one, other = (gradient_of(Policy(clip=rule), A)[1] for rule in rules)
    assert not torch.allclose(one, other, atol=1e-3)


# Units


def test_worked_rloo() -> None:
    """Products of ratios e^.15, e^.03, e^.07, e^-.3; A = leave-one-out; clip .2: row 4 is clipped at .8."""
    s = torch.where(MASK, D, 0).sum(1).exp()
    near(s, [1.161834, 1.030455, 1.072508, 0.740818])
    a = leave_one_out(REWARDS, 4)
    near(pessimistic_clip(s, a, epsilon_low=0.2, epsilon_high=0.2), [-1.065015, 0.429356, 0.089375, 0.333334])
    near(gradient_of(Rloo(beta=0), a)[0], -0.053237)


def test_rloo_does_not_divide_by_length_and_gspo_does() -> None:
    one, other = gradient_of(Rloo(beta=0), A)[0], gradient_of(Gspo(epsilon_low=0.2, epsilon_high=0.2), A)[0]
    assert abs(one - other) > 0.01


def test_segments_between_token_and_sequence() -> None:
    place = torch.arange(5).expand(4, 5)
    assert_close(segment_log_ratio(D, MASK, place), token_log_ratio(D, MASK))
    whole = sequence_log_ratio(D, MASK).expand(4, 5)
    assert_close(segment_log_ratio(D, MASK, torch.full((4, 5), 7)), torch.where(MASK, whole, 0))
    halves = segment_log_ratio(D, MASK, (place >= 2).long() - 1)
    near(halves[0], [0.025, 0.025, 0.1 / 3, 0.1 / 3, 0.1 / 3])
    with pytest.raises(ValueError, match="segments"):
        segment_log_ratio(D, MASK, None)


@given(st.lists(st.lists(floats, min_size=4, max_size=4), min_size=2, max_size=5), st.randoms())
def test_a_segment_ratio_lies_among_its_tokens_and_ignores_their_order(rows, random) -> None:
    d = torch.tensor(rows, dtype=torch.float64)
    units = torch.tensor([[random.choice([-1, 0, 3]) for _ in row] for row in rows])
    found = segment_log_ratio(d, torch.ones_like(d), units)
    for i in range(len(d)):
        for unit in units[i].unique():
            inside = units[i] == unit
            assert_close(found[i][inside], d[i][inside].mean().expand(int(inside.sum())))
    for i, row in enumerate(rows):
        shuffled = list(range(len(row)))
        random.shuffle(shuffled)
        again = segment_log_ratio(d[i : i + 1, shuffled], torch.ones(1, len(row)), units[i : i + 1, shuffled])
        assert_close(again[0], found[i, shuffled])


def test_gspo_token_is_gspo_where_tokens_share_an_advantage() -> None:
    fields = {"epsilon_low": 0.003, "epsilon_high": 0.004}
    token, whole = gradient_of(GspoToken(**fields), A), gradient_of(Gspo(**fields), A)
    near(token[0], 0.000294)
    assert_close(token[:2], whole[:2])


def test_gspo_token_clips_each_token_by_the_sign_of_its_advantage() -> None:
    """Row 1, s = 1.030455 > 1.004: a token with A > 0 is clipped, one with A < 0 is not. GSPO gives its gradient to all
    tokens alike."""
    a = A.unsqueeze(1).repeat(1, 5)
    a[0, 1] = -1.0
    fields = {"epsilon_low": 0.003, "epsilon_high": 0.004}
    token, whole = gradient_of(GspoToken(**fields), a), gradient_of(Gspo(**fields), a)
    near(token[1][0], [0, 1.030455 / 20, 0, 0, 0])
    near(whole[1][0], [1.030455 / 100] * 5)


# Aggregation


def test_the_five_aggregations_of_f1() -> None:
    """Divided by rows, tokens, rows, 4 × 8: -.003360, -.248774, -.870708, -.108839."""
    for how, count, wanted in (
        ("sequence_mean", 4, -0.003360),
        ("token_mean", 14, -0.248774),
        ("token_sum", 4, -0.870708),
        ("constant", 32, -0.108839),
    ):
        near(gradient_of(Policy(aggregation=how), A, count=count)[0], wanted)
        d, m = D.nan_to_num().numpy(), MASK.numpy()
        assert oracle.grpo(d, A.numpy(), m, 0.2, 0.2, how) == pytest.approx(wanted, abs=1e-6)
    near(gradient_of(Policy(epsilon_high=0.28, aggregation="constant"), A, count=32)[0], -0.112470)


def test_dr_grpo_does_not_weigh_by_length_and_grpo_does() -> None:
    """On policy a token's gradient is A/(B L_max) whatever the length of its completion; under GRPO A/(B n)."""
    a = torch.ones(4).double()
    _, even, _ = gradient_of(DrGrpo(), a, count=32, logps=OLD)
    _, uneven, _ = gradient_of(Policy(), a, logps=OLD)
    assert even[MASK].unique().numel() == 1
    assert uneven[0, 0] != uneven[3, 0]


def test_the_local_mean_depends_on_the_split() -> None:
    """Why it is no aggregation of a recipe: rows of 5 and 2 tokens, one at a time or together."""
    loss = torch.arange(10.0).reshape(2, 5)
    mask = MASK[[0, 3]]
    apart = (micro_batch_mean(loss[:1], mask[:1]) + micro_batch_mean(loss[1:], mask[1:])) / 2
    assert abs(float(apart - micro_batch_mean(loss, mask))) > 0.1


@pytest.mark.parametrize(
    ("spec", "count"),
    [(Policy(aggregation="token_mean"), LIVE_TOKENS), (DrGrpo(), 32), (GspoToken(), 4), (MiniRl(), 4)],
)
def test_one_row_at_a_time_is_the_whole_batch(spec: Policy, count: int) -> None:
    whole = gradient_of(spec, A, count=count)
    parts = [
        spec.build()(LOGPS[i : i + 1], OLD[i : i + 1], A[i : i + 1], MASK[i : i + 1], denominator=count)[0]
        for i in range(ROWS)
    ]
    assert_close(torch.stack(parts).sum(), whole[0])


# KL


def test_worked_corrected_kl() -> None:
    """ρ k3: token mean .032793; row 1 alone .044688."""
    w = importance_ratio(D)
    near(masked_mean(w * k3(LOGPS - REF), MASK), 0.032793)
    near(masked_mean(w * k3(LOGPS - REF), MASK, dim=1)[0], 0.044688)
    spec = Policy(beta=1.0, kl_corrected=True, aggregation="token_mean")
    loss, _, metrics = gradient_of(spec, zero(A), count=LIVE_TOKENS, ref_logps=REF)
    near(loss, 0.032793)
    near(metrics["policy/kl"], 0.032793)


@given(st.floats(-1.5, 1.5))
def test_gradients_of_the_kl_estimators(gap: float) -> None:
    """k1: 1; k2: q; k3: 1 - e^-q; ρ k3 at ρ = 1: q, that of the reverse KL."""

    def slope(estimator) -> torch.Tensor:
        logp = number(gap, True)
        return torch.autograd.grad(estimator(logp), logp)[0]

    near(slope(k1), 1.0)
    near(slope(k2), gap)
    near(slope(k3), 1 - np.exp(-gap))
    near(slope(lambda logp: (logp - logp.detach()).exp() * k3(logp)), gap)
    assert k3(number(gap)) >= 0


def test_an_enormous_kl_is_finite() -> None:
    """k3 of q = -50: e^20 - 51; of q = 50: 49 + e^-20."""
    near(k3(number(-50.0)) / np.exp(20.0), 1 - 51 / np.exp(20.0))
    near(k3(number(50.0)), 49.0)
    assert number(-200.0).neg().exp().float().isinf(), "without the clamp it would not be in single precision"


def test_a_token_without_a_finite_kl_is_left_out_and_counted() -> None:
    """Token 1 of row 2 has log π_ref = -inf: it counts for neither term, and one of 14 is told."""
    ref, mask = REF.clone(), MASK.clone()
    ref[1, 0] = -torch.inf
    mask[1, 0] = False
    spec = Policy(beta=0.5, aggregation="token_mean")
    found = gradient_of(spec, A, count=14, ref_logps=ref)
    wanted = gradient_of(spec, A, count=14, ref_logps=REF, mask=mask)
    assert_close(found[:2], wanted[:2])
    near(found[2]["policy/nonfinite_tokens"], 1 / 14)
    dropped = A.clone()
    dropped[1] = torch.nan
    told = gradient_of(spec, dropped, count=11, ref_logps=ref)[2]
    assert told["policy/nonfinite_tokens"] == 0, "a row that is left out has no faults to look into"
    near(told["policy/empty_rows"], 0.25)


def test_what_weighs_the_surrogate_does_not_weigh_the_kl() -> None:
    """Row 3 rejected, row 1 weighed: the KL of both stays as it is."""
    far = OLD.clone()
    far[2] -= 1.0
    spec = Policy(rejection="mean", rejection_kl="k1", rejection_threshold=0.5, correction="truncate", beta=0.5)
    with_kl = gradient_of(spec, A, sampler_logps=far, ref_logps=REF)
    without = gradient_of(spec.model_copy(update={"beta": 0.0}), A, sampler_logps=far)
    alone = gradient_of(Policy(beta=0.5), zero(A), ref_logps=REF)
    assert_close(with_kl[1], without[1] + alone[1])


def test_a_kl_in_the_reward_is_not_in_the_loss() -> None:
    one = gradient_of(Rloo(beta=0.5), A, ref_logps=REF)
    two = gradient_of(Rloo(beta=0), A, ref_logps=REF)
    assert_close(one[:2], two[:2])
    assert "policy/kl" in one[2]


# The sampling engine


def test_worked_minirl() -> None:
    """A = r - mean; ε .2/.27: gates [1,1,0,1,1] [1,0,1] [1,1,1,1] [0,1]; weights e^-(log μ - log π_old), at most 5;
    value -.318189. Token 1 of row 1: -.980199 * 1.105171 * .6875 / 4 = -.186190."""
    a = centered(REWARDS, 4)
    loss, gradient, metrics = gradient_of(MiniRl(), a, sampler_logps=SAMPLER)
    near(loss, -0.318189)
    wanted = padded(
        [
            [-0.186190, -0.165136, 0, -0.171875, -0.136560],
            [0.104408, 0, 0.084632],
            [0.013997, 0.018154, 0.015941, 0.015470],
            [0, 0.088971],
        ],
        fill=0,
    )
    near(gradient, wanted)
    near(metrics["policy/clip_high"], 1 / 14)
    near(metrics["policy/clip_low"], 2 / 14)
    near(metrics["policy/correction_mean"], float((OLD - SAMPLER)[MASK].exp().mean()))


def test_worked_factors_of_minirl() -> None:
    """Row 1: e^-.02, e^.01, e^-.05, 1, e^-.03 between the engines, e^.10, e^-.05, e^.30, 1, e^-.20 since."""
    c = Correction("token", "truncate", 0.5, 5.0).weight(OLD - SAMPLER, MASK)
    near(c[0], [0.980199, 1.010050, 0.951229, 1, 0.970446])
    near(importance_ratio(D[0]), [1.105171, 0.951229, 1.349859, 1, 0.818731])


@given(st.floats(-3, 3), st.floats(-2, 2))
def test_the_gradient_of_minirl_is_bounded_where_the_advantage_is_positive(gap: float, staleness: float) -> None:
    """By C (1 + ε_high) |A|, whatever the two gaps are."""
    old, one = torch.zeros(1, 1).double(), torch.ones(1, 1)
    spec, logps = MiniRl(correction_high=2.0), torch.full((1, 1), staleness).double().requires_grad_()
    loss, _ = spec.build()(logps, old, torch.ones(1).double(), one, sampler_logps=old - gap, denominator=1)
    assert torch.autograd.grad(loss, logps)[0].abs() <= 2 * 1.27 + 1e-9


def test_the_gap_between_engines_is_taken_in_single_precision() -> None:
    """-256 and -1.0078125 are bfloat16 numbers; their difference 254.992 is not, and would become 255."""
    old, mu = torch.tensor([[-1.0078125]]).bfloat16(), torch.tensor([[-256.0]]).bfloat16()
    spec = Policy(rejection="sum", rejection_kl="k1", rejection_threshold=254.995)
    loss, metrics = spec.build()(old, old, torch.ones(1), torch.ones(1, 1), sampler_logps=mu, denominator=1)
    assert metrics["policy/left_out"] == 0
    assert loss == -1


def test_the_gate_of_minirl_does_not_look_at_the_sampler() -> None:
    a = centered(REWARDS, 4)
    stopped = [gradient_of(MiniRl(), a, sampler_logps=mu)[1] == 0 for mu in (SAMPLER, OLD, OLD - 1.0)]
    assert stopped[0].equal(stopped[1])
    assert stopped[0].equal(stopped[2])


def test_without_a_gap_minirl_is_clipped_reinforce_summed_over_tokens() -> None:
    a = centered(REWARDS, 4)
    summed = Policy(epsilon_high=0.27, aggregation="token_sum")
    for more in ({"sampler_logps": OLD}, {}):
        assert_close(gradient_of(MiniRl(), a, **more)[1], gradient_of(summed, a)[1])
    _, gradient, _ = gradient_of(MiniRl(), a, sampler_logps=OLD, logps=OLD)
    near(gradient, torch.where(MASK, -a.unsqueeze(1) / 4, 0))


def test_a_truncated_correction_bounds_the_gradient() -> None:
    a = centered(REWARDS, 4)
    _, gradient, _ = gradient_of(MiniRl(correction_high=2.0), a, sampler_logps=OLD - 3.0)
    _, plain, _ = gradient_of(MiniRl(correction="none"), a)
    assert_close(gradient, 2 * plain)


GAP = torch.tensor([[0.5, -0.3, 0.0], [2.0, -3.0, 0.1]], dtype=torch.float64)
ALL = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("correction", "wanted"),
    [
        (Correction("token", "truncate", 0.5, 2.0), [[1.648721, 0.740818, 1.0], [2.0, 0.049787, 1.105171]]),
        (Correction("token", "mask", 0.5, 2.0), [[1.648721, 0.740818, 1.0], [0.0, 0.0, 1.105171]]),
        (Correction("sequence_sum", "truncate", 0.5, 2.0), [[1.221403], [0.406570]]),
        (Correction("sequence_sum", "mask", 0.5, 2.0), [[1.221403], [0.0]]),
        (Correction("sequence_mean", "mask", 0.5, 2.0), [[1.068939], [0.740818]]),
    ],
)
def test_worked_corrections(correction: Correction, wanted: list[list[float]]) -> None:
    """Sums .2 and -.9; means .066667 and -.3."""
    near(correction.weight(GAP, ALL), wanted)


@pytest.mark.parametrize(
    ("over", "wanted"),
    [
        ("token", (1.648721 + 0.740818 + 1 + 2 + 0.049787, 5)),
        ("sequence_sum", (1.221403 + 0.367879, 2)),
    ],
)
def test_worked_totals_of_corrections(over: str, wanted: tuple[float, int]) -> None:
    """The last token of the second row is padding, so its sum is -1; a row without a token is no unit."""
    gap, mask = torch.cat([GAP, GAP[:1]]), torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]])
    near(Correction(over, "truncate", 0.5, 2.0).total(gap, mask), list(wanted))


def test_a_normalised_correction_that_is_the_same_everywhere_is_none() -> None:
    """log π_old - log μ = .4 on every token: c = 1.491825, and so is its mean."""
    shifted, scale = {"sampler_logps": OLD - 0.4}, torch.full((4,), 1.4918246976, dtype=OLD.dtype)
    a = centered(REWARDS, 4)
    plain = gradient_of(MiniRl(correction="none"), a)
    found = gradient_of(MiniRl(correction_normalised=True), a, **shifted, correction_scale=scale)
    raw = gradient_of(MiniRl(), a, **shifted)
    near(found[0], plain[0])
    near(found[1], plain[1])
    near(raw[1], 1.4918246976 * plain[1])


def test_a_token_the_sampler_could_not_score_has_weight_one() -> None:
    gap = GAP.clone()
    gap[0, 0] = torch.nan
    near(Correction("token", "truncate", 0.5, 2.0).weight(gap, ALL)[0], [1.0, 0.740818, 1.0])
    unknown = SAMPLER.clone()
    unknown[0, 2] = torch.nan
    loss, gradient, _ = gradient_of(MiniRl(), centered(REWARDS, 4), sampler_logps=unknown)
    assert loss.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("rejection", "wanted"),
    [
        (Rejection("k1", "sum", 0.1), [True, False]),  # .2, -.9
        (Rejection("k1", "max", 1.0), [False, True]),  # .5, 2
        (Rejection("k2", "mean", 0.1), [False, True]),  # .056667, 2.168333
        (Rejection("k3", "sum", 0.5), [False, True]),
        (Rejection("k2", "max", 5.0), [False, False]),  # .125, 4.5
    ],
)
def test_worked_rejections(rejection: Rejection, wanted: list[bool]) -> None:
    assert rejection.rejects(GAP, ALL).tolist() == wanted


def test_at_the_thresholds_weights_and_completions_are_kept() -> None:
    near(Correction("token", "mask", 1.0, 1.0).weight(torch.zeros(1, 2), torch.ones(1, 2)), [[1.0, 1.0]])
    assert not Rejection("k1", "sum", 0.5).rejects(torch.tensor([[0.25, 0.25]]), torch.ones(1, 2))
    row = torch.tensor([[-1.0, -1.0]])
    assert not strayed(row - 0.5, row, torch.tensor([[-1.0]]), torch.ones(1, 2), 0.5)


@pytest.mark.parametrize("unknown", [torch.nan, torch.inf, -torch.inf])
def test_what_the_sampler_could_not_score_says_nothing(unknown: float) -> None:
    gap, mask = torch.tensor([[0.4, unknown, 0.2]]).double(), torch.tensor([[1, 1, 1]])
    near(Correction("token", "truncate", 0.5, 2.0).weight(gap, mask), [[1.491825, 1.0, 1.221403]])
    near(Correction("sequence_mean", "truncate", 0.5, 2.0).weight(gap, mask), [[1.349859]])
    assert Rejection("k1", "mean", 0.29).rejects(gap, mask)
    assert not Rejection("k1", "mean", 0.31).rejects(gap, mask)
    assert not Rejection("k1", "max", 0.41).rejects(gap, mask)
    mu = torch.tensor([[-1.0, unknown, -1.0]]).double()
    assert strayed(torch.full((1, 3), -1.5).double(), mu, torch.tensor([[-1.0]]), mask, 0.49)


def test_a_rejected_completion_has_no_gradient_and_is_counted() -> None:
    far = OLD.clone()
    far[2] -= 1.0
    spec = Policy(rejection="mean", rejection_kl="k1", rejection_threshold=0.5)
    _, gradient, metrics = gradient_of(spec, A, sampler_logps=far)
    _, all_rows, _ = gradient_of(Policy(), A)
    assert not gradient[2].any()
    assert_close(gradient[[0, 1, 3]], all_rows[[0, 1, 3]])
    near(metrics["policy/left_out"], 4 / 14)
    weighed = spec.model_copy(update={"correction": "truncate", "correction_high": 2.0})
    metrics = gradient_of(weighed, A, sampler_logps=torch.where(far < OLD, far, OLD - 0.1))[2]
    near(metrics["policy/left_out"], 4 / 14)
    near(metrics["policy/correction_mean"], (10 * np.exp(0.1) + 4 * 2) / 14)


def test_completions_the_policy_strayed_from_are_left_out_if_they_were_bad() -> None:
    """Means of log μ - log π with μ = π_old: -.03, -.01, -.0175, .15; threshold .1: row 4, A < 0."""
    assert strayed(LOGPS.nan_to_num(), OLD.nan_to_num(), A.unsqueeze(1), MASK, 0.1).squeeze(1).tolist() == [
        False,
        False,
        False,
        True,
    ]
    good = A.abs().unsqueeze(1)
    assert not strayed(LOGPS.nan_to_num(), OLD.nan_to_num(), good, MASK, 0.1).any()
    _, gradient, _ = gradient_of(Policy(off_policy_threshold=0.1), A)
    assert not gradient[3].any()
    assert gradient[1].any()


# ESPO by entropy


def test_worked_espo() -> None:
    """Row 1: the one most uncertain token (2 nats) is a group, e^.3; the other four have mean d -.0375, e^-.0375."""
    spec = EspoEntropy()
    loss, _, metrics = gradient_of(spec, A, entropies=ENTROPIES)
    near(loss, 0.039591)
    arrays = (D.nan_to_num().numpy(), ENTROPIES.nan_to_num().numpy(), A.numpy(), MASK.numpy())
    assert oracle.espo(*arrays, 0.2, 0.5, 0.003, 0.004) == pytest.approx(0.039591, abs=1e-6)
    near(metrics["policy/clip_width"], 1.657895)
    near(gradient_of(EspoEntropy(width_high=1.2), A, entropies=ENTROPIES)[2]["policy/clip_width"], 1.2)


def test_worked_espo_ratios_and_widths() -> None:
    from seqtune.objectives.espo_entropy import clip_width, most_uncertain

    groups = most_uncertain(ENTROPIES, MASK, 0.2)
    ratios = padded(
        [
            [0.963194, 0.963194, 1.349859, 0.963194, 0.963194],
            [1.179393, 0.740818, 1.179393],
            [0.904837, 1.058303, 1.058303, 1.058303],
            [0.670320, 1.105171],
        ],
        fill=1,
    )
    near(importance_ratio(segment_log_ratio(D, MASK, groups)), ratios)
    width = clip_width(ENTROPIES, MASK, groups, alpha=0.5, limits=(0.25, 4.0))
    wanted = padded(
        [
            [0.003436, 0.003436, 0.006255, 0.003436, 0.003436],
            [0.002840, 0.006320, 0.002840],
            [0.006632, 0.003123, 0.003123, 0.003123],
            [0.003333, 0.004667],
        ],
        fill=0,
    )
    near(torch.where(MASK, 0.004 * width, 0), wanted)
    assert_close(torch.where(MASK, width, 0).sum(1), MASK.sum(1).to(width.dtype), rtol=0, atol=1e-6)


@given(st.integers(1, 6), st.floats(0, 2), st.randoms())
def test_espo_against_the_oracle(length: int, alpha: float, random) -> None:
    d = np.array([[random.uniform(-0.4, 0.4) for _ in range(6)] for _ in range(3)])
    h = np.array([[random.choice([0.1, 0.5, 1.5, 2.2]) for _ in range(6)] for _ in range(3)])
    mask = np.arange(6)[None] < np.array([[length], [6], [2]])
    a = np.array([1.2, -0.7, 0.4])
    spec = EspoEntropy(alpha=alpha, width_low=0.0, width_high=1e6, epsilon_low=0.03, epsilon_high=0.04)
    tensors = [torch.tensor(x) for x in (d, np.zeros_like(d), a, mask)]
    loss, _ = spec.build()(*tensors, entropies=torch.tensor(h), denominator=3)
    assert float(loss) == pytest.approx(oracle.espo(d, h, a, mask, 0.2, alpha, 0.03, 0.04), abs=1e-9)


@pytest.mark.parametrize(("share", "tokens", "wanted"), [(0.3, 50, 15), (0.15, 100, 15), (0.07, 100, 7), (0.2, 7, 2)])
def test_the_uncertain_share_is_exact(share: float, tokens: int, wanted: int) -> None:
    """ceil of the share, and .3 × 50 in single precision is a little more than 15."""
    from seqtune.objectives.espo_entropy import most_uncertain

    assert most_uncertain(torch.arange(float(tokens)).unsqueeze(0), torch.ones(1, tokens), share).sum() == wanted


def test_entropy_bins_hold_equally_many_tokens() -> None:
    from seqtune.objectives.espo_entropy import entropy_bins

    found = entropy_bins(ENTROPIES, MASK, 2)
    assert found[0].tolist() == [0, 1, 1, 0, 0]  # of five tokens three and two
    assert found[2, :4].tolist() == [1, 0, 1, 0]
    assert entropy_bins(ENTROPIES, MASK, 5)[0].tolist() == [1, 3, 4, 0, 2]
    seven = entropy_bins(torch.arange(7.0).unsqueeze(0), torch.ones(1, 7), 3)[0].tolist()
    assert seven == [0, 0, 0, 1, 1, 2, 2]
    assert len(set(entropy_bins(ENTROPIES, MASK, 9)[0].tolist())) == 5, "more bins than tokens: each is its own"


def test_espo_routes_the_gradient_of_a_group_to_each_token_by_its_own_advantage() -> None:
    """One group, A = [1, -1] and nothing clipped: -w A / 2 each; shared, the two would cancel."""
    d, a = torch.tensor([[0.01, 0.03]]).double().requires_grad_(), torch.tensor([[1.0, -1.0]]).double()
    spec = EspoEntropy(grouping="bins", bins=1, epsilon_low=0.5, epsilon_high=0.5)
    one = torch.ones(1, 2)
    loss, _ = spec.build()(d, 0 * d.detach(), a, one, entropies=one.double(), denominator=1)
    near(torch.autograd.grad(loss, d)[0], [[-np.exp(0.02) / 2, np.exp(0.02) / 2]])


# Edge policy


def test_a_row_of_one_token_and_a_certain_row() -> None:
    spec, certain = EspoEntropy(), zero(ENTROPIES)
    loss, gradient, metrics = gradient_of(spec, A, entropies=certain)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    near(metrics["policy/clip_width"], 1.0)
    one = MASK & (torch.arange(5) == 0)
    assert gradient_of(spec, A, entropies=ENTROPIES, mask=one)[0].isfinite()


@pytest.mark.parametrize("fields", [{}, {"ratio": "sequence"}, {"clip": "cispo"}, {"correction": "truncate"}])
def test_an_advantage_that_is_nan_leaves_a_row_out_like_the_mask(fields) -> None:
    spec, a, mask = Policy(**fields), A.clone(), MASK.clone()
    a[1] = torch.nan
    mask[1] = False
    assert_close(gradient_of(spec, a)[:2], gradient_of(spec, A, mask=mask)[:2])


def test_a_mask_of_zeros_counts_the_row_and_adds_nothing() -> None:
    mask = MASK.clone()
    mask[2] = False
    for spec in (Policy(), Gspo(), EspoEntropy(), MiniRl(), Rloo(beta=0), GspoToken()):
        more = {"entropies": ENTROPIES} if "entropies" in spec.loss_inputs else {}
        _, gradient, metrics = gradient_of(spec, A, mask=mask, **more)
        assert not gradient[2].any()
        near(metrics["policy/empty_rows"], 0.25)


def test_a_segment_ratio_without_segments_is_refused() -> None:
    with pytest.raises(ValueError, match="segments"):
        gradient_of(Policy(ratio="segment"), A)
    with pytest.raises(KeyError):
        policy_loss(
            LOGPS, OLD, A, MASK, ratio="no", clip=Clip("gate", 0.2, 0.2), aggregation="token_sum", denominator=1
        )
