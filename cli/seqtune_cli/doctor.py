"""`seqtune doctor`."""

from __future__ import annotations

from seqtune_cli.words import Json, Words, print_json, take


def doctor(words: Words = None, as_json: Json = False) -> None:
    """Say what this machine can run, and prove a recipe on it.

    Prints versions, accelerators and attention backends, with the reason each is or is not usable. With recipe= it
    also checks every stage on the recipe's own model and data; nothing is trained.

    Example: seqtune doctor recipe=gspo_tiny
    """
    taken, rest = take(words, "recipe")
    if taken or rest:
        from seqtune_cli import proving

        proving.prove(rest, taken, as_json=as_json)
        return
    from dataclasses import asdict

    from seqtune.report.environment import describe
    from seqtune_cli import render
    from seqtune_kernels.capability import attention_backends

    found = {"environment": describe(), "attention": [asdict(backend) for backend in attention_backends()]}
    if as_json:
        print_json(found)
    else:
        render.doctor(found)
