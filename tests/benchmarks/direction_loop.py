"""A loop small enough to read whole: seqtune's objectives on toy tasks and toy models, without a trainer.

Shapes: `B` rows, `P` tokens of every prompt of a task, `T` tokens of the longest completion.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from seqtune.objectives.prefix_rft import prefix_length
from seqtune.rollout.noise import seed_of
from seqtune.rollout.transformers import generate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from seqtune.objectives.specs.policy import Policy

ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz+=, ."
END = ALPHABET.index(".")
"""Ends every completion."""


def encode(text: str) -> list[int]:
    """One token a character."""
    return [ALPHABET.index(character) for character in text]


class Task(NamedTuple):
    """Prompts of one length, each with the one beginning of a completion that earns 1; all else earns 0.

    Args:
        prompts: `[N, P]`.
        right: What a completion must begin with, `[N, R]`.
        limit: T, the most tokens of a completion.
        groups: Prompts by kind, whose success is measured apart.
    """

    prompts: Tensor
    right: Tensor
    limit: int
    groups: dict[str, Tensor]


def model(seed: int, *, experts: int = 0) -> Any:
    """Two layers, 64 wide, 4 heads; with `experts`, a feed-forward layer is that many, of which a token takes one."""
    shape: dict[str, Any] = {
        "vocab_size": len(ALPHABET),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": END,
        "pad_token_id": END,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if experts:
            routed = {"num_experts": experts, "num_experts_per_tok": 1, "moe_intermediate_size": 128}
            return Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape, **routed, norm_topk_prob=False))
        return Qwen3ForCausalLM(Qwen3Config(**shape))


def scores(policy: Any, prompts: Tensor, completions: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs of the completions and the entropies of what gave their tokens, both `[B, T]`.

    Completions are padded on the right, which a causal model's earlier tokens do not see.
    """
    ids = torch.cat([prompts, completions], 1)
    logs = policy(input_ids=ids, use_cache=False).logits[:, prompts.shape[1] - 1 : -1].log_softmax(-1)
    return logs.gather(-1, completions.unsqueeze(-1)).squeeze(-1), -(logs.exp() * logs).sum(-1)


def success(policy: Any, task: Task) -> dict[str, float]:
    """Probability of a completion that earns 1, mean over each group of prompts: exact, nothing is sampled."""
    with torch.no_grad():
        right = scores(policy, task.prompts, task.right)[0].sum(1).exp()
    return {name: float(right[rows].mean()) for name, rows in task.groups.items()}


def padded(completions: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Completions `[B, T]` padded on the right, and their mask."""
    longest = max(map(len, completions))
    ids = torch.tensor([[*row, *[END] * (longest - len(row))] for row in completions])
    return ids, torch.tensor([[place < len(row) for place in range(longest)] for row in completions])


class Stepper:
    """AdamW with gradients clipped to norm 1; the learning rate rises for some steps and then stays."""

    def __init__(self, policy: Any, learning_rate: float, warm_up: int = 0) -> None:
        self.policy = policy
        self.optimiser = torch.optim.AdamW(policy.parameters(), lr=learning_rate, weight_decay=0.0)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, lambda step: min((step + 1) / (warm_up + 1), 1.0)
        )

    def __call__(self, loss: Tensor) -> None:
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimiser.step()
        self.schedule.step()


def imitate(
    policy: Any,
    rows: Sequence[tuple[Tensor, list[int]]],
    *,
    steps: int,
    learning_rate: float,
    batch: int = 64,
    seed: int,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    watch: Callable[[], Any] = lambda: None,
) -> list[Any]:
    """Train on texts that exist already.

    Args:
        policy: Trained in place.
        rows: Prompt `[P]` and completion of each text.
        steps: Optimiser steps.
        learning_rate: Of AdamW.
        batch: Texts a step.
        seed: Of the order in which texts come.
        loss: `(logps[B, T], mask[B, T], numbers of the texts[B]) -> scalar`; None is supervised fine-tuning.
        watch: Called before the first step and after every tenth.

    Returns:
        What `watch` returned.
    """
    from seqtune.objectives.specs.sft import Sft

    likelihood = Sft().build()
    step, order = Stepper(policy, learning_rate), torch.Generator().manual_seed(seed)
    prompts = torch.stack([prompt for prompt, _ in rows])
    ids, mask = padded([completion for _, completion in rows])
    seen = [watch()]
    for number in range(steps):
        chosen = torch.randint(len(rows), (batch,), generator=order)
        logps, live = scores(policy, prompts[chosen], ids[chosen])[0], mask[chosen]
        step(loss(logps, live, chosen) if loss else likelihood(logps, live, denominator=live.sum())[0])
        if (number + 1) % 10 == 0:
            seen.append(watch())
    return seen


class Curves(NamedTuple):
    """Of one run.

    Args:
        rewards: Mean of each rollout's completions that the policy sampled without help, by group of prompts.
        success: Before the first rollout and after each, by group of prompts.
    """

    rewards: dict[str, list[float]]
    success: dict[str, list[float]]


def improve(
    policy: Any,
    task: Task,
    objective: Policy,
    *,
    rollouts: int,
    prompts: int,
    updates: int = 1,
    learning_rate: float,
    warm_up: int = 0,
    seed: int,
) -> Curves:
    """Train on sampled completions.

    Args:
        policy: Where training starts; left as it is.
        task: What to learn. With an objective that takes a `prefix_mask`, `right` are its demonstrations.
        objective: Its advantages and loss are the ones a run has.
        rollouts: How often completions are sampled.
        prompts: Of a rollout, each with `objective.group_size` completions.
        updates: Optimiser steps a rollout: all but the first are off policy.
        learning_rate: Of AdamW.
        warm_up: Optimiser steps over which it rises.
        seed: Of prompts, completions and how a rollout is cut.
    """
    policy = copy.deepcopy(policy)
    step, random = Stepper(policy, learning_rate, warm_up), torch.Generator().manual_seed(seed)
    advantages_of, loss_of = objective.build_advantage(), objective.build()
    led = "prefix_mask" in objective.loss_inputs
    shares = objective.build_prefix_shares(rollouts) if led else None  # type: ignore[attr-defined]
    rewards: dict[str, list[float]] = {name: [] for name in task.groups}
    reached = success(policy, task)
    curves: dict[str, list[float]] = {name: [value] for name, value in reached.items()}
    for rollout in range(rollouts):
        chosen = torch.randperm(len(task.prompts), generator=random)[:prompts].repeat_interleave(objective.group_size)
        given = [0] * len(chosen)
        if shares is not None:  # the last of each group goes on from the beginning of its demonstration
            low, high = shares(rollout)
            for row in range(objective.group_size - 1, len(chosen), objective.group_size):
                share = low + (high - low) * float(torch.rand((), generator=random))
                given[row] = prefix_length(share, task.right.shape[1])
        demonstrated = [task.right[n, :p].tolist() for n, p in zip(chosen, given, strict=True)]
        completions = sampled(policy, task, chosen, demonstrated, (seed, rollout))
        ids, mask = padded(completions)
        r = torch.tensor(
            [float(ids[row, : task.right.shape[1]].tolist() == task.right[n].tolist()) for row, n in enumerate(chosen)]
        )
        with torch.no_grad():
            old, entropies = scores(policy, task.prompts[chosen], ids)
        known = {"mask": mask, "completion_ids": ids, "entropies": entropies, "limit": task.limit}
        known["prefix_mask"] = torch.arange(ids.shape[1]) < torch.tensor(given).unsqueeze(1)
        a = advantages_of(r, **{name: known[name] for name in objective.advantage_inputs})
        for part in torch.randperm(len(chosen), generator=random).chunk(updates):
            logps, _ = scores(policy, task.prompts[chosen[part]], ids[part])
            more = {name: known[name][part] for name in objective.loss_inputs}
            weight = {"tokens": int(mask[part].sum()), "slots": len(part) * task.limit}.get(
                objective.denominator_unit, len(part)
            )
            step(loss_of(logps, old[part], a[part], mask[part], **more, denominator=weight)[0])
        alone = torch.tensor(given) == 0
        reached = success(policy, task)
        for name, rows in task.groups.items():
            counted = alone & torch.isin(chosen, rows)
            rewards[name].append(float(r[counted].mean()) if counted.any() else float("nan"))
            curves[name].append(reached[name])
    return Curves(rewards, curves)


def sampled(
    policy: Any, task: Task, chosen: Tensor, beginnings: Sequence[list[int]], seed: tuple[int, ...]
) -> list[list[int]]:
    """Completions of the prompts `chosen`, each going on from its beginning, which stays part of it."""
    found = generate(
        policy,
        [[*task.prompts[n].tolist(), *beginning] for n, beginning in zip(chosen, beginnings, strict=True)],
        max_new_tokens=task.limit,
        eos_token_id=END,
        pad_token_id=END,
        seeds=[seed_of(*seed, row) for row in range(len(chosen))],
        batch_size=len(chosen),
    )
    return [[*beginning, *more][: task.limit] for beginning, more in zip(beginnings, found, strict=True)]
