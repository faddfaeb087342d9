"""The process that runs math-verify: questions on standard input, answers on standard output, a JSON value a line.

A question `{"reference"}` asks whether the reference is mathematics; `{"reference", "answer", "marked"}` whether the
answer equals it. The answer is `true` or `false`. The asking side bounds the time, so math-verify's own alarms are off.
"""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import sys
from functools import lru_cache
from typing import Any

from math_verify import parse, verify

MEMORY = 4 * 2**30
"""Bytes of address space: an expression that needs more is wrong."""
_COMMAND = re.compile(r"\\(?:text|mathrm|mbox|begin|end)\{[^{}]*\}|\\[A-Za-z]+")
_PROSE = re.compile(r"[^\W\d_]{4,}")
_DELIMITED = re.compile(r"\$|\\[(\[]")
_TEXT = re.compile(r"\\text\{(\s*[-+]?[0-9][^{}]*)\}")
_COUNTED = re.compile(
    r"([-+]?[0-9.,/]+)\s+(?!(?:pi|sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|and|or|mod|to)\b)[A-Za-z]{2}[A-Za-z./ ]*"
)
"""A number of something: units that are no words of prose would be read as products of letters."""
SMALL, FIGURES = 1e-3, 1e-3
"""math-verify rounds to six places; numbers below the first have to agree to this share of theirs as well."""


def delimited(answer: str) -> str:
    """An answer on its own as math-verify wants it: bare LaTeX between dollars, prose and delimited LaTeX unchanged."""
    if text := _TEXT.fullmatch(answer):
        answer = text[1].strip()
    if counted := _COUNTED.fullmatch(answer):
        answer = counted[1]
    if _DELIMITED.search(answer) or _PROSE.search(_COMMAND.sub(" ", answer)):
        return answer
    return f"${answer}$"


@lru_cache(maxsize=4096)
def _parsed(text: str) -> list[Any]:
    found: list[Any] = parse(text, parsing_timeout=None)
    return found


def judge(question: dict[str, Any]) -> bool:
    """The answer to one question."""
    reference = _parsed(delimited(question["reference"]))
    if "answer" not in question:
        return bool(reference)
    answer = _parsed(delimited(question["answer"]) if question["marked"] else question["answer"])
    return bool(verify(reference, answer, timeout_seconds=None)) and not _small_and_different(reference, answer)


def _small_and_different(reference: list[Any], answer: list[Any]) -> bool:
    """Whether two answers, equal to six places, are small numbers that differ."""
    numbers = [one[0].evalf(15) for one in (reference, answer) if getattr(one[0], "is_comparable", False)]
    largest = max(map(abs, numbers), default=0)
    return bool(len(numbers) == 2 and largest < SMALL and abs(numbers[0] - numbers[1]) > FIGURES * largest)


def main() -> None:
    """Answer questions until standard input ends."""
    logging.disable(logging.CRITICAL)
    if sys.platform == "linux":  # elsewhere the limit cannot be lowered; the time bound remains
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY if hard < 0 else min(MEMORY, hard), hard))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the parsers print is no answer
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(judge(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
