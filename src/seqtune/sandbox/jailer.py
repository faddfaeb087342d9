"""The process that runs programs nobody has read: a job a line on standard input, a verdict a line on its output.

It starts with an empty environment and nothing of the trainer in its memory, and forks for every job:

    jailer ── keeper ── init ── program          one each a job; whatever the program starts hangs below init

The keeper enters new namespaces where it may; init makes the file system read-only and outlives the program, so that
nothing the program starts escapes; the program gives up every privilege and runs the job. The jailer keeps the time,
reads the output, counts processes and memory, and kills the keeper, with which all the rest dies.

Each protection is tried when the jailer starts, and again by two programs that attack it; the jailer refuses to work
where an essential one cannot be had. docs/rewards.md says what it protects from and what not.
"""

from __future__ import annotations

import errno
import importlib
import inspect
import json
import math
import os
import platform
import random
import resource
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from seqtune.sandbox import jail

FILE_SIZE = 16 * 2**20
"""Bytes a file may have."""
DISK = 64 * 2**20
"""Bytes the working folder holds, where it lies in memory."""
OPEN_FILES = 256
SLACK = 16
"""Processes the kernel allows beyond the limit: the watch sees who passes it, and the jailer's own count too."""
EVERY = 0.02
"""Seconds between two looks at a job's processes."""
MESSAGE = 300
"""Characters of an error message that are passed on."""
REPORT = 2**20
"""Bytes of a program's report that are read."""
FIRST_UID, LAST_UID, NOBODY = 61184, 65519, 65534
"""Users a job runs as when the jailer is root: systemd's range for dynamic users, which belong to nobody else."""
SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives", "/dev/urandom",
          "/dev/random", "/dev/zero")  # fmt: skip
"""Readable for programs, beside Python's own folders."""
PRELOADED = ("bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "hashlib", "heapq",
             "itertools", "math", "operator", "re", "statistics", "string", "typing")  # fmt: skip
"""Modules that programs often import: imported once."""


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Args:
        memory: Bytes of address space a process has, and of memory all processes of a job hold together.
        processes: Processes and threads of a job at any time.
        output: Bytes written to standard output and standard error together.
    """

    memory: int
    processes: int
    output: int


@dataclass(frozen=True)
class Protections:
    """Which mechanisms work here.

    Args:
        namespaces: Of processes and mounts, for every job.
        network: A network namespace without any device.
        landlock: Version of Landlock; 0 is none.
        other_user: Jobs run as a user of their own.
        reading: Folders and files a program may read, as far as Landlock says so.
        hidden: Python lies where another user cannot read it.
    """

    namespaces: bool
    network: bool
    landlock: int
    other_user: bool
    reading: tuple[str, ...]
    hidden: bool

    def refused_calls(self) -> tuple[str, ...]:
        """System calls the filter has to refuse because nothing else covers them."""
        found = (*jail.INTRUSIVE, *jail.UNCOUNTED)
        if not self.namespaces and not self.other_user:
            found += (*jail.ATTRIBUTES, *jail.SCHEDULING, *(jail.SIGNALS if self.landlock < 6 else ()))
        return found

    def active(self) -> list[str]:
        """One word each, for reports."""
        found = {
            "system-call filter": True,
            "resource limits": True,
            "process watch": True,
            "landlock": self.landlock > 0,
            "read-only mounts": self.namespaces,
            "process namespace": self.namespaces,
            "network namespace": self.network,
            "own user": self.other_user,
        }
        return [name for name, works in found.items() if works]


class Refused(Exception):
    """An essential protection cannot be had; the second argument is what to do about it."""


# The jailer


def prepare() -> Protections:
    """Try every mechanism, and enter the namespaces that all jobs share.

    Raises:
        Refused: What is left would not hold.
    """
    if sys.platform != "linux" or platform.machine() not in jail.MACHINES:
        raise Refused("it needs Linux on x86-64 or AArch64", "score code on such a machine")
    if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
        raise Refused("it cannot count processes: /proc is not mounted", "mount it")
    root = os.getuid() == 0
    version = jail.landlock_version()
    python = {sys.base_prefix, sys.prefix, os.path.dirname(os.__file__)}
    python |= {os.path.realpath(path) for path in python}
    reading = tuple(sorted(path for path in python if path != "/")) + SYSTEM
    hidden = root and not _readable_for_all(os.path.dirname(os.path.realpath(os.__file__)))
    if hidden and not version:
        raise Refused(
            f"Python lies in {sys.base_prefix}, which only root may read, and programs must not run as root",
            "install Python where other users may read it, or run as another user",
        )
    network = _works(jail.unshare if root else jail.enter_user_namespace, jail.NEWNET | jail.NEWIPC)
    namespaces = _in_a_fork(_try_namespaces)
    if not version and not namespaces:
        raise Refused(
            "neither Landlock (Linux 5.13) nor mount namespaces are available: programs could change files",
            "allow one of them: landlock in the kernel's lsm= list, or kernel.unprivileged_userns_clone=1",
        )
    return Protections(namespaces, network, version, root, reading, hidden)


def _works(function: Any, *arguments: Any) -> bool:
    try:
        function(*arguments)
    except OSError:
        return False
    return True


def _in_a_fork(function: Any) -> bool:
    """Whether `function()` returns without an OSError in a process of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if _works(function) else 1)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def _try_namespaces() -> None:
    jail.unshare(jail.NEWPID | jail.NEWNS)
    pid = os.fork()
    if pid == 0:
        try:
            jail.make_read_only(tempfile.gettempdir(), 4096, os.getuid(), os.getgid())
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(pid, 0)[1]:
        raise OSError(errno.EPERM, "mount")


def _readable_for_all(path: str) -> bool:
    if os.stat(path).st_mode & 0o005 != 0o005:
        return False
    while path != "/":
        path = os.path.dirname(path)
        if not os.stat(path).st_mode & stat.S_IXOTH:
            return False
    return True


def attack(protections: Protections, limits: Limits) -> None:
    """Run two programs that try what must not work. The first ends by making more processes than it may.

    Raises:
        Refused: Something worked, or an honest program did not.
    """
    with tempfile.TemporaryDirectory(prefix="seqtune-canary-") as folder:
        canary = os.path.join(folder, "canary")
        with open(canary, "w") as file:
            file.write("alive")
        os.chmod(folder, 0o777)
        os.chmod(canary, 0o666)
        program = _INTRUDER.format(canary=canary, folder=folder, jailer=os.getpid(), processes=limits.processes)
        verdict = run({"program": program, "tests": [], "timeout": 20.0, "watched": False}, protections, limits)
        with open(canary) as file:
            alive = file.read() == "alive"
    if verdict["verdict"] != "processes" or not alive:
        raise Refused(f"its self-test fails: {verdict['message'] or verdict['verdict']}", _TELL_US)
    caller = {"program": "import socket\nsocket.socket()", "tests": [], "timeout": 20.0, "watched": False}
    verdict = run(caller, protections, limits)
    if verdict["verdict"] != "network":
        raise Refused("its self-test opens a socket", _TELL_US)


_TELL_US = "report this with the version of your kernel and whether you are in a container"


_INTRUDER = """
import ctypes, os, shutil, socket, time, zipapp
def refused(what, *arguments, **named):
    try:
        what(*arguments, **named)
    except OSError:
        return
    raise RuntimeError(f"{{what.__name__}}{{arguments}} works")
refused(open, {canary!r}, "w")
refused(os.remove, {canary!r})
refused(os.truncate, {canary!r}, 0)
refused(os.chmod, {canary!r}, 0)
refused(os.rename, {canary!r}, {canary!r} + "2")
refused(open, {folder!r} + "/new", "w")
refused(os.kill, {jailer}, 0)
refused(os.setuid, 0 if os.getuid() else 1)
refused(os.memfd_create, "x")
refused(socket.socketpair, socket.AF_UNIX, socket.SOCK_DGRAM)
libc = ctypes.CDLL(None, use_errno=True)
for flags in (0x10000000, 0x40000000):
    if libc.unshare(flags) == 0:
        raise RuntimeError(f"unshare({{flags:#x}}) works")
open("mine", "w").write("x"), os.mkdir("folder"), shutil.rmtree("folder"), os.remove("mine")
children = 0
try:
    for children in range({processes} + 100):
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
    raise RuntimeError(f"{{children}} processes")
except BlockingIOError:
    time.sleep(60)
"""


def run(job: dict[str, Any], protections: Protections, limits: Limits) -> dict[str, Any]:
    """Run one job.

    Args:
        job: `program` and `tests` (source code), `timeout` in seconds, `watched`: whether attempts count as such even
            if the program goes on after them, `shown`: bytes of the output that are wanted, 0 where it is missing.
        protections: What `prepare` found.
        limits: What the program may use.

    Returns:
        `verdict`, `passed` and `total` tests, `message`, and `output`: the beginning of what was printed.
    """
    uid, gid = os.getuid(), os.getgid()
    if protections.other_user:
        uid = gid = FIRST_UID + os.getpid() % (LAST_UID - FIRST_UID)
        uid = gid = uid if _mapped(uid) else NOBODY
    work = tempfile.mkdtemp(prefix="seqtune-code-")
    os.chown(work, uid, gid)
    pipes = {name: os.pipe() for name in ("report", "status", "output")}
    secrets = Secrets.fresh(len(job["tests"]))
    try:
        keeper = os.fork()
        if keeper == 0:
            try:
                ends = {name: ends[1] for name, ends in pipes.items()}
                _keep(job, protections, limits, work, (uid, gid), ends, secrets)
            finally:
                os._exit(70)
        for _, end in pipes.values():
            os.close(end)
        seen = _watch(keeper, {name: ends[0] for name, ends in pipes.items()}, job["timeout"], limits)
    finally:
        _remove(work)
    shown = seen.output[: job.get("shown", 0)].decode(errors="replace")
    return {**judge(seen, secrets), "output": shown}


def _remove(work: str) -> None:
    """Remove a job's folder; what lay in memory is gone already."""
    try:
        os.rmdir(work)
    except OSError:
        # Folders may lie deeper than Python recurses, and forbid even their owner to look into them.
        for command in (["chmod", "-R", "u+rwx", work], ["rm", "-rf", work]):
            subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


@dataclass(frozen=True)
class Secrets:
    """Words that only the jailer and the runner of a job know, all of one length.

    Args:
        tests: One for each test; written, they say that it passed.
        done: Says that all tests have run.
        note: Begins what is told about failures and attempts.
    """

    tests: tuple[bytes, ...]
    done: bytes
    note: bytes

    @classmethod
    def fresh(cls, tests: int) -> Secrets:
        """New ones for so many tests."""
        words = [os.urandom(16).hex().encode() for _ in range(tests + 2)]
        return cls(tuple(words[2:]), words[0], words[1])


def _mapped(uid: int) -> bool:
    """Whether this user exists in the user namespace we are in; a container may know few."""
    with open("/proc/self/uid_map") as file:
        ranges = [tuple(map(int, line.split())) for line in file]
    return any(first <= uid < first + count for first, _, count in ranges)


@dataclass
class Seen:
    """What the jailer saw of a job: why it killed it (or ""), the wait status of the program, report and output."""

    killed: str = ""
    status: int | None = None
    report: bytes = b""
    output: bytes = b""


def _watch(keeper: int, ends: dict[str, int], timeout: float, limits: Limits) -> Seen:
    """Wait for the end of a job, or bring it about; nothing of it runs afterwards."""
    seen = Seen()
    deadline = time.monotonic() + timeout
    mine = _resident(os.getpid())
    names = {end: name for name, end in ends.items()}
    open_ends, status = set(names), b""
    look = time.monotonic() + EVERY
    while not seen.killed and ends["status"] in open_ends:
        now = time.monotonic()
        if now >= deadline:
            seen.killed = "timeout"
            break
        ready, _, _ = select.select([*open_ends, 0], [], [], max(0.0, min(deadline, look) - now))
        for end in ready:
            if end == 0:  # a new line cannot come before our answer: the trainer is gone
                _kill(keeper)
                raise SystemExit
            part = os.read(end, 65536)
            if not part:
                open_ends.discard(end)
            elif names[end] == "status":
                status += part
            elif names[end] == "report":
                seen.report = (seen.report + part)[:REPORT]
            else:
                seen.output += part
                if len(seen.output) > limits.output:
                    seen.killed = "output"
        if time.monotonic() >= look:
            tasks, memory = _usage(keeper, mine)
            if tasks > limits.processes:
                seen.killed = "processes"
            elif memory > limits.memory:
                seen.killed = "memory"
            look = time.monotonic() + EVERY
    _kill(keeper)
    if not seen.killed:
        # What was written just before the end: bounded by what a pipe holds.
        seen.report += _rest(ends["report"])
        seen.output += _rest(ends["output"])
        if len(seen.output) > limits.output:
            seen.killed = "output"
    seen.status = int(status) if status else None
    for end in ends.values():
        os.close(end)
    return seen


def _rest(end: int) -> bytes:
    found = b""
    while select.select([end], [], [], 0)[0] and (part := os.read(end, 65536)):
        found += part
    return found


def _kill(keeper: int) -> None:
    """End everything a job started. With the keeper dies init, and with init its namespace; without one we hunt."""
    os.kill(keeper, signal.SIGKILL)
    while True:
        for pid in _below(os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:  # nobody is left: we adopt all orphans
            return
        time.sleep(0.0005)


def _below(pid: int) -> list[int]:
    """All descendants of a process, parents first."""
    found = [pid]
    for one in found:
        try:
            for task in os.listdir(f"/proc/{one}/task"):
                with open(f"/proc/{one}/task/{task}/children") as file:
                    found += map(int, file.read().split())
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
    return found[1:]


def _usage(keeper: int, mine: int) -> tuple[int, int]:
    """Threads of a job's processes, and bytes they hold beyond the `mine` each shares with the jailer."""
    tasks = memory = 0
    for pid in _below(keeper)[1:]:  # without init
        try:
            tasks += len(os.listdir(f"/proc/{pid}/task"))
        except FileNotFoundError:
            continue
        memory += max(0, _resident(pid) - mine)
    return tasks, memory


def _resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (FileNotFoundError, ProcessLookupError):
        return 0


def judge(seen: Seen, secrets: Secrets) -> dict[str, Any]:
    """The verdict on what was seen. Only lines of the report that hold a secret count.

    `passed`, `failed` (an assertion), `error` (another exception), `exited` (it ended before its tests had), `crashed`
    (by a signal), `timeout`, `memory`, `processes`, `output`, `disk`, `files` and `network` (it tried what it may not),
    `tampered` (it looked at, or into, what runs its tests).
    """
    lines = seen.report.split(b"\n")
    total, passed = len(secrets.tests), len(set(secrets.tests) & set(lines))
    notes = [_note(line[len(secrets.note) :]) for line in lines if line.startswith(secrets.note)]
    tried = [note["tried"] for note in notes if "tried" in note]
    faults = [note["fault"] for note in notes if "fault" in note]
    verdict, message = "exited", "the program ended before its tests had"
    if seen.killed:
        verdict, message = seen.killed, ""
    elif seen.status is None:
        verdict, message = "crashed", "the sandbox itself ended"
    elif os.WIFSIGNALED(seen.status):
        number = os.WTERMSIG(seen.status)
        known = {signal.SIGSYS: "network", signal.SIGXCPU: "timeout", signal.SIGKILL: "memory"}
        verdict = known.get(signal.Signals(number), "crashed")
        message = signal.Signals(number).name
    elif tried:
        verdict, message = tried[0]  # the first; what came of it does not matter
    elif faults:
        verdict, message = faults[0]
    elif secrets.done in lines and passed == total:
        verdict, message = "passed", ""
    if verdict == "tampered":
        passed = 0
    return {"verdict": verdict, "passed": passed, "total": total, "message": message}


def _note(text: bytes) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError:  # cut off where the report is
        return {}
    return found


# In the processes of a job


def _keep(
    job: dict[str, Any],
    protections: Protections,
    limits: Limits,
    work: str,
    user: tuple[int, int],
    ends: dict[str, int],
    secrets: Secrets,
) -> None:
    """The keeper, and below it init and the program; returns in none of them."""
    jailer = os.getppid()
    jail.die_with_parent()
    if os.getppid() != jailer:
        os._exit(70)
    if protections.namespaces:
        jail.unshare(jail.NEWPID | jail.NEWNS)
    init = os.fork()
    if init:
        os.waitpid(init, 0)
        os._exit(0)
    jail.die_with_parent()
    if protections.namespaces:
        jail.make_read_only(work, DISK, *user)
    else:
        jail.adopt_orphans()
    program = os.fork()
    if program == 0:
        leave = os._exit
        try:
            _confine(job, protections, limits, work, user, ends)
        except OSError as error:  # a protection that worked at the start does not now: the job must not run without it
            os.write(REPORT_TO, secrets.note + json.dumps({"fault": ("unprotected", str(error))}).encode() + b"\n")
            leave(71)
        try:
            _execute(job, work, secrets)
        finally:
            leave(71)
    while (ended := os.wait())[0] != program:
        continue
    os.write(ends["status"], str(ended[1]).encode())
    os._exit(0)


def _confine(
    job: dict[str, Any],
    protections: Protections,
    limits: Limits,
    work: str,
    user: tuple[int, int],
    ends: dict[str, int],
) -> None:
    """Give up everything. Afterwards 0 is empty, 1 and 2 are the output, 3 is the report, and nothing else is open."""
    os.setsid()
    os.umask(0o077)
    kept = [os.dup(ends[name]) for name in ("output", "output", "report")]
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    for place, end in enumerate(kept, start=1):
        os.dup2(end, place, inheritable=place < REPORT_TO)
    os.closerange(REPORT_TO + 1, 1 << 20)
    os.chdir(work)
    os.environ.clear()
    os.environ.update(HOME=work, TMPDIR=work, PATH="/usr/bin:/bin", LANG="C.UTF-8", OPENBLAS_NUM_THREADS="1")
    tempfile.tempdir = None
    tasks = limits.processes + SLACK
    if not protections.other_user and not protections.network:  # no namespace hides the user's other threads
        tasks += _tasks_of(user[0])
    for which, limit in (
        (resource.RLIMIT_AS, limits.memory),
        (resource.RLIMIT_CPU, math.ceil(job["timeout"]) + 1),
        (resource.RLIMIT_FSIZE, FILE_SIZE),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_NPROC, tasks),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        _, hard = resource.getrlimit(which)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(which, (limit, limit))
    if protections.other_user:
        jail.become(*user)
        if not protections.namespaces:
            jail.die_with_parent()
    jail.keep_capabilities(jail.READ_ANYTHING if protections.hidden else 0)
    jail.gain_nothing()
    if protections.landlock:
        jail.landlock(protections.landlock, list(protections.reading), [work, "/dev/null"])
    jail.filter_calls(protections.refused_calls())


def _tasks_of(uid: int) -> int:
    """Threads a user has."""
    found = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{name}").st_uid == uid:
                found += len(os.listdir(f"/proc/{name}/task"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


REPORT_TO = 3
"""The program's end of the report."""


def _execute(job: dict[str, Any], work: str, secrets: Secrets) -> None:
    """Run a program and its tests, report, and end the process.

    Whatever the program replaces in Python's modules, it replaces after we have fetched what decides here.
    """
    compiled, execute, write, getpid, leave, encoded = compile, exec, os.write, os.getpid, os._exit, json.dumps
    passes, done, note = [word + b"\n" for word in (b"", *secrets.tests)], secrets.done + b"\n", secrets.note
    unspeakable = note + encoded({"fault": ("error", "an exception that cannot be shown")}).encode() + b"\n"
    me = getpid()

    def say(line: bytes) -> None:
        if getpid() == me:  # not from a process the program forked
            write(REPORT_TO, line)

    def tell(**found: Any) -> None:
        say(note + encoded(found).encode() + b"\n")

    module = ModuleType("__main__")
    space = module.__dict__
    sys.modules["__main__"] = module
    sys.argv = ["program"]
    random.seed(0)
    if job["watched"]:
        sys.addaudithook(_watcher(work, bool(job["tests"]), tell))
    texts = [("the program", job["program"]), *((f"test {n}", text) for n, text in enumerate(job["tests"], start=1))]
    for number, (title, text) in enumerate(texts):
        try:
            execute(compiled(text, f"<{title}>", "exec"), space)
        except BaseException as error:  # a program may raise anything, and SystemExit is no success
            try:
                tell(fault=fault(error, title))
            except BaseException:  # its text raises, or the program broke what we need to tell it
                say(unspeakable)
            if number == 0:
                break
            continue
        if number:
            say(passes[number])
    say(done)
    try:
        sys.stdout.flush(), sys.stderr.flush()
    finally:
        leave(0)


def fault(error: BaseException, title: str) -> tuple[str, str]:
    """Verdict and message for what a program raised."""
    number = error.errno if isinstance(error, OSError) else None
    verdict = "error"
    if isinstance(error, AssertionError):
        verdict = "failed"
    elif isinstance(error, MemoryError) or number == errno.ENOMEM:
        return "memory", f"MemoryError in {title}"
    elif isinstance(error, SystemExit):
        verdict = "exited"
    elif number == errno.EAGAIN or "can't start new thread" in str(error):
        verdict = "processes"
    elif number in (errno.EFBIG, errno.ENOSPC, errno.EDQUOT):
        verdict = "disk"
    elif isinstance(error, OSError) and number in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename:
        verdict = "files"
    lines = [step.lineno for step in traceback.extract_tb(error.__traceback__) if step.filename == f"<{title}>"]
    place = f", line {lines[-1]}" if lines else ""
    return verdict, f"{type(error).__name__} in {title}{place}: {error}"[:MESSAGE]


CHANGING = ("os.remove", "os.rmdir", "os.rename", "os.truncate", "os.chmod", "os.chown", "os.mkdir", "os.link",
            "os.symlink", "shutil.rmtree", "shutil.move")  # fmt: skip
"""Audit events whose first argument is a path to be changed (https://docs.python.org/3/library/audit_events.html)."""


_FRAMES = ("tb_frame", "gi_frame", "cr_frame", "ag_frame")
_INSPECTING = ("sys._getframe", "sys._current_frames", "sys._current_exceptions", "sys.settrace", "sys.setprofile",
               "gc.get_objects", "gc.get_referrers", "gc.get_referents")  # fmt: skip
"""Audit events of attributes and functions that lead to the frames which run the tests, and to what those hold."""


def _watcher(work: str, tests: bool, tell: Any) -> Any:
    """An audit hook that reports attempts; with `tests` also looks at what runs them."""
    busy = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal busy
        if busy:  # what we do raises events too
            return
        busy = True
        try:
            _attempt(event, arguments, work, tell)
            if tests and (event in _INSPECTING or (event == "object.__getattr__" and arguments[1] in _FRAMES)):
                _inspection(event, work, tell)
        finally:
            busy = False

    return hook


def _inspection(event: str, work: str, tell: Any) -> None:
    """Report a look at frames if the program's own code takes it; logging, namedtuple and others do so for it."""
    frame = sys._getframe(2)
    while (
        event == "sys._getframe" and frame.f_back and frame.f_code.co_filename in (inspect.__file__, traceback.__file__)
    ):
        frame = frame.f_back
    file = frame.f_code.co_filename
    if file.startswith((work, "<")) and not file.startswith(("<frozen", "<test ")):
        tell(tried=("tampered", f"{event} in {file}"[:MESSAGE]))


def _attempt(event: str, arguments: tuple[Any, ...], work: str, tell: Any) -> None:
    """Report an attempt on the network or on files outside. It fails anyway; this gives it a name."""
    if event == "socket.__new__" and len(arguments) > 1 and arguments[1] != socket.AF_UNIX:
        tell(tried=("network", "socket"))
    changes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    changes = changes or (event in CHANGING and arguments[-1] in (-1, None, arguments[0]))  # no path within a folder
    if changes and isinstance(arguments[0], str | bytes):
        _outside(arguments[0], event, work, tell)


def _outside(path: str | bytes, event: str, work: str, tell: Any) -> None:
    full = os.path.realpath(os.fsdecode(path))
    if full not in (work, os.devnull) and not full.startswith(work + "/"):
        tell(tried=("files", f"{event} of {full}"[:MESSAGE]))


def main() -> None:
    """Say which protections hold, then run jobs until standard input ends."""
    limits = Limits(**json.loads(sys.argv[1]))
    jail.adopt_orphans() if sys.platform == "linux" else None
    for name in PRELOADED:
        importlib.import_module(name)
    try:
        protections = prepare()
        attack(protections, limits)
    except Refused as refusal:
        print(json.dumps({"refused": refusal.args[0], "hint": refusal.args[1]}), flush=True)
        return
    print(json.dumps({"protections": protections.active()}), flush=True)
    while line := sys.stdin.buffer.readline():
        print(json.dumps(run(json.loads(line), protections, limits)), flush=True)


if __name__ == "__main__":
    main()
