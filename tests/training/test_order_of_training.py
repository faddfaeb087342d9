"""Tiny runs train in the order their packing names, whatever the processes, and go on in it after an interruption."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from datasets import Dataset
from tiny_plans import comparable, create, plan_of, stage, weights

from seqtune.config.axes import DataSpec
from seqtune.config.mixture import MixtureSpec
from seqtune.config.order import Cycles, GroupByLength, GrowLength, Shuffle, TokenBudget
from seqtune.errors import SeqtuneError
from seqtune.packing import order
from seqtune.packing.bins import Bins
from seqtune.packing.specs import BestFit, DatasetDecomposition, OnlineBestFit, Unpacked
from seqtune.parallel.specs import Ddp, Single
from seqtune.report.events import Step
from seqtune.training import sft
from seqtune.training.feed import Ordered, ordered
from seqtune.training.pack import pack_stage
from seqtune.training.recorder import complete_checkpoints
from seqtune.training.run import resume, train
from seqtune.training.stage import stage_folder

if TYPE_CHECKING:
    from pathlib import Path

    from seqtune.config.spec import PackingSpec
    from seqtune.report.events import Event

PACKINGS: dict[str, PackingSpec] = {
    "shuffle": BestFit(capacity=64),
    "group_by_length": Unpacked(capacity=64, order=GroupByLength(name="group_by_length")),
    "token_budget": Unpacked(capacity=64, order=TokenBudget(name="token_budget")),
    "growlength": BestFit(capacity=64, on_overflow="split", order=GrowLength(name="growlength", shortest=16)),
    "cycles": DatasetDecomposition(capacity=64, shortest=8, order=Cycles(cycles=2)),
}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Forty texts of 10 to 100 letters."""
    words = random.Random(0)
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": chr(97 + n % 26) * words.randint(10, 100)}) + "\n" for n in range(40)))
    return path


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[list[list[int]]]:
    """Filled with the rows of every step, as the trainer laid them out: their lengths and first tokens."""
    seen: list[list[list[int]]] = []
    lay = sft.Sft.micro_batches

    def spy(self: Any, inputs: Any) -> Any:
        seen.append([[int(one) for one in row["input_ids"]] for row in inputs.rows])
        return lay(self, inputs)

    monkeypatch.setattr(sft.Sft, "micro_batches", spy)
    return seen


def plan(source: Path, packing: PackingSpec, **given: Any) -> Any:
    return stage(
        "sft",
        source,
        data=DataSpec(path=str(source)),
        packing=packing,
        train={"max_steps": 8, "save_every": 3, **given},
    )


class Stop(Exception):
    pass


def stop_at(step: int) -> Any:
    def watch(event: Event) -> None:
        if isinstance(event, Step) and event.row["step"] == step:
            raise Stop

    return watch


@pytest.mark.parametrize("name", PACKINGS)
def test_a_run_takes_the_rows_of_each_step_and_goes_on_with_them(
    name: str, texts: Path, trained: list[list[list[int]]], tmp_path: Path
) -> None:
    packing = PACKINGS[name]
    one = plan(texts, packing.model_copy(update={"on_overflow": "split"}))
    whole = create(tmp_path / "whole", one)
    train(plan_of(whole), folder=whole, watch=lambda event: None)
    steps = list(trained)
    assert len(steps) == 8
    tokens = [sum(map(len, step)) for step in steps]
    match packing.order:
        case Shuffle():
            assert {len(step) for step in steps} == {4}
        case GroupByLength():
            assert max(map(len, steps[0])) == max(len(row) for step in steps for row in step)
        case TokenBudget() | GrowLength() | Cycles():
            assert max(tokens) <= 4 * 64
            assert len({len(step) for step in steps}) > 1
    if name == "growlength":
        longest = [max(map(len, step)) for step in steps]
        assert all(before <= after for before, after in pairwise(longest))
        assert longest[0] <= 16
        assert 32 < longest[-1] <= 64
    if name == "cycles":
        assert all(len({len(row) for row in step}) == 1 for step in steps)
    trained.clear()
    broken = create(tmp_path / "broken", one)
    with pytest.raises(Stop):
        train(plan_of(broken), folder=broken, watch=stop_at(5))
    trained.clear()
    resume(broken, watch=lambda event: None)
    assert trained == steps[3:]
    assert comparable(broken) == comparable(whole)
    assert weights(broken, "sft") == weights(whole, "sft")


def test_one_epoch_takes_every_row_once(texts: Path, trained: list[list[list[int]]], tmp_path: Path) -> None:
    one = plan(texts, PACKINGS["cycles"], max_steps=None, save_every=None)
    run = create(tmp_path / "run", one)
    train(plan_of(run), folder=run, watch=lambda event: None)
    sizes = [len(json.loads(line)["text"]) + 1 for line in texts.read_text().splitlines()]
    expected = order.decompose(np.array(sizes), 8, 64, plus_one=False)[2]
    assert sorted(len(row) for step in trained for row in step) == sorted(expected.tolist())


@pytest.fixture
def mixed(texts: Path, tmp_path: Path) -> MixtureSpec:
    other = tmp_path / "sums.jsonl"
    other.write_text("".join(json.dumps({"prompt": f"{n}+1=", "completion": str(n + 1)}) + "\n" for n in range(30)))
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text(json.dumps({"text": "held out"}) + "\n")
    return MixtureSpec(
        name="mixture",
        sources=(
            {"path": str(texts), "weight": 2.0},
            {"path": str(other), "format": "prompt_completion"},
        ),
        eval_path=str(heldout),
        shuffle=16,
    )


def test_a_mixture_is_trained_and_goes_on_exactly(
    mixed: MixtureSpec, trained: list[list[list[int]]], tmp_path: Path
) -> None:
    packing = OnlineBestFit(capacity=64, open_rows=4, on_overflow="split")
    one = stage("sft", tmp_path, data=mixed, packing=packing, train={"max_steps": 9, "save_every": 2})
    whole = create(tmp_path / "whole", one)
    train(plan_of(whole), folder=whole, watch=lambda event: None)
    steps = list(trained)
    assert [len(step) for step in steps] == [4] * 9
    assert "eval/loss" in whole.metrics()[-1]
    broken = create(tmp_path / "broken", one)
    with pytest.raises(Stop):
        train(plan_of(broken), folder=broken, watch=stop_at(7))
    trained.clear()
    resume(broken, watch=lambda event: None)
    assert trained == steps[6:]
    assert comparable(broken) == comparable(whole)
    assert weights(broken, "sft") == weights(whole, "sft")
    kept = complete_checkpoints(stage_folder(broken, "sft"))[-1] / sft.STREAM
    assert json.loads(kept.read_text())["step"] == 8


def test_a_mixture_that_ends_is_trained_to_its_end(
    mixed: MixtureSpec, trained: list[list[list[int]]], tmp_path: Path
) -> None:
    ends = mixed.model_copy(update={"stop": "all_exhausted", "sources": mixed.sources[:1]})
    packing = OnlineBestFit(capacity=64, open_rows=4, on_overflow="split")
    one = stage("sft", tmp_path, data=ends, packing=packing, train={"max_steps": None})
    run = create(tmp_path / "run", one)
    train(plan_of(run), folder=run, watch=lambda event: None)
    assert run.metrics()[-1]["step"] == len(trained) > 5
    late = create(tmp_path / "late", one.model_copy(update={"train": one.train.model_copy(update={"max_steps": 500})}))
    with pytest.raises(SeqtuneError, match=rf"the data ends after {len(trained)} steps; 500 were asked for"):
        train(plan_of(late), folder=late, watch=lambda event: None)


@pytest.mark.slow
def test_two_processes_train_what_one_does(texts: Path, tmp_path: Path) -> None:
    """Of 14 documents some steps have a single row, which leaves the second process none."""
    source = tmp_path / "few.jsonl"
    source.write_text("".join(texts.read_text().splitlines(keepends=True)[:14]))
    losses = []
    for processes, parallel in ((1, Single()), (2, Ddp(processes=2))):
        one = stage(
            "sft",
            source,
            data=DataSpec(path=str(source)),
            packing=PACKINGS["cycles"],
            parallel=parallel,
            train={"max_steps": 12, "batch_size": 4 // processes, "accumulate": 1},
        )
        run = create(tmp_path / f"run{processes}", one)
        train(plan_of(run), folder=run, watch=lambda event: None)
        losses.append([row["loss"] for row in run.metrics() if "loss" in row])
    assert losses[1] == pytest.approx(losses[0], abs=2e-5)


def test_a_pack_is_trained_in_any_order_that_it_was_not_made_for(
    texts: Path, trained: list[list[list[int]]], tmp_path: Path
) -> None:
    """Rows of a growing pack are cut for it; others can be taken in any order."""
    plain = plan(texts, Unpacked(capacity=64, on_overflow="drop"), max_steps=3, save_every=None)
    pack_stage(plain, tmp_path / "pack")
    read = {"path": str(tmp_path / "pack"), "order": TokenBudget(name="token_budget")}
    run = create(tmp_path / "run", plain.model_copy(update={"packing": plain.packing.model_copy(update=read)}))
    train(plan_of(run), folder=run, watch=lambda event: None)
    assert [sum(map(len, step)) <= 256 for step in trained] == [True] * 3
    growing = plain.packing.model_copy(
        update={"path": str(tmp_path / "pack"), "on_overflow": "split", "order": PACKINGS["growlength"].order}
    )
    other = create(tmp_path / "other", plain.model_copy(update={"packing": growing}))
    with pytest.raises(SeqtuneError, match=r"packing\.order"):
        train(plan_of(other), folder=other, watch=lambda event: None)


def test_rows_are_dealt_by_cost_and_every_process_takes_its_own() -> None:
    """Costs 9, 1, 8, 2: in the order given one process takes 17 and the other 3; dealt, 10 and 10."""
    steps = Bins(np.arange(4), np.array([0, 4]))
    costs = np.array([9.0, 1.0, 8.0, 2.0])
    taken = [next(iter(Ordered(steps, rank, 2, costs))) for rank in range(2)]
    assert sorted(row for rows in taken for row in rows) == [0, 1, 2, 3]
    assert [costs[rows].sum() for rows in taken] == [10, 10]
    before, after = Ordered(steps, 0, 2, costs).waiting()
    assert (before, after) == (pytest.approx(1 - 10 / 17), 0)


@pytest.mark.parametrize(("row_cost", "together"), [((1.0, 0.0), {0, 1}), ((0.0, 1.0), {0, 3}), (None, {0, 1})])
def test_the_cost_of_a_row_is_said_or_that_of_its_arithmetic(
    row_cost: tuple[float, float] | None, together: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By tokens 12 + 3 against 8 + 8; by squares the long document goes with the eight short ones."""
    rows = Dataset.from_dict({"seq_lengths": [[12], [3], [4, 4], [1] * 8]})
    plain = stage("sft", tmp_path)
    train = plain.train.model_copy(update={"batch_size": 2, "accumulate": 1, "max_steps": 1})
    several = plain.model_copy(update={"train": train, "parallel": Ddp(processes=2, row_cost=row_cost)})
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(hidden_size=64)))
    run = SimpleNamespace(stage=several, model=model, notice=lambda text: None)
    taken = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        taken.append(set(next(iter(ordered(run, rows)))))  # type: ignore[arg-type]  # as far as it is looked at
    assert together in taken


def test_a_step_that_cannot_be_dealt_evenly_keeps_its_order() -> None:
    steps = Bins(np.arange(3), np.array([0, 3]))
    taken = [next(iter(Ordered(steps, rank, 2, np.array([1.0, 9.0, 1.0])))) for rank in range(2)]
    assert taken == [[0, 1], [2]]
