"""What the model a stage starts from is expected to earn for each prompt: V_ref of the A-LoL family.

Shapes: `N` prompts, `D` width of the model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from seqtune.data.rows import WHERE
from seqtune.errors import SeqtuneError
from seqtune.evaluation.evaluate import plain, rollout_attention
from seqtune.models.forest import attention
from seqtune.models.load import end_tokens
from seqtune.objectives.a_lol import fit_value
from seqtune.rewards.score import score
from seqtune.rollout.noise import seed_of
from seqtune.rollout.transformers import evaluation_mode, generate
from seqtune.training.stage import barrier, check_room, is_main

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import TrainingArguments

    from seqtune.training.stage import StageRun

PART = 5
"""One in so many of the completed prompts tells how good the fit is."""

STEPS = (10, 30, 100, 300)
"""Lengths of the fit that are tried; the one that predicts the prompts left aside best is kept."""


@dataclass(frozen=True)
class Values:
    """Expected rewards."""

    train: list[float]
    """V of each training row."""
    heldout: list[float]
    """V of each held-out row."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the fit: `value/reward`, mean reward of the reference's own completions; `value/mse`, squared error of V on
    prompts it was not fitted to; `value/mse_constant`, that of the mean reward in its place; `value/steps`, length of
    the fit, 0 where nothing predicted them better than that mean, which V then is; `value/prompts`, prompts
    completed."""


def values_of(run: StageRun, args: TrainingArguments, train: Dataset, heldout: Dataset | None) -> Values:
    """V of every row, as `objective.value` says.

    A fit is made once, by the first process, and kept beside the checkpoints of the stage: a resumed run reads it.

    Args:
        run: Its model is the reference; it is left as it was.
        args: Of the trainer; making them has joined the processes.
        train: Rows with `prompt_ids`, `scores` and `example`.
        heldout: The same, or None.

    Raises:
        SeqtuneError: There is no reward or no rollout to fit to, the reward fails, or scores too few prompts.
    """
    spec: Any = run.stage.objective
    if spec.value == "group_mean":
        return Values(_means(train), _means(heldout))
    name = f"checkpoints/{run.stage.name}/values.json"
    if is_main() and not (run.folder.path / name).is_file():
        run.folder.write_json(name, asdict(_fitted(run, train, heldout)))
    if args.world_size > 1:
        barrier()
    found = Values(**run.folder.read_json(name))
    told = ", ".join(f"{key.partition('/')[2]} {value:.3g}" for key, value in found.metrics.items())
    run.notice(f"the expected reward of each prompt, fitted to completions of the model itself: {told}")
    return found


def _means(rows: Dataset | None) -> list[float]:
    return [float(np.mean(scores)) for scores in rows["scores"]] if rows is not None else []


def _fitted(run: StageRun, train: Dataset, heldout: Dataset | None) -> Values:
    spec: Any = run.stage.objective
    chosen = np.random.default_rng(run.stage.train.seed).permutation(len(train))[: spec.value_prompts]
    chosen = np.sort(chosen)
    rewards = _own_rewards(run, train.select(chosen))  # [n], NaN where the reward scored nothing
    known = ~np.isnan(rewards)
    if known.sum() < PART:
        raise SeqtuneError(
            f"the reward scored completions of {known.sum()} prompts; a fit needs {PART}",
            "reward",
            "check the reward and its columns, or objective.value=group_mean",
        )
    parts = [train] if heldout is None else [train, heldout]
    features = [_features(run, part["prompt_ids"]) for part in parts]
    rows, targets = torch.from_numpy(chosen[known]), torch.from_numpy(rewards[known]).float()
    scores = [score for row in train["scores"] for score in row]
    low, high = min(*scores, float(targets.min())), max(*scores, float(targets.max()))
    aside = torch.arange(len(rows)) % PART == PART - 1
    x, y = features[0][rows], targets - low
    center, spread = x[~aside].mean(0), x[~aside].std(0).clamp(min=1e-6)
    mean = y[~aside].mean()
    best, error = 0, float((mean - y[aside]).square().mean())  # no step: the mean reward for every prompt
    found = [mean.expand(len(part)) for part in features]
    metrics = {"value/reward": float(targets.mean()), "value/mse_constant": error, "value/prompts": float(len(rows))}
    for steps in STEPS:
        with torch.enable_grad():
            head = fit_value(
                (x[~aside] - center) / spread,
                y[~aside],
                largest=max(high - low, 1e-6),
                steps=steps,
                seed=run.stage.train.seed,
            )
        made = float((head((x[aside] - center) / spread) - y[aside]).square().mean())
        if made < error:
            best, error, found = steps, made, [head((part - center) / spread) for part in features]
    metrics |= {"value/mse": error, "value/steps": float(best)}
    train_values, heldout_values = ([(low + value) for value in part.tolist()] for part in (*found, torch.zeros(0))[:2])
    return Values(train_values, heldout_values, metrics)


def _own_rewards(run: StageRun, rows: Dataset) -> Any:
    """[n] mean reward of the model's own completions of each prompt, NaN where none was scored."""
    stage = run.stage
    rollout, spec = stage.rollout, stage.reward
    objective: Any = stage.objective
    if rollout is None or spec is None:
        raise SeqtuneError(
            "objective.value=fit samples completions of the model and scores them",
            "rollout and reward",
            "rollout=transformers reward=math_equiv, or objective.value=group_mean",
        )
    samples = objective.value_samples
    prompts = [ids for ids in rows["prompt_ids"] for _ in range(samples)]
    seeds = [seed_of(stage.train.seed, -1, row, sample) for row in range(len(rows)) for sample in range(samples)]
    check_room(run, max(map(len, prompts)))
    longest = max(map(len, prompts)) + rollout.max_new_tokens
    with attention(run.model, rollout_attention(run.model, longest)):
        made = generate(
            run.model,
            prompts,
            max_new_tokens=rollout.max_new_tokens,
            eos_token_id=end_tokens(run.model, run.tokenizer),
            pad_token_id=int(run.tokenizer.pad_token_id),
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            seeds=seeds,
            batch_size=stage.eval.batch_size,
        )
    texts = run.tokenizer.batch_decode(made, skip_special_tokens=True)
    examples = run.examples.train.select(rows["example"])
    repeated = {
        name: [value for value in examples[name] for _ in range(samples)]
        for name in examples.column_names
        if name not in (WHERE, "completions", "scores")
    }
    asked = [plain(prompt) for prompt in repeated.pop("prompt")]
    found = score(spec.build(), asked, texts, {**repeated, "completion_ids": made}, name=spec.name)
    table = np.array([np.nan if value is None else value for value in found], dtype=np.float64).reshape(-1, samples)
    scored = ~np.isnan(table)
    sums, counts = np.where(scored, table, 0).sum(1), scored.sum(1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


@torch.no_grad()
def _features(run: StageRun, prompts: list[list[int]]) -> Tensor:
    """[N, D] mean of the last hidden states over the tokens of each prompt, float32."""
    model: Any = run.model
    size = run.stage.eval.batch_size
    found = []
    with evaluation_mode(model):
        for start in range(0, len(prompts), size):
            ids = [torch.tensor(prompt, device=model.device) for prompt in prompts[start : start + size]]
            mask = pad_sequence([torch.ones_like(one) for one in ids], batch_first=True)
            padded = pad_sequence(ids, batch_first=True)
            hidden = model.base_model(input_ids=padded, attention_mask=mask, use_cache=False).last_hidden_state.float()
            weights = mask.unsqueeze(2).to(hidden.dtype)
            found.append(((hidden * weights).sum(1) / weights.sum(1).clamp(min=1)).cpu())
    return torch.cat(found)
