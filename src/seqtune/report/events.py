"""What a run tells whoever watches it. Every event survives a round trip through JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class RunStarted:
    """A run begins or goes on, in `folder`, with the names of its stages in order."""

    folder: str
    stages: tuple[str, ...]


@dataclass(frozen=True)
class StageStarted:
    """The stage `stage`, number `index` (from 0) of `stages`, begins; it takes `steps` optimiser steps."""

    stage: str
    index: int
    stages: int
    steps: int


@dataclass(frozen=True)
class Step:
    """A row was added to metrics.jsonl; the stage has `steps` optimiser steps."""

    row: dict[str, Any]
    steps: int


@dataclass(frozen=True)
class Evaluated:
    """An evaluation of the model as `stage` left it, stored under `label`."""

    stage: str
    label: str
    results: dict[str, Any]


@dataclass(frozen=True)
class Notice:
    """Something the user should read."""

    text: str


@dataclass(frozen=True)
class RunFinished:
    """The run in `folder` is done after `seconds`."""

    folder: str
    seconds: float


Event = RunStarted | StageStarted | Step | Evaluated | Notice | RunFinished
Watch = Callable[[Event], None]

KINDS: dict[str, type[Event]] = {
    kind.__name__: kind for kind in (RunStarted, StageStarted, Step, Evaluated, Notice, RunFinished)
}


def to_json(event: Event) -> dict[str, Any]:
    """The event as plain JSON, its kind under `event`."""
    return {"event": type(event).__name__, **asdict(event)}


def from_json(data: dict[str, Any]) -> Event:
    """The event `to_json` wrote.

    Raises:
        KeyError: The kind is unknown.
    """
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in data.items() if key != "event"
    }
    return KINDS[data["event"]](**fields)
