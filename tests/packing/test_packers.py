"""What every registered packer keeps, worked rows of each, and its published results on two histograms."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtune.errors import SeqtuneError
from seqtune.packing import PACKINGS
from seqtune.packing.arrange import arrange
from seqtune.packing.best_fit import best_fit
from seqtune.packing.bins import Bins
from seqtune.packing.bos_crop import bos_crop
from seqtune.packing.bounds import l1, l2
from seqtune.packing.first_fit import first_fit, first_fit_decreasing
from seqtune.packing.histogram import lpfhp, spfhp
from seqtune.packing.next_fit import next_fit
from seqtune.packing.nnlshp import nnlshp, number_of_fillings
from seqtune.packing.online import OpenRows
from seqtune.packing.online_buffer import OnlineBuffer, online_buffer
from seqtune.packing.optimal import optimal
from seqtune.packing.specs import BestFit
from seqtune.packing.wrapped import wrapped
from seqtune.testing import check_packing

if TYPE_CHECKING:
    from collections.abc import Callable

CUTTING = {"wrapped"}
LOSSY = {"bos_crop"}
BY_HISTOGRAM = {"best_fit", "first_fit_decreasing", "spfhp", "lpfhp", "nnlshp", "optimal", "none"}
SMALL = {"online_best_fit": {"open_rows": 3}, "online_buffer": {"buffer": 4, "patience": 3}, "bos_crop": {"buffer": 4}}
NAMES = sorted(PACKINGS)
TWENTY = st.integers(1, 20)
CASES = st.one_of(
    TWENTY.flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), max_size=40))),
    TWENTY.flatmap(lambda c: st.tuples(st.just(c), st.lists(st.sampled_from([1, c, c // 2 + 1]), max_size=40))),
)


def packer(name: str, **fields: Any) -> Callable[..., Bins]:
    return PACKINGS.load(name)(name=name, **(SMALL.get(name, {}) | fields)).build()


def rows_of(bins: Bins, lengths: list[int]) -> list[list[int]]:
    """Tokens of the parts of each row."""
    _, sizes = bins.parts(np.array(lengths, dtype=np.int64))
    return [part.tolist() for part in np.split(sizes, bins.offsets[1:-1])] if len(bins) else []


@pytest.mark.parametrize("name", NAMES)
@given(CASES, st.integers(0, 3))
@settings(deadline=None, max_examples=40)
def test_every_packer(name: str, case: tuple[int, list[int]], seed: int) -> None:
    """Every token once, or counted as lost; no row too long, empty or with an empty part; nothing cut that fits, except
    by `wrapped`; between the bounds and the number of documents; the same again; the parts of a document in order."""
    capacity, lengths = case
    pack = packer(name)
    array = np.array(lengths, dtype=np.int64)
    bins = pack(array, capacity, seed)
    bins.check(array, capacity)
    starts, sizes = bins.parts(array)
    seen = [np.zeros(length, dtype=int) for length in lengths]
    last = [-1] * len(lengths)
    for document, start, size in zip(bins.indices.tolist(), starts.tolist(), sizes.tolist(), strict=True):
        seen[document][start : start + size] += 1
        assert start > last[document]
        last[document] = start
    if name in LOSSY:
        assert sorted(bins.indices.tolist()) == list(range(len(lengths)))
        assert all((tokens <= 1).all() for tokens in seen)
        assert all(sum(row) == capacity for row in rows_of(bins, lengths)[:-1])
    else:
        assert all((tokens == 1).all() for tokens in seen)
        assert len(bins) >= (l1 if name in CUTTING else l2)(array, capacity)
    if name not in CUTTING | LOSSY:
        assert sorted(bins.indices.tolist()) == list(range(len(lengths)))
        assert len(bins) <= len(lengths)
    again = pack(array, capacity, seed)
    assert bins.indices.tobytes() == again.indices.tobytes()
    assert bins.offsets.tobytes() == again.offsets.tobytes()
    if name in BY_HISTOGRAM:
        other = pack(np.sort(array), capacity, seed)
        assert sorted(map(sum, rows_of(other, sorted(lengths)))) == sorted(map(sum, rows_of(bins, lengths)))


@pytest.mark.parametrize("name", NAMES)
def test_the_contract_that_others_can_run(name: str) -> None:
    check_packing(name, **SMALL.get(name, {}), **({"shortest": 2} if name == "dataset_decomposition" else {}))


@pytest.mark.parametrize(
    ("bins", "problem"),
    [
        (Bins(np.array([0, 1]), np.array([0, 2])), "row 1 holds 9 tokens"),
        (Bins(np.array([0, 1, 1]), np.array([0, 1, 2, 3])), "not every document"),
        (Bins(np.array([0]), np.array([0, 1])), "not every document"),
        (Bins(np.array([0, 1]), np.array([0, 1, 1, 2])), "at least one each"),
        (Bins(np.array([0, 2]), np.array([0, 1, 2])), "documents from 0 to 2"),
        (Bins(np.array([0, 0, 1]), np.array([0, 1, 2, 3]), np.array([0, 2, 0]), np.array([3, 3, 4])), "in two parts"),
        (Bins(np.array([0, 1]), np.array([0, 1, 2]), np.array([0, 2]), np.array([5, 3])), "leaves its document"),
        (Bins(np.array([0, 1]), np.array([0, 1, 2]), np.array([0, 2]), np.array([5, 0])), "is empty"),
    ],
)
def test_rows_that_a_packer_must_not_make(bins: Bins, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = np.array([5, 4])
    with pytest.raises(ValueError, match=problem):
        bins.check(lengths, 8)
    monkeypatch.setattr(BestFit, "build", lambda self: lambda lengths, capacity, seed: bins)
    with pytest.raises(SeqtuneError, match="is at fault"):
        arrange(lengths, lambda chunks: chunks.lengths, BestFit(capacity=8))
    with pytest.raises(AssertionError, match="packing 'best_fit' with lengths"):
        check_packing("best_fit")


CUT_ROWS = st.integers(2, 30).flatmap(
    lambda capacity: st.tuples(
        st.just(capacity), st.lists(st.sets(st.integers(1, capacity - 1), max_size=5), min_size=1, max_size=30)
    )
)


@pytest.mark.parametrize(("pack", "more"), [(first_fit_decreasing, 6 / 9), (best_fit, 4)])
@given(CUT_ROWS)
@settings(deadline=None, max_examples=100)
def test_decreasing_is_near_the_fewest_rows(
    pack: Callable[..., Bins], more: float, case: tuple[int, list[set[int]]]
) -> None:
    """Documents cut from full rows, so that the fewest are known: at most 11/9 of them and a constant, which is known
    to be 6/9 for first fit (Dósa, https://doi.org/10.1007/978-3-540-74450-4_1) and 4 for best fit."""
    capacity, rows = case
    lengths = np.array([part for cuts in rows for part in np.diff([0, *sorted(cuts), capacity])], dtype=np.int64)
    assert len(rows) <= len(pack(lengths, capacity, 0)) <= 11 / 9 * len(rows) + more


@pytest.mark.parametrize("name", NAMES)
def test_lengths_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"lengths? (is|are)"):
        packer(name)(np.array([3, 0]), 8, 0)
    if name != "wrapped":
        with pytest.raises(ValueError, match="1 to 8"):
            packer(name)(np.array([3, 9]), 8, 0)


@pytest.mark.parametrize(
    ("pack", "capacity", "lengths", "rows"),
    [
        (next_fit, 10, [7, 6, 5, 4, 3, 3, 2, 2], [[7], [6], [5, 4], [3, 3, 2, 2]]),
        (first_fit, 10, [7, 6, 5, 4, 3, 3, 2, 2], [[7, 3], [6, 4], [5, 3, 2], [2]]),
        (first_fit, 10, [5, 6, 4, 3, 7, 1], [[5, 4, 1], [6, 3], [7]]),
        (wrapped, 8, [14, 7, 5], [[8], [6, 2], [5, 3], [2]]),
    ],
)
def test_rows_in_order(pack: Callable[..., Bins], capacity: int, lengths: list[int], rows: list[list[int]]) -> None:
    """By hand. First fit puts 1 beside 5 and 4, the first row with space for it, though 6 and 3 leave as little."""
    assert rows_of(pack(np.array(lengths), capacity, 0), lengths) == rows


@pytest.mark.parametrize(
    ("pack", "rows"),
    [
        (spfhp, [[7, 3], [6, 3], [5, 4], [2], [2]]),
        (lpfhp, [[7, 3], [6, 4], [5, 3, 2], [2]]),
        (first_fit_decreasing, [[7, 3], [6, 4], [5, 3, 2], [2]]),
        (optimal, [[7, 3], [6, 4], [5, 3, 2], [2]]),
    ],
)
def test_rows_longest_first(pack: Callable[..., Bins], rows: list[list[int]]) -> None:
    """Capacity 10, by hand. The emptiest row for the 4 is that of the 5, for the 3s those of the 6 and the 7; nothing
    holds a 2 then."""
    lengths = [7, 6, 5, 4, 3, 3, 2, 2]
    assert sorted(rows_of(pack(np.array(lengths), 10, 0), lengths), reverse=True) == rows


def test_first_fit_is_not_best_fit() -> None:
    """Capacity 8: 6; 4 and 3 beside it fill a row to 7; the 1 goes into the first row or into the fuller second."""
    lengths = [6, 4, 3, 1]
    array = np.array(lengths)
    assert sorted(rows_of(first_fit_decreasing(array, 8, 0), lengths)) == [[4, 3], [6, 1]]
    assert sorted(rows_of(best_fit(array, 8, 0), lengths)) == [[4, 3, 1], [6]]


@given(CASES)
@settings(deadline=None, max_examples=100)
def test_decreasing_equals_placing_one_at_a_time(case: tuple[int, list[int]]) -> None:
    """First-fit-decreasing is first fit of the sorted documents; longest-pack-first opens as many rows as best fit."""
    capacity, lengths = case
    longest = np.array(sorted(lengths, reverse=True), dtype=np.int64)
    assert sorted(map(tuple, first_fit_decreasing(longest, capacity, 0))) == sorted(
        map(tuple, first_fit(longest, capacity, 0))
    )
    assert len(lpfhp(longest, capacity, 0)) == len(best_fit(longest, capacity, 0))


@given(CASES)
@settings(deadline=None, max_examples=60)
def test_optimal_is_between_its_bound_and_best_fit(case: tuple[int, list[int]]) -> None:
    capacity, lengths = case
    array = np.array(lengths, dtype=np.int64)
    bins = optimal(array, capacity, 0)
    assert bins.bound is not None
    assert l2(array, capacity) <= bins.bound <= len(bins) <= len(best_fit(array, capacity, 0))


def test_optimal_beats_best_fit() -> None:
    """Capacity 10: best fit puts 5 with 5 (4 4 and 3 3 3 3 are left); two rows of 4 3 3 and one of 5 5 take all."""
    lengths = np.array([5, 5, 4, 4, 3, 3, 3, 3])
    assert len(best_fit(lengths, 10, 0)) == 4
    bins = optimal(lengths, 10, 0)
    assert (len(bins), bins.bound) == (3, 3)


@pytest.mark.parametrize("pack", [spfhp, lpfhp, nnlshp])
@given(CASES, st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_limit_of_documents(pack: Callable[..., Bins], case: tuple[int, list[int]], limit: int) -> None:
    capacity, lengths = case
    bins = pack(np.array(lengths, dtype=np.int64), capacity, 0, max_documents=limit)
    assert sorted(bins.indices.tolist()) == list(range(len(lengths)))
    assert (np.diff(bins.offsets) <= limit).all()
    assert all(sum(row) <= capacity for row in rows_of(bins, lengths))


def test_nnlshp_by_hand() -> None:
    """Capacity 4, two documents a row, lengths 1 1 3 3 2 2 2 2: twice (3, 1), twice (2, 2), nothing left over."""
    lengths = [1, 1, 3, 3, 2, 2, 2, 2]
    rows = rows_of(nnlshp(np.array(lengths), 4, 0, max_documents=2), lengths)
    assert sorted(rows) == [[2, 2], [2, 2], [3, 1], [3, 1]]
    assert [number_of_fillings(512, 3), number_of_fillings(384, 3)] == [22102, 12481]


def test_too_many_fillings_are_refused() -> None:
    with pytest.raises(ValueError, match="ways to fill a row"):
        packer("nnlshp", capacity=4096, max_documents=4)


def test_buffer_by_hand() -> None:
    """Capacity 10, buffer of 3: 6 then 4; then 5, 3, 2."""
    lengths = [6, 5, 4, 3, 2]
    assert rows_of(online_buffer(np.array(lengths), 10, 0, buffer=3, patience=99), lengths) == [[6, 4], [5, 3, 2]]


def test_patience() -> None:
    """Capacity 10, buffer of 2: the 3 never fits behind a 9 and opens a row once it has waited for two."""
    lengths = [3, *[9] * 8]
    rows = rows_of(online_buffer(np.array(lengths), 10, 0, buffer=2, patience=2), lengths)
    assert rows.index([3]) == 3
    assert rows_of(online_buffer(np.array(lengths), 10, 0, buffer=2, patience=99), lengths)[-1] == [3]


def test_crop_by_hand() -> None:
    """Capacity 10, buffer of 3: 7 of 6, 5, 7; none of 6, 5, 8 fits into 3, so the 5 is cropped; then 8, and 2 of the
    6."""
    lengths = [6, 5, 7, 8]
    bins = bos_crop(np.array(lengths), 10, 0, buffer=3)
    assert rows_of(bins, lengths) == [[7, 3], [8, 2]]
    assert bins.indices.tolist() == [2, 1, 3, 0]


@pytest.mark.parametrize("make", [lambda: OnlineBuffer(20, 5, 4), lambda: OpenRows(20, 3)])
@given(st.lists(st.integers(1, 20), max_size=60), st.integers(0, 60))
@settings(deadline=None, max_examples=50)
def test_streams_go_on_from_their_state(make: Callable[[], Any], lengths: list[int], stop: int) -> None:
    def push(packer: Any, first: int, last: int) -> list[list[int]]:
        return [row for item in range(first, last) for row in packer.push(item, lengths[item])]

    stop = min(stop, len(lengths))
    whole, begun, going_on = make(), make(), make()
    rows = push(whole, 0, len(lengths)) + whole.flush()
    before = push(begun, 0, stop)
    going_on.load_state_dict(json.loads(json.dumps(begun.state_dict())))
    assert before + push(going_on, stop, len(lengths)) + going_on.flush() == rows


@pytest.fixture
def histograms(real_data: Callable[[str], Any]) -> dict[str, Any]:
    return json.loads(real_data("packing_histograms.json").read_text())


def documents(histograms: dict[str, Any], name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.repeat(np.arange(1, len(histograms[name]) + 1), histograms[name])


def fill(bins: Bins, lengths: np.ndarray[Any, Any], capacity: int) -> float:
    return 100 * float(lengths.sum()) / (len(bins) * capacity)


def test_squad_384(histograms: dict[str, Any]) -> None:
    lengths = documents(histograms, "squad_1_1_384")
    assert len(spfhp(lengths, 384, 0)) == 40_711
    assert fill(spfhp(lengths, 384, 0), lengths, 384) == pytest.approx(97.547, abs=5e-4)
    assert len(best_fit(lengths, 384, 0)) == len(first_fit_decreasing(lengths, 384, 0)) == 40_631
    assert fill(lpfhp(lengths, 384, 0), lengths, 384) == pytest.approx(97.739, abs=5e-4)
    assert fill(spfhp(lengths, 384, 0, max_documents=2), lengths, 384) == pytest.approx(87.597, abs=5e-4)
    assert fill(nnlshp(lengths, 384, 0), lengths, 384) == pytest.approx(97.39, abs=0.02)
    best = optimal(lengths, 384, 0)
    assert fill(best, lengths, 384) >= 98.79
    assert best.bound == 40_195
    assert len(best) <= best.bound + 3


@pytest.mark.slow
def test_wikipedia_512(histograms: dict[str, Any]) -> None:
    lengths = documents(histograms, "wikipedia_bert_512")
    found = {limit: fill(spfhp(lengths, 512, 0, max_documents=limit), lengths, 512) for limit in (2, 3, 4, 8, 12)}
    assert found == pytest.approx({2: 80.525, 3: 89.441, 4: 93.941, 8: 98.902, 12: 99.6040}, abs=5e-4)
    assert len(spfhp(lengths, 512, 0)) == 8_166_708
    assert fill(lpfhp(lengths, 512, 0, max_documents=3), lengths, 512) == pytest.approx(89.486, abs=1e-3)
    assert len(lpfhp(lengths, 512, 0, max_documents=12)) == 8_149_619
    assert len(lpfhp(lengths, 512, 0)) == len(best_fit(lengths, 512, 0)) == 8_138_483
    assert fill(best_fit(lengths, 512, 0), lengths, 512) == pytest.approx(99.9494, abs=5e-5)
    assert fill(nnlshp(lengths, 512, 0), lengths, 512) == pytest.approx(99.75, abs=5e-3)
    best = optimal(lengths, 512, 0)
    assert fill(best, lengths, 512) >= 99.98
    assert best.bound == 8_135_727
    assert len(best) <= best.bound + 3
