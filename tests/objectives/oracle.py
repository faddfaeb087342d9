"""Slow references in numpy, written row by row from the formulas and sharing nothing with the code under test."""

from __future__ import annotations

import numpy as np


def token_clip(rho, a, low, high):
    """-min(ρ a, clip(ρ) a) of one number each."""
    return -min(rho * a, min(max(rho, 1 - low), 1 + high) * a)


def live(d, mask):
    """The kept tokens of each row, as lists."""
    return [[float(x) for x, keep in zip(row, kept, strict=True) if keep] for row, kept in zip(d, mask, strict=True)]


def grpo(d, a, mask, low, high, how, limit=8):
    """Clipped token surrogate, aggregated."""
    losses = [[token_clip(np.exp(x), a_i, low, high) for x in row] for row, a_i in zip(live(d, mask), a, strict=True)]
    count = sum(map(len, losses))
    return {
        "sequence_mean": np.mean([np.mean(row) if row else 0.0 for row in losses]),
        "token_mean": sum(map(sum, losses)) / max(count, 1),
        "token_sum": np.mean([sum(row) for row in losses]),
        "constant": sum(map(sum, losses)) / (len(losses) * limit),
    }[how]


def by_unit(d, units, a, mask, low, high):
    """Geometric-mean ratio of each unit of a row, clipped with one range, mean over tokens and rows."""
    means = []
    for row, unit, a_i, kept in zip(d, units, a, mask, strict=True):
        tokens = [t for t, keep in enumerate(kept) if keep]
        ratio = {u: np.exp(np.mean([row[t] for t in tokens if unit[t] == u])) for u in {unit[t] for t in tokens}}
        means.append(np.mean([token_clip(ratio[unit[t]], a_i, low, high) for t in tokens]))
    return np.mean(means)


def espo(d, h, a, mask, share, alpha, low, high):
    """Two groups by entropy, each with its ratio and its range."""
    means = []
    for row, ent, a_i, kept in zip(d, h, a, mask, strict=True):
        tokens = [t for t, keep in enumerate(kept) if keep]
        number = max(1, int(np.ceil(share * len(tokens) - 1e-9)))
        top = set(sorted(tokens, key=lambda t: (-ent[t], t))[:number])
        mean = np.mean([ent[t] for t in tokens])
        losses = []
        for t in tokens:
            members = [u for u in tokens if (u in top) == (t in top)]
            width = max(0.0, 1 + alpha * (np.mean([ent[u] for u in members]) - mean) / (mean + 1e-8))
            ratio = np.exp(np.mean([row[u] for u in members]))
            losses.append(token_clip(ratio, a_i, low * width, high * width))
        means.append(np.mean(losses))
    return np.mean(means)


def tree(paths, z):
    """Advantage plus value differences along every path of one group."""

    def value(prefix):
        return np.mean([z[j] for j, path in enumerate(paths) if path[: len(prefix)] == prefix])

    return [[z[i] + value(p[: t + 1]) - value(p[:t]) for t in range(len(p))] for i, p in enumerate(paths)]


def levenshtein(one, other):
    """Edit distance by the table."""
    table = np.zeros((len(one) + 1, len(other) + 1))
    table[:, 0], table[0, :] = range(len(one) + 1), range(len(other) + 1)
    for i, x in enumerate(one, start=1):
        for j, y in enumerate(other, start=1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (x != y))
    return table[-1, -1]
