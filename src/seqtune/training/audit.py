"""Which tokens of a stage are trained, and what a check of it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seqtune.training.forest import Scored


@dataclass(frozen=True)
class Proof:
    """One check and what it found."""

    name: str
    passed: bool
    found: float
    """The largest difference, or the count of faults."""
    limit: float
    """What it may be."""
    detail: str
    hint: str = ""
    """What to change when it failed."""


def mask_audit(rows: list[list[Scored]], eos_token_id: int, *, whole: bool = True) -> list[Proof]:
    """Which tokens of some rows are trained.

    Args:
        rows: The sequences of each row.
        eos_token_id: What ends a turn.
        whole: Whether the sequences are whole documents, so that some must train their end.
    """
    sequences = [sequence for row in rows for sequence in row]
    trained = sum(int(sequence.mask[1:].sum()) for sequence in sequences)
    total = sum(len(sequence.ids) for sequence in sequences)
    empty = sum(not any(sequence.mask[1:].any() for sequence in row) for row in rows)
    ended = sum(int(((sequence.ids == eos_token_id) & sequence.mask).any()) for sequence in sequences)
    return [
        Proof(
            "mask audit",
            empty == 0 and (ended > 0 or not whole),
            float(empty + (whole and ended == 0)),
            0.0,
            f"{trained} of {total} tokens in {len(rows)} rows are trained, {empty} rows train none; "
            f"{ended} of {len(sequences)} sequences train the token that ends a turn",
            "check the columns and the chat template: seqtune pack --inspect shows which tokens are trained",
        )
    ]
