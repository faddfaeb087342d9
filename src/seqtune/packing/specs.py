"""What a recipe can say about packing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from seqtune.config.spec import PackingSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class BestFit(PackingSpec):
    """Best-fit decreasing: each document goes into the fullest row that still holds it."""

    name: Literal["best_fit"] = "best_fit"

    def build(self) -> Callable[..., Any]:
        from seqtune.packing.best_fit import best_fit

        return best_fit


class Unpacked(PackingSpec):
    """One document a row."""

    name: Literal["none"] = "none"

    def build(self) -> Callable[..., Any]:
        from seqtune.packing.best_fit import one_each

        return one_each
