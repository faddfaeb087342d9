"""Token sequences into rows. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa

from seqtune.packing.arrange import Chunks, arrange
from seqtune.packing.bins import offsets_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from seqtune.config.spec import PackingSpec

_TABLE = 2**26  # tokens in one piece of a table: its 32-bit offsets hold 2**31


@dataclass(frozen=True)
class Packed:
    """Rows ready for training, and the account of what became of the documents.

    Args:
        dataset: `input_ids`, `loss_mask` (equally long, 1 where a token is trained) and `seq_lengths`, which sum to
            that length.
        counts: `documents`, `tokens`, `trained`, `rows`, `fill` (tokens / (rows * capacity)), and for what was lost or
            cut `dropped` (by reason), `truncated`, `split` and `cropped`. `bounds` of rows as
            `seqtune.packing.bounds.report` has them.
    """

    dataset: datasets.Dataset
    counts: dict[str, Any]


def pack(sequences: datasets.Dataset, spec: PackingSpec) -> Packed:
    """Put sequences into rows of at most `spec.capacity` tokens, as `spec` says.

    A document's first token is not trained: nothing of its own precedes it. With `attention=causal` a row
    counts as one sequence.

    Args:
        sequences: `input_ids` and `loss_mask`, equally long; `_where` (file and line) names them in errors.
        spec: Strategy, capacity, what happens to documents above it, seed of the order of rows.

    Raises:
        SeqtuneError: A document is longer than a row and `on_overflow` is `error`, or no document is left.
    """
    table = sequences.with_format("arrow")[:]
    ids, sizes = _flat(table.column("input_ids"), np.int32)
    mask, _ = _flat(table.column("loss_mask"), np.bool_)
    begins = np.cumsum(sizes) - sizes
    trained = offsets_of(mask)

    def targets(chunks: Chunks) -> NDArray[np.int64]:
        first = begins[chunks.documents] + chunks.starts
        found: NDArray[np.int64] = trained[first + chunks.lengths] - trained[first + 1]
        return found

    def name(index: int) -> str:
        known = "_where" in sequences.column_names
        return str(sequences[index]["_where"]) if known else f"document {index + 1}"

    arranged = arrange(sizes, targets, spec, name)
    row_sizes = arranged.row_sizes()
    tables = []
    for first, last in portions(row_sizes, _TABLE):
        chunks = arranged.chunks[slice(arranged.offsets[first], arranged.offsets[last])]
        firsts = np.cumsum(chunks.lengths) - chunks.lengths
        source = np.arange(int(chunks.lengths.sum())) + np.repeat(
            begins[chunks.documents] + chunks.starts - firsts, chunks.lengths
        )
        tokens, trains = ids[source], mask[source].astype(np.uint8)
        trains[firsts] = 0
        lengths, per_row = chunks.lengths, arranged.offsets[first : last + 1] - arranged.offsets[first]
        if spec.attention == "causal":
            lengths, per_row = row_sizes[first:last], np.arange(last - first + 1)
        ends = offsets_of(row_sizes[first:last])
        tables.append(
            pa.table(
                {
                    "input_ids": lists(tokens, ends),
                    "loss_mask": lists(trains, ends),
                    "seq_lengths": lists(lengths.astype(np.int32), per_row),
                }
            )
        )
    return Packed(datasets.Dataset(pa.concat_tables(tables)), arranged.counts)


def lists(values: NDArray[Any], offsets: NDArray[np.int64]) -> pa.Array:
    """A column of lists: `values[offsets[i] : offsets[i + 1]]`. Offsets are below 2**31."""
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


def portions(row_sizes: NDArray[np.int64], tokens: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows of at most `tokens` tokens, or of one row."""
    ends = np.cumsum(row_sizes)
    first = 0
    while first < len(row_sizes):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + tokens, side="right")))
        yield first, last
        first = last


def _flat(column: Any, dtype: type[np.generic]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Values of a list column one after another, and how many each list has."""
    values = [np.empty(0, dtype=dtype)]
    sizes = [np.empty(0, dtype=np.int64)]
    for chunk in column.chunks:
        values.append(chunk.flatten().to_numpy(zero_copy_only=False).astype(dtype, copy=False))
        sizes.append(np.asarray(chunk.value_lengths().to_numpy(zero_copy_only=False), dtype=np.int64))
    return np.concatenate(values), np.concatenate(sizes)
