"""Completions that call tools in the policy trainer: what is trained, what is judged, what is recorded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from policy_stage import stage, stage_run
from safetensors.torch import load_file
from test_policy import ASCII_FIRST, first_gradients, gradients

from seqtune.config.axes import RolloutSpec
from seqtune.errors import SeqtuneError
from seqtune.models.load import load_model
from seqtune.objectives.searcher import fewest_calls
from seqtune.parallel.launch import launch
from seqtune.report.run_folder import RunFolder
from seqtune.rewards.specs import Custom
from seqtune.rollout.noise import seed_of
from seqtune.rollout.tools import Completion
from seqtune.training import policy
from seqtune.training.policy import Policy, trainer
from seqtune.training.tools import ToolRollout

TOOL = """
def up(query):
    if "a" not in query:
        raise ValueError("no a")
    return query.upper() + "-{}"
"""
WORDS = ["<up>", "<up>", "</up>", "</up>", "a", "b", "It", "$"]


@pytest.fixture
def tools(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "mine.py").write_text(TOOL)
    name = f"{tmp_path / 'mine.py'}:up"
    return {"up": {"name": name, "open": "<up>", "close": "</up>", "result_open": "[", "result_close": "]"}}


def scripted(one: Policy) -> None:
    """What an untrained model would hardly write: random words and calls, by the seed of each turn."""

    def continued(prompts: list[list[int]], seeds: list[int], most: int, stop: Any = None) -> list[list[int]]:
        found = []
        for seed in seeds:
            draw, ids = np.random.default_rng(seed), []
            while len(ids) < most and one.eos_token_ids[0] not in ids:
                word = WORDS[draw.integers(len(WORDS))]
                ids += one.eos_token_ids[:1] if word == "$" else one._tokenizer(word)["input_ids"]
            found.append(ids[:most])
        return found

    one._continued = continued  # type: ignore[method-assign]


def talking(folder: Path, tools: dict[str, Any], objective: dict[str, Any] | None = None, **changes: Any) -> Policy:
    given = changes.pop("reward_spec", None)
    chosen = {
        "reward": {"pattern": ASCII_FIRST},
        "objective": {"group_size": 4, **(objective or {})},
        "rollout": {"max_new_tokens": 60, "tools": tools, **changes.pop("rollout", {})},
        **changes,
    }
    plan = stage(**chosen)
    one = trainer(stage_run(folder, plan if given is None else plan.model_copy(update={"reward": given})))
    scripted(one)
    return one


def read(one: Policy, batch: dict[str, torch.Tensor], row: int, *, own: bool | None = None) -> str:
    """The text of a completion: all of it, the model's own, or what tools put in."""
    live = batch["completion_mask"][row].bool()
    if own is not None:
        live = live & (batch["own_mask"][row] == own)
    return str(one._tokenizer.decode(batch["completion_ids"][row][live]))


@pytest.mark.parametrize("answer", ["-1", "<|im_end|>"], ids=["text", "the text of an end"])
def test_only_what_the_model_wrote_is_trained(
    tmp_path: Path, tools: dict[str, Any], answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-(1/B) Σ A_i (1/n_i) Σ ∇log π over the n_i own tokens, each given all before it, results included."""
    (tmp_path / "mine.py").write_text(TOOL.replace("-{}", answer))
    one = talking(tmp_path / "run", tools)
    batches: list[dict[str, torch.Tensor]] = []
    measure = one.measure
    monkeypatch.setattr(one, "measure", lambda m, batch, n: (batches.append(batch.rows), measure(m, batch, n))[1])
    found = first_gradients(one, monkeypatch)
    (inputs,) = batches
    assert inputs["calls"].sum() > 4
    assert len(set(inputs["calls"].tolist())) > 1
    assert inputs["advantages"].abs().max() > 0.5
    for row in range(8):
        given = read(one, inputs, row, own=False)
        assert given.count("[") == given.count("]") == inputs["calls"][row]
        assert "[" not in read(one, inputs, row, own=True)
        live = inputs["completion_mask"][row].bool() & ~inputs["own_mask"][row]
        assert not set(inputs["completion_ids"][row][live].tolist()) & set(one.eos_token_ids)

    model, loss = load_model(one.run.stage.model), torch.zeros(())
    for row in range(8):
        prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()]
        live = inputs["completion_mask"][row].bool()
        completion, own = inputs["completion_ids"][row][live], inputs["own_mask"][row][live]
        logits = model(torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
        logps = logits.log_softmax(-1).gather(1, completion[:, None]).squeeze(1)
        loss = loss - inputs["advantages"][row] * logps[own].mean() / 8
    loss.backward()
    for name, expected in gradients(model).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-7, msg=name)


def test_a_tool_that_nobody_calls_changes_nothing(tmp_path: Path, tools: dict[str, Any]) -> None:
    """Real sampling, real steps: an untrained model does not write the marker."""
    rows = []
    for name, given in (("without", {}), ("with", tools)):
        chosen = {"rollout": {"max_new_tokens": 8, "tools": given}, "train": {"max_steps": 2}}
        one = trainer(stage_run(tmp_path / name, stage(reward={"pattern": ASCII_FIRST}, **chosen)))
        one.train()
        rows.append(RunFolder(tmp_path / name).metrics())
    for without, other in zip(*rows, strict=True):
        told = {key: other.pop(key) for key in ("tools/calls", "tools/failures", "tools/tokens")}
        assert set(told.values()) == {0}
        assert other | {"seconds": 0} == without | {"seconds": 0}


def test_a_turn_of_the_model_ends_with_its_call(tmp_path: Path, tools: dict[str, Any]) -> None:
    """A model that copies: its turns are as long as they have to be, and go on behind the result."""
    one = trainer(stage_run(tmp_path, stage(rollout={"max_new_tokens": 60, "tools": tools})))
    asked: list[int] = []
    script = one._tokenizer("x<up>a</up>y")["input_ids"]

    def chosen(logits: torch.Tensor, tokens: torch.Tensor, step: int, places: list[int]) -> torch.Tensor:
        return torch.full_like(tokens, script[step])

    def continued(prompts: Any, seeds: Any, most: int, stop: Any = None) -> list[list[int]]:
        steps = 0

        def watch(logits: torch.Tensor, tokens: torch.Tensor, step: int, places: list[int]) -> torch.Tensor:
            nonlocal steps
            steps = step
            return stop(logits, chosen(logits, tokens, step % len(script), places), step, places)

        found = Policy._continued(one, prompts, seeds, most, watch)
        asked.append(steps)
        return found

    one._continued = continued  # type: ignore[method-assign]
    found = one._conversed(one.calling, [[5]] * 2, [(0, 0, 0), (0, 0, 1)])
    assert one._tokenizer.decode(found[0]).startswith("x<up>a</up>[A-{}]x<up>a</up>[A-{}]")
    assert asked[0] == len("x<up>a</up>"), "one token beyond the call, which nobody reads"


def test_every_turn_is_drawn_anew(tmp_path: Path, tools: dict[str, Any]) -> None:
    one = talking(tmp_path, tools, train={"max_steps": 1})
    continued, seeds = one._continued, []
    one._continued = lambda prompts, keys, *more: seeds.append(keys) or continued(prompts, keys, *more)  # type: ignore[method-assign]
    one.train()
    assert len(seeds) > 2, "turns"
    drawn = [seed for keys in seeds for seed in keys]
    assert len(set(drawn)) == len(drawn)
    places = [seed_of(one.args.seed, 0, *divmod(row, 4)) for row in range(8)]
    assert seeds[0] == places, "the first turn is that of a completion without tools"


def test_what_is_recorded(tmp_path: Path, tools: dict[str, Any]) -> None:
    one = talking(tmp_path / "run", tools, train={"max_steps": 1})
    one.train()
    (row,) = RunFolder(tmp_path / "run").metrics()
    found = one.calling.found
    assert row["tools/calls"] == np.mean([len(each.calls) for each in found]) > 0
    assert row["tools/failures"] == np.mean([each.failures for each in found]) > 0
    assert row["tools/tokens"] == np.mean([each.own.count(False) for each in found]) > 0
    samples = RunFolder(tmp_path / "run").samples()
    assert any("[error: ValueError: no a]" in sample["completion"] for sample in samples)


def test_a_reward_judges_what_the_model_wrote(tmp_path: Path, tools: dict[str, Any]) -> None:
    (tmp_path / "seen.py").write_text(
        "def seen(completions, completion_ids):\n"
        "    assert not any('[' in text for text in completions), completions\n"
        "    return [float(len(ids)) for ids in completion_ids]\n"
    )
    reward = Custom(name=f"{tmp_path / 'seen.py'}:seen")
    one = talking(tmp_path / "run", tools, reward_spec=reward, train={"max_steps": 1})
    one.train()
    lengths = [sum(each.own) for each in one.calling.found]
    assert [sample["reward"] for sample in RunFolder(tmp_path / "run").samples()] == lengths[:4]


def test_a_checkpoint_inside_a_rollout_knows_whose_the_tokens_are(tmp_path: Path, tools: dict[str, Any]) -> None:
    train = {"max_steps": 4, "save_every": 1, "keep_checkpoints": 9, "batch_size": 8}
    one = talking(tmp_path, tools, rollout={"updates": 2}, train=train)
    one.train()
    saved = load_file(next(tmp_path.rglob("checkpoint-3")) / "rollout-0.safetensors")
    for number, batch in enumerate(one._buffered_inputs):
        assert torch.equal(saved[f"{number}.own_mask"], batch["own_mask"])
        assert not batch["own_mask"][batch["completion_mask"].bool()].all()


def test_further_rounds_know_whose_the_tokens_are(tmp_path: Path, tools: dict[str, Any]) -> None:
    """A reward of hardly anything: groups of several rounds are put together, whatever their widths."""
    given = {"reward": {"pattern": r"(?s)It<up>.*"}, "train": {"max_steps": 1, "batch_size": 8}}
    one = talking(tmp_path, tools, {"name": "searcher", "beta": 0.0, "sampling_rounds": 3}, **given)
    one.train()
    (batch,) = one._buffered_inputs
    assert RunFolder(tmp_path).metrics()[0]["rollout/rounds"] > 1
    assert batch["calls"].sum() > 0
    for row in range(8):
        assert read(one, batch, row, own=False).count("[") == batch["calls"][row]
        assert "[" not in read(one, batch, row, own=True)


def test_tokens_of_a_sample_tell_what_has_no_advantage(tmp_path: Path, tools: dict[str, Any]) -> None:
    one = talking(tmp_path, tools, {"name": "reinforce_pp", "beta": 0.0}, train={"max_steps": 1})
    one.train()
    for sample in RunFolder(tmp_path).samples():
        own = [piece for piece, value in zip(sample["pieces"], sample["advantages"], strict=True) if value is not None]
        assert "[" not in "".join(own)
        assert "".join(sample["pieces"]).startswith(sample["completion"])


# searcher


def searching(folder: Path, tools: dict[str, Any], **fields: Any) -> Policy:
    objective = {"name": "searcher", "beta": 0.0, "correct": 0.5, **fields}
    return talking(folder, tools, objective, train={"max_steps": 1, "batch_size": 8})


def test_the_searcher_rewards_few_calls_and_memorises(
    tmp_path: Path, tools: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = searching(tmp_path / "run", tools)
    asked: dict[str, Any] = {}
    assign = one.advantage
    monkeypatch.setattr(one, "advantage", lambda r, **given: asked.update(given, r=r) or assign(r, **given))
    batches: list[Any] = []
    measure = one.measure
    monkeypatch.setattr(one, "measure", lambda m, batch, n: (batches.append((batch.rows, n)), measure(m, batch, n))[1])
    first_gradients(one, monkeypatch)
    found = one.calling.found
    assert asked["calls"].tolist() == [len(each.calls) for each in found]
    assert fewest_calls(asked["r"] > 0.5, asked["calls"], 4).max() > 0, "a bonus is due"
    assert [int(n) for n in asked["mask"].sum(1)] == [sum(each.own) for each in found]

    wanted = [
        each.outside
        for each, reward in zip(found, asked["r"], strict=True)
        if each.calls and each.ended and reward > 0.5
    ]
    assert wanted
    assert sum(len(rows["calls"]) for rows, _ in batches) == 8 + len(wanted)
    texts = []
    for rows, denominator in batches:
        for row in rows["memory_mask"].any(1).nonzero().squeeze(1).tolist():
            texts.append(read(one, rows, row).removesuffix(one._tokenizer.eos_token))
            assert torch.equal(rows["memory_mask"][row], rows["completion_mask"][row].bool())
            assert int(rows["completion_ids"][row][rows["memory_mask"][row]][-1]) in one.eos_token_ids
        assert float(denominator) == sum(float(policy.trained(each).sum()) for each, _ in batches)
    assert sorted(texts) == sorted(wanted)
    assert not any(mark in text for text in texts for mark in ("[", "]"))


def test_memories_are_likelihood(tmp_path: Path, tools: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With advantages of 0 the gradient is that of (μ/N) Σ -log π over the rewritten answers."""
    one = searching(tmp_path / "run", tools, mu=0.25)
    monkeypatch.setattr(one, "advantage", lambda r, mask, **given: torch.zeros(mask.shape))
    batches: list[dict[str, torch.Tensor]] = []
    measure = one.measure
    monkeypatch.setattr(one, "measure", lambda m, batch, n: (batches.append(batch.rows), measure(m, batch, n))[1])
    found = first_gradients(one, monkeypatch)
    model, total = load_model(one.run.stage.model), torch.zeros(())
    for rows in batches:
        for row in rows["memory_mask"].any(1).nonzero().squeeze(1).tolist():
            prompt = rows["prompt_ids"][row][rows["prompt_mask"][row].bool()]
            answer = rows["completion_ids"][row][rows["memory_mask"][row]]
            logits = model(torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
            total = total - logits.log_softmax(-1).gather(1, answer[:, None]).sum()
    assert total > 0
    (0.25 * total / sum(policy.trained(rows).sum() for rows in batches)).backward()
    for name, expected in gradients(model).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-7, msg=name)


def test_wrong_answers_are_not_memorised(tmp_path: Path, tools: dict[str, Any]) -> None:
    one = searching(tmp_path, tools, correct=1.0)  # no reward is above it
    one.train()
    assert one._buffered_inputs[0]["memory_ids"].any(), "there is something to memorise"
    assert not one._buffered_inputs[0]["memory_mask"].any()


@pytest.mark.parametrize(("limit", "length"), [(7, 7), (6, 0)])
def test_an_answer_that_grew_over_the_limit_is_not_memorised(
    limit: int, length: int, tmp_path: Path, tools: dict[str, Any]
) -> None:
    """Bytes that are no text are written anew as three; six tokens and the end are seven."""
    spec = RolloutSpec.model_validate({"tools": tools})
    tokenizer = stage_run(tmp_path, stage()).tokenizer
    made = ToolRollout(list(spec.tools.values()), tokenizer, ends=[258], limit=limit)
    made.found = [Completion([200, 200, 258], [True] * 3, ["up"], 0, "\ufffd\ufffd", ended=True)]
    assert int(made.told(3, torch.device("cpu"), rewritten=True)["memory_mask"].sum()) == length


def test_without_mu_nothing_is_rewritten(tmp_path: Path, tools: dict[str, Any]) -> None:
    one = searching(tmp_path, tools, mu=0.0)
    one.train()
    assert "memory_ids" not in one._buffered_inputs[0]
    assert "policy/memory_nll" not in RunFolder(tmp_path).metrics()[0]


# foresight

GRID = """
import random

def grid(prompts, completions):
    '''Walk to the goal at 9 from 4: the subgoal is a digit; two tries of a careless walker reach it or not.'''
    rows = []
    for text in completions:
        digit = text[:1]
        if not digit.isascii():
            rows.append([0.0, 0.5, 1.0, 1.0])
            continue
        walk = random.Random(digit)
        rows.append([1.0, float(digit.isdigit()), *(float(walk.random() < 0.5) for _ in range(2))])
    return rows

def short(completions):
    return [[1.0, 0.0, 1.0] for _ in completions]
"""


def test_a_subgoal_is_worth_what_its_executions_earn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "grid.py").write_text(GRID)
    objective = {"name": "foresight", "group_size": 4, "beta": 0.0, "executions": 2}

    def run(function: str) -> Policy:
        reward = Custom(name=f"{tmp_path / 'grid.py'}:{function}")
        one = stage(objective=objective, train={"max_steps": 1}).model_copy(update={"reward": reward})
        return trainer(stage_run(tmp_path / function, one))

    one = run("grid")
    asked: dict[str, Any] = {}
    assign = one.advantage
    monkeypatch.setattr(one, "advantage", lambda r, **given: asked.update(given, r=r) or assign(r, **given))
    one.train()
    form, tries, judge = asked["format_scores"], asked["executions"], asked["judge_scores"]
    assert (form.shape, tries.shape, judge.shape) == ((8,), (8, 2), (8,))
    assert len(set(form.tolist())) == 2
    torch.testing.assert_close(asked["r"], 0.2 * form + 0.6 * form * tries.mean(1) + 0.2 * judge)
    (row,) = RunFolder(tmp_path / "grid").metrics()
    assert row["reward/mean"] == pytest.approx(asked["r"].mean().item())
    with pytest.raises(SeqtuneError, match="returned 3 numbers a completion; the objective learns 4 scores of form"):
        run("short").train()


# What cannot be had


def test_two_tools_are_told_apart(tools: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="tools 'up' and 'other' are both called by '<up>'"):
        RolloutSpec.model_validate({"tools": {**tools, "other": tools["up"]}})


def test_a_missing_tool_is_told_before_anything_is_sampled(tmp_path: Path, tools: dict[str, Any]) -> None:
    tools["up"]["name"] = tools["up"]["name"].replace(":up", ":upp")
    with pytest.raises(SeqtuneError, match="has no function 'upp'"):
        talking(tmp_path / "run", tools)


def test_objectives_that_look_at_tokens_see_holes_in_the_mask(tmp_path: Path, tools: dict[str, Any]) -> None:
    for name in ("tempo", "ts_grpo", "espo_entropy"):
        one = talking(tmp_path / name, tools, {"name": name}, train={"max_steps": 2}, rollout={"updates": 2})
        one.train()
        for row in RunFolder(tmp_path / name).metrics():
            assert all(np.isfinite(value) for value in row.values() if isinstance(value, float)), (name, row)
            assert row["policy/nonfinite_tokens"] == 0


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path, tools: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Though their completions make different numbers of turns and of rewritten answers."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one, two, name = tmp_path / "one", tmp_path / "two", tools["up"]["name"]
    command = [sys.executable, "-m", "policy_tools_processes", str(one), "1", name]
    subprocess.run(command, check=True, env=os.environ, timeout=300)
    launch(
        "policy_tools_processes", [str(two), "2", name], processes=2, log=tmp_path / "log", receive=lambda said: None
    )
    single, double = (torch.load(folder / "gradients.pt", weights_only=True) for folder in (one, two))
    for ours, theirs in zip(double, single, strict=True):
        assert max(gradient.abs().max() for gradient in theirs.values()) > 1e-3, "there is something to compare"
        for key, gradient in theirs.items():
            assert (ours[key] - gradient).abs().max() <= 1e-6, key
    alone, together = (RunFolder(folder).metrics() for folder in (one, two))
    assert all(row["tools/calls"] > 0 and row["policy/memory_nll"] > 0 for row in alone)
    for key in ("reward/mean", "tools/calls", "tools/failures", "tools/tokens"):
        assert [row[key] for row in together] == pytest.approx([row[key] for row in alone], abs=1e-6), key
    samples = [[row["completion"] for row in RunFolder(folder).samples()] for folder in (one, two)]
    assert samples[0] == samples[1]
