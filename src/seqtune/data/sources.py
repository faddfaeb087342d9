"""Examples from local files, saved datasets, the hub or a generator, split into train and held-out."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow as pa

from seqtune import hub
from seqtune.config.axes import DataSpec, TemplateMathSpec
from seqtune.config.mixture import MixtureSpec
from seqtune.data import files, rows
from seqtune.errors import SeqtuneError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path


@dataclass(frozen=True)
class Examples:
    """What a data spec gives.

    Args:
        train: Examples to train on, in the order they were read.
        heldout: Examples kept apart; none shares its prompt (or text) with a training example of the same source.
        skipped: Rows left out, counted by reason.
    """

    train: datasets.Dataset
    heldout: datasets.Dataset
    skipped: dict[str, int]


def load(spec: DataSpec | TemplateMathSpec | MixtureSpec) -> Examples:
    """Read, check and split the examples of a data spec. Of a mixture only the held-out ones: the rest is a stream.

    Columns are those of `seqtune.data.formats`, then those the data has beyond them, then `rows.WHERE`.

    Raises:
        SeqtuneError: Nothing is found or readable, a row is bad and `on_error` is `error`, no example is left, or the
            held-out set cannot be made.
    """
    if isinstance(spec, TemplateMathSpec):
        return _template_math(spec)
    if isinstance(spec, MixtureSpec):
        return _mixture(spec)
    if spec.name is None and spec.path is None:
        raise SeqtuneError(
            "data has neither a path nor a hub name",
            "data.path and data.name",
            "give one of them: data.path=examples.jsonl, or data.name=openai/gsm8k",
        )
    if spec.eval_path is not None and spec.eval_size:
        raise SeqtuneError(
            "the held-out examples are asked for twice", "data.eval_path and data.eval_size", "drop one of the two"
        )
    read = rows.reader(spec.format, spec.columns, answer_pattern=spec.answer_pattern, chat=spec.chat)
    bad = rows.BadRows(spec.on_error)
    if spec.path is not None:
        _apart(spec)
        found = _good(_local(spec.path, spec, "data.path"), read, bad, spec.limit)
    else:
        found = _good(_hub(spec), read, bad, spec.limit)
    apart = _good(_local(spec.eval_path, spec, "data.eval_path"), read, bad, None) if spec.eval_path else []
    skipped = bad.close()
    for part, where in ((found, "data.path" if spec.path else "data.name"), (apart, "data.eval_path")):
        if not part and (part is found or spec.eval_path):
            why = f": {', '.join(f'{reason} {count}' for reason, count in skipped.items())}" if skipped else ""
            raise SeqtuneError(f"no usable example{why}", where, "mend the rows, or give other data")
    train, heldout = (found, apart) if spec.eval_path else _split(found, spec.eval_size, spec.seed)
    return _examples(train, heldout, skipped)


def fingerprints(spec: DataSpec | TemplateMathSpec | MixtureSpec) -> list[dict[str, str]]:
    """What the examples came from: path and sha256 of each local file, or the name of another source."""
    if isinstance(spec, MixtureSpec):
        return [found for source in spec.sources for found in fingerprints(DataSpec(path=source.path))]
    if isinstance(spec, TemplateMathSpec) or spec.path is None:
        return [{"name": str(spec.name)}]
    found = []
    for place in files.expand(spec.path, "data.path"):
        for path in sorted(place.rglob("*.arrow")) if place.is_dir() else [place]:
            with path.open("rb") as file:
                found.append({"path": str(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()})
    return found


def _template_math(spec: TemplateMathSpec) -> Examples:
    from seqtune.data.template_math import problems

    parts = [
        [{**row, rows.WHERE: f"template_math:{kind} {index}"} for index, row in enumerate(part, 1)]
        for kind, part in zip(("train", "held-out"), problems(spec), strict=True)
    ]
    train, heldout = (rows.to_turns(part) if spec.chat else part for part in parts)
    return _examples(train, heldout, {})


def _mixture(spec: MixtureSpec) -> Examples:
    nothing = _examples([], [], {})
    if spec.eval_path is None:
        return nothing
    first = spec.sources[0]
    said = first.model_dump(include={"format", "columns", "chat", "text_by"})
    apart = load(DataSpec(path=spec.eval_path, on_error=spec.on_error, **said))
    return Examples(nothing.train, apart.train, apart.skipped)


def _good(
    raw: Iterable[files.Raw], read: Callable[[Mapping[str, Any]], rows.Row], bad: rows.BadRows, limit: int | None
) -> list[rows.Row]:
    good: list[rows.Row] = []
    for where, row in raw:
        if len(good) == limit:
            break
        try:
            if isinstance(row, rows.BadRow):
                raise row
            good.append({**read(row), rows.WHERE: where})
        except rows.BadRow as fault:
            bad.add(where, fault)
    return good


def _local(path: str | tuple[str, ...], spec: DataSpec, where: str) -> Iterable[files.Raw]:
    for place in files.expand(path, where):
        if place.is_dir():
            yield from _saved(place, spec.split, where)
        else:
            yield from files.read(place, spec.text_by)


def _apart(spec: DataSpec) -> None:
    if spec.path is None or spec.eval_path is None:
        return
    trained = {place.resolve() for place in files.expand(spec.path, "data.path")}
    for place in files.expand(spec.eval_path, "data.eval_path"):
        if place.resolve() in trained:
            raise SeqtuneError(
                f"'{place}' is both trained on and held out",
                "data.path and data.eval_path",
                "give another file, or hold some of it out with data.eval_size=0.1",
            )


def _saved(folder: Path, split: str, where: str) -> Iterable[files.Raw]:
    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, pa.ArrowInvalid) as error:
        raise SeqtuneError(f"the saved dataset '{folder}' cannot be read: {_first(error)}", where) from error
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise SeqtuneError(f"'{folder}' has no split '{split}'", "data.split", did_you_mean(split, saved))
        saved = saved[split]
    yield from _numbered(saved, str(folder))


def _hub(spec: DataSpec) -> Iterable[files.Raw]:
    name, _, configuration = str(spec.name).partition(":")
    hub.settle()
    try:
        found = datasets.load_dataset(name, configuration or None, split=spec.split)
    except (OSError, ValueError, RuntimeError) as error:  # what datasets raises for network, name, configuration, split
        raise SeqtuneError(
            f"the dataset '{spec.name}' cannot be had from the hub: {_first(error)}",
            "data.name",
            "check the network, the name (owner/name:configuration) and data.split; "
            "or save it elsewhere and give data.path=FOLDER; or data=template_math, which needs no download",
        ) from error
    yield from _numbered(found, str(spec.name))


def _numbered(dataset: datasets.Dataset, name: str) -> Iterable[files.Raw]:
    number = 0
    for batch in dataset.with_format("arrow").iter(1000):
        for row in batch.to_pylist():
            number += 1
            yield f"{name}:row {number}", row


def _split(found: list[rows.Row], size: float, seed: int) -> tuple[list[rows.Row], list[rows.Row]]:
    """Hold out `size` examples (a count, or a fraction), at most; examples with one key stay on one side.

    Keys are ranked by a hash of seed and key, so the choice does not depend on the order of the rows.
    """
    if not size:
        return found, []
    wanted = max(1, round(size * len(found))) if isinstance(size, float) else size
    if wanted >= len(found):
        raise SeqtuneError(
            f"{wanted} of {len(found)} examples cannot be held out: none is left to train on",
            "data.eval_size",
            f"data.eval_size is at most {len(found) - 1}",
        )
    groups: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(found):
        groups[rows.key(row)].append(index)
    held: set[int] = set()
    for name in sorted(groups, key=lambda name: hashlib.sha256(f"{seed}\n{name}".encode()).digest()):
        if len(held) + len(groups[name]) <= wanted:
            held.update(groups[name])
    if not held:
        smallest = min(len(group) for group in groups.values())
        raise SeqtuneError(
            f"no {wanted} examples can be held out: every prompt (or text) occurs at least {smallest} times",
            "data.eval_size",
            f"data.eval_size={smallest} or more, or data.eval_path=FILE",
        )
    return [row for i, row in enumerate(found) if i not in held], [row for i, row in enumerate(found) if i in held]


def _examples(train: list[rows.Row], heldout: list[rows.Row], skipped: dict[str, int]) -> Examples:
    table = _dataset([*train, *heldout])  # one table, so that both parts have the same columns and types
    cut = len(train)
    return Examples(_cut(table, 0, cut), _cut(table, cut, len(table)), skipped)


def _cut(table: datasets.Dataset, start: int, stop: int) -> datasets.Dataset:
    return datasets.Dataset(table.data.slice(start, stop - start), info=table.info.copy())


def _dataset(found: list[rows.Row]) -> datasets.Dataset:
    names = {name: None for row in found for name in row if name != rows.WHERE} | {rows.WHERE: None}
    columns = {}
    for name in names:
        values = [row.get(name) for row in found]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, OverflowError) as error:
            kinds = Counter(type(value).__name__ for value in values)
            raise SeqtuneError(
                f"column '{name}' mixes types ({', '.join(kinds)}): {_first(error)}",
                "data.path",
                "make it one type in every row, or remove the column",
            ) from error
    return datasets.Dataset(pa.table(columns))


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
