"""The sandbox: verdicts on honest programs, on hostile ones, and with each protection taken away."""

import gzip
import json
import os
import re
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from seqtune.errors import SeqtuneError
from seqtune.rewards.code import CodeExec, program_of
from seqtune.rewards.score import score
from seqtune.rewards.specs import CodeExec as CodeExecSpec
from seqtune.sandbox import jail

DATA = Path(os.environ.get("SEQTUNE_DATA", "../shared/data")) / "humaneval.jsonl.gz"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")


def sandbox(**fields) -> CodeExec:
    return CodeExecSpec(**{"timeout": 3.0, "memory": 512, **fields}).build()


@pytest.fixture(scope="module")
def box() -> CodeExec:
    return sandbox()


def verdict(box: CodeExec, program: str, tests: str | list[str] = "assert True"):
    [found] = box.verdicts(["p"], [textwrap.dedent(program)], tests=[tests])
    return found


# Honest programs


def test_the_protections_are_told(box) -> None:
    found = box.protections()
    assert {"system-call filter", "resource limits", "process watch"} <= set(found)
    assert {"landlock", "read-only mounts"} & set(found)
    assert ("own user" in found) == (os.getuid() == 0)


@pytest.mark.parametrize(
    ("program", "wanted"),
    [
        ("def f(x): return x + 1", "passed"),
        ("def f(x): return x", "failed"),
        ("def f(x): return 1 / 0", "error"),
        ("def f(x", "error"),
        ("import sys\nsys.exit(0)", "exited"),
        ("import os\nos._exit(0)", "exited"),
        ("import atexit, os\ndef f(x): os._exit(0)", "exited"),
        ("import ctypes\nctypes.string_at(0)", "crashed"),
        ("def f(x): return f(x)", "error"),
        ("", "error"),
        ("\N{SNOWMAN} = 1", "error"),
        ("# \N{SNOWMAN}\ndef f(x): return x + 1", "passed"),
    ],
)
def test_a_program_gets_the_verdict_it_earns(box, program: str, wanted: str) -> None:
    found = verdict(box, program, "assert f(1) == 2")
    assert (found.name, found.passed, found.total) == (wanted, int(wanted == "passed"), 1)


def test_what_it_says_names_the_line(box) -> None:
    found = verdict(box, "def f(x):\n    y = x\n    return y['a']", "f(1)")
    assert found.message == "TypeError in test 1, line 1: 'int' object is not subscriptable"


@pytest.mark.parametrize(
    "program",
    [
        "import asyncio\nasync def f(): return 1\nassert asyncio.run(f()) == 1",
        "from concurrent.futures import ThreadPoolExecutor as T\nwith T(8) as t: assert list(t.map(abs, [-1])) == [1]",
        "import subprocess\nassert subprocess.run(['/bin/echo', 'a'], capture_output=True).stdout == b'a\\n'",
        "import tempfile\nwith tempfile.NamedTemporaryFile() as f: f.write(b'1')",
        "import os, shutil\nos.mkdir('a'); open('a/b', 'w').write('1'); shutil.rmtree('a'); assert os.listdir() == []",
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nassert A(1) == A(1)",
        "import os\nif os.fork() == 0: pass",
        "assert __name__ == '__main__'",
    ],
)
def test_ordinary_means_work(box, program: str) -> None:
    found = verdict(box, program)
    assert (found.name, found.message) == ("passed", "")


def test_rows_do_not_see_each_other_and_chance_is_the_same_for_all(box) -> None:
    program = "import os, random\nassert os.listdir() == []\nopen('mine', 'w').write('1')\nprint(random.random())"
    assert [verdict(box, program).name for _ in range(2)] == ["passed", "passed"]
    draw = "import random\nassert random.random() == 0.8444218515250481 and hash('a') == "
    probe = verdict(box, "raise ValueError(hash('a'))").message.rpartition(" ")[2]
    assert verdict(box, draw + probe).name == "passed"


def test_scores_are_all_or_the_share_of_tests() -> None:
    rows = ["def f(x): return x", "def f(x): return 0", "while True: pass"]
    tests = [["assert f(0) == 0", "assert f(1) == 1", "assert f(2) == 2"]] * 3
    assert score(sandbox(timeout=1.0), ["p"] * 3, rows, {"tests": tests}) == [1, 0, 0]
    assert score(sandbox(timeout=1.0, partial=True), ["p"] * 3, rows, {"tests": tests}) == [1, 1 / 3, 0]


def test_a_row_without_tests_is_not_scored_and_a_missing_column_is_named(box) -> None:
    assert score(box, ["p"] * 4, ["x = 1"] * 4, {"tests": [None, [], "", ["\n", " "]]}) == [None] * 4
    with pytest.raises(SeqtuneError, match="column 'tests'"):
        score(box, ["p"], ["x"], {"answer": ["1"]})


@pytest.mark.parametrize(
    ("tests", "problem"),
    [
        ('{"inputs": [1], "outputs": [true]}', "is a value, not a program"),
        ("[(1, 2), (3, 4)]", "is a value, not a program"),
        ("f(1) =", "is not Python"),
        (["assert True", "'f'"], "is a value"),
        ({"inputs": [1]}, "are a program or a list of programs"),
        ([1], "are a program or a list of programs"),
    ],
)
def test_what_can_fail_no_program_is_no_test(box, tests, problem: str) -> None:
    with pytest.raises(SeqtuneError, match=problem) as caught:
        score(box, ["p"] * 2, ["x = 1"] * 2, {"tests": ["assert True", tests]})
    assert caught.value.problems[0].where == "row 1, column 'tests'"


def test_a_check_is_called_with_the_entry_point(box) -> None:
    check = "def check(candidate):\n    assert candidate(1) == 2"
    programs = ["def f(x): return x + 1", "def f(x): return x"]
    for columns in ({"tests": [check] * 2, "entry_point": ["f"] * 2}, {"tests": [f"{check}\ncheck(f)"] * 2}):
        assert score(box, ["p"] * 2, programs, columns) == [1, 0]
    with pytest.raises(SeqtuneError, match="nothing calls it") as caught:
        score(box, ["p"], programs[:1], {"tests": [check]})
    assert "entry_point" in caught.value.problems[0].hint


def test_several_rows_run_at_a_time_and_keep_their_places() -> None:
    box = sandbox(workers=3)
    rows = [f"import time\ntime.sleep(0.5)\nx = {n}" for n in range(6)]
    started = time.monotonic()
    assert score(box, ["p"] * 6, rows, {"tests": [f"assert x == {n % 4}" for n in range(6)]}) == [1, 1, 1, 1, 0, 0]
    assert time.monotonic() - started < 2.9  # six in a row sleep for three seconds


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        ("x = 1", "x = 1"),
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```py\nx = 1\n```\nbetter:\n```\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1", "```python\nx = 1"),
        ("```bash\nls\n```", "```bash\nls\n```"),
        ("```bash\nls\n```\nthen\n```python\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1\n```\nprints\n```text\n1\n```", "x = 1\n"),
        ("```python\nx = \n```python\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1\n```\n```python\nx =", "x = 1\n"),
        ("1. So:\n   ```Python {.numbered}\n   if x:\n       y = 1\n   ```", "if x:\n    y = 1\n"),
        ("```python\n    return 1\n```", "    return 1\n"),
        ("```\r\nx = 1\r\n```\r\n", "x = 1\r\n"),
        ("x = '```'", "x = '```'"),
        ("", ""),
    ],
)
def test_the_program_is_the_last_block_of_python(completion: str, program: str) -> None:
    assert program_of(completion) == program


def test_many_open_fences_take_no_time() -> None:
    started = time.monotonic()
    assert program_of("```python\nx\n" * 30_000).startswith("```python")
    assert time.monotonic() - started < 2


# Hostile programs


FORK_STORM = """
    import os, time
    for _ in range(200):  # a bound of its own, should the sandbox have none
        try:
            if os.fork() == 0:
                time.sleep(20)
                os._exit(0)
        except OSError:
            time.sleep(0.01)
"""
HOSTILE = {
    "endless loop": ("while True: pass", "timeout"),
    "sleep": ("import time\ntime.sleep(1000)", "timeout"),
    "a child that outlives it": ("import os, time\nif os.fork() == 0:\n    time.sleep(1000)", "passed"),
    "fork storm": (FORK_STORM, "processes"),
    "fork storm of orphans": (
        FORK_STORM.replace("if os.fork() == 0:", "if os.fork() == 0 and os.fork() == 0:"),
        "processes",
    ),
    "threads": (
        "import threading, time\nfor _ in range(200): threading.Thread(target=time.sleep, args=(20,)).start()",
        "processes",
    ),
    "10 GB": ("x = bytearray(10 * 2**30)", "memory"),
    "memory in small pieces": ("x = []\nwhile True: x.append(bytearray(10**6))", "memory"),
    "memory of many": (
        "import os\nfor _ in range(5):\n    if os.fork() == 0: break\nx = b'1' * (150 * 2**20)\nwhile True: pass",
        "memory",
    ),
    "endless output": ("while True: print('x' * 1000)", "output"),
    "endless output of a child": ("import subprocess\nsubprocess.run(['yes'])", "output"),
    "a large file": ("with open('x', 'wb') as f:\n    while True: f.write(b'x' * 10**6)", "disk"),
    "deleting a file": ("import os\nos.remove({victim!r})", "files"),
    "deleting a folder quietly": ("import shutil\nshutil.rmtree({folder!r}, ignore_errors=True)", "files"),
    "emptying a file": ("open({victim!r}, 'w')", "files"),
    "a socket": ("import socket\nsocket.socket()", "network"),
    "a socket, caught": ("import socket\ntry: socket.socket()\nexcept BaseException: pass", "network"),
    "a web page": ("import urllib.request\nurllib.request.urlopen('http://127.0.0.1:{port}')", "network"),
    "files of no folder": ("import os\nos.memfd_create('x')", "error"),
    "datagrams": ("import socket\nsocket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)", "error"),
    "a look at processes": (
        "import os\ntry: print(found := os.listdir('/proc'))\nexcept OSError: found = []\n"
        "assert not any(map(str.isdigit, found))",
        "passed",
    ),
    "folders in folders": ("import os\nfor _ in range(1200):\n    os.mkdir('a')\n    os.chdir('a')", "passed"),
    "a folder nobody may read": ("import os\nos.mkdir('a', 0o300)\nopen('a/b', 'w').write('1')", "passed"),
}


@pytest.fixture
def victim(tmp_path) -> Path:
    """A file anybody may change, in a folder anybody may change."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "victim").write_text("alive")
    (folder / "victim").chmod(0o666)
    for place in (folder, *folder.parents):
        if place.owner() == folder.owner() and place != Path("/") and "pytest" in str(place):
            place.chmod(0o777)
    return folder / "victim"


def unharmed(victim: Path) -> bool:
    return (
        os.listdir(victim.parent) == ["victim"]
        and victim.read_text() == "alive"
        and victim.stat().st_mode & 0o777 == 0o666
    )


@pytest.mark.parametrize("attack", HOSTILE)
def test_hostile_programs_are_stopped_and_named(box, victim, attack: str) -> None:
    program, wanted = HOSTILE[attack]
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.01)
        program = textwrap.dedent(program).format(
            victim=str(victim), folder=str(victim.parent), port=server.getsockname()[1]
        )
        started = time.monotonic()
        assert verdict(box, program).name == wanted
        assert time.monotonic() - started < 8
        with pytest.raises(TimeoutError):
            server.accept()
    assert unharmed(victim)
    assert descendants() <= 2  # the jailer, and nothing of the program
    assert verdict(box, "x = 1").name == "passed"


def descendants() -> int:
    found = subprocess.run(["ps", "-e", "-o", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in found.splitlines()[1:]]
    mine = {os.getpid()}
    for _ in range(10):
        mine |= {int(pid) for pid, parent, _ in rows if int(parent) in mine}
    return sum(int(pid) in mine and "jailer" in args for pid, _, args in rows)


@pytest.mark.parametrize(
    "program",
    [
        "import subprocess\nsubprocess.run(['rm', '-rf', {folder!r}])",
        "import ctypes\nctypes.CDLL(None).unlink({victim!r}.encode())",
        "import ctypes\nctypes.CDLL(None).chmod({victim!r}.encode(), 0)",
        "import ctypes\nctypes.CDLL(None).truncate({victim!r}.encode(), 0)",
        "import ctypes\nctypes.CDLL(None).mkdir({folder!r}.encode() + b'/x', 0o777)",
        "import ctypes\nctypes.CDLL(None).kill({pid}, 9)",
        "import ctypes\nctypes.CDLL(None).kill(-1, 9)",
    ],
)
def test_attempts_past_python_fail_too(box, victim, program: str) -> None:
    verdict(box, program.format(victim=str(victim), folder=str(victim.parent), pid=os.getpid()))
    assert unharmed(victim)


@pytest.mark.parametrize(
    "program",
    [
        "assert os.getuid() != 0",
        "assert ctypes.CDLL(None).unshare(0x10000000) == -1",
        "assert ctypes.CDLL(None).socket(1, 1, 0) == -1",
        "assert ctypes.CDLL(None).shmget(0, 4096, 0o1600) == ctypes.CDLL(None).msgget(0, 0o1600) == -1",
        "assert ctypes.CDLL(None).prlimit(os.getppid(), 7, None, ctypes.create_string_buffer(16)) == -1",
        "import resource\nassert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)",
        "import socket\na, b = socket.socketpair()\na.send(b'x')\nassert b.recv(1) == b'x'",
        "assert os.environ['HOME'] == os.environ['TMPDIR'] == os.getcwd()",
        "for end in range(4, 100):\n    try: os.fstat(end)\n    except OSError: continue\n    assert False, end",
        "assert not set(os.environ) & {{'SECRET', 'USER', 'SSH_AUTH_SOCK'}}",
        "try: open({victim!r})\nexcept OSError: pass\nelse: assert {readable}",
    ],
)
def test_a_program_has_little(box, victim, program: str, monkeypatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    program = program.format(victim=str(victim), readable="landlock" not in box.protections())
    assert verdict(box, f"import ctypes, os\n{program}").name == "passed"


WALK = """
import {modules}
frame = {frame}
while frame and 'passes' not in frame.f_locals:
    frame = frame.f_back
if frame:
    [os.write(3, line) for line in (*frame.f_locals['passes'], frame.f_locals['done'])]
os._exit(0)
"""
FORGED = {
    "a report": ("import os\nos.write(3, b'passed\\ndone\\n')\nos._exit(0)", "exited"),
    "a report too deep to read": ("import os\nos.write(3, b'[' * 60000)\nos._exit(0)", "exited"),
    "no report": ("import os\nos.close(3)", "exited"),
    "exec": ("import builtins\nbuiltins.exec = lambda *given: None", "failed"),
    "compile": ("import builtins\nold = compile\nbuiltins.compile = lambda *given: old('', '', 'exec')", "failed"),
    "json": ("import json\njson.dumps = lambda found: ''", "failed"),
    "os": ("import os\nos.write = os._exit = os.getpid = lambda *given: 0", "failed"),
    "AssertionError": ("import builtins\nclass E(Exception): pass\nbuiltins.AssertionError = E", "error"),
    "frames": (WALK.format(modules="os, sys", frame="sys._getframe()"), "tampered"),
    "inspect": (WALK.format(modules="os, inspect", frame="inspect.currentframe()"), "tampered"),
    "all frames": (WALK.format(modules="os, sys", frame="[*sys._current_frames().values()][0]"), "tampered"),
    "a traceback": (
        "import os\ntry: 1 / 0\nexcept Exception as error: trace = error.__traceback__\n"
        + WALK.format(modules="os", frame="trace.tb_frame"),
        "tampered",
    ),
    "a generator": ("def f():\n    frame = g.gi_frame.f_back\n    yield\ng = f()\nnext(g)", "tampered"),
    "the collector": ("import gc\ngc.get_objects()", "tampered"),
    "a tracer": ("import sys\nsys.settrace(lambda *given: None)", "tampered"),
    "very often": ("import sys\nfor _ in range(20_000): sys._getframe()", "tampered"),
    "in a function": ("import sys\ndef f(): return sys._getframe(1).f_code.co_consts", "tampered"),
    "raising": ("class E(Exception):\n    def __str__(self): raise OSError(1, 'x')\nraise E", "error"),
}


@pytest.mark.parametrize("forged", FORGED)
def test_a_program_that_fails_its_tests_cannot_say_otherwise(box, forged: str) -> None:
    program, wanted = FORGED[forged]
    found = verdict(box, program, "f() if 'f' in globals() else None\nassert False")
    assert (found.name, found.passed) == (wanted, 0)


@pytest.mark.parametrize(
    "program",
    [
        "from collections import namedtuple\nassert namedtuple('P', 'x')(1).x == 1",
        "import logging\nlogging.warning('x')",
        "import traceback\ntry: 1 / 0\nexcept ZeroDivisionError: traceback.print_exc()",
        "import dataclasses, enum, typing\nenum.Enum('E', 'A B')\ntyping.NamedTuple('N', [('a', int)])",
        "import contextlib\n@contextlib.contextmanager\ndef f(): yield 1\nwith f() as x: assert x == 1",
        "import warnings\nwarnings.warn('x')",
    ],
)
def test_libraries_that_look_at_frames_are_no_tampering(box, program: str) -> None:
    assert verdict(box, program).name == "passed"


def test_a_token_seen_for_one_test_is_none_for_the_next(box) -> None:
    """The program listens in on its own report: what says that the first test passed says nothing about the second."""
    program = """
    import os
    reader, writer = os.pipe()
    real = os.dup(3)
    os.dup2(writer, 3)
    def f():
        line = os.read(reader, 100)
        os.write(real, line + line)
        os._exit(0)
    """
    found = verdict(box, program, ["assert True", "f()", "assert False"])
    assert (found.name, found.passed) == ("exited", 1)


def test_a_program_cannot_stop_the_run_it_is_scored_for(box) -> None:
    """An OSError of ours would mean that a protection is gone, and end the training."""
    raising = "class E(Exception):\n    def __str__(self): raise OSError(1, 'x')\nraise E"
    flooding = "import os\nos.write(3, b'[' * 60000 + b'\\n')"
    assert score(box, ["p"] * 2, [raising, flooding], {"tests": ["assert True"] * 2}) == [0, 1]


def test_the_jailer_ends_with_its_owner_and_leaves_nothing(tmp_path, monkeypatch) -> None:
    code = """
import os, sys
from seqtune.rewards.specs import CodeExec
box = CodeExec(timeout=60.0).build()
print(box.protections() and box.programs.pool.children[0]._process.pid, flush=True)
box(["p"], ["import time\\ntime.sleep(1000)"], tests=["x"])
"""
    owner = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert owner.stdout is not None
    jailer = int(owner.stdout.readline())
    time.sleep(0.5)
    owner.kill()
    owner.wait()
    owner.stdout.close()
    for _ in range(100):
        if not Path(f"/proc/{jailer}").exists() or "State:\tZ" in Path(f"/proc/{jailer}/status").read_text():
            break
        time.sleep(0.05)
    else:
        pytest.fail("the jailer lives on")


# Without this or that protection

LAYERS = """
import dataclasses, json, sys
from seqtune.sandbox import jail, jailer
without, attacks = map(json.loads, sys.argv[1:])
limits = jailer.Limits(2**29, 64, 2**20)
jail.adopt_orphans()
protections = jailer.prepare()
protections = dataclasses.replace(protections, **without)
jailer.attack(protections, limits)
common = {"tests": [], "timeout": 3.0, "watched": True}
found = {name: jailer.run({"program": one, **common}, protections, limits) for name, one in attacks.items()}
print(json.dumps({name: one["verdict"] for name, one in found.items()}))
"""


def layered(without: dict, victim: Path, *, prefix: tuple[str, ...] = ()) -> dict[str, str]:
    attacks = {
        name: textwrap.dedent(program).format(victim=str(victim), folder=str(victim.parent), port=9)
        for name, (program, _) in HOSTILE.items()
    }
    command = [*prefix, sys.executable, "-P", "-c", LAYERS, json.dumps(without), json.dumps(attacks)]
    scratch = victim.parent.parent / "scratch"
    scratch.mkdir()
    scratch.chmod(0o777)
    # Its input stays open: a jailer whose input ends stops working.
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    try:
        process.wait(120)
        assert process.stdout is not None
        assert process.stderr is not None
        output, errors = process.stdout.read(), process.stderr.read()
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, errors
    assert [name for name in os.listdir(scratch) if name.startswith("seqtune")] == []
    found: dict[str, str] = json.loads(output)
    return found


WANTED = {name: wanted for name, (_, wanted) in HOSTILE.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "without", [{"namespaces": False, "network": False}, {"landlock": 0}], ids=["no namespaces", "no Landlock"]
)
def test_no_single_mechanism_is_relied_on(box, victim, without: dict) -> None:
    needed = {"namespaces": "landlock", "landlock": "read-only mounts"}[next(iter(without))]
    if needed not in box.protections():
        pytest.skip(f"this kernel has no {needed}")
    assert layered(without, victim) == WANTED
    assert unharmed(victim)


def as_another_user() -> tuple[str, ...]:
    """A command that runs the rest of its line as a user who is not root, Python's folder made readable for it."""
    python = Path(sys.base_prefix)
    script = (
        'set -e; shown=$(mktemp -d); mount --bind "$0" "$shown"; '
        'top=/$(echo "$0" | cut -d/ -f2); mount -t tmpfs -o mode=755 none "$top"; mkdir -p "$0"; '
        'mount --move "$shown" "$0"; exec setpriv --reuid 12345 --regid 12345 --clear-groups "$@"'
    )
    hidden = [] if python.is_relative_to("/usr") else ["unshare", "-m", "sh", "-c", script, str(python)]
    return tuple(hidden or ["setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups"])


@pytest.mark.slow
@pytest.mark.parametrize("without", [{}, {"namespaces": False, "network": False}], ids=["all", "no namespaces"])
def test_another_user_is_as_safe_as_root(victim, without: dict) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become another user; the other tests ran as one")
    prefix = as_another_user()
    probe = subprocess.run(
        [*prefix, sys.executable, "-c", "import os; print(os.getuid())"], capture_output=True, text=True
    )
    if probe.stdout.strip() != "12345":
        pytest.skip(f"this machine does not let us: {probe.stderr.strip()}")
    assert layered(without, victim, prefix=prefix) == WANTED
    assert unharmed(victim)


@pytest.mark.parametrize(
    ("machine", "header"),
    [("x86_64", "x86_64-linux-gnu/asm/unistd_64.h"), ("aarch64", "asm-generic/unistd.h")],
)
def test_system_calls_have_the_numbers_of_the_kernel(machine: str, header: str) -> None:
    """A wrong number would refuse another call and let this one through."""
    path = Path("/usr/include", header)
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    known = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)", path.read_text())}
    ours = jail.MACHINES[machine][1] | jail._BOTH
    assert {name: known[name] for name in ours if name in known} == {n: ours[n] for n in ours if n in known}
    assert len(set(ours) & set(known)) > len(ours) - 6  # calls that are younger than the header


FILTERED = """
import fcntl, os, resource, socket, struct
from seqtune.sandbox import jail
reader, _ = os.pipe()
local, _ = socket.socketpair()
jail.gain_nothing()
jail.filter_calls((*jail.SIGNALS, *jail.SCHEDULING, *jail.ATTRIBUTES, *jail.UNCOUNTED))
me, other = os.getpid(), os.getppid()
for what, *given in (
    (os.kill, other, 0), (fcntl.fcntl, reader, fcntl.F_SETOWN, other), (fcntl.ioctl, local, 0x8901, other),
    (os.setpriority, os.PRIO_PROCESS, other, 1), (os.sched_setaffinity, other, {0}), (os.memfd_create, "x"),
    (resource.prlimit, other, resource.RLIMIT_CORE), (os.chmod, ".", 0o700),
):
    try: what(*given)
    except PermissionError: continue
    print(what.__name__, given)
fcntl.fcntl(reader, fcntl.F_SETFL, fcntl.fcntl(reader, fcntl.F_GETFL) | os.O_NONBLOCK)
fcntl.ioctl(reader, 0x541B, bytearray(4))  # FIONREAD
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
print("end")
"""


def test_the_filter_alone_keeps_a_program_from_processes_of_its_user() -> None:
    """What holds without namespaces, another user and Landlock's scope for signals."""
    found = subprocess.run([sys.executable, "-c", FILTERED], capture_output=True, text=True)
    assert (found.stdout, found.stderr) == ("end\n", "")


def test_a_machine_without_the_essentials_is_refused(tmp_path) -> None:
    code = (
        "import sys; from seqtune.sandbox import jail, jailer; jail.landlock_version = lambda: 0\n"
        "def refused(flags): raise PermissionError(1, 'no')\n"
        "jail.unshare = refused\n"
        'sys.argv[1:] = [\'{"memory": 1000000000, "processes": 64, "output": 1000}\']; jailer.main()'
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert json.loads(found.stdout)["refused"].startswith(("neither Landlock", "Python lies in"))


def test_a_refusal_reaches_the_user(monkeypatch) -> None:
    box = sandbox(processes=64)
    jailer = box.programs.pool.children[0]
    jailer._command = [sys.executable, "-c", 'print(\'{"refused": "no locks", "hint": "buy some"}\')']
    with pytest.raises(SeqtuneError, match="the sandbox for code refuses: no locks") as caught:
        verdict(box, "x = 1")
    assert caught.value.problems[0].hint == "buy some"


# HumanEval


@pytest.fixture(scope="module")
def problems() -> list[dict]:
    if not DATA.is_file():
        pytest.skip(f"{DATA} is not here (SEQTUNE_DATA)")
    with gzip.open(DATA, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.slow
def test_all_solutions_of_human_eval_pass_and_broken_ones_fail(problems) -> None:
    """Broken: the solution's function answers with a fresh object, which equals nothing and cannot be computed with."""
    box = sandbox(continues=True, tests="test", timeout=20.0, memory=1024)
    broken = [
        f"{one['canonical_solution']}\n\ndef {one['entry_point']}(*given):\n    return object()\n" for one in problems
    ]
    columns = {key: [one[key] for one in problems] for key in ("test", "entry_point")}
    prompts = [one["prompt"] for one in problems]
    assert len(problems) == 164
    assert score(box, prompts, [one["canonical_solution"] for one in problems], columns) == [1] * 164
    found = box.verdicts(prompts, broken, **columns)
    assert [one for one in found if one is None or one.name not in ("failed", "error")] == []
