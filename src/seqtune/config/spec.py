"""Bases of everything a recipe configures. Imports neither torch nor Hydra."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from seqtune.config.base import Spec as Spec
from seqtune.config.order import Order, Shuffle

Family = Literal["sft", "preference", "reward", "policy", "offline", "ranking"]
"""Which trainer runs an objective, and what its loss is called with."""
DenominatorUnit = Literal["tokens", "pairs", "groups", "sequences", "slots"]
"""What the denominator of a loss counts over an optimiser step. `tokens`: those of the loss mask; `slots`: completions
times the most tokens one may have."""


class ObjectiveSpec(Spec):
    """What is optimised. `build()` returns a pure function of tensors giving `(loss, metrics)`."""

    family: ClassVar[Family]
    formula: ClassVar[str]
    """The loss in one or two plain-text lines, with the paper's symbols; `seqtune show` prints it."""
    source: ClassVar[str]
    """arXiv id or URL the formula and the defaults follow."""
    needs_reference: ClassVar[bool] = False
    """Whether log-probs of a frozen reference model are needed whatever the fields say."""
    needs_mismatched: ClassVar[bool] = False
    """Whether a preference objective also takes the mean log-ratio of completions of other prompts."""

    name: str
    """Name in the registry `objectives`."""

    @property
    def needs(self) -> frozenset[str]:
        """Inputs beyond those its family is always called with: keys of `seqtune.config.rules.inputs.INPUTS`."""
        return frozenset()

    @property
    def samples_reference(self) -> bool:
        """Whether the model a stage starts from completes prompts, which the stage's reward scores, before step 1."""
        return False

    @property
    def stops_gradient(self) -> bool:
        """Whether the loss holds parts of itself fixed with `detach`, so that its gradient is not its derivative."""
        return False

    @property
    def denominator_unit(self) -> DenominatorUnit:
        """What the trainer counts, over all micro-batches and ranks, for the loss's `denominator`."""
        raise NotImplementedError

    def build(self) -> Any:
        """The loss function, hyper-parameters bound; imports torch."""
        raise NotImplementedError


class PackingSpec(Spec):
    """How token sequences share rows. `build()` returns a function of integers, lengths to bins."""

    is_online: ClassVar[bool] = False
    """Whether `online()` packs documents as they arrive, as a mixture needs."""
    splits: ClassVar[bool] = False
    """Whether the packer itself cuts documents longer than a row where `on_overflow` is `split`."""

    name: str
    """Name in the registry `packings`."""
    capacity: int = Field(1024, ge=2)
    """Tokens a row holds at most."""
    attention: Literal["document", "causal"] = "document"
    """`document`: no token sees another document of its row; `causal`: it sees the whole row before it."""
    on_overflow: Literal["error", "truncate", "truncate_left", "split", "drop"] = "error"
    """What happens to a document longer than `capacity`: `truncate` keeps its beginning, `truncate_left` its end; lossy
    choices are counted in the report."""
    seed: int = Field(0, ge=0)
    """Seed of the order of rows."""
    order: Order = Shuffle()
    """Which rows each optimiser step takes."""
    path: str | None = None
    """Folder written by `seqtune pack`: training reads it and tokenises nothing."""

    def build(self) -> Any:
        """The packer: `(lengths, capacity, seed) -> seqtune.packing.bins.Bins`."""
        raise NotImplementedError

    def cut(self, lengths: Any) -> Any:
        """Document, start and length of each piece this packing makes of documents; None leaves them whole."""
        return None

    def online(self) -> Any:
        """A new `seqtune.training.stream.OnlinePacker`, where `is_online`."""
        raise NotImplementedError


class PeftSpec(Spec):
    """Which weights are trained. `build()` returns a `peft` configuration, or None for all weights."""

    name: str
    """Name in the registry `pefts`."""

    def build(self) -> Any:
        """A `peft.PeftConfig`, or None when the model itself is trained."""
        raise NotImplementedError


class ParallelSpec(Spec):
    """How processes share the work. `build()` returns what the launcher and accelerate need."""

    name: str
    """Name in the registry `parallel_plans`."""
    processes: int = Field(1, ge=1)
    """Processes on this machine, one per GPU (or per CPU share)."""

    def build(self) -> Any:
        """Keyword arguments for the Hugging Face training arguments."""
        raise NotImplementedError


class RewardSpec(Spec):
    """How a completion is scored. `build()` returns a function of a batch giving one number a row."""

    @property
    def gives(self) -> frozenset[str]:
        """What objectives may need beyond one number a row: keys of `seqtune.config.rules.inputs.INPUTS`."""
        return frozenset()

    @property
    def columns(self) -> frozenset[str]:
        """Columns of the data that it cannot do without."""
        return frozenset()

    name: str
    """Name in the registry `rewards`, or `module:function`, or `file.py:function`."""

    def build(self) -> Any:
        """`reward(prompts, completions, **columns) -> list[float | None]`."""
        raise NotImplementedError
