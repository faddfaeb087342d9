"""The one error a user can mend: what is wrong, where it was said, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Args:
        problem: What is wrong, one sentence without a trailing full stop.
        where: Who said it: a dotted path, a `file:line`, the command line; empty when it has no place.
        hint: What to do about it; empty when the problem says it all.
    """

    problem: str
    where: str = ""
    hint: str = ""

    def __str__(self) -> str:
        lines = [self.problem]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)


class SeqtuneError(Exception):
    """Raised for everything the user can mend; the command line prints it without a traceback and exits 2."""

    def __init__(self, problem: str, where: str = "", hint: str = "") -> None:
        self.problems: tuple[Problem, ...] = (Problem(problem, where, hint),)
        super().__init__(str(self.problems[0]))

    @classmethod
    def of(cls, problems: Iterable[Problem]) -> SeqtuneError:
        """One error that reports several problems together.

        Raises:
            ValueError: No problem was given.
        """
        found = tuple(problems)
        if not found:
            raise ValueError("an error needs at least one problem")
        error = cls(found[0].problem, found[0].where, found[0].hint)
        error.problems = found
        error.args = ("\n".join(str(problem) for problem in found),)
        return error


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for a mistyped word: the nearest known one, then all of them."""
    names = sorted(known)
    close = get_close_matches(word, names, n=1, cutoff=0.5)
    have = f"have: {', '.join(names)}" if names else "there are none"
    return f"did you mean '{close[0]}'? ({have})" if close else have
