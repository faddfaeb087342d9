"""From the examples of a stage to packed rows: what `seqtune pack` writes and what an SFT stage trains on."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, replace
from multiprocessing.connection import wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from seqtune.config.axes import DataSpec, ModelSpec, TinyModelSpec
from seqtune.config.mixture import MixtureSpec
from seqtune.config.reading import registry
from seqtune.data import sources
from seqtune.data.rows import WHERE, BadRow, BadRows
from seqtune.data.tokenize import Encoder, fingerprints, tokenize
from seqtune.errors import SeqtuneError
from seqtune.packing import artefact
from seqtune.packing.arrange import arrange
from seqtune.packing.pack import pack
from seqtune.packing.tokens import Block, Store, Writer, intact, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from seqtune.config.plan import Stage
    from seqtune.config.spec import PackingSpec
    from seqtune.data.rows import Row
    from seqtune.packing.arrange import Arranged
    from seqtune.packing.pack import Packed

PART = "tokens.json"
"""In a folder that holds one machine's part of the token shards."""
_BLOCK_ROWS, _BLOCK_CHARACTERS = 1024, 2**20  # tokenised together: whichever comes first
_PHASES = {"tokenising": 0.9, "writing": 0.1}  # their shares of the work, for the progress
COMPARED = ("wrapped", "next_fit", "none")
"""Packings that a dry run sets beside the recipe's own; `none` is what padding costs."""


class Progress(NamedTuple):
    """How far `seqtune pack` is."""

    phase: str
    """`tokenising` or `writing`."""
    done: float
    """Of everything, 0 to 1."""
    documents: int
    """Tokenised so far, by this process and earlier ones that were interrupted."""
    tokens: int
    """In them."""
    rate: float
    """Tokens a second that this process tokenised."""
    left: float | None
    """Seconds to the end, where the part done tells."""


def packed_for(stage: Stage, examples: Dataset, tokenizer: PreTrainedTokenizerBase, *, heldout: bool = False) -> Packed:
    """The rows of a stage: read from `packing.path`, or tokenised and packed here.

    Args:
        stage: Says how rows are packed, and of what.
        examples: Training or held-out examples; not looked at when they are read from a pack.
        tokenizer: Of the model.
        heldout: Whether these are the held-out examples, which a pack does not hold.

    Returns:
        The rows; `counts` has `skipped` (by reason) when the chat template could not write some examples.

    Raises:
        SeqtuneError: As `tokenize` and `pack`; or the pack is damaged, or was made otherwise than the stage says.
    """
    if stage.packing.path is not None and not heldout:
        # The sources are not read, unless they are anyway for the held-out examples among them.
        origin = _origin(stage, tokenizer, read=bool(stage.data.eval_size))
        return artefact.read(Path(stage.packing.path).expanduser(), stage.packing, origin)
    bad = BadRows(_on_error(stage))
    sequences = tokenize(examples, tokenizer, bad)
    skipped = bad.close()
    packed = pack(sequences, stage.packing)
    return replace(packed, counts={**packed.counts, "skipped": skipped}) if skipped else packed


def examples_for(stage: Stage) -> sources.Examples:
    """The examples that a stage needs: from a pack no training examples, which are then not read.

    Raises:
        SeqtuneError: As `sources.load`.
    """
    return sources.load(stage.data) if stage.packing.path is None else sources.load_heldout(stage.data)


def pack_stage(
    stage: Stage,
    out: Path,
    *,
    workers: int = 1,
    share: tuple[int, int] = (1, 1),
    progress: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Tokenise and pack the training examples of a stage into a folder.

    Documents are tokenised in blocks into shards on disk, the rows are arranged from their lengths alone, and their
    tokens are then gathered from the shards: memory holds a block of each worker and a few integers a document. When
    the work is cut short, the same call goes on from the last finished shard; when the pack is there already, nothing
    is done. The same examples give the same bytes however many workers and interruptions there were.

    Args:
        stage: Its model gives the tokenizer.
        out: The folder; a pack that is there is replaced once the new one is whole.
        workers: Processes that tokenise.
        share: Which part of how many is tokenised here; with more than one the folder holds token shards, of which
            `merge` makes a pack.
        progress: Told how far it is.

    Returns:
        The counts of `Packed`, `skipped` (bad rows by reason), `folder` and `key`; of a part `documents`, `tokens`,
        `share`.

    Raises:
        SeqtuneError: The data, the tokenizer or the folder is at fault.
    """
    tokenizer, spec, origin = _prepared(stage)
    key = artefact.key(spec, origin)
    told = json.dumps([key, share])
    with artefact.working(out, told) as work:
        if share == (1, 1) and _there(out, key):
            return _summary(out, artefact.manifest(out))
        part = _tokenised(stage, tokenizer, origin, work / "tokens", workers, share, progress)
        _unchanged(stage, origin)
        if share != (1, 1):
            write_json(work / "tokens" / PART, {**part, "key": key, "packing": spec.model_dump(mode="json")})
            artefact.publish(work / "tokens", out.absolute())
            shards = part["shards"]
            return {
                "folder": str(out),
                "share": f"{share[0]}/{share[1]}",
                "documents": sum(shard["documents"] for shard in shards),
                "tokens": sum(shard["tokens"] for shard in shards),
                "skipped": part["skipped"],
            }
        _write([(work / "tokens", part)], spec, origin, work / "rows", progress)
        artefact.publish(work / "rows", out.absolute())
    return _summary(out, artefact.manifest(out))


def merge(parts: list[Path], out: Path, progress: Callable[[Progress], None] = lambda progress: None) -> dict[str, Any]:
    """Make one pack of the parts that several machines tokenised: the pack that one machine would have made.

    Args:
        parts: Folders that `pack_stage` wrote with `share`.
        out: The folder of the pack.
        progress: Told how far it is.

    Returns:
        As `pack_stage`.

    Raises:
        SeqtuneError: A part is missing, damaged or of another pack, or the folder is at fault.
    """
    found = [(folder, _part(folder)) for folder in parts]
    if not found:
        raise SeqtuneError("there is no part to merge", "command line", "seqtune pack merge PART PART … out=FOLDER")
    keys = {part["key"] for _, part in found}
    if len(keys) > 1:
        raise SeqtuneError("the parts are of different packs", ", ".join(map(str, parts)), "tokenise them again")
    total = found[0][1]["share"][1]
    have = Counter(part["share"][0] for _, part in found)
    if missing := [str(number) for number in range(1, total + 1) if have[number] != 1]:
        raise SeqtuneError(
            f"of the {total} parts these are not given once: {', '.join(missing)}",
            ", ".join(map(str, parts)),
            f"seqtune pack … shard={missing[0]}/{total} out=PART",
        )
    for folder, part in found:
        for shard in part["shards"]:
            if not intact(folder / shard["name"], shard):
                raise SeqtuneError(
                    f"shard '{shard['name']}' is missing or was altered", str(folder), "tokenise this part again"
                )
    said = found[0][1]
    spec = registry("packing").load(said["packing"]["name"]).model_validate(said["packing"])
    origin = artefact.Origin(**said["origin"])
    with artefact.working(out, json.dumps([said["key"], "merge"])) as work:
        _write(found, spec, origin, work / "rows", progress)
        artefact.publish(work / "rows", out.absolute())
    return _summary(out, artefact.manifest(out))


def dry_run(
    stage: Stage, *, workers: int = 1, progress: Callable[[Progress], None] = lambda progress: None
) -> dict[str, Any]:
    """What packing the training examples of a stage would give, beside other packings. Nothing is kept.

    Args:
        stage: As of `pack_stage`.
        workers: Processes that tokenise.
        progress: Told how far it is.

    Returns:
        `skipped`, and `packings` by name: the counts of `Packed` and `attention` (Σ of squared chunk lengths, what
        attention within documents costs; of `none` that of rows padded to the capacity).

    Raises:
        SeqtuneError: The data or the tokenizer is at fault.
    """
    tokenizer, spec, origin = _prepared(stage)
    with TemporaryDirectory(prefix="seqtune-pack-") as place:
        part = _tokenised(stage, tokenizer, origin, Path(place), workers, (1, 1), progress)
        store, skipped = _store([(Path(place), part)])
        found: dict[str, Any] = {}
        for name in dict.fromkeys((spec.name, *COMPARED)):
            one = spec if name == spec.name else _like(spec, name)
            arranged = _arranged(store, one)
            lengths = arranged.chunks.lengths if name != "none" else np.full(len(arranged), one.capacity)
            if one.attention == "causal" and name != "none":
                lengths = arranged.row_sizes()
            found[name] = {**arranged.counts, "attention": int(np.square(lengths).sum())}
        return {"skipped": skipped, "packings": found}


def verify(folder: Path, tell: Callable[[float], None] = lambda done: None) -> dict[str, Any]:
    """Check a pack: the bytes of its shards, the shape of every row, its counts, and that rows can be decoded.

    Args:
        folder: Of the pack.
        tell: Told the part done, 0 to 1.

    Returns:
        As `artefact.verify`, and `decoded`: how many rows, spread over the pack, were decoded with its tokenizer, or
        why none could be.

    Raises:
        SeqtuneError: Something is not as it was written.
    """
    found = artefact.verify(folder, tell)
    made = artefact.manifest(folder)["origin"]
    try:
        tokenizer = tokenizer_of(folder)
    except SeqtuneError as error:
        return {**found, "decoded": f"none: {error.problems[0].problem}"}
    if fingerprints(tokenizer)[0] != made["tokenizer"]:
        return {**found, "decoded": f"none: the tokenizer of '{made['model']['name']}' is another by now"}
    if found["largest_id"] >= len(tokenizer):
        raise SeqtuneError(
            f"the pack is damaged: token {found['largest_id']} is none of the {len(tokenizer)} of its tokenizer",
            str(folder),
            f"write it again: seqtune pack … out={folder}",
        )
    rows = artefact.Rows(folder)
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), 100)).astype(int)).tolist()
    for number in chosen:
        tokenizer.decode(rows[number].input_ids.tolist())
    return {**found, "decoded": len(chosen)}


def tokenizer_of(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that a pack says it was made with.

    Raises:
        SeqtuneError: It cannot be found, or there is no pack.
    """
    from seqtune.models.load import load_tokenizer

    said = artefact.manifest(folder)["origin"]["model"]
    return load_tokenizer(TinyModelSpec(name="tiny") if said["name"] == "tiny" else ModelSpec(**said))


def _prepared(stage: Stage) -> tuple[PreTrainedTokenizerBase, PackingSpec, artefact.Origin]:
    from seqtune.models.load import load_tokenizer

    if isinstance(stage.data, MixtureSpec):
        raise SeqtuneError(
            "a mixture is a stream, which is packed while it is trained on",
            "data.name",
            "data.path=FILE packs a source; training reads the mixture without a pack",
        )
    tokenizer = load_tokenizer(stage.model)
    return tokenizer, stage.packing.model_copy(update={"path": None}), _origin(stage, tokenizer)


def _like(spec: PackingSpec, name: str) -> PackingSpec:
    """Another packing with the same rows and the same overflow."""
    kept = {field: getattr(spec, field) for field in ("capacity", "attention", "seed", "on_overflow")}
    made: PackingSpec = registry("packing").load(name)(**kept)
    return made.model_copy(update={"on_overflow": "split"}) if made.splits and spec.on_overflow == "error" else made


def _tokenised(
    stage: Stage,
    tokenizer: PreTrainedTokenizerBase,
    origin: artefact.Origin,
    folder: Path,
    workers: int,
    share: tuple[int, int],
    progress: Callable[[Progress], None],
) -> dict[str, Any]:
    """Tokenise this machine's share of the examples into shards; returns what is known of them."""
    assert not isinstance(stage.data, MixtureSpec)  # `_prepared` refused it
    bad, writer = BadRows(_on_error(stage)), Writer(folder)
    meter = _Meter(sum(source.get("bytes", 0) for source in origin.sources), writer, progress)
    keys = bytearray() if stage.data.eval_size and isinstance(stage.data, DataSpec) else None
    found = _numbered(sources.stream(stage.data, bad, meter.read), keys, stage.data.seed, bad)
    blocks = (
        block
        for number, block in enumerate(_blocks(found))
        if number % share[1] == share[0] - 1 and block.numbers[-1] > writer.last
    )
    with _encoder(tokenizer, workers) as encode:
        for block in encode(blocks):
            writer.add(block)
            meter.told(len(block.sizes), len(block.ids))
    writer.close()
    skipped = bad.close()
    if not found.count:
        raise sources.nothing_usable("data.path" if getattr(stage.data, "path", None) else "data.name", skipped)
    held = sources.heldout(keys, stage.data.eval_size, stage.data.seed).tolist() if keys else []
    return {
        "share": list(share),
        "origin": asdict(origin),
        "skipped": skipped,
        "on_error": bad.on_error,
        "heldout": held,
        "shards": writer.shards,
    }


class _numbered:
    """Rows with their numbers. After a bad row that is an error the others are only read, to count the bad ones."""

    def __init__(self, found: Iterable[tuple[int, Row]], keys: bytearray | None, seed: int, bad: BadRows) -> None:
        self.found, self.keys, self.seed, self.bad = found, keys, seed, bad
        self.count = 0

    def __iter__(self) -> Iterator[tuple[int, int, Row]]:
        for source, row in self.found:
            if self.keys is not None:
                self.keys += sources.digest(row, self.seed)
            if not (self.bad.on_error == "error" and self.bad.counts):
                yield self.count, source, row
            self.count += 1


class _Raw(NamedTuple):
    """Consecutive examples, to be tokenised together."""

    numbers: list[int]
    sources: list[int]
    rows: list[Row]


def _blocks(found: Iterable[tuple[int, int, Row]]) -> Iterator[_Raw]:
    block, characters = _Raw([], [], []), 0
    for number, source, row in found:
        block.numbers.append(number)
        block.sources.append(source)
        block.rows.append(
            {name: row[name] for name in ("messages", "prompt", "completion", "text", WHERE) if name in row}
        )
        characters += sum(len(value) for value in row.values() if isinstance(value, str))
        if len(block.rows) == _BLOCK_ROWS or characters >= _BLOCK_CHARACTERS:
            yield block
            block, characters = _Raw([], [], []), 0
    if block.rows:
        yield block


@contextmanager
def _encoder(tokenizer: PreTrainedTokenizerBase, workers: int) -> Iterator[Callable[[Iterator[_Raw]], Iterator[Block]]]:
    """A function that tokenises blocks, in their order, here or in processes of their own."""
    if workers == 1:
        _start_worker(tokenizer)
        yield lambda blocks: map(_in_worker, blocks)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "transformers.tokenization_utils_tokenizers", __name__])
    with ProcessPoolExecutor(workers, context, _start_worker, (tokenizer,)) as pool:

        def encode(blocks: Iterator[_Raw]) -> Iterator[Block]:
            waiting: deque[Future[Block]] = deque()
            try:
                for raw in blocks:
                    waiting.append(pool.submit(_in_worker, raw))
                    if len(waiting) > 2 * workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            except BrokenProcessPool as error:
                raise SeqtuneError(
                    "a process that tokenises ended without a word, perhaps for want of memory",
                    "workers",
                    f"fewer of them: workers={max(1, workers // 2)}; the same command goes on from the last shard",
                ) from error
            finally:
                for future in waiting:
                    future.cancel()

        yield encode


_worker: list[Any] = []
"""Of a process that tokenises: its tokenizer, and the encoder once the columns of the examples are known."""


def _start_worker(tokenizer: PreTrainedTokenizerBase) -> None:
    _worker[:] = [tokenizer, None]
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interruption is the parent's to handle
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _in_worker(raw: _Raw) -> Block:
    tokenizer, encoder = _worker
    if encoder is None:
        encoder = _worker[1] = Encoder(tokenizer, raw.rows[0])
    found = encoder(raw.rows)
    return Block(
        np.asarray(raw.numbers, dtype=np.int64),
        np.asarray(raw.sources, dtype=np.int16),
        [str(row[WHERE]) for row in raw.rows],
        found.ids,
        found.mask,
        found.sizes,
        [("", "") if fault is None else (fault.reason, fault.detail) for fault in found.faults],
    )


def _store(parts: list[tuple[Path, dict[str, Any]]]) -> tuple[Store, dict[str, int]]:
    """The documents that are trained on, and those that are not, by reason.

    Raises:
        SeqtuneError: Some cannot be trained on, and `data.on_error` is `error`.
    """
    said = parts[0][1]
    paths = [folder / shard["name"] for folder, part in parts for shard in part["shards"]]
    store = Store(paths, np.asarray(said["heldout"], dtype=np.int64))
    bad = BadRows(said["on_error"])
    for where, kind, detail in store.faults:
        bad.add(where, BadRow(kind, detail))
    return store, dict(Counter(said["skipped"]) + Counter(bad.close()))


def _arranged(store: Store, spec: PackingSpec) -> Arranged:
    return arrange(store.sizes, store.targets, spec, store.where)


def _write(
    parts: list[tuple[Path, dict[str, Any]]],
    spec: PackingSpec,
    origin: artefact.Origin,
    folder: Path,
    progress: Callable[[Progress], None],
) -> None:
    store, skipped = _store(parts)
    arranged = _arranged(store, spec)
    counts = {**arranged.counts, "skipped": skipped} if skipped else arranged.counts
    documents, tokens, began = len(store.sizes), int(store.sizes.sum()), time.monotonic()

    def tell(done: float) -> None:
        left = (time.monotonic() - began) * (1 - done) / done
        whole = _PHASES["tokenising"] + done * _PHASES["writing"]
        progress(Progress("writing", whole, documents, tokens, 0.0, left))

    artefact.write(folder, arranged, store, spec, origin, counts, tell)


class _Meter:
    """Knows how far tokenising is, and how fast."""

    def __init__(self, size: int, writer: Writer, progress: Callable[[Progress], None]) -> None:
        self.size, self.progress = size, progress
        self.documents = sum(shard["documents"] for shard in writer.shards)
        self.before = self.tokens = writer.tokens
        self.bytes, self.began = 0, 0.0
        self.first: int | None = None

    def read(self, size: int) -> None:
        self.bytes += size

    def told(self, documents: int, tokens: int) -> None:
        """Report, after some documents more."""
        self.documents += documents
        self.tokens += tokens
        if self.first is None:  # what an earlier process had done passes by at once, and workers have to start
            self.first, self.began, self.before = self.bytes, time.monotonic(), self.tokens
        done = self.bytes / self.size if self.size else 0.0
        seconds = time.monotonic() - self.began
        rate = (self.tokens - self.before) / seconds if seconds else 0.0
        new = self.bytes - self.first
        left = seconds * (self.size - self.bytes) / new / _PHASES["tokenising"] if new and self.size else None
        self.progress(Progress("tokenising", done * _PHASES["tokenising"], self.documents, self.tokens, rate, left))


def _unchanged(stage: Stage, origin: artefact.Origin) -> None:
    now = sources.fingerprints(stage.data, read=False)
    for then, found in zip(origin.sources, now, strict=True):
        if then.get("bytes") != found.get("bytes"):
            raise SeqtuneError("the data changed while it was read", str(then.get("path")), "pack it again")


def _there(out: Path, key: str) -> bool:
    """Whether the folder holds this very pack, whole."""
    try:
        found = artefact.manifest(out)
        artefact.check_shards(out, found)
    except (SeqtuneError, KeyError, TypeError):
        return False
    return bool(found.get("key") == key)


def _part(folder: Path) -> dict[str, Any]:
    try:
        part: dict[str, Any] = json.loads((folder / PART).read_text())
        for name in ("key", "packing", "share", "origin", "skipped", "on_error", "heldout", "shards"):
            part[name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SeqtuneError(
            f"'{folder}' is no part of a pack", str(folder), "seqtune pack … shard=1/2 out=PART writes one"
        ) from error
    return part


def _summary(out: Path, found: dict[str, Any]) -> dict[str, Any]:
    counts = found["counts"]
    return {"folder": str(out), "key": found["key"], **counts, "skipped": counts.get("skipped", {})}


def _on_error(stage: Stage) -> Any:
    return stage.data.on_error if isinstance(stage.data, DataSpec) else "error"


def _origin(stage: Stage, tokenizer: PreTrainedTokenizerBase, *, read: bool = True) -> artefact.Origin:
    rules, template = fingerprints(tokenizer)
    model = stage.model.model_dump(mode="json")
    said: dict[str, Any] = {name: model[name] for name in ("name", "revision", "tokenizer") if name in model}
    found = sources.fingerprints(stage.data, read=read)
    return artefact.Origin(rules, template, stage.data.model_dump(mode="json"), found, said)
