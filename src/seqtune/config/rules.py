"""Rules between fields: each names what contradicts what, and the way out."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import gcd
from typing import TYPE_CHECKING, Any

from seqtune.config.axes import DataSpec, TemplateMathSpec, TinyModelSpec
from seqtune.config.mixture import MixtureSpec
from seqtune.config.order import GrowLength
from seqtune.config.provenance import RANK
from seqtune.errors import did_you_mean
from seqtune.registry import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from seqtune.config.plan import Stage
    from seqtune.config.provenance import ComposedStage
    from seqtune.config.spec import ObjectiveSpec


@dataclass(frozen=True)
class Violation:
    """A combination that cannot run.

    Args:
        problem: What contradicts what.
        fields: Dotted paths of the fields involved, the one to change first.
        hint: The way out.
    """

    problem: str
    fields: tuple[str, ...]
    hint: str


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


def training(stage: Stage, given: ComposedStage) -> Iterator[Violation]:
    """Every rule a stage that is to be trained breaks.

    Args:
        stage: The typed stage.
        given: What it was read from; tells what was said and what is a default.
    """
    for rule in (*DATA_AND_EVALUATION, *TRAINING):
        yield from rule(stage)
    for said in SAID:
        yield from said(stage, given)


def evaluating(stage: Stage) -> Iterator[Violation]:
    """Every rule a stage whose model is only evaluated breaks."""
    for rule in (*DATA_AND_EVALUATION, _evaluation_judges):
        yield from rule(stage)


def between_stages(stages: Sequence[Stage]) -> Iterator[tuple[str, Violation]]:
    """Every rule that one stage breaks together with an earlier one, with the name of the later."""
    for before, stage in pairwise(stages):
        if before.objective.family == "reward":
            yield (
                stage.name,
                Violation(
                    f"stage '{stage.name}' cannot start from stage '{before.name}', which ends with a reward model",
                    ("objective.name",),
                    "train the reward model last, or in a run of its own",
                ),
            )
        ours, first = (one.model.model_dump(exclude={"dtype", "attention", "rope"}) for one in (stage, stages[0]))
        changed = sorted(key for key in ours.keys() | first.keys() if ours.get(key) != first.get(key))
        if changed:
            yield (
                stage.name,
                Violation(
                    f"model.{changed[0]}: stage '{stage.name}' names another model than '{stages[0].name}', "
                    "but starts from its weights",
                    (f"model.{changed[0]}",),
                    "leave the model of a later stage as it is, or make it a run of its own",
                ),
            )


def unread(stages: Sequence[Stage], given: Sequence[ComposedStage]) -> dict[str, str]:
    """What the user or a stage's words set and no stage reads: dotted path to the reason.

    Values of a group file or of the recipe may lie idle: a recipe with two stages serves both, `seqtune eval` reads the
    reward of a supervised recipe. A word asks for an effect, so it must have one in a stage it applies to.
    """
    reasons: dict[str, list[str | None]] = {}
    for stage, composed in zip(stages, given, strict=True):
        for path, origin in composed.origins.items():
            if origin.kind in ("command line", "stage") and "." in path:
                reasons.setdefault(path, []).append(_idle(path, stage))
    return {path: why[0] for path, why in reasons.items() if why[0] is not None and None not in why}


OBJECTIVE_READS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "gamma": ("advantage", ("reinforce_pp",), "objective.advantage={} discounts nothing"),
    "tree_weight": ("credit", ("tree",), "objective.credit={} grows no tree"),
    "tree_root": ("credit", ("tree",), "objective.credit={} grows no tree"),
    "tau_positive": ("clip", ("soft",), "objective.clip={} has no sigmoid"),
    "tau_negative": ("clip", ("soft",), "objective.clip={} has no sigmoid"),
    "epsilon_low": ("clip", ("pessimistic", "gate"), "objective.clip={} has no lower bound"),
    "epsilon_high": ("clip", ("pessimistic", "gate", "cispo"), "objective.clip={} has no upper bound"),
    "correction_over": ("correction", ("truncate", "mask"), "objective.correction={} weighs nothing"),
    "correction_high": ("correction", ("truncate", "mask"), "objective.correction={} weighs nothing"),
    "correction_normalised": ("correction", ("truncate", "mask"), "objective.correction={} weighs nothing"),
    "correction_low": ("correction", ("mask",), "objective.correction={} has no lower bound"),
    "rejection_kl": ("rejection", ("sum", "mean", "max"), "objective.rejection={} leaves nothing out"),
    "rejection_threshold": ("rejection", ("sum", "mean", "max"), "objective.rejection={} leaves nothing out"),
    "share": ("grouping", ("share",), "objective.grouping={} has bins"),
    "bins": ("grouping", ("bins",), "objective.grouping={} has a share"),
    "margin": ("calibration", ("rank", "margin", "list"), "objective.calibration={} has no margin"),
    "value_samples": ("value", ("fit",), "objective.value={} samples nothing"),
    "value_prompts": ("value", ("fit",), "objective.value={} samples nothing"),
}
"""Fields of policy objectives that are read only where another field has one of the values; and why not else."""


OF_THE_REFERENCE = tuple(
    f"objective.{field}" for field in ("kl", "kl_in", "kl_corrected", "ref_model_sync_steps", "ref_model_mixup_alpha")
)
"""What is read where a policy objective has a reference model."""


def _idle(path: str, stage: Stage) -> str | None:
    """Why the stage does not read the value at `path`; None when it does."""
    axis, _, field = path.partition(".")
    family, objective = stage.objective.family, stage.objective
    if axis == "rollout":
        if not samples(objective, stage.data):
            held = "; data of the format 'groups' holds them" if family == "policy" else ""
            return f"objective '{objective.name}' samples no completions{held}"
        if family != "policy" and field.startswith(("updates", "vllm_", "tools")):
            return f"objective '{objective.name}' samples once, with the model it starts from"
        if field.startswith("vllm_") and stage.rollout is not None and stage.rollout.name != "vllm":
            return f"rollout '{stage.rollout.name}' is not vllm"
    if axis == "packing" and family != "sft":
        if field in ("attention", "seed") or field.startswith("order"):
            return f"objective '{objective.name}' packs no rows"
        if family == "policy" and stage.data.format != "groups" and field in ("capacity", "on_overflow"):
            return f"rollout.max_new_tokens bounds the completions of objective '{objective.name}'"
    if path == "parallel.row_cost" and (family != "sft" or isinstance(stage.data, MixtureSpec)):
        return "only packed rows that are all there before training are dealt by cost"
    own_samples = stage.rollout is not None and stage.rollout.name == "transformers"
    if axis == "objective" and field.startswith(("correction", "rejection")) and own_samples:
        return "rollout 'transformers' samples with the model that trains, so there is nothing to correct"
    if path == "data.pairs" and (stage.data.format != "groups" or family not in ("preference", "reward")):
        return "only objectives that learn from pairs make pairs, and of groups"
    if axis == "objective" and field == "group_size" and stage.data.format == "groups":
        return "data of the format 'groups' has groups of its own sizes"
    if axis == "objective" and field in OBJECTIVE_READS:
        other, values, why = OBJECTIVE_READS[field]
        if getattr(objective, other, values[0]) not in values:
            return why.format(getattr(objective, other))
    if path in OF_THE_REFERENCE and getattr(objective, "beta", None) == 0:
        return "objective.beta=0 keeps no reference model"
    if path == "objective.ref_model_mixup_alpha" and getattr(objective, "ref_model_sync_steps", 1) is None:
        return "objective.ref_model_sync_steps=null never syncs the reference model"
    unsampled = ("sampling_rounds", "ref_model_sync_steps", "ref_model_mixup_alpha")
    if axis == "objective" and field in unsampled and stage.data.format == "groups":
        return "data of the format 'groups' is not sampled, and its reference is the model the stage starts from"
    if path == "eval.stop_text" and stage.eval.stop_entropy is None:
        return "eval.stop_entropy=null stops no completion"
    if path in ("eval.stop_segment", "eval.stop_top") and stage.eval.stop_entropy is None and not stage.eval.entropy:
        return "nothing takes entropies: eval.entropy=true measures them, eval.stop_entropy stops by them"
    if path == "train.epochs" and stage.train.max_steps is not None:
        return f"train.max_steps={stage.train.max_steps} decides; train.max_steps=null trains epochs"
    return None


def _ratio_and_aggregation(stage: Stage) -> Iterator[Violation]:
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


def _needs(stage: Stage) -> Iterator[Violation]:
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


def _tools_fit(stage: Stage) -> Iterator[Violation]:
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


def _ranks_agree(stage: Stage) -> Iterator[Violation]:
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


def _chosen(stage: Stage, axis: str) -> str:
    """What a stage chose on an axis, in a word."""
    spec = getattr(stage, axis)
    return "none" if spec is None else str(getattr(spec, "name", None) or getattr(spec, "format", axis))


def _parts_fit(stage: Stage) -> Iterator[Violation]:
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
    if objective.correction == "mask" and objective.correction_over == "sequence_sum":
        yield Violation(
            "objective.correction=mask over the sum of a completion's log ratios leaves out whole long completions: "
            "the sum grows with length",
            ("objective.correction_over", "objective.correction"),
            "objective.correction_over=sequence_mean, or token",
        )


def _groups_alone(stage: Stage) -> Iterator[Violation]:
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


def _policy_needs(stage: Stage) -> Iterator[Violation]:
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
        yield _wrong_format(stage, "prompt_answer or prompt_completion, or groups")
    if stage.packing.path is not None:
        yield Violation(
            f"packing.path holds packed token rows, but objective '{stage.objective.name}' needs prompts",
            ("packing.path", "objective.name"),
            "packing.path=null",
        )


def _format_fits(stage: Stage) -> Iterator[Violation]:
    family, data = stage.objective.family, stage.data
    fits = {
        "sft": ("text", "prompt_completion", "messages"),
        "preference": ("preference", "groups"),
        "reward": ("preference", "groups"),
        "offline": ("groups",),
        "ranking": ("groups",),
    }.get(family)
    if fits and data.format not in fits:
        yield _wrong_format(stage, " or ".join(fits))
    if family == "policy" and isinstance(data, TemplateMathSpec) and data.format == "preference":
        yield _wrong_format(stage, "prompt_completion or groups")


def _wrong_format(stage: Stage, fits: str) -> Violation:
    return Violation(
        f"objective '{stage.objective.name}' cannot use data of the format '{stage.data.format}'",
        ("data.format", "objective.name"),
        f"data of the format {fits}, or another objective",
    )


def _one_source(stage: Stage) -> Iterator[Violation]:
    data = stage.data
    if isinstance(data, DataSpec) and data.name is None and data.path is None:
        yield Violation("no data: neither data.path nor data.name is set", ("data.path", "data.name"), "data.path=FILE")
    if isinstance(data, DataSpec) and data.eval_path is not None and data.eval_size:
        yield Violation(
            "held-out examples come from data.eval_path and from data.eval_size at once",
            ("data.eval_size", "data.eval_path"),
            "data.eval_size=0",
        )


def _mixture_is_streamed(stage: Stage) -> Iterator[Violation]:
    data, packing, train = stage.data, stage.packing, stage.train
    if not isinstance(data, MixtureSpec):
        return
    if stage.objective.family != "sft":
        yield Violation(
            f"a mixture is trained on as it is read, which objective '{stage.objective.name}' cannot",
            ("data.name", "objective.name"),
            "objective=sft, or data of one source",
        )
        return
    if not packing.is_online:
        yield Violation(
            f"packing '{packing.name}' sees all documents before it makes a row, and a mixture is a stream",
            ("packing.name", "data.name"),
            "packing=online_best_fit",
        )
    if packing.order.name != "shuffle":
        yield Violation(
            f"packing.order '{packing.order.name}' chooses among all rows, and a mixture is a stream",
            ("packing.order.name", "data.name"),
            "leave packing.order out; data.shuffle and the weights of data.sources decide what comes when",
        )
    endless = data.stop == "cycle" and any(source.epochs is None for source in data.sources)
    if train.max_steps is None and endless:
        yield Violation(
            "a mixture that begins again when it ends has no epochs to train",
            ("train.max_steps", "data.stop"),
            "train.max_steps=1000, or data.stop=all_exhausted",
        )
    if train.max_steps is None and train.epochs != 1:
        yield Violation(
            f"train.epochs={train.epochs:g} passes of a mixture, which is read once",
            ("train.epochs", "data.name"),
            "data.sources[*].epochs says how often each source is read; train.epochs=1",
        )
    for source in data.sources:
        if source.chat and source.format != "prompt_completion":
            yield Violation(
                f"chat renders prompts as chat turns, but the source '{source.path}' of the format '{source.format}' "
                "has none",
                ("data.sources",),
                "chat: false",
            )


def _orders_fit(stage: Stage) -> Iterator[Violation]:
    packing, order = stage.packing, stage.packing.order
    if isinstance(order, GrowLength):
        if order.lengths and order.lengths[-1] != packing.capacity:
            yield Violation(
                f"the rows of the last stage, packing.order.lengths={list(order.lengths)}, are not those of "
                f"packing.capacity={packing.capacity}",
                ("packing.order.lengths", "packing.capacity"),
                f"packing.capacity={order.lengths[-1]}",
            )
        stages = order.stages(packing.capacity)
        if order.fractions and len(order.fractions) != len(stages):
            yield Violation(
                f"packing.order.fractions has {len(order.fractions)} shares for the {len(stages)} stages of rows of "
                f"{', '.join(map(str, stages))} tokens",
                ("packing.order.fractions", "packing.capacity"),
                "give each stage a share, or leave packing.order.fractions out",
            )
        if packing.on_overflow == "error" and packing.name != "wrapped":
            yield Violation(
                "rows of the first stages are shorter than packing.capacity, and documents longer than they are an "
                "error",
                ("packing.on_overflow", "packing.order.name"),
                "packing.on_overflow=split, or packing=wrapped",
            )


def _answer_column(stage: Stage) -> Iterator[Violation]:
    data = stage.data
    formats = ("prompt_answer", "prompt_completion", "groups")
    if isinstance(data, DataSpec) and data.answer_pattern and data.format not in formats:
        yield Violation(
            f"data.answer_pattern finds an answer, but data of the format '{data.format}' has none",
            ("data.answer_pattern", "data.format"),
            "data.answer_pattern=null",
        )


def _chat_renders(stage: Stage) -> Iterator[Violation]:
    if stage.data.chat and stage.data.format in ("text", "messages"):
        yield Violation(
            f"data.chat renders prompts as chat turns, but data of the format '{stage.data.format}' has none",
            ("data.chat", "data.format"),
            "data.chat=false",
        )


def _columns_of_the_format(stage: Stage) -> Iterator[Violation]:
    if not isinstance(stage.data, DataSpec):
        return
    entry: Any = load("seqtune.data.formats:FORMATS")[stage.data.format]
    fields = (*entry.fields, *entry.optional)
    for column in stage.data.columns:
        if column not in fields:
            yield Violation(
                f"data.columns.{column}: data of the format '{stage.data.format}' has no field '{column}'",
                (f"data.columns.{column}", "data.format"),
                did_you_mean(column, fields),
            )


def _documents_whole(stage: Stage) -> Iterator[Violation]:
    """A mean over documents needs each of them in one piece, alone, or it would count twice."""
    packing = stage.packing
    if getattr(stage.objective, "aggregation", None) != "sequence_mean" or stage.objective.family != "sft":
        return
    if packing.name in ("wrapped", "dataset_decomposition", "bos_crop"):
        yield Violation(
            f"objective.aggregation=sequence_mean weighs whole documents, and packing '{packing.name}' cuts them",
            ("objective.aggregation", "packing.name"),
            "packing=best_fit, or objective.aggregation=token_mean",
        )
    elif packing.on_overflow == "split":
        yield Violation(
            "objective.aggregation=sequence_mean weighs whole documents, and packing.on_overflow=split cuts long ones",
            ("objective.aggregation", "packing.on_overflow"),
            "packing.on_overflow=truncate or drop, or objective.aggregation=token_mean",
        )
    if packing.attention == "causal":
        yield Violation(
            "objective.aggregation=sequence_mean weighs documents, and packing.attention=causal makes one of each row",
            ("objective.aggregation", "packing.attention"),
            "packing.attention=document, or objective.aggregation=token_mean",
        )


def _groups_fill_batches(stage: Stage) -> Iterator[Violation]:
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


def _lm_head_adapter(stage: Stage) -> Iterator[Violation]:
    targets = getattr(stage.peft, "targets", ())
    if stage.objective.family == "policy" and not isinstance(targets, str) and "lm_head" in targets:
        yield Violation(
            f"objective '{stage.objective.name}' reads log-probs through a fused LM head, "
            "which an adapter on lm_head bypasses",
            ("peft.targets", "objective.name"),
            "leave lm_head out of peft.targets",
        )


def _synced_reference(stage: Stage) -> Iterator[Violation]:
    every = getattr(stage.objective, "ref_model_sync_steps", None)
    if every is not None and stage.peft.name != "full":
        yield Violation(
            f"objective.ref_model_sync_steps={every} moves the reference model towards the policy, but with "
            f"peft '{stage.peft.name}' the reference is the policy without its adapter",
            ("objective.ref_model_sync_steps", "peft.name"),
            "peft=full, or objective.ref_model_sync_steps=null",
        )


def _sharded_float16(stage: Stage) -> Iterator[Violation]:
    if stage.parallel.name == "fsdp2" and stage.model.dtype == "float16":
        yield Violation(
            "float16 needs loss scaling, which sharded gradients do not have here",
            ("model.dtype", "parallel.name"),
            "model.dtype=bfloat16",
        )


def _eval_samples(stage: Stage) -> Iterator[Violation]:
    spec = stage.eval
    if spec.name == "pass_at_k":
        if max(spec.k) > spec.samples:
            yield Violation(
                f"pass@{max(spec.k)} needs at least {max(spec.k)} samples a prompt, eval.samples is {spec.samples}",
                ("eval.samples", "eval.k"),
                f"eval.samples={max(spec.k)}",
            )
        return
    if spec.samples != 1 or spec.k != (1,):
        yield Violation(
            f"eval '{spec.name}' takes one completion a prompt",
            ("eval.samples", "eval.k", "eval.name"),
            "eval=pass_at_k",
        )
    if spec.temperature != 1.0:
        yield Violation(f"eval '{spec.name}' samples nothing", ("eval.temperature", "eval.name"), "eval=pass_at_k")


def _eval_entropy(stage: Stage) -> Iterator[Violation]:
    spec = stage.eval
    if spec.name != "perplexity":
        return
    for field, asked in (("stop_entropy", spec.stop_entropy is not None), ("entropy", spec.entropy)):
        if asked:
            yield Violation(
                f"eval 'perplexity' makes no completions, so eval.{field} has none to look at",
                (f"eval.{field}", "eval.name"),
                "eval=greedy",
            )


def _filters_and_ratios(stage: Stage) -> Iterator[Violation]:
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


def _eval_between_stages(stage: Stage) -> Iterator[Violation]:
    if not stage.eval.between_stages:
        return
    yield from _evaluation_judges(stage)
    if not stage.data.eval_size and getattr(stage.data, "eval_path", None) is None:
        yield Violation(
            "eval.between_stages needs held-out examples, and none are held out",
            ("eval.between_stages", "data.eval_size"),
            "data.eval_size=500, or data.eval_path=FILE",
        )


def _tiny_shapes(stage: Stage) -> Iterator[Violation]:
    model = stage.model
    if not isinstance(model, TinyModelSpec):
        return
    if model.hidden_size % model.heads or (model.hidden_size // model.heads) % 2:
        yield Violation(
            f"model.hidden_size={model.hidden_size} is not an even multiple of model.heads={model.heads}",
            ("model.hidden_size", "model.heads"),
            f"model.hidden_size={2 * model.heads * max(1, round(model.hidden_size / (2 * model.heads)))}",
        )
    if model.heads % model.kv_heads:
        yield Violation(
            f"model.heads={model.heads} is not a multiple of model.kv_heads={model.kv_heads}",
            ("model.kv_heads", "model.heads"),
            f"model.kv_heads={gcd(model.heads, model.kv_heads)}",
        )


def _packing_applies(stage: Stage) -> Iterator[Violation]:
    if stage.objective.family != "sft" and stage.packing.name != "none":
        yield Violation(
            f"objective '{stage.objective.name}' batches padded pairs or completions; "
            f"packing '{stage.packing.name}' would not be used",
            ("packing.name", "objective.name"),
            "packing=none",
        )


def _evaluates_during_training(stage: Stage) -> Iterator[Violation]:
    if stage.train.eval_every and not stage.data.eval_size and getattr(stage.data, "eval_path", None) is None:
        yield Violation(
            "train.eval_every needs held-out examples, and none are held out",
            ("train.eval_every", "data.eval_size"),
            "data.eval_size=200, or data.eval_path=FILE",
        )


def _evaluation_judges(stage: Stage) -> Iterator[Violation]:
    if stage.eval.name == "perplexity":
        return
    if stage.reward is None:
        yield Violation(
            f"eval '{stage.eval.name}' needs a reward to judge completions",
            ("eval.name", "reward"),
            "reward=math_equiv, or eval=perplexity",
        )
    if stage.data.format not in ("prompt_answer", "prompt_completion", "groups"):
        yield Violation(
            f"eval '{stage.eval.name}' needs prompts to complete; data of the format '{stage.data.format}' has none",
            ("data.format", "eval.name"),
            "data of the format prompt_answer or prompt_completion, or eval=perplexity",
        )


def _two_sources(stage: Stage, given: ComposedStage) -> Iterator[Violation]:
    data = stage.data
    name, path = (given.origin(f"data.{field}").kind for field in ("name", "path"))
    said = name != "default" and RANK[name] >= RANK[path]  # a plan read back was judged before, and tells no origins
    if isinstance(data, DataSpec) and data.name is not None and data.path is not None and said:
        yield Violation(
            "data.path and data.name both say where the examples are",
            ("data.name", "data.path"),
            "leave one out; data.path is read instead of the data.name of a group",
        )


DATA_AND_EVALUATION: tuple[Callable[[Stage], Iterator[Violation]], ...] = (
    _one_source,
    _answer_column,
    _chat_renders,
    _columns_of_the_format,
    _eval_samples,
    _eval_entropy,
    _tiny_shapes,
)
TRAINING: tuple[Callable[[Stage], Iterator[Violation]], ...] = (
    _format_fits,
    _policy_needs,
    _groups_alone,
    _needs,
    _tools_fit,
    _ranks_agree,
    _parts_fit,
    _ratio_and_aggregation,
    _documents_whole,
    _groups_fill_batches,
    _lm_head_adapter,
    _synced_reference,
    _filters_and_ratios,
    _sharded_float16,
    _packing_applies,
    _mixture_is_streamed,
    _orders_fit,
    _eval_between_stages,
    _evaluates_during_training,
)
SAID: tuple[Callable[[Stage, ComposedStage], Iterator[Violation]], ...] = (_two_sources,)
