"""Rollouts in which completions call tools: what a policy trainer makes of `seqtune.rollout.tools`.

Shapes: `B` rows of a process, `T` tokens of the longest completion, `W` of the longest rewritten answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from seqtune.rollout.tools import Codec, Tool, converse
from seqtune.training.rollouts import LEFT, widened

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from seqtune.config.tools import ToolSpec
    from seqtune.rollout.tools import Completion, Turn


class ToolRollout:
    """The tools of a stage, and what the last completions that could call them came to.

    Args:
        specs: At least one.
        tokenizer: Of the model.
        ends: Tokens that end a completion.
        limit: Most tokens of a completion, results included.

    Raises:
        SeqtuneError: A tool cannot work: its corpus, its function or its sandbox is missing.
    """

    def __init__(
        self, specs: Sequence[ToolSpec], tokenizer: PreTrainedTokenizerBase, *, ends: Sequence[int], limit: int
    ) -> None:
        self._tools = [Tool(spec, spec.build()) for spec in specs]
        self._codec, self._ends, self._limit = codec(tokenizer), ends, limit
        self.found: list[Completion] = []

    def __call__(
        self, prompts: Sequence[list[int]], generate: Callable[[list[Turn], Stop], list[list[int]]]
    ) -> list[Completion]:
        """Complete every prompt; `generate` as `seqtune.rollout.tools.converse` has it, with what ends its turns."""
        self.found = converse(
            prompts,
            generate=lambda turns, stops: generate(turns, Stop(turns, stops, self._ends)),
            tools=self._tools,
            codec=self._codec,
            ends=self._ends,
            limit=self._limit,
        )
        return self.found

    def told(self, width: int, device: torch.device, *, rewritten: bool) -> dict[str, Tensor]:
        """What a trainer has to know of the last completions: `own_mask` `[B, width]` and `calls` `[B]`.

        Args:
            width: T.
            device: Of the tensors.
            rewritten: Also give the completions that called tools and ended by themselves without their calls and
                results: `memory_ids` and `memory_mask`, `[B, W]`.
        """
        calls = torch.tensor([len(one.calls) for one in self.found], device=device)
        own = _padded([one.own for one in self.found], torch.bool, width)
        told = {"own_mask": own.to(device), "calls": calls}
        if rewritten:
            texts = [
                [*self._codec.encode(one.outside, True), one.ids[-1]] if one.calls and one.ended else []
                for one in self.found
            ]
            cut = [ids if len(ids) <= self._limit else [] for ids in texts]
            told["memory_ids"] = _padded(cut, torch.long).to(device)
            told["memory_mask"] = _padded([[True] * len(ids) for ids in cut], torch.bool).to(device)
        return told


class Stop:
    """Ends the turns of one call of `seqtune.rollout.transformers.generate`: its `watch`.

    What follows a turn's last token becomes a token that ends a completion; whoever asked does not read it.

    Args:
        turns: Of the call.
        stops: Whether a turn (its number, its tokens so far) ends with its last token.
        ends: Tokens that end a completion.
    """

    def __init__(self, turns: Sequence[Turn], stops: Callable[[int, list[int]], bool], ends: Sequence[int]) -> None:
        self._rooms, self._stops, self._ends = [turn.room for turn in turns], stops, ends
        self._ids: list[list[int]] = [[] for _ in turns]
        self._done = [False] * len(turns)

    def __call__(self, logits: Tensor, tokens: Tensor, step: int, places: list[int]) -> Tensor:
        found = tokens.tolist()
        for n, place in enumerate(places):
            if self._done[place]:
                found[n] = self._ends[0]
                continue
            ids = self._ids[place]
            ids.append(found[n])
            self._done[place] = found[n] in self._ends or len(ids) == self._rooms[place] or self._stops(place, ids)
        return torch.tensor(found, device=tokens.device)


def codec(tokenizer: PreTrainedTokenizerBase) -> Codec:
    """Text to ids and back by a tokenizer."""

    def encode(text: str, special: bool) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=not special)["input_ids"]
        return ids

    def decode(ids: Sequence[int]) -> str:
        text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    return Codec(encode, decode)


def trained(rows: dict[str, Tensor]) -> Tensor:
    """The completion tokens that are trained, `[B, T]` bool: those the model wrote itself."""
    mask = rows["completion_mask"].bool()
    return mask & rows["own_mask"] if "own_mask" in rows else mask


def with_memories(step: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rows of a step with their rewritten answers as further rows, which `memory_mask` `[B, T]` marks."""
    if "memory_ids" not in step:
        return step
    ids, live = step["memory_ids"], step["memory_mask"]
    width = step["completion_ids"].shape[1]
    rows = live.any(1).nonzero().squeeze(1)
    wide = max(width, ids.shape[1])
    written = widened(live[rows], wide)
    found = {}
    for name, value in step.items():
        if name in ("memory_ids", "memory_mask"):
            continue
        by_token = value.dim() == 2 and value.shape[1] == width and name not in LEFT
        whole = widened(value, wide) if by_token else value
        more = whole[rows] if name in LEFT else torch.zeros_like(whole[rows])
        if name == "completion_ids":
            more = widened(ids[rows], wide)
        elif name in ("completion_mask", "own_mask"):
            more = written.to(value.dtype)
        found[name] = torch.cat([whole, more])
    found["memory_mask"] = torch.cat([torch.zeros_like(found["own_mask"][: len(live)]), written])
    return found


def _padded(rows: Sequence[Sequence[Any]], dtype: torch.dtype, width: int = 1) -> Tensor:
    width = max([width, *map(len, rows)])
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=dtype)
