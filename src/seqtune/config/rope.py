"""How rotary positions are changed so that a model reads more tokens: nested in the model of a recipe.

Each is said of the model as it was published: a stage that follows another counts its factor from there too.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from seqtune.config.base import Spec


class Abf(Spec):
    """Adjusted base frequency: rotate more slowly. "Effective Long-Context Scaling" (arXiv:2309.16039)."""

    name: Literal["abf"]
    base: float = Field(500_000.0, gt=1)
    """Base of the frequencies `base^(-2i/d)`; 500,000 took the paper's models from 4,096 to 32,768 tokens."""
    max_positions: int | None = Field(None, ge=16)
    """Tokens the model reads at most; None leaves it what it was."""


class _Scaled(Spec):
    factor: float = Field(gt=1)
    """Context to reach, as a multiple of the published one; the model then reads so many times more tokens."""


class PositionInterpolation(_Scaled):
    """Positions divided by `factor`. "Extending Context Window via Positional Interpolation" (arXiv:2306.15595)."""

    name: Literal["pi"]


class NtkAware(_Scaled):
    """The base grows by `factor^(d/(d-2))`: the slowest frequency is interpolated, the fastest is kept. Described in
    YaRN (arXiv:2309.00071, section 3.1)."""

    name: Literal["ntk"]


class Yarn(_Scaled):
    """Slow frequencies are interpolated, fast ones kept, and attention is sharpened. YaRN (arXiv:2309.00071)."""

    name: Literal["yarn"]
    beta_fast: float = Field(32.0, gt=0)
    """Frequencies that turn more often than this over the published context are kept."""
    beta_slow: float = Field(1.0, gt=0)
    """Frequencies that turn less often than this over the published context are interpolated in full."""
    attention_factor: float | None = Field(None, gt=0)
    """What cosines and sines are multiplied by; None takes the paper's `0.1 ln(factor) + 1`."""


Rope = Annotated[Abf | PositionInterpolation | NtkAware | Yarn, Field(discriminator="name")]
