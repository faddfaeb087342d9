"""`seqtune export`."""

from __future__ import annotations

from pathlib import Path

import typer

from seqtune_cli.words import Words, needed, take


def export(words: Words = None) -> None:
    """Write a run's model as plain safetensors.

    Adapters are merged. Example: seqtune export run=runs/NAME/TIME out=model
    """
    from seqtune.errors import SeqtuneError

    taken, rest = take(words, "run", "out")
    if rest:
        raise SeqtuneError(f"export takes run= and out= only, not {', '.join(rest)}", where="command line")
    run, out = needed(taken, "run", "run=runs/RECIPE/TIME"), needed(taken, "out", "out=DIR")
    from seqtune.training.export import export as write
    from seqtune.training.run import quiet
    from seqtune_cli.runs import existing

    quiet()
    typer.echo(f"wrote {write(existing(run), Path(out))}")
