"""`seqtune doctor recipe=…`: the checks of a recipe on its own model and data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seqtune_cli.words import plan_of, print_json, recipe_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def prove(words: Sequence[str], taken: Mapping[str, str], *, as_json: bool) -> None:
    """Check every stage and print what was found.

    Raises:
        SeqtuneError: As `diagnose`; or a check failed, one problem for each.
    """
    from dataclasses import asdict

    from seqtune.errors import Problem, SeqtuneError
    from seqtune.training.run import diagnose
    from seqtune_cli import render

    _, plan = plan_of(words, recipe_of(dict(taken)))
    found = diagnose(plan, watch=(lambda event: None) if as_json else render.note)
    if as_json:
        print_json({stage: [asdict(proof) for proof in proofs] for stage, proofs in found.items()})
    else:
        render.proofs(found)
    failed = [
        Problem(f"{proof.name}: {proof.detail}", f"stage '{stage}'", proof.hint)
        for stage, proofs in found.items()
        for proof in proofs
        if not proof.passed
    ]
    if failed:
        raise SeqtuneError.of(failed)
