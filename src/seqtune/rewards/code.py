"""Programs run against tests, in a sandbox."""

from __future__ import annotations

import re
from dataclasses import dataclass
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
            SeqtuneError: The data has no such column, or the sandbox does not start.
        """
        if self._tests not in columns:
            raise SeqtuneError(
                f"reward 'code_exec' runs the tests in the column '{self._tests}', which the data does not have",
                where="reward.tests",
                hint=f"reward.tests=COLUMN; columns at hand: {', '.join(sorted(columns)) or 'none'}",
            )
        entries = columns.get("entry_point") or [None] * len(completions)
        jobs = [
            self._job(prompt, completion, tests, entry)
            for prompt, completion, tests, entry in zip(
                prompts, completions, columns[self._tests], entries, strict=True
            )
        ]
        given = [job for job in jobs if job is not None]
        found = iter(self.programs.run(given, self._timeout))
        return [None if job is None else _verdict(job, next(found)) for job in jobs]

    def _job(self, prompt: str, completion: str, tests: Any, entry: Any) -> dict[str, Any] | None:
        found = [tests] if isinstance(tests, str) else list(tests or [])
        if not found:
            return None
        if entry and any("def check(" in test for test in found):
            found[-1] += f"\ncheck({entry})\n"
        program = program_of(completion)
        if self._continues:
            program = prompt + program
        return {"program": program, "tests": found, "timeout": self._timeout, "watched": True}


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
