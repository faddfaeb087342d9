"""`seqtune show`."""

from __future__ import annotations

from seqtune_cli.words import Json, Words, plan_of, print_json, recipe_of, take


def show(words: Words = None, as_json: Json = False) -> None:
    """Explain a recipe: values and who set them.

    Prints the formula, the batch and the number of parameters too.

    Example: seqtune show recipe=gspo_qwen4b
    """
    taken, rest = take(words, "recipe")
    composed, plan = plan_of(rest, recipe_of(taken))
    from seqtune_cli import render
    from seqtune_cli.explain import explain

    explained = explain(composed, plan)
    if as_json:
        print_json(explained)
    else:
        render.explained(explained)
