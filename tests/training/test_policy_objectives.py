"""Policy objectives in the trainer: each that needs nothing but rollouts takes steps, and gets what it asks for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from policy_stage import stage, stage_run
from test_policy import ASCII_FIRST, first_gradients

from seqtune.config.rules.inputs import INPUTS
from seqtune.errors import SeqtuneError
from seqtune.models.load import load_model
from seqtune.objectives import OBJECTIVES
from seqtune.objectives.advantages import group
from seqtune.objectives.credit import tree
from seqtune.report.run_folder import RunFolder
from seqtune.rewards.specs import Custom
from seqtune.training.policy import trainer

PAGES = Path(__file__).parents[2] / "docs" / "objectives"


def scored(objective: dict[str, Any], **changes: dict[str, Any]) -> Any:
    return stage(**{"reward": {"pattern": ASCII_FIRST}, "objective": {"group_size": 4, **objective}, **changes})


def runnable() -> list[str]:
    specs = {name: OBJECTIVES.load(name)(name=name) for name in OBJECTIVES}
    have = {name for name, words in INPUTS.items() if not words}
    return [name for name, spec in specs.items() if spec.family == "policy" and spec.needs <= have]


def test_which_objectives_need_nothing_but_rollouts() -> None:
    assert set(runnable()) >= {
        "policy", "grpo", "dr_grpo", "dapo", "rloo", "reinforce_pp", "gspo", "gspo_token", "ts_grpo", "espo_entropy",
        "dagrpo", "tempo", "minirl",
    }  # fmt: skip


def promised(name: str) -> set[str]:
    """The metrics that an objective's page promises whatever the fields say."""
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    rows = page.partition("\n## Metrics\n")[2].partition("\n## ")[0].splitlines()
    told = (row.split("|") for row in rows if row.startswith("| `") and "only with" not in row)
    return {key for _, keys, *_ in told for key in re.findall(r"`(.+?)`", keys)}


@pytest.mark.parametrize("name", runnable())
def test_it_takes_stale_steps(name: str, tmp_path: Path) -> None:
    """Two updates a rollout; metrics finite, the second update off policy."""
    changes = {"rollout": {"updates": 2}, "train": {"max_steps": 2, "learning_rate": 0.01}}
    trainer(stage_run(tmp_path, scored({"name": name}, **changes))).train()
    rows = RunFolder(tmp_path).metrics()
    assert [row["step"] for row in rows] == [1, 2]
    assert promised(name) <= rows[0].keys()
    for row in rows:
        assert all(value == value and abs(value) < 1e6 for value in row.values() if isinstance(value, float)), row
    assert rows[0]["policy/approx_kl"] == pytest.approx(0, abs=1e-9)
    assert len(RunFolder(tmp_path).samples()) == 4


def test_credit_by_tree_reaches_the_loss_and_the_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = trainer(stage_run(tmp_path, scored({"name": "tempo"}, train={"batch_size": 16, "max_steps": 1})))
    assign, asked = one.advantage, {}
    monkeypatch.setattr(
        one, "advantage", lambda rewards, **given: asked.update(given, r=rewards) or assign(rewards, **given)
    )
    first_gradients(one, monkeypatch)
    wanted = tree(group(asked["r"], 4), asked["completion_ids"], asked["mask"], 4)
    (rows,) = one._buffered_inputs
    mask, advantages = rows["completion_mask"].bool(), rows["advantages"]
    assert advantages.shape == mask.shape
    assert len({tuple(row.tolist()) for row in wanted}) > 4, "tokens differ within completions"
    for start in range(0, 16, 4):  # groups stay together, in another order
        group_rows = advantages[start : start + 4]
        assert any(torch.equal(group_rows, wanted[first : first + 4]) for first in range(0, 16, 4))
    shown = zip(RunFolder(tmp_path).samples(), wanted, asked["mask"], asked["completion_ids"], strict=False)
    for sample, row, live, ids in shown:
        assert sample["advantages"] == pytest.approx(row[live].tolist())
        assert len(sample["pieces"]) == int(live.sum())
        assert "".join(sample["pieces"]) == one._tokenizer.decode(ids[live])
        assert sample["advantage"] == pytest.approx(float(row[live].mean()), abs=1e-6)


def test_truncated_completions_leave_the_loss_and_its_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stage_run(tmp_path, scored({"name": "dapo", "overlong": 0.0}, rollout={"max_new_tokens": 4}))
    one = trainer(run)
    one.eos_token_ids = [258, *range(0, 256, 4)]
    counted = []
    original = one.count
    monkeypatch.setattr(one, "count", lambda batch: counted.append((batch, original(batch))) or counted[-1][1])
    first_gradients(one, monkeypatch)
    ((batch, count),) = counted
    mask = batch.rows["completion_mask"].bool()
    last = batch.rows["completion_ids"].gather(1, mask.sum(1, keepdim=True) - 1).squeeze(1)
    ended = torch.isin(last, torch.tensor(one.eos_token_ids))
    assert 0 < int(ended.sum()) < len(ended)
    assert torch.equal(batch.rows["advantages"].isnan(), ~ended)
    assert count == int(mask[ended].sum())
    shown = [sample["advantage"] for sample in RunFolder(tmp_path).samples()]
    assert None in shown or ended[:4].all()


@pytest.mark.parametrize(
    "objective",
    [
        {"name": "dr_grpo"},
        {"name": "dapo"},
        {"name": "dagrpo", "tau": 0.5},
        {"name": "tempo"},
        {"name": "espo_entropy"},
        {"name": "policy", "ratio": "segment"},
    ],
    ids=lambda objective: str(objective["name"]),
)
def test_the_gradient_does_not_depend_on_the_micro_batches(
    objective: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 x 16 == 4 x 4, where what is left out, or the most tokens one may have, makes the denominator."""
    found = []
    for batch_size, accumulate in ((16, 1), (4, 4)):
        changes = {"train": {"batch_size": batch_size, "accumulate": accumulate}, "rollout": {"max_new_tokens": 6}}
        one = trainer(stage_run(tmp_path / f"{batch_size}", scored(objective, **changes)))
        one.eos_token_ids = [258, *range(0, 256, 4)]
        found.append(first_gradients(one, monkeypatch))
    assert any(gradient.any() for gradient in found[0].values())
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-7, msg=name)


def test_entropies_are_those_of_the_policy_that_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = trainer(stage_run(tmp_path, scored({"name": "espo_entropy"})))
    first_gradients(one, monkeypatch)
    (rows,) = one._buffered_inputs
    mask = rows["completion_mask"].bool()
    model, i = load_model(one.run.stage.model), 0
    prompt = rows["prompt_ids"][i][rows["prompt_mask"][i].bool()]
    completion = rows["completion_ids"][i][mask[i]]
    with torch.no_grad():
        logits = model(torch.cat([prompt, completion])[None]).logits
    logps = logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    wanted = -(logps.exp() * logps).sum(-1)
    torch.testing.assert_close(rows["entropies"][i][mask[i]], wanted, rtol=1e-4, atol=1e-4)


RANKED = """
def by_line(completions, **columns):
    rows = [[float(line[:1].isascii()) for line in text.split("\\n")[:3]] for text in completions]
    return [row + [0.0] * (3 - len(row)) for row in rows]

def short(completions, **columns):
    return [[1.0] for _ in completions]
"""


def test_ranks_of_a_users_reward_reach_rank_grpo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ranked.py").write_text(RANKED)
    objective = {"name": "rank_grpo", "ranks": 3, "beta": 0.0}

    def run(function: str) -> Any:
        one = scored(objective, rollout={"max_new_tokens": 12})
        reward = Custom(name=f"{tmp_path / 'ranked.py'}:{function}")
        return trainer(stage_run(tmp_path / function, one.model_copy(update={"reward": reward})))

    one = run("by_line")
    assign, asked = one.advantage, {}
    monkeypatch.setattr(one, "advantage", lambda r, **given: asked.update(given, r=r) or assign(r, **given))
    first_gradients(one, monkeypatch)
    assert asked["rank_rewards"].shape == (8, 3)
    torch.testing.assert_close(asked["rank_rewards"].sum(1), asked["r"])
    assert (asked["segments"][asked["mask"]] >= 0).all()
    (rows,) = one._buffered_inputs
    assert rows["advantages"].shape == rows["segments"].shape
    with pytest.raises(SeqtuneError, match="returned 1 numbers a completion; the objective learns 3 ranks"):
        first_gradients(run("short"), monkeypatch)


def test_a_correction_is_normalised_over_the_rollout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is off by 0.2 in some completions and by 0.6 in the others; every row knows the mean of all tokens."""
    objective = {"name": "minirl", "correction_normalised": True}
    changes = {"rollout": {"updates": 2}, "train": {"batch_size": 8, "max_steps": 2}}
    one = trainer(stage_run(tmp_path, scored(objective, **changes)))
    one.eos_token_ids = [258, *range(0, 256, 4)]  # completions of several lengths: padding has no part in the mean
    sampled = one._sampled

    def off(inputs: Any, number: int) -> Any:
        found = sampled(inputs, number)
        gap = torch.tensor([0.2, 0.6]).repeat(len(inputs) // 2).unsqueeze(1)
        found.tensors["sampling_per_token_logps"] = found.tensors["old_per_token_logps"] - gap
        return found

    monkeypatch.setattr(one, "_sampled", off)
    one.train()
    rows = one._buffered_inputs
    gaps = torch.cat([r["old_per_token_logps"] - r["sampler_logps"] for r in rows])
    mask = torch.cat([r["completion_mask"] for r in rows]).bool()
    scale = torch.cat([r["correction_scale"] for r in rows])
    torch.testing.assert_close(scale, gaps[mask].exp().mean().expand(16), rtol=1e-5, atol=1e-6)
    assert 1.22 < float(scale[0]) < 1.82
    assert not mask.all()


@pytest.mark.parametrize(
    ("fields", "weight"),
    [({}, 2.0), ({"rejection": "mean", "rejection_threshold": 1e3}, 2.0), ({"off_policy_threshold": 1e3}, 2.0),
     ({"correction": "truncate"}, 1.0)],
)  # fmt: skip
def test_trls_weight_of_the_engine_acts_wherever_ours_does_not(
    fields: dict[str, Any], weight: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rejection, too, asks for the engine's log-probs, and weighs nothing."""
    changes = {"rollout": {"updates": 2}, "train": {"batch_size": 8, "max_steps": 1}}
    one = trainer(stage_run(tmp_path, scored({"name": "policy", **fields}, **changes)))
    sampled, objective, seen = one._sampled, one.objective, []

    def of_an_engine(inputs: Any, number: int) -> Any:
        found = sampled(inputs, number)
        old = found.tensors["old_per_token_logps"]
        found.tensors["sampling_per_token_logps"] = old - 0.1
        found.tensors["importance_sampling_ratio"] = torch.full_like(old, 2.0)
        return found

    def told(logps: Any, old: Any, advantages: torch.Tensor, *rest: Any, **more: Any) -> Any:
        seen.append(advantages)
        return objective(logps, old, advantages, *rest, **more)

    monkeypatch.setattr(one, "_sampled", of_an_engine)
    monkeypatch.setattr(one, "advantage", lambda rewards, **given: torch.ones(len(rewards)))
    monkeypatch.setattr(one, "objective", told)
    one.train()
    assert seen
    assert all((advantages == weight).all() for advantages in seen)


def test_a_plan_has_a_reward_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plans.py").write_text(
        "def both(completions):\n    return [[float(len(text) % 3), float(len(text) % 2)] for text in completions]\n\n"
        "def one(completions):\n    return [1.0 for _ in completions]\n"
    )

    def run(function: str) -> Any:
        objective = {"name": "ts_grpo", "group_size": 4, "plan_advantage": "own"}
        reward = Custom(name=f"{tmp_path / 'plans.py'}:{function}")
        one = stage(objective=objective).model_copy(update={"reward": reward})
        return trainer(stage_run(tmp_path / function, one))

    one, asked = run("both"), {}
    assign = one.advantage
    monkeypatch.setattr(one, "advantage", lambda r, **given: asked.update(given, r=r) or assign(r, **given))
    first_gradients(one, monkeypatch)
    lengths = torch.tensor([len(text) for text in one._logs["completion"]])
    assert asked["r"].tolist() == (lengths % 3).tolist()
    assert asked["plan_rewards"].tolist() == (lengths % 2).tolist()
    with pytest.raises(SeqtuneError, match="returned one number a completion; the objective learns 2 rewards, of answ"):
        first_gradients(run("one"), monkeypatch)
