"""Everything that is drawn: tables, the live panel of a run, plain lines where there is no terminal."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from seqtune.report.events import Evaluated, Notice, RunFinished, RunStarted, StageStarted, Step, to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from rich.console import RenderableType

    from seqtune.config.plan import Plan
    from seqtune.report.events import Event, Watch
    from seqtune.training.audit import Proof

BARS = "▁▂▃▄▅▆▇█"
WIDTH_OF_A_FILE = 160
"""Columns of what is written to a file or a pipe, where no terminal says how many there are."""


def console() -> Console:
    """Standard output, wide where it is no terminal so that tables keep their words whole."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE)


def say(out: Console, text: str, style: str = "") -> None:
    """A line of text: wrapped on a terminal, in one piece elsewhere, so that a log can be searched by lines."""
    out.print(Text(text, style=style), soft_wrap=not out.is_terminal)


def table(
    rows: Sequence[Sequence[Any]], header: Sequence[str] = (), numbers: Sequence[int] = (), whole: int | None = None
) -> Table:
    """Aligned columns without lines; `numbers` are the right-aligned ones, the first `whole` are never wrapped (all but
    the last)."""
    drawn = Table(box=None, show_header=bool(header), header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    columns = len(rows[0]) if rows else len(header)
    for column in range(columns):
        drawn.add_column(
            header[column] if header else "",
            justify="right" if column in numbers else "left",
            overflow="fold",
            no_wrap=column < (columns - 1 if whole is None else whole),
        )
    for row in rows:
        drawn.add_row(*(Text(str(cell)) for cell in row))
    return drawn


def short(value: Any) -> str:
    """A value as a recipe would write it."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, ensure_ascii=False, default=str)


def plan_table(plan: Plan) -> None:
    """What is about to be trained, a column for each stage."""
    from seqtune_cli.explain import batch

    rows: dict[str, list[str]] = {}
    for index, stage in enumerate(plan.stages):
        train = stage.train
        length = f"{train.max_steps:,} steps" if train.max_steps is not None else f"{train.epochs:g} epochs"
        said = {
            "model": stage.model.name,
            "data": _source(stage.data),
            "packing": f"{stage.packing.name}, {stage.packing.capacity:,} tokens",
            "order": stage.packing.order.name if stage.packing.order.name != "shuffle" else "",
            "objective": stage.objective.name,
            "peft": stage.peft.name,
            "parallel": f"{stage.parallel.name}, processes: {stage.parallel.processes}",
            "rollout": f"{stage.rollout.name}, {stage.rollout.max_new_tokens:,} new tokens" if stage.rollout else "",
            "reward": stage.reward.name if stage.reward and stage.rollout else "",
            "train": f"{length}, learning rate {train.learning_rate:g}, {train.schedule}",
            "batch": ", ".join(f"{value:,} {what}" for what, value in list(batch(stage).items())[:1]),
            "eval": stage.eval.name,
        }
        for key, value in said.items():
            rows.setdefault(key, [""] * len(plan.stages))[index] = str(value)
    shown = [[key, *cells] for key, cells in rows.items() if any(cells)]
    console().print(table(shown, [plan.recipe, *(stage.name for stage in plan.stages)], whole=1))


def _source(data: Any) -> str:
    path = getattr(data, "path", None)
    where = data.name if path is None else path if isinstance(path, str) else ", ".join(path)
    return f"{where} ({data.format})"


def explained(found: Mapping[str, Any]) -> None:
    """What `seqtune show` prints."""
    out = console()
    for stage in found["stages"]:
        rows = [[path, short(one["value"]), one["origin"]] for path, one in stage["values"].items()]
        header: tuple[str, ...] = ("value", "is", "set by")
        if sum(max(map(len, column)) + 2 for column in zip(*rows, strict=True)) > out.width:
            header = ("value", "is (set by)")
            rows = [[path, is_ if origin == "default" else f"{is_} ({origin})"] for path, is_, origin in rows]
        out.print(Text(f"{found['recipe']}: stage {stage['stage']}", style="bold"))
        out.print(table(rows, header))
        out.print()
        out.print(Text(stage["formula"]))
        out.print(Text(stage["source"], style="dim"))
        out.print()
        facts = [(what, f"{value:,}") for what, value in stage["batch"].items()]
        facts += [
            (f"parameters, {what}", f"{value:,}" if isinstance(value, int) else value)
            for what, value in stage["parameters"].items()
        ]
        out.print(table(facts))
        out.print()


def listed(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Names by kind, with who ships them and one line each."""
    out = console()
    for kind, rows in found.items():
        out.print(Text(kind, style="bold"))
        out.print(table([[f"  {row['name']}", row["origin"], row["about"]] for row in rows]))


def doctor(found: Mapping[str, Any]) -> None:
    """The environment, then what attention can run on."""
    out = console()
    out.print(Text("environment", style="bold"))
    out.print(table([[f"  {key}", short(value)] for key, value in _flat(found["environment"])]))
    out.print(Text("attention", style="bold"))
    backends = [
        [f"  {one['name']}", "usable" if one["usable"] else "not usable", one["reason"]] for one in found["attention"]
    ]
    out.print(table(backends))


def proofs(found: Mapping[str, Sequence[Proof]]) -> None:
    """What was checked of each stage, with what was found."""
    out = console()
    for stage, checks in found.items():
        out.print(Text(stage, style="bold"))
        rows = [
            [
                "  " + ("passed" if one.passed else "FAILED"),
                one.name,
                f"{one.found:.2g}",
                f"{one.limit:.2g}",
                one.detail,
            ]
            for one in checks
        ]
        out.print(table(rows, ("", "check", "found", "at most", "on what"), numbers=(2, 3)))


def note(event: Event) -> None:
    """Print what an event says to the user, if it says something."""
    _told(console(), event, quiet=False)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def summary(title: str, values: Mapping[str, Any]) -> None:
    """A title and its facts."""
    out = console()
    out.print(Text(title, style="bold"))
    out.print(table([[f"  {key}", short(value)] for key, value in _flat(values)]))


def evaluation(title: str, results: Mapping[str, Mapping[str, Any]], file: Path | None = None) -> None:
    """Every metric with its confidence interval and the number of items it is over."""
    out = console()
    rows = [
        [name, f"{one['value']:.4g}", f"{one['low']:.4g} to {one['high']:.4g}", f"{one['n']:,}"]
        for name, one in results.items()
    ]
    out.print(Text(title, style="bold"))
    out.print(table(rows, ("metric", "value", "interval", "items"), numbers=(1, 3)))
    if file is not None:
        out.print(Text(str(file), style="dim"))


def sparkline(values: Sequence[float], width: int) -> str:
    """The last values as bars, at most `width`; longer series are averaged over equal stretches."""
    if not values:
        return ""
    if len(values) > width:
        edges = [round(index * len(values) / width) for index in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(values), max(values)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in values)


def bar(done: int, of: int, width: int) -> Text:
    """A bar, filled in proportion."""
    filled = width * min(done, of) // max(1, of)
    return Text.assemble(("━" * filled, "green"), ("╌" * (width - filled), "dim"))


def clock(seconds: float) -> str:
    """`1:02:03`, or `2:03` below an hour."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@dataclass
class Progress:
    """Where a run is, from the events it sent."""

    folder: str = ""
    stage: str = ""
    place: str = ""
    """`stage 2 of 3`."""
    step: int = 0
    steps: int = 0
    first: tuple[int, int, float] | None = None
    """Step, tokens and seconds of the first row seen of the stage: rates are taken from there."""
    seconds: float = 0.0
    rate: float | None = None
    """Tokens a second."""
    left: float | None = None
    """Seconds to the end of the stage."""
    saving: float | None = None
    """Share of the tokens of a padded and repeated batch that the last logged steps did not compute."""
    curves: dict[str, list[float]] = field(default_factory=dict)
    """Loss and reward of the stage."""

    def see(self, event: Event) -> None:
        """Take in one event."""
        if isinstance(event, RunStarted):
            self.folder = event.folder
        elif isinstance(event, StageStarted):
            self.stage, self.place = event.stage, f"stage {event.index + 1} of {event.stages}"
            self.step, self.steps = 0, event.steps
            self.first, self.rate, self.left, self.curves = None, None, None, {}
        elif isinstance(event, Step):
            self._row(event.row, event.steps)

    def _row(self, row: Mapping[str, Any], steps: int) -> None:
        self.step, self.steps = int(row["step"]), steps
        tokens, self.seconds = int(row.get("tokens", 0)), float(row.get("seconds", 0.0))
        if self.first is None:
            self.first = (self.step, tokens, self.seconds)
        elif self.seconds > self.first[2] and self.step > self.first[0]:
            elapsed = self.seconds - self.first[2]
            self.rate = (tokens - self.first[1]) / elapsed
            self.left = (self.steps - self.step) * elapsed / (self.step - self.first[0])
        if isinstance(row.get("tokens/saving"), int | float):
            self.saving = float(row["tokens/saving"])
        for key in ("loss", "reward/mean"):
            if isinstance(row.get(key), int | float):
                self.curves.setdefault(key, []).append(float(row[key]))

    def line(self, row: Mapping[str, Any]) -> str:
        """One row of metrics as plain text."""
        parts = [f"{self.stage} {self.step}/{self.steps}"]
        shown = ["loss", "reward/mean", *(key for key in row if key.startswith("eval/"))]
        parts += [f"{key} {row[key]:.4g}" for key in shown if isinstance(row.get(key), int | float)]
        if self.rate is not None:
            parts.append(f"{self.rate:,.0f} tokens/s")
        if "tokens/saving" in row:
            parts.append(f"{row['tokens/saving']:.0%} saved")
        if self.left:
            parts.append(f"{clock(self.left)} left")
        return "  ".join(parts)

    def panel(self, width: int) -> RenderableType:
        """The live panel."""
        inner = max(20, width - 4)
        facts = [f"{self.step:,} of {self.steps:,} steps"]
        facts += [f"{clock(self.left)} left"] if self.left else []
        facts += [f"{self.rate:,.0f} tokens/s"] if self.rate is not None else []
        facts += [f"{self.saving:.0%} of the tokens saved"] if self.saving is not None else []
        lines: list[RenderableType] = [
            bar(self.step, self.steps, inner),
            Text("   ".join(facts), no_wrap=True, overflow="ellipsis"),
        ]
        for key, values in self.curves.items():
            head = f"{key.partition('/')[0]:<7}{values[-1]:>10.4g}  "
            lines.append(Text(head + sparkline(values, inner - len(head))))
        return Panel(
            Group(*lines),
            title=f"{self.stage}, {self.place}",
            subtitle=self.folder,
            title_align="left",
            subtitle_align="left",
            width=width,
        )


@contextmanager
def watching(*, quiet: bool, as_json: bool) -> Iterator[Watch]:
    """Draw a run while it goes: a live panel on a terminal, else a line a logged step; results alone when `quiet`.

    With `as_json` every event is one line of JSON.
    """
    if as_json:
        yield lambda event: print(json.dumps(to_json(event), ensure_ascii=False), flush=True)
        return
    out, progress = console(), Progress()
    if quiet or not out.is_terminal:
        yield lambda event: _plain(out, progress, event, quiet=quiet)
        return
    with Live(console=out, transient=True, refresh_per_second=4) as live:

        def watch(event: Event) -> None:
            progress.see(event)
            if not isinstance(event, Step | StageStarted):
                _told(live.console, event, quiet=False)
            if progress.stage:
                live.update(progress.panel(out.width))

        yield watch


def _plain(out: Console, progress: Progress, event: Event, *, quiet: bool) -> None:
    progress.see(event)
    if isinstance(event, Step) and not quiet:
        say(out, progress.line(event.row))
    elif isinstance(event, StageStarted) and not quiet:
        say(out, f"{event.stage}: {progress.place}, {event.steps:,} steps")
    else:
        _told(out, event, quiet=quiet)


def _told(out: Console, event: Event, *, quiet: bool) -> None:
    """What stays on the screen whatever else is drawn."""
    if isinstance(event, Evaluated):
        values = "  ".join(
            f"{name} {one['value']:.4g} ({one['low']:.4g} to {one['high']:.4g}, n={one['n']:,})"
            for name, one in event.results.items()
        )
        say(out, f"{event.label}: {values}", "bold")
    elif isinstance(event, RunFinished):
        say(out, f"done in {clock(event.seconds)}: {event.folder}")
    elif isinstance(event, Notice) and not quiet:
        say(out, f"note: {event.text}", "yellow")
    elif isinstance(event, RunStarted) and not quiet:
        say(out, event.folder, "dim")


@contextmanager
def progress(label: str, *, shown: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar of done and all on a terminal's stderr; nothing elsewhere."""
    out = Console(stderr=True)
    if not (shown and out.is_terminal):
        yield lambda done, of: None
        return
    with Live(console=out, transient=True, refresh_per_second=4) as live:
        yield lambda done, of: live.update(Group(Text(f"{label} {done:,} of {of:,}"), bar(done, of, 60)))
