"""Which part of which document lies where in which row: integers only, wherever the tokens are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from seqtune.config.order import GrowLength, Shuffle
from seqtune.errors import SeqtuneError
from seqtune.packing import order
from seqtune.packing.bins import offsets_of
from seqtune.packing.bounds import report

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from seqtune.config.spec import PackingSpec


@dataclass(frozen=True)
class Chunks:
    """Contiguous parts of documents. int64 [K] each

    Args:
        documents: Which document.
        starts: Token of the document at which the part starts.
        lengths: Tokens of the part.
    """

    documents: NDArray[np.int64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, chosen: NDArray[Any] | slice) -> Chunks:
        return Chunks(self.documents[chosen], self.starts[chosen], self.lengths[chosen])


@dataclass(frozen=True)
class Arranged:
    """The rows of a packing.

    Args:
        chunks: What lies in the rows, row after row.
        offsets: Row `r` holds `chunks[offsets[r] : offsets[r + 1]]`. int64 [R + 1]
        counts: As of `seqtune.packing.pack.Packed`.
    """

    chunks: Chunks
    offsets: NDArray[np.int64]
    counts: dict[str, Any]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row_sizes(self) -> NDArray[np.int64]:
        """Tokens of each row. [R]"""
        return np.add.reduceat(self.chunks.lengths, self.offsets[:-1])


def arrange(
    sizes: NDArray[np.int64],
    targets: Callable[[Chunks], NDArray[np.int64]],
    spec: PackingSpec,
    name: Callable[[int], str] = lambda index: f"document {index + 1}",
) -> Arranged:
    """Place documents into rows of at most `spec.capacity` tokens, as `spec` says.

    Args:
        sizes: Tokens of each document. [D]
        targets: Trained tokens of each chunk, its first token left out: nothing of its own precedes it.
        spec: Strategy, capacity, what happens to documents above it, seed of the order of rows.
        name: Where a document came from, for errors.

    Raises:
        SeqtuneError: A document is longer than a row and `on_overflow` is `error`, or no document is left.
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    return _arrange(np.arange(len(sizes)), sizes, targets, spec, name)


def _arrange(
    documents: NDArray[np.int64],
    sizes: NDArray[np.int64],
    targets: Callable[[Chunks], NDArray[np.int64]],
    spec: PackingSpec,
    name: Callable[[int], str],
) -> Arranged:
    if isinstance(spec.order, GrowLength):
        return _in_stages(documents, sizes, targets, spec, spec.order, name)
    whole = Chunks(documents, np.zeros(len(sizes), dtype=np.int64), sizes)
    counts: dict[str, Any] = {"documents": len(sizes), "tokens": 0, "trained": 0, "rows": 0, "fill": 0.0}
    dropped: dict[str, int] = {}
    if (empty := int((sizes == 0).sum())) > 0:
        dropped["no token"] = empty
    pieces = _fit(whole[sizes > 0], spec, counts, dropped, name)
    trained = targets(pieces)
    if (untrained := int((trained == 0).sum())) > 0:
        dropped["no trainable token"] = untrained
        pieces = pieces[trained > 0]
    if dropped:
        counts["dropped"] = dropped
    if not len(pieces):
        why = ", ".join(f"{reason} {count}" for reason, count in dropped.items())
        raise SeqtuneError(f"no document is left to pack{': ' if why else ''}{why}", "packing.on_overflow and data")
    bins = spec.build()(pieces.lengths, spec.capacity, spec.seed)
    try:
        bins.check(pieces.lengths, spec.capacity)
    except ValueError as error:
        raise SeqtuneError(
            f"packing '{spec.name}' is at fault: {error}",
            "packing.name",
            "tell its author; seqtune.testing.check_packing shows it",
        ) from error
    starts, lengths = bins.parts(pieces.lengths)
    placed = Chunks(pieces.documents[bins.indices], pieces.starts[bins.indices] + starts, lengths)
    counts |= {"tokens": int(lengths.sum()), "trained": int(targets(placed).sum()), "rows": len(bins)}
    counts["fill"] = counts["tokens"] / (counts["rows"] * spec.capacity)
    counts |= report(bins, pieces.lengths, spec.capacity)
    return Arranged(placed, np.asarray(bins.offsets, dtype=np.int64), counts)


def _fit(
    pieces: Chunks,
    spec: PackingSpec,
    counts: dict[str, Any],
    dropped: dict[str, int],
    name: Callable[[int], str],
) -> Chunks:
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
        raise SeqtuneError(
            f"{number} document{'s are' if number > 1 else ' is'} longer than a row of {capacity} tokens; "
            f"the longest has {longest}",
            ", ".join(name(int(index)) for index in pieces.documents[long][:5]),
            f"packing.capacity={longest}, or packing.on_overflow=truncate, split or drop",
        )
    if spec.on_overflow == "drop":
        dropped["too long"] = number
        return pieces[~long]
    if spec.on_overflow in ("truncate", "truncate_left"):
        lost = np.maximum(pieces.lengths - capacity, 0)
        counts["truncated"] = {"documents": number, "tokens": int(lost.sum())}
        starts = pieces.starts + lost if spec.on_overflow == "truncate_left" else pieces.starts
        return Chunks(pieces.documents, starts, pieces.lengths - lost)
    parts = -(-pieces.lengths // capacity)
    counts["split"] = {"documents": number, "pieces": int(parts[long].sum())}
    owner = np.repeat(np.arange(len(parts)), parts)
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(parts) - parts, parts)
    lengths = np.minimum(pieces.lengths[owner] - nth * capacity, capacity)
    return Chunks(pieces.documents[owner], pieces.starts[owner] + nth * capacity, lengths)


def _cut(
    whole: Chunks,
    owner: NDArray[np.int64],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    counts: dict[str, Any],
    dropped: dict[str, int],
) -> Chunks:
    """The pieces a packing makes of documents by itself."""
    if (short := len(whole) - len(np.unique(owner))) > 0:
        dropped["too short for a piece"] = short
    counts["cut"] = {"pieces": len(owner), "tokens lost": int(whole.lengths.sum() - lengths.sum())}
    return Chunks(whole.documents[owner], whole.starts[owner] + starts, lengths)


def _in_stages(
    documents: NDArray[np.int64],
    sizes: NDArray[np.int64],
    targets: Callable[[Chunks], NDArray[np.int64]],
    spec: PackingSpec,
    grow: GrowLength,
    name: Callable[[int], str],
) -> Arranged:
    """Every stage packs documents of its own at its own length; the rows of the first come first."""
    capacities = grow.stages(spec.capacity)
    dealt = order.deal_to_stages(sizes, grow.fractions or [1.0] * len(capacities), spec.seed)
    parts = [
        _arrange(
            documents[part],
            sizes[part],
            targets,
            spec.model_copy(update={"capacity": capacity, "order": Shuffle()}),
            name,
        )
        for part, capacity in zip(dealt, capacities, strict=True)
        if len(part)
    ]
    if not parts:
        return _arrange(documents, sizes, targets, spec.model_copy(update={"order": Shuffle()}), name)
    counts: dict[str, Any] = {}
    for part in parts:
        for key, value in part.counts.items():
            if isinstance(value, dict):
                counts[key] = dict(Counter(counts.get(key, {})) + Counter(value))
            else:
                counts[key] = counts.get(key, 0) + value
    counts["fill"] = counts["tokens"] / sum(part.counts["tokens"] / part.counts["fill"] for part in parts)
    chunks = Chunks(
        np.concatenate([part.chunks.documents for part in parts]),
        np.concatenate([part.chunks.starts for part in parts]),
        np.concatenate([part.chunks.lengths for part in parts]),
    )
    return Arranged(chunks, offsets_of(np.concatenate([np.diff(part.offsets) for part in parts])), counts)
