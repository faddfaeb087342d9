"""What attention reads of a row, worked out once: its pieces, cut to a range of tokens and to a sliding window."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

T = TypeVar("T")

TILE = 128
"""Queries of a causal block on CPU, where PyTorch's kernel computes masked scores too, up to 512 keys at a time; and of
a block that a window cuts at a slant."""


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
    """A piece, or what is left of one.

    With `reach`, query `q_start + i` sees key `k_start + j` only if `j > i - reach`; None sees every key the piece
    shows it. `causal` blocks are square.
    """

    q_start: int
    q_end: int
    k_start: int
    k_end: int
    causal: bool
    reach: int | None = None

    @property
    def rows(self) -> slice:
        """Its queries."""
        return slice(self.q_start, self.q_end)

    @property
    def columns(self) -> slice:
        """Its keys."""
        return slice(self.k_start, self.k_end)


class Level(NamedTuple):
    """Blocks that are not causal, with disjoint queries in rising order: one call of a kernel for many sequences."""

    rows: slice | Tensor
    """Their queries: a slice, or [sum of q] token indices."""
    columns: slice | Tensor
    """Their keys, block after block: a slice, or [sum of k] token indices, which may repeat."""
    q_starts: Tensor
    """[blocks + 1] int32, first query of each block among `rows`, and their number."""
    k_starts: Tensor
    """[blocks + 1] int32, first key of each block among `columns`, and their number."""
    longest_q: int
    longest_k: int


class Calls(NamedTuple):
    """The blocks of a row as few calls of a kernel that takes many sequences at once."""

    starts: Tensor
    """[causal blocks + 1] int32; together the causal blocks are the whole row."""
    longest: int
    """Tokens of the longest causal block."""
    levels: tuple[Level, ...]
    rest: tuple[Block, ...]
    """Blocks that a window cuts at a slant, which such a kernel cannot express."""


class Layout:
    """The pieces of a row, and the position of each token, which a sliding window goes by.

    Args:
        pieces: What to compute; no pair of query and key twice. The positions of the keys of a piece are consecutive.
        positions: [T] position of each token in its own sequence.
        queries: Tokens `[start, end)` whose queries are at hand; None has all. Blocks count from the first of them.
        keys: Tokens whose keys are at hand, likewise.
    """

    def __init__(
        self,
        pieces: Iterable[Piece],
        positions: NDArray[np.int64],
        *,
        queries: tuple[int, int] | None = None,
        keys: tuple[int, int] | None = None,
    ) -> None:
        whole = (0, len(positions))
        (q_first, q_last), (k_first, k_last) = queries or whole, keys or whole
        self.q_positions, self.k_positions = positions[q_first:q_last], positions[k_first:k_last]
        self._once: dict[Hashable, Any] = {}
        self._pieces = tuple(
            block._replace(
                q_start=block.q_start - q_first,
                q_end=block.q_end - q_first,
                k_start=block.k_start - k_first,
                k_end=block.k_end - k_first,
            )
            for piece in pieces
            for block in _clip(piece, q_first, q_last, k_first, k_last)
        )

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, made at the first time of asking for `key`: layers of a model ask for the same things."""
        if key not in self._once:
            self._once[key] = make()
        found: T = self._once[key]
        return found

    @cached_property
    def covered(self) -> bool:
        """Whether the causal blocks together hold every query and every key at hand."""
        held = sum(b.q_end - b.q_start for b in self._pieces if b.causal)
        return held == len(self.q_positions) == len(self.k_positions)

    def blocks(self, window: int | None = None) -> tuple[Block, ...]:
        """The pieces cut to what the window shows: those outside it are gone, those inside it have no `reach`.

        Args:
            window: A token sees keys less than this many positions before it; None sees all.
        """
        if window is None or window > self.q_positions.max(initial=0):
            return self._pieces
        return self.once(
            ("blocks", window), lambda: tuple(block for piece in self._pieces for block in self._cut(piece, window))
        )

    def tiles(self, window: int | None = None) -> tuple[Block, ...]:
        """`blocks` in smaller ones that leave less to mask, the causal ones first."""

        def make() -> tuple[Block, ...]:
            halves = [half for block in self.blocks(window) for part in _straighten(block) for half in _halve(part)]
            return tuple(sorted(halves, key=lambda block: not block.causal))

        return self.once(("tiles", window), make)

    def calls(self, window: int | None, device: torch.device) -> Calls:
        """`blocks` for a kernel that takes many sequences at once; the row must be whole."""

        def make() -> Calls:
            blocks = self.blocks(window)
            starts = [0, *(b.q_end for b in blocks if b.causal)]
            full = [part for block in blocks if not block.causal for part in _straighten(block)]
            return Calls(
                torch.tensor(starts, dtype=torch.int32, device=device),
                max((b - a for a, b in pairwise(starts)), default=0),
                tuple(_level(level, device) for level in _levels([b for b in full if b.reach is None])),
                tuple(b for b in full if b.reach is not None),
            )

        return self.once(("calls", window, device), make)

    def mask(self, window: int | None, device: torch.device) -> Tensor:
        """[Tq, Tk] bool, query by key: what the pieces and the window show."""

        def make() -> Tensor:
            visible = np.zeros((len(self.q_positions), len(self.k_positions)), dtype=np.bool_)
            for b in self._pieces:
                visible[b.rows, b.columns] = np.tri(b.q_end - b.q_start) if b.causal else True
            if window is not None:
                visible &= self.q_positions[:, None] - self.k_positions[None, :] < window
            return torch.from_numpy(visible).to(device)

        return self.once(("mask", window, device), make)

    def _cut(self, piece: Block, window: int) -> Iterator[Block]:
        """A piece by runs of consecutive query positions: the distance of a pair is then `offset + i - j`."""
        positions = self.q_positions[piece.rows]
        keys = piece.k_end - piece.k_start
        edges = [0, *(np.flatnonzero(np.diff(positions) != 1) + 1).tolist(), len(positions)]
        for first, last in pairwise(edges):
            offset = int(positions[first] - self.k_positions[piece.k_start])
            skipped = max(0, offset - window + 1)  # keys that even the first query is too far from
            seeing = min(last - first, window + keys - 1 - offset)  # later queries are too far from every key
            if skipped < keys and seeing > 0:
                start = piece.q_start + first
                block = Block(start, start + seeing, piece.k_start + skipped, piece.k_end, piece.causal)
                reach = window - offset + skipped
                yield block if seeing <= reach else block._replace(reach=reach)


def _clip(piece: Piece, q_first: int, q_last: int, k_first: int, k_last: int) -> Iterator[Block]:
    """What is left of a piece when only these queries and keys are at hand."""
    q_start, q_end = max(piece.q_start, q_first), min(piece.q_end, q_last)
    k_start, k_end = max(piece.k_start, k_first), min(piece.k_end, k_last)
    if q_start >= q_end or k_start >= k_end:
        return
    if not piece.causal:
        yield Block(q_start, q_end, k_start, k_end, causal=False)
        return
    if k_start < q_start:  # keys before the first query
        yield Block(q_start, q_end, k_start, min(k_end, q_start), causal=False)
    start, end = max(q_start, k_start), min(q_end, k_end)
    if start < end:
        yield Block(start, end, start, end, causal=True)
        if end < q_end:  # queries after the last key
            yield Block(end, q_end, start, end, causal=False)


def _straighten(block: Block) -> Iterator[Block]:
    """A block that a window cuts at a slant as blocks it leaves whole, and a triangle for each `TILE` queries.

    Triangles leave half of their scores to mask, the block itself leaves up to as many as it shows. A `reach` shorter
    than that gains nothing.
    """
    reach = block.reach
    if reach is None or reach < TILE:
        yield block
        return
    q, k = block.q_start, block.k_start
    queries, keys = block.q_end - q, block.k_end - k
    head = min(reach, queries)  # these see every key before them
    yield Block(q, q + head, k, k + head if block.causal else block.k_end, block.causal)
    for start in range(head, queries, TILE):
        end = min(start + TILE, queries)
        if start < end - 1:
            yield Block(q + start, q + end - 1, k + start - reach + 1, k + end - reach, causal=False, reach=1)
        seen = start if block.causal else keys  # by each of these queries, from `end - reach`
        if end - reach < seen:
            yield Block(q + start, q + end, k + end - reach, k + seen, causal=False)
        if block.causal:
            yield Block(q + start, q + end, k + start, k + end, causal=True)


def _halve(block: Block) -> Iterator[Block]:
    """A causal block as two causal halves and the full square below the first."""
    if not block.causal or block.reach is not None or block.q_end - block.q_start <= TILE:
        yield block
        return
    half = (block.q_end - block.q_start) // 2
    q_middle, k_middle = block.q_start + half, block.k_start + half
    yield from _halve(block._replace(q_end=q_middle, k_end=k_middle))
    yield from _halve(block._replace(q_start=q_middle, k_start=k_middle))
    yield Block(q_middle, block.q_end, block.k_start, k_middle, causal=False)


def _levels(blocks: Sequence[Block]) -> list[list[Block]]:
    """Blocks in as few groups as their nesting allows, each with disjoint queries in rising order."""
    levels: list[list[Block]] = []
    for block in sorted(blocks, key=lambda b: (b.q_start, -b.q_end)):
        for level in levels:
            if level[-1].q_end <= block.q_start:
                level.append(block)
                break
        else:
            levels.append([block])
    return levels


def _level(blocks: Sequence[Block], device: torch.device) -> Level:
    queries, keys = [(b.q_start, b.q_end) for b in blocks], [(b.k_start, b.k_end) for b in blocks]
    return Level(
        _tokens(queries, device), _tokens(keys, device), _starts(queries, device), _starts(keys, device),
        max(b - a for a, b in queries), max(b - a for a, b in keys),
    )  # fmt: skip


def _tokens(ranges: Sequence[tuple[int, int]], device: torch.device) -> slice | Tensor:
    """The tokens of ranges one after another: a slice where they are neighbours."""
    if all(a[1] == b[0] for a, b in pairwise(ranges)):
        return slice(ranges[0][0], ranges[-1][1])
    return torch.cat([torch.arange(*one) for one in ranges]).to(device)


def _starts(ranges: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    lengths = [0, *(b - a for a, b in ranges)]
    return torch.tensor(np.cumsum(lengths), dtype=torch.int32, device=device)
