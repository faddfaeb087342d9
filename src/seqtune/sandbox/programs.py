"""Programs run in the sandbox, several at a time."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from seqtune.errors import SeqtuneError
from seqtune.sandbox.child import Child
from seqtune.sandbox.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Sequence

MARGIN = 30.0
"""Seconds beyond its timeout after which a job that gave no verdict is given up with its jailer."""


class Programs:
    """Jailers (`seqtune.sandbox.jailer`) that run programs which can reach neither the network nor files of the user.

    Args:
        memory: MiB of address space of a process, and of memory of all processes of a program together.
        processes: Processes and threads a program may have at a time.
        output: KiB a program may print.
        workers: Programs run at the same time.
        where: The place messages name.
    """

    def __init__(self, *, memory: int, processes: int, output: int, workers: int, where: str) -> None:
        self._where = where
        limits = json.dumps({"memory": memory * 2**20, "processes": processes, "output": output * 2**10})
        self.pool = Pool(
            [
                Child(
                    "seqtune.sandbox.jailer",
                    limits,
                    purpose="the sandbox for code",
                    where=where,
                    environment={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"},
                    grace=5.0,
                )
                for _ in range(workers)
            ]
        )

    def protections(self) -> list[str]:
        """The mechanisms that confine programs on this machine; starts the sandbox.

        Raises:
            SeqtuneError: An essential one cannot be had.
        """
        found: list[str] = self.pool.start()["protections"]
        return found

    def run(self, jobs: Sequence[dict[str, Any]], timeout: float) -> list[dict[str, Any] | None]:
        """What became of each job, as `seqtune.sandbox.jailer.run` takes and tells it; None: the sandbox is silent.

        Args:
            jobs: Programs with their tests.
            timeout: Seconds any of them may take.

        Raises:
            SeqtuneError: The sandbox does not start, or a protection that held at the start does not any more.
        """
        found: list[dict[str, Any] | None] = self.pool.ask(jobs, timeout + MARGIN)
        for one in found:
            if one is not None and one["verdict"] == "unprotected":
                raise SeqtuneError(f"the sandbox for code is incomplete: {one['message']}", where=self._where)
        return found
