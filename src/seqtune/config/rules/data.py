"""Rules of the examples: one source, its columns, and objectives that can use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seqtune.config.axes import DataSpec, TemplateMathSpec
from seqtune.config.mixture import MixtureSpec
from seqtune.config.provenance import RANK
from seqtune.config.rules.violation import Violation
from seqtune.errors import did_you_mean
from seqtune.registry import load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from seqtune.config.plan import Stage
    from seqtune.config.provenance import ComposedStage


def one_source(stage: Stage) -> Iterator[Violation]:
    data = stage.data
    if isinstance(data, DataSpec) and data.name is None and data.path is None:
        yield Violation("no data: neither data.path nor data.name is set", ("data.path", "data.name"), "data.path=FILE")
    if isinstance(data, DataSpec) and data.eval_path is not None and data.eval_size:
        yield Violation(
            "held-out examples come from data.eval_path and from data.eval_size at once",
            ("data.eval_size", "data.eval_path"),
            "data.eval_size=0",
        )


def two_sources(stage: Stage, given: ComposedStage) -> Iterator[Violation]:
    data = stage.data
    name, path = (given.origin(f"data.{field}").kind for field in ("name", "path"))
    said = name != "default" and RANK[name] >= RANK[path]  # a plan read back was judged before, and tells no origins
    if isinstance(data, DataSpec) and data.name is not None and data.path is not None and said:
        yield Violation(
            "data.path and data.name both say where the examples are",
            ("data.name", "data.path"),
            "leave one out; data.path is read instead of the data.name of a group",
        )


def answer_column(stage: Stage) -> Iterator[Violation]:
    data = stage.data
    formats = ("prompt_answer", "prompt_completion", "groups")
    if isinstance(data, DataSpec) and data.answer_pattern and data.format not in formats:
        yield Violation(
            f"data.answer_pattern finds an answer, but data of the format '{data.format}' has none",
            ("data.answer_pattern", "data.format"),
            "data.answer_pattern=null",
        )


def chat_renders(stage: Stage) -> Iterator[Violation]:
    if stage.data.chat and stage.data.format in ("text", "messages"):
        yield Violation(
            f"data.chat renders prompts as chat turns, but data of the format '{stage.data.format}' has none",
            ("data.chat", "data.format"),
            "data.chat=false",
        )


def columns_of_the_format(stage: Stage) -> Iterator[Violation]:
    if not isinstance(stage.data, DataSpec):
        return
    entry: Any = load("seqtune.data.formats:FORMATS")[stage.data.format]
    fields = (*entry.fields, *entry.optional)
    for column in stage.data.columns:
        if column not in fields:
            yield Violation(
                f"data.columns.{column}: data of the format '{stage.data.format}' has no field '{column}'",
                (f"data.columns.{column}", "data.format"),
                did_you_mean(column, fields),
            )


def format_fits(stage: Stage) -> Iterator[Violation]:
    family, data = stage.objective.family, stage.data
    fits = {
        "sft": ("text", "prompt_completion", "messages"),
        "preference": ("preference", "groups"),
        "reward": ("preference", "groups"),
        "offline": ("groups",),
        "ranking": ("groups",),
    }.get(family)
    if fits and data.format not in fits:
        yield wrong_format(stage, " or ".join(fits))
    if family == "policy" and isinstance(data, TemplateMathSpec) and data.format == "preference":
        yield wrong_format(stage, "prompt_completion or groups")


def wrong_format(stage: Stage, fits: str) -> Violation:
    return Violation(
        f"objective '{stage.objective.name}' cannot use data of the format '{stage.data.format}'",
        ("data.format", "objective.name"),
        f"data of the format {fits}, or another objective",
    )


def mixture_is_streamed(stage: Stage) -> Iterator[Violation]:
    data, packing, train = stage.data, stage.packing, stage.train
    if not isinstance(data, MixtureSpec):
        return
    if stage.objective.family != "sft":
        yield Violation(
            f"a mixture is trained on as it is read, which objective '{stage.objective.name}' cannot",
            ("data.name", "objective.name"),
            "objective=sft, or data of one source",
        )
        return
    if not packing.is_online:
        yield Violation(
            f"packing '{packing.name}' sees all documents before it makes a row, and a mixture is a stream",
            ("packing.name", "data.name"),
            "packing=online_best_fit",
        )
    if packing.order.name != "shuffle":
        yield Violation(
            f"packing.order '{packing.order.name}' chooses among all rows, and a mixture is a stream",
            ("packing.order.name", "data.name"),
            "leave packing.order out; data.shuffle and the weights of data.sources decide what comes when",
        )
    endless = data.stop == "cycle" and any(source.epochs is None for source in data.sources)
    if train.max_steps is None and endless:
        yield Violation(
            "a mixture that begins again when it ends has no epochs to train",
            ("train.max_steps", "data.stop"),
            "train.max_steps=1000, or data.stop=all_exhausted",
        )
    if train.max_steps is None and train.epochs != 1:
        yield Violation(
            f"train.epochs={train.epochs:g} passes of a mixture, which is read once",
            ("train.epochs", "data.name"),
            "data.sources[*].epochs says how often each source is read; train.epochs=1",
        )
    for source in data.sources:
        if source.chat and source.format != "prompt_completion":
            yield Violation(
                f"chat renders prompts as chat turns, but the source '{source.path}' of the format '{source.format}' "
                "has none",
                ("data.sources",),
                "chat: false",
            )
