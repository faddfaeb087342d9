"""Several children that answer questions side by side."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from seqtune.sandbox.child import Child


class Pool:
    """Children of one kind.

    Args:
        children: At least one.
    """

    def __init__(self, children: Sequence[Child]) -> None:
        self.children = list(children)

    def start(self) -> Any:
        """Start the first child now if it does not run; what it said when it was ready.

        Raises:
            SeqtuneError: It does not start, or says why it will not.
        """
        return self.children[0].start()

    def ask(self, questions: Sequence[Any], seconds: float) -> list[Any]:
        """The answer to each question; None where it took longer than `seconds` or the child died of it.

        Raises:
            SeqtuneError: A child does not start.
        """
        idle: SimpleQueue[Child] = SimpleQueue()
        for child in self.children:
            idle.put(child)

        def one(question: Any) -> Any:
            child = idle.get()
            try:
                return child.ask(question, seconds)
            finally:
                idle.put(child)

        if len(self.children) == 1:
            return [one(question) for question in questions]
        with ThreadPoolExecutor(len(self.children)) as pool:
            return list(pool.map(one, questions))
