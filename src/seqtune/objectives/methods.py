"""Published methods as points of the space of `policy`: defaults, and what little is not a choice of its parts.

Imports no torch: the functions are imported by `build()`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from seqtune.config.spec import DenominatorUnit, Family, ObjectiveSpec
from seqtune.objectives.specs import Grpo, Gspo, Policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class DrGrpo(Grpo):
    """Dr. GRPO: no division by the standard deviation, none by the length of a completion."""

    formula: ClassVar[str] = (
        "L = (1/(B L_max)) Σ_i Σ_t [-min(ρ A, clip(ρ, 1-ε_low, 1+ε_high) A) + beta KL]     A_i = r_i - mean(r)\n"
        "L_max: rollout.max_new_tokens"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2503.20783"

    name: Literal["dr_grpo"] = "dr_grpo"  # type: ignore[assignment]
    advantage: Literal["centered"] = "centered"
    """r - mean of the group."""
    aggregation: Literal["constant"] = "constant"
    """Summed over tokens, divided by completions times `rollout.max_new_tokens`."""
    beta: float = Field(0.0, ge=0)
    """β: weight of the KL to the reference model; 0, as in the paper, keeps no reference."""


class Dapo(Grpo):
    """DAPO: a wider upper clip, every token weighs the same, overlong completions are penalised and left out."""

    formula: ClassVar[str] = (
        "L = (1/N) Σ_i Σ_t -min(ρ A, clip(ρ, 1-ε_low, 1+ε_high) A)     N: tokens of the step\n"
        "r_i = reward - overlong penalty; truncated completions are left out of the loss"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2503.14476"

    name: Literal["dapo"] = "dapo"  # type: ignore[assignment]
    epsilon_high: float = Field(0.28, gt=0)
    """ε_high: a ratio above 1 + ε_high gets no gradient when its advantage is positive. 0.28 is the paper's."""
    aggregation: Literal["token_mean"] = "token_mean"
    """Mean over all tokens of the step."""
    overlong: float = Field(0.2, ge=0, lt=1)
    """Last part of `rollout.max_new_tokens` over which the soft overlong penalty takes 0 to -1 off the reward. The
    paper's: 4096 of 20480 tokens."""
    truncated: Literal["keep", "drop"] = "drop"
    """Completions cut off at `rollout.max_new_tokens`: `drop` leaves them out of the loss, not of the group's mean."""
    sampling_rounds: int = Field(10, ge=1)
    """Rounds of prompts a rollout samples at most to find groups whose rewards differ. 10 is the paper's code's."""
    beta: float = Field(0.0, ge=0)
    """β: weight of the KL to the reference model; 0, as in the paper, keeps no reference."""


class Rloo(Policy):
    """REINFORCE leave-one-out: a completion against the mean of the others, as one action, the KL in the reward."""

    formula: ClassVar[str] = (
        "L = (1/B) Σ_i -min(w_i A_i, clip(w_i, 1-ε_low, 1+ε_high) A_i)     w_i = exp(Σ_t log (π/π_old)(y_{i,t}))\n"
        "A_i = R_i - mean of the others' R     R_i = r_i - beta Σ_t log (π_old/π_ref)(y_{i,t})"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2402.14740"

    name: Literal["rloo"] = "rloo"
    advantage: Literal["leave_one_out"] = "leave_one_out"
    """r - mean of the others of the group."""
    ratio: Literal["sequence_sum"] = "sequence_sum"
    """Unit of the importance ratio: the product of all tokens' ratios."""
    beta: float = Field(0.05, ge=0)
    """β: weight of the KL in the reward; 0 keeps no reference. 0.05 is TRL's."""
    kl: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of the KL per token."""
    kl_in: Literal["loss", "reward"] = "reward"
    """Where β KL goes: taken off the reward before advantages are computed."""


class ReinforcePP(Policy):
    """REINFORCE++: returns of tokens, whitened over the whole batch; the KL in the reward of each token."""

    formula: ClassVar[str] = (
        "L = (1/N) Σ_i Σ_t -min(ρ A, clip(ρ, 1-ε_low, 1+ε_high) A)     A: returns, whitened over the batch's tokens\n"
        "R_{i,t} = Σ_{u>=t} γ^(u-t) (r_i [u last] - beta log (π_old/π_ref)(y_{i,u}))"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2501.03262"

    name: Literal["reinforce_pp"] = "reinforce_pp"
    advantage: Literal["reinforce_pp", "reinforce_pp_baseline"] = "reinforce_pp"
    """`reinforce_pp`: returns whitened over the batch; `reinforce_pp_baseline`: r - mean of the group, whitened."""
    aggregation: Literal["sequence_mean", "token_mean", "token_sum", "constant"] = "token_mean"
    """Mean over all tokens of the step, or another of `policy`."""
    beta: float = Field(0.01, ge=0)
    """β: weight of the KL in the reward; 0 keeps no reference. 0.01 is OpenRLHF's."""
    kl: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of the KL per token."""
    kl_in: Literal["loss", "reward"] = "reward"
    """Where β KL goes: taken off the reward of each token."""


class GspoToken(Gspo):
    """GSPO-token: the completion's ratio with the gradient of each token, so that tokens may differ in advantage."""

    formula: ClassVar[str] = (
        "L = (1/B) Σ_i (1/n_i) Σ_t -min(s_{i,t} A_{i,t}, clip(s_{i,t}, 1-ε_low, 1+ε_high) A_{i,t}) + beta KL\n"
        "s_{i,t} = sg(s_i) exp(log π - sg(log π))     s_i = exp((1/n_i) Σ_t log (π/π_old)(y_{i,t}))"
    )

    name: Literal["gspo_token"] = "gspo_token"  # type: ignore[assignment]
    gradient: Literal["token"] = "token"
    """Each token has the gradient of its own log-prob, with the value of the completion's ratio."""


class Tempo(Grpo):
    """TEMPO: GRPO with credit from the prefix tree of each group."""

    formula: ClassVar[str] = (
        "L = (1/N) Σ_i Σ_t -min(ρ A, clip(ρ, 1-ε_low, 1+ε_high) A)     A_{i,t} = a_i + w (V(s_{i,t}) - V(s_{i,t-1}))\n"
        "a_i = (r_i - mean) / (std + 1e-4)     V(s): mean a of the group's completions that begin with s"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2509.18314"

    name: Literal["tempo"] = "tempo"  # type: ignore[assignment]
    credit: Literal["tree"] = "tree"
    """Each branch of the group's prefix tree adds what it changes."""
    epsilon_high: float = Field(0.28, gt=0)
    """ε_high: a ratio above 1 + ε_high gets no gradient when its advantage is positive."""
    aggregation: Literal["sequence_mean", "token_mean", "token_sum", "constant"] = "token_mean"
    """Mean over all tokens of the step, or another of `policy`."""
    beta: float = Field(0.0, ge=0)
    """β: weight of the KL to the reference model; 0 keeps no reference."""


class MiniRl(Policy):
    """MiniRL: REINFORCE with group mean, gated by staleness and corrected for the engine that sampled."""

    formula: ClassVar[str] = (
        "L = -(1/B) Σ_i Σ_t M c ρ A_i     ρ = π/π_old     c = min(π_old/μ, correction_high)     A_i = r_i - mean(r)\n"
        "M: 0 where A > 0 and ρ > 1+ε_high, or A < 0 and ρ < 1-ε_low; 1 elsewhere     μ: the engine that sampled"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2512.01374"

    name: Literal["minirl"] = "minirl"
    advantage: Literal["group", "centered"] = "centered"
    """`centered`: r - mean of the group; `group` divides by the standard deviation."""
    clip: Literal["gate"] = "gate"
    """The gate looks at the staleness π/π_old only."""
    epsilon_high: float = Field(0.27, gt=0)
    """ε_high: a ratio above 1 + ε_high gets no gradient when its advantage is positive."""
    correction: Literal["none", "truncate", "mask"] = "truncate"
    """Weight of π_old over the engine that sampled: none; `truncate`d at `correction_high`; or 0 outside the range."""
    aggregation: Literal["token_sum"] = "token_sum"
    """Summed over tokens, mean over completions: no length is divided out."""


class TsGrpo(Policy):
    """TS-GRPO: token ratios in the plan, one ratio for the answer."""

    formula: ClassVar[str] = (
        "L = (1/B) Σ_i [λ_P (1/|P_i|) Σ_{t∈P_i} PC(ρ_{i,t}, A^P_i) + λ_S PC(s_i, A^S_i)]     PC: pessimistic clip\n"
        "s_i = exp(mean over the answer of log π/π_old)     λ_P: plan_weight     λ_S: answer_weight"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2510.00186"

    name: Literal["ts_grpo"] = "ts_grpo"
    marker: str = Field("</think>", min_length=1)
    """Text that ends the plan; a completion without it is all answer."""
    plan_advantage: Literal["answer", "own", "sum"] = "answer"
    """Advantage of the plan: the `answer`'s, its `own` from a reward of the plan, or their `sum`."""
    plan_weight: float = Field(1.0, ge=0)
    """λ_P: weight of the plan."""
    answer_weight: float = Field(1.0, ge=0)
    """λ_S: weight of the answer."""
    plan_epsilon_low: float = Field(0.2, gt=0, lt=1)
    """ε_low of the plan's token ratios."""
    plan_epsilon_high: float = Field(0.2, gt=0)
    """ε_high of the plan's token ratios."""
    epsilon_low: float = Field(3e-3, gt=0, lt=1)
    """ε_low of the answer's ratio; short spans need a wider range than a whole completion."""
    epsilon_high: float = Field(4e-3, gt=0)
    """ε_high of the answer's ratio."""
    advantage: Literal["group", "centered"] = "group"
    """`group`: (r - mean) / (std + 1e-4) within the group; `centered`: r - mean."""
    ratio: Literal["segment"] = "segment"
    """Each token of the plan, the answer as a whole."""
    gradient: Literal["shared"] = "shared"
    """The tokens of the answer share its ratio's gradient."""
    clip: Literal["pessimistic"] = "pessimistic"
    """PPO's minimum, with the range of each span."""
    bound: None = None
    """No outer bound."""
    credit: Literal["sequence"] = "sequence"
    """One advantage a span."""
    correction: Literal["none"] = "none"
    """No weight of the engine that sampled."""
    rejection: Literal["none"] = "none"
    """No completion is left out."""
    off_policy_threshold: None = None
    """No completion is left out."""
    aggregation: Literal["sequence_mean"] = "sequence_mean"
    """Mean over the tokens of each span, then over completions."""
    beta: float = Field(0.0, ge=0, le=0)
    """No KL: a span's normaliser would weigh it."""

    @property
    def advantage_inputs(self) -> frozenset[str]:
        own = frozenset({"plan_rewards"}) if self.plan_advantage != "answer" else frozenset()
        return super().advantage_inputs | {"segments", "mask"} | own

    def build(self) -> Callable[..., Any]:
        from seqtune.objectives.variants import ts_grpo_loss

        return partial(
            ts_grpo_loss,
            plan_epsilon_low=self.plan_epsilon_low,
            plan_epsilon_high=self.plan_epsilon_high,
            epsilon_low=self.epsilon_low,
            epsilon_high=self.epsilon_high,
            plan_weight=self.plan_weight,
            answer_weight=self.answer_weight,
        )

    def build_advantage(self) -> Callable[..., Any]:
        import torch

        from seqtune.objectives.advantages import ADVANTAGES
        from seqtune.objectives.credit import spread

        whole, estimate = super().build_advantage(), ADVANTAGES[self.advantage]

        def by_span(
            rewards: Tensor, *, segments: Tensor, mask: Tensor, plan_rewards: Tensor | None = None, **inputs: Tensor
        ) -> Tensor:
            answer: Tensor = whole(rewards, mask=mask, **inputs)
            answer = answer if answer.dim() == 2 else answer.unsqueeze(1).expand(mask.shape)
            if plan_rewards is None:
                plan = answer
            else:
                own = estimate(plan_rewards, self.group_size).unsqueeze(1)
                plan = (own + answer if self.plan_advantage == "sum" else own.expand_as(answer)).to(answer)
            inside = spread(torch.ones(len(mask), 2), segments, mask).bool()
            return torch.where(inside, torch.where(segments == 0, plan, answer), answer * 0)

        return by_span

    def build_segments(self) -> Callable[[list[str]], list[int]]:
        from seqtune.objectives.rollouts import plan_and_answer

        return partial(plan_and_answer, marker=self.marker)


class EspoEntropy(Gspo):
    """ESPO (entropy): each completion's tokens are grouped by entropy; each group has its ratio and its clip range."""

    formula: ClassVar[str] = (
        "L = (1/B) Σ_i (1/n_i) Σ_t -min(w A, clip(w, 1-φ ε_low, 1+φ ε_high) A)     w = sg(w_k) exp(log π - sg(log π))\n"
        "w_k = exp(mean of log π/π_old over group k)     φ_k = 1 + α (H̄_k - H̄) / H̄     H̄: mean entropy"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2512.00499"

    name: Literal["espo_entropy"] = "espo_entropy"  # type: ignore[assignment]
    grouping: Literal["share", "bins"] = "share"
    """`share`: the most uncertain tokens and the rest; `bins`: groups of equally many tokens by entropy."""
    share: float = Field(0.2, gt=0, lt=1)
    """Share of tokens in the uncertain group of `grouping=share`."""
    bins: int = Field(2, ge=1)
    """Groups of `grouping=bins`; 1 is GSPO-token."""
    alpha: float = Field(0.5, ge=0)
    """α: how much the clip range widens with entropy; 0 clips all groups alike."""
    width_low: float = Field(0.25, ge=0, le=1)
    """Least φ."""
    width_high: float = Field(4.0, ge=1)
    """Largest φ."""
    epsilon_low: float = Field(3e-3, gt=0, lt=1)
    """ε_low, before φ."""
    epsilon_high: float = Field(4e-3, gt=0)
    """ε_high, before φ."""
    ratio: Literal["segment"] = "segment"  # type: ignore[assignment]
    """Each group of tokens."""
    gradient: Literal["token"] = "token"
    """Each token has the gradient of its own log-prob, with the value of its group's ratio."""
    clip: Literal["pessimistic"] = "pessimistic"
    """PPO's minimum, with the range of each group."""
    bound: None = None
    """No outer bound."""

    @property
    def loss_inputs(self) -> frozenset[str]:
        return super().loss_inputs - {"segments"} | {"entropies"}

    def build(self) -> Callable[..., Any]:
        from seqtune.objectives.variants import espo_loss

        parts = {key: value for key, value in self._parts().items() if key not in ("ratio", "clip", "token_gradient")}
        return partial(
            espo_loss,
            share=self.share if self.grouping == "share" else None,
            bins=self.bins,
            alpha=self.alpha,
            limits=(self.width_low, self.width_high),
            epsilon_low=self.epsilon_low,
            epsilon_high=self.epsilon_high,
            **parts,
        )


class DaGrpo(Grpo):
    """DaGRPO: completions hardly different from one with the other outcome are left out."""

    formula: ClassVar[str] = (
        "L = Σ_i k_i Σ_t -min(ρ A, clip(ρ, 1-ε_low, 1+ε_high) A) / Σ_i k_i n_i\n"
        "k_i = [edit distance to every completion of the group with the other outcome >= τ]     A: before leaving out"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2512.06337"

    name: Literal["dagrpo"] = "dagrpo"  # type: ignore[assignment]
    tau: float = Field(0.2, ge=0)
    """τ: least edit distance, over the longer completion's tokens; 0 keeps all."""
    success: float = 0.5
    """A reward above it is a success."""
    anchors: bool = False
    """Put a demonstration into groups without a success."""
    anchor_gamma: float = Field(0.1, gt=0)
    """γ of an anchor's tokens: their weight is π / (π + γ)."""
    aggregation: Literal["token_mean"] = "token_mean"
    """Mean over all tokens that are kept."""
    beta: float = Field(0.0, ge=0)
    """β: weight of the KL to the reference model; 0 keeps no reference."""

    @property
    def advantage_inputs(self) -> frozenset[str]:
        return super().advantage_inputs | {"completion_ids", "mask"}

    @property
    def loss_inputs(self) -> frozenset[str]:
        return super().loss_inputs | ({"prefix_mask"} if self.anchors else frozenset())

    @property
    def anchor_below(self) -> float | None:
        return self.success if self.anchors else None

    def build(self) -> Callable[..., Any]:
        if not self.anchors:
            return super().build()
        from seqtune.objectives.variants import anchored_loss

        return partial(anchored_loss, gamma=self.anchor_gamma, **self._parts())

    def build_advantage(self) -> Callable[..., Any]:
        import torch

        from seqtune.objectives.credit import distinct, edit_distances

        whole = super().build_advantage()

        def of_distinct(rewards: Tensor, *, completion_ids: Tensor, mask: Tensor, **inputs: Tensor) -> Tensor:
            a: Tensor = whole(rewards, completion_ids=completion_ids, mask=mask, **inputs)
            distances = edit_distances(completion_ids, mask, self.group_size)
            keep = distinct(rewards, distances, success=self.success, tau=self.tau).to(a.device)
            return torch.where(keep if a.dim() == 1 else keep.unsqueeze(1), a, torch.nan)

        return of_distinct


class RankGrpo(Policy):
    """Rank-GRPO: each item of a list is one action, compared with the same rank of the group's other lists."""

    formula: ClassVar[str] = (
        "L = (1/B) Σ_i (1/K) Σ_k -min(w_{i,k} A_{i,k}, clip(w_{i,k}, 1-ε_low, 1+ε_high) A_{i,k}) + beta KL\n"
        "w_{i,k} = exp(mean over item k of log π/π_old)     A_{i,k} = (r_{i,k} - mean_i r_{·,k}) / (std + 1e-4)"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2510.20150"

    name: Literal["rank_grpo"] = "rank_grpo"
    ranks: int = Field(20, ge=1)
    """K: items of a list, one a line."""
    rank_reward: Literal["discounted", "own"] = "discounted"
    """`discounted`: DCG of this rank and those below it (log_decay); `own`: what the item itself earns (exp_inf)."""
    overflow_penalty: float = Field(0.1, ge=0)
    """Taken off the advantage of tokens beyond item K."""
    ending_bonus: float = Field(0.1, ge=0)
    """Added to the end-of-sequence token's advantage after K items, taken off after fewer."""
    aggregation: Literal["rank", "token_mean", "sequence_mean", "token_sum"] = "rank"  # type: ignore[assignment]
    """`rank`: every item weighs the same; or over tokens, as `policy`."""
    epsilon_low: float = Field(0.06, gt=0, lt=1)
    """ε_low: the paper's."""
    epsilon_high: float = Field(0.08, gt=0)
    """ε_high: the paper's."""
    beta: float = Field(1e-3, ge=0)
    """β: weight of the KL to the reference model; 0 keeps no reference. 1e-3 is the paper's."""
    advantage: Literal["group"] = "group"
    """(r - mean) / (std + 1e-4) at each rank."""
    ratio: Literal["segment"] = "segment"
    """Each item."""
    credit: Literal["sequence"] = "sequence"
    """Credit is by rank."""
    overlong: float = Field(0.0, ge=0, le=0)
    """Lists have their own shaping."""

    @property
    def advantage_inputs(self) -> frozenset[str]:
        return super().advantage_inputs | {"rank_rewards", "segments", "mask", "ended"}

    def build(self) -> Callable[..., Any]:
        from seqtune.objectives.variants import rank_loss

        parts = {key: value for key, value in self._parts().items() if key != "ratio"}
        return partial(rank_loss, ranks=self.ranks, **parts)

    def build_advantage(self) -> Callable[..., Any]:
        from seqtune.objectives.credit import rank_advantages

        return partial(
            rank_advantages,
            group_size=self.group_size,
            ranks=self.ranks,
            discounted=self.rank_reward == "discounted",
            overflow=self.overflow_penalty,
            ending=self.ending_bonus,
        )


class PrefixRft(Policy):
    """Prefix-RFT: one completion of each group goes on from a demonstration's beginning, which is learnt too."""

    formula: ClassVar[str] = (
        "L = (1/(B L_max)) Σ_i Σ_t -min(ρ A, clip(ρ, 1-ε_low, 1+ε_high) A)     A_i = r_i - mean(r)\n"
        "on demonstration tokens ρ has the value 1, and A is 0 but for the most uncertain prefix_keep of them"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2507.01679"

    name: Literal["prefix_rft"] = "prefix_rft"
    advantage: Literal["group", "centered"] = "centered"
    """`centered`: r - mean over the whole group, the hybrid completion included; `group` divides by the std."""
    prefix_keep: float = Field(0.2, ge=0, le=1)
    """Share of demonstration tokens, the most uncertain ones, that get a gradient."""
    share_first: float = Field(0.95, ge=0, le=1)
    """Least share of the demonstration that is given, at the first step."""
    share_last: float = Field(0.05, ge=0, le=1)
    """The same at the last step."""
    share_high: float = Field(0.95, ge=0, le=1)
    """Largest share of the demonstration that is given."""
    share_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the least share falls."""
    bound: float | None = Field(3.0, gt=1)
    """δ: a ratio above it gets no gradient when its advantage is negative either; 3 is the dual clip of the code."""
    aggregation: Literal["sequence_mean", "token_mean", "token_sum", "constant"] = "constant"
    """`constant`, as Dr. GRPO, or another of `policy`."""
    credit: Literal["sequence"] = "sequence"
    """One advantage a completion."""

    @property
    def advantage_inputs(self) -> frozenset[str]:
        return super().advantage_inputs | {"entropies", "mask", "prefix_mask"}

    @property
    def loss_inputs(self) -> frozenset[str]:
        return super().loss_inputs | {"prefix_mask"}

    @property
    def stops_gradient(self) -> bool:
        return True

    def build(self) -> Callable[..., Any]:
        from seqtune.objectives.variants import prefix_loss

        return partial(prefix_loss, **self._parts())

    def build_advantage(self) -> Callable[..., Any]:
        from seqtune.objectives.credit import uncertain_prefix

        whole = super().build_advantage()

        def of_prefix(
            rewards: Tensor, *, entropies: Tensor, mask: Tensor, prefix_mask: Tensor, **inputs: Tensor
        ) -> Tensor:
            a: Tensor = whole(rewards, entropies=entropies, mask=mask, **inputs)
            return uncertain_prefix(a, entropies, mask, prefix_mask, self.prefix_keep)

        return of_prefix

    def build_prefix_shares(self, steps: int) -> Callable[[int], tuple[float, float]]:
        """`step -> (least, largest)` share of a demonstration, for a run of `steps` steps; drawn evenly in between."""
        from seqtune.objectives.rollouts import prefix_share

        least = partial(
            prefix_share, first=self.share_first, last=self.share_last, steps=steps, schedule=self.share_schedule
        )
        return lambda step: (least(step), max(least(step), self.share_high))


class Foresight(Grpo):
    """Hi-Agent's foresight advantage: a subgoal is worth what a low-level model makes of it one step ahead."""

    formula: ClassVar[str] = (
        "L as grpo, on the subgoal's tokens     A_i = (R_i - mean(R)) / (std(R) + 1e-4)\n"
        "R_i = w_fmt fmt_i + w_exec mean_k exec_{i,k} + w_judge judge_i"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2510.14388"

    name: Literal["foresight"] = "foresight"  # type: ignore[assignment]
    format_weight: float = Field(0.2, ge=0)
    """w_fmt: weight of the subgoal's form."""
    execution_weight: float = Field(0.6, ge=0)
    """w_exec: weight of what its executions earn."""
    judge_weight: float = Field(0.2, ge=0)
    """w_judge: weight of the judge's score."""
    executions: int = Field(1, ge=1)
    """K: executions of each subgoal that the reward tells the scores of."""

    @property
    def advantage_inputs(self) -> frozenset[str]:
        return super().advantage_inputs | {"format_scores", "executions", "judge_scores"}

    def build_advantage(self) -> Callable[..., Any]:
        whole, worth = super().build_advantage(), self.build_worth()

        def ahead(
            rewards: Tensor, *, format_scores: Tensor, executions: Tensor, judge_scores: Tensor, **inputs: Tensor
        ) -> Tensor:
            found: Tensor = whole(worth(format_scores, executions, judge_scores), **inputs)
            return found

        return ahead

    def build_worth(self) -> Callable[..., Any]:
        """`(format_scores[B], executions[B, K], judge_scores[B]) -> R[B]`; imports torch."""
        from seqtune.objectives.credit import foresight

        return partial(foresight, weights=(self.format_weight, self.execution_weight, self.judge_weight))


class Searcher(ReinforcePP):
    """R1-Searcher++: retrieved text is never trained on; fewest retrievals are rewarded; answers are memorised."""

    formula: ClassVar[str] = (
        "L = reinforce_pp on the model's own tokens + μ (1/N) Σ -log π over answers rewritten as own knowledge\n"
        "reward + min(2 var(calls), 2) for the correct completions of a group with the fewest retrievals"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2505.17005"

    name: Literal["searcher"] = "searcher"  # type: ignore[assignment]
    correct: float = 0.5
    """A reward above it is a correct answer."""
    calls_weight: float = Field(2.0, ge=0)
    """Factor of the variance of the number of retrievals."""
    calls_limit: float = Field(2.0, ge=0)
    """Largest bonus for the fewest retrievals."""
    mu: float = Field(0.1, ge=0)
    """μ: weight of memorising; 0 leaves it out."""

    @property
    def advantage_inputs(self) -> frozenset[str]:
        return super().advantage_inputs | {"calls"}

    @property
    def loss_inputs(self) -> frozenset[str]:
        return super().loss_inputs | ({"memory_mask"} if self.mu else frozenset())

    def build(self) -> Callable[..., Any]:
        if not self.mu:
            return super().build()
        from seqtune.objectives.variants import memorising_loss

        return partial(memorising_loss, mu=self.mu, **self._parts())

    def build_advantage(self) -> Callable[..., Any]:
        from seqtune.objectives.credit import fewest_calls

        whole = super().build_advantage()

        def with_bonus(rewards: Tensor, *, calls: Tensor, **inputs: Tensor) -> Tensor:
            bonus = fewest_calls(
                rewards > self.correct, calls, self.group_size, weight=self.calls_weight, limit=self.calls_limit
            )
            found: Tensor = whole(rewards + bonus.to(rewards), **inputs)
            return found

        return with_bonus


class _ScoredTexts(ObjectiveSpec):
    """What the A-LoL family shares: the value of a prompt, and which texts are drawn."""

    family: ClassVar[Family] = "offline"
    source: ClassVar[str] = "https://arxiv.org/abs/2305.14718"

    value: Literal["fit", "group_mean"] = "fit"
    """V_ref: `fit`: a head on the frozen start model, fitted before step 1 to what the stage's reward gives completions
    of its own; `group_mean`: mean score of the prompt's own completions in the data, which needs neither."""
    value_samples: int = Field(4, ge=1)
    """Completions of each prompt that V is fitted to."""
    value_prompts: int = Field(512, ge=5)
    """Prompts, at most, that are completed to fit V; a fifth of them tells how good it is."""
    sampling: Literal["priority", "positive", "all"] = "priority"
    """Rows of a step: texts drawn in proportion to A (the paper's), every text with A > 0 alike, or whole groups of all
    texts."""

    @property
    def denominator_unit(self) -> DenominatorUnit:
        return "sequences"

    @property
    def samples_reference(self) -> bool:
        return self.value == "fit"


class ALol(_ScoredTexts):
    """A-LoL: likelihood of scored texts, weighted by what they earn beyond what the reference model is expected to."""

    formula: ClassVar[str] = (
        "L = (1/B) Σ_i A_i c_i Σ_t -log π(y_{i,t})     A_i = max(R_i - V_ref(x_i), 0)\n"
        "c_i = sg(clip(exp(Σ_t log (π/π_ref)(y_{i,t})), 1-ε, 1+ε))"
    )
    needs_reference: ClassVar[bool] = True
    ratio: ClassVar[str] = "sequence"

    name: Literal["a_lol"] = "a_lol"
    epsilon: float = Field(0.9, gt=0, lt=1)
    """ε: range of the ratio to the reference; 0.9 is the code's."""

    @property
    def stops_gradient(self) -> bool:
        return True

    def build(self) -> Callable[..., Any]:
        from seqtune.objectives.offline import a_lol_loss

        return partial(a_lol_loss, ratio=self.ratio, epsilon=self.epsilon)


class ALolSeq(ALol):
    """A-LoL sequence: the ratio to the reference of each token instead of their product."""

    formula: ClassVar[str] = (
        "L = (1/B) Σ_i A_i Σ_t -c_{i,t} log π(y_{i,t})     A_i = max(R_i - V_ref(x_i), 0)\n"
        "c_{i,t} = sg(clip((π/π_ref)(y_{i,t}), 1-ε, 1+ε))"
    )
    ratio: ClassVar[str] = "token"

    name: Literal["a_lol_seq"] = "a_lol_seq"  # type: ignore[assignment]


class ALolRefFree(_ScoredTexts):
    """A-LoL without reference: advantage-weighted likelihood alone."""

    formula: ClassVar[str] = "L = (1/B) Σ_i A_i Σ_t -log π(y_{i,t})     A_i = max(R_i - V_ref(x_i), 0)"

    name: Literal["a_lol_ref_free"] = "a_lol_ref_free"

    def build(self) -> Callable[..., Any]:
        from seqtune.objectives.offline import a_lol_loss

        return partial(a_lol_loss, ratio="none")


class ALolKl(ALolRefFree):
    """A-LoL KL: the ratio to the reference replaced by a KL penalty."""

    formula: ClassVar[str] = (
        "L = (1/B) Σ_i [A_i Σ_t -log π(y_{i,t}) + beta Σ_t log (π/π_ref)(y_{i,t})]     A_i = max(R_i - V_ref(x_i), 0)"
    )
    needs_reference: ClassVar[bool] = True

    name: Literal["a_lol_kl"] = "a_lol_kl"  # type: ignore[assignment]
    beta: float = Field(0.1, ge=0)
    """β: weight of the log ratio to the reference."""

    def build(self) -> Callable[..., Any]:
        from seqtune.objectives.offline import a_lol_loss

        return partial(a_lol_loss, ratio="none", beta=self.beta)


class Slic(ObjectiveSpec):
    """SLiC: the better of two completions of a prompt becomes the more probable one, by a margin; no reference."""

    family: ClassVar[Family] = "ranking"
    formula: ClassVar[str] = (
        "L = (1/P) Σ_p [C(lp, s) - λ lp(best)]     lp = Σ_t log π(y_t)     s: scores     P: prompts of the step\n"
        "calibration=rank: C = mean over pairs with s_i > s_j of max(0, δ - lp_i + lp_j)"
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2210.00045"

    name: Literal["slic"] = "slic"
    calibration: Literal["rank", "margin", "list", "reward"] = "rank"
    """C: `rank`: a hinge on every pair of completions with different scores; `margin`: its δ grows with the difference
    of the scores; `list`: with the difference of their ranks, summed; `reward`: minus the score that is expected of a
    draw among the group."""
    margin: float = Field(1.0, ge=0)
    """δ: nats by which the better completion should be the more probable one. 1 is SLiC-HF's
    (https://arxiv.org/abs/2305.10425)."""
    regularisation: float = Field(0.5, ge=0)
    """λ: weight of the negative log-likelihood of the group's best completion, SLiC-HF's regulariser; 0 has none."""

    @property
    def denominator_unit(self) -> DenominatorUnit:
        return "groups"

    def build(self) -> Callable[..., Any]:
        from seqtune.objectives.ranking import slic_loss

        return partial(slic_loss, calibration=self.calibration, margin=self.margin, regularisation=self.regularisation)
