"""What a recipe can say about `policy`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from seqtune.config.spec import DenominatorUnit, Family, ObjectiveSpec

if TYPE_CHECKING:
    from collections.abc import Callable


class Policy(ObjectiveSpec):
    """A point in the space of group policy objectives; `grpo`, `gspo`, … are named points of it."""

    family: ClassVar[Family] = "policy"
    formula: ClassVar[str] = (
        "L = aggregation_{i,t}[-min(w A, clip(w, 1-ε_low, 1+ε_high) A) + beta KL]     KL: π from π_ref, estimator kl\n"
        "ratio=token: w = (π/π_old)(y_{i,t})     ratio=sequence: w = exp((1/n_i) Σ_t log (π/π_old)(y_{i,t}))"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2402.03300"

    name: str = "policy"
    group_size: int = Field(8, ge=2)
    """G: completions sampled for each prompt."""
    advantage: Literal[
        "group", "centered", "batch_std", "leave_one_out", "reinforce_pp", "reinforce_pp_baseline", "columns"
    ] = "group"
    """`group`: (r - mean) / (std + 1e-4) within the group, std with ddof 1; `centered`: r - mean; `batch_std`: r - mean
    over the std of the whole batch; `leave_one_out`: r - mean of the others; `reinforce_pp`: returns of the tokens,
    whitened over the batch; `reinforce_pp_baseline`: r - mean, whitened over the batch's tokens; `columns`: each of
    several rewards normalised in its group, then added."""
    gamma: float = Field(1.0, gt=0, le=1)
    """γ: discount a token of `advantage=reinforce_pp`."""
    overlong: float = Field(0.0, ge=0, lt=1)
    """Last part of `rollout.max_new_tokens` over which the soft overlong penalty takes 0 to -1 off the reward."""
    truncated: Literal["keep", "drop"] = "keep"
    """Completions cut off at `rollout.max_new_tokens`: `drop` leaves them out of the loss, not of the group's mean."""
    credit: Literal["sequence", "tree"] = "sequence"
    """`sequence`: one advantage a completion; `tree`: each branch of the group's prefix tree adds what it changes."""
    tree_weight: float = Field(1.0, ge=0)
    """Weight of what a branch adds, for `credit=tree`."""
    tree_root: bool = True
    """Whether the first token counts as a branch, for `credit=tree`."""
    entropy_drop: float = Field(0.0, ge=0, lt=1)
    """Share of the least uncertain tokens of a rollout that get no policy gradient; 0.8 in
    https://arxiv.org/abs/2506.01939."""
    ratio: Literal["token", "segment", "sequence", "sequence_sum"] = "token"
    """Unit of the importance ratio: each token; each line of the completion; the length-normalised whole completion; or
    the product of all its tokens' ratios."""
    gradient: Literal["shared", "token"] = "shared"
    """Gradient of a ratio: `shared` by its unit's tokens, or each `token` its own; the value is the same."""
    clip: Literal["pessimistic", "cispo", "gate", "soft"] = "pessimistic"
    """`pessimistic`: PPO's minimum; `cispo`: the ratio is a capped weight and every token keeps its gradient; `gate`:
    PPO's gradient with the value of the unclipped loss; `soft`: a sigmoid instead of a bound."""
    epsilon_low: float = Field(0.2, gt=0, lt=1)
    """ε_low: a ratio below 1 - ε_low gets no gradient when its advantage is negative."""
    epsilon_high: float = Field(0.2, gt=0)
    """ε_high: a ratio above 1 + ε_high gets no gradient when its advantage is positive."""
    bound: float | None = Field(None, gt=1)
    """δ: a ratio above it gets no gradient when its advantage is negative either (TRL's delta, dual clip's c); None has
    no such bound."""
    tau_positive: float = Field(1.0, gt=0)
    """τ of `clip=soft` where the advantage is positive."""
    tau_negative: float = Field(1.05, gt=0)
    """τ of `clip=soft` where it is not."""
    correction: Literal["none", "truncate", "mask"] = "none"
    """Weight of π_old over the engine that sampled: none; `truncate`d at `correction_high`; or 0 outside the range."""
    correction_over: Literal["token", "sequence_mean", "sequence_sum"] = "token"
    """Unit of the correction: each token, or the mean or sum of a completion's log ratios."""
    correction_low: float = Field(0.5, ge=0, lt=1)
    """Least weight that `correction=mask` keeps. 0.5 is IcePop's (https://arxiv.org/abs/2510.18855)."""
    correction_high: float = Field(5.0, gt=1)
    """Largest weight of the correction. 5 is IcePop's and MiniRL's."""
    correction_normalised: bool = False
    """Divide the weights of the correction by their mean over the rollout, so that it scales no gradient as a whole."""
    rejection: Literal["none", "sum", "mean", "max"] = "none"
    """Leave out completions on which the training and the sampling engine disagree: by the sum, mean or maximum over
    tokens of `rejection_kl`."""
    rejection_kl: Literal["k1", "k2", "k3"] = "k2"
    """Estimator of the disagreement, of log π_old - log μ."""
    rejection_threshold: float = Field(0.01, gt=0)
    """Largest disagreement kept, nats."""
    off_policy_threshold: float | None = Field(None, gt=0)
    """Leave out completions with a negative advantage that the policy has moved away from by more than this, nats a
    token (https://arxiv.org/abs/2512.02556); None leaves out nothing."""
    aggregation: Literal["sequence_mean", "token_mean", "token_sum", "constant"] = "sequence_mean"
    """`sequence_mean`: mean over tokens, then over completions; `token_mean`: over all tokens of the step;
    `token_sum`: sum over tokens, then mean over completions; `constant`: sum over tokens, divided by completions times
    `rollout.max_new_tokens`."""
    beta: float = Field(0.0, ge=0)
    """β: weight of the KL to the reference model; 0 keeps no reference."""
    kl: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the KL per token (http://joschu.net/blog/kl-approx.html)."""
    kl_corrected: bool = False
    """Weigh the KL of a token by the ratio of its unit, as TRL does (https://arxiv.org/abs/2512.02556)."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where β KL goes: added to the loss, or taken off the reward before advantages are computed."""
    ref_model_sync_steps: int | None = Field(None, ge=1)
    """Optimiser steps after which the reference model moves towards the policy, every time; None: never. TRL: 512."""
    ref_model_mixup_alpha: float = Field(0.6, gt=0, le=1)
    """α: π_ref becomes α π + (1 - α) π_ref, weight by weight. 0.6 is TRL's (https://arxiv.org/abs/2404.09656)."""
    sampling_rounds: int = Field(1, ge=1)
    """Rounds of prompts a rollout samples at most to find groups whose rewards differ (DAPO's dynamic sampling); groups
    without differences fill what is missing. 1 takes the groups as they come."""

    @property
    def denominator_unit(self) -> DenominatorUnit:
        return {"token_mean": "tokens", "constant": "slots"}.get(self.aggregation, "sequences")  # type: ignore[return-value]

    @property
    def advantage_inputs(self) -> frozenset[str]:
        """Names of the rollout's tensors that `build_advantage` is called with besides the rewards."""
        asked = {
            "mask": self.overlong > 0 or self.credit == "tree" or self.entropy_drop > 0 or self._by_token,
            "limit": self.overlong > 0,
            "ended": self.truncated == "drop",
            "completion_ids": self.credit == "tree",
            "entropies": self.entropy_drop > 0,
            "reward_columns": self.advantage == "columns",
            "reward_weights": self.advantage == "columns",
        }
        if self.beta > 0 and self.kl_in == "reward":
            asked |= {"mask": True, "old_logps": True, "ref_logps": True}
        return frozenset(name for name, needed in asked.items() if needed)

    @property
    def loss_inputs(self) -> frozenset[str]:
        """Names of the rollout's tensors that the loss is called with by keyword."""
        gaps = self.correction != "none" or self.rejection != "none" or self.off_policy_threshold is not None
        normalised = self.correction != "none" and self.correction_normalised
        asked = {"sampler_logps": gaps, "segments": self.ratio == "segment", "correction_scale": normalised}
        return frozenset(name for name, needed in asked.items() if needed)

    @property
    def needs(self) -> frozenset[str]:
        return self.advantage_inputs | self.loss_inputs

    @property
    def stops_gradient(self) -> bool:
        return self.gradient == "token" or self.clip == "cispo"

    @property
    def _by_token(self) -> bool:
        return self.advantage in ("reinforce_pp", "reinforce_pp_baseline")

    def build(self) -> Callable[..., Any]:
        from seqtune.objectives.policy import policy_loss

        return partial(policy_loss, **self._parts())

    def build_correction(self) -> Any:
        """The weights of the engine that sampled, a `seqtune.objectives.policy.Correction`, or None; imports torch."""
        from seqtune.objectives.policy import Correction

        if self.correction == "none":
            return None
        return Correction(self.correction_over, self.correction, self.correction_low, self.correction_high)

    def _parts(self) -> dict[str, Any]:
        """The keyword arguments of `policy_loss`; imports torch."""
        from seqtune.objectives.policy import Clip, Rejection

        return {
            "ratio": self.ratio,
            "token_gradient": self.gradient == "token",
            "clip": Clip(
                self.clip, self.epsilon_low, self.epsilon_high, self.bound, self.tau_positive, self.tau_negative
            ),
            "aggregation": self.aggregation,
            "correction": self.build_correction(),
            "rejection": None
            if self.rejection == "none"
            else Rejection(self.rejection_kl, self.rejection, self.rejection_threshold),
            "off_policy_threshold": self.off_policy_threshold,
            "beta": self.beta if self.kl_in == "loss" else 0.0,
            "kl": self.kl,
            "kl_corrected": self.kl_corrected,
        }

    def build_advantage(self) -> Callable[..., Any]:
        """`(rewards[B], **advantage_inputs) -> advantages`, `[B]` or `[B, T]`; imports torch.

        Rows are whole groups, contiguous; NaN is a missing score. NaN in the result leaves out of the loss.
        """
        from seqtune.objectives.assign import assign

        return partial(
            assign,
            estimator=self.advantage,
            group_size=self.group_size,
            gamma=self.gamma,
            overlong_share=self.overlong,
            beta=self.beta if self.kl_in == "reward" else 0.0,
            kl=self.kl,
            tree_weight=self.tree_weight if self.credit == "tree" else None,
            tree_root=self.tree_root,
            entropy_drop=self.entropy_drop,
            drop_truncated=self.truncated == "drop",
        )

    @property
    def anchor_below(self) -> float | None:
        """Put the example's own completion into groups in which no reward is above this; None: into none."""
        return None

    def build_prefix_shares(self, steps: int) -> Callable[[int], tuple[float, float]] | None:
        """`step -> (least, largest)` share of a demonstration that one completion of each group begins with, for a run
        of `steps` optimiser steps; None: completions begin with nothing."""
        return None

    def build_segments(self) -> Callable[[list[str]], list[int]]:
        """`text of each token -> number of its segment`, for an objective that takes `segments`."""
        from seqtune.objectives.segments import lines

        return lines
