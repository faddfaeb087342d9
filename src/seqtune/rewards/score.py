"""Calling a reward and checking what it gives back, row by row."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, Any

from seqtune.errors import SeqtuneError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SHOWN = 80
"""Characters of a prompt quoted in a message."""


def score(
    reward: Callable[..., Any],
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    *,
    name: str = "",
) -> list[float | None]:
    """One finite number a row, or None for a row the reward does not score.

    Args:
        reward: `reward(prompts, completions, **columns)`, what a reward spec builds.
        prompts: A prompt a row.
        completions: Its completion.
        columns: Further columns of the data, one value a row each, `answer` among them.
        name: What messages call the reward; empty takes the name of the function.

    Raises:
        SeqtuneError: The reward raises, returns another number of values than there are rows, or something that is
            neither a finite number nor None; names the reward, the row and the beginning of its prompt.
    """
    title = name or getattr(reward, "__name__", type(reward).__name__)
    given = {key: list(values) for key, values in columns.items()}
    try:
        values = reward(list(prompts), list(completions), **given)
    except SeqtuneError:
        raise
    except Exception as error:  # a user's code may raise anything; it is told with the row
        row = _culprit(reward, prompts, completions, given)
        place = "the batch as a whole" if row is None else _place(row, prompts)
        raise SeqtuneError(
            f"reward '{title}' raised {type(error).__name__}: {error}",
            where=place,
            hint="a reward returns None for what it cannot score",
        ) from error
    if hasattr(values, "tolist"):  # arrays and tensors
        values = values.tolist()
    if not isinstance(values, list | tuple) or len(values) != len(completions):
        got = f"{len(values)} values" if isinstance(values, list | tuple) else type(values).__name__
        first = _place(min(len(values), len(completions) - 1), prompts) if isinstance(values, list | tuple) else ""
        raise SeqtuneError(
            f"reward '{title}' returned {got} for {len(completions)} completions",
            where=first and f"from {first}",
            hint="return a list with one number or None per completion",
        )
    return [_number(value, title, row, prompts) for row, value in enumerate(values)]


def _number(value: Any, title: str, row: int, prompts: Sequence[str]) -> float | None:
    if value is None:
        return None
    if not isinstance(value, Real) and hasattr(value, "item"):  # a tensor holding one number
        value = value.item()
    if not isinstance(value, Real):
        problem = f"reward '{title}' returned {value!r}, which is not a number"
    elif not math.isfinite(value):
        problem = f"reward '{title}' returned {float(value)}"
    else:
        return float(value)
    raise SeqtuneError(
        problem, where=_place(row, prompts), hint="return a finite number, or None for what cannot be scored"
    )


def _culprit(
    reward: Callable[..., Any], prompts: Sequence[str], completions: Sequence[str], columns: dict[str, list[Any]]
) -> int | None:
    """The first row on which the reward raises by itself; None if only the batch as a whole makes it raise."""
    for row in range(len(completions)):
        try:
            reward(
                [prompts[row]], [completions[row]], **{key: values[row : row + 1] for key, values in columns.items()}
            )
        except Exception:  # the caller reports the error that the whole batch raised
            return row
    return None


def _place(row: int, prompts: Sequence[str]) -> str:
    prompt = prompts[row]
    beginning = prompt if len(prompt) <= SHOWN else prompt[:SHOWN] + "…"
    return f"row {row}, prompt {beginning!r}"
