"""Programs whose output is the answer, run in the sandbox."""

from __future__ import annotations

from typing import Any

from seqtune.rollout.tools import Answer
from seqtune.sandbox.programs import Programs


class Printed:
    """`printed(programs) -> answers`: what each prints; a program that fails says why at the end.

    Args:
        timeout: Seconds a program may take.
        memory: MiB of address space of a process, and of memory of all processes of a program together.
        processes: Processes and threads a program may have at a time.
        output: KiB a program may print.
        workers: Programs run at the same time.

    Raises:
        SeqtuneError: The sandbox cannot be had on this machine.
    """

    def __init__(self, *, timeout: float, memory: int, processes: int, output: int, workers: int) -> None:
        self._timeout, self._shown = timeout, output * 2**10
        self._programs = Programs(
            memory=memory, processes=processes, output=output, workers=workers, where="rollout.tools"
        )
        self._programs.protections()

    def __call__(self, queries: list[str]) -> list[Answer]:
        jobs = [
            {"program": program, "tests": [], "timeout": self._timeout, "watched": True, "shown": self._shown}
            for program in queries
        ]
        return [_answer(found) for found in self._programs.run(jobs, self._timeout)]


def _answer(found: dict[str, Any] | None) -> Answer:
    if found is None:
        return Answer("error: the sandbox gave no answer", failed=True)
    printed = found["output"].rstrip("\n")
    if found["verdict"] == "passed":
        return Answer(printed)
    told = f"error: {found['message'] or found['verdict']}"
    return Answer(f"{printed}\n{told}" if printed else told, failed=True)
