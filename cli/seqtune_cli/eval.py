"""`seqtune eval`."""

from __future__ import annotations

from seqtune_cli.words import Json, Words, take


def evaluate(words: Words = None, as_json: Json = False) -> None:
    """Evaluate a run or a model.

    Example: seqtune eval run=runs/NAME/TIME eval=pass_at_k

    The held-out examples are used, or with data.path=FILE all of that file.
    """
    from seqtune_cli import evaluations

    taken, rest = take(words, "run", "model", "recipe", "out")
    evaluations.run(taken, rest, as_json=as_json)
