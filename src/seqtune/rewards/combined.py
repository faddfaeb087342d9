"""Several rewards as one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from seqtune.rewards.score import score

if TYPE_CHECKING:
    from collections.abc import Callable

Values = list[float | None]


def combine(parts: dict[str, Values], *, weights: dict[str, float], gates: tuple[str, ...]) -> Values:
    """R = Π_{g ∈ gates} r_g · Σ_{k ∉ gates} w_k r_k, row by row; an empty sum of no parts is 1.

    Without gates this is the weighted sum, with every part a gate the product.

    Args:
        parts: Scores by the name of the part, a row each.
        weights: w by name; 1 where there is none.
        gates: Names of the parts that multiply.

    Returns:
        None for a row that a gate does not score, or none of the parts that are summed; parts of a sum that do not
        score a row are left out of it.
    """
    found: Values = []
    for row in range(len(next(iter(parts.values())))):
        summed = [(name, values[row]) for name, values in parts.items() if name not in gates]
        scored = [weights.get(name, 1.0) * value for name, value in summed if value is not None]
        total = sum(scored) if summed else 1.0
        missing = bool(summed) and not scored
        for gate in gates:
            value = parts[gate][row]
            if value is None:
                missing = True
            else:
                total *= value
        found.append(None if missing else float(total))
    return found


class Combined:
    """`reward(prompts, completions, **columns)` that asks every part and combines what they say.

    Args:
        parts: Rewards by name.
        weights: As `combine`.
        gates: As `combine`.
    """

    def __init__(
        self, parts: dict[str, Callable[..., Any]], *, weights: dict[str, float], gates: tuple[str, ...]
    ) -> None:
        self._parts, self._weights, self._gates = parts, weights, gates

    def parts(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> dict[str, Values]:
        """The scores of every part by its name."""
        return {name: score(part, prompts, completions, columns, name=name) for name, part in self._parts.items()}

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> Values:
        return self.combined(self.parts(prompts, completions, **columns))

    def combined(self, parts: dict[str, Values]) -> Values:
        """`combine` of what `parts` gave."""
        return combine(parts, weights=self._weights, gates=self._gates)

    @property
    def column_weights(self) -> tuple[float, ...]:
        """w of each column of `columns`."""
        return tuple(self._weights.get(name, 1.0) for name in self._summed) or (1.0,)

    @property
    def _summed(self) -> list[str]:
        return [name for name in self._parts if name not in self._gates]

    def columns(self, parts: dict[str, Values]) -> list[list[float]]:
        """The reward before its sum, `[B, F]`: each part that is summed times the gates, NaN where it has no score.

        Their weighted sum is the reward. If all parts are gates there is one column, their product.
        """
        apart = [
            combine(
                {name: values for name, values in parts.items() if name == part or name in self._gates},
                weights={},
                gates=self._gates,
            )
            for part in self._summed or self._gates[:1]
        ]
        return [[math.nan if value is None else value for value in row] for row in zip(*apart, strict=True)]
