"""A reward written by the user, named `module:function` or `file.py:function`."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

from seqtune.errors import SeqtuneError, did_you_mean
from seqtune.rewards.score import place
from seqtune.sandbox.child import Child
from seqtune.sandbox.functions import load_function
from seqtune.sandbox.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Callable


def load(name: str, *, timeout: float | None = None) -> Callable[..., Any]:
    """The function a name points at, called with the columns its signature takes.

    Args:
        name: `package.module:function` or `path/to/file.py:function`.
        timeout: Seconds a batch may take; only a function that is `async def` can be interrupted.

    Raises:
        SeqtuneError: The module, the file or the function does not exist, importing it fails, it is not callable, or it
            wants a parameter that is neither `prompts`, `completions` nor a column (at the call).
    """
    function = load_function(name, "reward.name")
    reward = _taking_columns(function, name)
    if timeout is None:
        return reward
    if not inspect.iscoroutinefunction(function):
        raise SeqtuneError(
            f"'{name.rpartition(':')[2]}' is not `async def`, so nothing can interrupt it in this process",
            where="reward.timeout",
            hint="reward.workers=4 runs it in processes of its own, which can be stopped",
        )
    return _in_time(reward, name, timeout)


def _in_time(reward: Callable[..., Any], name: str, timeout: float) -> Callable[..., Any]:
    async def limited(prompts: list[str], completions: list[str], **columns: list[Any]) -> Any:
        try:
            async with asyncio.timeout(timeout) as limit:
                return await reward(prompts, completions, **columns)
        except TimeoutError as error:
            if not limit.expired():  # the reward's own
                raise
            raise SeqtuneError(
                f"reward '{name}' took more than {timeout:g} s for {len(completions)} completions",
                where="reward.timeout",
                hint="raise it; or reward.workers=4, with which it counts for a row and a late row gets no score",
            ) from error

    limited.__name__ = name
    return limited


class Pooled:
    """A user's reward in processes of its own, a row at a time: `reward(prompts, completions, **columns)`.

    A row that takes longer than `timeout`, or ends its process, gets None; its process is replaced.

    Args:
        name: As `load`.
        workers: Processes.
        timeout: Seconds a row may take; None waits for ever.
    """

    def __init__(self, name: str, *, workers: int, timeout: float | None) -> None:
        self.__name__, self._timeout = name, timeout
        self._pool = Pool(
            [
                Child("seqtune.rewards.custom_worker", name, purpose=f"reward '{name}'", where="reward.name")
                for _ in range(workers)
            ]
        )

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> list[Any]:
        questions = [
            {"prompt": prompt, "completion": text, "columns": {key: values[row] for key, values in columns.items()}}
            for row, (prompt, text) in enumerate(zip(prompts, completions, strict=True))
        ]
        try:
            found = self._pool.ask(questions, self._timeout if self._timeout is not None else float("inf"))
        except TypeError as error:  # json.dumps
            raise SeqtuneError(
                f"the columns cannot be sent to the processes of reward '{self.__name__}': {error}",
                where="reward.workers",
                hint="reward.workers=0 runs it in this process",
            ) from error
        for row, one in enumerate(found):
            if one is not None and "problem" in one:
                raise SeqtuneError(one["problem"], where=place(row, prompts), hint=one["hint"])
        return [None if one is None else one["score"] for one in found]


def _taking_columns(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """`function`, given only what its signature takes out of `prompts`, `completions` and the columns."""
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    named = {
        parameter.name: parameter.default is parameter.empty
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }

    def reward(prompts: list[str], completions: list[str], **columns: list[Any]) -> Any:
        given = {"prompts": prompts, "completions": completions, **columns}
        for parameter, required in named.items():
            if required and parameter not in given:
                raise SeqtuneError(
                    f"reward '{name}' wants '{parameter}', which is no column of the data",
                    where=f"reward.name={name}",
                    hint=did_you_mean(parameter, given),
                )
        return function(**(given if takes_all else {key: value for key, value in given.items() if key in named}))

    reward.__name__ = name  # what messages call it
    return reward
