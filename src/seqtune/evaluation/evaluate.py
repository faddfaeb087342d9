"""What a model does on held-out examples: how often it is right, or how well it predicts them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from seqtune.data.groups import best
from seqtune.data.rows import WHERE
from seqtune.data.tokenize import prompt_ids, tokenize
from seqtune.errors import SeqtuneError
from seqtune.evaluation.stats import Estimate, bootstrap, maj_at_k, pass_at_k, wilson
from seqtune.models.forest import attention, refusal
from seqtune.models.load import end_tokens, positions
from seqtune.rewards.answers import marked_answer
from seqtune.rewards.exact import normalised
from seqtune.rewards.score import score
from seqtune.rollout.attention import NAME
from seqtune.rollout.entropy import Rule, Watch, thresholds
from seqtune.rollout.noise import seed_of
from seqtune.rollout.transformers import evaluation_mode, generate

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from seqtune.config.axes import EvalSpec

Progress = Callable[[int, int], None]
"""Called with (completions or examples done, of how many)."""

MEASURED_TOKENS = 8192
"""Tokens, padding included, of one forward pass that measures perplexity: bounds the memory of the logits."""


RESAMPLES = 500
"""Bootstrap samples for the interval of a threshold."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Args:
        metrics: Estimates by name.
        items: One JSON object an example, in the order of the data.
    """

    metrics: dict[str, Estimate]
    items: list[dict[str, Any]]

    def results(self) -> dict[str, dict[str, float]]:
        """The metrics as JSON: `{name: {value, low, high, n}}`."""
        return {name: asdict(estimate) for name, estimate in self.metrics.items()}


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    spec: EvalSpec,
    reward: Callable[..., Any] | None,
    *,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a model on examples.

    - `greedy`: `accuracy` of the most probable completion when the reward gives only 0 and 1, else the mean `reward`;
    - `pass_at_k`: `pass@k` and `maj@k` of `samples` completions for every k; the reward must give 0 or 1;
    - `perplexity`: exp of the mean negative log-likelihood of the trained tokens of all examples together, of a group
      those of its best completion;
    - `length` (tokens, the ending one included) with all of them, and `ended` (share of completions that ended by
      themselves) with the first two;
    - with `spec.stop_entropy` the share of completions that were `stopped`; with `spec.entropy` the mean `entropy` of
      first segments in bits, and `stop_entropy/mean`, `/info` and `/bayes`, the thresholds of right completions.

    Examples a reward does not score (None) count for nothing but `length` and `ended`. What votes in `maj@k` is the
    answer marked by `####`, `\\boxed{}` or `<answer>` tags, or the whole completion where none is, normalised as text.

    Args:
        model: Causal language model; on its device, in its dtype.
        tokenizer: Of the model.
        rows: Held-out examples in the columns `seqtune.data.sources.load` gives.
        spec: What to measure. With `items`, a seeded choice of that many rows, smaller ones contained in larger ones.
        reward: `reward(prompts, completions, **columns)`; `perplexity` needs none.
        progress: Called after every batch.

    Raises:
        SeqtuneError: There is no example, the examples cannot be measured this way, the reward fails, or a sequence is
            longer than the model reads; or the model is no language model.
    """
    if model.get_output_embeddings() is None:
        raise SeqtuneError(
            "a reward model completes nothing and predicts no tokens",
            where="the weights to evaluate",
            hint="its held-out accuracy is in the run's metrics and report (eval/…)",
        )
    if not len(rows):
        raise SeqtuneError(
            "there are no held-out examples to evaluate on",
            where="data.eval_size and data.eval_path",
            hint="hold some out (data.eval_size=200), or name a file (data.eval_path=test.jsonl)",
        )
    if spec.items is not None and spec.items < len(rows):
        chosen = np.random.default_rng(spec.seed).permutation(len(rows))[: spec.items]
        rows = rows.select(np.sort(chosen))
    tell = progress or (lambda done, total: None)
    if spec.name == "perplexity":
        return _perplexity(model, tokenizer, rows, spec, tell)
    return _completions(model, tokenizer, rows, spec, reward, tell)


def plain(text: Any) -> str:
    """A prompt as rewards get it: as it is, or the contents of its messages, one a line."""
    return text if isinstance(text, str) else "\n".join(str(message["content"]) for message in text)


def _completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    spec: EvalSpec,
    reward: Callable[..., Any] | None,
    tell: Progress,
) -> Evaluation:
    judge = _judge(rows, spec, reward)
    samples = spec.samples
    prompts = prompt_ids(rows, tokenizer)
    _fits(model, max(map(len, prompts)) + spec.max_new_tokens, "a prompt and its completion", "eval.max_new_tokens")
    made = _generate(model, tokenizer, prompts, spec, tell)  # [rows * samples], the samples of a row together
    ids = [one.ids for one in made]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    ends = set(end_tokens(model, tokenizer))
    scores = judge([row for row in range(len(rows)) for _ in range(samples)], texts, ids)

    items: list[dict[str, Any]] = []
    for index, row in enumerate(rows):
        own = slice(index * samples, (index + 1) * samples)
        item = {
            "where": row.get(WHERE, f"row {index}"),
            "prompt": plain(row["prompt"]),
            "answer": row.get("answer"),
            "completions": [
                {"text": text, "tokens": len(one.ids), "ended": one.ids[-1] in ends, "score": value, **one.watched}
                for text, one, value in zip(texts[own], made[own], scores[own], strict=True)
            ],
        }
        items.append(item)
    metrics = _greedy(items, spec) if spec.name == "greedy" else _at_k(items, spec)
    for name, key in (("length", "tokens"), ("ended", "ended")):
        values = [float(np.mean([one[key] for one in item["completions"]])) for item in items]
        metrics[name] = _mean(values, spec) if name == "length" else _share(values, spec)
    if spec.stop_entropy is not None:
        stopped = [float(np.mean([one["stopped"] for one in item["completions"]])) for item in items]
        metrics["stopped"] = _share(stopped, spec)
    return Evaluation(metrics | (_entropies(items, spec) if spec.entropy else {}), items)


def _judge(
    rows: Dataset, spec: EvalSpec, reward: Callable[..., Any] | None
) -> Callable[[list[int], list[str], list[list[int]]], list[float | None]]:
    """A function `(row numbers, completions, their ids) -> scores`, tried on one reference before it generates."""
    names = rows.column_names
    other = "eval=perplexity measures how well the model predicts them"
    if "prompt" not in names:
        raise SeqtuneError(f"eval '{spec.name}' completes prompts, and the examples have none", "data.format", other)
    if "chosen" in names and "answer" not in names:
        raise SeqtuneError(
            f"eval '{spec.name}' needs an answer to compare with, and preference pairs have none",
            where="data.format",
            hint="eval=perplexity measures how well the model predicts the chosen completions",
        )
    if reward is None:
        raise SeqtuneError(
            f"eval '{spec.name}' scores completions, and there is no reward",
            where="eval.name and reward",
            hint="reward=math_equiv or reward=exact compares with the column 'answer'; or eval=perplexity",
        )
    prompts = [plain(prompt) for prompt in rows["prompt"]]
    columns = {name: rows[name] for name in names if name not in ("prompt", "completion", "completions", WHERE)}

    def judge(which: list[int], completions: list[str], ids: list[list[int]]) -> list[float | None]:
        own = {name: [values[row] for row in which] for name, values in columns.items()} | {"completion_ids": ids}
        return score(reward, [prompts[row] for row in which], completions, own)

    first = rows[0]
    judge([0], [plain(first.get("completion") or first.get("answer") or "0")], [[0]])
    return judge


class _Made(NamedTuple):
    ids: list[int]
    watched: dict[str, Any]
    """`entropy` of the first segment in bits, and whether it was `stopped`, where the evaluation looks at them."""


def rollout_attention(model: PreTrainedModel, longest: int) -> str:
    """The attention a model completes prompts with: one that holds each prompt once, or its own where it cannot.

    Args:
        model: The model, or an adapter around it.
        longest: Tokens of the longest prompt with its completion.
    """
    own: str = model.config._attn_implementation
    return NAME if refusal(model.config, shared=True, longest=longest) is None else own


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    spec: EvalSpec,
    tell: Progress,
) -> list[_Made]:
    """`spec.samples` completions for every prompt, those of one prompt together, in the order of `prompts`."""
    places = [(row, sample) for row in range(len(prompts)) for sample in range(spec.samples)]
    # Longest first and equal prompts together: batches pad little, share prefills, and memory peaks at the start.
    order = sorted(range(len(places)), key=lambda i: (-len(prompts[places[i][0]]), places[i]))
    found = [_Made([], {})] * len(places)
    ends = end_tokens(model, tokenizer)
    rule = _rule(tokenizer, spec, ends)
    longest = max(map(len, prompts)) + spec.max_new_tokens
    for start in range(0, len(order), spec.batch_size):
        batch = order[start : start + spec.batch_size]
        watch = None if rule is None else Watch(rule, len(batch))
        with attention(model, rollout_attention(model, longest)):
            made = generate(
                model,
                [prompts[places[i][0]] for i in batch],
                max_new_tokens=spec.max_new_tokens,
                eos_token_id=ends,
                pad_token_id=int(tokenizer.pad_token_id),
                temperature=spec.temperature,
                greedy=spec.name == "greedy",
                seeds=[seed_of(spec.seed, *places[i]) for i in batch],
                batch_size=spec.batch_size,
                watch=watch,
            )
        for row, (i, ids) in enumerate(zip(batch, made, strict=True)):
            watched: dict[str, Any] = {}
            if watch is not None and spec.entropy:
                watched["entropy"] = watch.first_segment(row, len(ids))
            if watch is not None and spec.stop_entropy is not None:
                watched["stopped"] = watch.stopped(row, len(ids))
            found[i] = _Made(ids, watched)
        tell(start + len(batch), len(order))
    return found


def _rule(tokenizer: PreTrainedTokenizerBase, spec: EvalSpec, ends: list[int]) -> Rule | None:
    """When completions stop thinking; None where nothing looks at their entropies."""
    if spec.stop_entropy is None and not spec.entropy:
        return None
    forced = tokenizer(spec.stop_text, add_special_tokens=False)["input_ids"] if spec.stop_text else []
    return Rule(spec.stop_entropy, spec.stop_segment, spec.stop_top, tuple(forced or ends[:1]))


def _entropies(items: list[dict[str, Any]], spec: EvalSpec) -> dict[str, Estimate]:
    """Bits of first segments, and the thresholds they give where completions are right or wrong."""
    every = [one for item in items for one in item["completions"]]
    metrics = {
        "entropy": _mean([float(np.mean([one["entropy"] for one in item["completions"]])) for item in items], spec)
    }
    scored = [one for one in every if one["score"] is not None]
    right, wrong = ([one["entropy"] for one in scored if one["score"] == value] for value in (1, 0))
    if not _binary([one["score"] for one in scored]) or not right:
        return metrics
    found, random = thresholds(right, wrong), np.random.default_rng(spec.seed)
    again = [
        thresholds(random.choice(right, len(right)), random.choice(wrong, len(wrong)) if wrong else [])
        for _ in range(RESAMPLES)
    ]
    tails = [50 * (1 - spec.confidence), 50 * (1 + spec.confidence)]
    for name in ("mean", "info", "bayes"):
        low, high = np.percentile([getattr(one, name) for one in again], tails)
        metrics[f"stop_entropy/{name}"] = Estimate(getattr(found, name), float(low), float(high), len(scored))
    return metrics


def _mean(values: Any, spec: EvalSpec, weights: Any = None) -> Estimate:
    return bootstrap(values, weights=weights, confidence=spec.confidence, seed=spec.seed)


def _share(values: Sequence[float], spec: EvalSpec) -> Estimate:
    """The mean of shares in [0, 1]. Where each is 0 or 1 with Wilson's interval: a bootstrap of equal ones has none."""
    if _binary(values):
        return wilson(int(sum(values)), len(values), spec.confidence)
    return _mean(values, spec)


def _greedy(items: list[dict[str, Any]], spec: EvalSpec) -> dict[str, Estimate]:
    values = [item["completions"][0]["score"] for item in items]
    scored = [value for value in values if value is not None]
    _some(scored)
    return {"accuracy": _share(scored, spec)} if _binary(scored) else {"reward": _mean(scored, spec)}


def _at_k(items: list[dict[str, Any]], spec: EvalSpec) -> dict[str, Estimate]:
    scored = [item for item in items if all(one["score"] is not None for one in item["completions"])]
    _some(scored)
    for item in scored:
        values = [one["score"] for one in item["completions"]]
        if not _binary(values):
            odd = next(value for value in values if value not in (0, 1))
            raise SeqtuneError(
                f"pass@k counts right and wrong, and the reward gave {odd}",
                where=f"eval.name and reward, at {item['where']}",
                hint="use a reward of 0 and 1 (math_equiv, exact, format), or eval=greedy for the mean reward",
            )
        item["correct"] = int(sum(values))
    metrics = {
        f"pass@{k}": _share([pass_at_k(spec.samples, item["correct"], k) for item in scored], spec) for k in spec.k
    }
    for k in spec.k:
        metrics[f"maj@{k}"] = _share([_voted(item, k) for item in scored], spec)
    return metrics


def _voted(item: dict[str, Any], k: int) -> float:
    answers = [_vote(one["text"]) for one in item["completions"]]
    return maj_at_k(answers, [one["score"] for one in item["completions"]], k)


def _vote(text: str) -> str | None:
    answer = marked_answer(text)
    return normalised(text if answer is None else answer) or None


def _binary(values: Sequence[float]) -> bool:
    return all(value in (0, 1) for value in values)


def _some(scored: Sequence[Any]) -> None:
    if not scored:
        raise SeqtuneError(
            "the reward scored no example, so there is nothing to report",
            where="reward",
            hint="check the answers of the data (data.columns.answer, data.answer_pattern), or use eval=perplexity",
        )


def _perplexity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset, spec: EvalSpec, tell: Progress
) -> Evaluation:
    if "completions" in rows.column_names:
        rows = best(rows)
    names = rows.column_names
    if "chosen" in names:
        rows = rows.remove_columns([name for name in ("rejected", "completion") if name in names])
        rows = rows.rename_column("chosen", "completion")
    elif not {"text", "messages", "completion"} & set(names):
        raise SeqtuneError(
            "eval 'perplexity' measures given completions, and the examples have none",
            where="eval.name and data.format",
            hint="eval=greedy completes the prompts and compares the answers",
        )
    coded = tokenize(rows, tokenizer).with_format("numpy")
    ids, masks = list(coded["input_ids"]), list(coded["loss_mask"])
    _fits(model, max(map(len, ids)), "an example", "data")
    order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
    losses, counts = np.zeros(len(ids)), np.zeros(len(ids))  # nats and tokens an example
    done = 0
    with evaluation_mode(model), torch.inference_mode():
        while done < len(order):
            room = max(1, MEASURED_TOKENS // max(1, len(ids[order[done]])))
            batch = order[done : done + min(spec.batch_size, room)]
            found = _losses(model, [ids[row] for row in batch], [masks[row] for row in batch])
            for row, (loss, count) in zip(batch, found, strict=True):
                losses[row], counts[row] = loss, count
            done += len(batch)
            tell(done, len(order))
    used = counts > 0
    if not used.any():
        raise SeqtuneError("no token of the examples is measured: all are one token long", where="data")
    nll = _mean(losses[used] / counts[used], spec, weights=counts[used])
    perplexity = Estimate(math.exp(nll.value), math.exp(nll.low), math.exp(nll.high), nll.n)
    items = [
        {"where": row.get(WHERE, f"row {index}"), "tokens": int(counts[index]), "nll": float(losses[index])}
        for index, row in enumerate(rows.select_columns([WHERE]) if WHERE in names else [{}] * len(ids))
    ]
    return Evaluation({"perplexity": perplexity, "length": _mean(counts, spec)}, items)


def _losses(model: Any, ids: list[Any], masks: list[Any]) -> list[tuple[float, int]]:
    """For each sequence the negative log-likelihood of its masked tokens, summed, and their number.

    The first token of a sequence has no predictor and is left out.
    """
    device = model.get_input_embeddings().weight.device
    longest = max(map(len, ids))
    tokens = torch.zeros(len(ids), longest, dtype=torch.long)
    trained = torch.zeros(len(ids), longest, dtype=torch.bool)
    seen = torch.zeros(len(ids), longest, dtype=torch.long)
    for row, (own, mask) in enumerate(zip(ids, masks, strict=True)):
        tokens[row, : len(own)] = torch.as_tensor(own, dtype=torch.long)
        trained[row, : len(own)] = torch.as_tensor(mask)
        seen[row, : len(own)] = 1
    tokens, trained, seen = tokens.to(device), trained.to(device), seen.to(device)
    logits = model(input_ids=tokens, attention_mask=seen, use_cache=False).logits
    found = []
    for row in range(len(ids)):  # one row at a time: the float copy of the logits stays small
        wanted = trained[row, 1:]
        losses = cross_entropy(logits[row, :-1][wanted].float(), tokens[row, 1:][wanted], reduction="none")
        found.append((float(losses.double().sum()), int(wanted.sum())))
    return found


def _fits(model: Any, longest: int, what: str, where: str) -> None:
    limit = positions(model)
    if limit is not None and longest > limit:
        raise SeqtuneError(
            f"{what} takes up to {longest} tokens, but the model reads at most {limit}",
            where=where,
            hint=f"{'lower it, or ' if where == 'eval.max_new_tokens' else ''}leave the longest examples out",
        )
