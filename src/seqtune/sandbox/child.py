"""A process that answers questions, a line of JSON each way; started at the first one, replaced when it is late."""

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

STARTUP = 120.0
"""Seconds a child may take to say that it is ready."""


class Child:
    """`python -m module *arguments`, which writes a line when it is ready and then one for every line it reads.

    Args:
        module: What it runs.
        arguments: Of its command line.
        purpose: What messages call it: "the process that …".
        where: The place messages name.
        environment: All of its environment; None hands this process's on.
        grace: Seconds it has to end by itself when its input ends, before it is killed.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        purpose: str,
        where: str,
        environment: dict[str, str] | None = None,
        grace: float = 0.0,
    ) -> None:
        self._grace = grace
        self._command = [sys.executable, "-P", "-m", module, *arguments]
        self._purpose, self._where, self._environment = purpose, where, environment
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._stop: Any = None
        self.greeting: Any = None
        """What the running child said when it was ready."""

    def ask(self, question: Any, seconds: float) -> Any:
        """The child's answer; None if it takes longer than `seconds` or dies of the question.

        Raises:
            SeqtuneError: The child does not start, or says why it will not.
        """
        with self._lock:
            child = self._running()
            assert child.stdin is not None
            try:
                child.stdin.write(json.dumps(question).encode() + b"\n")
                child.stdin.flush()
                line = _line(child, seconds)
            except BrokenPipeError:
                line = b""
            if not line:
                self._stop()
                return None
            return json.loads(line)

    def start(self) -> Any:
        """Start the child now if it does not run; what it said when it was ready."""
        with self._lock:
            self._running()
            return self.greeting

    def _running(self) -> subprocess.Popen[bytes]:
        alive = self._process is not None and self._process.poll() is None and self._owner == os.getpid()
        if self._process is None or not alive:
            if self._stop is not None and self._owner == os.getpid():
                self._stop()
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._environment,
            )
            self._owner = os.getpid()  # a forked process must not talk to its parent's child
            self._stop = weakref.finalize(self, _end, self._process, self._owner, self._grace)
            line = _line(self._process, STARTUP)
            self.greeting = json.loads(line) if line else None
            refused = isinstance(self.greeting, dict) and self.greeting.get("refused")
            if not line or refused:
                self._stop()
                raise SeqtuneError(
                    f"{self._purpose} {'refuses: ' + str(refused) if refused else 'does not start'}",
                    where=self._where,
                    hint=self.greeting.get("hint", "") if refused else f"`{' '.join(self._command[:4])}` shows why",
                )
        return self._process


def _line(child: subprocess.Popen[bytes], seconds: float) -> bytes:
    """One line of the child's output; empty if it ended or did not write one in time."""
    assert child.stdout is not None
    deadline = time.monotonic() + seconds
    output = select.poll()  # `select.select` knows no file from number 1024 on
    output.register(child.stdout, select.POLLIN)
    line = b""
    while not line.endswith(b"\n"):
        left = None if seconds == float("inf") else max(0.0, deadline - time.monotonic()) * 1000
        part = os.read(child.stdout.fileno(), 65536) if output.poll(left) else b""
        if not part:
            return b""
        line += part
    return line


def _end(child: subprocess.Popen[bytes], owner: int, grace: float) -> None:
    """Kill the child and close its pipes; in a fork only the inherited pipe ends are closed."""
    for pipe in (child.stdin, child.stdout):
        assert pipe is not None
        try:
            pipe.close()
        except BrokenPipeError:  # unsent bytes of a question the child did not live to read
            continue
    if owner == os.getpid():
        try:
            child.wait(grace)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
