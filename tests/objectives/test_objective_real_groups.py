"""Groups of real completions, five a question, through every kind of objective that learns from scored groups."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from seqtune.config.axes import TinyModelSpec
from seqtune.models.load import load_model, load_tokenizer
from seqtune.objectives.a_lol import fit_value, leftover_advantages, priorities
from seqtune.objectives.advantages import group
from seqtune.objectives.credit import tree
from seqtune.objectives.slic import slic_loss
from seqtune.objectives.specs.a_lol import ALol, ALolKl, ALolRefFree, ALolSeq
from seqtune.objectives.specs.dpo import Dpo
from seqtune.objectives.specs.tempo import Tempo

QUESTIONS, GROUP, TOKENS = 6, 5, 160
SOLVERS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


class Groups:
    """The first questions on which solvers differ, tokenised: `[B, T]` with rows of a question contiguous."""

    def __init__(self, lines: list[str]) -> None:
        spec = TinyModelSpec(name="tiny", hidden_size=32, layers=1, heads=2, kv_heads=1, intermediate_size=32)
        self.model, tokenizer = load_model(spec), load_tokenizer(spec)
        rows = [row for row in map(json.loads, lines) if 0 < sum(row[s]["is_correct"] for s in SOLVERS) < len(SOLVERS)]
        rows = rows[:QUESTIONS]
        texts = [
            (row["question"], text)
            for row in rows
            for text in (row["ground_truth"], *(row[s]["solution"] for s in SOLVERS))
        ]
        self.correct = torch.tensor([[1.0, *(float(row[s]["is_correct"]) for s in SOLVERS)] for row in rows])
        prompts = [tokenizer(question, add_special_tokens=False)["input_ids"][-32:] for question, _ in texts]
        answers = [
            [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id][:TOKENS]
            for _, text in texts
        ]
        self.mask = torch.tensor([[t < len(answer) for t in range(TOKENS)] for answer in answers])
        self.ids = torch.tensor([answer + [0] * (TOKENS - len(answer)) for answer in answers])
        self.prompts = torch.tensor([[0] * (32 - len(prompt)) + prompt for prompt in prompts])
        self.answers = answers
        with torch.no_grad():
            self.reference = self.logps()

    def logps(self) -> Tensor:
        """log π of the answers' tokens, `[B, T]`."""
        ids = torch.cat([self.prompts, self.ids], 1)
        logits = self.model(ids).logits[:, self.prompts.shape[1] - 1 : -1]
        return logits.log_softmax(-1).gather(2, self.ids.unsqueeze(2)).squeeze(2)

    def sums(self) -> Tensor:
        return torch.where(self.mask, self.logps(), 0).sum(1)

    def learn(self, loss: Any, steps: int = 4) -> list[float]:
        """Losses before each of some steps."""
        optimiser = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        found = []
        for _ in range(steps):
            value = loss()
            found.append(float(value.detach()))
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
        return found


@pytest.fixture
def groups(real_data) -> Groups:
    return Groups(real_data("gsm8k_model_solutions.jsonl").read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("spec", [ALol(), ALolSeq(), ALolRefFree(), ALolKl()], ids=lambda spec: spec.name)
def test_a_lol_learns_from_the_right_solutions(groups: Groups, spec: Any) -> None:
    """R: right or not; V: fitted to what the two small solvers, as the reference, earn for each question."""
    embeddings = groups.model.get_input_embeddings().weight.detach()
    features = embeddings[groups.prompts[::GROUP]].mean(1)
    value = fit_value(features, groups.correct[:, 1:3].mean(1), steps=200)
    expected = value(features).repeat_interleave(GROUP)
    advantages = leftover_advantages(groups.correct.flatten(), expected)
    assert ((advantages > 0) <= (groups.correct.flatten() == 1)).all()
    assert abs(float(priorities(advantages).sum()) - 1) < 1e-6
    loss = spec.build()

    def of_all() -> Tensor:
        total: Tensor = loss(groups.logps(), groups.reference, advantages, groups.mask, denominator=len(advantages))[0]
        return total

    losses = groups.learn(of_all)
    assert losses[-1] < losses[0] or spec.stops_gradient, "a ratio that grows with π may raise the value"
    gained = (groups.sums() - torch.where(groups.mask, groups.reference, 0).sum(1)).detach()
    assert gained[advantages > 0].mean() > 0


def test_dpo_and_ranking_set_right_above_wrong(groups: Groups) -> None:
    right, wrong = groups.correct.argmax(1), groups.correct.argmin(1)
    rows = torch.arange(QUESTIONS) * GROUP
    start = torch.where(groups.mask, groups.reference, 0).sum(1)

    def dpo() -> Tensor:
        sums = groups.sums()
        pair = sums[rows + right], sums[rows + wrong], start[rows + right], start[rows + wrong]
        total: Tensor = Dpo().build()(*pair, denominator=QUESTIONS)[0]
        return total

    losses = groups.learn(dpo)
    assert losses[0] == pytest.approx(0.693147, abs=1e-5)
    assert losses[-1] < losses[0]

    def rank() -> Tensor:
        return slic_loss(groups.sums().reshape(QUESTIONS, GROUP), groups.correct, denominator=QUESTIONS)[0]

    before = slic_loss(start.reshape(QUESTIONS, GROUP), groups.correct, denominator=QUESTIONS)
    losses = groups.learn(rank, steps=6)
    assert losses[-1] < float(before[0])


def test_the_tree_credits_where_real_solutions_part(groups: Groups) -> None:
    rewards = groups.correct.flatten()
    a = group(rewards, GROUP)
    found = Tempo(group_size=GROUP).build_advantage()(rewards, completion_ids=groups.ids, mask=groups.mask)
    assert torch.equal(found, tree(a, groups.ids, groups.mask, GROUP))
    delta = torch.where(groups.mask, found - a.unsqueeze(1), 0)
    unique = [groups.answers.count(answer) == 1 for answer in groups.answers]
    assert torch.allclose(delta.sum(1)[unique], a[unique], atol=1e-5)
    parted = (delta.abs() > 1e-6).sum(1)
    assert int(parted.max()) >= 2, "some solutions share a beginning with others and leave it later"
    assert float((parted <= GROUP).float().mean()) == 1, (
        "a completion leaves at most one branch a companion, and the root"
    )
