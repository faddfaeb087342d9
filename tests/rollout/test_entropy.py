"""Think Just Enough: entropies and thresholds with worked numbers, and where completions stop."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from seqtune.rollout.entropy import Rule, Watch, thresholds, top_entropy
from seqtune.rollout.transformers import generate

bits = st.floats(0, 4, allow_subnormal=False)


def test_entropy_of_the_returned_log_probs() -> None:
    """Fewer than K are renormalised: p of (-.1, -2.5, -4) is (.900041, .081650, .018219) of their sum."""
    logps = torch.tensor([[-0.1, -2.5, -4.0], [-0.9, -1.0, -1.6]], dtype=torch.float64)
    found = top_entropy(logps, 20)
    torch.testing.assert_close(found, torch.tensor([0.537059, 1.527081], dtype=torch.float64), atol=1e-6, rtol=0)
    assert found.mean().item() == pytest.approx(1.032070, abs=1e-6)


def test_only_the_most_probable_tokens_count() -> None:
    logits = torch.tensor([[0.0, -1.0, 0.0, 0.0, -torch.inf]])
    assert top_entropy(logits, 3).item() == pytest.approx(math.log2(3))
    assert top_entropy(logits, 2).item() == pytest.approx(1.0)
    assert top_entropy(torch.tensor([[0.0, -torch.inf]]), 2).item() == 0.0
    assert top_entropy(torch.zeros(1, 50), 20).item() == pytest.approx(math.log2(20))


def test_thresholds_of_the_worked_example() -> None:
    """σ_c = .06, σ_w² = .0084, pooled .07746, d = -.32 / .07746; ln(1 + 4.131182) = 1.635336.

    With equal shares the densities cross where x² - .24 x - .125338 = 0, at .12 + √.139738 = .493815.
    """
    found = thresholds([0.30, 0.42, 0.36], [0.70, 0.58, 0.76])
    assert found == pytest.approx((0.36, 0.458120, 0.493815, -4.131182), abs=1e-6)


def test_a_larger_share_of_right_completions_raises_the_crossing() -> None:
    few = thresholds([0.3, 0.5] * 2, [0.7, 0.9] * 6)
    many = thresholds([0.3, 0.5] * 6, [0.7, 0.9] * 2)
    assert few.mean < few.bayes < 0.6 < many.bayes < 0.8


@pytest.mark.parametrize(
    ("right", "wrong"), [([0.3], [0.5, 0.6]), ([0.3, 0.5], []), ([0.3, 0.3], [0.5, 0.9]), ([0.3], [])]
)
def test_too_little_to_go_by_falls_back_to_the_mean(right: list[float], wrong: list[float]) -> None:
    found = thresholds(right, wrong)
    assert found.mean == found.info == found.bayes == pytest.approx(sum(right) / len(right))
    assert math.isnan(found.effect)


def test_without_a_right_completion_there_is_no_threshold() -> None:
    with pytest.raises(ValueError, match="no completion is right"):
        thresholds([], [0.4])


@given(st.lists(bits, min_size=1, max_size=6), st.lists(bits, max_size=6))
def test_no_rule_is_below_the_mean(right: list[float], wrong: list[float]) -> None:
    found = thresholds(right, wrong)
    assert found.info >= found.mean
    assert found.bayes >= found.mean
    if wrong and found.bayes > found.mean:
        assert found.bayes <= sum(wrong) / len(wrong) + 1e-12


def step_through(rule: Rule, entropies: list[float], chosen: int = 5) -> list[int]:
    """Tokens of one row whose step t has two equal tokens where `entropies[t]` is 1, and one where it is 0."""
    watch, made = Watch(rule, 1), []
    for step, one in enumerate(entropies):
        logits = torch.tensor([[0.0, 0.0 if one else -torch.inf]])
        made += watch(logits, torch.tensor([chosen]), step, [0]).tolist()
    return made


def test_a_segment_at_the_threshold_is_the_last() -> None:
    """Means of the segments of two: 1, .5, 0."""
    entropies = [1, 1, 1, 0, 0, 0, 1, 1]
    assert step_through(Rule(0.5, 2, 20, (8, 9)), entropies) == [5, 5, 5, 5, 8, 9, 5, 5]
    assert step_through(Rule(0.49, 2, 20, (8, 9)), entropies) == [5, 5, 5, 5, 5, 5, 8, 9]
    assert step_through(Rule(1.0, 2, 20, (8,)), entropies) == [5, 5, 8, 5, 5, 5, 5, 5]
    assert step_through(Rule(None, 2, 20, (8,)), entropies) == [5] * 8
    assert step_through(Rule(0.0, 9, 20, (8,)), [0] * 8) == [5] * 8, "no segment is whole"


@given(st.lists(st.integers(0, 1), min_size=1, max_size=24), st.integers(1, 5), bits, bits)
def test_a_higher_threshold_stops_no_later(entropies: list[float], segment: int, low: float, high: float) -> None:
    low, high = sorted((low, high))
    early, late = (step_through(Rule(tau, segment, 20, (8,)), entropies) for tau in (high, low))
    if 8 in late:
        assert early.index(8) <= late.index(8)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=64, initializer_range=0.4, pad_token_id=0, bos_token_id=None, eos_token_id=None,
        )
    ).eval()  # fmt: skip


def test_generation_stops_each_row_by_its_own_entropy(model: LlamaForCausalLM) -> None:
    """In any batch; up to the stop a completion is what it would have been, and then comes what is forced."""
    prompts, seeds = [[n, n + 1] for n in range(1, 13)], list(range(12))
    values = {"max_new_tokens": 16, "eos_token_id": 31, "pad_token_id": 0, "seeds": seeds}
    free, watched = Watch(Rule(None, 4, 20, (31,)), 12), Watch(Rule(2.45, 4, 20, (9, 31)), 12)
    plain = generate(model, prompts, batch_size=12, watch=free, **values)
    assert plain == generate(model, prompts, batch_size=12, **values), "watching changes nothing"
    stopped = generate(model, prompts, batch_size=5, watch=watched, **values)
    cut = 0
    for row, (before, after) in enumerate(zip(plain, stopped, strict=True)):
        seen = free.entropies[row]
        ends = [n for n in range(4, 16, 4) if sum(seen[n - 4 : n]) / 4 <= 2.45 and n < len(before)]
        if not ends:
            assert after == before
            assert not watched.stopped(row, len(after))
            continue
        cut += 1
        assert after == [*before[: ends[0]], 9, 31]
        assert watched.stopped(row, len(after))
        assert watched.first_segment(row, len(after)) == pytest.approx(sum(seen[:4]) / 4, abs=1e-4)
    assert 2 <= cut <= 10, "the test needs rows of both kinds"
