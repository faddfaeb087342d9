"""Several processes started, heard and ended together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from seqtune.errors import SeqtuneError
from seqtune.parallel.launch import launch


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def start(mode: str, folder: Path) -> list[dict[str, Any]]:
    """What the first of two probes sent."""
    heard: list[dict[str, Any]] = []
    launch("worker_probe", [mode], processes=2, log=folder / "log", receive=heard.append)
    return heard


@pytest.mark.slow
def test_the_first_process_is_heard_whole_and_in_order(tmp_path: Path) -> None:
    first, second = start("well", tmp_path)
    assert (first["rank"], first["processes"]) == (0, "2")
    assert second == {"long": "x" * 200_000}


@pytest.mark.slow
def test_an_error_the_user_can_mend_arrives_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(SeqtuneError) as caught:
        start("mend", tmp_path)
    problem = caught.value.problems[0]
    assert (problem.problem, problem.where, problem.hint) == ("the row is bad", "rows.jsonl:3", "mend it")


@pytest.mark.slow
def test_a_bug_arrives_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="worker 1:") as caught:
        start("bug", tmp_path)
    assert "ValueError: nobody thought of this" in str(caught.value)


def wait_for(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_processes_end_with_their_launcher(how: signal.Signals, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # background jobs begin without it
        "from pathlib import Path; from seqtune.parallel.launch import launch; "
        f"launch('worker_probe', ['hang'], processes=2, log=Path({str(log)!r}), receive=print)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: log.exists() and log.read_text().count("PID") == 2)
        workers = [int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("PID")]
        assert all(alive(pid) for pid in workers)
        parent.send_signal(how)
        parent.wait(120)
        wait_for(lambda: not any(alive(pid) for pid in workers), 15)
    finally:
        parent.kill()
        parent.wait()
