"""Completions that go on from demonstrations: what they are given, what is learnt of it, and how a run goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from policy_stage import PROMPTS, SUMS, stage, stage_run
from test_policy import ASCII_FIRST, first_gradients

from seqtune.errors import SeqtuneError
from seqtune.models.load import load_model
from seqtune.report.run_folder import RunFolder
from seqtune.training.policy import Policy, trainer
from seqtune.training.rollouts import Anchor, Beginnings, anchored

if TYPE_CHECKING:
    from pathlib import Path

    from seqtune.training.stage import StageRun


def scored(**changes: dict[str, Any]) -> Any:
    objective = {"name": "prefix_rft", "group_size": 4, **changes.pop("objective", {})}
    return stage(**{"reward": {"pattern": ASCII_FIRST}, "objective": objective, **changes})


def half(run: StageRun, share: tuple[float, float] = (0.5, 0.5), limit: int = 6) -> Beginnings:
    return Beginnings(run.tokenizer, lambda step: share, group_size=4, limit=limit, seed=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    return stage_run(tmp_path_factory.mktemp("run"), scored())


def asked(run: StageRun, count: int = 8) -> tuple[Any, Any, Any]:
    """Rows, prompts and places of the first `count` completions."""
    rows = [run.examples.train[n // 4] for n in range(count)]
    prompts = [run.tokenizer(row["prompt"])["input_ids"] for row in rows]
    return rows, prompts, [(0, n // 4, n % 4) for n in range(count)]


def test_a_demonstration_is_what_supervised_training_trains(run: StageRun) -> None:
    rows, prompts, _ = asked(run, 1)
    (found,) = half(run).tokens(rows, prompts)
    assert found == [*run.tokenizer(SUMS[0], add_special_tokens=False)["input_ids"], run.tokenizer.eos_token_id]
    assert half(run).tokens([{**rows[0], "completion": None}], prompts) == [[]]
    assert half(run).tokens(rows, [[*prompts[0], 65]]) == [[]], "the demonstration does not follow this prompt"


def test_a_demonstration_of_a_chat_is_in_the_template_of_answers(run: StageRun) -> None:
    turns = [{"role": "user", "content": PROMPTS[0]}], [{"role": "assistant", "content": SUMS[0]}]
    prompt = run.tokenizer.apply_chat_template(turns[0], add_generation_prompt=True, return_dict=False)
    (found,) = half(run).tokens([{"prompt": turns[0], "completion": turns[1]}], [prompt])
    assert run.tokenizer.decode(found) == f"{SUMS[0]}<|im_end|>"


def test_only_the_last_of_each_group_is_given_something(run: StageRun) -> None:
    """'It is 0.' and its end are 9 byte tokens; half of them are 4, all but the end are 8, of which 5 leave room."""
    rows, prompts, places = asked(run)
    wholes = half(run).tokens(rows, prompts)
    given = half(run)(rows, prompts, places, 0)
    assert [len(tokens) for tokens in given] == [0, 0, 0, 4, 0, 0, 0, 4]
    assert given[3] == wholes[3][:4]
    full = half(run, (1.0, 1.0), limit=99)(rows, prompts, places, 0)
    assert full[3] == wholes[3][:8], "the end is left to the model"
    assert len(half(run, (1.0, 1.0))(rows, prompts, places, 0)[3]) == 5
    assert half(run, (0.0, 0.0))(rows, prompts, places, 0)[3] == wholes[3][:1]


def test_the_share_is_drawn_between_its_ends_by_place_alone(run: StageRun) -> None:
    drawn = Beginnings(
        run.tokenizer, lambda step: (0.2, 0.9) if step == 0 else (0.9, 0.9), group_size=4, limit=99, seed=0
    )
    row = {"prompt": "?", "completion": "x" * 99}
    prompt = run.tokenizer("?")["input_ids"]
    places = [(rollout, n, 3) for rollout in range(20) for n in range(20)]
    lengths = [len(one) for one in drawn([row] * 400, [prompt] * 400, places, 0)]
    assert min(lengths) in (20, 21)
    assert max(lengths) in (88, 89)
    assert abs(sum(lengths) / 400 - 55) < 3
    assert [len(one) for one in drawn([row] * 5, [prompt] * 5, places[7:12], 0)] == lengths[7:12]
    assert {len(one) for one in drawn([row] * 5, [prompt] * 5, places[7:12], 1)} == {90}


def test_completions_go_on_from_their_demonstrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = trainer(stage_run(tmp_path, scored(train={"batch_size": 16})))
    first_gradients(one, monkeypatch)
    (rows,) = one._buffered_inputs
    prefix, mask = rows["prefix_mask"], rows["completion_mask"].bool()
    assert int(prefix.any(1).sum()) == 4, "one completion of each group"
    assert (prefix & ~mask).sum() == 0
    assert mask.sum(1).max() == 6, "what is given counts towards the limit"
    for row in prefix.any(1).nonzero().flatten().tolist():
        number = PROMPTS.index(text(one, rows["prompt_ids"][row][rows["prompt_mask"][row].bool()]))
        given = rows["completion_ids"][row][prefix[row]]
        assert SUMS[number].startswith(text(one, given))
        assert 1 <= len(given) <= 5 < int(mask[row].sum()) + 1
    metrics = RunFolder(tmp_path).samples()
    assert [sample["prefix_tokens"] > 0 for sample in metrics] == [False, False, False, True]
    assert metrics[3]["completion"].startswith(SUMS[PROMPTS.index(metrics[3]["prompt"])][: metrics[3]["prefix_tokens"]])


def text(one: Policy, ids: torch.Tensor) -> str:
    return str(one._tokenizer.decode(ids))


def test_the_reward_sees_the_whole_text_and_demonstrations_are_counted(tmp_path: Path) -> None:
    one = trainer(stage_run(tmp_path, scored(train={"batch_size": 16, "max_steps": 1})))
    seen: list[str] = []

    def reward(completions: list[str], **others: Any) -> list[float]:
        seen.extend(completions)
        return [float("It" in completion) for completion in completions]

    one.reward_funcs = [reward]
    one.train()
    assert [completion.startswith("I") for completion in seen].count(True) >= 4
    (row,) = RunFolder(tmp_path).metrics()
    assert row["rollout/demonstrations"] == 1
    assert 1 <= row["rollout/prefix_tokens"] <= 5
    assert row["policy/ratio_mean"] == pytest.approx(1, abs=1e-6)


def gradient_of(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, **objective: Any) -> tuple[Any, Any]:
    run = stage_run(tmp_path / name, scored(objective=objective, train={"batch_size": 16}))
    return (one := trainer(run)), first_gradients(one, monkeypatch)


def test_without_a_demonstration_it_is_the_same_objective_on_plain_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """p = 0: Dr. GRPO with the dual clip, on G completions of the model's own."""
    made = scored(train={"batch_size": 16})
    run = stage_run(tmp_path / "none", made)
    without = run.examples.train.remove_columns("completion").add_column("completion", [None] * 16)
    one = trainer(replace(run, examples=replace(run.examples, train=without)))
    found = first_gradients(one, monkeypatch)
    assert not one._buffered_inputs[0]["prefix_mask"].any()
    plain = {"name": "policy", "group_size": 4, "advantage": "centered", "aggregation": "constant", "bound": 3.0}
    other = trainer(stage_run(tmp_path / "plain", scored(objective=plain, train={"batch_size": 16})))
    wanted = first_gradients(other, monkeypatch)
    assert any(gradient.any() for gradient in wanted.values())
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-9, msg=name)


def test_with_nothing_kept_demonstrations_are_context_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = gradient_of(tmp_path, "none", monkeypatch, prefix_keep=0.0)
    (rows,) = one._buffered_inputs
    assert not rows["advantages"][rows["prefix_mask"]].any()
    one, _ = gradient_of(tmp_path, "all", monkeypatch, prefix_keep=1.0)
    (rows,) = one._buffered_inputs
    hybrid = rows["prefix_mask"].any(1)
    for advantages, mask in zip(rows["advantages"][hybrid], rows["completion_mask"][hybrid].bool(), strict=True):
        assert len(set(advantages[mask].tolist())) == 1, "every token has its completion's advantage"
    assert rows["advantages"][rows["prefix_mask"]].any()


def test_the_gradient_does_not_depend_on_the_micro_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for batch_size, accumulate in ((16, 1), (4, 4)):
        train = {"batch_size": batch_size, "accumulate": accumulate}
        one = trainer(stage_run(tmp_path / f"{batch_size}", scored(train=train, objective={"prefix_keep": 0.5})))
        found.append(first_gradients(one, monkeypatch))
    assert any(gradient.any() for gradient in found[0].values())
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-7, msg=name)


def test_stale_updates_leave_the_ratio_of_demonstrations_at_one(tmp_path: Path) -> None:
    """Two updates of one rollout with an enormous learning rate: sampled tokens move, given ones do not."""
    made = scored(rollout={"updates": 2}, train={"max_steps": 2, "learning_rate": 0.05, "batch_size": 8})
    one = trainer(stage_run(tmp_path, made))
    ratios: list[torch.Tensor] = []
    original = one.objective

    def watched(logps: Any, old_logps: Any, *others: Any, prefix_mask: Any, **more: Any) -> Any:
        old = torch.where(prefix_mask, logps.detach(), old_logps)
        ratios.append((logps.detach() - old)[prefix_mask].abs().max())
        assert old_logps.shape == prefix_mask.shape
        return original(logps, old_logps, *others, prefix_mask=prefix_mask, **more)

    one.objective = watched
    one.train()
    assert [float(ratio) for ratio in ratios] == [0.0, 0.0]
    rows = RunFolder(tmp_path).metrics()
    assert abs(rows[1]["policy/ratio_mean"] - 1) > 1e-4


def test_a_run_goes_on_within_a_rollout(tmp_path: Path) -> None:
    """Three updates a rollout, a checkpoint after the second: the rest is the same, prefix and all."""

    def told(folder: Path, save_every: int | None) -> list[dict[str, Any]]:
        train = {"max_steps": 5, "save_every": save_every, "keep_checkpoints": 9, "learning_rate": 0.01}
        run = stage_run(folder, scored(rollout={"updates": 3}, train=train))
        trainer(run).train(resume_from_checkpoint=str(run.checkpoint) if run.checkpoint else None)
        return [{key: value for key, value in row.items() if key != "seconds"} for row in RunFolder(folder).metrics()]

    whole = told(tmp_path / "one", 2)
    output = tmp_path / "one" / "checkpoints" / "policy"
    for late in output.glob("checkpoint-4*"):
        late.rename(tmp_path / late.name)
    folder = RunFolder(tmp_path / "one")
    marker = json.loads((output / "checkpoint-2" / "complete.json").read_text())
    folder.truncate_metrics(marker["metrics"])
    assert told(tmp_path / "one", 2) == whole
    assert len(whole) == 5


def test_data_without_demonstrations_is_refused(tmp_path: Path) -> None:
    run = stage_run(tmp_path, scored())
    bare = replace(run, examples=replace(run.examples, train=run.examples.train.remove_columns("completion")))
    with pytest.raises(SeqtuneError, match="learns from demonstrations, and the data has no column 'completion'"):
        trainer(bare)


def test_an_engine_that_answers_with_nothing_ends_the_completion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E3: every completion has a token; here that of the end, or what it was given and that."""
    one = trainer(stage_run(tmp_path, scored(train={"batch_size": 16})))
    asked: list[tuple[Any, ...]] = []

    def nothing(*arguments: Any) -> tuple[Any, Any]:
        asked.append(arguments)
        return [[]] * 8, [[]] * 8

    monkeypatch.setattr(one, "_sample", nothing)
    monkeypatch.setattr(one, "_places", lambda rows: [(0, row // 4, row % 4) for row in range(rows)])
    one._rows = [one.train_dataset[row // 4] for row in range(8)]
    prompts = [one._tokenizer(row["prompt"])["input_ids"] for row in one._rows]
    ids, known = one._generate_single_turn(prompts, None, {}, 4)
    end = one.eos_token_ids[0]
    assert ids[:3] == [[end]] * 3
    assert ids[3][-1] == end
    assert len(ids[3]) > 1
    assert known is not None
    assert [len(row) for row in known] == [len(row) for row in ids]
    assert set(known[3]) == {None}, "no engine's log-probs on what was given"
    ((beginnings, _, _, alike, _),) = asked
    assert [len(begun) - len(prompt) for begun, prompt in zip(beginnings, prompts, strict=True)][2:4] == [
        0,
        len(ids[3]) - 1,
    ]
    assert alike == 1, "vLLM may not take one prompt for all of a group"


# Whole demonstrations in groups without a success


def hard(folder: Path, *, easy: int = -1, limit: int = 12, **objective: Any) -> Policy:
    """Only the demonstration is right, but for one prompt whose second completion is too."""
    named = {"name": "dagrpo", "group_size": 4, "anchors": True, "tau": 0.0, **objective}
    made = stage(objective=named, rollout={"max_new_tokens": limit}, train={"batch_size": 16, "max_steps": 1})
    one = trainer(stage_run(folder, made))

    def reward(prompts: list[str], completions: list[str], **others: Any) -> list[float]:
        found = [float(completion in SUMS) for completion in completions]
        for group in range(len(prompts) // 4):
            if PROMPTS.index(prompts[4 * group]) == easy:
                found[4 * group + 1] = 1.0
        return found

    one.reward_funcs = [reward]
    return one


def test_a_group_without_a_success_gets_the_demonstration(tmp_path: Path) -> None:
    """'It is 0.' and its end are 9 tokens, with 12 allowed; its advantage is that of the one success of four."""
    one = hard(tmp_path)
    one.train()
    (rows,) = one._buffered_inputs
    prefix, mask = rows["prefix_mask"], rows["completion_mask"].bool()
    assert prefix.any(1).sum() == 4
    for row in prefix.any(1).nonzero().flatten().tolist():
        assert torch.equal(prefix[row], mask[row])
        number = PROMPTS.index(text(one, rows["prompt_ids"][row][rows["prompt_mask"][row].bool()]))
        assert text(one, rows["completion_ids"][row][mask[row]]) == SUMS[number] + one._tokenizer.eos_token
        assert float(rows["advantages"][row]) == pytest.approx(1.5, abs=1e-3)
    assert (rows["advantages"][~prefix.any(1)] < 0).all()
    (row,) = RunFolder(tmp_path).metrics()
    assert row["rollout/anchors"] == 1
    assert row["reward/mean"] == 0, "what is put in is no success of the model's"
    assert [sample["reward"] for sample in RunFolder(tmp_path).samples()] == [0, 0, 0, 1]
    assert RunFolder(tmp_path).samples()[3]["completion"] in SUMS


def test_a_group_with_a_success_gets_none(tmp_path: Path) -> None:
    one = hard(tmp_path / "first")
    one.train()
    numbers = {PROMPTS.index(sample["prompt"]) for sample in RunFolder(tmp_path / "first").samples()}
    (easy,) = numbers
    other = hard(tmp_path / "second", easy=easy)
    other.train()
    assert other._buffered_inputs[0]["prefix_mask"].any(1).sum() == 3
    assert RunFolder(tmp_path / "second").metrics()[0]["rollout/anchors"] == 0.75
    assert [sample["reward"] for sample in RunFolder(tmp_path / "second").samples()] == [0, 1, 0, 0]


@pytest.mark.parametrize(("sampled", "demonstrated", "anchors"), [(0.5, 1.0, 4), (0.0, 0.5, 0)])
def test_a_reward_at_the_bound_is_no_success(sampled: float, demonstrated: float, anchors: int, tmp_path: Path) -> None:
    """`objective.success` is 0.5: half a point of the model's is none, nor is that of a demonstration."""
    one = hard(tmp_path)
    one.reward_funcs = [lambda completions, **others: [demonstrated if c in SUMS else sampled for c in completions]]
    one.train()
    assert one._buffered_inputs[0]["prefix_mask"].any(1).sum() == anchors


def test_a_demonstration_that_is_too_long_or_no_success_is_no_anchor(tmp_path: Path) -> None:
    for limit, anchors in ((8, 0), (9, 4)):
        short = hard(tmp_path / f"{limit}", limit=limit)
        short.train()
        assert short._buffered_inputs[0]["prefix_mask"].any(1).sum() == anchors
    wrong = hard(tmp_path / "wrong")
    wrong.reward_funcs = [lambda completions, **others: [0.0] * len(completions)]
    wrong.train()
    assert not wrong._buffered_inputs[0]["prefix_mask"].any()
    assert RunFolder(tmp_path / "wrong").metrics()[0]["rollout/anchors"] == 0


def test_anchors_are_learnt_with_their_shaped_probability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of -A Σ_t π / (π + γ) / N on the anchors alone: all other advantages are taken away."""
    one = hard(tmp_path)
    assign = one.advantage
    monkeypatch.setattr(one, "advantage", lambda r, **known: torch.where(r > 0.5, assign(r, **known), 0.0))
    found = first_gradients(one, monkeypatch)
    (rows,) = one._buffered_inputs
    model = load_model(one.run.stage.model)
    loss = torch.zeros(())
    for row in rows["prefix_mask"].any(1).nonzero().flatten().tolist():
        prompt = rows["prompt_ids"][row][rows["prompt_mask"][row].bool()]
        completion = rows["completion_ids"][row][rows["completion_mask"][row].bool()]
        logits = model(torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
        p = logits.softmax(-1).gather(1, completion[:, None])
        loss = loss - rows["advantages"][row] * (p / (p + 0.1)).sum() / rows["completion_mask"].sum()
    loss.backward()
    assert max(gradient.abs().max() for gradient in found.values()) > 1e-3
    for name, weight in model.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-4, atol=1e-7, msg=name)


def test_demonstrations_take_the_place_of_completions() -> None:
    tensors = {
        "completion_ids": torch.tensor([[5, 6], [7, 0]]),
        "completion_mask": torch.tensor([[1, 1], [1, 0]]),
        "sampling_per_token_logps": torch.tensor([[-1.0, -2.0], [-3.0, 0.0]]),
        "importance_sampling_ratio": torch.tensor([[2.0, 3.0], [4.0, 0.0]]),
        "ref_per_token_logps": torch.tensor([[-1.0, -2.0], [-3.0, 0.0]]),
        "prompt_ids": torch.tensor([[1], [2]]),
    }
    found = anchored(tensors, [Anchor(1, [8, 9, 10])])
    assert found["completion_ids"].tolist() == [[5, 6, 0], [8, 9, 10]]
    assert found["completion_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert found["prefix_mask"].tolist() == [[False] * 3, [True] * 3]
    assert found["importance_sampling_ratio"].tolist() == [[2, 3, 0], [1, 1, 1]]
    assert found["ref_per_token_logps"].tolist() == [[-1, -2, 0], [0, 0, 0]]
    assert found["sampling_per_token_logps"][1].isnan().all()
    assert found["prompt_ids"] is tensors["prompt_ids"]
    assert tensors["completion_ids"].tolist() == [[5, 6], [7, 0]], "the rollout itself is left as it is"
    assert not anchored(tensors, [])["prefix_mask"].any()
