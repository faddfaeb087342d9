"""What packing, isolation and the order of lengths do to the loss: real runs of a small model, three seeds each.

    OMP_NUM_THREADS=1 python tests/benchmarks/packing_quality.py [--quick] [--steps N] [--seeds N] [--write]

The data are the functions and classes of the Python standard library, one document each, as bytes; the model is
`model=tiny`. Every way of packing trains the same number of steps of about as many tokens, with the same learning
rate, and is measured on the same held-out documents, each read alone. Seconds are those of training, without measuring.
`--write` puts the table into docs/benchmarks.md and the plot beside it.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import statistics
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from common import write_section
from datasets import Dataset
from matplotlib.figure import Figure

from seqtune.config.axes import DataSpec, EvalSpec, TinyModelSpec, TrainSpec
from seqtune.config.order import Cycles, GrowLength
from seqtune.config.plan import Plan, Stage
from seqtune.config.reading import dump
from seqtune.data.sources import Examples
from seqtune.models.load import load_model, load_tokenizer
from seqtune.objectives.specs.sft import Sft as SftSpec
from seqtune.packing.order import average_context
from seqtune.packing.specs import BestFit, DatasetDecomposition, Unpacked, Wrapped
from seqtune.parallel.specs import Single
from seqtune.peft.specs import Full
from seqtune.report.run_folder import RunFolder
from seqtune.training import sft
from seqtune.training.forest import Scored
from seqtune.training.run import quiet
from seqtune.training.stage import StageRun

if TYPE_CHECKING:
    from seqtune.config.spec import PackingSpec

ROOT = Path(__file__).parents[2]
CAPACITY, ROWS, SHORTEST = 2048, 2, 64
MODEL = TinyModelSpec(name="tiny", hidden_size=64, layers=3, intermediate_size=192)
PLOT = ROOT / "docs" / "assets" / "packing-quality.png"
ABOUT = """Six ways to put the same documents into rows. Each trains a small model from scratch with the same learning
rate and number of steps, and is measured on the same held-out documents, each read alone."""
NOTES = f"""![Held-out loss against trained tokens and against seconds](assets/{PLOT.name})

{{steps}} steps, {{seeds}} seeds (± is their standard deviation, the band of the plot their range), one thread:
`OMP_NUM_THREADS=1 python tests/benchmarks/packing_quality.py --write`. The documents are the functions and classes of
the Python standard library as bytes, {CAPACITY:,} tokens a row, {ROWS} rows a step or as many tokens. *Context* is the
mean number of tokens that a trained token can attend to. *Padded* makes every document of a step as long as the
longest, as trainers without packing do. The last column is when a run reached the mean final loss of the first way."""


class Padded(sft.Sft):
    """What a padded batch computes: every document of a micro-batch is as long as the longest."""

    def sequences(self, rows: list[dict[str, Any]]) -> list[Scored]:
        found = super().sequences(rows)
        longest = max(len(one.ids) for one in found)
        return [
            Scored(
                np.pad(one.ids, (0, longest - len(one.ids)), constant_values=256),
                np.pad(one.mask, (0, longest - len(one.mask))),
            )
            for one in found
        ]


@dataclass(frozen=True)
class Way:
    """One way to make rows of documents and to take them."""

    name: str
    packing: PackingSpec
    trainer: type[sft.Sft] = sft.Sft
    train: tuple[tuple[str, Any], ...] = (("batch_size", ROWS), ("tokens_per_batch", ROWS * CAPACITY))


@dataclass(frozen=True)
class Curve:
    """One run: at each measurement the trained tokens, the seconds of training and the held-out loss in nats."""

    tokens: list[int]
    seconds: list[float]
    losses: list[float]
    context: float
    """Tokens a trained token can attend to, averaged."""


def ways(mean: float) -> list[Way]:
    """The ways compared; `mean` tokens of a piece of one say how many of them padded batches take."""
    packed: dict[str, Any] = {"capacity": CAPACITY, "on_overflow": "split"}
    together = max(1, round(ROWS * CAPACITY / mean))
    return [
        Way("best fit, isolated", BestFit(**packed)),
        Way("best fit, not isolated", BestFit(**packed, attention="causal")),
        Way("padded", Unpacked(**packed), Padded, (("batch_size", together),)),
        Way("concatenate and cut", Wrapped(capacity=CAPACITY, attention="causal")),
        Way("decomposition", DatasetDecomposition(capacity=CAPACITY, shortest=SHORTEST, order=Cycles(cycles=8))),
        Way(
            "growing lengths",
            Wrapped(capacity=CAPACITY, attention="causal", order=GrowLength(name="growlength", shortest=SHORTEST)),
        ),
    ]


def documents() -> list[str]:
    """Functions and classes of the standard library, in an order of their own."""
    found = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            source = path.read_text(encoding="utf-8")
            body = ast.parse(source).body
        except (SyntaxError, UnicodeDecodeError):
            continue
        lines = source.splitlines(keepends=True)
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.append("".join(lines[node.lineno - 1 : node.end_lineno]))
    random.Random(0).shuffle(found)
    return found


def run(way: Way, train: Dataset, heldout: Dataset, *, steps: int, seed: int, folder: Path) -> Curve:
    """Train once."""
    spec = {
        "max_steps": steps,
        "learning_rate": 3e-3,
        "warmup": 0.1,
        "schedule": "cosine",
        "seed": seed,
        **dict(way.train),
    }
    stage = Stage(
        name="sft",
        model=MODEL.model_copy(update={"seed": seed}),
        data=DataSpec(path="standard library"),
        packing=way.packing.model_copy(update={"seed": seed}),
        objective=SftSpec(),
        peft=Full(),
        parallel=Single(),
        train=TrainSpec(**spec, eval_every=max(1, steps // 10), log_every=steps),
        eval=EvalSpec(),
    )
    made_in = RunFolder(folder)
    made_in.create(dump(Plan(recipe="packing_quality", stages=(stage,))), {}, {})
    quiet()
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(stage.model)
    job = StageRun(
        stage=stage,
        index=0,
        stages=1,
        folder=made_in,
        watch=lambda event: None,
        model=load_model(stage.model),
        tokenizer=tokenizer,
        examples=Examples(train=train, heldout=train.select([]), skipped={}),
        checkpoint=None,
    )
    sft.Sft, before = way.trainer, sft.Sft
    try:
        trainer = sft.trainer(job)
    finally:
        sft.Sft = before
    alone = stage.model_copy(update={"packing": Unpacked(capacity=CAPACITY, on_overflow="truncate")})
    trainer.eval_rows = sft.packed_for(alone, heldout, tokenizer, heldout=True).dataset
    trainer.recorder.heldout = True
    tokens, seconds, losses, lengths = [0], [0.0], [], []
    measuring, began, taken = 0.0, 0.0, 0
    evaluate, micro_batches = trainer.evaluate, trainer.micro_batches

    def measure(*args: Any, **kwargs: Any) -> dict[str, float]:
        nonlocal measuring
        start = time.perf_counter()
        tokens.append(taken)
        seconds.append(start - began - measuring)
        found = evaluate(*args, **kwargs)
        losses.append(found["eval/loss"])
        measuring += time.perf_counter() - start
        return found

    def count(inputs: Any) -> list[Any]:
        nonlocal taken
        taken += sum(len(row["input_ids"]) for row in inputs.rows)
        lengths.extend(size for row in inputs.rows for size in row["seq_lengths"])
        return micro_batches(inputs)

    losses.append(evaluate()["eval/loss"])
    trainer.evaluate, trainer.micro_batches = measure, count
    began = time.perf_counter()
    trainer.train()
    return Curve(tokens, seconds, losses, average_context(np.array(lengths)))


def reached(curve: Curve, loss: float) -> float | None:
    """Seconds until the loss was first as low, between measurements on a line; None if it never was."""
    for at in range(1, len(curve.losses)):
        if curve.losses[at] <= loss:
            share = (curve.losses[at - 1] - loss) / (curve.losses[at - 1] - curve.losses[at])
            return curve.seconds[at - 1] + share * (curve.seconds[at] - curve.seconds[at - 1])
    return None


def table(curves: dict[str, list[Curve]]) -> str:
    """The comparison as Markdown; the first way is what the others are compared with."""
    target = statistics.mean(curve.losses[-1] for curve in next(iter(curves.values())))
    lines = [
        "| rows | held-out loss | trained tokens | seconds | context | seconds to the loss of the first |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in curves.items():
        last = [curve.losses[-1] for curve in runs]
        times = [reached(curve, target + 1e-9) for curve in runs]
        spread = f" ± {statistics.stdev(last):.3f}" if len(last) > 1 else ""
        there = [one for one in times if one is not None]
        when = f"{statistics.mean(there):.0f}" if len(there) == len(times) else f"in {len(there)} of {len(times)} runs"
        tokens, seconds, context = (
            statistics.mean(values)
            for values in zip(*((curve.tokens[-1], curve.seconds[-1], curve.context) for curve in runs), strict=True)
        )
        cells = (
            f"{statistics.mean(last):.3f}{spread}",
            f"{tokens / 1e6:.2f} M",
            f"{seconds:.0f}",
            f"{context:.0f}",
            when,
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(curves: dict[str, list[Curve]], place: Path) -> None:
    """Loss against tokens and against seconds: the mean of the seeds, and the range between them."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for name, runs in curves.items():
        losses = np.array([curve.losses for curve in runs])
        for axis, values, unit in ((axes[0], [c.tokens for c in runs], 1e6), (axes[1], [c.seconds for c in runs], 1.0)):
            at = np.mean(values, axis=0) / unit
            (line,) = axis.plot(at, losses.mean(axis=0), label=name, linewidth=1.5)
            axis.fill_between(
                at, losses.min(axis=0), losses.max(axis=0), alpha=0.15, color=line.get_color(), linewidth=0
            )
    lowest = min(curve.losses[-1] for runs in curves.values() for curve in runs)
    first = max(curve.losses[1] for runs in curves.values() for curve in runs)
    axes[0].set_ylim(lowest - 0.03, first)
    axes[0].set_xlabel("trained tokens, millions")
    axes[1].set_xlabel("seconds of training")
    axes[0].set_ylabel("held-out loss, nats a byte")
    axes[1].legend(frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)
    place.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(place, dpi=120, metadata={"Software": None})


def main() -> None:
    """Run every way with every seed."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--steps", type=int, default=120)
    words.add_argument("--seeds", type=int, default=3)
    words.add_argument("--quick", action="store_true", help="6 steps, one seed: to try it out")
    words.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md and its plot")
    words.add_argument("--out", type=Path, help="also write every curve to this JSON file")
    given = words.parse_args()
    steps, seeds = (6, 1) if given.quick else (given.steps, given.seeds)
    torch.set_num_threads(1)
    texts = [{"text": text} for text in documents()]
    heldout, train = Dataset.from_list(texts[:120]), Dataset.from_list(texts[120:])
    sizes = [len(one["text"].encode()) + 1 for one in texts]
    mean = sum(sizes) / sum(-(-size // CAPACITY) for size in sizes)
    with TemporaryDirectory() as folder:  # the first backward pass of a process takes longer than the others
        run(ways(mean)[0], train, heldout, steps=2, seed=0, folder=Path(folder) / "run")
    curves: dict[str, list[Curve]] = {}
    for seed in range(seeds):
        for way in ways(mean):
            with TemporaryDirectory() as folder:
                curve = run(way, train, heldout, steps=steps, seed=seed, folder=Path(folder) / "run")
            curves.setdefault(way.name, []).append(curve)
            print(f"{way.name}, seed {seed}: {curve.losses[-1]:.4f} after {curve.seconds[-1]:.1f} s", flush=True)
    found = table(curves)
    print(found)
    if given.out:
        given.out.write_text(json.dumps({name: [vars(curve) for curve in runs] for name, runs in curves.items()}))
    if given.write:
        plot(curves, PLOT)
        write_section(
            "What packing does to the loss", f"{ABOUT}\n\n{found}\n\n{NOTES.format(steps=steps, seeds=seeds)}"
        )


if __name__ == "__main__":
    sys.exit(main())
