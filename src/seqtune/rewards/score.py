"""Calling a reward and checking what it gives back, row by row."""

from __future__ import annotations

import asyncio
import inspect
import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, overload

from seqtune.errors import SeqtuneError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

Score = float | list[float] | None
"""What a row may get: a number; numbers, one for each rank, segment or token; None if it is not scored."""

SHOWN = 80
"""Characters of a prompt quoted in a message."""
LONGEST = 300
"""Characters of what a reward returned or raised."""


@overload
def score(
    reward: Callable[..., Any],
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    *,
    name: str = "",
) -> list[float | None]: ...
@overload
def score(
    reward: Callable[..., Any],
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    *,
    name: str = "",
    vectors: Literal[True],
) -> list[Score]: ...
def score(
    reward: Callable[..., Any],
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    *,
    name: str = "",
    vectors: bool = False,
) -> Any:
    """One finite number a row, or None for a row the reward does not score.

    Args:
        reward: `reward(prompts, completions, **columns)`, what a reward spec builds; it may be `async def`.
        prompts: A prompt a row.
        completions: Its completion.
        columns: Further columns of the data, one value a row each, `answer` among them.
        name: What messages call the reward; empty takes the name of the function.
        vectors: Whether the caller has use for several numbers a row, one for each rank, segment or token; evaluation,
            combined rewards and objectives that spread one number over a completion have not.

    Raises:
        SeqtuneError: The reward raises, returns another number of values than there are rows, or something that is
            neither a finite number nor None (nor, with `vectors`, a list of at least one finite number); names the
            reward, the row and the beginning of its prompt.
    """
    title = name or getattr(reward, "__name__", type(reward).__name__)
    given = {key: list(values) for key, values in columns.items()}
    try:
        values = settled(reward(list(prompts), list(completions), **given))
    except SeqtuneError:
        raise
    except _RAISED as error:  # a user's code may raise anything; it is told with the row
        row = _culprit(reward, prompts, completions, given)
        found = "the batch as a whole" if row is None else place(row, prompts)
        raise SeqtuneError(
            f"reward '{title}' raised {type(error).__name__}: {_text(error)}",
            where=found,
            hint="a reward returns None for what it cannot score",
        ) from error
    if hasattr(values, "tolist"):  # arrays and tensors
        values = values.tolist()
    if not isinstance(values, list | tuple) or len(values) != len(completions):
        got = f"{len(values)} values" if isinstance(values, list | tuple) else type(values).__name__
        first = place(min(len(values), len(completions) - 1), prompts) if isinstance(values, list | tuple) else ""
        raise SeqtuneError(
            f"reward '{title}' returned {got} for {len(completions)} completions",
            where=first and f"from {first}",
            hint="return a list with one number or None per completion",
        )
    return [_score(value, title, row, prompts, vectors) for row, value in enumerate(values)]


_RAISED = (Exception, SystemExit, asyncio.CancelledError)
"""What a reward's code may raise: all but the user's Ctrl-C. `sys.exit()` in it must not look like the end of a run."""


def _text(value: Any, form: Callable[[Any], str] = str) -> str:
    """How a user's object shows itself, cut to a line's length; it may fail to."""
    try:
        shown = form(value)
    except Exception:  # the class is the user's: its __str__ may raise anything
        return "(cannot be shown)"
    return shown if len(shown) <= LONGEST else shown[:LONGEST] + "…"


def settled(value: Any) -> Any:
    """What a call gave, awaited if it is a coroutine; a loop of its own runs it, also where one is running already."""
    if not inspect.isawaitable(value):
        return value

    async def wait(one: Awaitable[Any]) -> Any:
        return await one

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait(value))
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, wait(value)).result()


def _score(value: Any, title: str, row: int, prompts: Sequence[str], vectors: bool) -> Score:
    if hasattr(value, "tolist") and getattr(value, "ndim", 0) == 1 and len(value) != 1:
        value = value.tolist()
    if not isinstance(value, list | tuple):
        return _number(value, title, row, prompts)
    if not vectors:
        raise SeqtuneError(
            f"reward '{title}' returned {_text(value, repr)}, which is not a number",
            where=place(row, prompts),
            hint="a completion gets one number here; several (a rank, segment or token each) have no place",
        )
    numbers = [_number(one, title, row, prompts) for one in value]
    if not numbers or None in numbers:
        raise SeqtuneError(
            f"reward '{title}' returned {_text(value, repr)}, in which a number is missing",
            where=place(row, prompts),
            hint="return at least one number and no None in a list; None for the whole row if it cannot be scored",
        )
    return numbers  # type: ignore[return-value]  # no None among them


def _number(value: Any, title: str, row: int, prompts: Sequence[str]) -> float | None:
    if value is None:
        return None
    if not isinstance(value, Real) and hasattr(value, "item"):
        with suppress(TypeError, ValueError, RuntimeError):  # it holds several, or is no tensor
            value = value.item()
    try:
        found = float(value) if isinstance(value, Real) else None
    except OverflowError:  # an integer or a fraction of more digits than any float
        found = math.inf
    if found is None:
        problem = f"reward '{title}' returned {_text(value, repr)}, which is not a number"
    elif not math.isfinite(found):
        problem = f"reward '{title}' returned {found}"
    else:
        return found
    raise SeqtuneError(
        problem, where=place(row, prompts), hint="return a finite number, or None for what cannot be scored"
    )


def _culprit(
    reward: Callable[..., Any], prompts: Sequence[str], completions: Sequence[str], columns: dict[str, list[Any]]
) -> int | None:
    """The first row on which the reward raises by itself; None if only the batch as a whole makes it raise."""
    for row in range(len(completions)):
        try:
            own = {key: values[row : row + 1] for key, values in columns.items()}
            settled(reward([prompts[row]], [completions[row]], **own))
        except _RAISED:  # the caller reports the error that the whole batch raised
            return row
    return None


def place(row: int, prompts: Sequence[str]) -> str:
    """How messages name a row: its number and the beginning of its prompt."""
    prompt = prompts[row]
    beginning = prompt if len(prompt) <= SHOWN else prompt[:SHOWN] + "…"
    return f"row {row}, prompt {beginning!r}"
