"""Segments of a completion by its text. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


OUTSIDE = -1
"""Segment of a token that belongs to none."""


def lines(pieces: Sequence[str]) -> list[int]:
    """Number of newlines before each token: a newline belongs to the line it closes.

    A token without text, such as that which ends the sequence, belongs to the line of the token before it: after a last
    newline it begins no line of its own.

    Args:
        pieces: Text of each token, in order.
    """
    found: list[int] = []
    number = 0
    for piece in pieces:
        found.append(number if piece or not found else found[-1])
        number += piece.count("\n")
    return found


def plan_and_answer(pieces: Sequence[str], marker: str) -> list[int]:
    """0 for the plan, 1 for the answer, -1 for the marker between them; without the marker all is answer.

    A token that straddles an edge belongs to the span that holds its last character.

    Args:
        pieces: Text of each token, in order.
        marker: What ends the plan; its first occurrence counts.
    """
    text = "".join(pieces)
    start = text.find(marker)
    if start < 0:
        return [1] * len(pieces)
    end = start + len(marker)
    found, place = [], 0
    for piece in pieces:
        place += len(piece)
        last = place - 1
        found.append(0 if last < start else OUTSIDE if last < end else 1)
    return found
