"""Word and arithmetic problems from parameterised templates, with worked steps and exact integer answers.

A prompt ends with a line break; its completion is the steps, one a line, then `#### answer` as in GSM8K:

    Ann has 12 pens and buys 7 more. How many pens?
    12 + 7 = 19
    #### 19
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, NamedTuple

from seqtune.errors import SeqtuneError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable

    from seqtune.config.axes import TemplateMathSpec

_NAMES = ("Ann", "Ben", "Cem", "Dia", "Eli", "Fay", "Gus", "Ida")
_THINGS = ("pens", "cups", "figs", "toys", "nuts", "keys", "caps", "eggs")
_PATIENCE = 10_000
"""Draws in a row without a new problem after which the templates count as exhausted."""


class Problem(NamedTuple):
    """A question, the steps that solve it (one equation a line) and the answer."""

    question: str
    steps: tuple[str, ...]
    answer: int


def _add(random: Random, most: int) -> Problem:
    a, b = random.randint(1, most), random.randint(1, most)
    return Problem(f"{a} + {b} = ?", (f"{a} + {b} = {a + b}",), a + b)


def _subtract(random: Random, most: int) -> Problem:
    a = random.randint(1, most)
    b = random.randint(1, a)
    return Problem(f"{a} - {b} = ?", (f"{a} - {b} = {a - b}",), a - b)


def _multiply(random: Random, most: int) -> Problem:
    a, b = random.randint(1, most), random.randint(1, most)
    return Problem(f"{a} * {b} = ?", (f"{a} * {b} = {a * b}",), a * b)


def _add_subtract(random: Random, most: int) -> Problem:
    a, b = random.randint(1, most), random.randint(1, most)
    c = random.randint(1, min(most, a + b))
    return Problem(f"{a} + {b} - {c} = ?", (f"{a} + {b} = {a + b}", f"{a + b} - {c} = {a + b - c}"), a + b - c)


def _buy(random: Random, most: int) -> Problem:
    name, things = random.choice(_NAMES), random.choice(_THINGS)
    a, b = random.randint(1, most), random.randint(1, most)
    question = f"{name} has {a} {things} and buys {b} more. How many {things}?"
    return Problem(question, (f"{a} + {b} = {a + b}",), a + b)


def _give(random: Random, most: int) -> Problem:
    name, things = random.choice(_NAMES), random.choice(_THINGS)
    a = random.randint(1, most)
    b = random.randint(1, a)
    question = f"{name} has {a} {things} and gives away {b}. How many {things} are left?"
    return Problem(question, (f"{a} - {b} = {a - b}",), a - b)


def _boxes(random: Random, most: int) -> Problem:
    name, things = random.choice(_NAMES), random.choice(_THINGS)
    a, b = random.randint(1, most), random.randint(1, most)
    question = f"{name} has {a} boxes of {b} {things}. How many {things}?"
    return Problem(question, (f"{a} * {b} = {a * b}",), a * b)


def _share(random: Random, most: int) -> Problem:
    name, things = random.choice(_NAMES), random.choice(_THINGS)
    friends = random.randint(1, most)
    each = random.randint(1, most // friends)
    question = f"{name} shares {friends * each} {things} among {friends}. How many {things} each?"
    return Problem(question, (f"{friends * each} / {friends} = {each}",), each)


def _buy_give(random: Random, most: int) -> Problem:
    name, things = random.choice(_NAMES), random.choice(_THINGS)
    a, b = random.randint(1, most), random.randint(1, most)
    c = random.randint(1, min(most, a + b))
    question = f"{name} has {a} {things}, buys {b} and gives away {c}. How many {things} are left?"
    return Problem(question, (f"{a} + {b} = {a + b}", f"{a + b} - {c} = {a + b - c}"), a + b - c)


def _boxes_give(random: Random, most: int) -> Problem:
    name, things = random.choice(_NAMES), random.choice(_THINGS)
    a, b = random.randint(1, most), random.randint(1, most)
    c = random.randint(1, min(most, a * b))
    question = f"{name} has {a} boxes of {b} {things} and gives away {c}. How many {things} are left?"
    return Problem(question, (f"{a} * {b} = {a * b}", f"{a * b} - {c} = {a * b - c}"), a * b - c)


TEMPLATES: dict[str, Callable[[Random, int], Problem]] = {
    "add": _add,
    "subtract": _subtract,
    "multiply": _multiply,
    "add_subtract": _add_subtract,
    "buy": _buy,
    "give": _give,
    "boxes": _boxes,
    "share": _share,
    "buy_give": _buy_give,
    "boxes_give": _boxes_give,
}
"""Name -> function `(random, max_number) -> Problem`; no number of a question is above `max_number`."""


def problems(spec: TemplateMathSpec) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """`(train, heldout)` rows `{prompt, completion, answer}`; no prompt occurs twice, in either or across them.

    With `format: preference` rows are `{prompt, chosen, rejected}`: the worked answer, and the same steps with a wrong
    last result.

    The held-out problems depend on the seed, the templates and `eval_size` but not on how many are trained on.

    Raises:
        SeqtuneError: An unknown template, or templates with fewer distinct problems than asked for.
    """
    for i, name in enumerate(spec.templates):
        if name not in TEMPLATES:
            raise SeqtuneError(f"unknown template '{name}'", f"data.templates[{i}]", did_you_mean(name, TEMPLATES))
    names = spec.templates or tuple(TEMPLATES)
    asked = spec.eval_size + spec.size
    random = Random(spec.seed)
    rows: dict[str, dict[str, str]] = {}
    misses = 0
    while len(rows) < asked:
        problem = TEMPLATES[random.choice(names)](random, spec.max_number)
        row = _row(problem)
        misses = misses + 1 if row["prompt"] in rows else 0
        rows.setdefault(row["prompt"], row)
        if misses == _PATIENCE:
            raise SeqtuneError(
                f"templates {', '.join(names)} give {len(rows)} distinct problems up to {spec.max_number}; "
                f"data.size + data.eval_size asks for {asked}",
                "data.size",
                "lower data.size, raise data.max_number, or add names to data.templates",
            )
    drawn = list(rows.values())
    if spec.format == "preference":
        drawn = [_pair(row, Random(f"{spec.seed} {row['prompt']}")) for row in drawn]
    return drawn[spec.eval_size :], drawn[: spec.eval_size]


def _row(problem: Problem) -> dict[str, str]:
    completion = "\n".join((*problem.steps, f"#### {problem.answer}"))
    return {"prompt": f"{problem.question}\n", "completion": completion, "answer": str(problem.answer)}


def _pair(row: dict[str, str], random: Random) -> dict[str, str]:
    answer = int(row["answer"])
    wrong = random.choice([n for n in range(max(0, answer - 9), answer + 10) if n != answer])
    head = row["completion"].removesuffix(f"{answer}\n#### {answer}")
    return {"prompt": row["prompt"], "chosen": row["completion"], "rejected": f"{head}{wrong}\n#### {wrong}"}
