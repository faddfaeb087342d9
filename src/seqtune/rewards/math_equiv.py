"""Mathematical equality, decided by math-verify in a process of its own.

math-verify bounds its time with SIGALRM, which works in the main thread only and would take the alarm from the trainer;
what a policy writes can also make SymPy compute for ever. So it runs in a child process that is killed when it is late.
Integers, the common case, are compared here without it.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
import weakref
from threading import Lock
from typing import Any

from seqtune.errors import SeqtuneError
from seqtune.rewards.answers import ascii_maths, marked_answer, plain_integer, references

STARTUP = 120.0
"""Seconds the child may take to import math-verify."""


class MathEquiv:
    """`reward(prompts, completions, answer=[...])`: 1.0 where the completion's answer equals the reference, else 0.0.

    The completion's answer follows its last `####`, or stands in its last `\\boxed{…}` (the later of the two), or is
    what math-verify extracts: a formula or number after "final answer is" or "answer", else the last one in the text.
    None where the reference is missing or is no mathematics. A comparison that takes too long counts as wrong.

    Args:
        timeout: Seconds a comparison may take.
    """

    def __init__(self, timeout: float) -> None:
        self._checker = _Checker(timeout)
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
        return float(self._checker.ask({"reference": wanted, "answer": given, "marked": marked}) is True)

    def _readable(self, reference: str) -> bool:
        if reference not in self._mathematics:
            self._mathematics[reference] = self._checker.ask({"reference": reference}) is True
        return self._mathematics[reference]


def _reading(text: str) -> tuple[str, bool]:
    """The part of a text that holds the answer, and whether a marker pointed at it."""
    marked = marked_answer(text)
    return ascii_maths(text if marked is None else marked).strip(), marked is not None


class _Checker:
    """The child process: started at the first question, one line of JSON each way, replaced after a late answer."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._lock = Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._stop: Any = None

    def ask(self, question: dict[str, Any]) -> bool | None:
        """The child's answer; None if it took longer than the timeout or died of the question."""
        with self._lock:
            child = self._running()
            assert child.stdin is not None
            try:
                child.stdin.write(json.dumps(question).encode() + b"\n")
                child.stdin.flush()
                line = _line(child, self._timeout)
            except BrokenPipeError:
                line = b""
            if not line:
                self._stop()
                return None
            return bool(json.loads(line))

    def _running(self) -> subprocess.Popen[bytes]:
        alive = self._child is not None and self._child.poll() is None and self._owner == os.getpid()
        if self._child is None or not alive:
            if self._stop is not None and self._owner == os.getpid():
                self._stop()
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "seqtune.rewards.math_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            self._owner = os.getpid()  # a forked process must not talk to its parent's child
            self._stop = weakref.finalize(self, _end, self._child, self._owner)
            if not _line(self._child, STARTUP):
                self._stop()
                raise SeqtuneError(
                    "the process that compares mathematical answers does not start",
                    where="reward math_equiv",
                    hint=f"`{sys.executable} -m seqtune.rewards.math_worker` shows why",
                )
        return self._child


def _line(child: subprocess.Popen[bytes], seconds: float) -> bytes:
    """One line of the child's output; empty if it ended or did not write one in time."""
    assert child.stdout is not None
    deadline = time.monotonic() + seconds
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([child.stdout], [], [], max(0.0, deadline - time.monotonic()))
        part = os.read(child.stdout.fileno(), 4096) if ready else b""
        if not part:
            return b""
        line += part
    return line


def _end(child: subprocess.Popen[bytes], owner: int) -> None:
    """Kill the child and close its pipes; in a fork only the inherited pipe ends are closed."""
    for pipe in (child.stdin, child.stdout):
        assert pipe is not None
        try:
            pipe.close()
        except BrokenPipeError:  # unsent bytes of a question the child did not live to read
            continue
    if owner == os.getpid():
        child.kill()
        child.wait()
