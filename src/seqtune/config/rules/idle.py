"""What was set and nothing reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seqtune.config.mixture import MixtureSpec
from seqtune.config.rules.inputs import samples

if TYPE_CHECKING:
    from collections.abc import Sequence

    from seqtune.config.plan import Stage
    from seqtune.config.provenance import ComposedStage


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
    idle = {path: why[0] for path, why in reasons.items() if why[0] is not None and None not in why}
    # What is said of a section is said by the values in it.
    return {path: why for path, why in idle.items() if not any(other.startswith(f"{path}.") for other in idle)}


OBJECTIVE_READS: dict[str, tuple[str, tuple[str | bool, ...], str]] = {
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
    "overflow_penalty": (
        "aggregation",
        ("token_mean", "sequence_mean", "token_sum"),
        "objective.aggregation={} leaves out what is beyond the last item",
    ),
    "anchor_gamma": ("anchors", (True,), "objective.anchors=false puts in no demonstration"),
    "share_last": ("share_schedule", ("linear", "cosine"), "objective.share_schedule={} stays at share_first"),
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
    if path == "train.eval_every" and family == "policy" and samples(objective, stage.data):
        return f"objective '{objective.name}' has no loss of held-out examples; eval.between_stages=true measures them"
    if path == "data.careless" and (
        stage.data.format != "prompt_completion" or (family == "policy" and "prefix_mask" not in objective.needs)
    ):
        told = f"objective '{objective.name}'" if family == "policy" else f"data.format={stage.data.format}"
        return f"it spoils completions to imitate, and {told} has none"
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
    if path == "peft.dropout" and family == "policy":
        return f"objective '{objective.name}' compares with the policy that samples, which has no dropout"
    if path == "train.epochs" and stage.train.max_steps is not None:
        return f"train.max_steps={stage.train.max_steps} decides; train.max_steps=null trains epochs"
    return None
