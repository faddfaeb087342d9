"""What all benchmarks share: runs timed in turn, peak memory, and sections of a page of docs."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from seqtune.report.run_folder import write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Each section says which command wrote it and on what machine. Runs that are compared alternate in one process, in
balanced order, so that a slow spell of the machine meets all of them; ratios are medians over pairs of runs that
stood next to each other, with the smallest and largest in brackets. Memory is what a run adds at its peak to what
the process held before, measured in a process of its own.
"""


def paired(runs: Mapping[str, Callable[[], Any]], repeats: int, *, warm_up: bool = True) -> dict[str, list[float]]:
    """Seconds of each repeat of each run. Every round runs each once; every other round goes backwards.

    Args:
        runs: What to time, by name.
        repeats: Rounds.
        warm_up: Run each once before.
    """
    if warm_up:
        for run in runs.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats):
        for name in list(runs) if turn % 2 == 0 else list(runs)[::-1]:
            began = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


class Ratio(NamedTuple):
    """Of two runs over their rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(slower: Sequence[float], faster: Sequence[float]) -> Ratio:
    """Round by round, how many times longer `slower` took than `faster`."""
    quotients = np.divide(slower, faster)
    return Ratio(float(np.median(quotients)), float(quotients.min()), float(quotients.max()))


def peak_rss_of(run: Callable[[], Any]) -> int:
    """Bytes of memory `run` adds at its peak, in a copy of this process. Linux only.

    Memory this process has freed and kept for later is given back first: a run that took it again would seem to need
    none. Run it once before, so that what it keeps for good (optimiser states, caches) is there already.
    """
    ctypes.CDLL(None).malloc_trim(0)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)  # the threads of the parent are not copied, and work given to them never ends
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is held now
            before = _resident("VmRSS")
            run()
            os.write(writer, str(_resident("VmHWM") - before).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as answer:
        found = answer.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError("the run whose memory was to be measured failed")
    return int(found)


def _resident(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def machine() -> str:
    """Processor, threads and versions, in one line."""
    names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    threads = torch.get_num_threads()
    return (
        f"{names[0] if names else platform.machine()}, {threads} thread{'s' if threads > 1 else ''}, "
        f"PyTorch {torch.__version__}"
    )


def write_section(title: str, body: str, page: Path = PAGE, head: str = HEAD) -> None:
    """Put a section into a page of docs, in the place of one with the same title or at the end.

    Args:
        title: Its heading.
        body: Markdown, with no heading above the third level.
        page: The page; begun if it is not there.
        head: What a page begins with.
    """
    text = page.read_text() if page.is_file() else head
    section = f"## {title}\n\n{body.strip()}\n"
    place = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
    text, replaced = place.subn(lambda _: section + "\n", text)
    if not replaced:
        text = f"{text.rstrip()}\n\n{section}"
    write_atomic(page, text.rstrip() + "\n")
