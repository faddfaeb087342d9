"""Documents of several sources drawn by weight, as a stream whose state is a handful of integers.

Nothing here knows of processes: the stream is one for the whole run, and each process takes its part of what is made of
it. Every shuffle is a function of (seed, source, pass, block), so a state needs no random generator.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import datasets
import numpy as np

from seqtune.data import files
from seqtune.data.formats import FORMATS
from seqtune.data.rows import WHERE, BadRow, BadRows, Row, reader
from seqtune.errors import SeqtuneError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from seqtune.config.mixture import MixtureSpec, SourceSpec

    Encode = Callable[[datasets.Dataset, BadRows], datasets.Dataset]
    """Examples to `input_ids`, `loss_mask` and `WHERE`: `seqtune.data.tokenize.tokenize` with a tokenizer."""

_READ = 1024  # rows read together where they are not shuffled


class Address(NamedTuple):
    """Where a document can be read again."""

    source: int
    file: int
    number: int
    offset: int


class Document(NamedTuple):
    """A token sequence and which of its tokens are trained."""

    address: Address
    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Cursor:
    """How far a source was read."""

    epoch: int = 0
    """Passes finished."""
    block: int = 0
    """Blocks of the pass finished."""
    file: int = 0
    """The file the current block begins in."""
    number: int = 0
    offset: int = 0
    """Where in it: a `files.Place`."""
    taken: int = 0
    """Documents of the current block that were served."""


@dataclass(frozen=True)
class _Block:
    """Documents read together, in the order they are served."""

    documents: list[Document]
    skipped: Counter[str]
    after: tuple[int, files.Place]
    """Where the next block begins."""
    last: bool
    """Whether the source ended in it."""


class Source:
    """The documents of one source, pass after pass."""

    def __init__(self, spec: SourceSpec, index: int, mixture: MixtureSpec, encode: Encode) -> None:
        self.spec, self.index, self.mixture, self._encode = spec, index, mixture, encode
        self.where = f"data.sources.{index}"
        self.paths: list[Path] = files.expand(spec.path, f"{self.where}.path")
        for path in self.paths:
            if path.is_dir():
                raise SeqtuneError(
                    f"'{path}' is a saved dataset, which is not read as a stream",
                    f"{self.where}.path",
                    f"name its files: '{path}/*.arrow'",
                )
        self.sizes = [path.stat().st_size for path in self.paths]
        """Bytes of each file: the least a changed one differs by."""
        self.cursor = Cursor()
        self.skipped: Counter[str] = Counter()
        """Rows left out by reason, up to the current block."""
        self._block: _Block | None = None

    def peek(self) -> Document | None:
        """The next document; None at the end of a pass."""
        while True:
            block = self._block = self._block or self._read(self.cursor)
            if self.cursor.taken < len(block.documents):
                return block.documents[self.cursor.taken]
            if block.last:
                return None
            self._leave(block)

    def advance(self) -> None:
        """Go past the document that `peek` gave."""
        self.cursor = replace(self.cursor, taken=self.cursor.taken + 1)

    def rewind(self) -> None:
        """Begin the next pass."""
        if self._block is not None:
            self._leave(self._block)
        self.cursor = Cursor(epoch=self.cursor.epoch + 1)

    def state(self) -> dict[str, Any]:
        """The cursor, as plain JSON."""
        return {**asdict(self.cursor), "skipped": dict(self.skipped), "sizes": self.sizes}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises:
            SeqtuneError: The files are not those of the state.
        """
        kept = dict(state)
        self.skipped, self._block = Counter(kept.pop("skipped")), None
        sizes = kept.pop("sizes")
        if sizes != self.sizes:
            pairs = zip(self.paths, sizes, self.sizes, strict=False)
            changed = next((str(path) for path, before, now in pairs if before != now), "their number")
            raise SeqtuneError(
                f"the files of source {self.index + 1} changed since the checkpoint: {changed}",
                f"{self.where}.path",
                "put the files back as they were, or start the run again",
            )
        self.cursor = Cursor(**kept)

    def read_again(self, addresses: Sequence[Address]) -> dict[Address, Document]:
        """Documents that were served before.

        Raises:
            SeqtuneError: One of them is no longer there.
        """
        found: dict[Address, Document] = {}
        for file in sorted({address.file for address in addresses}):
            wanted = sorted({address for address in addresses if address.file == file})
            read = []
            for start in self._runs(wanted):
                begin = files.Place(start[0].number, start[0].offset)
                rows = files.read_from(self.paths[file], self.spec.text_by, begin)
                numbers = {address.number for address in start}
                for here, _, raw in rows:
                    if here.number in numbers:
                        read.append((Address(self.index, file, *here), raw))
                    if here.number >= start[-1].number:
                        break
            documents, _ = self._encoded(read)
            found |= {document.address: document for document in documents}
        if lost := set(addresses) - found.keys():
            place = min(lost)
            raise SeqtuneError(
                "a document that was read before is no longer there",
                f"{self.paths[place.file]}:{place.number + 1}",
                "put the file back as it was, or start the run again",
            )
        return found

    def _runs(self, wanted: list[Address]) -> list[list[Address]]:
        """Addresses of one file by where to begin reading: each its own where reading can begin anywhere."""
        return [[address] for address in wanted] if any(address.offset for address in wanted) else [wanted]

    def _leave(self, block: _Block) -> None:
        file, place = block.after
        self.skipped += block.skipped
        self.cursor = Cursor(self.cursor.epoch, self.cursor.block + 1, file, *place)
        self._block = None

    def _read(self, cursor: Cursor) -> _Block:
        size = self.mixture.shuffle if self.mixture.shuffle > 1 else _READ
        file, place = cursor.file, files.Place(cursor.number, cursor.offset)
        read: list[tuple[Address, files.Raw]] = []
        for number, here, after, raw in self._rows(file, place):
            read.append((Address(self.index, number, *here), raw))
            file, place = number, after
            if len(read) == size:
                break
        documents, skipped = self._encoded(read)
        if self.mixture.shuffle > 1:
            key = (self.mixture.seed, self.index, cursor.epoch, cursor.block)
            order = np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).permutation(len(documents))
            documents = [documents[at] for at in order]
        return _Block(documents, skipped, (file, place), last=len(read) < size)

    def _rows(self, first: int, start: files.Place) -> Iterator[tuple[int, files.Place, files.Place, files.Raw]]:
        for number in range(first, len(self.paths)):
            for here, after, raw in files.read_from(self.paths[number], self.spec.text_by, start):
                yield number, here, after, raw
            start = files.Place(0, 0)

    def _encoded(self, read: list[tuple[Address, files.Raw]]) -> tuple[list[Document], Counter[str]]:
        """The documents of raw rows, and how many of them are none, by reason."""
        check = reader(self.spec.format, self.spec.columns, answer_pattern=None, chat=self.spec.chat)
        bad = BadRows(self.mixture.on_error)
        fields = FORMATS[self.spec.format].fields
        good: list[Row] = []
        addresses: dict[str, Address] = {}
        for address, (where, raw) in read:
            try:
                if isinstance(raw, BadRow):
                    raise raw
                row = check(raw)
            except BadRow as fault:
                bad.add(where, fault)
                continue
            where = f"{where} ({address.number})" if where in addresses else where  # several rows of json on one line
            addresses[where] = address
            good.append({**{name: row[name] for name in fields}, WHERE: where})
        documents = []
        if good:
            table = self._encode(datasets.Dataset.from_list(good), bad).with_format("arrow")[:].combine_chunks()
            ids, mask = (table.column(name).combine_chunks() for name in ("input_ids", "loss_mask"))
            for at, where in enumerate(table.column(WHERE).to_pylist()):
                start, stop = ids.offsets[at].as_py(), ids.offsets[at + 1].as_py()
                tokens = ids.values[start:stop].to_numpy()
                trained = mask.values[start:stop].to_numpy(zero_copy_only=False)
                documents.append(Document(addresses[where], tokens, trained))
        return documents, Counter(bad.close())


class Mixture:
    """Documents of several sources: the next comes from the source furthest behind its share.

    With `w` the weights, `s` what each source has served and `T` the sum of `s`, the next document comes from the
    source of the largest `w_i max(T, 1) - s_i`, the first of equal ones (the rule of Megatron-LM's blended datasets).
    No randomness enters, and every source stays within about one document of its share.

    Args:
        spec: Sources, weights, and when the data ends.
        encode: Turns examples into token ids.

    Raises:
        SeqtuneError: A source has no file, or one of an unknown kind.
    """

    def __init__(self, spec: MixtureSpec, encode: Encode) -> None:
        self.spec = spec
        self.sources = [Source(source, index, spec, encode) for index, source in enumerate(spec.sources)]
        self.served = [0] * len(self.sources)
        """What each source gave, in units of the weights."""
        self._ended = [False] * len(self.sources)
        self._over = False

    @property
    def skipped(self) -> Counter[str]:
        """Rows left out, by reason."""
        return sum((source.skipped for source in self.sources), Counter())

    def __iter__(self) -> Iterator[Document]:
        return self

    def __next__(self) -> Document:
        while not self._over:
            source = self._furthest_behind()
            if source is None:
                break
            document = source.peek()
            if document is not None:
                source.advance()
                self.served[source.index] += len(document.ids) if self.spec.unit == "tokens" else 1
                return document
            self._ended[source.index] = True
            stop = self.spec.stop
            self._over = stop == "first_exhausted" or (stop == "all_exhausted" and all(self._ended))
            source.rewind()
            if not self.served[source.index]:
                why = ", ".join(f"{reason} {count}" for reason, count in source.skipped.items())
                raise SeqtuneError(f"no usable example{f': {why}' if why else ''}", f"{source.where}.path")
        self._over = True
        raise StopIteration

    def read_again(self, addresses: Sequence[Address]) -> dict[Address, Document]:
        """Documents that were served before.

        Raises:
            SeqtuneError: One of them is no longer there.
        """
        found: dict[Address, Document] = {}
        for source in self.sources:
            mine = [address for address in addresses if address.source == source.index]
            found |= source.read_again(mine)
        return found

    def state(self) -> dict[str, Any]:
        """Where the stream stands, as plain JSON."""
        return {
            "sources": [source.state() for source in self.sources],
            "served": list(self.served),
            "ended": list(self._ended),
            "over": self._over,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises:
            SeqtuneError: The sources are not those of the state.
        """
        if len(state["sources"]) != len(self.sources):
            raise SeqtuneError(
                f"the checkpoint has {len(state['sources'])} sources, the recipe {len(self.sources)}",
                "data.sources",
                "resume with the recipe the run began with",
            )
        for source, kept in zip(self.sources, state["sources"], strict=True):
            source.restore(kept)
        self.served, self._ended, self._over = list(state["served"]), list(state["ended"]), state["over"]

    def _furthest_behind(self) -> Source | None:
        open_ = [source for source in self.sources if not _closed(source)]
        total = sum(source.spec.weight for source in open_)
        served = max(sum(self.served[source.index] for source in open_), 1)
        behind = [source.spec.weight / total * served - self.served[source.index] for source in open_]
        return open_[behind.index(max(behind))] if open_ else None


def _closed(source: Source) -> bool:
    return source.spec.epochs is not None and source.cursor.epoch >= source.spec.epochs
