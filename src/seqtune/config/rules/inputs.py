"""What an objective may need beyond what its family is always called with, and where it comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seqtune.config.rules.violation import Violation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from seqtune.config.plan import Stage
    from seqtune.config.spec import ObjectiveSpec

INPUTS: dict[str, str] = {
    "mask": "",
    "limit": "",
    "ended": "",
    "completion_ids": "",
    "old_logps": "",
    "ref_logps": "",
    "sampler_logps": "",
    "correction_scale": "",
    "entropies": "",
    "segments": "",
    "reward_columns": "several rewards kept apart, one column each",
    "reward_weights": "",
    "rank_rewards": "a reward for each line of a completion",
    "plan_rewards": "a reward of the plan beside that of the answer",
    "prefix_mask": "",
    "executions": "scores of what a low-level model makes of each completion",
    "format_scores": "a score of each completion's form beside its reward",
    "judge_scores": "a judge's score of each completion beside its reward",
    "calls": "completions that call tools, and how often each did",
    "memory_mask": "correct answers rewritten without what was retrieved",
}
"""What an objective may need beyond what its family is always called with, by the name a spec uses: what it is, in
words. Without words: the policy trainer has it of every rollout."""


HEADS = {
    "reward_columns": "reward",
    "rank_rewards": "reward",
    "plan_rewards": "reward",
    "executions": "reward",
    "format_scores": "reward",
    "judge_scores": "reward",
}
"""The axis each input would come from; the others come from the rollout."""


RECORDED = frozenset({"mask", "completion_ids", "ended", "segments"})
"""What there is of the completions of a group in the data; the others of a rollout come from sampling."""


UNRECORDED = {
    "limit": "the most tokens a completion could have had",
    "old_logps": "log-probs under the policy that sampled",
    "ref_logps": "log-probs under the policy that sampled",
    "sampler_logps": "log-probs under the engine that sampled",
    "correction_scale": "log-probs under the engine that sampled",
    "entropies": "entropies of the policy that sampled",
    "prefix_mask": "completions that go on from a demonstration's beginning",
}
"""The others, in words."""


INSTEAD = {
    "rank_rewards": "reward=list_ndcg reward.output=exp_inf, or a function that returns a number for each line",
    "calls": "rollout=search rollout.tools.search.path=FILE; seqtune list tools names others",
    "executions": "reward=custom: a function that returns [format, judge, execution, …] for each completion",
    "plan_rewards": "reward=custom: a function that returns [answer, plan] for each completion; or "
    "objective.plan_advantage=answer, which gives the plan the advantage of the answer",
    "reward_columns": "reward=combined has parts; objective.advantage=group takes the one reward there is",
}
"""What to choose where an input is missing."""


def samples(objective: ObjectiveSpec, data: Any) -> bool:
    """Whether a stage samples completions: a policy does, unless its groups are in the data."""
    return objective.samples_reference or (objective.family == "policy" and data.format != "groups")


def inputs_are_there(stage: Stage) -> Iterator[Violation]:
    recorded = stage.data.format == "groups"
    provided = set(RECORDED) if recorded else {name for name, words in INPUTS.items() if not words}
    if stage.reward is not None and not recorded:
        provided |= stage.reward.gives
    if stage.rollout is not None and stage.rollout.tools and not recorded:
        provided |= {"calls", "memory_mask"}
    missing = sorted(stage.objective.needs - provided)
    if not missing:
        return
    if recorded:
        yield Violation(
            f"objective '{stage.objective.name}' needs "
            f"{'; '.join(sorted({UNRECORDED.get(name) or INPUTS[name] or name for name in missing}))}: "
            "data of the format 'groups' has no such thing",
            ("objective.name", "data.format"),
            "objective.beta=0 leaves a KL in the reward out"
            if {"old_logps", "ref_logps"} & set(missing)
            else "an objective or a part of it that needs less; or data of the format prompt_answer and a rollout",
        )
        return
    axes = sorted({HEADS.get(name, "rollout") for name in missing})
    told = [f"{axis} '{_chosen(stage, axis)}'" for axis in axes]
    yield Violation(
        f"objective '{stage.objective.name}' needs {'; '.join(INPUTS[name] for name in missing)}: "
        f"{' and '.join(told)} provide{'s' if len(told) == 1 else ''} no such thing",
        ("objective.name", *(f"{axis}.name" for axis in axes)),
        next((INSTEAD[name] for name in missing if name in INSTEAD), "another objective: seqtune list objectives"),
    )


def _chosen(stage: Stage, axis: str) -> str:
    """What a stage chose on an axis, in a word."""
    spec = getattr(stage, axis)
    return "none" if spec is None else str(getattr(spec, "name", None) or getattr(spec, "format", axis))
