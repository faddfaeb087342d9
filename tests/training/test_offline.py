"""Training on scored completions of the data: against padded batches by hand, against neighbours, across a crash."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tiny_plans import FROM_GROUPS, comparable, create, plan_of, stage, weights, write_data
from torch.nn.utils.rnn import pad_sequence

from seqtune.config.axes import DataSpec, RolloutSpec
from seqtune.data import sources
from seqtune.errors import SeqtuneError
from seqtune.models.forest import attention
from seqtune.objectives.specs.a_lol import ALol, ALolRefFree
from seqtune.objectives.specs.dagrpo import DaGrpo
from seqtune.objectives.specs.dr_grpo import DrGrpo
from seqtune.objectives.specs.grpo import Grpo
from seqtune.objectives.specs.gspo import Gspo
from seqtune.objectives.specs.policy import Policy
from seqtune.objectives.specs.slic import Slic
from seqtune.objectives.specs.tempo import Tempo
from seqtune.objectives.specs.ts_grpo import TsGrpo
from seqtune.packing.specs import Unpacked
from seqtune.peft.specs import Lora
from seqtune.registry import load
from seqtune.report.events import Notice, Step
from seqtune.rewards.specs import Format
from seqtune.training import ends, offline, values
from seqtune.training.offline import Drawn
from seqtune.training.run import _stage_run, resume, run_stage, train, trainer_of
from seqtune.training.supervised import StepRows

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

ALL = {"a_lol": ALol(value="group_mean", sampling="all"), "slic": Slic(), "tempo": Tempo(), "gspo": Gspo(beta=0.1)}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path)


def made(source: Path, kind: str = "slic", *, told: list[str] | None = None, **axes: Any) -> Any:
    """The trainer of a stage that learns from groups."""
    axes.setdefault("data", DataSpec(path=str(source), format="groups", eval_size=4))
    run = create(source.parent / "run", stage(kind, source, **axes))
    plan = plan_of(run)
    (run.path / "checkpoints" / kind).mkdir(parents=True)
    model, tokenizer = ends.load_start(plan, run, 0)

    def watch(event: Any) -> None:
        if told is not None and isinstance(event, Notice):
            told.append(event.text)

    return load(trainer_of(plan.stages[0]))(_stage_run(plan, run, 0, watch, model, tokenizer, None))


def moved(trainer: Any) -> None:
    """The model a little away from its reference, so that ratios are not 1."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)


def padded(trainer: Any, model: Any, rows: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """Log-probs of the completions `[B, L]` and their mask, of every prompt in full and padded on the right."""
    texts = [(row["prompt_ids"], own) for row in rows for own in row["completion_ids"]]
    ids = pad_sequence([torch.tensor([*prompt, *own]) for prompt, own in texts], batch_first=True)
    seen = pad_sequence([torch.ones(len(prompt) + len(own), dtype=torch.long) for prompt, own in texts], True)
    with attention(model, trainer.plain_attention):
        logps = model(input_ids=ids, attention_mask=seen, use_cache=False).logits.log_softmax(-1)
    found = [
        logps[n, len(prompt) - 1 : len(prompt) + len(own) - 1].gather(1, torch.tensor(own)[:, None])[:, 0]
        for n, (prompt, own) in enumerate(texts)
    ]
    return pad_sequence(found, True), pad_sequence([torch.ones(len(own)) for _, own in texts], True)


def test_ratios_are_1_before_an_update_whatever_the_dropout(data: Path) -> None:
    """The old policy is the model the stage starts from, without dropout."""
    trainer = made(data, "tempo", objective=Tempo(), peft=Lora(rank=4, dropout=0.5))
    adapted = [weight for name, weight in trainer.model.named_parameters() if "lora_B" in name]
    trainer.model.train()
    batch = trainer.lay(trainer.units())
    still = trainer.measure(trainer.model, batch, trainer.count(batch))
    assert float(still.metrics["policy/approx_kl"]) < 1e-9
    with torch.no_grad():
        for weight in adapted:
            weight += 0.05
    first, again = (trainer.measure(trainer.model, batch, trainer.count(batch)).loss for _ in range(2))
    assert first.equal(again), "a second look draws nothing"


def by_hand(trainer: Any, rows: list[dict[str, Any]], denominator: float) -> Tensor:
    """The objective on padded batches, with what it takes worked out row by row."""
    logps, mask = padded(trainer, trainer.model, rows)
    spec = trainer.run.stage.objective
    if spec.family == "ranking":
        total = torch.zeros(())
        start = 0
        for row in rows:
            size = len(row["scores"])
            own, scores = (logps * mask).sum(1)[start : start + size], row["scores"]
            pairs = [(i, j) for i in range(size) for j in range(size) if scores[i] > scores[j]]
            hinges = [(1 - own[i] + own[j]).clamp(min=0) for i, j in pairs]
            total = total + torch.stack(hinges).mean() - 0.5 * own[scores.index(max(scores))]
            start += size
        return total / denominator
    with torch.no_grad():
        reference, _ = padded(trainer, trainer.reference, rows)
    if spec.family == "offline":
        advantages = [max(s - sum(row["scores"]) / len(row["scores"]), 0) for row in rows for s in row["scores"]]
        return trainer.objective(logps, reference, torch.tensor(advantages), mask, denominator=denominator)[0]
    parts, start = [], 0
    for row in rows:
        size = len(row["scores"])
        ids = pad_sequence([torch.tensor(own) for own in row["completion_ids"]], True)
        given = {"completion_ids": ids, "mask": mask[start : start + size, : ids.shape[1]].bool()}
        known = {name: given[name] for name in spec.advantage_inputs}
        found = spec.model_copy(update={"group_size": size}).build_advantage()(torch.tensor(row["scores"]), **known)
        found = found if found.dim() == 2 else found[:, None].expand(ids.shape)
        parts.append(torch.nn.functional.pad(found, (0, mask.shape[1] - ids.shape[1])))
        start += size
    return trainer.objective(logps, reference, torch.cat(parts), mask, reference, denominator=denominator)[0]


@pytest.mark.parametrize("kind", list(ALL))
def test_loss_and_gradients_are_those_of_padded_batches(kind: str, data: Path) -> None:
    trainer = made(data, kind if kind in FROM_GROUPS else "tempo", objective=ALL[kind])
    moved(trainer)
    rows = trainer.units()
    assert {len(row["scores"]) for row in rows} == {3, 4}, "groups of different sizes"
    batch = trainer.lay(rows)
    denominator = trainer.count(batch)
    found = trainer.measure(trainer.model, batch, denominator).loss
    found.backward()
    gradients = {name: weight.grad.clone() for name, weight in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    expected = by_hand(trainer, rows, denominator)
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), abs=2e-5)
    largest = max(gradient.abs().max() for gradient in gradients.values())
    assert largest > 1e-4
    for name, weight in trainer.model.named_parameters():
        assert torch.allclose(gradients[name], weight.grad, rtol=1e-3, atol=1e-5 * float(largest)), name
    assert batch.tokens.computed < 0.8 * batch.tokens.read, "the prompt is laid out once"


@pytest.mark.parametrize(
    ("spec", "unit"),
    [
        (Tempo(), "tokens"),
        (Grpo(), "rows"),
        (DrGrpo(), "slots"),
        (DaGrpo(tau=0.9), "kept"),
        (TsGrpo(), "rows"),
        (Policy(ratio="segment"), "rows"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_denominator_counts_the_whole_step(spec: Any, unit: str, data: Path) -> None:
    trainer = made(data, "tempo", objective=spec, packing=Unpacked(capacity=64))
    rows = trainer.units()
    batch = trainer.lay(rows)
    texts = [own for row in rows for own in row["completion_ids"]]
    counts = {"tokens": sum(map(len, texts)), "rows": len(texts), "slots": 64 * len(texts)}
    count = trainer.count(batch)
    if unit == "kept":  # completions near one with the other outcome are left out, with their tokens
        assert 0 < count < counts["tokens"]
    else:
        assert count == counts[unit]
    parts = [trainer.lay([row]) for row in rows]
    assert count == sum(trainer.count(part) for part in parts)
    with torch.no_grad():
        whole, *cut = (float(trainer.measure(trainer.model, one, count).loss) for one in (batch, *parts))
    assert sum(cut) == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("kind", ["slic", "tempo", "a_lol", "a_lol_seq", "a_lol_kl"])
@pytest.mark.parametrize("peft", [None, Lora(rank=2)], ids=["full", "lora"])
def test_a_stage_learns_from_groups(kind: str, peft: Any, data: Path, tmp_path: Path) -> None:
    given = {"max_steps": 12, "learning_rate": 3e-3, "schedule": "constant"}
    more = {} if peft is None else {"peft": peft}
    folder = create(tmp_path / "run", stage(kind, data, train=given, **more))
    run_stage(plan_of(folder), folder, 0, lambda event: None)
    start, *rows, end = folder.metrics()
    assert [row["step"] for row in rows] == list(range(1, 13))
    if kind == "slic":
        assert end["eval/rank_accuracy"] > 0.5
        assert end["eval/loss"] < start["eval/loss"] - 0.2
    elif kind == "tempo":
        assert start["eval/policy_ratio_mean"] == pytest.approx(1, abs=1e-6)
        assert end["eval/policy_approx_kl"] > 1e-4
    else:
        assert start["eval/a_lol_ratio_mean"] == pytest.approx(1, abs=1e-6)
        assert end["eval/a_lol_nll"] < start["eval/a_lol_nll"] - 0.1


def gains(data: Path, objective: Any) -> list[float]:
    """What a few steps add to the log-prob of the right, the wrong, the half right and the short wrong completion."""
    train = {"max_steps": 10, "learning_rate": 3e-3, "schedule": "constant"}
    trainer = made(data, "slic", objective=objective, train=train)
    rows = list(offline.groups(trainer.run, trainer.run.examples.train))
    before = padded(trainer, trainer.model, rows)[0].sum(1).detach()
    trainer.train()
    gained = padded(trainer, trainer.model, rows)[0].sum(1).detach() - before
    groups = torch.split(gained, [len(row["scores"]) for row in rows])
    return [float(torch.stack([one[place] for one in groups if len(one) > place]).mean()) for place in range(4)]


def test_what_sets_them_apart(data: Path) -> None:
    """A-LoL unlearns nothing: what wrong texts share with right ones is learnt along. Ranking pushes down what is
    wrong and too probable, the short one, and lets the long wrong one be, which is less probable anyway."""
    right, wrong, half, short = gains(data, ALolRefFree(value="group_mean"))
    assert min(right, wrong, half, short) > 0
    assert right > wrong + 1
    (data.parent / "run").rename(data.parent / "other")
    right, wrong, _, short = gains(data, Slic(regularisation=0.0))
    assert short < 0
    assert right > short + 0.5
    assert abs(wrong) < abs(short)


def test_texts_of_one_prompt_share_it_wherever_they_were_drawn(data: Path) -> None:
    trainer = made(data, "a_lol", train={"batch_size": 8, "accumulate": 1})
    one, other = ([row for row in trainer.train_dataset.to_list() if row["example"] == n] for n in (1, 3))
    rows = [one[0], other[0], one[0], other[-1]]
    trainer.run.stage.train.__dict__["batch_size"] = 2
    batches = trainer.micro_batches(StepRows(rows))
    assert [len({tuple(row["prompt_ids"]) for row in batch.rows}) for batch in batches] == [1, 1]
    twice = next(batch for batch in batches if batch.rows[0] == batch.rows[1] == one[0])
    assert twice.tokens.computed * 2 == twice.tokens.read, "a text that is drawn twice is computed once"


def test_credit_by_tree_differs_from_one_advantage_a_completion(data: Path) -> None:
    rows = made(data, "tempo").units()
    found = {}
    for spec in (Tempo(), Tempo(tree_weight=0.0), Policy()):
        (data.parent / "run").rename(data.parent / f"run-{len(found)}")
        trainer = made(data, "tempo", objective=spec)
        found[len(found)] = trainer.lay(rows).advantages
    tree, flat, plain = found.values()
    mask = made_mask(rows)
    assert torch.equal(torch.where(mask, flat, 0), torch.where(mask, plain[:, None].expand(mask.shape), 0))
    assert not torch.allclose(tree, flat)


def made_mask(rows: list[dict[str, Any]]) -> Tensor:
    return pad_sequence([torch.ones(len(own)) for row in rows for own in row["completion_ids"]], True).bool()


def test_texts_are_drawn_in_proportion_to_their_advantage(data: Path) -> None:
    shares = np.array([0.25, 0.0, 0.75])
    drawn = list(Drawn(40_000, shares, seed=0))
    assert len(drawn) == 40_000
    assert drawn.count(1) == 0
    assert drawn.count(2) / drawn.count(0) == pytest.approx(3, rel=0.05)
    assert drawn[:999] == list(Drawn(999, shares, seed=0))
    trainer = made(data, "a_lol")
    kinds = {"priority": Drawn, "positive": offline.Stream, "all": offline.Stream}
    sampler = trainer._get_train_sampler()
    assert type(sampler) is Drawn
    advantages = np.array([row["advantages"][0] for row in trainer.train_dataset])
    assert np.allclose(sampler.shares, advantages / advantages.sum())
    assert all(len(row["scores"]) == 1 and row["advantages"][0] > 0 for row in trainer.train_dataset)
    for number, sampling in enumerate(("positive", "all")):
        (data.parent / "run").rename(data.parent / f"run-{number}")
        other = made(data, "a_lol", objective=ALol(value="group_mean", sampling=sampling))
        assert type(other._get_train_sampler()) is kinds[sampling]
        assert (len(other.train_dataset) == 20) == (sampling == "all")


FIT = {"rollout": RolloutSpec(max_new_tokens=3), "reward": Format(pattern="[ -~].*")}


def test_completions_that_fit_a_value_have_positions(data: Path) -> None:
    long = {**FIT, "rollout": RolloutSpec(max_new_tokens=100_000)}
    with pytest.raises(SeqtuneError, match="and its completion up to 100000 more, but the model reads at most"):
        made(data, "a_lol", objective=ALol(), **long)


def test_the_value_is_fitted_to_what_the_model_itself_earns(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes a right answer where numbers have two digits, and a wrong one to the others."""
    asked = []

    def writes(model: Any, prompts: list[list[int]], **settings: Any) -> list[list[int]]:
        asked.extend(prompts)
        assert len(set(settings["seeds"])) == len(prompts)
        return [[65 if prompt[1] != 32 else 7] for prompt in prompts]

    monkeypatch.setattr(values, "generate", writes)
    told: list[str] = []
    trainer = made(data, "a_lol", told=told, objective=ALol(value_samples=2, sampling="all"), **FIT)
    assert len(asked) == 2 * 20
    assert all(asked[n] == asked[n + 1] for n in range(0, 40, 2))
    fit = trainer.fit
    assert fit["value/prompts"] == 20
    assert fit["value/mse"] < fit["value/mse_constant"] / 2, "V tells the prompts apart"
    for row in trainer.train_dataset:
        earns = row["prompt_ids"][1] != 32
        if earns:
            assert max(row["advantages"]) < 0.5, "the model does as well by itself"
        else:
            assert row["advantages"][0] > 0.5
    assert any(text.startswith("the expected reward of each prompt") for text in told)


def test_values_are_sampled_as_rollouts_are(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def writes(model: Any, prompts: list[list[int]], **settings: Any) -> list[list[int]]:
        asked.update(settings)
        return [[7]] * len(prompts)  # earns nothing

    monkeypatch.setattr(values, "generate", writes)
    rollout = RolloutSpec(max_new_tokens=3, temperature=0.5, top_p=0.75, top_k=4)
    made(data, "a_lol", objective=ALol(value_samples=1, sampling="all"), reward=FIT["reward"], rollout=rollout)
    drawn = {name: asked[name] for name in ("max_new_tokens", "temperature", "top_p", "top_k")}
    assert drawn == {"max_new_tokens": 3, "temperature": 0.5, "top_p": 0.75, "top_k": 4}


def test_what_a_prompt_is_valued_by_does_not_depend_on_its_batch(data: Path) -> None:
    run = made(data, "slic").run
    prompts = [[50, 51, 52], [60], [70, 71, 72, 73, 74]]
    with attention(run.model, "sdpa"):
        apart = torch.cat([values._features(run, [prompt]) for prompt in prompts])
        together = values._features(run, prompts)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-6)


def test_values_are_logged_once_and_kept_for_a_resumed_run(data: Path, tmp_path: Path) -> None:
    """Stopped in the middle and resumed it is as if it had never stopped, and samples nothing again."""
    one = stage("a_lol", data, objective=ALol(value_samples=1), train={"save_every": 2, "max_steps": 5}, **FIT)
    whole, broken = create(tmp_path / "whole", one), create(tmp_path / "broken", one)
    train(plan_of(whole), folder=whole, watch=lambda event: None)
    rows = [row for row in whole.metrics() if "loss" in row]
    assert [row["step"] for row in rows if "value/mse" in row] == [1]

    def stop(event: Any) -> None:
        if isinstance(event, Step) and event.row["step"] == 3 and "loss" in event.row:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(plan_of(broken), folder=broken, watch=stop)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(values, "generate", None)
        resume(broken, watch=lambda event: None)
    assert comparable(broken) == comparable(whole)
    assert weights(broken, "a_lol") == weights(whole, "a_lol") != {}


def test_nothing_better_than_expected_is_an_error(data: Path) -> None:
    with pytest.raises(SeqtuneError, match="no completion scores more than its prompt is expected to"):
        made(data, "a_lol", objective=ALol(value_samples=1), rollout=FIT["rollout"], reward=Format(pattern=".*"))


def test_a_value_without_a_reward_says_what_to_choose(data: Path) -> None:
    with pytest.raises(SeqtuneError, match="samples completions and scores them, but there is no rollout") as caught:
        made(data, "a_lol", objective=ALol())
    assert "objective.value=group_mean" in caught.value.problems[0].hint


def test_groups_that_say_nothing_are_left_out_and_counted(tmp_path: Path) -> None:
    source = tmp_path / "groups.jsonl"
    row = '{{"prompt": "{0} is ", "completions": ["one", "two"], "scores": [{1}, 1]}}\n'
    source.write_text("".join(row.format(n, n % 3) for n in range(9)))
    told: list[str] = []
    trainer = made(source, "slic", told=told, data=DataSpec(path=str(source), format="groups"))
    assert len(trainer.train_dataset) == 6
    assert "3 of 9 groups have equal scores, which teach nothing: left out" in told
    source.write_text(row.format(0, 1) * 3)
    (tmp_path / "run").rename(tmp_path / "other")
    with pytest.raises(SeqtuneError, match="no group has two different scores"):
        made(source, "slic", data=DataSpec(path=str(source), format="groups"))


@pytest.mark.parametrize(("overflow", "sizes"), [("drop", 2), ("truncate", 3)])
def test_long_completions(overflow: str, sizes: int, tmp_path: Path) -> None:
    source = tmp_path / "groups.jsonl"
    long = "a" * 40
    source.write_text(f'{{"prompt": "say ", "completions": ["one", "two", "{long}"], "scores": [1, 0, 2]}}\n')
    told: list[str] = []
    spec = DataSpec(path=str(source), format="groups")
    trainer = made(source, "slic", told=told, data=spec, packing=Unpacked(capacity=16, on_overflow=overflow))
    (row,) = trainer.train_dataset
    assert len(row["scores"]) == sizes
    assert row["ended"] == [True, True, False][:sizes]
    assert max(map(len, row["completion_ids"])) <= 16 - len(row["prompt_ids"])
    assert any("1 completions with their prompts are longer than packing.capacity=16" in text for text in told)
    (tmp_path / "run").rename(tmp_path / "other")
    with pytest.raises(SeqtuneError, match=r"longer than packing\.capacity=16"):
        made(source, "slic", data=spec, packing=Unpacked(capacity=16))


@pytest.mark.parametrize("how", ["best_worst", "all"])
def test_pairs_of_groups_train_as_pairs(how: Any, data: Path) -> None:
    """Of 3 or 4 completions with different scores: 3 or 6 pairs. The best and the worst are those of the pairs."""
    spec = DataSpec(path=str(data), format="groups", eval_size=4, pairs=how)
    trainer = made(data, "dpo", data=spec)
    sizes = [len(scores) for scores in sources.load(spec).train["scores"]]
    assert len(trainer.train_dataset) == (20 if how == "best_worst" else sum({3: 3, 4: 6}[size] for size in sizes))
    if how == "best_worst":
        (data.parent / "run").rename(data.parent / "other")
        pairwise = DataSpec(path=str(data), format="preference", eval_size=4)
        same = made(data, "dpo", data=pairwise)
        assert trainer.train_dataset["prompt_ids"] == same.train_dataset["prompt_ids"]
