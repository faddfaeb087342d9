"""Tokenised documents on disk, before they are packed: Arrow shards that are read by memory map."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seqtune.errors import SeqtuneError
from seqtune.packing.bins import offsets_of
from seqtune.packing.pack import lists

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from seqtune.packing.arrange import Chunks

SHARD_TOKENS = 2**23
"""Tokens after which a token shard is closed: what an interruption loses at most, of each process."""
_LONG = 32  # tokens of a chunk on average from which on copying chunk by chunk is faster than by indices


class Block(NamedTuple):
    """Consecutive documents, tokenised. `D` documents of `T` tokens together."""

    numbers: NDArray[np.int64]
    """Position of each document among all. [D]"""
    sources: NDArray[np.int16]
    """Which source it came from. [D]"""
    places: list[str]
    """File and line of each. [D]"""
    ids: NDArray[np.int32]
    """Tokens of all documents, one after another. [T]"""
    mask: NDArray[np.uint8]
    """1 where a token is trained. [T]"""
    sizes: NDArray[np.int64]
    """Tokens of each document. [D]"""
    faults: list[tuple[str, str]]
    """Why a document cannot be trained on, as kind and detail; ("", "") where it can. [D]"""


class Writer:
    """Writes blocks into shards. What an earlier, interrupted writer finished is kept when its checksums agree.

    Args:
        folder: Of the shards.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.shards: list[dict[str, Any]] = []
        """What is finished: `name`, `documents`, `tokens`, `last` document, `bytes` and `sha256`."""
        while (kept := _finished(folder, len(self.shards))) is not None:
            self.shards.append(kept)
        self._blocks: list[Block] = []
        self._waiting = 0

    @property
    def last(self) -> int:
        """Number of the last document that is on disk; -1 before there is one."""
        return int(self.shards[-1]["last"]) if self.shards else -1

    @property
    def tokens(self) -> int:
        """Tokens on disk and waiting."""
        return sum(int(shard["tokens"]) for shard in self.shards) + self._waiting

    def add(self, block: Block) -> None:
        """Take a block; a full shard goes to disk."""
        self._blocks.append(block)
        self._waiting += len(block.ids)
        if self._waiting >= SHARD_TOKENS:
            self._flush()

    def close(self) -> None:
        """Write what waits."""
        if self._blocks:
            self._flush()

    def _flush(self) -> None:
        blocks, self._blocks, self._waiting = self._blocks, [], 0
        offsets = offsets_of(np.concatenate([block.sizes for block in blocks]))
        faults = [fault for block in blocks for fault in block.faults]
        numbers = np.concatenate([block.numbers for block in blocks])
        table = pa.table(
            {
                "number": pa.array(numbers),
                "source": pa.array(np.concatenate([block.sources for block in blocks])),
                "where": pa.array([place for block in blocks for place in block.places], pa.string()),
                "input_ids": lists(np.concatenate([block.ids for block in blocks]), offsets),
                "loss_mask": lists(np.concatenate([block.mask for block in blocks]), offsets),
                "fault": pa.array([kind for kind, _ in faults], pa.string()),
                "detail": pa.array([detail for _, detail in faults], pa.string()),
            }
        )
        name = f"tokens-{len(self.shards):05d}"
        shard = {
            "name": f"{name}.arrow",
            "documents": len(numbers),
            "tokens": int(offsets[-1]),
            "last": int(numbers[-1]),
            **write_table(self.folder / f"{name}.arrow", table),
        }
        write_json(self.folder / f"{name}.json", shard)
        self.shards.append(shard)


class Store:
    """The documents of token shards, in the order of their numbers, without those that cannot be trained on.

    Args:
        paths: The shards.
        without: Numbers of documents to leave out.
    """

    def __init__(self, paths: Sequence[Path], without: NDArray[np.int64]) -> None:
        tables = [open_table(path) for path in paths]
        self._ids = [_values(table, "input_ids") for table in tables]
        self._mask = [_values(table, "loss_mask") for table in tables]
        self._tables = tables
        offsets = [_offsets(table, "input_ids") for table in tables]
        numbers = _joined([_numbers(table, "number") for table in tables], np.int64)
        order = np.argsort(numbers, kind="stable")
        order = order[~np.isin(numbers[order], without)]
        in_shard = np.concatenate([np.arange(len(table)) for table in tables]) if tables else np.zeros(0, np.int64)
        shard = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
        faulty = _joined([_faulty(table) for table in tables], np.bool_)
        self.faults = [self._fault(int(shard[at]), int(in_shard[at])) for at in order[faulty[order]]]
        """Place, kind and detail of each document that cannot be trained on."""
        order = order[~faulty[order]]
        self.numbers = numbers[order]
        """Position of each document among all that were read. [D]"""
        self.sources = _joined([_numbers(table, "source") for table in tables], np.int16)[order]
        """Which source each document came from. [D]"""
        self.sizes = _joined([np.diff(at) for at in offsets], np.int64)[order]
        """Tokens of each document. [D]"""
        self._shard, self._row = shard[order], in_shard[order]
        self._begins = _joined([at[:-1] for at in offsets], np.int64)[order]

    def where(self, document: int) -> str:
        """File and line of a document."""
        return str(self._tables[self._shard[document]].column("where")[int(self._row[document])].as_py())

    def targets(self, chunks: Chunks) -> NDArray[np.int64]:
        """Trained tokens of each chunk, its first token left out. [K]"""
        found = np.zeros(len(chunks), dtype=np.int64)
        first = self._begins[chunks.documents] + chunks.starts
        for shard, chosen in self._by_shard(chunks):
            trained = offsets_of(self._mask[shard])
            found[chosen] = trained[first[chosen] + chunks.lengths[chosen]] - trained[first[chosen] + 1]
        return found

    def gather(self, chunks: Chunks) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Tokens of chunks one after another, and which of them are trained: never the first of a chunk. [T]"""
        ends = np.cumsum(chunks.lengths)
        firsts = ends - chunks.lengths
        total = int(ends[-1]) if len(ends) else 0
        ids, mask = np.empty(total, dtype=np.int32), np.empty(total, dtype=np.uint8)
        begins = self._begins[chunks.documents] + chunks.starts
        if total > _LONG * len(chunks):
            shards = self._shard[chunks.documents]
            places = zip(shards.tolist(), begins.tolist(), firsts.tolist(), ends.tolist(), strict=True)
            for shard, begin, first, end in places:
                ids[first:end] = self._ids[shard][begin : begin + end - first]
                mask[first:end] = self._mask[shard][begin : begin + end - first]
            mask[firsts] = 0
            return ids, mask
        for shard, chosen in self._by_shard(chunks):
            lengths = chunks.lengths[chosen]
            within = np.cumsum(lengths) - lengths
            at = np.arange(int(lengths.sum()))
            here = at + np.repeat(begins[chosen] - within, lengths)
            there = at + np.repeat(firsts[chosen] - within, lengths)
            ids[there], mask[there] = self._ids[shard][here], self._mask[shard][here]
        mask[firsts] = 0
        return ids, mask

    def _by_shard(self, chunks: Chunks) -> list[tuple[int, NDArray[np.int64]]]:
        """Which chunks come from which shard."""
        shards = self._shard[chunks.documents]
        order = np.argsort(shards, kind="stable")
        edges = np.flatnonzero(np.diff(shards[order])) + 1
        return [(int(shards[part[0]]), part) for part in np.split(order, edges) if len(part)]

    def _fault(self, shard: int, row: int) -> tuple[str, str, str]:
        table = self._tables[shard]
        where, kind, detail = (str(table.column(name)[row].as_py()) for name in ("where", "fault", "detail"))
        return where, kind, detail


def write_table(path: Path, table: pa.Table) -> dict[str, Any]:
    """Write an Arrow stream of one batch so that it is there as a whole or not at all.

    Returns:
        Its `bytes` and `sha256`.
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table.combine_chunks())
    content = sink.getvalue()
    with ThreadPoolExecutor(1) as hasher:  # while the disk is at work
        digest = hasher.submit(hashlib.sha256, content)
        _write(path, content)
        return {"bytes": content.size, "sha256": digest.result().hexdigest()}


def open_table(path: Path) -> pa.Table:
    """A memory-mapped table that `write_table` wrote.

    Raises:
        SeqtuneError: It is none.
    """
    try:
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise SeqtuneError(f"the shard cannot be read: {str(error).splitlines()[0]}", str(path)) from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document so that it is there as a whole or not at all."""
    _write(path, (json.dumps(value, indent=2) + "\n").encode())


def intact(path: Path, shard: dict[str, Any]) -> bool:
    """Whether a shard has the bytes and the sha256 that were noted of it."""
    return path.is_file() and path.stat().st_size == shard["bytes"] and sha256_of(path) == shard["sha256"]


def sha256_of(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, content: Any) -> None:
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _finished(folder: Path, number: int) -> dict[str, Any] | None:
    """What was noted of a shard that is whole; None where it is not."""
    try:
        shard: dict[str, Any] = json.loads((folder / f"tokens-{number:05d}.json").read_text())
        return shard if intact(folder / str(shard["name"]), shard) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _values(table: pa.Table, name: str) -> NDArray[Any]:
    values: NDArray[Any] = table.column(name).chunk(0).values.to_numpy()
    return values


def _offsets(table: pa.Table, name: str) -> NDArray[np.int64]:
    return np.asarray(table.column(name).chunk(0).offsets.to_numpy(), dtype=np.int64)


def _numbers(table: pa.Table, name: str) -> NDArray[Any]:
    numbers: NDArray[Any] = table.column(name).to_numpy()
    return numbers


def _faulty(table: pa.Table) -> NDArray[np.bool_]:
    faulty: NDArray[np.bool_] = np.asarray(pc.not_equal(table.column("fault"), "").to_numpy())
    return faulty


def _joined(parts: list[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype=dtype), *parts])
