"""What a recipe can say about packing."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from seqtune.config.order import Cycles, Order
from seqtune.config.spec import PackingSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    import numpy as np
    from numpy.typing import NDArray

    from seqtune.packing.online import OpenRows
    from seqtune.packing.online_buffer import OnlineBuffer


class BestFit(PackingSpec):
    """Best-fit decreasing: each document goes into the fullest row that still holds it."""

    name: Literal["best_fit"] = "best_fit"

    def build(self) -> Callable[..., Any]:
        from seqtune.packing.best_fit import best_fit

        return best_fit


class FirstFit(PackingSpec):
    """First fit: each document, in its order, goes into the first row that still holds it; rows keep their order."""

    name: Literal["first_fit"] = "first_fit"

    def build(self) -> Callable[..., Any]:
        from seqtune.packing.first_fit import first_fit

        return first_fit


class FirstFitDecreasing(PackingSpec):
    """First-fit decreasing: each document, longest first, goes into the first row that still holds it."""

    name: Literal["first_fit_decreasing"] = "first_fit_decreasing"

    def build(self) -> Callable[..., Any]:
        from seqtune.packing.first_fit import first_fit_decreasing

        return first_fit_decreasing


class NextFit(PackingSpec):
    """Next fit: documents and rows keep their order; a document that does not fit opens the next row."""

    name: Literal["next_fit"] = "next_fit"

    def build(self) -> Callable[..., Any]:
        from seqtune.packing.next_fit import next_fit

        return next_fit


class Wrapped(PackingSpec):
    """Documents one after another, cut where a row is full; only the last row can be short."""

    splits: ClassVar[bool] = True

    name: Literal["wrapped"] = "wrapped"
    on_overflow: Literal["error", "truncate", "truncate_left", "split", "drop"] = "split"
    """What happens to a document longer than `capacity` before all are cut; `split` leaves it to the cuts."""

    def build(self) -> Callable[..., Any]:
        from seqtune.packing.wrapped import wrapped

        return wrapped


class Spfhp(PackingSpec):
    """Shortest-pack-first histogram packing (arXiv:2107.02027): longest documents first, each into the emptiest row
    that holds it."""

    name: Literal["spfhp"] = "spfhp"
    max_documents: int | None = Field(None, ge=1)
    """Documents a row holds at most; null sets no limit."""

    def build(self) -> Callable[..., Any]:
        from seqtune.packing.histogram import spfhp

        return partial(spfhp, max_documents=self.max_documents)


class Lpfhp(PackingSpec):
    """Longest-pack-first histogram packing (arXiv:2107.02027): `best_fit` with a limit on documents in a row."""

    name: Literal["lpfhp"] = "lpfhp"
    max_documents: int | None = Field(None, ge=1)
    """Documents a row holds at most; null sets no limit."""

    def build(self) -> Callable[..., Any]:
        from seqtune.packing.histogram import lpfhp

        return partial(lpfhp, max_documents=self.max_documents)


class Nnlshp(PackingSpec):
    """Non-negative least squares histogram packing (arXiv:2107.02027): for rows of a few documents."""

    name: Literal["nnlshp"] = "nnlshp"
    capacity: int = Field(512, ge=2)
    """Tokens a row holds at most; the ways to fill a row grow with it."""
    max_documents: int = Field(3, ge=1, le=8)
    """Documents a row holds at most."""

    @model_validator(mode="after")
    def _enumerable(self) -> Nnlshp:
        from seqtune.packing.nnlshp import LARGEST, number_of_fillings

        number = number_of_fillings(self.capacity, self.max_documents)
        if number > LARGEST:
            raise ValueError(
                f"capacity={self.capacity} and max_documents={self.max_documents} leave {number:,} ways to fill a row, "
                f"more than {LARGEST:,}"
            )
        return self

    def build(self) -> Callable[..., Any]:
        from seqtune.packing.nnlshp import nnlshp

        return partial(nnlshp, max_documents=self.max_documents)


class Optimal(PackingSpec):
    """As few rows as a linear program finds, with a proven bound beside them in the report."""

    name: Literal["optimal"] = "optimal"
    capacity: int = Field(512, ge=2, le=1024)
    """Tokens a row holds at most; the program grows with it."""

    def build(self) -> Callable[..., Any]:
        from seqtune.packing.optimal import optimal

        return optimal


class DatasetDecomposition(PackingSpec):
    """Documents cut into powers of two, the longest first, one piece a row; a step takes rows of one length, as many as
    make the same tokens. What is left below `shortest` is not trained. Dataset Decomposition (arXiv:2405.13226)."""

    name: Literal["dataset_decomposition"] = "dataset_decomposition"
    shortest: int = Field(256, ge=2)
    """Tokens of the shortest piece, a power of two; the longest has the largest that `capacity` holds."""
    mixed: bool = False
    """Cut a document longer than the longest piece into pieces of random lengths, each length getting the same tokens,
    instead of longest ones: the default of the released code."""
    order: Order = Cycles()
    """Which rows each optimiser step takes; `cycles` is the sampler of the paper."""

    @model_validator(mode="after")
    def _powers(self) -> DatasetDecomposition:
        if self.shortest & (self.shortest - 1):
            raise ValueError(f"shortest={self.shortest} is no power of two")
        if self.shortest > self.capacity:
            raise ValueError(f"shortest={self.shortest} is above capacity={self.capacity}")
        return self

    def cut(self, lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        from seqtune.packing.order import decompose

        longest = 1 << (self.capacity.bit_length() - 1)
        return decompose(lengths, self.shortest, longest, plus_one=False, mixed=self.mixed, seed=self.seed)

    def build(self) -> Callable[..., Any]:
        from seqtune.packing.best_fit import one_each

        return one_each


class OnlineBestFit(PackingSpec):
    """Best fit into a few open rows, for documents that arrive as a stream."""

    is_online: ClassVar[bool] = True

    name: Literal["online_best_fit"] = "online_best_fit"
    open_rows: int = Field(64, ge=1)
    """Rows open at a time; more fill better and hold more documents back."""

    def build(self) -> Callable[..., Any]:
        from seqtune.packing.online import online_best_fit

        return partial(online_best_fit, count=self.open_rows)

    def online(self) -> OpenRows:
        from seqtune.packing.online import OpenRows

        return OpenRows(self.capacity, self.open_rows)


class Buffered(PackingSpec):
    """One row at a time, filled with the longest document of a buffer that fits, for documents that arrive as a
    stream."""

    is_online: ClassVar[bool] = True

    name: Literal["online_buffer"] = "online_buffer"
    buffer: int = Field(10_000, ge=1)
    """Documents to choose from; more fill better and are held in memory."""
    patience: int = Field(40_000, ge=1)
    """Rows a document waits at most before it opens one."""

    def build(self) -> Callable[..., Any]:
        from seqtune.packing.online_buffer import online_buffer

        return partial(online_buffer, buffer=self.buffer, patience=self.patience)

    def online(self) -> OnlineBuffer:
        from seqtune.packing.online_buffer import OnlineBuffer

        return OnlineBuffer(self.capacity, self.buffer, self.patience)


class BosCrop(PackingSpec):
    """Full rows at the price of cropped documents: the longest of a buffer that fits, or the shortest, cropped. A third
    of the tokens is commonly lost. The pretraining loader of nanochat."""

    name: Literal["bos_crop"] = "bos_crop"
    on_overflow: Literal["error", "truncate", "truncate_left", "split", "drop"] = "truncate"
    """What happens to a document longer than `capacity` before rows are filled."""
    buffer: int = Field(1000, ge=1)
    """Documents to choose from."""

    def build(self) -> Callable[..., Any]:
        from seqtune.packing.bos_crop import bos_crop

        return partial(bos_crop, buffer=self.buffer)


class Unpacked(PackingSpec):
    """One document a row."""

    name: Literal["none"] = "none"

    def build(self) -> Callable[..., Any]:
        from seqtune.packing.best_fit import one_each

        return one_each
