"""Mathematical equality, decided by math-verify in a process of its own.

math-verify bounds its time with SIGALRM, which works in the main thread only and would take the alarm from the trainer;
what a policy writes can also make SymPy compute for ever. So it runs in a child process that is killed when it is late.
Integers, the common case, are compared here without it.
"""

from __future__ import annotations

import re
from typing import Any

from seqtune.rewards.answers import marked_answer, plain_integer, plain_maths, references
from seqtune.sandbox.child import Child


class MathEquiv:
    """`reward(prompts, completions, answer=[...])`: 1.0 where the completion's answer equals the reference, else 0.0.

    The completion's answer follows its last `####`, or stands in its last `\\boxed{…}` or `<answer>…</answer>` (what
    comes last counts), or is what math-verify extracts: a formula or number after "final answer is" or "answer", else
    the last one in the text.
    None where the reference is missing or is no mathematics. A comparison that takes too long counts as wrong.

    Args:
        timeout: Seconds a comparison may take.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._child = Child(
            "seqtune.rewards.math_worker",
            purpose="the process that compares mathematical answers",
            where="reward math_equiv",
        )
        self._mathematics: dict[str, bool] = {}  # by reference; they come again every epoch

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[object]) -> list[float | None]:
        answers = references(columns, "math_equiv")
        return [self._score(completion, answer) for completion, answer in zip(completions, answers, strict=True)]

    def _score(self, completion: str, reference: str | None) -> float | None:
        if reference is None:
            return None
        wanted, _ = _reading(reference)
        given, marked = _reading(completion)
        integer = plain_integer(wanted)
        if integer is not None and (candidate := plain_integer(given)) is not None:
            return float(candidate == integer)
        if integer is None and not self._readable(wanted):
            return None
        if not given:
            return 0.0
        if marked and _spoken(given) == _spoken(wanted):
            return 1.0
        return float(self._ask({"reference": wanted, "answer": given, "marked": marked}) is True)

    def _readable(self, reference: str) -> bool:
        if reference not in self._mathematics:
            self._mathematics[reference] = self._ask({"reference": reference}) is True
        return self._mathematics[reference]

    def _ask(self, question: dict[str, Any]) -> Any:
        return self._child.ask(question, self._timeout)


def _reading(text: str) -> tuple[str, bool]:
    """The part of a text that holds the answer, and whether a marker pointed at it."""
    marked = marked_answer(text)
    return plain_maths(text if marked is None else marked).strip(), marked is not None


_WORDS = re.compile(r"\\(?:text|mathrm|mbox)\{([^{}]*)\}")


def _spoken(text: str) -> str:
    """`\\text{Monday}` and `Monday` as the same."""
    return "".join(_WORDS.sub(r"\1", text).split())
