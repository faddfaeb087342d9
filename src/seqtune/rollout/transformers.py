"""Completions from any Hugging Face causal language model, reproducible row by row.

Sampling adds counter-based Gumbel noise to the log-probs and takes the largest (the Gumbel-max trick), so a completion
depends on its seed, its prompt and the weights: not on the batch, the rank or the order in which it was asked for. What
is left is the rounding of the model's own matrix products, which may differ between batch shapes in the last bits.

Shapes: `B` rows of a batch, `U` distinct prompts, `P` longest of them, `V` vocabulary.
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from seqtune.rollout.attention import NAME, Shared
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
    watch: Callable[[Tensor, Tensor, int, list[int]], Tensor] | None = None,
) -> list[list[int]]:
    """Complete every prompt. Prompts of similar length share a batch; equal prompts share their prefill.

    A model whose attention is `seqtune.rollout.attention.NAME` reads prompts without padding and holds each once; any
    other keeps its own cache of every completion.

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
        watch: `watch(logits [B, V], tokens [B], step, numbers of the prompts) -> tokens [B]`, called with every token
            that was chosen; for this call alone.

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
                places = [rows[i] for i in alive.tolist()]
                if greedy or seeds is None:
                    tokens = logits.argmax(-1)
                else:
                    keys = torch.tensor([seeds[i] for i in places], device=logits.device)
                    scores = truncated(logits / temperature, top_k=top_k, top_p=top_p)
                    tokens = (scores + gumbel(keys, step, logits.shape[-1])).argmax(-1)
                return tokens if watch is None else watch(logits, tokens, step, places)

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
    """One batch, token by token; `choose(logits[B, V], step, alive[B]) -> tokens[B]`."""
    device: torch.device = model.get_input_embeddings().weight.device
    sharded = isinstance(next(model.parameters()), DTensor)
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    place = {prompt: i for i, prompt in enumerate(distinct)}
    which = torch.tensor([place[tuple(p)] for p in prompts], device=device)
    reader = (_SharedPrompts if _base(model).config._attn_implementation == NAME else _OwnCache)(
        model, distinct, which, pad
    )
    logits = reader.begin(sharded)

    alive = torch.arange(len(prompts), device=device)  # row of `prompts` that each row of the batch belongs to
    ending = torch.tensor(ends, device=device)
    finished = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    chosen: list[tuple[Tensor, Tensor]] = []
    for step in range(max_new_tokens):
        tokens = choose(logits, step, alive)
        chosen.append((alive, tokens.masked_fill(finished, -1)))
        finished = finished | torch.isin(tokens, ending)
        left = int((~finished).sum())
        if step + 1 == max_new_tokens or (_all_ranks(left == 0, device) if sharded else left == 0):
            break
        if 0 < left <= 0.75 * len(alive):  # finished rows leave the batch once they are a quarter of it
            keep = (~finished).nonzero().squeeze(1)
            reader.keep(keep)
            alive, tokens, finished = alive[keep], tokens[keep], finished[keep]
        logits = reader.next(tokens)

    completions: list[list[int]] = [[] for _ in prompts]
    for rows, tokens in chosen:
        for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            if token >= 0:
                completions[row].append(token)
    return completions


class _Reader:
    """A model that reads prompts and then one token of each completion at a time.

    Args:
        model: The model, or an adapter around it.
        prompts: [U] distinct.
        which: [B] prompt of each completion, in rising order.
        pad: Any valid token.
    """

    def __init__(self, model: Any, prompts: list[tuple[int, ...]], which: Tensor, pad: int) -> None:
        self.model, self.prompts, self.which, self.pad = model, prompts, which, pad
        self._accepted = set(inspect.signature(_base(model).forward).parameters)

    def _read(self, ids: Tensor, positions: Tensor, last: int | Tensor = 1, **given: Any) -> Any:
        """The model's output for `[., T]` tokens, its logits for the `last` ones or for those at these indices."""
        if "position_ids" in self._accepted:
            given["position_ids"] = positions
        if "logits_to_keep" in self._accepted:
            given["logits_to_keep"] = last
        out = self.model(input_ids=ids, **given)
        if "logits_to_keep" not in self._accepted:
            out.logits = out.logits[:, -last:] if isinstance(last, int) else out.logits[:, last]
        return out


class _SharedPrompts(_Reader):
    """Of a model that reads forests: prompts are read without padding and held once."""

    def begin(self, at_once: bool) -> Tensor:
        """[B, V] logits of the first token of each completion; with `at_once` from one forward pass."""
        self.shared = Shared(self.prompts, self.which)
        found = []
        for flat, last in self.shared.readings(at_once):
            ids, positions = (
                torch.from_numpy(x)[None].to(last.device) for x in (flat.input_ids, flat.forest.position_ids)
            )
            found.append(self._forward(ids, positions, last)[0])
        return torch.cat(found)[self.which]

    def next(self, tokens: Tensor) -> Tensor:
        """[B, V] logits after these tokens."""
        logits = self._forward(tokens.unsqueeze(1), self.shared.positions, 1)[:, 0]
        self.shared.read()
        return logits

    def keep(self, rows: Tensor) -> None:
        """Go on with these completions alone."""
        self.shared.keep(rows)

    def _forward(self, ids: Tensor, positions: Tensor, last: int | Tensor) -> Tensor:
        logits: Tensor = self._read(ids, positions, last, use_cache=False, rollout=self.shared).logits
        return logits.float()


class _OwnCache(_Reader):
    """Of any model: one left-padded batch, and the model's cache."""

    cache: Any = None

    def begin(self, at_once: bool) -> Tensor:
        """[B, V] logits of the first token of each completion; always from one forward pass."""
        longest, device = max(map(len, self.prompts)), self.which.device
        ids = torch.tensor([[self.pad] * (longest - len(p)) + list(p) for p in self.prompts], device=device)  # [U, P]
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in self.prompts], device=device)
        self.mask, self.positions = mask, (mask.cumsum(-1) - 1).clamp(min=0)
        logits = self._forward(ids)
        if len(self.prompts) < len(self.which):
            self.cache.reorder_cache(self.which)
        self.mask, self.positions = self.mask[self.which], self.positions[self.which, -1:]
        return logits[self.which]

    def next(self, tokens: Tensor) -> Tensor:
        """[B, V] logits after these tokens."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], 1)
        self.positions = self.positions + 1
        return self._forward(tokens.unsqueeze(1))

    def keep(self, rows: Tensor) -> None:
        """Go on with these completions alone."""
        self.cache.reorder_cache(rows)
        self.mask, self.positions = self.mask[rows], self.positions[rows]

    def _forward(self, ids: Tensor) -> Tensor:
        out = self._read(ids, self.positions, attention_mask=self.mask, past_key_values=self.cache, use_cache=True)
        self.cache = out.past_key_values
        logits: Tensor = out.logits[:, -1].float()
        return logits


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _all_ranks(done: bool, device: torch.device) -> bool:
    """Whether all ranks are done. With sharded weights every forward is collective, so they stop together."""
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
