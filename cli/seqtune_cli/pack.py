"""`seqtune pack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seqtune_cli.words import Json, Words  # noqa: TC001 -- Typer reads the annotations

DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what packing would give, beside other packings.")]
Inspect = Annotated[
    int, typer.Option("--inspect", metavar="N", help="Show N rows: documents, and which tokens are trained.")
]
Plot = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Draw lengths of documents and fill of rows as PNG.")
]


def pack(
    words: Words = None, dry_run: DryRun = False, inspect: Inspect = 0, plot: Plot = None, as_json: Json = False
) -> None:
    """Tokenise and pack a recipe's data, check a pack, or merge the parts of several machines.

    Words of its own: out=DIR, workers=N, and shard=I/N for one part of N. `pack verify DIR` checks a pack;
    `pack merge PART PART out=DIR` makes one pack of parts.

    Example: seqtune pack recipe=sft_tiny out=packs/mine workers=2
    """
    from seqtune_cli import packs

    first, *rest = words or [""]
    if first == "verify":
        packs.verify(rest, as_json=as_json)
    elif first == "merge":
        packs.merge(rest, as_json=as_json)
    elif dry_run:
        packs.dry_run(words or [], as_json=as_json)
    else:
        packs.write(words or [], inspect=inspect, plot=plot, as_json=as_json)
