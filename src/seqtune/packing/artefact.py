"""Packed rows on disk: a folder with `pack.json` and Arrow streams that `datasets.Dataset.from_file` also opens."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seqtune import __version__
from seqtune.config.order import GrowLength
from seqtune.errors import Problem, SeqtuneError
from seqtune.packing.bins import offsets_of
from seqtune.packing.pack import Packed, lists, portions
from seqtune.packing.tokens import open_table, sha256_of, write_json, write_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from concurrent.futures import Future
    from pathlib import Path

    from numpy.typing import NDArray

    from seqtune.config.spec import PackingSpec
    from seqtune.packing.arrange import Arranged
    from seqtune.packing.tokens import Store

SCHEMA = 2
MANIFEST = "pack.json"
SHARD_TOKENS = 2**24
"""Tokens of a row shard at most; one row may have more."""
_GATHER_TOKENS = 2**20  # tokens moved together: they and their indices stay in the processor's cache
_AGAIN = "write it again: seqtune pack … out={}"
_MOVED = {"name", "path", "eval_path"}
"""Fields of `data` that say where it lies. What it holds is compared by its fingerprints."""


@dataclass(frozen=True)
class Origin:
    """What packed rows were made from; rows made from anything else are refused.

    Args:
        tokenizer: Fingerprint of the tokenizer.
        template: Fingerprint of its chat template; empty when it has none.
        data: The data spec, as JSON.
        sources: Path, bytes and sha256 of each file read, or the name of another source.
        model: What the tokenizer was loaded by, as JSON; only `verify` reads it.
    """

    tokenizer: str
    template: str
    data: dict[str, Any]
    sources: list[dict[str, Any]]
    model: dict[str, Any]


class Row(NamedTuple):
    """One packed row, as views of the mapped file. `T` tokens in `K` chunks."""

    input_ids: NDArray[np.int32]
    """[T]"""
    loss_mask: NDArray[np.uint8]
    """1 where a token is trained. [T]"""
    seq_lengths: NDArray[np.int32]
    """Tokens of each chunk. [K]"""
    doc_ids: NDArray[np.int64]
    """Document of each chunk, counted over all that were read. [K]"""
    starts: NDArray[np.int32]
    """Token of its document at which each chunk starts. [K]"""
    sources: NDArray[np.int16]
    """Source of each chunk, an index of `sources` in `pack.json`. [K]"""


class Rows:
    """The rows of a pack, memory-mapped. Checks nothing: `read` and `verify` do.

    Args:
        folder: Of the pack.

    Raises:
        SeqtuneError: There is no pack, or a shard cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        self.manifest = manifest(folder)
        self._shards = [_columns(open_table(folder / shard["name"])) for shard in self.manifest["shards"]]
        self._firsts = offsets_of(np.array([shard["rows"] for shard in self.manifest["shards"]], dtype=np.int64))

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __getitem__(self, row: int) -> Row:
        if not 0 <= row < len(self):
            raise IndexError(row)
        shard = int(self._firsts.searchsorted(row, side="right")) - 1
        tokens, chunks, *columns = self._shards[shard]
        at = row - int(self._firsts[shard])
        whole, parts = slice(tokens[at], tokens[at + 1]), slice(chunks[at], chunks[at + 1])
        return Row(*(column[whole] for column in columns[:2]), *(column[parts] for column in columns[2:]))


def key(spec: PackingSpec, origin: Origin) -> str:
    """Fingerprint of everything that decides the rows; where the data lies is not part of it."""
    data = {name: value for name, value in origin.data.items() if name not in _MOVED}
    said = [SCHEMA, __version__, _settings(spec), origin.tokenizer, origin.template, data]
    canonical = json.dumps([*said, [_content(source) for source in origin.sources]], sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def write(
    folder: Path,
    arranged: Arranged,
    store: Store,
    spec: PackingSpec,
    origin: Origin,
    counts: dict[str, Any],
    tell: Callable[[float], None] = lambda done: None,
) -> None:
    """Write row shards and, last, the manifest into an empty folder that nobody reads yet.

    Args:
        folder: Where.
        arranged: Which tokens lie where.
        store: The tokens.
        spec: How they were packed.
        origin: What they were made from.
        counts: Those of `arranged`, and what else became of the documents.
        tell: Told the part done, 0 to 1.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shards: list[dict[str, Any]] = []
    written: list[Future[dict[str, Any]]] = []
    with ThreadPoolExecutor(1) as writer:  # a shard goes to disk while the next is gathered
        for first, last in portions(arranged.row_sizes(), SHARD_TOKENS):
            name = f"shard-{len(shards):05d}.arrow"
            table = _table(arranged, store, first, last)
            tokens = len(table.column("input_ids").chunk(0).values)
            if written:
                written[-1].result()  # two shards in memory, no more
            shards.append({"name": name, "rows": last - first, "tokens": tokens})
            written.append(writer.submit(write_table, folder / name, table))
            tell(last / len(arranged))
    shards = [{**shard, **done.result()} for shard, done in zip(shards, written, strict=True)]
    origin_said = asdict(origin)
    lengths = np.bincount(store.sources[arranged.chunks.documents], arranged.chunks.lengths, len(origin.sources))
    for source, tokens in zip(origin_said["sources"], lengths.tolist(), strict=True):
        source["tokens"] = int(tokens)
    write_json(
        folder / MANIFEST,
        {
            "schema": SCHEMA,
            "seqtune": __version__,
            "key": key(spec, origin),
            "packing": _settings(spec),
            "transforms": [],
            "counts": counts,
            "origin": origin_said,
            "shards": shards,
        },
    )


def publish(partial: Path, folder: Path) -> None:
    """Put a finished folder in its place; an older pack there steps aside first and then goes."""
    old = partial.with_name("old")
    shutil.rmtree(old, ignore_errors=True)
    try:
        if folder.exists():
            folder.replace(old)
        partial.replace(folder)
    finally:
        if old.exists() and not folder.exists():
            old.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def working(folder: Path, what: str) -> Iterator[Path]:
    """The folder beside `folder` in which it is made, for one process at a time. It stays when the work is cut short.

    Args:
        folder: What is to be made; it may hold a pack, or part of one, which is then replaced.
        what: Fingerprint of what goes into it: what another work left is thrown away.

    Raises:
        SeqtuneError: The folder holds something else, another process makes it, or the disk refuses.
    """
    folder = folder.absolute()
    if folder.exists() and not _ours(folder) and (folder.is_file() or any(folder.iterdir())):
        raise SeqtuneError(f"'{folder}' holds something that is no pack", "out", "give another folder: out=FOLDER")
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        with _locked(partial, folder):
            known = partial / "work.json"
            if not known.is_file() or known.read_text() != what:
                for entry in partial.iterdir():
                    if entry.is_dir():
                        shutil.rmtree(entry)
                known.write_text(what)
            yield partial
            shutil.rmtree(partial)
    except OSError as error:
        raise SeqtuneError(
            f"the pack cannot be written: {error.strerror or error}",
            str(error.filename or folder),
            f"what is finished is kept in {partial}; the same command goes on from there",
        ) from error


def read(folder: Path, spec: PackingSpec, origin: Origin) -> Packed:
    """Open a pack, memory-mapped, after checking every byte of it.

    Args:
        folder: Written by `seqtune pack`.
        spec: What the recipe says about packing; `path` is not compared.
        origin: What the rows must have been made from. Files may have moved: sources are compared by sha256, or only
            by size where it is left out because they are not read.

    Raises:
        SeqtuneError: Nothing is there, a shard is missing, cut short or altered, or the pack was made otherwise: every
            difference is named.
    """
    found = manifest(folder)
    try:
        _compare(folder, found, spec, origin)
        check_shards(folder, found)
        parts = [_for_training(folder / shard["name"], spec) for shard in found["shards"]]
        return Packed(datasets.concatenate_datasets(parts), found["counts"])
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, f"{MANIFEST} is not as it was written ({error})") from error


def check_shards(folder: Path, found: Mapping[str, Any]) -> None:
    """Compare every byte of the shards with what the manifest says.

    Raises:
        SeqtuneError: A shard is missing, cut short or altered.
    """
    for shard in found["shards"]:
        path = folder / shard["name"]
        if not path.is_file():
            raise _damaged(folder, f"shard '{shard['name']}' is missing")
        if path.stat().st_size != shard["bytes"]:
            raise _damaged(
                folder, f"shard '{shard['name']}' has {path.stat().st_size} bytes instead of {shard['bytes']}"
            )
        if sha256_of(path) != shard["sha256"]:
            raise _damaged(folder, f"shard '{shard['name']}' was altered: its sha256 differs from {MANIFEST}")


def verify(folder: Path, tell: Callable[[float], None] = lambda done: None) -> dict[str, Any]:
    """Check a pack: the bytes of its shards, the shape of every row, and its counts.

    Args:
        folder: Of the pack.
        tell: Told the part done, 0 to 1.

    Returns:
        `rows`, `tokens`, `trained`, `chunks`, `largest_id` and `shards`.

    Raises:
        SeqtuneError: Something is not as it was written.
    """
    found = manifest(folder)
    try:
        check_shards(folder, found)
        rows, capacity = Rows(folder), int(found["packing"]["capacity"])
        seen = dict.fromkeys(("rows", "tokens", "trained", "chunks", "largest_id"), 0)
        for number in range(len(rows)):
            row = rows[number]
            lengths = np.asarray(row.seq_lengths, dtype=np.int64)
            firsts = np.cumsum(lengths) - lengths
            size = len(row.input_ids)
            if not 0 < size <= capacity or lengths.sum() != size or (lengths < 1).any():
                raise _damaged(folder, f"row {number + 1} of {size} tokens has chunks of {lengths.tolist()}")
            if row.loss_mask[firsts].any() or row.loss_mask.max() > 1 or row.input_ids.min() < 0:
                raise _damaged(folder, f"row {number + 1} trains a first token, or holds what is no token")
            seen["rows"] += 1
            seen["tokens"] += size
            seen["trained"] += int(row.loss_mask.sum())
            seen["chunks"] += len(lengths)
            seen["largest_id"] = max(seen["largest_id"], int(row.input_ids.max()))
            tell((number + 1) / len(rows))
        for name in ("rows", "tokens", "trained"):
            if seen[name] != found["counts"][name]:
                raise _damaged(folder, f"there are {seen[name]} {name}, {MANIFEST} says {found['counts'][name]}")
        return {**seen, "shards": len(found["shards"])}
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, f"{MANIFEST} is not as it was written ({error})") from error


def manifest(folder: Path) -> dict[str, Any]:
    """What `pack.json` says.

    Raises:
        SeqtuneError: There is none, or it is damaged.
    """
    try:
        found: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SeqtuneError(
            f"'{folder}' is no pack: it has no {MANIFEST}", "packing.path", f"make one: seqtune pack … out={folder}"
        ) from error
    except (OSError, ValueError) as error:
        raise _damaged(folder, f"{MANIFEST} cannot be read: {error}") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise _damaged(folder, f"{MANIFEST} is not of schema {SCHEMA}")
    missing = {"packing", "counts", "origin", "shards"} - found.keys()
    if missing:
        raise _damaged(folder, f"{MANIFEST} lacks {', '.join(sorted(missing))}")
    return found


def _table(arranged: Arranged, store: Store, first: int, last: int) -> pa.Table:
    """The rows `first` to `last - 1`."""
    offsets = arranged.offsets[first : last + 1]
    chunks = arranged.chunks[slice(offsets[0], offsets[-1])]
    sizes = np.diff(offsets_of(chunks.lengths)[offsets - offsets[0]])
    tokens = offsets_of(sizes)
    ids, mask = np.empty(tokens[-1], dtype=np.int32), np.empty(tokens[-1], dtype=np.uint8)
    done = 0
    for start, stop in portions(chunks.lengths, _GATHER_TOKENS):
        part_ids, part_mask = store.gather(chunks[slice(start, stop)])
        ids[done : done + len(part_ids)], mask[done : done + len(part_ids)] = part_ids, part_mask
        done += len(part_ids)
    per_row = offsets - offsets[0]
    return pa.table(
        {
            "input_ids": lists(ids, tokens),
            "loss_mask": lists(mask, tokens),
            "seq_lengths": lists(chunks.lengths.astype(np.int32), per_row),
            "doc_ids": lists(store.numbers[chunks.documents], per_row),
            "starts": lists(chunks.starts.astype(np.int32), per_row),
            "sources": lists(store.sources[chunks.documents], per_row),
        }
    )


def _for_training(path: Path, spec: PackingSpec) -> datasets.Dataset:
    """The rows of a shard; with `attention=causal` each is one sequence."""
    rows = datasets.Dataset.from_file(str(path)).select_columns(["input_ids", "loss_mask", "seq_lengths"])
    if spec.attention == "document":
        return rows
    table = rows.with_format("arrow")[:]
    sizes = pc.list_value_length(table.column("input_ids")).combine_chunks().to_numpy()
    whole = lists(sizes.astype(np.int32), np.arange(len(sizes) + 1))
    return datasets.Dataset(table.set_column(2, "seq_lengths", whole))


def _columns(table: pa.Table) -> tuple[NDArray[Any], ...]:
    """Offsets of rows in tokens and in chunks, then the values of the columns of `Row`."""
    columns = [table.column(name).chunk(0) for name in ("input_ids", "loss_mask", "seq_lengths")]
    columns += [table.column(name).chunk(0) for name in ("doc_ids", "starts", "sources")]
    return columns[0].offsets.to_numpy(), columns[2].offsets.to_numpy(), *(one.values.to_numpy() for one in columns)


@contextmanager
def _locked(partial: Path, folder: Path) -> Iterator[None]:
    while True:
        partial.mkdir(parents=True, exist_ok=True)
        with (partial / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SeqtuneError(
                    f"another process is writing '{folder}'", "out", "wait for it, or give another folder: out=FOLDER"
                ) from error
            if not _same(lock.fileno(), partial / "lock"):  # its owner finished and took the folder away meanwhile
                continue
            yield
            return


def _same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _ours(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() or (folder / "tokens.json").is_file()


def _settings(spec: PackingSpec) -> dict[str, Any]:
    """What decides the rows; in which order steps take them does not, unless rows are made for it."""
    others = {"path"} if isinstance(spec.order, GrowLength) else {"path", "order"}
    settings: dict[str, Any] = spec.model_dump(mode="json", exclude=others)
    return settings


def _compare(folder: Path, found: dict[str, Any], spec: PackingSpec, origin: Origin) -> None:
    again = _AGAIN.format(folder)
    problems = []
    then, now = found["packing"], _settings(spec)
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name):
            problems.append(
                Problem(
                    f"the pack was made with packing.{name}={then.get(name)}, the recipe says {now.get(name)}",
                    f"packing.{name}",
                    f"packing.{name}={then.get(name)}, or {again}",
                )
            )
    made = found["origin"]
    if made["tokenizer"] != origin.tokenizer:
        problems.append(Problem("the pack was made with another tokenizer", "model and packing.path", again))
    if made["template"] != origin.template:
        problems.append(Problem("the pack was made with another chat template", "model and packing.path", again))
    for name in sorted(made["data"].keys() | origin.data.keys()):
        if name not in _MOVED and made["data"].get(name) != origin.data.get(name):
            problems.append(
                Problem(
                    f"the pack was made with data.{name}={made['data'].get(name)}, "
                    f"the recipe says {origin.data.get(name)}",
                    f"data.{name}",
                    again,
                )
            )
    if not _same_sources(made["sources"], origin.sources):
        problems.append(Problem("the pack was made from other data, or its files have changed", "data.path", again))
    if problems:
        raise SeqtuneError.of(problems)


def _same_sources(made: list[dict[str, Any]], now: list[dict[str, Any]]) -> bool:
    """By sha256 where both have one, else by size, else by name; a file that is not there cannot differ."""
    if len(made) != len(now):
        return False
    fields = ("sha256", "bytes", "name")
    pairs = zip(made, now, strict=True)
    return all(
        next((old[field] == new[field] for field in fields if field in old and field in new), "absent" in new)
        for old, new in pairs
    )


def _content(source: Mapping[str, Any]) -> str:
    return str(source.get("sha256") or source.get("name", ""))


def _damaged(folder: Path, what: str) -> SeqtuneError:
    return SeqtuneError(f"the pack is damaged: {what}", str(folder), _AGAIN.format(folder))
