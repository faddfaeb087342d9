"""Plans that train in a second, and a way to run one in a process of its own: `train|resume FOLDER [STAGE STEP]`."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqtune.config.axes import DataSpec, EvalSpec, TinyModelSpec, TrainSpec
from seqtune.config.plan import Plan, Stage
from seqtune.config.reading import dump, load
from seqtune.objectives.specs.a_lol import ALol, ALolKl, ALolSeq
from seqtune.objectives.specs.dpo import Dpo
from seqtune.objectives.specs.kto import Kto
from seqtune.objectives.specs.reward import Reward
from seqtune.objectives.specs.sft import Sft
from seqtune.objectives.specs.slic import Slic
from seqtune.objectives.specs.tempo import Tempo
from seqtune.packing.specs import BestFit, Unpacked
from seqtune.parallel.specs import Single
from seqtune.peft.specs import Full
from seqtune.report.events import Step
from seqtune.report.run_folder import RunFolder

if TYPE_CHECKING:
    from seqtune.report.events import Event

MODEL = TinyModelSpec(name="tiny", hidden_size=32, layers=2, heads=2, kv_heads=1, intermediate_size=64)
OBJECTIVES: dict[str, Any] = {
    **{"sft": Sft, "dpo": Dpo, "kto": Kto, "reward": Reward, "slic": Slic, "tempo": Tempo},
    **{kind.model_fields["name"].default: partial(kind, value="group_mean") for kind in (ALol, ALolSeq, ALolKl)},
}
FROM_GROUPS = ("slic", "tempo", "a_lol", "a_lol_seq", "a_lol_kl")


def write_data(folder: Path, rows: int = 24) -> Path:
    """Sums with a right and a wrong answer, good for every family."""
    path = folder / "sums.jsonl"
    made = [
        {
            "prompt": f"{n} + {n + 1} = ",
            "completion": f"{2 * n + 1}" + "." * (n % 4),
            "chosen": f"{2 * n + 1}",
            "rejected": f"{2 * n}, roughly" + "?" * (n % 3),
            "completions": [f"{2 * n + 1}", f"{2 * n}, roughly" + "?" * (n % 3), f"{2 * n + 1}.", f"{n}"][: 3 + n % 2],
            "scores": [1.0, 0.0, 0.5, 0.25][: 3 + n % 2],
        }
        for n in range(rows)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def stage(kind: str, source: Path, *, name: str | None = None, **given: Any) -> Stage:
    """One stage; `train` adds to the defaults, the other axes replace them."""
    train = {"learning_rate": 1e-3, "batch_size": 2, "accumulate": 2, "max_steps": 6, **given.pop("train", {})}
    form = "prompt_completion" if kind == "sft" else "groups" if kind in FROM_GROUPS else "preference"
    axes: dict[str, Any] = {
        "model": MODEL,
        "data": DataSpec(path=str(source), format=form, eval_size=4),
        "packing": (BestFit if kind == "sft" else Unpacked)(capacity=64),
        "objective": OBJECTIVES[kind](),
        "peft": Full(),
        "parallel": Single(),
        "train": TrainSpec(**train),
        "eval": EvalSpec(),
        **given,
    }
    return Stage(name=name or kind, **axes)


def create(folder: Path, *stages: Stage) -> RunFolder:
    """A run folder with the plan of these stages."""
    run = RunFolder(folder)
    run.create(dump(Plan(recipe="tiny", stages=stages)), {}, {})
    return run


def plan_of(run: RunFolder) -> Plan:
    """The plan a run folder holds."""
    return load(run.plan_text())


def comparable(run: RunFolder) -> list[dict[str, Any]]:
    """The rows of a run without what a clock decides."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in run.metrics()]


def weights(run: RunFolder, stage: str) -> dict[str, str]:
    """sha256 of every tensor file a finished stage left."""
    place = run.path / "checkpoints" / stage / "final"
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in place.glob("*.safetensors")}


def main(word: str, place: str, stage: str = "", step: str = "0") -> None:
    """`train FOLDER STAGE STEP` kills this process with SIGKILL when that row of that stage is logged."""
    from seqtune.training.run import resume, train

    def say(event: Event) -> None:
        if isinstance(event, Step) and (event.row["stage"], event.row["step"]) == (stage, int(step)):
            os.kill(os.getpid(), signal.SIGKILL)

    run = RunFolder(Path(place))
    if word == "train":
        train(plan_of(run), folder=run, watch=say)
    else:
        resume(run, watch=say)


if __name__ == "__main__":
    main(*sys.argv[1:])
