"""Orders of rows and cuts of documents: worked numbers, every row once a pass, odds and budgets kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from seqtune.config.order import Cycles, GroupByLength, GrowLength, Order, Shuffle, TokenBudget
from seqtune.packing import order

if TYPE_CHECKING:
    from numpy.typing import NDArray

ORDERS: list[Order] = [
    Shuffle(),
    GroupByLength(name="group_by_length", group_steps=3),
    TokenBudget(name="token_budget", group_steps=2),
    TokenBudget(name="token_budget", padded=True),
    GrowLength(name="growlength", shortest=2),
    Cycles(cycles=3),
    Cycles(odds="linear", weighting="odds_x_tokens"),
]
LENGTHS = st.lists(st.integers(1, 64), min_size=1, max_size=60).map(np.array)


def chat(rows: int = 100_000, longest: int = 8192) -> NDArray[np.int64]:
    """Lengths like those of conversations: log-normal, median 400."""
    drawn = np.random.default_rng(0).lognormal(np.log(400), 1.1, rows)
    return np.clip(np.round(drawn), 1, longest).astype(np.int64)


def fill(lengths: NDArray[np.int64], steps: Any) -> float:
    """Real tokens in padded batches."""
    return float(lengths.sum()) / sum(int(lengths[step].max()) * len(step) for step in steps)


@pytest.mark.parametrize("spec", ORDERS, ids=lambda spec: spec.name)
@settings(max_examples=40)
@given(lengths=LENGTHS, rows=st.integers(1, 8), tokens=st.integers(1, 200), seed=st.integers(0, 3))
def test_a_pass_takes_every_row_once(
    spec: Order, lengths: NDArray[np.int64], rows: int, tokens: int, seed: int
) -> None:
    found = order.steps(spec, lengths, rows=rows, tokens=tokens, seed=seed)
    assert sorted(found.indices.tolist()) == list(range(len(lengths)))
    assert all(len(step) for step in found)
    assert len(found) == order.steps_of_a_pass(spec, lengths, rows=rows, tokens=tokens, seed=seed)
    again = order.steps(spec, lengths, rows=rows, tokens=tokens, seed=seed)
    assert np.array_equal(found.indices, again.indices)
    assert np.array_equal(found.offsets, again.offsets)


@pytest.mark.parametrize("spec", ORDERS, ids=lambda spec: spec.name)
@settings(max_examples=25)
@given(lengths=LENGTHS, count=st.integers(1, 40))
def test_any_number_of_steps(spec: Order, lengths: NDArray[np.int64], count: int) -> None:
    found = order.steps(spec, lengths, rows=3, tokens=80, seed=0, count=count)
    assert len(found) == count
    assert found.indices.min() >= 0
    assert found.indices.max() < len(lengths)


@settings(max_examples=40)
@given(lengths=LENGTHS, tokens=st.integers(64, 300))
def test_no_step_goes_beyond_its_tokens(lengths: NDArray[np.int64], tokens: int) -> None:
    for spec in (*ORDERS[2:4], ORDERS[4]):
        for step in order.steps(spec, lengths, rows=1, tokens=tokens, seed=0):
            padded = getattr(spec, "padded", False)
            assert (lengths[step].max() * len(step) if padded else lengths[step].sum()) <= tokens


def test_shuffle_is_a_chain_of_permutations_whatever_the_steps() -> None:
    found = order.steps(Shuffle(), np.ones(10), rows=4, tokens=4, seed=3, count=5)
    assert np.diff(found.offsets).tolist() == [4] * 5
    chain = np.concatenate([order.permutation(10, 3, 0), order.permutation(10, 3, 1)])
    assert found.indices.tolist() == chain.tolist()
    halves = order.steps(Shuffle(), np.ones(10), rows=2, tokens=2, seed=3, count=10)
    assert halves.indices.tolist() == found.indices.tolist()


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        order.steps(Shuffle(), np.array([], dtype=np.int64), rows=1, tokens=1, seed=0)


def test_a_token_budget_by_hand() -> None:
    """12 tokens, padded: 9 alone (2 x 9 > 12), 5 and 4 (2 x 5), 2. Without padding 9, then 5 + 4 + 2."""
    lengths = np.array([9, 5, 4, 2])
    padded = order.token_budget(lengths, np.arange(4), 12, padded=True)
    assert [step.tolist() for step in padded] == [[0], [1, 2], [3]]
    assert [step.tolist() for step in order.token_budget(lengths, np.arange(4), 12)] == [[0], [1, 2, 3]]
    assert [step.tolist() for step in order.token_budget(lengths, np.arange(4), 1)] == [[0], [1], [2], [3]]


def test_padding_that_grouping_and_budgets_save() -> None:
    """Of conversations in batches of 16, or of 16,384 padded tokens."""
    lengths = chat()
    shuffled = np.random.default_rng(1).permutation(len(lengths))
    assert fill(lengths, np.split(shuffled, range(16, len(lengths), 16))) == pytest.approx(0.22, abs=0.01)
    spec = GroupByLength(name="group_by_length")
    assert fill(lengths, order.steps(spec, lengths, rows=16, tokens=1, seed=0)) == pytest.approx(0.89, abs=0.01)
    random = order.token_budget(lengths, shuffled, 16_384, padded=True)
    assert fill(lengths, random) == pytest.approx(0.39, abs=0.01)
    budget = TokenBudget(name="token_budget", padded=True)
    assert fill(lengths, order.steps(budget, lengths, rows=1, tokens=16_384, seed=0)) > 0.945
    longest_first = np.argsort(-lengths, kind="stable")
    assert fill(lengths, order.token_budget(lengths, longest_first, 16_384, padded=True)) > 0.999


def test_the_longest_row_comes_first_and_steps_are_alike() -> None:
    lengths = chat(4000)
    spec = GroupByLength(name="group_by_length")
    found = list(order.steps(spec, lengths, rows=8, tokens=1, seed=0))
    assert lengths[found[0][0]] == lengths.max()
    spread = np.median([np.ptp(lengths[step]) for step in found])
    assert spread < 0.05 * np.median(
        [np.ptp(lengths[step]) for step in order.steps(Shuffle(), lengths, rows=8, tokens=1, seed=0)]
    )


def test_pieces_by_hand() -> None:
    """1,000 = 512 + 256 + 232 left, or 513 + 257 + 230 left; 20,000 in pieces of at most 8,192."""

    def cut(length: int, plus_one: bool) -> tuple[list[int], int]:
        _, _, sizes = order.decompose(np.array([length]), 256, 8192, plus_one=plus_one)
        return sizes.tolist(), length - int(sizes.sum())

    assert cut(1000, False) == ([512, 256], 232)
    assert cut(1000, True) == ([513, 257], 230)
    assert cut(20_000, False) == ([8192, 8192, 2048, 1024, 512], 32)
    assert cut(20_000, True) == ([8193, 8193, 2049, 1025, 513], 27)
    assert cut(256, True) == ([], 256)


@given(lengths=LENGTHS, plus_one=st.booleans(), mixed=st.booleans(), low=st.integers(0, 3), more=st.integers(0, 3))
def test_pieces_are_powers_of_two_and_nothing_overlaps(
    lengths: NDArray[np.int64], plus_one: bool, mixed: bool, low: int, more: int
) -> None:
    shortest, longest = 2**low, 2 ** (low + more)
    documents, starts, sizes = order.decompose(lengths, shortest, longest, plus_one=plus_one, mixed=mixed)
    assert set((sizes - plus_one).tolist()) <= {2**power for power in range(low, low + more + 1)}
    for document, length in enumerate(lengths.tolist()):
        mine = documents == document
        ends = starts[mine] + sizes[mine]
        assert starts[mine].tolist() == [0, *ends.tolist()][: mine.sum()]
        left = length - (int(ends[-1]) if mine.any() else 0)
        assert 0 <= left < shortest + plus_one
        if not mixed:
            assert (np.diff(sizes[mine]) <= 0).all()


def test_pieces_of_random_lengths_give_each_length_the_same_tokens() -> None:
    documents, _, sizes = order.decompose(np.array([10, 5, 20_000_000]), 256, 8192, plus_one=False, mixed=True, seed=1)
    counts = np.bincount(np.log2(sizes).astype(int), weights=sizes)[8:14]
    assert counts.max() / counts.min() < 1.25
    alone = order.decompose(np.array([99, 500, 20_000_000]), 256, 8192, plus_one=False, mixed=True, seed=1)[2]
    assert alone[-len(sizes) :].tolist() == sizes[documents == 2].tolist(), (
        "a document's cut does not depend on the others"
    )


def test_average_context_of_published_mixtures() -> None:
    """Equal tokens in 2^8 … 2^13 give 1,344 in the paper; 3:6:10:17:21:17:13:9 in 2^6 … 2^13 482 and 1,018."""
    equal = np.concatenate([np.full(2**13 >> power, 2**power) for power in range(8, 14)])
    assert order.average_context(equal) == 1343.5
    weights = (3, 6, 10, 17, 21, 17, 13, 9)
    mixed = np.concatenate([np.full(weight * (2**13 >> power), 2**power) for power, weight in enumerate(weights, 6)])
    assert mixed.mean() == pytest.approx(482.178, abs=1e-3)
    assert order.average_context(mixed) == pytest.approx(1017.833, abs=1e-3)


def mean_lengths(spec: Cycles, seed: int = 0) -> tuple[float, float]:
    """Mean row of a step over the first and the last tenth of a pass."""
    lengths = np.concatenate([np.full(2**24 >> power, 2**power) for power in range(8, 14)])
    found = [float(lengths[step].mean()) for step in order.steps(spec, lengths, rows=1, tokens=2**17, seed=seed)]
    tenth = len(found) // 10
    return float(np.mean(found[:tenth])), float(np.mean(found[-tenth:]))


@pytest.mark.parametrize(
    ("odds", "cycles", "first", "last"),
    [("linear", 1, 1463, 7573), ("p2", 1, 780, 7892), ("p100", 1, 259, 8192), ("p2", 8, 1801, 3225)],
)
def test_how_lengths_grow_over_a_pass(odds: Any, cycles: int, first: float, last: float) -> None:
    """The first tenth of one cycle has the mean of the odds, sum(o l) / sum(o): of 6:5:4:3:2:1 it is 1,463, of powers
    of 2 it is 6 * 8,192 / 63 = 780. The last tenths, and 8 cycles, are those of a simulation of the paper's sampler."""
    found = np.mean([mean_lengths(Cycles(odds=odds, cycles=cycles), seed) for seed in range(12)], axis=0)
    assert found == pytest.approx([first, last], rel=0.09)


def test_lengths_do_not_grow_with_uniform_odds() -> None:
    first, last = np.mean([mean_lengths(Cycles(odds="uniform", cycles=1), seed) for seed in range(12)], axis=0)
    assert first == pytest.approx(2688, rel=0.12)
    assert last < 4096


def test_odds_are_respected_while_every_length_is_there() -> None:
    """1:2:4 (p2 of three lengths), counted over the first steps, when no length can have run out."""
    lengths = np.concatenate([np.full(4000 >> power, 2**power) for power in range(3)])
    assert order.weights_of("p2", 3) == [4, 2, 1]
    assert order.weights_of("linear", 3) == [3, 2, 1]
    assert order.weights_of("p100", 3) == [10_000, 100, 1]
    assert order.weights_of("shrink_p100", 3) == [1, 100, 10_000]
    found = order.steps(Cycles(cycles=1), lengths, rows=1, tokens=8, seed=0)
    drawn = [int(lengths[found[step][0]]) for step in range(600)]
    shares = [drawn.count(length) / 600 for length in (1, 2, 4)]
    assert shares == pytest.approx([4 / 7, 2 / 7, 1 / 7], abs=0.06)


def test_every_cycle_holds_every_length() -> None:
    lengths = np.concatenate([np.full(4096 >> power, 2**power) for power in range(3)])
    found = list(order.steps(Cycles(cycles=4), lengths, rows=1, tokens=16, seed=0))
    parts = [found[at : at + len(found) // 4] for at in range(0, len(found), len(found) // 4)]
    counts = np.array([[sum(lengths[step[0]] == length for step in part) for length in (1, 2, 4)] for part in parts])
    assert (np.ptp(counts, axis=0) == 0).all()


def test_less_than_a_step_waits_for_the_next_cycle() -> None:
    """7 rows of 4 tokens, 2 to a step, 2 cycles of 3 and 4: steps of 2, then 2, 2, 1 instead of 2, 1, then 2, 2."""
    found = order.steps(Cycles(cycles=2), np.full(7, 4), rows=1, tokens=8, seed=0)
    assert np.diff(found.offsets).tolist() == [2, 2, 2, 1]


def test_weighting_by_tokens_draws_from_where_the_tokens_are() -> None:
    lengths = np.concatenate([np.full(2000, 1), np.full(100, 2)])
    first = {
        weighting: np.mean(
            [
                lengths[step[0]]
                for step in list(
                    order.steps(
                        Cycles(odds="uniform", cycles=1, weighting=weighting), lengths, rows=1, tokens=2, seed=0
                    )
                )[:100]
            ]
        )
        for weighting in ("odds", "odds_x_tokens")
    }
    assert first["odds"] == pytest.approx(1.5, abs=0.15)
    assert first["odds_x_tokens"] == pytest.approx(1 + 200 / 2200, abs=0.1)


def test_rows_grow_stage_by_stage_at_constant_tokens() -> None:
    lengths = np.concatenate([np.full(64, 128), np.full(32, 256), np.full(16, 512)])
    found = list(order.steps(GrowLength(name="growlength"), lengths, rows=1, tokens=1024, seed=0))
    assert [int(lengths[step].max()) for step in found] == [128] * 8 + [256] * 8 + [512] * 8
    assert {int(lengths[step].sum()) for step in found} == {1024}


def test_stages_share_any_number_of_steps() -> None:
    """Stages of 8, 8 and 4 steps a pass: 10 steps are 4, 4, 2; 41 are 16, 16 and 9 (8.2 has the largest remainder)."""
    lengths = np.concatenate([np.full(64, 128), np.full(32, 256), np.full(8, 512)])
    for count, expected in ((10, [4, 4, 2]), (41, [17, 16, 8])):
        found = order.steps(GrowLength(name="growlength"), lengths, rows=1, tokens=1024, seed=0, count=count)
        longest = [int(lengths[step].max()) for step in found]
        assert [longest.count(length) for length in (128, 256, 512)] == expected
        assert longest == sorted(longest)


def test_a_stage_that_lasts_passes_over_its_rows_again_in_another_order() -> None:
    found = order.steps(GrowLength(name="growlength"), np.full(64, 128), rows=1, tokens=1024, seed=0, count=16)
    first, second = found.indices[:64].tolist(), found.indices[64:].tolist()
    assert sorted(first) == sorted(second) == list(range(64))
    assert first != second


def test_the_steps_of_a_group_do_not_come_longest_first() -> None:
    lengths = chat(500)
    found = order.steps(TokenBudget(name="token_budget"), lengths, rows=1, tokens=16_384, seed=0)
    longest = [int(lengths[step].max()) for step in found]
    assert longest != sorted(longest, reverse=True)


def test_lengths_of_stages() -> None:
    assert GrowLength(name="growlength").stages(4096) == (128, 256, 512, 1024, 2048, 4096)
    assert GrowLength(name="growlength").stages(100) == (100,)
    assert GrowLength(name="growlength", lengths=(64, 4096)).stages(4096) == (64, 4096)
    saved = GrowLength(name="growlength").stages(4096)
    assert sum(saved) / len(saved) / 4096 == pytest.approx(0.328, abs=1e-3)  # attention's cost against fixed 4,096


@given(lengths=LENGTHS, fractions=st.lists(st.floats(0.1, 5), min_size=1, max_size=4), seed=st.integers(0, 3))
def test_documents_are_dealt_to_stages_by_tokens(lengths: NDArray[np.int64], fractions: list[float], seed: int) -> None:
    dealt = order.deal_to_stages(lengths, fractions, seed)
    assert len(dealt) == len(fractions)
    assert sorted(np.concatenate(dealt).tolist()) == list(range(len(lengths)))
    share = np.cumsum(fractions) / sum(fractions) * lengths.sum()
    given_so_far = np.cumsum([lengths[part].sum() for part in dealt])
    assert (np.abs(given_so_far - share) <= lengths.max()).all()


@pytest.mark.parametrize(
    ("said", "problem"),
    [({"lengths": [4, 2]}, "do not grow"), ({"lengths": [2, 4], "fractions": [1.0]}, "1 fractions for 2 lengths")],
)
def test_stages_that_cannot_be(said: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        GrowLength(name="growlength", **said)


def test_every_order_is_tested() -> None:
    known = get_args(get_args(Order)[0])
    assert {type(spec) for spec in ORDERS} == set(known)
    assert TypeAdapter(Order).validate_python({"name": "cycles"}) == Cycles()
