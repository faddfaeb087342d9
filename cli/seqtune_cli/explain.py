"""What `seqtune show` says about a plan, as plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seqtune.errors import SeqtuneError

if TYPE_CHECKING:
    from seqtune.config.plan import Plan, Stage
    from seqtune.config.provenance import Composed, ComposedStage


def explain(composed: Composed, plan: Plan) -> dict[str, Any]:
    """Every stage with its values and origins, formula, batch and parameters."""
    pairs = zip(composed.stages, plan.stages, strict=True)
    return {"recipe": plan.recipe, "stages": [_stage(given, stage) for given, stage in pairs]}


def _stage(given: ComposedStage, stage: Stage) -> dict[str, Any]:
    values = {
        path: {"value": value, "origin": str(given.origin(path))}
        for axis, spec in stage.model_dump(mode="json", exclude={"name"}).items()
        if spec is not None
        for path, value in _leaves(spec, axis)
    }
    return {
        "stage": stage.name,
        "values": values,
        "formula": stage.objective.formula,
        "source": stage.objective.source,
        "batch": batch(stage),
        "parameters": _parameters(stage),
    }


def _leaves(value: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, f"{path}.{key}")]
    return [(path, value)]


BY_TOKENS = ("token_budget", "growlength", "cycles")
"""Orders of rows whose steps are filled by tokens."""


def batch(stage: Stage) -> dict[str, Any]:
    """What one optimiser step takes: rows over all processes and micro-batches, and tokens at most."""
    train, rows = stage.train, stage.train.batch_size * stage.train.accumulate * stage.parallel.processes
    objective: Any = stage.objective
    if objective.family == "policy" and stage.rollout is not None:
        completions, rounds = rows * stage.rollout.updates, objective.sampling_rounds
        return {
            "completions a step": rows,
            "prompts a rollout": completions // objective.group_size,
            "completions a rollout": completions,
            **({"completions sampled for it, at most": completions * rounds} if rounds > 1 else {}),
            "new tokens a step, at most": rows * stage.rollout.max_new_tokens,
        }
    if stage.data.format == "groups" and objective.family not in ("preference", "reward"):
        texts = getattr(objective, "sampling", "all") != "all"
        return {f"{'texts' if texts else 'groups'} a step": rows}
    unit, copies = ("rows", 1) if objective.family == "sft" else ("pairs", 2)
    if stage.packing.order.name in BY_TOKENS:
        return {"tokens a step, at most": rows * stage.packing.capacity, f"{unit} a micro-batch": train.batch_size}
    return {
        f"{unit} a step": rows,
        f"{unit} a micro-batch": train.batch_size,
        "tokens a step, at most": rows * copies * stage.packing.capacity,
    }


def _parameters(stage: Stage) -> dict[str, int | str]:
    from seqtune.models.load import count_parameters

    try:
        return {"all": count_parameters(stage.model), "trained": count_parameters(stage.model, stage.peft)}
    except SeqtuneError as error:
        return {"unknown": error.problems[0].problem}
