"""`report.html`: one page that says what a run was, what it did and what came out, without a network or a script."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from seqtune.report.charts import Line, curves, intervals
from seqtune.report.run_folder import write_atomic

if TYPE_CHECKING:
    from pathlib import Path

    from seqtune.report.run_folder import RunFolder

SHARES = ("accuracy", "pass@", "maj@", "ended")
"""Beginnings of the metrics that are shares and shown in percent."""

FIRST = ("reward/mean", "loss", "rewards/margin", "rewards/accuracy", "train/token_accuracy", "completions/mean_length")
"""Metrics whose curves come first; the first two of a stage are large."""

LARGE = 2

LATEST = 48
"""Completions shown."""

PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}
"""Control characters, which HTML does not allow, and the pictures that stand for them."""


def write_report(folder: RunFolder) -> Path:
    """Write the report of a run, finished or not.

    Args:
        folder: Read whole: plan, provenance, environment, metrics, events, samples and the evaluations in `eval/`.

    Returns:
        Path of `report.html`.

    Raises:
        SeqtuneError: A file of the run is missing or damaged; names it.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(
        loader=PackageLoader("seqtune.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {"number": number, "clock": clock, "shown": shown, "visible": visible}
    text = pages.get_template("report.html.j2").render(**contents(folder))
    path = folder.path / "report.html"
    write_atomic(path, text)
    return path


def contents(folder: RunFolder) -> dict[str, Any]:
    """Everything the page shows."""
    plan = yaml.safe_load(folder.plan_text())
    metrics, events = folder.metrics(), folder.events()
    by_stage: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in metrics:
        by_stage[row["stage"]].append(row)
    steps = {event["stage"]: event["steps"] for event in events if event["event"] == "StageStarted"}
    stages = [_stage(stage, by_stage[stage["name"]], steps.get(stage["name"])) for stage in plan["stages"]]
    evaluations = _evaluations(folder, [stage["name"] for stage in plan["stages"]])
    return {
        "recipe": plan["recipe"],
        "folder": str(folder.path),
        "large": LARGE,
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        "stages": stages,
        "names": [stage["name"] for stage in plan["stages"]],
        "plan": _plan(plan, _optional(folder, "provenance.json").get("origins", {})),
        "words": _optional(folder, "provenance.json").get("words", []),
        "checks": _checks(folder, [stage["name"] for stage in plan["stages"]]),
        "evaluations": evaluations,
        "evaluation_charts": _evaluation_charts(evaluations["rows"]),
        "notices": list(dict.fromkeys(event["text"] for event in events if event["event"] == "Notice")),
        "samples": _samples(folder.samples()[-LATEST:]),
        "environment": list(_flat(_optional(folder, "environment.json"))),
    }


def number(value: float | None, percent: bool = False) -> str:
    """A number for reading: four digits that count, or percent with one decimal."""
    if value is None:
        return "–"
    if percent:
        return f"{100 * value:.1f} %"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.4g}"


def clock(seconds: float) -> str:
    """A duration: `42 s`, `3 min 20 s`, `5 h 07 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.3g} s"


def shown(value: Any) -> str:
    """A value of the plan as a recipe writes it."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return str(value)


def visible(text: str) -> str:
    """What a model wrote, with a picture in the place of each control character."""
    return text.translate(PICTURES)


class Stretch(NamedTuple):
    """Neighbouring tokens of a completion that have the same advantage.

    Args:
        text: What they say; a newline is marked, because it has no width to colour.
        kind: `good` (advantage above 0), `bad`, `nil` or `out` (left out of the loss).
        strength: |advantage| over the largest of its group, 0 to 1.
        title: The advantage and the number of tokens, in words.
        given: Whether a demonstration gave them.
    """

    text: str
    kind: str
    strength: float
    title: str
    given: bool


def credit(texts: list[str], advantages: list[float | None], scale: float, given: int = 0) -> list[Stretch]:
    """A completion cut where its advantage changes.

    Args:
        texts: Of the tokens.
        advantages: Of the tokens, as many; None is left out of the loss.
        scale: The |advantage| that has the full colour.
        given: How many of the first tokens a demonstration gave.
    """
    found = []
    numbers = [None if value is None else f"{value + 0.0:+.4g}" for value in advantages]
    places = (place < given for place in range(len(texts)))
    for (shown_as, lent), tokens in groupby(zip(texts, numbers, places, strict=True), key=lambda token: token[1:]):
        said = [token[0] for token in tokens]
        count = f"{len(said)} token{'s' if len(said) > 1 else ''}{' of a demonstration' if lent else ''}"
        text = visible("".join(said)).replace("\n", "↵\n") or "▯"
        if shown_as is None:
            found.append(Stretch(text, "out", 0.0, f"left out of the loss, {count}", lent))
            continue
        value = float(shown_as)
        kind = "good" if value > 0 else "bad" if value < 0 else "nil"
        strength = min(abs(value) / scale, 1.0) if scale else 0.0
        found.append(Stretch(text, kind, strength, f"advantage {shown_as}, {count}", lent))
    return found


def _samples(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Completions, with `credit` where tokens have advantages of their own: colours compare within a group."""
    largest: dict[tuple[Any, ...], float] = defaultdict(float)
    for row in rows:
        values = [abs(value) for value in row.get("advantages") or () if value is not None]
        largest[_group(row)] = max([largest[_group(row)], *values])
    return [
        row | {"credit": credit(row["pieces"], row["advantages"], largest[_group(row)], row.get("prefix_tokens", 0))}
        if row.get("pieces") and len(row["pieces"]) == len(row.get("advantages") or ())
        else row
        for row in rows
    ]


def _group(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["stage"], row["step"], row["prompt"]


def _stage(stage: dict[str, Any], rows: list[dict[str, Any]], steps: int | None) -> dict[str, Any]:
    """One line of the table of stages, and the charts of the stage."""
    trained = [row for row in rows if "loss" in row]
    heldout = [row["eval/loss"] for row in rows if row.get("eval/loss") is not None]
    losses = [row["loss"] for row in trained if row["loss"] is not None]
    rewards = [row["reward/mean"] for row in rows if row.get("reward/mean") is not None]
    computed, padded = (sum(row.get(f"tokens/{kind}") or 0 for row in rows) for kind in ("computed", "padded"))
    last = rows[-1] if rows else {}
    seconds, tokens = last.get("seconds") or 0.0, last.get("tokens") or 0
    train = stage["train"]
    rows_a_step = train["batch_size"] * train["accumulate"] * stage["parallel"]["processes"]
    step = last.get("step", 0)
    return {
        "name": stage["name"],
        "about": (
            f"{stage['objective']['name']} · {stage['peft']['name']} · {stage['packing']['name']} · "
            f"{stage['parallel']['name']} × {stage['parallel']['processes']}"
        ),
        "step": step,
        "steps": steps,
        "rows_a_step": rows_a_step,
        "tokens": tokens,
        "tokens_a_step": tokens / step if step else None,
        "throughput": tokens / seconds if seconds else None,
        "computed": computed,
        "padded": padded,
        "saving": 1 - computed / padded if padded else None,
        "seconds": seconds,
        "loss": _ends(losses),
        "heldout": _ends(heldout),
        "reward": _ends(rewards),
        "charts": _charts(stage["name"], rows),
    }


def _checks(folder: RunFolder, stages: list[str]) -> list[dict[str, Any]]:
    """What was proven of each stage before its first step, a line each."""
    return [
        {"stage": stage, **proof}
        for stage in stages
        if (folder.path / "proofs" / f"{stage}.json").is_file()
        for proof in folder.read_json(f"proofs/{stage}.json")
    ]


def _ends(values: list[float]) -> tuple[float, float] | None:
    return (values[0], values[-1]) if values else None


def _charts(stage: str, rows: list[dict[str, Any]]) -> list[str]:
    """A chart of every metric of a stage that changes, training and held-out values on one pair of axes."""
    series: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        for key, value in row.items():
            if isinstance(value, int | float) and key not in ("step", "tokens", "seconds"):
                series[key].append((row["step"], value))
    heldout = {key: _trained(key, series) for key in series if key.startswith("eval/")}
    keys = [key for key in series if key not in heldout]
    keys += [key for key, partner in heldout.items() if partner is None]
    keys.sort(key=lambda key: FIRST.index(key) if key in FIRST else len(FIRST))
    charts: list[str] = []
    for key in keys:
        lines = [Line("training", *zip(*series[key], strict=True))]
        for other, partner in heldout.items():
            if partner == key:
                lines.append(Line("held-out", *zip(*series[other], strict=True)))
        if any(len(set(line.values)) > 1 for line in lines):
            charts.append(curves(key, lines, salt=f"{stage}/{key}", wide=len(charts) < LARGE))
    return charts


def _trained(key: str, series: dict[str, Any]) -> str | None:
    """The training metric that the held-out metric `eval/…` belongs to."""
    name = key.removeprefix("eval/")
    candidates = (name, f"train/{name}", name.replace("_", "/", 1))
    return next((candidate for candidate in candidates if candidate in series), None)


def _evaluations(folder: RunFolder, stages: list[str]) -> dict[str, Any]:
    """The table of evaluations: the untrained model, the stages in order, then what was evaluated later."""
    records = [
        folder.read_json(str(path.relative_to(folder.path))) for path in sorted((folder.path / "eval").glob("*.json"))
    ]
    order = {name: place for place, name in enumerate(["untrained", *stages])}
    records.sort(key=lambda record: (order.get(record["label"], len(order)), record.get("time", "")))
    metrics: dict[str, None] = {}
    for record in records:
        metrics |= dict.fromkeys(record["metrics"])
    rows = [
        {
            "label": record["label"] if record["label"] in order else record["stage"],
            "about": "" if record["label"] in order else _about(record),
            "eval": record.get("eval", {}).get("name", ""),
            "metrics": record["metrics"],
        }
        for record in records
    ]
    return {"columns": [(name, name.startswith(SHARES)) for name in metrics], "rows": rows}


def _about(record: dict[str, Any]) -> str:
    data = record.get("data", {})
    source = data.get("eval_path") or data.get("path") or data.get("name") or ""
    return f"{source} {record.get('time', '')[:16].replace('T', ' ')}".strip()


def _evaluation_charts(rows: list[dict[str, Any]]) -> list[str]:
    charts = []
    for name in dict.fromkeys(name for row in rows for name in row["metrics"]):
        measured = [row for row in rows if name in row["metrics"]]
        if len(measured) > 1 and name not in ("length", "ended"):
            found = [row["metrics"][name] for row in measured]
            labels = [row["label"] + (f" ({row['eval']})" if row["about"] else "") for row in measured]
            charts.append(intervals(name, labels, [(one["value"], one["low"], one["high"]) for one in found]))
    return charts


def _plan(plan: dict[str, Any], origins: dict[str, dict[str, str]]) -> list[dict[str, Any]]:
    """The plan by axis; every value with who set it, and whether stages differ in it."""
    names = [stage["name"] for stage in plan["stages"]]
    values = [dict(_flat({key: value for key, value in stage.items() if key != "name"})) for stage in plan["stages"]]
    paths = dict.fromkeys(path for own in values for path in own)
    axes: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in paths:
        cells = []
        for name, own in zip(names, values, strict=True):
            set_by = _set_by(origins.get(name) or origins.get("all") or {}, path)
            cells.append({"value": own.get(path, ""), "absent": path not in own, "origin": set_by})
        differs = len({repr(cell["value"]) for cell in cells}) > 1
        axes[path.partition(".")[0]].append({"path": path, "cells": cells, "differs": differs})
    return [
        {"axis": axis, "rows": rows, "name": _name(rows), "differs": sum(row["differs"] for row in rows)}
        for axis, rows in axes.items()
    ]


def _set_by(origins: dict[str, str], path: str) -> str:
    """Who set a value, or the table or list it is part of; empty for a default."""
    while path:
        if path in origins:
            return "" if origins[path] == "default" else origins[path]
        path = path.rpartition(".")[0]
    return ""


def _name(rows: list[dict[str, Any]]) -> str:
    named = next((row for row in rows if row["path"].endswith(".name") and row["path"].count(".") == 1), None)
    if named is None:
        return ""
    return " → ".join(dict.fromkeys(str(cell["value"]) for cell in named["cells"] if cell["value"]))


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found


def _optional(folder: RunFolder, name: str) -> dict[str, Any]:
    found: dict[str, Any] = folder.read_json(name) if (folder.path / name).is_file() else {}
    return found
