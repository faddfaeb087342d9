"""`seqtune pack`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from seqtune.errors import SeqtuneError
from seqtune_cli.words import Json, Words, plan_of, print_json, recipe_of, take

if TYPE_CHECKING:
    from seqtune.config.plan import Plan, Stage


def packed_stage(plan: Plan) -> Stage:
    """The stage whose data is packed: the first that trains on packed rows.

    Raises:
        SeqtuneError: There is none, or it reads a pack already.
    """
    stage = next((stage for stage in plan.stages if stage.objective.family == "sft"), None)
    if stage is None:
        name = plan.stages[0].objective.name
        raise SeqtuneError(f"objective '{name}' packs no rows", "objective.name", "a recipe with objective=sft")
    if stage.packing.path is not None:
        raise SeqtuneError("packing.path names rows that are packed already", "packing.path", "packing.path=null")
    return stage


def pack(words: Words = None, as_json: Json = False) -> None:
    """Tokenise and pack a recipe's data.

    Example: seqtune pack recipe=sft_tiny out=packs/mine
    """
    taken, rest = take(words, "recipe", "out")
    _, plan = plan_of(rest, recipe_of(taken))
    from seqtune.training.pack import pack_stage
    from seqtune.training.run import quiet
    from seqtune_cli import render

    out = Path(taken.get("out", f"packs/{Path(plan.recipe).stem}"))
    quiet()
    with render.progress("packing", shown=not as_json) as progress:
        summary = pack_stage(packed_stage(plan), out, lambda done: progress(round(100 * done), 100))
    if as_json:
        print_json(summary)
    else:
        render.summary(f"packed into {out}", summary)
