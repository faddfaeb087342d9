"""Entropies and stops in an evaluation, end to end with a tiny model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from seqtune.config.axes import EvalSpec, TinyModelSpec
from seqtune.evaluation.evaluate import evaluate
from seqtune.models.load import load_model, load_tokenizer
from seqtune.rollout.entropy import thresholds, top_entropy

if TYPE_CHECKING:
    from collections.abc import Callable

MODEL = TinyModelSpec(name="tiny", layers=2, hidden_size=32, heads=2, kv_heads=1)
ROWS = Dataset.from_list([{"prompt": "ab" * n + "?", "answer": str(n)} for n in range(1, 9)])


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model(MODEL)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(MODEL)


def in_turn(*scores: float) -> Callable[..., list[float]]:
    return lambda prompts, completions, **columns: [scores[i % len(scores)] for i in range(len(completions))]


def test_the_entropy_is_that_of_the_first_segment(model: Any, tokenizer: Any) -> None:
    """Against one forward pass over prompt and completion; temperature changes samples, not entropies."""
    spec = EvalSpec(name="pass_at_k", samples=2, temperature=0.7, max_new_tokens=9, entropy=True, stop_segment=4)
    made: list[list[int]] = []

    def reward(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        made[:] = completion_ids
        return in_turn(1.0, 0.0)(prompts, completions)

    found = evaluate(model, tokenizer, ROWS, spec, reward)
    every = [one for item in found.items for one in item["completions"]]
    for number, (ids, one) in enumerate(zip(made, every, strict=True)):
        prompt = tokenizer(ROWS[number // 2]["prompt"])["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : len(prompt) - 1 + len(ids)]
        assert one["entropy"] == pytest.approx(float(top_entropy(logits[:4], 20).mean()), abs=1e-4)
    assert found.metrics["entropy"].value == pytest.approx(np.mean([one["entropy"] for one in every]))
    split = [[one["entropy"] for one in every if one["score"] == score] for score in (1.0, 0.0)]
    expected = thresholds(*split)
    for name in ("mean", "info", "bayes"):
        estimate = found.metrics[f"stop_entropy/{name}"]
        assert estimate.value == getattr(expected, name)
        assert estimate.n == 16
        assert np.isfinite([estimate.low, estimate.high]).all()
        assert estimate.low < estimate.high
    assert "stopped" not in found.metrics


@pytest.mark.parametrize(("reward", "accuracy"), [(in_turn(0.0), "accuracy"), (in_turn(0.3), "reward")])
def test_without_a_right_completion_there_are_no_thresholds(
    model: Any, tokenizer: Any, reward: Callable[..., Any], accuracy: str
) -> None:
    found = evaluate(model, tokenizer, ROWS, EvalSpec(max_new_tokens=4, entropy=True), reward)
    assert set(found.metrics) == {accuracy, "length", "ended", "entropy"}


def test_a_stop_ends_a_completion_or_makes_it_answer(model: Any, tokenizer: Any) -> None:
    """At a threshold no segment exceeds, every completion stops after the first, unless it has ended in it."""
    values = {"max_new_tokens": 8, "stop_segment": 3, "stop_entropy": 9.0}
    ended = evaluate(model, tokenizer, ROWS, EvalSpec(**values), in_turn(1.0))
    answered = evaluate(model, tokenizer, ROWS, EvalSpec(**values, stop_text="#"), in_turn(1.0))
    for short, long in zip(ended.items, answered.items, strict=True):
        a, b = short["completions"][0], long["completions"][0]
        if a["tokens"] < 4:
            assert (a["stopped"], b) == (False, a)
            continue
        assert (a["tokens"], a["ended"], a["stopped"], b["stopped"]) == (4, True, True, True)
        assert b["text"].startswith(a["text"] + "#")
        assert 4 < b["tokens"] <= 8
    assert ended.metrics["stopped"].value >= 0.5
    never = evaluate(model, tokenizer, ROWS, EvalSpec(**values | {"stop_entropy": 0.0}), in_turn(1.0))
    plain = evaluate(model, tokenizer, ROWS, EvalSpec(max_new_tokens=8), in_turn(1.0))
    assert never.metrics["stopped"].value == 0.0
    assert [x["completions"][0]["text"] for x in never.items] == [x["completions"][0]["text"] for x in plain.items]
