"""Programs run against tests, in a sandbox."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from seqtune.errors import SeqtuneError
from seqtune.sandbox.programs import Programs

_FENCE = re.compile(r"([ \t]*)```[ \t]*([^`\s]*)[^`]*")
_PYTHON = ("", "python", "python3", "py")


@dataclass(frozen=True)
class Verdict:
    """What became of a program.

    Args:
        name: `passed`, `failed` (an assertion), `error` (another exception), `exited` (the program ended before its
            tests had), `crashed` (by a signal), `timeout`, `memory`, `processes`, `output`, `disk` (wrote too much),
            `files` (outside its folder), `network`, `tampered` (it looked at what runs its tests), or `lost` (the
            sandbox gave no answer).
        passed: Tests that passed.
        total: Tests there were.
        message: What the program said about it, at most 300 characters.
    """

    name: str
    passed: int
    total: int
    message: str


class CodeExec:
    """`reward(prompts, completions, tests=[...])`: 1.0 where the program passes all its tests, else 0.0.

    Every program runs in a process of its own that can reach neither the network nor files of the user, within limits;
    `seqtune.sandbox.jailer` says how. A row without tests gets None, and so does one for which the sandbox gave no
    answer.

    Args:
        tests: Name of the column with the tests: a program, or a list of programs, run after the completion's.
        continues: The completion goes on where the prompt ends: the program is both together.
        partial: The score is the share of a row's tests that passed, not all or nothing.
        timeout: Seconds a row may take, program and tests together.
        memory: MiB of address space of a process, and of memory of all processes of a row together.
        processes: Processes and threads a row may have at a time.
        output: KiB a row may print.
        workers: Rows run at the same time.
    """

    def __init__(
        self,
        *,
        tests: str,
        continues: bool,
        partial: bool,
        timeout: float,
        memory: int,
        processes: int,
        output: int,
        workers: int,
    ) -> None:
        self._tests, self._continues, self._partial, self._timeout = tests, continues, partial, timeout
        self.programs = Programs(
            memory=memory, processes=processes, output=output, workers=workers, where="reward code_exec"
        )

    def protections(self) -> list[str]:
        """The mechanisms that confine programs on this machine; starts the sandbox.

        Raises:
            SeqtuneError: An essential one cannot be had.
        """
        return self.programs.protections()

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float | None]:
        return [self._score(verdict) for verdict in self.verdicts(prompts, completions, **columns)]

    def _score(self, verdict: Verdict | None) -> float | None:
        if verdict is None or verdict.name == "lost":
            return None
        if verdict.name == "passed" or not self._partial or not verdict.total:
            return float(verdict.name == "passed")
        return verdict.passed / verdict.total

    def verdicts(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> list[Verdict | None]:
        """What became of every program; None for a row without tests.

        Raises:
            SeqtuneError: The data has no such column, a test is none, or the sandbox does not start.
        """
        if self._tests not in columns:
            raise SeqtuneError(
                f"reward 'code_exec' runs the tests in the column '{self._tests}', which the data does not have",
                where="reward.tests",
                hint=f"reward.tests=COLUMN; columns at hand: {', '.join(sorted(columns)) or 'none'}",
            )
        entries = columns.get("entry_point") or [None] * len(completions)
        jobs = [
            self._job(prompt, completion, _programs(tests, f"row {row}, column '{self._tests}'"), entry)
            for row, (prompt, completion, tests, entry) in enumerate(
                zip(prompts, completions, columns[self._tests], entries, strict=True)
            )
        ]
        given = [job for job in jobs if job is not None]
        found = iter(self.programs.run(given, self._timeout))
        return [None if job is None else _verdict(job, next(found)) for job in jobs]

    def _job(self, prompt: str, completion: str, tests: list[str], entry: Any) -> dict[str, Any] | None:
        if not tests:
            return None
        if any("def check(" in test for test in tests):
            tests = self._checking(tests, entry)
        program = program_of(completion)
        if self._continues:
            program = prompt + program
        return {"program": program, "tests": tests, "timeout": self._timeout, "watched": True}

    def _checking(self, tests: list[str], entry: Any) -> list[str]:
        """The tests of HumanEval define `check(candidate)` and leave it to others to call it."""
        if entry:
            return [*tests[:-1], f"{tests[-1]}\ncheck({entry})\n"]
        if "\n".join(tests).replace("def check(", "").count("check("):
            return tests
        raise SeqtuneError(
            f"the tests in the column '{self._tests}' define check(candidate), and nothing calls it",
            where="reward.tests",
            hint="add the column 'entry_point' with the name of the function to check, or the call to the tests",
        )


def _programs(tests: Any, where: str) -> list[str]:
    """The tests of a row, a program each, without empty ones."""
    listed = [tests] if isinstance(tests, str) else [] if tests is None else tests
    if not isinstance(listed, list | tuple) or not all(isinstance(test, str) for test in listed):
        raise SeqtuneError(f"tests are a program or a list of programs, and these are {tests!r:.200}", where=where)
    for test in listed:
        if problem := _no_test(test):
            raise SeqtuneError(
                f"this test {problem}: {test:.200}",
                where=where,
                hint="a test is Python that fails where the program is wrong: assert solve(2) == 4",
            )
    return [test for test in listed if test.strip()]


@lru_cache(maxsize=4096)
def _no_test(test: str) -> str:
    """Why a text can fail no program; empty if it can, or is empty."""
    try:
        parsed = ast.parse(test)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        return f"is not Python ({error})"
    for read in (ast.literal_eval, json.loads):
        try:
            read(test)
        except (SyntaxError, ValueError, TypeError):
            continue
        return "is a value, not a program" if parsed.body else ""
    return ""


def _verdict(job: dict[str, Any], found: dict[str, Any] | None) -> Verdict:
    if found is None:
        return Verdict("lost", 0, len(job["tests"]), "the sandbox gave no answer")
    return Verdict(found["verdict"], found["passed"], found["total"], found["message"])


def program_of(completion: str) -> str:
    """The last complete fenced block of Python (or of no named language) in a completion, or all of it."""
    found: str | None = None
    language: str | None = None
    indent, block = "", ""
    for line in completion.splitlines(keepends=True):
        fence = _FENCE.fullmatch(line.rstrip("\r\n"))
        if fence is None:
            block += line.removeprefix(indent)
        elif language is None or fence[2]:  # also where the block before was left open
            indent, language, block = fence[1], fence[2].lower(), ""
        else:
            if language in _PYTHON:
                found = block
            language = None
    return completion if found is None else found
