"""What a recipe can say about tools. The functions are imported by `build()`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from seqtune.config.tools import ToolSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from seqtune.rollout.tools import Answer


class Search(ToolSpec):
    """The passages of a local corpus that match best (BM25)."""

    name: Literal["search"] = "search"
    open: str = Field("<search>", min_length=1)
    """Text that begins a call."""
    close: str = Field("</search>", min_length=1)
    """Text that ends a call; what stands between is the query."""
    path: str = Field(min_length=1)
    """File with the corpus: jsonl (`text` and, if you like, `title` on each line) or txt (a passage a paragraph)."""
    passages: int = Field(3, ge=1)
    """Passages a result has at most."""

    def build(self) -> Callable[[list[str]], list[Answer]]:
        from seqtune.rollout.search import Corpus

        return Corpus(self.path, passages=self.passages)


class Python(ToolSpec):
    """What a Python program prints, run in the sandbox of the reward `code_exec`."""

    name: Literal["python"] = "python"
    open: str = Field("<python>", min_length=1)
    """Text that begins a call."""
    close: str = Field("</python>", min_length=1)
    """Text that ends a call; what stands between is the program."""
    timeout: float = Field(5.0, gt=0)
    """Seconds a program may take."""
    memory: int = Field(1024, ge=64)
    """MiB of address space a process may have, and of memory that all processes of a program may hold."""
    processes: int = Field(16, ge=1)
    """Processes and threads a program may have at a time."""
    output: int = Field(64, ge=1)
    """KiB a program may print."""
    workers: int = Field(1, ge=1)
    """Programs that run at the same time."""

    def build(self) -> Callable[[list[str]], list[Answer]]:
        from seqtune.rollout.programs import Printed

        return Printed(
            timeout=self.timeout,
            memory=self.memory,
            processes=self.processes,
            output=self.output,
            workers=self.workers,
        )


class Custom(ToolSpec):
    """A Python function of yours, `function(query: str) -> str`, in a process of its own."""

    name: str = Field(pattern=r"^.+:[A-Za-z_][A-Za-z0-9_]*$")
    """`package.module:function`, or `path/to/file.py:function` relative to the working directory."""
    timeout: float = Field(10.0, gt=0)
    """Seconds a call may take."""
    workers: int = Field(1, ge=1)
    """Processes that run it, a call at a time."""

    def build(self) -> Callable[[list[str]], list[Answer]]:
        from seqtune.rollout.custom import Called

        return Called(self.name, timeout=self.timeout, workers=self.workers)
