"""What a run leaves on disk survives being killed, and two processes never write one run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqtune.errors import SeqtuneError
from seqtune.report import run_folder
from seqtune.report.events import (
    Evaluated,
    Event,
    Notice,
    RunFinished,
    RunStarted,
    StageStarted,
    Step,
    from_json,
    to_json,
)
from seqtune.report.run_folder import RunFolder, encode, new_run_folder, write_atomic

if TYPE_CHECKING:
    from pathlib import Path


def rows(count: int) -> list[dict[str, object]]:
    return [{"stage": "sft", "step": step, "loss": 1.0 / (step + 1)} for step in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.create("recipe: x\n", {"recipe": "x"}, {"python": "3"})
    return made


def test_what_was_appended_is_read_back_in_order(folder: RunFolder) -> None:
    assert folder.metrics() == []
    for row in rows(3):
        folder.append_metrics(row)
    folder.append_samples(rows(2))
    assert folder.metrics() == rows(3)
    assert folder.samples() == rows(2)
    assert folder.lengths() == {"metrics": 3, "samples": 2}


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_cut_by_a_kill_is_no_row_and_the_next_append_replaces_it(folder: RunFolder, cut: int) -> None:
    for row in rows(2):
        folder.append_metrics(row)
    path = folder.path / "metrics.jsonl"
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    path.write_bytes(whole[: last + cut])
    assert folder.metrics() == rows(1)
    assert folder.lengths()["metrics"] == 1
    folder.append_metrics(rows(2)[1])
    assert path.read_bytes() == whole


def test_a_whole_object_without_its_line_break_is_still_torn(folder: RunFolder) -> None:
    """Otherwise reading would count a row that the next append removes."""
    (folder.path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}')
    assert folder.metrics() == [{"step": 1}]


def test_a_line_longer_than_a_block_is_found_from_the_end(folder: RunFolder) -> None:
    folder.append_samples([{"text": "a" * 10_000}])
    with (folder.path / "samples.jsonl").open("a") as file:
        file.write('{"text": "' + "b" * 9_000)
    folder.append_samples([{"text": "c"}])
    assert [row["text"][0] for row in folder.samples()] == ["a", "c"]


@pytest.mark.parametrize("broken", [b'{"step": ', b"[1]", b"\xff\xfe", b"", b"\x00\x00"])
def test_a_damaged_line_in_the_middle_is_an_error_with_file_and_line(folder: RunFolder, broken: bytes) -> None:
    (folder.path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + broken + b'\n{"step": 3}\n')
    with pytest.raises(SeqtuneError, match="not a JSON object") as caught:
        folder.metrics()
    assert caught.value.problems[0].where.endswith("metrics.jsonl:2")


def test_truncation_keeps_the_first_rows_and_drops_the_torn_line(folder: RunFolder) -> None:
    for row in rows(4):
        folder.append_metrics(row)
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"stage')
    folder.truncate_metrics(4)
    assert (folder.path / "metrics.jsonl").read_text().endswith("}\n")
    folder.truncate_metrics(2)
    assert folder.metrics() == rows(2)
    folder.truncate_samples(0)
    with pytest.raises(SeqtuneError, match="has 2 rows, but the checkpoint was written after 3"):
        folder.truncate_metrics(3)


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda x: st.lists(x, max_size=3))
)
def test_everything_written_is_strict_json_with_null_for_what_json_cannot_say(value: object) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    text = encode({"value": value})
    assert "\n" not in text
    again = json.loads(text, parse_constant=refuse)["value"]
    if not isinstance(value, list):
        assert again == (None if isinstance(value, float) and not np.isfinite(value) else value)


def test_numbers_of_numpy_and_what_is_not_a_number() -> None:
    row = {"a": np.float32(0.5), "b": np.array([1.0, np.inf]), "c": float("nan"), "d": np.int64(3)}
    assert json.loads(encode(row)) == {"a": 0.5, "b": [1.0, None], "c": None, "d": 3}
    with pytest.raises(TypeError, match="not JSON serializable"):
        encode({"a": object()})


def test_a_crash_while_writing_leaves_the_old_file(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write_json("deep/state.json", {"step": 1})

    def crash(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder.os, "fsync", crash)
    with pytest.raises(OSError, match="No space left"):
        folder.write_json("deep/state.json", {"step": 2})
    assert folder.read_json("deep/state.json") == {"step": 1}
    assert os.listdir(folder.path / "deep") == ["state.json"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    """The process dies after writing half of the new content: the name still means the old content."""
    path = tmp_path / "state.json"
    write_atomic(path, "old")
    code = (
        "import os, sys; from pathlib import Path; from seqtune.report import run_folder\n"
        "run_folder.os.fsync = lambda file: os.kill(os.getpid(), 9)\n"
        "run_folder.write_atomic(Path(sys.argv[1]), 'new' * 100)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    assert path.read_text() == "old"


def test_json_files_that_are_missing_or_damaged(folder: RunFolder) -> None:
    with pytest.raises(SeqtuneError, match=r"has no absent\.json"):
        folder.read_json("absent.json")
    (folder.path / "bad.json").write_text('{"a":\n oops}')
    with pytest.raises(SeqtuneError, match="not JSON") as caught:
        folder.read_json("bad.json")
    assert caught.value.problems[0].where.endswith("bad.json:2")


def test_the_plan_is_written_last(tmp_path: Path) -> None:
    """A folder with plan.yaml is complete; what fails before leaves none."""
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(TypeError):
        folder.create("recipe: x\n", {}, {"odd": object()})
    assert not (folder.path / "plan.yaml").exists()
    with pytest.raises(SeqtuneError, match=r"has no plan\.yaml"):
        folder.plan_text()


HOLD = """
import sys
from seqtune.errors import SeqtuneError
from seqtune.report.run_folder import RunFolder
try:
    with RunFolder(sys.argv[1]).lock():
        print("held", flush=True)
        sys.stdin.read()
except SeqtuneError as error:
    print("refused", error, flush=True)
"""


def test_two_processes_on_one_run_are_refused_and_a_killed_one_lets_go(folder: RunFolder) -> None:
    command = [sys.executable, "-c", HOLD, str(folder.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        second = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
        assert second.stdout.startswith(f"refused another process (pid {first.pid}) works on this run")
        with pytest.raises(SeqtuneError, match="another process"), folder.lock():
            pass
        first.kill()
    with folder.lock():
        assert (folder.path / ".lock").read_text() == f"pid {os.getpid()}"
    with folder.lock():
        pass


def test_new_folders_never_collide(workdir: Path) -> None:
    made = [new_run_folder("quickstart").path for _ in range(5)]
    assert len(set(made)) == 5
    assert all(path.is_dir() and path.parent.as_posix() == "runs/quickstart" for path in made)


def test_a_named_folder_must_be_empty(tmp_path: Path) -> None:
    assert new_run_folder("x", tmp_path / "new").path == tmp_path / "new"
    assert new_run_folder("x", tmp_path / "new").path.is_dir()
    (tmp_path / "new" / "plan.yaml").write_text("")
    with pytest.raises(SeqtuneError, match="is not empty") as caught:
        new_run_folder("x", tmp_path / "new")
    assert f"--resume {tmp_path / 'new'}" in caught.value.problems[0].hint
    (tmp_path / "file").write_text("")
    with pytest.raises(SeqtuneError, match="is a file"):
        new_run_folder("x", tmp_path / "file")


EVENTS: list[Event] = [
    RunStarted("runs/x", ("sft", "gspo")),
    StageStarted("sft", 0, 2, 100),
    Step({"stage": "sft", "step": 1, "loss": 0.5}, 100),
    Evaluated("sft", "untrained", {"accuracy": {"value": 0.1, "low": 0.0, "high": 0.2, "n": 10}}),
    Notice("look"),
    RunFinished("runs/x", 1.5),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_events_survive_json(event: Event) -> None:
    assert from_json(json.loads(json.dumps(to_json(event)))) == event


def test_recorded_events_reach_the_watcher_and_the_file_except_steps(folder: RunFolder) -> None:
    seen: list[Event] = []
    watch = folder.recording(seen.append)
    for event in EVENTS:
        watch(event)
    assert seen == EVENTS
    recorded = folder.events()
    assert [row["event"] for row in recorded] == [
        type(event).__name__ for event in EVENTS if not isinstance(event, Step)
    ]
    assert all(row.pop("time") for row in recorded)
    assert [from_json(row) for row in recorded] == [event for event in EVENTS if not isinstance(event, Step)]
