"""Which rows each optimiser step takes, and documents cut for curricula of lengths. Integers only.

Everything here is a function of the lengths and a seed: neither the number of processes nor the moment of a resume
enters. `R` rows, `S` steps, `D` documents.
"""

from __future__ import annotations

from itertools import count as counting
from typing import TYPE_CHECKING, Literal

import numpy as np

from seqtune.config.order import Cycles, GroupByLength, GrowLength, Shuffle, TokenBudget
from seqtune.packing.bins import Bins

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from seqtune.config.order import Odds, Order

_PERMUTE, _DRAW, _DEAL = range(3)  # purposes of a random stream, so that no two of one seed coincide


def steps(
    order: Order, lengths: NDArray[np.int64], *, rows: int, tokens: int, seed: int, count: int | None = None
) -> Bins:
    """The rows of every optimiser step of all processes together.

    One pass takes every row exactly once (`shuffle` fills a step that a pass cannot fill from the next pass; of the
    others the last step of a pass, or of a stage, is short).

    Args:
        order: How rows are drawn.
        lengths: Tokens of each row. [R]
        rows: Rows a step takes, where the order goes by rows.
        tokens: Tokens a step takes, where the order goes by tokens: a step never has more, unless one row does.
        seed: Of every draw.
        count: Steps; None stops after one pass.

    Returns:
        The rows of step `s` at `[s]`, in the order in which they are dealt to processes and micro-batches.

    Raises:
        ValueError: There are no rows.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if not len(lengths):
        raise ValueError("there are no rows to order")
    if isinstance(order, GrowLength):
        found = _grown(order, lengths, tokens, seed, count)
    elif isinstance(order, Shuffle) and count is not None:
        return _shuffled(len(lengths), rows, seed, count)
    else:
        found = []
        for epoch in counting():
            found += one_pass(order, lengths, rows=rows, tokens=tokens, seed=seed, epoch=epoch)
            if count is None or len(found) >= count:
                break
    return _csr(found[:count])


def steps_of_a_pass(order: Order, lengths: NDArray[np.int64], *, rows: int, tokens: int, seed: int) -> int:
    """Steps that take every row once. Arguments as `steps`."""
    if isinstance(order, Shuffle | GroupByLength):
        return -(-len(lengths) // rows)
    return len(steps(order, lengths, rows=rows, tokens=tokens, seed=seed))


def one_pass(
    order: Order, lengths: NDArray[np.int64], *, rows: int, tokens: int, seed: int, epoch: int
) -> list[NDArray[np.int64]]:
    """The steps of pass number `epoch` of an order that has passes. Arguments as `steps`."""
    match order:
        case Shuffle():
            return _cut(permutation(len(lengths), seed, epoch), rows)
        case GroupByLength():
            random = _generator(seed, _PERMUTE, epoch)
            return _cut(group_by_length(lengths, rows, order.group_steps, random), rows)
        case TokenBudget():
            return _budgeted(order, lengths, tokens, _generator(seed, _PERMUTE, epoch))
        case Cycles():
            return cycles(
                lengths, tokens, odds=order.odds, parts=order.cycles, weighting=order.weighting, seed=seed, epoch=epoch
            )
        case _:
            raise ValueError(f"order '{order.name}' has no passes")


def permutation(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of the rows in pass number `epoch` of `shuffle`. [R]"""
    return np.random.default_rng((seed, epoch)).permutation(rows)


def group_by_length(
    lengths: NDArray[np.int64], rows: int, group_steps: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """Rows such that `rows` consecutive ones have similar lengths.

    A random permutation is cut into groups of `group_steps * rows` (fewer when there are not four groups) and each is
    sorted longest first; the longest row of all comes first of all, so that what does not fit fails at once.
    `transformers.trainer_pt_utils.get_length_grouped_indices`, except that equal lengths keep their order.

    Args:
        lengths: Tokens of each row. [R]
        rows: Rows a step takes.
        group_steps: Steps a group spans.
        random: Draws the permutation.
    """
    shuffled = random.permutation(len(lengths))
    size = rows * max(1, min(len(lengths) // (4 * rows), group_steps))
    grouped = np.concatenate([group[np.argsort(-lengths[group], kind="stable")] for group in _cut(shuffled, size)])
    first = int(np.argmax(lengths[grouped]))
    grouped[0], grouped[first] = grouped[first], grouped[0]
    return grouped


def token_budget(
    lengths: NDArray[np.int64], order: NDArray[np.int64], tokens: int, *, padded: bool = False
) -> list[NDArray[np.int64]]:
    """Cut an order of rows into steps of at most `tokens`; a longer row is a step of its own.

    Args:
        lengths: Tokens of each row. [R]
        order: Rows. [at most R]
        tokens: What a step holds.
        padded: Whether a step costs its longest row times its rows, rather than the sum of its rows.
    """
    cuts, start, longest, used = [], 0, 0, 0
    for at, length in enumerate(lengths[order].tolist()):
        longest, used = max(longest, length), used + length
        if at > start and (longest * (at + 1 - start) if padded else used) > tokens:
            cuts.append(at)
            start, longest, used = at, length, length
    return np.split(order, cuts) if len(order) else []


def _budgeted(
    order: TokenBudget, lengths: NDArray[np.int64], tokens: int, random: np.random.Generator
) -> list[NDArray[np.int64]]:
    shuffled = random.permutation(len(lengths))
    each = max(1, round(tokens / float(lengths.mean())))
    found: list[NDArray[np.int64]] = []
    for group in _cut(shuffled, order.group_steps * each):
        longest_first = group[np.argsort(-lengths[group], kind="stable")]
        found += token_budget(lengths, longest_first, tokens, padded=order.padded)
    return [found[step] for step in random.permutation(len(found))]


def weights_of(odds: Odds, buckets: int) -> list[float]:
    """The odds of each of `buckets` lengths, from the shortest to the longest."""
    falling = range(buckets - 1, -1, -1)
    table: dict[str, list[float]] = {
        "uniform": [1.0] * buckets,
        "linear": [power + 1.0 for power in falling],
        "p2": [2.0**power for power in falling],
        "p100": [100.0**power for power in falling],
        "shrink_p100": [100.0**power for power in reversed(falling)],
    }
    return table[odds]


def cycles(
    lengths: NDArray[np.int64],
    tokens: int,
    *,
    odds: Odds,
    parts: int,
    weighting: Literal["odds", "odds_x_tokens"],
    seed: int,
    epoch: int = 0,
) -> list[NDArray[np.int64]]:
    """The steps of one pass of Dataset Decomposition (arXiv:2405.13226, algorithm 1): each takes rows of one bucket.

    Bucket `k` holds the rows of `2^k` to `2^(k+1) - 1` tokens; a step takes `tokens // 2^k` of them. Each bucket is
    shuffled and dealt to `parts` cycles in equal shares. Within a cycle the bucket of the next step is drawn by odds
    among those with a whole step left; what is less waits for the next cycle, and at the end makes short steps.

    Differs from the paper in what becomes of less than a whole step, of which it says nothing.

    Args:
        lengths: Tokens of each row. [R]
        tokens: Of a step.
        odds: Between buckets, see `weights_of`.
        parts: Cycles.
        weighting: `odds`, or `odds_x_tokens`: times the tokens of the bucket in the whole pass.
        seed: Of the shuffles and draws, together with `epoch`.
        epoch: Number of the pass.
    """
    powers = np.floor(np.log2(lengths)).astype(np.int64)
    present = np.unique(powers)
    weights = np.array(weights_of(odds, len(present)))
    if weighting == "odds_x_tokens":
        weights *= [float(lengths[powers == power].sum()) for power in present]
    whole = [max(1, tokens >> int(power)) for power in present]  # rows of a step
    shuffled = [
        members[_generator(seed, _DEAL, epoch, int(power)).permutation(len(members))]
        for power, members in ((power, np.flatnonzero(powers == power)) for power in present)
    ]
    random = _generator(seed, _DRAW, epoch)
    taken = [0] * len(present)
    found: list[NDArray[np.int64]] = []
    for part in range(1, parts + 1):
        until = [len(members) * part // parts for members in shuffled]
        while True:
            least = [1] * len(present) if part == parts else whole
            left = np.array([end - at >= few for end, at, few in zip(until, taken, least, strict=True)])
            if not left.any():
                break
            chances = np.where(left, weights, 0.0)
            bucket = int(random.choice(len(present), p=chances / chances.sum()))
            stop = min(taken[bucket] + whole[bucket], until[bucket])
            found.append(shuffled[bucket][taken[bucket] : stop])
            taken[bucket] = stop
    return found


def average_context(lengths: NDArray[np.int64]) -> float:
    """Tokens before a token in its row, averaged over all tokens: `sum(l (l - 1) / 2) / sum(l)`."""
    sizes = np.asarray(lengths, dtype=np.float64)
    return float((sizes * (sizes - 1) / 2).sum() / sizes.sum())


def deal_to_stages(lengths: NDArray[np.int64], fractions: Sequence[float], seed: int) -> list[NDArray[np.int64]]:
    """Documents for each stage, in a random order: each stage gets its share of the tokens, and each document a stage.

    Args:
        lengths: Tokens of each document. [D]
        fractions: Share of the tokens of each stage; divided by their sum.
        seed: Of the order.
    """
    order = _generator(seed, _DEAL).permutation(len(lengths))
    before = np.cumsum(lengths[order]) - lengths[order]
    edges = np.cumsum(fractions) / np.sum(fractions) * lengths.sum()
    return np.split(order, np.searchsorted(before, edges[:-1]))


def decompose(
    lengths: NDArray[np.int64], shortest: int, longest: int, *, plus_one: bool, mixed: bool = False, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Cut documents into pieces whose lengths are powers of two, the longest first; what is shorter is left over.

    Dataset Decomposition (arXiv:2405.13226): with `plus_one` pieces have one token more, as in the released code, so
    that a piece of `2^k + 1` tokens has `2^k` targets of its own; without it they are the binary digits of the length.

    Args:
        lengths: Tokens of each document. [D]
        shortest: Least piece, a power of two; what is left below it belongs to no piece.
        longest: Largest piece, a power of two.
        plus_one: One token more in each piece.
        mixed: Cut what is longer than `longest` into pieces of random lengths, each length getting the same tokens,
            instead of pieces of `longest`. The released code's default.
        seed: Of `mixed`; each document has random numbers of its own.

    Returns:
        Document, start and length of each piece, in the order of the documents. int64 [pieces]
    """
    extra = int(plus_one)
    low, high = shortest.bit_length() - 1, longest.bit_length() - 1
    choices = np.arange(low, high + 1)
    chances = 2.0 ** (high - choices)
    documents: list[int] = []
    starts: list[int] = []
    sizes: list[int] = []
    for document, length in enumerate(np.asarray(lengths, dtype=np.int64).tolist()):
        at, random = 0, None
        while (left := length - at) - extra >= shortest:
            power = (left - extra).bit_length() - 1
            if power > high and mixed:
                random = random or _generator(seed, _DRAW, document)
                power = int(random.choice(choices, p=chances / chances.sum()))
            size = (1 << min(power, high)) + extra
            documents.append(document)
            starts.append(at)
            sizes.append(size)
            at += size
    return (np.array(documents, np.int64), np.array(starts, np.int64), np.array(sizes, np.int64))


def _grown(
    order: GrowLength, lengths: NDArray[np.int64], tokens: int, seed: int, count: int | None
) -> list[NDArray[np.int64]]:
    """Stage after stage; a stage draws from its own rows, and gets steps in proportion to those a pass would take."""
    bounds = np.array(order.stages(int(lengths.max())))
    stages = np.searchsorted(bounds[:-1], lengths)  # rows of (bound before, bound] tokens
    members = [np.flatnonzero(stages == stage) for stage in np.unique(stages)]

    def passed(stage: int, epoch: int) -> list[NDArray[np.int64]]:
        shuffled = members[stage][_generator(seed, _PERMUTE, epoch, stage).permutation(len(members[stage]))]
        return token_budget(lengths, shuffled, tokens)

    first = [passed(stage, 0) for stage in range(len(members))]
    whole = np.array([len(found) for found in first])
    wanted = whole if count is None else _apportion(count, whole)
    found: list[NDArray[np.int64]] = []
    for stage, number in enumerate(wanted.tolist()):
        mine = first[stage]
        for epoch in counting(1):
            if len(mine) >= number:
                break
            mine = mine + passed(stage, epoch)
        found += mine[:number]
    return found


def _apportion(total: int, weights: NDArray[np.int64]) -> NDArray[np.int64]:
    """`total` as integers in proportion to `weights`: the largest remainders are rounded up."""
    ideal = total * weights / weights.sum()
    found: NDArray[np.int64] = np.floor(ideal).astype(np.int64)
    found[np.argsort(found - ideal, kind="stable")[: total - found.sum()]] += 1
    return found


def _shuffled(rows: int, each: int, seed: int, count: int) -> Bins:
    total = count * each
    chain = [permutation(rows, seed, epoch) for epoch in range(-(-total // rows))]
    return Bins(np.concatenate(chain)[:total], np.arange(0, total + 1, each))


def _cut(order: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return np.split(order, range(size, len(order), size))


def _csr(parts: list[NDArray[np.int64]]) -> Bins:
    return Bins(np.concatenate(parts), np.concatenate([[0], np.cumsum([len(part) for part in parts])]))


def _generator(*key: int) -> np.random.Generator:
    """Random numbers that belong to a seed and what they are for; Philox by name, so that numpy cannot change it."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
