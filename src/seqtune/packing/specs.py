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


class BestFit(PackingSpec):
    """Best-fit decreasing: each document goes into the fullest row that still holds it."""

    name: Literal["best_fit"] = "best_fit"

    def build(self) -> Callable[..., Any]:
        from seqtune.packing.best_fit import best_fit

        return best_fit


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


class Unpacked(PackingSpec):
    """One document a row."""

    name: Literal["none"] = "none"

    def build(self) -> Callable[..., Any]:
        from seqtune.packing.best_fit import one_each

        return one_each
