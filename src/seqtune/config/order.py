"""In which order an optimiser step takes the rows that packing made: nested in the packing of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from seqtune.config.base import Spec

Odds = Literal["uniform", "linear", "p2", "p100", "shrink_p100"]


class Shuffle(Spec):
    """Every step takes the same number of rows, drawn without replacement from one pass after another."""

    name: Literal["shuffle"] = "shuffle"


class GroupByLength(Spec):
    """Rows of similar length share a step, as in Hugging Face's `group_by_length` (`LengthGroupedSampler`)."""

    name: Literal["group_by_length"]
    group_steps: int = Field(50, ge=1)
    """Steps whose rows are sorted together; fewer where the data has less than four times as many."""


class TokenBudget(Spec):
    """A step takes rows until the next would go beyond its tokens: as many as `train.batch_size` × `train.accumulate` ×
    `parallel.processes` rows of `packing.capacity` would hold."""

    name: Literal["token_budget"]
    group_steps: int = Field(50, ge=1)
    """Steps whose rows are sorted by length before they are cut into steps; the steps are then shuffled."""
    padded: bool = False
    """Count a step as its longest row times its rows, which is what a padded batch costs."""


class GrowLength(Spec):
    """Rows grow in stages: the documents are dealt to the stages, and each stage packs its own at its own length. A
    step always holds about the same number of tokens, so short rows come many to a step. GrowLength (arXiv:2310.00576).
    """

    name: Literal["growlength"]
    shortest: int = Field(128, ge=2)
    """Tokens a row of the first stage holds; they double from stage to stage until `packing.capacity`."""
    lengths: tuple[Annotated[int, Field(ge=2)], ...] = ()
    """Tokens a row of each stage holds, ascending, the last being `packing.capacity`; empty doubles from `shortest`."""
    fractions: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Share of the tokens that each stage trains on; empty gives all the same. They are divided by their sum."""

    @model_validator(mode="after")
    def _fit(self) -> GrowLength:
        if any(after <= before for before, after in zip(self.lengths, self.lengths[1:], strict=False)):
            raise ValueError(f"lengths={list(self.lengths)} do not grow; give each stage longer rows than the last")
        if self.fractions and self.lengths and len(self.fractions) != len(self.lengths):
            raise ValueError(f"{len(self.fractions)} fractions for {len(self.lengths)} lengths; give one for each")
        return self

    def stages(self, capacity: int) -> tuple[int, ...]:
        """Tokens a row of each stage holds, where one of the last holds `capacity`."""
        if self.lengths:
            return self.lengths
        found = [capacity]
        while found[0] % 2 == 0 and found[0] // 2 >= self.shortest:
            found.insert(0, found[0] // 2)
        return tuple(found)


class Cycles(Spec):
    """Every step takes rows of one length, drawn by odds; the rows of each length are dealt to cycles, so that all
    lengths come back in each. The sampler of Dataset Decomposition (arXiv:2405.13226)."""

    name: Literal["cycles"] = "cycles"
    odds: Odds = "p2"
    """How much likelier the next step takes shorter rows, from the shortest length to the longest: `uniform` 1:…:1,
    `linear` n:…:2:1, `p2` and `p100` powers of 2 and 100, falling; `shrink_p100` the powers of 100 rising."""
    cycles: int = Field(8, ge=1)
    """Parts a pass over the data is cut into."""
    weighting: Literal["odds", "odds_x_tokens"] = "odds"
    """`odds` as the paper writes; `odds_x_tokens` also weighs by the tokens of each length, as its released code."""


Order = Annotated[Shuffle | GroupByLength | TokenBudget | GrowLength | Cycles, Field(discriminator="name")]
