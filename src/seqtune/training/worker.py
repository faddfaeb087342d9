"""One process of a stage that several train: `python -m seqtune.training.worker RUN STAGE`, under a launcher."""

from __future__ import annotations

import sys
from pathlib import Path

from seqtune.parallel.launch import to_launcher


def main(folder: str, stage: str) -> None:
    """Train one stage of a run as one of its processes, reporting to the process that launched it."""
    with to_launcher() as send:
        from seqtune.config.reading import load
        from seqtune.report.events import to_json
        from seqtune.report.run_folder import RunFolder
        from seqtune.training.run import run_stage

        run = RunFolder(Path(folder))
        plan = load(run.plan_text())
        index = [one.name for one in plan.stages].index(stage)
        run_stage(plan, run, index, lambda event: send(to_json(event)))


if __name__ == "__main__":
    main(*sys.argv[1:])
