"""Examples from local files, saved datasets, the hub or a generator, split into train and held-out."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa

from seqtune import hub
from seqtune.config.axes import DataSpec, TemplateMathSpec
from seqtune.config.mixture import MixtureSpec
from seqtune.data import files, rows
from seqtune.errors import SeqtuneError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray


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
    read = _reader(spec)
    bad = rows.BadRows(spec.on_error)
    found = [row for _, row in stream(spec, bad)]
    apart = (
        [row for _, row in _good(_local(spec.eval_path, spec, "data.eval_path"), read, bad, None)]
        if spec.eval_path
        else []
    )
    skipped = bad.close()
    for part, where in ((found, "data.path" if spec.path else "data.name"), (apart, "data.eval_path")):
        if not part and (part is found or spec.eval_path):
            raise nothing_usable(where, skipped)
    train, heldout = (found, apart) if spec.eval_path else _split(found, spec.eval_size, spec.seed)
    return _examples(train, heldout, skipped)


def load_heldout(spec: DataSpec | TemplateMathSpec | MixtureSpec) -> Examples:
    """As `load` without the training examples, which are not read unless the held-out ones are chosen among them."""
    if isinstance(spec, MixtureSpec) or spec.eval_size:
        examples = load(spec)
        return Examples(_cut(examples.train, 0, 0), examples.heldout, examples.skipped)
    if isinstance(spec, TemplateMathSpec) or spec.eval_path is None:
        return _examples([], [], {})
    alone = load(spec.model_copy(update={"path": spec.eval_path, "eval_path": None, "limit": None}))
    return Examples(_cut(alone.train, 0, 0), alone.train, alone.skipped)


def stream(
    spec: DataSpec | TemplateMathSpec, bad: rows.BadRows, seen: Callable[[int], None] = lambda size: None
) -> Iterator[tuple[int, rows.Row]]:
    """The good rows that examples are made of, one at a time, before any are held out: index of the source, and row.

    Args:
        spec: Says what is read.
        bad: Takes the others.
        seen: Told how many bytes of local files were read, again and again.

    Raises:
        SeqtuneError: Nothing is found or readable.
    """
    if isinstance(spec, TemplateMathSpec):
        yield from ((0, row) for row in _generated(spec)[0])
        return
    if spec.path is not None:
        _apart(spec)
        yield from _good(_local(spec.path, spec, "data.path", seen), _reader(spec), bad, spec.limit)
    else:
        yield from _good(((0, raw) for raw in _hub(spec)), _reader(spec), bad, spec.limit)


def heldout(keys: bytes | bytearray, size: float, seed: int) -> NDArray[np.int64]:
    """Which examples are held out: `size` (a count, or a fraction) at most, those of one key together.

    Keys are ranked by a hash, so the choice does not depend on the order of the rows.

    Args:
        keys: The `digest` of each example, one after another.
        size: A count, or a fraction of all.
        seed: That of the digests.

    Returns:
        Their positions, ascending.

    Raises:
        SeqtuneError: None is left to train on, or every key has more examples than are asked for.
    """
    ranks = np.frombuffer(keys, dtype=">u8").reshape(-1, 4)
    wanted = max(1, round(size * len(ranks))) if isinstance(size, float) else size
    if wanted >= len(ranks):
        raise SeqtuneError(
            f"{wanted} of {len(ranks)} examples cannot be held out: none is left to train on",
            "data.eval_size",
            f"data.eval_size is at most {len(ranks) - 1}",
        )
    order = np.lexsort(ranks.T[::-1])
    ordered = ranks[order]
    edges = np.flatnonzero((ordered[1:] != ordered[:-1]).any(axis=1)) + 1
    firsts, lasts = np.concatenate([[0], edges]), np.concatenate([edges, [len(order)]])
    held: list[int] = []
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        if len(held) + last - first <= wanted:
            held += order[first:last].tolist()
            if len(held) == wanted:
                break
    if not held:
        smallest = int((lasts - firsts).min())
        raise SeqtuneError(
            f"no {wanted} examples can be held out: every prompt (or text) occurs at least {smallest} times",
            "data.eval_size",
            f"data.eval_size={smallest} or more, or data.eval_path=FILE",
        )
    return np.sort(np.asarray(held, dtype=np.int64))


def digest(row: Mapping[str, Any], seed: int) -> bytes:
    """The rank of an example when some are held out; equal for examples that give one another away."""
    return hashlib.sha256(f"{seed}\n{rows.key(row)}".encode()).digest()


def nothing_usable(where: str, skipped: Mapping[str, int]) -> SeqtuneError:
    """The error of a source without a good row."""
    why = f": {', '.join(f'{reason} {count}' for reason, count in skipped.items())}" if skipped else ""
    return SeqtuneError(f"no usable example{why}", where, "mend the rows, or give other data")


def fingerprints(spec: DataSpec | TemplateMathSpec | MixtureSpec, *, read: bool = True) -> list[dict[str, Any]]:
    """What the examples came from: of each local file or folder path, bytes and sha256, or the name of another source.

    Args:
        spec: Says what is read.
        read: Without it files are not opened and have no sha256; one that is not there is `absent`.
    """
    if isinstance(spec, MixtureSpec):
        return [found for source in spec.sources for found in fingerprints(DataSpec(path=source.path), read=read)]
    if isinstance(spec, TemplateMathSpec) or spec.path is None:
        return [{"name": str(spec.name)}]
    try:
        places = files.expand(spec.path, "data.path")
    except SeqtuneError:
        if read:
            raise
        return [{"path": path, "absent": True} for path in ([spec.path] if isinstance(spec.path, str) else spec.path)]
    return [_fingerprint(place, read) for place in places]


def _fingerprint(place: Path, read: bool) -> dict[str, Any]:
    inside = sorted(place.rglob("*.arrow")) if place.is_dir() else [place]
    found: dict[str, Any] = {"path": str(place), "bytes": sum(path.stat().st_size for path in inside)}
    if read:
        hashes = []
        for path in inside:
            with path.open("rb") as file:
                hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
        # of a folder the hash of the hashes of its files
        found["sha256"] = hashes[0] if place.is_file() else hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    return found


def _reader(spec: DataSpec) -> Callable[[Mapping[str, Any]], rows.Row]:
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
    return rows.reader(spec.format, spec.columns, answer_pattern=spec.answer_pattern, chat=spec.chat)


def _template_math(spec: TemplateMathSpec) -> Examples:
    train, apart = _generated(spec)
    return _examples(train, apart, {})


def _generated(spec: TemplateMathSpec) -> tuple[list[rows.Row], list[rows.Row]]:
    from seqtune.data.template_math import problems

    parts = [
        [{**row, rows.WHERE: f"template_math:{kind} {index}"} for index, row in enumerate(part, 1)]
        for kind, part in zip(("train", "held-out"), problems(spec), strict=True)
    ]
    train, apart = (rows.to_turns(part) if spec.chat else part for part in parts)
    return train, apart


def _mixture(spec: MixtureSpec) -> Examples:
    nothing = _examples([], [], {})
    if spec.eval_path is None:
        return nothing
    first = spec.sources[0]
    said = first.model_dump(include={"format", "columns", "chat", "text_by"})
    apart = load(DataSpec(path=spec.eval_path, on_error=spec.on_error, **said))
    return Examples(nothing.train, apart.train, apart.skipped)


def _good(
    raw: Iterable[tuple[int, files.Raw]],
    read: Callable[[Mapping[str, Any]], rows.Row],
    bad: rows.BadRows,
    limit: int | None,
) -> Iterator[tuple[int, rows.Row]]:
    number = 0
    for source, (where, row) in raw:
        if number == limit:
            break
        try:
            if isinstance(row, rows.BadRow):
                raise row
            good = {**read(row), rows.WHERE: where}
        except rows.BadRow as fault:
            bad.add(where, fault)
            continue
        number += 1
        yield source, good


def _local(
    path: str | tuple[str, ...], spec: DataSpec, where: str, seen: Callable[[int], None] = lambda size: None
) -> Iterator[tuple[int, files.Raw]]:
    for source, place in enumerate(files.expand(path, where)):
        for raw in _saved(place, spec.split, where) if place.is_dir() else files.read(place, spec.text_by, seen):
            yield source, raw


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
    if not size:
        return found, []
    held = set(heldout(b"".join(digest(row, seed) for row in found), size, seed).tolist())
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
