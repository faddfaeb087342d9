"""What a recipe can say about rewards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from seqtune.config.spec import RewardSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class MathEquiv(RewardSpec):
    """1 if the completion's answer is mathematically equal to the reference answer, else 0 (math-verify)."""

    name: Literal["math_equiv"] = "math_equiv"
    timeout: float = Field(5.0, gt=0)
    """Seconds a comparison may take before it counts as wrong."""

    def build(self) -> Callable[..., Any]:
        raise NotImplementedError


class Exact(RewardSpec):
    """1 if the completion equals the reference answer after normalisation, else 0."""

    name: Literal["exact"] = "exact"

    def build(self) -> Callable[..., Any]:
        raise NotImplementedError


class Format(RewardSpec):
    """1 if the whole completion matches a regular expression, else 0."""

    name: Literal["format"] = "format"
    pattern: str
    """Regular expression the whole completion must match (dot matches newlines)."""

    def build(self) -> Callable[..., Any]:
        raise NotImplementedError
