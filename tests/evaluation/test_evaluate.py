"""Evaluation of a tiny model against what is worked out by hand, and what is refused before anything is computed."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from datasets import Dataset
from transformers import Qwen3Config, Qwen3ForSequenceClassification

from seqtune.config.axes import EvalSpec, TinyModelSpec
from seqtune.errors import SeqtuneError
from seqtune.evaluation import evaluate as module
from seqtune.evaluation.evaluate import evaluate
from seqtune.models.load import load_model, load_tokenizer
from seqtune.report.run_folder import encode
from seqtune.rewards.exact import exact
from seqtune.rewards.specs import Format

if TYPE_CHECKING:
    from collections.abc import Callable

SPEC = TinyModelSpec(
    name="tiny", hidden_size=32, layers=2, heads=2, kv_heads=1, intermediate_size=64, max_positions=128
)
PROMPTS = ["1+1=", "A much longer question: 12+30=", "7*6=", "2-2=", "What is 9-4?\n"]
ROWS = [
    {"prompt": prompt, "completion": f"sum\n#### {answer}", "answer": str(answer)}
    for prompt, answer in zip(PROMPTS, (2, 42, 42, 0, 5), strict=True)
]


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model(SPEC)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(SPEC)


def by_answer(scores: dict[str, float | None]) -> Callable[..., list[float | None]]:
    """A reward that looks only at the answer of the row."""

    def reward(prompts: list[str], completions: list[str], **columns: list[str]) -> list[float | None]:
        return [scores[answer] for answer in columns["answer"]]

    return reward


def by_turn(pattern: list[float]) -> Callable[..., list[float]]:
    """A reward that gives the samples of each prompt, in their order, the values of a pattern."""
    return lambda prompts, completions, **columns: [pattern[i % len(pattern)] for i in range(len(completions))]


def test_of_a_group_the_best_completion_is_measured_and_the_prompt_completed(model: Any, tokenizer: Any) -> None:
    made = [
        {
            "prompt": row["prompt"],
            "answer": row["answer"],
            "completions": ["no", row["completion"]],
            "scores": [0.0, 1.0],
        }
        for row in ROWS
    ]
    groups, single = Dataset.from_list(made), Dataset.from_list(ROWS)
    for spec in (EvalSpec(name="perplexity"), EvalSpec(max_new_tokens=3)):
        found, expected = (evaluate(model, tokenizer, rows, spec, exact).metrics for rows in (groups, single))
        assert found == expected


def test_greedy_takes_the_most_probable_token_every_time(model: Any, tokenizer: Any) -> None:
    """Against a loop without cache, batch or padding."""
    found = evaluate(
        model, tokenizer, Dataset.from_list(ROWS), EvalSpec(max_new_tokens=6, batch_size=2), by_turn([1.0])
    )
    for row, item in zip(ROWS, found.items, strict=True):
        ids = tokenizer(row["prompt"])["input_ids"]
        start = len(ids)
        with torch.no_grad():
            while len(ids) < start + 6 and (len(ids) == start or ids[-1] != tokenizer.eos_token_id):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        own = item["completions"][0]
        assert own["text"] == tokenizer.decode(ids[start:], skip_special_tokens=True)
        assert own["tokens"] == len(ids) - start
        assert own["ended"] == (ids[-1] == tokenizer.eos_token_id)
        assert item["prompt"] == row["prompt"]
        assert item["answer"] == row["answer"]


def test_accuracy_has_a_wilson_interval_and_leaves_unscored_rows_out(model: Any, tokenizer: Any) -> None:
    """Rows: 2 right, 42 wrong twice, 0 right, 5 not scored: 2 of 4."""
    reward = by_answer({"2": 1.0, "42": 0.0, "0": 1.0, "5": None})
    found = evaluate(model, tokenizer, Dataset.from_list(ROWS), EvalSpec(max_new_tokens=2), reward)
    accuracy = found.metrics["accuracy"]
    assert (accuracy.value, accuracy.n) == (0.5, 4)
    assert (accuracy.low, accuracy.high) == pytest.approx((0.15004, 0.84996), abs=1e-5)
    assert found.metrics["length"].n == 5
    assert [item["completions"][0]["score"] for item in found.items] == [1.0, 0.0, 0.0, 1.0, None]
    assert json.loads(encode(found.results()))["accuracy"]["n"] == 4
    encode(found.items)


def test_a_graded_reward_is_a_mean_and_no_accuracy(model: Any, tokenizer: Any) -> None:
    reward = by_answer({"2": 1.0, "42": 0.25, "0": 0.0, "5": 0.5})
    found = evaluate(model, tokenizer, Dataset.from_list(ROWS), EvalSpec(max_new_tokens=2), reward)
    assert "accuracy" not in found.metrics
    assert found.metrics["reward"].value == pytest.approx(0.4)


def test_pass_at_k_of_a_rigged_reward(model: Any, tokenizer: Any) -> None:
    """Two of five right for every prompt: pass@1 = 0.4, pass@2 = 0.7. The texts differ, so all five tie: 2/5."""
    spec = EvalSpec(name="pass_at_k", samples=5, k=(1, 2, 5), max_new_tokens=8, batch_size=7)
    found = evaluate(model, tokenizer, Dataset.from_list(ROWS), spec, by_turn([1.0, 1.0, 0.0, 0.0, 0.0]))
    values = {name: estimate.value for name, estimate in found.metrics.items()}
    assert values["pass@1"] == pytest.approx(0.4)
    assert values["pass@2"] == pytest.approx(0.7)
    assert values["pass@5"] == 1.0
    assert values["maj@5"] == pytest.approx(0.4)
    assert values["maj@1"] == pytest.approx(0.4)
    assert all(len({one["text"] for one in item["completions"]}) == 5 for item in found.items)
    assert all(item["correct"] == 2 for item in found.items)


def test_no_success_at_all_still_has_an_interval(model: Any, tokenizer: Any) -> None:
    """0 of 5: Wilson's upper end is z² / (n + z²) = 0.4345; a bootstrap of five zeros would claim certainty."""
    spec = EvalSpec(name="pass_at_k", samples=2, k=(2,), max_new_tokens=2)
    found = evaluate(model, tokenizer, Dataset.from_list(ROWS), spec, by_turn([0.0]))
    for name in ("pass@2", "maj@2"):
        estimate = found.metrics[name]
        assert (estimate.value, estimate.low, estimate.high) == (0.0, 0.0, pytest.approx(0.43448, abs=1e-5))


def test_votes_are_marked_answers(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`#### 1,000`, `#### 1000` and `\\boxed{1000}` are one answer, voted for by three of five."""
    texts = ["a\n#### 1,000", "b\n#### 1000", "so \\boxed{1000}", "#### 7", "#### 7"]

    def rigged(model: Any, prompts: list[Any], **settings: Any) -> list[list[int]]:
        return [tokenizer(texts[i % 5])["input_ids"] for i in range(len(prompts))]

    monkeypatch.setattr(module, "generate", rigged)
    spec = EvalSpec(name="pass_at_k", samples=5, k=(5,), max_new_tokens=8)
    row = [{"prompt": "p", "answer": "1000"}]
    found = evaluate(model, tokenizer, Dataset.from_list(row), spec, exact)
    assert found.metrics["maj@5"].value == 1.0
    assert found.items[0]["correct"] == 3


def test_samples_depend_on_the_seed_and_not_on_the_batch(model: Any, tokenizer: Any) -> None:
    rows = Dataset.from_list(ROWS)

    def texts(samples: int = 3, **fields: Any) -> list[list[str]]:
        spec = EvalSpec(name="pass_at_k", samples=samples, max_new_tokens=5, **fields)
        found = evaluate(model, tokenizer, rows, spec, by_turn([0.0]))
        return [[one["text"] for one in item["completions"]] for item in found.items]

    assert texts(batch_size=64) == texts(batch_size=2)
    assert texts() != texts(seed=1)
    assert texts() == [row[:3] for row in texts(samples=5)]


def test_items_is_a_seeded_choice_and_small_ones_lie_in_large_ones(model: Any, tokenizer: Any) -> None:
    rows = Dataset.from_list([{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(12)])

    def prompts(**fields: Any) -> list[str]:
        found = evaluate(model, tokenizer, rows, EvalSpec(max_new_tokens=1, **fields), by_turn([1.0]))
        return [item["prompt"] for item in found.items]

    assert set(prompts(items=4)) < set(prompts(items=8)) < set(prompts())
    assert prompts(items=20) == prompts() == [f"{i}+1=" for i in range(12)]
    assert prompts(items=4) != prompts(items=4, seed=1)


def nll(model: Any, ids: list[int], first: int) -> tuple[float, int]:
    """Negative log-likelihood of ids[first:], one position at a time."""
    with torch.no_grad():
        logps = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return -sum(float(logps[t - 1, ids[t]]) for t in range(first, len(ids))), len(ids) - first


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_perplexity_weighs_tokens_and_ignores_the_batch(model: Any, tokenizer: Any, batch_size: int) -> None:
    """exp(Σ nll / Σ tokens) over completions and their end token, not the mean of the examples' perplexities."""
    parts = []
    for row in ROWS:
        prompt, completion = (tokenizer(row[name])["input_ids"] for name in ("prompt", "completion"))
        parts.append(nll(model, [*prompt, *completion, tokenizer.eos_token_id], len(prompt)))
    expected = math.exp(sum(part[0] for part in parts) / sum(part[1] for part in parts))
    spec = EvalSpec(name="perplexity", batch_size=batch_size)
    found = evaluate(model, tokenizer, Dataset.from_list(ROWS), spec, None)
    perplexity = found.metrics["perplexity"]
    assert perplexity.value == pytest.approx(expected, rel=1e-5)
    assert perplexity.low <= perplexity.value <= perplexity.high
    assert [item["tokens"] for item in found.items] == [part[1] for part in parts]
    assert [item["nll"] for item in found.items] == pytest.approx([part[0] for part in parts], rel=1e-5)


def test_perplexity_of_text_leaves_out_the_token_nothing_predicts(model: Any, tokenizer: Any) -> None:
    ids = [*tokenizer("abc")["input_ids"], tokenizer.eos_token_id]
    loss, count = nll(model, ids, 1)
    rows = Dataset.from_list([{"text": "abc"}])
    found = evaluate(model, tokenizer, rows, EvalSpec(name="perplexity"), None)
    assert found.metrics["perplexity"].value == pytest.approx(math.exp(loss / count), rel=1e-5)
    assert found.items[0]["tokens"] == count == 3


def test_perplexity_of_pairs_is_that_of_the_chosen(model: Any, tokenizer: Any) -> None:
    pairs = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "no"} for row in ROWS]
    spec = EvalSpec(name="perplexity")
    of_pairs, of_completions = (
        evaluate(model, tokenizer, Dataset.from_list(rows), spec, None).metrics for rows in (pairs, ROWS)
    )
    assert of_pairs == of_completions


def test_memory_is_bounded_without_changing_the_number(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = EvalSpec(name="perplexity")
    whole = evaluate(model, tokenizer, Dataset.from_list(ROWS), spec, None)
    monkeypatch.setattr(module, "MEASURED_TOKENS", 60)
    sizes = []
    measure = module._losses
    monkeypatch.setattr(
        module, "_losses", lambda model, ids, masks: sizes.append(len(ids)) or measure(model, ids, masks)
    )
    pieces = evaluate(model, tokenizer, Dataset.from_list(ROWS), spec, None)
    assert max(sizes) == 2
    assert pieces.metrics["perplexity"].value == pytest.approx(whole.metrics["perplexity"].value, rel=1e-6)


def test_conversations_are_prompted_by_the_template_and_scored_as_text(model: Any, tokenizer: Any) -> None:
    seen: list[str] = []

    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        seen.extend(prompts)
        return [1.0] * len(prompts)

    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": "1+1="}], "answer": "2"}])
    found = evaluate(model, tokenizer, rows, EvalSpec(max_new_tokens=3), reward)
    assert set(seen) == {"1+1="}
    ids = tokenizer.apply_chat_template(rows[0]["prompt"], add_generation_prompt=True, return_dict=False)
    with torch.no_grad():
        first = int(model(torch.tensor([ids])).logits[0, -1].argmax())
    assert found.items[0]["completions"][0]["text"].startswith(tokenizer.decode([first]).strip("\ufffd"))


def test_progress_counts_up_to_all(model: Any, tokenizer: Any) -> None:
    for name in ("greedy", "perplexity"):
        told: list[tuple[int, int]] = []
        spec = EvalSpec(name=name, batch_size=2, max_new_tokens=1)
        evaluate(
            model,
            tokenizer,
            Dataset.from_list(ROWS),
            spec,
            by_turn([1.0]),
            progress=lambda *now, told=told: told.append(now),
        )
        assert told == [(2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize(
    ("rows", "name", "reward", "said", "hint"),
    [
        ([], "greedy", exact, "no held-out examples", "data.eval_size"),
        ([{"prompt": "p", "completion": "c"}], "greedy", exact, "column 'answer'", "data.columns.answer"),
        ([{"prompt": "p", "completion": "c"}], "pass_at_k", exact, "column 'answer'", "data.columns.answer"),
        ([{"prompt": "p", "answer": "1"}], "greedy", None, "there is no reward", "reward=math_equiv"),
        ([{"prompt": "p", "chosen": "a", "rejected": "b"}], "greedy", exact, "pairs have none", "eval=perplexity"),
        ([{"text": "t"}], "greedy", exact, "the examples have none", "eval=perplexity"),
        ([{"prompt": "p", "answer": "1"}], "perplexity", None, "measures given completions", "eval=greedy"),
        ([{"prompt": "p" * 127, "answer": "1"}], "greedy", exact, "up to 129 tokens", "lower it"),
        ([{"text": "t" * 128}], "perplexity", None, "takes up to 129 tokens", "leave the longest"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_generated(
    rows: list[dict[str, str]],
    name: Any,
    reward: Any,
    said: str,
    hint: str,
    model: Any,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("generated")

    monkeypatch.setattr(module, "generate", never)
    monkeypatch.setattr(module, "_losses", never)
    with pytest.raises(SeqtuneError, match=said) as caught:
        evaluate(model, tokenizer, Dataset.from_list(rows), EvalSpec(name=name, max_new_tokens=2), reward)
    assert hint in caught.value.problems[0].hint


def test_a_reward_that_needs_no_answer_measures_data_without_one(model: Any, tokenizer: Any) -> None:
    rows = Dataset.from_list([{"prompt": "p"}, {"prompt": "q"}])
    reward = Format(pattern=".*").build()
    found = evaluate(model, tokenizer, rows, EvalSpec(max_new_tokens=2), reward)
    assert found.metrics["accuracy"].value == 1.0


def test_pass_at_k_refuses_a_graded_reward_and_names_the_row(model: Any, tokenizer: Any) -> None:
    spec = EvalSpec(name="pass_at_k", samples=2, k=(1,), max_new_tokens=2)
    with pytest.raises(SeqtuneError, match=r"the reward gave 0\.5") as caught:
        evaluate(model, tokenizer, Dataset.from_list(ROWS), spec, by_turn([1.0, 0.5]))
    assert "row 0" in caught.value.problems[0].where


def test_a_reward_that_scores_nothing_has_no_accuracy(model: Any, tokenizer: Any) -> None:
    with pytest.raises(SeqtuneError, match="scored no example"):
        evaluate(
            model,
            tokenizer,
            Dataset.from_list(ROWS),
            EvalSpec(max_new_tokens=2),
            lambda prompts, completions, **columns: [None] * len(prompts),
        )


def test_a_reward_model_is_refused(tokenizer: Any) -> None:
    settings = Qwen3Config(
        vocab_size=259,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        num_labels=1,
        bos_token_id=None,
        eos_token_id=258,
        pad_token_id=256,
    )
    with pytest.raises(SeqtuneError, match="a reward model completes nothing"):
        evaluate(
            Qwen3ForSequenceClassification(settings), tokenizer, Dataset.from_list(ROWS), EvalSpec(), by_turn([1.0])
        )


def test_the_model_is_left_in_the_mode_it_was_in(tokenizer: Any) -> None:
    model = load_model(SPEC).train()
    evaluate(model, tokenizer, Dataset.from_list(ROWS), EvalSpec(name="perplexity"), None)
    assert model.training
