"""A tool written by the user, in processes of its own."""

from __future__ import annotations

from seqtune.rollout.tools import Answer
from seqtune.sandbox.child import Child
from seqtune.sandbox.pool import Pool


class Called:
    """`called(queries) -> answers` of a user's `function(query: str) -> str`; what goes wrong is told in the answer.

    Args:
        name: `module:function` or `file.py:function`.
        timeout: Seconds a call may take.
        workers: Processes.

    Raises:
        SeqtuneError: The function cannot be loaded.
    """

    def __init__(self, name: str, *, timeout: float, workers: int) -> None:
        self._timeout = timeout
        self._pool = Pool(
            [
                Child("seqtune.rollout.tool_worker", name, purpose=f"tool '{name}'", where="rollout.tools")
                for _ in range(workers)
            ]
        )
        self._pool.start()

    def __call__(self, queries: list[str]) -> list[Answer]:
        return [self._answer(found) for found in self._pool.ask(queries, self._timeout)]

    def _answer(self, found: dict[str, str] | None) -> Answer:
        if found is None:
            return Answer(f"error: no answer within {self._timeout:g} s", failed=True)
        return Answer(found["text"]) if "text" in found else Answer(f"error: {found['problem']}", failed=True)
