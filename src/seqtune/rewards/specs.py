"""What a recipe can say about rewards. The functions are imported by `build()`."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

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
        from seqtune.rewards.math_equiv import MathEquiv as Checker

        return Checker(self.timeout)


class Exact(RewardSpec):
    """1 if the completion's answer equals the reference answer after normalisation, else 0."""

    name: Literal["exact"] = "exact"

    def build(self) -> Callable[..., Any]:
        from seqtune.rewards.exact import exact

        return exact


class Format(RewardSpec):
    """1 if the whole completion matches a regular expression, else 0."""

    name: Literal["format"] = "format"
    pattern: str
    """Regular expression the whole completion must match (dot matches newlines)."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern

    def build(self) -> Callable[..., Any]:
        from seqtune.rewards.format import matches

        return partial(matches, pattern=self.pattern)


class Custom(RewardSpec):
    """A Python function of yours: `module:function` or `file.py:function`."""

    name: str = Field(pattern=r"^.+:[A-Za-z_][A-Za-z0-9_]*$")
    """`package.module:function`, or `path/to/file.py:function` relative to the working directory."""

    def build(self) -> Callable[..., Any]:
        from seqtune.rewards.custom import load

        return load(self.name)
