import pytest
import torch
from fixture_f1 import LIVE_TOKENS, LOGPS, MASK, OLD, REF, REWARDS, ROWS, D, padded
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from seqtune.objectives.advantages import group
from seqtune.objectives.policy import (
    Clip,
    clipped_high,
    clipped_low,
    importance_ratio,
    k1,
    k2,
    k3,
    pessimistic_clip,
    policy_loss,
    sequence_log_ratio,
    token_log_ratio,
)
from seqtune.objectives.reduce import masked_mean
from seqtune.objectives.specs.grpo import Grpo
from seqtune.objectives.specs.gspo import Gspo
from seqtune.objectives.specs.policy import Policy

A = group(REWARDS, 4)
CLIP = Clip("pessimistic", 0.2, 0.2)
COUNT = {"sequence_mean": ROWS, "token_mean": LIVE_TOKENS, "token_sum": ROWS}


def f1(ratio: str, low: float, high: float, aggregation: str = "sequence_mean", **more) -> tuple[Tensor, Tensor, dict]:
    """Loss, gradient and metrics of the worked example."""
    logps = LOGPS.clone().requires_grad_()
    loss, metrics = policy_loss(
        logps,
        OLD,
        more.pop("advantages", A),
        MASK,
        more.pop("ref_logps", None),
        ratio=ratio,
        clip=Clip("pessimistic", low, high),
        aggregation=aggregation,
        denominator=COUNT[aggregation],
        **more,
    )
    (gradient,) = torch.autograd.grad(loss, logps)
    return loss.detach(), gradient, metrics


def near(value: Tensor, number: float) -> None:
    assert_close(value, torch.tensor(number, dtype=value.dtype), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("aggregation", "high", "loss"),
    [
        ("sequence_mean", 0.2, -0.003360),
        ("token_mean", 0.2, -0.248774),
        ("token_sum", 0.2, -0.870708),
        ("sequence_mean", 0.28, -0.009170),
        ("token_mean", 0.28, -0.257073),
        ("token_sum", 0.28, -0.899757),
    ],
)
def test_worked_grpo(aggregation: str, high: float, loss: float) -> None:
    """Per token -min(ρA, clip(ρ)A), A = [1.452437, -.660199, -.132040, -.660199], ε = .2:
    row 1 [-1.605191, -1.381601, -1.742925, -1.452437, -1.189155], sum -7.371309, mean -1.474262
    row 2 [.847712, .528159, .715185], sum 2.091056, mean .697019
    row 3 [.119474, .153408, .132040, .134707], sum .539629, mean .134907
    row 4 [.528159, .729632], sum 1.257791, mean .628896
    row means -.013440 / 4 = -.003360; all tokens: -3.482833 / 14 = -.248774; row sums: -3.482833 / 4 = -.870708."""
    near(f1("token", 0.2, high, aggregation)[0], loss)


def test_worked_grpo_tokens_and_gradient() -> None:
    """Clipped tokens have no gradient: ρ = e^.3 > 1.2 with A > 0 (row 1), e^-.3, e^-.4 < .8 with A < 0 (rows 2, 4).
    The others have -ρ A / (4 n_i): row 1, token 1: -1.105171 * 1.452437 / 20 = -.080260."""
    tokens = pessimistic_clip(importance_ratio(D), A.unsqueeze(1), epsilon_low=0.2, epsilon_high=0.2)
    wanted = padded(
        [
            [-1.605191, -1.381601, -1.742925, -1.452437, -1.189155],
            [0.847712, 0.528159, 0.715185],
            [0.119474, 0.153408, 0.132040, 0.134707],
            [0.528159, 0.729632],
        ]
    )
    assert_close(tokens, wanted, rtol=0, atol=1e-6, equal_nan=True)
    gradient = padded(
        [
            [-0.080260, -0.069080, 0, -0.072622, -0.059458],
            [0.070643, 0, 0.059599],
            [0.007467, 0.009588, 0.008252, 0.008419],
            [0, 0.091204],
        ],
        fill=0,
    )
    assert_close(f1("token", 0.2, 0.2)[1], gradient, rtol=0, atol=1e-6)


def test_worked_gspo() -> None:
    """s_1 = exp((.10 - .05 + .30 + 0 - .20) / 5) = e^.03 = 1.030455, s_2 = e^.01 = 1.010050, s_3 = e^.0175 = 1.017654,
    s_4 = e^-.15 = .860708. With ε .003/.004 rows 1 (A > 0, s > 1.004) and 4 (A < 0, s < .997) are clipped:
    -1.004 * 1.452437 = -1.458247, 1.010050 * .660199 = .666834, 1.017654 * .132040 = .134371, .997 * .660199 = .658218;
    mean .000294. Gradient of row 2: s A / (4 n) = .666834 / 12 = .055569; of row 3: .134371 / 16 = .008398."""
    s = importance_ratio(sequence_log_ratio(D, MASK))
    assert_close(s.squeeze(1), torch.tensor([1.030455, 1.010050, 1.017654, 0.860708]).double(), rtol=0, atol=1e-6)
    rows = pessimistic_clip(s, A.unsqueeze(1), epsilon_low=0.003, epsilon_high=0.004).squeeze(1)
    assert_close(rows, torch.tensor([-1.458247, 0.666834, 0.134371, 0.658218]).double(), rtol=0, atol=1e-6)
    loss, gradient, metrics = f1("sequence", 0.003, 0.004)
    near(loss, 0.000294)
    wanted = torch.tensor([0, 0.055569, 0.008398, 0]).double().unsqueeze(1) * MASK
    assert_close(gradient, wanted, rtol=0, atol=1e-6)
    assert metrics["policy/clip_high"] == 0.25
    assert metrics["policy/clip_low"] == 0.25
    near(metrics["policy/ratio_mean"], (1.030455 + 1.010050 + 1.017654 + 0.860708) / 4)


def test_worked_gspo_with_the_clip_of_grpo_is_not_grpo() -> None:
    """Nothing is clipped at ε .2: rows -1.030455 * 1.452437 = -1.496670, .666834, .134371, .860708 * .660199 = .568238;
    mean -.031807, where GRPO has -.003360. Gradient of row 1: -1.496670 / 20 = -.074834, row 4: .568238 / 8."""
    loss, gradient, _ = f1("sequence", 0.2, 0.2)
    near(loss, -0.031807)
    wanted = torch.tensor([-0.074834, 0.055569, 0.008398, 0.071030]).double().unsqueeze(1) * MASK
    assert_close(gradient, wanted, rtol=0, atol=1e-6)


def test_a_sequence_ratio_with_a_token_mean_is_another_objective() -> None:
    """Rows weighed by length: (5 * -1.458247 + 3 * .666834 + 4 * .134371 + 2 * .658218) / 14 = -.245487."""
    near(f1("sequence", 0.003, 0.004, "token_mean")[0], -0.245487)


@pytest.mark.parametrize(
    ("spec", "loss"),
    [(Grpo(beta=0), -0.003360), (Gspo(epsilon_low=0.003, epsilon_high=0.004), 0.000294)],
    ids=["grpo", "gspo"],
)
def test_the_named_objectives_are_their_formulas(spec: Policy, loss: float) -> None:
    near(spec.build()(LOGPS, OLD, A, MASK, denominator=4)[0], loss)


def test_the_defaults_are_those_of_the_papers() -> None:
    assert (Gspo().epsilon_low, Gspo().epsilon_high, Gspo().aggregation, Gspo().beta) == (
        3e-4,
        4e-4,
        "sequence_mean",
        0,
    )
    assert (Grpo().epsilon_low, Grpo().epsilon_high, Grpo().aggregation, Grpo().beta) == (
        0.2,
        0.2,
        "sequence_mean",
        0.04,
    )


@pytest.mark.parametrize(
    ("estimator", "mean", "first_row"), [(k1, -0.028571, 0.03), (k2, 0.033957, 0.04175), (k3, 0.036222, 0.039628)]
)
def test_worked_kl(estimator, mean: float, first_row: float) -> None:
    """q = log π - log π_ref; row 1 q = [.15, -.15, .5, 0, -.35]: k1 = .15/5; k2 = (.0225+.0225+.25+.1225)/10 = .04175;
    k3 = (.010708 + .011834 + .106531 + 0 + .069068)/5 = .039628."""
    q = LOGPS - REF
    near(masked_mean(estimator(q), MASK), mean)
    near(masked_mean(estimator(q), MASK, dim=1)[0], first_row)
    _, _, metrics = f1("token", 0.2, 0.2, ref_logps=REF, kl=estimator.__name__)
    near(metrics["policy/kl"], mean)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_the_kl_is_added_per_token_with_weight_beta(ratio: str) -> None:
    """As a token mean the loss grows by β times the KL of `test_worked_kl`: .5 * .036222."""
    surrogate = f1(ratio, 0.2, 0.2, "token_mean")[0]
    with_kl = f1(ratio, 0.2, 0.2, "token_mean", ref_logps=REF, beta=0.5)[0]
    near(with_kl - surrogate, 0.5 * 0.036222)


def test_measuring_the_kl_does_not_change_the_loss() -> None:
    assert_close(f1("token", 0.2, 0.2, ref_logps=REF)[:2], f1("token", 0.2, 0.2)[:2])


def test_beta_without_a_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="ref_logps"):
        f1("token", 0.2, 0.2, beta=0.1)


@pytest.mark.parametrize(
    ("estimator", "gradient"), [(k1, lambda q: 1), (k2, lambda q: q), (k3, lambda q: 1 - (-q).exp())]
)
def test_gradients_of_the_kl_estimators(estimator, gradient) -> None:
    q = torch.tensor([-1.5, -0.2, 0, 0.3, 2.0], dtype=torch.float64, requires_grad=True)
    estimator(q).sum().backward()
    assert_close(q.grad, gradient(q.detach()) * torch.ones_like(q))


rows = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(st.floats(-0.6, 0.6), min_size=n, max_size=n), min_size=2, max_size=5)
)


def both(d: Tensor, advantages: Tensor, low: float = 0.2, high: float = 0.2) -> list[tuple[Tensor, Tensor]]:
    """(loss, gradient) of GRPO, then of GSPO, for rows without padding."""
    found = []
    for ratio in ("token", "sequence"):
        logps = d.clone().requires_grad_()
        loss, _ = policy_loss(
            logps,
            torch.zeros_like(d),
            advantages,
            torch.ones_like(d),
            ratio=ratio,
            clip=Clip("pessimistic", low, high),
            aggregation="sequence_mean",
            denominator=len(d),
        )
        found.append((loss.detach(), torch.autograd.grad(loss, logps)[0]))
    return found


def signed(d: Tensor) -> Tensor:
    return torch.linspace(-1.3, 1.7, len(d), dtype=torch.float64)


@given(st.lists(st.floats(-0.6, 0.6), min_size=2, max_size=8))
def test_with_one_token_gspo_is_grpo(d) -> None:
    column = torch.tensor(d, dtype=torch.float64).unsqueeze(1)
    grpo, gspo = both(column, signed(column))
    assert_close(gspo, grpo)


@given(st.lists(st.floats(-0.6, 0.6), min_size=2, max_size=8), st.integers(1, 5))
def test_with_the_same_ratio_on_every_token_gspo_has_the_value_of_grpo(d, tokens) -> None:
    constant = torch.tensor(d, dtype=torch.float64).unsqueeze(1).repeat(1, tokens)
    grpo, gspo = both(constant, signed(constant))
    assert_close(gspo[0], grpo[0])


@given(rows)
def test_on_policy_gspo_and_grpo_have_the_same_value_and_gradient(d) -> None:
    """At d = 0 the gradient of both is -A_i / (B n_i) on every token."""
    zero = torch.zeros_like(torch.tensor(d, dtype=torch.float64))
    grpo, gspo = both(zero, signed(zero))
    assert_close(gspo, grpo)
    wanted = (-signed(zero) / zero.numel()).unsqueeze(1).expand_as(zero)
    assert_close(grpo[1], wanted)


@given(rows, st.randoms(use_true_random=False))
def test_gspo_does_not_see_the_order_of_ratios_inside_a_row(d, random) -> None:
    straight = torch.tensor(d, dtype=torch.float64)
    order = list(range(straight.shape[1]))
    random.shuffle(order)
    one = both(straight, signed(straight), 3e-4, 4e-4)[1]
    other = both(straight[:, order], signed(straight), 3e-4, 4e-4)[1]
    assert_close(one, other, rtol=1e-9, atol=1e-12)


@given(rows)
def test_a_sequence_ratio_lies_between_the_token_ratios_of_its_row(d) -> None:
    values = torch.tensor(d, dtype=torch.float64)
    tokens = token_log_ratio(values, torch.ones_like(values))
    sequence = sequence_log_ratio(values, torch.ones_like(values)).squeeze(1)
    assert (sequence >= tokens.amin(1) - 1e-12).all()
    assert (sequence <= tokens.amax(1) + 1e-12).all()


@given(st.floats(0.05, 3), st.sampled_from([-2.0, -0.3, 0.4, 1.5]), st.floats(0.01, 0.5), st.floats(0.01, 0.8))
def test_the_clip_is_pessimistic_and_stops_the_gradient_exactly_where_it_says(w, advantage, low, high) -> None:
    ratio = torch.tensor(w, dtype=torch.float64, requires_grad=True)
    a = torch.tensor(advantage, dtype=torch.float64)
    loss = pessimistic_clip(ratio, a, epsilon_low=low, epsilon_high=high)
    assert loss >= -ratio * a - 1e-12
    (gradient,) = torch.autograd.grad(loss, ratio)
    stopped = clipped_low(ratio, a, low) | clipped_high(ratio, a, high)
    assert_close(gradient, torch.where(stopped, torch.zeros_like(a), -a))


def test_advantages_may_be_one_a_token() -> None:
    assert_close(f1("token", 0.2, 0.2, advantages=A.unsqueeze(1).repeat(1, 5))[:2], f1("token", 0.2, 0.2)[:2])
    doubled = torch.where(torch.arange(5) == 0, 2 * A.unsqueeze(1), A.unsqueeze(1))
    change = f1("token", 0.2, 0.2, "token_sum", advantages=doubled)[0] - f1("token", 0.2, 0.2, "token_sum")[0]
    near(change, (-1.605191 + 0.847712 + 0.119474 + 0.528159) / 4)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_advantages_of_tokens_outside_the_mask_do_not_matter(ratio: str) -> None:
    poisoned = torch.where(MASK, A.unsqueeze(1), torch.nan)
    assert_close(f1(ratio, 0.2, 0.2, advantages=poisoned)[:2], f1(ratio, 0.2, 0.2)[:2])


def test_a_token_without_a_finite_ratio_is_left_out_and_counted() -> None:
    """Token 1 of row 2 gets log π_old = -inf: the row is the mean of its two other tokens; one of 14 is counted."""
    old = OLD.clone()
    old[1, 0] = -torch.inf
    logps = LOGPS.clone().requires_grad_()
    settings = {"ratio": "token", "clip": CLIP, "aggregation": "sequence_mean"}
    loss, metrics = policy_loss(logps, old, A, MASK, **settings, denominator=4)
    (gradient,) = torch.autograd.grad(loss, logps)
    near(loss, -0.003360 + ((0.528159 + 0.715185) / 2 - 0.697019) / 4)
    assert gradient.isfinite().all()
    assert gradient[1, 0] == 0
    near(metrics["policy/nonfinite_tokens"], 1 / 14)


def test_an_empty_row_may_hold_an_undefined_advantage() -> None:
    """The loss of all rows less that of row 4: -.003360 - .628896 / 4 = -.160584."""
    mask = MASK.clone()
    mask[3] = False
    advantages = A.clone()
    advantages[3] = torch.nan
    logps = LOGPS.clone().requires_grad_()
    settings = {"ratio": "token", "clip": CLIP, "aggregation": "sequence_mean"}
    loss, _ = policy_loss(logps, OLD, advantages, mask, **settings, denominator=4)
    near(loss, -0.160584)
    assert torch.autograd.grad(loss, logps)[0].isfinite().all()


def test_a_huge_log_ratio_is_clamped_before_the_exponential() -> None:
    ratio = importance_ratio(torch.tensor([1e4, -1e4, 19.0]))
    assert_close(ratio, torch.tensor([20.0, -20.0, 19.0]).exp(), rtol=1e-6, atol=0)


def test_metrics_by_hand() -> None:
    """Of 14 tokens one is clipped above and two below; mean ρ and mean of ρ - 1 - d over the 14 tokens."""
    metrics = f1("token", 0.2, 0.2)[2]
    near(metrics["policy/clip_high"], 1 / 14)
    near(metrics["policy/clip_low"], 2 / 14)
    d = D[MASK]
    near(metrics["policy/ratio_mean"], float(d.exp().mean()))
    near(metrics["policy/approx_kl"], float((d.exp() - 1 - d).mean()))
    assert metrics["policy/empty_rows"] == 0
    assert "policy/kl" not in metrics
    emptied = MASK.clone()
    emptied[3] = False
    found = policy_loss(
        LOGPS,
        OLD,
        A,
        emptied,
        ratio="token",
        clip=CLIP,
        aggregation="token_mean",
        denominator=1,
    )[1]
    assert found["policy/empty_rows"] == 0.25
