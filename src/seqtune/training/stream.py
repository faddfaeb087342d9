"""Packed rows out of a stream of documents, with a state that goes on exactly where it was taken."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from seqtune.data.stream import Address
from seqtune.errors import SeqtuneError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from seqtune.config.spec import PackingSpec
    from seqtune.data.stream import Document, Mixture

VERSION = 1
"""Of the state; another is refused."""


class OnlinePacker(Protocol):
    """Packs what arrives, without seeing what follows."""

    def push(self, item: int, length: int) -> Sequence[Sequence[int]]:
        """Take an item; returns the rows that this closed, each a list of items."""

    def flush(self) -> Sequence[Sequence[int]]:
        """Close every open row."""

    def state_dict(self) -> dict[str, Any]:
        """The open rows, as plain JSON."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""


class _Piece(NamedTuple):
    """A document, or a part of one that is longer than a row."""

    address: Address
    start: int
    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]


class PackedStream:
    """Rows of `input_ids`, `loss_mask` and `seq_lengths`, as `seqtune.packing.pack.pack` writes them, without an end or
    until the mixture ends.

    Args:
        documents: What is packed.
        packer: Packs it.
        spec: Capacity, attention, and what becomes of a document longer than a row.
    """

    def __init__(self, documents: Mixture, packer: OnlinePacker, spec: PackingSpec) -> None:
        self.documents, self.packer, self.spec = documents, packer, spec
        self.counts: Counter[str] = Counter()
        """`documents`, `rows` and `tokens` given so far; `dropped: REASON`, `truncated` and `split` documents."""
        self._pieces: dict[int, _Piece] = {}
        self._pushed = 0
        self._closed: list[list[int]] = []
        self._flushed = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        while not self._closed and not self._flushed:
            document = next(self.documents, None)
            if document is None:
                self._flushed = True
                self._closed += [list(row) for row in self.packer.flush()]
                break
            self.counts["documents"] += 1
            for piece in self._cut(document):
                if piece.mask[1:].any():
                    self._pieces[self._pushed] = piece
                    self._closed += [list(row) for row in self.packer.push(self._pushed, len(piece.ids))]
                    self._pushed += 1
                else:
                    self.counts["dropped: no trainable token"] += 1
        if not self._closed:
            raise StopIteration
        pieces = [self._pieces.pop(item) for item in self._closed.pop(0)]
        self.counts["rows"] += 1
        self.counts["tokens"] += sum(len(piece.ids) for piece in pieces)
        return self._row(pieces)

    def state(self) -> dict[str, Any]:
        """Where the stream stands, as plain JSON: cursors, served counts, open rows; no token."""
        return {
            "version": VERSION,
            "mixture": self.documents.state(),
            "packer": self.packer.state_dict(),
            "pieces": [
                [item, *piece.address, piece.start, len(piece.ids)] for item, piece in sorted(self._pieces.items())
            ],
            "closed": [list(row) for row in self._closed],
            "pushed": self._pushed,
            "flushed": self._flushed,
            "counts": dict(self.counts),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave: the documents of open rows are read again.

        Raises:
            SeqtuneError: The state is of another version, or the sources changed.
        """
        if state.get("version") != VERSION:
            raise SeqtuneError(
                "the checkpoint's data stream was written by another version of seqtune",
                hint="resume it with that version, or start the run again",
            )
        self.documents.restore(state["mixture"])
        self.packer.load_state_dict(state["packer"])
        places = {item: (Address(*place), start, size) for item, *place, start, size in state["pieces"]}
        again = self.documents.read_again([address for address, _, _ in places.values()])
        self._pieces = {
            item: _part(again[address], start, start + size) for item, (address, start, size) in places.items()
        }
        self._closed = [list(row) for row in state["closed"]]
        self._pushed, self._flushed, self.counts = state["pushed"], state["flushed"], Counter(state["counts"])

    def _cut(self, document: Document) -> list[_Piece]:
        capacity, size = self.spec.capacity, len(document.ids)
        if size <= capacity:
            return [_part(document, 0, size)]
        match self.spec.on_overflow:
            case "error":
                source = self.documents.sources[document.address.source]
                raise SeqtuneError(
                    f"a document has {size} tokens, more than a row of {capacity}",
                    f"{source.paths[document.address.file]}:{document.address.number + 1}",
                    f"packing.capacity={size}, or packing.on_overflow=truncate, split or drop",
                )
            case "drop":
                self.counts["dropped: too long"] += 1
                return []
            case "truncate":
                self.counts["truncated"] += 1
                return [_part(document, 0, capacity)]
            case "truncate_left":
                self.counts["truncated"] += 1
                return [_part(document, size - capacity, size)]
            case "split":
                self.counts["split"] += 1
                return [_part(document, start, min(start + capacity, size)) for start in range(0, size, capacity)]

    def _row(self, pieces: list[_Piece]) -> dict[str, Any]:
        ids = np.concatenate([piece.ids for piece in pieces])
        mask = np.concatenate([piece.mask for piece in pieces]).astype(np.uint8)
        sizes = [len(piece.ids) for piece in pieces]
        mask[np.cumsum(sizes) - sizes] = 0  # nothing of its own precedes the first token of a document
        whole = [len(ids)] if self.spec.attention == "causal" else sizes
        return {"input_ids": ids, "loss_mask": mask, "seq_lengths": whole}


def _part(document: Document, start: int, stop: int) -> _Piece:
    return _Piece(document.address, start, document.ids[start:stop], document.mask[start:stop])
