"""Start a module in several processes of this machine with torchrun, hear what they report, and end them together.

The launcher and its workers share a scratch folder: a named pipe carries JSON lines from the first worker, a locked
file is the lifeline (the kernel unlocks it when the launcher is gone, whatever ended it, and the workers then end
themselves), and a worker that fails in a way the user can mend leaves its problems in a file.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from seqtune.errors import Problem, SeqtuneError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SCRATCH = "SEQTUNE_LAUNCH"
"""Environment variable that tells a worker the scratch folder."""

LOG_LINES = 40
GRACE = 10.0  # seconds workers get to end before they are killed


def launch(
    module: str, arguments: list[str], *, processes: int, log: Path, receive: Callable[[dict[str, Any]], None]
) -> None:
    """Run `python -m module arguments…` in `processes` workers until all are done.

    Args:
        module: Importable module that calls `to_launcher`.
        arguments: Its command-line arguments.
        processes: Workers; each has `RANK`, `LOCAL_RANK` and `WORLD_SIZE` set by torchrun.
        log: File the output of the workers is appended to.
        receive: Called with every JSON object the first worker sends.

    Raises:
        SeqtuneError: The one a worker raised.
        RuntimeError: A worker failed otherwise; carries its traceback, or the end of the log if it left none.
    """
    with tempfile.TemporaryDirectory(prefix="seqtune-") as folder, log.open("ab") as output:
        scratch = Path(folder)
        os.mkfifo(scratch / "pipe")
        # Opened for writing too, so that it stays open while no worker has it open.
        pipe = os.open(scratch / "pipe", os.O_RDWR | os.O_NONBLOCK)
        lifeline = (scratch / "lifeline").open("w")
        fcntl.flock(lifeline, fcntl.LOCK_EX)
        threads = str(max(1, (os.cpu_count() or 1) // processes))
        start = log.stat().st_size
        agent = subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"),
                *("--nproc-per-node", str(processes), "-m", module, *arguments),
            ],
            env={"OMP_NUM_THREADS": threads, **os.environ, SCRATCH: folder},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the launcher alone, which then ends the workers
        )
        try:
            _relay(agent, pipe, receive)
        finally:
            _stop(agent)
            lifeline.close()
            os.close(pipe)
        if agent.returncode:
            raise _failure(scratch, log, start, processes)


def _relay(agent: subprocess.Popen[bytes], pipe: int, receive: Callable[[dict[str, Any]], None]) -> None:
    """Hand over JSON lines until the workers have ended and the pipe is empty."""
    pending = b""
    while True:
        ended = agent.poll() is not None
        ready, _, _ = select.select([pipe], [], [], 0 if ended else 0.2)
        if ready:
            *lines, pending = (pending + os.read(pipe, 1 << 16)).split(b"\n")
            for line in lines:
                receive(json.loads(line))
        elif ended:
            return


def _stop(agent: subprocess.Popen[bytes]) -> None:
    if agent.poll() is None:
        agent.terminate()  # torchrun passes it on to its workers
        with suppress(subprocess.TimeoutExpired):
            agent.wait(GRACE)
    with suppress(ProcessLookupError):
        os.killpg(agent.pid, signal.SIGKILL)
    agent.wait()


def _failure(scratch: Path, log: Path, start: int, processes: int) -> Exception:
    for rank in range(processes):
        left = scratch / f"problems-{rank}.json"
        if left.is_file():
            return SeqtuneError.of(Problem(**problem) for problem in json.loads(left.read_text()))
    found = [(rank, scratch / f"traceback-{rank}.txt") for rank in range(processes)]
    crashes = [f"worker {rank}:\n{left.read_text()}" for rank, left in found if left.is_file()]
    with log.open("rb") as lines:
        lines.seek(start)
        tail = lines.read().decode(errors="replace").splitlines()[-LOG_LINES:]
    return RuntimeError("\n".join(["a worker process failed", *(crashes or tail), f"its output: {log}"]))


@contextmanager
def to_launcher() -> Iterator[Callable[[dict[str, Any]], None]]:
    """In a worker: a function that sends a JSON object to the launcher (from the first worker; others stay silent).

    Within it the worker ends as soon as its launcher is gone, and a `SeqtuneError` reaches the launcher. At its end the
    worker ends too.
    """
    scratch, rank = Path(os.environ[SCRATCH]), int(os.environ["RANK"])
    threading.Thread(target=_end_with_launcher, args=(scratch / "lifeline",), daemon=True).start()
    with (scratch / "pipe").open("wb", buffering=0) as pipe:

        def send(message: dict[str, Any]) -> None:
            if rank == 0:
                line = memoryview(json.dumps(message).encode() + b"\n")
                while line:
                    line = line[pipe.write(line) or 0 :]

        try:
            yield send
            _end()
        except SeqtuneError as error:
            temporary = scratch / f".problems-{rank}"
            temporary.write_text(json.dumps([asdict(problem) for problem in error.problems]))
            os.replace(temporary, scratch / f"problems-{rank}.json")
            raise SystemExit(2) from error
        except Exception:  # a bug: kept for the launcher, and raised on
            (scratch / f"traceback-{rank}.txt").write_text(traceback.format_exc())
            raise


def _end() -> NoReturn:
    """Close the connections to the other workers, all at once (one that closes while another still waits for it now and
    then aborts that one), and end: the interpreter's own end aborts now and then on threads that PyTorch leaves behind.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
    atexit._run_exitfuncs()  # as `multiprocessing` ends its workers
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _end_with_launcher(lifeline: Path) -> None:
    with suppress(OSError), lifeline.open() as held:
        fcntl.flock(held, fcntl.LOCK_SH)  # returns when the launcher has let go
    os._exit(1)
