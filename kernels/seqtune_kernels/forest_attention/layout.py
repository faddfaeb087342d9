"""What forest attention reads of a row, worked out once: its pieces, cut to a sliding window."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor


class Piece(Protocol):
    """Queries `[q_start, q_end)` against keys `[k_start, k_end)`; causal pieces have equal ranges."""

    @property
    def q_start(self) -> int: ...
    @property
    def q_end(self) -> int: ...
    @property
    def k_start(self) -> int: ...
    @property
    def k_end(self) -> int: ...
    @property
    def causal(self) -> bool: ...


class Block(NamedTuple):
    """A piece, or what a sliding window leaves of one.

    With `reach`, query `q_start + i` sees key `k_start + j` only if `j > i - reach`; None sees every key the piece
    shows it.
    """

    q_start: int
    q_end: int
    k_start: int
    k_end: int
    causal: bool
    reach: int | None = None


class Layout:
    """The pieces of a row, and the position of each token, which a sliding window goes by.

    Args:
        pieces: What to compute; together they show every query at least one key, and no pair twice. The positions of
            the keys of a piece are consecutive.
        positions: [T] position of each token in its own sequence.
    """

    def __init__(self, pieces: Sequence[Piece], positions: NDArray[np.int64]) -> None:
        self.pieces = tuple(Block(p.q_start, p.q_end, p.k_start, p.k_end, p.causal) for p in pieces)
        self.positions = positions
        self._windowed: dict[int, tuple[Block, ...]] = {}
        self._masks: dict[int | None, Tensor] = {}

    def blocks(self, window: int | None = None) -> tuple[Block, ...]:
        """The pieces cut to what the window shows: those outside it are gone, those inside it have no `reach`.

        Args:
            window: A token sees keys less than this many positions before it; None sees all.
        """
        if window is None or window > self.positions.max(initial=0):
            return self.pieces
        if window not in self._windowed:
            self._windowed[window] = tuple(block for piece in self.pieces for block in self._cut(piece, window))
        return self._windowed[window]

    def mask(self, window: int | None, device: torch.device) -> Tensor:
        """[T, T] bool, query by key: what the pieces and the window show."""
        if window not in self._masks:
            visible = np.zeros((len(self.positions), len(self.positions)), dtype=np.bool_)
            for p in self.pieces:
                shape = p.q_end - p.q_start, p.k_end - p.k_start
                visible[p.q_start : p.q_end, p.k_start : p.k_end] = np.tri(*shape) if p.causal else True
            if window is not None:
                visible &= self.positions[:, None] - self.positions[None, :] < window
            self._masks[window] = torch.from_numpy(visible).to(device)
        return self._masks[window]

    def _cut(self, piece: Block, window: int) -> list[Block]:
        """A piece by runs of consecutive query positions: the distance of a pair is then `offset + i - j`."""
        found = []
        positions = self.positions[piece.q_start : piece.q_end]
        edges = [0, *(np.flatnonzero(np.diff(positions) != 1) + 1).tolist(), len(positions)]
        keys = piece.k_end - piece.k_start
        for first, last in pairwise(edges):
            offset = int(positions[first]) - int(self.positions[piece.k_start])
            if offset + last - first - 1 < window:
                found.append(piece._replace(q_start=piece.q_start + first, q_end=piece.q_start + last))
                continue
            skipped = max(0, offset - window + 1)  # keys that even the first query is too far from
            seeing = min(last - first, window + keys - 1 - offset)  # later queries are too far from every key
            if skipped >= keys or seeing <= 0:
                continue
            start = piece.q_start + first
            reach = window - offset + skipped
            block = Block(start, start + seeing, piece.k_start + skipped, piece.k_end, piece.causal)
            found.append(block if seeing <= reach else block._replace(reach=reach))
        return found
