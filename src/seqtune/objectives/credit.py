"""Credit: from one advantage a completion to one a token, where tokens deserve different ones.

Shapes: `B` completions, rows of a group contiguous; `T` tokens of the padded completion; `K` segments.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from seqtune.objectives.reduce import at_least_fp32, extent, masked

if TYPE_CHECKING:
    from torch import Tensor


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

    The difference is 0 but where completions of the group part. What a tool wrote between tokens of the mask is part of
    the state.

    Args:
        advantages: a, `[B]`; NaN marks a completion without a score, which is left out of V and gets 0.
        completion_ids: `[B, T]`.
        mask: `[B, T]`.
        group_size: G.
        weight: w; 0 leaves one advantage a completion.
        root: Whether the first token counts as a branch of the prompt.

    Returns:
        `[B, T]`, 0 outside the mask.
    """
    a = at_least_fp32(advantages)
    scored = ~a.isnan()
    live = mask.bool() & scored.unsqueeze(1)
    values, lengths, rows = a.tolist(), extent(live).tolist(), completion_ids.tolist()
    delta = torch.zeros(live.shape, dtype=a.dtype, device=a.device)
    for first in range(0, len(rows), group_size):
        members = [first + i for i in scored[first : first + group_size].nonzero().flatten().tolist()]
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


def spread(values: Tensor, segments: Tensor, mask: Tensor) -> Tensor:
    """One value a segment `[B, K]` on each of its tokens, `[B, T]`; 0 on tokens of no segment 0..K-1."""
    inside = mask.bool() & (segments >= 0) & (segments < values.shape[1])
    return masked(values.gather(1, torch.where(inside, segments, torch.zeros_like(segments))), inside)


def entropy_floor(entropies: Tensor, mask: Tensor, drop: float) -> Tensor:
    """Least of the entropies under the mask that is no less than their `drop` quantile, 0-dim; -inf without any."""
    chosen = at_least_fp32(entropies)[mask.bool()]
    if not len(chosen):
        return chosen.new_tensor(-torch.inf)
    below = math.ceil(drop * (len(chosen) - 1) - 1e-9)  # torch.quantile takes no more than 2^24 numbers
    return chosen.kthvalue(below + 1).values


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
