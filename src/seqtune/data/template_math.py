"""Word and arithmetic problems from parameterised templates, with worked steps and exact integer answers.

A prompt ends with a line break; its completion is the steps, one a line, then `#### answer` as in GSM8K:

    Ann has 12 pens, buys 7, gives 4. How many?
    12 + 7 = 19
    19 - 4 = 15
    #### 15
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from zlib import crc32

from seqtune.errors import SeqtuneError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable

    from seqtune.config.axes import TemplateMathSpec

_NAMES = ("Ann", "Ben", "Cem", "Dia", "Eli", "Fay", "Gus", "Ida")
_THINGS = ("pens", "cups", "figs", "toys", "nuts", "keys", "caps", "eggs")
_PATIENCE = 10_000
"""Draws in a row without a new problem after which the templates count as exhausted."""


class Problem(NamedTuple):
    """A question, the steps that solve it (one equation a line) and the value before the first and after each step."""

    question: str
    steps: tuple[str, ...]
    values: tuple[int, ...]


def _add(random: Random, most: int) -> Problem:
    a, b = _numbers(random, most, 2)
    return _solved(f"{a} + {b} = ?", a, ("+", b))


def _subtract(random: Random, most: int) -> Problem:
    a = random.randint(1, most)
    b = random.randint(1, a)
    return _solved(f"{a} - {b} = ?", a, ("-", b))


def _multiply(random: Random, most: int) -> Problem:
    a, b = _numbers(random, most, 2)
    return _solved(f"{a} * {b} = ?", a, ("*", b))


def _add_subtract(random: Random, most: int) -> Problem:
    a, b = _numbers(random, most, 2)
    c = random.randint(1, min(most, a + b))
    return _solved(f"{a} + {b} - {c} = ?", a, ("+", b), ("-", c))


def _chain(random: Random, most: int) -> Problem:
    a, b, d = _numbers(random, most, 3)
    c = random.randint(1, min(most, a + b))
    return _solved(f"{a} + {b} - {c} + {d} = ?", a, ("+", b), ("-", c), ("+", d))


def _buy(random: Random, most: int) -> Problem:
    a, b = _numbers(random, most, 2)
    return _solved(f"{_owner(random, a)} and buys {b}. How many?", a, ("+", b))


def _give(random: Random, most: int) -> Problem:
    a = random.randint(1, most)
    b = random.randint(1, a)
    return _solved(f"{_owner(random, a)} and gives {b}. How many?", a, ("-", b))


def _buy_give(random: Random, most: int) -> Problem:
    a, b = _numbers(random, most, 2)
    c = random.randint(1, min(most, a + b))
    return _solved(f"{_owner(random, a)}, buys {b}, gives {c}. How many?", a, ("+", b), ("-", c))


def _buy_give_find(random: Random, most: int) -> Problem:
    a, b, d = _numbers(random, most, 3)
    c = random.randint(1, min(most, a + b))
    question = f"{_owner(random, a)}, buys {b}, gives {c}, finds {d}. How many?"
    return _solved(question, a, ("+", b), ("-", c), ("+", d))


def _boxes(random: Random, most: int) -> Problem:
    a, b = _numbers(random, most, 2)
    return _solved(f"{random.choice(_NAMES)} has {a} boxes of {b} {random.choice(_THINGS)}. How many?", a, ("*", b))


def _boxes_give(random: Random, most: int) -> Problem:
    a, b = _numbers(random, most, 2)
    c = random.randint(1, min(most, a * b))
    question = f"{random.choice(_NAMES)} has {a} boxes of {b} {random.choice(_THINGS)}, gives {c}. How many?"
    return _solved(question, a, ("*", b), ("-", c))


def _share(random: Random, most: int) -> Problem:
    friends = random.randint(1, most)
    all_of_them = friends * random.randint(1, most // friends)
    name, things = random.choice(_NAMES), random.choice(_THINGS)
    question = f"{name} shares {all_of_them} {things} among {friends}. How many each?"
    return _solved(question, all_of_them, ("/", friends))


def _numbers(random: Random, most: int, count: int) -> list[int]:
    return [random.randint(1, most) for _ in range(count)]


def _owner(random: Random, count: int) -> str:
    return f"{random.choice(_NAMES)} has {count} {random.choice(_THINGS)}"


def _solved(question: str, value: int, *operations: tuple[str, int]) -> Problem:
    """The problem whose answer comes from applying the operations to `value` one after the other."""
    steps, values = [], [value]
    for sign, operand in operations:
        result = {"+": value + operand, "-": value - operand, "*": value * operand, "/": value // operand}[sign]
        steps.append(f"{value} {sign} {operand} = {result}")
        values.append(value := result)
    return Problem(question, tuple(steps), tuple(values))


TEMPLATES: dict[str, Callable[[Random, int], Problem]] = {
    "add": _add,
    "subtract": _subtract,
    "multiply": _multiply,
    "add_subtract": _add_subtract,
    "chain": _chain,
    "buy": _buy,
    "give": _give,
    "buy_give": _buy_give,
    "buy_give_find": _buy_give_find,
    "boxes": _boxes,
    "boxes_give": _boxes_give,
    "share": _share,
}
"""Name -> function `(random, max_number) -> Problem`; no number of a question is above `max_number`."""


def problems(spec: TemplateMathSpec) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """`(train, heldout)` rows `{prompt, completion, answer}`; `{prompt, chosen, rejected}` for `format: preference`;
    `{prompt, completions, scores, answer}` for `format: groups`.

    No prompt occurs twice, in either or across them: a hash of the wording reserves a fifth of the problems of every
    template for the held-out set. Neither set depends on the size of the other. A chosen completion is the worked
    answer; the rejected one ends with a wrong result, the same way. A group holds both, the answer without its steps,
    scored 1 as well, and the steps without the last, with what they come to.

    Raises:
        SeqtuneError: An unknown template, or templates with fewer distinct problems than asked for.
    """
    for i, name in enumerate(spec.templates):
        if name not in TEMPLATES:
            raise SeqtuneError(f"unknown template '{name}'", f"data.templates[{i}]", did_you_mean(name, TEMPLATES))
    return _draw(spec, "size"), _draw(spec, "eval_size")


def _draw(spec: TemplateMathSpec, count: Literal["size", "eval_size"]) -> list[dict[str, Any]]:
    """As many rows as the field `count` of the spec says, for training or held out."""
    names, heldout, asked = spec.templates or tuple(TEMPLATES), count == "eval_size", getattr(spec, count)
    random = Random(f"{spec.seed} {count}")
    rows: dict[str, dict[str, str]] = {}
    solved: dict[str, Problem] = {}
    misses = 0
    while len(rows) < asked:
        problem = TEMPLATES[random.choice(names)](random, spec.max_number)
        careless = random.random() < spec.careless and not heldout and spec.format == "prompt_completion"
        row = _row(problem, careless=careless)
        fits = row["prompt"] not in rows and _reserved(row["prompt"]) == heldout
        misses = 0 if fits else misses + 1
        if fits:
            rows[row["prompt"]], solved[row["prompt"]] = row, problem
        if misses == _PATIENCE:
            raise SeqtuneError(
                f"templates {', '.join(names)} give {len(rows)} distinct {'held-out' if heldout else 'training'} "
                f"problems up to {spec.max_number}, not {asked}",
                f"data.{count}",
                f"lower data.{count}, raise data.max_number, or add names to data.templates",
            )
    if spec.format == "preference":
        return [_pair(row, Random(f"{spec.seed} {row['prompt']}")) for row in rows.values()]
    if spec.format == "groups":
        return [_group(row, solved[prompt], Random(f"{spec.seed} {prompt}")) for prompt, row in rows.items()]
    return list(rows.values())


def _reserved(prompt: str) -> bool:
    return crc32(prompt.encode()) % 5 == 0


def _row(problem: Problem, *, careless: bool) -> dict[str, str]:
    done = len(problem.steps) - careless
    lines = (*problem.steps[:done], f"#### {problem.values[done]}")
    return {"prompt": f"{problem.question}\n", "completion": "\n".join(lines), "answer": str(problem.values[-1])}


def _pair(row: dict[str, str], random: Random) -> dict[str, str]:
    answer = int(row["answer"])
    wrong = random.choice([n for n in range(max(0, answer - 9), answer + 10) if n != answer])
    head = row["completion"].removesuffix(f"{answer}\n#### {answer}")
    return {"prompt": row["prompt"], "chosen": row["completion"], "rejected": f"{head}{wrong}\n#### {wrong}"}


def _group(row: dict[str, str], problem: Problem, random: Random) -> dict[str, Any]:
    pair, hasty = _pair(row, random), _row(problem, careless=True)["completion"]
    scored = [(pair["chosen"], 1.0), (pair["rejected"], 0.0), (f"#### {row['answer']}", 1.0)]
    if hasty.rpartition("#### ")[2] != row["answer"]:
        scored.append((hasty, 0.0))
    completions, scores = zip(*scored, strict=True)
    return {"prompt": row["prompt"], "completions": [*completions], "scores": [*scores], "answer": row["answer"]}
