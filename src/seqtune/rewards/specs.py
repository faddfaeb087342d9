"""What a recipe can say about rewards. The functions are imported by `build()`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializeAsAny,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from seqtune.config.nested import named
from seqtune.config.spec import RewardSpec
from seqtune.rewards import REWARDS

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def _reward(value: object) -> RewardSpec:
    """A reward inside a reward: its fields as a recipe writes them, read by the spec that its name chooses."""
    return named(value, kind="reward", base=RewardSpec, names=REWARDS, custom=Custom)


def _bound(function: Callable[..., Any], **fields: Any) -> Callable[..., Any]:
    """`reward(prompts, completions, **columns)` of a function that takes columns as one argument.

    So a column may have the name of a field.
    """

    def reward(prompts: list[str], completions: list[str], **columns: list[Any]) -> Any:
        return function(prompts, completions, columns, **fields)

    reward.__name__ = function.__name__
    return reward


_SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
Part = Annotated[SerializeAsAny[RewardSpec], BeforeValidator(_reward), WithJsonSchema(_SCHEMA)]
"""A reward as a field: a mapping with its `name` and fields."""
Unit = Literal["tokens", "words", "characters"]


class MathEquiv(RewardSpec):
    """1 if the completion's answer is mathematically equal to the reference answer, else 0 (math-verify)."""

    name: Literal["math_equiv"] = "math_equiv"
    timeout: float = Field(5.0, gt=0)
    """Seconds a comparison may take before it counts as wrong."""
    workers: int = Field(1, ge=1)
    """Processes that compare at the same time."""

    @property
    def columns(self) -> frozenset[str]:
        return frozenset({"answer"})

    def build(self) -> Callable[..., Any]:
        from seqtune.rewards.math_equiv import MathEquiv as Checker

        return Checker(self.timeout, self.workers)


class Exact(RewardSpec):
    """1 if the completion's answer equals the reference answer after normalisation, else 0."""

    name: Literal["exact"] = "exact"

    @property
    def columns(self) -> frozenset[str]:
        return frozenset({"answer"})

    def build(self) -> Callable[..., Any]:
        from seqtune.rewards.exact import exact

        return exact


class Format(RewardSpec):
    """1 if the whole completion matches a regular expression, else 0."""

    name: Literal["format"] = "format"
    pattern: str
    """Regular expression the whole completion must match (dot matches newlines)."""
    timeout: float = Field(5.0, gt=0)
    """Seconds a completion may take before it counts as no match."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        import regex

        try:
            regex.compile(pattern)
        except regex.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern

    def build(self) -> Callable[..., Any]:
        from seqtune.rewards.format import matches

        return _bound(matches, pattern=self.pattern, timeout=self.timeout)


class F1(RewardSpec):
    """Overlap of the words of the completion's answer with those of the reference answer, from 0 to 1."""

    name: Literal["f1"] = "f1"

    @property
    def columns(self) -> frozenset[str]:
        return frozenset({"answer"})

    def build(self) -> Callable[..., Any]:
        from seqtune.rewards.exact import f1

        return f1


class CodeExec(RewardSpec):
    """1 if the completion's program passes its tests in a sandbox, else 0."""

    name: Literal["code_exec"] = "code_exec"
    tests: str = "tests"
    """Name of the column with the tests: Python source, or a list of sources, run after the completion's program."""
    continues: bool = False
    """The completion goes on where the prompt ends, as in HumanEval; the program is both together."""
    partial: bool = False
    """The score is the share of a row's tests that pass, not all or nothing."""
    timeout: float = Field(10.0, gt=0)
    """Seconds a program and its tests may take."""
    memory: int = Field(1024, ge=64)
    """MiB of address space a process may have, and of memory that all processes of a program may hold."""
    processes: int = Field(64, ge=1)
    """Processes and threads a program may have at a time."""
    output: int = Field(1024, ge=1)
    """KiB a program may print."""
    workers: int = Field(1, ge=1)
    """Programs that run at the same time."""

    @property
    def columns(self) -> frozenset[str]:
        return frozenset({self.tests})

    def build(self) -> Callable[..., Any]:
        from seqtune.rewards.code import CodeExec as Sandboxed

        return Sandboxed(
            tests=self.tests,
            continues=self.continues,
            partial=self.partial,
            timeout=self.timeout,
            memory=self.memory,
            processes=self.processes,
            output=self.output,
            workers=self.workers,
        )


class ListNdcg(RewardSpec):
    """Quality of a ranked list, one item a line: NDCG, or a number for each rank."""

    name: Literal["list_ndcg"] = "list_ndcg"
    k: int = Field(20, ge=1)
    """Ranks that count (arXiv 2510.20150: 20)."""
    output: Literal["ndcg", "log_decay", "exp_inf"] = "ndcg"
    """`ndcg`: one number; `log_decay`, `exp_inf`: `k` numbers, the discounted gain from a rank on or the hit at it."""
    relevant: str = "relevant"
    """Name of the column with the relevant items: a list, or a text with one a line."""

    @property
    def gives(self) -> frozenset[str]:
        return frozenset() if self.output == "ndcg" else frozenset({"rank_rewards"})

    @property
    def columns(self) -> frozenset[str]:
        return frozenset({self.relevant})

    def build(self) -> Callable[..., Any]:
        from seqtune.rewards.ranking import list_ndcg

        return _bound(list_ndcg, k=self.k, output=self.output, relevant=self.relevant)


class CosineLength(RewardSpec):
    """Correct: 1 if short down to 0.5 if long; wrong: -1 if short up to -0.5 if long, along a cosine."""

    name: Literal["cosine_length"] = "cosine_length"
    max_length: int = Field(ge=1)
    """L: from this length on the score stays."""
    unit: Unit = "tokens"
    """What length counts."""
    correct: Part = MathEquiv()
    """The reward that tells what is correct: a score above 0.5."""

    @property
    def columns(self) -> frozenset[str]:
        return self.correct.columns

    def build(self) -> Callable[..., Any]:
        from seqtune.rewards.lengths import cosine_length

        return _bound(cosine_length, correct=self.correct.build(), max_length=self.max_length, unit=self.unit)


class SoftOverlong(RewardSpec):
    """0 for a completion that leaves room, falling to -1 where it reaches its largest length (arXiv 2503.14476)."""

    name: Literal["soft_overlong"] = "soft_overlong"
    max_length: int = Field(ge=1)
    """L: from this length on the score is -1; `rollout.max_new_tokens` as a rule."""
    cache: int = Field(ge=1)
    """c: lengths over which the score falls from 0 to -1."""
    unit: Unit = "tokens"
    """What length counts."""

    @model_validator(mode="after")
    def _fits(self) -> SoftOverlong:
        if self.cache > self.max_length:
            raise ValueError(f"cache ({self.cache}) is larger than max_length ({self.max_length})")
        return self

    def build(self) -> Callable[..., Any]:
        from seqtune.rewards.lengths import soft_overlong

        return _bound(soft_overlong, max_length=self.max_length, cache=self.cache, unit=self.unit)


class LengthBudget(RewardSpec):
    """Minus the relative distance to a target length; or a correctness that shrinks with length."""

    name: Literal["length_budget"] = "length_budget"
    target: int = Field(ge=1)
    """The length aimed at; with `correct` the length at which 1 - alpha of the score is left."""
    alpha: float = Field(1.0, ge=0)
    """α, the weight of length."""
    unit: Unit = "tokens"
    """What length counts."""
    correct: Part | None = None
    """A reward whose score is multiplied by 1 - α · length / target; without it: -α · |length - target| / target."""

    def build(self) -> Callable[..., Any]:
        from seqtune.rewards.lengths import length_budget

        correct = self.correct.build() if self.correct is not None else None
        return _bound(length_budget, target=self.target, alpha=self.alpha, correct=correct, unit=self.unit)


class Repetition(RewardSpec):
    """A penalty for the share of n-grams that repeat an earlier one."""

    name: Literal["repetition"] = "repetition"
    n: int = Field(3, ge=1)
    """Length of an n-gram."""
    penalty: float = Field(-1.0, le=0)
    """The score if every n-gram were a repetition."""
    unit: Unit = "tokens"
    """What an n-gram is made of."""

    def build(self) -> Callable[..., Any]:
        from seqtune.rewards.lengths import repetition

        return _bound(repetition, n=self.n, penalty=self.penalty, unit=self.unit)


class RewardModel(RewardSpec):
    """The score of a trained reward model."""

    name: Literal["reward_model"] = "reward_model"
    path: str
    """Folder of a reward model (`checkpoints/<stage>/final` of a run), or a sequence classifier's name on the hub."""
    revision: str | None = None
    """Branch, tag or commit of a hub name."""
    batch_size: int = Field(8, ge=1)
    """Rows scored together."""
    max_length: int | None = Field(None, ge=1)
    """Tokens of a row that are read; the beginning of a longer one is cut off."""

    def build(self) -> Callable[..., Any]:
        from seqtune.rewards.model import RewardModel as Scorer

        return Scorer(self.path, revision=self.revision, batch_size=self.batch_size, max_length=self.max_length)


class Combined(RewardSpec):
    """Several rewards: the product of the gates times the weighted sum of the others."""

    name: Literal["combined"] = "combined"
    parts: dict[str, Part] = Field(min_length=1)
    """Rewards by a name of your choice, each a mapping with its `name` and fields."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Weight of a part in the sum, by its name; 1 where there is none."""
    gates: tuple[str, ...] = ()
    """Names of the parts that multiply the sum; if all do, the score is their product."""

    @model_validator(mode="after")
    def _known(self) -> Combined:
        for field, names in (("weights", self.weights), ("gates", self.gates)):
            if unknown := sorted(set(names) - set(self.parts)):
                raise ValueError(f"{field} name no part: {', '.join(unknown)} (parts: {', '.join(self.parts)})")
        if both := sorted(set(self.weights) & set(self.gates)):
            raise ValueError(f"a gate has no weight: {', '.join(both)}")
        return self

    @property
    def gives(self) -> frozenset[str]:
        return frozenset({"reward_columns"})

    @property
    def columns(self) -> frozenset[str]:
        return frozenset().union(*(part.columns for part in self.parts.values()))

    def build(self) -> Callable[..., Any]:
        from seqtune.rewards.combined import Combined as Together

        parts = {name: part.build() for name, part in self.parts.items()}
        return Together(parts, weights=self.weights, gates=self.gates)


class Custom(RewardSpec):
    """A Python function of yours: `module:function` or `file.py:function`."""

    name: str = Field(pattern=r"^.+:[A-Za-z_][A-Za-z0-9_]*$")
    """`package.module:function`, or `path/to/file.py:function` relative to the working directory."""
    workers: int = Field(0, ge=0)
    """Processes that run it, a row at a time; 0 calls it in this process with the whole batch."""
    timeout: float | None = Field(None, gt=0)
    """Seconds: with `workers` for a row, which then gets no score; else for a batch of an `async def` function."""

    @property
    def gives(self) -> frozenset[str]:
        # A function may return a list a row; whether it does is seen when it is called.
        return frozenset({"rank_rewards", "plan_rewards", "format_scores", "judge_scores", "executions"})

    def build(self) -> Callable[..., Any]:
        from seqtune.rewards.custom import Pooled, load

        if self.workers:
            return Pooled(self.name, workers=self.workers, timeout=self.timeout)
        return load(self.name, timeout=self.timeout)
