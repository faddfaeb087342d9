"""Mathematical equality, decided by math-verify in a process of its own.

math-verify bounds its time with SIGALRM, which works in the main thread only and would take the alarm from the trainer;
what a policy writes can also make SymPy compute for ever. So it runs in child processes that are killed when late.
Integers, the common case, are compared here without it.
"""

from __future__ import annotations

import re
from typing import Any

from seqtune.rewards.answers import marked_answer, plain_integer, plain_maths, references
from seqtune.sandbox.child import Child
from seqtune.sandbox.pool import Pool


class MathEquiv:
    """`reward(prompts, completions, answer=[...])`: 1.0 where the completion's answer equals the reference, else 0.0.

    The completion's answer follows its last `####`, or stands in its last `\\boxed{…}` or `<answer>…</answer>` (what
    comes last counts), or is what math-verify extracts: a formula or number after "final answer is" or "answer", else
    the last one in the text.
    None where the reference is missing or is no mathematics. A comparison that takes too long counts as wrong.

    Args:
        timeout: Seconds a comparison may take.
        workers: Processes that compare, each an answer at a time.
    """

    def __init__(self, timeout: float, workers: int) -> None:
        self._timeout = timeout
        self._pool = Pool(
            [
                Child(
                    "seqtune.rewards.math_worker",
                    purpose="the process that compares mathematical answers",
                    where="reward math_equiv",
                )
                for _ in range(workers)
            ]
        )
        self._mathematics: dict[str, bool] = {}  # by reference; they come again every epoch

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[object]) -> list[float | None]:
        wanted = [None if answer is None else _reading(answer)[0] for answer in references(columns, "math_equiv")]
        self._read({one for one in wanted if one is not None and plain_integer(one) is None})
        found = [self._judged(text, one) for text, one in zip(completions, wanted, strict=True)]
        told = iter(self._pool.ask([one for one in found if isinstance(one, dict)], self._timeout))
        return [float(next(told) is True) if isinstance(one, dict) else one for one in found]

    def _read(self, texts: set[str]) -> None:
        """Find out which references are mathematics; of one that takes too long that stays unknown."""
        new = sorted(texts - self._mathematics.keys())
        told = self._pool.ask([{"reference": text} for text in new], self._timeout)
        self._mathematics |= {text: one for text, one in zip(new, told, strict=True) if one is not None}

    def _judged(self, completion: str, wanted: str | None) -> float | dict[str, Any] | None:
        """The score, or the question whose answer it is."""
        if wanted is None:
            return None
        given, marked = _reading(completion)
        integer = plain_integer(wanted)
        if integer is not None and (candidate := plain_integer(given)) is not None:
            return float(candidate == integer)
        if integer is None and not self._mathematics.get(wanted):
            return None
        if not given:
            return 0.0
        if marked and _spoken(given) == _spoken(wanted):
            return 1.0
        if (mine := _INDEXED.fullmatch(given)) and (its := _INDEXED.fullmatch(wanted)) and mine[1] != its[1]:
            return 0.0
        return {"reference": wanted, "answer": given, "marked": marked}


def _reading(text: str) -> tuple[str, bool]:
    """The part of a text that holds the answer, and whether a marker pointed at it."""
    marked = marked_answer(text)
    return plain_maths(text if marked is None else marked).strip(), marked is not None


_INDEXED = re.compile(r"[0-9A-Za-z]+_\{?([0-9]+)\}?")
"""A number with its base, which math-verify does not read."""
_WORDS = re.compile(r"\\(?:text|mathrm|mbox)\{([^{}]*)\}")


def _spoken(text: str) -> str:
    """`\\text{Monday}` and `Monday` as the same."""
    return "".join(_WORDS.sub(r"\1", text).split())
