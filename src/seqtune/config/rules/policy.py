"""Rules of policy objectives: their parts, their rollouts and their groups."""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING, Any

from seqtune.config.axes import DataSpec
from seqtune.config.rules.data import wrong_format
from seqtune.config.rules.inputs import samples
from seqtune.config.rules.violation import Violation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from seqtune.config.plan import Stage


def policy_needs(stage: Stage) -> Iterator[Violation]:
    fitted = stage.objective.samples_reference
    for axis, choice in (("rollout", "transformers"), ("reward", "math_equiv")):
        if samples(stage.objective, stage.data) and getattr(stage, axis) is None:
            yield Violation(
                f"objective '{stage.objective.name}' samples completions and scores them, but there is no {axis}",
                (axis, "objective.value" if fitted else "objective.name"),
                f"{axis}={choice}" + (", or objective.value=group_mean, which samples nothing" if fitted else ""),
            )
    if fitted and stage.rollout is not None and stage.rollout.name != "transformers":
        yield Violation(
            f"objective.value=fit samples with the model that is loaded, not with rollout '{stage.rollout.name}'",
            ("rollout.name", "objective.value"),
            "rollout=transformers, or objective.value=group_mean",
        )
    if stage.objective.family != "policy":
        return
    formats = ("prompt_answer", "prompt_completion", "groups")
    if isinstance(stage.data, DataSpec) and stage.data.format not in formats:
        yield wrong_format(stage, "prompt_answer or prompt_completion, or groups")


def parts_fit(stage: Stage) -> Iterator[Violation]:
    """Parts of a policy objective that contradict each other."""
    objective: Any = stage.objective
    if objective.family != "policy":
        return
    if objective.gradient == "token" and objective.ratio == "token":
        yield Violation(
            "objective.gradient=token with objective.ratio=token: the ratio is the token's already",
            ("objective.gradient", "objective.ratio"),
            "objective.gradient=shared, or objective.ratio=sequence",
        )
    if objective.clip != "pessimistic" and objective.bound is not None:
        yield Violation(
            f"objective.bound with objective.clip={objective.clip}: only the pessimistic clip has an outer bound",
            ("objective.bound", "objective.clip"),
            "objective.bound=null, or objective.clip=pessimistic",
        )
    if objective.bound is not None and objective.bound <= 1 + objective.epsilon_high:
        yield Violation(
            f"objective.bound={objective.bound} lies inside the clip range, which ends at 1 + objective.epsilon_high = "
            f"{1 + objective.epsilon_high}",
            ("objective.bound", "objective.epsilon_high"),
            "a bound well above it: 3 for the dual clip",
        )
    if objective.kl_in == "reward" and objective.kl_corrected:
        yield Violation(
            "objective.kl_corrected weighs a KL by the ratio of the step, which the reward is computed before",
            ("objective.kl_corrected", "objective.kl_in"),
            "objective.kl_in=loss, or objective.kl_corrected=false",
        )
    if objective.kl_in == "reward" and objective.beta > 0 and objective.anchor_below is not None:
        yield Violation(
            "objective.kl_in=reward takes the KL of a completion off its reward, and no policy sampled the "
            "demonstrations of objective.anchors",
            ("objective.kl_in", "objective.anchors"),
            "objective.kl_in=loss",
        )
    if objective.credit == "tree" and objective.advantage.startswith("reinforce_pp"):
        yield Violation(
            f"objective.credit=tree starts from one advantage a completion; objective.advantage={objective.advantage} "
            "gives one a token",
            ("objective.credit", "objective.advantage"),
            "objective.advantage=group",
        )
    if objective.advantage == "columns" and objective.overlong > 0:
        yield Violation(
            f"objective.overlong={objective.overlong} lowers the one reward of a completion, which "
            "objective.advantage=columns does not take",
            ("objective.overlong", "objective.advantage"),
            "objective.overlong=0 and soft_overlong as a part of the reward; or objective.advantage=group",
        )
    if objective.advantage == "columns" and objective.kl_in == "reward" and objective.beta > 0:
        yield Violation(
            "objective.kl_in=reward takes the KL off the one reward of a completion, which objective.advantage=columns "
            "does not take",
            ("objective.kl_in", "objective.advantage"),
            "objective.kl_in=loss, or objective.advantage=leave_one_out",
        )
    if objective.correction == "mask" and objective.correction_over == "sequence_sum":
        yield Violation(
            "objective.correction=mask over the sum of a completion's log ratios leaves out whole long completions: "
            "the sum grows with length",
            ("objective.correction_over", "objective.correction"),
            "objective.correction_over=sequence_mean, or token",
        )


def ratio_and_aggregation(stage: Stage) -> Iterator[Violation]:
    objective: Any = stage.objective
    if objective.family != "policy" or objective.aggregation == "sequence_mean":
        return
    if objective.ratio not in ("sequence", "sequence_sum"):
        return
    yield Violation(
        f"objective.ratio={objective.ratio} with objective.aggregation={objective.aggregation}: summing over tokens "
        "would weigh each completion by its length, while the ratio that is clipped belongs to the whole completion",
        ("objective.aggregation", "objective.ratio"),
        "objective.aggregation=sequence_mean, or objective=grpo, whose ratio is that of a token",
    )


def ranks_agree(stage: Stage) -> Iterator[Violation]:
    objective: Any = stage.objective
    reward: Any = stage.reward
    if "rank_rewards" not in objective.needs or getattr(reward, "name", None) != "list_ndcg":
        return
    if reward.k != objective.ranks:
        yield Violation(
            f"reward.k={reward.k} ranks are scored, but objective.ranks={objective.ranks} are learnt",
            ("reward.k", "objective.ranks"),
            f"reward.k={objective.ranks}",
        )
    if reward.output == "log_decay" and objective.rank_reward == "discounted":
        yield Violation(
            "reward.output=log_decay is discounted already; objective.rank_reward=discounted would do it again",
            ("reward.output", "objective.rank_reward"),
            "reward.output=exp_inf, or objective.rank_reward=own",
        )


def synced_reference(stage: Stage) -> Iterator[Violation]:
    every = getattr(stage.objective, "ref_model_sync_steps", None)
    if every is not None and stage.peft.name != "full":
        yield Violation(
            f"objective.ref_model_sync_steps={every} moves the reference model towards the policy, but with "
            f"peft '{stage.peft.name}' the reference is the policy without its adapter",
            ("objective.ref_model_sync_steps", "peft.name"),
            "peft=full, or objective.ref_model_sync_steps=null",
        )


def groups_alone(stage: Stage) -> Iterator[Violation]:
    """Advantages of groups in the data are those of each group by itself."""
    objective: Any = stage.objective
    if objective.family != "policy" or stage.data.format != "groups":
        return
    if objective.advantage == "batch_std" or objective.advantage.startswith("reinforce_pp"):
        yield Violation(
            f"objective.advantage={objective.advantage} compares with a whole batch of rollouts; groups in the data "
            "are compared by themselves",
            ("objective.advantage", "data.format"),
            "objective.advantage=group, centered or leave_one_out",
        )


def groups_fill_batches(stage: Stage) -> Iterator[Violation]:
    objective: Any = stage.objective
    if objective.family != "policy" or stage.rollout is None or stage.data.format == "groups":
        return
    train, processes = stage.train, stage.parallel.processes
    size = train.batch_size * processes * train.accumulate * stage.rollout.updates
    if size % objective.group_size:
        factor = objective.group_size // gcd(objective.group_size, size // train.batch_size)
        fitting = factor * max(1, round(train.batch_size / factor))
        yield Violation(
            f"train.batch_size × parallel.processes × train.accumulate × rollout.updates = {size} completions "
            f"a rollout do not make whole groups of objective.group_size={objective.group_size}",
            ("train.batch_size", "objective.group_size"),
            f"train.batch_size={fitting}",
        )


def filters_and_ratios(stage: Stage) -> Iterator[Violation]:
    """Filters whose samples a ratio would compare with probabilities that know no filter."""
    rollout = stage.rollout
    if stage.objective.family != "policy" or not samples(stage.objective, stage.data) or rollout is None:
        return
    filters = [name for name, acts in (("top_p", rollout.top_p < 1), ("top_k", rollout.top_k is not None)) if acts]
    for name in filters:
        said = f"rollout.{name}={getattr(rollout, name)} samples from what it keeps, while log-probs are of all tokens"
        off = "rollout.top_p=1" if name == "top_p" else "rollout.top_k=null"
        if rollout.name == "vllm":
            yield Violation(
                f"{said}: the correction for rollout 'vllm' would take the difference for the engine's",
                (f"rollout.{name}", "rollout.name"),
                off,
            )
        elif rollout.updates > 1:
            yield Violation(
                f"{said}: with rollout.updates={rollout.updates} the ratio would leave out how much was kept",
                (f"rollout.{name}", "rollout.updates"),
                f"{off}, or rollout.updates=1, whose ratio is 1",
            )


def tools_fit(stage: Stage) -> Iterator[Violation]:
    """What rollouts that call tools cannot be combined with."""
    rollout = stage.rollout
    if rollout is None or not rollout.tools or stage.objective.family != "policy":
        return
    if rollout.name == "vllm":
        yield Violation(
            "completions that call tools are sampled turn by turn, which rollout 'vllm' does not do",
            ("rollout.name", "rollout.tools"),
            "rollout.name=transformers",
        )
    if stage.parallel.name == "fsdp2":
        yield Violation(
            "with parallel=fsdp2 all processes sample in step, but the calls of their completions are not",
            ("parallel.name", "rollout.tools"),
            "parallel=ddp, or parallel=single",
        )
    if "prefix_mask" in stage.objective.needs:
        yield Violation(
            f"objective '{stage.objective.name}' puts demonstrations into completions, and these call no tools",
            ("rollout.tools", "objective.name"),
            "another objective, or rollout.tools={}",
        )
