"""Segments of one flat row of tokens, their parents, and what follows from them.

Shapes: `T` tokens of the row, `N` segments. Integers only; no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """Queries `[q_start, q_end)` against keys `[k_start, k_end)`, token indices of the row.

    `causal` pieces have equal ranges and see the diagonal and below; the others see every key.
    """

    q_start: int
    q_end: int
    k_start: int
    k_end: int
    causal: bool


class SegmentForest:
    """A row of `T` tokens cut into `N` segments in depth-first order, each with at most one parent.

    A token attends to the earlier tokens of its own segment and to all tokens of its segment's ancestors; its position
    continues from the end of the parent. Depth-first order makes the descendants of a segment one contiguous range.

    Args:
        lengths: [N] tokens of each segment; a segment may be empty.
        parents: [N] index of each segment's parent, -1 for a root.

    Raises:
        ValueError: Lengths and parents differ in number, a length is negative, or the order is not depth-first.
    """

    def __init__(self, lengths: Sequence[int] | Integers, parents: Sequence[int] | Integers) -> None:
        self.lengths: Integers = np.asarray(lengths, dtype=np.int64)
        self.parents: Integers = np.asarray(parents, dtype=np.int64)
        if self.lengths.ndim != 1 or self.lengths.shape != self.parents.shape:
            raise ValueError("lengths and parents are one-dimensional and equally many")
        if (self.lengths < 0).any():
            raise ValueError("a segment has a negative length")
        open_path: list[int] = []
        for segment, parent in enumerate(self.parents.tolist()):
            while open_path and open_path[-1] != parent:
                open_path.pop()
            if parent != -1 and not open_path:
                raise ValueError(f"segment {segment} does not follow its parent {parent} in depth-first order")
            open_path.append(segment)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """T: tokens of the row."""
        return int(self.cu_seqlens[-1])

    @cached_property
    def cu_seqlens(self) -> Integers:
        """[N+1] first token of each segment, and T."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    @cached_property
    def depths(self) -> Integers:
        """[N] number of ancestors of each segment."""
        depths = np.zeros(len(self), dtype=np.int64)
        for segment, parent in enumerate(self.parents.tolist()):
            if parent >= 0:
                depths[segment] = depths[parent] + 1
        return depths

    @cached_property
    def descendants_end(self) -> Integers:
        """[N] the token after the last one of each segment's descendants (its own end when it has none)."""
        ends = self.cu_seqlens[1:].copy()
        for segment in range(len(self) - 1, -1, -1):
            parent = self.parents[segment]
            if parent >= 0:
                ends[parent] = max(ends[parent], ends[segment])
        return ends

    @cached_property
    def offsets(self) -> Integers:
        """[N] position id of each segment's first token: the tokens of its ancestors."""
        offsets = np.zeros(len(self), dtype=np.int64)
        for segment, parent in enumerate(self.parents.tolist()):
            if parent >= 0:
                offsets[segment] = offsets[parent] + self.lengths[parent]
        return offsets

    @cached_property
    def segment_of(self) -> Integers:
        """[T] segment of each token."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @cached_property
    def position_ids(self) -> Integers:
        """[T] position of each token in its own root-to-leaf sequence."""
        return np.arange(self.tokens) + (self.offsets - self.cu_seqlens[:-1])[self.segment_of]

    @cached_property
    def predictor(self) -> Integers:
        """[T] the token whose hidden state predicts each token; -1 where nothing precedes it.

        Inside a segment it is the token before; for a first token it is the last token of the nearest ancestor that
        has one, so one prompt token predicts the first token of every completion.
        """
        last = np.full(len(self), -1, dtype=np.int64)
        before = np.full(len(self), -1, dtype=np.int64)
        for segment, parent in enumerate(self.parents.tolist()):
            before[segment] = last[parent] if parent >= 0 else -1
            last[segment] = self.cu_seqlens[segment + 1] - 1 if self.lengths[segment] else before[segment]
        predictor = np.arange(self.tokens) - 1
        filled = self.lengths > 0
        predictor[self.cu_seqlens[:-1][filled]] = before[filled]
        return predictor

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """The attention of the whole row, at most 2N pieces: a causal one for each segment that has tokens, and a full
        one for each that has descendants (their queries against its keys).
        """
        found: list[Piece] = []
        for start, end, last in zip(
            self.cu_seqlens[:-1].tolist(), self.cu_seqlens[1:].tolist(), self.descendants_end.tolist(), strict=True
        ):
            if end > start:
                found.append(Piece(start, end, start, end, causal=True))
                if last > end:
                    found.append(Piece(end, last, start, end, causal=False))
        return tuple(found)

    @cached_property
    def full_pieces_by_depth(self) -> tuple[tuple[Piece, ...], ...]:
        """The full pieces grouped by the depth of the segment they read: query ranges of one group are disjoint."""
        depth_of = {
            int(start): int(depth)
            for start, depth, length in zip(self.cu_seqlens[:-1], self.depths, self.lengths, strict=True)
            if length
        }
        levels: list[list[Piece]] = [[] for _ in range(int(self.depths.max(initial=-1)) + 1)]
        for piece in self.pieces:
            if not piece.causal:
                levels[depth_of[piece.k_start]].append(piece)
        return tuple(tuple(level) for level in levels if level)

    @cached_property
    def pairs(self) -> int:
        """Query-key pairs attention computes, the diagonal included: what its time follows."""
        return sum(
            (p.q_end - p.q_start) * (p.q_end - p.q_start + 1) // 2
            if p.causal
            else (p.q_end - p.q_start) * (p.k_end - p.k_start)
            for p in self.pieces
        )

    def mask(self) -> NDArray[np.bool_]:
        """[T, T] dense visibility, query by key: the slow statement of what the pieces compute."""
        visible = np.zeros((self.tokens, self.tokens), dtype=np.bool_)
        for segment in range(len(self)):
            start, end = self.cu_seqlens[segment], self.cu_seqlens[segment + 1]
            visible[start:end, start:end] = np.tri(end - start, dtype=np.bool_)
            ancestor = self.parents[segment]
            while ancestor >= 0:
                visible[start:end, self.cu_seqlens[ancestor] : self.cu_seqlens[ancestor + 1]] = True
                ancestor = self.parents[ancestor]
        return visible

    def path(self, segment: int) -> list[int]:
        """The segments from the root to `segment`, both included."""
        path = [segment]
        while self.parents[path[-1]] >= 0:
            path.append(int(self.parents[path[-1]]))
        return path[::-1]

    def path_tokens(self, segment: int) -> Integers:
        """Row indices of the tokens of the sequence that ends with `segment`, in order."""
        return np.concatenate([np.arange(self.cu_seqlens[s], self.cu_seqlens[s + 1]) for s in self.path(segment)])
