"""What a recipe can say about packing."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from seqtune.config.spec import PackingSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from seqtune.packing.online import OpenRows


class BestFit(PackingSpec):
    """Best-fit decreasing: each document goes into the fullest row that still holds it."""

    name: Literal["best_fit"] = "best_fit"

    def build(self) -> Callable[..., Any]:
        from seqtune.packing.best_fit import best_fit

        return best_fit


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
