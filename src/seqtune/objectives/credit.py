"""Credit: from one advantage a completion to one a token, where tokens deserve different ones.

Shapes: `B` completions, rows of a group contiguous; `T` tokens of the padded completion; `K` ranks or segments.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from seqtune.objectives.advantages import by_column
from seqtune.objectives.reduce import at_least_fp32, masked, masked_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


# Trees


def tree(
    advantages: Tensor,
    completion_ids: Tensor,
    mask: Tensor,
    group_size: int,
    *,
    weight: float = 1.0,
    root: bool = True,
) -> Tensor:
    """Advantage plus what each branch of the group's prefix tree changes, TEMPO (https://arxiv.org/abs/2509.18314).

        A_{i,t} = a_i + w (V(s_{i,t}) - V(s_{i,t-1}))     V(s): mean of a over the completions that begin with s

    The difference is 0 but where completions of the group part.

    Args:
        advantages: a, `[B]`.
        completion_ids: `[B, T]`.
        mask: `[B, T]`, without holes.
        group_size: G.
        weight: w; 0 leaves one advantage a completion.
        root: Whether the first token counts as a branch of the prompt.

    Returns:
        `[B, T]`, 0 outside the mask.
    """
    a = at_least_fp32(advantages)
    live = mask.bool()
    values, lengths, rows = a.tolist(), live.sum(1).tolist(), completion_ids.tolist()
    delta = torch.zeros(live.shape, dtype=a.dtype, device=a.device)
    for first in range(0, len(rows), group_size):
        members = range(first, first + group_size)
        number: dict[tuple[int, int], int] = {}  # of the node reached from a node by a token; the prompt is 0
        paths, total, count = {}, [0.0], [0]
        for i in members:
            path = [0]
            for token in rows[i][: lengths[i]]:
                path.append(number.setdefault((path[-1], token), len(total)))
                if path[-1] == len(total):
                    total.append(0.0)
                    count.append(0)
            for node in path:
                total[node] += values[i]
                count[node] += 1
            paths[i] = path
        for i in members:
            v = [total[node] / count[node] for node in paths[i]]
            steps = [after - before for before, after in pairwise(v)]
            if steps and not root:
                steps[0] = 0.0
            delta[i, : len(steps)] = delta.new_tensor(steps)
    return masked(a.unsqueeze(1) + weight * delta, live)


# Ranks and segments


def spread(values: Tensor, segments: Tensor, mask: Tensor) -> Tensor:
    """One value a segment `[B, K]` on each of its tokens, `[B, T]`; 0 on tokens of no segment 0..K-1."""
    inside = mask.bool() & (segments >= 0) & (segments < values.shape[1])
    return masked(values.gather(1, torch.where(inside, segments, torch.zeros_like(segments))), inside)


def discounted_ranks(relevance: Tensor) -> Tensor:
    """r_{i,k} = Σ_{j>=k} rel_{i,j} / log2(j + 2), `[B, K]`: the list's DCG without what earlier ranks earned."""
    discount = 1 / torch.log2(torch.arange(relevance.shape[1], device=relevance.device, dtype=relevance.dtype) + 2)
    return (relevance * discount).flip(1).cumsum(1).flip(1)


def list_shape(
    segments: Tensor, mask: Tensor, ended: Tensor, count: int, *, overflow: float = 0.1, ending: float = 0.1
) -> Tensor:
    """What Rank-GRPO adds to the advantages so that lists have `count` items, `[B, T]` (https://arxiv.org/abs/2510.20150).

    -overflow on tokens beyond the last item; on the end-of-sequence token +ending after a whole list without overflow,
    -ending after too short a one. A completion that did not end gets nothing for its end.

    Args:
        segments: Item of each token, `[B, T]`.
        mask: `[B, T]`.
        ended: Whether the last token of the mask ends the sequence, `[B]`.
        count: K.
        overflow: Taken off the tokens of items K, K+1, …
        ending: Added or taken off at the end.
    """
    live = mask.bool()
    place = torch.arange(live.shape[1], device=live.device)
    last = live & (place == (place * live).amax(1, keepdim=True)) & ended.bool().unsqueeze(1)
    beyond = live & (segments >= count)
    body = live & ~last
    items = torch.where(body, segments, -1).amax(1, keepdim=True) + 1  # items begun before the end
    shape = -overflow * beyond.to(torch.float32)
    whole = (items >= count) & ~beyond.any(1, keepdim=True)
    at_end = torch.where(whole, ending, torch.where(items < count, -ending, 0.0))
    return shape + torch.where(last, at_end, 0.0)


def rank_advantages(
    rewards: Tensor,
    *,
    rank_rewards: Tensor,
    segments: Tensor,
    mask: Tensor,
    ended: Tensor,
    group_size: int,
    ranks: int,
    discounted: bool,
    overflow: float,
    ending: float,
) -> Tensor:
    """Advantages of Rank-GRPO (https://arxiv.org/abs/2510.20150), `[B, T]`: each rank compared within its group.

    The end-of-sequence token and tokens beyond the last rank have only the shaping of `list_shape`.

    Args:
        rewards: `[B]`; a completion with NaN is left out of the statistics and gets A = 0.
        rank_rewards: What each item earns, `[B, K]`.
        segments: Item of each token, `[B, T]`.
        mask: `[B, T]`.
        ended: Whether the last token of the mask ends the sequence, `[B]`.
        group_size: G.
        ranks: K.
        discounted: Compare the DCG of a rank and those below it instead of what the item itself earns.
        overflow: As `list_shape`.
        ending: As `list_shape`.

    Raises:
        ValueError: Rewards of another number of ranks.
    """
    if rank_rewards.shape[1] != ranks:
        raise ValueError(f"rewards of {rank_rewards.shape[1]} ranks, not {ranks}")
    r = at_least_fp32(rank_rewards)
    r = discounted_ranks(r) if discounted else r
    r = torch.where(rewards.isnan().unsqueeze(1), torch.nan, r)
    end = last_tokens(mask) & ended.bool().unsqueeze(1)
    a = spread(by_column(r, group_size), segments, mask.bool() & ~end)
    return a + list_shape(segments, mask, ended, ranks, overflow=overflow, ending=ending).to(a)


def last_tokens(mask: Tensor) -> Tensor:
    """The last token of the mask of each row, `[B, T]` bool."""
    live = mask.bool()
    place = torch.arange(live.shape[1], device=live.device)
    return live & (place == (place * live).amax(1, keepdim=True))


# Tokens chosen by entropy


def entropy_floor(entropies: Tensor, mask: Tensor, drop: float) -> Tensor:
    """The `drop` quantile of the entropies under the mask: a scalar, 0-dim; -inf if there are none."""
    chosen = at_least_fp32(entropies)[mask.bool()]
    return torch.quantile(chosen, drop) if len(chosen) else chosen.new_tensor(-torch.inf)


def only_uncertain(advantages: Tensor, entropies: Tensor, mask: Tensor, drop: float) -> Tensor:
    """Advantages `[B, T]` with 0 on the `drop` least uncertain tokens of the batch (https://arxiv.org/abs/2506.01939).

    Args:
        advantages: `[B]` or `[B, T]`.
        entropies: Of the distributions that gave the tokens, nats, `[B, T]`.
        mask: `[B, T]`.
        drop: Share of tokens; those at the threshold stay.
    """
    a = advantages.unsqueeze(1) if advantages.dim() == 1 else advantages
    keep = mask.bool() & (entropies >= entropy_floor(entropies, mask, drop))
    return torch.where(keep | a.isnan(), a, torch.zeros((), dtype=a.dtype, device=a.device))


def uncertain_prefix(advantages: Tensor, entropies: Tensor, mask: Tensor, prefix_mask: Tensor, keep: float) -> Tensor:
    """Advantages `[B, T]` with 0 on all but the most uncertain `keep` share of demonstration tokens.

    Prefix-RFT (https://arxiv.org/abs/2507.01679); over the whole batch, not the micro-batch, so that the split changes
    nothing. Tokens tied at the threshold all stay.
    """
    a = advantages.unsqueeze(1) if advantages.dim() == 1 else advantages
    prefix = mask.bool() & prefix_mask.bool()
    number = int(prefix.sum())
    kept = int(keep * number + 0.5)
    if kept:
        floor = entropies[prefix].topk(kept).values[-1]
        dropped = prefix & (entropies < floor)
    else:
        dropped = prefix
    return masked(a.expand(prefix.shape), mask.bool() & ~dropped)


# Pairs of a group


def edit_distances(completion_ids: Tensor, mask: Tensor, group_size: int) -> Tensor:
    """Levenshtein distance between the completions of a group over the longer one's length, `[P, G, G]` in [0, 1]."""
    rows = [row[keep].tolist() for row, keep in zip(completion_ids.cpu(), mask.bool().cpu(), strict=True)]
    found = torch.zeros(len(rows) // group_size, group_size, group_size)
    for p in range(len(found)):
        group = rows[p * group_size : (p + 1) * group_size]
        for i in range(group_size):
            for j in range(i):
                found[p, i, j] = found[p, j, i] = _levenshtein(group[i], group[j]) / max(
                    len(group[i]), len(group[j]), 1
                )
    return found


def _levenshtein(one: Sequence[int], other: Sequence[int]) -> float:
    """Row by row; the insertions of a row are a running minimum of cost less place."""
    target, place = torch.tensor(list(other)), torch.arange(len(other) + 1, dtype=torch.float32)
    row = place.clone()
    for number, token in enumerate(one, start=1):
        step = torch.minimum(row[1:] + 1, row[:-1] + (target != token))
        row = torch.cat([torch.tensor([float(number)]), step]).sub(place).cummin(0).values.add(place)
    return float(row[-1])


def distinct(rewards: Tensor, distances: Tensor, *, success: float, tau: float) -> Tensor:
    """Completions far enough from every one of the group with the other outcome, `[B]` bool; DaGRPO's mask.

        keep_i = [min over j with the other outcome of distance_{i,j} >= τ]     outcome: r > success

    Args:
        rewards: `[B]`; NaN has no outcome, is kept and is no one's opposite.
        distances: `[P, G, G]`.
        success: A reward above it is a success.
        tau: τ.
    """
    groups = rewards.reshape(len(distances), -1)
    good, scored = groups > success, ~groups.isnan()
    opposite = (good.unsqueeze(2) != good.unsqueeze(1)) & scored.unsqueeze(2) & scored.unsqueeze(1)
    gap = torch.where(opposite, distances.to(groups.device), torch.inf).amin(2)
    return (gap >= tau).flatten()


# Two models, tools


def foresight(
    format_scores: Tensor, executions: Tensor, judge_scores: Tensor, *, weights: tuple[float, float, float]
) -> Tensor:
    """Worth of a subgoal by how it is executed: R_i = w_fmt fmt_i + w_exec mean_k exec_{i,k} + w_judge judge_i, `[B]`.

    Hi-Agent (https://arxiv.org/abs/2510.14388). A subgoal that does not parse (format score 0) executes nothing.

    Args:
        format_scores: `[B]`.
        executions: `[B, K]`, what K tries of the low-level model earned; NaN for an invalid try counts 0.
        judge_scores: `[B]`.
        weights: w_fmt, w_exec, w_judge.
    """
    tries = masked(executions, ~executions.isnan()).mean(1)
    return weights[0] * format_scores + weights[1] * masked(tries, format_scores > 0) + weights[2] * judge_scores


def fewest_calls(correct: Tensor, calls: Tensor, group_size: int, *, weight: float = 2.0, limit: float = 2.0) -> Tensor:
    """Bonus of R1-Searcher++ for answering with the fewest retrievals (https://arxiv.org/abs/2505.17005), `[B]`.

    Among the correct completions of a group, those with the least calls get min(weight × var(calls), limit), var over
    the correct ones (ddof 0); all others 0.

    Args:
        correct: `[B]` bool.
        calls: Retrievals of each completion, `[B]`.
        group_size: G.
        weight: Factor of the variance.
        limit: Largest bonus.
    """
    right = correct.bool().reshape(-1, group_size)
    c = calls.to(torch.float32).reshape(-1, group_size)
    mean = masked_mean(c, right, dim=1).unsqueeze(1)
    variance = masked_mean((c - mean).square(), right, dim=1).unsqueeze(1)
    least = torch.where(right, c, torch.inf).amin(1, keepdim=True)
    bonus = (weight * variance).clamp(max=limit)
    return masked(bonus.expand_as(c), right & (c == least)).flatten()
