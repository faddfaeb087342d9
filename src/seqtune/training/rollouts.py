"""Which prompts a rollout takes, what its completions begin with, and how its rows are put together and cut."""

from __future__ import annotations

from itertools import islice, repeat
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler

from seqtune.data.tokenize import Encoder, prompt_ids
from seqtune.objectives.prefix_rft import prefix_length
from seqtune.rollout.noise import seed_of
from seqtune.training.stage import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Place = tuple[int, int, int]
"""Rollout, prompt of the rollout and completion of the prompt."""

AT_A_TIME = 1000
"""Prompts whose ids are held at a time when the longest is looked for."""


LEFT = ("prompt_ids", "prompt_mask")
"""Tensors of a rollout that are padded on the left; those of completions are on the right."""
BY_TOKEN = {
    "completion_ids",
    "completion_mask",
    "old_per_token_logps",
    "ref_per_token_logps",
    "sampling_per_token_logps",
    "importance_sampling_ratio",
}
"""What TRL tells of each token of a completion, `[B, T]`."""


def longest_prompt(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of the longest prompt.

    Raises:
        SeqtuneError: A row has no prompt, or the chat template is missing or refuses a conversation.
    """
    parts = (part.to_pylist() for part in rows.with_format("arrow").iter(AT_A_TIME))
    return max((len(ids) for part in parts for ids in prompt_ids(part, tokenizer)), default=0)


def token_texts(tokens: Iterable[int], tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The text of each distinct token by itself, that of a special token left out."""
    return {token: str(tokenizer.decode([token], skip_special_tokens=True)) for token in set(tokens)}


class Rollouts(Sampler[int]):
    """Row numbers as TRL wants them: each rollout's prompts `group_size` times over, and all that `repeats` times.

    TRL draws the rows of a rollout anew for each of its micro-batches but generates only at the first. Which prompts a
    rollout takes depends on the seed alone, not on processes, micro-batches or where a run was resumed.
    """

    def __init__(self, rows: int, *, rollouts: int, prompts: int, group_size: int, repeats: int, seed: int) -> None:
        self.stream = Stream(rows, rollouts * prompts, seed)
        self.rollouts, self.prompts, self.group_size, self.repeats = rollouts, prompts, group_size, repeats

    def __len__(self) -> int:
        return self.rollouts * self.prompts * self.group_size * self.repeats

    def __iter__(self) -> Iterator[int]:
        stream = iter(self.stream)
        for _ in range(self.rollouts):
            rows = list(islice(stream, self.prompts))
            for _ in range(self.repeats):
                for row in rows:
                    yield from repeat(row, self.group_size)


def further(rows: int, prompts: int, number: int, key: tuple[int, ...]) -> list[int]:
    """Row numbers of the prompts of a further round of a rollout.

    A random order of all rows of its own, `prompts` at a time and from the beginning again after the last: the order in
    which first rounds take the rows does not depend on how many further ones there were.

    Args:
        rows: Of the data.
        prompts: Of a round.
        number: Of the round, from 1.
        key: Of the random order, one a rollout.
    """
    order = np.random.default_rng((*key, 1)).permutation(rows)
    wanted = range((number - 1) * prompts, number * prompts)
    found: list[int] = order.take(wanted, mode="wrap").tolist()
    return found


class Demonstrations:
    """The examples' own completions as tokens of a rollout.

    Args:
        tokenizer: Of the model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._encode = Encoder(tokenizer, ("prompt", "completion"))

    def tokens(self, rows: Sequence[Mapping[str, Any]], prompts: Sequence[list[int]]) -> list[list[int]]:
        """The examples' own completions as supervised training has them, after the prompt and up to the token that ends
        them; none where an example has no completion or the chat template writes the prompt differently before it.
        """
        having = [number for number, row in enumerate(rows) if row.get("completion")]
        coded = self._encode([rows[number] for number in having])
        ends = coded.sizes.cumsum()
        found: list[list[int]] = [[] for _ in rows]
        for number, end, size in zip(having, ends.tolist(), coded.sizes.tolist(), strict=True):
            ids, trained = coded.ids[end - size : end].tolist(), coded.mask[end - size : end].nonzero()[0]
            start = len(prompts[number])
            if size and ids[:start] == prompts[number]:
                found[number] = ids[start : int(trained[-1]) + 1]
        return found


class Beginnings(Demonstrations):
    """What the last completion of each group is given of the example's own completion.

    Args:
        tokenizer: Of the model.
        shares: `step -> (least, largest)` share of a demonstration that is given, drawn evenly in between.
        group_size: Completions of a group.
        limit: Most tokens of a completion; at least one of them is left to the model.
        seed: Of the draw.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        shares: Callable[[int], tuple[float, float]],
        *,
        group_size: int,
        limit: int,
        seed: int,
    ) -> None:
        super().__init__(tokenizer)
        self._shares, self._group_size, self._limit, self._seed = shares, group_size, limit, seed

    def __call__(
        self, rows: Sequence[Mapping[str, Any]], prompts: Sequence[list[int]], places: Sequence[Place], step: int
    ) -> list[list[int]]:
        """Tokens each completion begins with; none but for the last of a group whose row has a demonstration.

        Args:
            rows: An example a completion.
            prompts: The token ids of its prompt.
            places: Where it stands.
            step: The optimiser step, from 0.
        """
        least, largest = self._shares(step)
        last = [number for number, place in enumerate(places) if place[2] == self._group_size - 1]
        wholes = self.tokens([rows[number] for number in last], [prompts[number] for number in last])
        found: list[list[int]] = [[] for _ in rows]
        for number, whole in zip(last, wholes, strict=True):
            drawn = seed_of(self._seed, *places[number], 1) / 2**63
            given = prefix_length(least + (largest - least) * drawn, len(whole))
            found[number] = whole[: min(given, self._limit - 1)]
        return found


class Anchor(NamedTuple):
    """A demonstration in the place of a completion."""

    row: int
    """Of this process."""
    tokens: list[int]


def anchored(tensors: dict[str, Tensor], anchors: Sequence[Anchor]) -> dict[str, Tensor]:
    """The tensors of a rollout with some completions exchanged for demonstrations, which `prefix_mask` marks.

    No policy of ours sampled them: their log-probs are 0, that of the engine is not known, and nothing weighs them.
    """
    device, old = tensors["completion_ids"].device, tensors["completion_ids"].shape[1]
    width = max([old, *(len(anchor.tokens) for anchor in anchors)])
    found = dict(tensors)
    for name in BY_TOKEN & tensors.keys():
        found[name] = widened(tensors[name], width).clone()
    found["prefix_mask"] = torch.zeros_like(found["completion_mask"], dtype=torch.bool)
    for row, tokens in anchors:
        live = torch.arange(width, device=device) < len(tokens)
        for name in BY_TOKEN & tensors.keys():
            found[name][row] = {"sampling_per_token_logps": torch.nan, "importance_sampling_ratio": 1}.get(name, 0)
        found["completion_ids"][row, live] = torch.tensor(tokens, device=device)
        found["completion_mask"][row] = live.to(found["completion_mask"].dtype)
        found["prefix_mask"][row] = live
    return found


class Round(NamedTuple):
    """Completions of some prompts: `B` rows of this process or of all, whole groups in contiguous rows."""

    tensors: dict[str, Tensor]
    """What TRL and the trainer know of them, `[B, ...]`, prompts padded on the left and completions on the right."""
    rewards: list[float]
    """Of all processes' rows, NaN where there is none."""
    texts: list[tuple[str, str]]
    """Prompt and completion, of all processes' rows."""


def together(rounds: Sequence[Round], groups: Sequence[int], group_size: int, mine: slice) -> Round:
    """Some groups of several rounds, whose tensors hold the rows of all processes, as one round.

    Args:
        rounds: With the same tensors each.
        groups: Numbers of the groups, counted through all rounds.
        group_size: Rows of a group.
        mine: Which of the chosen rows the tensors keep.

    Returns:
        Rewards and texts are of all chosen rows.
    """
    rows = [group * group_size + row for group in groups for row in range(group_size)]
    own = torch.tensor(rows[mine], dtype=torch.long)
    tensors = {}
    for name in rounds[0].tensors:
        parts = [one.tensors[name] for one in rounds]
        left = name in LEFT
        width = max(part.shape[1] for part in parts) if parts[0].dim() > 1 else 0
        whole = torch.cat([widened(part, width, left=left) if part.dim() > 1 else part for part in parts])
        tensors[name] = whole[own.to(whole.device)]
    rewards, texts = [r for one in rounds for r in one.rewards], [t for one in rounds for t in one.texts]
    return Round(tensors, [rewards[row] for row in rows], [texts[row] for row in rows])


def widened(value: Tensor, width: int, *, left: bool = False) -> Tensor:
    """`[B, T]` with columns of zeros up to `width`, in front if `left`."""
    more = value.new_zeros((len(value), width - value.shape[1], *value.shape[2:]))
    return torch.cat([more, value] if left else [value, more], dim=1)


def groups(values: Sequence[float], size: int) -> list[Sequence[float]]:
    """The values of each group of `size` rows."""
    return [values[first : first + size] for first in range(0, len(values), size)]


def side_by_side(rows: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Prompts and completions side by side: ids and which of them there are, `[B, P + T]`."""
    return (
        torch.cat([rows["prompt_ids"], rows["completion_ids"]], 1),
        torch.cat([rows["prompt_mask"], rows["completion_mask"]], 1),
    )


def take(tensors: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """Some rows of every tensor that has rows; what is a single number is kept, what is missing left out."""
    return {
        name: value[rows.to(value.device)] if value.ndim else value
        for name, value in tensors.items()
        if isinstance(value, torch.Tensor)
    }


def by_group(first: int, rows: int, group_size: int, key: tuple[int, ...]) -> Tensor:
    """Row numbers with the groups in a random order and each group's rows together.

    Args:
        first: Number of this process's first row among the rows of all processes.
        rows: Rows of this process.
        group_size: Rows of a group; the first and the last group may lie partly on another process.
        key: Of the random order.
    """
    groups = (first + np.arange(rows)) // group_size
    order = np.random.default_rng(key).permutation(int(groups[-1] - groups[0] + 1))
    return torch.from_numpy(np.argsort(order[groups - groups[0]], kind="stable"))
