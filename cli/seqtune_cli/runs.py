"""Starting and resuming runs: the run folder, the plan table, and whoever watches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from seqtune.errors import SeqtuneError
from seqtune_cli.words import print_json

if TYPE_CHECKING:
    from seqtune.config.plan import Plan
    from seqtune.config.provenance import Composed
    from seqtune.report.run_folder import RunFolder


def dry_run(plan: Plan, *, as_json: bool) -> None:
    """Print the resolved plan."""
    from seqtune_cli import render

    if as_json:
        print_json(plan.model_dump(mode="json"))
    else:
        render.plan_table(plan)


def start(plan: Plan, composed: Composed, *, out: str | None, quiet: bool, as_json: bool) -> None:
    """Create the run folder and train.

    Raises:
        SeqtuneError: As `seqtune.training.run.train`.
    """
    from seqtune.config.provenance import provenance
    from seqtune.config.reading import dump
    from seqtune.report.run_folder import new_run_folder
    from seqtune.training.places import check_files

    check_files(plan.stages)
    folder = new_run_folder(Path(plan.recipe).stem, Path(out) if out else None)  # refused before torch is imported
    from seqtune.report.environment import describe
    from seqtune.training.run import train
    from seqtune_cli import render

    names = tuple(stage.name for stage in plan.stages)
    folder.create(dump(plan), provenance(composed, names), describe())
    if not quiet and not as_json:
        render.plan_table(plan)
    try:
        with render.watching(quiet=quiet, as_json=as_json) as watch:
            train(plan, folder=folder, watch=watch)
    except KeyboardInterrupt:
        typer.echo(f"to go on: seqtune train --resume {folder.path}", err=True)
        raise


def resume(run: Path, *, given: list[str], quiet: bool, as_json: bool) -> None:
    """Go on with an interrupted run.

    Raises:
        SeqtuneError: Words were given that a resumed run cannot take, or as `seqtune.training.run.resume`.
    """
    if given:
        raise SeqtuneError(
            f"a resumed run keeps its plan; it cannot take {', '.join(given)}",
            where="command line",
            hint=f"seqtune train --resume {run}",
        )
    folder = existing(run)
    from seqtune.training.run import resume as go_on
    from seqtune_cli import render

    with render.watching(quiet=quiet, as_json=as_json) as watch:
        go_on(folder, watch=watch)


def existing(run: str | Path) -> RunFolder:
    """The run folder at a path.

    Raises:
        SeqtuneError: There is no run folder.
    """
    from seqtune.report.run_folder import RunFolder

    path = Path(run).expanduser()
    if not (path / "plan.yaml").is_file():
        raise SeqtuneError(f"'{run}' is not a run folder: it holds no plan.yaml", "command line", "runs/RECIPE/TIME")
    return RunFolder(path)
