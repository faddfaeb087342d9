"""The plan: everything a run needs to know, frozen and typed."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SerializeAsAny

from seqtune.config.axes import Data, EvalSpec, Model, RolloutSpec, TrainSpec
from seqtune.config.spec import ObjectiveSpec, PackingSpec, ParallelSpec, PeftSpec, RewardSpec, Spec

REGISTERED: dict[str, str] = {
    "packing": "seqtune.packing:PACKINGS",
    "objective": "seqtune.objectives:OBJECTIVES",
    "peft": "seqtune.peft:PEFTS",
    "parallel": "seqtune.parallel:PARALLEL_PLANS",
    "reward": "seqtune.rewards:REWARDS",
}
"""The axes whose spec is chosen by `name` in a registry, with that registry."""


class Stage(Spec):
    """One stage of a run, complete in itself. `reward` and `rollout` are None where the objective needs none."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """Unique within the plan; folder name of its checkpoints."""
    model: Model
    data: Data
    packing: SerializeAsAny[PackingSpec]
    objective: SerializeAsAny[ObjectiveSpec]
    peft: SerializeAsAny[PeftSpec]
    parallel: SerializeAsAny[ParallelSpec]
    rollout: RolloutSpec | None = None
    reward: SerializeAsAny[RewardSpec] | None = None
    train: TrainSpec
    eval: EvalSpec


class Plan(Spec):
    """A resolved recipe. Written to the run folder as `plan.yaml`, it is all that training reads."""

    recipe: str
    """Name of the recipe, or path of its file."""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    """In order; each starts from the weights the one before ended with."""
