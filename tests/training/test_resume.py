"""A run that is killed and resumed equals one that was not, bit for bit."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny_plans import comparable, create, main, plan_of, stage, weights, write_data

from seqtune.errors import SeqtuneError
from seqtune.peft.specs import Lora
from seqtune.training.recorder import COMPLETE, complete_checkpoints
from seqtune.training.run import resume, train
from seqtune.training.stage import stage_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from seqtune.report.run_folder import RunFolder

STAGES = ("sft", "dpo", "reward")


PROCESSES = multiprocessing.get_context("forkserver")
"""Every run is a process of its own; the imports are done once."""


@pytest.fixture(scope="module", autouse=True)
def _imported_once() -> Iterator[None]:
    here, before = str(Path(__file__).parent), os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = here if before is None else f"{here}{os.pathsep}{before}"
    modules = ("sft", "preference", "reward", "run")
    PROCESSES.set_forkserver_preload(
        ["tiny_plans", "seqtune.report.html", "seqtune.data.sources", *(f"seqtune.training.{name}" for name in modules)]
    )
    yield
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def in_a_process(word: str, folder: Path, *die_at: str) -> int | None:
    """Run `tiny_plans` on a run folder; the exit status, negative for a signal."""
    process = PROCESSES.Process(target=main, args=(word, str(folder), *die_at))
    process.start()
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RunFolder]:
    """New run folders of one plan: full SFT, then DPO on an adapter with dropout, then a reward model."""
    place = tmp_path_factory.mktemp("runs")
    data = write_data(place)
    stages = (
        stage("sft", data, train={"save_every": 2, "log_every": 3, "eval_every": 4, "max_steps": 7}),
        stage("dpo", data, peft=Lora(rank=2, dropout=0.2), train={"save_every": 2, "max_steps": 5}),
        stage("reward", data, train={"max_steps": 3}),
    )
    return lambda name: create(place / name, *stages)


@pytest.fixture(scope="module")
def whole(make: Callable[[str], RunFolder]) -> RunFolder:
    """The run nobody interrupted."""
    folder = make("whole")
    assert in_a_process("train", folder.path) == 0
    return folder


def same(one: RunFolder, other: RunFolder) -> None:
    assert comparable(one) == comparable(other)
    for name in STAGES:
        assert weights(one, name) == weights(other, name) != {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "step", "saved"),
    [
        ("sft", "3", ["checkpoint-2"]),  # between two checkpoints
        ("sft", "4", ["checkpoint-2"]),  # the row is written, its checkpoint is not
        ("dpo", "3", ["checkpoint-2"]),  # with an adapter, and dropout's random numbers
    ],
)
def test_killed_and_resumed_is_as_if_never_killed(
    name: str, step: str, saved: list[str], make: Callable[[str], RunFolder], whole: RunFolder
) -> None:
    folder = make(f"{name}-{step}")
    assert in_a_process("train", folder.path, name, step) == -signal.SIGKILL
    assert [path.name for path in complete_checkpoints(stage_folder(folder, name))] == saved
    assert in_a_process("resume", folder.path) == 0
    same(folder, whole)


@pytest.mark.slow
def test_a_checkpoint_cut_short_is_not_read(make: Callable[[str], RunFolder], whole: RunFolder) -> None:
    folder = make("cut")
    assert in_a_process("train", folder.path, "sft", "7") == -signal.SIGKILL
    output = stage_folder(folder, "sft")
    (output / "checkpoint-6" / COMPLETE).unlink()
    (output / "checkpoint-6" / "model.safetensors").write_bytes(b"half")
    (output / "final.partial").mkdir()
    (output / "final.partial" / "model.safetensors").write_bytes(b"half")
    assert in_a_process("resume", folder.path) == 0
    same(folder, whole)


@pytest.mark.slow
def test_a_run_killed_twice_and_killed_while_resuming(make: Callable[[str], RunFolder], whole: RunFolder) -> None:
    folder = make("twice")
    assert in_a_process("train", folder.path, "sft", "4") == -signal.SIGKILL
    assert in_a_process("resume", folder.path, "dpo", "3") == -signal.SIGKILL
    assert in_a_process("resume", folder.path) == 0
    same(folder, whole)


def test_a_run_is_worked_on_by_one_process_at_a_time(make: Callable[[str], RunFolder]) -> None:
    folder = make("locked")
    with folder.lock():
        for go in (
            lambda: train(plan_of(folder), folder=folder, watch=print),
            lambda: resume(folder, watch=print),
        ):
            with pytest.raises(SeqtuneError, match=f"another process \\(pid {os.getpid()}\\)"):
                go()
