import os
import resource
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from seqtune.errors import SeqtuneError
from seqtune.rewards.score import score
from seqtune.rewards.specs import Custom
from seqtune.sandbox.child import Child

SOURCE = """
from dataclasses import dataclass

@dataclass
class Row:
    text: str

def length(completions):
    return [float(len(Row(text).text)) for text in completions]

def everything(prompts, completions, **columns):
    return [float(len(columns)) for _ in completions]

def named(completions, answer, *, bonus=None):
    return [float(a == c) + (bonus is not None) for a, c in zip(answer, completions)]

weight = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def test_a_function_in_a_file_gets_the_columns_its_signature_takes(file: Path) -> None:
    def call(name: str, **columns: list[object]) -> list[float]:
        return Custom(name=f"{file}:{name}").build()(["p", "q"], ["ab", "c"], **columns)

    assert call("length", answer=["ab", "x"]) == [2, 1]
    assert call("everything", answer=["ab", "x"], level=[1, 2]) == [2, 2]
    assert call("named", answer=["ab", "x"], level=[1, 2]) == [1, 0]
    assert call("named", answer=["ab", "x"], bonus=[1, 2]) == [2, 1]


def test_a_missing_column_is_named(file: Path) -> None:
    with pytest.raises(SeqtuneError, match="wants 'answer', which is no column") as caught:
        Custom(name=f"{file}:named").build()(["p"], ["a"], answers=["a"])
    assert "did you mean 'answers'" in caught.value.problems[0].hint


def test_a_relative_path_starts_at_the_working_directory(file: Path, monkeypatch) -> None:
    monkeypatch.chdir(file.parent)
    assert Custom(name="mine.py:length").build()(["p"], ["abc"]) == [3]


def test_a_function_in_a_module(file: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(file.parent))
    assert Custom(name="mine:length").build()(["p"], ["abc"]) == [3]
    monkeypatch.delitem(sys.modules, "mine")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_imports_what_lies_beside_it(tmp_path: Path, workers: int, monkeypatch) -> None:
    folder = tmp_path / "with a space"
    folder.mkdir()
    (folder / "beside_the_reward.py").write_text("K = 2.0\n")
    (folder / "json.py").write_text("raise ImportError('hides a module of Python')\n")
    (folder / "mine.py").write_text("import json\nfrom beside_the_reward import K\ndef f(completions): return [K]\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert pooled(f"{folder}/mine.py:f", ["a"], workers=workers) == [2]
    monkeypatch.delitem(sys.modules, "beside_the_reward", raising=False)


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    source = "import sys\nVALUE = {}\ndef value(completions):\n    return [sys.modules[__name__].VALUE]\n"
    rewards = []
    for number, folder in enumerate(("one", "two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(source.format(number))
        rewards.append(Custom(name=f"{tmp_path / folder / 'mine.py'}:value").build())
    assert [reward(["p"], ["abc"]) for reward in rewards] == [[0], [1]]


@pytest.mark.parametrize(
    ("name", "problem", "hint"),
    [
        ("{folder}/none.py:length", "there is no file '{folder}/none.py'", "relative to the working directory"),
        ("{folder}/mine.py:lenght", "has no function 'lenght'", "did you mean 'length'"),
        ("{folder}/mine.py:weight", "'weight' of '{folder}/mine.py' cannot be called", ""),
        ("{folder}/broken.py:length", "fails with SyntaxError", ""),
        ("{folder}/raising.py:length", "fails with ZeroDivisionError: division by zero", ""),
        ("{folder}/leaving.py:length", "fails with SystemExit", ""),
        ("{folder}/relative.py:length", "fails with ImportError", "`import helper`"),
        ("no_such_package_here:length", "No module named 'no_such_package_here'", "path/to/file.py:function"),
    ],
)
def test_what_cannot_be_loaded_is_named(file: Path, name: str, problem: str, hint: str) -> None:
    (file.parent / "broken.py").write_text("def length(:\n")
    (file.parent / "raising.py").write_text("1 / 0\n")
    (file.parent / "leaving.py").write_text("raise SystemExit\n")
    (file.parent / "relative.py").write_text("from . import mine\n")
    with pytest.raises(SeqtuneError) as caught:
        Custom(name=name.format(folder=file.parent)).build()
    found = caught.value.problems[0]
    assert problem.format(folder=file.parent) in found.problem
    assert hint in found.hint
    assert found.where.startswith("reward.name=")


def test_a_module_that_fails_is_named(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "failing_reward_module.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SeqtuneError, match="'failing_reward_module' fails with ZeroDivisionError"):
        Custom(name="failing_reward_module:f").build()


@pytest.mark.parametrize("name", ["length", ":length", "mine:", "mine:a b", "mine.py"])
def test_a_name_that_is_no_place_and_function_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        Custom(name=name)


# Processes and time


FILE = """
import asyncio, os, sys, time

def leaving(completions):
    sys.exit()

def reading(completions):
    return [float(len(sys.stdin.readline())) for _ in completions]

async def impatient(completions):
    raise TimeoutError("the judge is silent")

def pid(completions):
    print("not an answer")
    return [float(os.getpid()) for _ in completions]

def sleeping(completions):
    time.sleep(float(completions[0]))
    return [float(c) for c in completions]

def dying(completions):
    if completions == ["die"]:
        os._exit(1)
    return [1.0 for _ in completions]

def ranks(completions):
    return [[1.0, 2.0] for _ in completions]

def failing(completions, answer):
    return [1 / a for a in answer]

async def waiting(completions):
    await asyncio.sleep(float(completions[0]))
    return [1.0 for _ in completions]
"""


@pytest.fixture
def rewards(tmp_path) -> str:
    (tmp_path / "mine.py").write_text(FILE)
    return str(tmp_path / "mine.py")


def pooled(name: str, completions: list[str], *, vectors: bool = False, **fields):
    columns = fields.pop("columns", {})
    return score(Custom(name=name, **fields).build(), ["p"] * len(completions), completions, columns, vectors=vectors)


def test_workers_are_processes_of_their_own_whose_prints_do_no_harm(rewards) -> None:
    found = pooled(f"{rewards}:pid", ["a"] * 6, workers=2)
    assert len(set(found)) <= 2
    assert os.getpid() not in found


def test_a_row_that_is_late_is_not_scored_and_the_others_are(rewards) -> None:
    assert pooled(f"{rewards}:sleeping", ["0.01", "30", "0.02"], workers=1, timeout=1.0) == [0.01, None, 0.02]


def test_a_row_that_ends_its_process_is_not_scored(rewards) -> None:
    assert pooled(f"{rewards}:dying", ["live", "die", "live"], workers=1) == [1, None, 1]


def test_workers_hand_lists_and_coroutines_through(rewards) -> None:
    assert pooled(f"{rewards}:ranks", ["a", "b"], workers=1, vectors=True) == [[1, 2]] * 2
    assert pooled(f"{rewards}:waiting", ["0"], workers=1) == [1]


def test_a_worker_that_fails_names_the_row(rewards) -> None:
    with pytest.raises(SeqtuneError, match="ZeroDivisionError") as caught:
        pooled(f"{rewards}:failing", ["a", "b"], workers=1, columns={"answer": [1, 0]})
    assert caught.value.problems[0].where == "row 1, prompt 'p'"


def test_a_worker_that_leaves_or_reads_its_input_is_no_silent_none(rewards) -> None:
    with pytest.raises(SeqtuneError, match="raised SystemExit"):
        pooled(f"{rewards}:leaving", ["a"], workers=1)
    assert pooled(f"{rewards}:reading", ["a", "b"], workers=1, timeout=20.0) == [0, 0]


def test_a_worker_that_cannot_load_the_function_says_so(rewards) -> None:
    with pytest.raises(SeqtuneError, match="has no function 'pidd'"):
        pooled(f"{rewards}:pidd", ["a"], workers=1)


def test_columns_that_are_no_json_are_refused(rewards) -> None:
    with pytest.raises(SeqtuneError, match=r"reward\.workers"):
        pooled(f"{rewards}:ranks", ["a"], workers=1, columns={"answer": [object()]})


def test_a_coroutine_has_a_time_of_its_own(rewards) -> None:
    assert pooled(f"{rewards}:waiting", ["0", "0"], timeout=5.0) == [1, 1]
    with pytest.raises(SeqtuneError, match=r"took more than 0\.05 s for 1 completions"):
        pooled(f"{rewards}:waiting", ["30"], timeout=0.05)
    with pytest.raises(SeqtuneError, match="raised TimeoutError: the judge is silent"):
        pooled(f"{rewards}:impatient", ["0"], timeout=5.0)
    with pytest.raises(SeqtuneError, match="nothing can interrupt it"):
        pooled(f"{rewards}:pid", ["0"], timeout=0.05)


def test_a_process_with_many_open_files_still_asks(rewards) -> None:
    """`select.select` refuses files from number 1024 on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1400:
        pytest.skip("this user may not open so many files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1400), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert pooled(f"{rewards}:sleeping", ["0.01"], workers=1, timeout=20.0) == [0.01]
    finally:
        for one in held:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_late_rows_leave_no_process_and_no_file() -> None:
    child = Child("none", purpose="p", where="w")
    child._command = [sys.executable, "-S", "-E", "-c", "import time; print(1, flush=True); time.sleep(60)"]
    assert child.ask("x", 0.01) is None
    files = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    for _ in range(50):
        assert child.ask("x", 0.001) is None
    assert child._process is not None
    assert child._process.poll() is not None
    assert len(os.listdir("/proc/self/fd") if files else []) == len(files)
