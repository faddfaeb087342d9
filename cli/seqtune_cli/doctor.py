"""`seqtune doctor`."""

from __future__ import annotations

from seqtune_cli.words import Json, print_json


def doctor(as_json: Json = False) -> None:
    """Say what this machine can run.

    Prints versions, accelerators and attention backends, with the reason each is or is not usable.
    """
    from dataclasses import asdict

    from seqtune.report.environment import describe
    from seqtune_cli import render
    from seqtune_kernels.capability import attention_backends

    found = {"environment": describe(), "attention": [asdict(backend) for backend in attention_backends()]}
    if as_json:
        print_json(found)
    else:
        render.doctor(found)
