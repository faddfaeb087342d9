"""`seqtune pack`."""

from __future__ import annotations

from pathlib import Path

from seqtune_cli.words import Json, Words, plan_of, print_json, recipe_of, take


def pack(words: Words = None, as_json: Json = False) -> None:
    """Tokenise and pack a recipe's data.

    Example: seqtune pack recipe=sft_tiny out=packs/mine
    """
    taken, rest = take(words, "recipe", "out")
    _, plan = plan_of(rest, recipe_of(taken))
    from seqtune.training.pack import pack_stage
    from seqtune_cli import render

    out = Path(taken.get("out", f"packs/{Path(plan.recipe).stem}"))
    with render.progress("packing", shown=not as_json) as progress:
        summary = pack_stage(plan.stages[0], out, lambda done: progress(round(100 * done), 100))
    if as_json:
        print_json(summary)
    else:
        render.summary(f"packed into {out}", summary)
