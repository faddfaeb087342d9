"""Token sequences into rows. Imports no torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seqtune.config.order import GrowLength, Shuffle
from seqtune.errors import SeqtuneError
from seqtune.packing import order
from seqtune.packing.bounds import report

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from seqtune.config.spec import PackingSpec

IGNORED = -100
"""Label of a token that is not trained."""
_TABLE = 2**26  # tokens in one piece of a table: its 32-bit offsets hold 2**31


@dataclass(frozen=True)
class Packed:
    """Rows ready for training, and the account of what became of the documents.

    Args:
        dataset: `input_ids`, `labels` (equally long) and `seq_lengths`, which sum to that length.
        counts: `documents`, `tokens`, `trained`, `rows`, `fill` (tokens / (rows * capacity)), and for what was lost or
            cut `dropped` (by reason), `truncated`, `split` and `cropped`. `bounds` of rows as
            `seqtune.packing.bounds.report` has them.
    """

    dataset: datasets.Dataset
    counts: dict[str, Any]


@dataclass(frozen=True)
class _Pieces:
    """Contiguous parts of the token stream. int64 [pieces]"""

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    documents: NDArray[np.int64]

    def __getitem__(self, chosen: NDArray[Any]) -> _Pieces:
        return _Pieces(self.starts[chosen], self.lengths[chosen], self.documents[chosen])


def pack(sequences: datasets.Dataset, spec: PackingSpec) -> Packed:
    """Put sequences into rows of at most `spec.capacity` tokens, as `spec` says.

    The label of a document's first token is `IGNORED`: nothing of its own precedes it. With `attention=causal` a row
    counts as one sequence.

    Args:
        sequences: `input_ids` and `loss_mask`, equally long; `_where` (file and line) names them in errors.
        spec: Strategy, capacity, what happens to documents above it, seed of the order of rows.

    Raises:
        SeqtuneError: A document is longer than a row and `on_overflow` is `error`, or no document is left.
    """
    if isinstance(spec.order, GrowLength):
        return _in_stages(sequences, spec, spec.order)
    table = sequences.with_format("arrow")[:]
    ids, sizes = _flat(table.column("input_ids"), np.int32)
    mask, _ = _flat(table.column("loss_mask"), np.bool_)
    ends = np.cumsum(sizes)
    whole = _Pieces(ends - sizes, sizes, np.arange(len(sizes)))
    counts: dict[str, Any] = {"documents": len(sizes), "tokens": 0, "trained": 0, "rows": 0, "fill": 0.0}
    dropped: dict[str, int] = {}
    if (empty := int((sizes == 0).sum())) > 0:
        dropped["no token"] = empty
    pieces = _fit(whole[sizes > 0], spec, counts, dropped, sequences)
    trained = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(mask, dtype=np.int64)])
    targets = trained[pieces.starts + pieces.lengths] - trained[pieces.starts + 1]
    if (untrained := int((targets == 0).sum())) > 0:
        dropped["no trainable token"] = untrained
        pieces = pieces[targets > 0]
    if dropped:
        counts["dropped"] = dropped
    if not len(pieces.starts):
        why = ", ".join(f"{reason} {count}" for reason, count in dropped.items())
        raise SeqtuneError(f"no document is left to pack{': ' if why else ''}{why}", "packing.on_overflow and data")
    bins = spec.build()(pieces.lengths, spec.capacity, spec.seed)
    starts, lengths = bins.parts(pieces.lengths)
    placed = _Pieces(pieces.starts[bins.indices] + starts, lengths, pieces.documents[bins.indices])
    targets = trained[placed.starts + placed.lengths] - trained[placed.starts + 1]
    row_sizes = np.add.reduceat(placed.lengths, bins.offsets[:-1])
    counts |= {"tokens": int(placed.lengths.sum()), "trained": int(targets.sum()), "rows": len(bins)}
    counts["fill"] = counts["tokens"] / (counts["rows"] * spec.capacity)
    counts |= report(bins, pieces.lengths, spec.capacity)
    tables = []
    for first, last in _portions(row_sizes):
        part = placed[np.arange(bins.offsets[first], bins.offsets[last])]
        per_row = bins.offsets[first : last + 1] - bins.offsets[first]
        if spec.attention == "causal":
            lengths, per_row = row_sizes[first:last], np.arange(last - first + 1)
        else:
            lengths = part.lengths
        tables.append(_table(ids, mask, part, row_sizes[first:last], lengths, per_row))
    return Packed(datasets.Dataset(pa.concat_tables(tables)), counts)


def _fit(
    pieces: _Pieces, spec: PackingSpec, counts: dict[str, Any], dropped: dict[str, int], sequences: datasets.Dataset
) -> _Pieces:
    """Deal with documents longer than a row."""
    cut = spec.cut(pieces.lengths)
    if cut is not None:
        owner, starts, lengths = cut
        return _cut(pieces, owner, starts, lengths, counts, dropped)
    capacity = spec.capacity
    long = pieces.lengths > capacity
    number = int(long.sum())
    if not number or (spec.splits and spec.on_overflow == "split"):
        return pieces
    if spec.on_overflow == "error":
        longest = int(pieces.lengths.max())
        named = [int(index) for index in pieces.documents[long][:5]]
        known = "_where" in sequences.column_names
        raise SeqtuneError(
            f"{number} document{'s are' if number > 1 else ' is'} longer than a row of {capacity} tokens; "
            f"the longest has {longest}",
            ", ".join(sequences[index]["_where"] if known else f"document {index + 1}" for index in named),
            f"packing.capacity={longest}, or packing.on_overflow=truncate, split or drop",
        )
    if spec.on_overflow == "drop":
        dropped["too long"] = number
        return pieces[~long]
    if spec.on_overflow in ("truncate", "truncate_left"):
        lost = np.maximum(pieces.lengths - capacity, 0)
        counts["truncated"] = {"documents": number, "tokens": int(lost.sum())}
        starts = pieces.starts + lost if spec.on_overflow == "truncate_left" else pieces.starts
        return _Pieces(starts, pieces.lengths - lost, pieces.documents)
    parts = -(-pieces.lengths // capacity)
    counts["split"] = {"documents": number, "pieces": int(parts[long].sum())}
    owner = np.repeat(np.arange(len(parts)), parts)
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(parts) - parts, parts)
    lengths = np.minimum(pieces.lengths[owner] - nth * capacity, capacity)
    return _Pieces(pieces.starts[owner] + nth * capacity, lengths, pieces.documents[owner])


def _cut(
    whole: _Pieces,
    owner: NDArray[np.int64],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    counts: dict[str, Any],
    dropped: dict[str, int],
) -> _Pieces:
    """The pieces a packing makes of documents by itself."""
    if (short := len(whole.starts) - len(np.unique(owner))) > 0:
        dropped["too short for a piece"] = short
    counts["cut"] = {"pieces": len(owner), "tokens lost": int(whole.lengths.sum() - lengths.sum())}
    return _Pieces(whole.starts[owner] + starts, lengths, whole.documents[owner])


def _in_stages(sequences: datasets.Dataset, spec: PackingSpec, grow: GrowLength) -> Packed:
    """Every stage packs documents of its own at its own length; the rows of the first come first."""
    sizes = pc.list_value_length(sequences.with_format("arrow")[:].column("input_ids")).to_numpy()
    capacities = grow.stages(spec.capacity)
    dealt = order.deal_to_stages(sizes, grow.fractions or [1.0] * len(capacities), spec.seed)
    parts = [
        pack(sequences.select(part), spec.model_copy(update={"capacity": capacity, "order": Shuffle()}))
        for part, capacity in zip(dealt, capacities, strict=True)
        if len(part)
    ]
    if not parts:
        return pack(sequences, spec.model_copy(update={"order": Shuffle()}))
    counts: dict[str, Any] = {}
    for part in parts:
        for key, value in part.counts.items():
            if isinstance(value, dict):
                counts[key] = dict(Counter(counts.get(key, {})) + Counter(value))
            else:
                counts[key] = counts.get(key, 0) + value
    counts["fill"] = counts["tokens"] / sum(part.counts["tokens"] / part.counts["fill"] for part in parts)
    return Packed(datasets.concatenate_datasets([part.dataset for part in parts]), counts)


def _table(
    ids: NDArray[np.int32],
    mask: NDArray[np.bool_],
    pieces: _Pieces,
    row_sizes: NDArray[np.int64],
    seq_lengths: NDArray[np.int64],
    per_row: NDArray[np.int64],
) -> pa.Table:
    ends = np.cumsum(pieces.lengths)
    firsts = ends - pieces.lengths
    source = np.arange(ends[-1]) + np.repeat(pieces.starts - firsts, pieces.lengths)
    tokens = ids[source]
    labels = np.where(mask[source], tokens, np.int32(IGNORED))
    labels[firsts] = IGNORED
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(row_sizes)])
    return pa.table(
        {
            "input_ids": _lists(tokens, offsets),
            "labels": _lists(labels, offsets),
            "seq_lengths": _lists(seq_lengths.astype(np.int32), per_row),
        }
    )


def _lists(values: NDArray[np.int32], offsets: NDArray[np.int64]) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


def _portions(row_sizes: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Ranges of rows of at most `_TABLE` tokens, or of one row."""
    portion = np.cumsum(row_sizes) // _TABLE
    edges = [0, *(np.flatnonzero(np.diff(portion)) + 1).tolist(), len(row_sizes)]
    return list(pairwise(edges))


def _flat(column: Any, dtype: type[np.generic]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Values of a list column one after another, and how many each list has."""
    values = [np.empty(0, dtype=dtype)]
    sizes = [np.empty(0, dtype=np.int64)]
    for chunk in column.chunks:
        values.append(chunk.flatten().to_numpy(zero_copy_only=False).astype(dtype, copy=False))
        sizes.append(np.asarray(chunk.value_lengths().to_numpy(zero_copy_only=False), dtype=np.int64))
    return np.concatenate(values), np.concatenate(sizes)
