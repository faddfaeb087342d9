"""The process that runs math-verify: questions on standard input, answers on standard output, a JSON value a line.

A question `{"reference"}` asks whether the reference is mathematics; `{"reference", "answer", "marked"}` whether the
answer equals it. The answer is `true` or `false`. The asking side bounds the time, so math-verify's own alarms are off.
"""

from __future__ import annotations

import json
import logging
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


def delimited(answer: str) -> str:
    """An answer on its own as math-verify wants it: bare LaTeX between dollars, prose and delimited LaTeX unchanged."""
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
    answer = question["answer"]
    return bool(verify(reference, _parsed(delimited(answer) if question["marked"] else answer), timeout_seconds=None))


def main() -> None:
    """Answer questions until standard input ends."""
    logging.disable(logging.CRITICAL)
    if sys.platform == "linux":  # elsewhere the limit cannot be lowered; the time bound remains
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY if hard < 0 else min(MEMORY, hard), hard))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(judge(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
