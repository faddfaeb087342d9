"""Hi-Agent's foresight advantage: what a subgoal is worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seqtune.objectives.reduce import masked

if TYPE_CHECKING:
    from torch import Tensor


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
