"""Completions from any Hugging Face causal language model, reproducible row by row.

Sampling adds counter-based Gumbel noise to the log-probs and takes the largest (the Gumbel-max trick), so a completion
depends on its seed, its prompt and the weights: not on the batch, the rank or the order in which it was asked for. What
is left is the rounding of the model's own matrix products, which may differ between batch shapes in the last bits.

Shapes: `B` rows of a batch, `P` longest prompt, `V` vocabulary.
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from seqtune.rollout.noise import gumbel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from transformers import PreTrainedModel


def generate(
    model: PreTrainedModel,
    prompt_ids: list[list[int]],
    *,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int],
    pad_token_id: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    greedy: bool = False,
    seeds: list[int] | None = None,
    batch_size: int,
) -> list[list[int]]:
    """Complete every prompt. Prompts of similar length share a batch; equal prompts share their prefill.

    Args:
        model: Causal language model, or a PEFT model around one; put into evaluation mode and back.
        prompt_ids: One non-empty prompt a row.
        max_new_tokens: Tokens a completion has at most, at least 1.
        eos_token_id: Token or tokens that end a completion; the ending token is kept.
        pad_token_id: Any valid token; padding is masked.
        temperature: Divides the logits, before `top_k` and `top_p`.
        top_p: Keep the smallest set of most probable tokens that holds this probability.
        top_k: Keep this many most probable tokens; None keeps all.
        greedy: Take the most probable token; the four arguments above and below it do not matter.
        seeds: One a row (`seqtune.rollout.noise.seed_of`); needed unless `greedy`.
        batch_size: Rows decoded together.

    Returns:
        Completions in the order of `prompt_ids`, each of 1 to `max_new_tokens` tokens.

    Raises:
        ValueError: An empty prompt, or not one seed a row.
    """
    if not all(prompt_ids):
        raise ValueError(f"prompt {next(i for i, ids in enumerate(prompt_ids) if not ids)} is empty")
    if not greedy and (seeds is None or len(seeds) != len(prompt_ids)):
        raise ValueError("sampling needs one seed a prompt")
    ends = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)
    # Equal prompts become neighbours: few distinct ones in a batch. The longest come first: memory peaks early.
    order = sorted(range(len(prompt_ids)), key=lambda i: (-len(prompt_ids[i]), prompt_ids[i]))
    completions: list[list[int]] = [[] for _ in prompt_ids]
    with evaluation_mode(model), torch.no_grad():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]

            def choose(logits: Tensor, step: int, alive: Tensor, rows: list[int] = rows) -> Tensor:
                if greedy or seeds is None:
                    return logits.argmax(-1)
                keys = torch.tensor([seeds[rows[i]] for i in alive.tolist()], device=logits.device)
                logits = truncated(logits / temperature, top_k=top_k, top_p=top_p)
                return (logits + gumbel(keys, step, logits.shape[-1])).argmax(-1)

            for i, completion in zip(
                rows,
                _decode(model, [prompt_ids[i] for i in rows], max_new_tokens, ends, pad_token_id, choose),
                strict=True,
            ):
                completions[i] = completion
    return completions


def truncated(logits: Tensor, *, top_k: int | None = None, top_p: float = 1.0) -> Tensor:
    """Logits `[B, V]` with -inf outside the `top_k` most probable tokens and outside the nucleus of mass `top_p`.

    `top_k` acts first; the most probable token always stays (https://arxiv.org/abs/1904.09751).
    """
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        values, indices = logits.sort(dim=-1, descending=True)
        mass = values.softmax(-1)
        outside = mass.cumsum(-1) - mass >= top_p  # mass of the more probable tokens already reaches top_p
        outside[:, 0] = False
        logits = logits.masked_fill(torch.zeros_like(outside).scatter(1, indices, outside), -torch.inf)
    return logits


def _decode(
    model: Any,
    prompts: list[list[int]],
    max_new_tokens: int,
    ends: list[int],
    pad: int,
    choose: Callable[[Tensor, int, Tensor], Tensor],
) -> list[list[int]]:
    """One left-padded batch, token by token; `choose(logits[B, V], step, alive[B]) -> tokens[B]`."""
    device: torch.device = model.get_input_embeddings().weight.device
    accepted = _forward_arguments(model)
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    longest = max(map(len, distinct))
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in distinct], device=device)  # [U, P]
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in distinct], device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)

    def forward(ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> tuple[Tensor, Any]:
        extra: dict[str, Any] = {"position_ids": positions} if "position_ids" in accepted else {}
        if "logits_to_keep" in accepted:
            extra["logits_to_keep"] = 1
        out = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **extra)
        return out.logits[:, -1].float(), out.past_key_values

    logits, cache = forward(ids, mask, positions, None)
    which = {prompt: i for i, prompt in enumerate(distinct)}
    expand = torch.tensor([which[tuple(p)] for p in prompts], device=device)  # [B] into [U]
    if len(distinct) < len(prompts):
        cache.reorder_cache(expand)
    logits, mask, positions = logits[expand], mask[expand], positions[expand, -1:]
    room = torch.ones(len(prompts), max_new_tokens, dtype=mask.dtype, device=device)
    mask = torch.cat([mask, room], 1)  # [B, P + max_new_tokens], of which each step sees a prefix

    alive = torch.arange(len(prompts), device=device)  # row of `prompts` that each row of the batch belongs to
    ending = torch.tensor(ends, device=device)
    finished = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    chosen: list[tuple[Tensor, Tensor]] = []
    for step in range(max_new_tokens):
        tokens = choose(logits, step, alive)
        chosen.append((alive, tokens.masked_fill(finished, -1)))
        finished = finished | torch.isin(tokens, ending)
        left = int((~finished).sum())
        if step + 1 == max_new_tokens or _all_ranks_done(model, left == 0, device):
            break
        if 0 < left <= 0.75 * len(alive):  # finished rows leave the batch once they are a quarter of it
            keep = (~finished).nonzero().squeeze(1)
            cache.reorder_cache(keep)
            alive, tokens, mask, positions, finished = (x[keep] for x in (alive, tokens, mask, positions, finished))
        positions = positions + 1
        logits, cache = forward(tokens.unsqueeze(1), mask[:, : longest + step + 1], positions, cache)

    completions: list[list[int]] = [[] for _ in prompts]
    for rows, tokens in chosen:
        for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            if token >= 0:
                completions[row].append(token)
    return completions


def _forward_arguments(model: Any) -> set[str]:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return set(inspect.signature(base.forward).parameters)


def _all_ranks_done(model: Any, done: bool, device: torch.device) -> bool:
    """Whether decoding may stop. With sharded weights every forward is collective, so all ranks stop together."""
    from torch.distributed.tensor import DTensor

    if not isinstance(next(model.parameters()), DTensor):
        return done
    flag = torch.tensor(int(done), device=device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN)
    return bool(flag.item())


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """The model in evaluation mode (in which gradient checkpointing leaves the cache alone), and back."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
